//! Builds the rooms, binds, spawns, drains.
//!
//! The accept loop is our own: axum serves the HTTP API, but a connection that becomes a WebSocket is taken out
//! of hyper down to its TCP stream (and the TLS session on it), and the listener carries the socket options that
//! delivery relies on. A handshake of TLS belongs to the task of its connection; nobody else waits for it.

mod repoll;
mod stream;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::apps::Apps;
use crate::http::{self, Api};
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::protocol::CloseCode;
use crate::pusher::{self, Door, Peer};
use crate::webhooks::{self, Webhooks};
use repoll::Repoll;
use stream::{PatientStream, Stream};
pub use tls::{Tls, TlsError};

/// The kernel takes no more than this for a connection that it cannot send yet, so that what a slow reader costs
/// is decided by its outbox. Without it, 3.8 MB.
const UNSENT_BYTES: u32 = 128 * 1024;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// The longest head of a request.
const HEAD_BYTES: usize = 16 * 1024;

/// After an accept that failed for want of descriptors, the next try waits for some to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a shutdown that must be quick waits for clients to answer its close, and for webhooks to be sent.
const AT_ONCE: Duration = Duration::from_millis(500);

const GOING_AWAY: &str = "Server is shutting down";

/// How this node serves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The WebSocket door.
    pub pusher: pusher::Options,
    /// The HTTP API.
    pub http: http::Options,
    /// Webhooks.
    pub webhooks: webhooks::Options,
    /// A new connection that has not sent a whole request head by then is dropped. Default 10 s.
    pub handshake_timeout: Duration,
    /// An HTTP connection without a request for so long is dropped, before it has been so for twice as long.
    /// Default 75 s.
    pub keep_alive: Duration,
    /// On shutdown, the closing of WebSockets is spread over so much time. Default 10 s.
    pub drain: Duration,
    /// What has not ended so long after the shutdown began is cut off. Default 20 s; never less than `drain`.
    pub shutdown_deadline: Duration,
    /// Whether every connection, subscription and message is logged, payloads included.
    pub debug: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pusher: pusher::Options::default(),
            http: http::Options::default(),
            webhooks: webhooks::Options::default(),
            handshake_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            drain: Duration::from_secs(10),
            shutdown_deadline: Duration::from_secs(20),
            debug: false,
        }
    }
}

/// How a running server is told to stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shutdown {
    /// Drain: close the sockets over the window.
    Graceful,
    /// Close everything at once.
    Now,
}

/// Where a server listens.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Without TLS.
    pub plain: Option<TcpListener>,
    /// With TLS, by this certificate.
    pub tls: Option<(TcpListener, Tls)>,
}

impl From<TcpListener> for Listeners {
    fn from(plain: TcpListener) -> Self {
        Self { plain: Some(plain), tls: None }
    }
}

impl Listeners {
    /// The addresses.
    ///
    /// # Errors
    /// What the system says.
    pub fn addresses(&self) -> io::Result<Listening> {
        Ok(Listening {
            plain: self.plain.as_ref().map(TcpListener::local_addr).transpose()?,
            tls: self.tls.as_ref().map(|(listener, _)| listener.local_addr()).transpose()?,
        })
    }
}

/// The addresses that a server listens on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Listening {
    /// Without TLS.
    pub plain: Option<SocketAddr>,
    /// With TLS.
    pub tls: Option<SocketAddr>,
}

