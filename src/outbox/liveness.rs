//! When a client was last heard, and whether it reads: facts of each connection that a sweep over all of them decides
//! by, so that no connection has a timer.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::Duration;

/// When a client was last heard, in whole seconds of the node's clock: one store for each read.
#[derive(Debug, Default)]
pub struct Liveness {
    heard_secs: AtomicU32,
    /// When the unanswered Ping was sent.
    pinged: CoarseInstant,
    /// When the incomplete message began.
    begun: CoarseInstant,
    /// 0, or one more than the second by which the connection must be authorized.
    authorize_by_secs: AtomicU32,
}

/// Which message is incomplete.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unfinished {
    /// The one that was incomplete at the last call, if one was: none has been completed since.
    Same,
    /// One that began after another was completed.
    New,
}

impl Liveness {
    /// The state of a client that was heard `now`, and must be authorized by `authorize_by`, if the app requires that.
    #[must_use]
    pub fn new(now: Duration, authorize_by: Option<Duration>) -> Self {
        Self {
            heard_secs: AtomicU32::new(now.as_secs() as u32),
            pinged: CoarseInstant::default(),
            begun: CoarseInstant::default(),
            authorize_by_secs: AtomicU32::new(authorize_by.map_or(0, |by| by.as_secs() as u32 + 1)),
        }
    }

    /// Records that the client was heard.
    pub fn heard(&self, now: Duration) {
        self.heard_secs.store(now.as_secs() as u32, Ordering::Relaxed);
        self.pinged.clear();
    }

    /// Records that the client was pinged.
    pub fn pinged(&self, now: Duration) {
        self.pinged.set(now);
    }

    /// Records which message of the client is incomplete, if one is.
    pub fn set_unfinished(&self, message: Option<Unfinished>, now: Duration) {
        match message {
            None => self.begun.clear(),
            Some(Unfinished::Same) if self.begun.elapsed(now).is_some() => {}
            Some(Unfinished::Same | Unfinished::New) => self.begun.set(now),
        }
    }

    /// Records that the connection is authorized.
    pub fn authorize(&self) {
        self.authorize_by_secs.store(0, Ordering::Relaxed);
    }

    /// How long the client has been silent.
    #[must_use]
    pub fn silent_for(&self, now: Duration) -> Duration {
        now.saturating_sub(Duration::from_secs(self.heard_secs.load(Ordering::Relaxed).into()))
    }

    /// How long a Ping has been unanswered, if one is.
    #[must_use]
    pub fn unanswered_for(&self, now: Duration) -> Option<Duration> {
        self.pinged.elapsed(now)
    }

    /// How long a message has been incomplete, if one is.
    #[must_use]
    pub fn unfinished_for(&self, now: Duration) -> Option<Duration> {
        self.begun.elapsed(now)
    }

    /// Whether the connection should be authorized by now and is not.
    #[must_use]
    pub fn is_unauthorized(&self, now: Duration) -> bool {
        let by = self.authorize_by_secs.load(Ordering::Relaxed);
        by > 0 && now >= Duration::from_secs(u64::from(by) - 1)
    }
}

/// Whether a client reads its queue. A write stores no time: the sweep records when it first saw that nothing had been
/// written since its last turn.
#[derive(Debug, Default)]
pub(super) struct WriteProgress(AtomicU16);

/// The queue is empty.
const QUEUE_EMPTY: u16 = 0;

/// Bytes were queued or written since the last sweep. No tick has this value.
const PROGRESS: u16 = u16::MAX;

impl WriteProgress {
    /// Records a write, and whether bytes are left in the queue.
    pub(super) fn record(&self, is_queued: bool) {
        self.0.store(if is_queued { PROGRESS } else { QUEUE_EMPTY }, Ordering::Relaxed);
    }

    /// How long nothing has been written, as of the sweep's last turns; `None` if the queue is empty.
    pub(super) fn stalled_for(&self, now: Duration) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            QUEUE_EMPTY => None,
            PROGRESS => {
                let tick = CoarseInstant::tick(now);
                // A concurrent write stores `PROGRESS` again, and wins.
                let _ = self.0.compare_exchange(PROGRESS, tick, Ordering::Relaxed, Ordering::Relaxed);
                Some(Duration::ZERO)
            }
            tick => CoarseInstant::elapsed_since(tick, now),
        }
    }
}

/// An instant of a coarse clock, or none, in two bytes: a second within the last 9 hours. It is compared within the
/// timeout that it is for, and no setting allows a timeout of more than an hour.
#[derive(Debug, Default)]
struct CoarseInstant(AtomicU16);

/// The ticks of the coarse clock, before it wraps. 0 stands for none, and [`PROGRESS`] is no tick.
const TICKS: u64 = u16::MAX as u64 - 1;

impl CoarseInstant {
    const fn tick(now: Duration) -> u16 {
        (now.as_secs() % TICKS + 1) as u16
    }

    fn elapsed_since(tick: u16, now: Duration) -> Option<Duration> {
        let tick = u64::from(tick.checked_sub(1)?);
        let secs = (now.as_secs() % TICKS + TICKS - tick) % TICKS;
        // More than half of the range means a tick that was stored after `now` was read.
        Some(Duration::from_secs(if secs > TICKS / 2 { 0 } else { secs }))
    }

    fn set(&self, now: Duration) {
        self.0.store(Self::tick(now), Ordering::Relaxed);
    }

    fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn elapsed(&self, now: Duration) -> Option<Duration> {
        Self::elapsed_since(self.0.load(Ordering::Relaxed), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn liveness_tracks_silence_and_unanswered_pings() {
        let secs = Duration::from_secs;
        let liveness = Liveness::new(secs(10), Some(secs(40)));
        assert_eq!((liveness.silent_for(secs(60)), liveness.unanswered_for(secs(60))), (secs(50), None));
        liveness.pinged(secs(60));
        assert_eq!(liveness.unanswered_for(secs(90)), Some(secs(30)));
        liveness.heard(secs(91));
        assert_eq!((liveness.silent_for(secs(92)), liveness.unanswered_for(secs(92))), (secs(1), None));
        assert!(!liveness.is_unauthorized(secs(39)) && liveness.is_unauthorized(secs(40)));
        liveness.authorize();
        assert!(!liveness.is_unauthorized(secs(92)));
    }
}
