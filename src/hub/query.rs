//! Queries about channels, users and connections, on this node or in the whole cluster.

use super::clustered::ClusterChannels;
use super::{ChannelInfo, Hub, Unavailable};
use crate::apps::App;
use crate::protocol::{ChannelName, UserId};
use crate::registry::OccupiedChannels;

/// The attributes of a channel that a query needs besides whether it is occupied. In a cluster, some of them require a
/// question to the other nodes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ChannelQuery {
    /// The number of users.
    pub users: bool,
    /// The number of subscribers.
    pub subscriptions: bool,
    /// The cached event.
    pub cache: bool,
}

impl Hub {
    /// The state of a channel.
    ///
    /// # Errors
    /// [`Unavailable`]: the state on other nodes is unknown.
    pub async fn channel(
        &self,
        app: &App,
        channel: &ChannelName,
        query: ChannelQuery,
    ) -> Result<ChannelInfo, Unavailable> {
        self.0.backend.channel(&self.0, app, channel, query).await
    }

    /// The users of a presence channel.
    ///
    /// # Errors
    /// [`Unavailable`]: the users on other nodes are unknown.
    pub async fn users(&self, app: &App, channel: &ChannelName) -> Result<Vec<UserId>, Unavailable> {
        self.0.backend.users(&self.0, app, channel).await
    }

    /// The occupied channels whose names start with `prefix`, without users' own channels.
    ///
    /// # Errors
    /// [`Unavailable`]: the channels on other nodes are unknown.
    pub async fn channels(
        &self,
        app: &App,
        prefix: &str,
        query: ChannelQuery,
    ) -> Result<ChannelList, Unavailable> {
        let source = self.0.backend.channels(&self.0, app, prefix, query).await?;
        Ok(ChannelList { hub: self.clone(), source })
    }

    /// The number of established connections of an app.
    ///
    /// # Errors
    /// [`Unavailable`]: the number on other nodes is unknown.
    pub async fn connections_of(&self, app: &App) -> Result<u64, Unavailable> {
        self.0.backend.connections_of(app).await
    }

    /// Limits the bytes of the cached events of all apps.
    pub fn limit_cached_bytes(&self, bytes_max: usize) {
        self.0.registry.limit_cached_bytes(bytes_max);
    }
}

/// The occupied channels of an app, in chunks.
#[derive(Debug)]
pub struct ChannelList {
    hub: Hub,
    source: Source,
}

#[derive(Debug)]
pub(super) enum Source {
    /// The channels of a single node.
    Node(OccupiedChannels),
    /// The channels of all nodes of a cluster.
    Cluster(ClusterChannels),
}

impl ChannelList {
    /// The next channels. A chunk may be empty; `None` ends the list. Let other tasks run between chunks.
    pub fn next_chunk(&mut self) -> Option<Vec<(ChannelName, ChannelInfo)>> {
        match &mut self.source {
            Source::Node(occupied) => occupied.next_chunk(self.hub.now()),
            Source::Cluster(channels) => channels.next_chunk(),
        }
    }
}
