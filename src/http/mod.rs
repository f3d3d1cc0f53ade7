//! Pusher's HTTP API, and the routes that tell whether the server is well.
//!
//! A request of the API is a value only once it is signed: [`signed::Signed`] finds the app, checks the signature
//! before it reads the body, and the handlers start from there. Bodies and parameters become checked types in
//! [`trigger`] and [`channels`]; what was wrong becomes a status and a sentence in [`error`].
//!
//! Start at [`Service`], which answers a request: axum's router finds the handler, but for the paths by which
//! applications publish. Routing, extractors and boxed futures were a tenth of what a publish costs, so those are
//! matched by hand; the handlers are the same.
//!
//! Source: protocol.md §8.

mod bodies;
mod channels;
mod error;
mod health;
mod idempotency;
mod info;
mod lists;
mod signed;
mod trigger;
mod users;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http_body_util::{Either, Full};
use percent_encoding::percent_decode_str;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

pub use error::ApiError;
pub use signed::Signed;

use crate::addresses::Addresses;
use crate::apps::Apps;
use crate::hub::Hub;
use crate::protocol::name::shown;
use crate::protocol::request::Query;
use crate::rejections::Example;

/// The header in which Pusher's SDKs name themselves.
const LIBRARY: HeaderName = HeaderName::from_static("x-pusher-library");

/// How the HTTP API serves, whatever the app.
#[derive(Clone, Debug)]
pub struct Options {
    /// A request whose body makes no progress for so long is dropped. Default 30 s.
    pub read_timeout: Duration,
    /// Bytes that the bodies of requests in flight may have, of all apps; never less than one body. Default 256 MiB.
    pub requests_in_flight_bytes_max: usize,
    /// A request waits so long for the answer of the first one with its idempotency key. Default 10 s.
    pub answer_timeout: Duration,
    /// `/accept-traffic` answers 500 while the machine's memory is used beyond this. Default 90 %.
    pub accept_traffic_memory_percent: u8,
    /// The wall clock, in seconds since 1970, by which the age of a signature is told. Default: the system's.
    pub unix_now: fn() -> i64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            read_timeout: Duration::from_secs(30),
            requests_in_flight_bytes_max: 256 * 1024 * 1024,
            answer_timeout: Duration::from_secs(10),
            accept_traffic_memory_percent: 90,
            unix_now,
        }
    }
}

/// What every handler has.
#[derive(Clone, Debug)]
pub struct Api(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hub: Hub,
    apps: Arc<Apps>,
    /// The idempotency keys that are remembered.
    keys: idempotency::Keys,
    /// Bodies that arrive, or are there.
    bodies: bodies::Bodies,
    /// Whose turn it is to list channels.
    lists: lists::Lists,
    memory: health::LastLook,
    /// What the node waits for when it goes away: publishes that go on without their client are among it.
    tasks: TaskTracker,
    options: Options,
}

impl Api {
    /// An API in front of `hub`. What it begins is one of `tasks`: wait for them before the node ends.
    #[must_use]
    pub fn new(hub: Hub, apps: Arc<Apps>, options: Options, tasks: TaskTracker) -> Self {
        let (keys, lists) = (idempotency::Keys::of(&apps), lists::Lists::of(&apps));
        let (bodies, memory) = (bodies::Bodies::default(), health::LastLook::default());
        Self(Arc::new(Inner { hub, apps, keys, bodies, lists, memory, tasks, options }))
    }

    /// Takes an app's path prefix off a request, and all slashes that it begins with but one, so that the routes stand
    /// once; the signature is checked against both forms.
    fn strip_prefix<B>(&self, request: &mut Request<B>) {
        let path = request.uri().path();
        let (prefix, bare) = self.0.apps.split_prefix(path);
        if bare.len() == path.len() {
            return;
        }
        let slashes = &path[..path.len() - prefix.len() - bare.len()];
        let received = Received { slashes: slashes.into(), prefix: prefix.into() };
        let rest = request.uri().query().map_or_else(|| bare.to_owned(), |query| format!("{bare}?{query}"));
        if let Ok(path_and_query) = PathAndQuery::try_from(rest) {
            *request.uri_mut() = Uri::from(path_and_query);
            request.extensions_mut().insert(received);
        }
    }

