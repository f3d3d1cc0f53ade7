//! One node among others: its lease, what it is in, what it says and hears.
//!
//! Three things run. The *pump* takes what the broker sends, in order, and gives it to its [`Audience`]. The *keeper*
//! holds the lease: it says all anew when the broker is found again, takes another name when the others gave this one up,
//! and looks after nodes that died. And whoever enters or leaves a group acts at once, under the lock of its part: what
//! that leads to is done before the lock is released, so that what an audience is told of a group comes in one order.
//!
//! Locks are taken in the order part, then whatever the audience locks; the audience never calls back from within.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::driver::{
    Answering, Arrivals, Driver, Incoming, Kept, Leases, Lost, PARTITIONS, Topic, partition_of,
};
use super::envelope::{self, Envelope};
use super::seat::{Effect, Seats, Ticket};
use super::truth::{Answer, Group, MemberId, MemberInfo, NodeId, Refusal, Version};
use crate::metrics::Metrics;

/// How long what takes.
#[derive(Clone, Debug)]
pub struct Timing {
    /// A node that has not renewed its lease for so long is dead to the others. Default 12 s.
    pub lease: Duration,
    /// It is renewed this often. Default 4 s.
    pub beat: Duration,
    /// A question to all nodes waits so long for those that do not answer. Default 1 s.
    pub answer: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { lease: Duration::from_secs(12), beat: Duration::from_secs(4), answer: Duration::from_secs(1) }
    }
}

/// An operation that failed although the broker was not lost is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// How often it is looked whether the broker tells of everything again.
const CATCHING_UP: Duration = Duration::from_millis(5);

/// All parts are looked through for what nodes without a lease have left, some at each beat.
const SWEPT_AT_A_BEAT: u16 = 8;

/// Who is told what happens in the cluster. Called in order for each group; never waits, and does not call the cluster.
pub trait Audience: Debug + Send + Sync {
    /// A connection has entered a group. `everyone` who is in it, by time of joining, if it is the first one here of a
    /// group that is mirrored.
    ///
    /// # Errors
    /// [`Unwanted`]: it leaves again at once.
    fn entered(
        &self,
        group: &Group,
        ticket: Ticket,
        everyone: Option<Vec<MemberInfo>>,
    ) -> Result<(), Unwanted>;

    /// No connection here has entered a group any more, or wants to.
    fn vacated(&self, group: &Group);

    /// Somebody came into a group that a connection here has entered.
    fn added(&self, group: &Group, member: &MemberId, info: &Bytes);

    /// Somebody is gone from it.
    fn removed(&self, group: &Group, member: &MemberId);

    /// A message came on a group's topic, with a number if it is kept. What comes back is waited for before the next.
    fn message(&self, group: &Group, number: Option<Version>, message: Bytes) -> Option<Room>;

    /// A question of another node, or a notice of any. It is obeyed at once; what is answered may take its time.
    fn asked(&self, question: Bytes) -> Reply;

    /// Whether what happens in a group is put down as records.
    fn is_noted(&self, group: &Group) -> bool;

    /// There may be new records in a part.
    fn recorded(&self, partition: u16);

    /// Which nodes there are, from time to time.
    fn alive(&self, nodes: &[NodeId]);

    /// The broker is lost, or is there again and knows all of this node.
    fn broker(&self, is_there: bool);
}

/// Who was to enter a group, as the member if it is one, and is not let in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unwanted(pub Option<MemberId>);

/// What is answered to a question.
pub type Reply = std::pin::Pin<Box<dyn Future<Output = Bytes> + Send>>;

/// Ready when there is room for more messages.
pub type Room = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module's documentation. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    driver: Arc<dyn Driver>,
    audience: OnceLock<Weak<dyn Audience>>,
    timing: Timing,
    parts: Vec<Mutex<Seats>>,
    identity: Mutex<NodeId>,
    /// Counts how often the broker was lost: what was asked before says nothing any more.
    epoch: AtomicU64,
    /// Whether the broker is there and this node has a lease.
    is_ready: AtomicBool,
    /// The others gave this node up.
    given_up: Notify,
    /// Questions that wait for answers.
    questions: Mutex<HashMap<u64, mpsc::UnboundedSender<(NodeId, Bytes)>>>,
    next_question: AtomicU64,
    metrics: Arc<Metrics>,
    runtime: Handle,
}

