//! Channels on this node: who is subscribed, who is present, the last cached event; and who is signed in.
//!
//! The hot path. Everything here is synchronous, behind short locks, and never waits: an operation decides under
//! one lock and reports what changed ([`Joined`], [`Left`], [`Published`]); the hub makes webhooks, cluster
//! messages and metrics of it. Delivering a large channel is work that the hub does in turns: see [`Drive`].
//!
//! Start at [`Registry`], then [`channel`] for how an event reaches its subscribers.
//!
//! One map leads from a name to a channel. It is in shards ([`shards`]), and none of them is ever locked while a
//! channel's lock is taken: a channel that is given up is marked before it leaves the map, and who finds a marked
//! one looks again. Locks are taken in the order channel, what is kept, list of counts that are due, outbox; and user,
//! those who leave, outbox. What looks at all channels or connections does so a shard at a time.

pub mod channel;
mod connections;
mod kept;
mod presence;
mod shards;
mod users;

use std::sync::Arc;
use std::time::Duration;
use std::vec;

use parking_lot::Mutex;

use channel::Channel;
pub use channel::{Backlog, CountDue, Drive, Pass};
pub use connections::Connections;
use kept::Kept;
use shards::Shards;
pub use users::Users;

use crate::limits::{Count, Limit};
use crate::outbox::Outbox;
use crate::protocol::message::Event;
use crate::protocol::wire::Frame;
use crate::protocol::{ChannelName, Member, SocketId, UserId};

/// Bytes of all events that are kept, where nobody says how many.
const KEPT_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Events that expire before other work gets its turn.
const EXPIRED_AT_ONCE: usize = 256;

/// Channels that are looked at before other work gets its turn.
const LISTED_AT_ONCE: usize = 256;

/// A channel of an app.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ChannelKey {
    /// Whose.
    pub app: Arc<str>,
    /// Which.
    pub channel: ChannelName,
}

/// The channels of this node. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    channels: Shards<ChannelKey, Arc<Channel>>,
    /// Channels whose subscribers have yet to be told how many they are.
    counts_due: Mutex<Vec<Arc<Channel>>>,
    /// Channels in which something is pending that nobody delivers any more.
    undriven: Mutex<Vec<Arc<Channel>>>,
    /// Channels that hold an event for later subscribers.
    kept: Kept,
}

/// How many channels an app may have, and how many it has.
#[derive(Clone, Copy, Debug)]
pub struct ChannelPlaces<'a> {
    /// What has been taken; a channel that is occupied, or that keeps an event, holds one.
    pub taken: &'a Arc<Count>,
    /// `None`: as many as are wanted.
    pub max: Option<u32>,
}

/// A channel's place among those of its app; dropping it gives the place back.
#[derive(Debug)]
struct ChannelPlace(Arc<Count>);

impl ChannelPlaces<'_> {
    fn take(self) -> Option<ChannelPlace> {
        self.taken.take(self.max).then(|| ChannelPlace(Arc::clone(self.taken)))
    }
}

impl Drop for ChannelPlace {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

/// How cache channels keep their events.
#[derive(Clone, Copy, Debug)]
pub struct Cache<'a> {
    /// For so long.
    pub ttl: Duration,
    /// As long as there is a place for the channel.
    pub places: ChannelPlaces<'a>,
    /// And all events that are kept for the app have so many bytes at most: the least recently published are forgotten.
    pub bytes_max: usize,
}

/// A wish to subscribe, granted by the session.
#[derive(Debug)]
pub struct Join<'a> {
    /// Who the subscriber is, on presence channels.
    pub member: Option<Member>,
    /// Distinct users that the channel takes.
    pub members_max: usize,
    /// Whether subscribers are told how many they are.
    pub counts: bool,
    /// The places of the app's channels, of which a channel without subscribers takes one; a user's own takes none.
    pub places: ChannelPlaces<'a>,
    /// What the connection is told instead of that it is subscribed, when it is let in or is in already.
    pub told: Option<&'a Frame>,
}

/// What a join changed.
#[derive(Debug, Default)]
pub struct Joined {
    /// The channel had no subscriber before.
    pub occupied: bool,
    /// The user was not in the channel before.
    pub member_added: bool,
    /// The channel caches and had nothing to replay.
    pub cache_miss: bool,
    /// The connection was subscribed already: it was told so again, nothing else happened.
    pub again: bool,
    /// So many subscribers there are, if they are told so now.
    pub count: Option<usize>,
    /// Messages to deliver.
    pub drive: Option<Drive>,
    /// The channel has more waiting than it should.
    pub backlog: Option<Backlog>,
}

/// Why a join was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum JoinError {
    /// The presence channel has as many users as it takes.
    Full,
    /// The app has as many channels as it may have, and this would be one more.
    TooManyChannels,
}

