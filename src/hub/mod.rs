//! The waist between the doors and everything behind them: join, leave, publish, sign in, query.
//!
//! The hub makes facts of the registry into what follows from them, after the registry's locks are released: it
//! drives large channels, lets publishers wait where a channel has too much before it, notes for webhooks what has
//! happened, and keeps the node's clock.
//! It is all that a door knows of the rest of the server. It does not know what a wire or a session is.
//!
//! Start at [`Hub`].

mod clustered;
mod counts;
mod everywhere;
mod quota;
mod records;
mod refusal;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::debug;

use crate::apps::{App, Apps, ConnectionPlace};
use crate::cluster::node::Cluster;
use crate::limits::Limit;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::protocol::message::{Event, ServerMessage, Source, WATCHLIST_CUT};
use crate::protocol::wire::{Frame, pusher};
use crate::protocol::{ChannelName, CloseCode, Member, SocketId, UserId};
pub use refusal::refuse;

pub use crate::cluster::driver::Lost;
pub use crate::registry::{Backlog, ChannelInfo, Connections, JoinError};
use crate::registry::{
    Cache, ChannelKey, ChannelPlaces, Drive, Join, Joined, Left, Occupied, Published, Registry, Users,
};
use crate::rejections::{Example, Rejection, Reports};
use crate::webhooks::{self, DeliveryGuard, Webhooks};
use clustered::Clustered;
use everywhere::Everywhere;

/// Deliveries on the spot before other work gets its turn.
const AT_A_TURN: usize = 64;

/// Channels that a connection leaves before other work gets its turn.
const LEFT_AT_ONCE: usize = 32;

/// What the broker has to be told at the end is not waited for longer.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// Channels of a list before other work gets its turn.
const LISTED_AT_ONCE: usize = 256;

/// Expired cache entries are looked for this often.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(60);

/// See the module's documentation. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// For tasks that act on it later.
    itself: Weak<Inner>,
    registry: Registry,
    connections: Connections,
    users: Users,
    metrics: Arc<Metrics>,
    webhooks: Webhooks,
    /// What a node has that is one of several.
    clustered: Option<Clustered>,
    /// What the operator was told of rejections that are no app's.
    reports: Arc<Reports>,
    /// Of which reports something has not been told.
    untold: Mutex<Vec<Arc<Reports>>>,
    started: Instant,
    draining: AtomicBool,
    /// Whether payloads are logged, at `debug`.
    debug: bool,
    runtime: Handle,
}

impl Hub {
    /// A hub with nothing behind it yet, of a node that is alone. To be made inside of a runtime, which will drive its
    /// channels.
    #[must_use]
    pub fn new(debug: bool, metrics: Arc<Metrics>, webhooks: Webhooks) -> Self {
        Self::with(debug, metrics, webhooks, Users::default(), None)
    }

    /// The hub of a node of `cluster`, which serves `apps` as all its nodes do.
    #[must_use]
    pub fn of_cluster(
        debug: bool,
        metrics: Arc<Metrics>,
        webhooks: Webhooks,
        apps: Arc<Apps>,
        cluster: Cluster,
        local_when_broker_lost: bool,
    ) -> Self {
        let clustered = Clustered::new(apps, cluster, local_when_broker_lost);
        let hub = Self::with(debug, metrics, webhooks, Users::of_cluster(), Some(clustered));
        if let Some(clustered) = &hub.0.clustered {
            clustered.cluster().tell(&hub.0);
        }
        hub
    }

    fn with(
        debug: bool,
        metrics: Arc<Metrics>,
        webhooks: Webhooks,
        users: Users,
        clustered: Option<Clustered>,
    ) -> Self {
        Self(Arc::new_cyclic(|itself| Inner {
            itself: Weak::clone(itself),
            registry: Registry::default(),
            connections: Connections::default(),
            users,
            metrics,
            webhooks,
            clustered,
            reports: Arc::default(),
            untold: Mutex::default(),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            debug,
            runtime: Handle::current(),
        }))
    }