    /// Counts a request that was rejected, and tells the operator why.
    fn reject(&self, uri: &Uri, error: &ApiError, sender: &Sender) {
        let Some(why) = error.rejection() else { return };
        let mut example = Example::default().path(uri.path()).reason(error.to_string());
        if let Some(address) = sender.address {
            example = example.address(address);
        }
        if let Some(library) = &sender.library {
            example = example.library(String::from_utf8_lossy(library.as_bytes()));
        }
        let id = uri.path().strip_prefix("/apps/").and_then(|rest| rest.split('/').next());
        let id = id.map(|id| percent_decode_str(id).decode_utf8_lossy());
        let app = id.as_deref().and_then(|id| self.0.apps.by_id(id));
        if let (None, Some(id)) = (app, &id) {
            example = example.app(&**id);
        }
        let query = Query::parse(uri.query().unwrap_or_default()).unwrap_or_default();
        if let Some(key) = query.value("auth_key") {
            example = example.key(key);
        }
        self.0.hub.reject(why, app.map(|app| &**app), example);
    }
}

/// Who is at the other end of a connection: a stranger, until one of their requests was signed. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Caller(Arc<Peer>);

#[derive(Debug, Default)]
struct Peer {
    is_known: AtomicBool,
    /// The other end, and what is known of proxies.
    address: Option<(IpAddr, Arc<Addresses>)>,
}

/// Who sent a request, for the log.
#[derive(Debug, Default)]
struct Sender {
    /// The client's address, or that of the proxy that does not tell it.
    address: Option<IpAddr>,
    /// The SDK and its version, as those of Pusher say it.
    library: Option<HeaderValue>,
}

impl Caller {
    /// At the other end of a connection from `peer`, which may be one of the proxies of `addresses`.
    #[must_use]
    pub fn new(peer: IpAddr, addresses: &Arc<Addresses>) -> Self {
        let address = Some((peer, Arc::clone(addresses)));
        Self(Arc::new(Peer { is_known: AtomicBool::default(), address }))
    }

    /// Who sent a request with `headers`.
    fn sender(&self, headers: &HeaderMap) -> Sender {
        let address = self.0.address.as_ref().map(|(peer, addresses)| addresses.client(*peer, headers));
        Sender { address, library: headers.get(&LIBRARY).cloned() }
    }

    /// Whether a request of theirs was signed.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.0.is_known.load(Ordering::Relaxed)
    }

    fn signed(&self) {
        if !self.is_known() {
            self.0.is_known.store(true, Ordering::Relaxed);
        }
    }
}

/// Answers HTTP requests. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Service {
    api: Api,
    router: Router,
}

impl Service {
    /// Answers for `api`.
    #[must_use]
    pub fn new(api: Api) -> Self {
        Self { router: router(api.clone()), api }
    }

    /// Answers one request of `caller`.
    pub async fn answer<B>(&self, mut request: Request<B>, caller: &Caller) -> Response<AnswerBody>
    where
        B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + Unpin + 'static,
    {
        self.api.strip_prefix(&mut request);
        let Some(publish) = Publish::of(&request) else {
            if !caller.is_known() {
                // Only while it is a stranger, because this allocates.
                request.extensions_mut().insert(caller.clone());
            }
            let (uri, sender) = (request.uri().clone(), caller.sender(request.headers()));
            // In a box, so that a publish does not have room for it.
            let Ok(mut response) = Box::pin(self.router.clone().oneshot(request.map(Body::new))).await;
            if let Some(error) = response.extensions_mut().remove::<ApiError>() {
                self.api.reject(&uri, &error, &sender);
            }
            return response.map(AnswerBody::Right);
        };
        let (mut head, body) = request.into_parts();
        let mut signed = match Signed::check(&mut head, body, &self.api, caller).await {
            Ok(signed) => signed,
            Err(error) => return self.reject(error, &head.uri, &head.headers, caller),
        };
        let answer = match publish {
            Publish::One => trigger::trigger(&self.api, &mut signed).await,
            Publish::Batch => trigger::trigger_batch(&self.api, &mut signed).await,
            Publish::Legacy => trigger::trigger_legacy(&self.api, &mut signed).await,
        };
        match answer {
            Ok(response) => response.map(AnswerBody::Left),
            Err(error) => self.reject(error, &signed.uri, &signed.headers, caller),
        }
    }

    /// The answer to a publish that is rejected.
    fn reject(
        &self,
        error: ApiError,
        uri: &Uri,
        headers: &HeaderMap,
        caller: &Caller,
    ) -> Response<AnswerBody> {
        self.api.reject(uri, &error, &caller.sender(headers));
        error.into_response().map(AnswerBody::Right)
    }
}

