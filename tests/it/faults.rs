//! Faults of peers: they stall, send byte by byte, reset, half-close and never read; and a wall clock that jumps. Each
//! connection ends as it should, no other client notices, and nothing is left behind. (Slow readers of a WebSocket:
//! `slow_reader.rs`. A process out of files: `open_files.rs`.)
//!
//! Timeouts are short here.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::harness::{
    Client, DEMO, Http, NEWS, RawSocket, Request, Server, frame, frame_head, in_time, text_frame, unix_now,
};
use crate::liveness::with_short_timers;

const SECOND: Duration = Duration::from_secs(1);
const TENTH: Duration = Duration::from_millis(100);

const SUBSCRIBE: &str = r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#;

/// A subscriber of `news` that must not notice anything.
async fn bystander(server: &Server) -> Client {
    let mut bystander = server.connect().await;
    bystander.subscribe(NEWS).await;
    bystander
}

/// Shows that the bystander has noticed nothing, and that no other connection is left.
async fn assert_unaffected(server: &Server, mut bystander: Client) {
    server.has_connections(1).await;
    server.has_subscriptions(NEWS, 1).await;
    server.publish(NEWS, "after", "").await;
    bystander.expect(json!({ "event": "after", "channel": NEWS, "data": "" })).await;
    bystander.fence().await;
}

