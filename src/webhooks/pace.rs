//! The rate of requests to one receiver: unlimited while it responds, throttled while it rejects everything, and one
//! probe at a time while it does not respond. Pure: time and randomness are arguments.
//!
//! The rate belongs to the receiver and not to events: the first probe that is answered ends an outage for all queued
//! events, whatever their backoff. One event that times out while others are answered is no outage.

use std::time::Duration;

use tokio::time::Instant;

/// Consecutive rejections after which a receiver counts as rejecting everything.
const REJECTING_AFTER: u32 = 64;

/// Requests to such a receiver in one probe interval.
const REJECTED_PER_PROBE: u32 = 50;

/// The state of a receiver, as seen from its last responses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// It responds; it may reject some requests.
    Responding,
    /// It rejects everything.
    Rejecting,
    /// It does not respond.
    Unresponsive,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Pace {
    state: State,
    /// Rejections since the last request that was accepted.
    rejections: u32,
    /// When the receiver last responded, with any status.
    last_response: Option<Instant>,
    /// No request may start before this.
    not_before: Option<Instant>,
    /// When a retry may start as a probe, before its backoff has passed.
    probe_at: Option<Instant>,
    /// The minimum time between two probes; with jitter, up to twice as long.
    interval: Duration,
}

impl Pace {
    /// Assumes that the receiver responds. `interval` is the minimum time between two probes.
    pub(super) const fn new(interval: Duration) -> Self {
        Self {
            state: State::Responding,
            rejections: 0,
            last_response: None,
            not_before: None,
            probe_at: None,
            interval,
        }
    }

    pub(super) fn is_responding(&self) -> bool {
        self.state == State::Responding
    }

    /// Whether a request may start while `in_flight` others are running.
    ///
    /// # Errors
    /// It may not start before that instant; with `None`, not before another request has ended.
    pub(super) fn may_start(&self, now: Instant, in_flight: usize) -> Result<(), Option<Instant>> {
        match self.not_before {
            _ if self.state == State::Unresponsive && in_flight > 0 => Err(None),
            Some(then) if now < then => Err(Some(then)),
            Some(_) | None => Ok(()),
        }
    }

    /// From when on a retry may ignore its backoff, to probe whether the receiver has recovered.
    pub(super) fn probes_from(&self) -> Option<Instant> {
        if self.is_responding() { None } else { self.probe_at }
    }

    /// Records that a request starts. `random` is the jitter of the next probe, over the full range of `u32`.
    pub(super) fn request_started(&mut self, now: Instant, random: u32) {
        let probe_at = now + self.interval + self.interval.mul_f64(f64::from(random) / f64::from(u32::MAX));
        self.probe_at = Some(probe_at);
        self.not_before = match self.state {
            State::Responding => None,
            State::Rejecting => Some(now + self.interval / REJECTED_PER_PROBE),
            State::Unresponsive => Some(probe_at),
        };
    }

    /// Records a delivered request. Returns whether the receiver has recovered.
    pub(super) fn delivered(&mut self, now: Instant) -> bool {
        self.rejections = 0;
        self.recover(now)
    }

    /// Records a rejected request. Returns whether the receiver has recovered, in that it responds again.
    pub(super) fn rejected(&mut self, now: Instant) -> bool {
        let has_recovered = self.state == State::Unresponsive && self.recover(now);
        self.last_response = Some(now);
        self.rejections = self.rejections.saturating_add(1);
        if self.rejections >= REJECTING_AFTER {
            self.state = State::Rejecting;
        }
        has_recovered
    }

    /// Records that a request had no response. If the receiver has answered another request since this one started, the
    /// request is to blame and not the receiver.
    pub(super) fn no_response(&mut self, started_at: Instant) {
        if self.last_response.is_none_or(|last_response| last_response < started_at) {
            self.state = State::Unresponsive;
            // The interval is measured between the starts of probes, however long a probe takes.
            self.not_before = self.probe_at;
        }
    }

    fn recover(&mut self, now: Instant) -> bool {
        self.last_response = Some(now);
        self.not_before = None;
        if self.state == State::Unresponsive {
            // Rejections from before the outage do not count.
            self.rejections = 0;
        }
        std::mem::replace(&mut self.state, State::Responding) != State::Responding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const INTERVAL: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn requests_to_a_responding_receiver_start_at_once() {
        let (mut pace, now) = (Pace::new(INTERVAL), Instant::now());
        for in_flight in 0..8 {
            assert_eq!(pace.may_start(now, in_flight), Ok(()));
            pace.request_started(now, 0);
        }
        assert!(!pace.delivered(now));
        assert!(!pace.rejected(now));
        assert_eq!((pace.may_start(now, 7), pace.probes_from()), (Ok(()), None));
    }

    #[tokio::test]
    async fn an_unresponsive_receiver_gets_one_probe_every_one_to_two_seconds() {
        for (random, between) in [(0, INTERVAL), (u32::MAX, 2 * INTERVAL)] {
            let (mut pace, begin) = (Pace::new(INTERVAL), Instant::now());
            let mut now = begin;
            for _ in 0..10 {
                assert_eq!(pace.may_start(now, 0), Ok(()));
                pace.request_started(now, random);
                // A timeout is noticed some time after the start.
                pace.no_response(now);
                assert_eq!(pace.may_start(now + 500 * MS, 0), Err(Some(now + between)));
                assert_eq!(pace.may_start(now + between, 1), Err(None), "one at a time");
                now += between;
            }
            assert_eq!(now - begin, 10 * between);
            pace.request_started(now, random);
            assert!(pace.delivered(now), "it has recovered");
            assert_eq!(pace.may_start(now, 7), Ok(()));
        }
    }

    #[tokio::test]
    async fn one_timeout_among_responses_is_no_outage() {
        let (mut pace, now) = (Pace::new(INTERVAL), Instant::now());
        pace.request_started(now, 0);
        pace.request_started(now, 0);
        pace.rejected(now + 5 * MS);
        pace.no_response(now);
        assert!(pace.is_responding());
        pace.request_started(now + 6 * MS, 0);
        pace.no_response(now + 6 * MS);
        assert!(!pace.is_responding());
    }

    #[tokio::test]
    async fn a_receiver_that_rejects_everything_gets_fifty_requests_a_second() {
        let (mut pace, mut now) = (Pace::new(INTERVAL), Instant::now());
        for _ in 0..REJECTING_AFTER {
            assert_eq!(pace.may_start(now, 0), Ok(()));
            pace.request_started(now, 0);
            pace.rejected(now);
        }
        let (begin, mut requests) = (now, 0);
        while now < begin + 10 * INTERVAL {
            if pace.may_start(now, 3).is_ok() {
                pace.request_started(now, 0);
                pace.rejected(now);
                requests += 1;
            }
            now += 5 * MS;
        }
        assert_eq!(requests, 500);
        assert!(pace.probes_from().is_some());
        assert!(pace.delivered(now));
        assert_eq!((pace.may_start(now, 0), pace.probes_from()), (Ok(()), None));
        assert!(!pace.rejected(now), "earlier rejections do not count");
        assert!(pace.is_responding());
    }

    #[tokio::test]
    async fn any_response_ends_an_outage() {
        let (mut pace, now) = (Pace::new(INTERVAL), Instant::now());
        pace.request_started(now, 0);
        pace.no_response(now);
        assert!(pace.rejected(now + MS));
        assert!(pace.is_responding());
        assert_eq!(pace.may_start(now + MS, 7), Ok(()));
    }
}
