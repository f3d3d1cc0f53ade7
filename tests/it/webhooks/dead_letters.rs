//! Dead letters, full queues, and shutdowns.

use std::sync::atomic::{AtomicBool, Ordering};

use pusherd::apps::webhook_header;

use super::*;
use crate::harness::{NEWS, Reply, in_time, webhook};

fn channels_of(dead_letters: &[DeadLetter]) -> Vec<String> {
    let body = |dead_letter: &DeadLetter| serde_json::from_str::<Value>(&dead_letter.body).unwrap();
    let events =
        dead_letters.iter().flat_map(|dead_letter| body(dead_letter)["events"].as_array().unwrap().clone());
    events.map(|event| event["channel"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_event_that_is_not_delivered_in_time_is_a_dead_letter() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dead.jsonl");
    let mut receiver = Receiver::with_replies(|_, _| Reply::Status(500)).await;
    let mut with_token = webhook(&receiver.url("/hooks?token=hunter2"));
    let (name, value) = webhook_header("Authorization", "Bearer hunter2").unwrap();
    with_token.headers.insert(name, value);
    let server = Server::with(|setup| {
        configure(setup, [with_token], LONG);
        setup.options.webhooks.timing.delivery_timeout = Duration::from_millis(100);
        setup.options.webhooks.dead_letter_file = Some(file.clone());
    })
    .await;
    server.connect().await.subscribe(NEWS).await;
    let hook = receiver.hook().await;
    assert_eq!(hook.request_line, "POST /hooks?token=hunter2 HTTP/1.1");
    eventually("a dead letter", || async { read_dead_letters(&file).len() == 1 }).await;
    let dead_letter = read_dead_letters(&file).remove(0);
    assert_eq!(dead_letter.body.as_bytes(), hook.body);
    assert_eq!((dead_letter.app_id.as_str(), dead_letter.url), ("1001", receiver.url("/hooks")));
    assert_eq!(dead_letter.time_ms, hook.json()["time_ms"].as_u64().unwrap());
    assert_eq!(dead_letter.error, "the response status is 500, not 2xx");
    assert!(dead_letter.attempts >= 2, "{}", dead_letter.attempts);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("demo-secret"), "{text}");
}

#[tokio::test]
async fn a_full_queue_evicts_the_oldest_events() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dead.jsonl");
    let is_open = Arc::new(AtomicBool::new(false));
    let mut receiver = {
        let is_open = Arc::clone(&is_open);
        Receiver::with_replies(move |_, _| match is_open.load(Ordering::SeqCst) {
            true => Reply::Status(200),
            false => Reply::HangUp,
        })
        .await
    };
    let standalone = Standalone::start(receiver.webhook(), |options| {
        // Capacity for ten events.
        options.queue_bytes = 10 * (r#"{"name":"channel_occupied","channel":"a"}"#.len() + 512);
        options.dead_letter_file = Some(file.clone());
    });
    // All events are of one channel, and the first is in flight and not in the queue.
    standalone.occupy("a");
    receiver.hook().await;
    for _ in 0..25 {
        standalone.occupy("a");
    }
    standalone.wait_for("fifteen are evicted", |counts| counts.dropped.get() == 15).await;
    standalone.wait_for("fifteen are written", |counts| counts.dead_lettered.get() == 15).await;
    assert!(
        read_dead_letters(&file)
            .iter()
            .all(|dead_letter| dead_letter.attempts == 0 && dead_letter.error.contains("queue_bytes"))
    );
    is_open.store(true, Ordering::SeqCst);
    standalone.wait_for("the rest is delivered", |counts| counts.delivered.get() == 11).await;
    assert_eq!(standalone.metrics.webhooks.events.get(), 26);
}

#[tokio::test]
async fn a_full_disk_costs_dead_letters_and_nothing_else() {
    let is_open = Arc::new(AtomicBool::new(false));
    let receiver = {
        let is_open = Arc::clone(&is_open);
        Receiver::with_replies(move |_, _| {
            Reply::Status(if is_open.load(Ordering::SeqCst) { 200 } else { 500 })
        })
        .await
    };
    for file in ["/dev/full", "/proc/nowhere/dead.jsonl", "/"] {
        is_open.store(false, Ordering::SeqCst);
        let standalone = Standalone::start(receiver.webhook(), |options| {
            options.timing.delivery_timeout = Duration::from_millis(30);
            options.dead_letter_file = Some(file.into());
        });
        (0..20).for_each(|at| standalone.occupy(&format!("channel-{at}")));
        standalone.wait_for("all are lost", |counts| counts.dead_letters_lost.get() == 20).await;
        assert_eq!(standalone.metrics.webhooks.expired.get(), 20);
        assert_eq!(standalone.metrics.webhooks.dead_lettered.get(), 0);
        is_open.store(true, Ordering::SeqCst);
        standalone.occupy("later");
        standalone.wait_for("one is delivered", |counts| counts.delivered.get() == 1).await;
    }
}

#[tokio::test]
async fn without_a_file_lost_dead_letters_are_counted() {
    let receiver = Receiver::with_replies(|_, _| Reply::Status(500)).await;
    let standalone = Standalone::start(receiver.webhook(), |options| {
        options.timing.delivery_timeout = Duration::from_millis(30)
    });
    standalone.occupy("a");
    standalone.wait_for("one is lost", |counts| counts.dead_letters_lost.get() == 1).await;
    assert!(standalone.metrics.webhooks.failed_attempts.get() >= 1);
}

#[tokio::test]
async fn a_shutdown_flushes_held_events_and_sends_queued_ones() {
    let receiver = Receiver::start().await;
    let server = Server::with(|setup| configure(setup, [receiver.webhook()], LONG)).await;
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
async fn a_shutdown_writes_unsent_events_as_dead_letters() {
    for reply in [Reply::Hang, Reply::Status(500)] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("dead.jsonl");
        let mut receiver = Receiver::with_replies(move |_, _| reply.clone()).await;
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
        let mut unsent = channels_of(&read_dead_letters(&file));
        unsent.sort_unstable();
        let count = unsent.len() as u64;
        assert!(count >= 2, "the requests in flight");
        assert_eq!(count + metrics.webhooks.cancelled.get(), 60, "pairs that were not sent cancel out");
        assert!(unsent.chunks(2).all(|pair| pair[0] == pair[1]), "occupied and vacated: {unsent:?}");
        unsent.dedup();
        assert_eq!(unsent.len() as u64, count / 2, "each once");
    }
}

#[tokio::test]
async fn an_event_after_the_drain_is_a_dead_letter() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dead.jsonl");
    let receiver = Receiver::start().await;
    let standalone =
        Standalone::start(receiver.webhook(), |options| options.dead_letter_file = Some(file.clone()));
    in_time("the drain of an empty queue", standalone.webhooks.drain(std::future::pending())).await;
    standalone.occupy("late");
    eventually("a dead letter", || async { read_dead_letters(&file).len() == 1 }).await;
    let dead_letters = read_dead_letters(&file);
    assert_eq!(
        (channels_of(&dead_letters), dead_letters[0].error.as_str()),
        (vec!["late".into()], "the server shut down")
    );
    assert_eq!(standalone.metrics.webhooks.unsent.get(), 1);
}

