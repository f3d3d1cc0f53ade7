//! How the server goes away. Source: protocol.md §1.4 (8), §2.7, §8.10.

use std::time::Duration;

use futures_util::future::join_all;
use pusherd::server::Shutdown;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::harness::{Client, Http, NEWS, RawSocket, Request, Server, Setup, in_time};

const LONG: Duration = Duration::from_secs(600);

/// A server that would take ten minutes to close its connections.
async fn slow_to_drain() -> Server {
    Server::with(|setup: &mut Setup| {
        setup.options.drain = LONG;
        setup.options.shutdown_deadline = LONG;
    })
    .await
}

/// The signed publish that these tests hold half of back.
fn publish() -> Request {
    Request::post("/apps/1001/events", json!({ "name": "e", "channel": NEWS, "data": "" }).to_string())
        .signed()
}

#[tokio::test]
async fn everyone_is_told_to_reconnect_and_the_server_ends() {
    let server = Server::start().await;
    let mut clients: [_; 5] = server.connect_many().await;
    clients[0].subscribe(NEWS).await;
    clients[1].join("presence-room", json!({ "user_id": "7" })).await;
    server.signal(Shutdown::Graceful).await;
    for client in &mut clients {
        client.expect_close(4200).await;
    }
    server.ended().await;
}

#[tokio::test]
async fn a_server_without_connections_ends_at_once() {
    slow_to_drain().await.stop().await;
}

#[tokio::test]
async fn the_closes_are_spread_over_the_window() {
    let window = Duration::from_secs(2);
    let server = Server::with(|setup| setup.options.drain = window).await;
    let clients: [_; 4] = server.connect_many().await;
    server.signal(Shutdown::Graceful).await;
    let told = join_all(clients.map(|mut client| async move {
        client.expect_error(4200).await;
        Instant::now()
    }))
    .await;
    let (first, last) = (told.iter().min().unwrap(), told.iter().max().unwrap());
    assert!(*last - *first >= window / 2, "{:?}", *last - *first);
    server.ended().await;
}

#[tokio::test]
async fn a_client_that_is_closed_early_in_the_window_is_let_go_at_once() {
    let server = slow_to_drain().await;
    let [mut one, mut two] = server.connect_many().await;
    server.signal(Shutdown::Graceful).await;
    // A browser reports the end, and so reconnects, when TCP has ended.
    tokio::select! {
        _ = one.expect_close(4200) => {}
        _ = two.expect_close(4200) => {}
    }
}

/// Waits until one of two clients is told to reconnect; the other one.
async fn left_of([mut one, mut two]: [Client; 2]) -> Client {
    let (frame, left) = in_time("one of two is closed", async {
        tokio::select! {
            frame = one.next() => (frame, two),
            frame = two.next() => (frame, one),
        }
    })
    .await;
    assert_eq!(frame["data"]["code"], json!(4200));
    left
}

