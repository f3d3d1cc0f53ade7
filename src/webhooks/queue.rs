//! What waits for one receiver: bounded, in order for each subject (a channel or user), and fair between them. Pure: time
//! and randomness are arguments.
//!
//! **Turns.** A subject has one request in flight at a time. Those that wait take turns: first between the classes of
//! events ([`Class`]), then between the subjects of a class. So whoever makes many channels waits behind their own, and not
//! the members of another channel behind them. A subject is of the best class that it has an event of, because an event
//! cannot overtake what came before it on its channel.
//!
//! **Pairs.** Where the first half of a pair, such as `channel_occupied`, still waits when the second comes, both are
//! cancelled. So a receiver that falls behind is told less, and what it is told stays true: nobody is gone who had not
//! come, and nobody comes twice.
//!
//! **Retries.** The subject of a request that was refused waits for its backoff to pass. Retries get one turn in
//! [`RETRY_TURNS`] where others wait, and half of the senders at most, so that what a receiver refuses holds up its own
//! subject only. How fast the receiver is asked at all is a matter of its [`Pace`].
//!
//! **Bounds.** When all this is too large, the oldest event of the class that has the most bytes falls out: so whoever
//! fills the queue loses their own first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::event::{Class, Edge, Told};
use super::pace::Pace;
use super::receipt::Receipt;

/// What an event costs beside its text, with its share of the indexes.
const OVERHEAD_BYTES: usize = 512;

/// Most events of one request.
const BATCH_EVENTS: usize = 100;

/// A request does not grow beyond this, unless one event does.
const BATCH_BYTES: usize = 1024 * 1024;

/// The events of a batch that was refused so often are sent one by one.
const BATCH_ATTEMPTS: u32 = 2;

/// One turn of so many is for retries, where both they and others wait.
const RETRY_TURNS: u32 = 4;

/// An event that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) told: Told,
    /// If it is a record.
    pub(super) receipt: Option<Receipt>,
    /// Since when it waits.
    pub(super) since: Instant,
    /// How often it was tried.
    pub(super) attempts: u32,
    /// Why the last attempt failed.
    pub(super) error: Option<Arc<str>>,
    /// Its place in the order of all events of this queue.
    number: u64,
    /// It was refused, and must not have others refused with it.
    is_alone: bool,
    /// Its share of what its receiver has to do.
    _share: Option<Arc<()>>,
}

impl Waiting {
    pub(super) const fn new(told: Told, receipt: Option<Receipt>, since: Instant) -> Self {
        Self { told, receipt, since, attempts: 0, error: None, number: 0, is_alone: false, _share: None }
    }

    /// The same, with a share that is held as long as it has not ended.
    pub(super) fn sharing(self, share: Arc<()>) -> Self {
        Self { _share: Some(share), ..self }
    }

    fn cost(&self) -> usize {
        self.told.json.len() + OVERHEAD_BYTES
    }

    fn key(&self) -> (u64, u64) {
        (self.told.about, self.number)
    }

    /// Whether it is somebody else's to tell by now.
    pub(super) fn is_void(&self) -> bool {
        self.receipt.as_ref().is_some_and(Receipt::is_void)
    }
}

/// Events that are sent in one request.
#[derive(Debug)]
pub(super) struct Request {
    /// In the order in which they happened.
    pub(super) events: Vec<Waiting>,
    /// Whether it is to find out if the receiver is back.
    pub(super) is_probe: bool,
    started: Instant,
    /// What it is about, each once, even if there is no event left of it.
    subjects: Vec<u64>,
    is_retry: bool,
}

/// What a sender does now.
#[derive(Debug)]
pub(super) enum Next {
    /// It sends this.
    Send(Request),
    /// It gives these up, which are too old, in the order in which they happened.
    GiveUp(Vec<Waiting>),
    /// It waits until something comes; until then at the latest, if there is something.
    Wait(Option<Instant>),
    /// Nothing waits, and nothing will come.
    End,
}

/// What became of an event that was put into the queue, and of others because of it.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    /// What fell out of a full queue.
    pub(super) fallen: Vec<Waiting>,
    /// What need not be told any more, the event itself perhaps, in the order in which they happened.
    pub(super) cancelled: Vec<Waiting>,
}

/// How a request failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Failure {
    /// There was no answer.
    Silence,
    /// The answer was not 2xx.
    Refusal,
}

/// How a queue goes about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// What may wait.
    pub(super) bytes_max: usize,
    /// Requests that are in flight at a time.
    pub(super) senders: usize,
    /// How long a request waits for more to tell of; `None`: it tells of one event.
    pub(super) window: Option<Duration>,
    /// An event is given up so long after it came.
    pub(super) retry: Duration,
    /// The shortest time between two probes.
    pub(super) probe: Duration,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Queue {
    rules: Rules,
    /// All events, by what they are about and then in their order.
    events: BTreeMap<(u64, u64), Waiting>,
    /// The same by class, in their order: what each is about.
    ages: [BTreeMap<u64, u64>; Class::COUNT],
    /// What those of a class cost.
    bytes: [usize; Class::COUNT],
    /// What has events here or in flight, or may not be tried again yet.
    subjects: HashMap<u64, Subject>,
    /// Subjects whose turn comes, by class and then by ticket.
    turns: [BTreeMap<u64, u64>; Class::COUNT],
    /// How many events those have.
    ready: usize,
    /// Since when there have been any.
    gathering: Option<Instant>,
    /// Subjects that wait for another attempt, by when that may be.
    retries: BTreeSet<(Instant, u64)>,
    /// The first halves of pairs that nobody was told of, by subject and then by who came: their numbers.
    gains: HashMap<(u64, Option<u64>), u64>,
    /// The class that has the next turn.
    class: usize,
    /// Turns since the last one of a retry.
    since_retry: u32,
    in_flight: usize,
    retries_in_flight: usize,
    pace: Pace,
    /// The last number or ticket that was given.
    last: u64,
    is_closed: bool,
}

/// What events are about: a channel or a user.
#[derive(Debug, Default)]
struct Subject {
    /// How many events wait, by class.
    waiting: [usize; Class::COUNT],
    /// Attempts that failed since the last one that did not.
    failures: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    /// In no index.
    #[default]
    Loose,
    /// It has a turn.
    Ready { class: usize, ticket: u64 },
    /// It waits for another attempt.
    Retry(Instant),
    /// There is a request about it.
    InFlight,
}

impl Subject {
    fn count(&self) -> usize {
        self.waiting.iter().sum()
    }

    /// The best class that it has an event of.
    fn class(&self) -> Option<usize> {
        self.waiting.iter().position(|count| *count > 0)
    }
}

