//! One receiver of an app: its queue, and the tasks that send from it. Its URL never changes; its settings may.

mod observed;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::ack::AckToken;
use super::client::{Client, IdleConnection, SendError};
use super::dead_letters::{DeadLetter, DeadLetterBatch, DeadLetterStore};
use super::event::EncodedEvent;
use super::queue::{Failure, Next, Pushed, Queue, QueueOptions, QueuedEvent, Request};
use super::signer::{Signer, body};
use super::{FLUSH_TIMEOUT, Timing, cancel_on_panic};
use crate::apps::{App, AppId, Webhook, WebhookUrl};
use crate::metrics::Metrics;
use crate::observers::Observers;

/// Concurrent requests to a receiver, each for another channel or user. With batching there is one, because a batch has
/// events of many channels.
const SENDERS: usize = 8;

/// The minimum time between two warnings about failing requests, or about a full queue.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

const UNSENT_REASON: &str = "the server shut down";

/// What all endpoints share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) dead_letters: DeadLetterStore,
    pub(super) metrics: Arc<Metrics>,
    pub(super) timing: Timing,
    pub(super) queue_bytes: usize,
    pub(super) observers: Observers,
    /// The sender tasks of all endpoints.
    pub(super) senders: TaskTracker,
    /// Cancelled when the deadline of the shutdown has passed.
    pub(super) abort: CancellationToken,
    /// Cancelled when a task panics.
    pub(super) ended: CancellationToken,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Endpoint {
    app: AppId,
    pub(super) url: WebhookUrl,
    /// Replaced as a whole. A request has the settings of its start.
    settings: ArcSwap<Settings>,
    queue: Mutex<Queue>,
    /// Wakes one sender, which wakes the next one if there is more to send.
    wake: Notify,
    failures: Mutex<FailureLog>,
    evictions: Mutex<EvictionLog>,
    pending_tokens: Mutex<PendingTokens>,
    shared: Arc<Shared>,
}

/// What requests are made of.
#[derive(Debug)]
struct Settings {
    webhook: Arc<Webhook>,
    signer: Signer,
}

impl Settings {
    fn new(app: &App, webhook: &Arc<Webhook>) -> Arc<Self> {
        Arc::new(Self { webhook: Arc::clone(webhook), signer: Signer::for_app(app) })
    }
}

/// Counts pending events: each holds a clone of one of these until it is resolved.
#[derive(Debug, Default)]
struct PendingTokens {
    before_mark: Arc<()>,
    /// For events enqueued after [`Endpoint::mark`].
    after_mark: Arc<()>,
}

/// Limits log lines about failing requests.
#[derive(Debug, Default)]
struct FailureLog {
    /// A failure was logged, and no recovery since.
    is_failing: bool,
    last_warning: Option<Instant>,
}

/// Limits log lines about evictions from a full queue.
#[derive(Debug, Default)]
struct EvictionLog {
    /// Evictions since the last warning.
    count: usize,
    last_warning: Option<Instant>,
}

fn queue_options(app: &App, shared: &Shared) -> QueueOptions {
    let window = Duration::from_millis(u64::from(app.webhook_batching_ms));
    QueueOptions {
        bytes_max: shared.queue_bytes,
        senders: if app.webhook_batching { 1 } else { SENDERS },
        batch_window: app.webhook_batching.then_some(window),
        delivery_timeout: shared.timing.delivery_timeout,
        probe_interval: shared.timing.probe_interval,
    }
}

/// The backoff after so many consecutive failures: exponential up to a maximum, with a jitter of ±25 % so that channels
/// and nodes do not retry in step.
fn backoff(failures: u32, random: u32, timing: &Timing) -> Duration {
    let doubled = timing.backoff.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let jitter = 0.75 + 0.5 * f64::from(random) / (f64::from(u32::MAX) + 1.0);
    doubled.min(timing.backoff_max).mul_f64(jitter)
}

