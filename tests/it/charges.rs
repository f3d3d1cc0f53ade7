//! Charges: a client is charged for its replies, and for what others are sent because of it. It is throttled when its
//! bucket is empty. Source: protocol.md §12.1.

use pusherd::limits::{Limit, Rate};
use serde_json::{Value, json};

use crate::harness::{Client, NEWS, Server, eventually};

const ROOM: &str = "presence-room";

/// A channel of twenty members with much user info: their list has 50 KB.
async fn members_of_room(server: &Server) -> Vec<Client> {
    let mut members = Vec::new();
    for id in 0..20 {
        let mut member = server.connect().await;
        member.join(ROOM, json!({ "user_id": id.to_string(), "user_info": "x".repeat(2000) })).await;
        members.push(member);
    }
    members
}

/// How many member lists come before the event that is published when the client is throttled.
async fn lists_before(server: &Server, client: &mut Client) -> usize {
    eventually("the client is throttled", async || server.metrics.rejected(Limit::AnswerBytes).get() > 0)
        .await;
    server.publish(NEWS, "after", "").await;
    let mut lists = 0;
    loop {
        match client.next().await["event"].as_str() {
            Some("after") => return lists,
            Some("pusher_internal:subscription_succeeded") => lists += 1,
            Some(_) | None => {}
        }
    }
}

