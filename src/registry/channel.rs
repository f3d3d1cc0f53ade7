//! A channel: its subscribers, and the queue in which everything said in it stands in one order.
//!
//! The queue combines. Publishing pushes a message; whoever finds nobody driving the channel becomes its driver
//! and takes all that is pending (up to [`BATCH_BYTES`]) as one [`Batch`], whose bytes are put together once and
//! written to every subscriber. What arrives meanwhile waits and goes out together in the next pass. So an idle
//! channel delivers at once, a busy one in large writes, there is exactly one driver, and the order is the
//! queue's.
//!
//! Connections that agreed upon compression get a batch in a second form, made when the first of them has its turn:
//! each message by itself, so that it is right for whoever gets only some of them. A list of members and a replayed
//! event go to one connection, under the channel's lock, and are not compressed.
//!
//! Joining is a place in that order too: a subscriber has the number of the first message that is meant for it,
//! so what was pending before does not reach it and what comes after does.

use std::cell::OnceCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::kept::Turn;
use super::presence::Presence;
use super::{
    Cache, ChannelInfo, ChannelKey, ChannelPlace, ChannelPlaces, Join, JoinError, Joined, KeptFrame, Left,
    Published, Registry,
};
use crate::limits::Limit;
use crate::outbox::{Outbox, SharedFrames};
use crate::protocol::message::{Event, ServerMessage, Source};
use crate::protocol::wire::deflate::{self, Compression};
use crate::protocol::wire::{Frame, pusher};
use crate::protocol::{ChannelName, Member, SocketId, UserId};

/// A batch ends with the message that takes it past this size.
const BATCH_BYTES: usize = 64 * 1024;

/// Publishers wait while a channel has more than this undelivered.
const BACKLOG_BYTES: usize = 256 * 1024;

/// What other nodes send is taken for a channel until it has more than this undelivered.
const DEEP_BYTES: usize = 8 * 1024 * 1024;

/// A channel up to this size is delivered by whoever publishes, on the spot.
const SMALL: usize = 32;

/// Subscribers written to before other work gets its turn.
const TURN: usize = 64;

/// Above this many subscribers a place is looked up in an index instead of searched for.
const INDEXED: usize = 64;

/// Up to this many subscribers, every change of their count is told at once; above it, at most once per
/// [`COUNT_INTERVAL`]. Source: protocol.md §4.9.
const COUNT_AT_ONCE: usize = 100;
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Channel {
    key: ChannelKey,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Shared with the pass that is being driven, hence copied on the first change during one.
    subscribers: Arc<Vec<Arc<Subscriber>>>,
    /// Places in `subscribers`, kept while there are many.
    places: HashMap<SocketId, usize>,
    queue: Queue,
    presence: Option<Box<Presence>>,
    cached: Option<Box<Cached>>,
    /// Among the channels of the app: held while there are subscribers or an event that is kept.
    place: Option<ChannelPlace>,
    counts: Counts,
    /// Out of the map, or about to be: of no use any more.
    given_up: bool,
}

#[derive(Debug, Default)]
struct Queue {
    pending: VecDeque<Pending>,
    bytes: usize,
    /// The number of the next message.
    next: u64,
    /// Somebody delivers: what is pending is theirs to take.
    driven: bool,
    /// Publishers that wait for the backlog to shrink.
    waiting: Vec<Waker>,
    /// How often those that wait have been woken.
    woken: u64,
}

#[derive(Debug)]
struct Pending {
    frame: Frame,
    except: Option<SocketId>,
}

/// A connection in a channel.
#[derive(Debug)]
struct Subscriber {
    outbox: Arc<Outbox>,
    /// The number of the first message that is meant for it.
    since: u64,
    /// Set when it leaves, so that a pass that still has it in its list passes it over.
    gone: AtomicBool,
    member: Option<UserId>,
}

/// There is one for every subscription, so a field more is a decision.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Subscriber>() <= 40);

#[derive(Debug)]
struct Cached {
    frame: Frame,
    /// Its place among all that are kept.
    turn: Turn,
    /// In a cluster, which one it is: later ones have higher numbers.
    number: u64,
    expires: Duration,
}

