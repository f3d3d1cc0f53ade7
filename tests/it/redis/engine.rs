//! The engine while its server is available.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pusherd::cluster::broker::{Broker as _, Incoming, Topic};
use pusherd::cluster::coordinator::{CachedMessage, Coordinator as _, Record, partition_of};
use pusherd::cluster::envelope::{self, Envelope};
use pusherd::cluster::group::{Change, MemberId, NodeId, Rejected, Snapshot};
use pusherd::cluster::redis::Options;

use super::{LEASE, Log, Node, group, keys_left};
use crate::harness::eventually;
use crate::harness::redis::redis_server;

#[tokio::test]
async fn a_large_node_is_reaped_in_pieces() {
    let server = redis_server().await;
    let node = Node::connected(server.options()).await;
    let groups: Vec<_> =
        (0..).map(|number| format!("g{number}")).filter(|name| partition_of(name) == 3).take(150).collect();
    for (name, number) in groups.iter().zip(1..) {
        assert!(node.carry_out(node.update(name, number).holds()).await.is_ok());
    }
    let mut large = node.update(&groups[0], 1000).holds();
    (0..2500).for_each(|at| large.0.present.push((MemberId::from(format!("u{at}")), Bytes::new())));
    assert!(node.carry_out(large).await.is_ok());
    let mut pieces = 1;
    while node.redis.reap(3, node.id).await.unwrap() {
        assert!(node.redis.nodes(3).await.unwrap().contains(&node.id), "there is more to take");
        pieces += 1;
    }
    assert!(pieces >= 4, "{pieces}");
    assert_eq!(keys_left(&server).await, [""; 0]);
    assert_eq!(node.carry_out(node.update("g", 2000).holds()).await.is_ok(), partition_of("g") != 3);
    assert_eq!(node.carry_out(node.update(&groups[0], 2001).holds()).await, Err(Rejected::LeaseExpired));
}

#[tokio::test]
async fn a_cached_message_has_one_version_until_its_ttl_is_over() {
    let server = redis_server().await;
    let mut node = Node::connected(server.options()).await;
    let about = group("g");
    let topic = Topic::Group(Arc::clone(&about));
    node.subscribe(&topic).await;
    assert_eq!(node.redis.cached(Arc::clone(&about)).await, Ok(None));
    let mut last = 0;
    for message in ["first", "second\0ü", ""] {
        let ttl = Duration::from_secs(60);
        node.redis.publish_cached(Arc::clone(&about), Bytes::from(message), ttl).await.unwrap();
        let Incoming::Message(_, bytes) = node.next().await else { panic!() };
        let Ok(Envelope::Cached(version, published)) = envelope::open(Some(&about), &bytes) else { panic!() };
        assert!(version > last);
        last = version;
        let CachedMessage { version, message: found, ttl: left } =
            node.redis.cached(Arc::clone(&about)).await.unwrap().unwrap();
        assert_eq!((version, &found, &published), (last, &Bytes::from(message), &found));
        assert!(left <= ttl && left > ttl / 2, "{left:?}");
    }
    node.redis
        .publish_cached(Arc::clone(&about), Bytes::from("short"), Duration::from_millis(1))
        .await
        .unwrap();
    eventually("it expires", async || node.redis.cached(Arc::clone(&about)).await == Ok(None)).await;
    assert_eq!(keys_left(&server).await, [""; 0]);
}

