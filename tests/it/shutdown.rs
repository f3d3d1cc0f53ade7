//! Shutdown: the drain, its deadline, and a second signal. Source: protocol.md §1.4 (8), §2.7, §8.10.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{join_all, select_all};
use pusherd::server::Shutdown;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::harness::{
    Client, Http, NEWS, RawSocket, Receiver, Reply, Request, Server, Setup, eventually, in_time, nodes,
    nodes_with,
};

const LONG: Duration = Duration::from_secs(600);

/// A server that would take ten minutes to close its connections.
async fn slow_to_drain() -> Server {
    Server::with(|setup: &mut Setup| {
        setup.options.drain = LONG;
        setup.options.shutdown_deadline = LONG;
    })
    .await
}

/// A signed publish, of which some tests hold back a part.
fn publish() -> Request {
    Request::post("/apps/1001/events", json!({ "name": "e", "channel": NEWS, "data": "" }).to_string())
        .signed()
}

#[tokio::test]
async fn a_single_node_closes_its_clients_with_4100() {
    let server = Server::start().await;
    let mut clients: [_; 5] = server.connect_many().await;
    clients[0].subscribe(NEWS).await;
    clients[1].join("presence-room", json!({ "user_id": "7" })).await;
    server.signal(Shutdown::Graceful).await;
    for client in &mut clients {
        client.expect_close(4100).await;
    }
    server.ended().await;
}

#[tokio::test]
async fn a_node_of_a_cluster_closes_its_clients_with_4200() {
    let [leaving, staying] = nodes().await;
    let mut clients: [_; 2] = leaving.connect_many().await;
    let mut other = staying.connect().await;
    leaving.signal(Shutdown::Graceful).await;
    for client in &mut clients {
        client.expect_close(4200).await;
    }
    leaving.ended().await;
    other.fence().await;
    staying.stop().await;
}

#[tokio::test]
async fn a_server_without_connections_stops_at_once() {
    slow_to_drain().await.stop().await;
}

#[tokio::test]
async fn the_closes_are_spread_over_the_window() {
    let window = Duration::from_secs(2);
    let server = Server::with(|setup| setup.options.drain = window).await;
    let clients: [_; 4] = server.connect_many().await;
    server.signal(Shutdown::Graceful).await;
    let closed_at = join_all(clients.map(|mut client| async move {
        client.expect_error(4100).await;
        Instant::now()
    }))
    .await;
    let (first, last) = (closed_at.iter().min().unwrap(), closed_at.iter().max().unwrap());
    assert!(*last - *first >= window / 2, "{:?}", *last - *first);
    server.ended().await;
}

#[tokio::test]
async fn a_client_closed_early_in_the_window_is_disconnected_at_once() {
    let server = slow_to_drain().await;
    let [mut one, mut two] = server.connect_many().await;
    server.signal(Shutdown::Graceful).await;
    // A browser reports the close, and so reconnects, when TCP has ended.
    tokio::select! {
        _ = one.expect_close(4100) => {}
        _ = two.expect_close(4100) => {}
    }
}

/// Waits until one of the clients is closed, and returns the others.
async fn left_of<const N: usize, const LEFT: usize>(mut clients: [Client; N]) -> [Client; LEFT] {
    let (frame, closed, _) =
        in_time("one is closed", select_all(clients.iter_mut().map(|client| Box::pin(client.next())))).await;
    assert!([json!(4100), json!(4200)].contains(&frame["data"]["code"]), "{frame}");
    let left = clients.into_iter().enumerate().filter(|(at, _)| *at != closed).map(|(_, client)| client);
    left.collect::<Vec<_>>().try_into().ok().unwrap()
}

#[tokio::test]
async fn remaining_connections_are_served_during_a_drain() {
    let server = slow_to_drain().await;
    let clients: [_; 2] = server.connect_many().await;
    server.signal(Shutdown::Graceful).await;
    let [mut left] = left_of(clients).await;
    left.fence().await;
    left.subscribe(NEWS).await;
    left.join("presence-room", json!({ "user_id": "7" })).await;
    server.signal(Shutdown::Now).await;
    left.expect_close(4100).await;
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
            client.expect_close(4100).await;
        }
        server.ended().await;
    }
}

#[tokio::test]
async fn an_immediate_shutdown_skips_the_window() {
    let server = slow_to_drain().await;
    let clients: [_; 3] = server.connect_many().await;
    server.signal(Shutdown::Now).await;
    for mut client in clients {
        client.expect_close(4100).await;
    }
    server.ended().await;
}

