//! Signatures of subscriptions, channel names, and refusals. Source: protocol.md §3, §4.1 to §4.6.

use pusherd::apps::{App, KeyPair, SubscriptionErrorFrames};
use pusherd::protocol::signature::SigningKey;
use serde_json::{Value, json};

use crate::harness::{Client, DEMO, Key, NEWS, OTHER, Server, channel_auth};

/// A channel under each prefix that needs a signature, and under the prefix alone.
const AUTHORISED: [&str; 12] = [
    "private-room",
    "private-cache-room",
    "private-encrypted-room",
    "private-encrypted-cache-room",
    "presence-room",
    "presence-cache-room",
    "private-",
    "private-cache-",
    "private-encrypted-",
    "private-encrypted-cache-",
    "presence-",
    "presence-cache-",
];

const CHANNEL_DATA: &str = r#"{"user_id":"7","user_info":{"name":"Zoë"}}"#;

/// The `channel_data` for this channel.
fn channel_data(channel: &str) -> Option<&'static str> {
    channel.starts_with("presence-").then_some(CHANNEL_DATA)
}

#[tokio::test]
async fn a_valid_signature_subscribes_under_every_prefix() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for channel in AUTHORISED {
        client.send(client.signed_subscribe(channel, channel_data(channel))).await;
        let event = "pusher_internal:subscription_succeeded";
        let data = client.expect_event(event, channel).await;
        match channel_data(channel) {
            Some(_) => assert_eq!(data["presence"]["ids"], json!(["7"])),
            None => assert_eq!(data, json!({})),
        }
        if channel.contains("cache-") {
            client.expect(json!({ "event": "pusher:cache_miss", "channel": channel, "data": "{}" })).await;
        }
    }
    client.fence().await;
}

#[tokio::test]
async fn under_every_authorised_prefix_a_subscription_without_a_signature_is_refused() {
    let server = Server::start().await;
    for channel in AUTHORISED {
        let mut client = server.connect().await;
        let mut data = json!({ "channel": channel });
        if let Some(channel_data) = channel_data(channel) {
            data["channel_data"] = channel_data.into();
        }
        for auth in [None, Some(json!(null)), Some(json!(""))] {
            if let Some(auth) = auth {
                data["auth"] = auth;
            }
            client.send(json!({ "event": "pusher:subscribe", "data": data })).await;
            client.expect_unauthorized(channel).await;
        }
        assert_nothing_reaches(&server, &mut client, channel).await;
    }
}

/// Asserts that the client does not receive an event on `channel`: an event on another channel arrives first.
async fn assert_nothing_reaches(server: &Server, client: &mut Client, channel: &str) {
    server.publish(channel, "secret", "secret").await;
    client.subscribe("after").await;
    server.publish("after", "marker", "").await;
    client.expect(json!({ "event": "marker", "channel": "after", "data": "" })).await;
}

#[tokio::test]
async fn an_auth_of_another_type_is_refused() {
    let server = Server::start().await;
    for auth in [json!(7), json!({}), json!(true), json!([]), json!({ "auth": "demo-key:00" })] {
        let mut client = server.connect().await;
        client.ask_with("private-room", auth).await;
        client.expect_unauthorized("private-room").await;
        client.fence().await;
    }
}

#[tokio::test]
async fn an_invalid_signature_is_refused() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let room = "private-room";
    let (id, good) = (client.id.clone(), channel_auth(&client.id, room, None));
    let hex = good.split_once(':').unwrap().1.to_owned();
    let other_id = server.connect().await.id;
    let foreign = Key { secret: DEMO.secret, ..OTHER };
    let unknown = Key { key: "nope", ..DEMO };
    let wrong_secret = Key { secret: OTHER.secret, ..DEMO };
    for (what, auth) in [
        ("another socket id", channel_auth(&other_id, room, None)),
        ("another channel", channel_auth(&id, "private-other", None)),
        ("the channel as it is not called", channel_auth(&id, "Private-room", None)),
        ("swapped parts", DEMO.auth(&format!("{room}:{id}"))),
        ("only the channel", DEMO.auth(room)),
        ("a sign-in", DEMO.auth(&format!("{id}::user::{room}"))),
        ("channel_data that is not sent", channel_auth(&id, room, Some(CHANNEL_DATA))),
        ("62 digits", format!("demo-key:{}", &hex[..62])),
        ("63 digits", format!("demo-key:{}", &hex[..63])),
        ("65 digits", format!("demo-key:{hex}0")),
        ("66 digits", format!("demo-key:{hex}00")),
        (
            "one digit changed",
            format!("demo-key:{}{}", &hex[..63], if hex.ends_with('0') { '1' } else { '0' }),
        ),
        ("no hex", format!("demo-key:{}zz", &hex[..62])),
        ("a space before", format!("demo-key: {hex}")),
        ("a space after", format!("{good} ")),
        ("no signature", "demo-key:".to_owned()),
        ("only the key", "demo-key".to_owned()),
        ("no key", hex.clone()),
        ("an empty key", format!(":{hex}")),
        ("only a colon", ":".to_owned()),
        ("the key twice", format!("demo-key:{good}")),
        ("another app's key and secret", OTHER.auth(&format!("{id}:{room}"))),
        ("another app's key, this app's secret", foreign.auth(&format!("{id}:{room}"))),
        ("this app's key, another app's secret", wrong_secret.auth(&format!("{id}:{room}"))),
        ("a key that is nobody's", unknown.auth(&format!("{id}:{room}"))),
        ("the app's id for a key", Key { key: "1001", ..DEMO }.auth(&format!("{id}:{room}"))),
    ] {
        client.ask_with(room, auth.as_str()).await;
        let messages = client.expect_unauthorized(room).await;
        for message in messages {
            assert!(
                !message.contains(&hex[..16]) && !message.contains(&id),
                "{what}: {message} reveals too much"
            );
        }
    }
    client.ask_with(room, good).await;
    client.expect_subscribed(room).await;
}

