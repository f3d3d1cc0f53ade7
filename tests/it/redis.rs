//! The driver of Redis against servers that the tests start: that it does what the model says, and what becomes of it
//! when servers do not.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use pusherd::cluster::driver::{
    Arrivals, Driver as _, Incoming, Kept, Lost, PARTITIONS, Record, Topic, partition_of,
};
use pusherd::cluster::envelope::{self, Envelope};
use pusherd::cluster::redis::options::{Password, Server, Servers, TlsOptions};
use pusherd::cluster::redis::{Options, Redis, StartError};
use pusherd::cluster::truth::{
    Answer, Change, Group, MemberId, NodeId, Refusal, Transition, Truth, Update, Version,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::harness::redis::{RedisServer, redis_cluster, redis_sentinel, redis_server, redis_server_with};
use crate::harness::{eventually, in_time};

const LEASE: Duration = Duration::from_secs(12);

/// A driver and what it hears.
struct Node {
    redis: Redis,
    arrivals: Arrivals,
    id: NodeId,
}

impl Node {
    /// It may not have found Redis yet.
    fn start(options: Options) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let (redis, arrivals) = Redis::start(options).unwrap();
        Self { redis, arrivals, id: NodeId(IDS.fetch_add(1, Ordering::Relaxed).into()) }
    }

    async fn found(options: Options) -> Self {
        let mut node = Self::start(options);
        node.becomes(Incoming::Found).await;
        node
    }

    async fn next(&mut self) -> Incoming {
        in_time("something arrives", self.arrivals.recv()).await.unwrap()
    }

    /// Waits until Redis is lost or found; messages are passed over.
    async fn becomes(&mut self, wanted: Incoming) {
        loop {
            match self.next().await {
                Incoming::Message(..) => {}
                other @ (Incoming::Lost | Incoming::Found) => return assert_eq!(other, wanted),
            }
        }
    }

    async fn hears(&mut self, topic: &Topic, message: &'static str) {
        assert_eq!(self.next().await, Incoming::Message(topic.clone(), Bytes::from(message)));
    }

    async fn publish(&self, topic: &Topic, message: &'static str) -> Result<(), Lost> {
        in_time("an answer", self.redis.publish(vec![(topic.clone(), Bytes::from(message))])).await
    }

    async fn listen(&self, topic: &Topic) {
        in_time("it is listened", self.redis.listen(topic.clone())).await.unwrap();
    }

    /// What is published comes back.
    async fn is_well(&mut self) {
        for topic in [Topic::Group(group("well")), Topic::Nodes, Topic::Node(self.id)] {
            self.listen(&topic).await;
            self.publish(&topic, "it is well").await.unwrap();
            self.hears(&topic, "it is well").await;
            self.redis.ignore(topic);
        }
        let update = self.update("well", 1).holds();
        assert!(in_time("an answer", self.redis.update(update.0, false)).await.is_ok());
    }

    fn update(&self, of: &str, number: u64) -> Asking {
        Asking(Update {
            node: self.id,
            number,
            group: group(of),
            holds: false,
            here: Vec::new(),
            gone: Vec::new(),
            is_all: false,
            asks: false,
        })
    }

    /// Carries it out.
    async fn does(&self, Asking(update): Asking) -> Result<Answer, Refusal> {
        in_time("an answer", self.redis.update(update, true)).await.unwrap()
    }
}

struct Asking(Update);

impl Asking {
    fn holds(mut self) -> Self {
        self.0.holds = true;
        self
    }

    fn with(mut self, member: &str) -> Self {
        self.0.here.push((MemberId::from(member), Bytes::from_static(b"{}")));
        self
    }

    fn asks(mut self) -> Self {
        self.0.asks = true;
        self
    }
}

