//! Subscription counts, watchlists and users on all nodes.

use std::time::Duration;

use serde_json::{Value, json};

use super::{answers, marker};
use crate::harness::{NEWS, Node, Request, nodes, nodes_with};
use crate::presence::{ROOM, user};
use crate::watchlist::sign_in;

#[tokio::test]
async fn subscription_counts_include_all_nodes() {
    let nodes: [Node; 2] = nodes_with(|setup| setup.app.subscription_counts = true).await;
    let [mut one, mut two, mut three] =
        [nodes[0].connect().await, nodes[1].connect().await, nodes[1].connect().await];
    one.subscribe(NEWS).await;
    one.expect_count(NEWS, 1).await;
    two.subscribe(NEWS).await;
    one.expect_count(NEWS, 2).await;
    two.reaches_count(2).await;
    three.subscribe(NEWS).await;
    for client in [&mut one, &mut two, &mut three] {
        client.reaches_count(3).await;
    }
    three.unsubscribe(NEWS).await;
    for client in [&mut one, &mut two] {
        client.reaches_count(2).await;
    }
    // A subscriber that leaves and joins again gets the count of the other node again.
    let [leave, join] = ["unsubscribe", "subscribe"]
        .map(|what| json!({ "event": format!("pusher:{what}"), "data": { "channel": NEWS } }));
    for _ in 0..20 {
        one.send_all([leave.clone(), join.clone()]).await;
        while one.next().await["event"] != "pusher_internal:subscription_succeeded" {}
        one.reaches_count(2).await;
    }
    two.reset();
    one.reaches_count(1).await;
    marker(&nodes[1], NEWS, &mut [&mut one]).await;
}

#[tokio::test]
async fn a_watchlist_follows_users_on_all_nodes() {
    let nodes: [Node; 2] = nodes().await;
    let mut observer = sign_in(&nodes[0], "7", json!(["8", "9"])).await;
    assert_eq!(observer.expect_watched().await, json!([["offline", ["8", "9"]]]));
    let there = sign_in(&nodes[1], "8", Value::Null).await;
    assert_eq!(observer.expect_watched().await, json!([["online", ["8"]]]));
    let here = sign_in(&nodes[0], "8", Value::Null).await;
    let mut late = sign_in(&nodes[1], "6", json!(["8", "9"])).await;
    assert_eq!(late.expect_watched().await, json!([["offline", ["9"]], ["online", ["8"]]]));
    there.close().await;
    nodes[0].has_connections(3).await;
    observer.fence().await;
    // A client that reconnects to another node is not reported.
    here.close().await;
    nodes[0].has_connections(2).await;
    let back = sign_in(&nodes[1], "8", Value::Null).await;
    let nine = sign_in(&nodes[1], "9", Value::Null).await;
    for client in [&mut observer, &mut late] {
        assert_eq!(client.expect_watched().await, json!([["online", ["9"]]]));
    }
    nine.close().await;
    for client in [&mut observer, &mut late] {
        assert_eq!(client.expect_watched().await, json!([["offline", ["9"]]]));
    }
    back.reset();
    for client in [&mut observer, &mut late] {
        assert_eq!(client.expect_watched().await, json!([["offline", ["8"]]]));
        client.fence().await;
    }
}

#[tokio::test]
async fn terminating_a_user_closes_its_connections_on_all_nodes_and_no_others() {
    let nodes: [Node; 2] = nodes().await;
    let mut gone = [sign_in(&nodes[0], "7", Value::Null).await, sign_in(&nodes[1], "7", Value::Null).await];
    let mut other = sign_in(&nodes[1], "8", Value::Null).await;
    let mut again = sign_in(&nodes[1], "7", Value::Null).await;
    nodes[0].post_json("/apps/1001/users/7/terminate_connections", json!({})).await.ok();
    for client in gone.iter_mut().chain([&mut again]) {
        client.expect_close(4009).await;
    }
    other.fence().await;
    nodes[0].has_connections(1).await;
    // Terminating a user without connections succeeds, too.
    nodes[0].post_json("/apps/1001/users/nobody/terminate_connections", json!({})).await.ok();
    let mut back = sign_in(&nodes[0], "7", Value::Null).await;
    back.fence().await;
}

