//! Reading and writing JSON text without building a tree.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;

/// The values of the named keys of a JSON object, as their JSON text. Of a duplicate key, the last value counts. Other
/// keys are skipped.
///
/// # Errors
/// `text` is not a JSON object.
pub fn pick<'a, const N: usize>(
    text: &'a str,
    names: [&'static str; N],
) -> Result<[Option<&'a RawValue>; N], serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    let picked = json.deserialize_map(Pick(names))?;
    json.end()?;
    Ok(picked)
}

struct Pick<const N: usize>([&'static str; N]);

impl<'de, const N: usize> Visitor<'de> for Pick<N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = [None; N];
        while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
            match self.0.iter().position(|name| *name == key) {
                Some(at) => found[at] = Some(map.next_value::<&'de RawValue>()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(text)))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// An error of [`pick_list`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ListError {
    /// The text is not a JSON object.
    NotObject,
    /// The value is not a list.
    NotList,
    /// The item at this index is not an object.
    ItemNotObject(usize),
}

/// The result of [`pick_list`].
#[derive(Debug)]
pub struct PickedList<'a, const N: usize> {
    /// The named values of each item; `None` if the list is missing.
    pub items: Option<Vec<[Option<&'a RawValue>; N]>>,
    /// The value of the second key.
    pub beside: Option<&'a RawValue>,
}

/// Reads, in one pass over a JSON object, the list under `key` and the value under `beside`. Of each object in the list
/// it returns the values of the named keys, as [`pick`] does. It returns at most `items_max + 1` items, so that
/// the caller can detect a list that is too long without storing all of it.
///
/// # Errors
/// [`ListError`] names the first value of a wrong type, also under a duplicate `key`.
pub fn pick_list<'a, const N: usize>(
    text: &'a str,
    key: &'static str,
    beside: &'static str,
    names: [&'static str; N],
    items_max: usize,
) -> Result<PickedList<'a, N>, ListError> {
    let at = Cell::new(ListError::NotObject);
    let mut json = serde_json::Deserializer::from_str(text);
    let list = PickList { names, items_max, at: &at };
    let picked =
        json.deserialize_map(PickOne { key, beside, list }).and_then(|picked| json.end().map(|()| picked));
    picked.map_err(|error| if error.is_data() { at.get() } else { ListError::NotObject })
}

/// Visits an object: the list under one key and the value under another.
struct PickOne<'s, const N: usize> {
    key: &'static str,
    beside: &'static str,
    list: PickList<'s, N>,
}

/// Visits a list: the named values of each item.
#[derive(Clone, Copy)]
struct PickList<'s, const N: usize> {
    names: [&'static str; N],
    items_max: usize,
    /// The error to report if the next value has a wrong type.
    at: &'s Cell<ListError>,
}

impl<'de, const N: usize> Visitor<'de> for PickOne<'_, N> {
    type Value = PickedList<'de, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = PickedList { items: None, beside: None };
        while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
            if key == self.key {
                self.list.at.set(ListError::NotList);
                found.items = Some(map.next_value_seed(self.list)?);
                self.list.at.set(ListError::NotObject);
            } else if key == self.beside {
                found.beside = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

impl<'de, const N: usize> DeserializeSeed<'de> for PickList<'_, N> {
    type Value = Vec<[Option<&'de RawValue>; N]>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for PickList<'_, N> {
    type Value = Vec<[Option<&'de RawValue>; N]>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while items.len() <= self.items_max {
            self.at.set(ListError::ItemNotObject(items.len()));
            let Some(item) = seq.next_element_seed(Pick(self.names))? else { return Ok(items) };
            items.push(item);
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(items)
    }
}

impl<'de, const N: usize> DeserializeSeed<'de> for Pick<N> {
    type Value = [Option<&'de RawValue>; N];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

/// The items of an array; up to four need no allocation.
pub type Items<'a> = SmallVec<[&'a RawValue; 4]>;

/// The items of a JSON array, as their JSON text: at most `items_max` and one more, so that the caller can detect an
/// array that is too long without storing all of it.
///
/// # Errors
/// `text` is not a JSON array.
pub fn items(text: &str, items_max: usize) -> Result<Items<'_>, serde_json::Error> {
    struct Collect(usize);
    impl<'de> Visitor<'de> for Collect {
        type Value = Items<'de>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON array")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut items = Items::new();
            while items.len() <= self.0
                && let Some(item) = seq.next_element::<&'de RawValue>()?
            {
                items.push(item);
            }
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(items)
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let items = json.deserialize_seq(Collect(items_max))?;
    json.end()?;
    Ok(items)
}

/// Deepest nesting of JSON that pusherd relays from a client. Parsers have limits (Python about 1,000, PHP 512,
/// serde_json 127), and some abort the program at their limit.
pub const DEPTH_MAX: usize = 128;

/// Whether a parser would nest deeper than [`DEPTH_MAX`] in `text`, which need not be valid JSON. Nearly all text is short
/// or has few brackets, and is decided by counting them; other text takes one pass without recursion.
#[must_use]
pub fn is_too_deep(text: &[u8]) -> bool {
    let is_opening = |byte: &&u8| matches!(byte, b'[' | b'{');
    if text.len() <= DEPTH_MAX || text.iter().filter(is_opening).count() <= DEPTH_MAX {
        return false;
    }
    let (mut depth, mut bytes) = (0_usize, text.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' if depth == DEPTH_MAX => return true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => {
                while let Some(byte) = bytes.next()
                    && *byte != b'"'
                {
                    if *byte == b'\\' {
                        bytes.next();
                    }
                }
            }
            _ => {}
        }
    }
    false
}

/// [`is_too_deep`] for a value that is relayed. A string may contain JSON, which clients parse again.
#[must_use]
pub fn is_value_too_deep(value: &RawValue) -> bool {
    let text = value.get().as_bytes();
    if !is_string(value) {
        return is_too_deep(text);
    }
    // A bracket in the string is written as itself or as an escape, which begins with a backslash.
    let may_be_bracket = |byte: &&u8| matches!(byte, b'[' | b'{' | b'\\');
    if text.len() <= DEPTH_MAX || text.iter().filter(may_be_bracket).count() <= DEPTH_MAX {
        return false;
    }
    let inner = wtf8(value);
    let is_json = inner.trim_ascii_start().first().is_some_and(|byte| matches!(byte, b'[' | b'{'));
    is_json && is_too_deep(&inner)
}

/// The bytes of a JSON string; a lone surrogate takes three.
fn wtf8(literal: &RawValue) -> Vec<u8> {
    struct Bytes(Vec<u8>);
    impl<'de> Deserialize<'de> for Bytes {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Any;
            impl Visitor<'_> for Any {
                type Value = Bytes;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a string")
                }
                fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                    Ok(Bytes(bytes.to_vec()))
                }
            }
            deserializer.deserialize_bytes(Any)
        }
    }
    serde_json::from_str::<Bytes>(literal.get()).map(|bytes| bytes.0).unwrap_or_default()
}

