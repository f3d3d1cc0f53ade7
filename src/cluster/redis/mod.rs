//! The Redis engine: broker and coordinator in one.
//!
//! The shared state is in hashes, sets and streams (`keys` lists their names). Each operation is one script
//! (`scripts`), and all its keys are in one slot of a Redis Cluster. Messages are sent with PUBLISH, or SPUBLISH where
//! topics have slots.
//!
//! ```text
//! Broker, Coordinator → Connections   the server of the slot                    connections
//!                     → RequestQueue  one queue a connection                    pipeline
//!                     → round trip    all that waits is one pipeline, then the next
//!                     → replies       every reply is checked
//! server              → Subscriptions → the node's queue                        subscriptions
//! ```
//!
//! A connection is never repaired. Whatever goes wrong (it breaks, a reply is late, an error or malformed, probes do
//! not arrive, a slot has moved), the node gets [`Incoming::Disconnected`], all connections are dropped, and new ones
//! are made to the servers that Redis reports then (`connect`, `topology`). So no message is missed unnoticed.
//!
//! This file is the client; start here.

mod connect;
mod connections;
mod error;
mod keys;
pub mod options;
mod pipeline;
mod probe;
mod replies;
mod scripts;
mod subscriptions;
mod topology;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use redis::Value;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

pub use options::Options;

use super::broker::{
    Broker, Incoming, IncomingReceiver, IncomingSender, PendingReply, Topic, Unavailable, incoming_queue,
};
use super::coordinator::{CachedMessage, Coordinator, Leases, PARTITIONS, Record, partition_of};
use super::group::{Group, NodeId, Rejected, Snapshot, Update, Version};
use crate::tls_client::AuthoritiesError;
use connect::Connector;
use connections::Connections;
use error::{Backoff, ErrorLog};
use keys::{HashTag, Keys};
use scripts::Call;
use subscriptions::Destination;

/// When connections break that lasted for this long, the backoff starts again.
const BACKOFF_RESET: Duration = Duration::from_secs(10);

/// Partitions whose occupied groups are read at once. Other requests do not wait for all 64.
const OCCUPIED_PARTITIONS_MAX: usize = 4;

/// Settings that can never work.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file with the certificates of authorities.
    #[error("redis.tls_ca_file: {0}")]
    CaFile(#[from] AuthoritiesError),
    /// No address.
    #[error("no Redis server is given")]
    NoServer,
    /// TLS verifies a name.
    #[error("no certificate can be for {0:?}: TLS needs a host name or an address")]
    ServerName(String),
    /// A Redis Cluster has only database 0.
    #[error("a Redis Cluster has only database 0, not {0}")]
    Database(u32),
    /// Braces would break the hash tags of keys.
    #[error("the prefix {0:?} is empty or has braces in it")]
    Prefix(String),
}

/// The client of one node. Its connections end when it is dropped.
pub struct RedisClient {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

impl fmt::Debug for RedisClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_connected = self.shared.connections.read().is_some();
        f.debug_struct("RedisClient").field("is_connected", &is_connected).finish_non_exhaustive()
    }
}

struct Shared {
    keys: Keys,
    /// `None` while disconnected.
    connections: RwLock<Option<Connections>>,
}

impl RedisClient {
    /// Starts to connect, in a task of the current runtime. [`Incoming::Connected`] follows when Redis is reached;
    /// until then requests fail. An unreachable Redis is not an error.
    ///
    /// # Errors
    /// Settings that can never work.
    pub fn start(options: Options) -> Result<(Self, IncomingReceiver), StartError> {
        let (incoming, receiver) = incoming_queue();
        let keys = Keys::new(&options.prefix);
        let connector = Connector::new(options, keys.clone(), incoming.clone())?;
        let shared = Arc::new(Shared { keys, connections: RwLock::new(None) });
        let task = tokio::spawn(stay_connected(Arc::clone(&shared), connector, incoming));
        Ok((Self { shared, _task: AbortOnDropHandle::new(task) }, receiver))
    }
}

