//! The hub on a node of a cluster: channels and users are groups.
//!
//! - A channel is the group `c/<app>/<channel>`. A subscriber enters it, in presence channels as a member; the
//!   subscription is carried out when the entry is admitted. The group has the members of all nodes.
//! - A user is the group `u/<app>/<user>`. It has one member, [`ONLINE`], while the user is signed in anywhere. A
//!   connection that watches the user enters it without a member. Events on the user's own channel are published to
//!   this group: the connections of the user are in that channel, which has no group of its own.
//!
//! Events are published to the broker and come back, also to the node that published them, so all nodes deliver the
//! events of a channel in one order (`messages`, `codec`).
//!
//! Everything that concerns a group happens under the lock of its partition ([`Cluster::with_group`]): a leave does not
//! overtake a join, and the events that a subscriber gets continue where its acknowledgement ends.
//!
//! Start with `subscriptions`; `handler` receives the events of the cluster, and `pending` holds the entries that wait.

mod channel_list;
mod codec;
mod counts;
mod handler;
mod messages;
mod pending;
mod queries;
mod quota;
mod records;
mod subscriptions;
mod users;

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Shared, cache_limits, key};
use crate::apps::{App, Apps, ConnectionPermit};
use crate::cluster::group::{Group, MemberInfo};
use crate::cluster::local_groups::EntryId;
use crate::cluster::node::Cluster;
use crate::protocol::{ChannelName, SocketId, UserId};
pub(super) use channel_list::ClusterChannels;
use counts::Counts;
use handler::EventHandler;
use pending::PendingEntry;
use quota::Quotas;
use records::Records;

/// The one member of a user's group.
const ONLINE: &str = "online";

/// Delay before a failed operation is retried.
const RETRY: Duration = Duration::from_secs(1);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Clustered {
    cluster: Cluster,
    /// Receives the events of the cluster, which does not own it.
    _handler: Arc<EventHandler>,
    apps: Arc<Apps>,
    /// Whether events are delivered on this node while the broker is unavailable.
    local_when_broker_lost: bool,
    /// Entries that have not been admitted yet.
    pending: Mutex<HashMap<(Group, EntryId), PendingEntry>>,
    counts: Arc<Counts>,
    quotas: Quotas,
    records: Records,
    /// Bytes of client events that the broker has not acknowledged.
    in_flight: Arc<AtomicUsize>,
}

impl Clustered {
    /// The cluster as the backend of `hub`, which may not exist yet.
    pub(super) fn new(
        hub: &Weak<Shared>,
        apps: Arc<Apps>,
        cluster: Cluster,
        local_when_broker_lost: bool,
    ) -> Self {
        let handler = Arc::new(EventHandler::new(hub));
        cluster.set_handler(&handler);
        Self {
            cluster,
            _handler: handler,
            apps,
            local_when_broker_lost,
            pending: Mutex::default(),
            counts: Arc::default(),
            quotas: Quotas::default(),
            records: Records::default(),
            in_flight: Arc::default(),
        }
    }

    pub(super) const fn records(&self) -> &Records {
        &self.records
    }

    pub(super) const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Whether events go to the broker, even if it is unavailable, and not to local subscribers only.
    pub(super) fn publishes_to_broker(&self) -> bool {
        !self.local_when_broker_lost || self.cluster.is_ready()
    }

    /// See [`super::Hub::acquire_connection`].
    pub(super) async fn acquire_connection(&self, app: &Arc<App>) -> Option<ConnectionPermit> {
        self.quotas.acquire(&self.cluster, app).await
    }

    /// Releases unused permits of apps once a second. Runs until it is dropped.
    pub(super) async fn run_quotas(&self) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            self.quotas.release_unused(&self.cluster, &self.apps).await;
        }
    }

    /// What a group stands for. `None`: its name is malformed, or this node has no such app.
    fn subject(&self, group: &str) -> Option<Subject> {
        let (kind, rest) = group.split_once('/')?;
        let (app, name) = rest.split_once('/')?;
        // The connections of a removed app still have to leave its groups.
        let app = self.apps.by_id_or_removed(app)?;
        match kind {
            "c" => Some(Subject::Channel(app, ChannelName::of_node(name).ok()?)),
            "u" => Some(Subject::User(app, UserId::parse(name, usize::MAX).ok()?)),
            _ => None,
        }
    }
}

/// What a group stands for.
enum Subject {
    Channel(Arc<App>, ChannelName),
    User(Arc<App>, UserId),
}

impl Subject {
    /// The channel, or the user's own.
    fn channel(self) -> (Arc<App>, ChannelName) {
        match self {
            Self::Channel(app, channel) => (app, channel),
            Self::User(app, user) => (app, ChannelName::of_user(&user)),
        }
    }
}

fn channel_group(app: &str, channel: &str) -> Group {
    format!("c/{app}/{channel}").into()
}

fn user_group(app: &str, user: &str) -> Group {
    format!("u/{app}/{user}").into()
}

/// The group to which events on a channel are published.
fn group_of(app: &App, channel: &ChannelName) -> Group {
    match channel.user() {
        Some(user) => user_group(&app.id.0, user),
        None => channel_group(&app.id.0, channel.as_str()),
    }
}

/// The member of a user's group.
fn online() -> MemberInfo {
    (ONLINE.into(), Bytes::new())
}

/// The entry of a subscriber in the group of a channel.
fn subscriber_entry(socket: SocketId) -> EntryId {
    socket.number().into()
}

/// The entry of a connection in the group of its own user.
fn sign_in_entry(socket: SocketId) -> EntryId {
    EntryId::from(socket.number()) | 1 << 64
}

/// The entry of a connection in the group of a user that it watches.
fn watcher_entry(socket: SocketId) -> EntryId {
    EntryId::from(socket.number()) | 2 << 64
}

/// The entry of a connection that first needs the number of members in a presence channel.
fn capacity_check_entry(socket: SocketId) -> EntryId {
    EntryId::from(socket.number()) | 3 << 64
}
