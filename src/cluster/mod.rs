//! The shared state of several nodes, and the messages between them.
//!
//! Nodes share *groups*: names that nodes hold, with members in them ([`group`]). The hub gives them a meaning:
//! channels and users. A node needs two things. A [`broker::Broker`] passes messages on: publish, subscribe. A
//! [`coordinator::Coordinator`] keeps the shared state: groups, leases, cached events, records, quotas. An engine is
//! both:
//! [`redis`], and [`memory`] for nodes in one process.
//!
//! [`node`] is one node of the cluster; start there. [`local_groups`] is its part of the protocol of groups as a pure
//! state machine, [`shared_state`] the coordinator's part, and [`envelope`] the format of messages.
//!
//! The coordinator decides. Nodes send it edges only: the first and the last connection of a group, and of each member
//! in it. What changes for all nodes (occupied, vacated, added, removed) is a transition: in one step it gets a
//! version, is published on the group's topic, and is stored as a record if webhooks report it. A node follows the
//! versions, so it notices a gap. A connection is admitted to a group when its node has reached the version in the
//! reply to its own edge: the members that it is given and the transitions afterwards fit together.
//!
//! Each group belongs to one of 64 partitions, by its name and for ever ([`coordinator::partition_of`]): a partition is
//! one slot of a Redis Cluster, one lock in each node, and one list of records.
//!
//! # Guarantees
//!
//! - **Order**: all subscribers of a channel, on all nodes, get its messages in one order, the broker's.
//! - **At most once**: a publish is answered when the broker has it. A node that was disconnected from the broker has
//!   missed the messages of that time; it knows that and reports it (log, metrics, `/ready`), and rejects requests
//!   meanwhile.
//! - **Presence** is exact: each member is added once and removed once. A node that dies is declared dead within its
//!   lease (12 s) and a heartbeat (4 s; twice that if the node that should reap it does not). A node that was only
//!   paused or disconnected for longer rejoins under a new id, and registers again what it has.
//! - **A broker that loses its state** (`FLUSHALL`, a restart without a disk, a failover): all nodes register again.
//!   Members that were there before and still are cause no events; the others are removed four heartbeats later.
//!   Webhooks report `channel_occupied` and `member_added` once more, and nothing of members that left in between,
//!   because the lost state cannot be compared.
//! - **Webhooks**: at least once, under the same id; twice only if a node dies after it sent one and before it
//!   acknowledged the record.
//!
//! # Costs
//!
//! | operation | operations of the broker |
//! | --- | --- |
//! | publish on a channel | 1 `PUBLISH`, in one pipeline with others of the same time; a message to each node that has subscribers |
//! | publish on a cache channel | 1 script |
//! | client event, terminating a user | 1 `PUBLISH` |
//! | first subscriber of a channel on a node | 1 `SUBSCRIBE`, 1 script; on a cache channel 1 more to read the cached event |
//! | last subscriber | 1 script, 1 `UNSUBSCRIBE` |
//! | first or last connection of a member on a node | 1 script, shared by those of a channel at the same time; 1 more where nobody of the node was in the channel |
//! | every other join and leave | none |
//! | first or last sign-in of a user, or watcher of one, on a node | as subscriber and member |
//! | publish to a user | 1 `PUBLISH`; a message to each node where the user is signed in or watched |
//! | change of a subscriber count, where the app has them | 1 `PUBLISH` a node and round trip, however many changes |
//! | a connection, where the app's are limited | 1 script, shared by those that wait; 1 a second to release |
//! | `GET` a channel, its users | 1 script, which reads all members |
//! | `GET` channels | 64 scripts, one a partition |
//! | `subscription_count`, `GET` connections | 1 script, 1 `PUBLISH`, 1 reply a node; waits 1 s at most |
//! | a webhook of presence or occupancy | 1 record, written in the script of the edge; read and acknowledged in batches |
//! | a node, at rest | 9 commands every 4 s, 1 `PUBLISH` every 2 s; with webhooks 128 more every 4 s, for all nodes together |

pub mod broker;
pub mod coordinator;
pub mod envelope;
pub mod group;
pub mod local_groups;
pub mod memory;
pub mod node;
pub mod redis;
pub mod shared_state;

#[cfg(test)]
mod simulation;

/// How this node works together with others.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The engine between the nodes; `None`: this node is alone.
    pub engine: Option<Engine>,
    /// Whether events are delivered on this node, and answered as usual, while the broker is unavailable. Default off:
    /// they are rejected, so that the application retries.
    pub local_when_broker_lost: bool,
    /// Intervals and timeouts; not settings.
    pub timing: node::Timing,
}

/// The engine between nodes: broker and coordinator in one.
#[derive(Clone, Debug)]
pub enum Engine {
    /// Memory, for nodes in one process.
    Memory(memory::MemoryServer),
    /// Redis.
    Redis(Box<redis::Options>),
}
