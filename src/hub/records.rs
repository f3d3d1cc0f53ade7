//! Who went and who came, for receivers of webhooks, in a cluster: what the broker has put down is read by one node at a
//! time for each part of all groups, and handed to the webhooks room; when that has dealt with a record, it is struck out.
//!
//! The parts are shared out among the nodes: each claims its share, and renews the claims while it lives. What a node
//! had in hand when it died is read again, from the oldest on, by who claims the part next. So a record is told at least
//! once, under an id that is the same each time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Shared;
use super::clustered::{ONLINE, Subject};
use crate::cluster::driver::{Lost, PARTITIONS, Record};
use crate::cluster::node::Cluster;
use crate::cluster::truth::{Change, Version};
use crate::protocol::UserId;
use crate::webhooks::{AckToken, Event, EventId, Resolution};

/// Records of one part that may be in hand at once; the rest wait in the broker.
const IN_HAND_MAX: usize = 1000;

/// What was not to be had from the broker is asked for again after this.
const RETRY: Duration = Duration::from_secs(1);

/// Parts beyond its share that a node gives away at a beat.
const GIVEN_AWAY: usize = 4;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Records {
    readers: Vec<Arc<Reader>>,
    /// How many nodes there are.
    nodes: AtomicUsize,
    /// The broker is there.
    found: Notify,
    /// Cancelled when the node goes away: what is in hand has ended, and the parts are for others.
    closing: CancellationToken,
    tasks: TaskTracker,
}

/// One part, as long as this node reads it.
#[derive(Debug, Default)]
struct Reader {
    /// There may be something to read.
    wake: Notify,
    /// Records that were handed to the webhooks room and have not ended.
    in_hand: AtomicUsize,
    /// Another node is to read it: nothing new is taken.
    is_spare: AtomicBool,
    /// The broker was lost, so that what it has is read from the oldest on, but for what is in hand.
    is_anew: AtomicBool,
}

/// A part that this node has claimed.
struct Claimed {
    /// When that was asked for the last time with success.
    at: Instant,
    reading: JoinHandle<()>,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            readers: (0..PARTITIONS).map(|_| Arc::default()).collect(),
            nodes: AtomicUsize::new(1),
            found: Notify::new(),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }
}

impl Records {
    /// There may be something to read in a part.
    pub(super) fn wake(&self, partition: u16) {
        if let Some(reader) = self.readers.get(usize::from(partition)) {
            reader.wake.notify_one();
        }
    }

    /// The broker is there, with whatever it has.
    pub(super) fn found(&self) {
        self.found.notify_one();
    }

    /// So many nodes share the parts.
    pub(super) fn shared_by(&self, nodes: usize) {
        self.nodes.store(nodes.max(1), Ordering::Relaxed);
    }

    /// Claims this node's share of the parts and reads them, until it goes away.
    pub(super) async fn read(&self, hub: &Arc<Shared>, cluster: &Cluster) {
        // Whoever closes waits for this.
        let _token = self.tasks.token();
        let mut claimed: HashMap<u16, Claimed> = HashMap::new();
        let beat = cluster.timing().beat;
        while !self.closing.is_cancelled() {
            // Who could not renew a claim is not the reader any more, whatever it thinks: another one may have been.
            claimed.retain(|_, claim| {
                let is_ours = claim.at.elapsed() < cluster.timing().lease;
                if !is_ours {
                    claim.reading.abort();
                }
                is_ours
            });
            if cluster.is_ready() {
                self.claim(hub, cluster, &mut claimed).await;
            }
            // What the reader was told of may have been lost on its way.
            self.readers.iter().for_each(|reader| reader.wake.notify_one());
            tokio::select! {
                () = self.closing.cancelled() => {}
                () = self.found.notified() => {
                    // It may be another one, or have forgotten.
                    self.readers.iter().for_each(|reader| reader.is_anew.store(true, Ordering::Relaxed));
                }
                () = sleep(beat) => {}
            }
        }
        let node = cluster.node();
        let mut unclaiming = Vec::with_capacity(claimed.len());
        for (partition, claim) in claimed {
            // It ends when it has struck out what it can.
            let _ = claim.reading.await;
            unclaiming.push(cluster.driver().unclaim(partition, node));
        }
        for unclaimed in unclaiming {
            let _ = unclaimed.await;
        }
    }

