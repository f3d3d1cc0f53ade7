//! Webhooks: events of channels and users are posted to the applications over HTTP.
//!
//! An event passes three stages:
//!
//! 1. The hub locks the channel or user ([`DeliveryGuard`]) before the registry decides, and emits the outcome while it
//!    holds the lock. So events are emitted in the order in which they happened. The debouncer (`debounce`) holds
//!    `vacated`, `removed` and `offline` events for three seconds and drops both halves of a pair if the opposite event
//!    follows within that time.
//! 2. The event is encoded once and enqueued for every receiver that subscribes to it (`queue`). Queues are bounded and
//!    fair between channels and users; pairs of events that were not sent yet cancel out.
//! 3. The senders of a receiver (`endpoint`) sign the event and post it, in order for each channel, and retry for five
//!    minutes. After that it is a dead letter (`dead_letters`). A rejected event delays only its own channel. `pace`
//!    limits the requests to a receiver that rejects everything or does not respond.
//!
//! In a cluster, events of subscriptions and users come from records, which one node reads at a time:
//! [`Webhooks::emit_record`]. An ack token (`ack`) travels with each record through all stages. It tells the reader
//! whether the record is done (acked) or has to be read again (nacked).
//!
//! Apps may change while the server runs: [`Webhooks::apply`]. `dispatcher` owns the apps that have webhooks, and `app` their
//! receivers. A receiver keeps its queue over a change; one that was removed sends what it has queued.
//!
//! The hub never waits for this module: the lock is short and queues are bounded. Receivers do not wait for each other.
//! The module does not know sockets, sessions or the registry. An app without webhooks costs one branch.
//!
//! Start at [`Webhooks`]. Source: protocol.md §9.

mod ack;
mod app;
mod client;
pub mod dead_letters;
mod debounce;
mod dispatcher;
mod endpoint;
mod event;
mod options;
mod pace;
mod queue;
pub mod replay;
mod signer;
pub mod target;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub use ack::{AckToken, Resolution};
pub use app::DeliveryGuard;
pub use event::{Event, EventId, ParseEventIdError};
pub use options::{Options, Timing};

use crate::apps::{App, Apps, EventType, EventTypes};
use crate::metrics::Metrics;
use crate::protocol::{ChannelName, UserId};
use ack::Record;
use app::AppWebhooks;
use dispatcher::Dispatcher;
use endpoint::Endpoint;
use event::Subject;

/// How long a shutdown waits for the dead letter store to accept the remaining events, and again for it to write them.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// How often [`Webhooks::wait_for_pending`] checks whether all events have been sent.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Events that a subscribe or an unsubscribe can cause.
const SUBSCRIPTION_EVENTS: EventTypes = EventTypes::of(&[
    EventType::ChannelOccupied,
    EventType::ChannelVacated,
    EventType::MemberAdded,
    EventType::MemberRemoved,
    EventType::CacheMiss,
    EventType::SubscriptionCount,
]);

const USER_EVENTS: EventTypes = EventTypes::of(&[EventType::UserOnline, EventType::UserOffline]);

/// The events of a subscription that all nodes of a cluster agree on.
const CHANNEL_RECORD_EVENTS: EventTypes = EventTypes::of(&[
    EventType::ChannelOccupied,
    EventType::ChannelVacated,
    EventType::MemberAdded,
    EventType::MemberRemoved,
]);

/// The webhooks of all apps. Clones share them. The default has no webhooks, and no app can get any.
#[derive(Clone, Debug, Default)]
pub struct Webhooks(Option<Arc<Dispatcher>>);

impl Webhooks {
    /// Starts the receivers of all apps in the current runtime. While no app has webhooks, no thread and no task is
    /// started.
    ///
    /// # Errors
    /// The system provides no thread or no randomness.
    pub fn start(apps: &Apps, options: Options, metrics: &Arc<Metrics>) -> io::Result<Self> {
        let dispatcher = Dispatcher::new(options, metrics);
        if dispatcher.apply(apps)? {
            dispatcher.prepare_tls();
        }
        Ok(Self(Some(Arc::new(dispatcher))))
    }

