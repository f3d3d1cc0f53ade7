//! What a setting allows: how a value is checked, stored in its field and shown.
//!
//! A [`Setting`] is one row of the tables in `schema`. It reaches its field through a function, so it fills the types of
//! the modules directly, and their `Default` is the only place that holds a default.

mod fields;
#[cfg(test)]
mod tests;
mod value;

pub(super) use fields::{ChoiceField, ListField, NumberField, TablesField, choice_field};
pub(super) use value::{RawValue, excerpt, parse_json_list, toml_string};

use crate::secret::Secret;

/// One setting of a `T`.
pub(super) struct Setting<T: 'static> {
    /// Its key in its section of the file: `port`, `limits.presence_members`.
    pub(super) key: &'static str,
    /// The values that it allows and the field that it fills.
    pub(super) kind: Kind<T>,
    /// Its meaning, as Markdown.
    pub(super) doc: &'static str,
    /// Variables of other programs with the same meaning. They rank below the file, because an application has them
    /// for purposes of its own. Variables that rank above the file are in `foreign_variables`.
    pub(super) fallbacks: &'static [&'static str],
    /// Words of other servers, each with the word of this setting that it stands for.
    pub(super) synonyms: &'static [(&'static str, &'static str)],
    /// Its command-line flag.
    pub(super) flag: Option<&'static str>,
    /// The default in words, if it depends on other settings.
    pub(super) default: Option<&'static str>,
}

/// The values that a setting allows, and the field that it fills.
pub(super) enum Kind<T> {
    /// An integer from `min` to `max`; also 0, if `zero` gives it a meaning.
    Number { zero: Option<&'static str>, min: u64, max: u64, field: fn(&mut T) -> &mut dyn NumberField },
    /// A boolean.
    Switch(fn(&mut T) -> &mut bool),
    /// One word of a list.
    Choice { words: &'static [&'static str], field: fn(&mut T) -> &mut dyn ChoiceField },
    /// A text that `check` accepts and normalises.
    Text {
        allowed: &'static str,
        check: fn(&str) -> Result<String, String>,
        field: fn(&mut T) -> &mut Box<str>,
    },
    /// A text that `check` accepts, and that is shown only as `mask` returns it. The empty text is no secret.
    Secret {
        allowed: &'static str,
        check: fn(&str) -> Result<String, String>,
        mask: fn(&str) -> String,
        field: fn(&mut T) -> &mut Secret,
    },
    /// A list of tables; in a variable, as JSON.
    Tables { allowed: &'static str, field: fn(&mut T) -> &mut dyn TablesField },
    /// A list of texts.
    List { allowed: &'static str, field: fn(&mut T) -> &mut dyn ListField },
}

pub(super) const fn number<T>(min: u64, max: u64, field: fn(&mut T) -> &mut dyn NumberField) -> Kind<T> {
    Kind::Number { zero: None, min, max, field }
}

pub(super) const fn number_or_zero<T>(
    zero: &'static str,
    min: u64,
    max: u64,
    field: fn(&mut T) -> &mut dyn NumberField,
) -> Kind<T> {
    Kind::Number { zero: Some(zero), min, max, field }
}

pub(super) const fn choice<T>(
    words: &'static [&'static str],
    field: fn(&mut T) -> &mut dyn ChoiceField,
) -> Kind<T> {
    Kind::Choice { words, field }
}

pub(super) const fn switch<T>(field: fn(&mut T) -> &mut bool) -> Kind<T> {
    Kind::Switch(field)
}

pub(super) const fn text<T>(
    allowed: &'static str,
    check: fn(&str) -> Result<String, String>,
    field: fn(&mut T) -> &mut Box<str>,
) -> Kind<T> {
    Kind::Text { allowed, check, field }
}

pub(super) const fn secret<T>(
    allowed: &'static str,
    check: fn(&str) -> Result<String, String>,
    mask: fn(&str) -> String,
    field: fn(&mut T) -> &mut Secret,
) -> Kind<T> {
    Kind::Secret { allowed, check, mask, field }
}

pub(super) const fn tables<T>(allowed: &'static str, field: fn(&mut T) -> &mut dyn TablesField) -> Kind<T> {
    Kind::Tables { allowed, field }
}

pub(super) const fn list<T>(allowed: &'static str, field: fn(&mut T) -> &mut dyn ListField) -> Kind<T> {
    Kind::List { allowed, field }
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

    /// The name of its variable, in a section whose variables begin with `prefix`.
    pub(super) fn variable(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.key.to_ascii_uppercase().replace('.', "_"))
    }

