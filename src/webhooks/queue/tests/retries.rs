//! Rejections, outages, expiration.

use std::collections::HashSet;

use super::*;

#[tokio::test]
async fn a_rejected_event_delays_only_its_own_channel() {
    let mut fixture = Fixture::new(1, None);
    fixture.push("a1 b1 a2 c1 a3");
    fixture.reject_next("a1");
    fixture.deliver_all(["b1", "c1"]);
    fixture.push("a4");
    assert_eq!(fixture.wait(), Some(SECOND));
    fixture.now += SECOND;
    fixture.reject_next("a1");
    assert_eq!(fixture.wait(), Some(2 * SECOND), "longer each time");
    fixture.push("b2");
    fixture.deliver_all(["b2"]);
    fixture.now += 2 * SECOND;
    fixture.deliver_all(["a1", "a2", "a3", "a4"]);
    fixture.assert_empty();
}

#[tokio::test]
async fn an_expired_event_does_not_shorten_the_backoff_of_its_channel() {
    let mut fixture = Fixture::new(1, None);
    fixture.push("a1");
    fixture.now += DELIVERY_TIMEOUT - SECOND;
    fixture.push("a2");
    fixture.reject_next("a1");
    fixture.now += SECOND;
    assert!(matches!(fixture.next(), Next::Expired(old) if texts(&old) == "a1"));
    fixture.reject_next("a2");
    assert_eq!(fixture.wait(), Some(2 * SECOND));
    fixture.now += DELIVERY_TIMEOUT;
    assert!(matches!(fixture.next(), Next::Expired(old) if texts(&old) == "a2"));
    fixture.assert_empty();
}

#[tokio::test]
async fn retries_get_one_turn_in_four_and_half_of_the_senders() {
    let mut fixture = Fixture::new(8, None);
    for name in "abcdefghij".chars() {
        fixture.push(&name.to_string());
        fixture.reject_next(&name.to_string());
    }
    fixture.now += SECOND;
    for name in "klmnopqrstuv".chars() {
        fixture.push(&name.to_string());
    }
    let mut turns: Vec<_> = (0..8).map(|_| fixture.send()).collect();
    let words: Vec<_> = turns.iter().map(|request| texts(&request.events)).collect();
    assert_eq!(words, ["a", "k", "l", "m", "b", "n", "o", "p"]);
    turns.drain(..).for_each(|request| fixture.deliver(request));
    fixture.deliver_all(["c", "q", "r", "s", "d", "t", "u", "v"]);
    let retries: Vec<_> = (0..4).map(|_| fixture.send()).collect();
    assert_eq!(fixture.wait(), Some(DELIVERY_TIMEOUT - SECOND), "others may come");
    fixture.push("w");
    fixture.deliver_all(["w"]);
    retries.into_iter().for_each(|request| fixture.fail(request, Failure::Rejected));
    fixture.deliver_all(["i", "j"]);
}

#[tokio::test]
async fn a_batch_that_is_rejected_twice_is_sent_one_by_one() {
    let mut fixture = Fixture::new(1, Some(WINDOW));
    fixture.push("a1 b1 a2 c1");
    fixture.now += WINDOW;
    fixture.reject_next("a1 b1 a2 c1");
    fixture.push("b2 a3 a4 d1");
    fixture.now += WINDOW;
    fixture.deliver_all(["d1"]);
    fixture.now += SECOND;
    fixture.reject_next("a1 b1 a2 c1 b2 a3 a4");
    let mut sent = Vec::new();
    while let Next::Send(request) = fixture.next() {
        let text = texts(&request.events);
        if text == "a1" {
            fixture.fail(request, Failure::Rejected);
        } else {
            sent.push(text);
            fixture.deliver(request);
        }
    }
    sent.sort();
    assert_eq!(sent, ["b1", "b2", "c1"], "nothing overtakes a1");
    fixture.now += 10 * SECOND;
    fixture.push("a5");
    fixture.deliver_all(["a1", "a2", "a3 a4 a5"]);
    fixture.assert_empty();
}

