//! Errors of a request: a status and one sentence, which Laravel prints unchanged.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::hub::Unavailable;
use crate::limits::Limit;
use crate::protocol::request::{QueryError, SignatureError};
use crate::rejections::{Mistake, Rejection};

/// Why a request is rejected. Source: protocol.md §8.10.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// 400: the request is invalid.
    #[error("{0}")]
    BadRequest(String),
    /// 401: the signature is invalid.
    #[error("Not authorised: {0}")]
    Unauthorized(#[from] SignatureError),
    /// 403: the app is disabled.
    #[error("The app is disabled")]
    AppDisabled,
    /// 404: unknown path.
    #[error("{0}")]
    NotFound(String),
    /// 404: unknown app.
    #[error("{0}")]
    UnknownApp(String),
    /// 405: a known path with another method.
    #[error("Method not allowed")]
    MethodNotAllowed,
    /// 408: the body did not arrive in time.
    #[error("The request body did not arrive in time")]
    Timeout,
    /// 413: a value exceeds a limit of the app.
    #[error("{0}")]
    TooLarge(String),
    /// 413: the body exceeds the limit of the app.
    #[error("The request body is longer than {bytes_max} bytes (limits.request_body_bytes of the app)")]
    BodyTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// 409: the first request with this idempotency key is in progress.
    #[error("A request with this idempotency key is being answered")]
    InProgress,
    /// 409: the body of another request with the same signature is arriving.
    #[error("A request with the same signature is being sent: its body has to come first")]
    SignatureInUse,
    /// 422: the idempotency key was used for another request.
    #[error("The idempotency key was used for a request with another body")]
    KeyReused,
    /// 429: a rate or a count exceeds a limit of the app.
    #[error("{sentence}")]
    TooMany {
        /// The limit.
        limit: Limit,
        /// The message.
        sentence: String,
        /// The time until a retry.
        retry_after_secs: u64,
    },
    /// 503: the broker of the cluster is unavailable.
    #[error("The request was not carried out: {0}")]
    BrokerUnavailable(#[from] Unavailable),
    /// 429: too many lists of channels are served or waiting.
    #[error("Too many lists of channels at once: of each app, one is served and {max_waiting} may wait", max_waiting = .0 - 1)]
    TooManyLists(u32),
    /// 503: the bodies of all requests in flight exceed this many bytes.
    #[error(
        "The server has more than {0} bytes of requests in flight (server.requests_in_flight_bytes); try again"
    )]
    Busy(usize),
    /// 503: the node shuts down. Only `/ready` returns it; other requests are served until the end.
    #[error("The server is shutting down")]
    Draining,
}

impl ApiError {
    /// A 400 with this sentence.
    pub(super) fn bad(sentence: impl ToString) -> Self {
        Self::BadRequest(sentence.to_string())
    }

    /// A 429 for too many of `what`, with the time until a retry.
    pub(super) fn too_many(limit: Limit, what: impl std::fmt::Display, wait: Duration) -> Self {
        let retry_after_secs = wait.as_secs_f64().ceil().max(1.0) as u64;
        let sentence = format!("The app sends too many {what} ({} of the app)", limit.setting());
        Self::TooMany { limit, sentence, retry_after_secs }
    }

    /// The rejection to report to the operator. `None` if the request was not at fault.
    pub(super) fn rejection(&self) -> Option<Rejection> {
        Some(match self {
            Self::Unauthorized(SignatureError::UnknownKey) => Mistake::RequestKey.into(),
            Self::Unauthorized(SignatureError::Expired { .. }) => Mistake::RequestClock.into(),
            Self::Unauthorized(_) => Mistake::RequestSignature.into(),
            Self::AppDisabled => Mistake::AppDisabled.into(),
            Self::UnknownApp(_) => Mistake::RequestApp.into(),
            Self::NotFound(_) => Mistake::RequestPath.into(),
            Self::BodyTooLarge { .. } => Limit::RequestBytes.into(),
            Self::TooMany { limit, .. } => (*limit).into(),
            Self::BadRequest(_)
            | Self::MethodNotAllowed
            | Self::Timeout
            | Self::TooLarge(_)
            | Self::InProgress
            | Self::SignatureInUse
            | Self::TooManyLists(_)
            | Self::KeyReused => Mistake::Request.into(),
            Self::BrokerUnavailable(_) | Self::Busy(_) | Self::Draining => return None,
        })
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::AppDisabled => StatusCode::FORBIDDEN,
            Self::UnknownApp(_) | Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge(_) | Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::InProgress | Self::SignatureInUse => StatusCode::CONFLICT,
            Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooMany { .. } | Self::TooManyLists(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::BrokerUnavailable(_) | Self::Busy(_) | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        Self::bad(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        const TEXT: [(HeaderName, HeaderValue); 1] =
            [(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))];
        let retry_after_secs = match &self {
            Self::TooMany { retry_after_secs, .. } => Some(*retry_after_secs),
            Self::BrokerUnavailable(_)
            | Self::Busy(_)
            | Self::Draining
            | Self::InProgress
            | Self::SignatureInUse
            | Self::TooManyLists(_) => Some(1),
            Self::BadRequest(_)
            | Self::Unauthorized(_)
            | Self::AppDisabled
            | Self::UnknownApp(_)
            | Self::NotFound(_)
            | Self::MethodNotAllowed
            | Self::Timeout
            | Self::TooLarge(_)
            | Self::BodyTooLarge { .. }
            | Self::KeyReused => None,
        };
        let retry_after = retry_after_secs.map(|secs| [(header::RETRY_AFTER, HeaderValue::from(secs))]);
        let retry_after = retry_after.map(axum::response::AppendHeaders);
        let mut response = (self.status(), TEXT, retry_after, self.to_string()).into_response();
        // `Service::answer` reads it, to count the rejection.
        response.extensions_mut().insert(self);
        response
    }
}
