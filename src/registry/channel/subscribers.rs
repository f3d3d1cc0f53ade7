//! The subscribers of a channel.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::outbox::Outbox;
use crate::protocol::{SocketId, UserId};

/// Up to this many subscribers, a socket is found by a linear search; above it, in an index.
const LINEAR_SEARCH_MAX: usize = 64;

/// A connection in a channel.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) outbox: Arc<Outbox>,
    /// The number of the first message that the subscriber may receive.
    pub(super) since: u64,
    /// Set when the subscriber leaves, so that a running pass skips it.
    gone: AtomicBool,
    pub(super) member: Option<UserId>,
}

/// One exists for every subscription, so a new field is a decision about memory.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Subscriber>() <= 40);

impl Subscriber {
    pub(super) const fn new(outbox: Arc<Outbox>, since: u64, member: Option<UserId>) -> Self {
        Self { outbox, since, gone: AtomicBool::new(false), member }
    }

    /// After this, no pass writes to the connection for the channel.
    pub(super) fn mark_gone(&self) {
        self.outbox.with_sends_blocked(|| self.gone.store(true, Ordering::Relaxed));
    }

    pub(super) fn is_subscribed(&self) -> bool {
        !self.gone.load(Ordering::Relaxed)
    }
}

/// The subscribers of a channel, in no order.
#[derive(Debug, Default)]
pub(super) struct Subscribers {
    /// Shared with the running pass, so the first change during a pass copies the list.
    list: Arc<Vec<Arc<Subscriber>>>,
    /// Positions in `list`, if it is longer than [`LINEAR_SEARCH_MAX`].
    positions: HashMap<SocketId, usize>,
}

impl Subscribers {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The list as it is now, without a copy.
    pub(super) fn share(&self) -> Arc<Vec<Arc<Subscriber>>> {
        Arc::clone(&self.list)
    }

    pub(super) fn position(&self, socket: SocketId) -> Option<usize> {
        if self.list.len() > LINEAR_SEARCH_MAX {
            return self.positions.get(&socket).copied();
        }
        self.list.iter().position(|subscriber| subscriber.outbox.socket() == socket)
    }

    pub(super) fn add(&mut self, subscriber: Subscriber) {
        let list = Arc::make_mut(&mut self.list);
        list.push(Arc::new(subscriber));
        if list.len() == LINEAR_SEARCH_MAX + 1 {
            let positions = list.iter().enumerate();
            self.positions =
                positions.map(|(position, subscriber)| (subscriber.outbox.socket(), position)).collect();
        } else if let Some(last) = list.last()
            && list.len() > LINEAR_SEARCH_MAX
        {
            self.positions.insert(last.outbox.socket(), list.len() - 1);
        }
    }

    pub(super) fn remove(&mut self, position: usize) -> Arc<Subscriber> {
        let list = Arc::make_mut(&mut self.list);
        let removed = list.swap_remove(position);
        if list.len() > LINEAR_SEARCH_MAX {
            self.positions.remove(&removed.outbox.socket());
            if let Some(moved) = list.get(position) {
                self.positions.insert(moved.outbox.socket(), position);
            }
        } else if !self.positions.is_empty() {
            self.positions = HashMap::new();
        }
        if list.is_empty() {
            self.list = Arc::default();
        } else if list.capacity() > 64 && list.len() < list.capacity() / 4 {
            list.shrink_to(list.len() * 2);
        }
        removed
    }
}
