//! Events on all nodes: order, exceptions, cache channels.

use std::time::Duration;

use futures_util::future::join_all;
use pusherd::cluster::broker::{Broker as _, Topic};
use serde_json::{Value, json};

use super::{answers, marker, subscribers};
use crate::harness::{NEWS, Node, nodes};

#[tokio::test]
async fn subscribers_on_all_nodes_get_the_events_of_a_channel_in_one_order() {
    let nodes: [Node; 3] = nodes().await;
    let mut clients = subscribers(&nodes, NEWS).await;
    // Replies to one node are slower than those to the others.
    nodes[1].link.delay(Duration::from_millis(2));
    let publishers = nodes.iter().zip(0..).map(async |(node, by): (&Node, usize)| {
        for number in 0..40 {
            node.publish(NEWS, "n", &format!("{by}/{number}")).await;
        }
    });
    join_all(publishers).await;
    let mut seen = Vec::new();
    for client in &mut clients {
        let mut order = Vec::new();
        for _ in 0..3 * 40 {
            order.push(client.next().await["data"].as_str().unwrap().to_owned());
        }
        client.fence().await;
        seen.push(order);
    }
    assert!(seen.iter().all(|order| *order == seen[0]), "{seen:?}");
    for by in 0..3 {
        let of: Vec<_> = seen[0].iter().filter_map(|data| data.strip_prefix(&format!("{by}/"))).collect();
        let numbers: Vec<_> = (0..40).map(|number| number.to_string()).collect();
        assert_eq!(of, numbers, "events of one publisher keep their order");
    }
}

#[tokio::test]
async fn an_event_skips_the_socket_that_it_excepts_on_any_node() {
    let nodes: [Node; 2] = nodes().await;
    let [mut one, mut two] = subscribers(&nodes, NEWS).await.try_into().ok().unwrap();
    for node in &nodes {
        let event = json!({ "name": "e", "channel": NEWS, "data": "", "socket_id": one.id });
        node.publish_json(event).await;
        two.expect(json!({ "event": "e", "channel": NEWS, "data": "" })).await;
    }
    let batch = json!({ "batch": [
        { "name": "a", "channel": NEWS, "data": "", "socket_id": two.id },
        { "name": "b", "channel": NEWS, "data": "", "socket_id": one.id },
    ] });
    nodes[0].post_json("/apps/1001/batch_events", batch).await.ok();
    one.expect(json!({ "event": "a", "channel": NEWS, "data": "" })).await;
    two.expect(json!({ "event": "b", "channel": NEWS, "data": "" })).await;
    marker(&nodes[1], NEWS, &mut [&mut one, &mut two]).await;
}

#[tokio::test]
async fn client_events_reach_all_nodes_except_their_sender() {
    let nodes: [Node; 2] = nodes().await;
    let mut here = nodes[0].connect().await;
    let [mut beside, mut there] = [nodes[0].connect().await, nodes[1].connect().await];
    let room = "private-room";
    for client in [&mut here, &mut beside, &mut there] {
        client.subscribe(room).await;
    }
    here.whisper(room, "client-x", json!({ "on": true })).await;
    for client in [&mut beside, &mut there] {
        let data = json!({ "on": true });
        let frame = client.next().await;
        assert_eq!(frame["event"], "client-x", "{frame}");
        let given = &frame["data"];
        assert!(*given == data || given.as_str() == Some(&data.to_string()), "{frame}");
    }
    marker(&nodes[1], room, &mut [&mut here, &mut beside, &mut there]).await;
}

#[tokio::test]
async fn after_its_acknowledgement_a_subscriber_gets_every_event_once() {
    let nodes: [Node; 2] = nodes().await;
    let publishing = async {
        for number in 0..300_u32 {
            nodes[0].publish(NEWS, "n", &number.to_string()).await;
        }
    };
    let subscribing = async {
        for _ in 0..10 {
            let mut client = nodes[1].connect().await;
            client.subscribe(NEWS).await;
            let number = |frame: Value| frame["data"].as_str().unwrap().parse::<u32>().unwrap();
            let first = number(client.next().await);
            for next in first + 1..first + 5 {
                assert_eq!(number(client.next().await), next);
            }
        }
    };
    tokio::select! {
        () = subscribing => {}
        () = publishing => panic!("the subscribers were too slow"),
    }
}

#[tokio::test]
async fn a_cache_channel_has_one_cached_event_for_all_nodes() {
    let channel = "cache-btc";
    let nodes: [Node; 3] = nodes().await;
    let price = |price: &str| json!({ "event": "price", "channel": channel, "data": price });
    let mut early = nodes[0].connect().await;
    early.subscribe(channel).await;
    assert_eq!(early.next().await["event"], "pusher:cache_miss");
    nodes[0].publish(channel, "price", "1").await;
    early.expect(price("1")).await;
    nodes[1].publish(channel, "price", "2").await;
    early.expect(price("2")).await;
    for node in &nodes {
        let [mut first, mut second] = node.connect_many().await;
        for client in [&mut first, &mut second] {
            client.subscribe(channel).await;
            client.expect(price("2")).await;
            client.fence().await;
        }
        let info = node.get_json(&format!("/apps/1001/channels/{channel}?info=cache")).await;
        assert_eq!(info["cache"]["data"], "2", "{info}");
    }
    early.fence().await;
    // A cached event outlives its subscribers, and the node that published it.
    let [one, two, three] = nodes;
    drop(early);
    two.crash_with_expired_lease();
    let nobody = json!({ "occupied": false });
    answers(&one, &format!("/apps/1001/channels/{channel}"), nobody).await;
    let mut late = three.connect().await;
    late.subscribe(channel).await;
    late.expect(price("2")).await;
    // Client events are not cached.
    late.fence().await;
}

#[tokio::test]
async fn a_node_that_reconnects_delivers_the_cached_event_that_it_missed() {
    let nodes: [Node; 2] = nodes().await;
    let mut client = nodes[0].connect().await;
    client.send(json!({ "event": "pusher:subscribe", "data": { "channel": "cache-x" } })).await;
    client.expect_subscribed("cache-x").await;
    client.expect_event("pusher:cache_miss", "cache-x").await;
    nodes[0].link.disconnect();
    nodes[0].is_ready(false).await;
    nodes[1].publish("cache-x", "e", "missed").await;
    nodes[0].link.reconnect();
    let missed = json!({ "event": "e", "channel": "cache-x", "data": "missed" });
    client.expect(missed.clone()).await;
    let mut late = nodes[0].connect().await;
    late.subscribe("cache-x").await;
    late.expect(missed).await;
    marker(&nodes[1], "cache-x", &mut [&mut client, &mut late]).await;
}

#[tokio::test]
async fn malformed_messages_are_dropped() {
    let [node]: [Node; 1] = nodes().await;
    let mut client = node.connect().await;
    client.subscribe(NEWS).await;
    let topics = [Topic::Group("c/1001/news".into()), Topic::Nodes];
    for topic in topics {
        for garbage in
            ["", "e", "\u{1}", "\u{1}\u{1}", "\u{1}m", "\u{1}me\u{fffd}", "mex", "mx1234567", "c", "?"]
        {
            node.link.publish(vec![(topic.clone(), garbage.into())]).await.unwrap();
        }
        for byte in 0..=255 {
            node.link.publish(vec![(topic.clone(), vec![1, byte, 0xff, 0].into())]).await.unwrap();
        }
    }
    marker(&node, NEWS, &mut [&mut client]).await;
    node.is_ready(true).await;
}
