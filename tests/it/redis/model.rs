//! The scripts against the model of the shared state.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use pusherd::cluster::broker::{Broker as _, Incoming, Topic};
use pusherd::cluster::coordinator::{Coordinator as _, partition_of};
use pusherd::cluster::envelope::{self, Envelope};
use pusherd::cluster::group::{Group, MemberId, NodeId, Snapshot, Transition, Update, Version};
use pusherd::cluster::shared_state::SharedState;

use super::{Node, group, keys_left};
use crate::harness::redis::{RedisServer, redis_server};

const NODES: usize = 3;

const GROUPS: usize = 2;

#[derive(Clone, Debug)]
enum Step {
    Update { node: usize, ahead: u64, group: usize, is_recorded: bool, members: Members },
    Expire(usize),
    Snapshot(usize),
    Occupied,
}

#[derive(Clone, Debug)]
struct Members {
    holds: bool,
    present: Vec<usize>,
    gone: Vec<usize>,
    is_complete: bool,
    wants_members: bool,
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
    let members = members.prop_map(|(holds, present, gone, is_complete, wants_members)| Members {
        holds,
        present,
        gone,
        is_complete,
        wants_members,
    });
    // 0: the sequence number of the previous update again.
    let update = (0..NODES, 0..4_u64, 0..GROUPS, any::<bool>(), members).prop_map(
        |(node, ahead, group, is_recorded, members)| Step::Update {
            node,
            ahead,
            group,
            is_recorded,
            members,
        },
    );
    prop_oneof![
        20 => update,
        1 => (0..NODES).prop_map(Step::Expire),
        2 => (0..GROUPS).prop_map(Step::Snapshot),
        1 => Just(Step::Occupied),
    ]
}

/// Redis and the model next to each other.
struct Pair<'a> {
    node: &'a mut Node,
    model: SharedState,
    groups: Vec<Group>,
    nodes: Vec<NodeId>,
    sequences: Vec<u64>,
    /// The version in Redis of each version of the model.
    versions: HashMap<Version, Version>,
    /// The last version of each group in Redis.
    last: HashMap<Group, Version>,
    /// Whether transitions of a node in a group are recorded.
    is_recorded: HashMap<(NodeId, Group), bool>,
    /// The transitions that were recorded, with their versions in Redis.
    recorded: Vec<Transition>,
}

impl<'a> Pair<'a> {
    /// New groups, all in one partition.
    async fn new(server: &RedisServer, node: &'a mut Node) -> Self {
        // Removes what a failed case has left.
        server.run::<()>(&["FLUSHALL"]).await;
        node.subscribe(&Topic::Nodes).await;
        node.publish(&Topic::Nodes, "begin").await.unwrap();
        while node.next().await != Incoming::Message(Topic::Nodes, Bytes::from("begin")) {}
        static CASES: AtomicUsize = AtomicUsize::new(0);
        let case = CASES.fetch_add(1, Ordering::Relaxed);
        let names = (0..).map(|number| group(&format!("case-{case}-ü {number}")));
        let groups: Vec<_> = names.filter(|group| partition_of(group) == 7).take(GROUPS).collect();
        for group in &groups {
            node.subscribe(&Topic::Group(Arc::clone(group))).await;
        }
        let nodes = (0..NODES).map(|at| NodeId(((case + 1) * 1000 + at) as u128)).collect();
        Self {
            node,
            model: SharedState::new(0),
            groups,
            nodes,
            sequences: vec![0; NODES],
            versions: HashMap::from([(0, 0)]),
            last: HashMap::new(),
            is_recorded: HashMap::new(),
            recorded: Vec::new(),
        }
    }

    async fn apply(&mut self, step: Step) {
        match step {
            Step::Update { node, ahead, group, is_recorded, members } => {
                let sequence = (self.sequences[node] + ahead).saturating_sub(1);
                self.sequences[node] = self.sequences[node].max(sequence);
                let id = |at: &usize| MemberId::from(IDS[*at]);
                let update = Update {
                    node: self.nodes[node],
                    sequence,
                    group: Arc::clone(&self.groups[group]),
                    holds: members.holds,
                    present: members
                        .present
                        .iter()
                        .map(|at| (id(at), Bytes::from_static(INFOS[*at])))
                        .collect(),
                    gone: members.gone.iter().map(id).collect(),
                    is_complete: members.is_complete,
                    wants_members: members.wants_members,
                };
                self.update(update, is_recorded).await;
            }
            Step::Expire(node) => self.expire(node).await,
            Step::Snapshot(at) => {
                let group = Arc::clone(&self.groups[at]);
                let found = self.node.redis.snapshot(Arc::clone(&group)).await.unwrap();
                assert_eq!(found, self.translated(self.model.snapshot(&group)));
            }
            Step::Occupied => self.occupied().await,
        }
    }

