//! Nodes of a cluster over a real Redis: what they send to it, and what they accept from it.

use std::time::Duration;

use pusherd::cluster::Engine;
use pusherd::limits::{Limit, Rate};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::harness::redis::{RedisServer, redis_server};
use crate::harness::{
    Client, DEMO, Hook, NEWS, Receiver, Request, Server, Setup, eventually, in_time, webhook,
};

const ROOM: &str = "presence-room";

async fn node(redis: &RedisServer, change: impl FnOnce(&mut Setup)) -> Server {
    let server = Server::with(|setup| {
        setup.options.cluster.engine = Some(Engine::Redis(Box::new(redis.options())));
        change(setup);
    })
    .await;
    is_ready(&server, true).await;
    server
}

async fn is_ready(server: &Server, ready: bool) {
    let status = if ready { 200 } else { 503 };
    let asked = || async { server.send(Request::get("/ready")).await.status == status };
    eventually(format_args!("/ready answers {status}"), asked).await;
}

/// More heartbeats than in production.
fn quick(setup: &mut Setup) {
    setup.options.cluster.timing.heartbeat = Duration::from_millis(100);
}

fn user(id: &str) -> Value {
    json!({ "user_id": id })
}

fn event(name: &str) -> Vec<u8> {
    json!({ "name": name, "channel": NEWS, "data": "" }).to_string().into_bytes()
}

/// Records all commands that Redis receives, until the sender is used.
async fn monitor(redis: &RedisServer) -> (oneshot::Sender<()>, tokio::task::JoinHandle<String>) {
    let address = redis.address();
    let mut stream = TcpStream::connect((address.host.as_str(), address.port)).await.unwrap();
    stream.write_all(b"MONITOR\r\n").await.unwrap();
    let mut received = vec![0; 5];
    stream.read_exact(&mut received).await.unwrap();
    assert_eq!(received, b"+OK\r\n");
    let (stop, mut stopped) = oneshot::channel();
    let reading = tokio::spawn(async move {
        loop {
            tokio::select! {
                read = stream.read_buf(&mut received) => assert_ne!(read.unwrap(), 0),
                _ = &mut stopped => return String::from_utf8_lossy(&received).into_owned(),
            }
        }
    });
    (stop, reading)
}

#[tokio::test]
async fn secrets_are_never_sent_to_redis() {
    let redis = redis_server().await;
    let (stop, monitored) = monitor(&redis).await;
    let mut receiver = Receiver::start().await;
    let hook = receiver.webhook();
    let [one, two] = [
        node(&redis, |setup| setup.app.webhooks.push(hook.clone())).await,
        node(&redis, |setup| setup.app.webhooks.push(hook)).await,
    ];
    let (mut here, mut there) = (one.connect().await, two.connect().await);
    here.sign_in(json!({ "id": "7", "watchlist": ["8"] })).await;
    let watched = here.next_text().await;
    assert!(watched.contains("watchlist_events"), "{watched}");
    here.join(ROOM, user("7")).await;
    there.join(ROOM, user("8")).await;
    here.expect_event("pusher_internal:member_added", ROOM).await;
    there.whisper(ROOM, "client-x", json!(1)).await;
    here.expect(json!({ "event": "client-x", "channel": ROOM, "data": 1, "user_id": "8" })).await;
    one.publish("private-cache-x", "e", "cached").await;
    let _: Hook = receiver.hook().await;
    let _ = stop.send(());
    let commands = in_time("the commands", monitored).await.unwrap();
    for expected in ["client-x", "cached", "XADD", "presence-room"] {
        assert!(commands.contains(expected), "the monitor has seen {expected}");
    }
    for secret in [DEMO.secret, "other-secret"] {
        assert!(!commands.contains(secret), "{secret} was sent");
    }
}

#[tokio::test]
async fn malformed_messages_from_redis_are_counted_and_dropped() {
    let redis = redis_server().await;
    let server = node(&redis, |_| {}).await;
    let mut client = server.connect().await;
    client.join(ROOM, user("7")).await;
    client.subscribe(NEWS).await;
    let dropped = || server.metrics.cluster.dropped.get();
    let topics: Vec<String> = redis.run(&["PUBSUB", "CHANNELS"]).await;
    assert!(topics.len() >= 4, "two groups, all nodes, this node: {topics:?}");
    let sent =
        ["", "garbage", "2M1e{}", "1T1 2 a 9 short", "1Mz", "1R999", "1M", "1K12", "1Mx123", "1Me\u{0}"];
    for topic in &topics {
        for garbage in sent {
            let _: i64 = redis.run(&["PUBLISH", topic, garbage]).await;
        }
    }
    eventually("dropped messages are counted", || async { dropped() > 10 }).await;
    // Well-formed envelopes are delivered, whatever they contain; nothing else arrives.
    server.publish(NEWS, "e", "").await;
    loop {
        let frame = client.next_text().await;
        if frame.contains(r#""event":"e""#) {
            break;
        }
    }
    assert_eq!(
        server.get_json("/apps/1001/channels/presence-room/users").await,
        json!({ "users": [{ "id": "7" }] })
    );
}

