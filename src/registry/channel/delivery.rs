//! Delivery: the driver of a channel writes its batches to the subscribers.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::batch::{Batch, Part};
use super::subscribers::Subscriber;
use super::{Channel, State};
use crate::registry::Registry;

/// The publisher itself delivers to a channel with up to this many subscribers.
const INLINE_SUBSCRIBERS_MAX: usize = 32;

/// Subscribers written to before other tasks run.
const SUBSCRIBERS_PER_TURN: usize = 64;

/// The duty to deliver the pending messages of a channel. The owner runs passes until none is left; nobody else delivers
/// to the channel in the meantime. If a drive is dropped early, by a panic or with its task, the next publisher or
/// [`Registry::orphaned`] starts another one.
#[derive(Debug)]
#[must_use = "pending messages are not delivered until the drive runs"]
pub struct Drive {
    registry: Registry,
    channel: Arc<Channel>,
    /// Whether the channel was small enough for inline delivery when the drive started.
    is_small: bool,
    /// Whether the drive has ended.
    is_over: bool,
}

impl Drive {
    pub(super) fn new(registry: &Registry, channel: &Arc<Channel>, subscribers: usize) -> Self {
        let is_small = subscribers <= INLINE_SUBSCRIBERS_MAX;
        Self { registry: registry.clone(), channel: Arc::clone(channel), is_small, is_over: false }
    }

    /// The next pass over the subscribers. `None` ends the drive.
    pub fn next_pass(&mut self) -> Option<Pass> {
        let channel = Arc::clone(&self.channel);
        let mut state = channel.state.lock();
        if let Some(batch) = state.queue.next_batch() {
            return Some(Pass { batch, subscribers: state.subscribers.share(), delivered: 0 });
        }
        self.ended(state);
        None
    }

    /// Runs one pass over a small channel and returns the number of subscribers.
    ///
    /// # Errors
    /// Returns the drive if the channel is large, or if more messages are pending afterwards.
    pub fn deliver_inline(mut self) -> Result<usize, Self> {
        if !self.is_small {
            return Err(self);
        }
        let Some(mut pass) = self.next_pass() else { return Ok(0) };
        while pass.deliver_next() {}
        let channel = Arc::clone(&self.channel);
        let mut state = channel.state.lock();
        if !state.queue.release_driver_if_empty() {
            drop(state);
            return Err(self);
        }
        self.ended(state);
        Ok(pass.delivered)
    }

    /// Removes the channel if its last subscriber left during the drive. The drive has ended, so another one may have
    /// started: only `state`, which is still locked, is known.
    fn ended(&mut self, state: MutexGuard<'_, State>) {
        self.is_over = true;
        let vacated = state.subscribers.is_empty();
        drop(state);
        if vacated {
            self.registry.remove_if_unused(&self.channel);
        }
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        self.is_over = true;
        let mut state = self.channel.state.lock();
        if !state.queue.release_driver_if_empty() {
            state.queue.release_driver();
            drop(state);
            self.registry.0.orphaned.lock().push(Arc::clone(&self.channel));
        }
    }
}

/// The delivery of one batch to the subscribers at the time at which it was taken from the queue.
#[derive(Debug)]
pub struct Pass {
    batch: Batch,
    subscribers: Arc<Vec<Arc<Subscriber>>>,
    delivered: usize,
}

impl Pass {
    /// Writes to the next 64 subscribers. Returns whether there are more; let other tasks run in between.
    pub fn deliver_next(&mut self) -> bool {
        let end = self.subscribers.len().min(self.delivered + SUBSCRIBERS_PER_TURN);
        for subscriber in &self.subscribers[self.delivered..end] {
            let is_subscribed = || subscriber.is_subscribed();
            match self.batch.part_for(subscriber) {
                Part::All(messages) => subscriber.outbox.send_shared(messages, is_subscribed),
                Part::Some(messages) => subscriber.outbox.send_if(&messages, is_subscribed),
                Part::None => {}
            }
        }
        self.delivered = end;
        end < self.subscribers.len()
    }
}
