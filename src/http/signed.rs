//! Requests that are signed, the only kind that the API knows.

use std::borrow::Cow;
use std::iter;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::body::HttpBody;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, Uri, header, request};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use percent_encoding::percent_decode_str;
use tokio::time::Instant;
use tracing::debug;

use super::bodies::{Body, Charge};
use super::channels::parse as parse_channel;
use super::{Api, ApiError, Caller, Received};
use crate::apps::{App, Apps};
use crate::limits::Limit;
use crate::protocol::ChannelName;
use crate::protocol::request::{Auth, Query, SignatureError};

/// A body that makes progress, but only just, is given up after so many read timeouts.
pub(super) const BODY_TIMEOUTS: u32 = 10;

/// A request whose signature holds, with its body.
#[derive(Debug)]
pub struct Signed {
    /// Whose.
    pub app: Arc<App>,
    /// Where to: without a prefix, not decoded.
    pub uri: Uri,
    /// Whether the query has more in it than the signature.
    has_parameters: bool,
    /// Its headers, which the signature does not cover.
    pub headers: HeaderMap,
    /// Its body, of the size that the app allows.
    pub body: Bytes,
    /// What is charged for it.
    charge: Option<Box<Charge>>,
}

impl FromRequest<Api> for Signed {
    type Rejection = ApiError;

    /// Everything that the head of the request can prove is checked before any of the body is read, so that
    /// strangers cannot make the server buffer one. That is all but the MD5 of the body: the signature covers the
    /// MD5, not the body.
    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        let (mut head, body) = request.into_parts();
        Self::check(&mut head, body, api, &caller).await
    }
}

impl Signed {
    /// See [`Signed::from_request`]. Once the signature holds, `caller` is no stranger any more. What the head says is
    /// taken out of it, unless the request is rejected.
    pub(super) async fn check<B>(
        head: &mut request::Parts,
        body: B,
        api: &Api,
        caller: &Caller,
    ) -> Result<Self, ApiError>
    where
        B: HttpBody<Data = Bytes> + Unpin,
    {
        let raw_query = head.uri.query().unwrap_or_default();
        let app = find_app(head, raw_query, api)?;
        let query = Query::parse(raw_query)?;
        let auth = check_signature(head, &query, &app, api, caller)?;
        let (body, charge) = read(body, announced(head), &app, &auth, api).await?;
        auth.check_body(&body)?;
        let has_parameters = query.has_parameters();
        drop(query);
        let (uri, headers) = (mem::take(&mut head.uri), mem::take(&mut head.headers));
        Ok(Self { app, uri, has_parameters, headers, body, charge })
    }

    /// The request for a task of its own, without its headers: those stay here, for what the log says of it.
    pub(super) fn take(&mut self) -> Self {
        Self {
            app: Arc::clone(&self.app),
            uri: self.uri.clone(),
            has_parameters: self.has_parameters,
            headers: HeaderMap::new(),
            body: mem::take(&mut self.body),
            charge: self.charge.take(),
        }
    }

    /// Its parameters.
    #[must_use]
    pub fn query(&self) -> Query<'_> {
        // Most requests have none, and it was read without error before.
        let raw = if self.has_parameters { self.uri.query() } else { None };
        raw.and_then(|raw| Query::parse(raw).ok()).unwrap_or_default()
    }

    /// The channel that stands in the path, behind `/channels/`.
    ///
    /// # Errors
    /// [`ApiError::BadRequest`] for a text that is no channel name of the app.
    pub fn channel(&self) -> Result<ChannelName, ApiError> {
        let (_, rest) = self.uri.path().split_once("/channels/").unwrap_or_default();
        let name = rest.split('/').next().unwrap_or_default();
        let name =
            percent_decode_str(name).decode_utf8().map_err(|_| ApiError::bad("The path is not UTF-8"))?;
        parse_channel(&self.app, &name)
    }
}

/// What was taken off a request's path.
fn received(head: &request::Parts) -> Option<&Received> {
    head.extensions.get()
}

/// The path prefix of a request, which is not in its path any more.
fn prefix(head: &request::Parts) -> &str {
    received(head).map_or("", |received| &received.prefix)
}

