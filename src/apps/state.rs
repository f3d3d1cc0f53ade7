//! What an app has on this node: permits, rates, counters. It outlives a change of the app's settings.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::limits::{ByteCount, Count, Rate, TokenBucket};
use crate::rejections::RejectionLog;

/// See the module's documentation. All snapshots of an app share one.
#[derive(Debug, Default)]
pub struct AppState {
    /// Permits of open connections.
    pub connections: Count,
    /// Permits of channels that are occupied or keep an event.
    pub channels: Arc<Count>,
    /// Bytes of the bodies of HTTP requests in flight.
    pub body_bytes: ByteCount,
    /// The rate of HTTP requests.
    requests: Mutex<TokenBucket>,
    /// The rate of events published over HTTP.
    events: Mutex<TokenBucket>,
    /// The rejections that are reported to the operator.
    pub reports: Arc<RejectionLog>,
}

impl AppState {
    /// Counts a request at `now`.
    ///
    /// # Errors
    /// The time until the next request is accepted.
    pub(super) fn count_request(&self, rate: Rate, now: Duration) -> Result<(), Duration> {
        self.requests.lock().try_acquire_many(1, rate, now)
    }

    /// Counts `count` events at `now`: all or none.
    ///
    /// # Errors
    /// The time until as many events are accepted.
    pub(super) fn count_events(&self, count: u32, rate: Rate, now: Duration) -> Result<(), Duration> {
        self.events.lock().try_acquire_many(count, rate, now)
    }
}
