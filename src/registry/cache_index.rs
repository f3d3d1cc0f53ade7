//! The index of all cached events, in order of publication, with their sizes.
//!
//! The bytes are limited for each app and for the node. A new event evicts the least recently published events of its own
//! app, so new events are cached and no app evicts events of another one.
//!
//! The index is locked while a channel is locked, never the other way round. So an evicted event is removed from its
//! channel later, by [`super::Registry::evict`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::channel::Channel;
use crate::limits::Limit;

/// The position of an event in the order of publication.
pub(super) type Sequence = u64;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct CacheIndex(Mutex<State>);

#[derive(Debug)]
struct State {
    apps: HashMap<Arc<str>, AppEvents>,
    bytes: usize,
    bytes_max: usize,
    next: Sequence,
    /// Evicted events that their channels still hold.
    evicted: Vec<(Arc<Channel>, Sequence)>,
}

#[derive(Debug, Default)]
struct AppEvents {
    events: BTreeMap<Sequence, Event>,
    bytes: usize,
}

#[derive(Debug)]
struct Event {
    channel: Arc<Channel>,
    bytes: usize,
    expires: Duration,
}

impl State {
    fn remove(&mut self, app: &str, sequence: Sequence) -> Option<Event> {
        let of_app = self.apps.get_mut(app)?;
        let event = of_app.events.remove(&sequence)?;
        of_app.bytes -= event.bytes;
        self.bytes -= event.bytes;
        if of_app.events.is_empty() {
            self.apps.remove(app);
        }
        Some(event)
    }

    /// The limit that the events of an app exceed.
    fn exceeded_limit(&self, app: &str, bytes_max: usize) -> Option<Limit> {
        let of_app = self.apps.get(app)?;
        if of_app.bytes > bytes_max {
            return Some(Limit::CachedBytes);
        }
        (self.bytes > self.bytes_max).then_some(Limit::NodeCachedBytes)
    }

    fn oldest(&self, app: &str) -> Option<(Sequence, &Event)> {
        self.apps.get(app)?.events.first_key_value().map(|(sequence, event)| (*sequence, event))
    }
}

impl CacheIndex {
    pub(super) fn new(bytes_max: usize) -> Self {
        let (apps, evicted) = (HashMap::new(), Vec::new());
        Self(Mutex::new(State { apps, bytes: 0, bytes_max, next: 1, evicted }))
    }

    /// Limits the bytes of the events of all apps.
    pub(super) fn limit(&self, bytes_max: usize) {
        self.0.lock().bytes_max = bytes_max;
    }

    /// Inserts an event that replaces the `previous` one of its channel; the app may have `bytes_max`. Returns the sequence
    /// of the event, if it is cached, and the limit because of which it is not, or others were evicted.
    pub(super) fn insert(
        &self,
        channel: &Arc<Channel>,
        previous: Option<Sequence>,
        bytes: usize,
        expires: Duration,
        bytes_max: usize,
    ) -> (Option<Sequence>, Option<Limit>) {
        let app = &channel.key().app;
        let mut state = self.0.lock();
        if let Some(previous) = previous {
            state.remove(app, previous);
        }
        let sequence = state.next;
        state.next += 1;
        let of_app = state.apps.entry(Arc::clone(app)).or_default();
        of_app.events.insert(sequence, Event { channel: Arc::clone(channel), bytes, expires });
        of_app.bytes += bytes;
        state.bytes += bytes;
        let limit = state.exceeded_limit(app, bytes_max);
        while state.exceeded_limit(app, bytes_max).is_some() {
            let Some((oldest, _)) = state.oldest(app) else { break };
            let Some(event) = state.remove(app, oldest) else { break };
            if oldest == sequence {
                return (None, limit);
            }
            state.evicted.push((event.channel, oldest));
        }
        (Some(sequence), limit)
    }

    /// Removes an event that its channel has dropped.
    pub(super) fn remove(&self, channel: &Channel, sequence: Sequence) {
        self.0.lock().remove(&channel.key().app, sequence);
    }

    /// Evicts events that have expired at `now`, until `count_max` are evicted.
    pub(super) fn expire(&self, now: Duration, count_max: usize) {
        let mut state = self.0.lock();
        let apps: Vec<Arc<str>> = state.apps.keys().cloned().collect();
        for app in apps {
            while state.evicted.len() < count_max
                && let Some((sequence, event)) = state.oldest(&app)
                && event.expires <= now
            {
                let channel = Arc::clone(&event.channel);
                state.remove(&app, sequence);
                state.evicted.push((channel, sequence));
            }
        }
    }

    /// The events that were evicted since the last call.
    pub(super) fn take_evicted(&self) -> Vec<(Arc<Channel>, Sequence)> {
        std::mem::take(&mut self.0.lock().evicted)
    }

    /// The number of events, and their bytes.
    pub(super) fn totals(&self) -> (usize, usize) {
        let state = self.0.lock();
        (state.apps.values().map(|of_app| of_app.events.len()).sum(), state.bytes)
    }
}
