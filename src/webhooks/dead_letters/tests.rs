//! Appending, replaying and compacting a file of dead letters.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use tokio::sync::{Semaphore, mpsc};

use super::super::ack::Resolution;
use super::file::{DeadLetterError, open_to_append, truncate_partial};
use super::store::{Command, LossLog, StoreWriter};
use super::*;
use crate::metrics::Metrics;

fn dead_letter(body: &str) -> DeadLetter {
    DeadLetter {
        app_id: "1".to_owned(),
        url: "http://app.test/hooks".to_owned(),
        time_ms: 1_700_000_000_123,
        attempts: 3,
        error: "the response status is 500, not 2xx".to_owned(),
        event_ids: vec![EventId::new(7, 1)],
        body: body.to_owned(),
    }
}

fn append(path: &Path, bytes_max: u64, dead_letter: &DeadLetter) -> Result<(), DeadLetterError> {
    file::append(&mut open_to_append(path)?, bytes_max, dead_letter)
}

fn bodies(path: &Path) -> Vec<Result<String, &'static str>> {
    let file = DeadLetterFile::open(path).unwrap();
    file.lines().into_iter().map(|line| line.dead_letter.map(|dead_letter| dead_letter.body)).collect()
}

fn temp_file() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("dead.jsonl");
    (directory, path)
}

#[test]
fn a_dead_letter_is_a_line_in_a_file_that_only_the_owner_can_read() {
    let (_directory, path) = temp_file();
    append(&path, 10_000, &dead_letter("{\"a\":\"x\\ny\"}")).unwrap();
    append(&path, 10_000, &dead_letter("two")).unwrap();
    assert_eq!(bodies(&path), [Ok("{\"a\":\"x\\ny\"}".to_owned()), Ok("two".to_owned())]);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
}

