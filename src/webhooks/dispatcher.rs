//! The apps that have webhooks, from the start over their changes to the shutdown.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::SetOnce;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use super::app::AppWebhooks;
use super::client::Client;
use super::dead_letters::DeadLetterStore;
use super::endpoint::{Endpoint, Shared};
use super::{FLUSH_TIMEOUT, Options};
use crate::apps::{AppId, Apps};
use crate::metrics::Metrics;

#[derive(Debug)]
pub(super) struct Dispatcher {
    options: Options,
    metrics: Arc<Metrics>,
    /// The apps that have webhooks now.
    apps: ArcSwap<HashMap<AppId, Arc<AppWebhooks>>>,
    /// Set after the first receiver was started.
    shared: SetOnce<Arc<Shared>>,
    started: Mutex<Started>,
    /// Cancelled to stop the debounce timers.
    timers: CancellationToken,
    /// Cancelled when a task panics.
    ended: CancellationToken,
}

/// What has been started. Locked while the apps change, so that changes are made one after the other.
#[derive(Debug, Default)]
struct Started {
    /// Receivers of the apps, and those that were removed and still send. Their senders keep them.
    endpoints: Vec<Weak<Endpoint>>,
    /// The server shuts down: apps change no more.
    is_draining: bool,
}

impl Dispatcher {
    pub(super) fn new(options: Options, metrics: &Arc<Metrics>) -> Self {
        Self {
            options,
            metrics: Arc::clone(metrics),
            apps: ArcSwap::default(),
            shared: SetOnce::new(),
            started: Mutex::default(),
            timers: CancellationToken::new(),
            ended: CancellationToken::new(),
        }
    }

    /// See [`super::Webhooks::apply`]. Returns whether receivers were started that use TLS.
    pub(super) fn apply(&self, apps: &Apps) -> io::Result<bool> {
        let mut started = self.started.lock();
        let before = self.apps.load_full();
        let mut with_webhooks = apps.all();
        with_webhooks.retain(|app| !app.webhooks.is_empty());
        if started.is_draining || (with_webhooks.is_empty() && before.is_empty()) {
            return Ok(false);
        }
        // First what can fail.
        let shared = self.shared.get().cloned().map_or_else(|| self.start_shared(), Ok)?;
        let after: HashMap<_, _> = with_webhooks
            .iter()
            .map(|app| {
                let webhooks = match before.get(&app.id) {
                    Some(webhooks) => Arc::clone(webhooks),
                    None => Arc::new(AppWebhooks::new(&shared, self.timers.child_token())?),
                };
                Ok((app.id.clone(), webhooks))
            })
            .collect::<io::Result<_>>()?;
        let mut uses_tls = false;
        started.endpoints.retain(|endpoint| endpoint.strong_count() > 0);
        for app in &with_webhooks {
            let webhooks = &after[&app.id];
            for endpoint in webhooks.change(app) {
                uses_tls |= endpoint.url.is_https();
                started.endpoints.push(Arc::downgrade(&endpoint));
            }
            if !before.contains_key(&app.id) {
                webhooks.start_timer();
            }
        }
        self.apps.store(Arc::new(after));
        let after = self.apps.load();
        let removed = before.iter().filter(|(id, _)| !after.contains_key(*id));
        removed.for_each(|(_, webhooks)| webhooks.close());
        // Fails if it was set before.
        let _ = self.shared.set(shared);
        Ok(uses_tls)
    }

    /// Loads the certificates that are trusted, so that the first request does not have to.
    pub(super) fn prepare_tls(&self) {
        if let Some(shared) = self.shared.get() {
            shared.client.prepare_tls();
        }
    }

    /// Starts what all endpoints share.
    fn start_shared(&self) -> io::Result<Arc<Shared>> {
        let Options {
            queue_bytes,
            dead_letter_file,
            dead_letter_bytes,
            allowed_addresses,
            timing,
            observers,
        } = self.options.clone();
        match &dead_letter_file {
            Some(file) => info!(file = %file.display(), "undelivered webhooks are stored as dead letters"),
            None => info!("undelivered webhooks are dropped: webhooks.dead_letter_file is not set"),
        }
        Ok(Arc::new(Shared {
            client: Client::new(allowed_addresses, timing.request_timeout),
            dead_letters: DeadLetterStore::start(dead_letter_file, dead_letter_bytes, &self.metrics)?,
            metrics: Arc::clone(&self.metrics),
            timing,
            queue_bytes,
            observers,
            senders: TaskTracker::new(),
            abort: CancellationToken::new(),
            ended: self.ended.clone(),
        }))
    }

    /// The app with this id, if it has webhooks, as `read` sees it.
    pub(super) fn with_app<T>(&self, id: &str, read: impl FnOnce(&Arc<AppWebhooks>) -> T) -> Option<T> {
        self.apps.load().get(id).map(read)
    }

    /// Completes when the first receiver has been started.
    pub(super) async fn wait_for_receivers(&self) {
        self.shared.wait().await;
    }

    /// Completes when a task has panicked.
    pub(super) async fn wait_for_panic(&self) {
        self.ended.cancelled().await;
    }

    /// All receivers that have not ended.
    pub(super) fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.started.lock().endpoints.iter().filter_map(Weak::upgrade).collect()
    }

    /// See [`super::Webhooks::drain`].
    pub(super) async fn drain(&self, deadline: impl Future<Output = ()>) {
        self.started.lock().is_draining = true;
        self.timers.cancel();
        let Some(shared) = self.shared.get() else { return };
        self.apps.load().values().for_each(|app| app.shut_down());
        shared.senders.close();
        tokio::select! {
            () = shared.senders.wait() => {}
            () = deadline => {
                shared.abort.cancel();
                // Senders wait no longer than `FLUSH_TIMEOUT` for the dead letter store.
                shared.senders.wait().await;
            }
        }
        shared.dead_letters.close(FLUSH_TIMEOUT).await;
    }
}
