//! Connections whose requests are signed, which are kept open for the next one. When the process is out of files, those
//! are closed that have waited longest for a request, so that others can come.
//!
//! An application comes back when it has something to say; a request that has come is never cut off. So a connection is
//! only told to end, and looks itself whether it is idle.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;

use crate::hub::Hub;

/// A connection that has waited no longer for a request is not closed: the next may be on its way.
const GRACE: Duration = Duration::from_secs(1);

/// The connections that are kept. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub(super) struct KeptAlive(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    connections: HashMap<u64, (Arc<Requests>, Waker)>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Kept {
    all: KeptAlive,
    number: u64,
}

impl KeptAlive {
    /// Takes in the connection of these requests, which `task` serves.
    pub(super) fn enter(&self, requests: &Arc<Requests>, task: Waker) -> Kept {
        let mut state = self.0.lock();
        let number = state.next;
        state.next += 1;
        state.connections.insert(number, (Arc::clone(requests), task));
        Kept { all: self.clone(), number }
    }

    /// Has `most` connections end, those first that have waited longest for a request; and says how many.
    pub(super) fn close_idle(&self, most: usize, now: Duration) -> usize {
        let state = self.0.lock();
        let waits = |(number, (requests, _)): (&u64, &(Arc<Requests>, Waker))| {
            let since = requests.idle_since()?;
            (since + GRACE <= now).then_some((since, *number))
        };
        let mut idle: Vec<_> = state.connections.iter().filter_map(waits).collect();
        idle.sort_unstable();
        idle.truncate(most);
        for (_, number) in &idle {
            let (requests, task) = &state.connections[number];
            requests.is_to_end.store(true, Ordering::Relaxed);
            task.wake_by_ref();
        }
        idle.len()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.all.0.lock().connections.remove(&self.number);
    }
}

/// The requests of one connection: how many have begun, and how many are answered.
#[derive(Debug, Default)]
pub(super) struct Requests {
    begun: AtomicU64,
    answered: AtomicU64,
    /// When the last one was, in milliseconds of the node's clock.
    answered_ms: AtomicU64,
    /// The connection ends, if it is idle.
    is_to_end: AtomicBool,
}

impl Requests {
    /// How many have begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Whether none is being answered.
    pub(super) fn are_answered(&self) -> bool {
        self.begun() == self.answered.load(Ordering::Relaxed)
    }

    /// Since when the connection waits for a request; `None`: it does not, or it is about to end.
    fn idle_since(&self) -> Option<Duration> {
        let is_idle = self.are_answered() && !self.is_to_end.load(Ordering::Relaxed);
        is_idle.then(|| Duration::from_millis(self.answered_ms.load(Ordering::Relaxed)))
    }

    /// Whether the connection has to end now. To be asked when what has come was looked at.
    pub(super) fn end_now(&self) -> bool {
        self.is_to_end.load(Ordering::Relaxed)
            && self.is_to_end.swap(false, Ordering::Relaxed)
            && self.are_answered()
    }

    /// Counts a request as begun.
    pub(super) fn begin(self: &Arc<Self>, hub: &Hub) -> Begun {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Begun { requests: Arc::clone(self), hub: hub.clone() }
    }

    fn answered(&self, now: Duration) {
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.answered_ms.store(now_ms, Ordering::Relaxed);
        self.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// A request that is being answered until this is dropped.
#[derive(Debug)]
pub(super) struct Begun {
    requests: Arc<Requests>,
    hub: Hub,
}

impl Drop for Begun {
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

    /// A connection whose last request was answered then; `None`: it is being answered.
    fn kept(all: &KeptAlive, answered_ms: Option<u64>) -> (Arc<Requests>, Kept) {
        let requests = Arc::new(Requests::default());
        requests.begun.fetch_add(1, Ordering::Relaxed);
        if let Some(ms) = answered_ms {
            requests.answered(at(ms));
        }
        let kept = all.enter(&requests, Waker::noop().clone());
        (requests, kept)
    }

    #[test]
    fn those_that_have_waited_longest_are_closed_and_none_that_is_busy_or_has_just_been() {
        let all = KeptAlive::default();
        let connections = [Some(300), None, Some(100), Some(2500), Some(200)].map(|ms| kept(&all, ms));
        let ends = || connections.each_ref().map(|(requests, _)| requests.is_to_end.load(Ordering::Relaxed));
        assert_eq!(all.close_idle(2, at(1099)), 0, "none has waited for a second");
        assert_eq!(all.close_idle(2, at(3000)), 2);
        assert_eq!(ends(), [false, false, true, false, true]);
        assert_eq!(all.close_idle(2, at(3000)), 1, "those two are about to end");
        assert_eq!(ends(), [true, false, true, false, true]);
        assert!(connections[0].0.end_now() && !connections[0].0.end_now() && !connections[3].0.end_now());
        drop(connections);
        assert_eq!((all.close_idle(9, at(9000)), all.0.lock().connections.len()), (0, 0));
    }

    #[test]
    fn a_connection_that_gets_a_request_in_the_last_moment_goes_on() {
        let all = KeptAlive::default();
        let (requests, _kept) = kept(&all, Some(0));
        assert_eq!(all.close_idle(1, at(1000)), 1);
        requests.begun.fetch_add(1, Ordering::Relaxed);
        assert!(!requests.end_now());
        requests.answered(at(1001));
        assert!(!requests.end_now(), "and is not closed when that is answered");
        assert_eq!((all.close_idle(1, at(2000)), all.close_idle(1, at(2001))), (0, 1));
    }
}
