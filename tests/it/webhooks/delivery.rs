//! Attempts, retries, order and fairness.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pusherd::apps::{EventType, EventTypes};
use pusherd::server::Shutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::*;
use crate::harness::{Hook, NEWS, Reply, in_time, webhook};

/// The number in a client event.
fn number_of(event: &Value) -> u64 {
    assert_eq!(event["name"], "client_event");
    event["data"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn anything_but_2xx_is_retried_with_the_same_bytes() {
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
        Receiver::with_replies(move |at, _| replies.get(at).cloned().unwrap_or(Reply::Status(204))).await;
    let server = Server::with(|setup| {
        configure(setup, [receiver.webhook()], LONG);
        setup.options.webhooks.timing.request_timeout = Duration::from_millis(200);
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
    assert_eq!(receiver.hook().await.events(), [vacated(NEWS)], "a delivered event is not sent again");
    assert!(receiver.is_idle());
}

#[tokio::test]
async fn a_2xx_is_final_whatever_follows_it() {
    let mut receiver = Receiver::with_replies(|at, _| match at {
        0 => Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nless than that"),
        _ => Reply::Status(200),
    })
    .await;
    let server = Server::with(|setup| configure(setup, [receiver.webhook()], LONG)).await;
    let mut client = server.connect().await;
    client.subscribe("a").await;
    assert_eq!(receiver.hook().await.events(), [occupied("a")]);
    client.subscribe("b").await;
    assert_eq!(receiver.hook().await.events(), [occupied("b")]);
}

#[tokio::test]
async fn a_response_that_does_not_end_is_not_waited_for() {
    let mut receiver = Receiver::with_replies(|at, _| match at {
        0 => Reply::Unended("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nless than that"),
        _ => Reply::Status(200),
    })
    .await;
    let server = Server::with(|setup| {
        configure(setup, [receiver.webhook()], LONG);
        setup.options.webhooks.timing.request_timeout = LONG;
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
async fn connections_are_reused() {
    let mut receiver = Receiver::start().await;
    let server = Server::with(|setup| configure(setup, [receiver.webhook()], LONG)).await;
    let mut client = server.connect().await;
    for at in 0..10 {
        client.subscribe(&format!("channel-{at}")).await;
        assert_eq!(receiver.hook().await.connection, 0);
    }
}

#[tokio::test]
async fn a_failing_request_is_not_overtaken_on_its_channel() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let mut receiver =
        Receiver::with_replies(move |_, _| match attempts.fetch_add(1, Ordering::SeqCst) % 3 {
            0 => Reply::Status(200),
            1 => Reply::Status(503),
            _ => Reply::HangUp,
        })
        .await;
    let server = Server::with(|setup| {
        configure(setup, [receiver.webhook()], LONG);
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
async fn a_rejected_event_delays_only_its_own_channel() {
    for batching in [false, true] {
        let is_bad = |hook: &Hook| hook.events().iter().any(|event| event["data"] == "bad");
        let mut receiver =
            Receiver::with_replies(move |_, hook| Reply::Status(if is_bad(hook) { 500 } else { 200 })).await;
        let server = Server::with(|setup| {
            configure(setup, [receiver.webhook()], LONG);
            setup.app.webhook_batching = batching;
            setup.app.webhooks[0].event_types =
                EventTypes::of(&[EventType::ChannelOccupied, EventType::ClientEvent]);
            setup.options.webhooks.timing.delivery_timeout = LONG;
        })
        .await;
        let mut client = server.connect().await;
        for channel in ["private-a", "private-b"] {
            client.subscribe(channel).await;
            receiver.expect(occupied(channel)).await;
        }
        // A client must not be able to block the events of others with an event that the receiver rejects.
        client.whisper("private-a", "client-x", "bad".into()).await;
        client.whisper("private-a", "client-x", "behind it".into()).await;
        client.whisper("private-b", "client-x", "in another channel".into()).await;
        let mut expected: Vec<_> = (0..64).map(|at| format!("channel-{at}")).collect();
        for channel in &expected {
            client.subscribe(channel).await;
        }
        expected.push("private-b".to_owned());
        let mut received = Vec::new();
        // One time limit for all, because rejected attempts arrive as well.
        in_time("the others arrive", async {
            for _ in &expected {
                received.push(receiver.event().await["channel"].as_str().unwrap().to_owned());
            }
        })
        .await;
        received.sort();
        expected.sort();
        assert_eq!(received, expected, "batching: {batching}");
        server.signal(Shutdown::Now).await;
    }
}

#[tokio::test]
async fn clients_that_create_channels_do_not_starve_members_of_another_channel() {
    // The receiver answers one request for each permit.
    let turns = Arc::new(Semaphore::new(0));
    let mut receiver = {
        let turns = Arc::clone(&turns);
        Receiver::with_replies(move |_, _| Reply::InTurn(Arc::clone(&turns))).await
    };
    let server = Server::with(|setup| {
        configure(setup, [receiver.webhook()], SHORT);
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
        let event = receiver.hook().await.events().remove(0);
        if event["channel"] == "presence-room" {
            assert_eq!(event["name"], expected.remove(0));
        }
        requests += 1;
        if requests >= 8 {
            turns.add_permits(1);
        }
    }
    // Eight requests are in flight, the first ones for the churner, and each event of the member waits for the one
    // before it.
    assert!(requests <= 60, "{requests}");
    // Channels that are vacated before their event is sent cancel out.
    churner.send_all(messages("unsubscribe")).await;
    let cancels = |counts: &pusherd::metrics::Webhooks| counts.cancelled.get() >= 2 * (500 - requests);
    eventually("pairs cancel out", || async { cancels(&server.metrics.webhooks) }).await;
    turns.add_permits(10_000);
    server.signal(Shutdown::Now).await;
}

#[tokio::test]
async fn after_an_outage_queued_events_are_sent_in_order_and_at_once() {
    for reply in [Reply::HangUp, Reply::Status(502)] {
        let is_open = Arc::new(AtomicBool::new(false));
        let mut receiver = {
            let is_open = Arc::clone(&is_open);
            Receiver::with_replies(move |_, _| match is_open.load(Ordering::SeqCst) {
                true => Reply::Status(200),
                false => reply.clone(),
            })
            .await
        };
        // The backoff is long, as it is some minutes into an outage.
        let standalone = Standalone::start(receiver.webhook(), |options| {
            (options.timing.backoff, options.timing.backoff_max) = (LONG, LONG);
        });
        for at in 0..100 {
            standalone.occupy(&format!("channel-{at}"));
            standalone.occupy(&format!("channel-{at}"));
        }
        standalone.wait_for("all are tried", |counts| counts.failed_attempts.get() >= 70).await;
        is_open.store(true, Ordering::SeqCst);
        standalone.wait_for("all are delivered", |counts| counts.delivered.get() == 200).await;
        let mut received = std::collections::HashMap::new();
        for _ in 0..200 {
            *received.entry(receiver.event().await["channel"].to_string()).or_insert(0) += 1;
        }
        assert!(received.len() == 100 && received.values().all(|count| *count == 2), "{received:?}");
    }
}

#[tokio::test]
async fn any_number_of_rejected_channels_does_not_delay_the_others() {
    for batching in [false, true] {
        let is_bad = |hook: &Hook| {
            hook.events().iter().any(|event| event["channel"].as_str().unwrap().starts_with("bad"))
        };
        let mut receiver =
            Receiver::with_replies(move |_, hook| Reply::Status(if is_bad(hook) { 500 } else { 200 })).await;
        let server = Server::with(|setup| {
            configure(setup, [receiver.webhook()], LONG);
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
async fn a_dead_and_a_hanging_receiver_do_not_affect_others() {
    // A port without a listener.
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let hanging = Receiver::with_replies(|_, _| Reply::Hang).await;
    let mut live = Receiver::start().await;
    let webhooks = [webhook(&format!("http://{dead}/")), hanging.webhook(), live.webhook()];
    let server = Server::with(|setup| configure(setup, webhooks, LONG)).await;
    let mut client = server.connect().await;
    for at in 0..200 {
        let channel = format!("channel-{at}");
        client.subscribe(&channel).await;
        live.expect(occupied(&channel)).await;
    }
    server.signal(Shutdown::Now).await;
}

#[tokio::test]
async fn attempts_back_off() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let receiver = {
        let attempts = Arc::clone(&attempts);
        Receiver::with_replies(move |_, _| {
            attempts.fetch_add(1, Ordering::SeqCst);
            Reply::Status(500)
        })
        .await
    };
    let standalone = Standalone::start(receiver.webhook(), |options| {
        options.timing.backoff = Duration::from_millis(20);
        options.timing.delivery_timeout = Duration::from_millis(500);
    });
    standalone.occupy("a");
    in_time("it expires", standalone.wait_for("one", |counts| counts.expired.get() == 1)).await;
    // 20, 40, 80, 160 ms ± 25 %: about six attempts fit into half a second, and not twenty.
    assert!((3..=7).contains(&attempts.load(Ordering::SeqCst)), "{attempts:?}");
}

#[tokio::test]
async fn link_local_and_metadata_addresses_are_denied_whatever_the_host_name() {
    for url in [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://0.0.0.0:9/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        // The resolver turns this number into the first of them.
        "http://2852039166/",
    ] {
        let standalone = Standalone::start(webhook(url), |_| {});
        standalone.occupy("a");
        standalone.wait_for(url, |counts| counts.denied_addresses.get() >= 1).await;
    }
    // An allowed address is connected to; this one is a port of this machine.
    let mut receiver = Receiver::start().await;
    let url = format!("http://0.0.0.0:{}/", receiver.address.port());
    let allow = |options: &mut Options| options.allowed_addresses = vec!["0.0.0.0/32".parse().unwrap()];
    let standalone = Standalone::start(webhook(&url), allow);
    standalone.occupy("a");
    receiver.expect(occupied("a")).await;
}

#[tokio::test]
async fn a_receiver_with_an_untrusted_certificate_gets_nothing() {
    let (mut receiver, _) = Receiver::with_tls().await;
    let port = receiver.address.port();
    let standalone = Standalone::start(webhook(&format!("https://localhost:{port}/")), |_| {});
    standalone.occupy("a");
    standalone.wait_for("attempts fail", |counts| counts.failed_attempts.get() >= 2).await;
    assert_eq!(standalone.metrics.webhooks.delivered.get(), 0);
    assert!(receiver.is_idle());
}

/// With the default pause between probes, and the real clock, which sockets need.
#[tokio::test]
async fn a_receiver_that_is_back_is_probed_within_two_seconds_and_has_everything_within_five() {
    let is_back = Arc::new(AtomicBool::new(false));
    let mut receiver = {
        let is_back = Arc::clone(&is_back);
        Receiver::with_replies(move |_, _| match is_back.load(Ordering::SeqCst) {
            true => Reply::Status(200),
            false => Reply::HangUp,
        })
        .await
    };
    let standalone = Standalone::start(receiver.webhook(), |options| {
        // The backoff of each event is long, as it is some minutes into an outage.
        (options.timing.backoff, options.timing.backoff_max) = (LONG, LONG);
        options.timing.probe_interval = pusherd::webhooks::Options::default().timing.probe_interval;
    });
    for at in 0..100 {
        standalone.occupy(&format!("channel-{at}"));
    }
    // The first attempts come at once, and then probes, with a pause before each.
    let mut last = Instant::now();
    loop {
        receiver.hook().await;
        if last.elapsed() > Duration::from_millis(500) {
            break;
        }
        last = Instant::now();
    }
    is_back.store(true, Ordering::SeqCst);
    let back = Instant::now();
    receiver.hook().await;
    let probed = back.elapsed();
    standalone.wait_for("all are delivered", |counts| counts.delivered.get() == 100).await;
    // A second more than is promised, for a busy machine.
    assert!(probed < Duration::from_secs(3), "probed after {probed:?}");
    assert!(back.elapsed() < Duration::from_secs(6), "all delivered after {:?}", back.elapsed());
}
