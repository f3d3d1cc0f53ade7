use serde_json::value::RawValue;
use tokio_util::task::TaskTracker;

use super::key::Fingerprint;
use super::store::charge;
use super::*;
use crate::apps::AppLimits;
use crate::http::Options;
use crate::hub::Hub;
use crate::observers::Observers;
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

fn first(store: &mut Store, text: &str, limits: &AppLimits, now: Duration) -> Reservation {
    match store.begin(&key(text), &ONE, limits, now) {
        Lookup::Reserved(first) => first,
        other @ (Lookup::Answered(_) | Lookup::Running(_) | Lookup::KeyReused | Lookup::Full) => {
            panic!("{text}: {other:?}")
        }
    }
}

/// Carries out a request with the key. Returns the number of evicted keys.
fn publish(store: &mut Store, text: &str, limits: &AppLimits, now: Duration) -> usize {
    let first = first(store, text, limits, now);
    store.finish(first, &Bytes::from_static(b"{}"), limits, now)
}

fn repeats(store: &mut Store, text: &str, limits: &AppLimits, now: Duration) -> bool {
    match store.begin(&key(text), &ONE, limits, now) {
        Lookup::Answered(answer) => {
            assert_eq!(&answer[..], b"{}");
            true
        }
        Lookup::Reserved(first) => {
            store.release(first);
            false
        }
        other @ (Lookup::Running(_) | Lookup::KeyReused | Lookup::Full) => panic!("{other:?}"),
    }
}

#[test]
fn a_key_is_stored_for_the_window_after_its_response() {
    let (mut store, limits) = (Store::default(), limits(10, 10_000));
    publish(&mut store, "a", &limits, NOW);
    let almost = NOW + limits.idempotency_window - Duration::from_millis(1);
    assert!(repeats(&mut store, "a", &limits, almost));
    assert!(!repeats(&mut store, "a", &limits, NOW + limits.idempotency_window));
    assert_eq!((store.attempts.len(), store.answered.len(), store.bytes), (0, 0, 0));
}

#[test]
fn of_two_concurrent_requests_one_is_the_first_and_the_other_waits() {
    let (mut store, limits) = (Store::default(), limits(10, 10_000));
    let first = first(&mut store, "a", &limits, NOW);
    let Lookup::Running(waiting) = store.begin(&key("a"), &ONE, &limits, NOW) else { panic!("it waits") };
    assert!(matches!(store.begin(&key("a"), &OTHER, &limits, NOW), Lookup::KeyReused));
    store.release(first);
    assert!(waiting.has_changed().is_err(), "the first has ended");
    assert!(!repeats(&mut store, "a", &limits, NOW), "a failure releases the key");
}

#[test]
fn an_answered_key_cannot_be_used_for_another_request() {
    let (mut store, limits) = (Store::default(), limits(10, 10_000));
    publish(&mut store, "a", &limits, NOW);
    assert!(repeats(&mut store, "a", &limits, NOW));
    assert!(matches!(store.begin(&key("a"), &OTHER, &limits, NOW), Lookup::KeyReused));
}

#[test]
fn above_the_limit_of_keys_or_bytes_the_oldest_are_evicted() {
    for limits in [limits(3, 1_000_000), limits(1_000_000, 3 * (charge(&key("k0")) + 2))] {
        let mut store = Store::default();
        let evicted: usize = (0..10).map(|at| publish(&mut store, &format!("k{at}"), &limits, NOW)).sum();
        assert_eq!((evicted, store.attempts.len(), store.answered.len()), (7, 3, 3));
        assert!(!repeats(&mut store, "k6", &limits, NOW) && repeats(&mut store, "k7", &limits, NOW));
    }
}

#[test]
fn requests_in_progress_are_never_evicted_and_count_for_the_limit() {
    let (mut store, limits) = (Store::default(), limits(2, 10_000));
    let [a, b] = ["a", "b"].map(|text| first(&mut store, text, &limits, NOW));
    assert!(matches!(store.begin(&key("c"), &ONE, &limits, NOW), Lookup::Full));
    store.finish(a, &Bytes::new(), &limits, NOW);
    let _c = first(&mut store, "c", &limits, NOW);
    store.finish(b, &Bytes::new(), &limits, NOW);
    assert!(store.attempts.contains_key(&key("c")), "it is in progress");
    assert_eq!(store.attempts.len(), 2);
}

#[tokio::test]
async fn a_finished_attempt_does_not_affect_the_next_one_with_its_key() {
    let app = App { limits: limits(10, 1000), ..App::new("1", "k", "s") };
    let apps = Arc::new(crate::apps::Apps::new([app]));
    let app = apps.by_id("1").unwrap();
    let hub = Hub::new(Observers::default(), Arc::default(), Webhooks::default());
    let api = Api::new(hub, Arc::clone(&apps), Options::default(), TaskTracker::new());
    let now = api.0.hub.now();
    let begin = || api.0.idempotency.of_app(&app, |keys| keys.begin(&key("a"), &ONE, &app.limits, now));
    let claim = || match begin() {
        Lookup::Reserved(first) => {
            ReservationGuard { api: api.clone(), app: Arc::clone(&app), reservation: Some(first) }
        }
        other @ (Lookup::Answered(_) | Lookup::Running(_) | Lookup::KeyReused | Lookup::Full) => {
            panic!("{other:?}")
        }
    };
    let mut one = claim();
    // Too large to be stored, so the key is released.
    one.finish(&vec![b'x'; 1000].into());
    let mut other = claim();
    one.finish(&Bytes::new());
    drop(one);
    assert!(matches!(begin(), Lookup::Running(_)), "the other one goes on");
    other.finish(&Bytes::new());
    drop(other);
    assert!(matches!(begin(), Lookup::Answered(_)));
    let left = api.0.idempotency.of_app(&app, |keys| (keys.attempts.len(), keys.answered.len(), keys.bytes));
    assert_eq!(left, (1, 1, charge(&key("a"))));
}

#[test]
fn a_key_may_be_in_the_header_or_the_body_and_must_be_equal_in_both() {
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
