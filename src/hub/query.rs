//! Queries about channels, users and connections, on this node or in the whole cluster.

use super::clustered::ClusterChannels;
use super::{ChannelInfo, Hub, Unavailable, key};
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
        match &self.0.clustered {
            Some(clustered) => Box::pin(clustered.channel(&self.0, app, channel, query)).await,
            None => Ok(self.0.registry.info(&key(app, channel), self.now())),
        }
    }

    /// The users of a presence channel.
    ///
    /// # Errors
    /// [`Unavailable`]: the users on other nodes are unknown.
    pub async fn users(&self, app: &App, channel: &ChannelName) -> Result<Vec<UserId>, Unavailable> {
        match &self.0.clustered {
            Some(clustered) => clustered.users(app, channel).await,
            None => Ok(self.0.registry.users(&key(app, channel))),
        }
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
        let source = match &self.0.clustered {
            Some(clustered) => {
                Source::Cluster(Box::pin(clustered.channels(&self.0, app, prefix, query)).await?)
            }
            None => Source::Node(self.0.registry.occupied(&app.id.0, prefix)),
        };
        Ok(ChannelList { hub: self.clone(), source })
    }

    /// The number of established connections of an app.
    ///
    /// # Errors
    /// [`Unavailable`]: the number on other nodes is unknown.
    pub async fn connections_of(&self, app: &App) -> Result<u64, Unavailable> {
        match &self.0.clustered {
            Some(clustered) => clustered.connections_of(app).await,
            None => Ok(app.connections.now().into()),
        }
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
enum Source {
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
