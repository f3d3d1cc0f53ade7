//! What could not be delivered: a file of JSON lines, one a request, written by a thread of its own.
//!
//! The file has a size that it does not grow beyond: what is there stays, what comes then is lost, counted and
//! complained of. A disk that is full, slow or gone costs letters, never the server. It is a regular file or none: a pipe
//! that nobody reads would stop the thread for ever.
//!
//! `pusherd webhooks replay` works beside a server that writes. It strikes each letter out where it stands, once it is
//! delivered, and closes the gaps in the end; it makes no other file, so that owner, mode and links stay what they are.
//! Whoever adds letters or closes gaps holds a lock on the file (`flock`), and of several replays in one folder only
//! one goes on, by a lock on that folder.
//!
//! Whatever is killed at whatever time loses no letter: one that was delivered and not yet struck out is sent again by
//! the next replay, and so may be one that was just being moved. Only a machine that loses its power in the milliseconds
//! in which gaps are closed may lose some.

use std::fs::{File, FileType, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::error;

use super::event::EventId;
use super::receipt::Receipt;
use crate::metrics::Metrics;

/// What may wait for the disk, in bytes.
const WAITING_BYTES: u32 = 16 * 1024 * 1024;

/// What a letter costs beside its body.
const OVERHEAD_BYTES: usize = 512;

/// Letters that are written before the file is closed, and looked up by its name again.
const TURN: usize = 64;

/// Lost letters are complained of this often.
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
    /// What its events are called, in their order.
    #[serde(default)]
    pub event_ids: Vec<EventId>,
    /// What was sent, as it was signed.
    pub body: String,
}

/// A letter, and who waits for it to be kept, or lost.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) letter: DeadLetter,
    pub(super) receipts: Vec<Receipt>,
}

impl Parcel {
    /// The room that it takes while it waits.
    fn cost(&self) -> u32 {
        let ids = self.letter.event_ids.len() * size_of::<EventId>();
        let bytes = self.letter.body.len() + ids + OVERHEAD_BYTES;
        u32::try_from(bytes).unwrap_or(u32::MAX).min(WAITING_BYTES)
    }

    /// Nothing more will become of it.
    fn settle(self) {
        self.receipts.into_iter().for_each(Receipt::settle);
    }
}

/// Where dead letters go. Cloning shares it.
#[derive(Clone, Debug)]
pub(super) struct DeadLetters {
    writer: mpsc::UnboundedSender<Order>,
    /// Room for letters that wait, in bytes: it bounds the channel.
    room: Arc<Semaphore>,
    losses: Arc<Losses>,
}

#[derive(Debug)]
enum Order {
    Keep(Parcel, OwnedSemaphorePermit),
    /// Answer when all before it is written.
    Flush(oneshot::Sender<()>),
}

impl DeadLetters {
    /// Starts the thread that writes to `path`; without one it only counts.
    pub(super) fn start(path: Option<PathBuf>, bytes_max: u64, metrics: &Arc<Metrics>) -> io::Result<Self> {
        let (writer, mut orders) = mpsc::unbounded_channel();
        let losses = Arc::new(Losses::new(metrics));
        let desk = Desk { path, bytes_max, losses: Arc::clone(&losses) };
        let working = move || {
            let mut turn = Vec::with_capacity(TURN);
            while orders.blocking_recv_many(&mut turn, TURN) > 0 {
                desk.work(&mut turn);
            }
        };
        std::thread::Builder::new().name("dead-letters".to_owned()).spawn(working)?;
        let room = Arc::new(Semaphore::new(WAITING_BYTES as usize));
        Ok(Self { writer, room, losses })
    }

    /// Keeps a letter, if the disk keeps up. Never waits.
    pub(super) fn put(&self, parcel: Parcel) {
        let place = Arc::clone(&self.room).try_acquire_many_owned(parcel.cost()).ok();
        self.hand_over(parcel, place);
    }

