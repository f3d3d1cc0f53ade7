//! Options: the servers, and how to connect to them.

use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

/// How to connect to Redis (6.2 or later) or a compatible server.
#[derive(Clone, Debug)]
pub struct Options {
    /// The servers.
    pub servers: Servers,
    /// TLS to all servers; `None`: plain connections.
    pub tls: Option<TlsOptions>,
    /// The user of Redis' ACL; `None`: the default user.
    pub username: Option<String>,
    /// `None`: no authentication.
    pub password: Option<Secret>,
    /// The number of the database; a Redis Cluster has only 0.
    pub database: u32,
    /// The prefix of all keys and topics, so that several clusters can share a Redis. Default `pusherd`.
    pub prefix: String,
    /// How long to wait for connections and replies. Default 2 s.
    pub timeout: Duration,
}

/// A server on this machine without a password.
impl Default for Options {
    fn default() -> Self {
        Self {
            servers: Servers::Single(Server::default()),
            tls: None,
            username: None,
            password: None,
            database: 0,
            prefix: "pusherd".to_owned(),
            timeout: Duration::from_secs(2),
        }
    }
}

/// A server's address.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Server {
    /// A name or an address; or the path of a Unix socket, if it begins with `/`.
    pub host: String,
    /// Ignored for a Unix socket.
    pub port: u16,
}

/// The same as Laravel's default.
impl Default for Server {
    fn default() -> Self {
        Self { host: "127.0.0.1".to_owned(), port: 6379 }
    }
}

/// How servers are found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Servers {
    /// A single server.
    Single(Server),
    /// The master that sentinels name.
    Sentinels {
        /// Some of the sentinels; they name the others.
        sentinels: Vec<Server>,
        /// The name of the master.
        master: String,
        /// The user at the sentinels themselves.
        username: Option<String>,
        /// The password at the sentinels themselves.
        password: Option<Secret>,
    },
    /// Some of the servers of a Redis Cluster; they name the others.
    Cluster(Vec<Server>),
}

/// How certificates of servers are verified.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TlsOptions {
    /// A PEM file with CA certificates; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Whether any certificate is accepted.
    pub accepts_any: bool,
}
