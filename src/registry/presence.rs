//! Who is in a presence channel.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::protocol::wire::Frame;
use crate::protocol::{Member, UserId};

/// The users of one channel, each once however many connections they have. What is said of a user is what their
/// first connection said, until the last one leaves.
///
/// Source: protocol.md §4.7.
#[derive(Debug, Default)]
pub(super) struct Presence {
    users: HashMap<UserId, User>,
    /// By time of joining.
    order: BTreeMap<u64, UserId>,
    joins: u64,
    /// Whether it is the cluster that says who is there: each is counted once.
    is_shared: bool,
    /// The acknowledgement with everyone in it, until somebody comes or goes.
    roster: Option<Frame>,
}

#[derive(Debug)]
struct User {
    info: Arc<str>,
    connections: u32,
    joined: u64,
}

impl Presence {
    /// Of a cluster: these are there, by time of joining.
    pub(super) fn shared(members: &[Member]) -> Self {
        let mut presence = Self { is_shared: true, ..Self::default() };
        for member in members {
            presence.add(member);
        }
        presence
    }

    /// Whether it is the cluster that says who is there.
    pub(super) const fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Whether the user is among the `first` who joined.
    pub(super) fn is_among(&self, user: &UserId, first: usize) -> bool {
        if self.users.len() <= first {
            return self.has(user);
        }
        self.order.values().take(first).any(|id| id == user)
    }

    /// Whether the user is here.
    pub(super) fn has(&self, user: &UserId) -> bool {
        self.users.contains_key(user)
    }

    /// Distinct users.
    pub(super) fn len(&self) -> usize {
        self.users.len()
    }

    /// Counts one more connection of a user; whether it is the first.
    pub(super) fn add(&mut self, member: &Member) -> bool {
        if let Some(user) = self.users.get_mut(&member.id) {
            user.connections += u32::from(!self.is_shared);
            return false;
        }
        self.joins += 1;
        self.roster = None;
        let user = User { info: Arc::clone(&member.info), connections: 1, joined: self.joins };
        self.order.insert(user.joined, member.id.clone());
        self.users.insert(member.id.clone(), user);
        true
    }

    /// Counts one connection less of a user; whether it was the last.
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

    /// What `acknowledgement` makes of everyone, made once.
    pub(super) fn roster(&mut self, acknowledgement: impl FnOnce(Option<Vec<Member>>) -> Frame) -> Frame {
        if let Some(roster) = &self.roster {
            return roster.clone();
        }
        let roster = acknowledgement(Some(self.members()));
        self.roster = Some(roster.clone());
        roster
    }

    /// Everyone, by time of joining.
    fn members(&self) -> Vec<Member> {
        let member =
            |id: &UserId| Some(Member { id: id.clone(), info: Arc::clone(&self.users.get(id)?.info) });
        self.order.values().filter_map(member).collect()
    }

    /// Everyone's id, by time of joining.
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
    fn a_user_comes_once_and_goes_with_the_last_connection() {
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
