//! Names of keys and topics.
//!
//! | name | type | content |
//! | --- | --- | --- |
//! | `{prefix:NN}:v` | string | the last version in the partition |
//! | `{prefix:NN}:n` | hash | the sequence number of each node's last update |
//! | `{prefix:NN}:g:<node>` | string, 1 h | the node was declared dead |
//! | `{prefix:NN}:l:<node>` | sorted set | the state of the node: `g<group>` (score 1: recorded), `q<quota>` |
//! | `{prefix:NN}:o` | sorted set, all 0 | occupied groups |
//! | `{prefix:NN}:h:<group>` | set | the nodes that hold it |
//! | `{prefix:NN}:x:<group>` | string | its last version |
//! | `{prefix:NN}:m:<group>` | hash | its members: `<version of joining> <number of nodes> <info>` |
//! | `{prefix:NN}:s:<node>:<group>` | sorted set, all 0 | the members that the node has in it |
//! | `{prefix:NN}:k:<group>` | string, with its TTL | a version and the cached message |
//! | `{prefix:NN}:q:<quota>` | hash | the share of each node |
//! | `{prefix:NN}:w` | string, as long as the lease | the reader of the records |
//! | `{prefix:NN}:r` | stream | records, by their versions |
//! | `{prefix:NN}:d` | string | records that were dropped unread since the last claim |
//! | `{prefix}:leases` | sorted set | when the lease of each node ends |
//! | `{prefix:NN}:t:<group>` | topic | |
//! | `{prefix}:nodes`, `{prefix}:node:<node>` | topic | |
//!
//! The part in braces is the hash tag, which decides the slot of a Redis Cluster: all keys of a script are in one slot.
//!
//! # How the layout changes
//!
//! Names have no version: releases 0.1 and 0.2 have the same layout. With a version in all names, nodes of two releases
//! would not see each other. Messages and cached events
//! have versions of their own (`cluster::envelope`, `hub::clustered::codec`). Scripts are called by their digest, so each
//! release runs its own.
//!
//! - What is new gets a new name (`{prefix:NN}:e:<group>`). Earlier releases neither read nor delete it, so it has a TTL, or
//!   is removed by the nodes that know it.
//! - A key whose type or content changes gets a new name as well (`m2` after `m`), so that no release misreads what another
//!   one wrote. If members, holders or leases move in this way, nodes of the two releases do not see each other's: then the
//!   release notes demand that all nodes are stopped before the first one of the new release starts. They write their part
//!   again; cached events and unread records under old names are lost, and the old keys are deleted by hand.

use crate::cluster::broker::Topic;
use crate::cluster::coordinator::{PARTITIONS, partition_of};
use crate::cluster::group::NodeId;

/// The hash tag of a key or topic: decides its slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum HashTag {
    Partition(u16),
    /// Of what belongs to no partition.
    Global,
}

impl HashTag {
    pub(super) const COUNT: usize = PARTITIONS as usize + 1;

    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..PARTITIONS).map(Self::Partition).chain([Self::Global])
    }

    /// The position in [`HashTag::all`].
    pub(super) fn index(self) -> usize {
        match self {
            Self::Partition(partition) => usize::from(partition),
            Self::Global => usize::from(PARTITIONS),
        }
    }

    pub(super) fn of(topic: &Topic) -> Self {
        match topic {
            Topic::Group(group) => Self::Partition(partition_of(group)),
            Topic::Nodes | Topic::Node(_) => Self::Global,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The hash tag with braces and colon, the prefix of all names in its slot.
    pub(super) fn prefix(&self, tag: HashTag) -> String {
        match tag {
            HashTag::Partition(partition) => format!("{{{}:{partition:02}}}:", self.prefix),
            HashTag::Global => format!("{{{}}}:", self.prefix),
        }
    }

    pub(super) fn key(&self, tag: HashTag, rest: &str) -> String {
        self.prefix(tag) + rest
    }

    /// The prefix of the topics of single nodes.
    pub(super) fn node_topic_prefix(&self) -> String {
        self.key(HashTag::Global, "node:")
    }

    pub(super) fn topic(&self, topic: &Topic) -> String {
        let prefix = self.prefix(HashTag::of(topic));
        match topic {
            Topic::Group(group) => format!("{prefix}t:{group}"),
            Topic::Nodes => format!("{prefix}nodes"),
            Topic::Node(node) => format!("{prefix}node:{node}"),
        }
    }

    /// Keys of a partition and a node that both `update` and `reap` need, in their order.
    pub(super) fn node_keys(&self, partition: u16, node: NodeId) -> [String; 8] {
        let prefix = self.prefix(HashTag::Partition(partition));
        let (expired, owned) = (format!("g:{node}"), format!("l:{node}"));
        ["v", "n", &expired, &owned, "o", "r", "w", "d"].map(|rest| format!("{prefix}{rest}"))
    }

    /// Keys of a group: holders, version, members.
    pub(super) fn group_keys(&self, group: &str) -> [String; 3] {
        let prefix = self.prefix(HashTag::Partition(partition_of(group)));
        ["h", "x", "m"].map(|kind| format!("{prefix}{kind}:{group}"))
    }
}
