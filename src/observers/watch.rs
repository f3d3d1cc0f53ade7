//! A bounded queue of facts for an asynchronous consumer.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{OwnedFact, Registration};
use crate::metrics::Metrics;

/// The longest queue, in bytes: payloads can be long.
const QUEUED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a [`Watch`] receives.
#[derive(Clone, Debug)]
pub enum Watched {
    /// A fact. Other watchers may share it.
    Fact(Arc<OwnedFact>),
    /// So many facts are missing here, because the queue was full.
    Missed(u64),
}

/// A queue of facts, of a given capacity and never more than 4 MiB. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watch {
    queue: Arc<Queue>,
    _registration: Registration,
}

impl Watch {
    pub(super) const fn new(queue: Arc<Queue>, registration: Registration) -> Self {
        Self { queue, _registration: registration }
    }

    /// Waits for the next fact, or for the number of those that are missing. Cancel safe. It waits for ever if nothing happens
    /// any more.
    pub async fn recv(&mut self) -> Watched {
        loop {
            if let Some(watched) = self.try_recv() {
                return watched;
            }
            self.queue.filled.notified().await;
        }
    }

    /// The next fact, or the number of those that are missing, if there is one already.
    #[must_use]
    pub fn try_recv(&mut self) -> Option<Watched> {
        self.queue.state.lock().pop()
    }
}

#[derive(Debug)]
pub(super) struct Queue {
    capacity: usize,
    state: Mutex<State>,
    filled: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    /// Facts, with at most one number of missed ones after each of them.
    queued: VecDeque<Watched>,
    /// The facts among them, and their bytes.
    facts: usize,
    bytes: usize,
}

impl State {
    fn pop(&mut self) -> Option<Watched> {
        let watched = self.queued.pop_front()?;
        if let Watched::Fact(fact) = &watched {
            self.facts -= 1;
            self.bytes -= fact.bytes();
        }
        Some(watched)
    }
}

impl Queue {
    pub(super) fn new(capacity: usize, metrics: Arc<Metrics>) -> Self {
        Self { capacity: capacity.max(1), state: Mutex::default(), filled: Notify::new(), metrics }
    }

    /// Queues a fact, or counts it as missed. Never waits for the consumer.
    pub(super) fn push(&self, fact: &Arc<OwnedFact>) {
        let mut state = self.state.lock();
        // A single fact always fits, however long it is.
        let fits =
            state.facts == 0 || state.facts < self.capacity && state.bytes + fact.bytes() <= QUEUED_BYTES_MAX;
        if fits {
            state.facts += 1;
            state.bytes += fact.bytes();
            state.queued.push_back(Watched::Fact(Arc::clone(fact)));
        } else {
            self.metrics.facts_missed.count();
            match state.queued.back_mut() {
                Some(Watched::Missed(missed)) => *missed += 1,
                Some(Watched::Fact(_)) | None => state.queued.push_back(Watched::Missed(1)),
            }
        }
        drop(state);
        self.filled.notify_one();
    }
}
