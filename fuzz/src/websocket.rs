//! The decoder of WebSocket frames: its result does not depend on how the bytes are split, its memory is limited, and it
//! agrees with tungstenite on messages and violations.
//!
//! The first byte of the input selects how it is read, the second how it is split. The rest is the stream itself, or a list
//! of frames (first byte, length, payload), so that the fuzzer need not find lengths and masks.

use std::io::{self, Cursor, Read, Write};

use pusherd::protocol::wire::Form;
use pusherd::protocol::wire::websocket::{Decoder, Incoming, Violation};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use super::naive;

#[derive(Clone, Debug, Eq, PartialEq)]
enum Said {
    Text(String),
    Binary,
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// At the end of the bytes.
    Open,
    /// With a Close.
    Closed,
    Framing,
    NotUtf8,
    NotDeflate,
    TooBig,
}

/// See the module.
pub fn holds(data: &[u8]) {
    let [how, seed, rest @ ..] = data else { return };
    let form = if how & 1 == 0 { Form::Frame } else { Form::DeflatedFrame { bytes_min: 0 } };
    let max = if how & 2 == 0 { 200 } else { 70_000 };
    let stream = if how & 4 == 0 { framed(rest) } else { rest.to_vec() };

    let whole = decode(form, &stream, max, |_| stream.len());
    let few = if stream.len() < 2000 { 1 } else { 61 };
    assert_eq!(decode(form, &stream, max, |_| few), whole, "in few bytes at a time");
    let mut state = u32::from(*seed);
    let random = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        1 + (state >> 24) as usize % 40
    };
    assert_eq!(decode(form, &stream, max, random), whole, "in pieces");
    if form == Form::Frame {
        // tungstenite accepts a control frame with a short length in the long form.
        let is_lenient = stream.windows(2).any(|head| head[0] & 0x8 != 0 && head[1] & 0x7f >= 126);
        agrees(&whole, &reference(&stream, max), is_lenient);
    }
}

/// A stream of the frames that `list` describes, masked.
fn framed(list: &[u8]) -> Vec<u8> {
    let (mut stream, mut rest) = (Vec::new(), list);
    while let [first, len, after @ ..] = rest {
        // Two lengths mean longer ones, so that every form of a length occurs.
        let long = match len {
            254 => 300,
            255 => 65_600,
            _ => 0,
        };
        let (payload, after) = after.split_at(usize::from(*len).min(after.len()));
        let payload = [payload, &vec![b'x'; long]].concat();
        stream.extend(naive::masked(*first, &payload, [first ^ 0x5a, *len, 0x3c, 0xf1]));
        rest = after;
    }
    stream
}

fn decode(form: Form, stream: &[u8], max: usize, mut piece: impl FnMut(usize) -> usize) -> (Vec<Said>, End) {
    let mut decoder = Decoder::new(form);
    let (mut said, mut rest) = (Vec::new(), stream);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(piece(rest.len()).min(rest.len()));
        rest = after;
        let mut closed = false;
        let fed = decoder.feed(&mut piece.to_vec(), max, |incoming| {
            assert!(!closed, "nothing is read behind a Close");
            said.push(match incoming {
                Incoming::Text(text) => {
                    assert!(text.len() <= max);
                    Said::Text(text.to_owned())
                }
                Incoming::Fragment => return true,
                Incoming::Binary => Said::Binary,
                Incoming::Ping(payload) => Said::Ping(payload.to_vec()),
                Incoming::Pong => Said::Pong,
                Incoming::Close(code) => {
                    closed = true;
                    Said::Close(code)
                }
            });
            !closed
        });
        match fed {
            Err(Violation::Framing(_)) => return (said, End::Framing),
            Err(Violation::NotUtf8) => return (said, End::NotUtf8),
            Err(Violation::NotDeflate) => return (said, End::NotDeflate),
            Err(Violation::TooBig { .. }) => return (said, End::TooBig),
            Ok(()) if closed => return (said, End::Closed),
            Ok(()) => {}
        }
        // A frame and a message at the limit, each in a buffer that grew by doubling, and one read.
        assert!(
            decoder.buffered_bytes() <= 4 * (max + 200) + 2 * piece.len(),
            "{} bytes",
            decoder.buffered_bytes()
        );
    }
    (said, End::Open)
}

/// Decodes with tungstenite's server.
fn reference(stream: &[u8], max: usize) -> (Vec<Said>, End) {
    struct Duplex<'s>(Cursor<&'s [u8]>);
    impl Read for Duplex<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Write for Duplex<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // A control frame may be longer than a small limit, so the limit of frames is at least 125.
    let limits = WebSocketConfig::default().max_message_size(Some(max)).max_frame_size(Some(max.max(125)));
    let mut socket = WebSocket::from_raw_socket(Duplex(Cursor::new(stream)), Role::Server, Some(limits));
    let mut said = Vec::new();
    loop {
        let end = match socket.read() {
            Ok(Message::Text(text)) => {
                said.push(Said::Text(text.as_str().to_owned()));
                continue;
            }
            Ok(Message::Binary(_)) => {
                said.push(Said::Binary);
                continue;
            }
            Ok(Message::Ping(payload)) => {
                said.push(Said::Ping(payload.to_vec()));
                continue;
            }
            Ok(Message::Pong(_)) => {
                said.push(Said::Pong);
                continue;
            }
            Ok(Message::Close(frame)) => {
                said.push(Said::Close(frame.map(|frame| frame.code.into())));
                End::Closed
            }
            Ok(Message::Frame(_)) => unreachable!("frames are put together"),
            Err(Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => {
                End::Open
            }
            Err(Error::Protocol(_)) => End::Framing,
            Err(Error::Capacity(_)) => End::TooBig,
            Err(Error::Utf8(_)) => End::NotUtf8,
            Err(error) => panic!("{error}"),
        };
        return (said, end);
    }
}

/// Checks that both results agree, as far as RFC 6455 requires it.
fn agrees((said, end): &(Vec<Said>, End), (theirs, their_end): &(Vec<Said>, End), is_lenient: bool) {
    let same = |one: &Said, other: &Said| match (one, other) {
        // tungstenite returns an invalid close code as a Close with another code.
        (Said::Close(_), Said::Close(_)) => true,
        _ => one == other,
    };
    let told = said.len().min(theirs.len());
    assert!(said.iter().zip(theirs).all(|(one, other)| same(one, other)), "{said:?}, reference: {theirs:?}");
    match (end, their_end) {
        (End::Framing, _) if is_lenient && told < theirs.len() => {}
        // tungstenite checks UTF-8 as bytes arrive, pusherd when the message is complete: another result may come first.
        (_, End::NotUtf8) => assert_eq!(told, theirs.len(), "{said:?}, reference: {theirs:?}"),
        _ if end == their_end => assert_eq!(said.len(), theirs.len(), "{said:?}, reference: {theirs:?}"),
        // An invalid Close, which tungstenite accepts.
        (End::Framing | End::NotUtf8, End::Closed) => {
            assert!(said.len() + 1 == theirs.len() && matches!(theirs[told], Said::Close(_)), "{theirs:?}");
        }
        // pusherd checks a header as soon as it arrives, tungstenite when the frame is complete. If a frame has several
        // errors, either may be reported.
        (End::Framing | End::TooBig, End::Framing | End::TooBig | End::Open) => {
            assert_eq!(said.len(), theirs.len());
        }
        _ => panic!("{said:?} {end:?}, reference: {theirs:?} {their_end:?}"),
    }
}