/// The body of an answer: a publish's is in memory, others come from axum.
pub type AnswerBody = Either<Full<Bytes>, Body>;

/// An answer in JSON, with its headers in the memory of those of its request.
fn json_response(body: Bytes, mut headers: HeaderMap) -> Response<Full<Bytes>> {
    headers.clear();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut response = Response::new(Full::new(body));
    *response.headers_mut() = headers;
    response
}

/// The requests by which applications publish, which do not go through the router.
#[derive(Clone, Copy, Debug)]
enum Publish {
    One,
    Batch,
    /// By the API of 2012.
    Legacy,
}

impl Publish {
    fn of<B>(request: &Request<B>) -> Option<Self> {
        if request.method() != Method::POST {
            return None;
        }
        match request.uri().path().strip_prefix("/apps/")?.split_once('/')? {
            ("", _) => None,
            (_, "events") => Some(Self::One),
            (_, "batch_events") => Some(Self::Batch),
            (_, rest) => {
                let channel = rest.strip_prefix("channels/")?.strip_suffix("/events")?;
                (!channel.is_empty() && !channel.contains('/')).then_some(Self::Legacy)
            }
        }
    }
}

/// What a request came with in front of its path.
#[derive(Clone, Debug)]
struct Received {
    /// Slashes beyond the one that a path begins with.
    slashes: Box<str>,
    /// The prefix of an app.
    prefix: Box<str>,
}

/// All routes. A channel's name stands in one segment, percent-encoded where it must be; a user's id may contain
/// slashes, encoded or not.
fn router(api: Api) -> Router {
    Router::new()
        // A POST to one of these is answered ahead of the router.
        .route("/apps/{app_id}/events", post(ahead))
        .route("/apps/{app_id}/batch_events", post(ahead))
        .route("/apps/{app_id}/channels/{channel}/events", post(ahead))
        .route("/apps/{app_id}/connections", get(channels::connections))
        .route("/apps/{app_id}/channels", get(channels::channels))
        .route("/apps/{app_id}/channels/{channel}", get(channels::channel))
        .route("/apps/{app_id}/channels/{channel}/users", get(channels::users))
        .route("/apps/{app_id}/channels/{channel}/stats", get(channels::stats))
        .route("/apps/{app_id}/users/{*rest}", post(users::terminate))
        .route("/users/{*rest}", post(users::terminate))
        // A GET of one of these is answered by the door of WebSockets.
        .route("/app/{key}", get(ahead))
        .route("/app/{key}/", get(ahead))
        .route("/", get(health::ok).options(health::options))
        .route("/up", get(health::up).options(health::options))
        .route("/health", get(health::health).options(health::options))
        .route("/ready", get(health::ready).options(health::options))
        .route("/accept-traffic", get(health::accept_traffic).options(health::options))
        .fallback(|State(api): State<Api>, request: Request| async move {
            match (request.method(), request.uri().path()) {
                (&Method::OPTIONS, "*") => Ok(health::options().await),
                (_, path) => Err(nothing_at(&api, path)),
            }
        })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .with_state(api)
}

/// What is answered before it comes to the router: this has the router know its path and method only.
async fn ahead(State(api): State<Api>, uri: Uri) -> ApiError {
    nothing_at(&api, uri.path())
}

/// A 404 for a path that is no route. Where it is that of a request of an app behind other segments, the app's prefix is
/// said: it is no secret, and a library or a proxy that cuts it is hard to find.
fn nothing_at(api: &Api, path: &str) -> ApiError {
    let behind = path.split_once("/apps/").filter(|(front, _)| !front.is_empty());
    let of_app = behind.and_then(|(_, rest)| api.0.apps.by_id(rest.split('/').next()?));
    let hint = match of_app.map(|app| (&*app.id.0, &*app.path_prefix)) {
        None => String::new(),
        Some((id, "")) => format!("; app {id} has no path_prefix: its requests begin with /apps/{id}/"),
        Some((id, prefix)) => {
            format!("; the path_prefix of app {id} is {prefix}: its requests begin with {prefix}/apps/{id}/")
        }
    };
    ApiError::NotFound(format!("There is nothing at {}{hint}", shown(path)))
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock, for what has dates")]
pub(crate) fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}
