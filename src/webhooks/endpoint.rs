//! One receiver of one app: its queue, and the tasks that send what is in it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::client::{Client, KeptAlive, SendError, Signed};
use super::dead_letters::{DeadLetter, DeadLetters, Parcel};
use super::event::{About, EventId, Told};
use super::queue::{Failure, Next, Pushed, Queue, Request, Rules, Waiting};
use super::receipt::Receipt;
use super::{FLUSH_PATIENCE, Timing};
use crate::apps::{App, AppId, EventTypes, Webhook};
use crate::metrics::Metrics;
use crate::protocol::Access;
use crate::protocol::signature::SigningKey;

/// Requests in flight to a receiver, each about another channel or user. Batches are about several, and so one at a time.
const SENDERS: usize = 8;

/// That a receiver fails, or its queue is full, is logged this often.
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
    senders: usize,
    /// One of the senders has to look at the queue. It wakes the next one when there is more.
    wake: Notify,
    health: Mutex<Health>,
    full: Mutex<Full>,
    shares: Mutex<Shares>,
    post: Arc<Post>,
}

/// What has not been sent or given up: every event holds a clone of one of these until then.
#[derive(Debug, Default)]
struct Shares {
    before: Arc<()>,
    /// Of what came since [`Endpoint::mark`].
    since: Arc<()>,
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

/// What falls out of the queue, as the log has it.
#[derive(Debug, Default)]
struct Full {
    /// Events since it was said last.
    count: usize,
    warned: Option<Instant>,
}

/// How long to wait after so many failures in a row: twice as long each time, up to a bound, and then a quarter more
/// or less, so that channels and nodes do not come back together.
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
        let window = Duration::from_millis(u64::from(app.webhook_batching_ms));
        let rules = Rules {
            bytes_max: post.queue_bytes,
            senders: if app.webhook_batching { 1 } else { SENDERS },
            window: app.webhook_batching.then_some(window),
            retry: post.timing.retry,
            probe: post.timing.probe,
        };
        Self {
            app: app.id.clone(),
            webhook,
            signer: Signer::of(app),
            queue: Mutex::new(Queue::new(rules)),
            senders: rules.senders,
            wake: Notify::new(),
            health: Mutex::default(),
            full: Mutex::default(),
            shares: Mutex::default(),
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
    pub(super) fn put(&self, told: Told, receipt: Option<Receipt>) {
        let metrics = &self.post.metrics.webhooks;
        metrics.events.count();
        let share = Arc::clone(&self.shares.lock().since);
        let event = Waiting::new(told, receipt, Instant::now()).sharing(share);
        let pushed = self.queue.lock().push(event);
        match pushed {
            Ok(Pushed { mut fallen, cancelled }) => {
                self.wake.notify_one();
                metrics.cancelled.add(cancelled.len() as u64);
                // The first half first: whoever reads one half again must not read that one alone.
                cancelled.into_iter().filter_map(|event| event.receipt).for_each(Receipt::settle);
                self.release(&mut fallen, Waiting::is_void);
                if !fallen.is_empty() {
                    self.falls_out(fallen);
                }
            }
            Err(event) => {
                if let Some(parcel) = self.unsent(vec![*event]) {
                    self.post.dead_letters.put(parcel);
                }
            }
        }
    }

    /// What falls out of the full queue is a dead letter each.
    fn falls_out(&self, fallen: Vec<Waiting>) {
        let mut full = self.full.lock();
        full.count += fallen.len();
        if full.warned.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
            let (count, queue_bytes) = (std::mem::take(&mut full.count), self.post.queue_bytes);
            full.warned = Some(Instant::now());
            warn!(
                app = %self.app,
                url = %self.webhook.url,
                count,
                queue_bytes,
                "webhooks are given up, as more wait than webhooks.queue_bytes allows: the receiver is too slow, or down"
            );
        }
        drop(full);
        for event in fallen {
            self.post.metrics.webhooks.dropped.count();
            let why = "the queue was full (webhooks.queue_bytes)";
            self.post.dead_letters.put(self.parcel(vec![event], why));
        }
    }

    /// Nothing more will come: the senders end when they have sent what is there.
    pub(super) fn close(&self) {
        self.queue.lock().close();
        self.wake.notify_one();
    }

    /// From here on, what comes is not among [`Endpoint::pending_before_mark`].
    pub(super) fn mark(&self) {
        let mut shares = self.shares.lock();
        shares.before = std::mem::take(&mut shares.since);
    }