#[tokio::test]
async fn a_client_that_repeats_a_subscription_is_throttled_by_the_bytes_of_the_replies() {
    let server =
        Server::with_app(|app| app.limits.answer_bytes = Rate { per_second: 1024, burst: 300_000 }).await;
    let mut others = members_of_room(&server).await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    let ask = client.signed_subscribe(ROOM, Some(r#"{"user_id":"0"}"#));
    for _ in 0..100 {
        client.send(ask.clone()).await;
    }
    let lists = lists_before(&server, &mut client).await;
    assert!((5..10).contains(&lists), "{lists} of 100, which would be 5 MB");
    // Other clients are not throttled, and this one still gets events.
    let bystander = others.last_mut().unwrap();
    bystander.fence().await;
    server.publish(NEWS, "still", "").await;
    client.expect(json!({ "event": "still", "channel": NEWS, "data": "" })).await;
}

#[tokio::test]
async fn refusals_are_charged_by_their_size() {
    let server =
        Server::with_app(|app| app.limits.answer_bytes = Rate { per_second: 1024, burst: 100_000 }).await;
    let mut counts = Vec::new();
    for (throttled, length) in [(1, 10), (2, 190)] {
        let mut client = server.connect().await;
        client.subscribe(NEWS).await;
        // The character is not allowed.
        let name = "!".repeat(length);
        for _ in 0..1000 {
            client.ask(&name).await;
        }
        server.wait_for_rejections(Limit::AnswerBytes, throttled).await;
        server.publish(NEWS, "after", "").await;
        let (mut count, mut bytes) = (0, 0);
        loop {
            let text = client.next_text().await;
            if text.contains("after") {
                break;
            }
            (count, bytes) = (count + 1, bytes + text.len());
        }
        assert!((90_000..110_000).contains(&bytes), "{bytes} bytes in {count} refusals");
        counts.push(count);
    }
    assert!(counts[0] > counts[1], "{counts:?}");
}

#[tokio::test]
async fn member_events_to_others_are_charged_to_the_member() {
    let server =
        Server::with_app(|app| app.limits.answer_bytes = Rate { per_second: 1024, burst: 300_000 }).await;
    let _others = members_of_room(&server).await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    let join = client.signed_subscribe(ROOM, Some(r#"{"user_id":"new","user_info":"hello"}"#));
    let leave = json!({ "event": "pusher:unsubscribe", "data": { "channel": ROOM } });
    for _ in 0..100 {
        client.send(join.clone()).await;
        client.send(leave.clone()).await;
    }
    let lists = lists_before(&server, &mut client).await;
    assert!((3..10).contains(&lists), "{lists} of 100");
}

#[tokio::test]
async fn changes_that_others_are_notified_of_have_a_rate_limit() {
    let server = Server::with_app(|app| app.limits.changes = Rate { per_second: 1, burst: 10 }).await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    for at in 0..100 {
        client.ask(&format!("fresh-{at}")).await;
    }
    server.wait_for_rejections(Limit::Changes, 1).await;
    server.publish(NEWS, "after", "").await;
    let mut subscribed = 0;
    while client.next().await["event"] != "after" {
        subscribed += 1;
    }
    assert_eq!(subscribed, 10, "with the first channel, one more than the burst");
    // It goes on, slowly, and no message is lost.
    client.expect_subscribed("fresh-10").await;
    // A client that is one of several in its channels causes no changes.
    let mut other = server.connect().await;
    for _ in 0..20 {
        other.subscribe(NEWS).await;
        other.send(json!({ "event": "pusher:unsubscribe", "data": { "channel": NEWS } })).await;
    }
    other.fence().await;
}

#[tokio::test]
async fn a_client_that_reconnects_with_a_thousand_channels_is_not_throttled() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for at in 0..1000 {
        client.ask(&format!("channel-{at}")).await;
    }
    for at in 0..1000 {
        client.expect_subscribed(&format!("channel-{at}")).await;
    }
    client.fence().await;
    server.assert_limit_rejections(Limit::Changes, 0);
}

#[tokio::test]
async fn a_client_of_a_thousand_channels_leaves_all_of_them_however_it_ends() {
    let server = Server::start().await;
    let mut watching = server.connect().await;
    watching.join("presence-last", json!({ "user_id": "1" })).await;
    let closed = async |client: Client| client.close().await;
    let dropped = async |client: Client| drop(client);
    let terminated = async |mut client: Client| {
        server.post_json("/apps/1001/users/7/terminate_connections", json!({})).await.ok();
        client.expect_close(4009).await;
    };
    let mut ends = [0, 1, 2];
    for end in &mut ends {
        let mut client = server.connect().await;
        client.sign_in(json!({ "id": "7" })).await;
        for at in 1..1000 {
            client.ask(&format!("channel-{at}")).await;
        }
        for at in 1..1000 {
            client.expect_subscribed(&format!("channel-{at}")).await;
        }
        client.join("presence-last", json!({ "user_id": "7" })).await;
        watching.next().await;
        match *end {
            0 => closed(client).await,
            1 => dropped(client).await,
            _ => terminated(client).await,
        }
        server.has_connections(1).await;
        let only = json!({ "channels": { "presence-last": {} } });
        assert_eq!(
            server.get_json("/apps/1001/channels").await,
            only,
            "when it is not counted any more, it has left all channels"
        );
        assert_eq!(watching.next().await["event"], "pusher_internal:member_removed");
    }
    watching.fence().await;
}

#[tokio::test]
async fn a_repeated_sign_in_changes_nothing_and_another_watchlist_sends_the_difference() {
    let server = Server::with_app(|app| app.limits.changes = Rate { per_second: 1, burst: 10 }).await;
    let mut client = server.connect().await;
    let user = |watchlist: &[&str]| json!({ "id": "7", "watchlist": watchlist });
    client.sign_in(user(&["8", "9"])).await;
    assert_eq!(client.expect_watched().await, json!([["offline", ["8", "9"]]]));
    for _ in 0..50 {
        client.sign_in(user(&["8", "9"])).await;
    }
    client.fence().await;
    client.sign_in(user(&["9", "10"])).await;
    assert_eq!(client.expect_watched().await, json!([["offline", ["10"]]]), "9 was sent before");
    server.assert_limit_rejections(Limit::Changes, 0);
    // Ten changes are two more than the bucket has left.
    client.sign_in(user(&["a", "b", "c", "d", "e", "f"])).await;
    client.expect_watched().await;
    server.wait_for_rejections(Limit::Changes, 1).await;
    assert_eq!(server.get_json("/apps/1001/channels").await["channels"], Value::Object(Default::default()));
}
