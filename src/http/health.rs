//! Health routes, without a signature, in the forms that other servers have established. Source: protocol.md §8.9.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde::Serialize;

use super::{Api, ApiError};
use crate::hub::Unavailable;
use crate::machine;

/// `GET /`, as in Soketi.
pub(super) async fn ok() -> &'static str {
    "OK"
}

/// `OPTIONS`, the health check of HAProxy by default. Source: RFC 9110 §9.3.7.
pub(super) async fn options() -> Response {
    (StatusCode::NO_CONTENT, [(header::ALLOW, "GET, HEAD, OPTIONS")]).into_response()
}

/// `GET /up`, as in Reverb.
pub(super) async fn up() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], r#"{"health":"OK"}"#).into_response()
}

/// `GET /health`, as in laravel-websockets.
pub(super) async fn health() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], r#"{"ok":true}"#).into_response()
}

/// `GET /ready`: an error while the node shuts down, or is disconnected from the broker of its cluster.
pub(super) async fn ready(State(api): State<Api>) -> Result<&'static str, ApiError> {
    match &api.0.hub {
        hub if hub.is_draining() => Err(ApiError::Draining),
        hub if !hub.is_ready() => Err(ApiError::BrokerUnavailable(Unavailable)),
        _ => Ok("OK"),
    }
}

/// The response to [`accept_traffic`]: bytes, and the percentage used.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    free: usize,
    used: usize,
    total: usize,
    percent: f64,
}

/// `GET /accept-traffic`: 500 while memory is short or the node shuts down, so that a load balancer sends new connections to
/// other nodes.
pub(super) async fn accept_traffic(State(api): State<Api>) -> Response {
    #[derive(Serialize)]
    struct Body {
        memory: Memory,
    }
    let memory = api.0.memory.get(api.0.hub.now(), memory);
    let short = memory.is_short(api.0.options.accept_traffic_memory_percent);
    let accepts = !short && !api.0.hub.is_draining();
    let status = if accepts { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    (status, Json(Body { memory })).into_response()
}

impl Memory {
    /// Whether more than `percent_max` of the memory is used.
    fn is_short(&self, percent_max: u8) -> bool {
        self.percent > f64::from(percent_max)
    }
}

/// The memory is read at most once in this time, because anybody may send requests without a limit.
const READ_INTERVAL: Duration = Duration::from_secs(1);

/// The last reading of the memory, and its time.
#[derive(Debug, Default)]
pub(super) struct LastReading(Mutex<Option<(Duration, Memory)>>);

impl LastReading {
    fn get(&self, now: Duration, read: impl FnOnce() -> Memory) -> Memory {
        let mut last = self.0.lock();
        match *last {
            Some((at, memory)) if now.saturating_sub(at) < READ_INTERVAL => memory,
            Some(_) | None => last.insert((now, read())).1,
        }
    }
}

/// Reads the memory of the machine.
fn memory() -> Memory {
    let machine::Memory { total, free } = machine::memory();
    let used = total.saturating_sub(free);
    let percent = if total == 0 { 0.0 } else { used as f64 * 100.0 / total as f64 };
    Memory { free, used, total, percent }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_read_at_most_once_a_second() {
        let (last, mut readings) = (LastReading::default(), 0);
        let mut total_at = |millis| {
            let read = || {
                readings += 1;
                Memory { free: 0, used: 0, total: readings, percent: 0.0 }
            };
            last.get(Duration::from_millis(millis), read).total
        };
        let totals = [5000, 5000, 5999, 4999, 6000, 6999, 60_000].map(&mut total_at);
        assert_eq!(totals, [1, 1, 1, 1, 2, 2, 3]);
    }
    #[test]
    fn when_memory_is_free_again_traffic_is_accepted_within_a_second() {
        let last = LastReading::default();
        let is_short_at = |millis, percent| {
            let read = || Memory { free: 0, used: 0, total: 100, percent };
            last.get(Duration::from_millis(millis), read).is_short(90)
        };
        assert!(is_short_at(1000, 90.1));
        assert!(is_short_at(1999, 20.0), "not read again");
        assert!(!is_short_at(2000, 90.0));
        assert!(!is_short_at(2999, 95.0));
        assert!(is_short_at(3000, 95.0));
    }
}
