//! permessage-deflate: what is agreed upon, messages out, messages in.
//!
//! Neither side keeps anything from one message to the next (`server_no_context_takeover` and
//! `client_no_context_takeover`, which a server may demand unasked). So a message that was compressed once is right
//! for every connection, and no connection has a compressor: the two that there are belong to the thread, and
//! begin anew with every message.
//!
//! Source: RFC 7692.

use std::borrow::Cow;
use std::cell::RefCell;

use flate2::{Compress, Compression as Level, Decompress, FlushCompress, FlushDecompress, Status};

use super::Frame;
use super::websocket::{self, Violation};

/// The extension's name.
const EXTENSION: &str = "permessage-deflate";

/// What an offer is accepted with. `client_max_window_bits` is never asked for: any window is inflated.
const ANSWER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// The same for an offer that names the server's window, which must be named again. Source: RFC 7692 §7.1.2.1.
const ANSWER_WITH_WINDOW: &str =
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15";

/// The window of what the server sends, as a power of two. One for all, as the compressed bytes are.
const SERVER_WINDOW_BITS: u8 = 15;

/// How hard it is tried. docs/compression.md has the measurements: with less, a quarter more is left of a typical
/// message; with more, long lists take twice the time and all else stays as large as it is.
const LEVEL: u32 = 2;

/// What ends a flushed message and does not travel. Source: RFC 7692 §7.2.1.
const FLUSHED: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// A last block with nothing in it.
const END: [u8; 2] = [0x03, 0x00];

/// Text is made room for in steps of at least this many bytes.
const ROOM_BYTES: usize = 1024;

thread_local! {
    /// About 300 KiB, made when the thread first compresses.
    static COMPRESS: RefCell<Compress> = RefCell::new(Compress::new(Level::new(LEVEL), false));
    /// About 40 KiB, made when the thread first inflates.
    static INFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(false));
}

/// What a connection has agreed upon.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Compression {
    /// Nothing: messages travel as they are.
    #[default]
    Off,
    /// permessage-deflate, both ways.
    Deflate {
        /// Shorter messages go out as they are.
        bytes_min: u32,
    },
}

/// The answer to the first acceptable offer of permessage-deflate in the values of `Sec-WebSocket-Extensions`,
/// if there is one.
///
/// An offer is declined for a parameter that is unknown, stands twice or has no good value, and for a window
/// smaller than that of the compressed form that all connections share. What cannot be read offers nothing, nor
/// does what follows it in the same value.
///
/// Source: RFC 7692 §5.1, §7.1; RFC 6455 §9.1.
#[must_use]
pub fn negotiate<'h>(values: impl IntoIterator<Item = &'h str>) -> Option<&'static str> {
    values.into_iter().find_map(|value| Offers(value).answer())
}

/// What has not been read yet of a list of offers.
struct Offers<'h>(&'h str);

