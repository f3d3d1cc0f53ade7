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
//!
//! The format version is a digit, and stands first in every message between nodes. All releases so far write and read 1.
//! What is in an envelope has a version of its own: events and counts in `hub::clustered::codec`, requests in
//! `cluster::node::requests`. A receiver drops what it cannot read ([`Unreadable`]) and goes on. So nodes of different
//! releases can be members of one cluster; what a later release changes reaches the nodes that know it.

use std::sync::Arc;

use bytes::Bytes;

use super::group::{Change, Group, NodeId, Transition, Version};

/// The format version that this release writes and reads.
const FORMAT: u8 = b'1';

/// Why a message of another node is dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unreadable {
    /// It is cut short, or of no known kind.
    Malformed,
    /// It has the format version of a later release.
    NewerFormat {
        /// The node that sent it, if the message says so where this release can read it.
        from: Option<NodeId>,
    },
}

/// Whether a byte is the format version of a later release than this one, which knows those up to `known`.
#[must_use]
pub const fn is_newer(version: u8, known: u8) -> bool {
    version.is_ascii_digit() && version > known
}

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

/// Opens an envelope that arrived on the topic of `group`, or on another topic, which has no transitions.
///
/// # Errors
/// [`Unreadable`].
pub fn open(group: Option<&Group>, bytes: &Bytes) -> Result<Envelope, Unreadable> {
    match bytes.first() {
        Some(&FORMAT) => open_known(group, bytes).ok_or(Unreadable::Malformed),
        Some(&format) if is_newer(format, FORMAT) => Err(Unreadable::NewerFormat { from: None }),
        Some(_) | None => Err(Unreadable::Malformed),
    }
}

fn open_known(group: Option<&Group>, bytes: &Bytes) -> Option<Envelope> {
    let kind = *bytes.get(1)?;
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

/// Reads a number in decimal digits, without a sign.
#[must_use]
pub fn decimal(digits: &[u8]) -> Option<u64> {
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
        assert_eq!(open(message(&[b"a", b"", b"bc"])), Ok(Envelope::Message(Bytes::from_static(b"abc"))));
        let version = u64::MAX;
        assert_eq!(open(cached(version, b"x")), Ok(Envelope::Cached(version, Bytes::from_static(b"x"))));
        assert_eq!(open(records(63)), Ok(Envelope::Records(63)));
        let (id, info) = (Arc::from("a user ü"), Bytes::from_static(b"{\"a\": 1}"));
        for change in [
            Change::Occupied,
            Change::Vacated,
            Change::Added(Arc::clone(&id), info),
            Change::Added(Arc::clone(&id), Bytes::new()),
            Change::Removed(id),
        ] {
            let transition = Transition { group: group(), previous: 0, version: u64::MAX, change };
            assert_eq!(open(changed(&transition)), Ok(Envelope::Changed(transition)));
        }
    }

    #[test]
    fn a_malformed_envelope_is_rejected() {
        for bytes in [
            "",
            "1",
            "0M",
            "M",
            "\u{1}M",
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
            assert_eq!(open(Some(&group()), &Bytes::from(bytes)), Err(Unreadable::Malformed), "{bytes:?}");
        }
        let malformed = Err(Unreadable::Malformed);
        assert_eq!(open(None, &Bytes::from("1T1 2 o 0 ")), malformed, "a transition needs a group");
        assert_eq!(open(Some(&group()), &Bytes::from_static(b"1T1 2 a 1 \xff")), malformed, "an id is UTF-8");
    }

    #[test]
    fn an_envelope_that_is_cut_short_is_malformed() {
        let transition =
            Transition { group: group(), previous: 1, version: 2, change: Change::Removed("u".into()) };
        for (bytes, head) in
            [(message(&[b"abc"]), 2), (cached(7, b"x"), 22), (changed(&transition), 11), (records(5), 3)]
        {
            for len in 0..bytes.len() {
                let opened = open(Some(&group()), &bytes.slice(..len));
                assert_eq!(opened == Err(Unreadable::Malformed), len < head, "{bytes:?}: {len}");
            }
        }
    }

    #[test]
    fn an_envelope_of_a_later_version_is_recognised_whatever_follows() {
        for version in b'2'..=b'9' {
            for rest in [&b""[..], b"M", b"Me{}", b"\xff"] {
                let bytes = Bytes::from([&[version], rest].concat());
                assert_eq!(
                    open(Some(&group()), &bytes),
                    Err(Unreadable::NewerFormat { from: None }),
                    "{bytes:?}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn an_envelope_opens_as_it_was_enclosed(
            content: Vec<u8>,
            versions: [u64; 2],
            partition: u16,
            id: String,
            kind in 0..4,
        ) {
            let open = |bytes: Bytes| open(Some(&group()), &bytes);
            let [previous, version] = versions;
            let content = Bytes::from(content);
            prop_assert_eq!(open(message(&[&content])), Ok(Envelope::Message(content.clone())));
            prop_assert_eq!(open(cached(version, &content)), Ok(Envelope::Cached(version, content.clone())));
            prop_assert_eq!(open(records(partition)), Ok(Envelope::Records(partition)));
            let id = Arc::from(id);
            let change = match kind {
                0 => Change::Occupied,
                1 => Change::Vacated,
                2 => Change::Added(id, content),
                _ => Change::Removed(id),
            };
            let transition = Transition { group: group(), previous, version, change };
            prop_assert_eq!(open(changed(&transition)), Ok(Envelope::Changed(transition)));
        }

        #[test]
        fn opening_never_panics(bytes: Vec<u8>, text in "1[MKTR][0-9 aorv\u{fc}]{0,40}") {
            let _ = open(Some(&group()), &bytes.into());
            let _ = open(Some(&group()), &text.into_bytes().into());
        }
    }
}
