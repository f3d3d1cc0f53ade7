//! Presence channels: members and member events. Source: protocol.md §4.5, §4.7.

use pusherd::apps::App;
use serde_json::{Value, json};

use crate::harness::{Client, Server, channel_auth};

pub const ROOM: &str = "presence-room";

impl Client {
    pub async fn expect_added(&mut self, user_id: &str, user_info: Value) {
        let data = self.expect_event("pusher_internal:member_added", ROOM).await;
        assert_eq!(data, json!({ "user_id": user_id, "user_info": user_info }));
    }

    pub async fn expect_removed(&mut self, user_id: &str) {
        let data = self.expect_event("pusher_internal:member_removed", ROOM).await;
        assert_eq!(data, json!({ "user_id": user_id }));
    }
}

pub fn user(id: &str) -> Value {
    json!({ "user_id": id })
}

/// Asserts that none of `clients` received anything before this publish.
async fn marker(server: &Server, clients: &mut [&mut Client]) {
    server.publish(ROOM, "marker", "").await;
    for client in clients {
        client.expect(json!({ "event": "marker", "channel": ROOM, "data": "" })).await;
    }
}

#[tokio::test]
async fn a_new_member_receives_the_member_list_including_itself() {
    let server = Server::start().await;
    let [mut zoe, mut ada] = server.connect_many().await;
    let there = zoe.join(ROOM, json!({ "user_id": "7", "user_info": { "name": "Zoë" } })).await;
    assert_eq!(there, json!({ "ids": ["7"], "hash": { "7": { "name": "Zoë" } }, "count": 1 }));
    let there = ada.join(ROOM, json!({ "user_id": "8", "user_info": { "name": "Ada" } })).await;
    assert_eq!(
        there,
        json!({ "ids": ["7", "8"], "hash": { "7": { "name": "Zoë" }, "8": { "name": "Ada" } }, "count": 2 })
    );
    zoe.expect_added("8", json!({ "name": "Ada" })).await;
    marker(&server, &mut [&mut zoe, &mut ada]).await;
}

#[tokio::test]
async fn two_connections_of_a_user_are_added_once_and_removed_once() {
    let server = Server::start().await;
    let [mut other, mut first, mut second] = server.connect_many().await;
    other.join(ROOM, user("1")).await;
    first.join(ROOM, user("7")).await;
    other.expect_added("7", Value::Null).await;
    let there = second.join(ROOM, user("7")).await;
    assert_eq!(there, json!({ "ids": ["1", "7"], "hash": { "1": null, "7": null }, "count": 2 }));
    marker(&server, &mut [&mut other, &mut first, &mut second]).await;

    first.close().await;
    server.has_subscriptions(ROOM, 2).await;
    marker(&server, &mut [&mut other, &mut second]).await;
    second.unsubscribe(ROOM).await;
    other.expect_removed("7").await;
    second.fence().await;
    marker(&server, &mut [&mut other]).await;
}

#[tokio::test]
async fn a_member_is_removed_however_the_connection_ends() {
    let server = Server::start().await;
    let mut watching = server.connect().await;
    watching.join(ROOM, user("watching")).await;

    let mut leaving = server.connect().await;
    leaving.join(ROOM, user("7")).await;
    watching.expect_added("7", Value::Null).await;
    leaving.unsubscribe(ROOM).await;
    watching.expect_removed("7").await;

    leaving.join(ROOM, user("7")).await;
    watching.expect_added("7", Value::Null).await;
    leaving.close().await;
    watching.expect_removed("7").await;

    let mut crashing = server.connect().await;
    crashing.join(ROOM, user("7")).await;
    watching.expect_added("7", Value::Null).await;
    crashing.reset();
    watching.expect_removed("7").await;

    let mut terminated = server.connect().await;
    terminated.sign_in(json!({ "id": "7" })).await;
    terminated.join(ROOM, user("7")).await;
    watching.expect_added("7", Value::Null).await;
    server.post("/apps/1001/users/7/terminate_connections", "{}").await.ok();
    terminated.expect_close(4009).await;
    watching.expect_removed("7").await;
    marker(&server, &mut [&mut watching]).await;
}

