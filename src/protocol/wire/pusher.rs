//! Pusher's JSON: text from clients becomes [`ClientMessage`], [`ServerMessage`] becomes a [`Frame`].
//!
//! `data` travels as a JSON-encoded string in everything the server says, but for `pusher:error` (an object) and
//! client events (the type they came in). Source: protocol.md §0 and §§2-6.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{Frame, websocket};
use crate::protocol::json::{self, push_number, push_string};
use crate::protocol::message::{
    ChannelData, ClientEvent, ClientMessage, Refusal, ServerMessage, SignIn, Subscribe,
};
use crate::protocol::{Member, UserId};

/// Why a text is not a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// Not a JSON object.
    #[error("Received invalid JSON")]
    Json,
    /// No string `event`.
    #[error("Received a message without an event name")]
    NoEvent,
    /// A subscribe or unsubscribe that names no channel.
    #[error("Missing parameter: data.channel")]
    NoChannel,
}

/// Reads what a client says.
///
/// # Errors
/// [`DecodeError`], which is told to the client; the connection stays open.
pub fn decode(text: &str) -> Result<ClientMessage<'_>, DecodeError> {
    let [event, data, channel] =
        json::pick(text, ["event", "data", "channel"]).map_err(|_| DecodeError::Json)?;
    let event = event.and_then(json::string).ok_or(DecodeError::NoEvent)?;
    match &*event {
        "pusher:ping" => Ok(ClientMessage::Ping),
        "pusher:pong" => Ok(ClientMessage::Pong),
        "pusher:subscribe" => {
            let data = Data::of(data);
            let [channel, auth, channel_data] = data.pick(["channel", "auth", "channel_data"]);
            Ok(ClientMessage::Subscribe(Subscribe {
                channel: owned(channel).ok_or(DecodeError::NoChannel)?,
                auth: owned(auth),
                channel_data: match channel_data {
                    None => ChannelData::Absent,
                    Some(value) if json::is_null(value) => ChannelData::Absent,
                    Some(value) => match json::string(value) {
                        None => ChannelData::NotText,
                        Some(text) if text.is_empty() => ChannelData::Absent,
                        Some(text) => ChannelData::Text(Cow::Owned(text.into_owned())),
                    },
                },
            }))
        }
        "pusher:unsubscribe" => {
            let data = Data::of(data);
            let [channel] = data.pick(["channel"]);
            Ok(ClientMessage::Unsubscribe { channel: owned(channel).ok_or(DecodeError::NoChannel)? })
        }
        "pusher:signin" => {
            let data = Data::of(data);
            let [auth, user_data] = data.pick(["auth", "user_data"]);
            Ok(ClientMessage::SignIn(SignIn { auth: owned(auth), user_data: owned(user_data) }))
        }
        name if name.starts_with("client-") => {
            Ok(ClientMessage::Event(ClientEvent { event, channel: channel.and_then(json::string), data }))
        }
        _ => Ok(ClientMessage::Unsupported { event }),
    }
}

/// The `data` of a `pusher:*` message: an object, or a string that is one; anything else has no keys.
struct Data<'a>(Cow<'a, str>);

impl<'a> Data<'a> {
    fn of(data: Option<&'a RawValue>) -> Self {
        Self(match data {
            None => Cow::Borrowed(""),
            Some(value) => json::string(value).unwrap_or(Cow::Borrowed(value.get())),
        })
    }

