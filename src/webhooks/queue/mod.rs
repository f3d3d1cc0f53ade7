//! The queue of one receiver: bounded, in order for each subject (a channel or user), and fair between subjects. Pure:
//! time and randomness are arguments.
//!
//! **Fairness** ([`schedule`]). A subject has one request in flight at a time. Ready subjects take turns: first between
//! the classes of events ([`Class`]), then between the subjects of a class. A client that creates many channels delays
//! only its own events. A subject belongs to the highest class among its queued events, because an event must not
//! overtake an older one of its channel.
//!
//! **Pairs** ([`pairs`]). If the first half of a pair, such as `channel_occupied`, is still queued when the second half
//! arrives, both are cancelled. So a receiver that falls behind gets fewer events, which still alternate.
//!
//! **Retries.** The subject of a rejected request waits for its backoff. Retries get one turn in four while other
//! subjects are ready, and at most half of the senders. So a rejected event delays only its own subject. [`Pace`] limits
//! the rate of requests to a failing receiver.
//!
//! **Bounds.** If the queue is full, the oldest event of the class with the most bytes is evicted. So the class that
//! fills the queue loses its own events first.

mod batch;
mod index;
mod pairs;
mod schedule;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ack::AckToken;
use super::event::{Class, EncodedEvent};
use super::pace::Pace;
use batch::BATCH_EVENTS;
use index::{State, SubjectState};

/// The cost of an event beside its JSON: its share of the indexes.
const OVERHEAD_BYTES: usize = 512;

/// After this many rejections the events of a batch are sent one by one.
const BATCH_ATTEMPTS: u32 = 2;

/// An event in the queue.
#[derive(Debug)]
pub(super) struct QueuedEvent {
    pub(super) encoded: EncodedEvent,
    /// Set if the event is a cluster record.
    pub(super) ack_token: Option<AckToken>,
    pub(super) queued_at: Instant,
    /// Attempts so far.
    pub(super) attempts: u32,
    /// The error of the last attempt.
    pub(super) last_error: Option<Arc<str>>,
    /// The position in the order of all events of this queue.
    sequence: u64,
    /// A rejected event is sent alone, so that it does not cause other events to be rejected.
    send_alone: bool,
    /// Held until the event is resolved; the endpoint counts the clones.
    _pending_token: Option<Arc<()>>,
}

impl QueuedEvent {
    pub(super) const fn new(encoded: EncodedEvent, ack_token: Option<AckToken>, queued_at: Instant) -> Self {
        Self {
            encoded,
            ack_token,
            queued_at,
            attempts: 0,
            last_error: None,
            sequence: 0,
            send_alone: false,
            _pending_token: None,
        }
    }

    /// Holds `token` until the event is resolved.
    pub(super) fn counted_by(self, token: Arc<()>) -> Self {
        Self { _pending_token: Some(token), ..self }
    }

    fn cost(&self) -> usize {
        self.encoded.json.len() + OVERHEAD_BYTES
    }

    fn key(&self) -> (u64, u64) {
        (self.encoded.subject, self.sequence)
    }

    /// Whether the event is a record that another node reads now.
    pub(super) fn has_cancelled_token(&self) -> bool {
        self.ack_token.as_ref().is_some_and(AckToken::is_cancelled)
    }
}

/// The events of one request.
#[derive(Debug)]
pub(super) struct Request {
    /// In the order in which they happened.
    pub(super) events: Vec<QueuedEvent>,
    /// Whether the receiver is unresponsive and the request probes it.
    pub(super) is_probe: bool,
    started_at: Instant,
    /// The subjects it holds, without duplicates. A subject may have no event left in it.
    subjects: Vec<u64>,
    is_retry: bool,
}

/// What a free sender has to do.
#[derive(Debug)]
pub(super) enum Next {
    Send(Request),
    /// Write dead letters for these events, which are past the delivery timeout, in the order in which they happened.
    Expired(Vec<QueuedEvent>),
    /// Wait until it is woken, or until then.
    Wait(Option<Instant>),
    /// End: the queue is closed and empty, or has more senders than its options allow.
    End,
}

/// What a push did to other events.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    /// Events that were evicted from the full queue.
    pub(super) evicted: Vec<QueuedEvent>,
    /// Cancelled events, in the order in which they happened; they may include the pushed one.
    pub(super) cancelled: Vec<QueuedEvent>,
}

