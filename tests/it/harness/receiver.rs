//! A receiver of webhooks that replies, fails or hangs as a test says, and records the requests.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pusherd::apps::{Webhook, WebhookUrl};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::{TlsAcceptor, rustls};

use super::http::find;
use super::{Stream, in_time};

/// The reply to a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// This status and no body.
    Status(u16),
    /// These bytes, then the end of the connection.
    Raw(&'static str),
    /// These bytes, then nothing more.
    Unended(&'static str),
    /// A redirect to this URL.
    Redirect(String),
    /// 200, once there is a permit for it.
    InTurn(Arc<Semaphore>),
    /// No reply.
    Hang,
    /// The end of the connection.
    HangUp,
}

/// A request as it was received.
#[derive(Clone, Debug)]
pub struct Hook {
    pub request_line: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The reply to it.
    pub reply: Reply,
    /// The number of its connection.
    pub connection: usize,
}

impl Hook {
    /// All values of a header.
    pub fn header(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str()).collect()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn events(&self) -> Vec<Value> {
        self.json()["events"].as_array().unwrap().clone()
    }
}

type Decide = dyn Fn(usize, &Hook) -> Reply + Send + Sync;

/// A receiver of webhooks.
pub struct Receiver {
    pub address: SocketAddr,
    hooks: mpsc::UnboundedReceiver<Hook>,
    /// Received events that the test has not read yet.
    events: VecDeque<Value>,
}

impl Receiver {
    /// A receiver that replies 200 to everything.
    pub async fn start() -> Self {
        Self::with_replies(|_, _| Reply::Status(200)).await
    }

    /// A receiver that replies what `decide` returns for a request and its number, from 0.
    pub async fn with_replies(decide: impl Fn(usize, &Hook) -> Reply + Send + Sync + 'static) -> Self {
        Self::behind(None, decide).await
    }

    /// A receiver that replies 200 to everything over TLS, as `localhost`, and its self-signed certificate in PEM.
    pub async fn with_tls() -> (Self, String) {
        let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key =
            rustls::pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.cert.der().clone()], key)
            .unwrap();
        let tls = Some(TlsAcceptor::from(Arc::new(config)));
        (Self::behind(tls, |_, _| Reply::Status(200)).await, certificate.cert.pem())
    }

    async fn behind(
        tls: Option<TlsAcceptor>,
        decide: impl Fn(usize, &Hook) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (put, hooks) = mpsc::unbounded_channel();
        let (decide, requests): (Arc<Decide>, _) = (Arc::new(decide), Arc::new(AtomicUsize::new(0)));
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (decide, requests, put) = (Arc::clone(&decide), Arc::clone(&requests), put.clone());
                let tls = tls.clone();
                tokio::spawn(async move {
                    let Some(tls) = tls else {
                        return serve(stream, connection, &*decide, &requests, &put).await;
                    };
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, connection, &*decide, &requests, &put).await;
                    }
                });
            }
        });
        Self { address, hooks, events: VecDeque::new() }
    }

    /// A URL of this receiver.
    pub fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.address)
    }

    /// A webhook to this receiver.
    pub fn webhook(&self) -> Webhook {
        webhook(&self.url("/hooks"))
    }

    /// The next request.
    pub async fn hook(&mut self) -> Hook {
        in_time("a webhook", self.hooks.recv()).await.unwrap()
    }

    /// The next event, whichever request it came in. Requests with another reply than 200 are skipped.
    pub async fn event(&mut self) -> Value {
        while self.events.is_empty() {
            let hook = self.hook().await;
            if matches!(hook.reply, Reply::Status(200)) {
                self.events.extend(hook.events());
            }
        }
        self.events.pop_front().unwrap()
    }

    /// The next event must be this one.
    pub async fn expect(&mut self, expected: Value) {
        assert_eq!(self.event().await, expected);
    }

    /// Whether the test has read everything.
    pub fn is_idle(&mut self) -> bool {
        self.events.is_empty() && self.hooks.try_recv().is_err()
    }
}

/// Milliseconds since 1970.
#[expect(clippy::disallowed_methods, reason = "a webhook carries the time of day")]
pub fn unix_ms() -> u64 {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since_1970.as_millis().try_into().unwrap()
}

/// A webhook to `url`.
pub fn webhook(url: &str) -> Webhook {
    Webhook::new(WebhookUrl::parse(url).unwrap())
}

/// Serves the requests of one connection.
async fn serve(
    mut stream: impl Stream,
    connection: usize,
    decide: &Decide,
    requests: &AtomicUsize,
    put: &mpsc::UnboundedSender<Hook>,
) {
    let mut buffer = Vec::new();
    loop {
        let head_len = loop {
            if let Some(at) = find(&buffer, b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8(buffer.drain(..head_len).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let request_line = lines.next().unwrap().to_owned();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_owned(), value.trim().to_owned())
        });
        let mut hook = Hook {
            request_line,
            headers: headers.collect(),
            body: Vec::new(),
            reply: Reply::Hang,
            connection,
        };
        let length: usize = hook.header("content-length")[0].parse().unwrap();
        while buffer.len() < length {
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        }
        hook.body = buffer.drain(..length).collect();
        hook.reply = decide(requests.fetch_add(1, Ordering::SeqCst), &hook);
        let reply = hook.reply.clone();
        // A test that has seen enough drops the receiving end.
        let _ = put.send(hook);
        let answer = match &reply {
            Reply::Status(status) => format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"),
            Reply::Raw(text) | Reply::Unended(text) => (*text).to_owned(),
            Reply::Redirect(url) => {
                format!("HTTP/1.1 307 X\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n")
            }
            Reply::InTurn(turns) => {
                turns.acquire().await.unwrap().forget();
                "HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n".to_owned()
            }
            Reply::Hang => std::future::pending().await,
            Reply::HangUp => return,
        };
        if stream.write_all(answer.as_bytes()).await.is_err() || matches!(reply, Reply::Raw(_)) {
            return;
        }
        if matches!(reply, Reply::Unended(_)) {
            std::future::pending().await
        }
    }
}
