//! The parameters of an event in a publish request, from its body or its query, and their checks.
//! Source: protocol.md §8.4.

use std::borrow::Cow;

use serde_json::value::RawValue;
use smallvec::{Array, SmallVec, smallvec};

use super::ApiError;
use super::channels::parse as parse_channel;
use super::info::Info;
use crate::apps::App;
use crate::protocol::json;
use crate::protocol::message::{Event, Source};
use crate::protocol::request::Query;
use crate::protocol::{Access, ChannelName, EventName, SocketId};

/// A checked event of a publish request.
#[derive(Debug)]
pub(super) struct Trigger<'a> {
    pub(super) name: EventName<'a>,
    /// A JSON string literal, unchanged if the request had one.
    pub(super) data: Cow<'a, str>,
    pub(super) channels: SmallVec<[ChannelName; 1]>,
    pub(super) except: Option<SocketId>,
    pub(super) info: Info,
}

impl<'a> Trigger<'a> {
    pub(super) fn parse(app: &App, fields: &Fields<'a>) -> Result<Self, ApiError> {
        let limits = &app.limits;
        let name = fields.text("name", fields.name)?.ok_or_else(|| ApiError::bad("name is missing"))?;
        let name = EventName::parse(name, limits.event_name_chars_max).map_err(ApiError::bad)?;
        let data = fields.data()?.ok_or_else(|| ApiError::bad("data is missing"))?;
        check_data_len(app, json::decoded_len(&data))?;
        let names = fields.channels(limits.channels_per_publish_max)?;
        let mut channels = SmallVec::<[ChannelName; 1]>::new();
        for name in &names {
            let channel = parse_channel(app, name)?;
            if !channels.contains(&channel) {
                channels.push(channel);
            }
        }
        if channels.is_empty() {
            return Err(ApiError::bad("channels is missing or empty"));
        }
        if channels.len() > 1 && channels.iter().any(|channel| channel.access() == Access::Encrypted) {
            return Err(ApiError::bad(
                "An event for an encrypted channel goes to that channel only: its payload fits no other",
            ));
        }
        let except = parse_socket_id(fields.text("socket_id", fields.socket_id)?.as_deref())?;
        let (info, _) = Info::parse(&fields.text("info", fields.info)?.unwrap_or_default());
        let info = Info { cache: false, ..info };
        Ok(Self { name, data, channels, except, info })
    }

    /// The event, once for each channel.
    pub(super) fn events(&self) -> impl Iterator<Item = Event<'_>> {
        self.channels.iter().map(|channel| Event {
            channel,
            name: self.name.as_str(),
            data: &self.data,
            except: self.except,
            source: Source::App,
        })
    }
}

/// The JSON keys of an event, in the order of [`Fields::new`].
pub(super) const FIELDS: [&str; 7] =
    ["name", "data", "channels", "channel", "socket_id", "info", IDEMPOTENCY_KEY];

/// The JSON key in an event, or next to the list of a batch.
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency_key";

/// The parameters of an event, from the body, else from the query.
pub(super) struct Fields<'a> {
    query: Option<&'a Query<'a>>,
    name: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    pub(super) channels: Option<&'a RawValue>,
    channel: Option<&'a RawValue>,
    socket_id: Option<&'a RawValue>,
    info: Option<&'a RawValue>,
    pub(super) idempotency_key: Option<&'a RawValue>,
}

impl<'a> Fields<'a> {
    pub(super) fn of_body(body: &'a [u8], query: Option<&'a Query<'a>>) -> Result<Self, ApiError> {
        let text = text(body)?;
        let values = json::pick(if text.is_empty() { "{}" } else { text }, FIELDS);
        Ok(Self::new(values.map_err(|_| ApiError::bad("The request body is not a JSON object"))?, query))
    }

