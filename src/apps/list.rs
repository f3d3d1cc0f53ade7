//! The apps of the server: lookup by id, by key, and by the prefix of a path. They can be replaced while the server runs.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{App, AppId, AppState};

/// The apps of this server.
///
/// A lookup returns a snapshot of the app, which never changes. [`Apps::replace`] puts new snapshots in place of all at once;
/// [`App::is_replaced`] tells the holder of an old one to look the app up again.
#[derive(Debug, Default)]
pub struct Apps {
    list: ArcSwap<List>,
    /// The state of every app that was in the list and may still have connections. Locked while the list is replaced.
    states: Mutex<HashMap<AppId, Weak<AppState>>>,
    /// Notified when the list was replaced.
    replaced: Notify,
}

#[derive(Debug, Default)]
struct List {
    by_id: HashMap<AppId, Arc<App>>,
    by_key: HashMap<Box<str>, Arc<App>>,
    prefixes: BTreeSet<Box<str>>,
    /// Apps that were removed while they had connections.
    removed: HashMap<AppId, Arc<App>>,
}

impl List {
    fn new(apps: impl IntoIterator<Item = Arc<App>>) -> Self {
        let mut list = Self::default();
        for app in apps {
            list.prefixes.insert(app.path_prefix.clone());
            for pair in &app.keys {
                list.by_key.insert(pair.key.clone(), Arc::clone(&app));
            }
            list.by_id.insert(app.id.clone(), app);
        }
        list
    }
}

impl Apps {
    /// The list of `apps`. Ids and keys are distinct; the `config` module has checked that.
    #[must_use]
    pub fn new(apps: impl IntoIterator<Item = App>) -> Self {
        let all = Self::default();
        all.store(apps);
        all
    }

    /// Replaces all apps. An app that stays keeps its state (connections, rates, counters), whatever its settings; so does an
    /// app that was removed and returns while it still has connections. Ids and keys are distinct, as in [`Apps::new`].
    ///
    /// Requests and new connections see the new list at once. The server then adapts the receivers of webhooks and wakes the
    /// connections, which see their new settings before their next message; those of an app that was removed or disabled
    /// are closed. What is negotiated or checked when a connection begins (compression, origin, TLS, protocol version, the
    /// time for authorization) stays as it is.
    pub fn replace(&self, apps: impl IntoIterator<Item = App>) {
        self.store(apps);
        self.replaced.notify_one();
    }

    fn store(&self, apps: impl IntoIterator<Item = App>) {
        let mut states = self.states.lock();
        let adopt = |app: App| {
            let state = states.get(&app.id).and_then(Weak::upgrade);
            Arc::new(App { state: state.unwrap_or_else(|| Arc::clone(&app.state)), ..app })
        };
        let mut list = List::new(apps.into_iter().map(adopt));
        states.retain(|_, state| state.strong_count() > 0);
        states.extend(list.by_id.iter().map(|(id, app)| (id.clone(), Arc::downgrade(&app.state))));
        let before = self.list.load_full();
        list.removed = before.removed.clone();
        list.removed.extend(before.by_id.clone());
        list.removed.retain(|id, app| !list.by_id.contains_key(id) && is_in_use(app));
        self.list.store(Arc::new(list));
        // After the new list is in place: the holder of an old snapshot finds the new one.
        before.by_id.values().for_each(|app| app.mark_replaced());
    }

    /// Completes when the list was replaced since the last call. For one caller at a time: the server.
    pub async fn replaced(&self) {
        self.replaced.notified().await;
    }

    /// The app with this id.
    #[must_use]
    pub fn by_id(&self, id: &str) -> Option<Arc<App>> {
        self.list.load().by_id.get(id).cloned()
    }

    /// The app with this id, also if it was removed and still has connections, which are being closed.
    #[must_use]
    pub fn by_id_or_removed(&self, id: &str) -> Option<Arc<App>> {
        let list = self.list.load();
        list.by_id.get(id).or_else(|| list.removed.get(id).filter(|app| is_in_use(app))).cloned()
    }

    /// The app with this key.
    #[must_use]
    pub fn by_key(&self, key: &str) -> Option<Arc<App>> {
        self.list.load().by_key.get(key).cloned()
    }

    /// All apps, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<App>> {
        self.list.load().by_id.values().cloned().collect()
    }

    /// Splits the path of a request into the prefix of an app, or `""`, and the rest. Some proxies add slashes at the start
    /// of a path; all but one are removed.
    #[must_use]
    pub fn split_prefix<'p>(&self, path: &'p str) -> (&'p str, &'p str) {
        let path = collapse(path);
        let list = self.list.load();
        // The longest prefix first, so that `/a/b` is not mistaken for `/a`.
        let of_an_app = list.prefixes.iter().rev().filter(|prefix| !prefix.is_empty());
        for prefix in of_an_app {
            if let Some(rest) = path.strip_prefix(&**prefix)
                && rest.starts_with('/')
            {
                return path.split_at(prefix.len());
            }
        }
        ("", path)
    }
}

/// Whether connections have the state of an app whose last snapshot is `app`.
fn is_in_use(app: &App) -> bool {
    Arc::strong_count(&app.state) > 1
}

/// A path with one slash at its start instead of several.
fn collapse(path: &str) -> &str {
    let slashes = path.bytes().take_while(|byte| *byte == b'/').count();
    &path[slashes.saturating_sub(1)..]
}
