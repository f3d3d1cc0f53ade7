//! The signed data about users: the `channel_data` of a presence channel and the `user_data` of a sign-in, against a naive
//! parser. The input is the text.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use pusherd::apps::{App, AppLimits};
use pusherd::protocol::message::{ChannelData, ClientMessage, SignIn, Subscribe};
use pusherd::protocol::{Member, SocketId};
use pusherd::session::{Action, Session};
use serde_json::value::RawValue;

use super::naive::{self, Object};

const ID_CHARS: usize = 8;
const INFO_BYTES: usize = 16;
const CHANNEL_DATA_BYTES: usize = 80;
const WATCHLIST: usize = 3;

/// A member: the id and the info.
type Known = (String, String);

/// See the module.
pub fn holds(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let limits = AppLimits {
        user_id_chars_max: ID_CHARS,
        presence_user_info_bytes_max: INFO_BYTES,
        channel_data_bytes_max: CHANNEL_DATA_BYTES,
        watchlist_users_max: WATCHLIST,
        ..AppLimits::default()
    };
    let app = Arc::new(App { limits, ..App::new("1", "key", "secret") });
    let session = || Session::new(SocketId::new(1, 2), Arc::clone(&app));
    if text.is_empty() {
        return;
    }

    let subscribe = |text: &str| {
        ClientMessage::Subscribe(Subscribe {
            channel: "presence-x".into(),
            auth: Some(format!("key:{}", naive::hmac("secret", &format!("1.2:presence-x:{text}"))).into()),
            channel_data: ChannelData::Text(Cow::Owned(text.to_owned())),
        })
    };
    let joined = match session().receive(subscribe(text), Duration::ZERO) {
        Action::Join { member: Some(member), .. } => Ok(known(&member)),
        Action::Refuse { refusal, .. } => Err(refusal.status),
        other => panic!("{other:?}"),
    };
    assert_eq!(joined, expected_member(text), "{text}");

    let auth = format!("key:{}", naive::hmac("secret", &format!("1.2::user::{text}")));
    let sign_in = SignIn { auth: Some(auth.into()), user_data: Some(text.into()) };
    let signed_in = match session().receive(ClientMessage::SignIn(sign_in), Duration::ZERO) {
        Action::SignIn { signed_in, truncated_to, user_data, .. } => {
            assert_eq!(user_data, text);
            let watched = signed_in.watchlist.iter().map(|id| id.as_str().to_owned()).collect();
            Some((known(&signed_in.member), watched, truncated_to.is_some()))
        }
        Action::Error { .. } => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(signed_in, expected_user(text), "{text}");
}

fn known(member: &Member) -> Known {
    (member.id.as_str().to_owned(), member.info.to_string())
}

/// A string or a whole number of the right length. Source: protocol.md §4.7.
fn id(value: &RawValue) -> Result<String, u16> {
    let digits = value.get().strip_prefix('-').unwrap_or(value.get());
    let is_integer = digits.chars().all(|char| char.is_ascii_digit());
    let id = naive::string(value).or_else(|| is_integer.then(|| value.get().to_owned()));
    let id = id.filter(|id| !id.is_empty()).ok_or(401u16)?;
    if id.chars().count() > ID_CHARS { Err(4301) } else { Ok(id) }
}

fn info(data: &Object) -> Result<String, u16> {
    let info = data.get("user_info").map_or("null", |info| info.get());
    if info.len() > INFO_BYTES { Err(4301) } else { Ok(info.to_owned()) }
}

fn expected_member(text: &str) -> Result<Known, u16> {
    if text.len() > CHANNEL_DATA_BYTES {
        return Err(4301);
    }
    let data = naive::object(text).ok_or(401u16)?;
    Ok((id(data.get("user_id").ok_or(401u16)?)?, info(&data)?))
}

/// The user, the watchlist, and whether it was truncated. Source: protocol.md §6.
fn expected_user(text: &str) -> Option<(Known, Vec<String>, bool)> {
    let data = naive::object(text)?;
    if naive::depth(text) > 128 {
        return None;
    }
    let user = id(data.get("id")?).ok()?;
    if !naive::is_channel_name(&user, ID_CHARS) {
        return None;
    }
    let known = (user, info(&data).ok()?);
    let listed = data.get("watchlist").and_then(|list| naive::array(list.get())).unwrap_or_default();
    let mut watched: Vec<String> = Vec::new();
    for user in listed.iter().filter_map(|item| id(item).ok()) {
        if !watched.contains(&user) {
            watched.push(user);
        }
    }
    let is_cut = watched.len() > WATCHLIST;
    watched.truncate(WATCHLIST);
    Some((known, watched, is_cut))
}
