//! What is told at once, what waits, and what is not worth telling. Pure: time is an argument.
//!
//! Who goes and comes back within a few seconds, as everyone does who loads a page, was never gone: both halves are
//! dropped. So what is gone is held, and told only when it stayed away. What is here is not remembered: events come
//! in the order in which they happened, so that whatever comes was gone before.
//!
//! Source: protocol.md §9.3.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::event::Event;
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
}

/// What is to be done about an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// Tell of it.
    Tell,
    /// It waits.
    Hold,
    /// It undoes what was held: neither is told.
    Undo,
    /// It was told of lately.
    Skip,
}

/// What waits. One for all that must be told in order.
#[derive(Debug)]
pub(super) struct Smoothing {
    hold: Duration,
    /// Who went, with their places in `order`.
    held: HashMap<Gone, u64>,
    /// The same by when they went, with when that is told.
    order: BTreeMap<u64, (Duration, Gone)>,
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
            held: HashMap::new(),
            order: BTreeMap::new(),
            next: 0,
            missed: HashSet::new(),
            misses: VecDeque::new(),
        }
    }

    /// Decides about an event. Those of one channel come in the order in which they happened.
    pub(super) fn take(&mut self, event: &Event<'_>, now: Duration) -> Verdict {
        match *event {
            Event::ChannelVacated(channel) => self.went(Gone::Channel(channel.clone()), now),
            Event::MemberRemoved(channel, user) => {
                self.went(Gone::Member(channel.clone(), user.clone()), now)
            }
            Event::UserOffline(user) => self.went(Gone::User(user.clone()), now),
            Event::ChannelOccupied(channel) => self.came(&Gone::Channel(channel.clone())),
            Event::MemberAdded(channel, user) => self.came(&Gone::Member(channel.clone(), user.clone())),
            Event::UserOnline(user) => self.came(&Gone::User(user.clone())),
            Event::CacheMiss(channel) => self.miss(channel, now),
            Event::ClientEvent { .. } | Event::SubscriptionCount(..) => Verdict::Tell,
        }
    }

    fn went(&mut self, gone: Gone, now: Duration) -> Verdict {
        if self.hold.is_zero() {
            return Verdict::Tell;
        }
        self.held.insert(gone.clone(), self.next);
        self.order.insert(self.next, (now + self.hold, gone));
        self.next += 1;
        Verdict::Hold
    }

    fn came(&mut self, back: &Gone) -> Verdict {
        match self.held.remove(back) {
            None => Verdict::Tell,
            Some(place) => {
                self.order.remove(&place);
                Verdict::Undo
            }
        }
    }

    fn miss(&mut self, channel: &ChannelName, now: Duration) -> Verdict {
        while let Some((_, old)) = self.misses.pop_front_if(|(until, _)| *until <= now) {
            self.missed.remove(&old);
        }
        if !self.missed.insert(channel.clone()) {
            return Verdict::Skip;
        }
        self.misses.push_back((now + MISS_INTERVAL, channel.clone()));
        Verdict::Tell
    }

    /// When [`Smoothing::settle`] has something to tell.
    pub(super) fn due(&self) -> Option<Duration> {
        self.order.first_key_value().map(|(_, (due, _))| *due)
    }

    /// Tells of those who stayed away, in the order in which they went.
    pub(super) fn settle(&mut self, now: Duration, mut tell: impl FnMut(&Event<'_>)) {
        while let Some(first) = self.order.first_entry()
            && first.get().0 <= now
        {
            let (_, gone) = first.remove();
            self.held.remove(&gone);
            tell(&gone.event());
        }
    }

    /// Tells of all who went, without waiting any longer, nor for those who go after this.
    pub(super) fn flush(&mut self, tell: impl FnMut(&Event<'_>)) {
        self.hold = Duration::ZERO;
        self.settle(Duration::MAX, tell);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            smoothing.settle(now, |event| told.push(format!("{at} {}", word(event))));
            if what == "." {
                continue;
            }
            with_event(what, |event| {
                if smoothing.take(event, now) == Verdict::Tell {
                    told.push(format!("{at} {}", word(event)));
                }
            });
        }
        told
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
            with_event("-a", |event| assert_eq!(smoothing.take(event, now), Verdict::Hold));
            with_event("+a", |event| assert_eq!(smoothing.take(event, now), Verdict::Undo));
        }
        assert_eq!((smoothing.held.len(), smoothing.order.len()), (0, 0));
        for round in 0..1000u64 {
            let name = format!("cache-{round}");
            smoothing.take(&Event::CacheMiss(&channel(&name)), Duration::from_secs(20 * round));
        }
        assert_eq!((smoothing.missed.len(), smoothing.misses.len()), (1, 1));
    }

    #[test]
    fn without_smoothing_everything_is_told_at_once() {
        let mut smoothing = Smoothing::new(Duration::ZERO);
        for word in ["+a", "-a", "+a"] {
            with_event(word, |event| assert_eq!(smoothing.take(event, Duration::ZERO), Verdict::Tell));
        }
    }

    #[test]
    fn after_the_last_flush_who_goes_is_told_of_at_once() {
        let mut smoothing = Smoothing::new(HOLD);
        let mut told = Vec::new();
        with_event("-a", |event| assert_eq!(smoothing.take(event, Duration::ZERO), Verdict::Hold));
        smoothing.flush(|event| told.push(word(event)));
        assert_eq!(told, ["-a"]);
        with_event("-b", |event| assert_eq!(smoothing.take(event, Duration::ZERO), Verdict::Tell));
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
                smoothing.settle(now, |event| told.push(word(event)));
                here[subject] ^= true;
                happened.push((subject, here[subject], clock));
                let sign = if here[subject] { '+' } else { '-' };
                with_event(&format!("{sign}{}", subjects[subject]), |event| {
                    if smoothing.take(event, now) == Verdict::Tell {
                        told.push(word(event));
                    }
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
    }
}
