//! Acting on groups under the lock of their partition, and performing the effects that follow.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;
use tokio::time::sleep;

use super::{Cluster, EntryDenied, RETRY};
use crate::cluster::broker::{PendingReply, Topic, Unavailable};
use crate::cluster::group::{Group, MemberId, MemberInfo};
use crate::cluster::local_groups::{Effect, EntryId, LocalGroups};

impl Cluster {
    /// Locks the partition of a group, calls `act`, and performs the effects that follow.
    pub fn with_group<T>(&self, group: &Group, act: impl FnOnce(&mut LockedPartition<'_>) -> T) -> T {
        let groups = self.0.partition(group).lock();
        let mut partition = LockedPartition { cluster: self, groups };
        let result = act(&mut partition);
        partition.perform_effects();
        result
    }
}

/// The groups of a partition, locked.
#[derive(Debug)]
pub struct LockedPartition<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) groups: MutexGuard<'a, LocalGroups>,
}

impl LockedPartition<'_> {
    /// Adds a connection's entry to a group: see [`LocalGroups::enter`]. [`super::Handler::entered`] is called when it
    /// is admitted, possibly before [`Cluster::with_group`] returns.
    pub fn enter(&mut self, group: &Group, is_mirrored: bool, member: Option<MemberInfo>, entry: EntryId) {
        if self.groups.enter(group, is_mirrored, member, entry) {
            self.groups.push_entered(group, entry);
        }
    }

    /// Removes a connection's entry, pending or admitted.
    pub fn leave(&mut self, group: &Group, member: Option<&MemberId>, entry: EntryId) {
        self.groups.leave(group, member, entry);
        if !self.groups.has_entries(group)
            && let Some(handler) = self.cluster.handler()
        {
            handler.vacated(group);
        }
    }

    /// See [`LocalGroups::count_others`].
    #[must_use]
    pub fn count_others(&self, group: &Group, except: &MemberId) -> Option<usize> {
        self.groups.count_others(group, except)
    }

    /// See [`LocalGroups::count_before`].
    #[must_use]
    pub fn count_before(&self, group: &Group, member: &MemberId) -> Option<usize> {
        self.groups.count_before(group, member)
    }

    pub(super) fn perform_effects(&mut self) {
        let Some(handler) = self.cluster.handler() else { return };
        let shared = &self.cluster.0;
        let mut members = None;
        while let Some(effect) = self.groups.next_effect() {
            match effect {
                Effect::Subscribe(group) => self.subscribe(group),
                Effect::Unsubscribe(group) => shared.broker.unsubscribe(Topic::Group(group)),
                Effect::Update(update) => {
                    let (group, sequence) = (Arc::clone(&update.group), update.sequence);
                    let is_recorded = handler.is_recorded(&group);
                    let reply = shared.coordinator.update(update, is_recorded);
                    self.on_reply(reply, group, move |groups, group, reply| match reply {
                        Ok(reply) => groups.update_replied(group, sequence, reply),
                        Err(Unavailable) => groups.update_failed(group, sequence),
                    });
                }
                Effect::Members(_, all) => members = Some(all),
                Effect::Entered(group, entry) => {
                    let entered = handler.entered(&group, entry, members.take());
                    if let Err(EntryDenied(member)) = entered {
                        self.leave(&group, member.as_ref(), entry);
                    }
                }
                Effect::MemberAdded(group, member, info) => handler.member_added(&group, &member, &info),
                Effect::MemberRemoved(group, member) => handler.member_removed(&group, &member),
                Effect::LeaseExpired => shared.lease_expired.notify_one(),
            }
        }
    }

    fn subscribe(&self, group: Group) {
        let reply = self.cluster.0.broker.subscribe(Topic::Group(Arc::clone(&group)));
        self.on_reply(reply, group, |groups, group, reply| match reply {
            Ok(()) => groups.subscribed(group),
            Err(Unavailable) => groups.subscribe_failed(group),
        });
    }

    /// Calls `apply` with the reply to a request about a group, unless the broker was disconnected in the meantime.
    fn on_reply<T: Send + 'static>(
        &self,
        reply: PendingReply<T>,
        group: Group,
        apply: impl FnOnce(&mut LocalGroups, &Group, Result<T, Unavailable>) + Send + 'static,
    ) {
        let cluster = self.cluster.clone();
        let epoch = cluster.0.epoch.load(Ordering::SeqCst);
        self.cluster.0.runtime.spawn(async move {
            let reply = reply.await;
            if reply.is_err() {
                // Normally the engine reports the disconnect next, and everything starts again. If not, this retries.
                sleep(RETRY).await;
            }
            let mut partition =
                LockedPartition { groups: cluster.0.partition(&group).lock(), cluster: &cluster };
            if cluster.0.epoch.load(Ordering::SeqCst) == epoch {
                apply(&mut partition.groups, &group, reply);
                partition.perform_effects();
            }
        });
    }
}
