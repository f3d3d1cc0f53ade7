//! A bounded queue of lines in front of a file that may block or fail. Only its own thread waits for the file.
//!
//! The queue is bounded in bytes. A line is lost if the queue is full or the file rejects it. Lost lines are counted, and the
//! count is written when the file accepts lines again.
//!
//! `non_blocking` of tracing-appender is not used for three reasons: it is bounded by lines, and a line can be as long as a
//! message; it does not count lines that the file rejects; and if the queue is full at the end, its guard prints to standard
//! output, which panics if that is closed.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// The capacity of the queue.
const BYTES_MAX: usize = 1024 * 1024;

/// The time between two attempts to write to a file that another process has made non-blocking.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// See the documentation of the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Notified when lines are added.
    filled: Condvar,
    /// Notified when all lines are written or lost.
    drained: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    is_writing: bool,
    /// Lines lost since the last report.
    lost: u64,
}

/// A writer to the queue. Each call of `write` adds one line, without blocking.
#[derive(Debug)]
pub(super) struct Line(pub(super) Arc<Queue>);

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Queue {
    /// Starts a thread that writes the lines of the queue to `file` until the process ends. `lines_lost` formats the report
    /// about lost lines.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn start(
        file: impl Write + Send + 'static,
        lines_lost: impl Fn(u64) -> String + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let queue = Arc::new(Self::default());
        let writer = Arc::clone(&queue);
        thread::Builder::new()
            .name("pusherd-log".into())
            .spawn(move || writer.write_all(file, lines_lost))?;
        Ok(queue)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.state.lock();
        if state.waiting.len() + line.len() > BYTES_MAX {
            state.lost += 1;
            return;
        }
        state.waiting.extend_from_slice(line);
        self.filled.notify_one();
    }

    /// Waits until all lines are written or lost, but no longer than `timeout`.
    pub(super) fn flush(&self, timeout: Duration) {
        let mut state = self.state.lock();
        let is_busy = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        // The result does not matter: there is no time to wait longer.
        let _ = self.drained.wait_while_for(&mut state, is_busy, timeout);
    }

    /// Writes lines as they come, without end.
    fn write_all(&self, mut file: impl Write, lines_lost: impl Fn(u64) -> String) {
        let mut batch = Vec::new();
        // Whether the last line in the file is incomplete.
        let mut is_torn = false;
        loop {
            batch.clear();
            {
                let mut state = self.state.lock();
                state.is_writing = false;
                if state.waiting.is_empty() {
                    self.drained.notify_all();
                }
                self.filled.wait_while(&mut state, |state| state.waiting.is_empty());
                std::mem::swap(&mut batch, &mut state.waiting);
                state.is_writing = true;
            }
            if is_torn {
                is_torn = write(&mut file, b"\n") == 0;
            }
            let (accepted, rejected) = batch.split_at(write(&mut file, &batch));
            is_torn |= !accepted.is_empty() && !accepted.ends_with(b"\n");
            let mut lost = rejected.iter().filter(|byte| **byte == b'\n').count() as u64;
            {
                let mut state = self.state.lock();
                state.lost += lost;
                lost = state.lost;
            }
            // The report is in order: lines were lost after those that have been written.
            if lost > 0 && rejected.is_empty() {
                let line = lines_lost(lost);
                let written = write(&mut file, line.as_bytes());
                is_torn = written > 0 && written < line.len();
                if written == line.len() {
                    self.state.lock().lost -= lost;
                }
            }
        }
    }
}

/// Writes until all bytes are written or the file rejects them. Returns the number of bytes written.
fn write(file: &mut impl Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process with the same open file has made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY_INTERVAL),
            Err(_) => break,
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A file that handles each write as the next command says.
    struct File {
        commands: Receiver<Command>,
        written: Sender<String>,
    }

    enum Command {
        Accept(usize),
        Fail(io::ErrorKind),
    }

    impl Write for File {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.commands.recv().expect("the test goes on") {
                Command::Accept(most) => {
                    let accepted = &bytes[..bytes.len().min(most)];
                    self.written.send(String::from_utf8(accepted.to_vec()).unwrap()).unwrap();
                    Ok(accepted.len())
                }
                Command::Fail(kind) => Err(kind.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Fixture {
        queue: Arc<Queue>,
        commands: Sender<Command>,
        written: Receiver<String>,
    }

    fn queue() -> Fixture {
        let (commands, received) = channel();
        let (sender, written) = channel();
        let file = File { commands: received, written: sender };
        let queue = Queue::start(file, |lines| format!("lost {lines}\n")).unwrap();
        Fixture { queue, commands, written }
    }

    impl Fixture {
        fn push(&self, line: &str) {
            Line(Arc::clone(&self.queue)).write_all(line.as_bytes()).unwrap();
        }

        fn accept(&self, most: usize) -> String {
            self.commands.send(Command::Accept(most)).unwrap();
            self.written.recv_timeout(PATIENCE).unwrap()
        }

        fn fail(&self, kind: io::ErrorKind) {
            self.commands.send(Command::Fail(kind)).unwrap();
        }
    }

    #[test]
    fn a_file_that_blocks_does_not_block_the_writers_and_lost_lines_are_reported() {
        let fixture = queue();
        let line = format!("{}\n", "x".repeat(1023));
        fixture.push("first\n");
        assert_eq!(fixture.accept(3), "fir");
        // The thread waits in the first line, and the queue fills up.
        for _ in 0..BYTES_MAX / line.len() + 7 {
            fixture.push(&line);
        }
        assert_eq!(fixture.accept(usize::MAX), "st\n");
        assert_eq!(fixture.accept(usize::MAX), "lost 7\n");
        assert_eq!(fixture.accept(usize::MAX).len(), BYTES_MAX);
        fixture.push("last\n");
        assert_eq!(fixture.accept(usize::MAX), "last\n", "and once only");
    }

    #[test]
    fn lines_that_the_file_rejects_are_reported_when_it_accepts_lines_again() {
        let fixture = queue();
        fixture.push("one\n");
        fixture.fail(io::ErrorKind::StorageFull);
        fixture.queue.flush(PATIENCE);
        fixture.push("two\n");
        fixture.fail(io::ErrorKind::Interrupted);
        fixture.fail(io::ErrorKind::WouldBlock);
        assert_eq!(fixture.accept(2), "tw");
        fixture.fail(io::ErrorKind::StorageFull);
        fixture.queue.flush(PATIENCE);
        fixture.push("three\n");
        assert_eq!(fixture.accept(usize::MAX), "\n", "a line of its own");
        assert_eq!(fixture.accept(usize::MAX), "three\n");
        assert_eq!(fixture.accept(usize::MAX), "lost 2\n");
    }

    #[test]
    fn flush_waits_for_the_last_lines_up_to_its_timeout() {
        let fixture = queue();
        fixture.push("one\n");
        fixture.queue.flush(Duration::from_millis(1));
        fixture.commands.send(Command::Accept(usize::MAX)).unwrap();
        fixture.queue.flush(PATIENCE);
        assert_eq!(fixture.written.try_recv().unwrap(), "one\n");
    }
}
