//! Several nodes, one engine, and all faults between them, in an order that a seed decides.
//!
//! At any time the events on each node are consistent: a member that is present is not added, a member that is absent
//! is not removed, and an entry gets the members as they are. After the last fault all nodes converge on the shared
//! state.

mod nodes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::group::{Group, MemberId, NodeId, Rejected, Snapshot, Transition, Update};
use super::local_groups::{Effect, EntryId, LocalGroups};
use super::shared_state::SharedState;

const NODES: usize = 3;
const GROUPS: usize = 2;
const USERS: usize = 3;

/// A node and its connections to the engine. Replies and published transitions are in order, each by itself.
#[derive(Debug)]
struct Node {
    id: NodeId,
    groups: LocalGroups,
    /// On their way to the engine.
    requests: VecDeque<Request>,
    /// Updates that were on their way when the connection broke, and may still be carried out.
    delayed: Vec<Update>,
    /// On their way from the engine.
    replies: VecDeque<Reply>,
    /// Transitions on their way from the engine.
    published: VecDeque<Transition>,
    subscriptions: BTreeSet<Group>,
    /// The connections of clients.
    clients: BTreeMap<EntryId, Client>,
    next: EntryId,
    /// The members of each group, as the admitted entries have seen them.
    seen: BTreeMap<Group, BTreeSet<MemberId>>,
    is_disconnected: bool,
}

#[derive(Clone, Debug)]
enum Request {
    Subscribe(Group),
    Update(Update),
}

#[derive(Clone, Debug)]
enum Reply {
    Subscribed(Group),
    Updated(Group, u64, Result<Snapshot, Rejected>),
}

#[derive(Debug)]
struct Client {
    group: Group,
    member: Option<MemberId>,
    entered: bool,
}

