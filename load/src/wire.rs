//! RFC 6455 framing, the timing marker inside payloads, and JSON escaping.

pub const OP_CONT: u8 = 0;
pub const OP_TEXT: u8 = 1;
pub const OP_BIN: u8 = 2;
pub const OP_CLOSE: u8 = 8;
pub const OP_PING: u8 = 9;
pub const OP_PONG: u8 = 10;

pub struct Frame {
    pub fin: bool,
    /// Compressed (permessage-deflate).
    pub rsv1: bool,
    pub op: u8,
    pub mask: Option<[u8; 4]>,
    /// Offset of the payload in the buffer, and its length.
    pub at: usize,
    pub len: usize,
}

/// Parses one frame header at the start of `b`; None while incomplete (header or
/// payload). A frame occupies `at + len` bytes.
#[inline]
pub fn frame(b: &[u8]) -> Option<Frame> {
    if b.len() < 2 {
        return None;
    }
    let (l, mut at) = match b[1] & 0x7f {
        126 => {
            if b.len() < 4 {
                return None;
            }
            (u16::from_be_bytes([b[2], b[3]]) as usize, 4)
        }
        127 => {
            if b.len() < 10 {
                return None;
            }
            (u64::from_be_bytes(b[2..10].try_into().unwrap()) as usize, 10)
        }
        n => (n as usize, 2),
    };
    let mut mask = None;
    if b[1] & 0x80 != 0 {
        if b.len() < at + 4 {
            return None;
        }
        mask = Some(b[at..at + 4].try_into().unwrap());
        at += 4;
    }
    if b.len() - at < l {
        return None;
    }
    Some(Frame { fin: b[0] & 0x80 != 0, rsv1: b[0] & 0x40 != 0, op: b[0] & 0x0f, mask, at, len: l })
}

/// Appends a frame header for a payload of `len` bytes.
pub fn put_header(out: &mut Vec<u8>, op: u8, len: usize, mask: Option<[u8; 4]>) {
    out.push(0x80 | op);
    let m = if mask.is_some() { 0x80 } else { 0 };
    if len < 126 {
        out.push(m | len as u8);
    } else if len < 65536 {
        out.push(m | 126);
        out.extend_from_slice(&(len as u16).to_be_bytes());
    } else {
        out.push(m | 127);
        out.extend_from_slice(&(len as u64).to_be_bytes());
    }
    if let Some(k) = mask {
        out.extend_from_slice(&k);
    }
}

pub fn apply_mask(b: &mut [u8], k: [u8; 4]) {
    let k8 = u64::from_ne_bytes([k[0], k[1], k[2], k[3], k[0], k[1], k[2], k[3]]);
    let mut it = b.chunks_exact_mut(8);
    for c in &mut it {
        let v = u64::from_ne_bytes((&*c).try_into().unwrap()) ^ k8;
        c.copy_from_slice(&v.to_ne_bytes());
    }
    for (i, x) in it.into_remainder().iter_mut().enumerate() {
        *x ^= k[i & 3];
    }
}

/// The marker: `@@` + 16 hex digits of CLOCK_MONOTONIC ns + 8 of message id + 8 of
/// the channel's sequence number.
pub const MARKER: usize = 34;

#[inline]
fn hex8(b: &[u8]) -> Option<u32> {
    let b: [u8; 8] = b.get(..8)?.try_into().unwrap();
    let x = u64::from_be_bytes(b);
    let n = (x & 0x0f0f_0f0f_0f0f_0f0f) + 9 * ((x >> 6) & 0x0101_0101_0101_0101);
    let n = (n | (n >> 4)) & 0x00ff_00ff_00ff_00ff;
    let n = (n | (n >> 8)) & 0x0000_ffff_0000_ffff;
    Some((n | (n >> 16)) as u32)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub ns: u64,
    pub id: u32,
    pub seq: u32,
}

/// Reads the marker at `b`, which starts with `@@`.
#[inline]
pub fn read_mark(b: &[u8]) -> Option<Mark> {
    if b.len() < MARKER {
        return None;
    }
    Some(Mark {
        ns: (u64::from(hex8(&b[2..])?) << 32) | u64::from(hex8(&b[10..])?),
        id: hex8(&b[18..])?,
        seq: hex8(&b[26..])?,
    })
}

