//! Whole nodes over one engine, on a paused clock: leases expire, nodes are disconnected, paused and killed, replies
//! are late, and the engine loses its state, in an order that a seed decides.
//!
//! At any time the events that each node's handler gets are consistent, and some heartbeats after the last fault all
//! nodes have the shared state. Node ids are random, so runs of one seed are similar, not equal.

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

use crate::cluster::broker::IncomingReceiver;
use crate::cluster::group::{Group, MemberId, MemberInfo, NodeId, Version};
use crate::cluster::local_groups::EntryId;
use crate::cluster::memory::{MemoryClient, MemoryServer};
use crate::cluster::node::{Capacity, Cluster, EntryDenied, Handler, Reply, Timing};
use crate::metrics::Metrics;

const NODES: usize = 3;
const GROUPS: usize = 3;
const USERS: usize = 4;

/// After the last fault: a lease expires, all partitions are scanned, and the first node that should reap does not.
fn recovery_time(timing: &Timing) -> Duration {
    timing.lease + timing.heartbeat * 12
}

/// Follows the events of a node, and collects contradictions.
#[derive(Debug, Default)]
struct Observer(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    clients: BTreeMap<EntryId, Client>,
    /// The members of each group, as the admitted entries have seen them.
    seen: BTreeMap<Group, BTreeSet<MemberId>>,
    messages: Vec<Bytes>,
    wrong: Vec<String>,
}

#[derive(Clone, Debug)]
struct Client {
    group: Group,
    member: Option<MemberId>,
    entered: bool,
    /// The handler denies its entry.
    denied: bool,
}

impl State {
    fn check(&mut self, holds: bool, rule: &str) {
        if !holds {
            self.wrong.push(rule.to_owned());
        }
    }
}

impl Handler for Observer {
    fn entered(
        &self,
        group: &Group,
        entry: EntryId,
        members: Option<Vec<MemberInfo>>,
    ) -> Result<(), EntryDenied> {
        let mut state = self.0.lock();
        if let Some(members) = members {
            let is_first = state.clients.values().all(|client| !client.entered || client.group != *group);
            state.check(is_first, "the first entry gets the members");
            let members = members.into_iter().map(|(id, _)| id).collect();
            state.seen.insert(Arc::clone(group), members);
        }
        let Some(client) = state.clients.get_mut(&entry) else {
            state.check(false, "an entry that has left is not admitted");
            return Ok(());
        };
        let (again, member) = (std::mem::replace(&mut client.entered, true), client.member.clone());
        let denied = client.denied;
        state.check(!again, "an entry is admitted once");
        if let Some(member) = member {
            let sees_itself = state.seen.get(group).is_some_and(|seen| seen.contains(&member));
            state.check(sees_itself, "a member is among the members that it gets");
        }
        if denied && let Some(client) = state.clients.remove(&entry) {
            return Err(EntryDenied(client.member));
        }
        Ok(())
    }

    fn vacated(&self, group: &Group) {
        let mut state = self.0.lock();
        let is_empty = state.clients.values().all(|client| client.group != *group);
        state.check(is_empty, "a group is vacated by its last entry");
        state.seen.remove(group);
    }

    fn member_added(&self, group: &Group, member: &MemberId, _: &Bytes) {
        let mut state = self.0.lock();
        let is_new = state.seen.get_mut(group).is_some_and(|seen| seen.insert(Arc::clone(member)));
        state.check(is_new, "a present member is not added");
    }

    fn member_removed(&self, group: &Group, member: &MemberId) {
        let mut state = self.0.lock();
        let was_present = state.seen.get_mut(group).is_some_and(|seen| seen.remove(member));
        state.check(was_present, "an absent member is not removed");
    }

    fn message(&self, _: &Group, _: Option<Version>, message: Bytes) -> Option<Capacity> {
        self.0.lock().messages.push(message);
        None
    }

    fn request(&self, request: Bytes) -> Reply {
        Box::pin(std::future::ready(request))
    }

    fn is_recorded(&self, _: &Group) -> bool {
        false
    }

    fn records_available(&self, _: u16) {}

    fn nodes_alive(&self, _: &[NodeId]) {}

    fn availability_changed(&self, _: bool) {}
}

/// A node, from its start to its death.
struct Node {
    cluster: Cluster,
    observer: Arc<Observer>,
    client: Arc<MemoryClient>,
    pause: watch::Sender<bool>,
    running: JoinHandle<()>,
}

