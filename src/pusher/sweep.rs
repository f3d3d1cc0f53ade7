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

    /// Evicts connections until the budget is relieved. Those with the most bytes queued for the longest time go first.
    async fn evict(&self) {
        let now = self.0.hub.now();
        let mut queued = Vec::new();
        for chunk in self.0.hub.connections().chunks() {
            queued.extend(chunk.into_iter().filter_map(|outbox| {
                let stalled = outbox.stalled_for(now).unwrap_or_default();
                let weight = outbox.queued_bytes() as u64 * (1 + stalled.as_secs());
                (weight > 0).then_some((Reverse(weight), outbox))
            }));
        }
        queued.sort_unstable_by_key(|(weight, _)| *weight);
        for (at, (_, outbox)) in queued.into_iter().enumerate() {
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