    async fn update(&mut self, update: Update, is_recorded: bool) {
        let mut transitions = Vec::new();
        let wanted = self.model.update(&update, &mut transitions);
        let reply = self.node.redis.update(update.clone(), is_recorded).await.unwrap();
        if wanted.is_ok() {
            self.is_recorded.insert((update.node, Arc::clone(&update.group)), is_recorded);
        }
        self.receives_transitions(transitions, |_| is_recorded).await;
        assert_eq!(reply, wanted.map(|snapshot| self.translated(snapshot)));
    }

    async fn expire(&mut self, node: usize) {
        let node = self.nodes[node];
        let mut transitions = Vec::new();
        self.model.expire(node, &mut transitions);
        while self.node.redis.reap(7, node).await.unwrap() {}
        // Redis reaps recorded groups after the others.
        let is_recorded = self.is_recorded.clone();
        let is_recorded =
            |group: &Group| is_recorded.get(&(node, Arc::clone(group))).copied().unwrap_or_default();
        transitions.sort_by_key(|transition| is_recorded(&transition.group));
        self.receives_transitions(transitions, is_recorded).await;
        assert!(!self.node.redis.nodes(7).await.unwrap().contains(&node));
    }

    async fn occupied(&mut self) {
        let prefix = self.groups[0].rsplit_once(' ').unwrap().0.to_owned() + " ";
        let mut found = self.node.redis.occupied(&prefix).await.unwrap();
        found.sort();
        let groups = self.model.groups().map(|group| (Arc::clone(group), self.model.snapshot(group)));
        let groups = groups.filter(|(_, snapshot)| snapshot.occupied);
        let mut wanted: Vec<_> =
            groups.map(|(group, snapshot)| (group, snapshot.members.unwrap().len())).collect();
        wanted.sort();
        assert_eq!(found, wanted);
    }

    /// A snapshot of the model, with its version in Redis.
    fn translated(&self, snapshot: Snapshot) -> Snapshot {
        Snapshot { version: self.versions[&snapshot.version], ..snapshot }
    }

    /// The same transitions arrive in the same order.
    async fn receives_transitions(
        &mut self,
        transitions: Vec<Transition>,
        is_recorded: impl Fn(&Group) -> bool,
    ) {
        for wanted in transitions {
            let Incoming::Message(Topic::Group(about), bytes) = self.node.next().await else { panic!() };
            let Ok(Envelope::Changed(transition)) = envelope::open(Some(&about), &bytes) else {
                panic!("{bytes:?}")
            };
            let last = self.last.values().copied().max().unwrap_or_default();
            assert!(transition.version > last, "versions grow");
            assert_eq!(transition.previous, self.versions[&wanted.previous]);
            let Transition { version, .. } = transition;
            self.versions.insert(wanted.version, version);
            self.last.insert(about, version);
            assert_eq!(transition, Transition { previous: transition.previous, version, ..wanted });
            if is_recorded(&transition.group) {
                self.recorded.push(transition);
            }
        }
    }

    /// Nothing else has arrived, all records are there in order, and no state is left.
    async fn end(mut self, by_leaving: bool) {
        for node in 0..NODES {
            for group in 0..GROUPS {
                let members = Members {
                    holds: false,
                    present: vec![],
                    gone: vec![],
                    is_complete: true,
                    wants_members: true,
                };
                if by_leaving {
                    self.apply(Step::Update { node, ahead: 2, group, is_recorded: true, members }).await;
                }
            }
            if !by_leaving {
                self.expire(node).await;
            }
        }
        assert_eq!(self.model.groups().count(), 0);
        for group in &self.groups {
            let topic = Topic::Group(Arc::clone(group));
            self.node.publish(&topic, "fence").await.unwrap();
            self.node.receives(&topic, "fence").await;
            self.node.redis.unsubscribe(topic);
        }
        let records = self.node.redis.records(7, 0, 1000).await.unwrap();
        let found: Vec<_> = records.into_iter().map(|record| record.transition).collect();
        assert_eq!(found, self.recorded);
        let versions: Vec<_> = self.recorded.iter().map(|transition| transition.version).collect();
        if let [_, second, ..] = versions[..] {
            let after = self.node.redis.records(7, versions[0], 1).await.unwrap();
            assert_eq!(after[0].transition.version, second);
        }
        self.node.redis.ack_records(7, versions).await.unwrap();
        assert_eq!(self.node.redis.records(7, 0, 1000).await.unwrap(), []);
    }
}

#[test]
fn the_scripts_match_the_model_and_leave_no_keys_behind() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (server, mut node) = runtime.block_on(async {
        let server = redis_server().await;
        let node = Node::connected(server.options()).await;
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
                pair.apply(step).await;
            }
            pair.end(by_leaving).await;
            assert_eq!(keys_left(&server).await, [""; 0]);
        });
        Ok(())
    });
    result.unwrap();
}
