use std::borrow::Cow;
use std::time::Duration;

use super::*;
use crate::limits::Limit;
use crate::protocol::{ChannelName, NameRules, SocketId, UserId};
use crate::rejections::{Example, Mistake};

const A: SocketId = SocketId::new(1, 1);
const B: SocketId = SocketId::new(1, 2);

fn channel(name: &str) -> ChannelName {
    ChannelName::parse(name, &NameRules::default()).unwrap()
}

fn subscribed(app: &str, name: &str, socket: SocketId) -> OwnedFact {
    Fact::Subscribed { app: app.to_owned().into(), channel: Cow::Owned(channel(name)), socket, again: false }
}

fn published(app: &str, name: &str, data: &str, publisher: Publisher<'static>) -> OwnedFact {
    Fact::Published {
        app: app.to_owned().into(),
        channel: Cow::Owned(channel(name)),
        event: "e".into(),
        bytes: data.len(),
        data: Some(data.to_owned().into()),
        publisher,
        subscribers: 1,
        occupied_instead: vec![channel("other")],
    }
}

/// The number of an event that is named after it.
fn numbered(number: usize) -> OwnedFact {
    published("1", "news", &number.to_string(), Publisher::App)
}

fn observe(observers: &Observers, fact: OwnedFact) {
    observers.observe(fact.kind(), || fact);
}

/// What a watch has: the data of each event, or how many are missing.
fn received(watch: &mut Watch) -> Vec<Result<usize, u64>> {
    let all = std::iter::from_fn(|| watch.try_recv());
    let one = |watched| match watched {
        Watched::Missed(missed) => Err(missed),
        Watched::Fact(fact) => {
            let Fact::Published { data: Some(data), .. } = &*fact else { panic!("{fact:?}") };
            Ok(data.parse().unwrap())
        }
    };
    all.map(one).collect()
}

fn with_payloads() -> Filter {
    Filter::of(Kinds::ALL).payloads(true)
}

/// One fact of each kind. Every payload has the word `payload`.
fn one_of_each() -> Vec<OwnedFact> {
    let (app, user) = (Text::Borrowed("1"), UserId::parse("7", 10).unwrap());
    let (text, url) = (|| Some(Text::Borrowed("the payload")), || Text::Borrowed("https://a.test/"));
    let (duration, user) = (Duration::from_secs(1), || Cow::Owned(user.clone()));
    vec![
        Fact::Connected {
            app: app.clone(),
            socket: A,
            address: [192, 0, 2, 1].into(),
            origin: Some("https://a.test".into()),
            library: None,
        },
        Fact::Disconnected { app: app.clone(), socket: A, code: None, reason: None, duration },
        subscribed("1", "news", A),
        Fact::Unsubscribed { app: app.clone(), channel: Cow::Owned(channel("news")), socket: A },
        Fact::SignedIn { app: app.clone(), socket: A, user: user() },
        Fact::SignedOut { app: app.clone(), socket: A, user: user() },
        Fact::MessageReceived { app: app.clone(), socket: A, bytes: 11, text: text() },
        published("1", "news", "the payload", Publisher::Client { socket: A, user: Some(user()) }),
        Fact::Rejected {
            rejection: Mistake::Subscription.into(),
            example: Example::default().app("1").channel("news").socket(A).reason("because"),
        },
        Fact::SignatureMismatch { app: app.clone(), socket: Some(A), string_to_sign: text() },
        Fact::UserTerminated { app: app.clone(), user: user(), connections: 2 },
        Fact::MembersTerminated { app: app.clone(), user: user() },
        Fact::ApiRequest {
            app: Some(app.clone()),
            method: "POST".into(),
            path: "/apps/1/events".into(),
            address: None,
            status: 200,
            duration,
        },
        Fact::WebhookSent { app: app.clone(), url: url(), events: 1, duration, body: text() },
        Fact::WebhookFailed {
            app: app.clone(),
            url: url(),
            events: 1,
            duration,
            error: "timeout".into(),
            body: text(),
        },
        Fact::WebhookDeadLettered { app, url: url(), events: 1, attempts: 9, error: "timeout".into() },
        Fact::ClusterAvailability { is_available: true },
    ]
}

