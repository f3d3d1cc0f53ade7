//! What a setting may be: how a value is checked, put into its field, and shown.
//!
//! A [`Setting`] is one row of the tables in `schema`. It knows its field by a function, so the rooms' own
//! types are filled in directly and their `Default` is the only place that holds a default.

use std::net::IpAddr;
use std::time::Duration;

use config::ValueKind;
use ipnet::IpNet;

use super::secret::Secret;
use crate::addresses::ForwardedHeader;
use crate::apps::{OriginPattern, SubscriptionErrorFrames};
use crate::protocol::CloseCode;

/// One setting of a `T`.
pub(super) struct Setting<T: 'static> {
    /// Where it stands in its section of the file: `port`, `limits.presence_members`.
    pub(super) key: &'static str,
    /// What it may be and which field it fills.
    pub(super) kind: Kind<T>,
    /// What it is for, as Markdown.
    pub(super) doc: &'static str,
    /// Variables of others that mean the same, below the file: they say how the application does it, and may be there
    /// without a thought of pusherd. Those above the file are in `foreign`.
    pub(super) fallbacks: &'static [&'static str],
    /// Words of other servers, and which of the setting's own each stands for.
    pub(super) synonyms: &'static [(&'static str, &'static str)],
    /// The flag of the command line that sets it.
    pub(super) flag: Option<&'static str>,
    /// The default in words, where it depends on other settings.
    pub(super) default: Option<&'static str>,
}

