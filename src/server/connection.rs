//! One accepted connection: it may begin with a PROXY header and a TLS handshake, then its requests are served until one
//! of them is upgraded.
//!
//! Every wait has a deadline. A connection has [`Options::handshake_timeout`] to become a WebSocket or to sign a request.
//! A connection with signed requests is closed when it has been idle for [`Options::keep_alive`].
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

use super::detection::{self, Protocol, ProtocolReply};
use super::keep_alive::{RequestCounts, RequestGuard};
use super::pending::{PendingConnection, Stage};
use super::repoll::Repoll;
use super::stream::{self, HEAD_BYTES, HEADERS, HttpStream, LINGER, Progress, Stream};
use super::{Server, Tls, proxy_protocol, tls};
use crate::addresses::ConnectionKind;
use crate::http::{self, Caller};
use crate::limits::Limit;
use crate::pusher::Peer;
use crate::rejections::{Example, Mistake};

/// The wait for the rest of a partial head when the server stops.
const PARTIAL_HEAD_TIMEOUT: Duration = Duration::from_millis(500);

impl Server {
    /// Serves one connection, until it closes or is upgraded.
    pub(super) async fn serve(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        tls: Option<Tls>,
        pending: PendingConnection,
    ) {
        let until = Instant::now() + self.handshake_timeout;
        let (stream, peer) = tokio::select! {
            detected = self.detect(stream, address, tls, &pending) => match detected {
                Ok(detected) => detected,
                Err(None) => return,
                Err(Some(reply)) => return Box::pin(reply.send()).await,
            },
            () = sleep_until(until) => return self.reject_handshake_timeout(address),
            () = self.stopping.cancelled() => return,
        };
        // Boxed, so that a silent connection does not reserve memory for it.
        Box::pin(self.serve_requests(stream, peer, pending, until)).await;
    }

    /// Counts a connection that reached the handshake timeout.
    fn reject_handshake_timeout(&self, address: SocketAddr) {
        let example = Example::from(address.ip()).value(self.handshake_timeout.as_secs());
        self.hub.reject(Limit::Handshake, None, example);
    }

    /// Waits for the first bytes of the client, after the PROXY header and the TLS handshake.
    ///
    /// # Errors
    /// The connection closed, or it speaks an unsupported protocol: then with the reply in that protocol.
    async fn detect(
        &self,
        mut stream: TcpStream,
        mut address: SocketAddr,
        with_tls: Option<Tls>,
        pending: &PendingConnection,
    ) -> Result<(Stream, Peer), Option<ProtocolReply>> {
        let mut over_tls = false;
        // A silent connection has no buffer, and is the first to be evicted.
        let mut first = [0; detection::PEEK_BYTES];
        peek_first_bytes(&stream, &mut first, pending).await.map_err(|_| None)?;
        // Boxed, so that a connection without these does not reserve memory for them.
        if self.proxy_protocol {
            match Box::pin(proxy_protocol::read(&mut stream)).await {
                Ok(proxied) => {
                    address = proxied.client.unwrap_or(address);
                    over_tls = proxied.over_tls;
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::InvalidData {
                        // A proxy's health check connects and sends nothing.
                        return Err(None);
                    }
                    let example = Example::from(address.ip()).reason("it begins with something else");
                    self.hub.reject(Limit::ProxyProtocol, None, example);
                    return Err(Some(ProtocolReply::without_proxy_header(Either::Left(stream))));
                }
            }
            match self.addresses.try_acquire(
                address.ip(),
                ConnectionKind::Unauthenticated,
                true,
                self.hub.now(),
            ) {
                Ok(permit) => pending.hold_address_permit(permit),
                Err(limit) => {
                    self.reject_address(limit, address);
                    return Err(None);
                }
            }
        }
        // The bytes after the PROXY header.
        let seen = peek_first_bytes(&stream, &mut first, pending).await.map_err(|_| None)?;
        let is_tls_port = with_tls.is_some();
        let (stream, spoken) = match (Protocol::of(&first[..seen]), with_tls) {
            (Some(Protocol::Tls), Some(tls)) => match Box::pin(tls.accept(stream)).await {
                Ok(mut stream) => {
                    let inside = Box::pin(stream.fill_buf()).await.map_err(|_| None)?;
                    let spoken = Protocol::of(inside).filter(|inside| *inside != Protocol::Tls);
                    (Either::Right(stream), spoken)
                }
                Err(error) => {
                    let example = Example::from(address.ip()).reason(tls::handshake_error(&error));
                    self.hub.reject(Mistake::TlsHandshake, None, example);
                    return Err(None);
                }
            },
            (spoken, _) => (Either::Left(stream), spoken),
        };
        if let Some(protocol) = spoken {
            self.hub.reject(protocol.mistake(), None, Example::from(address.ip()));
            return Err(Some(protocol.reject(stream)));
        }
        let speaks_tls = matches!(stream, Either::Right(_));
        let peer = Peer {
            address,
            over_tls: over_tls || speaks_tls,
            is_plain_on_tls_port: is_tls_port && !speaks_tls,
        };
        Ok((stream, peer))
    }

