//! Records of receivers and apps that are removed: each is resolved.

use pusherd::webhooks::{AckToken, EventId, Resolution};
use tokio::sync::mpsc;

use super::*;

/// A reader of records.
struct Reader {
    resolutions: mpsc::UnboundedSender<Resolution>,
    resolved: mpsc::UnboundedReceiver<Resolution>,
    number: u64,
}

impl Reader {
    fn new() -> Self {
        let (resolutions, resolved) = mpsc::unbounded_channel();
        Self { resolutions, resolved, number: 0 }
    }

    /// Reads the record of a channel that is occupied (`+a`) or vacated (`-a`).
    fn read(&mut self, webhooks: &Webhooks, what: &str) {
        self.number += 1;
        let ack_token = AckToken::new(EventId::new(7, self.number), self.resolutions.clone());
        let channel = channel(&what[1..]);
        let event = match what.starts_with('+') {
            true => Event::ChannelOccupied(&channel),
            false => Event::ChannelVacated(&channel),
        };
        webhooks.emit_record("1001", &event, 1_000_000, ack_token);
    }

    /// The next resolutions: the numbers of the records, sorted, negative if they are nacked.
    async fn next(&mut self, count: usize) -> Vec<i64> {
        let mut resolutions = Vec::new();
        for _ in 0..count {
            resolutions.push(match in_time("a resolution", self.resolved.recv()).await.unwrap() {
                Resolution::Acked(id) => id.number() as i64,
                Resolution::Nacked(id) => -(id.number() as i64),
            });
        }
        resolutions.sort_unstable();
        resolutions
    }
}

#[tokio::test]
async fn records_of_a_removed_receiver_are_acked_when_it_has_them() {
    for removes_app in [false, true] {
        let ((mut removed, is_open), mut kept) = (failing().await, Receiver::start().await);
        let (mut changing, mut reader) = (Changing::start(|_| ()), Reader::new());
        changing.set([removed.webhook(), kept.webhook()]);
        reader.read(&changing.webhooks, "+a");
        kept.expect(occupied("a")).await;
        removed.hook().await;
        if removes_app {
            changing.remove_app()
        } else {
            changing.set([kept.webhook()])
        }
        reader.read(&changing.webhooks, "+b");
        // No receiver wants it any more, or only the one that is left.
        assert_eq!(reader.next(1).await, [2]);
        is_open.store(true, Ordering::SeqCst);
        removed.expect(occupied("a")).await;
        assert_eq!(reader.next(1).await, [1]);
        assert!(removed.is_idle());
    }
}

#[tokio::test]
async fn held_records_of_a_removed_app_are_sent_and_acked() {
    let mut receiver = Receiver::start().await;
    let (mut changing, mut reader) = (Changing::start(|_| ()), Reader::new());
    changing.set([receiver.webhook()]);
    reader.read(&changing.webhooks, "-a");
    changing.remove_app();
    receiver.expect(vacated("a")).await;
    assert_eq!(reader.next(1).await, [1]);
    // If the app comes back, its records are debounced as before.
    changing.set([receiver.webhook()]);
    ["-b", "+b"].into_iter().for_each(|what| reader.read(&changing.webhooks, what));
    assert_eq!(reader.next(2).await, [2, 3]);
    assert_eq!((changing.metrics.webhooks.debounced.get(), receiver.is_idle()), (2, true));
}

#[tokio::test]
async fn records_of_a_removed_receiver_that_expire_are_acked() {
    let (receiver, _) = failing().await;
    let mut changing =
        Changing::start(|options| options.timing.delivery_timeout = Duration::from_millis(100));
    let mut reader = Reader::new();
    changing.set([receiver.webhook()]);
    ["+a", "+b", "-c"].into_iter().for_each(|what| reader.read(&changing.webhooks, what));
    changing.remove_app();
    assert_eq!(reader.next(3).await, [1, 2, 3]);
    assert_eq!(changing.metrics.webhooks.expired.get(), 3);
}

#[tokio::test]
async fn records_of_a_removed_receiver_are_nacked_at_the_deadline_of_a_shutdown() {
    let (receiver, _) = failing().await;
    let (mut changing, mut reader) = (Changing::start(|_| ()), Reader::new());
    changing.set([receiver.webhook()]);
    ["+a", "+b", "-c"].into_iter().for_each(|what| reader.read(&changing.webhooks, what));
    changing.remove_app();
    in_time("the drain", changing.webhooks.drain(std::future::ready(()))).await;
    assert_eq!(reader.next(3).await, [-3, -2, -1]);
    assert_eq!(changing.metrics.webhooks.nacked.get(), 3);
}
