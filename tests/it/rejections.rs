//! Mistakes of clients, proxies and applications: answered in their protocol if it has error messages, counted, and logged
//! with a remedy. Limits are in `runtime_limits`.

use pusherd::apps::OriginPattern;
use pusherd::rejections::Mistake;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::Level;

use crate::harness::{
    Answer, DEMO, Http, Key, Log, RawSocket, Request, Server, eventually, in_time, unix_now,
};

const EVENTS: &str = "/apps/1001/events";

/// Sends bytes and reads until the server disconnects.
async fn answer_to(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut stream = server.tcp().await;
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    in_time("the server disconnects", stream.read_to_end(&mut answer)).await.unwrap();
    answer
}

/// The HTTP response to bytes.
async fn http_answer_to(server: &Server, bytes: &[u8]) -> Answer {
    let mut http = Http::over(server.tcp().await);
    http.write(bytes).await;
    http.answer().await
}

#[tokio::test]
async fn tls_on_a_plain_port_is_logged_once_a_minute_with_a_remedy() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = Server::start().await;
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for _ in 0..3 {
        assert_eq!(answer_to(&server, hello).await, [21, 3, 3, 0, 2, 2, 70], "a fatal alert");
    }
    server.assert_mistakes(Mistake::TlsOnPlainPort, 3);
    let line = log.line(Level::INFO, "a client speaks TLS to a port without TLS");
    for part in ["count=1", "address=127.0.0.1", "forceTLS: false", "PUSHER_SCHEME=http", "server.tls_cert"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    server.signal(pusherd::server::Shutdown::Now).await;
    server.ended().await;
    let lines = log.lines(Level::INFO, "a client speaks TLS to a port without TLS");
    assert!(lines.len() == 2 && lines[1].contains("count=2"), "the rest is reported at the end: {lines:#?}");
}

#[tokio::test]
async fn http_2_is_answered_with_http_1_1_required() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = Server::start().await;
    let answer = answer_to(&server, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let (settings, goaway) = answer.split_at(9);
    assert_eq!(settings, [0, 0, 0, 4, 0, 0, 0, 0, 0]);
    assert_eq!(goaway[3..17], [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13], "HTTP_1_1_REQUIRED");
    assert_eq!(goaway.len() - 9, usize::from(goaway[2]));
    log.line(Level::INFO, "speaks HTTP/2 to a port with HTTP/1.1");
    server.assert_mistakes(Mistake::Http2, 1);
}

#[tokio::test]
async fn an_unexpected_proxy_header_is_answered_with_400_and_a_reason() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = Server::start().await;
    let request = b"GET /up HTTP/1.1\r\nHost: test\r\n\r\n";
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x01\x12\x67\x17\x71";
    for header in [&b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 6001\r\n"[..], v2] {
        let answer = http_answer_to(&server, &[header, request].concat()).await;
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains("server.proxy_protocol"), "{}", answer.text());
    }
    let line = log.line(Level::INFO, "a proxy sends a PROXY header");
    assert!(line.contains("server.trusted_proxies"), "{line}");
    server.assert_mistakes(Mistake::ProxyHeader, 2);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_answered_with_the_limit() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = Server::start().await;
    let head = |headers: &str| format!("GET /app/demo-key HTTP/1.1\r\nHost: test\r\n{headers}\r\n");
    let long = head(&format!("Cookie: {}\r\n", "x".repeat(20_000)));
    let answer = http_answer_to(&server, long.as_bytes()).await;
    assert_eq!(answer.status, 431);
    assert!(answer.text().contains("longer than 16384 bytes"), "{}", answer.text());
    assert_eq!(answer.header("connection"), Some("close"));
    let answer = http_answer_to(&server, head(&"X-A: 1\r\n".repeat(101)).as_bytes()).await;
    assert_eq!(answer.status, 431);
    assert!(answer.text().contains("more than 100 headers"), "{}", answer.text());
    eventually("both are counted", async || server.metrics.rejected(Mistake::HeadTooLarge).get() == 2).await;
    let line = log.line(Level::INFO, "its head is too large");
    assert!(line.contains("16384 bytes or 100 headers") && line.contains("cookies"), "{line}");
}

