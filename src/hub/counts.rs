//! How many subscribers the nodes of a cluster have in a channel: what the others have said, and what this node has yet
//! to say.
//!
//! One task at a time tells the others the count of a channel, and what changes meanwhile is told next. A task that ends
//! early, by a panic, gives that duty back: the count is told within a second.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::cluster::driver::Lost;
use crate::cluster::truth::{Group, NodeId};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Counts {
    groups: Mutex<HashMap<Group, Count>>,
    /// Groups whose count was to be told and was not.
    untold: Mutex<Vec<Group>>,
}

/// How many subscribers other nodes have said to have in a channel.
#[derive(Debug, Default)]
struct Count {
    elsewhere: HashMap<NodeId, u32>,
    /// Whether the others have been asked for theirs.
    has_asked: bool,
    /// Whether these are being asked for anew: subscribers go on with what they were told before, up to the next beat.
    is_stale: bool,
    /// This node's is on its way; what comes after it goes then.
    sending: Sending,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Sending {
    #[default]
    No,
    Yes,
    /// It has changed since.
    Again,
}

impl Count {
    /// Nothing is known of the others any more.
    fn forget(&mut self) {
        self.elsewhere.clear();
        self.has_asked = false;
    }

    fn sum(&self) -> usize {
        self.elsewhere.values().map(|&count| count as usize).sum()
    }
}

/// The duty to tell the other nodes the count of a channel.
#[derive(Debug)]
#[must_use = "the count is to be told"]
pub(super) struct Telling {
    counts: Arc<Counts>,
    group: Group,
    is_over: bool,
}

impl Counts {
    /// The count of this node has changed; the duty to tell it, unless somebody has it.
    pub(super) fn changed(self: &Arc<Self>, group: &Group) -> Option<Telling> {
        let mut groups = self.groups.lock();
        let count = groups.entry(Arc::clone(group)).or_default();
        if count.sending != Sending::No {
            count.sending = Sending::Again;
            return None;
        }
        count.sending = Sending::Yes;
        Some(Telling { counts: Arc::clone(self), group: Arc::clone(group), is_over: false })
    }

    /// The groups whose count nobody tells any more, because whoever did ended early; call about once a second.
    #[must_use = "each has changed"]
    pub(super) fn untold(&self) -> Vec<Group> {
        std::mem::take(&mut *self.untold.lock())
    }

    /// Another node has so many subscribers; how many all others have, if subscribers are told that. `None` as well where
    /// this node has none.
    pub(super) fn told(&self, group: &Group, node: NodeId, count: u32) -> Option<Option<usize>> {
        let mut groups = self.groups.lock();
        let known = groups.get_mut(group)?;
        if count == 0 {
            known.elsewhere.remove(&node);
        } else {
            known.elsewhere.insert(node, count);
        }
        Some((!known.is_stale).then(|| known.sum()))
    }

    /// Whether a node is the one with the lowest number of those that have subscribers.
    pub(super) fn is_lowest(&self, group: &Group, node: NodeId) -> bool {
        let groups = self.groups.lock();
        groups.get(group).is_none_or(|known| known.elsewhere.keys().all(|&other| other > node))
    }

    /// Nothing is known of the others any more.
    pub(super) fn forget(&self, group: &Group) {
        if let Some(known) = self.groups.lock().get_mut(group) {
            known.forget();
        }
    }

    /// All is asked for anew; the groups.
    pub(super) fn begin_anew(&self) -> Vec<Group> {
        let mut groups = self.groups.lock();
        let begin = |(group, known): (&Group, &mut Count)| {
            known.forget();
            known.is_stale = true;
            Arc::clone(group)
        };
        groups.iter_mut().map(begin).collect()
    }

    /// Only these nodes are there; the groups in which that changes something, with how many all others have.
    pub(super) fn alive(&self, nodes: &HashSet<&NodeId>) -> Vec<(Group, usize)> {
        let mut changed = Vec::new();
        for (group, known) in self.groups.lock().iter_mut() {
            let before = known.elsewhere.len();
            known.elsewhere.retain(|node, _| nodes.contains(node));
            if std::mem::take(&mut known.is_stale) || known.elsewhere.len() != before {
                changed.push((Arc::clone(group), known.sum()));
            }
        }
        changed
    }
}

impl Telling {
    /// Of which channel.
    pub(super) const fn group(&self) -> &Group {
        &self.group
    }

    /// Whether the others are asked for theirs with a `count`, which is now.
    pub(super) fn asks(&self, count: u32) -> bool {
        let mut groups = self.counts.groups.lock();
        let known = groups.get_mut(&self.group);
        count > 0 && known.is_some_and(|known| !std::mem::replace(&mut known.has_asked, true))
    }

    /// The `count` has been told, or not; the duty, if it has changed meanwhile.
    pub(super) fn done(mut self, count: u32, sent: Result<(), Lost>) -> Option<Self> {
        let counts = Arc::clone(&self.counts);
        let mut groups = counts.groups.lock();
        let known = groups.get_mut(&self.group);
        if let Some(known) = known {
            if known.sending == Sending::Again {
                known.sending = Sending::Yes;
                return Some(self);
            }
            known.sending = Sending::No;
            // If the broker is lost, all is said anew when it is there again.
            if count == 0 && sent.is_ok() {
                groups.remove(&self.group);
            }
        }
        self.is_over = true;
        None
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if let Some(known) = self.counts.groups.lock().get_mut(&self.group) {
            known.sending = Sending::No;
        }
        self.counts.untold.lock().push(Arc::clone(&self.group));
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn group() -> Group {
        "c/1/x".into()
    }

    #[test]
    fn a_count_has_one_teller_who_tells_what_has_changed_meanwhile() {
        let counts = Arc::new(Counts::default());
        let telling = counts.changed(&group()).unwrap();
        assert!(telling.asks(1) && !telling.asks(1), "once");
        assert!(counts.changed(&group()).is_none() && counts.changed(&group()).is_none());
        let telling = telling.done(1, Ok(())).expect("it has changed");
        assert!(telling.done(3, Ok(())).is_none());
        assert!(counts.untold().is_empty());
        let telling = counts.changed(&group()).expect("the next change is told");
        assert!(telling.done(0, Err(Lost)).is_none());
        assert!(
            counts.told(&group(), NodeId(7), 2).is_some(),
            "it is said anew when the broker is there again"
        );
        assert!(counts.changed(&group()).unwrap().done(0, Ok(())).is_none());
        assert!(
            counts.told(&group(), NodeId(7), 2).is_none(),
            "of a channel without subscribers nothing is known"
        );
    }

    #[test]
    fn a_count_whose_teller_ends_early_is_told_by_whoever_looks() {
        let counts = Arc::new(Counts::default());
        let telling = counts.changed(&group()).unwrap();
        assert!(counts.changed(&group()).is_none());
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            telling.asks(1);
            panic!("before it was told");
        }));
        assert!(panicked.is_err());
        assert_eq!(counts.untold(), [group()]);
        assert!(counts.untold().is_empty(), "once");
        // With its task.
        drop(counts.changed(&group()).expect("nobody tells it"));
        // Whoever changes it next may come first.
        let telling = counts.changed(&group()).expect("nobody tells it");
        assert_eq!(counts.untold(), [group()]);
        assert!(counts.changed(&group()).is_none(), "then it is told again");
        let telling = telling.done(1, Ok(())).unwrap();
        assert!(telling.done(1, Ok(())).is_none());
        assert!(counts.changed(&group()).is_some());
    }
}
