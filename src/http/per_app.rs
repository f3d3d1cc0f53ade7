//! What the HTTP API keeps for each app. It exists from the first request of the app until the app is gone.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::RwLock;

use crate::apps::{App, AppId, AppState};

/// A value for each app.
#[derive(Debug, Default)]
pub(super) struct PerApp<T>(RwLock<HashMap<AppId, Entry<T>>>);

#[derive(Debug)]
struct Entry<T> {
    /// The app that the value belongs to: another app may get its id later.
    app: Weak<AppState>,
    value: Arc<T>,
}

impl<T: Default> PerApp<T> {
    /// The value of `app`. The first call for an app also drops the values of apps that no longer exist.
    pub(super) fn of(&self, app: &App) -> Arc<T> {
        let found =
            self.0.read().get(&app.id).filter(|entry| entry.is_of(app)).map(|entry| Arc::clone(&entry.value));
        if let Some(value) = found {
            return value;
        }
        let mut entries = self.0.write();
        entries.retain(|_, entry| entry.app.strong_count() > 0);
        let entry = || Entry { app: Arc::downgrade(&app.state), value: Arc::default() };
        let found = entries.entry(app.id.clone()).or_insert_with(entry);
        if !found.is_of(app) {
            *found = entry();
        }
        Arc::clone(&found.value)
    }
}

impl<T> Entry<T> {
    fn is_of(&self, app: &App) -> bool {
        std::ptr::eq(self.app.as_ptr(), Arc::as_ptr(&app.state))
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::apps::Apps;

    #[test]
    fn a_value_lives_as_long_as_its_app() {
        let (apps, values) = (Apps::new([App::new("1", "a", "s")]), PerApp::<Mutex<u32>>::default());
        *values.of(&apps.by_id("1").unwrap()).lock() = 1;
        apps.replace([App::new("1", "other", "s"), App::new("2", "b", "s")]);
        assert_eq!(*values.of(&apps.by_id("1").unwrap()).lock(), 1, "other settings, the same app");
        assert_eq!(*values.of(&apps.by_id("2").unwrap()).lock(), 0);
        apps.replace([App::new("2", "b", "s")]);
        apps.replace([App::new("1", "a", "s"), App::new("2", "b", "s")]);
        assert_eq!(*values.of(&apps.by_id("1").unwrap()).lock(), 0, "another app with this id");
        apps.replace([App::new("3", "c", "s")]);
        values.of(&apps.by_id("3").unwrap());
        assert_eq!(values.0.read().len(), 1, "values of apps that are gone are dropped");
    }
}
