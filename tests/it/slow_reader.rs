//! A client that does not read costs a bounded amount, and is closed; nobody waits for it. Source: protocol.md §2.4.

use std::time::Duration;

use futures_util::future::join_all;
use pusherd::limits::{Limit, Rate};
use serde_json::{Value, json};
use socket2::SockRef;

use crate::harness::{
    NEWS, RawSocket, Request, Server, channel_auth, eventually, frame, in_time, text_frame,
};
use crate::presence::ROOM;

/// An established connection whose system takes in no more than so many bytes ahead of it.
async fn connect_without_reading(server: &Server, ahead_bytes: usize) -> RawSocket {
    let raw = server.connect_raw().await;
    SockRef::from(raw.stream()).set_recv_buffer_size(ahead_bytes).unwrap();
    raw
}

/// The same on `news`.
async fn subscribe_without_reading(server: &Server, ahead_bytes: usize) -> RawSocket {
    let mut raw = connect_without_reading(server, ahead_bytes).await;
    raw.send(r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#).await;
    assert!(raw.next().await.text().contains("subscription_succeeded"));
    raw
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_and_the_others_get_everything() {
    let server = Server::start().await;
    let stuck =
        [subscribe_without_reading(&server, 4096).await, subscribe_without_reading(&server, 4096).await];
    let mut reading = server.connect().await;
    reading.subscribe(NEWS).await;
    server.has_subscriptions(NEWS, 3).await;
    let data = "x".repeat(100_000);
    let mut http = server.http().await;
    // 10 MB: far more than the outbox and all that the systems take in between.
    for at in 0..100 {
        let body = json!({ "name": at.to_string(), "channel": NEWS, "data": data }).to_string();
        http.send(Request::post("/apps/1001/events", body).signed()).await.ok();
        assert_eq!(reading.next().await["event"], at.to_string());
    }
    server.has_subscriptions(NEWS, 1).await;
    server.has_connections(1).await;
    for mut raw in stuck {
        // What the system had taken in is still there, in whole frames; then comes the end.
        while raw.next_or_end().await.is_some() {}
    }
    reading.fence().await;
}

#[tokio::test]
async fn a_client_that_reads_too_late_is_told_4100() {
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
    server.has_refused(Limit::OutboxBytes, 1);
}

#[tokio::test]
async fn a_client_that_does_not_read_what_it_asks_for_is_not_read_from_and_cut_off_in_the_end() {
    let server = Server::with(|setup| {
        setup.app.limits.messages = Rate { per_second: u32::MAX, burst: u32::MAX };
        // Were it read from, so much would wait for it at once.
        setup.app.limits.outbox_bytes_max = 256 * 1024;
        setup.options.pusher.write_timeout = Duration::from_secs(1);
    })
    .await;
    let mut other = server.connect().await;
    let mut floods = Vec::new();
    // One is told that it is subscribed, the other that it is not.
    for channel in ["news".to_owned(), "!".repeat(150)] {
        let ask = json!({ "event": "pusher:subscribe", "data": { "channel": channel } });
        let asking = text_frame(&ask.to_string()).repeat(500);
        let mut stuck = subscribe_without_reading(&server, 4096).await;
        floods.push(async move { while stuck.try_write(&asking).await.is_ok() {} });
    }
    in_time("both are cut off", join_all(floods)).await;
    server.has_connections(1).await;
    server.has_refused(Limit::WriteTime, 2);
    other.fence().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_in_time_is_closed_with_4100_whatever_it_sends() {
    let server = Server::with(|setup| setup.options.pusher.write_timeout = Duration::from_secs(1)).await;
    let mut stuck = subscribe_without_reading(&server, 4096).await;
    let mut reading = server.connect().await;
    reading.subscribe(NEWS).await;
    let data = "x".repeat(100_000);
    for _ in 0..10 {
        server.publish(NEWS, "e", &data).await;
        assert_eq!(reading.next().await["event"], "e");
    }
    // 1 MB waits of the 8 that may. It is as lively as can be.
    let pongs = async {
        while stuck.try_write(&frame(0x8a, b"")).await.is_ok() {
            // The pace of the client, far below what it may send.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time("it is closed", async { tokio::join!(pongs, server.refuses(Limit::WriteTime, 1)) }).await;
    server.has_refused(Limit::WriteTime, 1);
    server.has_connections(1).await;
    reading.fence().await;
}

#[tokio::test]
async fn when_too_much_waits_for_all_together_those_with_most_go_first() {
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
    // The first has 1 MB, which is less than its own limit by far; the others some more each, until it is too much.
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
    server.has_refused(Limit::QueuedBytes, evicted);
    reading.fence().await;
}

#[tokio::test]
async fn what_many_slow_readers_wait_for_counts_once_for_the_node() {
    let server = Server::with(|setup| setup.options.pusher.queued_bytes_max = 4 * 1024 * 1024).await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        stuck.push(subscribe_without_reading(&server, 4096).await);
    }
    let data = "x".repeat(100_000);
    for _ in 0..20 {
        server.publish(NEWS, "e", &data).await;
    }
    // 1.5 MB wait for each of them, 30 in all, and are in memory once.
    server.has_subscriptions(NEWS, 20).await;
    server.has_refused(Limit::QueuedBytes, 0);
}

/// What a member sends that joins a presence channel, and leaves and rejoins it so many times: each time it is sent the
/// list of all members, and all members are told of it.
fn comes_and_goes(socket_id: &str, channel_data: &str, times: usize) -> Vec<u8> {
    let auth = channel_auth(socket_id, ROOM, Some(channel_data));
    let join = json!({ "channel": ROOM, "auth": auth, "channel_data": channel_data });
    let join = text_frame(&json!({ "event": "pusher:subscribe", "data": join }).to_string());
    let leave = json!({ "event": "pusher:unsubscribe", "data": { "channel": ROOM } }).to_string();
    [&join[..], &[&text_frame(&leave)[..], &join].concat().repeat(times)].concat()
}

#[tokio::test]
async fn members_that_come_and_go_and_do_not_read_are_evicted_and_the_others_served() {
    const MEMBERS: usize = 40;
    let server = Server::with(|setup| {
        setup.options.pusher.queued_bytes_max = 4 * 1024 * 1024;
        // Nothing else holds them up.
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
            let moves = comes_and_goes(&raw.id, &info, 20);
            raw.write(&moves).await;
            stuck.push(raw);
            server.publish(NEWS, "still", "").await;
            other.expect(json!({ "event": "still", "channel": NEWS, "data": "" })).await;
            if evicted() > 0 {
                break;
            }
        }
        eventually("some are evicted", async || evicted() > 0).await;
        // Now they read: those that were evicted are told so, and the others are served.
        let ends = join_all(stuck.iter_mut().map(last_of)).await;
        server.publish(ROOM, "after", "").await;
        ends
    };
    // The one that reads is told of all of them, and of the event that follows.
    let reading = async { while member.next().await["event"] != "after" {} };
    let (ends, ()) = tokio::join!(attack, reading);
    let ended_by = |words: &str| ends.iter().filter(|last| last.contains(words)).count();
    assert!(ended_by("4100") > 0 && ended_by("pusher:pong") > 0, "{ends:#?}");
    server.has_refused(Limit::QueuedBytes, evicted());
    other.fence().await;
}

/// What a client that begins to read gets in the end: the answer to a ping, or what it was closed with.
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
async fn answers_repeat_no_more_than_200_bytes_of_a_name() {
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
    assert!(nowhere.refused(404).len() < 260);
}

#[tokio::test]
async fn a_client_that_reads_again_in_time_has_lost_nothing() {
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
async fn a_member_that_is_cut_off_is_removed() {
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

/// More than any of the stuck takes in: whoever waited for one of them would wait for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_do_not_wait_for_those_who_do_not_read() {
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
    // None was given up: they cost what they may, and nobody waited.
    assert_eq!(server.get_json("/apps/1001/connections").await, json!({ "connections": 41 }));
    server.has_refused(Limit::OutboxBytes, 0);
}
