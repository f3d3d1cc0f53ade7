//! Pusher's HTTP API, and the routes that tell whether the server is well.

use std::time::Duration;

/// How the HTTP API serves, whatever the app.
#[derive(Clone, Debug)]
pub struct Options {
    /// A request whose body makes no progress for so long is dropped. Default 30 s.
    pub read_timeout: Duration,
    /// `/accept-traffic` answers 500 while the machine's memory is used beyond this. Default 90 %.
    pub accept_traffic_memory_percent: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self { read_timeout: Duration::from_secs(30), accept_traffic_memory_percent: 90 }
    }
}
