//! How fast one receiver is asked: as fast as it answers, slowly while it refuses everything, and by one probe at a time
//! while it does not answer. Pure: time and randomness are arguments.
//!
//! The pace is of the receiver, and not of an event: so an outage ends for everything that waits with the first probe
//! that is answered, however often an event was tried before. An event that alone gets no answer, while others do, is no
//! outage.

use std::time::Duration;

use tokio::time::Instant;

/// A receiver that has refused so many requests in a row refuses everything.
const REFUSALS: u32 = 64;

/// Requests to a receiver that refuses everything, for each interval of probes.
const REFUSED_PER_PROBE: u32 = 50;

/// What the last answers say of a receiver.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// It answers; some requests may be refused.
    Answering,
    /// It refuses everything.
    Refusing,
    /// It does not answer.
    Silent,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Pace {
    state: State,
    /// Requests that were refused since the last one that was not.
    refusals: u32,
    /// When the receiver answered last, whatever it said.
    answered: Option<Instant>,
    /// No request before.
    not_before: Option<Instant>,
    /// When a retry is a probe, although its own time has not come.
    probe_at: Option<Instant>,
    /// Between probes, or up to twice as long.
    interval: Duration,
}

impl Pace {
    /// The receiver is thought to answer. `interval` is the shortest time between two probes.
    pub(super) const fn new(interval: Duration) -> Self {
        Self {
            state: State::Answering,
            refusals: 0,
            answered: None,
            not_before: None,
            probe_at: None,
            interval,
        }
    }

    pub(super) fn is_answering(&self) -> bool {
        self.state == State::Answering
    }

    /// Whether a request may start, while `in_flight` others have not ended.
    ///
    /// # Errors
    /// It may not, until then if that is known; else, until one of the others has ended.
    pub(super) fn may_start(&self, now: Instant, in_flight: usize) -> Result<(), Option<Instant>> {
        match self.not_before {
            _ if self.state == State::Silent && in_flight > 0 => Err(None),
            Some(then) if now < then => Err(Some(then)),
            Some(_) | None => Ok(()),
        }
    }

    /// From when on retries may start before their own time, because somebody has to find out whether the receiver is
    /// back.
    pub(super) fn probes_from(&self) -> Option<Instant> {
        if self.is_answering() { None } else { self.probe_at }
    }

    /// A request starts. The jitter of probes is `random`, of all its values.
    pub(super) fn started(&mut self, now: Instant, random: u32) {
        let probe_at = now + self.interval + self.interval.mul_f64(f64::from(random) / f64::from(u32::MAX));
        self.probe_at = Some(probe_at);
        self.not_before = match self.state {
            State::Answering => None,
            State::Refusing => Some(now + self.interval / REFUSED_PER_PROBE),
            State::Silent => Some(probe_at),
        };
    }

    /// A request was delivered. Answers whether the receiver is back.
    pub(super) fn delivered(&mut self, now: Instant) -> bool {
        self.refusals = 0;
        self.answers(now)
    }

    /// A request was refused. Answers whether the receiver is back, if only to refuse.
    pub(super) fn refused(&mut self, now: Instant) -> bool {
        let is_back = self.state == State::Silent && self.answers(now);
        self.answered = Some(now);
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals >= REFUSALS {
            self.state = State::Refusing;
        }
        is_back
    }

    /// A request that started then had no answer. If the receiver has answered others since, that is the fault of the
    /// request.
    pub(super) fn unanswered(&mut self, started: Instant) {
        if self.answered.is_none_or(|answered| answered < started) {
            self.state = State::Silent;
            // The interval is between the starts of probes, whatever time one takes.
            self.not_before = self.probe_at;
        }
    }

    fn answers(&mut self, now: Instant) -> bool {
        self.answered = Some(now);
        self.not_before = None;
        if self.state == State::Silent {
            // Whatever it refused before says nothing of it now.
            self.refusals = 0;
        }
        std::mem::replace(&mut self.state, State::Answering) != State::Answering
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const INTERVAL: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_receiver_that_answers_is_asked_at_once() {
        let (mut pace, now) = (Pace::new(INTERVAL), Instant::now());
        for in_flight in 0..8 {
            assert_eq!(pace.may_start(now, in_flight), Ok(()));
            pace.started(now, 0);
        }
        assert!(!pace.delivered(now));
        assert!(!pace.refused(now));
        assert_eq!((pace.may_start(now, 7), pace.probes_from()), (Ok(()), None));
    }

    #[tokio::test]
    async fn a_receiver_that_does_not_answer_is_probed_every_one_to_two_seconds_by_one_request() {
        for (random, between) in [(0, INTERVAL), (u32::MAX, 2 * INTERVAL)] {
            let (mut pace, begin) = (Pace::new(INTERVAL), Instant::now());
            let mut now = begin;
            for _ in 0..10 {
                assert_eq!(pace.may_start(now, 0), Ok(()));
                pace.started(now, random);
                // It takes a while until it is known that there is no answer.
                pace.unanswered(now);
                assert_eq!(pace.may_start(now + 500 * MS, 0), Err(Some(now + between)));
                assert_eq!(pace.may_start(now + between, 1), Err(None), "one at a time");
                now += between;
            }
            assert_eq!(now - begin, 10 * between);
            pace.started(now, random);
            assert!(pace.delivered(now), "it is back");
            assert_eq!(pace.may_start(now, 7), Ok(()));
        }
    }

    #[tokio::test]
    async fn one_request_without_an_answer_among_others_that_have_one_is_no_outage() {
        let (mut pace, now) = (Pace::new(INTERVAL), Instant::now());
        pace.started(now, 0);
        pace.started(now, 0);
        pace.refused(now + 5 * MS);
        pace.unanswered(now);
        assert!(pace.is_answering());
        pace.started(now + 6 * MS, 0);
        pace.unanswered(now + 6 * MS);
        assert!(!pace.is_answering());
    }

    #[tokio::test]
    async fn a_receiver_that_refuses_everything_is_asked_fifty_times_a_second() {
        let (mut pace, mut now) = (Pace::new(INTERVAL), Instant::now());
        for _ in 0..REFUSALS {
            assert_eq!(pace.may_start(now, 0), Ok(()));
            pace.started(now, 0);
            pace.refused(now);
        }
        let (begin, mut requests) = (now, 0);
        while now < begin + 10 * INTERVAL {
            if pace.may_start(now, 3).is_ok() {
                pace.started(now, 0);
                pace.refused(now);
                requests += 1;
            }
            now += 5 * MS;
        }
        assert_eq!(requests, 500);
        assert!(pace.probes_from().is_some());
        assert!(pace.delivered(now));
        assert_eq!((pace.may_start(now, 0), pace.probes_from()), (Ok(()), None));
        assert!(!pace.refused(now), "what was refused before does not count any more");
        assert!(pace.is_answering());
    }

    #[tokio::test]
    async fn an_answer_ends_silence_whatever_it_says() {
        let (mut pace, now) = (Pace::new(INTERVAL), Instant::now());
        pace.started(now, 0);
        pace.unanswered(now);
        assert!(pace.refused(now + MS));
        assert!(pace.is_answering());
        assert_eq!(pace.may_start(now + MS, 7), Ok(()));
    }
}
