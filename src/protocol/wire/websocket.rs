//! The server side of RFC 6455 framing: frames of the server have no mask, frames of clients have one. The first reserved
//! bit marks a compressed message if the connection negotiated permessage-deflate (see [`deflate`]); the other bits must
//! be zero.
//!
//! [`Decoder`] buffers bytes only while a frame or a fragmented message is incomplete; on an idle connection it owns no
//! memory.

use std::borrow::Cow;

use bytes::Bytes;

use super::{Form, Frame, deflate};
use crate::protocol::CloseCode;

/// The longest header of a server frame.
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

/// Makes a text frame with the payload that `write` appends.
pub(super) fn text_frame(write: impl FnOnce(&mut Vec<u8>)) -> Frame {
    let mut buffer = Vec::with_capacity(256);
    buffer.extend_from_slice(&[0; HEADER_MAX]);
    write(&mut buffer);
    let len = buffer.len() - HEADER_MAX;
    let (header, header_len) = header(TEXT, len);
    let start = HEADER_MAX - header_len;
    buffer[start..HEADER_MAX].copy_from_slice(&header[..header_len]);
    Frame(Bytes::from(buffer).slice(start..))
}

/// Appends a text frame that is marked as compressed, with the payload that `write` appends. If `write` returns `false`,
/// returns `false`, and the caller must discard what was appended.
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

/// A Close with a code and a reason. The reason is truncated to 123 bytes at a character boundary.
#[must_use]
pub fn close(code: u16, reason: &str) -> Bytes {
    let mut payload = Vec::with_capacity(CONTROL_MAX);
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(&reason.as_bytes()[..reason.floor_char_boundary(CONTROL_MAX - 2)]);
    control(CLOSE, &payload)
}

/// A Close without a code, the reply to a Close without a code.
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

/// A decoded, unmasked frame or message of a client.
#[derive(Debug, Eq, PartialEq)]
pub enum Incoming<'a> {
    /// A text message, valid UTF-8.
    Text(&'a str),
    /// A binary message.
    Binary,
    /// A frame of a fragmented message, but not its last.
    Fragment,
    /// A Ping. The reply is a Pong with the same payload.
    Ping(&'a [u8]),
    /// A Pong.
    Pong,
    /// A Close with its code, if it has one.
    Close(Option<u16>),
}

/// A violation of the framing rules, which ends the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    /// A rule of RFC 6455.
    #[error("{0}")]
    Framing(&'static str),
    /// A text message that is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// A compressed message that cannot be inflated. RFC 7692 names no close code; RFC 6455 has one for data that is
    /// inconsistent with the type of the message.
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
    /// The close code for it.
    #[must_use]
    pub const fn code(self) -> CloseCode {
        match self {
            Self::Framing(_) => CloseCode::ProtocolError,
            Self::NotUtf8 | Self::NotDeflate => CloseCode::InvalidPayload,
            Self::TooBig { .. } => CloseCode::TooBig,
        }
    }
}

/// Decodes the messages of a client from bytes as they arrive.
///
/// Memory: none between messages. An incomplete message, in one frame or in several, takes at most the limit and an
/// eighth. While `feed` runs, it also holds the bytes of one read and the compressed form of a message.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The bytes of an incomplete frame.
    buffered: Vec<u8>,
    /// The fragments received so far of a fragmented message.
    message: Option<Box<Fragments>>,
    /// Whether messages may be compressed.
    inflates: bool,
    /// Whether compressed messages are skipped.
    skips: bool,
}

#[derive(Debug)]
struct Fragments {
    kind: Kind,
    payload: Vec<u8>,
}

