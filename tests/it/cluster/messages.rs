//! Events on all nodes: order, exceptions, cache channels.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use pusherd::cluster::broker::{Broker as _, Incoming, Topic};
use pusherd::cluster::coordinator::Coordinator as _;
use serde_json::{Value, json};
use tracing::Level;

use super::{answers, marker, subscribers};
use crate::harness::{Log, NEWS, Node, nodes};

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

/// The topic of the channel `news`.
fn news() -> Topic {
    Topic::Group("c/1001/news".into())
}

#[tokio::test]
async fn malformed_messages_are_dropped() {
    let [node]: [Node; 1] = nodes().await;
    let mut client = node.connect().await;
    client.subscribe(NEWS).await;
    let garbage = ["", "1", "e", "1e", "0Me{}", "11", "1m", "1Mx1234567", "1Mc", "1M?", "1M.", "1M1e{}"]
        .map(Bytes::from);
    let kinds = (0..=255).flat_map(|byte| [vec![b'1', byte, 0xff, 0], vec![b'1', b'M', byte, 0xff, 0]]);
    // Digits are the versions of later releases, which are dropped as well.
    let garbage: Vec<_> = garbage.into_iter().chain(kinds.map(Bytes::from)).collect();
    for topic in [news(), Topic::Nodes] {
        let messages = garbage.iter().map(|garbage| (topic.clone(), garbage.clone()));
        node.link.publish(messages.collect()).await.unwrap();
    }
    marker(&node, NEWS, &mut [&mut client]).await;
    assert_eq!(node.metrics.cluster.dropped.get(), 2 * garbage.len() as u64);
    node.is_ready(true).await;
}

#[tokio::test]
async fn messages_of_a_later_release_are_dropped_and_counted_and_logged_once() {
    let from = [b"1M1".as_slice(), &[0xab; 16], b"of a request"].concat();
    let (to_group, to_nodes) = (news(), Topic::Nodes);
    for (topic, message, node_id) in [
        (&to_group, b"2M of an envelope".as_slice(), None),
        (&to_group, b"1M3 of an event", None),
        (&to_group, b"1K000000000000000000013 of a cached event", None),
        (&to_nodes, b"2M of an envelope", None),
        (&to_nodes, b"1M1 cut short", None),
        (&to_nodes, &from, Some("ab".repeat(16))),
    ] {
        let (log, _logging) = Log::start(Level::WARN);
        let [node]: [Node; 1] = nodes().await;
        let mut client = node.connect().await;
        client.subscribe(NEWS).await;
        let messages = vec![(topic.clone(), Bytes::copy_from_slice(message)); 3];
        node.link.publish(messages).await.unwrap();
        // Nothing of them arrives, and the node goes on.
        marker(&node, NEWS, &mut [&mut client]).await;
        assert_eq!(node.metrics.cluster.dropped.get(), 3);
        let line = log.line(Level::WARN, "another node has a newer release of pusherd");
        assert!(line.contains("count=1"), "{line}");
        match node_id {
            Some(id) => assert!(line.contains(&format!("node={id}")), "{line}"),
            None => assert!(!line.contains("node="), "{line}"),
        }
        node.is_ready(true).await;
    }
}

#[tokio::test]
async fn a_cached_event_of_a_later_release_is_a_cache_miss() {
    let (log, _logging) = Log::start(Level::WARN);
    let [node]: [Node; 1] = nodes().await;
    let later = Bytes::from("3 of a later release");
    node.link.publish_cached("c/1001/cache-x".into(), later, Duration::from_secs(60)).await.unwrap();
    let mut client = node.connect().await;
    client.subscribe("cache-x").await;
    client.expect_event("pusher:cache_miss", "cache-x").await;
    let info = node.get_json("/apps/1001/channels/cache-x?info=cache").await;
    assert_eq!(info["cache"], Value::Null, "{info}");
    assert_eq!(node.metrics.cluster.dropped.get(), 2);
    log.line(Level::WARN, "another node has a newer release of pusherd");
    node.publish("cache-x", "e", "1").await;
    client.expect(json!({ "event": "e", "channel": "cache-x", "data": "1" })).await;
}

#[tokio::test]
async fn an_event_between_nodes_is_the_text_that_subscribers_get() {
    let [node]: [Node; 1] = nodes().await;
    let mut client = node.connect().await;
    client.subscribe(NEWS).await;
    let (observer, mut published) = node.broker.connect();
    observer.subscribe(news()).await.unwrap();
    node.publish(NEWS, "e", "\u{fc}").await;
    let text = client.next_text().await;
    let message = loop {
        if let Incoming::Message(_, message) = published.recv().await.unwrap() {
            break message;
        }
    };
    assert_eq!(message, format!("1Me{text}"));
    // Release 0.1 writes the same. A position, which later releases may give, changes nothing for subscribers.
    let position = format!("{:020}{:020}", u64::MAX, 7);
    let ours = client.id.split_once('.').unwrap();
    let ours = [ours.0, ours.1].map(|half| half.parse::<u32>().unwrap().to_be_bytes()).concat();
    let to_all_but = |socket: &[u8]| [format!("1M2{position}x").as_bytes(), socket, text.as_bytes()].concat();
    for (message, is_delivered) in [
        (format!("1Me{text}").into_bytes(), true),
        (format!("1M2{position}e{text}").into_bytes(), true),
        (to_all_but(&[0; 8]), true),
        (to_all_but(&ours), false),
    ] {
        observer.publish(vec![(news(), message.into())]).await.unwrap();
        if is_delivered {
            assert_eq!(client.next_text().await, text);
        }
    }
    marker(&node, NEWS, &mut [&mut client]).await;
    assert_eq!(node.metrics.cluster.dropped.get(), 0);
}
