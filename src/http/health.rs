//! Routes that tell whether the server is well, unsigned, in the forms that other servers have made common.
//! Source: protocol.md §8.9.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde::Serialize;

use super::{Api, ApiError};
use crate::hub::Lost;
use crate::machine;

/// `GET /`: Soketi's.
pub(super) async fn ok() -> &'static str {
    "OK"
}

/// `OPTIONS`: what load balancers look with, HAProxy by default. Source: RFC 9110 §9.3.7.
pub(super) async fn options() -> Response {
    (StatusCode::NO_CONTENT, [(header::ALLOW, "GET, HEAD, OPTIONS")]).into_response()
}

/// `GET /up`: Reverb's.
pub(super) async fn up() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], r#"{"health":"OK"}"#).into_response()
}

/// `GET /health`: laravel-websockets'.
pub(super) async fn health() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], r#"{"ok":true}"#).into_response()
}

/// `GET /ready`: not while the node is going away, or does not know what the others of its cluster do.
pub(super) async fn ready(State(api): State<Api>) -> Result<&'static str, ApiError> {
    match &api.0.hub {
        hub if hub.is_draining() => Err(ApiError::Draining),
        hub if !hub.is_whole() => Err(ApiError::BrokerLost(Lost)),
        _ => Ok("OK"),
    }
}

/// The answer to [`accept_traffic`]: bytes, and per cent used.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    free: usize,
    used: usize,
    total: usize,
    percent: f64,
}

/// `GET /accept-traffic`: 500 while memory runs short or the node is going away, so that a load balancer sends
/// new connections elsewhere.
pub(super) async fn accept_traffic(State(api): State<Api>) -> Response {
    #[derive(Serialize)]
    struct Body {
        memory: Memory,
    }
    let memory = api.0.memory.at(api.0.hub.now(), memory);
    let short = memory.percent > f64::from(api.0.options.accept_traffic_memory_percent);
    let accepts = !short && !api.0.hub.is_draining();
    let status = if accepts { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    (status, Json(Body { memory })).into_response()
}

/// For so long what was seen of the memory is told again: strangers may ask as often as they like.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What was seen of the memory, and when.
#[derive(Debug, Default)]
pub(super) struct LastLook(Mutex<Option<(Duration, Memory)>>);

impl LastLook {
    fn at(&self, now: Duration, look: impl FnOnce() -> Memory) -> Memory {
        let mut last = self.0.lock();
        match *last {
            Some((at, memory)) if now.saturating_sub(at) < LOOK_INTERVAL => memory,
            Some(_) | None => last.insert((now, look())).1,
        }
    }
}

/// What there is of memory, and is used.
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
    fn the_memory_is_looked_at_once_a_second_however_often_it_is_asked_for() {
        let (last, mut looks) = (LastLook::default(), 0);
        let mut total_at = |millis| {
            let look = || {
                looks += 1;
                Memory { free: 0, used: 0, total: looks, percent: 0.0 }
            };
            last.at(Duration::from_millis(millis), look).total
        };
        let totals = [5000, 5000, 5999, 4999, 6000, 6999, 60_000].map(&mut total_at);
        assert_eq!(totals, [1, 1, 1, 1, 2, 2, 3]);
    }
}
