//! What is told at once, what waits, and what is not worth telling. Pure: time is an argument.
//!
//! Who goes and comes back within a few seconds, as everyone does who loads a page, was never gone: both halves are
//! dropped. So what is gone is held, and told only when it stayed away. What is here is not remembered: events come
//! in the order in which they happened, so that whatever comes was gone before.
//!
//! Records of a cluster may be read long after they happened. Who went is held from then on, as it is not known yet
//! whether they came back; for how long they were gone is a matter of when both happened.
//!
//! Source: protocol.md §9.3.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::event::Event;
use super::receipt::Record;
use crate::protocol::{ChannelName, UserId};

/// A channel whose cache stays empty is told of this often.
const MISS_INTERVAL: Duration = Duration::from_secs(10);

/// Who went.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Gone {
    Channel(ChannelName),
    Member(ChannelName, UserId),
    User(UserId),
}

impl Gone {
    /// What is told when it stays away.
    const fn event(&self) -> Event<'_> {
        match self {
            Self::Channel(channel) => Event::ChannelVacated(channel),
            Self::Member(channel, user) => Event::MemberRemoved(channel, user),
            Self::User(user) => Event::UserOffline(user),
        }
    }

    const fn channel(&self) -> Option<&ChannelName> {
        match self {
            Self::Channel(channel) | Self::Member(channel, _) => Some(channel),
            Self::User(_) => None,
        }
    }
}

/// Somebody who went, and may come back.
#[derive(Debug)]
struct Held {
    /// When that is told.
    due: Duration,
    gone: Gone,
    record: Option<Record>,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// It is told.
    Told,
    /// It waits.
    Held,
    /// It undid what was held: neither is told.
    Undone,
    /// It was told of lately.
    Skipped,
    /// It is left to the other nodes.
    Released,
}

/// What waits. One for all that must be told in order.
#[derive(Debug)]
pub(super) struct Smoothing {
    hold: Duration,
    /// Nothing is held any more, and records are left to the other nodes.
    is_over: bool,
    /// Who went, with their places in `order`.
    held: HashMap<Gone, u64>,
    /// The same by when they went.
    order: BTreeMap<u64, Held>,
    next: u64,
    /// Channels whose empty cache was told of lately.
    missed: HashSet<ChannelName>,
    /// The same by when they may be told of again.
    misses: VecDeque<(Duration, ChannelName)>,
}

impl Smoothing {
    /// Nothing waits. `hold` is how long who went is waited for; zero: not at all.
    pub(super) fn new(hold: Duration) -> Self {
        Self {
            hold,
            is_over: false,
            held: HashMap::new(),
            order: BTreeMap::new(),
            next: 0,
            missed: HashSet::new(),
            misses: VecDeque::new(),
        }
    }

