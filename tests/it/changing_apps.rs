//! Apps that are replaced while the server runs: other settings, new apps, apps that are gone.

use pusherd::apps::{App, KeyPair};
use pusherd::limits::{Limit, Rate};
use pusherd::protocol::signature::SigningKey;
use serde_json::{Value, json};

use crate::harness::{
    Client, DEMO, Key, NEWS, Node, OTHER, Request, Server, eventually, in_time, nodes_with,
};

/// An app that servers do not have when they start.
const NEW: Key = Key { app_id: "1003", key: "new-key", secret: "new-secret" };

impl Server {
    /// Replaces the demo app by one that `change` has adjusted.
    fn change_app(&self, change: impl FnOnce(&mut App)) {
        let mut app = DEMO.app();
        change(&mut app);
        self.apps.replace([app, OTHER.app()]);
    }
}

async fn publish(server: &Server, key: &Key, channel: &str) -> Value {
    let body = json!({ "name": "e", "channel": channel, "data": "" }).to_string();
    server.send(Request::post(&format!("/apps/{}/events", key.app_id), body).signed_with(key)).await.ok()
}

async fn subscriber(server: &Server, key: &Key, channel: &str) -> Client {
    let mut client = server.connect_to(&format!("/app/{}", key.key)).await;
    client.subscribe(channel).await;
    client
}

/// The next frame must be an event that was published with [`publish`].
async fn expect(client: &mut Client, name: &str) {
    client.expect(json!({ "event": name, "channel": NEWS, "data": "" })).await;
}

async fn connections(server: &Server, key: &Key) -> Value {
    let target = format!("/apps/{}/connections", key.app_id);
    server.send(Request::get(&target).signed_with(key)).await.ok()["connections"].clone()
}

#[tokio::test]
async fn connections_have_the_new_settings_from_their_next_message_on() {
    let server = Server::start().await;
    let [mut sender, mut other] = server.connect_many().await;
    sender.subscribe("private-room").await;
    other.subscribe("private-room").await;
    sender.whisper("private-room", "client-a", json!(1)).await;
    other.expect(json!({ "event": "client-a", "channel": "private-room", "data": 1 })).await;
    server.change_app(|app| app.client_events = false);
    sender.whisper("private-room", "client-a", json!(2)).await;
    sender.expect_error(Value::Null).await;
    server.change_app(|app| app.limits.channels_per_connection_max = 1);
    sender.whisper("private-room", "client-a", json!(3)).await;
    other.expect(json!({ "event": "client-a", "channel": "private-room", "data": 3 })).await;
    sender.ask("second").await;
    sender.expect_refusal("second", "LimitReached", 429, Value::Null).await;
    server.change_app(|app| app.limits.message_bytes_max = 100);
    sender.send_text(&"x".repeat(101)).await;
    sender.expect_close(1009).await;
    other.fence().await;
}

#[tokio::test]
async fn settings_of_one_app_change_together() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    client.subscribe("private-room").await;
    // Both apps accept one length of names and one of data: a mixture of them would accept what neither does.
    let short =
        |app: &mut App| (app.limits.event_name_chars_max, app.limits.client_event_data_bytes_max) = (8, 40);
    let long =
        |app: &mut App| (app.limits.event_name_chars_max, app.limits.client_event_data_bytes_max) = (40, 8);
    for round in 0..50 {
        server.change_app(if round % 2 == 0 { short } else { long });
        client.whisper("private-room", &format!("client-{}", "n".repeat(20)), json!("d".repeat(20))).await;
        client.expect_error(Value::Null).await;
        client = server.connect().await;
        client.subscribe("private-room").await;
    }
}

#[tokio::test]
async fn connections_of_a_removed_app_are_closed_and_those_of_others_stay() {
    let server = Server::start().await;
    let mut removed = subscriber(&server, &DEMO, NEWS).await;
    let mut stays = subscriber(&server, &OTHER, NEWS).await;
    server.apps.replace([OTHER.app()]);
    // It sends nothing.
    assert_eq!(removed.expect_close(4001).await, "This app was removed");
    publish(&server, &OTHER, NEWS).await;
    expect(&mut stays, "e").await;
    server.get("/apps/1001/channels").await.rejected(404);
    server.upgrade("/app/demo-key", &[]).await.rejected(4001).await;
}

