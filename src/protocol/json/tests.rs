use proptest::prelude::*;

use super::*;

#[test]
fn the_last_of_two_equal_keys_counts() {
    let [a, b] = pick(r#"{"a":1,"x":[{}],"a":{"y":2}}"#, ["a", "b"]).unwrap();
    assert_eq!(a.map(RawValue::get), Some(r#"{"y":2}"#));
    assert!(b.is_none());
}

#[test]
fn pick_list_returns_the_named_values_of_each_object() {
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
fn pick_rejects_a_text_that_is_not_one_object() {
    for text in ["", "[]", "1", "\"x\"", "{", "{} {}", "{\"a\":}", "{\"a\":1,}", "nul", "{1:2}"] {
        assert!(pick(text, ["a"]).is_err(), "{text:?}");
    }
}

#[test]
fn deep_nesting_is_skipped_without_recursion() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(30_000), "]".repeat(30_000));
    assert!(pick(&deep, ["a"]).is_ok());
    assert!(pick(&deep, ["b"]).is_ok());
}

#[test]
fn nested_brackets_count_and_brackets_in_strings_do_not() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let too_deep = |text: &str| is_too_deep(text.as_bytes());
    assert!(!too_deep(&nested(DEPTH_MAX)));
    assert!(too_deep(&nested(DEPTH_MAX + 1)));
    assert!(too_deep(&format!("{{\"a\":[{{}},{}]}}", nested(DEPTH_MAX - 1))));
    assert!(!too_deep(&format!("[{}]", vec![nested(2); 1000].join(","))), "many, not deep");
    assert!(!too_deep(&format!("[\"\\\"{}\"]", "[".repeat(500))), "in a string");
    assert!(too_deep(&format!("[\"\\\\\",{}", "[".repeat(128))), "unfinished, behind an escaped backslash");
    assert!(!too_deep(&"]".repeat(500)));
}

#[test]
fn a_string_is_as_deep_as_the_json_that_it_contains() {
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
fn items_returns_at_most_one_more_than_the_maximum() {
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
