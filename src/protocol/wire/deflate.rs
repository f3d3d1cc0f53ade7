//! permessage-deflate: negotiation, compression, decompression.
//!
//! Neither side keeps context between messages (`server_no_context_takeover` and `client_no_context_takeover`, which a
//! server may require without an offer). So one compressed message is valid for every connection, and connections have no
//! compressor: each thread has one compressor and one decompressor, which are reset for every message.
//!
//! Source: RFC 7692.

use std::borrow::Cow;
use std::cell::RefCell;

use flate2::{Compress, Compression as Level, Decompress, FlushCompress, FlushDecompress, Status};

use super::Frame;
use super::websocket::{self, Violation};

/// The extension's name.
const EXTENSION: &str = "permessage-deflate";

/// The response to an offer. It never contains `client_max_window_bits`, because any window can be inflated.
const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// The response to an offer with `server_max_window_bits`, which must be repeated. Source: RFC 7692 §7.1.2.1.
const ANSWER_WITH_WINDOW: &str =
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15";

/// The window of the server, as a power of two. All connections share the compressed bytes, so they share the window.
const SERVER_WINDOW_BITS: u8 = 15;

/// The compression level. Measurements are in docs/compression.md: a lower level leaves typical messages a quarter larger;
/// a higher one doubles the time for long lists and hardly reduces the size of anything else.
const LEVEL: u32 = 2;

/// The bytes that end a flushed message and are not sent. Source: RFC 7692 §7.2.1.
const FLUSHED: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// An empty last block.
const END: [u8; 2] = [0x03, 0x00];

/// The buffer for an inflated message grows by at least this many bytes.
const GROWTH_BYTES: usize = 1024;

thread_local! {
    /// About 300 KiB, allocated when the thread first compresses.
    static COMPRESS: RefCell<Compress> = RefCell::new(Compress::new(Level::new(LEVEL), false));
    /// About 40 KiB, allocated when the thread first inflates.
    static INFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(false));
}

/// The response to the first acceptable offer of permessage-deflate in the values of `Sec-WebSocket-Extensions`.
///
/// An offer is declined for a parameter that is unknown, occurs twice or has an invalid value, and for a window smaller
/// than that of the compressed form that all connections share. A value that cannot be parsed offers nothing from the
/// point of the error on.
///
/// Source: RFC 7692 §5.1, §7.1; RFC 6455 §9.1.
#[must_use]
pub fn negotiate<'h>(values: impl IntoIterator<Item = &'h str>) -> Option<&'static str> {
    values.into_iter().find_map(|value| Offers(value).answer())
}

/// The unread part of a list of offers.
struct Offers<'h>(&'h str);

impl<'h> Offers<'h> {
    fn answer(mut self) -> Option<&'static str> {
        loop {
            while self.eat(',') {}
            let mut offer = Offer::of(self.token()?);
            while self.eat(';') {
                let parameter = self.token()?;
                let value = if self.eat('=') { Some(self.value()?) } else { None };
                offer.accept(parameter, value.as_deref());
            }
            let is_last = !self.eat(',');
            if is_last && !self.0.is_empty() {
                return None;
            }
            if offer.acceptable {
                return Some(if offer.names_window { ANSWER_WITH_WINDOW } else { ANSWER });
            }
            if is_last {
                return None;
            }
        }
    }

    /// Reads `char` if it is next. Returns whether it was.
    fn eat(&mut self, char: char) -> bool {
        let rest = self.0.trim_ascii_start();
        let after = rest.strip_prefix(char);
        self.0 = after.unwrap_or(rest);
        after.is_some()
    }

    fn token(&mut self) -> Option<&'h str> {
        let rest = self.0.trim_ascii_start();
        let (token, after) = rest.split_at(rest.bytes().take_while(is_token_byte).count());
        self.0 = after;
        (!token.is_empty()).then_some(token)
    }

    /// A token, or the text of a quoted string.
    fn value(&mut self) -> Option<Cow<'h, str>> {
        if !self.eat('"') {
            return self.token().map(Cow::Borrowed);
        }
        let mut value = String::new();
        let mut chars = self.0.chars();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => value.push(chars.next()?),
                char => value.push(char),
            }
        }
        self.0 = chars.as_str();
        Some(Cow::Owned(value))
    }
}

/// Source: RFC 7230 §3.2.6.
fn is_token_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// One offer.
struct Offer<'h> {
    acceptable: bool,
    /// Whether the offer has `server_max_window_bits`.
    names_window: bool,
    seen: Vec<&'h str>,
}

impl<'h> Offer<'h> {
    fn of(extension: &str) -> Self {
        Self { acceptable: extension == EXTENSION, names_window: false, seen: Vec::new() }
    }

    /// Reads one parameter.
    fn accept(&mut self, parameter: &'h str, value: Option<&str>) {
        self.acceptable &= !self.seen.contains(&parameter)
            && match (parameter, value) {
                ("server_no_context_takeover" | "client_no_context_takeover", None) => true,
                ("client_max_window_bits", None) => true,
                ("client_max_window_bits", Some(bits)) => window_bits(bits).is_some(),
                ("server_max_window_bits", Some(bits)) => window_bits(bits) == Some(SERVER_WINDOW_BITS),
                _ => false,
            };
        self.names_window |= parameter == "server_max_window_bits";
        // Only known parameters are added, so the list is short.
        if self.acceptable {
            self.seen.push(parameter);
        }
    }
}

