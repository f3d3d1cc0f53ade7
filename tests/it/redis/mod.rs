//! The Redis engine against servers that the tests start.

mod engine;
mod failures;
mod model;
mod servers;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use pusherd::cluster::broker::{Broker as _, Incoming, IncomingReceiver, Topic, Unavailable};
use pusherd::cluster::coordinator::Coordinator as _;
use pusherd::cluster::group::{Group, MemberId, NodeId, Rejected, Snapshot, Update};
use pusherd::cluster::redis::{Options, RedisClient};

use crate::harness::in_time;
use crate::harness::redis::RedisServer;

const LEASE: Duration = Duration::from_secs(12);

/// A client and its incoming queue.
struct Node {
    redis: RedisClient,
    incoming: IncomingReceiver,
    id: NodeId,
}

impl Node {
    /// It may not be connected yet.
    fn start(options: Options) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let (redis, incoming) = RedisClient::start(options).unwrap();
        Self { redis, incoming, id: NodeId(IDS.fetch_add(1, Ordering::Relaxed).into()) }
    }

    async fn connected(options: Options) -> Self {
        let mut node = Self::start(options);
        node.reports(Incoming::Connected).await;
        node
    }

    async fn next(&mut self) -> Incoming {
        in_time("something arrives", self.incoming.recv()).await.unwrap()
    }

    /// Skips messages until it is connected or disconnected.
    async fn reports(&mut self, wanted: Incoming) {
        loop {
            match self.next().await {
                Incoming::Message(..) => {}
                other @ (Incoming::Disconnected | Incoming::Connected) => return assert_eq!(other, wanted),
            }
        }
    }

    async fn receives(&mut self, topic: &Topic, message: &'static str) {
        assert_eq!(self.next().await, Incoming::Message(topic.clone(), Bytes::from(message)));
    }

    async fn publish(&self, topic: &Topic, message: &'static str) -> Result<(), Unavailable> {
        in_time("a reply", self.redis.publish(vec![(topic.clone(), Bytes::from(message))])).await
    }

    async fn subscribe(&self, topic: &Topic) {
        in_time("a subscription", self.redis.subscribe(topic.clone())).await.unwrap();
    }

    /// Publishes come back, and updates get replies.
    async fn is_healthy(&mut self) {
        for topic in [Topic::Group(group("health")), Topic::Nodes, Topic::Node(self.id)] {
            self.subscribe(&topic).await;
            self.publish(&topic, "healthy").await.unwrap();
            self.receives(&topic, "healthy").await;
            self.redis.unsubscribe(topic);
        }
        let update = self.update("health", 1).holds();
        assert!(in_time("a reply", self.redis.update(update.0, false)).await.is_ok());
    }

    fn update(&self, name: &str, sequence: u64) -> UpdateBuilder {
        UpdateBuilder(Update {
            node: self.id,
            sequence,
            group: group(name),
            holds: false,
            present: Vec::new(),
            gone: Vec::new(),
            is_complete: false,
            wants_members: false,
        })
    }

    /// Carries the update out; its transitions are recorded.
    async fn carry_out(&self, UpdateBuilder(update): UpdateBuilder) -> Result<Snapshot, Rejected> {
        in_time("a reply", self.redis.update(update, true)).await.unwrap()
    }
}

struct UpdateBuilder(Update);

impl UpdateBuilder {
    fn holds(mut self) -> Self {
        self.0.holds = true;
        self
    }

    fn with(mut self, member: &str) -> Self {
        self.0.present.push((MemberId::from(member), Bytes::from_static(b"{}")));
        self
    }

    fn wants_members(mut self) -> Self {
        self.0.wants_members = true;
        self
    }
}

fn group(name: &str) -> Group {
    Arc::from(name)
}

/// Captures the log of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn capture(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        tracing::subscriber::set_default(
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || log.clone()).finish(),
        )
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Names of keys except those that stay: versions, sequence numbers, records, and expired nodes.
async fn keys_left(server: &RedisServer) -> Vec<String> {
    let keys: Vec<String> = server.run(&["KEYS", "*"]).await;
    let stays = |key: &String| {
        let rest = key.split_once("}:").unwrap().1;
        ["v", "n", "r"].contains(&rest) || rest.starts_with("g:")
    };
    keys.into_iter().filter(|key| !stays(key)).collect()
}
