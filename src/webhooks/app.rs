//! The webhooks of one app: debouncers in front of the queues of its receivers.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::ack::Record;
use super::debounce::{Debouncer, Outcome};
use super::endpoint::{Endpoint, Shared};
use super::event::{Edge, EncodedEvent, Event, EventId, Subject};
use super::unix_ms;
use crate::apps::{App, EventTypes, Webhook};
use crate::metrics::Metrics;

/// Debouncers of an app. Several, so that channels rarely contend for one lock.
const DEBOUNCER_SHARDS: usize = 32;

/// The webhooks of one app.
#[derive(Debug)]
pub(super) struct AppWebhooks {
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    /// Shards, by the hash of the channel or user.
    debouncers: Box<[Mutex<Debouncer>]>,
    hasher: RandomState,
    /// The source in the ids of events that are no records: random, so that it differs between processes.
    source: u64,
    /// The number of the next such event.
    next_number: AtomicU64,
    /// Notified when an empty debouncer holds its first event.
    armed: Notify,
    started_at: Instant,
    metrics: Arc<Metrics>,
}

/// The lock on the events of one channel or user. While it is held, no other task emits events of that channel or user,
/// so events are emitted in the order in which the registry decided them.
#[derive(Debug)]
pub struct DeliveryGuard<'a> {
    app: &'a AppWebhooks,
    debouncer: MutexGuard<'a, Debouncer>,
}

impl DeliveryGuard<'_> {
    /// Emits an event. Never waits.
    pub fn emit(&mut self, event: &Event<'_>) {
        self.debounce(event, None);
    }

    pub(super) fn debounce(&mut self, event: &Event<'_>, record: Option<Record>) {
        let (app, metrics) = (self.app, &self.app.metrics.webhooks);
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
    pub(super) fn new(app: &App, shared: &Arc<Shared>) -> io::Result<Self> {
        let endpoint = |webhook: &Webhook| Arc::new(Endpoint::new(app, webhook.clone(), shared));
        Ok(Self {
            endpoints: app.webhooks.iter().map(endpoint).collect(),
            debouncers: (0..DEBOUNCER_SHARDS)
                .map(|_| Mutex::new(Debouncer::new(shared.timing.debounce)))
                .collect(),
            hasher: RandomState::new(),
            source: getrandom::u64().map_err(io::Error::other)?,
            next_number: AtomicU64::new(1),
            armed: Notify::new(),
            started_at: Instant::now(),
            metrics: Arc::clone(&shared.metrics),
        })
    }

    pub(super) fn wants(&self, subject: Subject<'_>, types: EventTypes) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.wants(subject, types))
    }

    pub(super) fn lock(&self, subject: &str) -> DeliveryGuard<'_> {
        let shard = self.hasher.hash_one(subject) as usize % self.debouncers.len();
        DeliveryGuard { app: self, debouncer: self.debouncers[shard].lock() }
    }

    /// Enqueues an event, encoded once, for every receiver that wants it.
    fn enqueue(&self, event: &Event<'_>, record: Option<Record>) {
        let types = EventTypes::of(&[event.event_type()]);
        let subject = event.subject();
        let mut encoded: Option<EncodedEvent> = None;
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.wants(subject, types)) {
            let encoded = encoded.get_or_insert_with(|| self.encode(event, record.as_ref()));
            endpoint.enqueue(encoded.clone(), record.as_ref().map(|record| record.ack_token.clone()));
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
    pub(super) async fn run_timer(self: Arc<Self>) {
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

    pub(super) fn flush(&self) {
        for debouncer in &self.debouncers {
            let nacked = debouncer.lock().flush(|event| self.enqueue(event, None));
            self.metrics.webhooks.nacked.add(nacked as u64);
        }
    }
}
