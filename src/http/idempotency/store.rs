//! The idempotency keys of one app: those of requests in progress, and those whose response is stored. Pure.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::key::{Fingerprint, Key};
use crate::apps::AppLimits;

/// Bytes that a key is charged in addition to its length and that of its response.
const ENTRY_BYTES: usize = 192;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) attempts: HashMap<Key, Attempt>,
    /// The keys with a stored response, in the order in which they expire.
    pub(super) answered: VecDeque<(Duration, Key)>,
    pub(super) bytes: usize,
}

#[derive(Debug)]
pub(super) struct Attempt {
    fingerprint: Fingerprint,
    state: State,
}

#[derive(Debug)]
enum State {
    Running(watch::Receiver<()>),
    Answered(Bytes),
}

/// The right to carry out the first request with a key. There is one for each attempt, and it is used up by
/// [`Store::finish`] or [`Store::release`], so a finished attempt cannot change a later one with the same key.
#[derive(Debug)]
pub(super) struct Reservation {
    key: Key,
    /// Dropped when the attempt ends, which wakes the requests that wait for the response.
    _running: watch::Sender<()>,
}

/// The result of looking up the key of a request.
#[derive(Debug)]
pub(super) enum Lookup {
    /// The request is the first with this key.
    Reserved(Reservation),
    /// The stored response of the first request.
    Answered(Bytes),
    /// The first request is in progress.
    Running(watch::Receiver<()>),
    /// The key was used for another request.
    KeyReused,
    /// All keys of the limit belong to requests in progress.
    Full,
}

impl Store {
    pub(super) fn begin(
        &mut self,
        key: &Key,
        fingerprint: &Fingerprint,
        limits: &AppLimits,
        now: Duration,
    ) -> Lookup {
        while self.answered.front().is_some_and(|(expires, _)| *expires <= now) {
            self.evict_oldest();
        }
        match self.attempts.get(key) {
            Some(attempt) if attempt.fingerprint != *fingerprint => Lookup::KeyReused,
            Some(Attempt { state: State::Running(running), .. }) => Lookup::Running(running.clone()),
            Some(Attempt { state: State::Answered(response), .. }) => Lookup::Answered(response.clone()),
            None if self.attempts.len() - self.answered.len() >= limits.idempotency_keys_max => Lookup::Full,
            None => {
                let (sender, running) = watch::channel(());
                let attempt = Attempt { fingerprint: *fingerprint, state: State::Running(running) };
                self.bytes += charge(key);
                self.attempts.insert(key.clone(), attempt);
                Lookup::Reserved(Reservation { key: key.clone(), _running: sender })
            }
        }
    }

    /// Stores the response to the first request with a key. Returns the number of keys that were evicted for it before they
    /// expired, which may include its own.
    pub(super) fn finish(
        &mut self,
        reservation: Reservation,
        response: &Bytes,
        limits: &AppLimits,
        now: Duration,
    ) -> usize {
        let Some(attempt) = self.attempts.get_mut(&reservation.key) else { return 0 };
        attempt.state = State::Answered(response.clone());
        self.bytes += response.len();
        self.answered.push_back((now + limits.idempotency_window, reservation.key));
        let mut evicted = 0;
        while self.attempts.len() > limits.idempotency_keys_max || self.bytes > limits.idempotency_bytes_max {
            if !self.evict_oldest() {
                break;
            }
            evicted += 1;
        }
        evicted
    }

    /// Releases a key whose first request has failed.
    pub(super) fn release(&mut self, reservation: Reservation) {
        if self.attempts.remove(&reservation.key).is_some() {
            self.bytes -= charge(&reservation.key);
        }
    }

    /// Evicts the oldest stored response. Returns whether there was one.
    fn evict_oldest(&mut self) -> bool {
        let Some((_, key)) = self.answered.pop_front() else { return false };
        if let Some(Attempt { state: State::Answered(response), .. }) = self.attempts.remove(&key) {
            self.bytes -= charge(&key) + response.len();
        }
        if self.attempts.is_empty() {
            // Release the capacity that a peak has required.
            *self = Self::default();
        }
        true
    }
}

/// Bytes that a key is charged without its response.
pub(super) fn charge(key: &Key) -> usize {
    key.0.len() + ENTRY_BYTES
}