/// Connects, waits for an error, and connects again, without end.
async fn stay_connected(shared: Arc<Shared>, mut connector: Connector, incoming: IncomingSender) {
    let (mut errors, mut backoff) = (ErrorLog::default(), Backoff::default());
    let mut was_logged = true;
    loop {
        let (error, was_connected) = match connector.connect().await {
            Ok((connections, mut tasks)) => {
                *shared.connections.write() = Some(connections);
                incoming.push(Incoming::Connected);
                if was_logged {
                    info!("connected to Redis");
                }
                let connected = Instant::now();
                let error = tasks.error().await;
                shared.disconnect();
                tasks.shutdown().await;
                incoming.push(Incoming::Disconnected);
                if connected.elapsed() >= BACKOFF_RESET {
                    backoff.reset();
                }
                was_logged = false;
                (error, true)
            }
            Err(error) => (error, false),
        };
        was_logged |= errors.log(&error, was_connected, Instant::now());
        sleep(backoff.next()).await;
    }
}

impl Shared {
    /// From now on requests fail at once, and no message arrives.
    fn disconnect(&self) {
        if let Some(connections) = self.connections.write().take() {
            connections.close();
        }
    }

    /// Sends calls to the server of the hash tag.
    fn send<T: Send + 'static>(
        &self,
        tag: HashTag,
        calls: impl FnOnce(&Keys, &Connections) -> Vec<Call>,
        read: impl FnOnce(Vec<Value>) -> Option<T> + Send + 'static,
    ) -> PendingReply<T> {
        let sent =
            self.connections.read().as_ref().map(|connections| {
                connections.server(tag).commands.send(calls(&self.keys, connections), read)
            });
        pending_reply(sent)
    }

    /// Sends one script of a partition.
    fn send_script<T: Send + 'static>(
        &self,
        partition: u16,
        call: impl FnOnce(&Keys, &str) -> Call,
        read: impl FnOnce(Value) -> Option<T> + Send + 'static,
    ) -> PendingReply<T> {
        let tag = HashTag::Partition(partition);
        let calls = |keys: &Keys, _: &Connections| vec![call(keys, &keys.prefix(tag))];
        self.send(tag, calls, |values| read(replies::single(values)?))
    }

    /// A call of `update` or `reap`, with the arguments that both have.
    fn group_script(
        keys: &Keys,
        connections: &Connections,
        script: &'static scripts::Script,
        script_keys: &[String],
        partition: u16,
    ) -> Call {
        let publish = connections.group_commands().publish;
        script.call(script_keys).arg(publish).arg(partition).arg(keys.node_topic_prefix())
    }
}

fn pending_reply<T: Send + 'static>(sent: Option<oneshot::Receiver<T>>) -> PendingReply<T> {
    Box::pin(async move { sent.ok_or(Unavailable)?.await.map_err(|_| Unavailable) })
}

fn flag(is_set: bool) -> &'static str {
    if is_set { "1" } else { "0" }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

impl Broker for RedisClient {
    fn publish(&self, messages: Vec<(Topic, Bytes)>) -> PendingReply<()> {
        let connections = self.shared.connections.read();
        let Some(connections) = &*connections else { return pending_reply(None) };
        let mut calls: Vec<Vec<Call>> = connections.servers().iter().map(|_| Vec::new()).collect();
        for (topic, message) in messages {
            let call = Call::new(connections.commands(&topic).publish)
                .arg(self.shared.keys.topic(&topic))
                .arg(&message[..]);
            calls[connections.server_index(HashTag::of(&topic))].push(call);
        }
        let sent = connections.servers().iter().zip(calls).filter(|(_, calls)| !calls.is_empty());
        let sent: Vec<_> = sent.map(|(server, calls)| server.commands.send(calls, replies::ignore)).collect();
        Box::pin(async move {
            for reply in sent {
                reply.await.map_err(|_| Unavailable)?;
            }
            Ok(())
        })
    }

    fn subscribe(&self, topic: Topic) -> PendingReply<()> {
        let sent = self.shared.connections.read().as_ref().map(|connections| {
            let (server, name) = (connections.server(HashTag::of(&topic)), self.shared.keys.topic(&topic));
            let call = Call::new(connections.commands(&topic).subscribe).arg(&name);
            server.subscriptions.add(&name, Destination::Node(topic));
            server.subscription_commands.send(vec![call], replies::ignore)
        });
        pending_reply(sent)
    }

