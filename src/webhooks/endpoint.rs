//! One receiver of one app: its queue, and the tasks that send what is in it.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::client::{Client, KeptAlive, SendError, Signed};
use super::dead_letters::{DeadLetter, DeadLetters, Parcel};
use super::event::{About, EventId, Told};
use super::queue::{Next, Queue, Waiting};
use super::receipt::Receipt;
use super::{FLUSH_PATIENCE, Timing};
use crate::apps::{App, AppId, EventTypes, Webhook};
use crate::metrics::Metrics;
use crate::protocol::Access;
use crate::protocol::signature::SigningKey;

/// Requests in flight to a receiver, each of other channels. Batches tell of several channels, so those have one.
const LANES: usize = 8;

/// A batch that was tried so often and is refused is sent again one by one.
const BATCH_ATTEMPTS: u32 = 2;

/// That a receiver fails is logged this often.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

const UNSENT: &str = "the server shut down";

/// What all receivers share.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) client: Client,
    pub(super) dead_letters: DeadLetters,
    pub(super) metrics: Arc<Metrics>,
    pub(super) timing: Timing,
    pub(super) queue_bytes: usize,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Endpoint {
    app: AppId,
    pub(super) webhook: Webhook,
    signer: Signer,
    queue: Mutex<Queue>,
    /// One for each lane: something came, or nothing will.
    wake: Box<[Notify]>,
    hasher: RandomState,
    health: Mutex<Health>,
    post: Arc<Post>,
}

/// The oldest key of an app, with which webhooks are signed.
#[derive(Clone, Debug)]
pub(super) struct Signer {
    key: HeaderValue,
    secret: SigningKey,
}

impl Signer {
    /// Signs for `app`. Source: protocol.md §9.1.
    pub(super) fn of(app: &App) -> Self {
        let oldest = app.keys.first().expect("an app has a key");
        let key = HeaderValue::from_str(&oldest.key).expect("a key is visible ASCII");
        Self { key, secret: oldest.secret.clone() }
    }

    /// Signs a body that tells of events that are called `ids`, as far as that is known.
    pub(super) fn sign(&self, body: Bytes, ids: impl IntoIterator<Item = EventId>) -> Signed {
        let signature = self.secret.sign_webhook(&body);
        let signature = HeaderValue::try_from(signature).expect("hex digits are visible ASCII");
        let ids: Vec<_> = ids.into_iter().map(String::from).collect();
        let listed = || HeaderValue::try_from(ids.join(",")).expect("ids are visible ASCII");
        let event_ids = (!ids.is_empty()).then(listed);
        Signed { body, key: self.key.clone(), signature, event_ids }
    }
}

/// Whether a receiver takes what it is sent, as the log has it.
#[derive(Debug, Default)]
struct Health {
    /// The operator has been told that it fails, and not yet that it does no more.
    told: bool,
    warned: Option<Instant>,
}

/// A lane's connection, and its pace.
#[derive(Debug, Default)]
struct Lane {
    kept: KeptAlive,
    /// Attempts without an answer since the last one that had one.
    failures: u32,
    /// No attempt before.
    resume: Option<Instant>,
}

/// How long to wait after so many failures in a row: twice as long each time, up to a bound, and then a quarter more
/// or less, so that lanes and nodes do not come back together.
fn back_off(failures: u32, random: u32, timing: &Timing) -> Duration {
    let doubled = timing.back_off.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let jitter = 0.75 + 0.5 * f64::from(random) / (f64::from(u32::MAX) + 1.0);
    doubled.min(timing.back_off_max).mul_f64(jitter)
}

/// What a request says that tells of `events`: the same each time.
fn body(events: &[Waiting]) -> Vec<u8> {
    let time_ms = events.first().map_or(0, |first| first.told.time_ms);
    let mut body = format!(r#"{{"time_ms":{time_ms},"events":["#).into_bytes();
    for (at, event) in events.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&event.told.json);
    }
    body.extend_from_slice(b"]}");
    body
}

impl Endpoint {
    pub(super) fn new(app: &App, webhook: Webhook, post: &Arc<Post>) -> Self {
        let batching =
            app.webhook_batching.then(|| Duration::from_millis(u64::from(app.webhook_batching_ms)));
        let lanes = if batching.is_some() { 1 } else { LANES };
        Self {
            app: app.id.clone(),
            webhook,
            signer: Signer::of(app),
            queue: Mutex::new(Queue::new(lanes, post.queue_bytes, batching)),
            wake: (0..lanes).map(|_| Notify::new()).collect(),
            hasher: RandomState::new(),
            health: Mutex::default(),
            post: Arc::clone(post),
        }
    }

    /// Whether the receiver wants to hear one of `types` of it. A user's own channel is nobody else's business.
    pub(super) fn wants(&self, about: About<'_>, types: EventTypes) -> bool {
        match about {
            About::Channel(channel) => channel.access() != Access::User && self.webhook.wants(types, channel),
            About::User(_) => self.webhook.event_types.has_any(types),
        }
    }

