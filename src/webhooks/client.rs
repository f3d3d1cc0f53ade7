//! One request to one receiver: the address checked, TLS where the URL says so, and an answer that is looked at no
//! further than its status.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::target;
use crate::apps::{Webhook, WebhookUrl};

/// The head of an answer may have no more than this.
const HEAD_BYTES: usize = 16 * 1024;

/// What is read of the body of an answer, so that the connection can be used again. Nobody looks at it.
const BODY_BYTES: usize = 64 * 1024;

/// How long it is waited for.
const BODY_PATIENCE: Duration = Duration::from_secs(1);

/// A connection that nobody used for so long is not used again: what lies between may have forgotten it and not said so.
const IDLE_MAX: Duration = Duration::from_secs(30);

const KEY: HeaderName = HeaderName::from_static("x-pusher-key");
const SIGNATURE: HeaderName = HeaderName::from_static("x-pusher-signature");
const EVENT_IDS: HeaderName = HeaderName::from_static("x-pusherd-event-ids");

/// Why a request does not count as delivered. Names no URL, no header and no body.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("the host cannot be looked up: {0}")]
    Lookup(io::Error),
    #[error("the host is at {0}, which is {1}: webhooks do not go there (webhooks.allowed_addresses)")]
    Refused(IpAddr, &'static str),
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("no TLS connection: {0}")]
    Tls(io::Error),
    #[error("no answer: {0}")]
    Http(#[from] hyper::Error),
    #[error("the request cannot be written: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("the answer is {0}, not 2xx")]
    Status(u16),
}

impl SendError {
    /// Whether the receiver was not even there to refuse.
    pub(super) const fn is_without_answer(&self) -> bool {
        !matches!(self, Self::Status(_))
    }

    /// Whether the receiver would say no more to another request: it is not there, fails, or is asked too much.
    pub(super) const fn is_of_the_receiver(&self) -> bool {
        self.is_without_answer() || matches!(self, Self::Status(429 | 500..))
    }
}

/// What a request carries beside its headers.
#[derive(Clone, Debug)]
pub(super) struct Signed {
    /// The very bytes that were signed.
    pub(super) body: Bytes,
    /// The key whose secret signed.
    pub(super) key: HeaderValue,
    /// The signature.
    pub(super) signature: HeaderValue,
    /// What the events in the body are called, if that is known. Not in the body, which is Pusher's.
    pub(super) event_ids: Option<HeaderValue>,
}

/// Sends requests. Proxies of the environment are not used, redirects not followed.
#[derive(Debug)]
pub(super) struct Client {
    tls: TlsConnectorOnce,
    allowed: Vec<IpNet>,
    /// For all of a request.
    timeout: Duration,
}

/// The settings of TLS, with the system's certificates: read when a URL is `https`, not otherwise.
struct TlsConnectorOnce(std::sync::OnceLock<TlsConnector>);

impl std::fmt::Debug for TlsConnectorOnce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsConnector")
    }
}

/// A connection that may be used again.
#[derive(Debug, Default)]
pub(super) struct KeptAlive(Option<(Connection, Instant)>);

impl KeptAlive {
    /// The connection, unless it was not used for too long.
    fn take(&mut self) -> Option<Connection> {
        self.0.take().filter(|(_, since)| since.elapsed() < IDLE_MAX).map(|(connection, _)| connection)
    }

    fn keep(&mut self, connection: Connection) {
        self.0 = Some((connection, Instant::now()));
    }
}

/// A connection, cut off when it is dropped.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// What moves its bytes, and might wait for the other side for ever.
    _task: AbortOnDropHandle<()>,
}

impl Client {
    pub(super) fn new(allowed: Vec<IpNet>, timeout: Duration) -> Self {
        Self { tls: TlsConnectorOnce(std::sync::OnceLock::new()), allowed, timeout }
    }

    /// Reads the system's certificates, so that the first request need not.
    pub(super) fn prepare_tls(&self) {
        self.tls.0.get_or_init(connector);
    }

