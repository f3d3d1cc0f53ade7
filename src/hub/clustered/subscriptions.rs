//! Joining and leaving channels.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::pending::{PendingEntry, PendingSubscriber};
use super::{
    Clustered, RETRY, Shared, cache_limits, capacity_check_entry, channel_group, key, sign_in_entry,
    subscriber_entry, user_group,
};
use crate::apps::App;
use crate::cluster::coordinator::CachedMessage;
use crate::cluster::group::{Group, MemberId};
use crate::cluster::local_groups::EntryId;
use crate::cluster::node::{EntryDenied, LockedPartition};
use crate::outbox::Outbox;
use crate::protocol::{ChannelName, Member, SocketId};
use crate::registry::{CachedFrame, JoinError, Left, admits_member};

impl Clustered {
    /// See [`crate::hub::Hub::join`]. A join that is refused later is answered then.
    pub(in crate::hub) fn join(
        &self,
        hub: &Arc<Shared>,
        app: &Arc<App>,
        outbox: &Arc<Outbox>,
        channel: &ChannelName,
        member: Option<Member>,
    ) -> Result<(), JoinError> {
        if let Some(user) = channel.user() {
            return self.join_user_channel(hub, app, outbox, channel, user);
        }
        let (group, entry) = (channel_group(&app.id.0, channel.as_str()), subscriber_entry(outbox.socket()));
        self.cluster.with_group(&group, |partition| {
            if hub.registry.is_subscribed(&key(app, channel), outbox.socket()) {
                // Acknowledges the subscription again.
                return hub.join(app, outbox, channel, member).map(|joined| hub.drive(joined.drive));
            }
            let id = member.as_ref().map(|member| MemberId::from(member.id.as_str()));
            // A member that joined on another node is admitted by the order in which members joined.
            let before = id
                .as_ref()
                .and_then(|id| partition.count_before(&group, id).or(partition.count_others(&group, id)));
            if before.is_some_and(|before| !admits_member(before, app.limits.presence_members_max)) {
                hub.refuse_join(app, outbox, channel, JoinError::TooManyMembers);
                return Err(JoinError::TooManyMembers);
            }
            let subscriber = Arc::new(PendingSubscriber {
                app: Arc::clone(app),
                outbox: Arc::clone(outbox),
                channel: channel.clone(),
                member,
            });
            let has_capacity = id.is_none() || before.is_some();
            let check = (Arc::clone(&group), capacity_check_entry(outbox.socket()));
            let mut pending = self.pending.lock();
            if pending.contains_key(&check) || pending.contains_key(&(Arc::clone(&group), entry)) {
                // A join that is pending is answered once.
                return Ok(());
            }
            if has_capacity {
                drop(pending);
                self.enter(partition, &group, subscriber);
            } else {
                let entry = check.1;
                pending.insert(check, PendingEntry::CapacityCheck(subscriber));
                drop(pending);
                partition.enter(&group, true, None, entry);
            }
            Ok(())
        })
    }

    /// Joins a user's own channel: acknowledged at once if the connection is signed in, otherwise after its sign-in.
    fn join_user_channel(
        &self,
        hub: &Shared,
        app: &App,
        outbox: &Arc<Outbox>,
        channel: &ChannelName,
        user: &str,
    ) -> Result<(), JoinError> {
        let group = user_group(&app.id.0, user);
        self.cluster.with_group(&group, |_| {
            let entry = (Arc::clone(&group), sign_in_entry(outbox.socket()));
            if let Some(PendingEntry::SignIn(sign_in)) = self.pending.lock().get_mut(&entry) {
                sign_in.subscribes = true;
                return Ok(());
            }
            hub.join(app, outbox, channel, None).map(|joined| hub.drive(joined.drive))
        })
    }

    fn enter(&self, partition: &mut LockedPartition<'_>, group: &Group, subscriber: Arc<PendingSubscriber>) {
        let entry = subscriber_entry(subscriber.outbox.socket());
        let member = subscriber
            .member
            .as_ref()
            .map(|member| (member.id.as_str().into(), Bytes::from(member.info.as_bytes().to_vec())));
        let is_mirrored = subscriber.channel.is_presence();
        self.pending.lock().insert((Arc::clone(group), entry), PendingEntry::Subscriber(subscriber));
        partition.enter(group, is_mirrored, member, entry);
    }

    /// The members of a presence channel are known: the connection enters as a member, or is refused.
    pub(super) fn finish_capacity_check(
        &self,
        hub: &Shared,
        partition: &mut LockedPartition<'_>,
        group: &Group,
        entry: EntryId,
    ) {
        let check = (Arc::clone(group), entry);
        let Some(PendingEntry::CapacityCheck(subscriber)) = self.pending.lock().remove(&check) else {
            return;
        };
        let PendingSubscriber { app, outbox, channel, member } = &*subscriber;
        let id = member.as_ref().map(|member| MemberId::from(member.id.as_str()));
        let others = id.and_then(|id| partition.count_others(group, &id)).unwrap_or_default();
        if !admits_member(others, app.limits.presence_members_max) {
            hub.refuse_join(app, outbox, channel, JoinError::TooManyMembers);
        } else {
            self.enter(partition, group, subscriber);
        }
        partition.leave(group, None, entry);
    }