    /// Keeps a letter, and waits for the disk until then if need be.
    pub(super) async fn put_until(&self, parcel: Parcel, until: Instant) {
        let place = timeout_at(until, Arc::clone(&self.room).acquire_many_owned(parcel.cost())).await;
        self.hand_over(parcel, place.ok().and_then(Result::ok));
    }

    fn hand_over(&self, parcel: Parcel, place: Option<OwnedSemaphorePermit>) {
        self.losses.unwritten.fetch_add(1, Ordering::Relaxed);
        let Some(place) = place else {
            self.losses.settle(Err(LetterError::Behind));
            return parcel.settle();
        };
        // The thread has ended: what is a record as well is not lost.
        if self.writer.send(Order::Keep(parcel, place)).is_err() {
            self.losses.settle(Err(LetterError::Behind));
        }
    }

    /// Waits until all letters are written, or for `patience`; says how many were lost, if that was not said.
    pub(super) async fn finish(&self, patience: Duration) {
        let (done, written) = oneshot::channel();
        // An error is a thread that ended.
        if self.writer.send(Order::Flush(done)).is_ok() {
            let _ = timeout(patience, written).await;
        }
        self.losses.conclude();
    }
}

/// What became of letters: counted, and complained of where they are lost.
#[derive(Debug)]
struct Losses {
    metrics: Arc<Metrics>,
    /// Letters of which that is not known yet.
    unwritten: AtomicU64,
    /// When it was complained last, and of how many.
    complained: Mutex<Option<(Instant, u64)>>,
}

impl Losses {
    fn new(metrics: &Arc<Metrics>) -> Self {
        Self { metrics: Arc::clone(metrics), unwritten: AtomicU64::new(0), complained: Mutex::new(None) }
    }

    /// A letter is written or lost.
    fn settle(&self, kept: Result<(), LetterError>) {
        self.unwritten.fetch_sub(1, Ordering::Relaxed);
        let Err(error) = kept else { return self.metrics.webhooks.dead_lettered.count() };
        self.metrics.webhooks.dead_letters_lost.count();
        let mut complained = self.complained.lock();
        if complained.is_none_or(|(at, _)| at.elapsed() >= COMPLAINT_INTERVAL) {
            let lost = self.metrics.webhooks.dead_letters_lost.get();
            *complained = Some((Instant::now(), lost));
            error!(lost, "webhooks that could not be delivered are lost: {error}");
        }
    }

    /// Nothing is waited for any more: what is not written by now counts as lost.
    fn conclude(&self) {
        let unwritten = self.unwritten.load(Ordering::Relaxed);
        self.metrics.webhooks.dead_letters_lost.add(unwritten);
        let lost = self.metrics.webhooks.dead_letters_lost.get();
        if lost > self.complained.lock().map_or(0, |(_, said)| said) {
            error!(lost, unwritten, "webhooks that could not be delivered are lost, as the server has ended");
        }
    }
}

/// Where letters are written, one after the other.
struct Desk {
    path: Option<PathBuf>,
    bytes_max: u64,
    losses: Arc<Losses>,
}

impl Desk {
    /// Does all orders of a turn, with the file opened once.
    fn work(&self, turn: &mut Vec<Order>) {
        let mut file = None;
        for order in turn.drain(..) {
            match order {
                Order::Keep(parcel, _place) => {
                    self.losses.settle(self.keep(&mut file, &parcel.letter));
                    parcel.settle();
                }
                Order::Flush(done) => {
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                }
            }
        }
    }