    /// Counts a connection over a limit of its address.
    pub(super) fn reject_address(&self, limit: Limit, address: SocketAddr) {
        let value = self.addresses.limit_value(limit);
        self.hub.reject(limit, None, Example::from(address.ip()).value(value));
    }

    /// Serves the requests of one connection. It is pending until one of them is signed, and at most until `until`.
    async fn serve_requests(&self, stream: Stream, peer: Peer, pending: PendingConnection, until: Instant) {
        let mut deadline = pin!(sleep_until(until));
        let caller = Caller::new(peer.address.ip(), &self.addresses);
        let pending = Arc::new(pending);
        let pending_ref = Arc::downgrade(&pending);
        let mut pending = Some(pending);
        let requests = Arc::new(RequestCounts::default());
        let service = service_fn(|request: Request<Incoming>| {
            self.respond(request, peer, &caller, &pending_ref, requests.begin(&self.hub))
        });
        let written = Progress::default();
        let stream = HttpStream::new(stream, self.write_timeout, written.clone());
        let connection = http1::Builder::new()
            .max_buf_size(HEAD_BYTES)
            // A response is small: copying its body behind its head costs less than a vectored write.
            .writev(false)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let mut stopping = pin!(self.stopping.cancelled());
        let (mut repoll, mut is_stopping, mut is_late) = (Repoll::default(), false, false);
        let (mut seen, mut _kept) = ((0, 0), None);
        // Polled by hand, because this runs for every request: finished parts are not polled again.
        std::future::poll_fn(|cx| {
            if !is_stopping && stopping.as_mut().poll(cx).is_ready() {
                is_stopping = true;
                connection.as_mut().graceful_shutdown();
                deadline.as_mut().reset(Instant::now() + PARTIAL_HEAD_TIMEOUT);
            }
            if let Poll::Ready(ended) = repoll.poll(cx, connection.as_mut()) {
                if let Err(error) = ended {
                    self.reject_unparsable(&error, peer);
                }
                return Poll::Ready(());
            }
            if pending.is_some() && caller.is_authenticated() {
                // It is authenticated now: its permit is released.
                pending = None;
                _kept = Some(self.keep_alive_connections.insert(&requests, cx.waker().clone()));
            }
            if requests.should_close() {
                return Poll::Ready(());
            }
            // One timer for all requests, because starting one for each costs a twentieth of a publish. When it is over
            // and the connection has made progress meanwhile, it is restarted.
            while deadline.as_mut().poll(cx).is_ready() {
                if is_stopping {
                    if requests.is_idle() {
                        return Poll::Ready(());
                    }
                    // Requests in flight have the deadline of the shutdown.
                    deadline.as_mut().reset(Instant::now() + self.keep_alive);
                    continue;
                }
                if requests.begun() == 0 {
                    self.reject_handshake_timeout(peer.address);
                    return Poll::Ready(());
                }
                let progress = (requests.begun(), written.bytes());
                let is_idle = requests.is_idle() && progress == seen;
                if is_idle || (is_late && pending.is_some()) {
                    return Poll::Ready(());
                }
                seen = progress;
                if pending.is_none() {
                    deadline.as_mut().reset(Instant::now() + self.keep_alive);
                    continue;
                }
                // An unsigned request was responded to, for instance a health check. The connection is shut down.
                is_late = true;
                deadline.as_mut().reset(Instant::now() + LINGER);
                connection.as_mut().graceful_shutdown();
                if repoll.poll(cx, connection.as_mut()).is_ready() {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        })
        .await;
    }

    /// Counts a connection that hyper closed because it could not parse a request. hyper has responded to the client.
    fn reject_unparsable(&self, error: &hyper::Error, peer: Peer) {
        if !error.is_parse() {
            // The connection closes, whatever the error.
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

    /// Responds to one request.
    async fn respond(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        caller: &Caller,
        pending_ref: &Weak<PendingConnection>,
        guard: RequestGuard,
    ) -> Result<Response<http::AnswerBody>, Infallible> {
        let pending = pending_ref.upgrade();
        if let Some(pending) = &pending {
            pending.set_stage(Stage::Responding);
        }
        if !has_single_host(request.version(), request.headers()) {
            let sentence = "The request must have one header Host, with a host in it";
            return Ok(self.reject_request(&request, peer, Mistake::Host, sentence));
        }
        // A WebSocket on the wrong port is rejected by the endpoint, with a message that its client shows.
        if self.endpoint.handles(&request) {
            let (response, task) =
                self.endpoint.upgrade(request, peer, pending.clone(), stream::into_transport);
            if let (Some(pending), Some(task)) = (pending, task) {
                pending.set_task(task);
            }
            return Ok(response.map(http::AnswerBody::Right));
        }
        if peer.is_plain_on_tls_port {
            let sentence = "This port speaks TLS: use https:// or wss://";
            return Ok(self.reject_request(&request, peer, Mistake::PlainOnTlsPort, sentence));
        }
        // A signed request releases the permit while it is served.
        drop(pending);
        let mut response = self.http.answer(request, caller).await;
        if let Some(pending) = pending_ref.upgrade() {
            pending.set_stage(Stage::Reading);
        }
        if response.status() == StatusCode::UNAUTHORIZED && !caller.is_authenticated() {
            // A client that guesses signatures opens a connection for each guess, and connections are counted.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|body| match body {
            http::AnswerBody::Right(body) if body.size_hint().exact().is_none() => {
                http::AnswerBody::Right(Body::new(StreamedBody { body, _guard: guard }))
            }
            http::AnswerBody::Left(_) | http::AnswerBody::Right(_) => body,
        }))
    }

    /// Rejects a request that does not belong to this port, and closes its connection.
    fn reject_request(
        &self,
        request: &Request<Incoming>,
        peer: Peer,
        mistake: Mistake,
        sentence: &'static str,
    ) -> Response<http::AnswerBody> {
        let client = self.addresses.client_address(peer.address.ip(), request.headers());
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

/// Waits for the first bytes and leaves them in the socket; returns their number. A connection without any is marked as
/// silent until they come. The socket is peeked at, because a new socket is reported readable at first, and because bytes
/// that came with the connection may be waiting.
async fn peek_first_bytes(
    stream: &TcpStream,
    first: &mut [u8],
    pending: &PendingConnection,
) -> io::Result<usize> {
    let mut is_silent = false;
    let seen = std::future::poll_fn(|cx| {
        let seen = stream.poll_peek(cx, &mut ReadBuf::new(first));
        if seen.is_pending() != is_silent {
            is_silent = seen.is_pending();
            pending.set_stage(if is_silent { Stage::Silent } else { Stage::Reading });
        }
        seen
    });
    match seen.await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        seen => Ok(seen),
    }
}

/// A body that is generated while it is sent: its request is in flight until then.
struct StreamedBody {
    body: Body,
    _guard: RequestGuard,
}

impl HttpBody for StreamedBody {
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

/// Whether a request names one host. Source: RFC 9112 §3.2.
fn has_single_host(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else { return version < Version::HTTP_11 };
    // By comparison, not by search, because this runs for every request.
    let ends_a_host = |byte: &u8| matches!(byte, 0..=b' ' | b'"' | b'#' | b',' | b'/' | b'<' | b'>' | b'?' | b'@' | b'\\' | 0x7f..);
    hosts.next().is_none() && !host.as_bytes().iter().any(ends_a_host)
}