    /// The entry was admitted: carries the subscription out, or refuses it.
    pub(super) fn subscribe(
        &self,
        hub: &Arc<Shared>,
        group: &Group,
        subscriber: &PendingSubscriber,
    ) -> Result<(), EntryDenied> {
        let PendingSubscriber { app, outbox, channel, member } = subscriber;
        let key = key(app, channel);
        let is_full = member.as_ref().is_some_and(|member| {
            !hub.registry.is_admitted(&key, &member.id, app.limits.presence_members_max)
        });
        let joined = if is_full {
            hub.refuse_join(app, outbox, channel, JoinError::TooManyMembers);
            Err(JoinError::TooManyMembers)
        } else {
            hub.join(app, outbox, channel, member.clone())
        };
        let denied = |_| EntryDenied(member.as_ref().map(|member| member.id.as_str().into()));
        hub.drive(joined.map_err(denied)?.drive);
        self.count_changed(hub, app, channel, group);
        Ok(())
    }

    /// Reads the cached event of a channel that has no subscriber here, then carries the subscription out.
    pub(super) fn subscribe_with_cache(
        self: &Arc<Self>,
        hub: &Arc<Shared>,
        group: &Group,
        entry: EntryId,
        subscriber: Arc<PendingSubscriber>,
    ) {
        let (hub, clustered, group) = (Arc::clone(hub), Arc::clone(self), Arc::clone(group));
        hub.runtime.clone().spawn(async move {
            let place = (Arc::clone(&group), entry);
            // It may have left and joined again in the meantime.
            let is_same = |found: &PendingEntry| {
                matches!(found, PendingEntry::Subscriber(found) if Arc::ptr_eq(found, &subscriber))
            };
            loop {
                let cached = clustered.cluster.cached(Arc::clone(&group)).await;
                if !clustered.pending.lock().get(&place).is_some_and(is_same) {
                    return;
                }
                let Ok(cached) = cached else {
                    sleep(RETRY).await;
                    continue;
                };
                return clustered.cluster.with_group(&group, |partition| {
                    let pending = match clustered.pending.lock().entry(place) {
                        Entry::Occupied(pending) if is_same(pending.get()) => Some(pending.remove()),
                        Entry::Occupied(_) | Entry::Vacant(_) => None,
                    };
                    if pending.is_none() {
                        return;
                    }
                    let key = key(&subscriber.app, &subscriber.channel);
                    if let Some(cached) = cached.and_then(|cached| clustered.cached_frame(cached, hub.now())) {
                        let ttl = cached.expires.saturating_sub(hub.now());
                        if let Some(limit) = hub.registry.cache(&key, &cached, cache_limits(&subscriber.app, ttl)) {
                            hub.report_not_cached(limit, &subscriber.app, &subscriber.channel);
                        }
                    }
                    if let Err(EntryDenied(member)) = clustered.subscribe(&hub, &group, &subscriber) {
                        partition.leave(&group, member.as_ref(), entry);
                    }
                });
            }
        });
    }

    /// See [`crate::hub::Hub::leave`].
    pub(in crate::hub) fn leave(
        &self,
        hub: &Arc<Shared>,
        app: &App,
        channel: &ChannelName,
        socket: SocketId,
    ) -> Option<Left> {
        let (group, entry) = (channel_group(&app.id.0, channel.as_str()), subscriber_entry(socket));
        self.cluster.with_group(&group, |partition| {
            let check = capacity_check_entry(socket);
            let pending_check = self.pending.lock().remove(&(Arc::clone(&group), check));
            if let Some(pending) = pending_check {
                if let PendingEntry::CapacityCheck(subscriber) | PendingEntry::Subscriber(subscriber) =
                    &pending
                {
                    subscriber.outbox.charge(0, 2);
                }
                partition.leave(&group, None, check);
                return None;
            }
            let pending = self.pending.lock().remove(&(Arc::clone(&group), entry));
            let (member, left) = match pending {
                Some(PendingEntry::Subscriber(pending)) => {
                    // The coordinator may see a join and a leave.
                    pending.outbox.charge(0, 2);
                    (pending.member.as_ref().map(|member| member.id.clone()), None)
                }
                Some(PendingEntry::CapacityCheck(_) | PendingEntry::SignIn(_) | PendingEntry::Watcher(_))
                | None => {
                    let left = hub.leave(app, channel, socket)?;
                    (left.member.clone(), Some(left))
                }
            };
            if left.is_some() {
                self.count_changed(hub, app, channel, &group);
            }
            let member = member.map(|user| MemberId::from(user.as_str()));
            partition.leave(&group, member.as_ref(), entry);
            left
        })
    }

    fn cached_frame(&self, cached: CachedMessage, now: Duration) -> Option<CachedFrame> {
        let (_, frame) = self.read_cached(&cached.message)?;
        Some(CachedFrame { frame, number: cached.version, expires: now + cached.ttl })
    }
}