    /// Brings the receivers in line with `apps`, all that there are from now on. Must be called in the runtime, and not
    /// while a [`DeliveryGuard`] is held. Does nothing after [`Webhooks::drain`] has begun.
    ///
    /// - A receiver is known by its app and its URL. If it had both before, it keeps its queue; its other settings hold
    ///   from the next event and the next request on. Nothing that is queued is lost, sent twice or reordered.
    /// - Other receivers are started.
    /// - A receiver that `apps` does not have any more gets no further events. It sends those in its queue, or they become
    ///   dead letters by the same rules as before; then its tasks end. If it is added again, it starts with an empty queue
    ///   and does not wait for the queue of its predecessor.
    /// - Events that a debouncer holds go to the receivers that the app has when they are due. If the app is removed, they
    ///   go to its receivers at once.
    ///
    /// # Errors
    /// The system provides no thread or no randomness. Nothing has changed.
    pub fn apply(&self, apps: &Apps) -> io::Result<()> {
        if let Some(dispatcher) = &self.0
            && dispatcher.apply(apps)?
        {
            let dispatcher = Arc::clone(dispatcher);
            tokio::task::spawn_blocking(move || dispatcher.prepare_tls());
        }
        Ok(())
    }

    /// Completes when an app has webhooks, or had some before.
    pub async fn wait_for_receivers(&self) {
        match &self.0 {
            Some(dispatcher) => dispatcher.wait_for_receivers().await,
            None => std::future::pending().await,
        }
    }

    /// Completes when a task has ended early, by a panic.
    pub async fn ended(&self) {
        match &self.0 {
            Some(dispatcher) => dispatcher.wait_for_panic().await,
            None => std::future::pending().await,
        }
    }

    /// Locks `channel` for events of a subscription, if a receiver wants any of them.
    #[must_use]
    pub fn lock_subscriptions(&self, app: &App, channel: &ChannelName) -> Option<DeliveryGuard> {
        // Most apps have no webhooks.
        if app.webhooks.is_empty() {
            return None;
        }
        self.lock_channel(&app.id.0, channel, SUBSCRIPTION_EVENTS)
    }

    /// Locks `channel` for a client event, if a receiver wants client events.
    #[must_use]
    pub fn lock_client_events(&self, app: &App, channel: &ChannelName) -> Option<DeliveryGuard> {
        if app.webhooks.is_empty() {
            return None;
        }
        self.lock_channel(&app.id.0, channel, EventTypes::of(&[EventType::ClientEvent]))
    }

    /// Locks `channel` for a subscription count, if a receiver wants counts.
    #[must_use]
    pub fn lock_count(&self, app: &str, channel: &ChannelName) -> Option<DeliveryGuard> {
        self.lock_channel(app, channel, EventTypes::of(&[EventType::SubscriptionCount]))
    }

    /// Locks `user` for online and offline events, if a receiver wants any of them.
    #[must_use]
    pub fn lock_user(&self, app: &App, user: &UserId) -> Option<DeliveryGuard> {
        if app.webhooks.is_empty() {
            return None;
        }
        self.lock_if_wanted(&app.id.0, Subject::User(user), USER_EVENTS)
    }

    /// Whether a receiver wants occupied, vacated or member events of `channel`, so that the cluster has to write
    /// records.
    #[must_use]
    pub fn wants_records_of_channel(&self, app: &App, channel: &ChannelName) -> bool {
        !app.webhooks.is_empty() && self.wants(&app.id.0, Subject::Channel(channel), CHANNEL_RECORD_EVENTS)
    }

    /// Whether a receiver wants online or offline events of `user`, so that the cluster has to write records.
    #[must_use]
    pub fn wants_records_of_user(&self, app: &App, user: &UserId) -> bool {
        !app.webhooks.is_empty() && self.wants(&app.id.0, Subject::User(user), USER_EVENTS)
    }

