//! Webhook events and their JSON. Source: protocol.md §9.2.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::apps::EventType;
use crate::protocol::{Access, ChannelName, SocketId, UserId};

/// An event that receivers can subscribe to.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The first subscription to a channel began.
    ChannelOccupied(&'a ChannelName),
    /// The last subscription to a channel ended.
    ChannelVacated(&'a ChannelName),
    /// A user joined a presence channel.
    MemberAdded(&'a ChannelName, &'a UserId),
    /// A user left a presence channel.
    MemberRemoved(&'a ChannelName, &'a UserId),
    /// A client sent an event.
    ClientEvent {
        /// The channel it was sent to.
        channel: &'a ChannelName,
        /// The name of the event.
        event: &'a str,
        /// The payload, as JSON text.
        data: &'a str,
        /// The sender.
        socket: SocketId,
        /// The sender's user id, on presence channels.
        user: Option<&'a UserId>,
    },
    /// A client subscribed to a cache channel whose cache is empty.
    CacheMiss(&'a ChannelName),
    /// The number of subscriptions changed to this.
    SubscriptionCount(&'a ChannelName, usize),
    /// The first connection of a user signed in.
    UserOnline(&'a UserId),
    /// The last connection of a signed-in user closed.
    UserOffline(&'a UserId),
}

/// The channel or user that an event belongs to. Events of one subject arrive in order.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) enum Subject<'a> {
    Channel(&'a ChannelName),
    User(&'a UserId),
}

impl<'a> Subject<'a> {
    pub(super) fn as_str(self) -> &'a str {
        match self {
            Self::Channel(channel) => channel.as_str(),
            Self::User(user) => user.as_str(),
        }
    }
}

/// Priority classes that take turns, highest first. Events that a client can only cause with the application's
/// authorization do not wait behind events that any client can cause.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Class {
    /// Member and user events.
    Users,
    /// Client events.
    ClientEvents,
    /// Other events of channels that require authorization.
    Authorized,
    /// Other events of public channels.
    Public,
}

impl Class {
    pub(super) const COUNT: usize = 4;
}

/// One half of a pair of opposite events. The rising edge is `channel_occupied`, `member_added` or `user_online`; the
/// falling edge is `channel_vacated`, `member_removed` or `user_offline`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Edge<Member> {
    /// The member of the channel; `None` for the edge of the channel or user itself.
    pub(super) member: Option<Member>,
    pub(super) is_rising: bool,
}

/// The id of an event. It is the same in every attempt and for all receivers, so that a receiver can discard
/// duplicates.
///
/// The text form is 16 hexadecimal digits, `-`, and 1 to 16 digits: `00c0ffee00c0ffee-2a`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventId {
    source: u64,
    number: u64,
}

impl EventId {
    /// The id of event `number` of `source`. Sources must be unique: random, or agreed between the nodes.
    #[must_use]
    pub const fn new(source: u64, number: u64) -> Self {
        Self { source, number }
    }

    /// The process or the group of a cluster that numbers the event.
    #[must_use]
    pub const fn source(self) -> u64 {
        self.source
    }

    /// The number within the source.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.number
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:x}", self.source, self.number)
    }
}

/// The text is not an event id.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not an event id")]
pub struct ParseEventIdError;

impl FromStr for EventId {
    type Err = ParseEventIdError;

    /// Accepts the one text form of each id only.
    fn from_str(text: &str) -> Result<Self, ParseEventIdError> {
        let (source, number) = text.split_once('-').ok_or(ParseEventIdError)?;
        let digits = |text| u64::from_str_radix(text, 16).map_err(|_| ParseEventIdError);
        let id = Self::new(digits(source)?, digits(number)?);
        if id.to_string() == text { Ok(id) } else { Err(ParseEventIdError) }
    }
}

impl TryFrom<String> for EventId {
    type Error = ParseEventIdError;

    fn try_from(text: String) -> Result<Self, ParseEventIdError> {
        text.parse()
    }
}

impl From<EventId> for String {
    fn from(id: EventId) -> Self {
        id.to_string()
    }
}

