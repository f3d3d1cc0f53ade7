//! Requests to all other nodes, their replies, and notices to all nodes. They have nothing to do with groups.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Cluster, Handler};
use crate::cluster::broker::{PendingReply, Topic, Unavailable};
use crate::cluster::envelope;
use crate::cluster::group::NodeId;

/// First byte of a message on [`Topic::Nodes`] or [`Topic::Node`].
const REQUEST: u8 = b'?';
const NOTICE: u8 = b'.';
const REPLY: u8 = b'!';

/// A message outside of groups: kind, sender, number of the request, content.
fn encode(kind: u8, from: NodeId, number: u64, content: &[u8]) -> Bytes {
    envelope::message(&[&[kind], &from.0.to_be_bytes(), &number.to_be_bytes(), content])
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
        let message = encode(REQUEST, node, number, request);
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
        self.0.broker.publish(vec![(Topic::Nodes, encode(NOTICE, self.node(), 0, notice))])
    }

    /// Handles a message outside of groups; `None`: it is malformed.
    pub(super) fn receive_node_message(&self, handler: &dyn Handler, message: &Bytes) -> Option<()> {
        let (&[kind], rest) = message.split_first_chunk::<1>()?;
        let (from, rest) = rest.split_first_chunk::<16>()?;
        let (number, _) = rest.split_first_chunk::<8>()?;
        let from = NodeId(u128::from_be_bytes(*from));
        let content = message.slice(1 + 16 + 8..);
        match kind {
            REQUEST if from == self.node() => Some(()),
            REQUEST => {
                let (reply, number, cluster) =
                    (handler.request(content), u64::from_be_bytes(*number), self.clone());
                self.0.runtime.spawn(async move {
                    let message = encode(REPLY, cluster.node(), number, &reply.await);
                    let _ = cluster.0.broker.publish(vec![(Topic::Node(from), message)]).await;
                });
                Some(())
            }
            NOTICE => {
                drop(handler.request(content));
                Some(())
            }
            REPLY => {
                let number = u64::from_be_bytes(*number);
                // A reply after the timeout has no request any more.
                if let Some(request) = self.0.pending_requests.lock().get(&number) {
                    let _ = request.send((from, content));
                }
                Some(())
            }
            _ => None,
        }
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
