//! Apps: who may use this server, with which keys and within which limits.
//!
//! Owns [`App`], everything that is settled about one application, and [`Apps`], where an app is found by its id
//! or by one of its keys. An `Arc<App>` is a snapshot: no rule ever waits for a lookup. Checking that the values
//! make sense is the config room's part. Start at [`App`].

mod origin;
mod webhook;

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use origin::{OriginPattern, OriginPatternError};
pub use webhook::{
    ChannelFilter, EventType, EventTypes, Webhook, WebhookHeaderError, WebhookUrl, WebhookUrlError,
    webhook_header,
};

use parking_lot::Mutex;

use crate::limits::{ByteCount, Count, Limit, Rate, TokenBucket};
use crate::protocol::signature::SigningKey;
use crate::protocol::wire::deflate::Compression;
use crate::protocol::{CloseCode, NameRules};
use crate::rejections::Reports;

/// The id of an app, as in `/apps/{id}/…`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AppId(pub Arc<str>);

impl Borrow<str> for AppId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A public key and the secret that belongs to it.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// The key: public, in every browser.
    pub key: Box<str>,
    /// The secret, ready to check signatures.
    pub secret: SigningKey,
}

/// Which frames tell a client that its subscription was refused.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SubscriptionErrorFrames {
    /// `pusher:subscription_error` on the channel, then `pusher:error` on the connection.
    #[default]
    Both,
    /// Only the first, as Soketi.
    Channel,
    /// Only the second, as hosted Pusher and Reverb.
    Connection,
}

/// One application, everything about it settled.
#[derive(Debug)]
pub struct App {
    /// Its id.
    pub id: AppId,
    /// Its active keys, the oldest first. At least one.
    pub keys: Vec<KeyPair>,
    /// Switched off, the app refuses connections (4003) and requests (403).
    pub enabled: bool,
    /// Origins that browsers may connect from; empty: all.
    pub allowed_origins: Vec<OriginPattern>,
    /// Whether clients may send events to each other, where they are subscribed.
    pub client_events: bool,
    /// Whether subscribers are told how many they are.
    pub subscription_counts: bool,
    /// Whether signed-in users are told who of their watchlist is online.
    pub watchlist: bool,
    /// A connection that has neither signed in nor joined a channel with a signature by then is closed (4009).
    pub authorized_connections_timeout: Option<Duration>,
    /// Whether connections that offer permessage-deflate get it.
    pub compression: bool,
    /// Messages shorter than this are not compressed.
    pub compression_threshold_bytes: u32,
    /// A path in front of `/app/…` and `/apps/…` that is served beside the bare one: empty, or `/…` without a
    /// slash at the end.
    pub path_prefix: Box<str>,
    /// Whether plain connections are refused (4000).
    pub tls_only: bool,
    /// Whether a connection must name its protocol version (else 4008).
    pub require_protocol: bool,
    /// Which frames tell of a refused subscription.
    pub subscription_error_frames: SubscriptionErrorFrames,
    /// What connections are closed with when the app terminates a user: 4009 (stay away) or 4200 (come back).
    pub terminate_close_code: CloseCode,
    /// Whether these are also members of presence channels with the user's id that never signed in, as with Reverb.
    pub terminate_presence_members: bool,
    /// Who is told by HTTP of what happens.
    pub webhooks: Vec<Webhook>,
    /// Whether one request may tell of several events.
    pub webhook_batching: bool,
    /// How long a request waits for more to tell of, in milliseconds.
    pub webhook_batching_ms: u16,
    /// What a channel name may be.
    pub names: NameRules,
    /// How much of everything.
    pub limits: AppLimits,
    /// Connections open now.
    pub connections: Count,
    /// Channels that are occupied now, or that keep an event.
    pub channels: Arc<Count>,
    /// Bytes of the bodies of HTTP requests in flight.
    pub body_bytes: ByteCount,
    /// The HTTP requests of this second.
    pub requests: Mutex<TokenBucket>,
    /// The events published over HTTP in this second.
    pub events: Mutex<TokenBucket>,
    /// What the operator was told of its rejections.
    pub reports: Arc<Reports>,
}

