//! The debouncer, by scripts and against a model.

use proptest::prelude::*;
use tokio::sync::mpsc;

use super::super::ack::{AckToken, Resolution};
use super::super::event::EventId;
use super::*;
use crate::protocol::NameRules;

const HOLD: Duration = Duration::from_secs(3);

fn channel(name: &str) -> ChannelName {
    ChannelName::parse(name, &NameRules::default()).unwrap()
}

fn user(id: &str) -> UserId {
    UserId::parse(id, 128).unwrap()
}

/// Plays lines of `time event`, such as `0 +room` (occupied), `100 -room/7` (member removed), `+@7` (user online)
/// and `?cache-x` (cache miss). Returns the emitted events in the same notation.
fn emitted(script: &str) -> Vec<String> {
    let mut debouncer = Debouncer::new(HOLD);
    let mut emitted = Vec::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (at, what) = line.split_once(' ').unwrap();
        let now = Duration::from_millis(at.parse().unwrap());
        let mut emit = |event: &Event<'_>, _: Option<Record>| emitted.push(format!("{at} {}", word(event)));
        debouncer.emit_due(now, &mut emit);
        if what == "." {
            continue;
        }
        with_event(what, |event| {
            debouncer.push(event, None, now, &mut emit);
        });
    }
    emitted
}

/// Pushes an event that is no record, and ignores what is emitted.
fn push(debouncer: &mut Debouncer, word: &str, now: Duration) -> Outcome {
    let mut outcome = None;
    with_event(word, |event| outcome = Some(debouncer.push(event, None, now, |_, _| ())));
    outcome.unwrap()
}

/// A reader of records, which arrive in order, but at any pace.
struct Reader {
    debouncer: Debouncer,
    resolutions: mpsc::UnboundedSender<Resolution>,
    resolved: mpsc::UnboundedReceiver<Resolution>,
    /// The number of the last record.
    number: u64,
    emitted: Vec<String>,
    /// Records that were emitted and are not acked.
    in_flight: Vec<Record>,
}

impl Reader {
    fn new() -> Self {
        let (resolutions, resolved) = mpsc::unbounded_channel();
        let (debouncer, number, emitted) = (Debouncer::new(HOLD), 0, Vec::new());
        Self { debouncer, resolutions, resolved, number, emitted, in_flight: Vec::new() }
    }

    /// Reads a record of `time_ms` at the time `now`.
    fn read(&mut self, what: &str, time_ms: u64, now: u64) -> Outcome {
        self.advance_to(now);
        self.number += 1;
        let ack_token = AckToken::new(EventId::new(7, self.number), self.resolutions.clone());
        let mut record = Some(Record { time_ms, ack_token });
        let mut outcome = None;
        with_event(what, |event| {
            let emit = |event: &Event<'_>, record: Option<Record>| {
                self.emitted.push(word(event));
                self.in_flight.extend(record);
            };
            let now = Duration::from_millis(now);
            outcome = Some(self.debouncer.push(event, record.take(), now, emit));
        });
        outcome.unwrap()
    }

    fn advance_to(&mut self, now: u64) {
        self.debouncer.emit_due(Duration::from_millis(now), |event, record| {
            self.emitted.push(word(event));
            self.in_flight.extend(record);
        });
    }

    /// The records that were resolved since the last call: their numbers, negative if nacked.
    fn resolved(&mut self) -> Vec<i64> {
        std::iter::from_fn(|| self.resolved.try_recv().ok())
            .map(|resolution| match resolution {
                Resolution::Acked(id) => id.number() as i64,
                Resolution::Nacked(id) => -(id.number() as i64),
            })
            .collect()
    }

    fn is_empty(&self) -> bool {
        self.debouncer.positions.is_empty() && self.debouncer.held.is_empty()
    }
}

#[test]
fn records_within_the_hold_debounce_each_other_however_late_they_are_read() {
    let mut reader = Reader::new();
    let hours = 3 * 3600 * 1000;
    assert_eq!(reader.read("-a", 1_000, hours), Outcome::Held);
    assert_eq!(reader.read("+a", 2_000, hours + 2_999), Outcome::Debounced);
    assert_eq!((reader.emitted.len(), reader.resolved()), (0, vec![1, 2]), "the falling edge is acked first");
    // A clock that was set back does not lengthen an absence.
    reader.read("-a", 9_000, hours + 3_000);
    assert_eq!(reader.read("+a", 1_000, hours + 3_000), Outcome::Debounced);
    assert_eq!((reader.emitted.len(), reader.resolved()), (0, vec![3, 4]));
    assert!(reader.is_empty());
}