    /// The node's clock: time since it started.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.now()
    }

    /// What the node counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Counts what an app, or the node where it is no app's, rejects, and tells the operator of it: at `debug` each, and
    /// once a minute and kind how many. Everything that is rejected comes here, once.
    pub fn reject(&self, what: impl Into<Rejection>, app: Option<&App>, example: Example<'_>) {
        self.0.reject(what.into(), app, example);
    }

    /// Tells the operator of all rejections that have not been told, their minute over or not.
    pub fn flush_reports(&self) {
        self.0.flush_reports(true);
    }

    /// Takes a connection's place among those of its app, in a cluster of all nodes; `None` if it has none left.
    pub async fn take_place(&self, app: &Arc<App>) -> Option<ConnectionPlace> {
        match &self.0.clustered {
            Some(clustered) => Box::pin(clustered.take_place(app)).await,
            None => ConnectionPlace::take(app),
        }
    }

    /// The established connections.
    #[must_use]
    pub fn connections(&self) -> &Connections {
        &self.0.connections
    }

    /// Whether the node is going away.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::SeqCst)
    }

    /// Whether the node is one of several.
    #[must_use]
    pub fn is_clustered(&self) -> bool {
        self.0.clustered.is_some()
    }

    /// The code that a node that is going away closes with. Others take its clients at once; where it is alone, they
    /// find the next process after a second, if that is there by then.
    #[must_use]
    pub fn closes_with(&self) -> CloseCode {
        if self.is_clustered() { CloseCode::Reconnect } else { CloseCode::OverCapacity }
    }

    /// From now on the node is going away.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::SeqCst);
    }

    /// Whether payloads are logged, at `debug`.
    #[must_use]
    pub fn debugs(&self) -> bool {
        self.0.debug
    }

    /// Subscribes a connection to a channel and tells it so: at once, or in a cluster when the nodes have agreed upon it.
    /// A backlog says when the connection may go on.
    ///
    /// # Errors
    /// [`JoinError`], which is counted and reported, and which the client has been told.
    pub fn join(
        &self,
        app: &App,
        outbox: &Arc<Outbox>,
        channel: &ChannelName,
        member: Option<Member>,
    ) -> Result<Option<Backlog>, JoinError> {
        if let Some(clustered) = &self.0.clustered {
            return clustered.join(&self.0, app, outbox, channel, member).map(|()| None);
        }
        let joined = self.0.join(app, outbox, channel, member)?;
        self.0.deliver(joined.drive);
        Ok(joined.backlog)
    }

    /// Ends a subscription. A backlog says when the connection may go on.
    pub fn leave(&self, app: &App, channel: &ChannelName, socket: SocketId) -> Option<Backlog> {
        let left = self.left(app, channel, socket)?;
        self.0.deliver(left.drive);
        left.backlog
    }

    /// Ends some subscriptions of a connection that is gone, and takes them out of `channels`: to be called again until
    /// there are none, with other work in between. What the others are told of it is delivered in turns once it is much.
    pub fn leave_some(&self, app: &App, channels: &mut Vec<ChannelName>, socket: SocketId) {
        let mut delivered = 0;
        for channel in channels.drain(channels.len().saturating_sub(LEFT_AT_ONCE)..) {
            let Some(left) = self.left(app, &channel, socket) else { continue };
            if delivered < AT_A_TURN {
                delivered += self.0.deliver(left.drive);
            } else {
                self.0.drive(left.drive);
            }
        }
    }

    fn left(&self, app: &App, channel: &ChannelName, socket: SocketId) -> Option<Left> {
        let left = match &self.0.clustered {
            Some(clustered) => clustered.leave(&self.0, app, channel, socket)?,
            None => self.0.leave(app, channel, socket)?,
        };
        debug!(app = %app.id, %channel, %socket, "unsubscribed");
        Some(left)
    }

    /// Publishes events, one after the other: on return they are delivered or queued, and there is room for more. In a
    /// cluster, they are then on their way to all nodes, this one among them.
    ///
    /// # Errors
    /// [`Lost`]: nothing is known to have been published. Never on a node that is alone.
    pub async fn publish<'e>(
        &self,
        app: &App,
        events: impl IntoIterator<Item = Event<'e>>,
    ) -> Result<(), Lost> {
        if let Some(clustered) = &self.0.clustered
            && clustered.is_heard()
        {
            return Box::pin(clustered.publish(&self.0, app, events.into_iter())).await;
        }
        let mut delivered = 0;
        for event in events {
            let published = self.start(app, &event);
            delivered += self.0.deliver(published.drive);
            if let Some(mut backlog) = published.backlog {
                std::future::poll_fn(|cx| backlog.poll_room(cx)).await;
            }
            if delivered >= AT_A_TURN {
                delivered = 0;
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// Publishes an event of a client. A backlog says when the connection may go on.
    ///
    /// # Errors
    /// [`Lost`]: it was not published.
    pub fn publish_from_client(&self, app: &App, event: &Event<'_>) -> Result<Option<Backlog>, Lost> {
        let guard = self.0.webhooks.lock_client_events(app, event.channel);
        let published = match &self.0.clustered {
            Some(clustered) if clustered.is_heard() => {
                if !clustered.publish_from_client(&self.0, app, event)? {
                    return Ok(None);
                }
                Published::default()
            }
            Some(_) | None => self.start(app, event),
        };
        // Whoever sends it is the one who does not get it.
        if let (Some(mut guard), Source::Client(user), Some(socket)) = (guard, event.source, event.except) {
            let Event { channel, name, data, .. } = *event;
            guard.emit(&webhooks::Event::ClientEvent { channel, event: name, data, socket, user });
        }
        self.0.deliver(published.drive);
        Ok(published.backlog)
    }

    fn start(&self, app: &App, event: &Event<'_>) -> Published {
        self.0.log(app, event);
        let cache = Cache {
            ttl: app.limits.cache_ttl,
            places: ChannelPlaces { taken: &app.channels, max: app.limits.channels_max },
            bytes_max: app.limits.cached_bytes_max,
        };
        let published = self.0.registry.publish(&app.id.0, event, cache, self.0.now());
        if let Some(limit) = published.limit {
            self.0.not_kept(limit, app, event.channel);
        }
        published
    }

    /// Counts a connection as signed in, and tells it so: from then on it gets what is published to its user, and it
    /// is told of its watchlist, instead of the one it watched: of those who are new in it. In a cluster when the nodes
    /// have agreed upon it. Whoever signs in as before changes nothing.
    pub fn sign_in(&self, app: &App, outbox: &Arc<Outbox>, sign_in: &SignIn<'_>) {
        let SignIn { user, watched, watchlist, .. } = *sign_in;
        if let Some(clustered) = &self.0.clustered {
            clustered.sign_in(&self.0, app, outbox, sign_in);
        } else {
            let guard = self.0.webhooks.lock_user(app, user);
            let is_first = self.0.users.sign_in(&app.id.0, user, outbox);
            if let Some(mut guard) = guard.filter(|_| is_first) {
                guard.emit(&webhooks::Event::UserOnline(user));
            }
            self.0.join_own(app, outbox, user, &sign_in.told());
            let Rewatch { gone, new } = Rewatch::new(watched, watchlist);
            outbox.provoked(0, Rewatch::changes(&gone, &new));
            self.0.users.unwatch(&app.id.0, &gone, outbox.socket());
            self.0.watch(&app.id.0, outbox, &new, sign_in.cut_to);
        }
        debug!(app = %app.id, socket = %outbox.socket(), %user, "signed in");
    }

    /// Counts a connection as no longer signed in.
    pub fn sign_out(&self, app: &App, socket: SocketId, user: &UserId, watchlist: &[UserId]) {
        if let Some(clustered) = &self.0.clustered {
            return clustered.sign_out(&self.0, app, socket, user, watchlist);
        }
        let guard = self.0.webhooks.lock_user(app, user);
        let was_last = self.0.users.sign_out(&app.id.0, user, socket, self.now());
        if let Some(mut guard) = guard.filter(|_| was_last) {
            guard.emit(&webhooks::Event::UserOffline(user));
        }
        self.0.leave_own(app, user, socket);
        self.0.users.unwatch(&app.id.0, watchlist, socket);
    }

    /// Closes every connection that is signed in as `user`, in a cluster on all nodes; how many there were on this one.
    /// If the app says so, those as well that are in presence channels as `user`.
    ///
    /// # Errors
    /// [`Lost`]: other nodes may not have heard of it.
    pub async fn terminate(&self, app: &App, user: &UserId) -> Result<usize, Lost> {
        let terminated = self.0.terminate(app, user);
        // The others do it meanwhile.
        let told = self.0.clustered.as_ref().map(|clustered| clustered.terminate(app, user));
        if app.terminate_presence_members {
            self.0.terminate_members(app, user).await;
        }
        if let Some(told) = told {
            told.await?;
        }
        Ok(terminated)
    }

    /// What can be said of a channel now.
    ///
    /// # Errors
    /// [`Lost`]: the other nodes cannot be asked.
    pub async fn channel(
        &self,
        app: &App,
        channel: &ChannelName,
        wanted: Wanted,
    ) -> Result<ChannelInfo, Lost> {
        match &self.0.clustered {
            Some(clustered) => Box::pin(clustered.channel(&self.0, app, channel, wanted)).await,
            None => Ok(self.0.registry.info(&key(app, channel), self.now())),
        }
    }

    /// The users of a presence channel.
    ///
    /// # Errors
    /// [`Lost`]: it is not known who is there on other nodes.
    pub async fn users(&self, app: &App, channel: &ChannelName) -> Result<Vec<UserId>, Lost> {
        match &self.0.clustered {
            Some(clustered) => clustered.users(app, channel).await,
            None => Ok(self.0.registry.users(&key(app, channel))),
        }
    }

    /// The occupied channels whose names start with `prefix`, users' own left out.
    ///
    /// # Errors
    /// [`Lost`]: it is not known which there are on other nodes.
    pub async fn channels(&self, app: &App, prefix: &str, wanted: Wanted) -> Result<Channels, Lost> {
        let found = match &self.0.clustered {
            Some(clustered) => {
                Found::Everywhere(Box::pin(clustered.channels(&self.0, app, prefix, wanted)).await?)
            }
            None => Found::Here(self.0.registry.occupied(&app.id.0, prefix)),
        };
        Ok(Channels { hub: self.clone(), found })
    }

    /// All apps together may keep events of so many bytes for cache channels.
    pub fn limit_cached(&self, bytes_max: usize) {
        self.0.registry.limit_kept(bytes_max);
    }

    /// The established connections of an app.
    ///
    /// # Errors
    /// [`Lost`]: it is not known how many there are on other nodes.
    pub async fn connections_of(&self, app: &App) -> Result<u64, Lost> {
        match &self.0.clustered {
            Some(clustered) => clustered.connections_of(app).await,
            None => Ok(app.connections.now().into()),
        }
    }

    /// Hands what the cluster has put down for receivers of webhooks to the webhooks room, where there are any. Runs until
    /// [`Hub::close_records`], or for ever.
    pub async fn read_records(&self) {
        match &self.0.clustered {
            Some(clustered) if !self.0.webhooks.is_empty() => {
                clustered.records().read(&self.0, clustered.cluster()).await;
            }
            Some(_) | None => {}
        }
        std::future::pending().await
    }

    /// Leaves what the cluster has put down, and has not been told, to other nodes. To be called when the webhooks have
    /// been drained.
    pub async fn close_records(&self) {
        if let Some(clustered) = &self.0.clustered {
            clustered.records().close(CLOSE_PATIENCE).await;
        }
    }

    /// Whether the node can do all that it should: in a cluster, whether its broker is there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.0.clustered.as_ref().is_none_or(|clustered| clustered.cluster().is_ready())
    }

    /// Does what time brings: counts that are due, users that stay away, cached events that expire, places that are given
    /// back to a cluster. Runs until it is dropped.
    pub async fn keep_time(&self) {
        match &self.0.clustered {
            Some(clustered) => {
                tokio::join!(self.keep_seconds(), clustered.keep_quotas());
            }
            None => self.keep_seconds().await,
        }
    }

    /// What cache channels keep is in no answer of the API, which has occupied channels only.
    fn log_cached(&self) {
        let (events, bytes) = self.0.registry.kept();
        if events > 0 {
            debug!(events, bytes, "cached events");
        }
    }

    async fn keep_seconds(&self) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        let mut expired = self.now();
        loop {
            second.tick().await;
            let now = self.now();
            for (at, due) in self.0.registry.counts_due().into_iter().enumerate() {
                if at % AT_A_TURN == AT_A_TURN - 1 {
                    tokio::task::yield_now().await;
                }
                let key = due.key().clone();
                let guard = self.0.webhooks.lock_count(&key.app, &key.channel);
                let guard = guard.filter(|_| self.0.tells_counts(&key));
                let (count, drive) = due.tell(now);
                if let (Some(mut guard), Some(count)) = (guard, count) {
                    guard.emit(&webhooks::Event::SubscriptionCount(&key.channel, count));
                }
                self.0.drive(drive);
            }
            for drive in self.0.registry.undriven() {
                self.0.drive(Some(drive));
            }
            if let Some(clustered) = &self.0.clustered {
                clustered.tell_untold(&self.0);
            }
            while self.0.users.settle(now) {
                tokio::task::yield_now().await;
            }
            self.0.flush_reports(false);
            if now - expired >= EXPIRE_INTERVAL {
                expired = now;
                while self.0.registry.expire(now) {
                    tokio::task::yield_now().await;
                }
                self.log_cached();
            }
        }
    }
}

