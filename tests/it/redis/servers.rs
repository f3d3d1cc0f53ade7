//! The ways to reach a server: single, replicated, sentinels, Redis Cluster, TLS.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pusherd::cluster::broker::{Broker as _, Incoming, Topic, Unavailable};
use pusherd::cluster::coordinator::{Coordinator as _, PARTITIONS, partition_of};
use pusherd::cluster::envelope::{self, Envelope};
use pusherd::cluster::group::Group;
use pusherd::cluster::redis::options::{Server, Servers, TlsOptions};
use pusherd::cluster::redis::{Options, RedisClient, StartError};
use pusherd::secret::Secret;

use super::{LEASE, Log, Node, group};
use crate::harness::eventually;
use crate::harness::redis::{RedisServer, redis_cluster, redis_sentinel, redis_server, redis_server_with};

#[tokio::test]
async fn a_user_a_database_and_a_prefix_can_be_set() {
    let server = redis_server().await;
    server.run::<()>(&["ACL", "SETUSER", "pusherd", "on", ">secret", "~{mine*", "&{mine*", "+@all"]).await;
    let options = Options {
        username: Some("pusherd".to_owned()),
        password: Some(Secret::new("secret")),
        database: 3,
        prefix: "mine".to_owned(),
        ..server.options()
    };
    let mut node = Node::connected(options.clone()).await;
    node.is_healthy().await;
    assert_eq!(server.run::<u64>(&["DBSIZE"]).await, 0);
    let log = Log::default();
    let _logging = log.capture();
    let _node = Node::start(Options { database: 99, ..options });
    eventually("the reason is logged", async || log.text().contains("DB index is out of range")).await;
}

#[tokio::test]
async fn redis_can_be_reached_over_a_unix_socket() {
    let server = redis_server_with(&["--unixsocket", "socket"]).await;
    let path = server.file("socket").to_str().unwrap().to_owned();
    let servers = Servers::Single(Server { host: path, port: 0 });
    Node::connected(Options { servers, ..server.options() }).await.is_healthy().await;
}

#[tokio::test]
async fn a_replica_is_rejected_until_it_is_the_master() {
    let log = Log::default();
    let _logging = log.capture();
    let (master, replica) = (redis_server().await, redis_server().await);
    replica.run::<()>(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]).await;
    let mut node = Node::start(replica.options());
    eventually("the reason is logged", async || log.text().contains("READONLY")).await;
    replica.run::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    node.reports(Incoming::Connected).await;
    node.is_healthy().await;
    // And rejected when it is a replica again.
    replica.run::<()>(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]).await;
    assert_eq!(node.redis.publish_cached(group("g"), Bytes::new(), LEASE).await, Err(Unavailable));
    node.reports(Incoming::Disconnected).await;
}

#[tokio::test]
async fn the_certificate_of_a_server_is_verified() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = ["right", "wrong"].map(|name| {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let file = |end: &str| folder.path().join(format!("{name}.{end}"));
        std::fs::write(file("crt"), made.cert.pem()).unwrap();
        std::fs::write(file("key"), made.signing_key.serialize_pem()).unwrap();
        file("crt")
    });
    let [right, wrong] = &certificates;
    let key = folder.path().join("right.key");
    let args = ["--tls-cert-file", right.to_str().unwrap(), "--tls-key-file", key.to_str().unwrap()];
    let more = ["--tls-ca-cert-file", right.to_str().unwrap(), "--tls-auth-clients", "no"];
    let server = redis_server_with(&[args, more].concat()).await;
    // The server's port changes from plain connections to TLS.
    server.run::<()>(&["CONFIG", "SET", "port", "0", "tls-port", &server.port.to_string()]).await;
    let options = |ca_file: Option<&std::path::PathBuf>, accepts_any| {
        let tls = Some(TlsOptions { ca_file: ca_file.cloned(), accepts_any });
        Options { tls, ..server.options() }
    };
    Node::connected(options(Some(right), false)).await.is_healthy().await;
    Node::connected(options(None, true)).await.is_healthy().await;
    let log = Log::default();
    let _logging = log.capture();
    let node = Node::start(options(Some(wrong), false));
    eventually("the reason is logged", async || log.text().contains("the TLS handshake with 127.0.0.1"))
        .await;
    assert_eq!(node.publish(&Topic::Nodes, "to an unverified server").await, Err(Unavailable));
    let plain = Node::start(server.options());
    eventually("the reason is logged", async || log.text().contains("closed the connection")).await;
    assert_eq!(plain.publish(&Topic::Nodes, "to TLS").await, Err(Unavailable));
}

