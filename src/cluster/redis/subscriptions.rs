//! The subscriptions of one connection, and the messages that arrive on it, in their order.

use std::collections::HashMap;

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::{mpsc, watch};

use super::error::ConnectionError;
use crate::cluster::broker::{Incoming, IncomingSender, Topic};

/// Bytes that may be queued in each direction. With more, the node reconnects instead of using more memory.
pub(super) const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// See the module's documentation. A new connection starts without subscriptions.
#[derive(Debug)]
pub(super) struct Subscriptions {
    server: String,
    incoming: IncomingSender,
    errors: mpsc::UnboundedSender<ConnectionError>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    topics: HashMap<Vec<u8>, Subscription>,
}

#[derive(Debug)]
struct Subscription {
    destination: Destination,
    /// `false`: only the server's confirmation of the unsubscribe is missing.
    is_active: bool,
    /// Unsubscribes that the server has not confirmed yet.
    pending_unsubscribes: u32,
}

/// Where messages of a topic go.
#[derive(Debug)]
pub(super) enum Destination {
    /// The node.
    Node(Topic),
    /// To the probe: the last number that arrived.
    Probe(watch::Sender<u64>),
}

impl Subscriptions {
    pub(super) fn new(
        server: String,
        incoming: IncomingSender,
        errors: mpsc::UnboundedSender<ConnectionError>,
    ) -> Self {
        Self { server, incoming, errors, state: Mutex::default() }
    }

    /// Messages on the topic of this name go to `destination` from now on.
    pub(super) fn add(&self, name: &str, destination: Destination) {
        let mut state = self.state.lock();
        let pending_unsubscribes =
            state.topics.get(name.as_bytes()).map_or(0, |subscription| subscription.pending_unsubscribes);
        state.topics.insert(name.into(), Subscription { destination, is_active: true, pending_unsubscribes });
    }

    /// Messages on the topic are dropped from now on; returns whether the server has to be asked to unsubscribe.
    pub(super) fn remove(&self, name: &str) -> bool {
        let mut state = self.state.lock();
        let Some(subscription) =
            state.topics.get_mut(name.as_bytes()).filter(|subscription| subscription.is_active)
        else {
            return false;
        };
        subscription.is_active = false;
        subscription.pending_unsubscribes += 1;
        true
    }

    /// Drops all messages from now on.
    pub(super) fn close(&self) {
        *self.state.lock() = State { is_closed: true, topics: HashMap::new() };
    }

    /// Handles a push message of the server.
    pub(super) fn receive(&self, push: PushInfo) {
        let PushInfo { kind, data } = push;
        let mut data = data.into_iter();
        let (Some(Value::BulkString(name)), payload) = (data.next(), data.next()) else { return };
        match (kind, payload) {
            (PushKind::Message | PushKind::SMessage, Some(Value::BulkString(message))) => {
                self.message(&name, message);
            }
            (PushKind::Unsubscribe | PushKind::SUnsubscribe, _) => self.unsubscribed(&name),
            _ => {}
        }
    }

    fn message(&self, name: &[u8], message: Vec<u8>) {
        let mut state = self.state.lock();
        if state.is_closed {
            return;
        }
        match state.topics.get(name) {
            Some(Subscription { destination: Destination::Node(topic), is_active: true, .. }) => {
                // Under the lock: nothing is queued behind the disconnect that follows `close`.
                let queued = self.incoming.push(Incoming::Message(topic.clone(), message.into()));
                if queued > QUEUED_BYTES_MAX {
                    state.is_closed = true;
                    let _ = self.errors.send(ConnectionError::QueueFull(QUEUED_BYTES_MAX));
                }
            }
            Some(Subscription { destination: Destination::Probe(arrived), .. }) => {
                if let Some(number) =
                    std::str::from_utf8(&message).ok().and_then(|digits| digits.parse().ok())
                {
                    arrived.send_replace(number);
                }
            }
            Some(_) | None => {}
        }
    }

