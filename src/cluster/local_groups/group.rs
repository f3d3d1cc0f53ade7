//! One group, as this node has it: entries of connections, what is registered with the coordinator, the mirror of
//! members.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::EntryId;
use crate::cluster::group::{MemberId, MemberInfo, Transition, Version};

#[derive(Debug)]
pub(super) struct LocalGroup {
    /// Entries of connections, pending ones included.
    pub(super) entries: usize,
    /// The number of entries of each member, and the info of its first one.
    pub(super) members: BTreeMap<MemberId, (usize, Bytes)>,
    /// Entries that have been admitted.
    pub(super) admitted: usize,
    /// Entries that have not.
    pub(super) pending: Vec<(EntryId, Option<MemberId>)>,
    /// Whether the members of all nodes are mirrored here.
    pub(super) is_mirrored: bool,
    pub(super) subscription: Subscription,
    /// What the coordinator has of this node; `None`: unknown. An update in flight is not part of it.
    pub(super) registered: Option<Registration>,
    /// Members that have come or gone since the last update.
    pub(super) changed_members: BTreeSet<MemberId>,
    /// The version in the reply to the last update.
    pub(super) registered_version: Version,
    pub(super) in_flight: Option<InFlightUpdate>,
    pub(super) mirror: Option<Mirror>,
    /// Members that were missing from the last snapshot, with their info and the heartbeats since. Their removal has
    /// not been reported.
    pub(super) suspected: BTreeMap<MemberId, (Bytes, u32)>,
    /// Transitions that arrived while the mirror was missing or stale.
    pub(super) buffered: Vec<Transition>,
}

/// The subscription to the group's topic.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Subscription {
    #[default]
    None,
    Requested,
    Active,
}

/// What a node has registered of a group with the coordinator.
#[derive(Debug, Default)]
pub(super) struct Registration {
    holds: bool,
    members: HashSet<MemberId>,
}

/// An update that has had no reply yet.
#[derive(Debug)]
pub(super) struct InFlightUpdate {
    pub(super) sequence: u64,
    pub(super) holds: bool,
    pub(super) present: Vec<MemberId>,
    pub(super) gone: Vec<MemberId>,
    pub(super) is_complete: bool,
}

/// All members of the group, as of a version.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) version: Version,
    /// Each with a number that grows in the order of joining.
    pub(super) members: HashMap<MemberId, (Version, Bytes)>,
    /// No transition was applied since the snapshot, so older ones may still arrive.
    pub(super) is_fresh: bool,
    /// A transition was missed: a new snapshot is needed.
    pub(super) is_stale: bool,
}

impl LocalGroup {
    pub(super) fn new(is_mirrored: bool) -> Self {
        Self {
            entries: 0,
            members: BTreeMap::new(),
            admitted: 0,
            pending: Vec::new(),
            is_mirrored,
            subscription: Subscription::None,
            registered: Some(Registration::default()),
            changed_members: BTreeSet::new(),
            registered_version: 0,
            in_flight: None,
            mirror: None,
            suspected: BTreeMap::new(),
            buffered: Vec::new(),
        }
    }

    /// The update that brings the coordinator up to date, the infos of its members, and whether it asks for all
    /// members; `None` if there is nothing to send.
    pub(super) fn next_update(&mut self, sequence: u64) -> Option<(InFlightUpdate, Vec<MemberInfo>, bool)> {
        let holds = self.entries > 0;
        let wants_members = self.is_mirrored && holds && self.valid_mirror().is_none();
        let changed = std::mem::take(&mut self.changed_members);
        let (mut present, mut gone) = (Vec::new(), Vec::new());
        match &self.registered {
            None => present.extend(self.members.keys().cloned()),
            Some(registered) => {
                for id in changed {
                    match (self.members.contains_key(&id), registered.members.contains(&id)) {
                        (true, false) => present.push(id),
                        (false, true) => gone.push(id),
                        (true, true) | (false, false) => {}
                    }
                }
            }
        }
        let is_known = self.registered.as_ref().is_some_and(|registered| registered.holds == holds);
        if is_known && present.is_empty() && gone.is_empty() && !wants_members {
            return None;
        }
        let infos = present.iter().filter_map(|id| Some((Arc::clone(id), self.members.get(id)?.1.clone())));
        let infos = infos.collect();
        let is_complete = self.registered.is_none();
        Some((InFlightUpdate { sequence, holds, present, gone, is_complete }, infos, wants_members))
    }

    /// The coordinator has carried `update` out.
    pub(super) fn update_done(&mut self, update: InFlightUpdate) {
        let mut registered =
            self.registered.take().filter(|_| update.holds && !update.is_complete).unwrap_or_default();
        registered.holds = update.holds;
        registered.members.extend(update.present);
        update.gone.iter().for_each(|id| {
            registered.members.remove(id);
        });
        self.registered = Some(registered);
    }

    /// Transitions may have been missed.
    pub(super) fn invalidate_mirror(&mut self) {
        self.buffered.clear();
        if let Some(mirror) = &mut self.mirror {
            mirror.is_stale = true;
        }
    }

    /// The mirror, if it is up to date.
    pub(super) fn valid_mirror(&self) -> Option<&Mirror> {
        self.mirror.as_ref().filter(|mirror| !mirror.is_stale)
    }

    /// Whether an entry of `member` can be admitted: it is registered and stays so, and the mirror is at least as new
    /// as the registration. A member that was removed because this node's lease expired has to be registered again
    /// first.
    pub(super) fn can_admit(&self, member: Option<&MemberId>) -> bool {
        let has = |registered: &Registration| {
            registered.holds && member.is_none_or(|id| registered.members.contains(id))
        };
        let keeps =
            |update: &InFlightUpdate| update.holds && member.is_none_or(|id| !update.gone.contains(id));
        let shows = |mirror: &Mirror| {
            mirror.version >= self.registered_version
                && member.is_none_or(|id| mirror.members.contains_key(id))
        };
        self.registered.as_ref().is_some_and(has)
            && self.in_flight.as_ref().is_none_or(keeps)
            && (!self.is_mirrored || self.valid_mirror().is_some_and(shows))
    }
}
