//! Builds the rooms, binds, spawns, drains.
//!
//! The accept loop is our own: axum serves the HTTP API, but a connection that becomes a WebSocket is taken out
//! of hyper down to its TCP stream (and the TLS session on it), and the listener carries the socket options that
//! delivery relies on. A handshake of TLS belongs to the task of its connection; nobody else waits for it.

mod arrivals;
mod proxy_protocol;
mod repoll;
mod stream;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
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

use crate::addresses::{self, Addresses, Kind};
use crate::apps::Apps;
use crate::http::{self, Api, Caller};
use crate::hub::Hub;
use crate::limits::Limit;
use crate::metrics::Metrics;
use crate::protocol::CloseCode;
use crate::pusher::{self, Door, Peer};
use crate::webhooks::{self, Webhooks};
use arrivals::{Arrival, Arrivals};
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
    /// Where clients come from, and how many from each address.
    pub addresses: addresses::Options,
    /// Whether every connection begins with a header of the PROXY protocol, and comes from a trusted proxy.
    pub proxy_protocol: bool,
    /// Connections at once that are neither a WebSocket nor one whose requests are signed. Default 2000: with the
    /// largest head each, 40 MB.
    pub unauthenticated_max: u32,
    /// A new connection that has neither become a WebSocket nor sent a signed request by then is ended. Default 10 s.
    pub handshake_timeout: Duration,
    /// An HTTP connection without a request for so long is dropped, before it has been so for twice as long.
    /// Default 75 s.
    pub keep_alive: Duration,
    /// What the node counts in. Keep a clone to read it.
    pub metrics: Arc<Metrics>,
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
            addresses: addresses::Options::default(),
            proxy_protocol: false,
            unauthenticated_max: 2000,
            metrics: Arc::default(),
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
    let webhooks = Webhooks::start(&apps, options.webhooks.clone(), &options.metrics)?;
    let hub = Hub::new(options.debug, Arc::clone(&options.metrics), webhooks.clone());
    let tasks = TaskTracker::new();
    let addresses = Arc::new(Addresses::new(options.addresses.clone()));
    let (pusher, for_door) = (options.pusher.clone(), Arc::clone(&addresses));
    let server = Arc::new(Server {
        door: Door::new(hub.clone(), Arc::clone(&apps), for_door, pusher, tasks.clone()),
        hub: hub.clone(),
        addresses,
        arrivals: Arc::new(Arrivals::new(options.unauthenticated_max)),
        proxy_protocol: options.proxy_protocol,
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
    hub: Hub,
    door: Door,
    addresses: Arc<Addresses>,
    /// Connections of strangers.
    arrivals: Arc<Arrivals>,
    proxy_protocol: bool,
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
                Ok((stream, peer)) => self.receive(stream, peer, tls.cloned()).await,
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

    /// Takes a stranger in, when there is a place, and not at all if its address has too many.
    async fn receive(self: &Arc<Self>, stream: TcpStream, address: SocketAddr, tls: Option<Tls>) {
        let refused = match self.proxy_protocol {
            // Who it is will be told.
            true if self.addresses.trusts(address.ip()) => Ok(None),
            true => Err(Limit::ProxyProtocol),
            false => self.addresses.enter(address.ip(), Kind::Stranger, true, self.hub.now()),
        };
        let place = match refused {
            Ok(place) => place,
            Err(limit) => return self.hub.refused(limit, None),
        };
        let (arrival, evicted) = self.arrivals.enter().await;
        (0..evicted).for_each(|_| self.hub.refused(Limit::Unauthenticated, None));
        arrival.keep_address(place);
        let (server, number) = (Arc::clone(self), arrival.number());
        let task = self.tasks.spawn(async move { server.serve(stream, address, tls, arrival).await });
        self.arrivals.belongs_to(number, task.abort_handle());
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
        let opened = match tls {
            // Who says nothing costs no buffer. Looked at, because a new socket is called readable at first.
            None => match stream.peek(&mut [0]).await {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                seen => seen.map(|_| Either::Left(stream)),
            },
            Some(tls) => Box::pin(tls.accept(stream)).await,
        };
        match opened {
            Ok(stream) => Some((stream, address)),
            Err(error) => {
                debug!(%address, %error, "no connection");
                None
            }
        }
    }

    /// Serves one connection, until it ends or is upgraded.
    async fn serve(&self, stream: TcpStream, address: SocketAddr, tls: Option<Tls>, arrival: Arrival) {
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
        let connection = http1::Builder::new()
            .max_buf_size(HEAD_BYTES)
            // An answer is small: its body is copied behind its head, which costs less than a vector of two.
            .writev(false)
            .serve_connection(TokioIo::new(PatientStream::new(stream, self.write_timeout)), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let mut stopping = pin!(self.stopping.cancelled());
        let (mut repoll, mut is_stopping, mut is_late, mut seen) = (Repoll::default(), false, false, 0);
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
            // it is over, and there was a request meanwhile, it starts again.
            while patience.as_mut().poll(cx).is_ready() {
                if requests.begun() == 0 {
                    self.hub.refused(Limit::Handshake, None);
                    return Poll::Ready(());
                }
                if requests.are_idle_since(seen) {
                    return Poll::Ready(());
                }
                seen = requests.begun();
                let more = if arrival.is_some() { self.handshake_timeout } else { self.keep_alive };
                patience.as_mut().reset(Instant::now() + more);
                if arrival.is_some() && !is_late {
                    // It was answered, as a health check is, and that was that.
                    is_late = true;
                    connection.as_mut().graceful_shutdown();
                    if repoll.poll(cx, connection.as_mut()).is_ready() {
                        return Poll::Ready(());
                    }
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
    ) -> Result<Response<http::AnswerBody>, std::convert::Infallible> {
        if misses_tls {
            return Ok(hung_up_on("This port speaks TLS: use https:// or wss://"));
        }
        if !names_one_host(request.version(), request.headers()) {
            return Ok(hung_up_on("The request must have one header Host, with a host in it"));
        }
        if pusher::is_upgrade(request.headers()) {
            let response = self.door.upgrade(request, peer, stranger.upgrade(), stream::take_apart);
            return Ok(response.map(http::AnswerBody::Right));
        }
        let mut response = self.http.answer(request, caller).await;
        if response.status() == StatusCode::UNAUTHORIZED && !caller.is_known() {
            // Whoever guesses opens a connection for each guess, and those are counted.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
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

/// Whether a request says which host it is for, as it must. Source: RFC 9112 §3.2.
fn names_one_host(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else { return version < Version::HTTP_11 };
    // By comparison and not by search, because every request is looked at.
    let ends_a_host = |byte: &u8| {
        matches!(byte, 0..=b' ' | b'"' | b'#' | b',' | b'/' | b'<' | b'>' | b'?' | b'@' | b'\\' | 0x7f..)
    };
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