/// How a request failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// There was no response.
    NoResponse,
    /// The status was not 2xx.
    Rejected,
}

/// Limits and intervals of a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueOptions {
    /// The maximum size of the queue.
    pub(super) bytes_max: usize,
    /// The number of concurrent requests.
    pub(super) senders: usize,
    /// How long a request waits for further events to batch; `None`: a request has one event.
    pub(super) batch_window: Option<Duration>,
    /// An event expires this long after it was enqueued.
    pub(super) delivery_timeout: Duration,
    /// The minimum time between two probes.
    pub(super) probe_interval: Duration,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Queue {
    options: QueueOptions,
    /// Senders that run.
    senders: usize,
    /// All queued events, by subject and sequence.
    events: BTreeMap<(u64, u64), QueuedEvent>,
    /// The subjects of the events of each class, by sequence.
    by_age: [BTreeMap<u64, u64>; Class::COUNT],
    /// The cost of the events of each class.
    bytes: [usize; Class::COUNT],
    /// Subjects that have queued events, a request in flight or a backoff.
    subjects: HashMap<u64, SubjectState>,
    /// Ready subjects of each class, by the sequence of their turn.
    turns: [BTreeMap<u64, u64>; Class::COUNT],
    /// The number of events of ready subjects.
    ready_events: usize,
    /// When the oldest event of the next batch was enqueued.
    batch_started_at: Option<Instant>,
    /// Subjects in backoff, by the end of it.
    retries: BTreeSet<(Instant, u64)>,
    /// The sequences of rising edges that were not sent yet, by subject and member.
    rising: HashMap<(u64, Option<u64>), u64>,
    /// The class of the next turn.
    next_class: usize,
    /// Turns since the last retry.
    turns_since_retry: u32,
    in_flight: usize,
    retries_in_flight: usize,
    pace: Pace,
    /// The last sequence that was given to an event or a turn.
    last_sequence: u64,
    is_closed: bool,
}

impl Queue {
    /// An empty queue, without senders.
    pub(super) fn new(options: QueueOptions) -> Self {
        Self {
            options,
            senders: 0,
            events: BTreeMap::new(),
            by_age: Default::default(),
            bytes: Default::default(),
            subjects: HashMap::new(),
            turns: Default::default(),
            ready_events: 0,
            batch_started_at: None,
            retries: BTreeSet::new(),
            rising: HashMap::new(),
            next_class: 0,
            turns_since_retry: 0,
            in_flight: 0,
            retries_in_flight: 0,
            pace: Pace::new(options.probe_interval),
            last_sequence: 0,
            is_closed: false,
        }
    }

    /// Replaces the options. Surplus senders end when they ask for the next request. Returns how many senders have to be
    /// started.
    pub(super) fn set_options(&mut self, options: QueueOptions) -> usize {
        self.options = options;
        let missing = options.senders.saturating_sub(self.senders);
        self.senders += missing;
        missing
    }

    /// Adds an event. Returns the events that are evicted, which is the event itself if it is too large for the queue,
    /// and the events that are cancelled.
    ///
    /// # Errors
    /// The queue is closed. Returns the event.
    pub(super) fn push(&mut self, mut event: QueuedEvent) -> Result<Pushed, Box<QueuedEvent>> {
        if self.is_closed {
            return Err(Box::new(event));
        }
        event.sequence = self.next_sequence();
        let mut pushed = Pushed { cancelled: self.cancel_pair(&event), ..Pushed::default() };
        if !pushed.cancelled.is_empty() {
            pushed.cancelled.push(event);
            return Ok(pushed);
        }
        if event.cost() > self.options.bytes_max {
            pushed.evicted.push(event);
            return Ok(pushed);
        }
        if let Some(edge) = event.encoded.edge.filter(|edge| edge.is_rising) {
            self.rising.insert((event.encoded.subject, edge.member), event.sequence);
        }
        let subject = event.encoded.subject;
        self.index(event);
        self.schedule(subject);
        while self.bytes.iter().sum::<usize>() > self.options.bytes_max {
            let largest = (0..Class::COUNT).max_by_key(|class| self.bytes[*class]).unwrap_or_default();
            let Some(oldest) = self.oldest_key(largest) else { break };
            pushed.evicted.push(self.remove_event(oldest));
        }
        Ok(pushed)
    }

