//! The limit on the bytes of request bodies in flight.
//!
//! A body that arrived together with its head is in the buffer of the connection and is not counted here. Any other body
//! is charged to its app and to the node, from its arrival until the response. Bytes that are only announced are not
//! charged, so that no client can reserve bytes without sending them.
//!
//! The signature of a head identifies its signer, not its sender: a head that was intercepted can be sent again. So of the
//! requests with one signature, one at a time may send such a body; the next one waits until the body is complete or its
//! request ended. Retries, and workers that publish the same event in the same second, still succeed.

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

/// The least that is charged, and the first capacity of a buffer.
const CAPACITY_MIN: usize = 64 * 1024;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    /// The bytes of all apps.
    bytes: ByteCount,
    /// The signatures of the requests whose bodies are arriving.
    arriving: Mutex<HashSet<Box<str>>>,
    /// Notified when one of the bodies is complete or its request ended.
    arrived: Notify,
}

/// A buffer for a body that arrives in several pieces. Dropping it releases its charge.
#[derive(Debug)]
pub(super) struct BodyBuffer {
    charge: BodyCharge,
    bytes: Vec<u8>,
    /// The announced length, or the limit if none is announced.
    bytes_max: usize,
}

/// The charge for a body. Dropping it releases the bytes.
#[derive(Debug)]
pub(super) struct BodyCharge {
    api: Api,
    app: Arc<App>,
    /// The signature of the request, while the body arrives.
    signature: Option<Box<str>>,
    bytes: usize,
}

impl BodyBuffer {
    /// A buffer for the body of a request with this signature. If the body of another request with the same signature is
    /// arriving, waits for it up to the answer timeout.
    pub(super) async fn new(
        api: &Api,
        app: &Arc<App>,
        signature: &str,
        bytes_max: usize,
    ) -> Result<Self, ApiError> {
        // Hex digits of either case are the same signature.
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
        let charge = BodyCharge { api, app, signature: Some(signature), bytes: 0 };
        Ok(Self { charge, bytes: Vec::new(), bytes_max })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the next piece, if the limits allow it.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), ApiError> {
        let len = self.bytes.len() + piece.len();
        if len > self.charge.bytes {
            // The capacity doubles, so that little is copied.
            let capacity = (2 * len).max(CAPACITY_MIN).min(self.bytes_max).max(len);
            self.charge.grow(capacity)?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// The complete body. Lets the next request with the same signature send its body.
    pub(super) fn finish(mut self) -> (Vec<u8>, BodyCharge) {
        self.charge.release_signature();
        (self.bytes, self.charge)
    }
}

impl BodyCharge {
    fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let more = bytes - self.bytes;
        let (hub, node) = (&self.api.0.hub, &self.api.0.bodies.bytes);
        let of_app = self.app.requests_in_flight_bytes_max();
        if !self.app.state.body_bytes.try_acquire(more, of_app) {
            let what = "bytes in the bodies of requests at once";
            return Err(ApiError::too_many(Limit::RequestsInFlightBytes, what, Duration::from_secs(1)));
        }
        let of_node =
            self.api.0.options.requests_in_flight_bytes_max.max(self.app.limits.request_body_bytes_max);
        if !node.try_acquire(more, of_node) {
            self.app.state.body_bytes.release(more);
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

impl Drop for BodyCharge {
    fn drop(&mut self) {
        self.release_signature();
        self.app.state.body_bytes.release(self.bytes);
        self.api.0.bodies.bytes.release(self.bytes);
    }
}
