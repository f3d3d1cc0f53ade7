//! WebSocket framing. Source: RFC 6455 §5 to §8; protocol.md §1.3.

use futures_util::future::join_all;

use crate::harness::{Frame, RawSocket, Server, frame, frame_head, text_frame, unmasked_frame};

const PING: &str = r#"{"event":"pusher:ping","data":{}}"#;
const PONG: &str = r#"{"event":"pusher:pong","data":"{}"}"#;

const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const WS_PING: u8 = 0x9;
const WS_PONG: u8 = 0xa;

/// Sends these bytes over a new connection each, and expects it to be closed with `code`.
async fn assert_closed(server: &Server, code: u16, cases: impl IntoIterator<Item = (&'static str, Vec<u8>)>) {
    // All at once: none answers the Close, so the server waits a little before it ends them.
    join_all(cases.into_iter().map(async |(what, bytes)| {
        let mut raw = server.connect_raw().await;
        raw.write(&bytes).await;
        let Frame { first, payload } = raw.next().await;
        assert_eq!(first, FIN | CLOSE, "{what}: {}", String::from_utf8_lossy(&payload));
        assert_eq!(payload[..2], code.to_be_bytes(), "{what}: {}", String::from_utf8_lossy(&payload));
        raw.ends().await;
    }))
    .await;
    server.has_connections(0).await;
}

/// Sends these bytes and expects one pong of the protocol.
async fn expect_pong(raw: &mut RawSocket, bytes: &[u8]) {
    raw.write(bytes).await;
    assert_eq!(raw.next().await.text(), PONG);
}

#[tokio::test]
async fn a_frame_that_breaks_the_rules_is_closed_with_1002() {
    let server = Server::start().await;
    let ping = PING.as_bytes();
    assert_closed(
        &server,
        1002,
        [
            ("no mask", unmasked_frame(FIN | TEXT, ping)),
            ("no mask on a ping", unmasked_frame(FIN | WS_PING, b"")),
            ("no mask on a Close", unmasked_frame(FIN | CLOSE, &1000u16.to_be_bytes())),
            ("RSV1", frame(FIN | 0x40 | TEXT, ping)),
            ("RSV2", frame(FIN | 0x20 | TEXT, ping)),
            ("RSV3", frame(FIN | 0x10 | TEXT, ping)),
            ("RSV1 on a ping", frame(FIN | 0x40 | WS_PING, b"")),
            ("a fragmented ping", frame(WS_PING, b"")),
            ("a fragmented pong", frame(WS_PONG, b"")),
            ("a fragmented Close", frame(CLOSE, &1000u16.to_be_bytes())),
            ("a ping of 126 bytes", frame(FIN | WS_PING, &[0; 126])),
            ("a pong of 126 bytes", frame(FIN | WS_PONG, &[0; 126])),
            (
                "a Close of 126 bytes",
                frame(FIN | CLOSE, &[&1000u16.to_be_bytes()[..], &[b'x'; 124]].concat()),
            ),
            ("a continuation of nothing", frame(FIN | CONTINUATION, ping)),
            ("a first fragment that continues nothing", frame(CONTINUATION, ping)),
            ("a text amid a text", [frame(TEXT, b"{"), frame(FIN | TEXT, ping)].concat()),
            ("a fragment of another text amid a text", [frame(TEXT, b"{"), frame(TEXT, ping)].concat()),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_reserved_opcode_is_closed_with_1002() {
    let server = Server::start().await;
    let reserved = (0x3..=0x7).chain(0xb..=0xf);
    assert_closed(&server, 1002, reserved.map(|opcode| ("a reserved opcode", frame(FIN | opcode, b"x"))))
        .await;
}

#[tokio::test]
async fn a_binary_message_is_closed_with_1003() {
    let server = Server::start().await;
    assert_closed(
        &server,
        1003,
        [
            ("bytes", frame(FIN | 0x2, &[0, 1, 2])),
            ("JSON", frame(FIN | 0x2, PING.as_bytes())),
            ("nothing", frame(FIN | 0x2, b"")),
            ("in fragments", [frame(0x2, b"{"), frame(FIN | CONTINUATION, b"}")].concat()),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_text_that_is_not_utf_8_is_closed_with_1007() {
    let server = Server::start().await;
    assert_closed(
        &server,
        1007,
        [
            ("a byte that never is", frame(FIN | TEXT, b"{\"event\":\"\xff\"}")),
            ("a surrogate", frame(FIN | TEXT, b"\xed\xa0\x80")),
            ("an overlong form", frame(FIN | TEXT, b"\xc0\xaf")),
            ("beyond the last character", frame(FIN | TEXT, b"\xf4\x90\x80\x80")),
            ("half a character at the end", frame(FIN | TEXT, b"{\"event\":\"\xc3")),
            ("a lone continuation", frame(FIN | TEXT, b"\x80")),
            ("in fragments", [frame(TEXT, b"\xc3"), frame(FIN | CONTINUATION, b"(")].concat()),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_closed_with_1009_before_it_has_come() {
    let server = Server::start().await;
    let limit = 32 * 1024;
    let fragments = |count: usize| {
        let mut bytes = frame(TEXT, &[b' '; 1024]);
        (1..count).for_each(|_| bytes.extend(frame(CONTINUATION, &[b' '; 1024])));
        bytes
    };
    assert_closed(
        &server,
        1009,
        [
            ("one byte too many announced", frame_head(FIN | TEXT, limit + 1)),
            ("4 GB announced", frame_head(FIN | TEXT, 1 << 32)),
            ("2⁶³ − 1 bytes announced", frame_head(FIN | TEXT, u64::MAX >> 1)),
            ("too much in fragments", [fragments(32), frame(FIN | CONTINUATION, b"x")].concat()),
            ("too much announced amid fragments", [fragments(31), frame_head(CONTINUATION, 1025)].concat()),
        ],
    )
    .await;
    let mut raw = server.connect_raw().await;
    let mut fitting = fragments(31);
    let rest = format!("{PING}{}", " ".repeat(1024 - PING.len()));
    fitting.extend(frame(FIN | CONTINUATION, rest.as_bytes()));
    expect_pong(&mut raw, &fitting).await;
}

#[tokio::test]
async fn a_length_with_its_highest_bit_set_is_closed() {
    let server = Server::start().await;
    let mut raw = server.connect_raw().await;
    raw.write(&frame_head(FIN | TEXT, u64::MAX)).await;
    let frame = raw.next().await;
    assert!(matches!(frame.close().0, Some(1002 | 1009)), "{frame:?}");
    raw.ends().await;
}

#[tokio::test]
async fn a_message_may_come_in_fragments_with_control_frames_between() {
    let server = Server::start().await;
    let mut raw = server.connect_raw().await;
    let (one, rest) = PING.as_bytes().split_at(5);
    let (two, three) = rest.split_at(10);
    raw.write(&frame(TEXT, one)).await;
    raw.write(&frame(FIN | WS_PING, b"between")).await;
    let pong = raw.next().await;
    assert_eq!((pong.first, &*pong.payload), (FIN | WS_PONG, &b"between"[..]), "answered at once");
    raw.write(&frame(CONTINUATION, two)).await;
    raw.write(&frame(FIN | WS_PONG, b"unasked")).await;
    raw.write(&frame(CONTINUATION, b"")).await;
    expect_pong(&mut raw, &frame(FIN | CONTINUATION, three)).await;

    let fragments: Vec<u8> = PING.bytes().flat_map(|byte| frame(CONTINUATION, &[byte])).collect();
    let all = [frame(TEXT, b""), fragments, frame(FIN | CONTINUATION, b"")].concat();
    expect_pong(&mut raw, &all).await;
    raw.fence().await;
}

#[tokio::test]
async fn a_character_may_be_split_over_fragments() {
    let server = Server::start().await;
    let mut raw = server.connect_raw().await;
    let message = r#"{"event":"pusher:ping","data":"é😀"}"#;
    let fragments: Vec<u8> = message.bytes().flat_map(|byte| frame(CONTINUATION, &[byte])).collect();
    expect_pong(&mut raw, &[frame(TEXT, b""), fragments, frame(FIN | CONTINUATION, b"")].concat()).await;
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
async fn every_form_of_length_is_understood() {
    let server = Server::start().await;
    let mut raw = server.connect_raw().await;
    for length in [PING.len(), 125, 126, 127, 128, 1000, 32 * 1024] {
        let message = format!("{PING}{}", " ".repeat(length - PING.len()));
        expect_pong(&mut raw, &text_frame(&message)).await;
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
async fn a_close_is_answered_with_its_code_and_the_connection_ends() {
    let server = Server::start().await;
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4100, 4999] {
        let mut raw = server.connect_raw().await;
        raw.write(&frame(FIN | CLOSE, &[&u16::to_be_bytes(code)[..], b"going away"].concat())).await;
        raw.expect_close(code).await;
    }
    let mut raw = server.connect_raw().await;
    raw.write(&frame(FIN | CLOSE, b"")).await;
    let (code, _) = (raw.next().await.close().0, raw.ends().await);
    assert!(matches!(code, None | Some(1000)), "{code:?}");
    server.has_connections(0).await;
}

#[tokio::test]
async fn a_close_that_cannot_be_is_closed_with_1002() {
    let server = Server::start().await;
    let codes = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65_535];
    let codes =
        codes.map(|code| ("a code that is not to be sent", frame(FIN | CLOSE, &u16::to_be_bytes(code))));
    assert_closed(&server, 1002, codes.into_iter().chain([("half a code", frame(FIN | CLOSE, b"\x03"))]))
        .await;
}

#[tokio::test]
async fn a_reason_that_is_not_utf_8_is_closed() {
    let server = Server::start().await;
    let mut raw = server.connect_raw().await;
    raw.write(&frame(FIN | CLOSE, b"\x03\xe8\xff\xfe")).await;
    let frame = raw.next().await;
    assert!(matches!(frame.close().0, Some(1002 | 1007)), "{frame:?}");
    raw.ends().await;
}

#[tokio::test]
async fn what_follows_a_close_is_not_obeyed() {
    let server = Server::start().await;
    let mut listener = server.connect().await;
    listener.subscribe("private-room").await;
    let mut sender = server.connect().await;
    sender.subscribe("private-room").await;
    let mut raw = server.connect_raw().await;
    let farewell = frame(FIN | CLOSE, &1000u16.to_be_bytes());
    raw.write(&[farewell, text_frame(PING), frame(FIN | WS_PING, b"x")].concat()).await;
    raw.expect_close(1000).await;
    listener.fence().await;
    sender.fence().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_without_a_close_is_gone() {
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
