//! The messages on the topics of channels and users, as bytes.
//!
//! ```text
//! e<json>                      an event, to all subscribers
//! x<socket><json>              an event, to all subscribers but one: its number, 8 bytes
//! 2<epoch><offset><e… or x…>   an event with its position in the channel: 20 decimal digits each
//! c<node><count><wants_counts> 16 and 4 bytes: the node's subscribers; `?` if it asks the others for theirs, or `.`
//! ```
//!
//! The JSON of an event is the payload of the WebSocket frame that subscribers receive. A position stands in front
//! of the event, in digits, so that a script of the coordinator can put it there. Nothing numbers events yet, and the
//! registry takes no position: this release writes none, and delivers an event that has one.
//!
//! # Format versions
//!
//! The first byte is the version of the format. Messages of release 0.1 have none and begin with the letter of their kind.
//! Events without a position and counts are still written like that, so that nodes of 0.1 and of this release read each
//! other's. A digit is a later version: this release reads 2, and drops what is above. Release 0.1 drops all of them.
//!
//! A change that nodes of the last release cannot read gets the next digit. A release writes it only if the release before
//! already read it: then nodes of the two can be members of one cluster while it is upgraded.

use crate::cluster::envelope::{self, Unreadable};
use crate::cluster::group::NodeId;
use crate::protocol::{Epoch, Offset, Position, SocketId};

const TO_ALL: u8 = b'e';
const TO_ALL_BUT_ONE: u8 = b'x';
const COUNT: u8 = b'c';

/// The version of an event with a position, the highest that is read.
const WITH_POSITION: u8 = b'2';

/// Digits of an epoch and of an offset.
const DIGITS: usize = 20;

/// A message on the topic of a group.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum GroupMessage<'a> {
    Event(EventMessage<'a>),
    Count(CountMessage),
}

/// An event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct EventMessage<'a> {
    /// Set by the coordinator if the channel keeps a history.
    pub(super) position: Option<Position>,
    /// The subscriber that is skipped.
    pub(super) except: Option<SocketId>,
    /// The text that subscribers get.
    pub(super) json: &'a str,
}

/// The number of subscribers that a node has in a channel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct CountMessage {
    pub(super) node: NodeId,
    pub(super) count: u32,
    /// Whether the node asks the others for theirs.
    pub(super) wants_counts: bool,
}

impl<'a> GroupMessage<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Event(event) => event.encode(),
            Self::Count(count) => count.encode(),
        }
    }

    pub(super) fn decode(message: &'a [u8]) -> Result<Self, Unreadable> {
        let (&first, rest) = message.split_first().ok_or(Unreadable::Malformed)?;
        let decoded = match first {
            TO_ALL | TO_ALL_BUT_ONE => EventMessage::decode(None, message).map(Self::Event),
            WITH_POSITION => EventMessage::decode_with_position(rest).map(Self::Event),
            COUNT => CountMessage::decode(rest).map(Self::Count),
            version if envelope::is_newer(version, WITH_POSITION) => {
                return Err(Unreadable::NewerFormat { from: None });
            }
            _ => None,
        };
        decoded.ok_or(Unreadable::Malformed)
    }
}

impl<'a> EventMessage<'a> {
    fn encode(&self) -> Vec<u8> {
        let mut message = match self.position {
            Some(Position { epoch, offset }) => format!("2{:020}{:020}", epoch.0, offset.0).into_bytes(),
            None => Vec::new(),
        };
        message.reserve_exact(1 + 8 + self.json.len());
        match self.except {
            Some(socket) => {
                message.push(TO_ALL_BUT_ONE);
                message.extend_from_slice(&socket.number().to_be_bytes());
            }
            None => message.push(TO_ALL),
        }
        message.extend_from_slice(self.json.as_bytes());
        message
    }