/// How much of everything an app may have. Defaults: protocol.md §12.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppLimits {
    /// Connections at once; `None`: as many as the node takes.
    pub connections_max: Option<u32>,
    /// Channels that are occupied or keep an event, at once, on each node; `None`: no limit.
    pub channels_max: Option<u32>,
    /// Bytes of the events that cache channels keep.
    pub cached_bytes_max: usize,
    /// Bytes of the bodies of HTTP requests that arrive or are being answered; never less than one body.
    pub requests_in_flight_bytes_max: usize,
    /// Signed HTTP requests a second, and as many at once; `None`: no limit.
    pub requests_per_second: Option<u32>,
    /// Events published over HTTP a second, however many channels each goes to, and as many at once, but never less
    /// than one batch; `None`: no limit.
    pub events_per_second: Option<u32>,
    /// Longest event name, in characters.
    pub event_name_chars_max: usize,
    /// Longest `data` of an event published over HTTP, in bytes of the decoded string.
    pub event_data_bytes_max: usize,
    /// Longest `data` of a client event, in bytes.
    pub client_event_data_bytes_max: usize,
    /// Longest HTTP body, in bytes.
    pub request_body_bytes_max: usize,
    /// Channels that one event may be published to.
    pub channels_per_publish_max: usize,
    /// Events in one batch.
    pub events_per_batch_max: usize,
    /// Distinct users in a presence channel.
    pub presence_members_max: usize,
    /// Longest `user_info`, in bytes of JSON.
    pub presence_user_info_bytes_max: usize,
    /// Longest user id, in characters.
    pub user_id_chars_max: usize,
    /// Longest `channel_data`, in bytes.
    pub channel_data_bytes_max: usize,
    /// Client events per connection.
    pub client_events: Rate,
    /// Users that a watchlist is cut to.
    pub watchlist_users_max: usize,
    /// Channels that one connection may be subscribed to.
    pub channels_per_connection_max: usize,
    /// Longest message of a client, in bytes.
    pub message_bytes_max: usize,
    /// Messages of one connection, pings and pongs of the WebSocket layer not counted.
    pub messages: Rate,
    /// Bytes that may wait for a client that reads too slowly.
    pub outbox_bytes_max: usize,
    /// Bytes that one connection may cause to be sent: answers to itself, and what others are told because of it.
    pub answer_bytes: Rate,
    /// Changes of one connection that others are told of: joining and leaving presence channels, being the first or the
    /// last of a channel, users that come to its watchlist or go.
    pub changes: Rate,
    /// How long a cache channel keeps its event.
    pub cache_ttl: Duration,
    /// How far the clock of a signed request may be off, in seconds.
    pub auth_window_secs: u64,
    /// For how long an idempotency key is remembered.
    pub idempotency_window: Duration,
    /// Idempotency keys that are remembered at once.
    pub idempotency_keys_max: usize,
    /// Bytes that remembered keys and their answers may have.
    pub idempotency_bytes_max: usize,
}

impl Default for AppLimits {
    fn default() -> Self {
        let event_data_bytes_max = 102_400;
        let client_event_data_bytes_max = 10_240;
        // Pusher's 1 KiB is too little for applications that come from Reverb or laravel-websockets, which have no limit.
        let presence_user_info_bytes_max = 8192;
        let user_id_chars_max = 128;
        let channel_data_bytes_max =
            Self::derived_channel_data_bytes(presence_user_info_bytes_max, user_id_chars_max);
        Self {
            connections_max: None,
            // Several for each of the hundred thousand connections of a large node; without names and subscribers
            // each is half a kilobyte.
            channels_max: Some(500_000),
            cached_bytes_max: 64 * 1024 * 1024,
            // Ten of the longest bodies.
            requests_in_flight_bytes_max: 64 * 1024 * 1024,
            requests_per_second: None,
            events_per_second: None,
            event_name_chars_max: 200,
            event_data_bytes_max,
            client_event_data_bytes_max,
            request_body_bytes_max: Self::derived_body_bytes(event_data_bytes_max),
            channels_per_publish_max: 100,
            events_per_batch_max: 10,
            presence_members_max: 1000,
            presence_user_info_bytes_max,
            user_id_chars_max,
            channel_data_bytes_max,
            client_events: Rate { per_second: 10, burst: 10 },
            watchlist_users_max: 100,
            channels_per_connection_max: 1000,
            message_bytes_max: Self::derived_message_bytes(
                client_event_data_bytes_max,
                channel_data_bytes_max,
            ),
            // A client that comes back subscribes to all its channels at once.
            messages: Rate { per_second: 100, burst: 1500 },
            // More than the largest batch, which even a client that reads gets faster than it can. Shared by all
            // that wait for the same.
            outbox_bytes_max: 8 * 1024 * 1024,
            // A client that comes back to 100 presence channels of 1000 members has caused some 33 MB.
            answer_bytes: Rate { per_second: 1024 * 1024, burst: 32 * 1024 * 1024 },
            // It is the first in all the channels that a connection may have.
            changes: Rate { per_second: 20, burst: 1000 },
            cache_ttl: Duration::from_secs(1800),
            auth_window_secs: 600,
            idempotency_window: Duration::from_secs(120),
            // What a busy application publishes in the window; an answer is a few bytes.
            idempotency_keys_max: 10_000,
            idempotency_bytes_max: 4 * 1024 * 1024,
        }
    }
}

