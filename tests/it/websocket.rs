//! WebSocket framing beyond the cases of `websocket_matrix.rs`: any mask, any segments, and the ends of a connection.
//! Source: RFC 6455 §5 to §8; protocol.md §1.3.

use crate::harness::{RawSocket, Server, frame, frame_head, text_frame};

const PING: &str = r#"{"event":"pusher:ping","data":{}}"#;
const PONG: &str = r#"{"event":"pusher:pong","data":"{}"}"#;

const FIN: u8 = 0x80;
const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const WS_PING: u8 = 0x9;
const WS_PONG: u8 = 0xa;

/// Sends bytes and expects one `pusher:pong`.
async fn expect_pong(raw: &mut RawSocket, bytes: &[u8]) {
    raw.write(bytes).await;
    assert_eq!(raw.next().await.text(), PONG);
}

#[tokio::test]
async fn frames_may_come_byte_by_byte_and_many_at_once() {
    let server = Server::start().await;
    let mut raw = server.connect_raw().await;
    for byte in [text_frame(PING), frame(FIN | WS_PING, b"x")].concat() {
        raw.write(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(raw.next().await.text(), PONG);
    assert_eq!(raw.next().await.first, FIN | WS_PONG);
    raw.write(&text_frame(PING).repeat(100)).await;
    for _ in 0..100 {
        assert_eq!(raw.next().await.text(), PONG);
    }
}

#[tokio::test]
async fn any_mask_is_understood() {
    let server = Server::start().await;
    let mut raw = server.connect_raw().await;
    for mask in [[0, 0, 0, 0], [0xff, 0xff, 0xff, 0xff], [1, 0, 0, 0], [0x7b, 0x22, 0x65, 0x76]] {
        let payload = PING.bytes().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        let mut bytes = vec![FIN | TEXT, 0x80 | PING.len() as u8];
        bytes.extend(mask);
        bytes.extend(payload);
        expect_pong(&mut raw, &bytes).await;
    }
}

#[tokio::test]
async fn frames_after_a_close_are_ignored() {
    let server = Server::start().await;
    let mut listener = server.connect().await;
    listener.subscribe("private-room").await;
    let mut sender = server.connect().await;
    sender.subscribe("private-room").await;
    let mut raw = server.connect_raw().await;
    let close = frame(FIN | CLOSE, &1000u16.to_be_bytes());
    raw.write(&[close, text_frame(PING), frame(FIN | WS_PING, b"x")].concat()).await;
    raw.expect_close(1000).await;
    listener.fence().await;
    sender.fence().await;
}

#[tokio::test]
async fn a_client_that_disconnects_without_a_close_is_removed() {
    let server = Server::start().await;
    let mut listener = server.connect().await;
    listener.join("presence-room", serde_json::json!({ "user_id": "1" })).await;
    for amid in [&b""[..], &[0x81], &frame_head(FIN | TEXT, 100), &frame(TEXT, b"{")] {
        let mut member = server.connect().await;
        member.join("presence-room", serde_json::json!({ "user_id": "7" })).await;
        listener.expect_event("pusher_internal:member_added", "presence-room").await;
        drop(member);
        listener.expect_event("pusher_internal:member_removed", "presence-room").await;
        let mut raw = server.connect_raw().await;
        raw.write(amid).await;
        drop(raw);
    }
    server.has_connections(1).await;
}
