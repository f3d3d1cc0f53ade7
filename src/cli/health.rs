//! `pusherd health`: asks a server whether it is ready, for images without a shell and curl.
//!
//! TLS certificates are not verified. The request goes to the address that the server listens on, and certificates are not
//! issued for it. The request contains no secret, and the response is trusted no more than one without TLS.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Health, print_error};
use crate::config::load;
use crate::server::addresses_of;
use crate::tls_client::{TlsClient, is_not_tls, is_server_name};

/// The limit of the whole command. Container engines run it every few seconds.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How much of a response is shown.
const EXCERPT_BYTES_MAX: usize = 200;

/// How long the body of a response may take after its head.
const BODY_TIMEOUT: Duration = Duration::from_millis(300);

/// The default path.
const PATH: &str = "/ready";

/// Where to send the request.
#[derive(Debug, Eq, PartialEq)]
struct Target {
    tls: bool,
    /// A host, without brackets.
    host: String,
    port: u16,
    path: String,
}

/// Why the server is not ready.
#[derive(Debug, thiserror::Error)]
enum Unhealthy {
    #[error("{0}")]
    Target(String),
    #[error("the settings do not say where the server is (give --url): {0}")]
    Settings(String),
    #[error("the server picks its port itself (port 0): give --port or --url")]
    AnyPort,
    #[error("no answer: {0}")]
    Io(#[from] io::Error),
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("the server does not speak HTTP: {0}")]
    NotHttp(String),
    #[error("the port does not speak TLS 1.2 or 1.3: ask with http:// or without tls_cert ({0})")]
    NotTls(io::Error),
    #[error("not ready: {0}")]
    Status(Answer),
}

impl Health {
    /// Runs the command.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        match self.check() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                print_error(error);
                ExitCode::FAILURE
            }
        }
    }

    fn check(&self) -> Result<(), Unhealthy> {
        let target = self.target()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(async { timeout(TIMEOUT, request(&target)).await });
        // Without this, the process would wait for the end of a running name lookup.
        runtime.shutdown_background();
        match answer.unwrap_or(Err(Unhealthy::Timeout)) {
            Ok(answer) if answer.is_ready() => Ok(()),
            Ok(answer) => Err(Unhealthy::Status(answer)),
            Err(Unhealthy::Io(error)) => {
                let text = format!("{} port {}: {error}", target.host, target.port);
                Err(Unhealthy::Io(io::Error::new(error.kind(), text)))
            }
            Err(error) => Err(error),
        }
    }

    fn target(&self) -> Result<Target, Unhealthy> {
        if let Some(url) = &self.url {
            return Target::parse(url).map_err(Unhealthy::Target);
        }
        let mut sources = self.files.sources();
        sources.opens_files = false;
        let flags = [("--host", &self.host), ("--port", &self.port)];
        sources.flags.extend(flags.into_iter().filter_map(|(flag, value)| Some((flag, value.clone()?))));
        let settings = load(&sources).map_err(|problems| {
            let problems: Vec<_> = problems.iter().collect();
            Unhealthy::Settings(problems.join("; "))
        })?;
        let server = &settings.server;
        // `--port` may name the TLS port.
        let tls = server.port_uses_tls() || server.tls_port == Some(server.port);
        match server.port {
            0 => Err(Unhealthy::AnyPort),
            port => {
                // With a fallback, the server listens on one of the two loopback addresses.
                let host = server.fallback_host.map_or(&*server.host, |_| "localhost");
                Ok(Target { tls, host: reachable(host), port, path: PATH.to_owned() })
            }
        }
    }
}

/// The host to connect to for a server on this machine that listens on `host`.
pub(super) fn reachable(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) if address.is_unspecified() => "127.0.0.1".to_owned(),
        Ok(IpAddr::V6(address)) if address.is_unspecified() => "::1".to_owned(),
        Ok(_) | Err(_) => host.to_owned(),
    }
}

