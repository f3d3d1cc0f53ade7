//! Builds the modules, binds, accepts connections, and drains at a shutdown.
//!
//! The accept loop is our own. axum serves the HTTP API, but a connection that becomes a WebSocket is taken out of hyper
//! down to its TCP stream (and its TLS session), and the listener has the socket options that delivery relies on. A TLS
//! handshake runs in the task of its connection, so it delays no other client.
//!
//! Start at [`run`]; `accept` takes connections, `connection` serves one, `drain` ends them.

mod accept;
mod certificate;
mod connection;
mod descriptors;
mod detection;
mod drain;
mod keep_alive;
mod listen;
mod pending;
mod proxy_protocol;
mod repoll;
mod stream;
mod tls;
mod trim;

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};

use crate::addresses::{self, Addresses};
use crate::apps::Apps;
use crate::cluster::broker::{Broker, IncomingReceiver};
use crate::cluster::coordinator::Coordinator;
use crate::cluster::node::Cluster;
use crate::cluster::redis::RedisClient;
use crate::cluster::{self, Engine};
use crate::http::{self, Api};
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::observers::{self, Observers};
use crate::pusher::{self, Endpoint};
use crate::webhooks::{self, Webhooks};
use descriptors::FileShares;
pub use descriptors::raise_file_limit;
use drain::{Remaining, ShutdownTimer};
use keep_alive::KeepAliveConnections;
pub use listen::{Listeners, Listening, addresses_of, bind, bind_first};
use pending::PendingConnections;
pub use tls::{Tls, TlsError};

/// How this node serves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The WebSocket endpoint.
    pub pusher: pusher::Options,
    /// The HTTP API.
    pub http: http::Options,
    /// Webhooks.
    pub webhooks: webhooks::Options,
    /// The cluster.
    pub cluster: cluster::Options,
    /// Trusted proxies, and the limits of each address.
    pub addresses: addresses::Options,
    /// Whether every connection begins with a PROXY header, and comes from a trusted proxy.
    pub proxy_protocol: bool,
    /// Unauthenticated connections at once: neither a WebSocket nor one with signed requests. Fewer, if the limit of
    /// open files is low. Default 4000.
    pub unauthenticated_max: u32,
    /// Bytes of the cached events of all apps. Default 256 MiB.
    pub cached_bytes_max: usize,
    /// A new connection that has neither become a WebSocket nor sent a signed request by then is closed. Default 10 s.
    pub handshake_timeout: Duration,
    /// An HTTP connection that has been idle for so long is closed, within twice that time. Default 75 s.
    pub keep_alive: Duration,
    /// The counters of the node. Keep a clone to read them.
    pub metrics: Arc<Metrics>,
    /// Those who watch what happens. Keep a clone to watch. By default, `metrics` has what watchers miss.
    pub observers: Observers,
    /// On shutdown, the closes of WebSockets are spread over this window. Default: none. A node of a cluster should have
    /// one.
    pub drain: Duration,
    /// Connections that are open this long after the shutdown began are aborted. Default 20 s; never less than `drain`.
    pub shutdown_deadline: Duration,
    /// Whether the log at `debug` has payloads.
    pub debug: bool,
}

impl Default for Options {
    fn default() -> Self {
        let metrics = Arc::default();
        Self {
            observers: Observers::new(Arc::clone(&metrics)),
            metrics,
            pusher: pusher::Options::default(),
            http: http::Options::default(),
            webhooks: webhooks::Options::default(),
            cluster: cluster::Options::default(),
            addresses: addresses::Options::default(),
            proxy_protocol: false,
            unauthenticated_max: 4000,
            cached_bytes_max: 256 * 1024 * 1024,
            handshake_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            drain: Duration::ZERO,
            shutdown_deadline: Duration::from_secs(20),
            debug: false,
        }
    }
}

