//! The users that are signed in on this node, and the connections that watch them.
//!
//! A user is online while at least one connection is signed in, and for two seconds after the last one ended, so that a
//! page reload does not flap. A change of state is sent to the watchers under the lock of the user, so the last event that
//! a watcher receives is the current state.
//!
//! Source: protocol.md §6.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::Mutex;

use crate::outbox::Outbox;
use crate::protocol::message::ServerMessage;
use crate::protocol::wire::{Frame, pusher};
use crate::protocol::{SocketId, UserId};

/// How long a user counts as online after the last connection ended.
const LINGER: Duration = Duration::from_secs(2);

/// Users that expire, and watchers that receive it, before other tasks run.
const EXPIRED_PER_TURN: usize = 256;

/// A user of an app.
type UserKey = (Arc<str>, UserId);

/// The users of this node. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Users(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Whether the cluster decides who is online.
    in_cluster: bool,
    users: DashMap<UserKey, Arc<Mutex<User>>>,
    /// Users whose last connection ended, each once, by the time at which they may count as offline. Locked after the user,
    /// so times that were read before the user's lock may be out of order.
    lingering: Mutex<BinaryHeap<Reverse<(Duration, UserKey)>>>,
}

#[derive(Debug, Default)]
struct User {
    /// The connections that are signed in as the user.
    connections: HashMap<SocketId, Arc<Outbox>>,
    /// The connections with the user on their watchlist.
    watchers: HashMap<SocketId, Arc<Outbox>>,
    online: bool,
    /// Whether the user is signed in anywhere in the cluster.
    is_present: bool,
    /// When the last connection ended.
    left: Duration,
    /// Whether the user is in the list of lingering users.
    is_lingering: bool,
    /// The user is no longer in the map, or is about to be removed from it.
    removed: bool,
}

impl User {
    /// Sets the state and sends it to the watchers if it changed. Returns the number of watchers it was sent to.
    fn set_online(&mut self, online: bool, id: &UserId) -> usize {
        if self.online == online {
            return 0;
        }
        self.online = online;
        let event = watchlist_event(online, id);
        self.watchers.values().for_each(|watcher| watcher.send(&event));
        self.watchers.len()
    }
}

/// The event that watchers receive when the state of a user changes.
fn watchlist_event(online: bool, id: &UserId) -> Frame {
    let id = std::slice::from_ref(id);
    let (online, offline) = if online { (id, &[][..]) } else { (&[][..], id) };
    pusher::encode(&ServerMessage::Watchlist { online, offline })
}

impl Users {
    /// The users of a node in a cluster, which decides who is online: see [`Users::set_present`].
    #[must_use]
    pub fn in_cluster() -> Self {
        Self(Arc::new(Shared { in_cluster: true, ..Shared::default() }))
    }

    /// Runs `act` on a user, which is added if it is missing.
    fn with<T>(&self, key: &UserKey, act: impl FnOnce(&mut User) -> T) -> T {
        loop {
            let found = Arc::clone(&self.0.users.entry(key.clone()).or_default());
            let mut user = found.lock();
            if !user.removed {
                return act(&mut user);
            }
            drop(user);
            self.0.users.remove_if(key, |_, other| Arc::ptr_eq(other, &found));
        }
    }

    /// Runs `act` on a user that exists, then removes the user if nothing needs it.
    fn with_existing<T>(&self, key: &UserKey, act: impl FnOnce(&mut User) -> T) -> Option<T> {
        let found = Arc::clone(&*self.0.users.get(key)?);
        let mut user = found.lock();
        let done = act(&mut user);
        user.removed = !user.online && user.connections.is_empty() && user.watchers.is_empty();
        let removed = user.removed;
        drop(user);
        if removed {
            self.0.users.remove_if(key, |_, other| Arc::ptr_eq(other, &found));
        }
        Some(done)
    }

    /// Adds a signed-in connection. Returns whether it is the first of the user.
    pub fn sign_in(&self, app: &Arc<str>, id: &UserId, outbox: &Arc<Outbox>) -> bool {
        self.with(&(Arc::clone(app), id.clone()), |user| {
            let is_first = user.connections.is_empty();
            user.connections.insert(outbox.socket(), Arc::clone(outbox));
            if !self.0.in_cluster {
                user.set_online(true, id);
            }
            is_first
        })
    }

    /// Whether a connection is signed in as `id`.
    #[must_use]
    pub fn is_signed_in(&self, app: &Arc<str>, id: &UserId, socket: SocketId) -> bool {
        let key = (Arc::clone(app), id.clone());
        self.with_existing(&key, |user| user.connections.contains_key(&socket)) == Some(true)
    }

