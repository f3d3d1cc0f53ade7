//! The base of every test: a server of its own in this process, on a free port, and clients over real sockets.
//!
//! No helper waits for a fixed time. A test waits for an event, and fails with a sentence if it does not come. A fence
//! shows that nothing arrives: the test sends a request whose response must be the next frame.

mod http;
mod log;
mod nodes;
mod raw;
pub mod receiver;
pub mod redis;
mod signing;
mod websocket;

use std::fmt::Display;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pusherd::apps::{App, Apps};
use pusherd::limits::Limit;
use pusherd::metrics::Metrics;
use pusherd::rejections::Mistake;
use pusherd::server::{self, Listeners, Options, Shutdown, Tls};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use http::{Answer, Http, Request};
pub use log::Log;
pub use nodes::{Node, nodes, nodes_with};
pub use raw::{Frame, RawSocket, frame, frame_head, text_frame, unmasked_frame};
pub use receiver::{Hook, Receiver, Reply, webhook};
pub use signing::{DEMO, Key, OTHER, channel_auth, md5_hex, unix_now, user_auth};
pub use websocket::{Client, Upgrade};

/// How long a test waits for an event that must come: far longer than it takes, so that only a failure is slow.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A channel name for tests that need any public channel.
pub const NEWS: &str = "news";

