//! Queries of the HTTP API on any node.

use serde_json::json;

use super::EVENTS;
use crate::harness::{NEWS, Node, OTHER, Request, nodes};
use crate::presence::{ROOM, user};

#[tokio::test]
async fn every_node_answers_queries_for_the_whole_cluster() {
    let nodes: [Node; 3] = nodes().await;
    let mut clients = Vec::new();
    for (node, id) in nodes.iter().zip(["1", "2", "2"]) {
        let mut client = node.connect().await;
        client.subscribe(NEWS).await;
        client.join(ROOM, user(id)).await;
        clients.push(client);
    }
    let mut beside = nodes[2].connect().await;
    beside.subscribe(NEWS).await;
    beside.subscribe("private-alone").await;
    let [presence, counted] = [
        json!({ "occupied": true, "user_count": 2, "subscription_count": 3 }),
        json!({ "occupied": true, "subscription_count": 4 }),
    ];
    for node in &nodes {
        let get = async |target: &str| node.get_json(&format!("/apps/1001/{target}")).await;
        assert_eq!(get("connections").await, json!({ "connections": 4 }));
        let all = json!({ "news": {}, "presence-room": {}, "private-alone": {} });
        assert_eq!(get("channels").await, json!({ "channels": all }));
        let some = json!({ "presence-room": { "user_count": 2 } });
        assert_eq!(
            get("channels?filter_by_prefix=presence-&info=user_count").await,
            json!({ "channels": some })
        );
        let all = json!({
            "news": { "subscription_count": 4 },
            "presence-room": { "subscription_count": 3 },
            "private-alone": { "subscription_count": 1 },
        });
        assert_eq!(get("channels?info=subscription_count").await, json!({ "channels": all }));
        assert_eq!(get("channels/news?info=subscription_count").await, counted);
        assert_eq!(get("channels/presence-room?info=user_count,subscription_count").await, presence);
        assert_eq!(get("channels/nobody").await, json!({ "occupied": false }));
        assert_eq!(
            get("channels/presence-room/users").await,
            json!({ "users": [{ "id": "1" }, { "id": "2" }] })
        );
        let event = json!({ "name": "e", "data": "", "channels": [ROOM, NEWS], "info": "user_count,subscription_count" });
        let info = node.post_json(EVENTS, event).await.ok();
        let mut presence = presence.clone();
        presence.as_object_mut().unwrap().remove("occupied");
        assert_eq!(
            info,
            json!({ "channels": { "presence-room": presence, "news": { "subscription_count": 4 } } })
        );
        // Channels of another app are not listed.
        let theirs = Request::get("/apps/1002/channels").signed_with(&OTHER);
        assert_eq!(node.send(theirs).await.ok(), json!({ "channels": {} }));
    }
}
