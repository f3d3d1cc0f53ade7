//! Unauthenticated connections and the limits of addresses: how many there may be, how long they may stay, and that
//! connections with signed requests are not limited by them.

use std::time::Duration;

use futures_util::future::join_all;
use pusherd::limits::Limit;
use pusherd::rejections::Mistake;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tracing::Level;

use crate::harness::{Http, Log, RawSocket, Request, Server, Setup, in_time};

const SHORT: Duration = Duration::from_millis(200);

fn signed() -> Request {
    Request::get("/apps/1001/connections").signed()
}

/// No proxy is trusted, so the limits of addresses apply to the tests themselves.
fn without_proxies(setup: &mut Setup) {
    setup.options.addresses.trusted_proxies.clear();
}

/// Waits until the server disconnects without sending anything.
async fn assert_disconnected(mut stream: TcpStream) {
    let mut said = Vec::new();
    // A reset is an end as well.
    let _ = in_time("the server disconnects", stream.read_to_end(&mut said)).await;
    assert_eq!(String::from_utf8_lossy(&said), "");
}

#[tokio::test]
async fn a_flood_of_silent_connections_keeps_no_client_out() {
    let server = Server::with(|setup| setup.options.unauthenticated_max = 3).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(server.tcp().await);
    }
    server.connect().await.fence().await;
    server.assert_limit_rejections(Limit::Unauthenticated, 1);
    // The oldest was evicted.
    assert_disconnected(silent.remove(0)).await;
    let mut others = Http::over(silent.remove(0));
    others.send(signed()).await.ok();
}

#[tokio::test]
async fn a_silent_connection_is_evicted_before_one_with_a_partial_head() {
    let server = Server::with(|setup| setup.options.unauthenticated_max = 2).await;
    let mut half = server.http().await;
    half.write(b"GET /up HTTP/1.1\r\n").await;
    let silent = server.tcp().await;
    server.connect().await.fence().await;
    server.assert_limit_rejections(Limit::Unauthenticated, 1);
    assert_disconnected(silent).await;
    half.write(b"Host: test\r\n\r\n").await;
    half.answer().await.ok();
}

#[tokio::test]
async fn a_flood_of_silent_connections_delays_a_publish_by_less_than_a_second() {
    let server = Server::with(|setup| setup.options.unauthenticated_max = 20).await;
    let event = r#"{"name":"e","channel":"news","data":""}"#;
    let mut silent = Vec::new();
    // More connections between two publishes than there are permits.
    for _ in 0..5 {
        for _ in 0..25 {
            silent.push(server.tcp().await);
        }
        let begin = tokio::time::Instant::now();
        server.send(Request::post("/apps/1001/events", event).signed()).await.ok();
        // The delay must not grow with each round of permits.
        assert!(begin.elapsed() < Duration::from_millis(800), "{:?}", begin.elapsed());
    }
    assert!(server.metrics.rejected(Limit::Unauthenticated).get() >= 5 * 25 - 20);
}

#[tokio::test]
async fn websockets_and_signed_connections_are_not_unauthenticated() {
    let server = Server::with(|setup| setup.options.unauthenticated_max = 1).await;
    let (mut clients, mut workers) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        clients.push(server.connect().await);
        let mut worker = server.http().await;
        worker.send(signed()).await.ok();
        workers.push(worker);
        let mut publisher = server.http().await;
        let event = r#"{"name":"e","channel":"news","data":""}"#;
        publisher.send(Request::post("/apps/1001/events", event).signed()).await.ok();
        workers.push(publisher);
    }
    for worker in &mut workers {
        worker.send(signed()).await.ok();
    }
    for client in &mut clients {
        client.fence().await;
    }
    server.assert_limit_rejections(Limit::Unauthenticated, 0);
}

#[tokio::test]
async fn a_rejected_websocket_is_unauthenticated_until_it_disconnects() {
    let server = Server::with(|setup| setup.options.unauthenticated_max = 1).await;
    let mut refused = RawSocket::over(server.tcp().await);
    refused.write(RawSocket::upgrade_request("/app/nope").as_bytes()).await;
    refused.read_head().await;
    assert!(refused.next().await.text().contains("4001"));
    // It does not reply to the Close, so its permit is held for two seconds, or until another connection needs it.
    server.connect().await.fence().await;
    server.assert_limit_rejections(Limit::Unauthenticated, 1);
}

