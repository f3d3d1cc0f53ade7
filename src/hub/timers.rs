//! Periodic work: due counts, orphaned drives, users that went offline, expired events.

use std::time::Duration;

use tracing::debug;

use super::{DELIVERIES_PER_TURN, Hub};
use crate::webhooks;

/// The interval at which expired events are dropped.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(60);

impl Hub {
    /// Runs all periodic work until it is dropped.
    pub async fn run_timers(&self) {
        tokio::join!(self.run_every_second(), self.0.backend.run_timers());
    }

    /// Logs the totals of cached events: the API lists occupied channels only.
    fn log_cached(&self) {
        let (events, bytes) = self.0.registry.cached_totals();
        if events > 0 {
            debug!(events, bytes, "cached events");
        }
    }

    async fn run_every_second(&self) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        let mut expired = self.now();
        loop {
            second.tick().await;
            let now = self.now();
            for (at, due) in self.0.registry.counts_due().into_iter().enumerate() {
                if at % DELIVERIES_PER_TURN == DELIVERIES_PER_TURN - 1 {
                    tokio::task::yield_now().await;
                }
                let key = due.key().clone();
                let guard = self.0.webhooks.lock_count(&key.app, &key.channel);
                let guard = guard.filter(|_| self.0.backend.sends_count_webhooks(&key));
                let (count, drive) = due.send(now);
                if let (Some(mut guard), Some(count)) = (guard, count) {
                    guard.emit(&webhooks::Event::SubscriptionCount(&key.channel, count));
                }
                self.0.drive(drive);
            }
            for drive in self.0.registry.orphaned() {
                self.0.drive(Some(drive));
            }
            self.0.backend.tick(&self.0);
            while self.0.users.expire_lingering(now) {
                tokio::task::yield_now().await;
            }
            self.0.flush_rejections(false);
            if now - expired >= EXPIRE_INTERVAL {
                expired = now;
                while self.0.registry.expire(now) {
                    tokio::task::yield_now().await;
                }
                self.log_cached();
            }
        }
    }
}
