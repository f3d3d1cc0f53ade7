//! The webhooks of one app: debouncers in front of the queues of its receivers.
//!
//! The receivers change while the server runs; the debouncers stay. Events are emitted under the lock of a debouncer. So
//! when each of these locks was held once after the receivers were replaced, nobody emits to the earlier ones any more,
//! and those that were removed can be closed.

mod receivers;

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::{ArcMutexGuard, Mutex, RawMutex};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::ack::Record;
use super::cancel_on_panic;
use super::debounce::{Debouncer, Outcome};
use super::endpoint::{Endpoint, Shared};
use super::event::{Edge, EncodedEvent, Event, EventId, Subject};
use super::unix_ms;
use crate::apps::{App, EventTypes};
use receivers::Receiver;

/// Debouncers of an app. Several, so that channels rarely contend for one lock.
const DEBOUNCER_SHARDS: usize = 32;

/// The webhooks of one app.
#[derive(Debug)]
pub(super) struct AppWebhooks {
    /// The receivers as the app has them now, replaced as a whole. Read under the lock of a debouncer to emit.
    receivers: ArcSwap<Vec<Receiver>>,
    /// Shards, by the hash of the channel or user.
    debouncers: Box<[Arc<Mutex<Debouncer>>]>,
    hasher: RandomState,
    /// The source in the ids of events that are no records: random, so that it differs between processes.
    source: u64,
    /// The number of the next such event.
    next_number: AtomicU64,
    /// Notified when an empty debouncer holds its first event.
    armed: Notify,
    started_at: Instant,
    /// Cancelled to stop the timer of the debouncers.
    timer: CancellationToken,
    shared: Arc<Shared>,
}

/// The lock on the events of one channel or user. While it is held, no other task emits events of that channel or user,
/// so events are emitted in the order in which the registry decided them.
pub struct DeliveryGuard {
    app: Arc<AppWebhooks>,
    debouncer: ArcMutexGuard<RawMutex, Debouncer>,
}

impl DeliveryGuard {
    /// Emits an event. Never waits.
    pub fn emit(&mut self, event: &Event<'_>) {
        self.debounce(event, None);
    }

    pub(super) fn debounce(&mut self, event: &Event<'_>, record: Option<Record>) {
        let (app, metrics) = (&self.app, &self.app.shared.metrics.webhooks);
        let was_idle = self.debouncer.next_due().is_none();
        let enqueue = |event: &Event<'_>, record| app.enqueue(event, record);
        match self.debouncer.push(event, record, app.started_at.elapsed(), enqueue) {
            Outcome::Held if was_idle => app.armed.notify_one(),
            Outcome::Debounced => metrics.debounced.add(2),
            Outcome::Nacked => metrics.nacked.count(),
            Outcome::Emitted | Outcome::Held | Outcome::Suppressed => {}
        }
    }
}

impl AppWebhooks {
    /// An app without receivers, whose timer runs until `timer` is cancelled.
    ///
    /// # Errors
    /// The system provides no randomness.
    pub(super) fn new(shared: &Arc<Shared>, timer: CancellationToken) -> io::Result<Self> {
        let debouncer = || Arc::new(Mutex::new(Debouncer::new(shared.timing.debounce)));
        Ok(Self {
            receivers: ArcSwap::default(),
            debouncers: (0..DEBOUNCER_SHARDS).map(|_| debouncer()).collect(),
            hasher: RandomState::new(),
            source: getrandom::u64().map_err(io::Error::other)?,
            next_number: AtomicU64::new(1),
            armed: Notify::new(),
            started_at: Instant::now(),
            timer,
            shared: Arc::clone(shared),
        })
    }

    /// Starts the timer of the debouncers.
    pub(super) fn start_timer(self: &Arc<Self>) {
        let timer = self.timer.clone().run_until_cancelled_owned(Arc::clone(self).run_timer());
        tokio::spawn(cancel_on_panic(timer, self.shared.ended.clone()));
    }

    /// Brings the receivers in line with `app`: changes those that it still has, starts those that are new, and closes the
    /// others. Returns the endpoints that were started.
    pub(super) fn change(&self, app: &App) -> Vec<Arc<Endpoint>> {
        let before = self.receivers.load_full();
        let mut started = Vec::new();
        let kept = receivers::matching(&before, &app.webhooks);
        let after = app.webhooks.iter().zip(kept).map(|(webhook, kept)| {
            let webhook = Arc::new(webhook.clone());
            let endpoint = match kept {
                Some(receiver) => {
                    receiver.endpoint.change(app, &webhook);
                    Arc::clone(&receiver.endpoint)
                }
                None => {
                    let endpoint = Endpoint::start(app, &webhook, &self.shared);
                    started.push(Arc::clone(&endpoint));
                    endpoint
                }
            };
            Receiver { webhook, endpoint }
        });
        self.replace_receivers(after.collect());
        started
    }

