//! Builds the rooms, binds, spawns, drains.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::apps::Apps;
use crate::{http, pusher};

/// How this node serves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The WebSocket door.
    pub pusher: pusher::Options,
    /// The HTTP API.
    pub http: http::Options,
    /// A new connection that has not sent a whole request head by then is dropped. Default 10 s.
    pub handshake_timeout: Duration,
    /// On shutdown, the closing of WebSockets is spread over so much time. Default 10 s.
    pub drain: Duration,
    /// What has not ended so long after the shutdown began is cut off. Default 20 s; never less than `drain`.
    pub shutdown_deadline: Duration,
    /// Whether every connection, subscription and message is logged, payloads included.
    pub debug: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pusher: pusher::Options::default(),
            http: http::Options::default(),
            handshake_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(10),
            shutdown_deadline: Duration::from_secs(20),
            debug: false,
        }
    }
}

/// How a running server is told to stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shutdown {
    /// Drain: close the sockets over the window.
    Graceful,
    /// Close everything at once.
    Now,
}

/// Listens on `address` (port 0: any free one) with the socket options that delivery relies on.
///
/// # Errors
/// What the system says, such as an address in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let _ = address;
    Err(io::Error::other("in the making"))
}

/// Serves `apps` on `listener` until `shutdown` says stop. A later [`Shutdown::Now`] ends a drain at once.
///
/// # Errors
/// A background task that ended early.
pub async fn run(
    listener: TcpListener,
    apps: Apps,
    options: Options,
    shutdown: tokio::sync::mpsc::Receiver<Shutdown>,
) -> io::Result<()> {
    let _ = (listener, apps, options, shutdown);
    Ok(())
}
