//! The lease: joining the cluster, heartbeats, and reaping nodes whose lease has expired.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{Cluster, LockedPartition, RETRY, random_node_id};
use crate::cluster::broker::{Topic, Unavailable};
use crate::cluster::coordinator::{Leases, PARTITIONS};
use crate::cluster::group::{NodeId, Rejected};

/// How often a rejoining node checks whether all its groups are subscribed to again.
const RESUBSCRIBED_CHECK: Duration = Duration::from_millis(5);

/// Partitions that are scanned at each heartbeat for state of nodes without a lease.
const SCANNED_PER_HEARTBEAT: u16 = 8;

/// What the lease task remembers between heartbeats.
#[derive(Debug, Default)]
struct Reaper {
    /// The next partition to scan.
    next_partition: u16,
    /// Dead nodes that another node should have reaped, or that this one has not finished.
    unfinished: HashSet<NodeId>,
}

impl Cluster {
    /// Holds this node's lease and reaps dead nodes. Ends when `connected` does.
    pub(super) async fn hold_lease(&self, mut connected: mpsc::UnboundedReceiver<bool>) {
        let mut is_expired = true;
        let mut reaper = Reaper::default();
        let mut is_connected = false;
        loop {
            // Only the latest change counts.
            while let Ok(now_connected) = connected.try_recv() {
                is_connected = now_connected;
            }
            if !is_connected {
                match connected.recv().await {
                    Some(now_connected) => is_connected = now_connected,
                    None => return,
                }
                continue;
            }
            if self.join(&mut is_expired).await.is_err() {
                // Normally the disconnect is reported next. If not, joining is retried.
                tokio::select! {
                    now_connected = connected.recv() => match now_connected {
                        Some(now_connected) => is_connected = now_connected,
                        None => return,
                    },
                    () = sleep(RETRY) => {}
                }
                continue;
            }
            loop {
                tokio::select! {
                    now_connected = connected.recv() => {
                        match now_connected {
                            Some(now_connected) => is_connected = now_connected,
                            None => return,
                        }
                        break;
                    }
                    () = self.0.lease_expired.notified() => {
                        self.lease_expired(&mut is_expired);
                        break;
                    }
                    () = sleep(self.0.timing.heartbeat) => match self.heartbeat(&mut reaper).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => {
                            self.lease_expired(&mut is_expired);
                            break;
                        }
                        // As above.
                        Err(Unavailable) => {}
                    }
                }
            }
        }
    }

    fn lease_expired(&self, is_expired: &mut bool) {
        self.0.metrics.cluster.lease_expirations.count();
        warn!(node = %self.node(), "lease lost: declared dead by peers, rejoining as a new node");
        *is_expired = true;
    }

    /// Gets a lease, under a new id if the last one has expired, and registers all groups of this node.
    async fn join(&self, is_expired: &mut bool) -> Result<(), Unavailable> {
        let epoch = self.0.epoch.load(Ordering::SeqCst);
        let (broker, coordinator, lease) = (&self.0.broker, &self.0.coordinator, self.0.timing.lease);
        let before = self.node();
        let mut node = before;
        if *is_expired || coordinator.renew_lease(node, false, lease).await?.is_err() {
            node = random_node_id();
            coordinator.renew_lease(node, true, lease).await?.map_err(|_| Unavailable)?;
            *is_expired = false;
        }
        broker.subscribe(Topic::Nodes).await?;
        broker.subscribe(Topic::Node(node)).await?;
        if node != before {
            broker.unsubscribe(Topic::Node(before));
            *self.0.node.lock() = node;
        }
        for groups in &self.0.partitions {
            {
                let mut partition = LockedPartition { cluster: self, groups: groups.lock() };
                if self.0.epoch.load(Ordering::SeqCst) != epoch {
                    return Err(Unavailable);
                }
                // Not only when the id is new: the last attempt to join may have ended between two partitions.
                if partition.groups.node() != node {
                    partition.groups.rejoin(node);
                }
                partition.groups.connected();
                partition.perform_effects();
            }
            // All partitions together may have hundreds of thousands of groups.
            yield_now().await;
        }
        // Discards a notification about the former id.
        let _ = timeout(Duration::ZERO, self.0.lease_expired.notified()).await;
        self.resubscribed(epoch).await?;
        self.0.is_ready.store(true, Ordering::SeqCst);
        if self.0.epoch.load(Ordering::SeqCst) != epoch {
            self.0.is_ready.store(false, Ordering::SeqCst);
            return Err(Unavailable);
        }
        info!(%node, "joined the cluster");
        if let Some(handler) = self.handler() {
            handler.availability_changed(true);
        }
        Ok(())
    }

    /// Waits until all groups are subscribed to again: what is published through this node from then on reaches its own
    /// connections.
    async fn resubscribed(&self, epoch: u64) -> Result<(), Unavailable> {
        let mut renewed = Instant::now();
        while !self.0.partitions.iter().all(|partition| partition.lock().is_resubscribed()) {
            sleep(RESUBSCRIBED_CHECK).await;
            if self.0.epoch.load(Ordering::SeqCst) != epoch {
                return Err(Unavailable);
            }
            if renewed.elapsed() >= self.0.timing.heartbeat {
                let lease = self.0.timing.lease;
                self.0.coordinator.renew_lease(self.node(), false, lease).await?.map_err(|_| Unavailable)?;
                renewed = Instant::now();
            }
        }
        Ok(())
    }

    /// Renews the lease, and reaps nodes that have none.
    async fn heartbeat(&self, reaper: &mut Reaper) -> Result<Result<(), Rejected>, Unavailable> {
        let coordinator = &self.0.coordinator;
        // Read before the leases: a node that joins in between gets its lease before it has any other state.
        let mut seen = HashSet::new();
        for _ in 0..SCANNED_PER_HEARTBEAT {
            seen.extend(coordinator.nodes(reaper.next_partition).await?);
            reaper.next_partition = (reaper.next_partition + 1) % PARTITIONS;
        }
        let node = self.node();
        let renewed = coordinator.renew_lease(node, false, self.0.timing.lease).await?;
        let Leases { mut alive, expired } = match renewed {
            Ok(leases) => leases,
            Err(rejected) => return Ok(Err(rejected)),
        };
        // The same order on all nodes.
        alive.sort_unstable();
        if let Some(handler) = self.handler() {
            handler.nodes_alive(&alive);
        }
        for groups in &self.0.partitions {
            let mut partition = LockedPartition { cluster: self, groups: groups.lock() };
            partition.groups.heartbeat();
            partition.perform_effects();
        }
        let mut dead: HashSet<NodeId> = expired.into_iter().collect();
        dead.extend(seen.into_iter().filter(|seen| !alive.contains(seen)));
        // A node found in one partition is not seen by the next heartbeat, which scans others.
        dead.extend(reaper.unfinished.iter().filter(|seen| !alive.contains(seen)));
        // One node is the first to reap a dead one; the others do it at their next heartbeat if it still has state.
        let responsible = |dead: &NodeId| alive.get((dead.0 % alive.len() as u128) as usize) == Some(&node);
        let (now, later): (HashSet<_>, HashSet<_>) =
            dead.into_iter().partition(|dead| responsible(dead) || reaper.unfinished.contains(dead));
        reaper.unfinished = later;
        let begun = Instant::now();
        for dead in now {
            reaper.unfinished.insert(dead);
            for partition in 0..PARTITIONS {
                while coordinator.reap(partition, dead).await? {
                    // This node has to renew its own lease. The next heartbeat goes on.
                    if begun.elapsed() >= self.0.timing.heartbeat {
                        return Ok(Ok(()));
                    }
                }
            }
            coordinator.remove_lease(dead).await?;
            reaper.unfinished.remove(&dead);
            self.0.metrics.cluster.nodes_removed.count();
            info!(node = %dead, "reaped a dead node");
        }
        Ok(Ok(()))
    }
}
