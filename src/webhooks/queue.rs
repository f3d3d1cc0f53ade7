//! What waits for one receiver: bounded, in lanes. A lane is sent one request at a time; lanes do not wait for each
//! other. Pure: time is an argument.
//!
//! Events about the same channel or user are of one lane, and go in order. Where the receiver refuses an event, what it
//! is about is set aside: it is tried again when its time has come, what follows it waits behind it, and the lane goes on
//! with the others. A receiver that refuses everything would so be asked for each of its channels; so no more than
//! [`ASIDE_MAX`] are set aside, and then the lane waits for those.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::event::Told;
use super::receipt::Receipt;

/// What an event costs beside its text.
const OVERHEAD_BYTES: usize = 256;

/// Most events of one request.
const BATCH_EVENTS: usize = 100;

/// A request does not grow beyond this, unless one event does.
const BATCH_BYTES: usize = 1024 * 1024;

/// While so many of a lane are set aside, nothing else of it is tried.
const ASIDE_MAX: usize = 64;

/// An event that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) told: Told,
    /// If it is a record.
    pub(super) receipt: Option<Receipt>,
    /// Since when it waits.
    pub(super) since: Instant,
    /// What it is about, as a hash: what is about the same is told in order.
    pub(super) about: u64,
    /// How often it was tried.
    pub(super) attempts: u32,
    /// Why the last attempt failed.
    pub(super) error: Option<Arc<str>>,
}

impl Waiting {
    fn cost(&self) -> usize {
        self.told.json.len() + OVERHEAD_BYTES
    }

    /// Whether it is somebody else's to tell by now.
    pub(super) fn is_void(&self) -> bool {
        self.receipt.as_ref().is_some_and(Receipt::is_void)
    }
}

