//! permessage-deflate. Source: RFC 7692.
//!
//! The client's side is flate2 without context takeover: it would not understand a server that kept a context.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use futures_util::future::join_all;
use pusherd::apps::App;
use serde_json::{Value, json};

use crate::harness::{Frame, NEWS, RawSocket, Server, channel_auth, frame, text_frame};

const OFFER: (&str, &str) = ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits");
const ANSWER: &str = "sec-websocket-extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n";

const PING: &str = r#"{"event":"pusher:ping","data":{}}"#;
const PONG: &str = r#"{"event":"pusher:pong","data":"{}"}"#;

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const WS_PING: u8 = 0x9;

/// "Hello". Source: RFC 7692 §7.2.3.1.
const HELLO: [u8; 7] = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];

/// The payload of a compressed message.
fn deflate(text: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(text.len() + 1024);
    let mut compress = Compress::new(Compression::best(), false);
    compress.compress_vec(text, &mut payload, FlushCompress::Sync).unwrap();
    assert_eq!(compress.total_in(), text.len() as u64);
    assert_eq!(payload.split_off(payload.len() - 4), [0x00, 0x00, 0xff, 0xff]);
    payload
}

fn inflate(payload: &[u8]) -> String {
    let mut text = Vec::with_capacity(1024 * 1024);
    let flushed = [payload, &[0x00, 0x00, 0xff, 0xff]].concat();
    Decompress::new(false).decompress_vec(&flushed, &mut text, FlushDecompress::Sync).unwrap();
    String::from_utf8(text).unwrap()
}

fn deflated_frame(text: &str) -> Vec<u8> {
    frame(FIN | RSV1 | TEXT, &deflate(text.as_bytes()))
}

/// An app that compresses messages of 300 bytes or more.
fn compressing(app: &mut App) {
    app.compression = true;
    app.compression_threshold_bytes = 300;
}

impl Server {
    async fn compressing() -> Self {
        Self::with_app(compressing).await
    }

    /// A connection that has negotiated compression.
    async fn connect_deflate(&self) -> RawSocket {
        let mut raw = RawSocket::over(self.tcp().await);
        let head = raw.upgrade_with("/app/demo-key", &[OFFER]).await;
        assert!(head.contains(ANSWER), "{head}");
        raw
    }
}

impl RawSocket {
    /// The next message, and whether it was compressed.
    async fn next_message(&mut self) -> (bool, Value) {
        let frame = self.next().await;
        let compressed = frame.first == FIN | RSV1 | TEXT;
        let text = if compressed { inflate(&frame.payload) } else { frame.text().to_owned() };
        (compressed, serde_json::from_str(&text).unwrap())
    }

    async fn expect_message(&mut self, compressed: bool, expected: &Value) {
        let (came_compressed, message) = self.next_message().await;
        assert_eq!(message, *expected);
        assert_eq!(came_compressed, compressed, "{message}");
    }

    async fn join(&mut self, channel: &str) {
        let auth = channel_auth(&self.id, channel, None);
        let subscribe =
            json!({ "event": "pusher:subscribe", "data": { "channel": channel, "auth": auth } }).to_string();
        self.write(&text_frame(&subscribe)).await;
        self.expect_message(false, &subscribed(channel)).await;
    }
}

fn subscribed(channel: &str) -> Value {
    json!({ "event": "pusher_internal:subscription_succeeded", "channel": channel, "data": "{}" })
}

fn event(channel: &str, name: &str, data: &str) -> Value {
    json!({ "event": name, "channel": channel, "data": data })
}

/// Data that is long enough to be compressed, and shrinks.
fn long(word: &str) -> String {
    format!("{word} and more of it. ").repeat(30)
}

