//! Entries in groups that have not been admitted yet, and what happens when they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Shared;
use crate::apps::App;
use crate::outbox::Outbox;
use crate::protocol::wire::Frame;
use crate::protocol::{ChannelName, Member, UserId};

/// An entry that waits to be admitted.
#[derive(Clone, Debug)]
pub(super) enum PendingEntry {
    /// The connection becomes a subscriber.
    Subscriber(Arc<PendingSubscriber>),
    /// The connection enters as a member if the presence channel has capacity, which this node does not know yet. Until
    /// then it is no member, so that a refused one causes no events.
    CapacityCheck(Arc<PendingSubscriber>),
    /// The connection is signed in, and in its user's own channel.
    SignIn(PendingSignIn),
    /// The state of one more user on the connection's watchlist is known.
    Watcher(Arc<PendingWatcher>),
}

#[derive(Debug)]
pub(super) struct PendingSubscriber {
    pub(super) app: Arc<App>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) channel: ChannelName,
    pub(super) member: Option<Member>,
}

/// A sign-in. It is acknowledged when all events that are published to its user reach the connection.
#[derive(Clone, Debug)]
pub(super) struct PendingSignIn {
    pub(super) app: Arc<App>,
    pub(super) user: UserId,
    pub(super) acknowledgement: Frame,
    /// The client has subscribed to the user's own channel in the meantime, which is acknowledged next.
    pub(super) subscribes: bool,
    pub(super) watcher: Arc<PendingWatcher>,
}

/// A watchlist. It is reported to the client when the states of all its users are known.
#[derive(Debug)]
pub(super) struct PendingWatcher {
    pub(super) app: Arc<str>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) watchlist: Vec<UserId>,
    pub(super) truncated_to: Option<usize>,
    /// Entries to be admitted: the sign-in of the connection itself, and one for each user.
    pub(super) remaining: AtomicUsize,
}

impl PendingSignIn {
    /// The entry was admitted.
    pub(super) fn complete(&self, hub: &Shared) {
        let Self { app, user, acknowledgement, subscribes, watcher } = self;
        hub.join_user_channel(app, &watcher.outbox, user, acknowledgement);
        if *subscribes {
            // A second join acknowledges the subscription.
            let joined = hub.join(app, &watcher.outbox, &ChannelName::of_user(user), None);
            hub.drive(joined.ok().and_then(|joined| joined.drive));
        }
        watcher.complete_one(hub);
    }
}

impl PendingWatcher {
    /// One more entry was admitted.
    pub(super) fn complete_one(&self, hub: &Shared) {
        if self.remaining.fetch_sub(1, Ordering::SeqCst) == 1 {
            hub.watch(&self.app, &self.outbox, &self.watchlist, self.truncated_to);
        }
    }
}