/// The text of a JSON string. `None` if the value is not a string or contains a lone surrogate.
#[must_use]
pub fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    let literal = value.get();
    let inner = literal.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    unescape(inner).or_else(|| serde_json::from_str(literal).ok()).map(Cow::Owned)
}

/// The text of a literal without its quotes, if it has short escapes only. Nearly every event name of Laravel has them
/// (the backslashes of class names), and this function takes a fifth of the time of a parser.
fn unescape(inner: &str) -> Option<String> {
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        text.push(match rest.as_bytes().get(at + 1)? {
            byte @ (b'"' | b'\\' | b'/') => char::from(*byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            _ => return None,
        });
        rest = &rest[at + 2..];
    }
    text.push_str(rest);
    Some(text)
}

/// Whether the value is a JSON string, also one with a lone surrogate.
#[must_use]
pub fn is_string(value: &RawValue) -> bool {
    value.get().starts_with('"')
}

/// Whether the value is JSON `null`.
#[must_use]
pub fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// The length in UTF-8 of the text of a JSON string literal, without decoding it. A lone surrogate counts 3 bytes.
///
/// `literal` is a valid JSON string with its quotes, as [`RawValue`] guarantees.
#[must_use]
pub fn decoded_len(literal: &str) -> usize {
    let inner = &literal.as_bytes()[1..literal.len().saturating_sub(1).max(1)];
    let hex = |at: usize| {
        inner
            .get(at..at + 4)
            .and_then(|digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())
    };
    let (mut at, mut len) = (0, 0);
    while let Some(plain) = inner.get(at..).and_then(|rest| memchr::memchr(b'\\', rest)) {
        (at, len) = (at + plain, len + plain);
        if inner.get(at + 1) != Some(&b'u') {
            (at, len) = (at + 2, len + 1);
            continue;
        }
        let unit = hex(at + 2).unwrap_or(0xfffd);
        let pairs = (0xd800..0xdc00).contains(&unit)
            && inner.get(at + 6..at + 8) == Some(b"\\u")
            && hex(at + 8).is_some_and(|low| (0xdc00..0xe000).contains(&low));
        (at, len) = match unit {
            _ if pairs => (at + 12, len + 4),
            0..0x80 => (at + 6, len + 1),
            0x80..0x800 => (at + 6, len + 2),
            _ => (at + 6, len + 3),
        };
    }
    len + inner.len().saturating_sub(at)
}

/// Appends `text` to `out` as a JSON string with its quotes.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    // Writing to a Vec does not fail, and every str can be encoded as JSON.
    serde_json::to_writer(out, text).expect("text is written to memory");
}

/// Appends the decimal digits of `number`.
pub fn push_number(out: &mut Vec<u8>, number: u64) {
    serde_json::to_writer(out, &number).expect("a number is written to memory");
}

#[cfg(test)]
mod tests;
