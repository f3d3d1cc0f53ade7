//! Cluster records as webhooks: each record is resolved once, acked or nacked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pusherd::apps::{App, Apps, EventType, EventTypes, Webhook};
use pusherd::metrics::Metrics;
use pusherd::protocol::{ChannelName, NameRules, SocketId, UserId};
use pusherd::webhooks::dead_letters::DeadLetter;
use pusherd::webhooks::{AckToken, Event, EventId, Options, Resolution, Webhooks};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::{Receiver, Reply, eventually, in_time};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

/// The source in the ids of the records.
const SOURCE: u64 = 0xc0_ffee;

/// The time of the first record: long ago.
const BEGIN_MS: u64 = 1_000_000;

/// The webhooks of a node that reads records, without a server.
struct Node {
    app: Arc<App>,
    webhooks: Webhooks,
    metrics: Arc<Metrics>,
    resolutions: mpsc::UnboundedSender<Resolution>,
    resolved: mpsc::UnboundedReceiver<Resolution>,
    /// The number of the last record.
    number: u64,
}

impl Node {
    fn start(
        webhooks: impl IntoIterator<Item = Webhook>,
        change: impl FnOnce(&mut App, &mut Options),
    ) -> Self {
        let mut app = App::new("1001", "demo-key", "demo-secret");
        app.webhooks = webhooks.into_iter().collect();
        let mut options = Options::default();
        (options.timing.debounce, options.timing.backoff) = (LONG, Duration::from_millis(5));
        options.timing.probe_interval = Duration::from_millis(5);
        change(&mut app, &mut options);
        let metrics = Arc::new(Metrics::default());
        let apps = Apps::new([app]);
        let webhooks = Webhooks::start(&apps, options, &metrics).unwrap();
        let app = apps.all().remove(0);
        let (resolutions, resolved) = mpsc::unbounded_channel();
        Self { app, webhooks, metrics, resolutions, resolved, number: 0 }
    }

    /// Reads a record such as `+room` (occupied), `-room/7` (member removed) or `+@7` (user online). Records are one
    /// second apart.
    fn read(&mut self, what: &str) {
        self.read_of("1001", what);
    }

    fn read_of(&mut self, app: &str, what: &str) {
        self.number += 1;
        let ack_token = AckToken::new(EventId::new(SOURCE, self.number), self.resolutions.clone());
        let time_ms = BEGIN_MS + 1000 * (self.number - 1);
        let (is_rising, of) = (what.starts_with('+'), &what[1..]);
        let user = |id| UserId::parse(id, 128).unwrap();
        let emit = |event| self.webhooks.emit_record(app, &event, time_ms, ack_token.clone());
        match (of.strip_prefix('@').map(user), of.split_once('/')) {
            (Some(user), _) if is_rising => emit(Event::UserOnline(&user)),
            (Some(user), _) => emit(Event::UserOffline(&user)),
            (None, Some((of, id))) if is_rising => emit(Event::MemberAdded(&channel(of), &user(id))),
            (None, Some((of, id))) => emit(Event::MemberRemoved(&channel(of), &user(id))),
            (None, None) if is_rising => emit(Event::ChannelOccupied(&channel(of))),
            (None, None) => emit(Event::ChannelVacated(&channel(of))),
        }
        ack_token.ack();
    }

    /// Emits a client event, which is no record.
    fn whisper(&self, to: &str) {
        let channel = channel(to);
        self.webhooks.lock_client_events(&self.app, &channel).unwrap().emit(&Event::ClientEvent {
            channel: &channel,
            event: "client-x",
            data: "1",
            socket: SocketId::new(1, 1),
            user: None,
        });
    }

    /// The next resolution: the number of the record, negative if it is nacked.
    async fn resolution(&mut self) -> i64 {
        number(in_time("a resolution", self.resolved.recv()).await.unwrap())
    }

    /// All resolutions so far, sorted.
    fn resolutions(&mut self) -> Vec<i64> {
        let mut resolutions: Vec<_> =
            std::iter::from_fn(|| self.resolved.try_recv().ok()).map(number).collect();
        resolutions.sort_unstable();
        resolutions
    }

    async fn drain(&self, patience: Duration) {
        in_time("a drain", self.webhooks.drain(tokio::time::sleep(patience))).await;
    }

