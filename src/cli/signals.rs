//! What signals mean to a server. None of them ends it without a drain.
//!
//! | signal | meaning |
//! | --- | --- |
//! | SIGTERM, SIGINT, SIGQUIT | drain; the second one ends the drain |
//! | SIGHUP | read the certificate again; drain, if the terminal that the server was started on is gone |
//! | SIGUSR1, SIGUSR2 | nothing: other servers open their logs anew, or replace themselves |
//! | SIGXFSZ | nothing: a file that may not grow refuses what is written, as a full disk does |
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

/// A signal so soon after another that ends the server is the same one: a terminal sends it to all of a group, and a
/// process manager in that group passes it on.
const SAME_SIGNAL: Duration = Duration::from_millis(200);

/// Obeys signals from here on, in the current runtime. What ends the server is received; `tls` is what is read again.
///
/// # Errors
/// A signal that the system does not let us handle.
pub(super) fn obey_signals(tls: Option<Tls>) -> io::Result<mpsc::Receiver<Shutdown>> {
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit(), SignalKind::hangup()];
    let [mut term, mut int, mut quit, mut hangup] = handle(kinds)?;
    let [mut user1, mut user2, mut file_size] =
        handle([SignalKind::user_defined1(), SignalKind::user_defined2(), of(Signal::XFSZ)])?;
    let terminals = Terminals::of_process();
    let (orders, shutdown) = mpsc::channel(2);
    tokio::spawn(async move {
        let mut stops = Stops { orders, first: None, terminal_is_gone: false };
        loop {
            tokio::select! {
                _ = term.recv() => stops.stop("SIGTERM"),
                _ = int.recv() => stops.stop("SIGINT"),
                _ = quit.recv() => stops.stop("SIGQUIT"),
                _ = hangup.recv() => match terminals.are_gone() {
                    true => stops.terminal_gone(),
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

fn of(signal: Signal) -> SignalKind {
    SignalKind::from_raw(signal.as_raw())
}

fn handle<const N: usize>(kinds: [SignalKind; N]) -> io::Result<[tokio::signal::unix::Signal; N]> {
    let signals: Vec<_> = kinds.into_iter().map(signal).collect::<io::Result<_>>()?;
    Ok(signals.try_into().expect("there is one for each kind"))
}

/// How the server was told to stop so far.
struct Stops {
    orders: mpsc::Sender<Shutdown>,
    /// When the drain began.
    first: Option<Instant>,
    terminal_is_gone: bool,
}

impl Stops {
    fn stop(&mut self, cause: &str) {
        let order = match self.first {
            Some(first) if first.elapsed() < SAME_SIGNAL => return,
            Some(_) => Shutdown::Now,
            None => Shutdown::Graceful,
        };
        match order {
            Shutdown::Graceful => info!("{cause} received: stopping"),
            Shutdown::Now => info!("{cause} received: stopping at once"),
        }
        self.first.get_or_insert_with(Instant::now);
        // A server that has as many orders to read already, or none to read any more, is ending.
        let _ = self.orders.try_send(order);
    }

    /// The system and the shell each say so: that is no second signal.
    fn terminal_gone(&mut self) {
        if !std::mem::replace(&mut self.terminal_is_gone, true) && self.first.is_none() {
            self.stop("SIGHUP of a closed terminal");
        }
    }
}

async fn reload(tls: Option<Tls>) {
    let Some(tls) = tls else {
        info!("SIGHUP received: nothing to read again, settings are read at the start only");
        return;
    };
    info!("SIGHUP received: reading the certificate again, other settings are read at the start only");
    // An error is a runtime that ends.
    let _ = tokio::task::spawn_blocking(move || tls.reload()).await;
}

/// Which of standard input, output and error were terminals at the start.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Terminals([bool; 3]);

impl Terminals {
    fn of_process() -> Self {
        Self([io::stdin().is_terminal(), io::stdout().is_terminal(), io::stderr().is_terminal()])
    }

    /// Whether there were any, and none is left: a terminal that has hung up answers nothing any more.
    fn are_gone(self) -> bool {
        self.0.contains(&true) && !Self::of_process().0.contains(&true)
    }
}
