use std::task::{Context, Waker};

use super::*;

#[test]
fn an_event_reaches_every_subscriber_except_the_excluded_one() {
    let (registry, a, b, c) = (Registry::default(), outbox(1), outbox(2), outbox(3));
    for subscriber in [&a, &b] {
        assert!(!join(&registry, "x", subscriber, &plain()).already_subscribed);
    }
    join(&registry, "y", &c, &plain());
    publish(&registry, "x", "1", None);
    publish(&registry, "x", "2", Some(1));
    publish(&registry, "x", "3", Some(99));
    assert_eq!(received(&a), ["ok", "1", "3"]);
    assert_eq!(received(&b), ["ok", "1", "2", "3"]);
    assert_eq!(received(&c), ["ok"]);
}

#[test]
fn messages_that_arrive_during_a_pass_are_delivered_together_and_a_new_subscriber_receives_later_ones_only() {
    let (registry, a, b) = (Registry::default(), outbox(1), outbox(2));
    let many: Vec<_> = (100..200).map(outbox).collect();
    for subscriber in many.iter().chain([&a]) {
        join(&registry, "x", subscriber, &plain());
    }
    let x = name("x");
    let event = |data| Event { channel: &x, name: "e", data, except: None, source: Source::App };
    let publish = |data| registry.publish(&"app".into(), &event(data), cache(), NOW).drive;
    let mut first = publish("1").expect("a large channel is not delivered inline");
    let mut pass = first.next_pass().unwrap();
    assert!(pass.deliver_next(), "more than one turn");
    assert!(publish("2").is_none(), "there is a driver");
    assert!(publish("3").is_none());
    assert!(join(&registry, "x", &b, &plain()).drive.is_none());
    assert!(publish("4").is_none());
    while pass.deliver_next() {}
    let mut pass = first.next_pass().unwrap();
    while pass.deliver_next() {}
    assert!(first.next_pass().is_none());
    assert_eq!(a.take_queued().len(), 3, "acknowledgement, first event, the other three in one");
    assert_eq!(received(&b), ["ok", "4"]);
}

#[test]
fn a_subscriber_that_leaves_during_a_pass_receives_nothing_more() {
    let registry = Registry::default();
    let all: Vec<_> = (0..100).map(outbox).collect();
    for subscriber in &all {
        join(&registry, "x", subscriber, &plain());
    }
    let event = Event { channel: &name("x"), name: "e", data: "1", except: None, source: Source::App };
    let mut drive = registry.publish(&"app".into(), &event, cache(), NOW).drive.unwrap();
    let mut pass = drive.next_pass().unwrap();
    assert!(pass.deliver_next());
    assert!(leave(&registry, "x", &all[99]).is_some());
    assert!(leave(&registry, "x", &all[0]).is_some());
    while pass.deliver_next() {}
    assert!(drive.next_pass().is_none());
    assert_eq!(received(&all[0]), ["ok", "1"]);
    assert_eq!(received(&all[98]), ["ok", "1"]);
    assert_eq!(received(&all[99]), ["ok"]);
}

#[test]
fn publishers_wait_for_a_channel_with_too_many_undelivered_bytes() {
    let registry = Registry::default();
    let all: Vec<_> = (0..100).map(outbox).collect();
    for subscriber in &all {
        join(&registry, "x", subscriber, &plain());
    }
    let data = format!("\"{}\"", "x".repeat(100_000));
    let event = Event { channel: &name("x"), name: "e", data: &data, except: None, source: Source::App };
    let publish = || registry.publish(&"app".into(), &event, cache(), NOW);
    let first = publish();
    let mut drive = first.drive.unwrap();
    assert!(first.backlog.is_none());
    assert!(publish().backlog.is_none());
    let mut backlog = publish().backlog.expect("300 kB wait");
    let mut cx = Context::from_waker(Waker::noop());
    assert!(backlog.poll_ready(&mut cx).is_pending());
    let mut passes = 0;
    while let Some(mut pass) = drive.next_pass() {
        passes += 1;
        while pass.deliver_next() {}
    }
    assert_eq!(passes, 3, "a batch ends with the message that exceeds 64 KiB");
    assert!(backlog.poll_ready(&mut cx).is_ready());
}

#[test]
fn a_channel_whose_driver_ended_early_gets_another_one() {
    let (registry, reader) = (Registry::default(), outbox(1));
    join(&registry, "x", &reader, &plain());
    reader.take_queued();
    let say = |data| {
        let event = Event { channel: &name("x"), name: "e", data, except: None, source: Source::App };
        registry.publish(&"app".into(), &event, cache(), NOW)
    };
    drop(say("1").drive.expect("there was no driver"));
    assert!(reader.take_queued().is_empty());
    for each in registry.orphaned() {
        drive(Some(each));
    }
    assert_eq!(received(&reader), ["1"]);
    assert!(registry.orphaned().is_empty());

    // The next publisher starts one too.
    drop(say("2").drive);
    drive(say("3").drive);
    assert_eq!(received(&reader), ["2", "3"]);
    assert!(registry.orphaned().is_empty(), "nothing is pending");

    // A panic ends a drive as well; the batch of the running pass is lost.
    let mut panicking = say("4").drive.unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _pass = panicking.next_pass();
        panic!("in the middle of a pass");
    }));
    assert!(panicked.is_err());
    drive(say("5").drive);
    assert_eq!(received(&reader), ["5"]);
}

#[test]
fn waiting_publishers_continue_after_a_driver_ended_early() {
    let (registry, reader) = (Registry::default(), outbox(1));
    join(&registry, "x", &reader, &plain());
    reader.take_queued();
    let data = format!("\"{}\"", "x".repeat(300_000));
    let event = Event { channel: &name("x"), name: "e", data: &data, except: None, source: Source::App };
    let published = registry.publish(&"app".into(), &event, cache(), NOW);
    let mut backlog = published.backlog.expect("too many undelivered bytes");
    drop(published.drive);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(backlog.poll_ready(&mut cx).is_pending());
    for each in registry.orphaned() {
        drive(Some(each));
    }
    assert!(backlog.poll_ready(&mut cx).is_ready());
}
