//! Idempotent publishing: of the requests with one idempotency key, the first is carried out, and the others receive its
//! response.
//!
//! Each app has its own keys. A key is stored for a while after the response ([`AppLimits::idempotency_window`]); the
//! store is limited in number and bytes, and evicts the oldest keys. A first attempt that fails releases its key. An
//! attempt that has begun to publish continues to its end even if the client disconnects or the server shuts down, so the
//! next attempt of the client finds the response and not half a publish.
//!
//! A request without a key costs one header lookup. The signature does not cover a key in the header, but one in the body:
//! so a request with a key in its body cannot be replayed as long as the key is stored.
//!
//! Source: draft-ietf-httpapi-idempotency-key-header-07 for the header, 409 and 422.
//!
//! [`AppLimits::idempotency_window`]: crate::apps::AppLimits::idempotency_window

mod key;
mod store;

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Response};
use bytes::Bytes;
use http_body_util::Full;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use super::per_app::PerApp;
use super::{Api, ApiError, Publish, Signed, json_response, trigger};
use crate::apps::App;
use crate::limits::Limit;
use crate::rejections::Example;
pub(super) use key::Key;
use store::{Lookup, Reservation, Store};

/// The header with a key.
pub(super) const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// The header of a response that was stored.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The stores of all apps.
#[derive(Debug, Default)]
pub(super) struct Stores(PerApp<Mutex<Store>>);

impl Stores {
    fn of_app<T>(&self, app: &App, act: impl FnOnce(&mut Store) -> T) -> T {
        act(&mut self.0.of(app).lock())
    }
}

/// The reservation of a key. Dropping it releases the key, unless the attempt is finished.
struct ReservationGuard {
    api: Api,
    app: Arc<App>,
    reservation: Option<Reservation>,
}

impl ReservationGuard {
    fn finish(&mut self, response: &Bytes) {
        let Some(reservation) = self.reservation.take() else { return };
        let Self { api, app, .. } = self;
        let hub = &api.0.hub;
        let evicted = api
            .0
            .idempotency
            .of_app(app, |store| store.finish(reservation, response, &app.limits, hub.now()));
        (0..evicted).for_each(|_| hub.reject(Limit::IdempotencyKeys, Some(app), Example::default()));
    }
}

impl Drop for ReservationGuard {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation.take() {
            self.api.0.idempotency.of_app(&self.app, |store| store.release(reservation));
        }
    }
}

/// Carries out a publish if it is the first with its key. Otherwise returns the response of the first.
pub(super) async fn once(
    api: Api,
    signed: Signed,
    key: Key,
    publish: Publish,
) -> Result<Response<Full<Bytes>>, ApiError> {
    let fingerprint = key::fingerprint(&signed);
    let until = Instant::now() + api.0.options.answer_timeout;
    let mut guard = loop {
        let app = &signed.app;
        let stores = &api.0.idempotency;
        let lookup =
            stores.of_app(app, |store| store.begin(&key, &fingerprint, &app.limits, api.0.hub.now()));
        match lookup {
            Lookup::Reserved(reservation) => {
                let (api, app) = (api.clone(), Arc::clone(app));
                break ReservationGuard { api, app, reservation: Some(reservation) };
            }
            Lookup::Answered(response) => {
                api.0.hub.metrics().idempotent_replays.count();
                let mut response = json_response(response, signed.headers);
                response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
                return Ok(response);
            }
            // Changes when the first attempt ends, with or without success.
            Lookup::Running(mut running) => match timeout_at(until, running.changed()).await {
                Ok(_) => {}
                Err(_) => return Err(ApiError::InProgress),
            },
            Lookup::KeyReused => return Err(ApiError::KeyReused),
            Lookup::Full => {
                let what = "requests with idempotency keys at once";
                return Err(ApiError::too_many(Limit::IdempotencyKeys, what, Duration::from_secs(1)));
            }
        }
    };
    // In a task, so that the publish continues if the client disconnects.
    let publishing = api.0.tasks.spawn(async move {
        let response = match publish {
            Publish::One => trigger::one(&guard.api, &signed).await?,
            Publish::Batch => trigger::batch(&guard.api, &signed).await?,
            Publish::Legacy => trigger::legacy(&guard.api, &signed).await?,
        };
        guard.finish(&response);
        Ok(json_response(response, signed.headers))
    });
    match publishing.await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(response) => response,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The task was cancelled, because the runtime shuts down.
        Err(Err(_)) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
