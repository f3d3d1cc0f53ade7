//! What a server logs, for tests that read it.

use std::io;
use std::sync::{Arc, Mutex};

use tracing::Level;
use tracing::subscriber::DefaultGuard;

/// The log of the test's thread, on which its server runs as well, as an operator sees it.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Starts to log, at `level` and above, until the guard is dropped.
    pub fn start(level: Level) -> (Self, DefaultGuard) {
        let log = Self::default();
        let written = log.clone();
        let logs = tracing_subscriber::fmt().with_ansi(false).with_max_level(level);
        let logs = logs.with_writer(move || written.clone()).finish();
        (log, tracing::subscriber::set_default(logs))
    }

    /// The whole log so far.
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The lines at `level` that contain `text`.
    pub fn lines(&self, level: Level, text: &str) -> Vec<String> {
        let level = format!(" {level} ");
        let is_wanted = |line: &&str| line.contains(&level) && line.contains(text);
        self.text().lines().filter(is_wanted).map(str::to_owned).collect()
    }

    /// The only line at `level` that contains `text`.
    pub fn line(&self, level: Level, text: &str) -> String {
        let mut lines = self.lines(level, text);
        assert_eq!(lines.len(), 1, "one line at {level} with {text:?}: {}", self.text());
        lines.remove(0)
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
