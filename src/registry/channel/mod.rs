//! A channel: its subscribers, and the queue that puts its messages in one order.
//!
//! The queue combines messages. A publisher pushes a message; if nobody drives the channel, the publisher becomes the
//! driver ([`Drive`]). The driver takes everything that is pending (up to 64 KiB) as one [`batch::Batch`], joins the bytes
//! once, and writes them to every subscriber. Messages that arrive in the meantime wait for the next pass. So an idle
//! channel delivers immediately, a busy one in large writes, there is exactly one driver, and the order of delivery is
//! that of the queue.
//!
//! Messages are queued as [`Frame`]s, whatever forms the subscribers have. A batch has the bytes of the frames from the
//! start; each other [`Form`](crate::protocol::wire::Form), such as compressed frames, is made for the whole batch when the
//! first subscriber that needs it has its turn. Each message is encoded by itself, because some subscribers receive only a
//! part of the batch. The member list and a cached event go to one connection, under the lock of the channel: in its form,
//! but not compressed.
//!
//! A join has a position in that order too: a subscriber stores the number of the first message that it may receive, so it
//! misses what was pending before and receives everything after.
//!
//! - [`subscribers`]: the list of subscribers and its index
//! - [`queue`]: pending messages, and the backlog that publishers wait for
//! - [`delivery`]: the driver and its passes over the subscribers
//! - [`batch`]: the bytes of a batch, in the forms of its subscribers
//! - [`members`], [`cached`], [`counts`]: presence, the cached event, subscription counts

mod batch;
mod cached;
mod counts;
mod delivery;
mod members;
mod queue;
mod subscribers;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::presence::Presence;
use super::{
    CacheLimits, CachedFrame, ChannelInfo, ChannelKey, ChannelPermit, ChannelPermits, Join, JoinError,
    Joined, Left, Published, Registry,
};
use crate::limits::Limit;
use crate::outbox::Outbox;
use crate::protocol::message::{Event, ServerMessage, Source};
use crate::protocol::wire::{Frame, pusher};
use crate::protocol::{ChannelName, Member, SocketId, UserId};

use cached::Cached;
pub use counts::CountDue;
use counts::Counts;
pub use delivery::{Drive, Pass};
pub use members::admits_member;
pub use queue::Backlog;
use queue::Queue;
use subscribers::{Subscriber, Subscribers};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Channel {
    key: ChannelKey,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    subscribers: Subscribers,
    queue: Queue,
    presence: Option<Box<Presence>>,
    cached: Option<Box<Cached>>,
    /// Counts the channel among those of its app. Held while the channel has subscribers or a cached event.
    permit: Option<ChannelPermit>,
    counts: Counts,
    /// The channel is no longer in the map, or is about to be removed from it.
    removed: bool,
}

impl State {
    /// Acquires the permit of the channel if it has none. Returns whether the channel has one.
    fn acquire_permit(&mut self, permits: ChannelPermits<'_>) -> bool {
        if self.permit.is_none() {
            self.permit = permits.acquire();
        }
        self.permit.is_some()
    }

    /// Releases the permit if the channel has neither subscribers nor a cached event.
    fn release_permit_if_unused(&mut self) {
        if self.subscribers.is_empty() && self.cached.is_none() {
            self.permit = None;
        }
    }

    fn enqueue(&mut self, message: &ServerMessage<'_>) {
        self.queue.push(pusher::encode(message), None);
    }
}

impl Channel {
    pub(super) fn new(key: ChannelKey) -> Self {
        Self { key, state: Mutex::default() }
    }

    pub(super) const fn key(&self) -> &ChannelKey {
        &self.key
    }

    pub(super) const fn name(&self) -> &ChannelName {
        &self.key.channel
    }

    /// Whether the channel keeps `event` for later subscribers.
    pub(super) fn caches(event: &Event<'_>) -> bool {
        matches!(event.source, Source::App) && event.channel.is_cached()
    }

