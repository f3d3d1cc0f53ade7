//! Builds the rooms, binds, spawns, drains.
//!
//! The accept loop is our own: axum serves the HTTP API, but a connection that becomes a WebSocket is taken out
//! of hyper down to its TCP stream (and the TLS session on it), and the listener carries the socket options that
//! delivery relies on. A handshake of TLS belongs to the task of its connection; nobody else waits for it.

mod arrivals;
mod certificate;
mod connection;
mod descriptors;
mod drain;
mod kept_alive;
mod opening;
mod proxy_protocol;
mod repoll;
mod stream;
mod tls;
mod trim;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::addresses::{self, Addresses, Kind};
use crate::apps::Apps;
use crate::cluster::driver::{self, Driver};
use crate::cluster::node::Cluster;
use crate::cluster::redis::Redis;
use crate::cluster::{self, Broker};
use crate::http::{self, Api};
use crate::hub::Hub;
use crate::limits::Limit;
use crate::metrics::Metrics;
use crate::pusher::{self, Door};
use crate::rejections::Example;
use crate::webhooks::{self, Webhooks};
use arrivals::Arrivals;
use descriptors::Shares;
use drain::{Clock, Pending};
use kept_alive::KeptAlive;
pub use tls::{Tls, TlsError};

/// The kernel takes no more than this for a connection that it cannot send yet, so that what a slow reader costs
/// is decided by its outbox. Without it, 3.8 MB.
const UNSENT_BYTES: u32 = 128 * 1024;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// After an accept that failed for want of descriptors, the next try waits for some to come back: for those of evicted
/// connections a moment, else for longer.
const EVICTED_PAUSE: Duration = Duration::from_millis(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Strangers that go each time for the sake of those who wait.
const EVICTED_AT_ONCE: usize = 64;

/// And if there are none, idle connections of applications.
const CLOSED_AT_ONCE: usize = 8;

/// How this node serves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The WebSocket door.
    pub pusher: pusher::Options,
    /// The HTTP API.
    pub http: http::Options,
    /// Webhooks.
    pub webhooks: webhooks::Options,
    /// The other nodes.
    pub cluster: cluster::Options,
    /// Where clients come from, and how many from each address.
    pub addresses: addresses::Options,
    /// Whether every connection begins with a header of the PROXY protocol, and comes from a trusted proxy.
    pub proxy_protocol: bool,
    /// Connections at once that are neither a WebSocket nor one whose requests are signed; fewer, where few files may be
    /// open. Default 4000.
    pub unauthenticated_max: u32,
    /// Bytes of the events that cache channels keep, of all apps. Default 256 MiB.
    pub cached_bytes_max: usize,
    /// A new connection that has neither become a WebSocket nor sent a signed request by then is ended. Default 10 s.
    pub handshake_timeout: Duration,
    /// An HTTP connection without a request for so long is dropped, before it has been so for twice as long.
    /// Default 75 s.
    pub keep_alive: Duration,
    /// What the node counts in. Keep a clone to read it.
    pub metrics: Arc<Metrics>,
    /// On shutdown, the closing of WebSockets is spread over so much time. Default: none. A node of a cluster should
    /// have some.
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
            cluster: cluster::Options::default(),
            addresses: addresses::Options::default(),
            proxy_protocol: false,
            unauthenticated_max: 4000,
            cached_bytes_max: 256 * 1024 * 1024,
            metrics: Arc::default(),
            handshake_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            drain: Duration::ZERO,
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

/// Listens on the first of `addresses` that this machine has: a name often has one of each family, and a machine may
/// have the other family only.
///
/// # Errors
/// The address that it has and cannot listen on, or else the first one, and what the system says.
pub fn bind_first(addresses: &[SocketAddr]) -> Result<TcpListener, (Option<SocketAddr>, io::Error)> {
    let mut failed = None;
    for address in addresses {
        match bind(*address) {
            Ok(listener) => return Ok(listener),
            Err(error) if is_absent(&error) => {
                failed.get_or_insert((Some(*address), error));
            }
            Err(error) => return Err((Some(*address), error)),
        }
    }
    Err(failed.unwrap_or_else(|| (None, io::ErrorKind::AddrNotAvailable.into())))
}

/// Whether this machine does not have the address, or nothing of its family.
fn is_absent(error: &io::Error) -> bool {
    let no_family = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(no_family)
}

/// The addresses of `host`, those of IPv4 first, since older clients know them only. `localhost` is this machine
/// whatever a resolver says. Source: RFC 6761 §6.3.
///
/// # Errors
/// What the resolver says.
pub async fn addresses_of(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]);
    }
    let mut addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    Ok(addresses)
}

