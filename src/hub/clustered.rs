//! What the hub does on a node that is one of several: channels and users are groups of the cluster.
//!
//! - A channel is the group `c/<app>/<channel>`. Who subscribes enters it, on presence channels as a member; the
//!   subscription is carried out when the group says that it was entered. Who is there is what the group says.
//! - A user is the group `u/<app>/<user>`, in which there is one member, [`ONLINE`], while they are signed in
//!   anywhere. Who watches the user enters it without being that member. What is published on the user's own channel
//!   goes to this group: who is signed in is in that channel, which has no group of its own.
//!
//! What is published goes to the broker and comes back, also to the node it was published on: so all nodes deliver what
//! is said in a channel in one order. A message is the JSON that subscribers get, behind a few bytes:
//!
//! ```text
//! e<json>                    to all subscribers
//! x<socket><json>            to all but one: its number, 8 bytes
//! c<node><count><asks>       16 and 4 bytes: so many subscribers the node has; `?`: and wants to know the others'
//! ```
//!
//! Everything that is decided about a group is decided under the lock of its part ([`Cluster::act`]): leaving overtakes
//! no joining, and what a subscriber hears begins where what it was told ends.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::counts::{Counts, Telling};
use super::everywhere::{self, Everywhere};
use super::quota::Quotas;
use super::records::Records;
use super::{ChannelQuery, Shared, SignIn, WatchlistChange};
use crate::apps::{App, Apps, ConnectionPermit};
use crate::cluster::driver::{Answering, Kept, Lost};
use crate::cluster::node::{Acting, Audience, Cluster, Reply, Room, Unwanted};
use crate::cluster::seat::Ticket;
use crate::cluster::truth::{Group, MemberId, MemberInfo, NodeId, Version};
use crate::outbox::Outbox;
use crate::protocol::message::{Event, Source};
use crate::protocol::wire::{Frame, pusher, websocket};
use crate::protocol::{ChannelName, Member, SocketId, UserId};
use crate::registry::{
    Backlog, Cache, CachedFrame, ChannelInfo, ChannelKey, ChannelPermits, Drive, JoinError, Left,
    admits_member,
};
use crate::webhooks;

/// The one member of a user's group.
pub(super) const ONLINE: &str = "online";

/// What is kept of a channel could not be had: it is asked for again after this.
const RETRY: Duration = Duration::from_secs(1);

/// What clients publish and the broker has not taken yet; more of it is refused, as if the broker were lost.
const IN_FLIGHT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Clustered {
    cluster: Cluster,
    apps: Arc<Apps>,
    /// Whether what is published while the broker is lost is delivered on this node.
    local_when_broker_lost: bool,
    /// Who has yet to enter a group.
    parked: Mutex<HashMap<(Group, Ticket), Parked>>,
    counts: Arc<Counts>,
    quotas: Quotas,
    /// What receivers of webhooks are to be told.
    records: Records,
    /// Bytes of clients' events on their way to the broker.
    in_flight: Arc<AtomicUsize>,
}

/// What is done when a group has been entered.
#[derive(Clone, Debug)]
enum Parked {
    /// The connection becomes a subscriber.
    Subscriber(Arc<Subscriber>),
    /// It wants to enter as a member, if there is a place, which nobody here knows: nobody is told of who is refused.
    Looker(Arc<Subscriber>),
    /// The connection is signed in, and in its user's own channel.
    SigningIn(SigningIn),
    /// One more of the users that it watches is known.
    Watcher(Arc<Watcher>),
}

/// A connection that is told that it is signed in when everything that is published to its user reaches it.
#[derive(Clone, Debug)]
struct SigningIn {
    app: Arc<App>,
    user: UserId,
    told: Frame,
    /// It has asked to be subscribed to the user's own channel meanwhile, and is to be told that it is.
    subscribes: bool,
    watcher: Arc<Watcher>,
}

#[derive(Debug)]
struct Subscriber {
    app: Arc<App>,
    outbox: Arc<Outbox>,
    channel: ChannelName,
    member: Option<Member>,
}

#[derive(Debug)]
struct Watcher {
    app: Arc<str>,
    outbox: Arc<Outbox>,
    watchlist: Vec<UserId>,
    truncated_to: Option<usize>,
    /// What is waited for: that it is signed in itself, and of each user whether they are online.
    unknown: AtomicUsize,
}

/// What a group stands for.
pub(super) enum Subject<'a> {
    Channel(&'a Arc<App>, ChannelName),
    User(&'a Arc<App>, UserId),
}

fn channel_group(app: &str, channel: &str) -> Group {
    format!("c/{app}/{channel}").into()
}

fn user_group(app: &str, user: &str) -> Group {
    format!("u/{app}/{user}").into()
}

/// The group that what is published on a channel goes to.
fn group_of(app: &App, channel: &ChannelName) -> Group {
    match channel.user() {
        Some(user) => user_group(&app.id.0, user),
        None => channel_group(&app.id.0, channel.as_str()),
    }
}

/// Of a connection in the group of a channel.
fn subscribing(socket: SocketId) -> Ticket {
    socket.number().into()
}

/// Of a connection that only wants to know whether a presence channel has a place.
fn looking(socket: SocketId) -> Ticket {
    Ticket::from(socket.number()) | 3 << 64
}

/// Of a connection in the group of the user that it is signed in as.
fn signed_in(socket: SocketId) -> Ticket {
    Ticket::from(socket.number()) | 1 << 64
}

/// Of a connection in the group of a user that it watches.
fn watching(socket: SocketId) -> Ticket {
    Ticket::from(socket.number()) | 2 << 64
}

fn online() -> MemberInfo {
    (ONLINE.into(), Bytes::new())
}

fn cache(app: &App, ttl: Duration) -> Cache<'_> {
    let permits = ChannelPermits { held: &app.channels, max: app.limits.channels_max };
    Cache { ttl, permits, bytes_max: app.limits.cached_bytes_max }
}

