//! Idempotency keys. Source: draft-ietf-httpapi-idempotency-key-header-07.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request as HttpRequest, Response};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::poll;
use http_body_util::Full;
use pusherd::apps::{App, AppLimits, Apps};
use pusherd::http::{AnswerBody, Api, Caller, Options, Service};
use pusherd::hub::Hub;
use pusherd::limits::Limit;
use pusherd::outbox::Outbox;
use pusherd::protocol::{ChannelName, NameRules, SocketId};
use pusherd::webhooks::Webhooks;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::harness::{Answer, Client, DEMO, NEWS, OTHER, Request, Server, eventually, in_time};

/// A publish to `news`. SDKs sign each attempt anew.
fn event(name: &str) -> Request {
    Request::post("/apps/1001/events", json!({ "name": name, "channel": NEWS, "data": "" }).to_string())
}

fn keyed(name: &str, key: &str) -> Request {
    event(name).header("Idempotency-Key", key).signed()
}

async fn expect(client: &mut Client, name: &str) {
    client.expect(json!({ "event": name, "channel": NEWS, "data": "" })).await;
}

fn is_repeat(answer: &Answer) -> bool {
    answer.header("idempotent-replayed") == Some("true")
}

async fn subscribed(server: &Server) -> Client {
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    client
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_response_and_publishes_nothing() {
    let server = Server::start().await;
    let mut client = subscribed(&server).await;
    for round in 0..3 {
        let answer = server.send(keyed("once", "key 1")).await;
        assert_eq!((answer.ok(), is_repeat(&answer)), (json!({}), round > 0));
    }
    server.send(keyed("once", "key 2")).await.ok();
    server.send(event("once").signed()).await.ok();
    server.send(event("once").signed()).await.ok();
    for _ in 0..4 {
        expect(&mut client, "once").await;
    }
    client.fence().await;
    assert_eq!(server.metrics.idempotent_replays.get(), 2);
}

#[tokio::test]
async fn the_key_may_be_in_the_body_of_an_event_or_next_to_the_events_of_a_batch() {
    let server = Server::start().await;
    let mut client = subscribed(&server).await;
    let one = json!({ "name": "one", "channel": NEWS, "data": "", "idempotency_key": "a" });
    let item =
        |name: &str| json!({ "name": name, "channel": NEWS, "data": "", "info": "subscription_count" });
    let batch = json!({ "idempotency_key": "b", "batch": [item("two"), item("three")] });
    for _ in 0..3 {
        server.post_json("/apps/1001/events", one.clone()).await.ok();
        let answer = server.post_json("/apps/1001/batch_events", batch.clone()).await.ok();
        assert_eq!(answer, json!({ "batch": [{ "subscription_count": 1 }, { "subscription_count": 1 }] }));
    }
    for name in ["one", "two", "three"] {
        expect(&mut client, name).await;
    }
    client.fence().await;
}

/// The body is the data, so the key can only be in the header.
#[tokio::test]
async fn the_legacy_publish_may_have_a_key_in_its_header() {
    let server = Server::start().await;
    let mut client = subscribed(&server).await;
    let publish = async |name: &str, body: &str| {
        let request = Request::post("/apps/1001/channels/news/events", body).with("name", name);
        server.send(request.header("Idempotency-Key", "k").signed()).await
    };
    for round in 0..3 {
        let answer = publish("once", "text").await;
        assert_eq!((answer.status, answer.text(), is_repeat(&answer)), (202, "{}", round > 0));
    }
    publish("other", "text").await.rejected(422);
    publish("once", "other").await.rejected(422);
    client.expect(json!({ "event": "once", "channel": NEWS, "data": "text" })).await;
    client.fence().await;
    let body = json!({ "idempotency_key": "a" }).to_string();
    for _ in 0..2 {
        let request = Request::post("/apps/1001/channels/news/events", body.as_str()).with("name", "e");
        assert!(!is_repeat(&server.send(request.signed()).await), "the body is no more than data");
        client.expect(json!({ "event": "e", "channel": NEWS, "data": body })).await;
    }
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_response_although_the_state_changed() {
    let server = Server::start().await;
    let body = json!({ "name": "e", "channel": NEWS, "data": "", "info": "subscription_count" }).to_string();
    let publish = async || {
        server
            .send(Request::post("/apps/1001/events", body.clone()).header("Idempotency-Key", "k").signed())
            .await
            .ok()
    };
    let first = publish().await;
    assert_eq!(first, json!({ "channels": { NEWS: { "subscription_count": 0 } } }));
    let _client = subscribed(&server).await;
    assert_eq!(publish().await, first);
}

#[tokio::test]
async fn a_key_is_valid_for_one_request_of_one_app() {
    let server = Server::start().await;
    let mut client = subscribed(&server).await;
    server.send(keyed("one", "k")).await.ok();
    let text = server.send(keyed("other", "k")).await;
    assert!(text.rejected(422).contains("idempotency key"), "{}", text.text());
    // Parameters of the query are part of the request; those of the signature are not.
    server.send(event("one").header("Idempotency-Key", "k").with("x", "1").signed()).await.rejected(422);
    let batch = json!({ "batch": [{ "name": "one", "channel": NEWS, "data": "" }] }).to_string();
    let batch = Request::post("/apps/1001/batch_events", batch).header("Idempotency-Key", "k").signed();
    server.send(batch).await.rejected(422);
    let elsewhere = Request::post("/apps/1002/events", event("one").payload()).header("Idempotency-Key", "k");
    assert!(!is_repeat(&server.send(elsewhere.signed_with(&OTHER)).await), "each app has keys of its own");
    expect(&mut client, "one").await;
    client.fence().await;
}

#[tokio::test]
async fn an_empty_key_counts_as_missing() {
    let server = Server::start().await;
    let mut client = subscribed(&server).await;
    for _ in 0..2 {
        let body = json!({ "name": "e", "channel": NEWS, "data": "", "idempotency_key": "" }).to_string();
        for request in [keyed("e", ""), keyed("e", "\"\""), Request::post("/apps/1001/events", body).signed()]
        {
            assert!(!is_repeat(&server.send(request).await));
            expect(&mut client, "e").await;
        }
    }
}

#[tokio::test]
async fn an_invalid_key_is_rejected_with_its_name() {
    let server = Server::start().await;
    let mut client = subscribed(&server).await;
    let answer = server.send(keyed("e", &"x".repeat(256))).await;
    assert!(answer.rejected(400).contains("Idempotency-Key"), "{}", answer.text());
    for key in [json!(7), json!("x".repeat(256)), json!("\n"), json!(["a"])] {
        let body = json!({ "name": "e", "channel": NEWS, "data": "", "idempotency_key": key });
        let answer = server.post_json("/apps/1001/events", body).await;
        assert!(answer.rejected(400).contains("idempotency_key"), "{}", answer.text());
    }
    server.send(keyed("longest", &"x".repeat(255))).await.ok();
    expect(&mut client, "longest").await;
    client.fence().await;
}

#[tokio::test]
async fn a_first_attempt_that_fails_releases_its_key() {
    let server = Server::with_app(|app| {
        app.limits.events_per_second = Some(1);
        app.limits.events_per_batch_max = 1;
    })
    .await;
    let mut client = subscribed(&server).await;
    // Not a valid event, so the key was never reserved.
    let broken = Request::post("/apps/1001/events", "{}").header("Idempotency-Key", "k").signed();
    server.send(broken).await.rejected(400);
    server.send(event("uses up the second").signed()).await.ok();
    expect(&mut client, "uses up the second").await;
    assert_eq!(server.send(keyed("late", "k")).await.status, 429, "the first attempt is one too many");
    let attempt = async || server.send(keyed("late", "k")).await.status != 429;
    eventually("the rate lets it through", attempt).await;
    expect(&mut client, "late").await;
    assert!(is_repeat(&server.send(keyed("late", "k")).await), "which costs no event");
    client.fence().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_concurrent_requests_one_publishes_and_all_get_a_response() {
    let server = Server::start().await;
    let mut client = subscribed(&server).await;
    for round in 0..20 {
        let name = format!("round {round}");
        let answers = join_all((0..8).map(|_| server.send(keyed(&name, &name)))).await;
        assert!(answers.iter().all(|answer| answer.ok() == json!({})));
        assert_eq!(answers.iter().filter(|answer| is_repeat(answer)).count(), 7);
        expect(&mut client, &name).await;
    }
    client.fence().await;
}

#[tokio::test]
async fn a_publish_continues_when_its_client_disconnects() {
    let server = Server::start().await;
    let mut client = subscribed(&server).await;
    for round in 0..20 {
        let name = format!("round {round}");
        let mut http = server.http().await;
        http.write(&keyed(&name, &name).to_bytes()).await;
        drop(http);
        // Whichever request is first, the event is published once.
        server.send(keyed(&name, &name)).await.ok();
        expect(&mut client, &name).await;
    }
    client.fence().await;
}

#[tokio::test]
async fn the_store_is_limited_and_evicts_the_oldest_keys() {
    let server = Server::with_app(|app| app.limits.idempotency_keys_max = 2).await;
    for key in ["a", "b", "c"] {
        server.send(keyed("e", key)).await.ok();
    }
    server.assert_limit_rejections(Limit::IdempotencyKeys, 1);
    assert!(is_repeat(&server.send(keyed("e", "c")).await));
    assert!(!is_repeat(&server.send(keyed("e", "a")).await), "it was forgotten");
}

#[tokio::test]
async fn a_repeated_request_counts_for_the_rate_of_requests() {
    let server = Server::with_app(|app| app.limits.requests_per_second = Some(1)).await;
    server.send(keyed("e", "k")).await.ok();
    server.send(keyed("e", "k")).await.rejected(429);
    let unsigned = event("e").header("Idempotency-Key", "k");
    server.send(unsigned).await.rejected(401);
}

/// A publish waits while its channel has too many undelivered bytes, and so does a repeated request.
#[tokio::test]
async fn a_repeated_request_waits_for_the_first_one() {
    let server = Server::start().await;
    let mut stuck = server.connect_raw().await;
    SockRef::from(stuck.stream()).set_recv_buffer_size(4096).unwrap();
    stuck.send(r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#).await;
    stuck.next().await;
    let body: Value = json!({ "name": "large", "channel": NEWS, "data": "x".repeat(100_000) });
    let publish = |at: usize| {
        let key = format!("k{}", at % 10);
        Request::post("/apps/1001/events", body.to_string()).header("Idempotency-Key", &key).signed()
    };
    let answers = join_all((0..40).map(|at| server.send(publish(at)))).await;
    assert!(answers.iter().all(|answer| answer.ok() == json!({})));
    assert_eq!(answers.iter().filter(|answer| !is_repeat(answer)).count(), 10);
}

/// A service in which a publish to `news` waits until [`Stuck::release`]: the channel is large, so a task delivers it, and
/// the runtime of these tasks does not run.
struct Stuck {
    service: Service,
    tasks: TaskTracker,
    drivers: Option<Runtime>,
}

impl Drop for Stuck {
    fn drop(&mut self) {
        // Dropping the runtime would wait for its tasks, which an async test cannot do.
        if let Some(drivers) = self.drivers.take() {
            drivers.shutdown_background();
        }
    }
}

impl Stuck {
    fn new() -> Self {
        let drivers = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let hub = {
            let _inside = drivers.enter();
            Hub::new(pusherd::observers::Observers::default(), Arc::default(), Webhooks::default())
        };
        // One event exceeds the limit of undelivered bytes.
        let limits = AppLimits { event_data_bytes_max: 300_000, ..AppLimits::default() };
        let app = App { limits, ..App::new(DEMO.app_id, DEMO.key, DEMO.secret) };
        let apps = Arc::new(Apps::new([app]));
        let news = ChannelName::parse(NEWS, &NameRules::default()).unwrap();
        for id in 0..40 {
            let outbox = Arc::new(Outbox::detached(SocketId::new(id, id), usize::MAX));
            hub.join(&apps.by_id(DEMO.app_id).unwrap(), &outbox, &news, None).unwrap();
        }
        let tasks = TaskTracker::new();
        let options = Options { answer_timeout: Duration::from_millis(100), ..Options::default() };
        let service = Service::new(Api::new(hub, apps, options, tasks.clone()));
        Self { service, tasks, drivers: Some(drivers) }
    }

    /// Publishes as [`keyed`] does.
    async fn publish(&self) -> Response<AnswerBody> {
        let body = json!({ "name": "e", "channel": NEWS, "data": "x".repeat(290_000) }).to_string();
        let request = Request::post("/apps/1001/events", body).signed();
        let body = Full::new(Bytes::copy_from_slice(request.payload()));
        let request = HttpRequest::post(request.target()).header("Idempotency-Key", "k").body(body);
        self.service.answer(request.unwrap(), &Caller::default()).await
    }

    /// Runs the deliveries until all tasks of the API have ended.
    async fn release(&mut self) {
        let (drivers, tasks) = (self.drivers.take().unwrap(), self.tasks.clone());
        tasks.close();
        let released = tokio::task::spawn_blocking(move || drivers.block_on(tasks.wait()));
        in_time("what was held up ends", released).await.unwrap();
    }
}

#[tokio::test]
async fn a_repeated_request_gets_409_if_the_first_one_does_not_end() {
    let stuck = Stuck::new();
    let mut first = pin!(stuck.publish());
    assert!(poll!(&mut first).is_pending());
    let begun = Instant::now();
    let answer = in_time("an answer", stuck.publish()).await;
    assert_eq!(answer.status(), 409);
    assert_eq!(answer.headers()["retry-after"], "1");
    assert!(begun.elapsed() >= Duration::from_millis(100), "it was waited for");
    assert!(poll!(&mut first).is_pending(), "the first goes on");
}

#[tokio::test]
async fn a_shutdown_waits_for_a_publish_whose_client_disconnected() {
    let mut stuck = Stuck::new();
    assert!(poll!(pin!(stuck.publish())).is_pending());
    assert!(!stuck.tasks.is_empty(), "it goes on without its client");
    stuck.release().await;
    let answer = in_time("the answer of the first", stuck.publish()).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["idempotent-replayed"], "true");
}
