//! The limit on the connections of an app.

use std::sync::Arc;

use super::App;

/// The permit of one connection of an app. Dropping it releases the permit.
#[derive(Debug)]
pub struct ConnectionPermit(Arc<App>);

impl ConnectionPermit {
    /// Acquires a permit. `None` if the limit is reached.
    #[must_use]
    pub fn acquire(app: &Arc<App>) -> Option<Self> {
        app.connections.try_acquire(app.limits.connections_max).then(|| Self(Arc::clone(app)))
    }

    /// The app of the connection.
    #[must_use]
    pub const fn app(&self) -> &Arc<App> {
        &self.0
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.release();
    }
}
