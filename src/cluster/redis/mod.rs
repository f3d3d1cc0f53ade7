//! Redis as the broker between nodes.
//!
//! What nodes agree on lies in hashes, sets and streams, whose names `names` lists; each operation is one script
//! (`scripts`), and all that a script touches lies in one slot of a Redis Cluster. Messages are PUBLISHed, or SPUBLISHed
//! where topics have slots.
//!
//! ```text
//! Driver method → Live     which server has it                    connecting
//!               → Requests one queue a connection                 link
//!               → work     all that waits: one pipeline, then the next
//!               → replies  read with distrust → the answer
//! server        → Hearing  what is listened to → Arrivals
//! ```
//!
//! A connection is never mended: whatever goes wrong (it breaks, an answer is late, an error or senseless, published
//! numbers do not arrive, a slot has moved), the node is told that Redis is lost, all connections are dropped, and made
//! anew with what the servers then say of themselves. So nothing can be missed without being noticed.
//!
//! This file is the driver; start there.

mod connecting;
mod hearing;
mod link;
mod names;
pub mod options;
mod replies;
mod scripts;
mod tls;
mod trouble;

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
pub use tls::{Anyone, AuthoritiesError, check_authorities};

use super::driver::{
    Answering, Arrivals, Arriving, Driver, Incoming, Kept, Leases, Lost, PARTITIONS, Record, Topic,
    partition_of, queue,
};
use super::truth::{Answer, Group, NodeId, Refusal, Update, Version};
use connecting::{Connector, Live};
use hearing::Ear;
use names::{Names, Place};
use scripts::Call;
use trouble::{Backoff, Reports};

/// Connections that last for so long were good ones: when they break, it is not waited longer than at first.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// Parts whose occupied groups are asked for at once: what is asked of Redis meanwhile does not wait for all of them.
const OCCUPIED_AT_ONCE: usize = 4;

/// Settings that can never work.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file with the certificates of authorities.
    #[error("redis.tls_ca_file: {0}")]
    CaFile(#[from] AuthoritiesError),
    /// No server's address is given.
    #[error("no server of Redis is given")]
    NoServer,
    /// With TLS, a server has to have a name.
    #[error("no certificate can be for {0:?}: TLS needs a host name or an address")]
    ServerName(String),
    /// A Redis Cluster has no others than 0.
    #[error("a Redis Cluster has only database 0, not {0}")]
    Database(u32),
    /// It would break the hash tags of keys.
    #[error("the prefix {0:?} is empty or has braces in it")]
    Prefix(String),
}

/// The driver. Its connections end with it.
pub struct Redis {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("is_lost", &self.shared.live.read().is_none()).finish_non_exhaustive()
    }
}

struct Shared {
    names: Names,
    /// `None`: Redis is lost.
    live: RwLock<Option<Live>>,
}

impl Redis {
    /// Begins to connect, in a task of the current runtime. Redis is lost until it is [`Incoming::Found`]; that it is
    /// not there is no error.
    ///
    /// # Errors
    /// Settings that can never work.
    pub fn start(options: Options) -> Result<(Self, Arrivals), StartError> {
        let (arriving, arrivals) = queue();
        let names = Names::new(&options.prefix);
        let connector = Connector::new(options, names.clone(), arriving.clone())?;
        let shared = Arc::new(Shared { names, live: RwLock::new(None) });
        let task = tokio::spawn(keep_connected(Arc::clone(&shared), connector, arriving));
        Ok((Self { shared, _task: AbortOnDropHandle::new(task) }, arrivals))
    }
}

/// Connects, waits for trouble, and connects again, without end.
async fn keep_connected(shared: Arc<Shared>, mut connector: Connector, arriving: Arriving) {
    let (mut reports, mut backoff) = (Reports::default(), Backoff::default());
    let mut was_reported = true;
    loop {
        let trouble = match connector.connect().await {
            Ok((live, mut upkeep)) => {
                *shared.live.write() = Some(live);
                arriving.push(Incoming::Found);
                if was_reported {
                    info!("the cluster's Redis is found");
                }
                let found = Instant::now();
                let trouble = upkeep.trouble().await;
                shared.lose();
                upkeep.end().await;
                arriving.push(Incoming::Lost);
                if found.elapsed() >= GOOD_AFTER {
                    backoff.forget();
                }
                was_reported = false;
                trouble
            }
            Err(trouble) => trouble,
        };
        was_reported |= reports.report(&trouble, Instant::now());
        sleep(backoff.next()).await;
    }
}

impl Shared {
    /// What is asked from now on fails at once, and nothing arrives.
    fn lose(&self) {
        if let Some(live) = self.live.write().take() {
            live.close();
        }
    }

