//! Webhooks: applications are told by HTTP of what happens on channels.
//!
//! An event takes three stages. The hub takes the [`Ledger`] that a channel stands in, before the registry decides,
//! and notes there what was decided: so the order of the notes is that in which it happened. The ledger smooths
//! (`smoothing`): what is gone is held for three seconds, and forgotten if it comes back. What is told goes into the
//! queue of every receiver that wants it (`queue`), and is sent from there (`endpoint`), signed, in order for each
//! channel, again and again for five minutes; what is given up then is a dead letter (`dead_letters`). What a receiver
//! refuses waits aside with its channel; where there is no answer, the lane waits.
//!
//! Nothing here ever makes the hub wait: the ledger is a short lock, and queues are bounded. Receivers do not wait
//! for each other. The room knows nothing of sockets, sessions and the registry. An app without webhooks pays one
//! branch.
//!
//! Start at [`Webhooks`]. Source: protocol.md §9.

mod client;
pub mod dead_letters;
mod endpoint;
mod event;
mod queue;
pub mod replay;
mod smoothing;
pub mod target;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ipnet::IpNet;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use event::Event;

use crate::apps::{App, AppId, Apps, EventType, EventTypes};
use crate::metrics::Metrics;
use crate::protocol::{Access, ChannelName, UserId};
use client::Client;
use dead_letters::DeadLetters;
use endpoint::{Endpoint, Post};
use smoothing::{Smoothing, Verdict};

/// Ledgers of an app, so that its channels seldom wait for each other.
const LEDGERS: usize = 32;

/// What a shutdown waits for the file of dead letters to take what is left, and then to be written.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

/// What follows from a subscription that begins or ends.
const OF_SUBSCRIPTIONS: EventTypes = EventTypes::of(&[
    EventType::ChannelOccupied,
    EventType::ChannelVacated,
    EventType::MemberAdded,
    EventType::MemberRemoved,
    EventType::CacheMiss,
    EventType::SubscriptionCount,
]);

const OF_USERS: EventTypes = EventTypes::of(&[EventType::UserOnline, EventType::UserOffline]);

/// How webhooks are sent.
#[derive(Clone, Debug)]
pub struct Options {
    /// What may wait for one receiver, in bytes. Default 16 MiB.
    pub queue_bytes: usize,
    /// Where what could not be delivered is kept; `None`: nowhere.
    pub dead_letter_file: Option<PathBuf>,
    /// The size that this file does not grow beyond, in bytes. Default 64 MiB.
    pub dead_letter_bytes: u64,
    /// Addresses that webhooks may go to although they are of a kind that is refused.
    pub allowed_addresses: Vec<IpNet>,
    /// The times that the protocol has; not settings.
    pub timing: Timing,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queue_bytes: 16 * 1024 * 1024,
            dead_letter_file: None,
            dead_letter_bytes: 64 * 1024 * 1024,
            allowed_addresses: Vec::new(),
            timing: Timing::default(),
        }
    }
}

/// How long what takes. Source: protocol.md §9.1, §9.3.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Timing {
    /// Who is gone is waited for so long before it is told.
    pub hold: Duration,
    /// For one attempt, from looking up the host to the head of the answer.
    pub timeout: Duration,
    /// Between the first two attempts; then twice as long each time.
    pub back_off: Duration,
    /// Between any two attempts at most; a quarter more or less, as any of these times.
    pub back_off_max: Duration,
    /// No attempt begins so long after the event.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(3),
            timeout: Duration::from_secs(10),
            back_off: Duration::from_secs(1),
            back_off_max: Duration::from_secs(30),
            retry: Duration::from_secs(300),
        }
    }
}

/// The webhooks of all apps. Cloning shares them; the default one has none.
#[derive(Clone, Debug, Default)]
pub struct Webhooks(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    apps: HashMap<AppId, Arc<AppWebhooks>>,
    post: Arc<Post>,
    /// The lanes of all receivers.
    lanes: TaskTracker,
    /// The tasks that tell of who stayed away.
    clocks: CancellationToken,
    /// Cancelled when there is no more time to send.
    cut: CancellationToken,
    /// Cancelled when any of these tasks ends.
    ended: CancellationToken,
}

