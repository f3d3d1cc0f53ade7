//! What one node has to do with the groups of one part of the cluster. Pure: what happens goes in, what is to be done
//! comes out, so that a test can play every order in which messages may come.
//!
//! Connections enter groups and leave them. Only edges go to the broker: the first connection and the last one, of the
//! group and of each member in it. Of a group one operation is on its way at a time; what comes meanwhile goes together
//! in the next. An operation says all that the node has of the group, so it may be repeated whenever it is not known
//! what became of it.
//!
//! Who is in a group is mirrored: an operation answers with everyone, at a version, and the transitions that follow are
//! told by the broker, each with the version before it. So what does not follow is noticed, and the group is asked for
//! anew. Who is missing in that answer is only doubted for a while: after a broker has forgotten everything, nodes come
//! back one after the other, and those whom they have were never gone. A connection has entered when its node's operation is carried out *and* the mirror has come as far: from then on
//! it hears what changes, and the list that it is given has everything before.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::truth::{
    Answer, Change, Group, MemberId, MemberInfo, NodeId, Refusal, Transition, Update, Version,
};

/// A connection that wants to enter a group, as its caller calls it: one that has entered the group, or wants to, has
/// one of its own.
pub type Ticket = u128;

/// At how many beats somebody is missing before it is told: longer than a node needs to say again what it has, or to be
/// dead.
const DOUBTED_BEATS: u32 = 4;

/// What is to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Begin to listen to the group, then call [`Seats::listening`].
    Listen(Group),
    /// No longer listen to it.
    Ignore(Group),
    /// Have an operation carried out, then call [`Seats::answered`] or [`Seats::unanswered`].
    Update(Update),
    /// Everyone in the group, by time of joining: the first connection is about to enter.
    Everyone(Group, Vec<MemberInfo>),
    /// A connection has entered.
    Entered(Group, Ticket),
    /// Somebody came into the group: told to all who have entered, as all that follows.
    Added(Group, MemberId, Bytes),
    /// Somebody is gone.
    Removed(Group, MemberId),
    /// The others gave this node up: call [`Seats::rename`].
    GivenUp,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Seats {
    node: NodeId,
    /// The number of the last operation.
    number: u64,
    seats: HashMap<Group, Seat>,
    /// Groups that were there when the broker was found, and that it has yet to tell of again.
    unheard: HashSet<Group>,
    /// Groups in which somebody is doubted.
    doubting: BTreeSet<Group>,
    /// The broker is not there, so that nothing can be asked of it.
    is_lost: bool,
    effects: VecDeque<Effect>,
}

#[derive(Debug)]
struct Seat {
    /// Connections that have entered, or want to.
    connections: usize,
    /// The same for each member, with what the first of them said.
    members: BTreeMap<MemberId, (usize, Bytes)>,
    /// Those that have.
    entered: usize,
    /// Those that want to.
    waiting: Vec<(Ticket, Option<MemberId>)>,
    /// Whether connections say who they are, so that it is known who is there.
    is_mirrored: bool,
    listening: Listening,
    /// What the broker has of this node, when nothing is on its way; `None`: that is not known.
    stake: Option<Stake>,
    /// Members who have come or gone since it was told.
    touched: BTreeSet<MemberId>,
    /// The version with which it answered that.
    answered: Version,
    /// What is on its way.
    asked: Option<Asked>,
    mirror: Option<Mirror>,
    /// Who was missing when everyone was asked for anew, what was said of them, and at how many beats they have been
    /// since. Those who have entered have not been told.
    doubted: BTreeMap<MemberId, (Bytes, u32)>,
    /// Transitions that came while there was no mirror to follow them.
    early: Vec<Transition>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Listening {
    #[default]
    No,
    Asked,
    Yes,
}

/// What a node has of a group, as far as the broker has been told.
#[derive(Debug, Default)]
struct Stake {
    holds: bool,
    members: HashSet<MemberId>,
}

#[derive(Debug)]
struct Asked {
    number: u64,
    holds: bool,
    here: Vec<MemberId>,
    gone: Vec<MemberId>,
    is_all: bool,
}

/// Everyone in the group, as of a version.
#[derive(Debug)]
struct Mirror {
    version: Version,
    /// With what they are sorted by, which grows.
    members: HashMap<MemberId, (Version, Bytes)>,
    /// Nothing has followed since it was asked for, so that what was told before may still come.
    is_fresh: bool,
    /// Something was missed, so that it has to be asked for anew.
    is_torn: bool,
}

impl Seat {
    fn new(is_mirrored: bool) -> Self {
        Self {
            connections: 0,
            members: BTreeMap::new(),
            entered: 0,
            waiting: Vec::new(),
            is_mirrored,
            listening: Listening::No,
            stake: Some(Stake::default()),
            touched: BTreeSet::new(),
            answered: 0,
            asked: None,
            mirror: None,
            doubted: BTreeMap::new(),
            early: Vec::new(),
        }
    }

