//! Records for webhooks: transitions of groups, which one node at a time reads from the coordinator for each partition,
//! passes to the webhooks module, and acknowledges when they have been handled.
//!
//! The nodes share the partitions: each node claims its share, and renews its claims. Records that a node had not
//! acknowledged when it died are read again by the next node that claims the partition. So a record is reported at
//! least once, each time under the same id.

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

use super::{Clustered, ONLINE, RETRY, Shared, Subject};
use crate::cluster::broker::Unavailable;
use crate::cluster::coordinator::{PARTITIONS, Record};
use crate::cluster::group::{Change, Version};
use crate::protocol::UserId;
use crate::webhooks::{AckToken, Event, EventId, Resolution};

/// Records of a partition that may be in flight; the others wait in the coordinator.
const IN_FLIGHT_MAX: usize = 1000;

/// Surplus partitions that a node hands over at a heartbeat.
const HANDED_OVER_MAX: usize = 4;

/// See the module's documentation.
#[derive(Debug)]
pub(in crate::hub) struct Records {
    readers: Vec<Arc<Reader>>,
    /// Number of nodes in the cluster.
    nodes: AtomicUsize,
    /// Set when the broker is available again.
    connected: Notify,
    /// Cancelled when the node shuts down: no record is in flight any more, and other nodes claim the partitions.
    closing: CancellationToken,
    tasks: TaskTracker,
}

/// One partition.
#[derive(Debug, Default)]
struct Reader {
    /// Set when the partition may have new records.
    wake: Notify,
    /// Records that the webhooks module has not resolved.
    in_flight: AtomicUsize,
    /// The partition is to be handed over: no new records are read.
    is_surplus: AtomicBool,
    /// Set after a disconnect: records are read again from the oldest on, except those in flight.
    rereads: AtomicBool,
}

/// A partition that this node has claimed.
struct Claim {
    /// When the last successful claim was sent.
    claimed: Instant,
    reading: JoinHandle<()>,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            readers: (0..PARTITIONS).map(|_| Arc::default()).collect(),
            nodes: AtomicUsize::new(1),
            connected: Notify::new(),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }
}

impl Records {
    /// A partition may have new records.
    pub(super) fn wake(&self, partition: u16) {
        if let Some(reader) = self.readers.get(usize::from(partition)) {
            reader.wake.notify_one();
        }
    }

    /// The broker is available again. It may be another one, or have lost its state.
    pub(super) fn connected(&self) {
        self.connected.notify_one();
    }

    /// Sets the number of nodes that share the partitions.
    pub(super) fn set_node_count(&self, nodes: usize) {
        self.nodes.store(nodes.max(1), Ordering::Relaxed);
    }

    /// Claims this node's share of the partitions and reads them, until [`Records::close`].
    pub(in crate::hub) async fn read(&self, hub: &Arc<Shared>, clustered: &Arc<Clustered>) {
        let cluster = &clustered.cluster;
        // `close` waits for this.
        let _token = self.tasks.token();
        let mut claims: HashMap<u16, Claim> = HashMap::new();
        let heartbeat = cluster.timing().heartbeat;
        while !self.closing.is_cancelled() {
            // A claim that was not renewed in time has ended: another node may be the reader.
            claims.retain(|_, claim| {
                let is_valid = claim.claimed.elapsed() < cluster.timing().lease;
                if !is_valid {
                    claim.reading.abort();
                }
                is_valid
            });
            if cluster.is_ready() {
                self.renew_claims(hub, clustered, &mut claims).await;
            }
            // An announcement of new records may have been lost.
            self.readers.iter().for_each(|reader| reader.wake.notify_one());
            tokio::select! {
                () = self.closing.cancelled() => {}
                () = self.connected.notified() => {
                    self.readers.iter().for_each(|reader| reader.rereads.store(true, Ordering::Relaxed));
                }
                () = sleep(heartbeat) => {}
            }
        }
        let node = cluster.node();
        let mut releases = Vec::with_capacity(claims.len());
        for (partition, claim) in claims {
            // It ends after it has acknowledged what it can.
            let _ = claim.reading.await;
            releases.push(cluster.coordinator().release_records(partition, node));
        }
        for release in releases {
            let _ = release.await;
        }
    }

