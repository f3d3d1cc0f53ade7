//! Messages of clients against a naive decoder. The input is the text.

use pusherd::protocol::message::{ChannelData, ClientMessage};
use pusherd::protocol::wire::pusher::{DecodeError, decode};

use super::naive;

/// A message in words.
#[derive(Debug, Eq, PartialEq)]
enum Said {
    Ping,
    Pong,
    Subscribe { channel: String, auth: Option<String>, data: Data },
    Unsubscribe(String),
    SignIn { auth: Option<String>, user_data: Option<String> },
    Event { event: String, channel: Option<String>, data: Option<String> },
    Unsupported(String),
}

#[derive(Debug, Eq, PartialEq)]
enum Data {
    Absent,
    Text(String),
    NotText,
}

/// See the module.
pub fn holds(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    assert_eq!(decode(text).map(said), expected(text), "{text}");
}

fn said(message: ClientMessage<'_>) -> Said {
    match message {
        ClientMessage::Ping => Said::Ping,
        ClientMessage::Pong => Said::Pong,
        ClientMessage::Subscribe(subscribe) => Said::Subscribe {
            channel: subscribe.channel.into_owned(),
            auth: subscribe.auth.map(|auth| auth.into_owned()),
            data: match subscribe.channel_data {
                ChannelData::Absent => Data::Absent,
                ChannelData::Text(text) => Data::Text(text.into_owned()),
                ChannelData::NotText => Data::NotText,
            },
        },
        ClientMessage::Unsubscribe { channel } => Said::Unsubscribe(channel.into_owned()),
        ClientMessage::SignIn(sign_in) => Said::SignIn {
            auth: sign_in.auth.map(|auth| auth.into_owned()),
            user_data: sign_in.user_data.map(|data| data.into_owned()),
        },
        ClientMessage::Event(event) => Said::Event {
            event: event.event.into_owned(),
            channel: event.channel.map(|channel| channel.into_owned()),
            data: event.data.map(|data| data.get().to_owned()),
        },
        ClientMessage::Unsupported { event } => Said::Unsupported(event.into_owned()),
    }
}

/// Source: protocol.md §2.8.
fn expected(text: &str) -> Result<Said, DecodeError> {
    let message = naive::object(text).ok_or(DecodeError::Json)?;
    let event = message.get("event").and_then(|event| naive::string(event)).ok_or(DecodeError::NoEvent)?;
    let data = message.get("data");
    let inner = data.map(|data| naive::string(data).unwrap_or_else(|| data.get().to_owned()));
    let inner = inner.and_then(|inner| naive::object(&inner)).unwrap_or_default();
    let text = |key: &str| inner.get(key).and_then(|value| naive::string(value));
    let channel = || text("channel").ok_or(DecodeError::NoChannel);
    Ok(match event.as_str() {
        "pusher:ping" => Said::Ping,
        "pusher:pong" => Said::Pong,
        "pusher:subscribe" => Said::Subscribe {
            channel: channel()?,
            auth: text("auth"),
            data: match inner.get("channel_data") {
                Some(value) if !["null", "\"\""].contains(&value.get()) => {
                    text("channel_data").map_or(Data::NotText, Data::Text)
                }
                Some(_) | None => Data::Absent,
            },
        },
        "pusher:unsubscribe" => Said::Unsubscribe(channel()?),
        "pusher:signin" => Said::SignIn { auth: text("auth"), user_data: text("user_data") },
        name if name.starts_with("client-") => Said::Event {
            channel: message.get("channel").and_then(|channel| naive::string(channel)),
            data: data.map(|data| data.get().to_owned()),
            event,
        },
        _ => Said::Unsupported(event),
    })
}