/// A member as a group has it; `None` if it makes no sense.
fn member(id: &str, info: &Bytes) -> Option<Member> {
    let info = std::str::from_utf8(info).ok()?;
    serde_json::from_str::<&RawValue>(info).ok()?;
    Some(Member { id: UserId::parse(id, usize::MAX).ok()?, info: info.into() })
}

/// The message that subscribers get, as it came; `None` if it is no text.
fn frame(json: &[u8]) -> Option<Frame> {
    std::str::from_utf8(json).ok()?;
    Some(websocket::text_frame(|out| out.extend_from_slice(json)))
}

/// An event as it travels.
fn message(event: &Event<'_>) -> Vec<u8> {
    let frame = pusher::encode(&event.message());
    let json = frame.text().as_bytes();
    let mut message = Vec::with_capacity(1 + 8 + json.len());
    match event.except {
        Some(socket) => {
            message.push(b'x');
            message.extend_from_slice(&socket.number().to_be_bytes());
        }
        None => message.push(b'e'),
    }
    message.extend_from_slice(json);
    message
}

/// An event that came: whom it skips, and what the others get.
fn opened(message: &Bytes) -> Option<(Option<SocketId>, Frame)> {
    match message.split_first()? {
        (b'e', json) => Some((None, frame(json)?)),
        (b'x', rest) => {
            let (socket, json) = rest.split_first_chunk::<8>()?;
            Some((Some(SocketId::from_number(u64::from_be_bytes(*socket))), frame(json)?))
        }
        _ => None,
    }
}

impl Clustered {
    pub(super) fn new(apps: Arc<Apps>, cluster: Cluster, local_when_broker_lost: bool) -> Self {
        Self {
            cluster,
            apps,
            local_when_broker_lost,
            parked: Mutex::default(),
            counts: Arc::default(),
            quotas: Quotas::default(),
            records: Records::default(),
            in_flight: Arc::default(),
        }
    }

    pub(super) const fn records(&self) -> &Records {
        &self.records
    }

    pub(super) const fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Whether what is published goes to the broker, be it lost.
    pub(super) fn is_heard(&self) -> bool {
        !self.local_when_broker_lost || self.cluster.is_ready()
    }

