//! Debouncing of falling edges (`vacated`, `removed`, `offline`). Pure: time is an argument.
//!
//! Every page load closes one connection and opens another. A falling edge is held for the debounce time; if the rising
//! edge of the same channel, member or user follows in time, both are dropped. The debouncer does not track what is
//! present: events arrive in order, so whatever rises was absent before.
//!
//! Cluster records may be read long after they happened. A falling edge is held from the moment it is read, because its
//! rising edge may not have been read yet. The times of the two records decide whether they debounce each other.
//!
//! Source: protocol.md §9.3.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::ack::Record;
use super::event::Event;
use crate::protocol::{ChannelName, UserId};

/// The minimum time between two `cache_miss` events of one channel.
const CACHE_MISS_INTERVAL: Duration = Duration::from_secs(10);

/// A channel, member or user whose falling edge is held.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum HeldKey {
    Channel(ChannelName),
    Member(ChannelName, UserId),
    User(UserId),
}

impl HeldKey {
    /// The falling edge.
    const fn event(&self) -> Event<'_> {
        match self {
            Self::Channel(channel) => Event::ChannelVacated(channel),
            Self::Member(channel, user) => Event::MemberRemoved(channel, user),
            Self::User(user) => Event::UserOffline(user),
        }
    }

    const fn channel(&self) -> Option<&ChannelName> {
        match self {
            Self::Channel(channel) | Self::Member(channel, _) => Some(channel),
            Self::User(_) => None,
        }
    }
}

/// A falling edge that may still be debounced.
#[derive(Debug)]
struct HeldEvent {
    /// When it is emitted.
    due: Duration,
    key: HeldKey,
    record: Option<Record>,
}

/// What the debouncer did with an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// Emitted at once.
    Emitted,
    /// Held until it is due or debounced.
    Held,
    /// Dropped together with the falling edge that was held.
    Debounced,
    /// Dropped: the same `cache_miss` was emitted recently.
    Suppressed,
    /// Left to the other nodes of the cluster.
    Nacked,
}

/// The held events of one shard.
#[derive(Debug)]
pub(super) struct Debouncer {
    hold: Duration,
    /// Nothing is held any more, and records are nacked. Set when the server shuts down or the app is removed.
    is_flushed: bool,
    /// Positions in `held`.
    positions: HashMap<HeldKey, u64>,
    /// Held events, in the order in which they arrived.
    held: BTreeMap<u64, HeldEvent>,
    next_position: u64,
    /// Channels whose `cache_miss` was emitted recently.
    recent_misses: HashSet<ChannelName>,
    /// When each of those expires.
    miss_expirations: VecDeque<(Duration, ChannelName)>,
}

impl Debouncer {
    /// An empty debouncer. With a `hold` of zero nothing is held.
    pub(super) fn new(hold: Duration) -> Self {
        Self {
            hold,
            is_flushed: false,
            positions: HashMap::new(),
            held: BTreeMap::new(),
            next_position: 0,
            recent_misses: HashSet::new(),
            miss_expirations: VecDeque::new(),
        }
    }

