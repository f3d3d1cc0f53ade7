//! Who is signed in on this node, and who wants to know.
//!
//! A user is online while at least one connection is signed in, and for two seconds after the last one ended, so
//! that a page reload does not flap. Whatever changes a user's state tells the watchers under the user's own lock,
//! so the last thing a watcher hears is true.
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

/// How long a user counts as online after their last connection ended.
const LINGER: Duration = Duration::from_secs(2);

/// Users that are settled, and watchers that are told of it, before other work gets its turn.
const SETTLED_AT_ONCE: usize = 256;

/// A user of an app.
type UserKey = (Arc<str>, UserId);

/// The users of this node. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Users(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Whether it is the cluster that says who is online.
    in_cluster: bool,
    users: DashMap<UserKey, Arc<Mutex<User>>>,
    /// Users whose last connection ended, each once, by when they may count as offline. Locked after the user, so what
    /// is read of a clock before the user's lock may come out of order.
    leaving: Mutex<BinaryHeap<Reverse<(Duration, UserKey)>>>,
}

#[derive(Debug, Default)]
struct User {
    /// Their signed-in connections.
    connections: HashMap<SocketId, Arc<Outbox>>,
    /// Connections whose watchlist names them.
    watchers: HashMap<SocketId, Arc<Outbox>>,
    online: bool,
    /// Whether the cluster says that they are signed in.
    present: bool,
    /// When the last connection ended.
    left: Duration,
    /// Whether they stand among those that are leaving.
    is_leaving: bool,
    /// Out of the map, or about to be: of no use any more.
    forgotten: bool,
}

impl User {
    /// Tells the watchers, if that is news; how many they are.
    fn turn(&mut self, online: bool, id: &UserId) -> usize {
        if self.online == online {
            return 0;
        }
        self.online = online;
        let news = news(online, id);
        self.watchers.values().for_each(|watcher| watcher.send(news.bytes()));
        self.watchers.len()
    }
}

/// What watchers hear of one user.
fn news(online: bool, id: &UserId) -> Frame {
    let id = std::slice::from_ref(id);
    let (online, offline) = if online { (id, &[][..]) } else { (&[][..], id) };
    pusher::encode(&ServerMessage::Watchlist { online, offline })
}

impl Users {
    /// Users of a node in a cluster, which says who is online: see [`Users::present`].
    #[must_use]
    pub fn of_cluster() -> Self {
        Self(Arc::new(Shared { in_cluster: true, ..Shared::default() }))
    }

    /// Runs `act` on a user, who is known from then on.
    fn with<T>(&self, key: &UserKey, act: impl FnOnce(&mut User) -> T) -> T {
        loop {
            let found = Arc::clone(&self.0.users.entry(key.clone()).or_default());
            let mut user = found.lock();
            if !user.forgotten {
                return act(&mut user);
            }
            drop(user);
            self.0.users.remove_if(key, |_, other| Arc::ptr_eq(other, &found));
        }
    }

    /// Runs `act` on a user, if known, and forgets them if nothing is left to know.
    fn with_known<T>(&self, key: &UserKey, act: impl FnOnce(&mut User) -> T) -> Option<T> {
        let found = Arc::clone(&*self.0.users.get(key)?);
        let mut user = found.lock();
        let done = act(&mut user);
        user.forgotten = !user.online && user.connections.is_empty() && user.watchers.is_empty();
        let forgotten = user.forgotten;
        drop(user);
        if forgotten {
            self.0.users.remove_if(key, |_, other| Arc::ptr_eq(other, &found));
        }
        Some(done)
    }

    /// Counts a connection as signed in; whether it is the user's first.
    pub fn sign_in(&self, app: &Arc<str>, id: &UserId, outbox: &Arc<Outbox>) -> bool {
        self.with(&(Arc::clone(app), id.clone()), |user| {
            let is_first = user.connections.is_empty();
            user.connections.insert(outbox.socket(), Arc::clone(outbox));
            if !self.0.in_cluster {
                user.turn(true, id);
            }
            is_first
        })
    }

