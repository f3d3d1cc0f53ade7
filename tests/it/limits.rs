//! Every limit of protocol.md §12.1 at its default: reached, and exceeded once.

use pusherd::apps::AppLimits;
use pusherd::limits::{Limit, Rate};
use serde_json::{Value, json};
use tracing::Level;

use crate::harness::{Client, DEMO, Log, NEWS, Request, Server, channel_auth, unix_now};

const ROOM: &str = "presence-room";

/// A body for `/events`.
fn body(name: &str, channel: &str, data: &str) -> String {
    json!({ "name": name, "channel": channel, "data": data }).to_string()
}

#[tokio::test]
async fn a_channel_name_has_200_bytes() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let (longest, too_long) = ("x".repeat(200), "x".repeat(201));
    client.subscribe(&longest).await;
    client.ask(&too_long).await;
    // A name up to twice the limit is repeated unchanged: client libraries look up the channel by it.
    let [message, _] = client.expect_refusal(&too_long, "LimitReached", 413, Value::Null).await;
    assert!(message.contains("201") && message.contains("limits.channel_name_bytes"), "{message}");
    // The length is checked before the alphabet.
    let and_wrong = "é".repeat(5000);
    client.ask(&and_wrong).await;
    // A longer name is truncated, and cannot be mistaken for another name.
    let cut = format!("{}…", &and_wrong[..and_wrong.floor_char_boundary(197)]);
    client.expect_refusal(&cut, "LimitReached", 413, Value::Null).await;
    let private = format!("private-{}", "x".repeat(192));
    client.subscribe(&private).await;
    let private_too_long = format!("{private}x");
    client.ask(&private_too_long).await;
    client.expect_refusal(&private_too_long, "LimitReached", 413, Value::Null).await;
    server.publish(&longest, "e", "").await;
    client.expect(json!({ "event": "e", "channel": longest, "data": "" })).await;
    let text = server.post("/apps/1001/events", body("e", &too_long, "")).await;
    assert!(text.rejected(400).contains("200"), "{}", text.text());
}

#[tokio::test]
async fn an_event_name_has_200_characters() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    for name in ["x".repeat(200), "é".repeat(200), "😀".repeat(200)] {
        server.publish(NEWS, &name, "").await;
        client.expect(json!({ "event": name, "channel": NEWS, "data": "" })).await;
        server.post("/apps/1001/events", body(&format!("{name}x"), NEWS, "")).await.rejected(400);
    }
    client.fence().await;

    let [mut sender, mut other] = server.connect_many().await;
    for client in [&mut sender, &mut other] {
        client.subscribe("private-room").await;
    }
    let longest = format!("client-{}", "é".repeat(193));
    sender.whisper("private-room", &longest, json!(1)).await;
    other.expect(json!({ "event": longest, "channel": "private-room", "data": 1 })).await;
    sender.whisper("private-room", &format!("{longest}x"), json!(2)).await;
    sender.expect_error(Value::Null).await;
    other.fence().await;
}

#[tokio::test]
async fn the_data_of_a_published_event_has_102_400_bytes() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    for too_long in [
        json!("x".repeat(102_401)),
        json!("é".repeat(51_201)),
        json!("x".repeat(102_399) + "é"),
        json!({ "x": "x".repeat(102_400) }),
    ] {
        let body = json!({ "name": "e", "channel": NEWS, "data": too_long });
        let answer = server.post_json("/apps/1001/events", body.clone()).await;
        let text = answer.rejected(413);
        assert!(text.contains("content of this event"), "{text}");
        assert!(text.contains("102400") && text.contains("event_data_bytes"), "{text}");
        let batch = json!({ "batch": [{ "name": "e", "channel": NEWS, "data": "" }, body] });
        let answer = server.post_json("/apps/1001/batch_events", batch).await;
        assert!(answer.rejected(413).contains("content of this event"), "{}", answer.text());
    }
    let answer = server.post("/apps/1001/events", body("e", NEWS, &"x".repeat(102_401))).await;
    assert!(answer.rejected(413).contains("102401"), "the size is named: {}", answer.text());
    let legacy =
        Request::post("/apps/1001/channels/news/events", "x".repeat(102_401)).with("name", "e").signed();
    server.send(legacy).await.rejected(413);
    client.fence().await;
}

