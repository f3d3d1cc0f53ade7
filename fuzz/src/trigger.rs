//! `POST /apps/{id}/events`, from the signed request to the frames of subscribers, against a naive model.
//!
//! The input is the body; a first line, if there is one, is added to the query.

use std::cell::RefCell;
use std::sync::Arc;

use axum::body::HttpBody as _;
use axum::http::Request;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use pusherd::apps::{App, AppLimits, Apps};
use pusherd::http::{Api, Caller, Options, Service};
use pusherd::hub::Hub;
use pusherd::outbox::Outbox;
use pusherd::protocol::{ChannelName, NameRules, SocketId};
use pusherd::webhooks::Webhooks;
use serde_json::value::RawValue;
use tokio::runtime::Runtime;

use super::naive::{self, Object};

pub(crate) const EVENT_NAME_CHARS: usize = 12;
pub(crate) const DATA_BYTES: usize = 24;
pub(crate) const NAME_BYTES: usize = 24;
pub(crate) const CHANNELS: usize = 3;
pub(crate) const EVENTS: usize = 3;
const BODY_BYTES: usize = 2000;

/// Channels with a subscriber: the first one has the socket id `1.1`, and so on.
const HEARD: [&str; 4] = ["a", "b", "cache-c", "private-encrypted-d"];

/// After this many requests the server is created anew, because the model does not know its cached events.
const REQUESTS: usize = 500;

struct World {
    runtime: Runtime,
    service: Service,
    subscribers: Vec<Arc<Outbox>>,
    requests: usize,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let app = || App {
            names: NameRules { bytes_max: NAME_BYTES, ..NameRules::default() },
            limits: AppLimits {
                event_name_chars_max: EVENT_NAME_CHARS,
                event_data_bytes_max: DATA_BYTES,
                channels_per_publish_max: CHANNELS,
                events_per_batch_max: EVENTS,
                request_body_bytes_max: BODY_BYTES,
                auth_window_secs: u64::MAX,
                ..AppLimits::default()
            },
            ..App::new("1", "key", "secret")
        };
        let hub = Hub::new(pusherd::observers::Observers::default(), Arc::default(), Webhooks::default());
        let subscribers = HEARD.iter().zip(1..).map(|(channel, id)| {
            let outbox = Arc::new(Outbox::detached(SocketId::new(id, id), usize::MAX));
            let name = ChannelName::parse(channel, &NameRules::default()).unwrap();
            hub.join(&Arc::new(app()), &outbox, &name, None).unwrap();
            outbox.take_queued();
            outbox
        });
        let subscribers = subscribers.collect();
        let apps = Arc::new(Apps::new([app()]));
        let service = Service::new(Api::new(hub, apps, Options::default(), Default::default()));
        drop(_inside);
        Self { runtime, service, subscribers, requests: 0 }
    }
}

/// The result of a request: the status, the body, and the event that each subscriber of [`HEARD`] received.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) heard: Vec<Vec<Event>>,
}

/// An event as subscribers receive it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Event {
    pub(crate) channel: String,
    pub(crate) name: String,
    /// The JSON literal.
    pub(crate) data: String,
}

/// An event as published.
#[derive(Clone, Debug)]
pub(crate) struct Trigger {
    pub(crate) name: String,
    pub(crate) data: String,
    pub(crate) channels: Vec<String>,
    pub(crate) except: Option<String>,
    pub(crate) asks: bool,
}

/// Sends a signed request; `None` if its query cannot be part of a request.
pub(crate) fn send(path: &str, query: &str, body: &[u8]) -> Option<Answer> {
    let raw = format!(
        "{query}{}auth_key=key&auth_timestamp=1&auth_version=1.0&body_md5={}",
        if query.is_empty() { "" } else { "&" },
        naive::md5(body)
    );
    let text = format!("POST\n{path}\n{}", naive::signed_query(&naive::query(&raw)?));
    let uri = format!("{path}?{raw}&auth_signature={}", naive::hmac("secret", &text));
    let body = Full::new(Bytes::copy_from_slice(body));
    let request = Request::post(uri).body(body).ok()?;
    WORLD.with_borrow_mut(|world| {
        if world.as_ref().is_some_and(|world| world.requests == REQUESTS) {
            *world = None;
        }
        let world = world.get_or_insert_with(World::new);
        world.requests += 1;
        let (status, body) = world.runtime.block_on(async {
            let response = world.service.answer(request, &Caller::default()).await;
            let status = response.status().as_u16();
            assert!(response.body().size_hint().exact().is_some(), "an answer has a length");
            (status, response.into_body().collect().await.unwrap().to_bytes())
        });
        let heard = world.subscribers.iter().map(|outbox| heard(&outbox.take_queued().concat())).collect();
        Some(Answer { status, body: String::from_utf8(body.into()).unwrap(), heard })
    })
}

fn heard(bytes: &[u8]) -> Vec<Event> {
    let event = |(first, payload): (u8, Vec<u8>)| {
        assert_eq!(first, 0x81, "a whole text");
        let frame = naive::object(std::str::from_utf8(&payload).unwrap()).unwrap();
        assert_eq!(frame.len(), 3, "event, channel, data");
        let text = |key: &str| naive::string(&frame[key]).unwrap();
        Event { channel: text("channel"), name: text("event"), data: frame["data"].get().to_owned() }
    };
    naive::frames(bytes).into_iter().map(event).collect()
}