/// Listens on `address` (port 0: any free one). Accepted connections inherit the options that delivery relies on.
///
/// # Errors
/// What the system says, such as an address in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        // `::` serves both families.
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves `apps` on `listeners` until `shutdown` says stop, then drains: not ready, no new connections, requests
/// in flight finished, WebSockets closed with 4200 over the window, webhooks sent. A [`Shutdown::Now`] ends a drain at
/// once.
///
/// # Errors
/// A background task that ended early, or a system that gives no thread.
pub async fn run(
    listeners: impl Into<Listeners>,
    apps: Apps,
    options: Options,
    mut shutdown: mpsc::Receiver<Shutdown>,
) -> io::Result<()> {
    let listeners = listeners.into();
    let apps = Arc::new(apps);
    let metrics = Arc::new(Metrics::default());
    let webhooks = Webhooks::start(&apps, options.webhooks.clone(), &metrics)?;
    let hub = Hub::new(options.debug, metrics, webhooks.clone());
    let tasks = TaskTracker::new();
    let server = Arc::new(Server {
        door: Door::new(hub.clone(), Arc::clone(&apps), options.pusher.clone(), tasks.clone()),
        http: http::Service::new(Api::new(hub.clone(), apps, options.http.clone())),
        handshake_timeout: options.handshake_timeout,
        keep_alive: options.keep_alive,
        write_timeout: options.http.read_timeout,
        stopping: CancellationToken::new(),
        tasks,
    });
    let mut keeping_time = tokio::spawn({
        let hub = hub.clone();
        async move { hub.keep_time().await }
    });
    let mut watching = tokio::spawn({
        let door = server.door.clone();
        async move { door.watch().await }
    });
    let ended_early = |what: &str| Err(io::Error::other(format!("the task that {what} ended early")));
    let how = tokio::select! {
        how = shutdown.recv() => how.unwrap_or(Shutdown::Now),
        () = server.accept_all(&listeners) => return ended_early("accepts connections"),
        _ = &mut keeping_time => return ended_early("keeps time"),
        _ = &mut watching => return ended_early("watches connections"),
        () = webhooks.ended() => return ended_early("sends webhooks"),
        () = renew(&listeners) => return ended_early("renews the certificate"),
    };
    drop(listeners);
    let deadline = server.drain(&hub, &options, how, &mut shutdown).await;
    keeping_time.abort();
    watching.abort();
    webhooks
        .drain(async {
            tokio::select! {
                Some(_) = shutdown.recv() => {}
                () = sleep_until(deadline.max(Instant::now() + AT_ONCE)) => {}
            }
        })
        .await;
    info!("stopped");
    Ok(())
}

/// Keeps the certificate as its files are, where there is one.
async fn renew(listeners: &Listeners) {
    match &listeners.tls {
        Some((_, tls)) => tls.watch().await,
        None => std::future::pending().await,
    }
}

struct Server {
    door: Door,
    http: http::Service,
    handshake_timeout: Duration,
    keep_alive: Duration,
    write_timeout: Duration,
    /// Cancelled when the server stops: idle HTTP connections end, busy ones after their request.
    stopping: CancellationToken,
    /// Connections, HTTP and WebSocket.
    tasks: TaskTracker,
}

