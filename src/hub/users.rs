//! Users: signing in and out, their own channels, their watchlists, and closing their connections.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use super::{Hub, Shared, Unavailable, key};
use crate::apps::App;
use crate::observers::{Fact, Kind};
use crate::outbox::Outbox;
use crate::protocol::message::{ServerMessage, WATCHLIST_CUT};
use crate::protocol::wire::{Frame, pusher};
use crate::protocol::{ChannelName, SocketId, UserId};
use crate::registry::{ChannelPermits, Join};
use crate::webhooks;

/// A sign-in that the session has accepted.
#[derive(Clone, Copy, Debug)]
pub struct SignIn<'a> {
    /// The user.
    pub user: &'a UserId,
    /// The signed text, which the acknowledgement repeats.
    pub user_data: &'a str,
    /// The users that the connection watched before.
    pub previous_watchlist: &'a [UserId],
    /// The users that the connection watches from now on.
    pub watchlist: &'a [UserId],
    /// The limit that truncated the watchlist, if it did.
    pub truncated_to: Option<usize>,
}

impl SignIn<'_> {
    /// The frame that acknowledges the sign-in.
    pub(super) fn acknowledgement(&self) -> Frame {
        pusher::encode(&ServerMessage::SignedIn { user_data: self.user_data })
    }
}

/// The difference between two watchlists.
pub(super) struct WatchlistChange {
    pub(super) removed: Vec<UserId>,
    pub(super) added: Vec<UserId>,
}

impl WatchlistChange {
    pub(super) fn new(before: &[UserId], now: &[UserId]) -> Self {
        let without = |list: &[UserId], other: &[UserId]| {
            let other: HashSet<&UserId> = other.iter().collect();
            list.iter().filter(|user| !other.contains(user)).cloned().collect()
        };
        Self { removed: without(before, now), added: without(now, before) }
    }

    /// The changes that are charged to the connection.
    pub(super) fn changes(removed: &[UserId], added: &[UserId]) -> u16 {
        u16::try_from(removed.len() + added.len()).unwrap_or(u16::MAX)
    }
}

impl Hub {
    /// Signs a connection in and acknowledges it: immediately, or in a cluster after the broker has decided. From then on
    /// the connection receives what is published to its user. It also receives the state of the users that are new on its
    /// watchlist. Signing in with the same data changes nothing.
    pub fn sign_in(&self, app: &Arc<App>, outbox: &Arc<Outbox>, sign_in: &SignIn<'_>) {
        self.0.backend.sign_in(&self.0, app, outbox, sign_in);
        self.0.observers.observe(Kind::SignedIn, || Fact::SignedIn {
            app: (&*app.id.0).into(),
            socket: outbox.socket(),
            user: Cow::Borrowed(sign_in.user),
        });
    }

    /// Signs a connection out.
    pub fn sign_out(&self, app: &App, socket: SocketId, user: &UserId, watchlist: &[UserId]) {
        self.0.backend.sign_out(&self.0, app, socket, user, watchlist);
        self.0.observers.observe(Kind::SignedOut, || Fact::SignedOut {
            app: (&*app.id.0).into(),
            socket,
            user: Cow::Borrowed(user),
        });
    }

    /// Closes every connection that is signed in as `user`, in a cluster on all nodes. Returns how many there were on this
    /// node. If the app is configured so, it also closes connections in presence channels as `user`.
    ///
    /// # Errors
    /// [`Unavailable`]: other nodes may not have received the order.
    pub async fn terminate_user(&self, app: &App, user: &UserId) -> Result<usize, Unavailable> {
        let terminated = self.0.terminate_user(app, user);
        // Sent now, so that the other nodes work at the same time.
        let sent = self.0.backend.terminate_on_other_nodes(app, user);
        if app.terminate_presence_members {
            self.0.terminate_members(app, user).await;
        }
        sent.await?;
        Ok(terminated)
    }
}

