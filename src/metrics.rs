//! Every counter of this node, typed, in one place.
//!
//! Counting is one relaxed addition, so each module counts where it decides. A counter stands for a rule, never for a
//! channel, an address or anything else that a peer chooses.
//!
//! Start at [`Metrics`].

use std::sync::atomic::{AtomicU64, Ordering};

use crate::rejections::Rejection;

/// A count that only increases.
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
    /// Requests that were answered with the stored response of their idempotency key.
    pub idempotent_replays: Counter,
    /// Facts that a slow watcher missed, once for each watcher.
    pub facts_missed: Counter,
    /// The counters of webhooks.
    pub webhooks: Webhooks,
    /// The counters of the cluster, as this node sees it.
    pub cluster: Cluster,
}

impl Metrics {
    /// The counter of one kind of rejection: connections, messages, requests or events, each counted once.
    #[must_use]
    pub fn rejected(&self, rejection: impl Into<Rejection>) -> &Counter {
        &self.rejected[rejection.into().index()]
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            rejected: std::array::from_fn(|_| Counter::default()),
            idempotent_replays: Counter::default(),
            facts_missed: Counter::default(),
            webhooks: Webhooks::default(),
            cluster: Cluster::default(),
        }
    }
}

/// The counters of a cluster, as one of its nodes sees it.
#[derive(Debug, Default)]
pub struct Cluster {
    /// Disconnects from the broker.
    pub disconnects: Counter,
    /// Messages that were dropped: malformed ones, and those of later releases.
    pub dropped: Counter,
    /// Expirations of this node's lease: the other nodes had declared it dead.
    pub lease_expirations: Counter,
    /// Dead nodes that this node has removed.
    pub nodes_removed: Counter,
}

/// The counters of webhooks, of all apps together.
#[derive(Debug, Default)]
pub struct Webhooks {
    /// Events that were queued, once for each receiver.
    pub events: Counter,
    /// Events that were not sent because a second event undid the first: both count.
    pub debounced: Counter,
    /// Events that were removed from a queue because the second of a pair came before the first was sent: both count,
    /// and the events between them that they cancelled.
    pub cancelled: Counter,
    /// Requests that were answered with 2xx.
    pub delivered: Counter,
    /// Attempts that failed, even if a later one succeeded.
    pub failed_attempts: Counter,
    /// Failed attempts to an address that webhooks may not be sent to.
    pub denied_addresses: Counter,
    /// Events that were dropped from a full queue.
    pub dropped: Counter,
    /// Requests that failed after all attempts.
    pub expired: Counter,
    /// Requests that were unsent at a shutdown.
    pub unsent: Counter,
    /// Events that are left to other nodes of the cluster: at a shutdown, or because another node sends them.
    pub nacked: Counter,
    /// Requests in the dead letter file.
    pub dead_lettered: Counter,
    /// Requests that could not be written to the dead letter file.
    pub dead_letters_lost: Counter,
}