    async fn wait_for(&self, what: &str, is_reached: impl Fn(&pusherd::metrics::Webhooks) -> bool) {
        eventually(what, || async { is_reached(&self.metrics.webhooks) }).await;
    }
}

fn number(resolution: Resolution) -> i64 {
    let (id, sign) = match resolution {
        Resolution::Acked(id) => (id, 1),
        Resolution::Nacked(id) => (id, -1),
    };
    assert_eq!(id.source(), SOURCE);
    sign * i64::try_from(id.number()).unwrap()
}

fn channel(name: &str) -> ChannelName {
    ChannelName::parse(name, &NameRules::default()).unwrap()
}

fn read_dead_letters(path: &Path) -> Vec<DeadLetter> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn occupied(channel: &str) -> Value {
    json!({ "name": "channel_occupied", "channel": channel })
}

/// A receiver that fails with `reply` until the flag is set.
async fn failing(reply: Reply) -> (Receiver, Arc<AtomicBool>) {
    let is_open = Arc::new(AtomicBool::new(false));
    let opened = Arc::clone(&is_open);
    let receiver = Receiver::with_replies(move |_, _| match opened.load(Ordering::SeqCst) {
        true => Reply::Status(200),
        false => reply.clone(),
    });
    (receiver.await, is_open)
}

#[tokio::test]
async fn a_record_is_acked_when_all_receivers_that_want_it_have_it() {
    let (mut one, (mut two, is_open)) = (Receiver::start().await, failing(Reply::Status(500)).await);
    let mut node = Node::start([one.webhook(), two.webhook()], |_, _| ());
    node.read("+a");
    one.expect(occupied("a")).await;
    node.wait_for("the first receiver has it", |counts| counts.delivered.get() == 1).await;
    two.hook().await;
    two.hook().await;
    assert!(node.resolutions().is_empty(), "the second receiver does not have it");
    is_open.store(true, Ordering::SeqCst);
    assert_eq!(node.resolution().await, 1);
    two.expect(occupied("a")).await;
    assert!(node.resolutions().is_empty());
}

#[tokio::test]
async fn every_attempt_has_the_time_and_the_id_of_the_record() {
    let (mut receiver, is_open) = failing(Reply::HangUp).await;
    let mut node = Node::start([receiver.webhook()], |_, _| ());
    node.read("+a");
    for attempt in 0..5 {
        if attempt == 3 {
            is_open.store(true, Ordering::SeqCst);
        }
        let hook = receiver.hook().await;
        // The record is old, and is retried nevertheless.
        assert_eq!(hook.json()["time_ms"], BEGIN_MS);
        assert_eq!(hook.header("x-pusherd-event-ids"), ["0000000000c0ffee-1"]);
        if matches!(hook.reply, Reply::Status(200)) {
            return assert_eq!(node.resolution().await, 1);
        }
    }
    panic!("it is not delivered");
}

