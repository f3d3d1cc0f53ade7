//! Pusher's HTTP API, and the health routes.
//!
//! Handlers receive signed requests only: [`signed::Signed`] finds the app and checks the signature before it reads the
//! body. Bodies and parameters become checked types in [`fields`] and [`channels`]; errors become a status and a sentence
//! in [`error`].
//!
//! Start at [`Service`], which answers a request. axum's router finds the handler, except for the paths by which
//! applications publish: routing, extractors and boxed futures were a tenth of the cost of a publish, so these paths are
//! matched by hand.
//!
//! Source: protocol.md §8.

mod bodies;
mod caller;
mod channels;
mod error;
mod fields;
mod health;
mod idempotency;
mod info;
mod list_permits;
mod observed;
mod per_app;
mod signed;
mod streamed;
mod trigger;
mod users;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use http_body_util::{Either, Full};
use percent_encoding::percent_decode_str;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use caller::Sender;
use observed::ObservedRequest;

pub use caller::Caller;
pub use error::ApiError;
pub use signed::Signed;

use crate::apps::Apps;
use crate::hub::Hub;
use crate::protocol::name::excerpt;
use crate::protocol::request::Query;
use crate::rejections::Example;

/// The options of the HTTP API that do not depend on the app.
#[derive(Clone, Debug)]
pub struct Options {
    /// A request whose body makes no progress for this long is dropped. Default 30 s.
    pub read_timeout: Duration,
    /// Bytes in the bodies of requests in flight, of all apps; never less than one body. Default 256 MiB.
    pub requests_in_flight_bytes_max: usize,
    /// How long a request waits for another one: for the first with its idempotency key, for one with its signature, or for
    /// a list. Default 10 s.
    pub answer_timeout: Duration,
    /// `/accept-traffic` answers 500 while more of the machine's memory is used. Default 90 %.
    pub accept_traffic_memory_percent: u8,
    /// The wall clock, in seconds since 1970, for the age of a signature. Default: the system's.
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

/// The state of the API, which every handler has.
#[derive(Clone, Debug)]
pub struct Api(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    hub: Hub,
    apps: Arc<Apps>,
    idempotency: idempotency::Stores,
    bodies: bodies::Bodies,
    lists: list_permits::ListPermits,
    memory: health::LastReading,
    /// Tasks that a shutdown waits for, such as publishes whose client has disconnected.
    tasks: TaskTracker,
    options: Options,
}

impl Api {
    /// The API of `hub`. It spawns its tasks in `tasks`: wait for them before the node ends.
    #[must_use]
    pub fn new(hub: Hub, apps: Arc<Apps>, options: Options, tasks: TaskTracker) -> Self {
        Self(Arc::new(Shared {
            hub,
            apps,
            idempotency: idempotency::Stores::default(),
            bodies: bodies::Bodies::default(),
            lists: list_permits::ListPermits::default(),
            memory: health::LastReading::default(),
            tasks,
            options,
        }))
    }

    /// Strips the path prefix of an app and additional slashes at the start from the path of a request, so that each route
    /// exists once. The signature is checked against both forms.
    fn strip_prefix<B>(&self, request: &mut Request<B>) {
        let path = request.uri().path();
        let (prefix, bare) = self.0.apps.split_prefix(path);
        if bare.len() == path.len() {
            return;
        }
        let slashes = &path[..path.len() - prefix.len() - bare.len()];
        let stripped = StrippedPath { slashes: slashes.into(), prefix: prefix.into() };
        let rest = request.uri().query().map_or_else(|| bare.to_owned(), |query| format!("{bare}?{query}"));
        if let Ok(path_and_query) = PathAndQuery::try_from(rest) {
            *request.uri_mut() = Uri::from(path_and_query);
            request.extensions_mut().insert(stripped);
        }
    }

    /// Counts a rejected request and reports it to the operator.
    fn reject(&self, uri: &Uri, error: &ApiError, sender: &Sender) {
        let Some(why) = error.rejection() else { return };
        let mut example = Example::default().path(uri.path()).reason(error.to_string());
        if let Some(address) = sender.address {
            example = example.address(address);
        }
        if let Some(library) = &sender.library {
            example = example.library(String::from_utf8_lossy(library.as_bytes()));
        }
        let id = app_id_in(uri.path());
        let app = id.as_deref().and_then(|id| self.0.apps.by_id(id));
        if let (None, Some(id)) = (&app, &id) {
            example = example.app(&**id);
        }
        let query = Query::parse(uri.query().unwrap_or_default()).unwrap_or_default();
        if let Some(key) = query.value("auth_key") {
            example = example.key(key);
        }
        self.0.hub.reject(why, app.as_deref(), example);
    }
}

/// The id of the app in the path of a request.
fn app_id_in(path: &str) -> Option<Cow<'_, str>> {
    let id = path.strip_prefix("/apps/")?.split('/').next()?;
    Some(percent_decode_str(id).decode_utf8_lossy())
}

