//! The channels of this node with their subscribers, members and cached events, and the users that are signed in.
//!
//! This is the hot path. Everything is synchronous, with short locks and no `await`: an operation decides under one lock
//! and returns what changed ([`Joined`], [`Left`], [`Published`]); the hub derives webhooks, cluster messages and metrics
//! from it. The hub also delivers to large channels, in turns with other tasks: see [`Drive`].
//!
//! Start at [`Registry`], then [`channel`] for the way of an event to the subscribers.
//!
//! A sharded map ([`shards`]) leads from a name to a channel. No shard is locked while a channel is being locked: a channel
//! is marked as removed before it leaves the map, and a caller that finds a marked channel looks it up again. The lock
//! order is channel, cache index, list of due counts, outbox; and user, list of lingering users, outbox. Scans over all
//! channels or connections read one shard at a time.
//!
//! The registry is the authority on subscriptions as far as delivery is concerned. A session has its own list of channels,
//! with what it needs to decide without a lock: see `session::Session`.

mod cache_index;
mod channel;
mod connections;
mod join;
mod permits;
mod presence;
mod scan;
mod shards;
mod users;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use cache_index::CacheIndex;
use channel::Channel;
pub use channel::{Backlog, CountDue, Drive, Pass, admits_member};
pub use connections::Connections;
pub use join::{Join, JoinError, Joined, Left};
use permits::ChannelPermit;
pub use permits::ChannelPermits;
pub use scan::{MemberConnections, OccupiedChannels, SubscribedCaches};
use shards::Shards;
pub use users::Users;

use crate::limits::Limit;
use crate::outbox::Outbox;
use crate::protocol::message::Event;
use crate::protocol::wire::Frame;
use crate::protocol::{ChannelName, Member, SocketId, UserId};

/// Default of [`Registry::limit_cached_bytes`].
const CACHED_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Cached events that expire before other tasks run.
const EXPIRED_PER_TURN: usize = 256;

/// The identity of a channel.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ChannelKey {
    /// The id of the app.
    pub app: Arc<str>,
    /// The name.
    pub channel: ChannelName,
}

/// The channels of this node. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    channels: Shards<ChannelKey, Arc<Channel>>,
    /// Channels whose subscription count may be due.
    counts_due: Mutex<Vec<Arc<Channel>>>,
    /// Channels with pending messages whose driver ended early.
    orphaned: Mutex<Vec<Arc<Channel>>>,
    cache_index: CacheIndex,
}

/// The limits for an event that a cache channel keeps.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits<'a> {
    /// The time until the event expires.
    pub ttl: Duration,
    /// The permits for channels of the app.
    pub permits: ChannelPermits<'a>,
    /// Bytes of all cached events of the app. Above it, the least recently published ones are evicted.
    pub bytes_max: usize,
}

/// The result of a publish.
#[derive(Debug, Default)]
pub struct Published {
    /// Messages to deliver.
    pub drive: Option<Drive>,
    /// Set if the channel has too many undelivered bytes: the publisher must wait before it publishes more.
    pub backlog: Option<Backlog>,
    /// The limit because of which the event was not cached, or other events were evicted.
    pub limit: Option<Limit>,
}

/// The state of a channel, for queries.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ChannelInfo {
    /// Subscribed connections.
    pub subscriptions: usize,
    /// On presence channels, distinct users.
    pub users: usize,
    /// The cached event and the time until it expires.
    pub cache: Option<(Frame, Duration)>,
}

/// A cached event from the cluster.
#[derive(Clone, Debug)]
pub struct CachedFrame {
    /// The frame that subscribers receive.
    pub frame: Frame,
    /// The number of the event: later events have higher numbers.
    pub number: u64,
    /// When it expires, on the node's clock.
    pub expires: Duration,
}

impl Default for Registry {
    fn default() -> Self {
        Self(Arc::new(Shared {
            channels: Shards::default(),
            counts_due: Mutex::default(),
            orphaned: Mutex::default(),
            cache_index: CacheIndex::new(CACHED_BYTES_MAX),
        }))
    }
}

impl Registry {
    fn find(&self, key: &ChannelKey) -> Option<Arc<Channel>> {
        self.0.channels.get(key)
    }

    fn find_or_insert(&self, key: &ChannelKey) -> Arc<Channel> {
        if let Some(channel) = self.find(key) {
            return channel;
        }
        self.0.channels.get_or_insert(key, || (key.clone(), Arc::new(Channel::new(key.clone()))))
    }

    /// Runs `act` on the channel, which is created if it does not exist. Runs `act` again if the channel was removed in the
    /// meantime.
    fn with<T>(&self, key: &ChannelKey, mut act: impl FnMut(&Arc<Channel>) -> Option<T>) -> T {
        loop {
            let channel = self.find_or_insert(key);
            if let Some(done) = act(&channel) {
                return done;
            }
            // The channel is marked as removed, but may still be in the map.
            self.0.channels.remove_if(key, |found| Arc::ptr_eq(found, &channel));
        }
    }

