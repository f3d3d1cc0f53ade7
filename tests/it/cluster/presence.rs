//! Presence channels on all nodes.

use std::time::Duration;

use futures_util::future::join_all;
use pusherd::limits::Limit;
use serde_json::{Value, json};

use super::{Roster, answers, marker};
use crate::harness::{Client, Node, Setup, nodes, nodes_with};
use crate::presence::{ROOM, user};

#[tokio::test]
async fn presence_has_the_members_of_all_nodes_and_reports_each_once() {
    let nodes: [Node; 3] = nodes().await;
    let mut observer = nodes[0].connect().await;
    observer.join(ROOM, user("1")).await;
    let mut first = nodes[1].connect().await;
    let there = first.join(ROOM, json!({ "user_id": "7", "user_info": { "name": "Zoë" } })).await;
    assert_eq!(
        there,
        json!({ "ids": ["1", "7"], "hash": { "1": null, "7": { "name": "Zoë" } }, "count": 2 })
    );
    observer.expect_added("7", json!({ "name": "Zoë" })).await;
    // Another connection of the member, on another node: the info of the first one counts.
    let mut second = nodes[2].connect().await;
    let there = second.join(ROOM, json!({ "user_id": "7", "user_info": { "name": "other" } })).await;
    assert_eq!(there["hash"]["7"], json!({ "name": "Zoë" }));
    marker(&nodes[0], ROOM, &mut [&mut observer, &mut first, &mut second]).await;

    first.close().await;
    nodes[1].has_subscriptions(ROOM, 2).await;
    marker(&nodes[1], ROOM, &mut [&mut observer, &mut second]).await;
    second.unsubscribe(ROOM).await;
    observer.expect_removed("7").await;
    second.fence().await;
    marker(&nodes[2], ROOM, &mut [&mut observer]).await;
}

#[tokio::test]
async fn the_members_and_the_events_after_them_are_consistent_under_churn() {
    let nodes: [Node; 3] = nodes().await;
    nodes[1].link.delay(Duration::from_millis(3));
    nodes[2].link.delay(Duration::from_millis(1));
    let churn = nodes.iter().zip(0..).map(async |(node, at): (&Node, usize)| {
        // Some users have connections on several nodes.
        for round in 0..25 {
            let mut client = node.connect().await;
            client.join(ROOM, user(&format!("u{}", (round * (at + 1)) % 7))).await;
            match round % 3 {
                0 => client.unsubscribe(ROOM).await,
                1 => client.reset(),
                _ => client.close().await,
            }
        }
    });
    let observers = nodes.iter().zip(0..).map(async |(node, at): (&Node, usize)| {
        let mut observers = Vec::new();
        for number in 0..6 {
            let mut client = node.connect().await;
            let roster = Roster::of(&mut client, user(&format!("w{at}-{number}"))).await;
            observers.push((client, roster));
        }
        observers
    });
    let (_, observers) = tokio::join!(join_all(churn), join_all(observers));
    let mut observers: Vec<_> = observers.into_iter().flatten().collect();
    nodes[0].has_subscriptions(ROOM, 18).await;
    let users = "/apps/1001/channels/presence-room?info=user_count";
    answers(&nodes[1], users, json!({ "occupied": true, "user_count": 18 })).await;
    nodes[2].publish(ROOM, "marker", "").await;
    let all: Vec<_> = (0..3).flat_map(|at| (0..6).map(move |number| format!("w{at}-{number}"))).collect();
    for (client, roster) in &mut observers {
        roster.follow(client).await;
        assert_eq!(roster.0.keys().cloned().collect::<Vec<_>>(), all);
    }
}

#[tokio::test]
async fn the_member_limit_of_a_presence_channel_holds_on_all_nodes() {
    let nodes: [Node; 3] = nodes_with(|setup| setup.app.limits.presence_members_max = 100).await;
    let mut members = Vec::new();
    for number in 0..99 {
        let mut client = nodes[0].connect().await;
        client.join(ROOM, user(&number.to_string())).await;
        members.push(client);
    }
    let mut observer = nodes[0].connect().await;
    let mut roster = Roster::of(&mut observer, user("99")).await;
    // A node without a subscriber does not know the members yet, a node with one does.
    for _ in 0..2 {
        let mut refused = nodes[1].connect().await;
        refused.ask_as(ROOM, &user("100").to_string()).await;
        refused.expect_refusal(ROOM, "LimitReached", 4100, Value::Null).await;
        // The client retries.
        refused.ask_as(ROOM, &user("100").to_string()).await;
        refused.expect_refusal(ROOM, "LimitReached", 4100, Value::Null).await;
        refused.fence().await;
        let mut second_connection = nodes[1].connect().await;
        let there = second_connection.join(ROOM, user("7")).await;
        assert_eq!(there["count"], 100);
        members.push(second_connection);
    }
    nodes[1].wait_for_rejections(Limit::PresenceMembers, 4).await;
    let users = nodes[2].get_json("/apps/1001/channels/presence-room/users").await;
    assert_eq!(users["users"].as_array().unwrap().len(), 100);
    // Refused members were not reported.
    nodes[2].publish(ROOM, "marker", "").await;
    roster.follow(&mut observer).await;
    assert_eq!(roster.0.len(), 100);
    assert!(!roster.0.contains_key("100"));
    // Another user can join once a member has left.
    members.remove(0).close().await;
    answers(
        &nodes[1],
        "/apps/1001/channels/presence-room?info=user_count",
        json!({ "occupied": true, "user_count": 99 }),
    )
    .await;
    let mut accepted = nodes[2].connect().await;
    assert_eq!(accepted.join(ROOM, user("100")).await["count"], 100);
}

/// A new client that asks to join; returns whether it was admitted.
async fn try_join(node: &Node, id: String) -> (Client, bool) {
    let mut client = node.connect().await;
    client.ask_as(ROOM, &user(&id).to_string()).await;
    loop {
        match client.next().await["event"].as_str().unwrap() {
            "pusher_internal:subscription_succeeded" => return (client, true),
            "pusher:subscription_error" => return (client, false),
            _ => {}
        }
    }
}

#[tokio::test]
async fn racing_joins_never_exceed_the_member_limit() {
    const MAX: usize = 4;
    let small = |setup: &mut Setup| setup.app.limits.presence_members_max = MAX;
    for round in 0..5 {
        let nodes: [Node; 3] = nodes_with(small).await;
        nodes[round % 3].link.delay(Duration::from_millis(2));
        let asking = nodes.iter().zip(0..).flat_map(|(node, at): (&Node, usize)| {
            (0..4).map(move |number| try_join(node, format!("{at}-{number}")))
        });
        let asked = join_all(asking).await;
        let got = asked.iter().filter(|(_, got)| *got).count();
        assert!((1..=MAX).contains(&got), "{got}");
        let users = "/apps/1001/channels/presence-room?info=user_count";
        answers(&nodes[0], users, json!({ "occupied": true, "user_count": got })).await;
    }
}