#[tokio::test]
async fn a_signature_in_capitals_is_the_same_signature() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let auth = channel_auth(&client.id, "private-room", None).replace("demo-key:", "").to_uppercase();
    client.ask_with("private-room", format!("demo-key:{auth}")).await;
    client.expect_subscribed("private-room").await;
}

#[tokio::test]
async fn each_key_of_an_app_has_its_own_secret() {
    const SECOND: Key = Key { key: "second-key", secret: "second-secret", ..DEMO };
    let server = Server::with_app(|app: &mut App| {
        app.keys.push(KeyPair { key: SECOND.key.into(), secret: SigningKey::new(SECOND.secret) });
    })
    .await;
    let mut client = server.connect().await;
    let text = format!("{}:private-room", client.id);
    for mixed in [Key { secret: DEMO.secret, ..SECOND }, Key { secret: SECOND.secret, ..DEMO }] {
        client.ask_with("private-room", mixed.auth(&text)).await;
        client.expect_unauthorized("private-room").await;
    }
    client.ask_with("private-room", SECOND.auth(&text)).await;
    client.expect_subscribed("private-room").await;
}

#[tokio::test]
async fn the_signature_covers_channel_data_on_private_channels_too() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let data = r#"{"note":"x"}"#;
    client.send(client.signed_subscribe("private-room", Some(data))).await;
    client.expect_subscribed("private-room").await;
    for auth in [channel_auth(&client.id, "private-other", None), "demo-key:00".to_owned()] {
        let data = json!({ "channel": "private-other", "auth": auth, "channel_data": data });
        client.send(json!({ "event": "pusher:subscribe", "data": data })).await;
        client.expect_unauthorized("private-other").await;
    }
}

#[tokio::test]
async fn channel_data_that_is_null_or_empty_counts_as_absent() {
    let server = Server::start().await;
    for absent in [json!(null), json!("")] {
        let mut client = server.connect().await;
        let mut message = client.signed_subscribe("private-room", None);
        message["data"]["channel_data"] = absent;
        client.send(message).await;
        client.expect_subscribed("private-room").await;
    }
}

#[tokio::test]
async fn channel_data_that_differs_by_one_space_is_refused() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for channel in ["presence-room", "private-room"] {
        for altered in [format!("{CHANNEL_DATA} "), CHANNEL_DATA.replace(":{", ": {"), String::new()] {
            let mut message = client.signed_subscribe(channel, Some(CHANNEL_DATA));
            message["data"]["channel_data"] = altered.into();
            client.send(message).await;
            client.expect_unauthorized(channel).await;
        }
    }
}