/// Answers HTTP requests. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Service {
    api: Api,
    router: Router,
}

impl Service {
    /// The service of `api`.
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
        let observed = ObservedRequest::begin(&self.api, &request, caller);
        let response = self.respond(request, caller).await;
        if let Some(observed) = observed {
            observed.answered(&self.api, response.status());
        }
        response
    }

    /// Answers a request without its prefix.
    async fn respond<B>(&self, mut request: Request<B>, caller: &Caller) -> Response<AnswerBody>
    where
        B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + Unpin + 'static,
    {
        let Some(publish) = Publish::of(&request) else {
            if !caller.is_authenticated() {
                // Only for an unauthenticated caller, because this allocates.
                request.extensions_mut().insert(caller.clone());
            }
            let (uri, sender) = (request.uri().clone(), caller.sender(request.headers()));
            // Boxed, so that the future of a publish stays small.
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

    /// The response to a rejected publish.
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

/// The body of a response: that of a publish is in memory, others are axum's.
pub type AnswerBody = Either<Full<Bytes>, Body>;

/// A response in JSON. Its header map reuses the memory of the request's.
fn json_response(body: Bytes, mut headers: HeaderMap) -> Response<Full<Bytes>> {
    headers.clear();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut response = Response::new(Full::new(body));
    *response.headers_mut() = headers;
    response
}

/// The kinds of publish requests, which bypass the router.
#[derive(Clone, Copy, Debug)]
enum Publish {
    One,
    Batch,
    /// The API of 2012.
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

/// The parts that were stripped from the start of a path.
#[derive(Clone, Debug)]
struct StrippedPath {
    /// Slashes in addition to the first.
    slashes: Box<str>,
    /// The prefix of an app.
    prefix: Box<str>,
}

/// All routes. The name of a channel is one segment, percent-encoded where necessary; the id of a user may contain slashes,
/// encoded or not.
fn router(api: Api) -> Router {
    Router::new()
        // POST requests to these paths bypass the router.
        .route("/apps/{app_id}/events", post(handled_before_router))
        .route("/apps/{app_id}/batch_events", post(handled_before_router))
        .route("/apps/{app_id}/channels/{channel}/events", post(handled_before_router))
        .route("/apps/{app_id}/connections", get(channels::connections))
        .route("/apps/{app_id}/channels", get(channels::channels))
        .route("/apps/{app_id}/channels/{channel}", get(channels::channel))
        .route("/apps/{app_id}/channels/{channel}/users", get(channels::users))
        .route("/apps/{app_id}/channels/{channel}/stats", get(channels::stats))
        .route("/apps/{app_id}/users/{*rest}", post(users::terminate))
        .route("/users/{*rest}", post(users::terminate))
        // The WebSocket endpoint answers GET requests to these paths.
        .route("/app/{key}", get(handled_before_router))
        .route("/app/{key}/", get(handled_before_router))
        .route("/", get(health::ok).options(health::options))
        .route("/up", get(health::up).options(health::options))
        .route("/health", get(health::health).options(health::options))
        .route("/ready", get(health::ready).options(health::options))
        .route("/accept-traffic", get(health::accept_traffic).options(health::options))
        .fallback(|State(api): State<Api>, request: Request| async move {
            match (request.method(), request.uri().path()) {
                (&Method::OPTIONS, "*") => Ok(health::options().await),
                (_, path) => Err(not_found(&api, path)),
            }
        })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        .with_state(api)
}

/// The handler of routes that are answered before the router. The router must know their paths and methods, so that other
/// methods get 405.
async fn handled_before_router(State(api): State<Api>, uri: Uri) -> ApiError {
    not_found(&api, uri.path())
}

/// A 404. If the path has the route of an app after other segments, the message contains the prefix of the app: it is not
/// secret, and a library or proxy that strips it is hard to find otherwise.
fn not_found(api: &Api, path: &str) -> ApiError {
    let of_app = path.split_once("/apps/").filter(|(front, _)| !front.is_empty());
    let of_app = of_app.and_then(|(_, rest)| api.0.apps.by_id(rest.split('/').next()?));
    let hint = match of_app.as_deref().map(|app| (&*app.id.0, &*app.path_prefix)) {
        None => String::new(),
        Some((id, "")) => format!("; app {id} has no path_prefix: its requests begin with /apps/{id}/"),
        Some((id, prefix)) => {
            format!("; the path_prefix of app {id} is {prefix}: its requests begin with {prefix}/apps/{id}/")
        }
    };
    ApiError::NotFound(format!("There is nothing at {}{hint}", excerpt(path)))
}

/// The wall clock, in seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "signatures and certificates have dates")]
pub(crate) fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}