    fn decode_with_position(rest: &'a [u8]) -> Option<Self> {
        let (epoch, rest) = rest.split_first_chunk::<DIGITS>()?;
        let (offset, event) = rest.split_first_chunk::<DIGITS>()?;
        let (epoch, offset) = (Epoch(envelope::decimal(epoch)?), Offset(envelope::decimal(offset)?));
        Self::decode(Some(Position { epoch, offset }), event)
    }

    fn decode(position: Option<Position>, event: &'a [u8]) -> Option<Self> {
        let (except, json) = match event.split_first()? {
            (&TO_ALL, json) => (None, json),
            (&TO_ALL_BUT_ONE, rest) => {
                let (socket, json) = rest.split_first_chunk::<8>()?;
                (Some(SocketId::from_number(u64::from_be_bytes(*socket))), json)
            }
            _ => return None,
        };
        Some(Self { position, except, json: std::str::from_utf8(json).ok()? })
    }
}

impl CountMessage {
    fn encode(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(1 + 16 + 4 + 1);
        message.push(COUNT);
        message.extend_from_slice(&self.node.0.to_be_bytes());
        message.extend_from_slice(&self.count.to_be_bytes());
        message.push(if self.wants_counts { b'?' } else { b'.' });
        message
    }

    fn decode(rest: &[u8]) -> Option<Self> {
        let (node, rest) = rest.split_first_chunk::<16>()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let wants_counts = match rest {
            b"?" => true,
            b"." => false,
            _ => return None,
        };
        let (node, count) = (NodeId(u128::from_be_bytes(*node)), u32::from_be_bytes(*count));
        Some(Self { node, count, wants_counts })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const JSON: &str = r#"{"event":"e","channel":"c","data":"ü"}"#;
    const POSITION: Position = Position { epoch: Epoch(u64::MAX), offset: Offset(7) };
    const SOCKET: SocketId = SocketId::from_number(0x3132_3334_3536_3738);

    fn event(position: Option<Position>, except: Option<SocketId>) -> GroupMessage<'static> {
        GroupMessage::Event(EventMessage { position, except, json: JSON })
    }

