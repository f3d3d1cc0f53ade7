//! What applications are told by HTTP. Source: protocol.md §9.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use pusherd::apps::{App, Apps, ChannelFilter, EventType, EventTypes, KeyPair, Webhook, webhook_header};
use pusherd::hub::{Hub, SignIn};
use pusherd::metrics::Metrics;
use pusherd::outbox::Outbox;
use pusherd::protocol::signature::SigningKey;
use pusherd::protocol::{ChannelName, Member, NameRules, SocketId, UserId};
use pusherd::server::Shutdown;
use pusherd::webhooks::dead_letters::DeadLetter;
use pusherd::webhooks::{Event, EventId, Options, Webhooks};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::harness::{
    DEMO, Hook, NEWS, Receiver, Reply, Server, Setup, eventually, in_time, receiver, webhook,
};

/// What no test waits for.
const LONG: Duration = Duration::from_secs(600);

const SHORT: Duration = Duration::from_millis(40);

/// Makes a server tell `webhooks` of everything in one order, what is gone included, which is held for `hold`.
fn telling(setup: &mut Setup, webhooks: impl IntoIterator<Item = Webhook>, hold: Duration) {
    setup.app.webhooks = webhooks.into_iter().collect();
    // Batches come one after the other, whatever the channel.
    (setup.app.webhook_batching, setup.app.webhook_batching_ms) = (true, 1);
    setup.options.webhooks.timing.hold = hold;
    setup.options.webhooks.timing.back_off = Duration::from_millis(5);
    setup.options.webhooks.timing.back_off_max = Duration::from_millis(20);
    setup.options.webhooks.timing.probe = Duration::from_millis(5);
}

/// A server that tells one receiver of everything.
async fn telling_all(hold: Duration) -> (Server, Receiver) {
    let receiver = Receiver::start().await;
    let server = Server::with(|setup| telling(setup, [receiver.webhook()], hold)).await;
    (server, receiver)
}

fn occupied(channel: &str) -> Value {
    json!({ "name": "channel_occupied", "channel": channel })
}

fn vacated(channel: &str) -> Value {
    json!({ "name": "channel_vacated", "channel": channel })
}

