//! Wires: codecs between messages and bytes.
//!
//! [`pusher`] is the JSON of Pusher's clients, [`websocket`] the framing of RFC 6455, [`deflate`] its compression. [`Form`]
//! says which of them make the bytes of a connection. Each codec is pure, so it has table tests and a fuzz target.

pub mod deflate;
mod form;
pub mod pusher;
pub mod websocket;

use bytes::Bytes;

pub use form::Form;

/// An encoded message of the server, which any number of connections share. It holds the text of the message within a
/// complete WebSocket frame, because nearly every connection gets it in this form; [`Form`] makes the others of the text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame(Bytes);

impl Frame {
    /// Encodes a message that is JSON already, for instance one from another node.
    #[must_use]
    pub fn from_text(json: &str) -> Self {
        websocket::text_frame(|out| out.extend_from_slice(json.as_bytes()))
    }

    /// The WebSocket frame, which is [`Form::Frame`]. Cloning shares the bytes.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The text of the message: what the frame carries, and what every other form is made of.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(websocket::payload(&self.0)).unwrap_or_default()
    }
}