#[derive(Debug, Default)]
struct Counts {
    /// Subscribers on other nodes.
    elsewhere: usize,
    told: Option<Duration>,
    /// Subscribers have not been told of the last change.
    due: bool,
    /// The channel stands among those that are looked at when time has passed.
    listed: bool,
}

impl State {
    fn place(&self, socket: SocketId) -> Option<usize> {
        if self.subscribers.len() > INDEXED {
            return self.places.get(&socket).copied();
        }
        self.subscribers.iter().position(|subscriber| subscriber.outbox.socket() == socket)
    }

    fn add(&mut self, subscriber: Subscriber) {
        let subscribers = Arc::make_mut(&mut self.subscribers);
        subscribers.push(Arc::new(subscriber));
        if subscribers.len() == INDEXED + 1 {
            let places = subscribers.iter().enumerate();
            self.places = places.map(|(place, subscriber)| (subscriber.outbox.socket(), place)).collect();
        } else if let Some(last) = subscribers.last()
            && subscribers.len() > INDEXED
        {
            self.places.insert(last.outbox.socket(), subscribers.len() - 1);
        }
    }

    fn remove(&mut self, place: usize) -> Arc<Subscriber> {
        let subscribers = Arc::make_mut(&mut self.subscribers);
        let removed = subscribers.swap_remove(place);
        if subscribers.len() > INDEXED {
            self.places.remove(&removed.outbox.socket());
            if let Some(moved) = subscribers.get(place) {
                self.places.insert(moved.outbox.socket(), place);
            }
        } else if !self.places.is_empty() {
            self.places = HashMap::new();
        }
        if subscribers.is_empty() {
            self.subscribers = Arc::default();
        } else if subscribers.capacity() > 64 && subscribers.len() < subscribers.capacity() / 4 {
            subscribers.shrink_to(subscribers.len() * 2);
        }
        removed
    }

    fn cached(&self, now: Duration) -> Option<&Cached> {
        self.cached.as_deref().filter(|cached| cached.expires > now)
    }

    /// Subscribers, of all nodes.
    fn count(&self) -> usize {
        self.subscribers.len() + self.counts.elsewhere
    }

    /// Takes the channel's place, unless it has it; whether it has it then.
    fn take_place(&mut self, places: ChannelPlaces<'_>) -> bool {
        if self.place.is_none() {
            self.place = places.take();
        }
        self.place.is_some()
    }

    /// Gives the channel's place back, if nothing needs it any more.
    fn leave_place(&mut self) {
        if self.subscribers.is_empty() && self.cached.is_none() {
            self.place = None;
        }
    }

    /// Keeps nothing any more.
    fn uncache(&mut self) {
        self.cached = None;
        self.leave_place();
    }

    fn say(&mut self, message: &ServerMessage<'_>) {
        self.queue.push(pusher::encode(message), None);
    }
}

impl Counts {
    fn told_lately(&self, now: Duration) -> bool {
        self.told.is_some_and(|told| now.saturating_sub(told) < COUNT_INTERVAL)
    }
}

impl Queue {
    fn push(&mut self, frame: Frame, except: Option<SocketId>) {
        self.bytes += frame.bytes().len();
        self.next += 1;
        self.pending.push_back(Pending { frame, except });
    }

    /// Gives the driver's place back, if nothing is pending.
    fn rest(&mut self) -> bool {
        let done = self.pending.is_empty();
        if done {
            self.driven = false;
            self.pending = VecDeque::new();
        }
        done
    }

