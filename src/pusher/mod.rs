//! The endpoint for Pusher's clients: the WebSocket upgrade and the task of a connection.
//!
//! [`Endpoint::upgrade`] responds to the upgrade; `admission` decides whether the connection is established or rejected
//! with a code; `connection` is the task that owns the socket and the session from then on; `sweep` pings silent
//! clients, closes dead ones and evicts those that do not read, for all connections at once.
//!
//! The endpoint performs what the session decides, through the hub. It knows the Pusher wire and WebSocket frames, and
//! nothing of how an event is distributed. Start at [`Endpoint::upgrade`].

mod admission;
mod connection;
mod sweep;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::TaskTracker;

use crate::addresses::Addresses;
use crate::apps::Apps;
use crate::hub::Hub;
use crate::limits::{Count, Limit};
use crate::machine;
use crate::outbox::Budget;

/// The least budget for the queues of all clients, however little memory the machine has.
const QUEUED_BYTES_MIN: usize = 64 * 1024 * 1024;

/// How the endpoint serves, whatever the app.
#[derive(Clone, Debug)]
pub struct Options {
    /// After this silence clients ping. Sent to them in the first frame. 5 to 600 s, default 30 s.
    pub activity_timeout: Duration,
    /// After this silence a client is pinged. Default 50 s, under the 60 s after which proxies disconnect.
    pub ping_interval: Duration,
    /// A pinged client that stays silent for so long is closed (4201). Default 30 s.
    pub pong_timeout: Duration,
    /// A client that does not complete a message within this time of its first byte is closed (4100). Default 60 s.
    pub message_timeout: Duration,
    /// A client that reads nothing of its queue for so long is closed (4100). Default 30 s.
    pub write_timeout: Duration,
    /// The budget for the queues of all clients, in bytes; 0: a quarter of the machine's memory.
    pub queued_bytes_max: usize,
    /// The connection limit of this node; `None`: as many as the system allows. Above it: 4100.
    pub connections_max: Option<u32>,
    /// Connections for which this process has files; above it: 4100. `None`: the server determines it at the start.
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

impl Options {
    /// The budget for the queues of all clients on a machine with `memory_bytes`.
    fn queued_bytes_max(&self, memory_bytes: usize) -> usize {
        match self.queued_bytes_max {
            0 => QUEUED_BYTES_MIN.max(memory_bytes / 4),
            bytes_max => bytes_max,
        }
    }
}

/// The other end of a connection, as far as the connection itself tells.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The address of the client, or of its proxy.
    pub address: SocketAddr,
    /// Whether the connection uses TLS: ended here, or by a load balancer that says so by the PROXY protocol.
    pub over_tls: bool,
    /// Whether a plain connection came to a TLS port.
    pub is_plain_on_tls_port: bool,
}

/// The endpoint. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Endpoint(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    hub: Hub,
    apps: Arc<Apps>,
    addresses: Arc<Addresses>,
    options: Options,
    /// The tasks of connections, from their upgrade to their end.
    tasks: TaskTracker,
    /// Connections of this node, each counted until its socket closes.
    permits: Count,
    /// The memory for their queues.
    budget: Arc<Budget>,
}

impl Endpoint {
    /// An endpoint for `hub`, whose connections are tracked in `tasks`.
    #[must_use]
    pub fn new(
        hub: Hub,
        apps: Arc<Apps>,
        addresses: Arc<Addresses>,
        options: Options,
        tasks: TaskTracker,
    ) -> Self {
        let budget = Arc::new(Budget::new(options.queued_bytes_max(machine::memory().total)));
        Self(Arc::new(Shared { hub, apps, addresses, options, tasks, permits: Count::default(), budget }))
    }

    /// The value of a limit of the node on the queues and the time of clients.
    fn limit_value(&self, limit: Limit) -> Option<u64> {
        let Options { message_timeout, write_timeout, .. } = &self.0.options;
        let values = [
            (Limit::MessageTime, message_timeout.as_secs()),
            (Limit::WriteTime, write_timeout.as_secs()),
            (Limit::QueuedBytes, self.0.budget.bytes_max() as u64),
        ];
        values.into_iter().find_map(|(of, value)| (of == limit).then_some(value))
    }

    /// Acquires a permit for a connection of this node.
    ///
    /// # Errors
    /// The limit that is reached.
    fn acquire_node_permit(&self) -> Result<NodePermit, Limit> {
        let Options { connections_max, files_max, .. } = self.0.options;
        let (max, limit) = match (connections_max, files_max) {
            (Some(connections), Some(files)) if files < connections => (Some(files), Limit::OpenFiles),
            (None, Some(files)) => (Some(files), Limit::OpenFiles),
            (connections, Some(_) | None) => (connections, Limit::NodeConnections),
        };
        if self.0.permits.try_acquire(max) { Ok(NodePermit(self.clone())) } else { Err(limit) }
    }
}

/// A connection of this node, counted until this is dropped.
#[derive(Debug)]
struct NodePermit(Endpoint);

impl Drop for NodePermit {
    fn drop(&mut self) {
        self.0.0.permits.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_budget_for_queues_is_a_quarter_of_the_memory_and_at_least_64_mib() {
        const MIB: usize = 1024 * 1024;
        for (setting, memory, expected) in [
            (0, 4096 * MIB, 1024 * MIB),
            (0, 256 * MIB, 64 * MIB),
            (0, 100 * MIB, 64 * MIB),
            // The system does not report it.
            (0, 0, 64 * MIB),
            (MIB, 4096 * MIB, MIB),
        ] {
            let options = Options { queued_bytes_max: setting, ..Options::default() };
            assert_eq!(options.queued_bytes_max(memory), expected, "{setting} of {memory}");
        }
        assert_eq!(Options::default().queued_bytes_max, 0);
    }
}
