//! Options that change while events are queued.

use super::*;

#[tokio::test]
async fn senders_start_and_end_as_the_options_change() {
    let mut fixture = Fixture::new(8, None);
    let options = |senders, batch_window| QueueOptions { senders, batch_window, ..fixture.queue.options };
    let (many, one) = (options(8, None), options(1, Some(WINDOW)));
    assert_eq!(fixture.queue.set_options(many), 8);
    assert_eq!(fixture.queue.set_options(many), 0);
    assert_eq!(fixture.queue.set_options(one), 0);
    fixture.push("a b");
    // Surplus senders do not take requests.
    (0..3).for_each(|_| assert!(matches!(fixture.next(), Next::End)));
    assert_eq!(fixture.queue.set_options(many), 3, "five have not noticed that they were surplus");
    assert_eq!(fixture.queue.set_options(one), 0);
    (0..7).for_each(|_| assert!(matches!(fixture.next(), Next::End)));
    assert!(matches!(fixture.next(), Next::Wait(Some(_))), "the last one waits for the batch");
    fixture.now += WINDOW;
    assert!(matches!(fixture.next(), Next::Send(request) if texts(&request.events) == "a b"));
    fixture.queue.close();
    assert_eq!(fixture.queue.set_options(many), 7);
}

#[tokio::test]
async fn queued_events_follow_changed_options_in_their_order() {
    let mut fixture = Fixture::new(1, Some(WINDOW));
    let batching = fixture.queue.options;
    fixture.push("a1 a2 b1");
    fixture.now += WINDOW;
    let batch = fixture.send();
    assert_eq!(texts(&batch.events), "a1 a2 b1");
    fixture.push("a3 c1");
    assert_eq!(fixture.wait(), Some(WINDOW), "the next batch");
    fixture.queue.set_options(QueueOptions { senders: 8, batch_window: None, ..batching });
    fixture.deliver_all(["c1"]);
    fixture.wait();
    // The events of the batch return to their positions.
    fixture.fail(batch, Failure::Rejected);
    fixture.now += SECOND;
    fixture.deliver_all(["a1", "a2", "a3", "b1"]);
    fixture.assert_empty();
    fixture.push("a1 b1");
    fixture.queue.set_options(batching);
    fixture.now += WINDOW;
    (0..7).for_each(|_| assert!(matches!(fixture.next(), Next::End)));
    fixture.deliver_all(["a1 b1"]);
}
