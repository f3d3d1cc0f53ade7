//! Front door for Pusher's clients: the WebSocket upgrade and the task of a connection.
//!
//! [`Door::upgrade`] answers the upgrade; [`admission`] decides whether the connection is established or refused
//! with a code; [`connection`] is the task that owns the socket and the session from then on; [`Door::watch`]
//! pings the silent, gives up the dead and evicts those who do not read, for all connections at once.
//!
//! The door carries out what the session decides, through the hub. It knows the Pusher wire and WebSocket frames,
//! and nothing of how an event travels. Start at [`Door::upgrade`].

mod admission;
mod connection;
mod upgrade;

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::addresses::Addresses;
use crate::apps::Apps;
use crate::hub::{Connections, Hub};
use crate::limits::{Count, Limit};
use crate::machine;
use crate::outbox::{Budget, Outbox};
use crate::protocol::wire::websocket;
use crate::session::liveness::{ConnectionState, Timers, Verdict};

/// Connections looked at before other work gets its turn, or a shard of them more.
const LOOKS_A_TURN: usize = 4096;

/// Pings sent before other work gets its turn.
const SENDS_A_TURN: usize = 64;

/// The least that may wait for all clients together, however little memory there is.
const QUEUED_BYTES_MIN: usize = 64 * 1024 * 1024;

/// Between two looks at what may be evicted.
const EVICT_INTERVAL: Duration = Duration::from_millis(10);

/// How this door serves, whatever the app.
#[derive(Clone, Debug)]
pub struct Options {
    /// After so much silence clients ping; told to them at the start. 5 to 600 s, default 30 s.
    pub activity_timeout: Duration,
    /// After so much silence a client is pinged. Default 50 s, under the 60 s at which proxies hang up.
    pub ping_interval: Duration,
    /// A pinged client that stays silent so long is closed (4201). Default 30 s.
    pub pong_timeout: Duration,
    /// A message that is not whole so long after its first byte ends the connection (4100). Default 60 s.
    pub message_timeout: Duration,
    /// A client that takes nothing for so long of what waits for it is closed (4100). Default 30 s.
    pub write_timeout: Duration,
    /// Bytes that may wait for all clients together; 0: a quarter of the memory that there is.
    pub queued_bytes_max: usize,
    /// Connections this node takes; `None`: as many as the system lets it. Above it: 4100.
    pub connections_max: Option<u32>,
    /// Connections for which this process has files; above it: 4100. `None`: what the server finds out when it starts.
    pub files_max: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            activity_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(50),
            pong_timeout: Duration::from_secs(30),
            message_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            queued_bytes_max: 0,
            connections_max: None,
            files_max: None,
        }
    }
}

/// Who is at the other end of a connection, as far as the connection itself tells.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The client's address, or its proxy's.
    pub address: SocketAddr,
    /// Whether the connection is TLS: of our own, or of a proxy that says so by the PROXY protocol.
    pub over_tls: bool,
    /// Whether the connection should have been TLS, by its port, and is not.
    pub misses_tls: bool,
}

/// The door. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Door(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hub: Hub,
    apps: Arc<Apps>,
    addresses: Arc<Addresses>,
    options: Options,
    /// The tasks of connections, from their upgrade to their end.
    tasks: TaskTracker,
    /// Connections that this node has, established and not yet gone.
    places_taken: Count,
    /// What may wait for all of them.
    budget: Arc<Budget>,
}

impl Door {
    /// A door that leads to `hub`, whose connections are counted among `tasks`.
    #[must_use]
    pub fn new(
        hub: Hub,
        apps: Arc<Apps>,
        addresses: Arc<Addresses>,
        options: Options,
        tasks: TaskTracker,
    ) -> Self {
        let budget = Arc::new(Budget::new(match options.queued_bytes_max {
            0 => QUEUED_BYTES_MIN.max(machine::memory().total / 4),
            bytes_max => bytes_max,
        }));
        Self(Arc::new(Inner { hub, apps, addresses, options, tasks, places_taken: Count::default(), budget }))
    }

    /// Looks after all connections, until it is dropped: pings the silent, closes the dead, and evicts where too much
    /// waits for them.
    pub async fn watch(&self) {
        tokio::join!(self.sweep(), self.keep_budget());
    }

