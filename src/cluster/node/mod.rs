//! One node of the cluster: its lease, its groups, its messages.
//!
//! Two tasks run. The *receive loop* takes what the engine delivers, in order, and passes it to the [`Handler`]. The
//! *lease* task (`lease`) joins the cluster whenever the broker is connected, renews the lease, rejoins under a new id
//! when the lease has expired, and reaps dead nodes. Entering and leaving groups happens at once, on the caller's task,
//! under the lock of the group's partition (`partition`): effects are performed before the lock is released, so that a
//! handler sees the events of a group in one order. `requests` holds requests from node to node, and `dropped` reports
//! messages that cannot be read.
//!
//! Lock order: partition, then the locks of the handler. A callback must not lock a partition, and must not wait.

mod dropped;
mod handler;
mod lease;
mod partition;
mod requests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};

use super::broker::{Broker, Incoming, IncomingReceiver, PendingReply, Topic, Unavailable};
use super::coordinator::{CachedMessage, Coordinator, PARTITIONS, partition_of};
use super::envelope::{self, Envelope, Unreadable};
use super::group::{Group, NodeId, Snapshot};
use super::local_groups::LocalGroups;
use crate::metrics::Metrics;

use dropped::NewerReleaseLog;
pub use handler::{Capacity, EntryDenied, Handler, Reply};
pub use partition::LockedPartition;

/// Intervals and timeouts of a node.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How long a lease is valid after it was renewed. Default 12 s.
    pub lease: Duration,
    /// How often it is renewed. Default 4 s.
    pub heartbeat: Duration,
    /// How long a request to all nodes waits for replies. Default 1 s.
    pub reply_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(12),
            heartbeat: Duration::from_secs(4),
            reply_timeout: Duration::from_secs(1),
        }
    }
}

/// Delay before a failed operation is retried, if the broker is still connected.
const RETRY: Duration = Duration::from_secs(1);

/// See the module's documentation. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Cluster(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    broker: Arc<dyn Broker>,
    coordinator: Arc<dyn Coordinator>,
    handler: OnceLock<Weak<dyn Handler>>,
    timing: Timing,
    partitions: Vec<Mutex<LocalGroups>>,
    node: Mutex<NodeId>,
    /// Counts disconnects: replies to requests of an earlier epoch are ignored.
    epoch: AtomicU64,
    /// Whether the broker is connected and this node has a lease.
    is_ready: AtomicBool,
    /// Set when the coordinator rejects an update because this node's lease has expired.
    lease_expired: Notify,
    /// Requests to other nodes that wait for replies.
    pending_requests: Mutex<HashMap<u64, mpsc::UnboundedSender<(NodeId, Bytes)>>>,
    next_request: AtomicU64,
    /// When messages of newer releases were logged.
    newer_releases: Mutex<NewerReleaseLog>,
    metrics: Arc<Metrics>,
    runtime: Handle,
}

fn random_node_id() -> NodeId {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    NodeId(u128::from_be_bytes(bytes))
}

impl Cluster {
    /// A node that will join the others. Nothing happens before [`Cluster::run`].
    #[must_use]
    pub fn new(
        broker: Arc<dyn Broker>,
        coordinator: Arc<dyn Coordinator>,
        timing: Timing,
        metrics: Arc<Metrics>,
    ) -> Self {
        let node = random_node_id();
        let disconnected = || {
            let mut groups = LocalGroups::new(node);
            groups.disconnected();
            Mutex::new(groups)
        };
        Self(Arc::new(Shared {
            broker,
            coordinator,
            handler: OnceLock::new(),
            timing,
            partitions: (0..PARTITIONS).map(|_| disconnected()).collect(),
            node: Mutex::new(node),
            epoch: AtomicU64::new(0),
            is_ready: AtomicBool::new(false),
            lease_expired: Notify::new(),
            pending_requests: Mutex::default(),
            next_request: AtomicU64::new(0),
            newer_releases: Mutex::default(),
            metrics,
            runtime: Handle::current(),
        }))
    }

    /// Sets the handler of events. To be called once, before [`Cluster::run`].
    pub fn set_handler(&self, handler: &Arc<impl Handler + 'static>) {
        let handler: Weak<dyn Handler> = Arc::downgrade(&(Arc::clone(handler) as Arc<dyn Handler>));
        let _ = self.0.handler.set(handler);
    }

    fn handler(&self) -> Option<Arc<dyn Handler>> {
        self.0.handler.get()?.upgrade()
    }

    /// This node's id. It changes when the node rejoins after its lease has expired.
    #[must_use]
    pub fn node(&self) -> NodeId {
        *self.0.node.lock()
    }

