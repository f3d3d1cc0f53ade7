//! The groups of one partition on one node, as a state machine. Pure: events go in, effects come out, so that a test
//! can play every order of messages.
//!
//! Connections enter groups and leave them. Only edges go to the coordinator: the first and the last entry of a group,
//! and of each member in it. Per group, one update is in flight at a time; changes in the meantime go together into the
//! next one. An update states all that the node has, so it is sent again when its outcome is not known.
//!
//! The members of a group are mirrored. A reply to an update can carry a snapshot of all members at a version; the
//! transitions after it are published, each with the version before it. A gap in these versions makes the mirror stale
//! and leads to a new snapshot. A member that is missing from it is only suspected for some heartbeats: when a
//! coordinator has lost its state, nodes register again one after the other, and their members were never gone.
//!
//! An entry is admitted when its node's update is carried out *and* the mirror has reached that version: from then on
//! its connection gets every change, and the snapshot that it was given holds everything before.

mod group;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::group::{
    Change, Group, MemberId, MemberInfo, NodeId, Rejected, Snapshot, Transition, Update, Version,
};
use group::{InFlightUpdate, LocalGroup, Mirror, Subscription};

/// Identifies the entry of one connection in a group, pending or admitted. Chosen by the caller.
pub type EntryId = u128;

/// A suspected member is removed after this many heartbeats: longer than a node needs to register again, or to be
/// declared dead.
const SUSPECTED_HEARTBEATS: u32 = 4;

/// What the owner of the state machine has to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Subscribe to the group's topic, then call [`LocalGroups::subscribed`] or [`LocalGroups::subscribe_failed`].
    Subscribe(Group),
    /// Unsubscribe from it.
    Unsubscribe(Group),
    /// Send an update, then call [`LocalGroups::update_replied`] or [`LocalGroups::update_failed`].
    Update(Update),
    /// All members of the group in the order of joining; its first entry is admitted next.
    Members(Group, Vec<MemberInfo>),
    /// An entry was admitted.
    Entered(Group, EntryId),
    /// A member joined the group. Concerns all admitted entries, as does the next effect.
    MemberAdded(Group, MemberId, Bytes),
    /// A member left the group.
    MemberRemoved(Group, MemberId),
    /// The node's lease has expired: call [`LocalGroups::rejoin`] with a new id.
    LeaseExpired,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct LocalGroups {
    node: NodeId,
    /// The sequence number of the last update.
    sequence: u64,
    groups: HashMap<Group, LocalGroup>,
    /// Groups that existed when the broker came back, and are not subscribed to again yet.
    resubscribing: HashSet<Group>,
    /// Groups with suspected members.
    suspecting: BTreeSet<Group>,
    /// While disconnected, nothing is sent.
    is_disconnected: bool,
    effects: VecDeque<Effect>,
}