#[tokio::test]
async fn the_shares_of_a_quota_never_exceed_it() {
    let server = redis_server().await;
    let node = Node::connected(server.options()).await;
    let quota = group("connections");
    let [one, two] = [NodeId(1), NodeId(2)];
    let reserve = async |node_id, wanted, max| {
        node.redis.reserve(Arc::clone(&quota), node_id, wanted, max).await.unwrap()
    };
    assert_eq!(reserve(one, 60, 100).await, 60);
    assert_eq!(reserve(two, 60, 100).await, 40);
    assert_eq!(reserve(two, 60, 100).await, 40, "again");
    assert_eq!(reserve(one, 10, 100).await, 10);
    assert_eq!(reserve(two, 60, 100).await, 60);
    assert_eq!(reserve(one, 50, 20).await, 10, "a share stays when the quota becomes smaller");
    assert_eq!(reserve(one, 5, 20).await, 5);
    let partition = partition_of(&quota);
    let nodes = node.redis.nodes(partition).await.unwrap();
    assert!(nodes.contains(&one) && nodes.contains(&two), "nodes with shares are known: {nodes:?}");
    while node.redis.reap(partition, two).await.unwrap() {}
    assert_eq!(reserve(two, 7, 100).await, 7, "a dead node has no share");
    assert_eq!(reserve(one, 100, 100).await, 100);
    assert_eq!(reserve(one, 0, 100).await, 0);
    assert_eq!(keys_left(&server).await, [""; 0]);
}

#[tokio::test]
async fn an_expired_lease_is_not_renewed() {
    let server = redis_server().await;
    let node = Node::connected(server.options()).await;
    let [one, two] = [NodeId(1), NodeId(2)];
    let renew = async |id, is_new, lease| node.redis.renew_lease(id, is_new, lease).await.unwrap();
    assert_eq!(renew(one, false, LEASE).await, Err(Rejected::LeaseExpired), "there is no lease");
    assert_eq!(renew(one, true, LEASE).await.unwrap().alive, [one]);
    assert_eq!(renew(two, true, Duration::from_millis(1)).await.unwrap().alive.len(), 2);
    eventually("it ends", async || renew(one, false, LEASE).await.unwrap().expired == [two]).await;
    assert_eq!(
        renew(two, false, LEASE).await,
        Err(Rejected::LeaseExpired),
        "it has expired, and was not removed"
    );
    assert_eq!(renew(one, false, LEASE).await.unwrap().alive, [one]);
    node.redis.remove_lease(two).await.unwrap();
    assert_eq!(renew(one, false, LEASE).await.unwrap().expired, []);
    server.run::<()>(&["FLUSHALL"]).await;
    assert_eq!(renew(one, false, LEASE).await, Err(Rejected::LeaseExpired), "it was flushed");
}