    /// Has calls carried out where the place is.
    fn ask<T: Send + 'static>(
        &self,
        place: Place,
        calls: impl FnOnce(&Names, &Live) -> Vec<Call>,
        read: impl FnOnce(Vec<Value>) -> Option<T> + Send + 'static,
    ) -> Answering<T> {
        let asked = self
            .live
            .read()
            .as_ref()
            .map(|live| live.link(place).commands.ask(calls(&self.names, live), read));
        answering(asked)
    }

    /// The same with one script of a partition.
    fn ask_script<T: Send + 'static>(
        &self,
        partition: u16,
        call: impl FnOnce(&Names, &str) -> Call,
        read: impl FnOnce(Value) -> Option<T> + Send + 'static,
    ) -> Answering<T> {
        let place = Place::Partition(partition);
        let calls = |names: &Names, _: &Live| vec![call(names, &names.begin(place))];
        self.ask(place, calls, |values| read(replies::one(values)?))
    }

    /// What `update` and `reap` both are told.
    fn stakes(
        names: &Names,
        live: &Live,
        script: &'static scripts::Script,
        keys: &[String],
        partition: u16,
    ) -> Call {
        let publish = live.group_verbs().publish;
        script.call(keys).arg(publish).arg(partition).arg(names.node_topics())
    }
}

fn answering<T: Send + 'static>(asked: Option<oneshot::Receiver<T>>) -> Answering<T> {
    Box::pin(async move { asked.ok_or(Lost)?.await.map_err(|_| Lost) })
}

fn flag(is_set: bool) -> &'static str {
    if is_set { "1" } else { "0" }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

impl Driver for Redis {
    fn update(&self, update: Update, is_noted: bool) -> Answering<Result<Answer, Refusal>> {
        let Update { node, number, group, holds, here, gone, is_all, asks } = update;
        let partition = partition_of(&group);
        let calls = |names: &Names, live: &Live| {
            let mut keys = names.stakes(partition, node).to_vec();
            keys.extend(names.group(&group));
            keys.push(names.key(Place::Partition(partition), &format!("s:{node}:{group}")));
            let mut call = Shared::stakes(names, live, &scripts::UPDATE, &keys, partition)
                .arg(names.topic(&Topic::Group(Arc::clone(&group))))
                .arg(node.to_string())
                .arg(number)
                .arg(&*group)
                .arg(flag(holds))
                .arg(flag(is_all))
                .arg(flag(asks))
                .arg(flag(is_noted))
                .arg(here.len());
            for (id, info) in &here {
                call = call.arg(&**id).arg(&info[..]);
            }
            vec![gone.iter().fold(call, |call, id| call.arg(&**id))]
        };
        self.shared.ask(Place::Partition(partition), calls, |values| replies::update(replies::one(values)?))
    }

    fn look(&self, group: Group) -> Answering<Answer> {
        let call = |names: &Names, _: &str| scripts::LOOK.call(&names.group(&group));
        self.shared.ask_script(partition_of(&group), call, replies::look)
    }

    fn occupied(&self, prefix: &str) -> Answering<Vec<(Group, usize)>> {
        let (shared, prefix) = (Arc::clone(&self.shared), prefix.to_owned());
        Box::pin(async move {
            let mut groups = Vec::new();
            for first in (0..PARTITIONS).step_by(OCCUPIED_AT_ONCE) {
                let some = (first..PARTITIONS).take(OCCUPIED_AT_ONCE).map(|partition| {
                    let call = |_: &Names, begin: &str| {
                        scripts::OCCUPIED.call(&[format!("{begin}o")]).arg(&prefix).arg(begin)
                    };
                    shared.ask_script(partition, call, replies::occupied)
                });
                for answered in some.collect::<Vec<_>>() {
                    groups.append(&mut answered.await?);
                }
            }
            Ok(groups)
        })
    }

    fn publish(&self, messages: Vec<(Topic, Bytes)>) -> Answering<()> {
        let live = self.shared.live.read();
        let Some(live) = &*live else { return answering(None) };
        let mut calls: Vec<Vec<Call>> = live.links().iter().map(|_| Vec::new()).collect();
        for (topic, message) in messages {
            let call =
                Call::new(live.verbs(&topic).publish).arg(self.shared.names.topic(&topic)).arg(&message[..]);
            calls[live.link_of(Place::of(&topic))].push(call);
        }
        let asked = live.links().iter().zip(calls).filter(|(_, calls)| !calls.is_empty());
        let asked: Vec<_> = asked.map(|(link, calls)| link.commands.ask(calls, replies::any)).collect();
        Box::pin(async move {
            for answered in asked {
                answered.await.map_err(|_| Lost)?;
            }
            Ok(())
        })
    }

    fn keep(&self, group: Group, message: Bytes, ttl: Duration) -> Answering<()> {
        let place = Place::Partition(partition_of(&group));
        let calls = |names: &Names, live: &Live| {
            let keys = [names.key(place, "v"), names.key(place, &format!("k:{group}"))];
            let call = scripts::KEEP
                .call(&keys)
                .arg(live.group_verbs().publish)
                .arg(names.topic(&Topic::Group(Arc::clone(&group))))
                .arg(millis(ttl))
                .arg(&message[..]);
            vec![call]
        };
        self.shared.ask(place, calls, replies::any)
    }

    fn kept(&self, group: Group) -> Answering<Option<Kept>> {
        let call = |_: &Names, begin: &str| scripts::KEPT.call(&[format!("{begin}k:{group}")]);
        self.shared.ask_script(partition_of(&group), call, replies::kept)
    }

