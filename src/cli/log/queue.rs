//! Lines on their way to a file that may stall or fail. Code that logs never waits for it: one thread does.
//!
//! The queue is bounded in bytes. A line that finds it full is lost, and so is one that the file does not take. Lost
//! lines are counted, and the count is written when the file takes something again.
//!
//! Why not `non_blocking` of tracing-appender: it is bounded by lines, of which one can be as long as a message, it does
//! not count what the file refuses, and if the queue is full at the end its guard prints to standard output, which
//! panics where that is closed.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// What may wait to be written.
const BYTES_MAX: usize = 1024 * 1024;

/// Between two attempts to write to what would block, where somebody has made it so.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Lines have come.
    filled: Condvar,
    /// All lines are written or lost.
    drained: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    is_writing: bool,
    /// Lines lost since this was last told.
    lost: u64,
}

/// Takes one line, at once. Every call of `write` is one.
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
    /// A queue whose lines are written to `file`, by a thread that lives as long as the process. `lines_lost` is the
    /// line that tells of so many lost ones.
    ///
    /// # Errors
    /// The system gives no thread.
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
        // Whether or not it is done by then, there is no more time.
        let _ = self.drained.wait_while_for(&mut state, is_busy, timeout);
    }

    /// Writes what comes, for ever.
    fn write_all(&self, mut file: impl Write, lines_lost: impl Fn(u64) -> String) {
        let mut batch = Vec::new();
        // Whether the file ends in the middle of a line.
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
            let (taken, refused) = batch.split_at(write(&mut file, &batch));
            is_torn |= !taken.is_empty() && !taken.ends_with(b"\n");
            let mut lost = refused.iter().filter(|byte| **byte == b'\n').count() as u64;
            {
                let mut state = self.state.lock();
                state.lost += lost;
                lost = state.lost;
            }
            // What was lost came after what was written, or the file takes nothing.
            if lost > 0 && refused.is_empty() {
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

/// Writes until all is written or the file takes no more; says how many bytes it took.
fn write(file: &mut impl Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(taken) => written += taken,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that has the same file open did not want to wait.
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

    /// A file that does with each write what it is told to.
    struct File {
        orders: Receiver<Order>,
        written: Sender<String>,
    }

    enum Order {
        Take(usize),
        Fail(io::ErrorKind),
    }

    impl Write for File {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.orders.recv().expect("the test goes on") {
                Order::Take(most) => {
                    let taken = &bytes[..bytes.len().min(most)];
                    self.written.send(String::from_utf8(taken.to_vec()).unwrap()).unwrap();
                    Ok(taken.len())
                }
                Order::Fail(kind) => Err(kind.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Fixture {
        queue: Arc<Queue>,
        orders: Sender<Order>,
        written: Receiver<String>,
    }

    fn queue() -> Fixture {
        let (orders, obeyed) = channel();
        let (seen, written) = channel();
        let file = File { orders: obeyed, written: seen };
        let queue = Queue::start(file, |lines| format!("lost {lines}\n")).unwrap();
        Fixture { queue, orders, written }
    }

    impl Fixture {
        fn push(&self, line: &str) {
            Line(Arc::clone(&self.queue)).write_all(line.as_bytes()).unwrap();
        }

        fn take(&self, most: usize) -> String {
            self.orders.send(Order::Take(most)).unwrap();
            self.written.recv_timeout(PATIENCE).unwrap()
        }

        fn fail(&self, kind: io::ErrorKind) {
            self.orders.send(Order::Fail(kind)).unwrap();
        }
    }

    #[test]
    fn a_file_that_stalls_holds_up_nobody_and_lost_lines_are_told() {
        let fixture = queue();
        let line = format!("{}\n", "x".repeat(1023));
        fixture.push("first\n");
        assert_eq!(fixture.take(3), "fir");
        // The thread waits within the first line, and the queue fills up behind it.
        for _ in 0..BYTES_MAX / line.len() + 7 {
            fixture.push(&line);
        }
        assert_eq!(fixture.take(usize::MAX), "st\n");
        assert_eq!(fixture.take(usize::MAX), "lost 7\n");
        assert_eq!(fixture.take(usize::MAX).len(), BYTES_MAX);
        fixture.push("last\n");
        assert_eq!(fixture.take(usize::MAX), "last\n", "and once only");
    }

    #[test]
    fn lines_that_the_file_refuses_are_told_when_it_takes_some_again() {
        let fixture = queue();
        fixture.push("one\n");
        fixture.fail(io::ErrorKind::StorageFull);
        fixture.queue.flush(PATIENCE);
        fixture.push("two\n");
        fixture.fail(io::ErrorKind::Interrupted);
        fixture.fail(io::ErrorKind::WouldBlock);
        assert_eq!(fixture.take(2), "tw");
        fixture.fail(io::ErrorKind::StorageFull);
        fixture.queue.flush(PATIENCE);
        fixture.push("three\n");
        assert_eq!(fixture.take(usize::MAX), "\n", "a line of its own");
        assert_eq!(fixture.take(usize::MAX), "three\n");
        assert_eq!(fixture.take(usize::MAX), "lost 2\n");
    }

    #[test]
    fn the_last_lines_are_waited_for_but_not_for_ever() {
        let fixture = queue();
        fixture.push("one\n");
        fixture.queue.flush(Duration::from_millis(1));
        fixture.orders.send(Order::Take(usize::MAX)).unwrap();
        fixture.queue.flush(PATIENCE);
        assert_eq!(fixture.written.try_recv().unwrap(), "one\n");
    }
}
