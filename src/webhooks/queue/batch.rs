//! Which events share one request.

use super::{Queue, QueuedEvent};

/// The maximum number of events in a request.
pub(super) const BATCH_EVENTS: usize = 100;

/// The maximum size of a request, unless a single event is larger.
const BATCH_BYTES: usize = 1024 * 1024;

impl Queue {
    /// Whether a request may have several events. A probe has one.
    pub(super) fn may_batch(&self) -> bool {
        self.options.batch_window.is_some() && self.pace.is_responding()
    }

    /// Splits events into requests, as they would have been sent.
    pub(in crate::webhooks) fn split_into_requests(&self, events: Vec<QueuedEvent>) -> Vec<Vec<QueuedEvent>> {
        let mut requests: Vec<Vec<QueuedEvent>> = Vec::new();
        for event in events {
            match requests.last_mut() {
                Some(last) if fits_batch(last, &event, self.options.batch_window.is_some()) => {
                    last.push(event)
                }
                Some(_) | None => requests.push(vec![event]),
            }
        }
        requests
    }
}

/// Whether `next` fits the request that has `taken`.
pub(super) fn fits_batch(taken: &[QueuedEvent], next: &QueuedEvent, may_batch: bool) -> bool {
    let all = || taken.iter().chain([next]);
    taken.is_empty()
        || may_batch
            && taken.len() < BATCH_EVENTS
            && !all().any(|event| event.send_alone)
            && all().map(|event| event.encoded.json.len() + 1).sum::<usize>() <= BATCH_BYTES
}
