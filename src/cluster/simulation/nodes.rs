//! Whole nodes over one broker, on a clock that a test moves: leases run out, nodes are cut off, pause and die, answers
//! come late, and the broker forgets, in an order that a seed decides.
//!
//! Nodes name themselves, so a seed gives nearly the same life each time, not quite.
//! What each node tells its audience fits together at any time, and some beats after the last fault everybody knows the
//! truth again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::cluster::driver::Arrivals;
use crate::cluster::memory::{Memory, MemoryDriver};
use crate::cluster::node::{Audience, Cluster, Reply, Room, Timing, Unwanted};
use crate::cluster::seat::Ticket;
use crate::cluster::truth::{Group, MemberId, MemberInfo, NodeId, Version};
use crate::metrics::Metrics;

const NODES: usize = 3;
const GROUPS: usize = 3;
const USERS: usize = 4;

/// After the last fault: a lease, all parts looked through, and the first of the others to reap has not done it.
fn patience(timing: &Timing) -> Duration {
    timing.lease + timing.beat * 12
}

/// What a node's audience was told, and what did not fit.
#[derive(Debug, Default)]
struct Told(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    clients: BTreeMap<Ticket, Client>,
    /// Who is in a group, as those who have entered were told.
    seen: BTreeMap<Group, BTreeSet<MemberId>>,
    heard: Vec<Bytes>,
    wrong: Vec<String>,
}

#[derive(Clone, Debug)]
struct Client {
    group: Group,
    member: Option<MemberId>,
    entered: bool,
    /// It is not let in.
    unwanted: bool,
}

impl State {
    /// What fits is true.
    fn fits(&mut self, fits: bool, what: &str) {
        if !fits {
            self.wrong.push(what.to_owned());
        }
    }
}

impl Audience for Told {
    fn entered(
        &self,
        group: &Group,
        ticket: Ticket,
        everyone: Option<Vec<MemberInfo>>,
    ) -> Result<(), Unwanted> {
        let mut state = self.0.lock();
        if let Some(everyone) = everyone {
            let is_first = state.clients.values().all(|client| !client.entered || client.group != *group);
            state.fits(is_first, "the list is for the first one");
            let everyone = everyone.into_iter().map(|(id, _)| id).collect();
            state.seen.insert(Arc::clone(group), everyone);
        }
        let Some(client) = state.clients.get_mut(&ticket) else {
            state.fits(false, "who has left does not enter");
            return Ok(());
        };
        let (again, is_there) = (std::mem::replace(&mut client.entered, true), client.member.clone());
        let unwanted = client.unwanted;
        state.fits(!again, "a client enters once");
        if let Some(member) = is_there {
            let knows_itself = state.seen.get(group).is_some_and(|seen| seen.contains(&member));
            state.fits(knows_itself, "who enters is in the list");
        }
        if unwanted && let Some(client) = state.clients.remove(&ticket) {
            return Err(Unwanted(client.member));
        }
        Ok(())
    }

    fn vacated(&self, group: &Group) {
        let mut state = self.0.lock();
        let is_empty = state.clients.values().all(|client| client.group != *group);
        state.fits(is_empty, "a group is vacated by the last one");
        state.seen.remove(group);
    }

    fn added(&self, group: &Group, member: &MemberId, _: &Bytes) {
        let mut state = self.0.lock();
        let is_new = state.seen.get_mut(group).is_some_and(|seen| seen.insert(Arc::clone(member)));
        state.fits(is_new, "who is there does not come");
    }

    fn removed(&self, group: &Group, member: &MemberId) {
        let mut state = self.0.lock();
        let was_there = state.seen.get_mut(group).is_some_and(|seen| seen.remove(member));
        state.fits(was_there, "who is not there does not go");
    }

    fn message(&self, _: &Group, _: Option<Version>, message: Bytes) -> Option<Room> {
        self.0.lock().heard.push(message);
        None
    }

    fn asked(&self, question: Bytes) -> Reply {
        Box::pin(std::future::ready(question))
    }

    fn is_noted(&self, _: &Group) -> bool {
        false
    }

    fn recorded(&self, _: u16) {}

    fn alive(&self, _: &[NodeId]) {}

    fn broker(&self, _: bool) {}
}

