//! Requests, batches and bounds of a queue.

mod fairness;
mod model;
mod options;
mod pairs;
mod retries;

use bytes::Bytes;

use super::super::event::{Edge, EventId};
use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const WINDOW: Duration = Duration::from_millis(50);
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(300);

/// An event in short notation: `+a` (channel a is occupied), `-a` (vacated), `+a/7` (member 7 is added), `-a/7`
/// (removed), `!a1` (a client event), anything else is an event of its first letter. Upper-case channels are
/// private. The subject is the first letter.
fn encode(word: &str) -> EncodedEvent {
    let sign = word.chars().next().unwrap();
    let name = word.trim_start_matches(['+', '-', '!']);
    let member = name.split_once('/').map(|(_, id)| u64::from(id.as_bytes()[0]));
    let edge = matches!(sign, '+' | '-').then_some(Edge { member, is_rising: sign == '+' });
    let class = match (sign, member) {
        (_, Some(_)) => Class::Users,
        ('!', _) => Class::ClientEvents,
        _ if name.starts_with(char::is_uppercase) => Class::Authorized,
        _ => Class::Public,
    };
    let subject = u64::from(name.chars().next().unwrap());
    let json = Bytes::copy_from_slice(word.as_bytes());
    EncodedEvent { json, time_ms: 0, id: EventId::new(0, 0), subject, class, edge }
}

fn texts(events: &[QueuedEvent]) -> String {
    let words = events.iter().map(|event| std::str::from_utf8(&event.encoded.json).unwrap());
    words.collect::<Vec<_>>().join(" ")
}

/// A queue and its clock.
struct Fixture {
    queue: Queue,
    now: Instant,
}

impl Fixture {
    fn new(senders: usize, window: Option<Duration>) -> Self {
        let options = QueueOptions {
            bytes_max: 10_000_000,
            senders,
            batch_window: window,
            delivery_timeout: DELIVERY_TIMEOUT,
            probe_interval: SECOND,
        };
        Self { queue: Queue::new(options), now: Instant::now() }
    }

    /// With a capacity for `count` events of one letter.
    fn with_capacity_for(count: usize) -> Self {
        let mut fixture = Self::new(1, None);
        fixture.queue.options.bytes_max = count * (1 + OVERHEAD_BYTES);
        fixture
    }

    /// Pushes events. Returns the evicted and the cancelled ones.
    fn push(&mut self, words: &str) -> (String, String) {
        let (mut evicted, mut cancelled) = (Vec::new(), Vec::new());
        for word in words.split_whitespace() {
            let pushed = self.queue.push(QueuedEvent::new(encode(word), None, self.now)).unwrap();
            evicted.extend(pushed.evicted);
            cancelled.extend(pushed.cancelled);
        }
        (texts(&evicted), texts(&cancelled))
    }

    fn next(&mut self) -> Next {
        self.queue.next(self.now, 0)
    }

    /// Starts the next request, which must exist.
    fn send(&mut self) -> Request {
        match self.next() {
            Next::Send(request) => request,
            other @ (Next::Expired(_) | Next::Wait(_) | Next::End) => panic!("{other:?}"),
        }
    }

    fn deliver(&mut self, request: Request) {
        self.queue.complete(request, self.now);
    }

    /// Fails a request.
    fn fail(&mut self, mut request: Request, failure: Failure) {
        request.events.iter_mut().for_each(|event| event.attempts += 1);
        self.queue.fail(request, failure, self.now, |failures| failures * SECOND);
    }

    /// Expects these requests next, and delivers them.
    fn deliver_all<'t>(&mut self, expected: impl IntoIterator<Item = &'t str>) {
        for expected in expected {
            let request = self.send();
            assert_eq!(texts(&request.events), expected);
            self.deliver(request);
        }
    }

    /// Expects this request next, and rejects it.
    fn reject_next(&mut self, expected: &str) {
        let request = self.send();
        assert_eq!(texts(&request.events), expected);
        self.fail(request, Failure::Rejected);
    }

    /// Expects that there is nothing to send. Returns for how long.
    fn wait(&mut self) -> Option<Duration> {
        match self.next() {
            Next::Wait(until) => until.map(|until| until - self.now),
            other @ (Next::Send(_) | Next::Expired(_) | Next::End) => panic!("{other:?}"),
        }
    }

    /// Checks that all indexes are empty.
    fn assert_empty(&mut self) {
        assert_eq!(self.wait(), None);
        let Queue { events, by_age, bytes, subjects, turns, ready_events, retries, rising, .. } = &self.queue;
        assert!(events.is_empty() && subjects.is_empty() && retries.is_empty() && rising.is_empty());
        assert!(by_age.iter().chain(turns).all(BTreeMap::is_empty));
        assert_eq!((bytes.iter().sum::<usize>(), *ready_events, self.queue.in_flight), (0, 0, 0));
    }
}

