//! The engine for nodes in one process: what Redis does, by [`SharedState`] and a few maps. Tests run whole clusters on
//! it, disconnect nodes, flush its state, and delay its replies.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::broker::{
    Broker, Incoming, IncomingReceiver, IncomingSender, PendingReply, Topic, Unavailable, incoming_queue,
};
use super::coordinator::{CachedMessage, Coordinator, Leases, PARTITIONS, Record, partition_of};
use super::envelope;
use super::group::{Group, NodeId, Rejected, Snapshot, Transition, Update, Version};
use super::shared_state::SharedState;

/// Broker and coordinator of all nodes. Cloning shares it.
#[derive(Clone, Debug)]
pub struct MemoryServer(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    started: Instant,
    partitions: Vec<Partition>,
    leases: BTreeMap<NodeId, Instant>,
    links: Vec<Link>,
}

#[derive(Debug, Default)]
struct Partition {
    groups: SharedState,
    /// Groups whose transitions are stored as records.
    recorded: HashSet<Group>,
    cached: HashMap<Group, (Version, Bytes, Instant)>,
    shares: HashMap<Group, HashMap<NodeId, u64>>,
    reader: Option<(NodeId, Instant)>,
    records: BTreeMap<Version, Record>,
    last_cached: Version,
}

/// The server's end of a client's connection.
#[derive(Debug)]
struct Link {
    incoming: IncomingSender,
    topics: HashSet<Topic>,
    is_disconnected: bool,
    /// How long replies are delayed.
    delay: Duration,
    /// The node that renewed its lease over this connection.
    node: Option<NodeId>,
}

/// The connection of one node.
#[derive(Debug)]
pub struct MemoryClient {
    server: MemoryServer,
    link: usize,
}

impl Default for MemoryServer {
    fn default() -> Self {
        let partitions = (0..PARTITIONS).map(|_| Partition::default()).collect();
        Self(Arc::new(Mutex::new(State {
            started: Instant::now(),
            partitions,
            leases: BTreeMap::new(),
            links: Vec::new(),
        })))
    }
}

impl MemoryServer {
    /// Connects a node.
    #[must_use]
    pub fn connect(&self) -> (Arc<MemoryClient>, IncomingReceiver) {
        let (incoming, receiver) = incoming_queue();
        incoming.push(Incoming::Connected);
        let mut state = self.0.lock();
        let link = Link {
            incoming,
            topics: HashSet::new(),
            is_disconnected: false,
            delay: Duration::ZERO,
            node: None,
        };
        state.links.push(link);
        (Arc::new(MemoryClient { server: self.clone(), link: state.links.len() - 1 }), receiver)
    }

    /// The client that connected as the `nth`, from 0, for a test to act on.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn client_of(&self, nth: usize) -> MemoryClient {
        assert!(nth < self.0.lock().links.len(), "fewer clients have connected");
        MemoryClient { server: self.clone(), link: nth }
    }

    /// Removes all state, as `FLUSHALL` does.
    pub fn flush_all(&self) {
        let mut state = self.0.lock();
        // Versions go on above those before, as they do with a clock.
        let version =
            state.partitions.iter().map(|partition| partition.groups.version()).max().unwrap_or_default()
                + 1000;
        let partition =
            || Partition { groups: SharedState::new(version), last_cached: version, ..Partition::default() };
        state.partitions = (0..PARTITIONS).map(|_| partition()).collect();
        state.leases.clear();
    }

    /// The state of a group.
    #[must_use]
    pub fn snapshot(&self, group: &Group) -> Snapshot {
        self.0.lock().partition(group).groups.snapshot(group)
    }

    /// Whether no node has any group.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lock().partitions.iter().all(|partition| partition.groups.groups().next().is_none())
    }
}

impl MemoryClient {
    /// Breaks the connection, as a network does.
    pub fn disconnect(&self) {
        let link = &mut self.server.0.lock().links[self.link];
        if !link.is_disconnected {
            link.is_disconnected = true;
            link.topics.clear();
            link.incoming.push(Incoming::Disconnected);
        }
    }

