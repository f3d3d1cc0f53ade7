//! Where an app's webhooks go, and which of them.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::protocol::ChannelName;

/// One receiver of an app's webhooks.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Where requests go.
    pub url: WebhookUrl,
    /// Headers that every request has beside pusherd's own. Their values do not print.
    pub headers: HeaderMap,
    /// What it hears of.
    pub event_types: EventTypes,
    /// Which channels it hears of.
    pub filter: ChannelFilter,
}

impl Webhook {
    /// A receiver of Pusher's events of all channels.
    #[must_use]
    pub fn new(url: WebhookUrl) -> Self {
        Self {
            url,
            headers: HeaderMap::new(),
            event_types: EventTypes::PUSHER,
            filter: ChannelFilter::default(),
        }
    }

    /// Whether it hears of any of `types` on `channel`.
    #[must_use]
    pub fn wants(&self, types: EventTypes, channel: &ChannelName) -> bool {
        self.event_types.has_any(types) && self.filter.passes(channel)
    }
}

/// What a webhook tells of. Source: protocol.md §9.2; the last two are pusherd's own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum EventType {
    /// A channel has its first subscriber.
    ChannelOccupied = 1,
    /// A channel has no subscriber any more.
    ChannelVacated = 1 << 1,
    /// A user came to a presence channel.
    MemberAdded = 1 << 2,
    /// A user is gone from a presence channel.
    MemberRemoved = 1 << 3,
    /// A client sent an event.
    ClientEvent = 1 << 4,
    /// A subscriber found an empty cache.
    CacheMiss = 1 << 5,
    /// The number of subscribers has changed.
    SubscriptionCount = 1 << 6,
    /// A user signed in on their first connection.
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

    /// Its name on the wire and in the configuration.
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

    /// The type of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event_type| event_type.name() == name)
    }
}

/// A set of types.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EventTypes(u16);

impl EventTypes {
    /// Pusher's seven: what a receiver hears of that names none.
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

    /// Its types.
    pub fn iter(self) -> impl Iterator<Item = EventType> {
        EventType::ALL.into_iter().filter(move |event_type| self.has_any(Self(*event_type as u16)))
    }
}

/// Which channels a receiver hears of: those that fit both; an empty text fits all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ChannelFilter {
    /// How the name begins.
    pub starts_with: Box<str>,
    /// How it ends.
    pub ends_with: Box<str>,
}

impl ChannelFilter {
    /// Whether `channel` fits.
    #[must_use]
    pub fn passes(&self, channel: &ChannelName) -> bool {
        channel.as_str().starts_with(&*self.starts_with) && channel.as_str().ends_with(&*self.ends_with)
    }
}

/// An `http` or `https` URL that webhooks go to. Prints without its query, which may hold a token.
#[derive(Clone, Eq, PartialEq)]
pub struct WebhookUrl(Uri);

/// Why a text is not such a URL. Says nothing of the text, which may hold a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WebhookUrlError {
    /// Another scheme, no host, or characters that no URL has.
    #[error("must be a URL such as https://app.example.com/hooks")]
    Malformed,
    /// Something in front of an `@`.
    #[error("must not hold a user and password; use a header, such as Authorization")]
    Credentials,
    /// Something after a `#`.
    #[error("must not hold a fragment (#…), which is never sent")]
    Fragment,
}

impl WebhookUrl {
    /// Takes a URL in.
    ///
    /// # Errors
    /// [`WebhookUrlError`] names the rule that it breaks.
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
        // What follows the last colon of the authority is a port, or belongs to an address in brackets.
        let has_port = authority.as_str().rsplit(':').next() != Some(authority.as_str());
        let bad_port =
            has_port && !authority.as_str().ends_with(']') && authority.port_u16().is_none_or(|p| p == 0);
        if !is_web || authority.host().is_empty() || bad_port {
            return Err(WebhookUrlError::Malformed);
        }
        if uri.path_and_query().is_none_or(|target| target.as_str().starts_with('/')) {
            return Ok(Self(uri));
        }
        // A query without a path is of the root. Source: RFC 9112 §3.2.1.
        let rooted = text.replacen('?', "/?", 1);
        rooted.parse().map(Self).map_err(|_| WebhookUrlError::Malformed)
    }

    /// Whether requests go over TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }

    /// The host, an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host().unwrap_or_default().trim_matches(['[', ']'])
    }

    /// The host, where it is an address.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.host().parse().ok()
    }

    /// The port, written or of the scheme.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port_u16().unwrap_or(if self.is_https() { 443 } else { 80 })
    }

    /// Host and port as written: the `Host` of a request.
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

/// Headers that every webhook has, beside those that begin with `x-pusher-`.
const OWN: [&str; 3] = ["content-type", "user-agent", "x-pusherd-event-ids"];

/// Headers that are the connection's to set.
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

/// Why a header may not be added to webhooks. Says nothing of its value.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum WebhookHeaderError {
    /// Not the name of a header.
    #[error("is not the name of a header")]
    Name,
    /// A value that HTTP has no room for.
    #[error("must be visible ASCII characters, spaces and tabs")]
    Value,
    /// One that says what a webhook is, and who sent it.
    #[error("is a header that every webhook has")]
    Own,
    /// One that says how the request is sent.
    #[error("is a header that pusherd sets itself")]
    Reserved,
}

