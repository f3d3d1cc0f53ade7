//! The token bucket behind every rate limit.

use std::time::Duration;

/// Allows `per_second` on average and `burst` at once. It has 8 bytes, so that every connection can have some.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// Tokens left, as of `at_ms`.
    tokens: f32,
    /// When `tokens` was computed, in milliseconds of the caller's clock.
    at_ms: u32,
}

/// The rate of a [`TokenBucket`], passed in so that all buckets of one limit share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that are refilled in a second. At least 1.
    pub per_second: u32,
    /// Tokens in a full bucket. At least 1.
    pub burst: u32,
}

/// The longest wait for a debt to be refilled.
const DEBT_SECS_MAX: f32 = 10.0;

/// How far the times of concurrent callers may be out of order, in milliseconds.
const CLOCK_SKEW_MS_MAX: u32 = 60_000;

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self { tokens: rate.burst as f32, at_ms: 0 }
    }

    /// Acquires one token at `now` (time since any fixed instant); `false` if none is left.
    pub fn try_acquire(&mut self, rate: Rate, now: Duration) -> bool {
        self.try_acquire_many(1, rate, now).is_ok()
    }

    /// Acquires `count` tokens at `now`, all or none. More than the burst are never available.
    ///
    /// # Errors
    /// The wait until `count` tokens are available, if no other caller acquires any.
    pub fn try_acquire_many(&mut self, count: u32, rate: Rate, now: Duration) -> Result<(), Duration> {
        self.refill(rate, now);
        let count = count as f32;
        if self.tokens < count {
            let wait_ms = (count - self.tokens) * 1000.0 / rate.per_second as f32;
            return Err(Duration::from_millis(wait_ms.ceil() as u64));
        }
        self.tokens -= count;
        Ok(())
    }

    /// Charges `count` tokens at `now`, even into debt; returns the wait until the debt is refilled, if there is one.
    /// The debt is never more than [`DEBT_SECS_MAX`] refills.
    pub fn charge(&mut self, count: u32, rate: Rate, now: Duration) -> Option<Duration> {
        self.refill(rate, now);
        let debt_max = rate.per_second as f32 * DEBT_SECS_MAX;
        self.tokens = (self.tokens - count as f32).max(-debt_max);
        (self.tokens < 0.0).then(|| Duration::from_secs_f32(-self.tokens / rate.per_second as f32))
    }

    /// Whether at least half of the bucket is full at `now`.
    pub fn is_half_full(&mut self, rate: Rate, now: Duration) -> bool {
        self.refill(rate, now);
        self.tokens >= rate.burst as f32 / 2.0
    }

    /// Whether the bucket is full at `now`, so that dropping it loses nothing.
    pub fn is_full(&mut self, rate: Rate, now: Duration) -> bool {
        self.refill(rate, now);
        self.tokens >= rate.burst as f32
    }

    fn refill(&mut self, rate: Rate, now: Duration) {
        // Wraps after 49 days: a bucket that was idle for exactly that long is refilled late, by its rate.
        let now_ms = now.as_millis() as u32;
        let mut elapsed_ms = now_ms.wrapping_sub(self.at_ms);
        if elapsed_ms > u32::MAX - CLOCK_SKEW_MS_MAX {
            // A concurrent caller read the clock later and came first.
            elapsed_ms = 0;
        } else {
            self.at_ms = now_ms;
        }
        let refill = elapsed_ms as f32 * rate.per_second as f32 / 1000.0;
        self.tokens = (self.tokens + refill).min(rate.burst as f32);
    }
}

/// A full bucket, for any rate.
impl Default for TokenBucket {
    fn default() -> Self {
        Self { tokens: f32::INFINITY, at_ms: 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 10 };

    fn acquired(bucket: &mut TokenBucket, at_ms: u64, tries: usize) -> usize {
        (0..tries).filter(|_| bucket.try_acquire(RATE, Duration::from_millis(at_ms))).count()
    }

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let mut bucket = TokenBucket::new(RATE);
        assert_eq!(acquired(&mut bucket, 0, 20), 10);
        assert_eq!(acquired(&mut bucket, 99, 5), 0);
        assert_eq!(acquired(&mut bucket, 500, 20), 5);
        assert_eq!(acquired(&mut bucket, 60_000, 20), 10);
    }

    #[test]
    fn a_time_before_the_last_one_refills_nothing() {
        let mut bucket = TokenBucket::new(RATE);
        assert_eq!(acquired(&mut bucket, 1001, 20), 10);
        assert_eq!(acquired(&mut bucket, 1000, 5), 0);
        assert!(!bucket.is_full(RATE, Duration::from_millis(999)));
        assert_eq!(acquired(&mut bucket, 1101, 5), 1, "and removes no tokens");
    }

    #[test]
    fn tokens_are_acquired_all_or_none_with_the_wait_as_the_error() {
        let mut bucket = TokenBucket::default();
        assert_eq!(bucket.try_acquire_many(8, RATE, Duration::ZERO), Ok(()));
        assert_eq!(bucket.try_acquire_many(5, RATE, Duration::ZERO), Err(Duration::from_millis(300)));
        assert_eq!(
            bucket.try_acquire_many(2, RATE, Duration::ZERO),
            Ok(()),
            "a failed call acquires nothing"
        );
        assert_eq!(bucket.try_acquire_many(5, RATE, Duration::from_millis(500)), Ok(()));
        assert!(!bucket.is_full(RATE, Duration::from_millis(1400)));
        assert!(bucket.is_full(RATE, Duration::from_millis(1500)));
    }

    #[test]
    fn a_charge_beyond_the_bucket_is_a_debt_that_is_refilled_by_the_rate() {
        let mut bucket = TokenBucket::new(RATE);
        assert_eq!(bucket.charge(10, RATE, Duration::ZERO), None);
        assert!(!bucket.is_half_full(RATE, Duration::ZERO));
        assert_eq!(bucket.charge(5, RATE, Duration::ZERO), Some(Duration::from_millis(500)));
        assert_eq!(bucket.charge(0, RATE, Duration::from_millis(500)), None);
        assert!(bucket.is_half_full(RATE, Duration::from_secs(1)));
        assert_eq!(bucket.charge(u32::MAX, RATE, Duration::from_secs(1)), Some(Duration::from_secs(10)));
    }

    proptest! {
        #[test]
        fn never_more_tokens_than_burst_and_rate_allow(gaps in proptest::collection::vec(0u64..300, 1..200)) {
            let mut bucket = TokenBucket::new(RATE);
            let (mut now, mut passed) = (0u64, 0u64);
            for gap in gaps {
                now += gap;
                passed += u64::from(bucket.try_acquire(RATE, Duration::from_millis(now)));
                prop_assert!(passed <= 10 + now / 100 + 1);
            }
        }
    }
}
