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

/// Feeds `bytes` in pieces of `step` and returns what comes out, in words.
fn decode(bytes: &[u8], step: usize, max: usize) -> (Vec<String>, Option<Violation>) {
    decode_with(Decoder::default(), bytes, step, max)
}

/// The decoder of a connection that negotiated compression.
fn inflating() -> Decoder {
    Decoder::new(Form::DeflatedFrame { bytes_min: 0 })
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
fn an_unfinished_message_takes_at_most_the_limit_and_an_eighth() {
    const MAX: usize = 32 * 1024;
    let whole = masked(0x81, &[b'x'; MAX]);
    let parts: Vec<u8> =
        (0..MAX / 128).flat_map(|part| masked(if part == 0 { 0x01 } else { 0x00 }, &[b'x'; 128])).collect();
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
            let buffered = decoder.buffered_bytes();
            assert!(buffered <= MAX / 8 * 9 + 64, "{buffered} bytes after pieces of {step}");
        }
        assert!(decoder.is_unfinished());
    }
}

#[test]
fn messages_are_decoded_however_the_bytes_are_split() {
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
fn compressed_messages_are_decoded_however_the_bytes_are_split() {
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
        let expected =
            ["Hello", "ping 3", "Hello", "plain", "plain", "Hello", "", "binary"].map(|said| match said {
                "ping 3" | "binary" => said.to_owned(),
                text => format!("text {text}"),
            });
        assert_eq!(said, expected);
    }
}

#[test]
fn a_decoder_that_skips_compressed_messages_inflates_nothing() {
    let mut decoder = inflating();
    decoder.skip_compressed();
    let bytes = [masked(0xc1, b"no deflate"), masked(0x81, b"plain"), masked(0x88, &[])].concat();
    let (said, violation) = decode_with(decoder, &bytes, 1000, 100);
    assert_eq!((said.len(), violation), (2, None), "{said:?}");
}

#[test]
fn only_the_first_frame_of_a_message_may_have_the_compression_bit() {
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
fn the_limit_and_utf8_are_checked_on_the_inflated_message() {
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
fn a_violation_of_the_framing_is_reported() {
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
fn text_that_is_not_utf8_is_rejected() {
    for bytes in [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"] {
        assert_eq!(decode(&masked(0x81, bytes), 100, 1000).1, Some(Violation::NotUtf8));
    }
    assert_eq!(decode(&masked(0x88, b"\x03\xe8\xff"), 100, 1000).1, Some(Violation::NotUtf8));
}

#[test]
fn a_message_over_the_limit_is_rejected_at_its_header() {
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
fn an_idle_decoder_owns_no_memory() {
    let mut decoder = Decoder::default();
    let frame = masked(0x81, &[b'x'; 500]);
    for piece in frame.chunks(10) {
        decoder.feed(&mut piece.to_vec(), 1000, |_| true).unwrap();
    }
    assert_eq!(decoder.buffered_bytes(), 0);
}

#[test]
fn the_header_of_a_frame_has_the_form_for_its_length() {
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
    fn no_bytes_make_the_decoder_panic_or_exceed_its_memory(bytes: Vec<u8>, step in 1usize..50, inflates: bool) {
        let mut decoder = if inflates { inflating() } else { Decoder::default() };
        for piece in bytes.chunks(step) {
            if decoder.feed(&mut piece.to_vec(), 64, |_| true).is_err() {
                break;
            }
            prop_assert!(decoder.buffered_bytes() <= 1024);
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