    fn keep(&self, file: &mut Option<File>, letter: &DeadLetter) -> Result<(), LetterError> {
        let path = self.path.as_ref().ok_or(LetterError::NoFile)?;
        let file = match file {
            Some(file) => file,
            None => file.insert(open_to_append(path)?),
        };
        append(file, self.bytes_max, letter)
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
    #[error("the file for them is not written as fast as they come; is the disk slow, or does it hang?")]
    Behind,
    #[error("the file for them cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// What a file of dead letters is called in a state directory.
pub const FILE_NAME: &str = "dead-letters.jsonl";

/// Whether `path` can be a file of dead letters, as far as that is seen without making it.
///
/// # Errors
/// Why not.
pub fn check_file(path: &Path) -> Result<(), String> {
    let may_not = |what: &str| format!("{what} may not be written by the user that runs pusherd");
    match path.metadata() {
        Ok(found) if !found.is_file() => Err(not_regular(found.file_type())),
        Ok(_) if !is_writable(path) => Err(may_not("it")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            match folder.metadata() {
                Ok(found) if found.is_dir() && is_writable(folder) => Ok(()),
                Ok(found) if found.is_dir() => Err(may_not(&format!("the folder {}", folder.display()))),
                Ok(_) => Err(format!("{} is not a folder", folder.display())),
                Err(error) => Err(format!("the folder {} cannot be used: {error}", folder.display())),
            }
        }
        Err(error) => Err(format!("it cannot be used: {error}")),
    }
}

/// Whether `folder` is a directory that files can be made in.
#[must_use]
pub fn is_usable_folder(folder: &Path) -> bool {
    folder.is_dir() && is_writable(folder)
}

fn is_writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

fn not_regular(kind: FileType) -> String {
    let what = match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    format!("it is {what}; dead letters go to a regular file")
}

/// Opens the file, made if need be, and locks it.
fn open_to_append(path: &Path) -> io::Result<File> {
    let file = open_regular(OpenOptions::new().read(true).append(true).create(true).mode(0o600), path)?;
    lock(&file)?;
    Ok(file)
}

/// Opens a regular file, and does not wait for the other end of anything else.
fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(io::Error::other(not_regular(kind))) }
}