    /// Subscribes `outbox` and acknowledges it, both under the lock of the channel: the connection receives everything that
    /// is published afterwards, and nothing before the acknowledgement. A connection that is subscribed already is
    /// acknowledged again.
    ///
    /// # Errors
    /// [`JoinError::TooManyMembers`] for a new user in a presence channel at its limit; users that are in it may join again.
    /// [`JoinError::TooManyChannels`] for the first subscriber of a channel if the app is at its limit.
    pub fn join(
        &self,
        key: &ChannelKey,
        outbox: &Arc<Outbox>,
        join: &Join<'_>,
        now: Duration,
    ) -> Result<Joined, JoinError> {
        self.with(key, |channel| {
            let joined = channel.join(self, outbox, join, now)?;
            if joined.is_err() {
                // The channel may have been created for this subscriber.
                self.remove_if_unused(channel);
            }
            Some(joined)
        })
    }

    /// Ends a subscription. After the return, nothing of the channel is written or queued for the connection. What was
    /// queued before is still sent.
    pub fn leave(&self, key: &ChannelKey, socket: SocketId, counts: bool, now: Duration) -> Option<Left> {
        let channel = self.find(key)?;
        let left = channel.leave(self, socket, counts, now);
        self.remove_if_unused(&channel);
        left
    }

    /// Enqueues `event` for every subscriber. An event of the application on a cache channel is cached, with or without
    /// subscribers.
    pub fn publish(
        &self,
        app: &Arc<str>,
        event: &Event<'_>,
        cache: CacheLimits<'_>,
        now: Duration,
    ) -> Published {
        let key = ChannelKey { app: Arc::clone(app), channel: event.channel.clone() };
        if Channel::caches(event) {
            return self.with_cache(&key, |channel| channel.publish(self, event, cache, now));
        }
        let published = self.find(&key).and_then(|channel| channel.publish(self, event, cache, now));
        published.unwrap_or_default()
    }

