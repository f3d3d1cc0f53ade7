//! The receivers of an app's webhooks: URL, headers, and the events that each receives.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::protocol::ChannelName;

/// One receiver of an app's webhooks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Webhook {
    /// The URL.
    pub url: WebhookUrl,
    /// Headers of every request in addition to pusherd's own. Their values do not print.
    pub headers: HeaderMap,
    /// The types of events that it receives.
    pub event_types: EventTypes,
    /// The channels whose events it receives.
    pub filter: ChannelFilter,
}

impl Webhook {
    /// A receiver of Pusher's types of events of all channels.
    #[must_use]
    pub fn new(url: WebhookUrl) -> Self {
        Self {
            url,
            headers: HeaderMap::new(),
            event_types: EventTypes::PUSHER,
            filter: ChannelFilter::default(),
        }
    }

    /// Whether it receives any of `types` on `channel`.
    #[must_use]
    pub fn wants(&self, types: EventTypes, channel: &ChannelName) -> bool {
        self.event_types.has_any(types) && self.filter.passes(channel)
    }
}

/// The types of webhook events. Source: protocol.md §9.2; the last two are pusherd's own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum EventType {
    /// A channel has its first subscriber.
    ChannelOccupied = 1,
    /// A channel has no subscriber any more.
    ChannelVacated = 1 << 1,
    /// A user joined a presence channel.
    MemberAdded = 1 << 2,
    /// A user left a presence channel.
    MemberRemoved = 1 << 3,
    /// A client sent an event.
    ClientEvent = 1 << 4,
    /// A subscriber of a cache channel found no cached event.
    CacheMiss = 1 << 5,
    /// The number of subscribers has changed.
    SubscriptionCount = 1 << 6,
    /// A user signed in on a first connection.
    UserOnline = 1 << 7,
    /// The last connection of a signed-in user ended.
    UserOffline = 1 << 8,
}

impl EventType {
    /// Every type.
    pub const ALL: [Self; 9] = [
        Self::ChannelOccupied,
        Self::ChannelVacated,
        Self::MemberAdded,
        Self::MemberRemoved,
        Self::ClientEvent,
        Self::CacheMiss,
        Self::SubscriptionCount,
        Self::UserOnline,
        Self::UserOffline,
    ];

    /// The name on the wire and in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChannelOccupied => "channel_occupied",
            Self::ChannelVacated => "channel_vacated",
            Self::MemberAdded => "member_added",
            Self::MemberRemoved => "member_removed",
            Self::ClientEvent => "client_event",
            Self::CacheMiss => "cache_miss",
            Self::SubscriptionCount => "subscription_count",
            Self::UserOnline => "user_online",
            Self::UserOffline => "user_offline",
        }
    }

    /// The type with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event_type| event_type.name() == name)
    }
}

/// A set of types.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EventTypes(u16);

impl EventTypes {
    /// Pusher's seven types, the default of a receiver.
    pub const PUSHER: Self = Self(EventType::UserOnline as u16 - 1);

    /// The set of `types`.
    #[must_use]
    pub const fn of(types: &[EventType]) -> Self {
        let (mut set, mut at) = (0, 0);
        while at < types.len() {
            set |= types[at] as u16;
            at += 1;
        }
        Self(set)
    }

    /// Whether the two have a type in common.
    #[must_use]
    pub const fn has_any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The types in the set.
    pub fn iter(self) -> impl Iterator<Item = EventType> {
        EventType::ALL.into_iter().filter(move |event_type| self.has_any(Self(*event_type as u16)))
    }
}

/// The channels whose events a receiver gets: both conditions must hold; an empty text matches all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ChannelFilter {
    /// The start of the name.
    pub starts_with: Box<str>,
    /// The end of the name.
    pub ends_with: Box<str>,
}

impl ChannelFilter {
    /// Whether `channel` matches.
    #[must_use]
    pub fn passes(&self, channel: &ChannelName) -> bool {
        channel.as_str().starts_with(&*self.starts_with) && channel.as_str().ends_with(&*self.ends_with)
    }
}

