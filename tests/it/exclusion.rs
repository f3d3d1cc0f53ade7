//! The connection that an event excludes. Source: protocol.md §8.4, §8.5, §8.9.

use serde_json::{Value, json};

use crate::harness::{NEWS, Request, Server};

fn event(channel: &str, name: &str) -> Value {
    json!({ "event": name, "channel": channel, "data": "" })
}

#[tokio::test]
async fn the_named_connection_is_excluded_on_every_channel_of_the_publish() {
    let server = Server::start().await;
    let channels = ["a", "private-b", "presence-c"];
    let [mut sender, mut other] = server.connect_many().await;
    for (client, id) in [(&mut sender, "7"), (&mut other, "8")] {
        client.subscribe("a").await;
        client.subscribe("private-b").await;
        client.join("presence-c", json!({ "user_id": id })).await;
    }
    sender.expect_event("pusher_internal:member_added", "presence-c").await;
    server
        .publish_json(json!({ "name": "e", "channels": channels, "data": "", "socket_id": sender.id }))
        .await;
    server.publish_json(json!({ "name": "marker", "channels": channels, "data": "" })).await;
    for channel in channels {
        sender.expect(event(channel, "marker")).await;
    }
    for name in ["e", "marker"] {
        for channel in channels {
            other.expect(event(channel, name)).await;
        }
    }
}

#[tokio::test]
async fn an_unknown_socket_id_excludes_no_connection() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    let unknown = ["1.1", "123456.7890", "99999999999999999999.1", ""];
    for socket_id in unknown.map(Value::from).into_iter().chain([Value::Null]) {
        server
            .publish_json(json!({ "name": "e", "channel": NEWS, "data": "", "socket_id": socket_id }))
            .await;
        client.expect(event(NEWS, "e")).await;
    }
}

#[tokio::test]
async fn each_event_of_a_batch_excludes_its_own_socket() {
    let server = Server::start().await;
    let [mut one, mut two] = server.connect_many().await;
    one.subscribe(NEWS).await;
    two.subscribe(NEWS).await;
    let batch = json!({ "batch": [
        { "channel": NEWS, "name": "not-one", "data": "", "socket_id": one.id },
        { "channel": NEWS, "name": "not-two", "data": "", "socket_id": two.id },
        { "channel": NEWS, "name": "both", "data": "" },
    ] });
    server.post_json("/apps/1001/batch_events", batch).await.ok();
    for (client, name) in [(&mut one, "not-two"), (&mut two, "not-one")] {
        client.expect(event(NEWS, name)).await;
        client.expect(event(NEWS, "both")).await;
    }
}

#[tokio::test]
async fn the_socket_id_may_be_in_the_query() {
    let server = Server::start().await;
    let [mut one, mut two] = server.connect_many().await;
    one.subscribe(NEWS).await;
    two.subscribe(NEWS).await;
    let body = json!({ "channel": NEWS, "name": "e", "data": "" }).to_string();
    let request = Request::post("/apps/1001/events", body).with("socket_id", &one.id).signed();
    server.send(request).await.ok();
    let legacy = Request::post("/apps/1001/channels/news/events", "text")
        .with("name", "legacy")
        .with("socket_id", &one.id)
        .signed();
    assert_eq!(server.send(legacy).await.status, 202);
    server.publish(NEWS, "marker", "").await;
    one.expect(event(NEWS, "marker")).await;
    two.expect(event(NEWS, "e")).await;
    two.expect(json!({ "event": "legacy", "channel": NEWS, "data": "text" })).await;
    two.expect(event(NEWS, "marker")).await;
}

/// Applications without a socket id send an empty one.
#[tokio::test]
async fn an_empty_socket_id_is_none_in_every_route() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    let body = json!({ "name": "e", "channel": NEWS, "data": "", "socket_id": "", "info": "" });
    server.publish_json(body.clone()).await;
    server.post_json("/apps/1001/batch_events", json!({ "batch": [body.clone(), body] })).await.ok();
    let body = json!({ "name": "e", "channel": NEWS, "data": "" }).to_string();
    server.send(Request::post("/apps/1001/events", body).with("socket_id", "").signed()).await.ok();
    let legacy = Request::post("/apps/1001/channels/news/events", "");
    let legacy = legacy.with("name", "e").with("socket_id", "").with("info", "").signed();
    assert_eq!(server.send(legacy).await.status, 202);
    for _ in 0..5 {
        client.expect(event(NEWS, "e")).await;
    }
    client.fence().await;
}

#[tokio::test]
async fn an_invalid_socket_id_is_rejected_and_nothing_is_published() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    for socket_id in [
        json!("1"),
        json!("1."),
        json!(".1"),
        json!("1.1.1"),
        json!("a.b"),
        json!("1,1"),
        json!(" 1.1"),
        json!("1.1\n"),
        json!("-1.1"),
        json!("1.1:private-room"),
        json!(1.1),
        json!({}),
    ] {
        let body = json!({ "name": "e", "channel": NEWS, "data": "", "socket_id": socket_id });
        server.post_json("/apps/1001/events", body.clone()).await.rejected(400);
        server.post_json("/apps/1001/batch_events", json!({ "batch": [body] })).await.rejected(400);
    }
    client.fence().await;
}

#[tokio::test]
async fn a_socket_id_with_a_leading_zero_is_a_different_one() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    let socket_id = format!("0{}", client.id);
    server.publish_json(json!({ "name": "e", "channel": NEWS, "data": "", "socket_id": socket_id })).await;
    client.expect(event(NEWS, "e")).await;
}