    /// Decides about an event, and tells what is to be told now: the event, or what must be told before it as well.
    /// Those of one channel come in the order in which they happened.
    pub(super) fn take(
        &mut self,
        event: &Event<'_>,
        record: Option<Record>,
        now: Duration,
        mut tell: impl FnMut(&Event<'_>, Option<Record>),
    ) -> Verdict {
        if self.is_over && record.is_some() {
            return Verdict::Released;
        }
        let (went, gone) = match *event {
            Event::ChannelVacated(channel) => (true, Gone::Channel(channel.clone())),
            Event::MemberRemoved(channel, user) => (true, Gone::Member(channel.clone(), user.clone())),
            Event::UserOffline(user) => (true, Gone::User(user.clone())),
            Event::ChannelOccupied(channel) => (false, Gone::Channel(channel.clone())),
            Event::MemberAdded(channel, user) => (false, Gone::Member(channel.clone(), user.clone())),
            Event::UserOnline(user) => (false, Gone::User(user.clone())),
            Event::CacheMiss(channel) if !self.misses(channel, now) => return Verdict::Skipped,
            Event::CacheMiss(_) | Event::ClientEvent { .. } | Event::SubscriptionCount(..) => {
                tell(event, record);
                return Verdict::Told;
            }
        };
        if went && !self.is_over && !self.hold.is_zero() {
            self.hold(gone, record, now);
            return Verdict::Held;
        }
        if !went && let Some(&place) = self.held.get(&gone) {
            if self.undoes(record.as_ref(), &self.order[&place]) {
                // Who went first: whoever reads one half again must not read that one alone.
                let halves = [self.remove(place).record, record];
                halves.into_iter().flatten().for_each(|record| record.receipt.settle());
                return Verdict::Undone;
            }
            self.tell_until(place, &mut tell);
        }
        tell(event, record);
        Verdict::Told
    }

    /// Holds who went; once, if they went again and it was not heard that they came back.
    fn hold(&mut self, gone: Gone, record: Option<Record>, now: Duration) {
        if let Some(&before) = self.held.get(&gone)
            && let Some(record) = self.remove(before).record
        {
            record.receipt.settle();
        }
        self.held.insert(gone.clone(), self.next);
        self.order.insert(self.next, Held { due: now + self.hold, gone, record });
        self.next += 1;
    }

    /// Whether who is held has come back in time with `back`.
    fn undoes(&self, back: Option<&Record>, held: &Held) -> bool {
        match (&held.record, back) {
            // It is not sent, whatever is told; what became of it is known to others.
            (Some(gone), _) if gone.receipt.is_void() => false,
            (Some(gone), Some(back)) => {
                Duration::from_millis(back.time_ms.saturating_sub(gone.time_ms)) < self.hold
            }
            (Some(_) | None, Some(_) | None) => true,
        }
    }

    fn remove(&mut self, place: u64) -> Held {
        let held = self.order.remove(&place).expect("what is held has its place");
        self.held.remove(&held.gone);
        held
    }

    /// Tells of who is held in this place; before that of all who went from the same channel before. Looks at all who
    /// are held: only records that are read long after they happened come here.
    fn tell_until(&mut self, place: u64, tell: &mut impl FnMut(&Event<'_>, Option<Record>)) {
        let channel = self.order[&place].gone.channel();
        let goes_before = |held: &Held| channel.is_some() && held.gone.channel() == channel;
        let before = self.order.range(..place).filter(|(_, held)| goes_before(held));
        let places: Vec<_> = before.map(|(place, _)| *place).chain([place]).collect();
        for place in places {
            let Held { gone, record, .. } = self.remove(place);
            tell(&gone.event(), record);
        }
    }

    /// Whether it is worth telling that a channel's cache is empty.
    fn misses(&mut self, channel: &ChannelName, now: Duration) -> bool {
        while let Some((_, old)) = self.misses.pop_front_if(|(until, _)| *until <= now) {
            self.missed.remove(&old);
        }
        let is_news = self.missed.insert(channel.clone());
        if is_news {
            self.misses.push_back((now + MISS_INTERVAL, channel.clone()));
        }
        is_news
    }

    /// When [`Smoothing::settle`] has something to tell.
    pub(super) fn due(&self) -> Option<Duration> {
        self.order.first_key_value().map(|(_, held)| held.due)
    }

    /// Tells of those who stayed away, in the order in which they went.
    pub(super) fn settle(&mut self, now: Duration, mut tell: impl FnMut(&Event<'_>, Option<Record>)) {
        while let Some(first) = self.order.first_entry()
            && first.get().due <= now
        {
            let Held { gone, record, .. } = first.remove();
            self.held.remove(&gone);
            tell(&gone.event(), record);
        }
    }

    /// Tells of all who went, without waiting any longer, nor for those who go after this. Records are released, these
    /// and all that come: the other nodes go on waiting for those who went.
    pub(super) fn flush(&mut self, mut tell: impl FnMut(&Event<'_>)) -> usize {
        self.is_over = true;
        let mut released = 0;
        self.settle(Duration::MAX, |event, record| match record {
            None => tell(event),
            Some(_) => released += 1,
        });
        released
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::super::event::EventId;
    use super::super::receipt::{End, Receipt};
    use super::*;
    use crate::protocol::NameRules;

    const HOLD: Duration = Duration::from_secs(3);

    fn channel(name: &str) -> ChannelName {
        ChannelName::parse(name, &NameRules::default()).unwrap()
    }

    fn user(id: &str) -> UserId {
        UserId::parse(id, 128).unwrap()
    }

    /// Plays `at what` lines, such as `0 +room` (occupied), `100 -room/7` (member gone), `+@7` (user online) and
    /// `?cache-x` (miss); what is told, in the same words with the time.
    fn told(script: &str) -> Vec<String> {
        let mut smoothing = Smoothing::new(HOLD);
        let mut told = Vec::new();
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (at, what) = line.split_once(' ').unwrap();
            let now = Duration::from_millis(at.parse().unwrap());
            let mut tell = |event: &Event<'_>, _: Option<Record>| told.push(format!("{at} {}", word(event)));
            smoothing.settle(now, &mut tell);
            if what == "." {
                continue;
            }
            with_event(what, |event| {
                smoothing.take(event, None, now, &mut tell);
            });
        }
        told
    }

    /// Notes what is no record; what is told is not looked at.
    fn take(smoothing: &mut Smoothing, word: &str, now: Duration) -> Verdict {
        let mut verdict = None;
        with_event(word, |event| verdict = Some(smoothing.take(event, None, now, |_, _| ())));
        verdict.unwrap()
    }

    /// A reader of records, which come in the order in which they happened, but at its own pace.
    struct Reader {
        smoothing: Smoothing,
        ends: mpsc::UnboundedSender<End>,
        ended: mpsc::UnboundedReceiver<End>,
        /// The number of the last record.
        number: u64,
        told: Vec<String>,
        /// The records that were told, none of which is settled.
        on_their_way: Vec<Record>,
    }

    impl Reader {
        fn new() -> Self {
            let (ends, ended) = mpsc::unbounded_channel();
            let (smoothing, number, told) = (Smoothing::new(HOLD), 0, Vec::new());
            Self { smoothing, ends, ended, number, told, on_their_way: Vec::new() }
        }

        /// Notes, at `now`, that something happened at `time_ms`.
        fn note(&mut self, what: &str, time_ms: u64, now: u64) -> Verdict {
            self.pass(now);
            self.number += 1;
            let receipt = Receipt::new(EventId::new(7, self.number), self.ends.clone());
            let mut record = Some(Record { time_ms, receipt });
            let mut verdict = None;
            with_event(what, |event| {
                let tell = |event: &Event<'_>, record: Option<Record>| {
                    self.told.push(word(event));
                    self.on_their_way.extend(record);
                };
                let now = Duration::from_millis(now);
                verdict = Some(self.smoothing.take(event, record.take(), now, tell));
            });
            verdict.unwrap()
        }

        fn pass(&mut self, now: u64) {
            self.smoothing.settle(Duration::from_millis(now), |event, record| {
                self.told.push(word(event));
                self.on_their_way.extend(record);
            });
        }

        /// What has ended since this was asked last: the numbers of records, negative where they are released.
        fn ended(&mut self) -> Vec<i64> {
            std::iter::from_fn(|| self.ended.try_recv().ok())
                .map(|end| match end {
                    End::Settled(id) => id.number() as i64,
                    End::Released(id) => -(id.number() as i64),
                })
                .collect()
        }

        fn is_empty(&self) -> bool {
            self.smoothing.held.is_empty() && self.smoothing.order.is_empty()
        }
    }

    #[test]
    fn records_that_happened_within_the_hold_undo_each_other_however_late_they_are_read() {
        let mut reader = Reader::new();
        let hours = 3 * 3600 * 1000;
        assert_eq!(reader.note("-a", 1_000, hours), Verdict::Held);
        assert_eq!(reader.note("+a", 2_000, hours + 2_999), Verdict::Undone);
        assert_eq!((reader.told.len(), reader.ended()), (0, vec![1, 2]), "who went is settled first");
        // A clock that was put back makes nobody stay away.
        reader.note("-a", 9_000, hours + 3_000);
        assert_eq!(reader.note("+a", 1_000, hours + 3_000), Verdict::Undone);
        assert_eq!((reader.told.len(), reader.ended()), (0, vec![3, 4]));
        assert!(reader.is_empty());
    }

    #[test]
    fn who_was_gone_for_longer_was_gone_even_if_both_records_are_read_at_once() {
        for (apart, expected) in [(2_999, &[][..]), (3_000, &["-a", "+a"])] {
            let mut reader = Reader::new();
            reader.note("-a", 50_000, 0);
            reader.note("+a", 50_000 + apart, 0);
            assert_eq!(reader.told, expected, "{apart} ms");
            assert!(reader.is_empty());
        }
    }

    #[test]
    fn what_is_told_because_of_a_later_record_is_told_in_the_order_of_its_channel() {
        let mut reader = Reader::new();
        for word in ["-r/7", "-s/7", "-@7", "-r/8", "-r", "-r2"] {
            reader.note(word, 1_000, 0);
        }
        reader.note("+r", 5_000, 1);
        assert_eq!(reader.told, ["-r/7", "-r/8", "-r", "+r"]);
        reader.note("+r/7", 5_000, 1);
        reader.note("+@7", 5_000, 1);
        reader.note("+s/7", 3_500, 1);
        assert_eq!(reader.told[4..], ["+r/7", "-@7", "+@7"]);
        reader.pass(3_000);
        assert_eq!(reader.told[7..], ["-r2"]);
        assert!(reader.is_empty());
    }

    #[test]
    fn an_old_record_that_nothing_follows_is_held_from_when_it_is_read() {
        let mut reader = Reader::new();
        reader.note("-a", 0, 500_000);
        reader.pass(502_999);
        assert!(reader.told.is_empty() && reader.ended().is_empty());
        reader.pass(503_000);
        assert_eq!(reader.told, ["-a"]);
        assert!(reader.ended().is_empty(), "it is on its way");
        reader.on_their_way.drain(..).for_each(|record| record.receipt.settle());
        assert_eq!(reader.ended(), [1]);
    }

    #[test]
    fn who_goes_twice_is_told_of_once() {
        let mut reader = Reader::new();
        reader.note("-a", 0, 0);
        reader.note("-a", 1_000, 1_000);
        assert_eq!(reader.ended(), [1]);
        reader.pass(3_999);
        assert!(reader.told.is_empty());
        reader.pass(4_000);
        assert_eq!(reader.told, ["-a"]);
        assert!(reader.is_empty());
    }

    #[test]
    fn records_are_released_by_the_last_flush_and_after_it() {
        let mut reader = Reader::new();
        reader.note("-a", 0, 0);
        assert_eq!(take(&mut reader.smoothing, "-b", Duration::ZERO), Verdict::Held);
        let mut told = Vec::new();
        assert_eq!(reader.smoothing.flush(|event| told.push(word(event))), 1);
        assert_eq!((told, reader.ended()), (vec!["-b".to_owned()], vec![-1]));
        for word in ["-c", "+d"] {
            assert_eq!(reader.note(word, 0, 0), Verdict::Released);
        }
        assert_eq!((reader.told.len(), reader.ended()), (0, vec![-2, -3]));
    }

    #[test]
    fn a_void_record_undoes_nothing() {
        let mut reader = Reader::new();
        reader.note("-a", 1_000, 0);
        // The records were given up, and are read again from where another node has come to.
        (reader.ends, reader.ended) = mpsc::unbounded_channel();
        assert_eq!(reader.note("+a", 1_500, 10), Verdict::Told);
        assert!(reader.is_empty() && reader.ended().is_empty());
        let is_void: Vec<_> = reader.on_their_way.iter().map(|record| record.receipt.is_void()).collect();
        assert_eq!(is_void, [true, false], "the first is not sent");
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
        assert_eq!(told("0 +a\n 100 -a\n 3099 .\n 3100 ."), ["0 +a", "3100 -a"]);
    }

    #[test]
    fn both_halves_of_a_flap_are_dropped() {
        assert_eq!(told("0 +a\n 100 -a\n 3099 +a\n 9000 ."), ["0 +a"]);
        assert_eq!(
            told("0 +r/7\n 100 -r/7\n 200 +r/7\n 300 -r/7\n 3299 .\n 3300 ."),
            ["0 +r/7", "3300 -r/7"]
        );
        assert_eq!(told("0 +@7\n 1 -@7\n 2 +@7\n 9000 ."), ["0 +@7"]);
    }

    #[test]
    fn who_comes_back_too_late_has_been_gone() {
        assert_eq!(told("0 +a\n 100 -a\n 3100 +a\n 9000 ."), ["0 +a", "3100 -a", "3100 +a"]);
    }

    #[test]
    fn what_goes_together_is_told_in_order() {
        let script = "0 +r\n 0 +r/7\n 10 -r/7\n 10 -r\n 9000 .";
        assert_eq!(told(script), ["0 +r", "0 +r/7", "9000 -r/7", "9000 -r"]);
        // Another user takes the last one's place: the channel was never empty, and the first user is gone.
        let script = "0 +r\n 0 +r/7\n 10 -r/7\n 10 -r\n 20 +r\n 20 +r/8\n 9000 .";
        assert_eq!(told(script), ["0 +r", "0 +r/7", "20 +r/8", "9000 -r/7"]);
    }

    #[test]
    fn an_empty_cache_is_told_of_once_in_ten_seconds() {
        let script =
            "0 ?cache-a\n 1 ?cache-b\n 9999 ?cache-a\n 10000 ?cache-a\n 10000 ?cache-b\n 10001 ?cache-b";
        assert_eq!(told(script), ["0 ?cache-a", "1 ?cache-b", "10000 ?cache-a", "10001 ?cache-b"]);
    }

    #[test]
    fn nothing_is_kept_of_what_is_over() {
        let mut smoothing = Smoothing::new(HOLD);
        for round in 0..1000u64 {
            let now = Duration::from_millis(round);
            assert_eq!(take(&mut smoothing, "-a", now), Verdict::Held);
            assert_eq!(take(&mut smoothing, "+a", now), Verdict::Undone);
        }
        assert_eq!((smoothing.held.len(), smoothing.order.len()), (0, 0));
        for round in 0..1000u64 {
            let name = format!("cache-{round}");
            take(&mut smoothing, &format!("?{name}"), Duration::from_secs(20 * round));
        }
        assert_eq!((smoothing.missed.len(), smoothing.misses.len()), (1, 1));
    }

    #[test]
    fn without_smoothing_everything_is_told_at_once() {
        let mut smoothing = Smoothing::new(Duration::ZERO);
        for word in ["+a", "-a", "+a"] {
            assert_eq!(take(&mut smoothing, word, Duration::ZERO), Verdict::Told);
        }
    }

    #[test]
    fn after_the_last_flush_who_goes_is_told_of_at_once() {
        let mut smoothing = Smoothing::new(HOLD);
        let mut told = Vec::new();
        assert_eq!(take(&mut smoothing, "-a", Duration::ZERO), Verdict::Held);
        smoothing.flush(|event| told.push(word(event)));
        assert_eq!(told, ["-a"]);
        assert_eq!(take(&mut smoothing, "-b", Duration::ZERO), Verdict::Told);
    }

    proptest! {
        /// Against the rule itself: for each subject, absences shorter than the hold are not there at all, and
        /// everything else is told, by turns, in order, the truth last.
        #[test]
        fn receivers_see_the_truth_without_flaps(
            steps in prop::collection::vec((0..5usize, 0..4000u64), 0..60),
        ) {
            let subjects = ["a", "b", "r/7", "r/8", "@7"];
            let mut smoothing = Smoothing::new(HOLD);
            let (mut told, mut happened) = (Vec::new(), Vec::new());
            let (mut here, mut clock) = ([false; 5], 0);
            for (subject, later) in steps {
                clock += later;
                let now = Duration::from_millis(clock);
                let mut tell = |event: &Event<'_>, _: Option<Record>| told.push(word(event));
                smoothing.settle(now, &mut tell);
                here[subject] ^= true;
                happened.push((subject, here[subject], clock));
                let sign = if here[subject] { '+' } else { '-' };
                with_event(&format!("{sign}{}", subjects[subject]), |event| {
                    smoothing.take(event, None, now, &mut tell);
                });
            }
            smoothing.flush(|event| told.push(word(event)));
            prop_assert!(smoothing.held.is_empty() && smoothing.order.is_empty());
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
                let seen: Vec<_> = told.iter().filter(|word| word[1..] == **name).cloned().collect();
                prop_assert_eq!(&seen, &expected);
                prop_assert!(seen.iter().enumerate().all(|(at, word)| word.starts_with('+') == (at % 2 == 0)));
                prop_assert_eq!(seen.last().is_some_and(|word| word.starts_with('+')), here[subject]);
            }
        }

        /// The same for records: what counts for an absence is when both happened, unless it was told before the second
        /// was read; and each record is settled once it is undone, and not while it is on its way.
        #[test]
        fn records_tell_the_truth_without_flaps_at_any_pace_of_reading(
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
                reader.note(&format!("{sign}{}", subjects[subject]), clock, now);
                happened.push((subject, here[subject], clock, now));
            }
            reader.pass(u64::MAX);
            prop_assert!(reader.is_empty());
            let mut undone = Vec::new();
            let told: Vec<_> = reader.on_their_way.iter().map(|record| record.receipt.id().number()).collect();
            for (subject, name) in subjects.iter().enumerate() {
                let mut expected: Vec<(u64, bool, u64, u64)> = Vec::new();
                for (number, (_, is_here, at, read)) in
                    (1..).zip(&happened).filter(|(_, (of, ..))| *of == subject)
                {
                    match expected.last() {
                        Some((gone, false, left, heard)) if *is_here && at - left < 3000 && read - heard < 3000 => {
                            undone.extend([*gone as i64, number as i64]);
                            expected.pop();
                        }
                        _ => expected.push((number, *is_here, *at, *read)),
                    }
                }
                let expected: Vec<_> = expected.into_iter().map(|(number, ..)| number).collect();
                let is_of = |number: &u64| happened[*number as usize - 1].0 == subject;
                let seen: Vec<_> = told.iter().copied().filter(is_of).collect();
                prop_assert_eq!(seen, expected, "{}", name);
            }
            let went_from_r = told.iter().filter(|number| {
                let (subject, is_here, ..) = happened[**number as usize - 1];
                !is_here && (1..=3).contains(&subject)
            });
            prop_assert!(went_from_r.is_sorted(), "{:?}", told);
            let mut ended = reader.ended();
            ended.sort_unstable();
            undone.sort_unstable();
            prop_assert_eq!(ended, undone);
        }
    }
}
