//! The members of a presence channel.

use std::sync::Arc;

use super::{Channel, State};
use crate::protocol::message::ServerMessage;
use crate::protocol::{Member, UserId};
use crate::registry::presence::Presence;
use crate::registry::{Drive, Registry};

/// The presence limit: a user may be in a channel if fewer than `members_max` users joined before.
#[must_use]
pub const fn admits_member(joined_before: usize, members_max: usize) -> bool {
    joined_before < members_max
}

impl Channel {
    /// Adds a connection of a member, unless the cluster owns the member list. Returns whether the user is new.
    pub(super) fn add_member(&self, state: &mut State, member: &Member) -> bool {
        let presence = state.presence.get_or_insert_default();
        let added = !presence.is_mirror() && presence.add(member);
        if added && !state.subscribers.is_empty() {
            state.enqueue(&ServerMessage::MemberAdded { channel: self.name(), member });
        }
        added
    }

    /// See [`Registry::set_members`]. `None` if the channel was removed.
    pub(in crate::registry) fn set_members(&self, members: &[Member]) -> Option<()> {
        let mut state = self.state.lock();
        if state.removed {
            return None;
        }
        state.presence = Some(Box::new(Presence::mirror(members)));
        Some(())
    }

    /// See [`Registry::member_added`].
    pub(in crate::registry) fn member_added(
        self: &Arc<Self>,
        registry: &Registry,
        member: &Member,
    ) -> Option<Drive> {
        let mut state = self.state.lock();
        let is_new = state.presence.as_mut().is_some_and(|presence| presence.add(member));
        if is_new && !state.subscribers.is_empty() {
            state.enqueue(&ServerMessage::MemberAdded { channel: self.name(), member });
        }
        self.start(registry, &mut state)
    }

    /// See [`Registry::member_removed`].
    pub(in crate::registry) fn member_removed(
        self: &Arc<Self>,
        registry: &Registry,
        user: &UserId,
    ) -> Option<Drive> {
        let mut state = self.state.lock();
        let was_member = state.presence.as_mut().is_some_and(|presence| presence.remove(user));
        if was_member && !state.subscribers.is_empty() {
            state.enqueue(&ServerMessage::MemberRemoved { channel: self.name(), user });
        }
        self.start(registry, &mut state)
    }

    /// See [`Registry::is_admitted`].
    pub(in crate::registry) fn is_admitted(&self, user: &UserId, members_max: usize) -> bool {
        let state = self.state.lock();
        state.presence.as_ref().is_some_and(|presence| presence.is_among_first(user, members_max))
    }

    /// See [`Registry::users`].
    pub(in crate::registry) fn users(&self) -> Vec<UserId> {
        self.state.lock().presence.as_ref().map(|presence| presence.ids()).unwrap_or_default()
    }
}