#[tokio::test]
async fn while_redis_is_down_requests_are_rejected_and_all_state_is_restored_afterwards() {
    let mut redis = redis_server().await;
    let [one, two] = [node(&redis, quick).await, node(&redis, quick).await];
    let (mut here, mut there) = (one.connect().await, two.connect().await);
    here.join(ROOM, user("7")).await;
    there.join(ROOM, user("8")).await;
    here.expect_event("pusher_internal:member_added", ROOM).await;
    here.subscribe(NEWS).await;
    redis.kill();
    is_ready(&one, false).await;
    is_ready(&two, false).await;
    let refused = one.send(Request::post("/apps/1001/events", event("e")).signed()).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    refused.rejected(503);
    here.whisper(ROOM, "client-x", json!(1)).await;
    here.expect_error(Value::Null).await;
    // A join waits; a client that leaves is gone.
    let mut joining = one.connect().await;
    joining.ask_as(ROOM, &user("9").to_string()).await;
    here.fence().await;
    there.close().await;
    redis.restart().await;
    is_ready(&one, true).await;
    is_ready(&two, true).await;
    let roster = joining.expect_event("pusher_internal:subscription_succeeded", ROOM).await;
    assert!(roster["presence"]["hash"].get("9").is_some());
    eventually("the members are registered again", || async {
        let users = two.get_json("/apps/1001/channels/presence-room/users").await;
        let mut ids: Vec<_> = users["users"]
            .as_array()
            .unwrap()
            .iter()
            .map(|user| user["id"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids == ["7", "9"]
    })
    .await;
    two.publish(NEWS, "e", "").await;
    let mut events = Vec::new();
    while events.len() < 3 {
        let frame = here.next().await;
        let name = frame["event"].as_str().unwrap().to_owned();
        events.push((name, frame["data"].as_str().unwrap_or_default().contains("\"8\"")));
    }
    events.sort();
    let of = |name: &str, eight| (format!("pusher_internal:{name}"), eight);
    let expected = [("e".into(), false), of("member_added", false), of("member_removed", true)];
    assert_eq!(events, expected, "7 has stayed, and 8 has left");
}

/// The own channel of user 7.
const MINE: &str = "#server-to-user-7";

/// An event to user 7 that is published on `node` reaches each of the clients once.
async fn reaches(node: &Server, name: &str, clients: &mut [&mut Client]) {
    node.publish(MINE, name, "").await;
    for client in clients {
        client.expect(json!({ "event": name, "channel": MINE, "data": "" })).await;
        client.fence().await;
    }
}

/// Whether user 7 is signed in, according to `node`.
async fn is_signed_in(node: &Server) -> bool {
    let own = Request::get("/apps/1001/channels/%23server-to-user-7").signed();
    node.send(own).await.ok() == json!({ "occupied": true })
}

#[tokio::test]
async fn an_event_to_a_user_reaches_its_connections_on_another_node_once_subscribed_or_not() {
    let redis = redis_server().await;
    let [one, two] = [node(&redis, |_| {}).await, node(&redis, |_| {}).await];
    let [mut bare, mut subscribed, mut other] = two.connect_many().await;
    for (client, id) in [(&mut bare, "7"), (&mut subscribed, "7"), (&mut other, "8")] {
        client.sign_in(json!({ "id": id })).await;
    }
    subscribed.subscribe(MINE).await;
    reaches(&one, "one", &mut [&mut bare, &mut subscribed]).await;
    reaches(&two, "two", &mut [&mut bare, &mut subscribed]).await;
    // On both nodes, and after an unsubscribe.
    let mut here = one.connect().await;
    here.sign_in(json!({ "id": "7" })).await;
    subscribed.unsubscribe(MINE).await;
    reaches(&one, "three", &mut [&mut here, &mut bare, &mut subscribed]).await;
    other.fence().await;
}

#[tokio::test]
async fn a_sign_in_while_redis_is_down_is_acknowledged_when_it_is_back_and_misses_no_event_after_that() {
    let mut redis = redis_server().await;
    let [one, two] = [node(&redis, quick).await, node(&redis, quick).await];
    let [mut before, mut bare, mut subscribed, mut gone] = two.connect_many().await;
    let user_data = json!({ "id": "7" }).to_string();
    before.sign_in(json!({ "id": "7" })).await;
    redis.kill();
    is_ready(&one, false).await;
    is_ready(&two, false).await;
    for client in [&mut bare, &mut subscribed, &mut gone] {
        client.send(client.signed_sign_in(&user_data)).await;
    }
    subscribed.ask(MINE).await;
    gone.close().await;
    // The sign-ins are pending. Publishes are rejected, because they would reach no connection.
    for client in [&mut before, &mut bare, &mut subscribed] {
        client.fence().await;
    }
    let event = json!({ "name": "lost", "channel": MINE, "data": "" }).to_string();
    one.send(Request::post("/apps/1001/events", event).signed()).await.rejected(503);
    redis.restart().await;
    for client in [&mut bare, &mut subscribed] {
        client.expect_signed_in(&user_data).await;
    }
    subscribed.expect_subscribed(MINE).await;
    is_ready(&one, true).await;
    is_ready(&two, true).await;
    for node in [&one, &two] {
        reaches(node, "back", &mut [&mut before, &mut bare, &mut subscribed]).await;
        assert!(is_signed_in(node).await);
    }
    // No state is left.
    for client in [before, bare, subscribed] {
        client.close().await;
    }
    for node in [&one, &two] {
        eventually("the user is signed out", async || !is_signed_in(node).await).await;
    }
}

/// The number of scripts that Redis has run.
async fn scripts(redis: &RedisServer) -> u64 {
    let stats: String = redis.run(&["INFO", "commandstats"]).await;
    let calls = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_eval")?.split_once(":calls="));
    calls.map(|(_, rest)| rest.split(',').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// No heartbeats, whose commands would be counted.
fn without_heartbeats(setup: &mut Setup) {
    let timing = &mut setup.options.cluster.timing;
    (timing.lease, timing.heartbeat) = (Duration::from_secs(1200), Duration::from_secs(600));
}

#[tokio::test]
async fn the_changes_limit_bounds_the_scripts_that_a_client_causes_per_second() {
    const PER_SECOND: u32 = 50;
    let redis = redis_server().await;
    let server = node(&redis, |setup| {
        without_heartbeats(setup);
        setup.app.limits.changes = Rate { per_second: PER_SECOND, burst: 10 };
    })
    .await;
    let mut client = server.connect().await;
    let (before, begun) = (scripts(&redis).await, Instant::now());
    for at in 0..20 {
        // Each edge is sent, because the client waits for the acknowledgements.
        let channel = format!("fresh-{at}");
        client.subscribe(&channel).await;
        client.unsubscribe(&channel).await;
    }
    let (caused, seconds) = (scripts(&redis).await - before, begun.elapsed().as_secs_f64());
    // The burst, the rate, and the two changes in flight.
    let max = 10.0 + f64::from(PER_SECOND) * seconds + 2.0;
    assert!((30..=40).contains(&caused) && caused as f64 <= max, "{caused} in {seconds} s, of {max} at most");
    assert!(server.metrics.rejected(Limit::Changes).get() > 0);
    // Edges that cancel out before they are sent cause no scripts.
    let before = scripts(&redis).await;
    for at in 0..100 {
        let channel = format!("fresh-{at}");
        client
            .send_all([
                json!({ "event": "pusher:subscribe", "data": { "channel": channel } }),
                json!({ "event": "pusher:unsubscribe", "data": { "channel": channel } }),
            ])
            .await;
    }
    eventually("the client is throttled", async || server.metrics.rejected(Limit::Changes).get() > 10).await;
    let caused = scripts(&redis).await - before;
    assert!(caused < 20, "{caused} of 200 changes");
    // Other clients are not throttled.
    let mut other = server.connect().await;
    other.subscribe(NEWS).await;
    server.publish(NEWS, "e", "").await;
    other.expect(json!({ "event": "e", "channel": NEWS, "data": "" })).await;
}

#[tokio::test]
async fn signing_in_as_the_same_user_causes_no_script() {
    let redis = redis_server().await;
    let server = node(&redis, without_heartbeats).await;
    let mut client = server.connect().await;
    let watchlist: Vec<_> = (100..200).map(|id| id.to_string()).collect();
    let user = json!({ "id": "7", "watchlist": watchlist });
    client.sign_in(user.clone()).await;
    assert!(client.next_text().await.contains("watchlist_events"));
    let before = scripts(&redis).await;
    for _ in 0..50 {
        client.sign_in(user.clone()).await;
    }
    assert_eq!(scripts(&redis).await, before);
    // A new user on the watchlist causes a script, and only that one.
    let mut watchlist = watchlist;
    watchlist[0] = "new".to_owned();
    client.sign_in(json!({ "id": "7", "watchlist": watchlist })).await;
    assert!(client.next_text().await.contains("new"));
    let caused = scripts(&redis).await - before;
    assert!((1..=3).contains(&caused), "{caused} scripts");
}

#[tokio::test]
async fn events_are_delivered_locally_while_redis_is_down_if_the_settings_say_so() {
    let mut redis = redis_server().await;
    let server = node(&redis, |setup| setup.options.cluster.local_when_broker_lost = true).await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    redis.kill();
    is_ready(&server, false).await;
    server.publish(NEWS, "e", "here").await;
    client.expect(json!({ "event": "e", "channel": NEWS, "data": "here" })).await;
}

#[tokio::test]
async fn nodes_register_again_after_a_flush_and_members_cause_no_events() {
    let redis = redis_server().await;
    let [one, two] = [node(&redis, quick).await, node(&redis, quick).await];
    let (mut here, mut there) = (one.connect().await, two.connect().await);
    here.join(ROOM, user("7")).await;
    there.join(ROOM, user("8")).await;
    here.expect_event("pusher_internal:member_added", ROOM).await;
    let _: () = redis.run(&["FLUSHALL"]).await;
    let has_expired = |server: &Server| server.metrics.cluster.lease_expirations.get() > 0;
    eventually("both leases have expired", || async { has_expired(&one) && has_expired(&two) }).await;
    for server in [&one, &two] {
        eventually("the members are registered again", || async {
            let users = server.get_json("/apps/1001/channels/presence-room/users").await;
            users["users"].as_array().unwrap().len() == 2
        })
        .await;
    }
    one.publish(ROOM, "e", "").await;
    for client in [&mut here, &mut there] {
        client.expect(json!({ "event": "e", "channel": ROOM, "data": "" })).await;
    }
}

#[tokio::test]
async fn the_connection_limit_of_an_app_holds_for_all_nodes_together() {
    let redis = redis_server().await;
    let two_of_them = |setup: &mut Setup| setup.app.limits.connections_max = Some(2);
    let [one, two] = [node(&redis, two_of_them).await, node(&redis, two_of_them).await];
    let here = one.connect().await;
    let _there = two.connect().await;
    for server in [&one, &two] {
        server.upgrade("/app/demo-key?protocol=7", &[]).await.rejected(4004).await;
    }
    here.close().await;
    eventually("the permit is released", || async {
        let mut client = two.upgrade("/app/demo-key?protocol=7", &[]).await.client();
        client.next_text().await.contains("connection_established")
    })
    .await;
}

#[tokio::test]
async fn the_nodes_together_send_each_webhook_event_once() {
    let redis = redis_server().await;
    let mut receiver = Receiver::start().await;
    let hook = webhook(&receiver.url("/"));
    let with_webhooks = |setup: &mut Setup| {
        setup.app.webhooks.push(hook.clone());
        setup.options.webhooks.timing.debounce = Duration::from_millis(100);
        setup.options.cluster.timing.heartbeat = Duration::from_millis(200);
    };
    let [one, two] = [node(&redis, with_webhooks).await, node(&redis, with_webhooks).await];
    let (mut here, mut there) = (one.connect().await, two.connect().await);
    here.join(ROOM, user("7")).await;
    there.join(ROOM, user("7")).await;
    here.close().await;
    there.close().await;
    let mut reported = Vec::new();
    while reported.len() < 4 {
        for event in receiver.hook().await.events() {
            reported.push(event["name"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(reported, ["channel_occupied", "member_added", "member_removed", "channel_vacated"]);
    eventually("all records are acknowledged", || async {
        let streams: Vec<String> = redis.run(&["KEYS", "*:r"]).await;
        let mut records = 0;
        for key in streams {
            records += redis.run::<i64>(&["XLEN", &key]).await;
        }
        records == 0
    })
    .await;
    assert!(receiver.is_idle());
}
