//! A request as a fact, for those who watch requests.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, Request, StatusCode};

use super::{Api, Caller, app_id_in};
use crate::observers::{Fact, Kind};

/// The longest path in a fact, in bytes.
const PATH_BYTES_MAX: usize = 300;

/// A request that somebody watches, while it is answered.
#[derive(Debug)]
pub(super) struct ObservedRequest {
    app: Option<Arc<str>>,
    method: Method,
    path: Box<str>,
    address: Option<IpAddr>,
    began: Duration,
}

impl ObservedRequest {
    /// The head of a request has arrived. `None`: nobody watches requests.
    pub(super) fn begin<B>(api: &Api, request: &Request<B>, caller: &Caller) -> Option<Box<Self>> {
        let hub = &api.0.hub;
        if !hub.observers().wants(Kind::ApiRequest) {
            return None;
        }
        let path = request.uri().path();
        let app = app_id_in(path).and_then(|id| api.0.apps.by_id(&id));
        Some(Box::new(Self {
            app: app.map(|app| Arc::clone(&app.id.0)),
            method: request.method().clone(),
            path: path[..path.floor_char_boundary(PATH_BYTES_MAX)].into(),
            address: caller.sender(request.headers()).address,
            began: hub.now(),
        }))
    }

    /// The request is answered. The fact is lost if the client disconnects before.
    pub(super) fn answered(&self, api: &Api, status: StatusCode) {
        let hub = &api.0.hub;
        hub.observers().observe(Kind::ApiRequest, || Fact::ApiRequest {
            app: self.app.as_deref().map(Into::into),
            method: self.method.as_str().into(),
            path: (&*self.path).into(),
            address: self.address,
            status: status.as_u16(),
            duration: hub.now().saturating_sub(self.began),
        });
    }
}
