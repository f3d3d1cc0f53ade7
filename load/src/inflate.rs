//! The receiving half of permessage-deflate without context takeover (RFC 7692).

use flate2::{Decompress, FlushDecompress, Status};

pub const OFFER: &str =
    "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n";

/// Every compressed message ends with these bytes, which are not sent.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
const MAX: usize = 64 << 20;

#[derive(Default, Clone)]
struct Known {
    cipher: Vec<u8>,
    plain: Vec<u8>,
}

/// A server compresses a broadcast once and sends the same bytes to everybody: what was inflated for one
/// connection is kept for the others, found by its bytes, compared whole.
pub struct Inflater {
    z: Decompress,
    known: Vec<Known>,
    input: Vec<u8>,
    pub inflated: u64,
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Inflater {
    pub fn new() -> Inflater {
        Inflater { z: Decompress::new(false), known: vec![Known::default(); 1024], input: Vec::new(), inflated: 0 }
    }

    fn place(b: &[u8]) -> usize {
        let mut h = b.len() as u64;
        for c in b.rchunks(8).take(4) {
            for x in c {
                h = (h ^ u64::from(*x)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        (h >> 20) as usize & 1023
    }

    /// The inflated message; None if it is not one.
    pub fn inflate(&mut self, b: &[u8]) -> Option<Vec<u8>> {
        let at = Self::place(b);
        if self.known[at].cipher == b && !b.is_empty() {
            return Some(std::mem::take(&mut self.known[at].plain));
        }
        self.inflated += 1;
        self.input.clear();
        self.input.extend_from_slice(b);
        self.input.extend_from_slice(&TAIL);
        self.z.reset(false);
        let mut out = Vec::with_capacity((b.len() * 8).max(256));
        loop {
            let before = (self.z.total_in() as usize, out.len());
            match self.z.decompress_vec(&self.input[before.0..], &mut out, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) | Err(_) => return None,
                Ok(_) => {}
            }
            let now = (self.z.total_in() as usize, out.len());
            if out.len() == out.capacity() {
                if out.len() > MAX {
                    return None;
                }
                out.reserve(out.capacity());
            } else if now.0 == self.input.len() {
                return Some(out);
            } else if now == before {
                return None;
            }
        }
    }

    /// Takes back what `inflate` gave for `b`.
    pub fn keep(&mut self, b: &[u8], plain: Vec<u8>) {
        let k = &mut self.known[Self::place(b)];
        if k.cipher != b {
            k.cipher.clear();
            k.cipher.extend_from_slice(b);
        }
        k.plain = plain;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compress, Compression, FlushCompress};

    fn deflate(plain: &[u8]) -> Vec<u8> {
        let mut z = Compress::new(Compression::default(), false);
        let mut out = Vec::with_capacity(plain.len() + 64);
        z.compress_vec(plain, &mut out, FlushCompress::Sync).unwrap();
        assert!(out.ends_with(&TAIL));
        out.truncate(out.len() - 4);
        out
    }

    #[test]
    fn messages_come_back_also_from_what_is_kept() {
        let mut x = Inflater::new();
        for size in [0usize, 1, 100, 5000, 300_000] {
            let plain: Vec<u8> = (0..size).map(|i| b"abcdefghij"[i * i % 10]).collect();
            let b = deflate(&plain);
            for _ in 0..3 {
                let got = x.inflate(&b).unwrap_or_else(|| panic!("{size}"));
                assert_eq!(got, plain);
                x.keep(&b, got);
            }
        }
        assert_eq!(x.inflated, 5);
    }

    #[test]
    fn rubbish_is_refused() {
        let mut x = Inflater::new();
        assert!(x.inflate(b"\xff\xff\xff\xff").is_none());
        let b = deflate(b"hello hello hello");
        assert_eq!(x.inflate(&b).unwrap(), b"hello hello hello");
    }
}
