//! What stands around everything that nodes send each other: a version, a kind, and what belongs to it.
//!
//! ```text
//! 1M<message>                                       from a node to the nodes of a topic
//! 1K<number><message>                               the same, and it is kept under this number
//! 1T<before> <version> <change> <length> <id><info> a group has changed
//! 1R<partition>                                     there are records to read
//! ```
//!
//! Numbers are decimal, that of a kept message always of 20 digits; the change is `o`ccupied, `v`acated, `a`dded or
//! `r`emoved, and the length is the id's in bytes. The kinds are letters because a broker's scripts write some of them.
//! What is of another version, or makes no sense, is dropped by whoever reads it.

use std::sync::Arc;

use bytes::Bytes;

use super::truth::{Change, Group, Transition, Version};

/// The version that this release writes and reads.
const VERSION: u8 = b'1';

/// Digits of a kept message's number.
const NUMBER_DIGITS: usize = 20;

/// What was in an envelope.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Envelope {
    /// A message; what is in it is not the cluster's business.
    Message(Bytes),
    /// A message that is kept, and its number.
    Kept(Version, Bytes),
    /// A change of the topic's group.
    Changed(Transition),
    /// The reader of this part's records has something to read.
    Records(u16),
}

/// Puts a message into an envelope.
#[must_use]
pub fn message(parts: &[&[u8]]) -> Bytes {
    let mut bytes = Vec::with_capacity(2 + parts.iter().map(|part| part.len()).sum::<usize>());
    bytes.extend_from_slice(&[VERSION, b'M']);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.into()
}

/// As a broker's script does, for brokers that have none.
#[must_use]
pub fn kept(number: Version, message: &[u8]) -> Bytes {
    let mut bytes = format!("1K{number:020}").into_bytes();
    bytes.extend_from_slice(message);
    bytes.into()
}

/// As a broker's script does, for brokers that have none.
#[must_use]
pub fn changed(transition: &Transition) -> Bytes {
    let (letter, id, info): (_, &str, &[u8]) = match &transition.change {
        Change::Occupied => ('o', "", b""),
        Change::Vacated => ('v', "", b""),
        Change::Added(id, info) => ('a', id, info),
        Change::Removed(id) => ('r', id, b""),
    };
    let Transition { before, version, .. } = transition;
    let mut bytes = format!("1T{before} {version} {letter} {} {id}", id.len()).into_bytes();
    bytes.extend_from_slice(info);
    bytes.into()
}

/// As a broker's script does, for brokers that have none.
#[must_use]
pub fn records(partition: u16) -> Bytes {
    format!("1R{partition}").into()
}

/// Opens what came on the topic of `group` (or on another one, where no change is told of); `None`: it is of another
/// version or makes no sense.
#[must_use]
pub fn open(group: Option<&Group>, bytes: &Bytes) -> Option<Envelope> {
    let (&[version, kind], _) = bytes.split_first_chunk::<2>()?;
    if version != VERSION {
        return None;
    }
    let rest = bytes.slice(2..);
    match kind {
        b'M' => Some(Envelope::Message(rest)),
        b'K' => {
            let number = rest.get(..NUMBER_DIGITS)?;
            Some(Envelope::Kept(decimal(number)?, rest.slice(NUMBER_DIGITS..)))
        }
        b'T' => Some(Envelope::Changed(transition(Arc::clone(group?), &rest)?)),
        b'R' => Some(Envelope::Records(u16::try_from(decimal(&rest)?).ok()?)),
        _ => None,
    }
}

/// Reads `<before> <version> <change> <length> <id><info>`.
#[must_use]
pub fn transition(group: Group, bytes: &Bytes) -> Option<Transition> {
    let mut at = 0;
    let mut word = || {
        let rest = bytes.get(at..)?;
        let end = rest.iter().position(|&byte| byte == b' ')?;
        at += end + 1;
        rest.get(..end)
    };
    let (before, version) = (decimal(word()?)?, decimal(word()?)?);
    let (letter, length) = (word()?, decimal(word()?)?);
    let end = at.checked_add(usize::try_from(length).ok()?)?;
    let id = || Some(Arc::from(std::str::from_utf8(bytes.get(at..end)?).ok()?));
    let change = match letter {
        b"o" => Change::Occupied,
        b"v" => Change::Vacated,
        b"a" => Change::Added(id()?, bytes.slice(end..)),
        b"r" => Change::Removed(id()?),
        _ => return None,
    };
    Some(Transition { group, before, version, change })
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| std::str::from_utf8(digits).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn group() -> Group {
        Arc::from("g")
    }

    #[test]
    fn what_was_put_in_comes_out() {
        let open = |bytes: Bytes| open(Some(&group()), &bytes);
        assert_eq!(open(message(&[b"a", b"", b"bc"])), Some(Envelope::Message(Bytes::from_static(b"abc"))));
        let number = u64::MAX;
        assert_eq!(open(kept(number, b"x")), Some(Envelope::Kept(number, Bytes::from_static(b"x"))));
        assert_eq!(open(records(63)), Some(Envelope::Records(63)));
        let (id, info) = (Arc::from("a user ü"), Bytes::from_static(b"{\"a\": 1}"));
        for change in [
            Change::Occupied,
            Change::Vacated,
            Change::Added(Arc::clone(&id), info),
            Change::Added(Arc::clone(&id), Bytes::new()),
            Change::Removed(id),
        ] {
            let transition = Transition { group: group(), before: 0, version: u64::MAX, change };
            assert_eq!(open(changed(&transition)), Some(Envelope::Changed(transition)));
        }
    }

    #[test]
    fn what_makes_no_sense_is_none() {
        for bytes in [
            "",
            "1",
            "2M",
            "1X",
            "1K1",
            "1K0000000000000000000x",
            "1R",
            "1R65536",
            "1R-1",
            "1R+1",
            "1T",
            "1T1 2 o",
            "1T1 2 x 0 ",
            "1T1 2 a 9 short",
            "1Ta 2 o 0 ",
            "1T1 2 a 18446744073709551615 x",
            "1T 1 2 o 0 ",
        ] {
            assert_eq!(open(Some(&group()), &Bytes::from(bytes)), None, "{bytes:?}");
        }
        assert_eq!(open(None, &Bytes::from("1T1 2 o 0 ")), None, "nobody's change");
        assert_eq!(open(Some(&group()), &Bytes::from_static(b"1T1 2 a 1 \xff")), None, "no text");
    }

    proptest! {
        #[test]
        fn nothing_that_comes_makes_it_panic(bytes: Vec<u8>, text in "1[MKTR][0-9 aorv\u{fc}]{0,40}") {
            let _ = open(Some(&group()), &bytes.into());
            let _ = open(Some(&group()), &text.into_bytes().into());
        }
    }
}