#[tokio::test]
async fn connections_of_a_disabled_app_are_closed() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    server.change_app(|app| app.enabled = false);
    client.expect_close(4003).await;
    server.get("/apps/1001/channels").await.rejected(403);
    server.change_app(|_| {});
    server.connect().await.subscribe(NEWS).await;
}

#[tokio::test]
async fn an_app_that_appears_has_everything_that_others_have() {
    let server = Server::start().await;
    server.upgrade("/app/new-key", &[]).await.rejected(4001).await;
    server.apps.replace([DEMO.app(), OTHER.app(), NEW.app()]);
    let mut client = subscriber(&server, &NEW, NEWS).await;
    let body = json!({ "name": "once", "channel": NEWS, "data": "" }).to_string();
    for is_repeat in [false, true] {
        let request =
            Request::post("/apps/1003/events", &*body).header("Idempotency-Key", "k").signed_with(&NEW);
        let answer = server.send(request).await;
        assert_eq!(answer.ok(), json!({}));
        assert_eq!(answer.header("idempotent-replayed").is_some(), is_repeat);
    }
    expect(&mut client, "once").await;
    let channels = server.send(Request::get("/apps/1003/channels").signed_with(&NEW)).await.ok();
    assert_eq!(channels, json!({ "channels": { NEWS: {} } }));
    publish(&server, &DEMO, NEWS).await;
    client.fence().await;
}

#[tokio::test]
async fn a_path_prefix_that_appears_is_served() {
    let server = Server::start().await;
    server.upgrade("/rt/app/demo-key", &[]).await.rejected(4005).await;
    server.change_app(|app| app.path_prefix = "/rt".into());
    server.connect_to("/rt/app/demo-key").await.fence().await;
    server.change_app(|_| {});
    server.upgrade("/rt/app/demo-key", &[]).await.rejected(4005).await;
}

#[tokio::test]
async fn keys_are_rotated_without_a_restart() {
    let server = Server::start().await;
    let mut client = subscriber(&server, &DEMO, NEWS).await;
    let new = Key { secret: "rotated", ..DEMO };
    server.change_app(|app| {
        app.keys = vec![KeyPair { key: DEMO.key.into(), secret: SigningKey::new("rotated") }];
    });
    publish(&server, &new, NEWS).await;
    expect(&mut client, "e").await;
    let body = json!({ "name": "e", "channel": NEWS, "data": "" }).to_string();
    server.post("/apps/1001/events", body).await.rejected(401);
    client.send(client.signed_subscribe("private-a", None)).await;
    client.expect_unauthorized("private-a").await;
}

#[tokio::test]
async fn limits_that_change_count_what_is_there() {
    let server = Server::start().await;
    let [mut first, second] = server.connect_many().await;
    server.change_app(|app| app.limits.connections_max = Some(2));
    server.upgrade("/app/demo-key", &[]).await.rejected(4004).await;
    first.fence().await;
    second.close().await;
    server.has_connections(1).await;
    let _third = server.connect().await;
    server.assert_limit_rejections(Limit::AppConnections, 1);
    first.subscribe("a").await;
    server.change_app(|app| app.limits.channels_max = Some(1));
    first.ask("b").await;
    first.expect_refusal("b", "LimitReached", 429, Value::Null).await;
}

#[tokio::test]
async fn rates_that_change_hold_at_once() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    server.change_app(|app| app.limits.requests_per_second = Some(1));
    let statuses =
        [server.get("/apps/1001/channels").await.status, server.get("/apps/1001/channels").await.status];
    assert_eq!(statuses, [200, 429]);
    server.change_app(|app| app.limits.messages = Rate { per_second: 1, burst: 2 });
    client.send_all((0..3).map(|_| json!({ "event": "pusher:ping", "data": {} }))).await;
    for _ in 0..2 {
        assert_eq!(client.next().await["event"], "pusher:pong");
    }
    client.expect_close(4100).await;
}

#[tokio::test]
async fn permits_of_connections_are_released_whatever_happened_to_their_app() {
    let server = Server::start().await;
    let clients: [Client; 3] = server.connect_many().await;
    server.change_app(|app| app.limits.connections_max = Some(100));
    assert_eq!(connections(&server, &DEMO).await, json!(3));
    server.apps.replace([OTHER.app()]);
    server.change_app(|app| app.limits.connections_max = Some(1));
    // They were open when the app was removed, so some may have been closed, and some adopted by the new app.
    for client in clients {
        client.reset();
    }
    server.has_connections(0).await;
    server.connect().await.fence().await;
}

