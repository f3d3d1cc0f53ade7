//! `POST /apps/{id}/batch_events` against a naive model: all events or none, in order, and only from a list of objects. The
//! input is the body.

use super::naive::{self, Entries};
use super::trigger::{EVENTS, Trigger, check, send, trigger};

/// See the module.
pub fn holds(data: &[u8]) {
    if data.len() > 2000 {
        return;
    }
    let Some(answer) = send("/apps/1/batch_events", "", data) else { return };
    let expected = expected(data);
    if let Ok(triggers) = &expected {
        let batch = naive::object(&answer.body).and_then(|answer| naive::array(answer.get("batch")?.get()));
        let asks = triggers.iter().any(|trigger| trigger.asks);
        assert_eq!(batch.map(|batch| batch.len()), asks.then_some(triggers.len()), "{}", answer.body);
    }
    check(&answer, expected);
}

fn expected(body: &[u8]) -> Result<Vec<Trigger>, u16> {
    let text = std::str::from_utf8(body).map_err(|_| 400u16)?;
    let Entries(entries) = serde_json::from_str(text).map_err(|_| 400u16)?;
    let mut batch = None;
    for (key, value) in entries {
        if key != "batch" {
            continue;
        }
        let items = naive::array(value.get()).ok_or(400u16)?;
        let read = items.iter().take(EVENTS + 1).map(|item| naive::object(item.get()).ok_or(400u16));
        batch = Some(read.collect::<Result<Vec<_>, _>>()?);
    }
    let batch = batch.ok_or(400u16)?;
    if batch.len() > EVENTS {
        return Err(400);
    }
    let events = batch.into_iter().map(|mut fields| {
        fields.remove("channels");
        trigger(&fields, &[])
    });
    events.collect()
}
