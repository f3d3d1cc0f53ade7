//! The data under the lock of an outbox: the queue, its size, and the order to close.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::Waker;

use bytes::{Buf as _, Bytes};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::net::TcpStream;

use super::Closing;
use super::budget::{Budget, Reservation, SharedBytes};

/// The overhead of a queued chunk, which is added to its bytes so that many small ones are bounded too.
const CHUNK_OVERHEAD_BYTES: usize = 64;

/// Chunks that one system call writes.
pub(super) const CHUNKS_PER_WRITE: usize = 64;

/// A part of the queue.
#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    /// The reservation of its bytes, if other queues share them; otherwise its own bytes are counted.
    shared: Option<Arc<Reservation>>,
}

impl Chunk {
    fn size(&self) -> usize {
        self.bytes.len() + CHUNK_OVERHEAD_BYTES
    }

    /// The bytes that this chunk itself counts in the node's budget.
    fn budget_bytes(&self) -> usize {
        CHUNK_OVERHEAD_BYTES + if self.shared.is_some() { 0 } else { self.bytes.len() }
    }
}

/// How a chunk is counted in the node's budget.
#[derive(Clone, Copy, Debug)]
pub(super) enum Accounting<'s> {
    /// By its own bytes.
    Own,
    /// Once for all queues that share it.
    Shared(&'s SharedBytes),
    /// By its own bytes, even over the limit: for closing frames.
    Forced,
}

/// The node's budget is exceeded.
#[derive(Debug)]
pub(super) struct OverBudget;

/// The queue to a client and the order to close.
#[derive(Debug)]
pub(super) struct State {
    queue: VecDeque<Chunk>,
    budget: Arc<Budget>,
    /// The size of `queue`: its bytes, and [`CHUNK_OVERHEAD_BYTES`] for each chunk.
    queued_bytes: u32,
    /// Whether the head of the queue is partly sent.
    pub(super) head_is_partial: bool,
    pub(super) closing: Option<Closing>,
    /// The connection's task, to be woken.
    pub(super) task: Option<Waker>,
}

impl State {
    pub(super) const fn new(budget: Arc<Budget>) -> Self {
        Self {
            queue: VecDeque::new(),
            budget,
            queued_bytes: 0,
            head_is_partial: false,
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

    /// The size of the queue: its bytes, and an overhead for each chunk.
    pub(super) const fn queued_bytes(&self) -> usize {
        self.queued_bytes as usize
    }

    /// The size of the queue without its head.
    pub(super) fn bytes_behind_head(&self) -> usize {
        self.queued_bytes().saturating_sub(self.queue.front().map_or(0, Chunk::size))
    }

    pub(super) fn head(&self) -> Option<&[u8]> {
        self.queue.front().map(|chunk| &chunk.bytes[..])
    }

    /// Appends `bytes`.
    pub(super) fn push(&mut self, bytes: Bytes, accounting: Accounting<'_>) -> Result<(), OverBudget> {
        let chunk = self.new_chunk(bytes, accounting)?;
        self.queue.push_back(chunk);
        Ok(())
    }

    /// Inserts `bytes` ahead of everything but a partly sent chunk.
    pub(super) fn push_first(&mut self, bytes: Bytes) -> Result<(), OverBudget> {
        let chunk = self.new_chunk(bytes, Accounting::Own)?;
        self.queue.insert(usize::from(self.head_is_partial), chunk);
        Ok(())
    }

    fn new_chunk(&mut self, bytes: Bytes, accounting: Accounting<'_>) -> Result<Chunk, OverBudget> {
        let shared = match accounting {
            Accounting::Shared(messages) => Some(messages.try_reserve(&self.budget).ok_or(OverBudget)?),
            Accounting::Own | Accounting::Forced => None,
        };
        let chunk = Chunk { bytes, shared };
        match accounting {
            Accounting::Forced => self.budget.acquire_over_limit(chunk.budget_bytes()),
            Accounting::Own | Accounting::Shared(_) if self.budget.try_acquire(chunk.budget_bytes()) => {}
            Accounting::Own | Accounting::Shared(_) => return Err(OverBudget),
        }
        // No queue comes near 4 GiB: its own limit closes the connection before.
        self.queued_bytes = self.queued_bytes.saturating_add(chunk.size() as u32);
        Ok(chunk)
    }

    /// Writes as much of the queue as one system call does.
    pub(super) fn write_to(&self, stream: &TcpStream) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); CHUNKS_PER_WRITE];
        for (slice, chunk) in slices.iter_mut().zip(&self.queue) {
            *slice = IoSlice::new(&chunk.bytes);
        }
        let slices = &slices[..self.queue.len().min(CHUNKS_PER_WRITE)];
        if let [one] = slices {
            return super::send(stream, one);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        Ok(rustix::net::sendmsg(stream, slices, &mut SendAncillaryBuffer::default(), flags)?)
    }

    /// Removes `written` bytes from the head of the queue.
    pub(super) fn advance(&mut self, mut written: usize) {
        while let Some(head) = self.queue.front_mut() {
            let sent = written.min(head.bytes.len());
            head.bytes.advance(sent);
            written -= sent;
            self.queued_bytes = self.queued_bytes.saturating_sub(sent as u32);
            if head.shared.is_none() {
                self.budget.release(sent);
            }
            if !head.bytes.is_empty() {
                self.head_is_partial |= sent > 0;
                return;
            }
            self.head_is_partial = false;
            self.pop();
            if written == 0 {
                return;
            }
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        let chunk = self.queue.pop_front()?;
        self.budget.release(chunk.budget_bytes());
        self.queued_bytes = self.queued_bytes.saturating_sub(chunk.size() as u32);
        Some(chunk.bytes)
    }

    /// Drops all chunks but a partly sent one, whose rest must precede any other frame.
    pub(super) fn drop_unstarted(&mut self) {
        let kept = usize::from(self.head_is_partial);
        for chunk in self.queue.drain(kept..) {
            self.budget.release(chunk.budget_bytes());
            self.queued_bytes = self.queued_bytes.saturating_sub(chunk.size() as u32);
        }
    }

    /// Drops all chunks, and frees the memory of the queue.
    pub(super) fn clear(&mut self) {
        self.head_is_partial = false;
        self.drop_unstarted();
        self.queue = VecDeque::new();
    }

    /// Frees the memory of an empty queue: an idle connection owns no buffer.
    pub(super) fn shrink(&mut self) {
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
    }

    /// Removes and returns all chunks.
    pub(super) fn drain(&mut self) -> Vec<Bytes> {
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
