//! What could not be delivered: a file of JSON lines, one a request, written by a thread of its own.
//!
//! The file has a size that it does not grow beyond: what is there stays, what comes then is lost, counted and
//! complained of. A disk that is full, slow or gone costs letters, never the server. Whoever changes the file holds
//! a lock on it (`flock`), so that `pusherd webhooks replay` works beside a server that writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tracing::{error, warn};

use crate::metrics::Metrics;

/// What may wait for the disk, in bytes.
const WAITING_BYTES: u32 = 16 * 1024 * 1024;

/// What a letter costs beside its body.
const OVERHEAD_BYTES: usize = 512;

/// The same complaint is logged this often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// A request that was not delivered. Holds no secret: what replays it signs anew, with headers of the configuration.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DeadLetter {
    /// Whose.
    pub app_id: String,
    /// Where it was to go, without the query.
    pub url: String,
    /// When it was made, in milliseconds since 1970.
    pub time_ms: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// What went wrong the last time.
    pub error: String,
    /// What was sent, as it was signed.
    pub body: String,
}

/// Where dead letters go. Cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct DeadLetters {
    writer: mpsc::UnboundedSender<Order>,
    /// Room for letters that wait, in bytes: it bounds the channel.
    room: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
enum Order {
    Keep(DeadLetter, OwnedSemaphorePermit),
    /// Answer when all before it is written.
    Flush(oneshot::Sender<()>),
}

impl DeadLetters {
    /// Starts the thread that writes to `path`; without one it only counts.
    pub(super) fn start(path: Option<PathBuf>, bytes_max: u64, metrics: &Arc<Metrics>) -> io::Result<Self> {
        let (writer, orders) = mpsc::unbounded_channel();
        let mut desk = Desk { path, bytes_max, metrics: Arc::clone(metrics), complained: None };
        std::thread::Builder::new().name("dead-letters".to_owned()).spawn(move || desk.work(orders))?;
        let room = Arc::new(Semaphore::new(WAITING_BYTES as usize));
        Ok(Self { writer, room, metrics: Arc::clone(metrics) })
    }

    /// Keeps a letter, if the disk keeps up. Never waits.
    pub(super) fn put(&self, letter: DeadLetter) {
        let place = Arc::clone(&self.room).try_acquire_many_owned(cost(&letter)).ok();
        self.hand_over(letter, place);
    }

    /// Keeps a letter, and waits for the disk if need be.
    pub(super) async fn put_patiently(&self, letter: DeadLetter) {
        let place = Arc::clone(&self.room).acquire_many_owned(cost(&letter)).await.ok();
        self.hand_over(letter, place);
    }

    fn hand_over(&self, letter: DeadLetter, place: Option<OwnedSemaphorePermit>) {
        let sent = place.is_some_and(|place| self.writer.send(Order::Keep(letter, place)).is_ok());
        if !sent {
            self.metrics.webhooks.dead_letters_lost.count();
        }
    }

    /// Waits until all letters are written, or for `patience`.
    pub(super) async fn flush(&self, patience: Duration) {
        let (done, written) = oneshot::channel();
        let flushed = async {
            // An error is a thread that ended.
            if self.writer.send(Order::Flush(done)).is_ok() {
                let _ = written.await;
            }
        };
        if tokio::time::timeout(patience, flushed).await.is_err() {
            warn!("the file of dead letters could not be written in time");
        }
    }
}

/// The room that a letter takes while it waits.
fn cost(letter: &DeadLetter) -> u32 {
    u32::try_from(letter.body.len() + OVERHEAD_BYTES).unwrap_or(u32::MAX).min(WAITING_BYTES)
}

/// Where letters are written, one after the other.
struct Desk {
    path: Option<PathBuf>,
    bytes_max: u64,
    metrics: Arc<Metrics>,
    complained: Option<Instant>,
}

impl Desk {
    fn work(&mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = orders.blocking_recv() {
            match order {
                Order::Keep(letter, _place) => self.keep(&letter),
                Order::Flush(done) => {
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                }
            }
        }
    }

    fn keep(&mut self, letter: &DeadLetter) {
        let kept = match &self.path {
            Some(path) => append(path, self.bytes_max, letter),
            None => Err(LetterError::NoFile),
        };
        match kept {
            Ok(()) => self.metrics.webhooks.dead_lettered.count(),
            Err(error) => {
                self.metrics.webhooks.dead_letters_lost.count();
                self.complain(&error);
            }
        }
    }

    fn complain(&mut self, error: &LetterError) {
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
            self.complained = Some(Instant::now());
            let lost = self.metrics.webhooks.dead_letters_lost.get();
            error!(lost, "webhooks that could not be delivered are lost: {error}");
        }
    }
}

/// Why a letter is lost.
#[derive(Debug, thiserror::Error)]
enum LetterError {
    #[error("there is no file for them (webhooks.dead_letter_file)")]
    NoFile,
    #[error(
        "the file for them has reached webhooks.dead_letter_bytes; `pusherd webhooks replay` sends what it holds"
    )]
    Full,
    #[error("the file for them cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// Adds a line to the file, made if need be. A line that could only be written in part is ended by the next.
fn append(path: &Path, bytes_max: u64, letter: &DeadLetter) -> Result<(), LetterError> {
    let mut file = open_locked(path)?;
    let len = file.metadata()?.len();
    let mut line = Vec::with_capacity(letter.body.len() + 256);
    if len > 0 && ends_within_a_line(&mut file)? {
        line.push(b'\n');
    }
    serde_json::to_writer(&mut line, letter).map_err(io::Error::from)?;
    line.push(b'\n');
    if len + line.len() as u64 > bytes_max {
        return Err(LetterError::Full);
    }
    Ok(file.write_all(&line)?)
}