    fn listen(&self, topic: Topic) -> Answering<()> {
        let asked = self.shared.live.read().as_ref().map(|live| {
            let (link, name) = (live.link(Place::of(&topic)), self.shared.names.topic(&topic));
            let call = Call::new(live.verbs(&topic).subscribe).arg(&name);
            link.hearing.listen(&name, Ear::Node(topic));
            link.subscriptions.ask(vec![call], replies::any)
        });
        answering(asked)
    }

    fn ignore(&self, topic: Topic) {
        if let Some(live) = &*self.shared.live.read() {
            let (link, name) = (live.link(Place::of(&topic)), self.shared.names.topic(&topic));
            if link.hearing.ignore(&name) {
                let call = Call::new(live.verbs(&topic).unsubscribe).arg(&name);
                drop(link.subscriptions.ask(vec![call], replies::any));
            }
        }
    }

    fn renew(&self, node: NodeId, is_new: bool, lease: Duration) -> Answering<Result<Leases, Refusal>> {
        let calls = |names: &Names, _: &Live| {
            let call = scripts::RENEW.call(&[names.key(Place::Global, "leases")]);
            vec![call.arg(node.to_string()).arg(flag(is_new)).arg(millis(lease))]
        };
        // A lease that runs out because much is to be done would make it more.
        let asked = self.shared.live.read().as_ref().map(|live| {
            let read = |values| replies::leases(replies::one(values)?);
            live.link(Place::Global).commands.ask_first(calls(&self.shared.names, live), read)
        });
        answering(asked)
    }

    fn nodes(&self, partition: u16) -> Answering<Vec<NodeId>> {
        let call = |_: &Names, begin: &str| Call::new("HKEYS").arg(format!("{begin}n"));
        self.shared.ask_script(partition, call, replies::nodes)
    }

    fn reap(&self, partition: u16, node: NodeId) -> Answering<bool> {
        let place = Place::Partition(partition);
        let calls = |names: &Names, live: &Live| {
            let call = Shared::stakes(names, live, &scripts::REAP, &names.stakes(partition, node), partition);
            vec![call.arg(names.begin(place)).arg(node.to_string())]
        };
        self.shared.ask(place, calls, |values| Some(replies::number(&replies::one(values)?)? == 1))
    }

    fn forget(&self, node: NodeId) -> Answering<()> {
        let calls = |names: &Names, _: &Live| {
            vec![Call::new("ZREM").arg(names.key(Place::Global, "leases")).arg(node.to_string())]
        };
        self.shared.ask(Place::Global, calls, replies::any)
    }

    fn reserve(&self, what: Group, node: NodeId, wanted: u64, max: u64) -> Answering<u64> {
        let partition = partition_of(&what);
        let call = |names: &Names, begin: &str| {
            let [_, numbers, given_up, listed, ..] = names.stakes(partition, node);
            let call = scripts::RESERVE.call(&[format!("{begin}q:{what}"), numbers, given_up, listed]);
            call.arg(node.to_string()).arg(wanted).arg(max).arg(&*what)
        };
        self.shared.ask_script(partition, call, |value| replies::number(&value))
    }

    fn claim(&self, partition: u16, node: NodeId, lease: Duration) -> Answering<bool> {
        let call = |_: &Names, begin: &str| {
            let keys = ["w", "d"].map(|rest| format!("{begin}{rest}"));
            scripts::CLAIM.call(&keys).arg(node.to_string()).arg(millis(lease))
        };
        self.shared.ask_script(partition, call, move |value| {
            let (is_reader, dropped) = replies::claim(value)?;
            if dropped > 0 {
                warn!(
                    partition,
                    dropped, "records were dropped: nobody has read them, and there were too many"
                );
            }
            Some(is_reader)
        })
    }

    fn unclaim(&self, partition: u16, node: NodeId) -> Answering<()> {
        let call =
            |_: &Names, begin: &str| scripts::UNCLAIM.call(&[format!("{begin}w")]).arg(node.to_string());
        self.shared.ask_script(partition, call, |_| Some(()))
    }

    fn records(&self, partition: u16, after: Version, records_max: usize) -> Answering<Vec<Record>> {
        // Whoever has the claim reads, so that a stream's own consumers have nothing to add; ids are versions.
        let call = |_: &Names, begin: &str| {
            let first = format!("{}-0", after.saturating_add(1));
            Call::new("XRANGE").arg(format!("{begin}r")).arg(first).arg("+").arg("COUNT").arg(records_max)
        };
        self.shared.ask_script(partition, call, replies::records)
    }

    fn settle(&self, partition: u16, versions: Vec<Version>) -> Answering<()> {
        if versions.is_empty() {
            return Box::pin(std::future::ready(Ok(())));
        }
        let call = |_: &Names, begin: &str| {
            let ids = versions.iter().map(|version| format!("{version}-0"));
            ids.fold(Call::new("XDEL").arg(format!("{begin}r")), Call::arg)
        };
        self.shared.ask_script(partition, call, |_| Some(()))
    }
}