#[tokio::test]
async fn records_have_one_reader_and_the_next_one_reads_what_is_left() {
    let server = redis_server().await;
    let (mut one, two) = (Node::connected(server.options()).await, Node::connected(server.options()).await);
    let partition = partition_of("g");
    one.subscribe(&Topic::Node(one.id)).await;
    assert_eq!(one.redis.claim_records(partition, one.id, LEASE).await, Ok(true));
    assert_eq!(two.redis.claim_records(partition, two.id, LEASE).await, Ok(false));
    assert_eq!(one.redis.claim_records(partition, one.id, LEASE).await, Ok(true), "renewed");
    assert!(two.carry_out(two.update("g", 1).holds().with("a")).await.is_ok());
    let Incoming::Message(topic, bytes) = one.next().await else { panic!() };
    assert_eq!(topic, Topic::Node(one.id));
    assert_eq!(envelope::open(None, &bytes), Ok(Envelope::Records(partition)));
    let records = one.redis.records(partition, 0, 100).await.unwrap();
    let changes: Vec<_> = records.iter().map(|record| record.transition.change.clone()).collect();
    assert_eq!(changes, [Change::Occupied, Change::Added(Arc::from("a"), Bytes::from("{}"))]);
    let Record { transition, time_ms } = &records[0];
    assert_eq!(*time_ms, transition.version / 1000, "versions are microseconds");
    one.redis.ack_records(partition, vec![transition.version]).await.unwrap();
    two.redis.release_records(partition, two.id).await.unwrap();
    assert_eq!(
        two.redis.claim_records(partition, two.id, LEASE).await,
        Ok(false),
        "only the reader can release it"
    );
    one.redis.release_records(partition, one.id).await.unwrap();
    assert_eq!(two.redis.claim_records(partition, two.id, Duration::from_millis(1)).await, Ok(true));
    assert_eq!(two.redis.records(partition, 0, 100).await.unwrap(), records[1..]);
    eventually("a claim expires", async || one.redis.claim_records(partition, one.id, LEASE).await.unwrap())
        .await;
    // An update that is not recorded is not announced.
    let update = two.update("g", 2).holds().with("b").0;
    assert!(two.redis.update(update, false).await.unwrap().is_ok());
    two.publish(&Topic::Node(one.id), "fence").await.unwrap();
    one.receives(&Topic::Node(one.id), "fence").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_arrive_in_the_order_of_the_calls_whichever_reply_is_awaited_first() {
    let server = redis_server().await;
    let (mut one, two) = (Node::connected(server.options()).await, Node::connected(server.options()).await);
    let topic = Topic::Group(group("g"));
    one.subscribe(&topic).await;
    let mut replies = Vec::new();
    for number in 0..1000_u32 {
        let message = Bytes::from(number.to_string());
        match number % 3 {
            0 => replies.push(two.redis.publish(vec![(topic.clone(), message)])),
            1 => replies.push(two.redis.publish_cached(group("g"), message, LEASE)),
            _ => drop(two.redis.publish(vec![(Topic::Nodes, Bytes::new()), (topic.clone(), message)])),
        }
    }
    // The last one is polled first.
    for reply in replies.into_iter().rev() {
        reply.await.unwrap();
    }
    for number in 0..1000_u32 {
        let Incoming::Message(_, bytes) = one.next().await else { panic!() };
        let message = match envelope::open(None, &bytes) {
            Ok(Envelope::Cached(_, message)) => message,
            _ => bytes,
        };
        assert_eq!(message, number.to_string());
    }
}

#[tokio::test]
async fn only_messages_of_subscribed_topics_and_of_this_cluster_arrive() {
    let server = redis_server().await;
    let mut one = Node::connected(server.options()).await;
    let other = Node::connected(Options { prefix: "other".to_owned(), ..server.options() }).await;
    let [a, b] = ["a", "b"].map(|name| Topic::Group(group(name)));
    for topic in [&a, &b] {
        one.subscribe(topic).await;
    }
    one.redis.unsubscribe(a.clone());
    one.redis.unsubscribe(a.clone());
    other.publish(&b, "another's").await.unwrap();
    assert!(other.carry_out(other.update("b", 1).holds()).await.is_ok());
    for topic in [&a, &Topic::Nodes, &b] {
        one.publish(topic, "mine").await.unwrap();
    }
    one.receives(&b, "mine").await;
    assert_eq!(one.redis.snapshot(group("b")).await, Ok(Snapshot::default()));
    // Unsubscribed and subscribed at once: it is subscribed.
    one.redis.unsubscribe(b.clone());
    one.subscribe(&b).await;
    one.publish(&b, "again").await.unwrap();
    one.receives(&b, "again").await;
}

#[tokio::test]
async fn records_that_no_node_reads_are_dropped_and_logged() {
    let log = Log::default();
    let _logging = log.capture();
    let server = redis_server().await;
    let node = Node::connected(server.options()).await;
    let partition = partition_of("g");
    let fill = "for at = 1, 100000 do redis.call('XADD', KEYS[1], at .. '-0', 'a', 'b') end";
    server.run::<()>(&["EVAL", fill, "1", &format!("{{pusherd:{partition:02}}}:r")]).await;
    for number in 1..=200 {
        let update = node.update("g", number).holds().with(&format!("u{number}"));
        assert!(node.carry_out(update).await.is_ok());
    }
    let kept: u64 = server.run(&["XLEN", &format!("{{pusherd:{partition:02}}}:r")]).await;
    for _ in 0..2 {
        assert_eq!(node.redis.claim_records(partition, node.id, LEASE).await, Ok(true));
        let said = format!("partition={partition} dropped={}", 100_000 + 201 - kept);
        assert_eq!(log.text().matches(&said).count(), 1, "{}", log.text());
    }
}
