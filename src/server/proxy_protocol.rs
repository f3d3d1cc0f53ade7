//! The PROXY protocol: the header in which a load balancer of TCP connections names the client.
//!
//! Source: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, versions 1 and 2.

use std::io;
use std::net::SocketAddr;

use proxy_header::{Error, ParseConfig, ProxyHeader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The longest header that is read. One of version 1 has 107 bytes, one of version 2 at most 232 and the extensions of the
/// load balancer.
const HEADER_BYTES_MAX: usize = 1024;

/// The prefix of a header of version 2, which ends with its length.
const V2_PREFIX_BYTES: usize = 16;

/// The facts in a header.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct ProxiedConnection {
    /// The client. `None`: the load balancer itself, or unknown.
    pub(super) client: Option<SocketAddr>,
    /// Whether the client speaks TLS to the load balancer (`PP2_TYPE_SSL`, only in version 2).
    pub(super) over_tls: bool,
}

/// Reads the header of a connection, and no byte beyond it.
///
/// # Errors
/// `InvalidData` for an invalid header, or the error of the system.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<ProxiedConnection> {
    let mut header = Vec::with_capacity(128);
    let mut next = [0; HEADER_BYTES_MAX];
    loop {
        let capacity = HEADER_BYTES_MAX - header.len();
        if capacity == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let seen = stream.peek(&mut next[..capacity]).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let taken = header_bytes_in(&header, &next[..seen]);
        stream.read_exact(&mut next[..taken]).await?;
        header.extend_from_slice(&next[..taken]);
        match ProxyHeader::parse(&header, ParseConfig::default()) {
            Ok((header, _)) => {
                let client = header.proxied_address().map(|address| address.source);
                let over_tls = header.ssl().is_some_and(|tls| tls.client_ssl());
                return Ok(ProxiedConnection { client, over_tls });
            }
            Err(Error::BufferTooShort) => {}
            Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// How many bytes of `next`, at least one, belong to the header that begins with `header`, as far as is known yet.
fn header_bytes_in(header: &[u8], next: &[u8]) -> usize {
    let is_text = header.first().or(next.first()) == Some(&b'P');
    if is_text {
        return memchr::memchr(b'\n', next).map_or(next.len(), |at| at + 1);
    }
    let byte = |at: usize| header.get(at).or_else(|| next.get(at.checked_sub(header.len())?)).copied();
    let length = match (byte(V2_PREFIX_BYTES - 2), byte(V2_PREFIX_BYTES - 1)) {
        (Some(high), Some(low)) => V2_PREFIX_BYTES + usize::from(u16::from_be_bytes([high, low])),
        _ => V2_PREFIX_BYTES,
    };
    length.saturating_sub(header.len()).clamp(1, next.len())
}

#[cfg(test)]
mod tests {
    use proxy_header::{ProxiedAddress, SslInfo, Tlv};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    const V1: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 6001\r\n";

    fn v2(source: &str) -> Vec<u8> {
        let address = ProxiedAddress::stream(source.parse().unwrap(), source.parse().unwrap());
        let mut bytes = Vec::new();
        ProxyHeader::with_address(address).encode_v2(&mut bytes).unwrap();
        bytes
    }

    /// The result of reading `bytes`, sent in chunks of `step`, and the bytes that are left.
    async fn read_of(bytes: &[u8], step: usize) -> (io::Result<ProxiedConnection>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let bytes = bytes.to_vec();
        let writing = tokio::spawn(async move {
            for chunk in bytes.chunks(step) {
                // The reader may close the connection early.
                if client.write_all(chunk).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        });
        let read = read(&mut server).await;
        writing.await.unwrap();
        let mut rest = Vec::new();
        let _ = server.read_to_end(&mut rest).await;
        (read, rest)
    }

    #[tokio::test]
    async fn a_header_of_either_version_is_read_and_no_byte_beyond_it() {
        let v6 = v2("[2400::7]:4711");
        let local = [&b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"[..]].concat();
        for (header, address) in [
            (V1, Some("192.0.2.1:4711")),
            (b"PROXY TCP6 2400::7 2400::8 4711 6001\r\n", Some("[2400::7]:4711")),
            (b"PROXY UNKNOWN\r\n", None),
            (&v2("192.0.2.1:4711"), Some("192.0.2.1:4711")),
            (&v6, Some("[2400::7]:4711")),
            (&local, None),
        ] {
            for step in [1, 7, 1000] {
                let (read, rest) = read_of(&[header, b"GET / HTTP/1.1\r\n"].concat(), step).await;
                let client = address.map(|address| address.parse().unwrap());
                assert_eq!(read.unwrap(), ProxiedConnection { client, over_tls: false }, "{header:?}");
                assert_eq!(rest, b"GET / HTTP/1.1\r\n", "{header:?}, {step}");
            }
        }
    }

    #[tokio::test]
    async fn version_2_says_whether_the_client_uses_tls() {
        let address =
            || ProxiedAddress::stream("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
        for over_tls in [true, false] {
            let mut header = ProxyHeader::with_address(address());
            let mut tls = SslInfo::new(over_tls, false, false, 0);
            tls.append_tlv(Tlv::SslVersion("TLSv1.3".into()));
            header.append_tlv(Tlv::Authority("ws.example.com".into()));
            header.append_tlv(Tlv::Ssl(tls));
            let mut bytes = Vec::new();
            header.encode_v2(&mut bytes).unwrap();
            let (read, rest) = read_of(&[&bytes[..], b"GET"].concat(), 9).await;
            assert_eq!(read.unwrap().over_tls, over_tls);
            assert_eq!(rest, b"GET");
        }
    }

    #[tokio::test]
    async fn malformed_tlvs_after_the_address_are_ignored() {
        for rest in [&b"\x20"[..], &[0x20, 0, 1, 7], &[0x20, 0, 200, 1], &[0xff; 20]] {
            let mut bytes = v2("192.0.2.1:4711");
            let length = bytes.len() - V2_PREFIX_BYTES + rest.len();
            bytes[14..16].copy_from_slice(&(length as u16).to_be_bytes());
            bytes.extend_from_slice(rest);
            let (read, left) = read_of(&[&bytes[..], b"GET"].concat(), 1000).await;
            let client = Some("192.0.2.1:4711".parse().unwrap());
            assert_eq!(read.unwrap(), ProxiedConnection { client, over_tls: false }, "{rest:?}");
            assert_eq!(left, b"GET");
        }
    }

    #[tokio::test]
    async fn invalid_headers_are_rejected() {
        let mut long = v2("192.0.2.1:4711");
        long[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        long.extend([0; 2000]);
        let endless = [&b"PROXY UNKNOWN "[..], &[b'x'; 2000]].concat();
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"[..],
            b"POST / HTTP/1.1\r\nHost: test\r\n\r\n",
            b"PROXY TCP4 nobody 198.51.100.1 4711 6001\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 4711\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03xxxxxxxxxxxxxxx",
            b"PROX",
            b"",
            &endless,
            &long,
        ] {
            assert!(read_of(bytes, 1000).await.0.is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