#[tokio::test]
async fn a_request_lists_the_ids_of_its_events_in_order() {
    let (mut receiver, is_open) = failing(Reply::HangUp).await;
    let mut node = Node::start([receiver.webhook()], |app, _| {
        (app.webhook_batching, app.webhook_batching_ms) = (true, 1)
    });
    node.read("+a");
    receiver.hook().await;
    ["+b", "+c", "+d"].into_iter().for_each(|what| node.read(what));
    is_open.store(true, Ordering::SeqCst);
    let mut received = Vec::new();
    while received.len() < 4 {
        let hook = receiver.hook().await;
        if matches!(hook.reply, Reply::Status(200)) {
            let ids: Vec<_> = hook.header("x-pusherd-event-ids")[0].split(',').map(str::to_owned).collect();
            assert_eq!(ids.len(), hook.events().len());
            let channels =
                hook.events().into_iter().map(|event| event["channel"].as_str().unwrap().to_owned());
            received.extend(channels.zip(ids));
        }
    }
    // Events of other channels do not wait for the retry.
    received.sort();
    let expected = ["a", "b", "c", "d"].into_iter().zip(1..);
    let expected: Vec<_> =
        expected.map(|(channel, number)| (channel.into(), format!("0000000000c0ffee-{number}"))).collect();
    assert_eq!(received, expected);
    let mut resolutions =
        [node.resolution().await, node.resolution().await, node.resolution().await, node.resolution().await];
    resolutions.sort_unstable();
    assert_eq!(resolutions, [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_record_that_no_receiver_wants_is_acked_at_once() {
    let mut receiver = Receiver::start().await;
    let mut webhook = receiver.webhook();
    webhook.event_types = EventTypes::of(&[EventType::ChannelOccupied]);
    webhook.filter.starts_with = "r".into();
    let mut node = Node::start([webhook.clone()], |_, options| options.timing.debounce = Duration::ZERO);
    for what in ["+x", "-x", "-r", "+r/7", "+@7", "-@7", "+#server-to-user-7"] {
        node.read(what);
        assert_eq!(node.resolutions(), [i64::try_from(node.number).unwrap()], "{what}");
    }
    node.read_of("another-app", "+r");
    assert_eq!(node.resolutions(), [8]);
    node.read("+r");
    receiver.expect(occupied("r")).await;
    assert_eq!(node.resolution().await, 9);
    assert!(receiver.is_idle());
    let mut without = Node::start([], |_, _| ());
    without.read("+r");
    assert_eq!(without.resolutions(), [1]);
}

#[tokio::test]
async fn records_are_wanted_if_a_receiver_subscribes_to_them() {
    let receiver = Receiver::start().await;
    let mut webhook = receiver.webhook();
    webhook.filter.starts_with = "r".into();
    webhook.event_types = EventTypes::of(&[EventType::MemberRemoved, EventType::UserOnline]);
    let node = Node::start([webhook.clone()], |_, _| ());
    let user = UserId::parse("7", 128).unwrap();
    assert!(node.webhooks.wants_records_of_channel(&node.app, &channel("r")));
    assert!(!node.webhooks.wants_records_of_channel(&node.app, &channel("x")));
    assert!(node.webhooks.wants_records_of_user(&node.app, &user));
    webhook.event_types = EventTypes::of(&[EventType::ClientEvent, EventType::CacheMiss]);
    let node = Node::start([webhook], |_, _| ());
    assert!(!node.webhooks.wants_records_of_channel(&node.app, &channel("r")), "these events are no records");
    assert!(!node.webhooks.wants_records_of_user(&node.app, &user));
}

#[tokio::test]
async fn both_halves_of_a_flap_are_acked_and_not_sent() {
    let mut receiver = Receiver::start().await;
    let mut webhook = receiver.webhook();
    // A rising edge debounces the falling edge even if no receiver wants rising edges.
    webhook.event_types = EventTypes::of(&[EventType::ChannelVacated, EventType::MemberRemoved]);
    let mut node = Node::start([webhook], |_, _| ());
    ["-r/7", "-r", "+r", "+r/7"].into_iter().for_each(|what| node.read(what));
    assert_eq!(
        [node.resolution().await, node.resolution().await, node.resolution().await, node.resolution().await],
        [2, 3, 1, 4]
    );
    assert_eq!((node.metrics.webhooks.debounced.get(), node.metrics.webhooks.events.get()), (4, 0));
    assert!(receiver.is_idle());
}

#[tokio::test]
async fn a_cancelled_pair_is_acked_when_the_other_receivers_have_it() {
    let (mut slow, mut quick) = (Receiver::with_replies(|_, _| Reply::Hang).await, Receiver::start().await);
    let mut node = Node::start([slow.webhook(), quick.webhook()], |app, options| {
        (app.webhook_batching, app.webhook_batching_ms) = (true, 1);
        options.timing.debounce = Duration::ZERO;
    });
    // In flight to the slow receiver; all other events wait behind it.
    node.read("+x");
    slow.hook().await;
    quick.expect(occupied("x")).await;
    for what in ["+a", "+a/7"] {
        node.read(what);
        quick.event().await;
    }
    assert!(node.resolutions().is_empty(), "the slow receiver does not have them");
    ["-a/7", "-a"].into_iter().for_each(|what| node.read(what));
    for name in ["member_removed", "channel_vacated"] {
        assert_eq!(quick.event().await["name"], name, "the quick receiver gets both");
    }
    let mut resolutions =
        [node.resolution().await, node.resolution().await, node.resolution().await, node.resolution().await];
    resolutions.sort_unstable();
    assert_eq!(resolutions, [2, 3, 4, 5]);
    assert_eq!(node.metrics.webhooks.cancelled.get(), 4);
}

#[tokio::test]
async fn a_held_record_is_sent_with_its_own_time() {
    let mut receiver = Receiver::start().await;
    let mut node =
        Node::start([receiver.webhook()], |_, options| options.timing.debounce = Duration::from_millis(40));
    node.read("-a");
    let hook = receiver.hook().await;
    assert_eq!(hook.events(), [json!({ "name": "channel_vacated", "channel": "a" })]);
    assert_eq!(hook.json()["time_ms"], BEGIN_MS);
    assert_eq!(node.resolution().await, 1);
}

#[tokio::test]
async fn an_expired_record_is_acked_when_its_dead_letter_is_written() {
    let directory = tempfile::tempdir().unwrap();
    for file in [Some(directory.path().join("dead.jsonl")), None] {
        let receiver = Receiver::with_replies(|_, _| Reply::Status(500)).await;
        let mut node = Node::start([receiver.webhook()], |_, options| {
            options.timing.delivery_timeout = Duration::from_millis(50);
            options.dead_letter_file = file.clone();
        });
        node.read("+a");
        assert_eq!(node.resolution().await, 1);
        match &file {
            Some(file) => {
                let dead_letter = read_dead_letters(file).remove(0);
                assert_eq!(
                    (dead_letter.time_ms, dead_letter.event_ids),
                    (BEGIN_MS, vec![EventId::new(SOURCE, 1)])
                );
            }
            // It would be lost again.
            None => assert_eq!(node.metrics.webhooks.dead_letters_lost.get(), 1),
        }
        assert!(node.resolutions().is_empty());
    }
}

#[tokio::test]
async fn an_evicted_record_is_acked() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dead.jsonl");
    let (mut receiver, is_open) = failing(Reply::HangUp).await;
    let mut node = Node::start([receiver.webhook()], |_, options| {
        options.dead_letter_file = Some(file.clone());
        // Capacity for two events.
        options.queue_bytes = 1600;
    });
    // The first is in flight and not in the queue.
    node.read("+a");
    receiver.hook().await;
    (0..5).for_each(|_| node.read("+a"));
    let evicted = [node.resolution().await, node.resolution().await, node.resolution().await];
    assert_eq!(evicted, [2, 3, 4], "the oldest");
    assert!(node.resolutions().is_empty());
    let ids: Vec<_> =
        read_dead_letters(&file).into_iter().flat_map(|dead_letter| dead_letter.event_ids).collect();
    assert_eq!(ids, [2, 3, 4].map(|number| EventId::new(SOURCE, number)));
    is_open.store(true, Ordering::SeqCst);
    assert_eq!([node.resolution().await, node.resolution().await, node.resolution().await], [1, 5, 6]);
}

#[tokio::test]
async fn a_shutdown_sends_queued_records_and_nacks_held_ones() {
    let (mut receiver, is_open) = failing(Reply::HangUp).await;
    let mut node = Node::start([receiver.webhook()], |_, _| ());
    ["+a", "+a/7", "-b"].into_iter().for_each(|what| node.read(what));
    receiver.hook().await;
    is_open.store(true, Ordering::SeqCst);
    node.drain(LONG).await;
    assert_eq!(node.resolutions(), [-3, 1, 2]);
    receiver.expect(occupied("a")).await;
    assert_eq!(receiver.event().await["name"], "member_added");
    assert!(receiver.is_idle(), "b may be occupied on another node");
    // Records after the drain are nacked too.
    ["+c", "-c"].into_iter().for_each(|what| node.read(what));
    assert_eq!(node.resolutions(), [-5, -4]);
    assert_eq!(node.metrics.webhooks.nacked.get(), 3);
}

#[tokio::test]
async fn a_shutdown_nacks_unsent_records_and_writes_other_events_as_dead_letters() {
    for (reply, batching) in [
        (Reply::Hang, false),
        (Reply::Hang, true),
        (Reply::HangUp, false),
        (Reply::Status(500), false),
        (Reply::Status(500), true),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("dead.jsonl");
        let case = format!("{reply:?}, {batching}");
        let mut receiver = Receiver::with_replies(move |_, _| reply.clone()).await;
        let mut node = Node::start([receiver.webhook()], |app, options| {
            (app.webhook_batching, app.webhook_batching_ms) = (batching, 1);
            options.dead_letter_file = Some(file.clone());
        });
        // In flight, behind it, in other channels, and held.
        for at in 0..10 {
            ["+a", "+a/7"].into_iter().for_each(|what| node.read(what));
            node.whisper("a");
            node.read(&format!("+channel-{at}"));
            node.read(&format!("-channel-{at}/7"));
        }
        receiver.hook().await;
        node.drain(Duration::from_millis(50)).await;
        assert_eq!(node.resolutions(), (-40..0).collect::<Vec<_>>(), "{case}");
        let bodies: Vec<_> =
            read_dead_letters(&file).iter().map(|dead_letter| dead_letter.body.clone()).collect();
        let events: Vec<_> = bodies
            .iter()
            .flat_map(|body| {
                serde_json::from_str::<Value>(body).unwrap()["events"].as_array().unwrap().clone()
            })
            .collect();
        assert_eq!(events.len(), 10, "{case}");
        assert!(events.iter().all(|event| event["name"] == "client_event"), "{case}");
        assert_eq!(node.metrics.webhooks.nacked.get(), 40, "{case}");
    }
}

#[test]
fn records_that_end_with_the_process_are_nacked() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut node = runtime.block_on(async {
        let mut receiver = Receiver::with_replies(|_, _| Reply::Hang).await;
        let mut node = Node::start([receiver.webhook()], |_, _| ());
        // In flight, behind it, and held.
        ["+a", "+a", "-b"].into_iter().for_each(|what| node.read(what));
        receiver.hook().await;
        node
    });
    assert!(node.resolutions().is_empty());
    runtime.shutdown_background();
    node.webhooks = Webhooks::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut resolutions = runtime
        .block_on(async { [node.resolution().await, node.resolution().await, node.resolution().await] });
    resolutions.sort_unstable();
    assert_eq!(resolutions, [-3, -2, -1]);
}

#[tokio::test]
async fn cancelled_records_are_not_sent() {
    let (mut receiver, is_open) = failing(Reply::HangUp).await;
    let mut node = Node::start([receiver.webhook()], |app, options| {
        (app.webhook_batching, app.webhook_batching_ms) = (true, 1);
        options.timing.debounce = Duration::from_millis(40);
    });
    ["+a", "+b", "-c"].into_iter().for_each(|what| node.read(what));
    node.whisper("a");
    receiver.hook().await;
    // Another node reads the records now.
    (node.resolutions, node.resolved) = mpsc::unbounded_channel();
    node.wait_for("failed attempts are nacked", |counts| counts.nacked.get() == 2).await;
    is_open.store(true, Ordering::SeqCst);
    assert_eq!(receiver.event().await["name"], "client_event");
    node.wait_for("held records are nacked", |counts| counts.nacked.get() == 3).await;
    node.read("+d");
    receiver.expect(occupied("d")).await;
    assert_eq!(node.resolution().await, 4);
    assert!(receiver.is_idle());
}

#[tokio::test]
async fn event_ids_are_unique_across_processes() {
    let mut receiver =
        Receiver::with_replies(|at, _| Reply::Status(if at % 2 == 0 { 500 } else { 200 })).await;
    let node = Node::start([receiver.webhook()], |_, _| ());
    let other = Node::start([receiver.webhook()], |_, _| ());
    let mut ids: Vec<EventId> = Vec::new();
    for node in [&node, &node, &other] {
        node.whisper("a");
        let [first, second] = [receiver.hook().await, receiver.hook().await];
        let of = |name| (first.header(name).join(" "), second.header(name).join(" "));
        let (in_first, in_second) = of("x-pusherd-event-ids");
        assert_eq!(in_first, in_second, "the same in both attempts");
        ids.push(in_first.parse().unwrap());
    }
    assert_eq!(ids[0].source(), ids[1].source());
    assert_ne!(ids[0].number(), ids[1].number());
    assert_ne!(ids[0].source(), ids[2].source(), "sources are random");
}