/// A node, from its start to its death.
struct Node {
    cluster: Cluster,
    told: Arc<Told>,
    driver: Arc<MemoryDriver>,
    pause: watch::Sender<bool>,
    running: JoinHandle<()>,
}

impl Node {
    fn start(broker: &Memory) -> Self {
        let (driver, arrivals) = broker.driver();
        let cluster = Cluster::new(Arc::clone(&driver) as _, Timing::default(), Arc::new(Metrics::default()));
        let told = Arc::new(Told::default());
        cluster.tell(&told);
        let (pause, paused) = watch::channel(false);
        let running = tokio::spawn(run(cluster.clone(), arrivals, paused));
        Self { cluster, told, driver, pause, running }
    }

    fn enters(&self, group: &Group, member: Option<MemberId>, ticket: Ticket, unwanted: bool) {
        let client = Client { group: Arc::clone(group), member: member.clone(), entered: false, unwanted };
        self.cluster.act(group, |acting| {
            self.told.0.lock().clients.insert(ticket, client);
            let member = member.map(|id| (id, Bytes::from_static(b"{}")));
            acting.enter(group, member.is_some(), member, ticket);
        });
    }

    fn leaves(&self, group: &Group, ticket: Ticket) {
        self.cluster.act(group, |acting| {
            let left = self.told.0.lock().clients.remove(&ticket);
            if let Some(client) = left {
                acting.leave(group, client.member.as_ref(), ticket);
            }
        });
    }

    fn clients(&self) -> Vec<(Ticket, Client)> {
        self.told.0.lock().clients.iter().map(|(ticket, client)| (*ticket, client.clone())).collect()
    }
}

/// Runs a node, but while it is paused: it hears nothing, and its lease is not renewed.
async fn run(cluster: Cluster, arrivals: Arrivals, mut paused: watch::Receiver<bool>) {
    let mut running = std::pin::pin!(cluster.run(arrivals));
    loop {
        let is_paused = *paused.borrow_and_update();
        tokio::select! {
            () = &mut running, if !is_paused => return,
            changed = paused.changed() => if changed.is_err() { return },
        }
    }
}

