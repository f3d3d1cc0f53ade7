//! Returns unused memory to the system.
//!
//! glibc keeps freed memory for later use, unless it is at the end of a heap: after a burst of slow clients that can be
//! hundreds of megabytes. [`watch`] checks the process every ten seconds, and has glibc return it. Why not another
//! allocator: docs/performance.md.

use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::machine;

/// How often the memory of the process is checked.
const INTERVAL: Duration = Duration::from_secs(10);

/// How much the process may use beyond its least before a trim is worth it.
const SLACK_BYTES: usize = 16 * 1024 * 1024;

/// The longest pause after trims that returned little, in intervals.
const PAUSE_MAX: u32 = 8;

/// Returns unused memory, as long as the server runs.
pub(super) async fn watch() {
    let Some(start) = machine::resident_bytes() else { return std::future::pending().await };
    let mut schedule = TrimSchedule::new(start);
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(before) = machine::resident_bytes() else { continue };
        if !schedule.is_due(before) {
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
        let after = machine::resident_bytes().unwrap_or(before);
        schedule.trimmed(before, after);
        let returned_mb = before.saturating_sub(after) / 1_000_000;
        debug!(
            returned_mb,
            resident_mb = after / 1_000_000,
            took_ms = took.as_millis(),
            "memory returned to the system"
        );
    }
}

/// When to trim.
#[derive(Debug)]
struct TrimSchedule {
    /// The least memory that the process has used since its start, in bytes.
    least: usize,
    /// Intervals left to wait.
    wait: u32,
    /// Intervals to wait after the next trim that returns little.
    pause: u32,
}

impl TrimSchedule {
    const fn new(start: usize) -> Self {
        Self { least: start, wait: 0, pause: 1 }
    }

    /// Whether to trim now, when the process uses `resident` bytes. To be called once an interval.
    fn is_due(&mut self, resident: usize) -> bool {
        self.least = self.least.min(resident);
        if self.wait > 0 {
            self.wait -= 1;
            return false;
        }
        resident > self.least + SLACK_BYTES
    }

    /// Records the result of a trim: as long as memory is in use, the pauses grow.
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
    fn trimming_backs_off_while_memory_is_in_use_and_resumes_when_it_is_freed() {
        let mut schedule = TrimSchedule::new(6 * MIB);
        assert!(!schedule.is_due(6 * MIB + SLACK_BYTES), "too little");
        let mut trims = Vec::new();
        for tick in 0..40 {
            if schedule.is_due(500 * MIB) {
                trims.push(tick);
                schedule.trimmed(500 * MIB, 499 * MIB);
            }
        }
        assert_eq!(trims, [0, 2, 5, 10, 19, 28, 37]);
        // Its clients have disconnected: that is noticed within the longest pause.
        let ticks = (0..).take_while(|_| !schedule.is_due(500 * MIB)).count();
        assert!(ticks <= PAUSE_MAX as usize);
        schedule.trimmed(500 * MIB, 100 * MIB);
        assert!(schedule.is_due(100 * MIB), "there may be more");
        schedule.trimmed(100 * MIB, 8 * MIB);
        assert!(!schedule.is_due(8 * MIB));
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn memory_freed_between_live_blocks_is_returned_to_the_system() {
        const BYTES: usize = 128 * MIB;
        let mut blocks: Vec<Vec<u8>> = (0..BYTES / 1024).map(|_| vec![1; 1000]).collect();
        let full = machine::resident_bytes().unwrap();
        let mut kept = 0;
        // One block of every 256 stays, so that no end of the heap is free.
        blocks.retain(|_| {
            kept += 1;
            kept % 256 == 0
        });
        assert!(malloc_trim::malloc_trim());
        let left = machine::resident_bytes().unwrap();
        assert!(left + BYTES / 2 < full, "{left} of {full} bytes are left");
        assert_eq!(blocks.len(), BYTES / 1024 / 256);
    }
}