/// The webhooks of one app.
#[derive(Debug)]
struct AppWebhooks {
    endpoints: Vec<Arc<Endpoint>>,
    /// By what they are about.
    ledgers: Box<[Mutex<Smoothing>]>,
    hasher: RandomState,
    /// Something is held where nothing was.
    holding: Notify,
    started: Instant,
    metrics: Arc<Metrics>,
}

/// Where one channel (or user) stands, locked: whoever holds it decides and notes before anybody else does.
#[derive(Debug)]
pub struct Ledger<'a> {
    app: &'a AppWebhooks,
    smoothing: MutexGuard<'a, Smoothing>,
}

impl Ledger<'_> {
    /// Notes what has happened. Never waits.
    pub fn note(&mut self, event: &Event<'_>) {
        let was_idle = self.smoothing.due().is_none();
        match self.smoothing.take(event, self.app.started.elapsed()) {
            Verdict::Tell => self.app.tell(event),
            Verdict::Hold if was_idle => self.app.holding.notify_one(),
            Verdict::Undo => self.app.metrics.webhooks.smoothed.add(2),
            Verdict::Hold | Verdict::Skip => {}
        }
    }
}

impl Webhooks {
    /// Starts what the apps' webhooks need, in the current runtime; without any, nothing.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(apps: &Apps, options: Options, metrics: &Arc<Metrics>) -> io::Result<Self> {
        let with_webhooks: Vec<_> = apps.iter().filter(|app| !app.webhooks.is_empty()).collect();
        if with_webhooks.is_empty() {
            return Ok(Self::default());
        }
        let Options { queue_bytes, dead_letter_file, dead_letter_bytes, allowed_addresses, timing } = options;
        let client = Client::new(allowed_addresses, timing.timeout);
        if with_webhooks.iter().any(|app| app.webhooks.iter().any(|webhook| webhook.url.is_https())) {
            client.prepare_tls();
        }
        let dead_letters = DeadLetters::start(dead_letter_file, dead_letter_bytes, metrics)?;
        let post = Arc::new(Post { client, dead_letters, metrics: Arc::clone(metrics), timing, queue_bytes });
        let lanes = TaskTracker::new();
        let [clocks, cut, ended] = std::array::from_fn(|_| CancellationToken::new());
        let mut started = HashMap::new();
        for app in with_webhooks {
            let webhooks = Arc::new(AppWebhooks::new(app, &post));
            for endpoint in &webhooks.endpoints {
                for lane in 0..endpoint.lanes() {
                    let sending = Arc::clone(endpoint).run(lane, cut.clone());
                    lanes.spawn(telling_its_end(sending, ended.clone()));
                }
            }
            let keeping_time = clocks.clone().run_until_cancelled_owned(Arc::clone(&webhooks).keep_time());
            tokio::spawn(telling_its_end(keeping_time, ended.clone()));
            started.insert(app.id.clone(), webhooks);
        }
        Ok(Self(Some(Arc::new(Inner { apps: started, post, lanes, clocks, cut, ended }))))
    }

    /// Waits until a task has ended, as none does before [`Webhooks::drain`].
    pub async fn ended(&self) {
        match &self.0 {
            Some(inner) => inner.ended.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Where a subscription to `channel` is noted, if anybody wants to hear of such.
    #[must_use]
    pub fn of_subscription(&self, app: &App, channel: &ChannelName) -> Option<Ledger<'_>> {
        // Most apps have none.
        if app.webhooks.is_empty() {
            return None;
        }
        self.of_channel(&app.id.0, channel, OF_SUBSCRIPTIONS)
    }

    /// Where an event of a client is noted, if anybody wants to hear of such.
    #[must_use]
    pub fn of_client_event(&self, app: &App, channel: &ChannelName) -> Option<Ledger<'_>> {
        if app.webhooks.is_empty() {
            return None;
        }
        self.of_channel(&app.id.0, channel, EventTypes::of(&[EventType::ClientEvent]))
    }

    /// Where a count of subscribers is noted, if anybody wants to hear of such.
    #[must_use]
    pub fn of_count(&self, app: &str, channel: &ChannelName) -> Option<Ledger<'_>> {
        self.of_channel(app, channel, EventTypes::of(&[EventType::SubscriptionCount]))
    }

    /// Where a user's coming and going is noted, if anybody wants to hear of it.
    #[must_use]
    pub fn of_user(&self, app: &App, user: &UserId) -> Option<Ledger<'_>> {
        if app.webhooks.is_empty() {
            return None;
        }
        let app = self.0.as_ref()?.apps.get(&app.id)?;
        let wanted = app.endpoints.iter().any(|endpoint| endpoint.webhook.event_types.has_any(OF_USERS));
        wanted.then(|| app.ledger(user.as_str()))
    }

    /// A user's own channel is nobody else's business.
    fn of_channel(&self, app: &str, channel: &ChannelName, types: EventTypes) -> Option<Ledger<'_>> {
        let app = self.0.as_ref()?.apps.get(app)?;
        let wanted = channel.access() != Access::User
            && app.endpoints.iter().any(|endpoint| endpoint.webhook.wants(types, channel));
        wanted.then(|| app.ledger(channel.as_str()))
    }

    /// Tells what is held, and sends what waits until all is sent or `deadline` has passed; the rest are dead
    /// letters. What is noted after that is one, too.
    pub async fn drain(&self, deadline: impl Future<Output = ()>) {
        let Some(inner) = &self.0 else { return };
        inner.clocks.cancel();
        for app in inner.apps.values() {
            app.flush();
            app.endpoints.iter().for_each(|endpoint| endpoint.close());
        }
        inner.lanes.close();
        tokio::select! {
            () = inner.lanes.wait() => {}
            () = deadline => {
                inner.cut.cancel();
                // They wait for the disk for so long and no longer.
                inner.lanes.wait().await;
            }
        }
        inner.post.dead_letters.finish(FLUSH_PATIENCE).await;
    }
}