#[tokio::test]
async fn channel_data_is_verified_as_received_whatever_its_escapes() {
    let server = Server::start().await;
    // The signature covers the decoded string. PHP escapes `/` and all that is not ASCII, also within the string.
    for (signed, on_the_wire) in [
        (
            r#"{"user_id":"7","user_info":"Zoë/😀"}"#,
            r#""{\"user_id\":\"7\",\"user_info\":\"Zo\u00eb\/\ud83d\ude00\"}""#,
        ),
        (
            r#"{"user_id":"7","user_info":"Zo\u00eb\/x"}"#,
            r#""{\"user_id\":\"7\",\"user_info\":\"Zo\\u00eb\\\/x\"}""#,
        ),
        (r#"{ "user_id" : "7" }"#, r#""\u007b \u0022user_id\u0022 : \u00227\u0022 }""#),
    ] {
        let mut client = server.connect().await;
        let auth = channel_auth(&client.id, "presence-room", Some(signed));
        let message = format!(
            r#"{{"event":"pusher:subscribe","data":{{"auth":"{auth}","channel_data":{on_the_wire},"channel":"presence-room"}}}}"#
        );
        client.send_text(&message).await;
        let data = client.expect_event("pusher_internal:subscription_succeeded", "presence-room").await;
        assert_eq!(data["presence"]["ids"], json!(["7"]));
    }
}

#[tokio::test]
async fn channel_data_must_be_a_string() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for channel in ["presence-room", "private-room"] {
        for channel_data in [json!({ "user_id": "7" }), json!(7), json!(["7"]), json!(true)] {
            let text = channel_data.to_string();
            for signed in [Some(text.as_str()), None] {
                let mut message = client.signed_subscribe(channel, signed);
                message["data"]["channel_data"] = channel_data.clone();
                client.send(message).await;
                client.expect_unauthorized(channel).await;
            }
        }
    }
}

#[tokio::test]
async fn a_public_channel_needs_no_signature_and_ignores_one() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for (at, extra) in [
        json!({}),
        json!({ "auth": "" }),
        json!({ "auth": "nonsense" }),
        json!({ "auth": 7, "channel_data": { "user_id": "7" } }),
        json!({ "auth": null, "channel_data": "{" }),
    ]
    .into_iter()
    .enumerate()
    {
        let channel = format!("news-{at}");
        let mut data = extra;
        data["channel"] = channel.clone().into();
        client.send(json!({ "event": "pusher:subscribe", "data": data })).await;
        client.expect_subscribed(&channel).await;
    }
}

#[tokio::test]
async fn a_prefix_counts_only_at_the_start_complete_and_in_lower_case() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for channel in [
        "privateroom",
        "private",
        "presence",
        "presenceroom",
        "encrypted",
        "cached",
        "cache",
        "room-private-x",
        "x-presence-y",
        "x-cache-y",
        "Private-x",
        "PRESENCE-x",
        "-private-x",
        "server-to-user-7",
    ] {
        client.ask(channel).await;
        client.expect_subscribed(channel).await;
    }
    client.fence().await;
    for channel in ["cache-private-x", "cache-presence-x"] {
        client.ask(channel).await;
        client.expect_subscribed(channel).await;
        client.expect(json!({ "event": "pusher:cache_miss", "channel": channel, "data": "{}" })).await;
    }
    for channel in ["private-presence-x", "private-x-cache-y", "private-public", "presence-private-x"] {
        client.ask(channel).await;
        client.expect_unauthorized(channel).await;
    }
    client.subscribe("private-x-cache-y").await;
    client.fence().await;
}

#[tokio::test]
async fn every_character_of_the_alphabet_may_be_in_a_name() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for channel in [
        "orders.7",
        "App.Models.User.1",
        "a",
        "-",
        "azAZ09_=@,.;-",
        "private-azAZ09_=@,.;-",
        &"x".repeat(200),
    ] {
        client.subscribe(channel).await;
        server.publish(channel, "e", "").await;
        client.expect(json!({ "event": "e", "channel": channel, "data": "" })).await;
    }
}

#[tokio::test]
async fn an_invalid_channel_name_is_refused() {
    let server = Server::start().await;
    for channel in [
        "a b",
        "a:b",
        "a/b",
        "a%20b",
        "a\\b",
        "a\"b",
        "é",
        "😀",
        "a*",
        "a#b",
        "##a",
        "a\u{0}",
        "a\nb",
        " a",
        "a\n",
        "private-a b",
        "presence-é",
        "a{b}",
        "a?b",
        "a+b",
        "a|b",
    ] {
        let mut client = server.connect().await;
        client.ask(channel).await;
        client.expect_refusal(channel, "InvalidChannel", 400, Value::Null).await;
        client.fence().await;
    }
}

#[tokio::test]
async fn an_app_may_allow_more_characters_and_another_length() {
    let server = Server::with_app(|app: &mut App| {
        app.names.extra_chars = "/*".into();
        app.names.bytes_max = 20;
    })
    .await;
    let mut client = server.connect().await;
    for channel in ["orders/7", "private-a/*", &"x".repeat(20)] {
        client.subscribe(channel).await;
        server.publish(channel, "e", "").await;
        client.expect(json!({ "event": "e", "channel": channel, "data": "" })).await;
    }
    for (channel, kind, status) in [
        ("a:b", "InvalidChannel", 400),
        ("a|b", "InvalidChannel", 400),
        (&"x".repeat(21), "LimitReached", 413),
    ] {
        client.ask(channel).await;
        client.expect_refusal(channel, kind, status, Value::Null).await;
    }
}

