//! The upgrade of an HTTP request to a WebSocket.

use std::borrow::Cow;
use std::net::IpAddr;

use axum::body::Body;
use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use tokio::task::AbortHandle;
use tungstenite::handshake::server::create_response_with_body;

use super::admission::Rejected;
use super::connection::Connection;
use super::{Endpoint, Peer};
use crate::limits::Limit;
use crate::observers::Kind;
use crate::outbox::Transport;
use crate::protocol::request::Query;
use crate::protocol::wire::{Form, deflate};
use crate::rejections::{Example, Mistake, Rejection};

/// How much is kept of a name that a client chose.
const NAME_CHARS: usize = 100;

impl Endpoint {
    /// Whether a request belongs to this endpoint: it asks for a WebSocket, even incompletely, or for the path of one.
    #[must_use]
    pub fn handles<B>(&self, request: &Request<B>) -> bool {
        matches!(*request.method(), Method::GET | Method::HEAD)
            && (has_token(request.headers(), &header::UPGRADE, "websocket")
                || request.headers().contains_key(header::SEC_WEBSOCKET_KEY)
                || self.split_path(request.uri().path()).is_some())
    }

    /// Responds to a request for a WebSocket. The upgrade is completed before a rejection, which is a frame and a close
    /// code; only an invalid upgrade gets an HTTP error. `pending` is held until the connection is accepted, or rejected
    /// and closed, by the task that is returned: it may be aborted until then. `into_transport` takes the transport out
    /// of the caller's HTTP connection.
    #[must_use]
    pub fn upgrade<S: Send + 'static>(
        &self,
        mut request: Request<Incoming>,
        peer: Peer,
        pending: S,
        into_transport: fn(Upgraded) -> Option<(Transport, Bytes)>,
    ) -> (Response<Body>, Option<AbortHandle>) {
        let direct = peer.address.ip().to_canonical();
        let client = self.0.addresses.client_address(direct, request.headers());
        let mut response = match check_upgrade(&mut request) {
            Ok(response) => response,
            Err(invalid) => {
                let example = Example::from(client).path(request.uri().path()).reason(&*invalid.problems);
                self.0.hub.reject(Mistake::Upgrade, None, example);
                return (invalid.into_response(), None);
            }
        };
        if let Some(chosen) = subprotocol(request.headers()) {
            response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, chosen);
        }
        let found = self.find_app(request.uri(), request.headers(), peer);
        let client_info = ClientInfo::of(client, &request, self.0.hub.observers().wants(Kind::Connected));
        if let Err(rejected) = &found {
            self.report(rejected, self.example(client, &request));
        }
        let mut form = Form::Frame;
        if let Ok(app) = &found
            && app.compression
            && let Some(answer) = extension(request.headers())
        {
            form = app.form_with_compression();
            response.headers_mut().insert(header::SEC_WEBSOCKET_EXTENSIONS, answer);
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let endpoint = self.clone();
        let task = self.0.tasks.spawn(async move {
            // This fails if the client disconnects before the response is written.
            let Some((transport, early)) = upgrade.await.ok().and_then(into_transport) else { return };
            let admitted = match found {
                Ok(app) => {
                    let admitted = endpoint.admit(&app, client, client != direct).await;
                    admitted.inspect_err(|rejected| endpoint.report(rejected, Example::from(client)))
                }
                Err(rejected) => Err(rejected),
            };
            let is_accepted = admitted.is_ok();
            let connection = Connection::new(&endpoint, transport, &early, admitted, form, &client_info);
            if is_accepted {
                // A task of its own, so that a connection costs its own size and not that of the upgrade.
                endpoint.0.tasks.spawn(connection);
            } else {
                connection.await;
            }
            drop(pending);
        });
        (response, Some(task.abort_handle()))
    }

    /// An example of a rejected connection, for the log.
    fn example<'r, B>(&self, client: IpAddr, request: &'r Request<B>) -> Example<'r> {
        let path = request.uri().path();
        let mut example = Example::from(client);
        // A path with a key is shown by the key alone, which is cut to a bound.
        example = match self.split_path(path) {
            Some((_, key)) => example.key(key),
            None => example.path(path),
        };
        if let Some(origin) = origin(request.headers()) {
            example = example.origin(origin);
        }
        match library(request.uri()) {
            Some(library) => example.library(library),
            None => example,
        }
    }

    pub(super) fn report(&self, rejected: &Rejected, example: Example<'_>) {
        let Some(why) = rejected.why else { return };
        let value = match why {
            Rejection::Limit(Limit::NodeConnections) => self.0.options.connections_max.map(u64::from),
            Rejection::Limit(Limit::OpenFiles) => self.0.options.files_max.map(u64::from),
            Rejection::Limit(limit) => self.0.addresses.limit_value(limit),
            Rejection::Mistake(_) => None,
        };
        self.0.hub.reject(why, rejected.app.as_deref(), example.value(value));
    }
}