    /// Decides about an event, and calls `emit` for each event that is due now: the event itself, and held events that
    /// must precede it. Events of one channel must be pushed in the order in which they happened.
    pub(super) fn push(
        &mut self,
        event: &Event<'_>,
        record: Option<Record>,
        now: Duration,
        mut emit: impl FnMut(&Event<'_>, Option<Record>),
    ) -> Outcome {
        if self.is_flushed && record.is_some() {
            return Outcome::Nacked;
        }
        let (is_falling, key) = match *event {
            Event::ChannelVacated(channel) => (true, HeldKey::Channel(channel.clone())),
            Event::MemberRemoved(channel, user) => (true, HeldKey::Member(channel.clone(), user.clone())),
            Event::UserOffline(user) => (true, HeldKey::User(user.clone())),
            Event::ChannelOccupied(channel) => (false, HeldKey::Channel(channel.clone())),
            Event::MemberAdded(channel, user) => (false, HeldKey::Member(channel.clone(), user.clone())),
            Event::UserOnline(user) => (false, HeldKey::User(user.clone())),
            Event::CacheMiss(channel) if !self.is_new_miss(channel, now) => return Outcome::Suppressed,
            Event::CacheMiss(_) | Event::ClientEvent { .. } | Event::SubscriptionCount(..) => {
                emit(event, record);
                return Outcome::Emitted;
            }
        };
        if is_falling && !self.is_flushed && !self.hold.is_zero() {
            self.hold(key, record, now);
            return Outcome::Held;
        }
        if !is_falling && let Some(&position) = self.positions.get(&key) {
            if self.debounces(record.as_ref(), &self.held[&position]) {
                // The falling edge first: a reader that has to read one of the two again must not read the rising edge
                // alone.
                let halves = [self.remove(position).record, record];
                halves.into_iter().flatten().for_each(|record| record.ack_token.ack());
                return Outcome::Debounced;
            }
            self.emit_through(position, &mut emit);
        }
        emit(event, record);
        Outcome::Emitted
    }

    /// Holds a falling edge. It replaces an older one of the same key, whose rising edge was not read.
    fn hold(&mut self, key: HeldKey, record: Option<Record>, now: Duration) {
        if let Some(&older) = self.positions.get(&key)
            && let Some(record) = self.remove(older).record
        {
            record.ack_token.ack();
        }
        self.positions.insert(key.clone(), self.next_position);
        self.held.insert(self.next_position, HeldEvent { due: now + self.hold, key, record });
        self.next_position += 1;
    }

    /// Whether a rising edge came in time to debounce `held`.
    fn debounces(&self, rising: Option<&Record>, held: &HeldEvent) -> bool {
        match (&held.record, rising) {
            // Another node decides about a record whose token is cancelled.
            (Some(falling), _) if falling.ack_token.is_cancelled() => false,
            (Some(falling), Some(rising)) => {
                Duration::from_millis(rising.time_ms.saturating_sub(falling.time_ms)) < self.hold
            }
            (Some(_) | None, Some(_) | None) => true,
        }
    }

    fn remove(&mut self, position: u64) -> HeldEvent {
        let held = self.held.remove(&position).expect("every position has a held event");
        self.positions.remove(&held.key);
        held
    }

    /// Emits the event at `position`, and before it all older held events of the same channel. Scans all held events;
    /// this only happens with records that are read long after they happened.
    fn emit_through(&mut self, position: u64, emit: &mut impl FnMut(&Event<'_>, Option<Record>)) {
        let channel = self.held[&position].key.channel();
        let is_of_channel = |held: &HeldEvent| channel.is_some() && held.key.channel() == channel;
        let before = self.held.range(..position).filter(|(_, held)| is_of_channel(held));
        let positions: Vec<_> = before.map(|(position, _)| *position).chain([position]).collect();
        for position in positions {
            let HeldEvent { key, record, .. } = self.remove(position);
            emit(&key.event(), record);
        }
    }

    /// Whether no `cache_miss` of `channel` was emitted recently.
    fn is_new_miss(&mut self, channel: &ChannelName, now: Duration) -> bool {
        while let Some((_, old)) = self.miss_expirations.pop_front_if(|(until, _)| *until <= now) {
            self.recent_misses.remove(&old);
        }
        let is_new = self.recent_misses.insert(channel.clone());
        if is_new {
            self.miss_expirations.push_back((now + CACHE_MISS_INTERVAL, channel.clone()));
        }
        is_new
    }

    /// When [`Debouncer::emit_due`] has to be called.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.held.first_key_value().map(|(_, held)| held.due)
    }

    /// Emits the events that are due, in the order in which they arrived.
    pub(super) fn emit_due(&mut self, now: Duration, mut emit: impl FnMut(&Event<'_>, Option<Record>)) {
        while let Some(first) = self.held.first_entry()
            && first.get().due <= now
        {
            let HeldEvent { key, record, .. } = first.remove();
            self.positions.remove(&key);
            emit(&key.event(), record);
        }
    }

    /// Emits all held events and holds no further ones. Later records are nacked, because other nodes debounce them.
    pub(super) fn flush(&mut self, emit: impl FnMut(&Event<'_>, Option<Record>)) {
        self.is_flushed = true;
        self.emit_due(Duration::MAX, emit);
    }
}

#[cfg(test)]
mod tests;
