//! Publishing events. Source: protocol.md §8.4, §8.5, §8.9.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::mem;

use axum::http::{Response, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use serde::Serialize;
use serde_json::value::RawValue;
use smallvec::{Array, SmallVec, smallvec};

use super::channels::parse as parse_channel;
use super::idempotency::{self, Key};
use super::info::{Attributes, Info};
use super::{Api, ApiError, Publish, Signed, json_response};
use crate::apps::App;
use crate::limits::Limit;
use crate::protocol::json::{self, ListError, PickedList};
use crate::protocol::message::{Event, Source};
use crate::protocol::request::Query;
use crate::protocol::{Access, ChannelName, EventName, SocketId};

/// One event as requested, checked.
#[derive(Debug)]
struct Trigger<'a> {
    name: EventName<'a>,
    /// A JSON string literal, as received wherever possible.
    data: Cow<'a, str>,
    channels: SmallVec<[ChannelName; 1]>,
    except: Option<SocketId>,
    info: Info,
}

/// The answer when nothing was asked for: a JSON object without keys, as SDKs want it.
const NOTHING: Bytes = Bytes::from_static(b"{}");

/// What was asked for of each channel that an event was published to.
#[derive(Serialize)]
struct Triggered {
    channels: BTreeMap<Box<str>, Attributes>,
}

/// `POST /apps/{app_id}/events`
pub(super) async fn trigger(api: &Api, signed: &mut Signed) -> Result<Response<Full<Bytes>>, ApiError> {
    let query = signed.query();
    let fields = Fields::of_body(&signed.body, Some(&query))?;
    let Some(key) = Key::of(signed.headers.get(idempotency::HEADER), fields.idempotency_key)? else {
        let answer = publish(api, signed, &fields).await?;
        drop(query);
        return Ok(json_response(answer, mem::take(&mut signed.headers)));
    };
    drop(query);
    // In a box, so that a publish without a key does not have room for it.
    Box::pin(idempotency::once(api.clone(), signed.take(), key, Publish::One)).await
}

/// As [`trigger`], whatever its key.
pub(super) async fn one(api: &Api, signed: &Signed) -> Result<Bytes, ApiError> {
    let query = signed.query();
    publish(api, signed, &Fields::of_body(&signed.body, Some(&query))?).await
}

async fn publish(api: &Api, signed: &Signed, fields: &Fields<'_>) -> Result<Bytes, ApiError> {
    let trigger = Trigger::parse(&signed.app, fields)?;
    count_events(api, &signed.app, 1)?;
    api.0.hub.publish(&signed.app, trigger.events()).await?;
    if trigger.info.is_empty() {
        return Ok(NOTHING);
    }
    // In a box, so that a publish that asks for nothing does not have room for it.
    let channels = Box::pin(async {
        let mut channels = BTreeMap::new();
        for channel in &trigger.channels {
            channels
                .insert(channel.as_str().into(), attributes(api, &signed.app, channel, trigger.info).await);
        }
        channels
    });
    Ok(answer(&Triggered { channels: channels.await }))
}

/// Counts events that are published together, all or none of them.
fn count_events(api: &Api, app: &App, count: usize) -> Result<(), ApiError> {
    let taken = app.take_events(count, || api.0.hub.now());
    taken.map_err(|wait| ApiError::too_many(Limit::Events, "events", wait))
}

/// What was asked for of each event of a batch: one item an event, when any of them asks for something.
#[derive(Serialize)]
struct BatchTriggered {
    batch: Vec<Attributes>,
}

/// `POST /apps/{app_id}/batch_events`: all of them or none.
pub(super) async fn trigger_batch(api: &Api, signed: &mut Signed) -> Result<Response<Full<Bytes>>, ApiError> {
    let picked = pick_batch(signed)?;
    let Some(key) = Key::of(signed.headers.get(idempotency::HEADER), picked.beside)? else {
        let answer = publish_batch(api, signed, picked).await?;
        return Ok(json_response(answer, mem::take(&mut signed.headers)));
    };
    drop(picked);
    Box::pin(idempotency::once(api.clone(), signed.take(), key, Publish::Batch)).await
}

/// As [`trigger_batch`], whatever its key.
pub(super) async fn batch(api: &Api, signed: &Signed) -> Result<Bytes, ApiError> {
    publish_batch(api, signed, pick_batch(signed)?).await
}

fn pick_batch(signed: &Signed) -> Result<PickedList<'_, { FIELDS.len() }>, ApiError> {
    let events_max = signed.app.limits.events_per_batch_max;
    let picked = json::pick_list(text(&signed.body)?, "batch", IDEMPOTENCY_KEY, FIELDS, events_max);
    picked.map_err(|error| match error {
        ListError::NotObject => ApiError::bad("The request body is not a JSON object"),
        ListError::NotList => ApiError::bad("batch is not a list"),
        ListError::ItemNotObject(at) => in_batch(ApiError::bad("The event is not a JSON object"), at),
    })
}

