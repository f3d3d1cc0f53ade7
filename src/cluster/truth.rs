//! What all nodes agree on: for each group, which nodes hold it and who is in it. Pure.
//!
//! This is the model of what a broker does, one operation at a time: a broker's scripts and this must answer the same,
//! and say the same transitions in the same order. It is also the broker of nodes that live in one process.
//!
//! Every operation may be repeated: it says what a node has, not what it adds. An operation that comes late, behind one
//! that the same node sent after it, changes nothing; one of a node that was given up is refused.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// The name of what nodes share. What it stands for is the hub's business.
pub type Group = Arc<str>;

/// Who is in a group, by a name that is theirs in the whole cluster.
pub type MemberId = Arc<str>;

/// A member, and what is said of them.
pub type MemberInfo = (MemberId, Bytes);

/// A node, from the start of its process to its end, or until the others gave it up.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeId(pub u128);

impl fmt::Display for NodeId {
    /// As 32 hexadecimal digits, by which a broker knows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl NodeId {
    /// The node of 32 hexadecimal digits.
    #[must_use]
    pub fn parse(digits: &str) -> Option<Self> {
        let id = Self(u128::from_str_radix(digits, 16).ok()?);
        (id.to_string() == digits).then_some(id)
    }
}

/// The number of a transition. They grow, and those of one group stand in the order in which they happened.
pub type Version = u64;

/// An operation: what `node` has of `group` from now on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Update {
    /// Whose.
    pub node: NodeId,
    /// The node's operations are numbered, from 1.
    pub number: u64,
    /// Of what.
    pub group: Group,
    /// Whether the node holds it. If not, it has no member in it either.
    pub holds: bool,
    /// Who is in it there, and what is said of them.
    pub here: Vec<MemberInfo>,
    /// Who is not in it there any more.
    pub gone: Vec<MemberId>,
    /// Whether `here` is everyone whom the node has in it.
    pub is_all: bool,
    /// Whether the node asks who is in it then.
    pub asks: bool,
}

/// A group as it is after an operation.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Answer {
    /// Its last transition; 0 if it has none.
    pub version: Version,
    /// Whether any node holds it.
    pub occupied: bool,
    /// Who is in it, by time of joining, if that was asked.
    pub members: Option<Vec<MemberInfo>>,
}

/// What changed for all nodes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transition {
    /// Of what.
    pub group: Group,
    /// The transition of this group before; 0 if it was not there.
    pub before: Version,
    /// This one.
    pub version: Version,
    /// What.
    pub change: Change,
}

/// See [`Transition`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// A node holds it; none did before.
    Occupied,
    /// No node holds it any more.
    Vacated,
    /// Somebody is in it who was not.
    Added(MemberId, Bytes),
    /// Somebody is not in it any more.
    Removed(MemberId),
}

/// Why an operation was not carried out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// The node was given up: it has to come back under another name.
    GivenUp,
    /// The node sent another operation since, which was carried out.
    Late,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Truth {
    groups: HashMap<Group, State>,
    /// The last operation of each node.
    numbers: HashMap<NodeId, u64>,
    given_up: HashSet<NodeId>,
    version: Version,
}

#[derive(Debug, Default)]
struct State {
    version: Version,
    holders: BTreeSet<NodeId>,
    members: HashMap<MemberId, Presence>,
}

#[derive(Debug)]
struct Presence {
    info: Bytes,
    joined: Version,
    nodes: BTreeSet<NodeId>,
}

impl Truth {
    /// Nobody has anything. Versions begin behind `version`.
    #[must_use]
    pub fn new(version: Version) -> Self {
        Self { version, ..Self::default() }
    }

