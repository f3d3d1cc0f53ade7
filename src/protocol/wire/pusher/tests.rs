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
fn messages_of_the_server_are_those_of_the_specification() {
    let (room, presence, cache) = (channel("private-room"), channel("presence-room"), channel("cache-btc"));
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
            ServerMessage::Established { socket: SocketId::new(123_456, 7890), activity_timeout_secs: 30 },
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
fn a_ping_may_have_data_or_none() {
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
fn the_data_of_a_subscribe_is_an_object_or_a_string_that_contains_one() {
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
    for event in ["pusher_internal:x-client-y", "pusher_internal:member_removed", "Client-x", "clienty", ""] {
        assert!(!is_client_event(event), "{event}");
    }
}

#[test]
fn the_data_of_a_client_event_is_kept_unchanged() {
    for data in [r#"{"on": true}"#, r#""{\"on\":true}""#, "null", "5", r#""""#, r#""\ud800""#] {
        let text = format!(r#"{{"event":"client-x","data":{data},"channel":"private-x","user_id":"spoof"}}"#);
        let Ok(ClientMessage::Event(event)) = decode(&text) else { panic!("{text}") };
        assert_eq!(event.data.map(RawValue::get), Some(data));
    }
}

#[test]
fn an_invalid_message_is_an_error_that_says_why() {
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