/// What a leave changed.
#[derive(Debug)]
pub struct Left {
    /// The channel has no subscriber any more.
    pub vacated: bool,
    /// Who the subscriber was, on presence channels.
    pub member: Option<UserId>,
    /// The user is not in the channel any more.
    pub member_removed: Option<UserId>,
    /// So many subscribers there are, if they are told so now.
    pub count: Option<usize>,
    /// Messages to deliver.
    pub drive: Option<Drive>,
    /// The channel has more waiting than it should.
    pub backlog: Option<Backlog>,
}

/// What a publish has begun.
#[derive(Debug, Default)]
pub struct Published {
    /// Messages to deliver.
    pub drive: Option<Drive>,
    /// The channel has more waiting than it should: wait for it before publishing more.
    pub backlog: Option<Backlog>,
    /// The limit because of which the event is not kept, or others are no longer.
    pub limit: Option<Limit>,
}

/// What can be asked of a channel.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ChannelInfo {
    /// Subscribed connections.
    pub subscriptions: usize,
    /// Distinct users, on presence channels.
    pub users: usize,
    /// The cached event and how long it will be kept.
    pub cache: Option<(Frame, Duration)>,
}

/// An event that the cluster keeps.
#[derive(Clone, Debug)]
pub struct KeptFrame {
    /// As subscribers get it.
    pub frame: Frame,
    /// Which one: later ones have higher numbers.
    pub number: u64,
    /// Until when, by the node's clock.
    pub expires: Duration,
}

impl Default for Registry {
    fn default() -> Self {
        Self(Arc::new(Shared {
            channels: Shards::default(),
            counts_due: Mutex::default(),
            undriven: Mutex::default(),
            kept: Kept::new(KEPT_BYTES_MAX),
        }))
    }
}

impl Registry {
    fn find(&self, key: &ChannelKey) -> Option<Arc<Channel>> {
        self.0.channels.get(key)
    }

    fn find_or_make(&self, key: &ChannelKey) -> Arc<Channel> {
        if let Some(channel) = self.find(key) {
            return channel;
        }
        self.0.channels.get_or_insert(key, || (key.clone(), Arc::new(Channel::new(key.clone()))))
    }

    /// Runs `act` on the channel, made if need be; again, should the channel have been given up in between.
    fn with<T>(&self, key: &ChannelKey, mut act: impl FnMut(&Arc<Channel>) -> Option<T>) -> T {
        loop {
            let channel = self.find_or_make(key);
            if let Some(done) = act(&channel) {
                return done;
            }
            // Whoever gave it up may not have come to take it out yet.
            self.0.channels.remove_if(key, |found| Arc::ptr_eq(found, &channel));
        }
    }

