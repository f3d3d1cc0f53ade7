//! The limit on the connections of an app.

use std::sync::Arc;

use super::{App, AppState};

/// The permit of one connection of an app. Dropping it releases the permit.
#[derive(Debug)]
pub struct ConnectionPermit(Arc<AppState>);

impl ConnectionPermit {
    /// Acquires a permit. `None` if the limit is reached.
    #[must_use]
    pub fn acquire(app: &App) -> Option<Self> {
        app.state.connections.try_acquire(app.limits.connections_max).then(|| Self(Arc::clone(&app.state)))
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.connections.release();
    }
}
