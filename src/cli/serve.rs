//! `pusherd serve`: starts logging, binds, prints the addresses, serves, and chooses the exit code.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use super::{ALWAYS_LOGGED, Serve, banner, handle_signals, print, print_error, start_logging};
use crate::apps::Apps;
use crate::config::{self, LogFormat, Settings};
use crate::server::{self, Listeners};

/// How long the start waits for the banner, so that it is printed before the log.
const PRINT_TIMEOUT: Duration = Duration::from_secs(1);

impl Serve {
    /// Serves until a signal stops it.
    pub(super) fn run(&self) -> ExitCode {
        match self.settings() {
            Ok(settings) => serve(settings),
            Err(problems) => {
                print_error(problems);
                ExitCode::from(super::EXIT_CONFIG)
            }
        }
    }
}

fn serve(settings: Settings) -> ExitCode {
    // Dropped last, so that the last lines are flushed.
    let _logging = match start_logging(&settings) {
        Ok(logging) => logging,
        Err(error) => {
            print_error(format_args!("cannot start logging: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let served = tokio::runtime::Runtime::new().and_then(|runtime| {
        let served = runtime.block_on(run(settings));
        // Without this, the process would wait for the end of a running name lookup, of a webhook for example.
        runtime.shutdown_background();
        served
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> io::Result<()> {
    for warning in &settings.warnings {
        if warning.always_logged {
            tracing::warn!(target: ALWAYS_LOGGED, "{warning}");
        } else {
            tracing::warn!("{warning}");
        }
    }
    let mut shutdown = handle_signals(settings.server.tls.clone())?;
    server::raise_file_limit();
    let listeners = tokio::select! {
        listeners = listen(&settings) => listeners?,
        // A lookup of the host without a response can take half a minute.
        _ = shutdown.recv() => return Ok(()),
    };
    let listening = listeners.addresses()?;
    match settings.log.format {
        LogFormat::Auto | LogFormat::Human => print_with_timeout(banner(&settings, &listening)).await,
        LogFormat::Json => {
            if let Some(address) = listening.plain {
                tracing::info!(target: ALWAYS_LOGGED, "listening on {address}");
            }
            if let Some(address) = listening.tls {
                tracing::info!(target: ALWAYS_LOGGED, "listening on {address} with TLS");
            }
        }
    }
    server::run(listeners, Apps::new(settings.apps), settings.server.options, shutdown).await
}

/// Prints, but does not wait long: standard output may have no reader.
async fn print_with_timeout(text: String) {
    let printed = tokio::task::spawn_blocking(move || print(text));
    // After the timeout, the thread continues by itself.
    let _ = tokio::time::timeout(PRINT_TIMEOUT, printed).await;
}

/// Binds `port` without TLS, unless there is a certificate and no separate port for it.
async fn listen(settings: &Settings) -> io::Result<Listeners> {
    let (port, tls_port) = (settings.server.port, settings.server.tls_port);
    let Some(tls) = settings.server.tls.clone() else {
        return Ok(bind(settings, "port", port).await?.into());
    };
    let Some(tls_port) = tls_port else {
        return Ok(Listeners { plain: None, tls: Some((bind(settings, "port", port).await?, tls)) });
    };
    let plain = bind(settings, "port", port).await?;
    Ok(Listeners { plain: Some(plain), tls: Some((bind(settings, "tls_port", tls_port).await?, tls)) })
}

async fn bind(settings: &Settings, key: &str, port: u16) -> io::Result<tokio::net::TcpListener> {
    let server = &settings.server;
    let explain = |address: String, error: io::Error| {
        let hints = [
            (
                io::ErrorKind::AddrInUse,
                "; another program uses the port, perhaps another pusherd, Reverb or Soketi",
            ),
            (io::ErrorKind::PermissionDenied, "; ports below 1024 need privileges"),
            (io::ErrorKind::AddrNotAvailable, "; this machine does not have that address"),
        ];
        let hint = hints.iter().find(|(kind, _)| *kind == error.kind()).map_or("", |(_, hint)| hint);
        let (host_from, port_from) = (settings.server_source("host"), settings.server_source(key));
        let text = format!(
            "cannot listen on {address}: {error}{hint} (server.host: {host_from}; server.{key}: {port_from})"
        );
        io::Error::new(error.kind(), text)
    };
    let addresses = addresses(server, port).await;
    let addresses = addresses.map_err(|error| explain(server.address_text(port), error))?;
    server::bind_first(&addresses).map_err(|(address, error)| {
        explain(address.map_or_else(|| server.address_text(port), |address| address.to_string()), error)
    })
}

/// The addresses to listen on, of which the first that this machine has is used.
async fn addresses(server: &config::Server, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for host in std::iter::once(&*server.host).chain(server.fallback_host) {
        addresses.extend(server::addresses_of(host, port).await?);
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_default_credentials_are_served_on_loopback_of_either_family() {
        let app = ["ID=1", "KEY=k", "SECRET=long-enough"].map(|line| format!("PUSHERD_APP_{line}"));
        let host = "PUSHERD_HOST=127.0.0.1".to_owned();
        for (variables, expected) in [
            (vec![], &["127.0.0.1:7", "[::1]:7"][..]),
            (vec![host], &["127.0.0.1:7"]),
            (app.to_vec(), &["0.0.0.0:7"]),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let variables = variables.iter().filter_map(|line| line.split_once('='));
            let variables = variables.map(|(name, value)| (name.into(), value.into()));
            let sources = config::Sources::new(variables, directory.path().to_owned());
            let settings = config::load(&sources).unwrap();
            let addresses = addresses(&settings.server, 7).await.unwrap();
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            assert_eq!(addresses, expected);
        }
    }
}