/// Eight hex digits behind `@@` (used for presence user ids).
#[inline]
pub fn read_id(b: &[u8]) -> Option<u32> {
    if b.len() < 10 { None } else { hex8(&b[2..]) }
}

fn put_hex(out: &mut [u8], mut v: u64) {
    for o in out.iter_mut().rev() {
        *o = b"0123456789abcdef"[(v & 15) as usize];
        v >>= 4;
    }
}

/// Overwrites the 34 bytes at `out` with a marker.
pub fn write_mark(out: &mut [u8], m: Mark) {
    out[..2].copy_from_slice(b"@@");
    put_hex(&mut out[2..18], m.ns);
    put_hex(&mut out[18..26], u64::from(m.id));
    put_hex(&mut out[26..34], u64::from(m.seq));
}

/// Position of `@@` in `b`.
#[inline]
pub fn find_mark(b: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(p) = memchr::memchr(b'@', &b[from..]) {
        let p = from + p;
        if b.get(p + 1) == Some(&b'@') {
            return Some(p);
        }
        from = p + 1;
    }
    None
}

/// A string with `"` and `\` escaped, for embedding in JSON.
pub fn esc(s: &str) -> String {
    s.replace('\\', "\\\\").replace('"', "\\\"")
}

/// Event data of exactly `size` bytes (at least the marker's) before JSON escaping.
/// `json`: an object of short string fields, as applications send; else plain text.
/// Returns the data and the marker's offset in it.
pub fn payload(size: usize, json: bool) -> (String, usize) {
    let fill = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let z = "0".repeat(MARKER);
    if !json || size < MARKER + 9 {
        let mut s = z;
        let mut i = 0;
        while s.len() < size {
            s.push(fill[i % fill.len()] as char);
            i += 7;
        }
        return (s, 0);
    }
    let mut s = format!("{{\"id\":\"{z}\"");
    let mut k = 0;
    // Fields `,"fNN":"<characters>"`: 9 bytes and the characters, 16 but for the last.
    loop {
        let room = size - s.len() - 1;
        if room < 9 {
            break;
        }
        let n = if room >= 25 + 9 { 16 } else { room - 9 };
        s.push_str(&format!(",\"f{:02}\":\"", k % 100));
        for i in 0..n {
            s.push(fill[(k * 11 + i * 7) % fill.len()] as char);
        }
        s.push('"');
        k += 1;
    }
    s.push('}');
    while s.len() < size {
        s.push(' ');
    }
    (s, 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_round_trip() {
        let mut b = vec![0u8; MARKER];
        let m = Mark { ns: 0x0123_4567_89ab_cdef, id: 0xdead_beef, seq: 42 };
        write_mark(&mut b, m);
        assert_eq!(read_mark(&b), Some(m));
        assert_eq!(find_mark(b"x@y@@z"), Some(3));
    }

    #[test]
    fn payload_sizes_and_json() {
        for size in 34..3000 {
            for json in [false, true] {
                let (s, at) = payload(size, json);
                assert_eq!(s.len(), size, "size {size} json {json}");
                assert_eq!(&s[at..at + MARKER], &"0".repeat(MARKER));
                if json && size >= MARKER + 9 {
                    serde_json::from_str::<serde_json::Value>(&s).unwrap();
                }
            }
        }
    }

    #[test]
    fn frames() {
        for len in [0usize, 1, 125, 126, 65535, 65536, 100_000] {
            for mask in [None, Some([1, 2, 3, 4])] {
                let mut o = Vec::new();
                put_header(&mut o, OP_TEXT, len, mask);
                let at = o.len();
                o.resize(at + len, 7);
                assert!(frame(&o[..o.len() - 1]).is_none());
                let f = frame(&o).unwrap();
                assert_eq!((f.at, f.len, f.op, f.fin, f.mask), (at, len, OP_TEXT, true, mask));
            }
        }
        let mut b: Vec<u8> = (0..37).collect();
        let k = [9, 8, 7, 6];
        let want: Vec<u8> = b.iter().enumerate().map(|(i, x)| x ^ k[i & 3]).collect();
        apply_mask(&mut b, k);
        assert_eq!(b, want);
    }
}
