//! What the lock of an outbox guards: the queue, what it is charged, and how the connection ends.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::Waker;

use bytes::{Buf as _, Bytes};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::net::TcpStream;

use super::Closing;
use super::budget::{Budget, Held, SharedFrames};

/// What a piece in the queue is charged beyond its bytes, so that many small ones are bounded too.
const PIECE_BYTES: usize = 64;

/// Pieces that are written at once.
const GATHERED: usize = 64;

/// What waits for a client.
#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    /// What it is counted by in the node's budget, if others wait for the same; else it is counted by itself.
    shared: Option<Arc<Held>>,
}

impl Piece {
    fn charge(&self) -> usize {
        self.bytes.len() + PIECE_BYTES
    }

    /// What it is counted by itself in the node's budget.
    fn own_bytes(&self) -> usize {
        PIECE_BYTES + if self.shared.is_some() { 0 } else { self.bytes.len() }
    }
}

/// How a piece is counted in the node's budget.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counted<'s> {
    /// By itself.
    Alone,
    /// Once for all that wait for the same.
    Shared(&'s SharedFrames),
    /// By itself, be it more than the budget has: it says why the connection ends.
    Always,
}

/// The node's budget does not take a piece.
#[derive(Debug)]
pub(super) struct OverBudget;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct State {
    queue: VecDeque<Piece>,
    budget: Arc<Budget>,
    /// What `queue` is charged: its bytes, and [`PIECE_BYTES`] for each piece.
    queued_bytes: u32,
    /// Whether the first bytes of the queue's head are on the wire already.
    pub(super) head_is_cut: bool,
    pub(super) closing: Option<Closing>,
    /// The connection's task, where it waits.
    pub(super) task: Option<Waker>,
}

impl State {
    pub(super) const fn new(budget: Arc<Budget>) -> Self {
        Self {
            queue: VecDeque::new(),
            budget,
            queued_bytes: 0,
            head_is_cut: false,
            closing: None,
            task: None,
        }
    }

    pub(super) const fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What is queued, as it is charged: never less than its bytes.
    pub(super) const fn queued_bytes(&self) -> usize {
        self.queued_bytes as usize
    }

    /// The same without the piece that is being written.
    pub(super) fn bytes_behind_head(&self) -> usize {
        self.queued_bytes().saturating_sub(self.queue.front().map_or(0, Piece::charge))
    }

    pub(super) fn head(&self) -> Option<&[u8]> {
        self.queue.front().map(|piece| &piece.bytes[..])
    }

    /// Queues `bytes` behind everything.
    pub(super) fn push(&mut self, bytes: Bytes, counted: Counted<'_>) -> Result<(), OverBudget> {
        let piece = self.piece(bytes, counted)?;
        self.queue.push_back(piece);
        Ok(())
    }

    /// Queues `bytes` ahead of all that has not begun.
    pub(super) fn push_first(&mut self, bytes: Bytes) -> Result<(), OverBudget> {
        let piece = self.piece(bytes, Counted::Alone)?;
        self.queue.insert(usize::from(self.head_is_cut), piece);
        Ok(())
    }

    fn piece(&mut self, bytes: Bytes, counted: Counted<'_>) -> Result<Piece, OverBudget> {
        let shared = match counted {
            Counted::Shared(frames) => Some(frames.hold(&self.budget).ok_or(OverBudget)?),
            Counted::Alone | Counted::Always => None,
        };
        let piece = Piece { bytes, shared };
        match counted {
            Counted::Always => self.budget.force(piece.own_bytes()),
            Counted::Alone | Counted::Shared(_) if self.budget.take(piece.own_bytes()) => {}
            Counted::Alone | Counted::Shared(_) => return Err(OverBudget),
        }
        // No queue comes near: it is closed before, by its own limit.
        self.queued_bytes = self.queued_bytes.saturating_add(piece.charge() as u32);
        Ok(piece)
    }

    /// Writes of what is queued as much as goes at once.
    pub(super) fn send(&self, stream: &TcpStream) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); GATHERED];
        for (slice, piece) in slices.iter_mut().zip(&self.queue) {
            *slice = IoSlice::new(&piece.bytes);
        }
        let slices = &slices[..self.queue.len().min(GATHERED)];
        if let [one] = slices {
            return super::send(stream, one);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        Ok(rustix::net::sendmsg(stream, slices, &mut SendAncillaryBuffer::default(), flags)?)
    }

    /// Takes out what has been written.
    pub(super) fn advance(&mut self, mut written: usize) {
        while let Some(head) = self.queue.front_mut() {
            let taken = written.min(head.bytes.len());
            head.bytes.advance(taken);
            written -= taken;
            self.queued_bytes = self.queued_bytes.saturating_sub(taken as u32);
            if head.shared.is_none() {
                self.budget.release(taken);
            }
            if !head.bytes.is_empty() {
                self.head_is_cut |= taken > 0;
                return;
            }
            self.head_is_cut = false;
            self.pop();
            if written == 0 {
                return;
            }
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        let piece = self.queue.pop_front()?;
        self.budget.release(piece.own_bytes());
        self.queued_bytes = self.queued_bytes.saturating_sub(piece.charge() as u32);
        Some(piece.bytes)
    }

    /// Forgets what has not begun: the rest of a frame that has is needed by whatever is to follow it.
    pub(super) fn keep_begun(&mut self) {
        let kept = usize::from(self.head_is_cut);
        for piece in self.queue.drain(kept..) {
            self.budget.release(piece.own_bytes());
            self.queued_bytes = self.queued_bytes.saturating_sub(piece.charge() as u32);
        }
    }

    /// Forgets everything, and the memory for it.
    pub(super) fn clear(&mut self) {
        self.head_is_cut = false;
        self.keep_begun();
        self.queue = VecDeque::new();
    }

    /// Gives up the memory of a queue in which nothing waits: an idle connection owns no buffer.
    pub(super) fn shrink(&mut self) {
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
    }

    /// Takes out what is queued.
    pub(super) fn take(&mut self) -> Vec<Bytes> {
        std::iter::from_fn(|| self.pop()).collect()
    }

    pub(super) fn wake(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.clear();
    }
}
