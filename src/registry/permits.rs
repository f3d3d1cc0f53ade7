//! The limit on the channels of an app.

use std::sync::Arc;

use crate::limits::Count;

/// The permits for the channels of an app.
#[derive(Clone, Copy, Debug)]
pub struct ChannelPermits<'a> {
    /// Permits that are held: one for each channel that is occupied or keeps an event.
    pub held: &'a Arc<Count>,
    /// The limit; `None`: no limit.
    pub max: Option<u32>,
}

/// The permit of one channel. Dropping it releases the permit.
#[derive(Debug)]
pub(super) struct ChannelPermit(Arc<Count>);

impl ChannelPermits<'_> {
    /// Acquires a permit. `None` if the limit is reached.
    pub(super) fn acquire(self) -> Option<ChannelPermit> {
        self.held.try_acquire(self.max).then(|| ChannelPermit(Arc::clone(self.held)))
    }
}

impl Drop for ChannelPermit {
    fn drop(&mut self) {
        self.0.release();
    }
}
