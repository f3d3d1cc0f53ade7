//! Requests to all other nodes, their replies, and notices to all nodes. They have nothing to do with groups.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Cluster, Handler};
use crate::cluster::broker::{PendingReply, Topic, Unavailable};
use crate::cluster::envelope::{self, Unreadable};
use crate::cluster::group::NodeId;

/// First byte of a message on [`Topic::Nodes`] or [`Topic::Node`]: its kind.
const REQUEST: u8 = b'?';
const NOTICE: u8 = b'.';
const REPLY: u8 = b'!';

/// A leading digit marks a later format, which this release drops. Later formats keep the id of the sender after it, so
/// that this release can log which node has a later one.
const KNOWN_FORMAT: u8 = b'0';

/// A message outside of groups: kind, sender (16 bytes), number of the request (8 bytes), content.
#[derive(Debug, Eq, PartialEq)]
struct NodeMessage {
    kind: u8,
    from: NodeId,
    number: u64,
    content: Bytes,
}

impl NodeMessage {
    /// Puts the message into an envelope.
    fn encode(kind: u8, from: NodeId, number: u64, content: &[u8]) -> Bytes {
        envelope::message(&[&[kind], &from.0.to_be_bytes(), &number.to_be_bytes(), content])
    }

    /// Reads what was in the envelope.
    fn decode(message: &Bytes) -> Result<Self, Unreadable> {
        let (&kind, rest) = message.split_first().ok_or(Unreadable::Malformed)?;
        let sender = rest.split_first_chunk::<16>();
        let sender = sender.map(|(from, rest)| (NodeId(u128::from_be_bytes(*from)), rest));
        if envelope::is_newer(kind, KNOWN_FORMAT) {
            return Err(Unreadable::NewerFormat { from: sender.map(|(from, _)| from) });
        }
        let (from, rest) = sender.ok_or(Unreadable::Malformed)?;
        let (number, _) = rest.split_first_chunk::<8>().ok_or(Unreadable::Malformed)?;
        match kind {
            REQUEST | NOTICE | REPLY => {
                let content = message.slice(1 + 16 + 8..);
                Ok(Self { kind, from, number: u64::from_be_bytes(*number), content })
            }
            _ => Err(Unreadable::Malformed),
        }
    }
}

impl Cluster {
    /// Sends a request to all other nodes and collects their replies, until all have replied or the timeout is over.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn request_all(&self, request: &[u8]) -> Result<Vec<Bytes>, Unavailable> {
        let (node, lease) = (self.node(), self.0.timing.lease);
        // The nodes that are alive now, not at the last heartbeat.
        let leases = self.0.coordinator.renew_lease(node, false, lease).await?.map_err(|_| Unavailable)?;
        let mut missing: HashSet<_> = leases.alive.into_iter().filter(|&other| other != node).collect();
        let mut replies = Vec::with_capacity(missing.len());
        if missing.is_empty() {
            return Ok(replies);
        }
        let number = self.0.next_request.fetch_add(1, Ordering::Relaxed);
        let (sender, mut incoming) = mpsc::unbounded_channel();
        let _pending = PendingRequest::new(self, number, sender);
        let message = NodeMessage::encode(REQUEST, node, number, request);
        self.0.broker.publish(vec![(Topic::Nodes, message)]).await?;
        let collect = async {
            while !missing.is_empty() {
                let Some((other, reply)) = incoming.recv().await else { break };
                if missing.remove(&other) {
                    replies.push(reply);
                }
            }
        };
        // A node that does not reply in time is left out of the result.
        let _ = timeout(self.0.timing.reply_timeout, collect).await;
        Ok(replies)
    }

    /// Sends a notice to all nodes, this one among them. It arrives at [`Handler::request`], whose reply is dropped.
    pub fn notify_all(&self, notice: &[u8]) -> PendingReply<()> {
        if !self.is_ready() {
            return Box::pin(std::future::ready(Err(Unavailable)));
        }
        self.0.broker.publish(vec![(Topic::Nodes, NodeMessage::encode(NOTICE, self.node(), 0, notice))])
    }

    /// Handles a message outside of groups.
    pub(super) fn receive_node_message(
        &self,
        handler: &dyn Handler,
        message: &Bytes,
    ) -> Result<(), Unreadable> {
        let NodeMessage { kind, from, number, content } = NodeMessage::decode(message)?;
        match kind {
            REPLY => {
                // A reply after the timeout has no request any more.
                if let Some(request) = self.0.pending_requests.lock().get(&number) {
                    let _ = request.send((from, content));
                }
            }
            NOTICE => drop(handler.request(content)),
            // The node's own request.
            _ if from == self.node() => {}
            _ => {
                let (reply, cluster) = (handler.request(content), self.clone());
                self.0.runtime.spawn(async move {
                    let message = NodeMessage::encode(REPLY, cluster.node(), number, &reply.await);
                    let _ = cluster.0.broker.publish(vec![(Topic::Node(from), message)]).await;
                });
            }
        }
        Ok(())
    }
}

/// A request that waits for replies, until it is dropped.
struct PendingRequest<'a> {
    cluster: &'a Cluster,
    number: u64,
}

impl<'a> PendingRequest<'a> {
    fn new(cluster: &'a Cluster, number: u64, replies: mpsc::UnboundedSender<(NodeId, Bytes)>) -> Self {
        cluster.0.pending_requests.lock().insert(number, replies);
        Self { cluster, number }
    }
}

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        self.cluster.0.pending_requests.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::envelope::Envelope;

    /// What is in an envelope.
    fn content_of(enclosed: &Bytes) -> Bytes {
        match envelope::open(None, enclosed) {
            Ok(Envelope::Message(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_message_between_nodes_that_is_cut_short_or_of_no_known_kind_is_malformed() {
        let message = content_of(&NodeMessage::encode(REQUEST, NodeId(7), 258, b"s"));
        assert_eq!(message, b"?\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\x01\x02s"[..]);
        for len in 0..message.len() {
            let decoded = NodeMessage::decode(&message.slice(..len));
            assert_eq!(decoded == Err(Unreadable::Malformed), len < 25, "{len}: {decoded:?}");
        }
        for kind in [b'x', b'0', 0, 0xff] {
            let message = content_of(&NodeMessage::encode(kind, NodeId(7), 1, b"s"));
            assert_eq!(NodeMessage::decode(&message), Err(Unreadable::Malformed), "{kind}");
        }
    }

    #[test]
    fn the_sender_of_a_later_version_is_known_if_it_is_there() {
        for version in b'1'..=b'9' {
            let message = content_of(&NodeMessage::encode(version, NodeId(7), 1, b""));
            for len in 1..=message.len() {
                let from = (len >= 17).then_some(NodeId(7));
                let decoded = NodeMessage::decode(&message.slice(..len));
                assert_eq!(decoded, Err(Unreadable::NewerFormat { from }), "{version}: {len}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_message_between_nodes_is_decoded_as_it_was_encoded(
            kind in prop::sample::select(&[REQUEST, NOTICE, REPLY][..]),
            from: u128,
            number: u64,
            content: Vec<u8>,
        ) {
            let message = NodeMessage { kind, from: NodeId(from), number, content: content.into() };
            let encoded = NodeMessage::encode(kind, message.from, number, &message.content);
            prop_assert_eq!(NodeMessage::decode(&content_of(&encoded)), Ok(message));
        }
    }
}