impl LocalGroups {
    /// No groups yet, on `node`.
    #[must_use]
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            sequence: 0,
            groups: HashMap::new(),
            resubscribing: HashSet::new(),
            suspecting: BTreeSet::new(),
            is_disconnected: false,
            effects: VecDeque::new(),
        }
    }

    /// The node's id.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// The next effect to perform.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    // ---- entries of connections ----

    /// Adds a connection's entry to a group, as `member` if it has one. `true`: it is admitted. Otherwise
    /// [`Effect::Entered`] follows, unless it leaves before. The members of a group are mirrored always or never.
    #[must_use]
    pub fn enter(
        &mut self,
        group: &Group,
        is_mirrored: bool,
        member: Option<MemberInfo>,
        entry: EntryId,
    ) -> bool {
        let local = self.groups.entry(Arc::clone(group)).or_insert_with(|| LocalGroup::new(is_mirrored));
        let id = member.as_ref().map(|(id, _)| Arc::clone(id));
        let at_once = local.can_admit(id.as_ref());
        local.entries += 1;
        if let Some((id, info)) = member {
            let (entries, _) = local.members.entry(Arc::clone(&id)).or_insert((0, info));
            *entries += 1;
            if *entries == 1 {
                local.changed_members.insert(id);
            }
        }
        if at_once {
            self.count_admitted(group);
            return true;
        }
        local.pending.push((entry, id));
        self.advance(group);
        false
    }

    /// Appends [`Effect::Entered`] for an entry that [`LocalGroups::enter`] admitted at once, behind the effects before
    /// it.
    pub fn push_entered(&mut self, group: &Group, entry: EntryId) {
        self.effects.push_back(Effect::Entered(Arc::clone(group), entry));
    }

    /// Removes a connection's entry, pending or admitted.
    pub fn leave(&mut self, group: &Group, member: Option<&MemberId>, entry: EntryId) {
        let Some(local) = self.groups.get_mut(group) else { return };
        let pending = local.pending.len();
        local.pending.retain(|(pending, _)| *pending != entry);
        if local.pending.len() == pending {
            local.admitted -= 1;
        }
        local.entries -= 1;
        if let Some(id) = member
            && let Some((entries, _)) = local.members.get_mut(id)
        {
            *entries -= 1;
            if *entries == 0 {
                local.members.remove(id);
                local.changed_members.insert(Arc::clone(id));
            }
        }
        self.advance(group);
    }

    /// The number of members other than `except`, if the mirror is up to date.
    #[must_use]
    pub fn count_others(&self, group: &Group, except: &MemberId) -> Option<usize> {
        let members = &self.groups.get(group)?.valid_mirror()?.members;
        Some(members.len() - usize::from(members.contains_key(except)))
    }

    /// The number of members that joined before one that is in the group.
    #[must_use]
    pub fn count_before(&self, group: &Group, member: &MemberId) -> Option<usize> {
        let members = &self.groups.get(group)?.mirror.as_ref()?.members;
        let (joined, _) = members.get(member)?;
        Some(members.values().filter(|(other, _)| other < joined).count())
    }

    /// Whether the group has an entry, pending or admitted.
    #[must_use]
    pub fn has_entries(&self, group: &Group) -> bool {
        self.groups.get(group).is_some_and(|local| local.entries > 0)
    }

    /// Whether all groups are gone and the coordinator knows it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    // ---- replies of broker and coordinator ----

    /// The subscription to the group's topic is active.
    pub fn subscribed(&mut self, group: &Group) {
        self.resubscribing.remove(group);
        if let Some(local) = self.groups.get_mut(group)
            && local.subscription == Subscription::Requested
        {
            local.subscription = Subscription::Active;
            self.advance(group);
        }
    }

    /// The subscription failed.
    pub fn subscribe_failed(&mut self, group: &Group) {
        if let Some(local) = self.groups.get_mut(group)
            && local.subscription == Subscription::Requested
        {
            local.subscription = Subscription::None;
            self.advance(group);
        }
    }

    /// The coordinator has replied to an update.
    pub fn update_replied(&mut self, group: &Group, sequence: u64, reply: Result<Snapshot, Rejected>) {
        let Some(local) = self.groups.get_mut(group) else { return };
        let Some(update) = local.in_flight.take_if(|update| update.sequence == sequence) else { return };
        match reply {
            Ok(Snapshot { version, members, .. }) => {
                local.update_done(update);
                local.registered_version = version;
                if let Some(members) = members {
                    self.install_snapshot(group, version, members);
                }
            }
            Err(Rejected::Stale) => local.registered = None,
            Err(Rejected::LeaseExpired) => {
                local.registered = None;
                return self.effects.push_back(Effect::LeaseExpired);
            }
        }
        self.admit_pending(group);
        self.advance(group);
    }

    /// An update got no reply: its outcome is unknown.
    pub fn update_failed(&mut self, group: &Group, sequence: u64) {
        if let Some(local) = self.groups.get_mut(group)
            && local.in_flight.take_if(|update| update.sequence == sequence).is_some()
        {
            local.registered = None;
            self.advance(group);
        }
    }

    /// A transition was published on the group's topic.
    pub fn transition(&mut self, transition: Transition) {
        let Some(local) = self.groups.get_mut(&transition.group) else { return };
        if local.subscription != Subscription::Active || !local.is_mirrored {
            return;
        }
        // A snapshot was requested already. Transitions may be newer than it.
        if local.valid_mirror().is_none() {
            return local.buffered.push(transition);
        }
        let group = Arc::clone(&transition.group);
        self.apply(transition);
        self.admit_pending(&group);
        self.advance(&group);
    }

    // ---- connection and lease ----

    /// The broker is unavailable: registrations are unknown, and nothing in flight gets a reply.
    pub fn disconnected(&mut self) {
        self.is_disconnected = true;
        self.resubscribing.clear();
        for local in self.groups.values_mut() {
            (local.in_flight, local.registered, local.subscription) = (None, None, Subscription::None);
            local.invalidate_mirror();
        }
    }

    /// The broker is available again.
    pub fn connected(&mut self) {
        self.is_disconnected = false;
        let needs_subscription =
            |local: &LocalGroup| local.entries > 0 && local.subscription != Subscription::Active;
        let resubscribing = self.groups.iter().filter(|(_, local)| needs_subscription(local));
        self.resubscribing = resubscribing.map(|(group, _)| Arc::clone(group)).collect();
        self.advance_all();
    }

    /// Whether all groups that existed when the broker came back are subscribed to again.
    #[must_use]
    pub fn is_resubscribed(&self) -> bool {
        self.resubscribing.is_empty()
    }

    /// The node's lease has expired: it registers everything again, under a new id.
    pub fn rejoin(&mut self, node: NodeId) {
        self.node = node;
        for local in self.groups.values_mut() {
            (local.in_flight, local.registered) = (None, None);
            local.invalidate_mirror();
        }
        self.advance_all();
    }

    /// Removes members that have been suspected for [`SUSPECTED_HEARTBEATS`] heartbeats. Called at each heartbeat.
    pub fn heartbeat(&mut self) {
        for group in std::mem::take(&mut self.suspecting) {
            let Some(local) = self.groups.get_mut(&group) else { continue };
            local.suspected.values_mut().for_each(|(_, heartbeats)| *heartbeats += 1);
            let mut gone = Vec::new();
            local.suspected.retain(|id, (_, heartbeats)| {
                let stays = *heartbeats < SUSPECTED_HEARTBEATS;
                if !stays {
                    gone.push(Arc::clone(id));
                }
                stays
            });
            if !local.suspected.is_empty() {
                self.suspecting.insert(Arc::clone(&group));
            }
            let gone = gone.into_iter().map(|id| Effect::MemberRemoved(Arc::clone(&group), id));
            self.effects.extend(gone);
        }
    }

    // ---- the mirror ----

    /// Applies a transition to the mirror, if it is the next one.
    fn apply(&mut self, transition: Transition) {
        let Some(local) = self.groups.get_mut(&transition.group) else { return };
        let Some(mirror) = &mut local.mirror else { return };
        if mirror.is_stale || transition.previous != mirror.version {
            // Older transitions are part of the snapshot.
            if !(mirror.is_fresh && transition.version <= mirror.version) {
                mirror.is_stale = true;
                local.buffered.push(transition);
            }
            return;
        }
        (mirror.version, mirror.is_fresh) = (transition.version, false);
        let group = transition.group;
        match transition.change {
            Change::Occupied | Change::Vacated => {}
            Change::Added(id, info) => {
                mirror.members.insert(Arc::clone(&id), (transition.version, info.clone()));
                self.report_added(&group, id, info);
            }
            Change::Removed(id) => {
                mirror.members.remove(&id);
                if local.admitted > 0 {
                    self.effects.push_back(Effect::MemberRemoved(group, id));
                }
            }
        }
    }

    /// Reports a new member. If it was only suspected, its removal was not reported, and there is nothing to report.
    fn report_added(&mut self, group: &Group, id: MemberId, info: Bytes) {
        let Some(local) = self.groups.get_mut(group) else { return };
        match local.suspected.remove(&id) {
            Some((previous, _)) if previous == info => return,
            Some(_) => self.effects.push_back(Effect::MemberRemoved(Arc::clone(group), Arc::clone(&id))),
            None => {}
        }
        if local.admitted > 0 {
            self.effects.push_back(Effect::MemberAdded(Arc::clone(group), id, info));
        }
    }

    /// Replaces the mirror with a snapshot and reports new members. Missing members are suspected.
    fn install_snapshot(&mut self, group: &Group, version: Version, members: Vec<MemberInfo>) {
        let Some(local) = self.groups.get_mut(group) else { return };
        let before = local.mirror.take().map(|mirror| mirror.members).unwrap_or_default();
        let mut known = HashSet::new();
        let now: HashMap<_, _> =
            (0..).zip(&members).map(|(at, (id, info))| (Arc::clone(id), (at, info.clone()))).collect();
        if local.admitted > 0 {
            // A member whose info has changed is suspected and reported again.
            for (id, (_, previous)) in before {
                if now.get(&id).is_none_or(|(_, info)| *info != previous) {
                    local.suspected.insert(id, (previous, 0));
                } else {
                    known.insert(id);
                }
            }
            if !local.suspected.is_empty() {
                self.suspecting.insert(Arc::clone(group));
            }
        }
        local.mirror = Some(Mirror { version, members: now, is_fresh: true, is_stale: false });
        for (id, info) in members {
            if !known.contains(&id) {
                self.report_added(group, id, info);
            }
        }
        let Some(local) = self.groups.get_mut(group) else { return };
        for transition in std::mem::take(&mut local.buffered) {
            self.apply(transition);
        }
    }

    // ---- progress ----

    /// Admits pending entries that can be admitted now.
    fn admit_pending(&mut self, group: &Group) {
        let Some(local) = self.groups.get_mut(group) else { return };
        for (entry, member) in std::mem::take(&mut local.pending) {
            let Some(local) = self.groups.get_mut(group) else { return };
            if local.can_admit(member.as_ref()) {
                self.count_admitted(group);
                self.push_entered(group, entry);
            } else {
                local.pending.push((entry, member));
            }
        }
    }

    /// Counts one more admitted entry; the first one is preceded by the members.
    fn count_admitted(&mut self, group: &Group) {
        let Some(local) = self.groups.get_mut(group) else { return };
        local.admitted += 1;
        if let Some(mirror) = &local.mirror
            && local.admitted == 1
        {
            // No entry has seen the suspected members.
            local.suspected.clear();
            let mut members: Vec<_> = mirror.members.iter().collect();
            members.sort_by_key(|(_, (joined, _))| *joined);
            let members = members.into_iter().map(|(id, (_, info))| (Arc::clone(id), info.clone()));
            self.effects.push_back(Effect::Members(Arc::clone(group), members.collect()));
        }
    }

    fn advance_all(&mut self) {
        let mut groups: Vec<_> = self.groups.keys().cloned().collect();
        groups.sort();
        groups.iter().for_each(|group| self.advance(group));
    }

    /// Emits the next effect that a group needs: its subscription, then its update, then the end of both.
    fn advance(&mut self, group: &Group) {
        let Some(local) = self.groups.get_mut(group) else { return };
        if self.is_disconnected || local.in_flight.is_some() {
            return;
        }
        // A group that is only left needs no subscription.
        if local.entries > 0 && local.subscription != Subscription::Active {
            if local.subscription == Subscription::None {
                local.subscription = Subscription::Requested;
                self.effects.push_back(Effect::Subscribe(Arc::clone(group)));
            }
            return;
        }
        match local.next_update(self.sequence + 1) {
            Some((update, present, wants_members)) => {
                self.sequence += 1;
                let InFlightUpdate { sequence, holds, is_complete, .. } = update;
                let (node, gone, group) = (self.node, update.gone.clone(), Arc::clone(group));
                local.in_flight = Some(update);
                let update =
                    Update { node, sequence, group, holds, present, gone, is_complete, wants_members };
                self.effects.push_back(Effect::Update(update));
            }
            None if local.entries == 0 => {
                // Also without an active subscription: one that was requested before the broker was known to be
                // disconnected may have been granted by the broker that came back.
                self.effects.push_back(Effect::Unsubscribe(Arc::clone(group)));
                self.resubscribing.remove(group);
                self.groups.remove(group);
            }
            None => {}
        }
    }
}
