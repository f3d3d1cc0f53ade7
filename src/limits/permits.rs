//! Counters of permits and of bytes that never exceed their limit.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// The number of permits in use. Two callers never acquire the last one.
#[derive(Debug, Default)]
pub struct Count(AtomicU32);

impl Count {
    /// The permits in use.
    #[must_use]
    pub fn now(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Acquires one of `max` permits (`None`: no limit); `false` if all are in use. The owner of a permit releases it
    /// once, when dropped.
    #[must_use = "a permit must be released"]
    pub fn try_acquire(&self, max: Option<u32>) -> bool {
        let max = max.unwrap_or(u32::MAX);
        let grown = |count: u32| (count < max).then(|| count + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok()
    }

    /// Releases a permit.
    pub fn release(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The number of bytes in use. Two callers never acquire the last ones.
#[derive(Debug, Default)]
pub struct ByteCount(AtomicUsize);

impl ByteCount {
    /// The bytes in use.
    #[must_use]
    pub fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Acquires `bytes` of `max`; `false` if fewer are left. The owner releases them once, when dropped.
    #[must_use = "bytes must be released"]
    pub fn try_acquire(&self, bytes: usize, max: usize) -> bool {
        let grown = |count: usize| count.checked_add(bytes).filter(|count| *count <= max);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok()
    }

    /// Releases `bytes`.
    pub fn release(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_permit_is_acquired_once() {
        let count = Count::default();
        let acquired: usize = std::thread::scope(|scope| {
            let threads =
                [(); 4].map(|()| scope.spawn(|| (0..10).filter(|_| count.try_acquire(Some(10))).count()));
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((acquired, count.now()), (10, 10));
        count.release();
        assert!(count.try_acquire(Some(10)) && !count.try_acquire(Some(10)) && count.try_acquire(None));
    }

    #[test]
    fn the_last_bytes_are_acquired_once() {
        let count = ByteCount::default();
        let acquired: usize = std::thread::scope(|scope| {
            let threads =
                [(); 4].map(|()| scope.spawn(|| (0..10).filter(|_| count.try_acquire(3, 30)).count()));
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((acquired, count.now()), (10, 30));
        count.release(6);
        assert!(
            count.try_acquire(6, 30)
                && !count.try_acquire(1, 30)
                && !count.try_acquire(usize::MAX, usize::MAX)
        );
    }
}