/// A client event with a number, as a receiver is told of it.
fn number_of(event: &Value) -> u64 {
    assert_eq!(event["name"], "client_event");
    event["data"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_channel_is_told_of_when_the_first_comes_and_when_the_last_is_gone() {
    let (server, mut receiver) = telling_all(SHORT).await;
    let [mut one, mut two] = server.connect_many().await;
    one.subscribe(NEWS).await;
    two.subscribe(NEWS).await;
    receiver.expect(occupied(NEWS)).await;
    one.unsubscribe(NEWS).await;
    one.fence().await;
    two.reset();
    receiver.expect(vacated(NEWS)).await;
}

#[tokio::test]
async fn channels_of_every_kind_are_told_of_but_a_users_own() {
    let (server, mut receiver) = telling_all(SHORT).await;
    let mut client = server.connect().await;
    client.sign_in(json!({ "id": "7" })).await;
    client.subscribe("#server-to-user-7").await;
    for channel in ["private-a", "private-encrypted-a"] {
        client.subscribe(channel).await;
        receiver.expect(occupied(channel)).await;
    }
    client.unsubscribe("#server-to-user-7").await;
    client.unsubscribe("private-a").await;
    receiver.expect(vacated("private-a")).await;
}

#[tokio::test]
async fn members_are_told_of_once_however_many_connections_they_have() {
    let (server, mut receiver) = telling_all(SHORT).await;
    let [mut one, mut two, mut other] = server.connect_many().await;
    let member =
        |name: &str, user: &str| json!({ "name": name, "channel": "presence-room", "user_id": user });
    one.join("presence-room", json!({ "user_id": 7, "user_info": { "name": "Zoë" } })).await;
    receiver.expect(occupied("presence-room")).await;
    receiver.expect(member("member_added", "7")).await;
    two.join("presence-room", json!({ "user_id": "7" })).await;
    other.join("presence-room", json!({ "user_id": "8" })).await;
    receiver.expect(member("member_added", "8")).await;
    one.close().await;
    two.close().await;
    receiver.expect(member("member_removed", "7")).await;
    other.close().await;
    receiver.expect(member("member_removed", "8")).await;
    receiver.expect(vacated("presence-room")).await;
}

#[tokio::test]
async fn a_client_event_has_its_data_as_a_string_and_a_user_on_presence_channels_only() {
    let (server, mut receiver) = telling_all(LONG).await;
    let mut client = server.connect().await;
    client.subscribe("private-room").await;
    receiver.expect(occupied("private-room")).await;
    for (data, expected) in [
        (json!({ "on": true }), r#"{"on":true}"#),
        (json!("typed \"text\" \u{1f600}"), "typed \"text\" \u{1f600}"),
        (json!(5), "5"),
        (json!(null), "null"),
    ] {
        client.whisper("private-room", "client-x", data).await;
        let mut told = json!({ "name": "client_event", "channel": "private-room", "event": "client-x" });
        told["data"] = expected.into();
        told["socket_id"] = client.id.clone().into();
        receiver.expect(told).await;
    }
    client.join("presence-room", json!({ "user_id": "7" })).await;
    receiver.event().await;
    receiver.event().await;
    client.whisper("presence-room", "client-x", json!("")).await;
    let told = receiver.event().await;
    assert_eq!((&told["user_id"], &told["data"]), (&json!("7"), &json!("")));
    // What is refused is told to nobody, and what the application publishes is no news to it.
    client.whisper("private-elsewhere", "client-x", json!(1)).await;
    client.expect_error(Value::Null).await;
    server.publish("private-room", "e", "").await;
    client.expect(json!({ "event": "e", "channel": "private-room", "data": "" })).await;
    client.subscribe("fence").await;
    receiver.expect(occupied("fence")).await;
}

#[tokio::test]
async fn an_empty_cache_is_told_of_once_in_ten_seconds() {
    let (server, mut receiver) = telling_all(LONG).await;
    let [mut one, mut two] = server.connect_many().await;
    for client in [&mut one, &mut two] {
        client.subscribe("cache-btc").await;
        client.expect_event("pusher:cache_miss", "cache-btc").await;
    }
    one.subscribe("fence").await;
    receiver.expect(occupied("cache-btc")).await;
    receiver.expect(json!({ "name": "cache_miss", "channel": "cache-btc" })).await;
    receiver.expect(occupied("fence")).await;
}

#[tokio::test]
async fn the_count_is_told_where_subscribers_are_told_it() {
    let receiver = Receiver::start().await;
    let counting = |setup: &mut Setup| {
        telling(setup, [receiver.webhook()], LONG);
        setup.app.subscription_counts = true;
    };
    let server = Server::with(counting).await;
    let mut receiver = receiver;
    let count = |count| json!({ "name": "subscription_count", "channel": NEWS, "subscription_count": count });
    let mut clients = Vec::new();
    for at in 1..=3 {
        let mut client = server.connect().await;
        client.subscribe(NEWS).await;
        clients.push(client);
        if at == 1 {
            receiver.expect(occupied(NEWS)).await;
        }
        receiver.expect(count(at)).await;
    }
    clients[0].unsubscribe(NEWS).await;
    receiver.expect(count(2)).await;
}

#[tokio::test]
async fn users_are_told_of_only_where_that_is_asked_for() {
    let receiver = Receiver::start().await;
    let (mut users, mut all) = (receiver, Receiver::start().await);
    let mut of_users = users.webhook();
    of_users.event_types = EventTypes::of(&[EventType::UserOnline, EventType::UserOffline]);
    let of_all = all.webhook();
    let server = Server::with(|setup| telling(setup, [of_users, of_all], SHORT)).await;
    let [mut phone, mut laptop, mut other] = server.connect_many().await;
    phone.sign_in(json!({ "id": "7" })).await;
    users.expect(json!({ "name": "user_online", "user_id": "7" })).await;
    laptop.sign_in(json!({ "id": "7" })).await;
    phone.close().await;
    other.sign_in(json!({ "id": "8" })).await;
    users.expect(json!({ "name": "user_online", "user_id": "8" })).await;
    laptop.reset();
    users.expect(json!({ "name": "user_offline", "user_id": "7" })).await;
    other.subscribe(NEWS).await;
    all.expect(occupied(NEWS)).await;
    assert!(users.is_idle() && all.is_idle());
}

#[tokio::test]
async fn a_request_is_as_the_sdks_expect_it() {
    let mut receiver = Receiver::start().await;
    let mut webhook = receiver.webhook();
    let (name, value) = webhook_header("X-Env", "prod").unwrap();
    webhook.headers.insert(name, value);
    let server = Server::with_app(|app| {
        app.webhooks = vec![webhook];
        app.keys.push(KeyPair { key: "newer-key".into(), secret: SigningKey::new("newer-secret") });
    })
    .await;
    let mut client = server.connect().await;
    let before = receiver::unix_ms();
    client.subscribe(NEWS).await;
    let hook = receiver.hook().await;
    assert_eq!(hook.request_line, "POST /hooks HTTP/1.1");
    let time_ms = hook.json()["time_ms"].as_u64().unwrap();
    assert!((before..=receiver::unix_ms()).contains(&time_ms));
    let body =
        format!(r#"{{"time_ms":{time_ms},"events":[{{"name":"channel_occupied","channel":"news"}}]}}"#);
    assert_eq!(String::from_utf8_lossy(&hook.body), body);
    for (name, expected) in [
        ("host", receiver.address.to_string().as_str()),
        ("content-type", "application/json"),
        ("content-length", body.len().to_string().as_str()),
        ("user-agent", concat!("pusherd/", env!("CARGO_PKG_VERSION"))),
        ("x-pusher-key", "demo-key"),
        ("x-pusher-signature", DEMO.sign(&body).as_str()),
        ("x-env", "prod"),
    ] {
        assert_eq!(hook.header(name), [expected], "{name}");
    }
}

#[tokio::test]
async fn one_event_is_one_request_unless_they_are_batched() {
    for batching in [false, true] {
        let mut receiver = Receiver::start().await;
        let server = Server::with_app(|app| {
            app.webhooks = vec![receiver.webhook()];
            (app.webhook_batching, app.webhook_batching_ms) = (batching, 5000);
        })
        .await;
        let mut client = server.connect().await;
        let channels: Vec<_> = (0..100).map(|at| format!("channel-{at}")).collect();
        client
            .send_all(
                channels
                    .iter()
                    .map(|channel| json!({ "event": "pusher:subscribe", "data": { "channel": channel } })),
            )
            .await;
        let begin = Instant::now();
        let mut told = Vec::new();
        while told.len() < 100 {
            let hook = receiver.hook().await;
            assert_eq!(hook.events().len(), if batching { 100 } else { 1 });
            told.extend(hook.events());
        }
        assert!(!batching || begin.elapsed() < Duration::from_secs(5), "a hundred do not wait for more");
        let mut names: Vec<_> = told.iter().map(|event| event["channel"].as_str().unwrap()).collect();
        let mut expected: Vec<_> = channels.iter().map(String::as_str).collect();
        if !batching {
            names.sort_unstable();
            expected.sort_unstable();
        }
        assert_eq!(names, expected);
    }
}

#[tokio::test]
async fn each_receiver_is_told_what_it_asks_for_in_requests_of_its_own() {
    let [mut presence, mut vacancies, mut rest] =
        [Receiver::start().await, Receiver::start().await, Receiver::start().await];
    let of_presence = Webhook {
        filter: ChannelFilter { starts_with: "presence-".into(), ends_with: "-a".into() },
        ..presence.webhook()
    };
    let of_vacancies =
        Webhook { event_types: EventTypes::of(&[EventType::ChannelVacated]), ..vacancies.webhook() };
    let of_rest = rest.webhook();
    let server = Server::with(|setup| telling(setup, [of_presence, of_vacancies, of_rest], SHORT)).await;
    let mut client = server.connect().await;
    client.subscribe("a").await;
    client.join("presence-b", json!({ "user_id": "7" })).await;
    client.join("presence-a", json!({ "user_id": "7" })).await;
    for event in [occupied("a"), occupied("presence-b")] {
        rest.expect(event).await;
    }
    assert_eq!(rest.event().await["name"], "member_added");
    rest.expect(occupied("presence-a")).await;
    presence.expect(occupied("presence-a")).await;
    assert_eq!(presence.event().await["name"], "member_added");
    client.unsubscribe("a").await;
    vacancies.expect(vacated("a")).await;
    rest.event().await;
    rest.expect(vacated("a")).await;
    assert!(presence.is_idle());
}

#[tokio::test]
async fn apps_tell_their_own_receivers_only() {
    let [mut ours, mut theirs] = [Receiver::start().await, Receiver::start().await];
    let (of_ours, of_theirs) = (ours.webhook(), theirs.webhook());
    let server = Server::with(|setup| {
        setup.app.webhooks = vec![of_ours];
        setup.other.webhooks = vec![of_theirs];
    })
    .await;
    server.connect().await.subscribe("a").await;
    let mut client = server.connect_to("/app/other-key").await;
    client.subscribe("b").await;
    ours.expect(occupied("a")).await;
    let hook = theirs.hook().await;
    assert_eq!(hook.events(), [occupied("b")]);
    assert_eq!(hook.header("x-pusher-key"), ["other-key"]);
}

#[tokio::test]
async fn both_halves_of_a_flap_are_dropped() {
    let (server, mut receiver) = telling_all(LONG).await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    client.join("presence-room", json!({ "user_id": "7" })).await;
    receiver.expect(occupied(NEWS)).await;
    receiver.expect(occupied("presence-room")).await;
    receiver.event().await;
    for _ in 0..3 {
        // As everyone does who loads a page.
        client.reset();
        server.has_connections(0).await;
        client = server.connect().await;
        client.subscribe(NEWS).await;
        client.join("presence-room", json!({ "user_id": "7" })).await;
    }
    client.subscribe("fence").await;
    receiver.expect(occupied("fence")).await;
}

/// Without a server, so that threads come as close to each other as they can.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_comes_and_goes_at_once_is_told_by_turns_and_the_truth_last() {
    // Enough that noting what happened after it was decided, and not with it, fails here.
    const ROUNDS: usize = 10_000;
    // One is told who comes and one who goes, so that nothing cancels out.
    let mut receivers = [Receiver::start().await, Receiver::start().await];
    let coming = [EventType::ChannelOccupied, EventType::MemberAdded, EventType::UserOnline];
    let going = [EventType::ChannelVacated, EventType::MemberRemoved, EventType::UserOffline];
    let webhook = |at: usize, types: &[EventType]| Webhook {
        event_types: EventTypes::of(types),
        ..receivers[at].webhook()
    };
    let webhooks = [webhook(0, &coming), webhook(1, &going)];
    let app = || App {
        webhooks: webhooks.to_vec(),
        webhook_batching: true,
        ..App::new("1001", "demo-key", "demo-secret")
    };
    let (mut options, metrics) = (Options::default(), Arc::new(Metrics::default()));
    options.timing.hold = Duration::ZERO;
    options.queue_bytes = usize::MAX;
    let webhooks = Webhooks::start(&Apps::new([app()]), options, &metrics).unwrap();
    let hub = Hub::new(false, Arc::clone(&metrics), webhooks.clone());
    let threads = (1..=4).map(|id| {
        let (hub, app) = (hub.clone(), app());
        tokio::task::spawn_blocking(move || {
            let channel = ChannelName::parse("presence-room", &NameRules::default()).unwrap();
            let member = Member { id: UserId::parse("7", 128).unwrap(), info: "null".into() };
            let outbox = Arc::new(Outbox::detached(SocketId::new(id, 0), usize::MAX));
            for _ in 0..ROUNDS {
                hub.join(&app, &outbox, &channel, Some(member.clone())).unwrap();
                let user = &member.id;
                let sign_in = SignIn { user, user_data: "{}", watched: &[], watchlist: &[], cut_to: None };
                hub.sign_in(&app, &outbox, &sign_in);
                hub.leave(&app, &channel, outbox.socket());
                hub.sign_out(&app, outbox.socket(), &member.id, &[]);
                outbox.take_queued();
            }
        })
    });
    for thread in join_all(threads).await {
        thread.unwrap();
    }
    in_time("all is sent", webhooks.drain(std::future::pending())).await;
    let (mut told, mut count) = (Vec::new(), [0; 2]);
    while (told.len() as u64) < metrics.webhooks.events.get() {
        // As many of one kind as of the other, and one of the first may be missing.
        let next = usize::from(count[0] > count[1]);
        let hook = receivers[next].hook().await;
        let ids = hook.header("x-pusherd-event-ids")[0]
            .split(',')
            .map(|id| id.parse::<EventId>().unwrap().number());
        told.extend(ids.zip(hook.events()));
        count[next] += hook.events().len();
    }
    // Events are numbered as they are noted.
    told.sort_by_key(|(number, _)| *number);
    // Whether the channel, the member and the user are there, as told.
    let mut here = [false; 3];
    for (_, event) in told {
        let (of, comes) = match event["name"].as_str().unwrap() {
            "channel_occupied" => (0, true),
            "channel_vacated" => (0, false),
            "member_added" => (1, true),
            "member_removed" => (1, false),
            "user_online" => (2, true),
            "user_offline" => (2, false),
            other => panic!("{other}"),
        };
        assert_eq!(here[of], !comes, "{event}");
        here[of] = comes;
    }
    assert_eq!(here, [false; 3], "everybody has left");
    assert!(metrics.webhooks.events.get() >= 6, "somebody came and went");
}

#[tokio::test]
async fn whatever_is_not_2xx_is_tried_again_with_the_same_bytes() {
    let elsewhere = Receiver::start().await;
    let redirect = elsewhere.url("/elsewhere");
    let replies = [
        Reply::Status(500),
        Reply::Status(404),
        Reply::Status(304),
        Reply::Redirect(redirect),
        Reply::Raw("no HTTP at all\r\n\r\n"),
        Reply::Raw("HTTP/1.1 20"),
        Reply::HangUp,
        Reply::Hang,
    ];
    let count = replies.len();
    let mut receiver =
        Receiver::that(move |at, _| replies.get(at).cloned().unwrap_or(Reply::Status(204))).await;
    let server = Server::with(|setup| {
        telling(setup, [receiver.webhook()], LONG);
        setup.options.webhooks.timing.timeout = Duration::from_millis(200);
    })
    .await;
    server.connect().await.subscribe(NEWS).await;
    let first = receiver.hook().await;
    for _ in 0..count {
        let again = receiver.hook().await;
        assert_eq!(again.body, first.body);
        assert_eq!(again.header("x-pusher-signature"), first.header("x-pusher-signature"));
    }
    let mut elsewhere = elsewhere;
    assert!(elsewhere.is_idle(), "a redirect is not followed");
    server.stop().await;
    assert_eq!(
        receiver.hook().await.events(),
        [vacated(NEWS)],
        "what was answered with 2xx is not sent again"
    );
    assert!(receiver.is_idle());
}

#[tokio::test]
async fn after_a_2xx_was_read_nothing_is_sent_again_whatever_follows_it() {
    let mut receiver = Receiver::that(|at, _| match at {
        0 => Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nless than that"),
        _ => Reply::Status(200),
    })
    .await;
    let server = Server::with(|setup| telling(setup, [receiver.webhook()], LONG)).await;
    let mut client = server.connect().await;
    client.subscribe("a").await;
    assert_eq!(receiver.hook().await.events(), [occupied("a")]);
    client.subscribe("b").await;
    assert_eq!(receiver.hook().await.events(), [occupied("b")]);
}

#[tokio::test]
async fn an_answer_that_does_not_end_is_not_waited_for() {
    let mut receiver = Receiver::that(|at, _| match at {
        0 => Reply::Unended("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nless than that"),
        _ => Reply::Status(200),
    })
    .await;
    let server = Server::with(|setup| {
        telling(setup, [receiver.webhook()], LONG);
        setup.options.webhooks.timing.timeout = LONG;
    })
    .await;
    let mut client = server.connect().await;
    client.subscribe("a").await;
    assert_eq!(receiver.hook().await.events(), [occupied("a")]);
    client.subscribe("b").await;
    let hook = receiver.hook().await;
    assert_eq!((hook.events(), hook.connection), (vec![occupied("b")], 1));
}

#[tokio::test]
async fn connections_are_used_again() {
    let mut receiver = Receiver::start().await;
    let server = Server::with(|setup| telling(setup, [receiver.webhook()], LONG)).await;
    let mut client = server.connect().await;
    for at in 0..10 {
        client.subscribe(&format!("channel-{at}")).await;
        assert_eq!(receiver.hook().await.connection, 0);
    }
}

#[tokio::test]
async fn a_failing_request_is_not_overtaken_by_a_later_one_of_its_channel() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let mut receiver = Receiver::that(move |_, _| match attempts.fetch_add(1, Ordering::SeqCst) % 3 {
        0 => Reply::Status(200),
        1 => Reply::Status(503),
        _ => Reply::HangUp,
    })
    .await;
    let server = Server::with(|setup| {
        telling(setup, [receiver.webhook()], LONG);
        setup.app.webhook_batching = false;
        setup.app.limits.client_events.burst = 1000;
        setup.app.webhooks[0].event_types = EventTypes::of(&[EventType::ClientEvent]);
    })
    .await;
    let mut client = server.connect().await;
    for channel in ["private-a", "private-b"] {
        client.subscribe(channel).await;
    }
    for number in 0..15 {
        for channel in ["private-a", "private-b"] {
            client.whisper(channel, "client-n", number.into()).await;
        }
    }
    let mut next = [0, 0];
    while next != [15, 15] {
        let event = receiver.event().await;
        let of = usize::from(event["channel"] == "private-b");
        assert_eq!(number_of(&event), next[of]);
        next[of] += 1;
    }
}

#[tokio::test]
async fn what_a_receiver_refuses_holds_up_its_own_channel_only() {
    for batching in [false, true] {
        let is_bad = |hook: &Hook| hook.events().iter().any(|event| event["data"] == "bad");
        let mut receiver =
            Receiver::that(move |_, hook| Reply::Status(if is_bad(hook) { 500 } else { 200 })).await;
        let server = Server::with(|setup| {
            telling(setup, [receiver.webhook()], LONG);
            setup.app.webhook_batching = batching;
            setup.app.webhooks[0].event_types =
                EventTypes::of(&[EventType::ChannelOccupied, EventType::ClientEvent]);
            setup.options.webhooks.timing.retry = LONG;
        })
        .await;
        let mut client = server.connect().await;
        for channel in ["private-a", "private-b"] {
            client.subscribe(channel).await;
            receiver.expect(occupied(channel)).await;
        }
        // Whoever may send events must not be able to keep those of others away.
        client.whisper("private-a", "client-x", "bad".into()).await;
        client.whisper("private-a", "client-x", "behind it".into()).await;
        client.whisper("private-b", "client-x", "in another channel".into()).await;
        let mut expected: Vec<_> = (0..64).map(|at| format!("channel-{at}")).collect();
        for channel in &expected {
            client.subscribe(channel).await;
        }
        expected.push("private-b".to_owned());
        let mut told = Vec::new();
        // All of them in time, because each attempt that is refused is something new as well.
        in_time("the others are told of", async {
            for _ in &expected {
                told.push(receiver.event().await["channel"].as_str().unwrap().to_owned());
            }
        })
        .await;
        told.sort();
        expected.sort();
        assert_eq!(told, expected, "batching: {batching}");
        server.signal(Shutdown::Now).await;
    }
}

#[tokio::test]
async fn clients_that_make_channels_cannot_keep_away_the_members_of_another() {
    // Requests are answered one after the other, as this says.
    let turns = Arc::new(Semaphore::new(0));
    let mut receiver = {
        let turns = Arc::clone(&turns);
        Receiver::that(move |_, _| Reply::InTurn(Arc::clone(&turns))).await
    };
    let server = Server::with(|setup| {
        telling(setup, [receiver.webhook()], SHORT);
        setup.app.webhook_batching = false;
        setup.app.limits.messages.burst = 10_000;
    })
    .await;
    let [mut churner, mut member] = server.connect_many().await;
    let messages = |name: &'static str| {
        (0..500).map(
            move |at| json!({ "event": format!("pusher:{name}"), "data": { "channel": format!("x-{at}") } }),
        )
    };
    churner.send_all(messages("subscribe")).await;
    server.has_subscriptions("x-499", 1).await;
    member.join("presence-room", json!({ "user_id": "7" })).await;
    member.whisper("presence-room", "client-x", 1.into()).await;
    let (mut expected, mut requests) = (vec!["channel_occupied", "member_added", "client_event"], 0);
    while !expected.is_empty() {
        let told = receiver.hook().await.events().remove(0);
        if told["channel"] == "presence-room" {
            assert_eq!(told["name"], expected.remove(0));
        }
        requests += 1;
        if requests >= 8 {
            turns.add_permits(1);
        }
    }
    // Eight are in flight, of the churner first, and each of these waits for the one before it to be answered.
    assert!(requests <= 60, "{requests}");
    // What nobody was told of while it was so is not told any more.
    churner.send_all(messages("unsubscribe")).await;
    let cancels = |counts: &pusherd::metrics::Webhooks| counts.cancelled.get() >= 2 * (500 - requests);
    eventually("pairs cancel out", || async { cancels(&server.metrics.webhooks) }).await;
    turns.add_permits(10_000);
    server.signal(Shutdown::Now).await;
}

#[tokio::test]
async fn after_an_outage_what_waited_is_told_in_order_and_at_once() {
    for reply in [Reply::HangUp, Reply::Status(502)] {
        let is_open = Arc::new(AtomicBool::new(false));
        let mut receiver = {
            let is_open = Arc::clone(&is_open);
            Receiver::that(move |_, _| match is_open.load(Ordering::SeqCst) {
                true => Reply::Status(200),
                false => reply.clone(),
            })
            .await
        };
        // Attempts at an event would be far apart by now, as they are after some minutes.
        let alone = Alone::start(receiver.webhook(), |options| {
            (options.timing.back_off, options.timing.back_off_max) = (LONG, LONG);
        });
        for at in 0..100 {
            alone.occupy(&format!("channel-{at}"));
            alone.occupy(&format!("channel-{at}"));
        }
        alone.counts("it is tried", |counts| counts.failed_attempts.get() >= 70).await;
        is_open.store(true, Ordering::SeqCst);
        alone.counts("all is told", |counts| counts.delivered.get() == 200).await;
        let mut told = std::collections::HashMap::new();
        for _ in 0..200 {
            *told.entry(receiver.event().await["channel"].to_string()).or_insert(0) += 1;
        }
        assert!(told.len() == 100 && told.values().all(|count| *count == 2), "{told:?}");
    }
}

#[tokio::test]
async fn however_many_channels_are_refused_the_others_are_told_of() {
    for batching in [false, true] {
        let is_bad = |hook: &Hook| {
            hook.events().iter().any(|event| event["channel"].as_str().unwrap().starts_with("bad"))
        };
        let mut receiver =
            Receiver::that(move |_, hook| Reply::Status(if is_bad(hook) { 500 } else { 200 })).await;
        let server = Server::with(|setup| {
            telling(setup, [receiver.webhook()], LONG);
            setup.app.webhook_batching = batching;
            setup.app.limits.messages.burst = 10_000;
        })
        .await;
        let mut client = server.connect().await;
        for at in 0..300 {
            client.subscribe(&format!("bad-{at}")).await;
        }
        for at in 0..20 {
            let channel = format!("good-{at}");
            client.subscribe(&channel).await;
            receiver.expect(occupied(&channel)).await;
        }
        server.signal(Shutdown::Now).await;
    }
}

#[tokio::test]
async fn a_dead_and_a_hanging_receiver_harm_no_other() {
    // Nobody listens on a port that was free a moment ago.
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let hanging = Receiver::that(|_, _| Reply::Hang).await;
    let mut live = Receiver::start().await;
    let webhooks = [webhook(&format!("http://{dead}/")), hanging.webhook(), live.webhook()];
    let server = Server::with(|setup| telling(setup, webhooks, LONG)).await;
    let mut client = server.connect().await;
    for at in 0..200 {
        let channel = format!("channel-{at}");
        client.subscribe(&channel).await;
        live.expect(occupied(&channel)).await;
    }
    server.signal(Shutdown::Now).await;
}

/// The dead letters of a file.
fn letters(path: &Path) -> Vec<DeadLetter> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn channels_of(letters: &[DeadLetter]) -> Vec<String> {
    let body = |letter: &DeadLetter| serde_json::from_str::<Value>(&letter.body).unwrap();
    let events = letters.iter().flat_map(|letter| body(letter)["events"].as_array().unwrap().clone());
    events.map(|event| event["channel"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_cannot_be_delivered_in_time_is_a_dead_letter() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dead.jsonl");
    let mut receiver = Receiver::that(|_, _| Reply::Status(500)).await;
    let mut with_token = webhook(&receiver.url("/hooks?token=hunter2"));
    let (name, value) = webhook_header("Authorization", "Bearer hunter2").unwrap();
    with_token.headers.insert(name, value);
    let server = Server::with(|setup| {
        telling(setup, [with_token], LONG);
        setup.options.webhooks.timing.retry = Duration::from_millis(100);
        setup.options.webhooks.dead_letter_file = Some(file.clone());
    })
    .await;
    server.connect().await.subscribe(NEWS).await;
    let hook = receiver.hook().await;
    assert_eq!(hook.request_line, "POST /hooks?token=hunter2 HTTP/1.1");
    eventually("a dead letter", || async { letters(&file).len() == 1 }).await;
    let letter = letters(&file).remove(0);
    assert_eq!(letter.body.as_bytes(), hook.body);
    assert_eq!((letter.app_id.as_str(), letter.url), ("1001", receiver.url("/hooks")));
    assert_eq!(letter.time_ms, hook.json()["time_ms"].as_u64().unwrap());
    assert_eq!(letter.error, "the answer is 500, not 2xx");
    assert!(letter.attempts >= 2, "{}", letter.attempts);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("demo-secret"), "{text}");
}

/// The webhooks of one app, without a server around them.
struct Alone {
    app: App,
    webhooks: Webhooks,
    metrics: Arc<Metrics>,
}

impl Alone {
    fn start(webhook: Webhook, change: impl FnOnce(&mut Options)) -> Self {
        let app = || App { webhooks: vec![webhook.clone()], ..App::new("1001", "demo-key", "demo-secret") };
        let mut options = Options::default();
        options.timing.back_off = Duration::from_millis(5);
        options.timing.probe = Duration::from_millis(5);
        change(&mut options);
        let metrics = Arc::new(Metrics::default());
        let webhooks = Webhooks::start(&Apps::new([app()]), options, &metrics).unwrap();
        Self { app: app(), webhooks, metrics }
    }

    fn occupy(&self, channel: &str) {
        let channel = ChannelName::parse(channel, &NameRules::default()).unwrap();
        let mut ledger = self.webhooks.of_subscription(&self.app, &channel).unwrap();
        ledger.note(&Event::ChannelOccupied(&channel));
    }

    async fn counts(&self, what: &str, is_so: impl Fn(&pusherd::metrics::Webhooks) -> bool) {
        eventually(what, || async { is_so(&self.metrics.webhooks) }).await;
    }
}

#[tokio::test]
async fn the_oldest_fall_out_of_a_full_queue() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dead.jsonl");
    let is_open = Arc::new(AtomicBool::new(false));
    let mut receiver = {
        let is_open = Arc::clone(&is_open);
        Receiver::that(move |_, _| match is_open.load(Ordering::SeqCst) {
            true => Reply::Status(200),
            false => Reply::HangUp,
        })
        .await
    };
    let alone = Alone::start(receiver.webhook(), |options| {
        // Room for ten.
        options.queue_bytes = 10 * (r#"{"name":"channel_occupied","channel":"a"}"#.len() + 512);
        options.dead_letter_file = Some(file.clone());
    });
    // All of one channel, whose first is on its way and not in the queue.
    alone.occupy("a");
    receiver.hook().await;
    for _ in 0..25 {
        alone.occupy("a");
    }
    alone.counts("fifteen fall out", |counts| counts.dropped.get() == 15).await;
    alone.counts("fifteen are kept", |counts| counts.dead_lettered.get() == 15).await;
    assert!(letters(&file).iter().all(|letter| letter.attempts == 0 && letter.error.contains("queue_bytes")));
    is_open.store(true, Ordering::SeqCst);
    alone.counts("the rest is delivered", |counts| counts.delivered.get() == 11).await;
    assert_eq!(alone.metrics.webhooks.events.get(), 26);
}

#[tokio::test]
async fn a_full_disk_costs_letters_and_nothing_else() {
    let is_open = Arc::new(AtomicBool::new(false));
    let receiver = {
        let is_open = Arc::clone(&is_open);
        Receiver::that(move |_, _| Reply::Status(if is_open.load(Ordering::SeqCst) { 200 } else { 500 }))
            .await
    };
    for file in ["/dev/full", "/proc/nowhere/dead.jsonl", "/"] {
        is_open.store(false, Ordering::SeqCst);
        let alone = Alone::start(receiver.webhook(), |options| {
            options.timing.retry = Duration::from_millis(30);
            options.dead_letter_file = Some(file.into());
        });
        (0..20).for_each(|at| alone.occupy(&format!("channel-{at}")));
        alone.counts("all are lost", |counts| counts.dead_letters_lost.get() == 20).await;
        assert_eq!(alone.metrics.webhooks.expired.get(), 20);
        assert_eq!(alone.metrics.webhooks.dead_lettered.get(), 0);
        is_open.store(true, Ordering::SeqCst);
        alone.occupy("later");
        alone.counts("one is delivered", |counts| counts.delivered.get() == 1).await;
    }
}

#[tokio::test]
async fn without_a_file_what_is_given_up_is_counted() {
    let receiver = Receiver::that(|_, _| Reply::Status(500)).await;
    let alone = Alone::start(receiver.webhook(), |options| options.timing.retry = Duration::from_millis(30));
    alone.occupy("a");
    alone.counts("one is lost", |counts| counts.dead_letters_lost.get() == 1).await;
    assert!(alone.metrics.webhooks.failed_attempts.get() >= 1);
}

#[tokio::test]
async fn a_shutdown_tells_what_has_ended_and_sends_what_waits() {
    let receiver = Receiver::start().await;
    let server = Server::with(|setup| telling(setup, [receiver.webhook()], LONG)).await;
    let mut receiver = receiver;
    let [mut one, mut two] = server.connect_many().await;
    one.subscribe(NEWS).await;
    two.join("presence-room", json!({ "user_id": "7" })).await;
    server.stop().await;
    receiver.expect(occupied(NEWS)).await;
    receiver.expect(occupied("presence-room")).await;
    receiver.event().await;
    let mut gone = [receiver.event().await, receiver.event().await, receiver.event().await];
    gone.sort_by_key(|event| event.to_string());
    let removed = json!({ "name": "member_removed", "channel": "presence-room", "user_id": "7" });
    assert_eq!(gone, [vacated(NEWS), vacated("presence-room"), removed]);
}

#[tokio::test]
async fn a_shutdown_keeps_what_it_cannot_send() {
    for reply in [Reply::Hang, Reply::Status(500)] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("dead.jsonl");
        let mut receiver = Receiver::that(move |_, _| reply.clone()).await;
        let server = Server::with(|setup| {
            setup.app.webhooks = vec![receiver.webhook()];
            setup.options.webhooks.dead_letter_file = Some(file.clone());
            setup.options.shutdown_deadline = Duration::from_millis(300);
        })
        .await;
        let mut client = server.connect().await;
        for at in 0..30 {
            client.subscribe(&format!("channel-{at}")).await;
        }
        receiver.hook().await;
        let metrics = Arc::clone(&server.metrics);
        server.stop().await;
        let mut kept = channels_of(&letters(&file));
        kept.sort_unstable();
        let count = kept.len() as u64;
        assert!(count >= 2, "what is in flight");
        assert_eq!(count + metrics.webhooks.cancelled.get(), 60, "what nobody was told of cancels out");
        assert!(kept.chunks(2).all(|pair| pair[0] == pair[1]), "occupied and vacated: {kept:?}");
        kept.dedup();
        assert_eq!(kept.len() as u64, count / 2, "each once");
    }
}

#[tokio::test]
async fn what_is_noted_after_the_end_is_a_dead_letter() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dead.jsonl");
    let receiver = Receiver::start().await;
    let alone = Alone::start(receiver.webhook(), |options| options.dead_letter_file = Some(file.clone()));
    in_time("nothing is to be sent", alone.webhooks.drain(std::future::pending())).await;
    alone.occupy("late");
    eventually("a dead letter", || async { letters(&file).len() == 1 }).await;
    let letters = letters(&file);
    assert_eq!(
        (channels_of(&letters), letters[0].error.as_str()),
        (vec!["late".into()], "the server shut down")
    );
    assert_eq!(alone.metrics.webhooks.unsent.get(), 1);
}

