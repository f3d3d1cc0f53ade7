//! Client events. Source: protocol.md §5.

use pusherd::apps::App;
use pusherd::limits::Rate;
use serde_json::{Value, json};

use crate::harness::{Client, NEWS, Server};

const ROOM: &str = "private-room";

/// Two subscribers of [`ROOM`].
async fn pair(server: &Server) -> [Client; 2] {
    let mut pair = server.connect_many().await;
    for client in &mut pair {
        client.subscribe(ROOM).await;
    }
    pair
}

/// Asserts that none of `clients` received anything on [`ROOM`] before this publish.
async fn marker(server: &Server, clients: &mut [&mut Client]) {
    server.publish(ROOM, "marker", "").await;
    for client in clients {
        client.expect(json!({ "event": "marker", "channel": ROOM, "data": "" })).await;
    }
}

#[tokio::test]
async fn the_other_subscribers_receive_a_client_event_and_the_sender_does_not() {
    let server = Server::start().await;
    let [mut sender, mut other] = pair(&server).await;
    let [mut third, mut elsewhere] = server.connect_many().await;
    third.subscribe(ROOM).await;
    elsewhere.subscribe("private-other").await;
    sender.whisper(ROOM, "client-typing", json!({ "on": true })).await;
    for client in [&mut other, &mut third] {
        client.expect(json!({ "event": "client-typing", "channel": ROOM, "data": { "on": true } })).await;
    }
    sender.fence().await;
    elsewhere.fence().await;
}

#[tokio::test]
async fn client_events_work_on_every_private_and_presence_channel_that_is_not_encrypted() {
    let server = Server::start().await;
    for channel in
        [ROOM, "private-cache-room", "presence-room", "presence-cache-room", "private-", "presence-"]
    {
        let mut pair: [Client; 2] = server.connect_many().await;
        for (at, client) in pair.iter_mut().enumerate() {
            let channel_data = json!({ "user_id": at.to_string() }).to_string();
            let channel_data = channel.starts_with("presence-").then_some(&*channel_data);
            client.send(client.signed_subscribe(channel, channel_data)).await;
            client.expect_event("pusher_internal:subscription_succeeded", channel).await;
            if channel.contains("cache") {
                client.expect_event("pusher:cache_miss", channel).await;
            }
        }
        let [mut sender, mut other] = pair;
        sender.whisper(channel, "client-x", json!("hi")).await;
        let mut expected = json!({ "event": "client-x", "channel": channel, "data": "hi" });
        if channel.starts_with("presence-") {
            expected["user_id"] = json!("0");
        }
        other.expect(expected).await;
    }
}