    /// Makes `outbox` a subscriber and tells it so, all under the channel's lock: nothing published afterwards
    /// is lost and nothing overtakes the acknowledgement. Whoever is subscribed already is told again.
    ///
    /// # Errors
    /// [`JoinError::Full`] for a new user of a full presence channel; a user who is there is never refused.
    /// [`JoinError::TooManyChannels`] for the first subscriber of one channel too many.
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
                // It may have been made for this subscriber.
                self.give_up_if_unused(channel);
            }
            Some(joined)
        })
    }

    /// Ends a subscription. When this returns, nothing of the channel is written or queued for the connection any
    /// more; what was queued before is already on its way, as what the network holds.
    pub fn leave(&self, key: &ChannelKey, socket: SocketId, counts: bool, now: Duration) -> Option<Left> {
        let channel = self.find(key)?;
        let left = channel.leave(self, socket, counts, now);
        self.give_up_if_unused(&channel);
        left
    }

    /// Queues `event` for every subscriber. What the application
    /// publishes on a cache channel is kept, subscribers or not.
    pub fn publish(&self, app: &Arc<str>, event: &Event<'_>, cache: Cache<'_>, now: Duration) -> Published {
        let key = ChannelKey { app: Arc::clone(app), channel: event.channel.clone() };
        if Channel::caches(event) {
            return self.keeping(&key, |channel| channel.publish(self, event, cache, now));
        }
        let published = self.find(&key).and_then(|channel| channel.publish(self, event, cache, now));
        published.unwrap_or_default()
    }

    /// Queues a message that came from the cluster for every subscriber but one. With `keep` it is one that the cluster
    /// keeps, and which one: whoever joins gets it from here.
    pub fn deliver(
        &self,
        key: &ChannelKey,
        frame: Frame,
        except: Option<SocketId>,
        keep: Option<(Cache<'_>, u64)>,
        now: Duration,
    ) -> Published {
        let deliver = |channel: &Arc<Channel>| channel.deliver(self, frame.clone(), except, keep, now);
        match keep {
            // Somebody may be about to join.
            Some(_) => self.keeping(key, deliver),
            None => self.find(key).and_then(|channel| deliver(&channel)).unwrap_or_default(),
        }
    }

    /// Keeps an event of the cluster's for who joins, unless there are subscribers, who get what comes, or a later one
    /// is kept.
    pub fn keep(&self, key: &ChannelKey, kept: &KeptFrame, cache: Cache<'_>) -> Option<Limit> {
        self.keeping(key, |channel| channel.keep(self, kept.clone(), cache))
    }

    /// As [`Registry::with`], for an `act` that may keep an event: what is forgotten for that is, when this returns.
    fn keeping<T: Keeping>(&self, key: &ChannelKey, mut act: impl FnMut(&Arc<Channel>) -> Option<T>) -> T {
        let done = self.with(key, |channel| {
            let done = act(channel)?;
            if done.limit().is_some() {
                // It may have been made for this event.
                self.give_up_if_unused(channel);
            }
            Some(done)
        });
        if done.limit().is_some() {
            self.forget();
        }
        done
    }

    /// All apps together may keep events of so many bytes. Default 256 MiB.
    pub fn limit_kept(&self, bytes_max: usize) {
        self.0.kept.limit(bytes_max);
    }

    /// How many events are kept, and their bytes.
    #[must_use]
    pub fn kept(&self) -> (usize, usize) {
        self.0.kept.len()
    }

    /// Takes what is no longer kept out of its channels; how much that was.
    fn forget(&self) -> usize {
        let forgotten = self.0.kept.take_forgotten();
        for (channel, turn) in &forgotten {
            channel.forget(*turn);
            self.give_up_if_unused(channel);
        }
        forgotten.len()
    }

    /// Cache channels that have subscribers, some at a time.
    #[must_use]
    pub fn subscribed_caches(&self) -> SubscribedCaches {
        SubscribedCaches(Walk::through(self))
    }

    /// From now on it is the cluster that says who is in a presence channel: these are.
    pub fn members(&self, key: &ChannelKey, members: &[Member]) {
        self.with(key, |channel| channel.members(members));
    }

    /// Tells the subscribers of a presence channel of who came to it in the cluster.
    pub fn member_added(&self, key: &ChannelKey, member: &Member) -> Option<Drive> {
        self.find(key)?.member_added(self, member)
    }

    /// Tells the subscribers of a presence channel of who is gone from it in the cluster.
    pub fn member_removed(&self, key: &ChannelKey, user: &UserId) -> Option<Drive> {
        self.find(key)?.member_removed(self, user)
    }

    /// Whether a user is among the `first` who joined a presence channel.
    #[must_use]
    pub fn is_among(&self, key: &ChannelKey, user: &UserId, first: usize) -> bool {
        self.find(key).is_some_and(|channel| channel.is_among(user, first))
    }

    /// Whether a connection is subscribed.
    #[must_use]
    pub fn is_subscribed(&self, key: &ChannelKey, socket: SocketId) -> bool {
        self.find(key).is_some_and(|channel| channel.is_subscribed(socket))
    }

    /// So many subscribers a channel has on other nodes; the count of all, if it is told now.
    pub fn elsewhere(&self, key: &ChannelKey, count: usize, now: Duration) -> (Option<usize>, Option<Drive>) {
        self.find(key).map(|channel| channel.elsewhere(self, count, now)).unwrap_or_default()
    }

    /// Forgets what the cluster says of a channel that nobody here wants to be in.
    pub fn vacate(&self, key: &ChannelKey) {
        if let Some(channel) = self.find(key) {
            channel.vacate(self);
            self.give_up_if_unused(&channel);
        }
    }

    /// Whether a channel has more waiting than it should.
    #[must_use]
    pub fn backlog(&self, key: &ChannelKey) -> Option<Backlog> {
        self.find(key)?.backlog_now()
    }

    /// What can be said of a channel now; an unoccupied one has no subscriptions.
    #[must_use]
    pub fn info(&self, key: &ChannelKey, now: Duration) -> ChannelInfo {
        self.find(key).map(|channel| channel.info(now)).unwrap_or_default()
    }

    /// The users of a presence channel, by order of joining.
    #[must_use]
    pub fn users(&self, key: &ChannelKey) -> Vec<UserId> {
        self.find(key).map(|channel| channel.users()).unwrap_or_default()
    }

    /// The occupied channels of an app, but for users' own, whose names start with `prefix`, some at a time.
    #[must_use]
    pub fn occupied(&self, app: &str, prefix: &str) -> Occupied {
        Occupied { walk: Walk::through(self), app: app.into(), prefix: prefix.into() }
    }

    /// The connections of this node that are in presence channels of an app as `user`.
    #[must_use]
    pub fn connections_of_member(&self, app: &str, user: &UserId) -> MemberConnections {
        MemberConnections { walk: Walk::through(self), app: app.into(), user: user.clone() }
    }

    /// Channels that exist, occupied or only caching.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.channels.len()
    }

    /// Whether no channel exists.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.channels.is_empty()
    }

    /// The channels whose subscribers may be due to be told how many they are; call about once a second.
    #[must_use = "each is to be told"]
    pub fn counts_due(&self) -> Vec<CountDue> {
        let due = std::mem::take(&mut *self.0.counts_due.lock());
        due.into_iter().map(|channel| CountDue::new(self, channel)).collect()
    }

    /// The duty to deliver what nobody delivers any more, because whoever did ended early; call about once a second.
    #[must_use = "each is to be driven"]
    pub fn undriven(&self) -> Vec<Drive> {
        let undriven = std::mem::take(&mut *self.0.undriven.lock());
        undriven.iter().filter_map(|channel| channel.drive_again(self)).collect()
    }

    /// Forgets cached events that have expired, some of them; whether there may be more. Call about once a minute. Until
    /// then an expired event costs memory, nothing else.
    pub fn expire(&self, now: Duration) -> bool {
        self.0.kept.expire(now, EXPIRED_AT_ONCE);
        self.forget() >= EXPIRED_AT_ONCE
    }

    /// Takes a channel that nothing needs any more out of the map.
    fn give_up_if_unused(&self, channel: &Arc<Channel>) {
        if channel.give_up() {
            self.0.channels.remove_if(channel.key(), |found| Arc::ptr_eq(found, channel));
        }
    }
}

