//! The waist between the doors and everything behind them: join, leave, publish, sign in, query.
//!
//! The hub makes facts of the registry into what follows from them, after the registry's locks are released: it
//! drives large channels, lets publishers wait where a channel has too much before it, notes for webhooks what has
//! happened, and keeps the node's clock.
//! It is all that a door knows of the rest of the server. It does not know what a wire or a session is.
//!
//! Start at [`Hub`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::apps::App;
use crate::limits::{Limit, Reports};
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::protocol::message::{Event, Source};
use crate::protocol::{ChannelName, Member, SocketId, UserId};
pub use crate::registry::{Backlog, ChannelInfo, Connections, JoinError};
use crate::registry::{
    Cache, ChannelKey, ChannelPlaces, Drive, Join, Joined, Left, Published, Registry, Users,
};
use crate::webhooks::{self, Ledger, Webhooks};

/// Deliveries on the spot before other work gets its turn.
const AT_A_TURN: usize = 64;

/// Expired cache entries are looked for this often.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(60);

/// See the module's documentation. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    connections: Connections,
    users: Users,
    metrics: Arc<Metrics>,
    webhooks: Webhooks,
    /// When the operator was told of each limit of the node.
    reports: Reports,
    started: Instant,
    draining: AtomicBool,
    /// Whether every join, leave and publish is logged, payloads included.
    debug: bool,
    runtime: Handle,
}

impl Hub {
    /// A hub with nothing behind it yet. To be made inside of a runtime, which will drive its channels.
    #[must_use]
    pub fn new(debug: bool, metrics: Arc<Metrics>, webhooks: Webhooks) -> Self {
        Self(Arc::new(Inner {
            registry: Registry::default(),
            connections: Connections::default(),
            users: Users::default(),
            metrics,
            webhooks,
            reports: Reports::default(),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            debug,
            runtime: Handle::current(),
        }))
    }

