//! What waits for one receiver: bounded, in lanes. A lane is sent in order, one request at a time; lanes do not wait
//! for each other. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

/// What an event costs beside its text.
const OVERHEAD_BYTES: usize = 128;

/// Most events of one request.
pub(super) const BATCH_EVENTS: usize = 100;

/// A request does not grow beyond this, unless one event does.
const BATCH_BYTES: usize = 1024 * 1024;

/// An event that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    /// The event as JSON, shared by all receivers.
    pub(super) json: Bytes,
    /// When it happened, in milliseconds since 1970.
    pub(super) time_ms: u64,
    /// The same by the clock that never goes back.
    pub(super) since: Instant,
}

impl Waiting {
    const fn cost(&self) -> usize {
        self.json.len() + OVERHEAD_BYTES
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Queue {
    lanes: Box<[VecDeque<Waiting>]>,
    bytes: usize,
    bytes_max: usize,
    /// Nothing more will come.
    pub(super) closed: bool,
}

impl Queue {
    pub(super) fn new(lanes: usize, bytes_max: usize) -> Self {
        Self { lanes: vec![VecDeque::new(); lanes].into(), bytes: 0, bytes_max, closed: false }
    }

    /// Puts an event into a lane. Answers what falls out for it: the oldest of all lanes.
    pub(super) fn push(&mut self, lane: usize, waiting: Waiting) -> Vec<Waiting> {
        self.bytes += waiting.cost();
        self.lanes[lane].push_back(waiting);
        let mut fallen = Vec::new();
        while self.bytes > self.bytes_max {
            let fronts =
                self.lanes.iter().enumerate().filter_map(|(at, lane)| Some((lane.front()?.since, at)));
            let Some((_, oldest)) = fronts.min() else { break };
            fallen.extend(self.pop(oldest));
        }
        fallen
    }

    fn pop(&mut self, lane: usize) -> Option<Waiting> {
        let waiting = self.lanes[lane].pop_front()?;
        self.bytes -= waiting.cost();
        if self.lanes[lane].is_empty() {
            self.lanes[lane] = VecDeque::new();
        }
        Some(waiting)
    }

    /// Since when the first of a lane waits.
    pub(super) fn first(&self, lane: usize) -> Option<Instant> {
        self.lanes[lane].front().map(|first| first.since)
    }

    /// Whether a lane has all that one request may tell.
    pub(super) fn has_batch(&self, lane: usize) -> bool {
        self.lanes[lane].len() >= BATCH_EVENTS
    }

    /// Takes the events of the next request: the first, and what happened within `window` of it.
    pub(super) fn take(&mut self, lane: usize, window: Option<Duration>) -> Vec<Waiting> {
        let Some(first) = self.pop(lane) else { return Vec::new() };
        let Some(window) = window else { return vec![first] };
        let until = first.since + window;
        let mut bytes = first.json.len();
        let mut taken = vec![first];
        while taken.len() < BATCH_EVENTS
            && let Some(next) = self.lanes[lane].front()
            && next.since <= until
            && bytes + next.json.len() < BATCH_BYTES
        {
            bytes += next.json.len() + 1;
            taken.extend(self.pop(lane));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(text: &str, since: Instant) -> Waiting {
        Waiting { json: Bytes::copy_from_slice(text.as_bytes()), time_ms: 0, since }
    }

    fn texts(taken: &[Waiting]) -> Vec<&str> {
        taken.iter().map(|waiting| std::str::from_utf8(&waiting.json).unwrap()).collect()
    }

    #[tokio::test]
    async fn one_request_tells_of_one_event_unless_it_may_tell_of_more() {
        let (mut queue, now) = (Queue::new(2, 10_000), Instant::now());
        for (at, text) in ["a", "b", "c", "d"].into_iter().enumerate() {
            assert!(queue.push(0, waiting(text, now + Duration::from_millis(20 * at as u64))).is_empty());
        }
        queue.push(1, waiting("other", now));
        assert_eq!(texts(&queue.take(0, None)), ["a"]);
        assert_eq!(texts(&queue.take(0, Some(Duration::from_millis(20)))), ["b", "c"]);
        assert_eq!(texts(&queue.take(0, Some(Duration::from_millis(20)))), ["d"]);
        assert_eq!(texts(&queue.take(0, None)), [""; 0]);
        assert_eq!(texts(&queue.take(1, None)), ["other"]);
        assert_eq!(queue.bytes, 0);
    }

    #[tokio::test]
    async fn a_request_has_a_hundred_events_and_a_mebibyte_at_most() {
        let (mut queue, now) = (Queue::new(1, usize::MAX), Instant::now());
        (0..150).for_each(|_| assert!(queue.push(0, waiting("x", now)).is_empty()));
        assert!(queue.has_batch(0));
        assert_eq!(queue.take(0, Some(Duration::ZERO)).len(), 100);
        assert!(!queue.has_batch(0));
        assert_eq!(queue.take(0, Some(Duration::ZERO)).len(), 50);
        let large = "x".repeat(400 * 1024);
        (0..3).for_each(|_| assert!(queue.push(0, waiting(&large, now)).is_empty()));
        assert_eq!(queue.take(0, Some(Duration::ZERO)).len(), 2);
        let huge = "x".repeat(2 * 1024 * 1024);
        queue.take(0, None);
        queue.push(0, waiting(&huge, now));
        assert_eq!(queue.take(0, Some(Duration::ZERO)).len(), 1, "alone, it goes");
    }

    #[tokio::test]
    async fn the_oldest_of_all_lanes_falls_out_of_a_full_queue() {
        let (mut queue, now) = (Queue::new(2, 3 * (1 + OVERHEAD_BYTES)), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        assert!(queue.push(0, waiting("b", at(2))).is_empty());
        assert!(queue.push(1, waiting("a", at(1))).is_empty());
        assert!(queue.push(0, waiting("c", at(3))).is_empty());
        assert_eq!(texts(&queue.push(0, waiting("d", at(4)))), ["a"]);
        assert_eq!(texts(&queue.push(1, waiting("e", at(5)))), ["b"]);
        let too_large = "x".repeat(1000);
        assert_eq!(texts(&queue.push(1, waiting(&too_large, at(6)))), ["c", "d", "e", &too_large]);
        assert_eq!(queue.bytes, 0);
    }
}