/// What nodes send each other outside of groups, first byte of a message on [`Topic::Nodes`] or [`Topic::Node`].
const QUESTION: u8 = b'?';
const NOTICE: u8 = b'.';
const ANSWER: u8 = b'!';

/// What `node` says outside of groups; the number is a question's, and that of its answers.
fn said(kind: u8, node: NodeId, number: u64, content: &[u8]) -> Bytes {
    envelope::message(&[&[kind], &node.0.to_be_bytes(), &number.to_be_bytes(), content])
}

fn random_node() -> NodeId {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    NodeId(u128::from_be_bytes(bytes))
}

impl Cluster {
    /// A node that comes to others over `driver`. Nothing happens before [`Cluster::run`].
    #[must_use]
    pub fn new(driver: Arc<dyn Driver>, timing: Timing, metrics: Arc<Metrics>) -> Self {
        let node = random_node();
        let lost_seats = || {
            let mut seats = Seats::new(node);
            seats.lost();
            Mutex::new(seats)
        };
        Self(Arc::new(Inner {
            driver,
            audience: OnceLock::new(),
            timing,
            parts: (0..PARTITIONS).map(|_| lost_seats()).collect(),
            identity: Mutex::new(node),
            epoch: AtomicU64::new(0),
            is_ready: AtomicBool::new(false),
            given_up: Notify::new(),
            questions: Mutex::default(),
            next_question: AtomicU64::new(0),
            metrics,
            runtime: Handle::current(),
        }))
    }

    /// Who hears what happens. To be called once, before [`Cluster::run`].
    pub fn tell(&self, audience: &Arc<impl Audience + 'static>) {
        let audience: Weak<dyn Audience> = Arc::downgrade(&(Arc::clone(audience) as Arc<dyn Audience>));
        let _ = self.0.audience.set(audience);
    }

    /// This node's name, which it changes when the others have given it up.
    #[must_use]
    pub fn node(&self) -> NodeId {
        *self.0.identity.lock()
    }

