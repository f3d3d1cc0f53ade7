//! Configuration files: TOML, JSON and YAML with the same content give the same settings or the same errors, and no output
//! contains a secret. The first byte of the input selects the format, the rest is the text.

use std::fs;

use config::{FileFormat, Format, Map, Value, ValueKind};
use pusherd::config::{Settings, Sources, load};

use super::naive::Folder;

/// The text of a secret in the input.
const SECRET: &str = "hunter2hunter2";

/// The settings that may contain it.
const SECRETS: [&str; 3] = ["secret", "password", "sentinel_password"];

/// See the module.
pub fn holds(data: &[u8]) {
    let [format, rest @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let (format, ending) = match format % 3 {
        0 => (FileFormat::Toml, "toml"),
        1 => (FileFormat::Json, "json"),
        _ => (FileFormat::Yaml, "yaml"),
    };
    let directory = Folder::new();
    let result = loaded(&directory, ending, text);
    let (Ok(output) | Err(output)) = &result;
    let table = Format::parse(&format, None, text);
    if !table.as_ref().is_ok_and(|table| table.iter().any(|(key, value)| is_shown(key, value))) {
        assert!(!output.contains(SECRET), "a secret is shown: {output}");
    }
    let Ok(table) = table else { return };
    if let Some(json) = object(&table) {
        let again = loaded(&directory, "json", &json);
        let named = |output: &str| output.replace(&format!("file.{ending}"), "file.json");
        assert_eq!(result.map(|output| named(&output)).map_err(|output| named(&output)), again, "{json}");
    }
}

/// Whether the secret is in a place that is not secret: in the name of a setting or in the value of another one.
fn is_shown(key: &str, value: &Value) -> bool {
    let inside = match &value.kind {
        ValueKind::String(text) => !SECRETS.contains(&key) && text.contains(SECRET),
        ValueKind::Table(table) => table.iter().any(|(key, value)| is_shown(key, value)),
        ValueKind::Array(items) => items.iter().any(|item| is_shown("", item)),
        _ => false,
    };
    inside || key.contains(SECRET)
}

/// Loads a file: the settings, or the errors.
fn loaded(directory: &Folder, ending: &str, text: &str) -> Result<String, String> {
    let path = directory.path().join(format!("file.{ending}"));
    fs::write(&path, text).unwrap();
    let mut sources = Sources::new([], directory.path().to_owned());
    sources.config = Some(format!("file.{ending}").into());
    match load(&sources) {
        Ok(settings) => {
            assert!(!settings.apps.is_empty() && settings.main_app < settings.apps.len());
            for app in &settings.apps {
                assert!(!app.id.0.is_empty() && !app.keys.is_empty());
                assert!(app.limits.message_bytes_max >= 1024 && app.limits.request_body_bytes_max >= 1024);
                assert!(app.limits.events_per_batch_max > 0 && app.limits.channels_per_publish_max > 0);
            }
            let Settings { server, log, apps, .. } = &settings;
            Ok(format!("{server:?} {log:?} {apps:?} {}", settings.show()))
        }
        Err(problems) => {
            assert!(problems.iter().next().is_some());
            Err(problems.to_string())
        }
    }
}

/// A table as JSON; `None` if JSON cannot represent it.
fn object(table: &Map<String, Value>) -> Option<String> {
    let entry = |(key, value): (&String, &Value)| {
        Some(format!("{}:{}", serde_json::to_string(key).ok()?, json(&value.kind)?))
    };
    let entries: Option<Vec<_>> = table.iter().map(entry).collect();
    Some(format!("{{{}}}", entries?.join(",")))
}

fn json(kind: &ValueKind) -> Option<String> {
    Some(match kind {
        ValueKind::Nil => "null".to_owned(),
        ValueKind::Boolean(is) => is.to_string(),
        ValueKind::I64(number) => number.to_string(),
        ValueKind::U64(number) => number.to_string(),
        // The JSON parser reads these numbers in another type.
        ValueKind::I128(_) | ValueKind::U128(_) | ValueKind::Float(_) => return None,
        ValueKind::String(text) => serde_json::to_string(text).ok()?,
        ValueKind::Table(table) => object(table)?,
        ValueKind::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(|item| json(&item.kind)).collect();
            format!("[{}]", items?.join(","))
        }
    })
}
