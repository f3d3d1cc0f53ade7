//! TLS: wss and https behave as ws and http do, whatever the records and segments in which bytes arrive.

use std::fs;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pusherd::limits::Limit;
use pusherd::rejections::Mistake;
use pusherd::server::{Shutdown, Tls};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use serde_json::{Value, json};
use socket2::SockRef;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::Level;

use crate::harness::{
    Client, Http, Log, NEWS, RawSocket, Request, Server, Setup, Upgrade, eventually, in_time, text_frame,
};

const DEMO_APP: &str = "/app/demo-key?protocol=7&client=js&version=8.6.0&flash=false";

/// The supported versions.
const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// A certificate for `localhost`, in two files.
struct Certificate {
    folder: TempDir,
}

impl Certificate {
    fn new() -> Self {
        let certificate = Self { folder: tempfile::tempdir().unwrap() };
        certificate.renew();
        certificate
    }

    /// Writes another certificate into the files.
    fn renew(&self) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(self.folder.path().join("cert.pem"), made.cert.pem()).unwrap();
        fs::write(self.folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    }

    fn load(&self) -> Tls {
        Tls::load(self.folder.path().join("cert.pem"), self.folder.path().join("key.pem")).unwrap()
    }

    /// A client that trusts only the current certificate.
    fn client_config(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let pem = fs::read(self.folder.path().join("cert.pem")).unwrap();
        roots.add(rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

/// A server that also listens with TLS, and its certificate.
struct Secure {
    server: Server,
    certificate: Certificate,
    tls: Tls,
}

impl std::ops::Deref for Secure {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Secure {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let certificate = Certificate::new();
        let tls = certificate.load();
        let server = Server::with(|setup| {
            setup.tls = Some(tls.clone());
            change(setup);
        })
        .await;
        Self { server, certificate, tls }
    }

    /// A TCP connection to the TLS port.
    async fn tcp_for_tls(&self) -> TcpStream {
        let stream = TcpStream::connect(self.tls_address.unwrap());
        let stream = in_time("a TCP connection", stream).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    async fn try_tls(&self, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        self.tls_over(self.tcp_for_tls().await, config).await
    }

    async fn tls_over(
        &self,
        stream: TcpStream,
        config: ClientConfig,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let connecting = TlsConnector::from(Arc::new(config)).connect(localhost(), stream);
        in_time("a TLS handshake", connecting).await
    }

    /// A TLS connection.
    async fn tls(&self) -> TlsStream<TcpStream> {
        self.try_tls(self.certificate.client_config(&VERSIONS)).await.unwrap()
    }

    /// An established connection over TLS.
    async fn wss(&self) -> Client<TlsStream<TcpStream>> {
        Upgrade::of(self.tls().await, DEMO_APP, &[]).await.established().await
    }

    /// An established connection over TLS, frame by frame.
    async fn raw_wss(&self) -> RawSocket<TlsStream<TcpStream>> {
        let mut raw = RawSocket::over(self.tls().await);
        raw.upgrade("/app/demo-key").await;
        raw
    }

    /// An established connection on `news` whose kernel buffers at most `ahead_bytes`.
    async fn subscribe_without_reading(&self, ahead_bytes: usize) -> RawSocket<TlsStream<TcpStream>> {
        let mut raw = self.raw_wss().await;
        SockRef::from(raw.stream().get_ref().0).set_recv_buffer_size(ahead_bytes).unwrap();
        raw.send(r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#).await;
        assert!(raw.next().await.text().contains("subscription_succeeded"));
        raw
    }
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// Data that shows where it was cut or reordered.
fn numbered(bytes: usize) -> String {
    (0..)
        .map(|number: u32| format!("{number},"))
        .flat_map(|text| text.into_bytes())
        .map(char::from)
        .take(bytes)
        .collect()
}

#[tokio::test]
async fn the_http_api_is_served_over_https() {
    let server = Secure::start().await;
    let mut client = server.connect().await;
    client.subscribe(NEWS).await;
    let mut config = server.certificate.client_config(&VERSIONS);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = server.try_tls(config).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut http = Http::over(stream);
    for at in 0..3 {
        let data = numbered(100_000);
        let body = json!({ "name": at.to_string(), "channel": NEWS, "data": data }).to_string();
        http.send(Request::post("/apps/1001/events", body).signed()).await.ok();
        client.expect(json!({ "event": at.to_string(), "channel": NEWS, "data": data })).await;
        let channels = http.send(Request::get("/apps/1001/channels").signed()).await.ok();
        assert_eq!(channels, json!({ "channels": { NEWS: {} } }));
    }
    assert_eq!(http.send(Request::get("/apps/1001/channels")).await.status, 401);
}

#[tokio::test]
async fn a_client_over_wss_works_as_over_ws() {
    let server = Secure::start().await;
    for version in VERSIONS {
        let stream = server.try_tls(server.certificate.client_config(&[version])).await.unwrap();
        let mut one = Upgrade::of(stream, DEMO_APP, &[]).await.established().await;
        let mut other = server.connect().await;
        let channel = "private-room";
        one.subscribe(channel).await;
        other.subscribe(channel).await;
        one.whisper(channel, "client-a", json!({ "n": 1 })).await;
        assert_eq!(other.next().await["data"], json!({ "n": 1 }));
        other.whisper(channel, "client-b", json!({ "n": 2 })).await;
        assert_eq!(one.next().await["data"], json!({ "n": 2 }));
        server.publish(channel, "e", "over http").await;
        one.expect(json!({ "event": "e", "channel": channel, "data": "over http" })).await;
        one.join("presence-room", json!({ "user_id": "7" })).await;
        one.fence().await;
        one.close().await;
        server.has_connections(1).await;
        drop(other);
        server.has_connections(0).await;
    }
}

#[tokio::test]
async fn many_clients_over_tls_get_everything_in_order() {
    let server = Secure::start().await;
    let mut clients = join_all((0..60).map(|_| server.wss())).await;
    for client in &mut clients {
        client.subscribe(NEWS).await;
    }
    let mut plain = server.connect().await;
    plain.subscribe(NEWS).await;
    let (events, data) = (40, numbered(3000));
    let publishing = async {
        for at in (0..events).step_by(10) {
            let batch: Vec<_> = (at..at + 10)
                .map(|at| json!({ "name": at.to_string(), "channel": NEWS, "data": data }))
                .collect();
            server.post_json("/apps/1001/batch_events", json!({ "batch": batch })).await.ok();
        }
    };
    let reading = join_all(clients.iter_mut().map(async |client| {
        for at in 0..events {
            client.expect(json!({ "event": at.to_string(), "channel": NEWS, "data": data })).await;
        }
    }));
    tokio::join!(publishing, reading);
    for at in 0..events {
        plain.expect(json!({ "event": at.to_string(), "channel": NEWS, "data": data })).await;
    }
}

#[tokio::test]
async fn frames_larger_than_a_tls_record_arrive_whole() {
    let large = 1024 * 1024;
    let server = Secure::with(|setup| {
        setup.app.limits.event_data_bytes_max = large;
        setup.app.limits.request_body_bytes_max = 3 * large;
        setup.app.limits.client_event_data_bytes_max = large;
        setup.app.limits.message_bytes_max = 2 * large;
    })
    .await;
    let channel = "private-room";
    let (mut one, mut other) = (server.wss().await, server.wss().await);
    one.subscribe(channel).await;
    other.subscribe(channel).await;
    for bytes in [16_000, 16_384, 16_385, 32_768, 65_536, 300_000, 1_000_000] {
        let data = numbered(bytes);
        server.publish(channel, "e", &data).await;
        for client in [&mut one, &mut other] {
            client.expect(json!({ "event": "e", "channel": channel, "data": data })).await;
        }
        one.whisper(channel, "client-e", data.clone().into()).await;
        assert_eq!(other.next().await["data"], json!(data), "{bytes}");
    }
    one.fence().await;
}

#[tokio::test]
async fn a_client_over_tls_that_never_reads_is_disconnected_and_the_others_get_everything() {
    let server = Secure::start().await;
    let stuck = [server.subscribe_without_reading(4096).await, server.subscribe_without_reading(4096).await];
    let mut reading = server.wss().await;
    reading.subscribe(NEWS).await;
    let data = numbered(100_000);
    for at in 0..100 {
        server.publish(NEWS, &at.to_string(), &data).await;
        assert_eq!(reading.next().await["event"], at.to_string());
    }
    server.has_subscriptions(NEWS, 1).await;
    server.has_connections(1).await;
    for mut raw in stuck {
        while raw.next_or_end().await.is_some() {}
    }
    reading.fence().await;
}

#[tokio::test]
async fn a_client_over_tls_that_reads_too_late_is_closed_with_4100() {
    let server = Secure::with(|setup| setup.app.limits.outbox_bytes_max = 1024 * 1024).await;
    let mut late = server.subscribe_without_reading(64 * 1024).await;
    let data = numbered(100_000);
    for _ in 0..30 {
        server.publish(NEWS, "e", &data).await;
    }
    server.has_subscriptions(NEWS, 0).await;
    let mut last = late.next().await;
    while last.text().starts_with(r#"{"event":"e","#) {
        last = late.next().await;
    }
    let error: Value = serde_json::from_str(last.text()).unwrap();
    assert_eq!(error["data"]["code"], json!(4100), "{error}");
    late.expect_close(4100).await;
}

#[tokio::test]
async fn a_client_over_tls_that_reads_again_in_time_loses_nothing() {
    let server = Secure::start().await;
    let mut late = server.subscribe_without_reading(64 * 1024).await;
    let data = numbered(20_000);
    for at in 0..100 {
        server.publish(NEWS, &at.to_string(), &data).await;
    }
    for at in 0..100 {
        let frame: Value = serde_json::from_str(late.next().await.text()).unwrap();
        assert_eq!(frame, json!({ "event": at.to_string(), "channel": NEWS, "data": data }));
    }
    late.fence().await;
}

/// A TLS client by hand, to send its bytes in any chunks.
struct ManualClient {
    session: ClientConnection,
    stream: TcpStream,
    chunk_bytes: usize,
    /// Received text that no test has checked yet.
    unread: String,
}

impl ManualClient {
    async fn connect(server: &Secure, config: ClientConfig, chunk_bytes: usize) -> Self {
        let session = ClientConnection::new(Arc::new(config), localhost()).unwrap();
        let stream = server.tcp_for_tls().await;
        let mut client = Self { session, stream, chunk_bytes, unread: String::new() };
        while client.session.is_handshaking() {
            client.write_records().await;
            if client.session.is_handshaking() {
                assert!(client.receive().await);
            }
        }
        client.write_records().await;
        client
    }

    async fn write_records(&mut self) {
        let mut encrypted = Vec::new();
        while self.session.wants_write() {
            self.session.write_tls(&mut encrypted).unwrap();
        }
        for chunk in encrypted.chunks(self.chunk_bytes) {
            in_time("the server accepts a chunk", self.stream.write_all(chunk)).await.unwrap();
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.session.writer().write_all(bytes).unwrap();
        self.write_records().await;
    }

    /// Reads more; `false` at the end.
    async fn receive(&mut self) -> bool {
        let mut encrypted = [0; 4096];
        let read = in_time("something to read", self.stream.read(&mut encrypted)).await.unwrap_or(0);
        let mut encrypted = &encrypted[..read];
        while !encrypted.is_empty() && self.session.read_tls(&mut encrypted).unwrap() > 0 {
            self.session.process_new_packets().unwrap();
        }
        read > 0
    }

    /// Reads until `text` has been received.
    async fn expect(&mut self, text: &str) {
        loop {
            if let Some(at) = self.unread.find(text) {
                self.unread.drain(..at + text.len());
                return;
            }
            let mut decrypted = [0; 4096];
            match self.session.reader().read(&mut decrypted) {
                Ok(0) => panic!("the end came before {text}: {}", self.unread),
                Ok(read) => self.unread.push_str(&String::from_utf8_lossy(&decrypted[..read])),
                Err(_) => assert!(self.receive().await, "the end came before {text}: {}", self.unread),
            }
        }
    }
}

#[tokio::test]
async fn input_over_tls_is_read_whatever_its_segments_and_records() {
    let server = Secure::start().await;
    let subscribe = text_frame(r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#);
    for version in VERSIONS {
        for (chunk_bytes, record_bytes) in [(1, None), (1, Some(32)), (usize::MAX, Some(32)), (7, Some(33))] {
            let mut config = server.certificate.client_config(&[version]);
            config.max_fragment_size = record_bytes;
            let mut client = ManualClient::connect(&server, config, chunk_bytes).await;
            client.send(RawSocket::upgrade_request("/app/demo-key").as_bytes()).await;
            client.expect("connection_established").await;
            client.send(&subscribe).await;
            client.expect("subscription_succeeded").await;
        }
    }
}

#[tokio::test]
async fn frames_sent_before_the_upgrade_response_are_read() {
    let server = Secure::start().await;
    let upgrade = RawSocket::upgrade_request("/app/demo-key").into_bytes();
    let subscribe = text_frame(r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#);
    let ping = text_frame(r#"{"event":"pusher:ping","data":{}}"#);
    // In one record, in a record each, and more than hyper reads ahead.
    for (record_bytes, pings) in [(None, 1), (Some(300), 1), (Some(300), 200), (None, 1000)] {
        let mut config = server.certificate.client_config(&VERSIONS);
        config.max_fragment_size = record_bytes;
        let mut client = ManualClient::connect(&server, config, usize::MAX).await;
        client.send(&[&upgrade[..], &subscribe, &ping.repeat(pings)].concat()).await;
        client.expect("subscription_succeeded").await;
        for _ in 0..pings {
            client.expect("pusher:pong").await;
        }
    }
}

#[tokio::test]
async fn a_client_may_update_its_traffic_keys() {
    let server = Secure::start().await;
    let config = server.certificate.client_config(&[&rustls::version::TLS13]);
    let mut client = ManualClient::connect(&server, config, usize::MAX).await;
    client.send(RawSocket::upgrade_request("/app/demo-key").as_bytes()).await;
    client.expect("connection_established").await;
    let ping = text_frame(r#"{"event":"pusher:ping","data":{}}"#);
    for _ in 0..5 {
        client.session.refresh_traffic_keys().unwrap();
        client.write_records().await;
        client.send(&ping).await;
        client.expect("pusher:pong").await;
    }
}

#[tokio::test]
async fn a_stalled_handshake_is_dropped_and_delays_no_other_client() {
    let server = Secure::with(|setup| setup.options.handshake_timeout = Duration::from_millis(500)).await;
    let mut silent = server.tcp_for_tls().await;
    // The beginning of a ClientHello of 512 bytes.
    let mut begun = server.tcp_for_tls().await;
    begun.write_all(&[22, 3, 1, 2, 0, 1, 0, 1]).await.unwrap();
    // A whole handshake, and no request.
    let mut idle = server.tls().await;
    let mut client = server.wss().await;
    client.fence().await;
    let mut rest = Vec::new();
    for (what, stream) in [("silent", &mut silent), ("begun", &mut begun)] {
        let _ = in_time(what, stream.read_to_end(&mut rest)).await;
    }
    let _ = in_time("idle", idle.read_to_end(&mut rest)).await;
    assert_eq!(rest, b"");
    client.fence().await;
}

#[tokio::test]
async fn plain_http_on_the_tls_port_is_answered_with_a_reason_and_logged() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = Secure::start().await;
    for request in [Request::get("/up"), Request::post("/apps/1001/events", vec![b'x'; 100_000]).signed()] {
        let mut http = Http::over(server.tcp_for_tls().await);
        let answer = http.send(request).await;
        assert_eq!(answer.status, 400);
        let body = String::from_utf8(answer.body).unwrap();
        assert!(body.contains("This port speaks TLS"), "{body}");
        http.ends().await;
    }
    // A WebSocket client gets an error frame, and a code that makes pusher-js try TLS.
    let mut upgrade = RawSocket::over(server.tcp_for_tls().await);
    upgrade.write(RawSocket::upgrade_request("/app/demo-key").as_bytes()).await;
    assert!(upgrade.read_head().await.starts_with("HTTP/1.1 101 "));
    assert!(upgrade.next().await.text().contains("This port speaks TLS"));
    assert_eq!(upgrade.next().await.close().0, Some(4000));
    server.assert_mistakes(Mistake::PlainOnTlsPort, 3);
    let line = log.line(Level::INFO, "a client speaks plain HTTP to a port with TLS");
    for part in ["count=1", "address=127.0.0.1", "PUSHER_SCHEME=https", "forceTLS: true"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[tokio::test]
async fn an_aborted_handshake_is_counted() {
    let server = Secure::start().await;
    // The client trusts another certificate.
    let config = Certificate::new().client_config(&VERSIONS);
    assert!(server.try_tls(config).await.is_err());
    eventually("the handshake is counted", async || {
        server.metrics.rejected(Mistake::TlsHandshake).get() == 1
    })
    .await;
}

#[tokio::test]
async fn tls_on_the_plain_port_is_answered_with_a_tls_alert() {
    let server = Secure::start().await;
    let error =
        server.tls_over(server.tcp().await, server.certificate.client_config(&VERSIONS)).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    server.assert_mistakes(Mistake::TlsOnPlainPort, 1);
    // The same as bytes.
    let mut raw = server.tcp().await;
    raw.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await.unwrap();
    let mut answer = Vec::new();
    in_time("the alert", raw.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
}

#[tokio::test]
async fn other_protocols_inside_tls_are_answered_and_logged_as_without_tls() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = Secure::start().await;
    let reply_to = async |bytes: &[u8]| {
        let mut stream = server.tls().await;
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        in_time("the server disconnects", stream.read_to_end(&mut answer)).await.unwrap();
        answer
    };
    let answer = reply_to(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let (settings, goaway) = answer.split_at(9);
    assert_eq!(settings, [0, 0, 0, 4, 0, 0, 0, 0, 0]);
    assert_eq!(goaway[3..17], [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13], "HTTP_1_1_REQUIRED");
    server.assert_mistakes(Mistake::Http2, 1);
    let line = log.line(Level::INFO, "speaks HTTP/2 to a port with HTTP/1.1");
    assert!(line.contains("address=127.0.0.1"), "{line}");
    let answer = reply_to(b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 6001\r\nGET /up HTTP/1.1\r\n\r\n").await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("PROXY protocol"), "{answer}");
    assert_eq!(server.metrics.rejected(Mistake::ProxyHeader).get(), 1);
    // A request that arrives in two segments is served.
    let mut stream = server.tls().await;
    stream.write_all(b"P").await.unwrap();
    stream.flush().await.unwrap();
    let mut http = Http::over(stream);
    let publish = Request::post("/apps/1001/events", r#"{"name":"e","channel":"news","data":""}"#).signed();
    http.write(&publish.to_bytes()[1..]).await;
    http.answer().await.ok();
}

#[tokio::test]
async fn a_client_that_offers_only_h2_is_rejected_by_alpn_and_logged() {
    let (log, _logging) = Log::start(Level::INFO);
    let server = Secure::start().await;
    for version in VERSIONS {
        let mut config = server.certificate.client_config(&[version]);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let error = server.try_tls(config).await.unwrap_err();
        assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    }
    let counted = || server.metrics.rejected(Mistake::TlsHandshake).get();
    eventually("both are counted", async || counted() == 2).await;
    let line = log.line(Level::INFO, "a TLS handshake failed");
    assert!(line.contains("offers no http/1.1"), "{line}");
    // A client that offers nothing, or http/1.1 as well, is served.
    for offered in [vec![], vec![b"h2".to_vec(), b"http/1.1".to_vec()]] {
        let mut config = server.certificate.client_config(&VERSIONS);
        config.alpn_protocols = offered;
        let mut http = Http::over(server.try_tls(config).await.unwrap());
        assert_eq!(http.send(Request::get("/up")).await.status, 200);
    }
}

#[tokio::test]
async fn garbage_closes_its_own_connection_only() {
    let server = Secure::start().await;
    let mut client = server.wss().await;
    client.subscribe(NEWS).await;
    for garbage in
        [&[0x80; 600][..], &[22; 600], &[22, 3, 1, 255, 255], &[22, 3, 3, 0, 4, 1, 255, 255, 255], b"\0"]
    {
        let mut stream = server.tcp_for_tls().await;
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let _ = in_time("the server disconnects", stream.read_to_end(&mut rest)).await;
    }
    // Within an established connection as well.
    let mut raw = server.raw_wss().await;
    server.has_connections(2).await;
    raw.stream_mut()
        .get_mut()
        .0
        .write_all(&[23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0])
        .await
        .unwrap();
    server.has_connections(1).await;
    raw.ends().await;
    client.fence().await;
}

#[tokio::test]
async fn a_client_that_sends_close_notify_is_disconnected() {
    let server = Secure::start().await;
    let mut raw = server.raw_wss().await;
    raw.send(r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#).await;
    server.has_subscriptions(NEWS, 1).await;
    let (stream, session) = raw.stream_mut().get_mut();
    session.send_close_notify();
    let mut encrypted = Vec::new();
    session.write_tls(&mut encrypted).unwrap();
    // The TCP connection stays open, and the bytes that follow are ignored.
    stream.write_all(&[&encrypted[..], &[0; 100]].concat()).await.unwrap();
    server.has_connections(0).await;
    // Without close_notify as well.
    let mut raw = server.raw_wss().await;
    server.has_connections(1).await;
    raw.stream_mut().get_mut().0.shutdown().await.unwrap();
    server.has_connections(0).await;
}

#[tokio::test]
async fn the_end_of_a_connection_is_announced_with_close_notify() {
    let server = Secure::start().await;
    for version in VERSIONS {
        let stream = server.try_tls(server.certificate.client_config(&[version])).await.unwrap();
        let mut raw = RawSocket::over(stream);
        raw.upgrade("/app/demo-key").await;
        // A Close without a code.
        raw.write(&[0x88, 0x80, 1, 2, 3, 4]).await;
        assert_eq!(raw.next().await.close().0, None);
        // An end without close_notify would be an error.
        let end = in_time("the end", raw.stream_mut().read(&mut [0; 16])).await;
        assert_eq!(end.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_tls_only_app_accepts_connections_of_the_tls_port() {
    let server = Secure::with(|setup| {
        setup.app.tls_only = true;
        setup.options.addresses.trusted_proxies.clear();
    })
    .await;
    server.upgrade(DEMO_APP, &[]).await.rejected(4000).await;
    let mut client = server.wss().await;
    client.subscribe(NEWS).await;
    server.publish(NEWS, "e", "x").await;
    client.expect(json!({ "event": "e", "channel": NEWS, "data": "x" })).await;
}

#[tokio::test]
async fn a_proxy_header_comes_before_the_tls_handshake() {
    let server = Secure::with(|setup| {
        setup.options.proxy_protocol = true;
        setup.options.addresses.connections_max = Some(1);
    })
    .await;
    let proxied = async |source: &str| {
        let mut stream = server.tcp_for_tls().await;
        let header = format!("PROXY TCP4 {source} 198.51.100.1 4711 6001\r\n");
        stream.write_all(header.as_bytes()).await.unwrap();
        let config = server.certificate.client_config(&VERSIONS);
        RawSocket::over(server.tls_over(stream, config).await.unwrap())
    };
    let mut first = proxied("192.0.2.1").await;
    first.upgrade("/app/demo-key").await;
    let mut second = proxied("192.0.2.1").await;
    second.write(RawSocket::upgrade_request("/app/demo-key").as_bytes()).await;
    second.read_head().await;
    assert!(second.next().await.text().contains("4100"), "the address is that of the header");
    proxied("192.0.2.2").await.upgrade("/app/demo-key").await;
    first.fence().await;
    server.assert_limit_rejections(Limit::AddressConnections, 1);
    assert!(server.try_tls(server.certificate.client_config(&VERSIONS)).await.is_err());
    server.wait_for_rejections(Limit::ProxyProtocol, 1).await;
}

#[tokio::test]
async fn a_shutdown_closes_clients_over_tls_like_others() {
    let server = Secure::start().await;
    let mut clients = [server.wss().await, server.wss().await];
    let mut idle = Http::over(server.tls().await);
    assert_eq!(idle.send(Request::get("/ready")).await.status, 200);
    let _half_way = server.tcp_for_tls().await;
    server.signal(Shutdown::Graceful).await;
    for client in &mut clients {
        client.expect_close(4100).await;
    }
    idle.ends().await;
    server.server.ended().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_used_from_the_next_connection_on() {
    let server = Secure::start().await;
    let old = server.certificate.client_config(&VERSIONS);
    let mut client = server.wss().await;
    server.certificate.renew();
    let new = server.certificate.client_config(&VERSIONS);
    server.try_tls(old.clone()).await.unwrap();
    server.tls.reload();
    server.try_tls(new.clone()).await.unwrap();
    let refused = server.try_tls(old).await.unwrap_err();
    assert!(refused.to_string().contains("invalid peer certificate"), "{refused}");
    client.fence().await;

    // An invalid certificate changes nothing, and neither does a key that does not match.
    let path = server.certificate.folder.path();
    let key = fs::read(path.join("key.pem")).unwrap();
    for broken in ["", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"] {
        fs::write(path.join("cert.pem"), broken).unwrap();
        server.tls.reload();
        server.try_tls(new.clone()).await.unwrap();
    }
    server.certificate.renew();
    fs::write(path.join("key.pem"), key).unwrap();
    server.tls.reload();
    server.try_tls(new).await.unwrap();
    fs::remove_file(path.join("key.pem")).unwrap();
    server.tls.reload();

    // When both files are valid again, they are used.
    server.certificate.renew();
    server.tls.reload();
    server.wss().await.fence().await;
}

#[tokio::test]
async fn clients_resume_tls_sessions() {
    let server = Secure::start().await;
    for version in VERSIONS {
        let config = Arc::new(server.certificate.client_config(&[version]));
        eventually("a resumed session", async || {
            let stream = server.tcp_for_tls().await;
            let stream = TlsConnector::from(Arc::clone(&config)).connect(localhost(), stream).await.unwrap();
            let resumed = stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
            // The tickets are read with the first response.
            assert_eq!(Http::over(stream).send(Request::get("/up")).await.status, 200);
            resumed
        })
        .await;
    }
}