/// Occupied channels of an app, some at a time.
#[derive(Debug)]
pub struct Channels {
    hub: Hub,
    found: Found,
}

#[derive(Debug)]
enum Found {
    /// On this node, which is alone.
    Here(Occupied),
    /// On all nodes of a cluster.
    Everywhere(Everywhere),
}

impl Channels {
    /// The next ones, none of them perhaps; `None`: there are no more. Let other work have its turn in between.
    pub fn next_some(&mut self) -> Option<Vec<(ChannelName, ChannelInfo)>> {
        match &mut self.found {
            Found::Here(occupied) => occupied.next_some(self.hub.now()),
            Found::Everywhere(channels) => channels.next_some(),
        }
    }
}

impl Inner {
    fn itself(&self) -> Option<Arc<Self>> {
        self.itself.upgrade()
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn reject<'a>(&self, what: Rejection, app: Option<&'a App>, mut example: Example<'a>) {
        self.metrics.rejected(what).count();
        if let Some(app) = app {
            example = example.app(&*app.id.0);
            if let Rejection::Limit(limit) = what {
                example = example.value(app.value_of(limit));
            }
        }
        let reports = app.map_or(&self.reports, |app| &app.reports);
        if reports.report(what, example, self.now()) {
            self.untold.lock().push(Arc::clone(reports));
        }
    }

