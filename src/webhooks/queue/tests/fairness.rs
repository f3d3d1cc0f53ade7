//! Turns of classes and subjects.

use super::*;

#[tokio::test]
async fn a_subject_has_one_request_in_flight_while_others_take_turns() {
    let mut fixture = Fixture::new(8, None);
    fixture.push("a1 a2 a3 b1 c1 b2");
    let [a1, b1, c1] = [fixture.send(), fixture.send(), fixture.send()];
    assert_eq!([&a1, &b1, &c1].map(|request| texts(&request.events)), ["a1", "b1", "c1"]);
    assert_eq!(fixture.wait(), Some(DELIVERY_TIMEOUT), "until they expire");
    fixture.deliver(b1);
    fixture.deliver(a1);
    fixture.deliver(c1);
    fixture.deliver_all(["b2", "a2", "a3"]);
    fixture.assert_empty();
}

#[tokio::test]
async fn classes_take_turns() {
    let mut fixture = Fixture::new(1, None);
    fixture.push("+a +b +c +d +e +X +Y !k1 !l1 +R +R/7");
    // The member of R takes the turn of the class of members, but its channel must be sent first.
    fixture.deliver_all(["+R", "!k1", "+X", "+a", "+R/7", "!l1", "+Y", "+b", "+c", "+d", "+e"]);
    fixture.assert_empty();
}

/// Ten clients subscribe to 95 new channel names a second each, and the receiver takes 50 ms for a request.
#[tokio::test]
async fn clients_that_create_channels_do_not_delay_members_of_another_channel() {
    let mut fixture = Fixture::new(8, None);
    let begin = fixture.now;
    let (mut in_flight, mut joined, mut worst) = (Vec::new(), None, Duration::ZERO);
    let (mut sent_count, mut vacated, mut longest) = (0, 0, 0);
    let edge = |is_rising, at: u32| EncodedEvent {
        subject: 1_000_000 + u64::from(at),
        edge: Some(Edge { member: None, is_rising }),
        ..encode("a")
    };
    let mut occupied = 0;
    while fixture.now < begin + 20 * SECOND {
        let ms = (fixture.now - begin).as_millis() as u32;
        while occupied < ms * 475 / 1000 {
            occupied += 1;
            fixture.queue.push(QueuedEvent::new(edge(true, occupied), None, fixture.now)).unwrap();
        }
        // They unsubscribe at once; the debouncer emits that after three seconds.
        while vacated < ms.saturating_sub(3000) * 475 / 1000 {
            vacated += 1;
            fixture.queue.push(QueuedEvent::new(edge(false, vacated), None, fixture.now)).unwrap();
        }
        if ms.is_multiple_of(500) && joined.is_none() {
            fixture.push("+R +R/7 -R/7 -R +R +R/7");
            joined = Some(fixture.now);
        }
        let (done, running): (Vec<(Instant, Request)>, Vec<_>) =
            in_flight.into_iter().partition(|(at, _)| *at <= fixture.now);
        in_flight = running;
        for (_, request) in done {
            if texts(&request.events) == "+R/7" {
                worst = worst.max(fixture.now - joined.take().unwrap());
                sent_count += 1;
            }
            fixture.deliver(request);
        }
        while in_flight.len() < 8
            && let Next::Send(request) = fixture.next()
        {
            in_flight.push((fixture.now + 50 * MS, request));
        }
        longest = longest.max(fixture.queue.events.len());
        fixture.now += 5 * MS;
    }
    assert!(sent_count >= 35 && worst < SECOND / 2, "{sent_count}, {worst:?}");
    // Channels that are vacated before their event is sent are cancelled.
    assert!(longest < 3000, "{longest}");
}
