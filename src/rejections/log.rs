//! The log of rejections: a line a minute for each kind and app.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{debug, info, warn};

use super::Rejection;
use super::example::{Example, Field};

/// The interval between two lines of one kind.
const REPORT_INTERVAL_SECS: u32 = 60;

/// The rejections of an app, or of the node, that are reported and that are not reported yet.
#[derive(Debug)]
pub struct RejectionLog {
    slots: [Slot; Rejection::COUNT],
    /// An example of each kind with unreported rejections.
    unreported: Mutex<Vec<(Rejection, Example<'static>)>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// The second of the last line, plus one; 0: none yet.
    reported_secs: AtomicU32,
    /// The rejections since then.
    count: AtomicU32,
}

impl Slot {
    /// Whether a line is due at `now`. Of concurrent callers, only one gets `true`.
    fn is_due(&self, now: Duration) -> bool {
        let now_secs = now.as_secs() as u32 + 1;
        let is_due = |reported: u32| {
            (reported == 0 || now_secs.saturating_sub(reported) >= REPORT_INTERVAL_SECS).then_some(now_secs)
        };
        self.reported_secs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_due).is_ok()
    }

    /// Returns the number of unreported rejections, and resets it.
    fn take_count(&self) -> u32 {
        self.count.swap(0, Ordering::Relaxed)
    }
}

impl Default for RejectionLog {
    fn default() -> Self {
        Self { slots: std::array::from_fn(|_| Slot::default()), unreported: Mutex::default() }
    }
}

impl RejectionLog {
    /// Reports a rejection if the last report is more than a minute old. Returns whether [`RejectionLog::flush`] must be called
    /// later, if that was not returned before.
    #[must_use = "an unreported rejection must be flushed later"]
    pub fn report(&self, rejection: Rejection, example: Example<'_>, now: Duration) -> bool {
        let slot = &self.slots[rejection.index()];
        let is_first = slot.count.fetch_add(1, Ordering::Relaxed) == 0;
        if slot.is_due(now) {
            log_summary(rejection, &example, slot.take_count());
            return false;
        }
        if !is_first {
            return false;
        }
        let mut unreported = self.unreported.lock();
        unreported.push((rejection, example.into_owned()));
        unreported.len() == 1
    }

    /// Reports the unreported rejections whose minute is over, or `all`. Returns whether some are left.
    pub fn flush(&self, now: Duration, all: bool) -> bool {
        let mut unreported = self.unreported.lock();
        unreported.retain(|(rejection, example)| {
            let slot = &self.slots[rejection.index()];
            if !slot.is_due(now) && !all {
                // Reported meanwhile by a later call, or not due yet.
                return slot.count.load(Ordering::Relaxed) > 0;
            }
            let count = slot.take_count();
            if count > 0 {
                log_summary(*rejection, example, count);
            }
            false
        });
        !unreported.is_empty()
    }
}

