//! Publishing once, however often it is asked for: a request that names a key is carried out for the first of
//! those with this key, and the others are given its answer.
//!
//! Keys are the app's, and remembered for a while after their answer ([`AppLimits::idempotency_window`]), in a
//! store that is bounded by number and bytes: of more, the oldest are forgotten. A first attempt that fails
//! releases its key. Once it publishes, an attempt goes on to its end even if the client hangs up or the server is
//! told to stop, so that the client's next try finds the answer and not half a publish.
//!
//! A request without a key costs a look at its headers, and nothing else. The key in a header is not signed, the
//! key in the body is: with it, a request that somebody has overheard cannot be replayed either, as long as its key
//! is remembered.
//!
//! Source: draft-ietf-httpapi-idempotency-key-header-07 for the header, 409 and 422.
//!
//! [`AppLimits::idempotency_window`]: crate::apps::AppLimits::idempotency_window

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Response};
use bytes::Bytes;
use http_body_util::Full;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::{Api, ApiError, Publish, Signed, json_response, trigger};
use crate::apps::{App, AppId, AppLimits, Apps};
use crate::limits::Limit;
use crate::protocol::json;
use crate::rejections::Example;

/// The header that holds a key.
pub(super) const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// Says that an answer is a former one.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The longest key.
const KEY_CHARS_MAX: usize = 255;

/// What a key is charged beyond its bytes and those of its answer.
const ENTRY_BYTES: usize = 192;

/// A key that has been checked: 1 to 255 printable ASCII characters.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key(Arc<str>);

impl Key {
    /// The key of a request, in its header or its body; in both, it must be the same.
    pub(super) fn of(
        header: Option<&HeaderValue>,
        field: Option<&RawValue>,
    ) -> Result<Option<Self>, ApiError> {
        // Empty is none, in the header too: an application without a key at hand may still send the field.
        let header = header.filter(|header| !matches!(header.as_bytes(), b"" | b"\"\""));
        let field = field.filter(|field| !json::is_null(field) && field.get() != "\"\"");
        if header.is_none() && field.is_none() {
            return Ok(None);
        }
        let unusable = |which: &str| {
            ApiError::bad(format_args!(
                "{which} is not a text of 1 to {KEY_CHARS_MAX} printable ASCII characters"
            ))
        };
        let of_header = header.map(|value| {
            let text = value.to_str().unwrap_or_default();
            // A string of structured headers, as the draft has it, or the bare text, as everybody writes it.
            let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
            Self::parse(bare).ok_or_else(|| unusable("Idempotency-Key"))
        });
        let of_field = field.map(|value| {
            let text = json::string(value);
            text.and_then(|text| Self::parse(&text)).ok_or_else(|| unusable("idempotency_key"))
        });
        match (of_header.transpose()?, of_field.transpose()?) {
            (Some(one), Some(other)) if one != other => {
                Err(ApiError::bad("Idempotency-Key and idempotency_key are not the same"))
            }
            (one, other) => Ok(one.or(other)),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let is_printable = |byte: u8| matches!(byte, b' '..=b'~');
        ((1..=KEY_CHARS_MAX).contains(&text.len()) && text.bytes().all(is_printable))
            .then(|| Self(text.into()))
    }
}

/// What a request asks for, so that a key is not used for two.
type Fingerprint = [u8; 32];

fn fingerprint(signed: &Signed) -> Fingerprint {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(signed.uri.path().as_bytes());
    for (name, value) in signed.query().parameters() {
        part(name.as_bytes());
        part(value.as_bytes());
    }
    part(&signed.body);
    hash.finalize().into()
}

/// The keys of all apps.
#[derive(Debug)]
pub(super) struct Keys(HashMap<AppId, Mutex<Store>>);

impl Keys {
    pub(super) fn of(apps: &Apps) -> Self {
        Self(apps.iter().map(|app| (app.id.clone(), Mutex::default())).collect())
    }

