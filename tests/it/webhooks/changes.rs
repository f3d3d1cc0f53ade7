//! Apps that change while the server runs: receivers that start, change and stop.

mod records;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::FutureExt as _;
use pusherd::apps::{EventType, EventTypes, KeyPair, webhook_header};
use pusherd::cluster::memory::MemoryServer;
use pusherd::cluster::node::Cluster;
use pusherd::hub::Hub;
use pusherd::observers::Observers;
use pusherd::outbox::Outbox;
use pusherd::protocol::SocketId;
use pusherd::protocol::signature::SigningKey;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::*;
use crate::harness::{DEMO, Reply, in_time};

/// The webhooks of one app that changes. They start without a receiver.
struct Changing {
    /// The app as connections see it.
    app: Arc<App>,
    webhooks: Webhooks,
    metrics: Arc<Metrics>,
}

impl Changing {
    fn start(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::default();
        options.timing.debounce = LONG;
        options.timing.backoff = Duration::from_millis(5);
        options.timing.probe_interval = Duration::from_millis(5);
        change(&mut options);
        let (app, metrics) = (Arc::new(App::new("1001", "demo-key", "demo-secret")), Arc::default());
        let webhooks = Webhooks::start(&Apps::default(), options, &metrics).unwrap();
        Self { app, webhooks, metrics }
    }

    /// Gives the app these receivers and no others.
    fn set(&mut self, receivers: impl IntoIterator<Item = Webhook>) {
        self.set_with(receivers, |_| ());
    }

    fn set_with(&mut self, receivers: impl IntoIterator<Item = Webhook>, change: impl FnOnce(&mut App)) {
        let mut app = App::new("1001", "demo-key", "demo-secret");
        app.webhooks = receivers.into_iter().collect();
        change(&mut app);
        let apps = Apps::new([app]);
        self.webhooks.apply(&apps).unwrap();
        self.app = apps.by_id("1001").unwrap();
    }

    /// Removes the app. Connections may still see it as it was.
    fn remove_app(&self) {
        self.webhooks.apply(&Apps::default()).unwrap();
    }

    /// Emits an event, and returns whether any receiver may want it.
    fn emit(&self, event: &Event<'_>, channel: &ChannelName) -> bool {
        let guard = if matches!(event, Event::ClientEvent { .. }) {
            self.webhooks.lock_client_events(&self.app, channel)
        } else {
            self.webhooks.lock_subscriptions(&self.app, channel)
        };
        guard.map(|mut guard| guard.emit(event)).is_some()
    }

    fn occupy(&self, name: &str) -> bool {
        let channel = channel(name);
        self.emit(&Event::ChannelOccupied(&channel), &channel)
    }

    fn vacate(&self, name: &str) -> bool {
        let channel = channel(name);
        self.emit(&Event::ChannelVacated(&channel), &channel)
    }

    /// Emits a client event with this number.
    fn whisper(&self, name: &str, number: usize) -> bool {
        let (channel, data) = (channel(name), number.to_string());
        let socket = SocketId::new(1, 1);
        let (event, data) = ("client-n", data.as_str());
        let event = Event::ClientEvent { channel: &channel, event, data, socket, user: None };
        self.emit(&event, &channel)
    }

    async fn wait_for(&self, what: &str, is_reached: impl Fn(&pusherd::metrics::Webhooks) -> bool) {
        eventually(what, || async { is_reached(&self.metrics.webhooks) }).await;
    }

    /// Waits until the runtime has this number of tasks.
    async fn wait_for_tasks(&self, count: usize) {
        eventually(format_args!("{count} tasks"), || async { tasks() == count }).await;
    }

    async fn drain(&self) {
        in_time("all is sent", self.webhooks.drain(std::future::pending())).await;
    }
}

/// The tasks of the runtime.
fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

fn channel(name: &str) -> ChannelName {
    ChannelName::parse(name, &NameRules::default()).unwrap()
}

fn with_header(mut webhook: Webhook, value: &str) -> Webhook {
    let (name, value) = webhook_header("X-Env", value).unwrap();
    webhook.headers.insert(name, value);
    webhook
}

/// A receiver that hangs up until the flag is set.
async fn failing() -> (Receiver, Arc<AtomicBool>) {
    let is_open = Arc::new(AtomicBool::new(false));
    let opened = Arc::clone(&is_open);
    let receiver = Receiver::with_replies(move |_, _| match opened.load(Ordering::SeqCst) {
        true => Reply::Status(200),
        false => Reply::HangUp,
    });
    (receiver.await, is_open)
}