#[tokio::test]
async fn an_unsigned_connection_is_shut_down_after_the_handshake_timeout_and_a_signed_one_kept() {
    let server = Server::with(|setup| setup.options.handshake_timeout = SHORT).await;
    let (mut unsigned, mut known) = (server.http().await, server.http().await);
    known.send(signed()).await.ok();
    unsigned.send(Request::get("/up")).await.ok();
    unsigned.send(Request::get("/ready")).await;
    unsigned.ends().await;
    known.send(signed()).await.ok();
    server.assert_limit_rejections(Limit::Handshake, 0);
}

#[tokio::test]
async fn a_silent_connection_or_a_partial_head_is_dropped_at_the_handshake_timeout() {
    let server = Server::with(|setup| setup.options.handshake_timeout = SHORT).await;
    let mut half = server.http().await;
    half.write(b"GET /up HTTP/1.1\r\nHost: te").await;
    assert_disconnected(server.tcp().await).await;
    half.ends().await;
    server.wait_for_rejections(Limit::Handshake, 2).await;
}

#[tokio::test]
async fn a_bad_signature_closes_unauthenticated_connections_only() {
    let server = Server::start().await;
    let bad = || signed().set("auth_signature", &"0".repeat(64));
    let mut unknown = server.http().await;
    let answer = unknown.send(bad()).await;
    answer.rejected(401);
    assert_eq!(answer.header("connection"), Some("close"));
    unknown.ends().await;
    let mut known = server.http().await;
    known.send(signed()).await.ok();
    for _ in 0..2 {
        known.send(bad()).await.rejected(401);
    }
    known.send(signed()).await.ok();
    server.assert_mistakes(Mistake::RequestSignature, 3);
}

#[tokio::test]
async fn the_websockets_of_an_address_are_limited_even_in_a_race() {
    let server = Server::with(|setup| {
        without_proxies(setup);
        setup.options.addresses.connections_max = Some(4);
    })
    .await;
    for round in 1..=2 {
        // In groups, because unauthenticated connections have the same limit.
        let (mut established, mut refused) = (Vec::new(), 0);
        for _ in 0..4 {
            let upgrades = (0..3).map(|_| server.upgrade("/app/demo-key", &[]));
            for upgrade in join_all(upgrades).await {
                let mut client = upgrade.client();
                let first = client.next().await;
                match first["event"].as_str() {
                    Some("pusher:connection_established") => established.push(client),
                    _ => {
                        assert_eq!(first["data"]["code"], 4100, "reconnect later: {first}");
                        refused += 1;
                    }
                }
            }
        }
        assert_eq!((established.len(), refused), (4, 8));
        server.assert_limit_rejections(Limit::AddressConnections, 8 * round);
        for client in established {
            client.close().await;
        }
        server.has_connections(0).await;
    }
}

#[tokio::test]
async fn unauthenticated_connections_of_an_address_are_limited_and_signed_ones_are_not() {
    let server = Server::with(|setup| {
        without_proxies(setup);
        setup.options.addresses.connections_max = Some(2);
    })
    .await;
    let mut workers = Vec::new();
    for _ in 0..6 {
        let mut worker = server.http().await;
        worker.send(signed()).await.ok();
        workers.push(worker);
    }
    let _silent = [server.tcp().await, server.tcp().await];
    assert_disconnected(server.tcp().await).await;
    server.assert_limit_rejections(Limit::AddressConnections, 1);
    for worker in &mut workers {
        worker.send(signed()).await.ok();
    }
}

#[tokio::test]
async fn new_connections_of_an_address_have_a_rate_limit() {
    let server = Server::with(|setup| {
        without_proxies(setup);
        setup.options.addresses.new_per_second = Some(1);
    })
    .await;
    for _ in 0..10 {
        server.send(signed()).await.ok();
    }
    assert_disconnected(server.tcp().await).await;
    server.assert_limit_rejections(Limit::AddressRate, 1);
}