    /// The operation that tells the broker what it does not know, who comes with it, and whether it asks; `None` if there
    /// is no need.
    fn update(&mut self, number: u64) -> Option<(Asked, Vec<MemberInfo>, bool)> {
        let holds = self.connections > 0;
        let asks = self.is_mirrored && holds && self.known().is_none();
        let touched = std::mem::take(&mut self.touched);
        let (mut here, mut gone) = (Vec::new(), Vec::new());
        match &self.stake {
            None => here.extend(self.members.keys().cloned()),
            Some(stake) => {
                for id in touched {
                    match (self.members.contains_key(&id), stake.members.contains(&id)) {
                        (true, false) => here.push(id),
                        (false, true) => gone.push(id),
                        (true, true) | (false, false) => {}
                    }
                }
            }
        }
        let is_told = self.stake.as_ref().is_some_and(|stake| stake.holds == holds);
        if is_told && here.is_empty() && gone.is_empty() && !asks {
            return None;
        }
        let infos = here.iter().filter_map(|id| Some((Arc::clone(id), self.members.get(id)?.1.clone())));
        let infos = infos.collect();
        Some((Asked { number, holds, here, gone, is_all: self.stake.is_none() }, infos, asks))
    }

    /// The broker has done what it was asked.
    fn done(&mut self, asked: Asked) {
        let mut stake = self.stake.take().filter(|_| asked.holds && !asked.is_all).unwrap_or_default();
        stake.holds = asked.holds;
        stake.members.extend(asked.here);
        asked.gone.iter().for_each(|id| {
            stake.members.remove(id);
        });
        self.stake = Some(stake);
    }

    /// What was told may be incomplete.
    fn tear(&mut self) {
        self.early.clear();
        if let Some(mirror) = &mut self.mirror {
            mirror.is_torn = true;
        }
    }

    /// Everyone in the group, if that is known.
    fn known(&self) -> Option<&Mirror> {
        self.mirror.as_ref().filter(|mirror| !mirror.is_torn)
    }

