//! Liveness: pings, pongs and timeouts. Source: protocol.md §2.3, §2.4, §2.7.
//!
//! The server checks its connections once a second, so these tests take a few seconds, waiting for frames.

use std::time::Duration;

use pusherd::apps::App;
use serde_json::{Value, json};

use crate::harness::{Http, NEWS, RawSocket, Request, Server, frame};

const SECOND: Duration = Duration::from_secs(1);

/// A silent client is pinged after a second, and closed after another.
pub async fn with_short_timers() -> Server {
    Server::with(|setup| {
        setup.options.pusher.ping_interval = SECOND;
        setup.options.pusher.pong_timeout = SECOND;
    })
    .await
}

#[tokio::test]
async fn every_form_of_ping_is_answered_with_the_same_pong() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for ping in [
        r#"{"event":"pusher:ping","data":{}}"#,
        r#"{"event":"pusher:ping"}"#,
        r#"{"event":"pusher:ping","data":"{}"}"#,
        r#"{"event": "pusher:ping"}"#,
        r#"{"event":"pusher:ping","data":null}"#,
        r#"{"event":"pusher:ping","data":"","channel":null,"more":[1]}"#,
    ] {
        client.send_text(ping).await;
        assert_eq!(client.next_text().await, r#"{"event":"pusher:pong","data":"{}"}"#, "{ping}");
    }
}

#[tokio::test]
async fn a_clients_pong_is_neither_answered_nor_an_error() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for pong in [
        r#"{"event":"pusher:pong","data":{}}"#,
        r#"{"event":"pusher:pong"}"#,
        r#"{"event":"pusher:pong","data":"{}"}"#,
    ] {
        client.send_text(pong).await;
        client.fence().await;
    }
}

#[tokio::test]
async fn a_mute_client_is_pinged_and_then_closed_with_4201() {
    let server = with_short_timers().await;
    let mut raw = server.connect_raw().await;
    assert_eq!(raw.next().await.first, 0x89, "a ping of the WebSocket layer, also without a subscription");
    let error: Value = serde_json::from_str(raw.next().await.text()).unwrap();
    assert_eq!(
        error,
        json!({ "event": "pusher:error", "data": { "code": 4201, "message": error["data"]["message"] } })
    );
    raw.expect_close(4201).await;
    server.has_connections(0).await;
}

#[tokio::test]
async fn a_client_that_only_answers_websocket_pings_stays_connected() {
    let server = with_short_timers().await;
    let mut raw = server.connect_raw().await;
    for _ in 0..3 {
        let ping = raw.next().await;
        assert_eq!(ping.first, 0x89, "{ping:?}");
        raw.write(&frame(0x8a, &ping.payload)).await;
    }
    raw.fence().await;
}

#[tokio::test]
async fn any_frame_counts_as_an_answer_to_a_ping() {
    let server = with_short_timers().await;
    let mut raw = server.connect_raw().await;
    for answer in [frame(0x8a, b"unasked"), frame(0x81, br#"{"event":"pusher:pong"}"#)] {
        assert_eq!(raw.next().await.first, 0x89);
        raw.write(&answer).await;
    }
    assert_eq!(raw.next().await.first, 0x89, "pinged anew, not closed");
}

#[tokio::test]
async fn an_incomplete_upgrade_is_dropped_at_the_handshake_timeout() {
    let server = Server::with(|setup| setup.options.handshake_timeout = SECOND / 5).await;
    let mut silent = Http::over(server.tcp().await);
    let mut slow = Http::over(server.tcp().await);
    slow.write(b"GET /app/demo-key HTTP/1.1\r\nHost: te").await;
    slow.ends().await;
    silent.ends().await;
}

#[tokio::test]
async fn an_idle_http_connection_is_dropped_and_a_busy_one_is_not() {
    let server = Server::with(|setup| {
        setup.options.handshake_timeout = SECOND;
        setup.options.keep_alive = SECOND / 2;
    })
    .await;
    let publish = Request::post("/apps/1001/events", r#"{"name":"e","channel":"news","data":""}"#).signed();
    let mut busy = server.http().await;
    busy.write(&publish.head_with_length(publish.payload().len())).await;
    for begun in ["", "GET /up HTTP/1.1\r\nHost: te"] {
        let mut idle = server.http().await;
        for _ in 0..2 {
            assert_eq!(
                idle.send(Request::get("/apps/1001/channels").signed()).await.status,
                200,
                "kept alive"
            );
        }
        idle.write(begun.as_bytes()).await;
        idle.ends().await;
    }
    busy.write(publish.payload()).await;
    assert_eq!(busy.answer().await.status, 200);
    busy.ends().await;
}

#[tokio::test]
async fn a_body_that_makes_no_progress_times_out() {
    let server = Server::with(|setup| setup.options.http.read_timeout = SECOND / 5).await;
    let request = Request::post("/apps/1001/events", r#"{"name":"e","channel":"news","data":""}"#).signed();
    let mut http = server.http().await;
    http.write(&request.head_with_length(request.payload().len())).await;
    http.write(&request.payload()[..10]).await;
    if let Some(answer) = http.answer_or_end().await {
        answer.rejected(408);
        http.ends().await;
    }
}

async fn with_authorized_connections() -> Server {
    Server::with_app(|app: &mut App| app.authorized_connections_timeout = Some(SECOND)).await
}

#[tokio::test]
async fn a_connection_that_is_not_authorised_in_time_is_closed_with_4009() {
    let server = with_authorized_connections().await;
    let (mut idle, mut public) = (server.connect().await, server.connect().await);
    let (mut refused, mut failed) = (server.connect().await, server.connect().await);
    public.subscribe(NEWS).await;
    refused.ask("private-room").await;
    refused.expect_unauthorized("private-room").await;
    failed
        .send(json!({ "event": "pusher:signin", "data": { "auth": "demo-key:0", "user_data": "{}" } }))
        .await;
    failed.expect_error(4009).await;
    for client in [&mut idle, &mut public, &mut refused, &mut failed] {
        client.expect_close(4009).await;
    }
}

#[tokio::test]
async fn a_signed_subscription_or_a_sign_in_authorises_a_connection() {
    let server = with_authorized_connections().await;
    let [mut private, mut presence, mut signed_in, mut gone_again] = server.connect_many().await;
    private.subscribe("private-room").await;
    presence.join("presence-room", json!({ "user_id": "7" })).await;
    signed_in.sign_in(json!({ "id": "7" })).await;
    gone_again.subscribe("private-room").await;
    gone_again.unsubscribe("private-room").await;
    server.connect().await.expect_close(4009).await;
    for mut client in [private, presence, signed_in, gone_again] {
        client.fence().await;
    }
}

#[tokio::test]
async fn connections_need_no_authorisation_unless_the_app_requires_it() {
    let server = with_authorized_connections().await;
    let mut other = server.connect_to("/app/other-key").await;
    server.connect().await.expect_close(4009).await;
    other.fence().await;
}

#[tokio::test]
async fn a_ping_of_the_websocket_layer_is_answered_with_its_payload() {
    let server = Server::start().await;
    let mut raw: RawSocket = server.connect_raw().await;
    for payload in [&b""[..], b"x", &[0xff; 125]] {
        raw.write(&frame(0x89, payload)).await;
        let pong = raw.next().await;
        assert_eq!((pong.first, &pong.payload[..]), (0x8a, payload));
    }
}