#[test]
fn nothing_is_built_while_nobody_watches_the_kind() {
    let observers = Observers::default();
    let never = || panic!("nobody watches");
    for kind in Kind::ALL {
        assert!(!observers.wants(kind));
        observers.observe(kind, never);
    }
    let mut built = 0;
    let mut watch = observers.watch(Filter::of(Kinds::of(&[Kind::Subscribed])), 10);
    observers.observe(Kind::Published, never);
    observers.observe(Kind::Subscribed, || {
        built += 1;
        subscribed("1", "news", A)
    });
    assert!(watch.try_recv().is_some() && watch.try_recv().is_none());
    drop(watch);
    observers.observe(Kind::Subscribed, never);
    assert_eq!(built, 1);
}

#[test]
fn every_kind_has_its_own_bit_and_its_fact() {
    let kinds: Vec<_> = one_of_each().iter().map(Fact::kind).collect();
    assert_eq!(kinds, Kind::ALL);
    let bits: u32 = Kind::ALL.iter().map(|kind| kind.bit()).sum();
    assert_eq!(Kinds::ALL.bits(), bits, "no bit is shared");
}

#[test]
fn a_filter_passes_what_is_about_its_kinds_app_channel_and_connection() {
    let client = |socket| Publisher::Client { socket, user: None };
    let facts = [
        subscribed("1", "news", A),
        subscribed("2", "news", B),
        subscribed("1", "other", B),
        published("1", "news", "x", Publisher::App),
        published("1", "news", "x", client(B)),
        Fact::Rejected {
            rejection: Limit::ChannelNameBytes.into(),
            example: Example::default().app("1").socket(A).channel("n".repeat(300)),
        },
        Fact::ClusterAvailability { is_available: true },
    ];
    let all = || Filter::of(Kinds::ALL);
    let subscriptions = || Filter::of(Kinds::of(&[Kind::Subscribed]));
    for (what, filter, expected) in [
        ("all", all(), &[0, 1, 2, 3, 4, 5, 6][..]),
        ("nothing", Filter::of(Kinds::NONE), &[]),
        ("a kind", subscriptions(), &[0, 1, 2]),
        ("two kinds", Filter::of(Kinds::of(&[Kind::Subscribed, Kind::Rejected])), &[0, 1, 2, 5]),
        ("an app", all().app("1"), &[0, 2, 3, 4, 5]),
        ("another app", all().app("3"), &[]),
        ("a part of the id", all().app(""), &[]),
        ("a channel", all().channel("news"), &[0, 1, 3, 4]),
        ("a part of the name", all().channel("new"), &[]),
        ("a channel with a long name", all().channel(&"n".repeat(300)), &[5]),
        ("a connection", all().socket(B), &[1, 2, 4]),
        ("a channel of an app", all().app("2").channel("news"), &[1]),
        ("all parts", subscriptions().app("1").channel("other").socket(B), &[2]),
        ("parts of different facts", subscriptions().app("2").channel("other").socket(B), &[]),
    ] {
        let passed: Vec<_> = (0..facts.len()).filter(|at| filter.passes(&facts[*at])).collect();
        assert_eq!(passed, expected, "{what}");
    }
}