/// Logs a line with the fields of the example that are set, and `$more` before them.
macro_rules! line {
    ($log:ident, $rejection:expr, $example:expr, $($more:tt)*) => {{
        let (rejection, example): (Rejection, &Example<'_>) = ($rejection, $example);
        let (value, setting, remedy) = match rejection {
            Rejection::Limit(limit) => {
                (example.value.map(|value| format!("{value} {}", limit.unit())), Some(limit.setting()), None)
            }
            Rejection::Mistake(mistake) => (None, None, mistake.remedy()),
        };
        $log!(
            $($more)*
            app = example.get(Field::App),
            limit = value,
            setting,
            address = example.address.map(tracing::field::display),
            socket = example.socket.map(tracing::field::display),
            channel = example.get(Field::Channel),
            path = example.get(Field::Path),
            key = example.get(Field::Key),
            origin = example.get(Field::Origin),
            library = example.get(Field::Library),
            reason = example.get(Field::Reason),
            remedy,
            "{}", rejection.description()
        );
    }};
}

/// Logs one rejection at `debug`.
pub fn log_one(rejection: Rejection, example: &Example<'_>) {
    line!(debug, rejection, example,);
}

fn log_summary(rejection: Rejection, example: &Example<'_>, count: u32) {
    match rejection {
        Rejection::Limit(limit) if limit.is_shared() => line!(warn, rejection, example, count,),
        Rejection::Limit(_) | Rejection::Mistake(_) => line!(info, rejection, example, count,),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::limits::Limit;
    use crate::rejections::Mistake;

    /// The lines at `info` and above that are logged while `act` runs.
    fn logged(act: impl FnOnce()) -> Vec<String> {
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Log {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        impl MakeWriter<'_> for Log {
            type Writer = Self;
            fn make_writer(&self) -> Self {
                self.clone()
            }
        }
        let log = Log::default();
        let logs = tracing_subscriber::fmt().with_ansi(false).without_time().with_target(false);
        tracing::subscriber::with_default(logs.with_writer(log.clone()).finish(), act);
        let text = String::from_utf8(log.0.lock().clone()).unwrap();
        text.lines().map(|line| line.trim_start().to_owned()).collect()
    }

    fn example() -> Example<'static> {
        Example::from([192, 0, 2, 1].into())
    }

    #[test]
    fn each_kind_is_reported_once_a_minute_with_its_count_and_none_is_lost() {
        let log = RejectionLog::default();
        let report = |rejection: Rejection, secs| log.report(rejection, example(), Duration::from_secs(secs));
        let flush = |secs| log.flush(Duration::from_secs(secs), false);
        let (key, path) = (Mistake::ConnectionKey.into(), Mistake::ConnectionPath.into());
        let lines = logged(|| {
            assert!(!report(key, 0), "reported at once");
            assert!(report(key, 1), "to be reported later");
            assert!(!report(key, 2) && !report(key, 59), "a flush is pending already");
            assert!(!report(path, 30), "another kind is reported at once");
            assert!(flush(59));
            assert!(!flush(60));
            assert!(report(key, 61));
            assert!(!report(key, 120), "reported with the one before");
            assert!(!flush(121));
            assert!(report(key, 122));
            assert!(!log.flush(Duration::from_secs(123), true), "at the end, all is reported");
        });
        let counts =
            lines.iter().map(|line| (line.contains("unknown path"), &line[line.find("count=").unwrap()..]));
        let counts: Vec<_> = counts.map(|(path, rest)| (path, rest.split(' ').next().unwrap())).collect();
        let expected = [
            (false, "count=1"),
            (true, "count=1"),
            (false, "count=3"),
            (false, "count=2"),
            (false, "count=1"),
        ];
        assert_eq!(counts, expected, "{lines:#?}");
    }

    #[test]
    fn a_report_has_bounded_escaped_fields_and_a_remedy() {
        let long = "x".repeat(1000);
        let lines = logged(|| {
            let example =
                example().key("demo-key-of-an-app").path(&*long).origin("https://a\u{1b}[31m\nINFO b");
            let _ = RejectionLog::default().report(Mistake::ConnectionKey.into(), example, Duration::ZERO);
            let full = example_of_limit();
            let _ = RejectionLog::default().report(Limit::AppConnections.into(), full, Duration::ZERO);
        });
        let [wrong, full] = &lines[..] else { panic!("{lines:#?}") };
        assert!(wrong.starts_with("INFO a WebSocket was rejected: unknown app key count=1"), "{wrong}");
        assert!(wrong.contains(r#"key="demo-key""#) && wrong.contains("address=192.0.2.1"), "{wrong}");
        assert!(wrong.contains(r"\u{1b}[31m\nINFO") && wrong.contains("remedy="), "{wrong}");
        assert!(wrong.len() < 600, "{wrong}");
        assert_eq!(
            full,
            "WARN connection limit of an app reached count=1 app=\"1001\" limit=\"100 connections\" \
             setting=\"limits.connections\" address=192.0.2.1"
        );
    }

    fn example_of_limit() -> Example<'static> {
        example().app("1001").value(100)
    }

    #[test]
    fn a_flood_keeps_one_example_and_every_rejection_is_counted() {
        let log = RejectionLog::default();
        let lines = logged(|| {
            let report = |secs| log.report(Mistake::Request.into(), example(), Duration::from_secs(secs));
            let _ = report(0);
            assert_eq!((0..100_000).filter(|_| report(1)).count(), 1);
            assert_eq!(log.unreported.lock().len(), 1);
            assert!(!log.flush(Duration::from_secs(60), false));
        });
        assert!(lines[1].contains("count=100000"), "{lines:#?}");
    }
}
