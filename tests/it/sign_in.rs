//! Signing in, users' own channels, and terminating users. Source: protocol.md §6.1, §6.2, §6.4.

use pusherd::apps::App;
use pusherd::protocol::CloseCode;
use serde_json::{Value, json};

use crate::harness::{Client, DEMO, Key, OTHER, Request, Server, channel_auth, user_auth};
use crate::presence::{ROOM, user};

const MINE: &str = "#server-to-user-7";

impl Client {
    /// Asks for a sign-in with this `auth`.
    async fn ask_to_sign_in(&mut self, auth: impl Into<Value>, user_data: impl Into<Value>) {
        let data = json!({ "auth": auth.into(), "user_data": user_data.into() });
        self.send(json!({ "event": "pusher:signin", "data": data })).await;
    }
}

#[tokio::test]
async fn a_valid_signature_signs_in_and_the_acknowledgement_has_user_data_only() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let user_data = r#"{"id":"7","user_info":{"name":"Zoë"},"watchlist":[]}"#;
    client.send(client.signed_sign_in(user_data)).await;
    let text = client.next_text().await;
    assert!(!text.contains("auth") && !text.contains("demo-key"), "{text}");
    let frame: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(frame, json!({ "event": "pusher:signin_success", "data": frame["data"] }));
    let data: Value = serde_json::from_str(frame["data"].as_str().unwrap()).unwrap();
    assert_eq!(data, json!({ "user_data": user_data }));
    client.fence().await;
}

#[tokio::test]
async fn user_data_is_acknowledged_byte_for_byte() {
    let server = Server::start().await;
    for user_data in [
        r#"{ "id" : "7" }"#,
        r#"{"id":7}"#,
        r#"{"id":"7","user_info":{"n":1.50,"big":12345678901234567890123,"u":"\u00e9\/"}}"#,
    ] {
        let mut client = server.connect().await;
        client.send(client.signed_sign_in(user_data)).await;
        client.expect_signed_in(user_data).await;
    }
}

