//! How the server ends, from the order to stop to the last connection.
//!
//! From the beginning `/ready` answers 503 and new WebSockets are rejected. Clients that are connected are served to the
//! last: applications publish over a connection for each event, so HTTP requests are taken until the last WebSocket is
//! closed. Then nobody listens any more, idle HTTP connections end, and requests in flight are finished.
//!
//! A node of a cluster has others that take its clients: it closes them over a window, and tells them to come back at
//! once (4200). Where a node is alone, the next process is to be there soon after the first client is closed. So its
//! webhooks are sent before, and its clients are closed last and are told to come back after a second (4100): pusher-js
//! that comes back at once finds nobody, and tries again after 15 s. `docs/performance.md` has the figures.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::{Server, Shutdown};
use crate::hub::Hub;
use crate::webhooks::Webhooks;

/// What each step of a shutdown that must be quick may take, such as clients' answers to a close.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Where a node is alone, this is kept of the deadline for what follows on the webhooks that are sent first.
const FOR_CLIENTS: Duration = Duration::from_secs(1);

/// What is waited for is first logged after so long, and then this often.
const FIRST_REPORT: Duration = Duration::from_secs(1);
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// How often it is looked whether what is waited for is done.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Connections that are closed before other work gets its turn: each is a system call.
const CLOSED_AT_ONCE: u32 = 64;

const GOING_AWAY: &str = "Server is shutting down";

/// How much time a drain has left.
#[derive(Debug)]
pub(super) struct Clock {
    deadline: Instant,
    /// Somebody ordered to stop at once.
    is_hurried: bool,
    orders: mpsc::Receiver<Shutdown>,
    next_report: Instant,
}

/// What is waited for.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) connections: usize,
    /// By receiver.
    pub(super) webhooks: Vec<(String, usize)>,
}

impl Clock {
    /// Starts when the server is told `how` to stop; it may take `most`, unless more orders come.
    pub(super) fn start(how: Shutdown, most: Duration, orders: mpsc::Receiver<Shutdown>) -> Self {
        let now = Instant::now();
        let is_hurried = how == Shutdown::Now;
        let deadline = if is_hurried { now } else { now + most };
        Self { deadline, is_hurried, orders, next_report: now + FIRST_REPORT }
    }

    /// When a step that begins now must be done.
    pub(super) fn step_end(&self) -> Instant {
        self.deadline.max(Instant::now() + AT_ONCE)
    }

    /// Waits until a step must be done, or is ordered to be, and logs meanwhile what is `pending`.
    pub(super) async fn step_over(&mut self, pending: impl Fn() -> Pending) {
        self.step_over_at(self.step_end(), pending).await;
    }

    async fn step_over_at(&mut self, end: Instant, pending: impl Fn() -> Pending) {
        loop {
            tokio::select! {
                Some(_) = self.orders.recv() => {
                    self.is_hurried = true;
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

impl Pending {
    fn log(&self) {
        let Self { connections, webhooks } = self;
        let webhooks: Vec<_> = webhooks.iter().map(|(host, count)| format!("{count} for {host}")).collect();
        let webhooks = if webhooks.is_empty() { "none".to_owned() } else { webhooks.join(", ") };
        info!(connections, webhooks, "waiting to stop; a second signal, such as Ctrl-C, stops at once");
    }
}

impl Server {
    /// Closes all WebSockets. When this is done they have left their channels; some may not have answered yet.
    pub(super) async fn close_clients(&self, webhooks: &Webhooks, window: Duration, clock: &mut Clock) {
        let hub = &self.hub;
        let pending = || Pending { connections: hub.connections().len(), webhooks: webhooks.pending() };
        info!(connections = hub.connections().len(), window_secs = window.as_secs(), "shutting down");
        hub.drain();
        if !hub.is_clustered() && !clock.is_hurried {
            let end = clock.deadline.checked_sub(window + FOR_CLIENTS).unwrap_or_else(Instant::now);
            tokio::select! {
                () = webhooks.wait_for_pending() => {}
                () = clock.step_over_at(end, pending) => {}
            }
        }
        if !clock.is_hurried {
            tokio::select! {
                () = close_all(hub, window) => {}
                () = clock.step_over(pending) => {}
            }
        }
        // Those that came while the others were closed, and all where it has to be quick.
        for some in hub.connections().chunks() {
            for some in some.chunks(CLOSED_AT_ONCE as usize) {
                some.iter().for_each(|outbox| outbox.close(hub.drain_close_code(), GOING_AWAY));
                yield_now().await;
            }
        }
        tokio::select! {
            () = until(|| hub.connections().is_empty()) => {}
            () = clock.step_over(pending) => {}
        }
    }

    /// Ends all connections: what is idle at once, what is being answered when it is, WebSockets when their clients have
    /// answered the close.
    pub(super) async fn end_connections(&self, clock: &mut Clock) {
        self.stopping.cancel();
        self.sockets.close();
        self.tasks.close();
        let sockets = async {
            if self.hub.is_clustered() {
                self.sockets.wait().await;
            } else {
                // The others wait for the next process.
                let _ = timeout(AT_ONCE, self.sockets.wait()).await;
            }
        };
        let ended = async { tokio::join!(sockets, self.tasks.wait()) };
        let count = || self.tasks.len() + self.sockets.len();
        tokio::select! {
            _ = ended => {}
            () = clock.step_over(|| Pending { connections: count(), ..Pending::default() }) => {
                warn!(connections = count(), "some connections did not end in time");
            }
        }
    }
}

/// Waits until it is so.
async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        sleep(LOOK_INTERVAL).await;
    }
}

/// Closes all connections over `window`, evenly, so that their clients do not all come back at once.
async fn close_all(hub: &Hub, window: Duration) {
    // Not kept alive here: a connection ends when its task does, not when all have been closed.
    let mut all = Vec::new();
    for some in hub.connections().chunks() {
        all.extend(some.iter().map(Arc::downgrade));
    }
    let (begin, count) = (Instant::now(), all.len().max(1) as u32);
    for (at, outbox) in (0u32..).zip(&all) {
        let due = begin + window.mul_f64(f64::from(at) / f64::from(count));
        // A due time in the past costs no timer.
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