#[tokio::test]
async fn no_websocket_is_accepted_during_a_drain() {
    let server = slow_to_drain().await;
    let clients: [_; 2] = server.connect_many().await;
    let upgrade = RawSocket::upgrade_request("/app/demo-key");
    let (half, rest) = upgrade.split_at(30);
    let mut early = server.http().await;
    early.write(half.as_bytes()).await;
    assert_ready(&server).await;
    server.signal(Shutdown::Graceful).await;
    let [mut left] = left_of(clients).await;

    // Neither a new connection nor one with a partial head.
    let mut late = server.http().await;
    late.write(upgrade.as_bytes()).await;
    assert_rejected_with_4100(late).await;
    early.write(rest.as_bytes()).await;
    assert_rejected_with_4100(early).await;
    left.fence().await;
}

async fn assert_rejected_with_4100(mut http: Http) {
    assert_eq!(http.answer().await.status, 101);
    let mut raw = http.into_websocket();
    let error: Value = serde_json::from_str(raw.next().await.text()).unwrap();
    assert_eq!(error["data"]["code"], json!(4100));
    raw.expect_close(4100).await;
}

/// Shows that the server is ready, and that it has processed earlier input.
async fn assert_ready(server: &Server) {
    assert_eq!(server.send(Request::get("/ready")).await.status, 200);
}

/// Shows that a draining node serves applications and its last client, `left`.
async fn assert_serves_during_drain(
    server: &Server,
    left: &mut Client,
    mut idle: Http,
    mut begun: (Http, Vec<u8>),
) {
    let event = || json!({ "event": "e", "channel": NEWS, "data": "" });
    // A connection that was idle, one within a request, and a new one, as PHP opens for each event.
    idle.send(publish()).await.ok();
    left.expect(event()).await;
    begun.0.write(&begun.1).await;
    begun.0.answer().await.ok();
    left.expect(event()).await;
    server.send(publish()).await.ok();
    left.expect(event()).await;
    let channels = server.send(Request::get("/apps/1001/channels").signed()).await.ok();
    assert_eq!(channels, json!({ "channels": { NEWS: {} } }));
    // The load balancer is told on every connection.
    for http in [&mut idle, &mut begun.0, &mut server.http().await] {
        let answer = http.send(Request::get("/ready")).await;
        answer.rejected(503);
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
        assert_eq!(http.send(Request::get("/up")).await.status, 200, "the process is alive");
    }
}

#[tokio::test]
async fn publishes_are_served_until_the_last_client_is_closed() {
    let server = slow_to_drain().await;
    let mut clients: [_; 2] = server.connect_many().await;
    for client in &mut clients {
        client.subscribe(NEWS).await;
    }
    let mut idle = server.http().await;
    assert_eq!(idle.send(Request::get("/up")).await.status, 200);
    let mut begun = server.http().await;
    let bytes = publish().to_bytes();
    begun.write(&bytes[..10]).await;
    assert_ready(&server).await;
    server.signal(Shutdown::Graceful).await;
    let [mut left] = left_of(clients).await;
    assert_serves_during_drain(&server, &mut left, idle, (begun, bytes[10..].to_vec())).await;
    server.signal(Shutdown::Now).await;
    left.expect_close(4100).await;
    let address = server.address;
    server.ended().await;
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "the listener is closed");
}

#[tokio::test]
async fn a_node_of_a_cluster_serves_publishes_until_its_last_client_is_closed() {
    let [leaving, staying] = nodes_with(|setup| {
        setup.options.drain = LONG;
        setup.options.shutdown_deadline = LONG;
    })
    .await;
    let mut clients: [Client; 2] = leaving.connect_many().await;
    for client in &mut clients {
        client.subscribe(NEWS).await;
    }
    let mut other = staying.connect().await;
    other.subscribe(NEWS).await;
    leaving.signal(Shutdown::Graceful).await;
    let [mut left] = left_of(clients).await;
    leaving.send(publish()).await.ok();
    for client in [&mut left, &mut other] {
        client.expect(json!({ "event": "e", "channel": NEWS, "data": "" })).await;
    }
    leaving.send(Request::get("/ready")).await.rejected(503);
    leaving.signal(Shutdown::Now).await;
    left.expect_close(4200).await;
    leaving.ended().await;
    staying.signal(Shutdown::Now).await;
    staying.ended().await;
}

/// A member's event reaches the remaining members, and not itself.
async fn whispers(sender: &mut Client, others: &mut [&mut Client]) {
    sender.whisper("private-room", "client-x", json!({ "n": 1 })).await;
    for other in others {
        other.expect(json!({ "event": "client-x", "channel": "private-room", "data": { "n": 1 } })).await;
    }
    sender.fence().await;
}

#[tokio::test]
async fn client_events_reach_the_remaining_members_during_a_drain() {
    let server = slow_to_drain().await;
    let mut clients: [_; 3] = server.connect_many().await;
    for client in &mut clients {
        client.subscribe("private-room").await;
    }
    server.signal(Shutdown::Graceful).await;
    let [mut one, mut two] = left_of(clients).await;
    whispers(&mut one, &mut [&mut two]).await;
    whispers(&mut two, &mut [&mut one]).await;
    server.signal(Shutdown::Now).await;
    for client in [&mut one, &mut two] {
        client.expect_close(4100).await;
    }
    server.ended().await;
}