#[tokio::test]
async fn what_a_disk_that_hangs_does_not_take_is_counted_as_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dead.jsonl");
    // As somebody does who has the file and does not go on.
    let file = std::fs::File::create(&path).unwrap();
    file.lock().unwrap();
    let receiver = Receiver::that(|_, _| Reply::Hang).await;
    let alone = Alone::start(receiver.webhook(), |options| options.dead_letter_file = Some(path.clone()));
    (0..1000).for_each(|at| alone.occupy(&format!("channel-{at}")));
    in_time("it is not waited for", alone.webhooks.drain(std::future::ready(()))).await;
    let counts = &alone.metrics.webhooks;
    assert_eq!((counts.unsent.get(), counts.dead_letters_lost.get()), (1000, 1000), "{counts:?}");
}

#[tokio::test]
async fn letters_for_a_pipe_that_nobody_reads_are_lost_and_nobody_waits_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let receiver = Receiver::that(|_, _| Reply::Hang).await;
    let alone = Alone::start(receiver.webhook(), |options| options.dead_letter_file = Some(pipe.clone()));
    (0..1000).for_each(|at| alone.occupy(&format!("channel-{at}")));
    in_time("it is not waited for", alone.webhooks.drain(std::future::ready(()))).await;
    let counts = &alone.metrics.webhooks;
    assert_eq!((counts.dead_lettered.get(), counts.dead_letters_lost.get()), (0, 1000), "{counts:?}");
}