/// Waits for the lock, where the file system has locks.
fn lock(file: &File) -> io::Result<()> {
    match file.lock() {
        Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Adds a line to a file that is locked. What can only be written in part is taken back; where even that fails, the
/// next line ends it.
fn append(file: &mut File, bytes_max: u64, letter: &DeadLetter) -> Result<(), LetterError> {
    let len = file.metadata()?.len();
    let mut line = Vec::with_capacity(letter.body.len() + 256);
    if len > 0 && ends_within_a_line(file)? {
        line.push(b'\n');
    }
    serde_json::to_writer(&mut line, letter).map_err(io::Error::from)?;
    line.push(b'\n');
    if len + line.len() as u64 > bytes_max {
        return Err(LetterError::Full);
    }
    file.write_all(&line).map_err(|error| take_back(file, len, error))
}

/// A line could only be written in part.
fn take_back(file: &File, len: u64, error: io::Error) -> LetterError {
    // What failed is told; this is only tidying up after it.
    let _ = file.set_len(len);
    error.into()
}

fn ends_within_a_line(file: &mut File) -> io::Result<bool> {
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// A file of dead letters that is being replayed.
#[derive(Debug)]
pub struct DeadLetterFile {
    file: File,
    /// What was read of it. A server may have added more since.
    bytes: Vec<u8>,
    /// Its lock keeps other replays away.
    _folder: File,
}

/// A line of such a file.
#[derive(Debug)]
pub struct Line {
    start: usize,
    end: usize,
    /// What it holds, or what it is instead.
    pub letter: Result<DeadLetter, &'static str>,
}

/// Why a file of dead letters is not replayed, or not any further.
#[derive(Debug, thiserror::Error)]
pub enum ReplayFileError {
    /// Another replay is under way.
    #[error("another replay is under way in {}", .0.display())]
    Busy(PathBuf),
    /// Somebody else has changed what was read.
    #[error("somebody else has changed it meanwhile")]
    Changed,
    /// What the system says.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl DeadLetterFile {
    /// Opens the file such that it can be written, and reads it. No other replay can do so until this is dropped.
    ///
    /// # Errors
    /// Another replay is under way, or what the system says.
    pub fn open(path: &Path) -> Result<Self, ReplayFileError> {
        let path = path.canonicalize()?;
        let file = open_regular(OpenOptions::new().read(true).write(true), &path)?;
        // Not on the file itself, because the server is to go on writing into that.
        let place = path.parent().unwrap_or(&path);
        let folder = File::open(place)?;
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ReplayFileError::Busy(place.to_owned())),
            Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => {
                return Err(error.into());
            }
            Err(TryLockError::Error(_)) => {}
        }
        let mut bytes = Vec::new();
        // Under the lock of the file, so that no line is read in part.
        lock(&file)?;
        (&file).read_to_end(&mut bytes)?;
        file.unlock()?;
        Ok(Self { file, bytes, _folder: folder })
    }

    /// Its lines, empty ones left out.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let letter =
            |line| serde_json::from_slice(line).map_err(|_| "not a dead letter, perhaps a part of one");
        lines(&self.bytes)
            .map(|(start, end)| Line { start, end, letter: letter(&self.bytes[start..end]) })
            .collect()
    }

    /// Makes sure that a line is still where it was read.
    ///
    /// # Errors
    /// It is not, or what the system says.
    pub fn check(&self, line: &Line) -> Result<(), ReplayFileError> {
        let mut found = vec![0; line.end - line.start];
        match self.file.read_exact_at(&mut found, line.start as u64) {
            Ok(()) if found == self.bytes[line.start..line.end] => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.into()),
            Ok(()) | Err(_) => Err(ReplayFileError::Changed),
        }
    }

    /// Takes a line out of the file: makes it blank.
    ///
    /// # Errors
    /// The line is no longer there, or what the system says.
    pub fn strike(&self, line: &Line) -> Result<(), ReplayFileError> {
        self.check(line)?;
        Ok(self.file.write_all_at(&vec![b' '; line.end - line.start], line.start as u64)?)
    }

    /// Moves what is left, and what the server has added meanwhile, to the front, and gives back the room.
    ///
    /// # Errors
    /// What the system says.
    pub fn close_gaps(self) -> io::Result<()> {
        lock(&self.file)?;
        let mut bytes = Vec::new();
        (&self.file).rewind()?;
        (&self.file).read_to_end(&mut bytes)?;
        let mut len = 0;
        for (start, end) in lines(&bytes) {
            // With the end of the line; the last one may have none.
            let line = &bytes[start..bytes.len().min(end + 1)];
            if len + line.len() <= start {
                self.file.write_all_at(line, len as u64)?;
                len += line.len();
            } else {
                // Not over its own beginning: until it is whole in one place it stays in the other.
                self.file.write_all_at(&vec![b' '; start - len], len as u64)?;
                len = start + line.len();
            }
        }
        self.file.set_len(len as u64)?;
        self.file.sync_all()
    }
}