    /// The server has ended a subscription: because it was asked to, or because a Redis Cluster has moved the slot.
    fn unsubscribed(&self, name: &[u8]) {
        let mut state = self.state.lock();
        let Some(subscription) = state.topics.get_mut(name) else { return };
        let Some(pending_unsubscribes) = subscription.pending_unsubscribes.checked_sub(1) else {
            let _ = self.errors.send(ConnectionError::SlotMoved(self.server.clone()));
            return;
        };
        subscription.pending_unsubscribes = pending_unsubscribes;
        if pending_unsubscribes == 0 && !subscription.is_active {
            state.topics.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::cluster::broker::{IncomingReceiver, incoming_queue};

    fn subscriptions() -> (Subscriptions, IncomingReceiver, mpsc::UnboundedReceiver<ConnectionError>) {
        let (incoming, receiver) = incoming_queue();
        let (report, errors) = mpsc::unbounded_channel();
        (Subscriptions::new("server".to_owned(), incoming, report), receiver, errors)
    }

    fn push(kind: PushKind, name: &str, message: &[u8]) -> PushInfo {
        let data = vec![Value::BulkString(name.into()), Value::BulkString(message.to_vec())];
        PushInfo { kind, data }
    }

    #[tokio::test]
    async fn only_messages_of_active_subscriptions_arrive() {
        let (subscriptions, mut receiver, mut errors) = subscriptions();
        let topic = Topic::Group(Arc::from("g"));
        subscriptions.add("a", Destination::Node(topic.clone()));
        subscriptions.receive(push(PushKind::Message, "b", b"0"));
        subscriptions.receive(push(PushKind::SMessage, "a", b"1"));
        assert!(subscriptions.remove("a") && !subscriptions.remove("a") && !subscriptions.remove("b"));
        subscriptions.receive(push(PushKind::SMessage, "a", b"2"));
        // Subscribed again before the server has confirmed the unsubscribe.
        subscriptions.add("a", Destination::Node(topic.clone()));
        subscriptions.receive(push(PushKind::SUnsubscribe, "a", b""));
        subscriptions.receive(push(PushKind::SMessage, "a", b"3"));
        assert!(errors.try_recv().is_err());
        subscriptions.close();
        subscriptions.receive(push(PushKind::SMessage, "a", b"4"));
        for message in ["1", "3"] {
            let message = Incoming::Message(topic.clone(), Bytes::from(message));
            assert_eq!(receiver.recv().await, Some(message));
        }
        drop(subscriptions);
        assert_eq!(receiver.recv().await, None);
    }

    #[test]
    fn a_subscription_that_the_server_ends_means_a_moved_slot() {
        let (subscriptions, _arrivals, mut errors) = subscriptions();
        subscriptions.add("a", Destination::Node(Topic::Nodes));
        subscriptions.receive(push(PushKind::SUnsubscribe, "a", b""));
        assert!(matches!(errors.try_recv(), Ok(ConnectionError::SlotMoved(_))));
    }

    #[tokio::test]
    async fn a_node_that_does_not_read_ends_the_connection_when_the_queue_is_full() {
        let (subscriptions, mut receiver, mut errors) = subscriptions();
        subscriptions.add("a", Destination::Node(Topic::Nodes));
        let message = vec![0; 1024 * 1024];
        for _ in 0..100 {
            subscriptions.receive(push(PushKind::Message, "a", &message));
        }
        assert!(matches!(errors.try_recv(), Ok(ConnectionError::QueueFull(_))));
        drop(subscriptions);
        let mut bytes = 0;
        while let Some(incoming) = receiver.recv().await {
            if let Incoming::Message(_, message) = incoming {
                bytes += message.len();
            }
        }
        assert!(bytes <= QUEUED_BYTES_MAX + message.len(), "{bytes}");
    }
}
