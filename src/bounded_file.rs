//! Reads files that an operator names: regular files of a bounded size.
//!
//! A FIFO or a device would block the reader or never end, so it is rejected before it is opened. `/dev/null` is accepted as
//! an empty file, because operators use it for "no file".

use std::fs::{self, File, FileType, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// The reason why a file was not read. The text follows the name of the file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file does not exist.
    #[error("does not exist")]
    Missing,
    /// The permissions do not allow it.
    #[error("may not be read by the user that runs pusherd")]
    Forbidden,
    /// It is not a regular file, but of this type.
    #[error("is {0}, and must be a regular file")]
    NotRegular(&'static str),
    /// It is larger than this limit in bytes.
    #[error("is larger than {} KiB", .0 / 1024)]
    TooLarge(u64),
    /// Another error of the system.
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

/// Reads the regular file `path`, of at most `bytes_max` bytes. `/dev/null` is empty.
///
/// # Errors
/// The file is missing, too large, not regular, or cannot be read.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FileError> {
    let metadata = fs::metadata(path)?;
    let kind = metadata.file_type();
    if is_null(&metadata) {
        return Ok(Vec::new());
    }
    if !kind.is_file() {
        return Err(FileError::NotRegular(type_name(kind)));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(FileError::TooLarge(bytes_max));
    }
    Ok(bytes)
}

/// Whether the file is the device of `/dev/null`, under any name.
fn is_null(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device()
        && fs::metadata("/dev/null").is_ok_and(|null| null.rdev() == metadata.rdev())
}

fn type_name(kind: FileType) -> &'static str {
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
    fn a_regular_file_is_read_up_to_its_size_limit() {
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
    fn files_that_are_not_regular_are_rejected_by_type() {
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
