//! The dead letter store: a bounded channel to a thread that appends to the file.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::error;

use super::file::{DeadLetterError, append, open_to_append};
use super::{DeadLetter, DeadLetterBatch};
use crate::metrics::Metrics;

/// The maximum size of dead letters that wait for the disk, in bytes.
pub(super) const BUFFERED_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// Dead letters that are written before the file is closed and opened again by its name.
const WRITE_BATCH_MAX: usize = 64;

/// The minimum time between two log lines about lost dead letters.
const LOSS_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The handle of the dead letter store. Clones share it.
#[derive(Clone, Debug)]
pub(in crate::webhooks) struct DeadLetterStore {
    commands: mpsc::UnboundedSender<Command>,
    /// Bytes that the channel may still take.
    pub(super) capacity: Arc<Semaphore>,
    losses: Arc<LossLog>,
}

#[derive(Debug)]
pub(super) enum Command {
    Append(DeadLetterBatch, OwnedSemaphorePermit),
    /// Answered when all earlier commands are done.
    Flush(oneshot::Sender<()>),
}

impl DeadLetterStore {
    /// Starts the thread that appends to `path`. Without a path dead letters are only counted.
    pub(in crate::webhooks) fn start(
        path: Option<PathBuf>,
        bytes_max: u64,
        metrics: &Arc<Metrics>,
    ) -> io::Result<Self> {
        let (commands, mut received) = mpsc::unbounded_channel();
        let losses = Arc::new(LossLog::new(metrics));
        let writer = StoreWriter { path, bytes_max, losses: Arc::clone(&losses) };
        let run = move || {
            let mut commands = Vec::with_capacity(WRITE_BATCH_MAX);
            while received.blocking_recv_many(&mut commands, WRITE_BATCH_MAX) > 0 {
                writer.execute(&mut commands);
            }
        };
        std::thread::Builder::new().name("dead-letters".to_owned()).spawn(run)?;
        let capacity = Arc::new(Semaphore::new(BUFFERED_BYTES_MAX as usize));
        Ok(Self { commands, capacity, losses })
    }

    /// Appends a dead letter, or drops it if the disk is too slow. Never waits.
    pub(in crate::webhooks) fn append(&self, batch: DeadLetterBatch) {
        let permit = Arc::clone(&self.capacity).try_acquire_many_owned(batch.cost()).ok();
        self.send(batch, permit);
    }

    /// Appends a dead letter, and waits for capacity until then.
    pub(in crate::webhooks) async fn append_until(&self, batch: DeadLetterBatch, until: Instant) {
        let permit = timeout_at(until, Arc::clone(&self.capacity).acquire_many_owned(batch.cost())).await;
        self.send(batch, permit.ok().and_then(Result::ok));
    }

    fn send(&self, batch: DeadLetterBatch, permit: Option<OwnedSemaphorePermit>) {
        self.losses.unwritten.fetch_add(1, Ordering::Relaxed);
        let Some(permit) = permit else {
            self.losses.count(Err(DeadLetterError::Overloaded));
            return batch.ack();
        };
        // The thread has ended. Dropping the tokens nacks the records.
        if self.commands.send(Command::Append(batch, permit)).is_err() {
            self.losses.count(Err(DeadLetterError::ThreadEnded));
        }
    }

    /// Waits at most `limit` until all dead letters are written, and logs how many were lost since the last log line.
    pub(in crate::webhooks) async fn close(&self, limit: Duration) {
        let (done, flushed) = oneshot::channel();
        // A send fails if the thread has ended.
        if self.commands.send(Command::Flush(done)).is_ok() {
            let _ = timeout(limit, flushed).await;
        }
        self.losses.report_unwritten();
    }
}

/// Counts dead letters, and logs the lost ones at a limited rate.
#[derive(Debug)]
pub(super) struct LossLog {
    metrics: Arc<Metrics>,
    /// Dead letters that are neither written nor lost yet.
    unwritten: AtomicU64,
    /// When losses were last logged, and the count in that line.
    last_report: Mutex<Option<(Instant, u64)>>,
}

impl LossLog {
    pub(super) fn new(metrics: &Arc<Metrics>) -> Self {
        Self { metrics: Arc::clone(metrics), unwritten: AtomicU64::new(0), last_report: Mutex::new(None) }
    }

    /// Counts a dead letter as written or lost.
    fn count(&self, written: Result<(), DeadLetterError>) {
        self.unwritten.fetch_sub(1, Ordering::Relaxed);
        let Err(error) = written else { return self.metrics.webhooks.dead_lettered.count() };
        self.metrics.webhooks.dead_letters_lost.count();
        let mut last_report = self.last_report.lock();
        if last_report.is_none_or(|(at, _)| at.elapsed() >= LOSS_LOG_INTERVAL) {
            let lost = self.metrics.webhooks.dead_letters_lost.get();
            *last_report = Some((Instant::now(), lost));
            error!(lost, "dead letters are lost: {error}");
        }
    }

    /// Counts what is still not written as lost.
    fn report_unwritten(&self) {
        let unwritten = self.unwritten.load(Ordering::Relaxed);
        self.metrics.webhooks.dead_letters_lost.add(unwritten);
        let lost = self.metrics.webhooks.dead_letters_lost.get();
        if lost > self.last_report.lock().map_or(0, |(_, reported)| reported) {
            error!(lost, unwritten, "dead letters are lost: the server has shut down");
        }
    }
}

/// The part of the store that runs on the thread.
pub(super) struct StoreWriter {
    pub(super) path: Option<PathBuf>,
    pub(super) bytes_max: u64,
    pub(super) losses: Arc<LossLog>,
}

impl StoreWriter {
    /// Executes commands. The file is opened once for all of them.
    pub(super) fn execute(&self, commands: &mut Vec<Command>) {
        let mut file = None;
        for command in commands.drain(..) {
            match command {
                Command::Append(batch, _permit) => {
                    self.losses.count(self.append(&mut file, &batch.dead_letter));
                    batch.ack();
                }
                Command::Flush(done) => {
                    // The caller may have timed out.
                    let _ = done.send(());
                }
            }
        }
    }

    fn append(&self, file: &mut Option<File>, dead_letter: &DeadLetter) -> Result<(), DeadLetterError> {
        let path = self.path.as_ref().ok_or(DeadLetterError::NoFile)?;
        let file = match file {
            Some(file) => file,
            None => file.insert(open_to_append(path)?),
        };
        append(file, self.bytes_max, dead_letter)
    }
}
