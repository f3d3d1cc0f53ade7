//! What is told of, and how it reads. Source: protocol.md §9.2.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::apps::EventType;
use crate::protocol::{Access, ChannelName, SocketId, UserId};

/// Something that receivers may hear of.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A channel has its first subscriber.
    ChannelOccupied(&'a ChannelName),
    /// A channel has no subscriber any more.
    ChannelVacated(&'a ChannelName),
    /// A user came to a presence channel.
    MemberAdded(&'a ChannelName, &'a UserId),
    /// A user is gone from a presence channel.
    MemberRemoved(&'a ChannelName, &'a UserId),
    /// A client sent an event.
    ClientEvent {
        /// Where.
        channel: &'a ChannelName,
        /// Its name.
        event: &'a str,
        /// Its payload as JSON text.
        data: &'a str,
        /// Who sent it.
        socket: SocketId,
        /// As whom, on presence channels.
        user: Option<&'a UserId>,
    },
    /// A subscriber found an empty cache.
    CacheMiss(&'a ChannelName),
    /// The number of subscribers has changed to this.
    SubscriptionCount(&'a ChannelName, usize),
    /// A user signed in on their first connection.
    UserOnline(&'a UserId),
    /// The last connection of a signed-in user ended.
    UserOffline(&'a UserId),
}

/// Who an event is about: events about the same arrive in order.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) enum About<'a> {
    Channel(&'a ChannelName),
    User(&'a UserId),
}

impl<'a> About<'a> {
    pub(super) fn as_str(self) -> &'a str {
        match self {
            Self::Channel(channel) => channel.as_str(),
            Self::User(user) => user.as_str(),
        }
    }
}

/// Events that share the turns of a receiver, the best first: what a client can only cause with the application's
/// permission does not wait behind what everybody can.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Class {
    /// Members and users.
    Users,
    /// What clients have sent.
    ClientEvents,
    /// Other events of channels that one must be authorized for.
    Authorized,
    /// Other events of public channels.
    Public,
}

impl Class {
    pub(super) const COUNT: usize = 4;
}

/// One half of a pair: somebody comes, or who had come is gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Edge<Who> {
    /// A member of what the event is about; `None` is that itself.
    pub(super) who: Option<Who>,
    /// Whether it is the first half.
    pub(super) is_gain: bool,
}

/// What an event is called: the same in every attempt and for all receivers, so that they know it when it comes twice.
///
/// As text, 16 hexadecimal digits, `-`, and 1 to 16 more: `00c0ffee00c0ffee-2a`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct EventId {
    source: u64,
    number: u64,
}

impl EventId {
    /// The event `number` of `source`: what numbers events, which is told from all others by being random, or by an
    /// agreement between them.
    #[must_use]
    pub const fn new(source: u64, number: u64) -> Self {
        Self { source, number }
    }

    /// What numbered it.
    #[must_use]
    pub const fn source(self) -> u64 {
        self.source
    }

    /// The number there.
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

/// A text is not the id of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not the id of an event")]
pub struct NoEventId;

impl FromStr for EventId {
    type Err = NoEventId;

    /// Each id has one text.
    fn from_str(text: &str) -> Result<Self, NoEventId> {
        let (source, number) = text.split_once('-').ok_or(NoEventId)?;
        let digits = |text| u64::from_str_radix(text, 16).map_err(|_| NoEventId);
        let id = Self::new(digits(source)?, digits(number)?);
        if id.to_string() == text { Ok(id) } else { Err(NoEventId) }
    }
}

impl TryFrom<String> for EventId {
    type Error = NoEventId;

    fn try_from(text: String) -> Result<Self, NoEventId> {
        text.parse()
    }
}

impl From<EventId> for String {
    fn from(id: EventId) -> Self {
        id.to_string()
    }
}

/// An event as receivers are told of it.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// As it stands in the body of a request, shared by all receivers.
    pub(super) json: Bytes,
    /// When it happened, in milliseconds since 1970.
    pub(super) time_ms: u64,
    pub(super) id: EventId,
    /// What it is about, as a hash: what is about the same is told in order.
    pub(super) about: u64,
    pub(super) class: Class,
    /// If it is one half of a pair; who it is of, as a hash.
    pub(super) edge: Option<Edge<u64>>,
}

/// The fields of all events, in the order in which they are written.
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

    pub(super) const fn about(&self) -> About<'a> {
        match self {
            Self::ChannelOccupied(channel)
            | Self::ChannelVacated(channel)
            | Self::MemberAdded(channel, _)
            | Self::MemberRemoved(channel, _)
            | Self::ClientEvent { channel, .. }
            | Self::CacheMiss(channel)
            | Self::SubscriptionCount(channel, _) => About::Channel(channel),
            Self::UserOnline(user) | Self::UserOffline(user) => About::User(user),
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
        let (who, is_gain) = match *self {
            Self::ChannelOccupied(_) | Self::UserOnline(_) => (None, true),
            Self::ChannelVacated(_) | Self::UserOffline(_) => (None, false),
            Self::MemberAdded(_, user) => (Some(user), true),
            Self::MemberRemoved(_, user) => (Some(user), false),
            Self::ClientEvent { .. } | Self::CacheMiss(_) | Self::SubscriptionCount(..) => return None,
        };
        Some(Edge { who, is_gain })
    }

    /// The event as it stands in the body of a request.
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
        match self.about() {
            About::Channel(channel) => fields.channel = Some(channel.as_str()),
            About::User(user) => fields.user_id = Some(user.as_str()),
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

/// `data` as a JSON string: a client's string as it was written, anything else as the text of its JSON.
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
    fn an_id_has_one_text() {
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
            assert_eq!(text.parse::<EventId>(), Err(NoEventId), "{text}");
        }
    }

    #[test]
    fn events_read_as_specified() {
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