/// Whose request it claims to be.
fn find_app(head: &request::Parts, raw_query: &str, api: &Api) -> Result<Arc<App>, ApiError> {
    let app = find(&api.0.apps, head.uri.path(), prefix(head), raw_query)?;
    if app.enabled { Ok(Arc::clone(app)) } else { Err(ApiError::AppDisabled) }
}

/// Checks that the request was signed by `app`, as far as its head can prove it, and counts it.
fn check_signature<'q>(
    head: &request::Parts,
    query: &'q Query<'_>,
    app: &App,
    api: &Api,
    caller: &Caller,
) -> Result<Auth<'q>, ApiError> {
    let api = &api.0;
    let (path, received) = (head.uri.path(), received(head));
    let auth = query.auth()?;
    let secret = app.secret(auth.key).ok_or(SignatureError::UnknownKey)?;
    auth.check_time((api.options.unix_now)(), app.limits.auth_window_secs)?;
    let others = other_signed_paths(path, received, &app.path_prefix);
    let paths = iter::once(path).chain(others.iter().map(String::as_str));
    let method = head.method.as_str();
    query.verify(&auth, secret, method, paths).inspect_err(|_| {
        let string_to_sign = || query.string_to_sign(method, path);
        debug!(app = %app.id, string_to_sign = string_to_sign(), "what a request should have been signed of");
    })?;
    caller.signed();
    let taken = app.take_request(|| api.hub.now());
    taken.map_err(|wait| ApiError::too_many(Limit::Requests, "requests", wait))?;
    Ok(auth)
}

/// The app of a request: by the id in its path, or, for the one path without an id, by its key.
fn find<'a>(apps: &'a Apps, path: &str, prefix: &str, raw_query: &str) -> Result<&'a Arc<App>, ApiError> {
    let unknown = |id: &str| {
        let shown = &id[..id.floor_char_boundary(80)];
        ApiError::UnknownApp(format!("There is no app with the id {shown}"))
    };
    let app = match path.strip_prefix("/apps/") {
        Some(rest) => {
            let id = rest.split('/').next().unwrap_or_default();
            let id = percent_decode_str(id).decode_utf8_lossy();
            apps.by_id(&id).ok_or_else(|| unknown(&id))?
        }
        None => {
            let query = Query::parse(raw_query)?;
            apps.by_key(query.auth()?.key).ok_or(SignatureError::UnknownKey)?
        }
    };
    if prefix.is_empty() || *prefix == *app.path_prefix { Ok(app) } else { Err(unknown(&app.id.0)) }
}

/// What the client may have signed instead of `path`: the same as it was received, with a prefix and all slashes; with
/// the app's prefix; and each percent-decoded, because HTTP libraries encode a path after the SDK has signed it.
fn other_signed_paths(path: &str, received: Option<&Received>, app_prefix: &str) -> Vec<String> {
    let mut others = Vec::new();
    if let Some(Received { slashes, prefix }) = received {
        others.push(format!("{slashes}{prefix}{path}"));
        others.push(format!("{prefix}{path}"));
    }
    if !app_prefix.is_empty() {
        others.push(format!("{app_prefix}{path}"));
    }
    others.dedup();
    let decoded = |path: &str| percent_decode_str(path).decode_utf8().ok().map(Cow::into_owned);
    let encoded = iter::once(path).chain(others.iter().map(String::as_str)).filter(|path| path.contains('%'));
    let decoded: Vec<_> = encoded.filter_map(decoded).collect();
    others.extend(decoded);
    others
}

/// How long the body of a request will be, by its head.
fn announced(head: &request::Parts) -> usize {
    let length = head.headers.get(header::CONTENT_LENGTH);
    length.and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0)
}

