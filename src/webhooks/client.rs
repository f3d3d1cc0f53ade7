//! One request to one receiver: checks the address, uses TLS for `https`, and reads no more of the response than its
//! status.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::either::Either;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::target;
use crate::apps::{Webhook, WebhookUrl};
use crate::tls_client::{Authorities, TlsClient};

/// The maximum size of the head of a response.
const RESPONSE_HEAD_BYTES_MAX: usize = 16 * 1024;

/// How much of the body of a response is read, so that the connection can be reused. The body is ignored.
const RESPONSE_BODY_BYTES_MAX: usize = 64 * 1024;

/// How long that body is waited for.
const RESPONSE_BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// An idle connection is not reused after this: a proxy or firewall may have dropped it silently.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

const KEY_HEADER: HeaderName = HeaderName::from_static("x-pusher-key");
const SIGNATURE_HEADER: HeaderName = HeaderName::from_static("x-pusher-signature");
const EVENT_IDS_HEADER: HeaderName = HeaderName::from_static("x-pusherd-event-ids");

/// Why a request was not delivered. Contains no URL, header or body.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("DNS lookup failed: {0}")]
    Lookup(io::Error),
    #[error("the host resolves to {0}, which is {1} and not in webhooks.allowed_addresses")]
    DeniedAddress(IpAddr, &'static str),
    #[error("connection failed: {0}")]
    Connect(io::Error),
    #[error("TLS handshake failed: {0}")]
    Tls(io::Error),
    #[error("no response: {0}")]
    Http(#[from] hyper::Error),
    #[error("invalid request: {0}")]
    Request(#[from] hyper::http::Error),
    #[error("no response within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("the response status is {0}, not 2xx")]
    Status(u16),
}

impl SendError {
    /// Whether the receiver did not respond at all.
    pub(super) const fn is_without_response(&self) -> bool {
        !matches!(self, Self::Status(_))
    }

    /// Whether other requests to the receiver would fail too: it is down, failing or overloaded.
    pub(super) const fn is_receiver_failure(&self) -> bool {
        self.is_without_response() || matches!(self, Self::Status(429 | 500..))
    }
}

/// A signed body, with what goes into the headers.
#[derive(Clone, Debug)]
pub(super) struct SignedBody {
    /// Exactly the bytes that were signed.
    pub(super) body: Bytes,
    /// The key whose secret signed them.
    pub(super) key: HeaderValue,
    pub(super) signature: HeaderValue,
    /// The ids of the events in the body, if known. They are a header because the format of the body is Pusher's.
    pub(super) event_ids: Option<HeaderValue>,
}

/// Sends requests. Ignores proxies of the environment and follows no redirects.
#[derive(Debug)]
pub(super) struct Client {
    /// Made for the first `https` URL: it loads the system's certificates.
    tls: OnceLock<TlsClient>,
    allowed: Vec<IpNet>,
    /// For one request, from the DNS lookup to the head of the response.
    timeout: Duration,
}

/// A keep-alive connection, if there is one.
#[derive(Debug, Default)]
pub(super) struct IdleConnection(Option<(Connection, Instant)>);

impl IdleConnection {
    /// Takes the connection, unless it has been idle for too long.
    fn take(&mut self) -> Option<Connection> {
        self.0.take().filter(|(_, since)| since.elapsed() < IDLE_TIMEOUT).map(|(connection, _)| connection)
    }

    fn keep(&mut self, connection: Connection) {
        self.0 = Some((connection, Instant::now()));
    }
}

/// A connection. It is closed when this is dropped.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Drives the connection. Aborted on drop, because the receiver may never close it.
    _task: AbortOnDropHandle<()>,
}

impl Client {
    pub(super) fn new(allowed: Vec<IpNet>, timeout: Duration) -> Self {
        Self { tls: OnceLock::new(), allowed, timeout }
    }

    /// Loads the system's certificates, so that the first request does not have to.
    pub(super) fn prepare_tls(&self) {
        self.tls.get_or_init(tls_client);
    }

    /// Sends one request over `idle`, or over a new connection that is stored there. `connect_timeout` limits the
    /// connection attempt to each address.
    ///
    /// # Errors
    /// Anything but a 2xx response in time.
    pub(super) async fn post(
        &self,
        webhook: &Webhook,
        signed: &SignedBody,
        idle: &mut IdleConnection,
        connect_timeout: Duration,
    ) -> Result<(), SendError> {
        let deadline = Instant::now() + self.timeout;
        let sending = async {
            if let Some(mut connection) = idle.take()
                && connection.sender.ready().await.is_ok()
            {
                match connection.sender.send_request(request(webhook, signed)?).await {
                    Ok(response) => return Ok((connection, response)),
                    // The receiver closed the idle connection meanwhile: retry over a new one.
                    Err(error)
                        if error.is_canceled() || error.is_closed() || error.is_incomplete_message() => {}
                    Err(error) if is_reset(&error) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let mut connection = self.connect(&webhook.url, (deadline, connect_timeout)).await?;
            let response = connection.sender.send_request(request(webhook, signed)?).await?;
            Ok((connection, response))
        };
        let sent = timeout_at(deadline, sending).await.unwrap_or(Err(SendError::Timeout(self.timeout)));
        let (connection, response) = sent?;
        let status = response.status();
        // The status decides, even if the body cannot be read.
        if timeout(RESPONSE_BODY_TIMEOUT, read_to_end(response)).await == Ok(true) {
            idle.keep(connection);
        }
        if status.is_success() { Ok(()) } else { Err(SendError::Status(status.as_u16())) }
    }

    async fn connect(&self, url: &WebhookUrl, limits: (Instant, Duration)) -> Result<Connection, SendError> {
        let stream = self.connect_tcp(url, limits).await?;
        // The head and the body are separate writes, and the second must not wait for an acknowledgement of the first.
        stream.set_nodelay(true).map_err(SendError::Connect)?;
        let stream = if url.is_https() {
            let tls = self.tls.get_or_init(tls_client);
            Either::Right(tls.connect(url.host(), stream).await.map_err(SendError::Tls)?)
        } else {
            Either::Left(stream)
        };
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(RESPONSE_HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "webhook connection failed");
            }
        });
        Ok(Connection { sender, _task: AbortOnDropHandle::new(task) })
    }

    /// Connects to the first address of the host that is allowed and accepts the connection.
    async fn connect_tcp(
        &self,
        url: &WebhookUrl,
        (deadline, address_timeout): (Instant, Duration),
    ) -> Result<TcpStream, SendError> {
        let found = lookup_host((url.host(), url.port())).await.map_err(SendError::Lookup)?;
        let mut denied = None;
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for address in found {
            match target::denied_kind(address.ip(), &self.allowed) {
                Some(kind) => denied = Some(SendError::DeniedAddress(address.ip(), kind)),
                None => addresses.push(address),
            }
        }
        let mut last_error = denied.unwrap_or_else(|| SendError::Lookup(io::ErrorKind::NotFound.into()));
        for (at, address) in addresses.iter().enumerate() {
            // Each address gets an equal share of the remaining time.
            let remaining = (deadline - Instant::now()) / (addresses.len() - at) as u32;
            let limit = remaining.min(address_timeout);
            match timeout(limit, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last_error = SendError::Connect(error),
                Err(_) => last_error = SendError::Timeout(limit),
            }
        }
        Err(last_error)
    }
}

