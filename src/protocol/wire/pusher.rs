//! Pusher's JSON: decodes text of clients to [`ClientMessage`] and encodes [`ServerMessage`] to a [`Frame`].
//!
//! `data` is a JSON-encoded string in every message of the server except `pusher:error` (an object) and client events (the
//! type that the client sent). Source: protocol.md §0 and §§2-6.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{Frame, websocket};
use crate::protocol::json::{self, push_number, push_string};
use crate::protocol::message::{
    ChannelData, ClientEvent, ClientMessage, Refusal, ServerMessage, SignIn, Subscribe,
};
use crate::protocol::{Member, UserId};

/// Why a text is not a message of the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// The text is not a JSON object.
    #[error("Received invalid JSON")]
    Json,
    /// `event` is missing or not a string.
    #[error("Received a message without an event name")]
    NoEvent,
    /// A subscribe or unsubscribe that names no channel.
    #[error("Missing parameter: data.channel")]
    NoChannel,
}

/// Decodes a message of a client.
///
/// # Errors
/// [`DecodeError`], which the client receives in an error frame; the connection stays open.
pub fn decode(text: &str) -> Result<ClientMessage<'_>, DecodeError> {
    let [event, data, channel] =
        json::pick(text, ["event", "data", "channel"]).map_err(|_| DecodeError::Json)?;
    let event = event.and_then(json::string).ok_or(DecodeError::NoEvent)?;
    match &*event {
        "pusher:ping" => Ok(ClientMessage::Ping),
        "pusher:pong" => Ok(ClientMessage::Pong),
        "pusher:subscribe" => {
            let data = Data::of(data);
            let [channel, auth, channel_data] = data.pick(["channel", "auth", "channel_data"]);
            Ok(ClientMessage::Subscribe(Subscribe {
                channel: owned(channel).ok_or(DecodeError::NoChannel)?,
                auth: owned(auth),
                channel_data: match channel_data {
                    None => ChannelData::Absent,
                    Some(value) if json::is_null(value) => ChannelData::Absent,
                    Some(value) => match json::string(value) {
                        None => ChannelData::NotText,
                        Some(text) if text.is_empty() => ChannelData::Absent,
                        Some(text) => ChannelData::Text(Cow::Owned(text.into_owned())),
                    },
                },
            }))
        }
        "pusher:unsubscribe" => {
            let data = Data::of(data);
            let [channel] = data.pick(["channel"]);
            Ok(ClientMessage::Unsubscribe { channel: owned(channel).ok_or(DecodeError::NoChannel)? })
        }
        "pusher:signin" => {
            let data = Data::of(data);
            let [auth, user_data] = data.pick(["auth", "user_data"]);
            Ok(ClientMessage::SignIn(SignIn { auth: owned(auth), user_data: owned(user_data) }))
        }
        name if name.starts_with("client-") => {
            Ok(ClientMessage::Event(ClientEvent { event, channel: channel.and_then(json::string), data }))
        }
        _ => Ok(ClientMessage::Unsupported { event }),
    }
}

/// The `data` of a `pusher:*` message: an object, or a string that contains one. Anything else counts as empty.
struct Data<'a>(Cow<'a, str>);

impl<'a> Data<'a> {
    fn of(data: Option<&'a RawValue>) -> Self {
        Self(match data {
            None => Cow::Borrowed(""),
            Some(value) => json::string(value).unwrap_or(Cow::Borrowed(value.get())),
        })
    }