    /// The next batch; with none left, the channel is no longer driven.
    fn take(&mut self) -> Option<Batch> {
        if self.rest() {
            return None;
        }
        let first = self.next - self.pending.len() as u64;
        let (mut count, mut bytes) = (0, 0);
        for pending in &self.pending {
            count += 1;
            bytes += pending.frame.bytes().len();
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        self.bytes -= bytes;
        if self.bytes <= BACKLOG_BYTES && !self.waiting.is_empty() {
            self.woken += 1;
            self.waiting.drain(..).for_each(Waker::wake);
            self.waiting = Vec::new();
        }
        Some(Batch::new(first, self.pending.drain(..count).collect(), bytes))
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

    /// Whether `event` is kept for later subscribers of its channel.
    pub(super) fn caches(event: &Event<'_>) -> bool {
        matches!(event.source, Source::App) && event.channel.is_cached()
    }

    /// See [`Registry::join`]; `None` when the channel was given up.
    pub(super) fn join(
        self: &Arc<Self>,
        registry: &Registry,
        outbox: &Arc<Outbox>,
        join: &Join<'_>,
        now: Duration,
    ) -> Option<Result<Joined, JoinError>> {
        let mut state = self.state.lock();
        if state.given_up {
            return None;
        }
        if state.place(outbox.socket()).is_some() {
            self.acknowledge(&mut state, outbox, join.told);
            return Some(Ok(Joined { again: true, ..Joined::default() }));
        }
        if let Some(member) = &join.member {
            let presence = state.presence.get_or_insert_default();
            if !presence.is_shared() && presence.len() >= join.members_max && !presence.has(&member.id) {
                return Some(Err(JoinError::Full));
            }
        }
        if self.name().user().is_none() && !state.take_place(join.places) {
            return Some(Err(JoinError::TooManyChannels));
        }
        let occupied = state.subscribers.is_empty();
        let said_before = state.queue.bytes;
        let member_added = join.member.as_ref().is_some_and(|member| self.add_member(&mut state, member));
        let member = join.member.as_ref().map(|member| member.id.clone());
        let since = state.queue.next;
        state.add(Subscriber { outbox: Arc::clone(outbox), since, gone: AtomicBool::new(false), member });
        self.acknowledge(&mut state, outbox, join.told);
        let caches = self.name().is_cached();
        let cache_miss = caches && state.cached(now).is_none();
        if let Some(cached) = state.cached(now) {
            outbox.answer(cached.frame.bytes());
        } else if caches {
            outbox.say(&ServerMessage::CacheMiss { channel: self.name() });
        }
        let count = if join.counts { self.count_changed(&mut state, registry, now) } else { None };
        let changes = u16::from(occupied) + u16::from(join.member.is_some());
        outbox.provoked(self.provoked_bytes(&state, said_before, join.member.as_ref()), changes);
        let backlog = self.backlog(&state);
        let drive = self.start(registry, &mut state);
        Some(Ok(Joined { occupied, member_added, cache_miss, again: false, count, drive, backlog }))
    }

    fn add_member(&self, state: &mut State, member: &Member) -> bool {
        let presence = state.presence.get_or_insert_default();
        let added = !presence.is_shared() && presence.add(member);
        if added && !state.subscribers.is_empty() {
            state.say(&ServerMessage::MemberAdded { channel: self.name(), member });
        }
        added
    }

    fn acknowledge(&self, state: &mut State, outbox: &Outbox, told: Option<&Frame>) {
        if let Some(told) = told {
            return outbox.answer(told.bytes());
        }
        let acknowledgement =
            |members| pusher::encode(&ServerMessage::Subscribed { channel: self.name(), members });
        match &mut state.presence {
            Some(presence) => outbox.answer(presence.roster(acknowledgement).bytes()),
            None => outbox.answer(acknowledgement(None).bytes()),
        }
    }

    /// What the subscribers are sent because one of them has come, or gone: what was said since `said_before`, and to
    /// how many. In a cluster it comes back from there, and is as long as the member's info at least.
    fn provoked_bytes(&self, state: &State, said_before: usize, member: Option<&Member>) -> usize {
        let shared = member.filter(|_| state.presence.as_ref().is_some_and(|presence| presence.is_shared()));
        let said = state.queue.bytes - said_before + shared.map_or(0, |member| member.info.len());
        said * state.subscribers.len()
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
        let place = state.place(socket)?;
        let left = state.remove(place);
        let said_before = state.queue.bytes;
        left.outbox.between_sends(|| left.gone.store(true, Ordering::Relaxed));
        let vacated = state.subscribers.is_empty();
        state.leave_place();
        let mut member_removed = None;
        if let (Some(user), Some(presence)) = (&left.member, &mut state.presence)
            && !presence.is_shared()
            && presence.remove(user)
        {
            if !vacated {
                state.say(&ServerMessage::MemberRemoved { channel: self.name(), user });
            }
            member_removed = Some(user.clone());
        }
        let count = if counts { self.count_changed(&mut state, registry, now) } else { None };
        let changes = u16::from(vacated) + u16::from(left.member.is_some());
        left.outbox.provoked(self.provoked_bytes(&state, said_before, None), changes);
        let backlog = self.backlog(&state);
        let drive = self.start(registry, &mut state);
        Some(Left { vacated, member: left.member.clone(), member_removed, count, drive, backlog })
    }

    /// See [`Registry::members`]; `None` when the channel was given up.
    pub(super) fn members(&self, members: &[Member]) -> Option<()> {
        let mut state = self.state.lock();
        if state.given_up {
            return None;
        }
        state.presence = Some(Box::new(Presence::shared(members)));
        Some(())
    }

    /// See [`Registry::member_added`].
    pub(super) fn member_added(self: &Arc<Self>, registry: &Registry, member: &Member) -> Option<Drive> {
        let mut state = self.state.lock();
        let is_new = state.presence.as_mut().is_some_and(|presence| presence.add(member));
        if is_new && !state.subscribers.is_empty() {
            state.say(&ServerMessage::MemberAdded { channel: self.name(), member });
        }
        self.start(registry, &mut state)
    }

    /// See [`Registry::member_removed`].
    pub(super) fn member_removed(self: &Arc<Self>, registry: &Registry, user: &UserId) -> Option<Drive> {
        let mut state = self.state.lock();
        let was_there = state.presence.as_mut().is_some_and(|presence| presence.remove(user));
        if was_there && !state.subscribers.is_empty() {
            state.say(&ServerMessage::MemberRemoved { channel: self.name(), user });
        }
        self.start(registry, &mut state)
    }

    /// See [`Registry::is_among`].
    pub(super) fn is_among(&self, user: &UserId, first: usize) -> bool {
        let state = self.state.lock();
        state.presence.as_ref().is_some_and(|presence| presence.is_among(user, first))
    }

    /// See [`Registry::is_subscribed`].
    pub(super) fn is_subscribed(&self, socket: SocketId) -> bool {
        self.state.lock().place(socket).is_some()
    }

    pub(super) fn is_occupied(&self) -> bool {
        !self.state.lock().subscribers.is_empty()
    }

    /// See [`Registry::elsewhere`].
    pub(super) fn elsewhere(
        self: &Arc<Self>,
        registry: &Registry,
        elsewhere: usize,
        now: Duration,
    ) -> (Option<usize>, Option<Drive>) {
        let mut state = self.state.lock();
        if state.counts.elsewhere == elsewhere {
            return (None, None);
        }
        state.counts.elsewhere = elsewhere;
        let count = self.count_changed(&mut state, registry, now);
        (count, self.start(registry, &mut state))
    }

    /// See [`Registry::keep`]; `None` when the channel was given up.
    pub(super) fn keep(
        self: &Arc<Self>,
        registry: &Registry,
        kept: KeptFrame,
        cache: Cache<'_>,
    ) -> Option<Option<Limit>> {
        let mut state = self.state.lock();
        if state.given_up {
            return None;
        }
        let is_newer = state.cached.as_ref().is_none_or(|cached| cached.number < kept.number);
        if !state.subscribers.is_empty() || !is_newer {
            return Some(None);
        }
        if !state.take_place(cache.places) {
            return Some(Some(Limit::AppChannels));
        }
        Some(self.cache(&mut state, registry, kept, cache.bytes_max))
    }

    /// Keeps an event for later subscribers, as far as all that are kept may have so many bytes; the limit that was
    /// reached. What was kept before is old, and is not kept in its stead.
    fn cache(
        self: &Arc<Self>,
        state: &mut State,
        registry: &Registry,
        kept: KeptFrame,
        bytes_max: usize,
    ) -> Option<Limit> {
        let KeptFrame { frame, number, expires } = kept;
        let before = state.cached.as_ref().map(|cached| cached.turn);
        let bytes = frame.bytes().len();
        let (turn, limit) = registry.0.kept.keep(self, before, bytes, expires, bytes_max);
        match turn {
            Some(turn) => state.cached = Some(Box::new(Cached { frame, turn, number, expires })),
            None => state.uncache(),
        }
        limit
    }

    /// Keeps an event no more, if it is still the one of this turn.
    pub(super) fn forget(&self, turn: Turn) {
        let mut state = self.state.lock();
        if state.cached.as_ref().is_some_and(|cached| cached.turn == turn) {
            state.uncache();
        }
    }

    /// See [`Registry::vacate`].
    pub(super) fn vacate(&self, registry: &Registry) {
        let mut state = self.state.lock();
        if state.subscribers.is_empty() {
            (state.presence, state.counts.elsewhere) = (None, 0);
            if let Some(cached) = state.cached.take() {
                registry.0.kept.remove(self, cached.turn);
            }
            state.leave_place();
        }
    }

    /// See [`Registry::publish`]; `None` when the channel was given up.
    pub(super) fn publish(
        self: &Arc<Self>,
        registry: &Registry,
        event: &Event<'_>,
        cache: Cache<'_>,
        now: Duration,
    ) -> Option<Published> {
        let frame = pusher::encode(&event.message());
        let keep = Self::caches(event).then_some((cache, 0));
        self.deliver(registry, frame, event.except, keep, now)
    }

    /// See [`Registry::deliver`]; `None` when the channel was given up.
    pub(super) fn deliver(
        self: &Arc<Self>,
        registry: &Registry,
        frame: Frame,
        except: Option<SocketId>,
        keep: Option<(Cache<'_>, u64)>,
        now: Duration,
    ) -> Option<Published> {
        let mut state = self.state.lock();
        if state.given_up {
            return None;
        }
        let mut limit = None;
        if let Some((cache, number)) = keep {
            // Those who are here were told with the one that is kept.
            if number != 0 && state.cached.as_ref().is_some_and(|cached| cached.number >= number) {
                return Some(Published::default());
            }
            if !state.take_place(cache.places) {
                // Without a place there is no subscriber either.
                return Some(Published { limit: Some(Limit::AppChannels), ..Published::default() });
            }
            let kept = KeptFrame { frame: frame.clone(), number, expires: now + cache.ttl };
            limit = self.cache(&mut state, registry, kept, cache.bytes_max);
        }
        if state.subscribers.is_empty() {
            return Some(Published { limit, ..Published::default() });
        }
        state.queue.push(frame, except);
        let backlog = self.backlog(&state);
        let drive = self.start(registry, &mut state);
        Some(Published { drive, backlog, limit })
    }

    /// See [`Registry::backlog`].
    pub(super) fn backlog_now(self: &Arc<Self>) -> Option<Backlog> {
        self.backlog(&self.state.lock())
    }

    fn backlog(self: &Arc<Self>, state: &State) -> Option<Backlog> {
        (state.queue.bytes > BACKLOG_BYTES).then(|| Backlog { channel: Arc::clone(self), place: None })
    }

    /// Takes the driver's place, if something is pending and nobody has it.
    fn start(self: &Arc<Self>, registry: &Registry, state: &mut State) -> Option<Drive> {
        if state.queue.driven || state.queue.pending.is_empty() {
            return None;
        }
        state.queue.driven = true;
        let is_small = state.subscribers.len() <= SMALL;
        Some(Drive { registry: registry.clone(), channel: Arc::clone(self), is_small, is_over: false })
    }

    /// See [`Registry::undriven`].
    pub(super) fn drive_again(self: &Arc<Self>, registry: &Registry) -> Option<Drive> {
        self.start(registry, &mut self.state.lock())
    }

    /// Tells the count, or notes that it is due; the count, if it is told.
    fn count_changed(
        self: &Arc<Self>,
        state: &mut State,
        registry: &Registry,
        now: Duration,
    ) -> Option<usize> {
        if !self.name().has_subscription_count() || state.subscribers.is_empty() {
            return None;
        }
        if state.count() <= COUNT_AT_ONCE || !state.counts.told_lately(now) {
            return Some(self.say_count(state, now));
        }
        state.counts.due = true;
        if !state.counts.listed {
            state.counts.listed = true;
            registry.0.counts_due.lock().push(Arc::clone(self));
        }
        None
    }

    fn say_count(&self, state: &mut State, now: Duration) -> usize {
        state.counts.told = Some(now);
        state.counts.due = false;
        let count = state.count();
        state.say(&ServerMessage::SubscriptionCount { channel: self.name(), count });
        count
    }

    /// See [`CountDue::tell`].
    fn tell_count(self: &Arc<Self>, registry: &Registry, now: Duration) -> (Option<usize>, Option<Drive>) {
        let mut state = self.state.lock();
        let mut count = None;
        if state.counts.due && !state.subscribers.is_empty() {
            if state.counts.told_lately(now) {
                registry.0.counts_due.lock().push(Arc::clone(self));
                return (None, None);
            }
            count = Some(self.say_count(&mut state, now));
        }
        state.counts.due = false;
        state.counts.listed = false;
        (count, self.start(registry, &mut state))
    }

    pub(super) fn info(&self, now: Duration) -> ChannelInfo {
        let state = self.state.lock();
        ChannelInfo {
            subscriptions: state.subscribers.len(),
            users: state.presence.as_ref().map_or(0, |presence| presence.len()),
            cache: state.cached(now).map(|cached| (cached.frame.clone(), cached.expires - now)),
        }
    }

    /// The connections that are in it as `user`.
    pub(super) fn connections_of(&self, user: &UserId) -> Vec<Arc<Outbox>> {
        let state = self.state.lock();
        if !state.presence.as_ref().is_some_and(|presence| presence.has(user)) {
            return Vec::new();
        }
        let subscribers = Arc::clone(&state.subscribers);
        drop(state);
        let of_user = subscribers.iter().filter(|subscriber| subscriber.member.as_ref() == Some(user));
        of_user.map(|subscriber| Arc::clone(&subscriber.outbox)).collect()
    }

    pub(super) fn users(&self) -> Vec<UserId> {
        self.state.lock().presence.as_ref().map(|presence| presence.ids()).unwrap_or_default()
    }

    /// Marks the channel as given up, if nothing needs it.
    pub(super) fn give_up(&self) -> bool {
        let mut state = self.state.lock();
        // Who is there is known before the first subscriber is let in, in a cluster.
        let is_known = state.presence.as_ref().is_some_and(|presence| presence.is_shared());
        let is_empty = state.subscribers.is_empty() && state.cached.is_none();
        let unused = is_empty && !is_known && !state.queue.driven;
        state.given_up |= unused;
        unused
    }
}

/// A channel whose subscribers may be due to be told how many they are. If it is dropped before that, by a panic or with
/// its task, the channel is looked at again.
#[derive(Debug)]
#[must_use = "the count is due until it is told"]
pub struct CountDue {
    registry: Registry,
    channel: Arc<Channel>,
    /// Whether the channel has been looked at.
    is_over: bool,
}

impl CountDue {
    pub(super) fn new(registry: &Registry, channel: Arc<Channel>) -> Self {
        Self { registry: registry.clone(), channel, is_over: false }
    }

    /// Which channel.
    #[must_use]
    pub fn key(&self) -> &ChannelKey {
        self.channel.key()
    }

    /// Tells the count, if it is still due, or notes again that it will be; the count that is told.
    pub fn tell(mut self, now: Duration) -> (Option<usize>, Option<Drive>) {
        let told = self.channel.tell_count(&self.registry, now);
        self.is_over = true;
        told
    }
}

impl Drop for CountDue {
    fn drop(&mut self) {
        if !self.is_over {
            self.registry.0.counts_due.lock().push(Arc::clone(&self.channel));
        }
    }
}

/// The duty to deliver what is pending in a channel. Whoever holds it takes passes until there is none; nobody
/// else delivers meanwhile. If it is dropped before, by a panic or with its task, it goes back: to whoever publishes
/// next, or asks [`Registry::undriven`].
#[derive(Debug)]
#[must_use = "what is pending waits until it is driven"]
pub struct Drive {
    registry: Registry,
    channel: Arc<Channel>,
    /// Whether the channel was small enough to be delivered on the spot when the duty was taken.
    is_small: bool,
    /// Whether the duty has been given back.
    is_over: bool,
}

impl Drive {
    /// The next pass over the subscribers; `None` ends the drive.
    pub fn next_pass(&mut self) -> Option<Pass> {
        let channel = Arc::clone(&self.channel);
        let mut state = channel.state.lock();
        if let Some(batch) = state.queue.take() {
            return Some(Pass { batch, subscribers: Arc::clone(&state.subscribers), served: 0 });
        }
        self.ended(state);
        None
    }

    /// Delivers one pass to a small channel here and now, and says to how many.
    ///
    /// # Errors
    /// The drive comes back when the channel is large, or when more has come meanwhile.
    pub fn on_the_spot(mut self) -> Result<usize, Self> {
        if !self.is_small {
            return Err(self);
        }
        let Some(mut pass) = self.next_pass() else { return Ok(0) };
        while pass.serve() {}
        let channel = Arc::clone(&self.channel);
        let mut state = channel.state.lock();
        if !state.queue.rest() {
            drop(state);
            return Err(self);
        }
        self.ended(state);
        Ok(pass.served)
    }

    /// Gives the channel up, if its last subscriber left while it was driven. The duty has been given back: only
    /// `state`, as it was then, may be looked at.
    fn ended(&mut self, state: MutexGuard<'_, State>) {
        self.is_over = true;
        let vacated = state.subscribers.is_empty();
        drop(state);
        if vacated {
            self.registry.give_up_if_unused(&self.channel);
        }
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        self.is_over = true;
        let mut state = self.channel.state.lock();
        if !state.queue.rest() {
            state.queue.driven = false;
            drop(state);
            self.registry.0.undriven.lock().push(Arc::clone(&self.channel));
        }
    }
}

/// One batch on its way to everyone who was subscribed when it was taken.
#[derive(Debug)]
pub struct Pass {
    batch: Batch,
    subscribers: Arc<Vec<Arc<Subscriber>>>,
    served: usize,
}

impl Pass {
    /// Writes to the next [`TURN`] subscribers; whether there are more. Let other work have its turn in between.
    pub fn serve(&mut self) -> bool {
        let end = self.subscribers.len().min(self.served + TURN);
        for subscriber in &self.subscribers[self.served..end] {
            let is_subscribed = || !subscriber.gone.load(Ordering::Relaxed);
            match self.batch.frames_for(subscriber) {
                Frames::All(frames) => subscriber.outbox.send_shared(frames, is_subscribed),
                Frames::Some(frames) => subscriber.outbox.send_if(&frames, is_subscribed),
                Frames::None => {}
            }
        }
        self.served = end;
        end < self.subscribers.len()
    }
}

/// Messages put together once, for everyone.
#[derive(Debug)]
struct Batch {
    /// The number of the first message.
    first: u64,
    messages: Vec<Pending>,
    joined: SharedFrames,
    /// The same for connections that take them compressed, made when the first of these has its turn.
    compressed: OnceCell<Compressed>,
    /// Connections that do not get all of it.
    excepted: Vec<SocketId>,
}

/// The messages of a batch, each compressed where that is worth it, and put together.
#[derive(Debug)]
struct Compressed {
    joined: SharedFrames,
    /// Where each message ends.
    ends: Vec<usize>,
}

impl Compressed {
    /// Works through all of the batch at once: what a batch may have is bounded by [`BATCH_BYTES`] and by the
    /// longest message, and the threshold is the same for all connections of an app.
    fn new(messages: &[Pending], joined: &Bytes, bytes_min: u32) -> Self {
        if !deflate::is_worthwhile(messages.iter().map(|message| &message.frame), bytes_min) {
            let mut end = 0;
            let ends = messages.iter().map(|message| {
                end += message.frame.bytes().len();
                end
            });
            return Self { ends: ends.collect(), joined: joined.clone().into() };
        }
        let mut own = Vec::with_capacity(joined.len() / 2);
        let ends = messages.iter().map(|message| {
            deflate::push(&mut own, &message.frame, bytes_min);
            own.len()
        });
        let ends = ends.collect();
        own.shrink_to_fit();
        Self { ends, joined: Bytes::from(own).into() }
    }

    /// The message at `place` in the batch.
    fn message(&self, place: usize) -> &[u8] {
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.joined.bytes()[start..self.ends[place]]
    }
}

impl Batch {
    fn new(first: u64, messages: Vec<Pending>, bytes: usize) -> Self {
        let joined = match &messages[..] {
            [one] => one.frame.bytes().clone(),
            many => {
                let mut joined = Vec::with_capacity(bytes);
                many.iter().for_each(|message| joined.extend_from_slice(message.frame.bytes()));
                Bytes::from(joined)
            }
        };
        let excepted = messages.iter().filter_map(|message| message.except).collect();
        Self { first, messages, joined: joined.into(), compressed: OnceCell::new(), excepted }
    }

    /// What a subscriber gets: nearly always the common bytes.
    fn frames_for(&self, subscriber: &Subscriber) -> Frames<'_> {
        let gets_all = subscriber.since <= self.first && !self.excepted.contains(&subscriber.outbox.socket());
        let (messages, joined) = (&self.messages, &self.joined);
        match subscriber.outbox.compression() {
            Compression::Off if gets_all => Frames::All(joined),
            Compression::Off => self.some(subscriber, |place| messages[place].frame.bytes()),
            Compression::Deflate { bytes_min } => {
                let compressed =
                    self.compressed.get_or_init(|| Compressed::new(messages, joined.bytes(), bytes_min));
                if gets_all {
                    return Frames::All(&compressed.joined);
                }
                self.some(subscriber, |place| compressed.message(place))
            }
        }
    }

    /// What a subscriber gets who does not get all of it, of messages as `form` has them.
    fn some<'f>(&self, subscriber: &Subscriber, form: impl Fn(usize) -> &'f [u8]) -> Frames<'_> {
        let socket = subscriber.outbox.socket();
        let mut own = Vec::with_capacity(self.joined.bytes().len());
        for ((place, message), number) in self.messages.iter().enumerate().zip(self.first..) {
            if number >= subscriber.since && message.except != Some(socket) {
                own.extend_from_slice(form(place));
            }
        }
        if own.is_empty() { Frames::None } else { Frames::Some(own.into()) }
    }
}

/// What a subscriber gets of a batch.
enum Frames<'b> {
    /// All of it, as many others do.
    All(&'b SharedFrames),
    /// What was put together for this one.
    Some(Bytes),
    /// Nothing.
    None,
}

/// A channel that has more waiting than it should.
#[derive(Debug)]
pub struct Backlog {
    channel: Arc<Channel>,
    /// The place among those that wait, and after how many wake-ups it was taken.
    place: Option<(u64, usize)>,
}

impl Backlog {
    /// Whether so much is waiting that nothing more should be taken for the channel, whoever sends it.
    #[must_use]
    pub fn is_deep(&self) -> bool {
        self.channel.state.lock().queue.bytes > DEEP_BYTES
    }

    /// Ready when the channel has caught up enough to be published to again.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let queue = &mut self.channel.state.lock().queue;
        if queue.bytes <= BACKLOG_BYTES {
            return Poll::Ready(());
        }
        match self.place {
            Some((woken, place)) if woken == queue.woken => queue.waiting[place].clone_from(cx.waker()),
            Some(_) | None => {
                self.place = Some((queue.woken, queue.waiting.len()));
                queue.waiting.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}