#[tokio::test]
async fn the_data_of_a_client_event_has_10_240_bytes() {
    let many = Rate { per_second: 100, burst: 100 };
    let server = Server::with_app(|app| app.limits.client_events = many).await;
    let [mut sender, mut other] = server.connect_many().await;
    for client in [&mut sender, &mut other] {
        client.subscribe("private-room").await;
    }
    let event = |data: &str| format!(r#"{{"event":"client-x","channel":"private-room","data":{data}}}"#);
    let fitting = [
        format!("\"{}\"", "x".repeat(10_240)),
        format!("\"{}\"", "é".repeat(5_120)),
        // The value of a string counts; these have 30 720 bytes of JSON.
        format!("\"{}\"", r"\u00e9".repeat(5_120)),
        format!("\"{}\"", r"\ud83d\ude00".repeat(10_240 / 4)),
        format!("[\"{}\"]", "x".repeat(10_240 - 4)),
    ];
    for data in fitting {
        sender.send_text(&event(&data)).await;
        assert!(other.next_text().await.contains(&data), "{}", &data[..20]);
    }
    for data in [
        format!("\"{}\"", "x".repeat(10_241)),
        format!("\"{}\"", "é".repeat(5_121)),
        format!("[\"{}\"]", "x".repeat(10_241 - 4)),
        format!("[\"{}\"]", r"\u00e9".repeat(2_000)),
    ] {
        let mut sender = server.connect().await;
        sender.subscribe("private-room").await;
        sender.send_text(&event(&data)).await;
        let message = sender.expect_error(Value::Null).await;
        assert!(message.contains("limits.client_event_data_bytes"), "{message}");
        sender.fence().await;
    }
    other.fence().await;
}

#[tokio::test]
async fn a_body_is_limited_to_the_setting() {
    let server = Server::with_app(|app| app.limits.request_body_bytes_max = 1000).await;
    let fitting = body("e", NEWS, &"x".repeat(1000 - body("e", NEWS, "").len()));
    assert_eq!(fitting.len(), 1000);
    server.post("/apps/1001/events", fitting.clone()).await.ok();
    server.post("/apps/1001/events", format!("{fitting} ")).await.rejected(413);
}

#[tokio::test]
async fn a_message_has_32_kib() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let message = |length: usize| {
        let padding = length - r#"{"event":"pusher:ping","data":""}"#.len();
        format!(r#"{{"event":"pusher:ping","data":"{}"}}"#, "x".repeat(padding))
    };
    client.send_text(&message(32 * 1024)).await;
    client.expect(json!({ "event": "pusher:pong", "data": "{}" })).await;
    client.send_text(&message(32 * 1024 + 1)).await;
    client.expect_close(1009).await;
}

#[tokio::test]
async fn an_event_goes_to_100_channels() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe("c0").await;
    client.subscribe("c99").await;
    let channels: Vec<_> = (0..101).map(|at| format!("c{at}")).collect();
    let publish = |channels: &[String]| json!({ "name": "e", "channels": channels, "data": "" });
    server.post_json("/apps/1001/events", publish(&channels)).await.rejected(400);
    client.fence().await;
    server.post_json("/apps/1001/events", publish(&channels[..100])).await.ok();
    for channel in ["c0", "c99"] {
        client.expect(json!({ "event": "e", "channel": channel, "data": "" })).await;
    }
}

#[tokio::test]
async fn a_batch_has_10_events() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    let batch = |count: usize| {
        let events: Vec<_> =
            (0..count).map(|at| json!({ "name": at.to_string(), "channel": NEWS, "data": "" })).collect();
        json!({ "batch": events })
    };
    let answer = server.post_json("/apps/1001/batch_events", batch(11)).await;
    let text = answer.rejected(400);
    assert!(text.contains("Batch too large") && text.contains("limits.events_per_batch"), "{text}");
    client.fence().await;
    server.post_json("/apps/1001/batch_events", batch(10)).await.ok();
    for at in 0..10 {
        client.expect(json!({ "event": at.to_string(), "channel": NEWS, "data": "" })).await;
    }
}

/// `presence` tests the behaviour at the limit with 100 users.
#[test]
fn a_presence_channel_has_1000_users() {
    assert_eq!(AppLimits::default().presence_members_max, 1000);
}

/// Asserts that the refusal contains the channel and all of `named`: the value, the limit and the setting.
async fn expect_join_refused(client: &mut Client, channel_data: &Value, named: &[&str]) {
    client.ask_as(ROOM, &channel_data.to_string()).await;
    for message in client.expect_refusal(ROOM, "LimitReached", 4301, Value::Null).await {
        assert!([&[ROOM], named].concat().iter().all(|named| message.contains(named)), "{message}");
    }
}