/// Sends bytes one by one, as long as the server accepts them. The pause between them is the pace of a slow peer.
async fn drip(stream: &mut TcpStream, bytes: &[u8], pause: Duration) {
    for byte in bytes {
        tokio::time::sleep(pause).await;
        if stream.write_all(&[*byte]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_client_that_stalls_within_a_frame_is_closed_with_4201() {
    let server = with_short_timers().await;
    let long = frame_head(0x81, 300);
    let fragment = frame(0x01, b"{\"event\":");
    let stalls: [&[u8]; 6] =
        [&long[..1], &long[..2], &long[..3], &long[..6], &long, &[&fragment[..], &long[..1]].concat()];
    join_all(stalls.map(async |begun| {
        let mut raw = server.connect_raw().await;
        raw.send(SUBSCRIBE).await;
        assert!(raw.next().await.text().contains("subscription_succeeded"));
        raw.write(begun).await;
        expect_4201(&mut raw).await;
    }))
    .await;
    server.has_connections(0).await;
    server.has_subscriptions(NEWS, 0).await;
}

#[tokio::test]
async fn a_client_that_sends_a_frame_byte_by_byte_too_slowly_is_closed_with_4201() {
    let server = with_short_timers().await;
    let mut raw = server.connect_raw().await;
    let writing = SockRef::from(raw.stream()).try_clone().map(std::net::TcpStream::from).unwrap();
    writing.set_nonblocking(true).unwrap();
    let mut writing = TcpStream::from_std(writing).unwrap();
    let begun = async {
        // Half a minute's worth: an incomplete frame is no sign of life.
        drip(&mut writing, &frame(0x81, &[b' '; 300]), TENTH).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = begun => {}
        () = expect_4201(&mut raw) => {}
    }
    server.has_connections(0).await;
}

async fn expect_4201(raw: &mut RawSocket) {
    assert_eq!(raw.next().await.first, 0x89, "a ping");
    let error: Value = serde_json::from_str(raw.next().await.text()).unwrap();
    assert_eq!(error["data"]["code"], 4201);
    assert_eq!(raw.next().await.close().0, Some(4201));
    // The end, which bytes in flight may turn into a reset.
    assert!(raw.next_or_end().await.is_none());
}

#[tokio::test]
async fn a_head_sent_byte_by_byte_is_dropped_at_the_handshake_timeout() {
    let server = Server::with(|setup| setup.options.handshake_timeout = 3 * TENTH).await;
    let bystander = bystander(&server).await;
    let heads = [RawSocket::upgrade_request("/app/demo-key"), "GET /up HTTP/1.1\r\n".to_owned()];
    join_all(heads.map(async |head| {
        let mut stream = server.tcp().await;
        // A line without an end, a byte at a time, for far longer than the timeout.
        let drips = [head.as_bytes()[..18].to_vec(), b"X: ".to_vec(), vec![b'x'; 200]].concat();
        in_time("the server disconnects", drip(&mut stream, &drips, TENTH / 4)).await;
        Http::over(stream).ends().await;
    }))
    .await;
    assert_unaffected(&server, bystander).await;
}

#[tokio::test]
async fn a_body_sent_byte_by_byte_times_out_despite_its_progress() {
    let server = Server::with(|setup| setup.options.http.read_timeout = TENTH).await;
    let bystander = bystander(&server).await;
    let request = Request::post("/apps/1001/events", vec![b' '; 1000]).signed();
    let mut stream = server.tcp().await;
    stream.write_all(&request.head_with_length(1000)).await.unwrap();
    // A byte in each half of the timeout, for far longer than ten timeouts.
    in_time("the server disconnects", drip(&mut stream, &[b' '; 300], TENTH / 2)).await;
    assert_unaffected(&server, bystander).await;
}

#[tokio::test]
async fn a_reset_at_any_time_leaves_nothing_behind() {
    let server = Server::start().await;
    let mut listener = server.connect().await;
    listener.join("presence-room", json!({ "user_id": "listener" })).await;
    let request = Request::post("/apps/1001/events", vec![b' '; 1000]).signed();
    let upgrade = RawSocket::upgrade_request("/app/demo-key");
    let begun: [&[u8]; 5] = [
        b"",
        &upgrade.as_bytes()[..50],
        upgrade.as_bytes(),
        &request.head_with_length(1000),
        &[request.head_with_length(1000), vec![b' '; 500]].concat(),
    ];
    for bytes in begun {
        let mut stream = server.tcp().await;
        stream.write_all(bytes).await.unwrap();
        stream.set_zero_linger().unwrap();
    }
    for amid in [&b""[..], &[0x81], &frame_head(0x81, 100), &frame(0x01, b"{"), &text_frame("{}")] {
        let mut member = server.connect().await;
        member.join("presence-room", json!({ "user_id": "7" })).await;
        listener.expect_event("pusher_internal:member_added", "presence-room").await;
        member.reset();
        listener.expect_event("pusher_internal:member_removed", "presence-room").await;
        let mut raw = server.connect_raw().await;
        raw.write(amid).await;
        raw.reset();
    }
    server.has_connections(1).await;
    listener.fence().await;
}

#[tokio::test]
async fn a_client_that_resets_during_a_write_is_removed_and_the_others_get_everything() {
    let server = Server::start().await;
    let mut bystander = bystander(&server).await;
    let mut gone = Vec::new();
    for _ in 0..5 {
        let mut raw = server.connect_raw().await;
        SockRef::from(raw.stream()).set_recv_buffer_size(4096).unwrap();
        raw.send(SUBSCRIBE).await;
        assert!(raw.next().await.text().contains("subscription_succeeded"));
        gone.push(raw);
    }
    // Each has queued bytes when it resets, and some in flight.
    let data = "x".repeat(100_000);
    for at in 0..20 {
        server.publish(NEWS, &at.to_string(), &data).await;
        assert_eq!(bystander.next().await["event"], at.to_string());
        if at % 4 == 3 {
            gone.pop().unwrap().reset();
        }
    }
    assert_unaffected(&server, bystander).await;
}

#[tokio::test]
async fn a_half_closed_connection_with_a_partial_head_is_dropped() {
    let server = Server::start().await;
    let bystander = bystander(&server).await;
    let upgrade = RawSocket::upgrade_request("/app/demo-key");
    for begun in [0, 1, 50, upgrade.len() - 1] {
        let mut stream = server.tcp().await;
        stream.write_all(&upgrade.as_bytes()[..begun]).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = Http::over(stream).answer_or_end().await;
        assert!(answer.is_none_or(|answer| answer.status == 400), "{begun} bytes");
    }
    assert_unaffected(&server, bystander).await;
}

#[tokio::test]
async fn a_half_closed_connection_with_a_whole_request_is_answered() {
    let server = Server::start().await;
    let mut bystander = bystander(&server).await;
    let event = json!({ "name": "e", "channel": NEWS, "data": "x" });
    for request in [Request::get("/up"), Request::post("/apps/1001/events", event.to_string()).signed()] {
        let mut stream = server.tcp().await;
        stream.write_all(&request.to_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut http = Http::over(stream);
        http.answer().await.ok();
        http.ends().await;
    }
    bystander.expect(json!({ "event": "e", "channel": NEWS, "data": "x" })).await;
    assert_unaffected(&server, bystander).await;
}

#[tokio::test]
async fn a_half_closed_connection_with_a_partial_body_publishes_nothing() {
    let server = Server::start().await;
    let bystander = bystander(&server).await;
    let event = json!({ "name": "e", "channel": NEWS, "data": "x" }).to_string();
    let request = Request::post("/apps/1001/events", event.clone()).signed();
    let mut stream = server.tcp().await;
    stream.write_all(&request.head_with_length(event.len())).await.unwrap();
    stream.write_all(&event.as_bytes()[..event.len() - 1]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut http = Http::over(stream);
    if let Some(answer) = http.answer_or_end().await {
        answer.rejected(400);
        http.ends().await;
    }
    assert_unaffected(&server, bystander).await;
}

#[tokio::test]
async fn a_half_closed_websocket_is_served_and_then_removed() {
    let server = Server::start().await;
    let mut listener = server.connect().await;
    listener.subscribe("private-room").await;
    let bystander = bystander(&server).await;
    for amid in [&b""[..], &[0x81], &frame(0x01, b"{")] {
        let mut raw = server.connect_raw().await;
        raw.write(&[&text_frame(SUBSCRIBE), amid].concat()).await;
        raw.stream_mut().shutdown().await.unwrap();
        let answer = raw.next().await;
        assert!(answer.text().contains("subscription_succeeded"), "{answer:?}");
        raw.ends().await;
    }
    server.has_connections(2).await;
    drop(listener);
    assert_unaffected(&server, bystander).await;
}

#[tokio::test]
async fn an_http_client_that_never_reads_its_responses_is_dropped() {
    let server = Server::with(|setup| setup.options.http.read_timeout = 2 * TENTH).await;
    let bystander = bystander(&server).await;
    let mut stream = server.tcp().await;
    SockRef::from(&stream).set_recv_buffer_size(4096).unwrap();
    let asking = Request::get("/up").to_bytes().repeat(500);
    in_time("the server disconnects", async { while stream.write_all(&asking).await.is_ok() {} }).await;
    assert_unaffected(&server, bystander).await;
}

/// The clock of the server in the next test.
static CLOCK: AtomicI64 = AtomicI64::new(0);

#[tokio::test]
async fn a_wall_clock_jump_changes_the_age_of_signatures_and_nothing_else() {
    let server = Server::with(|setup| {
        setup.options.http.unix_now = || CLOCK.load(Ordering::SeqCst);
        setup.options.pusher.ping_interval = SECOND;
        setup.options.pusher.pong_timeout = SECOND;
    })
    .await;
    let publish = async |signed_at: i64| {
        let event = json!({ "name": "e", "channel": "cache-x", "data": "x" });
        let request = Request::post("/apps/1001/events", event.to_string()).signed_at(&DEMO, signed_at);
        server.send(request).await
    };
    let cached_for = async |signed_at: i64| {
        let request = Request::get("/apps/1001/channels/cache-x?info=cache").signed_at(&DEMO, signed_at);
        server.send(request).await.ok()["cache"]["ttl"].as_u64().unwrap()
    };
    let now = unix_now();
    CLOCK.store(now, Ordering::SeqCst);
    let mut client = server.connect().await;
    client.subscribe("cache-x").await;
    client.expect(json!({ "event": "pusher:cache_miss", "channel": "cache-x", "data": "{}" })).await;
    for jumped in [now, now + 86_400, now - 86_400, 0, i64::MAX, now] {
        CLOCK.store(jumped, Ordering::SeqCst);
        if jumped != now {
            let refused = publish(now).await;
            assert!(refused.rejected(401).contains("check both clocks"), "{}", refused.text());
        }
        publish(jumped).await.ok();
        client.expect(json!({ "event": "e", "channel": "cache-x", "data": "x" })).await;
        // Cached events expire as before, and silent clients are pinged in time.
        assert!(cached_for(jumped).await > 1700);
        client.fence().await;
    }
    let mut mute = server.connect_raw().await;
    CLOCK.store(now + 86_400, Ordering::SeqCst);
    expect_4201(&mut mute).await;
}