#[test]
fn event_ids_of_a_dead_letter_are_optional_and_checked() {
    let line = |ids: &str| {
        let rest = r#""app_id":"1","url":"http://app.test/","time_ms":1,"attempts":1,"error":"","body":"""#;
        serde_json::from_str::<DeadLetter>(&format!("{{{ids}{rest}}}"))
    };
    assert_eq!(line("").unwrap().event_ids, []);
    let ids = r#""event_ids":["0000000000000007-1","0000000000000007-a"],"#;
    assert_eq!(line(ids).unwrap().event_ids, [EventId::new(7, 1), EventId::new(7, 10)]);
    assert!(line(r#""event_ids":["7-1\r\nX-Pusher-Key: other"],"#).is_err());
}

#[test]
fn only_regular_files_are_accepted_and_opening_others_does_not_block() {
    let (directory, path) = temp_file();
    assert_eq!(check_file(&path), Ok(()), "it is created for the first dead letter");
    assert!(!path.exists());
    append(&path, 10_000, &dead_letter("one")).unwrap();
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
        assert!(append(path, 10_000, &dead_letter("one")).is_err(), "{what}");
        assert!(DeadLetterFile::open(path).is_err(), "{what}");
    }
    let nowhere = directory.path().join("nowhere/dead.jsonl");
    let error = check_file(&nowhere).unwrap_err();
    assert!(error.starts_with("the folder ") && error.contains("nowhere cannot be used"), "{error}");
    let error = check_file(&path.join("dead.jsonl")).unwrap_err();
    assert!(error.starts_with("it cannot be used: "), "{error}");
}

#[test]
fn two_servers_append_to_one_file_without_loss() {
    let (_directory, path) = temp_file();
    std::thread::scope(|scope| {
        for server in ["one", "two"] {
            let path = path.clone();
            scope.spawn(move || {
                let (writer, _metrics) = store_writer(Some(path));
                let capacity = Arc::new(Semaphore::new(10_000));
                for at in 0..50 {
                    let batch = DeadLetterBatch {
                        dead_letter: dead_letter(&format!("{server} {at}")),
                        ack_tokens: Vec::new(),
                    };
                    let permit = Arc::clone(&capacity).try_acquire_owned().unwrap();
                    writer.execute(&mut vec![Command::Append(batch, permit)]);
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
fn a_full_file_is_not_appended_to() {
    let (_directory, path) = temp_file();
    append(&path, 10_000, &dead_letter("one")).unwrap();
    let bytes_max = path.metadata().unwrap().len() + 10;
    assert!(matches!(append(&path, bytes_max, &dead_letter("two")), Err(DeadLetterError::Full)));
    assert_eq!(bodies(&path), [Ok("one".to_owned())]);
}

#[test]
fn a_truncated_line_does_not_corrupt_the_next() {
    let (_directory, path) = temp_file();
    append(&path, 10_000, &dead_letter("one")).unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 20]).unwrap();
    append(&path, 10_000, &dead_letter("two")).unwrap();
    assert!(matches!(&bodies(&path)[..], [Err(_), Ok(two)] if two == "two"));
}

#[test]
fn a_full_disk_is_an_error() {
    let mut full = OpenOptions::new().read(true).append(true).open("/dev/full").unwrap();
    let written = file::append(&mut full, 10_000, &dead_letter("one"));
    assert!(
        matches!(&written, Err(DeadLetterError::Io(error)) if error.kind() == io::ErrorKind::StorageFull),
        "{written:?}"
    );
}

/// As on a disk that becomes full in the middle of a line.
#[test]
fn a_partial_write_is_truncated() {
    let (_directory, path) = temp_file();
    append(&path, 10_000, &dead_letter("one")).unwrap();
    let before = std::fs::read(&path).unwrap();
    let whole = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let truncated = |file: &File| {
        file.write_all_at(b"{\"app_id\":", before.len() as u64).unwrap();
        truncate_partial(file, before.len() as u64, io::ErrorKind::StorageFull.into())
    };
    assert!(
        matches!(truncated(&whole), DeadLetterError::Io(error) if error.kind() == io::ErrorKind::StorageFull)
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_delivered_line_is_blanked_at_once_and_removed_by_compaction() {
    let (_directory, path) = temp_file();
    for body in ["one", "two", "three"] {
        append(&path, 10_000, &dead_letter(body)).unwrap();
    }
    let (owner, len) = (path.metadata().unwrap().ino(), path.metadata().unwrap().len());
    let file = DeadLetterFile::open(&path).unwrap();
    let lines = file.lines();
    file.mark_delivered(&lines[0]).unwrap();
    append(&path, 10_000, &dead_letter("four")).unwrap();
    file.mark_delivered(&lines[2]).unwrap();
    drop(file);
    // As left by a replay that was killed.
    assert_eq!(bodies(&path), [Ok("two".to_owned()), Ok("four".to_owned())]);
    assert!(path.metadata().unwrap().len() > len);
    DeadLetterFile::open(&path).unwrap().compact().unwrap();
    assert_eq!(bodies(&path), [Ok("two".to_owned()), Ok("four".to_owned())]);
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    append(&path, 10_000, &dead_letter("five")).unwrap();
    assert_eq!(bodies(&path).len(), 3);
    assert_eq!(path.metadata().unwrap().ino(), owner, "it is the same file");
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no other file is left");
}

#[test]
fn a_second_replay_is_rejected_while_the_server_appends() {
    let (_directory, path) = temp_file();
    append(&path, 10_000, &dead_letter("one")).unwrap();
    let first = DeadLetterFile::open(&path).unwrap();
    assert!(matches!(DeadLetterFile::open(&path), Err(ReplayFileError::Locked(_))));
    append(&path, 10_000, &dead_letter("two")).unwrap();
    drop(first);
    assert_eq!(bodies(&path).len(), 2);
}

#[test]
fn rotating_the_file_during_a_replay_loses_nothing() {
    let (directory, path) = temp_file();
    let rotated = directory.path().join("dead.jsonl.1");
    append(&path, 10_000, &dead_letter("one")).unwrap();
    append(&path, 10_000, &dead_letter("two")).unwrap();
    let file = DeadLetterFile::open(&path).unwrap();
    std::fs::rename(&path, &rotated).unwrap();
    append(&path, 10_000, &dead_letter("three")).unwrap();
    file.mark_delivered(&file.lines()[0]).unwrap();
    file.compact().unwrap();
    assert_eq!(bodies(&rotated), [Ok("two".to_owned())]);
    assert_eq!(bodies(&path), [Ok("three".to_owned())]);
}

#[test]
fn a_modified_line_is_neither_sent_nor_marked() {
    let (_directory, path) = temp_file();
    append(&path, 10_000, &dead_letter("one")).unwrap();
    let file = DeadLetterFile::open(&path).unwrap();
    let line = &file.lines()[0];
    file.verify(line).unwrap();
    // As logrotate's copytruncate does.
    for other in [String::new(), "x".repeat(10_000)] {
        std::fs::write(&path, &other).unwrap();
        assert!(matches!(file.verify(line), Err(ReplayFileError::Modified)));
        assert!(matches!(file.mark_delivered(line), Err(ReplayFileError::Modified)));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), other);
    }
}

#[test]
fn a_replay_follows_symbolic_links_and_rejects_directories() {
    let (directory, path) = temp_file();
    append(&path, 10_000, &dead_letter("one")).unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(DeadLetterFile::open(&link).unwrap().lines().len(), 1);
    assert!(link.is_symlink());
    assert!(matches!(DeadLetterFile::open(directory.path()), Err(ReplayFileError::Io(_))));
}

proptest! {
    // Every case writes to the disk.
    #![proptest_config(ProptestConfig::with_cases(50))]

    /// Lines that are not marked stay, in order, and at most half of the file is blank.
    #[test]
    fn compaction_keeps_undelivered_lines_in_order(
        dead_letters in prop::collection::vec((0..600usize, prop::bool::ANY), 0..20),
        has_end in prop::bool::ANY,
    ) {
        let (_directory, path) = temp_file();
        std::fs::write(&path, "").unwrap();
        let body = |at: usize, len: usize| format!("{at} {}", "x".repeat(len));
        for (at, (len, _)) in dead_letters.iter().enumerate() {
            append(&path, u64::MAX, &dead_letter(&body(at, *len))).unwrap();
        }
        if !has_end && !dead_letters.is_empty() {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(path.metadata().unwrap().len() - 1).unwrap();
        }
        let file = DeadLetterFile::open(&path).unwrap();
        for (line, (_, is_delivered)) in file.lines().iter().zip(&dead_letters) {
            if *is_delivered {
                file.mark_delivered(line).unwrap();
            }
        }
        file.compact().unwrap();
        let remaining = dead_letters.iter().enumerate().filter(|(_, (_, is_delivered))| !is_delivered);
        let remaining: Vec<_> = remaining.map(|(at, (len, _))| Ok(body(at, *len))).collect();
        prop_assert_eq!(bodies(&path), remaining);
        let bytes = std::fs::read(&path).unwrap();
        let blank = bytes.iter().filter(|byte| **byte == b' ').count();
        prop_assert!(2 * blank <= bytes.len() + 20 * dead_letters.len(), "{} of {}", blank, bytes.len());
    }
}

#[test]
fn a_server_appends_during_compaction() {
    let (_directory, path) = temp_file();
    append(&path, 10_000, &dead_letter("one")).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..50).for_each(|at| append(&path, 1_000_000, &dead_letter(&at.to_string())).unwrap())
        });
        for _ in 0..20 {
            let file = DeadLetterFile::open(&path).unwrap();
            let first =
                file.lines().into_iter().find(|line| line.dead_letter.as_ref().unwrap().body == "one");
            first.into_iter().for_each(|line| file.mark_delivered(&line).unwrap());
            file.compact().unwrap();
        }
    });
    let bodies: Vec<_> = bodies(&path).into_iter().map(Result::unwrap).collect();
    let expected: Vec<_> = (0..50).map(|at| at.to_string()).collect();
    assert_eq!(bodies, expected);
}

fn store_writer(path: Option<PathBuf>) -> (StoreWriter, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::default());
    (StoreWriter { path, bytes_max: 1_000_000, losses: Arc::new(LossLog::new(&metrics)) }, metrics)
}