#[tokio::test]
async fn an_invalid_signature_is_an_error_and_the_connection_stays_open() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let user_data = r#"{"id":"7"}"#;
    let id = client.id.clone();
    let other_id = server.connect().await.id;
    let signed = format!("{id}::user::{user_data}");
    let good = DEMO.sign(&signed);
    for auth in [
        json!(""),
        json!("demo-key:"),
        json!("demo-key"),
        json!(good),
        json!(format!(":{good}")),
        json!(format!("demo-key:{}", &good[..63])),
        json!(user_auth(&other_id, user_data)),
        json!(user_auth(&id, r#"{"id":"8"}"#)),
        json!(user_auth(&id, r#"{"id": "7"}"#)),
        json!(channel_auth(&id, user_data, None)),
        json!(channel_auth(&id, "private-room", Some(user_data))),
        json!(OTHER.auth(&signed)),
        json!(Key { secret: DEMO.secret, ..OTHER }.auth(&signed)),
        json!(Key { secret: OTHER.secret, ..DEMO }.auth(&signed)),
        json!(Key { key: "nope", ..DEMO }.auth(&signed)),
    ] {
        client.ask_to_sign_in(auth, user_data).await;
        let message = client.expect_error(4009).await;
        assert!(!message.contains(&good[..16]) && !message.contains(&id), "{message} tells too much");
    }
    client.ask(MINE).await;
    client.expect_unauthorized(MINE).await;
    client.ask_to_sign_in(format!("demo-key:{good}"), user_data).await;
    client.expect_signed_in(user_data).await;
}

#[tokio::test]
async fn user_data_without_a_valid_id_is_an_error_and_the_connection_stays_open() {
    let server = Server::start().await;
    for user_data in [
        r#"{"id":""}"#,
        r#"{"id":null}"#,
        r#"{"id":true}"#,
        r#"{"id":1.5}"#,
        r#"{"id":{}}"#,
        r#"{"id":["7"]}"#,
        r#"{"user_id":"7"}"#,
        r#"{"id":"a b"}"#,
        r##"{"id":"#7"}"##,
        r#"{"id":"a:b"}"#,
        r#"{"id":"a/b"}"#,
        r#"{"id":"é"}"#,
        "{}",
        "[]",
        "7",
        "null",
        "{",
    ] {
        let mut client = server.connect().await;
        client.send(client.signed_sign_in(user_data)).await;
        client.expect_error(4009).await;
        client.fence().await;
    }
}

#[tokio::test]
async fn an_incomplete_sign_in_is_an_error_and_the_connection_stays_open() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let auth = user_auth(&client.id, r#"{"id":"7"}"#);
    let user_data = |user_data: Value| {
        let auth = user_auth(&client.id, &user_data.to_string());
        json!({ "auth": auth, "user_data": user_data })
    };
    for data in [
        user_data(json!({ "id": "7" })),
        user_data(json!(null)),
        user_data(json!(7)),
        user_data(json!(["7"])),
        json!({ "auth": user_auth(&client.id, ""), "user_data": "" }),
        json!({ "auth": auth }),
        json!({ "user_data": r#"{"id":"7"}"# }),
        json!({ "auth": null, "user_data": r#"{"id":"7"}"# }),
        json!({ "auth": 7, "user_data": r#"{"id":"7"}"# }),
        json!({ "auth": { "auth": auth }, "user_data": r#"{"id":"7"}"# }),
        json!({}),
        json!(null),
        json!("x"),
    ] {
        client.send(json!({ "event": "pusher:signin", "data": data })).await;
        // The hosted service has been observed to send the code null.
        let error = client.next().await;
        assert_eq!(error["event"], "pusher:error");
        assert!(error["data"]["code"].is_null() || error["data"]["code"] == json!(4009), "{error}");
    }
    client.ask(MINE).await;
    client.expect_unauthorized(MINE).await;
}

#[tokio::test]
async fn the_signature_of_a_sign_in_is_not_valid_for_a_channel() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let user_data = r#"{"id":"7","user_id":"7"}"#;
    let auth = user_auth(&client.id, user_data);
    assert_eq!(auth, channel_auth(&client.id, ":user:", Some(user_data)), "the same text is signed");
    let data = json!({ "channel": ":user:", "auth": auth, "channel_data": user_data });
    client.send(json!({ "event": "pusher:subscribe", "data": data })).await;
    client.expect_refusal(":user:", "InvalidChannel", 400, Value::Null).await;
}

#[tokio::test]
async fn an_integer_id_is_the_same_user_as_its_digits() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.send(client.signed_sign_in(r#"{"id":7}"#)).await;
    client.expect_signed_in(r#"{"id":7}"#).await;
    client.subscribe(MINE).await;
    client.sign_in(json!({ "id": "7" })).await;
}

#[tokio::test]
async fn signing_in_again_as_the_same_user_succeeds() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.sign_in(json!({ "id": "7" })).await;
    client.subscribe(MINE).await;
    client.sign_in(json!({ "id": "7", "user_info": "other" })).await;
    server.publish(MINE, "e", "").await;
    client.expect(json!({ "event": "e", "channel": MINE, "data": "" })).await;
    client.fence().await;
}

#[tokio::test]
async fn signing_in_as_another_user_is_an_error_and_the_first_user_stays() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.sign_in(json!({ "id": "7" })).await;
    client.send(client.signed_sign_in(r#"{"id":"8"}"#)).await;
    client.expect_error(4009).await;
    client.ask("#server-to-user-8").await;
    client.expect_unauthorized("#server-to-user-8").await;
    client.subscribe(MINE).await;
    server.post("/apps/1001/users/8/terminate_connections", "{}").await.ok();
    client.fence().await;
}

#[tokio::test]
async fn a_users_own_channel_is_for_that_user_only() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let spoofed = channel_auth(&client.id, MINE, None);
    for auth in ["", &spoofed] {
        client.ask_with(MINE, auth).await;
        client.expect_unauthorized(MINE).await;
    }
    client.sign_in(json!({ "id": "7" })).await;
    for others in ["#server-to-user-8", "#server-to-user-77", "#server-to-user-07", "#server-to-user-"] {
        client.ask_with(others, channel_auth(&client.id, others, None)).await;
        let data = client.expect_event("pusher:subscription_error", others).await;
        assert!(data["status"] == 401 || data["status"] == 400, "{data}");
        assert_eq!(client.next().await["event"], "pusher:error");
    }
    client.send(json!({ "event": "pusher:subscribe", "data": { "auth": "", "channel": MINE } })).await;
    client.expect_subscribed(MINE).await;
    server.publish("#server-to-user-8", "secret", "").await;
    server.publish(MINE, "e", "{\"n\":1}").await;
    client.expect(json!({ "event": "e", "channel": MINE, "data": "{\"n\":1}" })).await;
}

/// An event on the user's own channel.
fn event(name: &str) -> Value {
    json!({ "event": name, "channel": MINE, "data": "" })
}

#[tokio::test]
async fn an_event_to_a_user_reaches_each_connection_of_the_user_once_subscribed_or_not() {
    let server = Server::start().await;
    let [mut phone, mut laptop, mut other] = server.connect_many().await;
    for (client, id) in [(&mut phone, "7"), (&mut laptop, "7"), (&mut other, "8")] {
        client.sign_in(json!({ "id": id })).await;
    }
    laptop.subscribe(MINE).await;
    server.publish(MINE, "one", "").await;
    server.publish_json(json!({ "name": "two", "channel": MINE, "data": "", "socket_id": phone.id })).await;
    phone.expect(event("one")).await;
    phone.fence().await;
    for name in ["one", "two"] {
        laptop.expect(event(name)).await;
    }
    for client in [&mut laptop, &mut other] {
        client.fence().await;
    }
}

#[tokio::test]
async fn after_the_sign_in_events_to_the_user_arrive_once_and_in_order() {
    let server = Server::start().await;
    let publishing = async {
        for number in 0_u32.. {
            server.publish(MINE, "n", &number.to_string()).await;
        }
    };
    let clients = async {
        for _ in 0..20 {
            let mut client = server.connect().await;
            client.sign_in(json!({ "id": "7" })).await;
            let mut next = None;
            let mut subscribed = 0;
            for step in 0..30 {
                // In between, the client subscribes twice and unsubscribes.
                match step {
                    5 | 15 => client.ask(MINE).await,
                    10 => client.unsubscribe(MINE).await,
                    _ => {}
                }
                let frame = client.next().await;
                if frame["event"] == "pusher_internal:subscription_succeeded" {
                    subscribed += 1;
                    continue;
                }
                let number: u32 = frame["data"].as_str().unwrap().parse().unwrap();
                assert_eq!(number, next.unwrap_or(number));
                next = Some(number + 1);
            }
            assert_eq!(subscribed, 2);
        }
    };
    tokio::select! {
        () = clients => {}
        () = publishing => unreachable!(),
    }
}

#[tokio::test]
async fn unsubscribing_from_the_own_channel_does_not_sign_out() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.sign_in(json!({ "id": "7" })).await;
    client.subscribe(MINE).await;
    client.unsubscribe(MINE).await;
    client.fence().await;
    server.publish(MINE, "e", "").await;
    client.expect(event("e")).await;
}

#[tokio::test]
async fn a_users_own_channel_counts_for_no_limit_of_channels() {
    let server = Server::with_app(|app: &mut App| {
        app.limits.channels_per_connection_max = 1;
        app.limits.channels_max = Some(1);
        app.subscription_counts = true;
    })
    .await;
    let mut client = server.connect().await;
    client.subscribe("news").await;
    client.expect_count("news", 1).await;
    client.sign_in(json!({ "id": "7" })).await;
    client.subscribe(MINE).await;
    server.publish(MINE, "e", "").await;
    client.expect(event("e")).await;
    client.whisper(MINE, "client-x", json!(1)).await;
    client.expect_error(Value::Null).await;
    assert_eq!(server.get_json("/apps/1001/channels").await, json!({ "channels": { "news": {} } }));
    let own = Request::get("/apps/1001/channels/%23server-to-user-7").signed();
    assert_eq!(server.send(own.clone()).await.ok(), json!({ "occupied": true }));
    client.close().await;
    server.has_connections(0).await;
    assert_eq!(server.send(own).await.ok(), json!({ "occupied": false }));
}

#[tokio::test]
async fn an_event_to_an_absent_user_is_accepted_and_dropped() {
    let server = Server::start().await;
    server.publish("#server-to-user-nobody", "e", "").await;
    let mut client = server.connect().await;
    client.sign_in(json!({ "id": "nobody" })).await;
    client.subscribe("#server-to-user-nobody").await;
    client.fence().await;
}

#[tokio::test]
async fn a_users_own_channel_is_not_listed() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.sign_in(json!({ "id": "7" })).await;
    client.subscribe(MINE).await;
    client.subscribe("news").await;
    assert_eq!(server.get_json("/apps/1001/channels").await, json!({ "channels": { "news": {} } }));
    let filtered = Request::get("/apps/1001/channels").with("filter_by_prefix", "#").signed();
    assert_eq!(server.send(filtered).await.ok(), json!({ "channels": {} }));
}

#[tokio::test]
async fn a_sign_in_is_valid_for_one_connection_only() {
    let server = Server::start().await;
    let mut first = server.connect().await;
    first.sign_in(json!({ "id": "7" })).await;
    let signed = first.signed_sign_in(r#"{"id":"7"}"#);
    let mut second = server.connect().await;
    second.ask(MINE).await;
    second.expect_unauthorized(MINE).await;
    second.send(signed).await;
    second.expect_error(4009).await;
}

#[tokio::test]
async fn apps_share_no_users() {
    let server = Server::start().await;
    let mut theirs = server.connect_to("/app/other-key").await;
    let user_data = r#"{"id":"7"}"#;
    let auth = OTHER.auth(&format!("{}::user::{user_data}", theirs.id));
    theirs.ask_to_sign_in(auth, user_data).await;
    theirs.expect_signed_in(user_data).await;
    theirs.subscribe(MINE).await;
    server.publish(MINE, "secret", "").await;
    server.post("/apps/1001/users/7/terminate_connections", "{}").await.ok();
    theirs.fence().await;
}

#[tokio::test]
async fn terminating_a_user_closes_exactly_the_connections_signed_in_as_that_user() {
    let server = Server::start().await;
    let [mut phone, mut laptop, mut other, mut member, mut stranger] = server.connect_many().await;
    phone.sign_in(json!({ "id": "7" })).await;
    laptop.send(laptop.signed_sign_in(r#"{"id":7}"#)).await;
    laptop.expect_signed_in(r#"{"id":7}"#).await;
    other.sign_in(json!({ "id": "8" })).await;
    member.join("presence-room", json!({ "user_id": "7" })).await;
    assert_eq!(server.post("/apps/1001/users/7/terminate_connections", "{}").await.ok(), json!({}));
    for mut client in [phone, laptop] {
        assert_eq!(client.expect_close(4009).await, "Disconnected by the application");
    }
    for client in [&mut other, &mut member, &mut stranger] {
        client.fence().await;
    }
    server.has_connections(3).await;
}

#[tokio::test]
async fn terminating_a_user_also_closes_presence_members_if_the_app_enables_it() {
    let server = Server::with(|setup| {
        setup.app.terminate_presence_members = true;
        setup.other.terminate_presence_members = true;
    })
    .await;
    let [mut other, mut member, mut elsewhere, mut both, mut former, mut reader] =
        server.connect_many().await;
    other.join(ROOM, user("8")).await;
    member.join(ROOM, user("7")).await;
    other.expect_added("7", Value::Null).await;
    elsewhere.join("presence-2", user("7")).await;
    both.sign_in(json!({ "id": "7" })).await;
    both.join(ROOM, user("7")).await;
    both.join("presence-3", user("7")).await;
    former.join("presence-3", user("7")).await;
    former.unsubscribe("presence-3").await;
    former.fence().await;
    reader.subscribe("private-7").await;
    let mut theirs = server.connect_to("/app/other-key").await;
    let channel_data = user("7").to_string();
    let auth = OTHER.auth(&format!("{}:{ROOM}:{channel_data}", theirs.id));
    let data = json!({ "channel": ROOM, "auth": auth, "channel_data": channel_data });
    theirs.send(json!({ "event": "pusher:subscribe", "data": data })).await;
    theirs.expect_event("pusher_internal:subscription_succeeded", ROOM).await;

    assert_eq!(server.post("/apps/1001/users/7/terminate_connections", "{}").await.ok(), json!({}));
    for mut client in [member, elsewhere, both] {
        // There is nothing between the error and the close.
        assert_eq!(client.expect_close(4009).await, "Disconnected by the application");
    }
    other.expect_removed("7").await;
    for client in [&mut other, &mut former, &mut reader, &mut theirs] {
        client.fence().await;
    }
    server.has_connections(3).await;
}

#[tokio::test]
async fn terminating_an_absent_user_succeeds() {
    let server = Server::start().await;
    for body in ["{}", ""] {
        let answer = server.post("/apps/1001/users/nobody/terminate_connections", body).await;
        assert_eq!(answer.ok(), json!({}));
    }
}

#[tokio::test]
async fn the_app_may_let_terminated_users_reconnect() {
    let server = Server::with_app(|app: &mut App| app.terminate_close_code = CloseCode::Reconnect).await;
    let mut client = server.connect().await;
    client.sign_in(json!({ "id": "7" })).await;
    server.post("/apps/1001/users/7/terminate_connections", "{}").await.ok();
    client.expect_close(4200).await;
}

#[tokio::test]
async fn the_path_of_the_python_sdk_terminates_too() {
    let server = Server::start().await;
    let [mut ours, mut other] = server.connect_many().await;
    ours.sign_in(json!({ "id": "u-42" })).await;
    other.sign_in(json!({ "id": "u-43" })).await;
    let request = Request::post("/users/u-42/terminate_connections", "{}");
    let foreign = request.clone().signed_with(&Key { secret: OTHER.secret, ..DEMO });
    server.send(foreign).await.rejected(401);
    server.send(request.clone()).await.rejected(401);
    server.send(request.clone().signed_with(&OTHER)).await.ok();
    ours.fence().await;
    assert_eq!(server.send(request.signed()).await.ok(), json!({}));
    ours.expect_close(4009).await;
    other.fence().await;
}
