//! The messages of a channel that are not delivered yet, and the backlog that publishers wait for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::batch::Batch;
use super::delivery::Drive;
use super::{Channel, State};
use crate::protocol::SocketId;
use crate::protocol::wire::Frame;
use crate::registry::Registry;

/// A batch ends with the message that exceeds this size.
const BATCH_BYTES: usize = 64 * 1024;

/// Publishers wait while a channel has more undelivered bytes than this.
const BACKLOG_BYTES: usize = 256 * 1024;

/// Messages of other nodes are accepted until a channel has more undelivered bytes than this.
const BACKLOG_HARD_BYTES: usize = 8 * 1024 * 1024;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pending: VecDeque<Pending>,
    bytes: usize,
    /// The number of the next message. Like `Subscriber::since` and `Batch::first`, it counts deliveries on this node, and is
    /// no [`Offset`](crate::protocol::Offset), which would be the same on all nodes.
    next: u64,
    /// Whether a [`Drive`] exists, which takes what is pending.
    has_driver: bool,
    /// Publishers that wait for the backlog to shrink.
    waiting: Vec<Waker>,
    /// How often the waiting publishers have been woken.
    woken: u64,
}

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) frame: Frame,
    pub(super) except: Option<SocketId>,
}

impl Queue {
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) const fn next_number(&self) -> u64 {
        self.next
    }

    pub(super) const fn has_driver(&self) -> bool {
        self.has_driver
    }

    pub(super) fn push(&mut self, frame: Frame, except: Option<SocketId>) {
        self.bytes += frame.bytes().len();
        self.next += 1;
        self.pending.push_back(Pending { frame, except });
    }

    /// Makes the caller the driver, if messages are pending and there is no driver. Returns whether it did.
    pub(super) fn claim_driver(&mut self) -> bool {
        if self.has_driver || self.pending.is_empty() {
            return false;
        }
        self.has_driver = true;
        true
    }

    /// Ends the drive although messages may be pending.
    pub(super) const fn release_driver(&mut self) {
        self.has_driver = false;
    }

    /// Ends the drive if nothing is pending. Returns whether it did.
    pub(super) fn release_driver_if_empty(&mut self) -> bool {
        let done = self.pending.is_empty();
        if done {
            self.has_driver = false;
            self.pending = VecDeque::new();
        }
        done
    }

    /// The next batch. `None` ends the drive.
    pub(super) fn next_batch(&mut self) -> Option<Batch> {
        if self.release_driver_if_empty() {
            return None;
        }
        let first = self.next - self.pending.len() as u64;
        let (mut count, mut bytes) = (0, 0);
        for pending in &self.pending {
            count += 1;
            bytes += pending.frame.bytes().len();
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        self.bytes -= bytes;
        if self.bytes <= BACKLOG_BYTES && !self.waiting.is_empty() {
            self.woken += 1;
            self.waiting.drain(..).for_each(Waker::wake);
            self.waiting = Vec::new();
        }
        Some(Batch::new(first, self.pending.drain(..count).collect(), bytes))
    }
}

impl Channel {
    /// See [`Registry::backlog`].
    pub(in crate::registry) fn backlog_now(self: &Arc<Self>) -> Option<Backlog> {
        self.backlog(&self.state.lock())
    }

    pub(super) fn backlog(self: &Arc<Self>, state: &State) -> Option<Backlog> {
        (state.queue.bytes > BACKLOG_BYTES).then(|| Backlog { channel: Arc::clone(self), waiting_at: None })
    }

    /// Starts a drive, if messages are pending and there is no driver.
    pub(super) fn start(self: &Arc<Self>, registry: &Registry, state: &mut State) -> Option<Drive> {
        if !state.queue.claim_driver() {
            return None;
        }
        Some(Drive::new(registry, self, state.subscribers.len()))
    }

    /// See [`Registry::orphaned`].
    pub(in crate::registry) fn restart(self: &Arc<Self>, registry: &Registry) -> Option<Drive> {
        self.start(registry, &mut self.state.lock())
    }
}

/// A channel with more undelivered bytes than 256 KiB.
#[derive(Debug)]
pub struct Backlog {
    channel: Arc<Channel>,
    /// The number of wake-ups when it began to wait, and its index among the waiting publishers.
    waiting_at: Option<(u64, usize)>,
}

impl Backlog {
    /// Whether the channel has more undelivered bytes than 8 MiB. Then messages of other nodes must wait too.
    #[must_use]
    pub fn exceeds_hard_limit(&self) -> bool {
        self.channel.state.lock().queue.bytes > BACKLOG_HARD_BYTES
    }

    /// Ready when the channel may be published to again.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let queue = &mut self.channel.state.lock().queue;
        if queue.bytes <= BACKLOG_BYTES {
            return Poll::Ready(());
        }
        match self.waiting_at {
            Some((woken, position)) if woken == queue.woken => {
                queue.waiting[position].clone_from(cx.waker());
            }
            Some(_) | None => {
                self.waiting_at = Some((queue.woken, queue.waiting.len()));
                queue.waiting.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}
