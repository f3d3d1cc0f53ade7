//! The peer of a connection, and the sender of a request.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::addresses::Addresses;

/// The header with the name and version of a Pusher SDK.
const LIBRARY: HeaderName = HeaderName::from_static("x-pusher-library");

/// The peer of a connection. It is authenticated once one of its requests had a valid signature. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Caller(Arc<Peer>);

#[derive(Debug, Default)]
struct Peer {
    is_authenticated: AtomicBool,
    /// The address of the peer, and the known proxies.
    address: Option<(IpAddr, Arc<Addresses>)>,
}

/// The sender of a request, for the log.
#[derive(Debug, Default)]
pub(super) struct Sender {
    /// The address of the client, or of a proxy that does not forward it.
    pub(super) address: Option<IpAddr>,
    /// The SDK and its version, which Pusher's SDKs send.
    pub(super) library: Option<HeaderValue>,
}

impl Caller {
    /// The peer of a connection from `peer`, which may be one of the proxies in `addresses`.
    #[must_use]
    pub fn new(peer: IpAddr, addresses: &Arc<Addresses>) -> Self {
        let address = Some((peer, Arc::clone(addresses)));
        Self(Arc::new(Peer { is_authenticated: AtomicBool::default(), address }))
    }

    /// The sender of a request with `headers`.
    pub(super) fn sender(&self, headers: &HeaderMap) -> Sender {
        let address =
            self.0.address.as_ref().map(|(peer, addresses)| addresses.client_address(*peer, headers));
        Sender { address, library: headers.get(&LIBRARY).cloned() }
    }

    /// Whether one of the requests had a valid signature.
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        self.0.is_authenticated.load(Ordering::Relaxed)
    }

    pub(super) fn mark_authenticated(&self) {
        if !self.is_authenticated() {
            self.0.is_authenticated.store(true, Ordering::Relaxed);
        }
    }
}
