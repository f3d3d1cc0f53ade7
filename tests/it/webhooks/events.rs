//! The events of each type, and the requests that carry them.

use futures_util::future::join_all;
use pusherd::apps::{ChannelFilter, EventType, EventTypes, KeyPair, webhook_header};
use pusherd::hub::{Hub, SignIn};
use pusherd::outbox::Outbox;
use pusherd::protocol::signature::SigningKey;
use pusherd::protocol::{Member, SocketId, UserId};
use pusherd::webhooks::EventId;
use tokio::time::Instant;

use super::*;
use crate::harness::{DEMO, NEWS, in_time, receiver};

#[tokio::test]
async fn the_first_subscriber_occupies_a_channel_and_the_last_vacates_it() {
    let (server, mut receiver) = server_with_receiver(SHORT).await;
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
async fn channels_of_every_kind_have_events_except_a_users_own() {
    let (server, mut receiver) = server_with_receiver(SHORT).await;
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
async fn member_events_are_sent_per_user_and_not_per_connection() {
    let (server, mut receiver) = server_with_receiver(SHORT).await;
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
async fn client_events_have_data_as_a_string_and_a_user_id_on_presence_channels_only() {
    let (server, mut receiver) = server_with_receiver(LONG).await;
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
        let mut expected_event =
            json!({ "name": "client_event", "channel": "private-room", "event": "client-x" });
        expected_event["data"] = expected.into();
        expected_event["socket_id"] = client.id.clone().into();
        receiver.expect(expected_event).await;
    }
    client.join("presence-room", json!({ "user_id": "7" })).await;
    receiver.event().await;
    receiver.event().await;
    client.whisper("presence-room", "client-x", json!("")).await;
    let event = receiver.event().await;
    assert_eq!((&event["user_id"], &event["data"]), (&json!("7"), &json!("")));
    // Rejected client events and events that the application publishes cause no webhook.
    client.whisper("private-elsewhere", "client-x", json!(1)).await;
    client.expect_error(Value::Null).await;
    server.publish("private-room", "e", "").await;
    client.expect(json!({ "event": "e", "channel": "private-room", "data": "" })).await;
    client.subscribe("fence").await;
    receiver.expect(occupied("fence")).await;
}

#[tokio::test]
async fn a_cache_miss_is_sent_once_in_ten_seconds() {
    let (server, mut receiver) = server_with_receiver(LONG).await;
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
async fn subscription_counts_are_sent_if_the_app_has_them_on() {
    let receiver = Receiver::start().await;
    let counting = |setup: &mut Setup| {
        configure(setup, [receiver.webhook()], LONG);
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
async fn user_events_are_sent_only_to_receivers_that_subscribe_to_them() {
    let receiver = Receiver::start().await;
    let (mut users, mut all) = (receiver, Receiver::start().await);
    let mut of_users = users.webhook();
    of_users.event_types = EventTypes::of(&[EventType::UserOnline, EventType::UserOffline]);
    let of_all = all.webhook();
    let server = Server::with(|setup| configure(setup, [of_users, of_all], SHORT)).await;
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
async fn a_request_has_the_headers_and_body_that_sdks_expect() {
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
async fn a_request_has_one_event_unless_batching_is_on() {
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
        let mut received = Vec::new();
        while received.len() < 100 {
            let hook = receiver.hook().await;
            assert_eq!(hook.events().len(), if batching { 100 } else { 1 });
            received.extend(hook.events());
        }
        assert!(!batching || begin.elapsed() < Duration::from_secs(5), "a full batch does not wait");
        let mut names: Vec<_> = received.iter().map(|event| event["channel"].as_str().unwrap()).collect();
        let mut expected: Vec<_> = channels.iter().map(String::as_str).collect();
        if !batching {
            names.sort_unstable();
            expected.sort_unstable();
        }
        assert_eq!(names, expected);
    }
}

#[tokio::test]
async fn each_receiver_gets_the_events_of_its_filter_in_its_own_requests() {
    let [mut presence, mut vacancies, mut rest] =
        [Receiver::start().await, Receiver::start().await, Receiver::start().await];
    let of_presence = Webhook {
        filter: ChannelFilter { starts_with: "presence-".into(), ends_with: "-a".into() },
        ..presence.webhook()
    };
    let of_vacancies =
        Webhook { event_types: EventTypes::of(&[EventType::ChannelVacated]), ..vacancies.webhook() };
    let of_rest = rest.webhook();
    let server = Server::with(|setup| configure(setup, [of_presence, of_vacancies, of_rest], SHORT)).await;
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
async fn an_app_sends_to_its_own_receivers_only() {
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
    let (server, mut receiver) = server_with_receiver(LONG).await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    client.join("presence-room", json!({ "user_id": "7" })).await;
    receiver.expect(occupied(NEWS)).await;
    receiver.expect(occupied("presence-room")).await;
    receiver.event().await;
    for _ in 0..3 {
        // As a page load does.
        client.reset();
        server.has_connections(0).await;
        client = server.connect().await;
        client.subscribe(NEWS).await;
        client.join("presence-room", json!({ "user_id": "7" })).await;
    }
    client.subscribe("fence").await;
    receiver.expect(occupied("fence")).await;
}

/// Without a server, so that the threads contend as much as possible.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_edges_alternate_and_end_in_the_state() {
    // Enough to fail if events are emitted after the lock on the channel was released.
    const ROUNDS: usize = 10_000;
    // One receiver gets rising edges and one falling edges, so that no pairs cancel out.
    let mut receivers = [Receiver::start().await, Receiver::start().await];
    let rising = [EventType::ChannelOccupied, EventType::MemberAdded, EventType::UserOnline];
    let falling = [EventType::ChannelVacated, EventType::MemberRemoved, EventType::UserOffline];
    let webhook = |at: usize, types: &[EventType]| Webhook {
        event_types: EventTypes::of(types),
        ..receivers[at].webhook()
    };
    let webhooks = [webhook(0, &rising), webhook(1, &falling)];
    let app = || App {
        webhooks: webhooks.to_vec(),
        webhook_batching: true,
        ..App::new("1001", "demo-key", "demo-secret")
    };
    let (mut options, metrics) = (Options::default(), Arc::new(Metrics::default()));
    options.timing.debounce = Duration::ZERO;
    options.queue_bytes = usize::MAX;
    let webhooks = Webhooks::start(&Apps::new([app()]), options, &metrics).unwrap();
    let hub = Hub::new(pusherd::observers::Observers::default(), Arc::clone(&metrics), webhooks.clone());
    let threads = (1..=4).map(|id| {
        let (hub, app) = (hub.clone(), Arc::new(app()));
        tokio::task::spawn_blocking(move || {
            let channel = ChannelName::parse("presence-room", &NameRules::default()).unwrap();
            let member = Member { id: UserId::parse("7", 128).unwrap(), info: "null".into() };
            let outbox = Arc::new(Outbox::detached(SocketId::new(id, 0), usize::MAX));
            for _ in 0..ROUNDS {
                hub.join(&app, &outbox, &channel, Some(member.clone())).unwrap();
                let user = &member.id;
                let sign_in = SignIn {
                    user,
                    user_data: "{}",
                    previous_watchlist: &[],
                    watchlist: &[],
                    truncated_to: None,
                };
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
    let (mut received, mut count) = (Vec::new(), [0; 2]);
    while (received.len() as u64) < metrics.webhooks.events.get() {
        // There are as many rising as falling edges.
        let next = usize::from(count[0] > count[1]);
        let hook = receivers[next].hook().await;
        let ids = hook.header("x-pusherd-event-ids")[0]
            .split(',')
            .map(|id| id.parse::<EventId>().unwrap().number());
        received.extend(ids.zip(hook.events()));
        count[next] += hook.events().len();
    }
    // Events are numbered in the order in which they are emitted.
    received.sort_by_key(|(number, _)| *number);
    // The state of the channel, the member and the user, according to the events.
    let mut here = [false; 3];
    for (_, event) in received {
        let (of, is_rising) = match event["name"].as_str().unwrap() {
            "channel_occupied" => (0, true),
            "channel_vacated" => (0, false),
            "member_added" => (1, true),
            "member_removed" => (1, false),
            "user_online" => (2, true),
            "user_offline" => (2, false),
            other => panic!("{other}"),
        };
        assert_eq!(here[of], !is_rising, "{event}");
        here[of] = is_rising;
    }
    assert_eq!(here, [false; 3], "all have left");
    assert!(metrics.webhooks.events.get() >= 6, "there were edges");
}