    /// Renews claims, claims more partitions up to this node's share, and hands surplus ones over.
    async fn renew_claims(
        &self,
        hub: &Arc<Shared>,
        clustered: &Arc<Clustered>,
        claims: &mut HashMap<u16, Claim>,
    ) {
        let cluster = &clustered.cluster;
        let (node, lease) = (cluster.node(), cluster.timing().lease);
        let share = usize::from(PARTITIONS).div_ceil(self.nodes.load(Ordering::Relaxed));
        let first = (node.0 % u128::from(PARTITIONS)) as u16;
        let mut handed_over = 0;
        for partition in (0..PARTITIONS).map(|at| (first + at) % PARTITIONS) {
            let reader = &self.readers[usize::from(partition)];
            let claim = claims.get(&partition);
            let has_ended = claim.is_some_and(|claim| claim.reading.is_finished());
            // A surplus partition is released once none of its records is in flight.
            let is_surplus = claim.is_some() && claims.len() > share && handed_over < HANDED_OVER_MAX;
            handed_over += usize::from(is_surplus);
            reader.is_surplus.store(is_surplus, Ordering::Relaxed);
            if has_ended || (is_surplus && reader.in_flight.load(Ordering::Relaxed) == 0) {
                if let Some(claim) = claims.remove(&partition) {
                    claim.reading.abort();
                }
                let _ = cluster.coordinator().release_records(partition, node).await;
                continue;
            }
            // A node that drains claims nothing new.
            let wants_more = claims.len() < share && !hub.draining.load(Ordering::SeqCst);
            if claim.is_none() && !wants_more {
                continue;
            }
            let sent = Instant::now();
            match cluster.coordinator().claim_records(partition, node, lease).await {
                Ok(true) => match claims.get_mut(&partition) {
                    Some(claim) => claim.claimed = sent,
                    None => {
                        let reading = Arc::clone(reader).read(
                            Arc::clone(hub),
                            Arc::clone(clustered),
                            partition,
                            self.closing.clone(),
                        );
                        claims.insert(partition, Claim { claimed: sent, reading: self.tasks.spawn(reading) });
                    }
                },
                Ok(false) => {
                    if let Some(claim) = claims.remove(&partition) {
                        claim.reading.abort();
                    }
                }
                Err(Unavailable) => return,
            }
        }
    }

    /// Acknowledges resolved records and releases the partitions. Called when webhooks have been drained.
    pub(in crate::hub) async fn close(&self, patience: Duration) {
        self.closing.cancel();
        self.tasks.close();
        let _ = timeout(patience, self.tasks.wait()).await;
    }
}

impl Reader {
    /// Reads a partition, until it is aborted, a record was nacked, or the node shuts down.
    async fn read(
        self: Arc<Self>,
        hub: Arc<Shared>,
        clustered: Arc<Clustered>,
        partition: u16,
        closing: CancellationToken,
    ) {
        let (sender, mut resolutions) = mpsc::unbounded_channel();
        let mut window =
            Window { resolutions: sender, last_read: 0, in_flight: HashSet::new(), acked: Vec::new() };
        let gauge = InFlightGauge(&self.in_flight);
        loop {
            if self.rereads.swap(false, Ordering::Relaxed) {
                window.last_read = 0;
            }
            if let Err(Unavailable) = self.fill(&hub, &clustered, partition, &mut window).await {
                sleep(RETRY).await;
            }
            gauge.set(window.in_flight.len());
            let first = tokio::select! {
                resolution = resolutions.recv() => resolution,
                () = self.wake.notified() => None,
                () = closing.cancelled() => None,
            };
            let mut has_nack = false;
            for resolution in first.into_iter().chain(std::iter::from_fn(|| resolutions.try_recv().ok())) {
                has_nack |= window.resolve(resolution);
            }
            gauge.set(window.in_flight.len());
            let acked = &mut window.acked;
            if !acked.is_empty()
                && clustered.cluster.coordinator().ack_records(partition, acked.clone()).await.is_ok()
            {
                acked.clear();
            }
            // After a nack, a new reader reads everything again that was not acknowledged.
            if has_nack || closing.is_cancelled() {
                return;
            }
        }
    }

