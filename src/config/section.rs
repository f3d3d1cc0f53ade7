//! One section of the settings, being filled from its sources, the lowest first.

use std::collections::{BTreeMap, HashMap};

use config::{Map, Value, ValueKind};

use super::foreign;
use super::kind::{Given, Setting};
use super::problem::{Problems, Source, closest};
use super::variables::Variables;

/// A `T` that is being filled, and where each of its settings came from.
pub(super) struct Section<T: 'static> {
    /// What is filled.
    pub(super) value: T,
    /// Where it stands in a file: `server`, `apps[1]`.
    pub(super) at: String,
    settings: &'static [Setting<T>],
    sources: HashMap<&'static str, Source>,
    /// What is said beside the source of a setting when it is shown.
    notes: HashMap<&'static str, &'static str>,
}

/// A setting as it is in effect.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// Where it stands in its section.
    pub(super) key: String,
    /// Its value, as TOML; secrets are masked.
    pub(super) value: String,
    /// Where it was set.
    pub(super) source: Source,
    /// What else there is to say.
    pub(super) note: Option<String>,
}

impl<T> Section<T> {
    pub(super) fn new(at: impl Into<String>, settings: &'static [Setting<T>], value: T) -> Self {
        Self { value, at: at.into(), settings, sources: HashMap::new(), notes: HashMap::new() }
    }

    /// Where the setting `key` was set.
    pub(super) fn source(&self, key: &str) -> Source {
        self.sources.get(key).cloned().unwrap_or(Source::Default)
    }

    /// Whether the setting `key` was set anywhere.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.sources.contains_key(key)
    }

    /// Sets what follows from something that was written in `source`.
    pub(super) fn derive(&mut self, key: &'static str, source: Source, put: impl FnOnce(&mut T)) {
        put(&mut self.value);
        self.sources.insert(key, source);
    }

    /// Puts another default into a setting that was not set, and says why beside it.
    pub(super) fn put_default(&mut self, key: &'static str, note: &'static str, put: impl FnOnce(&mut T)) {
        if !self.is_set(key) {
            put(&mut self.value);
            self.notes.insert(key, note);
        }
    }

    /// Where the setting `key` was set, as it is named in messages.
    pub(super) fn place(&self, key: &str) -> String {
        self.source(key).at(&self.path(key))
    }

    /// The path of a key of this section.
    pub(super) fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.at)
    }

    /// Fills from the value that a file has for the section.
    pub(super) fn fill_from_value(&mut self, value: Value, source: &Source, problems: &mut Problems) {
        if let ValueKind::Table(table) = value.kind {
            self.fill_from_table(table, source, problems);
        } else {
            problems.add(source, &self.at, "must be a table");
        }
    }

    /// Fills from the table of a file; what it has that is no setting is reported.
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
                self.put(setting, &Given::Value(&value), source.clone(), problems);
            }
        }
        for key in found.keys() {
            let group = format!("{key}.");
            let what = if self.settings.iter().any(|setting| setting.key.starts_with(&group)) {
                "must be a table".to_owned()
            } else {
                unknown(key, self.settings.iter().map(|setting| setting.key))
            };
            problems.add(source, &self.path(key), what);
        }
    }

    /// Fills from pusherd's own variables.
    pub(super) fn fill_from_variables(
        &mut self,
        prefix: &str,
        variables: &Variables,
        problems: &mut Problems,
    ) {
        for setting in self.settings {
            self.put_first(setting, std::iter::once(&*setting.variable(prefix)), variables, problems);
        }
    }

    /// Fills from other servers' variables what pusherd's own will not.
    pub(super) fn fill_from_foreign(
        &mut self,
        prefix: &str,
        reader: &foreign::Reader<'_>,
        problems: &mut Problems,
    ) {
        for setting in self.settings {
            let own = setting.variable(prefix);
            if set_variable(setting, &own, reader.variables).is_some() {
                continue;
            }
            let Some((value, source)) = reader.twin(&own, setting.may_be_empty()) else { continue };
            let put = value.and_then(|value| setting.put(&mut self.value, &Given::Text(&value)));
            match put {
                Ok(remarks) => self.note(setting, source, &remarks, problems),
                Err(what) => problems.add(&source, "", format_args!("{what}; {own} goes above it")),
            }
        }
    }

    /// Fills what has not been set yet from those fallbacks that are `wanted`, each by the key of its setting and its
    /// name.
    pub(super) fn fill_from_fallbacks(
        &mut self,
        wanted: impl Fn(&str, &str) -> bool,
        variables: &Variables,
        problems: &mut Problems,
    ) {
        for setting in self.settings.iter().filter(|setting| !setting.fallbacks.is_empty()) {
            if !self.is_set(setting.key) {
                let names = setting.fallbacks.iter().copied().filter(|name| wanted(setting.key, name));
                self.put_first(setting, names, variables, problems);
            }
        }
    }

    /// Fills from the flags of the command line.
    pub(super) fn fill_from_flags(
        &mut self,
        flags: &BTreeMap<&'static str, String>,
        problems: &mut Problems,
    ) {
        for setting in self.settings {
            if let Some((flag, value)) = setting.flag.and_then(|flag| flags.get_key_value(flag)) {
                self.put(setting, &Given::Text(value), Source::Flag(flag), problems);
            }
        }
    }

    /// Puts the first of the variables `names` that is set.
    fn put_first<'n>(
        &mut self,
        setting: &Setting<T>,
        mut names: impl Iterator<Item = &'n str>,
        variables: &Variables,
        problems: &mut Problems,
    ) {
        if let Some((value, source)) = names.find_map(|name| set_variable(setting, name, variables)) {
            self.put(setting, &Given::Text(&value), source, problems);
        }
    }

    fn put(&mut self, setting: &Setting<T>, given: &Given<'_>, source: Source, problems: &mut Problems) {
        match setting.put(&mut self.value, given) {
            Ok(remarks) => self.note(setting, source, &remarks, problems),
            Err(what) => problems.add(&source, &self.path(setting.key), what),
        }
    }

    /// Notes where a setting was set, and what is remarkable about that.
    fn note(&mut self, setting: &Setting<T>, source: Source, remarks: &[String], problems: &mut Problems) {
        remarks.iter().for_each(|remark| problems.remark(&source, &self.path(setting.key), remark));
        self.sources.insert(setting.key, source);
    }

    /// The settings as they are in effect, in the order of the table.
    pub(super) fn lines(&mut self) -> Vec<Line> {
        let line = |setting: &Setting<T>| Line {
            key: setting.key.to_owned(),
            value: setting.show(&mut self.value),
            source: self.sources.get(setting.key).cloned().unwrap_or(Source::Default),
            note: self.notes.get(setting.key).map(|&note| note.to_owned()),
        };
        self.settings.iter().map(line).collect()
    }
}

/// The value of a variable that is set for `setting`, and where.
fn set_variable<T>(setting: &Setting<T>, name: &str, variables: &Variables) -> Option<(String, Source)> {
    variables.get(name).filter(|(value, _)| !value.is_empty() || setting.may_be_empty())
}

/// What to say of a key that is none, given those that are.
pub(super) fn unknown<'k>(key: &str, known: impl Iterator<Item = &'k str>) -> String {
    let hint = closest(key, known).map(|known| format!("; did you mean {known}?")).unwrap_or_default();
    format!("is not a setting{hint}")
}

/// Tables within tables become dotted keys.
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
