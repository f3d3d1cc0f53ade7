//! What becomes of the records of a cluster that applications are told of: each ends once, settled or released.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pusherd::apps::{App, Apps, EventType, EventTypes, Webhook};
use pusherd::metrics::Metrics;
use pusherd::protocol::{ChannelName, NameRules, SocketId, UserId};
use pusherd::webhooks::dead_letters::DeadLetter;
use pusherd::webhooks::{End, Event, EventId, Options, Receipt, Webhooks};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::{Receiver, Reply, eventually, in_time};

/// What no test waits for.
const LONG: Duration = Duration::from_secs(600);

/// What numbers the records here.
const SOURCE: u64 = 0xc0_ffee;

/// When the first record happened: long ago.
const BEGIN_MS: u64 = 1_000_000;

/// A node that reads records, with its webhooks and without a server around them.
struct Node {
    app: Arc<App>,
    webhooks: Webhooks,
    metrics: Arc<Metrics>,
    ends: mpsc::UnboundedSender<End>,
    ended: mpsc::UnboundedReceiver<End>,
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
        (options.timing.hold, options.timing.back_off) = (LONG, Duration::from_millis(5));
        options.timing.probe = Duration::from_millis(5);
        change(&mut app, &mut options);
        let metrics = Arc::new(Metrics::default());
        let apps = Apps::new([app]);
        let webhooks = Webhooks::start(&apps, options, &metrics).unwrap();
        let app = Arc::clone(apps.iter().next().unwrap());
        let (ends, ended) = mpsc::unbounded_channel();
        Self { app, webhooks, metrics, ends, ended, number: 0 }
    }

    /// Notes a record such as `+room` (occupied), `-room/7` (member gone) or `+@7` (user online), each a second after
    /// the one before.
    fn note(&mut self, what: &str) {
        self.note_of("1001", what);
    }

    fn note_of(&mut self, app: &str, what: &str) {
        self.number += 1;
        let receipt = Receipt::new(EventId::new(SOURCE, self.number), self.ends.clone());
        let time_ms = BEGIN_MS + 1000 * (self.number - 1);
        let (comes, of) = (what.starts_with('+'), &what[1..]);
        let user = |id| UserId::parse(id, 128).unwrap();
        let tell = |event| self.webhooks.note_record(app, &event, time_ms, receipt.clone());
        match (of.strip_prefix('@').map(user), of.split_once('/')) {
            (Some(user), _) if comes => tell(Event::UserOnline(&user)),
            (Some(user), _) => tell(Event::UserOffline(&user)),
            (None, Some((of, id))) if comes => tell(Event::MemberAdded(&channel(of), &user(id))),
            (None, Some((of, id))) => tell(Event::MemberRemoved(&channel(of), &user(id))),
            (None, None) if comes => tell(Event::ChannelOccupied(&channel(of))),
            (None, None) => tell(Event::ChannelVacated(&channel(of))),
        }
        receipt.settle();
    }

    /// Notes a client event, which is no record.
    fn whisper(&self, to: &str) {
        let channel = channel(to);
        self.webhooks.of_client_event(&self.app, &channel).unwrap().note(&Event::ClientEvent {
            channel: &channel,
            event: "client-x",
            data: "1",
            socket: SocketId::new(1, 1),
            user: None,
        });
    }

    /// The next end: the record's number, negative if it is released.
    async fn end(&mut self) -> i64 {
        number(in_time("the end of a record", self.ended.recv()).await.unwrap())
    }

    /// All ends that there are, sorted.
    fn ends(&mut self) -> Vec<i64> {
        let mut ends: Vec<_> = std::iter::from_fn(|| self.ended.try_recv().ok()).map(number).collect();
        ends.sort_unstable();
        ends
    }

    async fn drain(&self, patience: Duration) {
        in_time("a drain", self.webhooks.drain(tokio::time::sleep(patience))).await;
    }

    async fn counts(&self, what: &str, is_so: impl Fn(&pusherd::metrics::Webhooks) -> bool) {
        eventually(what, || async { is_so(&self.metrics.webhooks) }).await;
    }
}

fn number(end: End) -> i64 {
    let (id, sign) = match end {
        End::Settled(id) => (id, 1),
        End::Released(id) => (id, -1),
    };
    assert_eq!(id.source(), SOURCE);
    sign * i64::try_from(id.number()).unwrap()
}

fn channel(name: &str) -> ChannelName {
    ChannelName::parse(name, &NameRules::default()).unwrap()
}

fn letters(path: &Path) -> Vec<DeadLetter> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn occupied(channel: &str) -> Value {
    json!({ "name": "channel_occupied", "channel": channel })
}