#[tokio::test]
async fn a_request_has_one_event_unless_batching_is_on() {
    for (window, expected) in [(None, &["a", "b"][..]), (Some(WINDOW), &["a b"])] {
        let mut fixture = Fixture::new(1, window);
        fixture.push("a b");
        fixture.now += WINDOW;
        fixture.deliver_all(expected.iter().copied());
        fixture.assert_empty();
    }
}

#[tokio::test]
async fn a_batch_waits_for_its_window_and_then_takes_all_queued_events() {
    let mut fixture = Fixture::new(1, Some(WINDOW));
    fixture.push("a");
    assert_eq!(fixture.wait(), Some(WINDOW));
    fixture.now += 49 * MS;
    fixture.push("b");
    assert_eq!(fixture.wait(), Some(MS));
    // While a request was in flight, events of many windows were queued.
    for text in ["c", "d", "e"] {
        fixture.now += SECOND;
        fixture.push(text);
    }
    fixture.deliver_all(["a b c d e"]);
    // A full batch does not wait, nor does the last one.
    fixture.push(&"x ".repeat(250));
    for _ in 0..2 {
        let request = fixture.send();
        assert_eq!(request.events.len(), 100);
        fixture.deliver(request);
    }
    assert_eq!(fixture.wait(), Some(WINDOW));
    fixture.queue.close();
    let request = fixture.send();
    assert_eq!(request.events.len(), 50);
    fixture.deliver(request);
    assert!(matches!(fixture.next(), Next::End));
}

#[tokio::test]
async fn a_request_is_at_most_a_mebibyte() {
    let mut fixture = Fixture::new(1, Some(Duration::ZERO));
    let [large, huge] = [400, 2048].map(|kib| "x".repeat(kib * 1024));
    fixture.push(&format!("{large} {large} {large} {huge}"));
    for expected in [2, 1, 1] {
        let request = fixture.send();
        assert_eq!(request.events.len(), expected, "an event that is too large is sent alone");
        fixture.deliver(request);
    }
}

#[tokio::test]
async fn the_events_of_a_batch_are_in_order_whatever_the_turns() {
    let mut fixture = Fixture::new(1, Some(WINDOW));
    fixture.push("+a +B +B/7 !a1 b +B/8");
    fixture.now += WINDOW;
    fixture.deliver_all(["+a +B +B/7 !a1 b +B/8"]);
    fixture.assert_empty();
}

#[tokio::test]
async fn a_full_queue_evicts_the_oldest_event_of_the_largest_class() {
    let mut fixture = Fixture::with_capacity_for(4);
    for (words, evicted) in [("X", ""), ("a b c", ""), ("d", "a"), ("Y", "b"), ("Z", "X"), ("W", "Y")] {
        assert_eq!(fixture.push(words).0, evicted, "{words}");
    }
    // A rejected event keeps its age.
    fixture.reject_next("Z");
    assert_eq!(fixture.push("V").0, "Z");
    fixture.deliver_all(["c", "W", "d", "V"]);
    fixture.now += SECOND;
    fixture.assert_empty();
}

#[tokio::test]
async fn an_event_larger_than_the_queue_is_evicted_alone() {
    let mut fixture = Fixture::with_capacity_for(3);
    fixture.push("a");
    let too_large = "x".repeat(2000);
    assert_eq!(fixture.push(&too_large).0, too_large);
    fixture.deliver_all(["a"]);
    fixture.assert_empty();
}

#[tokio::test]
async fn a_closed_queue_accepts_no_events() {
    let mut fixture = Fixture::new(1, None);
    fixture.push("a");
    fixture.queue.close();
    assert!(fixture.queue.push(QueuedEvent::new(encode("b"), None, fixture.now)).is_err());
    fixture.deliver_all(["a"]);
    assert!(matches!(fixture.next(), Next::End));
}

#[tokio::test]
async fn a_subject_without_a_request_in_flight_is_drained_in_order() {
    let mut fixture = Fixture::new(8, None);
    fixture.push("a1 b1 c1 a2 b2");
    fixture.reject_next("a1");
    let b1 = fixture.send();
    fixture.queue.close();
    let left = |queue: &mut Queue| {
        let mut left: Vec<_> =
            std::iter::from_fn(|| queue.drain_subject()).map(|events| texts(&events)).collect();
        left.sort();
        left
    };
    assert_eq!(left(&mut fixture.queue), ["a1 a2", "c1"], "b is in flight");
    fixture.queue.requeue(b1);
    assert_eq!(left(&mut fixture.queue), ["b1 b2"]);
    assert!(matches!(fixture.next(), Next::End));
}
