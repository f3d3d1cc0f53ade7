//! Strangers: connections that are neither a WebSocket yet nor one whose requests are signed, of which only so
//! many are served at once.
//!
//! When all places are taken, one of them is evicted for the next: of those that have sent nothing the oldest, else of
//! those that have not sent all of a head or a handshake, else of those that are being answered ([`Stage`]). Each has
//! a moment first, in which an honest client comes further; while nobody's is over, the newcomer waits, and those
//! behind it in the kernel's backlog, which costs this process nothing. So a flood of silent connections holds up a
//! client by 50 ms for as many of them as there are places: with 1000 places, 20,000 a second hold nobody up. The same
//! goes for a process that is out of files.
//!
//! How long each has been there counts, and not when it said something last: bytes that drip buy no time.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::addresses::AddressPlace;

/// How far a pending connection has come. Those that have come least far are evicted first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// Nothing has come from it.
    Silent,
    /// Something has, but no whole head; or what came has been answered.
    Begun,
    /// Its request is being answered, or its WebSocket admitted or refused.
    Answering,
}

impl Stage {
    const ALL: [Self; 3] = [Self::Silent, Self::Begun, Self::Answering];

    /// How old a connection of this stage must be to be evicted. What a client says first is on its way when it is
    /// accepted; a handshake takes a few round trips.
    const fn grace(self) -> Duration {
        match self {
            Self::Silent => Duration::from_millis(50),
            Self::Begun => Duration::from_millis(500),
            Self::Answering => Duration::from_secs(1),
        }
    }
}

/// The places of strangers.
#[derive(Debug)]
pub(super) struct Arrivals {
    places: usize,
    state: Mutex<State>,
    /// A place has been given back.
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// For each stage, by the order in which they came.
    stages: [BTreeMap<u64, Stranger>; Stage::ALL.len()],
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

impl State {
    fn len(&self) -> usize {
        self.stages.iter().map(BTreeMap::len).sum()
    }

    fn find(&mut self, number: u64) -> Option<&mut Stranger> {
        self.stages.iter_mut().find_map(|strangers| strangers.get_mut(&number))
    }

    fn remove(&mut self, number: u64) -> Option<Stranger> {
        self.stages.iter_mut().find_map(|strangers| strangers.remove(&number))
    }

    /// Takes out the one that is evicted next.
    fn evict(&mut self, now: Instant) -> Option<Stranger> {
        Stage::ALL.iter().zip(&mut self.stages).find_map(|(stage, strangers)| {
            let oldest = strangers.first_entry()?;
            (oldest.get().since + stage.grace() <= now).then(|| oldest.remove())
        })
    }

    /// When the next one may be evicted.
    fn evictable_at(&self) -> Option<Instant> {
        let oldest = Stage::ALL.iter().zip(&self.stages).filter_map(|(stage, strangers)| {
            strangers.first_key_value().map(|(_, oldest)| oldest.since + stage.grace())
        });
        oldest.min()
    }
}

impl Arrivals {
    pub(super) fn new(places: u32) -> Self {
        Self { places: places as usize, state: Mutex::default(), freed: Notify::new() }
    }

    /// How many there are.
    pub(super) const fn places(&self) -> usize {
        self.places
    }

    /// Takes a place, when there is one; and says how many strangers were evicted for that.
    pub(super) async fn enter(self: &Arc<Self>) -> (Arrival, u64) {
        let mut evicted = 0;
        loop {
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            let evictable_at = {
                let mut state = self.state.lock();
                if state.len() < self.places {
                    return (self.take(&mut state), evicted);
                }
                state.evictable_at()
            };
            let gone = self.evict(1);
            evicted += gone;
            if gone > 0 {
                continue;
            }
            let Some(evictable_at) = evictable_at else { continue };
            tokio::select! {
                () = freed => {}
                () = sleep_until(evictable_at) => {}
            }
        }
    }

    fn take(self: &Arc<Self>, state: &mut State) -> Arrival {
        let number = state.next;
        state.next += 1;
        let stranger = Stranger { since: Instant::now(), task: None };
        // Whether it has sent something is not known yet.
        state.stages[Stage::Begun as usize].insert(number, stranger);
        Arrival { arrivals: Arc::clone(self), number, address: Mutex::new(None) }
    }

    /// Names the task that ends when its stranger, which came as `number`, is evicted.
    pub(super) fn belongs_to(&self, number: u64, task: AbortHandle) {
        if let Some(stranger) = self.state.lock().find(number) {
            stranger.task = Some(task);
        }
    }