/// A receiver that says `reply` until it is opened.
async fn closed(reply: Reply) -> (Receiver, Arc<AtomicBool>) {
    let is_open = Arc::new(AtomicBool::new(false));
    let is_taken = Arc::clone(&is_open);
    let receiver = Receiver::that(move |_, _| match is_taken.load(Ordering::SeqCst) {
        true => Reply::Status(200),
        false => reply.clone(),
    });
    (receiver.await, is_open)
}

#[tokio::test]
async fn a_record_is_settled_when_all_who_want_it_have_it() {
    let (mut one, (mut two, is_open)) = (Receiver::start().await, closed(Reply::Status(500)).await);
    let mut node = Node::start([one.webhook(), two.webhook()], |_, _| ());
    node.note("+a");
    one.expect(occupied("a")).await;
    node.counts("one has it", |counts| counts.delivered.get() == 1).await;
    two.hook().await;
    two.hook().await;
    assert!(node.ends().is_empty(), "two has it not");
    is_open.store(true, Ordering::SeqCst);
    assert_eq!(node.end().await, 1);
    two.expect(occupied("a")).await;
    assert!(node.ends().is_empty());
}

#[tokio::test]
async fn receivers_are_told_when_it_happened_and_what_it_is_called_in_every_attempt() {
    let (mut receiver, is_open) = closed(Reply::HangUp).await;
    let mut node = Node::start([receiver.webhook()], |_, _| ());
    node.note("+a");
    for attempt in 0..5 {
        if attempt == 3 {
            is_open.store(true, Ordering::SeqCst);
        }
        let hook = receiver.hook().await;
        // Hours old, and tried again none the less.
        assert_eq!(hook.json()["time_ms"], BEGIN_MS);
        assert_eq!(hook.header("x-pusherd-event-ids"), ["0000000000c0ffee-1"]);
        if matches!(hook.reply, Reply::Status(200)) {
            return assert_eq!(node.end().await, 1);
        }
    }
    panic!("it is not delivered");
}