impl<'h> Offers<'h> {
    fn answer(mut self) -> Option<&'static str> {
        loop {
            while self.eat(',') {}
            let mut offer = Offer::of(self.token()?);
            while self.eat(';') {
                let parameter = self.token()?;
                let value = if self.eat('=') { Some(self.value()?) } else { None };
                offer.take(parameter, value.as_deref());
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

    /// Whether `char` is next; if so, it is read.
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

    /// A token, or what a quoted string says.
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

/// What one offer comes to.
struct Offer<'h> {
    acceptable: bool,
    /// It says how large the server's window may be.
    names_window: bool,
    seen: Vec<&'h str>,
}

impl<'h> Offer<'h> {
    fn of(extension: &str) -> Self {
        Self { acceptable: extension == EXTENSION, names_window: false, seen: Vec::new() }
    }

    fn take(&mut self, parameter: &'h str, value: Option<&str>) {
        self.acceptable &= !self.seen.contains(&parameter)
            && match (parameter, value) {
                ("server_no_context_takeover" | "client_no_context_takeover", None) => true,
                ("client_max_window_bits", None) => true,
                ("client_max_window_bits", Some(bits)) => window_bits(bits).is_some(),
                ("server_max_window_bits", Some(bits)) => window_bits(bits) == Some(SERVER_WINDOW_BITS),
                _ => false,
            };
        self.names_window |= parameter == "server_max_window_bits";
        // Only parameters that are known get this far, so there are few.
        if self.acceptable {
            self.seen.push(parameter);
        }
    }
}

/// 8 to 15, without a zero or a sign in front. Source: RFC 7692 §7.1.2.
fn window_bits(text: &str) -> Option<u8> {
    let bits = text.parse().ok()?;
    ((8..=15).contains(&bits) && !text.starts_with(['0', '+'])).then_some(bits)
}

/// Whether any of `frames` is to be compressed for connections that have agreed upon `bytes_min`.
pub fn is_worthwhile<'f>(frames: impl IntoIterator<Item = &'f Frame>, bytes_min: u32) -> bool {
    frames.into_iter().any(|frame| websocket::payload(frame.bytes()).len() >= bytes_min as usize)
}

/// Appends `frame` to `out`: compressed, if its message has `bytes_min` bytes or more and gets smaller; else as it
/// is.
pub fn push(out: &mut Vec<u8>, frame: &Frame, bytes_min: u32) {
    let message = websocket::payload(frame.bytes());
    if message.len() < bytes_min as usize || !push_compressed(out, message) {
        out.extend_from_slice(frame.bytes());
    }
}

/// Appends `message` as one compressed frame, or answers `false` and leaves `out` as it was. An empty message never
/// gets smaller, so that RFC 7692 §7.2.3.6 does not arise.
fn push_compressed(out: &mut Vec<u8>, message: &[u8]) -> bool {
    let start = out.len();
    websocket::push_compressed_frame(out, |out| {
        let payload_at = out.len();
        // What does not fit here does not get smaller, or hardly.
        out.reserve(message.len() + FLUSHED.len());
        let taken = COMPRESS.with_borrow_mut(|compress| {
            compress.reset();
            compress.compress_vec(message, out, FlushCompress::Sync).ok().map(|_| compress.total_in())
        });
        // Only while there is room left has everything been flushed.
        let is_whole = taken == Some(message.len() as u64)
            && out.len() < out.capacity()
            && out[payload_at..].ends_with(&FLUSHED);
        if is_whole {
            out.truncate(out.len() - FLUSHED.len());
        }
        is_whole && out.len() - payload_at < message.len()
    }) || {
        out.truncate(start);
        false
    }
}

/// The message that arrived as `payload`. Stops as soon as it turns out to be longer than `bytes_max`, and holds
/// never more than one byte beyond that.
///
/// A message may consist of several streams, each with a last block of its own; one that ends within a block is not
/// a message.
///
/// Source: RFC 7692 §7.2.2, §7.2.3.
///
/// # Errors
/// [`Violation::NotDeflate`], [`Violation::TooBig`].
pub(super) fn inflate(payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, Violation> {
    let mut message = Vec::new();
    if payload.is_empty() {
        // Strictly it is one octet of 0, but there is only one thing that it can mean.
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
        // What did not travel comes next. With it the stream has ended, or is between two blocks and ends with one more
        // that is the last; if the message is whole, neither adds anything to it.
        let len = message.len();
        let is_whole = match step(inflate, &FLUSHED, &mut message, bytes_max)? {
            ([], true) => true,
            ([], false) => matches!(step(inflate, &END, &mut message, bytes_max)?, ([], true)),
            _ => false,
        };
        if is_whole && message.len() == len { Ok(message) } else { Err(Violation::NotDeflate) }
    })
}

/// Inflates `input` to its end or to that of a stream: what is left of it, and whether a stream ended.
fn step<'i>(
    inflate: &mut Decompress,
    mut input: &'i [u8],
    message: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<(&'i [u8], bool), Violation> {
    loop {
        if message.len() == message.capacity() {
            // Twice as much, but no more than shows that it is too long. JSON seldom shrinks to less than a quarter.
            let room = message.len().max(input.len().saturating_mul(4)).max(ROOM_BYTES);
            message.reserve_exact(room.min(bytes_max.saturating_sub(message.len()).saturating_add(1)));
        }
        let taken = inflate.total_in();
        let status = inflate.decompress_vec(input, message, FlushDecompress::Sync);
        let status = status.map_err(|_| Violation::NotDeflate)?;
        input = &input[(inflate.total_in() - taken) as usize..];
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::wire::websocket::text_frame;

    fn frame(text: &str) -> Frame {
        text_frame(|out| out.extend_from_slice(text.as_bytes()))
    }

    fn pushed(text: &str, bytes_min: u32) -> Vec<u8> {
        let mut out = b"before".to_vec();
        push(&mut out, &frame(text), bytes_min);
        out.strip_prefix(b"before").expect("what was there stays").to_vec()
    }

    /// As many bytes as `len`, that no compressor makes less of.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u32;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..len).map(next).collect()
    }

    /// One stored block that is not the last.
    fn stored(bytes: &[u8]) -> Vec<u8> {
        let len = u16::try_from(bytes.len()).unwrap();
        [&[0][..], &len.to_le_bytes(), &(!len).to_le_bytes(), bytes].concat()
    }

    #[test]
    fn offers_are_accepted_or_declined() {
        let plain = Some(ANSWER);
        let window = Some(ANSWER_WITH_WINDOW);
        let table: [(&[&str], Option<&str>); _] = [
            (&[], None),
            (&[""], None),
            (&["permessage-deflate"], plain),
            (&["permessage-deflate; client_max_window_bits"], plain),
            (&["  permessage-deflate ;client_max_window_bits = 15\t"], plain),
            (&["permessage-deflate; client_max_window_bits=8"], plain),
            (&["permessage-deflate; client_max_window_bits=\"10\""], plain),
            (&["permessage-deflate; server_no_context_takeover; client_no_context_takeover"], plain),
            (&["permessage-deflate; server_max_window_bits=15"], window),
            (&["permessage-deflate; server_max_window_bits=\"1\\5\"; client_max_window_bits"], window),
            // Another extension, and offers in one header or several.
            (&["x-webkit-deflate-frame"], None),
            (&["permessage-deflate-2"], None),
            (&["foo; a=\"permessage-deflate, \\\"\", permessage-deflate"], plain),
            (&["foo", "permessage-deflate"], plain),
            (&["permessage-deflate; server_max_window_bits=10, permessage-deflate"], plain),
            (&["permessage-deflate; server_max_window_bits=10", "permessage-deflate"], plain),
            (&["permessage-deflate; server_max_window_bits=15, permessage-deflate"], window),
            (&[", ,permessage-deflate,"], plain),
            // A window that the shared form does not fit in.
            (&["permessage-deflate; server_max_window_bits=14"], None),
            (&["permessage-deflate; server_max_window_bits=8"], None),
            // Values that cannot be.
            (&["permessage-deflate; server_max_window_bits"], None),
            (&["permessage-deflate; server_max_window_bits=16"], None),
            (&["permessage-deflate; server_max_window_bits=015"], None),
            (&["permessage-deflate; server_max_window_bits=+15"], None),
            (&["permessage-deflate; server_max_window_bits=15.0"], None),
            (&["permessage-deflate; client_max_window_bits=7"], None),
            (&["permessage-deflate; client_max_window_bits=16"], None),
            (&["permessage-deflate; client_max_window_bits=x"], None),
            (&["permessage-deflate; client_max_window_bits=999999999999"], None),
            (&["permessage-deflate; server_no_context_takeover=1"], None),
            (&["permessage-deflate; client_no_context_takeover=\"true\""], None),
            // Parameters that are unknown or stand twice.
            (&["permessage-deflate; level=9"], None),
            (&["permessage-deflate; Server_No_Context_Takeover"], None),
            (&["permessage-deflate; client_max_window_bits; client_max_window_bits"], None),
            (&["permessage-deflate; server_max_window_bits=15; server_max_window_bits=15"], None),
            (&["permessage-deflate; server_no_context_takeover; server_no_context_takeover"], None),
            // What cannot be read, and what follows it.
            (&["permessage-deflate;"], None),
            (&["permessage-deflate; ;"], None),
            (&["permessage-deflate client_max_window_bits"], None),
            (&["permessage-deflate; client_max_window_bits="], None),
            (&["permessage-deflate; client_max_window_bits=\"15"], None),
            (&["permessage-deflate; client_max_window_bits=\"\""], None),
            (&["permessage-deflate; client_max_window_bits=\"1 5\""], None),
            (&["permessage-deflate; client_max_window_bits=\"15\\"], None),
            (&["permessage-deflate=1"], None),
            (&["= , permessage-deflate"], None),
            (&["=", "permessage-deflate"], plain),
        ];
        for (values, expected) in table {
            assert_eq!(negotiate(values.iter().copied()), expected, "{values:?}");
        }
    }

    /// Source: RFC 7692 §7.2.3.
    #[test]
    fn the_examples_of_the_specification_are_inflated() {
        let table: [&[u8]; _] = [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
            // The last block is an empty one, whose length is what does not travel.
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x04],
            // The last block with nothing after it, as a sender has it that adds no octet.
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
        ];
        for payload in table {
            assert_eq!(inflate(payload, 5).as_deref(), Ok(&b"Hello"[..]), "{payload:02x?}");
            assert_eq!(inflate(payload, 4), Err(Violation::TooBig { bytes_max: 4 }), "{payload:02x?}");
        }
        assert_eq!(inflate(&[0x00], 0).as_deref(), Ok(&b""[..]), "the empty message of §7.2.3.6");
        assert_eq!(inflate(&[], 0).as_deref(), Ok(&b""[..]));
    }

