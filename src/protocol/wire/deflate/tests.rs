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

/// `len` bytes that cannot be compressed.
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
        // The last block is empty, and its length is the part that is not sent.
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
fn an_incomplete_or_invalid_message_is_rejected() {
    let pushed = pushed(&"Hello, Hello, Hello. ".repeat(20), 0);
    let whole = websocket::payload(&pushed);
    for cut in 1..whole.len() - 1 {
        assert_eq!(inflate(&whole[..cut], 10_000), Err(Violation::NotDeflate), "cut at {cut}");
    }
    let table: [&[u8]; _] = [
        b"\xff\xff\xff\xff",
        b"{\"event\":\"pusher:ping\"}",
        // A reserved type of block, a stored block with a wrong length, and an incomplete one.
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
fn a_decompression_bomb_is_stopped_at_the_limit() {
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
fn a_message_is_compressed_if_it_is_long_enough_and_gets_smaller() {
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
fn a_message_that_gets_no_smaller_leaves_the_output_unchanged() {
    for len in [0, 1, 10, 3000, 70_000] {
        let mut out = b"before".to_vec();
        let smaller = push_compressed(&mut out, &noise(len));
        assert_eq!((smaller, &out[..]), (false, &b"before"[..]), "{len} bytes");
    }
}

proptest! {
    #[test]
    fn a_compressed_message_inflates_to_itself(text in "([a-f]{0,30}|\\PC{0,30}){0,20}") {
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
    fn no_bytes_make_inflate_panic_or_exceed_the_limit(bytes: Vec<u8>, bytes_max in 0usize..5000) {
        if let Ok(message) = inflate(&bytes, bytes_max) {
            prop_assert!(message.len() <= bytes_max && message.capacity() <= bytes_max + 1);
        }
    }

    #[test]
    fn no_header_makes_the_negotiation_panic(value in "[ ,;=\"\\\\a-z0-9_-]{0,60}") {
        let _ = negotiate([&*format!("permessage-deflate{value}")]);
    }
}
