//! Signing in and out, and watchlists.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::pending::{PendingEntry, PendingSignIn, PendingWatcher};
use super::{Clustered, Shared, online, sign_in_entry, user_group, watcher_entry};
use crate::apps::App;
use crate::hub::{SignIn, WatchlistChange};
use crate::outbox::Outbox;
use crate::protocol::{SocketId, UserId};

impl Clustered {
    /// See [`crate::hub::Hub::sign_in`].
    pub(in crate::hub) fn sign_in(
        &self,
        hub: &Shared,
        app: &Arc<App>,
        outbox: &Arc<Outbox>,
        sign_in: &SignIn<'_>,
    ) {
        let SignIn { user, previous_watchlist, watchlist, truncated_to, .. } = *sign_in;
        let (socket, group) = (outbox.socket(), user_group(&app.id.0, user.as_str()));
        // While the previous watchlist has not been reported, the new one is reported instead of it.
        let own = (Arc::clone(&group), sign_in_entry(socket));
        let is_signing_in = self.cluster.with_group(&group, |_| self.pending.lock().contains_key(&own));
        let WatchlistChange { removed, added } =
            if is_signing_in || self.is_watching_pending(app, previous_watchlist, socket) {
                WatchlistChange { removed: previous_watchlist.to_vec(), added: watchlist.to_vec() }
            } else {
                WatchlistChange::new(previous_watchlist, watchlist)
            };
        outbox.charge(0, WatchlistChange::changes(&removed, &added));
        let remaining = AtomicUsize::new(1 + added.len());
        let (app_id, outbox) = (Arc::clone(&app.id.0), Arc::clone(outbox));
        let watcher =
            Arc::new(PendingWatcher { app: app_id, outbox, watchlist: added, truncated_to, remaining });
        let outbox = &watcher.outbox;
        self.cluster.with_group(&group, |partition| {
            let sign_in = PendingSignIn {
                app: Arc::clone(app),
                user: user.clone(),
                acknowledgement: sign_in.acknowledgement(),
                subscribes: false,
                watcher: Arc::clone(&watcher),
            };
            let is_new = !hub.users.is_signed_in(&app.id.0, user, socket);
            let mut pending = self.pending.lock();
            match pending.entry(own) {
                // Of several pending sign-ins, the last is acknowledged.
                Entry::Occupied(mut pending) => {
                    let previous = pending.insert(PendingEntry::SignIn(sign_in));
                    if let (PendingEntry::SignIn(sign_in), PendingEntry::SignIn(previous)) =
                        (pending.get_mut(), previous)
                    {
                        sign_in.subscribes = previous.subscribes;
                    }
                }
                Entry::Vacant(entry) if is_new => {
                    entry.insert(PendingEntry::SignIn(sign_in));
                    drop(pending);
                    hub.users.sign_in(&app.id.0, user, outbox);
                    partition.enter(&group, true, Some(online()), sign_in_entry(socket));
                }
                Entry::Vacant(_) => {
                    drop(pending);
                    sign_in.complete(hub);
                }
            }
        });
        // Also cancels the report of the previous watchlist, if it is pending.
        self.unwatch(hub, app, &removed, socket);
        for user in &watcher.watchlist {
            let group = user_group(&watcher.app, user.as_str());
            self.cluster.with_group(&group, |partition| {
                let entry = (Arc::clone(&group), watcher_entry(socket));
                self.pending.lock().insert(entry, PendingEntry::Watcher(Arc::clone(&watcher)));
                partition.enter(&group, true, None, watcher_entry(socket));
            });
        }
    }

    /// See [`crate::hub::Hub::sign_out`].
    pub(in crate::hub) fn sign_out(
        &self,
        hub: &Shared,
        app: &App,
        socket: SocketId,
        user: &UserId,
        watchlist: &[UserId],
    ) {
        let group = user_group(&app.id.0, user.as_str());
        self.cluster.with_group(&group, |partition| {
            self.pending.lock().remove(&(Arc::clone(&group), sign_in_entry(socket)));
            hub.users.sign_out(&app.id.0, user, socket, hub.now());
            hub.leave_user_channel(app, user, socket);
            partition.leave(&group, Some(&online().0), sign_in_entry(socket));
        });
        self.unwatch(hub, app, watchlist, socket);
    }

    /// Whether the state of a user on the watchlist is not known yet. Locks the partitions of all of them, one after
    /// the other: an entry that is not pending any more has been completed.
    fn is_watching_pending(&self, app: &App, watchlist: &[UserId], socket: SocketId) -> bool {
        watchlist.iter().any(|user| {
            let group = user_group(&app.id.0, user.as_str());
            let entry = (Arc::clone(&group), watcher_entry(socket));
            self.cluster.with_group(&group, |_| self.pending.lock().contains_key(&entry))
        })
    }

    fn unwatch(&self, hub: &Shared, app: &App, watchlist: &[UserId], socket: SocketId) {
        for user in watchlist {
            let group = user_group(&app.id.0, user.as_str());
            self.cluster.with_group(&group, |partition| {
                self.pending.lock().remove(&(Arc::clone(&group), watcher_entry(socket)));
                hub.users.unwatch(&app.id.0, std::slice::from_ref(user), socket);
                partition.leave(&group, None, watcher_entry(socket));
            });
        }
        // The whole list may have been completed, and watched, just before its last entry was removed.
        hub.users.unwatch(&app.id.0, watchlist, socket);
    }
}
