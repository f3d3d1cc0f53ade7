//! The bodies of requests that come in more than one piece: how many bytes all of them may have.
//!
//! A body that has come with its head is in the buffer of its connection, and costs nothing here. Any other is charged to
//! its app and to the node, as it arrives and until its request is answered; what has only been announced is not, so
//! that nobody takes bytes from others by not sending them.
//!
//! A head proves who signed it, not who sends it: whoever overhears one can send it again. So of those with the same
//! signature one at a time sends such a body, and the next one when all of it is there, or it has been given up: requests
//! that are tried again are not hindered, nor two workers that publish the same in the same second.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::{Api, ApiError};
use crate::apps::App;
use crate::limits::{ByteCount, Limit};
use crate::rejections::Example;

/// The least that is charged, and the first room for a body.
const PIECE_BYTES: usize = 64 * 1024;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    /// Of all apps.
    bytes: ByteCount,
    /// The signatures of those that arrive.
    arriving: Mutex<HashSet<Box<str>>>,
    /// One of them has arrived, or was given up.
    arrived: Notify,
}

/// A body in pieces. What it costs is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Body {
    charge: Charge,
    bytes: Vec<u8>,
    /// How long it will be, or may be.
    ceiling: usize,
}

/// What is charged for a body.
#[derive(Debug)]
pub(super) struct Charge {
    api: Api,
    app: Arc<App>,
    /// As long as the body arrives.
    signature: Option<Box<str>>,
    bytes: usize,
}

impl Body {
    /// A body that arrives, of a request with this signature.
    /// If another one arrives with it, that one is waited for, but not for ever.
    pub(super) async fn new(
        api: &Api,
        app: &Arc<App>,
        signature: &str,
        ceiling: usize,
    ) -> Result<Self, ApiError> {
        // Of the same signature there are several spellings.
        let signature: Box<str> = signature.to_ascii_lowercase().into();
        let Bodies { arriving, arrived, .. } = &api.0.bodies;
        let until = Instant::now() + api.0.options.answer_timeout;
        loop {
            let mut one_arrived = pin!(arrived.notified());
            one_arrived.as_mut().enable();
            if arriving.lock().insert(signature.clone()) {
                break;
            }
            timeout_at(until, one_arrived).await.map_err(|_| ApiError::SignatureInUse)?;
        }
        let (api, app) = (api.clone(), Arc::clone(app));
        let charge = Charge { api, app, signature: Some(signature), bytes: 0 };
        Ok(Self { charge, bytes: Vec::new(), ceiling })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Takes the next piece in, if there may be so much.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), ApiError> {
        let len = self.bytes.len() + piece.len();
        if len > self.charge.bytes {
            // Doubled each time, so that little is copied.
            let room = (2 * len).max(PIECE_BYTES).min(self.ceiling).max(len);
            self.charge.grow(room)?;
            self.bytes.reserve_exact(room - self.bytes.len());
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// All of it has come.
    pub(super) fn arrived(mut self) -> (Vec<u8>, Charge) {
        self.charge.release_signature();
        (self.bytes, self.charge)
    }
}

impl Charge {
    fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let more = bytes - self.bytes;
        let (hub, node) = (&self.api.0.hub, &self.api.0.bodies.bytes);
        let of_app = self.app.requests_in_flight_bytes_max();
        if !self.app.body_bytes.take(more, of_app) {
            let what = "bytes in the bodies of requests at once";
            return Err(ApiError::too_many(Limit::RequestsInFlightBytes, what, Duration::from_secs(1)));
        }
        let of_node =
            self.api.0.options.requests_in_flight_bytes_max.max(self.app.limits.request_body_bytes_max);
        if !node.take(more, of_node) {
            self.app.body_bytes.give_back(more);
            let example = Example::default().value(of_node as u64);
            hub.reject(Limit::NodeRequestsInFlightBytes, None, example);
            return Err(ApiError::Busy(of_node));
        }
        self.bytes = bytes;
        Ok(())
    }

    fn release_signature(&mut self) {
        if let Some(signature) = self.signature.take() {
            self.api.0.bodies.arriving.lock().remove(&signature);
            self.api.0.bodies.arrived.notify_waiters();
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.release_signature();
        self.app.body_bytes.give_back(self.bytes);
        self.api.0.bodies.bytes.give_back(self.bytes);
    }
}
