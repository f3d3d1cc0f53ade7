//! The sweep over all connections: liveness once a second, evictions when the budget for queues is exceeded.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use super::{Endpoint, Options};
use crate::hub::Connections;
use crate::outbox::Outbox;
use crate::protocol::wire::websocket;
use crate::session::liveness::{ConnectionState, Timeouts, Verdict};

/// Connections checked before the task yields, or up to a shard more.
const CHECKS_PER_TURN: usize = 4096;

/// Pings and closes sent before the task yields.
const SENDS_PER_TURN: usize = 64;

/// The pause between two evictions.
const EVICT_INTERVAL: Duration = Duration::from_millis(10);

impl Endpoint {
    /// Watches all connections until it is dropped: pings silent clients, closes dead ones, and evicts clients when the
    /// budget for their queues is exceeded.
    pub async fn watch(&self) {
        tokio::join!(self.sweep(), self.enforce_budget());
    }

    /// Wakes the tasks of all connections, because apps were replaced: each looks its app up again.
    pub async fn wake_connections(&self) {
        for chunk in self.0.hub.connections().chunks() {
            for outboxes in chunk.chunks(SENDS_PER_TURN) {
                outboxes.iter().for_each(|outbox| outbox.wake());
                tokio::task::yield_now().await;
            }
        }
    }

    /// Pings silent clients and closes dead ones, once a second.
    async fn sweep(&self) {
        let Options { ping_interval, pong_timeout, message_timeout, write_timeout, .. } = self.0.options;
        let timeouts = Timeouts { ping_interval, pong_timeout, message_timeout, write_timeout };
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            let now = self.0.hub.now();
            let mut due: Vec<(Arc<Outbox>, Verdict)> = Vec::new();
            let mut check = |outbox: &Arc<Outbox>| {
                let liveness = &outbox.liveness;
                let verdict = timeouts.verdict(ConnectionState {
                    silence: liveness.silent_for(now),
                    unanswered: liveness.unanswered_for(now),
                    unfinished: liveness.unfinished_for(now),
                    stalled: outbox.stalled_for(now),
                    is_unauthorized: liveness.is_unauthorized(now),
                });
                if verdict != Verdict::Alive {
                    due.push((Arc::clone(outbox), verdict));
                }
            };
            let mut checks = 0;
            for shard in 0..Connections::SHARDS {
                self.0.hub.connections().for_each_in_shard(shard, |outbox| {
                    checks += 1;
                    check(outbox);
                });
                if checks >= CHECKS_PER_TURN {
                    checks = 0;
                    tokio::task::yield_now().await;
                }
            }
            for (at, (outbox, verdict)) in due.into_iter().enumerate() {
                if at % SENDS_PER_TURN == SENDS_PER_TURN - 1 {
                    tokio::task::yield_now().await;
                }
                match verdict {
                    Verdict::Alive => {}
                    Verdict::Ping => {
                        outbox.liveness.pinged(now);
                        outbox.send_control(&websocket::ping());
                    }
                    Verdict::Limit(limit, reason) => outbox.close_for_limit(limit, reason),
                    Verdict::Close(code, reason) => outbox.close(code, reason),
                }
            }
        }
    }

    /// Evicts connections whenever the budget is nearly exceeded.
    async fn enforce_budget(&self) {
        loop {
            self.0.budget.above_high_watermark().await;
            self.evict().await;
            // The rest may belong to connections that are closing.
            tokio::time::sleep(EVICT_INTERVAL).await;
        }
    }

    /// Evicts connections until the budget is relieved.
    async fn evict(&self) {
        let queued = eviction_order(self.0.hub.connections().chunks().flatten(), self.0.hub.now());
        for (at, outbox) in queued.into_iter().enumerate() {
            if self.0.budget.is_below_low_watermark() {
                return;
            }
            if at % SENDS_PER_TURN == SENDS_PER_TURN - 1 {
                tokio::task::yield_now().await;
            }
            outbox.evict();
        }
    }
}

/// The connections with a queue, in the order of their eviction: those with the most bytes queued for the longest time
/// first.
fn eviction_order(outboxes: impl Iterator<Item = Arc<Outbox>>, now: Duration) -> Vec<Arc<Outbox>> {
    let weighted = outboxes.filter_map(|outbox| {
        let stalled = outbox.stalled_for(now).unwrap_or_default();
        let weight = outbox.queued_bytes() as u64 * (1 + stalled.as_secs());
        (weight > 0).then_some((Reverse(weight), outbox))
    });
    let mut weighted: Vec<_> = weighted.collect();
    weighted.sort_unstable_by_key(|(weight, _)| *weight);
    weighted.into_iter().map(|(_, outbox)| outbox).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::protocol::SocketId;

    /// A connection with a queue of `bytes` that the sweep has watched since `since_secs`.
    fn stalled(id: u32, bytes: usize, since_secs: u64) -> Arc<Outbox> {
        let outbox = Outbox::detached(SocketId::new(id, 0), usize::MAX);
        if bytes > 0 {
            outbox.send_if(&Bytes::from(vec![0; bytes]), || true);
            assert_eq!(outbox.stalled_for(Duration::from_secs(since_secs)), Some(Duration::ZERO));
        }
        Arc::new(outbox)
    }

    #[test]
    fn of_equal_queues_the_most_stalled_is_evicted_first() {
        let now = Duration::from_secs(40);
        let order = |outboxes: Vec<Arc<Outbox>>| {
            eviction_order(outboxes.into_iter(), now).iter().map(|outbox| outbox.socket()).collect::<Vec<_>>()
        };
        let ids = |ids: &[u32]| ids.iter().map(|id| SocketId::new(*id, 0)).collect::<Vec<_>>();
        let equal = || vec![stalled(1, 5000, 30), stalled(2, 5000, 10), stalled(3, 5000, 39)];
        assert_eq!(order(equal()), ids(&[2, 1, 3]));
        assert_eq!(order(equal().into_iter().rev().collect()), ids(&[2, 1, 3]));
        // A queue that has just grown large goes after a small one that has not been read for long.
        let others =
            vec![stalled(4, 20_000, 40), stalled(5, 500_000, 40), stalled(6, 0, 1), stalled(7, 5000, 10)];
        assert_eq!(order(others), ids(&[5, 7, 4]));
    }
}
