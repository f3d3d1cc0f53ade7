//! Cancellation of pairs.

use tokio::sync::mpsc;

use super::super::super::ack::Resolution;
use super::*;

#[tokio::test]
async fn a_pair_that_was_not_sent_cancels_out() {
    for (words, cancelled, left) in [
        ("+a -a", "+a -a", ""),
        ("+a/7 -a/7", "+a/7 -a/7", ""),
        ("+a +a/7 -a/7 -a", "+a/7 -a/7 +a -a", ""),
        ("+a +b -a -b", "+a -a +b -b", ""),
        // Members are pairs of their own.
        ("+a +a/7 +a/8 -a/7", "+a/7 -a/7", "+a +a/8"),
        ("+a +b/7 -a/7", "", "+a +b/7 -a/7"),
        // A vacated channel cancels all events about its subscribers; client events stay.
        ("x1 +x x2 !x3 +x/7 -x x4", "+x x2 +x/7 -x", "x1 !x3 x4"),
        // The falling edge of an edge that was sent stays, whether or not a rising edge follows.
        ("-a +a", "", "-a +a"),
        ("-a +a -a +a -a", "+a -a +a -a", "-a"),
        ("-a +a -a +a", "+a -a", "-a +a"),
    ] {
        let mut fixture = Fixture::new(1, None);
        assert_eq!(fixture.push(words), (String::new(), cancelled.to_owned()), "{words}");
        let mut sent: Vec<_> = std::iter::from_fn(|| match fixture.next() {
            Next::Send(request) => Some((texts(&request.events), fixture.deliver(request)).0),
            Next::Expired(_) | Next::Wait(_) | Next::End => None,
        })
        .collect();
        sent.sort_by_key(|text| words.find(text.as_str()));
        assert_eq!(sent.join(" "), left, "{words}");
        fixture.assert_empty();
    }
}

#[tokio::test]
async fn a_half_that_may_have_been_delivered_is_followed_by_the_other() {
    let mut fixture = Fixture::new(8, None);
    fixture.push("+a");
    let request = fixture.send();
    assert_eq!(fixture.push("-a"), Default::default(), "it is in flight");
    fixture.fail(request, Failure::NoResponse);
    fixture.push("+b");
    fixture.now += SECOND;
    fixture.deliver_all(["+b"]);
    assert_eq!(fixture.push("+a -a").1, "+a -a");
    fixture.deliver_all(["+a", "-a"]);
    fixture.assert_empty();
}

#[tokio::test]
async fn paired_records_are_acked_in_order_and_a_cancelled_token_cancels_no_pair() {
    let mut fixture = Fixture::new(1, None);
    let (resolutions, mut resolved) = mpsc::unbounded_channel();
    let push = |word, number, resolutions: &mpsc::UnboundedSender<Resolution>, fixture: &mut Fixture| {
        let ack_token = AckToken::new(EventId::new(7, number), resolutions.clone());
        fixture.queue.push(QueuedEvent::new(encode(word), Some(ack_token), fixture.now)).unwrap()
    };
    push("+a", 1, &resolutions, &mut fixture);
    for event in push("-a", 2, &resolutions, &mut fixture).cancelled {
        event.ack_token.unwrap().ack();
    }
    let acked = [1, 2].map(|number| Ok(Resolution::Acked(EventId::new(7, number))));
    assert_eq!([resolved.try_recv(), resolved.try_recv()], acked);
    push("+a", 3, &resolutions, &mut fixture);
    // Another node reads the records now, and may have sent this one.
    let (resolutions, _resolved) = mpsc::unbounded_channel();
    drop(resolved);
    assert!(push("-a", 4, &resolutions, &mut fixture).cancelled.is_empty());
    let request = fixture.send();
    assert!(request.events[0].has_cancelled_token());
    fixture.deliver(request);
    assert_eq!(texts(&fixture.send().events), "-a");
}