struct World {
    nodes: Vec<Node>,
    state: SharedState,
    rng: TestRng,
    ids: u128,
    time: u64,
    faults: usize,
    /// Events of members, on all nodes.
    events: usize,
    /// The members of each group, by the transitions that were published.
    members: BTreeMap<Group, BTreeSet<MemberId>>,
    occupied: BTreeSet<Group>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut world = Self {
            nodes: Vec::new(),
            state: SharedState::new(1000),
            rng: TestRng::from_seed(RngAlgorithm::ChaCha, &bytes),
            ids: 0,
            time: 1_000_000,
            faults: 0,
            events: 0,
            members: BTreeMap::new(),
            occupied: BTreeSet::new(),
        };
        for _ in 0..NODES {
            let node = world.new_node();
            world.nodes.push(node);
        }
        world
    }

    fn id(&mut self) -> NodeId {
        self.ids += 1;
        NodeId(self.ids)
    }

    fn new_node(&mut self) -> Node {
        let id = self.id();
        Node {
            id,
            groups: LocalGroups::new(id),
            requests: VecDeque::new(),
            delayed: Vec::new(),
            replies: VecDeque::new(),
            published: VecDeque::new(),
            subscriptions: BTreeSet::new(),
            clients: BTreeMap::new(),
            next: 0,
            seen: BTreeMap::new(),
            is_disconnected: false,
        }
    }

    fn below(&mut self, max: usize) -> usize {
        (self.rng.next_u64() % max as u64) as usize
    }

    /// The engine publishes to all subscribed nodes.
    fn publish(&mut self, transitions: Vec<Transition>) {
        for transition in transitions {
            self.check(&transition);
            for node in &mut self.nodes {
                if node.subscriptions.contains(&transition.group) {
                    node.published.push_back(transition.clone());
                }
            }
        }
    }

    /// Transitions of a group alternate.
    fn check(&mut self, transition: &Transition) {
        use super::group::Change;
        let group = Arc::clone(&transition.group);
        let members = self.members.entry(Arc::clone(&group)).or_default();
        match &transition.change {
            Change::Occupied => assert!(self.occupied.insert(group)),
            Change::Vacated => assert!(self.occupied.remove(&group)),
            Change::Added(id, _) => assert!(members.insert(Arc::clone(id))),
            Change::Removed(id) => assert!(members.remove(id)),
        }
    }

    /// A client enters or leaves.
    fn client(&mut self, at: usize) {
        let leaves = !self.nodes[at].clients.is_empty() && self.below(5) < 2;
        if leaves {
            let nth = self.below(self.nodes[at].clients.len());
            let node = &mut self.nodes[at];
            let entry = *node.clients.keys().nth(nth).unwrap();
            let client = node.clients.remove(&entry).unwrap();
            // Without an entry, members are not tracked.
            if !node.clients.values().any(|other| other.entered && other.group == client.group) {
                node.seen.remove(&client.group);
            }
            node.groups.leave(&client.group, client.member.as_ref(), entry);
        } else {
            let group = self.below(GROUPS);
            // One group of each kind.
            let member = (group > 0).then(|| MemberId::from(format!("u{}", self.below(USERS))));
            let group = Group::from(format!("g{group}"));
            let node = &mut self.nodes[at];
            node.next += 1;
            let info = member.clone().map(|id| (id, Bytes::from_static(b"{}")));
            let entered = node.groups.enter(&group, info.is_some(), info, node.next);
            node.clients.insert(node.next, Client { group: Arc::clone(&group), member, entered: false });
            let entry = node.next;
            self.effects(at);
            if entered {
                self.nodes[at].entered(&group, entry);
            }
        }
        self.effects(at);
    }

    /// Performs the effects of a node.
    fn effects(&mut self, at: usize) {
        while let Some(effect) = self.nodes[at].groups.next_effect() {
            let node = &mut self.nodes[at];
            match effect {
                Effect::Subscribe(group) => node.requests.push_back(Request::Subscribe(group)),
                Effect::Unsubscribe(group) => {
                    node.subscriptions.remove(&group);
                }
                Effect::Update(update) => node.requests.push_back(Request::Update(update)),
                Effect::Members(group, members) => {
                    let members = members.into_iter().map(|(id, _)| id).collect();
                    assert!(node.seen.insert(group, members).is_none(), "the first entry gets the members");
                }
                Effect::Entered(group, entry) => node.entered(&group, entry),
                Effect::MemberAdded(group, id, _) => {
                    self.events += 1;
                    assert!(node.seen.get_mut(&group).unwrap().insert(id), "a present member is not added");
                }
                Effect::MemberRemoved(group, id) => {
                    self.events += 1;
                    assert!(
                        node.seen.get_mut(&group).unwrap().remove(&id),
                        "an absent member is not removed"
                    );
                }
                Effect::LeaseExpired => self.rejoin(at),
            }
        }
    }

    /// A node rejoins under a new id. The state of its former id, which has no lease, is reaped.
    fn rejoin(&mut self, at: usize) {
        let id = self.id();
        let node = &mut self.nodes[at];
        node.id = id;
        node.groups.rejoin(id);
    }

    /// Nodes without a lease are declared dead.
    fn reap(&mut self) {
        let mut without: Vec<_> =
            self.state.nodes().filter(|id| self.nodes.iter().all(|node| node.id != *id)).collect();
        without.sort();
        let mut transitions = Vec::new();
        without.into_iter().for_each(|id| self.state.expire(id, &mut transitions));
        self.publish(transitions);
    }

    /// The engine carries a node's next request out.
    fn execute(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.is_disconnected {
            return;
        }
        match node.requests.pop_front() {
            Some(Request::Subscribe(group)) => {
                node.subscriptions.insert(Arc::clone(&group));
                node.replies.push_back(Reply::Subscribed(group));
            }
            Some(Request::Update(update)) => {
                let result = self.carry_out(&update);
                let reply = Reply::Updated(update.group, update.sequence, result);
                self.nodes[at].replies.push_back(reply);
            }
            None => {}
        }
    }

    fn carry_out(&mut self, update: &Update) -> Result<Snapshot, Rejected> {
        let mut transitions = Vec::new();
        let result = self.state.update(update, &mut transitions);
        self.publish(transitions);
        result
    }

    /// A node receives its next reply.
    fn reply(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        match node.replies.pop_front() {
            Some(Reply::Subscribed(group)) => node.groups.subscribed(&group),
            Some(Reply::Updated(group, sequence, result)) => {
                node.groups.update_replied(&group, sequence, result);
            }
            None => {}
        }
        self.effects(at);
    }

    /// A node receives its next transition.
    fn receive(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if let Some(transition) = node.published.pop_front() {
            node.groups.transition(transition);
            self.effects(at);
        }
    }

    /// A node's connections to the engine break.
    fn disconnect(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let updates = node.requests.drain(..).filter_map(|request| match request {
            Request::Update(update) => Some(update),
            Request::Subscribe(_) => None,
        });
        node.delayed.extend(updates);
        node.replies.clear();
        node.published.clear();
        node.subscriptions.clear();
        node.is_disconnected = true;
        node.groups.disconnected();
        self.effects(at);
    }

    fn reconnect(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.is_disconnected = false;
        node.groups.connected();
        self.effects(at);
    }

    /// An update that was on its way when a connection broke is carried out after all.
    fn deliver_delayed(&mut self, at: usize) {
        if !self.nodes[at].delayed.is_empty() {
            let nth = self.below(self.nodes[at].delayed.len());
            let update = self.nodes[at].delayed.remove(nth);
            let _ = self.carry_out(&update);
        }
    }

    /// Peers declare a node dead, rightly or not.
    fn expire(&mut self, at: usize) {
        let mut transitions = Vec::new();
        self.state.expire(self.nodes[at].id, &mut transitions);
        self.publish(transitions);
    }

    /// A node renews its lease, which may have expired.
    fn renew_lease(&mut self, at: usize) {
        if !self.nodes[at].is_disconnected && self.state.is_expired(self.nodes[at].id) {
            self.rejoin(at);
            self.effects(at);
        }
    }

    /// A node dies, and a new one starts.
    fn kill(&mut self, at: usize) {
        self.expire(at);
        let delayed = std::mem::take(&mut self.nodes[at].delayed);
        self.nodes[at] = self.new_node();
        self.nodes[at].delayed = delayed;
    }

    /// The engine loses its state, and all nodes notice.
    fn flush_all(&mut self) {
        self.time += 1_000_000;
        self.state = SharedState::new(self.time);
        self.members.clear();
        self.occupied.clear();
        for at in 0..NODES {
            self.rejoin(at);
            self.effects(at);
        }
    }

    fn step(&mut self) {
        let at = self.below(NODES);
        match self.below(100) {
            0..15 => self.client(at),
            15..45 => self.execute(at),
            45..65 => self.reply(at),
            65..92 => self.receive(at),
            92 | 93 => {
                self.faults += 1;
                if self.nodes[at].is_disconnected { self.reconnect(at) } else { self.disconnect(at) }
            }
            94 | 95 => self.deliver_delayed(at),
            96 => {
                self.faults += 1;
                self.expire(at);
            }
            97 => {
                self.faults += 1;
                self.kill(at);
            }
            98 if self.below(2) == 0 => {
                self.nodes[at].groups.heartbeat();
                self.effects(at);
            }
            98 if self.below(2) == 0 => {
                self.faults += 1;
                self.flush_all();
            }
            _ if self.nodes[at].is_disconnected => self.reconnect(at),
            _ if self.below(2) == 0 => self.reap(),
            _ => self.renew_lease(at),
        }
    }

    /// Ends all faults, and runs until all nodes are idle.
    fn recover(&mut self) {
        for at in 0..NODES {
            while !self.nodes[at].delayed.is_empty() {
                self.deliver_delayed(at);
            }
            if self.nodes[at].is_disconnected {
                self.reconnect(at);
            }
            self.renew_lease(at);
        }
        self.run_until_idle();
        for at in 0..NODES {
            for _ in 0..5 {
                self.nodes[at].groups.heartbeat();
            }
            self.effects(at);
        }
    }

    fn run_until_idle(&mut self) {
        for _ in 0..10_000 {
            self.reap();
            if self.nodes.iter().all(|node| node.is_idle()) {
                return;
            }
            for at in 0..NODES {
                self.execute(at);
                self.reply(at);
                self.receive(at);
            }
        }
        panic!("the nodes do not become idle");
    }

    /// The shared state is that of the clients, and every node has it.
    fn is_consistent(&self) {
        let mut wanted: BTreeMap<Group, BTreeSet<MemberId>> = BTreeMap::new();
        for client in self.nodes.iter().flat_map(|node| node.clients.values()) {
            assert!(client.entered, "{client:?}");
            wanted.entry(Arc::clone(&client.group)).or_default().extend(client.member.clone());
        }
        let groups: BTreeSet<_> = self.state.groups().cloned().collect();
        assert_eq!(groups, wanted.keys().cloned().collect());
        for (group, members) in &wanted {
            let found = self.state.snapshot(group);
            let present: BTreeSet<_> = found.members.unwrap().into_iter().map(|(member, _)| member).collect();
            assert_eq!(present, *members);
            assert!(found.occupied);
        }
        for node in &self.nodes {
            for (group, seen) in &node.seen {
                assert_eq!(Some(seen), wanted.get(group), "{group}");
            }
            for client in node.clients.values().filter(|client| client.member.is_some()) {
                assert!(node.seen.contains_key(&client.group));
            }
        }
    }
}

