//! Rejections, outages, expiration.

use std::collections::HashSet;

use super::*;

#[tokio::test]
async fn a_rejected_event_delays_only_its_own_channel() {
    let mut player = Player::new(1, None);
    player.push("a1 b1 a2 c1 a3");
    player.reject_next("a1");
    player.deliver_all(["b1", "c1"]);
    player.push("a4");
    assert_eq!(player.wait(), Some(SECOND));
    player.now += SECOND;
    player.reject_next("a1");
    assert_eq!(player.wait(), Some(2 * SECOND), "longer each time");
    player.push("b2");
    player.deliver_all(["b2"]);
    player.now += 2 * SECOND;
    player.deliver_all(["a1", "a2", "a3", "a4"]);
    player.assert_empty();
}

#[tokio::test]
async fn an_expired_event_does_not_shorten_the_backoff_of_its_channel() {
    let mut player = Player::new(1, None);
    player.push("a1");
    player.now += DELIVERY_TIMEOUT - SECOND;
    player.push("a2");
    player.reject_next("a1");
    player.now += SECOND;
    assert!(matches!(player.next(), Next::Expired(old) if texts(&old) == "a1"));
    player.reject_next("a2");
    assert_eq!(player.wait(), Some(2 * SECOND));
    player.now += DELIVERY_TIMEOUT;
    assert!(matches!(player.next(), Next::Expired(old) if texts(&old) == "a2"));
    player.assert_empty();
}

#[tokio::test]
async fn retries_get_one_turn_in_four_and_half_of_the_senders() {
    let mut player = Player::new(8, None);
    for name in "abcdefghij".chars() {
        player.push(&name.to_string());
        player.reject_next(&name.to_string());
    }
    player.now += SECOND;
    for name in "klmnopqrstuv".chars() {
        player.push(&name.to_string());
    }
    let mut turns: Vec<_> = (0..8).map(|_| player.send()).collect();
    let words: Vec<_> = turns.iter().map(|request| texts(&request.events)).collect();
    assert_eq!(words, ["a", "k", "l", "m", "b", "n", "o", "p"]);
    turns.drain(..).for_each(|request| player.deliver(request));
    player.deliver_all(["c", "q", "r", "s", "d", "t", "u", "v"]);
    let retries: Vec<_> = (0..4).map(|_| player.send()).collect();
    assert_eq!(player.wait(), Some(DELIVERY_TIMEOUT - SECOND), "others may come");
    player.push("w");
    player.deliver_all(["w"]);
    retries.into_iter().for_each(|request| player.fail(request, Failure::Rejected));
    player.deliver_all(["i", "j"]);
}

#[tokio::test]
async fn a_batch_that_is_rejected_twice_is_sent_one_by_one() {
    let mut player = Player::new(1, Some(WINDOW));
    player.push("a1 b1 a2 c1");
    player.now += WINDOW;
    player.reject_next("a1 b1 a2 c1");
    player.push("b2 a3 a4 d1");
    player.now += WINDOW;
    player.deliver_all(["d1"]);
    player.now += SECOND;
    player.reject_next("a1 b1 a2 c1 b2 a3 a4");
    let mut sent = Vec::new();
    while let Next::Send(request) = player.next() {
        let text = texts(&request.events);
        if text == "a1" {
            player.fail(request, Failure::Rejected);
        } else {
            sent.push(text);
            player.deliver(request);
        }
    }
    sent.sort();
    assert_eq!(sent, ["b1", "b2", "c1"], "nothing overtakes a1");
    player.now += 10 * SECOND;
    player.push("a5");
    player.deliver_all(["a1", "a2", "a3 a4 a5"]);
    player.assert_empty();
}

#[tokio::test]
async fn any_number_of_rejected_channels_does_not_delay_the_others() {
    let mut player = Player::new(8, None);
    let bad: Vec<_> = (0..1000).map(|at| char::from_u32(0x4e00 + at).unwrap()).collect();
    for name in &bad {
        player.push(&name.to_string());
    }
    // The first event of the other channel waits until each of these was tried once.
    let begin = player.now;
    let (mut rejected, mut worst, mut pushed_at) = (0, Duration::ZERO, Some(begin + 30 * SECOND));
    player.push("z");
    while player.now < begin + 120 * SECOND {
        if pushed_at.is_none() && (player.now - begin).as_millis().is_multiple_of(2000) {
            player.push("z");
            pushed_at = Some(player.now);
        }
        while let Next::Send(request) = player.next() {
            if texts(&request.events) == "z" {
                worst = worst.max(player.now.saturating_duration_since(pushed_at.take().unwrap()));
                player.deliver(request);
            } else {
                rejected += 1;
                player.fail(request, Failure::Rejected);
            }
        }
        player.now += 20 * MS;
    }
    assert!(worst < SECOND / 4 && pushed_at.is_none(), "{worst:?}");
    assert!(rejected <= 120 * (50 + 64), "requests are throttled: {rejected}");
}

#[tokio::test]
async fn after_an_outage_all_queued_events_are_sent_at_once_and_in_order() {
    let mut player = Player::new(8, None);
    for at in 0..300 {
        let name = char::from_u32(0x4e00 + at).unwrap();
        player.push(&format!("{name}1 {name}2"));
    }
    let begin = player.now;
    let mut attempts = 0;
    while player.now < begin + 40 * SECOND {
        while let Next::Send(request) = player.next() {
            attempts += 1;
            player.fail(request, Failure::NoResponse);
        }
        player.now += 100 * MS;
    }
    assert!((30..=41).contains(&attempts), "one a second: {attempts}");
    player.now += SECOND;
    let probe = player.send();
    assert!(probe.is_probe);
    assert!(matches!(player.next(), Next::Wait(_)), "one at a time");
    let mut sent = vec![texts(&probe.events)];
    player.deliver(probe);
    while let Next::Send(request) = player.next() {
        sent.push(texts(&request.events));
        player.deliver(request);
    }
    assert_eq!(sent.len(), 600);
    let order: HashSet<_> = sent.iter().filter(|word| word.ends_with('1')).collect();
    assert_eq!(order.len(), 300);
    for at in 0..300 {
        let name = char::from_u32(0x4e00 + at).unwrap();
        let position = |word: String| sent.iter().position(|text| *text == word).unwrap();
        assert!(position(format!("{name}1")) < position(format!("{name}2")));
    }
    player.assert_empty();
}

#[tokio::test]
async fn expirations_do_not_speed_up_the_probes_of_an_unresponsive_receiver() {
    let mut player = Player::new(8, None);
    let begin = player.now;
    let (mut attempts, mut expired) = (0, 0);
    for second in 0..600 {
        player.push(&"a b c ".repeat(10));
        for _ in 0..10 {
            loop {
                match player.next() {
                    Next::Send(request) => {
                        attempts += 1;
                        player.fail(request, Failure::NoResponse);
                    }
                    Next::Expired(old) => expired += old.len(),
                    Next::Wait(_) => break,
                    Next::Closed => panic!(),
                }
            }
            player.now += 100 * MS;
        }
        assert_eq!(player.now - begin, (second + 1) * SECOND);
    }
    assert!((590..=600).contains(&attempts), "{attempts}");
    assert!((8900..=9030).contains(&expired), "{expired}");
}