    /// Evicts `most` strangers at most, and none that has just come; and says how many.
    pub(super) fn evict(&self, most: usize) -> u64 {
        let mut evicted = 0;
        for _ in 0..most {
            let Some(gone) = self.state.lock().evict(Instant::now()) else { break };
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

    /// Notes how far the stranger has come.
    pub(super) fn reached(&self, stage: Stage) {
        let mut state = self.arrivals.state.lock();
        if let Some(stranger) = state.remove(self.number) {
            state.stages[stage as usize].insert(self.number, stranger);
        }
    }

    /// Keeps the stranger's place among the connections of its address.
    pub(super) fn keep_address(&self, place: Option<AddressPlace>) {
        *self.address.lock() = place;
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let was_full = {
            let mut state = self.arrivals.state.lock();
            let was_full = state.len() >= self.arrivals.places;
            state.remove(self.number);
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

    use tokio::task::JoinHandle;
    use tokio::time::advance;

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// A stranger that stays at `stage` until it is evicted.
    async fn stranger(arrivals: &Arc<Arrivals>, stage: Stage) -> (JoinHandle<()>, u64) {
        let (arrival, evicted) = arrivals.enter().await;
        arrival.reached(stage);
        let number = arrival.number();
        let task = tokio::spawn(async move {
            let _arrival = arrival;
            std::future::pending::<()>().await;
        });
        arrivals.belongs_to(number, task.abort_handle());
        (task, evicted)
    }

    fn len(arrivals: &Arrivals) -> usize {
        arrivals.state.lock().len()
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_waits_for_a_place_that_is_given_back() {
        let arrivals = Arc::new(Arrivals::new(2));
        let (first, _) = arrivals.enter().await;
        let (_second, _) = arrivals.enter().await;
        let mut third = pin!(arrivals.enter());
        let at_once = third.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(at_once.is_pending(), "nobody has been there long enough to be evicted");
        drop(first);
        let (_third, evicted) = third.await;
        assert_eq!((evicted, len(&arrivals)), (0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_that_have_come_as_far_the_oldest_is_evicted() {
        for stage in Stage::ALL {
            let arrivals = Arc::new(Arrivals::new(2));
            let (first, _) = stranger(&arrivals, stage).await;
            let (second, _) = stranger(&arrivals, stage).await;
            let begin = Instant::now();
            let (_third, evicted) = arrivals.enter().await;
            assert_eq!(evicted, 1);
            let waited = Instant::now() - begin;
            assert!((stage.grace()..stage.grace() + 2 * MILLI).contains(&waited), "{stage:?}: {waited:?}");
            assert!(first.await.unwrap_err().is_cancelled());
            assert!(!second.is_finished());
            assert_eq!(len(&arrivals), 2, "and its place was given back once");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_have_sent_nothing_are_evicted_first_and_those_being_answered_last() {
        let arrivals = Arc::new(Arrivals::new(3));
        let (answering, _) = stranger(&arrivals, Stage::Answering).await;
        let (begun, _) = stranger(&arrivals, Stage::Begun).await;
        let (silent, _) = stranger(&arrivals, Stage::Silent).await;
        advance(Duration::from_secs(5)).await;
        let mut held = Vec::new();
        for gone in [silent, begun, answering] {
            assert!(!gone.is_finished());
            let (arrival, evicted) = arrivals.enter().await;
            arrival.reached(Stage::Answering);
            held.push(arrival);
            assert_eq!(evicted, 1);
            assert!(gone.await.unwrap_err().is_cancelled());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_silent_connections_holds_a_newcomer_up_for_a_moment() {
        let arrivals = Arc::new(Arrivals::new(100));
        // 3000 a second.
        for _ in 0..3000 {
            stranger(&arrivals, Stage::Silent).await;
            advance(MILLI / 3).await;
        }
        let begin = Instant::now();
        arrivals.enter().await;
        assert!(begin.elapsed() <= Stage::Silent.grace(), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn for_want_of_files_those_go_that_have_been_there_long_enough() {
        let arrivals = Arc::new(Arrivals::new(10));
        let _places = (arrivals.enter().await, arrivals.enter().await);
        assert_eq!(arrivals.evict(10), 0);
        advance(Stage::Begun.grace()).await;
        assert_eq!((arrivals.evict(1), len(&arrivals)), (1, 1));
        assert_eq!((arrivals.evict(10), arrivals.evict(10)), (1, 0));
    }
}
