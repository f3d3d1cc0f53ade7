//! Pending connections: unauthenticated ones, which are neither a WebSocket nor a connection with signed requests. Their
//! number is limited.
//!
//! When all permits are in use, a new connection evicts another: the oldest silent one, else the oldest with a partial
//! head or handshake, else the oldest that is being responded to ([`Stage`]). Each stage has a grace period, in which an
//! honest client proceeds. While no connection is past its grace period, the new one waits, and those behind it wait in
//! the kernel's backlog, which costs this process nothing. So a flood of silent connections delays a client by 50 ms for
//! each time that it fills all permits: with 1000 permits, 20,000 connections a second delay no client. The same
//! eviction frees files when the process is out of them.
//!
//! Only the age of a connection counts, not the time of its last byte: a client that sends slowly gains no time.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::addresses::AddressPermit;

/// The progress of a pending connection. Those with the least progress are evicted first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// It has sent nothing.
    Silent,
    /// It has sent a partial head or handshake; or its last request was responded to.
    Reading,
    /// Its request is being responded to, or its WebSocket accepted or rejected.
    Responding,
}

impl Stage {
    const ALL: [Self; 3] = [Self::Silent, Self::Reading, Self::Responding];

    /// The age at which a connection of this stage may be evicted. The first bytes of a client are on their way when it
    /// is accepted; a handshake takes a few round trips.
    const fn grace(self) -> Duration {
        match self {
            Self::Silent => Duration::from_millis(50),
            Self::Reading => Duration::from_millis(500),
            Self::Responding => Duration::from_secs(1),
        }
    }
}

/// All pending connections.
#[derive(Debug)]
pub(super) struct PendingConnections {
    permits: usize,
    state: Mutex<State>,
    /// Notified when a permit is released.
    released: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// For each stage, the connections in the order of their numbers, which is that of their age.
    stages: [BTreeMap<u64, Entry>; Stage::ALL.len()],
}

#[derive(Debug)]
struct Entry {
    since: Instant,
    /// The task to abort on eviction, once there is one.
    task: Option<AbortHandle>,
}

/// A pending connection. Dropping it releases its permit: when the connection is authenticated, or has closed.
#[derive(Debug)]
pub(super) struct PendingConnection {
    connections: Arc<PendingConnections>,
    number: u64,
    address: Mutex<Option<AddressPermit>>,
}

impl State {
    fn len(&self) -> usize {
        self.stages.iter().map(BTreeMap::len).sum()
    }

    fn find(&mut self, number: u64) -> Option<&mut Entry> {
        self.stages.iter_mut().find_map(|entries| entries.get_mut(&number))
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        self.stages.iter_mut().find_map(|entries| entries.remove(&number))
    }

    /// Removes the connection to evict next, if one is past its grace period.
    fn evict(&mut self, now: Instant) -> Option<Entry> {
        Stage::ALL.iter().zip(&mut self.stages).find_map(|(stage, entries)| {
            let oldest = entries.first_entry()?;
            (oldest.get().since + stage.grace() <= now).then(|| oldest.remove())
        })
    }

    /// When the next connection may be evicted.
    fn evictable_at(&self) -> Option<Instant> {
        let oldest = Stage::ALL.iter().zip(&self.stages).filter_map(|(stage, entries)| {
            entries.first_key_value().map(|(_, oldest)| oldest.since + stage.grace())
        });
        oldest.min()
    }
}

impl PendingConnections {
    pub(super) fn new(permits: u32) -> Self {
        Self { permits: permits as usize, state: Mutex::default(), released: Notify::new() }
    }

    /// The limit.
    pub(super) const fn permits(&self) -> usize {
        self.permits
    }

    /// Acquires a permit, and waits for one if none is left. Also returns how many connections it evicted.
    pub(super) async fn acquire(self: &Arc<Self>) -> (PendingConnection, u64) {
        let mut evicted = 0;
        loop {
            let mut released = pin!(self.released.notified());
            released.as_mut().enable();
            let evictable_at = {
                let mut state = self.state.lock();
                if state.len() < self.permits {
                    return (self.insert(&mut state), evicted);
                }
                state.evictable_at()
            };
            let count = self.evict(1);
            evicted += count;
            if count > 0 {
                continue;
            }
            let Some(evictable_at) = evictable_at else { continue };
            tokio::select! {
                () = released => {}
                () = sleep_until(evictable_at) => {}
            }
        }
    }

    fn insert(self: &Arc<Self>, state: &mut State) -> PendingConnection {
        let number = state.next;
        state.next += 1;
        let entry = Entry { since: Instant::now(), task: None };
        // It is not known yet whether the client has sent anything.
        state.stages[Stage::Reading as usize].insert(number, entry);
        PendingConnection { connections: Arc::clone(self), number, address: Mutex::new(None) }
    }