/// What a setting may be, and the field it fills.
pub(super) enum Kind<T> {
    /// A whole number of `min` to `max`, or 0 where that has a meaning of its own.
    Number { zero: Option<&'static str>, min: u64, max: u64, field: fn(&mut T) -> &mut dyn Number },
    /// Yes or no.
    Switch(fn(&mut T) -> &mut bool),
    /// One of some words.
    Choice { words: &'static [&'static str], field: fn(&mut T) -> &mut dyn Choice },
    /// A text that `check` accepts and brings into its canonical form.
    Text { what: &'static str, check: fn(&str) -> Result<String, String>, field: fn(&mut T) -> &mut Box<str> },
    /// A text that `check` accepts, and of which only what `mask` leaves may be seen. Empty is none.
    Secret {
        what: &'static str,
        check: fn(&str) -> Result<String, String>,
        mask: fn(&str) -> String,
        field: fn(&mut T) -> &mut Secret,
    },
    /// A list of tables, in a variable as JSON.
    Tables { what: &'static str, field: fn(&mut T) -> &mut dyn Tables },
    /// A list of texts.
    List { what: &'static str, field: fn(&mut T) -> &mut dyn List },
}

/// A value as it was written.
pub(super) enum Given<'a> {
    /// In a variable or a flag, where everything is text.
    Text(&'a str),
    /// In a file, where it has a type.
    Value(&'a ValueKind),
}

/// A field that holds a number. Its setting's bounds are within the field's.
pub(super) trait Number {
    /// Takes a number that has been checked.
    fn put(&mut self, number: u64);
    /// The number it holds.
    fn number(&self) -> u64;
}

/// A field that holds one of its setting's words, by their place.
pub(super) trait Choice {
    /// Takes the word at `index`.
    fn pick(&mut self, index: usize);
    /// The place of the word it holds.
    fn picked(&self) -> usize;
}

/// A field that holds a list.
pub(super) trait List {
    /// Takes the items in, or says what is wrong with each that is.
    fn parse(&mut self, items: &[&str]) -> Result<(), String>;
    /// The items as text.
    fn items(&self) -> Vec<String>;
}

/// A field that holds a list of tables, or of what may be written as one.
pub(super) trait Tables {
    /// The items of a variable.
    fn of_variable(&self, text: &str) -> Result<Vec<serde_json::Value>, String> {
        list_of_json(text)
    }
    /// Takes the tables in and answers what is remarkable, or says what is wrong with each that is.
    fn parse(&mut self, tables: Vec<serde_json::Value>) -> Result<Vec<String>, String>;
    /// The list as TOML, secrets masked.
    fn show(&self) -> String;
}

pub(super) const fn number<T>(min: u64, max: u64, field: fn(&mut T) -> &mut dyn Number) -> Kind<T> {
    Kind::Number { zero: None, min, max, field }
}

pub(super) const fn number_or_zero<T>(
    zero: &'static str,
    min: u64,
    max: u64,
    field: fn(&mut T) -> &mut dyn Number,
) -> Kind<T> {
    Kind::Number { zero: Some(zero), min, max, field }
}

pub(super) const fn choice<T>(
    words: &'static [&'static str],
    field: fn(&mut T) -> &mut dyn Choice,
) -> Kind<T> {
    Kind::Choice { words, field }
}

pub(super) const fn switch<T>(field: fn(&mut T) -> &mut bool) -> Kind<T> {
    Kind::Switch(field)
}

pub(super) const fn text<T>(
    what: &'static str,
    check: fn(&str) -> Result<String, String>,
    field: fn(&mut T) -> &mut Box<str>,
) -> Kind<T> {
    Kind::Text { what, check, field }
}

pub(super) const fn secret<T>(
    what: &'static str,
    check: fn(&str) -> Result<String, String>,
    mask: fn(&str) -> String,
    field: fn(&mut T) -> &mut Secret,
) -> Kind<T> {
    Kind::Secret { what, check, mask, field }
}

pub(super) const fn tables<T>(what: &'static str, field: fn(&mut T) -> &mut dyn Tables) -> Kind<T> {
    Kind::Tables { what, field }
}

pub(super) const fn list<T>(what: &'static str, field: fn(&mut T) -> &mut dyn List) -> Kind<T> {
    Kind::List { what, field }
}

impl<T> Setting<T> {
    pub(super) const fn new(key: &'static str, kind: Kind<T>, doc: &'static str) -> Self {
        Self { key, kind, doc, fallbacks: &[], synonyms: &[], flag: None, default: None }
    }

    pub(super) const fn fallbacks(mut self, fallbacks: &'static [&'static str]) -> Self {
        self.fallbacks = fallbacks;
        self
    }

    pub(super) const fn synonyms(mut self, synonyms: &'static [(&'static str, &'static str)]) -> Self {
        self.synonyms = synonyms;
        self
    }

    pub(super) const fn flag(mut self, flag: &'static str) -> Self {
        self.flag = Some(flag);
        self
    }

    pub(super) const fn default(mut self, words: &'static str) -> Self {
        self.default = Some(words);
        self
    }

    /// Its variable, for a section whose variables begin with `prefix`.
    pub(super) fn variable(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.key.to_ascii_uppercase().replace('.', "_"))
    }

    /// Checks `given`, puts it into its field of `target` and answers what is remarkable, or says what it must be.
    pub(super) fn put(&self, target: &mut T, given: &Given<'_>) -> Result<Vec<String>, String> {
        match &self.kind {
            Kind::Number { zero, min, max, field } => {
                let must = self.may_be();
                let number = given.number().map_err(|found| {
                    format!(
                        "must be {must}, not {found}{}",
                        given.in_quotes(|text| text.parse::<u64>().is_ok())
                    )
                })?;
                let in_range = (*min..=*max).contains(&number) || (number == 0 && zero.is_some());
                if !in_range {
                    return Err(format!("must be {must}, not {number}"));
                }
                field(target).put(number);
            }
            Kind::Switch(field) => {
                *field(target) = given.switch().map_err(|found| {
                    format!(
                        "must be true or false, not {found}{}",
                        given.in_quotes(|text| text.parse::<bool>().is_ok())
                    )
                })?;
            }
            Kind::Choice { words, field } => {
                let synonym = self.synonyms.iter().find(|(word, _)| given.is_word(word));
                let own = synonym.map(|(_, own)| Given::Text(own));
                let index = own
                    .as_ref()
                    .unwrap_or(given)
                    .word(words)
                    .map_err(|found| format!("must be {}, not {found}", self.may_be()))?;
                field(target).pick(index);
            }
            Kind::Text { check, field, .. } => {
                *field(target) = check(given.text()?)?.into();
            }
            Kind::Secret { check, field, .. } => {
                *field(target) = Secret::new(&check(given.text()?)?);
            }
            Kind::Tables { field, .. } => {
                let field = field(target);
                let items = given.items(field)?;
                return field.parse(items);
            }
            Kind::List { field, .. } => field(target).parse(&given.list()?)?,
        }
        Ok(Vec::new())
    }

    /// Whether a variable set to the empty text means that, and not that it is not set.
    pub(super) fn may_be_empty(&self) -> bool {
        match &self.kind {
            Kind::Text { check, .. } | Kind::Secret { check, .. } => check("").is_ok(),
            Kind::List { .. } | Kind::Tables { .. } => true,
            Kind::Number { .. } | Kind::Switch(_) | Kind::Choice { .. } => false,
        }
    }

    /// Its value in `target`, as TOML.
    pub(super) fn show(&self, target: &mut T) -> String {
        match &self.kind {
            Kind::Number { field, .. } => field(target).number().to_string(),
            Kind::Switch(field) => field(target).to_string(),
            Kind::Choice { words, field } => match words[field(target).picked()] {
                word if word.bytes().all(|byte| byte.is_ascii_digit()) => word.to_owned(),
                word => quoted(word),
            },
            Kind::Text { field, .. } => quoted(field(target)),
            Kind::Secret { field, mask, .. } => match field(target).expose() {
                "" => quoted(""),
                text => quoted(&mask(text)),
            },
            Kind::Tables { field, .. } => field(target).show(),
            Kind::List { field, .. } => {
                let items: Vec<_> = field(target).items().iter().map(|item| quoted(item)).collect();
                format!("[{}]", items.join(", "))
            }
        }
    }

    /// What it may be, in words that follow "must be".
    pub(super) fn may_be(&self) -> String {
        match &self.kind {
            Kind::Number { zero: None, min, max, .. } => format!("{min} to {max}"),
            Kind::Number { zero: Some(zero), min, max, .. } => format!("0 ({zero}) or {min} to {max}"),
            Kind::Switch(_) => "true or false".to_owned(),
            Kind::Choice { words, .. } => match words {
                [] => String::new(),
                [others @ .., last] => format!("{} or {last}", others.join(", ")),
            },
            Kind::Text { what, .. } | Kind::Secret { what, .. } => (*what).to_owned(),
            Kind::List { what, .. } | Kind::Tables { what, .. } => format!("a list of {what}"),
        }
    }
}

/// `text` as a TOML string, which JSON's strings are too.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A value of another type than asked for, in words that follow "not".
fn found(value: &ValueKind) -> String {
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

/// The start of `text` in quotes, fit for a message.
pub(super) fn excerpt(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let more = if text.chars().count() > CHARS_MAX { "…" } else { "" };
    format!("\"{}{more}\"", text.chars().take(CHARS_MAX).collect::<String>().escape_debug())
}

/// What a variable that is a switch says.
fn switch_of(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Some(true),
        "false" | "0" | "off" | "no" => Some(false),
        _ => None,
    }
}

impl<'a> Given<'a> {
    fn number(&self) -> Result<u64, String> {
        match self {
            Self::Text(text) => text.trim().parse().map_err(|_| excerpt(text)),
            Self::Value(ValueKind::U64(number)) => Ok(*number),
            Self::Value(ValueKind::I64(number)) => u64::try_from(*number).map_err(|_| number.to_string()),
            Self::Value(value) => Err(found(value)),
        }
    }