#[tokio::test]
async fn an_empty_name_is_an_error_and_the_connection_stays_open() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.ask("").await;
    let frame = client.next().await;
    // The frame on the channel may be omitted, because the channel has no name.
    if frame["event"] == "pusher:subscription_error" {
        client.expect_error(Value::Null).await;
    } else {
        assert_eq!(frame["event"], "pusher:error");
        assert_eq!(frame["data"]["code"], Value::Null);
    }
    client.fence().await;
}

#[tokio::test]
async fn a_reserved_name_other_than_a_users_own_is_refused() {
    let server = Server::start().await;
    for channel in ["#news", "#", "#server-to-user", "#private-room", "#server-to-server-7"] {
        let mut client = server.connect().await;
        client.ask_with(channel, channel_auth(&client.id, channel, None)).await;
        let data = client.expect_event("pusher:subscription_error", channel).await;
        assert!(data["status"] == 400 || data["status"] == 401, "{data}");
        assert_eq!(client.next().await["event"], "pusher:error");
        client.fence().await;
    }
}

#[tokio::test]
async fn the_app_chooses_the_frames_of_a_refused_subscription() {
    let frames = async |frames: SubscriptionErrorFrames| {
        let server = Server::with_app(|app: &mut App| app.subscription_error_frames = frames).await;
        let mut client = server.connect().await;
        client.ask("private-room").await;
        client.ask(&"x".repeat(201)).await;
        client.send(json!({ "event": "pusher:ping" })).await;
        let mut events = Vec::new();
        loop {
            let frame = client.next().await;
            match frame["event"].as_str().unwrap() {
                "pusher:pong" => return events,
                event => events.push(event.to_owned()),
            }
        }
    };
    let (channel, connection) = ("pusher:subscription_error", "pusher:error");
    assert_eq!(frames(SubscriptionErrorFrames::Channel).await, [channel, channel]);
    assert_eq!(frames(SubscriptionErrorFrames::Connection).await, [connection, connection]);
    assert_eq!(frames(SubscriptionErrorFrames::Both).await, [channel, connection, channel, connection]);
}

#[tokio::test]
async fn subscribing_again_is_acknowledged_and_changes_nothing() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for _ in 0..3 {
        client.subscribe("private-room").await;
        client.subscribe(NEWS).await;
    }
    let count = async |channel: &str| {
        server.get_json(&format!("/apps/1001/channels/{channel}?info=subscription_count")).await
    };
    for channel in ["private-room", NEWS] {
        assert_eq!(count(channel).await, json!({ "occupied": true, "subscription_count": 1 }));
    }
    server.publish("private-room", "once", "").await;
    client.expect(json!({ "event": "once", "channel": "private-room", "data": "" })).await;
    client.fence().await;
    client.unsubscribe("private-room").await;
    client.fence().await;
    assert_eq!(count("private-room").await, json!({ "occupied": false, "subscription_count": 0 }));
}

#[tokio::test]
async fn an_invalid_signature_for_a_subscribed_channel_is_refused_and_the_subscription_stays() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe("private-room").await;
    client.ask_with("private-room", "demo-key:00").await;
    client.expect_unauthorized("private-room").await;
    server.publish("private-room", "still", "").await;
    client.expect(json!({ "event": "still", "channel": "private-room", "data": "" })).await;
}

#[tokio::test]
async fn unsubscribing_from_another_channel_is_ignored() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for channel in ["never", "private-never", "presence-never", "#server-to-user-7", "no name", ""] {
        client.unsubscribe(channel).await;
        client.fence().await;
    }
}

#[tokio::test]
async fn apps_share_no_channels() {
    let server = Server::start().await;
    let mut ours = server.connect().await;
    let mut theirs = server.connect_to("/app/other-key").await;
    ours.subscribe(NEWS).await;
    theirs.subscribe(NEWS).await;
    server.publish(NEWS, "ours", "").await;
    let body = json!({ "channel": NEWS, "name": "theirs", "data": "" }).to_string();
    let request = crate::harness::Request::post("/apps/1002/events", body).signed_with(&OTHER);
    assert_eq!(server.send(request).await.ok(), json!({}));
    ours.expect(json!({ "event": "ours", "channel": NEWS, "data": "" })).await;
    theirs.expect(json!({ "event": "theirs", "channel": NEWS, "data": "" })).await;
    ours.fence().await;
}
