//! Detects a protocol that the port does not support by the first bytes of a connection, inside TLS too, and replies in
//! that protocol if it has an error message.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::stream::{LINGER, Stream};
use crate::rejections::Mistake;

/// How many of the first bytes are examined.
pub(super) const PEEK_BYTES: usize = 16;

/// The first byte of a TLS connection: a handshake record.
const HANDSHAKE: u8 = 22;

/// A fatal alert in plain text: this port supports no version of TLS (`protocol_version`). Clients show it as an alert of
/// the server, not as a malformed record. Source: RFC 8446 §6.2.
const TLS_ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 70];

/// The first frames of an HTTP/2 server: empty settings, and the error `HTTP_1_1_REQUIRED`. Source: RFC 9113 §3.4, §6.8,
/// §7.
const HTTP_1_1_REQUIRED: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x28\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0dthis port speaks HTTP/1.1 only\r\n";

const NO_PROXY_HEADER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\
    Content-Type: text/plain; charset=utf-8\r\nContent-Length: 118\r\n\r\n\
    This server does not expect a header of the PROXY protocol: set server.proxy_protocol, or switch it off at the proxy\r\n";

const PROXY_HEADER_FIRST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\
    Content-Type: text/plain; charset=utf-8\r\nContent-Length: 115\r\n\r\n\
    This server expects a header of the PROXY protocol first: switch it on at the proxy, or server.proxy_protocol off\r\n";

/// A protocol other than HTTP/1 that a connection may begin with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Protocol {
    Tls,
    Http2,
    Proxy,
}

impl Protocol {
    /// The protocol that begins with `first`. `None`: HTTP/1, or unknown.
    pub(super) fn of(first: &[u8]) -> Option<Self> {
        match first {
            [HANDSHAKE, ..] => Some(Self::Tls),
            _ if first.starts_with(b"PRI * HTTP/2.0") => Some(Self::Http2),
            _ if first.starts_with(b"PROXY ") || first.starts_with(b"\r\n\r\n\0\r\nQUIT\n") => {
                Some(Self::Proxy)
            }
            _ => None,
        }
    }

    /// The mistake of a client that speaks it where HTTP/1 is expected.
    pub(super) const fn mistake(self) -> Mistake {
        match self {
            Self::Tls => Mistake::TlsOnPlainPort,
            Self::Http2 => Mistake::Http2,
            Self::Proxy => Mistake::ProxyHeader,
        }
    }

    /// The error message of the protocol.
    const fn reply_bytes(self) -> &'static [u8] {
        match self {
            Self::Tls => TLS_ALERT,
            Self::Http2 => HTTP_1_1_REQUIRED,
            Self::Proxy => NO_PROXY_HEADER,
        }
    }

    /// The reply that rejects the client of `stream`.
    pub(super) const fn reject(self, stream: Stream) -> ProtocolReply {
        ProtocolReply { stream, bytes: self.reply_bytes() }
    }
}

/// The reply to a client whose connection is closed after it.
#[derive(Debug)]
pub(super) struct ProtocolReply {
    stream: Stream,
    bytes: &'static [u8],
}

impl ProtocolReply {
    /// To a client that should have begun with a PROXY header.
    pub(super) const fn without_proxy_header(stream: Stream) -> Self {
        Self { stream, bytes: PROXY_HEADER_FIRST }
    }

    /// Sends the reply, then discards further input for a short time: closing a connection with unread bytes resets it,
    /// and the reply would be lost.
    pub(super) async fn send(mut self) {
        let reply = async {
            self.stream.write_all(self.bytes).await?;
            self.stream.shutdown().await?;
            let mut rest = [0; 512];
            while self.stream.read(&mut rest).await? > 0 {}
            std::io::Result::Ok(())
        };
        // The connection closes, whatever the result.
        let _ = timeout(LINGER, reply).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_protocols_are_detected_by_their_first_bytes() {
        for (first, protocol) in [
            (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], Some(Protocol::Tls)),
            (b"\x16", Some(Protocol::Tls)),
            (b"PRI * HTTP/2.0\r\n", Some(Protocol::Http2)),
            (b"PROXY TCP4 192.0", Some(Protocol::Proxy)),
            (b"PROXY UNKNOWN\r\n", Some(Protocol::Proxy)),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", Some(Protocol::Proxy)),
            (b"GET / HTTP/1.1\r\n", None),
            (b"PROPFIND / HTTP/", None),
            (b"\r\n\r\nGET / HTTP", None),
            (b"P", None),
            (b"\0", None),
        ] {
            assert_eq!(Protocol::of(first), protocol, "{first:?}");
        }
    }

    #[test]
    fn replies_have_the_length_that_they_announce() {
        for answer in [NO_PROXY_HEADER, PROXY_HEADER_FIRST] {
            let (head, body) = std::str::from_utf8(answer).unwrap().split_once("\r\n\r\n").unwrap();
            assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{head}: {}", body.len());
        }
        let goaway = &HTTP_1_1_REQUIRED[9..];
        assert_eq!(goaway.len() - 9, usize::from(goaway[2]), "{}", goaway.len() - 9);
        assert_eq!(TLS_ALERT.len(), 5 + usize::from(TLS_ALERT[4]));
    }
}
