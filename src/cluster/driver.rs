//! What a cluster needs of the broker between its nodes: one file an engine.
//!
//! A driver carries operations out and messages over; it knows neither what they are for nor what follows from an
//! answer. The order in which its methods are *called* counts, not that in which their futures are polled: messages on
//! one topic arrive in the order in which they were published, on every node, and what an update changes is told on the
//! topic of its group in that same order.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::truth::{Answer, Group, NodeId, Refusal, Transition, Update, Version};

/// What stands between nodes is split into so many parts by [`partition_of`], for ever: each of them is one hash slot
/// of a Redis Cluster, and each has its own versions, records and reaping.
pub const PARTITIONS: u16 = 64;

/// The part that a group belongs to: the same on every node and in every release.
#[must_use]
pub fn partition_of(group: &str) -> u16 {
    // FNV-1a: 32 bits, stable, and spread well enough over 64.
    let hash =
        group.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    ((hash ^ (hash >> 16)) % u32::from(PARTITIONS)) as u16
}

/// The broker did not answer. Whether it has done what it was asked is not known.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the cluster's broker does not answer")]
pub struct Lost;

/// An answer on its way.
pub type Answering<T> = Pin<Box<dyn Future<Output = Result<T, Lost>> + Send>>;

/// What messages are about, and so who hears them.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Topic {
    /// Nodes that listen to the group.
    Group(Group),
    /// All nodes.
    Nodes,
    /// One node.
    Node(NodeId),
}

/// What comes from the broker by itself, in one queue.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Incoming {
    /// A message on a topic that is listened to, as [`super::envelope`] has it.
    Message(Topic, Bytes),
    /// Messages may have been missed. Nothing is listened to any more, nothing on its way will be answered, and what is
    /// asked from now on fails at once.
    Lost,
    /// The broker is there (again): what is asked is answered.
    Found,
}

/// A driver's queue, and its other end. It has no bound of its own: a driver gives up on what waits too long.
#[must_use]
pub fn queue() -> (Arriving, Arrivals) {
    let (incoming, taken) = mpsc::unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    (Arriving { incoming, waiting: Arc::clone(&waiting) }, Arrivals { taken, waiting })
}

/// Where a driver puts what comes.
#[derive(Clone, Debug)]
pub struct Arriving {
    incoming: mpsc::UnboundedSender<Incoming>,
    waiting: Arc<AtomicUsize>,
}

impl Arriving {
    /// Puts something at the end; how many bytes wait then. Where nobody takes any more, it is dropped.
    pub fn push(&self, incoming: Incoming) -> usize {
        let bytes = incoming.bytes();
        let waiting = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let _ = self.incoming.send(incoming);
        waiting
    }
}

/// Where a node takes it.
#[derive(Debug)]
pub struct Arrivals {
    taken: mpsc::UnboundedReceiver<Incoming>,
    waiting: Arc<AtomicUsize>,
}

impl Arrivals {
    /// The next one; `None`: the driver is gone. Cancel safe.
    pub async fn recv(&mut self) -> Option<Incoming> {
        let incoming = self.taken.recv().await?;
        self.waiting.fetch_sub(incoming.bytes(), Ordering::Relaxed);
        Some(incoming)
    }
}

impl Incoming {
    /// What it takes while it waits.
    fn bytes(&self) -> usize {
        let message = match self {
            Self::Message(_, bytes) => bytes.len(),
            Self::Lost | Self::Found => 0,
        };
        size_of::<Self>() + message
    }
}

/// Which nodes there are.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Leases {
    /// Nodes that have renewed in time, the one that asks among them.
    pub alive: Vec<NodeId>,
    /// Nodes that have not: to be reaped, then forgotten.
    pub expired: Vec<NodeId>,
}

/// An event that is kept for who comes later.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kept {
    /// Which: later ones have higher numbers.
    pub number: Version,
    /// As it was given to [`Driver::keep`].
    pub message: Bytes,
    /// For so long still.
    pub ttl: Duration,
}

/// A transition that somebody outside of the cluster is to be told of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// What happened. Its version is its id.
    pub transition: Transition,
    /// When, in milliseconds since 1970, by the broker's clock.
    pub time_ms: u64,
}

/// See the module's documentation. Methods return at once; they are called from many threads.
pub trait Driver: Debug + Send + Sync {
    /// Carries an operation out as [`super::truth::Truth::update`] defines it. What changes is told on the group's topic
    /// and, if it `is_noted`, put down as a record.
    fn update(&self, update: Update, is_noted: bool) -> Answering<Result<Answer, Refusal>>;

    /// A group as it is, with everyone in it.
    fn look(&self, group: Group) -> Answering<Answer>;

    /// The occupied groups whose names start with `prefix`, and how many members each has.
    fn occupied(&self, prefix: &str) -> Answering<Vec<(Group, usize)>>;

    /// Sends messages, those of one topic in this order; answered when the broker has all of them.
    fn publish(&self, messages: Vec<(Topic, Bytes)>) -> Answering<()>;

    /// Sends a message on a group's topic, in an envelope with its number, and keeps it for `ttl` instead of what was
    /// kept before: in one step.
    fn keep(&self, group: Group, message: Bytes, ttl: Duration) -> Answering<()>;

    /// What is kept of a group.
    fn kept(&self, group: Group) -> Answering<Option<Kept>>;

    /// Begins to listen to a topic; answered when everything published from then on will arrive.
    fn listen(&self, topic: Topic) -> Answering<()>;

    /// No longer listens to it. What was published before may still arrive.
    fn ignore(&self, topic: Topic);

    /// Renews a node's lease, for `lease` from now; `is_new`: it is given its first one. Refused to a node that has none
    /// any more, or whose lease had expired.
    fn renew(&self, node: NodeId, is_new: bool, lease: Duration) -> Answering<Result<Leases, Refusal>>;

    /// The nodes that have something in a part. One of them that has no lease is to be reaped.
    fn nodes(&self, partition: u16) -> Answering<Vec<NodeId>>;

    /// Gives a node up in one part and takes from it some of what it has there; whether there is more.
    /// What changes is told and, if it was noted of the node's updates of that group, put down.
    fn reap(&self, partition: u16, node: NodeId) -> Answering<bool>;

    /// Forgets a node's lease: it has ended, or was reaped everywhere.
    fn forget(&self, node: NodeId) -> Answering<()>;

    /// Makes the node's share of what is counted as `what` (at most `max` for all nodes) as large as `wanted`, or as is
    /// possible; what it is then. A smaller one is always possible.
    fn reserve(&self, what: Group, node: NodeId, wanted: u64, max: u64) -> Answering<u64>;

    /// Makes the node the reader of a part's records for `lease`, unless another node is; whether it is.
    /// The reader is told of new records on its own topic.
    fn claim(&self, partition: u16, node: NodeId, lease: Duration) -> Answering<bool>;

    /// No longer the reader, so that another can be at once.
    fn unclaim(&self, partition: u16, node: NodeId) -> Answering<()>;

    /// Records with higher versions than `after` (0: all), at most `records_max`, oldest first: those of the part that
    /// are not settled.
    fn records(&self, partition: u16, after: Version, records_max: usize) -> Answering<Vec<Record>>;

    /// Records that need not be kept any more.
    fn settle(&self, partition: u16, versions: Vec<Version>) -> Answering<()>;
}