    async fn claim(&self, hub: &Arc<Shared>, cluster: &Cluster, claimed: &mut HashMap<u16, Claimed>) {
        let (node, lease) = (cluster.node(), cluster.timing().lease);
        let share = usize::from(PARTITIONS).div_ceil(self.nodes.load(Ordering::Relaxed));
        let first = (node.0 % u128::from(PARTITIONS)) as u16;
        let mut given_away = 0;
        for partition in (0..PARTITIONS).map(|at| (first + at) % PARTITIONS) {
            let reader = &self.readers[usize::from(partition)];
            let claim = claimed.get(&partition);
            let has_ended = claim.is_some_and(|claim| claim.reading.is_finished());
            // Who is to give a part away takes nothing new of it until nothing is in hand.
            let is_spare = claim.is_some() && claimed.len() > share && given_away < GIVEN_AWAY;
            given_away += usize::from(is_spare);
            reader.is_spare.store(is_spare, Ordering::Relaxed);
            if has_ended || (is_spare && reader.in_hand.load(Ordering::Relaxed) == 0) {
                if let Some(claim) = claimed.remove(&partition) {
                    claim.reading.abort();
                }
                let _ = cluster.driver().unclaim(partition, node).await;
                continue;
            }
            // Who goes away leaves the others what it has not yet.
            let takes = claimed.len() < share && !hub.draining.load(Ordering::SeqCst);
            if claim.is_none() && !takes {
                continue;
            }
            let asked = Instant::now();
            match cluster.driver().claim(partition, node, lease).await {
                Ok(true) => match claimed.get_mut(&partition) {
                    Some(claim) => claim.at = asked,
                    None => {
                        let reading = Arc::clone(reader).read(
                            Arc::clone(hub),
                            cluster.clone(),
                            partition,
                            self.closing.clone(),
                        );
                        claimed.insert(partition, Claimed { at: asked, reading: self.tasks.spawn(reading) });
                    }
                },
                Ok(false) => {
                    if let Some(claim) = claimed.remove(&partition) {
                        claim.reading.abort();
                    }
                }
                Err(Lost) => return,
            }
        }
    }

    /// Strikes out what has ended, and leaves the parts to other nodes. To be called when the webhooks have been drained.
    pub(super) async fn close(&self, patience: Duration) {
        self.closing.cancel();
        self.tasks.close();
        let _ = timeout(patience, self.tasks.wait()).await;
    }
}

impl Reader {
    /// Reads a part, until this is aborted, something was not told, or the node goes away.
    async fn read(
        self: Arc<Self>,
        hub: Arc<Shared>,
        cluster: Cluster,
        partition: u16,
        closing: CancellationToken,
    ) {
        let (sender, mut ends) = mpsc::unbounded_channel();
        let mut hand = Hand { ends: sender, after: 0, unended: HashSet::new(), settled: Vec::new() };
        let counted = InHand(&self.in_hand);
        loop {
            if self.is_anew.swap(false, Ordering::Relaxed) {
                hand.after = 0;
            }
            if let Err(Lost) = self.take(&hub, &cluster, partition, &mut hand).await {
                sleep(RETRY).await;
            }
            counted.set(hand.unended.len());
            let end = tokio::select! {
                end = ends.recv() => end,
                () = self.wake.notified() => None,
                () = closing.cancelled() => None,
            };
            let mut is_released = false;
            for end in end.into_iter().chain(std::iter::from_fn(|| ends.try_recv().ok())) {
                is_released |= hand.ended(end);
            }
            counted.set(hand.unended.len());
            let settled = &mut hand.settled;
            if !settled.is_empty() && cluster.driver().settle(partition, settled.clone()).await.is_ok() {
                settled.clear();
            }
            // Released: it was not told, for what reason ever. All that was not is read anew.
            if is_released || closing.is_cancelled() {
                return;
            }
        }
    }