impl Node {
    fn entered(&mut self, group: &Group, entry: EntryId) {
        let client = self.clients.get_mut(&entry).expect("an entry that has left is not admitted");
        assert!(!client.entered, "an entry is admitted once");
        assert_eq!(client.group, *group);
        client.entered = true;
    }

    fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.replies.is_empty() && self.published.is_empty()
    }
}

fn play(seed: u64, steps: usize) -> usize {
    let mut world = World::new(seed);
    for _ in 0..5 {
        for _ in 0..steps {
            world.step();
        }
        world.recover();
        world.is_consistent();
    }
    world.faults
}

#[test]
fn after_any_order_of_faults_all_nodes_converge_on_the_shared_state() {
    let faults: usize = (0..300).map(|seed| play(seed, 100)).sum();
    assert!(faults > 1500, "{faults}");
}

#[test]
fn members_that_stay_while_the_broker_loses_its_state_cause_no_events() {
    let mut total = 0;
    for seed in 0..200 {
        let mut world = World::new(seed);
        for _ in 0..40 {
            let at = world.below(NODES);
            world.client(at);
            world.run_until_idle();
        }
        let events = world.events;
        total += events;
        for _ in 0..3 {
            world.flush_all();
            world.run_until_idle();
        }
        assert_eq!(world.events, events, "{seed}");
        world.recover();
        world.is_consistent();
        assert_eq!(world.events, events, "{seed}");
    }
    assert!(total > 500, "{total}");
}

proptest! {
    // `PROPTEST_CASES` sets the number of cases.
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn long_runs_converge(seed in any::<u64>()) {
        play(seed, 400);
    }
}
