//! Queries of the API, and requests of other nodes.
//!
//! | request | reply |
//! | --- | --- |
//! | `s<group>` | the node's subscribers of a channel |
//! | `p<app>/<prefix>` | the same for all channels with the prefix: see `channel_list` |
//! | `n<app>` | the node's connections of an app |
//! | `t<app>/<user>`, a notice | none; the node closes the connections of the user |

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;

use super::channel_list::{self, ClusterChannels};
use super::{Clustered, Shared, Subject, channel_group, group_of, key};
use crate::apps::App;
use crate::cluster::broker::Unavailable;
use crate::cluster::node::Reply;
use crate::hub::ChannelQuery;
use crate::protocol::{ChannelName, UserId};
use crate::registry::ChannelInfo;

impl Clustered {
    pub(in crate::hub) async fn channel(
        &self,
        hub: &Shared,
        app: &App,
        channel: &ChannelName,
        query: ChannelQuery,
    ) -> Result<ChannelInfo, Unavailable> {
        let group = group_of(app, channel);
        let snapshot = self.cluster.snapshot(Arc::clone(&group)).await?;
        let users = snapshot.members.map_or(0, |members| members.len());
        // The group of a user includes its watchers.
        let occupied = if channel.user().is_some() { users > 0 } else { snapshot.occupied };
        let mut info = ChannelInfo { subscriptions: usize::from(occupied), users, cache: None };
        if query.subscriptions && occupied {
            info.subscriptions = hub.registry.info(&key(app, channel), hub.now()).subscriptions;
            for reply in self.cluster.request_all(format!("s{group}").as_bytes()).await? {
                info.subscriptions += read_count(&reply);
            }
            // Counts at least one: nodes that did not reply in time have subscribers, too.
            info.subscriptions = info.subscriptions.max(1);
        }
        if query.cache && channel.is_cached() {
            let cached = self.cluster.cached(group).await?;
            info.cache = cached.and_then(|cached| Some((self.read_cached(&cached.message)?.1, cached.ttl)));
        }
        Ok(info)
    }

    pub(in crate::hub) async fn users(
        &self,
        app: &App,
        channel: &ChannelName,
    ) -> Result<Vec<UserId>, Unavailable> {
        let snapshot = self.cluster.snapshot(channel_group(&app.id.0, channel.as_str())).await?;
        let members = snapshot.members.unwrap_or_default();
        Ok(members.iter().filter_map(|(id, _)| UserId::parse(id, usize::MAX).ok()).collect())
    }

    pub(in crate::hub) async fn channels(
        &self,
        hub: &Shared,
        app: &App,
        prefix: &str,
        query: ChannelQuery,
    ) -> Result<ClusterChannels, Unavailable> {
        let groups = self.cluster.occupied(&channel_group(&app.id.0, prefix)).await?;
        let channel_of = |group: &str| match self.subject(group)? {
            Subject::Channel(_, channel) => Some(channel),
            Subject::User(..) => None,
        };
        let mut channels = ClusterChannels::new(groups, channel_of).await;
        if query.subscriptions {
            channels.add_local(hub, &app.id.0, prefix).await;
            let request = format!("p{}/{prefix}", app.id);
            for reply in self.cluster.request_all(request.as_bytes()).await? {
                channels.add_reply(&reply).await;
            }
        }
        Ok(channels)
    }

    pub(in crate::hub) async fn connections_of(&self, app: &App) -> Result<u64, Unavailable> {
        let others = self.cluster.request_all(format!("n{}", app.id).as_bytes()).await?;
        let others = others.iter().map(|reply| read_count(reply) as u64).sum::<u64>();
        Ok(others + u64::from(app.state.connections.now()))
    }

    /// Handles a request of another node, or a notice; `None`: there is nothing to reply, or it is malformed.
    pub(super) fn handle_request(&self, hub: &Arc<Shared>, request: &str) -> Option<Reply> {
        let (kind, rest) = (request.get(..1)?, request.get(1..)?);
        let count = match kind {
            "s" => {
                let (app, channel) = self.subject(rest)?.channel();
                hub.registry.info(&key(&app, &channel), hub.now()).subscriptions
            }
            "n" => self.apps.by_id(rest)?.state.connections.now() as usize,
            "p" => {
                let (app, prefix) = rest.split_once('/')?;
                return Some(Box::pin(channel_list::reply(Arc::clone(hub), app.into(), prefix.into())));
            }
            "t" => {
                let (app, user) = rest.split_once('/')?;
                let (app, user) = (self.apps.by_id(app)?, UserId::parse(user, usize::MAX).ok()?);
                hub.terminate_user(&app, &user);
                if app.terminate_presence_members {
                    let hub = Arc::clone(hub);
                    hub.runtime.clone().spawn(async move { hub.terminate_members(&app, &user).await });
                }
                return None;
            }
            _ => return None,
        };
        Some(Box::pin(ready(count.to_string().into())))
    }
}

/// A count in a reply; 0 if it is malformed.
fn read_count(reply: &Bytes) -> usize {
    std::str::from_utf8(reply).ok().and_then(|digits| digits.parse().ok()).unwrap_or_default()
}
