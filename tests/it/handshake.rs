//! Which connections are accepted, and with which codes the others are rejected. Source: protocol.md §1, §2.1, §2.2.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use pusherd::apps::{KeyPair, OriginPattern};
use pusherd::protocol::signature::SigningKey;
use serde_json::{Value, json};

use crate::harness::{
    Client, NEWS, RawSocket, Request, Server, Setup, frame, frame_head, in_time, text_frame,
};

#[tokio::test]
async fn the_first_frame_says_that_the_connection_is_established() {
    let server = Server::start().await;
    let mut client = server.upgrade("/app/demo-key?protocol=7", &[]).await.client();
    let frame = client.next().await;
    assert_eq!(
        frame,
        json!({ "event": "pusher:connection_established", "data": frame["data"] }),
        "no other keys"
    );
    let data: Value = serde_json::from_str(frame["data"].as_str().unwrap()).unwrap();
    assert_eq!(data, json!({ "socket_id": data["socket_id"], "activity_timeout": 30 }));
    let (left, right) = data["socket_id"].as_str().unwrap().split_once('.').unwrap();
    for half in [left, right] {
        assert!(!half.is_empty() && half.bytes().all(|byte| byte.is_ascii_digit()), "{half} is digits");
    }
    client.fence().await;
}

#[tokio::test]
async fn the_first_frame_contains_the_activity_timeout() {
    let server = Server::with(|setup| setup.options.pusher.activity_timeout = Duration::from_secs(120)).await;
    let mut client = server.upgrade("/app/demo-key", &[]).await.client();
    let data: Value = serde_json::from_str(client.next().await["data"].as_str().unwrap()).unwrap();
    assert_eq!(data["activity_timeout"], json!(120));
}

#[tokio::test]
async fn socket_ids_are_neither_reused_nor_in_sequence() {
    let server = Server::start().await;
    let (mut ids, mut halves) = (HashSet::new(), HashSet::new());
    for _ in 0..50 {
        let client = server.connect().await;
        let (left, right) = client.id.split_once('.').unwrap();
        let [left, right] = [left, right].map(|half| half.parse::<u64>().unwrap());
        halves.extend([left, right]);
        assert!(ids.insert(client.id.clone()));
        assert!(!halves.contains(&(left + 1)) && !halves.contains(&(right + 1)), "{ids:?}");
    }
    assert!(halves.len() > 95, "both halves are random: {ids:?}");
}

#[tokio::test]
async fn the_urls_of_all_clients_are_accepted() {
    let server = Server::start().await;
    for query in [
        "?protocol=7&client=js&version=8.6.0&flash=false",
        "?client=java-client&protocol=5&version=2.4.4",
        "?protocol=5&client=pusher-dotnet-client&version=2.1.0",
        "?protocol=7&client=swift&version=10.1.5",
        "?protocol=5&client=node-pusher&version=0.0.1",
        "?protocol=6",
        "?protocol=",
        "?version=not-a-version&anything=else&flash",
        "/?protocol=7",
        "/",
        "",
    ] {
        server.connect_to(&format!("/app/demo-key{query}")).await.fence().await;
    }
    server.connect_to("/app/demo%2Dkey?protocol=7").await.fence().await;
}

#[tokio::test]
async fn an_unsupported_protocol_is_rejected_with_4007() {
    let server = Server::start().await;
    for protocol in ["0", "1", "2", "3", "4", "8", "99", "x", "7.0", "-7", "7x", "99999999999999999999"] {
        let upgrade = server.upgrade(&format!("/app/demo-key?protocol={protocol}"), &[]).await;
        upgrade.rejected(4007).await;
    }
}

#[tokio::test]
async fn a_missing_protocol_is_rejected_with_4008_only_if_required() {
    let server = Server::with_app(|app| app.require_protocol = true).await;
    for target in ["/app/demo-key", "/app/demo-key?client=js", "/app/demo-key?protocol="] {
        server.upgrade(target, &[]).await.rejected(4008).await;
    }
    server.upgrade("/app/demo-key?protocol=4", &[]).await.rejected(4007).await;
    server.connect_to("/app/demo-key?protocol=5").await;
    server.connect_to("/app/other-key").await;
}

