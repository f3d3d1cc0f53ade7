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
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_util::either::Either;

use super::arrivals::{Arrival, Stage};
use super::kept_alive::{Begun, Requests};
use super::opening::{self, Farewell, Protocol};
use super::repoll::Repoll;
use super::stream::{self, HEAD_BYTES, HEADERS, LINGER, PatientStream, Progress, Stream};
use super::{Server, Tls, proxy_protocol, tls};
use crate::addresses::Kind;
use crate::http::{self, Caller};
use crate::limits::Limit;
use crate::pusher::Peer;
use crate::rejections::{Example, Mistake};

/// What a head that has begun is waited for when the server stops.
const HALF_A_HEAD: Duration = Duration::from_millis(500);

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
        let (stream, peer) = tokio::select! {
            opened = self.open(stream, address, tls, &arrival) => match opened {
                Ok(opened) => opened,
                Err(None) => return,
                Err(Some(farewell)) => return Box::pin(farewell.say()).await,
            },
            () = sleep_until(until) => return self.came_too_late(address),
            () = self.stopping.cancelled() => return,
        };
        // In a box, so that who says nothing does not have room for it.
        Box::pin(self.answer_all(stream, peer, arrival, until)).await;
    }

    /// Counts a connection that was nothing in time.
    fn came_too_late(&self, address: SocketAddr) {
        let example = Example::from(address.ip()).value(self.handshake_timeout.as_secs());
        self.hub.reject(Limit::Handshake, None, example);
    }

    /// Waits for the first bytes of a client, behind the header of a proxy and the handshake of TLS.
    ///
    /// # Errors
    /// There will be none, or none that are spoken here, of which the client is to be told.
    async fn open(
        &self,
        mut stream: TcpStream,
        mut address: SocketAddr,
        with_tls: Option<Tls>,
        arrival: &Arrival,
    ) -> Result<(Stream, Peer), Option<Farewell>> {
        let mut over_tls = false;
        // Who says nothing costs no buffer, and is the first to be evicted.
        let mut first = [0; opening::BYTES];
        first_bytes(&stream, &mut first, arrival).await.map_err(|_| None)?;
        // In boxes, so that a connection without does not have room for it.
        if self.proxy_protocol {
            match Box::pin(proxy_protocol::read(&mut stream)).await {
                Ok(proxied) => {
                    address = proxied.client.unwrap_or(address);
                    over_tls = proxied.over_tls;
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::InvalidData {
                        // What connects and says nothing is a health check of the proxy's.
                        return Err(None);
                    }
                    let example = Example::from(address.ip()).reason("it begins with something else");
                    self.hub.reject(Limit::ProxyProtocol, None, example);
                    return Err(Some(Farewell::without_proxy_header(Either::Left(stream))));
                }
            }
            match self.addresses.enter(address.ip(), Kind::Stranger, true, self.hub.now()) {
                Ok(place) => arrival.keep_address(place),
                Err(limit) => {
                    self.refuse_address(limit, address);
                    return Err(None);
                }
            }
        }
        // What stands behind the header of a proxy.
        let seen = first_bytes(&stream, &mut first, arrival).await.map_err(|_| None)?;
        let wants_tls = with_tls.is_some();
        let (stream, spoken) = match (Protocol::of(&first[..seen]), with_tls) {
            (Some(Protocol::Tls), Some(tls)) => match Box::pin(tls.accept(stream)).await {
                Ok(mut stream) => {
                    let inside = Box::pin(stream.fill_buf()).await.map_err(|_| None)?;
                    let spoken = Protocol::of(inside).filter(|inside| *inside != Protocol::Tls);
                    (Either::Right(stream), spoken)
                }
                Err(error) => {
                    let example = Example::from(address.ip()).reason(tls::why_failed(&error));
                    self.hub.reject(Mistake::TlsHandshake, None, example);
                    return Err(None);
                }
            },
            (spoken, _) => (Either::Left(stream), spoken),
        };
        if let Some(protocol) = spoken {
            self.hub.reject(protocol.mistake(), None, Example::from(address.ip()));
            return Err(Some(protocol.refuse(stream)));
        }
        let speaks_tls = matches!(stream, Either::Right(_));
        let peer = Peer { address, over_tls: over_tls || speaks_tls, misses_tls: wants_tls && !speaks_tls };
        Ok((stream, peer))
    }

    /// Counts a connection that its address may not have.
    pub(super) fn refuse_address(&self, limit: Limit, address: SocketAddr) {
        let value = self.addresses.value_of(limit);
        self.hub.reject(limit, None, Example::from(address.ip()).value(value));
    }

    /// Answers the requests of one connection, which is a stranger's until one of them is signed, and then `until` at
    /// the latest.
    async fn answer_all(&self, stream: Stream, peer: Peer, arrival: Arrival, until: Instant) {
        let mut patience = pin!(sleep_until(until));
        let caller = Caller::new(peer.address.ip(), &self.addresses);
        let arrival = Arc::new(arrival);
        let stranger = Arc::downgrade(&arrival);
        let mut arrival = Some(arrival);
        let requests = Arc::new(Requests::default());
        let service = service_fn(|request: Request<Incoming>| {
            self.answer(request, peer, &caller, &stranger, requests.begin(&self.hub))
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
        let (mut seen, mut _kept) = ((0, 0), None);
        // By hand, because this is polled for every request: what no longer matters is not looked at.
        std::future::poll_fn(|cx| {
            if !is_stopping && stopping.as_mut().poll(cx).is_ready() {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
                patience.as_mut().reset(Instant::now() + HALF_A_HEAD);
            }
            if let Poll::Ready(ended) = repoll.poll(cx, connection.as_mut()) {
                if let Err(error) = ended {
                    self.unreadable(&error, peer);
                }
                return Poll::Ready(());
            }
            if arrival.is_some() && caller.is_authenticated() {
                // A stranger no longer: its place is for others.
                arrival = None;
                _kept = Some(self.kept_alive.enter(&requests, cx.waker().clone()));
            }
            if requests.end_now() {
                return Poll::Ready(());
            }
            // One timer for all requests, because starting one for each is a twentieth of what a publish costs: when
            // it is over, and something went on meanwhile, it starts again.
            while patience.as_mut().poll(cx).is_ready() {
                if is_stopping {
                    if requests.are_answered() {
                        return Poll::Ready(());
                    }
                    // The deadline of the shutdown is for what is being answered.
                    patience.as_mut().reset(Instant::now() + self.keep_alive);
                    continue;
                }
                if requests.begun() == 0 {
                    self.came_too_late(peer.address);
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

    /// Counts a connection that hyper ended because it could not read a request, and whose client it has told.
    fn unreadable(&self, error: &hyper::Error, peer: Peer) {
        if !error.is_parse() {
            // Whatever ends a connection, it ends.
            return;
        }
        let (mistake, reason) = if error.is_parse_too_large() {
            (Mistake::HeadTooLarge, format!("more than {HEAD_BYTES} bytes or {HEADERS} headers"))
        } else if error.is_parse_version_h2() {
            (Mistake::Http2, error.to_string())
        } else {
            (Mistake::NotHttp, error.to_string())
        };
        self.hub.reject(mistake, None, Example::from(peer.address.ip()).reason(reason));
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        caller: &Caller,
        stranger: &Weak<Arrival>,
        begun: Begun,
    ) -> Result<Response<http::AnswerBody>, Infallible> {
        let pending = stranger.upgrade();
        if let Some(pending) = &pending {
            pending.reached(Stage::Answering);
        }
        if !names_one_host(request.version(), request.headers()) {
            let sentence = "The request must have one header Host, with a host in it";
            return Ok(self.hang_up_on(&request, peer, Mistake::Host, sentence));
        }
        // What is to be a WebSocket is told there that it has to speak TLS, in words that its client shows.
        if self.door.is_for(&request) {
            let (response, task) = self.door.upgrade(request, peer, pending.clone(), stream::take_apart);
            if let (Some(pending), Some(task)) = (pending, task) {
                pending.belongs_to(task);
            }
            return Ok(response.map(http::AnswerBody::Right));
        }
        if peer.misses_tls {
            let sentence = "This port speaks TLS: use https:// or wss://";
            return Ok(self.hang_up_on(&request, peer, Mistake::PlainOnTlsPort, sentence));
        }
        // Whoever signs the request gives its place back while it is answered.
        drop(pending);
        let mut response = self.http.answer(request, caller).await;
        if let Some(pending) = stranger.upgrade() {
            pending.reached(Stage::Begun);
        }
        if response.status() == StatusCode::UNAUTHORIZED && !caller.is_authenticated() {
            // Whoever guesses opens a connection for each guess, and those are counted.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|body| match body {
            http::AnswerBody::Right(body) if body.size_hint().exact().is_none() => {
                http::AnswerBody::Right(Body::new(Unfinished { body, _begun: begun }))
            }
            http::AnswerBody::Left(_) | http::AnswerBody::Right(_) => body,
        }))
    }

    /// The answer to what is no request for this port, and the end of its connection.
    fn hang_up_on(
        &self,
        request: &Request<Incoming>,
        peer: Peer,
        mistake: Mistake,
        sentence: &'static str,
    ) -> Response<http::AnswerBody> {
        let client = self.addresses.client(peer.address.ip(), request.headers());
        let example = Example::from(client).path(request.uri().path());
        self.hub.reject(mistake, None, example);
        let mut response = Response::new(http::AnswerBody::Right(Body::from(sentence)));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// Waits for the first bytes, which are left where they are; how many there are. Whoever has sent none by now is noted as
/// silent until it has: looked at, because a new socket is called readable at first, and because what came with the
/// connection may have waited for its turn.
async fn first_bytes(stream: &TcpStream, first: &mut [u8], arrival: &Arrival) -> io::Result<usize> {
    let mut is_silent = false;
    let seen = std::future::poll_fn(|cx| {
        let seen = stream.poll_peek(cx, &mut ReadBuf::new(first));
        if seen.is_pending() != is_silent {
            is_silent = seen.is_pending();
            arrival.reached(if is_silent { Stage::Silent } else { Stage::Begun });
        }
        seen
    });
    match seen.await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        seen => Ok(seen),
    }
}

/// The body of an answer that is made while it is sent: its request is not answered before.
struct Unfinished {
    body: Body,
    _begun: Begun,
}

impl HttpBody for Unfinished {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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
