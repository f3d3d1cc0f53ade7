//! Reads files that an operator names: regular files of a bounded size.
//!
//! A FIFO or a device in the place of a file would block the reader, or never end. They are refused before they are
//! opened. `/dev/null` is how an operator says "no file", and is empty.

use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// Why a file was not read. The text follows the name of the file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is nothing of this name.
    #[error("does not exist")]
    Missing,
    /// Its permissions are for others.
    #[error("may not be read by the user that runs pusherd")]
    Forbidden,
    /// It is something else than a regular file, named here.
    #[error("is {0}, and must be a regular file")]
    NotRegular(&'static str),
    /// It has more than so many bytes.
    #[error("is larger than {} KiB", .0 / 1024)]
    TooLarge(u64),
    /// What the system says.
    #[error("cannot be read: {0}")]
    Io(io::Error),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            Self::Missing
        } else if error.kind() == io::ErrorKind::PermissionDenied {
            Self::Forbidden
        } else {
            Self::Io(error)
        }
    }
}

/// The bytes of the regular file `path`, of which there may be `bytes_max`; none of `/dev/null`.
///
/// # Errors
/// [`FileError`] says what else it is, or what the system says.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FileError> {
    let metadata = fs::metadata(path)?;
    let kind = metadata.file_type();
    if is_null(&metadata) {
        return Ok(Vec::new());
    }
    if !kind.is_file() {
        return Err(FileError::NotRegular(name(kind)));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(FileError::TooLarge(bytes_max));
    }
    Ok(bytes)
}

/// Whether it is the device that is `/dev/null`, by whatever name.
fn is_null(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device()
        && fs::metadata("/dev/null").is_ok_and(|null| null.rdev() == metadata.rdev())
}

fn name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO (named pipe)"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_regular_file_is_read_up_to_the_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "12345678").unwrap();
        assert_eq!(read(&path, 8).unwrap(), b"12345678");
        assert!(matches!(read(&path, 7), Err(FileError::TooLarge(7))));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read(&link, 8).unwrap(), b"12345678");
        let null = directory.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &null).unwrap();
        assert_eq!(read(&null, 8).unwrap(), b"");
    }

    #[test]
    fn what_could_block_or_never_end_is_refused_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let in_it = |name: &str| directory.path().join(name);
        mknodat(CWD, in_it("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _listener = UnixListener::bind(in_it("socket")).unwrap();
        let table = [
            (directory.path().to_owned(), "is a directory, and must be a regular file"),
            (in_it("fifo"), "is a FIFO (named pipe), and must be a regular file"),
            (in_it("socket"), "is a socket, and must be a regular file"),
            ("/dev/zero".into(), "is a device, and must be a regular file"),
            (in_it("none"), "does not exist"),
        ];
        for (path, expected) in table {
            assert_eq!(read(&path, 8).unwrap_err().to_string(), expected, "{}", path.display());
        }
    }
}
