//! Pairs of opposite events cancel out while the first half is queued.

use super::super::event::Class;
use super::{Queue, QueuedEvent};

impl Queue {
    /// Removes the first half of a pair, if it was not sent, when the second half arrives. When a channel is vacated,
    /// this includes all events about its subscribers in between; client events stay.
    pub(super) fn cancel_pair(&mut self, event: &QueuedEvent) -> Vec<QueuedEvent> {
        let Some(edge) = event.encoded.edge.filter(|edge| !edge.is_rising) else { return Vec::new() };
        let subject = event.encoded.subject;
        let first = self.rising.get(&(subject, edge.member)).map(|sequence| (subject, *sequence));
        let Some(first) =
            first.filter(|key| !event.has_cancelled_token() && !self.events[key].has_cancelled_token())
        else {
            return Vec::new();
        };
        let since_first = self.events.range(first..=(subject, u64::MAX));
        let is_of_channel =
            |event: &QueuedEvent| edge.member.is_none() && event.encoded.class != Class::ClientEvents;
        let keys: Vec<_> = since_first
            .filter(|(key, event)| **key == first || is_of_channel(event))
            .map(|(key, _)| *key)
            .collect();
        keys.into_iter().map(|key| self.remove_event(key)).collect()
    }
}