impl Endpoint {
    /// Starts the endpoint for a webhook of `app`, with its senders.
    pub(super) fn start(app: &App, webhook: &Arc<Webhook>, shared: &Arc<Shared>) -> Arc<Self> {
        let endpoint = Arc::new(Self {
            app: app.id.clone(),
            url: webhook.url.clone(),
            settings: ArcSwap::new(Settings::new(app, webhook)),
            queue: Mutex::new(Queue::new(queue_options(app, shared))),
            wake: Notify::new(),
            failures: Mutex::default(),
            evictions: Mutex::default(),
            pending_tokens: Mutex::default(),
            shared: Arc::clone(shared),
        });
        endpoint.set_queue_options(app);
        endpoint
    }

    /// Replaces the settings by those of `webhook`, which has the same URL. They hold from the next request on.
    pub(super) fn change(self: &Arc<Self>, app: &App, webhook: &Arc<Webhook>) {
        self.settings.store(Settings::new(app, webhook));
        self.set_queue_options(app);
        // What was waiting for a batch may be due, and surplus senders end.
        self.wake.notify_one();
    }

    /// Replaces the options of the queue, and starts the senders that are missing.
    fn set_queue_options(self: &Arc<Self>, app: &App) {
        let missing = self.queue.lock().set_options(queue_options(app, &self.shared));
        for _ in 0..missing {
            let Shared { senders, abort, ended, .. } = &*self.shared;
            let sending = Arc::clone(self).run(abort.clone());
            senders.spawn(cancel_on_panic(sending, ended.clone()));
        }
    }

    /// Enqueues an event. Never waits. Events that are evicted from a full queue become dead letters, as do events that
    /// arrive after [`Endpoint::close`] and are no records.
    pub(super) fn enqueue(&self, encoded: EncodedEvent, ack_token: Option<AckToken>) {
        let metrics = &self.shared.metrics.webhooks;
        metrics.events.count();
        let token = Arc::clone(&self.pending_tokens.lock().after_mark);
        let event = QueuedEvent::new(encoded, ack_token, Instant::now()).counted_by(token);
        let pushed = self.queue.lock().push(event);
        match pushed {
            Ok(Pushed { mut evicted, cancelled }) => {
                self.wake.notify_one();
                metrics.cancelled.add(cancelled.len() as u64);
                // The first half first: a reader that has to read one of the two again must not read the second alone.
                cancelled.into_iter().filter_map(|event| event.ack_token).for_each(AckToken::ack);
                self.nack(&mut evicted, QueuedEvent::has_cancelled_token);
                if !evicted.is_empty() {
                    self.dead_letter_evicted(evicted);
                }
            }
            Err(event) => {
                if let Some(batch) = self.unsent_batch(vec![*event]) {
                    self.shared.dead_letters.append(batch);
                }
            }
        }
    }

