//! Messages that this node cannot read: all are counted, and those of later releases are logged.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::Cluster;
use crate::cluster::envelope::Unreadable;

/// Later releases are logged once in this time: each of their messages may be one that this node cannot read.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// When messages of later releases were last logged.
#[derive(Debug, Default)]
pub(super) struct NewerReleaseLog {
    last: Option<Instant>,
    /// Messages since then.
    dropped: u64,
}

impl NewerReleaseLog {
    /// Counts a message. If a line is due, returns the number of messages since the last one.
    fn count(&mut self, now: Instant) -> Option<u64> {
        self.dropped += 1;
        if self.last.is_some_and(|last| now.duration_since(last) < LOG_INTERVAL) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.dropped))
    }
}

impl Cluster {
    /// Counts a message of another node that cannot be read. That a later release has written it is logged, once a minute.
    pub fn report_dropped(&self, why: Unreadable) {
        self.0.metrics.cluster.dropped.count();
        let Unreadable::NewerFormat { from } = why else { return };
        if let Some(count) = self.0.newer_releases.lock().count(Instant::now()) {
            warn!(
                count,
                node = from.map(tracing::field::display),
                "messages dropped: another node has a newer release of pusherd, whose messages this one cannot read: \
                 upgrade this node"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_minute_has_the_number_of_messages_since_the_last() {
        let (mut log, now) = (NewerReleaseLog::default(), Instant::now());
        assert_eq!(log.count(now), Some(1));
        assert_eq!(log.count(now + LOG_INTERVAL / 2), None);
        assert_eq!(log.count(now + LOG_INTERVAL - Duration::from_nanos(1)), None);
        assert_eq!(log.count(now + LOG_INTERVAL), Some(3));
        assert_eq!(log.count(now + LOG_INTERVAL), None);
        assert_eq!(log.count(now + LOG_INTERVAL * 3), Some(2));
    }
}