fn is_reset(error: &hyper::Error) -> bool {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
    io.is_some_and(|error| kinds.contains(&error.kind()))
}

fn request(webhook: &Webhook, signed: &SignedBody) -> Result<Request<Full<Bytes>>, SendError> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(webhook.url.target())
        .body(Full::new(signed.body.clone()))?;
    let headers = request.headers_mut();
    *headers = webhook.headers.clone();
    headers.insert(HOST, HeaderValue::from_str(webhook.url.authority()).map_err(hyper::http::Error::from)?);
    // SDKs compare this text exactly. Source: protocol.md §9.1.
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("pusherd/", env!("CARGO_PKG_VERSION"))));
    headers.insert(KEY_HEADER, signed.key.clone());
    headers.insert(SIGNATURE_HEADER, signed.signature.clone());
    if let Some(ids) = &signed.event_ids {
        headers.insert(EVENT_IDS_HEADER, ids.clone());
    }
    Ok(request)
}

/// Reads and ignores a response. Returns whether the body ended within the limit.
async fn read_to_end(mut response: Response<Incoming>) -> bool {
    let mut read = 0;
    while let Some(frame) = response.body_mut().frame().await {
        let Ok(frame) = frame else { return false };
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > RESPONSE_BODY_BYTES_MAX {
            return false;
        }
    }
    true
}

fn tls_client() -> TlsClient {
    TlsClient::verifying(Authorities::of_system("https webhooks")).offering(&["http/1.1"])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn signed(body: Bytes) -> SignedBody {
        let [key, signature] = ["key", "x"].map(HeaderValue::from_static);
        SignedBody { body, key, signature, event_ids: None }
    }

    async fn listen() -> (TcpListener, Webhook) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        (listener, Webhook::new(WebhookUrl::parse(&url).unwrap()))
    }

    #[tokio::test]
    async fn a_connection_that_is_idle_for_too_long_is_not_reused() {
        let (listener, webhook) = listen().await;
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    // The request is small enough to arrive in one read.
                    while stream.read(&mut [0; 4096]).await.unwrap_or(0) > 0 {
                        stream.write_all(b"HTTP/1.1 204 X\r\n\r\n").await.unwrap();
                    }
                });
            }
        });
        let client = Client::new(Vec::new(), Duration::from_secs(10));
        let (signed, mut idle) = (signed(Bytes::new()), IdleConnection::default());
        let ago = |secs| move |(connection, since)| (connection, since - Duration::from_secs(secs));
        for (idle_secs, expected) in [(0, 1), (0, 1), (25, 1), (30, 2), (0, 2)] {
            idle.0 = idle.0.map(ago(idle_secs));
            client.post(&webhook, &signed, &mut idle, client.timeout).await.unwrap();
            assert_eq!(connections.load(Ordering::SeqCst), expected, "idle for {idle_secs} s");
        }
    }

    #[tokio::test]
    async fn a_request_that_timed_out_writes_no_more() {
        const LEN: usize = 64 * 1024 * 1024;
        let (listener, webhook) = listen().await;
        let client = Client::new(Vec::new(), Duration::from_millis(100));
        let (signed, mut idle) = (signed(Bytes::from(vec![b'x'; LEN])), IdleConnection::default());
        let sent = client.post(&webhook, &signed, &mut idle, client.timeout).await;
        assert!(matches!(sent, Err(SendError::Timeout(_))), "{sent:?}");
        assert!(idle.0.is_none());
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = 0;
        while let Ok(more @ 1..) = stream.read(&mut vec![0; 1024 * 1024]).await {
            read += more;
        }
        assert!(read < LEN, "{read}");
    }
}