/// Checks a header that webhooks get beside pusherd's own.
///
/// # Errors
/// [`WebhookHeaderError`] names the rule that it breaks.
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
mod tests {
    use super::*;
    use crate::protocol::NameRules;

    #[test]
    fn without_a_word_on_it_all_of_pushers_types_are_told_of_and_none_of_pusherds_own() {
        let names: Vec<_> = EventTypes::PUSHER.iter().map(EventType::name).collect();
        assert_eq!(
            names,
            [
                "channel_occupied",
                "channel_vacated",
                "member_added",
                "member_removed",
                "client_event",
                "cache_miss",
                "subscription_count"
            ]
        );
        for event_type in EventType::ALL {
            assert_eq!(EventType::parse(event_type.name()), Some(event_type));
        }
        assert_eq!(EventType::parse("channel_created"), None);
    }

    #[test]
    fn a_filter_wants_the_beginning_and_the_end() {
        let channel = |name: &str| ChannelName::parse(name, &NameRules::default()).unwrap();
        let filter = |starts_with: &str, ends_with: &str| ChannelFilter {
            starts_with: starts_with.into(),
            ends_with: ends_with.into(),
        };
        let table = [
            (filter("", ""), "news", true),
            (filter("presence-", ""), "presence-room", true),
            (filter("presence-", ""), "private-room", false),
            (filter("", "-room"), "private-room", true),
            (filter("", "-room"), "private-roomy", false),
            (filter("presence-", "-a"), "presence-room-a", true),
            (filter("presence-", "-a"), "presence-room-b", false),
            (filter("presence-", "-a"), "x-a", false),
        ];
        for (filter, name, expected) in table {
            assert_eq!(filter.passes(&channel(name)), expected, "{filter:?} {name}");
        }
    }

    #[test]
    fn a_url_is_taken_apart() {
        let url = |text| WebhookUrl::parse(text).unwrap();
        let table = [
            ("http://127.0.0.1/hooks", false, "127.0.0.1", 80, "127.0.0.1", "/hooks"),
            ("https://app.test", true, "app.test", 443, "app.test", "/"),
            ("https://app.test:8443/a?b=c", true, "app.test", 8443, "app.test:8443", "/a?b=c"),
            ("https://app.test?token=x?y", true, "app.test", 443, "app.test", "/?token=x?y"),
            ("http://[::1]:9000/", false, "::1", 9000, "[::1]:9000", "/"),
            ("http://[fe80::1]/x", false, "fe80::1", 80, "[fe80::1]", "/x"),
        ];
        for (text, https, host, port, authority, target) in table {
            let url = url(text);
            let parts = (url.is_https(), url.host(), url.port(), url.authority(), url.target());
            assert_eq!(parts, (https, host, port, authority, target), "{text}");
        }
    }

    #[test]
    fn a_url_does_not_print_its_query() {
        let url = WebhookUrl::parse("https://app.test:8443/a?token=hunter2").unwrap();
        assert_eq!(format!("{url} {url:?}"), "https://app.test:8443/a https://app.test:8443/a");
        assert_eq!(
            WebhookUrl::parse("https://app.test?token=hunter2").unwrap().to_string(),
            "https://app.test/"
        );
    }

    #[test]
    fn what_is_no_url_for_webhooks_is_refused() {
        use WebhookUrlError::{Credentials, Fragment, Malformed};
        let table = [
            ("", Malformed),
            ("/hooks", Malformed),
            ("app.test/hooks", Malformed),
            ("ftp://app.test/hooks", Malformed),
            ("http://", Malformed),
            ("http:///hooks", Malformed),
            ("http://app.test:0/", Malformed),
            ("http://app.test:99999/", Malformed),
            ("http://app.test:x/", Malformed),
            ("http://app test/", Malformed),
            ("http://ümlaut.test/", Malformed),
            ("http://user:pass@app.test/", Credentials),
            ("http://app.test/#x", Fragment),
        ];
        for (text, expected) in table {
            assert_eq!(WebhookUrl::parse(text), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn headers_of_pusherds_own_are_refused_and_values_do_not_print() {
        use WebhookHeaderError::{Name, Own, Reserved, Value};
        for name in ["Content-Type", "X-Pusher-Key", "x-pusher-anything", "X-Pusherd-Event-Ids", "User-Agent"]
        {
            assert_eq!(webhook_header(name, "x"), Err(Own), "{name}");
        }
        for name in ["HOST", "Connection", "content-length"] {
            assert_eq!(webhook_header(name, "x"), Err(Reserved), "{name}");
        }
        assert_eq!(webhook_header("a b", "x"), Err(Name));
        assert_eq!(webhook_header("", "x"), Err(Name));
        assert_eq!(webhook_header("X-A", "a\nb"), Err(Value));
        let (_, value) = webhook_header("Authorization", "Bearer hunter2").unwrap();
        assert!(!format!("{value:?}").contains("hunter2"));
    }
}