    /// Sends one request over `kept`, or over a new connection that is kept there; to make one takes no longer than
    /// `connect` for each address.
    ///
    /// # Errors
    /// Anything but an answer of 2xx in time.
    pub(super) async fn post(
        &self,
        webhook: &Webhook,
        signed: &Signed,
        kept: &mut KeptAlive,
        connect: Duration,
    ) -> Result<(), SendError> {
        let deadline = Instant::now() + self.timeout;
        let sending = async {
            if let Some(mut connection) = kept.take()
                && connection.sender.ready().await.is_ok()
            {
                match connection.sender.send_request(request(webhook, signed)?).await {
                    Ok(response) => return Ok((connection, response)),
                    // The receiver had just ended a connection that nobody used: ask over a new one.
                    Err(error)
                        if error.is_canceled() || error.is_closed() || error.is_incomplete_message() => {}
                    Err(error) if is_reset(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let mut connection = self.connect(&webhook.url, (deadline, connect)).await?;
            let response = connection.sender.send_request(request(webhook, signed)?).await?;
            Ok((connection, response))
        };
        let sent = timeout_at(deadline, sending).await.unwrap_or(Err(SendError::Timeout(self.timeout)));
        let (connection, response) = sent?;
        let status = response.status();
        // What the receiver said counts, whatever comes of the rest.
        if timeout(BODY_PATIENCE, read_to_end(response)).await == Ok(true) {
            kept.keep(connection);
        }
        if status.is_success() { Ok(()) } else { Err(SendError::Status(status.as_u16())) }
    }

    async fn connect(
        &self,
        url: &WebhookUrl,
        patience: (Instant, Duration),
    ) -> Result<Connection, SendError> {
        let stream = self.connect_tcp(url, patience).await?;
        // A request is one write, but for its body; neither is to wait for the other.
        stream.set_nodelay(true).map_err(SendError::Connect)?;
        let stream = if url.is_https() {
            let name = ServerName::try_from(url.host().to_owned())
                .map_err(|error| SendError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
            let connector = self.tls.0.get_or_init(connector);
            Either::Right(connector.connect(name, stream).await.map_err(SendError::Tls)?)
        } else {
            Either::Left(stream)
        };
        let (sender, connection) =
            http1::Builder::new().max_buf_size(HEAD_BYTES).handshake(TokioIo::new(stream)).await?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection to a receiver of webhooks ended");
            }
        });
        Ok(Connection { sender, _task: AbortOnDropHandle::new(task) })
    }

    /// Connects to the first of the host's addresses that may be connected to and answers.
    async fn connect_tcp(
        &self,
        url: &WebhookUrl,
        (deadline, longest): (Instant, Duration),
    ) -> Result<TcpStream, SendError> {
        let found = lookup_host((url.host(), url.port())).await.map_err(SendError::Lookup)?;
        let mut refused = None;
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found {
            match target::refusal(address.ip(), &self.allowed) {
                Some(why) => refused = Some(SendError::Refused(address.ip(), why)),
                None => addresses.push(address),
            }
        }
        let mut last = refused.unwrap_or_else(|| SendError::Lookup(io::ErrorKind::NotFound.into()));
        for (at, address) in addresses.iter().enumerate() {
            // None takes the time of those after it.
            let left = (deadline - Instant::now()) / (addresses.len() - at) as u32;
            let patience = left.min(longest);
            match timeout(patience, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = SendError::Connect(error),
                Err(_) => last = SendError::Timeout(patience),
            }
        }
        Err(last)
    }
}

fn is_reset(error: &hyper::Error) -> bool {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
    io.is_some_and(|error| kinds.contains(&error.kind()))
}

fn request(webhook: &Webhook, signed: &Signed) -> Result<Request<Full<Bytes>>, SendError> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(webhook.url.target())
        .body(Full::new(signed.body.clone()))?;
    let headers = request.headers_mut();
    *headers = webhook.headers.clone();
    headers.insert(HOST, HeaderValue::from_str(webhook.url.authority()).map_err(hyper::http::Error::from)?);
    // Exactly so: SDKs compare the text. Source: protocol.md §9.1.
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("pusherd/", env!("CARGO_PKG_VERSION"))));
    headers.insert(KEY, signed.key.clone());
    headers.insert(SIGNATURE, signed.signature.clone());
    if let Some(ids) = &signed.event_ids {
        headers.insert(EVENT_IDS, ids.clone());
    }
    Ok(request)
}

/// Reads an answer that nobody needs; whether it ended within what is read.
async fn read_to_end(mut response: Response<Incoming>) -> bool {
    let mut read = 0;
    while let Some(frame) = response.body_mut().frame().await {
        let Ok(frame) = frame else { return false };
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > BODY_BYTES {
            return false;
        }
    }
    true
}

/// TLS with the system's certificates; those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name, where they are set.
fn connector() -> TlsConnector {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        warn!(
            errors = errors.join("; "),
            "the system has no certificates to trust: https webhooks will fail"
        );
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn signed(body: Bytes) -> Signed {
        let [key, signature] = ["key", "x"].map(HeaderValue::from_static);
        Signed { body, key, signature, event_ids: None }
    }

    async fn listen() -> (TcpListener, Webhook) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        (listener, Webhook::new(WebhookUrl::parse(&url).unwrap()))
    }

    #[tokio::test]
    async fn a_connection_that_nobody_used_for_long_is_not_used_again() {
        let (listener, webhook) = listen().await;
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    // A request is small enough to come at once.
                    while stream.read(&mut [0; 4096]).await.unwrap_or(0) > 0 {
                        stream.write_all(b"HTTP/1.1 204 X\r\n\r\n").await.unwrap();
                    }
                });
            }
        });
        let client = Client::new(Vec::new(), Duration::from_secs(10));
        let (signed, mut kept) = (signed(Bytes::new()), KeptAlive::default());
        let ago = |secs| move |(connection, since)| (connection, since - Duration::from_secs(secs));
        for (idle_secs, expected) in [(0, 1), (0, 1), (25, 1), (30, 2), (0, 2)] {
            kept.0 = kept.0.map(ago(idle_secs));
            client.post(&webhook, &signed, &mut kept, client.timeout).await.unwrap();
            assert_eq!(connections.load(Ordering::SeqCst), expected, "idle for {idle_secs} s");
        }
    }

    #[tokio::test]
    async fn nothing_is_written_any_more_to_a_receiver_that_took_too_long() {
        const LEN: usize = 64 * 1024 * 1024;
        let (listener, webhook) = listen().await;
        let client = Client::new(Vec::new(), Duration::from_millis(100));
        let (signed, mut kept) = (signed(Bytes::from(vec![b'x'; LEN])), KeptAlive::default());
        let sent = client.post(&webhook, &signed, &mut kept, client.timeout).await;
        assert!(matches!(sent, Err(SendError::Timeout(_))), "{sent:?}");
        assert!(kept.0.is_none());
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = 0;
        while let Ok(more @ 1..) = stream.read(&mut vec![0; 1024 * 1024]).await {
            read += more;
        }
        assert!(read < LEN, "{read}");
    }
}