#[test]
fn the_file_is_reopened_for_each_batch_of_commands() {
    let (directory, path) = temp_file();
    let (writer, metrics) = store_writer(Some(path.clone()));
    let capacity = Arc::new(Semaphore::new(10_000));
    let batch = |body| DeadLetterBatch { dead_letter: dead_letter(body), ack_tokens: Vec::new() };
    let command = |body| Command::Append(batch(body), Arc::clone(&capacity).try_acquire_owned().unwrap());
    writer.execute(&mut vec![command("one"), command("two")]);
    let rotated = directory.path().join("dead.jsonl.1");
    std::fs::rename(&path, &rotated).unwrap();
    writer.execute(&mut vec![command("three")]);
    assert_eq!((bodies(&rotated).len(), bodies(&path)), (2, vec![Ok("three".to_owned())]));
    assert_eq!(metrics.webhooks.dead_lettered.get(), 3);
    assert_eq!(capacity.available_permits(), 10_000);
}

#[test]
fn a_record_is_acked_when_its_dead_letter_is_dropped() {
    let (metrics, (resolutions, mut resolved)) = (Arc::new(Metrics::default()), mpsc::unbounded_channel());
    let dead_letters = DeadLetterStore::start(None, 0, &metrics).unwrap();
    let _capacity = Arc::clone(&dead_letters.capacity).try_acquire_many_owned(BUFFERED_BYTES_MAX).unwrap();
    let ack_tokens = vec![AckToken::new(EventId::new(7, 1), resolutions)];
    dead_letters.append(DeadLetterBatch { dead_letter: dead_letter("one"), ack_tokens });
    assert_eq!(resolved.try_recv(), Ok(Resolution::Acked(EventId::new(7, 1))));
    assert_eq!(metrics.webhooks.dead_letters_lost.get(), 1);
}