struct World {
    broker: Memory,
    nodes: Vec<Node>,
    rng: TestRng,
    tickets: Ticket,
    faults: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let broker = Memory::default();
        let nodes = (0..NODES).map(|_| Node::start(&broker)).collect();
        Self { broker, nodes, rng: TestRng::from_seed(RngAlgorithm::ChaCha, &bytes), tickets: 0, faults: 0 }
    }

    fn below(&mut self, max: usize) -> usize {
        (self.rng.next_u64() % max as u64) as usize
    }

    /// A client comes or goes.
    fn client(&mut self, at: usize) {
        let there = self.nodes[at].clients();
        if !there.is_empty() && self.below(5) < 2 {
            let (ticket, client) = &there[self.below(there.len())];
            return self.nodes[at].leaves(&client.group, *ticket);
        }
        let group = self.below(GROUPS);
        // In one of the groups nobody says who they are.
        let member = (group > 0).then(|| MemberId::from(format!("u{}", self.below(USERS))));
        self.tickets += 1;
        let unwanted = self.below(10) == 0;
        self.nodes[at].enters(&Group::from(format!("g{group}")), member, self.tickets, unwanted);
    }

    async fn step(&mut self) {
        let at = self.below(NODES);
        match self.below(100) {
            0..60 => self.client(at),
            60..65 => {
                let delays = [0, 0, 1, 50, 1000];
                let delay = delays[self.below(delays.len())];
                self.nodes[at].driver.delay(Duration::from_millis(delay));
            }
            65..68 => {
                let cluster = self.nodes[at].cluster.clone();
                tokio::spawn(async move { cluster.ask(b"who").await });
            }
            68..70 => self.fault(|world| world.nodes[at].driver.cut()),
            70..74 => self.nodes[at].driver.mend(),
            74 => self.fault(|world| {
                world.nodes[at].pause.send_replace(true);
            }),
            75..78 => {
                self.nodes[at].pause.send_replace(false);
            }
            78 => self.fault(|world| world.nodes[at].driver.expire()),
            79 => self.fault(|world| {
                world.nodes[at].driver.cut();
                world.nodes[at].running.abort();
                world.nodes[at] = Node::start(&world.broker);
            }),
            80 if self.below(3) == 0 => self.fault(|world| world.broker.forget_all()),
            80..95 => tokio::task::yield_now().await,
            95..99 => sleep(Duration::from_millis(self.below(2000) as u64)).await,
            _ => sleep(Duration::from_secs(self.below(20) as u64)).await,
        }
        if self.below(3) == 0 {
            sleep(Duration::from_millis(self.below(20) as u64)).await;
        }
        self.fits();
    }

    fn fault(&mut self, make: impl FnOnce(&mut Self)) {
        self.faults += 1;
        make(self);
    }

    fn fits(&self) {
        for node in &self.nodes {
            let wrong = std::mem::take(&mut node.told.0.lock().wrong);
            assert!(wrong.is_empty(), "{wrong:?}");
        }
    }

    /// Nothing goes wrong any more.
    async fn settle(&self) {
        for node in &self.nodes {
            node.pause.send_replace(false);
            node.driver.mend();
            node.driver.delay(Duration::ZERO);
        }
        sleep(patience(self.nodes[0].cluster.timing())).await;
        self.fits();
    }

    /// Everybody knows the truth, and it is that of the clients.
    async fn is_true(&self) {
        let mut wanted: BTreeMap<Group, BTreeSet<MemberId>> = BTreeMap::new();
        for (_, client) in self.nodes.iter().flat_map(Node::clients) {
            assert!(client.entered, "{client:?}");
            wanted.entry(Arc::clone(&client.group)).or_default().extend(client.member.clone());
        }
        for group in (0..GROUPS).map(|group| Group::from(format!("g{group}"))) {
            let found = self.broker.look(&group);
            assert_eq!(found.occupied, wanted.contains_key(&group), "{group}");
            let there = found.members.unwrap_or_default().into_iter().map(|(id, _)| id).collect();
            assert_eq!(wanted.get(&group).cloned().unwrap_or_default(), there, "{group}");
        }
        for node in &self.nodes {
            assert!(node.cluster.is_ready());
            for (group, seen) in &node.told.0.lock().seen {
                assert_eq!(Some(seen), wanted.get(group), "{group}");
            }
            for (_, client) in node.clients().iter().filter(|(_, client)| client.member.is_some()) {
                assert!(node.told.0.lock().seen.contains_key(&client.group));
            }
            assert_eq!(node.cluster.ask(b"who").await.unwrap().len(), NODES - 1, "all are asked, none twice");
            node.told.0.lock().heard.clear();
        }
        // What is said in a group is heard once, by all who are in it.
        for group in wanted.keys() {
            let message = [(Arc::clone(group), Bytes::from(group.to_string()))];
            self.nodes[0].cluster.publish(message).await.unwrap();
        }
        sleep(Duration::from_secs(1)).await;
        for node in &self.nodes {
            let mut heard = std::mem::take(&mut node.told.0.lock().heard);
            heard.sort();
            let groups: BTreeSet<_> = node.clients().into_iter().map(|(_, client)| client.group).collect();
            let groups: Vec<_> = groups.into_iter().map(|group| Bytes::from(group.to_string())).collect();
            assert_eq!(heard, groups);
        }
    }

    /// Everybody leaves, and nothing is left.
    async fn ends(&self) {
        for node in &self.nodes {
            for (ticket, client) in node.clients() {
                node.leaves(&client.group, ticket);
            }
        }
        sleep(Duration::from_secs(1)).await;
        self.fits();
        assert!(self.broker.is_empty());
        self.nodes.iter().for_each(|node| node.running.abort());
    }
}

/// Lives through what `seed` says; how many faults there were.
fn live(seed: u64, steps: usize) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let mut world = World::new(seed);
        for _ in 0..3 {
            for _ in 0..steps {
                world.step().await;
            }
            world.settle().await;
            world.is_true().await;
        }
        world.ends().await;
        world.faults
    })
}

#[test]
fn whatever_happens_to_nodes_all_know_the_truth_some_beats_later() {
    let faults: usize = (0..20).map(|seed| live(seed, 100)).sum();
    assert!(faults > 200, "{faults}");
}

proptest! {
    // More lives: `PROPTEST_CASES` says how many. No seed is simpler than another.
    #![proptest_config(ProptestConfig { max_shrink_iters: 0, ..ProptestConfig::with_cases(24) })]
    #[test]
    fn and_whatever_else_does(seed in any::<u64>()) {
        live(seed, 100);
    }
}