/// A receiver that answers one request for each permit.
async fn in_turn() -> (Receiver, Arc<Semaphore>) {
    let turns = Arc::new(Semaphore::new(0));
    let permits = Arc::clone(&turns);
    (Receiver::with_replies(move |_, _| Reply::InTurn(Arc::clone(&permits))).await, turns)
}

/// The channels of the next `count` requests, sorted.
async fn channels(receiver: &mut Receiver, count: usize) -> Vec<String> {
    let mut channels = Vec::new();
    for _ in 0..count {
        let hook = receiver.hook().await;
        channels.extend(hook.events().iter().map(|event| event["channel"].as_str().unwrap().to_owned()));
    }
    channels.sort();
    channels
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|at| format!("channel-{at:02}")).collect()
}

#[tokio::test]
async fn a_receiver_that_is_added_gets_the_next_event() {
    let (mut one, mut two) = (Receiver::start().await, Receiver::start().await);
    let before = tasks();
    let mut changing = Changing::start(|_| ());
    assert_eq!(tasks(), before, "nothing is started for apps without webhooks");
    assert!(!changing.occupy("a"), "an app without webhooks has no delivery guard");
    assert!(changing.webhooks.wait_for_receivers().now_or_never().is_none());
    changing.set([one.webhook()]);
    in_time("there is a receiver", changing.webhooks.wait_for_receivers()).await;
    assert!(changing.occupy("b"));
    one.expect(occupied("b")).await;
    changing.set([two.webhook(), one.webhook()]);
    changing.occupy("c");
    one.expect(occupied("c")).await;
    two.expect(occupied("c")).await;
    changing.drain().await;
    assert!(one.is_idle() && two.is_idle());
    changing.wait_for_tasks(before).await;
}

#[tokio::test]
async fn a_removed_receiver_gets_what_was_queued_and_nothing_after() {
    let ((mut removed, turns), mut kept) = (in_turn().await, Receiver::start().await);
    let before = tasks();
    let mut changing = Changing::start(|_| ());
    changing.set([removed.webhook()]);
    numbered(20).iter().for_each(|channel| assert!(changing.occupy(channel)));
    changing.set([kept.webhook()]);
    changing.occupy("later");
    kept.expect(occupied("later")).await;
    let of_removed = (removed.address.to_string(), 20);
    eventually("it is delivered", || async { changing.webhooks.pending() == [of_removed.clone()] }).await;
    // A shutdown waits for it.
    let waiting = tokio::spawn({
        let webhooks = changing.webhooks.clone();
        async move { webhooks.wait_for_pending().await }
    });
    turns.add_permits(19);
    changing.wait_for("all but one are delivered", |counts| counts.delivered.get() == 20).await;
    assert!(!waiting.is_finished());
    turns.add_permits(1);
    in_time("nothing is pending", waiting).await.unwrap();
    assert_eq!(channels(&mut removed, 20).await, numbered(20));
    assert!(changing.webhooks.pending().is_empty() && removed.is_idle());
    changing.set([]);
    changing.wait_for_tasks(before).await;
    assert!(!changing.occupy("unwanted"));
    assert_eq!(changing.metrics.webhooks.events.get(), 21);
}

#[tokio::test]
async fn changed_settings_hold_from_the_next_request_on() {
    let mut receiver = Receiver::start().await;
    let url = receiver.webhook();
    let mut changing = Changing::start(|options| options.timing.debounce = Duration::ZERO);
    changing.set([with_header(url.clone(), "one")]);
    changing.occupy("a");
    let hook = receiver.hook().await;
    assert_eq!((hook.header("x-env"), hook.header("x-pusher-key")), (vec!["one"], vec!["demo-key"]));
    assert_eq!(hook.header("x-pusher-signature"), [DEMO.sign(std::str::from_utf8(&hook.body).unwrap())]);
    // Headers and keys.
    let newer = SigningKey::new("newer-secret");
    changing.set_with([with_header(url.clone(), "two")], |app| {
        app.keys = vec![KeyPair { key: "newer-key".into(), secret: newer.clone() }];
    });
    changing.occupy("b");
    let hook = receiver.hook().await;
    assert_eq!((hook.header("x-env"), hook.header("x-pusher-key")), (vec!["two"], vec!["newer-key"]));
    assert!(newer.verifies_webhook(hook.header("x-pusher-signature")[0], &hook.body));
    // Types of events.
    let vacancies = EventTypes::of(&[EventType::ChannelVacated]);
    changing.set([Webhook { event_types: vacancies, ..url.clone() }]);
    changing.occupy("c");
    changing.vacate("c");
    receiver.expect(vacated("c")).await;
    // The filter.
    let mut filtered = url.clone();
    filtered.filter.starts_with = "room-".into();
    changing.set([filtered]);
    assert!(!changing.occupy("d"));
    changing.occupy("room-d");
    let hook = receiver.hook().await;
    assert_eq!((hook.events(), hook.header("x-env").len()), (vec![occupied("room-d")], 0));
    // Batching on and off.
    for (batching, expected) in [(true, 1), (false, 100), (true, 1)] {
        changing.set_with([url.clone()], |app| {
            (app.webhook_batching, app.webhook_batching_ms) = (batching, 60_000);
        });
        (0..100).for_each(|at| assert!(changing.whisper(&format!("private-{at}"), at)));
        for _ in 0..expected {
            assert_eq!(receiver.hook().await.events().len(), 100 / expected);
        }
    }
    assert!(receiver.is_idle());
}