    /// Connects again.
    pub fn reconnect(&self) {
        let link = &mut self.server.0.lock().links[self.link];
        if link.is_disconnected {
            link.is_disconnected = false;
            link.incoming.push(Incoming::Connected);
        }
    }

    /// Expires the node's lease now.
    pub fn expire_lease(&self) {
        let mut state = self.server.0.lock();
        if let Some(node) = state.links[self.link].node
            && let Some(until) = state.leases.get_mut(&node)
        {
            *until = Instant::now();
        }
    }

    /// Delays replies from now on; messages are not delayed.
    pub fn delay(&self, delay: Duration) {
        self.server.0.lock().links[self.link].delay = delay;
    }

    /// Executes a request now, and replies with its result.
    fn execute<T: Send + 'static>(&self, request: impl FnOnce(&mut State) -> T) -> PendingReply<T> {
        let mut state = self.server.0.lock();
        if state.links[self.link].is_disconnected {
            return Box::pin(std::future::ready(Err(Unavailable)));
        }
        let result = request(&mut state);
        let delay = state.links[self.link].delay;
        if delay.is_zero() {
            return Box::pin(std::future::ready(Ok(result)));
        }
        let (server, link) = (self.server.clone(), self.link);
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            if server.0.lock().links[link].is_disconnected { Err(Unavailable) } else { Ok(result) }
        })
    }
}

impl State {
    fn partition(&mut self, group: &str) -> &mut Partition {
        &mut self.partitions[usize::from(partition_of(group))]
    }

    fn publish(&mut self, topic: &Topic, message: &Bytes) {
        for link in self.links.iter().filter(|link| link.topics.contains(topic)) {
            link.incoming.push(Incoming::Message(topic.clone(), message.clone()));
        }
    }

    /// Publishes the transitions of a partition, and stores records of them.
    fn publish_transitions(&mut self, number: u16, transitions: Vec<Transition>) {
        let time_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        for transition in transitions {
            self.publish(&Topic::Group(Arc::clone(&transition.group)), &envelope::changed(&transition));
            let partition = &mut self.partitions[usize::from(number)];
            if partition.recorded.contains(&transition.group) {
                partition.records.insert(transition.version, Record { transition, time_ms });
                let reader = partition.reader;
                if let Some((reader, _)) = reader {
                    self.publish(&Topic::Node(reader), &envelope::records(number));
                }
            }
        }
    }
}

impl Broker for MemoryClient {
    fn publish(&self, messages: Vec<(Topic, Bytes)>) -> PendingReply<()> {
        self.execute(move |state| messages.iter().for_each(|(topic, message)| state.publish(topic, message)))
    }

    fn subscribe(&self, topic: Topic) -> PendingReply<()> {
        let link = self.link;
        self.execute(move |state| {
            state.links[link].topics.insert(topic);
        })
    }

    fn unsubscribe(&self, topic: Topic) {
        self.server.0.lock().links[self.link].topics.remove(&topic);
    }
}

impl Coordinator for MemoryClient {
    fn update(&self, update: Update, is_recorded: bool) -> PendingReply<Result<Snapshot, Rejected>> {
        self.execute(move |state| {
            let number = partition_of(&update.group);
            let partition = state.partition(&update.group);
            if is_recorded {
                partition.recorded.insert(Arc::clone(&update.group));
            }
            let mut transitions = Vec::new();
            let reply = partition.groups.update(&update, &mut transitions);
            state.publish_transitions(number, transitions);
            reply
        })
    }

    fn snapshot(&self, group: Group) -> PendingReply<Snapshot> {
        self.execute(move |state| state.partition(&group).groups.snapshot(&group))
    }

    fn occupied(&self, prefix: &str) -> PendingReply<Vec<(Group, usize)>> {
        self.execute(|state| {
            let mut found = Vec::new();
            for partition in &state.partitions {
                for group in partition.groups.groups().filter(|group| group.starts_with(prefix)) {
                    let snapshot = partition.groups.snapshot(group);
                    if snapshot.occupied {
                        let members = snapshot.members.map_or(0, |members| members.len());
                        found.push((Arc::clone(group), members));
                    }
                }
            }
            found
        })
    }