/// An event in the form in which it is queued and sent.
#[derive(Clone, Debug)]
pub(super) struct EncodedEvent {
    /// Its JSON in the body of a request, shared by all queues.
    pub(super) json: Bytes,
    /// When it happened, in milliseconds since 1970.
    pub(super) time_ms: u64,
    pub(super) id: EventId,
    /// The hash of the channel or user. Events of one subject are sent in order.
    pub(super) subject: u64,
    pub(super) class: Class,
    /// For one half of a pair; members are hashed.
    pub(super) edge: Option<Edge<u64>>,
}

/// The fields of all events, in the order in which they are serialized.
#[derive(Serialize)]
struct Fields<'a> {
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription_count: Option<usize>,
}

impl<'a> Event<'a> {
    pub(super) const fn event_type(&self) -> EventType {
        match self {
            Self::ChannelOccupied(_) => EventType::ChannelOccupied,
            Self::ChannelVacated(_) => EventType::ChannelVacated,
            Self::MemberAdded(..) => EventType::MemberAdded,
            Self::MemberRemoved(..) => EventType::MemberRemoved,
            Self::ClientEvent { .. } => EventType::ClientEvent,
            Self::CacheMiss(_) => EventType::CacheMiss,
            Self::SubscriptionCount(..) => EventType::SubscriptionCount,
            Self::UserOnline(_) => EventType::UserOnline,
            Self::UserOffline(_) => EventType::UserOffline,
        }
    }

    pub(super) const fn subject(&self) -> Subject<'a> {
        match self {
            Self::ChannelOccupied(channel)
            | Self::ChannelVacated(channel)
            | Self::MemberAdded(channel, _)
            | Self::MemberRemoved(channel, _)
            | Self::ClientEvent { channel, .. }
            | Self::CacheMiss(channel)
            | Self::SubscriptionCount(channel, _) => Subject::Channel(channel),
            Self::UserOnline(user) | Self::UserOffline(user) => Subject::User(user),
        }
    }

    pub(super) fn class(&self) -> Class {
        match self {
            Self::MemberAdded(..) | Self::MemberRemoved(..) | Self::UserOnline(_) | Self::UserOffline(_) => {
                Class::Users
            }
            Self::ClientEvent { .. } => Class::ClientEvents,
            Self::ChannelOccupied(channel)
            | Self::ChannelVacated(channel)
            | Self::CacheMiss(channel)
            | Self::SubscriptionCount(channel, _) => match channel.access() {
                Access::Public => Class::Public,
                Access::Private | Access::Encrypted | Access::Presence | Access::User => Class::Authorized,
            },
        }
    }

    pub(super) const fn edge(&self) -> Option<Edge<&'a UserId>> {
        let (member, is_rising) = match *self {
            Self::ChannelOccupied(_) | Self::UserOnline(_) => (None, true),
            Self::ChannelVacated(_) | Self::UserOffline(_) => (None, false),
            Self::MemberAdded(_, user) => (Some(user), true),
            Self::MemberRemoved(_, user) => (Some(user), false),
            Self::ClientEvent { .. } | Self::CacheMiss(_) | Self::SubscriptionCount(..) => return None,
        };
        Some(Edge { member, is_rising })
    }

    /// The JSON of the event in the body of a request.
    pub(super) fn to_json(self) -> Vec<u8> {
        let mut fields = Fields {
            name: self.event_type().name(),
            channel: None,
            event: None,
            data: None,
            socket_id: None,
            user_id: None,
            subscription_count: None,
        };
        match self.subject() {
            Subject::Channel(channel) => fields.channel = Some(channel.as_str()),
            Subject::User(user) => fields.user_id = Some(user.as_str()),
        }
        match self {
            Self::MemberAdded(_, user) | Self::MemberRemoved(_, user) => fields.user_id = Some(user.as_str()),
            Self::ClientEvent { event, data, socket, user, .. } => {
                fields.event = Some(event);
                fields.data = Some(data_string(data));
                fields.socket_id = Some(socket.to_string());
                fields.user_id = user.map(UserId::as_str);
            }
            Self::SubscriptionCount(_, count) => fields.subscription_count = Some(count),
            Self::ChannelOccupied(_)
            | Self::ChannelVacated(_)
            | Self::CacheMiss(_)
            | Self::UserOnline(_)
            | Self::UserOffline(_) => {}
        }
        serde_json::to_vec(&fields).expect("texts and numbers have JSON")
    }
}