#[tokio::test]
async fn other_protocols_are_answered_with_400_and_logged_without_their_bytes() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = Server::start().await;
    let answer = http_answer_to(&server, b"EHLO secret-host\r\n\r\n").await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("no valid request of HTTP/1.1"), "{}", answer.text());
    let answer = http_answer_to(&server, b"GET /up HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
    assert_eq!(answer.status, 400);
    eventually("it is counted", async || server.metrics.rejected(Mistake::NotHttp).get() == 1).await;
    log.line(Level::INFO, "a connection speaks something other than HTTP/1.1");
    log.line(Level::INFO, "it must have one Host header");
    assert!(!log.text().contains("secret-host"), "{}", log.text());
}

#[tokio::test]
async fn an_upgrade_dropped_by_a_proxy_is_answered_with_the_nginx_line_it_needs() {
    const KEY: &str = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    const HTTP: &str = "proxy_http_version 1.1;";
    const UPGRADE: &str = "proxy_set_header Upgrade $http_upgrade;";
    const CONNECTION: &str = "proxy_set_header Connection \"upgrade\";";
    let (log, _logging) = Log::start(Level::DEBUG);
    let server = Server::start().await;
    // What nginx forwards, by the directives that its configuration has.
    for (what, version, headers, lines) in [
        ("nothing", "1.0", "Connection: close\r\n", &[HTTP, UPGRADE, CONNECTION][..]),
        ("proxy_http_version", "1.1", "Connection: close\r\n", &[UPGRADE, CONNECTION]),
        ("the headers", "1.0", "Upgrade: websocket\r\nConnection: upgrade\r\n", &[HTTP]),
        ("Upgrade", "1.0", "Upgrade: websocket\r\nConnection: close\r\n", &[HTTP, CONNECTION]),
        ("Connection", "1.0", "Connection: upgrade\r\n", &[HTTP, UPGRADE]),
        ("all but Connection", "1.1", "Upgrade: websocket\r\nConnection: close\r\n", &[CONNECTION]),
        ("an empty Connection", "1.1", "Upgrade: websocket\r\n", &[CONNECTION]),
        ("all but Upgrade", "1.1", "Connection: upgrade\r\n", &[UPGRADE]),
        ("keepalive to the upstream", "1.1", "Connection: keep-alive\r\n", &[UPGRADE, CONNECTION]),
    ] {
        let request = format!("GET /app/demo-key HTTP/{version}\r\nHost: test\r\n{headers}{KEY}\r\n");
        let answer = http_answer_to(&server, request.as_bytes()).await;
        assert_eq!(answer.status, 426, "{what}");
        assert_eq!(answer.header("upgrade"), Some("websocket"), "{what}");
        assert!(answer.header("connection").unwrap().starts_with("upgrade"), "{what}");
        for line in [HTTP, UPGRADE, CONNECTION] {
            assert_eq!(answer.text().contains(line), lines.contains(&line), "{what}: {}", answer.text());
        }
    }
    server.assert_mistakes(Mistake::Upgrade, 9);
    let line = log.line(Level::INFO, "the request is no complete upgrade");
    for part in ["count=1", "path=\"/app/demo-key\"", "it is HTTP/1.0", "proxy_http_version 1.1"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(log.lines(Level::DEBUG, "the request is no complete upgrade").len(), 9, "each, at debug");
    // An unsupported version, or a missing key, is not the fault of a proxy.
    for (headers, status, words) in [
        (
            "Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            426,
            "Sec-WebSocket-Version: 13",
        ),
        ("Sec-WebSocket-Version: 13\r\n", 400, "Sec-WebSocket-Key"),
        ("Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n", 400, "Sec-WebSocket-Key"),
    ] {
        let request = format!(
            "GET /app/demo-key HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: upgrade\r\n{headers}\r\n"
        );
        let answer = http_answer_to(&server, request.as_bytes()).await;
        assert_eq!(answer.status, status, "{headers}");
        assert!(answer.text().contains(words) && !answer.text().contains("proxy_"), "{}", answer.text());
        assert_eq!(answer.header("sec-websocket-version"), Some("13"), "{headers}");
    }
}

#[tokio::test]
async fn repeated_connection_and_upgrade_headers_are_one_list_of_tokens() {
    let server = Server::start().await;
    for headers in [
        "Connection: keep-alive\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
        "Connection: UPGRADE,keep-alive\r\nUpgrade: WebSocket\r\n",
        "Connection: close\r\nConnection: x , upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
        "Connection: upgrade\r\nUpgrade: h2c, websocket\r\n",
    ] {
        let mut raw = RawSocket::over(server.tcp().await);
        let request = format!(
            "GET /app/demo-key HTTP/1.1\r\nHost: test\r\n{headers}Sec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        raw.write(request.as_bytes()).await;
        raw.upgraded().await;
        raw.fence().await;
    }
    // A token is a whole word.
    let request = "GET /app/demo-key HTTP/1.1\r\nHost: test\r\nConnection: no-upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    assert_eq!(http_answer_to(&server, request.as_bytes()).await.status, 426);
}

#[tokio::test]
async fn a_publish_with_an_upgrade_header_is_served() {
    let server = Server::start().await;
    let body = json!({ "name": "e", "channel": "news", "data": "" }).to_string();
    let publish = Request::post(EVENTS, body).header("Upgrade", "websocket").header("Connection", "upgrade");
    server.send(publish.signed()).await.ok();
}

#[tokio::test]
async fn a_405_names_the_allowed_methods() {
    let server = Server::start().await;
    for (method, path, allowed) in [
        ("GET", EVENTS, "POST"),
        ("PUT", "/apps/1001/batch_events", "POST"),
        ("GET", "/apps/1001/channels/news/events", "POST"),
        ("GET", "/apps/1001/users/7/terminate_connections", "POST"),
        ("POST", "/apps/1001/channels", "GET,HEAD"),
        ("POST", "/apps/1001/channels/news", "GET,HEAD"),
        ("POST", "/up", "GET,HEAD,OPTIONS"),
        ("POST", "/app/demo-key", "GET,HEAD"),
    ] {
        let answer = server.send(Request::new(method, path).signed()).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allowed)), "{method} {path}");
    }
}

