//! The types that fields of settings have, and how each holds a checked value.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::value::{excerpt, parse_json_list};
use crate::addresses::ForwardedHeader;
use crate::apps::{OriginPattern, SubscriptionErrorFrames};
use crate::protocol::CloseCode;

/// A field that holds a number. It can hold every number between the bounds of its setting.
pub(in crate::config) trait NumberField {
    /// Stores a checked number.
    fn set_number(&mut self, number: u64);
    /// The stored number.
    fn number(&self) -> u64;
}

/// A field that holds one of the words of its setting, by index.
pub(in crate::config) trait ChoiceField {
    /// Stores the word at `index`.
    fn select(&mut self, index: usize);
    /// The index of the stored word.
    fn selected(&self) -> usize;
}

/// A field that holds a list of texts.
pub(in crate::config) trait ListField {
    /// Checks and stores the items.
    ///
    /// # Errors
    /// The reason for each invalid item.
    fn parse(&mut self, items: &[&str]) -> Result<(), String>;
    /// The items as texts.
    fn items(&self) -> Vec<String>;
}

/// A field that holds a list of tables, or of values that can be written as tables.
pub(in crate::config) trait TablesField {
    /// The items of a variable.
    fn items_of_text(&self, text: &str) -> Result<Vec<serde_json::Value>, String> {
        parse_json_list(text)
    }
    /// Checks and stores the tables. Returns warnings.
    ///
    /// # Errors
    /// The reason for each invalid table.
    fn parse(&mut self, tables: Vec<serde_json::Value>) -> Result<Vec<String>, String>;
    /// The list as TOML, with secrets masked.
    fn show(&self) -> String;
}

macro_rules! number_fields {
    ($($integer:ty),+) => {$(
        impl NumberField for $integer {
            fn set_number(&mut self, number: u64) {
                *self = Self::try_from(number).unwrap_or(Self::MAX);
            }

            fn number(&self) -> u64 {
                u64::try_from(*self).unwrap_or(u64::MAX)
            }
        }
    )+};
}

number_fields!(u8, u16, u32, u64, usize);

impl NumberField for Duration {
    fn set_number(&mut self, number: u64) {
        *self = Self::from_secs(number);
    }

    fn number(&self) -> u64 {
        self.as_secs()
    }
}

/// `None` is 0.
impl NumberField for Option<u16> {
    fn set_number(&mut self, number: u64) {
        *self = u16::try_from(number).ok().filter(|number| *number > 0);
    }

    fn number(&self) -> u64 {
        self.map_or(0, u64::from)
    }
}

/// `None` is 0.
impl NumberField for Option<u32> {
    fn set_number(&mut self, number: u64) {
        *self = u32::try_from(number).ok().filter(|number| *number > 0);
    }

    fn number(&self) -> u64 {
        self.map_or(0, u64::from)
    }
}

/// `None` is 0.
impl NumberField for Option<Duration> {
    fn set_number(&mut self, number: u64) {
        *self = (number > 0).then(|| Duration::from_secs(number));
    }

    fn number(&self) -> u64 {
        self.map_or(0, |duration| duration.as_secs())
    }
}

/// Implements [`ChoiceField`] for a type, with its values in the order of the words of its setting.
macro_rules! choice_field {
    ($type:ty: $($value:expr),+) => {
        impl $crate::config::setting::ChoiceField for $type {
            fn select(&mut self, index: usize) {
                *self = [$($value),+][index];
            }

            fn selected(&self) -> usize {
                [$($value),+].iter().position(|value| value == self).unwrap_or_default()
            }
        }
    };
}
pub(in crate::config) use choice_field;

choice_field!(bool: false, true);
choice_field!(CloseCode: Self::Unauthorized, Self::Reconnect);
choice_field!(ForwardedHeader: Self::XForwardedFor, Self::Forwarded);
choice_field!(SubscriptionErrorFrames: Self::Both, Self::Channel, Self::Connection);

impl ListField for Vec<IpNet> {
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

/// The empty list allows all origins; it is written `["*"]`.
impl ListField for Vec<OriginPattern> {
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
