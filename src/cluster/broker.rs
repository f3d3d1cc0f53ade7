//! What a node needs of the broker that passes messages between nodes: publish and subscribe.
//!
//! The order in which methods are *called* counts, not the order in which their futures are polled: messages on one
//! topic arrive on every node in the order in which they were published.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::group::{Group, NodeId};

/// The broker or the coordinator did not reply. Whether the request was carried out is not known.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the cluster's broker does not answer")]
pub struct Unavailable;

/// A reply that has yet to arrive.
pub type PendingReply<T> = Pin<Box<dyn Future<Output = Result<T, Unavailable>> + Send>>;

/// Passes messages between nodes. Methods return at once; they are called from many threads.
pub trait Broker: Debug + Send + Sync {
    /// Publishes messages, those of one topic in this order. Completes when the broker has all of them.
    fn publish(&self, messages: Vec<(Topic, Bytes)>) -> PendingReply<()>;

    /// Subscribes this node to a topic. Completes when everything published from then on will arrive.
    fn subscribe(&self, topic: Topic) -> PendingReply<()>;

    /// Ends the subscription. Messages that were published before may still arrive.
    fn unsubscribe(&self, topic: Topic);
}

/// Where a message is published, which decides the nodes that receive it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Topic {
    /// Nodes that are subscribed to the group.
    Group(Group),
    /// All nodes.
    Nodes,
    /// One node.
    Node(NodeId),
}

/// What an engine delivers to its node, in one queue.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Incoming {
    /// A message on a topic that the node is subscribed to, in a [`super::envelope`].
    Message(Topic, Bytes),
    /// Messages may have been missed. All subscriptions have ended, pending requests get no reply, and new requests
    /// fail at once.
    Disconnected,
    /// Requests get replies (again).
    Connected,
}

impl Incoming {
    /// The memory that it uses in the queue.
    fn bytes(&self) -> usize {
        let message = match self {
            Self::Message(_, bytes) => bytes.len(),
            Self::Disconnected | Self::Connected => 0,
        };
        size_of::<Self>() + message
    }
}

/// The queue from an engine to its node. It has no bound of its own: an engine disconnects when too many bytes wait.
#[must_use]
pub fn incoming_queue() -> (IncomingSender, IncomingReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let queued_bytes = Arc::new(AtomicUsize::new(0));
    let sender = IncomingSender { sender, queued_bytes: Arc::clone(&queued_bytes) };
    (sender, IncomingReceiver { receiver, queued_bytes })
}

/// The end of the queue that an engine holds.
#[derive(Clone, Debug)]
pub struct IncomingSender {
    sender: mpsc::UnboundedSender<Incoming>,
    queued_bytes: Arc<AtomicUsize>,
}

impl IncomingSender {
    /// Appends to the queue; returns the bytes queued then. Dropped if the receiver is gone.
    pub fn push(&self, incoming: Incoming) -> usize {
        let bytes = incoming.bytes();
        let queued = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let _ = self.sender.send(incoming);
        queued
    }
}

/// The end of the queue that a node holds.
#[derive(Debug)]
pub struct IncomingReceiver {
    receiver: mpsc::UnboundedReceiver<Incoming>,
    queued_bytes: Arc<AtomicUsize>,
}

impl IncomingReceiver {
    /// The next one; `None`: the engine is gone. Cancel safe.
    pub async fn recv(&mut self) -> Option<Incoming> {
        let incoming = self.receiver.recv().await?;
        self.queued_bytes.fetch_sub(incoming.bytes(), Ordering::Relaxed);
        Some(incoming)
    }
}
