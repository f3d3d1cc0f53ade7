//! What keys and topics are called.
//!
//! | name | type | what |
//! | --- | --- | --- |
//! | `{prefix:NN}:v` | string | the last version in the partition |
//! | `{prefix:NN}:n` | hash | the number of each node's last operation |
//! | `{prefix:NN}:g:<node>` | string, 1 h | the node was given up |
//! | `{prefix:NN}:l:<node>` | sorted set | what the node has: `g<group>` (score 1: noted), `q<what>` |
//! | `{prefix:NN}:o` | sorted set, all 0 | occupied groups |
//! | `{prefix:NN}:h:<group>` | set | the nodes that hold it |
//! | `{prefix:NN}:x:<group>` | string | its last version |
//! | `{prefix:NN}:m:<group>` | hash | its members: `<version of joining> <number of nodes> <info>` |
//! | `{prefix:NN}:s:<node>:<group>` | sorted set, all 0 | the members that the node has in it |
//! | `{prefix:NN}:k:<group>` | string, as long as it is kept | a number and the message that is kept |
//! | `{prefix:NN}:q:<what>` | hash | the share of each node |
//! | `{prefix:NN}:w` | string, as long as the lease | the reader of the records |
//! | `{prefix:NN}:r` | stream | records, by their versions |
//! | `{prefix:NN}:d` | string | how many records were dropped unread since the last claim |
//! | `{prefix}:leases` | sorted set | when the lease of each node ends |
//! | `{prefix:NN}:t:<group>` | topic | |
//! | `{prefix}:nodes`, `{prefix}:node:<node>` | topic | |
//!
//! What is in braces decides the slot of a Redis Cluster, so that a script finds all that it needs in one.

use crate::cluster::driver::{PARTITIONS, Topic, partition_of};
use crate::cluster::truth::NodeId;

/// What lies in one slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    Partition(u16),
    /// What belongs to no partition.
    Global,
}

impl Place {
    /// How many there are.
    pub(super) const COUNT: usize = PARTITIONS as usize + 1;

    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..PARTITIONS).map(Self::Partition).chain([Self::Global])
    }

    /// Where it stands among [`Place::all`].
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
pub(super) struct Names {
    prefix: String,
}

impl Names {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// What the names of all that lies there begin with.
    pub(super) fn begin(&self, place: Place) -> String {
        match place {
            Place::Partition(partition) => format!("{{{}:{partition:02}}}:", self.prefix),
            Place::Global => format!("{{{}}}:", self.prefix),
        }
    }

    pub(super) fn key(&self, place: Place, rest: &str) -> String {
        self.begin(place) + rest
    }

    /// What the names of nodes' topics begin with.
    pub(super) fn node_topics(&self) -> String {
        self.key(Place::Global, "node:")
    }

    pub(super) fn topic(&self, topic: &Topic) -> String {
        let begin = self.begin(Place::of(topic));
        match topic {
            Topic::Group(group) => format!("{begin}t:{group}"),
            Topic::Nodes => format!("{begin}nodes"),
            Topic::Node(node) => format!("{begin}node:{node}"),
        }
    }

    /// Keys of a partition and a node that `update` and `reap` both need, in their order.
    pub(super) fn stakes(&self, partition: u16, node: NodeId) -> [String; 8] {
        let begin = self.begin(Place::Partition(partition));
        let (given_up, listed) = (format!("g:{node}"), format!("l:{node}"));
        ["v", "n", &given_up, &listed, "o", "r", "w", "d"].map(|rest| format!("{begin}{rest}"))
    }

    /// Keys of a group: holders, version, members.
    pub(super) fn group(&self, group: &str) -> [String; 3] {
        let begin = self.begin(Place::Partition(partition_of(group)));
        ["h", "x", "m"].map(|kind| format!("{begin}{kind}:{group}"))
    }
}