#[tokio::test]
async fn compression_needs_the_setting_of_the_app_and_an_offer_of_the_client() {
    let server = Server::compressing().await;
    let offers: [(&[(&str, &str)], bool); _] = [
        (&[], false),
        (&[OFFER], true),
        (&[("Sec-WebSocket-Extensions", "x-webkit-deflate-frame")], false),
        (&[("Sec-WebSocket-Extensions", "permessage-deflate; server_max_window_bits=10")], false),
        (&[("Sec-WebSocket-Extensions", "permessage-deflate; server_max_window_bits=10"), OFFER], true),
        (
            &[(
                "Sec-WebSocket-Extensions",
                "permessage-deflate; server_max_window_bits=10, permessage-deflate",
            )],
            true,
        ),
    ];
    for (headers, expected) in offers {
        let head = RawSocket::over(server.tcp().await).upgrade_with("/app/demo-key", headers).await;
        assert_eq!(head.contains("sec-websocket-extensions"), expected, "{headers:?}: {head}");
        assert_eq!(head.contains(ANSWER), expected, "{headers:?}: {head}");
    }
    let window = [("Sec-WebSocket-Extensions", "permessage-deflate; server_max_window_bits=15")];
    let head = RawSocket::over(server.tcp().await).upgrade_with("/app/demo-key", &window).await;
    assert!(head.contains("client_no_context_takeover; server_max_window_bits=15\r\n"), "{head}");

    let head = RawSocket::over(server.tcp().await).upgrade_with("/app/other-key", &[OFFER]).await;
    assert!(!head.contains("extensions"), "the other app says nothing of compression: {head}");
    let offer = [("sec-websocket-extensions", OFFER.1)];
    let unknown = server.upgrade("/app/nope", &offer).await;
    assert_eq!(unknown.header("sec-websocket-extensions"), None);
    unknown.rejected(4001).await;
}

#[tokio::test]
async fn messages_over_the_threshold_are_compressed() {
    let server = Server::compressing().await;
    let (mut deflate, mut plain) = (server.connect_deflate().await, server.connect_raw().await);
    for raw in [&mut deflate, &mut plain] {
        raw.join(NEWS).await;
    }
    let around = event(NEWS, "e", "").to_string().len();
    for (data, compressed) in [
        ("short".to_owned(), false),
        (long("long"), true),
        ("x".repeat(299 - around), false),
        ("x".repeat(300 - around), true),
        (long("Grüße 😀"), true),
        ("x".repeat(100_000), true),
    ] {
        server.publish(NEWS, "e", &data).await;
        deflate.expect_message(compressed, &event(NEWS, "e", &data)).await;
        plain.expect_message(false, &event(NEWS, "e", &data)).await;
    }
}

#[tokio::test]
async fn messages_that_compression_does_not_shrink_are_sent_uncompressed() {
    let server = Server::with_app(|app| {
        app.compression = true;
        app.compression_threshold_bytes = 0;
    })
    .await;
    let mut raw = server.connect_deflate().await;
    raw.join(NEWS).await;
    server.publish(NEWS, "e", "").await;
    raw.expect_message(false, &event(NEWS, "e", "")).await;
    server.publish(NEWS, "e", &"x".repeat(50)).await;
    raw.expect_message(true, &event(NEWS, "e", &"x".repeat(50))).await;
}

#[tokio::test]
async fn a_batch_is_delivered_in_order_and_without_the_excluded_sockets() {
    let server = Server::compressing().await;
    let mut one = server.connect_deflate().await;
    let mut two = server.connect_deflate().await;
    let mut plain = server.connect_raw().await;
    for raw in [&mut one, &mut two, &mut plain] {
        raw.join(NEWS).await;
    }
    let events: Vec<_> = (0..10)
        .map(|at| {
            let data = if at % 3 == 0 { format!("short {at}") } else { long(&format!("long {at}")) };
            let except = [None, Some(one.id.clone()), Some(plain.id.clone())][at % 3].clone();
            (format!("e{at}"), data, except)
        })
        .collect();
    let batch: Vec<_> = events
        .iter()
        .map(|(name, data, except)| json!({ "channel": NEWS, "name": name, "data": data, "socket_id": except }))
        .collect();
    server.post_json("/apps/1001/batch_events", json!({ "batch": batch })).await.ok();
    for (raw, deflates) in [(&mut one, true), (&mut two, true), (&mut plain, false)] {
        for (name, data, except) in &events {
            if except.as_ref() != Some(&raw.id) {
                raw.expect_message(deflates && data.len() > 300, &event(NEWS, name, data)).await;
            }
        }
        raw.fence().await;
    }
}

