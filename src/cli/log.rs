//! Logs: on standard error, so that standard output is the banner's.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogLevel, Settings};

/// The target of what is logged at every level: that the server listens, and that it is open to strangers.
pub const LISTENING: &str = "pusherd::listening";

/// Logs from here on, as the settings say.
pub fn start_logging(settings: &Settings) {
    let level = match settings.log.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let others = if settings.log.level == LogLevel::Error { "error" } else { "warn" };
    let filter = EnvFilter::new(format!("{others},pusherd={level},{LISTENING}=info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match settings.log.format {
        LogFormat::Auto => logs.with_ansi(settings.colour && io::stderr().is_terminal()).init(),
        LogFormat::Human => logs.with_ansi(false).init(),
        LogFormat::Json => logs.json().init(),
    }
}
