//! What this node counts: every counter, typed, in one place.
//!
//! Counting is one relaxed addition, so any room may count where it decides; who shows the numbers reads them
//! here. No label comes from a stranger: a counter stands for a rule, not for a channel or an address.
//!
//! Start at [`Metrics`].

use std::sync::atomic::{AtomicU64, Ordering};

use crate::rejections::Rejection;

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
#[derive(Debug)]
pub struct Metrics {
    /// See [`Metrics::rejected`].
    rejected: [Counter; Rejection::COUNT],
    /// Requests that were answered with what their idempotency key was answered with before.
    pub repeats_answered: Counter,
    /// What became of webhooks.
    pub webhooks: Webhooks,
    /// What happened to the cluster that this node is one of.
    pub cluster: Cluster,
}

impl Metrics {
    /// What was rejected for a reason: connections, messages, requests or events, each once.
    #[must_use]
    pub fn rejected(&self, rejection: impl Into<Rejection>) -> &Counter {
        &self.rejected[rejection.into().index()]
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            rejected: std::array::from_fn(|_| Counter::default()),
            repeats_answered: Counter::default(),
            webhooks: Webhooks::default(),
            cluster: Cluster::default(),
        }
    }
}

/// What happened to a cluster, as one of its nodes sees it.
#[derive(Debug, Default)]
pub struct Cluster {
    /// How often the broker was lost.
    pub lost: Counter,
    /// Messages that made no sense, and were dropped.
    pub dropped: Counter,
    /// How often the others had given this node up.
    pub given_up: Counter,
    /// Nodes that this one has cleared away.
    pub reaped: Counter,
}

/// What became of webhooks, of all apps together.
#[derive(Debug, Default)]
pub struct Webhooks {
    /// Events that were put into a queue, once for each receiver.
    pub events: Counter,
    /// Events that were not told because whoever went came back: both halves count.
    pub debounced: Counter,
    /// Events that were not sent because the second half of a pair came before the first was sent: both count, and what
    /// went with them.
    pub cancelled: Counter,
    /// Requests that were answered with 2xx.
    pub delivered: Counter,
    /// Attempts that failed, whether or not a later one did not.
    pub failed_attempts: Counter,
    /// Those of them that would have gone to an address where webhooks do not go.
    pub denied_addresses: Counter,
    /// Events that fell out of a full queue.
    pub dropped: Counter,
    /// Requests that were given up after all attempts.
    pub expired: Counter,
    /// Requests that a shutdown left unsent.
    pub unsent: Counter,
    /// Events that are left to the other nodes of a cluster, because of a shutdown or because another one tells them.
    pub nacked: Counter,
    /// Requests that are in the file of dead letters.
    pub dead_lettered: Counter,
    /// Requests that should be, and are not.
    pub dead_letters_lost: Counter,
}