#[tokio::test]
async fn in_a_large_channel_both_kinds_of_connections_get_everything_in_order() {
    const EVENTS: usize = 200;
    let server = Server::compressing().await;
    let mut subscribers = Vec::new();
    for at in 0..80 {
        let mut raw = if at % 2 == 0 { server.connect_deflate().await } else { server.connect_raw().await };
        raw.join(NEWS).await;
        subscribers.push(raw);
    }
    let data = |at: usize| if at.is_multiple_of(4) { at.to_string() } else { long(&at.to_string()) };
    let reading = join_all(subscribers.iter_mut().enumerate().map(async |(place, raw)| {
        for at in 0..EVENTS {
            raw.expect_message(place % 2 == 0 && at % 4 != 0, &event(NEWS, "e", &data(at))).await;
        }
    }));
    let publishing = async {
        for first in (0..EVENTS).step_by(10) {
            let batch: Vec<_> = (first..first + 10)
                .map(|at| json!({ "channel": NEWS, "name": "e", "data": data(at) }))
                .collect();
            server.post_json("/apps/1001/batch_events", json!({ "batch": batch })).await.ok();
        }
    };
    tokio::join!(reading, publishing);
}

#[tokio::test]
async fn a_replayed_cached_event_is_not_compressed() {
    let server = Server::compressing().await;
    let data = long("price");
    server.publish("cache-btc", "price", &data).await;
    let mut raw = server.connect_deflate().await;
    raw.join("cache-btc").await;
    raw.expect_message(false, &event("cache-btc", "price", &data)).await;
    server.publish("cache-btc", "price", &data).await;
    raw.expect_message(true, &event("cache-btc", "price", &data)).await;
}

#[tokio::test]
async fn a_client_may_compress_its_messages() {
    let server = Server::compressing().await;
    let mut listener = server.connect().await;
    listener.subscribe("private-room").await;
    let mut raw = server.connect_deflate().await;
    let auth = channel_auth(&raw.id, "private-room", None);
    let subscribe =
        json!({ "event": "pusher:subscribe", "data": { "channel": "private-room", "auth": auth } })
            .to_string();
    raw.write(&deflated_frame(&subscribe)).await;
    raw.expect_message(false, &subscribed("private-room")).await;
    let whisper = json!({ "event": "client-typing", "channel": "private-room", "data": { "name": "Zoë" } });
    raw.write(&deflated_frame(&whisper.to_string())).await;
    listener.expect(whisper.clone()).await;

    // Uncompressed messages are allowed as well, and fragments work as in any message.
    raw.write(&text_frame(&whisper.to_string())).await;
    listener.expect(whisper.clone()).await;
    let payload = deflate(whisper.to_string().as_bytes());
    let (one, two) = payload.split_at(payload.len() / 2);
    raw.write(&frame(RSV1 | TEXT, one)).await;
    raw.write(&frame(FIN | WS_PING, b"between")).await;
    let pong = raw.next().await;
    assert_eq!((pong.first, &*pong.payload), (0x8a, &b"between"[..]));
    raw.write(&frame(CONTINUATION, b"")).await;
    raw.write(&frame(FIN | CONTINUATION, two)).await;
    listener.expect(whisper).await;
    raw.fence().await;
}

