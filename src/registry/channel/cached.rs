//! The event that a cache channel keeps for later subscribers.

use std::sync::Arc;
use std::time::Duration;

use super::{Channel, State};
use crate::limits::Limit;
use crate::protocol::wire::Frame;
use crate::registry::cache_index::Sequence;
use crate::registry::{CacheLimits, CachedFrame, Registry};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Cached {
    pub(super) frame: Frame,
    /// The position of the event in the cache index.
    pub(super) sequence: Sequence,
    /// In a cluster, the number of the event: later events have higher numbers.
    pub(super) number: u64,
    pub(super) expires: Duration,
}

impl State {
    /// The cached event, if it has not expired.
    pub(super) fn cached(&self, now: Duration) -> Option<&Cached> {
        self.cached.as_deref().filter(|cached| cached.expires > now)
    }

    fn clear_cache(&mut self) {
        self.cached = None;
        self.release_permit_if_unused();
    }
}

impl Channel {
    /// See [`Registry::cache`]. `None` if the channel was removed.
    pub(in crate::registry) fn cache(
        self: &Arc<Self>,
        registry: &Registry,
        event: CachedFrame,
        cache: CacheLimits<'_>,
    ) -> Option<Option<Limit>> {
        let mut state = self.state.lock();
        if state.removed {
            return None;
        }
        let is_newer = state.cached.as_ref().is_none_or(|cached| cached.number < event.number);
        if !state.subscribers.is_empty() || !is_newer {
            return Some(None);
        }
        if !state.acquire_permit(cache.permits) {
            return Some(Some(Limit::AppChannels));
        }
        Some(self.store(&mut state, registry, event, cache.bytes_max))
    }

    /// Replaces the cached event. Returns the limit that was reached: then other events were evicted, or `event` is too
    /// long to be cached. The previous event is dropped in any case, because it is outdated.
    pub(super) fn store(
        self: &Arc<Self>,
        state: &mut State,
        registry: &Registry,
        event: CachedFrame,
        bytes_max: usize,
    ) -> Option<Limit> {
        let CachedFrame { frame, number, expires } = event;
        let previous = state.cached.as_ref().map(|cached| cached.sequence);
        let bytes = frame.bytes().len();
        let (sequence, limit) = registry.0.cache_index.insert(self, previous, bytes, expires, bytes_max);
        match sequence {
            Some(sequence) => state.cached = Some(Box::new(Cached { frame, sequence, number, expires })),
            None => state.clear_cache(),
        }
        limit
    }

    /// Drops the cached event, if it is still the one with this sequence.
    pub(in crate::registry) fn evict(&self, sequence: Sequence) {
        let mut state = self.state.lock();
        if state.cached.as_ref().is_some_and(|cached| cached.sequence == sequence) {
            state.clear_cache();
        }
    }
}
