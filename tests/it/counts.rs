//! Subscription counts. Source: protocol.md §4.9.

use pusherd::apps::App;
use serde_json::json;

use crate::harness::{Client, NEWS, Server, in_time};

async fn counting() -> Server {
    Server::with_app(|app: &mut App| app.subscription_counts = true).await
}

impl Client {
    pub async fn expect_count(&mut self, channel: &str, count: usize) {
        let data = self.expect_event("pusher_internal:subscription_count", channel).await;
        assert_eq!(data, json!({ "subscription_count": count }));
    }
}

#[tokio::test]
async fn counts_are_not_sent_unless_the_app_enables_them() {
    let server = Server::start().await;
    let [mut one, mut two] = server.connect_many().await;
    one.subscribe(NEWS).await;
    two.subscribe(NEWS).await;
    one.fence().await;
    two.fence().await;
}

#[tokio::test]
async fn all_subscribers_receive_the_count_after_each_change() {
    let server = counting().await;
    let [mut one, mut two, mut three] = server.connect_many().await;
    one.subscribe(NEWS).await;
    one.expect_count(NEWS, 1).await;
    two.subscribe(NEWS).await;
    two.expect_count(NEWS, 2).await;
    one.expect_count(NEWS, 2).await;
    three.subscribe(NEWS).await;
    for client in [&mut one, &mut two, &mut three] {
        client.expect_count(NEWS, 3).await;
    }
    three.unsubscribe(NEWS).await;
    three.fence().await;
    two.expect_count(NEWS, 2).await;
    one.expect_count(NEWS, 2).await;
    two.reset();
    one.expect_count(NEWS, 1).await;
    one.fence().await;
}

#[tokio::test]
async fn the_frame_has_the_form_that_clients_read() {
    let server = counting().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    let frame = r#"{"event":"pusher_internal:subscription_count","channel":"news","data":"{\"subscription_count\":1}"}"#;
    assert_eq!(client.next_text().await, frame);
}

#[tokio::test]
async fn all_channels_have_counts_except_presence_channels_and_users_own() {
    let server = counting().await;
    let mut client = server.connect().await;
    for channel in ["private-room", "private-encrypted-room"] {
        client.subscribe(channel).await;
        client.expect_count(channel, 1).await;
    }
    client.join("presence-room", json!({ "user_id": "7" })).await;
    client.fence().await;
    client.join("presence-cache-room", json!({ "user_id": "7" })).await;
    client.expect_event("pusher:cache_miss", "presence-cache-room").await;
    client.fence().await;
    client.sign_in(json!({ "id": "7" })).await;
    client.subscribe("#server-to-user-7").await;
    client.fence().await;
}

#[tokio::test]
async fn the_count_follows_the_cached_event() {
    let server = counting().await;
    let mut client = server.connect().await;
    client.subscribe("cache-btc").await;
    client.expect_event("pusher:cache_miss", "cache-btc").await;
    client.expect_count("cache-btc", 1).await;
    server.publish("cache-btc", "price", "1").await;
    client.expect(json!({ "event": "price", "channel": "cache-btc", "data": "1" })).await;
    let mut late = server.connect().await;
    late.subscribe("cache-btc").await;
    late.expect(json!({ "event": "price", "channel": "cache-btc", "data": "1" })).await;
    late.expect_count("cache-btc", 2).await;
}

#[tokio::test]
async fn subscribing_again_does_not_change_the_count() {
    let server = counting().await;
    let [mut one, mut two] = server.connect_many().await;
    one.subscribe(NEWS).await;
    one.expect_count(NEWS, 1).await;
    two.subscribe(NEWS).await;
    two.expect_count(NEWS, 2).await;
    one.expect_count(NEWS, 2).await;
    two.subscribe(NEWS).await;
    two.fence().await;
    two.unsubscribe("elsewhere").await;
    two.fence().await;
    one.fence().await;
}

#[tokio::test]
async fn above_100_subscribers_the_count_is_sent_once_in_five_seconds() {
    let server = counting().await;
    let mut watching = server.connect().await;
    watching.subscribe(NEWS).await;
    watching.expect_count(NEWS, 1).await;
    let mut others = Vec::new();
    for count in 2..=100 {
        let mut client = server.connect().await;
        client.subscribe(NEWS).await;
        others.push(client);
        watching.expect_count(NEWS, count).await;
    }
    // Connecting takes time, but not five seconds for each.
    let begin = tokio::time::Instant::now();
    for _ in 101..=160 {
        let mut client = server.connect().await;
        client.subscribe(NEWS).await;
        others.push(client);
    }
    server.publish(NEWS, "marker", "").await;
    let mut counts = 0;
    let mut last = 100;
    loop {
        let frame = watching.next().await;
        if frame["event"] == "marker" {
            break;
        }
        counts += 1;
        last = count_in(&frame);
    }
    let due = 2 + begin.elapsed().as_secs() / 5;
    assert!(counts <= due, "{counts} counts in {:?}", begin.elapsed());
    in_time("the last count", async {
        while last != 160 {
            last = count_in(&watching.next().await);
        }
    })
    .await;
}

fn count_in(frame: &serde_json::Value) -> u64 {
    assert_eq!(frame["event"], "pusher_internal:subscription_count");
    let data: serde_json::Value = serde_json::from_str(frame["data"].as_str().unwrap()).unwrap();
    data["subscription_count"].as_u64().unwrap()
}
