//! Reading JSON without a tree, against serde_json's trees. The input is the text.

use pusherd::protocol::json::{self, ListError};
use serde_json::value::RawValue;

use super::naive::{self, Entries};

const KEYS: [&str; 3] = ["event", "data", "channel"];

/// See the module.
pub fn holds(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let text_of = |value: Option<&RawValue>| value.map(|value| value.get().to_owned());

    let picked = json::pick(text, KEYS).ok().map(|values| values.map(text_of));
    let object = naive::object(text);
    let expected =
        object.as_ref().map(|object| KEYS.map(|key| text_of(object.get(key).map(|value| &**value))));
    assert_eq!(picked, expected, "{text}");

    let items =
        json::items(text, 2).ok().map(|items| items.iter().map(|item| item.get().to_owned()).collect());
    let array = naive::array(text);
    let expected = array.as_ref().map(|array| array.iter().take(3).map(|item| item.get().to_owned()));
    assert_eq!(items, expected.map(Iterator::collect::<Vec<_>>), "{text}");

    list(text);

    let values = object.iter().flat_map(|object| object.values()).chain(array.iter().flatten());
    for value in values {
        let (raw, string) = (value.get(), naive::string(value));
        assert_eq!(json::string(value).as_deref(), string.as_deref(), "{raw}");
        assert_eq!(json::is_string(value), raw.starts_with('"'), "{raw}");
        assert_eq!(json::is_null(value), raw == "null", "{raw}");
        if json::is_string(value) {
            let len = json::decoded_len(raw);
            assert_eq!(len, naive::decoded_len(raw), "{raw}");
            assert!(string.is_none_or(|string| string.len() == len), "{raw}");
        }
    }

    let mut literal = Vec::new();
    json::push_string(&mut literal, text);
    assert_eq!(serde_json::from_slice::<String>(&literal).unwrap(), text);
}

fn list(text: &str) {
    let picked = json::pick_list(text, "batch", "key", ["name", "data"], 2);
    let picked = picked.map(|picked| {
        picked.items.map(|items| {
            items.iter().map(|item| item.map(|value| value.map(|v| v.get().to_owned()))).collect::<Vec<_>>()
        })
    });
    let Ok(Entries(entries)) = serde_json::from_str(text) else {
        // The first error counts: a syntax error, or a value of a wrong type.
        assert!(picked.is_err(), "{text}");
        return;
    };
    let read = |value: &RawValue| {
        let items = naive::array(value.get()).ok_or(ListError::NotList)?;
        let items = items.iter().take(3).enumerate().map(|(at, item)| {
            let object = naive::object(item.get()).ok_or(ListError::ItemNotObject(at))?;
            Ok(["name", "data"].map(|key| object.get(key).map(|value| value.get().to_owned())))
        });
        items.collect::<Result<Vec<_>, _>>()
    };
    let lists = entries.iter().filter(|(key, _)| key == "batch").map(|(_, value)| read(value));
    let expected = lists.collect::<Result<Vec<_>, _>>().map(|mut lists| lists.pop());
    // The parser reads a value before it reports a wrong type, and may find another error in it: a string that is not
    // Unicode, a number out of range.
    if picked == Err(ListError::NotObject) {
        assert!(expected.is_err(), "{text}");
        return;
    }
    assert_eq!(picked, expected, "{text}");
}
