use config::{FileFormat, Format as _, Value};

use super::*;
use crate::config::apps::Draft;
use crate::config::redis::Redis;
use crate::config::schema::{APP, LOG, REDIS, SERVER, WEBHOOKS};
use crate::config::settings::{Log, Server, Webhooks};

/// Sets `key` of a default app to `raw`; returns its new value as TOML.
fn set(key: &str, raw: &RawValue<'_>) -> Result<String, String> {
    let row = APP.iter().find(|row| row.key == key).unwrap();
    let mut app = Draft::defaults();
    row.set(&mut app, raw)?;
    Ok(row.show(&mut app))
}

fn value(toml: &str) -> Value {
    FileFormat::Toml.parse(None, &format!("x = {toml}")).unwrap().remove("x").unwrap()
}

#[test]
fn a_value_of_a_file_has_the_type_of_its_setting() {
    let (members, port) = ("limits.presence_members", "limits.connections");
    let (switch, choice, text, list) = ("enabled", "client_events", "path_prefix", "allowed_origins");
    let table = [
        (members, "1", Ok("1")),
        (members, "100000", Ok("100000")),
        (members, "0", Err("must be 1 to 100000, not 0")),
        (members, "100001", Err("must be 1 to 100000, not 100001")),
        (members, "-1", Err("must be 1 to 100000, not -1")),
        (members, "1.5", Err("must be 1 to 100000, not 1.5")),
        (members, "'7'", Err("must be 1 to 100000, not \"7\": write it without quotes")),
        (members, "' 7 '", Err("must be 1 to 100000, not \" 7 \": write it without quotes")),
        (members, "'seven'", Err("must be 1 to 100000, not \"seven\"")),
        (members, "true", Err("must be 1 to 100000, not true")),
        (members, "[1]", Err("must be 1 to 100000, not a list")),
        (port, "0", Ok("0")),
        (port, "-1", Err("must be 0 (no limit) or 1 to 4294967295, not -1")),
        (switch, "false", Ok("false")),
        (switch, "0", Err("must be true or false, not 0")),
        (switch, "'false'", Err("must be true or false, not \"false\": write it without quotes")),
        (switch, "'maybe'", Err("must be true or false, not \"maybe\"")),
        (choice, "'off'", Ok("\"off\"")),
        (choice, "false", Ok("\"off\"")),
        (choice, "true", Ok("\"members\"")),
        (choice, "'all'", Err("must be off or members, not \"all\"")),
        ("terminate_close_code", "4200", Ok("4200")),
        ("terminate_close_code", "'4200'", Ok("4200")),
        ("terminate_close_code", "4201", Err("must be 4009 or 4200, not 4201")),
        ("subscription_error_frames", "1", Err("must be both, channel or connection, not 1")),
        (text, "'rt/'", Ok("\"/rt\"")),
        (text, "7", Err("must be text: write it in quotes")),
        (text, "['/rt']", Err("must be text, not a list")),
        (list, "['a.test', 'https://*.b.test']", Ok("[\"a.test\", \"https://*.b.test\"]")),
        (list, "['a.test', '*']", Ok("[\"*\"]")),
        (list, "'*'", Err("must be a list, not \"*\"")),
        (list, "[1]", Err("must be a list of texts")),
        (list, "[]", Err("lists no origin, so no browser could connect; [\"*\"] is all")),
    ];
    for (key, toml, expected) in table {
        let value = value(toml);
        let found = set(key, &RawValue::Typed(&value.kind));
        assert_eq!(found.as_deref().map_err(String::as_str), expected, "{key} = {toml}");
    }
}

#[test]
fn a_variable_is_parsed_as_the_type_of_its_setting() {
    let table = [
        ("limits.presence_members", " 12 ", Ok("12")),
        ("limits.presence_members", "1e3", Err("must be 1 to 100000, not \"1e3\"")),
        (
            "limits.presence_members",
            "99999999999999999999",
            Err("must be 1 to 100000, not \"99999999999999999999\""),
        ),
        ("enabled", "Off", Ok("false")),
        ("enabled", "1", Ok("true")),
        ("enabled", "2", Err("must be true or false, not \"2\"")),
        ("client_events", "true", Ok("\"members\"")),
        ("client_events", "MEMBERS", Ok("\"members\"")),
        ("terminate_close_code", "4200", Ok("4200")),
        ("allowed_origins", "a.test, b.test,", Ok("[\"a.test\", \"b.test\"]")),
    ];
    for (key, text, expected) in table {
        let found = set(key, &RawValue::Text(text));
        assert_eq!(found.as_deref().map_err(String::as_str), expected, "{key} = {text}");
    }
}

#[test]
fn each_invalid_item_of_a_list_is_reported() {
    let row = SERVER.iter().find(|row| row.key == "trusted_proxies").unwrap();
    let mut server = Server::default();
    let raw = RawValue::Text("10.0.0.0/8,proxy,10.0.0.0/33,::1,192.168.0.1");
    let wrong = row.set(&mut server, &raw).unwrap_err();
    assert!(wrong.contains("\"proxy\"") && wrong.contains("/33") && !wrong.contains("::1"), "{wrong}");
    row.set(&mut server, &RawValue::Text("10.0.0.0/8,::1,192.168.0.1")).unwrap();
    assert_eq!(row.show(&mut server), "[\"10.0.0.0/8\", \"::1\", \"192.168.0.1\"]");
}

#[test]
fn an_excerpt_is_short_and_escapes_control_characters() {
    let found = set("client_events", &RawValue::Text(&format!("\x1b\n{}", "x".repeat(100)))).unwrap_err();
    assert!(found.contains("\\u{1b}\\n") && found.len() < 120, "{found}");
}

/// Checks each row of a table of settings against its defaults.
fn check<T>(settings: &[Setting<T>], mut defaults: T) {
    for row in settings {
        let shown = row.show(&mut defaults);
        let value = value(&shown);
        assert_eq!(
            row.set(&mut defaults, &RawValue::Typed(&value.kind)),
            Ok(Vec::new()),
            "{}: its default",
            row.key
        );
        assert_eq!(row.show(&mut defaults), shown, "{} changes when its default is set", row.key);
        assert!(row.doc.ends_with('.'), "{} is explained in sentences", row.key);
        if let Kind::Number { min, max, field, zero } = &row.kind {
            for bound in [*min, *max] {
                field(&mut defaults).set_number(bound);
                assert_eq!(field(&mut defaults).number(), bound, "{} holds its bounds", row.key);
            }
            assert!(zero.is_none() || *min > 0, "{}: 0 is in its range", row.key);
        }
        if let Kind::Choice { words, field } = &row.kind {
            for index in 0..words.len() {
                field(&mut defaults).select(index);
                assert_eq!(field(&mut defaults).selected(), index, "{} holds its words", row.key);
            }
        }
    }
}

#[test]
fn every_setting_accepts_its_default_its_bounds_and_its_words() {
    check(SERVER, Server::default());
    check(LOG, Log::default());
    check(REDIS, Redis::default());
    check(WEBHOOKS, Webhooks::default());
    check(APP, Draft::defaults());
}