#[tokio::test]
async fn link_local_and_metadata_addresses_are_refused_whatever_leads_there() {
    for url in [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://0.0.0.0:9/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        // What looks up names takes this for the first of them: the address counts, not its name.
        "http://2852039166/",
    ] {
        let alone = Alone::start(webhook(url), |_| {});
        alone.occupy("a");
        alone.counts(url, |counts| counts.refused_targets.get() >= 1).await;
    }
    // Allowed, the attempt is made: here, to a port of this machine.
    let mut receiver = Receiver::start().await;
    let url = format!("http://0.0.0.0:{}/", receiver.address.port());
    let allow = |options: &mut Options| options.allowed_addresses = vec!["0.0.0.0/32".parse().unwrap()];
    let alone = Alone::start(webhook(&url), allow);
    alone.occupy("a");
    receiver.expect(occupied("a")).await;
}

#[tokio::test]
async fn a_receiver_whose_certificate_nobody_vouches_for_is_told_nothing() {
    let (mut receiver, _) = Receiver::with_tls().await;
    let port = receiver.address.port();
    let alone = Alone::start(webhook(&format!("https://localhost:{port}/")), |_| {});
    alone.occupy("a");
    alone.counts("attempts fail", |counts| counts.failed_attempts.get() >= 2).await;
    assert_eq!(alone.metrics.webhooks.delivered.get(), 0);
    assert!(receiver.is_idle());
}

#[tokio::test]
async fn attempts_are_farther_and_farther_apart() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let receiver = {
        let attempts = Arc::clone(&attempts);
        Receiver::that(move |_, _| {
            attempts.fetch_add(1, Ordering::SeqCst);
            Reply::Status(500)
        })
        .await
    };
    let alone = Alone::start(receiver.webhook(), |options| {
        options.timing.back_off = Duration::from_millis(20);
        options.timing.retry = Duration::from_millis(500);
    });
    alone.occupy("a");
    in_time("it is given up", alone.counts("one", |counts| counts.expired.get() == 1)).await;
    // 20, 40, 80, 160 ms and a quarter more or less: six attempts fit into half a second, not twenty.
    assert!((3..=7).contains(&attempts.load(Ordering::SeqCst)), "{attempts:?}");
}