    fn unsubscribe(&self, topic: Topic) {
        if let Some(connections) = &*self.shared.connections.read() {
            let (server, name) = (connections.server(HashTag::of(&topic)), self.shared.keys.topic(&topic));
            if server.subscriptions.remove(&name) {
                let call = Call::new(connections.commands(&topic).unsubscribe).arg(&name);
                drop(server.subscription_commands.send(vec![call], replies::ignore));
            }
        }
    }
}

impl Coordinator for RedisClient {
    fn update(&self, update: Update, is_recorded: bool) -> PendingReply<Result<Snapshot, Rejected>> {
        let Update { node, sequence, group, holds, present, gone, is_complete, wants_members } = update;
        let partition = partition_of(&group);
        let tag = HashTag::Partition(partition);
        let calls = |keys: &Keys, connections: &Connections| {
            let mut script_keys = keys.node_keys(partition, node).to_vec();
            script_keys.extend(keys.group_keys(&group));
            script_keys.push(keys.key(tag, &format!("s:{node}:{group}")));
            let mut call = Shared::group_script(keys, connections, &scripts::UPDATE, &script_keys, partition)
                .arg(keys.topic(&Topic::Group(Arc::clone(&group))))
                .arg(node.to_string())
                .arg(sequence)
                .arg(&*group)
                .arg(flag(holds))
                .arg(flag(is_complete))
                .arg(flag(wants_members))
                .arg(flag(is_recorded))
                .arg(present.len());
            for (id, info) in &present {
                call = call.arg(&**id).arg(&info[..]);
            }
            vec![gone.iter().fold(call, |call, id| call.arg(&**id))]
        };
        self.shared.send(tag, calls, |values| replies::update(replies::single(values)?))
    }

    fn snapshot(&self, group: Group) -> PendingReply<Snapshot> {
        let call = |keys: &Keys, _: &str| scripts::SNAPSHOT.call(&keys.group_keys(&group));
        self.shared.send_script(partition_of(&group), call, replies::snapshot)
    }

    fn occupied(&self, prefix: &str) -> PendingReply<Vec<(Group, usize)>> {
        let (shared, prefix) = (Arc::clone(&self.shared), prefix.to_owned());
        Box::pin(async move {
            let mut groups = Vec::new();
            for first in (0..PARTITIONS).step_by(OCCUPIED_PARTITIONS_MAX) {
                let some = (first..PARTITIONS).take(OCCUPIED_PARTITIONS_MAX).map(|partition| {
                    let call = |_: &Keys, begin: &str| {
                        scripts::OCCUPIED.call(&[format!("{begin}o")]).arg(&prefix).arg(begin)
                    };
                    shared.send_script(partition, call, replies::occupied)
                });
                for reply in some.collect::<Vec<_>>() {
                    groups.append(&mut reply.await?);
                }
            }
            Ok(groups)
        })
    }

    fn publish_cached(&self, group: Group, message: Bytes, ttl: Duration) -> PendingReply<()> {
        let tag = HashTag::Partition(partition_of(&group));
        let calls = |keys: &Keys, connections: &Connections| {
            let script_keys = [keys.key(tag, "v"), keys.key(tag, &format!("k:{group}"))];
            let call = scripts::CACHE
                .call(&script_keys)
                .arg(connections.group_commands().publish)
                .arg(keys.topic(&Topic::Group(Arc::clone(&group))))
                .arg(millis(ttl))
                .arg(&message[..]);
            vec![call]
        };
        self.shared.send(tag, calls, replies::ignore)
    }

    fn cached(&self, group: Group) -> PendingReply<Option<CachedMessage>> {
        let call = |_: &Keys, prefix: &str| scripts::CACHED.call(&[format!("{prefix}k:{group}")]);
        self.shared.send_script(partition_of(&group), call, replies::cached)
    }