#[tokio::test]
async fn a_batch_does_not_wait_when_batching_is_turned_off() {
    let mut receiver = Receiver::start().await;
    let mut changing = Changing::start(|_| ());
    changing.set_with([receiver.webhook()], |app| {
        (app.webhook_batching, app.webhook_batching_ms) = (true, 60_000);
    });
    changing.occupy("a");
    tokio::task::yield_now().await;
    changing.set([receiver.webhook()]);
    receiver.expect(occupied("a")).await;
}

#[tokio::test]
async fn an_outage_goes_on_over_unrelated_changes() {
    let ((mut receiver, is_open), other) = (failing().await, Receiver::start().await);
    let mut changing = Changing::start(|_| ());
    changing.set([receiver.webhook()]);
    let mut numbers = 0..;
    let mut whisper_some = |changing: &Changing| {
        for number in numbers.by_ref().take(40) {
            assert!(changing.whisper(["private-a", "private-b"][number % 2], number));
        }
    };
    whisper_some(&changing);
    for (at, batching) in [true, false, true].into_iter().enumerate() {
        let failed = changing.metrics.webhooks.failed_attempts.get();
        changing.wait_for("more attempts fail", |counts| counts.failed_attempts.get() > failed + 2).await;
        let others = (at == 1).then(|| other.webhook());
        changing.set_with(others.into_iter().chain([with_header(receiver.webhook(), "new")]), |app| {
            (app.webhook_batching, app.webhook_batching_ms) = (batching, 1);
        });
        whisper_some(&changing);
    }
    is_open.store(true, Ordering::SeqCst);
    let mut next = [0, 1];
    while next != [160, 161] {
        let hook = receiver.hook().await;
        if !matches!(hook.reply, Reply::Status(200)) {
            continue;
        }
        assert_eq!(hook.header("x-env"), ["new"]);
        for event in hook.events() {
            let of = usize::from(event["channel"] == "private-b");
            assert_eq!(event["data"], next[of].to_string(), "in order, and once");
            next[of] += 2;
        }
    }
    changing.drain().await;
    assert!(receiver.is_idle());
    assert_eq!(changing.metrics.webhooks.dropped.get() + changing.metrics.webhooks.expired.get(), 0);
}

#[tokio::test]
async fn an_app_that_is_removed_and_added_again_starts_fresh() {
    let mut receiver = Receiver::start().await;
    let mut changing = Changing::start(|_| ());
    for empties_webhooks in [false, true] {
        changing.set([receiver.webhook()]);
        changing.occupy("a");
        receiver.expect(occupied("a")).await;
        // Held for longer than the test.
        changing.vacate("a");
        if empties_webhooks {
            changing.set([])
        } else {
            changing.remove_app()
        }
        receiver.expect(vacated("a")).await;
        assert!(!changing.occupy("a"), "connections that see the earlier app emit nothing");
    }
    assert_eq!(changing.metrics.webhooks.debounced.get(), 0);
    changing.drain().await;
    assert!(receiver.is_idle());
}

