//! The accept loop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::{Listeners, Server, Tls};
use crate::addresses::ConnectionKind;
use crate::limits::Limit;
use crate::rejections::Example;

/// The pause after an accept that failed because the process is out of files: short if connections were evicted,
/// otherwise longer.
const EVICTED_PAUSE: Duration = Duration::from_millis(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Unauthenticated connections that are evicted at once when the process is out of files.
const EVICTED_AT_ONCE: usize = 64;

/// Idle keep-alive connections that are closed at once if none could be evicted.
const CLOSED_AT_ONCE: usize = 8;

impl Server {
    /// Accepts connections until it is dropped.
    pub(super) async fn accept_all(self: &Arc<Self>, listeners: &Listeners) {
        let plain = async {
            match &listeners.plain {
                Some(listener) => self.accept(listener, None).await,
                None => std::future::pending().await,
            }
        };
        let tls = async {
            match &listeners.tls {
                Some((listener, tls)) => self.accept(listener, Some(tls)).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(plain, tls);
    }

    async fn accept(self: &Arc<Self>, listener: &TcpListener, tls: Option<&Tls>) {
        let mut warned: Option<Instant> = None;
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => self.receive(stream, peer, tls.cloned()).await,
                // The client has disconnected already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if warned.is_none_or(|at| at.elapsed() > Duration::from_secs(60)) {
                        warned = Some(Instant::now());
                        warn!(%error, "cannot accept connections; is the limit of open files (ulimit -n) too low?");
                    }
                    let has_freed = self.free_files();
                    sleep(if has_freed { EVICTED_PAUSE } else { ACCEPT_PAUSE }).await;
                }
            }
        }
    }

    /// Serves a new connection in a task of its own, or rejects it if its address is over a limit.
    async fn receive(self: &Arc<Self>, stream: TcpStream, address: SocketAddr, tls: Option<Tls>) {
        let permit = match self.proxy_protocol {
            // The PROXY header will name the client.
            true if self.addresses.is_trusted_proxy(address.ip()) => None,
            true => {
                let example = Example::from(address.ip()).reason("it is not one of server.trusted_proxies");
                return self.hub.reject(Limit::ProxyProtocol, None, example);
            }
            false => match self.addresses.try_acquire(
                address.ip(),
                ConnectionKind::Unauthenticated,
                true,
                self.hub.now(),
            ) {
                Ok(permit) => permit,
                Err(limit) => return self.reject_address(limit, address),
            },
        };
        let (pending, evicted) = self.pending.acquire().await;
        self.count_evicted(evicted);
        pending.hold_address_permit(permit);
        let (server, number) = (Arc::clone(self), pending.number());
        let task = self.tasks.spawn(async move { server.serve(stream, address, tls, pending).await });
        self.pending.set_task(number, task.abort_handle());
    }

    /// Frees files: evicts silent unauthenticated connections, or else closes idle keep-alive connections. Returns
    /// whether it has freed any.
    fn free_files(&self) -> bool {
        let evicted = self.pending.evict(EVICTED_AT_ONCE);
        self.count_evicted(evicted);
        if evicted > 0 {
            return true;
        }
        let connections = self.keep_alive_connections.close_idle(CLOSED_AT_ONCE, self.hub.now());
        if connections > 0 {
            debug!(connections, "idle keep-alive connections closed, because no file is left");
        }
        connections > 0
    }

    /// Counts evicted connections as rejections.
    fn count_evicted(&self, evicted: u64) {
        let example = || Example::default().value(self.pending.permits() as u64);
        (0..evicted).for_each(|_| self.hub.reject(Limit::Unauthenticated, None, example()));
    }
}
