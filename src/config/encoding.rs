//! Decodes the bytes of a file as UTF-8, or recognises their encoding. Pure.

use std::fmt;

/// Bytes that are not UTF-8.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum NotUtf8 {
    /// They are UTF-16 or UTF-32.
    Wide {
        /// The name of the encoding in iconv(1).
        name: &'static str,
        /// The number of lines.
        lines: usize,
    },
    /// They are in another encoding, but most of them are ASCII or UTF-8.
    Bytes {
        /// The first line that is not UTF-8, from 1.
        line: usize,
        /// The text, with U+FFFD for invalid bytes.
        lossy: String,
    },
}

impl fmt::Display for NotUtf8 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wide { name, lines } => {
                let encoding = &name[..6];
                write!(f, "is {encoding} text ({name}) and must be UTF-8: ")?;
                match lines {
                    1 => f.write_str("its one line was not read")?,
                    lines => write!(f, "nothing of its {lines} lines was read")?,
                }
                write!(f, "; save it as UTF-8, or convert it with `iconv -f {name} -t UTF-8`")
            }
            Self::Bytes { line, .. } => write!(
                f,
                "is not UTF-8 text: line {line} is the first with another encoding, such as Latin-1 or Windows-1252; \
                 save it as UTF-8"
            ),
        }
    }
}

/// The text, without a byte order mark.
pub(super) fn text(bytes: Vec<u8>) -> Result<String, NotUtf8> {
    if let Some(wide) = Wide::detect(&bytes) {
        return Err(NotUtf8::Wide { name: wide.name, lines: wide.lines(&bytes) });
    }
    match String::from_utf8(bytes) {
        Ok(text) => match text.strip_prefix('\u{feff}') {
            Some(rest) => Ok(rest.to_owned()),
            None => Ok(text),
        },
        Err(error) => {
            let (valid, bytes) = (error.utf8_error().valid_up_to(), error.as_bytes());
            let line = 1 + bytes[..valid].iter().filter(|byte| **byte == b'\n').count();
            Err(NotUtf8::Bytes { line, lossy: String::from_utf8_lossy(bytes).into_owned() })
        }
    }
}

/// An encoding with two or four bytes a character.
struct Wide {
    name: &'static str,
    mark: &'static [u8],
    /// The index of the byte that holds an ASCII character; its other bytes are zero.
    at: usize,
}

/// The longer marks first, because the mark of UTF-32LE begins with that of UTF-16LE.
const WIDE: [Wide; 4] = [
    Wide { name: "UTF-32LE", mark: b"\xff\xfe\0\0", at: 0 },
    Wide { name: "UTF-32BE", mark: b"\0\0\xfe\xff", at: 3 },
    Wide { name: "UTF-16LE", mark: b"\xff\xfe", at: 0 },
    Wide { name: "UTF-16BE", mark: b"\xfe\xff", at: 1 },
];

impl Wide {
    /// Recognises the encoding by its mark, or by zeros around the first character, because settings begin with ASCII.
    fn detect(bytes: &[u8]) -> Option<&'static Self> {
        WIDE.iter().find(|wide| {
            let first = bytes.get(..wide.mark.len());
            let is_text = |byte: u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
            let is_ascii = |first: &[u8]| {
                first
                    .iter()
                    .enumerate()
                    .all(|(at, byte)| if at == wide.at { is_text(*byte) } else { *byte == 0 })
            };
            bytes.starts_with(wide.mark) || first.is_some_and(is_ascii)
        })
    }

    fn lines(&self, bytes: &[u8]) -> usize {
        let is_end = |unit: &&[u8]| {
            unit.iter().enumerate().all(|(at, byte)| *byte == if at == self.at { b'\n' } else { 0 })
        };
        let units = || bytes.chunks_exact(self.mark.len());
        units().filter(is_end).count() + usize::from(units().next_back().is_some_and(|last| !is_end(&last)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `text` with each character as `width` bytes.
    fn wide(text: &str, width: usize, is_big: bool) -> Vec<u8> {
        let unit = |char: char| {
            let mut bytes = u32::from(char).to_le_bytes()[..width].to_vec();
            if is_big {
                bytes.reverse();
            }
            bytes
        };
        text.chars().flat_map(unit).collect()
    }

    #[test]
    fn utf_16_and_utf_32_are_recognised_with_and_without_a_byte_order_mark() {
        let cases =
            [(2, false, "UTF-16LE"), (2, true, "UTF-16BE"), (4, false, "UTF-32LE"), (4, true, "UTF-32BE")];
        for (width, is_big, name) in cases {
            for (lines, content) in
                [(1, "A=1"), (2, "A=1\nB=hunter2\n"), (3, "A=1\r\n\r\né=\u{10a}"), (1, "\n")]
            {
                for mark in ["", "\u{feff}"] {
                    let found = text(wide(&format!("{mark}{content}"), width, is_big)).unwrap_err();
                    assert_eq!(found, NotUtf8::Wide { name, lines }, "{content:?} {mark:?}");
                    let said = found.to_string();
                    let read = match lines {
                        1 => ": its one line was not read; ".to_owned(),
                        _ => format!(": nothing of its {lines} lines was read; "),
                    };
                    assert!(said.contains(&read) && !said.contains("hunter2"), "{said}");
                }
            }
        }
    }

    #[test]
    fn a_utf_8_byte_order_mark_is_removed() {
        assert_eq!(text(b"\xef\xbb\xbfA=1".to_vec()).unwrap(), "A=1");
        for same in ["", "A", "A=1\nB=é"] {
            assert_eq!(text(same.as_bytes().to_vec()).unwrap(), same);
        }
    }

    #[test]
    fn the_first_line_in_another_encoding_is_reported() {
        let found = text(b"A=1\nB=caf\xe9\nC=hunter2\xff\n".to_vec()).unwrap_err();
        assert!(found.to_string().contains("line 2") && !found.to_string().contains("hunter2"), "{found}");
        let lossy = "A=1\nB=caf\u{fffd}\nC=hunter2\u{fffd}\n".to_owned();
        assert_eq!(found, NotUtf8::Bytes { line: 2, lossy });
    }
}
