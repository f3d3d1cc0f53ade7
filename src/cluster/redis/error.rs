//! Errors of connections to Redis: their texts, how often they are logged, and the backoff after them.

use std::collections::HashMap;
use std::io;
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use redis::{ErrorKind, RedisError};
use tokio::time::Instant;
use tracing::warn;

/// Each kind of error is logged once in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Characters of Redis' error text that are shown.
const SHOWN_CHARS: usize = 200;

/// Why Redis is disconnected.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
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
    #[error("published messages do not arrive from {0}")]
    ProbeLost(String),
    #[error("{0} has ended a subscription: the slot of its topic has moved")]
    SlotMoved(String),
    #[error("{0} sent a malformed reply")]
    MalformedReply(String),
    #[error("more than {0} bytes are queued on this node")]
    QueueFull(usize),
    #[error("the sentinel {0} does not know where {1:?} is")]
    UnknownMaster(String, String),
    #[error("no server of the cluster has slot {0}")]
    UnassignedSlot(u64),
    #[error("no server is known")]
    NoServer,
}

impl ConnectionError {
    /// The error for what the client library reports of a server.
    pub(super) fn of(server: &str, error: &RedisError) -> Self {
        if error.is_connection_dropped() {
            return Self::Closed(server.to_owned());
        }
        if error.kind() == ErrorKind::RESP3NotSupported {
            return Self::Refused(server.to_owned(), "it is older than Redis 6".to_owned());
        }
        let detail = error.detail().map_or_else(|| error.category().to_owned(), without_arguments);
        let code = error.code().filter(|code| !detail.starts_with(code)).unwrap_or_default();
        Self::Refused(server.to_owned(), format!("{code} {detail}").trim().to_owned())
    }
}

/// Removes what Redis repeats of our commands: the arguments of an unknown command may include a password.
fn without_arguments(detail: &str) -> String {
    let detail = detail.split(", with args beginning with").next().unwrap_or_default();
    detail.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS).collect()
}

/// Logs errors, each kind once a minute.
#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    last: HashMap<Discriminant<ConnectionError>, Instant>,
    suppressed: usize,
}

impl ErrorLog {
    /// Logs why Redis is disconnected, or why it cannot be connected to. Returns whether it was logged.
    pub(super) fn log(&mut self, error: &ConnectionError, was_connected: bool, now: Instant) -> bool {
        let last = self.last.get(&discriminant(error));
        if last.is_some_and(|last| now.duration_since(*last) < LOG_INTERVAL) {
            self.suppressed += 1;
            return false;
        }
        self.last.insert(discriminant(error), now);
        let suppressed = std::mem::take(&mut self.suppressed);
        if was_connected {
            warn!(%error, suppressed, "disconnected from Redis");
        } else {
            warn!(%error, suppressed, "no connection to Redis");
        }
        true
    }
}

/// The delay before the next attempt to connect.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// Starts again with the shortest delay.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Doubles with each attempt; the upper half of it is random.
    pub(super) fn next(&mut self) -> Duration {
        let wait = BACKOFF_MIN.saturating_mul(1 << self.attempts.min(16)).min(BACKOFF_MAX);
        self.attempts += 1;
        let random = getrandom::u32().unwrap_or(u32::MAX);
        wait / 2 + (wait / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_redis_repeats_is_not_shown() {
        let detail = "unknown command `HELLO`, with args beginning with: `3` `AUTH` `default` `secret`";
        assert_eq!(without_arguments(detail), "unknown command `HELLO`");
        assert_eq!(without_arguments(&"\n".repeat(500)), "");
        assert_eq!(without_arguments(&"x".repeat(500)).len(), SHOWN_CHARS);
    }

    #[test]
    fn each_kind_of_error_is_logged_once_a_minute() {
        let (mut errors, now) = (ErrorLog::default(), Instant::now());
        let closed = ConnectionError::Closed("a".to_owned());
        assert!(errors.log(&closed, true, now));
        assert!(!errors.log(&closed, true, now));
        assert!(errors.log(&ConnectionError::ProbeLost("a".to_owned()), true, now));
        assert!(errors.log(&closed, false, now + LOG_INTERVAL));
    }

    #[test]
    fn the_backoff_doubles_up_to_a_bound() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..40).map(|_| backoff.next()).collect();
        for (wait, max_ms) in waits.iter().zip([100, 200, 400, 800, 1600, 2000].into_iter().chain([2000; 34]))
        {
            let max = Duration::from_millis(max_ms);
            assert!((max / 2..=max).contains(wait), "{wait:?} of {max:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= BACKOFF_MIN);
    }
}
