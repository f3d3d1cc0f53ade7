//! The file of dead letters: checks, locks, appends.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

use super::DeadLetter;

/// The name of the file in a state directory.
pub const FILE_NAME: &str = "dead-letters.jsonl";

/// Checks whether `path` can be the file of dead letters, without creating it.
///
/// # Errors
/// Why it cannot.
pub fn check_file(path: &Path) -> Result<(), String> {
    let not_writable = |what: &str| format!("{what} may not be written by the user that runs pusherd");
    match path.metadata() {
        Ok(found) if !found.is_file() => Err(not_a_regular_file(found.file_type())),
        Ok(_) if !is_writable(path) => Err(not_writable("it")),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            match folder.metadata() {
                Ok(found) if found.is_dir() && is_writable(folder) => Ok(()),
                Ok(found) if found.is_dir() => Err(not_writable(&format!("the folder {}", folder.display()))),
                Ok(_) => Err(format!("{} is not a folder", folder.display())),
                Err(error) => Err(format!("the folder {} cannot be used: {error}", folder.display())),
            }
        }
        Err(error) => Err(format!("it cannot be used: {error}")),
    }
}

/// Whether `folder` is a directory and writable.
#[must_use]
pub fn is_usable_folder(folder: &Path) -> bool {
    folder.is_dir() && is_writable(folder)
}

fn is_writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

fn not_a_regular_file(kind: FileType) -> String {
    let what = match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    format!("it is {what}; dead letters go to a regular file")
}

/// Opens and locks the file; creates it if necessary.
pub(super) fn open_to_append(path: &Path) -> io::Result<File> {
    let file = open_regular(OpenOptions::new().read(true).append(true).create(true).mode(0o600), path)?;
    lock(&file)?;
    Ok(file)
}

/// Opens a regular file. `O_NONBLOCK` keeps it from blocking on a FIFO.
pub(super) fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(io::Error::other(not_a_regular_file(kind))) }
}

/// Locks the file, if the file system supports locks.
pub(super) fn lock(file: &File) -> io::Result<()> {
    match file.lock() {
        Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Appends a line to a locked file. A partial write is truncated; if that fails too, the next append ends the line.
pub(super) fn append(
    file: &mut File,
    bytes_max: u64,
    dead_letter: &DeadLetter,
) -> Result<(), DeadLetterError> {
    let len = file.metadata()?.len();
    let mut line = Vec::with_capacity(dead_letter.body.len() + 256);
    if len > 0 && ends_within_a_line(file)? {
        line.push(b'\n');
    }
    serde_json::to_writer(&mut line, dead_letter).map_err(io::Error::from)?;
    line.push(b'\n');
    if len + line.len() as u64 > bytes_max {
        return Err(DeadLetterError::Full);
    }
    file.write_all(&line).map_err(|error| truncate_partial(file, len, error))
}

/// Removes a line that was written in part.
pub(super) fn truncate_partial(file: &File, len: u64, error: io::Error) -> DeadLetterError {
    // The original error is returned; cleaning up is best effort.
    let _ = file.set_len(len);
    error.into()
}

fn ends_within_a_line(file: &mut File) -> io::Result<bool> {
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// Why a dead letter is lost.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeadLetterError {
    #[error("no file is configured (webhooks.dead_letter_file)")]
    NoFile,
    #[error(
        "the file has reached webhooks.dead_letter_bytes; `pusherd webhooks replay` sends its content and empties it"
    )]
    Full,
    #[error("the thread that writes dead letters has ended")]
    ThreadEnded,
    #[error("the disk is too slow: too many dead letters wait to be written")]
    Overloaded,
    #[error("the file cannot be written: {0}")]
    Io(#[from] io::Error),
}
