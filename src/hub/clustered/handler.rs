//! The hub as the handler of the cluster's events.

use std::future::ready;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use serde_json::value::RawValue;

use super::pending::PendingEntry;
use super::{Clustered, Shared, Subject, key};
use crate::cluster::group::{Group, MemberId, MemberInfo, NodeId, Version};
use crate::cluster::local_groups::EntryId;
use crate::cluster::node::{Capacity, EntryDenied, Handler, Reply};
use crate::hub::backend::Backend;
use crate::observers::{Fact, Kind};
use crate::protocol::{Member, UserId};
use crate::registry::{ChannelKey, Drive};

/// Passes the events of the cluster to the hub.
#[derive(Debug)]
pub(super) struct EventHandler(Weak<Shared>);

impl EventHandler {
    pub(super) fn new(hub: &Weak<Shared>) -> Self {
        Self(Weak::clone(hub))
    }

    /// Runs `act` with the hub and its cluster; `None` after the hub was dropped.
    fn with<T>(&self, act: impl FnOnce(&Arc<Shared>, &Arc<Clustered>) -> T) -> Option<T> {
        let hub = self.0.upgrade()?;
        match &hub.backend {
            Backend::Clustered(clustered) => Some(act(&hub, clustered)),
            Backend::Local => None,
        }
    }
}

impl Handler for EventHandler {
    fn entered(
        &self,
        group: &Group,
        entry: EntryId,
        members: Option<Vec<MemberInfo>>,
    ) -> Result<(), EntryDenied> {
        self.with(|hub, clustered| clustered.entered(hub, group, entry, members)).unwrap_or(Ok(()))
    }

    fn vacated(&self, group: &Group) {
        self.with(|hub, clustered| match clustered.subject(group) {
            Some(Subject::Channel(app, channel)) => {
                clustered.counts.forget(group);
                hub.registry.drop_cluster_state(&key(&app, &channel));
            }
            Some(Subject::User(app, user)) => hub.users.drop_cluster_state(&app.id.0, &user),
            None => {}
        });
    }

    fn member_added(&self, group: &Group, id: &MemberId, info: &Bytes) {
        self.with(|hub, clustered| {
            let in_channel = |key: &ChannelKey| hub.registry.member_added(key, &parse_member(id, info)?);
            clustered.member_changed(hub, group, in_channel, true);
        });
    }

    fn member_removed(&self, group: &Group, id: &MemberId) {
        self.with(|hub, clustered| {
            let in_channel = |key: &ChannelKey| {
                let user = UserId::parse(id, usize::MAX).ok()?;
                hub.registry.member_removed(key, &user)
            };
            clustered.member_changed(hub, group, in_channel, false);
        });
    }

    fn message(&self, group: &Group, version: Option<Version>, message: Bytes) -> Option<Capacity> {
        self.with(|hub, clustered| {
            let (app, channel) = clustered.subject(group)?.channel();
            clustered.deliver(hub, group, (&app, channel), version, &message)
        })?
    }

    fn request(&self, request: Bytes) -> Reply {
        let request = std::str::from_utf8(&request).unwrap_or_default();
        let reply = self.with(|hub, clustered| clustered.handle_request(hub, request)).flatten();
        reply.unwrap_or_else(|| Box::pin(ready(Bytes::new())))
    }

    fn is_recorded(&self, group: &Group) -> bool {
        let is_recorded = self.with(|hub, clustered| match clustered.subject(group) {
            Some(Subject::Channel(app, channel)) => hub.webhooks.wants_records_of_channel(&app, &channel),
            Some(Subject::User(app, user)) => hub.webhooks.wants_records_of_user(&app, &user),
            None => false,
        });
        is_recorded.unwrap_or_default()
    }

    fn records_available(&self, partition: u16) {
        self.with(|_, clustered| clustered.records.wake(partition));
    }

    fn nodes_alive(&self, nodes: &[NodeId]) {
        self.with(|hub, clustered| {
            clustered.records.set_node_count(nodes.len());
            for (group, remote) in clustered.counts.retain_nodes(&nodes.iter().collect()) {
                if let Some(Subject::Channel(app, channel)) = clustered.subject(&group) {
                    clustered.set_remote_count(hub, &key(&app, &channel), remote);
                }
            }
        });
    }

