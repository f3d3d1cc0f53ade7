//! The queue against a model of channels, over random operations.

use proptest::prelude::*;
use tokio::sync::mpsc;

use super::super::super::ack::Resolution;
use super::*;

/// A step of the model.
#[derive(Clone, Debug)]
enum Step {
    Join(usize, usize),
    Leave(usize, usize),
    ClientEvent(usize),
    Send,
    /// Ends the request in flight of this index.
    Finish(usize, Option<Failure>),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let failure = prop_oneof![
        4 => Just(None),
        1 => Just(Some(Failure::Rejected)),
        1 => Just(Some(Failure::NoResponse)),
    ];
    prop_oneof![
        4 => (0..3usize, 0..2usize).prop_map(|(channel, user)| Step::Join(channel, user)),
        4 => (0..3usize, 0..2usize).prop_map(|(channel, user)| Step::Leave(channel, user)),
        1 => (0..3usize).prop_map(Step::ClientEvent),
        4 => Just(Step::Send),
        4 => (0..8usize, failure).prop_map(|(which, failure)| Step::Finish(which, failure)),
        2 => (0..3000u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Over all orders of pushes, requests, rejections and timeouts: edges of a channel or member alternate and
    /// begin with a rising one, events of a channel are in order, the last edge matches the state, and each record
    /// is resolved once. With evictions and expirations only the last of these holds.
    #[test]
    fn delivered_events_are_consistent_under_random_failures(
        batches in prop::bool::ANY,
        is_bounded in prop::bool::ANY,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let mut fixture = Fixture::new(if batches { 1 } else { 4 }, batches.then_some(WINDOW));
        if is_bounded {
            fixture.queue.options.bytes_max = 6 * (4 + OVERHEAD_BYTES);
            fixture.queue.options.delivery_timeout = 20 * SECOND;
        } else {
            fixture.queue.options.delivery_timeout = Duration::from_secs(1_000_000_000);
        }
        let ack = |event: QueuedEvent| event.ack_token.unwrap().ack();
        let (resolutions, mut resolved) = mpsc::unbounded_channel();
        let (mut pushed, mut in_flight, mut here) = (0, Vec::<Request>::new(), [[false; 2]; 3]);
        // Events as they were delivered, and as they were first sent.
        let (mut delivered, mut sent) = (Vec::<(u64, String)>::new(), BTreeMap::<u64, String>::new());
        let mut first_sent = Vec::<u64>::new();
        let mut push = |fixture: &mut Fixture, word: String| {
            pushed += 1;
            let ack_token = AckToken::new(EventId::new(7, pushed), resolutions.clone());
            let encoded = EncodedEvent { id: ack_token.id(), ..encode(&word) };
            let result = fixture.queue.push(QueuedEvent::new(encoded, Some(ack_token), fixture.now)).unwrap();
            assert!(is_bounded || result.evicted.is_empty());
            result.cancelled.into_iter().chain(result.evicted).for_each(ack);
        };
        let deliver = |fixture: &mut Fixture, request: Request, delivered: &mut Vec<(u64, String)>| {
            for event in fixture.queue.complete(request, fixture.now) {
                let word = String::from_utf8(event.encoded.json.to_vec()).unwrap();
                delivered.push((event.encoded.id.number(), word));
                event.ack_token.unwrap().ack();
            }
        };
        let mut count_sent = |request: &Request| {
            for event in &request.events {
                let word = String::from_utf8(event.encoded.json.to_vec()).unwrap();
                if sent.insert(event.encoded.id.number(), word).is_none() {
                    first_sent.push(event.encoded.id.number());
                }
            }
        };
        for step in steps {
            match step {
                Step::Join(channel, user) if !here[channel][user] => {
                    let name = ["a", "b", "C"][channel];
                    if here[channel] == [false; 2] {
                        push(&mut fixture, format!("+{name}"));
                    }
                    here[channel][user] = true;
                    push(&mut fixture, format!("+{name}/{user}"));
                }
                Step::Leave(channel, user) if here[channel][user] => {
                    let name = ["a", "b", "C"][channel];
                    here[channel][user] = false;
                    push(&mut fixture, format!("-{name}/{user}"));
                    if here[channel] == [false; 2] {
                        push(&mut fixture, format!("-{name}"));
                    }
                }
                Step::ClientEvent(channel) => push(&mut fixture, format!("!{}", ["a", "b", "C"][channel])),
                Step::Send if in_flight.len() < fixture.queue.options.senders => match fixture.next() {
                    Next::Send(request) => {
                        count_sent(&request);
                        in_flight.push(request);
                    }
                    Next::Expired(old) => old.into_iter().for_each(ack),
                    Next::Wait(_) | Next::End => {}
                },
                Step::Finish(which, failure) if !in_flight.is_empty() => {
                    let request = in_flight.swap_remove(which % in_flight.len());
                    match failure {
                        None => deliver(&mut fixture, request, &mut delivered),
                        Some(failure) => fixture.fail(request, failure),
                    }
                }
                Step::Wait(ms) => fixture.now += Duration::from_millis(ms),
                Step::Join(..) | Step::Leave(..) | Step::Send | Step::Finish(..) => {}
            }
        }
        for request in in_flight.drain(..) {
            deliver(&mut fixture, request, &mut delivered);
        }
        while !fixture.queue.is_empty() {
            match fixture.next() {
                Next::Send(request) => {
                    count_sent(&request);
                    deliver(&mut fixture, request, &mut delivered);
                }
                Next::Wait(Some(until)) => fixture.now = until,
                Next::Expired(old) => old.into_iter().for_each(ack),
                other @ (Next::Wait(None) | Next::End) => panic!("{other:?}"),
            }
        }
        fixture.now += 1000 * SECOND;
        fixture.assert_empty();
        let first_sent: Vec<_> = first_sent.into_iter().map(|id| (id, sent[&id].clone())).collect();
        for seen in [&delivered, &first_sent].into_iter().filter(|_| !is_bounded) {
            for (channel, name) in ["a", "b", "C"].into_iter().enumerate() {
                let is_about = |word: &str| word.trim_start_matches(['+', '-', '!']).starts_with(name);
                let of_channel = seen.iter().filter(|(_, word)| is_about(word));
                prop_assert!(of_channel.map(|(id, _)| *id).is_sorted(), "{:?}", seen);
                let things = [name.to_owned(), format!("{name}/0"), format!("{name}/1")];
                let is_present = [here[channel] != [false; 2], here[channel][0], here[channel][1]];
                for (thing, is_present) in things.iter().zip(is_present) {
                    let words = seen.iter().filter(|(_, word)| word[1..] == **thing && !word.starts_with('!'));
                    let signs: String = words.map(|(_, word)| &word[..1]).collect();
                    prop_assert_eq!(&signs, &"+-".repeat(signs.len())[..signs.len()], "{}", thing);
                    prop_assert_eq!(signs.ends_with('+'), is_present, "{}", thing);
                }
            }
        }
        drop(resolutions);
        let mut ids: Vec<_> = std::iter::from_fn(|| resolved.try_recv().ok()).map(|resolution| match resolution {
            Resolution::Acked(id) => id.number(),
            Resolution::Nacked(id) => panic!("{id} is nacked"),
        }).collect();
        ids.sort_unstable();
        prop_assert_eq!(ids, (1..=pushed).collect::<Vec<_>>());
    }
}
