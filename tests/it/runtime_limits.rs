//! Every limit of a running node: crossed once, answered as documented, counted once, and released. The limits of sizes
//! are in `limits`, those of unauthenticated connections and addresses in `unauthenticated`, those of slow readers in
//! `slow_reader`.

use std::time::Duration;

use futures_util::future::join_all;
use pusherd::apps::App;
use pusherd::limits::{Limit, Rate};
use pusherd::rejections::Mistake;
use serde_json::{Value, json};
use tracing::Level;

use crate::harness::{Client, Log, NEWS, Request, Server, frame, frame_head, text_frame};

/// A client that has requested a channel of its own, and whether it was subscribed.
async fn subscribes_to_its_own(server: &Server, number: usize) -> (Client, bool) {
    let mut client = server.connect().await;
    client.ask(&format!("own-{number}")).await;
    let got = client.next().await["event"] == "pusher_internal:subscription_succeeded";
    (client, got)
}

#[tokio::test]
async fn connections_of_an_app_are_limited() {
    let server = Server::with_app(|app| app.limits.connections_max = Some(1)).await;
    let first = server.connect().await;
    server.upgrade("/app/demo-key", &[]).await.rejected(4004).await;
    server.assert_limit_rejections(Limit::AppConnections, 1);
    first.close().await;
    server.has_connections(0).await;
    server.connect().await;
}

#[tokio::test]
async fn connections_of_a_node_are_limited_even_in_a_race() {
    let server = Server::with(|setup| setup.options.pusher.connections_max = Some(5)).await;
    for round in 1..=2 {
        let upgrades = (0..20).map(|at| {
            let target = if at % 2 == 0 { "/app/demo-key" } else { "/app/other-key" };
            server.upgrade(target, &[])
        });
        let mut clients: Vec<_> = join_all(upgrades).await.into_iter().map(|it| it.client()).collect();
        let mut established = Vec::new();
        for mut client in clients.drain(..) {
            if client.next().await["event"] == "pusher:connection_established" {
                established.push(client);
            }
        }
        assert_eq!(established.len(), 5);
        server.assert_limit_rejections(Limit::NodeConnections, 15 * round);
        for client in established {
            client.close().await;
        }
        server.has_connections(0).await;
        let other = Request::get("/apps/1002/connections").signed_with(&crate::harness::OTHER);
        crate::harness::eventually("the connections of the other app are closed", async || {
            server.send(other.clone()).await.ok() == json!({ "connections": 0 })
        })
        .await;
    }
}

#[tokio::test]
async fn channels_of_an_app_are_limited() {
    let server = Server::with_app(|app| app.limits.channels_max = Some(2)).await;
    let [mut one, mut two] = server.connect_many().await;
    one.subscribe("a").await;
    one.subscribe("private-b").await;
    two.ask("c").await;
    let [error, _] = two.expect_refusal("c", "LimitReached", 429, Value::Null).await;
    assert!(error.contains("2 channels"), "{error}");
    server.assert_limit_rejections(Limit::AppChannels, 1);
    two.subscribe("a").await;
    one.unsubscribe("a").await;
    two.fence().await;
    two.ask("c").await;
    two.expect_refusal("c", "LimitReached", 429, Value::Null).await;
    two.unsubscribe("a").await;
    two.subscribe("c").await;
    server.connect_to("/app/other-key").await.subscribe("elsewhere").await;
    // A disconnected client releases its channels.
    one.reset();
    server.has_subscriptions("private-b", 0).await;
    two.subscribe("d").await;
    server.assert_limit_rejections(Limit::AppChannels, 2);
}

