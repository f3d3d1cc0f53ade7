//! The forms of a message: which bytes it becomes on a connection.
//!
//! A [`Frame`] is what is made, queued, cached and shared: the text of a message, in the WebSocket frame that nearly
//! every client gets. Each other form is made of that text when the first connection needs it, so a form that nobody
//! has costs nothing. Between nodes only the text travels.

use std::borrow::Cow;

use bytes::Bytes;

use super::{Frame, deflate};

/// The form in which messages are written to a connection. It is chosen when the connection is made, and stays.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Form {
    /// A WebSocket text frame.
    #[default]
    Frame,
    /// A WebSocket text frame that is compressed, if its message is long enough and gets smaller. permessage-deflate is
    /// negotiated for both directions, so the client may compress too.
    DeflatedFrame {
        /// Shorter messages are not compressed.
        bytes_min: u32,
    },
    /// The text and a line feed, for HTTP transports such as XHR streaming and polling. Line breaks of the text itself,
    /// which JSON has between tokens only, become spaces.
    Text,
}

impl Form {
    /// Whether some of `frames` have other bytes in this form. If not, the frames can be written as they are.
    #[must_use]
    pub fn differs<'f>(self, frames: impl IntoIterator<Item = &'f Frame>) -> bool {
        match self {
            Self::Frame => false,
            Self::DeflatedFrame { bytes_min } => deflate::is_worthwhile(frames, bytes_min),
            Self::Text => true,
        }
    }

    /// Appends the message of `frame` in this form.
    pub fn append(self, out: &mut Vec<u8>, frame: &Frame) {
        match self {
            Self::Frame => out.extend_from_slice(frame.bytes()),
            Self::DeflatedFrame { bytes_min } => deflate::push(out, frame, bytes_min),
            Self::Text => push_line(out, frame.text()),
        }
    }

    /// The bytes of a message that goes to one connection only. It is not compressed: that pays for a message that is
    /// compressed once for many connections.
    #[must_use]
    pub fn of_one(self, frame: &Frame) -> Cow<'_, Bytes> {
        match self {
            Self::Frame | Self::DeflatedFrame { .. } => Cow::Borrowed(frame.bytes()),
            Self::Text => {
                let mut out = Vec::with_capacity(frame.text().len() + 1);
                self.append(&mut out, frame);
                Cow::Owned(out.into())
            }
        }
    }

    /// Whether the form has the control frames of WebSocket: Ping, Pong and Close. Without them none is written: a client
    /// is heard by its requests, and its transport ends the response to close it.
    #[must_use]
    pub const fn has_control_frames(self) -> bool {
        match self {
            Self::Frame | Self::DeflatedFrame { .. } => true,
            Self::Text => false,
        }
    }

    /// Whether permessage-deflate was negotiated.
    #[must_use]
    pub const fn is_deflated(self) -> bool {
        match self {
            Self::DeflatedFrame { .. } => true,
            Self::Frame | Self::Text => false,
        }
    }
}

/// Appends `text` as one line.
fn push_line(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::message::ServerMessage;
    use crate::protocol::wire::pusher;
    use crate::protocol::{ChannelName, NameRules};

    const DEFLATED: Form = Form::DeflatedFrame { bytes_min: 100 };

    fn appended(form: Form, text: &str) -> Vec<u8> {
        let mut out = b"before".to_vec();
        form.append(&mut out, &Frame::from_text(text));
        out.strip_prefix(b"before").expect("what was there stays").to_vec()
    }

    #[test]
    fn a_message_has_these_bytes_in_each_form() {
        let long = r#"{"event":"e"}"#.repeat(20);
        let table: [(Form, &str, &[u8]); _] = [
            (Form::Frame, "", b"\x81\x00"),
            (Form::Frame, "{}", b"\x81\x02{}"),
            (Form::Frame, "{\n}", b"\x81\x03{\n}"),
            (DEFLATED, "{}", b"\x81\x02{}"),
            (Form::Text, "", b"\n"),
            (Form::Text, "{}", b"{}\n"),
            (Form::Text, r#"{"a":"é\n"}"#, "{\"a\":\"é\\n\"}\n".as_bytes()),
            (Form::Text, "{\n\"a\":\r\n1}", b"{ \"a\":  1}\n"),
        ];
        for (form, text, bytes) in table {
            assert_eq!(appended(form, text), bytes, "{form:?} of {text:?}");
        }
        assert_eq!(appended(DEFLATED, &long)[0], 0xc1, "compressed");
        assert!(appended(DEFLATED, &long).len() < long.len());
    }

    #[test]
    fn a_message_for_one_connection_has_the_bytes_of_its_form_and_is_not_compressed() {
        let frame = Frame::from_text(&r#"{"event":"e"}"#.repeat(20));
        for form in [Form::Frame, DEFLATED] {
            assert_eq!(form.of_one(&frame).as_ptr(), frame.bytes().as_ptr(), "the same bytes");
        }
        assert_eq!(*Form::Text.of_one(&frame), format!("{}\n", frame.text()));
    }

    #[test]
    fn frames_are_written_as_they_are_where_the_form_changes_none_of_them() {
        let (short, long) = (Frame::from_text("{}"), Frame::from_text(&"x".repeat(100)));
        let table = [(Form::Frame, [false, false]), (DEFLATED, [false, true]), (Form::Text, [true, true])];
        for (form, expected) in table {
            let differs = [form.differs([&short]), form.differs([&short, &long])];
            assert_eq!(differs, expected, "{form:?}");
        }
    }

    #[test]
    fn a_client_event_with_line_breaks_is_one_line_of_the_same_json() {
        let channel = ChannelName::parse("private-x", &NameRules::default()).unwrap();
        let data = "{\r\n  \"a\": \"1\\n2\",\n  \"b\": [\n1\n]\n}";
        let event = ServerMessage::Event { channel: &channel, event: "client-e", data, user: None };
        let frame = pusher::encode(&event);
        let line = Form::Text.of_one(&frame).into_owned();
        let text = std::str::from_utf8(&line).unwrap().strip_suffix('\n').unwrap();
        assert!(!text.contains(['\n', '\r']), "{text:?}");
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(json(text), json(frame.text()));
    }
}
