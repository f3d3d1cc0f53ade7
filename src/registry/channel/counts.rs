//! The subscription count, which subscribers receive when it changes. Source: protocol.md §4.9.

use std::sync::Arc;
use std::time::Duration;

use super::{Channel, State};
use crate::protocol::message::ServerMessage;
use crate::registry::{ChannelKey, Drive, Registry};

/// Up to this many subscribers, every change of the count is sent immediately; above it, at most once per
/// [`COUNT_INTERVAL`].
const COUNT_IMMEDIATE_MAX: usize = 100;
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Subscribers on other nodes.
    pub(super) remote: usize,
    last_sent: Option<Duration>,
    /// Whether the last change has not been sent.
    due: bool,
    /// Whether the channel is in the registry's list of counts that are due.
    listed: bool,
}

impl Counts {
    fn sent_recently(&self, now: Duration) -> bool {
        self.last_sent.is_some_and(|sent| now.saturating_sub(sent) < COUNT_INTERVAL)
    }
}

impl State {
    /// Subscribers on all nodes.
    fn count(&self) -> usize {
        self.subscribers.len() + self.counts.remote
    }
}

impl Channel {
    /// See [`Registry::set_remote_count`].
    pub(in crate::registry) fn set_remote_count(
        self: &Arc<Self>,
        registry: &Registry,
        count: usize,
        now: Duration,
    ) -> (Option<usize>, Option<Drive>) {
        let mut state = self.state.lock();
        if state.counts.remote == count {
            return (None, None);
        }
        state.counts.remote = count;
        let count = self.count_changed(&mut state, registry, now);
        (count, self.start(registry, &mut state))
    }

    /// Enqueues the count, or lists it as due. Returns the count if it was enqueued.
    pub(super) fn count_changed(
        self: &Arc<Self>,
        state: &mut State,
        registry: &Registry,
        now: Duration,
    ) -> Option<usize> {
        if !self.name().has_subscription_count() || state.subscribers.is_empty() {
            return None;
        }
        if state.count() <= COUNT_IMMEDIATE_MAX || !state.counts.sent_recently(now) {
            return Some(self.enqueue_count(state, now));
        }
        state.counts.due = true;
        if !state.counts.listed {
            state.counts.listed = true;
            registry.0.counts_due.lock().push(Arc::clone(self));
        }
        None
    }

    fn enqueue_count(&self, state: &mut State, now: Duration) -> usize {
        state.counts.last_sent = Some(now);
        state.counts.due = false;
        let count = state.count();
        state.enqueue(&ServerMessage::SubscriptionCount { channel: self.name(), count });
        count
    }

    /// See [`CountDue::send`].
    fn send_count_if_due(
        self: &Arc<Self>,
        registry: &Registry,
        now: Duration,
    ) -> (Option<usize>, Option<Drive>) {
        let mut state = self.state.lock();
        let mut count = None;
        if state.counts.due && !state.subscribers.is_empty() {
            if state.counts.sent_recently(now) {
                registry.0.counts_due.lock().push(Arc::clone(self));
                return (None, None);
            }
            count = Some(self.enqueue_count(&mut state, now));
        }
        state.counts.due = false;
        state.counts.listed = false;
        (count, self.start(registry, &mut state))
    }
}

/// A channel whose count may be due. If it is dropped early, by a panic or with its task, the channel is listed again.
#[derive(Debug)]
#[must_use = "the count stays due until it is sent"]
pub struct CountDue {
    registry: Registry,
    channel: Arc<Channel>,
    /// Whether the count has been sent or listed again.
    is_over: bool,
}

impl CountDue {
    pub(in crate::registry) fn new(registry: &Registry, channel: Arc<Channel>) -> Self {
        Self { registry: registry.clone(), channel, is_over: false }
    }

    /// The channel.
    #[must_use]
    pub fn key(&self) -> &ChannelKey {
        self.channel.key()
    }

    /// Sends the count if it is still due, or lists it again if the last one is too recent. Returns the count that was
    /// sent.
    pub fn send(mut self, now: Duration) -> (Option<usize>, Option<Drive>) {
        let sent = self.channel.send_count_if_due(&self.registry, now);
        self.is_over = true;
        sent
    }
}

impl Drop for CountDue {
    fn drop(&mut self) {
        if !self.is_over {
            self.registry.0.counts_due.lock().push(Arc::clone(&self.channel));
        }
    }
}