/// 8 to 15, without a leading zero or sign. Source: RFC 7692 §7.1.2.
fn window_bits(text: &str) -> Option<u8> {
    let bits = text.parse().ok()?;
    ((8..=15).contains(&bits) && !text.starts_with(['0', '+'])).then_some(bits)
}

/// Whether any of `frames` reaches the threshold for compression.
pub(super) fn is_worthwhile<'f>(frames: impl IntoIterator<Item = &'f Frame>, bytes_min: u32) -> bool {
    frames.into_iter().any(|frame| websocket::payload(frame.bytes()).len() >= bytes_min as usize)
}

/// Appends `frame` to `out`: compressed if its message has at least `bytes_min` bytes and gets smaller, else unchanged.
pub(super) fn push(out: &mut Vec<u8>, frame: &Frame, bytes_min: u32) {
    let message = websocket::payload(frame.bytes());
    if message.len() < bytes_min as usize || !push_compressed(out, message) {
        out.extend_from_slice(frame.bytes());
    }
}

/// Appends `message` as one compressed frame, or returns `false` and leaves `out` unchanged. An empty message never gets
/// smaller, so the special case of RFC 7692 §7.2.3.6 does not occur.
fn push_compressed(out: &mut Vec<u8>, message: &[u8]) -> bool {
    let start = out.len();
    websocket::push_compressed_frame(out, |out| {
        let payload_at = out.len();
        // A message that does not fit does not get smaller.
        out.reserve(message.len() + FLUSHED.len());
        let read = COMPRESS.with_borrow_mut(|compress| {
            compress.reset();
            compress.compress_vec(message, out, FlushCompress::Sync).ok().map(|_| compress.total_in())
        });
        // Everything has been flushed only if capacity is left.
        let is_complete = read == Some(message.len() as u64)
            && out.len() < out.capacity()
            && out[payload_at..].ends_with(&FLUSHED);
        if is_complete {
            out.truncate(out.len() - FLUSHED.len());
        }
        is_complete && out.len() - payload_at < message.len()
    }) || {
        out.truncate(start);
        false
    }
}

/// Inflates a message. Stops as soon as it exceeds `bytes_max`, and allocates at most one byte more than that.
///
/// A message may consist of several streams, each with its own last block. A payload that ends within a block is invalid.
///
/// Source: RFC 7692 §7.2.2, §7.2.3.
///
/// # Errors
/// [`Violation::NotDeflate`], [`Violation::TooBig`].
pub(super) fn inflate(payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, Violation> {
    let mut message = Vec::new();
    if payload.is_empty() {
        // The specification has one octet of 0 for an empty message, but no octets can only mean the same.
        return Ok(message);
    }
    INFLATE.with_borrow_mut(|inflate| {
        inflate.reset(false);
        let mut rest = payload;
        loop {
            let (left, ended) = step(inflate, rest, &mut message, bytes_max)?;
            if !ended {
                break;
            }
            if left.is_empty() {
                return Ok(message);
            }
            inflate.reset(false);
            rest = left;
        }
        // Feed the bytes that are not sent. Afterwards the stream has ended, or it is between two blocks and an empty last
        // block ends it. Neither adds to a complete message.
        let len = message.len();
        let is_complete = match step(inflate, &FLUSHED, &mut message, bytes_max)? {
            ([], true) => true,
            ([], false) => matches!(step(inflate, &END, &mut message, bytes_max)?, ([], true)),
            _ => false,
        };
        if is_complete && message.len() == len { Ok(message) } else { Err(Violation::NotDeflate) }
    })
}

/// Inflates `input` up to its end or the end of a stream. Returns the unread input and whether a stream ended.
fn step<'i>(
    inflate: &mut Decompress,
    mut input: &'i [u8],
    message: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<(&'i [u8], bool), Violation> {
    loop {
        if message.len() == message.capacity() {
            // Double the buffer, but only up to the limit and one byte, which proves that the message is too long. JSON
            // seldom shrinks to less than a quarter.
            let growth = message.len().max(input.len().saturating_mul(4)).max(GROWTH_BYTES);
            message.reserve_exact(growth.min(bytes_max.saturating_sub(message.len()).saturating_add(1)));
        }
        let read_before = inflate.total_in();
        let status = inflate.decompress_vec(input, message, FlushDecompress::Sync);
        let status = status.map_err(|_| Violation::NotDeflate)?;
        input = &input[(inflate.total_in() - read_before) as usize..];
        if message.len() > bytes_max {
            return Err(Violation::TooBig { bytes_max });
        }
        match status {
            Status::StreamEnd => return Ok((input, true)),
            Status::Ok | Status::BufError if message.len() == message.capacity() => {}
            Status::Ok | Status::BufError if input.is_empty() => return Ok((input, false)),
            Status::Ok | Status::BufError => return Err(Violation::NotDeflate),
        }
    }
}

#[cfg(test)]
mod tests;
