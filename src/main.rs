//! Loads settings, starts logging, serves, and picks the exit code.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser as _;
use pusherd::apps::Apps;
use pusherd::cli::{self, Cli, Command};
use pusherd::config::{LogFormat, Settings};
use pusherd::server::{self, Shutdown};
use tokio::net::lookup_host;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(command) => match command.settings() {
            Ok(settings) => serve(settings),
            Err(problems) => {
                cli::complain(problems);
                ExitCode::from(cli::EXIT_CONFIG)
            }
        },
        Command::Config(command) => command.run(),
        Command::Health(command) => command.run(),
    }
}

fn serve(settings: Settings) -> ExitCode {
    cli::start_logging(&settings);
    let served = tokio::runtime::Runtime::new().and_then(|runtime| runtime.block_on(run(settings)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> io::Result<()> {
    for advice in &settings.advice {
        if advice.loud {
            tracing::warn!(target: cli::LISTENING, "{advice}");
        } else {
            tracing::warn!("{advice}");
        }
    }
    let shutdown = signals()?;
    let listener = bind(&settings).await?;
    let address = listener.local_addr()?;
    match settings.log.format {
        LogFormat::Auto | LogFormat::Human => cli::print(cli::banner(&settings, address)),
        LogFormat::Json => tracing::info!(target: cli::LISTENING, "listening on {address}"),
    }
    server::run(listener, Apps::new(settings.apps), settings.server.options, shutdown).await
}

async fn bind(settings: &Settings) -> io::Result<tokio::net::TcpListener> {
    let (host, port) = (&*settings.server.host, settings.server.port);
    let address = settings.server.address_text();
    let explain = |error: io::Error| {
        let hints = [
            (
                io::ErrorKind::AddrInUse,
                "; something else listens there, perhaps another pusherd, Reverb or Soketi",
            ),
            (io::ErrorKind::PermissionDenied, "; ports below 1024 are the administrator's"),
            (io::ErrorKind::AddrNotAvailable, "; this machine does not have that address"),
        ];
        let hint = hints.iter().find(|(kind, _)| *kind == error.kind()).map_or("", |(_, hint)| hint);
        let (host_from, port_from) = (settings.source_of("host"), settings.source_of("port"));
        let text = format!(
            "cannot listen on {address}: {error}{hint} (server.host: {host_from}; server.port: {port_from})"
        );
        io::Error::new(error.kind(), text)
    };
    // Names like localhost often have two addresses; older clients know the IPv4 one only.
    let mut addresses: Vec<SocketAddr> = lookup_host((host, port)).await.map_err(explain)?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let address = addresses.first().ok_or_else(|| explain(io::ErrorKind::AddrNotAvailable.into()))?;
    server::bind(*address).map_err(explain)
}

/// The first SIGTERM or SIGINT drains, a later one ends the drain.
fn signals() -> io::Result<mpsc::Receiver<Shutdown>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (orders, shutdown) = mpsc::channel(2);
    tokio::spawn(async move {
        for order in [Shutdown::Graceful, Shutdown::Now] {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if orders.send(order).await.is_err() {
                return;
            }
        }
    });
    Ok(shutdown)
}