/// A task whose end, by a panic as well, is told by `ended`.
async fn telling_its_end<T>(task: impl Future<Output = T>, ended: CancellationToken) -> T {
    let _end = ended.drop_guard();
    task.await
}

impl AppWebhooks {
    fn new(app: &App, post: &Arc<Post>) -> Self {
        let endpoint = |webhook: &crate::apps::Webhook| Arc::new(Endpoint::new(app, webhook.clone(), post));
        Self {
            endpoints: app.webhooks.iter().map(endpoint).collect(),
            ledgers: (0..LEDGERS).map(|_| Mutex::new(Smoothing::new(post.timing.hold))).collect(),
            hasher: RandomState::new(),
            holding: Notify::new(),
            started: Instant::now(),
            metrics: Arc::clone(&post.metrics),
        }
    }

    fn ledger(&self, about: &str) -> Ledger<'_> {
        let place = self.hasher.hash_one(about) as usize % self.ledgers.len();
        Ledger { app: self, smoothing: self.ledgers[place].lock() }
    }

    /// Puts an event into the queues of all who want it, encoded once.
    fn tell(&self, event: &Event<'_>) {
        let types = EventTypes::of(&[event.event_type()]);
        let about = event.about();
        let mut encoded: Option<(Bytes, u64)> = None;
        for endpoint in &self.endpoints {
            let wanted = match about {
                event::About::Channel(channel) => endpoint.webhook.wants(types, channel),
                event::About::User(_) => endpoint.webhook.event_types.has_any(types),
            };
            if wanted {
                let (json, time_ms) = encoded.get_or_insert_with(|| (event.to_json().into(), unix_ms()));
                endpoint.put(about, json.clone(), *time_ms);
            }
        }
    }

    /// Tells of those who stayed away. Runs until it is dropped.
    async fn keep_time(self: Arc<Self>) {
        loop {
            let due = self.ledgers.iter().filter_map(|ledger| ledger.lock().due()).min();
            match due {
                None => self.holding.notified().await,
                Some(due) => {
                    sleep_until(self.started + due).await;
                    let now = self.started.elapsed();
                    for ledger in &self.ledgers {
                        ledger.lock().settle(now, |event| self.tell(event));
                    }
                }
            }
        }
    }

    fn flush(&self) {
        for ledger in &self.ledgers {
            ledger.lock().flush(|event| self.tell(event));
        }
    }
}

/// The time of day, in milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "webhooks carry the time of day")]
fn unix_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
