//! Webhooks: applications are told by HTTP of what happens on channels.
//!
//! An event takes three stages. The hub takes the [`Ledger`] that a channel stands in, before the registry decides,
//! and notes there what was decided: so the order of the notes is that in which it happened. The ledger smooths
//! (`smoothing`): what is gone is held for three seconds, and forgotten if it comes back. What is told goes into the
//! queue of every receiver that wants it (`queue`), where channels and users take turns and where pairs that nobody was
//! told of cancel out, and is sent from there (`endpoint`), signed, in order for each channel, again and again for five
//! minutes; what is given up then is a dead letter (`dead_letters`). What a receiver refuses waits with its channel; how
//! fast it is asked while it refuses everything or does not answer says its `pace`.
//!
//! In a cluster, what is told of subscriptions and users are records, which one node reads and the others would read
//! again: [`Webhooks::note_record`]. A receipt travels with each of them (`receipt`), through all of these stages, and
//! says in the end whether the record need not be kept any more.
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
mod pace;
mod queue;
mod receipt;
pub mod replay;
mod smoothing;
pub mod target;

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

pub use event::{Event, EventId, NoEventId};
pub use receipt::{End, Receipt};

use crate::apps::{App, AppId, Apps, EventType, EventTypes};
use crate::metrics::Metrics;
use crate::protocol::{ChannelName, UserId};
use client::Client;
use dead_letters::DeadLetters;
use endpoint::{Endpoint, Post};
use event::{About, Edge, Told};
use receipt::Record;
use smoothing::{Smoothing, Verdict};

/// Ledgers of an app, so that its channels seldom wait for each other.
const LEDGERS: usize = 32;

/// What a shutdown waits for the file of dead letters to take what is left, and then to be written.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

/// How often a shutdown looks whether all has been sent.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

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

/// What follows from a subscription and is the same on all nodes of a cluster.
const OF_CHANNEL_RECORDS: EventTypes = EventTypes::of(&[
    EventType::ChannelOccupied,
    EventType::ChannelVacated,
    EventType::MemberAdded,
    EventType::MemberRemoved,
]);

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
    /// Between the first two attempts at something that is refused; then twice as long each time.
    pub back_off: Duration,
    /// Between any two attempts at most; a quarter more or less, as any of these times.
    pub back_off_max: Duration,
    /// Between two probes of a receiver that does not answer, or up to twice as long.
    pub probe: Duration,
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
            probe: Duration::from_secs(1),
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
    /// The senders of all receivers.
    senders: TaskTracker,
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
    /// What numbers the events that are no records: random, so that no other process is the same.
    source: u64,
    /// The number of the next of them.
    number: AtomicU64,
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
        self.take(event, None);
    }

    fn take(&mut self, event: &Event<'_>, record: Option<Record>) {
        let (app, metrics) = (self.app, &self.app.metrics.webhooks);
        let was_idle = self.smoothing.due().is_none();
        let tell = |event: &Event<'_>, record| app.tell(event, record);
        match self.smoothing.take(event, record, app.started.elapsed(), tell) {
            Verdict::Held if was_idle => app.holding.notify_one(),
            Verdict::Undone => metrics.smoothed.add(2),
            Verdict::Released => metrics.released.count(),
            Verdict::Told | Verdict::Held | Verdict::Skipped => {}
        }
    }
}

