//! Connection limits of apps in the whole cluster: a node reserves permits from the coordinator, as many as it has
//! connections, and releases them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use crate::apps::{App, AppId, Apps, ConnectionPermit};
use crate::cluster::broker::Unavailable;
use crate::cluster::group::Group;
use crate::cluster::node::Cluster;

/// The shares of this node, by app.
#[derive(Debug, Default)]
pub(super) struct Quotas(Mutex<HashMap<AppId, Arc<Share>>>);

#[derive(Debug, Default)]
struct Share {
    /// Connections that wait for a permit: permits for all of them are reserved with one request.
    waiting: AtomicU64,
    /// Permits that this node has. Locked while more are being reserved.
    permits: AsyncMutex<u64>,
}

impl Quotas {
    fn share(&self, app: &AppId) -> Arc<Share> {
        Arc::clone(self.0.lock().entry(app.clone()).or_default())
    }

    /// Acquires a permit of the app for one connection; `None`: the limit for all nodes is reached. While the
    /// coordinator is unavailable, the limit applies to this node alone, so that connections are not rejected for a
    /// count that is unknown.
    pub(super) async fn acquire(&self, cluster: &Cluster, app: &Arc<App>) -> Option<ConnectionPermit> {
        let Some(max) = app.limits.connections_max else { return ConnectionPermit::acquire(app) };
        let share = self.share(&app.id);
        let waiting = Waiting::new(&share);
        let mut permits = share.permits.lock().await;
        let connections = u64::from(app.state.connections.now());
        if connections >= *permits {
            let wanted = connections + share.waiting.load(Ordering::SeqCst);
            *permits = match reserve(cluster, &app.id, wanted, max).await {
                Ok(permits) => permits,
                Err(Unavailable) => max.into(),
            };
        }
        drop(waiting);
        if connections < *permits { ConnectionPermit::acquire(app) } else { None }
    }

    /// Releases permits that this node does not use. Called once a second, so that other nodes can have them then.
    pub(super) async fn release_unused(&self, cluster: &Cluster, apps: &Apps) {
        let shares: Vec<_> =
            self.0.lock().iter().map(|(id, share)| (id.clone(), Arc::clone(share))).collect();
        for (id, share) in shares {
            let Some(app) = apps.by_id_or_removed(&id.0) else {
                // If the coordinator is unavailable now, the permits end with the node's lease.
                let _ = reserve(cluster, &id, 0, u32::MAX).await;
                self.0.lock().remove(&id);
                continue;
            };
            let mut permits = share.permits.lock().await;
            let connections = u64::from(app.state.connections.now());
            if connections < *permits && share.waiting.load(Ordering::SeqCst) == 0 {
                resize(cluster, &app, connections, &mut permits).await;
            }
        }
    }

    /// Registers this node's connections with a coordinator that may have lost its state.
    pub(super) async fn register(&self, cluster: &Cluster, apps: &Apps) {
        for app in apps.all().into_iter().filter(|app| app.limits.connections_max.is_some()) {
            let share = self.share(&app.id);
            let mut permits = share.permits.lock().await;
            resize(cluster, &app, app.state.connections.now().into(), &mut permits).await;
        }
    }
}

/// Counts one waiting connection until it is dropped.
struct Waiting<'a>(&'a Share);

impl<'a> Waiting<'a> {
    fn new(share: &'a Share) -> Self {
        share.waiting.fetch_add(1, Ordering::SeqCst);
        Self(share)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Sets the share to `wanted` permits, if the coordinator is available.
async fn resize(cluster: &Cluster, app: &App, wanted: u64, permits: &mut u64) {
    let max = app.limits.connections_max.unwrap_or(u32::MAX);
    if let Ok(reserved) = reserve(cluster, &app.id, wanted, max).await {
        *permits = reserved;
    }
}

async fn reserve(cluster: &Cluster, app: &AppId, wanted: u64, max: u32) -> Result<u64, Unavailable> {
    if !cluster.is_ready() {
        return Err(Unavailable);
    }
    let quota = Group::from(format!("q/{app}"));
    cluster.coordinator().reserve(quota, cluster.node(), wanted, max.into()).await
}
