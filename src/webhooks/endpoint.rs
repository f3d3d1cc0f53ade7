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

use super::Timing;
use super::client::{Client, KeptAlive, SendError, Signed};
use super::dead_letters::{DeadLetter, DeadLetters};
use super::event::About;
use super::queue::{Queue, Waiting};
use crate::apps::{App, AppId, Webhook};
use crate::metrics::Metrics;
use crate::protocol::signature::SigningKey;

/// Requests in flight to a receiver, each of other channels. Batches tell of several channels, so those have one.
const LANES: usize = 8;

/// That a receiver fails is logged this often.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

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
    /// How long a request waits for more to tell of.
    batching: Option<Duration>,
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

    pub(super) fn sign(&self, body: Bytes) -> Signed {
        let signature = self.secret.sign_webhook(&body);
        let signature = HeaderValue::try_from(signature).expect("hex digits are visible ASCII");
        Signed { body, key: self.key.clone(), signature }
    }
}

/// Whether a receiver takes what it is sent, as the log has it.
#[derive(Debug, Default)]
struct Health {
    /// The operator has been told that it fails, and not yet that it does no more.
    told: bool,
    warned: Option<Instant>,
}

/// A request on its way.
#[derive(Debug)]
struct Outgoing {
    signed: Signed,
    time_ms: u64,
    since: Instant,
    attempts: u32,
    /// Why the last attempt failed.
    error: Option<SendError>,
}

/// A lane's connection, and its pace.
#[derive(Debug, Default)]
struct Lane {
    kept: KeptAlive,
    /// Attempts that failed since the last one that did not.
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

impl Endpoint {
    pub(super) fn new(app: &App, webhook: Webhook, post: &Arc<Post>) -> Self {
        let batching =
            app.webhook_batching.then(|| Duration::from_millis(u64::from(app.webhook_batching_ms)));
        let lanes = if batching.is_some() { 1 } else { LANES };
        Self {
            app: app.id.clone(),
            webhook,
            signer: Signer::of(app),
            batching,
            queue: Mutex::new(Queue::new(lanes, post.queue_bytes)),
            wake: (0..lanes).map(|_| Notify::new()).collect(),
            hasher: RandomState::new(),
            health: Mutex::default(),
            post: Arc::clone(post),
        }
    }

    /// Puts an event into the queue. Never waits: what falls out of a full queue is a dead letter.
    pub(super) fn put(&self, about: About<'_>, waiting: Waiting) {
        let name = match about {
            About::Channel(channel) => channel.as_str(),
            About::User(user) => user.as_str(),
        };
        let lane = self.hasher.hash_one(name) as usize % self.wake.len();
        self.post.metrics.webhooks.events.count();
        let fallen = self.queue.lock().push(lane, waiting);
        self.wake[lane].notify_one();
        for waiting in fallen {
            self.post.metrics.webhooks.dropped.count();
            let outgoing = self.outgoing(&[waiting]);
            let letter =
                outgoing.map(|outgoing| self.letter(outgoing, "the queue was full (webhooks.queue_bytes)"));
            letter.into_iter().for_each(|letter| self.post.dead_letters.put(letter));
        }
    }

    /// Nothing more will come: the lanes end when they have sent what is there.
    pub(super) fn close(&self) {
        self.queue.lock().closed = true;
        self.wake.iter().for_each(Notify::notify_one);
    }

    pub(super) const fn lanes(&self) -> usize {
        self.wake.len()
    }