    /// Checks `raw` and stores it in its field of `target`. Returns warnings.
    ///
    /// # Errors
    /// What is allowed and what was given, in words that follow the key.
    pub(super) fn set(&self, target: &mut T, raw: &RawValue<'_>) -> Result<Vec<String>, String> {
        match &self.kind {
            Kind::Number { zero, min, max, field } => {
                let allowed = self.allowed();
                let number = raw.number().map_err(|given| {
                    let hint = raw.quotes_hint(|text| text.parse::<u64>().is_ok());
                    format!("must be {allowed}, not {given}{hint}")
                })?;
                let in_range = (*min..=*max).contains(&number) || (number == 0 && zero.is_some());
                if !in_range {
                    return Err(format!("must be {allowed}, not {number}"));
                }
                field(target).set_number(number);
            }
            Kind::Switch(field) => {
                *field(target) = raw.switch().map_err(|given| {
                    let hint = raw.quotes_hint(|text| text.parse::<bool>().is_ok());
                    format!("must be true or false, not {given}{hint}")
                })?;
            }
            Kind::Choice { words, field } => {
                let synonym = self.synonyms.iter().find(|(word, _)| raw.is_word(word));
                let own = synonym.map(|(_, own)| RawValue::Text(own));
                let index = own
                    .as_ref()
                    .unwrap_or(raw)
                    .index_in(words)
                    .map_err(|given| format!("must be {}, not {given}", self.allowed()))?;
                field(target).select(index);
            }
            Kind::Text { check, field, .. } => {
                *field(target) = check(raw.text()?)?.into();
            }
            Kind::Secret { check, field, .. } => {
                *field(target) = Secret::new(&check(raw.text()?)?);
            }
            Kind::Tables { field, .. } => {
                let field = field(target);
                let items = raw.items(field)?;
                return field.parse(items);
            }
            Kind::List { field, .. } => field(target).parse(&raw.list()?)?,
        }
        Ok(Vec::new())
    }

    /// Whether the empty text in a variable is a value; otherwise such a variable is not set.
    pub(super) fn allows_empty(&self) -> bool {
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
            Kind::Choice { words, field } => match words[field(target).selected()] {
                word if word.bytes().all(|byte| byte.is_ascii_digit()) => word.to_owned(),
                word => toml_string(word),
            },
            Kind::Text { field, .. } => toml_string(field(target)),
            Kind::Secret { field, mask, .. } => match field(target).expose() {
                "" => toml_string(""),
                text => toml_string(&mask(text)),
            },
            Kind::Tables { field, .. } => field(target).show(),
            Kind::List { field, .. } => {
                let items: Vec<_> = field(target).items().iter().map(|item| toml_string(item)).collect();
                format!("[{}]", items.join(", "))
            }
        }
    }

    /// The values that it allows, in words that follow "must be".
    pub(super) fn allowed(&self) -> String {
        match &self.kind {
            Kind::Number { zero: None, min, max, .. } => format!("{min} to {max}"),
            Kind::Number { zero: Some(zero), min, max, .. } => format!("0 ({zero}) or {min} to {max}"),
            Kind::Switch(_) => "true or false".to_owned(),
            Kind::Choice { words, .. } => match words {
                [] => String::new(),
                [others @ .., last] => format!("{} or {last}", others.join(", ")),
            },
            Kind::Text { allowed, .. } | Kind::Secret { allowed, .. } => (*allowed).to_owned(),
            Kind::List { allowed, .. } | Kind::Tables { allowed, .. } => format!("a list of {allowed}"),
        }
    }
}