/// How a running server is stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shutdown {
    /// Drains: closes the WebSockets over the window.
    Graceful,
    /// Closes everything at once.
    Now,
}

/// Serves `apps`, which may be replaced meanwhile ([`Apps::replace`]), on `listeners` until `shutdown` receives a value, then
/// drains as the module `drain` describes. A second value, or [`Shutdown::Now`], ends the drain at once.
///
/// # Errors
/// A background task ended early, or the system could not start a thread.
pub async fn run(
    listeners: impl Into<Listeners>,
    apps: impl Into<Arc<Apps>>,
    options: Options,
    mut shutdown: mpsc::Receiver<Shutdown>,
) -> io::Result<()> {
    let listeners = listeners.into();
    let apps = apps.into();
    // Unregistered when the server has ended.
    let _log = observers::log::start(&options.observers, options.debug);
    let webhooks_options =
        webhooks::Options { observers: options.observers.clone(), ..options.webhooks.clone() };
    let webhooks = Webhooks::start(&apps, webhooks_options, &options.metrics)?;
    let (observers, metrics) = (options.observers.clone(), Arc::clone(&options.metrics));
    let member = ClusterClient::start(&options.cluster, &options.metrics)?;
    let hub = match &member {
        None => Hub::new(observers, metrics, webhooks.clone()),
        Some(ClusterClient { cluster, .. }) => {
            let is_local = options.cluster.local_when_broker_lost;
            Hub::in_cluster(
                observers,
                metrics,
                webhooks.clone(),
                Arc::clone(&apps),
                cluster.clone(),
                is_local,
            )
        }
    };
    hub.limit_cached_bytes(options.cached_bytes_max);
    let cluster = member.as_ref().map(|member| member.cluster.clone());
    let mut cluster_task = tokio::spawn(async move {
        match member {
            Some(ClusterClient { cluster, incoming }) => cluster.run(incoming).await,
            None => std::future::pending().await,
        }
    });
    let [tasks, sockets] = [TaskTracker::new(), TaskTracker::new()];
    let addresses = Arc::new(Addresses::new(options.addresses.clone()));
    let shares = FileShares::for_this_process(options.unauthenticated_max);
    let files_max = options.pusher.files_max.or(shares.websockets);
    let (pusher, client_addresses) =
        (pusher::Options { files_max, ..options.pusher.clone() }, Arc::clone(&addresses));
    let server = Arc::new(Server {
        endpoint: Endpoint::new(hub.clone(), Arc::clone(&apps), client_addresses, pusher, sockets.clone()),
        hub: hub.clone(),
        addresses,
        pending: Arc::new(PendingConnections::new(shares.pending)),
        keep_alive_connections: KeepAliveConnections::default(),
        proxy_protocol: options.proxy_protocol,
        http: http::Service::new(Api::new(
            hub.clone(),
            Arc::clone(&apps),
            options.http.clone(),
            tasks.clone(),
        )),
        handshake_timeout: options.handshake_timeout,
        keep_alive: options.keep_alive,
        write_timeout: options.http.read_timeout,
        stopping: CancellationToken::new(),
        tasks,
        sockets,
    });
    let mut timers_task = tokio::spawn({
        let hub = hub.clone();
        async move { hub.run_timers().await }
    });
    let mut records_task = tokio::spawn({
        let hub = hub.clone();
        async move { hub.read_records().await }
    });
    let mut sweep_task = tokio::spawn({
        let endpoint = server.endpoint.clone();
        async move { endpoint.watch().await }
    });
    let mut apps_task = tokio::spawn({
        let (endpoint, webhooks) = (server.endpoint.clone(), webhooks.clone());
        async move {
            loop {
                apps.replaced().await;
                if let Err(error) = webhooks.apply(&apps) {
                    error!("the receivers of webhooks stay as they were: {error}");
                }
                endpoint.wake_connections().await;
            }
        }
    });
    let mut trim_task = tokio::spawn(trim::watch());
    let ended_early = |what: &str| Err(io::Error::other(format!("the task that {what} ended early")));
    let mut timer = {
        let mut accepting = pin!(server.accept_all(&listeners));
        let how = tokio::select! {
            how = shutdown.recv() => how.unwrap_or(Shutdown::Now),
            () = &mut accepting => return ended_early("accepts connections"),
            _ = &mut timers_task => return ended_early("runs the timers"),
            _ = &mut sweep_task => return ended_early("watches connections"),
            _ = &mut apps_task => return ended_early("watches the list of apps"),
            _ = &mut trim_task => return ended_early("trims the heap"),
            _ = &mut records_task => return ended_early("reads the cluster's records"),
            _ = &mut cluster_task => return ended_early("runs the node of the cluster"),
            () = webhooks.ended() => return ended_early("sends webhooks"),
            () = watch_certificate(&listeners) => return ended_early("renews the certificate"),
        };
        let mut timer = ShutdownTimer::start(how, options.shutdown_deadline, shutdown);
        // Applications publish to the remaining clients, over a new connection for each event.
        tokio::select! {
            () = server.close_clients(&webhooks, options.drain, &mut timer) => {}
            () = accepting => return ended_early("accepts connections"),
        }
        timer
    };
    drop(listeners);
    server.end_connections(&mut timer).await;
    timers_task.abort();
    sweep_task.abort();
    apps_task.abort();
    trim_task.abort();
    webhooks
        .drain(timer.step_ended(|| Remaining { webhooks: webhooks.pending(), ..Remaining::default() }))
        .await;
    hub.close_records().await;
    records_task.abort();
    if let Some(cluster) = cluster {
        cluster.leave(timer.step_end()).await;
    }
    cluster_task.abort();
    hub.flush_rejections();
    info!("stopped");
    Ok(())
}

