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

use super::admission::Refused;
use super::connection::Connection;
use super::{Door, Peer};
use crate::limits::Limit;
use crate::outbox::Transport;
use crate::protocol::request::Query;
use crate::protocol::wire::deflate::{self, Compression};
use crate::rejections::{Example, Mistake, Rejection};

/// What is kept of a name that a client chose.
const NAME_CHARS: usize = 100;

impl Door {
    /// Whether a request is this door's: it asks for a WebSocket, however badly, or for where those are.
    #[must_use]
    pub fn is_for<B>(&self, request: &Request<B>) -> bool {
        matches!(*request.method(), Method::GET | Method::HEAD)
            && (has_token(request.headers(), &header::UPGRADE, "websocket")
                || request.headers().contains_key(header::SEC_WEBSOCKET_KEY)
                || self.split_path(request.uri().path()).is_some())
    }

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
        let direct = peer.address.ip().to_canonical();
        let client = self.0.addresses.client(direct, request.headers());
        let mut response = match complete(&mut request) {
            Ok(response) => response,
            Err(incomplete) => {
                let example = Example::from(client).path(request.uri().path()).reason(&*incomplete.problems);
                self.0.hub.reject(Mistake::Upgrade, None, example);
                return (incomplete.into_response(), None);
            }
        };
        if let Some(chosen) = subprotocol(request.headers()) {
            response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, chosen);
        }
        let found = self.find_app(request.uri(), request.headers(), peer);
        let about = About::of(client, &request);
        if let Err(refused) = &found {
            self.report(refused, self.example(client, &request));
        }
        let mut compression = Compression::Off;
        if let Ok(app) = &found
            && app.compression
            && let Some(answer) = extension(request.headers())
        {
            compression = app.negotiated_compression();
            response.headers_mut().insert(header::SEC_WEBSOCKET_EXTENSIONS, answer);
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let door = self.clone();
        let task = self.0.tasks.spawn(async move {
            // An error is a client that went away before the answer was written.
            let Some((transport, early)) = upgrade.await.ok().and_then(take_apart) else { return };
            let admitted = match found {
                Ok(app) => {
                    let admitted = door.admit(&app, client, client != direct).await;
                    admitted.inspect_err(|refused| door.report(refused, Example::from(client)))
                }
                Err(refused) => Err(refused),
            };
            let is_let_in = admitted.is_ok();
            let connection = Connection::new(&door, transport, &early, admitted, compression, &about);
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

    /// What is known of a connection that is refused.
    fn example<'r, B>(&self, client: IpAddr, request: &'r Request<B>) -> Example<'r> {
        let path = request.uri().path();
        let mut example = Example::from(client);
        // Of a path with a key in it, the key says it, and may be longer than it should be shown.
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

    pub(super) fn report(&self, refused: &Refused, example: Example<'_>) {
        let Some(why) = refused.why else { return };
        let value = match why {
            Rejection::Limit(Limit::NodeConnections) => self.0.options.connections_max.map(u64::from),
            Rejection::Limit(Limit::OpenFiles) => self.0.options.files_max.map(u64::from),
            Rejection::Limit(limit) => self.0.addresses.value_of(limit),
            Rejection::Mistake(_) => None,
        };
        self.0.hub.reject(why, refused.app.as_deref(), example.value(value));
    }
}

/// Whose connection it is, for the log.
#[derive(Debug)]
pub(super) struct About {
    /// Where the client is.
    pub(super) address: IpAddr,
    /// The page that it runs in, if that is logged.
    pub(super) origin: Option<Box<str>>,
    /// The library that it uses, if that is logged.
    pub(super) library: Option<Box<str>>,
}

impl About {
    fn of<B>(address: IpAddr, request: &Request<B>) -> Self {
        if !tracing::enabled!(tracing::Level::DEBUG) {
            return Self { address, origin: None, library: None };
        }
        let origin = origin(request.headers()).map(|origin| origin.chars().take(NAME_CHARS).collect());
        Self { address, origin, library: library(request.uri()).map(Into::into) }
    }
}

/// The origin of a request, what is no text in it replaced.
fn origin(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    headers.get(header::ORIGIN).map(|origin| String::from_utf8_lossy(origin.as_bytes()))
}

/// The library and its version, as clients tell them.
fn library(uri: &Uri) -> Option<String> {
    let query = Query::parse(uri.query()?).ok()?;
    let library = query.value("client")?;
    let library = match query.value("version") {
        Some(version) => format!("{library} {version}"),
        None => library.into_owned(),
    };
    Some(library.chars().take(NAME_CHARS).collect())
}

/// Whether one of the tokens in the lines of a header, which are one list, is `token`. Source: RFC 9110 §5.3.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
    // Some clients separate by spaces alone.
    lines.flat_map(|line| line.split([',', ' ', '\t'])).any(|found| found.eq_ignore_ascii_case(token))
}

/// The answer to a request that is an upgrade; what is missing of one otherwise.
fn complete<B>(request: &mut Request<B>) -> Result<Response<Body>, Incomplete> {
    let headers = request.headers();
    let mut incomplete = Incomplete::default();
    let mut misses = |is_there: bool, problem: &str, line: &'static str| {
        if !is_there {
            incomplete.add(problem, line);
        }
    };
    misses(
        request.version() >= Version::HTTP_11,
        "it is HTTP/1.0, which has none",
        "proxy_http_version 1.1;",
    );
    misses(
        has_token(headers, &header::UPGRADE, "websocket"),
        "the header `Upgrade: websocket` is missing",
        "proxy_set_header Upgrade $http_upgrade;",
    );
    misses(
        has_token(headers, &header::CONNECTION, "upgrade"),
        "the header `Connection: Upgrade` is missing",
        "proxy_set_header Connection \"upgrade\";",
    );
    let version = headers.get_all(header::SEC_WEBSOCKET_VERSION).iter().map(HeaderValue::as_bytes);
    misses(version.eq([b"13"]), "the header `Sec-WebSocket-Version: 13` is missing", "");
    if !incomplete.problems.is_empty() {
        return Err(incomplete);
    }
    // As one line each, which is what is checked below.
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    request.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    create_response_with_body(request, Body::empty).map_err(|error| Incomplete {
        status: StatusCode::BAD_REQUEST,
        problems: error.to_string(),
        lines: String::new(),
    })
}

/// What is missing of an upgrade, and what to tell nginx so that it passes it on.
#[derive(Debug, Default)]
struct Incomplete {
    status: StatusCode,
    problems: String,
    lines: String,
}

impl Incomplete {
    fn add(&mut self, problem: &str, line: &str) {
        self.status = StatusCode::UPGRADE_REQUIRED;
        for (text, more, separator) in [(&mut self.problems, problem, "; "), (&mut self.lines, line, " ")] {
            if !text.is_empty() && !more.is_empty() {
                text.push_str(separator);
            }
            text.push_str(more);
        }
    }

    /// Source: RFC 9110 §15.5.22, RFC 6455 §4.4.
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
