//! How the server stops, from the signal to the last connection.
//!
//! From the beginning `/ready` answers 503 and new WebSockets are rejected. Connected clients are served until they are
//! closed. Applications publish over a new connection for each event, so HTTP requests are accepted until the last
//! WebSocket is closed. Then the listeners are closed, idle HTTP connections too, and requests in flight are finished.
//!
//! A node of a cluster closes its clients over a window, and tells them to reconnect at once, to other nodes (4200). A
//! single node is replaced by the next process, which should be there soon after the first client is closed. So it sends
//! its webhooks first, closes its clients last, and tells them to reconnect after a second (4100): pusher-js that
//! reconnects at once finds no server, and tries again after 15 s. `docs/performance.md` has the figures.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::{Server, Shutdown};
use crate::hub::Hub;
use crate::webhooks::Webhooks;

/// The time that each step of an immediate shutdown may take, for instance for the clients' replies to a close.
const STEP_MIN: Duration = Duration::from_millis(500);

/// The part of a single node's deadline that the webhooks which are sent first leave to the steps that follow.
const CLIENTS_RESERVE: Duration = Duration::from_secs(1);

/// When the remaining work is first logged, and how often after that.
const FIRST_REPORT: Duration = Duration::from_secs(1);
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// How often a condition is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Connections that are closed before the task yields: each close is a system call.
const CLOSED_AT_ONCE: u32 = 64;

const GOING_AWAY: &str = "Server is shutting down";

/// The time that is left for the shutdown.
#[derive(Debug)]
pub(super) struct ShutdownTimer {
    deadline: Instant,
    /// Whether the shutdown is immediate.
    is_immediate: bool,
    signals: mpsc::Receiver<Shutdown>,
    next_report: Instant,
}

/// The work that a shutdown waits for.
#[derive(Debug, Default)]
pub(super) struct Remaining {
    pub(super) connections: usize,
    /// The number of unsent webhooks for each receiver.
    pub(super) webhooks: Vec<(String, usize)>,
}

impl ShutdownTimer {
    /// Starts with the first signal, `how`. The shutdown may take up to `limit`, unless further signals come.
    pub(super) fn start(how: Shutdown, limit: Duration, signals: mpsc::Receiver<Shutdown>) -> Self {
        let now = Instant::now();
        let is_immediate = how == Shutdown::Now;
        let deadline = if is_immediate { now } else { now + limit };
        Self { deadline, is_immediate, signals, next_report: now + FIRST_REPORT }
    }

    /// When a step that begins now must end.
    pub(super) fn step_end(&self) -> Instant {
        self.deadline.max(Instant::now() + STEP_MIN)
    }

    /// Waits until the current step must end, or a further signal comes, and logs the `pending` work meanwhile.
    pub(super) async fn step_ended(&mut self, pending: impl Fn() -> Remaining) {
        self.step_ended_by(self.step_end(), pending).await;
    }

    async fn step_ended_by(&mut self, end: Instant, pending: impl Fn() -> Remaining) {
        loop {
            tokio::select! {
                Some(_) = self.signals.recv() => {
                    self.is_immediate = true;
                    self.deadline = Instant::now();
                    return;
                }
                () = sleep_until(end) => return,
                () = sleep_until(self.next_report) => {
                    self.next_report = Instant::now() + REPORT_INTERVAL;
                    pending().log();
                }
            }
        }
    }
}

impl Remaining {
    fn log(&self) {
        let Self { connections, webhooks } = self;
        let webhooks: Vec<_> = webhooks.iter().map(|(host, count)| format!("{count} for {host}")).collect();
        let webhooks = if webhooks.is_empty() { "none".to_owned() } else { webhooks.join(", ") };
        info!(connections, webhooks, "waiting to stop; a second signal, such as Ctrl-C, stops at once");
    }
}

impl Server {
    /// Closes all WebSockets. Afterwards they have left their channels; some may not have replied to the close.
    pub(super) async fn close_clients(
        &self,
        webhooks: &Webhooks,
        window: Duration,
        timer: &mut ShutdownTimer,
    ) {
        let hub = &self.hub;
        let pending = || Remaining { connections: hub.connections().len(), webhooks: webhooks.pending() };
        info!(connections = hub.connections().len(), window_secs = window.as_secs(), "shutting down");
        hub.drain();
        if !hub.is_clustered() && !timer.is_immediate {
            let end = timer.deadline.checked_sub(window + CLIENTS_RESERVE).unwrap_or_else(Instant::now);
            tokio::select! {
                () = webhooks.wait_for_pending() => {}
                () = timer.step_ended_by(end, pending) => {}
            }
        }
        if !timer.is_immediate {
            tokio::select! {
                () = close_all(hub, window) => {}
                () = timer.step_ended(pending) => {}
            }
        }
        // Connections that came while the others were closed; in an immediate shutdown, all.
        for some in hub.connections().chunks() {
            for some in some.chunks(CLOSED_AT_ONCE as usize) {
                some.iter().for_each(|outbox| outbox.close(hub.drain_close_code(), GOING_AWAY));
                yield_now().await;
            }
        }
        tokio::select! {
            () = poll_until(|| hub.connections().is_empty()) => {}
            () = timer.step_ended(pending) => {}
        }
    }

    /// Closes all connections: idle ones at once, busy ones after their response, WebSockets after the clients' reply to
    /// the close.
    pub(super) async fn end_connections(&self, timer: &mut ShutdownTimer) {
        self.stopping.cancel();
        self.sockets.close();
        self.tasks.close();
        let sockets = async {
            if self.hub.is_clustered() {
                self.sockets.wait().await;
            } else {
                // The other clients wait for the next process.
                let _ = timeout(STEP_MIN, self.sockets.wait()).await;
            }
        };
        let ended = async { tokio::join!(sockets, self.tasks.wait()) };
        let count = || self.tasks.len() + self.sockets.len();
        tokio::select! {
            _ = ended => {}
            () = timer.step_ended(|| Remaining { connections: count(), ..Remaining::default() }) => {
                warn!(connections = count(), "some connections did not end in time");
            }
        }
    }
}

/// Polls a condition until it holds.
async fn poll_until(is_done: impl Fn() -> bool) {
    while !is_done() {
        sleep(POLL_INTERVAL).await;
    }
}

/// Closes all connections over `window`, evenly, so that their clients do not all reconnect at once.
async fn close_all(hub: &Hub, window: Duration) {
    // Weak references: a connection is freed when its task ends, not when all have been closed.
    let mut all = Vec::new();
    for some in hub.connections().chunks() {
        all.extend(some.iter().map(Arc::downgrade));
    }
    let (begin, count) = (Instant::now(), all.len().max(1) as u32);
    for (at, outbox) in (0u32..).zip(&all) {
        let due = begin + window.mul_f64(f64::from(at) / f64::from(count));
        // A time in the past needs no timer.
        if due > Instant::now() {
            sleep_until(due).await;
        } else if at.is_multiple_of(CLOSED_AT_ONCE) {
            yield_now().await;
        }
        if let Some(outbox) = outbox.upgrade() {
            outbox.close(hub.drain_close_code(), GOING_AWAY);
        }
    }
}
