//! The HTTP API as server SDKs use it. Source: protocol.md §8.
//!
//! A test of a rejected publish also asserts that nothing was published.

mod publish;
mod queries;
mod signatures;
mod transport;

use serde_json::{Value, json};

use crate::harness::{Client, NEWS, Server};

const EVENTS: &str = "/apps/1001/events";
const BATCH: &str = "/apps/1001/batch_events";
const CHANNELS: &str = "/apps/1001/channels";

/// A body for [`EVENTS`] that publishes to `news`.
fn good() -> String {
    json!({ "name": "e", "channel": NEWS, "data": "" }).to_string()
}

fn event(channel: &str, name: &str) -> Value {
    json!({ "event": name, "channel": channel, "data": "" })
}

/// A server, and a subscriber of `news`.
async fn with_listener() -> (Server, Client) {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    (server, client)
}

/// Two users in `presence-room`, one of them with two connections, and one subscriber of `news`.
async fn with_company() -> (Server, [Client; 3]) {
    let server = Server::start().await;
    let mut clients: [Client; 3] = server.connect_many().await;
    for (client, id) in clients.iter_mut().zip(["7", "8", "8"]) {
        client.ask_as("presence-room", &json!({ "user_id": id }).to_string()).await;
    }
    clients[0].ask(NEWS).await;
    server.has_subscriptions("presence-room", 3).await;
    server.has_subscriptions(NEWS, 1).await;
    (server, clients)
}