/// The kind of a message, from its first frame.
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
    /// The decoder of a connection whose messages go out in `form`: compression is negotiated for both directions.
    #[must_use]
    pub fn new(form: Form) -> Self {
        Self { inflates: form.is_deflated(), ..Self::default() }
    }

    /// Skips compressed messages from now on. Inflating them is wasted work when messages are ignored.
    pub const fn skip_compressed(&mut self) {
        self.skips = true;
    }

    /// Decodes `bytes` and calls `each` for every complete message, in order. Stops when `each` returns `false`; the rest
    /// is buffered until the next call, which may pass no bytes.
    ///
    /// A message longer than `message_bytes_max` is rejected when its header arrives, before its payload is buffered. A
    /// compressed message is also rejected when its inflated length exceeds the limit.
    ///
    /// # Errors
    /// [`Violation`]; the decoder must not be used after one.
    pub fn feed(
        &mut self,
        bytes: &mut [u8],
        message_bytes_max: usize,
        mut each: impl FnMut(Incoming<'_>) -> bool,
    ) -> Result<(), Violation> {
        if self.buffered.is_empty() {
            let used = self.decode(bytes, message_bytes_max, &mut each)?;
            self.buffered = bytes[used..].to_vec();
            return Ok(());
        }
        let mut buffered = std::mem::take(&mut self.buffered);
        let frame_len = self.head(&buffered, message_bytes_max)?.map_or(0, |head| head.end);
        let doubled = buffered.capacity().saturating_mul(2);
        append(&mut buffered, bytes, doubled.min(frame_len));
        let used = self.decode(&mut buffered, message_bytes_max, &mut each)?;
        // Copied into a buffer of its own size: the old one may be much larger.
        self.buffered = if used == 0 { buffered } else { buffered[used..].to_vec() };
        Ok(())
    }

    /// Whether a frame or a message is incomplete.
    #[must_use]
    pub const fn is_unfinished(&self) -> bool {
        !self.buffered.is_empty() || self.is_fragmented()
    }

    /// Whether a fragmented message is incomplete.
    #[must_use]
    pub const fn is_fragmented(&self) -> bool {
        self.message.is_some()
    }

    /// Decodes the complete frames at the start of `bytes` and returns their length.
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
            if !self.accept(&head, payload, max, each)? {
                break;
            }
        }
        Ok(at)
    }

    /// Parses and checks the header of a frame. `None` if it is incomplete.
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
        let len_max = if is_control { CONTROL_MAX } else { max.saturating_sub(before) };
        let Some(len) = usize::try_from(len).ok().filter(|len| *len <= len_max) else {
            return Err(Violation::TooBig { bytes_max: max });
        };
        let Some(mask) = bytes.get(mask_at..mask_at + 4).and_then(|mask| mask.try_into().ok()) else {
            return Ok(None);
        };
        let start = mask_at + 4;
        Ok(Some(Head { fin, kind: Kind { opcode, compressed }, mask, start, end: start + len }))
    }

    /// Passes a complete message to `each`.
    fn emit(
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

    /// Handles one complete frame.
    fn accept(
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
                    return self.emit(message.kind, &message.payload, max, each);
                }
                self.message = Some(message);
                Ok(each(Incoming::Fragment))
            }
            _ if head.fin => self.emit(head.kind, payload, max, each),
            _ => {
                self.message = Some(Box::new(Fragments { kind: head.kind, payload: payload.to_vec() }));
                Ok(each(Incoming::Fragment))
            }
        }
    }

    /// Bytes of memory that the decoder owns.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.buffered.capacity() + self.message.as_ref().map_or(0, |message| message.payload.capacity())
    }
}

/// Appends `bytes`. If the capacity is exceeded, it grows to `capacity` or to what is needed, and not further: the default
/// growth of a vector would let a client occupy twice its limit.
fn append(buffer: &mut Vec<u8>, bytes: &[u8], capacity: usize) {
    let needed = buffer.len() + bytes.len();
    if needed > buffer.capacity() {
        buffer.reserve_exact(needed.max(capacity) - buffer.len());
    }
    buffer.extend_from_slice(bytes);
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
mod tests;
