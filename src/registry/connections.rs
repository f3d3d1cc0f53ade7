//! Every established connection of this node.

use std::sync::Arc;

use super::shards::{SHARDS, Shards};
use crate::outbox::Outbox;
use crate::protocol::SocketId;

/// The connections by socket id. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Shards<SocketId, Arc<Outbox>>>);

impl Connections {
    /// See [`Connections::each`].
    pub const TURNS: usize = SHARDS;

    /// Takes a connection in, or answers `false` when another one has its socket id.
    #[must_use]
    pub fn add(&self, outbox: &Arc<Outbox>) -> bool {
        self.0.insert(outbox.socket(), Arc::clone(outbox))
    }

    /// Forgets a connection.
    pub fn remove(&self, outbox: &Arc<Outbox>) {
        self.0.remove_if(&outbox.socket(), |found| Arc::ptr_eq(found, outbox));
    }

    /// Whether a connection has this id.
    #[must_use]
    pub fn has(&self, socket: SocketId) -> bool {
        self.0.contains(&socket)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Calls `each` with every connection, in so many turns: this is the one with this number. Let other work have its
    /// turn in between.
    pub fn each(&self, turn: usize, each: impl FnMut(&Arc<Outbox>)) {
        self.0.each_of_shard(turn, each);
    }

    /// All connections, some at a time: each that is there all the while is among them, once. Let other work have its
    /// turn in between.
    pub fn in_turns(&self) -> impl Iterator<Item = Vec<Arc<Outbox>>> {
        let all = Arc::clone(&self.0);
        (0..).map_while(move |shard| all.of_shard(shard, |_| true))
    }
}