#[tokio::test]
async fn a_channel_with_a_cached_event_counts_as_a_channel() {
    let server = Server::with_app(|app| app.limits.channels_max = Some(1)).await;
    server.publish("cache-btc", "price", "1").await;
    let mut client = server.connect().await;
    client.ask(NEWS).await;
    client.expect_refusal(NEWS, "LimitReached", 429, Value::Null).await;
    // An event without subscribers that cannot be cached reaches nobody.
    server.publish("cache-eth", "price", "2").await;
    server.assert_limit_rejections(Limit::AppChannels, 2);
    assert_eq!(server.get_json("/apps/1001/channels/cache-eth?info=cache").await["cache"], Value::Null);
    client.subscribe("cache-btc").await;
    client.expect(json!({ "event": "price", "channel": "cache-btc", "data": "1" })).await;
    client.unsubscribe("cache-btc").await;
    client.ask(NEWS).await;
    client.expect_refusal(NEWS, "LimitReached", 429, Value::Null).await;
    server.publish("cache-btc", "price", "3").await;
    server.assert_limit_rejections(Limit::AppChannels, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn channels_of_an_app_are_limited_even_in_a_race() {
    let server = Server::with_app(|app| app.limits.channels_max = Some(3)).await;
    for round in 1..=3 {
        let asked = join_all((0..12).map(|number| subscribes_to_its_own(&server, number))).await;
        assert_eq!(asked.iter().filter(|(_, got)| *got).count(), 3);
        server.assert_limit_rejections(Limit::AppChannels, 9 * round);
        for (client, _) in asked {
            client.reset();
        }
        server.has_connections(0).await;
    }
}

#[tokio::test]
async fn channels_of_a_connection_are_limited() {
    let server = Server::with_app(|app| app.limits.channels_per_connection_max = 1).await;
    let mut client = server.connect().await;
    client.subscribe("a").await;
    client.ask("b").await;
    client.expect_refusal("b", "LimitReached", 429, Value::Null).await;
    server.assert_limit_rejections(Limit::ConnectionChannels, 1);
    client.unsubscribe("a").await;
    client.subscribe("b").await;
}

#[tokio::test]
async fn members_of_a_presence_channel_are_limited() {
    let server = Server::with_app(|app| app.limits.presence_members_max = 1).await;
    let [mut one, mut two] = server.connect_many().await;
    one.join("presence-room", json!({ "user_id": "1" })).await;
    two.ask_as("presence-room", &json!({ "user_id": "2" }).to_string()).await;
    two.expect_refusal("presence-room", "LimitReached", 4100, Value::Null).await;
    server.assert_limit_rejections(Limit::PresenceMembers, 1);
}

#[tokio::test]
async fn the_member_limit_is_logged_once_a_minute_for_all_channels() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = Server::with_app(|app| app.limits.presence_members_max = 1).await;
    let [mut one, mut two] = server.connect_many().await;
    for channel in ["presence-a", "presence-b", "presence-c"] {
        one.join(channel, json!({ "user_id": "1" })).await;
        two.ask_as(channel, &json!({ "user_id": "2" }).to_string()).await;
        two.expect_refusal(channel, "LimitReached", 4100, Value::Null).await;
    }
    server.assert_limit_rejections(Limit::PresenceMembers, 3);
    let line = log.line(Level::WARN, "member limit of a presence channel reached");
    for field in [
        "count=1",
        "app=\"1001\"",
        "limit=\"1 members\"",
        "setting=\"limits.presence_members\"",
        "channel=\"presence-a\"",
        &format!("socket={}", two.id),
    ] {
        assert!(line.contains(field), "{field}: {line}");
    }
    let rest = log.text().lines().filter(|line| line.contains("limits.presence_members")).count();
    assert_eq!(rest, 1, "{}", log.text());
}

const FIVE: Rate = Rate { per_second: 1, burst: 5 };

#[tokio::test]
async fn messages_of_a_connection_have_a_rate_limit() {
    let server = Server::with_app(|app| app.limits.messages = FIVE).await;
    let mut raw = server.connect_raw().await;
    raw.write(&text_frame(r#"{"event":"pusher:ping"}"#).repeat(6)).await;
    for _ in 0..5 {
        assert!(raw.next().await.text().contains("pusher:pong"));
    }
    assert!(raw.next().await.text().contains("4100"));
    raw.expect_close(4100).await;
    server.assert_limit_rejections(Limit::Messages, 1);
}

#[tokio::test]
async fn control_frames_and_fragments_of_a_connection_have_a_rate_limit() {
    let server = Server::start().await;
    let fragments = [frame(0x01, b""), frame(0x00, b"").repeat(2500)].concat();
    for (count, flood) in (1..).zip([frame(0x8a, b"").repeat(2500), fragments]) {
        let mut raw = server.connect_raw().await;
        raw.write(&flood).await;
        assert!(raw.next().await.text().contains("4100"));
        raw.expect_close(4100).await;
        server.assert_limit_rejections(Limit::Messages, count);
    }
    let mut raw = server.connect_raw().await;
    raw.write(&frame(0x8a, b"").repeat(1500)).await;
    raw.fence().await;
}

#[tokio::test]
async fn a_message_that_is_too_long_is_counted() {
    let server = Server::start().await;
    let mut raw = server.connect_raw().await;
    raw.write(&frame_head(0x81, 32 * 1024 + 1)).await;
    raw.expect_close(1009).await;
    server.assert_limit_rejections(Limit::MessageBytes, 1);
}

#[tokio::test]
async fn every_client_event_over_the_rate_is_counted() {
    let rate = Rate { per_second: 1, burst: 3 };
    let server = Server::with_app(|app| app.limits.client_events = rate).await;
    let [mut sender, mut other] = server.connect_many().await;
    for client in [&mut sender, &mut other] {
        client.subscribe("private-room").await;
    }
    let event = json!({ "event": "client-x", "channel": "private-room", "data": 1 });
    sender.send_all(vec![event.clone(); 8]).await;
    sender.expect_error(4301).await;
    sender.fence().await;
    for _ in 0..3 {
        other.expect(event.clone()).await;
    }
    other.fence().await;
    server.assert_limit_rejections(Limit::ClientEvents, 5);
}

/// A small request of the demo app.
fn small() -> Request {
    Request::get("/apps/1001/connections")
}

#[tokio::test]
async fn requests_of_an_app_have_a_rate_limit_that_unsigned_ones_do_not_use_up() {
    let server = Server::with_app(|app: &mut App| app.limits.requests_per_second = Some(2)).await;
    for _ in 0..5 {
        server.send(small().signed().set("auth_signature", &"0".repeat(64))).await.rejected(401);
        server.send(small()).await.rejected(401);
    }
    server.assert_mistakes(Mistake::RequestSignature, 10);
    let mut http = server.http().await;
    for _ in 0..2 {
        http.send(small().signed()).await.ok();
    }
    let answer = http.send(small().signed()).await;
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(answer.rejected(429).contains("limits.requests_per_second"), "{}", answer.text());
    server.assert_limit_rejections(Limit::Requests, 1);
    let other = Request::get("/apps/1002/connections").signed_with(&crate::harness::OTHER);
    http.send(other).await.ok();
}

#[tokio::test]
async fn events_of_an_app_have_a_rate_limit_and_a_batch_counts_each() {
    let server = Server::with_app(|app| app.limits.events_per_second = Some(4)).await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    let event = json!({ "name": "e", "channel": NEWS, "data": "" });
    let batch = |count| json!({ "batch": vec![event.clone(); count] });
    let mut http = server.http().await;
    let mut send =
        async |path: &str, body: Value| http.send(Request::post(path, body.to_string()).signed()).await;
    // Ten at once, though only four are refilled in a second: a batch is never too large for the bucket.
    send("/apps/1001/batch_events", batch(9)).await.ok();
    let refused = send("/apps/1001/batch_events", batch(10)).await;
    assert_eq!(refused.header("retry-after"), Some("3"), "nine are missing");
    assert!(refused.rejected(429).contains("limits.events_per_second"), "{}", refused.text());
    let to_many = json!({ "name": "many", "channels": [NEWS, "a", "b"], "data": "" });
    send("/apps/1001/events", to_many).await.ok();
    for _ in 0..9 {
        client.expect(event_frame("e")).await;
    }
    client.expect(event_frame("many")).await;
    client.fence().await;
    server.assert_limit_rejections(Limit::Events, 1);
}

fn event_frame(name: &str) -> Value {
    json!({ "event": name, "channel": NEWS, "data": "" })
}

#[tokio::test]
async fn a_body_that_is_too_long_is_counted_with_or_without_a_length() {
    let server = Server::with_app(|app| app.limits.request_body_bytes_max = 1000).await;
    let request = Request::post("/apps/1001/events", "x".repeat(1001)).signed();
    server.send(request.clone()).await.rejected(413);
    let mut http = server.http().await;
    http.write(&request.head("Transfer-Encoding: chunked\r\n")).await;
    http.write(format!("{:x}\r\n{}\r\n0\r\n\r\n", 1001, "x".repeat(1001)).as_bytes()).await;
    http.answer().await.rejected(413);
    server.assert_limit_rejections(Limit::RequestBytes, 2);
}

async fn with_short_message_timeout() -> Server {
    Server::with(|setup| setup.options.pusher.message_timeout = Duration::from_secs(1)).await
}

#[tokio::test]
async fn an_incomplete_frame_is_closed_with_4100() {
    let server = with_short_message_timeout().await;
    let (mut head_only, mut half_a_head) = (server.connect_raw().await, server.connect_raw().await);
    head_only.write(&[frame_head(0x81, 1000), vec![b'x'; 999]].concat()).await;
    half_a_head.write(&[0x81]).await;
    for raw in [&mut head_only, &mut half_a_head] {
        assert!(raw.next().await.text().contains("4100"));
        raw.expect_close(4100).await;
    }
    server.wait_for_rejections(Limit::MessageTime, 2).await;
    server.has_connections(0).await;
}

#[tokio::test]
async fn an_incomplete_fragmented_message_is_closed_whatever_else_is_sent() {
    let server = with_short_message_timeout().await;
    let mut raw = server.connect_raw().await;
    raw.write(&frame(0x01, b"{")).await;
    let mut pongs = 0;
    let close = loop {
        // It is alive, and sends more of the message each time: neither completes it.
        let more = [frame(0x00, b" "), frame(0x89, b"")].concat();
        if raw.try_write(&more).await.is_err() {
            break raw.next().await;
        }
        match raw.next().await {
            pong if pong.first == 0x8a => pongs += 1,
            close => break close,
        }
        // The pace of the client: several frames within the timeout of a message.
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(close.text().contains("4100"), "{close:?}");
    assert!(pongs > 2, "{pongs}");
    server.wait_for_rejections(Limit::MessageTime, 1).await;
}

#[tokio::test]
async fn messages_that_end_and_begin_in_one_read_are_timed_separately() {
    let server = with_short_message_timeout().await;
    let (mut stuck, mut lively) = (server.connect_raw().await, server.connect_raw().await);
    let ping = text_frame(r#"{"event":"pusher:ping"}"#);
    let (start, rest) = ping.split_at(7);
    stuck.write(start).await;
    lively.write(start).await;
    // Until the stuck client is closed, this one is never between two messages. It completes several within the timeout of
    // a message.
    let closed = stuck.next();
    let mut closed = std::pin::pin!(closed);
    loop {
        tokio::select! {
            closed = &mut closed => {
                assert!(closed.text().contains("4100"));
                break;
            }
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                lively.write(&[rest, start].concat()).await;
                assert!(lively.next().await.text().contains("pusher:pong"));
            }
        }
    }
    lively.write(rest).await;
    assert!(lively.next().await.text().contains("pusher:pong"));
    lively.fence().await;
}
