//! A client that does not read costs a bounded amount of memory and is closed; no other client waits for it. Source:
//! protocol.md §2.4.

use std::time::Duration;

use futures_util::future::join_all;
use pusherd::limits::{Limit, Rate};
use serde_json::{Value, json};
use socket2::SockRef;

use crate::harness::{
    NEWS, RawSocket, Request, Server, channel_auth, eventually, frame, in_time, text_frame,
};
use crate::presence::ROOM;

/// An established connection whose kernel buffers at most `ahead_bytes`.
async fn connect_without_reading(server: &Server, ahead_bytes: usize) -> RawSocket {
    let raw = server.connect_raw().await;
    SockRef::from(raw.stream()).set_recv_buffer_size(ahead_bytes).unwrap();
    raw
}

/// As [`connect_without_reading`], subscribed to `news`.
async fn subscribe_without_reading(server: &Server, ahead_bytes: usize) -> RawSocket {
    let mut raw = connect_without_reading(server, ahead_bytes).await;
    raw.send(r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#).await;
    assert!(raw.next().await.text().contains("subscription_succeeded"));
    raw
}

#[tokio::test]
async fn a_client_that_never_reads_is_disconnected_and_the_others_get_everything() {
    let server = Server::start().await;
    let stuck =
        [subscribe_without_reading(&server, 4096).await, subscribe_without_reading(&server, 4096).await];
    let mut reading = server.connect().await;
    reading.subscribe(NEWS).await;
    server.has_subscriptions(NEWS, 3).await;
    let data = "x".repeat(100_000);
    let mut http = server.http().await;
    // 10 MB: far more than the outbox and all kernel buffers in between.
    for at in 0..100 {
        let body = json!({ "name": at.to_string(), "channel": NEWS, "data": data }).to_string();
        http.send(Request::post("/apps/1001/events", body).signed()).await.ok();
        assert_eq!(reading.next().await["event"], at.to_string());
    }
    server.has_subscriptions(NEWS, 1).await;
    server.has_connections(1).await;
    for mut raw in stuck {
        // The kernel still holds whole frames; then comes the end.
        while raw.next_or_end().await.is_some() {}
    }
    reading.fence().await;
}

#[tokio::test]
async fn a_client_that_reads_too_late_is_closed_with_4100() {
    let server = Server::with_app(|app| app.limits.outbox_bytes_max = 1024 * 1024).await;
    let mut late = subscribe_without_reading(&server, 64 * 1024).await;
    let data = "x".repeat(100_000);
    for _ in 0..30 {
        server.publish(NEWS, "e", &data).await;
    }
    server.has_subscriptions(NEWS, 0).await;
    let mut last = late.next().await;
    while last.text().starts_with(r#"{"event":"e","#) {
        last = late.next().await;
    }
    let error: Value = serde_json::from_str(last.text()).unwrap();
    assert_eq!(error["data"]["code"], json!(4100), "{error}");
    late.expect_close(4100).await;
    server.assert_limit_rejections(Limit::OutboxBytes, 1);
}

#[tokio::test]
async fn a_client_that_does_not_read_its_replies_is_paused_and_then_disconnected() {
    let server = Server::with(|setup| {
        setup.app.limits.messages = Rate { per_second: u32::MAX, burst: u32::MAX };
        // The outbox would exceed this at once, if the client were read from.
        setup.app.limits.outbox_bytes_max = 256 * 1024;
        setup.options.pusher.write_timeout = Duration::from_secs(1);
    })
    .await;
    let mut other = server.connect().await;
    let mut floods = Vec::new();
    // One gets successes, the other errors.
    for channel in ["news".to_owned(), "!".repeat(150)] {
        let ask = json!({ "event": "pusher:subscribe", "data": { "channel": channel } });
        let asking = text_frame(&ask.to_string()).repeat(500);
        let mut stuck = subscribe_without_reading(&server, 4096).await;
        floods.push(async move { while stuck.try_write(&asking).await.is_ok() {} });
    }
    in_time("both are disconnected", join_all(floods)).await;
    server.has_connections(1).await;
    server.assert_limit_rejections(Limit::WriteTime, 2);
    other.fence().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_within_the_write_timeout_is_closed_whatever_it_sends() {
    let server = Server::with(|setup| setup.options.pusher.write_timeout = Duration::from_secs(1)).await;
    let mut stuck = subscribe_without_reading(&server, 4096).await;
    let mut reading = server.connect().await;
    reading.subscribe(NEWS).await;
    let data = "x".repeat(100_000);
    for _ in 0..10 {
        server.publish(NEWS, "e", &data).await;
        assert_eq!(reading.next().await["event"], "e");
    }
    // 1 MB is queued of the 8 MB that may be. The client sends all the time.
    let pongs = async {
        while stuck.try_write(&frame(0x8a, b"")).await.is_ok() {
            // The pace of the client, far below its rate limit.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time("it is closed", async { tokio::join!(pongs, server.wait_for_rejections(Limit::WriteTime, 1)) })
        .await;
    server.assert_limit_rejections(Limit::WriteTime, 1);
    server.has_connections(1).await;
    reading.fence().await;
}

#[tokio::test]
async fn when_the_queues_exceed_the_budget_the_largest_are_evicted_first() {
    const BUDGET: usize = 4 * 1024 * 1024;
    let server = Server::with(|setup| setup.options.pusher.queued_bytes_max = BUDGET).await;
    let mut reading = server.connect().await;
    reading.subscribe(NEWS).await;
    let channels: Vec<_> = (0..8).map(|at| format!("room-{at}")).collect();
    let mut stuck = Vec::new();
    for channel in &channels {
        let mut raw = connect_without_reading(&server, 4096).await;
        raw.send(&format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}"}}}}"#)).await;
        raw.next().await;
        stuck.push(raw);
    }
    let data = "x".repeat(100_000);
    // The first has 1 MB, far less than its own limit; the others get more each round, until the budget is exceeded.
    for _ in 0..14 {
        server.publish("room-0", "e", &data).await;
    }
    for _ in 0..7 {
        for channel in &channels[1..] {
            server.publish(channel, "e", &data).await;
        }
        server.publish(NEWS, "e", "").await;
        assert_eq!(reading.next().await["event"], "e");
    }
    server.has_subscriptions("room-0", 0).await;
    let evicted = server.metrics.rejected(Limit::QueuedBytes).get();
    assert!((1..8).contains(&evicted), "{evicted} of 8: not one more than is needed");
    server.assert_limit_rejections(Limit::QueuedBytes, evicted);
    reading.fence().await;
}

#[tokio::test]
async fn a_batch_queued_for_many_slow_readers_counts_once_in_the_budget() {
    let server = Server::with(|setup| setup.options.pusher.queued_bytes_max = 4 * 1024 * 1024).await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        stuck.push(subscribe_without_reading(&server, 4096).await);
    }
    let data = "x".repeat(100_000);
    for _ in 0..20 {
        server.publish(NEWS, "e", &data).await;
    }
    // 1.5 MB are queued for each of them, 30 MB in all, and are in memory once.
    server.has_subscriptions(NEWS, 20).await;
    server.assert_limit_rejections(Limit::QueuedBytes, 0);
}

/// The messages of a member that joins a presence channel, then leaves and rejoins it `times` times: each time it is sent
/// the member list, and all members are notified.
fn rejoins(socket_id: &str, channel_data: &str, times: usize) -> Vec<u8> {
    let auth = channel_auth(socket_id, ROOM, Some(channel_data));
    let join = json!({ "channel": ROOM, "auth": auth, "channel_data": channel_data });
    let join = text_frame(&json!({ "event": "pusher:subscribe", "data": join }).to_string());
    let leave = json!({ "event": "pusher:unsubscribe", "data": { "channel": ROOM } }).to_string();
    [&join[..], &[&text_frame(&leave)[..], &join].concat().repeat(times)].concat()
}

#[tokio::test]
async fn members_that_rejoin_and_never_read_are_evicted_and_the_others_served() {
    const MEMBERS: usize = 40;
    let server = Server::with(|setup| {
        setup.options.pusher.queued_bytes_max = 4 * 1024 * 1024;
        // No other limit throttles them.
        let unlimited = Rate { per_second: u32::MAX, burst: u32::MAX };
        let limits = &mut setup.app.limits;
        (limits.messages, limits.changes, limits.answer_bytes) = (unlimited, unlimited, unlimited);
    })
    .await;
    let [mut member, mut other] = server.connect_many().await;
    member.join(ROOM, json!({ "user_id": "reading" })).await;
    other.subscribe(NEWS).await;
    let mut stuck = Vec::new();
    let evicted = || server.metrics.rejected(Limit::QueuedBytes).get();
    let attack = async {
        for id in 0..MEMBERS {
            let mut raw = connect_without_reading(&server, 64 * 1024).await;
            let info = json!({ "user_id": id.to_string(), "user_info": "x".repeat(4000) }).to_string();
            let moves = rejoins(&raw.id, &info, 20);
            raw.write(&moves).await;
            stuck.push(raw);
            server.publish(NEWS, "still", "").await;
            other.expect(json!({ "event": "still", "channel": NEWS, "data": "" })).await;
            if evicted() > 0 {
                break;
            }
        }
        eventually("some are evicted", async || evicted() > 0).await;
        // Now they read: the evicted ones get 4100, and the others are served.
        let ends = join_all(stuck.iter_mut().map(last_of)).await;
        server.publish(ROOM, "after", "").await;
        ends
    };
    // The member that reads is notified of all of them, and gets the event that follows.
    let reading = async { while member.next().await["event"] != "after" {} };
    let (ends, ()) = tokio::join!(attack, reading);
    let ended_by = |words: &str| ends.iter().filter(|last| last.contains(words)).count();
    assert!(ended_by("4100") > 0 && ended_by("pusher:pong") > 0, "{ends:#?}");
    server.assert_limit_rejections(Limit::QueuedBytes, evicted());
    other.fence().await;
}

/// The last frame that a client gets when it begins to read: the reply to a ping, or its close.
async fn last_of(raw: &mut RawSocket) -> String {
    // It may be closed already.
    let _ = raw.try_write(&text_frame(r#"{"event":"pusher:ping","data":{}}"#)).await;
    let mut last = String::new();
    while let Some(frame) = raw.next_or_end().await {
        if frame.first == 0x81 {
            frame.text().clone_into(&mut last);
        }
        if last.contains("pusher:pong") {
            break;
        }
    }
    last
}

#[tokio::test]
async fn replies_repeat_at_most_200_bytes_of_a_name() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let long = "é".repeat(5_000);
    client.ask(&long).await;
    client.expect_refusal(&format!("{}…", "é".repeat(98)), "LimitReached", 413, Value::Null).await;
    client.ask("x!").await;
    client.expect_refusal("x!", "InvalidChannel", 400, Value::Null).await;
    client.send(json!({ "event": format!("pusher:{long}"), "data": {} })).await;
    assert!(client.expect_error(Value::Null).await.len() < 260);
    client.fence().await;
    let nowhere = server.send(Request::get(&format!("/{}", "x".repeat(5_000)))).await;
    assert!(nowhere.rejected(404).len() < 260);
}

#[tokio::test]
async fn a_client_that_reads_again_in_time_loses_nothing() {
    let server = Server::start().await;
    let mut late = subscribe_without_reading(&server, 64 * 1024).await;
    let data = "x".repeat(10_000);
    for at in 0..50 {
        server.publish(NEWS, &at.to_string(), &data).await;
    }
    for at in 0..50 {
        let frame = late.next().await;
        assert!(frame.text().starts_with(&format!(r#"{{"event":"{at}""#)), "{at}");
    }
    late.fence().await;
}

#[tokio::test]
async fn a_member_that_is_disconnected_for_slow_reading_is_removed() {
    let server = Server::with_app(|app| app.limits.outbox_bytes_max = 64 * 1024).await;
    let mut watching = server.connect().await;
    watching.join(ROOM, json!({ "user_id": "watching" })).await;
    let mut stuck = subscribe_without_reading(&server, 4096).await;
    let channel_data = r#"{"user_id":"stuck"}"#;
    let auth = channel_auth(&stuck.id, ROOM, Some(channel_data));
    let data = json!({ "channel": ROOM, "auth": auth, "channel_data": channel_data });
    stuck.send(&json!({ "event": "pusher:subscribe", "data": data }).to_string()).await;
    watching.expect_event("pusher_internal:member_added", ROOM).await;
    let data = "x".repeat(100_000);
    let publishing = async {
        loop {
            server.publish(NEWS, "e", &data).await;
        }
    };
    tokio::select! {
        () = publishing => {}
        removed = watching.expect_event("pusher_internal:member_removed", ROOM) => {
            assert_eq!(removed, json!({ "user_id": "stuck" }));
        }
    }
}

/// More than the stuck clients accept: a publisher that waited for one of them would wait forever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_do_not_wait_for_clients_that_do_not_read() {
    let server = Server::with_app(|app| {
        app.limits.outbox_bytes_max = 64 * 1024 * 1024;
        app.limits.client_events = Rate { per_second: 1000, burst: 1000 };
    })
    .await;
    let mut stuck = Vec::new();
    for channel in [NEWS, "private-room"] {
        for _ in 0..20 {
            let mut raw = connect_without_reading(&server, 4096).await;
            let auth = channel_auth(&raw.id, channel, None);
            let data = json!({ "channel": channel, "auth": auth });
            raw.send(&json!({ "event": "pusher:subscribe", "data": data }).to_string()).await;
            raw.next().await;
            stuck.push(raw);
        }
    }
    let (data, mut publisher) = ("x".repeat(100_000), server.connect().await);
    publisher.subscribe("private-room").await;
    let over_http = async {
        let body = json!({ "name": "e", "channel": NEWS, "data": data }).to_string();
        let publishes = (0..50).map(|_| server.send(Request::post("/apps/1001/events", &*body).signed()));
        join_all(publishes).await.iter().for_each(|answer| drop(answer.ok()));
    };
    let as_a_client = async {
        for _ in 0..500 {
            publisher.whisper("private-room", "client-x", json!("x".repeat(10_000))).await;
        }
        publisher.fence().await;
    };
    tokio::join!(over_http, as_a_client);
    // None was closed: they are within their limits, and no publisher waited.
    assert_eq!(server.get_json("/apps/1001/connections").await, json!({ "connections": 41 }));
    server.assert_limit_rejections(Limit::OutboxBytes, 0);
}
