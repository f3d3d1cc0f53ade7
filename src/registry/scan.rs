//! Scans over the channels, in chunks.
//!
//! Like Redis's `SCAN`: a channel that exists during the whole scan is returned once. No lock is held between chunks; the
//! caller lets other tasks run there.

use std::sync::Arc;
use std::time::Duration;
use std::vec;

use super::channel::Channel;
use super::{ChannelInfo, ChannelKey, Registry};
use crate::outbox::Outbox;
use crate::protocol::{ChannelName, UserId};

/// Channels in a chunk.
pub(super) const CHANNELS_PER_CHUNK: usize = 256;

/// See the module's documentation.
#[derive(Debug)]
struct Scan {
    registry: Registry,
    /// The shard to read next.
    shard: usize,
    /// The remaining channels of the previous shard.
    channels: Vec<Arc<Channel>>,
}

impl Scan {
    fn new(registry: &Registry) -> Self {
        Self { registry: registry.clone(), shard: 0, channels: Vec::new() }
    }

    /// The next channels whose key `is_wanted`. A chunk may be empty; `None` ends the scan.
    fn next_chunk(
        &mut self,
        is_wanted: impl Fn(&ChannelKey) -> bool,
    ) -> Option<vec::Drain<'_, Arc<Channel>>> {
        if self.channels.is_empty() {
            // Collected first, so that no channel is locked while a shard is.
            self.channels = self.registry.0.channels.collect_shard(self.shard, is_wanted)?;
            self.shard += 1;
        }
        Some(self.channels.drain(self.channels.len().saturating_sub(CHANNELS_PER_CHUNK)..))
    }
}

/// The occupied channels of an app.
#[derive(Debug)]
pub struct OccupiedChannels {
    scan: Scan,
    app: Box<str>,
    prefix: Box<str>,
}

impl OccupiedChannels {
    pub(super) fn new(registry: &Registry, app: &str, prefix: &str) -> Self {
        Self { scan: Scan::new(registry), app: app.into(), prefix: prefix.into() }
    }

    /// The next channels. A chunk may be empty; `None` ends the scan.
    pub fn next_chunk(&mut self, now: Duration) -> Option<Vec<(ChannelName, ChannelInfo)>> {
        let (app, prefix) = (&*self.app, &*self.prefix);
        let chunk = self.scan.next_chunk(|key| {
            let name = key.channel.as_str();
            *key.app == *app && name.starts_with(prefix) && !name.starts_with('#')
        })?;
        let infos = chunk.map(|channel| (channel.name().clone(), channel.info(now)));
        Some(infos.filter(|(_, info)| info.subscriptions > 0).collect())
    }
}

/// The cache channels with subscribers.
#[derive(Debug)]
pub struct SubscribedCaches(Scan);

impl SubscribedCaches {
    pub(super) fn new(registry: &Registry) -> Self {
        Self(Scan::new(registry))
    }

    /// The next channels. A chunk may be empty; `None` ends the scan.
    pub fn next_chunk(&mut self) -> Option<Vec<ChannelKey>> {
        let chunk = self.0.next_chunk(|key| key.channel.is_cached())?;
        Some(chunk.filter(|channel| channel.is_occupied()).map(|channel| channel.key().clone()).collect())
    }
}

/// The connections that are in presence channels as one user. A connection is returned once for each such channel.
#[derive(Debug)]
pub struct MemberConnections {
    scan: Scan,
    app: Box<str>,
    user: UserId,
}

impl MemberConnections {
    pub(super) fn new(registry: &Registry, app: &str, user: &UserId) -> Self {
        Self { scan: Scan::new(registry), app: app.into(), user: user.clone() }
    }

    /// The next connections. A chunk may be empty; `None` ends the scan.
    pub fn next_chunk(&mut self) -> Option<Vec<Arc<Outbox>>> {
        let chunk = self.scan.next_chunk(|key| *key.app == *self.app && key.channel.is_presence())?;
        Some(chunk.flat_map(|channel| channel.connections_of(&self.user)).collect())
    }
}