    /// Pings the silent and closes the dead, once a second.
    async fn sweep(&self) {
        let Options { ping_interval, pong_timeout, message_timeout, write_timeout, .. } = self.0.options;
        let timers = Timers { ping_interval, pong_timeout, message_timeout, write_timeout };
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            let now = self.0.hub.now();
            let mut due: Vec<(Arc<Outbox>, Verdict)> = Vec::new();
            let mut look = |outbox: &Arc<Outbox>| {
                let pulse = &outbox.pulse;
                let verdict = timers.verdict(ConnectionState {
                    silence: pulse.silence(now),
                    unanswered: pulse.unanswered(now),
                    unfinished: pulse.unfinished_for(now),
                    stalled: outbox.stalled_for(now),
                    is_unauthorized: pulse.is_unauthorized(now),
                });
                if verdict != Verdict::Alive {
                    due.push((Arc::clone(outbox), verdict));
                }
            };
            let mut looks = 0;
            for turn in 0..Connections::SHARDS {
                self.0.hub.connections().for_each_in_shard(turn, |outbox| {
                    looks += 1;
                    look(outbox);
                });
                if looks >= LOOKS_A_TURN {
                    looks = 0;
                    tokio::task::yield_now().await;
                }
            }
            for (at, (outbox, verdict)) in due.into_iter().enumerate() {
                if at % SENDS_A_TURN == SENDS_A_TURN - 1 {
                    tokio::task::yield_now().await;
                }
                match verdict {
                    Verdict::Alive => {}
                    Verdict::Ping => {
                        outbox.pulse.pinged(now);
                        outbox.send_first(&websocket::ping());
                    }
                    Verdict::Limit(limit, reason) => outbox.close_at(limit, reason),
                    Verdict::Close(code, reason) => outbox.close(code, reason),
                }
            }
        }
    }

    /// Evicts connections whenever too much waits for all of them: those first for which most has waited longest.
    async fn keep_budget(&self) {
        loop {
            self.0.budget.tight().await;
            self.evict().await;
            // What is left may belong to connections that are ending.
            tokio::time::sleep(EVICT_INTERVAL).await;
        }
    }

    async fn evict(&self) {
        let now = self.0.hub.now();
        let mut queued = Vec::new();
        for some in self.0.hub.connections().chunks() {
            queued.extend(some.into_iter().filter_map(|outbox| {
                let stalled = outbox.stalled_for(now).unwrap_or_default();
                let weight = outbox.queued_bytes() as u64 * (1 + stalled.as_secs());
                (weight > 0).then_some((Reverse(weight), outbox))
            }));
        }
        queued.sort_unstable_by_key(|(weight, _)| *weight);
        for (at, (_, outbox)) in queued.into_iter().enumerate() {
            if self.0.budget.is_relieved() {
                return;
            }
            if at % SENDS_A_TURN == SENDS_A_TURN - 1 {
                tokio::task::yield_now().await;
            }
            outbox.evict();
        }
    }

    /// The value of one of the node's own limits on what waits for clients and on their time.
    fn value_of(&self, limit: Limit) -> Option<u64> {
        let Options { message_timeout, write_timeout, .. } = &self.0.options;
        let values = [
            (Limit::MessageTime, message_timeout.as_secs()),
            (Limit::WriteTime, write_timeout.as_secs()),
            (Limit::QueuedBytes, self.0.budget.bytes_max() as u64),
        ];
        values.into_iter().find_map(|(of, value)| (of == limit).then_some(value))
    }

    /// Takes a place on this node, unless it is full.
    ///
    /// # Errors
    /// The limit that is reached.
    fn take_place(&self) -> Result<Place, Limit> {
        let Options { connections_max, files_max, .. } = self.0.options;
        let (places, limit) = match (connections_max, files_max) {
            (Some(connections), Some(files)) if files < connections => (Some(files), Limit::OpenFiles),
            (None, Some(files)) => (Some(files), Limit::OpenFiles),
            (connections, Some(_) | None) => (connections, Limit::NodeConnections),
        };
        if self.0.places_taken.take(places) { Ok(Place(self.clone())) } else { Err(limit) }
    }
}

/// One place among the node's connections; dropping it gives the place back.
#[derive(Debug)]
struct Place(Door);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.places_taken.give_back();
    }
}
