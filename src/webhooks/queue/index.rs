//! The indexes of a queue: its events by subject and by age, and its subjects by their state.

use std::collections::{BTreeMap, HashMap};

use tokio::time::Instant;

use super::super::event::{Class, Edge};
use super::{Queue, QueuedEvent};

/// The state of a channel or user.
#[derive(Debug, Default)]
pub(super) struct SubjectState {
    /// Queued events of each class.
    queued: [usize; Class::COUNT],
    /// Consecutive failed attempts.
    pub(super) failures: u32,
    pub(super) state: State,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum State {
    /// In no index.
    #[default]
    Idle,
    /// Waits for its turn.
    Ready { class: usize, sequence: u64 },
    /// Waits for the end of its backoff.
    Backoff(Instant),
    /// Has a request in flight.
    InFlight,
}

impl SubjectState {
    pub(super) fn queued_events(&self) -> usize {
        self.queued.iter().sum()
    }

    /// The highest class of its queued events.
    fn best_class(&self) -> Option<usize> {
        self.queued.iter().position(|count| *count > 0)
    }
}

impl Queue {
    pub(super) fn next_sequence(&mut self) -> u64 {
        self.last_sequence += 1;
        self.last_sequence
    }

    /// The key of the oldest event of a class.
    pub(super) fn oldest_key(&self, class: usize) -> Option<(u64, u64)> {
        self.by_age[class].first_key_value().map(|(sequence, subject)| (*subject, *sequence))
    }

    /// The key of the first event of a subject that has one.
    pub(super) fn first_key(&self, subject: u64) -> (u64, u64) {
        let first = self.events.range((subject, 0)..=(subject, u64::MAX)).next();
        first.map(|(key, _)| *key).expect("the subject has a queued event")
    }

    pub(super) fn pop_first(&mut self, subject: u64) -> QueuedEvent {
        self.unindex(self.first_key(subject))
    }

    /// Removes an event, and updates the turn of its subject.
    pub(super) fn remove_event(&mut self, key: (u64, u64)) -> QueuedEvent {
        let event = self.unindex(key);
        self.schedule(key.0);
        event
    }

    /// Adds an event to the indexes of events.
    pub(super) fn index(&mut self, event: QueuedEvent) {
        let (key, class) = (event.key(), event.encoded.class as usize);
        self.bytes[class] += event.cost();
        self.by_age[class].insert(key.1, key.0);
        let subject = self.subjects.entry(key.0).or_default();
        subject.queued[class] += 1;
        if matches!(subject.state, State::Ready { .. }) {
            self.ready_events += 1;
        }
        self.events.insert(key, event);
    }

    /// Removes an event from the indexes of events.
    pub(super) fn unindex(&mut self, key: (u64, u64)) -> QueuedEvent {
        let event = self.events.remove(&key).expect("every indexed key has an event");
        let class = event.encoded.class as usize;
        self.bytes[class] -= event.cost();
        self.by_age[class].remove(&key.1);
        let subject = self.subjects.get_mut(&key.0).expect("every queued event has a subject");
        subject.queued[class] -= 1;
        if matches!(subject.state, State::Ready { .. }) {
            self.ready_events -= 1;
        }
        if let Some(Edge { member, is_rising: true }) = event.encoded.edge
            && self.rising.get(&(key.0, member)) == Some(&key.1)
        {
            self.rising.remove(&(key.0, member));
            if self.rising.is_empty() {
                self.rising = HashMap::new();
            }
        }
        event
    }

    /// Gives a subject a turn behind the others of its class, unless it has a request in flight or a backoff. Its turn
    /// moves if its class has changed; it is removed if it has no events.
    pub(super) fn schedule(&mut self, subject: u64) {
        let entry = &self.subjects[&subject];
        let (before, now) = (entry.state, entry.best_class());
        match (before, now) {
            (State::Backoff(_) | State::InFlight, _) => {}
            (State::Ready { .. } | State::Idle, None) => self.remove_subject(subject),
            (State::Ready { class, .. }, Some(now)) if class == now => {}
            (State::Ready { .. } | State::Idle, Some(class)) => {
                let sequence = self.next_sequence();
                self.set_state(subject, State::Ready { class, sequence });
                let queued_at = self.events[&self.first_key(subject)].queued_at;
                self.batch_started_at =
                    Some(self.batch_started_at.map_or(queued_at, |before| before.min(queued_at)));
            }
        }
    }

    /// Moves a subject between the indexes of subjects.
    pub(super) fn set_state(&mut self, subject: u64, state: State) {
        let entry = self.subjects.entry(subject).or_default();
        let count = entry.queued_events();
        match std::mem::replace(&mut entry.state, state) {
            State::Ready { class, sequence } => {
                self.turns[class].remove(&sequence);
                self.ready_events -= count;
            }
            State::Backoff(at) => {
                self.retries.remove(&(at, subject));
            }
            State::Idle | State::InFlight => {}
        }
        match state {
            State::Ready { class, sequence } => {
                self.turns[class].insert(sequence, subject);
                self.ready_events += count;
            }
            State::Backoff(at) => {
                self.retries.insert((at, subject));
            }
            State::Idle | State::InFlight => {}
        }
        if self.turns.iter().all(BTreeMap::is_empty) {
            self.batch_started_at = None;
        }
    }

    /// Removes a subject that has no events.
    pub(super) fn remove_subject(&mut self, subject: u64) {
        self.set_state(subject, State::Idle);
        self.subjects.remove(&subject);
        if self.subjects.is_empty() {
            // An empty map gives its memory back.
            self.subjects = HashMap::new();
        }
    }
}
