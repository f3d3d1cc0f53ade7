//! Why clients, proxies and applications are rejected: every kind there is, and the log of them.
//!
//! Each rejection is counted, and a fact for those who watch, which is logged at `debug` ([`log_one`]). At `info`, or `warn` if it also affects peers that did nothing
//! wrong, there is one line a minute for each kind and app: with the number since the last line, an example, and a
//! remedy. Rejections since the last line are logged when the minute ends, so none is lost.
//!
//! Only a rejection pays for this: two atomic operations, and an allocation once a minute, kind and app. An [`Example`]
//! holds no payload and no secret. Texts that a peer chose are cut to a bound, and escaped by the log.
//!
//! [`Hub::reject`](crate::hub::Hub::reject) is the only caller. Start at [`Rejection`].

mod example;
mod log;
mod mistake;

use crate::limits::Limit;
pub use example::{Example, Field};
pub use log::{RejectionLog, log_one};
pub use mistake::Mistake;

/// Why something was rejected.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Rejection {
    /// A limit was reached.
    Limit(Limit),
    /// The peer made a mistake.
    Mistake(Mistake),
}

impl From<Limit> for Rejection {
    fn from(limit: Limit) -> Self {
        Self::Limit(limit)
    }
}

impl From<Mistake> for Rejection {
    fn from(mistake: Mistake) -> Self {
        Self::Mistake(mistake)
    }
}

impl Rejection {
    /// The number of kinds.
    pub const COUNT: usize = Limit::ALL.len() + Mistake::ALL.len();

    /// The index of the kind, below [`Rejection::COUNT`].
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Limit(limit) => limit as usize,
            Self::Mistake(mistake) => Limit::ALL.len() + mistake as usize,
        }
    }

    /// What happened, as a sentence of the log.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Limit(limit) => limit.description(),
            Self::Mistake(mistake) => mistake.description(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_index() {
        let limits = Limit::ALL.into_iter().map(Rejection::from);
        let mistakes = Mistake::ALL.into_iter().map(Rejection::from);
        let numbers: Vec<_> = limits.chain(mistakes).map(Rejection::index).collect();
        assert_eq!(numbers, (0..Rejection::COUNT).collect::<Vec<_>>());
    }
}