#[test]
fn a_slow_watcher_misses_facts_in_its_place_of_the_order_and_no_other_does() {
    let metrics = Arc::new(Metrics::default());
    let observers = Observers::new(Arc::clone(&metrics));
    let (mut slow, mut quick) = (observers.watch(with_payloads(), 3), observers.watch(with_payloads(), 100));
    (0..5).for_each(|number| observe(&observers, numbered(number)));
    assert!(matches!(slow.try_recv(), Some(Watched::Fact(_))));
    assert!(matches!(slow.try_recv(), Some(Watched::Fact(_))));
    (5..9).for_each(|number| observe(&observers, numbered(number)));
    assert_eq!(received(&mut slow), [Ok(2), Err(2), Ok(5), Ok(6), Err(2)]);
    observe(&observers, numbered(9));
    assert_eq!(received(&mut slow), [Ok(9)], "it continues");
    assert_eq!(received(&mut quick), (0..10).map(Ok).collect::<Vec<_>>());
    assert_eq!(metrics.facts_missed.get(), 4);
}

#[test]
fn a_queue_is_bounded_in_bytes_too() {
    let observers = Observers::default();
    let mut watch = observers.watch(with_payloads(), 1000);
    let long = || published("1", "news", &"x".repeat(1024 * 1024), Publisher::App);
    (0..10).for_each(|_| observe(&observers, long()));
    let facts = std::iter::from_fn(|| watch.try_recv()).take_while(|it| matches!(it, Watched::Fact(_)));
    assert_eq!(facts.count(), 3);
    observe(&observers, published("1", "news", &"x".repeat(5 * 1024 * 1024), Publisher::App));
    assert!(matches!(watch.try_recv(), Some(Watched::Fact(_))), "one fact fits, however long");
}

#[tokio::test]
async fn a_watcher_is_woken_by_a_fact_and_by_nothing_else() {
    let observers = Observers::default();
    let mut watch = observers.watch(with_payloads(), 10);
    let waiting = tokio::spawn(async move {
        let watched = watch.recv().await;
        (watched, watch)
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    observe(&observers, numbered(1));
    let (first, mut watch) = waiting.await.unwrap();
    assert!(matches!(first, Watched::Fact(_)));
    observe(&observers, numbered(2));
    observe(&observers, numbered(3));
    for _ in 0..2 {
        assert!(matches!(watch.recv().await, Watched::Fact(_)));
    }
    let pending = tokio::time::timeout(Duration::ZERO, watch.recv());
    assert!(pending.await.is_err(), "a wake-up without a fact is no fact");
}

#[test]
fn who_leaves_takes_the_kinds_that_nobody_else_wants() {
    let observers = Observers::default();
    let subscriptions = || Filter::of(Kinds::of(&[Kind::Subscribed]));
    let (first, second) = (observers.watch(subscriptions(), 1), observers.watch(subscriptions(), 1));
    let events = observers.watch(Filter::of(Kinds::of(&[Kind::Published])), 1);
    drop(first);
    assert!(observers.wants(Kind::Subscribed), "the second wants it");
    drop(second);
    assert!(!observers.wants(Kind::Subscribed) && observers.wants(Kind::Published));
    drop(events);
    assert!(Kind::ALL.iter().all(|kind| !observers.wants(*kind)));
}

#[test]
fn a_thousand_watchers_leave_nothing() {
    let observers = Observers::default();
    let filter = || with_payloads().app("1").channel("news");
    let watches: Vec<_> = (0..1000).map(|_| observers.watch(filter(), 10)).collect();
    observe(&observers, numbered(1));
    let copies: Vec<_> = watches.into_iter().filter_map(|mut watch| watch.try_recv()).collect();
    let Watched::Fact(first) = &copies[0] else { panic!("a fact") };
    assert_eq!(Arc::strong_count(first), 1000, "all share one copy");
    let last = Arc::downgrade(first);
    drop(copies);
    assert!(last.upgrade().is_none());
    assert_eq!(observers.0.wanted.load(Ordering::Relaxed), 0);
    assert!(observers.0.registered.load().is_empty());
    let shared = Arc::downgrade(&observers.0);
    drop(observers);
    assert!(shared.upgrade().is_none(), "no registration holds it");
}

#[test]
fn watchers_come_and_go_while_facts_are_passed_on() {
    const FACTS: usize = 5_000;
    let observers = Observers::default();
    let mut stays = observers.watch(with_payloads(), FACTS);
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| (0..FACTS).for_each(|number| observe(&observers, numbered(number))));
        while !publisher.is_finished() {
            let mut watch = observers.watch(with_payloads(), 4);
            let facts = received(&mut watch);
            let numbers: Vec<_> = facts.iter().filter_map(|fact| fact.ok()).collect();
            assert!(numbers.is_sorted(), "{facts:?}");
        }
    });
    assert!(received(&mut stays).into_iter().eq((0..FACTS).map(Ok)), "who stays gets all, in order");
    drop(stays);
    assert!(observers.0.registered.load().is_empty());
}

