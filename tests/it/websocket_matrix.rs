//! RFC 6455, case by case, in the sections of the Autobahn test suite: 1 framing, 2 pings and pongs, 3 reserved bits,
//! 4 opcodes, 5 fragmentation, 6 UTF-8, 7 closing, 9 limits. (8 does not exist; 10, 12 and 13 test compression: see
//! `compression.rs`.)
//!
//! Autobahn's server echoes; pusherd replies to messages that it understands. Where Autobahn sends a text of some length,
//! these tests send a `pusher:ping` padded to that length, and expect `pusher:pong`. Where the text matters, it is in a
//! field that the server ignores. A text that is no message gets `pusher:error`. Binary messages are not part of the
//! protocol: they close the connection with 1003.
//!
//! Source: RFC 6455 §5 to §8; protocol.md §1.3, §2.8.

use futures_util::future::join_all;
use proptest::prelude::*;
use pusherd::apps::App;
use pusherd::limits::Rate;
use pusherd::protocol::wire::Form;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as AnyFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::harness::{Client, Frame, Server, frame, frame_head, unmasked_frame};

const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// The longest message of a client, in bytes.
const LIMIT: usize = 32 * 1024;

/// The texts that the server understands.
const PUSHER_PING: &str = r#"{"event":"pusher:ping"}"#;
const PUSHER_PONG: &str = r#"{"event":"pusher:pong","data":"{}"}"#;

/// One case: its section, what is sent, and the expected frames.
struct Case {
    section: &'static str,
    what: String,
    /// Chunks, each written by itself.
    sends: Vec<Vec<u8>>,
    answers: Vec<Answer>,
    end: End,
}

/// A frame before the end.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Answer {
    /// `pusher:pong`.
    Pusher,
    /// `pusher:error` without a code: the text is no message.
    Error,
    /// A Pong with this payload.
    Pong(Vec<u8>),
}

/// The end of a case.
#[derive(Clone, Copy, Debug)]
enum End {
    /// None: the connection stays open.
    Open,
    /// A Close with this code.
    Close(u16),
    /// A Close without a code.
    CloseWithoutCode,
}

fn case(
    section: &'static str,
    what: impl Into<String>,
    bytes: Vec<u8>,
    answers: &[Answer],
    end: End,
) -> Case {
    Case { section, what: what.into(), sends: vec![bytes], answers: answers.to_vec(), end }
}

/// A case that violates a rule.
fn broken(section: &'static str, what: impl Into<String>, bytes: Vec<u8>, code: u16) -> Case {
    case(section, what, bytes, &[], End::Close(code))
}

/// A case after which the connection stays open.
fn ok(section: &'static str, what: impl Into<String>, bytes: Vec<u8>, answers: &[Answer]) -> Case {
    case(section, what, bytes, answers, End::Open)
}

impl Case {
    /// The same bytes, in chunks of this size.
    fn in_chunks_of(mut self, bytes: usize) -> Self {
        self.sends = self.sends.concat().chunks(bytes).map(<[u8]>::to_vec).collect();
        self.what = format!("{}, in chunks of {bytes}", self.what);
        self
    }

    async fn run(self, server: &Server) {
        let case = format!("{}: {}", self.section, self.what);
        let mut raw = server.connect_raw().await;
        for chunk in &self.sends {
            // The server may close before everything is sent.
            let _ = raw.try_write(chunk).await;
            if self.sends.len() > 1 {
                tokio::task::yield_now().await;
            }
        }
        for answer in &self.answers {
            assert_eq!(read(&raw.next().await), *answer, "{case}");
        }
        let code = match self.end {
            End::Open => return raw.fence().await,
            End::Close(code) => Some(code),
            End::CloseWithoutCode => None,
        };
        let frame = raw.next().await;
        assert_eq!(frame.first, FIN | CLOSE, "{case}: {}", String::from_utf8_lossy(&frame.payload));
        assert_eq!(frame.close().0, code, "{case}");
        raw.ends().await;
    }
}