#[tokio::test]
async fn terminating_a_user_closes_presence_members_on_all_nodes_if_the_app_says_so() {
    for is_so in [true, false] {
        let nodes: [Node; 2] = nodes_with(|setup| setup.app.terminate_presence_members = is_so).await;
        let mut other = nodes[1].connect().await;
        other.join(ROOM, user("8")).await;
        let mut members = Vec::new();
        for node in &nodes {
            let mut member = node.connect().await;
            member.join(ROOM, user("7")).await;
            members.push(member);
        }
        other.expect_added("7", Value::Null).await;
        let mut both = sign_in(&nodes[1], "7", Value::Null).await;
        both.join("presence-own", user("7")).await;
        nodes[0].post_json("/apps/1001/users/7/terminate_connections", json!({})).await.ok();
        both.expect_close(4009).await;
        if is_so {
            for member in &mut members {
                assert_eq!(member.expect_close(4009).await, "Disconnected by the application");
            }
            other.expect_removed("7").await;
            other.fence().await;
            nodes[0].has_connections(1).await;
        } else {
            marker(&nodes[0], ROOM, &mut members.iter_mut().chain([&mut other]).collect::<Vec<_>>()).await;
            nodes[0].has_connections(3).await;
        }
    }
}

#[tokio::test]
async fn an_event_to_a_user_reaches_its_connections_on_all_nodes_once_subscribed_or_not() {
    let nodes: [Node; 3] = nodes().await;
    nodes[1].link.delay(Duration::from_millis(2));
    let event = |name: &str| json!({ "event": name, "channel": "#server-to-user-7", "data": "" });
    let mut observer = sign_in(&nodes[2], "8", json!(["7"])).await;
    observer.expect_watched().await;
    for round in 0..5 {
        // Once its sign-in is acknowledged, the client can be reached from every node.
        let mut client = sign_in(&nodes[1], "7", Value::Null).await;
        for node in &nodes {
            node.publish("#server-to-user-7", "unasked", "").await;
            client.expect(event("unasked")).await;
        }
        client.subscribe("#server-to-user-7").await;
        let mut beside = sign_in(&nodes[0], "7", Value::Null).await;
        nodes[2].publish("#server-to-user-7", "asked", "").await;
        for client in [&mut client, &mut beside] {
            client.expect(event("asked")).await;
            client.fence().await;
        }
        let own = Request::get("/apps/1001/channels/%23server-to-user-7").with("info", "subscription_count");
        let answer = json!({ "occupied": true, "subscription_count": 2 });
        assert_eq!(nodes[2].send(own.signed()).await.ok(), answer, "round {round}");
        assert_eq!(nodes[0].get_json("/apps/1001/channels").await, json!({ "channels": {} }));
        client.close().await;
        beside.close().await;
        nodes[2].has_connections(1).await;
    }
    // A watcher gets no events of the user, and does not occupy the channel.
    while observer.expect_watched().await != json!([["offline", ["7"]]]) {}
    answers(&nodes[2], "/apps/1001/channels/%23server-to-user-7", json!({ "occupied": false })).await;
}

#[tokio::test]
async fn a_sign_in_and_a_subscription_sent_together_are_acknowledged_in_order() {
    let nodes: [Node; 2] = nodes().await;
    nodes[0].link.delay(Duration::from_millis(5));
    let mut client = nodes[0].connect().await;
    let (first, second) = (r#"{"id":"7"}"#, r#"{"id":"7","watchlist":["8"]}"#);
    let subscribe = json!({ "event": "pusher:subscribe", "data": { "channel": "#server-to-user-7" } });
    let sign_ins = [client.signed_sign_in(first), subscribe, client.signed_sign_in(second)];
    client.send_all(sign_ins).await;
    // Of two pending sign-ins, the later one is acknowledged.
    client.expect_signed_in(second).await;
    client.expect_subscribed("#server-to-user-7").await;
    assert_eq!(client.expect_watched().await, json!([["offline", ["8"]]]));
    nodes[1].publish("#server-to-user-7", "e", "").await;
    client.expect(json!({ "event": "e", "channel": "#server-to-user-7", "data": "" })).await;
    client.sign_in(json!({ "id": "7" })).await;
    client.fence().await;
}

#[tokio::test]
async fn events_on_a_users_own_channel_reach_subscribers_on_all_nodes() {
    const MINE: &str = "#server-to-user-7";
    let nodes: [Node; 2] = nodes().await;
    let mut other = sign_in(&nodes[1], "8", Value::Null).await;
    let [mut here, mut there] =
        [sign_in(&nodes[0], "7", Value::Null).await, sign_in(&nodes[1], "7", Value::Null).await];
    for client in [&mut here, &mut there] {
        client.subscribe(MINE).await;
    }
    for node in &nodes {
        node.publish(MINE, "hello", "1").await;
        for client in [&mut here, &mut there] {
            client.expect(json!({ "event": "hello", "channel": MINE, "data": "1" })).await;
        }
    }
    other.fence().await;
    assert_eq!(nodes[0].get_json("/apps/1001/channels").await, json!({ "channels": {} }));
}
