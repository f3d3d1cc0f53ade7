//! Wires: pairs of functions between messages and bytes.
//!
//! [`websocket`] is RFC 6455's framing, [`deflate`] what travels in it compressed, [`pusher`] the JSON that Pusher's
//! clients speak inside of it. A wire is a
//! codec and nothing else, so that every one is a table test and a fuzz target.

pub mod deflate;
pub mod pusher;
pub mod websocket;

use bytes::Bytes;

/// A message of the server, encoded and ready to write to any number of WebSocket connections: a complete
/// frame with its header.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame(Bytes);

impl Frame {
    /// The bytes as they go onto the wire. Cloning shares them.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The message inside of the frame, for logs and tests.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(websocket::payload(&self.0)).unwrap_or_default()
    }
}
