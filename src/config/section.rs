//! One section of the settings. It is filled from its sources, the lowest first.

use std::collections::{BTreeMap, HashMap};

use config::{Map, Value, ValueKind};

use super::foreign_variables;
use super::problems::{Problems, Source, closest_name};
use super::setting::{RawValue, Setting};
use super::variables::Variables;

/// A `T`, and the source of each of its settings.
pub(super) struct Section<T: 'static> {
    /// The settings.
    pub(super) value: T,
    /// Its path in a file: `server`, `apps[1]`.
    pub(super) name: String,
    settings: &'static [Setting<T>],
    sources: HashMap<&'static str, Source>,
    /// The notes that `config show` prints beside sources.
    notes: HashMap<&'static str, &'static str>,
}

/// A setting in effect, as `config show` prints it.
#[derive(Clone, Debug)]
pub(super) struct EffectiveSetting {
    /// Its key in its section.
    pub(super) key: String,
    /// Its value as TOML, with secrets masked.
    pub(super) value: String,
    /// Where it was set.
    pub(super) source: Source,
    /// A note beside the source.
    pub(super) note: Option<String>,
}

impl<T> Section<T> {
    pub(super) fn new(name: impl Into<String>, settings: &'static [Setting<T>], value: T) -> Self {
        Self { value, name: name.into(), settings, sources: HashMap::new(), notes: HashMap::new() }
    }

    /// The source of the setting `key`.
    pub(super) fn source(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or(Source::Default)
    }