/// Lets this process open as many files as the system would let it: every connection is one, and what a process may
/// have at first is less, 1024 often, for the sake of programs that pusherd is not one of.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where it may not, it stays as it is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Serves `apps` on `listeners` until `shutdown` says stop, then drains, as `drain` says. A second order ends a drain
/// at once, and so does a [`Shutdown::Now`].
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
    let (debug, metrics) = (options.debug, Arc::clone(&options.metrics));
    let member = Member::start(&options.cluster, &options.metrics)?;
    let hub = match &member {
        None => Hub::new(debug, metrics, webhooks.clone()),
        Some(Member { cluster, .. }) => {
            let is_local = options.cluster.local_when_broker_lost;
            Hub::in_cluster(debug, metrics, webhooks.clone(), Arc::clone(&apps), cluster.clone(), is_local)
        }
    };
    hub.limit_cached_bytes(options.cached_bytes_max);
    let cluster = member.as_ref().map(|member| member.cluster.clone());
    let mut in_cluster = tokio::spawn(async move {
        match member {
            Some(Member { cluster, arrivals }) => cluster.run(arrivals).await,
            None => std::future::pending().await,
        }
    });
    let [tasks, sockets] = [TaskTracker::new(), TaskTracker::new()];
    let addresses = Arc::new(Addresses::new(options.addresses.clone()));
    let shares = Shares::of_this_process(options.unauthenticated_max);
    let files_max = options.pusher.files_max.or(shares.websockets);
    let (pusher, for_door) =
        (pusher::Options { files_max, ..options.pusher.clone() }, Arc::clone(&addresses));
    let server = Arc::new(Server {
        door: Door::new(hub.clone(), Arc::clone(&apps), for_door, pusher, sockets.clone()),
        hub: hub.clone(),
        addresses,
        arrivals: Arc::new(Arrivals::new(shares.pending)),
        kept_alive: KeptAlive::default(),
        proxy_protocol: options.proxy_protocol,
        http: http::Service::new(Api::new(hub.clone(), apps, options.http.clone(), tasks.clone())),
        handshake_timeout: options.handshake_timeout,
        keep_alive: options.keep_alive,
        write_timeout: options.http.read_timeout,
        stopping: CancellationToken::new(),
        tasks,
        sockets,
    });
    let mut keeping_time = tokio::spawn({
        let hub = hub.clone();
        async move { hub.run_timers().await }
    });
    let mut reading = tokio::spawn({
        let hub = hub.clone();
        async move { hub.read_records().await }
    });
    let mut watching = tokio::spawn({
        let door = server.door.clone();
        async move { door.watch().await }
    });
    let mut trimming = tokio::spawn(trim::watch());
    let ended_early = |what: &str| Err(io::Error::other(format!("the task that {what} ended early")));
    let mut clock = {
        let mut accepting = pin!(server.accept_all(&listeners));
        let how = tokio::select! {
            how = shutdown.recv() => how.unwrap_or(Shutdown::Now),
            () = &mut accepting => return ended_early("accepts connections"),
            _ = &mut keeping_time => return ended_early("keeps time"),
            _ = &mut watching => return ended_early("watches connections"),
            _ = &mut trimming => return ended_early("gives memory back"),
            _ = &mut reading => return ended_early("reads the cluster's records"),
            _ = &mut in_cluster => return ended_early("is one of the cluster"),
            () = webhooks.ended() => return ended_early("sends webhooks"),
            () = renew(&listeners) => return ended_early("renews the certificate"),
        };
        let mut clock = Clock::start(how, options.shutdown_deadline, shutdown);
        // Applications publish to those who are still there, over a connection for each event.
        tokio::select! {
            () = server.close_clients(&webhooks, options.drain, &mut clock) => {}
            () = accepting => return ended_early("accepts connections"),
        }
        clock
    };
    drop(listeners);
    server.end_connections(&mut clock).await;
    keeping_time.abort();
    watching.abort();
    trimming.abort();
    webhooks.drain(clock.step_over(|| Pending { webhooks: webhooks.pending(), ..Pending::default() })).await;
    hub.close_records().await;
    reading.abort();
    if let Some(cluster) = cluster {
        cluster.leave(clock.step_end()).await;
    }
    in_cluster.abort();
    hub.flush_rejections();
    info!("stopped");
    Ok(())
}

/// What a node of a cluster starts with.
struct Member {
    cluster: Cluster,
    arrivals: driver::Arrivals,
}

