//! The engine when its server fails, or is not what it should be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pusherd::cluster::broker::{Broker as _, Incoming, Topic, Unavailable};
use pusherd::cluster::coordinator::{Coordinator as _, partition_of};
use pusherd::cluster::redis::Options;
use pusherd::cluster::redis::options::{Server, Servers};
use pusherd::secret::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::{LEASE, Log, Node, group};
use crate::harness::redis::{redis_server, redis_server_with};
use crate::harness::{eventually, in_time};

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_starts_late_or_again_is_connected_to() {
    let mut server = redis_server().await;
    server.kill();
    let mut node = Node::start(server.options());
    assert_eq!(node.publish(&Topic::Nodes, "nobody").await, Err(Unavailable));
    server.restart().await;
    node.reports(Incoming::Connected).await;
    node.is_healthy().await;
    for _ in 0..2 {
        node.subscribe(&Topic::Nodes).await;
        server.kill();
        node.reports(Incoming::Disconnected).await;
        assert_eq!(node.redis.subscribe(Topic::Nodes).await, Err(Unavailable));
        assert_eq!(node.redis.snapshot(group("g")).await, Err(Unavailable));
        assert_eq!(node.redis.occupied("").await, Err(Unavailable));
        assert_eq!(node.redis.publish(vec![]).await, Err(Unavailable));
        server.restart().await;
        node.reports(Incoming::Connected).await;
        // Subscriptions have ended.
        node.publish(&Topic::Nodes, "not received").await.unwrap();
        node.is_healthy().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_either_connection_is_noticed_at_once() {
    let server = redis_server().await;
    let mut node = Node::connected(server.options()).await;
    for kind in ["pubsub", "normal"] {
        server.run::<i64>(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]).await;
        node.reports(Incoming::Disconnected).await;
        node.reports(Incoming::Connected).await;
        node.is_healthy().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_missed_only_between_a_disconnect_and_the_next_subscribe() {
    let server = redis_server().await;
    let mut node = Node::connected(server.options()).await;
    let mut client = server.client().await;
    let publisher = AbortOnDropHandle::new(tokio::spawn(async move {
        for number in 0_u64.. {
            let mut command = redis::cmd("PUBLISH");
            command.arg("{pusherd}:nodes").arg(number).query_async::<()>(&mut client).await.unwrap();
        }
    }));
    let mut last = None;
    for _ in 0..5 {
        node.subscribe(&Topic::Nodes).await;
        let mut heard = Vec::new();
        loop {
            match node.next().await {
                Incoming::Message(_, number) => {
                    heard.push(std::str::from_utf8(&number).unwrap().parse::<u64>().unwrap());
                }
                other @ (Incoming::Disconnected | Incoming::Connected) => {
                    break assert_eq!(other, Incoming::Disconnected);
                }
            }
            if heard.len() == 20 {
                server.run::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
            }
        }
        assert!(heard.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{heard:?}");
        assert!(last < heard.first().copied(), "{last:?} {heard:?}");
        last = heard.last().copied();
        assert_eq!(node.next().await, Incoming::Connected);
    }
    drop(publisher);
}

#[tokio::test]
async fn a_server_that_does_not_reply_is_disconnected() {
    let server = redis_server().await;
    let mut node = Node::connected(Options { timeout: Duration::from_millis(500), ..server.options() }).await;
    server.stop();
    let pending = [
        node.redis.publish(vec![(Topic::Nodes, Bytes::new())]),
        node.redis.publish_cached(group("g"), Bytes::new(), LEASE),
    ];
    node.reports(Incoming::Disconnected).await;
    for reply in pending {
        assert_eq!(reply.await, Err(Unavailable));
    }
    server.resume();
    node.reports(Incoming::Connected).await;
    node.is_healthy().await;
    server.run::<()>(&["CLIENT", "PAUSE", "1500", "ALL"]).await;
    assert_eq!(node.publish(&Topic::Nodes, "paused").await, Err(Unavailable));
    node.reports(Incoming::Disconnected).await;
    node.reports(Incoming::Connected).await;
    node.is_healthy().await;
}

#[tokio::test]
async fn a_wrong_password_is_rejected_and_never_logged() {
    let log = Log::default();
    let _logging = log.capture();
    let server = redis_server_with(&["--requirepass", "right-one"]).await;
    let password = |password: &str| Some(Secret::new(password));
    let mut none = Node::start(server.options());
    let mut wrong = Node::start(Options { password: password("wrong-one"), ..server.options() });
    let mut right = Node::connected(Options { password: password("right-one"), ..server.options() }).await;
    right.is_healthy().await;
    eventually("both errors are logged", async || {
        log.text().contains("NOAUTH") && log.text().contains("WRONGPASS")
    })
    .await;
    assert_eq!(wrong.publish(&Topic::Nodes, "in vain").await, Err(Unavailable));
    let mut client = server.client_of(":right-one@").await;
    let set = async |client: &mut _, password: &str| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("requirepass").arg(password).query_async::<()>(client).await.unwrap();
    };
    set(&mut client, "wrong-one").await;
    wrong.reports(Incoming::Connected).await;
    wrong.is_healthy().await;
    set(&mut client, "").await;
    none.reports(Incoming::Connected).await;
    none.is_healthy().await;
    let text = log.text();
    assert!(!text.contains("-one"), "{text}");
    assert_eq!(text.matches("WRONGPASS").count(), 1, "once, however often it connects: {text}");
    assert!(
        !format!("{:?}", Options { password: password("right-one"), ..server.options() }).contains("right")
    );
}

#[tokio::test]
async fn a_user_without_all_permissions_stays_disconnected() {
    let log = Log::default();
    let _logging = log.capture();
    let server = redis_server().await;
    let user = async |rules: &[&str]| {
        let mut command = vec!["ACL", "SETUSER", "shy"];
        command.extend(rules);
        server.run::<()>(&command).await;
    };
    user(&["on", ">secret", "~*", "+@all", "resetchannels"]).await;
    let options = Options {
        username: Some("shy".to_owned()),
        password: Some(Secret::new("secret")),
        ..server.options()
    };
    let mut node = Node::start(options);
    eventually("the reason is logged", async || log.text().contains("NOPERM")).await;
    assert_eq!(node.publish(&Topic::Nodes, "in vain").await, Err(Unavailable));
    user(&["allchannels"]).await;
    node.reports(Incoming::Connected).await;
    node.is_healthy().await;
    assert!(!log.text().contains("secret"));
}

/// A proxy between a node and its server, which can withhold what the server sends on the second connection of each
/// pair.
async fn proxy(to: SocketAddr) -> (SocketAddr, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let withholds = Arc::new(AtomicBool::new(false));
    let withheld = Arc::clone(&withholds);
    tokio::spawn(async move {
        for number in 0.. {
            let (mut client, _) = listener.accept().await.unwrap();
            let withheld = Arc::clone(&withheld);
            tokio::spawn(async move {
                let mut server = TcpStream::connect(to).await.unwrap();
                let (mut asked, mut answered) = ([0; 4096], [0; 4096]);
                loop {
                    tokio::select! {
                        Ok(read @ 1..) = client.read(&mut asked) => server.write_all(&asked[..read]).await.unwrap(),
                        Ok(read @ 1..) = server.read(&mut answered) => {
                            if number % 2 == 0 || !withheld.load(Ordering::Relaxed) {
                                client.write_all(&answered[..read]).await.unwrap();
                            }
                        }
                        else => return,
                    }
                }
            });
        }
    });
    (address, withholds)
}

#[tokio::test]
async fn the_probe_notices_that_messages_no_longer_arrive() {
    let log = Log::default();
    let _logging = log.capture();
    let server = redis_server().await;
    let (address, withholds) = proxy(SocketAddr::from(([127, 0, 0, 1], server.port))).await;
    let proxied = Server { host: address.ip().to_string(), port: address.port() };
    let mut node = Node::connected(Options { servers: Servers::Single(proxied), ..server.options() }).await;
    node.is_healthy().await;
    withholds.store(true, Ordering::Relaxed);
    node.publish(&Topic::Nodes, "it replies").await.unwrap();
    node.reports(Incoming::Disconnected).await;
    assert!(log.text().contains("published messages do not arrive"), "{}", log.text());
    withholds.store(false, Ordering::Relaxed);
    node.reports(Incoming::Connected).await;
    node.is_healthy().await;
}

#[tokio::test]
async fn the_request_queue_of_a_server_is_bounded() {
    let log = Log::default();
    let _logging = log.capture();
    let server = redis_server().await;
    let mut node = Node::connected(Options { timeout: Duration::from_secs(60), ..server.options() }).await;
    server.stop();
    let message = Bytes::from(vec![0; 1024 * 1024]);
    let replies: Vec<_> =
        (0..80).map(|_| node.redis.publish(vec![(Topic::Nodes, message.clone())])).collect();
    node.reports(Incoming::Disconnected).await;
    for reply in replies {
        assert_eq!(reply.await, Err(Unavailable));
    }
    assert!(log.text().contains("bytes are queued on this node"), "{}", log.text());
    server.resume();
    node.reports(Incoming::Connected).await;
    node.is_healthy().await;
}

#[tokio::test]
async fn losing_scripts_or_all_state_does_not_disconnect() {
    let server = redis_server().await;
    let mut node = Node::connected(server.options()).await;
    let topic = Topic::Group(group("g"));
    node.subscribe(&topic).await;
    let mut last = 0;
    for (number, flush) in (1..).zip(["SCRIPT FLUSH", "FLUSHALL", "SCRIPT FLUSH"]) {
        server.run::<()>(&flush.split(' ').collect::<Vec<_>>()).await;
        // Sent in one batch, after the scripts were lost.
        let update = node.update("g", number).holds().with(&format!("u{number}")).wants_members().0;
        let updated = node.redis.update(update, true);
        let cached = node.redis.publish_cached(group("g"), Bytes::from("cached"), LEASE);
        let snapshot = node.redis.snapshot(group("g"));
        let reply = updated.await.unwrap().unwrap();
        assert!(reply.version > last, "versions go on");
        last = reply.version;
        assert_eq!(snapshot.await, Ok(reply));
        cached.await.unwrap();
    }
    // It was not disconnected.
    node.publish(&topic, "fence").await.unwrap();
    loop {
        match node.next().await {
            Incoming::Message(_, message) if message == "fence" => break,
            Incoming::Message(..) => {}
            other @ (Incoming::Disconnected | Incoming::Connected) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn foreign_values_in_keys_and_topics_do_no_harm() {
    let log = Log::default();
    let _logging = log.capture();
    let server = redis_server().await;
    let mut node = Node::connected(server.options()).await;
    let topic = Topic::Group(group("g"));
    node.subscribe(&topic).await;
    // On a topic: the node opens envelopes, and drops malformed ones.
    let name = format!("{{pusherd:{:02}}}:t:g", partition_of("g"));
    let mut client = server.client().await;
    let garbage = b"\xff\x00\r\n".to_vec();
    redis::cmd("PUBLISH").arg(&name).arg(&garbage).query_async::<()>(&mut client).await.unwrap();
    assert_eq!(node.next().await, Incoming::Message(topic, Bytes::from(garbage)));
    // In a key: an error, or a malformed reply.
    let key = |rest: &str| format!("{{pusherd:{:02}}}:{rest}", partition_of("g"));
    for (command, rest, words) in [
        ("SET", "n", &["no hash"][..]),
        ("SET", "v", &["no number"]),
        ("HSET", "m:g", &["u", "no entry"]),
        ("HSET", "m:g", &["\u{0}", "1 1"]),
    ] {
        let key = key(rest);
        let mut command = vec![command, &key];
        command.extend(words);
        server.run::<()>(&command).await;
        let update = node.update("g", 1).holds().with("u").wants_members().0;
        assert_eq!(
            in_time("a reply", node.redis.update(update, true)).await,
            Err(Unavailable),
            "{command:?}"
        );
        node.reports(Incoming::Disconnected).await;
        node.reports(Incoming::Connected).await;
        server.run::<()>(&["FLUSHALL"]).await;
    }
    node.is_healthy().await;
    let text = log.text();
    assert!(text.contains("WRONGTYPE"), "{text}");
    assert!(text.lines().count() < 10, "{text}");
}

#[tokio::test]
async fn an_unsupported_server_is_logged_without_the_password() {
    let log = Log::default();
    let _logging = log.capture();
    // Redis 5 repeats the arguments of an unknown command.
    let old =
        "-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `secret`, \r\n";
    for (answer, said) in
        [(old, "it is older than Redis 6"), ("HTTP/1.1 400 Bad Request\r\n\r\n", "refuses"), ("", "closed")]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let _ = client.read(&mut [0; 4096]).await;
                let _ = client.write_all(answer.repeat(3).as_bytes()).await;
            }
        });
        let _node = Node::start(Options {
            servers: Servers::Single(Server { host: "127.0.0.1".to_owned(), port: address.port() }),
            tls: None,
            username: None,
            password: Some(Secret::new("secret")),
            database: 0,
            prefix: "pusherd".to_owned(),
            timeout: Duration::from_secs(2),
        });
        let address = address.to_string();
        eventually(format!("{answer:?}"), async || {
            log.text().lines().any(|line| line.contains(&address) && line.contains(said))
        })
        .await;
    }
    assert!(!log.text().contains("secret"), "{}", log.text());
}