impl AppLimits {
    /// The body limit that never cuts a legal batch: ten events of the data limit, each byte escaped as six, and
    /// room for names. Source: protocol.md §8.1.
    #[must_use]
    pub const fn derived_body_bytes(event_data_bytes_max: usize) -> usize {
        event_data_bytes_max.saturating_mul(60).saturating_add(64 * 1024)
    }

    /// The limit of `channel_data` that never refuses a legal member: the longest `user_info`, the longest id with each
    /// character escaped as two units of UTF-16, and 1 KiB for the keys and what else the application writes.
    #[must_use]
    pub const fn derived_channel_data_bytes(user_info_bytes_max: usize, user_id_chars_max: usize) -> usize {
        user_info_bytes_max.saturating_add(user_id_chars_max.saturating_mul(12)).saturating_add(1024)
    }

    /// The message limit: 16 KiB more than a client event's data; `channel_data` three times, as long as JSON becomes
    /// at most when it is put into a string, and 512 bytes for name and signature; at least 32 KiB.
    /// Source: protocol.md §1.3.
    #[must_use]
    pub const fn derived_message_bytes(
        client_event_data_bytes_max: usize,
        channel_data_bytes_max: usize,
    ) -> usize {
        let event = client_event_data_bytes_max.saturating_add(16 * 1024);
        let subscribe = channel_data_bytes_max.saturating_mul(3).saturating_add(512);
        let derived = if event < subscribe { subscribe } else { event };
        if derived < 32 * 1024 { 32 * 1024 } else { derived }
    }
}

impl App {
    /// An app with one key and the defaults of everything else.
    #[must_use]
    pub fn new(id: &str, key: &str, secret: &str) -> Self {
        Self {
            id: AppId(id.into()),
            keys: vec![KeyPair { key: key.into(), secret: SigningKey::new(secret) }],
            enabled: true,
            allowed_origins: Vec::new(),
            client_events: true,
            subscription_counts: false,
            watchlist: true,
            authorized_connections_timeout: None,
            compression: false,
            // docs/compression.md: what is shorter saves less than the headers of the packet it travels in.
            compression_threshold_bytes: 512,
            path_prefix: "".into(),
            tls_only: false,
            require_protocol: false,
            subscription_error_frames: SubscriptionErrorFrames::default(),
            terminate_close_code: CloseCode::Unauthorized,
            terminate_presence_members: false,
            webhooks: Vec::new(),
            // Receivers are known that read the first event of a request only.
            webhook_batching: false,
            webhook_batching_ms: 50,
            names: NameRules::default(),
            limits: AppLimits::default(),
            connections: Count::default(),
            channels: Arc::default(),
            body_bytes: ByteCount::default(),
            requests: Mutex::default(),
            events: Mutex::default(),
            reports: Arc::default(),
        }
    }

    /// What a connection of the app agrees upon that offers permessage-deflate.
    #[must_use]
    pub const fn offered_compression(&self) -> Compression {
        if self.compression {
            Compression::Deflate { bytes_min: self.compression_threshold_bytes }
        } else {
            Compression::Off
        }
    }

    /// The secret that belongs to `key`, if it is an active key of this app.
    #[must_use]
    pub fn secret(&self, key: &str) -> Option<&SigningKey> {
        self.keys.iter().find(|pair| *pair.key == *key).map(|pair| &pair.secret)
    }

    /// Counts a signed request at `now`.
    ///
    /// # Errors
    /// The app makes too many; how long until the next may come.
    pub fn take_request(&self, now: impl FnOnce() -> Duration) -> Result<(), Duration> {
        let Some(per_second) = self.limits.requests_per_second else { return Ok(()) };
        self.requests.lock().take_many(1, Rate { per_second, burst: per_second }, now())
    }

