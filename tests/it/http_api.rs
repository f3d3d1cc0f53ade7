//! The HTTP API as server SDKs use it. Source: protocol.md §8.
//!
//! Every test of a refusal that could publish also shows that nothing was published.

use std::time::Duration;

use pusherd::apps::App;
use serde_json::{Value, json};

use crate::harness::{Answer, Client, DEMO, Http, Key, NEWS, OTHER, Request, Server, md5_hex, unix_now};

const EVENTS: &str = "/apps/1001/events";
const BATCH: &str = "/apps/1001/batch_events";
const CHANNELS: &str = "/apps/1001/channels";

/// A body for [`EVENTS`] that publishes to `news`.
fn good() -> String {
    json!({ "name": "e", "channel": NEWS, "data": "" }).to_string()
}

fn event(channel: &str, name: &str) -> Value {
    json!({ "event": name, "channel": channel, "data": "" })
}

/// A server, and a client that is on `news`.
async fn with_listener() -> (Server, Client) {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    (server, client)
}

/// Two users on `presence-room`, one of them twice, and one connection on `news`.
async fn with_company() -> (Server, [Client; 3]) {
    let server = Server::start().await;
    let mut clients: [Client; 3] = server.connect_many().await;
    for (client, id) in clients.iter_mut().zip(["7", "8", "8"]) {
        client.ask_as("presence-room", &json!({ "user_id": id }).to_string()).await;
    }
    clients[0].ask(NEWS).await;
    server.has_subscriptions("presence-room", 3).await;
    server.has_subscriptions(NEWS, 1).await;
    (server, clients)
}

// ---- POST /events