async fn publish_batch(
    api: &Api,
    signed: &Signed,
    picked: PickedList<'_, { FIELDS.len() }>,
) -> Result<Bytes, ApiError> {
    let events_max = signed.app.limits.events_per_batch_max;
    let items = picked.items.ok_or_else(|| ApiError::bad("batch is missing"))?;
    if items.len() > events_max {
        return Err(ApiError::bad(format_args!(
            "Batch too large: it has more than {events_max} events (limits.events_per_batch of the app)"
        )));
    }
    let mut triggers = Vec::with_capacity(items.len());
    for (at, values) in items.into_iter().enumerate() {
        // An event of a batch goes to one channel, so its `channels` are not looked at.
        let fields = Fields { channels: None, ..Fields::new(values, None) };
        triggers.push(Trigger::parse(&signed.app, &fields).map_err(|error| in_batch(error, at))?);
    }
    count_events(api, &signed.app, triggers.len())?;
    let events: Vec<Event<'_>> = triggers.iter().flat_map(|trigger| trigger.events()).collect();
    api.0.hub.publish(&signed.app, events).await?;
    if triggers.iter().all(|trigger| trigger.info.is_empty()) {
        return Ok(NOTHING);
    }
    let batch = Box::pin(async {
        let mut batch = Vec::with_capacity(triggers.len());
        for trigger in &triggers {
            for channel in trigger.channels.iter().take(1) {
                batch.push(attributes(api, &signed.app, channel, trigger.info).await);
            }
        }
        batch
    });
    Ok(answer(&BatchTriggered { batch: batch.await }))
}

/// What is asked for of a channel that was published to. Nothing, if it cannot be found out: an error would have the
/// event published again.
async fn attributes(api: &Api, app: &App, channel: &ChannelName, info: Info) -> Attributes {
    if info.is_empty() {
        return Attributes::default();
    }
    let found = api.0.hub.channel(app, channel, info.wanted()).await;
    found.map(|found| info.of(channel, &found)).unwrap_or_default()
}

fn answer(answer: &impl Serialize) -> Bytes {
    serde_json::to_vec(answer).expect("names and numbers are written to memory").into()
}

/// Says which event of a batch an error is about.
fn in_batch(error: ApiError, at: usize) -> ApiError {
    match error {
        ApiError::BadRequest(sentence) => ApiError::BadRequest(format!("batch[{at}]: {sentence}")),
        ApiError::TooLarge(sentence) => ApiError::TooLarge(format!("batch[{at}]: {sentence}")),
        other @ (ApiError::Unauthorized(_)
        | ApiError::AppDisabled
        | ApiError::UnknownApp(_)
        | ApiError::NotFound(_)
        | ApiError::BodyTooLarge { .. }
        | ApiError::MethodNotAllowed
        | ApiError::Timeout
        | ApiError::InProgress
        | ApiError::SignatureInUse
        | ApiError::TooManyLists(_)
        | ApiError::Busy(_)
        | ApiError::KeyReused
        | ApiError::TooMany { .. }
        | ApiError::BrokerLost(_)
        | ApiError::Draining) => other,
    }
}

/// `POST /apps/{app_id}/channels/{channel}/events`, of the API of 2012: the body is the data. Answers 202.
/// Its key can only be in the header.
pub(super) async fn trigger_legacy(
    api: &Api,
    signed: &mut Signed,
) -> Result<Response<Full<Bytes>>, ApiError> {
    let mut response = match Key::of(signed.headers.get(idempotency::HEADER), None)? {
        Some(key) => Box::pin(idempotency::once(api.clone(), signed.take(), key, Publish::Legacy)).await?,
        None => json_response(legacy(api, signed).await?, mem::take(&mut signed.headers)),
    };
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

/// As [`trigger_legacy`], whatever its key.
pub(super) async fn legacy(api: &Api, signed: &Signed) -> Result<Bytes, ApiError> {
    let app = &signed.app;
    let query = signed.query();
    let name = query.value("name").ok_or_else(|| ApiError::bad("name is missing"))?;
    let data =
        std::str::from_utf8(&signed.body).map_err(|_| ApiError::bad("The request body is not UTF-8"))?;
    check_data_len(app, data.len())?;
    let trigger = Trigger {
        name: EventName::parse(name, app.limits.event_name_chars_max).map_err(ApiError::bad)?,
        data: Cow::Owned(literal(data)),
        channels: smallvec![signed.channel()?],
        except: parse_socket_id(query.value("socket_id").as_deref())?,
        info: Info::default(),
    };
    count_events(api, app, 1)?;
    api.0.hub.publish(app, trigger.events()).await?;
    Ok(NOTHING)
}

impl<'a> Trigger<'a> {
    fn parse(app: &App, fields: &Fields<'a>) -> Result<Self, ApiError> {
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

    /// The event on each of its channels.
    fn events(&self) -> impl Iterator<Item = Event<'_>> {
        self.channels.iter().map(|channel| Event {
            channel,
            name: self.name.as_str(),
            data: &self.data,
            except: self.except,
            source: Source::App,
        })
    }
}

/// The keys of an event, in the order of [`Fields::new`].
const FIELDS: [&str; 7] = ["name", "data", "channels", "channel", "socket_id", "info", IDEMPOTENCY_KEY];

/// Beside an event, or beside the list of a batch.
const IDEMPOTENCY_KEY: &str = "idempotency_key";

/// The parameters of an event: of the body, else of the query.
struct Fields<'a> {
    query: Option<&'a Query<'a>>,
    name: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    channels: Option<&'a RawValue>,
    channel: Option<&'a RawValue>,
    socket_id: Option<&'a RawValue>,
    info: Option<&'a RawValue>,
    idempotency_key: Option<&'a RawValue>,
}

