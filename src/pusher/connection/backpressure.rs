//! Backpressure: a client that causes too much is not read from for a while.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::Sleep;

use crate::hub::Backlog;
use crate::outbox::{Outbox, Reservation};

/// A client is not read from while more than this is queued for it, if it has caused that.
pub(super) const UNREAD_REPLY_BYTES_MAX: usize = 64 * 1024;

/// The conditions for reading and handling more input of a client.
#[derive(Debug, Default)]
pub(super) struct Backpressure {
    /// A channel with a backlog, until it has capacity.
    pub(super) backlog: Option<Backlog>,
    /// The wait until the client's charges are paid.
    pub(super) charge_delay: Option<Pin<Box<Sleep>>>,
    /// Whether the client must first read its replies.
    pub(super) unread_replies: bool,
    /// The node's memory for input that has been read and not handled.
    pub(super) _reservation: Option<Reservation>,
}

impl Backpressure {
    /// Whether input that has been read waits as well.
    pub(super) const fn stops_decoding(&self) -> bool {
        self.charge_delay.is_some() || self.unread_replies
    }

    /// To be polled after the outbox was flushed, which wakes the task when the client reads.
    pub(super) fn poll_ready(&mut self, outbox: &Outbox, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(backlog) = &mut self.backlog {
            ready!(backlog.poll_ready(cx));
            self.backlog = None;
        }
        if let Some(delay) = &mut self.charge_delay {
            ready!(delay.as_mut().poll(cx));
            self.charge_delay = None;
        }
        if self.unread_replies && outbox.queued_bytes() > UNREAD_REPLY_BYTES_MAX {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}