    fn flush_reports(&self, all: bool) {
        let now = self.now();
        let mut untold = std::mem::take(&mut *self.untold.lock());
        untold.retain(|reports| reports.flush(now, all));
        self.untold.lock().append(&mut untold);
    }

    /// Counts an event that could not be kept for later subscribers, or because of which others are no longer.
    fn not_kept(&self, limit: Limit, app: &App, channel: &ChannelName) {
        let reason = if limit == Limit::AppChannels {
            "an event is not kept for later subscribers"
        } else {
            "an event is kept in the place of older ones, or not at all"
        };
        self.reject(limit.into(), Some(app), Example::default().channel(channel.as_str()).reason(reason));
    }

    /// Logs an event with the number of subscribers on this node, for those who look for one that does not arrive.
    fn log(&self, app: &App, event: &Event<'_>) {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let source = match event.source {
            Source::App => "app",
            Source::Client(_) => "client",
        };
        let subscribers =
            |channel: &ChannelName| self.registry.info(&key(app, channel), self.now()).subscriptions;
        let here = subscribers(event.channel);
        // Laravel's `Channel` and `PrivateChannel` make two channels of one name.
        let others = event.channel.siblings(&app.names).into_iter().filter(|_| here == 0);
        let occupied = others.filter(|other| subscribers(other) > 0).map(|other| other.to_string());
        let occupied = occupied.collect::<Vec<_>>().join(" ");
        let occupied = (!occupied.is_empty()).then_some(&*occupied);
        debug!(
            app = %app.id,
            channel = %event.channel,
            event = event.name,
            bytes = event.data.len(),
            data = self.debug.then_some(event.data),
            source,
            subscribers = here,
            // Channels of the same name with another prefix, where somebody is.
            occupied_instead = occupied,
            "event published"
        );
    }

    /// Makes a connection a subscriber here, or tells it why not.
    fn join(
        &self,
        app: &App,
        outbox: &Arc<Outbox>,
        channel: &ChannelName,
        member: Option<Member>,
    ) -> Result<Joined, JoinError> {
        let key = key(app, channel);
        let members_max = app.limits.presence_members_max;
        let places = ChannelPlaces { taken: &app.channels, max: app.limits.channels_max };
        let join = Join { member, members_max, counts: app.subscription_counts, places, told: None };
        // Taken before the registry decides, so that what is noted is noted in the order of the decisions.
        let guard = self.webhooks.lock_subscriptions(app, channel);
        let joined = self.registry.join(&key, outbox, &join, self.now());
        if let (Some(guard), Ok(joined)) = (guard, &joined) {
            self.note_joined(guard, &key, join.member.as_ref(), joined);
        }
        match &joined {
            Ok(joined) => {
                debug!(app = %app.id, %channel, socket = %outbox.socket(), again = joined.again, "subscribed");
            }
            Err(error) => self.not_joined(app, outbox, channel, *error),
        }
        joined
    }

    fn not_joined(&self, app: &App, outbox: &Outbox, channel: &ChannelName, error: JoinError) {
        let (limit, refusal) = refusal::of(error, app, channel);
        let example = Example::default().socket(outbox.socket()).channel(channel.as_str());
        self.reject(limit.into(), Some(app), example.reason(&*refusal.reason));
        refuse(app, outbox, channel.as_str(), &refusal);
    }

    fn leave(&self, app: &App, channel: &ChannelName, socket: SocketId) -> Option<Left> {
        let key = key(app, channel);
        let guard = self.webhooks.lock_subscriptions(app, channel);
        let left = self.registry.leave(&key, socket, app.subscription_counts, self.now())?;
        if let Some(guard) = guard {
            self.note_left(guard, &key, &left);
        }
        Some(left)
    }

    fn terminate(&self, app: &App, user: &UserId) -> usize {
        let connections = self.users.connections(&app.id.0, user);
        close_terminated(app, &connections);
        debug!(app = %app.id, %user, connections = connections.len(), "user terminated");
        connections.len()
    }

    /// Closes every connection that is in a presence channel of this node as `user`. There is no index of them: the
    /// app's presence channels are walked through, in turns with everything else.
    async fn terminate_members(&self, app: &App, user: &UserId) {
        let mut members = self.registry.connections_of_member(&app.id.0, user);
        while let Some(connections) = members.next_some() {
            close_terminated(app, &connections);
            tokio::task::yield_now().await;
        }
        debug!(app = %app.id, %user, "presence members terminated");
    }

    /// Makes a connection a subscriber of its user's own channel and tells it `told`, if it is one already, too. Nothing
    /// is lost that is published to the user once it has heard that.
    fn join_own(&self, app: &App, outbox: &Arc<Outbox>, user: &UserId, told: &Frame) {
        let places = ChannelPlaces { taken: &app.channels, max: None };
        let join = Join { member: None, members_max: 0, counts: false, places, told: Some(told) };
        let joined = self.registry.join(&key(app, &ChannelName::of_user(user)), outbox, &join, self.now());
        self.deliver(joined.ok().and_then(|joined| joined.drive));
    }

    fn leave_own(&self, app: &App, user: &UserId, socket: SocketId) {
        let left = self.registry.leave(&key(app, &ChannelName::of_user(user)), socket, false, self.now());
        self.deliver(left.and_then(|left| left.drive));
    }

    /// Tells a connection of the users on its watchlist, and by how much that was cut.
    fn watch(&self, app: &Arc<str>, outbox: &Arc<Outbox>, watchlist: &[UserId], cut_to: Option<usize>) {
        if let Some(users_max) = cut_to {
            let message = format!("Watchlist limit exceeded: the first {users_max} ids are used");
            outbox.say(&ServerMessage::Error { code: Some(WATCHLIST_CUT), message: &message });
        }
        self.users.watch(app, watchlist, outbox);
    }

    /// What receivers may hear of a join, in the order in which a channel fills. What a cluster decides, it records.
    fn note_joined(
        &self,
        mut guard: DeliveryGuard<'_>,
        key: &ChannelKey,
        member: Option<&Member>,
        joined: &Joined,
    ) {
        let ChannelKey { channel, .. } = key;
        if joined.occupied && self.clustered.is_none() {
            guard.emit(&webhooks::Event::ChannelOccupied(channel));
        }
        if let Some(member) = member.filter(|_| joined.member_added) {
            guard.emit(&webhooks::Event::MemberAdded(channel, &member.id));
        }
        if joined.cache_miss {
            guard.emit(&webhooks::Event::CacheMiss(channel));
        }
        if let Some(count) = joined.count.filter(|_| self.tells_counts(key)) {
            guard.emit(&webhooks::Event::SubscriptionCount(channel, count));
        }
    }

    /// What receivers may hear of a leave, in the order in which a channel empties.
    fn note_left(&self, mut guard: DeliveryGuard<'_>, key: &ChannelKey, left: &Left) {
        let ChannelKey { channel, .. } = key;
        if let Some(user) = &left.member_removed {
            guard.emit(&webhooks::Event::MemberRemoved(channel, user));
        }
        if left.vacated && self.clustered.is_none() {
            guard.emit(&webhooks::Event::ChannelVacated(channel));
        }
        if let Some(count) = left.count.filter(|_| self.tells_counts(key)) {
            guard.emit(&webhooks::Event::SubscriptionCount(channel, count));
        }
    }

    /// Whether it is this node that tells receivers of a channel's count.
    fn tells_counts(&self, key: &ChannelKey) -> bool {
        self.clustered.as_ref().is_none_or(|clustered| clustered.tells_counts(key))
    }

    /// Delivers what is pending in a small channel here and now, and says to how many; a large one is driven.
    fn deliver(&self, drive: Option<Drive>) -> usize {
        match drive.map(Drive::on_the_spot) {
            Some(Ok(delivered)) => delivered,
            Some(Err(drive)) => {
                self.drive(Some(drive));
                0
            }
            None => 0,
        }
    }

    /// Delivers what is pending in a channel, in turns with everything else.
    fn drive(&self, drive: Option<Drive>) {
        let Some(mut drive) = drive else { return };
        self.runtime.spawn(async move {
            let mut next = drive.next_pass();
            while let Some(mut pass) = next {
                while pass.serve() {
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

/// How one watchlist becomes another.
struct Rewatch {
    gone: Vec<UserId>,
    new: Vec<UserId>,
}

impl Rewatch {
    fn new(before: &[UserId], now: &[UserId]) -> Self {
        let without = |list: &[UserId], other: &[UserId]| {
            let other: HashSet<&UserId> = other.iter().collect();
            list.iter().filter(|user| !other.contains(user)).cloned().collect()
        };
        Self { gone: without(before, now), new: without(now, before) }
    }

    /// What a connection is charged for it.
    fn changes(gone: &[UserId], new: &[UserId]) -> u16 {
        u16::try_from(gone.len() + new.len()).unwrap_or(u16::MAX)
    }
}

/// A sign-in that was granted.
#[derive(Clone, Copy, Debug)]
pub struct SignIn<'a> {
    /// Who.
    pub user: &'a UserId,
    /// What was signed, which the client is given back.
    pub user_data: &'a str,
    /// Whom the connection watched until now.
    pub watched: &'a [UserId],
    /// Whom it watches from now on.
    pub watchlist: &'a [UserId],
    /// The watchlist was cut to so many.
    pub cut_to: Option<usize>,
}

impl SignIn<'_> {
    /// What the client is told when it is signed in.
    fn told(&self) -> Frame {
        pusher::encode(&ServerMessage::SignedIn { user_data: self.user_data })
    }
}

/// What is wanted of a channel beside whether it is occupied: in a cluster, other nodes are asked for some of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    /// How many users there are.
    pub users: bool,
    /// How many subscribers.
    pub subscriptions: bool,
    /// The cached event.
    pub cache: bool,
}

/// Closes connections for the app; whoever is closing already is left to that.
fn close_terminated(app: &App, connections: &[Arc<Outbox>]) {
    for outbox in connections {
        outbox.close(app.terminate_close_code, "Disconnected by the application");
    }
}

fn key(app: &App, channel: &ChannelName) -> ChannelKey {
    ChannelKey { app: Arc::clone(&app.id.0), channel: channel.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::NameRules;

    #[tokio::test]
    async fn a_connection_that_is_gone_leaves_its_channels_in_turns() {
        let hub = Hub::new(false, Arc::default(), Webhooks::default());
        let app = App::new("1", "key", "secret");
        let outbox = Arc::new(Outbox::detached(SocketId::new(1, 0), usize::MAX));
        let name = |at: usize| ChannelName::parse(&format!("room-{at}"), &NameRules::default()).unwrap();
        let mut channels: Vec<_> = (0..1000).map(name).collect();
        for channel in &channels {
            hub.join(&app, &outbox, channel, None).unwrap();
        }
        let mut turns = 0;
        while !channels.is_empty() {
            let before = channels.len();
            hub.leave_some(&app, &mut channels, outbox.socket());
            assert!((1..=LEFT_AT_ONCE).contains(&(before - channels.len())));
            assert_eq!(hub.0.registry.len(), channels.len(), "what has been left is gone");
            turns += 1;
        }
        assert_eq!(turns, 1000_usize.div_ceil(LEFT_AT_ONCE));
    }
}
