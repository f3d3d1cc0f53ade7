//! permessage-deflate: a compressed message is inflated as another library does it, never beyond the limit; a message that
//! pusherd compresses inflates to itself. The input is used as a payload, and then as a text.

use pusherd::protocol::wire::websocket::{Decoder, Incoming, Violation};
use pusherd::protocol::wire::{Form, Frame};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::naive;

const BYTES_MAX: usize = 5000;

const DEFLATED: Form = Form::DeflatedFrame { bytes_min: 0 };

/// The end of every message: four bytes that are not sent, and an empty last block.
const END: [u8; 6] = [0x00, 0x00, 0xff, 0xff, 0x03, 0x00];

/// See the module.
pub fn holds(data: &[u8]) {
    if data.len() < BYTES_MAX {
        inflates(data);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        returns(text);
    }
}

/// Decodes one compressed message.
fn received(payload: &[u8], bytes_max: usize) -> Result<String, Violation> {
    let mut decoder = Decoder::new(DEFLATED);
    let mut received = None;
    decoder.feed(&mut naive::masked(0xc1, payload, [1, 2, 3, 4]), bytes_max, |incoming| {
        let Incoming::Text(text) = incoming else { panic!("{incoming:?}") };
        received = Some(text.to_owned());
        true
    })?;
    Ok(received.expect("one message"))
}

fn inflates(payload: &[u8]) {
    let received = received(payload, BYTES_MAX);
    let refused = matches!(received, Err(Violation::NotDeflate | Violation::TooBig { .. }));
    match reference(payload) {
        Some(bytes) if bytes.len() <= BYTES_MAX => {
            assert_eq!(received, String::from_utf8(bytes).map_err(|_| Violation::NotUtf8));
        }
        // pusherd stops at the limit, so it may not see an error after it.
        Some(_) | None => assert!(refused, "{received:?}"),
    }
}

/// The message, or a part of it that exceeds the limit. `None` if it is invalid.
fn reference(payload: &[u8]) -> Option<Vec<u8>> {
    if payload.is_empty() {
        return Some(Vec::new());
    }
    let (message, is_whole) = streams(payload);
    // A payload that ends with a last block is complete.
    if is_whole || message.len() > BYTES_MAX {
        return Some(message);
    }
    let (ended, is_whole) = streams(&[payload, &END].concat());
    // If the payload ends between two blocks, the end adds nothing to the message.
    (is_whole && ended.len() == message.len()).then_some(message)
}

/// Inflates one stream after the other. Returns the message, and whether the last stream ends with the input.
fn streams(mut input: &[u8]) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    while !input.is_empty() {
        let mut inflater = Box::<DecompressorOxide>::default();
        let mut room = vec![0; BYTES_MAX + 100];
        let flags = TINFL_FLAG_HAS_MORE_INPUT | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, taken, made) = decompress(&mut inflater, input, &mut room, 0, flags);
        all.extend(&room[..made]);
        if status != TINFLStatus::Done || all.len() > BYTES_MAX {
            return (all, false);
        }
        input = &input[taken..];
    }
    (all, true)
}

fn returns(text: &str) {
    let frame = Frame::from_text(text);
    let mut out = Vec::new();
    DEFLATED.append(&mut out, &frame);
    let [(first, payload)] = &naive::frames(&out)[..] else { panic!("one frame") };
    if *first == 0x81 {
        assert_eq!(out, frame.bytes()[..]);
        return;
    }
    assert_eq!(*first, 0xc1);
    assert!(payload.len() < text.len());
    assert_eq!(received(payload, text.len()).as_deref(), Ok(text));
    let bytes_max = text.len() - 1;
    if payload.len() <= bytes_max {
        assert_eq!(received(payload, bytes_max), Err(Violation::TooBig { bytes_max }));
    }
}