impl Shared {
    /// Signs a connection in on this node.
    pub(super) fn sign_in(&self, app: &App, outbox: &Arc<Outbox>, sign_in: &SignIn<'_>) {
        let SignIn { user, previous_watchlist, watchlist, .. } = *sign_in;
        let guard = self.webhooks.lock_user(app, user);
        let is_first = self.users.sign_in(&app.id.0, user, outbox);
        if let Some(mut guard) = guard.filter(|_| is_first) {
            guard.emit(&webhooks::Event::UserOnline(user));
        }
        self.join_user_channel(app, outbox, user, &sign_in.acknowledgement());
        let WatchlistChange { removed, added } = WatchlistChange::new(previous_watchlist, watchlist);
        outbox.charge(0, WatchlistChange::changes(&removed, &added));
        self.users.unwatch(&app.id.0, &removed, outbox.socket());
        self.watch(&app.id.0, outbox, &added, sign_in.truncated_to);
    }

    /// Signs a connection out on this node.
    pub(super) fn sign_out(&self, app: &App, socket: SocketId, user: &UserId, watchlist: &[UserId]) {
        let guard = self.webhooks.lock_user(app, user);
        let was_last = self.users.sign_out(&app.id.0, user, socket, self.now());
        if let Some(mut guard) = guard.filter(|_| was_last) {
            guard.emit(&webhooks::Event::UserOffline(user));
        }
        self.leave_user_channel(app, user, socket);
        self.users.unwatch(&app.id.0, watchlist, socket);
    }

    /// Closes every connection of this node that is signed in as `user`. Returns how many there were.
    pub(super) fn terminate_user(&self, app: &App, user: &UserId) -> usize {
        let connections = self.users.connections(&app.id.0, user);
        close_terminated(app, &connections);
        self.observers.observe(Kind::UserTerminated, || Fact::UserTerminated {
            app: (&*app.id.0).into(),
            user: Cow::Borrowed(user),
            connections: connections.len(),
        });
        connections.len()
    }

    /// Closes every connection that is in a presence channel of this node as `user`. There is no index of them: it scans
    /// the presence channels of the app, in turns with other tasks.
    pub(super) async fn terminate_members(&self, app: &App, user: &UserId) {
        let mut members = self.registry.connections_of_member(&app.id.0, user);
        while let Some(connections) = members.next_chunk() {
            close_terminated(app, &connections);
            tokio::task::yield_now().await;
        }
        self.observers.observe(Kind::MembersTerminated, || Fact::MembersTerminated {
            app: (&*app.id.0).into(),
            user: Cow::Borrowed(user),
        });
    }

    /// Subscribes a connection to its user's own channel and sends `acknowledgement`, also if it is subscribed already.
    /// The connection receives everything that is published to the user after the acknowledgement.
    pub(super) fn join_user_channel(
        &self,
        app: &App,
        outbox: &Arc<Outbox>,
        user: &UserId,
        acknowledgement: &Frame,
    ) {
        let permits = ChannelPermits { held: &app.state.channels, max: None };
        let acknowledgement = Some(acknowledgement);
        let join = Join { member: None, members_max: 0, counts: false, permits, acknowledgement };
        let joined = self.registry.join(&key(app, &ChannelName::of_user(user)), outbox, &join, self.now());
        self.deliver(joined.ok().and_then(|joined| joined.drive));
    }

    pub(super) fn leave_user_channel(&self, app: &App, user: &UserId, socket: SocketId) {
        let left = self.registry.leave(&key(app, &ChannelName::of_user(user)), socket, false, self.now());
        self.deliver(left.and_then(|left| left.drive));
    }

    /// Makes a connection a watcher of `watchlist`, and sends an error frame if the list was truncated.
    pub(super) fn watch(
        &self,
        app: &Arc<str>,
        outbox: &Arc<Outbox>,
        watchlist: &[UserId],
        truncated_to: Option<usize>,
    ) {
        if let Some(users_max) = truncated_to {
            let message = format!("Watchlist limit exceeded: the first {users_max} ids are used");
            outbox.reply(&ServerMessage::Error { code: Some(WATCHLIST_CUT), message: &message });
        }
        self.users.watch(app, watchlist, outbox);
    }
}

/// Closes connections on behalf of the app. A connection that is closing already keeps its close code.
fn close_terminated(app: &App, connections: &[Arc<Outbox>]) {
    for outbox in connections {
        outbox.close(app.terminate_close_code, "Disconnected by the application");
    }
}
