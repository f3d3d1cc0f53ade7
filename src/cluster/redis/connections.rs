//! Open connections to all servers, and the tasks that drive them.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::error::ConnectionError;
use super::keys::HashTag;
use super::pipeline::RequestQueue;
use super::subscriptions::Subscriptions;
use crate::cluster::broker::Topic;

/// Connections to all servers, and the topology when they were made. A change of the topology is an error, which leads
/// to new connections.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) servers: Vec<ServerConnection>,
    /// The server of each hash tag, by [`HashTag::index`].
    pub(super) servers_of: Vec<usize>,
    /// Whether topics of groups have slots.
    pub(super) is_sharded: bool,
}

/// The two connections to one server.
#[derive(Debug)]
pub(super) struct ServerConnection {
    pub(super) commands: RequestQueue,
    /// The connection that receives messages: for commands that subscribe and unsubscribe.
    pub(super) subscription_commands: RequestQueue,
    pub(super) subscriptions: Arc<Subscriptions>,
}

impl Connections {
    /// The server that has the slot of `tag`.
    pub(super) fn server(&self, tag: HashTag) -> &ServerConnection {
        &self.servers[self.server_index(tag)]
    }

    pub(super) fn server_index(&self, tag: HashTag) -> usize {
        self.servers_of[tag.index()]
    }

    pub(super) fn servers(&self) -> &[ServerConnection] {
        &self.servers
    }

    /// The commands for topics of groups.
    pub(super) fn group_commands(&self) -> PubSubCommands {
        PubSubCommands::of_groups(self.is_sharded)
    }

    pub(super) fn commands(&self, topic: &Topic) -> PubSubCommands {
        match topic {
            Topic::Group(_) => self.group_commands(),
            Topic::Nodes | Topic::Node(_) => PubSubCommands::PLAIN,
        }
    }

    /// No message arrives from now on.
    pub(super) fn close(&self) {
        self.servers.iter().for_each(|server| server.subscriptions.close());
    }
}

/// Names of commands.
#[derive(Clone, Copy, Debug)]
pub(super) struct PubSubCommands {
    pub(super) publish: &'static str,
    pub(super) subscribe: &'static str,
    pub(super) unsubscribe: &'static str,
}

impl PubSubCommands {
    pub(super) const PLAIN: Self =
        Self { publish: "PUBLISH", subscribe: "SUBSCRIBE", unsubscribe: "UNSUBSCRIBE" };
    const SHARDED: Self = Self { publish: "SPUBLISH", subscribe: "SSUBSCRIBE", unsubscribe: "SUNSUBSCRIBE" };

    pub(super) fn of_groups(is_sharded: bool) -> Self {
        if is_sharded { Self::SHARDED } else { Self::PLAIN }
    }
}

/// The tasks that drive connections. Each ends with an error only; when they are dropped, the connections end.
#[derive(Debug)]
pub(super) struct ConnectionTasks {
    pub(super) tasks: JoinSet<ConnectionError>,
    pub(super) errors: mpsc::UnboundedReceiver<ConnectionError>,
}

impl ConnectionTasks {
    /// The first error.
    pub(super) async fn error(&mut self) -> ConnectionError {
        tokio::select! {
            Some(error) = self.errors.recv() => error,
            Some(ended) = self.tasks.join_next() => {
                // A panic of a task ends the connections, too.
                ended.unwrap_or_else(|_| ConnectionError::Closed("a task".to_owned()))
            }
            else => ConnectionError::Closed("a task".to_owned()),
        }
    }

    /// Ends the connections: pending requests get no reply.
    pub(super) async fn shutdown(mut self) {
        self.tasks.shutdown().await;
    }
}
