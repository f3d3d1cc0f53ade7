//! `pusherd health`: one HTTP request by hand, for images that have no shell and no curl.
//!
//! Over TLS the certificate is not looked at. The server is asked under the address that it listens on, for which
//! no certificate is issued; it is told no secret, and believed no more than without TLS.

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
use tokio_rustls::TlsConnector;

use super::{Health, complain};
use crate::cluster::redis::Anyone;
use crate::config::load;

/// Time for everything: container engines ask every few seconds.
const TIMEOUT: Duration = Duration::from_secs(3);

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
    #[error("the answer is not HTTP")]
    NotHttp,
    #[error("not ready: status {0}")]
    Status(u16),
}

impl Health {
    /// Asks, and answers by exit code.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        let answer = self.target().and_then(|target| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let asked = runtime.block_on(async { tokio::time::timeout(TIMEOUT, ask(&target)).await });
            // A name that is still being looked up would hold up the end.
            runtime.shutdown_background();
            let status = asked.unwrap_or(Err(Unhealthy::Timeout)).map_err(|error| (target, error));
            match status {
                Ok(200) => Ok(()),
                Ok(status) => Err(Unhealthy::Status(status)),
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
            port => Ok(Target { tls, host: reachable(&server.host), port, path: PATH.to_owned() }),
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

/// The status of the answer.
async fn ask(target: &Target) -> Result<u16, Unhealthy> {
    let stream = TcpStream::connect((target.host.as_str(), target.port)).await?;
    if !target.tls {
        return converse(target, stream).await;
    }
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    // A host that is no name of the DNS is called by its address: the certificate is not looked at.
    let name = match ServerName::try_from(target.host.clone()) {
        Ok(name) => name,
        Err(_) => stream.peer_addr()?.ip().into(),
    };
    converse(target, TlsConnector::from(Arc::new(config)).connect(name, stream).await?).await
}

async fn converse(
    Target { host, port, path, .. }: &Target,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<u16, Unhealthy> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    // `HTTP/1.1 200`
    let mut line = [0; 12];
    match stream.read_exact(&mut line).await {
        Ok(_) => status(&line).ok_or(Unhealthy::NotHttp),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Unhealthy::NotHttp),
        Err(error) => Err(error.into()),
    }
}

fn status(line: &[u8]) -> Option<u16> {
    let line = str::from_utf8(line.get(..12)?).ok()?;
    line.strip_prefix("HTTP/1.")?.split_once(' ')?.1.parse().ok()
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
    fn the_status_is_in_the_first_twelve_bytes() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 503"), Some(503));
        assert_eq!(status(b"SSH-2.0-OpenSSH_9"), None);
        assert_eq!(status(b"HTTP/1.1"), None);
    }
}
