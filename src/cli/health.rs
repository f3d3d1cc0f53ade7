//! `pusherd health`: one HTTP request by hand, for images that have no shell and no curl.
//!
//! Over TLS the certificate is not looked at. The server is asked under the address that it listens on, for which
//! no certificate is issued; it is told no secret, and believed no more than without TLS.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{Health, complain};
use crate::cluster::redis::AcceptAnyCertificate;
use crate::config::load;
use crate::server::addresses_of;

/// Time for everything: container engines ask every few seconds.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What is read of an answer, and what is shown of it.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
const SAID_BYTES_MAX: usize = 200;

/// How long the rest of an answer is waited for, once it has begun.
const REST_TIMEOUT: Duration = Duration::from_millis(300);

/// What is asked for.
const PATH: &str = "/ready";

/// Where to ask.
#[derive(Debug, Eq, PartialEq)]
struct Target {
    tls: bool,
    /// A host, without brackets.
    host: String,
    port: u16,
    path: String,
}

/// Why the server does not count as ready.
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
    #[error("what answers is no HTTP server: {0}")]
    NotHttp(String),
    #[error("the port does not speak TLS 1.2 or 1.3: ask with http:// or without tls_cert ({0})")]
    NotTls(io::Error),
    #[error("not ready: {0}")]
    Status(Answer),
}

impl Health {
    /// Asks, and answers by exit code.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        let answer = self.target().and_then(|target| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let asked = runtime.block_on(async { timeout(TIMEOUT, ask(&target)).await });
            // A name that is still being looked up would hold up the end.
            runtime.shutdown_background();
            let answer = asked.unwrap_or(Err(Unhealthy::Timeout)).map_err(|error| (target, error));
            match answer {
                Ok(answer) if answer.is_ready() => Ok(()),
                Ok(answer) => Err(Unhealthy::Status(answer)),
                Err((target, Unhealthy::Io(error))) => {
                    let text = format!("{} port {}: {error}", target.host, target.port);
                    Err(Unhealthy::Io(io::Error::new(error.kind(), text)))
                }
                Err((_, error)) => Err(error),
            }
        });
        match answer {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                complain(error);
                ExitCode::FAILURE
            }
        }
    }

    fn target(&self) -> Result<Target, Unhealthy> {
        if let Some(url) = &self.url {
            return Target::parse(url).map_err(Unhealthy::Target);
        }
        let mut sources = self.files.sources();
        sources.reads_certificate = false;
        let flags = [("--host", &self.host), ("--port", &self.port)];
        sources.flags.extend(flags.into_iter().filter_map(|(flag, value)| Some((flag, value.clone()?))));
        let settings = load(&sources).map_err(|problems| {
            let problems: Vec<_> = problems.iter().collect();
            Unhealthy::Settings(problems.join("; "))
        })?;
        let server = &settings.server;
        // `--port` may name either.
        let tls = server.port_speaks_tls() || server.tls_port == Some(server.port);
        match server.port {
            0 => Err(Unhealthy::AnyPort),
            port => {
                // Of two addresses of this machine, whichever it has.
                let host = server.fallback_host.map_or(&*server.host, |_| "localhost");
                Ok(Target { tls, host: reachable(host), port, path: PATH.to_owned() })
            }
        }
    }
}

/// Where to connect to a server on this machine that listens on `host`.
pub(super) fn reachable(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) if address.is_unspecified() => "127.0.0.1".to_owned(),
        Ok(IpAddr::V6(address)) if address.is_unspecified() => "::1".to_owned(),
        Ok(_) | Err(_) => host.to_owned(),
    }
}

impl Target {
    /// Reads `http://HOST[:PORT][/PATH]`, or the same with `https`.
    fn parse(url: &str) -> Result<Self, String> {
        let wrong = || format!("{url} is not a URL such as http://127.0.0.1:6001");
        let (tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return Err(wrong()),
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = match authority.rsplit_once(':') {
            // The last colon of a bare IPv6 address is within the brackets.
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
            _ => (authority, if tls { 443 } else { 80 }),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || !visible(host) || !visible(path) {
            return Err(wrong());
        }
        let path = if path.len() > 1 { path } else { PATH };
        Ok(Self { tls, host: host.to_owned(), port, path: path.to_owned() })
    }
}

/// What the server answered.
#[derive(Debug, Eq, PartialEq)]
struct Answer {
    status: u16,
    /// What it said about it, on one line.
    said: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.said.as_str() {
            "" => write!(f, "status {}", self.status),
            said => write!(f, "status {}: {said}", self.status),
        }
    }
}

async fn ask(target: &Target) -> Result<Answer, Unhealthy> {
    let stream = TcpStream::connect(&*addresses_of(&target.host, target.port).await?).await?;
    if !target.tls {
        return converse(target, stream).await;
    }
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAnyCertificate(provider)))
        .with_no_client_auth();
    // A host that is no name of the DNS is called by its address: the certificate is not looked at.
    let name = match ServerName::try_from(target.host.clone()) {
        Ok(name) => name,
        Err(_) => stream.peer_addr()?.ip().into(),
    };
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    // What rustls finds is no record of TLS; other errors are of the network, or of a handshake that was refused.
    let explain = |error| if is_no_tls(&error) { Unhealthy::NotTls(error) } else { Unhealthy::Io(error) };
    converse(target, connected.map_err(explain)?).await
}

