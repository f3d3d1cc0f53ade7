//! Apps: the applications that may use this server, with their keys and limits.
//!
//! This module owns [`App`], the settings of one application, [`AppState`], what it has on this node, and [`Apps`], the lookup
//! by id or key. An `Arc<App>` is a snapshot, so no rule waits for a lookup, and settings that belong together change
//! together. The `config` module checks the values. Start at [`App`].

mod limits;
mod list;
mod origin;
mod permit;
mod state;
mod webhook;

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use limits::AppLimits;
pub use list::Apps;
pub use origin::{OriginPattern, OriginPatternError};
pub use permit::ConnectionPermit;
pub use state::AppState;
pub use webhook::{
    ChannelFilter, EventType, EventTypes, Webhook, WebhookHeaderError, WebhookUrl, WebhookUrlError,
    webhook_header,
};

use crate::limits::{Limit, Rate};
use crate::protocol::signature::SigningKey;
use crate::protocol::wire::Form;
use crate::protocol::{CloseCode, NameRules};

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

/// The frames that a client receives for a refused subscription.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SubscriptionErrorFrames {
    /// `pusher:subscription_error` on the channel, then `pusher:error` on the connection.
    #[default]
    Both,
    /// Only the first, like Soketi.
    Channel,
    /// Only the second, like hosted Pusher and Reverb.
    Connection,
}

/// One application: a snapshot of its settings, and its state on this node, which all snapshots share.
#[derive(Debug)]
pub struct App {
    /// The id.
    pub id: AppId,
    /// The active keys, oldest first. At least one.
    pub keys: Vec<KeyPair>,
    /// A disabled app rejects connections (4003) and requests (403).
    pub enabled: bool,
    /// Origins that browsers may connect from; empty: all.
    pub allowed_origins: Vec<OriginPattern>,
    /// Whether clients may send client events.
    pub client_events: bool,
    /// Whether subscribers receive the subscription count.
    pub subscription_counts: bool,
    /// Whether signed-in users receive the state of the users on their watchlist.
    pub watchlist: bool,
    /// The time in which a connection must sign in or subscribe with a signature. Otherwise it is closed (4009).
    pub authorized_connections_timeout: Option<Duration>,
    /// Whether permessage-deflate is accepted.
    pub compression: bool,
    /// Messages shorter than this are not compressed.
    pub compression_threshold_bytes: u32,
    /// A prefix of `/app/…` and `/apps/…`, served in addition to the paths without it: empty, or `/…` without a trailing
    /// slash.
    pub path_prefix: Box<str>,
    /// Whether connections without TLS are rejected (4000).
    pub tls_only: bool,
    /// Whether a connection must send its protocol version (else 4008).
    pub require_protocol: bool,
    /// The frames for a refused subscription.
    pub subscription_error_frames: SubscriptionErrorFrames,
    /// The close code when the application terminates the connections of a user: 4009 (do not reconnect) or 4200
    /// (reconnect).
    pub terminate_close_code: CloseCode,
    /// Whether that also closes connections that are in presence channels as the user without having signed in, like
    /// Reverb does.
    pub terminate_presence_members: bool,
    /// The receivers of webhooks.
    pub webhooks: Vec<Webhook>,
    /// Whether one webhook request may contain several events.
    pub webhook_batching: bool,
    /// How long a webhook request waits for more events, in milliseconds.
    pub webhook_batching_ms: u16,
    /// The rules for channel names.
    pub names: NameRules,
    /// The limits.
    pub limits: AppLimits,
    /// What the app has on this node.
    pub state: Arc<AppState>,
    /// Whether [`Apps`] has another snapshot, or none any more.
    pub replaced: Replaced,
}

/// See [`App::is_replaced`].
#[derive(Debug, Default)]
pub struct Replaced(AtomicBool);

impl App {
    /// An app with one key and the defaults.
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
            // docs/compression.md: a shorter message saves less than the headers of its packet.
            compression_threshold_bytes: 512,
            path_prefix: "".into(),
            tls_only: false,
            require_protocol: false,
            subscription_error_frames: SubscriptionErrorFrames::default(),
            terminate_close_code: CloseCode::Unauthorized,
            terminate_presence_members: false,
            webhooks: Vec::new(),
            // Some receivers read only the first event of a request.
            webhook_batching: false,
            webhook_batching_ms: 50,
            names: NameRules::default(),
            limits: AppLimits::default(),
            state: Arc::default(),
            replaced: Replaced::default(),
        }
    }

    /// The form of messages for a connection that offers permessage-deflate.
    #[must_use]
    pub const fn form_with_compression(&self) -> Form {
        if self.compression {
            Form::DeflatedFrame { bytes_min: self.compression_threshold_bytes }
        } else {
            Form::Frame
        }
    }

    /// The secret of `key`, if that is an active key of this app.
    #[must_use]
    pub fn secret(&self, key: &str) -> Option<&SigningKey> {
        self.keys.iter().find(|pair| *pair.key == *key).map(|pair| &pair.secret)
    }

    /// Counts a signed request at `now`.
    ///
    /// # Errors
    /// The rate is exceeded. The error is the time until the next request is accepted.
    pub fn count_request(&self, now: impl FnOnce() -> Duration) -> Result<(), Duration> {
        let Some(per_second) = self.limits.requests_per_second else { return Ok(()) };
        self.state.count_request(Rate { per_second, burst: per_second }, now())
    }

    /// Counts `count` events that are published together at `now`: all or none.
    ///
    /// # Errors
    /// The rate is exceeded. The error is the time until as many events are accepted.
    pub fn count_events(&self, count: usize, now: impl FnOnce() -> Duration) -> Result<(), Duration> {
        let Some(per_second) = self.limits.events_per_second else { return Ok(()) };
        let batch_max = u32::try_from(self.limits.events_per_batch_max).unwrap_or(u32::MAX);
        let rate = Rate { per_second, burst: per_second.max(batch_max) };
        self.state.count_events(u32::try_from(count).unwrap_or(u32::MAX), rate, now())
    }

    /// The limit of bytes in the bodies of requests in flight. It is never less than one body.
    #[must_use]
    pub fn requests_in_flight_bytes_max(&self) -> usize {
        self.limits.requests_in_flight_bytes_max.max(self.limits.request_body_bytes_max)
    }

    /// The value of a limit, in its unit. `None`: it is not limited, or the limit belongs to the node.
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

    /// Whether the app has reached its limit of connections.
    #[must_use]
    pub fn is_at_connection_limit(&self) -> bool {
        self.limits.connections_max.is_some_and(|max| self.state.connections.now() >= max)
    }

    /// Whether the settings of the app were replaced, or the app was removed: look it up again. One load, so that connections
    /// can ask before each message.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.replaced.0.load(Ordering::Acquire)
    }

    fn mark_replaced(&self) {
        self.replaced.0.store(true, Ordering::Release);
    }

    /// Whether a browser may connect from `origin`.
    #[must_use]
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.allowed_origins.is_empty() || self.allowed_origins.iter().any(|pattern| pattern.matches(origin))
    }
}

#[cfg(test)]
mod tests;