#[tokio::test]
async fn an_unknown_key_is_rejected_with_4001() {
    let server = Server::start().await;
    for key in ["nope", "demo-ke", "demo-key2", "DEMO-KEY", "1001", "demo-secret"] {
        server.upgrade(&format!("/app/{key}?protocol=7"), &[]).await.rejected(4001).await;
    }
}

#[tokio::test]
async fn every_active_key_of_an_app_is_accepted() {
    let server = Server::with_app(|app| {
        app.keys.push(KeyPair { key: "second-key".into(), secret: SigningKey::new("second-secret") });
    })
    .await;
    let (mut first, mut second) = (server.connect().await, server.connect_to("/app/second-key").await);
    for client in [&mut first, &mut second] {
        client.subscribe(NEWS).await;
    }
    server.publish(NEWS, "e", "to both").await;
    for client in [&mut first, &mut second] {
        client.expect(json!({ "event": "e", "channel": NEWS, "data": "to both" })).await;
    }
}

#[tokio::test]
async fn a_disabled_app_is_rejected_with_4003() {
    let server = Server::with_app(|app| app.enabled = false).await;
    server.upgrade("/app/demo-key?protocol=7", &[]).await.rejected(4003).await;
    server.connect_to("/app/other-key").await;
}

#[tokio::test]
async fn an_unknown_path_is_rejected_with_4005() {
    let server = Server::start().await;
    for target in [
        "/",
        "/app",
        "/app/",
        "/app/demo-key/more",
        "/apps/1001/events",
        "/rt/app/demo-key",
        "/pusher/app/demo-key",
        "/APP/demo-key",
    ] {
        server.upgrade(target, &[]).await.rejected(4005).await;
    }
}

#[tokio::test]
async fn plain_http_on_the_websocket_path_is_answered_with_426() {
    let server = Server::start().await;
    for target in ["/app/demo-key", "/app/nope?protocol=7"] {
        let answer = server.send(Request::get(target)).await;
        assert_eq!(answer.status, 426);
        assert_eq!(answer.header("upgrade"), Some("websocket"));
    }
    server.send(Request::get("/app/demo-key/more")).await.rejected(404);
}

#[tokio::test]
async fn a_foreign_origin_is_rejected_with_4009_and_a_native_client_is_not() {
    let server = Server::with_app(|app| {
        app.allowed_origins =
            ["app.example.com", "*.ours.test"].map(|origin| OriginPattern::parse(origin).unwrap()).into();
    })
    .await;
    server.connect().await;
    for origin in ["https://app.example.com", "http://app.example.com:8000", "https://a.ours.test"] {
        let upgrade = server.upgrade("/app/demo-key", &[("origin", origin)]).await;
        upgrade.established().await;
    }
    for origin in
        ["https://evil.test", "null", "https://app.example.com.evil.test", "https://xapp.example.com", ""]
    {
        server.upgrade("/app/demo-key", &[("origin", origin)]).await.rejected(4009).await;
    }
    server.upgrade("/app/other-key", &[("origin", "https://evil.test")]).await.established().await;
}

#[tokio::test]
async fn a_plain_connection_to_a_tls_only_app_is_rejected_with_4000() {
    let require_tls = |setup: &mut Setup| setup.app.tls_only = true;
    let server = Server::with(require_tls).await;
    server.upgrade("/app/demo-key", &[]).await.rejected(4000).await;
    server.upgrade("/app/demo-key", &[("x-forwarded-proto", "http")]).await.rejected(4000).await;
    server.upgrade("/app/demo-key", &[("x-forwarded-proto", "https")]).await.established().await;
    let wary = Server::with(|setup| {
        require_tls(setup);
        setup.options.addresses.trusted_proxies.clear();
    })
    .await;
    wary.upgrade("/app/demo-key", &[("x-forwarded-proto", "https")]).await.rejected(4000).await;
}

#[tokio::test]
async fn an_app_at_its_connection_limit_is_rejected_with_4004_until_a_permit_is_released() {
    let server = Server::with_app(|app| app.limits.connections_max = Some(2)).await;
    let [first, mut second] = server.connect_many().await;
    server.upgrade("/app/demo-key", &[]).await.rejected(4004).await;
    server.connect_to("/app/other-key").await;
    second.fence().await;

    first.close().await;
    connect_again(&server).await;
}