    /// Events that came before the mark and have neither been sent nor given up.
    pub(super) fn pending_before_mark(&self) -> usize {
        Arc::strong_count(&self.shares.lock().before) - 1
    }

    /// Events that have neither been sent nor given up.
    pub(super) fn pending(&self) -> usize {
        let shares = self.shares.lock();
        Arc::strong_count(&shares.before) + Arc::strong_count(&shares.since) - 2
    }

    /// How many tasks send what is in the queue.
    pub(super) const fn senders(&self) -> usize {
        self.senders
    }

    /// One of the senders: sends what comes, until the queue is closed and empty. Once `cut`, what is left are dead
    /// letters, but for records, which are released.
    pub(super) async fn run(self: Arc<Self>, cut: CancellationToken) {
        // Outside of what is cut off, so that it is not lost with that.
        let mut in_flight = None;
        let sending = async {
            let mut kept = KeptAlive::default();
            while let Some(request) = self.next().await {
                in_flight = Some(request);
                self.send(&mut in_flight, &mut kept).await;
            }
        };
        if cut.run_until_cancelled(sending).await.is_some() {
            return;
        }
        if let Some(request) = in_flight {
            self.queue.lock().put_back(request);
        }
        let until = Instant::now() + FLUSH_PATIENCE;
        while let Some(requests) = self.take_left() {
            for parcel in requests.into_iter().filter_map(|events| self.unsent(events)) {
                self.post.dead_letters.put_until(parcel, until).await;
            }
        }
    }

    /// All that is left of one channel or user, as it would have been sent.
    fn take_left(&self) -> Option<Vec<Vec<Waiting>>> {
        let mut queue = self.queue.lock();
        let events = queue.take_subject()?;
        Some(queue.split(events))
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

    /// The next request; `None` when the queue is closed and empty.
    async fn next(&self) -> Option<Request> {
        loop {
            let random = getrandom::u32().unwrap_or_default();
            let (next, is_empty) = {
                let mut queue = self.queue.lock();
                (queue.next(Instant::now(), random), queue.is_empty())
            };
            // There may be something for another one, or an end.
            if !matches!(next, Next::Wait(_)) && (!is_empty || matches!(next, Next::End)) {
                self.wake.notify_one();
            }
            match next {
                Next::Send(request) => return Some(request),
                Next::GiveUp(events) => self.give_up(events),
                Next::Wait(None) => self.wake.notified().await,
                // Either something comes, or time is up.
                Next::Wait(Some(until)) => drop(timeout_at(until, self.wake.notified()).await),
                Next::End => return None,
            }
        }
    }

    /// Makes one attempt at the request in `slot`, and leaves nothing there.
    async fn send(&self, slot: &mut Option<Request>, kept: &mut KeptAlive) {
        let Some(request) = slot.as_mut() else { return };
        self.release(&mut request.events, Waiting::is_void);
        let is_probe = request.is_probe;
        let sent = if request.events.is_empty() {
            None
        } else {
            let ids = request.events.iter().map(|event| event.told.id);
            let signed = self.signer.sign(body(&request.events).into(), ids);
            let timing = &self.post.timing;
            // A probe finds out soon that nobody is there; whoever is has their time to answer.
            let connect = if is_probe { timing.timeout.min(2 * timing.probe) } else { timing.timeout };
            Some(self.post.client.post(&self.webhook, &signed, kept, connect).await)
        };
        let Some(mut request) = slot.take() else { return };
        match sent {
            None => self.queue.lock().put_back(request),
            Some(Ok(())) => {
                self.recovers();
                let events = self.queue.lock().delivered(request, Instant::now());
                events.into_iter().filter_map(|event| event.receipt).for_each(Receipt::settle);
            }
            Some(Err(error)) => {
                self.fails(&error);
                let text: Arc<str> = error.to_string().into();
                for event in &mut request.events {
                    event.attempts += 1;
                    event.error = Some(Arc::clone(&text));
                }
                let failure = if error.is_without_answer() { Failure::Silence } else { Failure::Refusal };
                let random = getrandom::u32().unwrap_or_default();
                let back_off = |failures| back_off(failures, random, &self.post.timing);
                self.queue.lock().failed(request, failure, Instant::now(), back_off);
            }
        }
    }

    /// What is too old for another attempt.
    fn give_up(&self, mut events: Vec<Waiting>) {
        self.release(&mut events, Waiting::is_void);
        let requests = self.queue.lock().split(events);
        for events in requests {
            self.post.metrics.webhooks.expired.count();
            self.post.dead_letters.put(self.parcel(events, "it waited too long"));
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