/// The transport of a client: TCP, or TLS on it.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Waits for `future`, and fails the test when it takes too long.
pub async fn in_time<T>(what: impl Display, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// Polls a condition until it holds: for facts that the server only returns on request.
pub async fn eventually<F: Future<Output = bool>>(what: impl Display, mut condition: impl FnMut() -> F) {
    in_time(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// The configuration of a server before its start.
pub struct Setup {
    /// The app that tests use: id `1001`, key `demo-key`, secret `demo-secret`.
    pub app: App,
    /// A second app, to show that apps are separate: id `1002`, key `other-key`, secret `other-secret`.
    pub other: App,
    /// The other options. Unlike in the defaults, a drain has no window.
    pub options: Options,
    /// A certificate: if set, the server also listens with TLS.
    pub tls: Option<Tls>,
}

/// A running server.
pub struct Server {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// The address that it listens on with TLS.
    pub tls_address: Option<SocketAddr>,
    /// Its apps.
    pub apps: Arc<Apps>,
    /// Its counters.
    pub metrics: Arc<Metrics>,
    stop: mpsc::Sender<Shutdown>,
    running: JoinHandle<std::io::Result<()>>,
}

impl Server {
    /// Starts a server with the defaults.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts a server that `change` has adjusted.
    pub async fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let options = Options { drain: Duration::ZERO, ..Options::default() };
        let mut setup = Setup { app: DEMO.app(), other: OTHER.app(), options, tls: None };
        change(&mut setup);
        let bind = || server::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listeners = Listeners { plain: Some(bind()), tls: setup.tls.map(|tls| (bind(), tls)) };
        let listening = listeners.addresses().unwrap();
        let (stop, stopped) = mpsc::channel(4);
        let apps = Arc::new(Apps::new([setup.app, setup.other]));
        let metrics = Arc::clone(&setup.options.metrics);
        let running = tokio::spawn(server::run(listeners, Arc::clone(&apps), setup.options, stopped));
        Self { address: listening.plain.unwrap(), tls_address: listening.tls, apps, metrics, stop, running }
    }

    /// Starts a server whose demo app `change` has adjusted.
    pub async fn with_app(change: impl FnOnce(&mut App)) -> Self {
        Self::with(|setup| change(&mut setup.app)).await
    }

    /// Tells the server to stop.
    pub async fn signal(&self, how: Shutdown) {
        in_time("the server takes a signal", self.stop.send(how)).await.unwrap();
    }

    /// Waits until the server has stopped, and checks that it returned no error.
    pub async fn ended(self) {
        in_time("the server ends", self.running).await.unwrap().unwrap();
    }

    /// Aborts the server's main task.
    pub fn abort(self) {
        self.running.abort();
    }

    /// Stops the server gracefully.
    pub async fn stop(self) {
        self.signal(Shutdown::Graceful).await;
        self.ended().await;
    }

    /// A TCP connection.
    pub async fn tcp(&self) -> TcpStream {
        let stream = in_time("a TCP connection", TcpStream::connect(self.address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// An established connection of the demo app, as pusher-js opens it.
    pub async fn connect(&self) -> Client {
        self.connect_to("/app/demo-key?protocol=7&client=js&version=8.6.0&flash=false").await
    }

    /// An established connection to `target`.
    pub async fn connect_to(&self, target: &str) -> Client {
        self.upgrade(target, &[]).await.established().await
    }

    /// `N` established connections.
    pub async fn connect_many<const N: usize>(&self) -> [Client; N] {
        let mut clients = Vec::with_capacity(N);
        for _ in 0..N {
            clients.push(self.connect().await);
        }
        clients.try_into().ok().unwrap()
    }

    /// Upgrades to a WebSocket, which may be rejected.
    pub async fn upgrade(&self, target: &str, headers: &[(&str, &str)]) -> Upgrade {
        Upgrade::of(self.tcp().await, target, headers).await
    }

    /// An established connection that is a bare TCP stream.
    pub async fn connect_raw(&self) -> RawSocket {
        let mut raw = RawSocket::over(self.tcp().await);
        raw.upgrade("/app/demo-key").await;
        raw
    }

    /// Sends one request over a connection of its own.
    pub async fn send(&self, request: Request) -> Answer {
        self.http().await.send(request).await
    }

    /// A connection for several requests.
    pub async fn http(&self) -> Http {
        Http::over(self.tcp().await)
    }

    /// A signed `POST`.
    pub async fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> Answer {
        self.send(Request::post(path, body).signed()).await
    }

    /// A signed `POST` of a JSON value.
    pub async fn post_json(&self, path: &str, body: Value) -> Answer {
        self.post(path, body.to_string()).await
    }

    /// A signed `GET`.
    pub async fn get(&self, target: &str) -> Answer {
        self.send(Request::get(target).signed()).await
    }

    /// The JSON that a signed `GET` is answered with.
    pub async fn get_json(&self, target: &str) -> Value {
        self.get(target).await.ok()
    }

    /// Publishes an event over HTTP.
    pub async fn publish(&self, channel: &str, name: &str, data: &str) {
        self.publish_json(json!({ "channel": channel, "name": name, "data": data })).await;
    }

    /// Publishes what `body` says over HTTP.
    pub async fn publish_json(&self, body: Value) {
        assert_eq!(self.post_json("/apps/1001/events", body).await.ok(), json!({}));
    }

    /// Waits until the demo app has `count` connections.
    pub async fn has_connections(&self, count: usize) {
        eventually(format_args!("{count} connections"), || async {
            self.get_json("/apps/1001/connections").await == json!({ "connections": count })
        })
        .await;
    }

    /// Checks that `limit` has rejected `count` times, and no other limit has.
    pub fn assert_limit_rejections(&self, limit: Limit, count: u64) {
        let rejected = |limit| self.metrics.rejected(limit).get();
        let expected = |each| if each == limit { count } else { 0 };
        let wrong = Limit::ALL.into_iter().filter(|each| rejected(*each) != expected(*each));
        let wrong: Vec<_> = wrong.map(|limit| (limit, rejected(limit))).collect();
        assert!(wrong.is_empty(), "{count} of {limit:?} and nothing else: {wrong:?}");
    }

    /// Checks that `mistake` was rejected `count` times, and no other mistake was.
    pub fn assert_mistakes(&self, mistake: Mistake, count: u64) {
        let rejected = |mistake| self.metrics.rejected(mistake).get();
        let expected = |each| if each == mistake { count } else { 0 };
        let wrong = Mistake::ALL.into_iter().filter(|each| rejected(*each) != expected(*each));
        let wrong: Vec<_> = wrong.map(|mistake| (mistake, rejected(mistake))).collect();
        assert!(wrong.is_empty(), "{count} of {mistake:?} and nothing else: {wrong:?}");
    }

    /// Waits until `limit` has rejected `count` times.
    pub async fn wait_for_rejections(&self, limit: Limit, count: u64) {
        let what = format!("{count} rejections by {limit:?}");
        eventually(what, async || self.metrics.rejected(limit).get() == count).await;
    }

    /// Waits until a channel of the demo app has `count` subscriptions.
    pub async fn has_subscriptions(&self, channel: &str, count: usize) {
        let target = format!("/apps/1001/channels/{channel}?info=subscription_count");
        eventually(format_args!("{count} subscriptions of {channel}"), || async {
            self.get_json(&target).await["subscription_count"] == json!(count)
        })
        .await;
    }
}