impl Queue {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            events: BTreeMap::new(),
            ages: Default::default(),
            bytes: Default::default(),
            subjects: HashMap::new(),
            turns: Default::default(),
            ready: 0,
            gathering: None,
            retries: BTreeSet::new(),
            gains: HashMap::new(),
            class: 0,
            since_retry: 0,
            in_flight: 0,
            retries_in_flight: 0,
            pace: Pace::new(rules.probe),
            last: 0,
            is_closed: false,
        }
    }

    /// Puts an event into the queue. Answers what falls out, which is the event if it is too large by itself, and what it
    /// cancels.
    ///
    /// # Errors
    /// The queue is closed: the event comes back.
    pub(super) fn push(&mut self, mut event: Waiting) -> Result<Pushed, Box<Waiting>> {
        if self.is_closed {
            return Err(Box::new(event));
        }
        event.number = self.next_number();
        let mut pushed = Pushed { cancelled: self.cancelled_by(&event), ..Pushed::default() };
        if !pushed.cancelled.is_empty() {
            pushed.cancelled.push(event);
            return Ok(pushed);
        }
        if event.cost() > self.rules.bytes_max {
            pushed.fallen.push(event);
            return Ok(pushed);
        }
        if let Some(edge) = event.told.edge.filter(|edge| edge.is_gain) {
            self.gains.insert((event.told.about, edge.who), event.number);
        }
        let about = event.told.about;
        self.insert(event);
        self.make_ready(about);
        while self.bytes.iter().sum::<usize>() > self.rules.bytes_max {
            let largest = (0..Class::COUNT).max_by_key(|class| self.bytes[*class]).unwrap_or_default();
            let Some(oldest) = self.oldest(largest) else { break };
            pushed.fallen.push(self.drop_event(oldest));
        }
        Ok(pushed)
    }

    /// Takes out what a second half of a pair makes needless: the first half, if nobody was told of it. With a channel,
    /// all goes that was about its subscribers meanwhile; what clients have sent stays.
    fn cancelled_by(&mut self, event: &Waiting) -> Vec<Waiting> {
        let Some(edge) = event.told.edge.filter(|edge| !edge.is_gain) else { return Vec::new() };
        let about = event.told.about;
        let first = self.gains.get(&(about, edge.who)).map(|number| (about, *number));
        let Some(first) = first.filter(|key| !event.is_void() && !self.events[key].is_void()) else {
            return Vec::new();
        };
        let since_first = self.events.range(first..=(about, u64::MAX));
        let is_over = |waiting: &Waiting| edge.who.is_none() && waiting.told.class != Class::ClientEvents;
        let keys: Vec<_> = since_first
            .filter(|(key, waiting)| **key == first || is_over(waiting))
            .map(|(key, _)| *key)
            .collect();
        keys.into_iter().map(|key| self.drop_event(key)).collect()
    }

    /// Nothing more will come, and no request waits for more.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// What a sender does that is free. `random` is the jitter, of all its values.
    pub(super) fn next(&mut self, now: Instant, random: u32) -> Next {
        let old = self.take_old(now);
        if !old.is_empty() {
            return Next::GiveUp(old);
        }
        if self.events.is_empty() && self.is_closed {
            return Next::End;
        }
        let until = match self.pace.may_start(now, self.in_flight) {
            Err(until) => until,
            Ok(()) => {
                let (ready_at, retry_at) = (self.ready_at(), self.retry_at(now));
                let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
                match (is_due(ready_at), is_due(retry_at)) {
                    (true, true) if self.since_retry + 1 >= RETRY_TURNS => {
                        return self.send_retry(now, random);
                    }
                    (true, _) => return self.send_ready(now, random),
                    (false, true) => return self.send_retry(now, random),
                    (false, false) => ready_at.into_iter().chain(retry_at).min(),
                }
            }
        };
        let oldest = (0..Class::COUNT).filter_map(|class| self.oldest(class));
        let gives_up = oldest.map(|key| self.events[&key].since + self.rules.retry).min();
        Next::Wait(until.into_iter().chain(gives_up).min())
    }

    /// When the next request of those that have a turn may start.
    fn ready_at(&self) -> Option<Instant> {
        let since = self.gathering?;
        // Who waits for more that never comes would wait for nothing.
        let is_enough = self.is_closed || self.ready >= BATCH_EVENTS || !self.pace.is_answering();
        Some(since + self.rules.window.filter(|_| !is_enough).unwrap_or_default())
    }

    /// When the next retry may start.
    fn retry_at(&mut self, now: Instant) -> Option<Instant> {
        // Whose events were given up meanwhile only waited so as not to go on faster.
        while let Some((at, about)) = self.retries.first().copied()
            && at <= now
            && self.subjects[&about].count() == 0
        {
            self.forget(about);
        }
        let is_reserved = self.retries_in_flight >= self.rules.senders.div_ceil(2);
        let (at, _) = self.retries.first().filter(|_| !is_reserved)?;
        Some(self.pace.probes_from().map_or(*at, |probe| probe.min(*at)))
    }

    fn send_ready(&mut self, now: Instant, random: u32) -> Next {
        let (mut events, mut subjects) = (Vec::new(), Vec::new());
        let joins = self.joins();
        while let Some((class, about)) = self.next_turn() {
            if !may_join(&events, &self.events[&self.first(about)], joins) {
                break;
            }
            self.class = (class + 1) % Class::COUNT;
            events.push(self.take_first(about));
            self.place(about, State::InFlight);
            subjects.push(about);
            if !joins {
                break;
            }
            // More of it may come into the same request, when the others have had their turn.
            if self.subjects[&about].count() > 0 {
                self.place(about, State::Loose);
                self.make_ready(about);
            }
        }
        self.since_retry = self.since_retry.saturating_add(1);
        self.send(events, subjects, false, (now, random))
    }

    fn send_retry(&mut self, now: Instant, random: u32) -> Next {
        let (mut events, mut subjects) = (Vec::new(), Vec::new());
        let joins = self.joins();
        // Where none is due, the first is a probe.
        while let Some((at, about)) = self.retries.first().copied()
            && (events.is_empty() || at <= now)
        {
            let has_taken = events.len();
            while self.subjects[&about].count() > 0
                && may_join(&events, &self.events[&self.first(about)], joins)
            {
                events.push(self.take_first(about));
            }
            if events.len() == has_taken {
                break;
            }
            self.place(about, State::InFlight);
            subjects.push(about);
            if !joins {
                break;
            }
        }
        self.since_retry = 0;
        self.send(events, subjects, true, (now, random))
    }

    fn send(
        &mut self,
        mut events: Vec<Waiting>,
        mut subjects: Vec<u64>,
        is_retry: bool,
        (now, random): (Instant, u32),
    ) -> Next {
        events.sort_unstable_by_key(|event| event.number);
        subjects.sort_unstable();
        subjects.dedup();
        for about in &subjects {
            self.place(*about, State::InFlight);
        }
        self.in_flight += 1;
        self.retries_in_flight += usize::from(is_retry);
        let is_probe = !self.pace.is_answering();
        self.pace.started(now, random);
        Next::Send(Request { events, is_probe, started: now, subjects, is_retry })
    }

    /// A request was delivered. Answers its events.
    pub(super) fn delivered(&mut self, request: Request, now: Instant) -> Vec<Waiting> {
        for about in &request.subjects {
            if let Some(subject) = self.subjects.get_mut(about) {
                subject.failures = 0;
            }
        }
        let is_back = self.pace.delivered(now);
        let events = self.ended(request);
        if is_back {
            self.resume(now);
        }
        events
    }

    /// A request failed: its events wait again, in their places, for `backoff` of the failures in a row. Which one of
    /// several was meant is not known, so in the end each is tried by itself.
    pub(super) fn failed(
        &mut self,
        mut request: Request,
        failure: Failure,
        now: Instant,
        backoff: impl Fn(u32) -> Duration,
    ) {
        let (was_answering, is_batch) = (self.pace.is_answering(), request.events.len() > 1);
        let is_back = match failure {
            Failure::Silence => {
                self.pace.unanswered(request.started);
                false
            }
            Failure::Refusal => self.pace.refused(now),
        };
        // One of a batch may be to blame, but most often it is the receiver.
        if failure == Failure::Refusal && was_answering {
            for event in &mut request.events {
                event.is_alone |= !is_batch || event.attempts >= BATCH_ATTEMPTS;
            }
        }
        let is_split = is_batch && request.events.iter().any(|event| event.is_alone);
        let subjects = std::mem::take(&mut request.subjects);
        for about in &subjects {
            let subject = self.subjects.entry(*about).or_default();
            let at = if is_split {
                now
            } else {
                subject.failures += 1;
                now + backoff(subject.failures)
            };
            self.place(*about, State::Retry(at));
        }
        self.put_back(request);
        if is_back {
            self.resume(now);
        }
    }

    /// Puts what a request has not told back into its place.
    pub(super) fn put_back(&mut self, mut request: Request) {
        for event in std::mem::take(&mut request.events) {
            self.insert(event);
        }
        self.ended(request);
    }

    /// A request has ended: what it was about has its turn again, unless it waits for another attempt.
    fn ended(&mut self, request: Request) -> Vec<Waiting> {
        self.in_flight -= 1;
        self.retries_in_flight -= usize::from(request.is_retry);
        for about in request.subjects {
            if self.subjects.get(&about).is_some_and(|subject| subject.state == State::InFlight) {
                self.place(about, State::Loose);
                self.make_ready(about);
            }
        }
        request.events
    }

    /// The receiver is back: nothing waits any longer for another attempt than for its turn.
    fn resume(&mut self, now: Instant) {
        for (_, about) in std::mem::take(&mut self.retries) {
            self.place(about, State::Retry(now));
        }
    }

    /// All that waits of one subject that has no request in flight, in order, whatever it waits for; nothing when there is
    /// no such.
    pub(super) fn take_subject(&mut self) -> Option<Vec<Waiting>> {
        let mut from = 0;
        let about = loop {
            let ((about, _), _) = self.events.range((from, 0)..).next()?;
            if self.subjects[about].state != State::InFlight {
                break *about;
            }
            from = about.checked_add(1)?;
        };
        let keys: Vec<_> = self.events.range((about, 0)..=(about, u64::MAX)).map(|(key, _)| *key).collect();
        let events = keys.into_iter().map(|key| self.remove(key)).collect();
        self.forget(about);
        Some(events)
    }

    /// Takes out what is too old for another attempt: of as many as a request may have, in their order.
    fn take_old(&mut self, now: Instant) -> Vec<Waiting> {
        let mut old = Vec::new();
        for class in 0..Class::COUNT {
            while old.len() < BATCH_EVENTS
                && let Some(key) = self.oldest(class)
                && self.events[&key].since + self.rules.retry <= now
            {
                old.push(self.drop_event(key));
            }
        }
        old.sort_unstable_by_key(|event| event.number);
        old
    }

    /// Splits what is given up as it would have been sent.
    pub(super) fn split(&self, events: Vec<Waiting>) -> Vec<Vec<Waiting>> {
        let mut requests: Vec<Vec<Waiting>> = Vec::new();
        for event in events {
            match requests.last_mut() {
                Some(last) if may_join(last, &event, self.rules.window.is_some()) => last.push(event),
                Some(_) | None => requests.push(vec![event]),
            }
        }
        requests
    }

    /// Whether a request may tell of several events. A probe is as small as it can be.
    fn joins(&self) -> bool {
        self.rules.window.is_some() && self.pace.is_answering()
    }

    /// Whose turn it is: a class, and a subject of it.
    fn next_turn(&self) -> Option<(usize, u64)> {
        let classes = (0..Class::COUNT).map(|after| (self.class + after) % Class::COUNT);
        classes.filter_map(|class| Some((class, *self.turns[class].first_key_value()?.1))).next()
    }

    fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The oldest event of a class.
    fn oldest(&self, class: usize) -> Option<(u64, u64)> {
        self.ages[class].first_key_value().map(|(number, about)| (*about, *number))
    }

    /// The first event of a subject that has one.
    fn first(&self, about: u64) -> (u64, u64) {
        let first = self.events.range((about, 0)..=(about, u64::MAX)).next();
        first.map(|(key, _)| *key).expect("a subject that has a turn has an event")
    }

    fn take_first(&mut self, about: u64) -> Waiting {
        self.remove(self.first(about))
    }

    /// Takes an event out, and its subject out of the turns if that was the last.
    fn drop_event(&mut self, key: (u64, u64)) -> Waiting {
        let event = self.remove(key);
        self.make_ready(key.0);
        event
    }

    /// Puts an event into all indexes but those of subjects.
    fn insert(&mut self, event: Waiting) {
        let (key, class) = (event.key(), event.told.class as usize);
        self.bytes[class] += event.cost();
        self.ages[class].insert(key.1, key.0);
        let subject = self.subjects.entry(key.0).or_default();
        subject.waiting[class] += 1;
        if matches!(subject.state, State::Ready { .. }) {
            self.ready += 1;
        }
        self.events.insert(key, event);
    }

    /// Takes an event out of all indexes but those of subjects.
    fn remove(&mut self, key: (u64, u64)) -> Waiting {
        let event = self.events.remove(&key).expect("what is in an index is there");
        let class = event.told.class as usize;
        self.bytes[class] -= event.cost();
        self.ages[class].remove(&key.1);
        let subject = self.subjects.get_mut(&key.0).expect("an event has a subject");
        subject.waiting[class] -= 1;
        if matches!(subject.state, State::Ready { .. }) {
            self.ready -= 1;
        }
        if let Some(Edge { who, is_gain: true }) = event.told.edge
            && self.gains.get(&(key.0, who)) == Some(&key.1)
        {
            self.gains.remove(&(key.0, who));
            if self.gains.is_empty() {
                self.gains = HashMap::new();
            }
        }
        event
    }

    /// Gives a subject its turn, behind the others of its class, unless it waits for something else; forgets it if it has
    /// nothing. Where its class has changed, so does its turn.
    fn make_ready(&mut self, about: u64) {
        let subject = &self.subjects[&about];
        let (before, now) = (subject.state, subject.class());
        match (before, now) {
            (State::Retry(_) | State::InFlight, _) => {}
            (State::Ready { .. } | State::Loose, None) => self.forget(about),
            (State::Ready { class, .. }, Some(now)) if class == now => {}
            (State::Ready { .. } | State::Loose, Some(class)) => {
                let ticket = self.next_number();
                self.place(about, State::Ready { class, ticket });
                let since = self.events[&self.first(about)].since;
                self.gathering = Some(self.gathering.map_or(since, |before| before.min(since)));
            }
        }
    }

    /// Moves a subject from one index to another.
    fn place(&mut self, about: u64, state: State) {
        let subject = self.subjects.entry(about).or_default();
        let count = subject.count();
        match std::mem::replace(&mut subject.state, state) {
            State::Ready { class, ticket } => {
                self.turns[class].remove(&ticket);
                self.ready -= count;
            }
            State::Retry(at) => {
                self.retries.remove(&(at, about));
            }
            State::Loose | State::InFlight => {}
        }
        match state {
            State::Ready { class, ticket } => {
                self.turns[class].insert(ticket, about);
                self.ready += count;
            }
            State::Retry(at) => {
                self.retries.insert((at, about));
            }
            State::Loose | State::InFlight => {}
        }
        if self.turns.iter().all(BTreeMap::is_empty) {
            self.gathering = None;
        }
    }

    /// Forgets a subject that has nothing.
    fn forget(&mut self, about: u64) {
        self.place(about, State::Loose);
        self.subjects.remove(&about);
        if self.subjects.is_empty() {
            // It gives its room back with the last.
            self.subjects = HashMap::new();
        }
    }
}

