//! How often and how many: the token bucket behind every rate, the count behind every number of places, and the
//! name of every limit. Time is an argument.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A limit that a running node holds: what refusals are counted by, and what the operator is told of.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Limit {
    /// Connections of an app (4004).
    AppConnections,
    /// Connections of the node (4100).
    NodeConnections,
    /// Connections from one address at once (4100, or not taken).
    AddressConnections,
    /// New connections from one address a second (4100, or not taken).
    AddressRate,
    /// Connections of strangers at once: the one that waited longest makes room.
    Unauthenticated,
    /// The time in which a stranger has to become a WebSocket or to sign a request.
    Handshake,
    /// Where the PROXY protocol is spoken: that a connection begins with it, and comes from a trusted proxy.
    ProxyProtocol,
    /// Messages and frames of a connection a second (4100).
    Messages,
    /// The length of a client's message (1009).
    MessageBytes,
    /// The time in which a client's message has to be whole (4100).
    MessageTime,
    /// Client events of a connection a second (4301).
    ClientEvents,
    /// Subscriptions of a connection.
    ConnectionChannels,
    /// Channels of an app.
    AppChannels,
    /// Users of a presence channel.
    PresenceMembers,
    /// HTTP requests of an app a second (429).
    Requests,
    /// Events that an app publishes over HTTP a second (429).
    Events,
    /// The length of a request's body (413).
    RequestBytes,
    /// Bytes that wait for a client (4100).
    OutboxBytes,
    /// Idempotency keys of an app: the oldest is forgotten.
    IdempotencyKeys,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::AppConnections,
        Self::NodeConnections,
        Self::AddressConnections,
        Self::AddressRate,
        Self::Unauthenticated,
        Self::Handshake,
        Self::ProxyProtocol,
        Self::Messages,
        Self::MessageBytes,
        Self::MessageTime,
        Self::ClientEvents,
        Self::ConnectionChannels,
        Self::AppChannels,
        Self::PresenceMembers,
        Self::Requests,
        Self::Events,
        Self::RequestBytes,
        Self::OutboxBytes,
        Self::IdempotencyKeys,
    ];

    /// The setting that holds it.
    #[must_use]
    pub const fn setting(self) -> &'static str {
        match self {
            Self::AppConnections => "limits.connections",
            Self::NodeConnections => "server.connections",
            Self::AddressConnections => "server.connections_per_address",
            Self::AddressRate => "server.new_connections_per_address",
            Self::Unauthenticated => "server.unauthenticated_connections",
            Self::Handshake => "server.handshake_timeout_secs",
            Self::ProxyProtocol => "server.proxy_protocol",
            Self::Messages => "limits.messages_per_second",
            Self::MessageBytes => "limits.message_bytes",
            Self::MessageTime => "server.message_timeout_secs",
            Self::ClientEvents => "limits.client_events_per_second",
            Self::ConnectionChannels => "limits.channels_per_connection",
            Self::AppChannels => "limits.channels",
            Self::PresenceMembers => "limits.presence_members",
            Self::Requests => "limits.requests_per_second",
            Self::Events => "limits.events_per_second",
            Self::RequestBytes => "limits.request_body_bytes",
            Self::OutboxBytes => "limits.outbox_bytes",
            Self::IdempotencyKeys => "limits.idempotency_keys",
        }
    }
}

/// How often the operator is told of a limit that is reached.
const REPORT_INTERVAL_SECS: u32 = 60;

/// When the operator was last told of each limit.
#[derive(Debug, Default)]
pub struct Reports([AtomicU32; Limit::ALL.len()]);

impl Reports {
    /// Whether the operator is to be told of `limit` at `now`: once a minute, whoever asks how often.
    pub fn is_due(&self, limit: Limit, now: Duration) -> bool {
        // 0 is never, so all others are one more.
        let now_secs = now.as_secs() as u32 + 1;
        let is_due = |told: u32| {
            (told == 0 || now_secs.saturating_sub(told) >= REPORT_INTERVAL_SECS).then_some(now_secs)
        };
        self.0[limit as usize].fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_due).is_ok()
    }
}

/// How many places are taken, counted so that two never share the last one.
#[derive(Debug, Default)]
pub struct Count(AtomicU32);

impl Count {
    /// How many are taken now.
    #[must_use]
    pub fn now(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes one of `max` places (`None`: as many as are wanted), or answers `false` when none is left. Whoever
    /// has taken one gives it back once, when dropped.
    #[must_use = "a place that is taken must be given back"]
    pub fn take(&self, max: Option<u32>) -> bool {
        let max = max.unwrap_or(u32::MAX);
        let grown = |count: u32| (count < max).then(|| count + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok()
    }

    /// Gives a place back.
    pub fn give_back(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Allows `per_second` on average and `burst` at once. 8 bytes, so that every connection can have some.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// Tokens left, as of `at`.
    tokens: f32,
    /// When `tokens` was true, in milliseconds of the caller's clock.
    at_ms: u32,
}

/// The rate of a [`TokenBucket`], shared by all that have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come back in a second. At least 1.
    pub per_second: u32,
    /// Tokens that a rested bucket holds. At least 1.
    pub burst: u32,
}

/// By how much a caller's moment may lie before another's that came first, in milliseconds.
const OUT_OF_TURN_MS: u32 = 60_000;

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self { tokens: rate.burst as f32, at_ms: 0 }
    }

