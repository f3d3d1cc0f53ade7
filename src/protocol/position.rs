//! The position of a message in the history of its channel.
//!
//! No channel keeps a history yet. Messages between nodes may carry a position, so that this release can read
//! those of a later one. Positions are not sent to clients, so they have no text form.

use std::cmp::Ordering;

/// The epoch of a channel's history: from its first message until the history is lost.
///
/// A history may be lost because it expired, or because the broker restarted without it. The next one begins anew, under
/// another epoch. Epochs are drawn at random, and have no order.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Epoch(pub u64);

/// The number of a message in its epoch: 1 for the first, and one more for each further one, so that a gap shows.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Offset(pub u64);

/// Where a message stands in the history of its channel.
///
/// Within an epoch, positions are in the order of their offsets. Positions of different epochs have no order: neither is
/// before the other, because nothing is known of what lies between them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Position {
    /// The history.
    pub epoch: Epoch,
    /// The message in it.
    pub offset: Offset,
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self.epoch == other.epoch).then(|| self.offset.cmp(&other.offset))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position(epoch: u64, offset: u64) -> Position {
        Position { epoch: Epoch(epoch), offset: Offset(offset) }
    }

    #[test]
    fn positions_of_an_epoch_are_in_the_order_of_their_offsets() {
        assert!(position(7, 1) < position(7, 2));
        assert!(position(7, u64::MAX) > position(7, 0));
        assert_eq!(position(7, 2).partial_cmp(&position(7, 2)), Some(Ordering::Equal));
    }

    #[test]
    fn positions_of_different_epochs_have_no_order() {
        for (one, other) in [((1, 1), (2, 2)), ((1, 2), (2, 1)), ((0, 0), (u64::MAX, 0))] {
            let (one, other) = (position(one.0, one.1), position(other.0, other.1));
            assert_eq!(one.partial_cmp(&other), None);
            assert_ne!(one, other);
        }
    }

    proptest! {
        #[test]
        fn equal_means_neither_before_nor_after(epochs: [bool; 2], offsets in [0..3_u64, 0..3]) {
            let [one, other] = [0, 1].map(|at| position(epochs[at].into(), offsets[at]));
            prop_assert_eq!(one.partial_cmp(&other) == Some(Ordering::Equal), one == other);
            prop_assert_eq!(one.partial_cmp(&other), other.partial_cmp(&one).map(Ordering::reverse));
        }
    }
}
