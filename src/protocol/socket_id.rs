//! Socket ids: the identity of a connection in signatures and in `socket_id` of a publish.

use std::fmt;

/// The id of one connection: two unguessable numbers, written `123456.7890`. Unique in the cluster, never reused.
///
/// Every signature of a client covers the id, so a signature cannot be replayed on another connection.
///
/// Source: protocol.md §2.2; every SDK checks `^\d+\.\d+$`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SocketId {
    high: u32,
    low: u32,
}

impl SocketId {
    /// The id of two random numbers, which the caller draws.
    #[must_use]
    pub const fn new(high: u32, low: u32) -> Self {
        Self { high, low }
    }

    /// The id as one number.
    #[must_use]
    pub const fn number(self) -> u64 {
        (self.high as u64) << 32 | self.low as u64
    }

    /// The inverse of [`SocketId::number`].
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self::new((number >> 32) as u32, number as u32)
    }

    /// Whether `text` is `digits.digits`, the form that every SDK accepts.
    #[must_use]
    pub fn is_well_formed(text: &str) -> bool {
        text.split_once('.').is_some_and(|(high, low)| {
            [high, low].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
        })
    }

    /// Parses an id. `None` for a text that is no id of pusherd: the numbers are too large or have leading zeros.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (high, low) = text.split_once('.')?;
        let id = Self { high: high.parse().ok()?, low: low.parse().ok()? };
        (id.to_string() == text).then_some(id)
    }
}

impl fmt::Display for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.high, self.low)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_digits_dot_digits_is_well_formed() {
        for good in ["1.1", "123456.7890", "99999999999999999999.0"] {
            assert!(SocketId::is_well_formed(good), "{good}");
        }
        for bad in ["", ".", "1.", ".1", "1", "1.1.1", "1,1", "+1.1", "1.1\n", "1.1:x", " 1.1", "１.1"] {
            assert!(!SocketId::is_well_formed(bad), "{bad:?}");
        }
    }

    #[test]
    fn an_id_that_no_connection_can_have_is_none() {
        for text in ["99999999999.1", "01.1", "1.+1", "1", "x.y"] {
            assert_eq!(SocketId::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn ids_round_trip(high: u32, low: u32) {
            let id = SocketId::new(high, low);
            prop_assert!(SocketId::is_well_formed(&id.to_string()));
            prop_assert_eq!(SocketId::parse(&id.to_string()), Some(id));
        }
    }
}
