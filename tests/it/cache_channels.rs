//! Cache channels. Source: protocol.md §4.8.

use std::time::Duration;

use pusherd::apps::App;
use serde_json::{Value, json};

use crate::harness::{Client, Server, eventually};

const BTC: &str = "cache-btc";

impl Client {
    async fn expect_miss(&mut self, channel: &str) {
        self.expect(json!({ "event": "pusher:cache_miss", "channel": channel, "data": "{}" })).await;
    }

    async fn expect_price(&mut self, channel: &str, data: &str) {
        self.expect(json!({ "event": "price", "channel": channel, "data": data })).await;
    }
}

#[tokio::test]
async fn a_cache_miss_is_sent_to_the_new_subscriber_only() {
    let server = Server::start().await;
    let [mut first, mut second] = server.connect_many().await;
    for client in [&mut first, &mut second] {
        client.subscribe(BTC).await;
        client.expect_miss(BTC).await;
    }
    first.fence().await;
    second.fence().await;
}

#[tokio::test]
async fn a_subscriber_receives_the_last_event_unchanged() {
    let server = Server::start().await;
    let [mut early, mut late] = server.connect_many().await;
    early.subscribe(BTC).await;
    early.expect_miss(BTC).await;
    for data in ["1", "{\"eur\":61234}"] {
        server.publish(BTC, "price", data).await;
        early.expect_price(BTC, data).await;
    }
    late.subscribe(BTC).await;
    late.expect_price(BTC, "{\"eur\":61234}").await;
    late.fence().await;
    early.fence().await;
}

#[tokio::test]
async fn an_event_is_cached_without_subscribers_and_outlives_the_last_one() {
    let server = Server::start().await;
    server.publish(BTC, "price", "1").await;
    for _ in 0..2 {
        let mut client = server.connect().await;
        client.subscribe(BTC).await;
        client.expect_price(BTC, "1").await;
        client.close().await;
        server.has_subscriptions(BTC, 0).await;
    }
}

#[tokio::test]
async fn every_kind_of_channel_has_a_cache_form() {
    let server = Server::start().await;
    for channel in [BTC, "private-cache-btc", "private-encrypted-cache-btc", "presence-cache-btc"] {
        let data = r#"{"nonce":"AAEC","ciphertext":"c2VjcmV0"}"#;
        let mut early = server.connect().await;
        let channel_data = channel.starts_with("presence-").then_some(r#"{"user_id":"7"}"#);
        early.send(early.signed_subscribe(channel, channel_data)).await;
        early.expect_event("pusher_internal:subscription_succeeded", channel).await;
        early.expect_miss(channel).await;
        server.publish(channel, "price", data).await;
        early.expect_price(channel, data).await;
        let mut late = server.connect().await;
        late.send(late.signed_subscribe(channel, channel_data)).await;
        late.expect_event("pusher_internal:subscription_succeeded", channel).await;
        late.expect_price(channel, data).await;
    }
}

#[tokio::test]
async fn other_channels_cache_nothing() {
    let server = Server::start().await;
    for channel in ["news", "cached", "cache", "x-cache-y", "private-x-cache-y", "private-cache", "Cache-x"] {
        server.publish(channel, "price", "1").await;
        let mut client = server.connect().await;
        client.subscribe(channel).await;
        client.fence().await;
    }
}

#[tokio::test]
async fn client_events_and_member_events_are_not_cached() {
    let server = Server::start().await;
    let [mut one, mut two, mut late] = server.connect_many().await;
    one.subscribe("private-cache-room").await;
    one.expect_miss("private-cache-room").await;
    one.whisper("private-cache-room", "client-x", json!({})).await;
    one.fence().await;
    two.subscribe("private-cache-room").await;
    two.expect_miss("private-cache-room").await;

    let room = "presence-cache-room";
    one.join(room, json!({ "user_id": "7" })).await;
    one.expect_miss(room).await;
    two.join(room, json!({ "user_id": "8" })).await;
    two.expect_miss(room).await;
    one.expect_event("pusher_internal:member_added", room).await;
    server.publish(room, "price", "1").await;
    two.expect_price(room, "1").await;
    one.expect_price(room, "1").await;
    two.whisper(room, "client-x", json!(1)).await;
    one.expect(json!({ "event": "client-x", "channel": room, "data": 1, "user_id": "8" })).await;
    two.close().await;
    one.expect_event("pusher_internal:member_removed", room).await;
    late.join(room, json!({ "user_id": "9" })).await;
    late.expect_price(room, "1").await;
}

#[tokio::test]
async fn the_excluded_connection_receives_the_event_from_the_cache() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(BTC).await;
    client.expect_miss(BTC).await;
    server
        .publish_json(json!({ "channel": BTC, "name": "price", "data": "1", "socket_id": client.id }))
        .await;
    client.unsubscribe(BTC).await;
    client.subscribe(BTC).await;
    client.expect_price(BTC, "1").await;
}

#[tokio::test]
async fn subscribing_again_does_not_send_the_cached_event() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(BTC).await;
    client.expect_miss(BTC).await;
    client.subscribe(BTC).await;
    client.fence().await;
    server.publish(BTC, "price", "1").await;
    client.expect_price(BTC, "1").await;
    client.subscribe(BTC).await;
    client.fence().await;
}

#[tokio::test]
async fn a_cached_event_may_be_empty() {
    let server = Server::start().await;
    server.publish(BTC, "price", "").await;
    let mut client = server.connect().await;
    client.subscribe(BTC).await;
    client.expect_price(BTC, "").await;
}

#[tokio::test]
async fn every_way_to_publish_caches_the_event() {
    let server = Server::start().await;
    let batch = json!({ "batch": [
        { "channel": "cache-a", "name": "price", "data": "1" },
        { "channel": "cache-a", "name": "price", "data": "2" },
        { "channel": "cache-b", "name": "price", "data": "3" },
    ] });
    server.post_json("/apps/1001/batch_events", batch).await.ok();
    server.publish_json(json!({ "channels": ["cache-c", "cache-d"], "name": "price", "data": "4" })).await;
    for (channel, data) in [("cache-a", "2"), ("cache-b", "3"), ("cache-c", "4"), ("cache-d", "4")] {
        let mut client = server.connect().await;
        client.subscribe(channel).await;
        client.expect_price(channel, data).await;
    }
}

#[tokio::test]
async fn a_cached_event_expires_after_its_ttl() {
    let server = Server::with_app(|app: &mut App| app.limits.cache_ttl = Duration::from_secs(1)).await;
    server.publish(BTC, "price", "1").await;
    let mut client = server.connect().await;
    client.subscribe(BTC).await;
    client.expect_price(BTC, "1").await;
    let target = "/apps/1001/channels/cache-btc?info=cache";
    eventually("the cached event expires", async || server.get_json(target).await["cache"] == Value::Null)
        .await;
    let mut late = server.connect().await;
    late.subscribe(BTC).await;
    late.expect_miss(BTC).await;
    server.publish(BTC, "price", "2").await;
    late.expect_price(BTC, "2").await;
    client.expect_price(BTC, "2").await;
}

#[tokio::test]
async fn apps_share_no_cache() {
    let server = Server::start().await;
    server.publish(BTC, "price", "1").await;
    let mut theirs = server.connect_to("/app/other-key").await;
    theirs.subscribe(BTC).await;
    theirs.expect_miss(BTC).await;
}