#[tokio::test]
async fn settings_that_can_never_work_are_rejected_at_the_start() {
    let server = Server { host: "127.0.0.1".to_owned(), port: 1 };
    let options = Options {
        servers: Servers::Single(server.clone()),
        tls: None,
        username: None,
        password: None,
        database: 0,
        prefix: "pusherd".to_owned(),
        timeout: Duration::from_secs(2),
    };
    let error_of = |options: Options| RedisClient::start(options).map(|_| ()).unwrap_err();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.pem");
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "no certificate").unwrap();
    for file in [&missing, &empty] {
        let tls = Some(TlsOptions { ca_file: Some(file.clone()), accepts_any: false });
        let error = error_of(Options { tls, ..options.clone() }).to_string();
        assert!(error.contains(file.to_str().unwrap()), "{error}");
    }
    let tls = Some(TlsOptions::default());
    let servers = Servers::Single(Server { host: "/run/redis.sock".to_owned(), port: 0 });
    let error = error_of(Options { tls, servers, ..options.clone() });
    assert!(matches!(error, StartError::ServerName(_)), "{error}");
    for prefix in ["", "{a}", "a}"] {
        let error = error_of(Options { prefix: prefix.to_owned(), ..options.clone() });
        assert!(matches!(error, StartError::Prefix(_)), "{error}");
    }
    let error = error_of(Options { servers: Servers::Cluster(vec![]), ..options.clone() });
    assert!(matches!(error, StartError::NoServer), "{error}");
    let error = error_of(Options { servers: Servers::Cluster(vec![server]), database: 1, ..options });
    assert!(matches!(error, StartError::Database(1)), "{error}");
}