    /// The parameters from the values of [`FIELDS`].
    pub(super) fn new(values: [Option<&'a RawValue>; FIELDS.len()], query: Option<&'a Query<'a>>) -> Self {
        let given = |value: Option<&'a RawValue>| value.filter(|value| !json::is_null(value));
        let [name, data, channels, channel, socket_id, info, idempotency_key] = values;
        Self {
            query,
            name: given(name),
            data,
            channels: given(channels),
            channel: given(channel),
            socket_id: given(socket_id),
            info: given(info),
            idempotency_key,
        }
    }

    fn text(&self, name: &str, value: Option<&'a RawValue>) -> Result<Option<Cow<'a, str>>, ApiError> {
        match value {
            Some(value) => match json::string(value) {
                Some(text) => Ok(Some(text)),
                None => Err(ApiError::bad(format_args!("{name} is not a string"))),
            },
            None => Ok(self.query.and_then(|query| query.value(name))),
        }
    }

    /// The data as a JSON string literal. A string is unchanged, whatever it contains; any other value becomes a string with
    /// its JSON text, unless its nesting is too deep for the parsers of clients.
    fn data(&self) -> Result<Option<Cow<'a, str>>, ApiError> {
        Ok(match self.data {
            Some(value) if json::is_string(value) => Some(Cow::Borrowed(value.get())),
            Some(value) if json::is_value_too_deep(value) => {
                return Err(ApiError::bad(format_args!(
                    "data is nested more than {} levels deep",
                    json::DEPTH_MAX
                )));
            }
            Some(value) => Some(Cow::Owned(literal(value.get()))),
            None => self.query.and_then(|query| query.value("data")).map(|data| Cow::Owned(literal(&data))),
        })
    }

    /// The names of the channels, from a list or a single name; at most `names_max`.
    fn channels(&self, names_max: usize) -> Result<Names<'a>, ApiError> {
        let names = match self.channels.or(self.channel) {
            Some(one) if json::is_string(one) => smallvec![one],
            Some(list) if self.channels.is_some() => json::items(list.get(), usize::MAX)
                .map_err(|_| ApiError::bad("channels is not a list of strings"))?,
            Some(_) => return Err(ApiError::bad("channel is not a string")),
            None => {
                let query = |name| self.query.and_then(|query| query.value(name));
                let list = self.query.map(|query| query.list("channels")).unwrap_or_default();
                let list: Names<'a> = list.into_iter().map(Cow::Borrowed).collect();
                let one = || query("channels").or_else(|| query("channel")).into_iter().collect();
                return at_most(names_max, if list.is_empty() { one() } else { list });
            }
        };
        let text =
            |name| json::string(name).ok_or_else(|| ApiError::bad("channels is not a list of strings"));
        let names = at_most(names_max, names)?;
        names.into_iter().map(text).collect()
    }
}

/// Names of channels; up to four need no allocation.
type Names<'a> = SmallVec<[Cow<'a, str>; 4]>;

fn at_most<T: Array>(names_max: usize, names: SmallVec<T>) -> Result<SmallVec<T>, ApiError> {
    if names.len() <= names_max {
        return Ok(names);
    }
    Err(ApiError::bad(format_args!(
        "channels has more than {names_max} names (limits.channels_per_publish of the app)"
    )))
}

pub(super) fn text(body: &[u8]) -> Result<&str, ApiError> {
    std::str::from_utf8(body).map_err(|_| ApiError::bad("The request body is not UTF-8"))
}

pub(super) fn literal(text: &str) -> String {
    let mut literal = Vec::with_capacity(text.len() + 2);
    json::push_string(&mut literal, text);
    String::from_utf8(literal).expect("a JSON string of text is text")
}

/// Checks the length of the data of an event. The acceptance tests of pusher-http-php assert the words `content of this event` and `Batch too large`.
pub(super) fn check_data_len(app: &App, bytes: usize) -> Result<(), ApiError> {
    let bytes_max = app.limits.event_data_bytes_max;
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(ApiError::TooLarge(format!(
        "The data content of this event has {bytes} bytes, more than the {bytes_max} allowed \
         (limits.event_data_bytes of the app)"
    )))
}

/// The connection to exclude. `None` for an empty id, which applications without an id send, and for an id that no
/// connection of pusherd can have.
pub(super) fn parse_socket_id(text: Option<&str>) -> Result<Option<SocketId>, ApiError> {
    match text {
        None | Some("") => Ok(None),
        Some(text) if SocketId::is_well_formed(text) => Ok(SocketId::parse(text)),
        Some(_) => Err(ApiError::bad("Invalid socket_id: it is two numbers with a dot in between")),
    }
}

#[cfg(test)]
mod tests;