#[tokio::test]
async fn a_held_event_goes_to_the_receivers_of_its_due_time() {
    let (removed, mut kept, mut added) =
        (Receiver::start().await, Receiver::start().await, Receiver::start().await);
    let mut changing = Changing::start(|options| options.timing.debounce = SHORT);
    changing.set([removed.webhook(), kept.webhook()]);
    changing.vacate("a");
    changing.set([kept.webhook(), added.webhook()]);
    kept.expect(vacated("a")).await;
    added.expect(vacated("a")).await;
    // The pair is debounced, although a change came between its halves.
    changing.vacate("b");
    changing.set([added.webhook()]);
    changing.occupy("b");
    changing.drain().await;
    let mut removed = removed;
    assert!([&mut removed, &mut kept, &mut added].into_iter().all(Receiver::is_idle));
    assert_eq!(changing.metrics.webhooks.debounced.get(), 2);
}

#[tokio::test]
async fn an_event_of_a_guard_that_outlives_the_app_is_sent() {
    let mut receiver = Receiver::start().await;
    let mut changing = Changing::start(|_| ());
    changing.set([receiver.webhook()]);
    let channel = channel("a");
    let mut guard = changing.webhooks.lock_subscriptions(&changing.app, &channel).unwrap();
    let removal = tokio::task::spawn_blocking({
        let webhooks = changing.webhooks.clone();
        move || webhooks.apply(&Apps::default()).unwrap()
    });
    // The app is unknown already, but its receiver is not closed yet. No other task may run here while this one holds the
    // guard.
    while changing.webhooks.wants_records_of_channel(&changing.app, &channel) {
        std::thread::yield_now();
    }
    guard.emit(&Event::ChannelOccupied(&channel));
    drop(guard);
    in_time("the removal", removal).await.unwrap();
    receiver.expect(occupied("a")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_changes_under_a_stream_of_events_lose_and_double_nothing() {
    const CHANGES: usize = 1000;
    const PER_CHANGE: usize = 5;
    const CHANNELS: usize = 7;
    let (mut receiver, sometimes) = (Receiver::start().await, Receiver::start().await);
    let mut changing = Changing::start(|options| options.queue_bytes = usize::MAX);
    let batching = |app: &mut App| (app.webhook_batching, app.webhook_batching_ms) = (true, 1);
    changing.set_with([receiver.webhook()], batching);
    changing.occupy("first");
    receiver.expect(occupied("first")).await;
    let idle = tasks();
    let changes = Arc::new(AtomicUsize::new(0));
    let stream = tokio::task::spawn_blocking({
        let (changes, app) = (Arc::clone(&changes), Arc::clone(&changing.app));
        let (webhooks, metrics) = (changing.webhooks.clone(), Arc::clone(&changing.metrics));
        let source = Changing { app, webhooks, metrics };
        move || {
            for number in 0..CHANGES * PER_CHANGE {
                while number / PER_CHANGE > changes.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                assert!(source.whisper(&format!("private-{}", number % CHANNELS), number));
            }
        }
    });
    for at in 0..CHANGES {
        let main = with_header(receiver.webhook(), &at.to_string());
        let webhooks = match at % 4 {
            0 => vec![main],
            1 => vec![sometimes.webhook(), main],
            2 => vec![main, sometimes.webhook()],
            _ => vec![main.clone(), Webhook { event_types: EventTypes::default(), ..main }],
        };
        changing.set_with(webhooks, |app| app.webhook_batching = at % 3 == 0);
        changes.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
    in_time("the stream", stream).await.unwrap();
    changing.set_with([receiver.webhook()], batching);
    let mut last: HashMap<String, usize> = HashMap::new();
    let mut count = 0;
    while count < CHANGES * PER_CHANGE {
        let event = receiver.event().await;
        let number: usize = event["data"].as_str().unwrap().parse().unwrap();
        let before = last.insert(event["channel"].to_string(), number);
        assert_eq!(
            before.map_or(number % CHANNELS, |before| before + CHANNELS),
            number,
            "in order, and once"
        );
        count += 1;
    }
    eventually("nothing is pending", || async { changing.webhooks.pending().is_empty() }).await;
    // Over the one connection that is left.
    changing.occupy("last");
    receiver.expect(occupied("last")).await;
    changing.wait_for_tasks(idle).await;
    changing.drain().await;
    assert!(receiver.is_idle());
    let counts = &changing.metrics.webhooks;
    assert_eq!((counts.failed_attempts.get(), counts.dropped.get(), counts.unsent.get()), (0, 0, 0));
}

#[tokio::test]
async fn a_shutdown_right_after_a_removal_sends_what_is_queued() {
    for removes_app in [false, true] {
        let (mut receiver, turns) = in_turn().await;
        let other = Receiver::start().await;
        let mut changing = Changing::start(|_| ());
        changing.set([receiver.webhook()]);
        numbered(20).iter().for_each(|channel| assert!(changing.occupy(channel)));
        if removes_app {
            changing.remove_app()
        } else {
            changing.set([other.webhook()])
        }
        let draining = tokio::spawn({
            let webhooks = changing.webhooks.clone();
            async move { webhooks.drain(std::future::pending()).await }
        });
        assert_eq!(channels(&mut receiver, 8).await.len(), 8);
        assert!(!draining.is_finished());
        turns.add_permits(20);
        in_time("the drain", draining).await.unwrap();
        assert_eq!(channels(&mut receiver, 12).await.len(), 12);
        assert_eq!(changing.metrics.webhooks.delivered.get(), 20);
    }
}

#[tokio::test]
async fn the_queue_of_a_removed_receiver_is_dead_letters_at_the_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dead.jsonl");
    let receiver = Receiver::with_replies(|_, _| Reply::Hang).await;
    let mut changing = Changing::start(|options| options.dead_letter_file = Some(file.clone()));
    changing.set([receiver.webhook()]);
    numbered(20).iter().for_each(|channel| assert!(changing.occupy(channel)));
    changing.vacate("held");
    changing.remove_app();
    in_time("the drain", changing.webhooks.drain(std::future::ready(()))).await;
    let dead_letters = read_dead_letters(&file);
    assert_eq!(dead_letters.len(), 21, "the held event too");
    assert_eq!(changing.metrics.webhooks.unsent.get(), 21);
    // Apps change no more.
    changing.set([receiver.webhook()]);
    assert!(!changing.occupy("late"));
}

#[tokio::test]
async fn the_queue_of_a_removed_receiver_expires() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dead.jsonl");
    let (receiver, _) = failing().await;
    let before = tasks();
    let mut changing = Changing::start(|options| {
        options.dead_letter_file = Some(file.clone());
        options.timing.delivery_timeout = Duration::from_millis(200);
    });
    changing.set([receiver.webhook()]);
    numbered(20).iter().for_each(|channel| assert!(changing.occupy(channel)));
    changing.remove_app();
    assert_eq!(changing.webhooks.pending().len(), 1);
    eventually("dead letters", || async { read_dead_letters(&file).len() == 20 }).await;
    assert!(read_dead_letters(&file).iter().all(|dead_letter| dead_letter.error != "the server shut down"));
    changing.wait_for_tasks(before).await;
    assert!(changing.webhooks.pending().is_empty());
}

#[tokio::test]
async fn a_server_adapts_its_receivers_when_its_apps_are_replaced() {
    let mut receiver = Receiver::start().await;
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe("before").await;
    server.apps.replace([App { webhooks: vec![receiver.webhook()], ..DEMO.app() }]);
    // The receivers follow the list a moment later.
    in_time("an event", async {
        for at in 0.. {
            client.subscribe(&format!("channel-{at}")).await;
            if server.metrics.webhooks.events.get() > 0 {
                return receiver.expect(occupied(&format!("channel-{at}"))).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    server.stop().await;
    assert_eq!(receiver.event().await["name"], "channel_vacated");
}

/// The hub reads records once there is a receiver.
#[tokio::test]
async fn a_node_of_a_cluster_starts_to_read_records_with_its_first_receiver() {
    let mut receiver = Receiver::start().await;
    let changing = Changing::start(|_| ());
    let (client, incoming) = MemoryServer::default().connect();
    let timing = pusherd::cluster::Options::default().timing;
    let cluster = Cluster::new(Arc::clone(&client) as _, client, timing, Arc::clone(&changing.metrics));
    let (webhooks, metrics) = (changing.webhooks.clone(), Arc::clone(&changing.metrics));
    let app = App { webhooks: vec![receiver.webhook()], ..App::new("1001", "demo-key", "demo-secret") };
    let apps = Arc::new(Apps::new([app]));
    let hub =
        Hub::in_cluster(Observers::default(), metrics, webhooks, Arc::clone(&apps), cluster.clone(), false);
    tokio::spawn(async move { cluster.run(incoming).await });
    tokio::spawn({
        let hub = hub.clone();
        async move { hub.read_records().await }
    });
    eventually("the node is ready", || async { hub.is_ready() }).await;
    let outbox = Arc::new(Outbox::detached(SocketId::new(1, 1), usize::MAX));
    let app = apps.by_id("1001").unwrap();
    changing.webhooks.apply(&apps).unwrap();
    hub.join(&app, &outbox, &channel("a"), None).unwrap();
    receiver.expect(occupied("a")).await;
}
