//! A broker for nodes that live in one process: what Redis does, by [`Truth`] and a few maps. Tests run whole clusters
//! over it, and cut nodes off, let it forget everything, and hold its answers back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::driver::{
    self, Answering, Arrivals, Arriving, Driver, Incoming, Kept, Leases, Lost, PARTITIONS, Record, Topic,
    partition_of,
};
use super::envelope;
use super::truth::{Answer, Group, NodeId, Refusal, Transition, Truth, Update, Version};

/// See the module's documentation. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    started: Instant,
    parts: Vec<Part>,
    leases: BTreeMap<NodeId, Instant>,
    links: Vec<Link>,
}

#[derive(Debug, Default)]
struct Part {
    truth: Truth,
    noted: HashSet<Group>,
    kept: HashMap<Group, (Version, Bytes, Instant)>,
    shares: HashMap<Group, HashMap<NodeId, u64>>,
    reader: Option<(NodeId, Instant)>,
    records: BTreeMap<Version, Record>,
    last_kept: Version,
}

/// What one node's driver has.
#[derive(Debug)]
struct Link {
    arrivals: Arriving,
    topics: HashSet<Topic>,
    is_cut: bool,
    /// How long its answers take.
    delay: Duration,
    /// Whose it is: who renewed a lease over it.
    node: Option<NodeId>,
}

/// One node's way to the broker.
#[derive(Debug)]
pub struct MemoryDriver {
    broker: Memory,
    link: usize,
}

impl Default for Memory {
    fn default() -> Self {
        let parts = (0..PARTITIONS).map(|_| Part::default()).collect();
        Self(Arc::new(Mutex::new(State {
            started: Instant::now(),
            parts,
            leases: BTreeMap::new(),
            links: Vec::new(),
        })))
    }
}

impl Memory {
    /// A driver for one node, which has found the broker.
    #[must_use]
    pub fn driver(&self) -> (Arc<MemoryDriver>, Arrivals) {
        let (arrivals, queue) = driver::queue();
        arrivals.push(Incoming::Found);
        let mut state = self.0.lock();
        let link =
            Link { arrivals, topics: HashSet::new(), is_cut: false, delay: Duration::ZERO, node: None };
        state.links.push(link);
        (Arc::new(MemoryDriver { broker: self.clone(), link: state.links.len() - 1 }), queue)
    }

    /// The driver that was made as the `nth`, from 0, for a test to do something to it.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn driver_of(&self, nth: usize) -> MemoryDriver {
        assert!(nth < self.0.lock().links.len(), "so many drivers there are");
        MemoryDriver { broker: self.clone(), link: nth }
    }

    /// Forgets everything, as by `FLUSHALL`.
    pub fn forget_all(&self) {
        let mut state = self.0.lock();
        // What comes afterwards has higher versions, as those of a broker with a clock have.
        let version = state.parts.iter().map(|part| part.truth.version()).max().unwrap_or_default() + 1000;
        let part = || Part { truth: Truth::new(version), last_kept: version, ..Part::default() };
        state.parts = (0..PARTITIONS).map(|_| part()).collect();
        state.leases.clear();
    }

    /// A group as it is.
    #[must_use]
    pub fn look(&self, group: &Group) -> Answer {
        self.0.lock().part(group).truth.look(group)
    }

    /// Whether nothing is left of any node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lock().parts.iter().all(|part| part.truth.groups().next().is_none())
    }
}

impl MemoryDriver {
    /// Cuts the node off, as a network does.
    pub fn cut(&self) {
        let link = &mut self.broker.0.lock().links[self.link];
        if !link.is_cut {
            link.is_cut = true;
            link.topics.clear();
            link.arrivals.push(Incoming::Lost);
        }
    }

    /// Ends that.
    pub fn mend(&self) {
        let link = &mut self.broker.0.lock().links[self.link];
        if link.is_cut {
            link.is_cut = false;
            link.arrivals.push(Incoming::Found);
        }
    }

    /// The node's lease runs out now.
    pub fn expire(&self) {
        let mut state = self.broker.0.lock();
        if let Some(node) = state.links[self.link].node
            && let Some(until) = state.leases.get_mut(&node)
        {
            *until = Instant::now();
        }
    }

    /// From now on answers take so long; what is told does not.
    pub fn delay(&self, delay: Duration) {
        self.broker.0.lock().links[self.link].delay = delay;
    }

    /// Carries `act` out now, and answers with what it made.
    fn ask<T: Send + 'static>(&self, act: impl FnOnce(&mut State) -> T) -> Answering<T> {
        let mut state = self.broker.0.lock();
        if state.links[self.link].is_cut {
            return Box::pin(std::future::ready(Err(Lost)));
        }
        let made = act(&mut state);
        let delay = state.links[self.link].delay;
        if delay.is_zero() {
            return Box::pin(std::future::ready(Ok(made)));
        }
        let (broker, link) = (self.broker.clone(), self.link);
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            if broker.0.lock().links[link].is_cut { Err(Lost) } else { Ok(made) }
        })
    }
}

impl State {
    fn part(&mut self, group: &str) -> &mut Part {
        &mut self.parts[usize::from(partition_of(group))]
    }

    fn send(&mut self, topic: &Topic, message: &Bytes) {
        for link in self.links.iter().filter(|link| link.topics.contains(topic)) {
            link.arrivals.push(Incoming::Message(topic.clone(), message.clone()));
        }
    }

    /// Tells what has changed in a part, and puts down what is noted.
    fn tell(&mut self, partition: u16, transitions: Vec<Transition>) {
        let time_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        for transition in transitions {
            self.send(&Topic::Group(Arc::clone(&transition.group)), &envelope::changed(&transition));
            let part = &mut self.parts[usize::from(partition)];
            if part.noted.contains(&transition.group) {
                part.records.insert(transition.version, Record { transition, time_ms });
                let reader = part.reader;
                if let Some((reader, _)) = reader {
                    self.send(&Topic::Node(reader), &envelope::records(partition));
                }
            }
        }
    }
}