/// A walk through the channels, some at a time: each that is there all the while is met once.
#[derive(Debug)]
struct Walk {
    registry: Registry,
    /// The shard that is looked at next.
    shard: usize,
    /// Channels of the one before.
    found: Vec<Arc<Channel>>,
}

impl Walk {
    fn through(registry: &Registry) -> Self {
        Self { registry: registry.clone(), shard: 0, found: Vec::new() }
    }

    /// The next ones whose key `is_wanted`, none of them perhaps; `None`: there are no more.
    fn next_some(&mut self, is_wanted: impl Fn(&ChannelKey) -> bool) -> Option<vec::Drain<'_, Arc<Channel>>> {
        if self.found.is_empty() {
            // Collected first: no channel is locked while a shard is.
            self.found = self.registry.0.channels.of_shard(self.shard, is_wanted)?;
            self.shard += 1;
        }
        Some(self.found.drain(self.found.len().saturating_sub(LISTED_AT_ONCE)..))
    }
}

/// The cache channels that have subscribers, some at a time.
#[derive(Debug)]
pub struct SubscribedCaches(Walk);

impl SubscribedCaches {
    /// The next ones, none of them perhaps; `None`: there are no more. Let other work have its turn in between.
    pub fn next_some(&mut self) -> Option<Vec<ChannelKey>> {
        let some = self.0.next_some(|key| key.channel.is_cached())?;
        Some(some.filter(|channel| channel.is_occupied()).map(|channel| channel.key().clone()).collect())
    }
}

/// The connections that are in presence channels as a user, those of some channels at a time: a connection comes once
/// for each channel.
#[derive(Debug)]
pub struct MemberConnections {
    walk: Walk,
    app: Box<str>,
    user: UserId,
}

impl MemberConnections {
    /// The next ones, none of them perhaps; `None`: there are no more. Let other work have its turn in between.
    pub fn next_some(&mut self) -> Option<Vec<Arc<Outbox>>> {
        let some = self.walk.next_some(|key| *key.app == *self.app && key.channel.is_presence())?;
        Some(some.flat_map(|channel| channel.connections_of(&self.user)).collect())
    }
}

/// What an attempt to keep an event tells.
trait Keeping {
    /// The limit because of which it, or another one, is not kept.
    fn limit(&self) -> Option<Limit>;
}

impl Keeping for Published {
    fn limit(&self) -> Option<Limit> {
        self.limit
    }
}

impl Keeping for Option<Limit> {
    fn limit(&self) -> Option<Limit> {
        *self
    }
}

/// The occupied channels of an app, some at a time: each that is occupied all the while is among them, once.
#[derive(Debug)]
pub struct Occupied {
    walk: Walk,
    app: Box<str>,
    prefix: Box<str>,
}

impl Occupied {
    /// The next ones, none of them perhaps; `None`: there are no more.
    pub fn next_some(&mut self, now: Duration) -> Option<Vec<(ChannelName, ChannelInfo)>> {
        let (app, prefix) = (&*self.app, &*self.prefix);
        let some = self.walk.next_some(|key| {
            let name = key.channel.as_str();
            *key.app == *app && name.starts_with(prefix) && !name.starts_with('#')
        })?;
        let infos = some.map(|channel| (channel.name().clone(), channel.info(now)));
        Some(infos.filter(|(_, info)| info.subscriptions > 0).collect())
    }
}

#[cfg(test)]
mod tests;