    /// The node's clock: time since it started.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// What the node counts.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Counts that `limit`, of an app or the node's own, has refused something, and tells the operator of it once
    /// a minute.
    pub fn refused(&self, limit: Limit, app: Option<&App>) {
        self.0.metrics.refused(limit).count();
        let reports = app.map_or(&self.0.reports, |app| &app.reports);
        if reports.is_due(limit, self.now()) {
            let app = app.map(|app| &*app.id.0);
            warn!(
                app,
                setting = limit.setting(),
                "a limit is reached; it is counted, and said once a minute"
            );
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

    /// From now on the node is going away.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::SeqCst);
    }

    /// Whether every message is logged, payloads included.
    #[must_use]
    pub fn debugs(&self) -> bool {
        self.0.debug
    }

    /// Subscribes a connection to a channel and tells it so. A backlog says when the connection may go on.
    ///
    /// # Errors
    /// [`JoinError`], which is counted and reported.
    pub fn join(
        &self,
        app: &App,
        outbox: &Arc<Outbox>,
        channel: &ChannelName,
        member: Option<Member>,
    ) -> Result<Option<Backlog>, JoinError> {
        let key = key(app, channel);
        let members_max = app.limits.presence_members_max;
        let places = ChannelPlaces { taken: &app.channels, max: app.limits.channels_max };
        let join = Join { member, members_max, counts: app.subscription_counts, places };
        // Taken before the registry decides, so that what is noted is noted in the order of the decisions.
        let ledger = self.0.webhooks.of_subscription(app, channel);
        let joined = self.0.registry.join(&key, outbox, &join, self.now());
        if let (Some(ledger), Ok(joined)) = (ledger, &joined) {
            note_joined(ledger, channel, join.member.as_ref(), joined);
        }
        match joined {
            Ok(joined) => {
                self.deliver(joined.drive);
                if self.0.debug {
                    debug!(app = %app.id, %channel, socket = %outbox.socket(), again = joined.again, "subscribed");
                }
                Ok(joined.backlog)
            }
            Err(error) => {
                let limit = match error {
                    JoinError::Full => Limit::PresenceMembers,
                    JoinError::TooManyChannels => Limit::AppChannels,
                };
                self.refused(limit, Some(app));
                Err(error)
            }
        }
    }

    /// Ends a subscription. A backlog says when the connection may go on.
    pub fn leave(&self, app: &App, channel: &ChannelName, socket: SocketId) -> Option<Backlog> {
        let left = self.left(app, channel, socket)?;
        self.deliver(left.drive);
        left.backlog
    }

    /// Ends the subscriptions of a connection that is gone. What the others are told of it is delivered in turns
    /// once it is much.
    pub fn leave_all(&self, app: &App, channels: &[ChannelName], socket: SocketId) {
        let mut delivered = 0;
        for channel in channels {
            let Some(left) = self.left(app, channel, socket) else { continue };
            if delivered < AT_A_TURN {
                delivered += self.deliver(left.drive);
            } else {
                self.drive(left.drive);
            }
        }
    }

    fn left(&self, app: &App, channel: &ChannelName, socket: SocketId) -> Option<Left> {
        let ledger = self.0.webhooks.of_subscription(app, channel);
        let left = self.0.registry.leave(&key(app, channel), socket, app.subscription_counts, self.now())?;
        if let Some(ledger) = ledger {
            note_left(ledger, channel, &left);
        }
        if self.0.debug {
            debug!(app = %app.id, %channel, %socket, "unsubscribed");
        }
        Some(left)
    }

    /// Publishes events, one after the other: on return they are delivered or queued, and there is room for more.
    pub async fn publish<'e>(&self, app: &App, events: impl IntoIterator<Item = Event<'e>>) {
        let mut delivered = 0;
        for event in events {
            let published = self.start(app, &event);
            delivered += self.deliver(published.drive);
            if let Some(mut backlog) = published.backlog {
                std::future::poll_fn(|cx| backlog.poll_room(cx)).await;
            }
            if delivered >= AT_A_TURN {
                delivered = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    /// Publishes an event of a client. A backlog says when the connection may go on.
    pub fn publish_from_client(&self, app: &App, event: &Event<'_>) -> Option<Backlog> {
        let ledger = self.0.webhooks.of_client_event(app, event.channel);
        let published = self.start(app, event);
        // Whoever sends it is the one who does not get it.
        if let (Some(mut ledger), Source::Client(user), Some(socket)) = (ledger, event.source, event.except) {
            let Event { channel, name, data, .. } = *event;
            ledger.note(&webhooks::Event::ClientEvent { channel, event: name, data, socket, user });
        }
        self.deliver(published.drive);
        published.backlog
    }

    fn start(&self, app: &App, event: &Event<'_>) -> Published {
        if self.0.debug {
            let source = match event.source {
                Source::App => "app",
                Source::Client(_) => "client",
            };
            debug!(app = %app.id, channel = %event.channel, event = event.name, data = event.data, source, "event");
        }
        let cache = Cache {
            ttl: app.limits.cache_ttl,
            places: ChannelPlaces { taken: &app.channels, max: app.limits.channels_max },
        };
        let published = self.0.registry.publish(&app.id.0, event, cache, self.now());
        if published.not_kept {
            self.refused(Limit::AppChannels, Some(app));
        }
        published
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
        self.0.runtime.spawn(async move {
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

    /// Counts a connection as signed in and tells it about its watchlist, instead of the one it `watched`.
    pub fn sign_in(
        &self,
        app: &App,
        outbox: &Arc<Outbox>,
        user: &UserId,
        watched: &[UserId],
        watchlist: &[UserId],
    ) {
        let ledger = self.0.webhooks.of_user(app, user);
        let is_first = self.0.users.sign_in(&app.id.0, user, outbox);
        if let Some(mut ledger) = ledger.filter(|_| is_first) {
            ledger.note(&webhooks::Event::UserOnline(user));
        }
        self.0.users.unwatch(&app.id.0, watched, outbox.socket());
        self.0.users.watch(&app.id.0, watchlist, outbox);
        if self.0.debug {
            debug!(app = %app.id, socket = %outbox.socket(), %user, "signed in");
        }
    }

    /// Counts a connection as no longer signed in.
    pub fn sign_out(&self, app: &App, socket: SocketId, user: &UserId, watchlist: &[UserId]) {
        let ledger = self.0.webhooks.of_user(app, user);
        let was_last = self.0.users.sign_out(&app.id.0, user, socket, self.now());
        if let Some(mut ledger) = ledger.filter(|_| was_last) {
            ledger.note(&webhooks::Event::UserOffline(user));
        }
        self.0.users.unwatch(&app.id.0, watchlist, socket);
    }

    /// Closes every connection that is signed in as `user`; how many there were.
    pub fn terminate(&self, app: &App, user: &UserId) -> usize {
        let connections = self.0.users.connections(&app.id.0, user);
        for outbox in &connections {
            outbox.close(app.terminate_close_code, "Disconnected by the application");
        }
        connections.len()
    }

    /// What can be said of a channel now.
    #[must_use]
    pub fn channel(&self, app: &App, channel: &ChannelName) -> ChannelInfo {
        self.0.registry.info(&key(app, channel), self.now())
    }

    /// The users of a presence channel.
    #[must_use]
    pub fn users(&self, app: &App, channel: &ChannelName) -> Vec<UserId> {
        self.0.registry.users(&key(app, channel))
    }

    /// The occupied channels whose names start with `prefix`, users' own left out.
    #[must_use]
    pub fn channels(&self, app: &App, prefix: &str) -> Vec<(ChannelName, ChannelInfo)> {
        self.0.registry.occupied(&app.id.0, prefix, self.now())
    }

    /// Does what time brings: counts that are due, users that stay away, cached events that expire. Runs until it
    /// is dropped.
    pub async fn keep_time(&self) {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        let mut expired = self.now();
        loop {
            second.tick().await;
            let now = self.now();
            for due in self.0.registry.counts_due() {
                let ChannelKey { app, channel } = due.key();
                let ledger = self.0.webhooks.of_count(app, channel);
                let (count, drive) = due.tell(now);
                if let (Some(mut ledger), Some(count)) = (ledger, count) {
                    ledger.note(&webhooks::Event::SubscriptionCount(channel, count));
                }
                self.drive(drive);
            }
            self.0.users.settle(now);
            if now - expired >= EXPIRE_INTERVAL {
                expired = now;
                self.0.registry.expire(now);
            }
        }
    }
}

/// What receivers may hear of a join, in the order in which a channel fills.
fn note_joined(mut ledger: Ledger<'_>, channel: &ChannelName, member: Option<&Member>, joined: &Joined) {
    if joined.occupied {
        ledger.note(&webhooks::Event::ChannelOccupied(channel));
    }
    if let Some(member) = member.filter(|_| joined.member_added) {
        ledger.note(&webhooks::Event::MemberAdded(channel, &member.id));
    }
    if joined.cache_miss {
        ledger.note(&webhooks::Event::CacheMiss(channel));
    }
    if let Some(count) = joined.count {
        ledger.note(&webhooks::Event::SubscriptionCount(channel, count));
    }
}

/// What receivers may hear of a leave, in the order in which a channel empties.
fn note_left(mut ledger: Ledger<'_>, channel: &ChannelName, left: &Left) {
    if let Some(user) = &left.member_removed {
        ledger.note(&webhooks::Event::MemberRemoved(channel, user));
    }
    if left.vacated {
        ledger.note(&webhooks::Event::ChannelVacated(channel));
    }
    if let Some(count) = left.count {
        ledger.note(&webhooks::Event::SubscriptionCount(channel, count));
    }
}

fn key(app: &App, channel: &ChannelName) -> ChannelKey {
    ChannelKey { app: Arc::clone(&app.id.0), channel: channel.clone() }
}