impl Server {
    /// Accepts connections for ever.
    async fn accept_all(self: &Arc<Self>, listeners: &Listeners) {
        let plain = async {
            match &listeners.plain {
                Some(listener) => self.accept(listener, None).await,
                None => std::future::pending().await,
            }
        };
        let tls = async {
            match &listeners.tls {
                Some((listener, tls)) => self.accept(listener, Some(tls)).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(plain, tls);
    }

    async fn accept(self: &Arc<Self>, listener: &TcpListener, tls: Option<&Tls>) {
        let mut warned: Option<Instant> = None;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let (server, tls) = (Arc::clone(self), tls.cloned());
                    self.tasks.spawn(async move { server.serve(stream, peer, tls).await });
                }
                // The client is gone already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if warned.is_none_or(|at| at.elapsed() > Duration::from_secs(60)) {
                        warned = Some(Instant::now());
                        warn!(%error, "cannot accept connections; is the limit of open files (ulimit -n) too low?");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves the requests of one connection, until it ends or is upgraded.
    async fn serve(&self, stream: TcpStream, address: SocketAddr, tls: Option<Tls>) {
        let mut patience = pin!(sleep(self.handshake_timeout));
        let wants_tls = tls.is_some();
        let stream: Stream = match tls {
            None => Either::Left(stream),
            Some(tls) => tokio::select! {
                // In a box, so that a connection without TLS does not have room for it.
                accepted = Box::pin(tls.accept(stream)) => match accepted {
                    Ok(stream) => stream,
                    Err(error) => {
                        debug!(%address, %error, "no TLS connection");
                        return;
                    }
                },
                () = &mut patience => return,
                () = self.stopping.cancelled() => return,
            },
        };
        let peer = Peer { address, over_tls: matches!(stream, Either::Right(_)) };
        let misses_tls = wants_tls && !peer.over_tls;
        let requests = Requests::default();
        let service =
            service_fn(|request: Request<Incoming>| self.answer(request, peer, misses_tls, requests.begin()));
        let connection = http1::Builder::new()
            .max_buf_size(HEAD_BYTES)
            // An answer is small: its body is copied behind its head, which costs less than a vector of two.
            .writev(false)
            .serve_connection(TokioIo::new(PatientStream::new(stream, self.write_timeout)), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let mut stopping = pin!(self.stopping.cancelled());
        let (mut repoll, mut is_stopping, mut seen) = (Repoll::default(), false, 0);
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
            // One timer for all requests, because starting one for each is a twentieth of what a publish costs: when
            // it is over, and there was a request meanwhile, it starts again.
            while patience.as_mut().poll(cx).is_ready() {
                if requests.are_idle_since(seen) {
                    return Poll::Ready(());
                }
                seen = requests.begun();
                patience.as_mut().reset(Instant::now() + self.keep_alive);
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
        _begun: Begun<'_>,
    ) -> Result<Response<http::AnswerBody>, std::convert::Infallible> {
        if misses_tls {
            return Ok(tls_required().map(http::AnswerBody::Right));
        }
        if pusher::is_upgrade(request.headers()) {
            return Ok(self.door.upgrade(request, peer, stream::take_apart).map(http::AnswerBody::Right));
        }
        Ok(self.http.answer(request).await)
    }

    /// See [`run`]. Ends when all connections have; the deadline of the shutdown is for what follows.
    async fn drain(
        &self,
        hub: &Hub,
        options: &Options,
        how: Shutdown,
        more: &mut mpsc::Receiver<Shutdown>,
    ) -> Instant {
        let begun = Instant::now();
        let connections = hub.connections().len();
        info!(connections, window = ?options.drain, "shutting down");
        hub.drain();
        self.stopping.cancel();
        self.tasks.close();
        let mut at_once = how == Shutdown::Now;
        if !at_once {
            tokio::select! {
                () = close_all(hub, options.drain) => {}
                Some(_) = more.recv() => at_once = true,
            }
        }
        // Whoever came while the others were closed, and everybody where it has to be quick.
        for outbox in hub.connections().all() {
            outbox.close(CloseCode::Reconnect, GOING_AWAY);
        }
        let deadline = if at_once { Instant::now() + AT_ONCE } else { begun + options.shutdown_deadline };
        tokio::select! {
            () = self.tasks.wait() => {}
            Some(_) = more.recv() => return Instant::now(),
            () = sleep_until(deadline) => {
                warn!(connections = self.tasks.len(), "some connections did not end in time");
            }
        }
        deadline
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

    /// Whether none is being answered and none has begun but the first `seen`.
    fn are_idle_since(&self, seen: u64) -> bool {
        self.begun() == seen && self.answered.load(Ordering::Relaxed) == seen
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

/// What plain HTTP is told by a listener that speaks TLS.
fn tls_required() -> Response<Body> {
    let mut response = Response::new(Body::from("This port speaks TLS: use https:// or wss://"));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}

/// Closes all connections over `window`, evenly, so that their clients do not all come back at once.
async fn close_all(hub: &Hub, window: Duration) {
    // Not kept alive here: a connection ends when its task does, not when all have been closed.
    let all: Vec<_> = hub.connections().all().iter().map(Arc::downgrade).collect();
    let (begin, count) = (Instant::now(), all.len().max(1) as u32);
    for (at, outbox) in (0u32..).zip(&all) {
        let due = begin + window.mul_f64(f64::from(at) / f64::from(count));
        // A due time in the past costs no timer.
        if due > Instant::now() {
            sleep_until(due).await;
        }
        if let Some(outbox) = outbox.upgrade() {
            outbox.close(CloseCode::Reconnect, GOING_AWAY);
        }
    }
}
