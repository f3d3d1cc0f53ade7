//! Where channels and users live: on this node alone, or shared with the other nodes of a cluster.
//!
//! The hub asks this type, and nothing else in the hub distinguishes the two. A single node does what `local` and `users` do
//! at once; in a cluster, [`clustered`](super::clustered) goes in front of them.

use std::sync::Arc;

use super::clustered::Clustered;
use super::query::{ChannelQuery, Source};
use super::users::SignIn;
use super::{Shared, Unavailable, key};
use crate::apps::{App, ConnectionPermit};
use crate::outbox::Outbox;
use crate::protocol::message::Event;
use crate::protocol::{ChannelName, CloseCode, Member, SocketId, UserId};
use crate::registry::{Backlog, ChannelInfo, ChannelKey, JoinError, Left, Published};

/// See the module's documentation.
#[derive(Debug)]
pub(super) enum Backend {
    /// A single node.
    Local,
    /// A node of a cluster.
    Clustered(Arc<Clustered>),
}

impl Backend {
    pub(super) const fn is_clustered(&self) -> bool {
        matches!(self, Self::Clustered(_))
    }

    /// See [`super::Hub::is_ready`].
    pub(super) fn is_ready(&self) -> bool {
        match self {
            Self::Local => true,
            Self::Clustered(clustered) => clustered.cluster().is_ready(),
        }
    }

    /// See [`super::Hub::drain_close_code`].
    pub(super) const fn drain_close_code(&self) -> CloseCode {
        match self {
            Self::Local => CloseCode::OverCapacity,
            Self::Clustered(_) => CloseCode::Reconnect,
        }
    }

    /// See [`super::Hub::acquire_connection`].
    pub(super) async fn acquire_connection(&self, app: &Arc<App>) -> Option<ConnectionPermit> {
        match self {
            Self::Local => ConnectionPermit::acquire(app),
            Self::Clustered(clustered) => Box::pin(clustered.acquire_connection(app)).await,
        }
    }

    /// See [`super::Hub::join`].
    pub(super) fn join(
        &self,
        hub: &Arc<Shared>,
        app: &Arc<App>,
        outbox: &Arc<Outbox>,
        channel: &ChannelName,
        member: Option<Member>,
    ) -> Result<Option<Backlog>, JoinError> {
        match self {
            Self::Local => {
                let joined = hub.join(app, outbox, channel, member)?;
                hub.deliver(joined.drive);
                Ok(joined.backlog)
            }
            Self::Clustered(clustered) => clustered.join(hub, app, outbox, channel, member).map(|()| None),
        }
    }

    /// See [`super::Hub::leave`].
    pub(super) fn leave(
        &self,
        hub: &Arc<Shared>,
        app: &App,
        channel: &ChannelName,
        socket: SocketId,
    ) -> Option<Left> {
        match self {
            Self::Local => hub.leave(app, channel, socket),
            Self::Clustered(clustered) => clustered.leave(hub, app, channel, socket),
        }
    }

