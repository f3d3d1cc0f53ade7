//! Several servers of one cluster, over a broker in this process.

use std::ops::Deref;
use std::time::Duration;

use pusherd::cluster::Engine;
use pusherd::cluster::memory::{MemoryClient, MemoryServer};

use super::{Request, Server, Setup, eventually};

/// A server that is a node of a cluster.
pub struct Node {
    server: Server,
    /// The broker of all nodes.
    pub broker: MemoryServer,
    /// The node's link to the broker, which can be cut and restored.
    pub link: MemoryClient,
}

impl Deref for Node {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

/// A cluster of `N` nodes with the defaults.
pub async fn nodes<const N: usize>() -> [Node; N] {
    nodes_with(|_| {}).await
}

/// A cluster of nodes that `change` has adjusted. Heartbeats are frequent, and leases so long that none expires unless a
/// test says so.
pub async fn nodes_with<const N: usize>(change: impl Fn(&mut Setup)) -> [Node; N] {
    let broker = MemoryServer::default();
    let mut nodes = Vec::with_capacity(N);
    for nth in 0..N {
        let server = Server::with(|setup| {
            setup.options.cluster.engine = Some(Engine::Memory(broker.clone()));
            let timing = &mut setup.options.cluster.timing;
            (timing.lease, timing.heartbeat) = (Duration::from_secs(60), Duration::from_millis(50));
            change(setup);
        })
        .await;
        // Its driver is registered before that of the next node.
        let ready = async || server.send(Request::get("/ready")).await.status == 200;
        eventually("a node is ready", ready).await;
        nodes.push(Node { server, broker: broker.clone(), link: broker.client_of(nth) });
    }
    nodes.try_into().ok().unwrap()
}

impl Node {
    /// Waits until `/ready` says that the node is ready, or that it is not.
    pub async fn is_ready(&self, ready: bool) {
        let status = if ready { 200 } else { 503 };
        eventually(format_args!("/ready answers {status}"), async || {
            self.send(Request::get("/ready")).await.status == status
        })
        .await;
    }

    /// Ends the node without a shutdown: the other nodes notice when its lease expires.
    pub fn crash(self) {
        self.link.disconnect();
        self.server.abort();
    }

    /// As [`Node::crash`], and the lease expires at once.
    pub fn crash_with_expired_lease(self) {
        self.link.disconnect();
        self.link.expire_lease();
        self.server.abort();
    }

    /// Waits until the node has stopped, and checks that it returned no error.
    pub async fn ended(self) {
        self.server.ended().await;
    }

    /// Stops the node gracefully.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}
