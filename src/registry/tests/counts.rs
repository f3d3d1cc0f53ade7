use super::*;

#[test]
fn counts_are_sent_at_once_up_to_100_subscribers_and_every_five_seconds_above() {
    let (registry, a) = (Registry::default(), outbox(0));
    let counted = Join { counts: true, ..plain() };
    join(&registry, "x", &a, &counted);
    assert_eq!(received(&a), ["ok", r#"subscription_count {"subscription_count":1}"#]);
    for id in 1..100 {
        join(&registry, "x", &outbox(id), &counted);
    }
    assert_eq!(received(&a).len(), 99);
    for id in 100..150 {
        join(&registry, "x", &outbox(id), &counted);
    }
    assert_eq!(received(&a), [""; 0], "the last count was sent less than five seconds ago");
    for due in send_counts(&registry, Duration::from_secs(4)) {
        drive(Some(due));
    }
    assert_eq!(received(&a), [""; 0]);
    for due in send_counts(&registry, Duration::from_secs(5)) {
        drive(Some(due));
    }
    assert_eq!(received(&a), [r#"subscription_count {"subscription_count":150}"#]);
    assert!(send_counts(&registry, Duration::from_secs(60)).is_empty());
}

#[test]
fn a_channel_that_shrinks_to_100_subscribers_sends_counts_at_once_again() {
    let (registry, a) = (Registry::default(), outbox(0));
    let counted = Join { counts: true, ..plain() };
    join(&registry, "x", &a, &counted);
    let others: Vec<_> = (1..102).map(outbox).collect();
    others.iter().for_each(|other| drop(join(&registry, "x", other, &counted)));
    received(&a);
    for other in &others[..2] {
        drive(registry.leave(&key("x"), other.socket(), true, NOW).unwrap().drive);
    }
    assert_eq!(
        received(&a),
        [100].map(|count| format!("subscription_count {{\"subscription_count\":{count}}}"))
    );
    assert!(send_counts(&registry, Duration::from_secs(60)).is_empty(), "nothing is due");
}

#[test]
fn a_due_count_whose_task_ended_early_is_listed_again() {
    let (registry, a) = (Registry::default(), outbox(0));
    let counted = Join { counts: true, ..plain() };
    join(&registry, "x", &a, &counted);
    let others: Vec<_> = (1..102).map(outbox).collect();
    others.iter().for_each(|other| drop(join(&registry, "x", other, &counted)));
    received(&a);
    // Dropped with its task.
    drop(registry.counts_due());
    // Dropped by a panic.
    let due = registry.counts_due();
    assert_eq!(due.len(), 1);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _due = due;
        panic!("before it was sent");
    }));
    assert!(panicked.is_err());
    let drives = send_counts(&registry, Duration::from_secs(60));
    drives.into_iter().for_each(|each| drive(Some(each)));
    assert_eq!(received(&a), ["subscription_count {\"subscription_count\":102}"]);
    assert!(registry.counts_due().is_empty(), "once");
}