impl Driver for MemoryDriver {
    fn update(&self, update: Update, is_noted: bool) -> Answering<Result<Answer, Refusal>> {
        self.ask(move |state| {
            let partition = partition_of(&update.group);
            let part = state.part(&update.group);
            if is_noted {
                part.noted.insert(Arc::clone(&update.group));
            }
            let mut transitions = Vec::new();
            let answer = part.truth.update(&update, &mut transitions);
            state.tell(partition, transitions);
            answer
        })
    }

    fn look(&self, group: Group) -> Answering<Answer> {
        self.ask(move |state| state.part(&group).truth.look(&group))
    }

    fn occupied(&self, prefix: &str) -> Answering<Vec<(Group, usize)>> {
        self.ask(|state| {
            let mut found = Vec::new();
            for part in &state.parts {
                for group in part.truth.groups().filter(|group| group.starts_with(prefix)) {
                    let answer = part.truth.look(group);
                    if answer.occupied {
                        found.push((Arc::clone(group), answer.members.map_or(0, |members| members.len())));
                    }
                }
            }
            found
        })
    }

    fn publish(&self, messages: Vec<(Topic, Bytes)>) -> Answering<()> {
        self.ask(move |state| messages.iter().for_each(|(topic, message)| state.send(topic, message)))
    }

    fn keep(&self, group: Group, message: Bytes, ttl: Duration) -> Answering<()> {
        self.ask(move |state| {
            let part = state.part(&group);
            part.last_kept += 1;
            let number = part.last_kept;
            let envelope = envelope::kept(number, &message);
            part.kept.insert(Arc::clone(&group), (number, message, Instant::now() + ttl));
            state.send(&Topic::Group(group), &envelope);
        })
    }

    fn kept(&self, group: Group) -> Answering<Option<Kept>> {
        self.ask(move |state| {
            let (number, message, expires) = state.part(&group).kept.get(&group)?.clone();
            let ttl = expires.saturating_duration_since(Instant::now());
            (!ttl.is_zero()).then_some(Kept { number, message, ttl })
        })
    }

    fn listen(&self, topic: Topic) -> Answering<()> {
        let link = self.link;
        self.ask(move |state| {
            state.links[link].topics.insert(topic);
        })
    }

    fn ignore(&self, topic: Topic) {
        self.broker.0.lock().links[self.link].topics.remove(&topic);
    }

    fn renew(&self, node: NodeId, is_new: bool, lease: Duration) -> Answering<Result<Leases, Refusal>> {
        let link = self.link;
        self.ask(move |state| {
            let now = Instant::now();
            if !is_new && state.leases.get(&node).is_none_or(|until| *until <= now) {
                return Err(Refusal::GivenUp);
            }
            state.leases.insert(node, now + lease);
            state.links[link].node = Some(node);
            let (alive, expired) = state.leases.iter().partition::<Vec<_>, _>(|(_, until)| **until > now);
            let ids = |leases: Vec<(&NodeId, &Instant)>| leases.into_iter().map(|(node, _)| *node).collect();
            Ok(Leases { alive: ids(alive), expired: ids(expired) })
        })
    }

    fn nodes(&self, partition: u16) -> Answering<Vec<NodeId>> {
        self.ask(move |state| state.parts[usize::from(partition)].truth.nodes().collect())
    }

    fn reap(&self, partition: u16, node: NodeId) -> Answering<bool> {
        self.ask(move |state| {
            let part = &mut state.parts[usize::from(partition)];
            let mut transitions = Vec::new();
            part.truth.give_up(node, &mut transitions);
            part.shares.values_mut().for_each(|shares| {
                shares.remove(&node);
            });
            state.tell(partition, transitions);
            false
        })
    }

    fn forget(&self, node: NodeId) -> Answering<()> {
        self.ask(move |state| {
            state.leases.remove(&node);
        })
    }

    fn reserve(&self, what: Group, node: NodeId, wanted: u64, max: u64) -> Answering<u64> {
        self.ask(move |state| {
            let shares = state.part(&what).shares.entry(what).or_default();
            let has = shares.remove(&node).unwrap_or_default();
            let free = max.saturating_sub(shares.values().sum());
            // What it has is not taken from it, should there be too much already.
            let share = wanted.min(free.max(has));
            shares.insert(node, share);
            share
        })
    }

    fn claim(&self, partition: u16, node: NodeId, lease: Duration) -> Answering<bool> {
        self.ask(move |state| {
            let (part, now) = (&mut state.parts[usize::from(partition)], Instant::now());
            let is_free = part.reader.is_none_or(|(reader, until)| reader == node || until <= now);
            if is_free {
                part.reader = Some((node, now + lease));
            }
            is_free
        })
    }

    fn unclaim(&self, partition: u16, node: NodeId) -> Answering<()> {
        self.ask(move |state| {
            state.parts[usize::from(partition)].reader.take_if(|(reader, _)| *reader == node);
        })
    }

    fn records(&self, partition: u16, after: Version, records_max: usize) -> Answering<Vec<Record>> {
        self.ask(move |state| {
            let records = state.parts[usize::from(partition)].records.range(after.saturating_add(1)..);
            records.take(records_max).map(|(_, record)| record.clone()).collect()
        })
    }

    fn settle(&self, partition: u16, versions: Vec<Version>) -> Answering<()> {
        self.ask(move |state| {
            let records = &mut state.parts[usize::from(partition)].records;
            versions.iter().for_each(|version| {
                records.remove(version);
            });
        })
    }
}