    fn publish_cached(&self, group: Group, message: Bytes, ttl: Duration) -> PendingReply<()> {
        self.execute(move |state| {
            let partition = state.partition(&group);
            partition.last_cached += 1;
            let version = partition.last_cached;
            let envelope = envelope::cached(version, &message);
            partition.cached.insert(Arc::clone(&group), (version, message, Instant::now() + ttl));
            state.publish(&Topic::Group(group), &envelope);
        })
    }

    fn cached(&self, group: Group) -> PendingReply<Option<CachedMessage>> {
        self.execute(move |state| {
            let (version, message, expires) = state.partition(&group).cached.get(&group)?.clone();
            let ttl = expires.saturating_duration_since(Instant::now());
            (!ttl.is_zero()).then_some(CachedMessage { version, message, ttl })
        })
    }

    fn renew_lease(
        &self,
        node: NodeId,
        is_new: bool,
        lease: Duration,
    ) -> PendingReply<Result<Leases, Rejected>> {
        let link = self.link;
        self.execute(move |state| {
            let now = Instant::now();
            if !is_new && state.leases.get(&node).is_none_or(|until| *until <= now) {
                return Err(Rejected::LeaseExpired);
            }
            state.leases.insert(node, now + lease);
            state.links[link].node = Some(node);
            let (alive, expired) = state.leases.iter().partition::<Vec<_>, _>(|(_, until)| **until > now);
            let ids = |leases: Vec<(&NodeId, &Instant)>| leases.into_iter().map(|(node, _)| *node).collect();
            Ok(Leases { alive: ids(alive), expired: ids(expired) })
        })
    }

    fn remove_lease(&self, node: NodeId) -> PendingReply<()> {
        self.execute(move |state| {
            state.leases.remove(&node);
        })
    }

    fn nodes(&self, partition: u16) -> PendingReply<Vec<NodeId>> {
        self.execute(move |state| state.partitions[usize::from(partition)].groups.nodes().collect())
    }

    fn reap(&self, partition: u16, node: NodeId) -> PendingReply<bool> {
        self.execute(move |state| {
            let reaped = &mut state.partitions[usize::from(partition)];
            let mut transitions = Vec::new();
            reaped.groups.expire(node, &mut transitions);
            reaped.shares.values_mut().for_each(|shares| {
                shares.remove(&node);
            });
            state.publish_transitions(partition, transitions);
            false
        })
    }

    fn reserve(&self, quota: Group, node: NodeId, wanted: u64, max: u64) -> PendingReply<u64> {
        self.execute(move |state| {
            let shares = state.partition(&quota).shares.entry(quota).or_default();
            let current = shares.remove(&node).unwrap_or_default();
            let free = max.saturating_sub(shares.values().sum());
            // A share never shrinks on its own, even if the quota has become smaller.
            let share = wanted.min(free.max(current));
            shares.insert(node, share);
            share
        })
    }

    fn claim_records(&self, partition: u16, node: NodeId, lease: Duration) -> PendingReply<bool> {
        self.execute(move |state| {
            let (partition, now) = (&mut state.partitions[usize::from(partition)], Instant::now());
            let is_free = partition.reader.is_none_or(|(reader, until)| reader == node || until <= now);
            if is_free {
                partition.reader = Some((node, now + lease));
            }
            is_free
        })
    }

    fn release_records(&self, partition: u16, node: NodeId) -> PendingReply<()> {
        self.execute(move |state| {
            state.partitions[usize::from(partition)].reader.take_if(|(reader, _)| *reader == node);
        })
    }

    fn records(&self, partition: u16, after: Version, records_max: usize) -> PendingReply<Vec<Record>> {
        self.execute(move |state| {
            let records = state.partitions[usize::from(partition)].records.range(after.saturating_add(1)..);
            records.take(records_max).map(|(_, record)| record.clone()).collect()
        })
    }

    fn ack_records(&self, partition: u16, versions: Vec<Version>) -> PendingReply<()> {
        self.execute(move |state| {
            let records = &mut state.partitions[usize::from(partition)].records;
            versions.iter().for_each(|version| {
                records.remove(version);
            });
        })
    }
}
