//! The kinds of facts, and sets of them.

use std::ops::BitOr;

/// What a fact is about: one for each variant of [`Fact`](super::Fact).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// A connection is established.
    Connected,
    /// A connection is closed.
    Disconnected,
    /// A connection is subscribed to a channel.
    Subscribed,
    /// A subscription has ended.
    Unsubscribed,
    /// A connection is signed in as a user.
    SignedIn,
    /// A connection that was signed in has closed.
    SignedOut,
    /// A client sent a message.
    MessageReceived,
    /// An event is published, by the application or by a client.
    Published,
    /// A connection, message, subscription or request is rejected, or a limit is reached.
    Rejected,
    /// A signature does not match.
    SignatureMismatch,
    /// The application closed the connections that are signed in as a user.
    UserTerminated,
    /// The application closed the connections that are in presence channels as a user.
    MembersTerminated,
    /// A request to the HTTP API is answered.
    ApiRequest,
    /// A webhook request was answered with 2xx.
    WebhookSent,
    /// An attempt at a webhook request failed.
    WebhookFailed,
    /// A webhook request is not attempted any more: it is a dead letter.
    WebhookDeadLettered,
    /// The broker of the cluster became available or unavailable.
    ClusterAvailability,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 17] = [
        Self::Connected,
        Self::Disconnected,
        Self::Subscribed,
        Self::Unsubscribed,
        Self::SignedIn,
        Self::SignedOut,
        Self::MessageReceived,
        Self::Published,
        Self::Rejected,
        Self::SignatureMismatch,
        Self::UserTerminated,
        Self::MembersTerminated,
        Self::ApiRequest,
        Self::WebhookSent,
        Self::WebhookFailed,
        Self::WebhookDeadLettered,
        Self::ClusterAvailability,
    ];

    pub(super) const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Kinds(u32);

impl Kinds {
    /// No kind.
    pub const NONE: Self = Self(0);

    /// Every kind.
    pub const ALL: Self = Self::of(&Kind::ALL);

    /// These kinds.
    #[must_use]
    pub const fn of(kinds: &[Kind]) -> Self {
        let (mut bits, mut at) = (0, 0);
        // A `const fn` has no iterators.
        while at < kinds.len() {
            bits |= kinds[at].bit();
            at += 1;
        }
        Self(bits)
    }

    /// Whether a kind is one of them.
    #[must_use]
    pub const fn has(self, kind: Kind) -> bool {
        self.0 & kind.bit() != 0
    }

    pub(super) const fn bits(self) -> u32 {
        self.0
    }
}

impl BitOr for Kinds {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