#[tokio::test]
async fn user_info_has_8192_bytes_of_json() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = Server::start().await;
    let mut client = server.connect().await;
    let user_info = |bytes: usize| json!({ "user_id": "7", "user_info": "x".repeat(bytes - 2) });
    let named = ["8193", "8192", "limits.presence_user_info_bytes"];
    expect_join_refused(&mut client, &user_info(8193), &named).await;
    client.join(ROOM, user_info(8192)).await;

    let mut client = server.connect().await;
    let user_data = |bytes: usize| json!({ "id": "7", "user_info": "x".repeat(bytes - 2) });
    client.send(client.signed_sign_in(&user_data(8193).to_string())).await;
    let message = client.expect_error(4009).await;
    assert!(named.iter().all(|named| message.contains(named)), "{message}");
    client.sign_in(user_data(8192)).await;
    assert_eq!(server.metrics.rejected(Limit::UserInfoBytes).get(), 2);
    let line = log.line(Level::INFO, "its user_info is too long");
    for part in ["count=1", "app=\"1001\"", ROOM, "8192 bytes", "limits.presence_user_info_bytes"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

/// The longest id and info, escaped by the application and by the client in the longest forms.
#[tokio::test]
async fn the_longest_member_fits_into_channel_data_and_into_a_message() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let (id, info) = (r"\ud83d\ude00".repeat(128), "é".repeat(8190 / 2));
    let channel_data = format!(r#"{{"user_id":"{id}","user_info":"{info}"}}"#);
    let auth = channel_auth(&client.id, ROOM, Some(&channel_data));
    let escaped = Value::from(channel_data).to_string().replace('é', r"\u00e9");
    client
        .send_text(&format!(
            r#"{{"event":"pusher:subscribe","data":{{"channel":"{ROOM}","auth":"{auth}","channel_data":{escaped}}}}}"#
        ))
        .await;
    client.expect_event("pusher_internal:subscription_succeeded", ROOM).await;
}

#[tokio::test]
async fn a_user_id_has_128_characters() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let named = ["128", "limits.user_id_chars"];
    expect_join_refused(&mut client, &json!({ "user_id": "x".repeat(129) }), &named).await;
    expect_join_refused(&mut client, &json!({ "user_id": "é".repeat(129) }), &named).await;
    client.join(ROOM, json!({ "user_id": "x".repeat(128) })).await;
    server.connect().await.join(ROOM, json!({ "user_id": "é".repeat(128) })).await;

    let mut client = server.connect().await;
    let (longest, too_long) = ("7".repeat(128), "7".repeat(129));
    client.send(client.signed_sign_in(&json!({ "id": too_long }).to_string())).await;
    client.expect_error(4009).await;
    client.sign_in(json!({ "id": longest })).await;
}

#[tokio::test]
async fn channel_data_has_10_752_bytes() {
    let server = Server::start().await;
    let channel_data = |bytes: usize| {
        let rest = json!({ "user_id": "7", "x": "" }).to_string().len();
        json!({ "user_id": "7", "x": "x".repeat(bytes - rest) })
    };
    assert_eq!(channel_data(10_752).to_string().len(), 10_752);
    let mut client = server.connect().await;
    expect_join_refused(&mut client, &channel_data(10_753), &["10753", "10752", "limits.channel_data_bytes"])
        .await;
    client.join(ROOM, channel_data(10_752)).await;
}

#[tokio::test]
async fn a_connection_is_on_1000_channels() {
    let many = Rate { per_second: 10_000, burst: 10_000 };
    let server = Server::with_app(|app| app.limits.messages = many).await;
    let mut client = server.connect().await;
    for at in 0..1000 {
        client.subscribe(&format!("c{at}")).await;
    }
    client.ask("one-more").await;
    client.expect_refusal("one-more", "LimitReached", 429, Value::Null).await;
    client.subscribe("c0").await;
    client.unsubscribe("c0").await;
    client.subscribe("one-more").await;
    server.connect().await.subscribe("c0").await;
}

#[tokio::test]
async fn a_cached_event_is_kept_for_1800_seconds() {
    let server = Server::start().await;
    server.publish("cache-btc", "price", "1").await;
    let channel = server.get_json("/apps/1001/channels/cache-btc?info=cache").await;
    let ttl = channel["cache"]["ttl"].as_u64().unwrap();
    assert!((1790..=1800).contains(&ttl), "{ttl}");
}

#[tokio::test]
async fn the_clock_of_a_signed_request_is_off_by_600_seconds_at_most() {
    let server = Server::start().await;
    let get = |off: i64| Request::get("/apps/1001/channels").signed_at(&DEMO, unix_now() + off);
    // A unit test with a fixed clock checks the exact second.
    for off in [-597, 0, 599] {
        server.send(get(off)).await.ok();
    }
    for off in [-600, -601, -100_000, 602, 100_000] {
        let answer = server.send(get(off)).await;
        let text = answer.rejected(401).to_owned();
        let now = unix_now().to_string();
        let sent = (unix_now() + off).to_string();
        assert!(text.contains(&now[..7]) && text.contains(&sent[..7]), "both times are told: {text}");
    }
}
