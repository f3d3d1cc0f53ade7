//! What may go wrong between a node and Redis, how often that is said, and how long it is waited for then.

use std::collections::HashMap;
use std::io;
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use redis::{ErrorKind, RedisError};
use tokio::time::Instant;
use tracing::warn;

/// One kind of trouble is reported once in this time.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// What is waited for at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Of what Redis says, so much is shown.
const SHOWN_CHARS: usize = 200;

/// Why Redis counts as lost.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("cannot connect to {0}: {1}")]
    Connect(String, io::Error),
    #[error("the TLS handshake with {0} failed: {1}")]
    Tls(String, io::Error),
    #[error("{0} refuses: {1}")]
    Refused(String, String),
    #[error("{0} does not answer within {1:?}")]
    Timeout(String, Duration),
    #[error("{0} closed the connection")]
    Closed(String),
    #[error("what is published does not arrive from {0}")]
    Deaf(String),
    #[error("{0} no longer sends messages on a topic: its slot has moved")]
    Moved(String),
    #[error("{0} gave an answer that makes no sense")]
    Senseless(String),
    #[error("more than {0} bytes wait on this node")]
    Overrun(usize),
    #[error("the sentinel {0} does not know where {1:?} is")]
    NoMaster(String, String),
    #[error("no server of the cluster has slot {0}")]
    NoSlot(u64),
    #[error("there is no server to ask")]
    Nobody,
}

impl Trouble {
    /// Of what the client library says of a server.
    pub(super) fn of(server: &str, error: &RedisError) -> Self {
        if error.is_connection_dropped() {
            return Self::Closed(server.to_owned());
        }
        if error.kind() == ErrorKind::RESP3NotSupported {
            return Self::Refused(server.to_owned(), "it is older than Redis 6".to_owned());
        }
        let said = error.detail().map_or_else(|| error.category().to_owned(), harmless);
        let code = error.code().filter(|code| !said.starts_with(code)).unwrap_or_default();
        Self::Refused(server.to_owned(), format!("{code} {said}").trim().to_owned())
    }
}

/// What Redis says, without what we said to it: it repeats the arguments of a command that it does not know, and a
/// password may be among them.
fn harmless(said: &str) -> String {
    let said = said.split(", with args beginning with").next().unwrap_or_default();
    said.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS).collect()
}

/// Reports trouble, each kind once a minute.
#[derive(Debug, Default)]
pub(super) struct Reports {
    last: HashMap<Discriminant<Trouble>, Instant>,
    unreported: usize,
}

impl Reports {
    /// Whether it was reported.
    pub(super) fn report(&mut self, trouble: &Trouble, now: Instant) -> bool {
        let last = self.last.get(&discriminant(trouble));
        if last.is_some_and(|last| now.duration_since(*last) < REPORT_EVERY) {
            self.unreported += 1;
            return false;
        }
        self.last.insert(discriminant(trouble), now);
        let unreported = std::mem::take(&mut self.unreported);
        warn!(%trouble, unreported, "the cluster's Redis is lost");
        true
    }
}

/// How long it is waited for until it is tried again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// All is well again.
    pub(super) fn forget(&mut self) {
        self.attempts = 0;
    }

    /// Doubles with each attempt; at least half of it is waited for, the rest is chance.
    pub(super) fn next(&mut self) -> Duration {
        let (first, most) = BACKOFF;
        let wait = first.saturating_mul(1 << self.attempts.min(16)).min(most);
        self.attempts += 1;
        let chance = getrandom::u32().unwrap_or(u32::MAX);
        wait / 2 + (wait / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_redis_repeats_is_not_shown() {
        let said = "unknown command `HELLO`, with args beginning with: `3` `AUTH` `default` `secret`";
        assert_eq!(harmless(said), "unknown command `HELLO`");
        assert_eq!(harmless(&"\n".repeat(500)), "");
        assert_eq!(harmless(&"x".repeat(500)).len(), SHOWN_CHARS);
    }

    #[test]
    fn each_kind_of_trouble_is_reported_once_a_minute() {
        let (mut reports, now) = (Reports::default(), Instant::now());
        let closed = Trouble::Closed("a".to_owned());
        assert!(reports.report(&closed, now));
        assert!(!reports.report(&closed, now));
        assert!(reports.report(&Trouble::Deaf("a".to_owned()), now));
        assert!(reports.report(&closed, now + REPORT_EVERY));
    }

    #[test]
    fn what_is_waited_for_doubles_up_to_a_bound() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..40).map(|_| backoff.next()).collect();
        for (wait, most_ms) in
            waits.iter().zip([100, 200, 400, 800, 1600, 2000].into_iter().chain([2000; 34]))
        {
            let most = Duration::from_millis(most_ms);
            assert!((most / 2..=most).contains(wait), "{wait:?} of {most:?}");
        }
        backoff.forget();
        assert!(backoff.next() <= BACKOFF.0);
    }
}
