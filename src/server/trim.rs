//! Gives memory that is not used any more back to the system.
//!
//! glibc keeps what was freed for the next time, unless it lies at the end of a heap: after a burst of slow clients that
//! can be hundreds of megabytes. So it is asked to give it back: [`watch`] looks at the process every ten seconds. Why not
//! another allocator: docs/performance.md.

use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::machine;

/// How often the memory of the process is looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// What the process may have beyond what it started with before it is worth a look.
const SLACK_BYTES: usize = 16 * 1024 * 1024;

/// The longest pause after calls that gave little back, in intervals.
const PAUSE_MAX: u32 = 8;

/// Gives memory back, for as long as the server runs.
pub(super) async fn watch() {
    let Some(start) = machine::resident() else { return std::future::pending().await };
    let mut pacing = Pacing::new(start);
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(before) = machine::resident() else { continue };
        if !pacing.is_due(before) {
            continue;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "how long a call takes is not the time of a test's clock"
        )]
        let trimmed = spawn_blocking(|| {
            let begun = Instant::now();
            (malloc_trim::malloc_trim(), begun.elapsed())
        });
        let Ok((_, took)) = trimmed.await else { return };
        let after = machine::resident().unwrap_or(before);
        pacing.trimmed(before, after);
        let given_back_mb = before.saturating_sub(after) / 1_000_000;
        debug!(
            given_back_mb,
            resident_mb = after / 1_000_000,
            took_ms = took.as_millis(),
            "memory given back"
        );
    }
}

/// When to ask.
#[derive(Debug)]
struct Pacing {
    /// What the process started with, in bytes, or the least it has had since.
    least: usize,
    /// Intervals to wait yet.
    wait: u32,
    /// Intervals to wait after the next call that gives little back.
    pause: u32,
}

impl Pacing {
    const fn new(start: usize) -> Self {
        Self { least: start, wait: 0, pause: 1 }
    }

    /// Whether to ask now, when the process has `resident` bytes. To be called once an interval.
    fn is_due(&mut self, resident: usize) -> bool {
        self.least = self.least.min(resident);
        if self.wait > 0 {
            self.wait -= 1;
            return false;
        }
        resident > self.least + SLACK_BYTES
    }

    /// Notes what came of it: what is really in use is asked for ever more rarely.
    fn trimmed(&mut self, before: usize, after: usize) {
        if before.saturating_sub(after) > before / 16 {
            self.pause = 1;
        } else {
            self.wait = self.pause;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn memory_in_use_is_looked_at_ever_more_rarely_and_freed_memory_at_once_again() {
        let mut pacing = Pacing::new(6 * MIB);
        assert!(!pacing.is_due(6 * MIB + SLACK_BYTES), "nothing to speak of");
        let mut asked = Vec::new();
        for tick in 0..40 {
            if pacing.is_due(500 * MIB) {
                asked.push(tick);
                pacing.trimmed(500 * MIB, 499 * MIB);
            }
        }
        assert_eq!(asked, [0, 2, 5, 10, 19, 28, 37]);
        // Its clients are gone: it takes no longer than the longest pause until that is noticed.
        let ticks = (0..).take_while(|_| !pacing.is_due(500 * MIB)).count();
        assert!(ticks <= PAUSE_MAX as usize);
        pacing.trimmed(500 * MIB, 100 * MIB);
        assert!(pacing.is_due(100 * MIB), "there may be more");
        pacing.trimmed(100 * MIB, 8 * MIB);
        assert!(!pacing.is_due(8 * MIB));
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn what_was_freed_between_what_is_kept_goes_back_to_the_system() {
        const BYTES: usize = 128 * MIB;
        let mut blocks: Vec<Vec<u8>> = (0..BYTES / 1024).map(|_| vec![1; 1000]).collect();
        let full = machine::resident().unwrap();
        let mut kept = 0;
        // One of every 256 stays, so that no end of the heap is free.
        blocks.retain(|_| {
            kept += 1;
            kept % 256 == 0
        });
        assert!(malloc_trim::malloc_trim());
        let left = machine::resident().unwrap();
        assert!(left + BYTES / 2 < full, "{left} of {full} bytes are left");
        assert_eq!(blocks.len(), BYTES / 1024 / 256);
    }
}