    /// Whether the broker has what a connection of `member` needs, and goes on having it, and the mirror has come as
    /// far. One who is not there any more, because the others have given this node up, is not let in before it is back.
    fn has(&self, member: Option<&MemberId>) -> bool {
        let has = |stake: &Stake| stake.holds && member.is_none_or(|id| stake.members.contains(id));
        let keeps = |asked: &Asked| asked.holds && member.is_none_or(|id| !asked.gone.contains(id));
        let shows = |mirror: &Mirror| {
            mirror.version >= self.answered && member.is_none_or(|id| mirror.members.contains_key(id))
        };
        self.stake.as_ref().is_some_and(has)
            && self.asked.as_ref().is_none_or(keeps)
            && (!self.is_mirrored || self.known().is_some_and(shows))
    }
}

impl Seats {
    /// `node` has nothing yet.
    #[must_use]
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            number: 0,
            seats: HashMap::new(),
            unheard: HashSet::new(),
            doubting: BTreeSet::new(),
            is_lost: false,
            effects: VecDeque::new(),
        }
    }

    /// Whose they are.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// What is to be done next.
    pub fn effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// A connection wants to enter, as `member` if it says who it is. `true`: it has. Else [`Effect::Entered`] tells,
    /// unless it leaves before. It is told who is in the group, if that `is_mirrored`, as a group is always or never.
    #[must_use]
    pub fn enter(
        &mut self,
        group: &Group,
        is_mirrored: bool,
        member: Option<MemberInfo>,
        ticket: Ticket,
    ) -> bool {
        let seat = self.seats.entry(Arc::clone(group)).or_insert_with(|| Seat::new(is_mirrored));
        let id = member.as_ref().map(|(id, _)| Arc::clone(id));
        let at_once = seat.has(id.as_ref());
        seat.connections += 1;
        if let Some((id, info)) = member {
            let (connections, _) = seat.members.entry(Arc::clone(&id)).or_insert((0, info));
            *connections += 1;
            if *connections == 1 {
                seat.touched.insert(id);
            }
        }
        if at_once {
            self.entered(group);
            return true;
        }
        seat.waiting.push((ticket, id));
        self.go_on(group);
        false
    }

    /// A connection leaves, or does not want to enter any more.
    pub fn leave(&mut self, group: &Group, member: Option<&MemberId>, ticket: Ticket) {
        let Some(seat) = self.seats.get_mut(group) else { return };
        let waiting = seat.waiting.len();
        seat.waiting.retain(|(waiting, _)| *waiting != ticket);
        if seat.waiting.len() == waiting {
            seat.entered -= 1;
        }
        seat.connections -= 1;
        if let Some(id) = member
            && let Some((connections, _)) = seat.members.get_mut(id)
        {
            *connections -= 1;
            if *connections == 0 {
                seat.members.remove(id);
                seat.touched.insert(Arc::clone(id));
            }
        }
        self.go_on(group);
    }

    /// How many are in the group, `but` one, as far as that is known.
    #[must_use]
    pub fn others(&self, group: &Group, but: &MemberId) -> Option<usize> {
        let members = &self.seats.get(group)?.known()?.members;
        Some(members.len() - usize::from(members.contains_key(but)))
    }

    /// How many came into the group before one who is in it.
    #[must_use]
    pub fn before(&self, group: &Group, member: &MemberId) -> Option<usize> {
        let members = &self.seats.get(group)?.mirror.as_ref()?.members;
        let (joined, _) = members.get(member)?;
        Some(members.values().filter(|(other, _)| other < joined).count())
    }

    /// Whether any connection has entered the group, or wants to.
    #[must_use]
    pub fn has(&self, group: &Group) -> bool {
        self.seats.get(group).is_some_and(|seat| seat.connections > 0)
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// The broker tells of the group from now on.
    pub fn listening(&mut self, group: &Group) {
        self.unheard.remove(group);
        if let Some(seat) = self.seats.get_mut(group)
            && seat.listening == Listening::Asked
        {
            seat.listening = Listening::Yes;
            self.go_on(group);
        }
    }

    /// It could not be told to.
    pub fn unheard(&mut self, group: &Group) {
        if let Some(seat) = self.seats.get_mut(group)
            && seat.listening == Listening::Asked
        {
            seat.listening = Listening::No;
            self.go_on(group);
        }
    }

    /// Puts it among what is to be done, behind the rest, that a connection has entered at once.
    pub fn say_entered(&mut self, group: &Group, ticket: Ticket) {
        self.effects.push_back(Effect::Entered(Arc::clone(group), ticket));
    }

    /// The broker has answered an operation.
    pub fn answered(&mut self, group: &Group, number: u64, answer: Result<Answer, Refusal>) {
        let Some(seat) = self.seats.get_mut(group) else { return };
        let Some(asked) = seat.asked.take_if(|asked| asked.number == number) else { return };
        match answer {
            Ok(Answer { version, members, .. }) => {
                seat.done(asked);
                seat.answered = version;
                if let Some(members) = members {
                    self.adopt(group, version, members);
                }
            }
            Err(Refusal::Late) => seat.stake = None,
            Err(Refusal::GivenUp) => {
                seat.stake = None;
                return self.effects.push_back(Effect::GivenUp);
            }
        }
        self.let_in(group);
        self.go_on(group);
    }

    /// It is not known what became of an operation.
    pub fn unanswered(&mut self, group: &Group, number: u64) {
        if let Some(seat) = self.seats.get_mut(group)
            && seat.asked.take_if(|asked| asked.number == number).is_some()
        {
            seat.stake = None;
            self.go_on(group);
        }
    }

    /// The broker was not heard for a while: nothing that it said is certain, and nothing on its way will be answered.
    pub fn lost(&mut self) {
        self.is_lost = true;
        self.unheard.clear();
        for seat in self.seats.values_mut() {
            (seat.asked, seat.stake, seat.listening) = (None, None, Listening::No);
            seat.tear();
        }
    }

    /// The broker is there again.
    pub fn found(&mut self) {
        self.is_lost = false;
        let is_unheard = |seat: &Seat| seat.connections > 0 && seat.listening != Listening::Yes;
        let unheard = self.seats.iter().filter(|(_, seat)| is_unheard(seat));
        self.unheard = unheard.map(|(group, _)| Arc::clone(group)).collect();
        self.go_on_all();
    }

    /// Whether it tells of all groups again that it told of before it was lost.
    #[must_use]
    pub fn hears_everything(&self) -> bool {
        self.unheard.is_empty()
    }

    fn go_on_all(&mut self) {
        let mut groups: Vec<_> = self.seats.keys().cloned().collect();
        groups.sort();
        groups.iter().for_each(|group| self.go_on(group));
    }

    /// The others gave this node up: it goes on as another one, which has nothing yet.
    pub fn rename(&mut self, node: NodeId) {
        self.node = node;
        for seat in self.seats.values_mut() {
            (seat.asked, seat.stake) = (None, None);
            seat.tear();
        }
        self.go_on_all();
    }

    /// Something changed for all nodes.
    pub fn changed(&mut self, transition: Transition) {
        let Some(seat) = self.seats.get_mut(&transition.group) else { return };
        if seat.listening != Listening::Yes || !seat.is_mirrored {
            return;
        }
        // Everyone is asked for already; what is told meanwhile may be news to the answer.
        if seat.known().is_none() {
            return seat.early.push(transition);
        }
        let group = Arc::clone(&transition.group);
        self.follow(transition);
        self.let_in(&group);
        self.go_on(&group);
    }

    /// Applies a transition to the mirror, if it is the next one.
    fn follow(&mut self, transition: Transition) {
        let Some(seat) = self.seats.get_mut(&transition.group) else { return };
        let Some(mirror) = &mut seat.mirror else { return };
        if mirror.is_torn || transition.before != mirror.version {
            // Told before the mirror was made: that has it.
            if !(mirror.is_fresh && transition.version <= mirror.version) {
                mirror.is_torn = true;
                seat.early.push(transition);
            }
            return;
        }
        (mirror.version, mirror.is_fresh) = (transition.version, false);
        let group = transition.group;
        match transition.change {
            Change::Occupied | Change::Vacated => {}
            Change::Added(id, info) => {
                mirror.members.insert(Arc::clone(&id), (transition.version, info.clone()));
                self.came(&group, id, info);
            }
            Change::Removed(id) => {
                mirror.members.remove(&id);
                if seat.entered > 0 {
                    self.effects.push_back(Effect::Removed(group, id));
                }
            }
        }
    }

    /// Tells that somebody came, unless it was only doubted that they are there.
    fn came(&mut self, group: &Group, id: MemberId, info: Bytes) {
        let Some(seat) = self.seats.get_mut(group) else { return };
        match seat.doubted.remove(&id) {
            Some((was, _)) if was == info => return,
            Some(_) => self.effects.push_back(Effect::Removed(Arc::clone(group), Arc::clone(&id))),
            None => {}
        }
        if seat.entered > 0 {
            self.effects.push_back(Effect::Added(Arc::clone(group), id, info));
        }
    }

    /// Time passes: who has been doubted at [`DOUBTED_BEATS`] beats is gone.
    pub fn beat(&mut self) {
        for group in std::mem::take(&mut self.doubting) {
            let Some(seat) = self.seats.get_mut(&group) else { continue };
            seat.doubted.values_mut().for_each(|(_, beats)| *beats += 1);
            let mut gone = Vec::new();
            seat.doubted.retain(|id, (_, beats)| {
                let stays = *beats < DOUBTED_BEATS;
                if !stays {
                    gone.push(Arc::clone(id));
                }
                stays
            });
            if !seat.doubted.is_empty() {
                self.doubting.insert(Arc::clone(&group));
            }
            let gone = gone.into_iter().map(|id| Effect::Removed(Arc::clone(&group), id));
            self.effects.extend(gone);
        }
    }

    /// Makes the mirror what the broker says, and tells who is new in it. Who is missing is doubted.
    fn adopt(&mut self, group: &Group, version: Version, members: Vec<MemberInfo>) {
        let Some(seat) = self.seats.get_mut(group) else { return };
        let before = seat.mirror.take().map(|mirror| mirror.members).unwrap_or_default();
        let mut known = HashSet::new();
        let now: HashMap<_, _> =
            (0..).zip(&members).map(|(at, (id, info))| (Arc::clone(id), (at, info.clone()))).collect();
        if seat.entered > 0 {
            // Whoever is there but is said to be another is doubted, too, and comes anew.
            for (id, (_, was)) in before {
                if now.get(&id).is_none_or(|(_, is)| *is != was) {
                    seat.doubted.insert(id, (was, 0));
                } else {
                    known.insert(id);
                }
            }
            if !seat.doubted.is_empty() {
                self.doubting.insert(Arc::clone(group));
            }
        }
        seat.mirror = Some(Mirror { version, members: now, is_fresh: true, is_torn: false });
        for (id, info) in members {
            if !known.contains(&id) {
                self.came(group, id, info);
            }
        }
        let Some(seat) = self.seats.get_mut(group) else { return };
        for transition in std::mem::take(&mut seat.early) {
            self.follow(transition);
        }
    }

    /// Lets those enter who have all that they need.
    fn let_in(&mut self, group: &Group) {
        let Some(seat) = self.seats.get_mut(group) else { return };
        for (ticket, member) in std::mem::take(&mut seat.waiting) {
            let Some(seat) = self.seats.get_mut(group) else { return };
            if seat.has(member.as_ref()) {
                self.entered(group);
                self.effects.push_back(Effect::Entered(Arc::clone(group), ticket));
            } else {
                seat.waiting.push((ticket, member));
            }
        }
    }

    /// Counts one more connection that has entered.
    fn entered(&mut self, group: &Group) {
        let Some(seat) = self.seats.get_mut(group) else { return };
        seat.entered += 1;
        if let Some(mirror) = &seat.mirror
            && seat.entered == 1
        {
            // Nobody was told of those who are doubted.
            seat.doubted.clear();
            let mut everyone: Vec<_> = mirror.members.iter().collect();
            everyone.sort_by_key(|(_, (joined, _))| *joined);
            let everyone = everyone.into_iter().map(|(id, (_, info))| (Arc::clone(id), info.clone()));
            self.effects.push_back(Effect::Everyone(Arc::clone(group), everyone.collect()));
        }
    }

    /// Does what a group needs next.
    fn go_on(&mut self, group: &Group) {
        let Some(seat) = self.seats.get_mut(group) else { return };
        if self.is_lost || seat.asked.is_some() {
            return;
        }
        // Who only leaves need not listen.
        if seat.connections > 0 && seat.listening != Listening::Yes {
            if seat.listening == Listening::No {
                seat.listening = Listening::Asked;
                self.effects.push_back(Effect::Listen(Arc::clone(group)));
            }
            return;
        }
        match seat.update(self.number + 1) {
            Some((asked, here, asks)) => {
                self.number += 1;
                let Asked { number, holds, is_all, .. } = asked;
                let (node, gone, group) = (self.node, asked.gone.clone(), Arc::clone(group));
                seat.asked = Some(asked);
                let update = Update { node, number, group, holds, here, gone, is_all, asks };
                self.effects.push_back(Effect::Update(update));
            }
            None if seat.connections == 0 => {
                // Also where it is not known to be listened to: what was asked before the broker was known to be lost may
                // have been granted by the one that was found.
                self.effects.push_back(Effect::Ignore(Arc::clone(group)));
                self.unheard.remove(group);
                self.seats.remove(group);
            }
            None => {}
        }
    }
}