impl<'a> Fields<'a> {
    fn of_body(body: &'a [u8], query: Option<&'a Query<'a>>) -> Result<Self, ApiError> {
        let text = text(body)?;
        let values = json::pick(if text.is_empty() { "{}" } else { text }, FIELDS);
        Ok(Self::new(values.map_err(|_| ApiError::bad("The request body is not a JSON object"))?, query))
    }

    /// Of the values of [`FIELDS`].
    fn new(values: [Option<&'a RawValue>; FIELDS.len()], query: Option<&'a Query<'a>>) -> Self {
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

    /// The data as a JSON string literal: as received, if it was one; what is no string is put into one, unless it is
    /// too deep for the parsers of clients. What is in a string is the application's business.
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

    /// The names of channels: a list, or one; at most `names_max`.
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

/// Names of channels, in place while they are few.
type Names<'a> = SmallVec<[Cow<'a, str>; 4]>;

fn at_most<T: Array>(names_max: usize, names: SmallVec<T>) -> Result<SmallVec<T>, ApiError> {
    if names.len() <= names_max {
        return Ok(names);
    }
    Err(ApiError::bad(format_args!(
        "channels has more than {names_max} names (limits.channels_per_publish of the app)"
    )))
}

fn text(body: &[u8]) -> Result<&str, ApiError> {
    std::str::from_utf8(body).map_err(|_| ApiError::bad("The request body is not UTF-8"))
}

fn literal(text: &str) -> String {
    let mut literal = Vec::with_capacity(text.len() + 2);
    json::push_string(&mut literal, text);
    String::from_utf8(literal).expect("a JSON string of text is text")
}

/// The words `content of this event` and `Batch too large` are asserted by the acceptance tests of pusher-http-php.
fn check_data_len(app: &App, bytes: usize) -> Result<(), ApiError> {
    let bytes_max = app.limits.event_data_bytes_max;
    if bytes <= bytes_max {
        return Ok(());
    }
    Err(ApiError::TooLarge(format!(
        "The data content of this event has {bytes} bytes, more than the {bytes_max} allowed \
         (limits.event_data_bytes of the app)"
    )))
}

/// The connection to skip: `None` for nobody, also for an id that no connection of pusherd can have. Applications that
/// have no id at hand send an empty one.
fn parse_socket_id(text: Option<&str>) -> Result<Option<SocketId>, ApiError> {
    match text {
        None | Some("") => Ok(None),
        Some(text) if SocketId::is_well_formed(text) => Ok(SocketId::parse(text)),
        Some(_) => Err(ApiError::bad("Invalid socket_id: it is two numbers with a dot in between")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<String, ApiError> {
        parse_with(body, "")
    }

    fn parse_with(body: &str, query: &str) -> Result<String, ApiError> {
        let (app, query) = (App::new("1", "k", "s"), Query::parse(query).unwrap());
        let fields = Fields::of_body(body.as_bytes(), Some(&query))?;
        let trigger = Trigger::parse(&app, &fields)?;
        let channels: Vec<_> = trigger.channels.iter().map(ChannelName::as_str).collect();
        let except = trigger.except.map(|socket| socket.to_string()).unwrap_or_default();
        Ok(format!("{} {} {} {except}", trigger.name.as_str(), trigger.data, channels.join("+")))
    }

    #[test]
    fn the_forms_in_which_sdks_publish_are_read() {
        for (body, expected) in [
            (r#"{"name":"e","data":"x","channels":["a","b"]}"#, r#"e "x" a+b "#),
            (r#"{"name":"e","data":"x","channel":"a","socket_id":null}"#, r#"e "x" a "#),
            (r#"{"name":"e","data":"x","channels":"a","channel":"b"}"#, r#"e "x" a "#),
            (r#"{"name":"e","data":"","channels":["a","a"],"socket_id":"1.2"}"#, r#"e "" a 1.2"#),
            (r#"{"name":"e","data":"x","channel":"a","socket_id":"","info":""}"#, r#"e "x" a "#),
            (
                r#"{"name":"App\\Events\\X","data":"\ud800\u00e9\/","channels":["a"]}"#,
                r#"App\Events\X "\ud800\u00e9\/" a "#,
            ),
            (r#"{"name":"e","data":{"a": 1},"channels":["a"]}"#, r#"e "{\"a\": 1}" a "#),
            (r#"{"name":"e","data":7,"channels":["a"],"info":"typo,user_count"}"#, r#"e "7" a "#),
            (
                r##"{"name":"e","data":"x","channels":["#server-to-user-7"],"socket_id":"99999999999.1"}"##,
                r##"e "x" #server-to-user-7 "##,
            ),
        ] {
            assert_eq!(parse(body).unwrap(), expected, "{body}");
        }
    }

    #[test]
    fn parameters_may_come_in_the_query_and_the_body_goes_first() {
        let query = "name=greet&channels[]=a&channels[]=b&data=hi+there&socket_id=1.2";
        assert_eq!(parse_with("", query).unwrap(), r#"greet "hi there" a+b 1.2"#);
        assert_eq!(parse_with(r#"{"data":"x","channel":"c"}"#, query).unwrap(), r#"greet "x" c 1.2"#);
        assert_eq!(parse_with("", "name=e&data=x&channel=a").unwrap(), r#"e "x" a "#);
    }

    #[test]
    fn what_cannot_be_published_is_refused_with_its_reason() {
        let many: Vec<_> = (0..101).map(|at| format!("\"c{at}\"")).collect();
        for (body, reason) in [
            ("[]".to_owned(), "not a JSON object"),
            ("{".to_owned(), "not a JSON object"),
            ("{}".to_owned(), "name is missing"),
            (r#"{"name":1,"data":"","channels":["a"]}"#.to_owned(), "name is not a string"),
            (r#"{"name":"","data":"","channels":["a"]}"#.to_owned(), "event name is empty"),
            (format!(r#"{{"name":"{}","data":"","channels":["a"]}}"#, "x".repeat(201)), "more than 200"),
            (r#"{"name":"pusher:x","data":"","channels":["a"]}"#.to_owned(), "reserved"),
            (r#"{"name":"e","channels":["a"]}"#.to_owned(), "data is missing"),
            (r#"{"name":"e","data":""}"#.to_owned(), "channels is missing"),
            (r#"{"name":"e","data":"","channels":[]}"#.to_owned(), "channels is missing"),
            (r#"{"name":"e","data":"","channels":[7]}"#.to_owned(), "not a list of strings"),
            (r#"{"name":"e","data":"","channels":{}}"#.to_owned(), "not a list of strings"),
            (r#"{"name":"e","data":"","channel":["a"]}"#.to_owned(), "channel is not a string"),
            (r#"{"name":"e","data":"","channels":["a","b c"]}"#.to_owned(), "Invalid channel name b c"),
            (format!(r#"{{"name":"e","data":"","channels":[{}]}}"#, many.join(",")), "more than 100 names"),
            (r#"{"name":"e","data":"","channels":["a","private-encrypted-b"]}"#.to_owned(), "encrypted"),
            (r#"{"name":"e","data":"","channel":"a","socket_id":"x"}"#.to_owned(), "Invalid socket_id"),
            (r#"{"name":"e","data":"","channel":"a","socket_id":7}"#.to_owned(), "socket_id is not a string"),
            (
                format!(r#"{{"name":"e","data":{}1{},"channel":"a"}}"#, "[".repeat(129), "]".repeat(129)),
                "data is nested more than 128 levels deep",
            ),
        ] {
            match parse(&body) {
                Err(ApiError::BadRequest(sentence)) => {
                    assert!(sentence.contains(reason), "{body}: {sentence}")
                }
                other => panic!("{body}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_data_limit_is_in_bytes_of_the_decoded_string() {
        let body = |data: &str| format!(r#"{{"name":"e","data":"{data}","channel":"a"}}"#);
        assert!(parse(&body(&"x".repeat(102_400))).is_ok());
        assert!(parse(&body(&"\\u00e9".repeat(51_200))).is_ok());
        let over = parse(&body(&"\\u00e9".repeat(51_201)));
        let Err(ApiError::TooLarge(sentence)) = over else { panic!("{over:?}") };
        assert!(
            sentence.contains("content of this event has 102402")
                && sentence.contains("102400")
                && sentence.contains("event_data_bytes")
        );
    }
}
