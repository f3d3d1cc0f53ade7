//! Subscriber counts of channels: those of other nodes, and the publishing of this node's.
//!
//! One task at a time publishes this node's count of a channel; changes in the meantime are published next. If the task
//! ends early, by a panic, the count is published within a second.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::codec::{CountMessage, GroupMessage};
use super::{Clustered, Shared, Subject, channel_group, key};
use crate::apps::App;
use crate::cluster::broker::Unavailable;
use crate::cluster::group::{Group, NodeId};
use crate::protocol::ChannelName;
use crate::registry::ChannelKey;
use crate::webhooks;

impl Clustered {
    /// This node's count of a channel has changed: publishes it, unless a task does.
    pub(super) fn count_changed(&self, hub: &Arc<Shared>, app: &App, channel: &ChannelName, group: &Group) {
        if !app.subscription_counts || !channel.has_subscription_count() {
            return;
        }
        if let Some(publisher) = self.counts.changed(group) {
            self.publish_count(hub, key(app, channel), publisher);
        }
    }

    fn publish_count(&self, hub: &Arc<Shared>, key: ChannelKey, mut publisher: CountPublisher) {
        let (cluster, hub) = (self.cluster.clone(), Arc::clone(hub));
        hub.runtime.clone().spawn(async move {
            loop {
                let subscriptions = hub.registry.info(&key, hub.now()).subscriptions;
                let count = u32::try_from(subscriptions).unwrap_or(u32::MAX);
                let wants_counts = publisher.wants_counts(count);
                let message = CountMessage { node: cluster.node(), count, wants_counts };
                let message = GroupMessage::Count(message).encode().into();
                let published = cluster.publish([(Arc::clone(publisher.group()), message)]).await;
                match publisher.published(count, published) {
                    Some(again) => publisher = again,
                    None => return,
                }
            }
        });
    }

    /// Publishes counts whose publisher ended early. Called about once a second.
    pub(in crate::hub) fn publish_missed_counts(&self, hub: &Arc<Shared>) {
        for group in self.counts.take_missed() {
            if let Some(Subject::Channel(app, channel)) = self.subject(&group) {
                self.count_changed(hub, &app, &channel, &group);
            }
        }
    }

    /// Handles the count of another node; `None`: it is of no use.
    pub(super) fn receive_count(
        &self,
        hub: &Arc<Shared>,
        group: &Group,
        (app, channel): (&Arc<App>, &ChannelName),
        CountMessage { node, count, wants_counts }: CountMessage,
    ) -> Option<()> {
        if node == self.cluster.node() {
            return Some(());
        }
        if let Some(remote) = self.counts.receive(group, node, count)? {
            self.set_remote_count(hub, &key(app, channel), remote);
        }
        if wants_counts {
            self.count_changed(hub, app, channel, group);
        }
        Some(())
    }

    /// Sets the number of subscribers on other nodes, and reports the sum to subscribers and webhooks.
    pub(super) fn set_remote_count(&self, hub: &Shared, key: &ChannelKey, remote: usize) {
        let guard =
            hub.webhooks.lock_count(&key.app, &key.channel).filter(|_| self.sends_count_webhooks(key));
        let (count, drive) = hub.registry.set_remote_count(key, remote, hub.now());
        if let (Some(mut guard), Some(count)) = (guard, count) {
            guard.emit(&webhooks::Event::SubscriptionCount(&key.channel, count));
        }
        hub.drive(drive);
    }

    /// Whether this node sends webhooks of a channel's count: of the nodes with subscribers, the one with the lowest
    /// id.
    pub(in crate::hub) fn sends_count_webhooks(&self, key: &ChannelKey) -> bool {
        let (group, node) = (channel_group(&key.app, key.channel.as_str()), self.cluster.node());
        self.counts.is_lowest(&group, node)
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Counts {
    groups: Mutex<HashMap<Group, Count>>,
    /// Groups whose publisher ended before it had published the count.
    missed: Mutex<Vec<Group>>,
}

/// The counts of other nodes in a channel.
#[derive(Debug, Default)]
struct Count {
    remote: HashMap<NodeId, u32>,
    /// Whether the other nodes have been asked for theirs.
    has_asked: bool,
    /// The other nodes are asked again: until the next heartbeat, subscribers keep the last sum.
    is_stale: bool,
    publishing: Publishing,
}

/// Whether a task publishes this node's count.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Publishing {
    #[default]
    No,
    Yes,
    /// The count has changed since: it is published once more.
    Again,
}

impl Count {
    fn forget_remote(&mut self) {
        self.remote.clear();
        self.has_asked = false;
    }

    fn remote_sum(&self) -> usize {
        self.remote.values().map(|&count| count as usize).sum()
    }
}

/// The duty to publish this node's count of a channel.
#[derive(Debug)]
#[must_use = "the count has to be published"]
pub(super) struct CountPublisher {
    counts: Arc<Counts>,
    group: Group,
    is_done: bool,
}

impl Counts {
    /// The count of this node has changed; returns the duty to publish it, unless a task has it.
    fn changed(self: &Arc<Self>, group: &Group) -> Option<CountPublisher> {
        let mut groups = self.groups.lock();
        let count = groups.entry(Arc::clone(group)).or_default();
        if count.publishing != Publishing::No {
            count.publishing = Publishing::Again;
            return None;
        }
        count.publishing = Publishing::Yes;
        Some(CountPublisher { counts: Arc::clone(self), group: Arc::clone(group), is_done: false })
    }

