//! Signed requests, the only requests that the API accepts.

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

use super::bodies::{BodyBuffer, BodyCharge};
use super::channels::parse as parse_channel;
use super::{Api, ApiError, Caller, StrippedPath};
use crate::apps::{App, Apps};
use crate::limits::Limit;
use crate::observers::{Fact, Kind};
use crate::protocol::ChannelName;
use crate::protocol::request::{Auth, Query, SignatureError};

/// The longest time for a body that makes slow progress, in read timeouts.
pub(super) const BODY_TIMEOUTS: u32 = 10;

/// A request with a valid signature, and its body.
#[derive(Debug)]
pub struct Signed {
    /// The app.
    pub app: Arc<App>,
    /// The URI without a prefix, not decoded.
    pub uri: Uri,
    /// Whether the query has parameters besides the signature.
    has_parameters: bool,
    /// The headers. The signature does not cover them.
    pub headers: HeaderMap,
    /// The body, within the limit of the app.
    pub body: Bytes,
    /// The charge for the body.
    charge: Option<Box<BodyCharge>>,
}

impl FromRequest<Api> for Signed {
    type Rejection = ApiError;

    /// Everything that the head proves is checked before the body is read, so that unauthenticated clients cannot make the
    /// server buffer a body. Only the MD5 of the body is checked later: the signature covers the MD5, not the body.
    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or_default();
        let (mut head, body) = request.into_parts();
        Self::check(&mut head, body, api, &caller).await
    }
}

impl Signed {
    /// See [`Signed::from_request`]. A valid signature marks `caller` as authenticated. URI and headers are moved out of
    /// `head`, unless the request is rejected.
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

    /// Moves the request out, for a task. The headers stay here, because the log needs them.
    pub(super) fn move_to_task(&mut self) -> Self {
        Self {
            app: Arc::clone(&self.app),
            uri: self.uri.clone(),
            has_parameters: self.has_parameters,
            headers: HeaderMap::new(),
            body: mem::take(&mut self.body),
            charge: self.charge.take(),
        }
    }

    /// The parameters.
    #[must_use]
    pub fn query(&self) -> Query<'_> {
        // Most requests have none. The query was parsed without error before.
        let raw = if self.has_parameters { self.uri.query() } else { None };
        raw.and_then(|raw| Query::parse(raw).ok()).unwrap_or_default()
    }

    /// The channel in the path, after `/channels/`.
    ///
    /// # Errors
    /// [`ApiError::BadRequest`] for an invalid channel name.
    pub fn channel(&self) -> Result<ChannelName, ApiError> {
        let (_, rest) = self.uri.path().split_once("/channels/").unwrap_or_default();
        let name = rest.split('/').next().unwrap_or_default();
        let name =
            percent_decode_str(name).decode_utf8().map_err(|_| ApiError::bad("The path is not UTF-8"))?;
        parse_channel(&self.app, &name)
    }
}

/// The parts that were stripped from the path of a request.
fn stripped(head: &request::Parts) -> Option<&StrippedPath> {
    head.extensions.get()
}

/// The prefix that was stripped from the path of a request.
fn prefix(head: &request::Parts) -> &str {
    stripped(head).map_or("", |stripped| &stripped.prefix)
}

/// The app that the request claims to be from.
fn find_app(head: &request::Parts, raw_query: &str, api: &Api) -> Result<Arc<App>, ApiError> {
    let app = find(&api.0.apps, head.uri.path(), prefix(head), raw_query)?;
    if app.enabled { Ok(app) } else { Err(ApiError::AppDisabled) }
}

/// Checks the signature of the head, and counts the request.
fn check_signature<'q>(
    head: &request::Parts,
    query: &'q Query<'_>,
    app: &App,
    api: &Api,
    caller: &Caller,
) -> Result<Auth<'q>, ApiError> {
    let api = &api.0;
    let (path, stripped) = (head.uri.path(), stripped(head));
    let auth = query.auth()?;
    let secret = app.secret(auth.key).ok_or(SignatureError::UnknownKey)?;
    auth.check_time((api.options.unix_now)(), app.limits.auth_window_secs)?;
    let others = other_signed_paths(path, stripped, &app.path_prefix);
    let paths = iter::once(path).chain(others.iter().map(String::as_str));
    let method = head.method.as_str();
    query.verify(&auth, secret, method, paths).inspect_err(|_| {
        api.hub.observers().observe(Kind::SignatureMismatch, || Fact::SignatureMismatch {
            app: (&*app.id.0).into(),
            socket: None,
            string_to_sign: Some(query.string_to_sign(method, path).into()),
        });
    })?;
    caller.mark_authenticated();
    let counted = app.count_request(|| api.hub.now());
    counted.map_err(|wait| ApiError::too_many(Limit::Requests, "requests", wait))?;
    Ok(auth)
}