    /// Sets the task that is aborted when connection `number` is evicted.
    pub(super) fn set_task(&self, number: u64, task: AbortHandle) {
        if let Some(entry) = self.state.lock().find(number) {
            entry.task = Some(task);
        }
    }

    /// Evicts up to `count_max` connections that are past their grace period, and returns how many it evicted.
    pub(super) fn evict(&self, count_max: usize) -> u64 {
        let mut evicted = 0;
        for _ in 0..count_max {
            let Some(entry) = self.state.lock().evict(Instant::now()) else { break };
            evicted += 1;
            if let Some(task) = entry.task {
                task.abort();
            }
        }
        evicted
    }
}

impl PendingConnection {
    /// The number of the connection.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// See [`PendingConnections::set_task`].
    pub(super) fn set_task(&self, task: AbortHandle) {
        self.connections.set_task(self.number, task);
    }

    /// Records the progress of the connection.
    pub(super) fn set_stage(&self, stage: Stage) {
        let mut state = self.connections.state.lock();
        if let Some(entry) = state.remove(self.number) {
            state.stages[stage as usize].insert(self.number, entry);
        }
    }

    /// Holds the permit among the connections of its address, as long as it is pending.
    pub(super) fn hold_address_permit(&self, permit: Option<AddressPermit>) {
        *self.address.lock() = permit;
    }
}

impl Drop for PendingConnection {
    fn drop(&mut self) {
        let was_full = {
            let mut state = self.connections.state.lock();
            let was_full = state.len() >= self.connections.permits;
            state.remove(self.number);
            was_full
        };
        if was_full {
            self.connections.released.notify_waiters();
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

    /// A connection that stays at `stage` until it is evicted.
    async fn pending_task(connections: &Arc<PendingConnections>, stage: Stage) -> (JoinHandle<()>, u64) {
        let (pending, evicted) = connections.acquire().await;
        pending.set_stage(stage);
        let number = pending.number();
        let task = tokio::spawn(async move {
            let _pending = pending;
            std::future::pending::<()>().await;
        });
        connections.set_task(number, task.abort_handle());
        (task, evicted)
    }

    fn len(connections: &PendingConnections) -> usize {
        connections.state.lock().len()
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_waits_for_a_released_permit() {
        let connections = Arc::new(PendingConnections::new(2));
        let (first, _) = connections.acquire().await;
        let (_second, _) = connections.acquire().await;
        let mut third = pin!(connections.acquire());
        let at_once = third.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(at_once.is_pending(), "no connection is past its grace period");
        drop(first);
        let (_third, evicted) = third.await;
        assert_eq!((evicted, len(&connections)), (0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_connections_at_one_stage_the_oldest_is_evicted() {
        for stage in Stage::ALL {
            let connections = Arc::new(PendingConnections::new(2));
            let (first, _) = pending_task(&connections, stage).await;
            let (second, _) = pending_task(&connections, stage).await;
            let begin = Instant::now();
            let (_third, evicted) = connections.acquire().await;
            assert_eq!(evicted, 1);
            let waited = Instant::now() - begin;
            assert!((stage.grace()..stage.grace() + 2 * MILLI).contains(&waited), "{stage:?}: {waited:?}");
            assert!(first.await.unwrap_err().is_cancelled());
            assert!(!second.is_finished());
            assert_eq!(len(&connections), 2, "and its permit was released once");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silent_connections_are_evicted_first_and_responding_ones_last() {
        let connections = Arc::new(PendingConnections::new(3));
        let (responding, _) = pending_task(&connections, Stage::Responding).await;
        let (reading, _) = pending_task(&connections, Stage::Reading).await;
        let (silent, _) = pending_task(&connections, Stage::Silent).await;
        advance(Duration::from_secs(5)).await;
        let mut held = Vec::new();
        for evicted_task in [silent, reading, responding] {
            assert!(!evicted_task.is_finished());
            let (pending, evicted) = connections.acquire().await;
            pending.set_stage(Stage::Responding);
            held.push(pending);
            assert_eq!(evicted, 1);
            assert!(evicted_task.await.unwrap_err().is_cancelled());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_silent_connections_delays_a_new_one_by_the_grace_period_at_most() {
        let connections = Arc::new(PendingConnections::new(100));
        // 3000 connections a second.
        for _ in 0..3000 {
            pending_task(&connections, Stage::Silent).await;
            advance(MILLI / 3).await;
        }
        let begin = Instant::now();
        connections.acquire().await;
        assert!(begin.elapsed() <= Stage::Silent.grace(), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_past_their_grace_period_are_evicted_on_demand() {
        let connections = Arc::new(PendingConnections::new(10));
        let _pending = (connections.acquire().await, connections.acquire().await);
        assert_eq!(connections.evict(10), 0);
        advance(Stage::Reading.grace()).await;
        assert_eq!((connections.evict(1), len(&connections)), (1, 1));
        assert_eq!((connections.evict(10), connections.evict(10)), (1, 0));
    }
}
