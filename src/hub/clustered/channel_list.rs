//! The list of an app's occupied channels in a cluster: the coordinator knows the channels, and each node the number of
//! its own subscribers.
//!
//! There may be hundreds of thousands. A node counts its channels in chunks, and the list is kept in as many maps as
//! the cluster has partitions, so that no map takes long to grow.

use std::collections::{HashMap, hash_map};
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::yield_now;
use tracing::warn;

use super::Shared;
use crate::cluster::coordinator::{PARTITIONS, partition_of};
use crate::cluster::group::Group;
use crate::hub::CHANNELS_PER_CHUNK;
use crate::protocol::ChannelName;
use crate::registry::ChannelInfo;

/// Limit of a reply with the subscribers of channels. It is half of what may be queued for the broker: with more, the
/// node would lose its connection to it.
const REPLY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// See the module's documentation.
#[derive(Debug)]
pub(in crate::hub) struct ClusterChannels {
    partitions: Vec<HashMap<ChannelName, ChannelInfo>>,
    /// The rest of the partition that is being listed.
    current: hash_map::IntoIter<ChannelName, ChannelInfo>,
}

impl ClusterChannels {
    /// The channels of `groups`, each with the number of its users, as `channel_of` names them.
    pub(super) async fn new(
        groups: Vec<(Group, usize)>,
        channel_of: impl Fn(&str) -> Option<ChannelName>,
    ) -> Self {
        let mut partitions: Vec<_> = (0..PARTITIONS).map(|_| HashMap::new()).collect();
        for (at, (group, users)) in groups.into_iter().enumerate() {
            if at % CHANNELS_PER_CHUNK == CHANNELS_PER_CHUNK - 1 {
                yield_now().await;
            }
            if let Some(channel) = channel_of(&group) {
                let info = ChannelInfo { subscriptions: 0, users, cache: None };
                partition_of_channel(&mut partitions, channel.as_str()).insert(channel, info);
            }
        }
        Self { partitions, current: hash_map::IntoIter::default() }
    }

    fn add(&mut self, channel: &str, subscriptions: usize) {
        if let Some(info) = partition_of_channel(&mut self.partitions, channel).get_mut(channel) {
            info.subscriptions += subscriptions;
        }
    }

    /// Adds the subscribers of this node.
    pub(super) async fn add_local(&mut self, hub: &Shared, app: &str, prefix: &str) {
        let mut local = hub.registry.occupied(app, prefix);
        while let Some(chunk) = local.next_chunk(hub.now()) {
            chunk.iter().for_each(|(channel, info)| self.add(channel.as_str(), info.subscriptions));
            yield_now().await;
        }
    }

    /// Adds the subscribers of another node, from its [`reply`]. A malformed chunk ends the reply.
    pub(super) async fn add_reply(&mut self, reply: &Bytes) {
        let chunks = serde_json::Deserializer::from_slice(reply).into_iter::<HashMap<Box<str>, usize>>();
        for chunk in chunks.map_while(Result::ok) {
            chunk.iter().for_each(|(channel, subscriptions)| self.add(channel, *subscriptions));
            yield_now().await;
        }
    }

    /// The next channels; `None` at the end.
    pub(in crate::hub) fn next_chunk(&mut self) -> Option<Vec<(ChannelName, ChannelInfo)>> {
        loop {
            let mut chunk: Vec<_> = self.current.by_ref().take(CHANNELS_PER_CHUNK).collect();
            if !chunk.is_empty() {
                // Counts at least one: nodes that did not reply in time have subscribers, too.
                chunk.iter_mut().for_each(|(_, info)| info.subscriptions = info.subscriptions.max(1));
                return Some(chunk);
            }
            self.current = self.partitions.pop()?.into_iter();
        }
    }
}

fn partition_of_channel<'p, T>(partitions: &'p mut [T], channel: &str) -> &'p mut T {
    &mut partitions[usize::from(partition_of(channel))]
}

/// The reply to a node that asks for the subscribers of an app's channels whose names start with `prefix`: JSON
/// objects, one after the other, each with a chunk of the channels.
pub(super) async fn reply(hub: Arc<Shared>, app: Box<str>, prefix: Box<str>) -> Bytes {
    let mut occupied = hub.registry.occupied(&app, &prefix);
    let mut reply = Vec::new();
    while let Some(chunk) = occupied.next_chunk(hub.now()) {
        if reply.len() > REPLY_BYTES_MAX {
            warn!(%app, bytes = reply.len(), "too many channels: some are not counted for another node");
            break;
        }
        let counts: HashMap<_, _> =
            chunk.iter().map(|(channel, info)| (channel.as_str(), info.subscriptions)).collect();
        if !counts.is_empty() {
            serde_json::to_writer(&mut reply, &counts).expect("names and numbers are written to memory");
        }
        yield_now().await;
    }
    reply.into()
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

    /// Polls `future` until it is ready; returns the number of polls.
    fn poll_to_end<T>(future: impl Future<Output = T>) -> (T, usize) {
        let (mut future, mut polls) = (pin!(future), 1);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(output) => return (output, polls),
                Poll::Pending => polls += 1,
            }
        }
    }

    fn groups(count: usize) -> Vec<(Group, usize)> {
        (0..count).map(|at| (format!("channel-{at}").into(), 0)).collect()
    }

    #[test]
    fn the_channels_of_a_cluster_are_collected_and_listed_in_chunks() {
        let (mut all, polls) = poll_to_end(ClusterChannels::new(groups(10_000), |group| Some(name(group))));
        assert!(polls >= 10_000 / CHANNELS_PER_CHUNK, "{polls} polls");
        let chunk = |channels: std::ops::Range<usize>| {
            let counts: HashMap<_, _> = channels.map(|at| (format!("channel-{at}"), 3)).collect();
            serde_json::to_string(&counts).unwrap()
        };
        let reply = [chunk(0..256), chunk(256..512), r#"{"elsewhere":1}"#.to_owned()].concat();
        let ((), polls) = poll_to_end(all.add_reply(&reply.into()));
        assert_eq!(polls, 4, "one for each chunk, and the end");
        // A single chunk, as a node of an earlier release replies; and malformed replies.
        poll_to_end(all.add_reply(&chunk(512..1000).into()));
        poll_to_end(all.add_reply(&format!("{}{{\"channel-1\":", chunk(0..10)).into()));
        poll_to_end(all.add_reply(&Bytes::from_static(b"[1]\xff")));
        let mut found = HashMap::new();
        while let Some(chunk) = all.next_chunk() {
            assert!((1..=CHANNELS_PER_CHUNK).contains(&chunk.len()));
            for (channel, info) in chunk {
                assert!(found.insert(channel, info.subscriptions).is_none(), "once");
            }
        }
        assert_eq!(found.len(), 10_000);
        let count = |channel| found[&name(channel)];
        assert_eq!((count("channel-3"), count("channel-10"), count("channel-999")), (6, 3, 3));
        assert_eq!(count("channel-1000"), 1, "an occupied channel has at least one subscriber");
    }
}