    /// Takes one token at `now` (time since any fixed moment), or answers `false` when none is left.
    pub fn take(&mut self, rate: Rate, now: Duration) -> bool {
        self.take_many(1, rate, now).is_ok()
    }

    /// Takes `count` tokens at `now`, all or none. More than the burst are never there.
    ///
    /// # Errors
    /// How long it takes until there are so many, if nobody takes any meanwhile.
    pub fn take_many(&mut self, count: u32, rate: Rate, now: Duration) -> Result<(), Duration> {
        self.refill(rate, now);
        let count = count as f32;
        if self.tokens < count {
            let wait_ms = (count - self.tokens) * 1000.0 / rate.per_second as f32;
            return Err(Duration::from_millis(wait_ms.ceil() as u64));
        }
        self.tokens -= count;
        Ok(())
    }

    /// Whether the bucket is full at `now`, so that nothing is lost by forgetting it.
    pub fn is_full(&mut self, rate: Rate, now: Duration) -> bool {
        self.refill(rate, now);
        self.tokens >= rate.burst as f32
    }

    fn refill(&mut self, rate: Rate, now: Duration) {
        // Wraps after 49 days: a bucket that rested just so long fills late, by its rate.
        let now_ms = now.as_millis() as u32;
        let mut elapsed_ms = now_ms.wrapping_sub(self.at_ms);
        if elapsed_ms > u32::MAX - OUT_OF_TURN_MS {
            // Another one looked at the clock later and came first.
            elapsed_ms = 0;
        } else {
            self.at_ms = now_ms;
        }
        let refill = elapsed_ms as f32 * rate.per_second as f32 / 1000.0;
        self.tokens = (self.tokens + refill).min(rate.burst as f32);
    }
}

/// A full bucket, of whichever rate it is used with.
impl Default for TokenBucket {
    fn default() -> Self {
        Self { tokens: f32::INFINITY, at_ms: 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 10 };

    fn taken(bucket: &mut TokenBucket, at_ms: u64, tries: usize) -> usize {
        (0..tries).filter(|_| bucket.take(RATE, Duration::from_millis(at_ms))).count()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut bucket = TokenBucket::new(RATE);
        assert_eq!(taken(&mut bucket, 0, 20), 10);
        assert_eq!(taken(&mut bucket, 99, 5), 0);
        assert_eq!(taken(&mut bucket, 500, 20), 5);
        assert_eq!(taken(&mut bucket, 60_000, 20), 10);
    }

    #[test]
    fn a_moment_before_the_last_one_gives_nothing_back() {
        let mut bucket = TokenBucket::new(RATE);
        assert_eq!(taken(&mut bucket, 1001, 20), 10);
        assert_eq!(taken(&mut bucket, 1000, 5), 0);
        assert!(!bucket.is_full(RATE, Duration::from_millis(999)));
        assert_eq!(taken(&mut bucket, 1101, 5), 1, "and takes nothing away");
    }

    #[test]
    fn many_are_taken_at_once_or_none_and_the_wait_is_told() {
        let mut bucket = TokenBucket::default();
        assert_eq!(bucket.take_many(8, RATE, Duration::ZERO), Ok(()));
        assert_eq!(bucket.take_many(5, RATE, Duration::ZERO), Err(Duration::from_millis(300)));
        assert_eq!(bucket.take_many(2, RATE, Duration::ZERO), Ok(()), "a refusal takes nothing");
        assert_eq!(bucket.take_many(5, RATE, Duration::from_millis(500)), Ok(()));
        assert!(!bucket.is_full(RATE, Duration::from_millis(1400)));
        assert!(bucket.is_full(RATE, Duration::from_millis(1500)));
    }

    #[test]
    fn the_last_place_is_taken_once() {
        let count = Count::default();
        let taken: usize = std::thread::scope(|scope| {
            let takers = [(); 4].map(|()| scope.spawn(|| (0..10).filter(|_| count.take(Some(10))).count()));
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert_eq!((taken, count.now()), (10, 10));
        count.give_back();
        assert!(count.take(Some(10)) && !count.take(Some(10)) && count.take(None));
    }

    #[test]
    fn a_limit_is_reported_once_a_minute_each_by_itself() {
        let reports = Reports::default();
        let due = |limit, secs| reports.is_due(limit, Duration::from_secs(secs));
        assert!(due(Limit::Messages, 0));
        assert!(!due(Limit::Messages, 0) && !due(Limit::Messages, 59));
        assert!(due(Limit::Events, 30), "another limit");
        assert!(due(Limit::Messages, 60) && !due(Limit::Messages, 61));
    }

    #[test]
    fn every_limit_has_its_place_and_its_setting() {
        let mut settings = std::collections::BTreeSet::new();
        for (place, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(limit as usize, place);
            assert!(settings.insert(limit.setting()), "{limit:?}");
        }
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate_allow(gaps in proptest::collection::vec(0u64..300, 1..200)) {
            let mut bucket = TokenBucket::new(RATE);
            let (mut now, mut passed) = (0u64, 0u64);
            for gap in gaps {
                now += gap;
                passed += u64::from(bucket.take(RATE, Duration::from_millis(now)));
                prop_assert!(passed <= 10 + now / 100 + 1);
            }
        }
    }
}
