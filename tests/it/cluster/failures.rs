//! Nodes that end or rejoin, and brokers that fail.

use std::time::Duration;

use pusherd::server::Shutdown;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{EVENTS, Roster, answers, marker, subscribers};
use crate::harness::{Answer, NEWS, Node, Server, Setup, eventually, nodes, nodes_with};
use crate::presence::{ROOM, user};

#[tokio::test]
async fn the_members_of_a_dead_node_are_removed_when_its_lease_expires() {
    let short = |setup: &mut Setup| {
        setup.app.subscription_counts = true;
        setup.options.cluster.timing.lease = Duration::from_secs(2);
    };
    let [one, two, three]: [Node; 3] = nodes_with(short).await;
    let mut observer = one.connect().await;
    observer.join(ROOM, user("1")).await;
    let mut counting = three.connect().await;
    counting.subscribe(NEWS).await;
    let mut dying = two.connect().await;
    dying.join(ROOM, user("7")).await;
    dying.join("presence-other", user("7")).await;
    dying.subscribe(NEWS).await;
    let mut also = three.connect().await;
    also.join(ROOM, user("8")).await;
    observer.expect_added("7", Value::Null).await;
    observer.expect_added("8", Value::Null).await;
    counting.reaches_count(2).await;
    one.has_connections(4).await;

    let begin = Instant::now();
    two.crash();
    observer.expect_removed("7").await;
    also.expect_removed("7").await;
    assert!(
        begin.elapsed() > Duration::from_secs(1),
        "not before the lease has expired: {:?}",
        begin.elapsed()
    );
    counting.reaches_count(1).await;
    let left = json!({ "channels": { "presence-room": {}, "news": {} } });
    answers(&one, "/apps/1001/channels", left).await;
    one.has_connections(3).await;
    marker(&three, ROOM, &mut [&mut observer, &mut also]).await;
    observer.fence().await;
    for client in [observer, also, counting] {
        client.close().await;
    }
    eventually("no state is left", async || one.broker.is_empty()).await;
}

#[tokio::test]
async fn the_members_of_a_node_that_shuts_down_are_removed_at_once() {
    let [one, two]: [Node; 2] = nodes().await;
    let mut observer = one.connect().await;
    observer.join(ROOM, user("1")).await;
    let mut leaving = two.connect().await;
    leaving.join(ROOM, user("7")).await;
    observer.expect_added("7", Value::Null).await;
    two.signal(Shutdown::Graceful).await;
    observer.expect_removed("7").await;
    one.has_connections(1).await;
    leaving.expect_close(4200).await;
    two.ended().await;
    observer.close().await;
    let broker = one.broker.clone();
    one.stop().await;
    assert!(broker.is_empty());
}

#[tokio::test]
async fn a_node_whose_lease_expired_rejoins_without_duplicate_members() {
    let nodes: [Node; 2] = nodes_with(|setup| setup.app.subscription_counts = true).await;
    let mut observer = nodes[0].connect().await;
    let mut roster = Roster::of(&mut observer, user("1")).await;
    let mut paused = nodes[1].connect().await;
    let mut theirs = Roster::of(&mut paused, user("7")).await;
    let mut counting = nodes[1].connect().await;
    counting.subscribe(NEWS).await;
    for _ in 0..3 {
        nodes[1].link.expire_lease();
        let there = json!({ "occupied": true, "user_count": 2, "subscription_count": 2 });
        answers(
            &nodes[0],
            "/apps/1001/channels/presence-room?info=user_count,subscription_count",
            there.clone(),
        )
        .await;
        // The events in the meantime are consistent.
        nodes[1].publish(ROOM, "marker", "").await;
        roster.follow(&mut observer).await;
        theirs.follow(&mut paused).await;
    }
    // Later joins and leaves work as before.
    let mut late = nodes[1].connect().await;
    late.join(ROOM, user("8")).await;
    late.close().await;
    let there = json!({ "occupied": true, "user_count": 2, "subscription_count": 2 });
    answers(&nodes[0], "/apps/1001/channels/presence-room?info=user_count,subscription_count", there).await;
    paused.close().await;
    let alone = json!({ "occupied": true, "user_count": 1, "subscription_count": 1 });
    answers(&nodes[0], "/apps/1001/channels/presence-room?info=user_count,subscription_count", alone).await;
    nodes[0].publish(ROOM, "marker", "").await;
    roster.follow(&mut observer).await;
    assert_eq!(roster.0.keys().collect::<Vec<_>>(), ["1"]);
}

/// Sends a publish request.
async fn publish(server: &Server, channel: &str) -> Answer {
    server.post_json(EVENTS, json!({ "name": "e", "channel": channel, "data": "" })).await
}

