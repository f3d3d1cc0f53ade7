//! The file of dead letters during a replay: its lines, marks of delivered ones, compaction.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::DeadLetter;
use super::file::{lock, open_regular};

/// A file of dead letters during a replay.
#[derive(Debug)]
pub struct DeadLetterFile {
    file: File,
    /// The content when it was opened. A server may have appended since.
    bytes: Vec<u8>,
    /// Locked to exclude other replays.
    _folder_lock: File,
}

/// A line of the file.
#[derive(Debug)]
pub struct Line {
    start: usize,
    end: usize,
    /// The dead letter, or why the line is none.
    pub dead_letter: Result<DeadLetter, &'static str>,
}

/// Why a replay did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReplayFileError {
    /// Another replay holds the lock on the folder.
    #[error("another replay is running in {}", .0.display())]
    Locked(PathBuf),
    /// Another process has modified the lines that were read.
    #[error("another process has modified it")]
    Modified,
    /// An I/O error.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl DeadLetterFile {
    /// Opens the file for writing, and reads it. Excludes other replays until it is dropped.
    ///
    /// # Errors
    /// Another replay is running, or an I/O error.
    pub fn open(path: &Path) -> Result<Self, ReplayFileError> {
        let path = path.canonicalize()?;
        let file = open_regular(OpenOptions::new().read(true).write(true), &path)?;
        // The lock is on the folder, because the server has to lock the file meanwhile.
        let parent = path.parent().unwrap_or(&path);
        let folder_lock = File::open(parent)?;
        match folder_lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ReplayFileError::Locked(parent.to_owned())),
            Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => {
                return Err(error.into());
            }
            Err(TryLockError::Error(_)) => {}
        }
        let mut bytes = Vec::new();
        // Locked, so that no line is read in part.
        lock(&file)?;
        (&file).read_to_end(&mut bytes)?;
        file.unlock()?;
        Ok(Self { file, bytes, _folder_lock: folder_lock })
    }

    /// Its lines, except empty ones.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let dead_letter =
            |line| serde_json::from_slice(line).map_err(|_| "not a dead letter, or a truncated one");
        lines(&self.bytes)
            .map(|(start, end)| Line { start, end, dead_letter: dead_letter(&self.bytes[start..end]) })
            .collect()
    }

    /// Checks that a line was not modified since it was read.
    ///
    /// # Errors
    /// It was modified, or an I/O error.
    pub fn verify(&self, line: &Line) -> Result<(), ReplayFileError> {
        let mut found = vec![0; line.end - line.start];
        match self.file.read_exact_at(&mut found, line.start as u64) {
            Ok(()) if found == self.bytes[line.start..line.end] => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error.into()),
            Ok(()) | Err(_) => Err(ReplayFileError::Modified),
        }
    }

    /// Marks a line as delivered, by overwriting it with blanks.
    ///
    /// # Errors
    /// The line was modified, or an I/O error.
    pub fn mark_delivered(&self, line: &Line) -> Result<(), ReplayFileError> {
        self.verify(line)?;
        Ok(self.file.write_all_at(&vec![b' '; line.end - line.start], line.start as u64)?)
    }

    /// Compacts the file: moves the remaining lines to the front, including those appended since, and truncates it.
    ///
    /// # Errors
    /// An I/O error.
    pub fn compact(self) -> io::Result<()> {
        lock(&self.file)?;
        let mut bytes = Vec::new();
        (&self.file).rewind()?;
        (&self.file).read_to_end(&mut bytes)?;
        let mut len = 0;
        for (start, end) in lines(&bytes) {
            // Includes the line feed, which the last line may lack.
            let line = &bytes[start..bytes.len().min(end + 1)];
            if len + line.len() <= start {
                self.file.write_all_at(line, len as u64)?;
                len += line.len();
            } else {
                // Never overwrite a line with itself: until it is complete at the new position, it stays at the old
                // one.
                self.file.write_all_at(&vec![b' '; start - len], len as u64)?;
                len = start + line.len();
            }
        }
        self.file.set_len(len as u64)?;
        self.file.sync_all()
    }
}

/// The ranges of lines, without leading blanks, except lines that are all blank.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let mut next = 0;
    bytes.split(|byte| *byte == b'\n').filter_map(move |line| {
        let end = next + line.len();
        next = end + 1;
        let line = line.trim_ascii_start();
        (!line.is_empty()).then_some((end - line.len(), end))
    })
}