    fn availability_changed(&self, is_available: bool) {
        self.with(|hub, clustered| {
            let fact = || Fact::ClusterAvailability { is_available };
            hub.observers.observe(Kind::ClusterAvailability, fact);
            if is_available {
                clustered.available(hub);
            }
        });
    }
}

impl Clustered {
    /// See [`Handler::entered`].
    fn entered(
        self: &Arc<Self>,
        hub: &Arc<Shared>,
        group: &Group,
        entry: EntryId,
        members: Option<Vec<MemberInfo>>,
    ) -> Result<(), EntryDenied> {
        let Some(subject) = self.subject(group) else { return Ok(()) };
        if let Some(members) = members {
            match &subject {
                Subject::Channel(app, channel) => {
                    let members: Vec<_> =
                        members.iter().filter_map(|(id, info)| parse_member(id, info)).collect();
                    hub.registry.set_members(&key(app, channel), &members);
                }
                Subject::User(app, user) => {
                    hub.users.set_present(&app.id.0, user, !members.is_empty(), hub.now());
                }
            }
        }
        let place = (Arc::clone(group), entry);
        let pending = self.pending.lock().get(&place).cloned();
        match pending {
            Some(PendingEntry::Subscriber(subscriber)) => {
                let key = key(&subscriber.app, &subscriber.channel);
                let is_first = hub.registry.info(&key, hub.now()).subscriptions == 0;
                if subscriber.channel.is_cached() && is_first {
                    self.subscribe_with_cache(hub, group, entry, subscriber);
                    return Ok(());
                }
                self.pending.lock().remove(&place);
                return self.subscribe(hub, group, &subscriber);
            }
            Some(PendingEntry::CapacityCheck(_)) => {
                // In a task of its own: it enters and leaves, which a callback must not do.
                let (hub, clustered, group) = (Arc::clone(hub), Arc::clone(self), Arc::clone(group));
                hub.runtime.clone().spawn(async move {
                    clustered.cluster.with_group(&group, |partition| {
                        clustered.finish_capacity_check(&hub, partition, &group, entry);
                    });
                });
            }
            Some(PendingEntry::SignIn(sign_in)) => {
                self.pending.lock().remove(&place);
                sign_in.complete(hub);
            }
            Some(PendingEntry::Watcher(watcher)) => {
                self.pending.lock().remove(&place);
                watcher.complete_one(hub);
            }
            None => {}
        }
        Ok(())
    }

    /// Passes a change of a group's members to its channel or user.
    fn member_changed(
        &self,
        hub: &Shared,
        group: &Group,
        in_channel: impl FnOnce(&ChannelKey) -> Option<Drive>,
        is_online: bool,
    ) {
        match self.subject(group) {
            Some(Subject::Channel(app, channel)) => hub.drive(in_channel(&key(&app, &channel))),
            Some(Subject::User(app, user)) => {
                hub.users.set_present(&app.id.0, &user, is_online, hub.now());
            }
            None => {}
        }
    }

    /// The broker is available: what it may have lost is registered, and what was missed is delivered.
    fn available(self: &Arc<Self>, hub: &Arc<Shared>) {
        self.records.connected();
        let (task_hub, clustered) = (Arc::clone(hub), Arc::clone(self));
        hub.runtime.spawn(async move {
            clustered.quotas.register(&clustered.cluster, &clustered.apps).await;
            clustered.deliver_missed_cached(&task_hub).await;
        });
        for group in self.counts.restart() {
            if let Some(Subject::Channel(app, channel)) = self.subject(&group) {
                self.count_changed(hub, &app, &channel, &group);
            }
        }
    }
}

/// A member of a group as a member of a presence channel; `None` if it is malformed.
fn parse_member(id: &str, info: &Bytes) -> Option<Member> {
    let info = std::str::from_utf8(info).ok()?;
    serde_json::from_str::<&RawValue>(info).ok()?;
    Some(Member { id: UserId::parse(id, usize::MAX).ok()?, info: info.into() })
}
