//! The occupied channels of an app in a cluster: the broker knows which there are, and each node how many subscribers it
//! has in its own.
//!
//! There may be hundreds of thousands. So a node counts its own some at a time, and what is put together is in as many
//! maps as the cluster has parts: none of them takes long to grow.

use std::collections::{HashMap, hash_map};
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::yield_now;
use tracing::warn;

use super::{CHANNELS_PER_CHUNK, Shared};
use crate::cluster::driver::{PARTITIONS, partition_of};
use crate::cluster::truth::Group;
use crate::protocol::ChannelName;
use crate::registry::ChannelInfo;

/// A node counts the subscribers of its channels for others until the answer has so many bytes. It is half of what may
/// wait for the broker: with more, the node would lose its connection to it.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Everywhere {
    parts: Vec<HashMap<ChannelName, ChannelInfo>>,
    /// What is left of the part that is being listed.
    listed: hash_map::IntoIter<ChannelName, ChannelInfo>,
}

impl Everywhere {
    /// The channels of `groups`, each with the number of its users, as `channel_of` names them.
    pub(super) async fn of(
        groups: Vec<(Group, usize)>,
        channel_of: impl Fn(&str) -> Option<ChannelName>,
    ) -> Self {
        let mut parts: Vec<_> = (0..PARTITIONS).map(|_| HashMap::new()).collect();
        for (at, (group, users)) in groups.into_iter().enumerate() {
            if at % CHANNELS_PER_CHUNK == CHANNELS_PER_CHUNK - 1 {
                yield_now().await;
            }
            if let Some(channel) = channel_of(&group) {
                let info = ChannelInfo { subscriptions: 0, users, cache: None };
                part_of(&mut parts, channel.as_str()).insert(channel, info);
            }
        }
        Self { parts, listed: hash_map::IntoIter::default() }
    }

    fn add(&mut self, channel: &str, subscriptions: usize) {
        if let Some(info) = part_of(&mut self.parts, channel).get_mut(channel) {
            info.subscriptions += subscriptions;
        }
    }

    /// Adds the subscribers of this node.
    pub(super) async fn add_own(&mut self, hub: &Shared, app: &str, prefix: &str) {
        let mut own = hub.registry.occupied(app, prefix);
        while let Some(some) = own.next_chunk(hub.now()) {
            some.iter().for_each(|(channel, info)| self.add(channel.as_str(), info.subscriptions));
            yield_now().await;
        }
    }

    /// Adds those of another node, of which it has answered by [`answer`]. What makes no sense ends it.
    pub(super) async fn add_answer(&mut self, answer: &Bytes) {
        let pieces = serde_json::Deserializer::from_slice(answer).into_iter::<HashMap<Box<str>, usize>>();
        for piece in pieces.map_while(Result::ok) {
            piece.iter().for_each(|(channel, subscriptions)| self.add(channel, *subscriptions));
            yield_now().await;
        }
    }

    /// The next ones; `None`: there are no more.
    pub(super) fn next_chunk(&mut self) -> Option<Vec<(ChannelName, ChannelInfo)>> {
        loop {
            let mut some: Vec<_> = self.listed.by_ref().take(CHANNELS_PER_CHUNK).collect();
            if !some.is_empty() {
                // A node that does not answer in time has somebody, too.
                some.iter_mut().for_each(|(_, info)| info.subscriptions = info.subscriptions.max(1));
                return Some(some);
            }
            self.listed = self.parts.pop()?.into_iter();
        }
    }
}

fn part_of<'p, T>(parts: &'p mut [T], channel: &str) -> &'p mut T {
    &mut parts[usize::from(partition_of(channel))]
}

/// What this node answers to one that wants to know of the channels of an app whose names start with `prefix`: JSON
/// objects that stand one behind the other, with the subscribers of some channels in each.
pub(super) async fn answer(hub: Arc<Shared>, app: Box<str>, prefix: Box<str>) -> Bytes {
    let mut occupied = hub.registry.occupied(&app, &prefix);
    let mut answer = Vec::new();
    while let Some(some) = occupied.next_chunk(hub.now()) {
        if answer.len() > ANSWER_BYTES_MAX {
            warn!(%app, bytes = answer.len(), "not all channels are counted for another node: they are too many");
            break;
        }
        let counts: HashMap<_, _> =
            some.iter().map(|(channel, info)| (channel.as_str(), info.subscriptions)).collect();
        if !counts.is_empty() {
            serde_json::to_writer(&mut answer, &counts).expect("names and numbers are written to memory");
        }
        yield_now().await;
    }
    answer.into()
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::protocol::NameRules;

    fn name(text: &str) -> ChannelName {
        ChannelName::parse(text, &NameRules::default()).unwrap()
    }

    /// Polls `future` until it is ready, as often as it says that others may have their turn.
    fn in_turns<T>(future: impl Future<Output = T>) -> (T, usize) {
        let (mut future, mut turns) = (pin!(future), 1);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(done) => return (done, turns),
                Poll::Pending => turns += 1,
            }
        }
    }

    fn groups(count: usize) -> Vec<(Group, usize)> {
        (0..count).map(|at| (format!("room-{at}").into(), 0)).collect()
    }

    #[test]
    fn the_channels_of_a_cluster_are_put_together_and_listed_in_turns() {
        let (mut all, turns) = in_turns(Everywhere::of(groups(10_000), |group| Some(name(group))));
        assert!(turns >= 10_000 / CHANNELS_PER_CHUNK, "{turns} turns");
        let piece = |rooms: std::ops::Range<usize>| {
            let counts: HashMap<_, _> = rooms.map(|at| (format!("room-{at}"), 3)).collect();
            serde_json::to_string(&counts).unwrap()
        };
        let answer = [piece(0..256), piece(256..512), r#"{"elsewhere":1}"#.to_owned()].concat();
        let ((), turns) = in_turns(all.add_answer(&answer.into()));
        assert_eq!(turns, 4, "one for each piece, and the end");
        // As a node of an earlier release answers, in one piece; and what makes no sense.
        in_turns(all.add_answer(&piece(512..1000).into()));
        in_turns(all.add_answer(&format!("{}{{\"room-1\":", piece(0..10)).into()));
        in_turns(all.add_answer(&Bytes::from_static(b"[1]\xff")));
        let mut found = HashMap::new();
        while let Some(some) = all.next_chunk() {
            assert!((1..=CHANNELS_PER_CHUNK).contains(&some.len()));
            for (channel, info) in some {
                assert!(found.insert(channel, info.subscriptions).is_none(), "once");
            }
        }
        assert_eq!(found.len(), 10_000);
        let count = |channel| found[&name(channel)];
        assert_eq!((count("room-3"), count("room-10"), count("room-999")), (6, 3, 3));
        assert_eq!(count("room-1000"), 1, "somebody is there");
    }
}
