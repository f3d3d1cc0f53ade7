//! RFC 6455 framing, the server's side: frames out with a header and no mask, frames in masked. Of the reserved
//! bits only the first has a meaning, and only where permessage-deflate was agreed upon: see [`deflate`].
//!
//! [`Decoder`] owns bytes only while a frame or a fragmented message is incomplete; an idle connection's decoder
//! holds none.

use std::borrow::Cow;

use bytes::Bytes;

use super::Frame;
use super::deflate::{self, Compression};
use crate::protocol::CloseCode;

/// The longest header a server frame can have.
const HEADER_MAX: usize = 10;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// The reserved bit that marks a compressed message, on its first frame. Source: RFC 7692 §6.
const RSV1: u8 = 0x40;

/// The longest payload of a control frame.
const CONTROL_MAX: usize = 125;

/// Makes a text frame of what `write` appends.
pub fn text_frame(write: impl FnOnce(&mut Vec<u8>)) -> Frame {
    let mut buffer = Vec::with_capacity(256);
    buffer.extend_from_slice(&[0; HEADER_MAX]);
    write(&mut buffer);
    let len = buffer.len() - HEADER_MAX;
    let (header, header_len) = header(TEXT, len);
    let start = HEADER_MAX - header_len;
    buffer[start..HEADER_MAX].copy_from_slice(&header[..header_len]);
    Frame(Bytes::from(buffer).slice(start..))
}

/// Appends a text frame that is marked as compressed, with the payload that `write` appends; `false` when `write`
/// says so, and what was appended is then of no use.
pub(super) fn push_compressed_frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_MAX]);
    if !write(out) {
        return false;
    }
    let (header, header_len) = header(RSV1 | TEXT, out.len() - start - HEADER_MAX);
    out[start..start + header_len].copy_from_slice(&header[..header_len]);
    out.drain(start + header_len..start + HEADER_MAX);
    true
}

fn header(opcode: u8, len: usize) -> ([u8; HEADER_MAX], usize) {
    let mut header = [0; HEADER_MAX];
    header[0] = 0x80 | opcode;
    let header_len = match len {
        0..126 => {
            header[1] = len as u8;
            2
        }
        126..0x1_0000 => {
            header[1] = 126;
            header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            4
        }
        _ => {
            header[1] = 127;
            header[2..10].copy_from_slice(&(len as u64).to_be_bytes());
            10
        }
    };
    (header, header_len)
}

fn control(opcode: u8, payload: &[u8]) -> Bytes {
    let payload = &payload[..payload.len().min(CONTROL_MAX)];
    let (header, header_len) = header(opcode, payload.len());
    let mut frame = Vec::with_capacity(header_len + payload.len());
    frame.extend_from_slice(&header[..header_len]);
    frame.extend_from_slice(payload);
    frame.into()
}

/// A Ping without payload.
#[must_use]
pub const fn ping() -> Bytes {
    Bytes::from_static(&[0x80 | PING, 0])
}

/// The Pong that answers a Ping with `payload`.
#[must_use]
pub fn pong(payload: &[u8]) -> Bytes {
    control(PONG, payload)
}

/// A Close with a code and a reason, cut to the 123 bytes that fit, at a character's end.
#[must_use]
pub fn close(code: u16, reason: &str) -> Bytes {
    let mut payload = Vec::with_capacity(CONTROL_MAX);
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(&reason.as_bytes()[..reason.floor_char_boundary(CONTROL_MAX - 2)]);
    control(CLOSE, &payload)
}

/// A Close without a code, the answer to one without.
#[must_use]
pub fn close_without_code() -> Bytes {
    control(CLOSE, &[])
}

/// The payload of a complete server frame.
pub(super) fn payload(frame: &[u8]) -> &[u8] {
    let start = match frame.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    };
    frame.get(start..).unwrap_or_default()
}