#[tokio::test]
async fn a_user_id_may_be_an_integer_and_is_the_same_as_its_digits() {
    let server = Server::start().await;
    let [mut text, mut number] = server.connect_many().await;
    text.join(ROOM, user("7")).await;
    let there = number.join_text(ROOM, r#"{"user_id":7}"#).await;
    assert_eq!(there, json!({ "ids": ["7"], "hash": { "7": null }, "count": 1 }));
    marker(&server, &mut [&mut text, &mut number]).await;
    number.whisper(ROOM, "client-x", json!(null)).await;
    text.expect(json!({ "event": "client-x", "channel": ROOM, "data": null, "user_id": "7" })).await;
}

#[tokio::test]
async fn an_integer_beyond_the_range_of_a_double_keeps_its_digits() {
    let server = Server::start().await;
    for id in ["9007199254740993", "18446744073709551617", "123456789012345678901234567890"] {
        let mut client = server.connect().await;
        let there = client.join_text(ROOM, &format!(r#"{{"user_id":{id}}}"#)).await;
        assert_eq!(there["ids"], json!([id]));
        client.close().await;
        server.has_subscriptions(ROOM, 0).await;
    }
}

#[tokio::test]
async fn channel_data_without_a_valid_user_id_is_refused() {
    let server = Server::start().await;
    for channel_data in [
        r#"{"user_id":null}"#,
        r#"{"user_id":true}"#,
        r#"{"user_id":1.5}"#,
        r#"{"user_id":{}}"#,
        r#"{"user_id":[]}"#,
        r#"{"user_id":["7"]}"#,
        r#"{"user_id":""}"#,
        r#"{"user_info":{"name":"Zoë"}}"#,
        r#"{"id":"7"}"#,
        "{}",
        "[]",
        "7",
        r#""7""#,
        "null",
        "{",
        "user_id=7",
        " ",
    ] {
        let mut client = server.connect().await;
        client.ask_as(ROOM, channel_data).await;
        client.expect_unauthorized(ROOM).await;
        client.fence().await;
    }
    let mut client = server.connect().await;
    client.send(client.signed_subscribe(ROOM, None)).await;
    client.expect_unauthorized(ROOM).await;
    assert_eq!(server.get_json("/apps/1001/channels").await, json!({ "channels": {} }));
}

#[tokio::test]
async fn user_info_may_be_anything_and_is_null_when_absent() {
    let server = Server::start().await;
    let mut watching = server.connect().await;
    watching.join(ROOM, user("watching")).await;
    for user_info in [json!(true), json!(0), json!("x"), json!([1, "2"]), json!(null), json!({}), json!("")] {
        let mut client = server.connect().await;
        let there = client.join(ROOM, json!({ "user_id": "7", "user_info": user_info })).await;
        assert_eq!(there["hash"]["7"], user_info);
        watching.expect_added("7", user_info).await;
        client.close().await;
        watching.expect_removed("7").await;
    }
    let there = server.connect().await.join(ROOM, user("8")).await;
    assert_eq!(there["hash"], json!({ "watching": null, "8": null }));
    watching.expect_added("8", Value::Null).await;
}

#[tokio::test]
async fn user_info_is_relayed_byte_for_byte() {
    let server = Server::start().await;
    let mut watching = server.connect().await;
    watching.join(ROOM, user("watching")).await;
    let user_info = r#"{"b":1.50,"a":12345678901234567890123,"e":1e2,"u":"\u00e9\/","é":"😀"}"#;
    let channel_data = format!(r#"{{"user_id":"7","user_info":{user_info}}}"#);
    let mut client = server.connect().await;
    client.ask_as(ROOM, &channel_data).await;
    for mut receiver in [client, watching] {
        let frame = receiver.next().await;
        let data = frame["data"].as_str().unwrap();
        assert!(data.contains(user_info), "{data} contains {user_info}");
    }
}

#[tokio::test]
async fn channel_data_nested_more_than_128_levels_deep_is_refused_with_a_reason() {
    let server = Server::start().await;
    let [mut client, mut other] = server.connect_many().await;
    let info = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for (room, channel_data) in
        [(ROOM, format!(r#"{{"user_id":"7","user_info":{}}}"#, info(128))), ("private-room", info(129))]
    {
        client.send(client.signed_subscribe(room, Some(&channel_data))).await;
        let [message, _] = client.expect_refusal(room, "LimitReached", 4301, Value::Null).await;
        assert!(message.contains("nested more than 128 levels deep"), "{message}");
    }
    let user_data = format!(r#"{{"id":"7","user_info":{}}}"#, info(128));
    client.send(client.signed_sign_in(&user_data)).await;
    assert!(client.expect_error(4009).await.contains("nested more than 128 levels deep"));
    other.ask_as(ROOM, &format!(r#"{{"user_id":"7","user_info":{}}}"#, info(127))).await;
    assert!(other.next_text().await.contains(&info(127)));
}

#[tokio::test]
async fn other_keys_of_channel_data_are_ignored() {
    let server = Server::start().await;
    let [mut watching, mut client] = server.connect_many().await;
    watching.join(ROOM, user("watching")).await;
    let there = client
        .join(ROOM, json!({ "user_id": "7", "user_info": 1, "info": 2, "admin": true, "id": "9" }))
        .await;
    assert_eq!(there["hash"]["7"], json!(1));
    watching.expect_added("7", json!(1)).await;
}

#[tokio::test]
async fn of_duplicate_keys_in_channel_data_the_last_counts() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let there = client.join_text(ROOM, r#"{"user_id":"7","user_id":"8","user_info":1,"user_info":2}"#).await;
    assert_eq!(there["hash"], json!({ "8": 2 }));
}

#[tokio::test]
async fn the_user_info_of_the_first_connection_counts_until_the_last_one_leaves() {
    let server = Server::start().await;
    let info = |info: &str| json!({ "user_id": "7", "user_info": info });
    let [mut first, mut second, mut late, mut anew] = server.connect_many().await;
    first.join(ROOM, info("first")).await;
    let there = second.join(ROOM, info("second")).await;
    assert_eq!(there["hash"]["7"], json!("first"));
    first.close().await;
    server.has_subscriptions(ROOM, 1).await;
    assert_eq!(late.join(ROOM, user("8")).await["hash"]["7"], json!("first"));
    second.expect_added("8", Value::Null).await;
    second.close().await;
    late.expect_removed("7").await;
    anew.join(ROOM, info("anew")).await;
    late.expect_added("7", json!("anew")).await;
}

#[tokio::test]
async fn joining_again_succeeds_and_changes_nothing() {
    let server = Server::start().await;
    let [mut watching, mut client] = server.connect_many().await;
    watching.join(ROOM, user("watching")).await;
    client.join(ROOM, json!({ "user_id": "7", "user_info": "first" })).await;
    watching.expect_added("7", json!("first")).await;
    let there = client.join(ROOM, json!({ "user_id": "7", "user_info": "second" })).await;
    assert_eq!(
        there,
        json!({ "ids": ["watching", "7"], "hash": { "watching": null, "7": "first" }, "count": 2 })
    );
    client.join_text(ROOM, r#"{"user_id":7}"#).await;
    marker(&server, &mut [&mut watching, &mut client]).await;
    client.unsubscribe(ROOM).await;
    watching.expect_removed("7").await;
}

#[tokio::test]
async fn joining_again_as_another_user_is_refused_and_the_first_membership_stays() {
    let server = Server::start().await;
    let [mut watching, mut client] = server.connect_many().await;
    watching.join(ROOM, user("watching")).await;
    client.join(ROOM, user("7")).await;
    watching.expect_added("7", Value::Null).await;
    client.ask_as(ROOM, &user("8").to_string()).await;
    client.expect_refusal(ROOM, "AuthError", 409, Value::Null).await;
    marker(&server, &mut [&mut watching, &mut client]).await;
    assert_eq!(
        server.get_json("/apps/1001/channels/presence-room/users").await,
        json!({ "users": [{ "id": "watching" }, { "id": "7" }] })
    );
}

#[tokio::test]
async fn a_channel_at_its_limit_refuses_the_101st_user_but_not_another_connection_of_the_100th() {
    let server = Server::with_app(|app: &mut App| app.limits.presence_members_max = 100).await;
    let mut members = Vec::new();
    for id in 1..=100 {
        let mut member = server.connect().await;
        member.join(ROOM, user(&id.to_string())).await;
        members.push(member);
    }
    let mut too_many = server.connect().await;
    too_many.ask_as(ROOM, &user("101").to_string()).await;
    too_many.expect_refusal(ROOM, "LimitReached", 4100, Value::Null).await;
    let mut tab = server.connect().await;
    let there = tab.join(ROOM, user("100")).await;
    assert_eq!(there["count"], json!(100));
    assert_eq!(there["ids"].as_array().unwrap().len(), 100);
    assert_eq!(there["hash"].as_object().unwrap().len(), 100);

    members.remove(0).close().await;
    tab.expect_removed("1").await;
    too_many.join(ROOM, user("101")).await;
    tab.expect_added("101", Value::Null).await;
}

#[tokio::test]
async fn limits_cannot_be_probed_without_a_signature() {
    let server = Server::with_app(|app: &mut App| app.limits.presence_members_max = 1).await;
    let [mut member, mut other] = server.connect_many().await;
    member.join(ROOM, user("7")).await;
    for channel_data in [
        user("8"),
        user(&"8".repeat(129)),
        json!({ "user_id": "7", "user_info": "x".repeat(8192) }),
        json!({ "user_id": "7", "user_info": "x".repeat(12_000) }),
    ] {
        let channel_data = channel_data.to_string();
        let auth = channel_auth(&member.id, ROOM, Some(&channel_data));
        let data = json!({ "channel": ROOM, "auth": auth, "channel_data": channel_data });
        other.send(json!({ "event": "pusher:subscribe", "data": data })).await;
        other.expect_unauthorized(ROOM).await;
    }
}

#[tokio::test]
async fn a_signed_in_user_joins_without_channel_data() {
    let server = Server::start().await;
    let [mut watching, mut client, mut bare] = server.connect_many().await;
    watching.join(ROOM, user("watching")).await;
    client.sign_in(json!({ "id": "7", "user_info": { "name": "Zoë" }, "watchlist": [] })).await;
    client.send(client.signed_subscribe(ROOM, None)).await;
    let data = client.expect_event("pusher_internal:subscription_succeeded", ROOM).await;
    assert_eq!(data["presence"]["hash"], json!({ "watching": null, "7": { "name": "Zoë" } }));
    watching.expect_added("7", json!({ "name": "Zoë" })).await;
    client.whisper(ROOM, "client-x", json!(1)).await;
    watching.expect(json!({ "event": "client-x", "channel": ROOM, "data": 1, "user_id": "7" })).await;
    bare.sign_in(json!({ "id": "8" })).await;
    bare.send(bare.signed_subscribe(ROOM, None)).await;
    watching.expect_added("8", Value::Null).await;
}

#[tokio::test]
async fn channel_data_takes_precedence_over_the_sign_in() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.sign_in(json!({ "id": "7", "user_info": "signed in" })).await;
    let there = client.join(ROOM, json!({ "user_id": "70", "user_info": "channel" })).await;
    assert_eq!(there["hash"], json!({ "70": "channel" }));
}

#[tokio::test]
async fn a_signed_in_user_still_needs_a_signature_to_join() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.sign_in(json!({ "id": "7" })).await;
    for auth in ["", "demo-key:00", &channel_auth(&client.id, "presence-other", None)] {
        client.ask_with(ROOM, auth).await;
        client.expect_unauthorized(ROOM).await;
    }
}

#[tokio::test]
async fn memberships_of_different_channels_are_independent() {
    let server = Server::start().await;
    let [mut one, mut two] = server.connect_many().await;
    one.join(ROOM, user("7")).await;
    one.join("presence-other", user("70")).await;
    let there = two.join("presence-other", user("8")).await;
    assert_eq!(there["ids"], json!(["70", "8"]));
    one.expect_event("pusher_internal:member_added", "presence-other").await;
    two.close().await;
    one.expect_event("pusher_internal:member_removed", "presence-other").await;
    marker(&server, &mut [&mut one]).await;
}

#[tokio::test]
async fn member_events_arrive_in_the_same_order_at_all_subscribers() {
    let server = Server::start().await;
    let [mut one, mut two] = server.connect_many().await;
    one.join(ROOM, user("one")).await;
    two.join(ROOM, user("two")).await;
    one.expect_added("two", Value::Null).await;
    let mut coming = server.connect().await;
    let [join, leave] = [
        coming.signed_subscribe(ROOM, Some(&user("7").to_string())),
        json!({ "event": "pusher:unsubscribe", "data": { "channel": ROOM } }),
    ];
    let rounds = (0..50).flat_map(|_| [join.clone(), leave.clone()]);
    coming.send_all(rounds).await;
    for _ in 0..50 {
        for watching in [&mut one, &mut two] {
            watching.expect_added("7", Value::Null).await;
            watching.expect_removed("7").await;
        }
        coming.expect_event("pusher_internal:subscription_succeeded", ROOM).await;
    }
    marker(&server, &mut [&mut one, &mut two]).await;
    coming.fence().await;
}
