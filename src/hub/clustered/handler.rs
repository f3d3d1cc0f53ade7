//! The hub as the handler of the cluster's events.

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::pending::PendingEntry;
use super::{Shared, Subject, key};
use crate::cluster::group::{Group, MemberId, MemberInfo, NodeId, Version};
use crate::cluster::local_groups::EntryId;
use crate::cluster::node::{Capacity, EntryDenied, Handler, Reply};
use crate::protocol::{Member, UserId};
use crate::registry::{ChannelKey, Drive};

impl Handler for Shared {
    fn entered(
        &self,
        group: &Group,
        entry: EntryId,
        members: Option<Vec<MemberInfo>>,
    ) -> Result<(), EntryDenied> {
        let Some(clustered) = &self.clustered else { return Ok(()) };
        let Some(subject) = clustered.subject(group) else { return Ok(()) };
        if let Some(members) = members {
            match &subject {
                Subject::Channel(app, channel) => {
                    let members: Vec<_> =
                        members.iter().filter_map(|(id, info)| parse_member(id, info)).collect();
                    self.registry.set_members(&key(app, channel), &members);
                }
                Subject::User(app, user) => {
                    self.users.set_present(&app.id.0, user, !members.is_empty(), self.now());
                }
            }
        }
        let place = (Arc::clone(group), entry);
        let pending = clustered.pending.lock().get(&place).cloned();
        match pending {
            Some(PendingEntry::Subscriber(subscriber)) => {
                let key = key(&subscriber.app, &subscriber.channel);
                let is_first = self.registry.info(&key, self.now()).subscriptions == 0;
                if subscriber.channel.is_cached() && is_first {
                    clustered.subscribe_with_cache(self, group, entry, subscriber);
                    return Ok(());
                }
                clustered.pending.lock().remove(&place);
                return clustered.subscribe(self, group, &subscriber);
            }
            Some(PendingEntry::CapacityCheck(_)) => {
                // In a task of its own: it enters and leaves, which a callback must not do.
                if let Some(hub) = self.strong() {
                    let group = Arc::clone(group);
                    self.runtime.spawn(async move {
                        let Some(clustered) = &hub.clustered else { return };
                        clustered.cluster.with_group(&group, |partition| {
                            clustered.finish_capacity_check(&hub, partition, &group, entry);
                        });
                    });
                }
            }
            Some(PendingEntry::SignIn(sign_in)) => {
                clustered.pending.lock().remove(&place);
                sign_in.complete(self);
            }
            Some(PendingEntry::Watcher(watcher)) => {
                clustered.pending.lock().remove(&place);
                watcher.complete_one(self);
            }
            None => {}
        }
        Ok(())
    }

    fn vacated(&self, group: &Group) {
        let Some(clustered) = &self.clustered else { return };
        match clustered.subject(group) {
            Some(Subject::Channel(app, channel)) => {
                clustered.counts.forget(group);
                self.registry.drop_cluster_state(&key(app, &channel));
            }
            Some(Subject::User(app, user)) => self.users.drop_cluster_state(&app.id.0, &user),
            None => {}
        }
    }

    fn member_added(&self, group: &Group, id: &MemberId, info: &Bytes) {
        let in_channel = |key: &ChannelKey| self.registry.member_added(key, &parse_member(id, info)?);
        self.member_changed(group, in_channel, true);
    }

    fn member_removed(&self, group: &Group, id: &MemberId) {
        let in_channel = |key: &ChannelKey| {
            let user = UserId::parse(id, usize::MAX).ok()?;
            self.registry.member_removed(key, &user)
        };
        self.member_changed(group, in_channel, false);
    }

    fn message(&self, group: &Group, version: Option<Version>, message: Bytes) -> Option<Capacity> {
        let clustered = self.clustered.as_ref()?;
        let channel = clustered.subject(group)?.channel();
        clustered.deliver(self, group, channel, version, &message)
    }

    fn request(&self, request: Bytes) -> Reply {
        let request = std::str::from_utf8(&request).unwrap_or_default();
        let reply = self.clustered.as_ref().and_then(|clustered| clustered.handle_request(self, request));
        reply.unwrap_or_else(|| Box::pin(ready(Bytes::new())))
    }

    fn is_recorded(&self, group: &Group) -> bool {
        let subject = self.clustered.as_ref().and_then(|clustered| clustered.subject(group));
        match subject {
            Some(Subject::Channel(app, channel)) => self.webhooks.wants_records_of_channel(app, &channel),
            Some(Subject::User(app, user)) => self.webhooks.wants_records_of_user(app, &user),
            None => false,
        }
    }

    fn records_available(&self, partition: u16) {
        if let Some(clustered) = &self.clustered {
            clustered.records.wake(partition);
        }
    }

    fn nodes_alive(&self, nodes: &[NodeId]) {
        let Some(clustered) = &self.clustered else { return };
        clustered.records.set_node_count(nodes.len());
        for (group, remote) in clustered.counts.retain_nodes(&nodes.iter().collect()) {
            if let Some(Subject::Channel(app, channel)) = clustered.subject(&group) {
                clustered.set_remote_count(self, &key(app, &channel), remote);
            }
        }
    }

    fn availability_changed(&self, is_available: bool) {
        let Some(clustered) = self.clustered.as_ref().filter(|_| is_available) else { return };
        clustered.records.connected();
        if let Some(hub) = self.strong() {
            self.runtime.spawn(async move {
                if let Some(clustered) = &hub.clustered {
                    clustered.quotas.register(&clustered.cluster, &clustered.apps).await;
                    clustered.deliver_missed_cached(&hub).await;
                }
            });
        }
        for group in clustered.counts.restart() {
            if let Some(Subject::Channel(app, channel)) = clustered.subject(&group) {
                clustered.count_changed(self, app, &channel, &group);
            }
        }
    }
}

impl Shared {
    /// Passes a change of a group's members to its channel or user.
    fn member_changed(
        &self,
        group: &Group,
        in_channel: impl FnOnce(&ChannelKey) -> Option<Drive>,
        is_online: bool,
    ) {
        let Some(clustered) = &self.clustered else { return };
        match clustered.subject(group) {
            Some(Subject::Channel(app, channel)) => self.drive(in_channel(&key(app, &channel))),
            Some(Subject::User(app, user)) => {
                self.users.set_present(&app.id.0, &user, is_online, self.now());
            }
            None => {}
        }
    }
}

/// A member of a group as a member of a presence channel; `None` if it is malformed.
fn parse_member(id: &str, info: &Bytes) -> Option<Member> {
    let info = std::str::from_utf8(info).ok()?;
    serde_json::from_str::<&RawValue>(info).ok()?;
    Some(Member { id: UserId::parse(id, usize::MAX).ok()?, info: info.into() })
}
