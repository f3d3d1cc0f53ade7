//! The memory that large bodies, cached events and lists may use, and that its limits hold.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use pusherd::limits::Limit;
use serde_json::{Value, json};
use tracing::Level;

use crate::harness::{Answer, DEMO, Http, Log, NEWS, OTHER, Request, Server};

/// The length of a body that arrives in several chunks.
const BODY: usize = 100_000;

/// The part of it that an unfinished request sends.
const PART: usize = 70_000;

/// A signed publish with a body of [`BODY`] bytes, which differs for each `number`.
fn large(key: &crate::harness::Key, number: usize) -> Request {
    let empty = json!({ "name": "e", "channel": NEWS, "data": format!("{number:08}") }).to_string();
    let data = format!("{number:08}{}", "x".repeat(BODY - empty.len()));
    let body = json!({ "name": "e", "channel": NEWS, "data": data }).to_string();
    assert_eq!(body.len(), BODY);
    Request::post(&format!("/apps/{}/events", key.app_id), body).signed_with(key)
}

/// A connection that has sent a request without the end of its body.
async fn unfinished(server: &Server, request: &Request) -> Http {
    let mut http = server.http().await;
    http.write(&[&request.head_with_length(BODY), &request.payload()[..PART]].concat()).await;
    http
}

#[tokio::test]
async fn request_bodies_in_flight_of_an_app_are_limited_with_429() {
    let server = Server::with(|setup| {
        setup.app.limits.requests_in_flight_bytes_max = 2 * BODY;
        setup.app.limits.request_body_bytes_max = BODY;
        setup.options.http.read_timeout = Duration::from_secs(1);
    })
    .await;
    let mut bodies =
        join_all((0..5).map(async |number| unfinished(&server, &large(&DEMO, number)).await)).await;
    let answers = join_all(bodies.iter_mut().map(Http::answer)).await;
    // Two are admitted, and time out.
    let mut statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [408, 408, 429, 429, 429]);
    for refused in answers.iter().filter(|answer| answer.status == 429) {
        assert_eq!(refused.header("retry-after"), Some("1"));
        let sentence = refused.rejected(429);
        assert!(sentence.contains("limits.requests_in_flight_bytes"), "{sentence}");
    }
    server.assert_limit_rejections(Limit::RequestsInFlightBytes, 3);
    // All of it has been released.
    for number in 5..10 {
        server.send(large(&DEMO, number)).await.ok();
    }
}

#[tokio::test]
async fn request_bodies_in_flight_of_all_apps_are_limited_with_503() {
    let server = Server::with(|setup| {
        for app in [&mut setup.app, &mut setup.other] {
            app.limits.request_body_bytes_max = BODY;
        }
        setup.options.http.requests_in_flight_bytes_max = 2 * BODY;
        setup.options.http.read_timeout = Duration::from_secs(1);
    })
    .await;
    let requests =
        [&DEMO, &OTHER, &DEMO, &OTHER].into_iter().zip(0..).map(|(key, number)| large(key, number));
    let mut bodies = join_all(requests.map(async |request| unfinished(&server, &request).await)).await;
    let answers = join_all(bodies.iter_mut().map(Http::answer)).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
    assert_eq!(refused.len(), 2);
    assert_eq!(refused[0].header("retry-after"), Some("1"));
    assert!(refused[0].rejected(503).contains("server.requests_in_flight_bytes"));
    server.assert_limit_rejections(Limit::NodeRequestsInFlightBytes, 2);
    // Small bodies, which arrive with their heads, are not counted.
    let _bodies = [unfinished(&server, &large(&DEMO, 7)).await, unfinished(&server, &large(&OTHER, 8)).await];
    server.publish(NEWS, "small", "").await;
}