impl Node {
    fn start(server: &MemoryServer) -> Self {
        let (client, incoming) = server.connect();
        let cluster = Cluster::new(
            Arc::clone(&client) as _,
            Arc::clone(&client) as _,
            Timing::default(),
            Arc::new(Metrics::default()),
        );
        let observer = Arc::new(Observer::default());
        cluster.set_handler(&observer);
        let (pause, paused) = watch::channel(false);
        let running = tokio::spawn(run(cluster.clone(), incoming, paused));
        Self { cluster, observer, client, pause, running }
    }

    fn enter(&self, group: &Group, member: Option<MemberId>, entry: EntryId, denied: bool) {
        let client = Client { group: Arc::clone(group), member: member.clone(), entered: false, denied };
        self.cluster.with_group(group, |partition| {
            self.observer.0.lock().clients.insert(entry, client);
            let member = member.map(|id| (id, Bytes::from_static(b"{}")));
            partition.enter(group, member.is_some(), member, entry);
        });
    }

    fn leave(&self, group: &Group, entry: EntryId) {
        self.cluster.with_group(group, |partition| {
            let left = self.observer.0.lock().clients.remove(&entry);
            if let Some(client) = left {
                partition.leave(group, client.member.as_ref(), entry);
            }
        });
    }

    fn clients(&self) -> Vec<(EntryId, Client)> {
        self.observer.0.lock().clients.iter().map(|(entry, client)| (*entry, client.clone())).collect()
    }
}

/// Runs a node except while it is paused: then it receives nothing, and its lease is not renewed.
async fn run(cluster: Cluster, incoming: IncomingReceiver, mut paused: watch::Receiver<bool>) {
    let mut running = std::pin::pin!(cluster.run(incoming));
    loop {
        let is_paused = *paused.borrow_and_update();
        tokio::select! {
            () = &mut running, if !is_paused => return,
            changed = paused.changed() => if changed.is_err() { return },
        }
    }
}