    /// Whether any source sets `key`.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.sources.contains_key(key)
    }

    /// Sets `key` to a value that follows from another setting, which `source` set.
    pub(super) fn derive(&mut self, key: &'static str, source: Source, set: impl FnOnce(&mut T)) {
        set(&mut self.value);
        self.sources.insert(key, source);
    }

    /// Changes the default of `key`, unless a source sets it. `note` is shown beside the default.
    pub(super) fn set_default(&mut self, key: &'static str, note: &'static str, set: impl FnOnce(&mut T)) {
        if !self.is_set(key) {
            set(&mut self.value);
            self.notes.insert(key, note);
        }
    }

    /// The location of the setting `key` for messages: its source and its path.
    pub(super) fn location(&self, key: &str) -> String {
        self.source(key).location(&self.path(key))
    }

    /// The path of `key` in a file.
    pub(super) fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    /// Reads the value that a file has for this section.
    pub(super) fn fill_from_value(&mut self, value: Value, source: &Source, problems: &mut Problems) {
        if let ValueKind::Table(table) = value.kind {
            self.fill_from_table(table, source, problems);
        } else {
            problems.add(source, &self.name, "must be a table");
        }
    }

    /// Reads a table of a file. Unknown keys are reported.
    pub(super) fn fill_from_table(
        &mut self,
        table: Map<String, Value>,
        source: &Source,
        problems: &mut Problems,
    ) {
        let mut found = BTreeMap::new();
        flatten("", table, &mut found);
        for setting in self.settings {
            if let Some(value) = found.remove(setting.key)
                && value != ValueKind::Nil
            {
                self.set(setting, &RawValue::Typed(&value), source.clone(), problems);
            }
        }
        for key in found.keys() {
            let group = format!("{key}.");
            let what = if self.settings.iter().any(|setting| setting.key.starts_with(&group)) {
                "must be a table".to_owned()
            } else {
                unknown_key(key, self.settings.iter().map(|setting| setting.key))
            };
            problems.add(source, &self.path(key), what);
        }
    }

    /// Reads pusherd's own variables.
    pub(super) fn fill_from_variables(
        &mut self,
        prefix: &str,
        variables: &Variables,
        problems: &mut Problems,
    ) {
        for setting in self.settings {
            self.set_first(setting, std::iter::once(&*setting.variable(prefix)), variables, problems);
        }
    }

    /// Reads variables of other servers, unless pusherd's own variable is set.
    pub(super) fn fill_from_foreign(
        &mut self,
        prefix: &str,
        reader: &foreign_variables::Reader<'_>,
        problems: &mut Problems,
    ) {
        for setting in self.settings {
            let own = setting.variable(prefix);
            if set_variable(setting, &own, reader.variables).is_some() {
                continue;
            }
            let Some((value, source)) = reader.alias_value(&own, setting.allows_empty()) else { continue };
            let result = value.and_then(|value| setting.set(&mut self.value, &RawValue::Text(&value)));
            match result {
                Ok(warnings) => self.record(setting, source, &warnings, problems),
                Err(what) => problems.add(&source, "", format_args!("{what}; {own} overrides it")),
            }
        }
    }

    /// Reads the fallback variables of settings that are not set yet. `is_wanted` selects them by the key of the setting
    /// and the name of the variable.
    pub(super) fn fill_from_fallbacks(
        &mut self,
        is_wanted: impl Fn(&str, &str) -> bool,
        variables: &Variables,
        problems: &mut Problems,
    ) {
        for setting in self.settings.iter().filter(|setting| !setting.fallbacks.is_empty()) {
            if !self.is_set(setting.key) {
                let names = setting.fallbacks.iter().copied().filter(|name| is_wanted(setting.key, name));
                self.set_first(setting, names, variables, problems);
            }
        }
    }

    /// Reads the flags of the command line.
    pub(super) fn fill_from_flags(
        &mut self,
        flags: &BTreeMap<&'static str, String>,
        problems: &mut Problems,
    ) {
        for setting in self.settings {
            if let Some((flag, value)) = setting.flag.and_then(|flag| flags.get_key_value(flag)) {
                self.set(setting, &RawValue::Text(value), Source::Flag(flag), problems);
            }
        }
    }

    /// Applies the first of the variables `names` that is set.
    fn set_first<'n>(
        &mut self,
        setting: &Setting<T>,
        mut names: impl Iterator<Item = &'n str>,
        variables: &Variables,
        problems: &mut Problems,
    ) {
        if let Some((value, source)) = names.find_map(|name| set_variable(setting, name, variables)) {
            self.set(setting, &RawValue::Text(&value), source, problems);
        }
    }

    fn set(&mut self, setting: &Setting<T>, raw: &RawValue<'_>, source: Source, problems: &mut Problems) {
        match setting.set(&mut self.value, raw) {
            Ok(warnings) => self.record(setting, source, &warnings, problems),
            Err(what) => problems.add(&source, &self.path(setting.key), what),
        }
    }

    /// Records the source of a setting, and the warnings about its value.
    fn record(&mut self, setting: &Setting<T>, source: Source, warnings: &[String], problems: &mut Problems) {
        warnings.iter().for_each(|warning| problems.warn(&source, &self.path(setting.key), warning));
        self.sources.insert(setting.key, source);
    }

    /// The settings in effect, in the order of the table.
    pub(super) fn effective(&mut self) -> Vec<EffectiveSetting> {
        let effective = |setting: &Setting<T>| EffectiveSetting {
            key: setting.key.to_owned(),
            value: setting.show(&mut self.value),
            source: self.sources.get(setting.key).cloned().unwrap_or(Source::Default),
            note: self.notes.get(setting.key).map(|&note| note.to_owned()),
        };
        self.settings.iter().map(effective).collect()
    }
}

/// The value and the source of the variable `name`, if it sets `setting`.
fn set_variable<T>(setting: &Setting<T>, name: &str, variables: &Variables) -> Option<(String, Source)> {
    variables.get(name).filter(|(value, _)| !value.is_empty() || setting.allows_empty())
}

/// The problem with an unknown key, with the closest of the `known` ones as a hint.
pub(super) fn unknown_key<'k>(key: &str, known: impl Iterator<Item = &'k str>) -> String {
    let hint = closest_name(key, known).map(|known| format!("; did you mean {known}?")).unwrap_or_default();
    format!("is not a setting{hint}")
}

/// Turns nested tables into dotted keys.
fn flatten(prefix: &str, table: Map<String, Value>, found: &mut BTreeMap<String, ValueKind>) {
    for (key, value) in table {
        let key = format!("{prefix}{key}");
        if let ValueKind::Table(table) = value.kind {
            flatten(&format!("{key}."), table, found);
        } else {
            found.insert(key, value.kind);
        }
    }
}
