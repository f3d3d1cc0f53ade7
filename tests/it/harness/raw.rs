//! WebSocket frames by hand, for bytes that no client library would send.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::http::find;
use super::websocket::data_of;
use super::{Stream, in_time};

/// Any mask other than zero.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A masked frame; `first` is FIN, the reserved bits and the opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame_head(first, payload.len() as u64);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A masked text frame.
pub fn text_frame(text: &str) -> Vec<u8> {
    frame(0x81, text.as_bytes())
}

/// The head of a masked frame, up to its payload.
pub fn frame_head(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = length_bytes(first, length);
    bytes[1] |= 0x80;
    bytes.extend(MASK);
    bytes
}

/// A frame without a mask, which only a server may send.
pub fn unmasked_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [length_bytes(first, payload.len() as u64), payload.to_vec()].concat()
}

fn length_bytes(first: u8, length: u64) -> Vec<u8> {
    match length {
        0..126 => vec![first, length as u8],
        126..65_536 => [&[first, 126], &(length as u16).to_be_bytes()[..]].concat(),
        65_536.. => [&[first, 127], &length.to_be_bytes()[..]].concat(),
    }
}

/// A frame of the server.
#[derive(Debug, Eq, PartialEq)]
pub struct Frame {
    /// FIN, the reserved bits and the opcode.
    pub first: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The text of an unfragmented text frame.
    pub fn text(&self) -> &str {
        assert_eq!(self.first, 0x81, "{self:?} is a text frame");
        std::str::from_utf8(&self.payload).unwrap()
    }

    /// The code and the reason of a Close frame.
    pub fn close(&self) -> (Option<u16>, &str) {
        assert_eq!(self.first, 0x88, "{self:?} is a Close frame");
        match &self.payload[..] {
            [] => (None, ""),
            [high, low, reason @ ..] => {
                (Some(u16::from_be_bytes([*high, *low])), std::str::from_utf8(reason).unwrap())
            }
            [_] => panic!("a Close frame with half a code"),
        }
    }
}

/// A stream on which WebSocket frames are read and bytes are written.
pub struct RawSocket<S = TcpStream> {
    stream: S,
    buffer: Vec<u8>,
    /// The socket id, once it is established.
    pub id: String,
}

impl RawSocket<TcpStream> {
    /// The request that asks for a WebSocket at `target`, with the key of RFC 6455 §1.3.
    pub fn upgrade_request(target: &str) -> String {
        Self::upgrade_request_with(target, &[])
    }

    fn upgrade_request_with(target: &str, headers: &[(&str, &str)]) -> String {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!(
            "GET {target} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
        )
    }

    /// Resets the connection, as the kernel of a crashed client does.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Discards everything received so far, without waiting for more.
    #[allow(dead_code, reason = "tests/hostile.rs needs it")]
    pub fn skip(&mut self) {
        self.buffer.clear();
        let mut bytes = [0; 16 * 1024];
        while matches!(self.stream.try_read(&mut bytes), Ok(1..)) {}
    }
}

impl<S: Stream> RawSocket<S> {
    pub fn over(stream: S) -> Self {
        Self::after(stream, Vec::new())
    }

    /// A stream whose first bytes, `buffer`, were read before.
    pub(super) fn after(stream: S, buffer: Vec<u8>) -> Self {
        Self { stream, buffer, id: String::new() }
    }

    /// Upgrades and reads the first frame, which must be `pusher:connection_established`.
    pub async fn upgrade(&mut self, target: &str) {
        self.upgrade_with(target, &[]).await;
    }

    /// As [`RawSocket::upgrade`], with more headers; returns the head of the response.
    pub async fn upgrade_with(&mut self, target: &str, headers: &[(&str, &str)]) -> String {
        self.write(RawSocket::upgrade_request_with(target, headers).as_bytes()).await;
        self.upgraded().await
    }

    /// Reads the response to an upgrade and the first frame; returns the head of the response.
    pub async fn upgraded(&mut self) -> String {
        let head = self.read_head().await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let first = self.next().await;
        assert!(first.text().contains("pusher:connection_established"), "{first:?}");
        let frame = serde_json::from_str(first.text()).unwrap();
        self.id = data_of(&frame)["socket_id"].as_str().unwrap().to_owned();
        head
    }

    /// The head of an HTTP response.
    pub async fn read_head(&mut self) -> String {
        in_time("the head of an HTTP answer", async {
            loop {
                if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                    let head = self.buffer.drain(..at + 4).collect();
                    return String::from_utf8(head).unwrap();
                }
                assert!(self.read_more().await, "the server hung up before it answered");
            }
        })
        .await
    }

    /// Writes bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.try_write(bytes).await.unwrap();
    }

    /// Writes bytes to a server that may have disconnected.
    pub async fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        in_time("the server takes a frame", self.stream.write_all(bytes)).await
    }

    /// Sends a text message.
    pub async fn send(&mut self, text: &str) {
        self.write(&text_frame(text)).await;
    }

    /// The next frame.
    pub async fn next(&mut self) -> Frame {
        self.next_or_end().await.expect("a frame, not the end of the connection")
    }

    /// The next frame, or `None` at the end of the connection.
    pub async fn next_or_end(&mut self) -> Option<Frame> {
        in_time("a frame", async {
            loop {
                if let Some(frame) = self.take_frame() {
                    return Some(frame);
                }
                if !self.read_more().await {
                    return None;
                }
            }
        })
        .await
    }

    /// Shows that the connection works and that no other frame came before.
    pub async fn fence(&mut self) {
        self.send(r#"{"event":"pusher:ping","data":{}}"#).await;
        assert_eq!(self.next().await.text(), r#"{"event":"pusher:pong","data":"{}"}"#);
    }

    /// The next frame must be a Close with this code, and the end of the connection must follow.
    pub async fn expect_close(&mut self, code: u16) {
        let frame = self.next().await;
        assert_eq!(frame.close().0, Some(code));
        self.ends().await;
    }

    /// Waits for the end of the connection. No byte may be left.
    pub async fn ends(&mut self) {
        assert_eq!(self.next_or_end().await, None);
        assert_eq!(self.buffer, b"");
    }

    /// The underlying stream.
    pub const fn stream(&self) -> &S {
        &self.stream
    }

    /// The underlying stream.
    #[allow(dead_code, reason = "of the binaries with this harness, some need it")]
    pub const fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    fn take_frame(&mut self) -> Option<Frame> {
        let (first, second) = (*self.buffer.first()?, *self.buffer.get(1)?);
        assert!(second < 0x80, "a server masks nothing");
        let (head_len, payload_len) = match second {
            126 => (4, u16::from_be_bytes(self.buffer.get(2..4)?.try_into().unwrap()) as usize),
            127 => (10, u64::from_be_bytes(self.buffer.get(2..10)?.try_into().unwrap()) as usize),
            short => (2, usize::from(short)),
        };
        if self.buffer.len() < head_len + payload_len {
            return None;
        }
        let payload = self.buffer[head_len..head_len + payload_len].to_vec();
        self.buffer.drain(..head_len + payload_len);
        Some(Frame { first, payload })
    }

    /// Reads more; `false` at the end.
    async fn read_more(&mut self) -> bool {
        self.buffer.reserve(16 * 1024);
        self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) > 0
    }
}
