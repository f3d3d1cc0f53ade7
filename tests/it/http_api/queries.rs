//! Queries about channels and users, terminating users, and health routes.

use serde_json::{Value, json};

use super::{BATCH, CHANNELS, EVENTS, good, with_company};
use crate::harness::{NEWS, Request, Server};

#[tokio::test]
async fn without_channels_the_list_is_an_empty_object() {
    let server = Server::start().await;
    let answer = server.get(CHANNELS).await;
    assert_eq!((answer.status, answer.text()), (200, r#"{"channels":{}}"#));
    let answer = server.get("/apps/1001/channels?filter_by_prefix=presence-&info=user_count").await;
    assert_eq!(answer.text(), r#"{"channels":{}}"#);
}

#[tokio::test]
async fn occupied_channels_are_listed_with_the_requested_attributes() {
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
async fn user_count_is_an_attribute_of_presence_channels_only() {
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
async fn an_unknown_attribute_is_rejected() {
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
async fn a_query_about_a_channel_succeeds_whether_it_is_occupied_or_not() {
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
async fn the_cached_event_of_a_channel_is_an_attribute() {
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
async fn an_invalid_channel_name_in_a_path_is_rejected() {
    let server = Server::start().await;
    for name in ["a%20b", "a:b", "%C3%A9", "%23news", "a%2Fb", &"x".repeat(201)] {
        server.get(&format!("{CHANNELS}/{name}")).await.rejected(400);
        server.get(&format!("{CHANNELS}/presence-{name}/users")).await.rejected(400);
    }
}

#[tokio::test]
async fn users_are_listed_once_with_their_ids_as_strings() {
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
async fn the_users_of_an_empty_presence_channel_are_an_empty_list_and_other_channels_are_an_error() {
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

#[tokio::test]
async fn health_routes_need_no_signature() {
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
async fn while_memory_is_short_accept_traffic_fails_and_everything_else_works() {
    let server = Server::with(|setup| setup.options.http.accept_traffic_memory_percent = 0).await;
    assert_eq!(server.send(Request::get("/accept-traffic")).await.status, 500);
    assert_eq!(server.send(Request::get("/ready")).await.status, 200);
    server.connect().await.fence().await;
}

#[tokio::test]
async fn unknown_paths_are_404() {
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
async fn no_response_allows_cross_origin_requests() {
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