#[tokio::test]
async fn without_its_broker_a_node_keeps_its_connections_and_rejects_requests() {
    let nodes: [Node; 2] = nodes().await;
    let mut clients = subscribers(&nodes, NEWS).await;
    nodes[0].link.disconnect();
    nodes[0].is_ready(false).await;
    nodes[1].is_ready(true).await;
    let refused = publish(&nodes[0], NEWS).await;
    refused.rejected(503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    for target in ["channels", "channels/news", "channels/presence-room/users", "connections"] {
        nodes[0].get(&format!("/apps/1001/{target}")).await.rejected(503);
    }
    nodes[0].post_json("/apps/1001/users/7/terminate_connections", json!({})).await.rejected(503);
    clients[0].fence().await;
    // New connections are accepted, and subscribed when the broker is back.
    let mut waiting = nodes[0].connect().await;
    waiting.ask(NEWS).await;
    waiting.fence().await;
    nodes[0].link.reconnect();
    waiting.expect_subscribed(NEWS).await;
    nodes[0].is_ready(true).await;
    publish(&nodes[0], NEWS).await.ok();
    for client in clients.iter_mut().chain([&mut waiting]) {
        client.expect(json!({ "event": "e", "channel": NEWS, "data": "" })).await;
        client.fence().await;
    }
}

#[tokio::test]
async fn without_its_broker_a_node_delivers_locally_if_the_settings_say_so() {
    let local = |setup: &mut Setup| setup.options.cluster.local_when_broker_lost = true;
    let nodes: [Node; 2] = nodes_with(local).await;
    let mut clients = subscribers(&nodes, "private-room").await;
    let mut beside = nodes[0].connect().await;
    beside.subscribe("private-room").await;
    nodes[0].link.disconnect();
    nodes[0].is_ready(false).await;
    publish(&nodes[0], "private-room").await.ok();
    let event = json!({ "event": "e", "channel": "private-room", "data": "" });
    clients[0].expect(event.clone()).await;
    beside.expect(event).await;
    beside.whisper("private-room", "client-x", json!(1)).await;
    assert_eq!(clients[0].next().await["event"], "client-x");
    beside.fence().await;
    clients[1].fence().await;
    nodes[0].link.reconnect();
    nodes[0].is_ready(true).await;
    marker(&nodes[0], "private-room", &mut clients.iter_mut().chain([&mut beside]).collect::<Vec<_>>()).await;
}

/// After the broker is back, the members of the room and the count of `news` are correct.
async fn recovers_from(break_it: impl AsyncFn(&[Node; 2])) {
    let nodes: [Node; 2] = nodes_with(|setup| setup.app.subscription_counts = true).await;
    let mut observer = nodes[0].connect().await;
    let mut roster = Roster::of(&mut observer, user("here")).await;
    let mut elsewhere = nodes[1].connect().await;
    let mut theirs = Roster::of(&mut elsewhere, user("there")).await;
    let mut counting = nodes[1].connect().await;
    counting.subscribe(NEWS).await;
    let mut leaving = Vec::new();
    for (node, id) in nodes.iter().zip(["a", "b"]) {
        let mut client = node.connect().await;
        client.join(ROOM, user(id)).await;
        client.subscribe(NEWS).await;
        leaving.push(client);
    }
    counting.reaches_count(3).await;
    break_it(&nodes).await;
    drop(leaving);
    let mut late = Vec::new();
    for (node, id) in nodes.iter().zip(["c", "d"]) {
        let mut client = node.connect().await;
        client.ask_as(ROOM, &user(id).to_string()).await;
        late.push(client);
    }
    for node in &nodes {
        node.link.reconnect();
        node.is_ready(true).await;
    }
    for node in &nodes {
        let there = json!({ "occupied": true, "user_count": 4, "subscription_count": 4 });
        answers(node, "/apps/1001/channels/presence-room?info=user_count,subscription_count", there).await;
        let counted = json!({ "occupied": true, "subscription_count": 1 });
        answers(node, "/apps/1001/channels/news?info=subscription_count", counted).await;
    }
    counting.reaches_count(1).await;
    let there = ["c", "d", "here", "there"];
    roster.reaches(&mut observer, &nodes[1], &there).await;
    theirs.reaches(&mut elsewhere, &nodes[1], &there).await;
    marker(&nodes[0], NEWS, &mut [&mut counting]).await;
}

#[tokio::test]
async fn a_node_that_was_disconnected_catches_up() {
    recovers_from(async |nodes: &[Node; 2]| nodes[0].link.disconnect()).await;
}

#[tokio::test]
async fn all_nodes_catch_up_after_a_disconnect() {
    recovers_from(async |nodes: &[Node; 2]| nodes.iter().for_each(|node| node.link.disconnect())).await;
}

#[tokio::test]
async fn a_node_whose_lease_expired_while_disconnected_catches_up() {
    recovers_from(async |nodes: &[Node; 2]| {
        nodes[0].link.disconnect();
        nodes[0].link.expire_lease();
    })
    .await;
}

#[tokio::test]
async fn nodes_register_again_with_a_broker_that_lost_its_state() {
    recovers_from(async |nodes: &[Node; 2]| nodes[0].broker.flush_all()).await;
}

#[tokio::test]
async fn nodes_register_again_with_a_broker_that_lost_its_state_while_disconnected() {
    recovers_from(async |nodes: &[Node; 2]| {
        nodes.iter().for_each(|node| node.link.disconnect());
        nodes[0].broker.flush_all();
    })
    .await;
}