    fn count(count: u32, wants_counts: bool) -> GroupMessage<'static> {
        GroupMessage::Count(CountMessage { node: NodeId(u128::MAX), count, wants_counts })
    }

    /// Each kind of message, its bytes, and how many of these stand in front of the JSON.
    fn table() -> [(GroupMessage<'static>, Vec<u8>, usize); 6] {
        let event_bytes = |head: &str| (format!("{head}{JSON}").into_bytes(), head.len());
        let count_bytes = |rest: &[u8]| [b"c", &[0xff; 16][..], rest].concat();
        let [all, one] = [event_bytes("e"), event_bytes("x12345678")];
        let position = concat!("2", "18446744073709551615", "00000000000000000007");
        let [all_at, one_at] = ["e", "x12345678"].map(|head| event_bytes(&format!("{position}{head}")));
        [
            (event(None, None), all.0, all.1),
            (event(None, Some(SOCKET)), one.0, one.1),
            (event(Some(POSITION), None), all_at.0, all_at.1),
            (event(Some(POSITION), Some(SOCKET)), one_at.0, one_at.1),
            (count(0, false), count_bytes(b"\0\0\0\0."), 22),
            (count(258, true), count_bytes(b"\0\0\x01\x02?"), 22),
        ]
    }

    #[test]
    fn each_kind_has_its_bytes() {
        for (message, bytes, _) in table() {
            assert_eq!(message.encode(), bytes, "{message:?}");
            assert_eq!(GroupMessage::decode(&bytes), Ok(message));
        }
    }

    #[test]
    fn an_event_without_a_position_is_what_nodes_of_release_0_1_write_and_read() {
        let [(_, to_all, _), (_, to_all_but_one, _), ..] = table();
        assert_eq!(to_all, [b"e", JSON.as_bytes()].concat());
        assert_eq!(to_all_but_one, [b"x12345678", JSON.as_bytes()].concat());
        // That release drops everything else, and so an event with a position.
        let with_position = event(Some(POSITION), None).encode();
        assert!(!matches!(with_position[0], b'e' | b'x' | b'c'));
    }

    #[test]
    fn a_message_that_is_cut_short_is_malformed() {
        for (message, bytes, head) in table() {
            for len in 0..bytes.len() {
                let decoded = GroupMessage::decode(&bytes[..len]);
                // An event ends where its text ends, which may be anywhere but within a character.
                match std::str::from_utf8(bytes.get(head..len).unwrap_or(&[0xff])) {
                    Ok(text) => {
                        let Ok(GroupMessage::Event(event)) = decoded else { panic!("{message:?}: {len}") };
                        assert_eq!(event.json, text, "{message:?}: {len}");
                    }
                    Err(_) => assert_eq!(decoded, Err(Unreadable::Malformed), "{message:?}: {len}"),
                }
            }
        }
    }

    #[test]
    fn a_message_of_no_known_kind_is_malformed() {
        let position = concat!("2", "18446744073709551615", "00000000000000000007");
        let in_it = |rest: &str| format!("{position}{rest}");
        let with_digits = |digits: &str| format!("2{digits}00000000000000000007e{JSON}");
        for bytes in [
            "z".to_owned(),
            "0e{}".to_owned(),
            "1e{}".to_owned(),
            "?e{}".to_owned(),
            "\u{2}e{}".to_owned(),
            in_it("z{}"),
            in_it("c1234567890123456\0\0\0\0."),
            in_it(&in_it("e{}")),
            with_digits("18446744073709551616"),
            with_digits("-0000000000000000001"),
            with_digits("0000000000000000000x"),
            with_digits(" 0000000000000000001"),
        ] {
            assert_eq!(GroupMessage::decode(bytes.as_bytes()), Err(Unreadable::Malformed), "{bytes:?}");
        }
        for bytes in
            [&b"e\xff"[..], b"x12345678\xff", b"c1234567890123456\0\0\0\0", b"c1234567890123456\0\0\0\0!"]
        {
            assert_eq!(GroupMessage::decode(bytes), Err(Unreadable::Malformed), "{bytes:?}");
        }
        let [.., (_, mut count, _)] = table();
        count.push(b'.');
        assert_eq!(GroupMessage::decode(&count), Err(Unreadable::Malformed), "a count has an end");
    }

    #[test]
    fn a_message_of_a_later_version_is_recognised_whatever_follows() {
        for version in b'3'..=b'9' {
            for rest in [&b""[..], b"e{}", b"\xff", &[0; 100]] {
                let message = [&[version], rest].concat();
                let expected = Err(Unreadable::NewerFormat { from: None });
                assert_eq!(GroupMessage::decode(&message), expected, "{message:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_message_is_decoded_as_it_was_encoded(
            position: Option<(u64, u64)>,
            except: Option<u64>,
            json: String,
            node: u128,
            count: u32,
            wants_counts: bool,
        ) {
            let position =
                position.map(|(epoch, offset)| Position { epoch: Epoch(epoch), offset: Offset(offset) });
            let except = except.map(SocketId::from_number);
            let event = GroupMessage::Event(EventMessage { position, except, json: &json });
            let bytes = event.encode();
            prop_assert_eq!(GroupMessage::decode(&bytes), Ok(event));
            let count = GroupMessage::Count(CountMessage { node: NodeId(node), count, wants_counts });
            let bytes = count.encode();
            prop_assert_eq!(GroupMessage::decode(&bytes), Ok(count));
        }

        #[test]
        fn decoding_never_panics(
            bytes: Vec<u8>,
            text in "[excz1-9][0-9]{0,41}[exc]?[0-9a-z?.\u{fc}]{0,30}",
        ) {
            let _ = GroupMessage::decode(&bytes);
            let _ = GroupMessage::decode(text.as_bytes());
        }
    }
}