/// Connects as soon as the app has a permit again.
async fn connect_again(server: &Server) -> RawSocket {
    in_time("a free permit", async {
        loop {
            let mut raw = RawSocket::over(server.tcp().await);
            raw.write(RawSocket::upgrade_request("/app/demo-key").as_bytes()).await;
            raw.read_head().await;
            if raw.next().await.text().contains("pusher:connection_established") {
                return raw;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_permit_is_released_whichever_way_a_connection_ends() {
    let server = Server::with_app(|app| app.limits.connections_max = Some(1)).await;
    let closed = server.connect().await;
    closed.close().await;
    let reset = connect_again(&server).await;
    reset.reset();
    let hung_up = connect_again(&server).await;
    drop(hung_up);
    let mut broken = connect_again(&server).await;
    broken.write(&frame(0x82, b"binary")).await;
    broken.expect_close(1003).await;
    let mut silent = connect_again(&server).await;
    silent.write(&frame_head(0x81, u64::from(u32::MAX))).await;
    silent.expect_close(1009).await;
    connect_again(&server).await.fence().await;
}

#[tokio::test]
async fn the_connection_limit_is_never_exceeded_in_a_race() {
    let server = Server::with_app(|app| app.limits.connections_max = Some(5)).await;
    let upgrades = (0..20).map(|_| server.upgrade("/app/demo-key", &[]));
    let mut clients: Vec<Client> =
        join_all(upgrades).await.into_iter().map(|upgrade| upgrade.client()).collect();
    let mut established = 0;
    for client in &mut clients {
        match client.next().await["event"].as_str() {
            Some("pusher:connection_established") => established += 1,
            other => assert_eq!(other, Some("pusher:error")),
        }
    }
    assert_eq!(established, 5);
}

#[tokio::test]
async fn a_node_at_its_connection_limit_rejects_with_4100() {
    let server = Server::with(|setup| setup.options.pusher.connections_max = Some(1)).await;
    let first = server.connect().await;
    server.upgrade("/app/demo-key", &[]).await.rejected(4100).await;
    server.upgrade("/app/other-key", &[]).await.rejected(4100).await;
    first.close().await;
    server.has_connections(0).await;
    server.connect_to("/app/other-key").await;
}

#[tokio::test]
async fn a_permit_of_the_node_is_held_until_the_socket_closes() {
    let server = Server::with(|setup| setup.options.pusher.connections_max = Some(1)).await;
    let mut open = RawSocket::over(server.tcp().await);
    open.upgrade("/app/demo-key").await;
    open.write(&frame(0x82, b"binary")).await;
    assert_eq!(open.next().await.first, 0x88, "a Close");
    // It does not reply to the Close, so its socket stays open for two seconds more, and the app does not count it.
    server.has_connections(0).await;
    server.upgrade("/app/demo-key", &[]).await.rejected(4100).await;
    connect_again(&server).await.fence().await;
}

#[tokio::test]
async fn the_first_check_that_fails_decides() {
    let refused = async |change: fn(&mut Setup), target: &str, code: u16| {
        let server = Server::with(change).await;
        server.upgrade(target, &[("origin", "https://evil.test")]).await.rejected(code).await;
    };
    const ALL_WRONG: fn(&mut Setup) = |setup| {
        let app = &mut setup.app;
        app.tls_only = true;
        app.enabled = false;
        app.allowed_origins = vec![OriginPattern::parse("app.example.com").unwrap()];
        app.limits.connections_max = Some(0);
        setup.options.pusher.connections_max = Some(0);
    };
    refused(ALL_WRONG, "/app/nope/more?protocol=99", 4005).await;
    refused(ALL_WRONG, "/app/nope?protocol=99", 4001).await;
    refused(ALL_WRONG, "/app/demo-key?protocol=99", 4000).await;
    const AND_TLS: fn(&mut Setup) = |setup| {
        ALL_WRONG(setup);
        setup.app.tls_only = false;
    };
    refused(AND_TLS, "/app/demo-key?protocol=99", 4003).await;
    const AND_ENABLED: fn(&mut Setup) = |setup| {
        AND_TLS(setup);
        setup.app.enabled = true;
    };
    refused(AND_ENABLED, "/app/demo-key?protocol=99", 4007).await;
    refused(AND_ENABLED, "/app/demo-key?protocol=7", 4009).await;
    const AND_ORIGIN: fn(&mut Setup) = |setup| {
        AND_ENABLED(setup);
        setup.app.allowed_origins.clear();
    };
    refused(AND_ORIGIN, "/app/demo-key?protocol=7", 4004).await;
    const AND_QUOTA: fn(&mut Setup) = |setup| {
        AND_ORIGIN(setup);
        setup.app.limits.connections_max = None;
    };
    refused(AND_QUOTA, "/app/demo-key?protocol=7", 4100).await;
}

#[tokio::test]
async fn a_rejected_client_that_does_not_answer_the_close_is_dropped() {
    let server = Server::start().await;
    let mut raw = RawSocket::over(server.tcp().await);
    raw.write(RawSocket::upgrade_request("/app/nope").as_bytes()).await;
    raw.read_head().await;
    let error: Value = serde_json::from_str(raw.next().await.text()).unwrap();
    assert_eq!(error["data"]["code"], json!(4001));
    assert_eq!(raw.next().await.close(), (Some(4001), error["data"]["message"].as_str().unwrap()));
    raw.ends().await;
}

#[tokio::test]
async fn the_reason_of_a_rejection_fits_a_close_frame_whatever_the_key() {
    let server = Server::start().await;
    for key in ["k".repeat(3000), "%C3%A9".repeat(500), "%F0%9F%98%80".repeat(31), "%FF".repeat(90)] {
        server.upgrade(&format!("/app/{key}"), &[]).await.rejected(4001).await;
    }
}

#[tokio::test]
async fn frames_sent_with_the_upgrade_are_answered_after_the_established_frame() {
    let server = Server::start().await;
    let mut raw = RawSocket::over(server.tcp().await);
    let mut bytes = RawSocket::upgrade_request("/app/demo-key").into_bytes();
    bytes.extend(text_frame(r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#));
    bytes.extend(text_frame(r#"{"event":"pusher:ping"}"#));
    raw.write(&bytes).await;
    raw.read_head().await;
    for event in ["pusher:connection_established", "pusher_internal:subscription_succeeded", "pusher:pong"] {
        let frame = raw.next().await;
        assert!(frame.text().starts_with(&format!(r#"{{"event":"{event}""#)), "{event}: {frame:?}");
    }
    raw.fence().await;
}

#[tokio::test]
async fn the_response_to_an_upgrade_is_that_of_rfc_6455() {
    let server = Server::start().await;
    let mut raw = RawSocket::over(server.tcp().await);
    raw.write(RawSocket::upgrade_request("/app/demo-key").as_bytes()).await;
    let head = raw.read_head().await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    for line in [
        "upgrade: websocket",
        "connection: upgrade",
        &"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_ascii_lowercase(),
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    for absent in ["sec-websocket-protocol", "sec-websocket-extensions"] {
        assert!(!head.contains(absent), "{absent} was not offered: {head}");
    }
}

#[tokio::test]
async fn the_headers_of_an_upgrade_may_be_written_as_browsers_and_proxies_do() {
    let server = Server::start().await;
    let usual = RawSocket::upgrade_request("/app/demo-key");
    for (line, instead) in [
        ("Connection: Upgrade", "Connection: keep-alive, Upgrade"),
        ("Connection: Upgrade", "Connection: upgrade"),
        ("Connection: Upgrade", "connection:upgrade,keep-alive"),
        ("Upgrade: websocket", "Upgrade: WebSocket"),
        ("Sec-WebSocket-Key", "sec-websocket-key"),
    ] {
        let mut raw = RawSocket::over(server.tcp().await);
        raw.write(usual.replace(line, instead).as_bytes()).await;
        let head = raw.read_head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{instead}: {head}");
        assert!(raw.next().await.text().contains("pusher:connection_established"));
        raw.fence().await;
    }
}

#[tokio::test]
async fn a_connection_may_be_upgraded_after_other_requests() {
    let server = Server::start().await;
    let mut http = server.http().await;
    http.send(Request::get("/up")).await.ok();
    http.write(RawSocket::upgrade_request("/app/demo-key").as_bytes()).await;
    assert_eq!(http.answer().await.status, 101);
    let mut raw = http.into_websocket();
    assert!(raw.next().await.text().contains("pusher:connection_established"));
    raw.fence().await;
}

#[tokio::test]
async fn an_invalid_upgrade_gets_an_http_error() {
    let server = Server::start().await;
    let valid = RawSocket::upgrade_request("/app/demo-key");
    for (line, instead) in [
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"),
        ("Sec-WebSocket-Version: 13", "X-Nothing: 1"),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "X-Nothing: 1"),
        ("Connection: Upgrade", "Connection: keep-alive"),
        ("GET ", "POST "),
    ] {
        let mut raw = RawSocket::over(server.tcp().await);
        raw.write(valid.replace(line, instead).as_bytes()).await;
        let head = raw.read_head().await;
        assert!(head.starts_with("HTTP/1.1 4"), "{instead}: {head}");
        if instead.contains("Version") {
            assert!(head.to_ascii_lowercase().contains("sec-websocket-version: 13"), "{head}");
        }
    }
}

#[tokio::test]
async fn one_offered_subprotocol_is_selected_and_pushers_is_preferred() {
    let server = Server::start().await;
    for (offer, selected) in [
        ("pusher-channels-protocol-7", "pusher-channels-protocol-7"),
        ("mine, pusher-channels-protocol-7", "pusher-channels-protocol-7"),
        ("mine,other", "mine"),
        ("mine", "mine"),
    ] {
        let upgrade = server.upgrade("/app/demo-key", &[("sec-websocket-protocol", offer)]).await;
        assert_eq!(upgrade.header("sec-websocket-protocol"), Some(selected), "{offer}");
        upgrade.established().await.fence().await;
    }
    let upgrade = server.upgrade("/app/nope", &[("sec-websocket-protocol", "mine")]).await;
    assert_eq!(upgrade.header("sec-websocket-protocol"), Some("mine"), "also of a refused connection");
    upgrade.rejected(4001).await;
}

#[tokio::test]
async fn an_offer_of_compression_is_declined_unless_the_app_enables_it() {
    let server = Server::start().await;
    let offer = [("sec-websocket-extensions", "permessage-deflate; client_max_window_bits")];
    let upgrade = server.upgrade("/app/demo-key", &offer).await;
    assert_eq!(upgrade.header("sec-websocket-extensions"), None);
    upgrade.established().await.fence().await;
}

#[tokio::test]
async fn a_path_prefix_is_served_in_addition_to_the_bare_path() {
    let server = Server::with_app(|app| app.path_prefix = "/rt".into()).await;
    for target in ["/rt/app/demo-key?protocol=7", "/app/demo-key?protocol=7", "/rt/app/demo-key/"] {
        server.connect_to(target).await.fence().await;
    }
    for target in [
        "/rtx/app/demo-key",
        "/x/rt/app/demo-key",
        "/rt/rt/app/demo-key",
        "/rtapp/demo-key",
        "/rt/app/other-key",
    ] {
        server.upgrade(target, &[]).await.rejected(4005).await;
    }
}

#[tokio::test]
async fn the_http_fallbacks_of_pusher_js_fail_at_once() {
    let server = Server::start().await;
    for target in ["/pusher/app/demo-key/123/abcdefgh/xhr_streaming?protocol=7", "/pusher/", "/sockjs/info"] {
        server.send(Request::post(target, "")).await.rejected(404);
        server.send(Request::get(target)).await.rejected(404);
    }
}

#[tokio::test]
async fn a_client_that_resets_during_the_upgrade_leaves_nothing_behind() {
    let server = Server::with_app(|app| app.limits.connections_max = Some(3)).await;
    for _ in 0..20 {
        let stream = server.tcp().await;
        let mut raw = RawSocket::over(stream);
        raw.write(RawSocket::upgrade_request("/app/demo-key").as_bytes()).await;
        raw.reset();
    }
    server.has_connections(0).await;
    in_time("three permits", server.connect_many::<3>()).await;
}