    fn of_app<T>(&self, app: &App, act: impl FnOnce(&mut Store) -> T) -> T {
        act(&mut self.0.get(&app.id).expect("every app has a store").lock())
    }
}

/// A request that is the first with its key, until it is finished. Dropped before, it releases the key.
struct Claim {
    api: Api,
    app: Arc<App>,
    first: Option<First>,
}

impl Claim {
    fn finish(&mut self, answer: &Bytes) {
        let Some(first) = self.first.take() else { return };
        let Self { api, app, .. } = self;
        let hub = &api.0.hub;
        let forgotten = api.0.keys.of_app(app, |keys| keys.finish(first, answer, &app.limits, hub.now()));
        (0..forgotten).for_each(|_| hub.reject(Limit::IdempotencyKeys, Some(app), Example::default()));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(first) = self.first.take() {
            self.api.0.keys.of_app(&self.app, |keys| keys.release(first));
        }
    }
}

/// Carries a publish out, if it is the first with its key, or gives the answer of the first.
pub(super) async fn once(
    api: Api,
    signed: Signed,
    key: Key,
    publish: Publish,
) -> Result<Response<Full<Bytes>>, ApiError> {
    let fingerprint = fingerprint(&signed);
    let until = Instant::now() + api.0.options.answer_timeout;
    let mut claim = loop {
        let app = &signed.app;
        let begun =
            api.0.keys.of_app(app, |keys| keys.begin(&key, &fingerprint, &app.limits, api.0.hub.now()));
        match begun {
            Begun::First(first) => {
                break Claim { api: api.clone(), app: Arc::clone(app), first: Some(first) };
            }
            Begun::Repeat(answer) => {
                api.0.hub.metrics().repeats_answered.count();
                let mut response = json_response(answer, signed.headers);
                response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
                return Ok(response);
            }
            // It ends when the first one has ended, one way or the other.
            Begun::Running(mut running) => match timeout_at(until, running.changed()).await {
                Ok(_) => {}
                Err(_) => return Err(ApiError::InProgress),
            },
            Begun::OtherRequest => return Err(ApiError::KeyReused),
            Begun::Full => {
                let what = "requests with idempotency keys at once";
                return Err(ApiError::too_many(Limit::IdempotencyKeys, what, Duration::from_secs(1)));
            }
        }
    };
    // A task of its own: the client may hang up, the publish goes on.
    let publishing = api.0.tasks.spawn(async move {
        let answer = match publish {
            Publish::One => trigger::one(&claim.api, &signed).await?,
            Publish::Batch => trigger::batch(&claim.api, &signed).await?,
            Publish::Legacy => trigger::legacy(&claim.api, &signed).await?,
        };
        claim.finish(&answer);
        Ok(json_response(answer, signed.headers))
    });
    match publishing.await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(answer) => answer,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime ends.
        Err(Err(_)) => std::future::pending().await,
    }
}

/// The keys of an app, those whose request is being carried out and those whose answer is remembered. Pure.
#[derive(Debug, Default)]
struct Store {
    attempts: HashMap<Key, Attempt>,
    /// Those with an answer, in the order in which they expire.
    answered: VecDeque<(Duration, Key)>,
    bytes: usize,
}

#[derive(Debug)]
struct Attempt {
    fingerprint: Fingerprint,
    state: State,
}

#[derive(Debug)]
enum State {
    Running(watch::Receiver<()>),
    Answered(Bytes),
}

/// The right to be the first with a key. There is one for each attempt, and it is given back once: whoever has it
/// no more has no say in what becomes of the key.
#[derive(Debug)]
struct First {
    key: Key,
    /// Those who wait for the answer see it dropped.
    _running: watch::Sender<()>,
}

/// What a request with a key finds.
#[derive(Debug)]
enum Begun {
    /// It is the first.
    First(First),
    /// The answer of the first.
    Repeat(Bytes),
    /// The first has not been answered.
    Running(watch::Receiver<()>),
    /// The key is another request's.
    OtherRequest,
    /// All keys that there may be are of requests that are being carried out.
    Full,
}

impl Store {
    fn begin(&mut self, key: &Key, fingerprint: &Fingerprint, limits: &AppLimits, now: Duration) -> Begun {
        while self.answered.front().is_some_and(|(expires, _)| *expires <= now) {
            self.forget_oldest();
        }
        match self.attempts.get(key) {
            Some(attempt) if attempt.fingerprint != *fingerprint => Begun::OtherRequest,
            Some(Attempt { state: State::Running(running), .. }) => Begun::Running(running.clone()),
            Some(Attempt { state: State::Answered(answer), .. }) => Begun::Repeat(answer.clone()),
            None if self.attempts.len() - self.answered.len() >= limits.idempotency_keys_max => Begun::Full,
            None => {
                let (first, running) = watch::channel(());
                let attempt = Attempt { fingerprint: *fingerprint, state: State::Running(running) };
                self.bytes += charge(key);
                self.attempts.insert(key.clone(), attempt);
                Begun::First(First { key: key.clone(), _running: first })
            }
        }
    }

