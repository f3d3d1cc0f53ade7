//! Terminating the connections of a user. Source: protocol.md §8.8.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::{Api, ApiError, Signed};
use crate::protocol::UserId;
use crate::protocol::name::excerpt;

/// `POST /apps/{app_id}/users/{user_id}/terminate_connections`, and the path of the Python SDK without the app.
pub(super) async fn terminate(
    State(api): State<Api>,
    uri: Uri,
    signed: Signed,
) -> Result<Json<Map<String, Value>>, ApiError> {
    let path = uri.path();
    let id = path.split_once("/users/").and_then(|(_, rest)| rest.strip_suffix("/terminate_connections"));
    let Some(id) = id.filter(|id| !id.is_empty()) else {
        return Err(ApiError::NotFound(format!("There is nothing at {}", excerpt(path))));
    };
    let id = percent_decode_str(id).decode_utf8().map_err(|_| ApiError::bad("The user id is not UTF-8"))?;
    let id = UserId::parse(&id, signed.app.limits.user_id_chars_max).map_err(ApiError::bad)?;
    api.0.hub.terminate_user(&signed.app, &id).await?;
    Ok(Json(Map::new()))
}
