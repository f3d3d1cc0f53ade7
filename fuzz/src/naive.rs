//! Naive implementations: simple and slow, strings are copied.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use sha2::Sha256;

/// A JSON object as text by key; of duplicate keys the last counts.
pub type Object = HashMap<String, Box<RawValue>>;

/// Reads a JSON object.
pub fn object(text: &str) -> Option<Object> {
    serde_json::from_str(text).ok()
}

/// All entries of a JSON object, with duplicate keys.
pub struct Entries(pub Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// Reads a JSON array.
pub fn array(text: &str) -> Option<Vec<Box<RawValue>>> {
    serde_json::from_str(text).ok()
}

/// The nesting depth of JSON.
pub fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0, 0);
    let (mut in_string, mut is_escaped) = (false, false);
    for char in text.chars() {
        match char {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => in_string = !in_string,
            '[' | '{' if !in_string => depth += 1,
            ']' | '}' if !in_string => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The text of a JSON string.
pub fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// The length of a JSON string literal in UTF-8; a lone surrogate counts 3 bytes.
pub fn decoded_len(literal: &str) -> usize {
    let mut units: Vec<u16> = Vec::new();
    let mut chars = literal[1..literal.len() - 1].chars();
    while let Some(char) = chars.next() {
        let char = if char != '\\' {
            char
        } else {
            match chars.next().unwrap() {
                'u' => {
                    let digits: String = chars.by_ref().take(4).collect();
                    units.push(u16::from_str_radix(&digits, 16).unwrap());
                    continue;
                }
                // Every other escape is one ASCII character.
                _ => 'x',
            }
        };
        units.extend(char.encode_utf16(&mut [0; 2]).iter());
    }
    char::decode_utf16(units).map(|char| char.map_or(3, char::len_utf8)).sum()
}

/// The parameters of a query, or `None` if they are not UTF-8.
pub fn query(raw: &str) -> Option<Vec<(String, String)>> {
    let pairs = raw.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((unquote(key)?.to_ascii_lowercase(), unquote(value)?))
    });
    pairs.collect()
}

fn unquote(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    loop {
        rest = match rest {
            [] => return String::from_utf8(bytes).ok(),
            [b'+', rest @ ..] => {
                bytes.push(b' ');
                rest
            }
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digits = [*high, *low];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
                rest
            }
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        };
    }
}

/// The signed text of a query. Source: protocol.md §8.3.
pub fn signed_query(pairs: &[(String, String)]) -> String {
    let mut lists: Vec<(String, bool, Vec<String>)> = Vec::new();
    let mut sorted: Vec<_> = pairs.iter().filter(|(key, _)| key != "auth_signature").collect();
    sorted.sort_by_key(|(key, _)| of_list(key).unwrap_or(key).to_owned());
    for (key, value) in sorted {
        let (name, is_list) = of_list(key).map_or((key.as_str(), false), |name| (name, true));
        match lists.last_mut() {
            Some((last, true, values)) if is_list && last == name => values.push(value.clone()),
            _ => lists.push((name.to_owned(), is_list, vec![value.clone()])),
        }
    }
    let signed: Vec<_> =
        lists.iter().map(|(name, _, values)| format!("{name}={}", values.join(","))).collect();
    signed.join("&")
}

/// `k` of `k[3]`.
pub fn of_list(key: &str) -> Option<&str> {
    let (name, index) = key.strip_suffix(']')?.rsplit_once('[')?;
    (!index.is_empty() && index.chars().all(|char| char.is_ascii_digit())).then_some(name)
}

/// The parameter `name`, or the list of that name joined with commas.
pub fn parameter(pairs: &[(String, String)], name: &str) -> Option<String> {
    let one = pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    one.or_else(|| {
        Some(parameter_list(pairs, name)).filter(|list| !list.is_empty()).map(|list| list.join(","))
    })
}

/// The list `name`.
pub fn parameter_list(pairs: &[(String, String)], name: &str) -> Vec<String> {
    let is_item = |key: &str| of_list(key) == Some(name) || key.strip_suffix("[]") == Some(name);
    pairs.iter().filter(|(key, _)| is_item(key)).map(|(_, value)| value.clone()).collect()
}

/// HMAC-SHA256 in hex.
pub fn hmac(secret: &str, text: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

/// MD5 in hex.
pub fn md5(bytes: &[u8]) -> String {
    hex::encode(Md5::digest(bytes))
}

/// Whether a text is a channel name of at most `bytes_max` bytes. Source: protocol.md §3.1.
pub fn is_channel_name(text: &str, bytes_max: usize) -> bool {
    let plain = text.strip_prefix("#server-to-user-").unwrap_or(text);
    text.len() <= bytes_max
        && !plain.is_empty()
        && plain.chars().all(|char| char.is_ascii_alphanumeric() || "_-=@,.;".contains(char))
}

/// Whether a text is the name of an event of at most `chars_max` characters. Source: protocol.md §8.4.
pub fn is_event_name(text: &str, chars_max: usize) -> bool {
    let chars = text.chars().count();
    chars > 0 && chars <= chars_max && !text.starts_with("pusher:") && !text.starts_with("pusher_internal:")
}

/// Splits frames of the server: the first byte of each, and its payload.
pub fn frames(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let (mut frames, mut rest) = (Vec::new(), bytes);
    while let [first, second, ..] = *rest {
        let (start, len) = match second {
            126 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
            127 => (10, u64::from_be_bytes(rest[2..10].try_into().unwrap()) as usize),
            len => (2, usize::from(len)),
        };
        frames.push((first, rest[start..start + len].to_vec()));
        rest = &rest[start + len..];
    }
    assert!(rest.is_empty(), "half a frame");
    frames
}

/// A client's frame.
pub fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ 0..126 => bytes.push(0x80 | len as u8),
        len @ 126..0x1_0000 => {
            bytes.push(0x80 | 126);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(0x80 | 127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

thread_local! {
    static FOLDER: tempfile::TempDir = tempfile::tempdir().unwrap();
}

/// A folder to read settings from. Each thread reuses one and empties it, because creating one is slow.
pub struct Folder(PathBuf);

impl Folder {
    /// The empty folder.
    pub fn new() -> Self {
        let path = FOLDER.with(|folder| folder.path().to_owned());
        for entry in fs::read_dir(&path).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        Self(path)
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.0
    }
}