/// What is known of a client, for those who watch.
#[derive(Debug)]
pub(super) struct ClientInfo {
    /// The address of the client.
    pub(super) address: IpAddr,
    /// The origin of its page, if connections are watched.
    pub(super) origin: Option<Box<str>>,
    /// Its library, if connections are watched.
    pub(super) library: Option<Box<str>>,
}

impl ClientInfo {
    fn of<B>(address: IpAddr, request: &Request<B>, is_watched: bool) -> Self {
        if !is_watched {
            return Self { address, origin: None, library: None };
        }
        let origin = origin(request.headers()).map(|origin| origin.chars().take(NAME_CHARS).collect());
        Self { address, origin, library: library(request.uri()).map(Into::into) }
    }
}

/// The origin of a request, with invalid bytes replaced.
fn origin(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    headers.get(header::ORIGIN).map(|origin| String::from_utf8_lossy(origin.as_bytes()))
}

/// The library and its version, as the client gives them.
fn library(uri: &Uri) -> Option<String> {
    let query = Query::parse(uri.query()?).ok()?;
    let library = query.value("client")?;
    let library = match query.value("version") {
        Some(version) => format!("{library} {version}"),
        None => library.into_owned(),
    };
    Some(library.chars().take(NAME_CHARS).collect())
}

/// Whether the lines of a header, which are one list of tokens, contain `token`. Source: RFC 9110 §5.3.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    // Some clients separate tokens by spaces alone.
    lines.flat_map(|line| line.split([',', ' ', '\t'])).any(|found| found.eq_ignore_ascii_case(token))
}

/// The response to a valid upgrade; otherwise what is missing.
fn check_upgrade<B>(request: &mut Request<B>) -> Result<Response<Body>, InvalidUpgrade> {
    let headers = request.headers();
    let mut invalid = InvalidUpgrade::default();
    let mut require = |is_present: bool, problem: &str, line: &'static str| {
        if !is_present {
            invalid.add(problem, line);
        }
    };
    require(
        request.version() >= Version::HTTP_11,
        "it is HTTP/1.0, which has none",
        "proxy_http_version 1.1;",
    );
    require(
        has_token(headers, &header::UPGRADE, "websocket"),
        "the header `Upgrade: websocket` is missing",
        "proxy_set_header Upgrade $http_upgrade;",
    );
    require(
        has_token(headers, &header::CONNECTION, "upgrade"),
        "the header `Connection: Upgrade` is missing",
        "proxy_set_header Connection \"upgrade\";",
    );
    let version = headers.get_all(header::SEC_WEBSOCKET_VERSION).iter().map(HeaderValue::as_bytes);
    require(version.eq([b"13"]), "the header `Sec-WebSocket-Version: 13` is missing", "");
    if !invalid.problems.is_empty() {
        return Err(invalid);
    }
    // Replaced by one line each, because the next check expects that.
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    request.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    create_response_with_body(request, Body::empty).map_err(|error| InvalidUpgrade {
        status: StatusCode::BAD_REQUEST,
        problems: error.to_string(),
        lines: String::new(),
    })
}

/// What is missing in an upgrade, and the nginx configuration that forwards it.
#[derive(Debug, Default)]
struct InvalidUpgrade {
    status: StatusCode,
    problems: String,
    lines: String,
}

impl InvalidUpgrade {
    fn add(&mut self, problem: &str, line: &str) {
        self.status = StatusCode::UPGRADE_REQUIRED;
        for (text, more, separator) in [(&mut self.problems, problem, "; "), (&mut self.lines, line, " ")] {
            if !text.is_empty() && !more.is_empty() {
                text.push_str(separator);
            }
            text.push_str(more);
        }
    }

    /// An HTTP error with the missing headers. Source: RFC 9110 §15.5.22, RFC 6455 §4.4.
    fn into_response(self) -> Response<Body> {
        let Self { status, problems, lines } = self;
        let advice = match lines.is_empty() {
            true => String::new(),
            false => format!(" A proxy in front may have dropped that; of nginx it needs: {lines}"),
        };
        let sentence =
            format!("This is a WebSocket endpoint, and the request is no upgrade: {problems}.{advice}\n");
        let mut response = Response::new(Body::from(sentence));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        response
    }
}

/// The selected one of the offered subprotocols: Pusher's, else the first. A browser fails the connection if none or
/// another is selected. Source: protocol.md §1.3.
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

/// The response to an offer of permessage-deflate, the only supported extension.
fn extension(headers: &HeaderMap) -> Option<HeaderValue> {
    let offered = headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS).iter();
    deflate::negotiate(offered.filter_map(|value| value.to_str().ok())).map(HeaderValue::from_static)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pusher_subprotocol_is_selected_else_the_first_one() {
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
