//! What a client causes beyond what it sends: answers, and what others are told because of it. It is charged for that, and
//! waits where it has used up what it may. Source: protocol.md §12.1.

use pusherd::limits::{Limit, Rate};
use serde_json::{Value, json};

use crate::harness::{Client, NEWS, Server, eventually};

const ROOM: &str = "presence-room";

/// A room of twenty members that say much of themselves: the list of them has 50 KB.
async fn room(server: &Server) -> Vec<Client> {
    let mut members = Vec::new();
    for id in 0..20 {
        let mut member = server.connect().await;
        member.join(ROOM, json!({ "user_id": id.to_string(), "user_info": "x".repeat(2000) })).await;
        members.push(member);
    }
    members
}

/// How many lists of members come before the event that is published when the client has had to wait.
async fn lists_before(server: &Server, client: &mut Client) -> usize {
    eventually("the client waits", async || server.metrics.rejected(Limit::AnswerBytes).get() > 0).await;
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
async fn a_client_that_asks_for_the_same_again_and_again_waits_for_the_answers() {
    let server =
        Server::with_app(|app| app.limits.answer_bytes = Rate { per_second: 1024, burst: 300_000 }).await;
    let mut others = room(&server).await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    let ask = client.signed_subscribe(ROOM, Some(r#"{"user_id":"0"}"#));
    for _ in 0..100 {
        client.send(ask.clone()).await;
    }
    let lists = lists_before(&server, &mut client).await;
    assert!((5..10).contains(&lists), "{lists} of 100, which would be 5 MB");
    // Nobody else is held up, and it hears what is said meanwhile.
    let witness = others.last_mut().unwrap();
    witness.fence().await;
    server.publish(NEWS, "still", "").await;
    client.expect(json!({ "event": "still", "channel": NEWS, "data": "" })).await;
}

#[tokio::test]
async fn what_others_are_told_of_a_member_is_charged_to_it() {
    let server =
        Server::with_app(|app| app.limits.answer_bytes = Rate { per_second: 1024, burst: 300_000 }).await;
    let _others = room(&server).await;
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
async fn changes_that_others_are_told_of_have_a_rate() {
    let server = Server::with_app(|app| app.limits.changes = Rate { per_second: 1, burst: 10 }).await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    for at in 0..100 {
        client.ask(&format!("fresh-{at}")).await;
    }
    server.refuses(Limit::Changes, 1).await;
    server.publish(NEWS, "after", "").await;
    let mut subscribed = 0;
    while client.next().await["event"] != "after" {
        subscribed += 1;
    }
    assert_eq!(subscribed, 10, "with the channel of the beginning, one more than may be at once");
    // It goes on, slowly, and nothing is lost.
    client.expect_subscribed("fresh-10").await;
    // Who is one of several in its channels causes nothing.
    let mut other = server.connect().await;
    for _ in 0..20 {
        other.subscribe(NEWS).await;
        other.send(json!({ "event": "pusher:unsubscribe", "data": { "channel": NEWS } })).await;
    }
    other.fence().await;
}

#[tokio::test]
async fn a_client_that_comes_back_with_a_thousand_channels_waits_for_nothing() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    for at in 0..1000 {
        client.ask(&format!("channel-{at}")).await;
    }
    for at in 0..1000 {
        client.expect_subscribed(&format!("channel-{at}")).await;
    }
    client.fence().await;
    server.has_refused(Limit::Changes, 0);
}

#[tokio::test]
async fn a_client_of_a_thousand_channels_leaves_all_of_them_however_it_ends() {
    let server = Server::start().await;
    let mut watching = server.connect().await;
    watching.join("presence-last", json!({ "user_id": "1" })).await;
    let closed = async |client: Client| client.close().await;
    let gone = async |client: Client| drop(client);
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
            1 => gone(client).await,
            _ => terminated(client).await,
        }
        server.has_connections(1).await;
        let only = json!({ "channels": { "presence-last": {} } });
        assert_eq!(
            server.get_json("/apps/1001/channels").await,
            only,
            "when it counts no more, it has left all"
        );
        assert_eq!(watching.next().await["event"], "pusher_internal:member_removed");
    }
    watching.fence().await;
}

#[tokio::test]
async fn signing_in_as_before_changes_nothing_and_otherwise_the_difference_is_told() {
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
    assert_eq!(client.expect_watched().await, json!([["offline", ["10"]]]), "9 has been told of");
    server.has_refused(Limit::Changes, 0);
    // Ten are two more than it may yet change at once.
    client.sign_in(user(&["a", "b", "c", "d", "e", "f"])).await;
    client.expect_watched().await;
    server.refuses(Limit::Changes, 1).await;
    assert_eq!(server.get_json("/apps/1001/channels").await["channels"], Value::Object(Default::default()));
}
