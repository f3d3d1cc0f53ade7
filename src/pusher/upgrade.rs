//! The upgrade of an HTTP request to a WebSocket.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use tokio::task::AbortHandle;
use tracing::debug;
use tungstenite::handshake::server::create_response_with_body;

use super::admission::Refused;
use super::connection::Connection;
use super::{Door, Peer};
use crate::outbox::Transport;
use crate::protocol::wire::deflate::{self, Compression};

/// Whether a request asks for a WebSocket.
#[must_use]
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|upgrade| upgrade.to_str().ok());
    upgrade.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket"))
}

impl Door {
    /// Answers a request for a WebSocket. The upgrade is completed first and refused afterwards, with a frame and
    /// a close code; only a request that is no valid upgrade gets an HTTP error. `stranger` is the connection's place
    /// until it is let in, or refused and gone, which the task that comes with the answer sees to: it may be aborted
    /// as long as the place is taken. `take_apart` is the caller's knowledge of the transport below its HTTP.
    #[must_use]
    pub fn upgrade<S: Send + 'static>(
        &self,
        mut request: Request<Incoming>,
        peer: Peer,
        stranger: S,
        take_apart: fn(Upgraded) -> Option<(Transport, Bytes)>,
    ) -> (Response<Body>, Option<AbortHandle>) {
        let mut response = match create_response_with_body(&request, Body::empty) {
            Ok(response) => response,
            Err(error) => return (not_an_upgrade(&error.to_string()), None),
        };
        if let Some(chosen) = subprotocol(request.headers()) {
            response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, chosen);
        }
        let found = self.find_app(request.uri(), request.headers(), peer);
        let mut compression = Compression::Off;
        if let Ok(app) = &found
            && app.compression
            && let Some(answer) = extension(request.headers())
        {
            compression = app.offered_compression();
            response.headers_mut().insert(header::SEC_WEBSOCKET_EXTENSIONS, answer);
        }
        let direct = peer.address.ip().to_canonical();
        let client = self.0.addresses.client(direct, request.headers());
        let upgrade = hyper::upgrade::on(&mut request);
        let door = self.clone();
        let task = self.0.tasks.spawn(async move {
            // An error is a client that went away before the answer was written.
            let Some((transport, early)) = upgrade.await.ok().and_then(take_apart) else { return };
            let admitted = match found {
                Ok(app) => door.admit(&app, client, client != direct).await,
                Err(refused) => Err(refused),
            };
            if let Err(Refused { code, message }) = &admitted {
                debug!(%client, code = code.number(), message, "connection refused");
            }
            let is_let_in = admitted.is_ok();
            let connection = Connection::new(&door, transport, &early, admitted, compression);
            if is_let_in {
                // A task of its own, so that a connection costs its own size and not that of the upgrade.
                door.0.tasks.spawn(connection);
            } else {
                connection.await;
            }
            drop(stranger);
        });
        (response, Some(task.abort_handle()))
    }
}

/// One of the subprotocols that the client offers: Pusher's, else the first. A browser fails a connection that
/// selects none or another. Source: protocol.md §1.3.
fn subprotocol(headers: &HeaderMap) -> Option<HeaderValue> {
    const PUSHER: &str = "pusher-channels-protocol-7";
    let offered =
        headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let mut offered =
        offered.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty());
    let first = offered.next()?;
    let chosen = if first == PUSHER || offered.any(|token| token == PUSHER) { PUSHER } else { first };
    HeaderValue::from_str(chosen).ok()
}

/// The answer to an offer of permessage-deflate, the only extension there is.
fn extension(headers: &HeaderMap) -> Option<HeaderValue> {
    let offered = headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS).iter();
    deflate::negotiate(offered.filter_map(|value| value.to_str().ok())).map(HeaderValue::from_static)
}

fn not_an_upgrade(problem: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("This is not a WebSocket upgrade: {problem}")));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushers_subprotocol_is_chosen_else_the_first() {
        let chosen = |offers: &[&str]| {
            let mut headers = HeaderMap::new();
            for offer in offers {
                headers.append(header::SEC_WEBSOCKET_PROTOCOL, offer.parse().unwrap());
            }
            subprotocol(&headers).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[""]), None);
        assert_eq!(chosen(&["a, b"]).as_deref(), Some("a"));
        assert_eq!(
            chosen(&["a", "b,pusher-channels-protocol-7"]).as_deref(),
            Some("pusher-channels-protocol-7")
        );
    }
}
