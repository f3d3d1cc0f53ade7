//! What the nodes of a cluster agree on, and the messages between them.
//!
//! Nodes share *groups*: names, which some nodes hold, with members in them. What they stand for (channels and users) is
//! the hub's business. [`truth`] defines what a broker does with groups, one operation at a time; [`seat`] what a node
//! does, whatever comes in whichever order; [`driver`] what a node needs of a broker; [`node`] is one node with its lease.
//! Start there. [`redis`] is a broker, and [`memory`] one for nodes in one process; another one is a file beside them.
//!
//! The broker decides. Nodes tell it edges only: the first and the last connection of a group, and of each member in it.
//! What follows for all nodes (occupied, vacated, added, removed) gets a version in the same step, is told on the group's
//! topic, and is put down for webhooks if anybody wants to hear of it. A node follows these versions, so it notices what it
//! missed, and a connection enters a group when its node has come as far as the answer to its own edge: what it is told
//! on entering and what it hears afterwards fit together.
//!
//! All groups are in one of 64 parts, by name, for ever ([`driver::partition_of`]): a part is one slot of a Redis Cluster,
//! one lock in each node, and one list of records.
//!
//! # What can be relied on
//!
//! - **Order**: all subscribers of a channel, on all nodes, get what is said in it in one order, the broker's.
//! - **At most once**: a publish is answered when the broker has it. A node that was cut off from the broker has missed
//!   what was published meanwhile; it knows that it was, says so (log, metrics, `/ready`), and what is asked of it meanwhile
//!   is refused, not lost.
//! - **Who is there** is exact: each who comes is told once, each who goes is told once. A node that dies is missed within
//!   its lease (12 s) and a beat (4 s, twice that if the one who should clear it away does not). One that was only
//!   paused or cut off for longer comes back under another name, and says again what it has.
//! - **The broker forgets** (`FLUSHALL`, a restart without a disk, a failover): all nodes say again what they have. Who was
//!   there before and is there now is told nothing; who is not is told of four beats later. Receivers of webhooks hear
//!   `channel_occupied` and `member_added` once more, and nothing of who went in between, because what was forgotten
//!   cannot be compared.
//! - **Webhooks**: at least once, under the same id; twice only what was sent, and not yet struck out, when a node died.
//!
//! # What it costs
//!
//! | operation | operations of the broker |
//! | --- | --- |
//! | publish on a channel | 1 `PUBLISH`, in one pipeline with others of that moment; a message to each node that has subscribers |
//! | publish on a cache channel | 1 script |
//! | client event, terminating a user | 1 `PUBLISH` |
//! | first subscriber of a channel on a node | 1 `SUBSCRIBE`, 1 script; on a cache channel 1 more to read what is kept |
//! | last subscriber | 1 script, 1 `UNSUBSCRIBE` |
//! | first or last connection of a member on a node | 1 script; those of one moment and channel share it; 1 more where nobody of the node was in the channel |
//! | every other join and leave | none |
//! | first or last sign-in of a user, or watcher of one, on a node | as subscriber and member |
//! | publish to a user | 1 `PUBLISH`; a message to each node where they are signed in or watched |
//! | change of a subscriber count, where it is told | 1 `PUBLISH` a node and round trip, however many changes |
//! | a connection, where the app's are limited | 1 script, shared by those that wait; 1 a second to give back |
//! | `GET` a channel, its users | 1 script, which reads all members |
//! | `GET` channels | 64 scripts, one a part |
//! | `subscription_count`, `GET` connections | 1 script, 1 `PUBLISH`, 1 answer a node; waits 1 s at most |
//! | a webhook of who came or went | 1 entry written in the script of the edge; read and struck out in batches |
//! | a node, at rest | 9 commands every 4 s, 1 `PUBLISH` every 2 s; with webhooks 128 more every 4 s, for all nodes together |

pub mod driver;
pub mod envelope;
pub mod memory;
pub mod node;
pub mod redis;
pub mod seat;
pub mod truth;

#[cfg(test)]
mod simulation;

/// How this node is one of several.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What is between the nodes; `None`: this one is alone.
    pub broker: Option<Broker>,
    /// Whether what is published while the broker is lost is delivered on this node, and answered as usual. Default off:
    /// it is refused, so that the application tries again.
    pub local_when_broker_lost: bool,
    /// How long what takes; not settings.
    pub timing: node::Timing,
}

/// What is between nodes.
#[derive(Clone, Debug)]
pub enum Broker {
    /// Memory, for nodes in one process.
    Memory(memory::Memory),
    /// Redis.
    Redis(Box<redis::Options>),
}
