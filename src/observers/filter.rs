//! Which facts an observer gets.

use super::{Fact, Kinds};
use crate::protocol::SocketId;
use crate::rejections::Example;

/// Which facts an observer gets: those that pass all parts. A fact that is not about an app, a channel or a connection does
/// not pass a filter for one.
#[derive(Clone, Debug)]
pub struct Filter {
    pub(super) kinds: Kinds,
    app: Option<Box<str>>,
    channel: Option<Box<str>>,
    socket: Option<SocketId>,
    pub(super) payloads: bool,
}

impl Filter {
    /// All facts of these kinds, without their payloads.
    #[must_use]
    pub const fn of(kinds: Kinds) -> Self {
        Self { kinds, app: None, channel: None, socket: None, payloads: false }
    }

    /// Only facts of the app with this id.
    #[must_use]
    pub fn app(self, id: &str) -> Self {
        Self { app: Some(id.into()), ..self }
    }

    /// Only facts of the channel with this name.
    #[must_use]
    pub fn channel(self, name: &str) -> Self {
        Self { channel: Some(name.into()), ..self }
    }

    /// Only facts of this connection.
    #[must_use]
    pub fn socket(self, socket: SocketId) -> Self {
        Self { socket: Some(socket), ..self }
    }

    /// With payloads, if `payloads`: the data of events, the texts of messages, the bodies of webhooks.
    #[must_use]
    pub fn payloads(self, payloads: bool) -> Self {
        Self { payloads, ..self }
    }

    pub(super) fn passes(&self, fact: &Fact<'_>) -> bool {
        self.kinds.has(fact.kind())
            && self.app.as_deref().is_none_or(|app| is(app, fact.app(), fact))
            && self.channel.as_deref().is_none_or(|channel| is(channel, fact.channel(), fact))
            && self.socket.is_none_or(|socket| fact.socket() == Some(socket))
    }
}

/// Whether a fact has this name. A rejection has only the beginning of a long one.
fn is(wanted: &str, name: Option<&str>, fact: &Fact<'_>) -> bool {
    let is_cut = matches!(fact, Fact::Rejected { .. });
    name == Some(if is_cut { Example::shown(wanted) } else { wanted })
}
