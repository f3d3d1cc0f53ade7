//! Several servers that are one cluster, over a broker in this process.

use std::ops::Deref;
use std::time::Duration;

use pusherd::cluster::Broker;
use pusherd::cluster::memory::{Memory, MemoryDriver};

use super::{Request, Server, Setup, eventually};

/// A server that is a node of a cluster.
pub struct Node {
    server: Server,
    /// The broker of all nodes.
    pub broker: Memory,
    /// This one's way to it, which can be cut and mended.
    pub link: MemoryDriver,
}

impl Deref for Node {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

/// A cluster of so many nodes with the defaults.
pub async fn nodes<const N: usize>() -> [Node; N] {
    nodes_with(|_| {}).await
}

/// A cluster of nodes that `change` has adjusted. They look after each other often, and a lease is so long that none
/// runs out, unless a test says so.
pub async fn nodes_with<const N: usize>(change: impl Fn(&mut Setup)) -> [Node; N] {
    let broker = Memory::default();
    let mut nodes = Vec::with_capacity(N);
    for nth in 0..N {
        let server = Server::with(|setup| {
            setup.options.cluster.broker = Some(Broker::Memory(broker.clone()));
            let timing = &mut setup.options.cluster.timing;
            (timing.lease, timing.beat) = (Duration::from_secs(60), Duration::from_millis(50));
            change(setup);
        })
        .await;
        // Its driver is there before the next one's.
        let ready = async || server.send(Request::get("/ready")).await.status == 200;
        eventually("a node is ready", ready).await;
        nodes.push(Node { server, broker: broker.clone(), link: broker.driver_of(nth) });
    }
    nodes.try_into().ok().unwrap()
}

impl Node {
    /// Waits until the node is ready, or is not any more.
    pub async fn is_ready(&self, ready: bool) {
        let status = if ready { 200 } else { 503 };
        eventually(format_args!("/ready answers {status}"), async || {
            self.send(Request::get("/ready")).await.status == status
        })
        .await;
    }

    /// Ends the node without a word: the others find out when its lease has run out.
    pub fn dies(self) {
        self.link.cut();
        self.server.abort();
    }

    /// As [`Node::dies`], and the lease runs out at once.
    pub fn dies_long_ago(self) {
        self.link.cut();
        self.link.expire();
        self.server.abort();
    }

    /// Waits until the node has ended, and checks that it ended well.
    pub async fn ended(self) {
        self.server.ended().await;
    }

    /// Stops the node in good order.
    pub async fn stop(self) {
        self.server.stop().await;
    }
}
