//! The core API between the transports and the rest of the server: join, leave, publish, sign in, query.
//!
//! The hub derives the consequences of what the registry reports, after the registry's locks are released: it delivers to
//! large channels, makes publishers wait for a channel with too many undelivered bytes, hands events to webhooks, and owns
//! the clock of the node. Transports and the HTTP API reach registry, cluster and webhooks only through it. The hub does
//! not know sessions.
//!
//! Start at [`Hub`]. What happens on this node is in [`local`] (channels) and [`users`]. A single node and a node of a cluster
//! differ in the [`backend`]: in a cluster, [`clustered`] goes in front of both.

mod backend;
mod clustered;
mod local;
mod query;
mod refusal;
mod rejections;
mod timers;
mod users;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::apps::{App, Apps, ConnectionPermit};
use crate::cluster::node::Cluster;
use crate::metrics::Metrics;
use crate::observers::{Fact, Kind, Observers};
use crate::outbox::Outbox;
use crate::protocol::message::Event;
use crate::protocol::{ChannelName, CloseCode, Member, SocketId};
pub use query::{ChannelList, ChannelQuery};
pub use refusal::refuse;
pub use users::SignIn;

pub use crate::cluster::broker::Unavailable;
pub use crate::registry::{Backlog, ChannelInfo, Connections, JoinError};
use crate::registry::{CacheLimits, ChannelKey, ChannelPermits, Left, Registry, Users};
use crate::rejections::RejectionLog;
use crate::webhooks::Webhooks;
use backend::Backend;
use clustered::Clustered;
use users::WatchlistChange;

/// Inline deliveries before other tasks run.
const DELIVERIES_PER_TURN: usize = 64;

/// Channels that a closed connection leaves before other tasks run.
const LEFT_PER_TURN: usize = 32;

/// Channels in a chunk of a list.
const CHANNELS_PER_CHUNK: usize = 256;

/// At shutdown, the hub waits for the broker at most this long.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// See the module's documentation. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Hub(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    registry: Registry,
    connections: Connections,
    users: Users,
    metrics: Arc<Metrics>,
    webhooks: Webhooks,
    backend: Backend,
    /// Rejections that belong to no app.
    rejections: Arc<RejectionLog>,
    /// The logs, of apps and of the node, with rejections that have not been reported to the operator.
    unreported: Mutex<Vec<Arc<RejectionLog>>>,
    started: Instant,
    draining: AtomicBool,
    observers: Observers,
    runtime: Handle,
}

impl Hub {
    /// The hub of a single node. Must be called in a runtime, which then delivers to large channels.
    #[must_use]
    pub fn new(observers: Observers, metrics: Arc<Metrics>, webhooks: Webhooks) -> Self {
        Self(Arc::new(Shared::new(observers, metrics, webhooks, Users::default(), Backend::Local)))
    }

    /// The hub of a node in `cluster`. All nodes of the cluster serve the same `apps`.
    #[must_use]
    pub fn in_cluster(
        observers: Observers,
        metrics: Arc<Metrics>,
        webhooks: Webhooks,
        apps: Arc<Apps>,
        cluster: Cluster,
        local_when_broker_lost: bool,
    ) -> Self {
        Self(Arc::new_cyclic(|hub| {
            let clustered = Clustered::new(hub, apps, cluster, local_when_broker_lost);
            let backend = Backend::Clustered(Arc::new(clustered));
            Shared::new(observers, metrics, webhooks, Users::in_cluster(), backend)
        }))
    }

