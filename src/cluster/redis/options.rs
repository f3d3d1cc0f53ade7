//! Where Redis is, and how it is spoken to.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How to reach Redis (6.2 or later), or what speaks as it does.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which servers.
    pub servers: Servers,
    /// TLS to all of them.
    pub tls: Option<TlsOptions>,
    /// The user of Redis 6's access lists; `None`: the default user.
    pub username: Option<String>,
    /// `None`: none is asked for.
    pub password: Option<Password>,
    /// The number of the database; a Redis Cluster has only 0.
    pub database: u32,
    /// What the names of all keys and topics begin with, so that several clusters can share a Redis. Default `pusherd`.
    pub prefix: String,
    /// An answer that takes longer than this is none. Default 2 s.
    pub timeout: Duration,
}

/// A server of this machine that asks for no password.
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
    /// Of no use with a Unix socket.
    pub port: u16,
}

/// Where Redis is if nothing is said, as with Laravel.
impl Default for Server {
    fn default() -> Self {
        Self { host: "127.0.0.1".to_owned(), port: 6379 }
    }
}

/// Which servers there are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Servers {
    /// One.
    Single(Server),
    /// One at a time, which these know.
    Sentinels {
        /// Some of the sentinels; they tell of the others.
        sentinels: Vec<Server>,
        /// What they call the servers that they watch.
        master: String,
        /// As whom to speak to the sentinels themselves.
        username: Option<String>,
        /// The same.
        password: Option<Password>,
    },
    /// Some of the servers of a Redis Cluster; they tell of the others.
    Cluster(Vec<Server>),
}

/// How servers prove who they are.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TlsOptions {
    /// A PEM file with the certificates of authorities; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Whether any certificate will do.
    pub accepts_any: bool,
}

/// A password that no log shows.
#[derive(Clone, Eq, PartialEq)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}