    /// Whether the broker is there, and knows this node.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.is_ready.load(Ordering::SeqCst)
    }

    /// What a node asks of the broker by itself: records and shares.
    #[must_use]
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.0.driver
    }

    /// How long what takes.
    #[must_use]
    pub fn timing(&self) -> &Timing {
        &self.0.timing
    }

    /// Pumps and keeps the lease, until the driver's queue ends.
    pub async fn run(&self, mut arrivals: Arrivals) {
        let (found, hears) = mpsc::unbounded_channel();
        let pump = async {
            while let Some(incoming) = arrivals.recv().await {
                match incoming {
                    Incoming::Message(topic, bytes) => {
                        if let Some(room) = self.message(&topic, &bytes) {
                            room.await;
                        }
                    }
                    Incoming::Lost => {
                        self.lost();
                        let _ = found.send(false);
                    }
                    Incoming::Found => {
                        let _ = found.send(true);
                    }
                }
            }
        };
        tokio::select! {
            () = pump => {}
            () = self.hold_lease(hears) => {}
        }
    }

    fn audience(&self) -> Option<Arc<dyn Audience>> {
        self.0.audience.get()?.upgrade()
    }

    // ---- what the audience does ----

    /// Acts on a group under the lock of its part, and does what follows.
    pub fn act<T>(&self, group: &Group, act: impl FnOnce(&mut Acting<'_>) -> T) -> T {
        let seats = self.part(group).lock();
        let mut acting = Acting { cluster: self, seats };
        let done = act(&mut acting);
        acting.follow();
        done
    }

    fn part(&self, group: &str) -> &Mutex<Seats> {
        &self.0.parts[usize::from(partition_of(group))]
    }

    /// Sends messages to the nodes that listen to their groups, this one among them, those of a group in this order.
    ///
    /// # Errors
    /// [`Lost`]: perhaps none of them was sent.
    pub fn publish(&self, messages: impl IntoIterator<Item = (Group, Bytes)>) -> Answering<()> {
        if !self.is_ready() {
            return Box::pin(std::future::ready(Err(Lost)));
        }
        let enclosed =
            |(group, message): (Group, Bytes)| (Topic::Group(group), envelope::message(&[&message]));
        self.0.driver.publish(messages.into_iter().map(enclosed).collect())
    }

    /// As [`Cluster::publish`], and keeps the message (without an envelope) for who comes later.
    pub fn keep(&self, group: Group, message: Bytes, ttl: Duration) -> Answering<()> {
        if !self.is_ready() {
            return Box::pin(std::future::ready(Err(Lost)));
        }
        self.0.driver.keep(group, message, ttl)
    }

    /// What is kept of a group.
    pub fn kept(&self, group: Group) -> Answering<Option<Kept>> {
        self.0.driver.kept(group)
    }

    /// A group as it is for all nodes.
    pub fn look(&self, group: Group) -> Answering<Answer> {
        self.0.driver.look(group)
    }

    /// The occupied groups whose names start with `prefix`, with the number of their members.
    pub fn occupied(&self, prefix: &str) -> Answering<Vec<(Group, usize)>> {
        self.0.driver.occupied(prefix)
    }

    /// Asks all nodes but this one. Nodes that died, or do not answer in time, are not waited for.
    ///
    /// # Errors
    /// [`Lost`]
    pub async fn ask(&self, question: &[u8]) -> Result<Vec<Bytes>, Lost> {
        let (node, lease) = (self.node(), self.0.timing.lease);
        // Who is there now, not at the last beat.
        let leases = self.0.driver.renew(node, false, lease).await?.map_err(|_| Lost)?;
        let mut missing: HashSet<_> = leases.alive.into_iter().filter(|&other| other != node).collect();
        let mut answers = Vec::with_capacity(missing.len());
        if missing.is_empty() {
            return Ok(answers);
        }
        let number = self.0.next_question.fetch_add(1, Ordering::Relaxed);
        let (sender, mut incoming) = mpsc::unbounded_channel();
        let _asking = Asking::new(self, number, sender);
        let message = said(QUESTION, node, number, question);
        self.0.driver.publish(vec![(Topic::Nodes, message)]).await?;
        let answering = async {
            while !missing.is_empty() {
                let Some((other, answer)) = incoming.recv().await else { break };
                if missing.remove(&other) {
                    answers.push(answer);
                }
            }
        };
        // Who does not answer has nothing that could be counted on.
        let _ = timeout(self.0.timing.answer, answering).await;
        Ok(answers)
    }

    /// Says something to all nodes, this one among them: [`Audience::asked`], without an answer.
    pub fn announce(&self, notice: &[u8]) -> Answering<()> {
        if !self.is_ready() {
            return Box::pin(std::future::ready(Err(Lost)));
        }
        self.0.driver.publish(vec![(Topic::Nodes, said(NOTICE, self.node(), 0, notice))])
    }

    /// Leaves the cluster, once everything else has left its groups and the broker knows: waits for that until
    /// `deadline`; after it, the others find out when the lease has run out.
    pub async fn leave(&self, deadline: Instant) {
        let is_empty = || self.0.parts.iter().all(|part| part.lock().is_empty());
        while self.is_ready() && !is_empty() && Instant::now() < deadline {
            sleep(Duration::from_millis(10)).await;
        }
        if self.is_ready() && is_empty() {
            // Nothing is left of it but its numbers and its shares of what is counted.
            let (driver, node) = (&self.0.driver, self.node());
            let reaping: Vec<_> = (0..PARTITIONS).map(|partition| driver.reap(partition, node)).collect();
            let forgetting = async {
                for reaped in reaping {
                    reaped.await?;
                }
                driver.forget(node).await
            };
            let _ = timeout(Duration::from_secs(1), forgetting).await;
        }
    }

    // ---- what the broker sends ----

    fn message(&self, topic: &Topic, bytes: &Bytes) -> Option<Room> {
        let audience = self.audience()?;
        let group = match topic {
            Topic::Group(group) => Some(group),
            Topic::Nodes | Topic::Node(_) => None,
        };
        match (group, envelope::open(group, bytes)) {
            (Some(group), Some(Envelope::Message(message))) => return audience.message(group, None, message),
            (Some(group), Some(Envelope::Kept(number, message))) => {
                return audience.message(group, Some(number), message);
            }
            (Some(group), Some(Envelope::Changed(transition))) => {
                self.act(group, |acting| acting.seats.changed(transition));
            }
            (None, Some(Envelope::Records(partition))) if partition < PARTITIONS => {
                audience.recorded(partition);
            }
            (None, Some(Envelope::Message(message))) => {
                if self.spoken(&*audience, &message).is_none() {
                    self.dropped();
                }
            }
            (_, Some(_) | None) => self.dropped(),
        }
        None
    }

    fn dropped(&self) {
        self.0.metrics.cluster.dropped.count();
    }

    /// Answers a question of another node, or takes an answer.
    fn spoken(&self, audience: &dyn Audience, message: &Bytes) -> Option<()> {
        let (&[kind], rest) = message.split_first_chunk::<1>()?;
        let (from, rest) = rest.split_first_chunk::<16>()?;
        let (number, _) = rest.split_first_chunk::<8>()?;
        let from = NodeId(u128::from_be_bytes(*from));
        let content = message.slice(1 + 16 + 8..);
        match kind {
            QUESTION if from == self.node() => Some(()),
            QUESTION => {
                let (reply, number, cluster) =
                    (audience.asked(content), u64::from_be_bytes(*number), self.clone());
                self.0.runtime.spawn(async move {
                    let message = said(ANSWER, cluster.node(), number, &reply.await);
                    let _ = cluster.0.driver.publish(vec![(Topic::Node(from), message)]).await;
                });
                Some(())
            }
            NOTICE => {
                drop(audience.asked(content));
                Some(())
            }
            ANSWER => {
                let number = u64::from_be_bytes(*number);
                // Nobody waits for one that is late.
                if let Some(question) = self.0.questions.lock().get(&number) {
                    let _ = question.send((from, content));
                }
                Some(())
            }
            _ => None,
        }
    }

    fn lost(&self) {
        self.0.epoch.fetch_add(1, Ordering::SeqCst);
        self.0.is_ready.store(false, Ordering::SeqCst);
        self.0.metrics.cluster.disconnects.count();
        for part in &self.0.parts {
            part.lock().lost();
        }
        if let Some(audience) = self.audience() {
            audience.broker(false);
        }
    }

    // ---- the lease ----

    /// Keeps this node alive, and looks after those that are not. Ends when `found` does.
    async fn hold_lease(&self, mut found: mpsc::UnboundedReceiver<bool>) {
        let mut is_new = true;
        let mut sweeping = Sweeping::default();
        let mut is_there = false;
        loop {
            // Only the last word counts.
            while let Ok(now_there) = found.try_recv() {
                is_there = now_there;
            }
            if !is_there {
                match found.recv().await {
                    Some(now_there) => is_there = now_there,
                    None => return,
                }
                continue;
            }
            if self.settle_in(&mut is_new).await.is_err() {
                // It is about to be said that the broker is lost; if it is not, this is tried again.
                tokio::select! {
                    now_there = found.recv() => match now_there {
                        Some(now_there) => is_there = now_there,
                        None => return,
                    },
                    () = sleep(RETRY) => {}
                }
                continue;
            }
            loop {
                tokio::select! {
                    now_there = found.recv() => {
                        match now_there {
                            Some(now_there) => is_there = now_there,
                            None => return,
                        }
                        break;
                    }
                    () = self.0.given_up.notified() => {
                        self.given_up(&mut is_new);
                        break;
                    }
                    () = sleep(self.0.timing.beat) => match self.beat(&mut sweeping).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => {
                            self.given_up(&mut is_new);
                            break;
                        }
                        // As above.
                        Err(Lost) => {}
                    }
                }
            }
        }
    }

    fn given_up(&self, is_new: &mut bool) {
        self.0.metrics.cluster.lease_expirations.count();
        warn!(node = %self.node(), "the other nodes have given this one up; it comes back under another name");
        *is_new = true;
    }

    /// Gets a lease, under another name if need be, and has everything said that this node has.
    async fn settle_in(&self, is_new: &mut bool) -> Result<(), Lost> {
        let epoch = self.0.epoch.load(Ordering::SeqCst);
        let (driver, lease) = (&self.0.driver, self.0.timing.lease);
        let before = self.node();
        let mut node = before;
        if *is_new || driver.renew(node, false, lease).await?.is_err() {
            node = random_node();
            driver.renew(node, true, lease).await?.map_err(|_| Lost)?;
            *is_new = false;
        }
        driver.listen(Topic::Nodes).await?;
        driver.listen(Topic::Node(node)).await?;
        if node != before {
            driver.ignore(Topic::Node(before));
            *self.0.identity.lock() = node;
        }
        for part in &self.0.parts {
            {
                let mut acting = Acting { cluster: self, seats: part.lock() };
                if self.0.epoch.load(Ordering::SeqCst) != epoch {
                    return Err(Lost);
                }
                // Not only when the name is new: the broker may have been lost in the middle of this the last time.
                if acting.seats.node() != node {
                    acting.seats.rename(node);
                }
                acting.seats.found();
                acting.follow();
            }
            // All parts together may have hundreds of thousands of groups.
            yield_now().await;
        }
        // What came of a notice that was for the name before is done.
        let _ = timeout(Duration::ZERO, self.0.given_up.notified()).await;
        self.hears_everything(epoch).await?;
        self.0.is_ready.store(true, Ordering::SeqCst);
        if self.0.epoch.load(Ordering::SeqCst) != epoch {
            self.0.is_ready.store(false, Ordering::SeqCst);
            return Err(Lost);
        }
        info!(%node, "this node is one of the cluster");
        if let Some(audience) = self.audience() {
            audience.broker(true);
        }
        Ok(())
    }

    /// Waits until the broker tells of all groups again that it told of before: what is published through this node
    /// from then on reaches its own connections.
    async fn hears_everything(&self, epoch: u64) -> Result<(), Lost> {
        let mut renewed = Instant::now();
        while !self.0.parts.iter().all(|part| part.lock().hears_everything()) {
            sleep(CATCHING_UP).await;
            if self.0.epoch.load(Ordering::SeqCst) != epoch {
                return Err(Lost);
            }
            if renewed.elapsed() >= self.0.timing.beat {
                self.0.driver.renew(self.node(), false, self.0.timing.lease).await?.map_err(|_| Lost)?;
                renewed = Instant::now();
            }
        }
        Ok(())
    }

    /// Renews the lease, and reaps who has none any more.
    async fn beat(&self, sweeping: &mut Sweeping) -> Result<Result<(), Refusal>, Lost> {
        let driver = &self.0.driver;
        // Read before the leases are: who comes in between has a lease before anything else.
        let mut seen = HashSet::new();
        for _ in 0..SWEPT_AT_A_BEAT {
            seen.extend(driver.nodes(sweeping.next).await?);
            sweeping.next = (sweeping.next + 1) % PARTITIONS;
        }
        let node = self.node();
        let Leases { mut alive, expired } = match driver.renew(node, false, self.0.timing.lease).await? {
            Ok(leases) => leases,
            Err(refusal) => return Ok(Err(refusal)),
        };
        // The same order on all nodes.
        alive.sort_unstable();
        if let Some(audience) = self.audience() {
            audience.alive(&alive);
        }
        for part in &self.0.parts {
            let mut acting = Acting { cluster: self, seats: part.lock() };
            acting.seats.beat();
            acting.follow();
        }
        let mut dead: HashSet<NodeId> = expired.into_iter().collect();
        dead.extend(seen.into_iter().filter(|seen| !alive.contains(seen)));
        // Remains are found in one part, and the next beat looks into others.
        dead.extend(sweeping.seen.iter().filter(|seen| !alive.contains(seen)));
        // One of the nodes is the first to do it; the others, should it still be there at their next beat.
        let responsible = |dead: &NodeId| alive.get((dead.0 % alive.len() as u128) as usize) == Some(&node);
        let (now, later): (HashSet<_>, HashSet<_>) =
            dead.into_iter().partition(|dead| responsible(dead) || sweeping.seen.contains(dead));
        sweeping.seen = later;
        let begun = Instant::now();
        for dead in now {
            sweeping.seen.insert(dead);
            for partition in 0..PARTITIONS {
                while driver.reap(partition, dead).await? {
                    // This node has a lease of its own to renew. The next beat goes on.
                    if begun.elapsed() >= self.0.timing.beat {
                        return Ok(Ok(()));
                    }
                }
            }
            driver.forget(dead).await?;
            sweeping.seen.remove(&dead);
            self.0.metrics.cluster.nodes_removed.count();
            info!(node = %dead, "a node that was gone without a word has been cleared away");
        }
        Ok(Ok(()))
    }
}