    #[test]
    fn several_streams_are_one_message() {
        let last = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let message = [&last[..], &last, &stored(b", world"), &[0x00]].concat();
        assert_eq!(inflate(&message, 100).as_deref(), Ok(&b"HelloHello, world"[..]));
    }

    #[test]
    fn what_is_no_whole_message_is_refused() {
        let pushed = pushed(&"Hello, Hello, Hello. ".repeat(20), 0);
        let whole = websocket::payload(&pushed);
        for cut in 1..whole.len() - 1 {
            assert_eq!(inflate(&whole[..cut], 10_000), Err(Violation::NotDeflate), "cut at {cut}");
        }
        let table: [&[u8]; _] = [
            b"\xff\xff\xff\xff",
            b"{\"event\":\"pusher:ping\"}",
            // A reserved kind of block, a stored block whose length is wrong, and one that is not all there.
            &[0x06],
            &[0x00, 0x05, 0x00, 0xfa, 0xfe, b'H', b'e', b'l', b'l', b'o', 0x00],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, b'H'],
            // A distance that leads to before the message: nothing is kept from the one before.
            &[0x02, 0x02, 0x00, 0x00],
        ];
        for payload in table {
            assert_eq!(inflate(payload, 1000), Err(Violation::NotDeflate), "{payload:02x?}");
            assert_eq!(inflate(whole, 420).map(|message| message.len()), Ok(420), "the next one is unharmed");
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let mut out = Vec::new();
        push(&mut out, &frame(&"\0".repeat(1024 * 1024)), 0);
        assert!(out.len() < 8 * 1024, "{} bytes", out.len());
        let bomb = websocket::payload(&out);
        assert_eq!(inflate(bomb, 32 * 1024), Err(Violation::TooBig { bytes_max: 32 * 1024 }));
        assert_eq!(inflate(bomb, 1024 * 1024 - 1), Err(Violation::TooBig { bytes_max: 1024 * 1024 - 1 }));
        let message = inflate(bomb, 1024 * 1024).unwrap();
        assert_eq!((message.len(), message.capacity() <= 1024 * 1024 + 1), (1024 * 1024, true));
    }

