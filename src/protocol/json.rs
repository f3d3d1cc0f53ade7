//! The few things that pusherd asks of JSON text without building a tree of it.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;

/// The values of the named keys of a JSON object, as the text they came in; where a key stands twice, the last
/// one counts. Other keys are skipped.
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

/// Why a list of objects could not be picked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ListError {
    /// The whole is no JSON object.
    NotObject,
    /// The value is no list.
    NotList,
    /// The item at this index is no object.
    ItemNotObject(usize),
}

/// What [`pick_list`] finds.
#[derive(Debug)]
pub struct PickedList<'a, const N: usize> {
    /// The named values of each item; `None` if there is no list.
    pub items: Option<Vec<[Option<&'a RawValue>; N]>>,
    /// The value of the key beside the list.
    pub beside: Option<&'a RawValue>,
}

/// Of each object in the list `key` of a JSON object, the values of the named keys, as [`pick`] finds them, and the
/// value of the key `beside` the list, in one pass over the text; of a longer list, `items_max` and one more, so that
/// a list that is too long can be told without keeping all of it.
///
/// # Errors
/// [`ListError`] names the first value that is not of its kind, also where `key` stands twice.
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

/// The list that stands under one key of an object, and the value of another.
struct PickOne<'s, const N: usize> {
    key: &'static str,
    beside: &'static str,
    list: PickList<'s, N>,
}

/// The named values of each item of a list.
#[derive(Clone, Copy)]
struct PickList<'s, const N: usize> {
    names: [&'static str; N],
    items_max: usize,
    /// What is wrong if the next value is not what it should be.
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

/// The items of an array, in place while they are few.
pub type Items<'a> = SmallVec<[&'a RawValue; 4]>;

/// The items of a JSON array, as the text they came in; of a longer one, `items_max` and one more, so that a list
/// that is too long can be told without keeping all of it.
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

/// How deep JSON may be nested that pusherd hands on from a client: parsers have limits of their own (Python's about
/// 1,000, PHP's 512, serde_json's 127), and some end the program when they reach it.
pub const DEPTH_MAX: usize = 128;

/// Whether a parser that reads `text` would go deeper than [`DEPTH_MAX`], be the text JSON or not. Text that is short or
/// has few brackets, as nearly all has, costs no more than counting them; other text one pass, without recursion.
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

/// As [`is_too_deep`], of a value that is handed on. A string may hold JSON, which clients parse once more.
#[must_use]
pub fn is_value_too_deep(value: &RawValue) -> bool {
    let text = value.get().as_bytes();
    if !is_string(value) {
        return is_too_deep(text);
    }
    // Every bracket in it stands for itself, or for more than a backslash.
    let may_be_bracket = |byte: &&u8| matches!(byte, b'[' | b'{' | b'\\');
    if text.len() <= DEPTH_MAX || text.iter().filter(may_be_bracket).count() <= DEPTH_MAX {
        return false;
    }
    let inner = wtf8(value);
    let is_json = inner.trim_ascii_start().first().is_some_and(|byte| matches!(byte, b'[' | b'{'));
    is_json && is_too_deep(&inner)
}

/// The bytes of a JSON string; a lone surrogate has three.
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

/// The text of a JSON string, or `None` when the value is not a string or not Unicode (a lone surrogate).
#[must_use]
pub fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    let literal = value.get();
    let inner = literal.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    unescape(inner).or_else(|| serde_json::from_str(literal).ok()).map(Cow::Owned)
}

/// The text of a literal without its quotes, if all its escapes are of the short kind, such as the backslashes of
/// PHP's class names: those stand in nearly every event of Laravel, and this takes a fifth of a parser's time.
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

/// Whether the value is a JSON string, Unicode or not.
#[must_use]
pub fn is_string(value: &RawValue) -> bool {
    value.get().starts_with('"')
}

/// Whether the value is JSON `null`.
#[must_use]
pub fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// Bytes that the text of a JSON string literal has in UTF-8, without decoding it; a lone surrogate counts 3.
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
    // A Vec never refuses to be written to and a str is always JSON-encodable.
    serde_json::to_writer(out, text).expect("text is written to memory");
}