async fn read(
    mut body: impl HttpBody<Data = Bytes> + Unpin,
    announced: usize,
    app: &Arc<App>,
    auth: &Auth<'_>,
    api: &Api,
) -> Result<(Bytes, Option<Box<Charge>>), ApiError> {
    let bytes_max = app.limits.request_body_bytes_max;
    if announced > bytes_max {
        return Err(ApiError::BodyTooLarge { bytes_max });
    }
    let mut patience = Patience { timeout: api.0.options.read_timeout, until: None };
    let mut first = Bytes::new();
    let mut all: Option<Box<Body>> = None;
    while let Some(frame) = patience.next(&mut body).await? {
        let frame = frame.map_err(|_| ApiError::bad("The request body could not be read"))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.as_ref().map_or(0, |all| all.len()) + data.len() > bytes_max {
            return Err(ApiError::BodyTooLarge { bytes_max });
        }
        // A body that came in one piece, as most do, is not copied.
        if first.is_empty() && all.is_none() {
            first = data;
            continue;
        }
        let all = match &mut all {
            Some(all) => all,
            None => {
                let ceiling = if announced > 0 { announced } else { bytes_max };
                let all = all.insert(Box::new(Body::new(api, app, auth.signature(), ceiling).await?));
                all.push(&mem::take(&mut first))?;
                all
            }
        };
        all.push(&data)?;
    }
    Ok(match all {
        None => (first, None),
        Some(all) => {
            let (bytes, charge) = all.arrived();
            (bytes.into(), Some(Box::new(charge)))
        }
    })
}

/// How long a body is waited for.
struct Patience {
    /// For each piece.
    timeout: Duration,
    /// For all of it, once there was something to wait for.
    until: Option<Instant>,
}

impl Patience {
    /// The next piece. What has come already, as most bodies have with their head, costs no timer.
    async fn next<B: HttpBody + Unpin>(
        &mut self,
        body: &mut B,
    ) -> Result<Option<Result<Frame<B::Data>, B::Error>>, ApiError> {
        let at_once = Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(frame) = at_once {
            return Ok(frame);
        }
        let now = Instant::now();
        let until = *self.until.get_or_insert_with(|| now + self.timeout * BODY_TIMEOUTS);
        let frame = tokio::time::timeout_at(until.min(now + self.timeout), body.frame());
        frame.await.map_err(|_| ApiError::Timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_found_under_its_own_prefix_and_the_bare_path_only() {
        let prefixed = App { path_prefix: "/rt".into(), ..App::new("1", "k1", "s") };
        let apps = Apps::new([prefixed, App::new("2", "k2", "s")]);
        let key = "auth_version=1.0&auth_timestamp=0&auth_signature=0&auth_key=";
        for (path, prefix, query, id) in [
            ("/apps/1/events", "", "", Some("1")),
            ("/apps/1/events", "/rt", "", Some("1")),
            ("/apps/2/events", "", "", Some("2")),
            ("/apps/2/events", "/rt", "", None),
            ("/apps/%31/events", "", "", Some("1")),
            ("/apps/3/events", "", "", None),
            ("/apps/", "", "", None),
            ("/users/7/terminate_connections", "", "k2", Some("2")),
            ("/users/7/terminate_connections", "/rt", "k2", None),
        ] {
            let found = find(&apps, path, prefix, &format!("{key}{query}"));
            assert_eq!(found.ok().map(|app| &*app.id.0), id, "{prefix}{path}");
        }
    }

    #[test]
    fn a_path_may_have_been_signed_encoded_or_not_with_the_prefix_or_without() {
        let received =
            |slashes: &str, prefix: &str| Received { slashes: slashes.into(), prefix: prefix.into() };
        assert!(other_signed_paths("/apps/1/events", None, "").is_empty());
        let path = "/apps/1/users/a%20b/terminate_connections";
        let mut paths = other_signed_paths(path, Some(&received("", "/rt")), "/rt");
        paths.sort_unstable();
        let expected = [
            "/apps/1/users/a b/terminate_connections",
            "/rt/apps/1/users/a b/terminate_connections",
            "/rt/apps/1/users/a%20b/terminate_connections",
        ];
        assert_eq!(paths, expected);
        assert_eq!(other_signed_paths("/apps/1/events", None, "/rt"), ["/rt/apps/1/events"]);
        let paths = other_signed_paths("/apps/1/events", Some(&received("//", "/rt")), "/rt");
        assert_eq!(paths, ["///rt/apps/1/events", "/rt/apps/1/events"]);
        let paths = other_signed_paths("/apps/1/events", Some(&received("/", "")), "");
        assert_eq!(paths, ["//apps/1/events", "/apps/1/events"]);
    }
}