    /// Counts `count` events that are published together, all or none, at `now`.
    ///
    /// # Errors
    /// The app publishes too many; how long until there is room for these.
    pub fn take_events(&self, count: usize, now: impl FnOnce() -> Duration) -> Result<(), Duration> {
        let Some(per_second) = self.limits.events_per_second else { return Ok(()) };
        let batch_max = u32::try_from(self.limits.events_per_batch_max).unwrap_or(u32::MAX);
        let rate = Rate { per_second, burst: per_second.max(batch_max) };
        self.events.lock().take_many(u32::try_from(count).unwrap_or(u32::MAX), rate, now())
    }

    /// Bytes that the bodies of its requests in flight may have: one body always has its place.
    #[must_use]
    pub fn requests_in_flight_bytes_max(&self) -> usize {
        self.limits.requests_in_flight_bytes_max.max(self.limits.request_body_bytes_max)
    }

    /// The value of one of its limits, in the limit's unit. `None`: it has none, or the limit is the node's.
    #[must_use]
    pub fn value_of(&self, limit: Limit) -> Option<u64> {
        let limits = &self.limits;
        match limit {
            Limit::AppConnections => limits.connections_max.map(u64::from),
            Limit::Messages => Some(limits.messages.per_second.into()),
            Limit::MessageBytes => Some(limits.message_bytes_max as u64),
            Limit::ClientEvents => Some(limits.client_events.per_second.into()),
            Limit::ConnectionChannels => Some(limits.channels_per_connection_max as u64),
            Limit::AppChannels => limits.channels_max.map(u64::from),
            Limit::CachedBytes => Some(limits.cached_bytes_max as u64),
            Limit::RequestsInFlightBytes => Some(self.requests_in_flight_bytes_max() as u64),
            Limit::PresenceMembers => Some(limits.presence_members_max as u64),
            Limit::Requests => limits.requests_per_second.map(u64::from),
            Limit::Events => limits.events_per_second.map(u64::from),
            Limit::ChannelNameBytes => Some(self.names.bytes_max as u64),
            Limit::ChannelDataBytes => Some(limits.channel_data_bytes_max as u64),
            Limit::UserInfoBytes => Some(limits.presence_user_info_bytes_max as u64),
            Limit::UserIdChars => Some(limits.user_id_chars_max as u64),
            Limit::EventNameChars => Some(limits.event_name_chars_max as u64),
            Limit::ClientEventBytes => Some(limits.client_event_data_bytes_max as u64),
            Limit::RequestBytes => Some(limits.request_body_bytes_max as u64),
            Limit::OutboxBytes => Some(limits.outbox_bytes_max as u64),
            Limit::AnswerBytes => Some(limits.answer_bytes.per_second.into()),
            Limit::Changes => Some(limits.changes.per_second.into()),
            Limit::IdempotencyKeys => Some(limits.idempotency_keys_max as u64),
            Limit::NodeConnections
            | Limit::OpenFiles
            | Limit::NodeCachedBytes
            | Limit::NodeRequestsInFlightBytes
            | Limit::AddressConnections
            | Limit::AddressRate
            | Limit::Unauthenticated
            | Limit::Handshake
            | Limit::ProxyProtocol
            | Limit::MessageTime
            | Limit::QueuedBytes
            | Limit::WriteTime => None,
        }
    }

    /// Whether it has as many connections as it may have.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.limits.connections_max.is_some_and(|max| self.connections.now() >= max)
    }

    /// Whether a browser may connect from `origin`.
    #[must_use]
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.allowed_origins.is_empty() || self.allowed_origins.iter().any(|pattern| pattern.matches(origin))
    }
}

/// One place among an app's connections; dropping it gives the place back, on whichever path.
#[derive(Debug)]
pub struct ConnectionPlace(Arc<App>);

impl ConnectionPlace {
    /// Takes a place, or answers `None` when the app has none left.
    #[must_use]
    pub fn take(app: &Arc<App>) -> Option<Self> {
        app.connections.take(app.limits.connections_max).then(|| Self(Arc::clone(app)))
    }

    /// Whose place it is.
    #[must_use]
    pub const fn app(&self) -> &Arc<App> {
        &self.0
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.0.connections.give_back();
    }
}

/// The apps of this server: a fixed list.
#[derive(Debug, Default)]
pub struct Apps {
    by_id: HashMap<AppId, Arc<App>>,
    by_key: HashMap<Box<str>, Arc<App>>,
    prefixes: BTreeSet<Box<str>>,
}

