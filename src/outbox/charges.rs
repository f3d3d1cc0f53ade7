//! What a client has caused: the bytes of its replies and of messages to others, and the changes that others are notified
//! of. The connection's task takes these charges and throttles the client by them.

use std::sync::atomic::Ordering;

use super::Outbox;
use crate::protocol::message::ServerMessage;
use crate::protocol::wire::{Frame, pusher};

impl Outbox {
    /// Sends a reply, and charges the client for it.
    pub fn reply(&self, message: &ServerMessage<'_>) {
        self.reply_frame(&pusher::encode(message));
    }

    /// Sends an encoded message as a reply, and charges the client for it.
    pub fn reply_frame(&self, frame: &Frame) {
        let message = self.form.of_one(frame);
        self.charge(message.len(), 0);
        self.send_if(&message, || true);
    }

    /// Charges the client for more than its replies: bytes that are sent to others, and changes that others are
    /// notified of.
    pub fn charge(&self, bytes: usize, changes: u16) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let add = |before: u32| Some(before.saturating_add(bytes));
        let _ = self.charge_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        if changes > 0 {
            let add = |before: u16| Some(before.saturating_add(changes));
            let _ = self.charge_changes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }

    /// The charges since the last call: bytes and changes.
    #[must_use]
    pub fn take_charges(&self) -> (u32, u16) {
        let (bytes, changes) = (&self.charge_bytes, &self.charge_changes);
        if bytes.load(Ordering::Relaxed) == 0 && changes.load(Ordering::Relaxed) == 0 {
            return (0, 0);
        }
        (bytes.swap(0, Ordering::Relaxed), changes.swap(0, Ordering::Relaxed))
    }
}