/// `data` as a JSON string. A string stays as the client wrote it; any other value becomes the text of its JSON.
fn data_string(data: &str) -> Box<RawValue> {
    let literal =
        if data.starts_with('"') { data.to_owned() } else { serde_json::Value::from(data).to_string() };
    RawValue::from_string(literal).expect("the payload of an event is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::NameRules;

    #[test]
    fn an_event_id_has_one_text_form() {
        for (id, text) in [
            (EventId::new(0, 0), "0000000000000000-0"),
            (EventId::new(0xc0_ffee, 42), "0000000000c0ffee-2a"),
            (EventId::new(u64::MAX, u64::MAX), "ffffffffffffffff-ffffffffffffffff"),
        ] {
            assert_eq!((id.to_string().as_str(), text.parse()), (text, Ok(id)));
            assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<EventId>(&format!("\"{text}\"")).unwrap(), id);
        }
        for text in [
            "",
            "-",
            "1-1",
            "0000000000000001",
            "0000000000000001-",
            "0000000000000001-01",
            "000000000000000A-1",
            "+000000000000001-1",
            "0000000000000001-+1",
            "0000000000000001-1-1",
            "0000000000000001-1,0000000000000001-2",
            "0000000000000001-10000000000000000",
            "0000000000000001-1\r\nX-Other: 1",
        ] {
            assert_eq!(text.parse::<EventId>(), Err(ParseEventIdError), "{text}");
        }
    }

    #[test]
    fn events_have_the_specified_json() {
        let channel = |name: &str| ChannelName::parse(name, &NameRules::default()).unwrap();
        let (orders, room, cache, seven) = (
            channel("orders"),
            channel("presence-room"),
            channel("cache-btc"),
            UserId::parse("7", 128).unwrap(),
        );
        let client = |data, user| Event::ClientEvent {
            channel: &room,
            event: "client-typing",
            data,
            socket: SocketId::new(123_456, 7890),
            user,
        };
        let table = [
            (Event::ChannelOccupied(&orders), r#"{"name":"channel_occupied","channel":"orders"}"#),
            (Event::ChannelVacated(&orders), r#"{"name":"channel_vacated","channel":"orders"}"#),
            (
                Event::MemberAdded(&room, &seven),
                r#"{"name":"member_added","channel":"presence-room","user_id":"7"}"#,
            ),
            (
                Event::MemberRemoved(&room, &seven),
                r#"{"name":"member_removed","channel":"presence-room","user_id":"7"}"#,
            ),
            (
                client(r#"{"on":true}"#, Some(&seven)),
                r#"{"name":"client_event","channel":"presence-room","event":"client-typing","data":"{\"on\":true}","socket_id":"123456.7890","user_id":"7"}"#,
            ),
            (
                client(r#""as it \ud800 was""#, None),
                r#"{"name":"client_event","channel":"presence-room","event":"client-typing","data":"as it \ud800 was","socket_id":"123456.7890"}"#,
            ),
            (
                client("null", None),
                r#"{"name":"client_event","channel":"presence-room","event":"client-typing","data":"null","socket_id":"123456.7890"}"#,
            ),
            (Event::CacheMiss(&cache), r#"{"name":"cache_miss","channel":"cache-btc"}"#),
            (
                Event::SubscriptionCount(&orders, 12),
                r#"{"name":"subscription_count","channel":"orders","subscription_count":12}"#,
            ),
            (Event::UserOnline(&seven), r#"{"name":"user_online","user_id":"7"}"#),
            (Event::UserOffline(&seven), r#"{"name":"user_offline","user_id":"7"}"#),
        ];
        for (event, expected) in table {
            assert_eq!(String::from_utf8(event.to_json()).unwrap(), expected);
        }
    }
}