fn read(frame: &Frame) -> Answer {
    if frame.first == FIN | PONG {
        return Answer::Pong(frame.payload.clone());
    }
    match frame.text() {
        PUSHER_PONG => Answer::Pusher,
        text => {
            assert!(text.starts_with(r#"{"event":"pusher:error","data":{"code":null,"#), "{text}");
            Answer::Error
        }
    }
}

async fn run(cases: impl IntoIterator<Item = Case>) {
    let server = Server::start().await;
    let mut cases = cases.into_iter().peekable();
    assert!(cases.peek().is_some());
    // Concurrently: a client that does not reply to a Close waits for its end.
    while cases.peek().is_some() {
        join_all(cases.by_ref().take(100).map(|case| case.run(&server))).await;
    }
    server.has_connections(0).await;
    server.stop().await;
}

/// A message of this length that is answered with `pusher:pong`.
fn padded(bytes: usize) -> String {
    format!("{PUSHER_PING}{}", " ".repeat(bytes - PUSHER_PING.len()))
}

/// A message with `text`, as bytes, in a field that the server ignores.
fn with_text(text: &[u8]) -> Vec<u8> {
    [br#"{"event":"pusher:ping","x":""#, text, br#""}"#].concat()
}

/// A message in fragments of these sizes; the last one has the rest.
fn fragments(opcode: u8, message: &[u8], sizes: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let (mut bytes, mut rest, mut first) = (Vec::new(), message, opcode);
    for size in sizes {
        let (piece, after) = rest.split_at(size.min(rest.len()));
        bytes.extend(frame(first, piece));
        (first, rest) = (CONTINUATION, after);
    }
    bytes.extend(frame(FIN | first, rest));
    bytes
}

/// The beginning of a text: `count` fragments of this size, without the last one.
fn begun(count: usize, size: usize) -> Vec<u8> {
    let first = |at| if at == 0 { TEXT } else { CONTINUATION };
    (0..count).flat_map(|at| frame(first(at), &vec![b' '; size])).collect()
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(FIN | CLOSE, &[&code.to_be_bytes(), reason].concat())
}

#[tokio::test]
async fn section_1_framing() {
    let text = |bytes: usize| frame(FIN | TEXT, padded(bytes).as_bytes());
    let lengths = [PUSHER_PING.len(), 125, 126, 127, 128, 1000, LIMIT - 1, LIMIT];
    let mut cases =
        vec![ok("1.1.1", "an empty text is no message", frame(FIN | TEXT, b""), &[Answer::Error])];
    cases.extend(
        lengths.map(|bytes| ok("1.1", format!("a text of {bytes} bytes"), text(bytes), &[Answer::Pusher])),
    );
    for bytes in [997, 1] {
        cases.push(ok("1.1.8", "a text of 5000 bytes", text(5000), &[Answer::Pusher]).in_chunks_of(bytes));
    }
    for bytes in [65_535, 65_536] {
        cases.push(broken("1.1", format!("a text of {bytes} bytes"), text(bytes), 1009));
    }
    for bytes in [0, 125, 126, 127, 128, 1000, LIMIT] {
        cases.push(broken(
            "1.2",
            format!("a binary message of {bytes} bytes"),
            frame(FIN | BINARY, &vec![0xfe; bytes]),
            1003,
        ));
    }
    for bytes in [65_535, 65_536] {
        cases.push(broken(
            "1.2",
            format!("a binary message of {bytes} bytes"),
            frame(FIN | BINARY, &vec![0xfe; bytes]),
            1009,
        ));
    }
    run(cases).await;
}

#[tokio::test]
async fn section_2_pings_and_pongs() {
    let ping = |payload: &[u8]| frame(FIN | PING, payload);
    let pong = |payload: &[u8]| Answer::Pong(payload.to_vec());
    let text = frame(FIN | TEXT, PUSHER_PING.as_bytes());
    run([
        ok("2.1", "a ping without payload", ping(b""), &[pong(b"")]),
        ok("2.2", "a ping with a text", ping(b"Hello, world!"), &[pong(b"Hello, world!")]),
        ok(
            "2.3",
            "a ping that is not UTF-8",
            ping(b"\x00\xff\xfe\xfd\xfc\xfb"),
            &[pong(b"\x00\xff\xfe\xfd\xfc\xfb")],
        ),
        ok("2.4", "a ping of 125 bytes", ping(&[0xfe; 125]), &[pong(&[0xfe; 125])]),
        broken("2.5", "a ping of 126 bytes", ping(&[0xfe; 126]), 1002),
        ok("2.6", "a ping of 125 bytes", ping(&[0xfe; 125]), &[pong(&[0xfe; 125])]).in_chunks_of(1),
        ok("2.7", "a pong that nobody asked for", frame(FIN | PONG, b""), &[]),
        ok("2.8", "such a pong with a payload", frame(FIN | PONG, b"unasked"), &[]),
        ok(
            "2.9",
            "such a pong, then a ping",
            [frame(FIN | PONG, b"unasked"), ping(b"asked")].concat(),
            &[pong(b"asked")],
        ),
        broken("2.5", "a pong of 126 bytes", frame(FIN | PONG, &[0xfe; 126]), 1002),
        broken(
            "2.5",
            "a ping with a long length for few bytes",
            [&[FIN | PING, 0x80 | 126, 0, 5][..], b"maskhello"].concat(),
            1002,
        ),
        ok("2", "a ping behind a text", [text, ping(b"x")].concat(), &[Answer::Pusher, pong(b"x")]),
    ])
    .await;
}

#[tokio::test]
async fn section_2_10_and_2_11_ten_pings() {
    let server = Server::start().await;
    let payload = |at: usize| format!("payload {at}").into_bytes();
    let mut raw = server.connect_raw().await;
    for at in 0..10 {
        raw.write(&frame(FIN | PING, &payload(at))).await;
        assert_eq!(
            read(&raw.next().await),
            Answer::Pong(payload(at)),
            "one after the other, each is answered"
        );
    }
    // At once, or in chunks: an endpoint may answer only the last ping it has seen (RFC 6455 §5.5.3). So some pongs are
    // missing, none comes twice or before an earlier one, and the last is there.
    let all: Vec<u8> = (0..10).flat_map(|at| frame(FIN | PING, &payload(at))).collect();
    for piece in [all.len(), 1] {
        let mut raw = server.connect_raw().await;
        for bytes in all.chunks(piece) {
            raw.write(bytes).await;
            tokio::task::yield_now().await;
        }
        let mut next = 0;
        while next < 10 {
            let Answer::Pong(answered) = read(&raw.next().await) else { panic!("a pong") };
            let at = (next..10).find(|at| payload(*at) == answered).expect("a pong for a later ping");
            next = at + 1;
        }
        raw.fence().await;
    }
}

#[tokio::test]
async fn section_3_reserved_bits() {
    let ping = PUSHER_PING.as_bytes();
    let mut cases = Vec::new();
    for bits in 1..8u8 {
        let first = FIN | bits << 4;
        for (what, opcode, payload) in [
            ("text", TEXT, ping),
            ("binary", BINARY, b"x"),
            ("ping", PING, b"x"),
            ("pong", PONG, b""),
            ("Close", CLOSE, b"\x03\xe8"),
        ] {
            cases.push(broken(
                "3",
                format!("bits {bits:03b} on a {what}"),
                frame(first | opcode, payload),
                1002,
            ));
        }
        let amid = [frame(TEXT, b"{"), frame(first, b"}")].concat();
        cases.push(broken("3", format!("bits {bits:03b} on a continuation"), amid, 1002));
        let good = frame(FIN | TEXT, ping);
        cases.push(case(
            "3.2",
            format!("bits {bits:03b} behind a text that is good"),
            [good, frame(first | TEXT, ping), frame(FIN | PING, b"")].concat(),
            &[Answer::Pusher],
            End::Close(1002),
        ));
    }
    let in_chunks = broken("3.3", "bits 011 on a text", frame(FIN | 0x30 | TEXT, ping), 1002).in_chunks_of(1);
    run(cases.into_iter().chain([in_chunks])).await;
}

#[tokio::test]
async fn section_4_opcodes() {
    let ping = PUSHER_PING.as_bytes();
    let mut cases = Vec::new();
    for opcode in (0x3..=0x7).chain(0xb..=0xf) {
        for (what, payload) in [("without payload", &b""[..]), ("with a payload", b"x")] {
            cases.push(broken("4", format!("opcode {opcode:#x} {what}"), frame(FIN | opcode, payload), 1002));
        }
        cases.push(broken("4", format!("opcode {opcode:#x}, not the last of it"), frame(opcode, b"x"), 1002));
        let behind = [frame(FIN | TEXT, ping), frame(FIN | opcode, b"x"), frame(FIN | PING, b"")].concat();
        cases.push(case(
            "4",
            format!("opcode {opcode:#x} behind a text"),
            behind,
            &[Answer::Pusher],
            End::Close(1002),
        ));
        let amid = [frame(TEXT, b"{"), frame(FIN | opcode, b"")].concat();
        cases.push(broken("4", format!("opcode {opcode:#x} amid a text"), amid, 1002));
    }
    run(cases).await;
}

#[tokio::test]
async fn section_5_fragmentation() {
    let message = with_text("wörld 😀".as_bytes());
    let (one, rest) = message.split_at(7);
    let (two, three) = rest.split_at(20);
    let first = || frame(TEXT, one);
    let middle = || frame(CONTINUATION, two);
    let last = || frame(FIN | CONTINUATION, three);
    let ping = || frame(FIN | PING, b"now");
    let pong = Answer::Pong(b"now".to_vec());
    let whole = || frame(FIN | TEXT, PUSHER_PING.as_bytes());
    let cases = [
        broken(
            "5.1",
            "a ping in two fragments",
            [frame(PING, b"a"), frame(FIN | CONTINUATION, b"b")].concat(),
            1002,
        ),
        broken(
            "5.2",
            "a pong in two fragments",
            [frame(PONG, b"a"), frame(FIN | CONTINUATION, b"b")].concat(),
            1002,
        ),
        broken(
            "5.2",
            "a Close in two fragments",
            [frame(CLOSE, b"\x03"), frame(FIN | CONTINUATION, b"\xe8")].concat(),
            1002,
        ),
        ok("5.3", "two fragments", fragments(TEXT, &message, [7]), &[Answer::Pusher]),
        ok("5.5", "two fragments", fragments(TEXT, &message, [7]), &[Answer::Pusher]).in_chunks_of(1),
        ok(
            "5.6",
            "a ping in between",
            [first(), ping(), frame(FIN, rest)].concat(),
            &[pong.clone(), Answer::Pusher],
        ),
        ok(
            "5.8",
            "a ping in between",
            [first(), ping(), frame(FIN, rest)].concat(),
            &[pong.clone(), Answer::Pusher],
        )
        .in_chunks_of(1),
        broken("5.9", "a continuation of nothing", [frame(FIN, &message), whole()].concat(), 1002),
        broken("5.10", "a continuation of nothing", [frame(FIN, &message), whole()].concat(), 1002)
            .in_chunks_of(1),
        broken(
            "5.12",
            "a first fragment that continues nothing",
            [frame(CONTINUATION, &message), whole()].concat(),
            1002,
        ),
        case(
            "5.15",
            "two fragments, then two that continue nothing",
            [fragments(TEXT, &message, [7]), frame(CONTINUATION, one), last()].concat(),
            &[Answer::Pusher],
            End::Close(1002),
        ),
        broken(
            "5.16",
            "continuations of nothing around a text",
            [frame(CONTINUATION, one), whole(), last()].concat(),
            1002,
        ),
        broken("5.18", "a text amid a text", [first(), whole()].concat(), 1002),
        broken("5.18", "a fragment of another text amid a text", [first(), first(), last()].concat(), 1002),
        broken("5.18", "a binary message amid a text", [first(), frame(FIN | BINARY, b"x")].concat(), 1002),
        ok(
            "5.19",
            "fragments with pings in between",
            [first(), ping(), middle(), frame(FIN | PONG, b""), last()].concat(),
            &[pong, Answer::Pusher],
        ),
        ok("5", "empty fragments", fragments(TEXT, &message, [0, 0, 7, 0, 20, 0]), &[Answer::Pusher]),
        ok("5", "a fragment a byte", fragments(TEXT, &message, vec![1; message.len()]), &[Answer::Pusher]),
        ok("5", "nothing but empty fragments", fragments(TEXT, b"", [0, 0]), &[Answer::Error]),
        broken("5", "a binary message in fragments", fragments(BINARY, b"xy", [1]), 1003),
        broken("5", "a Close amid a text", [first(), close(1000, b""), last()].concat(), 1000),
    ];
    run(cases).await;
}

#[tokio::test]
async fn section_5_a_ping_within_a_fragmented_text_is_answered_at_once() {
    let server = Server::start().await;
    let mut raw = server.connect_raw().await;
    let (one, rest) = PUSHER_PING.as_bytes().split_at(9);
    raw.write(&[frame(TEXT, one), frame(FIN | PING, b"between")].concat()).await;
    assert_eq!(read(&raw.next().await), Answer::Pong(b"between".to_vec()));
    raw.write(&frame(FIN | CONTINUATION, rest)).await;
    assert_eq!(read(&raw.next().await), Answer::Pusher);
}

/// Valid UTF-8. Source: Autobahn 6.2, 6.5 to 6.7, 6.9, 6.11, 6.22, 6.23; Markus Kuhn's stress test.
const UTF_8: [&[u8]; 26] = [
    "Hello-µ@ßöäüàá-UTF-8!!".as_bytes(),
    "κόσμε".as_bytes(),
    // The first and the last code point of each length, and around the surrogates.
    b"\x7f",
    b"\xc2\x80",
    b"\xdf\xbf",
    b"\xe0\xa0\x80",
    b"\xed\x9f\xbf",
    b"\xee\x80\x80",
    b"\xef\xbf\xbd",
    b"\xef\xbf\xbf",
    b"\xf0\x90\x80\x80",
    b"\xf4\x8f\xbf\xbf",
    // Noncharacters are valid in UTF-8.
    b"\xef\xbf\xbe",
    b"\xf0\x9f\xbf\xbe",
    b"\xf0\x9f\xbf\xbf",
    b"\xf0\xaf\xbf\xbe",
    b"\xf0\xaf\xbf\xbf",
    b"\xf1\x8f\xbf\xbe",
    b"\xf1\x8f\xbf\xbf",
    b"\xf1\xbf\xbf\xbe",
    b"\xf2\x8f\xbf\xbf",
    b"\xf3\xbf\xbf\xbe",
    b"\xf3\xbf\xbf\xbf",
    b"\xf4\x8f\xbf\xbe",
    "한국말 ありがとう".as_bytes(),
    "😀🏳️‍🌈".as_bytes(),
];

/// Invalid UTF-8. Source: Autobahn 6.3, 6.8, 6.10, 6.12 to 6.21; Markus Kuhn's stress test.
const NOT_UTF_8: [&[u8]; 47] = [
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80\x65\x64\x69\x74\x65\x64",
    // Five and six bytes.
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
    b"\xf7\xbf\xbf\xbf",
    b"\xfb\xbf\xbf\xbf\xbf",
    b"\xfd\xbf\xbf\xbf\xbf\xbf",
    // Beyond the last code point.
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    // Continuation bytes without a first byte.
    b"\x80",
    b"\xbf",
    b"\x80\xbf",
    b"\x80\xbf\x80\xbf\x80",
    // First bytes without continuation bytes.
    b"\xc0 \xc1 \xc2 \xdf ",
    b"\xe0 \xe7 \xef ",
    b"\xf0 \xf4 \xf7 ",
    b"\xf8 \xfb ",
    b"\xfc \xfd ",
    // The last byte is missing.
    b"\xc0",
    b"\xc3",
    b"\xe0\x80",
    b"\xe2\x82",
    b"\xf0\x80\x80",
    b"\xf0\x9f\x98",
    b"\xf8\x80\x80\x80",
    b"\xdf",
    b"\xef\xbf",
    b"\xc3\xe2\x82\xf0\x9f\x98",
    // Bytes that are never valid.
    b"\xfe",
    b"\xff",
    b"\xfe\xfe\xff\xff",
    // Overlong encodings.
    b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xf8\x80\x80\x80\xaf",
    b"\xfc\x80\x80\x80\x80\xaf",
    b"\xc1\xbf",
    b"\xe0\x9f\xbf",
    b"\xf0\x8f\xbf\xbf",
    b"\xc0\x80",
    b"\xe0\x80\x80",
    // Surrogates, single and in pairs.
    b"\xed\xa0\x80",
    b"\xed\xad\xbf",
    b"\xed\xae\x80",
    b"\xed\xb0\x80",
    b"\xed\xbf\xbf",
    b"\xed\xa0\x80\xed\xb0\x80",
    b"\xed\xaf\xbf\xed\xbf\xbf",
];

#[tokio::test]
async fn section_6_utf_8() {
    let whole = UTF_8.map(|text| {
        ok("6.2", format!("{text:02x?}"), frame(FIN | TEXT, &with_text(text)), &[Answer::Pusher])
    });
    let split = UTF_8.iter().flat_map(|text| {
        let message = with_text(text);
        let start = with_text(b"").len() - 2;
        (0..=text.len()).map(move |at| {
            ok(
                "6.2.3",
                format!("{text:02x?} cut at {at}"),
                fragments(TEXT, &message, [start + at]),
                &[Answer::Pusher],
            )
        })
    });
    let by_byte = UTF_8.map(|text| {
        let message = with_text(text);
        ok(
            "6.2.4",
            format!("{text:02x?}, a fragment a byte"),
            fragments(TEXT, &message, vec![1; message.len()]),
            &[Answer::Pusher],
        )
    });
    run(whole.into_iter().chain(split).chain(by_byte)).await;
}

#[tokio::test]
async fn section_6_not_utf_8() {
    let whole = NOT_UTF_8
        .map(|text| broken("6.3", format!("{text:02x?}"), frame(FIN | TEXT, &with_text(text)), 1007));
    let alone =
        NOT_UTF_8.map(|text| broken("6.3", format!("{text:02x?} alone"), frame(FIN | TEXT, text), 1007));
    let split = NOT_UTF_8.iter().flat_map(|text| {
        (0..=text.len()).map(move |at| {
            broken("6.3.2", format!("{text:02x?} cut at {at}"), fragments(TEXT, text, [at]), 1007)
        })
    });
    run(whole.into_iter().chain(alone).chain(split)).await;
}

#[tokio::test]
async fn section_7_closing() {
    let text = || frame(FIN | TEXT, PUSHER_PING.as_bytes());
    let long = frame(FIN | TEXT, &[b' '; LIMIT]);
    let mut cases = vec![
        case(
            "7.1.1",
            "a text, then a Close",
            [text(), close(1000, b"")].concat(),
            &[Answer::Pusher],
            End::Close(1000),
        ),
        broken("7.1.2", "two Closes", [close(1000, b""), close(1000, b"")].concat(), 1000),
        broken("7.1.3", "a ping behind a Close", [close(1000, b""), frame(FIN | PING, b"x")].concat(), 1000),
        broken("7.1.4", "a text behind a Close", [close(1000, b""), text()].concat(), 1000),
        broken(
            "7.1.5",
            "a Close amid a text",
            [frame(TEXT, b"{"), close(1000, b""), frame(FIN, b"}")].concat(),
            1000,
        ),
        case(
            "7.1.6",
            "a long text, then a Close",
            [long, close(1000, b"")].concat(),
            &[Answer::Error],
            End::Close(1000),
        ),
        case("7.3.1", "a Close without payload", frame(FIN | CLOSE, b""), &[], End::CloseWithoutCode),
        broken("7.3.2", "half a code", frame(FIN | CLOSE, b"\x03"), 1002),
        broken("7.3.4", "a reason", close(1000, b"Goodbye"), 1000),
        broken("7.3.5", "a reason of 123 bytes", close(1000, &[b'*'; 123]), 1000),
        broken("7.3.6", "a reason of 124 bytes", close(1000, &[b'*'; 124]), 1002),
        broken("7.5.1", "a reason that is not UTF-8", close(1000, NOT_UTF_8[0]), 1007),
        broken("7.5.1", "a reason that is cut amid a character", close(1000, b"\xc3"), 1007),
        broken("7.5", "a reason in any script", close(1000, "κόσμε😀".as_bytes()), 1000),
    ];
    for code in
        [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4100, 4999]
    {
        cases.push(broken("7.7", format!("code {code}"), close(code, b""), code));
    }
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 32_768, 65_535] {
        cases.push(broken("7.9, 7.13", format!("code {code}, not to be sent"), close(code, b""), 1002));
        cases.push(broken("7.9, 7.13", format!("code {code} and a reason"), close(code, b"reason"), 1002));
    }
    run(cases).await;
}

#[tokio::test]
async fn section_9_limits() {
    let mut cases = Vec::new();
    for bytes in [1024, 4096, 16 * 1024, LIMIT] {
        let message = padded(bytes);
        for size in [64, 256, 1024, 4096, bytes] {
            let sent = fragments(TEXT, message.as_bytes(), vec![size; (bytes / size).saturating_sub(1)]);
            cases.push(ok(
                "9.1, 9.3",
                format!("{bytes} bytes in fragments of {size}"),
                sent,
                &[Answer::Pusher],
            ));
        }
    }
    for size in [64, 512, 1024, 2048] {
        let sent = frame(FIN | TEXT, padded(LIMIT).as_bytes());
        cases.push(ok("9.5", format!("{LIMIT} bytes"), sent, &[Answer::Pusher]).in_chunks_of(size));
    }
    // One byte more than the limit is rejected when it is announced.
    let announced = [LIMIT as u64 + 1, 1 << 16, 1 << 32, u64::MAX >> 1, u64::MAX];
    cases.extend(
        announced.map(|bytes| {
            broken("9", format!("{bytes} bytes announced"), frame_head(FIN | TEXT, bytes), 1009)
        }),
    );
    cases.extend(announced.map(|bytes| {
        broken("9.2", format!("{bytes} binary bytes announced"), frame_head(FIN | BINARY, bytes), 1009)
    }));
    for size in [64, 1024, LIMIT] {
        let over = [begun(LIMIT / size, size), frame(FIN | CONTINUATION, b"x")].concat();
        cases.push(broken("9.3", format!("{} bytes in fragments of {size}", LIMIT + 1), over, 1009));
        let first = if size == LIMIT { TEXT } else { CONTINUATION };
        let head = frame_head(FIN | first, size as u64 + 1);
        let over = [begun(LIMIT / size - 1, size), head].concat();
        cases.push(broken("9.3", format!("one too many announced behind fragments of {size}"), over, 1009));
    }
    run(cases).await;
}

#[tokio::test]
async fn an_unmasked_frame_is_closed_with_1002() {
    run([
        broken("§5.1", "a text", unmasked_frame(FIN | TEXT, PUSHER_PING.as_bytes()), 1002),
        broken("§5.1", "a ping", unmasked_frame(FIN | PING, b""), 1002),
        broken("§5.1", "a Close", unmasked_frame(FIN | CLOSE, b"\x03\xe8"), 1002),
        broken("§5.1", "a continuation", [frame(TEXT, b"{"), unmasked_frame(FIN, b"}")].concat(), 1002),
    ])
    .await;
}

/// Another library as the client, over all sizes and fragmentations.
#[tokio::test]
async fn messages_of_a_client_library_are_understood_in_all_sizes_and_fragments() {
    let unlimited = Rate { per_second: 1_000_000, burst: 1_000_000 };
    let server = Server::with_app(|app: &mut App| app.limits.messages = unlimited).await;
    let mut client = server.connect().await;
    let sizes = [23, 24, 60, 125, 126, 127, 200, 255, 256, 1000, 4095, 4096, 16_384, LIMIT - 1, LIMIT];
    for bytes in sizes {
        let message = padded(bytes);
        client.send_message(Message::text(message.clone())).await;
        expect_pong(&mut client).await;
        for size in [1, 2, 7, 125, 126, 1000, 16_384].into_iter().filter(|size| bytes / size < 300) {
            let pieces: Vec<_> = message.as_bytes().chunks(size).collect();
            let last = pieces.len() - 1;
            for (at, piece) in pieces.into_iter().enumerate() {
                let opcode = OpCode::Data(if at == 0 { Data::Text } else { Data::Continue });
                let frame = AnyFrame::message(piece.to_vec(), opcode, at == last);
                client.send_message(Message::Frame(frame)).await;
                if at % 7 == 3 {
                    client.send_message(Message::Ping(vec![at as u8].into())).await;
                }
            }
            expect_pong(&mut client).await;
        }
    }
    client.send_message(Message::Text(Utf8Bytes::from_static("{}"))).await;
    client.expect_error(serde_json::Value::Null).await;
    client.close().await;
    server.stop().await;
}

async fn expect_pong(client: &mut Client) {
    client.expect(serde_json::json!({ "event": "pusher:pong", "data": "{}" })).await;
}

/// The result of a stream of frames, as the decoder reads it.
fn decoded(stream: &[u8]) -> (Vec<Answer>, Option<u16>) {
    use pusherd::protocol::wire::websocket::{Decoder, Incoming};
    let (mut answers, mut code) = (Vec::new(), None);
    let fed = Decoder::new(Form::Frame).feed(&mut stream.to_vec(), LIMIT, |incoming| {
        match incoming {
            Incoming::Text(text)
                if text.starts_with(PUSHER_PING) && text[PUSHER_PING.len()..].trim().is_empty() =>
            {
                answers.push(Answer::Pusher);
            }
            Incoming::Text(_) => answers.push(Answer::Error),
            Incoming::Binary => code = Some(1003),
            Incoming::Ping(payload) => answers.push(Answer::Pong(payload.to_vec())),
            Incoming::Pong | Incoming::Fragment => {}
            Incoming::Close(given) => code = Some(given.unwrap_or(1005)),
        }
        code.is_none()
    });
    (answers, code.or(fed.err().map(|violation| violation.code().number())))
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        8 => Just(FIN | TEXT),
        4 => Just(TEXT),
        4 => Just(CONTINUATION),
        4 => Just(FIN | CONTINUATION),
        3 => Just(FIN | PING),
        1 => Just(FIN | PONG),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        4 => (23..400usize).prop_map(|bytes| padded(bytes).into_bytes()),
        2 => proptest::collection::vec(any::<u8>(), 0..130),
        1 => "\\PC{0,20}".prop_map(String::into_bytes),
    ];
    (first, payload).prop_map(|(first, payload)| frame(first, &payload))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The server over a socket does what the decoder says. The fuzz target `websocket` compares the decoder with tungstenite.
    #[test]
    fn any_stream_of_frames_is_answered_as_the_decoder_reads_it(
        frames in proptest::collection::vec(any_frame(), 1..12), piece in 1..200usize,
    ) {
        let stream = frames.concat();
        let (answers, code) = decoded(&stream);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::start().await;
            let mut raw = server.connect_raw().await;
            for bytes in stream.chunks(piece) {
                if raw.try_write(bytes).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let mut got = Vec::new();
            if code.is_none() {
                raw.send(r#"{"event":"pusher:ping","data":{}}"#).await;
            }
            let end = loop {
                match raw.next_or_end().await {
                    Some(frame) if frame.first == FIN | CLOSE => break Some(frame.close().0.unwrap_or(1005)),
                    Some(frame) => got.push(read(&frame)),
                    None => break None,
                }
                // An incomplete message swallows the ping at the end: then only a text amid a text ends it.
                if code.is_none() && got.last() == Some(&Answer::Pusher) && pushers(&got) > pushers(&answers) {
                    break None;
                }
            };
            check(&answers, code, &got, end);
        });
    }
}

fn pushers(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| **answer == Answer::Pusher).count()
}

fn check(answers: &[Answer], code: Option<u16>, got: &[Answer], end: Option<u16>) {
    // Of several pings at once only the last may be answered.
    let texts = |answers: &[Answer]| -> Vec<Answer> {
        answers.iter().filter(|answer| !matches!(answer, Answer::Pong(_))).cloned().collect()
    };
    let expected = texts(answers);
    match code {
        Some(code) => assert_eq!((texts(got), end), (expected, Some(code))),
        None if end == Some(1002) => assert_eq!(texts(got), expected, "the last message was still open"),
        None => assert_eq!(texts(got), [expected, vec![Answer::Pusher]].concat()),
    }
}
