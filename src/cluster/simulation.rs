//! Several nodes, one broker, and everything that may go wrong between them, in an order that a seed decides.
//!
//! Whatever happens, what each node tells its connections fits together: nobody comes who is there, nobody goes who is
//! not, and who enters has the list as it is. Once nothing goes wrong any more, everybody knows the truth.

mod nodes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::seat::{Effect, Seats, Ticket};
use super::truth::{Answer, Group, MemberId, NodeId, Refusal, Transition, Truth, Update};

const NODES: usize = 3;
const GROUPS: usize = 2;
const USERS: usize = 3;

/// What a broker sends to a node, in this order, but for the two connections of it.
#[derive(Debug)]
struct Node {
    id: NodeId,
    seats: Seats,
    /// To the broker.
    asking: VecDeque<Ask>,
    /// What was on its way when a connection broke, and may still be carried out.
    strays: Vec<Update>,
    /// Answers from the broker.
    answers: VecDeque<Reply>,
    /// What the broker tells of groups.
    told: VecDeque<Transition>,
    listens: BTreeSet<Group>,
    /// The connections of clients: group, member, and whether they have entered.
    clients: BTreeMap<Ticket, Client>,
    next: Ticket,
    /// Who is in a group, as those who have entered were told.
    seen: BTreeMap<Group, BTreeSet<MemberId>>,
    is_cut_off: bool,
}

#[derive(Clone, Debug)]
enum Ask {
    Listen(Group),
    Update(Update),
}

#[derive(Clone, Debug)]
enum Reply {
    Listening(Group),
    Answer(Group, u64, Result<Answer, Refusal>),
}

#[derive(Debug)]
struct Client {
    group: Group,
    member: Option<MemberId>,
    entered: bool,
}

