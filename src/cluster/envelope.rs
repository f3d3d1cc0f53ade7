//! The envelope of every message between nodes: format version, kind, content.
//!
//! ```text
//! 1M<message>                                         from a node to the subscribers of a topic
//! 1K<version><message>                                the same, and the message is cached under this version
//! 1T<previous> <version> <change> <length> <id><info> a transition of the topic's group
//! 1R<partition>                                       the partition has new records
//! ```
//!
//! Numbers are decimal, the version of a cached message always with 20 digits. A change is `o`ccupied, `v`acated,
//! `a`dded or `r`emoved; the length is that of the id in bytes. Kinds are letters because scripts write some of them.
//! Receivers drop malformed messages and other format versions.

use std::sync::Arc;

use bytes::Bytes;

use super::group::{Change, Group, Transition, Version};

/// The format version that this release writes and reads.
const FORMAT: u8 = b'1';

/// Digits of a cached message's version.
const VERSION_DIGITS: usize = 20;

/// The content of an envelope.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Envelope {
    /// A message, which is opaque to the cluster.
    Message(Bytes),
    /// A message that is cached, and its version.
    Cached(Version, Bytes),
    /// A transition of the topic's group.
    Changed(Transition),
    /// A partition has new records for their reader.
    Records(u16),
}

/// Puts a message into an envelope.
#[must_use]
pub fn message(parts: &[&[u8]]) -> Bytes {
    let mut bytes = Vec::with_capacity(2 + parts.iter().map(|part| part.len()).sum::<usize>());
    bytes.extend_from_slice(&[FORMAT, b'M']);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.into()
}

/// The envelope of a cached message, for engines without scripts.
#[must_use]
pub fn cached(version: Version, message: &[u8]) -> Bytes {
    let mut bytes = format!("1K{version:020}").into_bytes();
    bytes.extend_from_slice(message);
    bytes.into()
}

/// The envelope of a transition, for engines without scripts.
#[must_use]
pub fn changed(transition: &Transition) -> Bytes {
    let (letter, id, info): (_, &str, &[u8]) = match &transition.change {
        Change::Occupied => ('o', "", b""),
        Change::Vacated => ('v', "", b""),
        Change::Added(id, info) => ('a', id, info),
        Change::Removed(id) => ('r', id, b""),
    };
    let Transition { previous, version, .. } = transition;
    let mut bytes = format!("1T{previous} {version} {letter} {} {id}", id.len()).into_bytes();
    bytes.extend_from_slice(info);
    bytes.into()
}

/// The announcement of new records, for engines without scripts.
#[must_use]
pub fn records(partition: u16) -> Bytes {
    format!("1R{partition}").into()
}

/// Opens an envelope that arrived on the topic of `group`, or on another topic, which has no transitions. `None`: it is
/// malformed or has another format version.
#[must_use]
pub fn open(group: Option<&Group>, bytes: &Bytes) -> Option<Envelope> {
    let (&[format, kind], _) = bytes.split_first_chunk::<2>()?;
    if format != FORMAT {
        return None;
    }
    let rest = bytes.slice(2..);
    match kind {
        b'M' => Some(Envelope::Message(rest)),
        b'K' => {
            let version = rest.get(..VERSION_DIGITS)?;
            Some(Envelope::Cached(decimal(version)?, rest.slice(VERSION_DIGITS..)))
        }
        b'T' => Some(Envelope::Changed(transition(Arc::clone(group?), &rest)?)),
        b'R' => Some(Envelope::Records(u16::try_from(decimal(&rest)?).ok()?)),
        _ => None,
    }
}

/// Reads `<previous> <version> <change> <length> <id><info>`.
#[must_use]
pub fn transition(group: Group, bytes: &Bytes) -> Option<Transition> {
    let mut at = 0;
    let mut word = || {
        let rest = bytes.get(at..)?;
        let end = rest.iter().position(|&byte| byte == b' ')?;
        at += end + 1;
        rest.get(..end)
    };
    let (previous, version) = (decimal(word()?)?, decimal(word()?)?);
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
    Some(Transition { group, previous, version, change })
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
    fn each_kind_opens_as_it_was_enclosed() {
        let open = |bytes: Bytes| open(Some(&group()), &bytes);
        assert_eq!(open(message(&[b"a", b"", b"bc"])), Some(Envelope::Message(Bytes::from_static(b"abc"))));
        let version = u64::MAX;
        assert_eq!(open(cached(version, b"x")), Some(Envelope::Cached(version, Bytes::from_static(b"x"))));
        assert_eq!(open(records(63)), Some(Envelope::Records(63)));
        let (id, info) = (Arc::from("a user ü"), Bytes::from_static(b"{\"a\": 1}"));
        for change in [
            Change::Occupied,
            Change::Vacated,
            Change::Added(Arc::clone(&id), info),
            Change::Added(Arc::clone(&id), Bytes::new()),
            Change::Removed(id),
        ] {
            let transition = Transition { group: group(), previous: 0, version: u64::MAX, change };
            assert_eq!(open(changed(&transition)), Some(Envelope::Changed(transition)));
        }
    }

    #[test]
    fn a_malformed_envelope_is_rejected() {
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
        assert_eq!(open(None, &Bytes::from("1T1 2 o 0 ")), None, "a transition needs a group");
        assert_eq!(open(Some(&group()), &Bytes::from_static(b"1T1 2 a 1 \xff")), None, "an id is UTF-8");
    }

    proptest! {
        #[test]
        fn opening_never_panics(bytes: Vec<u8>, text in "1[MKTR][0-9 aorv\u{fc}]{0,40}") {
            let _ = open(Some(&group()), &bytes.into());
            let _ = open(Some(&group()), &text.into_bytes().into());
        }
    }
}