    /// Carries an operation out; what changed goes to `tell`, in order.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn update(&mut self, update: &Update, tell: &mut Vec<Transition>) -> Result<Answer, Refusal> {
        if self.given_up.contains(&update.node) {
            return Err(Refusal::GivenUp);
        }
        let last = self.numbers.entry(update.node).or_default();
        if update.number <= *last {
            return Err(Refusal::Late);
        }
        *last = update.number;
        let mut state = self.groups.remove(&update.group).unwrap_or_default();
        let mut change =
            Changing { group: &update.group, state: &mut state, version: &mut self.version, tell };
        change.update(update);
        let answer = state.answer(update.asks);
        if !state.is_empty() {
            self.groups.insert(Arc::clone(&update.group), state);
        }
        Ok(answer)
    }

    /// A group as it is, with everyone in it.
    #[must_use]
    pub fn look(&self, group: &Group) -> Answer {
        self.groups.get(group).map(|state| state.answer(true)).unwrap_or_default()
    }

    /// Takes from a node all that it has, for good.
    pub fn give_up(&mut self, node: NodeId, tell: &mut Vec<Transition>) {
        self.given_up.insert(node);
        self.numbers.remove(&node);
        let mut groups: Vec<_> = self.groups.keys().cloned().collect();
        groups.sort();
        for group in groups {
            let mut state = self.groups.remove(&group).unwrap_or_default();
            let mut change = Changing { group: &group, state: &mut state, version: &mut self.version, tell };
            change.leave(node);
            if !state.is_empty() {
                self.groups.insert(group, state);
            }
        }
    }

    /// Whether a node was given up: it is told so when it renews its lease.
    #[must_use]
    pub fn has_given_up(&self, node: NodeId) -> bool {
        self.given_up.contains(&node)
    }

    /// Nodes that have sent anything and were not given up. One of them that has no lease is to be given up.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.numbers.keys().copied()
    }

    /// The number of the last transition.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Groups that any node has something of.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.keys()
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.members.is_empty()
    }

    fn answer(&self, asks: bool) -> Answer {
        let members = asks.then(|| {
            let mut members: Vec<_> = self.members.iter().collect();
            members.sort_by_key(|(_, presence)| presence.joined);
            members.into_iter().map(|(id, presence)| (Arc::clone(id), presence.info.clone())).collect()
        });
        Answer { version: self.version, occupied: !self.holders.is_empty(), members }
    }
}

struct Changing<'a> {
    group: &'a Group,
    state: &'a mut State,
    version: &'a mut Version,
    tell: &'a mut Vec<Transition>,
}

impl Changing<'_> {
    /// In the order in which a group fills and empties: occupied, added; removed, vacated.
    fn update(&mut self, update: &Update) {
        let node = update.node;
        if !update.holds {
            return self.leave(node);
        }
        if self.state.holders.insert(node) && self.state.holders.len() == 1 {
            self.say(Change::Occupied);
        }
        for (id, info) in &update.here {
            if let Some(presence) = self.state.members.get_mut(id) {
                presence.nodes.insert(node);
                continue;
            }
            self.say(Change::Added(Arc::clone(id), info.clone()));
            let presence =
                Presence { info: info.clone(), joined: *self.version, nodes: BTreeSet::from([node]) };
            self.state.members.insert(Arc::clone(id), presence);
        }
        update.gone.iter().for_each(|id| self.remove(node, id));
        if update.is_all {
            let here: HashSet<_> = update.here.iter().map(|(id, _)| id).collect();
            let gone: Vec<_> = self.members_of(node).into_iter().filter(|id| !here.contains(id)).collect();
            gone.iter().for_each(|id| self.remove(node, id));
        }
    }

    fn leave(&mut self, node: NodeId) {
        self.members_of(node).iter().for_each(|id| self.remove(node, id));
        if self.state.holders.remove(&node) && self.state.holders.is_empty() {
            self.say(Change::Vacated);
        }
    }

    /// By their ids.
    fn members_of(&self, node: NodeId) -> Vec<MemberId> {
        let members = self.state.members.iter().filter(|(_, presence)| presence.nodes.contains(&node));
        let mut members: Vec<_> = members.map(|(id, _)| Arc::clone(id)).collect();
        members.sort();
        members
    }

    fn remove(&mut self, node: NodeId, id: &MemberId) {
        if let Some(presence) = self.state.members.get_mut(id)
            && presence.nodes.remove(&node)
            && presence.nodes.is_empty()
        {
            self.state.members.remove(id);
            self.say(Change::Removed(Arc::clone(id)));
        }
    }

    fn say(&mut self, change: Change) {
        *self.version += 1;
        let before = std::mem::replace(&mut self.state.version, *self.version);
        let group = Arc::clone(self.group);
        self.tell.push(Transition { group, before, version: *self.version, change });
    }
}