/// Finds the app of a request by the id in its path, or by its key for the one path without an id.
fn find(apps: &Apps, path: &str, prefix: &str, raw_query: &str) -> Result<Arc<App>, ApiError> {
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

/// The paths that the client may have signed instead of `path`: the path as received, with prefix and all slashes; the path
/// with the prefix of the app; and each of them percent-decoded, because HTTP libraries encode a path after the SDK has
/// signed it.
fn other_signed_paths(path: &str, stripped: Option<&StrippedPath>, app_prefix: &str) -> Vec<String> {
    let mut others = Vec::new();
    if let Some(StrippedPath { slashes, prefix }) = stripped {
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

/// The length of the body that the head announces.
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
) -> Result<(Bytes, Option<Box<BodyCharge>>), ApiError> {
    let bytes_max = app.limits.request_body_bytes_max;
    if announced > bytes_max {
        return Err(ApiError::BodyTooLarge { bytes_max });
    }
    let mut timeouts = BodyTimeouts { piece: api.0.options.read_timeout, until: None };
    let mut first = Bytes::new();
    let mut all: Option<Box<BodyBuffer>> = None;
    while let Some(frame) = timeouts.next(&mut body).await? {
        let frame = frame.map_err(|_| ApiError::bad("The request body could not be read"))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.as_ref().map_or(0, |all| all.len()) + data.len() > bytes_max {
            return Err(ApiError::BodyTooLarge { bytes_max });
        }
        // A body that arrives in one piece, as most do, is not copied.
        if first.is_empty() && all.is_none() {
            first = data;
            continue;
        }
        let all = match &mut all {
            Some(all) => all,
            None => {
                let bytes_max = if announced > 0 { announced } else { bytes_max };
                let all = all.insert(Box::new(BodyBuffer::new(api, app, auth.signature(), bytes_max).await?));
                all.push(&mem::take(&mut first))?;
                all
            }
        };
        all.push(&data)?;
    }
    Ok(match all {
        None => (first, None),
        Some(all) => {
            let (bytes, charge) = all.finish();
            (bytes.into(), Some(Box::new(charge)))
        }
    })
}

/// The timeouts of a body.
struct BodyTimeouts {
    /// The timeout of each piece.
    piece: Duration,
    /// The deadline of the whole body, set at the first wait.
    until: Option<Instant>,
}

impl BodyTimeouts {
    /// The next piece. A piece that has arrived already, as most bodies have with their head, needs no timer.
    async fn next<B: HttpBody + Unpin>(
        &mut self,
        body: &mut B,
    ) -> Result<Option<Result<Frame<B::Data>, B::Error>>, ApiError> {
        let at_once = Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(frame) = at_once {
            return Ok(frame);
        }
        let now = Instant::now();
        let until = *self.until.get_or_insert_with(|| now + self.piece * BODY_TIMEOUTS);
        let frame = tokio::time::timeout_at(until.min(now + self.piece), body.frame());
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
            assert_eq!(found.as_deref().ok().map(|app| &*app.id.0), id, "{prefix}{path}");
        }
    }

    #[test]
    fn a_path_may_have_been_signed_encoded_or_not_with_the_prefix_or_without() {
        let stripped =
            |slashes: &str, prefix: &str| StrippedPath { slashes: slashes.into(), prefix: prefix.into() };
        assert!(other_signed_paths("/apps/1/events", None, "").is_empty());
        let path = "/apps/1/users/a%20b/terminate_connections";
        let mut paths = other_signed_paths(path, Some(&stripped("", "/rt")), "/rt");
        paths.sort_unstable();
        let expected = [
            "/apps/1/users/a b/terminate_connections",
            "/rt/apps/1/users/a b/terminate_connections",
            "/rt/apps/1/users/a%20b/terminate_connections",
        ];
        assert_eq!(paths, expected);
        assert_eq!(other_signed_paths("/apps/1/events", None, "/rt"), ["/rt/apps/1/events"]);
        let paths = other_signed_paths("/apps/1/events", Some(&stripped("//", "/rt")), "/rt");
        assert_eq!(paths, ["///rt/apps/1/events", "/rt/apps/1/events"]);
        let paths = other_signed_paths("/apps/1/events", Some(&stripped("/", "")), "");
        assert_eq!(paths, ["//apps/1/events", "/apps/1/events"]);
    }
}