    /// Reads new records and passes them on.
    async fn fill(
        &self,
        hub: &Shared,
        clustered: &Clustered,
        partition: u16,
        window: &mut Window,
    ) -> Result<(), Unavailable> {
        while window.in_flight.len() < IN_FLIGHT_MAX && !self.is_surplus.load(Ordering::Relaxed) {
            let capacity = IN_FLIGHT_MAX - window.in_flight.len();
            let records =
                clustered.cluster.coordinator().records(partition, window.last_read, capacity).await?;
            if records.is_empty() {
                break;
            }
            for record in records {
                window.last_read = record.transition.version;
                // A record that was resolved, and is not deleted yet, is not reported again.
                if !window.acked.contains(&window.last_read) && window.in_flight.insert(window.last_read) {
                    clustered.emit_record(hub, &record, &window.resolutions);
                }
            }
        }
        Ok(())
    }
}

/// The records of a partition between reading and deletion.
struct Window {
    /// Where the webhooks module sends resolutions.
    resolutions: mpsc::UnboundedSender<Resolution>,
    last_read: Version,
    in_flight: HashSet<Version>,
    /// Acknowledged by the webhooks module, and to be deleted from the coordinator.
    acked: Vec<Version>,
}

impl Window {
    /// Returns whether it is a nack.
    fn resolve(&mut self, resolution: Resolution) -> bool {
        match resolution {
            Resolution::Acked(id) => {
                self.in_flight.remove(&id.number());
                self.acked.push(id.number());
                false
            }
            Resolution::Nacked(id) => {
                self.in_flight.remove(&id.number());
                true
            }
        }
    }
}

/// Publishes the number of records in flight; 0 when the reader has ended.
struct InFlightGauge<'a>(&'a AtomicUsize);

impl InFlightGauge<'_> {
    fn set(&self, count: usize) {
        self.0.store(count, Ordering::Relaxed);
    }
}

impl Drop for InFlightGauge<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Clustered {
    /// Passes a record to the webhooks module.
    fn emit_record(&self, hub: &Shared, record: &Record, resolutions: &mpsc::UnboundedSender<Resolution>) {
        let Record { transition, time_ms } = record;
        // Versions are unique within a partition only, so the id includes the group.
        let digest = Sha256::digest(transition.group.as_bytes());
        let source = digest.first_chunk().copied().map_or(0, u64::from_be_bytes);
        let ack_token = AckToken::new(EventId::new(source, transition.version), resolutions.clone());
        let subject = self.subject(&transition.group);
        let user = |id: &str| UserId::parse(id, usize::MAX).ok();
        let emit = |app: &str, event: &Event<'_>, ack_token| {
            hub.webhooks.emit_record(app, event, *time_ms, ack_token);
        };
        match (subject, &transition.change) {
            (Some(Subject::Channel(app, channel)), Change::Occupied) => {
                emit(&app.id.0, &Event::ChannelOccupied(&channel), ack_token);
            }
            (Some(Subject::Channel(app, channel)), Change::Vacated) => {
                emit(&app.id.0, &Event::ChannelVacated(&channel), ack_token);
            }
            (Some(Subject::Channel(app, channel)), Change::Added(id, _)) => match user(id) {
                Some(user) => emit(&app.id.0, &Event::MemberAdded(&channel, &user), ack_token),
                None => ack_token.ack(),
            },
            (Some(Subject::Channel(app, channel)), Change::Removed(id)) => match user(id) {
                Some(user) => emit(&app.id.0, &Event::MemberRemoved(&channel, &user), ack_token),
                None => ack_token.ack(),
            },
            (Some(Subject::User(app, user)), Change::Added(id, _)) if **id == *ONLINE => {
                emit(&app.id.0, &Event::UserOnline(&user), ack_token);
            }
            (Some(Subject::User(app, user)), Change::Removed(id)) if **id == *ONLINE => {
                emit(&app.id.0, &Event::UserOffline(&user), ack_token);
            }
            // Watchers of a user are not reported. Unknown apps and malformed names are dropped.
            (Some(Subject::User(..)) | None, _) => ack_token.ack(),
        }
    }
}