impl Member {
    /// `None`: the node is alone.
    fn start(options: &cluster::Options, metrics: &Arc<Metrics>) -> io::Result<Option<Self>> {
        let (driver, arrivals): (Arc<dyn Driver>, _) = match &options.broker {
            None => return Ok(None),
            Some(Broker::Memory(memory)) => {
                let (driver, arrivals) = memory.driver();
                (driver, arrivals)
            }
            Some(Broker::Redis(options)) => {
                let (driver, arrivals) = Redis::start((**options).clone()).map_err(io::Error::other)?;
                (Arc::new(driver), arrivals)
            }
        };
        Ok(Some(Self {
            cluster: Cluster::new(driver, options.timing.clone(), Arc::clone(metrics)),
            arrivals,
        }))
    }
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
    /// Connections of applications.
    kept_alive: KeptAlive,
    proxy_protocol: bool,
    http: http::Service,
    handshake_timeout: Duration,
    keep_alive: Duration,
    write_timeout: Duration,
    /// Cancelled when the server stops: idle HTTP connections end, busy ones after their request.
    stopping: CancellationToken,
    /// HTTP connections, and publishes that go on without theirs.
    tasks: TaskTracker,
    /// WebSockets, from their upgrade on.
    sockets: TaskTracker,
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
                    let has_made_room = self.make_room();
                    sleep(if has_made_room { EVICTED_PAUSE } else { ACCEPT_PAUSE }).await;
                }
            }
        }
    }

    /// Takes a stranger in, when there is a place, and not at all if its address has too many.
    async fn receive(self: &Arc<Self>, stream: TcpStream, address: SocketAddr, tls: Option<Tls>) {
        let place = match self.proxy_protocol {
            // Who it is will be told.
            true if self.addresses.trusts(address.ip()) => None,
            true => {
                let example = Example::from(address.ip()).reason("it is not one of server.trusted_proxies");
                return self.hub.reject(Limit::ProxyProtocol, None, example);
            }
            false => match self.addresses.enter(address.ip(), Kind::Stranger, true, self.hub.now()) {
                Ok(place) => place,
                Err(limit) => return self.refuse_address(limit, address),
            },
        };
        let (arrival, evicted) = self.arrivals.enter().await;
        self.made_room(evicted);
        arrival.keep_address(place);
        let (server, number) = (Arc::clone(self), arrival.number());
        let task = self.tasks.spawn(async move { server.serve(stream, address, tls, arrival).await });
        self.arrivals.belongs_to(number, task.abort_handle());
    }

    /// Those who say nothing make room for those who wait, or else idle connections of applications do; whether any did.
    fn make_room(&self) -> bool {
        let evicted = self.arrivals.evict(EVICTED_AT_ONCE);
        self.made_room(evicted);
        if evicted > 0 {
            return true;
        }
        let connections = self.kept_alive.close_idle(CLOSED_AT_ONCE, self.hub.now());
        if connections > 0 {
            debug!(connections, "idle connections of applications are closed for others, as no file is left");
        }
        connections > 0
    }

    /// Counts strangers that had to go.
    fn made_room(&self, evicted: u64) {
        let example = || Example::default().value(self.arrivals.places() as u64);
        (0..evicted).for_each(|_| self.hub.reject(Limit::Unauthenticated, None, example()));
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// An address of documentation (RFC 5737), which no machine has.
    const ABSENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 0);
    const LOCAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    #[tokio::test]
    async fn the_first_address_that_this_machine_has_is_listened_on() {
        assert_eq!(bind_first(&[ABSENT, LOCAL]).unwrap().local_addr().unwrap().ip(), LOCAL.ip());
        let (address, error) = bind_first(&[ABSENT, ABSENT]).unwrap_err();
        assert_eq!((address, error.kind()), (Some(ABSENT), io::ErrorKind::AddrNotAvailable));
        let (address, error) = bind_first(&[]).unwrap_err();
        assert_eq!((address, error.kind()), (None, io::ErrorKind::AddrNotAvailable));
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_not_passed_over() {
        let listener = bind(LOCAL).unwrap();
        let address = listener.local_addr().unwrap();
        let (failed, error) = bind_first(&[ABSENT, address, LOCAL]).unwrap_err();
        assert_eq!((failed, error.kind()), (Some(address), io::ErrorKind::AddrInUse));
    }

    #[tokio::test]
    async fn localhost_is_this_machine_in_both_families() {
        for host in ["localhost", "LOCALHOST"] {
            let addresses = addresses_of(host, 7).await.unwrap();
            assert_eq!(addresses, [(Ipv4Addr::LOCALHOST, 7).into(), (Ipv6Addr::LOCALHOST, 7).into()]);
        }
        assert_eq!(addresses_of("::1", 7).await.unwrap(), [(Ipv6Addr::LOCALHOST, 7).into()]);
    }
}