#[tokio::test]
async fn dead_letters_that_a_hanging_disk_does_not_accept_are_counted_as_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dead.jsonl");
    // As another process does that locks the file and hangs.
    let file = std::fs::File::create(&path).unwrap();
    file.lock().unwrap();
    let receiver = Receiver::with_replies(|_, _| Reply::Hang).await;
    let standalone =
        Standalone::start(receiver.webhook(), |options| options.dead_letter_file = Some(path.clone()));
    (0..1000).for_each(|at| standalone.occupy(&format!("channel-{at}")));
    in_time("the drain does not wait", standalone.webhooks.drain(std::future::ready(()))).await;
    let counts = &standalone.metrics.webhooks;
    assert_eq!((counts.unsent.get(), counts.dead_letters_lost.get()), (1000, 1000), "{counts:?}");
}

#[tokio::test]
async fn dead_letters_for_a_fifo_without_a_reader_are_lost_without_blocking() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let receiver = Receiver::with_replies(|_, _| Reply::Hang).await;
    let standalone =
        Standalone::start(receiver.webhook(), |options| options.dead_letter_file = Some(pipe.clone()));
    (0..1000).for_each(|at| standalone.occupy(&format!("channel-{at}")));
    in_time("the drain does not wait", standalone.webhooks.drain(std::future::ready(()))).await;
    let counts = &standalone.metrics.webhooks;
    assert_eq!((counts.dead_lettered.get(), counts.dead_letters_lost.get()), (0, 1000), "{counts:?}");
}