    fn switch(&self) -> Result<bool, String> {
        match self {
            Self::Text(text) => switch_of(text).ok_or_else(|| excerpt(text)),
            Self::Value(ValueKind::Boolean(value)) => Ok(*value),
            Self::Value(value) => Err(found(value)),
        }
    }

    /// The place of the word. Two words are a switch in other servers and in YAML: `false` is the first.
    fn word(&self, words: &[&str]) -> Result<usize, String> {
        let text = match self {
            Self::Text(text) => text.trim().to_owned(),
            Self::Value(ValueKind::String(text)) => text.clone(),
            Self::Value(value) => found(value),
        };
        let place = words.iter().position(|word| word.eq_ignore_ascii_case(&text));
        let as_switch = || if words.len() == 2 { self.switch().ok().map(usize::from) } else { None };
        place.or_else(as_switch).ok_or_else(|| match self {
            Self::Text(text) => excerpt(text),
            Self::Value(value) => found(value),
        })
    }

    /// What to say of a text of a file that would be right without its quotes.
    fn in_quotes(&self, would_be_right: impl Fn(&str) -> bool) -> &'static str {
        match self {
            Self::Value(ValueKind::String(text)) if would_be_right(text.trim()) => {
                ": write it without quotes"
            }
            Self::Value(_) | Self::Text(_) => "",
        }
    }

    /// Whether it is this word.
    fn is_word(&self, word: &str) -> bool {
        match self {
            Self::Text(text) => text.trim().eq_ignore_ascii_case(word),
            Self::Value(value) => matches!(value, ValueKind::String(text) if text.eq_ignore_ascii_case(word)),
        }
    }

    /// The text. Nothing else is taken for one: formats disagree on what `007` is, so text has quotes.
    pub(super) fn text(&self) -> Result<&'a str, String> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Value(ValueKind::String(text)) => Ok(text),
            Self::Value(ValueKind::Table(_)) => Err("must be text, not a table".to_owned()),
            Self::Value(ValueKind::Array(_)) => Err("must be text, not a list".to_owned()),
            Self::Value(_) => Err("must be text: write it in quotes".to_owned()),
        }
    }

    /// The items; in a variable they stand between commas.
    fn list(&self) -> Result<Vec<&'a str>, String> {
        match self {
            Self::Text(text) => Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()),
            Self::Value(ValueKind::Array(items)) => {
                let item = |item: &'a config::Value| Given::Value(&item.kind).text();
                items
                    .iter()
                    .map(item)
                    .collect::<Result<_, _>>()
                    .map_err(|_| "must be a list of texts".to_owned())
            }
            Self::Value(value) => Err(format!("must be a list, not {}", found(value))),
        }
    }
}

