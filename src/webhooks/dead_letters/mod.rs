//! Dead letters: requests that could not be delivered. A thread of its own appends them to a file of JSON lines.
//!
//! The file has a maximum size. When it is reached, further dead letters are dropped, counted and logged. A disk that
//! is full, slow or broken costs dead letters, but never blocks the server. The file must be a regular file, because
//! opening a FIFO without a reader would block the thread forever.
//!
//! `pusherd webhooks replay` runs beside a server that appends. It overwrites each delivered line with blanks, and
//! compacts the file at the end, in place, so that owner, mode and hard links are kept. Appending and compacting hold a
//! lock on the file (`flock`). A replay also holds a lock on the folder, so that there is only one at a time.
//!
//! Killing the server or a replay at any time loses no dead letter. A dead letter that was delivered and not yet
//! marked, or that was just being moved, may be sent twice. Only a power failure within the milliseconds of compaction
//! may lose some.

mod file;
mod replay_file;
mod store;

use serde::{Deserialize, Serialize};

use super::ack::AckToken;
use super::event::EventId;
pub use file::{FILE_NAME, check_file, is_usable_folder};
pub use replay_file::{DeadLetterFile, Line, ReplayFileError};
use store::BUFFERED_BYTES_MAX;
pub(super) use store::DeadLetterStore;

/// The cost of a dead letter beside its body.
const OVERHEAD_BYTES: usize = 512;

/// A request that was not delivered. Contains no secrets: a replay signs it again and adds the configured headers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DeadLetter {
    /// The app.
    pub app_id: String,
    /// The URL of the webhook, without the query.
    pub url: String,
    /// The time in the body, in milliseconds since 1970.
    pub time_ms: u64,
    /// Attempts before it became a dead letter.
    pub attempts: u32,
    /// The error of the last attempt.
    pub error: String,
    /// The ids of the events, in their order.
    #[serde(default)]
    pub event_ids: Vec<EventId>,
    /// The body, exactly as it was signed.
    pub body: String,
}

/// A dead letter for a batch of events, and their ack tokens. The tokens are acked when it is written or lost.
#[derive(Debug)]
pub(super) struct DeadLetterBatch {
    pub(super) dead_letter: DeadLetter,
    pub(super) ack_tokens: Vec<AckToken>,
}

impl DeadLetterBatch {
    /// Its share of [`BUFFERED_BYTES_MAX`].
    fn cost(&self) -> u32 {
        let ids = self.dead_letter.event_ids.len() * size_of::<EventId>();
        let bytes = self.dead_letter.body.len() + ids + OVERHEAD_BYTES;
        u32::try_from(bytes).unwrap_or(u32::MAX).min(BUFFERED_BYTES_MAX)
    }

    /// Acks all tokens.
    fn ack(self) {
        self.ack_tokens.into_iter().for_each(AckToken::ack);
    }
}

#[cfg(test)]
mod tests;