    fn pick<const N: usize>(&self, names: [&'static str; N]) -> [Option<&RawValue>; N] {
        json::pick(&self.0, names).unwrap_or([None; N])
    }
}

fn owned<'a>(value: Option<&RawValue>) -> Option<Cow<'a, str>> {
    value.and_then(json::string).map(|text| Cow::Owned(text.into_owned()))
}

/// Encodes what the server says.
#[must_use]
pub fn encode(message: &ServerMessage<'_>) -> Frame {
    websocket::text_frame(|out| write(message, out))
}

fn write(message: &ServerMessage<'_>, out: &mut Vec<u8>) {
    match message {
        ServerMessage::Established { socket, activity_timeout_secs } => {
            let inner = format!(r#"{{"socket_id":"{socket}","activity_timeout":{activity_timeout_secs}}}"#);
            frame(out, "pusher:connection_established", None, &inner);
        }
        ServerMessage::Pong => frame(out, "pusher:pong", None, "{}"),
        ServerMessage::Error { code, message } => {
            out.extend_from_slice(br#"{"event":"pusher:error","data":{"code":"#);
            match code {
                Some(code) => push_number(out, (*code).into()),
                None => out.extend_from_slice(b"null"),
            }
            out.extend_from_slice(br#","message":"#);
            push_string(out, message);
            out.extend_from_slice(b"}}");
        }
        ServerMessage::Subscribed { channel, members } => {
            let inner = members.as_ref().map_or_else(|| "{}".to_owned(), |members| roster(members));
            frame(out, "pusher_internal:subscription_succeeded", Some(channel.as_str()), &inner);
        }
        ServerMessage::SubscriptionRefused { channel, refusal } => {
            frame(out, "pusher:subscription_error", Some(channel), &refused(refusal));
        }
        ServerMessage::MemberAdded { channel, member } => {
            let inner = text(|inner| {
                inner.extend_from_slice(br#"{"user_id":"#);
                push_string(inner, member.id.as_str());
                inner.extend_from_slice(br#","user_info":"#);
                inner.extend_from_slice(member.info.as_bytes());
                inner.push(b'}');
            });
            frame(out, "pusher_internal:member_added", Some(channel.as_str()), &inner);
        }
        ServerMessage::MemberRemoved { channel, user } => {
            let inner = text(|inner| {
                inner.extend_from_slice(br#"{"user_id":"#);
                push_string(inner, user.as_str());
                inner.push(b'}');
            });
            frame(out, "pusher_internal:member_removed", Some(channel.as_str()), &inner);
        }
        // With data, as Pusher's own has it (compared in sockudo#78). Soketi and Reverb leave it out; pusher-js, Java and
        // Swift take both, and the decoders of others want `data` in every frame.
        ServerMessage::CacheMiss { channel } => frame(out, "pusher:cache_miss", Some(channel.as_str()), "{}"),
        ServerMessage::SubscriptionCount { channel, count } => {
            let inner = format!(r#"{{"subscription_count":{count}}}"#);
            frame(out, "pusher_internal:subscription_count", Some(channel.as_str()), &inner);
        }
        ServerMessage::Event { channel, event, data, user } => {
            out.reserve(channel.as_str().len() + event.len() + data.len() + 64);
            start(out, event, Some(channel.as_str()));
            out.extend_from_slice(data.as_bytes());
            if let Some(user) = user {
                out.extend_from_slice(br#","user_id":"#);
                push_string(out, user.as_str());
            }
            out.push(b'}');
        }
        ServerMessage::SignedIn { user_data } => {
            let inner = text(|inner| {
                inner.extend_from_slice(br#"{"user_data":"#);
                push_string(inner, user_data);
                inner.push(b'}');
            });
            frame(out, "pusher:signin_success", None, &inner);
        }
        ServerMessage::Watchlist { online, offline } => {
            frame(out, "pusher_internal:watchlist_events", None, &watchlist(online, offline));
        }
    }
}

/// `{"event":…,"channel":…,"data":`
fn start(out: &mut Vec<u8>, event: &str, channel: Option<&str>) {
    out.extend_from_slice(br#"{"event":"#);
    push_string(out, event);
    if let Some(channel) = channel {
        out.extend_from_slice(br#","channel":"#);
        push_string(out, channel);
    }
    out.extend_from_slice(br#","data":"#);
}

/// A whole message of the server, its data a string.
fn frame(out: &mut Vec<u8>, event: &str, channel: Option<&str>, data: &str) {
    start(out, event, channel);
    push_string(out, data);
    out.push(b'}');
}

/// The text that `write` appends, which is JSON and so UTF-8.
fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    String::from_utf8(out).expect("JSON put together from text is text")
}

/// `{"presence":{"ids":[…],"hash":{…},"count":n}}`; ids and hash have the same keys.
fn roster(members: &[Member]) -> String {
    text(|out| {
        out.extend_from_slice(br#"{"presence":{"ids":["#);
        list(out, members, |out, member| push_string(out, member.id.as_str()));
        out.extend_from_slice(br#"],"hash":{"#);
        list(out, members, |out, member| {
            push_string(out, member.id.as_str());
            out.push(b':');
            out.extend_from_slice(member.info.as_bytes());
        });
        out.extend_from_slice(br#"},"count":"#);
        push_number(out, members.len() as u64);
        out.extend_from_slice(b"}}");
    })
}

fn refused(refusal: &Refusal) -> String {
    text(|out| {
        out.extend_from_slice(br#"{"type":"#);
        push_string(out, refusal.kind.as_str());
        out.extend_from_slice(br#","error":"#);
        push_string(out, &refusal.reason);
        out.extend_from_slice(br#","status":"#);
        push_number(out, refusal.status.into());
        out.push(b'}');
    })
}

/// `{"events":[…]}`, an empty group left out.
fn watchlist(online: &[UserId], offline: &[UserId]) -> String {
    text(|out| {
        out.extend_from_slice(br#"{"events":["#);
        let groups = [("online", online), ("offline", offline)];
        let groups: Vec<_> = groups.into_iter().filter(|(_, users)| !users.is_empty()).collect();
        list(out, &groups, |out, (name, users)| {
            out.extend_from_slice(br#"{"name":"#);
            push_string(out, name);
            out.extend_from_slice(br#","user_ids":["#);
            list(out, users, |out, user| push_string(out, user.as_str()));
            out.extend_from_slice(b"]}");
        });
        out.extend_from_slice(b"]}");
    })
}

fn list<T>(out: &mut Vec<u8>, items: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write(out, item);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::message::RefusalKind;
    use crate::protocol::{ChannelName, CloseCode, NameRules, SocketId};

    fn channel(text: &str) -> ChannelName {
        ChannelName::parse(text, &NameRules::default()).unwrap()
    }

    fn user(text: &str) -> UserId {
        UserId::parse(text, 128).unwrap()
    }

    #[test]
    fn the_server_says_what_the_specification_prints() {
        let (room, presence, cache) =
            (channel("private-room"), channel("presence-room"), channel("cache-btc"));
        let zoe = Member { id: user("7"), info: r#"{"name":"Zoë"}"#.into() };
        let ada = Member { id: user("8"), info: r#"{"name":"Ada"}"#.into() };
        let refusal = Refusal {
            kind: RefusalKind::Auth,
            status: 401,
            code: Some(CloseCode::Unauthorized),
            reason: "The subscription is not authorised".into(),
            string_to_sign: None,
        };
        let table = [
            (
                ServerMessage::Established {
                    socket: SocketId::new(123_456, 7890),
                    activity_timeout_secs: 30,
                },
                r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"123456.7890\",\"activity_timeout\":30}"}"#,
            ),
            (ServerMessage::Pong, r#"{"event":"pusher:pong","data":"{}"}"#),
            (
                ServerMessage::Error { code: Some(4001), message: "App key nope does not exist" },
                r#"{"event":"pusher:error","data":{"code":4001,"message":"App key nope does not exist"}}"#,
            ),
            (
                ServerMessage::Error { code: None, message: "Existing subscription to channel private-room" },
                r#"{"event":"pusher:error","data":{"code":null,"message":"Existing subscription to channel private-room"}}"#,
            ),
            (
                ServerMessage::Subscribed { channel: &room, members: None },
                r#"{"event":"pusher_internal:subscription_succeeded","channel":"private-room","data":"{}"}"#,
            ),
            (
                ServerMessage::Subscribed { channel: &presence, members: Some(vec![zoe]) },
                r#"{"event":"pusher_internal:subscription_succeeded","channel":"presence-room","data":"{\"presence\":{\"ids\":[\"7\"],\"hash\":{\"7\":{\"name\":\"Zoë\"}},\"count\":1}}"}"#,
            ),
            (
                ServerMessage::Subscribed { channel: &presence, members: Some(vec![]) },
                r#"{"event":"pusher_internal:subscription_succeeded","channel":"presence-room","data":"{\"presence\":{\"ids\":[],\"hash\":{},\"count\":0}}"}"#,
            ),
            (
                ServerMessage::SubscriptionRefused { channel: "private-room", refusal: &refusal },
                r#"{"event":"pusher:subscription_error","channel":"private-room","data":"{\"type\":\"AuthError\",\"error\":\"The subscription is not authorised\",\"status\":401}"}"#,
            ),
            (
                ServerMessage::MemberAdded { channel: &presence, member: &ada },
                r#"{"event":"pusher_internal:member_added","channel":"presence-room","data":"{\"user_id\":\"8\",\"user_info\":{\"name\":\"Ada\"}}"}"#,
            ),
            (
                ServerMessage::MemberRemoved { channel: &presence, user: &ada.id },
                r#"{"event":"pusher_internal:member_removed","channel":"presence-room","data":"{\"user_id\":\"8\"}"}"#,
            ),
            (
                ServerMessage::CacheMiss { channel: &cache },
                r#"{"event":"pusher:cache_miss","channel":"cache-btc","data":"{}"}"#,
            ),
            (
                ServerMessage::SubscriptionCount { channel: &cache, count: 12 },
                r#"{"event":"pusher_internal:subscription_count","channel":"cache-btc","data":"{\"subscription_count\":12}"}"#,
            ),
            (
                ServerMessage::Event {
                    channel: &cache,
                    event: "App\\Events\\Price",
                    data: r#""{\"eur\":61234}""#,
                    user: None,
                },
                r#"{"event":"App\\Events\\Price","channel":"cache-btc","data":"{\"eur\":61234}"}"#,
            ),
            (
                ServerMessage::Event {
                    channel: &presence,
                    event: "client-typing",
                    data: r#"{"on":true}"#,
                    user: Some(&ada.id),
                },
                r#"{"event":"client-typing","channel":"presence-room","data":{"on":true},"user_id":"8"}"#,
            ),
            (
                ServerMessage::SignedIn { user_data: r#"{"id":"7"}"# },
                r#"{"event":"pusher:signin_success","data":"{\"user_data\":\"{\\\"id\\\":\\\"7\\\"}\"}"}"#,
            ),
            (
                ServerMessage::Watchlist { online: &[user("8")], offline: &[user("9")] },
                r#"{"event":"pusher_internal:watchlist_events","data":"{\"events\":[{\"name\":\"online\",\"user_ids\":[\"8\"]},{\"name\":\"offline\",\"user_ids\":[\"9\"]}]}"}"#,
            ),
            (
                ServerMessage::Watchlist { online: &[], offline: &[user("8")] },
                r#"{"event":"pusher_internal:watchlist_events","data":"{\"events\":[{\"name\":\"offline\",\"user_ids\":[\"8\"]}]}"}"#,
            ),
        ];
        for (message, expected) in table {
            assert_eq!(encode(&message).text(), expected);
        }
    }

    #[test]
    fn pings_come_with_and_without_data() {
        for text in [
            r#"{"event":"pusher:ping","data":{}}"#,
            r#"{"event":"pusher:ping"}"#,
            r#"{"event":"pusher:ping","data":"{}"}"#,
            r#"{"event": "pusher:ping"}"#,
        ] {
            assert!(matches!(decode(text), Ok(ClientMessage::Ping)), "{text}");
        }
    }

    #[test]
    fn the_data_of_a_subscribe_is_an_object_or_a_string_of_one() {
        for text in [
            r#"{"event":"pusher:subscribe","data":{"auth":"k:1","channel":"private-x","channel_data":"{\"a\":1}"}}"#,
            r#"{"event":"pusher:subscribe","data":"{\"auth\":\"k:1\",\"channel\":\"private-x\",\"channel_data\":\"{\\\"a\\\":1}\"}"}"#,
            r#"{"event":"pusher:subscribe","data":{"channel":"y","auth":"k:1","channel_data":"{\"a\":1}","channel":"private-x"}}"#,
        ] {
            let Ok(ClientMessage::Subscribe(subscribe)) = decode(text) else { panic!("{text}") };
            assert_eq!(subscribe.channel, "private-x");
            assert_eq!(subscribe.auth.as_deref(), Some("k:1"));
            assert!(matches!(subscribe.channel_data, ChannelData::Text(data) if data == r#"{"a":1}"#));
        }
    }

    #[test]
    fn channel_data_is_a_string_or_absent() {
        let data = |value: &str| {
            let text =
                format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"x","channel_data":{value}}}}}"#);
            match decode(&text) {
                Ok(ClientMessage::Subscribe(subscribe)) => format!("{:?}", subscribe.channel_data),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(data("null"), "Absent");
        assert_eq!(data("\"\""), "Absent");
        assert_eq!(data("{}"), "NotText");
        assert_eq!(data("7"), "NotText");
    }

    #[test]
    fn only_a_name_that_starts_with_client_is_a_client_event() {
        let is_client_event = |event: &str| {
            let text = format!(r#"{{"event":"{event}","channel":"private-x"}}"#);
            let decoded = decode(&text).unwrap();
            let unsupported = matches!(decoded, ClientMessage::Unsupported { .. });
            assert_ne!(matches!(decoded, ClientMessage::Event(_)), unsupported);
            !unsupported
        };
        assert!(is_client_event("client-typing"));
        for event in
            ["pusher_internal:x-client-y", "pusher_internal:member_removed", "Client-x", "clienty", ""]
        {
            assert!(!is_client_event(event), "{event}");
        }
    }

    #[test]
    fn the_data_of_a_client_event_is_kept_as_it_came() {
        for data in [r#"{"on": true}"#, r#""{\"on\":true}""#, "null", "5", r#""""#, r#""\ud800""#] {
            let text =
                format!(r#"{{"event":"client-x","data":{data},"channel":"private-x","user_id":"spoof"}}"#);
            let Ok(ClientMessage::Event(event)) = decode(&text) else { panic!("{text}") };
            assert_eq!(event.data.map(RawValue::get), Some(data));
        }
    }

    #[test]
    fn what_is_no_message_is_named() {
        for (text, error) in [
            ("", DecodeError::Json),
            ("null", DecodeError::Json),
            ("[]", DecodeError::Json),
            (r#"{"event":"x""#, DecodeError::Json),
            ("{}", DecodeError::NoEvent),
            (r#"{"event":1}"#, DecodeError::NoEvent),
            (r#"{"event":null}"#, DecodeError::NoEvent),
            (r#"{"event":"pusher:subscribe"}"#, DecodeError::NoChannel),
            (r#"{"event":"pusher:subscribe","data":[]}"#, DecodeError::NoChannel),
            (r#"{"event":"pusher:subscribe","data":{"channel":7}}"#, DecodeError::NoChannel),
            (r#"{"event":"pusher:unsubscribe","data":"x"}"#, DecodeError::NoChannel),
        ] {
            assert_eq!(decode(text).unwrap_err(), error, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_decoder_panic(text in "\\PC{0,80}") {
            let _ = decode(&text);
        }

        #[test]
        fn an_event_reaches_json_with_name_and_data_unchanged(event in "\\PC{1,40}", data in "\\PC{0,80}") {
            let literal = serde_json::to_string(&data).unwrap();
            let message = ServerMessage::Event { channel: &channel("x"), event: &event, data: &literal, user: None };
            let frame = encode(&message);
            let value: serde_json::Value = serde_json::from_str(frame.text()).unwrap();
            prop_assert_eq!(value["event"].as_str(), Some(&*event));
            prop_assert_eq!(value["data"].as_str(), Some(&*data));
        }
    }
}
