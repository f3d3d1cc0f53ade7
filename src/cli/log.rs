//! Writes the log to standard error; standard output is for the banner.
//!
//! The log never blocks or stops the server, even if standard error is full, closed, or has no reader. Lines that cannot be
//! written are lost and counted, and the count is logged when standard error accepts lines again ([`queue`]).

mod queue;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal as _};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{self, FormatTime as _};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogFormat, LogLevel, Settings};
use queue::Queue;

/// The target of lines that are logged at every level: the addresses that the server listens on, and warnings about its
/// safety.
pub(super) const ALWAYS_LOGGED: &str = "pusherd::listening";

/// How long the process waits at its end for the last lines to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

const LINES_LOST: &str = "log lines lost: standard error did not take them";

/// Dropping this flushes the log, for half a second at most.
#[derive(Debug)]
#[must_use]
pub(super) struct Logging(Arc<Queue>);

impl Drop for Logging {
    fn drop(&mut self) {
        self.0.flush(FLUSH_TIMEOUT);
    }
}

/// Starts logging with these settings.
///
/// # Errors
/// The thread of the log cannot be started.
pub(super) fn start_logging(settings: &Settings) -> io::Result<Logging> {
    let level = match settings.log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let libraries = level.min(LevelFilter::WARN);
    let targets = Targets::new()
        .with_default(libraries)
        .with_target("pusherd", level)
        .with_target(ALWAYS_LOGGED, LevelFilter::INFO.max(level));
    let is_json = settings.log.format == LogFormat::Json;
    let queue = Queue::start(io::stderr(), move |lines| lines_lost(is_json, lines))?;
    let writer = Arc::clone(&queue);
    // An error of standard error cannot be printed to it: tracing would panic.
    let logs = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .log_internal_errors(false)
        .with_writer(move || queue::Line(Arc::clone(&writer)));
    match settings.log.format {
        LogFormat::Auto => {
            logs.with_ansi(settings.colour && io::stderr().is_terminal()).finish().with(targets).init();
        }
        LogFormat::Human => logs.with_ansi(false).finish().with(targets).init(),
        LogFormat::Json => logs.json().finish().with(targets).init(),
    }
    // The hook of the standard library blocks on standard error.
    std::panic::set_hook(Box::new(log_panic));
    Ok(Logging(queue))
}

/// The line about lost lines, in the format of the others. The queue writes it without tracing.
fn lines_lost(is_json: bool, lines: u64) -> String {
    let mut now = String::new();
    // Writing to a string cannot fail.
    let _ = time::time().format_time(&mut Writer::new(&mut now));
    let target = module_path!();
    if is_json {
        let fields = json!({ "message": LINES_LOST, "lines": lines });
        format!("{}\n", json!({ "timestamp": now, "level": "WARN", "fields": fields, "target": target }))
    } else {
        format!("{now}  WARN {target}: {LINES_LOST} lines={lines}\n")
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let text = panic.payload_as_str().unwrap_or("no text");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(location, %backtrace, "panic: {text}");
    } else {
        tracing::error!(location, "panic: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_lines_are_reported_in_the_format_of_the_log() {
        let human = lines_lost(false, 7);
        assert!(human.ends_with(
            "Z  WARN pusherd::cli::log: log lines lost: standard error did not take them lines=7\n"
        ));
        let json: serde_json::Value = serde_json::from_str(&lines_lost(true, 7)).unwrap();
        assert_eq!(json["level"], "WARN");
        assert_eq!(json["fields"]["lines"], 7);
        assert!(json["timestamp"].as_str().unwrap().ends_with('Z'));
    }
}