#[tokio::test]
async fn client_events_cross_nodes_in_both_directions_during_a_drain() {
    let [leaving, staying] = nodes_with(|setup| {
        setup.options.drain = LONG;
        setup.options.shutdown_deadline = LONG;
    })
    .await;
    let mut clients: [_; 3] = leaving.connect_many().await;
    let mut other = staying.connect().await;
    for client in clients.iter_mut().chain([&mut other]) {
        client.subscribe("private-room").await;
    }
    leaving.signal(Shutdown::Graceful).await;
    let [mut one, mut two] = left_of(clients).await;
    whispers(&mut one, &mut [&mut two, &mut other]).await;
    whispers(&mut other, &mut [&mut one, &mut two]).await;
    leaving.signal(Shutdown::Now).await;
    for client in [&mut one, &mut two] {
        client.expect_close(4200).await;
    }
    leaving.ended().await;
    staying.signal(Shutdown::Now).await;
    staying.ended().await;
}

#[tokio::test]
async fn a_single_node_sends_its_webhooks_before_it_closes_its_clients() {
    let (answer, mut answered) = (Arc::new(AtomicBool::new(false)), true);
    let accepts = Arc::clone(&answer);
    let mut receiver = Receiver::with_replies(move |_, _| match accepts.load(Ordering::SeqCst) {
        true => Reply::Status(200),
        false => Reply::Status(500),
    })
    .await;
    let server = Server::with(|setup| {
        setup.app.webhooks = vec![receiver.webhook()];
        setup.options.webhooks.timing.backoff = Duration::from_millis(20);
        setup.options.webhooks.timing.backoff_max = Duration::from_millis(20);
    })
    .await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    server.signal(Shutdown::Graceful).await;
    for _ in 0..3 {
        let hook = receiver.hook().await;
        answered &= !matches!(hook.reply, Reply::Status(200));
    }
    assert!(answered, "the receiver accepts nothing yet");
    // The client is served meanwhile.
    client.fence().await;
    server.send(publish()).await.ok();
    client.expect(json!({ "event": "e", "channel": NEWS, "data": "" })).await;
    answer.store(true, Ordering::SeqCst);
    assert_eq!(receiver.event().await["name"], json!("channel_occupied"));
    client.expect_close(4100).await;
    assert_eq!(
        receiver.event().await["name"],
        json!("channel_vacated"),
        "the vacated event follows the close"
    );
    server.ended().await;
}

#[tokio::test]
async fn a_request_in_flight_is_finished() {
    let server = Server::start().await;
    let request = publish();
    let mut http = server.http().await;
    let expecting = request.clone().header("Expect", "100-continue");
    http.write(&expecting.head_with_length(request.payload().len())).await;
    assert_eq!(http.answer().await.status, 100, "the server waits for the body");
    server.signal(Shutdown::Graceful).await;
    eventually("the listener is closed", async || TcpStream::connect(server.address).await.is_err()).await;
    http.write(request.payload()).await;
    http.answer().await.ok();
    http.ends().await;
    server.ended().await;
}

#[tokio::test]
async fn connections_without_a_request_do_not_delay_a_shutdown() {
    let server = Server::with(|setup| {
        setup.options.handshake_timeout = LONG;
        setup.options.keep_alive = LONG;
        setup.options.shutdown_deadline = LONG;
    })
    .await;
    let silent = server.tcp().await;
    let mut half_a_head = server.http().await;
    half_a_head.write(b"GET /up HTTP/1.1\r\nHo").await;
    let mut half_a_second_head = server.http().await;
    let known = Request::get("/apps/1001/channels").signed();
    half_a_second_head.send(known).await.ok();
    half_a_second_head.write(b"GET").await;
    assert_ready(&server).await;
    server.stop().await;
    drop((silent, half_a_head, half_a_second_head));
}

#[tokio::test]
async fn unfinished_requests_are_aborted_at_the_deadline() {
    let server = Server::with(|setup| setup.options.shutdown_deadline = Duration::from_millis(300)).await;
    let request = publish().header("Expect", "100-continue");
    let mut never_finished = server.http().await;
    never_finished.write(&request.head_with_length(request.payload().len())).await;
    assert_eq!(never_finished.answer().await.status, 100);
    let begin = Instant::now();
    server.stop().await;
    assert!(begin.elapsed() >= Duration::from_millis(300), "it was not aborted before the deadline");
}

#[tokio::test]
async fn a_client_that_ignores_the_close_does_not_delay_a_shutdown() {
    let server = slow_to_drain().await;
    let mut raw = server.connect_raw().await;
    server.signal(Shutdown::Now).await;
    server.ended().await;
    let error: Value = serde_json::from_str(raw.next().await.text()).unwrap();
    assert_eq!(error["data"]["code"], json!(4100));
    raw.expect_close(4100).await;
}