#[tokio::test]
async fn a_request_names_all_of_its_events_in_their_order() {
    let (mut receiver, is_open) = closed(Reply::HangUp).await;
    let mut node = Node::start([receiver.webhook()], |app, _| {
        (app.webhook_batching, app.webhook_batching_ms) = (true, 1)
    });
    node.note("+a");
    receiver.hook().await;
    ["+b", "+c", "+d"].into_iter().for_each(|what| node.note(what));
    is_open.store(true, Ordering::SeqCst);
    let mut told = Vec::new();
    while told.len() < 4 {
        let hook = receiver.hook().await;
        if matches!(hook.reply, Reply::Status(200)) {
            let ids: Vec<_> = hook.header("x-pusherd-event-ids")[0].split(',').map(str::to_owned).collect();
            assert_eq!(ids.len(), hook.events().len());
            let channels =
                hook.events().into_iter().map(|event| event["channel"].as_str().unwrap().to_owned());
            told.extend(channels.zip(ids));
        }
    }
    // The others did not wait for what was tried before.
    told.sort();
    let expected = ["a", "b", "c", "d"].into_iter().zip(1..);
    let expected: Vec<_> =
        expected.map(|(channel, number)| (channel.into(), format!("0000000000c0ffee-{number}"))).collect();
    assert_eq!(told, expected);
    let mut ends = [node.end().await, node.end().await, node.end().await, node.end().await];
    ends.sort_unstable();
    assert_eq!(ends, [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_record_that_nobody_wants_is_settled_at_once() {
    let mut receiver = Receiver::start().await;
    let mut webhook = receiver.webhook();
    webhook.event_types = EventTypes::of(&[EventType::ChannelOccupied]);
    webhook.filter.starts_with = "r".into();
    let mut node = Node::start([webhook.clone()], |_, options| options.timing.hold = Duration::ZERO);
    for what in ["+x", "-x", "-r", "+r/7", "+@7", "-@7", "+#server-to-user-7"] {
        node.note(what);
        assert_eq!(node.ends(), [i64::try_from(node.number).unwrap()], "{what}");
    }
    node.note_of("another-app", "+r");
    assert_eq!(node.ends(), [8]);
    node.note("+r");
    receiver.expect(occupied("r")).await;
    assert_eq!(node.end().await, 9);
    assert!(receiver.is_idle());
    let mut without = Node::start([], |_, _| ());
    without.note("+r");
    assert_eq!(without.ends(), [1]);
}

#[tokio::test]
async fn what_is_put_down_is_what_somebody_wants() {
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
    assert!(!node.webhooks.wants_records_of_channel(&node.app, &channel("r")), "those are no records");
    assert!(!node.webhooks.wants_records_of_user(&node.app, &user));
}

#[tokio::test]
async fn both_halves_of_a_flap_are_settled_and_not_told() {
    let mut receiver = Receiver::start().await;
    let mut webhook = receiver.webhook();
    // Who came back undoes that they went, whether or not anybody hears of the former.
    webhook.event_types = EventTypes::of(&[EventType::ChannelVacated, EventType::MemberRemoved]);
    let mut node = Node::start([webhook], |_, _| ());
    ["-r/7", "-r", "+r", "+r/7"].into_iter().for_each(|what| node.note(what));
    assert_eq!([node.end().await, node.end().await, node.end().await, node.end().await], [2, 3, 1, 4]);
    assert_eq!((node.metrics.webhooks.smoothed.get(), node.metrics.webhooks.events.get()), (4, 0));
    assert!(receiver.is_idle());
}

#[tokio::test]
async fn both_halves_that_nobody_was_told_of_are_settled_once_those_are_who_were() {
    let (mut slow, mut quick) = (Receiver::that(|_, _| Reply::Hang).await, Receiver::start().await);
    let mut node = Node::start([slow.webhook(), quick.webhook()], |app, options| {
        (app.webhook_batching, app.webhook_batching_ms) = (true, 1);
        options.timing.hold = Duration::ZERO;
    });
    // On its way to the slow one, behind which all else waits.
    node.note("+x");
    slow.hook().await;
    quick.expect(occupied("x")).await;
    for what in ["+a", "+a/7"] {
        node.note(what);
        quick.event().await;
    }
    assert!(node.ends().is_empty(), "the slow one has to be told");
    ["-a/7", "-a"].into_iter().for_each(|what| node.note(what));
    for name in ["member_removed", "channel_vacated"] {
        assert_eq!(quick.event().await["name"], name, "the quick one has been told of both");
    }
    let mut ends = [node.end().await, node.end().await, node.end().await, node.end().await];
    ends.sort_unstable();
    assert_eq!(ends, [2, 3, 4, 5]);
    assert_eq!(node.metrics.webhooks.cancelled.get(), 4);
}

#[tokio::test]
async fn who_stays_away_is_told_of_with_the_time_of_the_record() {
    let mut receiver = Receiver::start().await;
    let mut node =
        Node::start([receiver.webhook()], |_, options| options.timing.hold = Duration::from_millis(40));
    node.note("-a");
    let hook = receiver.hook().await;
    assert_eq!(hook.events(), [json!({ "name": "channel_vacated", "channel": "a" })]);
    assert_eq!(hook.json()["time_ms"], BEGIN_MS);
    assert_eq!(node.end().await, 1);
}

#[tokio::test]
async fn a_record_that_is_given_up_is_settled_when_the_letter_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    for file in [Some(directory.path().join("dead.jsonl")), None] {
        let receiver = Receiver::that(|_, _| Reply::Status(500)).await;
        let mut node = Node::start([receiver.webhook()], |_, options| {
            options.timing.retry = Duration::from_millis(50);
            options.dead_letter_file = file.clone();
        });
        node.note("+a");
        assert_eq!(node.end().await, 1);
        match &file {
            Some(file) => {
                let letter = letters(file).remove(0);
                assert_eq!((letter.time_ms, letter.event_ids), (BEGIN_MS, vec![EventId::new(SOURCE, 1)]));
            }
            // Lost is as good as kept: it would be lost again.
            None => assert_eq!(node.metrics.webhooks.dead_letters_lost.get(), 1),
        }
        assert!(node.ends().is_empty());
    }
}

#[tokio::test]
async fn what_falls_out_of_a_full_queue_is_settled() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dead.jsonl");
    let (mut receiver, is_open) = closed(Reply::HangUp).await;
    let mut node = Node::start([receiver.webhook()], |_, options| {
        options.dead_letter_file = Some(file.clone());
        // Room for less than three.
        options.queue_bytes = 1600;
    });
    // The first is on its way and not in the queue.
    node.note("+a");
    receiver.hook().await;
    (0..5).for_each(|_| node.note("+a"));
    let fallen = [node.end().await, node.end().await, node.end().await];
    assert_eq!(fallen, [2, 3, 4], "the oldest");
    assert!(node.ends().is_empty());
    let ids: Vec<_> = letters(&file).into_iter().flat_map(|letter| letter.event_ids).collect();
    assert_eq!(ids, [2, 3, 4].map(|number| EventId::new(SOURCE, number)));
    is_open.store(true, Ordering::SeqCst);
    assert_eq!([node.end().await, node.end().await, node.end().await], [1, 5, 6]);
}

#[tokio::test]
async fn a_shutdown_sends_what_waits_and_releases_who_is_held() {
    let (mut receiver, is_open) = closed(Reply::HangUp).await;
    let mut node = Node::start([receiver.webhook()], |_, _| ());
    ["+a", "+a/7", "-b"].into_iter().for_each(|what| node.note(what));
    receiver.hook().await;
    is_open.store(true, Ordering::SeqCst);
    node.drain(LONG).await;
    assert_eq!(node.ends(), [-3, 1, 2]);
    receiver.expect(occupied("a")).await;
    assert_eq!(receiver.event().await["name"], "member_added");
    assert!(receiver.is_idle(), "nobody is told that b is empty, which may not be so");
    // What comes after the end is left to the others, too.
    ["+c", "-c"].into_iter().for_each(|what| node.note(what));
    assert_eq!(node.ends(), [-5, -4]);
    assert_eq!(node.metrics.webhooks.released.get(), 3);
}

#[tokio::test]
async fn a_shutdown_releases_the_records_that_it_cannot_send_and_keeps_the_rest() {
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
        let mut receiver = Receiver::that(move |_, _| reply.clone()).await;
        let mut node = Node::start([receiver.webhook()], |app, options| {
            (app.webhook_batching, app.webhook_batching_ms) = (batching, 1);
            options.dead_letter_file = Some(file.clone());
        });
        // On its way, behind it, in other channels, and held.
        for at in 0..10 {
            ["+a", "+a/7"].into_iter().for_each(|what| node.note(what));
            node.whisper("a");
            node.note(&format!("+channel-{at}"));
            node.note(&format!("-channel-{at}/7"));
        }
        receiver.hook().await;
        node.drain(Duration::from_millis(50)).await;
        assert_eq!(node.ends(), (-40..0).collect::<Vec<_>>(), "{case}");
        let kept: Vec<_> = letters(&file).iter().map(|letter| letter.body.clone()).collect();
        let events: Vec<_> = kept
            .iter()
            .flat_map(|body| {
                serde_json::from_str::<Value>(body).unwrap()["events"].as_array().unwrap().clone()
            })
            .collect();
        assert_eq!(events.len(), 10, "{case}");
        assert!(events.iter().all(|event| event["name"] == "client_event"), "{case}");
        assert_eq!(node.metrics.webhooks.released.get(), 40, "{case}");
    }
}

