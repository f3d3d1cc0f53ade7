//! A value as it was written, before its setting has checked it.

use config::ValueKind;

use super::fields::TablesField;

/// A value as it was written.
pub(in crate::config) enum RawValue<'a> {
    /// In a variable or a flag, where everything is text.
    Text(&'a str),
    /// In a file, where it has a type.
    Typed(&'a ValueKind),
}

impl<'a> RawValue<'a> {
    pub(super) fn number(&self) -> Result<u64, String> {
        match self {
            Self::Text(text) => text.trim().parse().map_err(|_| excerpt(text)),
            Self::Typed(ValueKind::U64(number)) => Ok(*number),
            Self::Typed(ValueKind::I64(number)) => u64::try_from(*number).map_err(|_| number.to_string()),
            Self::Typed(value) => Err(describe(value)),
        }
    }

    pub(super) fn switch(&self) -> Result<bool, String> {
        match self {
            Self::Text(text) => parse_switch(text).ok_or_else(|| excerpt(text)),
            Self::Typed(ValueKind::Boolean(value)) => Ok(*value),
            Self::Typed(value) => Err(describe(value)),
        }
    }

    /// The index of the value in `words`. A choice of two words also accepts a boolean, as other servers and YAML write
    /// it: `false` is the first word.
    pub(super) fn index_in(&self, words: &[&str]) -> Result<usize, String> {
        let text = match self {
            Self::Text(text) => text.trim().to_owned(),
            Self::Typed(ValueKind::String(text)) => text.clone(),
            Self::Typed(value) => describe(value),
        };
        let index = words.iter().position(|word| word.eq_ignore_ascii_case(&text));
        let as_switch = || if words.len() == 2 { self.switch().ok().map(usize::from) } else { None };
        index.or_else(as_switch).ok_or_else(|| match self {
            Self::Text(text) => excerpt(text),
            Self::Typed(value) => describe(value),
        })
    }

    /// The hint for a text in a file that is valid without its quotes.
    pub(super) fn quotes_hint(&self, is_valid: impl Fn(&str) -> bool) -> &'static str {
        match self {
            Self::Typed(ValueKind::String(text)) if is_valid(text.trim()) => ": write it without quotes",
            Self::Typed(_) | Self::Text(_) => "",
        }
    }

    /// Whether the value is `word`, in either case.
    pub(super) fn is_word(&self, word: &str) -> bool {
        match self {
            Self::Text(text) => text.trim().eq_ignore_ascii_case(word),
            Self::Typed(value) => matches!(value, ValueKind::String(text) if text.eq_ignore_ascii_case(word)),
        }
    }

    /// The text. A number is not one: formats read `007` differently, so text needs quotes.
    pub(in crate::config) fn text(&self) -> Result<&'a str, String> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Typed(ValueKind::String(text)) => Ok(text),
            Self::Typed(ValueKind::Table(_)) => Err("must be text, not a table".to_owned()),
            Self::Typed(ValueKind::Array(_)) => Err("must be text, not a list".to_owned()),
            Self::Typed(_) => Err("must be text: write it in quotes".to_owned()),
        }
    }

    /// The items of a list. A variable separates them by commas.
    pub(super) fn list(&self) -> Result<Vec<&'a str>, String> {
        match self {
            Self::Text(text) => Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()),
            Self::Typed(ValueKind::Array(items)) => {
                let item = |item: &'a config::Value| RawValue::Typed(&item.kind).text();
                items
                    .iter()
                    .map(item)
                    .collect::<Result<_, _>>()
                    .map_err(|_| "must be a list of texts".to_owned())
            }
            Self::Typed(value) => Err(format!("must be a list, not {}", describe(value))),
        }
    }
}

impl RawValue<'_> {
    /// The items of a list of tables, as JSON.
    pub(super) fn items(&self, field: &dyn TablesField) -> Result<Vec<serde_json::Value>, String> {
        match self {
            Self::Text(text) if text.trim().is_empty() => Ok(Vec::new()),
            Self::Text(text) => field.items_of_text(text),
            Self::Typed(ValueKind::Array(items)) => {
                Ok(items.iter().map(|item| to_json(&item.kind)).collect())
            }
            // The value is not repeated: it may hold a secret.
            Self::Typed(_) => Err("must be a list".to_owned()),
        }
    }
}

/// The items of a JSON list.
pub(in crate::config) fn parse_json_list(text: &str) -> Result<Vec<serde_json::Value>, String> {
    // The parser's message may quote the text, which may hold a secret.
    serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("must be a list as JSON, and is not at line {line}, column {column}")
    })
}

fn to_json(value: &ValueKind) -> serde_json::Value {
    use serde_json::Value;
    match value {
        ValueKind::Nil => Value::Null,
        ValueKind::Boolean(value) => Value::from(*value),
        ValueKind::I64(number) => Value::from(*number),
        ValueKind::U64(number) => Value::from(*number),
        ValueKind::I128(number) => Value::from(number.to_string()),
        ValueKind::U128(number) => Value::from(number.to_string()),
        ValueKind::Float(number) => Value::from(*number),
        ValueKind::String(text) => Value::from(text.as_str()),
        ValueKind::Table(table) => {
            Value::Object(table.iter().map(|(key, value)| (key.clone(), to_json(&value.kind))).collect())
        }
        ValueKind::Array(items) => Value::Array(items.iter().map(|item| to_json(&item.kind)).collect()),
    }
}

/// `text` as a TOML string. JSON strings are valid TOML.
pub(in crate::config) fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A value of the wrong type, in words that follow "not".
fn describe(value: &ValueKind) -> String {
    match value {
        ValueKind::Nil => "null".to_owned(),
        ValueKind::Boolean(value) => value.to_string(),
        ValueKind::I64(number) => number.to_string(),
        ValueKind::I128(number) => number.to_string(),
        ValueKind::U64(number) => number.to_string(),
        ValueKind::U128(number) => number.to_string(),
        ValueKind::Float(number) => number.to_string(),
        ValueKind::String(text) => excerpt(text),
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
    }
}

/// The start of `text`, quoted and escaped for a message.
pub(in crate::config) fn excerpt(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let more = if text.chars().count() > CHARS_MAX { "…" } else { "" };
    format!("\"{}{more}\"", text.chars().take(CHARS_MAX).collect::<String>().escape_debug())
}

/// The boolean that a variable holds.
fn parse_switch(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Some(true),
        "false" | "0" | "off" | "no" => Some(false),
        _ => None,
    }
}