/// Where the lines of a text begin and end, without the blanks before them, and without those that are all blank.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut next = 0;
    bytes.split(|byte| *byte == b'\n').filter_map(move |line| {
        let end = next + line.len();
        next = end + 1;
        let line = line.trim_ascii_start();
        (!line.is_empty()).then_some((end - line.len(), end))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use proptest::prelude::*;

    use super::super::receipt::End;
    use super::*;

    fn letter(body: &str) -> DeadLetter {
        DeadLetter {
            app_id: "1".to_owned(),
            url: "http://app.test/hooks".to_owned(),
            time_ms: 1_700_000_000_123,
            attempts: 3,
            error: "the answer is 500, not 2xx".to_owned(),
            event_ids: vec![EventId::new(7, 1)],
            body: body.to_owned(),
        }
    }

    fn append(path: &Path, bytes_max: u64, letter: &DeadLetter) -> Result<(), LetterError> {
        super::append(&mut open_to_append(path)?, bytes_max, letter)
    }

    fn bodies(path: &Path) -> Vec<Result<String, &'static str>> {
        let file = DeadLetterFile::open(path).unwrap();
        file.lines().into_iter().map(|line| line.letter.map(|letter| letter.body)).collect()
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
    fn a_letter_names_its_events_or_not_but_no_nonsense() {
        let line = |ids: &str| {
            let rest =
                r#""app_id":"1","url":"http://app.test/","time_ms":1,"attempts":1,"error":"","body":"""#;
            serde_json::from_str::<DeadLetter>(&format!("{{{ids}{rest}}}"))
        };
        assert_eq!(line("").unwrap().event_ids, []);
        let ids = r#""event_ids":["0000000000000007-1","0000000000000007-a"],"#;
        assert_eq!(line(ids).unwrap().event_ids, [EventId::new(7, 1), EventId::new(7, 10)]);
        assert!(line(r#""event_ids":["7-1\r\nX-Pusher-Key: other"],"#).is_err());
    }

    #[test]
    fn what_is_no_regular_file_is_refused_in_words_and_nobody_waits_for_it() {
        let (directory, path) = place();
        assert_eq!(check_file(&path), Ok(()), "it is made when a letter comes");
        assert!(!path.exists());
        append(&path, 10_000, &letter("one")).unwrap();
        assert_eq!(check_file(&path), Ok(()));
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let socket = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, what) in [
            (&*pipe, "it is a FIFO; dead letters go to a regular file"),
            (&*socket, "it is a socket; dead letters go to a regular file"),
            (directory.path(), "it is a directory; dead letters go to a regular file"),
            (Path::new("/dev/null"), "it is a device; dead letters go to a regular file"),
        ] {
            assert_eq!(check_file(path), Err(what.to_owned()));
            assert!(append(path, 10_000, &letter("one")).is_err(), "{what}");
            assert!(DeadLetterFile::open(path).is_err(), "{what}");
        }
        let nowhere = directory.path().join("nowhere/dead.jsonl");
        let why = check_file(&nowhere).unwrap_err();
        assert!(why.starts_with("the folder ") && why.contains("nowhere cannot be used"), "{why}");
        let why = check_file(&path.join("dead.jsonl")).unwrap_err();
        assert!(why.starts_with("it cannot be used: "), "{why}");
    }

    #[test]
    fn two_servers_write_into_one_file_and_lose_nothing() {
        let (_directory, path) = place();
        std::thread::scope(|scope| {
            for server in ["one", "two"] {
                let path = path.clone();
                scope.spawn(move || {
                    let (desk, _metrics) = desk(Some(path));
                    let room = Arc::new(Semaphore::new(10_000));
                    for at in 0..50 {
                        let parcel =
                            Parcel { letter: letter(&format!("{server} {at}")), receipts: Vec::new() };
                        let room = Arc::clone(&room).try_acquire_owned().unwrap();
                        desk.work(&mut vec![Order::Keep(parcel, room)]);
                    }
                });
            }
        });
        let bodies: Vec<_> = bodies(&path).into_iter().map(Result::unwrap).collect();
        for server in ["one", "two"] {
            let of_server: Vec<_> = bodies.iter().filter(|body| body.starts_with(server)).cloned().collect();
            assert_eq!(of_server, (0..50).map(|at| format!("{server} {at}")).collect::<Vec<_>>());
        }
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
        let mut full = OpenOptions::new().read(true).append(true).open("/dev/full").unwrap();
        let written = super::append(&mut full, 10_000, &letter("one"));
        assert!(
            matches!(&written, Err(LetterError::Io(error)) if error.kind() == io::ErrorKind::StorageFull),
            "{written:?}"
        );
    }

    /// Fails as a disk does that is full in the middle of a line.
    #[test]
    fn what_could_be_written_in_part_is_taken_back() {
        let (_directory, path) = place();
        append(&path, 10_000, &letter("one")).unwrap();
        let before = std::fs::read(&path).unwrap();
        let whole = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let taken_back = |file: &File| {
            file.write_all_at(b"{\"app_id\":", before.len() as u64).unwrap();
            take_back(file, before.len() as u64, io::ErrorKind::StorageFull.into())
        };
        assert!(
            matches!(taken_back(&whole), LetterError::Io(error) if error.kind() == io::ErrorKind::StorageFull)
        );
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn what_is_delivered_is_blank_at_once_and_gone_in_the_end() {
        let (_directory, path) = place();
        for body in ["one", "two", "three"] {
            append(&path, 10_000, &letter(body)).unwrap();
        }
        let (owner, len) = (path.metadata().unwrap().ino(), path.metadata().unwrap().len());
        let file = DeadLetterFile::open(&path).unwrap();
        let lines = file.lines();
        file.strike(&lines[0]).unwrap();
        append(&path, 10_000, &letter("four")).unwrap();
        file.strike(&lines[2]).unwrap();
        drop(file);
        // As one finds it whose replay was killed.
        assert_eq!(bodies(&path), [Ok("two".to_owned()), Ok("four".to_owned())]);
        assert!(path.metadata().unwrap().len() > len);
        DeadLetterFile::open(&path).unwrap().close_gaps().unwrap();
        assert_eq!(bodies(&path), [Ok("two".to_owned()), Ok("four".to_owned())]);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
        append(&path, 10_000, &letter("five")).unwrap();
        assert_eq!(bodies(&path).len(), 3);
        assert_eq!(path.metadata().unwrap().ino(), owner, "it is the same file");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_second_replay_is_refused_and_the_server_goes_on() {
        let (_directory, path) = place();
        append(&path, 10_000, &letter("one")).unwrap();
        let first = DeadLetterFile::open(&path).unwrap();
        assert!(matches!(DeadLetterFile::open(&path), Err(ReplayFileError::Busy(_))));
        append(&path, 10_000, &letter("two")).unwrap();
        drop(first);
        assert_eq!(bodies(&path).len(), 2);
    }

    #[test]
    fn a_file_that_is_rotated_meanwhile_loses_nothing() {
        let (directory, path) = place();
        let rotated = directory.path().join("dead.jsonl.1");
        append(&path, 10_000, &letter("one")).unwrap();
        append(&path, 10_000, &letter("two")).unwrap();
        let file = DeadLetterFile::open(&path).unwrap();
        std::fs::rename(&path, &rotated).unwrap();
        append(&path, 10_000, &letter("three")).unwrap();
        file.strike(&file.lines()[0]).unwrap();
        file.close_gaps().unwrap();
        assert_eq!(bodies(&rotated), [Ok("two".to_owned())]);
        assert_eq!(bodies(&path), [Ok("three".to_owned())]);
    }

    #[test]
    fn a_line_that_somebody_else_has_changed_is_neither_sent_nor_struck_out() {
        let (_directory, path) = place();
        append(&path, 10_000, &letter("one")).unwrap();
        let file = DeadLetterFile::open(&path).unwrap();
        let line = &file.lines()[0];
        file.check(line).unwrap();
        // As logrotate's copytruncate does.
        for other in [String::new(), "x".repeat(10_000)] {
            std::fs::write(&path, &other).unwrap();
            assert!(matches!(file.check(line), Err(ReplayFileError::Changed)));
            assert!(matches!(file.strike(line), Err(ReplayFileError::Changed)));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), other);
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_refused_before_anything_is_sent() {
        let (directory, path) = place();
        append(&path, 10_000, &letter("one")).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(DeadLetterFile::open(&link).unwrap().lines().len(), 1);
        assert!(link.is_symlink());
        assert!(matches!(DeadLetterFile::open(directory.path()), Err(ReplayFileError::Io(_))));
    }

    proptest! {
        // Each waits for the disk.
        #![proptest_config(ProptestConfig::with_cases(50))]

        /// Whatever is struck out, the rest stays, in order, and no more than half of the file is blank.
        #[test]
        fn closed_gaps_leave_what_was_not_struck_out(
            letters in prop::collection::vec((0..600usize, prop::bool::ANY), 0..20),
            has_end in prop::bool::ANY,
        ) {
            let (_directory, path) = place();
            std::fs::write(&path, "").unwrap();
            let body = |at: usize, len: usize| format!("{at} {}", "x".repeat(len));
            for (at, (len, _)) in letters.iter().enumerate() {
                append(&path, u64::MAX, &letter(&body(at, *len))).unwrap();
            }
            if !has_end && !letters.is_empty() {
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                file.set_len(path.metadata().unwrap().len() - 1).unwrap();
            }
            let file = DeadLetterFile::open(&path).unwrap();
            for (line, (_, is_struck)) in file.lines().iter().zip(&letters) {
                if *is_struck {
                    file.strike(line).unwrap();
                }
            }
            file.close_gaps().unwrap();
            let left = letters.iter().enumerate().filter(|(_, (_, is_struck))| !is_struck);
            let left: Vec<_> = left.map(|(at, (len, _))| Ok(body(at, *len))).collect();
            prop_assert_eq!(bodies(&path), left);
            let bytes = std::fs::read(&path).unwrap();
            let blank = bytes.iter().filter(|byte| **byte == b' ').count();
            prop_assert!(2 * blank <= bytes.len() + 20 * letters.len(), "{} of {}", blank, bytes.len());
        }
    }

    #[test]
    fn a_server_goes_on_writing_while_gaps_are_closed() {
        let (_directory, path) = place();
        append(&path, 10_000, &letter("one")).unwrap();
        std::thread::scope(|scope| {
            scope
                .spawn(|| (0..50).for_each(|at| append(&path, 1_000_000, &letter(&at.to_string())).unwrap()));
            for _ in 0..20 {
                let file = DeadLetterFile::open(&path).unwrap();
                let first = file.lines().into_iter().find(|line| line.letter.as_ref().unwrap().body == "one");
                first.into_iter().for_each(|line| file.strike(&line).unwrap());
                file.close_gaps().unwrap();
            }
        });
        let bodies: Vec<_> = bodies(&path).into_iter().map(Result::unwrap).collect();
        let expected: Vec<_> = (0..50).map(|at| at.to_string()).collect();
        assert_eq!(bodies, expected);
    }

    fn desk(path: Option<PathBuf>) -> (Desk, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::default());
        (Desk { path, bytes_max: 1_000_000, losses: Arc::new(Losses::new(&metrics)) }, metrics)
    }

    #[test]
    fn the_file_is_looked_up_again_for_each_turn() {
        let (directory, path) = place();
        let (desk, metrics) = desk(Some(path.clone()));
        let room = Arc::new(Semaphore::new(10_000));
        let parcel = |body| Parcel { letter: letter(body), receipts: Vec::new() };
        let order = |body| Order::Keep(parcel(body), Arc::clone(&room).try_acquire_owned().unwrap());
        desk.work(&mut vec![order("one"), order("two")]);
        let rotated = directory.path().join("dead.jsonl.1");
        std::fs::rename(&path, &rotated).unwrap();
        desk.work(&mut vec![order("three")]);
        assert_eq!((bodies(&rotated).len(), bodies(&path)), (2, vec![Ok("three".to_owned())]));
        assert_eq!(metrics.webhooks.dead_lettered.get(), 3);
        assert_eq!(room.available_permits(), 10_000);
    }

    #[test]
    fn a_record_whose_letter_the_disk_has_no_room_for_is_settled_as_it_is_lost() {
        let (metrics, (ends, mut ended)) = (Arc::new(Metrics::default()), mpsc::unbounded_channel());
        let dead_letters = DeadLetters::start(None, 0, &metrics).unwrap();
        let _room = Arc::clone(&dead_letters.room).try_acquire_many_owned(WAITING_BYTES).unwrap();
        let receipts = vec![Receipt::new(EventId::new(7, 1), ends)];
        dead_letters.put(Parcel { letter: letter("one"), receipts });
        assert_eq!(ended.try_recv(), Ok(End::Settled(EventId::new(7, 1))));
        assert_eq!(metrics.webhooks.dead_letters_lost.get(), 1);
    }
}
