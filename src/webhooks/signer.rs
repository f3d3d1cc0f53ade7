//! Bodies of requests, and their signatures. Source: protocol.md §9.1.

use bytes::Bytes;
use hyper::header::HeaderValue;

use super::client::SignedBody;
use super::event::EventId;
use super::queue::QueuedEvent;
use crate::apps::App;
use crate::protocol::signature::SigningKey;

/// Signs with the oldest key of an app.
#[derive(Clone, Debug)]
pub(super) struct Signer {
    key: HeaderValue,
    secret: SigningKey,
}

impl Signer {
    /// The signer of `app`.
    pub(super) fn for_app(app: &App) -> Self {
        let oldest = app.keys.first().expect("an app has a key");
        let key = HeaderValue::from_str(&oldest.key).expect("a key is visible ASCII");
        Self { key, secret: oldest.secret.clone() }
    }

    /// Signs a body whose events have these `ids`, if they are known.
    pub(super) fn sign(&self, body: Bytes, ids: impl IntoIterator<Item = EventId>) -> SignedBody {
        let signature = self.secret.sign_webhook(&body);
        let signature = HeaderValue::try_from(signature).expect("hex digits are visible ASCII");
        let ids: Vec<_> = ids.into_iter().map(String::from).collect();
        let listed = || HeaderValue::try_from(ids.join(",")).expect("ids are visible ASCII");
        let event_ids = (!ids.is_empty()).then(listed);
        SignedBody { body, key: self.key.clone(), signature, event_ids }
    }
}

/// The body of a request, the same in every attempt.
pub(super) fn body(events: &[QueuedEvent]) -> Vec<u8> {
    let time_ms = events.first().map_or(0, |first| first.encoded.time_ms);
    let mut body = format!(r#"{{"time_ms":{time_ms},"events":["#).into_bytes();
    for (at, event) in events.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&event.encoded.json);
    }
    body.extend_from_slice(b"]}");
    body
}