/// What a client sent, complete and unmasked.
#[derive(Debug, Eq, PartialEq)]
pub enum Incoming<'a> {
    /// A text message; UTF-8 was checked.
    Text(&'a str),
    /// A binary message.
    Binary,
    /// A frame of a message whose last one has not come.
    Fragment,
    /// A Ping, to be answered with a Pong of the same payload.
    Ping(&'a [u8]),
    /// A Pong.
    Pong,
    /// A Close with its code, if it has one.
    Close(Option<u16>),
}

/// How a client broke the framing; the connection cannot go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    /// A rule of RFC 6455.
    #[error("{0}")]
    Framing(&'static str),
    /// A text that is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// A compressed message that cannot be inflated. RFC 7692 names no code; this is RFC 6455's for data that is not
    /// what its message says it is.
    #[error("compressed message cannot be inflated")]
    NotDeflate,
    /// A message longer than the limit.
    #[error("message is longer than {bytes_max} bytes")]
    TooBig {
        /// The limit.
        bytes_max: usize,
    },
}

impl Violation {
    /// The code to close with.
    #[must_use]
    pub const fn code(self) -> CloseCode {
        match self {
            Self::Framing(_) => CloseCode::ProtocolError,
            Self::NotUtf8 | Self::NotDeflate => CloseCode::InvalidPayload,
            Self::TooBig { .. } => CloseCode::TooBig,
        }
    }
}

/// Puts a client's messages together from bytes as they arrive.
///
/// Memory: nothing between messages; of an unfinished one, in one frame or in many, no more than the limit and an
/// eighth. While it is looked at, also one read, and a compressed message as it is.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The start of a frame whose end has not arrived.
    held: Vec<u8>,
    /// The fragments so far of a message in several frames.
    message: Option<Box<Fragments>>,
    /// Whether messages may be compressed.
    inflates: bool,
    /// Compressed messages are passed over.
    skips: bool,
}

#[derive(Debug)]
struct Fragments {
    kind: Kind,
    payload: Vec<u8>,
}

/// What the first frame of a message says of it.
#[derive(Clone, Copy, Debug)]
struct Kind {
    opcode: u8,
    compressed: bool,
}

struct Head {
    fin: bool,
    kind: Kind,
    mask: [u8; 4],
    start: usize,
    end: usize,
}