#[tokio::test]
async fn messages_that_are_compressed_in_every_permitted_way_are_understood() {
    let server = Server::compressing().await;
    let mut raw = server.connect_deflate().await;
    let stored = |last: u8| {
        let len = PING.len() as u16;
        [&[last][..], &len.to_le_bytes(), &(!len).to_le_bytes(), PING.as_bytes()].concat()
    };
    let long_ping = format!("{PING}{}", " ".repeat(32 * 1024 - PING.len()));
    for payload in [
        deflate(PING.as_bytes()),
        [&stored(0)[..], &[0]].concat(),
        [&stored(1)[..], &[0]].concat(),
        stored(1),
        deflate(long_ping.as_bytes()),
    ] {
        raw.write(&frame(FIN | RSV1 | TEXT, &payload)).await;
        assert_eq!(raw.next().await.text(), PONG);
    }
    raw.write(&deflated_frame(PING).repeat(100)).await;
    for _ in 0..100 {
        assert_eq!(raw.next().await.text(), PONG);
    }
}

#[tokio::test]
async fn violations_of_compression_are_closed_with_their_codes() {
    let server = Server::compressing().await;
    let bomb = deflate(&[b' '; 1024 * 1024]);
    assert!(bomb.len() < 4096);
    let (one, two) = bomb.split_at(bomb.len() / 2);
    let over = deflate(&[b' '; 32 * 1024 + 1]);
    let table = [
        (1002, "on a ping", frame(FIN | RSV1 | WS_PING, b"")),
        (1002, "on a Close", frame(FIN | RSV1 | CLOSE, &1000u16.to_be_bytes())),
        (
            1002,
            "on a continuation",
            [frame(RSV1 | TEXT, &HELLO[..3]), frame(FIN | RSV1, &HELLO[3..])].concat(),
        ),
        (1002, "on a continuation only", [frame(TEXT, b"{"), frame(FIN | RSV1, &HELLO)].concat()),
        (1002, "RSV2", frame(FIN | 0x20 | TEXT, &HELLO)),
        (1002, "RSV1 and RSV3", frame(FIN | RSV1 | 0x10 | TEXT, &HELLO)),
        (1003, "binary", frame(FIN | RSV1 | BINARY, &HELLO)),
        (1007, "not compressed", frame(FIN | RSV1 | TEXT, PING.as_bytes())),
        (1007, "noise", frame(FIN | RSV1 | TEXT, &[0xff; 100])),
        (1007, "cut short", frame(FIN | RSV1 | TEXT, &HELLO[..4])),
        (
            1007,
            "cut short in fragments",
            [frame(RSV1 | TEXT, &HELLO[..2]), frame(FIN, &HELLO[2..4])].concat(),
        ),
        (1007, "not UTF-8", frame(FIN | RSV1 | TEXT, &deflate(b"{\"event\":\"\xff\"}"))),
        (1009, "a bomb", frame(FIN | RSV1 | TEXT, &bomb)),
        (1009, "a bomb in fragments", [frame(RSV1 | TEXT, one), frame(FIN, two)].concat()),
        (1009, "one byte too many", frame(FIN | RSV1 | TEXT, &over)),
    ];
    join_all(table.into_iter().map(async |(code, what, bytes)| {
        let mut raw = server.connect_deflate().await;
        raw.write(&bytes).await;
        let frame = raw.next().await;
        assert_eq!(frame.first, FIN | CLOSE, "{what}: {frame:?}");
        assert_eq!(frame.close().0, Some(code), "{what}: {frame:?}");
        raw.ends().await;
    }))
    .await;
    server.has_connections(0).await;
}

#[tokio::test]
async fn a_compressed_frame_without_negotiation_is_closed() {
    let server = Server::compressing().await;
    let mut raw = server.connect_raw().await;
    raw.write(&deflated_frame(PING)).await;
    let frame: Frame = raw.next().await;
    assert_eq!(frame.close().0, Some(1002));
    raw.ends().await;
}