/// Opens the file that `path` names at the time when it is locked.
fn open_locked(path: &Path) -> io::Result<File> {
    loop {
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        match file.lock() {
            Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // A replay may have put another file in its place while this one waited.
        let (here, there) = (file.metadata()?, path.metadata());
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino())) {
            return Ok(file);
        }
    }
}

fn ends_within_a_line(file: &mut File) -> io::Result<bool> {
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// A file of dead letters, as it was read.
#[derive(Debug)]
pub struct DeadLetterFile {
    path: PathBuf,
    /// What was read; the server may have added more since.
    bytes: u64,
    /// Its lines: a letter, or what the line is instead.
    pub lines: Vec<(String, Result<DeadLetter, &'static str>)>,
}

impl DeadLetterFile {
    /// Reads the file, empty lines left out.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        lock_for_reading(&file)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.split('\n').filter(|line| !line.trim().is_empty()).map(|line| {
            let letter = serde_json::from_str(line).map_err(|_| "not a dead letter, perhaps a part of one");
            (line.to_owned(), letter)
        });
        Ok(Self { path: path.to_owned(), bytes: bytes.len() as u64, lines: lines.collect() })
    }

    /// Puts `left` in the place of what was read. What the server has added since stays, behind it.
    ///
    /// # Errors
    /// What the system says; the file is then as it was.
    pub fn leave(&self, left: &[&str]) -> io::Result<()> {
        let mut current = open_locked(&self.path)?;
        let mut added = Vec::new();
        current.seek(SeekFrom::Start(self.bytes))?;
        current.read_to_end(&mut added)?;
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = self.path.with_file_name(name);
        let written = (|| {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.set_permissions(current.metadata()?.permissions())?;
            for line in left {
                file.write_all(line.as_bytes())?;
                file.write_all(b"\n")?;
            }
            file.write_all(&added)?;
            file.sync_all()?;
            std::fs::rename(&new, &self.path)
        })();
        if written.is_err() {
            // What failed is told; this is only tidying up after it.
            let _ = std::fs::remove_file(&new);
        }
        written
    }
}

fn lock_for_reading(file: &File) -> io::Result<()> {
    match file.lock_shared() {
        Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn letter(body: &str) -> DeadLetter {
        DeadLetter {
            app_id: "1".to_owned(),
            url: "http://app.test/hooks".to_owned(),
            time_ms: 1_700_000_000_123,
            attempts: 3,
            error: "the answer is 500, not 2xx".to_owned(),
            body: body.to_owned(),
        }
    }

    fn bodies(path: &Path) -> Vec<Result<String, &'static str>> {
        let file = DeadLetterFile::read(path).unwrap();
        file.lines.into_iter().map(|(_, letter)| letter.map(|letter| letter.body)).collect()
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dead.jsonl");
        (directory, path)
    }

    #[test]
    fn a_letter_is_a_line_that_only_the_owner_reads() {
        let (_directory, path) = place();
        append(&path, 10_000, &letter("{\"a\":\"x\\ny\"}")).unwrap();
        append(&path, 10_000, &letter("two")).unwrap();
        assert_eq!(bodies(&path), [Ok("{\"a\":\"x\\ny\"}".to_owned()), Ok("two".to_owned())]);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_full_file_takes_no_more_and_keeps_what_it_has() {
        let (_directory, path) = place();
        append(&path, 10_000, &letter("one")).unwrap();
        let bytes_max = path.metadata().unwrap().len() + 10;
        assert!(matches!(append(&path, bytes_max, &letter("two")), Err(LetterError::Full)));
        assert_eq!(bodies(&path), [Ok("one".to_owned())]);
    }

    #[test]
    fn a_line_that_was_cut_off_spoils_no_other() {
        let (_directory, path) = place();
        append(&path, 10_000, &letter("one")).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();
        append(&path, 10_000, &letter("two")).unwrap();
        assert!(matches!(&bodies(&path)[..], [Err(_), Ok(two)] if two == "two"));
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let written = append(Path::new("/dev/full"), 10_000, &letter("one"));
        assert!(
            matches!(&written, Err(LetterError::Io(error)) if error.kind() == io::ErrorKind::StorageFull),
            "{written:?}"
        );
    }

    #[test]
    fn what_is_left_stands_before_what_came_meanwhile() {
        let (_directory, path) = place();
        for body in ["one", "two", "three"] {
            append(&path, 10_000, &letter(body)).unwrap();
        }
        let read = DeadLetterFile::read(&path).unwrap();
        append(&path, 10_000, &letter("four")).unwrap();
        read.leave(&[&read.lines[1].0]).unwrap();
        assert_eq!(bodies(&path), [Ok("two".to_owned()), Ok("four".to_owned())]);
        append(&path, 10_000, &letter("five")).unwrap();
        assert_eq!(bodies(&path).len(), 3);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_server_that_waits_for_the_lock_writes_into_the_new_file() {
        let (_directory, path) = place();
        append(&path, 10_000, &letter("one")).unwrap();
        std::thread::scope(|scope| {
            scope
                .spawn(|| (0..50).for_each(|at| append(&path, 1_000_000, &letter(&at.to_string())).unwrap()));
            for _ in 0..20 {
                let read = DeadLetterFile::read(&path).unwrap();
                let all: Vec<_> = read.lines.iter().map(|(line, _)| line.as_str()).collect();
                read.leave(&all).unwrap();
            }
        });
        let bodies: Vec<_> = bodies(&path).into_iter().map(Result::unwrap).collect();
        let expected: Vec<_> =
            std::iter::once("one".to_owned()).chain((0..50).map(|at| at.to_string())).collect();
        assert_eq!(bodies, expected);
    }
}