#[tokio::test]
async fn an_app_that_returns_begins_without_its_former_connections_and_channels() {
    let server = Server::start().await;
    let mut member = server.connect().await;
    member.join("presence-room", json!({ "user_id": "7" })).await;
    server.apps.replace([OTHER.app()]);
    member.expect_close(4001).await;
    member.ends().await;
    server.change_app(|_| {});
    eventually("its channels are empty", async || {
        server.get_json("/apps/1001/channels").await == json!({ "channels": {} })
    })
    .await;
    server.has_connections(0).await;
}

#[tokio::test]
async fn nothing_is_lost_or_repeated_while_settings_change() {
    const EVENTS: usize = 300;
    let server = Server::start().await;
    let mut client = subscriber(&server, &DEMO, NEWS).await;
    let mut http = server.http().await;
    for number in 0..EVENTS {
        server.change_app(|app| app.limits.outbox_bytes_max = 1_000_000 + number);
        let body = json!({ "name": number.to_string(), "channel": NEWS, "data": "" }).to_string();
        assert_eq!(http.send(Request::post("/apps/1001/events", body).signed()).await.ok(), json!({}));
    }
    for number in 0..EVENTS {
        expect(&mut client, &number.to_string()).await;
    }
    client.fence().await;
}

/// Replaces the apps of all nodes.
fn replace_on_all(nodes: &[Node], apps: impl Fn() -> Vec<App>) {
    nodes.iter().for_each(|node| node.apps.replace(apps()));
}

#[tokio::test]
async fn an_app_that_appears_in_a_cluster_is_one_app_on_all_nodes() {
    let nodes = nodes_with::<2>(|_| {}).await;
    let limited = || {
        let mut app = NEW.app();
        app.limits.connections_max = Some(2);
        vec![DEMO.app(), app]
    };
    replace_on_all(&nodes, limited);
    let mut here = subscriber(&nodes[0], &NEW, NEWS).await;
    let mut there = subscriber(&nodes[1], &NEW, NEWS).await;
    publish(&nodes[0], &NEW, NEWS).await;
    expect(&mut here, "e").await;
    expect(&mut there, "e").await;
    nodes[1].upgrade("/app/new-key", &[]).await.rejected(4004).await;
    assert_eq!(connections(&nodes[0], &NEW).await, json!(2));

    // Removed: nothing of it is left on any node, so that a later app with its id begins with nothing.
    replace_on_all(&nodes, || vec![DEMO.app()]);
    here.expect_close(4001).await;
    there.expect_close(4001).await;
    replace_on_all(&nodes, limited);
    for node in &nodes {
        eventually("no channel is occupied", async || {
            let channels = node.send(Request::get("/apps/1003/channels").signed_with(&NEW)).await;
            channels.status == 200 && channels.ok() == json!({ "channels": {} })
        })
        .await;
    }
    eventually("all permits were released", async || connections(&nodes[0], &NEW).await == json!(0)).await;
    // A node returns unused permits once a second.
    let mut clients = Vec::new();
    in_time("the other node has all permits", async {
        while clients.len() < 2 {
            let mut client = nodes[1].upgrade("/app/new-key", &[]).await.client();
            if client.next().await["event"] == "pusher:connection_established" {
                clients.push(client);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn members_of_a_removed_app_leave_its_presence_channels_in_a_cluster() {
    let nodes = nodes_with::<2>(|_| {}).await;
    let mut clients = [nodes[0].connect().await, nodes[1].connect().await];
    for (client, id) in clients.iter_mut().zip(["1", "2"]) {
        client.join("presence-room", json!({ "user_id": id })).await;
    }
    clients[0].expect_event("pusher_internal:member_added", "presence-room").await;
    // Removed from one node only: the other node sees the member leave.
    nodes[1].apps.replace([OTHER.app()]);
    clients[1].expect_close(4001).await;
    let removed = clients[0].expect_event("pusher_internal:member_removed", "presence-room").await;
    assert_eq!(removed, json!({ "user_id": "2" }));
    let users = nodes[0].get_json("/apps/1001/channels/presence-room/users").await;
    assert_eq!(users, json!({ "users": [{ "id": "1" }] }));
}