fn is_no_tls(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    // The alert is how pusherd answers on a port without TLS.
    matches!(
        error,
        Some(
            rustls::Error::InvalidMessage(_)
                | rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion)
        )
    )
}

async fn converse(
    Target { host, port, path, .. }: &Target,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<Answer, Unhealthy> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut bytes = Vec::new();
    let read = loop {
        let is_begun = !bytes.is_empty();
        let more = stream.read_buf(&mut bytes);
        let read = if is_begun { timeout(REST_TIMEOUT, more).await.unwrap_or(Ok(0)) } else { more.await };
        let is_done =
            bytes.len() >= ANSWER_BYTES_MAX || Answer::parse(&bytes).is_some_and(|answer| answer.is_ready());
        match read {
            Ok(1..) if !is_done => {}
            Ok(_) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    // A peer of another protocol may hang up in the middle; what it said says more.
    match (read, Answer::parse(&bytes)) {
        (_, Some(answer)) => Ok(answer),
        (Err(error), None) if bytes.is_empty() => Err(error.into()),
        (_, None) => Err(Unhealthy::NotHttp(match bytes.is_empty() {
            true => "it hangs up without a word".to_owned(),
            false => format!("it says {:?}", start_of(&bytes)),
        })),
    }
}

impl Answer {
    const fn is_ready(&self) -> bool {
        self.status == 200
    }

    /// Reads `HTTP/1.1 503 …`, whatever comes between, and the first line of the body.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let line = str::from_utf8(bytes.get(..12)?).ok()?;
        let status = line.strip_prefix("HTTP/1.")?.split_once(' ')?.1.parse().ok()?;
        let head_end =
            bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
        let body = bytes.get(head_end..).unwrap_or_default();
        Some(Self { status, said: start_of(body) })
    }
}

/// The first line of what a server said, fit to be printed.
fn start_of(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SAID_BYTES_MAX)]);
    let line = text.lines().next().unwrap_or_default();
    line.chars().filter(|letter| !letter.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_to_ask() {
        let target = |host: &str, port, path: &str| {
            Some(Target { tls: false, host: host.into(), port, path: path.into() })
        };
        let over_tls = |target: Option<Target>| target.map(|target| Target { tls: true, ..target });
        let table = [
            ("http://127.0.0.1:6001", target("127.0.0.1", 6001, "/ready")),
            ("http://127.0.0.1:6001/", target("127.0.0.1", 6001, "/ready")),
            ("http://localhost", target("localhost", 80, "/ready")),
            ("http://[::1]:6001/up", target("::1", 6001, "/up")),
            ("http://[::1]", target("::1", 80, "/ready")),
            ("https://localhost", over_tls(target("localhost", 443, "/ready"))),
            ("https://[::1]:6001/up", over_tls(target("::1", 6001, "/up"))),
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

    #[test]
    fn an_answer_is_its_status_and_what_is_said_about_it() {
        let table: [(&[u8], Option<&str>); 8] = [
            (b"HTTP/1.1 200 OK\r\n\r\nOK", Some("status 200: OK")),
            (b"HTTP/1.0 503", Some("status 503")),
            (
                b"HTTP/1.1 400 Bad Request\r\nA: b\r\n\r\nThis port speaks TLS\n<p>",
                Some("status 400: This port speaks TLS"),
            ),
            (b"HTTP/1.1 400 Bad Request\r\nA: b\r\n\r\n\x1b[2Jno", Some("status 400: [2Jno")),
            (b"HTTP/1.1 400 \r\n\r\n\xff", Some("status 400: \u{fffd}")),
            (b"SSH-2.0-OpenSSH_9", None),
            (b"HTTP/1.1", None),
            (b"", None),
        ];
        for (bytes, expected) in table {
            let answer = Answer::parse(bytes).map(|answer| answer.to_string());
            assert_eq!(answer.as_deref(), expected, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