    /// Takes the groups whose publisher ended early.
    #[must_use = "each has changed"]
    fn take_missed(&self) -> Vec<Group> {
        std::mem::take(&mut *self.missed.lock())
    }

    /// Another node has published its count. Returns the sum of all other nodes, if subscribers get it. `None` also if
    /// this node has no subscriber.
    fn receive(&self, group: &Group, node: NodeId, count: u32) -> Option<Option<usize>> {
        let mut groups = self.groups.lock();
        let known = groups.get_mut(group)?;
        if count == 0 {
            known.remote.remove(&node);
        } else {
            known.remote.insert(node, count);
        }
        Some((!known.is_stale).then(|| known.remote_sum()))
    }

    /// Whether a node has the lowest id of those with subscribers.
    fn is_lowest(&self, group: &Group, node: NodeId) -> bool {
        let groups = self.groups.lock();
        groups.get(group).is_none_or(|known| known.remote.keys().all(|&other| other > node))
    }

    /// Forgets the counts of other nodes in a channel.
    pub(super) fn forget(&self, group: &Group) {
        if let Some(known) = self.groups.lock().get_mut(group) {
            known.forget_remote();
        }
    }

    /// Starts again after a disconnect: the other nodes have to be asked again. Returns all groups.
    pub(super) fn restart(&self) -> Vec<Group> {
        let mut groups = self.groups.lock();
        let restart = |(group, known): (&Group, &mut Count)| {
            known.forget_remote();
            known.is_stale = true;
            Arc::clone(group)
        };
        groups.iter_mut().map(restart).collect()
    }

    /// Forgets the counts of all but these nodes. Returns the groups whose sum changes, each with the new sum.
    pub(super) fn retain_nodes(&self, nodes: &HashSet<&NodeId>) -> Vec<(Group, usize)> {
        let mut changed = Vec::new();
        for (group, known) in self.groups.lock().iter_mut() {
            let before = known.remote.len();
            known.remote.retain(|node, _| nodes.contains(node));
            if std::mem::take(&mut known.is_stale) || known.remote.len() != before {
                changed.push((Arc::clone(group), known.remote_sum()));
            }
        }
        changed
    }
}

impl CountPublisher {
    const fn group(&self) -> &Group {
        &self.group
    }

    /// Whether the message with `count` asks the other nodes for theirs: once, unless this node has no subscriber.
    fn wants_counts(&self, count: u32) -> bool {
        let mut groups = self.counts.groups.lock();
        let known = groups.get_mut(&self.group);
        count > 0 && known.is_some_and(|known| !std::mem::replace(&mut known.has_asked, true))
    }

    /// The `count` has been published, or not. Returns the duty if it has changed in the meantime.
    fn published(mut self, count: u32, published: Result<(), Unavailable>) -> Option<Self> {
        let counts = Arc::clone(&self.counts);
        let mut groups = counts.groups.lock();
        let known = groups.get_mut(&self.group);
        if let Some(known) = known {
            if known.publishing == Publishing::Again {
                known.publishing = Publishing::Yes;
                return Some(self);
            }
            known.publishing = Publishing::No;
            // A failed publish is repeated for all groups when the broker is back.
            if count == 0 && published.is_ok() {
                groups.remove(&self.group);
            }
        }
        self.is_done = true;
        None
    }
}

impl Drop for CountPublisher {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        if let Some(known) = self.counts.groups.lock().get_mut(&self.group) {
            known.publishing = Publishing::No;
        }
        self.counts.missed.lock().push(Arc::clone(&self.group));
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
    fn a_count_has_one_publisher_which_publishes_later_changes_too() {
        let counts = Arc::new(Counts::default());
        let publisher = counts.changed(&group()).unwrap();
        assert!(publisher.wants_counts(1) && !publisher.wants_counts(1), "once");
        assert!(counts.changed(&group()).is_none() && counts.changed(&group()).is_none());
        let publisher = publisher.published(1, Ok(())).expect("it has changed");
        assert!(publisher.published(3, Ok(())).is_none());
        assert!(counts.take_missed().is_empty());
        let publisher = counts.changed(&group()).expect("the next change is published");
        assert!(publisher.published(0, Err(Unavailable)).is_none());
        assert!(
            counts.receive(&group(), NodeId(7), 2).is_some(),
            "it is published again when the broker is back"
        );
        assert!(counts.changed(&group()).unwrap().published(0, Ok(())).is_none());
        assert!(
            counts.receive(&group(), NodeId(7), 2).is_none(),
            "a channel without subscribers has no count"
        );
    }

    #[test]
    fn a_count_whose_publisher_ends_early_is_published_within_a_second() {
        let counts = Arc::new(Counts::default());
        let publisher = counts.changed(&group()).unwrap();
        assert!(counts.changed(&group()).is_none());
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            publisher.wants_counts(1);
            panic!("before it was published");
        }));
        assert!(panicked.is_err());
        assert_eq!(counts.take_missed(), [group()]);
        assert!(counts.take_missed().is_empty(), "once");
        // Its task is aborted.
        drop(counts.changed(&group()).expect("no task publishes it"));
        // The next change may come before the next second.
        let publisher = counts.changed(&group()).expect("no task publishes it");
        assert_eq!(counts.take_missed(), [group()]);
        assert!(counts.changed(&group()).is_none(), "a publisher has it again");
        let publisher = publisher.published(1, Ok(())).unwrap();
        assert!(publisher.published(1, Ok(())).is_none());
        assert!(counts.changed(&group()).is_some());
    }
}