/// Whether a request that tells of `taken` tells of `next` as well.
fn may_join(taken: &[Waiting], next: &Waiting, joins: bool) -> bool {
    let all = || taken.iter().chain([next]);
    taken.is_empty()
        || joins
            && taken.len() < BATCH_EVENTS
            && !all().any(|event| event.is_alone)
            && all().map(|event| event.told.json.len() + 1).sum::<usize>() <= BATCH_BYTES
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use bytes::Bytes;
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::super::event::EventId;
    use super::super::receipt::End;
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);
    const WINDOW: Duration = Duration::from_millis(50);
    const RETRY: Duration = Duration::from_secs(300);

    /// An event as a word: `+a` (channel a is occupied), `-a`, `+a/7` (its member 7 has come), `-a/7`, `!a1` (a client's
    /// event), or any other about its first letter. Channels in capitals are private. It is about the letter that it has
    /// first.
    fn told(word: &str) -> Told {
        let sign = word.chars().next().unwrap();
        let name = word.trim_start_matches(['+', '-', '!']);
        let who = name.split_once('/').map(|(_, id)| u64::from(id.as_bytes()[0]));
        let edge = matches!(sign, '+' | '-').then_some(Edge { who, is_gain: sign == '+' });
        let class = match (sign, who) {
            (_, Some(_)) => Class::Users,
            ('!', _) => Class::ClientEvents,
            _ if name.starts_with(char::is_uppercase) => Class::Authorized,
            _ => Class::Public,
        };
        let about = u64::from(name.chars().next().unwrap());
        let json = Bytes::copy_from_slice(word.as_bytes());
        Told { json, time_ms: 0, id: EventId::new(0, 0), about, class, edge }
    }

    fn texts(events: &[Waiting]) -> String {
        let words = events.iter().map(|event| std::str::from_utf8(&event.told.json).unwrap());
        words.collect::<Vec<_>>().join(" ")
    }

    /// A queue, and the clock it goes by.
    struct Player {
        queue: Queue,
        now: Instant,
    }

    impl Player {
        fn new(senders: usize, window: Option<Duration>) -> Self {
            let rules = Rules { bytes_max: 10_000_000, senders, window, retry: RETRY, probe: SECOND };
            Self { queue: Queue::new(rules), now: Instant::now() }
        }

        /// Room for so many events of one letter.
        fn with_room_for(count: usize) -> Self {
            let mut player = Self::new(1, None);
            player.queue.rules.bytes_max = count * (1 + OVERHEAD_BYTES);
            player
        }

        /// Puts in words; what falls out, and what is cancelled.
        fn push(&mut self, words: &str) -> (String, String) {
            let (mut fallen, mut cancelled) = (Vec::new(), Vec::new());
            for word in words.split_whitespace() {
                let pushed = self.queue.push(Waiting::new(told(word), None, self.now)).unwrap();
                fallen.extend(pushed.fallen);
                cancelled.extend(pushed.cancelled);
            }
            (texts(&fallen), texts(&cancelled))
        }

        fn next(&mut self) -> Next {
            self.queue.next(self.now, 0)
        }

        /// A sender takes the next request, which must be there.
        fn takes(&mut self) -> Request {
            match self.next() {
                Next::Send(request) => request,
                other @ (Next::GiveUp(_) | Next::Wait(_) | Next::End) => panic!("{other:?}"),
            }
        }

        fn delivers(&mut self, request: Request) {
            self.queue.delivered(request, self.now);
        }

        /// The receiver refuses it, or does not answer.
        fn fails(&mut self, mut request: Request, failure: Failure) {
            request.events.iter_mut().for_each(|event| event.attempts += 1);
            self.queue.failed(request, failure, self.now, |failures| failures * SECOND);
        }

        /// The next requests are these, and delivered.
        fn delivers_all<'t>(&mut self, expected: impl IntoIterator<Item = &'t str>) {
            for expected in expected {
                let request = self.takes();
                assert_eq!(texts(&request.events), expected);
                self.delivers(request);
            }
        }

        /// The next request is this one, and refused.
        fn refuses(&mut self, expected: &str) {
            let request = self.takes();
            assert_eq!(texts(&request.events), expected);
            self.fails(request, Failure::Refusal);
        }

        /// How long a sender waits.
        fn waits(&mut self) -> Option<Duration> {
            match self.next() {
                Next::Wait(until) => until.map(|until| until - self.now),
                other @ (Next::Send(_) | Next::GiveUp(_) | Next::End) => panic!("{other:?}"),
            }
        }

        /// Nothing is left, in any index.
        fn is_over(&mut self) {
            assert_eq!(self.waits(), None);
            let Queue { events, ages, bytes, subjects, turns, ready, retries, gains, .. } = &self.queue;
            assert!(events.is_empty() && subjects.is_empty() && retries.is_empty() && gains.is_empty());
            assert!(ages.iter().chain(turns).all(BTreeMap::is_empty));
            assert_eq!((bytes.iter().sum::<usize>(), *ready, self.queue.in_flight), (0, 0, 0));
        }
    }

    #[tokio::test]
    async fn one_request_tells_of_one_event_unless_it_may_tell_of_more() {
        for (window, expected) in [(None, &["a", "b"][..]), (Some(WINDOW), &["a b"])] {
            let mut player = Player::new(1, window);
            player.push("a b");
            player.now += WINDOW;
            player.delivers_all(expected.iter().copied());
            player.is_over();
        }
    }

    #[tokio::test]
    async fn the_window_is_how_long_a_request_waits_and_not_what_it_tells_of() {
        let mut player = Player::new(1, Some(WINDOW));
        player.push("a");
        assert_eq!(player.waits(), Some(WINDOW));
        player.now += 49 * MS;
        player.push("b");
        assert_eq!(player.waits(), Some(MS));
        // The request before took its time; what came meanwhile is of many windows.
        for text in ["c", "d", "e"] {
            player.now += SECOND;
            player.push(text);
        }
        player.delivers_all(["a b c d e"]);
        // A hundred do not wait, nor does the last.
        player.push(&"x ".repeat(250));
        for _ in 0..2 {
            let request = player.takes();
            assert_eq!(request.events.len(), 100);
            player.delivers(request);
        }
        assert_eq!(player.waits(), Some(WINDOW));
        player.queue.close();
        let request = player.takes();
        assert_eq!(request.events.len(), 50);
        player.delivers(request);
        assert!(matches!(player.next(), Next::End));
    }

    #[tokio::test]
    async fn a_request_has_a_mebibyte_at_most() {
        let mut player = Player::new(1, Some(Duration::ZERO));
        let [large, huge] = [400, 2048].map(|kib| "x".repeat(kib * 1024));
        player.push(&format!("{large} {large} {large} {huge}"));
        for expected in [2, 1, 1] {
            let request = player.takes();
            assert_eq!(request.events.len(), expected, "what is too large goes alone");
            player.delivers(request);
        }
    }

    #[tokio::test]
    async fn a_batch_tells_what_happened_in_its_order_whoever_has_a_turn_first() {
        let mut player = Player::new(1, Some(WINDOW));
        player.push("+a +B +B/7 !a1 b +B/8");
        player.now += WINDOW;
        player.delivers_all(["+a +B +B/7 !a1 b +B/8"]);
        player.is_over();
    }

    #[tokio::test]
    async fn a_subject_has_one_request_in_flight_and_the_others_go_by_turns() {
        let mut player = Player::new(8, None);
        player.push("a1 a2 a3 b1 c1 b2");
        let [a1, b1, c1] = [player.takes(), player.takes(), player.takes()];
        assert_eq!([&a1, &b1, &c1].map(|request| texts(&request.events)), ["a1", "b1", "c1"]);
        assert_eq!(player.waits(), Some(RETRY), "until they are given up");
        player.delivers(b1);
        player.delivers(a1);
        player.delivers(c1);
        player.delivers_all(["b2", "a2", "a3"]);
        player.is_over();
    }

    #[tokio::test]
    async fn classes_take_turns() {
        let mut player = Player::new(1, None);
        player.push("+a +b +c +d +e +X +Y !k1 !l1 +R +R/7");
        // The members of R come in the turn of members, although the channel has to be told of first.
        player.delivers_all(["+R", "!k1", "+X", "+a", "+R/7", "!l1", "+Y", "+b", "+c", "+d", "+e"]);
        player.is_over();
    }

    /// Ten clients make 95 new channel names a second each, while a receiver takes 50 ms for a request.
    #[tokio::test]
    async fn clients_that_make_channels_cannot_delay_the_members_of_another() {
        let mut player = Player::new(8, None);
        let begin = player.now;
        let (mut in_flight, mut joined, mut worst) = (Vec::new(), None, Duration::ZERO);
        let (mut told_of, mut left, mut longest) = (0, 0, 0);
        let edge = |is_gain, at: u32| Told {
            about: 1_000_000 + u64::from(at),
            edge: Some(Edge { who: None, is_gain }),
            ..told("a")
        };
        let mut made = 0;
        while player.now < begin + 20 * SECOND {
            let ms = (player.now - begin).as_millis() as u32;
            while made < ms * 475 / 1000 {
                made += 1;
                player.queue.push(Waiting::new(edge(true, made), None, player.now)).unwrap();
            }
            // They are gone at once, which is told after three seconds.
            while left < ms.saturating_sub(3000) * 475 / 1000 {
                left += 1;
                player.queue.push(Waiting::new(edge(false, left), None, player.now)).unwrap();
            }
            if ms.is_multiple_of(500) && joined.is_none() {
                player.push("+R +R/7 -R/7 -R +R +R/7");
                joined = Some(player.now);
            }
            let (ended, flying): (Vec<(Instant, Request)>, Vec<_>) =
                in_flight.into_iter().partition(|(at, _)| *at <= player.now);
            in_flight = flying;
            for (_, request) in ended {
                if texts(&request.events) == "+R/7" {
                    worst = worst.max(player.now - joined.take().unwrap());
                    told_of += 1;
                }
                player.delivers(request);
            }
            while in_flight.len() < 8
                && let Next::Send(request) = player.next()
            {
                in_flight.push((player.now + 50 * MS, request));
            }
            longest = longest.max(player.queue.events.len());
            player.now += 5 * MS;
        }
        assert!(told_of >= 35 && worst < SECOND / 2, "{told_of}, {worst:?}");
        // What was not sent while a channel was there is not sent any more.
        assert!(longest < 3000, "{longest}");
    }

    #[tokio::test]
    async fn a_pair_of_which_nothing_was_told_cancels_out() {
        for (words, cancelled, left) in [
            ("+a -a", "+a -a", ""),
            ("+a/7 -a/7", "+a/7 -a/7", ""),
            ("+a +a/7 -a/7 -a", "+a/7 -a/7 +a -a", ""),
            ("+a +b -a -b", "+a -a +b -b", ""),
            // Each by itself.
            ("+a +a/7 +a/8 -a/7", "+a/7 -a/7", "+a +a/8"),
            ("+a +b/7 -a/7", "", "+a +b/7 -a/7"),
            // With a channel, all goes that was about its subscribers; what clients have sent stays.
            ("x1 +x x2 !x3 +x/7 -x x4", "+x x2 +x/7 -x", "x1 !x3 x4"),
            // Who was told to be there was gone, whether or not they have come back since.
            ("-a +a", "", "-a +a"),
            ("-a +a -a +a -a", "+a -a +a -a", "-a"),
            ("-a +a -a +a", "+a -a", "-a +a"),
        ] {
            let mut player = Player::new(1, None);
            assert_eq!(player.push(words), (String::new(), cancelled.to_owned()), "{words}");
            let mut told: Vec<_> = std::iter::from_fn(|| match player.next() {
                Next::Send(request) => Some((texts(&request.events), player.delivers(request)).0),
                Next::GiveUp(_) | Next::Wait(_) | Next::End => None,
            })
            .collect();
            told.sort_by_key(|told| words.find(told.as_str()));
            assert_eq!(told.join(" "), left, "{words}");
            player.is_over();
        }
    }

    #[tokio::test]
    async fn a_half_that_may_have_been_told_is_followed_by_the_other() {
        let mut player = Player::new(8, None);
        player.push("+a");
        let request = player.takes();
        assert_eq!(player.push("-a"), Default::default(), "it is on its way");
        player.fails(request, Failure::Silence);
        player.push("+b");
        player.now += SECOND;
        player.delivers_all(["+b"]);
        assert_eq!(player.push("+a -a").1, "+a -a");
        player.delivers_all(["+a", "-a"]);
        player.is_over();
    }

    #[tokio::test]
    async fn both_halves_of_records_end_the_older_one_first_and_a_void_one_cancels_nothing() {
        let mut player = Player::new(1, None);
        let (ends, mut ended) = mpsc::unbounded_channel();
        let push = |word, number, ends: &mpsc::UnboundedSender<End>, player: &mut Player| {
            let receipt = Receipt::new(EventId::new(7, number), ends.clone());
            player.queue.push(Waiting::new(told(word), Some(receipt), player.now)).unwrap()
        };
        push("+a", 1, &ends, &mut player);
        for event in push("-a", 2, &ends, &mut player).cancelled {
            event.receipt.unwrap().settle();
        }
        let settled = [1, 2].map(|number| Ok(End::Settled(EventId::new(7, number))));
        assert_eq!([ended.try_recv(), ended.try_recv()], settled);
        push("+a", 3, &ends, &mut player);
        // Another node has told of it perhaps, and this one reads on.
        let (ends, _ended) = mpsc::unbounded_channel();
        drop(ended);
        assert!(push("-a", 4, &ends, &mut player).cancelled.is_empty());
        let request = player.takes();
        assert!(request.events[0].is_void());
        player.delivers(request);
        assert_eq!(texts(&player.takes().events), "-a");
    }

    #[tokio::test]
    async fn the_oldest_of_the_class_that_has_most_falls_out_of_a_full_queue() {
        let mut player = Player::with_room_for(4);
        for (words, fallen) in [("X", ""), ("a b c", ""), ("d", "a"), ("Y", "b"), ("Z", "X"), ("W", "Y")] {
            assert_eq!(player.push(words).0, fallen, "{words}");
        }
        // What was refused is as old as it is.
        player.refuses("Z");
        assert_eq!(player.push("V").0, "Z");
        player.delivers_all(["c", "W", "d", "V"]);
        player.now += SECOND;
        player.is_over();
    }

    #[tokio::test]
    async fn what_is_too_large_for_the_queue_falls_out_alone() {
        let mut player = Player::with_room_for(3);
        player.push("a");
        let too_large = "x".repeat(2000);
        assert_eq!(player.push(&too_large).0, too_large);
        player.delivers_all(["a"]);
        player.is_over();
    }

    #[tokio::test]
    async fn nothing_comes_into_a_closed_queue() {
        let mut player = Player::new(1, None);
        player.push("a");
        player.queue.close();
        assert!(player.queue.push(Waiting::new(told("b"), None, player.now)).is_err());
        player.delivers_all(["a"]);
        assert!(matches!(player.next(), Next::End));
    }

    #[tokio::test]
    async fn what_is_refused_holds_up_its_own_channel_only() {
        let mut player = Player::new(1, None);
        player.push("a1 b1 a2 c1 a3");
        player.refuses("a1");
        player.delivers_all(["b1", "c1"]);
        player.push("a4");
        assert_eq!(player.waits(), Some(SECOND));
        player.now += SECOND;
        player.refuses("a1");
        assert_eq!(player.waits(), Some(2 * SECOND), "longer each time");
        player.push("b2");
        player.delivers_all(["b2"]);
        player.now += 2 * SECOND;
        player.delivers_all(["a1", "a2", "a3", "a4"]);
        player.is_over();
    }

    #[tokio::test]
    async fn what_grows_too_old_is_given_up_and_what_follows_it_goes_on_no_faster() {
        let mut player = Player::new(1, None);
        player.push("a1");
        player.now += RETRY - SECOND;
        player.push("a2");
        player.refuses("a1");
        player.now += SECOND;
        assert!(matches!(player.next(), Next::GiveUp(old) if texts(&old) == "a1"));
        player.refuses("a2");
        assert_eq!(player.waits(), Some(2 * SECOND));
        player.now += RETRY;
        assert!(matches!(player.next(), Next::GiveUp(old) if texts(&old) == "a2"));
        player.is_over();
    }

    #[tokio::test]
    async fn retries_have_one_turn_in_four_and_half_of_the_senders() {
        let mut player = Player::new(8, None);
        for name in "abcdefghij".chars() {
            player.push(&name.to_string());
            player.refuses(&name.to_string());
        }
        player.now += SECOND;
        for name in "klmnopqrstuv".chars() {
            player.push(&name.to_string());
        }
        let mut turns: Vec<_> = (0..8).map(|_| player.takes()).collect();
        let words: Vec<_> = turns.iter().map(|request| texts(&request.events)).collect();
        assert_eq!(words, ["a", "k", "l", "m", "b", "n", "o", "p"]);
        turns.drain(..).for_each(|request| player.delivers(request));
        player.delivers_all(["c", "q", "r", "s", "d", "t", "u", "v"]);
        let retries: Vec<_> = (0..4).map(|_| player.takes()).collect();
        assert_eq!(player.waits(), Some(RETRY - SECOND), "others may come");
        player.push("w");
        player.delivers_all(["w"]);
        retries.into_iter().for_each(|request| player.fails(request, Failure::Refusal));
        player.delivers_all(["i", "j"]);
    }

    #[tokio::test]
    async fn a_batch_that_is_refused_twice_is_tried_one_by_one() {
        let mut player = Player::new(1, Some(WINDOW));
        player.push("a1 b1 a2 c1");
        player.now += WINDOW;
        player.refuses("a1 b1 a2 c1");
        player.push("b2 a3 a4 d1");
        player.now += WINDOW;
        player.delivers_all(["d1"]);
        player.now += SECOND;
        player.refuses("a1 b1 a2 c1 b2 a3 a4");
        let mut told = Vec::new();
        while let Next::Send(request) = player.next() {
            let text = texts(&request.events);
            if text == "a1" {
                player.fails(request, Failure::Refusal);
            } else {
                told.push(text);
                player.delivers(request);
            }
        }
        told.sort();
        assert_eq!(told, ["b1", "b2", "c1"], "nothing overtakes a1");
        player.now += 10 * SECOND;
        player.push("a5");
        player.delivers_all(["a1", "a2", "a3 a4 a5"]);
        player.is_over();
    }

    #[tokio::test]
    async fn however_many_channels_are_refused_the_others_go_on() {
        let mut player = Player::new(8, None);
        let bad: Vec<_> = (0..1000).map(|at| char::from_u32(0x4e00 + at).unwrap()).collect();
        for name in &bad {
            player.push(&name.to_string());
        }
        // The first one of the others waits until all of these have been tried.
        let begin = player.now;
        let (mut refused, mut worst, mut asked) = (0, Duration::ZERO, Some(begin + 30 * SECOND));
        player.push("z");
        while player.now < begin + 120 * SECOND {
            if asked.is_none() && (player.now - begin).as_millis().is_multiple_of(2000) {
                player.push("z");
                asked = Some(player.now);
            }
            while let Next::Send(request) = player.next() {
                if texts(&request.events) == "z" {
                    worst = worst.max(player.now.saturating_duration_since(asked.take().unwrap()));
                    player.delivers(request);
                } else {
                    refused += 1;
                    player.fails(request, Failure::Refusal);
                }
            }
            player.now += 20 * MS;
        }
        assert!(worst < SECOND / 4 && asked.is_none(), "{worst:?}");
        assert!(refused <= 120 * (50 + 64), "the receiver is spared: {refused}");
    }

    #[tokio::test]
    async fn after_an_outage_all_that_waits_has_its_turn_at_once_and_in_order() {
        let mut player = Player::new(8, None);
        for at in 0..300 {
            let name = char::from_u32(0x4e00 + at).unwrap();
            player.push(&format!("{name}1 {name}2"));
        }
        let begin = player.now;
        let mut attempts = 0;
        while player.now < begin + 40 * SECOND {
            while let Next::Send(request) = player.next() {
                attempts += 1;
                player.fails(request, Failure::Silence);
            }
            player.now += 100 * MS;
        }
        assert!((30..=41).contains(&attempts), "one a second: {attempts}");
        player.now += SECOND;
        let probe = player.takes();
        assert!(probe.is_probe);
        assert!(matches!(player.next(), Next::Wait(_)), "one at a time");
        let mut told = vec![texts(&probe.events)];
        player.delivers(probe);
        while let Next::Send(request) = player.next() {
            told.push(texts(&request.events));
            player.delivers(request);
        }
        assert_eq!(told.len(), 600);
        let order: HashSet<_> = told.iter().filter(|word| word.ends_with('1')).collect();
        assert_eq!(order.len(), 300);
        for at in 0..300 {
            let name = char::from_u32(0x4e00 + at).unwrap();
            let place = |word: String| told.iter().position(|told| *told == word).unwrap();
            assert!(place(format!("{name}1")) < place(format!("{name}2")));
        }
        player.is_over();
    }

    #[tokio::test]
    async fn a_receiver_that_does_not_answer_is_tried_no_faster_because_events_grow_too_old() {
        let mut player = Player::new(8, None);
        let begin = player.now;
        let (mut attempts, mut given_up) = (0, 0);
        for second in 0..600 {
            player.push(&"a b c ".repeat(10));
            for _ in 0..10 {
                loop {
                    match player.next() {
                        Next::Send(request) => {
                            attempts += 1;
                            player.fails(request, Failure::Silence);
                        }
                        Next::GiveUp(old) => given_up += old.len(),
                        Next::Wait(_) => break,
                        Next::End => panic!(),
                    }
                }
                player.now += 100 * MS;
            }
            assert_eq!(player.now - begin, (second + 1) * SECOND);
        }
        assert!((590..=600).contains(&attempts), "{attempts}");
        assert!((8900..=9030).contains(&given_up), "{given_up}");
    }

    #[tokio::test]
    async fn all_that_is_left_of_a_subject_can_be_taken_in_order_whatever_it_waits_for() {
        let mut player = Player::new(8, None);
        player.push("a1 b1 c1 a2 b2");
        player.refuses("a1");
        let b1 = player.takes();
        player.queue.close();
        let left = |queue: &mut Queue| {
            let mut left: Vec<_> =
                std::iter::from_fn(|| queue.take_subject()).map(|events| texts(&events)).collect();
            left.sort();
            left
        };
        assert_eq!(left(&mut player.queue), ["a1 a2", "c1"], "b is in flight");
        player.queue.put_back(b1);
        assert_eq!(left(&mut player.queue), ["b1 b2"]);
        assert!(matches!(player.next(), Next::End));
    }

    /// What happens in the model: who it is about, or what becomes of a request.
    #[derive(Clone, Debug)]
    enum Step {
        Join(usize, usize),
        Leave(usize, usize),
        Whisper(usize),
        Take,
        /// Of a request that is in flight, which one and what becomes of it.
        End(usize, Option<Failure>),
        Later(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let failure = prop_oneof![
            4 => Just(None),
            1 => Just(Some(Failure::Refusal)),
            1 => Just(Some(Failure::Silence)),
        ];
        prop_oneof![
            4 => (0..3usize, 0..2usize).prop_map(|(channel, user)| Step::Join(channel, user)),
            4 => (0..3usize, 0..2usize).prop_map(|(channel, user)| Step::Leave(channel, user)),
            1 => (0..3usize).prop_map(Step::Whisper),
            4 => Just(Step::Take),
            4 => (0..8usize, failure).prop_map(|(which, failure)| Step::End(which, failure)),
            2 => (0..3000u64).prop_map(Step::Later),
        ]
    }

    proptest! {
        /// Whatever happens, is sent, refused and not answered, and in whichever order: who is told to be gone was told to
        /// be there, nobody comes twice, all is in order, the truth comes last, and each record ends once. Where events fall
        /// out or grow too old, the last of that holds still.
        #[test]
        fn what_a_receiver_is_told_is_consistent(
            batches in prop::bool::ANY,
            is_bounded in prop::bool::ANY,
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut player = Player::new(if batches { 1 } else { 4 }, batches.then_some(WINDOW));
            if is_bounded {
                player.queue.rules.bytes_max = 6 * (4 + OVERHEAD_BYTES);
                player.queue.rules.retry = 20 * SECOND;
            } else {
                player.queue.rules.retry = Duration::from_secs(1_000_000_000);
            }
            let settle = |event: Waiting| event.receipt.unwrap().settle();
            let (ends, mut ended) = mpsc::unbounded_channel();
            let (mut pushed, mut in_flight, mut here) = (0, Vec::<Request>::new(), [[false; 2]; 3]);
            // Words as they were delivered, and as they were sent for the first time.
            let (mut delivered, mut sent) = (Vec::<(u64, String)>::new(), BTreeMap::<u64, String>::new());
            let mut first_sent = Vec::<u64>::new();
            let mut push = |player: &mut Player, word: String| {
                pushed += 1;
                let receipt = Receipt::new(EventId::new(7, pushed), ends.clone());
                let told = Told { id: receipt.id(), ..told(&word) };
                let result = player.queue.push(Waiting::new(told, Some(receipt), player.now)).unwrap();
                assert!(is_bounded || result.fallen.is_empty());
                result.cancelled.into_iter().chain(result.fallen).for_each(settle);
            };
            let finish = |player: &mut Player, request: Request, delivered: &mut Vec<(u64, String)>| {
                for event in player.queue.delivered(request, player.now) {
                    let word = String::from_utf8(event.told.json.to_vec()).unwrap();
                    delivered.push((event.told.id.number(), word));
                    event.receipt.unwrap().settle();
                }
            };
            let mut note = |request: &Request| {
                for event in &request.events {
                    let word = String::from_utf8(event.told.json.to_vec()).unwrap();
                    if sent.insert(event.told.id.number(), word).is_none() {
                        first_sent.push(event.told.id.number());
                    }
                }
            };
            for step in steps {
                match step {
                    Step::Join(channel, user) if !here[channel][user] => {
                        let name = ["a", "b", "C"][channel];
                        if here[channel] == [false; 2] {
                            push(&mut player, format!("+{name}"));
                        }
                        here[channel][user] = true;
                        push(&mut player, format!("+{name}/{user}"));
                    }
                    Step::Leave(channel, user) if here[channel][user] => {
                        let name = ["a", "b", "C"][channel];
                        here[channel][user] = false;
                        push(&mut player, format!("-{name}/{user}"));
                        if here[channel] == [false; 2] {
                            push(&mut player, format!("-{name}"));
                        }
                    }
                    Step::Whisper(channel) => push(&mut player, format!("!{}", ["a", "b", "C"][channel])),
                    Step::Take if in_flight.len() < player.queue.rules.senders => match player.next() {
                        Next::Send(request) => {
                            note(&request);
                            in_flight.push(request);
                        }
                        Next::GiveUp(old) => old.into_iter().for_each(settle),
                        Next::Wait(_) | Next::End => {}
                    },
                    Step::End(which, failure) if !in_flight.is_empty() => {
                        let request = in_flight.swap_remove(which % in_flight.len());
                        match failure {
                            None => finish(&mut player, request, &mut delivered),
                            Some(failure) => player.fails(request, failure),
                        }
                    }
                    Step::Later(ms) => player.now += Duration::from_millis(ms),
                    Step::Join(..) | Step::Leave(..) | Step::Take | Step::End(..) => {}
                }
            }
            for request in in_flight.drain(..) {
                finish(&mut player, request, &mut delivered);
            }
            while !player.queue.is_empty() {
                match player.next() {
                    Next::Send(request) => {
                        note(&request);
                        finish(&mut player, request, &mut delivered);
                    }
                    Next::Wait(Some(until)) => player.now = until,
                    Next::GiveUp(old) => old.into_iter().for_each(settle),
                    other @ (Next::Wait(None) | Next::End) => panic!("{other:?}"),
                }
            }
            player.now += 1000 * SECOND;
            player.is_over();
            let first_sent: Vec<_> = first_sent.into_iter().map(|id| (id, sent[&id].clone())).collect();
            for seen in [&delivered, &first_sent].into_iter().filter(|_| !is_bounded) {
                for (channel, name) in ["a", "b", "C"].into_iter().enumerate() {
                    let about = |word: &str| word.trim_start_matches(['+', '-', '!']).starts_with(name);
                    let of_channel = seen.iter().filter(|(_, word)| about(word));
                    prop_assert!(of_channel.map(|(id, _)| *id).is_sorted(), "{:?}", seen);
                    let things = [name.to_owned(), format!("{name}/0"), format!("{name}/1")];
                    let truth = [here[channel] != [false; 2], here[channel][0], here[channel][1]];
                    for (thing, truth) in things.iter().zip(truth) {
                        let words = seen.iter().filter(|(_, word)| word[1..] == **thing && !word.starts_with('!'));
                        let signs: String = words.map(|(_, word)| &word[..1]).collect();
                        prop_assert_eq!(&signs, &"+-".repeat(signs.len())[..signs.len()], "{}", thing);
                        prop_assert_eq!(signs.ends_with('+'), truth, "{}", thing);
                    }
                }
            }
            drop(ends);
            let mut ids: Vec<_> = std::iter::from_fn(|| ended.try_recv().ok()).map(|end| match end {
                End::Settled(id) => id.number(),
                End::Released(id) => panic!("{id} is released"),
            }).collect();
            ids.sort_unstable();
            prop_assert_eq!(ids, (1..=pushed).collect::<Vec<_>>());
        }
    }
}
