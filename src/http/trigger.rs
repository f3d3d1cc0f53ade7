//! Publishing events. Source: protocol.md §8.4, §8.5, §8.9.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::mem;

use axum::http::{Response, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use serde::Serialize;
use smallvec::smallvec;

use super::fields::{self, FIELDS, Fields, IDEMPOTENCY_KEY, Trigger};
use super::idempotency::{self, Key};
use super::info::{Attributes, Info};
use super::{Api, ApiError, Publish, Signed, json_response};
use crate::apps::App;
use crate::limits::Limit;
use crate::protocol::json::{self, ListError, PickedList};
use crate::protocol::message::Event;
use crate::protocol::{ChannelName, EventName};

/// The response without attributes: an empty JSON object, which SDKs expect.
const EMPTY: Bytes = Bytes::from_static(b"{}");

/// The response with the requested attributes of each channel.
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
    // Boxed, so that the future of a publish without a key stays small.
    Box::pin(idempotency::once(api.clone(), signed.move_to_task(), key, Publish::One)).await
}

/// [`trigger`] without its key.
pub(super) async fn one(api: &Api, signed: &Signed) -> Result<Bytes, ApiError> {
    let query = signed.query();
    publish(api, signed, &Fields::of_body(&signed.body, Some(&query))?).await
}

async fn publish(api: &Api, signed: &Signed, fields: &Fields<'_>) -> Result<Bytes, ApiError> {
    let trigger = Trigger::parse(&signed.app, fields)?;
    count_events(api, &signed.app, 1)?;
    api.0.hub.publish(&signed.app, trigger.events()).await?;
    if trigger.info.is_empty() {
        return Ok(EMPTY);
    }
    // Boxed, so that the future of a publish without attributes stays small.
    let channels = Box::pin(async {
        let mut channels = BTreeMap::new();
        for channel in &trigger.channels {
            channels
                .insert(channel.as_str().into(), attributes(api, &signed.app, channel, trigger.info).await);
        }
        channels
    });
    Ok(to_json(&Triggered { channels: channels.await }))
}

/// Counts events that are published together: all or none.
fn count_events(api: &Api, app: &App, count: usize) -> Result<(), ApiError> {
    let counted = app.count_events(count, || api.0.hub.now());
    counted.map_err(|wait| ApiError::too_many(Limit::Events, "events", wait))
}

/// The response to a batch in which an event requests attributes: one item for each event.
#[derive(Serialize)]
struct BatchTriggered {
    batch: Vec<Attributes>,
}

/// `POST /apps/{app_id}/batch_events`: publishes all events or none.
pub(super) async fn trigger_batch(api: &Api, signed: &mut Signed) -> Result<Response<Full<Bytes>>, ApiError> {
    let picked = pick_batch(signed)?;
    let Some(key) = Key::of(signed.headers.get(idempotency::HEADER), picked.beside)? else {
        let answer = publish_batch(api, signed, picked).await?;
        return Ok(json_response(answer, mem::take(&mut signed.headers)));
    };
    drop(picked);
    Box::pin(idempotency::once(api.clone(), signed.move_to_task(), key, Publish::Batch)).await
}

/// [`trigger_batch`] without its key.
pub(super) async fn batch(api: &Api, signed: &Signed) -> Result<Bytes, ApiError> {
    publish_batch(api, signed, pick_batch(signed)?).await
}

fn pick_batch(signed: &Signed) -> Result<PickedList<'_, { FIELDS.len() }>, ApiError> {
    let events_max = signed.app.limits.events_per_batch_max;
    let picked = json::pick_list(fields::text(&signed.body)?, "batch", IDEMPOTENCY_KEY, FIELDS, events_max);
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
        // An event of a batch has one channel, so `channels` is ignored.
        let mut fields = Fields::new(values, None);
        fields.channels = None;
        triggers.push(Trigger::parse(&signed.app, &fields).map_err(|error| in_batch(error, at))?);
    }
    count_events(api, &signed.app, triggers.len())?;
    let events: Vec<Event<'_>> = triggers.iter().flat_map(|trigger| trigger.events()).collect();
    api.0.hub.publish(&signed.app, events).await?;
    if triggers.iter().all(|trigger| trigger.info.is_empty()) {
        return Ok(EMPTY);
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
    Ok(to_json(&BatchTriggered { batch: batch.await }))
}

/// The requested attributes of a channel. Empty if they cannot be determined: an error would make the application publish
/// the event again.
async fn attributes(api: &Api, app: &App, channel: &ChannelName, info: Info) -> Attributes {
    if info.is_empty() {
        return Attributes::default();
    }
    let found = api.0.hub.channel(app, channel, info.query()).await;
    found.map(|found| info.of(channel, &found)).unwrap_or_default()
}

fn to_json(response: &impl Serialize) -> Bytes {
    serde_json::to_vec(response).expect("names and numbers are written to memory").into()
}

/// Adds to an error the index of the event in the batch.
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
        | ApiError::BrokerUnavailable(_)
        | ApiError::Draining) => other,
    }
}

/// `POST /apps/{app_id}/channels/{channel}/events` of the API of 2012: the body is the data. The status is 202. An
/// idempotency key can only be in the header.
pub(super) async fn trigger_legacy(
    api: &Api,
    signed: &mut Signed,
) -> Result<Response<Full<Bytes>>, ApiError> {
    let mut response = match Key::of(signed.headers.get(idempotency::HEADER), None)? {
        Some(key) => {
            Box::pin(idempotency::once(api.clone(), signed.move_to_task(), key, Publish::Legacy)).await?
        }
        None => json_response(legacy(api, signed).await?, mem::take(&mut signed.headers)),
    };
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

/// [`trigger_legacy`] without its key.
pub(super) async fn legacy(api: &Api, signed: &Signed) -> Result<Bytes, ApiError> {
    let app = &signed.app;
    let query = signed.query();
    let name = query.value("name").ok_or_else(|| ApiError::bad("name is missing"))?;
    let data =
        std::str::from_utf8(&signed.body).map_err(|_| ApiError::bad("The request body is not UTF-8"))?;
    fields::check_data_len(app, data.len())?;
    let trigger = Trigger {
        name: EventName::parse(name, app.limits.event_name_chars_max).map_err(ApiError::bad)?,
        data: Cow::Owned(fields::literal(data)),
        channels: smallvec![signed.channel()?],
        except: fields::parse_socket_id(query.value("socket_id").as_deref())?,
        info: Info::default(),
    };
    count_events(api, app, 1)?;
    api.0.hub.publish(app, trigger.events()).await?;
    Ok(EMPTY)
}
