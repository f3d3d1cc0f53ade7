//! The shares of the files that this process may open, so that WebSockets cannot use them all: publishes, health checks,
//! webhooks, Redis, the log and the certificate need files as well.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// With fewer WebSockets than this, a warning is logged at the start.
const USUAL: u32 = 1024;

/// Files that this process opens itself after the start: connections of webhooks (eight for each receiver) and to Redis,
/// and files that are reloaded.
const OWN_MIN: u64 = 8;
const OWN_MAX: u64 = 256;

/// HTTP connections.
const HTTP_MIN: u64 = 8;

/// Keep-alive connections with signed requests, in addition to the pending ones.
const SIGNED: u64 = 1024;

/// The assumed number of open files, if the system does not tell it.
const OPEN_AT_FIRST: u64 = 32;

/// The shares of the limit of open files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct FileShares {
    /// WebSockets; `None`: no limit.
    pub(super) websockets: Option<u32>,
    /// Pending connections.
    pub(super) pending: u32,
}

impl FileShares {
    /// The shares of this process, with up to `pending` pending connections. Logs a warning if WebSockets get few.
    pub(super) fn for_this_process(pending: u32) -> Self {
        let Some(limit) = getrlimit(Resource::Nofile).current else {
            return Self { websockets: None, pending };
        };
        let shares = Self::of(limit, open(), pending);
        if let Some(websockets) = shares.websockets.filter(|websockets| *websockets < USUAL) {
            warn!(
                limit,
                websockets,
                unauthenticated_connections = shares.pending,
                "the limit of open files allows few connections; raise it by ulimit -n, or LimitNOFILE of systemd"
            );
        }
        shares
    }

    /// The shares of `limit` descriptors, of which `open` are in use already.
    fn of(limit: u64, open: u64, pending: u32) -> Self {
        let free = limit.saturating_sub(open);
        let own = (free / 8).clamp(OWN_MIN, OWN_MAX);
        let http = (free / 4).clamp(HTTP_MIN, u64::from(pending) * 4 / 3 + SIGNED);
        let websockets = free.saturating_sub(own + http).max(1);
        // Some of the HTTP connections are keep-alive connections.
        let pending = u64::from(pending).min(http * 3 / 4);
        let number = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        Self { websockets: Some(number(websockets)), pending: number(pending) }
    }
}

/// Raises the soft limit of open files to the hard limit. Every connection is a file, and the soft limit is often 1024 for
/// the sake of programs that use `select`.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // If that is not permitted, the limit stays as it is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// The descriptors in use.
fn open() -> u64 {
    // A directory of the kernel, which never waits for a disk.
    std::fs::read_dir("/dev/fd").map_or(OPEN_AT_FIRST, |files| files.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_reserved_for_http_and_for_the_process_itself() {
        let table = [
            // limit, open, pending: WebSockets, pending
            (64, 12, 5000, 31, 9),
            (256, 12, 5000, 153, 45),
            (1024, 12, 5000, 633, 189),
            (20_000, 12, 5000, 14_735, 3747),
            (1_000_000, 12, 5000, 992_042, 5000),
            (u64::MAX, 12, 5000, u32::MAX, 5000),
            (1_000_000, 12, 10, 998_695, 10),
            (10, 12, 5000, 1, 6),
        ];
        for (limit, open, wanted, websockets, pending) in table {
            let shares = FileShares::of(limit, open, wanted);
            assert_eq!(shares, FileShares { websockets: Some(websockets), pending }, "{limit} files");
        }
    }

    #[test]
    fn open_files_are_counted() {
        let before = open();
        let files: Vec<_> = (0..3).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests of this process may open and close some meanwhile.
        assert!(open() >= 3 && before >= 1, "{before} and {}", files.len());
    }
}
