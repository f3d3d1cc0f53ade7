//! Who is signed in on this node, and who wants to know.
//!
//! A user is online while at least one connection is signed in, and for two seconds after the last one ended, so
//! that a page reload does not flap. Whatever changes a user's state tells the watchers under the same lock, so
//! the last thing a watcher hears is true.
//!
//! Source: protocol.md §6.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::Mutex;

use crate::outbox::Outbox;
use crate::protocol::message::ServerMessage;
use crate::protocol::{SocketId, UserId};

/// How long a user counts as online after their last connection ended.
const LINGER: Duration = Duration::from_secs(2);

/// A user of an app.
type UserKey = (Arc<str>, UserId);

/// The users of this node. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Users(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    users: DashMap<UserKey, User>,
    /// Users whose last connection ended, with when they count as offline, by that time.
    leaving: Mutex<Vec<(Duration, UserKey)>>,
}

#[derive(Debug, Default)]
struct User {
    /// Their signed-in connections.
    connections: Vec<Arc<Outbox>>,
    /// Connections whose watchlist names them.
    watchers: Vec<Arc<Outbox>>,
    online: bool,
}

impl User {
    fn tell(&self, watcher: &Outbox, user: &UserId) {
        let user = std::slice::from_ref(user);
        let (online, offline) = if self.online { (user, &[][..]) } else { (&[][..], user) };
        watcher.say(&ServerMessage::Watchlist { online, offline });
    }

    fn turn(&mut self, online: bool, user: &UserId) {
        if self.online != online {
            self.online = online;
            self.watchers.iter().for_each(|watcher| self.tell(watcher, user));
        }
    }
}

fn without(outboxes: &mut Vec<Arc<Outbox>>, socket: SocketId) {
    outboxes.retain(|outbox| outbox.socket() != socket);
}

impl Users {
    /// Counts a connection as signed in.
    pub fn sign_in(&self, app: &Arc<str>, user: &UserId, outbox: &Arc<Outbox>) {
        let mut found = self.0.users.entry((Arc::clone(app), user.clone())).or_default();
        without(&mut found.connections, outbox.socket());
        found.connections.push(Arc::clone(outbox));
        found.turn(true, user);
    }

    /// Counts a connection as no longer signed in.
    pub fn sign_out(&self, app: &Arc<str>, user: &UserId, socket: SocketId, now: Duration) {
        let key = (Arc::clone(app), user.clone());
        let Some(mut found) = self.0.users.get_mut(&key) else { return };
        without(&mut found.connections, socket);
        let last = found.connections.is_empty();
        drop(found);
        if last {
            self.0.leaving.lock().push((now + LINGER, key));
        }
    }

    /// Counts as offline whoever left long enough ago; call about once a second.
    pub fn settle(&self, now: Duration) {
        let mut leaving = self.0.leaving.lock();
        let due = leaving.partition_point(|(due, _)| *due <= now);
        let due: Vec<_> = leaving.drain(..due).collect();
        drop(leaving);
        for (_, key) in due {
            if let Some(mut user) = self.0.users.get_mut(&key)
                && user.connections.is_empty()
            {
                user.turn(false, &key.1);
            }
            self.forget_if_unused(&key);
        }
    }

    fn forget_if_unused(&self, key: &UserKey) {
        let unused =
            |_: &_, user: &User| !user.online && user.connections.is_empty() && user.watchers.is_empty();
        self.0.users.remove_if(key, unused);
    }

    /// Tells `outbox` who of `watched` is online, now and from now on.
    pub fn watch(&self, app: &Arc<str>, watched: &[UserId], outbox: &Arc<Outbox>) {
        let key = |user: &UserId| (Arc::clone(app), user.clone());
        let (mut online, mut offline) = (Vec::new(), Vec::new());
        for user in watched {
            let mut found = self.0.users.entry(key(user)).or_default();
            without(&mut found.watchers, outbox.socket());
            found.watchers.push(Arc::clone(outbox));
            if found.online { online.push(user.clone()) } else { offline.push(user.clone()) }
        }
        if watched.is_empty() {
            return;
        }
        outbox.say(&ServerMessage::Watchlist { online: &online, offline: &offline });
        // Whoever changed since they were looked at was told of before the list was: say it again.
        let states = online.iter().map(|user| (user, true)).chain(offline.iter().map(|user| (user, false)));
        for (user, told) in states {
            if let Some(found) = self.0.users.get_mut(&key(user))
                && found.online != told
            {
                found.tell(outbox, user);
            }
        }
    }

    /// No longer tells the connection about `watched`.
    pub fn unwatch(&self, app: &Arc<str>, watched: &[UserId], socket: SocketId) {
        for user in watched {
            let key = (Arc::clone(app), user.clone());
            if let Some(mut found) = self.0.users.get_mut(&key) {
                without(&mut found.watchers, socket);
            }
            self.forget_if_unused(&key);
        }
    }

    /// The connections that are signed in as `user`.
    #[must_use]
    pub fn connections(&self, app: &Arc<str>, user: &UserId) -> Vec<Arc<Outbox>> {
        let found = self.0.users.get(&(Arc::clone(app), user.clone()));
        found.map(|user| user.connections.clone()).unwrap_or_default()
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
