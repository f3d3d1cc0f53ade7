//! Settings and intervals.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::observers::Observers;

/// Settings of webhooks.
#[derive(Clone, Debug)]
pub struct Options {
    /// Events queued for one receiver, in bytes. Default 16 MiB.
    pub queue_bytes: usize,
    /// The file that stores undelivered requests; `None`: they are dropped.
    pub dead_letter_file: Option<PathBuf>,
    /// The maximum size of that file, in bytes. Default 64 MiB.
    pub dead_letter_bytes: u64,
    /// Networks that webhooks may connect to although `target` denies them.
    pub allowed_addresses: Vec<IpNet>,
    /// Intervals and timeouts of the protocol; not configurable.
    pub timing: Timing,
    /// Those who watch what happens: the server's own.
    pub observers: Observers,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue_bytes: 16 * 1024 * 1024,
            dead_letter_file: None,
            dead_letter_bytes: 64 * 1024 * 1024,
            allowed_addresses: Vec::new(),
            timing: Timing::default(),
            observers: Observers::default(),
        }
    }
}

/// Intervals and timeouts. Source: protocol.md §9.1, §9.3.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Timing {
    /// How long a `vacated`, `removed` or `offline` event is held.
    pub debounce: Duration,
    /// For one attempt, from the DNS lookup to the head of the response.
    pub request_timeout: Duration,
    /// Between the first two attempts at an event that was rejected; doubled after each further attempt.
    pub backoff: Duration,
    /// The maximum of the backoff. Every backoff has a jitter of ±25 %.
    pub backoff_max: Duration,
    /// The minimum time between two probes of a receiver that does not respond; the maximum is twice that.
    pub probe_interval: Duration,
    /// No attempt begins later than this after the event was enqueued.
    pub delivery_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            debounce: Duration::from_secs(3),
            request_timeout: Duration::from_secs(10),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
            probe_interval: Duration::from_secs(1),
            delivery_timeout: Duration::from_secs(300),
        }
    }
}