    /// Sends what comes into a lane, until it is closed and empty. Once `cut`, what is left are dead letters.
    pub(super) async fn run(self: Arc<Self>, at: usize, cut: CancellationToken) {
        let mut lane = Lane::default();
        loop {
            let next = tokio::select! {
                biased;
                () = cut.cancelled() => break,
                next = self.next(at) => next,
            };
            let Some(mut outgoing) = next else { return };
            let delivered = tokio::select! {
                biased;
                () = cut.cancelled() => None,
                delivered = self.deliver(&mut outgoing, &mut lane) => Some(delivered),
            };
            let metrics = &self.post.metrics.webhooks;
            match delivered {
                Some(true) => metrics.delivered.count(),
                Some(false) => {
                    metrics.expired.count();
                    self.post.dead_letters.put(self.letter(outgoing, "it waited too long"));
                }
                None => {
                    self.leave(outgoing).await;
                    break;
                }
            }
        }
        loop {
            let taken = self.queue.lock().take(at, self.batching);
            let Some(outgoing) = self.outgoing(&taken) else { return };
            self.leave(outgoing).await;
        }
    }

    async fn leave(&self, outgoing: Outgoing) {
        self.post.metrics.webhooks.unsent.count();
        self.post.dead_letters.put_patiently(self.letter(outgoing, "the server shut down")).await;
    }

    /// The next request of a lane; `None` when it is closed and empty.
    async fn next(&self, lane: usize) -> Option<Outgoing> {
        loop {
            let (first, closed) = {
                let queue = self.queue.lock();
                (queue.first(lane), queue.closed)
            };
            let Some(first) = first else {
                if closed {
                    return None;
                }
                self.wake[lane].notified().await;
                continue;
            };
            if let Some(window) = self.batching {
                let is_enough = || {
                    let queue = self.queue.lock();
                    queue.closed || queue.has_batch(lane)
                };
                let gather = async {
                    while !is_enough() {
                        self.wake[lane].notified().await;
                    }
                };
                // Either there is enough, or time is up.
                let _ = timeout_at(first + window, gather).await;
            }
            // What was first may have fallen out meanwhile.
            let taken = self.queue.lock().take(lane, self.batching);
            if let Some(outgoing) = self.outgoing(&taken) {
                return Some(outgoing);
            }
        }
    }

    /// The request that tells of `events`.
    fn outgoing(&self, events: &[Waiting]) -> Option<Outgoing> {
        let first = events.first()?;
        let mut body = format!(r#"{{"time_ms":{},"events":["#, first.time_ms).into_bytes();
        for (at, event) in events.iter().enumerate() {
            if at > 0 {
                body.push(b',');
            }
            body.extend_from_slice(&event.json);
        }
        body.extend_from_slice(b"]}");
        let signed = self.signer.sign(body.into());
        Some(Outgoing { signed, time_ms: first.time_ms, since: first.since, attempts: 0, error: None })
    }

    /// Tries until it is delivered or too old; whether it was delivered.
    async fn deliver(&self, outgoing: &mut Outgoing, lane: &mut Lane) -> bool {
        let timing = &self.post.timing;
        let expires = outgoing.since + timing.retry;
        loop {
            if let Some(resume) = lane.resume.take() {
                sleep_until(resume.min(expires)).await;
            }
            if Instant::now() >= expires {
                return false;
            }
            outgoing.attempts += 1;
            match self.post.client.post(&self.webhook, &outgoing.signed, &mut lane.kept).await {
                Ok(()) => {
                    lane.failures = 0;
                    self.recovers();
                    return true;
                }
                Err(error) => {
                    lane.failures += 1;
                    let random = getrandom::u32().unwrap_or_default();
                    lane.resume = Some(Instant::now() + back_off(lane.failures, random, timing));
                    self.fails(&error);
                    outgoing.error = Some(error);
                }
            }
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
        let mut health = self.health.lock();
        if std::mem::take(&mut health.told) {
            info!(app = %self.app, url = %self.webhook.url, "webhooks are delivered again");
        }
    }

    /// What is kept of a request that is given up; `why`, unless an attempt says more.
    fn letter(&self, outgoing: Outgoing, why: &str) -> DeadLetter {
        DeadLetter {
            app_id: self.app.to_string(),
            url: self.webhook.url.to_string(),
            time_ms: outgoing.time_ms,
            attempts: outgoing.attempts,
            error: outgoing.error.map_or_else(|| why.to_owned(), |error| error.to_string()),
            body: String::from_utf8_lossy(&outgoing.signed.body).into_owned(),
        }
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
