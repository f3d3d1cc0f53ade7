//! Logs: on standard error, so that standard output is the banner's.
//!
//! Logging never harms: standard error that is full, closed, gone or read by nobody stops, slows and ends nothing.
//! Lines that cannot be written are lost, counted, and said to be lost when there is a way again ([`queue`]).

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

/// The target of what is logged at every level: that the server listens, and that it is open to strangers.
pub(super) const LISTENING: &str = "pusherd::listening";

/// How long the end of the process waits for standard error to take the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

const LINES_LOST: &str = "log lines lost: standard error did not take them";

/// Dropping this writes the last lines, as far as standard error takes them within half a second.
#[derive(Debug)]
#[must_use]
pub(super) struct Logging(Arc<Queue>);

impl Drop for Logging {
    fn drop(&mut self) {
        self.0.flush(FLUSH_TIMEOUT);
    }
}

/// Logs from here on, as the settings say.
///
/// # Errors
/// The system gives no thread.
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
        .with_target(LISTENING, LevelFilter::INFO.max(level));
    let is_json = settings.log.format == LogFormat::Json;
    let queue = Queue::start(io::stderr(), move |lines| lines_lost(is_json, lines))?;
    let writer = Arc::clone(&queue);
    // What goes wrong with standard error cannot be told on standard error: trying to would panic.
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
    // The hook of the standard library waits for standard error.
    std::panic::set_hook(Box::new(log_panic));
    Ok(Logging(queue))
}

/// A line like those of the format, which the queue writes itself.
fn lines_lost(is_json: bool, lines: u64) -> String {
    let mut now = String::new();
    // Writing to a string does not fail.
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
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        tracing::error!(place, %backtrace, "panic: {text}");
    } else {
        tracing::error!(place, "panic: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_lines_are_told_in_the_format_of_the_others() {
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
