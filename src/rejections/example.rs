//! An example of a rejection, for its line of the log.

use std::borrow::Cow;
use std::net::IpAddr;

use crate::protocol::SocketId;

/// The longest text in an example, in bytes.
const TEXT_BYTES_MAX: usize = 120;

/// The longest reason in an example, in bytes. The server writes it, and it may contain names.
const REASON_BYTES_MAX: usize = 300;

/// How much of a key is shown, in bytes: enough to identify it, and not all, as it may be a secret.
const KEY_BYTES_MAX: usize = 8;

/// The facts of one rejection. Each is optional, and every text is bounded.
#[derive(Clone, Debug, Default)]
pub struct Example<'e> {
    /// The address of the peer.
    pub address: Option<IpAddr>,
    /// The connection.
    pub socket: Option<SocketId>,
    /// The value of the limit, in its [`Limit::unit`](crate::limits::Limit::unit).
    pub value: Option<u64>,
    texts: [Option<Cow<'e, str>>; Field::COUNT],
}

/// A text of an [`Example`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Field {
    /// See [`Example::app`].
    App,
    /// See [`Example::key`].
    Key,
    /// See [`Example::path`].
    Path,
    /// See [`Example::channel`].
    Channel,
    /// See [`Example::origin`].
    Origin,
    /// See [`Example::library`].
    Library,
    /// See [`Example::reason`].
    Reason,
}

impl Field {
    const COUNT: usize = Self::Reason as usize + 1;

    const fn bytes_max(self) -> usize {
        match self {
            Self::Key => KEY_BYTES_MAX,
            Self::Reason => REASON_BYTES_MAX,
            Self::App | Self::Path | Self::Channel | Self::Origin | Self::Library => TEXT_BYTES_MAX,
        }
    }
}

impl<'e> Example<'e> {
    /// A rejection of a peer at `address`.
    #[must_use]
    pub fn from(address: IpAddr) -> Self {
        Self { address: Some(address), ..Self::default() }
    }

    /// The address of the peer.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        Self { address: Some(address), ..self }
    }

    /// The socket id of the connection, which identifies its other lines in the log.
    #[must_use]
    pub fn socket(self, socket: SocketId) -> Self {
        Self { socket: Some(socket), ..self }
    }

    /// The id of the app, or what was given as one.
    #[must_use]
    pub fn app(self, id: impl Into<Cow<'e, str>>) -> Self {
        self.text(Field::App, id.into())
    }

    /// The given key, of which the first characters are shown.
    #[must_use]
    pub fn key(self, key: impl Into<Cow<'e, str>>) -> Self {
        self.text(Field::Key, key.into())
    }

    /// The path of the request, without its query.
    #[must_use]
    pub fn path(self, path: impl Into<Cow<'e, str>>) -> Self {
        self.text(Field::Path, path.into())
    }

    /// The requested channel.
    #[must_use]
    pub fn channel(self, channel: impl Into<Cow<'e, str>>) -> Self {
        self.text(Field::Channel, channel.into())
    }

    /// The origin of the browser's page.
    #[must_use]
    pub fn origin(self, origin: impl Into<Cow<'e, str>>) -> Self {
        self.text(Field::Origin, origin.into())
    }

    /// The library of the client, with its version.
    #[must_use]
    pub fn library(self, library: impl Into<Cow<'e, str>>) -> Self {
        self.text(Field::Library, library.into())
    }

    /// The reason, as the peer received it.
    #[must_use]
    pub fn reason(self, reason: impl Into<Cow<'e, str>>) -> Self {
        self.text(Field::Reason, reason.into())
    }

    /// The value of the limit, in its [`Limit::unit`](crate::limits::Limit::unit).
    #[must_use]
    pub fn value(self, value: impl Into<Option<u64>>) -> Self {
        Self { value: value.into().or(self.value), ..self }
    }

    fn text(mut self, which: Field, text: Cow<'e, str>) -> Self {
        let end = text.floor_char_boundary(which.bytes_max());
        self.texts[which as usize] = Some(match text {
            Cow::Borrowed(text) => Cow::Borrowed(&text[..end]),
            Cow::Owned(mut text) => {
                text.truncate(end);
                Cow::Owned(text)
            }
        });
        self
    }

    /// One of its texts, as far as it is shown.
    #[must_use]
    pub fn get(&self, which: Field) -> Option<&str> {
        self.texts[which as usize].as_deref()
    }

    /// As much of the name of an app or a channel as an example shows.
    #[must_use]
    pub fn shown(name: &str) -> &str {
        &name[..name.floor_char_boundary(TEXT_BYTES_MAX)]
    }

    /// An example that outlives the rejection.
    #[must_use]
    pub fn into_owned(self) -> Example<'static> {
        let texts = self.texts.map(|text| text.map(|text| Cow::Owned(text.into_owned())));
        Example { address: self.address, socket: self.socket, value: self.value, texts }
    }
}
