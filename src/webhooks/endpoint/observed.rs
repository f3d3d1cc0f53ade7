//! What an endpoint does, as facts for those who watch.

use tokio::time::Instant;

use super::Endpoint;
use crate::observers::{Fact, Kind};
use crate::webhooks::client::SendError;
use crate::webhooks::dead_letters::DeadLetter;

impl Endpoint {
    /// An attempt at a request with so many events, which began then, has this outcome.
    pub(super) fn observe_attempt(
        &self,
        body: &[u8],
        events: usize,
        began: Instant,
        sent: &Result<(), SendError>,
    ) {
        let observers = &self.shared.observers;
        let (app, url) = (|| (&*self.app.0).into(), || self.url.to_string().into());
        let (duration, body) = (|| began.elapsed(), || Some(String::from_utf8_lossy(body)));
        match sent {
            Ok(()) => observers.observe(Kind::WebhookSent, || Fact::WebhookSent {
                app: app(),
                url: url(),
                events,
                duration: duration(),
                body: body(),
            }),
            Err(error) => observers.observe(Kind::WebhookFailed, || Fact::WebhookFailed {
                app: app(),
                url: url(),
                events,
                duration: duration(),
                error: error.to_string().into(),
                body: body(),
            }),
        }
    }

    /// A request is not attempted any more.
    pub(super) fn observe_dead_letter(&self, dead_letter: &DeadLetter) {
        self.shared.observers.observe(Kind::WebhookDeadLettered, || {
            let DeadLetter { app_id, url, attempts, error, event_ids, .. } = dead_letter;
            Fact::WebhookDeadLettered {
                app: app_id.into(),
                url: url.into(),
                events: event_ids.len(),
                attempts: *attempts,
                error: error.into(),
            }
        });
    }
}