    /// Sets whether a user is signed in anywhere in the cluster.
    pub fn set_present(&self, app: &Arc<str>, id: &UserId, present: bool, now: Duration) {
        let key = (Arc::clone(app), id.clone());
        self.with(&key, |user| {
            user.is_present = present;
            if present {
                user.set_online(true, id);
            }
        });
        if !present {
            // Removes the user immediately if nothing needs it.
            self.with_existing(&key, |user| self.start_lingering(user, &key, now));
        }
    }

    /// Drops the cluster's state of a user that has neither connections nor watchers on this node.
    pub fn drop_cluster_state(&self, app: &Arc<str>, id: &UserId) {
        self.with_existing(&(Arc::clone(app), id.clone()), |user| {
            (user.is_present, user.online) = (false, false);
        });
    }

    /// Removes a signed-in connection. Returns whether it was the last of the user.
    pub fn sign_out(&self, app: &Arc<str>, id: &UserId, socket: SocketId, now: Duration) -> bool {
        let key = (Arc::clone(app), id.clone());
        let was_last = self.with_existing(&key, |user| {
            let was_last = user.connections.remove(&socket).is_some() && user.connections.is_empty();
            if was_last && !self.0.in_cluster {
                self.start_lingering(user, &key, now);
            }
            was_last
        });
        was_last == Some(true)
    }

    /// Adds a user without connections to the list of lingering users.
    fn start_lingering(&self, user: &mut User, key: &UserKey, now: Duration) {
        user.left = user.left.max(now);
        if !std::mem::replace(&mut user.is_lingering, true) {
            self.0.lingering.lock().push(Reverse((user.left + LINGER, key.clone())));
        }
    }

    /// Sets users offline that left two seconds ago and did not return, up to 256 users and watchers. Returns whether there
    /// may be more. Call about once a second, and let other tasks run between calls.
    pub fn expire_lingering(&self, now: Duration) -> bool {
        let mut expired = 0;
        while expired < EXPIRED_PER_TURN {
            let Some(key) = self.pop_due(now) else { return false };
            let sent = self.with_existing(&key, |user| {
                user.is_lingering = false;
                let is_gone = if self.0.in_cluster { !user.is_present } else { user.connections.is_empty() };
                if is_gone && user.left + LINGER <= now {
                    return user.set_online(false, &key.1);
                }
                if is_gone {
                    // The user returned and left again, so the time starts anew.
                    self.start_lingering(user, &key, user.left);
                }
                0
            });
            expired += 1 + sent.unwrap_or_default();
        }
        true
    }

    /// Removes the first user from the list whose time is over.
    fn pop_due(&self, now: Duration) -> Option<UserKey> {
        let mut lingering = self.0.lingering.lock();
        lingering
            .peek()
            .is_some_and(|Reverse((due, _))| *due <= now)
            .then(|| lingering.pop())?
            .map(|next| next.0.1)
    }

    /// Makes `outbox` a watcher of the users in `watched`, and sends it their state.
    pub fn watch(&self, app: &Arc<str>, watched: &[UserId], outbox: &Arc<Outbox>) {
        if watched.is_empty() {
            return;
        }
        let key = |id: &UserId| (Arc::clone(app), id.clone());
        let (mut online, mut offline) = (Vec::new(), Vec::new());
        for id in watched {
            let is_online = self.with(&key(id), |user| {
                user.watchers.insert(outbox.socket(), Arc::clone(outbox));
                user.online
            });
            if is_online { online.push(id.clone()) } else { offline.push(id.clone()) }
        }
        outbox.reply(&ServerMessage::Watchlist { online: &online, offline: &offline });
        // The event about a change in the meantime was sent before the list. Send it again, so that the last event is right.
        let sent = online.iter().map(|id| (id, true)).chain(offline.iter().map(|id| (id, false)));
        for (id, sent) in sent {
            self.with_existing(&key(id), |user| {
                if user.online != sent {
                    outbox.send(&watchlist_event(user.online, id));
                }
            });
        }
    }

    /// Removes the connection from the watchers of `watched`.
    pub fn unwatch(&self, app: &Arc<str>, watched: &[UserId], socket: SocketId) {
        for id in watched {
            self.with_existing(&(Arc::clone(app), id.clone()), |user| user.watchers.remove(&socket));
        }
    }

    /// The connections that are signed in as `id`.
    #[must_use]
    pub fn connections(&self, app: &Arc<str>, id: &UserId) -> Vec<Arc<Outbox>> {
        let connections = |user: &mut User| user.connections.values().cloned().collect();
        self.with_existing(&(Arc::clone(app), id.clone()), connections).unwrap_or_default()
    }

    /// Users that are online, lingering or watched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.users.len()
    }

    /// Whether there are no such users.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.users.is_empty()
    }
}

#[cfg(test)]
mod tests;
