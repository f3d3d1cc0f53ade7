//! Publishing: events, batches, and the API of 2012.

use serde_json::{Value, json};

use super::{BATCH, CHANNELS, EVENTS, event, good, with_company, with_listener};
use crate::harness::{NEWS, Request, Server};

#[tokio::test]
async fn the_response_to_a_publish_is_an_empty_object() {
    let (server, mut client) = with_listener().await;
    let answer = server.post(EVENTS, good()).await;
    assert_eq!((answer.status, answer.text()), (200, "{}"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    client.expect(event(NEWS, "e")).await;
}

#[tokio::test]
async fn an_event_is_published_to_each_of_its_channels_once() {
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
async fn channels_takes_precedence_over_channel_and_may_be_a_string() {
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
async fn a_publish_may_request_counts() {
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
    // The form in the specification of the Ruby SDK (protocol.md §8.3, vector H7).
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
async fn reserved_event_names_are_rejected_and_client_events_are_not() {
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
async fn an_event_without_a_required_field_is_rejected() {
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
async fn one_invalid_channel_rejects_the_whole_event_and_is_named() {
    let (server, mut client) = with_listener().await;
    for bad in ["a b", "", "a:b", "é", "#news", "a/b", "private-a%20b"] {
        let body = json!({ "name": "e", "channels": [NEWS, bad], "data": "" });
        let answer = server.post_json(EVENTS, body).await;
        assert!(answer.rejected(400).contains(bad), "{} names {bad}", answer.text());
    }
    client.fence().await;
}

#[tokio::test]
async fn a_body_that_is_not_a_json_object_is_rejected() {
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
async fn an_event_for_an_encrypted_channel_has_no_other_channel() {
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

#[tokio::test]
async fn a_batch_is_published_in_order_and_the_response_is_an_empty_object() {
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
async fn an_empty_batch_is_accepted() {
    let server = Server::start().await;
    assert_eq!(server.post(BATCH, r#"{"batch":[]}"#).await.ok(), json!({}));
}

#[tokio::test]
async fn a_batch_may_request_counts_for_each_event() {
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

#[tokio::test]
async fn the_legacy_publish_returns_202() {
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
async fn the_legacy_stats_are_returned() {
    let (server, _clients) = with_company().await;
    let stats = async |channel: &str| server.get_json(&format!("{CHANNELS}/{channel}/stats")).await;
    assert_eq!(stats(NEWS).await, json!({ "occupied": true }));
    assert_eq!(stats("nobody").await, json!({ "occupied": false }));
    assert_eq!(stats("presence-room").await, json!({ "occupied": true, "user_count": 2 }));
}
