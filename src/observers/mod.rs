//! Everything that happens on this node, as typed facts for those who watch.
//!
//! The modules say what happens with [`Observers::observe`]: a connection is established, a subscription is refused, an
//! event reaches so many subscribers, a request is answered. Nobody watching is the usual case: then a fact costs one
//! relaxed load and a branch, and nothing is built, cloned or locked.
//!
//! There are two ways to watch, over one mechanism:
//!
//! - an [`Observer`] is called with each fact, where it happens. The log at `debug` is one: [`log`].
//! - a [`Watch`] is a bounded queue of facts for an asynchronous consumer. A consumer that is too slow misses facts, and
//!   is told how many in their place in the order. It holds nobody up, and other watchers miss nothing.
//!
//! A [`Filter`] chooses the kinds, an app, a channel, a connection, and whether payloads are part of the facts. A fact is
//! compared with the filters as it is, borrowed. It is copied at most once with its payload and once without, however many
//! queues it is for.
//!
//! A fact has no secret of an app, no signature of a request and no full key that is unknown. The one exception is the text
//! of a client's message, a payload, which has the client's `auth`: it is good for that connection only.
//!
//! Facts are lossy by design, and no record of what happened: webhooks are queued, retried and stored; the metrics count.
//!
//! Start at [`Observers`]; [`Fact`] has all that can be watched.

mod fact;
mod filter;
mod kind;
pub mod log;
mod watch;

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::metrics::Metrics;
pub use fact::{Fact, OwnedFact, Publisher, Text};
pub use filter::Filter;
pub use kind::{Kind, Kinds};
use watch::Queue;
pub use watch::{Watch, Watched};

/// Is called with the facts that pass its filter, in the thread in which they happen.
///
/// It must be quick, must not block and must not panic: a client or a publisher waits for it. It must not call the hub,
/// because some facts are observed under a lock: the delivery guard of a channel's webhooks, or the part of the cluster that
/// a subscription belongs to. No lock of a channel of the registry or of an outbox is held. It may register and unregister
/// observers.
pub trait Observer: Debug + Send + Sync {
    /// Observes a fact. Facts of one connection come in their order.
    fn observe(&self, fact: &Fact<'_>);
}

/// All who watch this node. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Observers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The kinds that pass any of the filters.
    wanted: AtomicU32,
    /// Replaced as a whole, so that facts are passed on without a lock.
    registered: ArcSwap<Vec<Registered>>,
    /// The id of the next registration. Locked while `registered` and `wanted` are replaced.
    next_id: Mutex<u64>,
    metrics: Arc<Metrics>,
}

#[derive(Clone, Debug)]
struct Registered {
    id: u64,
    filter: Arc<Filter>,
    target: Target,
}

/// Where a fact goes.
#[derive(Clone, Debug)]
enum Target {
    Observer(Arc<dyn Observer>),
    Queue(Arc<Queue>),
}

impl Default for Observers {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Observers {
    /// Nobody watches yet. What watchers miss is counted in `metrics`.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let (wanted, registered, next_id) = (AtomicU32::new(0), ArcSwap::default(), Mutex::default());
        Self(Arc::new(Shared { wanted, registered, next_id, metrics }))
    }

    /// Passes a fact of this kind to those who watch it. `fact` is not called if nobody watches the kind.
    #[inline]
    pub fn observe<'f>(&self, kind: Kind, fact: impl FnOnce() -> Fact<'f>) {
        if self.wants(kind) {
            let fact = fact();
            debug_assert_eq!(fact.kind(), kind, "a fact is observed as what it is");
            self.pass_on(fact);
        }
    }

    /// Whether anybody watches facts of this kind: for what has to be kept until the fact is complete.
    #[inline]
    #[must_use]
    pub fn wants(&self, kind: Kind) -> bool {
        self.0.wanted.load(Ordering::Relaxed) & kind.bit() != 0
    }

    /// Calls `observer` with each fact that passes `filter`, until the registration is dropped. A fact that is being passed
    /// on at that moment may still come.
    pub fn register(&self, filter: Filter, observer: Arc<dyn Observer>) -> Registration {
        self.add(filter, Target::Observer(observer))
    }

    /// Queues each fact that passes `filter`, at most `capacity` of them (and never less than one), until the watch is
    /// dropped.
    #[must_use]
    pub fn watch(&self, filter: Filter, capacity: usize) -> Watch {
        let queue = Arc::new(Queue::new(capacity, Arc::clone(&self.0.metrics)));
        let registration = self.add(filter, Target::Queue(Arc::clone(&queue)));
        Watch::new(queue, registration)
    }

    #[cold]
    fn pass_on(&self, mut fact: Fact<'_>) {
        let registered = self.0.registered.load();
        for payloads in [true, false] {
            if !payloads {
                fact.withhold_payload();
            }
            let mut owned = None;
            let targets = registered.iter().filter(|to| to.filter.payloads == payloads);
            for to in targets.filter(|to| to.filter.passes(&fact)) {
                match &to.target {
                    Target::Observer(observer) => observer.observe(&fact),
                    Target::Queue(queue) => {
                        queue.push(owned.get_or_insert_with(|| Arc::new(fact.to_owned_fact())));
                    }
                }
            }
        }
    }

    fn add(&self, filter: Filter, target: Target) -> Registration {
        let mut next_id = self.0.next_id.lock();
        let id = *next_id;
        *next_id += 1;
        let mut registered = Vec::clone(&self.0.registered.load());
        registered.push(Registered { id, filter: Arc::new(filter), target });
        let before = self.replace(registered);
        drop(next_id);
        drop(before);
        Registration { observers: self.clone(), id }
    }

    /// Replaces all registrations. `next_id` must be locked. Returns those of before, to be dropped after it is unlocked: an
    /// observer may own a registration.
    #[must_use]
    fn replace(&self, registered: Vec<Registered>) -> Arc<Vec<Registered>> {
        let kinds = registered.iter().fold(Kinds::NONE, |kinds, to| kinds | to.filter.kinds);
        let before = self.0.registered.swap(Arc::new(registered));
        self.0.wanted.store(kinds.bits(), Ordering::Relaxed);
        before
    }
}

/// The registration of an observer, which ends when this is dropped.
#[derive(Debug)]
#[must_use = "dropping it unregisters the observer"]
pub struct Registration {
    observers: Observers,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let locked = self.observers.0.next_id.lock();
        let registered = self.observers.0.registered.load_full();
        let others = registered.iter().filter(|to| to.id != self.id);
        let before = self.observers.replace(others.cloned().collect());
        drop(locked);
        drop((before, registered));
    }
}

#[cfg(test)]
mod tests;