/// Appends the decimal digits of `number`.
pub fn push_number(out: &mut Vec<u8>, number: u64) {
    serde_json::to_writer(out, &number).expect("a number is written to memory");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        let [a, b] = pick(r#"{"a":1,"x":[{}],"a":{"y":2}}"#, ["a", "b"]).unwrap();
        assert_eq!(a.map(RawValue::get), Some(r#"{"y":2}"#));
        assert!(b.is_none());
    }

    #[test]
    fn of_each_object_of_a_list_the_named_values_are_picked() {
        let pick_both = |text| pick_list(text, "l", "k", ["a", "b"], 2);
        let pick = |text| pick_both(text).map(|found| found.items);
        let text = |value: Option<&RawValue>| value.map_or("", RawValue::get).to_owned();
        let picked = pick(r#" {"x":[7],"l":[{"a":1,"x":2},{"b":[3]},{}]} "#).unwrap().unwrap();
        let picked: Vec<_> = picked.into_iter().map(|[a, b]| text(a) + &text(b)).collect();
        assert_eq!(picked, ["1", "[3]", ""]);
        assert_eq!(pick(r#"{"l":[{},{},{},{},7]}"#).unwrap().unwrap().len(), 3, "one more than wanted");
        assert_eq!(pick(r#"{"l":[]}"#).unwrap().unwrap().len(), 0);
        assert!(pick("{}").unwrap().is_none());
        let beside = |text| pick_both(text).unwrap().beside.map(RawValue::get);
        assert_eq!(beside(r#"{"k":"x","l":[{"k":7}]}"#), Some("\"x\""));
        assert_eq!(beside(r#"{"l":[{"k":7}]}"#), None);
        for (text, error) in [
            (r#"{"l":{}}"#, ListError::NotList),
            (r#"{"l":null}"#, ListError::NotList),
            (r#"{"l":[{},[]]}"#, ListError::ItemNotObject(1)),
            ("[]", ListError::NotObject),
            (r#"{"l":[{}]"#, ListError::NotObject),
            (r#"{"l":[{}]} x"#, ListError::NotObject),
            (r#"{"l":[{}}"#, ListError::NotObject),
        ] {
            assert_eq!(pick(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn an_escaped_key_is_the_key() {
        let [event] = pick(r#"{"\u0065vent":"x"}"#, ["event"]).unwrap();
        assert_eq!(event.map(RawValue::get), Some(r#""x""#));
    }

    #[test]
    fn what_is_not_one_object_is_refused() {
        for text in ["", "[]", "1", "\"x\"", "{", "{} {}", "{\"a\":}", "{\"a\":1,}", "nul", "{1:2}"] {
            assert!(pick(text, ["a"]).is_err(), "{text:?}");
        }
    }

    #[test]
    fn deep_nesting_is_skipped_without_a_deep_stack() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(30_000), "]".repeat(30_000));
        assert!(pick(&deep, ["a"]).is_ok());
        assert!(pick(&deep, ["b"]).is_ok());
    }

    #[test]
    fn brackets_within_brackets_are_counted_and_those_in_strings_are_not() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let too_deep = |text: &str| is_too_deep(text.as_bytes());
        assert!(!too_deep(&nested(DEPTH_MAX)));
        assert!(too_deep(&nested(DEPTH_MAX + 1)));
        assert!(too_deep(&format!("{{\"a\":[{{}},{}]}}", nested(DEPTH_MAX - 1))));
        assert!(!too_deep(&format!("[{}]", vec![nested(2); 1000].join(","))), "many, not deep");
        assert!(!too_deep(&format!("[\"\\\"{}\"]", "[".repeat(500))), "in a string");
        assert!(
            too_deep(&format!("[\"\\\\\",{}", "[".repeat(128))),
            "unfinished, behind an escaped backslash"
        );
        assert!(!too_deep(&"]".repeat(500)));
    }

    #[test]
    fn a_string_is_as_deep_as_the_json_in_it() {
        let too_deep = |literal: &str| is_value_too_deep(&RawValue::from_string(literal.to_owned()).unwrap());
        let deep = |open: &str| format!("\"{}\"", open.repeat(DEPTH_MAX + 1));
        for open in ["[", "{\\\"a\\\":", "\\u005b", "\\u005B", " \\n["] {
            assert!(too_deep(&deep(open)), "{open}");
        }
        let surrogate = format!("\"{}\\ud800\"", "[".repeat(DEPTH_MAX + 1));
        assert!(too_deep(&surrogate), "no text, and JavaScript parses it");
        assert!(!too_deep(&format!("\"x{}\"", "[".repeat(500))), "no parser reads past the x");
        assert!(!too_deep(&format!("\"[{}]\"", "\\\"[\\\",".repeat(500))));
        assert!(!too_deep(&format!("\"{}\"", "\\\\".repeat(500))));
        assert!(too_deep(&format!("{}{}", "[".repeat(200), "]".repeat(200))), "no string");
    }

    #[test]
    fn a_lone_surrogate_is_a_string_but_not_text() {
        let [value] = pick(r#"{"a":"\ud800"}"#, ["a"]).unwrap();
        let value = value.unwrap();
        assert!(is_string(value));
        assert_eq!(string(value), None);
        assert_eq!(decoded_len(value.get()), 3);
    }

    #[test]
    fn lists_have_a_bound() {
        assert_eq!(items("[1,\"a\",{}]", 3).unwrap().len(), 3);
        assert_eq!(items("[1,2,3,4,5,6]", 3).unwrap().len(), 4);
        assert!(items("[1,2,3,4,5,]", 3).is_err());
        assert!(items("{}", 3).is_err());
    }

    proptest! {
        #[test]
        fn short_escapes_are_read_as_the_parser_reads_them(inner in r#"(\\["\\/bfnrtu0]|[a-zé{}: ]){0,12}"#) {
            if let Some(text) = unescape(&inner) {
                prop_assert_eq!(serde_json::from_str::<String>(&format!("\"{inner}\"")).unwrap(), text);
            }
        }

        #[test]
        fn the_decoded_length_is_that_of_the_text(text in "\\PC{0,40}", ascii: bool) {
            let literal = if ascii {
                let mut units = String::new();
                for unit in text.encode_utf16() {
                    units.push_str(&format!("\\u{unit:04x}"));
                }
                format!("\"{units}\"")
            } else {
                serde_json::to_string(&text).unwrap()
            };
            prop_assert_eq!(decoded_len(&literal), text.len());
        }

        #[test]
        fn no_text_makes_the_decoder_panic(text in "\\PC{0,60}") {
            let _ = pick(&text, ["event", "data"]);
            let _ = items(&text, 5);
        }
    }
}