#[test]
fn whatever_ends_with_the_process_is_not_settled() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut node = runtime.block_on(async {
        let mut receiver = Receiver::that(|_, _| Reply::Hang).await;
        let mut node = Node::start([receiver.webhook()], |_, _| ());
        // On its way, behind it, and held.
        ["+a", "+a", "-b"].into_iter().for_each(|what| node.note(what));
        receiver.hook().await;
        node
    });
    assert!(node.ends().is_empty());
    runtime.shutdown_background();
    node.webhooks = Webhooks::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut ends = runtime.block_on(async { [node.end().await, node.end().await, node.end().await] });
    ends.sort_unstable();
    assert_eq!(ends, [-3, -2, -1]);
}

#[tokio::test]
async fn records_that_were_given_up_are_not_sent_any_more() {
    let (mut receiver, is_open) = closed(Reply::HangUp).await;
    let mut node = Node::start([receiver.webhook()], |app, options| {
        (app.webhook_batching, app.webhook_batching_ms) = (true, 1);
        options.timing.hold = Duration::from_millis(40);
    });
    ["+a", "+b", "-c"].into_iter().for_each(|what| node.note(what));
    node.whisper("a");
    receiver.hook().await;
    // Another node reads them now.
    (node.ends, node.ended) = mpsc::unbounded_channel();
    node.counts("what was tried is left to it", |counts| counts.released.get() == 2).await;
    is_open.store(true, Ordering::SeqCst);
    assert_eq!(receiver.event().await["name"], "client_event");
    node.counts("who was held is left to it", |counts| counts.released.get() == 3).await;
    node.note("+d");
    receiver.expect(occupied("d")).await;
    assert_eq!(node.end().await, 4);
    assert!(receiver.is_idle());
}

#[tokio::test]
async fn events_of_one_node_have_ids_of_their_own() {
    let mut receiver = Receiver::that(|at, _| Reply::Status(if at % 2 == 0 { 500 } else { 200 })).await;
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
    assert_ne!(ids[0].source(), ids[2].source(), "two processes agree by no chance");
}