    /// See [`super::Hub::publish`].
    pub(super) async fn publish<'e>(
        &self,
        hub: &Shared,
        app: &App,
        events: impl Iterator<Item = Event<'e>>,
    ) -> Result<(), Unavailable> {
        match self {
            Self::Clustered(clustered) if clustered.publishes_to_broker() => {
                Box::pin(clustered.publish(hub, app, events)).await
            }
            Self::Local | Self::Clustered(_) => {
                hub.publish_all(app, events).await;
                Ok(())
            }
        }
    }

    /// See [`super::Hub::publish_from_client`]. `None`: the event was dropped, because the sender is not subscribed.
    pub(super) fn publish_from_client(
        &self,
        hub: &Shared,
        app: &App,
        event: &Event<'_>,
    ) -> Result<Option<Published>, Unavailable> {
        match self {
            Self::Clustered(clustered) if clustered.publishes_to_broker() => {
                let is_published = clustered.publish_from_client(hub, app, event)?;
                Ok(is_published.then(Published::default))
            }
            Self::Local | Self::Clustered(_) => Ok(Some(hub.publish_one(app, event))),
        }
    }

    /// See [`super::Hub::sign_in`].
    pub(super) fn sign_in(
        &self,
        hub: &Arc<Shared>,
        app: &Arc<App>,
        outbox: &Arc<Outbox>,
        sign_in: &SignIn<'_>,
    ) {
        match self {
            Self::Local => hub.sign_in(app, outbox, sign_in),
            Self::Clustered(clustered) => clustered.sign_in(hub, app, outbox, sign_in),
        }
    }

    /// See [`super::Hub::sign_out`].
    pub(super) fn sign_out(
        &self,
        hub: &Shared,
        app: &App,
        socket: SocketId,
        user: &UserId,
        watchlist: &[UserId],
    ) {
        match self {
            Self::Local => hub.sign_out(app, socket, user, watchlist),
            Self::Clustered(clustered) => clustered.sign_out(hub, app, socket, user, watchlist),
        }
    }

    /// Orders the other nodes to close the connections of a user. The order is sent before the return; the future completes
    /// when the broker has it.
    pub(super) fn terminate_on_other_nodes(
        &self,
        app: &App,
        user: &UserId,
    ) -> impl Future<Output = Result<(), Unavailable>> + use<> {
        let sent = match self {
            Self::Local => None,
            Self::Clustered(clustered) => Some(clustered.terminate_user(app, user)),
        };
        async {
            match sent {
                Some(sent) => sent.await,
                None => Ok(()),
            }
        }
    }

    /// See [`super::Hub::channel`].
    pub(super) async fn channel(
        &self,
        hub: &Shared,
        app: &App,
        channel: &ChannelName,
        query: ChannelQuery,
    ) -> Result<ChannelInfo, Unavailable> {
        match self {
            Self::Local => Ok(hub.registry.info(&key(app, channel), hub.now())),
            Self::Clustered(clustered) => Box::pin(clustered.channel(hub, app, channel, query)).await,
        }
    }

    /// See [`super::Hub::users`].
    pub(super) async fn users(
        &self,
        hub: &Shared,
        app: &App,
        channel: &ChannelName,
    ) -> Result<Vec<UserId>, Unavailable> {
        match self {
            Self::Local => Ok(hub.registry.users(&key(app, channel))),
            Self::Clustered(clustered) => clustered.users(app, channel).await,
        }
    }

    /// See [`super::Hub::channels`].
    pub(super) async fn channels(
        &self,
        hub: &Shared,
        app: &App,
        prefix: &str,
        query: ChannelQuery,
    ) -> Result<Source, Unavailable> {
        match self {
            Self::Local => Ok(Source::Node(hub.registry.occupied(&app.id.0, prefix))),
            Self::Clustered(clustered) => {
                let channels = Box::pin(clustered.channels(hub, app, prefix, query)).await?;
                Ok(Source::Cluster(channels))
            }
        }
    }

    /// See [`super::Hub::connections_of`].
    pub(super) async fn connections_of(&self, app: &App) -> Result<u64, Unavailable> {
        match self {
            Self::Local => Ok(app.state.connections.now().into()),
            Self::Clustered(clustered) => clustered.connections_of(app).await,
        }
    }

    /// Whether this node sends webhooks when a channel becomes occupied or vacated here. In a cluster, they come from the
    /// records of the coordinator.
    pub(super) const fn sends_edge_webhooks(&self) -> bool {
        matches!(self, Self::Local)
    }

    /// Whether this node sends the count webhooks of a channel: in a cluster, one node does.
    pub(super) fn sends_count_webhooks(&self, key: &ChannelKey) -> bool {
        match self {
            Self::Local => true,
            Self::Clustered(clustered) => clustered.sends_count_webhooks(key),
        }
    }

    /// Work for every second, from [`super::Hub::run_timers`].
    pub(super) fn tick(&self, hub: &Arc<Shared>) {
        match self {
            Self::Local => {}
            Self::Clustered(clustered) => clustered.publish_missed_counts(hub),
        }
    }

    /// Periodic work that waits for other nodes. Runs until it is dropped, or ends if there is none.
    pub(super) async fn run_timers(&self) {
        match self {
            Self::Local => {}
            Self::Clustered(clustered) => clustered.run_quotas().await,
        }
    }

    /// See [`super::Hub::read_records`]. Ends if there are no records to read.
    pub(super) async fn read_records(&self, hub: &Arc<Shared>) {
        match self {
            Self::Local => {}
            Self::Clustered(clustered) => clustered.records().read(hub, clustered).await,
        }
    }

    /// See [`super::Hub::close_records`].
    pub(super) async fn close_records(&self) {
        match self {
            Self::Local => {}
            Self::Clustered(clustered) => clustered.records().close(super::CLOSE_TIMEOUT).await,
        }
    }
}