struct World {
    nodes: Vec<Node>,
    truth: Truth,
    rng: TestRng,
    ids: u128,
    time: u64,
    faults: usize,
    /// How often anybody was told that somebody came or went.
    news: usize,
    /// Who was told by the broker to be in a group: transitions alternate.
    in_truth: BTreeMap<Group, BTreeSet<MemberId>>,
    occupied: BTreeSet<Group>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let mut world = Self {
            nodes: Vec::new(),
            truth: Truth::new(1000),
            rng: TestRng::from_seed(RngAlgorithm::ChaCha, &bytes),
            ids: 0,
            time: 1_000_000,
            faults: 0,
            news: 0,
            in_truth: BTreeMap::new(),
            occupied: BTreeSet::new(),
        };
        for _ in 0..NODES {
            let node = world.fresh();
            world.nodes.push(node);
        }
        world
    }

    fn id(&mut self) -> NodeId {
        self.ids += 1;
        NodeId(self.ids)
    }

    fn fresh(&mut self) -> Node {
        let id = self.id();
        Node {
            id,
            seats: Seats::new(id),
            asking: VecDeque::new(),
            strays: Vec::new(),
            answers: VecDeque::new(),
            told: VecDeque::new(),
            listens: BTreeSet::new(),
            clients: BTreeMap::new(),
            next: 0,
            seen: BTreeMap::new(),
            is_cut_off: false,
        }
    }

    fn below(&mut self, max: usize) -> usize {
        (self.rng.next_u64() % max as u64) as usize
    }

    /// The broker tells all who listen.
    fn tell(&mut self, transitions: Vec<Transition>) {
        for transition in transitions {
            self.check(&transition);
            for node in &mut self.nodes {
                if node.listens.contains(&transition.group) {
                    node.told.push_back(transition.clone());
                }
            }
        }
    }

    /// What the broker says of a group makes sense by itself.
    fn check(&mut self, transition: &Transition) {
        use super::truth::Change;
        let group = Arc::clone(&transition.group);
        let there = self.in_truth.entry(Arc::clone(&group)).or_default();
        match &transition.change {
            Change::Occupied => assert!(self.occupied.insert(group)),
            Change::Vacated => assert!(self.occupied.remove(&group)),
            Change::Added(id, _) => assert!(there.insert(Arc::clone(id))),
            Change::Removed(id) => assert!(there.remove(id)),
        }
    }

    /// A client comes or goes.
    fn client(&mut self, at: usize) {
        let leaves = !self.nodes[at].clients.is_empty() && self.below(5) < 2;
        if leaves {
            let place = self.below(self.nodes[at].clients.len());
            let node = &mut self.nodes[at];
            let ticket = *node.clients.keys().nth(place).unwrap();
            let client = node.clients.remove(&ticket).unwrap();
            // A list that nobody here has any more is not kept.
            if !node.clients.values().any(|other| other.entered && other.group == client.group) {
                node.seen.remove(&client.group);
            }
            node.seats.leave(&client.group, client.member.as_ref(), ticket);
        } else {
            let group = self.below(GROUPS);
            // One group of each kind.
            let member = (group > 0).then(|| MemberId::from(format!("u{}", self.below(USERS))));
            let group = Group::from(format!("g{group}"));
            let node = &mut self.nodes[at];
            node.next += 1;
            let info = member.clone().map(|id| (id, Bytes::from_static(b"{}")));
            let entered = node.seats.enter(&group, info.is_some(), info, node.next);
            node.clients.insert(node.next, Client { group: Arc::clone(&group), member, entered: false });
            let ticket = node.next;
            self.effects(at);
            if entered {
                self.nodes[at].entered(&group, ticket);
            }
        }
        self.effects(at);
    }

    /// Does what a node wants done.
    fn effects(&mut self, at: usize) {
        while let Some(effect) = self.nodes[at].seats.effect() {
            let node = &mut self.nodes[at];
            match effect {
                Effect::Listen(group) => node.asking.push_back(Ask::Listen(group)),
                Effect::Ignore(group) => {
                    node.listens.remove(&group);
                }
                Effect::Update(update) => node.asking.push_back(Ask::Update(update)),
                Effect::Everyone(group, everyone) => {
                    let everyone = everyone.into_iter().map(|(id, _)| id).collect();
                    assert!(node.seen.insert(group, everyone).is_none(), "a list is given once");
                }
                Effect::Entered(group, ticket) => node.entered(&group, ticket),
                Effect::Added(group, id, _) => {
                    self.news += 1;
                    assert!(node.seen.get_mut(&group).unwrap().insert(id), "who is there does not come");
                }
                Effect::Removed(group, id) => {
                    self.news += 1;
                    assert!(node.seen.get_mut(&group).unwrap().remove(&id), "who is not there does not go");
                }
                Effect::GivenUp => self.rename(at),
            }
        }
    }

    /// A node goes on under another name. What is left under the former one, which has no lease any more, is reaped.
    fn rename(&mut self, at: usize) {
        let id = self.id();
        let node = &mut self.nodes[at];
        node.id = id;
        node.seats.rename(id);
    }

    /// Who has no lease is given up.
    fn reap(&mut self) {
        let mut without: Vec<_> =
            self.truth.nodes().filter(|id| self.nodes.iter().all(|node| node.id != *id)).collect();
        without.sort();
        let mut transitions = Vec::new();
        without.into_iter().for_each(|id| self.truth.give_up(id, &mut transitions));
        self.tell(transitions);
    }

    /// The broker takes what a node has sent.
    fn broker(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.is_cut_off {
            return;
        }
        match node.asking.pop_front() {
            Some(Ask::Listen(group)) => {
                node.listens.insert(Arc::clone(&group));
                node.answers.push_back(Reply::Listening(group));
            }
            Some(Ask::Update(update)) => {
                let answer = self.carry_out(&update);
                let reply = Reply::Answer(update.group, update.number, answer);
                self.nodes[at].answers.push_back(reply);
            }
            None => {}
        }
    }

    fn carry_out(&mut self, update: &Update) -> Result<Answer, Refusal> {
        let mut transitions = Vec::new();
        let answer = self.truth.update(update, &mut transitions);
        self.tell(transitions);
        answer
    }

    /// A node takes an answer.
    fn answer(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        match node.answers.pop_front() {
            Some(Reply::Listening(group)) => node.seats.listening(&group),
            Some(Reply::Answer(group, number, answer)) => node.seats.answered(&group, number, answer),
            None => {}
        }
        self.effects(at);
    }

    /// A node takes what it is told.
    fn hear(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if let Some(transition) = node.told.pop_front() {
            node.seats.changed(transition);
            self.effects(at);
        }
    }

    /// A node's connections to the broker break.
    fn cut_off(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let asked = node.asking.drain(..).filter_map(|ask| match ask {
            Ask::Update(update) => Some(update),
            Ask::Listen(_) => None,
        });
        node.strays.extend(asked);
        node.answers.clear();
        node.told.clear();
        node.listens.clear();
        node.is_cut_off = true;
        node.seats.lost();
        self.effects(at);
    }

    fn comes_back(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.is_cut_off = false;
        node.seats.found();
        self.effects(at);
    }

    /// What was on its way when a connection broke is carried out after all.
    fn stray(&mut self, at: usize) {
        if !self.nodes[at].strays.is_empty() {
            let place = self.below(self.nodes[at].strays.len());
            let update = self.nodes[at].strays.remove(place);
            let _ = self.carry_out(&update);
        }
    }

    /// The others take a node for dead, rightly or not.
    fn give_up(&mut self, at: usize) {
        let mut transitions = Vec::new();
        self.truth.give_up(self.nodes[at].id, &mut transitions);
        self.tell(transitions);
    }

    /// A node renews its lease, and may hear that it was given up.
    fn beat(&mut self, at: usize) {
        if !self.nodes[at].is_cut_off && self.truth.has_given_up(self.nodes[at].id) {
            self.rename(at);
            self.effects(at);
        }
    }

    /// A node dies, and another one takes its place.
    fn kill(&mut self, at: usize) {
        self.give_up(at);
        let strays = std::mem::take(&mut self.nodes[at].strays);
        self.nodes[at] = self.fresh();
        self.nodes[at].strays = strays;
    }

    /// The broker forgets everything, and all nodes notice.
    fn forget(&mut self) {
        self.time += 1_000_000;
        self.truth = Truth::new(self.time);
        self.in_truth.clear();
        self.occupied.clear();
        for at in 0..NODES {
            self.rename(at);
            self.effects(at);
        }
    }

    fn step(&mut self) {
        let at = self.below(NODES);
        match self.below(100) {
            0..15 => self.client(at),
            15..45 => self.broker(at),
            45..65 => self.answer(at),
            65..92 => self.hear(at),
            92 | 93 => {
                self.faults += 1;
                if self.nodes[at].is_cut_off { self.comes_back(at) } else { self.cut_off(at) }
            }
            94 | 95 => self.stray(at),
            96 => {
                self.faults += 1;
                self.give_up(at);
            }
            97 => {
                self.faults += 1;
                self.kill(at);
            }
            98 if self.below(2) == 0 => {
                self.nodes[at].seats.beat();
                self.effects(at);
            }
            98 if self.below(2) == 0 => {
                self.faults += 1;
                self.forget();
            }
            _ if self.nodes[at].is_cut_off => self.comes_back(at),
            _ if self.below(2) == 0 => self.reap(),
            _ => self.beat(at),
        }
    }

    /// Nothing goes wrong any more, until nothing is left to do.
    fn settle(&mut self) {
        for at in 0..NODES {
            while !self.nodes[at].strays.is_empty() {
                self.stray(at);
            }
            if self.nodes[at].is_cut_off {
                self.comes_back(at);
            }
            self.beat(at);
        }
        self.come_to_rest();
        for at in 0..NODES {
            for _ in 0..5 {
                self.nodes[at].seats.beat();
            }
            self.effects(at);
        }
    }

    fn come_to_rest(&mut self) {
        for _ in 0..10_000 {
            self.reap();
            if self.nodes.iter().all(|node| node.is_idle()) {
                return;
            }
            for at in 0..NODES {
                self.broker(at);
                self.answer(at);
                self.hear(at);
            }
        }
        panic!("it does not come to rest");
    }

    /// Everybody knows the truth, and it is that of the clients.
    fn is_true(&self) {
        let mut wanted: BTreeMap<Group, BTreeSet<MemberId>> = BTreeMap::new();
        for client in self.nodes.iter().flat_map(|node| node.clients.values()) {
            assert!(client.entered, "{client:?}");
            wanted.entry(Arc::clone(&client.group)).or_default().extend(client.member.clone());
        }
        let groups: BTreeSet<_> = self.truth.groups().cloned().collect();
        assert_eq!(groups, wanted.keys().cloned().collect());
        for (group, members) in &wanted {
            let found = self.truth.look(group);
            let there: BTreeSet<_> = found.members.unwrap().into_iter().map(|(member, _)| member).collect();
            assert_eq!(there, *members);
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
    fn entered(&mut self, group: &Group, ticket: Ticket) {
        let client = self.clients.get_mut(&ticket).expect("who has left does not enter");
        assert!(!client.entered, "once");
        assert_eq!(client.group, *group);
        client.entered = true;
    }

    fn is_idle(&self) -> bool {
        self.asking.is_empty() && self.answers.is_empty() && self.told.is_empty()
    }
}

fn play(seed: u64, steps: usize) -> usize {
    let mut world = World::new(seed);
    for _ in 0..5 {
        for _ in 0..steps {
            world.step();
        }
        world.settle();
        world.is_true();
    }
    world.faults
}

#[test]
fn whatever_goes_wrong_everybody_knows_the_truth_in_the_end() {
    let faults: usize = (0..300).map(|seed| play(seed, 100)).sum();
    assert!(faults > 1500, "{faults}");
}

#[test]
fn when_a_broker_forgets_who_is_there_all_the_time_was_never_gone() {
    let mut told = 0;
    for seed in 0..200 {
        let mut world = World::new(seed);
        for _ in 0..40 {
            let at = world.below(NODES);
            world.client(at);
            world.come_to_rest();
        }
        let news = world.news;
        told += news;
        for _ in 0..3 {
            world.forget();
            world.come_to_rest();
        }
        assert_eq!(world.news, news, "{seed}");
        world.settle();
        world.is_true();
        assert_eq!(world.news, news, "{seed}");
    }
    assert!(told > 500, "{told}");
}

proptest! {
    // More lives: `PROPTEST_CASES` says how many.
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn and_in_longer_lives(seed in any::<u64>()) {
        play(seed, 400);
    }
}
