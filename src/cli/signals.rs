//! Signals. None of them ends the server without a drain.
//!
//! | signal | meaning |
//! | --- | --- |
//! | SIGTERM, SIGINT, SIGQUIT | drain; a second one stops at once |
//! | SIGHUP | reload the certificate; drain, if the terminal that the server was started on is closed |
//! | SIGUSR1, SIGUSR2 | ignored: other servers reopen their logs or replace themselves |
//! | SIGXFSZ | ignored: writing to a file at its size limit fails, as on a full disk |
//!
//! SIGPIPE is ignored by the standard library: a closed pipe is an error of the write.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::info;

use crate::server::{Shutdown, Tls};

/// A second signal within this time is a duplicate: a terminal sends a signal to a whole process group, and a process
/// manager in the group passes it on.
const DUPLICATE_WINDOW: Duration = Duration::from_millis(200);

/// Handles signals in the current runtime. The receiver yields requests to shut down; SIGHUP reloads `tls`.
///
/// # Errors
/// The system rejects the handler of a signal.
pub(super) fn handle_signals(tls: Option<Tls>) -> io::Result<mpsc::Receiver<Shutdown>> {
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit(), SignalKind::hangup()];
    let [mut term, mut int, mut quit, mut hangup] = handle(kinds)?;
    let [mut user1, mut user2, mut file_size] =
        handle([SignalKind::user_defined1(), SignalKind::user_defined2(), kind(Signal::XFSZ)])?;
    let terminals = Terminals::of_process();
    let (requests, shutdown) = mpsc::channel(2);
    tokio::spawn(async move {
        let mut shutdown = ShutdownRequests { requests, first: None, is_terminal_closed: false };
        loop {
            tokio::select! {
                _ = term.recv() => shutdown.request("SIGTERM"),
                _ = int.recv() => shutdown.request("SIGINT"),
                _ = quit.recv() => shutdown.request("SIGQUIT"),
                _ = hangup.recv() => match terminals.are_closed() {
                    true => shutdown.terminal_closed(),
                    false => reload(tls.clone()).await,
                },
                _ = user1.recv() => info!("SIGUSR1 ignored"),
                _ = user2.recv() => info!("SIGUSR2 ignored"),
                _ = file_size.recv() => {}
            }
        }
    });
    Ok(shutdown)
}

fn kind(signal: Signal) -> SignalKind {
    SignalKind::from_raw(signal.as_raw())
}

fn handle<const N: usize>(kinds: [SignalKind; N]) -> io::Result<[tokio::signal::unix::Signal; N]> {
    let signals: Vec<_> = kinds.into_iter().map(signal).collect::<io::Result<_>>()?;
    Ok(signals.try_into().expect("there is one for each kind"))
}

/// The requests to shut down so far.
struct ShutdownRequests {
    requests: mpsc::Sender<Shutdown>,
    /// The time of the first request, when the drain began.
    first: Option<Instant>,
    is_terminal_closed: bool,
}

impl ShutdownRequests {
    fn request(&mut self, cause: &str) {
        let shutdown = match self.first {
            Some(first) if first.elapsed() < DUPLICATE_WINDOW => return,
            Some(_) => Shutdown::Now,
            None => Shutdown::Graceful,
        };
        match shutdown {
            Shutdown::Graceful => info!("{cause} received: stopping"),
            Shutdown::Now => info!("{cause} received: stopping at once"),
        }
        self.first.get_or_insert_with(Instant::now);
        // The channel is full or closed only if the server is stopping already.
        let _ = self.requests.try_send(shutdown);
    }

    /// The system and the shell both send SIGHUP when a terminal closes. Only the first one counts.
    fn terminal_closed(&mut self) {
        if !std::mem::replace(&mut self.is_terminal_closed, true) && self.first.is_none() {
            self.request("SIGHUP of a closed terminal");
        }
    }
}

async fn reload(tls: Option<Tls>) {
    let Some(tls) = tls else {
        info!("SIGHUP received: no certificate to reload, settings are read only at the start");
        return;
    };
    info!("SIGHUP received: reloading the certificate, other settings are read only at the start");
    // The task fails only if the runtime shuts down.
    let _ = tokio::task::spawn_blocking(move || tls.reload()).await;
}

/// Whether standard input, output and error were terminals at the start.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Terminals([bool; 3]);

impl Terminals {
    fn of_process() -> Self {
        Self([io::stdin().is_terminal(), io::stdout().is_terminal(), io::stderr().is_terminal()])
    }

    /// Whether there were terminals, and all of them are closed.
    fn are_closed(self) -> bool {
        self.0.contains(&true) && !Self::of_process().0.contains(&true)
    }
}
