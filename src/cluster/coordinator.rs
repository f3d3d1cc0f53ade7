//! What a node needs of the coordinator that keeps the shared state: groups, leases, cached events, records, quotas.
//!
//! A coordinator carries operations out; it knows neither what groups stand for nor what follows from a reply. What an
//! update changes is published on the topic of its group, in the order of the changes; where broker and coordinator are
//! one engine, that order includes the messages which are published on the topic.

use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;

use super::broker::PendingReply;
use super::group::{Group, NodeId, Rejected, Snapshot, Transition, Update, Version};

/// Number of partitions. It never changes: each partition is one hash slot of a Redis Cluster, with its own versions,
/// records and reaping.
pub const PARTITIONS: u16 = 64;

/// The partition of a group: the same on every node and in every release.
#[must_use]
pub fn partition_of(group: &str) -> u16 {
    // FNV-1a: 32 bits, stable, and spread well enough over 64.
    let hash =
        group.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    ((hash ^ (hash >> 16)) % u32::from(PARTITIONS)) as u16
}

/// Keeps the shared state of all nodes. Methods return at once; they are called from many threads.
pub trait Coordinator: Debug + Send + Sync {
    // ---- groups ----

    /// Carries an operation out as [`super::shared_state::SharedState::update`] defines it. Its transitions are
    /// published on the group's topic and, if it `is_recorded`, stored as records.
    fn update(&self, update: Update, is_recorded: bool) -> PendingReply<Result<Snapshot, Rejected>>;

    /// The state of a group, with all its members.
    fn snapshot(&self, group: Group) -> PendingReply<Snapshot>;

    /// The occupied groups whose names start with `prefix`, each with the number of its members.
    fn occupied(&self, prefix: &str) -> PendingReply<Vec<(Group, usize)>>;

    // ---- cached events ----

    /// Publishes a message on a group's topic, in an envelope with its version, and caches it for `ttl` in place of the
    /// one before: in one step.
    fn publish_cached(&self, group: Group, message: Bytes, ttl: Duration) -> PendingReply<()>;

    /// The cached message of a group.
    fn cached(&self, group: Group) -> PendingReply<Option<CachedMessage>>;

    // ---- leases ----

    /// Renews a node's lease for `lease` from now; with `is_new`, grants the first one. Rejected if the node has no
    /// lease or it has expired.
    fn renew_lease(
        &self,
        node: NodeId,
        is_new: bool,
        lease: Duration,
    ) -> PendingReply<Result<Leases, Rejected>>;

    /// Removes a node's lease: the node has left, or was reaped in all partitions.
    fn remove_lease(&self, node: NodeId) -> PendingReply<()>;

    /// The nodes that have state in a partition. One of them that has no lease is to be reaped.
    fn nodes(&self, partition: u16) -> PendingReply<Vec<NodeId>>;

    /// Declares a node dead in one partition and removes some of its state there; returns whether there is more.
    /// Transitions are published and, where the node's updates of the group were recorded, stored as records.
    fn reap(&self, partition: u16, node: NodeId) -> PendingReply<bool>;

    // ---- quotas ----

    /// Sets the node's share of a quota (`max` for all nodes together) to `wanted`, or to what is left; returns the
    /// share. Making a share smaller always succeeds.
    fn reserve(&self, quota: Group, node: NodeId, wanted: u64, max: u64) -> PendingReply<u64>;

    // ---- records ----

    /// Makes the node the reader of a partition's records for `lease`, unless another node is; returns whether it is.
    /// New records are announced to the reader on its own topic.
    fn claim_records(&self, partition: u16, node: NodeId, lease: Duration) -> PendingReply<bool>;

    /// Ends a claim, so that another node can read at once.
    fn release_records(&self, partition: u16, node: NodeId) -> PendingReply<()>;

    /// Unacknowledged records of a partition with versions above `after` (0: all), at most `records_max`, oldest first.
    fn records(&self, partition: u16, after: Version, records_max: usize) -> PendingReply<Vec<Record>>;

    /// Deletes records that were handled.
    fn ack_records(&self, partition: u16, versions: Vec<Version>) -> PendingReply<()>;
}

/// The leases of all nodes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Leases {
    /// Nodes whose lease is valid, the one that asks among them.
    pub alive: Vec<NodeId>,
    /// Nodes whose lease has expired: to be reaped, then removed.
    pub expired: Vec<NodeId>,
}

/// The cached message of a group.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CachedMessage {
    /// Later messages have higher versions.
    pub version: Version,
    /// As it was given to [`Coordinator::publish_cached`].
    pub message: Bytes,
    /// How long it stays cached.
    pub ttl: Duration,
}

/// A transition that webhooks are to report.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// The transition. Its version is the id of the record.
    pub transition: Transition,
    /// When it happened, in milliseconds since 1970, by the coordinator's clock.
    pub time_ms: u64,
}