/// What a lane does now.
#[derive(Debug)]
pub(super) enum Next {
    /// It sends these in one request.
    Send(Vec<Waiting>),
    /// It waits until something comes; until then at the latest, if it has something.
    Wait(Option<Instant>),
    /// Nothing is left, and nothing will come.
    End,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Queue {
    lanes: Box<[Lane]>,
    bytes: usize,
    bytes_max: usize,
    /// How long a request waits for more to tell of; `None`: it tells of one event.
    window: Option<Duration>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Lane {
    /// In the order in which it happened.
    waiting: VecDeque<Waiting>,
    /// What was refused, by what it is about.
    aside: HashMap<u64, Aside>,
    /// Whether the last request was of those; the others have their turn, too.
    was_aside: bool,
}

/// A channel or user of which something was refused.
#[derive(Debug)]
struct Aside {
    /// The refused ones, and what follows them. Older than all that the lane has of it else.
    waiting: VecDeque<Waiting>,
    /// Attempts that failed since the last one that did not.
    failures: u32,
    /// No attempt before.
    resume: Instant,
}

impl Queue {
    pub(super) fn new(lanes: usize, bytes_max: usize, window: Option<Duration>) -> Self {
        let lanes = (0..lanes).map(|_| Lane::default()).collect();
        Self { lanes, bytes: 0, bytes_max, window, closed: false }
    }

    /// Puts an event into a lane. Answers what falls out: the oldest of all, or the event, if it is too large by itself.
    ///
    /// # Errors
    /// The queue is closed: the event comes back.
    pub(super) fn push(&mut self, lane: usize, event: Waiting) -> Result<Vec<Waiting>, Waiting> {
        if self.closed {
            return Err(event);
        }
        if event.cost() > self.bytes_max {
            return Ok(vec![event]);
        }
        self.bytes += event.cost();
        self.lanes[lane].waiting.push_back(event);
        let mut fallen = Vec::new();
        while self.bytes > self.bytes_max {
            let queues = self.lanes.iter_mut().flat_map(Lane::queues);
            let oldest = queues.filter(|queue| !queue.is_empty()).min_by_key(|queue| queue[0].since);
            let Some(event) = oldest.and_then(pop) else { break };
            self.bytes -= event.cost();
            fallen.push(event);
        }
        Ok(fallen)
    }

    /// Nothing more will come, and no request waits for more.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// What a lane does now, while nothing of it is on its way.
    pub(super) fn next(&mut self, lane: usize, now: Instant) -> Next {
        // Who waits for more that never comes would wait for nothing.
        let window = self.window.map(|window| if self.closed { Duration::ZERO } else { window });
        let lane = &mut self.lanes[lane];
        lane.sort_out();
        lane.aside.retain(|_, aside| !aside.waiting.is_empty() || now < aside.resume);
        let taken = if lane.was_aside {
            lane.take_waiting(now, window).or_else(|| lane.take_aside(now, window.is_some()))
        } else {
            lane.take_aside(now, window.is_some()).or_else(|| lane.take_waiting(now, window))
        };
        if let Some(taken) = taken {
            self.bytes -= taken.iter().map(Waiting::cost).sum::<usize>();
            return Next::Send(taken);
        }
        if self.closed && lane.queues().all(|queue| queue.is_empty()) {
            return Next::End;
        }
        let gathered = lane.gathered(window);
        Next::Wait(lane.aside.values().map(|aside| aside.resume).chain(gathered).min())
    }

    /// What a lane would send next if nothing had to wait; nothing when it is empty.
    pub(super) fn take_any(&mut self, lane: usize) -> Option<Vec<Waiting>> {
        let (lane, batches) = (&mut self.lanes[lane], self.window.is_some());
        let taken = lane.queues().map(|queue| take(queue, batches)).find(|taken| !taken.is_empty())?;
        self.bytes -= taken.iter().map(Waiting::cost).sum::<usize>();
        Some(taken)
    }

    /// What is about `about` is taken.
    pub(super) fn delivered(&mut self, lane: usize, about: u64) {
        if let Some(aside) = self.lanes[lane].aside.get_mut(&about) {
            aside.failures = 0;
        }
    }

    /// Puts back what was refused. A single event is tried again after `back_off` of the failures in a row; who of
    /// several was meant is not known, so each is tried by itself, at once.
    pub(super) fn refused(
        &mut self,
        lane: usize,
        events: Vec<Waiting>,
        now: Instant,
        back_off: impl Fn(u32) -> Duration,
    ) {
        let is_single = events.len() == 1;
        for event in events.into_iter().rev() {
            self.bytes += event.cost();
            let aside = self.lanes[lane].aside.entry(event.about).or_insert_with(|| Aside {
                waiting: VecDeque::new(),
                failures: event.attempts.saturating_sub(1),
                resume: now,
            });
            if is_single {
                aside.failures += 1;
                aside.resume = now + back_off(aside.failures);
            }
            aside.waiting.push_front(event);
        }
    }
}

impl Lane {
    /// All that waits; of one subject, the oldest first.
    fn queues(&mut self) -> impl Iterator<Item = &mut VecDeque<Waiting>> {
        self.aside.values_mut().map(|aside| &mut aside.waiting).chain([&mut self.waiting])
    }

    /// The next request of those whose time has come.
    fn take_aside(&mut self, now: Instant, batches: bool) -> Option<Vec<Waiting>> {
        let due = self.aside.values_mut().filter(|aside| !aside.waiting.is_empty() && aside.resume <= now);
        let first = due.min_by_key(|aside| aside.resume)?;
        // Of two that are due, the other one comes next.
        first.resume = now;
        self.was_aside = true;
        Some(take(&mut first.waiting, batches))
    }

    /// The next request of the others.
    fn take_waiting(&mut self, now: Instant, window: Option<Duration>) -> Option<Vec<Waiting>> {
        self.gathered(window).filter(|gathered| *gathered <= now)?;
        self.was_aside = false;
        let mut taken = Vec::new();
        while self.sort_out().is_some_and(|next| may_join(&taken, next, window.is_some())) {
            taken.extend(pop(&mut self.waiting));
        }
        Some(taken)
    }

    /// When the next request of those that are not set aside may be sent, if there is one.
    fn gathered(&mut self, window: Option<Duration>) -> Option<Instant> {
        if self.aside.len() >= ASIDE_MAX {
            return None;
        }
        let first = self.sort_out()?.since;
        let is_enough = self.waiting.len() >= BATCH_EVENTS;
        Some(first + window.filter(|_| !is_enough).unwrap_or_default())
    }

    /// The first that is not set aside. What comes before it goes where it belongs.
    fn sort_out(&mut self) -> Option<&Waiting> {
        while let Some(first) = self.waiting.front()
            && let Some(aside) = self.aside.get_mut(&first.about)
        {
            aside.waiting.extend(pop(&mut self.waiting));
        }
        self.waiting.front()
    }
}

/// The first of a queue, which gives its room back with the last.
fn pop(queue: &mut VecDeque<Waiting>) -> Option<Waiting> {
    let first = queue.pop_front();
    if queue.is_empty() {
        *queue = VecDeque::new();
    }
    first
}

/// The events of the next request.
fn take(queue: &mut VecDeque<Waiting>, batches: bool) -> Vec<Waiting> {
    let mut taken = Vec::new();
    while queue.front().is_some_and(|next| may_join(&taken, next, batches)) {
        taken.extend(pop(queue));
    }
    taken
}

/// Whether a request that tells of `taken` tells of `next` as well. What was tried before goes alone.
fn may_join(taken: &[Waiting], next: &Waiting, batches: bool) -> bool {
    let all = || taken.iter().chain([next]);
    taken.is_empty()
        || batches
            && taken.len() < BATCH_EVENTS
            && all().all(|event| event.attempts == 0)
            && all().map(|event| event.told.json.len() + 1).sum::<usize>() <= BATCH_BYTES
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::event::EventId;
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const WINDOW: Duration = Duration::from_millis(50);

    /// An event about its first letter.
    fn event(text: &str, since: Instant) -> Waiting {
        let about = u64::from(text.as_bytes()[0]);
        let json = Bytes::copy_from_slice(text.as_bytes());
        let told = Told { json, time_ms: 0, id: EventId::new(0, 0) };
        Waiting { told, receipt: None, since, about, attempts: 0, error: None }
    }

    fn texts(taken: &[Waiting]) -> Vec<&str> {
        taken.iter().map(|event| std::str::from_utf8(&event.told.json).unwrap()).collect()
    }

    /// One lane, and the clock it goes by.
    struct Player {
        queue: Queue,
        now: Instant,
    }

    impl Player {
        fn new(window: Option<Duration>) -> Self {
            Self { queue: Queue::new(1, 1_000_000, window), now: Instant::now() }
        }

        fn push(&mut self, text: &str) {
            assert!(self.queue.push(0, event(text, self.now)).unwrap().is_empty());
        }

        fn next(&mut self) -> Next {
            self.queue.next(0, self.now)
        }

        /// The next request, which must be there.
        fn sent(&mut self) -> Vec<Waiting> {
            match self.next() {
                Next::Send(taken) => taken,
                other @ (Next::Wait(_) | Next::End) => panic!("{other:?}"),
            }
        }

        /// The next request is this one, and taken.
        fn delivers(&mut self, expected: &str) {
            let taken = self.sent();
            assert_eq!(texts(&taken).join(" "), expected);
            self.queue.delivered(0, taken[0].about);
        }

        /// The next request is this one, and refused; `attempts` of it were made before.
        fn refuses(&mut self, expected: &str) {
            let mut taken = self.sent();
            assert_eq!(texts(&taken).join(" "), expected);
            taken.iter_mut().for_each(|event| event.attempts += 1);
            self.queue.refused(0, taken, self.now, |failures| 1000 * failures * MS);
        }

        /// How long the lane waits.
        fn waits(&mut self) -> Option<Duration> {
            match self.next() {
                Next::Wait(until) => until.map(|until| until - self.now),
                other @ (Next::Send(_) | Next::End) => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn one_request_tells_of_one_event_unless_it_may_tell_of_more() {
        for (window, expected) in [(None, &["a", "b"][..]), (Some(WINDOW), &["a b"])] {
            let mut player = Player::new(window);
            assert_eq!(player.waits(), None);
            player.push("a");
            player.push("b");
            player.now += WINDOW;
            expected.iter().for_each(|request| player.delivers(request));
            assert_eq!((player.waits(), player.queue.bytes), (None, 0));
        }
    }

    #[tokio::test]
    async fn the_window_is_how_long_a_request_waits_and_not_what_it_tells_of() {
        let mut player = Player::new(Some(WINDOW));
        player.push("a");
        assert_eq!(player.waits(), Some(WINDOW));
        player.now += 49 * MS;
        player.push("b");
        assert_eq!(player.waits(), Some(MS));
        // The request before took its time; what came meanwhile is of many windows.
        for text in ["c", "d", "e"] {
            player.now += 1000 * MS;
            player.push(text);
        }
        player.delivers("a b c d e");
        // A hundred do not wait, nor does the last.
        (0..250).for_each(|_| player.push("x"));
        assert_eq!(player.sent().len(), 100);
        assert_eq!(player.sent().len(), 100);
        assert_eq!(player.waits(), Some(WINDOW));
        player.queue.close();
        assert_eq!(player.sent().len(), 50);
        assert!(matches!(player.next(), Next::End));
    }

    #[tokio::test]
    async fn a_request_has_a_mebibyte_at_most() {
        let mut player = Player::new(Some(Duration::ZERO));
        player.queue.bytes_max = usize::MAX;
        let [large, huge] = [400, 2048].map(|kib| "x".repeat(kib * 1024));
        (0..3).for_each(|_| player.push(&large));
        player.push(&huge);
        for expected in [2, 1, 1] {
            assert_eq!(player.sent().len(), expected, "what is too large goes alone");
        }
    }

    #[tokio::test]
    async fn the_oldest_of_all_falls_out_of_a_full_queue() {
        let now = Instant::now();
        let mut queue = Queue::new(2, 3 * (1 + OVERHEAD_BYTES), None);
        let at = |ms| now + ms * MS;
        let mut push = |lane, text, ms| queue.push(lane, event(text, at(ms))).unwrap();
        assert!(push(0, "b", 2).is_empty());
        assert!(push(1, "a", 1).is_empty());
        assert!(push(0, "c", 3).is_empty());
        assert_eq!(texts(&push(0, "d", 4)), ["a"]);
        assert_eq!(texts(&push(1, "e", 5)), ["b"]);
        // What was refused is as old as it is.
        let Next::Send(mut taken) = queue.next(0, at(5)) else { panic!() };
        taken[0].attempts = 1;
        queue.refused(0, taken, at(5), |_| 1000 * MS);
        assert_eq!(texts(&queue.push(1, event("f", at(6))).unwrap()), ["c"]);
    }

    #[tokio::test]
    async fn what_is_too_large_for_the_queue_falls_out_alone() {
        let mut queue = Queue::new(1, 3 * (1 + OVERHEAD_BYTES), None);
        let now = Instant::now();
        assert!(queue.push(0, event("a", now)).unwrap().is_empty());
        let too_large = "x".repeat(1000);
        assert_eq!(texts(&queue.push(0, event(&too_large, now)).unwrap()), [too_large]);
        assert!(matches!(queue.next(0, now), Next::Send(taken) if texts(&taken) == ["a"]));
    }

    #[tokio::test]
    async fn nothing_comes_into_a_closed_queue() {
        let mut player = Player::new(None);
        player.push("a");
        player.queue.close();
        assert!(player.queue.push(0, event("b", player.now)).is_err());
        player.delivers("a");
        assert!(matches!(player.next(), Next::End));
    }

    #[tokio::test]
    async fn what_is_refused_holds_up_its_own_channel_only() {
        let mut player = Player::new(None);
        ["a1", "b1", "a2", "c1", "a3"].into_iter().for_each(|text| player.push(text));
        player.refuses("a1");
        player.delivers("b1");
        player.delivers("c1");
        player.push("a4");
        assert_eq!(player.waits(), Some(1000 * MS));
        player.now += 1000 * MS;
        player.refuses("a1");
        assert_eq!(player.waits(), Some(2000 * MS), "twice as long");
        player.push("b2");
        player.delivers("b2");
        player.now += 2000 * MS;
        ["a1", "a2", "a3", "a4"].into_iter().for_each(|text| player.delivers(text));
        assert_eq!((player.waits(), player.queue.lanes[0].aside.len(), player.queue.bytes), (None, 0, 0));
    }

    #[tokio::test]
    async fn whose_events_grow_too_old_goes_on_no_faster() {
        let mut player = Player::new(None);
        player.push("a1");
        player.refuses("a1");
        player.now += 1000 * MS;
        player.refuses("a1");
        player.push("a2");
        player.now += 2000 * MS;
        // It is given up, so that nobody says what became of it.
        assert_eq!(texts(&player.sent()), ["a1"]);
        player.refuses("a2");
        assert_eq!(player.waits(), Some(3000 * MS));
    }

    #[tokio::test]
    async fn those_set_aside_and_the_others_go_by_turns() {
        let mut player = Player::new(None);
        ["a1", "a2", "a3", "b1"].into_iter().for_each(|text| player.push(text));
        player.refuses("a1");
        player.delivers("b1");
        ["c1", "c2", "c3"].into_iter().for_each(|text| player.push(text));
        player.now += 1000 * MS;
        for expected in ["a1", "c1", "a2", "c2", "a3", "c3"] {
            // What follows a1 in its channel came to it when b1 was looked for.
            player.delivers(expected);
        }
    }

    #[tokio::test]
    async fn a_batch_that_is_refused_is_tried_one_by_one() {
        let mut player = Player::new(Some(WINDOW));
        ["a1", "b1", "a2", "c1"].into_iter().for_each(|text| player.push(text));
        player.now += WINDOW;
        player.refuses("a1 b1 a2 c1");
        ["b2", "a3", "a4", "d1"].into_iter().for_each(|text| player.push(text));
        player.now += WINDOW;
        let mut told = Vec::new();
        while let Next::Send(mut taken) = player.next() {
            if taken[0].about == u64::from(b'a') {
                assert_eq!(texts(&taken), ["a1"], "nothing overtakes it");
                taken[0].attempts += 1;
                player.queue.refused(0, taken, player.now, |_| 1000 * MS);
            } else {
                told.extend(texts(&taken).into_iter().map(str::to_owned));
            }
        }
        told.sort();
        assert_eq!(told, ["b1", "b2", "c1", "d1"]);
        player.now += 1000 * MS;
        player.delivers("a1");
        player.delivers("a2");
        player.delivers("a3 a4");
    }

    #[tokio::test]
    async fn a_receiver_that_refuses_everything_is_not_asked_for_each_of_its_channels() {
        let mut player = Player::new(None);
        let names = (0..1000).map(|at| char::from_u32(0x4e00 + at).unwrap().to_string());
        for (at, name) in names.enumerate() {
            let event = Waiting { about: at as u64, ..event(&name, player.now) };
            player.queue.push(0, event).unwrap();
        }
        let mut attempts = 0;
        while let Next::Send(mut taken) = player.next() {
            taken[0].attempts += 1;
            attempts += 1;
            player.queue.refused(0, taken, player.now, |failures| 1000 * failures * MS);
        }
        assert_eq!(attempts, ASIDE_MAX);
        assert_eq!(player.waits(), Some(1000 * MS));
    }

    #[tokio::test]
    async fn all_that_is_left_can_be_taken_in_order_whatever_it_waits_for() {
        let mut player = Player::new(Some(WINDOW));
        player.push("a1");
        player.now += WINDOW;
        player.refuses("a1");
        ["b1", "a2"].into_iter().for_each(|text| player.push(text));
        player.queue.close();
        assert_eq!(texts(&player.queue.take_any(0).unwrap()), ["a1"]);
        assert_eq!(texts(&player.queue.take_any(0).unwrap()), ["b1", "a2"]);
        assert!(player.queue.take_any(0).is_none());
        assert_eq!(player.queue.bytes, 0);
    }
}