#[tokio::test]
async fn addresses_in_the_unlimited_list_have_no_limits() {
    let server = Server::with(|setup| {
        without_proxies(setup);
        setup.options.addresses.new_per_second = Some(1);
        setup.options.addresses.unlimited = vec!["127.0.0.0/8".parse().unwrap()];
    })
    .await;
    for _ in 0..15 {
        server.send(signed()).await.ok();
    }
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_address_is_the_one_it_appends() {
    let server = Server::with(|setup| setup.options.addresses.connections_max = Some(1)).await;
    let from =
        async |forwarded: &str| server.upgrade("/app/demo-key", &[("x-forwarded-for", forwarded)]).await;
    let first = from("192.0.2.1").await.established().await;
    from("192.0.2.1").await.rejected(4100).await;
    from("203.0.113.5, 192.0.2.1").await.rejected(4100).await;
    from("192.0.2.1, 127.0.0.2").await.rejected(4100).await;
    server.assert_limit_rejections(Limit::AddressConnections, 3);
    from("192.0.2.2").await.established().await;
    from("192.0.2.1, 198.51.100.9").await.established().await;
    // The proxy itself has no limit.
    server.connect().await;
    server.connect().await;
    first.close().await;
    crate::harness::eventually("the place is given back", async || {
        from("192.0.2.1").await.client().next().await["event"] == "pusher:connection_established"
    })
    .await;
}

#[tokio::test]
async fn an_untrusted_peer_cannot_name_another_address() {
    let server = Server::with(|setup| {
        without_proxies(setup);
        setup.options.addresses.connections_max = Some(1);
    })
    .await;
    let _first = server.connect().await;
    server.upgrade("/app/demo-key", &[("x-forwarded-for", "192.0.2.7")]).await.rejected(4100).await;
    server.upgrade("/app/demo-key", &[("forwarded", "for=192.0.2.7")]).await.rejected(4100).await;
}

#[tokio::test]
async fn behind_a_proxy_new_connections_over_the_rate_are_closed_with_4100() {
    let server = Server::with(|setup| setup.options.addresses.new_per_second = Some(1)).await;
    let mut refused = 0;
    for _ in 0..12 {
        let upgrade = server.upgrade("/app/demo-key", &[("x-forwarded-for", "192.0.2.1")]).await;
        refused += u64::from(upgrade.client().next().await["data"]["code"] == 4100);
    }
    assert!((1..=2).contains(&refused), "a token may have come back meanwhile: {refused}");
    server.assert_limit_rejections(Limit::AddressRate, refused);
}

async fn with_proxy_protocol(connections_max: u32) -> Server {
    Server::with(|setup| {
        setup.options.proxy_protocol = true;
        setup.options.handshake_timeout = Duration::from_secs(1);
        setup.options.addresses.connections_max = Some(connections_max);
    })
    .await
}

async fn proxied(server: &Server, source: &str) -> RawSocket {
    let mut raw = RawSocket::over(server.tcp().await);
    raw.write(format!("PROXY TCP4 {source} 198.51.100.1 4711 6001\r\n").as_bytes()).await;
    raw
}

#[tokio::test]
async fn with_the_proxy_protocol_the_address_is_that_of_the_header() {
    let server = with_proxy_protocol(1).await;
    let mut first = proxied(&server, "192.0.2.1").await;
    first.upgrade("/app/demo-key").await;
    first.fence().await;
    let mut second = proxied(&server, "192.0.2.1").await;
    second.write(RawSocket::upgrade_request("/app/demo-key").as_bytes()).await;
    second.read_head().await;
    assert!(second.next().await.text().contains("4100"));
    proxied(&server, "192.0.2.2").await.upgrade("/app/demo-key").await;
    server.assert_limit_rejections(Limit::AddressConnections, 1);
}

#[tokio::test]
async fn with_the_proxy_protocol_a_connection_without_a_header_is_rejected() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = with_proxy_protocol(100).await;
    let mut http = server.http().await;
    http.write(&signed().to_bytes()).await;
    let answer = http.answer().await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("expects a header of the PROXY protocol first"), "{}", answer.text());
    server.wait_for_rejections(Limit::ProxyProtocol, 1).await;
    let line = log.line(Level::INFO, "a connection does not begin with a PROXY header");
    for part in ["count=1", "address=127.0.0.1", "server.proxy_protocol"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let mut half = Http::over(server.tcp().await);
    half.write(b"PROXY TCP4 192.0.2.1 ").await;
    assert!(half.answer_or_end().await.is_none(), "an incomplete header has a deadline");
    server.wait_for_rejections(Limit::Handshake, 1).await;
}

#[tokio::test]
async fn the_proxy_protocol_is_accepted_from_trusted_proxies_only() {
    let server = Server::with(|setup| {
        without_proxies(setup);
        setup.options.proxy_protocol = true;
    })
    .await;
    assert_disconnected(server.tcp().await).await;
    server.assert_limit_rejections(Limit::ProxyProtocol, 1);
}