struct World {
    server: MemoryServer,
    nodes: Vec<Node>,
    rng: TestRng,
    entries: EntryId,
    faults: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let server = MemoryServer::default();
        let nodes = (0..NODES).map(|_| Node::start(&server)).collect();
        Self { server, nodes, rng: TestRng::from_seed(RngAlgorithm::ChaCha, &bytes), entries: 0, faults: 0 }
    }

    fn below(&mut self, max: usize) -> usize {
        (self.rng.next_u64() % max as u64) as usize
    }

    /// A client enters or leaves.
    fn client(&mut self, at: usize) {
        let clients = self.nodes[at].clients();
        if !clients.is_empty() && self.below(5) < 2 {
            let (entry, client) = &clients[self.below(clients.len())];
            return self.nodes[at].leave(&client.group, *entry);
        }
        let group = self.below(GROUPS);
        // One of the groups has no members.
        let member = (group > 0).then(|| MemberId::from(format!("u{}", self.below(USERS))));
        self.entries += 1;
        let denied = self.below(10) == 0;
        self.nodes[at].enter(&Group::from(format!("g{group}")), member, self.entries, denied);
    }

    async fn step(&mut self) {
        let at = self.below(NODES);
        match self.below(100) {
            0..60 => self.client(at),
            60..65 => {
                let delays = [0, 0, 1, 50, 1000];
                let delay = delays[self.below(delays.len())];
                self.nodes[at].client.delay(Duration::from_millis(delay));
            }
            65..68 => {
                let cluster = self.nodes[at].cluster.clone();
                tokio::spawn(async move { cluster.request_all(b"who").await });
            }
            68..70 => self.fault(|world| world.nodes[at].client.disconnect()),
            70..74 => self.nodes[at].client.reconnect(),
            74 => self.fault(|world| {
                world.nodes[at].pause.send_replace(true);
            }),
            75..78 => {
                self.nodes[at].pause.send_replace(false);
            }
            78 => self.fault(|world| world.nodes[at].client.expire_lease()),
            79 => self.fault(|world| {
                world.nodes[at].client.disconnect();
                world.nodes[at].running.abort();
                world.nodes[at] = Node::start(&world.server);
            }),
            80 if self.below(3) == 0 => self.fault(|world| world.server.flush_all()),
            80..95 => tokio::task::yield_now().await,
            95..99 => sleep(Duration::from_millis(self.below(2000) as u64)).await,
            _ => sleep(Duration::from_secs(self.below(20) as u64)).await,
        }
        if self.below(3) == 0 {
            sleep(Duration::from_millis(self.below(20) as u64)).await;
        }
        self.check();
    }

    fn fault(&mut self, make: impl FnOnce(&mut Self)) {
        self.faults += 1;
        make(self);
    }

    fn check(&self) {
        for node in &self.nodes {
            let wrong = std::mem::take(&mut node.observer.0.lock().wrong);
            assert!(wrong.is_empty(), "{wrong:?}");
        }
    }

    /// Ends all faults, and waits.
    async fn recover(&self) {
        for node in &self.nodes {
            node.pause.send_replace(false);
            node.client.reconnect();
            node.client.delay(Duration::ZERO);
        }
        sleep(recovery_time(self.nodes[0].cluster.timing())).await;
        self.check();
    }

    /// The shared state is that of the clients, and every node has it.
    async fn is_consistent(&self) {
        let mut wanted: BTreeMap<Group, BTreeSet<MemberId>> = BTreeMap::new();
        for (_, client) in self.nodes.iter().flat_map(Node::clients) {
            assert!(client.entered, "{client:?}");
            wanted.entry(Arc::clone(&client.group)).or_default().extend(client.member.clone());
        }
        for group in (0..GROUPS).map(|group| Group::from(format!("g{group}"))) {
            let found = self.server.snapshot(&group);
            assert_eq!(found.occupied, wanted.contains_key(&group), "{group}");
            let present = found.members.unwrap_or_default().into_iter().map(|(id, _)| id).collect();
            assert_eq!(wanted.get(&group).cloned().unwrap_or_default(), present, "{group}");
        }
        for node in &self.nodes {
            assert!(node.cluster.is_ready());
            for (group, seen) in &node.observer.0.lock().seen {
                assert_eq!(Some(seen), wanted.get(group), "{group}");
            }
            for (_, client) in node.clients().iter().filter(|(_, client)| client.member.is_some()) {
                assert!(node.observer.0.lock().seen.contains_key(&client.group));
            }
            let replies = node.cluster.request_all(b"who").await.unwrap();
            assert_eq!(replies.len(), NODES - 1, "each other node replies once");
            node.observer.0.lock().messages.clear();
        }
        // A message arrives once on each node that has an entry.
        for group in wanted.keys() {
            let message = [(Arc::clone(group), Bytes::from(group.to_string()))];
            self.nodes[0].cluster.publish(message).await.unwrap();
        }
        sleep(Duration::from_secs(1)).await;
        for node in &self.nodes {
            let mut messages = std::mem::take(&mut node.observer.0.lock().messages);
            messages.sort();
            let groups: BTreeSet<_> = node.clients().into_iter().map(|(_, client)| client.group).collect();
            let groups: Vec<_> = groups.into_iter().map(|group| Bytes::from(group.to_string())).collect();
            assert_eq!(messages, groups);
        }
    }

    /// All clients leave, and no state is left.
    async fn end(&self) {
        for node in &self.nodes {
            for (entry, client) in node.clients() {
                node.leave(&client.group, entry);
            }
        }
        sleep(Duration::from_secs(1)).await;
        self.check();
        assert!(self.server.is_empty());
        self.nodes.iter().for_each(|node| node.running.abort());
    }
}

/// Runs the world of `seed`; returns the number of faults.
fn run_world(seed: u64, steps: usize) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let mut world = World::new(seed);
        for _ in 0..3 {
            for _ in 0..steps {
                world.step().await;
            }
            world.recover().await;
            world.is_consistent().await;
        }
        world.end().await;
        world.faults
    })
}

#[test]
fn nodes_converge_on_the_shared_state_some_heartbeats_after_any_fault() {
    let faults: usize = (0..20).map(|seed| run_world(seed, 100)).sum();
    assert!(faults > 200, "{faults}");
}

proptest! {
    // `PROPTEST_CASES` sets the number of cases. No seed is simpler than another.
    #![proptest_config(ProptestConfig { max_shrink_iters: 0, ..ProptestConfig::with_cases(24) })]
    #[test]
    fn nodes_converge_for_any_seed(seed in any::<u64>()) {
        run_world(seed, 100);
    }
}