    /// Writes a dead letter for each evicted event.
    fn dead_letter_evicted(&self, evicted: Vec<QueuedEvent>) {
        let mut evictions = self.evictions.lock();
        evictions.count += evicted.len();
        if evictions.last_warning.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
            let (count, queue_bytes) = (std::mem::take(&mut evictions.count), self.shared.queue_bytes);
            evictions.last_warning = Some(Instant::now());
            warn!(
                app = %self.app,
                url = %self.url,
                count,
                queue_bytes,
                "webhook queue is full (webhooks.queue_bytes), its oldest events become dead letters: \
                 the receiver is too slow or down"
            );
        }
        drop(evictions);
        for event in evicted {
            self.shared.metrics.webhooks.dropped.count();
            let reason = "the queue was full (webhooks.queue_bytes)";
            self.shared.dead_letters.append(self.dead_letter_batch(vec![event], reason));
        }
    }

    /// Accepts no further events. The senders end when the queue is empty.
    pub(super) fn close(&self) {
        self.queue.lock().close();
        self.wake.notify_one();
    }

    /// Starts a new count: later events are not in [`Endpoint::pending_before_mark`].
    pub(super) fn mark(&self) {
        let mut tokens = self.pending_tokens.lock();
        tokens.before_mark = std::mem::take(&mut tokens.after_mark);
    }

    /// Unresolved events that were enqueued before the mark.
    pub(super) fn pending_before_mark(&self) -> usize {
        Arc::strong_count(&self.pending_tokens.lock().before_mark) - 1
    }

    /// Unresolved events.
    pub(super) fn pending(&self) -> usize {
        let tokens = self.pending_tokens.lock();
        Arc::strong_count(&tokens.before_mark) + Arc::strong_count(&tokens.after_mark) - 2
    }

    /// Runs one sender until it is surplus, or the queue is closed and empty. When `abort` is cancelled, the remaining events become dead
    /// letters and the remaining records are nacked.
    async fn run(self: Arc<Self>, abort: CancellationToken) {
        // Outside of `sending`, so that a request in flight survives the abort.
        let mut in_flight = None;
        let sending = async {
            let mut idle = IdleConnection::default();
            while let Some(request) = self.next().await {
                in_flight = Some(request);
                self.send(&mut in_flight, &mut idle).await;
            }
        };
        if abort.run_until_cancelled(sending).await.is_some() {
            return;
        }
        if let Some(request) = in_flight {
            self.queue.lock().requeue(request);
        }
        let until = Instant::now() + FLUSH_TIMEOUT;
        while let Some(requests) = self.take_unsent() {
            for batch in requests.into_iter().filter_map(|events| self.unsent_batch(events)) {
                self.shared.dead_letters.append_until(batch, until).await;
            }
        }
    }

    /// Removes the remaining events of one channel or user, split into requests.
    fn take_unsent(&self) -> Option<Vec<Vec<QueuedEvent>>> {
        let mut queue = self.queue.lock();
        let events = queue.drain_subject()?;
        Some(queue.split_into_requests(events))
    }

    /// The dead letter for events that a shutdown leaves unsent. Records are nacked instead.
    fn unsent_batch(&self, mut events: Vec<QueuedEvent>) -> Option<DeadLetterBatch> {
        self.nack(&mut events, |event| event.ack_token.is_some());
        if events.is_empty() {
            return None;
        }
        self.shared.metrics.webhooks.unsent.count();
        Some(self.dead_letter_batch(events, UNSENT_REASON))
    }

    /// Drops the events that `is_nacked` selects, which nacks their tokens.
    fn nack(&self, events: &mut Vec<QueuedEvent>, is_nacked: impl Fn(&QueuedEvent) -> bool) {
        let count = events.len();
        events.retain(|event| !is_nacked(event));
        self.shared.metrics.webhooks.nacked.add((count - events.len()) as u64);
    }

    /// Waits for the next request; `None` when the sender has to end.
    async fn next(&self) -> Option<Request> {
        loop {
            let random = getrandom::u32().unwrap_or_default();
            let (next, is_empty) = {
                let mut queue = self.queue.lock();
                (queue.next(Instant::now(), random), queue.is_empty())
            };
            // Another sender may have something to send, or may end.
            if !matches!(next, Next::Wait(_)) && (!is_empty || matches!(next, Next::End)) {
                self.wake.notify_one();
            }
            match next {
                Next::Send(request) => return Some(request),
                Next::Expired(events) => self.expire(events),
                Next::Wait(None) => self.wake.notified().await,
                // Woken or not, the queue is asked again.
                Next::Wait(Some(until)) => drop(timeout_at(until, self.wake.notified()).await),
                Next::End => return None,
            }
        }
    }

    /// Makes one attempt at the request in `slot` and empties the slot.
    async fn send(&self, slot: &mut Option<Request>, idle: &mut IdleConnection) {
        let Some(request) = slot.as_mut() else { return };
        self.nack(&mut request.events, QueuedEvent::has_cancelled_token);
        let is_probe = request.is_probe;
        let sent = if request.events.is_empty() {
            None
        } else {
            let ids = request.events.iter().map(|event| event.encoded.id);
            let settings = self.settings.load_full();
            let signed = settings.signer.sign(body(&request.events).into(), ids);
            let timing = &self.shared.timing;
            // A probe shortens the time to connect, but not the time to respond.
            let connect_timeout = if is_probe {
                timing.request_timeout.min(2 * timing.probe_interval)
            } else {
                timing.request_timeout
            };
            let began = Instant::now();
            let posted = self.shared.client.post(&settings.webhook, &signed, idle, connect_timeout).await;
            self.observe_attempt(&signed.body, request.events.len(), began, &posted);
            Some(posted)
        };
        let Some(mut request) = slot.take() else { return };
        match sent {
            None => self.queue.lock().requeue(request),
            Some(Ok(())) => {
                self.report_delivery();
                let events = self.queue.lock().complete(request, Instant::now());
                events.into_iter().filter_map(|event| event.ack_token).for_each(AckToken::ack);
            }
            Some(Err(error)) => {
                self.report_failure(&error);
                let text: Arc<str> = error.to_string().into();
                for event in &mut request.events {
                    event.attempts += 1;
                    event.last_error = Some(Arc::clone(&text));
                }
                let failure =
                    if error.is_without_response() { Failure::NoResponse } else { Failure::Rejected };
                let random = getrandom::u32().unwrap_or_default();
                let backoff = |failures| backoff(failures, random, &self.shared.timing);
                self.queue.lock().fail(request, failure, Instant::now(), backoff);
            }
        }
    }

    /// Writes dead letters for events that are past the delivery timeout.
    fn expire(&self, mut events: Vec<QueuedEvent>) {
        self.nack(&mut events, QueuedEvent::has_cancelled_token);
        let requests = self.queue.lock().split_into_requests(events);
        for events in requests {
            self.shared.metrics.webhooks.expired.count();
            self.shared.dead_letters.append(self.dead_letter_batch(events, "delivery timeout"));
        }
    }

    fn report_failure(&self, error: &SendError) {
        let metrics = &self.shared.metrics.webhooks;
        metrics.failed_attempts.count();
        if matches!(error, SendError::DeniedAddress(..)) {
            metrics.denied_addresses.count();
        }
        let mut failures = self.failures.lock();
        if !failures.is_failing && failures.last_warning.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
            failures.last_warning = Some(Instant::now());
            failures.is_failing = true;
            warn!(app = %self.app, url = %self.url, "webhook request failed, retrying: {error}");
        }
    }

    fn report_delivery(&self) {
        self.shared.metrics.webhooks.delivered.count();
        let mut failures = self.failures.lock();
        if std::mem::take(&mut failures.is_failing) {
            info!(app = %self.app, url = %self.url, "webhooks are delivered again");
        }
    }

    /// The dead letter for undelivered events. `reason` is used if there was no attempt.
    fn dead_letter_batch(&self, events: Vec<QueuedEvent>, reason: &str) -> DeadLetterBatch {
        let first = events.first();
        let dead_letter = DeadLetter {
            app_id: self.app.to_string(),
            url: self.url.to_string(),
            time_ms: first.map_or(0, |first| first.encoded.time_ms),
            attempts: first.map_or(0, |first| first.attempts),
            error: first.and_then(|first| first.last_error.as_deref()).unwrap_or(reason).to_owned(),
            event_ids: events.iter().map(|event| event.encoded.id).collect(),
            body: String::from_utf8_lossy(&body(&events)).into_owned(),
        };
        self.observe_dead_letter(&dead_letter);
        DeadLetterBatch {
            dead_letter,
            ack_tokens: events.into_iter().filter_map(|event| event.ack_token).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