    /// Puts an event into the queue. Never waits: what falls out of a full queue is a dead letter, and so is what comes
    /// after the end, unless it is a record.
    pub(super) fn put(&self, about: About<'_>, told: Told, receipt: Option<Receipt>) {
        let about = self.hasher.hash_one(about.as_str());
        let lane = about as usize % self.wake.len();
        let metrics = &self.post.metrics.webhooks;
        metrics.events.count();
        let event = Waiting { told, receipt, since: Instant::now(), about, attempts: 0, error: None };
        let pushed = self.queue.lock().push(lane, event);
        match pushed {
            Ok(mut fallen) => {
                self.wake[lane].notify_one();
                self.release(&mut fallen, Waiting::is_void);
                for event in fallen {
                    metrics.dropped.count();
                    let why = "the queue was full (webhooks.queue_bytes)";
                    self.post.dead_letters.put(self.parcel(vec![event], why));
                }
            }
            Err(event) => {
                if let Some(parcel) = self.unsent(vec![event]) {
                    self.post.dead_letters.put(parcel);
                }
            }
        }
    }

    /// Nothing more will come: the lanes end when they have sent what is there.
    pub(super) fn close(&self) {
        self.queue.lock().close();
        self.wake.iter().for_each(Notify::notify_one);
    }

    pub(super) const fn lanes(&self) -> usize {
        self.wake.len()
    }

    /// Sends what comes into a lane, until it is closed and empty. Once `cut`, what is left are dead letters, but for
    /// records, which are released.
    pub(super) async fn run(self: Arc<Self>, at: usize, cut: CancellationToken) {
        // Outside of what is cut off, so that it is not lost with that.
        let mut in_flight = Vec::new();
        let sending = async {
            let mut lane = Lane::default();
            while let Some(events) = self.next(at).await {
                in_flight = events;
                self.deliver(at, &mut in_flight, &mut lane).await;
            }
        };
        if cut.run_until_cancelled(sending).await.is_some() {
            return;
        }
        let until = Instant::now() + FLUSH_PATIENCE;
        let left = [in_flight].into_iter().chain(std::iter::from_fn(|| self.queue.lock().take_any(at)));
        for parcel in left.filter_map(|events| self.unsent(events)) {
            self.post.dead_letters.put_until(parcel, until).await;
        }
    }

    /// What a shutdown leaves of a request. Records are left to the other nodes, of the others there is a dead letter.
    fn unsent(&self, mut events: Vec<Waiting>) -> Option<Parcel> {
        self.release(&mut events, |event| event.receipt.is_some());
        if events.is_empty() {
            return None;
        }
        self.post.metrics.webhooks.unsent.count();
        Some(self.parcel(events, UNSENT))
    }

    /// Takes out those records that are left to the other nodes.
    fn release(&self, events: &mut Vec<Waiting>, is_left: impl Fn(&Waiting) -> bool) {
        let count = events.len();
        events.retain(|event| !is_left(event));
        self.post.metrics.webhooks.released.add((count - events.len()) as u64);
    }

    /// The events of a lane's next request; `None` when it is closed and empty.
    async fn next(&self, lane: usize) -> Option<Vec<Waiting>> {
        loop {
            let next = self.queue.lock().next(lane, Instant::now());
            let something = self.wake[lane].notified();
            match next {
                Next::Send(events) => return Some(events),
                Next::Wait(None) => something.await,
                // Either something comes, or time is up.
                Next::Wait(Some(until)) => drop(timeout_at(until, something).await),
                Next::End => return None,
            }
        }
    }

    /// Tries until `events` are delivered, refused or too old, and leaves nothing there. While there is no answer at
    /// all, the lane waits with them.
    async fn deliver(&self, at: usize, events: &mut Vec<Waiting>, lane: &mut Lane) {
        loop {
            if let Some(resume) = lane.resume {
                sleep_until(resume).await;
            }
            self.release(events, Waiting::is_void);
            self.give_up_old(events);
            let Some(first) = events.first() else { return };
            let ids = events.iter().map(|event| event.told.id);
            let (about, signed) = (first.about, self.signer.sign(body(events).into(), ids));
            let sent = self.post.client.post(&self.webhook, &signed, &mut lane.kept).await;
            let Err(error) = sent else {
                (lane.failures, lane.resume) = (0, None);
                self.queue.lock().delivered(at, about);
                self.recovers();
                return events.drain(..).filter_map(|event| event.receipt).for_each(Receipt::settle);
            };
            self.fails(&error);
            let text: Arc<str> = error.to_string().into();
            for event in events.iter_mut() {
                event.attempts += 1;
                event.error = Some(Arc::clone(&text));
            }
            let (now, random) = (Instant::now(), getrandom::u32().unwrap_or_default());
            let back_off = |failures| back_off(failures, random, &self.post.timing);
            // One of a batch may be to blame, but most often none is.
            let may_be_the_receiver = events.len() > 1 && events[0].attempts < BATCH_ATTEMPTS;
            if error.is_without_answer() || may_be_the_receiver {
                lane.failures += 1;
                lane.resume = Some(now + back_off(lane.failures));
            } else {
                (lane.failures, lane.resume) = (0, None);
                return self.queue.lock().refused(at, std::mem::take(events), now, back_off);
            }
        }
    }

