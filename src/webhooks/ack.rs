//! Acknowledgement of cluster records: a record is stored until the webhook for it is delivered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::event::EventId;

/// The outcome of a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Resolution {
    /// All receivers that want the event have it, or it is a dead letter, or no receiver wants it. The record can be
    /// deleted.
    Acked(EventId),
    /// Not all receivers have the event. The next reader of the record sends it.
    Nacked(EventId),
}

/// Acknowledges a cluster record. Every clone must be acked: [`AckToken::ack`]. When the last clone is gone, the
/// [`Resolution`] is sent once: acked if every clone was acked, nacked if one was dropped, also by a panic or by the
/// cancellation of a task.
///
/// A token is cancelled when the receiver of resolutions was dropped, because another node reads the records now.
/// Events with a cancelled token are not sent.
#[derive(Debug)]
#[must_use = "a token that is dropped without an ack nacks its record"]
pub struct AckToken(Arc<TokenState>);

#[derive(Debug)]
struct TokenState {
    id: EventId,
    /// Clones that are not acked.
    unacked: AtomicUsize,
    resolutions: mpsc::UnboundedSender<Resolution>,
}

impl AckToken {
    /// A token for the record `id`. Its resolution is sent to `resolutions`: one for each token, which bounds the
    /// channel.
    pub fn new(id: EventId, resolutions: mpsc::UnboundedSender<Resolution>) -> Self {
        Self(Arc::new(TokenState { id, unacked: AtomicUsize::new(1), resolutions }))
    }

    /// The id of the record.
    #[must_use]
    pub fn id(&self) -> EventId {
        self.0.id
    }

    /// Acks this clone.
    pub fn ack(self) {
        // `Arc` orders this before the drop of the last clone.
        self.0.unacked.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether resolutions are not received any more.
    pub(super) fn is_cancelled(&self) -> bool {
        self.0.resolutions.is_closed()
    }
}

impl Clone for AckToken {
    fn clone(&self) -> Self {
        self.0.unacked.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for TokenState {
    fn drop(&mut self) {
        let resolution = if *self.unacked.get_mut() == 0 {
            Resolution::Acked(self.id)
        } else {
            Resolution::Nacked(self.id)
        };
        // A send fails if the token is cancelled.
        let _ = self.resolutions.send(resolution);
    }
}

/// What an event carries if it comes from a cluster record.
#[derive(Debug)]
pub(super) struct Record {
    /// When it happened, in milliseconds since 1970, by the clock of the cluster.
    pub(super) time_ms: u64,
    pub(super) ack_token: AckToken,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: EventId = EventId::new(7, 1);

    #[test]
    fn a_record_is_resolved_once_and_acked_only_if_all_clones_are() {
        for (acked, resolution) in [
            ([true, true, true], Resolution::Acked(ID)),
            ([true, false, true], Resolution::Nacked(ID)),
            ([true, true, false], Resolution::Nacked(ID)),
            ([false, false, false], Resolution::Nacked(ID)),
        ] {
            let (resolutions, mut resolved) = mpsc::unbounded_channel();
            let ack_token = AckToken::new(ID, resolutions);
            for (at, ack_token) in [ack_token.clone(), ack_token.clone(), ack_token].into_iter().enumerate() {
                assert!(resolved.try_recv().is_err(), "not before the last clone is dropped");
                if acked[at] { ack_token.ack() } else { drop(ack_token) }
            }
            assert_eq!(resolved.try_recv(), Ok(resolution), "{acked:?}");
            assert_eq!(resolved.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        }
    }

    #[test]
    fn a_clone_of_a_clone_must_be_acked_too() {
        let (resolutions, mut resolved) = mpsc::unbounded_channel();
        let first = AckToken::new(ID, resolutions);
        let second = first.clone();
        first.ack();
        let third = second.clone();
        second.ack();
        drop(third);
        assert_eq!(resolved.try_recv(), Ok(Resolution::Nacked(ID)));
    }

    #[test]
    fn a_token_is_cancelled_when_resolutions_are_not_received() {
        let (resolutions, resolved) = mpsc::unbounded_channel();
        let ack_token = AckToken::new(ID, resolutions);
        assert!(!ack_token.is_cancelled());
        drop(resolved);
        assert!(ack_token.is_cancelled());
        ack_token.ack();
    }
}
