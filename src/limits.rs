//! How often: the token bucket behind every rate. Time is an argument.

use std::time::Duration;

/// Allows `per_second` on average and `burst` at once. 8 bytes, so that every connection can have some.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// Tokens left, as of `at`.
    tokens: f32,
    /// When `tokens` was true, in milliseconds of the caller's clock.
    at_ms: u32,
}

/// The rate of a [`TokenBucket`], shared by all that have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens that come back in a second. At least 1.
    pub per_second: u32,
    /// Tokens that a rested bucket holds. At least 1.
    pub burst: u32,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub const fn new(rate: Rate) -> Self {
        Self { tokens: rate.burst as f32, at_ms: 0 }
    }

    /// Takes one token at `now` (time since any fixed moment), or answers `false` when none is left.
    pub fn take(&mut self, rate: Rate, now: Duration) -> bool {
        // Wraps after 49 days: a bucket that rested just so long fills late, by its rate.
        let now_ms = now.as_millis() as u32;
        let elapsed_ms = now_ms.wrapping_sub(self.at_ms);
        self.at_ms = now_ms;
        let refill = elapsed_ms as f32 * rate.per_second as f32 / 1000.0;
        self.tokens = (self.tokens + refill).min(rate.burst as f32);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 10 };

    fn taken(bucket: &mut TokenBucket, at_ms: u64, tries: usize) -> usize {
        (0..tries).filter(|_| bucket.take(RATE, Duration::from_millis(at_ms))).count()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut bucket = TokenBucket::new(RATE);
        assert_eq!(taken(&mut bucket, 0, 20), 10);
        assert_eq!(taken(&mut bucket, 99, 5), 0);
        assert_eq!(taken(&mut bucket, 500, 20), 5);
        assert_eq!(taken(&mut bucket, 60_000, 20), 10);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate_allow(gaps in proptest::collection::vec(0u64..300, 1..200)) {
            let mut bucket = TokenBucket::new(RATE);
            let (mut now, mut passed) = (0u64, 0u64);
            for gap in gaps {
                now += gap;
                passed += u64::from(bucket.take(RATE, Duration::from_millis(now)));
                prop_assert!(passed <= 10 + now / 100 + 1);
            }
        }
    }
}