impl Given<'_> {
    /// The items of a list of tables, as JSON.
    fn items(&self, field: &dyn Tables) -> Result<Vec<serde_json::Value>, String> {
        match self {
            Self::Text(text) if text.trim().is_empty() => Ok(Vec::new()),
            Self::Text(text) => field.of_variable(text),
            Self::Value(ValueKind::Array(items)) => Ok(items.iter().map(|item| json(&item.kind)).collect()),
            // Not shown: it may hold a secret.
            Self::Value(_) => Err("must be a list".to_owned()),
        }
    }
}

/// The items of a list that is written as JSON.
pub(super) fn list_of_json(text: &str) -> Result<Vec<serde_json::Value>, String> {
    // What the parser says may quote the text, which may hold a secret: its place is enough.
    serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("must be a list as JSON, and is not at line {line}, column {column}")
    })
}

fn json(value: &ValueKind) -> serde_json::Value {
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
            Value::Object(table.iter().map(|(key, value)| (key.clone(), json(&value.kind))).collect())
        }
        ValueKind::Array(items) => Value::Array(items.iter().map(|item| json(&item.kind)).collect()),
    }
}

macro_rules! number_fields {
    ($($integer:ty),+) => {$(
        impl Number for $integer {
            fn put(&mut self, number: u64) {
                *self = Self::try_from(number).unwrap_or(Self::MAX);
            }

            fn number(&self) -> u64 {
                u64::try_from(*self).unwrap_or(u64::MAX)
            }
        }
    )+};
}

number_fields!(u8, u16, u32, u64, usize);

impl Number for Duration {
    fn put(&mut self, number: u64) {
        *self = Self::from_secs(number);
    }

    fn number(&self) -> u64 {
        self.as_secs()
    }
}

/// `None` is 0.
impl Number for Option<u16> {
    fn put(&mut self, number: u64) {
        *self = u16::try_from(number).ok().filter(|number| *number > 0);
    }

    fn number(&self) -> u64 {
        self.map_or(0, u64::from)
    }
}

/// `None` is 0.
impl Number for Option<u32> {
    fn put(&mut self, number: u64) {
        *self = u32::try_from(number).ok().filter(|number| *number > 0);
    }

    fn number(&self) -> u64 {
        self.map_or(0, u64::from)
    }
}

/// `None` is 0.
impl Number for Option<Duration> {
    fn put(&mut self, number: u64) {
        *self = (number > 0).then(|| Duration::from_secs(number));
    }

    fn number(&self) -> u64 {
        self.map_or(0, |duration| duration.as_secs())
    }
}

/// Makes a type a [`Choice`] of some of its values, in the order of its setting's words.
macro_rules! choice_field {
    ($type:ty: $($value:expr),+) => {
        impl $crate::config::kind::Choice for $type {
            fn pick(&mut self, index: usize) {
                *self = [$($value),+][index];
            }

            fn picked(&self) -> usize {
                [$($value),+].iter().position(|value| value == self).unwrap_or_default()
            }
        }
    };
}
pub(super) use choice_field;

choice_field!(bool: false, true);
choice_field!(CloseCode: Self::Unauthorized, Self::Reconnect);
choice_field!(ForwardedHeader: Self::XForwardedFor, Self::Forwarded);
choice_field!(SubscriptionErrorFrames: Self::Both, Self::Channel, Self::Connection);

impl List for Vec<IpNet> {
    fn parse(&mut self, items: &[&str]) -> Result<(), String> {
        let network = |item: &str| item.parse().or_else(|_| item.parse::<IpAddr>().map(IpNet::from)).ok();
        *self = parse_all(items, |item| {
            network(item).ok_or("is not an address or a network such as 10.0.0.0/8")
        })?;
        Ok(())
    }

    fn items(&self) -> Vec<String> {
        let one = |network: &IpNet| network.prefix_len() == network.max_prefix_len();
        let item =
            |network: &IpNet| if one(network) { network.addr().to_string() } else { network.to_string() };
        self.iter().map(item).collect()
    }
}