    fn pick<const N: usize>(&self, names: [&'static str; N]) -> [Option<&RawValue>; N] {
        json::pick(&self.0, names).unwrap_or([None; N])
    }
}

fn owned<'a>(value: Option<&RawValue>) -> Option<Cow<'a, str>> {
    value.and_then(json::string).map(|text| Cow::Owned(text.into_owned()))
}

/// Encodes a message of the server.
#[must_use]
pub fn encode(message: &ServerMessage<'_>) -> Frame {
    websocket::text_frame(|out| write(message, out))
}

fn write(message: &ServerMessage<'_>, out: &mut Vec<u8>) {
    match message {
        ServerMessage::Established { socket, activity_timeout_secs } => {
            let inner = format!(r#"{{"socket_id":"{socket}","activity_timeout":{activity_timeout_secs}}}"#);
            frame(out, "pusher:connection_established", None, &inner);
        }
        ServerMessage::Pong => frame(out, "pusher:pong", None, "{}"),
        ServerMessage::Error { code, message } => {
            out.extend_from_slice(br#"{"event":"pusher:error","data":{"code":"#);
            match code {
                Some(code) => push_number(out, (*code).into()),
                None => out.extend_from_slice(b"null"),
            }
            out.extend_from_slice(br#","message":"#);
            push_string(out, message);
            out.extend_from_slice(b"}}");
        }
        ServerMessage::Subscribed { channel, members } => {
            let inner = members.as_ref().map_or_else(|| "{}".to_owned(), |members| roster(members));
            frame(out, "pusher_internal:subscription_succeeded", Some(channel.as_str()), &inner);
        }
        ServerMessage::SubscriptionRefused { channel, refusal } => {
            frame(out, "pusher:subscription_error", Some(channel), &refused(refusal));
        }
        ServerMessage::MemberAdded { channel, member } => {
            let inner = text(|inner| {
                inner.extend_from_slice(br#"{"user_id":"#);
                push_string(inner, member.id.as_str());
                inner.extend_from_slice(br#","user_info":"#);
                inner.extend_from_slice(member.info.as_bytes());
                inner.push(b'}');
            });
            frame(out, "pusher_internal:member_added", Some(channel.as_str()), &inner);
        }
        ServerMessage::MemberRemoved { channel, user } => {
            let inner = text(|inner| {
                inner.extend_from_slice(br#"{"user_id":"#);
                push_string(inner, user.as_str());
                inner.push(b'}');
            });
            frame(out, "pusher_internal:member_removed", Some(channel.as_str()), &inner);
        }
        // With `data`, as hosted Pusher sends it (compared in sockudo#78). Soketi and Reverb omit it; pusher-js, Java and
        // Swift accept both, and the decoders of other clients require `data` in every frame.
        ServerMessage::CacheMiss { channel } => frame(out, "pusher:cache_miss", Some(channel.as_str()), "{}"),
        ServerMessage::SubscriptionCount { channel, count } => {
            let inner = format!(r#"{{"subscription_count":{count}}}"#);
            frame(out, "pusher_internal:subscription_count", Some(channel.as_str()), &inner);
        }
        ServerMessage::Event { channel, event, data, user } => {
            out.reserve(channel.as_str().len() + event.len() + data.len() + 64);
            start(out, event, Some(channel.as_str()));
            out.extend_from_slice(data.as_bytes());
            if let Some(user) = user {
                out.extend_from_slice(br#","user_id":"#);
                push_string(out, user.as_str());
            }
            out.push(b'}');
        }
        ServerMessage::SignedIn { user_data } => {
            let inner = text(|inner| {
                inner.extend_from_slice(br#"{"user_data":"#);
                push_string(inner, user_data);
                inner.push(b'}');
            });
            frame(out, "pusher:signin_success", None, &inner);
        }
        ServerMessage::Watchlist { online, offline } => {
            frame(out, "pusher_internal:watchlist_events", None, &watchlist(online, offline));
        }
    }
}

/// `{"event":…,"channel":…,"data":`
fn start(out: &mut Vec<u8>, event: &str, channel: Option<&str>) {
    out.extend_from_slice(br#"{"event":"#);
    push_string(out, event);
    if let Some(channel) = channel {
        out.extend_from_slice(br#","channel":"#);
        push_string(out, channel);
    }
    out.extend_from_slice(br#","data":"#);
}

/// A complete message of the server with `data` as a string.
fn frame(out: &mut Vec<u8>, event: &str, channel: Option<&str>, data: &str) {
    start(out, event, channel);
    push_string(out, data);
    out.push(b'}');
}

/// The text that `write` appends. It is JSON, hence UTF-8.
fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    String::from_utf8(out).expect("JSON made of text is UTF-8")
}

/// `{"presence":{"ids":[…],"hash":{…},"count":n}}`; `ids` and `hash` have the same keys.
fn roster(members: &[Member]) -> String {
    text(|out| {
        out.extend_from_slice(br#"{"presence":{"ids":["#);
        list(out, members, |out, member| push_string(out, member.id.as_str()));
        out.extend_from_slice(br#"],"hash":{"#);
        list(out, members, |out, member| {
            push_string(out, member.id.as_str());
            out.push(b':');
            out.extend_from_slice(member.info.as_bytes());
        });
        out.extend_from_slice(br#"},"count":"#);
        push_number(out, members.len() as u64);
        out.extend_from_slice(b"}}");
    })
}

fn refused(refusal: &Refusal) -> String {
    text(|out| {
        out.extend_from_slice(br#"{"type":"#);
        push_string(out, refusal.kind.as_str());
        out.extend_from_slice(br#","error":"#);
        push_string(out, &refusal.reason);
        out.extend_from_slice(br#","status":"#);
        push_number(out, refusal.status.into());
        out.push(b'}');
    })
}

/// `{"events":[…]}` without empty groups.
fn watchlist(online: &[UserId], offline: &[UserId]) -> String {
    text(|out| {
        out.extend_from_slice(br#"{"events":["#);
        let groups = [("online", online), ("offline", offline)];
        let groups: Vec<_> = groups.into_iter().filter(|(_, users)| !users.is_empty()).collect();
        list(out, &groups, |out, (name, users)| {
            out.extend_from_slice(br#"{"name":"#);
            push_string(out, name);
            out.extend_from_slice(br#","user_ids":["#);
            list(out, users, |out, user| push_string(out, user.as_str()));
            out.extend_from_slice(b"]}");
        });
        out.extend_from_slice(b"]}");
    })
}

fn list<T>(out: &mut Vec<u8>, items: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write(out, item);
    }
}

#[cfg(test)]
mod tests;
