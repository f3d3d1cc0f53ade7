//! The apps of the server: lookup by id, by key, and by the prefix of a path.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::{App, AppId};

/// The apps of this server: a fixed list.
#[derive(Debug, Default)]
pub struct Apps {
    by_id: HashMap<AppId, Arc<App>>,
    by_key: HashMap<Box<str>, Arc<App>>,
    prefixes: BTreeSet<Box<str>>,
}

impl Apps {
    /// The list of `apps`. Ids and keys are distinct; the `config` module has checked that.
    #[must_use]
    pub fn new(apps: impl IntoIterator<Item = App>) -> Self {
        let mut all = Self::default();
        for app in apps.into_iter().map(Arc::new) {
            all.prefixes.insert(app.path_prefix.clone());
            for pair in &app.keys {
                all.by_key.insert(pair.key.clone(), Arc::clone(&app));
            }
            all.by_id.insert(app.id.clone(), app);
        }
        all
    }

    /// The app with this id.
    #[must_use]
    pub fn by_id(&self, id: &str) -> Option<&Arc<App>> {
        self.by_id.get(id)
    }

    /// The app with this key.
    #[must_use]
    pub fn by_key(&self, key: &str) -> Option<&Arc<App>> {
        self.by_key.get(key)
    }

    /// All apps, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<App>> {
        self.by_id.values()
    }

    /// Splits the path of a request into the prefix of an app, or `""`, and the rest. Some proxies add slashes at the start
    /// of a path; all but one are removed.
    #[must_use]
    pub fn split_prefix<'p>(&self, path: &'p str) -> (&'p str, &'p str) {
        let path = collapse(path);
        // The longest prefix first, so that `/a/b` is not mistaken for `/a`.
        let of_an_app = self.prefixes.iter().rev().filter(|prefix| !prefix.is_empty());
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

/// A path with one slash at its start instead of several.
fn collapse(path: &str) -> &str {
    let slashes = path.bytes().take_while(|byte| *byte == b'/').count();
    &path[slashes.saturating_sub(1)..]
}