    /// See [`Registry::join`]. `None` if the channel was removed.
    pub(super) fn join(
        self: &Arc<Self>,
        registry: &Registry,
        outbox: &Arc<Outbox>,
        join: &Join<'_>,
        now: Duration,
    ) -> Option<Result<Joined, JoinError>> {
        let mut state = self.state.lock();
        if state.removed {
            return None;
        }
        if state.subscribers.position(outbox.socket()).is_some() {
            self.acknowledge(&mut state, outbox, join.acknowledgement);
            return Some(Ok(Joined { already_subscribed: true, ..Joined::default() }));
        }
        if let Some(member) = &join.member {
            let presence = state.presence.get_or_insert_default();
            if !presence.is_mirror()
                && !admits_member(presence.len(), join.members_max)
                && !presence.has(&member.id)
            {
                return Some(Err(JoinError::TooManyMembers));
            }
        }
        if self.name().user().is_none() && !state.acquire_permit(join.permits) {
            return Some(Err(JoinError::TooManyChannels));
        }
        let occupied = state.subscribers.is_empty();
        let bytes_before = state.queue.bytes();
        let member_added = join.member.as_ref().is_some_and(|member| self.add_member(&mut state, member));
        let member = join.member.as_ref().map(|member| member.id.clone());
        let since = state.queue.next_number();
        state.subscribers.add(Subscriber::new(Arc::clone(outbox), since, member));
        self.acknowledge(&mut state, outbox, join.acknowledgement);
        let caches = self.name().is_cached();
        let cache_miss = caches && state.cached(now).is_none();
        if let Some(cached) = state.cached(now) {
            outbox.reply_frame(&cached.frame);
        } else if caches {
            outbox.reply(&ServerMessage::CacheMiss { channel: self.name() });
        }
        let count = if join.counts { self.count_changed(&mut state, registry, now) } else { None };
        let changes = u16::from(occupied) + u16::from(join.member.is_some());
        outbox.charge(self.charge_bytes(&state, bytes_before, join.member.as_ref()), changes);
        let backlog = self.backlog(&state);
        let drive = self.start(registry, &mut state);
        Some(Ok(Joined {
            occupied,
            member_added,
            cache_miss,
            already_subscribed: false,
            count,
            drive,
            backlog,
        }))
    }

    fn acknowledge(&self, state: &mut State, outbox: &Outbox, acknowledgement: Option<&Frame>) {
        if let Some(acknowledgement) = acknowledgement {
            return outbox.reply_frame(acknowledgement);
        }
        let subscribed =
            |members| pusher::encode(&ServerMessage::Subscribed { channel: self.name(), members });
        match &mut state.presence {
            Some(presence) => outbox.reply_frame(&presence.roster(subscribed)),
            None => outbox.reply_frame(&subscribed(None)),
        }
    }

    /// The bytes to charge to a connection for a join or a leave: the messages enqueued since `bytes_before`, for each
    /// subscriber. In a cluster, the message about a member comes back from the broker later; it is at least as long as
    /// the member's info.
    fn charge_bytes(&self, state: &State, bytes_before: usize, member: Option<&Member>) -> usize {
        let mirrored =
            member.filter(|_| state.presence.as_ref().is_some_and(|presence| presence.is_mirror()));
        let bytes = state.queue.bytes() - bytes_before + mirrored.map_or(0, |member| member.info.len());
        bytes * state.subscribers.len()
    }

    /// See [`Registry::leave`].
    pub(super) fn leave(
        self: &Arc<Self>,
        registry: &Registry,
        socket: SocketId,
        counts: bool,
        now: Duration,
    ) -> Option<Left> {
        let mut state = self.state.lock();
        let position = state.subscribers.position(socket)?;
        let left = state.subscribers.remove(position);
        let bytes_before = state.queue.bytes();
        left.mark_gone();
        let vacated = state.subscribers.is_empty();
        state.release_permit_if_unused();
        let mut member_removed = None;
        if let (Some(user), Some(presence)) = (&left.member, &mut state.presence)
            && !presence.is_mirror()
            && presence.remove(user)
        {
            if !vacated {
                state.enqueue(&ServerMessage::MemberRemoved { channel: self.name(), user });
            }
            member_removed = Some(user.clone());
        }
        let count = if counts { self.count_changed(&mut state, registry, now) } else { None };
        let changes = u16::from(vacated) + u16::from(left.member.is_some());
        left.outbox.charge(self.charge_bytes(&state, bytes_before, None), changes);
        let backlog = self.backlog(&state);
        let drive = self.start(registry, &mut state);
        Some(Left { vacated, member: left.member.clone(), member_removed, count, drive, backlog })
    }