    pub(super) fn subject(&self, group: &str) -> Option<Subject<'_>> {
        let (kind, rest) = group.split_once('/')?;
        let (app, name) = rest.split_once('/')?;
        let app = self.apps.by_id(app)?;
        match kind {
            "c" => Some(Subject::Channel(app, ChannelName::parse(name, &app.names).ok()?)),
            "u" => Some(Subject::User(app, UserId::parse(name, usize::MAX).ok()?)),
            _ => None,
        }
    }

    /// See [`super::Hub::take_place`].
    pub(super) async fn acquire_connection(&self, app: &Arc<App>) -> Option<ConnectionPermit> {
        self.quotas.take(&self.cluster, app).await
    }

    /// Gives places of apps back that are not needed any more, once a second. Runs until it is dropped.
    pub(super) async fn keep_quotas(&self) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            self.quotas.give_back(&self.cluster, &self.apps).await;
        }
    }

    // ---- subscriptions ----

    /// See [`super::Hub::join`]. Whoever is refused later is told then.
    pub(super) fn join(
        &self,
        hub: &Shared,
        app: &App,
        outbox: &Arc<Outbox>,
        channel: &ChannelName,
        member: Option<Member>,
    ) -> Result<(), JoinError> {
        let Some(app) = self.apps.by_id(&app.id.0) else { return Ok(()) };
        if let Some(user) = channel.user() {
            return self.join_own(hub, app, outbox, channel, user);
        }
        let (group, ticket) = (channel_group(&app.id.0, channel.as_str()), subscribing(outbox.socket()));
        self.cluster.act(&group, |acting| {
            if hub.registry.is_subscribed(&super::key(app, channel), outbox.socket()) {
                // It is told so again.
                return hub.join(app, outbox, channel, member).map(|joined| hub.drive(joined.drive));
            }
            let id = member.as_ref().map(|member| MemberId::from(member.id.as_str()));
            // Whoever is there has a place, if they came in time.
            let before = id.as_ref().and_then(|id| acting.before(&group, id).or(acting.others(&group, id)));
            if before.is_some_and(|before| !admits_member(before, app.limits.presence_members_max)) {
                hub.refuse_join(app, outbox, channel, JoinError::TooManyMembers);
                return Err(JoinError::TooManyMembers);
            }
            let subscriber = Arc::new(Subscriber {
                app: Arc::clone(app),
                outbox: Arc::clone(outbox),
                channel: channel.clone(),
                member,
            });
            let is_known = id.is_none() || before.is_some();
            let looking = (Arc::clone(&group), looking(outbox.socket()));
            let mut parked = self.parked.lock();
            if parked.contains_key(&looking) || parked.contains_key(&(Arc::clone(&group), ticket)) {
                // Who wants to enter already is told when that is done.
                return Ok(());
            }
            if is_known {
                drop(parked);
                self.enter(acting, &group, subscriber);
            } else {
                let ticket = looking.1;
                parked.insert(looking, Parked::Looker(subscriber));
                drop(parked);
                acting.enter(&group, true, None, ticket);
            }
            Ok(())
        })
    }

    /// A connection that is signed in is in its user's own channel, or is told that it is when it gets there.
    fn join_own(
        &self,
        hub: &Shared,
        app: &App,
        outbox: &Arc<Outbox>,
        channel: &ChannelName,
        user: &str,
    ) -> Result<(), JoinError> {
        let group = user_group(&app.id.0, user);
        self.cluster.act(&group, |_| {
            let place = (Arc::clone(&group), signed_in(outbox.socket()));
            if let Some(Parked::SigningIn(signing_in)) = self.parked.lock().get_mut(&place) {
                signing_in.subscribes = true;
                return Ok(());
            }
            hub.join(app, outbox, channel, None).map(|joined| hub.drive(joined.drive))
        })
    }

    fn enter(&self, acting: &mut Acting<'_>, group: &Group, subscriber: Arc<Subscriber>) {
        let ticket = subscribing(subscriber.outbox.socket());
        let member = subscriber
            .member
            .as_ref()
            .map(|member| (member.id.as_str().into(), Bytes::from(member.info.as_bytes().to_vec())));
        let is_mirrored = subscriber.channel.is_presence();
        self.parked.lock().insert((Arc::clone(group), ticket), Parked::Subscriber(subscriber));
        acting.enter(group, is_mirrored, member, ticket);
    }

    /// It is known who is in a presence channel: who wanted to know that enters, or is refused.
    fn looked(&self, hub: &Shared, acting: &mut Acting<'_>, group: &Group, ticket: Ticket) {
        let place = (Arc::clone(group), ticket);
        let Some(Parked::Looker(subscriber)) = self.parked.lock().remove(&place) else { return };
        let Subscriber { app, outbox, channel, member } = &*subscriber;
        let id = member.as_ref().map(|member| MemberId::from(member.id.as_str()));
        let others = id.and_then(|id| acting.others(group, &id)).unwrap_or_default();
        if !admits_member(others, app.limits.presence_members_max) {
            hub.refuse_join(app, outbox, channel, JoinError::TooManyMembers);
        } else {
            self.enter(acting, group, subscriber);
        }
        acting.leave(group, None, ticket);
    }

    /// A connection has entered a channel's group: carries its subscription out, or refuses it.
    fn subscribe(&self, hub: &Shared, group: &Group, subscriber: &Subscriber) -> Result<(), Unwanted> {
        let Subscriber { app, outbox, channel, member } = subscriber;
        let key = super::key(app, channel);
        let is_full = member.as_ref().is_some_and(|member| {
            !hub.registry.is_admitted(&key, &member.id, app.limits.presence_members_max)
        });
        let joined = if is_full {
            hub.refuse_join(app, outbox, channel, JoinError::TooManyMembers);
            Err(JoinError::TooManyMembers)
        } else {
            hub.join(app, outbox, channel, member.clone())
        };
        let unwanted = |_| Unwanted(member.as_ref().map(|member| member.id.as_str().into()));
        hub.drive(joined.map_err(unwanted)?.drive);
        self.counted(hub, app, channel, group);
        Ok(())
    }

    /// See [`super::Hub::leave`].
    pub(super) fn leave(
        &self,
        hub: &Shared,
        app: &App,
        channel: &ChannelName,
        socket: SocketId,
    ) -> Option<Left> {
        let (group, ticket) = (channel_group(&app.id.0, channel.as_str()), subscribing(socket));
        self.cluster.act(&group, |acting| {
            let looking = looking(socket);
            let looked = self.parked.lock().remove(&(Arc::clone(&group), looking));
            if let Some(looked) = looked {
                if let Parked::Looker(subscriber) | Parked::Subscriber(subscriber) = &looked {
                    subscriber.outbox.charge(0, 2);
                }
                acting.leave(&group, None, looking);
                return None;
            }
            let parked = self.parked.lock().remove(&(Arc::clone(&group), ticket));
            let (member, left) = match parked {
                Some(Parked::Subscriber(parked)) => {
                    // It has come and gone as far as the broker is concerned.
                    parked.outbox.charge(0, 2);
                    (parked.member.as_ref().map(|member| member.id.clone()), None)
                }
                Some(Parked::Looker(_) | Parked::SigningIn(_) | Parked::Watcher(_)) | None => {
                    let left = hub.leave(app, channel, socket)?;
                    (left.member.clone(), Some(left))
                }
            };
            if left.is_some() {
                self.counted(hub, app, channel, &group);
            }
            let member = member.map(|user| MemberId::from(user.as_str()));
            acting.leave(&group, member.as_ref(), ticket);
            left
        })
    }

    /// Gets what is kept of a cache channel that has no subscriber here, then lets the one in who waits for that.
    fn subscribe_with_kept(&self, hub: &Shared, group: &Group, ticket: Ticket, subscriber: Arc<Subscriber>) {
        let (cluster, group, runtime) = (self.cluster.clone(), Arc::clone(group), hub.runtime.clone());
        let Some(hub) = hub.strong() else { return };
        runtime.spawn(async move {
            let Some(clustered) = &hub.clustered else { return };
            let place = (Arc::clone(&group), ticket);
            // It may have left, and wait to enter once more.
            let is_it = |found: &Parked| {
                matches!(found, Parked::Subscriber(found) if Arc::ptr_eq(found, &subscriber))
            };
            loop {
                let kept = cluster.kept(Arc::clone(&group)).await;
                if !clustered.parked.lock().get(&place).is_some_and(is_it) {
                    return;
                }
                let Ok(kept) = kept else {
                    sleep(RETRY).await;
                    continue;
                };
                return cluster.act(&group, |acting| {
                    let is_there = match clustered.parked.lock().entry(place) {
                        Entry::Occupied(parked) if is_it(parked.get()) => Some(parked.remove()),
                        Entry::Occupied(_) | Entry::Vacant(_) => None,
                    };
                    if is_there.is_none() {
                        return;
                    }
                    let key = super::key(&subscriber.app, &subscriber.channel);
                    if let Some(kept) = kept.and_then(|kept| kept_frame(kept, hub.now())) {
                        let ttl = kept.expires.saturating_sub(hub.now());
                        if let Some(limit) = hub.registry.cache(&key, &kept, cache(&subscriber.app, ttl)) {
                            hub.report_not_cached(limit, &subscriber.app, &subscriber.channel);
                        }
                    }
                    if let Err(Unwanted(member)) = clustered.subscribe(&hub, &group, &subscriber) {
                        acting.leave(&group, member.as_ref(), ticket);
                    }
                });
            }
        });
    }

    // ---- messages ----

    /// See [`super::Hub::publish`].
    pub(super) async fn publish<'e>(
        &self,
        hub: &Shared,
        app: &App,
        events: impl Iterator<Item = Event<'e>>,
    ) -> Result<(), Lost> {
        let (mut messages, mut kept, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for event in events {
            hub.log(app, &event);
            let group = group_of(app, event.channel);
            let message = message(&event).into();
            if matches!(event.source, Source::App) && event.channel.is_cached() {
                kept.push(self.cluster.keep(group, message, app.limits.cache_ttl));
            } else {
                messages.push((group, message));
            }
            keys.push(super::key(app, event.channel));
        }
        let sent = if messages.is_empty() { None } else { Some(self.cluster.publish(messages)) };
        for sent in sent.into_iter().chain(kept) {
            sent.await?;
        }
        // Whoever publishes more than this node can deliver waits for it, as on a node that is alone.
        for key in keys {
            if let Some(mut backlog) = hub.registry.backlog(&key) {
                std::future::poll_fn(|cx| backlog.poll_ready(cx)).await;
            }
        }
        Ok(())
    }

    /// See [`super::Hub::publish_from_client`]; whether it was published. Who was refused after all, or is not in yet,
    /// has nothing to say there.
    pub(super) fn publish_from_client(
        &self,
        hub: &Shared,
        app: &App,
        event: &Event<'_>,
    ) -> Result<bool, Lost> {
        if !self.cluster.is_ready() {
            return Err(Lost);
        }
        let key = super::key(app, event.channel);
        if event.except.is_some_and(|socket| !hub.registry.is_subscribed(&key, socket)) {
            return Ok(false);
        }
        hub.log(app, event);
        let message = message(event);
        let bytes = message.len();
        let in_flight = Arc::clone(&self.in_flight);
        if in_flight.fetch_add(bytes, Ordering::Relaxed) + bytes > IN_FLIGHT_BYTES_MAX {
            in_flight.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Lost);
        }
        let group = channel_group(&app.id.0, event.channel.as_str());
        let sent = self.cluster.publish([(group, message.into())]);
        hub.runtime.spawn(async move {
            let _ = sent.await;
            in_flight.fetch_sub(bytes, Ordering::Relaxed);
        });
        Ok(true)
    }

    /// Closes the connections of a user on all nodes, this one among them.
    pub(super) fn terminate_user(&self, app: &App, user: &UserId) -> Answering<()> {
        // To all nodes, whether or not they listen to the user's group yet.
        self.cluster.announce(format!("t{}/{user}", app.id).as_bytes())
    }

    fn channel_message(
        &self,
        hub: &Shared,
        group: &Group,
        (app, channel): (&Arc<App>, ChannelName),
        number: Option<Version>,
        message: &Bytes,
    ) -> Option<Room> {
        if message.first() == Some(&b'c') {
            self.told_count(hub, group, (app, &channel), message);
            return None;
        }
        let Some((except, frame)) = opened(message) else {
            hub.metrics.cluster.dropped.count();
            return None;
        };
        let cache = cache(app, app.limits.cache_ttl);
        let key = super::key(app, &channel);
        let published =
            hub.registry.deliver(&key, frame, except, number.map(|number| (cache, number)), hub.now());
        if let Some(limit) = published.limit {
            hub.report_not_cached(limit, app, &key.channel);
        }
        hub.deliver(published.drive);
        published
            .backlog
            .filter(Backlog::exceeds_hard_limit)
            .map(|mut backlog| Box::pin(std::future::poll_fn(move |cx| backlog.poll_ready(cx))) as Room)
    }

    /// Gives subscribers of cache channels what was kept while the broker was not heard.
    async fn catch_up(&self, hub: &Shared) {
        let mut caches = hub.registry.subscribed_caches();
        while let Some(some) = caches.next_chunk() {
            for key in some {
                let Some(app) = self.apps.by_id(&key.app) else { continue };
                let kept = self.cluster.kept(channel_group(&key.app, key.channel.as_str())).await;
                // If it is lost again, it will be found again.
                let Ok(kept) = kept else { return };
                if let Some(Kept { number, message, ttl }) = kept
                    && let Some((except, frame)) = opened(&message)
                {
                    let keep = (cache(app, ttl), number);
                    hub.drive(hub.registry.deliver(&key, frame, except, Some(keep), hub.now()).drive);
                }
            }
            yield_now().await;
        }
    }

    // ---- counts of subscribers ----

    /// The count of this node has changed: tells the others, who add up.
    fn counted(&self, hub: &Shared, app: &App, channel: &ChannelName, group: &Group) {
        if !app.subscription_counts || !channel.has_subscription_count() {
            return;
        }
        if let Some(telling) = self.counts.changed(group) {
            self.tell_count(hub, super::key(app, channel), telling);
        }
    }

    fn tell_count(&self, hub: &Shared, key: ChannelKey, mut telling: Telling) {
        let (cluster, runtime) = (self.cluster.clone(), hub.runtime.clone());
        let Some(hub) = hub.strong() else { return };
        runtime.spawn(async move {
            loop {
                let subscriptions = hub.registry.info(&key, hub.now()).subscriptions;
                let count = u32::try_from(subscriptions).unwrap_or(u32::MAX);
                let mut message = vec![b'c'];
                message.extend_from_slice(&cluster.node().0.to_be_bytes());
                message.extend_from_slice(&count.to_be_bytes());
                message.push(if telling.asks(count) { b'?' } else { b'.' });
                let sent = cluster.publish([(Arc::clone(telling.group()), message.into())]).await;
                match telling.done(count, sent) {
                    Some(again) => telling = again,
                    None => return,
                }
            }
        });
    }

    /// Tells the others the counts that were to be told and were not; call about once a second.
    pub(super) fn tell_untold(&self, hub: &Shared) {
        for group in self.counts.untold() {
            if let Some(Subject::Channel(app, channel)) = self.subject(&group) {
                self.counted(hub, app, &channel, &group);
            }
        }
    }

    /// Another node has told its count.
    fn told_count(
        &self,
        hub: &Shared,
        group: &Group,
        (app, channel): (&Arc<App>, &ChannelName),
        message: &Bytes,
    ) -> Option<()> {
        let (node, rest) = message.get(1..)?.split_first_chunk::<16>()?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let (node, count) = (NodeId(u128::from_be_bytes(*node)), u32::from_be_bytes(*count));
        if node == self.cluster.node() {
            return Some(());
        }
        if let Some(elsewhere) = self.counts.told(group, node, count)? {
            self.tell_elsewhere(hub, &super::key(app, channel), elsewhere);
        }
        if rest == b"?" {
            self.counted(hub, app, channel, group);
        }
        Some(())
    }

    fn tell_elsewhere(&self, hub: &Shared, key: &ChannelKey, elsewhere: usize) {
        let guard =
            hub.webhooks.lock_count(&key.app, &key.channel).filter(|_| self.sends_count_webhooks(key));
        let (count, drive) = hub.registry.set_remote_count(key, elsewhere, hub.now());
        if let (Some(mut guard), Some(count)) = (guard, count) {
            guard.emit(&webhooks::Event::SubscriptionCount(&key.channel, count));
        }
        hub.drive(drive);
    }

    /// Whether it is this node that tells receivers of webhooks of a channel's count: one of those that have
    /// subscribers does.
    pub(super) fn sends_count_webhooks(&self, key: &ChannelKey) -> bool {
        let (group, node) = (channel_group(&key.app, key.channel.as_str()), self.cluster.node());
        self.counts.is_lowest(&group, node)
    }

    // ---- users ----

    /// See [`super::Hub::sign_in`].
    pub(super) fn sign_in(&self, hub: &Shared, app: &App, outbox: &Arc<Outbox>, sign_in: &SignIn<'_>) {
        let SignIn { user, previous_watchlist: watched, watchlist, truncated_to, .. } = *sign_in;
        let Some(app) = self.apps.by_id(&app.id.0) else { return };
        let (socket, group) = (outbox.socket(), user_group(&app.id.0, user.as_str()));
        // While it waits to be told of the list before, it is told of the new one instead.
        let own = (Arc::clone(&group), signed_in(socket));
        let is_signing_in = self.cluster.act(&group, |_| self.parked.lock().contains_key(&own));
        let WatchlistChange { removed, added } = if is_signing_in || self.is_waiting(app, watched, socket) {
            WatchlistChange { removed: watched.to_vec(), added: watchlist.to_vec() }
        } else {
            WatchlistChange::new(watched, watchlist)
        };
        outbox.charge(0, WatchlistChange::changes(&removed, &added));
        let unknown = AtomicUsize::new(1 + added.len());
        let (of, outbox) = (Arc::clone(&app.id.0), Arc::clone(outbox));
        let watcher = Arc::new(Watcher { app: of, outbox, watchlist: added, truncated_to, unknown });
        let outbox = &watcher.outbox;
        self.cluster.act(&group, |acting| {
            let signing_in = SigningIn {
                app: Arc::clone(app),
                user: user.clone(),
                told: sign_in.acknowledgement(),
                subscribes: false,
                watcher: Arc::clone(&watcher),
            };
            let is_new = !hub.users.is_signed_in(&app.id.0, user, socket);
            let mut parked = self.parked.lock();
            match parked.entry(own) {
                // Of several sign-ins that wait, the last is answered.
                Entry::Occupied(mut waiting) => {
                    let before = waiting.insert(Parked::SigningIn(signing_in));
                    if let (Parked::SigningIn(now), Parked::SigningIn(before)) = (waiting.get_mut(), before) {
                        now.subscribes = before.subscribes;
                    }
                }
                Entry::Vacant(place) if is_new => {
                    place.insert(Parked::SigningIn(signing_in));
                    drop(parked);
                    hub.users.sign_in(&app.id.0, user, outbox);
                    acting.enter(&group, true, Some(online()), signed_in(socket));
                }
                Entry::Vacant(_) => {
                    drop(parked);
                    signing_in.signed_in(hub);
                }
            }
        });
        // The former list is not told any more, even if it was about to be.
        self.unwatch(hub, app, &removed, socket);
        for user in &watcher.watchlist {
            let group = user_group(&watcher.app, user.as_str());
            self.cluster.act(&group, |acting| {
                let place = (Arc::clone(&group), watching(socket));
                self.parked.lock().insert(place, Parked::Watcher(Arc::clone(&watcher)));
                acting.enter(&group, true, None, watching(socket));
            });
        }
    }

    /// See [`super::Hub::sign_out`].
    pub(super) fn sign_out(
        &self,
        hub: &Shared,
        app: &App,
        socket: SocketId,
        user: &UserId,
        watchlist: &[UserId],
    ) {
        let group = user_group(&app.id.0, user.as_str());
        self.cluster.act(&group, |acting| {
            self.parked.lock().remove(&(Arc::clone(&group), signed_in(socket)));
            hub.users.sign_out(&app.id.0, user, socket, hub.now());
            hub.leave_user_channel(app, user, socket);
            acting.leave(&group, Some(&online().0), signed_in(socket));
        });
        self.unwatch(hub, app, watchlist, socket);
    }

    /// Whether it is not known yet of one of `watched` whether they are online. Under the locks of all their groups, one
    /// after the other: of whoever is known, all has been done that follows from it.
    fn is_waiting(&self, app: &App, watched: &[UserId], socket: SocketId) -> bool {
        watched.iter().any(|user| {
            let group = user_group(&app.id.0, user.as_str());
            let place = (Arc::clone(&group), watching(socket));
            self.cluster.act(&group, |_| self.parked.lock().contains_key(&place))
        })
    }

    fn unwatch(&self, hub: &Shared, app: &App, watched: &[UserId], socket: SocketId) {
        for user in watched {
            let group = user_group(&app.id.0, user.as_str());
            self.cluster.act(&group, |acting| {
                self.parked.lock().remove(&(Arc::clone(&group), watching(socket)));
                hub.users.unwatch(&app.id.0, std::slice::from_ref(user), socket);
                acting.leave(&group, None, watching(socket));
            });
        }
        // All of them may have been known, and watched, just before the last one was taken back.
        hub.users.unwatch(&app.id.0, watched, socket);
    }

    // ---- questions ----

    pub(super) async fn channel(
        &self,
        hub: &Shared,
        app: &App,
        channel: &ChannelName,
        query: ChannelQuery,
    ) -> Result<ChannelInfo, Lost> {
        let group = group_of(app, channel);
        let answer = self.cluster.look(Arc::clone(&group)).await?;
        let users = answer.members.map_or(0, |members| members.len());
        // Those who only watch a user are in the group as well.
        let occupied = if channel.user().is_some() { users > 0 } else { answer.occupied };
        let mut info = ChannelInfo { subscriptions: usize::from(occupied), users, cache: None };
        if query.subscriptions && occupied {
            info.subscriptions = hub.registry.info(&super::key(app, channel), hub.now()).subscriptions;
            for answer in self.cluster.ask(format!("s{group}").as_bytes()).await? {
                info.subscriptions += count(&answer);
            }
            // A node that does not answer in time has somebody, too.
            info.subscriptions = info.subscriptions.max(1);
        }
        if query.cache && channel.is_cached() {
            let kept = self.cluster.kept(group).await?;
            info.cache = kept.and_then(|kept| Some((opened(&kept.message)?.1, kept.ttl)));
        }
        Ok(info)
    }

    pub(super) async fn users(&self, app: &App, channel: &ChannelName) -> Result<Vec<UserId>, Lost> {
        let answer = self.cluster.look(channel_group(&app.id.0, channel.as_str())).await?;
        let members = answer.members.unwrap_or_default();
        Ok(members.iter().filter_map(|(id, _)| UserId::parse(id, usize::MAX).ok()).collect())
    }

    pub(super) async fn channels(
        &self,
        hub: &Shared,
        app: &App,
        prefix: &str,
        query: ChannelQuery,
    ) -> Result<Everywhere, Lost> {
        let groups = self.cluster.occupied(&channel_group(&app.id.0, prefix)).await?;
        let channel_of = |group: &str| match self.subject(group)? {
            Subject::Channel(_, channel) => Some(channel),
            Subject::User(..) => None,
        };
        let mut found = Everywhere::of(groups, channel_of).await;
        if query.subscriptions {
            found.add_own(hub, &app.id.0, prefix).await;
            let question = format!("p{}/{prefix}", app.id);
            for answer in self.cluster.ask(question.as_bytes()).await? {
                found.add_answer(&answer).await;
            }
        }
        Ok(found)
    }

    pub(super) async fn connections_of(&self, app: &App) -> Result<u64, Lost> {
        let others = self.cluster.ask(format!("n{}", app.id).as_bytes()).await?;
        let others = others.iter().map(|answer| count(answer) as u64).sum::<u64>();
        Ok(others + u64::from(app.connections.now()))
    }

    /// Answers a question of another node: what it has of a channel (`s<group>`), of channels (`p<app>/<prefix>`), or
    /// of an app (`n<app>`). Or closes the connections of a user (`t<app>/<user>`), as all nodes are told at once.
    fn answer(&self, hub: &Shared, question: &str) -> Option<Reply> {
        let (kind, rest) = (question.get(..1)?, question.get(1..)?);
        let number = match kind {
            "s" => {
                let (app, channel) = self.subject(rest)?.channel();
                hub.registry.info(&super::key(app, &channel), hub.now()).subscriptions
            }
            "n" => self.apps.by_id(rest)?.connections.now() as usize,
            "p" => {
                let (app, prefix) = rest.split_once('/')?;
                return Some(Box::pin(everywhere::answer(hub.strong()?, app.into(), prefix.into())));
            }
            "t" => {
                let (app, user) = rest.split_once('/')?;
                let (app, user) = (self.apps.by_id(app)?, UserId::parse(user, usize::MAX).ok()?);
                hub.terminate_user(app, &user);
                if app.terminate_presence_members {
                    let (runtime, hub, app) = (hub.runtime.clone(), hub.strong()?, Arc::clone(app));
                    runtime.spawn(async move { hub.terminate_members(&app, &user).await });
                }
                return None;
            }
            _ => return None,
        };
        Some(Box::pin(ready(number.to_string().into())))
    }
}

