//! Which channels keep an event for later subscribers, in the order in which they were published, and how many bytes
//! these have.
//!
//! Both are bounded, for each app and for the node: for a new event, the events of the same app that were published
//! least recently are forgotten, so that what is news stays and no app costs another one anything.
//!
//! Locked while a channel is, and never the other way round: what is forgotten is taken out of its channel later, by
//! [`super::Registry::forget`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::channel::Channel;
use crate::limits::Limit;

/// The place of an event among those that are kept: later ones have higher numbers.
pub(super) type Turn = u64;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Kept(Mutex<State>);

#[derive(Debug)]
struct State {
    apps: HashMap<Arc<str>, OfApp>,
    bytes: usize,
    bytes_max: usize,
    next: Turn,
    /// Events that are counted no more, and have yet to be taken out of their channels.
    forgotten: Vec<(Arc<Channel>, Turn)>,
}

#[derive(Debug, Default)]
struct OfApp {
    events: BTreeMap<Turn, Event>,
    bytes: usize,
}

#[derive(Debug)]
struct Event {
    channel: Arc<Channel>,
    bytes: usize,
    expires: Duration,
}

impl State {
    fn remove(&mut self, app: &str, turn: Turn) -> Option<Event> {
        let of_app = self.apps.get_mut(app)?;
        let event = of_app.events.remove(&turn)?;
        of_app.bytes -= event.bytes;
        self.bytes -= event.bytes;
        if of_app.events.is_empty() {
            self.apps.remove(app);
        }
        Some(event)
    }

    /// The limit that the events of an app are beyond.
    fn beyond(&self, app: &str, bytes_max: usize) -> Option<Limit> {
        let of_app = self.apps.get(app)?;
        if of_app.bytes > bytes_max {
            return Some(Limit::CachedBytes);
        }
        (self.bytes > self.bytes_max).then_some(Limit::NodeCachedBytes)
    }

    fn first(&self, app: &str) -> Option<(Turn, &Event)> {
        self.apps.get(app)?.events.first_key_value().map(|(turn, event)| (*turn, event))
    }
}

impl Kept {
    pub(super) fn new(bytes_max: usize) -> Self {
        let (apps, forgotten) = (HashMap::new(), Vec::new());
        Self(Mutex::new(State { apps, bytes: 0, bytes_max, next: 1, forgotten }))
    }

    /// From now on all apps together may have so many bytes.
    pub(super) fn limit(&self, bytes_max: usize) {
        self.0.lock().bytes_max = bytes_max;
    }

    /// Counts an event of `bytes` that a channel keeps instead of the one before, where its app may have `bytes_max`.
    /// Its turn, if it is kept, and the limit for which it is not, or others are forgotten.
    pub(super) fn keep(
        &self,
        channel: &Arc<Channel>,
        before: Option<Turn>,
        bytes: usize,
        expires: Duration,
        bytes_max: usize,
    ) -> (Option<Turn>, Option<Limit>) {
        let app = &channel.key().app;
        let mut state = self.0.lock();
        if let Some(before) = before {
            state.remove(app, before);
        }
        let turn = state.next;
        state.next += 1;
        let of_app = state.apps.entry(Arc::clone(app)).or_default();
        of_app.events.insert(turn, Event { channel: Arc::clone(channel), bytes, expires });
        of_app.bytes += bytes;
        state.bytes += bytes;
        let limit = state.beyond(app, bytes_max);
        while state.beyond(app, bytes_max).is_some() {
            let Some((oldest, _)) = state.first(app) else { break };
            let Some(event) = state.remove(app, oldest) else { break };
            if oldest == turn {
                return (None, limit);
            }
            state.forgotten.push((event.channel, oldest));
        }
        (Some(turn), limit)
    }

    /// Counts an event no more that its channel has given up.
    pub(super) fn remove(&self, channel: &Channel, turn: Turn) {
        self.0.lock().remove(&channel.key().app, turn);
    }

    /// Counts events no more that have expired at `now`, `most` at most.
    pub(super) fn expire(&self, now: Duration, most: usize) {
        let mut state = self.0.lock();
        let apps: Vec<Arc<str>> = state.apps.keys().cloned().collect();
        for app in apps {
            while state.forgotten.len() < most
                && let Some((turn, event)) = state.first(&app)
                && event.expires <= now
            {
                let channel = Arc::clone(&event.channel);
                state.remove(&app, turn);
                state.forgotten.push((channel, turn));
            }
        }
    }

    /// Those that are counted no more, each once.
    pub(super) fn take_forgotten(&self) -> Vec<(Arc<Channel>, Turn)> {
        std::mem::take(&mut self.0.lock().forgotten)
    }

    /// How many events there are, and their bytes.
    pub(super) fn len(&self) -> (usize, usize) {
        let state = self.0.lock();
        (state.apps.values().map(|of_app| of_app.events.len()).sum(), state.bytes)
    }
}
