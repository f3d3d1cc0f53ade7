//! Messages of clients, and the form of errors. Source: protocol.md §2.6, §2.8.

use pusherd::apps::App;
use pusherd::limits::Rate;
use serde_json::{Value, json};

use crate::harness::{NEWS, Server};

#[tokio::test]
async fn an_unreadable_message_is_an_error_and_the_connection_stays_open() {
    let server = Server::start().await;
    for text in [
        "",
        " ",
        "{",
        "hello",
        "null",
        "7",
        "[]",
        r#""pusher:ping""#,
        "{}",
        r#"{"event":null}"#,
        r#"{"event":7}"#,
        r#"{"event":["pusher:ping"]}"#,
        r#"{"data":{}}"#,
        r#"{"Event":"pusher:ping"}"#,
        r#"{"event":"pusher:ping"} trailing"#,
        r#"{"event":"pusher:ping",}"#,
        r#"{'event':'pusher:ping'}"#,
    ] {
        let mut client = server.connect().await;
        client.send_text(text).await;
        client.expect_error(Value::Null).await;
        client.fence().await;
    }
}

#[tokio::test]
async fn an_event_that_clients_cannot_send_is_an_error_and_not_relayed() {
    let server = Server::start().await;
    let mut listener = server.connect().await;
    listener.subscribe("private-room").await;
    for event in [
        "",
        "message",
        "pusher:error",
        "pusher:subscribed",
        "pusher:connection_established",
        "pusher:cache_miss",
        "pusher:subscription_error",
        "pusher:signin_success",
        "pusher_internal:subscription_succeeded",
        "pusher_internal:member_added",
        "pusher_internal:member_removed",
        "pusher_internal:x-client-y",
        "pusher:client-x",
        "PUSHER:PING",
        "pusher:ping ",
        " client-x",
        "Client-x",
        "xclient-x",
        "client",
        "client_x",
    ] {
        let mut sender = server.connect().await;
        sender.subscribe("private-room").await;
        let data = json!({ "user_id": "7" });
        sender.send(json!({ "event": event, "channel": "private-room", "data": data })).await;
        let message = sender.expect_error(Value::Null).await;
        assert!(message.contains(event), "{message:?} contains {event:?}");
        sender.fence().await;
    }
    server.publish("private-room", "marker", "").await;
    listener.expect(json!({ "event": "marker", "channel": "private-room", "data": "" })).await;
}

#[tokio::test]
async fn the_data_of_pusher_events_may_be_an_object_in_a_string() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send(json!({ "event": "pusher:subscribe", "data": r#"{"channel":"news"}"# })).await;
    client.expect_subscribed(NEWS).await;
    let signed = client.signed_subscribe("private-room", None)["data"].to_string();
    client.send(json!({ "event": "pusher:subscribe", "data": signed })).await;
    client.expect_subscribed("private-room").await;
    client.send(json!({ "event": "pusher:unsubscribe", "data": r#"{"channel":"private-room"}"# })).await;
    let user_data = r#"{"id":"7"}"#;
    let signed = client.signed_sign_in(user_data)["data"].to_string();
    client.send(json!({ "event": "pusher:signin", "data": signed })).await;
    client.expect_signed_in(user_data).await;
    server.publish("private-room", "late", "").await;
    client.fence().await;
}

#[tokio::test]
async fn a_subscribe_without_a_channel_is_an_error() {
    let server = Server::start().await;
    for data in [json!(null), json!({}), json!("news"), json!([]), json!(7), json!({ "channel": null })] {
        let mut client = server.connect().await;
        client.send(json!({ "event": "pusher:subscribe", "data": data })).await;
        client.expect_error(Value::Null).await;
        client.fence().await;
    }
    let mut client = server.connect().await;
    client.send(json!({ "event": "pusher:subscribe", "channel": "news" })).await;
    client.expect_error(Value::Null).await;
    client.fence().await;
}

#[tokio::test]
async fn unknown_keys_are_ignored() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let data = json!({ "channel": NEWS, "auth": null, "channel_data": null, "filter": { "a": [1] } });
    client.send(json!({ "event": "pusher:subscribe", "data": data, "id": 7, "user_id": "spoofed" })).await;
    client.expect_subscribed(NEWS).await;
}

#[tokio::test]
async fn of_duplicate_keys_the_last_counts() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send_text(r#"{"event":"nonsense","event":"pusher:ping"}"#).await;
    client.expect(json!({ "event": "pusher:pong", "data": "{}" })).await;
    let subscribe = |data: &str| format!(r#"{{"event":"pusher:subscribe","data":{data}}}"#);
    client.send_text(&subscribe(r#"{"channel":"news","channel":"private-room"}"#)).await;
    client.expect_unauthorized("private-room").await;
    client.send_text(&subscribe(r#"{"channel":"private-room","channel":"news"}"#)).await;
    client.expect_subscribed(NEWS).await;
    client.send_text(&subscribe(r#"{"channel":"private-room"},"data":{"channel":"sport"}"#)).await;
    client.expect_subscribed("sport").await;
}

#[tokio::test]
async fn the_signature_is_verified_for_the_last_of_duplicate_keys() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let signed = client.signed_subscribe("private-room", None);
    let auth = &signed["data"]["auth"];
    for data in [
        format!(r#"{{"channel":"private-room","auth":{auth},"channel":"private-other"}}"#),
        format!(r#"{{"channel":"private-other","auth":{auth},"auth":"","channel":"private-other"}}"#),
    ] {
        client.send_text(&format!(r#"{{"event":"pusher:subscribe","data":{data}}}"#)).await;
        client.expect_unauthorized("private-other").await;
    }
}

#[tokio::test]
async fn a_client_that_exceeds_the_rate_of_messages_is_closed_with_4100() {
    let server =
        Server::with_app(|app: &mut App| app.limits.messages = Rate { per_second: 10, burst: 20 }).await;
    let mut flooding = server.connect().await;
    let mut calm = server.connect().await;
    // More than the rate allows by the time that all are read.
    flooding.send_all((0..300).map(|_| json!({ "event": "pusher:pong" }))).await;
    flooding.expect_close(4100).await;
    calm.fence().await;
}

#[tokio::test]
async fn error_frames_for_unreadable_messages_have_a_rate() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let nonsense = std::iter::repeat_n(json!({ "event": "nonsense" }), 400);
    client.send_all(nonsense.chain([json!({ "event": "pusher:ping" })])).await;
    let mut errors = 0;
    loop {
        match client.next().await["event"].as_str().unwrap() {
            "pusher:pong" => break,
            event => assert_eq!(event, "pusher:error"),
        }
        errors += 1;
    }
    assert!((1..300).contains(&errors), "{errors} errors");
}

#[tokio::test]
async fn control_frames_are_not_counted_as_messages() {
    let server =
        Server::with_app(|app: &mut App| app.limits.messages = Rate { per_second: 1, burst: 2 }).await;
    let mut client = server.connect().await;
    for _ in 0..500 {
        client.send_ws_ping().await;
    }
    client.fence().await;
}

#[tokio::test]
async fn hundreds_of_messages_at_once_are_accepted() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send_all((0..400).map(|_| json!({ "event": "pusher:pong" }))).await;
    client.fence().await;
}