/// A number that a node has answered; 0 if it makes no sense.
fn count(answer: &Bytes) -> usize {
    std::str::from_utf8(answer).ok().and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

impl<'a> Subject<'a> {
    /// The channel, or the user's own.
    fn channel(self) -> (&'a Arc<App>, ChannelName) {
        match self {
            Self::Channel(app, channel) => (app, channel),
            Self::User(app, user) => (app, ChannelName::of_user(&user)),
        }
    }
}

impl SigningIn {
    /// It is in the group of its user.
    fn signed_in(&self, hub: &Shared) {
        let Self { app, user, told, subscribes, watcher } = self;
        hub.join_user_channel(app, &watcher.outbox, user, told);
        if *subscribes {
            // It is told so.
            let joined = hub.join(app, &watcher.outbox, &ChannelName::of_user(user), None);
            hub.drive(joined.ok().and_then(|joined| joined.drive));
        }
        watcher.one_is_known(hub);
    }
}

impl Watcher {
    /// One thing less is waited for.
    fn one_is_known(&self, hub: &Shared) {
        if self.unknown.fetch_sub(1, Ordering::SeqCst) == 1 {
            hub.watch(&self.app, &self.outbox, &self.watchlist, self.truncated_to);
        }
    }
}

fn kept_frame(kept: Kept, now: Duration) -> Option<CachedFrame> {
    let (_, frame) = opened(&kept.message)?;
    Some(CachedFrame { frame, number: kept.number, expires: now + kept.ttl })
}

impl Shared {
    /// Makes what a group says of a presence channel known to it.
    fn member_changed(
        &self,
        group: &Group,
        of_channel: impl FnOnce(&ChannelKey) -> Option<Drive>,
        is_online: bool,
    ) {
        let Some(clustered) = &self.clustered else { return };
        match clustered.subject(group) {
            Some(Subject::Channel(app, channel)) => self.drive(of_channel(&super::key(app, &channel))),
            Some(Subject::User(app, user)) => self.users.set_present(&app.id.0, &user, is_online, self.now()),
            None => {}
        }
    }
}

impl Audience for Shared {
    fn entered(
        &self,
        group: &Group,
        ticket: Ticket,
        everyone: Option<Vec<MemberInfo>>,
    ) -> Result<(), Unwanted> {
        let Some(clustered) = &self.clustered else { return Ok(()) };
        let Some(subject) = clustered.subject(group) else { return Ok(()) };
        if let Some(everyone) = everyone {
            match &subject {
                Subject::Channel(app, channel) => {
                    let members: Vec<_> = everyone.iter().filter_map(|(id, info)| member(id, info)).collect();
                    self.registry.set_members(&super::key(app, channel), &members);
                }
                Subject::User(app, user) => {
                    self.users.set_present(&app.id.0, user, !everyone.is_empty(), self.now());
                }
            }
        }
        let place = (Arc::clone(group), ticket);
        let parked = clustered.parked.lock().get(&place).cloned();
        match parked {
            Some(Parked::Subscriber(subscriber)) => {
                let key = super::key(&subscriber.app, &subscriber.channel);
                let is_first = self.registry.info(&key, self.now()).subscriptions == 0;
                if subscriber.channel.is_cached() && is_first {
                    clustered.subscribe_with_kept(self, group, ticket, subscriber);
                    return Ok(());
                }
                clustered.parked.lock().remove(&place);
                return clustered.subscribe(self, group, &subscriber);
            }
            Some(Parked::Looker(_)) => {
                // When this is over, because it enters and leaves.
                if let Some(hub) = self.strong() {
                    let group = Arc::clone(group);
                    self.runtime.spawn(async move {
                        let Some(clustered) = &hub.clustered else { return };
                        clustered
                            .cluster
                            .act(&group, |acting| clustered.looked(&hub, acting, &group, ticket));
                    });
                }
            }
            Some(Parked::SigningIn(signing_in)) => {
                clustered.parked.lock().remove(&place);
                signing_in.signed_in(self);
            }
            Some(Parked::Watcher(watcher)) => {
                clustered.parked.lock().remove(&place);
                watcher.one_is_known(self);
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
                self.registry.drop_cluster_state(&super::key(app, &channel));
            }
            Some(Subject::User(app, user)) => self.users.drop_cluster_state(&app.id.0, &user),
            None => {}
        }
    }

    fn added(&self, group: &Group, id: &MemberId, info: &Bytes) {
        let tell = |key: &ChannelKey| self.registry.member_added(key, &member(id, info)?);
        self.member_changed(group, tell, true);
    }

    fn removed(&self, group: &Group, id: &MemberId) {
        let tell = |key: &ChannelKey| {
            let user = UserId::parse(id, usize::MAX).ok()?;
            self.registry.member_removed(key, &user)
        };
        self.member_changed(group, tell, false);
    }

    fn message(&self, group: &Group, number: Option<Version>, message: Bytes) -> Option<Room> {
        let clustered = self.clustered.as_ref()?;
        let channel = clustered.subject(group)?.channel();
        clustered.channel_message(self, group, channel, number, &message)
    }

    fn asked(&self, question: Bytes) -> Reply {
        let question = std::str::from_utf8(&question).unwrap_or_default();
        let reply = self.clustered.as_ref().and_then(|clustered| clustered.answer(self, question));
        reply.unwrap_or_else(|| Box::pin(ready(Bytes::new())))
    }

    fn is_noted(&self, group: &Group) -> bool {
        let subject = self.clustered.as_ref().and_then(|clustered| clustered.subject(group));
        match subject {
            Some(Subject::Channel(app, channel)) => self.webhooks.wants_records_of_channel(app, &channel),
            Some(Subject::User(app, user)) => self.webhooks.wants_records_of_user(app, &user),
            None => false,
        }
    }

    fn recorded(&self, partition: u16) {
        if let Some(clustered) = &self.clustered {
            clustered.records.wake(partition);
        }
    }

    fn alive(&self, nodes: &[NodeId]) {
        let Some(clustered) = &self.clustered else { return };
        clustered.records.shared_by(nodes.len());
        for (group, elsewhere) in clustered.counts.alive(&nodes.iter().collect()) {
            if let Some(Subject::Channel(app, channel)) = clustered.subject(&group) {
                clustered.tell_elsewhere(self, &super::key(app, &channel), elsewhere);
            }
        }
    }

    fn broker(&self, is_there: bool) {
        let Some(clustered) = self.clustered.as_ref().filter(|_| is_there) else { return };
        clustered.records.found();
        if let Some(hub) = self.strong() {
            self.runtime.spawn(async move {
                if let Some(clustered) = &hub.clustered {
                    clustered.quotas.tell(&clustered.cluster, &clustered.apps).await;
                    clustered.catch_up(&hub).await;
                }
            });
        }
        for group in clustered.counts.begin_anew() {
            if let Some(Subject::Channel(app, channel)) = clustered.subject(&group) {
                clustered.counted(self, app, &channel, &group);
            }
        }
    }
}