/// Checks a response against the expected events or the expected status.
pub(crate) fn check(answer: &Answer, expected: Result<Vec<Trigger>, u16>) {
    let status = expected.as_ref().map_or_else(|status| *status, |_| 200);
    assert_eq!(answer.status, status, "{}", answer.body);
    let triggers = expected.unwrap_or_default();
    for (at, (channel, heard)) in HEARD.iter().zip(&answer.heard).enumerate() {
        let own_id = format!("{0}.{0}", at + 1);
        let meant = triggers.iter().filter(|trigger| {
            trigger.channels.iter().any(|name| name == channel) && trigger.except.as_ref() != Some(&own_id)
        });
        let meant = meant.map(|Trigger { name, data, .. }| Event {
            channel: (*channel).to_owned(),
            name: name.clone(),
            data: data.clone(),
        });
        assert_eq!(*heard, meant.collect::<Vec<_>>(), "{channel}");
    }
    if status != 200 {
        assert!(
            !answer.body.is_empty() && answer.body.len() < 1000,
            "one sentence says why: {}",
            answer.body
        );
    }
}

/// See the module.
pub fn holds(data: &[u8]) {
    let split = data.iter().position(|byte| *byte == b'\n');
    let (query, body) = split.map_or((&b""[..], data), |at| (&data[..at], &data[at + 1..]));
    // A `#` ends a query.
    let Some(query) = std::str::from_utf8(query).ok().filter(|query| !query.contains('#')) else { return };
    let Some(pairs) = naive::query(query) else { return };
    let of_signature = |name: &str| name.starts_with("auth_") || name.starts_with("body_md5");
    if pairs.iter().any(|(name, _)| of_signature(name)) || body.len() > BODY_BYTES {
        return;
    }
    let Some(answer) = send("/apps/1/events", query, body) else { return };
    let expected = expected(body, &pairs).map(|trigger| vec![trigger]);
    if let Ok([trigger]) = expected.as_deref() {
        let asked =
            naive::object(&answer.body).and_then(|answer| naive::object(answer.get("channels")?.get()));
        let mut asked: Option<Vec<_>> = asked.map(|channels| channels.into_keys().collect());
        asked.iter_mut().for_each(|channels| channels.sort());
        let mut channels = trigger.channels.clone();
        channels.sort();
        assert_eq!(asked, trigger.asks.then_some(channels), "{}", answer.body);
    }
    check(&answer, expected);
}

fn expected(body: &[u8], query: &[(String, String)]) -> Result<Trigger, u16> {
    let text = std::str::from_utf8(body).map_err(|_| 400u16)?;
    let fields = naive::object(if text.is_empty() { "{}" } else { text }).ok_or(400u16)?;
    trigger(&fields, query)
}

/// The event that a JSON object describes. Source: protocol.md §8.4.
pub(crate) fn trigger(fields: &Object, query: &[(String, String)]) -> Result<Trigger, u16> {
    let given = |key: &str| fields.get(key).filter(|value| value.get() != "null");
    let text = |key: &str| match given(key) {
        Some(value) => naive::string(value).map(Some).ok_or(400u16),
        None => Ok(naive::parameter(query, key)),
    };
    let name = text("name")?.ok_or(400u16)?;
    if !naive::is_event_name(&name, EVENT_NAME_CHARS) {
        return Err(400);
    }
    let literal = |text: &str| serde_json::to_string(text).unwrap();
    let data = match fields.get("data") {
        Some(value) if value.get().starts_with('"') => value.get().to_owned(),
        Some(value) if naive::depth(value.get()) > 128 => return Err(400),
        Some(value) => literal(value.get()),
        None => literal(&naive::parameter(query, "data").ok_or(400u16)?),
    };
    if naive::decoded_len(&data) > DATA_BYTES {
        return Err(413);
    }
    let names =
        channels(given("channels").map(|value| &**value), given("channel").map(|value| &**value), query)?;
    let mut channels: Vec<String> = Vec::new();
    for name in names {
        if !naive::is_channel_name(&name, NAME_BYTES) {
            return Err(400);
        }
        if !channels.contains(&name) {
            channels.push(name);
        }
    }
    let encrypted = channels.iter().any(|name| name.starts_with("private-encrypted-"));
    if channels.is_empty() || (channels.len() > 1 && encrypted) {
        return Err(400);
    }
    let except = text("socket_id")?.filter(|id| !id.is_empty());
    let is_id = |id: &String| {
        let digits = |part: &str| !part.is_empty() && part.chars().all(|char| char.is_ascii_digit());
        id.split_once('.').is_some_and(|(high, low)| digits(high) && digits(low))
    };
    if except.as_ref().is_some_and(|id| !is_id(id)) {
        return Err(400);
    }
    let info = text("info")?.unwrap_or_default();
    let asks = info.split(',').any(|name| ["user_count", "subscription_count"].contains(&name.trim()));
    Ok(Trigger { name, data, channels, except, asks })
}

fn channels(
    list: Option<&RawValue>,
    one: Option<&RawValue>,
    query: &[(String, String)],
) -> Result<Vec<String>, u16> {
    let names = match (list, one) {
        (Some(value), _) if value.get().starts_with('"') => vec![naive::string(value)],
        (Some(value), _) => {
            naive::array(value.get()).ok_or(400u16)?.iter().map(|name| naive::string(name)).collect()
        }
        (None, Some(value)) => vec![naive::string(value)],
        (None, None) => {
            let list = naive::parameter_list(query, "channels");
            let single =
                || naive::parameter(query, "channels").or_else(|| naive::parameter(query, "channel"));
            if list.is_empty() {
                single().into_iter().map(Some).collect()
            } else {
                list.into_iter().map(Some).collect()
            }
        }
    };
    if names.len() > CHANNELS {
        return Err(400);
    }
    names.into_iter().map(|name| name.ok_or(400u16)).collect()
}