    /// Takes out what is too old for another attempt.
    fn give_up_old(&self, events: &mut Vec<Waiting>) {
        let now = Instant::now();
        let old = events.partition_point(|event| now >= event.since + self.post.timing.retry);
        if old > 0 {
            let old = events.drain(..old).collect();
            self.post.metrics.webhooks.expired.count();
            self.post.dead_letters.put(self.parcel(old, "it waited too long"));
        }
    }

    fn fails(&self, error: &SendError) {
        let metrics = &self.post.metrics.webhooks;
        metrics.failed_attempts.count();
        if matches!(error, SendError::Refused(..)) {
            metrics.refused_targets.count();
        }
        let mut health = self.health.lock();
        if !health.told && health.warned.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
            health.warned = Some(Instant::now());
            health.told = true;
            warn!(app = %self.app, url = %self.webhook.url, "webhooks fail and are tried again: {error}");
        }
    }

    fn recovers(&self) {
        self.post.metrics.webhooks.delivered.count();
        let mut health = self.health.lock();
        if std::mem::take(&mut health.told) {
            info!(app = %self.app, url = %self.webhook.url, "webhooks are delivered again");
        }
    }

    /// What is kept of a request that is given up; `why`, unless an attempt says more.
    fn parcel(&self, events: Vec<Waiting>, why: &str) -> Parcel {
        let first = events.first();
        let letter = DeadLetter {
            app_id: self.app.to_string(),
            url: self.webhook.url.to_string(),
            time_ms: first.map_or(0, |first| first.told.time_ms),
            attempts: first.map_or(0, |first| first.attempts),
            error: first.and_then(|first| first.error.as_deref()).unwrap_or(why).to_owned(),
            event_ids: events.iter().map(|event| event.told.id).collect(),
            body: String::from_utf8_lossy(&body(&events)).into_owned(),
        };
        Parcel { letter, receipts: events.into_iter().filter_map(|event| event.receipt).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::WebhookUrl;

    /// Events that grow too old one after the other, as they do in a busy channel.
    #[tokio::test]
    async fn a_receiver_that_does_not_answer_is_tried_no_faster_because_events_grow_too_old() {
        let metrics = Arc::new(Metrics::default());
        let timing = Timing {
            back_off: Duration::from_millis(50),
            back_off_max: Duration::from_millis(50),
            ..Timing::default()
        };
        let retry = timing.retry;
        let post = Arc::new(Post {
            client: Client::new(Vec::new(), timing.timeout),
            dead_letters: DeadLetters::start(None, 0, &metrics).unwrap(),
            metrics: Arc::clone(&metrics),
            timing,
            queue_bytes: 1_000_000,
        });
        // An address where webhooks do not go answers nothing, at once.
        let webhook = Webhook::new(WebhookUrl::parse("http://169.254.1.1/").unwrap());
        let endpoint = Arc::new(Endpoint::new(&App::new("1001", "key", "secret"), webhook, &post));
        let now = Instant::now();
        for at in 0..200 {
            let since = now + Duration::from_millis(at) - retry;
            let told = Told { json: Bytes::from_static(b"{}"), time_ms: 0, id: EventId::new(7, at) };
            let event = Waiting { told, receipt: None, since, about: 0, attempts: 0, error: None };
            endpoint.queue.lock().push(0, event).unwrap();
        }
        endpoint.close();
        Arc::clone(&endpoint).run(0, CancellationToken::new()).await;
        let attempts = metrics.webhooks.failed_attempts.get();
        assert!((1..=8).contains(&attempts), "{attempts}");
        assert_eq!(metrics.webhooks.expired.get(), 200);
    }

    #[test]
    fn in_five_minutes_there_are_about_fourteen_attempts() {
        let timing = Timing::default();
        for (random, expected) in [(0, 18), (u32::MAX / 2, 14), (u32::MAX, 12)] {
            let (mut at, mut attempts) = (Duration::ZERO, 0);
            while at < timing.retry {
                attempts += 1;
                at += back_off(attempts, random, &timing);
            }
            assert_eq!(attempts, expected);
        }
    }

    #[test]
    fn attempts_are_twice_as_far_apart_each_time_up_to_a_bound() {
        let timing = Timing::default();
        let secs = |failures, random| back_off(failures, random, &timing).as_secs_f64();
        for (failures, expected) in [(1, 1.0), (2, 2.0), (3, 4.0), (5, 16.0), (6, 30.0), (40, 30.0)] {
            assert!((secs(failures, u32::MAX / 2) - expected).abs() < 0.001, "{failures}");
            assert!((secs(failures, 0) - expected * 0.75).abs() < 0.001, "{failures}");
            assert!((secs(failures, u32::MAX) - expected * 1.25).abs() < 0.001, "{failures}");
        }
    }
}