#[tokio::test]
async fn health_routes_answer_options() {
    let server = Server::start().await;
    for path in ["/", "/up", "/health", "/ready", "/accept-traffic", "*"] {
        // HAProxy's default check, which sends no Host.
        for head in [
            format!("OPTIONS {path} HTTP/1.0\r\n\r\n"),
            format!("OPTIONS {path} HTTP/1.1\r\nHost: t\r\n\r\n"),
        ] {
            let answer =
                answer_to(&server, [head.as_bytes(), b"GET /up HTTP/1.0\r\n\r\n"].concat().as_slice()).await;
            let answer = String::from_utf8(answer).unwrap();
            assert!(
                answer.starts_with("HTTP/1.0 204 ") || answer.starts_with("HTTP/1.1 204 "),
                "{path}: {answer}"
            );
            assert!(answer.to_ascii_lowercase().contains("allow: get, head, options"), "{path}: {answer}");
        }
    }
}

#[tokio::test]
async fn doubled_slashes_are_one() {
    let server = Server::with_app(|app| app.path_prefix = "/rt".into()).await;
    for target in ["//app/demo-key", "///app/demo-key?protocol=7", "//rt/app/demo-key"] {
        server.connect_to(target).await.fence().await;
    }
    let post = |path: &str| Request::post(path, r#"{"name":"e","channel":"news","data":""}"#);
    // Signed as it is sent, or as the application wrote it before the proxy changed it.
    server.send(post("//apps/1001/events").signed()).await.ok();
    server.send(post(EVENTS).signed().path("//apps/1001/events")).await.ok();
    server.send(post("//rt/apps/1001/events").signed()).await.ok();
    server.send(post("/rt/apps/1001/events").signed().path("//rt/apps/1001/events")).await.ok();
    server.send(Request::get("//apps/1001/channels").signed()).await.ok();
    assert_eq!(server.send(Request::get("//up")).await.status, 200);
    server.send(post("//apps/1001/events").signed().path("//apps/1002/events")).await.rejected(401);
    server.send(Request::get("/apps//1001/channels").signed()).await.rejected(404);
}

#[tokio::test]
async fn a_rejected_parameter_is_logged_with_its_name() {
    let (log, _logging) = Log::start(Level::DEBUG);
    let server = Server::start().await;
    let query = Request::get("/apps/1001/channels").with("info", "user_count");
    server.send(query.signed()).await.rejected(400);
    let line = log.line(Level::INFO, "a request was rejected count=1");
    for part in ["app=\"1001\"", "path=\"/apps/1001/channels\"", "info: user_count needs a filter_by_prefix"]
    {
        assert!(line.contains(part), "{part}: {line}");
    }
    let body = json!({ "name": "e", "channel": "news", "data": "", "socket_id": "no id" }).to_string();
    server.send(Request::post(EVENTS, body).signed()).await.rejected(400);
    let lines = log.lines(Level::DEBUG, "a request was rejected");
    assert!(lines.len() == 2 && lines[1].contains("socket_id"), "each, at debug: {lines:#?}");
    server.assert_mistakes(Mistake::Request, 2);
}

#[tokio::test]
async fn rejected_requests_are_logged_with_app_and_reason_and_never_with_their_body() {
    let (log, _logging) = Log::start(Level::DEBUG);
    let server = Server::with_app(|app| app.limits.request_body_bytes_max = 1000).await;
    let body = json!({ "name": "e", "channel": "news", "data": "the payload" }).to_string();
    let post = |path: &str| Request::post(path, body.clone());
    let wrong_key = Key { key: "wrong-key-of-somebody", ..DEMO };
    let wrong_secret = Key { secret: "another-secret", ..DEMO };
    let late = unix_now() - 900;
    let invalid = json!({ "name": "e", "channel": "no channel", "data": "the payload" }).to_string();
    for (request, status, mistake, what, parts) in [
        (
            post("/apps/4711/events").signed(),
            404,
            Mistake::RequestApp,
            "unknown app",
            &["app=\"4711\"", "path=\"/apps/4711/events\"", "address=127.0.0.1", "pusherd config show"][..],
        ),
        (
            post(EVENTS).signed_with(&wrong_key),
            401,
            Mistake::RequestKey,
            "unknown app key",
            &["app=\"1001\"", "key=\"wrong-ke\""],
        ),
        (
            post(EVENTS).signed_at(&DEMO, late),
            401,
            Mistake::RequestClock,
            "its clock is off",
            &["900 s behind", "600 s", "limits.auth_window_secs"],
        ),
        (
            post(EVENTS).signed_with(&wrong_secret),
            401,
            Mistake::RequestSignature,
            "its signature does not hold",
            &["app=\"1001\"", "compare the secret"],
        ),
        (
            Request::post(EVENTS, invalid).signed(),
            400,
            Mistake::Request,
            "a request was rejected count",
            &["app=\"1001\"", "character that is not allowed"],
        ),
        (
            post("/apps/1001/event").signed(),
            404,
            Mistake::RequestPath,
            "unknown path",
            &["path=\"/apps/1001/event\""],
        ),
    ] {
        server.send(request).await.rejected(status);
        let line = log.line(Level::INFO, what);
        for part in parts.iter().chain(&["count=1"]) {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert_eq!(server.metrics.rejected(mistake).get(), 1, "{mistake:?}");
    }
    server.send(Request::post(EVENTS, vec![b'x'; 1001]).signed()).await.rejected(413);
    let line = log.line(Level::INFO, "its body is too long");
    assert!(line.contains("limit=\"1000 bytes\" setting=\"limits.request_body_bytes\""), "{line}");
    for secret in ["the payload", "demo-secret", "another-secret", "wrong-key-of"] {
        assert!(
            !log.lines(Level::INFO, "").iter().any(|line| line.contains(secret)),
            "{secret}: {}",
            log.text()
        );
    }
    assert!(!log.text().contains("the payload"), "{}", log.text());
}

#[tokio::test]
async fn publishes_over_a_limit_are_logged_with_the_limit_and_its_setting() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = Server::with_app(|app| {
        app.limits.event_data_bytes_max = 100;
        app.limits.requests_per_second = Some(5);
        app.limits.events_per_second = Some(2);
    })
    .await;
    let publish = |data: &str| json!({ "name": "e", "channel": "news", "data": data });
    let mut http = server.http().await;
    let mut send = async |body: serde_json::Value| {
        let path = if body["batch"].is_null() { EVENTS } else { "/apps/1001/batch_events" };
        http.send(Request::post(path, body.to_string()).signed()).await
    };
    let refused = send(publish(&"x".repeat(101))).await;
    assert!(refused.rejected(413).contains("the 100 allowed"), "{}", refused.text());
    let line = log.line(Level::INFO, "a request was rejected count=1");
    for part in ["app=\"1001\"", "address=127.0.0.1", "the 100 allowed", "limits.event_data_bytes"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let event = publish("the payload");
    send(json!({ "batch": vec![event.clone(); 10] })).await.ok();
    send(event.clone()).await.rejected(429);
    send(event.clone()).await.rejected(429);
    let line = log.line(Level::WARN, "limits.events_per_second");
    for part in ["count=1", "app=\"1001\"", "address=127.0.0.1", "limit=\"2 events a second\""] {
        assert!(line.contains(part), "{part}: {line}");
    }
    send(publish("")).await.rejected(429);
    send(publish("")).await.rejected(429);
    let line = log.line(Level::WARN, "limits.requests_per_second");
    for part in ["count=1", "app=\"1001\"", "address=127.0.0.1", "limit=\"5 requests a second\""] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!log.text().contains("the payload"), "{}", log.text());
}

#[tokio::test]
async fn rejected_requests_are_logged_with_the_forwarded_address_and_the_library() {
    for is_trusted in [true, false] {
        let (log, _logging) = Log::start(Level::DEBUG);
        let server = Server::with(|setup| {
            if !is_trusted {
                setup.options.addresses.trusted_proxies.clear();
            }
        })
        .await;
        let invalid = json!({ "name": "e", "channel": "no channel", "data": "" }).to_string();
        let keyed = json!({ "name": "e", "channel": "no channel", "data": "", "idempotency_key": "k" });
        let wrong = Key { secret: "another", ..DEMO };
        let requests = [
            // Before and after the signature check, in a task of its own, by the router, and at no route.
            Request::post(EVENTS, invalid.clone()).signed_with(&wrong),
            Request::post(EVENTS, invalid).signed(),
            Request::post(EVENTS, keyed.to_string()).signed(),
            Request::get("/apps/1001/channels/no%20channel").signed(),
            Request::get("/nowhere"),
        ];
        for request in &requests {
            let request = request.clone().header("X-Forwarded-For", "198.51.100.1, 192.0.2.7");
            let answer = server.send(request.header("X-Pusher-Library", "pusher-http-php 7.2.6")).await;
            assert!(answer.status >= 400, "{}", answer.text());
        }
        let lines = log.lines(Level::DEBUG, "a request was rejected");
        assert_eq!(lines.len(), requests.len(), "{lines:#?}");
        let address = if is_trusted { "address=192.0.2.7" } else { "address=127.0.0.1" };
        for line in lines {
            assert!(line.contains(address), "{address}: {line}");
            assert!(line.contains("library=\"pusher-http-php 7.2.6\""), "{line}");
        }
        let hostless = b"GET /up HTTP/1.1\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n";
        assert_eq!(http_answer_to(&server, hostless).await.status, 400);
        let line = log.line(Level::DEBUG, "it must have one Host header");
        assert!(line.contains(address), "{address}: {line}");
    }
}

#[tokio::test]
async fn rejected_connections_are_logged_with_address_key_path_origin_and_library() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = Server::with_app(|app| {
        app.allowed_origins = vec![OriginPattern::parse("app.example.com").unwrap()];
    })
    .await;
    let headers = &[("origin", "https://evil.test"), ("x-forwarded-for", "192.0.2.7")];
    let query = "protocol=7&client=js&version=8.4.0";
    for (target, code, what, parts) in [
        (
            format!("/app/key-of-nobody?{query}"),
            4001,
            "unknown app key",
            &["key=\"key-of-n\"", "origin=\"https://evil.test\""][..],
        ),
        (format!("/socket/demo?{query}"), 4005, "unknown path", &["path=\"/socket/demo\""]),
        (
            format!("/app/demo-key?{query}"),
            4009,
            "origin not allowed",
            &["app=\"1001\"", "origin=\"https://evil.test\"", "allowed_origins"],
        ),
        (
            "/app/demo-key?protocol=3&client=js&version=8.4.0".to_owned(),
            4007,
            "unsupported protocol version",
            &["app=\"1001\""],
        ),
    ] {
        server.upgrade(&target, headers).await.rejected(code).await;
        let line = log.line(Level::INFO, what);
        for part in parts.iter().chain(&["count=1", "address=192.0.2.7", "library=\"js 8.4.0\"", "remedy="]) {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
}

#[tokio::test]
async fn mistakes_on_a_connection_are_logged_with_their_channel() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = Server::start().await;
    let mut client = server.connect().await;
    client
        .send(
            json!({ "event": "pusher:subscribe", "data": { "channel": "private-a", "auth": "demo-key:00" } }),
        )
        .await;
    client.next().await;
    client.next().await;
    client
        .send(json!({ "event": "pusher:signin", "data": { "auth": "demo-key:00", "user_data": "{}" } }))
        .await;
    client.next().await;
    client.send(json!({ "event": "client-e", "channel": "private-a", "data": "the payload" })).await;
    client.next().await;
    client.send_text("no JSON").await;
    client.next().await;
    for (what, reason) in [
        ("a subscription was refused", "invalid signature"),
        ("a sign-in was rejected", "invalid signature"),
        ("a client event was rejected", "not subscribed to private-a"),
        ("a client's message was rejected", "reason="),
    ] {
        let line = log.line(Level::INFO, what);
        for part in [reason, "app=\"1001\"", "address=127.0.0.1", &format!("socket={}", client.id)] {
            assert!(line.contains(part), "{part}: {line}");
        }
    }
    assert!(log.line(Level::INFO, "a subscription was refused").contains("channel=\"private-a\""));
    assert!(!log.text().contains("the payload") && !log.text().contains("no JSON"), "{}", log.text());
}

#[tokio::test]
async fn at_debug_an_event_is_logged_with_its_subscribers_and_the_channel_meant() {
    for with_payloads in [false, true] {
        let (log, _logging) = Log::start(Level::DEBUG);
        let server = Server::with(|setup| setup.options.debug = with_payloads).await;
        let headers = &[("origin", "https://a.test")];
        let upgrade = server.upgrade("/app/demo-key?client=js&version=8.4.0", headers).await;
        let mut client = upgrade.established().await;
        let line = log.line(Level::DEBUG, "connection established");
        for part in ["address=127.0.0.1", "origin=\"https://a.test\"", "library=\"js 8.4.0\"", &client.id] {
            assert!(line.contains(part), "{part}: {line}");
        }
        client.subscribe("private-orders").await;
        assert!(log.line(Level::DEBUG, " subscribed").contains("channel=private-orders"));
        server.publish("orders", "e", "the payload").await;
        let line = log.line(Level::DEBUG, "event published");
        assert!(line.contains("subscribers=0 occupied_instead=\"private-orders\""), "{line}");
        assert_eq!(line.contains("the payload"), with_payloads, "{line}");
        server.publish("private-orders", "e", "the payload").await;
        let lines = log.lines(Level::DEBUG, "event published");
        assert!(lines[1].contains("subscribers=1") && !lines[1].contains("occupied_instead"), "{lines:#?}");
        let id = client.id.clone();
        client.close().await;
        eventually("the end is logged", async || !log.lines(Level::DEBUG, "connection closed").is_empty())
            .await;
        assert!(log.line(Level::DEBUG, "connection closed").contains(&id));
        for (at, line) in log.text().lines().enumerate() {
            assert!(!line.contains("Some(") && !line.contains("None"), "line {at} is plain: {line}");
        }
    }
}

#[tokio::test]
async fn a_tls_only_app_accepts_the_tls_flag_of_the_proxy_protocol() {
    let server = Server::with(|setup| {
        setup.app.tls_only = true;
        setup.options.proxy_protocol = true;
    })
    .await;
    // The address of the client, then `PP2_TYPE_SSL` with the bit for TLS.
    let header = |tls: u8| {
        let address = b"\xc0\0\x02\x01\xc6\x33\x64\x01\x12\x67\x17\x71";
        let tlv = [0x20, 0, 5, tls, 0, 0, 0, 0];
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14"[..], address, &tlv].concat()
    };
    let mut over_tls = RawSocket::over(server.tcp().await);
    over_tls.write(&header(1)).await;
    over_tls.upgrade("/app/demo-key").await;
    let mut plain = RawSocket::over(server.tcp().await);
    plain.write(&header(0)).await;
    plain.write(RawSocket::upgrade_request("/app/demo-key").as_bytes()).await;
    plain.read_head().await;
    assert!(plain.next().await.text().contains("4000"));
    server.assert_mistakes(Mistake::TlsOnly, 1);
}
