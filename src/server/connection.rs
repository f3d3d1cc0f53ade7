//! What becomes of an accepted connection: a proxy's header, TLS and the first bytes are waited for, then requests
//! are answered until one of them is upgraded.
//!
//! Every wait has an end. Whoever connects has [`Options::handshake_timeout`] to become a WebSocket or to sign a
//! request; a connection whose requests are signed is kept for [`Options::keep_alive`] without one.
//!
//! [`Options::handshake_timeout`]: super::Options::handshake_timeout
//! [`Options::keep_alive`]: super::Options::keep_alive

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_util::either::Either;
use tracing::debug;

use super::arrivals::{Arrival, Stage};
use super::repoll::Repoll;
use super::stream::{self, LINGER, PatientStream, Progress, Stream};
use super::{Server, Tls, proxy_protocol};
use crate::addresses::Kind;
use crate::http::{self, Caller};
use crate::limits::Limit;
use crate::pusher::{self, Peer};

/// The longest head of a request.
const HEAD_BYTES: usize = 16 * 1024;

impl Server {
    /// Serves one connection, until it ends or is upgraded.
    pub(super) async fn serve(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        tls: Option<Tls>,
        arrival: Arrival,
    ) {
        let until = Instant::now() + self.handshake_timeout;
        let wants_tls = tls.is_some();
        let (stream, address) = tokio::select! {
            opened = self.open(stream, address, tls, &arrival) => match opened {
                Some(opened) => opened,
                None => return,
            },
            () = sleep_until(until) => return self.hub.refused(Limit::Handshake, None),
            () = self.stopping.cancelled() => return,
        };
        // In a box, so that who says nothing does not have room for it.
        Box::pin(self.answer_all(stream, address, wants_tls, arrival, until)).await;
    }

    /// Waits for the first bytes of a client, behind the header of a proxy and the handshake of TLS. `None`: there
    /// will be none.
    async fn open(
        &self,
        mut stream: TcpStream,
        mut address: SocketAddr,
        tls: Option<Tls>,
        arrival: &Arrival,
    ) -> Option<(Stream, SocketAddr)> {
        // In boxes, so that a connection without does not have room for it.
        if self.proxy_protocol {
            match Box::pin(proxy_protocol::read(&mut stream)).await {
                Ok(client) => address = client.unwrap_or(address),
                Err(error) => {
                    debug!(%address, %error, "no header of the PROXY protocol");
                    self.hub.refused(Limit::ProxyProtocol, None);
                    return None;
                }
            }
            match self.addresses.enter(address.ip(), Kind::Stranger, true, self.hub.now()) {
                Ok(place) => arrival.keep_address(place),
                Err(limit) => {
                    self.hub.refused(limit, None);
                    return None;
                }
            }
        }
        // Who says nothing costs no buffer. Looked at, because a new socket is called readable at first.
        let mut first = [0];
        let opened = match stream.peek(&mut first).await {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(error),
            Ok(_) => {
                arrival.reached(Stage::Begun);
                match tls {
                    None => Ok(Either::Left(stream)),
                    Some(tls) => Box::pin(tls.accept(stream, first[0])).await,
                }
            }
        };
        match opened {
            Ok(stream) => Some((stream, address)),
            Err(error) => {
                debug!(%address, %error, "no connection");
                None
            }
        }
    }