    /// Remembers the answer to the first request with a key; how many keys were forgotten before their time for it,
    /// which may be its own.
    fn finish(&mut self, first: First, answer: &Bytes, limits: &AppLimits, now: Duration) -> usize {
        let Some(attempt) = self.attempts.get_mut(&first.key) else { return 0 };
        attempt.state = State::Answered(answer.clone());
        self.bytes += answer.len();
        self.answered.push_back((now + limits.idempotency_window, first.key));
        let mut forgotten = 0;
        while self.attempts.len() > limits.idempotency_keys_max || self.bytes > limits.idempotency_bytes_max {
            if !self.forget_oldest() {
                break;
            }
            forgotten += 1;
        }
        forgotten
    }

    /// Forgets a key whose first request has failed.
    fn release(&mut self, first: First) {
        if self.attempts.remove(&first.key).is_some() {
            self.bytes -= charge(&first.key);
        }
    }

    /// Forgets the answer that is the oldest; whether there was one.
    fn forget_oldest(&mut self) -> bool {
        let Some((_, key)) = self.answered.pop_front() else { return false };
        if let Some(Attempt { state: State::Answered(answer), .. }) = self.attempts.remove(&key) {
            self.bytes -= charge(&key) + answer.len();
        }
        if self.attempts.is_empty() {
            // What a rush has needed is given back after it.
            *self = Self::default();
        }
        true
    }
}

