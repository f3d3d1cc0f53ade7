//! Questions about channels. Source: protocol.md §8.6, §8.7, §8.9.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::info::{Attributes, Info};
use super::{Api, ApiError, Signed};
use crate::apps::App;
use crate::protocol::ChannelName;

/// The answer to [`channels`].
#[derive(Debug, Serialize)]
pub(super) struct Channels {
    channels: BTreeMap<Box<str>, Attributes>,
}

/// `GET /apps/{app_id}/channels`: the occupied ones.
pub(super) async fn channels(State(api): State<Api>, signed: Signed) -> Result<Json<Channels>, ApiError> {
    let query = signed.query();
    let prefix = query.value("filter_by_prefix").unwrap_or_default();
    let allowed = Info { user_count: true, subscription_count: true, cache: false };
    let info = Info::parse_strictly(&query.value("info").unwrap_or_default(), allowed)?;
    if info.user_count && !prefix.starts_with("presence-") {
        return Err(ApiError::bad("info: user_count needs a filter_by_prefix that starts with presence-"));
    }
    let channels = api.0.hub.channels(&signed.app, &prefix, info.wanted()).await?.into_iter();
    let channels = channels.map(|(name, found)| (name.as_str().into(), info.of(&name, &found)));
    Ok(Json(Channels { channels: channels.collect() }))
}

/// The answer to [`channel`].
#[derive(Debug, Serialize)]
pub(super) struct Channel {
    occupied: bool,
    #[serde(flatten)]
    attributes: Attributes,
}

/// `GET /apps/{app_id}/channels/{channel}`; one that nobody ever heard of is not occupied.
pub(super) async fn channel(State(api): State<Api>, signed: Signed) -> Result<Json<Channel>, ApiError> {
    let channel = signed.channel()?;
    let allowed = Info { user_count: true, subscription_count: true, cache: true };
    let info = Info::parse_strictly(&signed.query().value("info").unwrap_or_default(), allowed)?;
    if info.user_count && !channel.is_presence() {
        return Err(ApiError::bad("info: user_count is an attribute of presence channels"));
    }
    if info.cache && !channel.is_cached() {
        return Err(ApiError::bad("info: cache is an attribute of cache channels"));
    }
    let found = api.0.hub.channel(&signed.app, &channel, info.wanted()).await?;
    Ok(Json(Channel { occupied: found.subscriptions > 0, attributes: info.of(&channel, &found) }))
}

/// `GET /apps/{app_id}/channels/{channel}/stats`, of the API of 2012.
pub(super) async fn stats(State(api): State<Api>, signed: Signed) -> Result<Json<Channel>, ApiError> {
    let channel = signed.channel()?;
    let info = Info { user_count: true, subscription_count: false, cache: false };
    let found = api.0.hub.channel(&signed.app, &channel, info.wanted()).await?;
    Ok(Json(Channel { occupied: found.subscriptions > 0, attributes: info.of(&channel, &found) }))
}

/// The answer to [`users`].
#[derive(Debug, Serialize)]
pub(super) struct Users {
    users: Vec<User>,
}

#[derive(Debug, Serialize)]
struct User {
    id: Box<str>,
}

/// `GET /apps/{app_id}/channels/{channel}/users`, of presence channels.
pub(super) async fn users(State(api): State<Api>, signed: Signed) -> Result<Json<Users>, ApiError> {
    let channel = signed.channel()?;
    if !channel.is_presence() {
        return Err(ApiError::bad("Only presence channels have users"));
    }
    let users = api.0.hub.users(&signed.app, &channel).await?;
    Ok(Json(Users { users: users.iter().map(|user| User { id: user.as_str().into() }).collect() }))
}

/// The answer to [`connections`].
#[derive(Debug, Serialize)]
pub(super) struct Connections {
    connections: u64,
}

/// `GET /apps/{app_id}/connections`, which Reverb's card for Laravel Pulse polls.
pub(super) async fn connections(
    State(api): State<Api>,
    signed: Signed,
) -> Result<Json<Connections>, ApiError> {
    Ok(Json(Connections { connections: api.0.hub.connections_of(&signed.app).await? }))
}

pub(super) fn parse(app: &App, channel: &str) -> Result<ChannelName, ApiError> {
    ChannelName::parse(channel, &app.names).map_err(|why| {
        let shown = &channel[..channel.floor_char_boundary(80)];
        ApiError::bad(format_args!("Invalid channel name {shown}: {why}"))
    })
}
