//! Queries about channels, their users, and connections. Source: protocol.md §8.6, §8.7, §8.9.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Serialize;

use super::info::{Attributes, Info};
use super::streamed::{self, Chunks};
use super::{Api, ApiError, Signed};
use crate::apps::App;
use crate::hub;
use crate::protocol::{ChannelName, UserId};

/// The response to [`channels`].
struct Channels {
    channels: hub::ChannelList,
    info: Info,
    list: JsonList,
}

/// The state of a JSON list that is being written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum JsonList {
    /// Nothing is written.
    #[default]
    Unopened,
    /// The list is open and has no items.
    Empty,
    /// The list is open and has items.
    NonEmpty,
}

impl JsonList {
    /// Writes the separator before an item, if there is one.
    fn before_item(&mut self, out: &mut Vec<u8>) {
        if *self == Self::NonEmpty {
            out.push(b',');
        }
        *self = Self::NonEmpty;
    }

    /// Writes `head` if nothing is written.
    fn open(&mut self, out: &mut Vec<u8>, head: &[u8]) {
        if *self == Self::Unopened {
            out.extend_from_slice(head);
            *self = Self::Empty;
        }
    }
}

fn write(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect("names and numbers are written to memory");
}

impl Chunks for Channels {
    fn push(&mut self, out: &mut Vec<u8>) -> bool {
        self.list.open(out, br#"{"channels":{"#);
        let Some(chunk) = self.channels.next_chunk() else {
            out.extend_from_slice(b"}}");
            return false;
        };
        for (name, found) in &chunk {
            self.list.before_item(out);
            write(out, &name.as_str());
            out.push(b':');
            write(out, &self.info.of(name, found));
        }
        true
    }
}

/// `GET /apps/{app_id}/channels`: the occupied channels.
pub(super) async fn channels(State(api): State<Api>, signed: Signed) -> Result<Response, ApiError> {
    let query = signed.query();
    let prefix = query.value("filter_by_prefix").unwrap_or_default();
    let allowed = Info { user_count: true, subscription_count: true, cache: false };
    let info = Info::parse_strictly(&query.value("info").unwrap_or_default(), allowed)?;
    if info.user_count && !prefix.starts_with("presence-") {
        return Err(ApiError::bad("info: user_count needs a filter_by_prefix that starts with presence-"));
    }
    let permit = api.0.lists.acquire(&signed.app, api.0.options.answer_timeout).await?;
    let channels = api.0.hub.channels(&signed.app, &prefix, info.query()).await?;
    let source = Channels { channels, info, list: JsonList::default() };
    Ok(streamed::respond(&api, source, Some(permit)).await)
}

/// The response to [`channel`].
#[derive(Debug, Serialize)]
pub(super) struct Channel {
    occupied: bool,
    #[serde(flatten)]
    attributes: Attributes,
}

/// `GET /apps/{app_id}/channels/{channel}`: an unknown channel is not occupied.
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
    let found = api.0.hub.channel(&signed.app, &channel, info.query()).await?;
    Ok(Json(Channel { occupied: found.subscriptions > 0, attributes: info.of(&channel, &found) }))
}

/// `GET /apps/{app_id}/channels/{channel}/stats` of the API of 2012.
pub(super) async fn stats(State(api): State<Api>, signed: Signed) -> Result<Json<Channel>, ApiError> {
    let channel = signed.channel()?;
    let info = Info { user_count: true, subscription_count: false, cache: false };
    let found = api.0.hub.channel(&signed.app, &channel, info.query()).await?;
    Ok(Json(Channel { occupied: found.subscriptions > 0, attributes: info.of(&channel, &found) }))
}

/// The response to [`users`].
struct Users {
    users: std::vec::IntoIter<UserId>,
    list: JsonList,
}

#[derive(Debug, Serialize)]
struct User<'a> {
    id: &'a str,
}

/// Users that are encoded before other tasks run.
const USERS_PER_TURN: usize = 1000;

impl Chunks for Users {
    fn push(&mut self, out: &mut Vec<u8>) -> bool {
        self.list.open(out, br#"{"users":["#);
        for user in self.users.by_ref().take(USERS_PER_TURN) {
            self.list.before_item(out);
            write(out, &User { id: user.as_str() });
        }
        let is_more = !self.users.as_slice().is_empty();
        if !is_more {
            out.extend_from_slice(b"]}");
        }
        is_more
    }
}

/// `GET /apps/{app_id}/channels/{channel}/users`, for presence channels.
pub(super) async fn users(State(api): State<Api>, signed: Signed) -> Result<Response, ApiError> {
    let channel = signed.channel()?;
    if !channel.is_presence() {
        return Err(ApiError::bad("Only presence channels have users"));
    }
    let users = api.0.hub.users(&signed.app, &channel).await?;
    let source = Users { users: users.into_iter(), list: JsonList::default() };
    Ok(streamed::respond(&api, source, None).await)
}

/// The response to [`connections`].
#[derive(Debug, Serialize)]
pub(super) struct Connections {
    connections: u64,
}

/// `GET /apps/{app_id}/connections`, which Reverb's card for Laravel Pulse requests.
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