    /// Whether the broker is connected and this node is a member of the cluster.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.is_ready.load(Ordering::SeqCst)
    }

    /// The coordinator, for records and quotas.
    #[must_use]
    pub fn coordinator(&self) -> &Arc<dyn Coordinator> {
        &self.0.coordinator
    }

    /// Intervals and timeouts.
    #[must_use]
    pub fn timing(&self) -> &Timing {
        &self.0.timing
    }

    // ---- messages and cached events ----

    /// Publishes messages to the nodes that are subscribed to their groups, this one among them; those of one group in
    /// this order.
    ///
    /// # Errors
    /// [`Unavailable`]: possibly none of them was published.
    pub fn publish(&self, messages: impl IntoIterator<Item = (Group, Bytes)>) -> PendingReply<()> {
        if !self.is_ready() {
            return Box::pin(std::future::ready(Err(Unavailable)));
        }
        let enclose =
            |(group, message): (Group, Bytes)| (Topic::Group(group), envelope::message(&[&message]));
        self.0.broker.publish(messages.into_iter().map(enclose).collect())
    }

    /// As [`Cluster::publish`], and caches the message (without an envelope) for later subscribers.
    pub fn publish_cached(&self, group: Group, message: Bytes, ttl: Duration) -> PendingReply<()> {
        if !self.is_ready() {
            return Box::pin(std::future::ready(Err(Unavailable)));
        }
        self.0.coordinator.publish_cached(group, message, ttl)
    }

    /// The cached message of a group.
    pub fn cached(&self, group: Group) -> PendingReply<Option<CachedMessage>> {
        self.0.coordinator.cached(group)
    }

    // ---- queries ----

    /// The state of a group on all nodes.
    pub fn snapshot(&self, group: Group) -> PendingReply<Snapshot> {
        self.0.coordinator.snapshot(group)
    }

    /// The occupied groups whose names start with `prefix`, each with the number of its members.
    pub fn occupied(&self, prefix: &str) -> PendingReply<Vec<(Group, usize)>> {
        self.0.coordinator.occupied(prefix)
    }

    // ---- from start to end ----

    /// Receives messages and holds the lease, until the engine is gone.
    pub async fn run(&self, mut incoming: IncomingReceiver) {
        let (connected, connection_changes) = mpsc::unbounded_channel();
        let receive = async {
            while let Some(incoming) = incoming.recv().await {
                match incoming {
                    Incoming::Message(topic, bytes) => {
                        if let Some(capacity) = self.receive(&topic, &bytes) {
                            capacity.await;
                        }
                    }
                    Incoming::Disconnected => {
                        self.disconnected();
                        let _ = connected.send(false);
                    }
                    Incoming::Connected => {
                        let _ = connected.send(true);
                    }
                }
            }
        };
        tokio::select! {
            () = receive => {}
            () = self.hold_lease(connection_changes) => {}
        }
    }

    fn receive(&self, topic: &Topic, bytes: &Bytes) -> Option<Capacity> {
        let handler = self.handler()?;
        let group = match topic {
            Topic::Group(group) => Some(group),
            Topic::Nodes | Topic::Node(_) => None,
        };
        let envelope = match envelope::open(group, bytes) {
            Ok(envelope) => envelope,
            Err(why) => {
                self.report_dropped(why);
                return None;
            }
        };
        match (group, envelope) {
            (Some(group), Envelope::Message(message)) => return handler.message(group, None, message),
            (Some(group), Envelope::Cached(version, message)) => {
                return handler.message(group, Some(version), message);
            }
            (Some(group), Envelope::Changed(transition)) => {
                self.with_group(group, |partition| partition.groups.transition(transition));
            }
            (None, Envelope::Records(partition)) if partition < PARTITIONS => {
                handler.records_available(partition);
            }
            (None, Envelope::Message(message)) => {
                if let Err(why) = self.receive_node_message(&*handler, &message) {
                    self.report_dropped(why);
                }
            }
            // They do not belong on the topic that they arrived on.
            (Some(_), Envelope::Records(_))
            | (None, Envelope::Cached(..) | Envelope::Changed(_) | Envelope::Records(_)) => {
                self.report_dropped(Unreadable::Malformed);
            }
        }
        None
    }

    fn disconnected(&self) {
        self.0.epoch.fetch_add(1, Ordering::SeqCst);
        self.0.is_ready.store(false, Ordering::SeqCst);
        self.0.metrics.cluster.disconnects.count();
        for partition in &self.0.partitions {
            partition.lock().disconnected();
        }
        if let Some(handler) = self.handler() {
            handler.availability_changed(false);
        }
    }

    /// Leaves the cluster. Waits until `deadline` for all groups to be left and unregistered; a node that does not get
    /// there is declared dead by the others when its lease expires.
    pub async fn leave(&self, deadline: Instant) {
        let is_empty = || self.0.partitions.iter().all(|partition| partition.lock().is_empty());
        while self.is_ready() && !is_empty() && Instant::now() < deadline {
            sleep(Duration::from_millis(10)).await;
        }
        if self.is_ready() && is_empty() {
            // Only its sequence numbers and its shares of quotas are left.
            let (coordinator, node) = (&self.0.coordinator, self.node());
            let reaping: Vec<_> =
                (0..PARTITIONS).map(|partition| coordinator.reap(partition, node)).collect();
            let leaving = async {
                for reaped in reaping {
                    reaped.await?;
                }
                coordinator.remove_lease(node).await
            };
            let _ = timeout(Duration::from_secs(1), leaving).await;
        }
    }
}

impl Shared {
    fn partition(&self, group: &str) -> &Mutex<LocalGroups> {
        &self.partitions[usize::from(partition_of(group))]
    }
}