fn charge(key: &Key) -> usize {
    key.0.len() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::http::Options;
    use crate::hub::Hub;
    use crate::webhooks::Webhooks;

    const NOW: Duration = Duration::from_secs(1000);
    const ONE: Fingerprint = [1; 32];
    const OTHER: Fingerprint = [2; 32];

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    fn limits(keys: usize, bytes: usize) -> AppLimits {
        AppLimits { idempotency_keys_max: keys, idempotency_bytes_max: bytes, ..AppLimits::default() }
    }

    fn first(store: &mut Store, text: &str, limits: &AppLimits, now: Duration) -> First {
        match store.begin(&key(text), &ONE, limits, now) {
            Begun::First(first) => first,
            other @ (Begun::Repeat(_) | Begun::Running(_) | Begun::OtherRequest | Begun::Full) => {
                panic!("{text}: {other:?}")
            }
        }
    }

    /// A request with the key that is carried out at once.
    fn publish(store: &mut Store, text: &str, limits: &AppLimits, now: Duration) -> usize {
        let first = first(store, text, limits, now);
        store.finish(first, &Bytes::from_static(b"{}"), limits, now)
    }

    fn repeats(store: &mut Store, text: &str, limits: &AppLimits, now: Duration) -> bool {
        match store.begin(&key(text), &ONE, limits, now) {
            Begun::Repeat(answer) => {
                assert_eq!(&answer[..], b"{}");
                true
            }
            Begun::First(first) => {
                store.release(first);
                false
            }
            other @ (Begun::Running(_) | Begun::OtherRequest | Begun::Full) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_is_remembered_for_the_window_from_its_answer() {
        let (mut store, limits) = (Store::default(), limits(10, 10_000));
        publish(&mut store, "a", &limits, NOW);
        let almost = NOW + limits.idempotency_window - Duration::from_millis(1);
        assert!(repeats(&mut store, "a", &limits, almost));
        assert!(!repeats(&mut store, "a", &limits, NOW + limits.idempotency_window));
        assert_eq!((store.attempts.len(), store.answered.len(), store.bytes), (0, 0, 0));
    }

    #[test]
    fn of_two_at_once_one_is_the_first_and_the_other_waits() {
        let (mut store, limits) = (Store::default(), limits(10, 10_000));
        let first = first(&mut store, "a", &limits, NOW);
        let Begun::Running(waiting) = store.begin(&key("a"), &ONE, &limits, NOW) else { panic!("it waits") };
        assert!(matches!(store.begin(&key("a"), &OTHER, &limits, NOW), Begun::OtherRequest));
        store.release(first);
        assert!(waiting.has_changed().is_err(), "the first has ended");
        assert!(!repeats(&mut store, "a", &limits, NOW), "a failure releases the key");
    }

    #[test]
    fn an_answered_key_is_not_for_another_request() {
        let (mut store, limits) = (Store::default(), limits(10, 10_000));
        publish(&mut store, "a", &limits, NOW);
        assert!(repeats(&mut store, "a", &limits, NOW));
        assert!(matches!(store.begin(&key("a"), &OTHER, &limits, NOW), Begun::OtherRequest));
    }

    #[test]
    fn of_too_many_keys_or_bytes_the_oldest_are_forgotten() {
        for limits in [limits(3, 1_000_000), limits(1_000_000, 3 * (charge(&key("k0")) + 2))] {
            let mut store = Store::default();
            let forgotten: usize =
                (0..10).map(|at| publish(&mut store, &format!("k{at}"), &limits, NOW)).sum();
            assert_eq!((forgotten, store.attempts.len(), store.answered.len()), (7, 3, 3));
            assert!(!repeats(&mut store, "k6", &limits, NOW) && repeats(&mut store, "k7", &limits, NOW));
        }
    }

    #[test]
    fn what_is_carried_out_is_never_forgotten_so_it_has_a_bound() {
        let (mut store, limits) = (Store::default(), limits(2, 10_000));
        let [a, b] = ["a", "b"].map(|text| first(&mut store, text, &limits, NOW));
        assert!(matches!(store.begin(&key("c"), &ONE, &limits, NOW), Begun::Full));
        store.finish(a, &Bytes::new(), &limits, NOW);
        let _c = first(&mut store, "c", &limits, NOW);
        store.finish(b, &Bytes::new(), &limits, NOW);
        assert!(store.attempts.contains_key(&key("c")), "it is being carried out");
        assert_eq!(store.attempts.len(), 2);
    }

    #[tokio::test]
    async fn an_attempt_that_is_finished_has_no_say_in_the_next_one_with_its_key() {
        let app = App { limits: limits(10, 1000), ..App::new("1", "k", "s") };
        let apps = Arc::new(Apps::new([app]));
        let app = apps.by_id("1").unwrap();
        let hub = Hub::new(false, Arc::default(), Webhooks::default());
        let api = Api::new(hub, Arc::clone(&apps), Options::default(), TaskTracker::new());
        let now = api.0.hub.now();
        let begin = || api.0.keys.of_app(app, |keys| keys.begin(&key("a"), &ONE, &app.limits, now));
        let claim = || match begin() {
            Begun::First(first) => Claim { api: api.clone(), app: Arc::clone(app), first: Some(first) },
            other @ (Begun::Repeat(_) | Begun::Running(_) | Begun::OtherRequest | Begun::Full) => {
                panic!("{other:?}")
            }
        };
        let mut one = claim();
        // Too large to be remembered, so that the key is free again.
        one.finish(&vec![b'x'; 1000].into());
        let mut other = claim();
        one.finish(&Bytes::new());
        drop(one);
        assert!(matches!(begin(), Begun::Running(_)), "the other one goes on");
        other.finish(&Bytes::new());
        drop(other);
        assert!(matches!(begin(), Begun::Repeat(_)));
        let left = api.0.keys.of_app(app, |keys| (keys.attempts.len(), keys.answered.len(), keys.bytes));
        assert_eq!(left, (1, 1, charge(&key("a"))));
    }

    #[test]
    fn a_key_is_in_the_header_or_the_body_and_the_same_in_both() {
        let of = |header: Option<&str>, field: Option<&str>| {
            let header = header.map(|text| HeaderValue::from_bytes(text.as_bytes()).unwrap());
            let field = field.map(|json| RawValue::from_string(json.to_owned()).unwrap());
            Key::of(header.as_ref(), field.as_deref()).map(|key| key.map(|key| key.0.to_string()))
        };
        let (longest, too_long) = ("x".repeat(255), "x".repeat(256));
        assert_eq!(of(None, None), Ok(None));
        assert_eq!(of(None, Some("null")), Ok(None));
        for empty in ["", "\"\""] {
            assert_eq!(of(Some(empty), Some("\"\"")), Ok(None));
        }
        assert_eq!(of(Some("a b"), None), Ok(Some("a b".to_owned())));
        assert_eq!(of(Some("\"a\""), Some("\"a\"")), Ok(Some("a".to_owned())));
        assert_eq!(of(Some(&longest), None), Ok(Some(longest.clone())));
        for (header, field, named) in [
            (Some("é"), None, "Idempotency-Key"),
            (Some(&*too_long), None, "Idempotency-Key"),
            (None, Some("7"), "idempotency_key"),
            (None, Some("\"\\n\""), "idempotency_key"),
            (Some("a"), Some("\"b\""), "not the same"),
        ] {
            let Err(ApiError::BadRequest(why)) = of(header, field) else { panic!("{header:?} {field:?}") };
            assert!(why.contains(named), "{header:?} {field:?}: {why}");
        }
    }
}
