//! How the files that this process may have open are shared out, so that WebSockets cannot take them all: a publish
//! needs one, a health check, a webhook, Redis, the log and the certificate.

use rustix::process::{Resource, getrlimit};
use tracing::warn;

/// A node that can have fewer WebSockets than this says so when it starts.
const USUAL: u32 = 1024;

/// What this process opens itself, beside what it has open when it starts: connections of webhooks (eight for each
/// receiver) and to Redis, files that are read again.
const OWN_MIN: u64 = 8;
const OWN_MAX: u64 = 256;

/// Connections of HTTP.
const HTTP_MIN: u64 = 8;

/// Connections of applications, which stay, beside those that are pending.
const SIGNED: u64 = 1024;

/// What is open where the system does not tell.
const OPEN_AT_FIRST: u64 = 32;

/// How many descriptors there are for what.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Shares {
    /// WebSockets; `None`: as many as are wanted.
    pub(super) websockets: Option<u32>,
    /// Pending connections.
    pub(super) pending: u32,
}

impl Shares {
    /// What there is for this process, which wants `pending` pending connections; the operator is told if that is
    /// little.
    pub(super) fn of_this_process(pending: u32) -> Self {
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

    /// Of `limit` descriptors, `open` are in use already.
    fn of(limit: u64, open: u64, pending: u32) -> Self {
        let free = limit.saturating_sub(open);
        let own = (free / 8).clamp(OWN_MIN, OWN_MAX);
        let http = (free / 4).clamp(HTTP_MIN, u64::from(pending) * 4 / 3 + SIGNED);
        let websockets = free.saturating_sub(own + http).max(1);
        // A part of those for HTTP is for applications that keep their connections.
        let pending = u64::from(pending).min(http * 3 / 4);
        let number = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        Self { websockets: Some(number(websockets)), pending: number(pending) }
    }
}

/// The descriptors in use.
fn open() -> u64 {
    // A folder of the kernel's, which never waits for a disk.
    std::fs::read_dir("/dev/fd").map_or(OPEN_AT_FIRST, |files| files.count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn websockets_never_get_what_http_and_the_process_itself_need() {
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
            let shares = Shares::of(limit, open, wanted);
            assert_eq!(shares, Shares { websockets: Some(websockets), pending }, "{limit} files");
        }
    }

    #[test]
    fn what_is_open_is_counted() {
        let before = open();
        let files: Vec<_> = (0..3).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests of this process may open and close some meanwhile.
        assert!(open() >= 3 && before >= 1, "{before} and {}", files.len());
    }
}