    /// Whether a connection is signed in as `id`.
    #[must_use]
    pub fn is_signed_in(&self, app: &Arc<str>, id: &UserId, socket: SocketId) -> bool {
        let key = (Arc::clone(app), id.clone());
        self.with_known(&key, |user| user.connections.contains_key(&socket)) == Some(true)
    }

    /// The cluster says whether a user is signed in anywhere.
    pub fn present(&self, app: &Arc<str>, id: &UserId, present: bool, now: Duration) {
        let key = (Arc::clone(app), id.clone());
        self.with(&key, |user| {
            user.present = present;
            if present {
                user.turn(true, id);
            }
        });
        if !present {
            // Forgotten at once, if nobody wants to know.
            self.with_known(&key, |user| self.left(user, &key, now));
        }
    }

    /// Forgets what the cluster says of a user, because nobody here wants to know.
    pub fn vacate(&self, app: &Arc<str>, id: &UserId) {
        self.with_known(&(Arc::clone(app), id.clone()), |user| {
            (user.present, user.online) = (false, false);
        });
    }

    /// Counts a connection as no longer signed in; whether it was the user's last.
    pub fn sign_out(&self, app: &Arc<str>, id: &UserId, socket: SocketId, now: Duration) -> bool {
        let key = (Arc::clone(app), id.clone());
        let was_last = self.with_known(&key, |user| {
            let was_last = user.connections.remove(&socket).is_some() && user.connections.is_empty();
            if was_last && !self.0.in_cluster {
                self.left(user, &key, now);
            }
            was_last
        });
        was_last == Some(true)
    }

    /// Notes that a user has left, and when they may count as offline.
    fn left(&self, user: &mut User, key: &UserKey, now: Duration) {
        user.left = user.left.max(now);
        if !std::mem::replace(&mut user.is_leaving, true) {
            self.0.leaving.lock().push(Reverse((user.left + LINGER, key.clone())));
        }
    }

    /// Counts as offline whoever left long enough ago and has not come back since, some of them; whether there may be
    /// more. Call about once a second, and let other work have its turn in between.
    pub fn settle(&self, now: Duration) -> bool {
        let mut settled = 0;
        while settled < SETTLED_AT_ONCE {
            let Some(key) = self.due(now) else { return false };
            let told = self.with_known(&key, |user| {
                user.is_leaving = false;
                let is_gone = if self.0.in_cluster { !user.present } else { user.connections.is_empty() };
                if is_gone && user.left + LINGER <= now {
                    return user.turn(false, &key.1);
                }
                if is_gone {
                    // They have been back in between, and left again.
                    self.left(user, &key, user.left);
                }
                0
            });
            settled += 1 + told.unwrap_or_default();
        }
        true
    }

    /// Whose time has come.
    fn due(&self, now: Duration) -> Option<UserKey> {
        let mut leaving = self.0.leaving.lock();
        leaving
            .peek()
            .is_some_and(|Reverse((due, _))| *due <= now)
            .then(|| leaving.pop())?
            .map(|next| next.0.1)
    }

