//! How many connections an app has, where that is limited for a whole cluster: a node takes places from the broker, as
//! many as it has connections, and gives them back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use crate::apps::{App, AppId, Apps, ConnectionPermit};
use crate::cluster::driver::Lost;
use crate::cluster::node::Cluster;
use crate::cluster::truth::Group;

/// The shares of this node, by app.
#[derive(Debug, Default)]
pub(super) struct Quotas(Mutex<HashMap<AppId, Arc<Share>>>);

#[derive(Debug, Default)]
struct Share {
    /// Connections that want a place: those that wait for the same answer are asked for together.
    waiting: AtomicU64,
    /// Places that this node has. Locked while more are asked for.
    places: AsyncMutex<u64>,
}

impl Quotas {
    fn share(&self, app: &AppId) -> Arc<Share> {
        Arc::clone(self.0.lock().entry(app.clone()).or_default())
    }

    /// Takes a place of the app's, of all nodes; `None` if it has none left. While the broker is lost, the limit is that
    /// of this node alone: whoever comes is not sent away because it is not known who else is there.
    pub(super) async fn take(&self, cluster: &Cluster, app: &Arc<App>) -> Option<ConnectionPermit> {
        let Some(max) = app.limits.connections_max else { return ConnectionPermit::acquire(app) };
        let share = self.share(&app.id);
        let waiting = Waiting::new(&share);
        let mut places = share.places.lock().await;
        let has = u64::from(app.connections.now());
        if has >= *places {
            let wanted = has + share.waiting.load(Ordering::SeqCst);
            *places = match reserve(cluster, app, wanted, max).await {
                Ok(places) => places,
                Err(Lost) => max.into(),
            };
        }
        drop(waiting);
        if has < *places { ConnectionPermit::acquire(app) } else { None }
    }

    /// Tells the broker of places that are not needed any more: within a second they can be taken on another node.
    pub(super) async fn give_back(&self, cluster: &Cluster, apps: &Apps) {
        let shares: Vec<_> =
            self.0.lock().iter().map(|(id, share)| (id.clone(), Arc::clone(share))).collect();
        for (id, share) in shares {
            let Some(app) = apps.by_id(&id.0) else { continue };
            let mut places = share.places.lock().await;
            let has = u64::from(app.connections.now());
            if has < *places && share.waiting.load(Ordering::SeqCst) == 0 {
                settle(cluster, app, has, &mut places).await;
            }
        }
    }

    /// Tells a broker that may have forgotten everything what this node has.
    pub(super) async fn tell(&self, cluster: &Cluster, apps: &Apps) {
        for app in apps.iter().filter(|app| app.limits.connections_max.is_some()) {
            let share = self.share(&app.id);
            let mut places = share.places.lock().await;
            settle(cluster, app, app.connections.now().into(), &mut places).await;
        }
    }
}

/// One that waits for a place, however that ends.
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

async fn settle(cluster: &Cluster, app: &App, wanted: u64, places: &mut u64) {
    let max = app.limits.connections_max.unwrap_or(u32::MAX);
    if let Ok(now) = reserve(cluster, app, wanted, max).await {
        *places = now;
    }
}

async fn reserve(cluster: &Cluster, app: &App, wanted: u64, max: u32) -> Result<u64, Lost> {
    if !cluster.is_ready() {
        return Err(Lost);
    }
    let what = Group::from(format!("q/{}", app.id));
    cluster.driver().reserve(what, cluster.node(), wanted, max.into()).await
}
