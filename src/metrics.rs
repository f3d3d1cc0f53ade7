//! What this node counts: every counter, typed, in one place.
//!
//! Counting is one relaxed addition, so any room may count where it decides; who shows the numbers reads them
//! here. No label comes from a stranger: a counter stands for a rule, not for a channel or an address.
//!
//! Start at [`Metrics`].

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one more.
    pub fn count(&self) {
        self.add(1);
    }

    /// Counts `more` more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// What has been counted since the node started.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counters of a node.
#[derive(Debug, Default)]
pub struct Metrics {}
