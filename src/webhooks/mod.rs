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
//! The hub never waits for this module: the lock is short and queues are bounded. Receivers do not wait for each other.
//! The module does not know sockets, sessions or the registry. An app without webhooks costs one branch.
//!
//! Start at [`Webhooks`]. Source: protocol.md §9.

mod ack;
mod app;
mod client;
pub mod dead_letters;
mod debounce;
mod endpoint;
mod event;
mod options;
mod pace;
mod queue;
pub mod replay;
mod signer;
pub mod target;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

pub use ack::{AckToken, Resolution};
pub use app::DeliveryGuard;
pub use event::{Event, EventId, ParseEventIdError};
pub use options::{Options, Timing};

use crate::apps::{App, AppId, Apps, EventType, EventTypes};
use crate::metrics::Metrics;
use crate::protocol::{ChannelName, UserId};
use ack::Record;
use app::AppWebhooks;
use client::Client;
use dead_letters::DeadLetterStore;
use endpoint::{Endpoint, Shared};
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

/// The webhooks of all apps. Clones share them. The default has no webhooks.
#[derive(Clone, Debug, Default)]
pub struct Webhooks(Option<Arc<Dispatcher>>);

#[derive(Debug)]
struct Dispatcher {
    apps: HashMap<AppId, Arc<AppWebhooks>>,
    shared: Arc<Shared>,
    /// The sender tasks of all receivers.
    senders: TaskTracker,
    /// Cancelled to stop the debounce timers.
    timers: CancellationToken,
    /// Cancelled when the deadline of the shutdown has passed.
    abort: CancellationToken,
    /// Cancelled when any of these tasks ends.
    ended: CancellationToken,
}

impl Webhooks {
    /// Starts the senders and timers of all apps that have webhooks, in the current runtime. Without webhooks nothing
    /// is started.
    ///
    /// # Errors
    /// The system provides no thread or no randomness.
    pub fn start(apps: &Apps, options: Options, metrics: &Arc<Metrics>) -> io::Result<Self> {
        let mut with_webhooks = apps.all();
        with_webhooks.retain(|app| !app.webhooks.is_empty());
        if with_webhooks.is_empty() {
            return Ok(Self::default());
        }
        let Options { queue_bytes, dead_letter_file, dead_letter_bytes, allowed_addresses, timing } = options;
        let client = Client::new(allowed_addresses, timing.request_timeout);
        if with_webhooks.iter().any(|app| app.webhooks.iter().any(|webhook| webhook.url.is_https())) {
            client.prepare_tls();
        }
        match &dead_letter_file {
            Some(file) => info!(file = %file.display(), "undelivered webhooks are stored as dead letters"),
            None => info!("undelivered webhooks are dropped: webhooks.dead_letter_file is not set"),
        }
        let dead_letters = DeadLetterStore::start(dead_letter_file, dead_letter_bytes, metrics)?;
        let shared =
            Arc::new(Shared { client, dead_letters, metrics: Arc::clone(metrics), timing, queue_bytes });
        let senders = TaskTracker::new();
        let [timers, abort, ended] = std::array::from_fn(|_| CancellationToken::new());
        let mut app_webhooks = HashMap::new();
        for app in with_webhooks {
            let webhooks = Arc::new(AppWebhooks::new(&app, &shared)?);
            for endpoint in &webhooks.endpoints {
                for _ in 0..endpoint.senders() {
                    let sending = Arc::clone(endpoint).run(abort.clone());
                    senders.spawn(cancel_on_end(sending, ended.clone()));
                }
            }
            let timer = timers.clone().run_until_cancelled_owned(Arc::clone(&webhooks).run_timer());
            tokio::spawn(cancel_on_end(timer, ended.clone()));
            app_webhooks.insert(app.id.clone(), webhooks);
        }
        Ok(Self(Some(Arc::new(Dispatcher { apps: app_webhooks, shared, senders, timers, abort, ended }))))
    }