impl Apps {
    /// Takes the apps in. Ids and keys are distinct; the config room has seen to it.
    #[must_use]
    pub fn new(apps: impl IntoIterator<Item = App>) -> Self {
        let mut all = Self::default();
        for app in apps.into_iter().map(Arc::new) {
            all.prefixes.insert(app.path_prefix.clone());
            for pair in &app.keys {
                all.by_key.insert(pair.key.clone(), Arc::clone(&app));
            }
            all.by_id.insert(app.id.clone(), app);
        }
        all
    }

    /// The app with this id.
    #[must_use]
    pub fn by_id(&self, id: &str) -> Option<&Arc<App>> {
        self.by_id.get(id)
    }

    /// The app with this key.
    #[must_use]
    pub fn by_key(&self, key: &str) -> Option<&Arc<App>> {
        self.by_key.get(key)
    }

    /// All apps, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<App>> {
        self.by_id.values()
    }

    /// Splits the prefix of an app from a request's path. A bare path has the prefix `""`. Of several slashes that a path
    /// begins with, as some proxies make them, the last one counts.
    #[must_use]
    pub fn split_prefix<'p>(&self, path: &'p str) -> (&'p str, &'p str) {
        let path = collapse(path);
        // The longest first, so that `/a/b` is not taken for `/a`.
        let of_an_app = self.prefixes.iter().rev().filter(|prefix| !prefix.is_empty());
        for prefix in of_an_app {
            if let Some(rest) = path.strip_prefix(&**prefix)
                && rest.starts_with('/')
            {
                return path.split_at(prefix.len());
            }
        }
        ("", path)
    }
}

/// A path with one slash at its beginning instead of several.
fn collapse(path: &str) -> &str {
    let slashes = path.bytes().take_while(|byte| *byte == b'/').count();
    &path[slashes.saturating_sub(1)..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_found_by_its_id_and_by_each_of_its_keys() {
        let mut app = App::new("1", "old", "s1");
        app.keys.push(KeyPair { key: "new".into(), secret: SigningKey::new("s2") });
        let apps = Apps::new([app, App::new("2", "other", "s3")]);
        assert_eq!(&*apps.by_key("old").unwrap().id.0, "1");
        assert_eq!(&*apps.by_key("new").unwrap().id.0, "1");
        assert!(apps.by_id("3").is_none());
        assert!(apps.by_key("").is_none());
        assert!(apps.by_id("1").unwrap().secret("other").is_none(), "a key of another app");
    }

    #[test]
    fn the_last_place_is_taken_once_and_given_back() {
        let mut app = App::new("1", "k", "s");
        app.limits.connections_max = Some(10);
        let app = Arc::new(app);
        let (send, places) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (app, send) = (&app, send.clone());
                scope.spawn(move || (0..10).for_each(|_| send.send(ConnectionPlace::take(app)).unwrap()));
            }
        });
        drop(send);
        let places: Vec<_> = places.into_iter().flatten().collect();
        assert_eq!((places.len(), app.connections.now()), (10, 10));
        drop(places);
        assert_eq!(app.connections.now(), 0);
    }

    #[test]
    fn a_whole_batch_fits_the_rate_of_events_however_low_it_is() {
        let mut app = App::new("1", "k", "s");
        app.limits.events_per_second = Some(2);
        assert_eq!(app.take_events(10, || Duration::ZERO), Ok(()));
        assert_eq!(app.take_events(1, || Duration::ZERO), Err(Duration::from_millis(500)));
        assert_eq!(app.take_events(10, || Duration::from_secs(5)), Ok(()));
        assert_eq!(app.take_request(|| Duration::ZERO), Ok(()), "requests have a rate of their own");
    }

    #[test]
    fn the_longest_prefix_is_split_off_at_a_slash() {
        let app = |id: &str, prefix: &str| App { path_prefix: prefix.into(), ..App::new(id, id, "s") };
        let apps = Apps::new([app("1", ""), app("2", "/rt"), app("3", "/rt/deep")]);
        assert_eq!(apps.split_prefix("/app/k"), ("", "/app/k"));
        assert_eq!(apps.split_prefix("/rt/app/k"), ("/rt", "/app/k"));
        assert_eq!(apps.split_prefix("/rt/deep/app/k"), ("/rt/deep", "/app/k"));
        assert_eq!(apps.split_prefix("/rtx/app/k"), ("", "/rtx/app/k"));
        assert_eq!(apps.split_prefix("/rt"), ("", "/rt"));
    }
}
