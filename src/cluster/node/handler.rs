//! The callbacks of a node.

use std::fmt::Debug;
use std::pin::Pin;

use bytes::Bytes;

use crate::cluster::group::{Group, MemberId, MemberInfo, NodeId, Version};
use crate::cluster::local_groups::EntryId;

/// Handles the events of a node. Called in order for each group. A callback must not wait, and must not enter or
/// leave groups.
pub trait Handler: Debug + Send + Sync {
    /// A connection's entry in a group was admitted. `members`: all members in the order of joining, if this is the
    /// first entry on this node and the group is mirrored.
    ///
    /// # Errors
    /// [`EntryDenied`]: the entry is removed at once.
    fn entered(
        &self,
        group: &Group,
        entry: EntryId,
        members: Option<Vec<MemberInfo>>,
    ) -> Result<(), EntryDenied>;

    /// The last entry on this node, pending or admitted, has left a group.
    fn vacated(&self, group: &Group);

    /// A member joined a group that has an entry here.
    fn member_added(&self, group: &Group, member: &MemberId, info: &Bytes);

    /// A member left it.
    fn member_removed(&self, group: &Group, member: &MemberId);

    /// A message arrived on a group's topic, with a version if it is cached. The next message waits for the capacity
    /// that is returned.
    fn message(&self, group: &Group, version: Option<Version>, message: Bytes) -> Option<Capacity>;

    /// A request of another node, or a notice of any node. It is handled at once; the reply may take its time.
    fn request(&self, request: Bytes) -> Reply;

    /// Whether transitions of a group are stored as records.
    fn is_recorded(&self, group: &Group) -> bool;

    /// A partition may have new records.
    fn records_available(&self, partition: u16);

    /// The nodes with a valid lease, in the same order on all nodes. Called at each heartbeat.
    fn nodes_alive(&self, nodes: &[NodeId]);

    /// The broker was disconnected; or it is connected again and this node has registered everything.
    fn availability_changed(&self, is_available: bool);
}

/// An entry is not accepted after all: the member that it would have added, if any.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EntryDenied(pub Option<MemberId>);

/// The reply to a request.
pub type Reply = Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// Completes when there is capacity for more messages.
pub type Capacity = Pin<Box<dyn Future<Output = ()> + Send>>;
