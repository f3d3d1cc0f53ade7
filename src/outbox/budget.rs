//! What may wait for all clients of a node together, beside the limit that each outbox has of its own.
//!
//! Counted only where something is queued, so a client that reads costs nothing here. A batch that waits in many
//! queues is in memory once, and counted once: the queues share its [`Held`], which the last of them gives back.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;

/// The bytes that are queued on a node, and how many may be.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    bytes: AtomicUsize,
    /// Woken whenever more is queued than [`Budget::high`].
    tight: Notify,
}

/// No limit.
impl Default for Budget {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl Budget {
    /// A budget of so many bytes. Never is more queued, but for the frames that say why a connection is closed.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: AtomicUsize::new(0), tight: Notify::new() }
    }

    /// How many bytes may be queued.
    #[must_use]
    pub const fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// How many bytes are queued now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Above this, connections are evicted.
    const fn high(&self) -> usize {
        self.bytes_max - self.bytes_max / 4
    }

    /// Whether so much is queued that connections must be evicted until [`Budget::is_relieved`].
    #[must_use]
    pub fn is_tight(&self) -> bool {
        self.bytes() > self.high()
    }

    /// Whether enough has been evicted.
    #[must_use]
    pub fn is_relieved(&self) -> bool {
        self.bytes() <= self.bytes_max / 2
    }

    /// Ready when so much is queued that connections must be evicted.
    pub async fn tight(&self) {
        while !self.is_tight() {
            self.tight.notified().await;
        }
    }

    /// Counts `bytes`, unless that would be more than may be queued. Counted until [`Budget::release`].
    pub(super) fn take(&self, bytes: usize) -> bool {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let now = before.saturating_add(bytes);
        if now > self.high() {
            self.tight.notify_one();
        }
        if now > self.bytes_max {
            self.release(bytes);
            return false;
        }
        true
    }

    /// Counts `bytes` even if that is more than may be queued.
    pub(super) fn force(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts `bytes` until the answer is dropped; `None` if that would be more than may be queued.
    #[must_use]
    pub fn hold(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        self.take(bytes).then(|| Held { budget: Arc::clone(self), bytes })
    }
}

/// Bytes that are counted until this is dropped.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

/// Whole frames that go to many clients. Where they wait they are counted once, from the first client on that they
/// wait for.
#[derive(Debug)]
pub struct SharedFrames {
    bytes: Bytes,
    held: OnceCell<Arc<Held>>,
}

impl SharedFrames {
    /// The frames.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Counts the frames, once for all clients; `None` if that would be more than may be queued.
    pub(super) fn hold(&self, budget: &Arc<Budget>) -> Option<Arc<Held>> {
        if let Some(held) = self.held.get() {
            return Some(Arc::clone(held));
        }
        let held = Arc::new(budget.hold(self.bytes.len())?);
        Some(Arc::clone(self.held.get_or_init(|| held)))
    }
}

impl From<Bytes> for SharedFrames {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, held: OnceCell::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_is_counted_once_and_given_back_by_the_last() {
        let budget = Arc::new(Budget::new(1000));
        let frames = SharedFrames::from(Bytes::from(vec![0; 600]));
        let (one, two) = (frames.hold(&budget), frames.hold(&budget));
        assert_eq!((budget.bytes(), one.is_some(), two.is_some()), (600, true, true));
        drop((frames, one));
        assert_eq!(budget.bytes(), 600);
        drop(two);
        assert_eq!(budget.bytes(), 0);
    }

    #[test]
    fn never_more_is_counted_than_may_be_and_it_is_tight_before() {
        let budget = Arc::new(Budget::new(1000));
        let first = budget.hold(750).unwrap();
        assert!(!budget.is_tight() && !budget.is_relieved());
        let second = budget.hold(100).unwrap();
        assert!(budget.is_tight());
        assert!(budget.hold(151).is_none());
        assert_eq!(budget.bytes(), 850, "a refusal counts nothing");
        drop(first);
        assert!(budget.is_relieved());
        drop(second);
    }

    #[tokio::test]
    async fn whoever_waits_for_it_to_be_tight_is_woken() {
        let budget = Arc::new(Budget::new(1000));
        let waiting = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { budget.tight().await }
        });
        tokio::task::yield_now().await;
        let _held = budget.hold(900);
        waiting.await.unwrap();
    }
}