#[tokio::test]
async fn requests_with_one_signature_upload_one_body_at_a_time() {
    let server = Server::with(|setup| setup.options.http.answer_timeout = Duration::from_millis(200)).await;
    let request = large(&DEMO, 1);
    let (mut one, mut other) = (unfinished(&server, &request).await, unfinished(&server, &request).await);
    // The signature may be in upper case.
    let capitals = request.value("auth_signature").to_ascii_uppercase();
    let mut third = unfinished(&server, &request.clone().set("auth_signature", &capitals)).await;
    let mut refused = 0;
    let mut is_refused = |answer: Answer| {
        let sentence = answer.rejected(409);
        assert!(sentence.contains("signature"), "{sentence}");
        assert_eq!(answer.header("retry-after"), Some("1"));
        refused += 1;
        refused == 2
    };
    // The first one goes on, and the two others are rejected.
    let mut rejected = [false; 3];
    loop {
        let is_last = tokio::select! {
            answer = one.answer(), if !rejected[0] => { rejected[0] = true; is_refused(answer) }
            answer = other.answer(), if !rejected[1] => { rejected[1] = true; is_refused(answer) }
            answer = third.answer(), if !rejected[2] => { rejected[2] = true; is_refused(answer) }
        };
        if is_last {
            break;
        }
    }
    let first = [&mut one, &mut other, &mut third]
        .into_iter()
        .zip(rejected)
        .find(|(_, rejected)| !rejected)
        .unwrap()
        .0;
    first.write(&request.payload()[PART..]).await;
    first.answer().await.ok();
}

#[tokio::test]
async fn a_retried_request_is_accepted_with_the_same_signature() {
    let server = Server::start().await;
    let request = large(&DEMO, 1);
    for _ in 0..3 {
        server.send(request.clone()).await.ok();
    }
    // A proxy times out and retries.
    drop(unfinished(&server, &request).await);
    crate::harness::eventually("the first one is dropped", async || {
        server.send(request.clone()).await.status == 200
    })
    .await;
    // Workers publish the same event in the same second.
    for answer in join_all((0..8).map(|_| server.send(request.clone()))).await {
        answer.ok();
    }
    let small = Request::post("/apps/1001/events", r#"{"name":"e","channel":"news","data":""}"#).signed();
    for answer in join_all((0..8).map(|_| server.send(small.clone()))).await {
        answer.ok();
    }
}

#[tokio::test]
async fn cached_events_of_an_app_are_limited_and_the_least_recently_published_evicted() {
    let server = Server::with_app(|app| app.limits.cached_bytes_max = 2500).await;
    for channel in ["cache-1", "cache-2", "cache-1", "cache-3"] {
        server.publish(channel, "e", &"x".repeat(1000)).await;
    }
    server.assert_limit_rejections(Limit::CachedBytes, 1);
    let keeps = async |channel: &str| {
        !server.get_json(&format!("/apps/1001/channels/{channel}?info=cache")).await["cache"].is_null()
    };
    assert!(keeps("cache-1").await && !keeps("cache-2").await && keeps("cache-3").await);
}

#[tokio::test]
async fn a_short_list_has_a_length_and_a_long_one_is_chunked() {
    let server = Server::start().await;
    let empty = server.get("/apps/1001/channels").await;
    assert_eq!(empty.ok(), json!({ "channels": {} }));
    assert!(empty.header("content-length").is_some());
    let mut client = server.connect().await;
    let names: BTreeSet<String> = (0..800).map(|at| format!("room-{at}-{}", "x".repeat(180))).collect();
    for name in &names {
        client.subscribe(name).await;
    }
    let long = server.get("/apps/1001/channels?info=subscription_count").await;
    assert_eq!((long.header("content-length"), long.header("transfer-encoding")), (None, Some("chunked")));
    let Value::Object(channels) = &long.ok()["channels"] else { panic!("{}", long.text()) };
    assert!(channels.keys().eq(&names), "each once");
    assert!(channels.values().all(|channel| *channel == json!({ "subscription_count": 1 })));
    let none = server.get_json("/apps/1001/channels?filter_by_prefix=other").await;
    assert_eq!(none, json!({ "channels": {} }));
}

#[tokio::test]
async fn concurrent_channel_lists_of_an_app_are_served_one_by_one() {
    let server = Server::start().await;
    let answers = join_all((0..16).map(|_| server.get("/apps/1001/channels"))).await;
    for answer in answers {
        answer.ok();
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_returns_unused_memory_to_the_system_while_it_runs() {
    const RETURNED: &str = "memory returned to the system";
    let (log, _logging) = Log::start(Level::DEBUG);
    let server = Server::start().await;
    server.get("/apps/1001/channels").await.ok();
    assert!(log.lines(Level::DEBUG, RETURNED).is_empty());
    // More than the process may use beyond its least before memory is returned.
    let in_use = vec![1u8; 64 * 1024 * 1024];
    for _ in 0..10 {
        // On the test's clock.
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let lines = log.lines(Level::DEBUG, RETURNED);
    assert!(!lines.is_empty() && lines.len() <= 10, "{}", log.text());
    assert!(lines[0].contains("resident_mb="), "{}", lines[0]);
    assert!(in_use.iter().all(|byte| *byte == 1));
}