    /// Accepts no further events, and batches do not wait for more.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Ends a request that was delivered. Returns its events.
    pub(super) fn complete(&mut self, request: Request, now: Instant) -> Vec<QueuedEvent> {
        for subject in &request.subjects {
            if let Some(subject) = self.subjects.get_mut(subject) {
                subject.failures = 0;
            }
        }
        let has_recovered = self.pace.delivered(now);
        let events = self.finish(request);
        if has_recovered {
            self.end_backoff(now);
        }
        events
    }

    /// Ends a request that failed. Its events are queued again at their positions, and wait for the `backoff` of the
    /// consecutive failures. A rejected batch does not tell which event is at fault, so after some attempts its events
    /// are sent one by one.
    pub(super) fn fail(
        &mut self,
        mut request: Request,
        failure: Failure,
        now: Instant,
        backoff: impl Fn(u32) -> Duration,
    ) {
        let (was_responding, is_batch) = (self.pace.is_responding(), request.events.len() > 1);
        let has_recovered = match failure {
            Failure::NoResponse => {
                self.pace.no_response(request.started_at);
                false
            }
            Failure::Rejected => self.pace.rejected(now),
        };
        // One event may be at fault, but usually it is the receiver.
        if failure == Failure::Rejected && was_responding {
            for event in &mut request.events {
                event.send_alone |= !is_batch || event.attempts >= BATCH_ATTEMPTS;
            }
        }
        let is_split = is_batch && request.events.iter().any(|event| event.send_alone);
        let subjects = std::mem::take(&mut request.subjects);
        for subject in &subjects {
            let entry = self.subjects.entry(*subject).or_default();
            let at = if is_split {
                now
            } else {
                entry.failures += 1;
                now + backoff(entry.failures)
            };
            self.set_state(*subject, State::Backoff(at));
        }
        self.requeue(request);
        if has_recovered {
            self.end_backoff(now);
        }
    }

    /// Queues the events of a request again without an attempt.
    pub(super) fn requeue(&mut self, mut request: Request) {
        for event in std::mem::take(&mut request.events) {
            self.index(event);
        }
        self.finish(request);
    }

    /// Ends a request: its subjects become ready, unless they are in backoff.
    fn finish(&mut self, request: Request) -> Vec<QueuedEvent> {
        self.in_flight -= 1;
        self.retries_in_flight -= usize::from(request.is_retry);
        for subject in request.subjects {
            if self.subjects.get(&subject).is_some_and(|subject| subject.state == State::InFlight) {
                self.set_state(subject, State::Idle);
                self.schedule(subject);
            }
        }
        request.events
    }

    /// Ends all backoffs, after the receiver has recovered.
    fn end_backoff(&mut self, now: Instant) {
        for (_, subject) in std::mem::take(&mut self.retries) {
            self.set_state(subject, State::Backoff(now));
        }
    }

    /// Removes all events, in order, of one subject that has no request in flight; `None` if there is no such subject.
    pub(super) fn drain_subject(&mut self) -> Option<Vec<QueuedEvent>> {
        let mut from = 0;
        let subject = loop {
            let ((subject, _), _) = self.events.range((from, 0)..).next()?;
            if self.subjects[subject].state != State::InFlight {
                break *subject;
            }
            from = subject.checked_add(1)?;
        };
        let keys: Vec<_> =
            self.events.range((subject, 0)..=(subject, u64::MAX)).map(|(key, _)| *key).collect();
        let events = keys.into_iter().map(|key| self.unindex(key)).collect();
        self.remove_subject(subject);
        Some(events)
    }

    /// Removes expired events, in order; at most as many as fit one request.
    fn remove_expired(&mut self, now: Instant) -> Vec<QueuedEvent> {
        let mut expired = Vec::new();
        for class in 0..Class::COUNT {
            while expired.len() < BATCH_EVENTS
                && let Some(key) = self.oldest_key(class)
                && self.events[&key].queued_at + self.options.delivery_timeout <= now
            {
                expired.push(self.remove_event(key));
            }
        }
        expired.sort_unstable_by_key(|event| event.sequence);
        expired
    }
}

#[cfg(test)]
mod tests;