#[test]
fn a_longer_absence_is_emitted_even_if_both_records_are_read_at_once() {
    for (apart, expected) in [(2_999, &[][..]), (3_000, &["-a", "+a"])] {
        let mut reader = Reader::new();
        reader.read("-a", 50_000, 0);
        reader.read("+a", 50_000 + apart, 0);
        assert_eq!(reader.emitted, expected, "{apart} ms");
        assert!(reader.is_empty());
    }
}

#[test]
fn held_events_of_a_channel_precede_a_later_record_in_order() {
    let mut reader = Reader::new();
    for word in ["-r/7", "-s/7", "-@7", "-r/8", "-r", "-r2"] {
        reader.read(word, 1_000, 0);
    }
    reader.read("+r", 5_000, 1);
    assert_eq!(reader.emitted, ["-r/7", "-r/8", "-r", "+r"]);
    reader.read("+r/7", 5_000, 1);
    reader.read("+@7", 5_000, 1);
    reader.read("+s/7", 3_500, 1);
    assert_eq!(reader.emitted[4..], ["+r/7", "-@7", "+@7"]);
    reader.advance_to(3_000);
    assert_eq!(reader.emitted[7..], ["-r2"]);
    assert!(reader.is_empty());
}

#[test]
fn an_old_record_is_held_from_when_it_is_read() {
    let mut reader = Reader::new();
    reader.read("-a", 0, 500_000);
    reader.advance_to(502_999);
    assert!(reader.emitted.is_empty() && reader.resolved().is_empty());
    reader.advance_to(503_000);
    assert_eq!(reader.emitted, ["-a"]);
    assert!(reader.resolved().is_empty(), "it is in flight");
    reader.in_flight.drain(..).for_each(|record| record.ack_token.ack());
    assert_eq!(reader.resolved(), [1]);
}

#[test]
fn a_repeated_falling_edge_is_emitted_once() {
    let mut reader = Reader::new();
    reader.read("-a", 0, 0);
    reader.read("-a", 1_000, 1_000);
    assert_eq!(reader.resolved(), [1]);
    reader.advance_to(3_999);
    assert!(reader.emitted.is_empty());
    reader.advance_to(4_000);
    assert_eq!(reader.emitted, ["-a"]);
    assert!(reader.is_empty());
}

#[test]
fn records_are_nacked_after_the_flush() {
    let mut reader = Reader::new();
    reader.read("-a", 0, 0);
    assert_eq!(push(&mut reader.debouncer, "-b", Duration::ZERO), Outcome::Held);
    let mut emitted = Vec::new();
    reader.debouncer.flush(|event, record| emitted.push((word(event), record.is_some())));
    assert_eq!(emitted, [("-a".to_owned(), true), ("-b".to_owned(), false)]);
    assert_eq!(reader.resolved(), [-1], "the record was dropped");
    for word in ["-c", "+d"] {
        assert_eq!(reader.read(word, 0, 0), Outcome::Nacked);
    }
    assert_eq!((reader.emitted.len(), reader.resolved()), (0, vec![-2, -3]));
}

#[test]
fn a_cancelled_record_is_not_debounced() {
    let mut reader = Reader::new();
    reader.read("-a", 1_000, 0);
    // The records are cancelled, and read again from the position of another node.
    (reader.resolutions, reader.resolved) = mpsc::unbounded_channel();
    assert_eq!(reader.read("+a", 1_500, 10), Outcome::Emitted);
    assert!(reader.is_empty() && reader.resolved().is_empty());
    let is_cancelled: Vec<_> =
        reader.in_flight.iter().map(|record| record.ack_token.is_cancelled()).collect();
    assert_eq!(is_cancelled, [true, false], "the first is not sent");
}

