//! Every established connection of this node.

use std::collections::hash_map::RandomState;
use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::outbox::Outbox;
use crate::protocol::SocketId;

/// The connections by socket id. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Connections(Arc<DashMap<SocketId, Arc<Outbox>>>);

impl Default for Connections {
    fn default() -> Self {
        Self(Arc::new(DashMap::with_hasher_and_shard_amount(RandomState::new(), super::SHARDS)))
    }
}

impl Connections {
    /// Takes a connection in, or answers `false` when another one has its socket id.
    #[must_use]
    pub fn add(&self, outbox: &Arc<Outbox>) -> bool {
        match self.0.entry(outbox.socket()) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(Arc::clone(outbox));
                true
            }
        }
    }

    /// Forgets a connection.
    pub fn remove(&self, outbox: &Arc<Outbox>) {
        self.0.remove_if(&outbox.socket(), |_, found| Arc::ptr_eq(found, outbox));
    }

    /// Whether a connection has this id.
    #[must_use]
    pub fn has(&self, socket: SocketId) -> bool {
        self.0.contains_key(&socket)
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

    /// Calls `each` with every connection, a shard at a time.
    pub fn each(&self, mut each: impl FnMut(&Arc<Outbox>)) {
        self.0.iter().for_each(|entry| each(&entry));
    }

    /// All connections of this moment.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Outbox>> {
        self.0.iter().map(|entry| Arc::clone(&entry)).collect()
    }
}
