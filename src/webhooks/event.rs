//! What is told of, and how it reads. Source: protocol.md §9.2.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::apps::EventType;
use crate::protocol::{ChannelName, SocketId, UserId};

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
#[derive(Clone, Copy, Debug)]
pub(super) enum About<'a> {
    Channel(&'a ChannelName),
    User(&'a UserId),
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