fn with_event(word: &str, act: impl FnOnce(&Event<'_>)) {
    let (sign, name) = word.split_at(1);
    let (of, id) = name.split_once('/').unwrap_or((name, ""));
    match (sign, of.strip_prefix('@'), id) {
        ("+", Some(id), _) => act(&Event::UserOnline(&user(id))),
        ("-", Some(id), _) => act(&Event::UserOffline(&user(id))),
        ("+", None, "") => act(&Event::ChannelOccupied(&channel(of))),
        ("-", None, "") => act(&Event::ChannelVacated(&channel(of))),
        ("+", None, id) => act(&Event::MemberAdded(&channel(of), &user(id))),
        ("-", None, id) => act(&Event::MemberRemoved(&channel(of), &user(id))),
        ("?", None, _) => act(&Event::CacheMiss(&channel(of))),
        _ => panic!("{word}"),
    }
}

fn word(event: &Event<'_>) -> String {
    match event {
        Event::ChannelOccupied(channel) => format!("+{channel}"),
        Event::ChannelVacated(channel) => format!("-{channel}"),
        Event::MemberAdded(channel, user) => format!("+{channel}/{user}"),
        Event::MemberRemoved(channel, user) => format!("-{channel}/{user}"),
        Event::UserOnline(user) => format!("+@{user}"),
        Event::UserOffline(user) => format!("-@{user}"),
        Event::CacheMiss(channel) => format!("?{channel}"),
        Event::ClientEvent { .. } | Event::SubscriptionCount(..) => panic!("{event:?}"),
    }
}

#[test]
fn a_channel_that_stays_empty_is_vacated_after_three_seconds() {
    assert_eq!(emitted("0 +a\n 100 -a\n 3099 .\n 3100 ."), ["0 +a", "3100 -a"]);
}

#[test]
fn both_halves_of_a_flap_are_dropped() {
    assert_eq!(emitted("0 +a\n 100 -a\n 3099 +a\n 9000 ."), ["0 +a"]);
    assert_eq!(emitted("0 +r/7\n 100 -r/7\n 200 +r/7\n 300 -r/7\n 3299 .\n 3300 ."), ["0 +r/7", "3300 -r/7"]);
    assert_eq!(emitted("0 +@7\n 1 -@7\n 2 +@7\n 9000 ."), ["0 +@7"]);
}

#[test]
fn a_rising_edge_after_the_hold_is_not_debounced() {
    assert_eq!(emitted("0 +a\n 100 -a\n 3100 +a\n 9000 ."), ["0 +a", "3100 -a", "3100 +a"]);
}

#[test]
fn held_events_are_emitted_in_order() {
    let script = "0 +r\n 0 +r/7\n 10 -r/7\n 10 -r\n 9000 .";
    assert_eq!(emitted(script), ["0 +r", "0 +r/7", "9000 -r/7", "9000 -r"]);
    // Another user replaces the last member: the channel was never empty, and the first user was removed.
    let script = "0 +r\n 0 +r/7\n 10 -r/7\n 10 -r\n 20 +r\n 20 +r/8\n 9000 .";
    assert_eq!(emitted(script), ["0 +r", "0 +r/7", "20 +r/8", "9000 -r/7"]);
}

#[test]
fn a_cache_miss_is_emitted_once_in_ten_seconds() {
    let script = "0 ?cache-a\n 1 ?cache-b\n 9999 ?cache-a\n 10000 ?cache-a\n 10000 ?cache-b\n 10001 ?cache-b";
    assert_eq!(emitted(script), ["0 ?cache-a", "1 ?cache-b", "10000 ?cache-a", "10001 ?cache-b"]);
}

#[test]
fn a_debounced_event_leaves_no_state() {
    let mut debouncer = Debouncer::new(HOLD);
    for round in 0..1000u64 {
        let now = Duration::from_millis(round);
        assert_eq!(push(&mut debouncer, "-a", now), Outcome::Held);
        assert_eq!(push(&mut debouncer, "+a", now), Outcome::Debounced);
    }
    assert_eq!((debouncer.positions.len(), debouncer.held.len()), (0, 0));
    for round in 0..1000u64 {
        let name = format!("cache-{round}");
        push(&mut debouncer, &format!("?{name}"), Duration::from_secs(20 * round));
    }
    assert_eq!((debouncer.recent_misses.len(), debouncer.miss_expirations.len()), (1, 1));
}

#[test]
fn without_a_hold_every_event_is_emitted_at_once() {
    let mut debouncer = Debouncer::new(Duration::ZERO);
    for word in ["+a", "-a", "+a"] {
        assert_eq!(push(&mut debouncer, word, Duration::ZERO), Outcome::Emitted);
    }
}

#[test]
fn after_the_flush_a_falling_edge_is_emitted_at_once() {
    let mut debouncer = Debouncer::new(HOLD);
    let mut emitted = Vec::new();
    assert_eq!(push(&mut debouncer, "-a", Duration::ZERO), Outcome::Held);
    debouncer.flush(|event, _| emitted.push(word(event)));
    assert_eq!(emitted, ["-a"]);
    assert_eq!(push(&mut debouncer, "-b", Duration::ZERO), Outcome::Emitted);
}

proptest! {
    /// Compared with a model: absences shorter than the debounce time are invisible; all other edges alternate, in
    /// order, and the last one matches the state.
    #[test]
    fn edges_alternate_without_flaps_and_end_in_the_state(
        steps in prop::collection::vec((0..5usize, 0..4000u64), 0..60),
    ) {
        let subjects = ["a", "b", "r/7", "r/8", "@7"];
        let mut debouncer = Debouncer::new(HOLD);
        let (mut emitted, mut happened) = (Vec::new(), Vec::new());
        let (mut here, mut clock) = ([false; 5], 0);
        for (subject, later) in steps {
            clock += later;
            let now = Duration::from_millis(clock);
            let mut emit = |event: &Event<'_>, _: Option<Record>| emitted.push(word(event));
            debouncer.emit_due(now, &mut emit);
            here[subject] ^= true;
            happened.push((subject, here[subject], clock));
            let sign = if here[subject] { '+' } else { '-' };
            with_event(&format!("{sign}{}", subjects[subject]), |event| {
                debouncer.push(event, None, now, &mut emit);
            });
        }
        debouncer.flush(|event, _| emitted.push(word(event)));
        prop_assert!(debouncer.positions.is_empty() && debouncer.held.is_empty());
        for (subject, name) in subjects.iter().enumerate() {
            let mut expected: Vec<(bool, u64)> = Vec::new();
            for (_, is_here, at) in happened.iter().filter(|(of, _, _)| *of == subject) {
                match expected.last() {
                    Some((false, left)) if *is_here && at - left < 3000 => {
                        expected.pop();
                    }
                    _ => expected.push((*is_here, *at)),
                }
            }
            let expected: Vec<_> =
                expected.iter().map(|(here, _)| format!("{}{name}", if *here { '+' } else { '-' })).collect();
            let seen: Vec<_> = emitted.iter().filter(|word| word[1..] == **name).cloned().collect();
            prop_assert_eq!(&seen, &expected);
            prop_assert!(seen.iter().enumerate().all(|(at, word)| word.starts_with('+') == (at % 2 == 0)));
            prop_assert_eq!(seen.last().is_some_and(|word| word.starts_with('+')), here[subject]);
        }
    }

    /// The same for records: the times of the records decide, unless the falling edge was emitted before the rising
    /// edge was read. A record is acked when it is debounced, and not while it is in flight.
    #[test]
    fn records_are_debounced_at_any_pace_of_reading(
        steps in prop::collection::vec((0..6usize, 0..4000u64, 0..4000u64), 0..60),
    ) {
        let subjects = ["a", "r", "r/7", "r/8", "@7", "@8"];
        let mut reader = Reader::new();
        let (mut happened, mut here) = (Vec::new(), [false; 6]);
        let (mut clock, mut now) = (0, 0);
        for (subject, later, read_later) in steps {
            (clock, now) = (clock + later, now + read_later);
            here[subject] ^= true;
            let sign = if here[subject] { '+' } else { '-' };
            reader.read(&format!("{sign}{}", subjects[subject]), clock, now);
            happened.push((subject, here[subject], clock, now));
        }
        reader.advance_to(u64::MAX);
        prop_assert!(reader.is_empty());
        let mut debounced = Vec::new();
        let emitted: Vec<_> = reader.in_flight.iter().map(|record| record.ack_token.id().number()).collect();
        for (subject, name) in subjects.iter().enumerate() {
            let mut expected: Vec<(u64, bool, u64, u64)> = Vec::new();
            for (number, (_, is_here, at, read)) in
                (1..).zip(&happened).filter(|(_, (of, ..))| *of == subject)
            {
                match expected.last() {
                    Some((falling, false, left, falling_read))
                        if *is_here && at - left < 3000 && read - falling_read < 3000 =>
                    {
                        debounced.extend([*falling as i64, number as i64]);
                        expected.pop();
                    }
                    _ => expected.push((number, *is_here, *at, *read)),
                }
            }
            let expected: Vec<_> = expected.into_iter().map(|(number, ..)| number).collect();
            let is_of = |number: &u64| happened[*number as usize - 1].0 == subject;
            let seen: Vec<_> = emitted.iter().copied().filter(is_of).collect();
            prop_assert_eq!(seen, expected, "{}", name);
        }
        let falling_of_r = emitted.iter().filter(|number| {
            let (subject, is_here, ..) = happened[**number as usize - 1];
            !is_here && (1..=3).contains(&subject)
        });
        prop_assert!(falling_of_r.is_sorted(), "{:?}", emitted);
        let mut resolved = reader.resolved();
        resolved.sort_unstable();
        debounced.sort_unstable();
        prop_assert_eq!(resolved, debounced);
    }
}