#[tokio::test]
async fn on_a_presence_channel_the_verified_user_id_is_added() {
    let server = Server::start().await;
    let [mut sender, mut tab, mut other] = server.connect_many().await;
    let room = "presence-room";
    sender.join_text(room, r#"{"user_id":7}"#).await;
    tab.join(room, json!({ "user_id": "7" })).await;
    other.join(room, json!({ "user_id": "8" })).await;
    for client in [&mut sender, &mut tab] {
        client.expect_event("pusher_internal:member_added", room).await;
    }
    sender
        .send(json!({
            "event": "client-x", "channel": room, "data": 1,
            "user_id": "8", "socket_id": "1.1", "info": {}, "name": "other",
        }))
        .await;
    let expected = json!({ "event": "client-x", "channel": room, "data": 1, "user_id": "7" });
    other.expect(expected.clone()).await;
    tab.expect(expected).await;
    sender.fence().await;
}

#[tokio::test]
async fn on_a_private_channel_no_user_id_is_added_whatever_the_sender_sends() {
    let server = Server::start().await;
    let [mut sender, mut other] = pair(&server).await;
    sender.sign_in(json!({ "id": "7" })).await;
    sender
        .send(json!({ "event": "client-x", "channel": ROOM, "data": {}, "user_id": "8", "socket_id": "1.1" }))
        .await;
    other.expect(json!({ "event": "client-x", "channel": ROOM, "data": {} })).await;
}

#[tokio::test]
async fn data_is_relayed_in_its_type_byte_for_byte() {
    let many = Rate { per_second: 1000, burst: 1000 };
    let server = Server::with_app(|app: &mut App| app.limits.client_events = many).await;
    let [mut sender, mut other] = pair(&server).await;
    for data in [
        r#"{"on":true}"#,
        r#"{ "b" : 1.50, "a" : [ ] }"#,
        r#""{\"on\":true}""#,
        r#""text""#,
        r#""""#,
        r#""\u00e9\/\ud83d\ude00 é 😀 </script>""#,
        "7",
        "-0.0",
        "1e400",
        "12345678901234567890123",
        "true",
        "[1,[2],{}]",
        "{}",
        "null",
        r#"{"a":1,"a":2}"#,
    ] {
        sender.send_text(&format!(r#"{{"event":"client-x","data":{data},"channel":"{ROOM}"}}"#)).await;
        let frame = other.next_text().await;
        assert!(frame.contains(&format!(r#""data":{data}"#)), "{frame} holds {data}");
        sender.fence().await;
    }
}

#[tokio::test]
async fn missing_data_is_relayed_as_null() {
    let server = Server::start().await;
    let [mut sender, mut other] = pair(&server).await;
    for message in [
        json!({ "event": "client-x", "channel": ROOM }),
        json!({ "event": "client-x", "channel": ROOM, "data": null }),
    ] {
        sender.send(message).await;
        other.expect(json!({ "event": "client-x", "channel": ROOM, "data": null })).await;
    }
}

/// Sends `message` from a subscriber of [`ROOM`]. Asserts that it is rejected with an error, that no other subscriber
/// receives it, and that the sender may continue. Returns the message of the error.
async fn assert_rejected(server: &Server, message: Value) -> String {
    let [mut sender, mut other] = pair(server).await;
    sender.send(message).await;
    let text = sender.expect_error(Value::Null).await;
    marker(server, &mut [&mut sender, &mut other]).await;
    sender.whisper(ROOM, "client-good", json!(1)).await;
    other.expect(json!({ "event": "client-good", "channel": ROOM, "data": 1 })).await;
    text
}

#[tokio::test]
async fn client_events_of_an_app_that_disables_them_are_rejected() {
    let server = Server::with_app(|app: &mut App| app.client_events = false).await;
    let [mut sender, mut other] = pair(&server).await;
    sender.whisper(ROOM, "client-x", json!({})).await;
    sender.expect_error(Value::Null).await;
    marker(&server, &mut [&mut sender, &mut other]).await;
}

#[tokio::test]
async fn client_events_on_channels_of_other_kinds_are_rejected() {
    let server = Server::start().await;
    for channel in [
        NEWS,
        "cache-news",
        "private-encrypted-room",
        "private-encrypted-cache-room",
        "privateroom",
        "Private-x",
    ] {
        let [mut sender, mut other] = server.connect_many().await;
        for client in [&mut sender, &mut other] {
            client.subscribe(channel).await;
            if channel.contains("cache-") {
                client.expect_event("pusher:cache_miss", channel).await;
            }
        }
        sender.whisper(channel, "client-x", json!({})).await;
        sender.expect_error(Value::Null).await;
        server.publish(channel, "marker", "").await;
        for client in [&mut sender, &mut other] {
            client.expect(json!({ "event": "marker", "channel": channel, "data": "" })).await;
        }
    }
    let mut user = server.connect().await;
    user.sign_in(json!({ "id": "7" })).await;
    user.subscribe("#server-to-user-7").await;
    user.whisper("#server-to-user-7", "client-x", json!({})).await;
    user.expect_error(Value::Null).await;
    user.fence().await;
}

#[tokio::test]
async fn only_subscribers_of_the_channel_may_send_client_events() {
    let server = Server::start().await;
    let mut listener = server.connect().await;
    listener.subscribe(ROOM).await;
    let mut never = server.connect().await;
    never.whisper(ROOM, "client-x", json!(1)).await;
    never.expect_error(Value::Null).await;
    let mut elsewhere = server.connect().await;
    elsewhere.subscribe("private-other").await;
    elsewhere.whisper(ROOM, "client-x", json!(2)).await;
    elsewhere.expect_error(Value::Null).await;
    let mut refused = server.connect().await;
    refused.ask(ROOM).await;
    refused.expect_unauthorized(ROOM).await;
    refused.whisper(ROOM, "client-x", json!(3)).await;
    refused.expect_error(Value::Null).await;
    let mut left = server.connect().await;
    left.subscribe(ROOM).await;
    left.unsubscribe(ROOM).await;
    left.whisper(ROOM, "client-x", json!(4)).await;
    left.expect_error(Value::Null).await;
    marker(&server, &mut [&mut listener]).await;
    for mut client in [never, elsewhere, refused, left] {
        client.fence().await;
    }
}

#[tokio::test]
async fn a_name_without_the_prefix_or_with_nothing_after_it_is_rejected() {
    let server = Server::start().await;
    for name in ["client-", "client", "Client-x", "xclient-x", "pusher_internal:x-client-y", "client:x"] {
        assert_rejected(&server, json!({ "event": name, "channel": ROOM, "data": {} })).await;
    }
}

#[tokio::test]
async fn a_client_event_without_a_channel_is_rejected() {
    let server = Server::start().await;
    for channel in
        [None, Some(json!(null)), Some(json!(7)), Some(json!("")), Some(json!("no name")), Some(json!({}))]
    {
        let mut message = json!({ "event": "client-x", "data": {} });
        if let Some(channel) = channel {
            message["channel"] = channel;
        }
        assert_rejected(&server, message).await;
    }
}

#[tokio::test]
async fn a_rejection_states_the_reason() {
    let server = Server::start().await;
    let other = json!({ "event": "client-x", "channel": "private-other", "data": {} });
    let text = assert_rejected(&server, other).await;
    assert!(text.contains("private-other"), "{text}");
}

#[tokio::test]
async fn at_most_one_rejection_a_second_is_answered() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let bad = json!({ "event": "client-x", "channel": ROOM, "data": {} });
    client.send_all(std::iter::repeat_n(bad, 8)).await;
    client.expect_error(Value::Null).await;
    client.fence().await;
}

#[tokio::test]
async fn more_than_ten_at_once_are_dropped_with_4301() {
    let server = Server::start().await;
    let [mut sender, mut other] = pair(&server).await;
    let whispers = (0..15).map(|at| json!({ "event": "client-x", "channel": ROOM, "data": at }));
    sender.send_all(whispers).await;
    for at in 0..10 {
        other.expect(json!({ "event": "client-x", "channel": ROOM, "data": at })).await;
    }
    sender.expect_error(4301).await;
    sender.fence().await;
    marker(&server, &mut [&mut other]).await;
}

#[tokio::test]
async fn each_connection_has_its_own_rate() {
    let server = Server::start().await;
    let [mut fast, mut slow] = pair(&server).await;
    let mut listener = server.connect().await;
    listener.subscribe(ROOM).await;
    let whispers = (0..12).map(|at| json!({ "event": "client-x", "channel": ROOM, "data": at }));
    fast.send_all(whispers).await;
    fast.expect_error(4301).await;
    slow.whisper(ROOM, "client-y", json!("slow")).await;
    for at in 0..10 {
        listener.expect(json!({ "event": "client-x", "channel": ROOM, "data": at })).await;
    }
    listener.expect(json!({ "event": "client-y", "channel": ROOM, "data": "slow" })).await;
}

#[tokio::test]
async fn the_same_name_in_another_app_is_another_channel() {
    let server = Server::start().await;
    let [mut sender, mut other] = pair(&server).await;
    let mut theirs = server.connect_to("/app/other-key").await;
    let auth = crate::harness::OTHER.auth(&format!("{}:{ROOM}", theirs.id));
    theirs.ask_with(ROOM, auth).await;
    theirs.expect_subscribed(ROOM).await;
    sender.whisper(ROOM, "client-x", json!(1)).await;
    other.expect(json!({ "event": "client-x", "channel": ROOM, "data": 1 })).await;
    theirs.fence().await;
}

/// JSON as deep as this, as an array and as objects.
fn nested(depth: usize) -> [String; 2] {
    let array = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let object = format!(r#"{}1{}"#, r#"{"a":"#.repeat(depth), "}".repeat(depth));
    [array, object]
}

#[tokio::test]
async fn data_nested_more_than_128_levels_deep_is_rejected_with_a_reason() {
    let many = Rate { per_second: 1000, burst: 1000 };
    let server = Server::with_app(|app: &mut App| app.limits.client_events = many).await;
    let [mut sender, mut other] = pair(&server).await;
    let event = |data: &str| format!(r#"{{"event":"client-x","channel":"{ROOM}","data":{data}}}"#);
    for data in nested(128) {
        // Clients parse the JSON in a string as well.
        for data in [data.clone(), Value::from(data).to_string()] {
            sender.send_text(&event(&data)).await;
            assert!(other.next_text().await.contains(&data));
        }
    }
    for data in nested(129).into_iter().chain(nested(700)) {
        for data in [data.clone(), Value::from(data).to_string()] {
            // At most one rejection a second is answered.
            let mut sender = server.connect().await;
            sender.subscribe(ROOM).await;
            sender.send_text(&event(&data)).await;
            let message = sender.expect_error(Value::Null).await;
            assert!(message.contains("nested more than 128 levels deep"), "{message}");
            sender.fence().await;
        }
    }
    marker(&server, &mut [&mut sender, &mut other]).await;
}

/// They are valid JSON: JavaScript may cut a string within a character, and the range of a number depends on the parser.
#[tokio::test]
async fn lone_surrogates_and_numbers_of_any_size_are_relayed_unchanged() {
    let server = Server::start().await;
    let [mut sender, mut other] = pair(&server).await;
    for data in [r#""\ud800""#, r#"{"\udc00":["\ud800x"]}"#, "1e999", r#"[-1e999,1e-999]"#] {
        let frame = format!(r#"{{"event":"client-x","channel":"{ROOM}","data":{data}}}"#);
        sender.send_text(&frame).await;
        assert_eq!(other.next_text().await, frame);
    }
}