/// This node as a member of a cluster.
struct ClusterClient {
    cluster: Cluster,
    incoming: IncomingReceiver,
}

impl ClusterClient {
    /// Starts the client of the engine. `None`: there is no cluster.
    fn start(options: &cluster::Options, metrics: &Arc<Metrics>) -> io::Result<Option<Self>> {
        let (broker, coordinator, incoming): (Arc<dyn Broker>, Arc<dyn Coordinator>, _) = match &options
            .engine
        {
            None => return Ok(None),
            Some(Engine::Memory(server)) => {
                let (client, incoming) = server.connect();
                (Arc::clone(&client) as _, client, incoming)
            }
            Some(Engine::Redis(options)) => {
                let (client, incoming) = RedisClient::start((**options).clone()).map_err(io::Error::other)?;
                let client = Arc::new(client);
                (Arc::clone(&client) as _, client, incoming)
            }
        };
        Ok(Some(Self {
            cluster: Cluster::new(broker, coordinator, options.timing.clone(), Arc::clone(metrics)),
            incoming,
        }))
    }
}

/// Reloads the certificate when its files change, if there is one.
async fn watch_certificate(listeners: &Listeners) {
    match &listeners.tls {
        Some((_, tls)) => tls.watch().await,
        None => std::future::pending().await,
    }
}

/// What the tasks of all connections share.
struct Server {
    hub: Hub,
    endpoint: Endpoint,
    addresses: Arc<Addresses>,
    /// Unauthenticated connections.
    pending: Arc<PendingConnections>,
    /// Connections with signed requests.
    keep_alive_connections: KeepAliveConnections,
    proxy_protocol: bool,
    http: http::Service,
    handshake_timeout: Duration,
    keep_alive: Duration,
    write_timeout: Duration,
    /// Cancelled when the server stops: idle HTTP connections close at once, busy ones after their request.
    stopping: CancellationToken,
    /// HTTP connections, and publishes that outlive theirs.
    tasks: TaskTracker,
    /// WebSockets, from their upgrade on.
    sockets: TaskTracker,
}