    /// See [`Registry::publish`]. `None` if the channel was removed.
    pub(super) fn publish(
        self: &Arc<Self>,
        registry: &Registry,
        event: &Event<'_>,
        cache: CacheLimits<'_>,
        now: Duration,
    ) -> Option<Published> {
        let frame = pusher::encode(&event.message());
        let cache = Self::caches(event).then_some((cache, 0));
        self.deliver(registry, frame, event.except, cache, now)
    }

    /// See [`Registry::deliver`]. `None` if the channel was removed.
    pub(super) fn deliver(
        self: &Arc<Self>,
        registry: &Registry,
        frame: Frame,
        except: Option<SocketId>,
        cache: Option<(CacheLimits<'_>, u64)>,
        now: Duration,
    ) -> Option<Published> {
        let mut state = self.state.lock();
        if state.removed {
            return None;
        }
        let mut limit = None;
        if let Some((cache, number)) = cache {
            // The subscribers have received the cached event, which is as new or newer.
            if number != 0 && state.cached.as_ref().is_some_and(|cached| cached.number >= number) {
                return Some(Published::default());
            }
            if !state.acquire_permit(cache.permits) {
                // A channel without a permit has no subscribers.
                return Some(Published { limit: Some(Limit::AppChannels), ..Published::default() });
            }
            let event = CachedFrame { frame: frame.clone(), number, expires: now + cache.ttl };
            limit = self.store(&mut state, registry, event, cache.bytes_max);
        }
        if state.subscribers.is_empty() {
            return Some(Published { limit, ..Published::default() });
        }
        state.queue.push(frame, except);
        let backlog = self.backlog(&state);
        let drive = self.start(registry, &mut state);
        Some(Published { drive, backlog, limit })
    }

    pub(super) fn info(&self, now: Duration) -> ChannelInfo {
        let state = self.state.lock();
        ChannelInfo {
            subscriptions: state.subscribers.len(),
            users: state.presence.as_ref().map_or(0, |presence| presence.len()),
            cache: state.cached(now).map(|cached| (cached.frame.clone(), cached.expires - now)),
        }
    }

    /// See [`Registry::is_subscribed`].
    pub(super) fn is_subscribed(&self, socket: SocketId) -> bool {
        self.state.lock().subscribers.position(socket).is_some()
    }

    pub(super) fn is_occupied(&self) -> bool {
        !self.state.lock().subscribers.is_empty()
    }

    /// The connections that are in the channel as `user`.
    pub(super) fn connections_of(&self, user: &UserId) -> Vec<Arc<Outbox>> {
        let state = self.state.lock();
        if !state.presence.as_ref().is_some_and(|presence| presence.has(user)) {
            return Vec::new();
        }
        let subscribers = state.subscribers.share();
        drop(state);
        let of_user = subscribers.iter().filter(|subscriber| subscriber.member.as_ref() == Some(user));
        of_user.map(|subscriber| Arc::clone(&subscriber.outbox)).collect()
    }

    /// See [`Registry::drop_cluster_state`].
    pub(super) fn drop_cluster_state(&self, registry: &Registry) {
        let mut state = self.state.lock();
        if state.subscribers.is_empty() {
            (state.presence, state.counts.remote) = (None, 0);
            if let Some(cached) = state.cached.take() {
                registry.0.cache_index.remove(self, cached.sequence);
            }
            state.release_permit_if_unused();
        }
    }

    /// Marks the channel as removed if nothing needs it. Returns whether it did.
    pub(super) fn mark_removed_if_unused(&self) -> bool {
        let mut state = self.state.lock();
        // In a cluster, the members are known before the first subscriber joins.
        let mirrors = state.presence.as_ref().is_some_and(|presence| presence.is_mirror());
        let is_empty = state.subscribers.is_empty() && state.cached.is_none();
        let unused = is_empty && !mirrors && !state.queue.has_driver();
        state.removed |= unused;
        unused
    }
}
