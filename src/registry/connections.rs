//! The established connections of this node.

use std::sync::Arc;

use super::shards::{SHARDS, Shards};
use crate::outbox::Outbox;
use crate::protocol::SocketId;

/// The connections by socket id. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<Shards<SocketId, Arc<Outbox>>>);

impl Connections {
    /// The number of shards: see [`Connections::for_each_in_shard`].
    pub const SHARDS: usize = SHARDS;

    /// Adds a connection. Returns `false` if its socket id is in use.
    #[must_use]
    pub fn add(&self, outbox: &Arc<Outbox>) -> bool {
        self.0.insert(outbox.socket(), Arc::clone(outbox))
    }

    /// Removes a connection.
    pub fn remove(&self, outbox: &Arc<Outbox>) {
        self.0.remove_if(&outbox.socket(), |found| Arc::ptr_eq(found, outbox));
    }

    /// Whether a connection has this id.
    #[must_use]
    pub fn has(&self, socket: SocketId) -> bool {
        self.0.contains(&socket)
    }

    /// The number of connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no connections.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Calls `each` for the connections of one shard, from 0 to [`Connections::SHARDS`]. Let other tasks run between shards.
    pub fn for_each_in_shard(&self, shard: usize, each: impl FnMut(&Arc<Outbox>)) {
        self.0.for_each_in_shard(shard, each);
    }

    /// All connections in chunks. A connection that exists during the whole iteration is returned once. Let other tasks run
    /// between chunks.
    pub fn chunks(&self) -> impl Iterator<Item = Vec<Arc<Outbox>>> {
        let all = Arc::clone(&self.0);
        (0..).map_while(move |shard| all.collect_shard(shard, |_| true))
    }
}
