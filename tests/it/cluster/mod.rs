//! The nodes of a cluster act as one server: clients of any node see the same.

mod failures;
mod forms;
mod messages;
mod presence;
mod queries;
mod users;

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Client, NEWS, Node, Server, eventually, in_time};
use crate::presence::ROOM;

const EVENTS: &str = "/apps/1001/events";

/// A subscriber of `channel` on each node.
async fn subscribers(nodes: &[Node], channel: &str) -> Vec<Client> {
    join_all(nodes.iter().map(async |node| {
        let mut client = node.connect().await;
        client.subscribe(channel).await;
        client
    }))
    .await
}

/// Checks that `clients` get nothing else before this publish.
async fn marker(server: &Server, channel: &str, clients: &mut [&mut Client]) {
    server.publish(channel, "marker", "").await;
    for client in clients {
        client.expect(json!({ "event": "marker", "channel": channel, "data": "" })).await;
    }
}

/// Waits until a node answers `expected`.
async fn answers(server: &Server, target: &str, expected: Value) {
    eventually(format_args!("{target} is {expected}"), async || {
        let answer = server.get(target).await;
        answer.status == 200 && answer.ok() == expected
    })
    .await;
}

/// The members of the room as a client sees them: the list that it got, and the events after it.
#[derive(Debug)]
struct Roster(BTreeMap<String, Value>);

impl Roster {
    async fn of(client: &mut Client, channel_data: Value) -> Self {
        let there = client.join(ROOM, channel_data).await;
        let members = there["hash"].as_object().unwrap();
        assert_eq!(there["count"], json!(members.len()));
        Self(members.clone().into_iter().collect())
    }

    /// Reads frames, each of which must be consistent, until the members are `ids`.
    async fn reaches(&mut self, client: &mut Client, node: &Node, ids: &[&str]) {
        // Nodes have some heartbeats to register again, so several markers may be needed.
        in_time(format_args!("the members are {ids:?}"), async {
            while !self.0.keys().map(String::as_str).eq(ids.iter().copied()) {
                node.publish(ROOM, "marker", "").await;
                self.follow(client).await;
            }
        })
        .await;
    }

    /// Reads frames up to the marker, each of which must be consistent.
    async fn follow(&mut self, client: &mut Client) {
        loop {
            let frame = client.next().await;
            let data = || serde_json::from_str::<Value>(frame["data"].as_str().unwrap()).unwrap();
            let id = || data()["user_id"].as_str().unwrap().to_owned();
            match frame["event"].as_str().unwrap() {
                "pusher_internal:member_added" => {
                    let before = self.0.insert(id(), data()["user_info"].clone());
                    assert_eq!(before, None, "a present member is not added: {frame}");
                }
                "pusher_internal:member_removed" => {
                    assert!(self.0.remove(&id()).is_some(), "an absent member is not removed: {frame}");
                }
                "marker" => return,
                _ => panic!("{frame}"),
            }
        }
    }
}

impl Client {
    /// Reads counts of `news` until this one.
    async fn reaches_count(&mut self, count: usize) {
        while self.next_count().await != Some(count) {}
    }

    async fn next_count(&mut self) -> Option<usize> {
        let data = self.expect_event("pusher_internal:subscription_count", NEWS).await;
        data["subscription_count"].as_u64().map(|count| count as usize)
    }
}