fn group(name: &str) -> Group {
    Arc::from(name)
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn take(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        tracing::subscriber::set_default(
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish(),
        )
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// --- The model ---

const NODES: usize = 3;
const GROUPS: usize = 2;

#[derive(Clone, Debug)]
enum Step {
    Update { node: usize, ahead: u64, group: usize, is_noted: bool, members: Members },
    GiveUp(usize),
    Look(usize),
    Occupied,
}

#[derive(Clone, Debug)]
struct Members {
    holds: bool,
    here: Vec<usize>,
    gone: Vec<usize>,
    is_all: bool,
    asks: bool,
}

const IDS: [&str; 4] = ["u1", "ü \u{0}2", "u 3 4", "B"];
const INFOS: [&[u8]; 4] = [b"{}", b"", b"7 8\n\xff\x00 {\"a\": 1}", b"{\"b\":[]}"];

fn step() -> impl Strategy<Value = Step> {
    let members = (
        prop::bool::weighted(0.8),
        prop::collection::vec(0..IDS.len(), 0..4),
        prop::collection::vec(0..IDS.len(), 0..3),
        prop::bool::weighted(0.2),
        any::<bool>(),
    );
    let members =
        members.prop_map(|(holds, here, gone, is_all, asks)| Members { holds, here, gone, is_all, asks });
    // 0: the number of the operation before comes again.
    let update = (0..NODES, 0..4_u64, 0..GROUPS, any::<bool>(), members).prop_map(
        |(node, ahead, group, is_noted, members)| Step::Update { node, ahead, group, is_noted, members },
    );
    prop_oneof![
        20 => update,
        1 => (0..NODES).prop_map(Step::GiveUp),
        2 => (0..GROUPS).prop_map(Step::Look),
        1 => Just(Step::Occupied),
    ]
}

/// Redis and the model next to each other.
struct Pair<'a> {
    node: &'a mut Node,
    truth: Truth,
    groups: Vec<Group>,
    nodes: Vec<NodeId>,
    numbers: Vec<u64>,
    /// What Redis calls a version of the model.
    versions: HashMap<Version, Version>,
    /// The last version of each group in Redis, and in the partition.
    last: HashMap<Group, Version>,
    /// Whether what a node has of a group is noted.
    is_noted: HashMap<(NodeId, Group), bool>,
    /// The versions, in Redis, of what was.
    noted: Vec<Transition>,
}

impl<'a> Pair<'a> {
    /// Groups that nobody else has, all in one partition.
    async fn new(server: &RedisServer, node: &'a mut Node) -> Self {
        // What a case that failed has left.
        server.run::<()>(&["FLUSHALL"]).await;
        node.listen(&Topic::Nodes).await;
        node.publish(&Topic::Nodes, "begin").await.unwrap();
        while node.next().await != Incoming::Message(Topic::Nodes, Bytes::from("begin")) {}
        static CASES: AtomicUsize = AtomicUsize::new(0);
        let case = CASES.fetch_add(1, Ordering::Relaxed);
        let names = (0..).map(|number| group(&format!("case-{case}-ü {number}")));
        let groups: Vec<_> = names.filter(|group| partition_of(group) == 7).take(GROUPS).collect();
        for group in &groups {
            node.listen(&Topic::Group(Arc::clone(group))).await;
        }
        let nodes = (0..NODES).map(|at| NodeId(((case + 1) * 1000 + at) as u128)).collect();
        Self {
            node,
            truth: Truth::new(0),
            groups,
            nodes,
            numbers: vec![0; NODES],
            versions: HashMap::from([(0, 0)]),
            last: HashMap::new(),
            is_noted: HashMap::new(),
            noted: Vec::new(),
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Update { node, ahead, group, is_noted, members } => {
                let number = (self.numbers[node] + ahead).saturating_sub(1);
                self.numbers[node] = self.numbers[node].max(number);
                let id = |at: &usize| MemberId::from(IDS[*at]);
                let update = Update {
                    node: self.nodes[node],
                    number,
                    group: Arc::clone(&self.groups[group]),
                    holds: members.holds,
                    here: members.here.iter().map(|at| (id(at), Bytes::from_static(INFOS[*at]))).collect(),
                    gone: members.gone.iter().map(id).collect(),
                    is_all: members.is_all,
                    asks: members.asks,
                };
                self.update(update, is_noted).await;
            }
            Step::GiveUp(node) => self.give_up(node).await,
            Step::Look(at) => {
                let group = Arc::clone(&self.groups[at]);
                let found = self.node.redis.look(Arc::clone(&group)).await.unwrap();
                assert_eq!(found, self.translated(self.truth.look(&group)));
            }
            Step::Occupied => self.occupied().await,
        }
    }

    async fn update(&mut self, update: Update, is_noted: bool) {
        let mut told = Vec::new();
        let wanted = self.truth.update(&update, &mut told);
        let answer = self.node.redis.update(update.clone(), is_noted).await.unwrap();
        if wanted.is_ok() {
            self.is_noted.insert((update.node, Arc::clone(&update.group)), is_noted);
        }
        self.hears(told, |_| is_noted).await;
        assert_eq!(answer, wanted.map(|answer| self.translated(answer)));
    }

    async fn give_up(&mut self, node: usize) {
        let node = self.nodes[node];
        let mut told = Vec::new();
        self.truth.give_up(node, &mut told);
        while self.node.redis.reap(7, node).await.unwrap() {}
        // Redis has groups that are noted behind those that are not.
        let is_noted = self.is_noted.clone();
        let is_noted = |group: &Group| is_noted.get(&(node, Arc::clone(group))).copied().unwrap_or_default();
        told.sort_by_key(|transition| is_noted(&transition.group));
        self.hears(told, is_noted).await;
        assert!(!self.node.redis.nodes(7).await.unwrap().contains(&node));
    }

    async fn occupied(&mut self) {
        let prefix = self.groups[0].rsplit_once(' ').unwrap().0.to_owned() + " ";
        let mut found = self.node.redis.occupied(&prefix).await.unwrap();
        found.sort();
        let groups = self.truth.groups().map(|group| (Arc::clone(group), self.truth.look(group)));
        let groups = groups.filter(|(_, answer)| answer.occupied);
        let mut wanted: Vec<_> =
            groups.map(|(group, answer)| (group, answer.members.unwrap().len())).collect();
        wanted.sort();
        assert_eq!(found, wanted);
    }

    fn translated(&self, answer: Answer) -> Answer {
        Answer { version: self.versions[&answer.version], ..answer }
    }

    /// The same transitions arrive, in this order.
    async fn hears(&mut self, told: Vec<Transition>, is_noted: impl Fn(&Group) -> bool) {
        for wanted in told {
            let Incoming::Message(Topic::Group(about), bytes) = self.node.next().await else { panic!() };
            let Some(Envelope::Changed(transition)) = envelope::open(Some(&about), &bytes) else {
                panic!("{bytes:?}")
            };
            let last = self.last.values().copied().max().unwrap_or_default();
            assert!(transition.version > last, "versions grow");
            assert_eq!(transition.before, self.versions[&wanted.before]);
            let Transition { version, .. } = transition;
            self.versions.insert(wanted.version, version);
            self.last.insert(about, version);
            assert_eq!(transition, Transition { before: transition.before, version, ..wanted });
            if is_noted(&transition.group) {
                self.noted.push(transition);
            }
        }
    }

    /// Nothing else has arrived; what was noted is there, in order; and of what is over, nothing is kept.
    async fn end(mut self, by_leaving: bool) {
        for node in 0..NODES {
            for group in 0..GROUPS {
                let members = Members { holds: false, here: vec![], gone: vec![], is_all: true, asks: true };
                if by_leaving {
                    self.take(Step::Update { node, ahead: 2, group, is_noted: true, members }).await;
                }
            }
            if !by_leaving {
                self.give_up(node).await;
            }
        }
        assert_eq!(self.truth.groups().count(), 0);
        for group in &self.groups {
            let topic = Topic::Group(Arc::clone(group));
            self.node.publish(&topic, "fence").await.unwrap();
            self.node.hears(&topic, "fence").await;
            self.node.redis.ignore(topic);
        }
        let records = self.node.redis.records(7, 0, 1000).await.unwrap();
        let found: Vec<_> = records.into_iter().map(|record| record.transition).collect();
        assert_eq!(found, self.noted);
        let versions: Vec<_> = self.noted.iter().map(|transition| transition.version).collect();
        if let [_, second, ..] = versions[..] {
            let after = self.node.redis.records(7, versions[0], 1).await.unwrap();
            assert_eq!(after[0].transition.version, second);
        }
        self.node.redis.settle(7, versions).await.unwrap();
        assert_eq!(self.node.redis.records(7, 0, 1000).await.unwrap(), []);
    }
}

/// Names of keys, but for those that are to stay: versions, numbers, records, and who was given up.
async fn keys_left(server: &RedisServer) -> Vec<String> {
    let keys: Vec<String> = server.run(&["KEYS", "*"]).await;
    let stays = |key: &String| {
        let rest = key.split_once("}:").unwrap().1;
        ["v", "n", "r"].contains(&rest) || rest.starts_with("g:")
    };
    keys.into_iter().filter(|key| !stays(key)).collect()
}

#[test]
fn the_scripts_do_what_the_model_says_and_leave_nothing_behind() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (server, mut node) = runtime.block_on(async {
        let server = redis_server().await;
        let node = Node::found(server.options()).await;
        (server, node)
    });
    let node = Mutex::new(&mut node);
    let cases = (prop::collection::vec(step(), 0..60), any::<bool>());
    let mut runner = TestRunner::new(Config { cases: 100, failure_persistence: None, ..Config::default() });
    let result = runner.run(&cases, |(steps, by_leaving)| {
        let mut node = node.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        runtime.block_on(async {
            let mut pair = Pair::new(&server, &mut node).await;
            for step in steps {
                pair.take(step).await;
            }
            pair.end(by_leaving).await;
            assert_eq!(keys_left(&server).await, [""; 0]);
        });
        Ok(())
    });
    result.unwrap();
}

