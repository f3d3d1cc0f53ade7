//! What travels with an event that somebody else keeps as well, until it is told: a record of a cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::event::EventId;

/// What became of a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// All who want it have it, or it is a dead letter, or nobody wants it: it need not be kept any more.
    Settled(EventId),
    /// It was not told, at least not to all who want it: whoever reads it next tells of it.
    Released(EventId),
}

/// Comes with a record and is shared by all who have to do with it: each clone is a duty of its own, which is done with
/// [`Receipt::settle`], or not done by dropping it. When the last one is gone, the [`End`] is said: once, settled only if
/// all duties were done, whichever way the others went, by the end of a task as well.
///
/// Who no longer receives these ends has given the records up, to another node perhaps: what is not on its way then is
/// not sent any more.
#[derive(Debug)]
#[must_use = "a receipt that is dropped releases its record"]
pub struct Receipt(Arc<Stub>);

#[derive(Debug)]
struct Stub {
    id: EventId,
    /// Clones that were not settled.
    open: AtomicUsize,
    ends: mpsc::UnboundedSender<End>,
}

impl Receipt {
    /// A receipt for the record `id`, whose end is sent to `ends`. No more ends come than there are receipts, which is
    /// what bounds the channel.
    pub fn new(id: EventId, ends: mpsc::UnboundedSender<End>) -> Self {
        Self(Arc::new(Stub { id, open: AtomicUsize::new(1), ends }))
    }

    /// The record's id.
    #[must_use]
    pub fn id(&self) -> EventId {
        self.0.id
    }

    /// Says that there is nothing left to do with this clone.
    pub fn settle(self) {
        // Whoever drops the last clone sees this: that is what `Arc` is for.
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether nobody waits for the end any more, so that the event is somebody else's to tell.
    pub(super) fn is_void(&self) -> bool {
        self.0.ends.is_closed()
    }
}

impl Clone for Receipt {
    fn clone(&self) -> Self {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        let end = if *self.open.get_mut() == 0 { End::Settled(self.id) } else { End::Released(self.id) };
        // Whoever has given the records up does not care.
        let _ = self.ends.send(end);
    }
}

/// What an event has that is a record.
#[derive(Debug)]
pub(super) struct Record {
    /// When it happened, in milliseconds since 1970, by the clock of all nodes.
    pub(super) time_ms: u64,
    pub(super) receipt: Receipt,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: EventId = EventId::new(7, 1);

    #[test]
    fn the_end_is_said_once_and_settled_only_if_all_clones_are() {
        for (settled, end) in [
            ([true, true, true], End::Settled(ID)),
            ([true, false, true], End::Released(ID)),
            ([true, true, false], End::Released(ID)),
            ([false, false, false], End::Released(ID)),
        ] {
            let (ends, mut ended) = mpsc::unbounded_channel();
            let receipt = Receipt::new(ID, ends);
            for (at, receipt) in [receipt.clone(), receipt.clone(), receipt].into_iter().enumerate() {
                assert!(ended.try_recv().is_err(), "not before the last is gone");
                if settled[at] { receipt.settle() } else { drop(receipt) }
            }
            assert_eq!(ended.try_recv(), Ok(end), "{settled:?}");
            assert_eq!(ended.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        }
    }

    #[test]
    fn a_clone_of_a_clone_is_a_duty_as_well() {
        let (ends, mut ended) = mpsc::unbounded_channel();
        let first = Receipt::new(ID, ends);
        let second = first.clone();
        first.settle();
        let third = second.clone();
        second.settle();
        drop(third);
        assert_eq!(ended.try_recv(), Ok(End::Released(ID)));
    }

    #[test]
    fn a_receipt_is_void_when_nobody_waits_for_its_end() {
        let (ends, ended) = mpsc::unbounded_channel();
        let receipt = Receipt::new(ID, ends);
        assert!(!receipt.is_void());
        drop(ended);
        assert!(receipt.is_void());
        receipt.settle();
    }
}