    fn renew_lease(
        &self,
        node: NodeId,
        is_new: bool,
        lease: Duration,
    ) -> PendingReply<Result<Leases, Rejected>> {
        let calls = |keys: &Keys| {
            let call = scripts::RENEW.call(&[keys.key(HashTag::Global, "leases")]);
            vec![call.arg(node.to_string()).arg(flag(is_new)).arg(millis(lease))]
        };
        // Ahead of other requests: a lease that expires under load would add to the load.
        let sent = self.shared.connections.read().as_ref().map(|connections| {
            let read = |values| replies::leases(replies::single(values)?);
            connections.server(HashTag::Global).commands.send_urgent(calls(&self.shared.keys), read)
        });
        pending_reply(sent)
    }

    fn remove_lease(&self, node: NodeId) -> PendingReply<()> {
        let calls = |keys: &Keys, _: &Connections| {
            vec![Call::new("ZREM").arg(keys.key(HashTag::Global, "leases")).arg(node.to_string())]
        };
        self.shared.send(HashTag::Global, calls, replies::ignore)
    }

    fn nodes(&self, partition: u16) -> PendingReply<Vec<NodeId>> {
        let call = |_: &Keys, prefix: &str| Call::new("HKEYS").arg(format!("{prefix}n"));
        self.shared.send_script(partition, call, replies::nodes)
    }

    fn reap(&self, partition: u16, node: NodeId) -> PendingReply<bool> {
        let tag = HashTag::Partition(partition);
        let calls = |keys: &Keys, connections: &Connections| {
            let script_keys = keys.node_keys(partition, node);
            let call = Shared::group_script(keys, connections, &scripts::REAP, &script_keys, partition);
            vec![call.arg(keys.prefix(tag)).arg(node.to_string())]
        };
        self.shared.send(tag, calls, |values| Some(replies::number(&replies::single(values)?)? == 1))
    }

    fn reserve(&self, quota: Group, node: NodeId, wanted: u64, max: u64) -> PendingReply<u64> {
        let partition = partition_of(&quota);
        let call = |keys: &Keys, prefix: &str| {
            let [_, sequences, expired, owned, ..] = keys.node_keys(partition, node);
            let call = scripts::RESERVE.call(&[format!("{prefix}q:{quota}"), sequences, expired, owned]);
            call.arg(node.to_string()).arg(wanted).arg(max).arg(&*quota)
        };
        self.shared.send_script(partition, call, |value| replies::number(&value))
    }

    fn claim_records(&self, partition: u16, node: NodeId, lease: Duration) -> PendingReply<bool> {
        let call = |_: &Keys, prefix: &str| {
            let keys = ["w", "d"].map(|rest| format!("{prefix}{rest}"));
            scripts::CLAIM.call(&keys).arg(node.to_string()).arg(millis(lease))
        };
        self.shared.send_script(partition, call, move |value| {
            let (is_reader, dropped) = replies::claim(value)?;
            if dropped > 0 {
                warn!(partition, dropped, "records for webhooks were dropped: no node has read them in time");
            }
            Some(is_reader)
        })
    }

    fn release_records(&self, partition: u16, node: NodeId) -> PendingReply<()> {
        let call =
            |_: &Keys, prefix: &str| scripts::RELEASE.call(&[format!("{prefix}w")]).arg(node.to_string());
        self.shared.send_script(partition, call, |_| Some(()))
    }

    fn records(&self, partition: u16, after: Version, records_max: usize) -> PendingReply<Vec<Record>> {
        // A consumer group would add nothing: only the node with the claim reads, and ids are versions.
        let call = |_: &Keys, prefix: &str| {
            let first = format!("{}-0", after.saturating_add(1));
            Call::new("XRANGE").arg(format!("{prefix}r")).arg(first).arg("+").arg("COUNT").arg(records_max)
        };
        self.shared.send_script(partition, call, replies::records)
    }

    fn ack_records(&self, partition: u16, versions: Vec<Version>) -> PendingReply<()> {
        if versions.is_empty() {
            return Box::pin(std::future::ready(Ok(())));
        }
        let call = |_: &Keys, prefix: &str| {
            let ids = versions.iter().map(|version| format!("{version}-0"));
            ids.fold(Call::new("XDEL").arg(format!("{prefix}r")), Call::arg)
        };
        self.shared.send_script(partition, call, |_| Some(()))
    }
}