#[tokio::test]
async fn a_node_with_much_is_reaped_piece_by_piece() {
    let server = redis_server().await;
    let node = Node::found(server.options()).await;
    let groups: Vec<_> =
        (0..).map(|number| format!("g{number}")).filter(|name| partition_of(name) == 3).take(150).collect();
    for (name, number) in groups.iter().zip(1..) {
        assert!(node.does(node.update(name, number).holds()).await.is_ok());
    }
    let mut large = node.update(&groups[0], 1000).holds();
    (0..2500).for_each(|at| large.0.here.push((MemberId::from(format!("u{at}")), Bytes::new())));
    assert!(node.does(large).await.is_ok());
    let mut pieces = 1;
    while node.redis.reap(3, node.id).await.unwrap() {
        assert!(node.redis.nodes(3).await.unwrap().contains(&node.id), "there is more to take");
        pieces += 1;
    }
    assert!(pieces >= 4, "{pieces}");
    assert_eq!(keys_left(&server).await, [""; 0]);
    assert_eq!(node.does(node.update("g", 2000).holds()).await.is_ok(), partition_of("g") != 3);
    assert_eq!(node.does(node.update(&groups[0], 2001).holds()).await, Err(Refusal::GivenUp));
}

#[tokio::test]
async fn what_is_kept_is_told_and_found_under_one_number_until_its_time_is_over() {
    let server = redis_server().await;
    let mut node = Node::found(server.options()).await;
    let about = group("g");
    let topic = Topic::Group(Arc::clone(&about));
    node.listen(&topic).await;
    assert_eq!(node.redis.kept(Arc::clone(&about)).await, Ok(None));
    let mut last = 0;
    for message in ["first", "second\0ü", ""] {
        let ttl = Duration::from_secs(60);
        node.redis.keep(Arc::clone(&about), Bytes::from(message), ttl).await.unwrap();
        let Incoming::Message(_, bytes) = node.next().await else { panic!() };
        let Some(Envelope::Kept(number, told)) = envelope::open(Some(&about), &bytes) else { panic!() };
        assert!(number > last);
        last = number;
        let Kept { number, message: found, ttl: left } =
            node.redis.kept(Arc::clone(&about)).await.unwrap().unwrap();
        assert_eq!((number, &found, &told), (last, &Bytes::from(message), &found));
        assert!(left <= ttl && left > ttl / 2, "{left:?}");
    }
    node.redis.keep(Arc::clone(&about), Bytes::from("short"), Duration::from_millis(1)).await.unwrap();
    eventually("it is forgotten", async || node.redis.kept(Arc::clone(&about)).await == Ok(None)).await;
    assert_eq!(keys_left(&server).await, [""; 0]);
}

#[tokio::test]
async fn shares_never_are_more_than_there_is() {
    let server = redis_server().await;
    let node = Node::found(server.options()).await;
    let what = group("connections");
    let [one, two] = [NodeId(1), NodeId(2)];
    let reserve = async |node_id, wanted, max| {
        node.redis.reserve(Arc::clone(&what), node_id, wanted, max).await.unwrap()
    };
    assert_eq!(reserve(one, 60, 100).await, 60);
    assert_eq!(reserve(two, 60, 100).await, 40);
    assert_eq!(reserve(two, 60, 100).await, 40, "again");
    assert_eq!(reserve(one, 10, 100).await, 10);
    assert_eq!(reserve(two, 60, 100).await, 60);
    assert_eq!(reserve(one, 50, 20).await, 10, "there is less now; what a node has it keeps");
    assert_eq!(reserve(one, 5, 20).await, 5);
    let partition = partition_of(&what);
    let nodes = node.redis.nodes(partition).await.unwrap();
    assert!(nodes.contains(&one) && nodes.contains(&two), "who dies is found: {nodes:?}");
    while node.redis.reap(partition, two).await.unwrap() {}
    assert_eq!(reserve(two, 7, 100).await, 7, "it was given up, and counts no more");
    assert_eq!(reserve(one, 100, 100).await, 100);
    assert_eq!(reserve(one, 0, 100).await, 0);
    assert_eq!(keys_left(&server).await, [""; 0]);
}

#[tokio::test]
async fn a_lease_that_has_ended_is_not_renewed() {
    let server = redis_server().await;
    let node = Node::found(server.options()).await;
    let [one, two] = [NodeId(1), NodeId(2)];
    let renew = async |id, is_new, lease| node.redis.renew(id, is_new, lease).await.unwrap();
    assert_eq!(renew(one, false, LEASE).await, Err(Refusal::GivenUp), "it has none");
    assert_eq!(renew(one, true, LEASE).await.unwrap().alive, [one]);
    assert_eq!(renew(two, true, Duration::from_millis(1)).await.unwrap().alive.len(), 2);
    eventually("it ends", async || renew(one, false, LEASE).await.unwrap().expired == [two]).await;
    assert_eq!(renew(two, false, LEASE).await, Err(Refusal::GivenUp), "nobody has taken it");
    assert_eq!(renew(one, false, LEASE).await.unwrap().alive, [one]);
    node.redis.forget(two).await.unwrap();
    assert_eq!(renew(one, false, LEASE).await.unwrap().expired, []);
    server.run::<()>(&["FLUSHALL"]).await;
    assert_eq!(renew(one, false, LEASE).await, Err(Refusal::GivenUp), "it was forgotten");
}

