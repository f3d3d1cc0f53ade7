//! The order of requests: turns of classes and subjects, retries, probes.

use tokio::time::Instant;

use super::super::event::Class;
use super::batch::{BATCH_EVENTS, fits_batch};
use super::index::State;
use super::{Next, Queue, QueuedEvent, Request};

/// One turn in this many is for retries, while both retries and other subjects wait.
const RETRY_TURNS: u32 = 4;

impl Queue {
    /// Decides what a free sender does. `random` is the jitter, over the full range of `u32`.
    pub(in crate::webhooks) fn next(&mut self, now: Instant, random: u32) -> Next {
        if self.senders > self.options.senders {
            self.senders -= 1;
            return Next::End;
        }
        let expired = self.remove_expired(now);
        if !expired.is_empty() {
            return Next::Expired(expired);
        }
        if self.events.is_empty() && self.is_closed {
            return Next::End;
        }
        let until = match self.pace.may_start(now, self.in_flight) {
            Err(until) => until,
            Ok(()) => {
                let (ready_at, retry_at) = (self.ready_at(), self.retry_at(now));
                let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
                match (is_due(ready_at), is_due(retry_at)) {
                    (true, true) if self.turns_since_retry + 1 >= RETRY_TURNS => {
                        return self.send_retry(now, random);
                    }
                    (true, _) => return self.send_ready(now, random),
                    (false, true) => return self.send_retry(now, random),
                    (false, false) => ready_at.into_iter().chain(retry_at).min(),
                }
            }
        };
        let oldest = (0..Class::COUNT).filter_map(|class| self.oldest_key(class));
        let expires_at = oldest.map(|key| self.events[&key].queued_at + self.options.delivery_timeout).min();
        Next::Wait(until.into_iter().chain(expires_at).min())
    }

    /// When the next request for a ready subject may start.
    fn ready_at(&self) -> Option<Instant> {
        let started_at = self.batch_started_at?;
        // A batch does not wait if no further events will come, or if it is full, or as a probe.
        let is_due_now = self.is_closed || self.ready_events >= BATCH_EVENTS || !self.pace.is_responding();
        Some(started_at + self.options.batch_window.filter(|_| !is_due_now).unwrap_or_default())
    }

    /// When the next retry may start.
    fn retry_at(&mut self, now: Instant) -> Option<Instant> {
        // Subjects in backoff whose events have all expired: the backoff has passed, so they can go.
        while let Some((at, subject)) = self.retries.first().copied()
            && at <= now
            && self.subjects[&subject].queued_events() == 0
        {
            self.remove_subject(subject);
        }
        let is_share_used = self.retries_in_flight >= self.options.senders.div_ceil(2);
        let (at, _) = self.retries.first().filter(|_| !is_share_used)?;
        Some(self.pace.probes_from().map_or(*at, |probe| probe.min(*at)))
    }

    fn send_ready(&mut self, now: Instant, random: u32) -> Next {
        let (mut events, mut subjects) = (Vec::new(), Vec::new());
        let may_batch = self.may_batch();
        while let Some((class, subject)) = self.next_turn() {
            if !fits_batch(&events, &self.events[&self.first_key(subject)], may_batch) {
                break;
            }
            self.next_class = (class + 1) % Class::COUNT;
            events.push(self.pop_first(subject));
            self.set_state(subject, State::InFlight);
            subjects.push(subject);
            if !may_batch {
                break;
            }
            // Its next event may join the same request after the other subjects had their turn.
            if self.subjects[&subject].queued_events() > 0 {
                self.set_state(subject, State::Idle);
                self.schedule(subject);
            }
        }
        self.turns_since_retry = self.turns_since_retry.saturating_add(1);
        self.start_request(events, subjects, false, (now, random))
    }

    fn send_retry(&mut self, now: Instant, random: u32) -> Next {
        let (mut events, mut subjects) = (Vec::new(), Vec::new());
        let may_batch = self.may_batch();
        // If no backoff has passed, the first retry is a probe.
        while let Some((at, subject)) = self.retries.first().copied()
            && (events.is_empty() || at <= now)
        {
            let taken_before = events.len();
            while self.subjects[&subject].queued_events() > 0
                && fits_batch(&events, &self.events[&self.first_key(subject)], may_batch)
            {
                events.push(self.pop_first(subject));
            }
            if events.len() == taken_before {
                break;
            }
            self.set_state(subject, State::InFlight);
            subjects.push(subject);
            if !may_batch {
                break;
            }
        }
        self.turns_since_retry = 0;
        self.start_request(events, subjects, true, (now, random))
    }

    fn start_request(
        &mut self,
        mut events: Vec<QueuedEvent>,
        mut subjects: Vec<u64>,
        is_retry: bool,
        (now, random): (Instant, u32),
    ) -> Next {
        events.sort_unstable_by_key(|event| event.sequence);
        subjects.sort_unstable();
        subjects.dedup();
        for subject in &subjects {
            self.set_state(*subject, State::InFlight);
        }
        self.in_flight += 1;
        self.retries_in_flight += usize::from(is_retry);
        let is_probe = !self.pace.is_responding();
        self.pace.request_started(now, random);
        Next::Send(Request { events, is_probe, started_at: now, subjects, is_retry })
    }

    /// The class and subject of the next turn.
    fn next_turn(&self) -> Option<(usize, u64)> {
        let classes = (0..Class::COUNT).map(|after| (self.next_class + after) % Class::COUNT);
        classes.filter_map(|class| Some((class, *self.turns[class].first_key_value()?.1))).next()
    }
}
