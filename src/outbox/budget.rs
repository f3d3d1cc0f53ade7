//! The memory that the queues of all clients of a node may use, beside the limit of each outbox.
//!
//! Only queued bytes are counted, so a client that reads costs nothing here. A batch in many queues is in memory once
//! and counted once: the queues share its [`Reservation`], and the last of them releases it.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;

/// The bytes that are queued on a node, and their limit.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    bytes: AtomicUsize,
    /// Notified when more than [`Budget::high_watermark`] is queued.
    high_watermark_reached: Notify,
}

/// No limit.
impl Default for Budget {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

impl Budget {
    /// A budget of `bytes_max` bytes. Only closing frames are queued beyond it.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: AtomicUsize::new(0), high_watermark_reached: Notify::new() }
    }

    /// The limit, in bytes.
    #[must_use]
    pub const fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// The bytes that are queued now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Above this many bytes, connections are evicted.
    const fn high_watermark(&self) -> usize {
        self.bytes_max - self.bytes_max / 4
    }

    /// Whether connections must be evicted, until [`Budget::is_below_low_watermark`].
    #[must_use]
    pub fn is_above_high_watermark(&self) -> bool {
        self.bytes() > self.high_watermark()
    }

    /// Whether enough connections have been evicted.
    #[must_use]
    pub fn is_below_low_watermark(&self) -> bool {
        self.bytes() <= self.bytes_max / 2
    }

    /// Ready when connections must be evicted.
    pub async fn above_high_watermark(&self) {
        while !self.is_above_high_watermark() {
            self.high_watermark_reached.notified().await;
        }
    }

    /// Counts `bytes` until [`Budget::release`]; `false` if that would exceed the limit.
    pub(super) fn try_acquire(&self, bytes: usize) -> bool {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let now = before.saturating_add(bytes);
        if now > self.high_watermark() {
            self.high_watermark_reached.notify_one();
        }
        if now > self.bytes_max {
            self.release(bytes);
            return false;
        }
        true
    }

    /// Counts `bytes` even if that exceeds the limit.
    pub(super) fn acquire_over_limit(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts `bytes` until the reservation is dropped; `None` if that would exceed the limit.
    #[must_use]
    pub fn try_reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        self.try_acquire(bytes).then(|| Reservation { budget: Arc::clone(self), bytes })
    }
}

/// Bytes of a budget, released when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

/// Whole messages for many clients that have the same form. They are counted once, from the first queue that holds them on.
#[derive(Debug)]
pub struct SharedBytes {
    bytes: Bytes,
    reservation: OnceCell<Arc<Reservation>>,
}

impl SharedBytes {
    /// The messages.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Counts the messages, once for all queues; `None` if that would exceed the limit.
    pub(super) fn try_reserve(&self, budget: &Arc<Budget>) -> Option<Arc<Reservation>> {
        if let Some(reservation) = self.reservation.get() {
            return Some(Arc::clone(reservation));
        }
        let reservation = Arc::new(budget.try_reserve(self.bytes.len())?);
        Some(Arc::clone(self.reservation.get_or_init(|| reservation)))
    }
}

impl From<Bytes> for SharedBytes {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, reservation: OnceCell::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_bytes_are_counted_once_and_released_by_the_last_user() {
        let budget = Arc::new(Budget::new(1000));
        let frames = SharedBytes::from(Bytes::from(vec![0; 600]));
        let (one, two) = (frames.try_reserve(&budget), frames.try_reserve(&budget));
        assert_eq!((budget.bytes(), one.is_some(), two.is_some()), (600, true, true));
        drop((frames, one));
        assert_eq!(budget.bytes(), 600);
        drop(two);
        assert_eq!(budget.bytes(), 0);
    }

    #[test]
    fn the_budget_is_never_exceeded_and_the_high_watermark_comes_first() {
        let budget = Arc::new(Budget::new(1000));
        let first = budget.try_reserve(750).unwrap();
        assert!(!budget.is_above_high_watermark() && !budget.is_below_low_watermark());
        let second = budget.try_reserve(100).unwrap();
        assert!(budget.is_above_high_watermark());
        assert!(budget.try_reserve(151).is_none());
        assert_eq!(budget.bytes(), 850, "a refusal counts nothing");
        drop(first);
        assert!(budget.is_below_low_watermark());
        drop(second);
    }

    #[tokio::test]
    async fn a_waiter_is_woken_at_the_high_watermark() {
        let budget = Arc::new(Budget::new(1000));
        let waiting = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { budget.above_high_watermark().await }
        });
        tokio::task::yield_now().await;
        let _held = budget.try_reserve(900);
        waiting.await.unwrap();
    }
}