#[tokio::test]
async fn the_master_that_sentinels_name_is_followed() {
    let (mut master, replica) = (redis_server().await, redis_server().await);
    replica.run::<()>(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]).await;
    eventually("it is a replica", async || {
        master.run::<String>(&["INFO", "replication"]).await.contains("state=online")
    })
    .await;
    let sentinel = redis_sentinel(&master).await;
    // An unreachable sentinel is skipped.
    let nobody = Server { host: "127.0.0.1".to_owned(), port: 1 };
    let sentinels = |master: &str| Servers::Sentinels {
        sentinels: vec![nobody.clone(), sentinel.address()],
        master: master.to_owned(),
        username: None,
        password: None,
    };
    let mut node = Node::connected(Options { servers: sentinels("main"), ..master.options() }).await;
    node.is_healthy().await;
    eventually("the sentinel knows the replica", async || {
        sentinel.run::<String>(&["INFO", "sentinel"]).await.contains("slaves=1")
    })
    .await;
    master.kill();
    node.reports(Incoming::Disconnected).await;
    node.reports(Incoming::Connected).await;
    node.is_healthy().await;
    let found: String = replica.run(&["GET", &format!("{{pusherd:{:02}}}:v", partition_of("health"))]).await;
    assert!(found.parse::<u64>().is_ok(), "{found}");
    let log = Log::default();
    let _logging = log.capture();
    let _node = Node::start(Options { servers: sentinels("unknown"), ..master.options() });
    eventually("the reason is logged", async || log.text().contains("does not know where \"unknown\" is"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_cluster_spreads_the_state_over_slots_that_may_move() {
    let servers = redis_cluster(&[]).await;
    let seeds =
        Servers::Cluster(vec![Server { host: "127.0.0.1".to_owned(), port: 1 }, servers[1].address()]);
    let options = Options { servers: seeds, ..servers[0].options() };
    let (mut one, mut two) = (Node::connected(options.clone()).await, Node::connected(options).await);
    let mut groups: BTreeMap<u16, Group> = BTreeMap::new();
    for name in (0..).map(|number| format!("g{number}")) {
        groups.entry(partition_of(&name)).or_insert_with(|| group(&name));
        if groups.len() == usize::from(PARTITIONS) {
            break;
        }
    }
    for about in groups.values() {
        two.subscribe(&Topic::Group(Arc::clone(about))).await;
    }
    two.subscribe(&Topic::Nodes).await;
    two.subscribe(&Topic::Node(two.id)).await;
    for partition in groups.keys() {
        assert_eq!(two.redis.claim_records(*partition, two.id, LEASE).await, Ok(true));
    }
    for (about, number) in groups.values().zip(1..) {
        assert!(one.carry_out(one.update(about, number).holds().with("u")).await.is_ok());
    }
    let mut occupied = one.redis.occupied("g").await.unwrap();
    occupied.sort();
    let mut wanted: Vec<_> = groups.values().map(|about| (Arc::clone(about), 1)).collect();
    wanted.sort();
    assert_eq!(occupied, wanted);
    let messages = groups.values().map(|about| (Topic::Group(Arc::clone(about)), Bytes::from("m")));
    one.redis.publish(messages.chain([(Topic::Nodes, Bytes::from("m"))]).collect()).await.unwrap();
    let mut heard: HashMap<Topic, Vec<Bytes>> = HashMap::new();
    for _ in 0..groups.len() * 4 + 1 {
        let Incoming::Message(topic, bytes) = two.next().await else { panic!() };
        heard.entry(topic).or_default().push(bytes);
    }
    assert_eq!(heard.remove(&Topic::Nodes).unwrap(), ["m"]);
    // Every server has announced records to their reader.
    let announced = heard.remove(&Topic::Node(two.id)).unwrap();
    let announced: Vec<_> = announced.iter().map(|bytes| envelope::open(None, bytes).unwrap()).collect();
    assert_eq!(announced.len(), groups.len());
    let all = groups.keys().all(|partition| announced.contains(&Envelope::Records(*partition)));
    assert!(all, "{announced:?}");
    for (topic, messages) in heard {
        assert_eq!(messages.len(), 3, "{topic:?}: {messages:?}");
        assert_eq!(messages[2], "m");
    }
    // Every server of the cluster has some of the state.
    for server in &servers {
        assert!(server.run::<u64>(&["DBSIZE"]).await > 0);
    }
    // A slot moves: both nodes reconnect, and find it on its new server.
    let (partition, about) = groups.first_key_value().unwrap();
    let tag = format!("{{pusherd:{partition:02}}}:");
    let slot: u64 = servers[0].run(&["CLUSTER", "KEYSLOT", &tag]).await;
    let from = (slot / 5462) as usize;
    let to = (from + 1) % 3;
    move_slot(&servers[from], &servers[to], &servers, slot).await;
    for node in [&mut one, &mut two] {
        // A subscribed node notices at once, the other one with its next request.
        let _ = node.redis.snapshot(Arc::clone(about)).await;
        node.reports(Incoming::Disconnected).await;
        eventually("the slot is found", async || {
            let found = node.redis.snapshot(Arc::clone(about)).await;
            found.is_ok_and(|snapshot| snapshot.members.is_some_and(|members| members.len() == 1))
        })
        .await;
    }
    for (partition, about) in &groups {
        one.redis.publish_cached(Arc::clone(about), Bytes::from("cached"), LEASE).await.unwrap();
        let cached = two.redis.cached(Arc::clone(about)).await.unwrap().unwrap();
        assert_eq!(cached.message, "cached");
        assert_eq!(two.redis.reserve(Arc::clone(about), one.id, 5, 10).await, Ok(5));
        while two.redis.reap(*partition, one.id).await.unwrap() {}
        assert_eq!(two.redis.reserve(Arc::clone(about), two.id, 10, 10).await, Ok(10));
    }
    assert_eq!(two.redis.occupied("").await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_redis_7_a_cluster_uses_topics_without_slots() {
    let servers =
        redis_cluster(&["--rename-command", "SPUBLISH", "", "--rename-command", "SSUBSCRIBE", ""]).await;
    let options = Options { servers: Servers::Cluster(vec![servers[2].address()]), ..servers[0].options() };
    let (mut one, mut two) = (Node::connected(options.clone()).await, Node::connected(options).await);
    for name in ["a", "b", "c", "d", "e", "f"] {
        let topic = Topic::Group(group(name));
        two.subscribe(&topic).await;
        one.publish(&topic, "m").await.unwrap();
        two.receives(&topic, "m").await;
    }
    one.is_healthy().await;
    two.is_healthy().await;
}

async fn move_slot(from: &RedisServer, to: &RedisServer, all: &[RedisServer], slot: u64) {
    let slot = slot.to_string();
    let (source, target): (String, String) =
        (from.run(&["CLUSTER", "MYID"]).await, to.run(&["CLUSTER", "MYID"]).await);
    to.run::<()>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]).await;
    from.run::<()>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]).await;
    let keys: Vec<String> = from.run(&["CLUSTER", "GETKEYSINSLOT", &slot, "1000"]).await;
    let port = to.port.to_string();
    let mut migrate = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
    migrate.extend(keys.iter().map(String::as_str));
    from.run::<String>(&migrate).await;
    to.run::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]).await;
    from.run::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]).await;
    for server in all {
        eventually("all know", async || {
            let slots: String = server.run(&["CLUSTER", "NODES"]).await;
            let line = slots.lines().find(|line| line.starts_with(&target)).unwrap().to_owned();
            line.split(' ').any(|word| word == slot)
        })
        .await;
    }
}