/// Empty is all origins, which is written `["*"]`.
impl List for Vec<OriginPattern> {
    fn parse(&mut self, items: &[&str]) -> Result<(), String> {
        if items.is_empty() {
            return Err("lists no origin, so no browser could connect; [\"*\"] is all".to_owned());
        }
        let patterns = parse_all(items, OriginPattern::parse)?;
        *self = if items.contains(&"*") { Vec::new() } else { patterns };
        Ok(())
    }

    fn items(&self) -> Vec<String> {
        if self.is_empty() {
            return vec!["*".to_owned()];
        }
        self.iter().map(|pattern| pattern.as_str().to_owned()).collect()
    }
}

fn parse_all<I, E: std::fmt::Display>(
    items: &[&str],
    parse: impl Fn(&str) -> Result<I, E>,
) -> Result<Vec<I>, String> {
    let (mut parsed, mut wrong) = (Vec::with_capacity(items.len()), Vec::new());
    for item in items {
        match parse(item) {
            Ok(item) => parsed.push(item),
            Err(why) => wrong.push(format!("{}: {why}", excerpt(item))),
        }
    }
    if wrong.is_empty() { Ok(parsed) } else { Err(wrong.join("; ")) }
}

#[cfg(test)]
mod tests {
    use config::{FileFormat, Format as _, Value};

    use super::super::apps::Draft;
    use super::super::redis::Redis;
    use super::super::schema::{APP, LOG, REDIS, SERVER, WEBHOOKS};
    use super::super::{Log, Server, Webhooks};
    use super::*;

    /// Puts `value`, as TOML, into the setting `key` of a default app, and shows what became of it.
    fn put(key: &str, given: &Given<'_>) -> Result<String, String> {
        let row = APP.iter().find(|row| row.key == key).unwrap();
        let mut app = Draft::defaults();
        row.put(&mut app, given)?;
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
            let found = put(key, &Given::Value(&value.kind));
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{key} = {toml}");
        }
    }

    #[test]
    fn a_variable_is_text_that_reads_as_its_setting() {
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
            let found = put(key, &Given::Text(text));
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{key} = {text}");
        }
    }

    #[test]
    fn each_wrong_item_of_a_list_is_named() {
        let row = SERVER.iter().find(|row| row.key == "trusted_proxies").unwrap();
        let mut server = Server::default();
        let given = Given::Text("10.0.0.0/8,proxy,10.0.0.0/33,::1,192.168.0.1");
        let wrong = row.put(&mut server, &given).unwrap_err();
        assert!(wrong.contains("\"proxy\"") && wrong.contains("/33") && !wrong.contains("::1"), "{wrong}");
        row.put(&mut server, &Given::Text("10.0.0.0/8,::1,192.168.0.1")).unwrap();
        assert_eq!(row.show(&mut server), "[\"10.0.0.0/8\", \"::1\", \"192.168.0.1\"]");
    }

    #[test]
    fn a_value_is_quoted_in_part_and_without_control_characters() {
        let found = put("client_events", &Given::Text(&format!("\x1b\n{}", "x".repeat(100)))).unwrap_err();
        assert!(found.contains("\\u{1b}\\n") && found.len() < 120, "{found}");
    }

    /// What a table of settings must hold for each of its rows.
    fn check<T>(settings: &[Setting<T>], mut defaults: T) {
        for row in settings {
            let shown = row.show(&mut defaults);
            let value = value(&shown);
            assert_eq!(
                row.put(&mut defaults, &Given::Value(&value.kind)),
                Ok(Vec::new()),
                "{}: its default",
                row.key
            );
            assert_eq!(row.show(&mut defaults), shown, "{} changes when its default is set", row.key);
            assert!(row.doc.ends_with('.'), "{} is explained in sentences", row.key);
            if let Kind::Number { min, max, field, zero } = &row.kind {
                for bound in [*min, *max] {
                    field(&mut defaults).put(bound);
                    assert_eq!(field(&mut defaults).number(), bound, "{} holds its bounds", row.key);
                }
                assert!(zero.is_none() || *min > 0, "{}: 0 is in its range", row.key);
            }
            if let Kind::Choice { words, field } = &row.kind {
                for index in 0..words.len() {
                    field(&mut defaults).pick(index);
                    assert_eq!(field(&mut defaults).picked(), index, "{} holds its words", row.key);
                }
            }
        }
    }

    #[test]
    fn every_setting_takes_its_default_its_bounds_and_its_words() {
        check(SERVER, Server::default());
        check(LOG, Log::default());
        check(REDIS, Redis::default());
        check(WEBHOOKS, Webhooks::default());
        check(APP, Draft::defaults());
    }
}