    /// Whether no app has webhooks.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Completes when a task has ended, which does not happen before [`Webhooks::drain`].
    pub async fn ended(&self) {
        match &self.0 {
            Some(dispatcher) => dispatcher.ended.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Locks `channel` for events of a subscription, if a receiver wants any of them.
    #[must_use]
    pub fn lock_subscriptions(&self, app: &App, channel: &ChannelName) -> Option<DeliveryGuard<'_>> {
        // Most apps have no webhooks.
        if app.webhooks.is_empty() {
            return None;
        }
        self.lock_channel(&app.id.0, channel, SUBSCRIPTION_EVENTS)
    }

    /// Locks `channel` for a client event, if a receiver wants client events.
    #[must_use]
    pub fn lock_client_events(&self, app: &App, channel: &ChannelName) -> Option<DeliveryGuard<'_>> {
        if app.webhooks.is_empty() {
            return None;
        }
        self.lock_channel(&app.id.0, channel, EventTypes::of(&[EventType::ClientEvent]))
    }

    /// Locks `channel` for a subscription count, if a receiver wants counts.
    #[must_use]
    pub fn lock_count(&self, app: &str, channel: &ChannelName) -> Option<DeliveryGuard<'_>> {
        self.lock_channel(app, channel, EventTypes::of(&[EventType::SubscriptionCount]))
    }

    /// Locks `user` for online and offline events, if a receiver wants any of them.
    #[must_use]
    pub fn lock_user(&self, app: &App, user: &UserId) -> Option<DeliveryGuard<'_>> {
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
    /// It is nacked if the server shuts down before that: [`Webhooks::drain`]. A record must not be emitted again
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

    fn lock_channel(&self, app: &str, channel: &ChannelName, types: EventTypes) -> Option<DeliveryGuard<'_>> {
        self.lock_if_wanted(app, Subject::Channel(channel), types)
    }

    /// Locks `subject`, if a receiver wants one of `types` of it.
    fn lock_if_wanted(
        &self,
        app: &str,
        subject: Subject<'_>,
        types: EventTypes,
    ) -> Option<DeliveryGuard<'_>> {
        let app = self.0.as_ref()?.apps.get(app)?;
        app.wants(subject, types).then(|| app.lock(subject.as_str()))
    }

    fn wants(&self, app: &str, subject: Subject<'_>, types: EventTypes) -> bool {
        let app = self.0.as_ref().and_then(|dispatcher| dispatcher.apps.get(app));
        app.is_some_and(|app| app.wants(subject, types))
    }

    /// The number of pending events, for each host that has any.
    #[must_use]
    pub fn pending(&self) -> Vec<(String, usize)> {
        let mut hosts = BTreeMap::new();
        for endpoint in self.endpoints() {
            let pending = endpoint.pending();
            if pending > 0 {
                *hosts.entry(endpoint.webhook.url.authority().to_owned()).or_default() += pending;
            }
        }
        hosts.into_iter().collect()
    }

    /// Waits until all events that are pending now are resolved. To be called once.
    pub async fn wait_for_pending(&self) {
        self.endpoints().for_each(|endpoint| endpoint.mark());
        while self.endpoints().any(|endpoint| endpoint.pending_before_mark() > 0) {
            sleep(DRAIN_POLL_INTERVAL).await;
        }
    }

    fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.0.iter().flat_map(|dispatcher| dispatcher.apps.values()).flat_map(|app| &app.endpoints)
    }

    /// Emits what the debouncers hold, and sends until all is sent or `deadline` completes. The rest becomes dead
    /// letters, as does every event that is emitted later.
    ///
    /// Records are nacked instead, for another node to send: those in the debouncers at once, because the channel or
    /// user may be back on another node; those in the queues at the deadline; and all that are emitted later.
    /// Afterwards every token is resolved, except those of dead letters that the disk has not accepted.
    pub async fn drain(&self, deadline: impl Future<Output = ()>) {
        let Some(dispatcher) = &self.0 else { return };
        dispatcher.timers.cancel();
        for app in dispatcher.apps.values() {
            app.flush();
            app.endpoints.iter().for_each(|endpoint| endpoint.close());
        }
        dispatcher.senders.close();
        tokio::select! {
            () = dispatcher.senders.wait() => {}
            () = deadline => {
                dispatcher.abort.cancel();
                // Senders wait no longer than `FLUSH_TIMEOUT` for the dead letter store.
                dispatcher.senders.wait().await;
            }
        }
        dispatcher.shared.dead_letters.close(FLUSH_TIMEOUT).await;
    }
}

/// Cancels `ended` when the task ends, also by a panic.
async fn cancel_on_end<T>(task: impl Future<Output = T>, ended: CancellationToken) -> T {
    let _end = ended.drop_guard();
    task.await
}

/// The wall clock, in milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "webhooks carry the time of day")]
fn unix_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
