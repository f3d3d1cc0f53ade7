//! Channels on this node: joins, leaves and publishes, with their webhooks and their delivery.

use std::borrow::Cow;
use std::sync::Arc;

use super::{DELIVERIES_PER_TURN, Shared, Unavailable, cache_limits, channel_permits, key, refusal};
use crate::apps::App;
use crate::limits::Limit;
use crate::observers::{Fact, Kind, Publisher};
use crate::outbox::Outbox;
use crate::protocol::message::{Event, Source};
use crate::protocol::{ChannelName, Member, SocketId};
use crate::registry::{Backlog, ChannelKey, Drive, Join, JoinError, Joined, Left, Published};
use crate::rejections::Example;
use crate::webhooks::{self, DeliveryGuard};

impl Shared {
    /// Subscribes a connection on this node, or sends it the refusal.
    pub(super) fn join(
        &self,
        app: &App,
        outbox: &Arc<Outbox>,
        channel: &ChannelName,
        member: Option<Member>,
    ) -> Result<Joined, JoinError> {
        let key = key(app, channel);
        let members_max = app.limits.presence_members_max;
        let permits = channel_permits(app);
        let join =
            Join { member, members_max, counts: app.subscription_counts, permits, acknowledgement: None };
        // Locked before the registry decides, so that webhooks have the order of the decisions.
        let guard = self.webhooks.lock_subscriptions(app, channel);
        let joined = self.registry.join(&key, outbox, &join, self.now());
        if let (Some(guard), Ok(joined)) = (guard, &joined) {
            self.join_webhooks(guard, &key, join.member.as_ref(), joined);
        }
        match &joined {
            Ok(joined) => self.observers.observe(Kind::Subscribed, || Fact::Subscribed {
                app: (&*app.id.0).into(),
                channel: Cow::Borrowed(channel),
                socket: outbox.socket(),
                again: joined.already_subscribed,
            }),
            Err(error) => self.refuse_join(app, outbox, channel, *error),
        }
        joined
    }

    /// Counts a refused join and sends the refusal to the client.
    pub(super) fn refuse_join(&self, app: &App, outbox: &Outbox, channel: &ChannelName, error: JoinError) {
        let (limit, refusal) = refusal::of_join(error, app, channel);
        let example = Example::default().socket(outbox.socket()).channel(channel.as_str());
        self.reject(limit.into(), Some(app), example.reason(&*refusal.reason));
        refusal::refuse(app, outbox, channel.as_str(), &refusal);
    }

    pub(super) fn leave(&self, app: &App, channel: &ChannelName, socket: SocketId) -> Option<Left> {
        let key = key(app, channel);
        let guard = self.webhooks.lock_subscriptions(app, channel);
        let left = self.registry.leave(&key, socket, app.subscription_counts, self.now())?;
        if let Some(guard) = guard {
            self.leave_webhooks(guard, &key, &left);
        }
        Some(left)
    }