#[tokio::test]
async fn a_publish_is_answered_with_an_empty_object() {
    let (server, mut client) = with_listener().await;
    let answer = server.post(EVENTS, good()).await;
    assert_eq!((answer.status, answer.text()), (200, "{}"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    client.expect(event(NEWS, "e")).await;
}

#[tokio::test]
async fn an_event_goes_to_all_of_its_channels_and_to_each_once() {
    let server = Server::start().await;
    let [mut on_both, mut on_one] = server.connect_many().await;
    on_both.subscribe("a").await;
    on_both.subscribe("b").await;
    on_one.subscribe("b").await;
    server.publish_json(json!({ "name": "e", "channels": ["a", "b", "a", "nobody", "b"], "data": "" })).await;
    for channel in ["a", "b"] {
        on_both.expect(event(channel, "e")).await;
    }
    on_one.expect(event("b", "e")).await;
    on_both.fence().await;
    on_one.fence().await;
}

#[tokio::test]
async fn channels_wins_over_channel_and_may_be_a_string() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe("a").await;
    client.subscribe("b").await;
    for body in [
        json!({ "name": "e", "channels": ["a"], "channel": "b", "data": "" }),
        json!({ "name": "e", "channels": "a", "data": "" }),
        json!({ "name": "e", "channels": null, "channel": "a", "data": "" }),
        json!({ "name": "e", "channel": "a", "channels": ["a"], "data": "", "socket_id": null, "info": null }),
    ] {
        server.publish_json(body).await;
        client.expect(event("a", "e")).await;
    }
    client.fence().await;
}

#[tokio::test]
async fn a_publish_may_ask_how_many_are_there() {
    let (server, _clients) = with_company().await;
    let body = |info: &str| {
        let channels = [NEWS, "presence-room", "nobody", "presence-nobody", NEWS];
        json!({ "name": "e", "channels": channels, "data": "", "info": info })
    };
    let answer = server.post_json(EVENTS, body("user_count,subscription_count")).await.ok();
    assert_eq!(
        answer,
        json!({ "channels": {
            "news": { "subscription_count": 1 },
            "presence-room": { "user_count": 2, "subscription_count": 3 },
            "nobody": { "subscription_count": 0 },
            "presence-nobody": { "user_count": 0, "subscription_count": 0 },
        } })
    );
    let answer = server.post_json(EVENTS, body("user_count")).await.ok();
    assert_eq!(
        answer,
        json!({ "channels": {
            "news": {}, "presence-room": { "user_count": 2 }, "nobody": {}, "presence-nobody": { "user_count": 0 },
        } })
    );
}

#[tokio::test]
async fn an_event_is_not_lost_over_a_typo_in_info() {
    let (server, mut client) = with_listener().await;
    let body = |info: &str| json!({ "name": "e", "channel": NEWS, "data": "", "info": info });
    for info in ["nonsense", "", ",", "cache", "user_count"] {
        server.post_json(EVENTS, body(info)).await.ok();
        client.expect(event(NEWS, "e")).await;
    }
    let answer = server.post_json(EVENTS, body("nonsense, subscription_count")).await.ok();
    assert_eq!(answer["channels"][NEWS]["subscription_count"], json!(1), "{answer}");
    let kept = json!({ "name": "e", "channel": "cache-btc", "data": "", "info": "cache,subscription_count" });
    let answer = server.post_json(EVENTS, kept).await.ok();
    assert_eq!(answer, json!({ "channels": { "cache-btc": { "subscription_count": 0 } } }));
}

#[tokio::test]
async fn parameters_may_come_in_the_query() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe("a").await;
    client.subscribe("b").await;
    // As the Ruby SDK's specification has it (vector H7 of the specification).
    let request = Request::post(EVENTS, "")
        .with("name", "greet")
        .with("channels[]", "a")
        .with("channels[]", "b")
        .with("data", "hi there")
        .signed();
    assert!(request.target().contains("data=hi%20there"));
    assert_eq!(server.send(request).await.ok(), json!({}));
    for channel in ["a", "b"] {
        client.expect(json!({ "event": "greet", "channel": channel, "data": "hi there" })).await;
    }
    let mixed = Request::post(EVENTS, r#"{"name":"body","data":"1"}"#)
        .with("name", "query")
        .with("channel", "a")
        .signed();
    server.send(mixed).await.ok();
    client.expect(json!({ "event": "body", "channel": "a", "data": "1" })).await;
}

#[tokio::test]
async fn a_plus_in_a_query_is_a_space() {
    let (server, mut client) = with_listener().await;
    let signed = Request::post(EVENTS, "")
        .with("name", "greet")
        .with("channel", NEWS)
        .with("data", "hi there")
        .signed();
    let target = signed.target().replace("hi%20there", "hi+there");
    let mut http = server.http().await;
    http.write(format!("POST {target} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
    http.answer().await.ok();
    client.expect(json!({ "event": "greet", "channel": NEWS, "data": "hi there" })).await;
}

#[tokio::test]
async fn the_content_type_of_a_request_does_not_matter() {
    let (server, mut client) = with_listener().await;
    for content_type in
        ["text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=utf-8"]
    {
        let request = Request::post(EVENTS, good()).header("Content-Type", content_type).signed();
        server.send(request).await.ok();
        client.expect(event(NEWS, "e")).await;
    }
}

#[tokio::test]
async fn reserved_event_names_are_refused_and_client_events_are_not() {
    let (server, mut client) = with_listener().await;
    for name in
        ["", "pusher:ping", "pusher:", "pusher:error", "pusher_internal:member_added", "pusher_internal:"]
    {
        let body = json!({ "name": name, "channel": NEWS, "data": "" });
        server.post_json(EVENTS, body).await.rejected(400);
    }
    server.publish(NEWS, "client-typing", "").await;
    client.expect(event(NEWS, "client-typing")).await;
}

#[tokio::test]
async fn what_an_event_needs_and_does_not_have_is_refused() {
    let (server, mut client) = with_listener().await;
    for body in [
        json!({}),
        json!({ "channel": NEWS, "data": "" }),
        json!({ "name": "e", "channel": NEWS }),
        json!({ "name": "e", "data": "" }),
        json!({ "name": null, "channel": NEWS, "data": "" }),
        json!({ "name": 7, "channel": NEWS, "data": "" }),
        json!({ "name": ["e"], "channel": NEWS, "data": "" }),
        json!({ "name": "e", "channel": 7, "data": "" }),
        json!({ "name": "e", "channel": null, "data": "" }),
        json!({ "name": "e", "channel": [NEWS], "data": "" }),
        json!({ "name": "e", "channels": [], "data": "" }),
        json!({ "name": "e", "channels": [NEWS, 7], "data": "" }),
        json!({ "name": "e", "channels": [NEWS, null], "data": "" }),
        json!({ "name": "e", "channels": [[NEWS]], "data": "" }),
        json!({ "name": "e", "channels": { "a": NEWS }, "data": "" }),
        json!({ "name": "e", "channels": 7, "data": "" }),
        json!({ "name": "e", "channel": NEWS, "data": "", "info": 7 }),
        json!({ "name": "e", "channel": NEWS, "data": "", "info": ["user_count"] }),
    ] {
        let answer = server.post_json(EVENTS, body.clone()).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
        answer.rejected(400);
    }
    client.fence().await;
}

#[tokio::test]
async fn one_bad_channel_refuses_the_whole_event_and_is_named() {
    let (server, mut client) = with_listener().await;
    for bad in ["a b", "", "a:b", "é", "#news", "a/b", "private-a%20b"] {
        let body = json!({ "name": "e", "channels": [NEWS, bad], "data": "" });
        let answer = server.post_json(EVENTS, body).await;
        assert!(answer.rejected(400).contains(bad), "{} names {bad}", answer.text());
    }
    client.fence().await;
}

#[tokio::test]
async fn a_body_that_is_no_json_object_is_refused() {
    let (server, mut client) = with_listener().await;
    for body in [
        &b"hello"[..],
        b"[]",
        b"null",
        b"7",
        b"\"text\"",
        b"{",
        b"{\"name\":\"e\"",
        b"{\"name\":\"e\",\"channel\":\"news\",\"data\":\"\"} trailing",
        b"{\"name\":\"e\",\"channel\":\"news\",\"data\":\"\",}",
        b"{'name':'e','channel':'news','data':''}",
        b"name=e&channel=news&data=",
        b"{\"name\":\"e\",\"channel\":\"news\",\"data\":\"\xff\"}",
        b"{\"name\":\"e\",\"channel\":\"news\",\"data\":\"\xed\xa0\x80\"}",
        b"{\"name\":\"e\",\"channel\":\"news\",\"data\":\"\n\"}",
        b"\x00",
    ] {
        server.post(EVENTS, body).await.rejected(400);
        server.post(BATCH, body).await.rejected(400);
    }
    client.fence().await;
}

#[tokio::test]
async fn an_encrypted_channel_is_published_to_alone() {
    let (server, mut client) = with_listener().await;
    for encrypted in ["private-encrypted-room", "private-encrypted-cache-room"] {
        let several = json!({ "name": "e", "channels": [NEWS, encrypted], "data": "" });
        server.post_json(EVENTS, several).await.rejected(400);
        server.publish_json(json!({ "name": "e", "channels": [encrypted], "data": "" })).await;
    }
    let batch = json!({ "batch": [
        { "name": "e", "channel": "private-encrypted-room", "data": "" },
        { "name": "e", "channel": NEWS, "data": "" },
    ] });
    server.post_json(BATCH, batch).await.ok();
    client.expect(event(NEWS, "e")).await;
    client.fence().await;
}

// ---- POST /batch_events

#[tokio::test]
async fn a_batch_is_published_in_order_and_answered_with_an_empty_object() {
    let (server, mut client) = with_listener().await;
    client.subscribe("a").await;
    let batch = json!({ "batch": [
        { "name": "1", "channel": NEWS, "data": "" },
        { "name": "2", "channel": "a", "data": "" },
        { "name": "3", "channel": NEWS, "data": "" },
    ] });
    let answer = server.post_json(BATCH, batch).await;
    assert_eq!((answer.status, answer.text()), (200, "{}"));
    for (channel, name) in [(NEWS, "1"), ("a", "2"), (NEWS, "3")] {
        client.expect(event(channel, name)).await;
    }
}

#[tokio::test]
async fn an_empty_batch_is_granted() {
    let server = Server::start().await;
    assert_eq!(server.post(BATCH, r#"{"batch":[]}"#).await.ok(), json!({}));
}

#[tokio::test]
async fn a_batch_that_asks_is_answered_event_by_event() {
    let (server, _clients) = with_company().await;
    let event =
        |channel: &str, info: Value| json!({ "name": "e", "channel": channel, "data": "", "info": info });
    let batch = json!({ "batch": [
        event(NEWS, json!(null)),
        event("presence-room", json!("user_count")),
        event("presence-room", json!("user_count,subscription_count")),
        event(NEWS, json!("user_count")),
        event("nobody", json!("subscription_count")),
    ] });
    assert_eq!(
        server.post_json(BATCH, batch).await.ok(),
        json!({ "batch": [
            {}, { "user_count": 2 }, { "user_count": 2, "subscription_count": 3 }, {}, { "subscription_count": 0 },
        ] })
    );
}

#[tokio::test]
async fn one_bad_event_refuses_the_whole_batch() {
    let (server, mut client) = with_listener().await;
    let good = json!({ "name": "e", "channel": NEWS, "data": "" });
    for bad in [
        json!({ "name": "e", "channel": "a b", "data": "" }),
        json!({ "name": "e", "data": "" }),
        json!({ "name": "e", "channel": NEWS }),
        json!({ "channel": NEWS, "data": "" }),
        json!({ "name": "pusher:e", "channel": NEWS, "data": "" }),
        json!({ "name": "e", "channel": NEWS, "data": "", "socket_id": "x" }),
        json!([]),
        json!(null),
        json!("e"),
    ] {
        let body = json!({ "batch": [good, bad] });
        server.post_json(BATCH, body).await.rejected(400);
    }
    for body in [json!({}), json!({ "batch": null }), json!({ "batch": {} }), json!({ "batch": "e" }), good] {
        server.post_json(BATCH, body).await.rejected(400);
    }
    client.fence().await;
}

// ---- GET /channels and what is below it

#[tokio::test]
async fn no_channels_are_an_empty_object() {
    let server = Server::start().await;
    let answer = server.get(CHANNELS).await;
    assert_eq!((answer.status, answer.text()), (200, r#"{"channels":{}}"#));
    let answer = server.get("/apps/1001/channels?filter_by_prefix=presence-&info=user_count").await;
    assert_eq!(answer.text(), r#"{"channels":{}}"#);
}

#[tokio::test]
async fn occupied_channels_are_listed_with_what_is_asked_for() {
    let (server, mut clients) = with_company().await;
    let channels =
        async |query: &str| server.get_json(&format!("{CHANNELS}{query}")).await["channels"].take();
    assert_eq!(channels("").await, json!({ "news": {}, "presence-room": {} }));
    assert_eq!(channels("?filter_by_prefix=pres").await, json!({ "presence-room": {} }));
    assert_eq!(channels("?filter_by_prefix=room").await, json!({}));
    assert_eq!(channels("?filter_by_prefix=").await, json!({ "news": {}, "presence-room": {} }));
    assert_eq!(
        channels("?info=subscription_count").await,
        json!({ "news": { "subscription_count": 1 }, "presence-room": { "subscription_count": 3 } })
    );
    assert_eq!(
        channels("?filter_by_prefix=presence-&info=user_count,subscription_count").await,
        json!({ "presence-room": { "user_count": 2, "subscription_count": 3 } })
    );
    assert_eq!(
        channels("?filter_by_prefix=presence-r&info=user_count").await,
        json!({ "presence-room": { "user_count": 2 } })
    );
    clients[0].unsubscribe(NEWS).await;
    server.has_subscriptions(NEWS, 0).await;
    assert_eq!(channels("").await, json!({ "presence-room": {} }));
}

#[tokio::test]
async fn user_count_is_told_of_presence_channels_only() {
    let server = Server::start().await;
    for query in [
        "info=user_count",
        "info=user_count&filter_by_prefix=",
        "info=user_count&filter_by_prefix=presence",
        "info=user_count&filter_by_prefix=private-",
        "info=subscription_count,user_count&filter_by_prefix=news",
    ] {
        server.get(&format!("{CHANNELS}?{query}")).await.rejected(400);
    }
    for channel in [NEWS, "private-room", "cache-btc", "presence"] {
        server.get(&format!("{CHANNELS}/{channel}?info=user_count")).await.rejected(400);
    }
}

#[tokio::test]
async fn an_attribute_that_does_not_exist_is_refused() {
    let server = Server::start().await;
    for target in [
        "/apps/1001/channels?info=nonsense",
        "/apps/1001/channels?info=cache",
        "/apps/1001/channels/news?info=nonsense",
        "/apps/1001/channels/presence-room?info=user_count,nonsense",
        "/apps/1001/channels/news?info=cache",
        "/apps/1001/channels/presence-room?info=cache",
        "/apps/1001/channels/private-x-cache-y?info=cache",
    ] {
        let answer = server.get(target).await;
        let text = answer.rejected(400);
        let is_unknown = text.contains("info should be a comma separated list of attributes");
        assert!(is_unknown || !target.contains("nonsense"), "{text}");
    }
}

#[tokio::test]
async fn a_channel_is_told_of_whether_occupied_or_not() {
    let (server, _clients) = with_company().await;
    let channel = async |rest: &str| server.get_json(&format!("{CHANNELS}/{rest}")).await;
    assert_eq!(channel("news").await, json!({ "occupied": true }));
    assert_eq!(channel("nobody").await, json!({ "occupied": false }));
    assert_eq!(
        channel("news?info=subscription_count").await,
        json!({ "occupied": true, "subscription_count": 1 })
    );
    assert_eq!(
        channel("presence-room?info=user_count,subscription_count").await,
        json!({ "occupied": true, "user_count": 2, "subscription_count": 3 })
    );
    assert_eq!(
        channel("presence-nobody?info=user_count,subscription_count").await,
        json!({ "occupied": false, "user_count": 0, "subscription_count": 0 })
    );
    assert_eq!(
        channel("private-encrypted-nobody?info=subscription_count").await,
        json!({ "occupied": false, "subscription_count": 0 })
    );
}

#[tokio::test]
async fn what_a_cache_channel_keeps_is_told() {
    let server = Server::start().await;
    let cache = async |channel: &str| server.get_json(&format!("{CHANNELS}/{channel}?info=cache")).await;
    for channel in ["cache-btc", "private-cache-btc", "presence-cache-btc", "private-encrypted-cache-btc"] {
        assert_eq!(cache(channel).await, json!({ "occupied": false, "cache": null }));
        server.publish(channel, "price", "{\"eur\":61234}").await;
        let answer = cache(channel).await;
        let ttl = answer["cache"]["ttl"].clone();
        assert!(ttl.is_u64(), "{answer}");
        assert_eq!(answer, json!({ "occupied": false, "cache": { "data": "{\"eur\":61234}", "ttl": ttl } }));
    }
    let mut client = server.connect().await;
    client.subscribe("cache-btc").await;
    assert_eq!(cache("cache-btc").await["occupied"], json!(true));
}

#[tokio::test]
async fn a_channels_name_in_a_path_may_be_encoded() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let name = "azAZ09_-=@,.;";
    client.subscribe(name).await;
    for path in [name.to_owned(), "%61zAZ09_-%3D%40%2C%2E%3B".to_owned()] {
        assert_eq!(server.get_json(&format!("{CHANNELS}/{path}")).await, json!({ "occupied": true }));
    }
}

#[tokio::test]
async fn a_channels_name_that_cannot_be_is_refused() {
    let server = Server::start().await;
    for name in ["a%20b", "a:b", "%C3%A9", "%23news", "a%2Fb", &"x".repeat(201)] {
        server.get(&format!("{CHANNELS}/{name}")).await.rejected(400);
        server.get(&format!("{CHANNELS}/presence-{name}/users")).await.rejected(400);
    }
}

#[tokio::test]
async fn users_are_told_once_each_with_their_ids_as_strings() {
    let (server, mut clients) = with_company().await;
    let users = "/apps/1001/channels/presence-room/users";
    assert_eq!(server.get_json(users).await, json!({ "users": [{ "id": "7" }, { "id": "8" }] }));
    clients[0].unsubscribe("presence-room").await;
    server.has_subscriptions("presence-room", 2).await;
    clients[0].ask_as("presence-room", r#"{"user_id":9,"user_info":{"secret":1}}"#).await;
    server.has_subscriptions("presence-room", 3).await;
    assert_eq!(server.get_json(users).await, json!({ "users": [{ "id": "8" }, { "id": "9" }] }));
}

#[tokio::test]
async fn users_of_an_empty_presence_channel_are_an_empty_list_and_of_others_an_error() {
    let (server, _clients) = with_company().await;
    let answer = server.get("/apps/1001/channels/presence-nobody/users").await;
    assert_eq!((answer.status, answer.text()), (200, r#"{"users":[]}"#));
    for channel in [NEWS, "private-room", "presence", "nobody"] {
        server.get(&format!("{CHANNELS}/{channel}/users")).await.rejected(400);
    }
}

#[tokio::test]
async fn connections_are_counted_while_they_are_established() {
    let server = Server::start().await;
    let count = async || server.get("/apps/1001/connections").await;
    assert_eq!(count().await.text(), r#"{"connections":0}"#);
    let [one, two] = server.connect_many().await;
    server.connect_to("/app/other-key").await;
    server.upgrade("/app/nope", &[]).await.rejected(4001).await;
    assert_eq!(count().await.ok(), json!({ "connections": 2 }));
    one.close().await;
    server.has_connections(1).await;
    two.reset();
    server.has_connections(0).await;
    server.send(Request::get("/apps/1001/connections")).await.rejected(401);
}

// ---- the API of 2012

#[tokio::test]
async fn the_publish_of_2012_is_answered_with_202() {
    let (server, mut client) = with_listener().await;
    let request = |path: &str, data: &str| Request::post(path, data).with("name", "e").signed();
    let path = "/apps/1001/channels/news/events";
    assert_eq!(server.send(request(path, "text")).await.status, 202);
    client.expect(json!({ "event": "e", "channel": NEWS, "data": "text" })).await;
    server.send(Request::post(path, "text").signed()).await.rejected(400);
    server.send(Request::post(path, &b"\xff"[..]).with("name", "e").signed()).await.rejected(400);
    server.send(Request::post(path, "text").with("name", "pusher:e").signed()).await.rejected(400);
    server.send(request("/apps/1001/channels/a%20b/events", "text")).await.rejected(400);
    client.fence().await;
}

#[tokio::test]
async fn the_stats_of_2012_are_told() {
    let (server, _clients) = with_company().await;
    let stats = async |channel: &str| server.get_json(&format!("{CHANNELS}/{channel}/stats")).await;
    assert_eq!(stats(NEWS).await, json!({ "occupied": true }));
    assert_eq!(stats("nobody").await, json!({ "occupied": false }));
    assert_eq!(stats("presence-room").await, json!({ "occupied": true, "user_count": 2 }));
}

// ---- terminate_connections: the path

#[tokio::test]
async fn a_user_id_in_a_path_may_be_encoded_and_may_have_slashes() {
    let server = Server::start().await;
    for path in [
        "/apps/1001/users/a%40b/terminate_connections",
        "/apps/1001/users/a%2Fb/terminate_connections",
        "/apps/1001/users/a/b/terminate_connections",
        "/apps/1001/users/a/terminate_connections/terminate_connections",
    ] {
        assert_eq!(server.post(path, "{}").await.ok(), json!({}), "{path}");
    }
    let mut client = server.connect().await;
    client.sign_in(json!({ "id": "a@b" })).await;
    server.post("/apps/1001/users/a%40b/terminate_connections", "{}").await.ok();
    client.expect_close(4009).await;
}

// ---- health

#[tokio::test]
async fn health_is_told_to_anybody() {
    let server = Server::start().await;
    let get = async |path: &str| server.send(Request::get(path)).await;
    assert_eq!(get("/up").await.ok(), json!({ "health": "OK" }));
    for path in ["/", "/ready"] {
        let answer = get(path).await;
        assert_eq!((answer.status, answer.text()), (200, "OK"));
    }
    let answer = get("/accept-traffic").await;
    let memory: Value = serde_json::from_slice(&answer.body).unwrap();
    assert!(matches!(answer.status, 200 | 500), "{answer:?}");
    assert!(memory["memory"]["percent"].is_number(), "{memory}");
}

#[tokio::test]
async fn while_memory_runs_short_no_traffic_is_accepted_and_the_rest_goes_on() {
    let server = Server::with(|setup| setup.options.http.accept_traffic_memory_percent = 0).await;
    assert_eq!(server.send(Request::get("/accept-traffic")).await.status, 500);
    assert_eq!(server.send(Request::get("/ready")).await.status, 200);
    server.connect().await.fence().await;
}

#[tokio::test]
async fn nothing_else_is_there_for_anybody() {
    let server = Server::start().await;
    for path in
        ["/metrics", "/usage", "/ping", "/pusher/app/demo-key", "/apps", "/nothing", "/up/", "/app//", "/app"]
    {
        server.send(Request::get(path)).await.rejected(404);
    }
    for path in
        ["/apps/1001/nothing", "/apps/1001", "/apps/1001/events/more", "/apps/1001/channels/a/nothing"]
    {
        let answer = server.send(Request::get(path).signed()).await;
        answer.rejected(404);
    }
}

#[tokio::test]
async fn a_known_path_with_another_method_is_405() {
    let server = Server::start().await;
    for (method, path) in [
        ("GET", EVENTS),
        ("PUT", EVENTS),
        ("DELETE", EVENTS),
        ("OPTIONS", EVENTS),
        ("GET", BATCH),
        ("POST", CHANNELS),
        ("POST", "/apps/1001/channels/news"),
        ("DELETE", "/apps/1001/channels/news"),
        ("POST", "/apps/1001/channels/presence-room/users"),
        ("GET", "/apps/1001/users/7/terminate_connections"),
        ("POST", "/apps/1001/connections"),
        ("POST", "/up"),
        ("POST", "/app/demo-key"),
    ] {
        let answer = server.send(Request::new(method, path).signed()).await;
        assert_eq!(answer.status, 405, "{method} {path}: {}", answer.text());
        answer.rejected(405);
    }
}

#[tokio::test]
async fn no_answer_invites_browsers() {
    let server = Server::start().await;
    let origin = |request: Request| request.header("Origin", "https://evil.test").signed();
    for request in [
        Request::post(EVENTS, good()),
        Request::get(CHANNELS),
        Request::new("OPTIONS", EVENTS),
        Request::get("/up"),
    ] {
        let answer = server.send(origin(request)).await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{answer:?}");
    }
}

// ---- signatures: what SDKs do

#[tokio::test]
async fn the_python_sdk_signs_the_md5_of_no_body() {
    let server = Server::start().await;
    let request = Request::get(CHANNELS).with("body_md5", "d41d8cd98f00b204e9800998ecf8427e").signed();
    assert_eq!(server.send(request).await.ok(), json!({ "channels": {} }));
    server.send(Request::get(CHANNELS).with("body_md5", &md5_hex(b"x")).signed()).await.rejected(401);
}

#[tokio::test]
async fn the_php_sdk_signs_lists_joined_and_sends_them_indexed() {
    let server = Server::start().await;
    let signed = Request::get(CHANNELS)
        .with("filter_by_prefix", "presence-")
        .with("info", "user_count,subscription_count")
        .signed();
    let signature = signed.value("auth_signature").to_owned();
    assert!(signed.target().contains("info=user_count%2Csubscription_count"), "one of the two forms");
    server.send(signed.clone()).await.ok();
    let indexed = signed
        .without("info")
        .without("auth_signature")
        .with("info[0]", "user_count")
        .with("info[1]", "subscription_count")
        .with("auth_signature", &signature);
    assert!(indexed.target().contains("info%5B0%5D=user_count"));
    server.send(indexed).await.ok();
}

#[tokio::test]
async fn the_order_of_parameters_in_the_url_does_not_matter() {
    let server = Server::start().await;
    let signed = Request::get(CHANNELS).with("filter_by_prefix", "a").signed();
    let signature = signed.value("auth_signature").to_owned();
    let shuffled = signed
        .without("auth_signature")
        .without("filter_by_prefix")
        .with("filter_by_prefix", "a")
        .method("GET");
    let target = shuffled.target();
    let (path, query) = target.split_once('?').unwrap();
    let mut http = server.http().await;
    http.write(
        format!("GET {path}?auth_signature={signature}&{query} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes(),
    )
    .await;
    http.answer().await.ok();
}

#[tokio::test]
async fn keys_are_signed_in_lower_case() {
    let server = Server::start().await;
    let request = Request::get("/apps/1001/channels/news")
        .with("Auth_Key", DEMO.key)
        .with("auth_timestamp", &unix_now().to_string())
        .with("AUTH_VERSION", "1.0")
        .with("INFO", "subscription_count")
        .with_signature(&DEMO);
    assert_eq!(server.send(request).await.ok(), json!({ "occupied": false, "subscription_count": 0 }));
}

#[tokio::test]
async fn values_are_signed_unescaped() {
    let server = Server::start().await;
    let request = Request::get(CHANNELS).with("filter_by_prefix", "a b+c&d=é").signed();
    assert!(request.target().contains("a%20b%2Bc%26d%3D%C3%A9"));
    assert_eq!(server.send(request).await.ok(), json!({ "channels": {} }));
}

#[tokio::test]
async fn a_path_may_be_encoded_after_it_was_signed() {
    let server = Server::start().await;
    let unsealed = |path: &str| {
        Request::post(path, "{}")
            .with("body_md5", &md5_hex(b"{}"))
            .with("auth_key", DEMO.key)
            .with("auth_timestamp", &unix_now().to_string())
            .with("auth_version", "1.0")
    };
    let path = "/apps/1001/users/user%20id/terminate_connections";
    for signed in ["/apps/1001/users/user id/terminate_connections", path] {
        server.send(unsealed(path).with_signature_of_path(&DEMO, signed)).await.ok();
    }
    let other = "/apps/1001/users/other/terminate_connections";
    server.send(unsealed(path).with_signature_of_path(&DEMO, other)).await.rejected(401);
}

#[tokio::test]
async fn a_signature_in_capitals_is_the_same_signature() {
    let server = Server::start().await;
    let request = Request::get(CHANNELS).signed();
    let capitals = request.value("auth_signature").to_uppercase();
    server.send(request.set("auth_signature", &capitals)).await.ok();
}

#[tokio::test]
async fn a_prefixed_path_may_be_signed_with_the_prefix_or_without() {
    let server = Server::with_app(|app: &mut App| app.path_prefix = "/rt".into()).await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    let unsealed = |path: &str| {
        Request::post(path, good())
            .with("body_md5", &md5_hex(good().as_bytes()))
            .with("auth_key", DEMO.key)
            .with("auth_timestamp", &unix_now().to_string())
            .with("auth_version", "1.0")
    };
    let (bare, prefixed) = ("/apps/1001/events", "/rt/apps/1001/events");
    for (path, signed) in [(bare, bare), (prefixed, prefixed), (prefixed, bare), (bare, prefixed)] {
        server.send(unsealed(path).with_signature_of_path(&DEMO, signed)).await.ok();
        client.expect(event(NEWS, "e")).await;
    }
    server.send(unsealed(bare).with_signature_of_path(&DEMO, "/xx/apps/1001/events")).await.rejected(401);
    server.send(unsealed("/xx/apps/1001/events").with_signature_of_path(&DEMO, bare)).await.rejected(404);
    server.send(Request::get("/rt/apps/1002/channels").signed_with(&OTHER)).await.rejected(404);
    client.fence().await;
}

#[tokio::test]
async fn a_path_without_the_whole_prefix_is_answered_with_the_prefix() {
    let server = Server::with_app(|app: &mut App| app.path_prefix = "/a/b".into()).await;
    let bare = Server::start().await;
    let nothing = "There is nothing at /a/apps/1001/events";
    let no_app = "There is nothing at /a/apps/none/events";
    for (server, path, expected) in [
        (
            &server,
            "/a/apps/1001/events",
            format!(
                "{nothing}; the path_prefix of app 1001 is /a/b: its requests begin with /a/b/apps/1001/"
            ),
        ),
        (
            &bare,
            "/a/apps/1001/events",
            format!("{nothing}; app 1001 has no path_prefix: its requests begin with /apps/1001/"),
        ),
        (&server, "/a/apps/none/events", no_app.to_owned()),
    ] {
        let answer = server.send(Request::post(path, good())).await;
        assert_eq!((answer.status, answer.text()), (404, expected.as_str()), "{path}");
    }
}

// ---- signatures: what is refused

/// Sends requests that must be refused with 401, and shows that none of them published.
async fn assert_unauthorized(requests: impl IntoIterator<Item = (&'static str, Request)>) {
    let (server, mut client) = with_listener().await;
    for (what, request) in requests {
        let answer = server.send(request).await;
        assert_eq!(answer.status, 401, "{what}: {}", answer.text());
        answer.rejected(401);
    }
    client.fence().await;
}

#[tokio::test]
async fn a_request_without_one_of_the_parameters_is_refused() {
    const NAMES: [&str; 4] = ["auth_key", "auth_timestamp", "auth_version", "body_md5"];
    let unsealed = |missing: &str| {
        let all = Request::post(EVENTS, good())
            .with("auth_key", DEMO.key)
            .with("auth_timestamp", &unix_now().to_string())
            .with("auth_version", "1.0")
            .with("body_md5", &md5_hex(good().as_bytes()));
        all.without(missing)
    };
    // Whether it was taken away before signing or after.
    let before = NAMES.map(|name| (name, unsealed(name).with_signature(&DEMO)));
    let after = NAMES.map(|name| (name, unsealed("").with_signature(&DEMO).without(name)));
    let emptied = NAMES.map(|name| (name, unsealed("").set(name, "").with_signature(&DEMO)));
    assert_unauthorized(before.into_iter().chain(after).chain(emptied)).await;
    assert_unauthorized([
        ("no signature", unsealed("")),
        ("nothing", Request::post(EVENTS, good())),
        ("an empty signature", unsealed("").with("auth_signature", "")),
    ])
    .await;
}

#[tokio::test]
async fn a_parameter_that_is_not_right_is_refused() {
    let unsealed = |name: &str, value: &str| {
        let request = Request::post(EVENTS, good())
            .with("auth_key", DEMO.key)
            .with("auth_timestamp", &unix_now().to_string())
            .with("auth_version", "1.0")
            .with("body_md5", &md5_hex(good().as_bytes()));
        request.set(name, value)
    };
    let cases = [
        ("auth_version", "2.0"),
        ("auth_version", "1"),
        ("auth_version", "1.00"),
        ("auth_version", " 1.0"),
        ("auth_timestamp", "now"),
        ("auth_timestamp", "1e9"),
        ("auth_timestamp", "1700000000.5"),
        ("auth_timestamp", "0x6554"),
        ("auth_timestamp", "99999999999999999999"),
        ("auth_timestamp", "-1"),
        ("auth_timestamp", "0"),
        ("auth_key", "nope"),
        ("auth_key", "1001"),
        ("auth_key", "other-key"),
        ("auth_key", "DEMO-KEY"),
        ("body_md5", "00000000000000000000000000000000"),
        ("body_md5", "nonsense"),
    ];
    assert_unauthorized(cases.map(|(name, value)| (value, unsealed(name, value).with_signature(&DEMO))))
        .await;
}

#[tokio::test]
async fn a_signature_that_is_not_exactly_right_is_refused() {
    let request = || Request::post(EVENTS, good()).signed();
    let signature = |change: fn(&str) -> String| {
        let request = request();
        let changed = change(request.value("auth_signature"));
        request.set("auth_signature", &changed)
    };
    let unsealed = Request::post(EVENTS, good())
        .with("body_md5", &md5_hex(good().as_bytes()))
        .with("auth_key", DEMO.key)
        .with("auth_timestamp", &unix_now().to_string())
        .with("auth_version", "1.0");
    assert_unauthorized([
        ("empty", signature(|_| String::new())),
        ("63 digits", signature(|good| good[..63].to_owned())),
        ("62 digits", signature(|good| good[..62].to_owned())),
        ("65 digits", signature(|good| format!("{good}0"))),
        ("66 digits", signature(|good| format!("{good}00"))),
        ("no hex", signature(|good| format!("{}zz", &good[..62]))),
        ("a space", signature(|good| format!("{good} "))),
        ("zeroes", signature(|_| "0".repeat(64))),
        ("another secret", unsealed.clone().with_signature(&Key { secret: OTHER.secret, ..DEMO })),
        ("another method", Request::new("GET", EVENTS).body(good()).signed().method("POST")),
        (
            "a path signed for another app",
            unsealed.clone().with_signature_of_path(&DEMO, "/apps/1002/events"),
        ),
        ("a path signed for another route", unsealed.clone().with_signature_of_path(&DEMO, BATCH)),
        (
            "a path signed with a slash at the end",
            unsealed.clone().with_signature_of_path(&DEMO, "/apps/1001/events/"),
        ),
        ("a path signed in capitals", unsealed.with_signature_of_path(&DEMO, "/APPS/1001/EVENTS")),
        ("a parameter added", request().with("info", "subscription_count")),
        ("a parameter without a value added", request().with("x", "")),
        ("another time", request().set("auth_timestamp", &(unix_now() - 1000).to_string())),
        ("the next second", request().set("auth_timestamp", &(unix_now() + 5).to_string())),
    ])
    .await;
}

#[tokio::test]
async fn a_body_other_than_the_signed_one_is_refused() {
    let body = good();
    let changed = body.replace(r#""e""#, r#""f""#);
    let request = || Request::post(EVENTS, body.clone()).signed();
    let md5_of_changed = md5_hex(changed.as_bytes());
    assert_unauthorized([
        ("one byte changed", request().body(changed.clone())),
        ("one byte added", request().body(format!("{body} "))),
        ("one byte missing", request().body(body[..body.len() - 1].to_owned())),
        ("no body", request().body("")),
        ("the MD5 corrected", request().body(changed.clone()).set("body_md5", &md5_of_changed)),
        ("a body where none was signed", Request::post(EVENTS, "").signed().body(body.clone())),
        (
            "the MD5 of none",
            Request::post(EVENTS, "").with("body_md5", &md5_hex(b"")).signed().body(body.clone()),
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_key_opens_its_own_app_only() {
    let (server, mut client) = with_listener().await;
    server.send(Request::post(EVENTS, good()).signed_with(&OTHER)).await.rejected(401);
    let moved = Request::post("/apps/1002/events", good()).signed_with(&OTHER).path(EVENTS);
    server.send(moved).await.rejected(401);
    server.send(Request::get("/apps/1002/channels").signed()).await.rejected(401);
    server.send(Request::get("/apps/1002/channels").signed_with(&OTHER)).await.ok();
    client.fence().await;
}

#[tokio::test]
async fn an_auth_parameter_that_comes_twice_is_refused() {
    let again = |name: &str| {
        let request = Request::post(EVENTS, good()).signed();
        let value = request.value(name).to_owned();
        request.with(name, &value)
    };
    let in_capitals = |name: &str| {
        let request = Request::post(EVENTS, good()).signed();
        let value = request.value(name).to_owned();
        request.with(&name.to_uppercase(), &value)
    };
    let names = ["auth_key", "auth_timestamp", "auth_version", "auth_signature", "body_md5"];
    assert_unauthorized(names.map(|name| (name, again(name)))).await;
    assert_unauthorized(names.map(|name| (name, in_capitals(name)))).await;
}

#[tokio::test]
async fn a_query_that_is_not_utf_8_is_refused() {
    let server = Server::start().await;
    let mut http = server.http().await;
    let target = Request::get(CHANNELS).signed().target();
    http.write(format!("GET {target}&x=%FF HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes()).await;
    http.answer().await.rejected(400);
}

#[tokio::test]
async fn strangers_learn_nothing_about_channels() {
    let (server, _clients) = with_company().await;
    for target in [
        "/apps/1001/channels/presence-room?info=nonsense",
        "/apps/1001/channels/a%20b",
        "/apps/1001/channels/news/users",
        "/apps/1001/channels?info=user_count",
        "/apps/1001/channels/presence-room",
    ] {
        server.send(Request::get(target)).await.rejected(401);
        server.send(Request::get(target).signed_with(&OTHER)).await.rejected(401);
    }
    for body in ["not json", "{}", r#"{"name":"pusher:x"}"#] {
        server.send(Request::post(EVENTS, body).signed_with(&OTHER)).await.rejected(401);
    }
}

#[tokio::test]
async fn a_refusal_does_not_help_to_forge() {
    let server = Server::start().await;
    let request = Request::post(EVENTS, good()).signed();
    let right = request.value("auth_signature").to_owned();
    let answer = server.send(request.set("auth_signature", &"0".repeat(64))).await;
    let text = answer.rejected(401);
    assert!(!text.contains(&right[..16]) && !text.contains("demo-secret") && !text.contains("auth_version="));
}

#[tokio::test]
async fn an_unknown_app_is_404_and_a_disabled_one_403_whatever_the_signature() {
    let server = Server::with_app(|app: &mut App| app.enabled = false).await;
    for request in [Request::post("/apps/9/events", good()), Request::get("/apps/9/channels")] {
        server.send(request.clone()).await.rejected(404);
        server.send(request.signed()).await.rejected(404);
    }
    server.send(Request::get("/apps/demo-key/channels").signed()).await.rejected(404);
    server.send(Request::get("/apps//channels").signed()).await.rejected(404);
    server.send(Request::post(EVENTS, good()).signed()).await.rejected(403);
    server.send(Request::get(CHANNELS)).await.rejected(403);
    server.send(Request::get("/apps/1002/channels").signed_with(&OTHER)).await.ok();
}

// ---- how requests arrive

#[tokio::test]
async fn a_connection_is_kept_alive() {
    let (server, mut client) = with_listener().await;
    let mut http = server.http().await;
    for at in 0..20 {
        let answer = match at % 4 {
            0 => http.send(Request::post(EVENTS, good()).signed()).await,
            1 => http.send(Request::get(CHANNELS).signed()).await,
            2 => http.send(Request::get("/up")).await,
            _ => http.send(Request::get(CHANNELS)).await,
        };
        assert_eq!(answer.status, if at % 4 == 3 { 401 } else { 200 });
        assert_ne!(answer.header("connection"), Some("close"));
    }
    for _ in 0..5 {
        client.expect(event(NEWS, "e")).await;
    }
}

#[tokio::test]
async fn who_asks_for_the_end_of_the_connection_gets_it() {
    let server = Server::start().await;
    let mut http = server.http().await;
    http.send(Request::get("/up").header("Connection", "close")).await.ok();
    http.ends().await;
    let mut old = server.http().await;
    old.write(b"GET /up HTTP/1.0\r\n\r\n").await;
    old.answer().await.ok();
    old.ends().await;
}

#[tokio::test]
async fn requests_may_be_pipelined() {
    let (server, mut client) = with_listener().await;
    let mut http = server.http().await;
    let requests: Vec<u8> = (0..10).flat_map(|_| Request::post(EVENTS, good()).signed().to_bytes()).collect();
    http.write(&requests).await;
    for _ in 0..10 {
        http.answer().await.ok();
        client.expect(event(NEWS, "e")).await;
    }
}

#[tokio::test]
async fn a_body_may_come_in_chunks() {
    let (server, mut client) = with_listener().await;
    let request = Request::post(EVENTS, good()).signed();
    let mut http = server.http().await;
    for chunk_len in [1, 7, 1000] {
        http.write(&request.head("Transfer-Encoding: chunked\r\n")).await;
        for chunk in request.payload().chunks(chunk_len) {
            http.write(format!("{:x}\r\n", chunk.len()).as_bytes()).await;
            http.write(chunk).await;
            http.write(b"\r\n").await;
        }
        http.write(b"0\r\n\r\n").await;
        http.answer().await.ok();
        client.expect(event(NEWS, "e")).await;
    }
}

#[tokio::test]
async fn a_request_may_come_byte_by_byte() {
    let (server, mut client) = with_listener().await;
    let mut http = server.http().await;
    for byte in Request::post(EVENTS, good()).signed().to_bytes() {
        http.write(&[byte]).await;
        tokio::task::yield_now().await;
    }
    http.answer().await.ok();
    client.expect(event(NEWS, "e")).await;
}

#[tokio::test]
async fn a_large_body_may_come_in_many_pieces() {
    let (server, mut client) = with_listener().await;
    let data = "x".repeat(102_400);
    let body = json!({ "name": "e", "channel": NEWS, "data": data }).to_string();
    let request = Request::post(EVENTS, body).signed();
    let mut http = server.http().await;
    http.write(&request.head_with_length(request.payload().len())).await;
    for piece in request.payload().chunks(1000) {
        http.write(piece).await;
        tokio::task::yield_now().await;
    }
    http.answer().await.ok();
    assert_eq!(client.next().await["data"], data);
}

#[tokio::test]
async fn who_expects_100_continue_gets_it() {
    let (server, mut client) = with_listener().await;
    let request = Request::post(EVENTS, good()).header("Expect", "100-continue").signed();
    let mut http = server.http().await;
    for _ in 0..2 {
        http.write(&request.head_with_length(request.payload().len())).await;
        assert_eq!(http.answer().await.status, 100);
        http.write(request.payload()).await;
        http.answer().await.ok();
        client.expect(event(NEWS, "e")).await;
    }
}

#[tokio::test]
async fn who_expects_100_continue_and_is_refused_gets_the_refusal_instead() {
    let server = Server::start().await;
    let request = Request::post(EVENTS, good()).header("Expect", "100-continue").signed_with(&OTHER);
    let mut http = server.http().await;
    http.write(&request.head_with_length(5_000_000)).await;
    http.answer().await.rejected(401);
}

/// Sends only the head of a request that announces 5 MB, and waits for the answer.
async fn answer_to_head(server: &Server, request: Request) -> Answer {
    let mut http: Http = server.http().await;
    http.write(&request.head_with_length(5_000_000)).await;
    http.answer().await
}

#[tokio::test]
async fn what_the_head_alone_proves_wrong_is_refused_before_the_body() {
    let server = Server::start().await;
    let post = || Request::post(EVENTS, good());
    let signature = |request: Request| request.set("auth_signature", &"0".repeat(64));
    answer_to_head(&server, post()).await.rejected(401);
    answer_to_head(&server, signature(post().signed())).await.rejected(401);
    answer_to_head(&server, post().signed_with(&OTHER)).await.rejected(401);
    answer_to_head(&server, post().signed_at(&DEMO, unix_now() - 1000)).await.rejected(401);
    answer_to_head(&server, post().signed().set("auth_version", "2.0")).await.rejected(401);
    answer_to_head(&server, post().signed().path("/apps/9/events")).await.rejected(404);
    answer_to_head(&server, post().signed().path("/nothing")).await.rejected(404);
    answer_to_head(&server, post().signed().method("PUT")).await.rejected(405);
    let disabled = Server::with_app(|app: &mut App| app.enabled = false).await;
    answer_to_head(&disabled, post().signed()).await.rejected(403);
    let small = Server::with_app(|app: &mut App| app.limits.request_body_bytes_max = 1000).await;
    answer_to_head(&small, post().signed()).await.rejected(413);
}

#[tokio::test]
async fn a_body_without_a_length_is_cut_at_the_limit() {
    let server = Server::with_app(|app: &mut App| app.limits.request_body_bytes_max = 1000).await;
    let body = json!({ "name": "e", "channel": NEWS, "data": "x".repeat(1000) }).to_string();
    let request = Request::post(EVENTS, body).signed();
    let mut http = server.http().await;
    http.write(&request.head("Transfer-Encoding: chunked\r\n")).await;
    for chunk in request.payload().chunks(100) {
        let chunk = [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
        if http.try_write(&chunk).await.is_err() {
            break;
        }
    }
    http.answer().await.rejected(413);
}

#[tokio::test]
async fn a_head_that_is_no_http_is_an_error_and_the_end_of_that_connection_only() {
    let server = Server::with(|setup| setup.options.handshake_timeout = Duration::from_millis(500)).await;
    for head in [
        "hello\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET /up HTTP/9.9\r\n\r\n".to_owned(),
        "GET /up HTTP/1.1\r\nno colon\r\n\r\n".to_owned(),
        "\r\n\r\n\0\0\0\0".to_owned(),
        format!("GET /{} HTTP/1.1\r\nHost: test\r\n\r\n", "x".repeat(100_000)),
        format!("GET /up HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000)),
        format!("GET /up HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(10_000)),
        "POST /apps/1001/events HTTP/1.1\r\nContent-Length: -1\r\n\r\n".to_owned(),
        "POST /apps/1001/events HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(),
        "POST /apps/1001/events HTTP/1.1\r\nTransfer-Encoding: nonsense\r\n\r\n".to_owned(),
    ] {
        let mut http = server.http().await;
        // A server that has refused and hung up does not take the rest.
        let _ = http.try_write(head.as_bytes()).await;
        if let Some(answer) = http.answer_or_end().await {
            assert!((400..=505).contains(&answer.status), "{answer:?} to {:?}", &head[..head.len().min(60)]);
        }
    }
    assert_eq!(server.send(Request::get("/up")).await.status, 200);
}

#[tokio::test]
async fn a_client_that_hangs_up_in_the_middle_of_a_body_publishes_nothing() {
    let (server, mut client) = with_listener().await;
    let request = Request::post(EVENTS, good()).signed();
    for cut in [0, 1, 10, request.payload().len() - 1] {
        let mut http = server.http().await;
        http.write(&request.head_with_length(request.payload().len())).await;
        http.write(&request.payload()[..cut]).await;
        drop(http);
    }
    server.publish(NEWS, "marker", "").await;
    client.expect(event(NEWS, "marker")).await;
}
