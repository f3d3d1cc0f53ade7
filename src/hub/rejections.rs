//! Rejections: counted in the metrics and reported to the operator, in this place only.

use std::sync::Arc;

use super::{Hub, Shared};
use crate::apps::App;
use crate::observers::{Fact, Kind};
use crate::rejections::{Example, Rejection};

impl Hub {
    /// Counts a rejection of an app, or of the node if `app` is `None`, and reports it: each one to the observers, and once a
    /// minute the number of each kind to the operator.
    pub fn reject(&self, rejection: impl Into<Rejection>, app: Option<&App>, example: Example<'_>) {
        self.0.reject(rejection.into(), app, example);
    }

    /// Reports all unreported rejections to the operator, before their minute is over.
    pub fn flush_rejections(&self) {
        self.0.flush_rejections(true);
    }
}

impl Shared {
    pub(super) fn reject<'a>(&self, rejection: Rejection, app: Option<&'a App>, mut example: Example<'a>) {
        self.metrics.rejected(rejection).count();
        if let Some(app) = app {
            example = example.app(&*app.id.0);
            if let Rejection::Limit(limit) = rejection {
                example = example.value(app.value_of(limit));
            }
        }
        self.observers.observe(Kind::Rejected, || Fact::Rejected { rejection, example: example.clone() });
        let reports = app.map_or(&self.rejections, |app| &app.state.reports);
        if reports.report(rejection, example, self.now()) {
            self.unreported.lock().push(Arc::clone(reports));
        }
    }

    pub(super) fn flush_rejections(&self, all: bool) {
        let now = self.now();
        let mut unreported = std::mem::take(&mut *self.unreported.lock());
        unreported.retain(|reports| reports.flush(now, all));
        self.unreported.lock().append(&mut unreported);
    }
}
