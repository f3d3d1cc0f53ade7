//! The order of frames. Source: protocol.md §2.8 (5), §4.3, §4.6, §4.8.

use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::harness::{NEWS, Request, Server, eventually};

/// Publishes 0, 1, 2, … to `channel` over one connection, until it is stopped; returns how many.
async fn publish_numbers(server: &Server, channel: &str, mut stop: oneshot::Receiver<()>) -> u64 {
    let mut http = server.http().await;
    for number in 0.. {
        let body = json!({ "channel": channel, "name": "n", "data": number.to_string() }).to_string();
        assert_eq!(http.send(Request::post("/apps/1001/events", body).signed()).await.ok(), json!({}));
        if !matches!(stop.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
            return number + 1;
        }
    }
    unreachable!("the numbers do not end")
}

/// The number in a frame that [`publish_numbers`] has published.
fn number(frame: &Value, channel: &str) -> u64 {
    assert_eq!(*frame, json!({ "event": "n", "channel": channel, "data": frame["data"] }));
    frame["data"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn the_success_comes_before_every_event_of_the_channel() {
    let server = Server::start().await;
    let (stop, stopped) = oneshot::channel();
    let subscribing = async {
        for _ in 0..30 {
            let mut client = server.connect().await;
            client.subscribe(NEWS).await;
            let first = number(&client.next().await, NEWS);
            for next in first + 1..first + 4 {
                assert_eq!(number(&client.next().await, NEWS), next, "no number is missing or repeated");
            }
        }
        stop.send(()).unwrap();
    };
    tokio::join!(publish_numbers(&server, NEWS, stopped), subscribing);
}

#[tokio::test]
async fn the_cached_event_comes_before_the_live_one_that_follows_it() {
    let channel = "cache-numbers";
    let server = Server::start().await;
    let (stop, stopped) = oneshot::channel();
    server.publish(channel, "n", "0").await;
    let subscribing = async {
        for _ in 0..30 {
            let mut client = server.connect().await;
            client.subscribe(channel).await;
            let cached = number(&client.next().await, channel);
            // The publisher begins with a second 0.
            let mut last = cached;
            for _ in 0..4 {
                let live = number(&client.next().await, channel);
                assert!(live == last + 1 || (last == 0 && live == 0), "{live} follows {last}");
                last = live;
            }
        }
        stop.send(()).unwrap();
    };
    tokio::join!(publish_numbers(&server, channel, stopped), subscribing);
}

/// Unsubscribes from `news` repeatedly while others publish there, and shows each time that no event follows.
async fn assert_no_event_after_unsubscribe(server: &Server) {
    let (stop, stopped) = oneshot::channel();
    let leaving = async {
        let mut client = server.connect().await;
        for _ in 0..30 {
            client.subscribe(NEWS).await;
            number(&client.next().await, NEWS);
            client.unsubscribe(NEWS).await;
            client.send(json!({ "event": "pusher:ping" })).await;
            // Events that were sent before the server read the unsubscribe may still arrive.
            loop {
                let frame = client.next().await;
                if frame["event"] == "pusher:pong" {
                    break;
                }
                number(&frame, NEWS);
            }
            server.publish(NEWS, "n", "0").await;
            client.fence().await;
        }
        stop.send(()).unwrap();
    };
    tokio::join!(publish_numbers(server, NEWS, stopped), leaving);
}

#[tokio::test]
async fn no_event_follows_an_unsubscribe() {
    assert_no_event_after_unsubscribe(&Server::start().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_follows_an_unsubscribe_from_a_large_channel() {
    let server = Server::start().await;
    let mut others = Vec::new();
    for _ in 0..200 {
        let mut other = server.connect().await;
        other.subscribe(NEWS).await;
        others.push(other);
    }
    assert_no_event_after_unsubscribe(&server).await;
}

#[tokio::test]
async fn a_thousand_pipelined_subscribes_are_all_answered_in_order() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let channels: Vec<String> = (0..1000).map(|at| format!("private-orders.{at}")).collect();
    let messages: Vec<_> = channels.iter().map(|channel| client.signed_subscribe(channel, None)).collect();
    client.send_all(messages).await;
    for channel in &channels {
        client.expect_subscribed(channel).await;
    }
    server.publish("private-orders.999", "e", "").await;
    client.expect(json!({ "event": "e", "channel": "private-orders.999", "data": "" })).await;
}

#[tokio::test]
async fn four_hundred_pipelined_subscribes_are_all_answered_in_order() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let channels: Vec<String> = (0..400).map(|at| format!("private-orders.{at}")).collect();
    let messages: Vec<_> = channels.iter().map(|channel| client.signed_subscribe(channel, None)).collect();
    client.send_all(messages).await;
    for channel in &channels {
        client.expect_subscribed(channel).await;
    }
}

#[tokio::test]
async fn messages_of_a_connection_are_handled_in_order() {
    let server = Server::start().await;
    let [mut client, mut other] = server.connect_many().await;
    other.subscribe("private-room").await;
    let subscribe = client.signed_subscribe("private-room", None);
    let unsubscribe = json!({ "event": "pusher:unsubscribe", "data": { "channel": "private-room" } });
    let whisper = |data: u32| json!({ "event": "client-x", "channel": "private-room", "data": data });
    let ping = json!({ "event": "pusher:ping" });
    client
        .send_all([
            subscribe.clone(),
            whisper(1),
            unsubscribe.clone(),
            whisper(2),
            ping.clone(),
            subscribe.clone(),
            unsubscribe,
            subscribe,
            whisper(3),
            ping,
        ])
        .await;
    client.expect_subscribed("private-room").await;
    client.expect_error(Value::Null).await;
    client.expect(json!({ "event": "pusher:pong", "data": "{}" })).await;
    client.expect_subscribed("private-room").await;
    client.expect_subscribed("private-room").await;
    client.expect(json!({ "event": "pusher:pong", "data": "{}" })).await;
    for data in [1, 3] {
        other.expect(json!({ "event": "client-x", "channel": "private-room", "data": data })).await;
    }
    server.publish("private-room", "once", "").await;
    for client in [&mut client, &mut other] {
        client.expect(json!({ "event": "once", "channel": "private-room", "data": "" })).await;
        client.fence().await;
    }
}

#[tokio::test]
async fn events_arrive_in_the_order_in_which_they_were_published() {
    let server = Server::start().await;
    let [mut one, mut two] = server.connect_many().await;
    for client in [&mut one, &mut two] {
        client.subscribe("a").await;
        client.subscribe("b").await;
    }
    let mut http = server.http().await;
    for number in 0..200 {
        let body = json!({ "channels": ["a", "b"], "name": "n", "data": number.to_string() }).to_string();
        http.send(Request::post("/apps/1001/events", body).signed()).await.ok();
    }
    for client in [&mut one, &mut two] {
        let mut next = [0, 0];
        for _ in 0..400 {
            let frame = client.next().await;
            let (at, channel) = if frame["channel"] == "a" { (0, "a") } else { (1, "b") };
            assert_eq!(number(&frame, channel), next[at]);
            next[at] += 1;
        }
    }
}

#[tokio::test]
async fn two_subscribers_see_concurrent_publishes_in_the_same_order() {
    let server = Server::start().await;
    let [mut one, mut two] = server.connect_many().await;
    for client in [&mut one, &mut two] {
        client.subscribe(NEWS).await;
    }
    let publish = async |publisher: &str| {
        let mut http = server.http().await;
        for number in 0..50 {
            let body = json!({ "channel": NEWS, "name": publisher, "data": number.to_string() }).to_string();
            http.send(Request::post("/apps/1001/events", body).signed()).await.ok();
        }
    };
    tokio::join!(publish("a"), publish("b"), publish("c"));
    for _ in 0..150 {
        assert_eq!(one.next().await, two.next().await);
    }
}

#[tokio::test]
async fn a_disconnect_right_after_a_join_leaves_no_member() {
    let server = Server::start().await;
    let mut watching = server.connect().await;
    watching.join("presence-room", json!({ "user_id": "watching" })).await;
    for _ in 0..30 {
        let mut client = server.connect().await;
        client.ask_as("presence-room", r#"{"user_id":"7"}"#).await;
        client.reset();
    }
    eventually("the members are removed", async || {
        let users = server.get_json("/apps/1001/channels/presence-room/users").await;
        let connections = server.get_json("/apps/1001/connections").await;
        users == json!({ "users": [{ "id": "watching" }] }) && connections == json!({ "connections": 1 })
    })
    .await;
    // Every addition was followed by a removal.
    watching.send(json!({ "event": "pusher:ping" })).await;
    let mut present = false;
    loop {
        let frame = watching.next().await;
        match frame["event"].as_str().unwrap() {
            "pusher_internal:member_added" => assert!(!std::mem::replace(&mut present, true)),
            "pusher_internal:member_removed" => assert!(std::mem::replace(&mut present, false)),
            event => {
                assert_eq!(event, "pusher:pong");
                break;
            }
        }
    }
    assert!(!present);
}
