//! Keep-alive connections with signed requests. When the process is out of files, the longest idle ones are closed.
//!
//! An application reconnects for its next request, but a request that has arrived must be served. So a connection is
//! only asked to close, and checks itself whether it is idle.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;

use crate::hub::Hub;

/// A connection that has been idle for less is not closed: the next request may be on its way.
const GRACE: Duration = Duration::from_secs(1);

/// All keep-alive connections. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub(super) struct KeepAliveConnections(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    connections: HashMap<u64, (Arc<RequestCounts>, Waker)>,
}

/// One of these connections, until it is dropped.
#[derive(Debug)]
pub(super) struct KeepAliveGuard {
    all: KeepAliveConnections,
    number: u64,
}

impl KeepAliveConnections {
    /// Adds a connection with its request counts and the task that serves it.
    pub(super) fn insert(&self, requests: &Arc<RequestCounts>, task: Waker) -> KeepAliveGuard {
        let mut state = self.0.lock();
        let number = state.next;
        state.next += 1;
        state.connections.insert(number, (Arc::clone(requests), task));
        KeepAliveGuard { all: self.clone(), number }
    }

    /// Asks up to `count_max` connections to close, the longest idle ones first, and returns how many it asked.
    pub(super) fn close_idle(&self, count_max: usize, now: Duration) -> usize {
        let state = self.0.lock();
        let waits = |(number, (requests, _)): (&u64, &(Arc<RequestCounts>, Waker))| {
            let since = requests.idle_since()?;
            (since + GRACE <= now).then_some((since, *number))
        };
        let mut idle: Vec<_> = state.connections.iter().filter_map(waits).collect();
        idle.sort_unstable();
        idle.truncate(count_max);
        for (_, number) in &idle {
            let (requests, task) = &state.connections[number];
            requests.close_when_idle.store(true, Ordering::Relaxed);
            task.wake_by_ref();
        }
        idle.len()
    }
}

impl Drop for KeepAliveGuard {
    fn drop(&mut self) {
        self.all.0.lock().connections.remove(&self.number);
    }
}

/// The requests of one connection: how many have begun, and how many were responded to.
#[derive(Debug, Default)]
pub(super) struct RequestCounts {
    begun: AtomicU64,
    answered: AtomicU64,
    /// The time of the last response, in milliseconds of the node's clock.
    answered_ms: AtomicU64,
    /// Whether the connection must close if it is idle.
    close_when_idle: AtomicBool,
}

impl RequestCounts {
    /// The number of requests that have begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether no request is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.begun() == self.answered.load(Ordering::Relaxed)
    }

    /// Since when the connection is idle; `None`: it is not, or it was asked to close.
    fn idle_since(&self) -> Option<Duration> {
        let is_idle = self.is_idle() && !self.close_when_idle.load(Ordering::Relaxed);
        is_idle.then(|| Duration::from_millis(self.answered_ms.load(Ordering::Relaxed)))
    }

    /// Whether the connection must close now. To be called when all received bytes were processed.
    pub(super) fn should_close(&self) -> bool {
        self.close_when_idle.load(Ordering::Relaxed)
            && self.close_when_idle.swap(false, Ordering::Relaxed)
            && self.is_idle()
    }

    /// Counts a request as begun, and as answered when the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>, hub: &Hub) -> RequestGuard {
        self.begun.fetch_add(1, Ordering::Relaxed);
        RequestGuard { requests: Arc::clone(self), hub: hub.clone() }
    }

    fn answered(&self, now: Duration) {
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.answered_ms.store(now_ms, Ordering::Relaxed);
        self.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// A request in flight, until this is dropped.
#[derive(Debug)]
pub(super) struct RequestGuard {
    requests: Arc<RequestCounts>,
    hub: Hub,
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.requests.answered(self.hub.now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A connection whose last response was sent at this time; `None`: its request is in flight.
    fn kept(all: &KeepAliveConnections, answered_ms: Option<u64>) -> (Arc<RequestCounts>, KeepAliveGuard) {
        let requests = Arc::new(RequestCounts::default());
        requests.begun.fetch_add(1, Ordering::Relaxed);
        if let Some(ms) = answered_ms {
            requests.answered(at(ms));
        }
        let kept = all.insert(&requests, Waker::noop().clone());
        (requests, kept)
    }

    #[test]
    fn the_longest_idle_connections_are_closed_and_no_busy_or_recent_one() {
        let all = KeepAliveConnections::default();
        let connections = [Some(300), None, Some(100), Some(2500), Some(200)].map(|ms| kept(&all, ms));
        let ends =
            || connections.each_ref().map(|(requests, _)| requests.close_when_idle.load(Ordering::Relaxed));
        assert_eq!(all.close_idle(2, at(1099)), 0, "none has been idle for a second");
        assert_eq!(all.close_idle(2, at(3000)), 2);
        assert_eq!(ends(), [false, false, true, false, true]);
        assert_eq!(all.close_idle(2, at(3000)), 1, "two were asked before");
        assert_eq!(ends(), [true, false, true, false, true]);
        assert!(
            connections[0].0.should_close()
                && !connections[0].0.should_close()
                && !connections[3].0.should_close()
        );
        drop(connections);
        assert_eq!((all.close_idle(9, at(9000)), all.0.lock().connections.len()), (0, 0));
    }

    #[test]
    fn a_connection_that_gets_a_request_before_it_closes_stays_open() {
        let all = KeepAliveConnections::default();
        let (requests, _kept) = kept(&all, Some(0));
        assert_eq!(all.close_idle(1, at(1000)), 1);
        requests.begun.fetch_add(1, Ordering::Relaxed);
        assert!(!requests.should_close());
        requests.answered(at(1001));
        assert!(!requests.should_close(), "and it is not closed after the response");
        assert_eq!((all.close_idle(1, at(2000)), all.close_idle(1, at(2001))), (0, 1));
    }
}