    /// Enqueues a message from the cluster for every subscriber except one. With `cache`, the message is also cached for
    /// later subscribers, under this number.
    pub fn deliver(
        &self,
        key: &ChannelKey,
        frame: Frame,
        except: Option<SocketId>,
        cache: Option<(CacheLimits<'_>, u64)>,
        now: Duration,
    ) -> Published {
        let deliver = |channel: &Arc<Channel>| channel.deliver(self, frame.clone(), except, cache, now);
        match cache {
            // Cached also without subscribers: one may be about to join.
            Some(_) => self.with_cache(key, deliver),
            None => self.find(key).and_then(|channel| deliver(&channel)).unwrap_or_default(),
        }
    }

    /// Caches an event of the cluster for the first subscriber, unless the channel has subscribers, which receive events as
    /// they arrive, or caches a later event. Returns the limit that was reached.
    pub fn cache(&self, key: &ChannelKey, event: &CachedFrame, cache: CacheLimits<'_>) -> Option<Limit> {
        self.with_cache(key, |channel| channel.cache(self, event.clone(), cache))
    }

    /// [`Registry::with`] for an `act` that may cache an event. Events that the index evicts for it are dropped before the
    /// return.
    fn with_cache<T: CacheResult>(
        &self,
        key: &ChannelKey,
        mut act: impl FnMut(&Arc<Channel>) -> Option<T>,
    ) -> T {
        let done = self.with(key, |channel| {
            let done = act(channel)?;
            if done.limit().is_some() {
                // The channel may have been created for this event.
                self.remove_if_unused(channel);
            }
            Some(done)
        });
        if done.limit().is_some() {
            self.evict();
        }
        done
    }

    /// Limits the bytes of the cached events of all apps. Default 256 MiB.
    pub fn limit_cached_bytes(&self, bytes_max: usize) {
        self.0.cache_index.limit(bytes_max);
    }

    /// The number of cached events, and their bytes.
    #[must_use]
    pub fn cached_totals(&self) -> (usize, usize) {
        self.0.cache_index.totals()
    }

    /// Drops evicted events from their channels. Returns how many.
    fn evict(&self) -> usize {
        let evicted = self.0.cache_index.take_evicted();
        for (channel, sequence) in &evicted {
            channel.evict(*sequence);
            self.remove_if_unused(channel);
        }
        evicted.len()
    }

    /// The cache channels with subscribers.
    #[must_use]
    pub fn subscribed_caches(&self) -> SubscribedCaches {
        SubscribedCaches::new(self)
    }

    /// Sets the members of a presence channel. From now on, the channel mirrors the members of the cluster.
    pub fn set_members(&self, key: &ChannelKey, members: &[Member]) {
        self.with(key, |channel| channel.set_members(members));
    }

    /// Adds a member that joined in the cluster, and enqueues it for the subscribers.
    pub fn member_added(&self, key: &ChannelKey, member: &Member) -> Option<Drive> {
        self.find(key)?.member_added(self, member)
    }

    /// Removes a member that left in the cluster, and enqueues that for the subscribers.
    pub fn member_removed(&self, key: &ChannelKey, user: &UserId) -> Option<Drive> {
        self.find(key)?.member_removed(self, user)
    }

    /// Whether a member of a presence channel is within the presence limit, by order of joining: see [`admits_member`].
    #[must_use]
    pub fn is_admitted(&self, key: &ChannelKey, user: &UserId, members_max: usize) -> bool {
        self.find(key).is_some_and(|channel| channel.is_admitted(user, members_max))
    }

    /// Whether a connection is subscribed.
    #[must_use]
    pub fn is_subscribed(&self, key: &ChannelKey, socket: SocketId) -> bool {
        self.find(key).is_some_and(|channel| channel.is_subscribed(socket))
    }

    /// Sets the number of subscribers on other nodes. Returns the count of all nodes, if it was sent.
    pub fn set_remote_count(
        &self,
        key: &ChannelKey,
        count: usize,
        now: Duration,
    ) -> (Option<usize>, Option<Drive>) {
        self.find(key).map(|channel| channel.set_remote_count(self, count, now)).unwrap_or_default()
    }

    /// Drops the members, the remote count and the cached event of a channel without subscribers on this node.
    pub fn drop_cluster_state(&self, key: &ChannelKey) {
        if let Some(channel) = self.find(key) {
            channel.drop_cluster_state(self);
            self.remove_if_unused(&channel);
        }
    }

    /// The backlog of a channel, if it has too many undelivered bytes.
    #[must_use]
    pub fn backlog(&self, key: &ChannelKey) -> Option<Backlog> {
        self.find(key)?.backlog_now()
    }

    /// The state of a channel. A channel that does not exist has no subscriptions.
    #[must_use]
    pub fn info(&self, key: &ChannelKey, now: Duration) -> ChannelInfo {
        self.find(key).map(|channel| channel.info(now)).unwrap_or_default()
    }

    /// The users of a presence channel, in order of joining.
    #[must_use]
    pub fn users(&self, key: &ChannelKey) -> Vec<UserId> {
        self.find(key).map(|channel| channel.users()).unwrap_or_default()
    }

    /// The occupied channels of an app whose names start with `prefix`, without users' own channels.
    #[must_use]
    pub fn occupied(&self, app: &str, prefix: &str) -> OccupiedChannels {
        OccupiedChannels::new(self, app, prefix)
    }

    /// The connections of this node that are in presence channels of an app as `user`.
    #[must_use]
    pub fn connections_of_member(&self, app: &str, user: &UserId) -> MemberConnections {
        MemberConnections::new(self, app, user)
    }

    /// Channels that are occupied or keep an event.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.channels.len()
    }

    /// Whether no channel exists.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.channels.is_empty()
    }

    /// The channels whose subscription count may be due. Call about once a second.
    #[must_use = "the counts stay due until they are sent"]
    pub fn counts_due(&self) -> Vec<CountDue> {
        let due = std::mem::take(&mut *self.0.counts_due.lock());
        due.into_iter().map(|channel| CountDue::new(self, channel)).collect()
    }

    /// New drives for channels whose driver ended early. Call about once a second.
    #[must_use = "pending messages are not delivered until the drives run"]
    pub fn orphaned(&self) -> Vec<Drive> {
        let orphaned = std::mem::take(&mut *self.0.orphaned.lock());
        orphaned.iter().filter_map(|channel| channel.restart(self)).collect()
    }

    /// Drops up to 256 expired events. Returns whether there may be more. Call about once a minute: until then an expired
    /// event only occupies memory.
    pub fn expire(&self, now: Duration) -> bool {
        self.0.cache_index.expire(now, EXPIRED_PER_TURN);
        self.evict() >= EXPIRED_PER_TURN
    }

    /// Removes a channel that nothing needs from the map.
    fn remove_if_unused(&self, channel: &Arc<Channel>) {
        if channel.mark_removed_if_unused() {
            self.0.channels.remove_if(channel.key(), |found| Arc::ptr_eq(found, channel));
        }
    }
}

/// The result of an operation that may cache an event.
trait CacheResult {
    /// The limit because of which the event was not cached, or other events were evicted.
    fn limit(&self) -> Option<Limit>;
}

impl CacheResult for Published {
    fn limit(&self) -> Option<Limit> {
        self.limit
    }
}

impl CacheResult for Option<Limit> {
    fn limit(&self) -> Option<Limit> {
        *self
    }
}

#[cfg(test)]
mod tests;