#[tokio::test]
async fn any_number_of_rejected_channels_does_not_delay_the_others() {
    let mut fixture = Fixture::new(8, None);
    let bad: Vec<_> = (0..1000).map(|at| char::from_u32(0x4e00 + at).unwrap()).collect();
    for name in &bad {
        fixture.push(&name.to_string());
    }
    // The first event of the other channel waits until each of these was tried once.
    let begin = fixture.now;
    let (mut rejected, mut worst, mut pushed_at) = (0, Duration::ZERO, Some(begin + 30 * SECOND));
    fixture.push("z");
    while fixture.now < begin + 120 * SECOND {
        if pushed_at.is_none() && (fixture.now - begin).as_millis().is_multiple_of(2000) {
            fixture.push("z");
            pushed_at = Some(fixture.now);
        }
        while let Next::Send(request) = fixture.next() {
            if texts(&request.events) == "z" {
                worst = worst.max(fixture.now.saturating_duration_since(pushed_at.take().unwrap()));
                fixture.deliver(request);
            } else {
                rejected += 1;
                fixture.fail(request, Failure::Rejected);
            }
        }
        fixture.now += 20 * MS;
    }
    assert!(worst < SECOND / 4 && pushed_at.is_none(), "{worst:?}");
    assert!(rejected <= 120 * (50 + 64), "requests are throttled: {rejected}");
}

#[tokio::test]
async fn after_an_outage_all_queued_events_are_sent_at_once_and_in_order() {
    let mut fixture = Fixture::new(8, None);
    for at in 0..300 {
        let name = char::from_u32(0x4e00 + at).unwrap();
        fixture.push(&format!("{name}1 {name}2"));
    }
    let begin = fixture.now;
    let mut attempts = 0;
    while fixture.now < begin + 40 * SECOND {
        while let Next::Send(request) = fixture.next() {
            attempts += 1;
            fixture.fail(request, Failure::NoResponse);
        }
        fixture.now += 100 * MS;
    }
    assert!((30..=41).contains(&attempts), "one a second: {attempts}");
    fixture.now += SECOND;
    let probe = fixture.send();
    assert!(probe.is_probe);
    assert!(matches!(fixture.next(), Next::Wait(_)), "one at a time");
    let mut sent = vec![texts(&probe.events)];
    fixture.deliver(probe);
    while let Next::Send(request) = fixture.next() {
        sent.push(texts(&request.events));
        fixture.deliver(request);
    }
    assert_eq!(sent.len(), 600);
    let order: HashSet<_> = sent.iter().filter(|word| word.ends_with('1')).collect();
    assert_eq!(order.len(), 300);
    for at in 0..300 {
        let name = char::from_u32(0x4e00 + at).unwrap();
        let position = |word: String| sent.iter().position(|text| *text == word).unwrap();
        assert!(position(format!("{name}1")) < position(format!("{name}2")));
    }
    fixture.assert_empty();
}

#[tokio::test]
async fn expirations_do_not_speed_up_the_probes_of_an_unresponsive_receiver() {
    let mut fixture = Fixture::new(8, None);
    let begin = fixture.now;
    let (mut attempts, mut expired) = (0, 0);
    for second in 0..600 {
        fixture.push(&"a b c ".repeat(10));
        for _ in 0..10 {
            loop {
                match fixture.next() {
                    Next::Send(request) => {
                        attempts += 1;
                        fixture.fail(request, Failure::NoResponse);
                    }
                    Next::Expired(old) => expired += old.len(),
                    Next::Wait(_) => break,
                    Next::End => panic!(),
                }
            }
            fixture.now += 100 * MS;
        }
        assert_eq!(fixture.now - begin, (second + 1) * SECOND);
    }
    assert!((590..=600).contains(&attempts), "{attempts}");
    assert!((8900..=9030).contains(&expired), "{expired}");
}
