//! Questions about channels. Source: protocol.md §8.6, §8.7, §8.9.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Serialize;

use super::info::{Attributes, Info};
use super::lists::{self, Parts};
use super::{Api, ApiError, Signed};
use crate::apps::App;
use crate::hub;
use crate::protocol::{ChannelName, UserId};

/// The answer to [`channels`].
struct Channels {
    channels: hub::Channels,
    info: Info,
    /// Whether there is something before the next one.
    state: Begun,
}

/// How far a list is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Begun {
    /// Nothing is written.
    #[default]
    No,
    /// It is open, and there is nothing in it.
    Empty,
    /// There is something in it.
    Yes,
}

impl Begun {
    /// Writes what comes before an item.
    fn before_item(&mut self, out: &mut Vec<u8>) {
        if *self == Self::Yes {
            out.push(b',');
        }
        *self = Self::Yes;
    }

    fn open(&mut self, out: &mut Vec<u8>, head: &[u8]) {
        if *self == Self::No {
            out.extend_from_slice(head);
            *self = Self::Empty;
        }
    }
}

fn write(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect("names and numbers are written to memory");
}

impl Parts for Channels {
    fn push(&mut self, out: &mut Vec<u8>) -> bool {
        self.state.open(out, br#"{"channels":{"#);
        let Some(some) = self.channels.next_some() else {
            out.extend_from_slice(b"}}");
            return false;
        };
        for (name, found) in &some {
            self.state.before_item(out);
            write(out, &name.as_str());
            out.push(b':');
            write(out, &self.info.of(name, found));
        }
        true
    }
}

/// `GET /apps/{app_id}/channels`: the occupied ones.
pub(super) async fn channels(State(api): State<Api>, signed: Signed) -> Result<Response, ApiError> {
    let query = signed.query();
    let prefix = query.value("filter_by_prefix").unwrap_or_default();
    let allowed = Info { user_count: true, subscription_count: true, cache: false };
    let info = Info::parse_strictly(&query.value("info").unwrap_or_default(), allowed)?;
    if info.user_count && !prefix.starts_with("presence-") {
        return Err(ApiError::bad("info: user_count needs a filter_by_prefix that starts with presence-"));
    }
    let turn = api.0.lists.turn(&signed.app, api.0.options.answer_timeout).await?;
    let channels = api.0.hub.channels(&signed.app, &prefix, info.wanted()).await?;
    Ok(lists::answer(&api, Channels { channels, info, state: Begun::default() }, Some(turn)).await)
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
struct Users {
    users: std::vec::IntoIter<UserId>,
    state: Begun,
}

#[derive(Debug, Serialize)]
struct User<'a> {
    id: &'a str,
}

/// Users of an answer before other work gets its turn.
const USERS_AT_ONCE: usize = 1000;

impl Parts for Users {
    fn push(&mut self, out: &mut Vec<u8>) -> bool {
        self.state.open(out, br#"{"users":["#);
        for user in self.users.by_ref().take(USERS_AT_ONCE) {
            self.state.before_item(out);
            write(out, &User { id: user.as_str() });
        }
        let is_more = !self.users.as_slice().is_empty();
        if !is_more {
            out.extend_from_slice(b"]}");
        }
        is_more
    }
}

/// `GET /apps/{app_id}/channels/{channel}/users`, of presence channels.
pub(super) async fn users(State(api): State<Api>, signed: Signed) -> Result<Response, ApiError> {
    let channel = signed.channel()?;
    if !channel.is_presence() {
        return Err(ApiError::bad("Only presence channels have users"));
    }
    let users = api.0.hub.users(&signed.app, &channel).await?;
    Ok(lists::answer(&api, Users { users: users.into_iter(), state: Begun::default() }, None).await)
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
