//! The shared state of all nodes: for each group, the nodes that hold it and its members. Pure.
//!
//! This is the reference model of a coordinator, one operation at a time: the scripts of an engine must give the same
//! replies and the same transitions in the same order. [`super::memory`] runs on it.
//!
//! Operations are idempotent: an operation states what a node has, not what it adds. An operation that arrives after a
//! later one of the same node is rejected and changes nothing; so is any operation of a node whose lease has expired.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::group::{Change, Group, MemberId, NodeId, Rejected, Snapshot, Transition, Update, Version};

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct SharedState {
    groups: HashMap<Group, GroupState>,
    /// The sequence number of the last operation of each node.
    sequences: HashMap<NodeId, u64>,
    expired: HashSet<NodeId>,
    version: Version,
}

#[derive(Debug, Default)]
struct GroupState {
    version: Version,
    holders: BTreeSet<NodeId>,
    members: HashMap<MemberId, MemberState>,
}

#[derive(Debug)]
struct MemberState {
    info: Bytes,
    joined: Version,
    nodes: BTreeSet<NodeId>,
}

impl SharedState {
    /// An empty state. Its first transition has a version above `version`.
    #[must_use]
    pub fn new(version: Version) -> Self {
        Self { version, ..Self::default() }
    }

    /// Carries an operation out and appends its transitions to `transitions`, in order.
    ///
    /// # Errors
    /// [`Rejected`].
    pub fn update(
        &mut self,
        update: &Update,
        transitions: &mut Vec<Transition>,
    ) -> Result<Snapshot, Rejected> {
        if self.expired.contains(&update.node) {
            return Err(Rejected::LeaseExpired);
        }
        let last = self.sequences.entry(update.node).or_default();
        if update.sequence <= *last {
            return Err(Rejected::Stale);
        }
        *last = update.sequence;
        let mut state = self.groups.remove(&update.group).unwrap_or_default();
        let mut operation =
            Operation { group: &update.group, state: &mut state, version: &mut self.version, transitions };
        operation.update(update);
        let snapshot = state.snapshot(update.wants_members);
        if !state.is_empty() {
            self.groups.insert(Arc::clone(&update.group), state);
        }
        Ok(snapshot)
    }

    /// The state of a group, with all its members.
    #[must_use]
    pub fn snapshot(&self, group: &Group) -> Snapshot {
        self.groups.get(group).map(|state| state.snapshot(true)).unwrap_or_default()
    }

    /// Declares a node dead: removes everything that it has, for good.
    pub fn expire(&mut self, node: NodeId, transitions: &mut Vec<Transition>) {
        self.expired.insert(node);
        self.sequences.remove(&node);
        let mut groups: Vec<_> = self.groups.keys().cloned().collect();
        groups.sort();
        for group in groups {
            let mut state = self.groups.remove(&group).unwrap_or_default();
            let mut operation =
                Operation { group: &group, state: &mut state, version: &mut self.version, transitions };
            operation.leave(node);
            if !state.is_empty() {
                self.groups.insert(group, state);
            }
        }
    }

    /// Whether a node was declared dead: it learns that when it renews its lease.
    #[must_use]
    pub fn is_expired(&self, node: NodeId) -> bool {
        self.expired.contains(&node)
    }

    /// Nodes that have sent an operation and were not declared dead. One of them that has no lease is to be reaped.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.sequences.keys().copied()
    }

    /// The version of the last transition.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Groups that any node holds or has a member in.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.keys()
    }
}

impl GroupState {
    fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.members.is_empty()
    }

    fn snapshot(&self, with_members: bool) -> Snapshot {
        let members = with_members.then(|| {
            let mut members: Vec<_> = self.members.iter().collect();
            members.sort_by_key(|(_, member)| member.joined);
            members.into_iter().map(|(id, member)| (Arc::clone(id), member.info.clone())).collect()
        });
        Snapshot { version: self.version, occupied: !self.holders.is_empty(), members }
    }
}

/// An operation on one group.
struct Operation<'a> {
    group: &'a Group,
    state: &'a mut GroupState,
    version: &'a mut Version,
    transitions: &'a mut Vec<Transition>,
}

impl Operation<'_> {
    /// In the order in which a group fills and empties: occupied, added; removed, vacated.
    fn update(&mut self, update: &Update) {
        let node = update.node;
        if !update.holds {
            return self.leave(node);
        }
        if self.state.holders.insert(node) && self.state.holders.len() == 1 {
            self.record(Change::Occupied);
        }
        for (id, info) in &update.present {
            if let Some(member) = self.state.members.get_mut(id) {
                member.nodes.insert(node);
                continue;
            }
            self.record(Change::Added(Arc::clone(id), info.clone()));
            let member =
                MemberState { info: info.clone(), joined: *self.version, nodes: BTreeSet::from([node]) };
            self.state.members.insert(Arc::clone(id), member);
        }
        update.gone.iter().for_each(|id| self.remove(node, id));
        if update.is_complete {
            let present: HashSet<_> = update.present.iter().map(|(id, _)| id).collect();
            let gone: Vec<_> = self.members_of(node).into_iter().filter(|id| !present.contains(id)).collect();
            gone.iter().for_each(|id| self.remove(node, id));
        }
    }

    fn leave(&mut self, node: NodeId) {
        self.members_of(node).iter().for_each(|id| self.remove(node, id));
        if self.state.holders.remove(&node) && self.state.holders.is_empty() {
            self.record(Change::Vacated);
        }
    }

    /// Sorted by id.
    fn members_of(&self, node: NodeId) -> Vec<MemberId> {
        let members = self.state.members.iter().filter(|(_, member)| member.nodes.contains(&node));
        let mut members: Vec<_> = members.map(|(id, _)| Arc::clone(id)).collect();
        members.sort();
        members
    }

    fn remove(&mut self, node: NodeId, id: &MemberId) {
        if let Some(member) = self.state.members.get_mut(id)
            && member.nodes.remove(&node)
            && member.nodes.is_empty()
        {
            self.state.members.remove(id);
            self.record(Change::Removed(Arc::clone(id)));
        }
    }

    fn record(&mut self, change: Change) {
        *self.version += 1;
        let previous = std::mem::replace(&mut self.state.version, *self.version);
        let group = Arc::clone(self.group);
        self.transitions.push(Transition { group, previous, version: *self.version, change });
    }
}