#[tokio::test]
async fn while_it_drains_connections_that_are_left_go_on() {
    let server = slow_to_drain().await;
    let clients = server.connect_many().await;
    server.signal(Shutdown::Graceful).await;
    let mut left = left_of(clients).await;
    left.fence().await;
    left.subscribe(NEWS).await;
    left.join("presence-room", json!({ "user_id": "7" })).await;
    server.signal(Shutdown::Now).await;
    left.expect_close(4200).await;
    server.ended().await;
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() {
    for second in [Shutdown::Graceful, Shutdown::Now] {
        let server = slow_to_drain().await;
        let clients: [_; 3] = server.connect_many().await;
        server.signal(Shutdown::Graceful).await;
        server.signal(second).await;
        for mut client in clients {
            client.expect_close(4200).await;
        }
        server.ended().await;
    }
}

#[tokio::test]
async fn a_shutdown_that_is_not_graceful_takes_no_window() {
    let server = slow_to_drain().await;
    let clients: [_; 3] = server.connect_many().await;
    server.signal(Shutdown::Now).await;
    for mut client in clients {
        client.expect_close(4200).await;
    }
    server.ended().await;
}

#[tokio::test]
async fn nobody_new_is_let_in_while_it_drains() {
    let server = slow_to_drain().await;
    let clients = server.connect_many().await;
    let upgrade = RawSocket::upgrade_request("/app/demo-key");
    let (half, rest) = upgrade.split_at(30);
    let mut early = server.http().await;
    early.write(half.as_bytes()).await;
    is_ready(&server).await;
    server.signal(Shutdown::Graceful).await;
    let mut left = left_of(clients).await;

    // A new connection is not taken, or told to go elsewhere.
    if let Ok(stream) = in_time("an answer to a new connection", TcpStream::connect(server.address)).await {
        let mut late = Http::over(stream);
        let _ = late.try_write(upgrade.as_bytes()).await;
        told_to_go_elsewhere(late).await;
    }
    // So is one that was half-way in.
    let _ = early.try_write(rest.as_bytes()).await;
    told_to_go_elsewhere(early).await;
    left.fence().await;
}

async fn told_to_go_elsewhere(mut http: Http) {
    let Some(answer) = http.answer_or_end().await else { return };
    if answer.status != 101 {
        answer.refused(503);
        return;
    }
    let mut raw = http.into_websocket();
    let error: Value = serde_json::from_str(raw.next().await.text()).unwrap();
    assert_eq!(error["data"]["code"], json!(4200));
    raw.expect_close(4200).await;
}

/// Shows that the server is ready, and has looked at what came before.
async fn is_ready(server: &Server) {
    assert_eq!(server.send(Request::get("/ready")).await.status, 200);
}

#[tokio::test]
async fn a_request_that_has_begun_is_finished() {
    let server = slow_to_drain().await;
    let mut clients: [Client; 2] = server.connect_many().await;
    for client in &mut clients {
        client.subscribe(NEWS).await;
    }
    let request = publish();
    let mut http = server.http().await;
    let expecting = request.clone().header("Expect", "100-continue");
    http.write(&expecting.head_with_length(request.payload().len())).await;
    assert_eq!(http.answer().await.status, 100, "the server waits for the body");
    server.signal(Shutdown::Graceful).await;
    let mut left = left_of(clients).await;
    http.write(request.payload()).await;
    http.answer().await.ok();
    http.ends().await;
    left.expect(json!({ "event": "e", "channel": NEWS, "data": "" })).await;
}

#[tokio::test]
async fn a_request_that_comes_while_it_drains_is_503_or_not_taken() {
    let server = slow_to_drain().await;
    let clients = server.connect_many().await;
    let mut connections = Vec::new();
    for request in [publish(), Request::get("/ready"), Request::get("/apps/1001/channels").signed()] {
        // One that is idle, and one that has sent half a head.
        let mut idle = server.http().await;
        assert_eq!(idle.send(Request::get("/up")).await.status, 200);
        let mut begun = server.http().await;
        let bytes = request.to_bytes();
        begun.write(&bytes[..10]).await;
        connections.push((idle, bytes.clone()));
        connections.push((begun, bytes[10..].to_vec()));
    }
    is_ready(&server).await;
    server.signal(Shutdown::Graceful).await;
    left_of(clients).await;
    for (mut http, bytes) in connections {
        let _ = http.try_write(&bytes).await;
        if let Some(answer) = http.answer_or_end().await {
            answer.refused(503);
            assert!(answer.header("retry-after").is_some(), "{answer:?}");
            http.ends().await;
        }
    }
}

#[tokio::test]
async fn what_does_not_end_is_cut_off_at_the_deadline() {
    let server = Server::with(|setup| setup.options.shutdown_deadline = Duration::from_millis(300)).await;
    let request = publish().header("Expect", "100-continue");
    let mut never_finished = server.http().await;
    never_finished.write(&request.head_with_length(request.payload().len())).await;
    assert_eq!(never_finished.answer().await.status, 100);
    let begin = Instant::now();
    server.stop().await;
    assert!(begin.elapsed() >= Duration::from_millis(300), "it was given the time that it had");
}

#[tokio::test]
async fn a_client_that_ignores_the_close_does_not_hold_the_server_up() {
    let server = slow_to_drain().await;
    let mut raw = server.connect_raw().await;
    server.signal(Shutdown::Now).await;
    server.ended().await;
    let error: Value = serde_json::from_str(raw.next().await.text()).unwrap();
    assert_eq!(error["data"]["code"], json!(4200));
    raw.expect_close(4200).await;
}