/// What is known between the beats.
#[derive(Debug, Default)]
struct Sweeping {
    next: u16,
    /// Dead nodes that another one should have reaped, or that this one has not done with.
    seen: HashSet<NodeId>,
}

/// A question that waits for answers, until it is dropped.
struct Asking<'a> {
    cluster: &'a Cluster,
    number: u64,
}

impl<'a> Asking<'a> {
    fn new(cluster: &'a Cluster, number: u64, answers: mpsc::UnboundedSender<(NodeId, Bytes)>) -> Self {
        cluster.0.questions.lock().insert(number, answers);
        Self { cluster, number }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.cluster.0.questions.lock().remove(&self.number);
    }
}

/// A part of the cluster, locked.
#[derive(Debug)]
pub struct Acting<'a> {
    cluster: &'a Cluster,
    seats: MutexGuard<'a, Seats>,
}

impl Acting<'_> {
    /// A connection wants to enter a group: see [`Seats::enter`]. [`Audience::entered`] tells when it has, which may be
    /// before [`Cluster::act`] returns.
    pub fn enter(&mut self, group: &Group, is_mirrored: bool, member: Option<MemberInfo>, ticket: Ticket) {
        if self.seats.enter(group, is_mirrored, member, ticket) {
            self.seats.say_entered(group, ticket);
        }
    }

    /// A connection leaves a group, or does not want to enter it any more.
    pub fn leave(&mut self, group: &Group, member: Option<&MemberId>, ticket: Ticket) {
        self.seats.leave(group, member, ticket);
        if !self.seats.has(group)
            && let Some(audience) = self.cluster.audience()
        {
            audience.vacated(group);
        }
    }

    /// See [`Seats::others`].
    #[must_use]
    pub fn others(&self, group: &Group, but: &MemberId) -> Option<usize> {
        self.seats.others(group, but)
    }

    /// See [`Seats::before`].
    #[must_use]
    pub fn before(&self, group: &Group, member: &MemberId) -> Option<usize> {
        self.seats.before(group, member)
    }

    /// Does all that is to be done.
    fn follow(&mut self) {
        let Some(audience) = self.cluster.audience() else { return };
        let mut everyone = None;
        while let Some(effect) = self.seats.effect() {
            match effect {
                Effect::Listen(group) => self.listen(group),
                Effect::Ignore(group) => self.cluster.0.driver.ignore(Topic::Group(group)),
                Effect::Update(update) => {
                    let (group, number) = (Arc::clone(&update.group), update.number);
                    let is_noted = audience.is_noted(&group);
                    let answering = self.cluster.0.driver.update(update, is_noted);
                    self.later(answering, group, move |seats, group, answer| match answer {
                        Ok(answer) => seats.answered(group, number, answer),
                        Err(Lost) => seats.unanswered(group, number),
                    });
                }
                Effect::Everyone(_, all) => everyone = Some(all),
                Effect::Entered(group, ticket) => {
                    let entered = audience.entered(&group, ticket, everyone.take());
                    if let Err(Unwanted(member)) = entered {
                        self.leave(&group, member.as_ref(), ticket);
                    }
                }
                Effect::Added(group, member, info) => audience.added(&group, &member, &info),
                Effect::Removed(group, member) => audience.removed(&group, &member),
                Effect::GivenUp => self.cluster.0.given_up.notify_one(),
            }
        }
    }

    fn listen(&self, group: Group) {
        let listening = self.cluster.0.driver.listen(Topic::Group(Arc::clone(&group)));
        self.later(listening, group, |seats, group, answer| match answer {
            Ok(()) => seats.listening(group),
            Err(Lost) => seats.unheard(group),
        });
    }

    /// Takes up the answer to what was asked of a group, unless the broker was lost meanwhile.
    fn later<T: Send + 'static>(
        &self,
        answering: Answering<T>,
        group: Group,
        take: impl FnOnce(&mut Seats, &Group, Result<T, Lost>) + Send + 'static,
    ) {
        let cluster = self.cluster.clone();
        let epoch = cluster.0.epoch.load(Ordering::SeqCst);
        self.cluster.0.runtime.spawn(async move {
            let answer = answering.await;
            if answer.is_err() {
                // It is about to be said that the broker is lost, and all of this starts anew. If not, again.
                sleep(RETRY).await;
            }
            let mut acting = Acting { seats: cluster.part(&group).lock(), cluster: &cluster };
            if cluster.0.epoch.load(Ordering::SeqCst) == epoch {
                take(&mut acting.seats, &group, answer);
                acting.follow();
            }
        });
    }
}
