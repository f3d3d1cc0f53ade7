//! Wires: codecs between messages and bytes.
//!
//! [`websocket`] is the framing of RFC 6455, [`deflate`] its compression, [`pusher`] the JSON of Pusher's clients. Each
//! codec is pure, so it has table tests and a fuzz target.

pub mod deflate;
pub mod pusher;
pub mod websocket;

use bytes::Bytes;

/// An encoded message of the server: a complete WebSocket frame that can be written to any number of connections.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame(Bytes);

impl Frame {
    /// The bytes on the wire. Cloning shares them.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The payload of the frame.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(websocket::payload(&self.0)).unwrap_or_default()
    }
}
