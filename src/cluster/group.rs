//! Groups, and the operations on them: the vocabulary of nodes and coordinator.
//!
//! A group has a name. Nodes hold it, and members are in it, each on one or more nodes. What groups stand for (channels
//! and users) is known to the hub alone.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// The name of a group.
pub type Group = Arc<str>;

/// Identifies a member of a group in the whole cluster.
pub type MemberId = Arc<str>;

/// A member, and the info that it joined with.
pub type MemberInfo = (MemberId, Bytes);

/// Identifies a node: from the start of its process until that ends or its lease expires.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub u128);

impl fmt::Display for NodeId {
    /// As 32 hexadecimal digits, the form in keys and topics.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl NodeId {
    /// Reads 32 hexadecimal digits.
    #[must_use]
    pub fn parse(digits: &str) -> Option<Self> {
        let id = Self(u128::from_str_radix(digits, 16).ok()?);
        (id.to_string() == digits).then_some(id)
    }
}

/// The number of a transition. Versions grow; within a group they follow the order of its transitions.
pub type Version = u64;

/// An operation: the state of `group` on `node` from now on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Update {
    /// The node that sends it.
    pub node: NodeId,
    /// Numbers the operations of the node, from 1.
    pub sequence: u64,
    /// The group.
    pub group: Group,
    /// Whether the node holds the group. If not, it has no member in it either.
    pub holds: bool,
    /// Members that the node has in it.
    pub present: Vec<MemberInfo>,
    /// Members that the node no longer has in it.
    pub gone: Vec<MemberId>,
    /// Whether `present` lists all members of the node.
    pub is_complete: bool,
    /// Whether the reply is to list all members of the group.
    pub wants_members: bool,
}

/// The state of a group after an operation.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Snapshot {
    /// The version of its last transition; 0 if it has none.
    pub version: Version,
    /// Whether any node holds it.
    pub occupied: bool,
    /// All members in the order in which they joined, if they were asked for.
    pub members: Option<Vec<MemberInfo>>,
}

/// A change of a group, as all nodes see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transition {
    /// The group.
    pub group: Group,
    /// The version of the group's previous transition; 0 if it has none.
    pub previous: Version,
    /// The version of this one.
    pub version: Version,
    /// What changed.
    pub change: Change,
}

/// See [`Transition`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// The first node holds the group.
    Occupied,
    /// The last node that held the group has left it.
    Vacated,
    /// A member joined on its first node.
    Added(MemberId, Bytes),
    /// A member left its last node.
    Removed(MemberId),
}

/// Why the coordinator rejected an operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rejected {
    /// The node's lease has expired: it has to rejoin under a new id.
    LeaseExpired,
    /// A later operation of the node was carried out before.
    Stale,
}
