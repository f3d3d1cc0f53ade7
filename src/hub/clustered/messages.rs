//! Events on the topics of groups: how they are published and delivered. `codec` has their format.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::task::yield_now;

use super::codec::{EventMessage, GroupMessage};
use super::{Clustered, Shared, cache_limits, channel_group, group_of, key};
use crate::apps::App;
use crate::cluster::broker::{PendingReply, Unavailable};
use crate::cluster::coordinator::CachedMessage;
use crate::cluster::envelope::Unreadable;
use crate::cluster::group::{Group, Version};
use crate::cluster::node::Capacity;
use crate::protocol::message::{Event, Source};
use crate::protocol::wire::{Frame, pusher};
use crate::protocol::{ChannelName, SocketId, UserId};
use crate::registry::Backlog;

/// Client events in flight to the broker, all together. Further ones are rejected as if the broker were unavailable.
const IN_FLIGHT_BYTES_MAX: usize = 16 * 1024 * 1024;

fn encode_event(event: &Event<'_>) -> Vec<u8> {
    let frame = pusher::encode(&event.message());
    let message = EventMessage { position: None, except: event.except, json: frame.text() };
    GroupMessage::Event(message).encode()
}

/// The socket that an event skips, and the frame for the others.
fn delivery(event: &EventMessage<'_>) -> (Option<SocketId>, Frame) {
    (event.except, Frame::from_text(event.json))
}

impl Clustered {
    /// See [`crate::hub::Hub::publish`].
    pub(in crate::hub) async fn publish<'e>(
        &self,
        hub: &Shared,
        app: &App,
        events: impl Iterator<Item = Event<'e>>,
    ) -> Result<(), Unavailable> {
        let (mut messages, mut cached, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for event in events {
            hub.observe_publish(app, &event);
            let group = group_of(app, event.channel);
            let message = encode_event(&event).into();
            if matches!(event.source, Source::App) && event.channel.is_cached() {
                cached.push(self.cluster.publish_cached(group, message, app.limits.cache_ttl));
            } else {
                messages.push((group, message));
            }
            keys.push(key(app, event.channel));
        }
        let published = if messages.is_empty() { None } else { Some(self.cluster.publish(messages)) };
        for published in published.into_iter().chain(cached) {
            published.await?;
        }
        // A publisher that is faster than this node's deliveries waits, as on a node that is alone.
        for key in keys {
            if let Some(mut backlog) = hub.registry.backlog(&key) {
                std::future::poll_fn(|cx| backlog.poll_ready(cx)).await;
            }
        }
        Ok(())
    }

    /// See [`crate::hub::Hub::publish_from_client`]; returns whether it was published. A connection that is not
    /// subscribed, because its join is pending or was refused, cannot publish.
    pub(in crate::hub) fn publish_from_client(
        &self,
        hub: &Shared,
        app: &App,
        event: &Event<'_>,
    ) -> Result<bool, Unavailable> {
        if !self.cluster.is_ready() {
            return Err(Unavailable);
        }
        let key = key(app, event.channel);
        if event.except.is_some_and(|socket| !hub.registry.is_subscribed(&key, socket)) {
            return Ok(false);
        }
        hub.observe_publish(app, event);
        let message = encode_event(event);
        let bytes = message.len();
        let in_flight = Arc::clone(&self.in_flight);
        if in_flight.fetch_add(bytes, Ordering::Relaxed) + bytes > IN_FLIGHT_BYTES_MAX {
            in_flight.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Unavailable);
        }
        let group = channel_group(&app.id.0, event.channel.as_str());
        let published = self.cluster.publish([(group, message.into())]);
        hub.runtime.spawn(async move {
            let _ = published.await;
            in_flight.fetch_sub(bytes, Ordering::Relaxed);
        });
        Ok(true)
    }

    /// Closes the connections of a user on all nodes, this one among them.
    pub(in crate::hub) fn terminate_user(&self, app: &App, user: &UserId) -> PendingReply<()> {
        // To all nodes: a node whose sign-in is pending may not be subscribed to the user's group yet.
        self.cluster.notify_all(format!("t{}/{user}", app.id).as_bytes())
    }

    /// Handles a message that arrived on the topic of a channel's group.
    pub(super) fn deliver(
        &self,
        hub: &Arc<Shared>,
        group: &Group,
        (app, channel): (&Arc<App>, ChannelName),
        version: Option<Version>,
        message: &Bytes,
    ) -> Option<Capacity> {
        let (except, frame) = match GroupMessage::decode(message) {
            Ok(GroupMessage::Event(event)) => delivery(&event),
            Ok(GroupMessage::Count(count)) => {
                self.receive_count(hub, group, (app, &channel), count);
                return None;
            }
            Err(why) => {
                self.cluster.report_dropped(why);
                return None;
            }
        };
        let cache = cache_limits(app, app.limits.cache_ttl);
        let key = key(app, &channel);
        let published =
            hub.registry.deliver(&key, frame, except, version.map(|version| (cache, version)), hub.now());
        if let Some(limit) = published.limit {
            hub.report_not_cached(limit, app, &key.channel);
        }
        hub.deliver(published.drive);
        published
            .backlog
            .filter(Backlog::exceeds_hard_limit)
            .map(|mut backlog| Box::pin(std::future::poll_fn(move |cx| backlog.poll_ready(cx))) as Capacity)
    }

    /// Reads a cached event: the socket that it skips, and the frame for the others. `None`: it cannot be read.
    pub(super) fn read_cached(&self, message: &Bytes) -> Option<(Option<SocketId>, Frame)> {
        let why = match GroupMessage::decode(message) {
            Ok(GroupMessage::Event(event)) => return Some(delivery(&event)),
            // Counts are not cached.
            Ok(GroupMessage::Count(_)) => Unreadable::Malformed,
            Err(why) => why,
        };
        self.cluster.report_dropped(why);
        None
    }

    /// Delivers events that were cached while the broker was unavailable to the subscribers of cache channels.
    pub(super) async fn deliver_missed_cached(&self, hub: &Shared) {
        let mut caches = hub.registry.subscribed_caches();
        while let Some(chunk) = caches.next_chunk() {
            for key in chunk {
                let Some(app) = self.apps.by_id(&key.app) else { continue };
                let cached = self.cluster.cached(channel_group(&key.app, key.channel.as_str())).await;
                // If the broker is disconnected again, this starts again when it is back.
                let Ok(cached) = cached else { return };
                if let Some(CachedMessage { version, message, ttl }) = cached
                    && let Some((except, frame)) = self.read_cached(&message)
                {
                    let cached = (cache_limits(&app, ttl), version);
                    hub.drive(hub.registry.deliver(&key, frame, except, Some(cached), hub.now()).drive);
                }
            }
            yield_now().await;
        }
    }
}