    /// Tells `outbox` who of `watched` is online, now and from now on.
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
        outbox.say(&ServerMessage::Watchlist { online: &online, offline: &offline });
        // Whoever changed since they were looked at was told of before the list was: say it again.
        let told = online.iter().map(|id| (id, true)).chain(offline.iter().map(|id| (id, false)));
        for (id, told) in told {
            self.with_known(&key(id), |user| {
                if user.online != told {
                    outbox.send(news(user.online, id).bytes());
                }
            });
        }
    }

    /// No longer tells the connection about `watched`.
    pub fn unwatch(&self, app: &Arc<str>, watched: &[UserId], socket: SocketId) {
        for id in watched {
            self.with_known(&(Arc::clone(app), id.clone()), |user| user.watchers.remove(&socket));
        }
    }

    /// The connections that are signed in as `id`.
    #[must_use]
    pub fn connections(&self, app: &Arc<str>, id: &UserId) -> Vec<Arc<Outbox>> {
        let connections = |user: &mut User| user.connections.values().cloned().collect();
        self.with_known(&(Arc::clone(app), id.clone()), connections).unwrap_or_default()
    }

    /// Users that are known: online, leaving or watched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.users.len()
    }

    /// Whether no user is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.users.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: &str) -> UserId {
        UserId::parse(id, 128).unwrap()
    }

    fn outbox(id: u32) -> Arc<Outbox> {
        Arc::new(Outbox::detached(SocketId::new(id, 0), usize::MAX))
    }

    fn heard(outbox: &Outbox) -> Vec<String> {
        let events = outbox.take_queued().into_iter().map(|frame| {
            let text = String::from_utf8_lossy(&frame).into_owned();
            let start = text.find("[{").unwrap();
            text[start..text.rfind(']').unwrap() + 1].replace('\\', "")
        });
        events.collect()
    }

    const ONLINE: &str = r#"[{"name":"online","user_ids":["8"]}]"#;
    const OFFLINE: &str = r#"[{"name":"offline","user_ids":["8"]}]"#;

    #[test]
    fn watchers_hear_of_the_first_connection_and_after_the_last() {
        let (users, app, watcher) = (Users::default(), Arc::from("app"), outbox(1));
        let at = Duration::from_millis;
        users.watch(&app, &[user("8")], &watcher);
        assert_eq!(heard(&watcher), [OFFLINE]);
        users.sign_in(&app, &user("8"), &outbox(2));
        users.sign_in(&app, &user("8"), &outbox(3));
        assert_eq!(heard(&watcher), [ONLINE]);
        users.sign_out(&app, &user("8"), SocketId::new(2, 0), at(0));
        users.settle(at(9000));
        assert!(heard(&watcher).is_empty(), "another connection is left");
        users.sign_out(&app, &user("8"), SocketId::new(3, 0), at(9000));
        users.settle(at(10_999));
        assert!(heard(&watcher).is_empty());
        users.settle(at(11_000));
        assert_eq!(heard(&watcher), [OFFLINE]);
        users.unwatch(&app, &[user("8")], watcher.socket());
        assert!(users.is_empty());
    }

    #[test]
    fn a_page_reload_does_not_flap() {
        let (users, app, watcher) = (Users::default(), Arc::from("app"), outbox(1));
        users.sign_in(&app, &user("8"), &outbox(2));
        users.watch(&app, &[user("8"), user("9")], &watcher);
        assert_eq!(
            heard(&watcher),
            [r#"[{"name":"online","user_ids":["8"]},{"name":"offline","user_ids":["9"]}]"#]
        );
        users.sign_out(&app, &user("8"), SocketId::new(2, 0), Duration::ZERO);
        users.sign_in(&app, &user("8"), &outbox(3));
        users.settle(Duration::from_secs(60));
        assert!(heard(&watcher).is_empty());
    }

    #[test]
    fn each_time_the_last_connection_ends_the_user_lingers_anew() {
        let (users, app, watcher) = (Users::default(), Arc::from("app"), outbox(1));
        let at = Duration::from_millis;
        users.sign_in(&app, &user("8"), &outbox(2));
        users.watch(&app, &[user("8")], &watcher);
        assert_eq!(heard(&watcher), [ONLINE]);
        users.sign_out(&app, &user("8"), SocketId::new(2, 0), at(0));
        users.sign_in(&app, &user("8"), &outbox(3));
        users.sign_out(&app, &user("8"), SocketId::new(3, 0), at(1900));
        users.settle(at(2000));
        assert!(heard(&watcher).is_empty(), "gone for a tenth of a second");
        users.settle(at(3900));
        assert_eq!(heard(&watcher), [OFFLINE]);
    }

    #[test]
    fn users_who_leave_at_once_are_offline_in_the_end_whoever_looked_at_the_clock_first() {
        let (users, app, watcher) = (Users::default(), Arc::from("app"), outbox(1));
        let at = Duration::from_millis;
        users.sign_in(&app, &user("8"), &outbox(2));
        users.sign_in(&app, &user("9"), &outbox(3));
        users.watch(&app, &[user("8"), user("9")], &watcher);
        watcher.take_queued();
        users.sign_out(&app, &user("8"), SocketId::new(2, 0), at(1001));
        users.sign_out(&app, &user("9"), SocketId::new(3, 0), at(1000));
        users.settle(at(3000));
        assert_eq!(heard(&watcher), [r#"[{"name":"offline","user_ids":["9"]}]"#]);
        users.settle(at(9000));
        assert_eq!(heard(&watcher), [OFFLINE]);
    }

    #[test]
    fn in_a_cluster_a_connection_that_ends_here_does_not_keep_a_user_online_that_is_gone() {
        let (users, app, watcher) = (Users::of_cluster(), Arc::from("app"), outbox(1));
        let at = Duration::from_millis;
        users.sign_in(&app, &user("8"), &outbox(2));
        users.present(&app, &user("8"), true, at(0));
        users.watch(&app, &[user("8")], &watcher);
        assert_eq!(heard(&watcher), [ONLINE]);
        users.present(&app, &user("8"), false, at(1000));
        users.sign_out(&app, &user("8"), SocketId::new(2, 0), at(2000));
        users.settle(at(3000));
        assert_eq!(heard(&watcher), [OFFLINE]);
    }

    #[test]
    fn a_user_who_comes_and_goes_is_looked_at_by_one_timer() {
        let (users, app) = (Users::default(), Arc::from("app"));
        for at in 0..1000 {
            users.sign_in(&app, &user("8"), &outbox(2));
            users.sign_out(&app, &user("8"), SocketId::new(2, 0), Duration::from_millis(at));
            users.settle(Duration::from_millis(at));
            assert_eq!(users.0.leaving.lock().len(), 1);
        }
        users.settle(Duration::from_millis(2999));
        assert!(users.is_empty());
    }

    #[test]
    fn many_users_who_leave_at_once_are_settled_in_turns() {
        let (users, app, watcher) = (Users::default(), Arc::from("app"), outbox(1));
        let ids: Vec<_> = (0..1000).map(|id: u32| user(&id.to_string())).collect();
        for (socket, id) in (2..).zip(&ids) {
            users.sign_in(&app, id, &outbox(socket));
            users.sign_out(&app, id, SocketId::new(socket, 0), Duration::ZERO);
        }
        users.watch(&app, &ids[..500], &watcher);
        watcher.take_queued();
        let mut turns = 1;
        while users.settle(LINGER) {
            turns += 1;
        }
        assert_eq!((heard(&watcher).len(), users.len()), (500, 500), "those that are watched are known");
        // 1000 users, and 500 that are told of.
        assert_eq!(turns, 1500_usize.div_ceil(SETTLED_AT_ONCE));
        assert!(!users.settle(LINGER), "once each");
    }

    #[test]
    fn only_the_connections_signed_in_as_the_user_of_the_app_are_theirs() {
        let (users, app, other) = (Users::default(), Arc::from("app"), Arc::from("other"));
        users.sign_in(&app, &user("8"), &outbox(2));
        users.sign_in(&app, &user("9"), &outbox(3));
        users.sign_in(&other, &user("8"), &outbox(4));
        let sockets: Vec<_> =
            users.connections(&app, &user("8")).iter().map(|outbox| outbox.socket()).collect();
        assert_eq!(sockets, [SocketId::new(2, 0)]);
    }
}