#[tokio::test]
async fn records_have_one_reader_who_is_called_and_the_next_one_finds_what_is_left() {
    let server = redis_server().await;
    let (mut one, two) = (Node::found(server.options()).await, Node::found(server.options()).await);
    let partition = partition_of("g");
    one.listen(&Topic::Node(one.id)).await;
    assert_eq!(one.redis.claim(partition, one.id, LEASE).await, Ok(true));
    assert_eq!(two.redis.claim(partition, two.id, LEASE).await, Ok(false));
    assert_eq!(one.redis.claim(partition, one.id, LEASE).await, Ok(true), "renewed");
    assert!(two.does(two.update("g", 1).holds().with("a")).await.is_ok());
    let called = one.next().await;
    let Incoming::Message(topic, bytes) = called else { panic!() };
    assert_eq!(topic, Topic::Node(one.id));
    assert_eq!(envelope::open(None, &bytes), Some(Envelope::Records(partition)));
    let records = one.redis.records(partition, 0, 100).await.unwrap();
    let changes: Vec<_> = records.iter().map(|record| record.transition.change.clone()).collect();
    assert_eq!(changes, [Change::Occupied, Change::Added(Arc::from("a"), Bytes::from("{}"))]);
    let Record { transition, time_ms } = &records[0];
    assert_eq!(*time_ms, transition.version / 1000, "versions are microseconds");
    one.redis.settle(partition, vec![transition.version]).await.unwrap();
    two.redis.unclaim(partition, two.id).await.unwrap();
    assert_eq!(two.redis.claim(partition, two.id, LEASE).await, Ok(false), "only who has it gives it back");
    one.redis.unclaim(partition, one.id).await.unwrap();
    assert_eq!(two.redis.claim(partition, two.id, Duration::from_millis(1)).await, Ok(true));
    assert_eq!(two.redis.records(partition, 0, 100).await.unwrap(), records[1..]);
    eventually("a claim ends by itself", async || one.redis.claim(partition, one.id, LEASE).await.unwrap())
        .await;
    // What nobody wants to know is not put down, and nobody is called.
    let update = two.update("g", 2).holds().with("b").0;
    assert!(two.redis.update(update, false).await.unwrap().is_ok());
    two.publish(&Topic::Node(one.id), "fence").await.unwrap();
    one.hears(&Topic::Node(one.id), "fence").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_arrive_in_the_order_in_which_they_were_sent_whoever_waits_for_the_answers() {
    let server = redis_server().await;
    let (mut one, two) = (Node::found(server.options()).await, Node::found(server.options()).await);
    let topic = Topic::Group(group("g"));
    one.listen(&topic).await;
    let mut answers = Vec::new();
    for number in 0..1000_u32 {
        let message = Bytes::from(number.to_string());
        match number % 3 {
            0 => answers.push(two.redis.publish(vec![(topic.clone(), message)])),
            1 => answers.push(two.redis.keep(group("g"), message, LEASE)),
            _ => drop(two.redis.publish(vec![(Topic::Nodes, Bytes::new()), (topic.clone(), message)])),
        }
    }
    // The last one is polled first.
    for answer in answers.into_iter().rev() {
        answer.await.unwrap();
    }
    for number in 0..1000_u32 {
        let Incoming::Message(_, bytes) = one.next().await else { panic!() };
        let message = match envelope::open(None, &bytes) {
            Some(Envelope::Kept(_, message)) => message,
            _ => bytes,
        };
        assert_eq!(message, number.to_string());
    }
}

#[tokio::test]
async fn what_is_not_listened_to_does_not_arrive_nor_what_another_cluster_says() {
    let server = redis_server().await;
    let mut one = Node::found(server.options()).await;
    let other = Node::found(Options { prefix: "other".to_owned(), ..server.options() }).await;
    let [a, b] = ["a", "b"].map(|name| Topic::Group(group(name)));
    for topic in [&a, &b] {
        one.listen(topic).await;
    }
    one.redis.ignore(a.clone());
    one.redis.ignore(a.clone());
    other.publish(&b, "another's").await.unwrap();
    assert!(other.does(other.update("b", 1).holds()).await.is_ok());
    for topic in [&a, &Topic::Nodes, &b] {
        one.publish(topic, "mine").await.unwrap();
    }
    one.hears(&b, "mine").await;
    assert_eq!(one.redis.look(group("b")).await, Ok(Answer::default()));
    // Not listened to and listened to in one breath: it is.
    one.redis.ignore(b.clone());
    one.listen(&b).await;
    one.publish(&b, "again").await.unwrap();
    one.hears(&b, "again").await;
}

#[tokio::test]
async fn records_that_nobody_reads_are_dropped_and_that_is_said() {
    let log = Log::default();
    let _logging = log.take();
    let server = redis_server().await;
    let node = Node::found(server.options()).await;
    let partition = partition_of("g");
    let fill = "for at = 1, 100000 do redis.call('XADD', KEYS[1], at .. '-0', 'a', 'b') end";
    server.run::<()>(&["EVAL", fill, "1", &format!("{{pusherd:{partition:02}}}:r")]).await;
    for number in 1..=200 {
        let update = node.update("g", number).holds().with(&format!("u{number}"));
        assert!(node.does(update).await.is_ok());
    }
    let kept: u64 = server.run(&["XLEN", &format!("{{pusherd:{partition:02}}}:r")]).await;
    for _ in 0..2 {
        assert_eq!(node.redis.claim(partition, node.id, LEASE).await, Ok(true));
        let said = format!("partition={partition} dropped={}", 100_000 + 201 - kept);
        assert_eq!(log.text().matches(&said).count(), 1, "{}", log.text());
    }
}

// --- Trouble ---

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_late_or_again_is_found() {
    let mut server = redis_server().await;
    server.kill();
    let mut node = Node::start(server.options());
    assert_eq!(node.publish(&Topic::Nodes, "nobody").await, Err(Lost));
    server.restart().await;
    node.becomes(Incoming::Found).await;
    node.is_well().await;
    for _ in 0..2 {
        node.listen(&Topic::Nodes).await;
        server.kill();
        node.becomes(Incoming::Lost).await;
        assert_eq!(node.redis.listen(Topic::Nodes).await, Err(Lost));
        assert_eq!(node.redis.look(group("g")).await, Err(Lost));
        assert_eq!(node.redis.occupied("").await, Err(Lost));
        assert_eq!(node.redis.publish(vec![]).await, Err(Lost));
        server.restart().await;
        node.becomes(Incoming::Found).await;
        // What was listened to is forgotten.
        node.publish(&Topic::Nodes, "not heard").await.unwrap();
        node.is_well().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn either_connection_that_ends_is_noticed_at_once() {
    let server = redis_server().await;
    let mut node = Node::found(server.options()).await;
    for kind in ["pubsub", "normal"] {
        server.run::<i64>(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]).await;
        node.becomes(Incoming::Lost).await;
        node.becomes(Incoming::Found).await;
        node.is_well().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missed_but_between_lost_and_listening_again() {
    let server = redis_server().await;
    let mut node = Node::found(server.options()).await;
    let mut client = server.client().await;
    let publisher = AbortOnDropHandle::new(tokio::spawn(async move {
        for number in 0_u64.. {
            let mut command = redis::cmd("PUBLISH");
            command.arg("{pusherd}:nodes").arg(number).query_async::<()>(&mut client).await.unwrap();
        }
    }));
    let mut last = None;
    for _ in 0..5 {
        node.listen(&Topic::Nodes).await;
        let mut heard = Vec::new();
        loop {
            match node.next().await {
                Incoming::Message(_, number) => {
                    heard.push(std::str::from_utf8(&number).unwrap().parse::<u64>().unwrap());
                }
                other @ (Incoming::Lost | Incoming::Found) => break assert_eq!(other, Incoming::Lost),
            }
            if heard.len() == 20 {
                server.run::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
            }
        }
        assert!(heard.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{heard:?}");
        assert!(last < heard.first().copied(), "{last:?} {heard:?}");
        last = heard.last().copied();
        assert_eq!(node.next().await, Incoming::Found);
    }
    drop(publisher);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_lost() {
    let server = redis_server().await;
    let mut node = Node::found(Options { timeout: Duration::from_millis(500), ..server.options() }).await;
    server.stop();
    let pending = [
        node.redis.publish(vec![(Topic::Nodes, Bytes::new())]),
        node.redis.keep(group("g"), Bytes::new(), LEASE),
    ];
    node.becomes(Incoming::Lost).await;
    for answer in pending {
        assert_eq!(answer.await, Err(Lost));
    }
    server.resume();
    node.becomes(Incoming::Found).await;
    node.is_well().await;
    server.run::<()>(&["CLIENT", "PAUSE", "1500", "ALL"]).await;
    assert_eq!(node.publish(&Topic::Nodes, "paused").await, Err(Lost));
    node.becomes(Incoming::Lost).await;
    node.becomes(Incoming::Found).await;
    node.is_well().await;
}

#[tokio::test]
async fn a_password_is_needed_where_there_is_one_and_no_log_shows_it() {
    let log = Log::default();
    let _logging = log.take();
    let server = redis_server_with(&["--requirepass", "right-one"]).await;
    let password = |password: &str| Some(Password(password.to_owned()));
    let mut none = Node::start(server.options());
    let mut wrong = Node::start(Options { password: password("wrong-one"), ..server.options() });
    let mut right = Node::found(Options { password: password("right-one"), ..server.options() }).await;
    right.is_well().await;
    eventually("both refusals are in the log", async || {
        log.text().contains("NOAUTH") && log.text().contains("WRONGPASS")
    })
    .await;
    assert_eq!(wrong.publish(&Topic::Nodes, "in vain").await, Err(Lost));
    let mut client = server.client_of(":right-one@").await;
    let set = async |client: &mut _, password: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("requirepass").arg(password).query_async::<()>(client).await.unwrap();
    };
    set(&mut client, "wrong-one").await;
    wrong.becomes(Incoming::Found).await;
    wrong.is_well().await;
    set(&mut client, "").await;
    none.becomes(Incoming::Found).await;
    none.is_well().await;
    let text = log.text();
    assert!(!text.contains("-one"), "{text}");
    assert_eq!(text.matches("WRONGPASS").count(), 1, "however often it was tried: {text}");
    assert!(
        !format!("{:?}", Options { password: password("right-one"), ..server.options() }).contains("right")
    );
}

#[tokio::test]
async fn a_user_that_may_not_do_all_is_not_let_to_believe_that_all_is_well() {
    let log = Log::default();
    let _logging = log.take();
    let server = redis_server().await;
    let user = async |rules: &[&str]| {
        let mut command = vec!["ACL", "SETUSER", "shy"];
        command.extend(rules);
        server.run::<()>(&command).await;
    };
    user(&["on", ">secret", "~*", "+@all", "resetchannels"]).await;
    let options = Options {
        username: Some("shy".to_owned()),
        password: Some(Password("secret".to_owned())),
        ..server.options()
    };
    let mut node = Node::start(options);
    eventually("it says why", async || log.text().contains("NOPERM")).await;
    assert_eq!(node.publish(&Topic::Nodes, "in vain").await, Err(Lost));
    user(&["allchannels"]).await;
    node.becomes(Incoming::Found).await;
    node.is_well().await;
    assert!(!log.text().contains("secret"));
}

/// Between a node and its server; it can hold back what the server sends on the second connection of each pair.
async fn proxy(to: SocketAddr) -> (SocketAddr, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let holds_back = Arc::new(AtomicBool::new(false));
    let held = Arc::clone(&holds_back);
    tokio::spawn(async move {
        for number in 0.. {
            let (mut client, _) = listener.accept().await.unwrap();
            let held = Arc::clone(&held);
            tokio::spawn(async move {
                let mut server = TcpStream::connect(to).await.unwrap();
                let (mut asked, mut answered) = ([0; 4096], [0; 4096]);
                loop {
                    tokio::select! {
                        Ok(read @ 1..) = client.read(&mut asked) => server.write_all(&asked[..read]).await.unwrap(),
                        Ok(read @ 1..) = server.read(&mut answered) => {
                            if number % 2 == 0 || !held.load(Ordering::Relaxed) {
                                client.write_all(&answered[..read]).await.unwrap();
                            }
                        }
                        else => return,
                    }
                }
            });
        }
    });
    (address, holds_back)
}

#[tokio::test]
async fn that_messages_no_longer_arrive_is_noticed_though_everything_is_answered() {
    let log = Log::default();
    let _logging = log.take();
    let server = redis_server().await;
    let (address, holds_back) = proxy(SocketAddr::from(([127, 0, 0, 1], server.port))).await;
    let proxied = Server { host: address.ip().to_string(), port: address.port() };
    let mut node = Node::found(Options { servers: Servers::Single(proxied), ..server.options() }).await;
    node.is_well().await;
    holds_back.store(true, Ordering::Relaxed);
    node.publish(&Topic::Nodes, "it answers").await.unwrap();
    node.becomes(Incoming::Lost).await;
    assert!(log.text().contains("what is published does not arrive"), "{}", log.text());
    holds_back.store(false, Ordering::Relaxed);
    node.becomes(Incoming::Found).await;
    node.is_well().await;
}

#[tokio::test]
async fn what_waits_for_a_server_is_bounded() {
    let log = Log::default();
    let _logging = log.take();
    let server = redis_server().await;
    let mut node = Node::found(Options { timeout: Duration::from_secs(60), ..server.options() }).await;
    server.stop();
    let message = Bytes::from(vec![0; 1024 * 1024]);
    let answers: Vec<_> =
        (0..80).map(|_| node.redis.publish(vec![(Topic::Nodes, message.clone())])).collect();
    node.becomes(Incoming::Lost).await;
    for answer in answers {
        assert_eq!(answer.await, Err(Lost));
    }
    assert!(log.text().contains("bytes wait on this node"), "{}", log.text());
    server.resume();
    node.becomes(Incoming::Found).await;
    node.is_well().await;
}

#[tokio::test]
async fn a_server_that_forgets_scripts_or_everything_is_not_lost() {
    let server = redis_server().await;
    let mut node = Node::found(server.options()).await;
    let topic = Topic::Group(group("g"));
    node.listen(&topic).await;
    let mut last = 0;
    for (number, flush) in (1..).zip(["SCRIPT FLUSH", "FLUSHALL", "SCRIPT FLUSH"]) {
        server.run::<()>(&flush.split(' ').collect::<Vec<_>>()).await;
        // What is asked in one breath, after all was forgotten.
        let update = node.update("g", number).holds().with(&format!("u{number}")).asks().0;
        let updated = node.redis.update(update, true);
        let kept = node.redis.keep(group("g"), Bytes::from("kept"), LEASE);
        let looked = node.redis.look(group("g"));
        let answer = updated.await.unwrap().unwrap();
        assert!(answer.version > last, "versions go on");
        last = answer.version;
        assert_eq!(looked.await, Ok(answer));
        kept.await.unwrap();
    }
    // Nothing but messages came.
    node.publish(&topic, "fence").await.unwrap();
    loop {
        match node.next().await {
            Incoming::Message(_, message) if message == "fence" => break,
            Incoming::Message(..) => {}
            other @ (Incoming::Lost | Incoming::Found) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn whatever_stands_where_ours_should_is_no_harm() {
    let log = Log::default();
    let _logging = log.take();
    let server = redis_server().await;
    let mut node = Node::found(server.options()).await;
    let topic = Topic::Group(group("g"));
    node.listen(&topic).await;
    // On a topic: the node opens envelopes, and drops what is none.
    let name = format!("{{pusherd:{:02}}}:t:g", partition_of("g"));
    let mut client = server.client().await;
    let garbage = b"\xff\x00\r\n".to_vec();
    redis::cmd("PUBLISH").arg(&name).arg(&garbage).query_async::<()>(&mut client).await.unwrap();
    assert_eq!(node.next().await, Incoming::Message(topic, Bytes::from(garbage)));
    // In the place of a key: an error, or an answer of another shape.
    let key = |rest: &str| format!("{{pusherd:{:02}}}:{rest}", partition_of("g"));
    for (command, rest, words) in [
        ("SET", "n", &["no hash"][..]),
        ("SET", "v", &["no number"]),
        ("HSET", "m:g", &["u", "no entry"]),
        ("HSET", "m:g", &["\u{0}", "1 1"]),
    ] {
        let key = key(rest);
        let mut command = vec![command, &key];
        command.extend(words);
        server.run::<()>(&command).await;
        let update = node.update("g", 1).holds().with("u").asks().0;
        assert_eq!(in_time("an answer", node.redis.update(update, true)).await, Err(Lost), "{command:?}");
        node.becomes(Incoming::Lost).await;
        node.becomes(Incoming::Found).await;
        server.run::<()>(&["FLUSHALL"]).await;
    }
    node.is_well().await;
    let text = log.text();
    assert!(text.contains("WRONGTYPE"), "{text}");
    assert!(text.lines().count() < 10, "{text}");
}

#[tokio::test]
async fn what_is_no_redis_or_an_old_one_is_said_without_the_password() {
    let log = Log::default();
    let _logging = log.take();
    // Redis 5 repeats the arguments of what it does not know.
    let old =
        "-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `secret`, \r\n";
    for (answer, said) in
        [(old, "it is older than Redis 6"), ("HTTP/1.1 400 Bad Request\r\n\r\n", "refuses"), ("", "closed")]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let _ = client.read(&mut [0; 4096]).await;
                let _ = client.write_all(answer.repeat(3).as_bytes()).await;
            }
        });
        let _node = Node::start(Options {
            servers: Servers::Single(Server { host: "127.0.0.1".to_owned(), port: address.port() }),
            tls: None,
            username: None,
            password: Some(Password("secret".to_owned())),
            database: 0,
            prefix: "pusherd".to_owned(),
            timeout: Duration::from_secs(2),
        });
        let address = address.to_string();
        eventually(format!("{answer:?}"), async || {
            log.text().lines().any(|line| line.contains(&address) && line.contains(said))
        })
        .await;
    }
    assert!(!log.text().contains("secret"), "{}", log.text());
}

// --- Ways to a server ---

#[tokio::test]
async fn a_user_a_database_and_a_prefix_of_its_own() {
    let server = redis_server().await;
    server.run::<()>(&["ACL", "SETUSER", "pusherd", "on", ">secret", "~{mine*", "&{mine*", "+@all"]).await;
    let options = Options {
        username: Some("pusherd".to_owned()),
        password: Some(Password("secret".to_owned())),
        database: 3,
        prefix: "mine".to_owned(),
        ..server.options()
    };
    let mut node = Node::found(options.clone()).await;
    node.is_well().await;
    assert_eq!(server.run::<u64>(&["DBSIZE"]).await, 0);
    let log = Log::default();
    let _logging = log.take();
    let _node = Node::start(Options { database: 99, ..options });
    eventually("it says why", async || log.text().contains("DB index is out of range")).await;
}

#[tokio::test]
async fn over_a_unix_socket() {
    let server = redis_server_with(&["--unixsocket", "socket"]).await;
    let path = server.file("socket").to_str().unwrap().to_owned();
    let servers = Servers::Single(Server { host: path, port: 0 });
    Node::found(Options { servers, ..server.options() }).await.is_well().await;
}

#[tokio::test]
async fn a_replica_is_not_written_to_until_it_is_the_master() {
    let log = Log::default();
    let _logging = log.take();
    let (master, replica) = (redis_server().await, redis_server().await);
    replica.run::<()>(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]).await;
    let mut node = Node::start(replica.options());
    eventually("it says why", async || log.text().contains("READONLY")).await;
    replica.run::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    node.becomes(Incoming::Found).await;
    node.is_well().await;
    // And not when it no longer is.
    replica.run::<()>(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]).await;
    assert_eq!(node.redis.keep(group("g"), Bytes::new(), LEASE).await, Err(Lost));
    node.becomes(Incoming::Lost).await;
}

#[tokio::test]
async fn with_tls_to_who_can_prove_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = ["right", "wrong"].map(|name| {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let file = |end: &str| folder.path().join(format!("{name}.{end}"));
        std::fs::write(file("crt"), made.cert.pem()).unwrap();
        std::fs::write(file("key"), made.signing_key.serialize_pem()).unwrap();
        file("crt")
    });
    let [right, wrong] = &certificates;
    let key = folder.path().join("right.key");
    let args = ["--tls-cert-file", right.to_str().unwrap(), "--tls-key-file", key.to_str().unwrap()];
    let more = ["--tls-ca-cert-file", right.to_str().unwrap(), "--tls-auth-clients", "no"];
    let server = redis_server_with(&[args, more].concat()).await;
    // The one port that is free is no longer for plain connections.
    server.run::<()>(&["CONFIG", "SET", "port", "0", "tls-port", &server.port.to_string()]).await;
    let options = |ca_file: Option<&std::path::PathBuf>, accepts_any| {
        let tls = Some(TlsOptions { ca_file: ca_file.cloned(), accepts_any });
        Options { tls, ..server.options() }
    };
    Node::found(options(Some(right), false)).await.is_well().await;
    Node::found(options(None, true)).await.is_well().await;
    let log = Log::default();
    let _logging = log.take();
    let node = Node::start(options(Some(wrong), false));
    eventually("it says why", async || log.text().contains("the TLS handshake with 127.0.0.1")).await;
    assert_eq!(node.publish(&Topic::Nodes, "to a stranger").await, Err(Lost));
    let plain = Node::start(server.options());
    eventually("it says why", async || log.text().contains("closed the connection")).await;
    assert_eq!(plain.publish(&Topic::Nodes, "to TLS").await, Err(Lost));
}

#[tokio::test]
async fn settings_that_can_never_work_are_refused_by_name() {
    let server = Server { host: "127.0.0.1".to_owned(), port: 1 };
    let options = Options {
        servers: Servers::Single(server.clone()),
        tls: None,
        username: None,
        password: None,
        database: 0,
        prefix: "pusherd".to_owned(),
        timeout: Duration::from_secs(2),
    };
    let refused = |options: Options| Redis::start(options).map(|_| ()).unwrap_err();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.pem");
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").unwrap();
    for file in [&missing, &empty] {
        let tls = Some(TlsOptions { ca_file: Some(file.clone()), accepts_any: false });
        let error = refused(Options { tls, ..options.clone() }).to_string();
        assert!(error.contains(file.to_str().unwrap()), "{error}");
    }
    let tls = Some(TlsOptions::default());
    let servers = Servers::Single(Server { host: "/run/redis.sock".to_owned(), port: 0 });
    let error = refused(Options { tls, servers, ..options.clone() });
    assert!(matches!(error, StartError::ServerName(_)), "{error}");
    for prefix in ["", "{a}", "a}"] {
        let error = refused(Options { prefix: prefix.to_owned(), ..options.clone() });
        assert!(matches!(error, StartError::Prefix(_)), "{error}");
    }
    let error = refused(Options { servers: Servers::Cluster(vec![]), ..options.clone() });
    assert!(matches!(error, StartError::NoServer), "{error}");
    let error = refused(Options { servers: Servers::Cluster(vec![server]), database: 1, ..options });
    assert!(matches!(error, StartError::Database(1)), "{error}");
}

#[tokio::test]
async fn the_server_that_sentinels_name_is_followed() {
    let (mut master, replica) = (redis_server().await, redis_server().await);
    replica.run::<()>(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]).await;
    eventually("it is a replica", async || {
        master.run::<String>(&["INFO", "replication"]).await.contains("state=online")
    })
    .await;
    let sentinel = redis_sentinel(&master).await;
    // One that is not there is passed over.
    let nobody = Server { host: "127.0.0.1".to_owned(), port: 1 };
    let sentinels = |master: &str| Servers::Sentinels {
        sentinels: vec![nobody.clone(), sentinel.address()],
        master: master.to_owned(),
        username: None,
        password: None,
    };
    let mut node = Node::found(Options { servers: sentinels("main"), ..master.options() }).await;
    node.is_well().await;
    eventually("the sentinel knows the replica", async || {
        sentinel.run::<String>(&["INFO", "sentinel"]).await.contains("slaves=1")
    })
    .await;
    master.kill();
    node.becomes(Incoming::Lost).await;
    node.becomes(Incoming::Found).await;
    node.is_well().await;
    let found: String = replica.run(&["GET", &format!("{{pusherd:{:02}}}:v", partition_of("well"))]).await;
    assert!(found.parse::<u64>().is_ok(), "{found}");
    let log = Log::default();
    let _logging = log.take();
    let _node = Node::start(Options { servers: sentinels("unknown"), ..master.options() });
    eventually("it says why", async || log.text().contains("does not know where \"unknown\" is")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_cluster_has_everything_in_its_slots_and_may_move_them() {
    let servers = redis_cluster(&[]).await;
    let seeds =
        Servers::Cluster(vec![Server { host: "127.0.0.1".to_owned(), port: 1 }, servers[1].address()]);
    let options = Options { servers: seeds, ..servers[0].options() };
    let (mut one, mut two) = (Node::found(options.clone()).await, Node::found(options).await);
    let mut groups: BTreeMap<u16, Group> = BTreeMap::new();
    for name in (0..).map(|number| format!("g{number}")) {
        groups.entry(partition_of(&name)).or_insert_with(|| group(&name));
        if groups.len() == usize::from(PARTITIONS) {
            break;
        }
    }
    for about in groups.values() {
        two.listen(&Topic::Group(Arc::clone(about))).await;
    }
    two.listen(&Topic::Nodes).await;
    two.listen(&Topic::Node(two.id)).await;
    for partition in groups.keys() {
        assert_eq!(two.redis.claim(*partition, two.id, LEASE).await, Ok(true));
    }
    for (about, number) in groups.values().zip(1..) {
        assert!(one.does(one.update(about, number).holds().with("u")).await.is_ok());
    }
    let mut occupied = one.redis.occupied("g").await.unwrap();
    occupied.sort();
    let mut wanted: Vec<_> = groups.values().map(|about| (Arc::clone(about), 1)).collect();
    wanted.sort();
    assert_eq!(occupied, wanted);
    let messages = groups.values().map(|about| (Topic::Group(Arc::clone(about)), Bytes::from("m")));
    one.redis.publish(messages.chain([(Topic::Nodes, Bytes::from("m"))]).collect()).await.unwrap();
    let mut heard: HashMap<Topic, Vec<Bytes>> = HashMap::new();
    for _ in 0..groups.len() * 4 + 1 {
        let Incoming::Message(topic, bytes) = two.next().await else { panic!() };
        heard.entry(topic).or_default().push(bytes);
    }
    assert_eq!(heard.remove(&Topic::Nodes).unwrap(), ["m"]);
    // The reader of the records was called by every server.
    let called = heard.remove(&Topic::Node(two.id)).unwrap();
    let called: Vec<_> = called.iter().map(|bytes| envelope::open(None, bytes).unwrap()).collect();
    assert_eq!(called.len(), groups.len());
    assert!(groups.keys().all(|partition| called.contains(&Envelope::Records(*partition))), "{called:?}");
    for (topic, messages) in heard {
        assert_eq!(messages.len(), 3, "{topic:?}: {messages:?}");
        assert_eq!(messages[2], "m");
    }
    // Every node of the cluster carries some of it.
    for server in &servers {
        assert!(server.run::<u64>(&["DBSIZE"]).await > 0);
    }
    // A slot moves: both nodes notice, and find it where it is then.
    let (partition, about) = groups.first_key_value().unwrap();
    let tag = format!("{{pusherd:{partition:02}}}:");
    let slot: u64 = servers[0].run(&["CLUSTER", "KEYSLOT", &tag]).await;
    let from = (slot / 5462) as usize;
    let to = (from + 1) % 3;
    move_slot(&servers[from], &servers[to], &servers, slot).await;
    for node in [&mut one, &mut two] {
        // Who listens is told at once, who does not when it asks.
        let _ = node.redis.look(Arc::clone(about)).await;
        node.becomes(Incoming::Lost).await;
        eventually("it is found", async || {
            let found = node.redis.look(Arc::clone(about)).await;
            found.is_ok_and(|answer| answer.members.is_some_and(|members| members.len() == 1))
        })
        .await;
    }
    for (partition, about) in &groups {
        one.redis.keep(Arc::clone(about), Bytes::from("kept"), LEASE).await.unwrap();
        let kept = two.redis.kept(Arc::clone(about)).await.unwrap().unwrap();
        assert_eq!(kept.message, "kept");
        assert_eq!(two.redis.reserve(Arc::clone(about), one.id, 5, 10).await, Ok(5));
        while two.redis.reap(*partition, one.id).await.unwrap() {}
        assert_eq!(two.redis.reserve(Arc::clone(about), two.id, 10, 10).await, Ok(10));
    }
    assert_eq!(two.redis.occupied("").await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_cluster_before_7_has_topics_but_not_in_slots() {
    let servers =
        redis_cluster(&["--rename-command", "SPUBLISH", "", "--rename-command", "SSUBSCRIBE", ""]).await;
    let options = Options { servers: Servers::Cluster(vec![servers[2].address()]), ..servers[0].options() };
    let (mut one, mut two) = (Node::found(options.clone()).await, Node::found(options).await);
    for name in ["a", "b", "c", "d", "e", "f"] {
        let topic = Topic::Group(group(name));
        two.listen(&topic).await;
        one.publish(&topic, "m").await.unwrap();
        two.hears(&topic, "m").await;
    }
    one.is_well().await;
    two.is_well().await;
}

async fn move_slot(from: &RedisServer, to: &RedisServer, all: &[RedisServer], slot: u64) {
    let slot = slot.to_string();
    let (source, target): (String, String) =
        (from.run(&["CLUSTER", "MYID"]).await, to.run(&["CLUSTER", "MYID"]).await);
    to.run::<()>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]).await;
    from.run::<()>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]).await;
    let keys: Vec<String> = from.run(&["CLUSTER", "GETKEYSINSLOT", &slot, "1000"]).await;
    let port = to.port.to_string();
    let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
    migrate.extend(keys.iter().map(String::as_str));
    from.run::<String>(&migrate).await;
    to.run::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]).await;
    from.run::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]).await;
    for server in all {
        eventually("all know", async || {
            let slots: String = server.run(&["CLUSTER", "NODES"]).await;
            let line = slots.lines().find(|line| line.starts_with(&target)).unwrap().to_owned();
            line.split(' ').any(|word| word == slot)
        })
        .await;
    }
}