    /// Hands over what there is to read.
    async fn take(
        &self,
        hub: &Shared,
        cluster: &Cluster,
        partition: u16,
        hand: &mut Hand,
    ) -> Result<(), Lost> {
        while hand.unended.len() < IN_HAND_MAX && !self.is_spare.load(Ordering::Relaxed) {
            let room = IN_HAND_MAX - hand.unended.len();
            let records = cluster.driver().records(partition, hand.after, room).await?;
            if records.is_empty() {
                break;
            }
            for record in records {
                hand.after = record.transition.version;
                // What is dealt with already, and has yet to be struck out, is not told again.
                if !hand.settled.contains(&hand.after) && hand.unended.insert(hand.after) {
                    hub.note_record(&record, &hand.ends);
                }
            }
        }
        Ok(())
    }
}

/// What a reader has in hand.
struct Hand {
    /// Where is said how records end.
    ends: mpsc::UnboundedSender<Resolution>,
    /// The last that was read.
    after: Version,
    /// Those that were handed over.
    unended: HashSet<Version>,
    /// Those that have ended, in that order, and have yet to be struck out.
    settled: Vec<Version>,
}

impl Hand {
    /// Whether one was not told.
    fn ended(&mut self, end: Resolution) -> bool {
        match end {
            Resolution::Acked(id) => {
                self.unended.remove(&id.number());
                self.settled.push(id.number());
                false
            }
            Resolution::Nacked(id) => {
                self.unended.remove(&id.number());
                true
            }
        }
    }
}

/// How many records are in hand, and none when their reader has ended.
struct InHand<'a>(&'a AtomicUsize);

impl InHand<'_> {
    fn set(&self, count: usize) {
        self.0.store(count, Ordering::Relaxed);
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Shared {
    /// Hands a record to the webhooks room.
    fn note_record(&self, record: &Record, ends: &mpsc::UnboundedSender<Resolution>) {
        let Record { transition, time_ms } = record;
        // The version tells the transitions of a group apart, and the group those of different parts.
        let digest = Sha256::digest(transition.group.as_bytes());
        let source = digest.first_chunk().copied().map_or(0, u64::from_be_bytes);
        let ack_token = AckToken::new(EventId::new(source, transition.version), ends.clone());
        let subject = self.clustered.as_ref().and_then(|clustered| clustered.subject(&transition.group));
        let user = |id: &str| UserId::parse(id, usize::MAX).ok();
        let note = |app: &str, event: &Event<'_>, ack_token| {
            self.webhooks.emit_record(app, event, *time_ms, ack_token);
        };
        match (subject, &transition.change) {
            (Some(Subject::Channel(app, channel)), Change::Occupied) => {
                note(&app.id.0, &Event::ChannelOccupied(&channel), ack_token);
            }
            (Some(Subject::Channel(app, channel)), Change::Vacated) => {
                note(&app.id.0, &Event::ChannelVacated(&channel), ack_token);
            }
            (Some(Subject::Channel(app, channel)), Change::Added(id, _)) => match user(id) {
                Some(user) => note(&app.id.0, &Event::MemberAdded(&channel, &user), ack_token),
                None => ack_token.ack(),
            },
            (Some(Subject::Channel(app, channel)), Change::Removed(id)) => match user(id) {
                Some(user) => note(&app.id.0, &Event::MemberRemoved(&channel, &user), ack_token),
                None => ack_token.ack(),
            },
            (Some(Subject::User(app, user)), Change::Added(id, _)) if **id == *ONLINE => {
                note(&app.id.0, &Event::UserOnline(&user), ack_token);
            }
            (Some(Subject::User(app, user)), Change::Removed(id)) if **id == *ONLINE => {
                note(&app.id.0, &Event::UserOffline(&user), ack_token);
            }
            // Who watches a user is nobody else's business, and what makes no sense is nobody's.
            (Some(Subject::User(..)) | None, _) => ack_token.ack(),
        }
    }
}