    /// The clock of the node: the time since it started.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.now()
    }

    /// The metrics of the node.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Those who watch what happens.
    #[must_use]
    pub fn observers(&self) -> &Observers {
        &self.0.observers
    }

    /// Acquires a permit for a connection of an app, in a cluster one of all nodes. `None` if the limit is reached.
    pub async fn acquire_connection(&self, app: &Arc<App>) -> Option<ConnectionPermit> {
        self.0.backend.acquire_connection(app).await
    }

    /// The established connections.
    #[must_use]
    pub fn connections(&self) -> &Connections {
        &self.0.connections
    }

    /// Whether the node is a member of a cluster.
    #[must_use]
    pub fn is_clustered(&self) -> bool {
        self.0.backend.is_clustered()
    }

    /// Whether the node can do all of its work: in a cluster, whether the broker is connected.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.backend.is_ready()
    }

    /// Starts the drain: from now on the node is shutting down.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::SeqCst);
    }

    /// Whether the node is shutting down.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::SeqCst)
    }

    /// The close code during a drain. In a cluster, clients reconnect to another node immediately. Clients of a single node
    /// reconnect after a second, when the next process may be running.
    #[must_use]
    pub fn drain_close_code(&self) -> CloseCode {
        self.0.backend.drain_close_code()
    }

    /// Subscribes a connection to a channel and acknowledges it: immediately, or in a cluster after the broker has decided.
    /// If a backlog is returned, the connection must wait for it before it is read again.
    ///
    /// # Errors
    /// [`JoinError`]. It has been counted and sent to the client.
    pub fn join(
        &self,
        app: &Arc<App>,
        outbox: &Arc<Outbox>,
        channel: &ChannelName,
        member: Option<Member>,
    ) -> Result<Option<Backlog>, JoinError> {
        self.0.backend.join(&self.0, app, outbox, channel, member)
    }

    /// Ends a subscription. If a backlog is returned, the connection must wait for it before it is read again.
    pub fn leave(&self, app: &App, channel: &ChannelName, socket: SocketId) -> Option<Backlog> {
        let left = self.left(app, channel, socket)?;
        self.0.deliver(left.drive);
        left.backlog
    }

    /// Ends up to 32 subscriptions of a closed connection and removes them from `channels`. Call it until `channels` is
    /// empty, and let other tasks run between calls. After 64 inline deliveries, tasks deliver the rest.
    pub fn leave_chunk(&self, app: &App, channels: &mut Vec<ChannelName>, socket: SocketId) {
        let mut delivered = 0;
        for channel in channels.drain(channels.len().saturating_sub(LEFT_PER_TURN)..) {
            let Some(left) = self.left(app, &channel, socket) else { continue };
            if delivered < DELIVERIES_PER_TURN {
                delivered += self.0.deliver(left.drive);
            } else {
                self.0.drive(left.drive);
            }
        }
    }

    fn left(&self, app: &App, channel: &ChannelName, socket: SocketId) -> Option<Left> {
        let left = self.0.backend.leave(&self.0, app, channel, socket)?;
        self.0.observers.observe(Kind::Unsubscribed, || Fact::Unsubscribed {
            app: (&*app.id.0).into(),
            channel: Cow::Borrowed(channel),
            socket,
        });
        Some(left)
    }

    /// Publishes events in order. On return they are delivered or queued, and the channels accept more. In a cluster, the
    /// broker has accepted them on return, and passes them to all nodes, including this one.
    ///
    /// # Errors
    /// [`Unavailable`]: it is unknown whether anything was published. Never on a single node.
    pub async fn publish<'e>(
        &self,
        app: &App,
        events: impl IntoIterator<Item = Event<'e>>,
    ) -> Result<(), Unavailable> {
        self.0.backend.publish(&self.0, app, events.into_iter()).await
    }

    /// Publishes a client event. If a backlog is returned, the connection must wait for it before it is read again.
    ///
    /// # Errors
    /// [`Unavailable`]: the event was not published.
    pub fn publish_from_client(&self, app: &App, event: &Event<'_>) -> Result<Option<Backlog>, Unavailable> {
        self.0.publish_from_client(app, event)
    }

    /// Passes the cluster's records for webhook receivers to the `webhooks` module, once there are receivers. Runs until
    /// [`Hub::close_records`], or for ever.
    pub async fn read_records(&self) {
        self.0.webhooks.wait_for_receivers().await;
        self.0.backend.read_records(&self.0).await;
        std::future::pending().await
    }

    /// Releases the records that have not been sent to other nodes. Call it after the webhooks are drained.
    pub async fn close_records(&self) {
        self.0.backend.close_records().await;
    }
}

impl Shared {
    fn new(
        observers: Observers,
        metrics: Arc<Metrics>,
        webhooks: Webhooks,
        users: Users,
        backend: Backend,
    ) -> Self {
        Self {
            registry: Registry::default(),
            connections: Connections::default(),
            users,
            metrics,
            webhooks,
            backend,
            rejections: Arc::default(),
            unreported: Mutex::default(),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            observers,
            runtime: Handle::current(),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The limits of an app for channels.
fn channel_permits(app: &App) -> ChannelPermits<'_> {
    ChannelPermits { held: &app.state.channels, max: app.limits.channels_max }
}

/// The limits of an app for an event that expires after `ttl`.
fn cache_limits(app: &App, ttl: Duration) -> CacheLimits<'_> {
    CacheLimits { ttl, permits: channel_permits(app), bytes_max: app.limits.cached_bytes_max }
}

fn key(app: &App, channel: &ChannelName) -> ChannelKey {
    ChannelKey { app: Arc::clone(&app.id.0), channel: channel.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::NameRules;

    #[tokio::test]
    async fn a_closed_connection_leaves_its_channels_in_turns() {
        let hub = Hub::new(Observers::default(), Arc::default(), Webhooks::default());
        let app = Arc::new(App::new("1", "key", "secret"));
        let outbox = Arc::new(Outbox::detached(SocketId::new(1, 0), usize::MAX));
        let name = |at: usize| ChannelName::parse(&format!("room-{at}"), &NameRules::default()).unwrap();
        let mut channels: Vec<_> = (0..1000).map(name).collect();
        for channel in &channels {
            hub.join(&app, &outbox, channel, None).unwrap();
        }
        let mut turns = 0;
        while !channels.is_empty() {
            let before = channels.len();
            hub.leave_chunk(&app, &mut channels, outbox.socket());
            assert!((1..=LEFT_PER_TURN).contains(&(before - channels.len())));
            assert_eq!(hub.0.registry.len(), channels.len(), "a channel without subscribers is removed");
            turns += 1;
        }
        assert_eq!(turns, 1000_usize.div_ceil(LEFT_PER_TURN));
    }
}