    /// Emits the event of a cluster record that happened at `time_ms` (milliseconds since 1970, by the clock of the
    /// cluster). Receivers get that time and the record's id. Never waits.
    ///
    /// Records of one channel or user must be emitted in the order in which they happened. A record may be hours old:
    /// its five minutes of attempts and its three seconds in the debouncer begin now. Whether two records debounce each
    /// other depends on the difference of their own times. The debouncer holds no more records than were emitted and
    /// not resolved yet.
    ///
    /// `ack_token` is acked
    /// - when all receivers that want the event have it;
    /// - when the dead letter for those that do not have it is written or lost, after the delivery timeout or an
    ///   eviction from a full queue;
    /// - when the record was debounced, or was cancelled with the other half of its pair; the first half is acked
    ///   first;
    /// - at once, if no receiver wants the event or the app does not exist.
    ///
    /// It is nacked if the server shuts down before that ([`Webhooks::drain`]), or if the app is removed in the moment in
    /// which it is emitted. A record must not be emitted again
    /// before it is resolved, unless the receiving half of its token's channel was dropped; otherwise receivers may get
    /// it twice.
    pub fn emit_record(&self, app: &str, event: &Event<'_>, time_ms: u64, ack_token: AckToken) {
        // A rising edge debounces the falling edge even if no receiver wants rising edges.
        let types = match event.subject() {
            Subject::Channel(_) => CHANNEL_RECORD_EVENTS,
            Subject::User(_) => USER_EVENTS,
        };
        match self.lock_if_wanted(app, event.subject(), types) {
            Some(mut guard) => guard.debounce(event, Some(Record { time_ms, ack_token })),
            None => ack_token.ack(),
        }
    }

    fn lock_channel(&self, app: &str, channel: &ChannelName, types: EventTypes) -> Option<DeliveryGuard> {
        self.lock_if_wanted(app, Subject::Channel(channel), types)
    }

    /// Locks `subject`, if a receiver wants one of `types` of it.
    fn lock_if_wanted(&self, app: &str, subject: Subject<'_>, types: EventTypes) -> Option<DeliveryGuard> {
        let lock = |app: &Arc<AppWebhooks>| app.wants(subject, types).then(|| app.lock(subject.as_str()));
        self.0.as_ref()?.with_app(app, lock)?
    }

    fn wants(&self, app: &str, subject: Subject<'_>, types: EventTypes) -> bool {
        let wants = |dispatcher: &Arc<Dispatcher>| dispatcher.with_app(app, |app| app.wants(subject, types));
        self.0.as_ref().and_then(wants).unwrap_or(false)
    }

    /// The number of pending events, for each host that has any. Includes receivers that were removed.
    #[must_use]
    pub fn pending(&self) -> Vec<(String, usize)> {
        let mut hosts = BTreeMap::new();
        for endpoint in self.endpoints() {
            let pending = endpoint.pending();
            if pending > 0 {
                *hosts.entry(endpoint.url.authority().to_owned()).or_default() += pending;
            }
        }
        hosts.into_iter().collect()
    }

    /// Waits until all events that are pending now are resolved. To be called once.
    pub async fn wait_for_pending(&self) {
        let endpoints = self.endpoints();
        endpoints.iter().for_each(|endpoint| endpoint.mark());
        while endpoints.iter().any(|endpoint| endpoint.pending_before_mark() > 0) {
            sleep(DRAIN_POLL_INTERVAL).await;
        }
    }

    /// The receivers, with those that were removed and still send.
    fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.0.as_ref().map_or_else(Vec::new, |dispatcher| dispatcher.endpoints())
    }

    /// Emits what the debouncers hold, and sends until all is sent or `deadline` completes. The rest becomes dead
    /// letters, as does every event that is emitted later.
    ///
    /// Records are nacked instead, for another node to send: those in the debouncers at once, because the channel or
    /// user may be back on another node; those in the queues at the deadline; and all that are emitted later.
    /// Afterwards every token is resolved, except those of dead letters that the disk has not accepted.
    pub async fn drain(&self, deadline: impl Future<Output = ()>) {
        if let Some(dispatcher) = &self.0 {
            dispatcher.drain(deadline).await;
        }
    }
}

/// Runs a task, and cancels `ended` if it panics.
async fn cancel_on_panic<T>(task: impl Future<Output = T>, ended: CancellationToken) -> T {
    let on_panic = ended.drop_guard();
    let output = task.await;
    on_panic.disarm();
    output
}

/// The wall clock, in milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "webhooks carry the time of day")]
fn unix_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
