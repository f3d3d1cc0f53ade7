//! How often and how many: the token bucket behind every rate, the count behind every number of places, and the
//! name of every limit. Time is an argument.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

/// A limit that a running node holds: what refusals are counted by, and what the operator is told of.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Limit {
    /// Connections of an app (4004).
    AppConnections,
    /// Connections of the node (4100).
    NodeConnections,
    /// Connections for which this process may have files open (4100).
    OpenFiles,
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
    /// Bytes of an app's events that are kept: the least recently published are forgotten.
    CachedBytes,
    /// The same of all apps.
    NodeCachedBytes,
    /// Users of a presence channel.
    PresenceMembers,
    /// HTTP requests of an app a second (429).
    Requests,
    /// Events that an app publishes over HTTP a second (429).
    Events,
    /// The length of a channel's name.
    ChannelNameBytes,
    /// The length of `channel_data`.
    ChannelDataBytes,
    /// The length of `user_info`.
    UserInfoBytes,
    /// The length of a user's id.
    UserIdChars,
    /// The length of a client event's name.
    EventNameChars,
    /// The length of a client event's data.
    ClientEventBytes,
    /// The length of a request's body (413).
    RequestBytes,
    /// Bytes of the bodies of an app's requests in flight (429).
    RequestsInFlightBytes,
    /// The same of all apps (503).
    NodeRequestsInFlightBytes,
    /// Bytes that wait for a client (4100).
    OutboxBytes,
    /// Bytes that wait for all clients of the node: the largest and most stalled go (4100).
    QueuedBytes,
    /// The time in which a client has to take something of what waits for it (4100).
    WriteTime,
    /// Bytes that a client causes to be sent: it is not read from for a while, and closed if it goes on (4100).
    AnswerBytes,
    /// Changes of a connection that others are told of: the same.
    Changes,
    /// Idempotency keys of an app: the oldest is forgotten.
    IdempotencyKeys,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 34] = [
        Self::AppConnections,
        Self::NodeConnections,
        Self::OpenFiles,
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
        Self::CachedBytes,
        Self::NodeCachedBytes,
        Self::PresenceMembers,
        Self::Requests,
        Self::Events,
        Self::ChannelNameBytes,
        Self::ChannelDataBytes,
        Self::UserInfoBytes,
        Self::UserIdChars,
        Self::EventNameChars,
        Self::ClientEventBytes,
        Self::RequestBytes,
        Self::RequestsInFlightBytes,
        Self::NodeRequestsInFlightBytes,
        Self::OutboxBytes,
        Self::QueuedBytes,
        Self::WriteTime,
        Self::AnswerBytes,
        Self::Changes,
        Self::IdempotencyKeys,
    ];

    /// The setting that holds it.
    #[must_use]
    pub const fn setting(self) -> &'static str {
        match self {
            Self::AppConnections => "limits.connections",
            Self::NodeConnections => "server.connections",
            Self::OpenFiles => "ulimit -n",
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
            Self::CachedBytes => "limits.cached_bytes",
            Self::NodeCachedBytes => "server.cached_bytes",
            Self::PresenceMembers => "limits.presence_members",
            Self::Requests => "limits.requests_per_second",
            Self::Events => "limits.events_per_second",
            Self::ChannelNameBytes => "limits.channel_name_bytes",
            Self::ChannelDataBytes => "limits.channel_data_bytes",
            Self::UserInfoBytes => "limits.presence_user_info_bytes",
            Self::UserIdChars => "limits.user_id_chars",
            Self::EventNameChars => "limits.event_name_chars",
            Self::ClientEventBytes => "limits.client_event_data_bytes",
            Self::RequestBytes => "limits.request_body_bytes",
            Self::RequestsInFlightBytes => "limits.requests_in_flight_bytes",
            Self::NodeRequestsInFlightBytes => "server.requests_in_flight_bytes",
            Self::OutboxBytes => "limits.outbox_bytes",
            Self::QueuedBytes => "server.queued_bytes",
            Self::WriteTime => "server.write_timeout_secs",
            Self::AnswerBytes => "limits.answer_bytes_per_second",
            Self::Changes => "limits.changes_per_second",
            Self::IdempotencyKeys => "limits.idempotency_keys",
        }
    }

    /// What happens when it is reached, as a sentence of the log.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::AppConnections => "an app has as many connections as it may have",
            Self::NodeConnections => "this node has as many connections as it may have",
            Self::OpenFiles => "this process has as many connections as its open files allow",
            Self::AddressConnections => "an address has as many connections as it may have",
            Self::AddressRate => "an address opens too many connections a second",
            Self::Unauthenticated => {
                "too many unauthenticated connections: one that said nothing, or too little, was closed"
            }
            Self::Handshake => "a connection became no WebSocket and sent no signed request in time",
            Self::ProxyProtocol => "a connection does not begin with a PROXY header of a trusted proxy",
            Self::Messages => "a client sends too many messages: it was disconnected",
            Self::MessageBytes => "a client sent a message that is too long: it was disconnected",
            Self::MessageTime => "a client did not finish its message in time: it was disconnected",
            Self::ClientEvents => "a client sends too many client events",
            Self::ConnectionChannels => "a connection has as many subscriptions as it may have",
            Self::CachedBytes => "an app's cached events have too many bytes: its oldest were forgotten",
            Self::NodeCachedBytes => {
                "the cached events of all apps have too many bytes: an app's oldest were forgotten"
            }
            Self::AppChannels => "an app has as many channels as it may have",
            Self::PresenceMembers => "a presence channel has as many members as it may have",
            Self::Requests => "an app sends too many requests: answered with 429",
            Self::Events => "an app publishes too many events: answered with 429",
            Self::ChannelNameBytes => "a subscription was refused: the name of the channel is too long",
            Self::ChannelDataBytes => "a subscription was refused: its channel_data is too long",
            Self::UserInfoBytes => "a subscription or sign-in was refused: its user_info is too long",
            Self::UserIdChars => "a subscription or sign-in was refused: the user id is too long",
            Self::EventNameChars => "a client event was rejected: its name is too long",
            Self::ClientEventBytes => "a client event was rejected: its data is too long",
            Self::RequestsInFlightBytes => {
                "the bodies of an app's requests in flight have too many bytes: answered with 429"
            }
            Self::NodeRequestsInFlightBytes => {
                "the bodies of all requests in flight have too many bytes: answered with 503"
            }
            Self::RequestBytes => "a request was rejected: its body is too long",
            Self::OutboxBytes => "a client reads too slowly: it was disconnected",
            Self::QueuedBytes => "too much waits for all clients: one that reads slowly was disconnected",
            Self::WriteTime => "a client takes nothing of what waits for it: it was disconnected",
            Self::AnswerBytes => {
                "a client causes too much to be sent: it is not read from for a while, or was disconnected"
            }
            Self::Changes => {
                "a client changes its subscriptions too often: it is not read from for a while, or was disconnected"
            }
            Self::IdempotencyKeys => "an app has as many idempotency keys as are remembered",
        }
    }

    /// What its value counts.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::AppConnections
            | Self::NodeConnections
            | Self::OpenFiles
            | Self::AddressConnections
            | Self::Unauthenticated => "connections",
            Self::AddressRate => "connections a second",
            Self::Handshake | Self::MessageTime | Self::WriteTime => "s",
            Self::AnswerBytes => "bytes a second",
            Self::Changes => "changes a second",
            Self::ProxyProtocol => "",
            Self::Messages => "messages a second",
            Self::ClientEvents => "client events a second",
            Self::ConnectionChannels => "subscriptions",
            Self::AppChannels => "channels",
            Self::PresenceMembers => "members",
            Self::Requests => "requests a second",
            Self::Events => "events a second",
            Self::CachedBytes
            | Self::NodeCachedBytes
            | Self::RequestsInFlightBytes
            | Self::NodeRequestsInFlightBytes
            | Self::MessageBytes
            | Self::ChannelNameBytes
            | Self::ChannelDataBytes
            | Self::UserInfoBytes
            | Self::ClientEventBytes
            | Self::RequestBytes
            | Self::OutboxBytes
            | Self::QueuedBytes => "bytes",
            Self::UserIdChars | Self::EventNameChars => "characters",
            Self::IdempotencyKeys => "keys",
        }
    }

    /// Whether those who did nothing wrong are rejected by it as well, because of others: the operator is warned.
    #[must_use]
    pub const fn is_shared(self) -> bool {
        match self {
            Self::AppConnections
            | Self::NodeConnections
            | Self::OpenFiles
            | Self::Unauthenticated
            | Self::AppChannels
            | Self::CachedBytes
            | Self::NodeCachedBytes
            | Self::PresenceMembers
            | Self::RequestsInFlightBytes
            | Self::NodeRequestsInFlightBytes
            | Self::Requests
            | Self::Events
            | Self::QueuedBytes
            | Self::IdempotencyKeys => true,
            Self::AddressConnections
            | Self::AddressRate
            | Self::Handshake
            | Self::ProxyProtocol
            | Self::Messages
            | Self::MessageBytes
            | Self::MessageTime
            | Self::ClientEvents
            | Self::ConnectionChannels
            | Self::ChannelNameBytes
            | Self::ChannelDataBytes
            | Self::UserInfoBytes
            | Self::UserIdChars
            | Self::EventNameChars
            | Self::ClientEventBytes
            | Self::RequestBytes
            | Self::OutboxBytes
            | Self::WriteTime
            | Self::AnswerBytes
            | Self::Changes => false,
        }
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

/// How many bytes are in use, counted so that two never share the last ones.
#[derive(Debug, Default)]
pub struct ByteCount(AtomicUsize);

impl ByteCount {
    /// How many are in use now.
    #[must_use]
    pub fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes `bytes` of `max`, or answers `false` when fewer are left. Whoever has taken some gives them back once, when
    /// dropped.
    #[must_use = "bytes that are taken must be given back"]
    pub fn take(&self, bytes: usize, max: usize) -> bool {
        let grown = |count: usize| count.checked_add(bytes).filter(|count| *count <= max);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok()
    }

    /// Gives `bytes` back.
    pub fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
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

/// So long the wait for what is owed lasts at most.
const DEBT_SECS_MAX: f32 = 10.0;

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

    /// Takes `count` tokens at `now`, be they there or not; how long it takes until none is owed, if any is. More than
    /// comes back in [`DEBT_SECS_MAX`] is never owed.
    pub fn spend(&mut self, count: u32, rate: Rate, now: Duration) -> Option<Duration> {
        self.refill(rate, now);
        let debt_max = rate.per_second as f32 * DEBT_SECS_MAX;
        self.tokens = (self.tokens - count as f32).max(-debt_max);
        (self.tokens < 0.0).then(|| Duration::from_secs_f32(-self.tokens / rate.per_second as f32))
    }

    /// Whether at least half of the bucket is there at `now`.
    pub fn is_rested(&mut self, rate: Rate, now: Duration) -> bool {
        self.refill(rate, now);
        self.tokens >= rate.burst as f32 / 2.0
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
    fn what_is_spent_beyond_the_bucket_is_owed_and_comes_back_by_the_rate() {
        let mut bucket = TokenBucket::new(RATE);
        assert_eq!(bucket.spend(10, RATE, Duration::ZERO), None);
        assert!(!bucket.is_rested(RATE, Duration::ZERO));
        assert_eq!(bucket.spend(5, RATE, Duration::ZERO), Some(Duration::from_millis(500)));
        assert_eq!(bucket.spend(0, RATE, Duration::from_millis(500)), None);
        assert!(bucket.is_rested(RATE, Duration::from_secs(1)));
        assert_eq!(bucket.spend(u32::MAX, RATE, Duration::from_secs(1)), Some(Duration::from_secs(10)));
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
    fn the_last_bytes_are_taken_once() {
        let count = ByteCount::default();
        let taken: usize = std::thread::scope(|scope| {
            let takers = [(); 4].map(|()| scope.spawn(|| (0..10).filter(|_| count.take(3, 30)).count()));
            takers.into_iter().map(|taker| taker.join().unwrap()).sum()
        });
        assert_eq!((taken, count.now()), (10, 30));
        count.give_back(6);
        assert!(count.take(6, 30) && !count.take(1, 30) && !count.take(usize::MAX, usize::MAX));
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
