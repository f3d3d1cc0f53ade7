//! Strangers: connections that are neither a WebSocket yet nor one whose requests are signed, of which only so
//! many are served at once.
//!
//! When all places are taken, whoever has waited longest makes room, unless it came within the last second: then
//! the newcomer waits, and those behind it in the kernel's backlog, which costs this process nothing. So a flood of
//! silent connections holds up a client by a second for as many of them as there are places, and a rush of honest
//! ones, whose handshakes take less than that, loses nobody. The same goes for a process that is out of files.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::addresses::AddressPlace;

/// What a stranger has before it may have to make room.
const PATIENCE: Duration = Duration::from_secs(1);

/// The places of strangers.
#[derive(Debug)]
pub(super) struct Arrivals {
    places: usize,
    /// See [`PATIENCE`].
    patience: Duration,
    state: Mutex<State>,
    /// A place has been given back.
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// By the order in which they came.
    strangers: BTreeMap<u64, Stranger>,
}

#[derive(Debug)]
struct Stranger {
    since: Instant,
    /// Its task, once it has one.
    task: Option<AbortHandle>,
}

/// The place of a stranger. It is given back when the connection is no stranger any more, or has ended.
#[derive(Debug)]
pub(super) struct Arrival {
    arrivals: Arc<Arrivals>,
    number: u64,
    address: Mutex<Option<AddressPlace>>,
}

impl Arrivals {
    pub(super) fn new(places: u32) -> Self {
        Self { places: places as usize, patience: PATIENCE, state: Mutex::default(), freed: Notify::new() }
    }

    /// Takes a place, when there is one; and says how many strangers had to go for that.
    pub(super) async fn enter(self: &Arc<Self>) -> (Arrival, u64) {
        let mut evicted = 0;
        loop {
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            let oldest = {
                let mut state = self.state.lock();
                let now = Instant::now();
                match state.strangers.first_key_value() {
                    Some((_, oldest)) if state.strangers.len() >= self.places => oldest.since,
                    Some(_) | None => return (self.take(&mut state, now), evicted),
                }
            };
            let gone = self.evict(1);
            evicted += gone;
            if gone > 0 {
                continue;
            }
            tokio::select! {
                () = freed => {}
                () = sleep_until(oldest + self.patience) => {}
            }
        }
    }

    fn take(self: &Arc<Self>, state: &mut State, since: Instant) -> Arrival {
        let number = state.next;
        state.next += 1;
        state.strangers.insert(number, Stranger { since, task: None });
        Arrival { arrivals: Arc::clone(self), number, address: Mutex::new(None) }
    }

    /// Names the task that ends when its stranger, which came as `number`, has to go.
    pub(super) fn belongs_to(&self, number: u64, task: AbortHandle) {
        if let Some(stranger) = self.state.lock().strangers.get_mut(&number) {
            stranger.task = Some(task);
        }
    }

    /// Has the strangers go that have waited longest, `most` at most, and none of those that have just come; and
    /// says how many.
    pub(super) fn evict(&self, most: usize) -> u64 {
        let mut evicted = 0;
        for _ in 0..most {
            let mut state = self.state.lock();
            let Some(oldest) = state.strangers.first_entry() else { break };
            if Instant::now() < oldest.get().since + self.patience {
                break;
            }
            let gone = oldest.remove();
            drop(state);
            evicted += 1;
            if let Some(task) = gone.task {
                task.abort();
            }
        }
        evicted
    }
}

impl Arrival {
    /// The number of the stranger.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// See [`Arrivals::belongs_to`].
    pub(super) fn belongs_to(&self, task: AbortHandle) {
        self.arrivals.belongs_to(self.number, task);
    }

    /// Keeps the stranger's place among the connections of its address.
    pub(super) fn keep_address(&self, place: Option<AddressPlace>) {
        *self.address.lock() = place;
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let was_full = {
            let strangers = &mut self.arrivals.state.lock().strangers;
            let was_full = strangers.len() >= self.arrivals.places;
            strangers.remove(&self.number);
            was_full
        };
        if was_full {
            self.arrivals.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Waker};

    use super::*;

    fn arrivals(patience: Duration) -> Arc<Arrivals> {
        Arc::new(Arrivals { patience, ..Arrivals::new(2) })
    }

    #[tokio::test]
    async fn a_newcomer_waits_for_a_place_that_is_given_back() {
        let arrivals = arrivals(Duration::from_secs(3600));
        let (first, _) = arrivals.enter().await;
        let (_second, _) = arrivals.enter().await;
        let mut third = pin!(arrivals.enter());
        let at_once = third.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(at_once.is_pending(), "nobody has waited long enough to go");
        drop(first);
        let (_third, evicted) = third.await;
        assert_eq!(evicted, 0);
        assert_eq!(arrivals.state.lock().strangers.len(), 2);
    }

    #[tokio::test]
    async fn who_waited_longest_makes_room() {
        let arrivals = arrivals(Duration::ZERO);
        let mut tasks = Vec::new();
        for _ in 0..2 {
            let (arrival, _) = arrivals.enter().await;
            let number = arrival.number();
            let task = tokio::spawn(async move {
                let _arrival = arrival;
                std::future::pending::<()>().await;
            });
            arrivals.belongs_to(number, task.abort_handle());
            tasks.push(task);
        }
        let (_third, evicted) = arrivals.enter().await;
        assert_eq!(evicted, 1);
        assert!(tasks.remove(0).await.unwrap_err().is_cancelled());
        assert!(!tasks[0].is_finished());
        assert_eq!(arrivals.state.lock().strangers.len(), 2, "and its place was given back once");
    }

    #[tokio::test]
    async fn for_want_of_files_those_go_that_have_been_there_long_enough() {
        let patient = arrivals(Duration::from_secs(3600));
        let _place = patient.enter().await;
        assert_eq!(patient.evict(10), 0);
        let arrivals = arrivals(Duration::ZERO);
        let _places = (arrivals.enter().await, arrivals.enter().await);
        assert_eq!((arrivals.evict(1), arrivals.state.lock().strangers.len()), (1, 1));
        assert_eq!((arrivals.evict(10), arrivals.evict(10)), (1, 0));
    }
}