impl Target {
    /// Parses `http://HOST[:PORT][/PATH]`, or the same with `https`.
    fn parse(url: &str) -> Result<Self, String> {
        let wrong = || format!("{url} is not a URL such as http://127.0.0.1:6001");
        let (tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return Err(wrong()),
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = match authority.rsplit_once(':') {
            // The last colon of an IPv6 address without a port is inside its brackets.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
            _ => (authority, if tls { 443 } else { 80 }),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let path = if path.len() > 1 { path } else { PATH };
        let is_visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || !is_visible(host) || !is_visible(path) || path.parse::<Uri>().is_err() {
            return Err(wrong());
        }
        Ok(Self { tls, host: host.to_owned(), port, path: path.to_owned() })
    }
}

/// The response of the server.
#[derive(Debug, Eq, PartialEq)]
struct Answer {
    status: StatusCode,
    /// The first line of the body.
    text: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text.as_str() {
            "" => write!(f, "status {}", self.status.as_u16()),
            text => write!(f, "status {}: {text}", self.status.as_u16()),
        }
    }
}

impl Answer {
    fn is_ready(&self) -> bool {
        self.status == StatusCode::OK
    }
}

async fn request(target: &Target) -> Result<Answer, Unhealthy> {
    let stream = TcpStream::connect(&*addresses_of(&target.host, target.port).await?).await?;
    if !target.tls {
        return exchange(target, stream).await;
    }
    // A host that is no DNS name is replaced with its address: the certificate is not verified.
    let host = match is_server_name(&target.host) {
        true => target.host.clone(),
        false => stream.peer_addr()?.ip().to_string(),
    };
    let connected = TlsClient::accepting_any().connect(&host, stream).await;
    let explain = |error| if is_not_tls(&error) { Unhealthy::NotTls(error) } else { Unhealthy::Io(error) };
    exchange(target, connected.map_err(explain)?).await
}

/// Sends the request and reads the response.
async fn exchange(
    Target { host, port, path, .. }: &Target,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<Answer, Unhealthy> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let request = Request::get(path)
        .header(HOST, format!("{host}:{port}"))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let received = Arc::new(Mutex::new(Vec::new()));
    let stream = Recorder { stream, received: Arc::clone(&received) };
    let sent = async {
        let io = TokioIo::new(stream);
        let (mut sender, connection) = http1::Builder::new().title_case_headers(true).handshake(io).await?;
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    match sent.await {
        Ok(response) => Ok(read(response).await),
        Err(error) => Err(explain(&error, &received.lock())),
    }
}

/// Reads the status and the start of the body. A body that breaks off or stalls is shown as far as it came.
async fn read(response: Response<Incoming>) -> Answer {
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while head.status != StatusCode::OK && bytes.len() < EXCERPT_BYTES_MAX {
        let Ok(Some(Ok(frame))) = timeout(BODY_TIMEOUT, body.frame()).await else { break };
        bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
    }
    Answer { status: head.status, text: first_line(&bytes) }
}

/// Explains why there is no response. `received` is the start of what the peer sent: a peer that speaks another protocol
/// may also close the connection, but its text says more.
fn explain(error: &hyper::Error, received: &[u8]) -> Unhealthy {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match io {
        _ if !received.is_empty() => Unhealthy::NotHttp(format!("it answers {:?}", first_line(received))),
        Some(io) => Unhealthy::Io(io::Error::new(io.kind(), io.to_string())),
        None => Unhealthy::NotHttp("it closes the connection without an answer".to_owned()),
    }
}

/// The first line of a text, without control characters.
fn first_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(EXCERPT_BYTES_MAX)]);
    let line = text.lines().next().unwrap_or_default();
    line.chars().filter(|letter| !letter.is_control()).collect()
}

/// A stream that keeps the start of what is read from it, because errors of hyper do not contain it.
struct Recorder<S> {
    stream: S,
    received: Arc<Mutex<Vec<u8>>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Recorder<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let mut received = self.received.lock();
        let read = &buffer.filled()[before..];
        let rest = EXCERPT_BYTES_MAX - received.len();
        received.extend_from_slice(&read[..read.len().min(rest)]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Recorder<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    fn target(host: &str, port: u16, path: &str) -> Target {
        Target { tls: false, host: host.into(), port, path: path.into() }
    }

    #[test]
    fn a_url_names_the_host_the_port_and_the_path() {
        let plain = |host: &str, port, path: &str| Some(target(host, port, path));
        let over_tls = |target: Option<Target>| target.map(|target| Target { tls: true, ..target });
        let table = [
            ("http://127.0.0.1:6001", plain("127.0.0.1", 6001, "/ready")),
            ("http://127.0.0.1:6001/", plain("127.0.0.1", 6001, "/ready")),
            ("http://localhost", plain("localhost", 80, "/ready")),
            ("http://[::1]:6001/up", plain("::1", 6001, "/up")),
            ("http://[::1]", plain("::1", 80, "/ready")),
            ("https://localhost", over_tls(plain("localhost", 443, "/ready"))),
            ("https://[::1]:6001/up", over_tls(plain("::1", 6001, "/up"))),
            ("https://", None),
            ("localhost:6001", None),
            ("http://", None),
            ("http://:6001", None),
            ("http://x:port", None),
            ("http://x:70000", None),
            ("http://x/a b", None),
            ("http://x\r\nA: b/", None),
        ];
        for (url, expected) in table {
            assert_eq!(Target::parse(url).ok(), expected, "{url:?}");
        }
    }

    #[tokio::test]
    async fn a_response_is_explained_by_its_status_or_by_its_first_line() {
        let table: [(&[u8], &str); 9] = [
            (b"HTTP/1.1 200 OK\r\n\r\nOK", "status 200"),
            (b"HTTP/1.0 503 \r\n\r\n", "status 503"),
            (
                b"HTTP/1.1 400 Bad Request\r\nA: b\r\n\r\nThis port speaks TLS\n<p>",
                "status 400: This port speaks TLS",
            ),
            (b"HTTP/1.1 400 Bad Request\r\nA: b\r\n\r\n\x1b[2Jno", "status 400: [2Jno"),
            (b"HTTP/1.1 400 \r\n\r\n\xff", "status 400: \u{fffd}"),
            (b"HTTP/1.1 503 \r\nContent-Length: 9\r\n\r\nbusy", "status 503: busy"),
            (b"SSH-2.0-OpenSSH_9\r\n", "the server does not speak HTTP: it answers \"SSH-2.0-OpenSSH_9\""),
            (b"HTTP/1.1", "the server does not speak HTTP: it answers \"HTTP/1.1\""),
            (b"", "the server does not speak HTTP: it closes the connection without an answer"),
        ];
        for (response, expected) in table {
            let (client, mut server) = duplex(1024);
            let served = async {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(server.read_u8().await.unwrap());
                }
                server.write_all(response).await.unwrap();
                drop(server);
                String::from_utf8(request).unwrap()
            };
            let target = target("::1", 6001, "/up");
            let (answer, request) = tokio::join!(exchange(&target, client), served);
            let text = answer.map_or_else(|error| error.to_string(), |answer| answer.to_string());
            assert_eq!(text, expected, "{}", String::from_utf8_lossy(response));
            assert_eq!(request, "GET /up HTTP/1.1\r\nHost: [::1]:6001\r\nConnection: close\r\n\r\n");
        }
    }
}