/// The `http` or `https` URL of a receiver. Prints without its query, which may contain a token.
#[derive(Clone, Eq, PartialEq)]
pub struct WebhookUrl(Uri);

/// Why a text is not such a URL. Does not repeat the text, which may contain a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WebhookUrlError {
    /// Another scheme, no host, or invalid characters.
    #[error("must be a URL such as https://app.example.com/hooks")]
    Malformed,
    /// A user and password.
    #[error("must not hold a user and password; use a header, such as Authorization")]
    Credentials,
    /// A fragment.
    #[error("must not hold a fragment (#…), which is never sent")]
    Fragment,
}

impl WebhookUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// [`WebhookUrlError`] names the rule that `text` breaks.
    pub fn parse(text: &str) -> Result<Self, WebhookUrlError> {
        if text.contains('#') {
            return Err(WebhookUrlError::Fragment);
        }
        let uri: Uri = text.parse().map_err(|_| WebhookUrlError::Malformed)?;
        let authority = uri.authority().ok_or(WebhookUrlError::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(WebhookUrlError::Credentials);
        }
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        // The text after the last colon of the authority is a port, or part of an address in brackets.
        let has_port = authority.as_str().rsplit(':').next() != Some(authority.as_str());
        let bad_port =
            has_port && !authority.as_str().ends_with(']') && authority.port_u16().is_none_or(|p| p == 0);
        if !is_web || authority.host().is_empty() || bad_port {
            return Err(WebhookUrlError::Malformed);
        }
        if uri.path_and_query().is_none_or(|target| target.as_str().starts_with('/')) {
            return Ok(Self(uri));
        }
        // A query without a path belongs to the root path. Source: RFC 9112 §3.2.1.
        let rooted = text.replacen('?', "/?", 1);
        rooted.parse().map(Self).map_err(|_| WebhookUrlError::Malformed)
    }

    /// Whether requests go over TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    /// The host; an IPv6 address has no brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// The host, if it is an IP address.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.host().parse().ok()
    }

    /// The port, explicit or that of the scheme.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port_u16().unwrap_or(if self.is_https() { 443 } else { 80 })
    }

    /// Host and port as written: the `Host` header of a request.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.0.authority().map_or("", |authority| authority.as_str())
    }

    /// Path and query: the target of a request.
    #[must_use]
    pub fn target(&self) -> &str {
        self.0.path_and_query().map_or("/", |target| target.as_str())
    }
}

impl fmt::Display for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.0.scheme_str().unwrap_or_default(), self.authority(), self.0.path())
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Headers that every webhook has, in addition to those that start with `x-pusher-`.
const OWN: [&str; 3] = ["content-type", "user-agent", "x-pusherd-event-ids"];

/// Headers that belong to the connection.
const RESERVED: [&str; 11] = [
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Why a header cannot be added to webhooks. Does not repeat its value.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WebhookHeaderError {
    /// Not the name of a header.
    #[error("is not the name of a header")]
    Name,
    /// A value with characters that HTTP does not allow.
    #[error("must be visible ASCII characters, spaces and tabs")]
    Value,
    /// A header of every webhook.
    #[error("is a header that every webhook has")]
    Own,
    /// A header that describes how the request is sent.
    #[error("is a header that pusherd sets itself")]
    Reserved,
}

/// Checks a header that is added to webhooks.
///
/// # Errors
/// [`WebhookHeaderError`] names the rule that the header breaks.
pub fn webhook_header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), WebhookHeaderError> {
    let name: HeaderName = name.parse().map_err(|_| WebhookHeaderError::Name)?;
    if name.as_str().starts_with("x-pusher-") || OWN.contains(&name.as_str()) {
        return Err(WebhookHeaderError::Own);
    }
    if RESERVED.contains(&name.as_str()) {
        return Err(WebhookHeaderError::Reserved);
    }
    let mut value = HeaderValue::from_str(value).map_err(|_| WebhookHeaderError::Value)?;
    value.set_sensitive(true);
    Ok((name, value))
}

#[cfg(test)]
mod tests;