    /// Ends the webhooks of an app that was removed. Held events are enqueued now, and the receivers closed.
    ///
    /// This includes records. If they were nacked, this node might read them again, and would discard them, because it does
    /// not know the app any more.
    pub(super) fn close(&self) {
        self.timer.cancel();
        for debouncer in &self.debouncers {
            debouncer.lock().flush(|event, record| self.enqueue(event, record));
        }
        self.replace_receivers(Vec::new());
    }

    /// Replaces the receivers, and closes those that are not in `after`. They get no event from then on.
    fn replace_receivers(&self, after: Vec<Receiver>) {
        let after = Arc::new(after);
        let before = self.receivers.swap(Arc::clone(&after));
        let is_removed =
            |before: &&Receiver| !after.iter().any(|after| Arc::ptr_eq(&after.endpoint, &before.endpoint));
        let removed: Vec<_> = before.iter().filter(is_removed).collect();
        if removed.is_empty() {
            return;
        }
        // A task that still emits to them holds one of these locks.
        self.debouncers.iter().for_each(|debouncer| drop(debouncer.lock()));
        removed.iter().for_each(|receiver| receiver.endpoint.close());
    }

    /// Enqueues the held events and closes the receivers, because the server shuts down. Held records are nacked, because
    /// the other nodes continue to debounce them.
    pub(super) fn shut_down(&self) {
        for debouncer in &self.debouncers {
            debouncer.lock().flush(|event, record| match record {
                None => self.enqueue(event, None),
                Some(_) => self.shared.metrics.webhooks.nacked.count(),
            });
        }
        self.receivers.load().iter().for_each(|receiver| receiver.endpoint.close());
    }

    pub(super) fn wants(&self, subject: Subject<'_>, types: EventTypes) -> bool {
        self.receivers.load().iter().any(|receiver| receiver.wants(subject, types))
    }

    pub(super) fn lock(self: &Arc<Self>, subject: &str) -> DeliveryGuard {
        let shard = self.hasher.hash_one(subject) as usize % self.debouncers.len();
        DeliveryGuard { app: Arc::clone(self), debouncer: self.debouncers[shard].lock_arc() }
    }

    /// Enqueues an event, encoded once, for every receiver that wants it. The debouncer of its subject must be locked.
    fn enqueue(&self, event: &Event<'_>, record: Option<Record>) {
        let types = EventTypes::of(&[event.event_type()]);
        let subject = event.subject();
        let mut encoded: Option<EncodedEvent> = None;
        for receiver in self.receivers.load().iter().filter(|receiver| receiver.wants(subject, types)) {
            let encoded = encoded.get_or_insert_with(|| self.encode(event, record.as_ref()));
            let ack_token = record.as_ref().map(|record| record.ack_token.clone());
            receiver.endpoint.enqueue(encoded.clone(), ack_token);
        }
        // Each receiver holds its own clone of the token.
        if let Some(record) = record {
            record.ack_token.ack();
        }
    }

    fn encode(&self, event: &Event<'_>, record: Option<&Record>) -> EncodedEvent {
        let (time_ms, id) = match record {
            Some(record) => (record.time_ms, record.ack_token.id()),
            None => (unix_ms(), EventId::new(self.source, self.next_number.fetch_add(1, Ordering::Relaxed))),
        };
        let edge = event.edge().map(|Edge { member, is_rising }| {
            let member = member.map(|user| self.hasher.hash_one(user.as_str()));
            Edge { member, is_rising }
        });
        let subject = self.hasher.hash_one(event.subject());
        EncodedEvent { json: event.to_json().into(), time_ms, id, subject, class: event.class(), edge }
    }

    /// Emits held events when they are due. Never returns.
    async fn run_timer(self: Arc<Self>) {
        loop {
            let due = self.debouncers.iter().filter_map(|debouncer| debouncer.lock().next_due()).min();
            match due {
                None => self.armed.notified().await,
                Some(due) => {
                    sleep_until(self.started_at + due).await;
                    let now = self.started_at.elapsed();
                    for debouncer in &self.debouncers {
                        debouncer.lock().emit_due(now, |event, record| self.enqueue(event, record));
                    }
                }
            }
        }
    }
}