impl Decoder {
    /// The decoder of a connection that has agreed upon `compression`.
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self { inflates: compression != Compression::Off, ..Self::default() }
    }

    /// From now on compressed messages are passed over, because nobody listens: inflating is work.
    pub const fn skip_compressed(&mut self) {
        self.skips = true;
    }

    /// Takes `bytes` in and hands every message that is now complete to `each`, in order. Stops where `each`
    /// answers `false`; what follows is kept until it is fed again, with more or with nothing.
    ///
    /// A length over `message_bytes_max` is refused when its header arrives, before any of it is kept; a compressed
    /// message that is longer than that when it is inflated, as soon as it is.
    ///
    /// # Errors
    /// [`Violation`]; the decoder must not be used after one.
    pub fn feed(
        &mut self,
        bytes: &mut [u8],
        message_bytes_max: usize,
        mut each: impl FnMut(Incoming<'_>) -> bool,
    ) -> Result<(), Violation> {
        if self.held.is_empty() {
            let used = self.decode(bytes, message_bytes_max, &mut each)?;
            self.held = bytes[used..].to_vec();
            return Ok(());
        }
        let mut held = std::mem::take(&mut self.held);
        let whole = self.head(&held, message_bytes_max)?.map_or(0, |head| head.end);
        let doubled = held.capacity().saturating_mul(2);
        append(&mut held, bytes, doubled.min(whole));
        let used = self.decode(&mut held, message_bytes_max, &mut each)?;
        // What was read with the end of a frame may have been much.
        self.held = if used == 0 { held } else { held[used..].to_vec() };
        Ok(())
    }

    /// Whether a message has begun and not ended.
    #[must_use]
    pub const fn is_unfinished(&self) -> bool {
        !self.held.is_empty() || self.is_fragmented()
    }

    /// Whether frames of a message have come, and not its last.
    #[must_use]
    pub const fn is_fragmented(&self) -> bool {
        self.message.is_some()
    }

    /// Decodes the complete frames at the start of `bytes` and says how many bytes they were.
    fn decode(
        &mut self,
        bytes: &mut [u8],
        max: usize,
        each: &mut impl FnMut(Incoming<'_>) -> bool,
    ) -> Result<usize, Violation> {
        let mut at = 0;
        while let Some(head) = self.head(&bytes[at..], max)? {
            let Some(payload) = bytes.get_mut(at + head.start..at + head.end) else { break };
            unmask(payload, head.mask);
            at += head.end;
            if !self.take(&head, payload, max, each)? {
                break;
            }
        }
        Ok(at)
    }

    /// Reads and checks a frame's header, or `None` while it is incomplete.
    fn head(&self, bytes: &[u8], max: usize) -> Result<Option<Head>, Violation> {
        let &[first, second, ..] = bytes else { return Ok(None) };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        let compressed = self.inflates && matches!(opcode, TEXT | BINARY) && first & RSV1 != 0;
        if first & 0x70 != if compressed { RSV1 } else { 0 } {
            return Err(Violation::Framing("reserved bits are set"));
        }
        if second & 0x80 == 0 {
            return Err(Violation::Framing("frame of a client is not masked"));
        }
        let is_control = opcode >= CLOSE;
        match opcode {
            0 if self.message.is_none() => return Err(Violation::Framing("continuation of nothing")),
            TEXT | BINARY if self.message.is_some() => {
                return Err(Violation::Framing("new message inside of a fragmented one"));
            }
            0 | TEXT | BINARY | CLOSE | PING | PONG => {}
            _ => return Err(Violation::Framing("unknown opcode")),
        }
        if is_control && (!fin || second & 0x7f > CONTROL_MAX as u8) {
            return Err(Violation::Framing("control frame is fragmented or longer than 125 bytes"));
        }
        let (len, mask_at) = match second & 0x7f {
            126 => match bytes.get(2..4) {
                Some(len) => (u64::from(u16::from_be_bytes([len[0], len[1]])), 4),
                None => return Ok(None),
            },
            127 => match bytes.get(2..10).and_then(|len| len.try_into().ok()) {
                Some(len) => (u64::from_be_bytes(len), 10),
                None => return Ok(None),
            },
            len => (u64::from(len), 2),
        };
        let before = self.message.as_ref().map_or(0, |message| message.payload.len());
        let room = if is_control { CONTROL_MAX } else { max.saturating_sub(before) };
        let Some(len) = usize::try_from(len).ok().filter(|len| *len <= room) else {
            return Err(Violation::TooBig { bytes_max: max });
        };
        let Some(mask) = bytes.get(mask_at..mask_at + 4).and_then(|mask| mask.try_into().ok()) else {
            return Ok(None);
        };
        let start = mask_at + 4;
        Ok(Some(Head { fin, kind: Kind { opcode, compressed }, mask, start, end: start + len }))
    }

    fn deliver(
        &self,
        kind: Kind,
        payload: &[u8],
        max: usize,
        each: &mut impl FnMut(Incoming<'_>) -> bool,
    ) -> Result<bool, Violation> {
        if kind.opcode == BINARY {
            return Ok(each(Incoming::Binary));
        }
        if kind.compressed && self.skips {
            return Ok(true);
        }
        let payload =
            if kind.compressed { deflate::inflate(payload, max)?.into() } else { Cow::from(payload) };
        let text = std::str::from_utf8(&payload).map_err(|_| Violation::NotUtf8)?;
        Ok(each(Incoming::Text(text)))
    }

    fn take(
        &mut self,
        head: &Head,
        payload: &[u8],
        max: usize,
        each: &mut impl FnMut(Incoming<'_>) -> bool,
    ) -> Result<bool, Violation> {
        match head.kind.opcode {
            PING => Ok(each(Incoming::Ping(payload))),
            PONG => Ok(each(Incoming::Pong)),
            CLOSE => Ok(each(Incoming::Close(close_code(payload)?))),
            0 => {
                let Some(mut message) = self.message.take() else { return Ok(true) };
                let grown = message.payload.capacity() / 8 * 9;
                append(&mut message.payload, payload, grown.min(max));
                if head.fin {
                    return self.deliver(message.kind, &message.payload, max, each);
                }
                self.message = Some(message);
                Ok(each(Incoming::Fragment))
            }
            _ if head.fin => self.deliver(head.kind, payload, max, each),
            _ => {
                self.message = Some(Box::new(Fragments { kind: head.kind, payload: payload.to_vec() }));
                Ok(each(Incoming::Fragment))
            }
        }
    }

    /// Bytes that the decoder holds.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held.capacity() + self.message.as_ref().map_or(0, |message| message.payload.capacity())
    }
}

/// Appends `bytes`. If there is no room, it is made for `room` bytes in all, or for what there are, and no more: a
/// vector's own way of growing would let a client hold twice its limit.
fn append(held: &mut Vec<u8>, bytes: &[u8], room: usize) {
    let needed = held.len() + bytes.len();
    if needed > held.capacity() {
        held.reserve_exact(needed.max(room) - held.len());
    }
    held.extend_from_slice(bytes);
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    match payload {
        [] => Ok(None),
        [_] => Err(Violation::Framing("close frame with half a code")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(Violation::Framing("close code that must not be sent"));
            }
            std::str::from_utf8(reason).map_err(|_| Violation::NotUtf8)?;
            Ok(Some(code))
        }
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

    /// A client's frame.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let (header, header_len) = header(first & 0x0f, payload.len());
        let mut frame = header[..header_len].to_vec();
        frame[0] = first;
        frame[1] |= 0x80;
        frame.extend_from_slice(&MASK);
        let mut payload = payload.to_vec();
        unmask(&mut payload, MASK);
        frame.extend_from_slice(&payload);
        frame
    }

    /// What comes out of `bytes` fed in pieces of `step`, in words.
    fn decode(bytes: &[u8], step: usize, max: usize) -> (Vec<String>, Option<Violation>) {
        decode_with(Decoder::default(), bytes, step, max)
    }

    /// The decoder of a connection that has agreed upon compression.
    fn inflating() -> Decoder {
        Decoder::new(Compression::Deflate { bytes_min: 0 })
    }

    fn decode_with(
        mut decoder: Decoder,
        bytes: &[u8],
        step: usize,
        max: usize,
    ) -> (Vec<String>, Option<Violation>) {
        let mut said = Vec::new();
        for piece in bytes.chunks(step) {
            let each = |incoming: Incoming<'_>| {
                said.push(match incoming {
                    Incoming::Text(text) => format!("text {text}"),
                    Incoming::Binary => "binary".into(),
                    Incoming::Fragment => return true,
                    Incoming::Ping(payload) => format!("ping {}", payload.len()),
                    Incoming::Pong => "pong".into(),
                    Incoming::Close(code) => format!("close {code:?}"),
                });
                true
            };
            if let Err(violation) = decoder.feed(&mut piece.to_vec(), max, each) {
                return (said, Some(violation));
            }
        }
        (said, None)
    }

    #[test]
    fn an_unfinished_message_costs_the_limit_and_an_eighth_at_most() {
        const MAX: usize = 32 * 1024;
        let whole = masked(0x81, &[b'x'; MAX]);
        let parts: Vec<u8> = (0..MAX / 128)
            .flat_map(|part| masked(if part == 0 { 0x01 } else { 0x00 }, &[b'x'; 128]))
            .collect();
        let half_and_half = [masked(0x01, &[b'x'; MAX / 2 + 1]), masked(0x00, &[b'x'; MAX / 2 - 1])].concat();
        let behind_others = [masked(0x8a, b"").repeat(5000), whole.clone()].concat();
        for (bytes, step) in [
            (&whole, 1),
            (&whole, 1000),
            (&whole, 20_000),
            (&parts, 1),
            (&parts, 777),
            (&half_and_half, 10_000),
            (&behind_others, 30_007),
        ] {
            let mut decoder = Decoder::default();
            for piece in bytes[..bytes.len() - 1].chunks(step) {
                decoder.feed(&mut piece.to_vec(), MAX, |_| true).unwrap();
                let held = decoder.held_bytes();
                assert!(held <= MAX / 8 * 9 + 64, "{held} bytes after pieces of {step}");
            }
            assert!(decoder.is_unfinished());
        }
    }

    #[test]
    fn messages_come_out_whole_however_the_bytes_arrive() {
        let mut bytes = masked(0x81, b"one");
        bytes.extend(masked(0x01, "t".as_bytes()));
        bytes.extend(masked(0x89, b"now"));
        bytes.extend(masked(0x00, &"wö".as_bytes()[..2]));
        bytes.extend(masked(0x80, &"wö".as_bytes()[2..]));
        bytes.extend(masked(0x81, &[b'x'; 70_000]));
        bytes.extend(masked(0x8a, b""));
        bytes.extend(masked(0x82, b"\xff"));
        bytes.extend(masked(0x88, &[0x03, 0xe8]));
        for step in [1, 2, 3, 7, 64, 100_000] {
            let (said, violation) = decode(&bytes, step, 80_000);
            assert_eq!(violation, None);
            assert_eq!(said[..3], ["text one", "ping 3", "text twö"]);
            assert_eq!(said[3].len(), 70_005);
            assert_eq!(said[4..], ["pong", "binary", "close Some(1000)"]);
        }
    }

    /// "Hello". Source: RFC 7692 §7.2.3.1.
    const HELLO: &[u8] = &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];

    #[test]
    fn compressed_messages_come_out_whole_however_they_arrive() {
        let mut bytes = masked(0xc1, HELLO);
        bytes.extend(masked(0x41, &HELLO[..3]));
        bytes.extend(masked(0x89, b"now"));
        bytes.extend(masked(0x00, &HELLO[3..4]));
        bytes.extend(masked(0x00, b""));
        bytes.extend(masked(0x80, &HELLO[4..]));
        bytes.extend(masked(0x81, b"plain"));
        bytes.extend(masked(0x01, b"pl"));
        bytes.extend(masked(0x80, b"ain"));
        bytes.extend(masked(0x41, HELLO));
        bytes.extend(masked(0x80, b""));
        bytes.extend(masked(0xc1, b""));
        bytes.extend(masked(0xc2, HELLO));
        for step in [1, 2, 3, 7, 64, 1000] {
            let (said, violation) = decode_with(inflating(), &bytes, step, 100);
            assert_eq!(violation, None);
            let expected = ["Hello", "ping 3", "Hello", "plain", "plain", "Hello", "", "binary"].map(
                |said| match said {
                    "ping 3" | "binary" => said.to_owned(),
                    text => format!("text {text}"),
                },
            );
            assert_eq!(said, expected);
        }
    }

    #[test]
    fn where_nobody_listens_nothing_is_inflated() {
        let mut decoder = inflating();
        decoder.skip_compressed();
        let bytes = [masked(0xc1, b"no deflate"), masked(0x81, b"plain"), masked(0x88, &[])].concat();
        let (said, violation) = decode_with(decoder, &bytes, 1000, 100);
        assert_eq!((said.len(), violation), (2, None), "{said:?}");
    }

    #[test]
    fn the_bit_of_compression_stands_on_the_first_frame_of_a_message_only() {
        let begun = masked(0x41, &HELLO[..3]);
        let table = [
            masked(0xc9, b""),
            masked(0xca, b""),
            masked(0xc8, &[0x03, 0xe8]),
            masked(0xa1, HELLO),
            masked(0x91, HELLO),
            masked(0xe1, HELLO),
            masked(0xf1, HELLO),
            masked(0xc0, HELLO),
            masked(0xc3, HELLO),
            [&begun[..], &masked(0xc0, &HELLO[3..])].concat(),
            [&begun[..], &masked(0x40, &HELLO[3..])].concat(),
            [&masked(0x01, b"plain")[..], &masked(0xc0, HELLO)].concat(),
            [&begun[..], &masked(0xc1, HELLO)].concat(),
        ];
        for bytes in table {
            let violation = decode_with(inflating(), &bytes, 100, 1000).1;
            assert!(matches!(violation, Some(Violation::Framing(_))), "{bytes:02x?}: {violation:?}");
        }
    }

    #[test]
    fn a_compressed_message_is_held_to_the_limit_and_to_utf8_when_inflated() {
        let violation = |bytes: &[u8], max| decode_with(inflating(), bytes, 100, max).1;
        assert_eq!(violation(&masked(0xc1, HELLO), 7), None);
        let long = [HELLO, &[0x00; 3]].concat();
        let too_big = Some(Violation::TooBig { bytes_max: 9 });
        assert_eq!(violation(&masked(0xc1, &long), 9), too_big, "longer on the wire than may be");
        let mut sent = Vec::new();
        deflate::push(&mut sent, &text_frame(|out| out.extend([b'x'; 1000])), 0);
        let (one, two) = payload(&sent).split_at(5);
        let fragments = [masked(0x41, one), masked(0x80, two)].concat();
        assert_eq!(violation(&fragments, 1000), None);
        assert_eq!(violation(&fragments, 999), Some(Violation::TooBig { bytes_max: 999 }));
        let not_utf8 = [0x00, 0x01, 0x00, 0xfe, 0xff, 0xff, 0x00];
        assert_eq!(violation(&masked(0xc1, &not_utf8), 100), Some(Violation::NotUtf8));
        assert_eq!(violation(&masked(0xc1, b"plain after all"), 100), Some(Violation::NotDeflate));
        assert_eq!(Violation::NotDeflate.code().number(), 1007);
    }

    #[test]
    fn broken_framing_is_named() {
        let framing = |bytes: &[u8]| match decode(bytes, 100, 1000).1 {
            Some(Violation::Framing(_)) => (),
            other => panic!("{bytes:?}: {other:?}"),
        };
        framing(&[0x81, 0x00]);
        for rsv in [0xc1, 0xa1, 0x91] {
            framing(&masked(rsv, b"x"));
        }
        for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
            framing(&masked(0x80 | opcode, b""));
        }
        framing(&masked(0x09, b"fragmented ping"));
        framing(&masked(0x89, &[0; 126]));
        framing(&masked(0x80, b"continuation of nothing"));
        framing(&[masked(0x01, b"a"), masked(0x81, b"b")].concat());
        framing(&masked(0x88, &[3]));
        for code in [0u16, 999, 1004, 1005, 1006, 1015, 1100, 2999, 5000, 65535] {
            framing(&masked(0x88, &code.to_be_bytes()));
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        for bytes in [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"] {
            assert_eq!(decode(&masked(0x81, bytes), 100, 1000).1, Some(Violation::NotUtf8));
        }
        assert_eq!(decode(&masked(0x88, b"\x03\xe8\xff"), 100, 1000).1, Some(Violation::NotUtf8));
    }

    #[test]
    fn a_message_over_the_limit_is_refused_at_its_header() {
        let too_big = Some(Violation::TooBig { bytes_max: 10 });
        assert_eq!(decode(&masked(0x81, &[b'x'; 10]), 100, 10).1, None);
        assert_eq!(decode(&masked(0x81, &[b'x'; 11])[..2], 100, 10).1, too_big);
        assert_eq!(
            decode(&[0x81, 0xff, 0xff, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0], 100, 10).1,
            too_big
        );
        let fragments = [masked(0x01, &[b'x'; 6]), masked(0x80, &[b'x'; 5])].concat();
        assert_eq!(decode(&fragments, 100, 10).1, too_big);
        assert_eq!(decode(&masked(0x89, &[0; 100]), 200, 10).1, None, "control frames have their own limit");
    }

    #[test]
    fn an_idle_decoder_holds_nothing() {
        let mut decoder = Decoder::default();
        let frame = masked(0x81, &[b'x'; 500]);
        for piece in frame.chunks(10) {
            decoder.feed(&mut piece.to_vec(), 1000, |_| true).unwrap();
        }
        assert_eq!(decoder.held_bytes(), 0);
    }

    #[test]
    fn frames_have_the_header_of_their_length() {
        for len in [0, 1, 125, 126, 65_535, 65_536] {
            let text = "x".repeat(len);
            let frame = text_frame(|out| out.extend_from_slice(text.as_bytes()));
            let (expected, header_len) = header(TEXT, len);
            assert_eq!(frame.bytes()[..header_len], expected[..header_len]);
            assert_eq!(frame.text(), text);
        }
        let long = "ü".repeat(100);
        let close = close(4001, &long);
        assert_eq!((close[0], close[1]), (0x88, 2 + 122), "cut at a character's end");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic_or_hoard(bytes: Vec<u8>, step in 1usize..50, inflates: bool) {
            let mut decoder = if inflates { inflating() } else { Decoder::default() };
            for piece in bytes.chunks(step) {
                if decoder.feed(&mut piece.to_vec(), 64, |_| true).is_err() {
                    break;
                }
                prop_assert!(decoder.held_bytes() <= 1024);
            }
        }

        #[test]
        fn unmasking_twice_changes_nothing(bytes: Vec<u8>, mask: [u8; 4]) {
            let mut twice = bytes.clone();
            unmask(&mut twice, mask);
            unmask(&mut twice, mask);
            prop_assert_eq!(twice, bytes);
        }
    }
}