    #[test]
    fn a_message_goes_out_compressed_if_it_is_long_enough_and_gets_smaller() {
        let text = r#"{"id":1,"name":"one"},"#.repeat(20);
        let (len, plain) = (text.len() as u32, frame(&text));
        for bytes_min in [0, len - 1, len] {
            let bytes = pushed(&text, bytes_min);
            assert_eq!(bytes[0], 0xc1, "the first reserved bit is set");
            assert_eq!(usize::from(bytes[1]), bytes.len() - 2);
            assert!(!bytes.ends_with(&FLUSHED));
            assert_eq!(inflate(&bytes[2..], text.len()).as_deref(), Ok(text.as_bytes()));
        }
        assert_eq!(pushed(&text, len + 1), plain.bytes()[..]);
        assert!(is_worthwhile([&frame("short"), &plain], len));
        assert!(!is_worthwhile([&frame("short"), &plain], len + 1));
        let noise = hex::encode(noise(40_000));
        let bytes = pushed(&noise, 0);
        assert_eq!(bytes[..2], [0xc1, 126], "{} bytes", bytes.len());
        assert_eq!(inflate(&bytes[4..], 80_000).as_deref(), Ok(noise.as_bytes()));
        for short in ["", "x", "{}"] {
            assert_eq!(pushed(short, 0), frame(short).bytes()[..], "{short:?} gets no smaller");
        }
    }

    #[test]
    fn what_gets_no_smaller_leaves_no_trace() {
        for len in [0, 1, 10, 3000, 70_000] {
            let mut out = b"before".to_vec();
            let smaller = push_compressed(&mut out, &noise(len));
            assert_eq!((smaller, &out[..]), (false, &b"before"[..]), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn what_goes_out_comes_in_again(text in "([a-f]{0,30}|\\PC{0,30}){0,20}") {
            let bytes = pushed(&text, 0);
            let start = bytes.len() - websocket::payload(&bytes).len();
            if bytes[0] & 0x40 != 0 {
                prop_assert_eq!(inflate(&bytes[start..], text.len()).unwrap(), text.as_bytes());
                let one_less = inflate(&bytes[start..], text.len() - 1);
                prop_assert_eq!(one_less, Err(Violation::TooBig { bytes_max: text.len() - 1 }));
            } else {
                prop_assert_eq!(&bytes[start..], text.as_bytes());
            }
        }

        #[test]
        fn no_bytes_make_the_inflater_panic_or_hoard(bytes: Vec<u8>, bytes_max in 0usize..5000) {
            if let Ok(message) = inflate(&bytes, bytes_max) {
                prop_assert!(message.len() <= bytes_max && message.capacity() <= bytes_max + 1);
            }
        }

        #[test]
        fn no_value_makes_the_negotiation_panic(value in "[ ,;=\"\\\\a-z0-9_-]{0,60}") {
            let _ = negotiate([&*format!("permessage-deflate{value}")]);
        }
    }
}