    /// Answers the requests of one connection, which is a stranger's until one of them is signed, and then `until` at
    /// the latest.
    async fn answer_all(
        &self,
        stream: Stream,
        address: SocketAddr,
        wants_tls: bool,
        arrival: Arrival,
        until: Instant,
    ) {
        let mut patience = pin!(sleep_until(until));
        let peer = Peer { address, over_tls: matches!(stream, Either::Right(_)) };
        let misses_tls = wants_tls && !peer.over_tls;
        let caller = Caller::default();
        let arrival = Arc::new(arrival);
        let stranger = Arc::downgrade(&arrival);
        let mut arrival = Some(arrival);
        let requests = Requests::default();
        let service = service_fn(|request: Request<Incoming>| {
            self.answer(request, peer, misses_tls, &caller, &stranger, requests.begin())
        });
        let written = Progress::default();
        let stream = PatientStream::new(stream, self.write_timeout, written.clone());
        let connection = http1::Builder::new()
            .max_buf_size(HEAD_BYTES)
            // An answer is small: its body is copied behind its head, which costs less than a vector of two.
            .writev(false)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let mut stopping = pin!(self.stopping.cancelled());
        let (mut repoll, mut is_stopping, mut is_late) = (Repoll::default(), false, false);
        let mut seen = (0, 0);
        // By hand, because this is polled for every request: what no longer matters is not looked at.
        std::future::poll_fn(|cx| {
            if !is_stopping && stopping.as_mut().poll(cx).is_ready() {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            // Whatever ends a connection, it ends; a client's mistakes are not the operator's.
            if repoll.poll(cx, connection.as_mut()).is_ready() {
                return Poll::Ready(());
            }
            if arrival.is_some() && caller.is_known() {
                // A stranger no longer: its place is for others.
                arrival = None;
            }
            // One timer for all requests, because starting one for each is a twentieth of what a publish costs: when
            // it is over, and something went on meanwhile, it starts again.
            while patience.as_mut().poll(cx).is_ready() {
                if requests.begun() == 0 {
                    self.hub.refused(Limit::Handshake, None);
                    return Poll::Ready(());
                }
                let so_far = (requests.begun(), written.bytes());
                let is_idle = requests.are_answered() && so_far == seen;
                if is_idle || (is_late && arrival.is_some()) {
                    return Poll::Ready(());
                }
                seen = so_far;
                if arrival.is_none() {
                    patience.as_mut().reset(Instant::now() + self.keep_alive);
                    continue;
                }
                // It was answered, as a health check is, and that was that.
                is_late = true;
                patience.as_mut().reset(Instant::now() + LINGER);
                connection.as_mut().graceful_shutdown();
                if repoll.poll(cx, connection.as_mut()).is_ready() {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        })
        .await;
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        misses_tls: bool,
        caller: &Caller,
        stranger: &Weak<Arrival>,
        _begun: Begun<'_>,
    ) -> Result<Response<http::AnswerBody>, Infallible> {
        let pending = stranger.upgrade();
        if let Some(pending) = &pending {
            pending.reached(Stage::Answering);
        }
        if misses_tls {
            return Ok(hung_up_on("This port speaks TLS: use https:// or wss://"));
        }
        if !names_one_host(request.version(), request.headers()) {
            return Ok(hung_up_on("The request must have one header Host, with a host in it"));
        }
        if pusher::is_upgrade(request.headers()) {
            let (response, task) = self.door.upgrade(request, peer, pending.clone(), stream::take_apart);
            if let (Some(pending), Some(task)) = (pending, task) {
                pending.belongs_to(task);
            }
            return Ok(response.map(http::AnswerBody::Right));
        }
        // Whoever signs the request gives its place back while it is answered.
        drop(pending);
        let mut response = self.http.answer(request, caller).await;
        if let Some(pending) = stranger.upgrade() {
            pending.reached(Stage::Begun);
        }
        if response.status() == StatusCode::UNAUTHORIZED && !caller.is_known() {
            // Whoever guesses opens a connection for each guess, and those are counted.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// The requests of one connection: how many have begun, and how many are answered.
#[derive(Debug, Default)]
struct Requests {
    begun: AtomicU64,
    answered: AtomicU64,
}

impl Requests {
    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether none is being answered.
    fn are_answered(&self) -> bool {
        self.begun() == self.answered.load(Ordering::Relaxed)
    }

    fn begin(&self) -> Begun<'_> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Begun(self)
    }
}

/// A request that is being answered until this is dropped.
#[derive(Debug)]
struct Begun<'r>(&'r Requests);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether a request says which host it is for, as it must. Source: RFC 9112 §3.2.
fn names_one_host(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else { return version < Version::HTTP_11 };
    // By comparison and not by search, because every request is looked at.
    let ends_a_host = |byte: &u8| matches!(byte, 0..=b' ' | b'"' | b'#' | b',' | b'/' | b'<' | b'>' | b'?' | b'@' | b'\\' | 0x7f..);
    hosts.next().is_none() && !host.as_bytes().iter().any(ends_a_host)
}

/// A refusal of what is no request for this port.
fn hung_up_on(sentence: &'static str) -> Response<http::AnswerBody> {
    let mut response = Response::new(http::AnswerBody::Right(Body::from(sentence)));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
