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
    free: u64,
    used: u64,
    total: u64,
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

/// The machine's memory, or the container's where it has a limit. Zeroes where the system does not tell.
fn memory() -> Memory {
    // Files of the kernel's, which never wait for a disk.
    let read = |path| std::fs::read_to_string(path);
    let machine = read("/proc/meminfo").ok().and_then(|text| {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
        };
        Some((value("MemTotal")?, value("MemAvailable")?))
    });
    let number = |text: std::io::Result<String>| text.ok()?.trim().parse::<u64>().ok();
    let limit = number(read("/sys/fs/cgroup/memory.max"));
    // What the kernel caches of files it gives back when memory is short.
    let cached = read("/sys/fs/cgroup/memory.stat").ok().and_then(|text| {
        text.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok())
    });
    let used = number(read("/sys/fs/cgroup/memory.current"));
    let used = used.map(|used| used.saturating_sub(cached.unwrap_or(0)));
    let (total, free) = match (machine, limit.zip(used)) {
        (Some((total, _)), Some((limit, used))) if limit < total => (limit, limit.saturating_sub(used)),
        (Some(machine), _) => machine,
        (None, _) => (0, 0),
    };
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
