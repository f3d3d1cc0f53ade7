//! The member list of a presence channel.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::protocol::wire::Frame;
use crate::protocol::{Member, UserId};

/// The users of one channel. A user with several connections is listed once, with the info of the first connection, until
/// the last one leaves.
///
/// Source: protocol.md §4.7.
#[derive(Debug, Default)]
pub(super) struct Presence {
    users: HashMap<UserId, User>,
    /// In order of joining.
    order: BTreeMap<u64, UserId>,
    joins: u64,
    /// Whether the list mirrors the members of the cluster: then each user counts one connection.
    is_mirror: bool,
    /// The encoded acknowledgement with the member list, until the list changes.
    roster: Option<Frame>,
}

#[derive(Debug)]
struct User {
    info: Arc<str>,
    connections: u32,
    joined: u64,
}

impl Presence {
    /// A mirror of the cluster's `members`, in order of joining.
    pub(super) fn mirror(members: &[Member]) -> Self {
        let mut presence = Self { is_mirror: true, ..Self::default() };
        for member in members {
            presence.add(member);
        }
        presence
    }

    /// Whether the list mirrors the members of the cluster.
    pub(super) const fn is_mirror(&self) -> bool {
        self.is_mirror
    }

    /// Whether the user is among the first `count` that joined.
    pub(super) fn is_among_first(&self, user: &UserId, count: usize) -> bool {
        if self.users.len() <= count {
            return self.has(user);
        }
        self.order.values().take(count).any(|id| id == user)
    }

    /// Whether the user is in the channel.
    pub(super) fn has(&self, user: &UserId) -> bool {
        self.users.contains_key(user)
    }

    /// Distinct users.
    pub(super) fn len(&self) -> usize {
        self.users.len()
    }

    /// Adds a connection of a user. Returns whether it is the first.
    pub(super) fn add(&mut self, member: &Member) -> bool {
        if let Some(user) = self.users.get_mut(&member.id) {
            user.connections += u32::from(!self.is_mirror);
            return false;
        }
        self.joins += 1;
        self.roster = None;
        let user = User { info: Arc::clone(&member.info), connections: 1, joined: self.joins };
        self.order.insert(user.joined, member.id.clone());
        self.users.insert(member.id.clone(), user);
        true
    }

    /// Removes a connection of a user. Returns whether it was the last.
    pub(super) fn remove(&mut self, id: &UserId) -> bool {
        let Some(user) = self.users.get_mut(id) else { return false };
        user.connections -= 1;
        if user.connections > 0 {
            return false;
        }
        self.roster = None;
        self.order.remove(&user.joined);
        self.users.remove(id);
        true
    }

    /// The acknowledgement with the member list. It is encoded once for each version of the list.
    pub(super) fn roster(&mut self, encode: impl FnOnce(Option<Vec<Member>>) -> Frame) -> Frame {
        if let Some(roster) = &self.roster {
            return roster.clone();
        }
        let roster = encode(Some(self.members()));
        self.roster = Some(roster.clone());
        roster
    }

    /// The members in order of joining.
    fn members(&self) -> Vec<Member> {
        let member =
            |id: &UserId| Some(Member { id: id.clone(), info: Arc::clone(&self.users.get(id)?.info) });
        self.order.values().filter_map(member).collect()
    }

    /// The ids in order of joining.
    pub(super) fn ids(&self) -> Vec<UserId> {
        self.order.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, info: &str) -> Member {
        Member { id: UserId::parse(id, 128).unwrap(), info: info.into() }
    }

    #[test]
    fn a_user_is_listed_once_and_removed_with_the_last_connection() {
        let mut presence = Presence::default();
        let (seven, eight) = (member("7", "1"), member("8", "2"));
        assert!(presence.add(&seven));
        assert!(presence.add(&eight));
        assert!(!presence.add(&member("7", "other")));
        assert_eq!(presence.members(), [seven.clone(), eight.clone()], "the first connection's info counts");
        assert!(!presence.remove(&seven.id));
        assert!(presence.has(&seven.id));
        assert!(presence.remove(&seven.id));
        assert!(!presence.remove(&seven.id));
        assert!(presence.add(&seven));
        assert_eq!(presence.ids(), [eight.id, seven.id], "by time of joining");
        assert_eq!(presence.len(), 2);
    }
}