impl Webhooks {
    /// Starts what the apps' webhooks need, in the current runtime; without any, nothing.
    ///
    /// # Errors
    /// The system gives no thread, or no randomness.
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
        match &dead_letter_file {
            Some(file) => info!(file = %file.display(), "webhooks that cannot be delivered are kept"),
            None => info!(
                "webhooks that cannot be delivered are lost, as webhooks.dead_letter_file names no file"
            ),
        }
        let dead_letters = DeadLetters::start(dead_letter_file, dead_letter_bytes, metrics)?;
        let post = Arc::new(Post { client, dead_letters, metrics: Arc::clone(metrics), timing, queue_bytes });
        let senders = TaskTracker::new();
        let [clocks, cut, ended] = std::array::from_fn(|_| CancellationToken::new());
        let mut started = HashMap::new();
        for app in with_webhooks {
            let webhooks = Arc::new(AppWebhooks::new(app, &post)?);
            for endpoint in &webhooks.endpoints {
                for _ in 0..endpoint.senders() {
                    let sending = Arc::clone(endpoint).run(cut.clone());
                    senders.spawn(telling_its_end(sending, ended.clone()));
                }
            }
            let keeping_time = clocks.clone().run_until_cancelled_owned(Arc::clone(&webhooks).keep_time());
            tokio::spawn(telling_its_end(keeping_time, ended.clone()));
            started.insert(app.id.clone(), webhooks);
        }
        Ok(Self(Some(Arc::new(Inner { apps: started, post, senders, clocks, cut, ended }))))
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
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
        self.wanted(&app.id.0, About::User(user), OF_USERS)
    }

    /// Whether anybody wants to hear who comes to a channel and who goes, so that a cluster has to put it down.
    #[must_use]
    pub fn wants_records_of_channel(&self, app: &App, channel: &ChannelName) -> bool {
        !app.webhooks.is_empty() && self.wants(&app.id.0, About::Channel(channel), OF_CHANNEL_RECORDS)
    }

    /// Whether anybody wants to hear of a user's coming and going, so that a cluster has to put it down.
    #[must_use]
    pub fn wants_records_of_user(&self, app: &App, user: &UserId) -> bool {
        !app.webhooks.is_empty() && self.wants(&app.id.0, About::User(user), OF_USERS)
    }

    /// Notes who came or went, as a record of a cluster says, at `time_ms` (milliseconds since 1970) by the clock of
    /// all nodes: receivers are told that time, and the record's id. Never waits.
    ///
    /// Records about one channel (or user) are noted in the order in which they happened. A record may be hours old: it
    /// gets its five minutes of attempts, and who went is held for three seconds, both from now on. Whether who came
    /// back was gone for less than that is seen from the times of both records. What is held has no other bound than
    /// how many records are noted that have not ended.
    ///
    /// `receipt` says how the record ended. It is settled when it was delivered to all who want it, or became a dead
    /// letter where it was not (by age or a full queue; when that is written, or lost), when it was undone, or came after a
    /// first half that was not sent yet, as did that half (of the two, the first is settled first), and at once if nobody wants it or there is no such app. It is released
    /// when the server ends before that: [`Webhooks::drain`]. A record must not be noted again before it has ended, or
    /// the ends of the receipts that it was noted with before are not received any more; otherwise it may be told twice.
    pub fn note_record(&self, app: &str, event: &Event<'_>, time_ms: u64, receipt: Receipt) {
        // Who came undoes that they went, whether or not anybody wants to hear of the former.
        let types = match event.about() {
            About::Channel(_) => OF_CHANNEL_RECORDS,
            About::User(_) => OF_USERS,
        };
        match self.wanted(app, event.about(), types) {
            Some(mut ledger) => ledger.take(event, Some(Record { time_ms, receipt })),
            None => receipt.settle(),
        }
    }

    fn of_channel(&self, app: &str, channel: &ChannelName, types: EventTypes) -> Option<Ledger<'_>> {
        self.wanted(app, About::Channel(channel), types)
    }

    /// Where is noted what `about` is about, if anybody wants to hear one of `types` of it.
    fn wanted(&self, app: &str, about: About<'_>, types: EventTypes) -> Option<Ledger<'_>> {
        let app = self.0.as_ref()?.apps.get(app)?;
        app.wants(about, types).then(|| app.ledger(about.as_str()))
    }

    fn wants(&self, app: &str, about: About<'_>, types: EventTypes) -> bool {
        let app = self.0.as_ref().and_then(|inner| inner.apps.get(app));
        app.is_some_and(|app| app.wants(about, types))
    }

    /// How many events wait to be sent, for each host that has any.
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

    /// Waits until what waits now has been sent or given up. To be called once.
    pub async fn sent(&self) {
        self.endpoints().for_each(|endpoint| endpoint.mark());
        while self.endpoints().any(|endpoint| endpoint.pending_before_mark() > 0) {
            sleep(LOOK_INTERVAL).await;
        }
    }

    fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.0.iter().flat_map(|inner| inner.apps.values()).flat_map(|app| &app.endpoints)
    }

    /// Tells what is held, and sends what waits until all is sent or `deadline` has passed; the rest are dead
    /// letters. What is noted after that is one, too.
    ///
    /// Records are left to the other nodes instead: those that are held at once, so that nobody who comes back to
    /// another node was gone, those that wait when the deadline has passed, and those that are noted after that. When
    /// this is done all receipts have ended, but for those of dead letters that a disk does not take.
    pub async fn drain(&self, deadline: impl Future<Output = ()>) {
        let Some(inner) = &self.0 else { return };
        inner.clocks.cancel();
        for app in inner.apps.values() {
            app.flush();
            app.endpoints.iter().for_each(|endpoint| endpoint.close());
        }
        inner.senders.close();
        tokio::select! {
            () = inner.senders.wait() => {}
            () = deadline => {
                inner.cut.cancel();
                // They wait for the disk for so long and no longer.
                inner.senders.wait().await;
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
    fn new(app: &App, post: &Arc<Post>) -> io::Result<Self> {
        let endpoint = |webhook: &crate::apps::Webhook| Arc::new(Endpoint::new(app, webhook.clone(), post));
        Ok(Self {
            endpoints: app.webhooks.iter().map(endpoint).collect(),
            ledgers: (0..LEDGERS).map(|_| Mutex::new(Smoothing::new(post.timing.hold))).collect(),
            hasher: RandomState::new(),
            source: getrandom::u64().map_err(io::Error::other)?,
            number: AtomicU64::new(1),
            holding: Notify::new(),
            started: Instant::now(),
            metrics: Arc::clone(&post.metrics),
        })
    }

    fn wants(&self, about: About<'_>, types: EventTypes) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.wants(about, types))
    }

    fn ledger(&self, about: &str) -> Ledger<'_> {
        let place = self.hasher.hash_one(about) as usize % self.ledgers.len();
        Ledger { app: self, smoothing: self.ledgers[place].lock() }
    }

    /// Puts an event into the queues of all who want it, encoded once.
    fn tell(&self, event: &Event<'_>, record: Option<Record>) {
        let types = EventTypes::of(&[event.event_type()]);
        let about = event.about();
        let mut told: Option<Told> = None;
        for endpoint in self.endpoints.iter().filter(|endpoint| endpoint.wants(about, types)) {
            let told = told.get_or_insert_with(|| self.told(event, record.as_ref()));
            endpoint.put(told.clone(), record.as_ref().map(|record| record.receipt.clone()));
        }
        // What is left to be done is with those who have it.
        if let Some(record) = record {
            record.receipt.settle();
        }
    }

    fn told(&self, event: &Event<'_>, record: Option<&Record>) -> Told {
        let (time_ms, id) = match record {
            Some(record) => (record.time_ms, record.receipt.id()),
            None => (unix_ms(), EventId::new(self.source, self.number.fetch_add(1, Ordering::Relaxed))),
        };
        let edge = event.edge().map(|Edge { who, is_gain }| {
            let who = who.map(|user| self.hasher.hash_one(user.as_str()));
            Edge { who, is_gain }
        });
        let about = self.hasher.hash_one(event.about());
        Told { json: event.to_json().into(), time_ms, id, about, class: event.class(), edge }
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
                        ledger.lock().settle(now, |event, record| self.tell(event, record));
                    }
                }
            }
        }
    }

    fn flush(&self) {
        for ledger in &self.ledgers {
            let released = ledger.lock().flush(|event| self.tell(event, None));
            self.metrics.webhooks.released.add(released as u64);
        }
    }
}

/// The time of day, in milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "webhooks carry the time of day")]
fn unix_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