    /// Publishes events on this node, in order. On return they are delivered or queued, and the channels accept more.
    pub(super) async fn publish_all<'e>(&self, app: &App, events: impl Iterator<Item = Event<'e>>) {
        let mut delivered = 0;
        for event in events {
            let published = self.publish_one(app, &event);
            delivered += self.deliver(published.drive);
            if let Some(mut backlog) = published.backlog {
                std::future::poll_fn(|cx| backlog.poll_ready(cx)).await;
            }
            if delivered >= DELIVERIES_PER_TURN {
                delivered = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    /// Publishes an event on this node.
    pub(super) fn publish_one(&self, app: &App, event: &Event<'_>) -> Published {
        self.observe_publish(app, event);
        let cache = cache_limits(app, app.limits.cache_ttl);
        let published = self.registry.publish(&app.id.0, event, cache, self.now());
        if let Some(limit) = published.limit {
            self.report_not_cached(limit, app, event.channel);
        }
        published
    }

    /// See [`super::Hub::publish_from_client`].
    pub(super) fn publish_from_client(
        &self,
        app: &App,
        event: &Event<'_>,
    ) -> Result<Option<Backlog>, Unavailable> {
        let guard = self.webhooks.lock_client_events(app, event.channel);
        let Some(published) = self.backend.publish_from_client(self, app, event)? else { return Ok(None) };
        // The excluded connection is the sender.
        if let (Some(mut guard), Source::Client(user), Some(socket)) = (guard, event.source, event.except) {
            let Event { channel, name, data, .. } = *event;
            guard.emit(&webhooks::Event::ClientEvent { channel, event: name, data, socket, user });
        }
        self.deliver(published.drive);
        Ok(published.backlog)
    }

    /// Counts an event that was not cached, or that evicted others.
    pub(super) fn report_not_cached(&self, limit: Limit, app: &App, channel: &ChannelName) {
        let reason = if limit == Limit::AppChannels {
            "an event was not cached"
        } else {
            "older events were evicted, or the event was not cached"
        };
        self.reject(limit.into(), Some(app), Example::default().channel(channel.as_str()).reason(reason));
    }

    /// Passes an event to those who watch, with the number of subscribers on this node, to help to find out why one does not
    /// arrive.
    #[inline]
    pub(super) fn observe_publish(&self, app: &App, event: &Event<'_>) {
        self.observers.observe(Kind::Published, || self.published_fact(app, event));
    }

    #[cold]
    fn published_fact<'e>(&self, app: &'e App, event: &Event<'e>) -> Fact<'e> {
        let subscribers =
            |channel: &ChannelName| self.registry.info(&key(app, channel), self.now()).subscriptions;
        let here = subscribers(event.channel);
        // Laravel's `Channel` and `PrivateChannel` make two channels of one name.
        let others = event.channel.siblings(&app.names).into_iter().filter(|_| here == 0);
        let publisher = match (event.source, event.except) {
            // A client event excludes its sender.
            (Source::Client(user), Some(socket)) => {
                Publisher::Client { socket, user: user.map(Cow::Borrowed) }
            }
            (Source::Client(_), None) | (Source::App, _) => Publisher::App,
        };
        Fact::Published {
            app: (&*app.id.0).into(),
            channel: Cow::Borrowed(event.channel),
            event: event.name.into(),
            bytes: event.data.len(),
            data: Some(event.data.into()),
            publisher,
            subscribers: here,
            occupied_instead: others.filter(|other| subscribers(other) > 0).collect(),
        }
    }

    /// The webhooks of a join, in the order in which a channel fills.
    fn join_webhooks(
        &self,
        mut guard: DeliveryGuard,
        key: &ChannelKey,
        member: Option<&Member>,
        joined: &Joined,
    ) {
        let ChannelKey { channel, .. } = key;
        if joined.occupied && self.backend.sends_edge_webhooks() {
            guard.emit(&webhooks::Event::ChannelOccupied(channel));
        }
        if let Some(member) = member.filter(|_| joined.member_added) {
            guard.emit(&webhooks::Event::MemberAdded(channel, &member.id));
        }
        if joined.cache_miss {
            guard.emit(&webhooks::Event::CacheMiss(channel));
        }
        if let Some(count) = joined.count.filter(|_| self.backend.sends_count_webhooks(key)) {
            guard.emit(&webhooks::Event::SubscriptionCount(channel, count));
        }
    }

    /// The webhooks of a leave, in the order in which a channel empties.
    fn leave_webhooks(&self, mut guard: DeliveryGuard, key: &ChannelKey, left: &Left) {
        let ChannelKey { channel, .. } = key;
        if let Some(user) = &left.member_removed {
            guard.emit(&webhooks::Event::MemberRemoved(channel, user));
        }
        if left.vacated && self.backend.sends_edge_webhooks() {
            guard.emit(&webhooks::Event::ChannelVacated(channel));
        }
        if let Some(count) = left.count.filter(|_| self.backend.sends_count_webhooks(key)) {
            guard.emit(&webhooks::Event::SubscriptionCount(channel, count));
        }
    }

    /// Delivers to a small channel and returns the number of subscribers; a task delivers to a large one.
    pub(super) fn deliver(&self, drive: Option<Drive>) -> usize {
        match drive.map(Drive::deliver_inline) {
            Some(Ok(delivered)) => delivered,
            Some(Err(drive)) => {
                self.drive(Some(drive));
                0
            }
            None => 0,
        }
    }

    /// Spawns a task that delivers to a channel, in turns with other tasks.
    pub(super) fn drive(&self, drive: Option<Drive>) {
        let Some(mut drive) = drive else { return };
        self.runtime.spawn(async move {
            let mut next = drive.next_pass();
            while let Some(mut pass) = next {
                while pass.deliver_next() {
                    tokio::task::yield_now().await;
                }
                next = drive.next_pass();
                if next.is_some() {
                    tokio::task::yield_now().await;
                }
            }
        });
    }
}
