//! What a setting may be: how a value is checked, put into its field, and shown.
//!
//! A [`Setting`] is one row of the tables in `schema`. It knows its field by a function, so the rooms' own types
//! are filled in directly and their `Default` is the only place that holds a default.

use std::net::IpAddr;
use std::time::Duration;

use config::ValueKind;
use ipnet::IpNet;

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
    /// Variables of other servers that mean the same, the first that is set counts. Below pusherd's own.
    pub(super) aliases: &'static [&'static str],
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

pub(super) const fn choice<T>(words: &'static [&'static str], field: fn(&mut T) -> &mut dyn Choice) -> Kind<T> {
    Kind::Choice { words, field }
}

pub(super) const fn setting<T>(key: &'static str, kind: Kind<T>, doc: &'static str) -> Setting<T> {
    Setting { key, kind, doc, aliases: &[], flag: None, default: None }
}

impl<T> Setting<T> {
    pub(super) const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
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

    /// Checks `given` and puts it into its field of `target`, or says what it must be.
    pub(super) fn put(&self, target: &mut T, given: &Given<'_>) -> Result<(), String> {
        match &self.kind {
            Kind::Number { zero, min, max, field } => {
                let must = self.may_be();
                let number = given.number().map_err(|found| format!("must be {must}, not {found}"))?;
                let in_range = (*min..=*max).contains(&number) || (number == 0 && zero.is_some());
                if !in_range {
                    return Err(format!("must be {must}, not {number}"));
                }
                field(target).put(number);
            }
            Kind::Switch(field) => {
                *field(target) =
                    given.switch().map_err(|found| format!("must be true or false, not {found}"))?;
            }
            Kind::Choice { words, field } => {
                let index = given.word(words).map_err(|found| format!("must be {}, not {found}", self.may_be()))?;
                field(target).pick(index);
            }
            Kind::Text { check, field, .. } => {
                *field(target) = check(given.text()?)?.into();
            }
            Kind::List { field, .. } => field(target).parse(&given.list()?)?,
        }
        Ok(())
    }

    /// Whether a variable set to the empty text means that, and not that it is not set.
    pub(super) fn may_be_empty(&self) -> bool {
        match &self.kind {
            Kind::Text { check, .. } => check("").is_ok(),
            Kind::List { .. } => true,
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
            Kind::Choice { words, .. } => words.join(" or "),
            Kind::Text { what, .. } => (*what).to_owned(),
            Kind::List { what, .. } => format!("a list of {what}"),
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
            Self::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "on" | "yes" => Ok(true),
                "false" | "0" | "off" | "no" => Ok(false),
                _ => Err(excerpt(text)),
            },
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
                items.iter().map(item).collect::<Result<_, _>>().map_err(|_| "must be a list of texts".to_owned())
            }
            Self::Value(value) => Err(format!("must be a list, not {}", found(value))),
        }
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
choice_field!(SubscriptionErrorFrames: Self::Both, Self::Channel, Self::Connection);

impl List for Vec<IpNet> {
    fn parse(&mut self, items: &[&str]) -> Result<(), String> {
        let network = |item: &str| item.parse().or_else(|_| item.parse::<IpAddr>().map(IpNet::from)).ok();
        *self = parse_all(items, |item| network(item).ok_or("is not an address or a network such as 10.0.0.0/8"))?;
        Ok(())
    }

    fn items(&self) -> Vec<String> {
        let one = |network: &IpNet| network.prefix_len() == network.max_prefix_len();
        let item = |network: &IpNet| if one(network) { network.addr().to_string() } else { network.to_string() };
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