/// Unregisters a watch when it observes something.
#[derive(Debug)]
struct Unregisters(Mutex<Option<Watch>>);

impl Observer for Unregisters {
    fn observe(&self, _: &Fact<'_>) {
        self.0.lock().take();
    }
}

#[test]
fn an_observer_may_unregister_others() {
    let observers = Observers::default();
    let subscriptions = || Filter::of(Kinds::of(&[Kind::Subscribed]));
    let watch = observers.watch(Filter::of(Kinds::ALL), 1);
    let registration = observers.register(subscriptions(), Arc::new(Unregisters(Mutex::new(Some(watch)))));
    observe(&observers, subscribed("1", "news", A));
    assert!(!observers.wants(Kind::Published) && observers.wants(Kind::Subscribed));
    drop(registration);
    assert!(!observers.wants(Kind::Subscribed));
}

/// Keeps what it observes as text.
#[derive(Debug, Default)]
struct Texts(Mutex<Vec<String>>);

impl Observer for Texts {
    fn observe(&self, fact: &Fact<'_>) {
        self.0.lock().push(format!("{fact:?}"));
    }
}

#[test]
fn payloads_are_in_the_facts_of_those_who_ask_for_them_only() {
    let observers = Observers::default();
    let watch = |payloads| observers.watch(Filter::of(Kinds::ALL).payloads(payloads), 100);
    let (mut without, mut with) = (watch(false), watch(true));
    let texts = Arc::new(Texts::default());
    let _registration = observers.register(Filter::of(Kinds::ALL), Arc::<Texts>::clone(&texts));
    for fact in one_of_each() {
        observe(&observers, fact);
    }
    let as_text = |watched| match watched {
        Watched::Fact(fact) => format!("{fact:?}"),
        Watched::Missed(missed) => panic!("{missed} missed"),
    };
    let without: Vec<_> = std::iter::from_fn(|| without.try_recv()).map(as_text).collect();
    let with: Vec<_> = std::iter::from_fn(|| with.try_recv()).map(as_text).collect();
    assert_eq!(without.len(), Kind::ALL.len());
    assert!(without.iter().all(|fact| !fact.contains("payload")), "{without:#?}");
    assert_eq!(*texts.0.lock(), without, "both ways to watch have the same");
    let expected = one_of_each().iter().map(|fact| format!("{fact:?}")).collect::<Vec<_>>();
    assert_eq!(with, expected, "a copy has all of the fact");
    assert_eq!(with.iter().filter(|fact| fact.contains("payload")).count(), 5);
}

#[test]
fn an_observer_that_owns_a_registration_can_be_unregistered() {
    #[derive(Debug)]
    struct Owner(#[expect(dead_code, reason = "dropped with the observer")] Registration);
    impl Observer for Owner {
        fn observe(&self, _: &Fact<'_>) {}
    }
    let observers = Observers::default();
    let inner = observers.register(Filter::of(Kinds::ALL), Arc::<Texts>::default());
    let outer = observers.register(Filter::of(Kinds::ALL), Arc::new(Owner(inner)));
    drop(outer);
    assert_eq!(observers.0.wanted.load(Ordering::Relaxed), 0);
}
