//! The apps: those of the file, one from variables, or the default app.

use std::collections::HashMap;

use config::{Map, Value, ValueKind};

use super::credentials::{Credentials, CredentialsChoice};
use super::file::{self, ConfigFile};
use super::foreign_variables;
use super::problems::{Problems, Source};
use super::resolve::REVERB_DEFAULT;
use super::schema::{APP, CREDENTIALS};
use super::section::{EffectiveSetting, Section, unknown_key};
use super::setting::{RawValue, toml_string};
use super::variables::{APP_PREFIX, Variables};
use crate::apps::{App, AppId, AppLimits, KeyPair};
use crate::limits::Rate;
use crate::protocol::signature::SigningKey;
use crate::secret::Secret;

/// The credentials of the default app, which is served if none is configured. They are public.
pub(super) const DEFAULT_ID: &str = "app-id";
/// See [`DEFAULT_ID`].
pub(super) const DEFAULT_KEY: &str = "app-key";
/// See [`DEFAULT_ID`].
pub(super) const DEFAULT_SECRET: &str = "app-secret";

/// The upper bound of the derived limit of HTTP bodies.
const DERIVED_BODY_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// A value, its source, and its path in a file.
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) source: Source,
    pub(super) path: String,
}

impl<T> Located<T> {
    fn location(&self) -> String {
        self.source.location(&self.path)
    }
}

/// A key and its secret.
pub(super) struct Pair {
    pub(super) key: Located<String>,
    pub(super) secret: Located<Secret>,
}

/// An app whose settings are still being read.
pub(super) struct Draft {
    /// Everything but the credentials.
    pub(super) section: Section<App>,
    /// `None` if it is missing, which has been reported.
    id: Option<Located<String>>,
    pairs: Vec<Pair>,
}

/// All apps, and the one that variables apply to.
pub(super) struct Drafts {
    /// The apps of the file in its order, then the app of the variables.
    pub(super) apps: Vec<Draft>,
    /// The index of the app that the banner explains, and the source of its key.
    pub(super) main: (usize, Source),
    /// Whether it is unambiguous which app variables apply to.
    pub(super) is_unambiguous: bool,
}

impl Drafts {
    /// Collects the apps of the file and the app that variables add or change; without any, the default app.
    pub(super) fn collect(
        file: Option<(&ConfigFile, Value)>,
        variables: &Variables,
        choice: &mut CredentialsChoice,
        problems: &mut Problems,
    ) -> Self {
        let file_source = file.as_ref().map_or(Source::Default, |(file, _)| file.source());
        let mut apps = file.map(|(file, value)| from_file(file, value, problems)).unwrap_or_default();
        let mut main = (0, file_source);
        let mut target = if apps.len() == 1 { Some(0) } else { None };
        if let Some(Credentials { id, pair }) = choice.credentials.take() {
            let source = pair.key.source.clone();
            let index =
                apps.iter().position(|app| app.id.as_ref().is_some_and(|known| known.value == id.value));
            let index = index.unwrap_or_else(|| {
                apps.push(Draft::new(format!("apps[{}]", apps.len())));
                apps.len() - 1
            });
            apps[index].id = Some(id);
            apps[index].pairs = vec![pair];
            (main, target) = ((index, source), Some(index));
        } else if apps.is_empty() {
            apps.push(Draft::default_app());
            (main, target) = ((0, Source::Default), Some(0));
        }
        match target {
            Some(target) => {
                let section = &mut apps[target].section;
                section.fill_from_foreign(
                    APP_PREFIX,
                    &foreign_variables::Reader { variables, choice },
                    problems,
                );
                section.fill_from_variables(APP_PREFIX, variables, problems);
                if choice.uses_reverb() {
                    let key = "terminate_presence_members";
                    section.set_default(key, REVERB_DEFAULT, |app| app.terminate_presence_members = true);
                }
            }
            None if choice.is_invalid => {}
            None => reject_unassigned(variables, problems),
        }
        reject_duplicates(&apps, problems);
        Self { apps, main, is_unambiguous: target.is_some() }
    }
}

impl Draft {
    fn new(name: String) -> Self {
        let mut app = App::new("", "", "");
        app.keys.clear();
        // 0 means derived, until all settings are known.
        app.limits.request_body_bytes_max = 0;
        app.limits.channel_data_bytes_max = 0;
        app.limits.message_bytes_max = 0;
        Self { section: Section::new(name, APP, app), id: None, pairs: Vec::new() }
    }

    fn default_app() -> Self {
        let mut draft = Self::new("the default app".to_owned());
        let located =
            |text: &str| Located { value: text.to_owned(), source: Source::Default, path: String::new() };
        let secret =
            Located { value: Secret::new(DEFAULT_SECRET), source: Source::Default, path: String::new() };
        draft.id = Some(located(DEFAULT_ID));
        draft.pairs = vec![Pair { key: located(DEFAULT_KEY), secret }];
        draft
    }

    /// An app with the default of every setting.
    pub(super) fn defaults() -> App {
        Self::new(String::new()).section.value
    }

    /// Whether it has the public default secret.
    pub(super) fn has_default_secret(&self) -> bool {
        self.pairs.iter().any(|pair| pair.secret.value.expose() == DEFAULT_SECRET)
    }

    /// The location of a default secret that a source sets.
    pub(super) fn configured_default_secret(&self) -> Option<String> {
        let mut secrets = self.pairs.iter().map(|pair| &pair.secret);
        let secret = secrets.find(|secret| secret.value.expose() == DEFAULT_SECRET)?;
        (secret.source != Source::Default).then(|| secret.location())
    }

    /// The locations of secrets that are shorter than `bytes`.
    pub(super) fn short_secrets(&self, bytes: usize) -> impl Iterator<Item = String> {
        let short = move |pair: &&Pair| pair.secret.value.expose().len() < bytes;
        self.pairs.iter().filter(short).map(|pair| pair.secret.location())
    }

    /// The finished app, and its settings for `config show`.
    pub(super) fn finish(mut self) -> (App, Vec<EffectiveSetting>) {
        let mut shown = self.effective_credentials();
        let mut settings = self.section.effective();
        let mut app = self.section.value;
        for (key, derived) in derive(&mut app.limits) {
            if let Some(setting) = settings.iter_mut().find(|setting| setting.key == key) {
                setting.note = Some(format!("derived: {derived}"));
            }
        }
        shown.append(&mut settings);
        app.id = AppId(self.id.map(|id| id.value).unwrap_or_default().into());
        let key_pair = |pair: Pair| KeyPair {
            key: pair.key.value.into(),
            secret: SigningKey::new(pair.secret.value.expose()),
        };
        app.keys = self.pairs.into_iter().map(key_pair).collect();
        (app, shown)
    }

    fn effective_credentials(&self) -> Vec<EffectiveSetting> {
        let effective = |key: &str, value: String, source: &Source| EffectiveSetting {
            key: key.to_owned(),
            value,
            source: source.clone(),
            note: None,
        };
        let id = self.id.iter().map(|id| effective("id", toml_string(&id.value), &id.source));
        let mut credentials: Vec<_> = id.collect();
        match self.pairs.as_slice() {
            [] => {}
            [Pair { key, secret }] => {
                credentials.push(effective("key", toml_string(&key.value), &key.source));
                credentials.push(effective("secret", toml_string(&secret.value.to_string()), &secret.source));
            }
            [first, ..] => {
                let shown = |Pair { key, secret }: &Pair| {
                    format!(
                        "{{ key = {}, secret = {} }}",
                        toml_string(&key.value),
                        toml_string(&secret.value.to_string())
                    )
                };
                let pairs: Vec<_> = self.pairs.iter().map(shown).collect();
                credentials.push(effective("keys", format!("[{}]", pairs.join(", ")), &first.key.source));
            }
        }
        credentials
    }
}

/// Derives limits from others. Returns the derived ones, by the key of the setting.
fn derive(limits: &mut AppLimits) -> Vec<(&'static str, usize)> {
    let mut derived = Vec::new();
    // The protocol defines one rate: the events of a second may come at once.
    let per_second = limits.client_events.per_second;
    limits.client_events = Rate { per_second, burst: per_second };
    if limits.request_body_bytes_max == 0 {
        // `derived_body_bytes` assumes batches of ten events.
        let tenths = limits.events_per_batch_max.max(10);
        let body = AppLimits::derived_body_bytes(limits.event_data_bytes_max.saturating_mul(tenths) / 10);
        limits.request_body_bytes_max = body.min(DERIVED_BODY_BYTES_MAX);
        derived.push(("limits.request_body_bytes", limits.request_body_bytes_max));
    }
    if limits.channel_data_bytes_max == 0 {
        limits.channel_data_bytes_max = AppLimits::derived_channel_data_bytes(
            limits.presence_user_info_bytes_max,
            limits.user_id_chars_max,
        );
        derived.push(("limits.channel_data_bytes", limits.channel_data_bytes_max));
    }
    if limits.message_bytes_max == 0 {
        limits.message_bytes_max = AppLimits::derived_message_bytes(
            limits.client_event_data_bytes_max,
            limits.channel_data_bytes_max,
        );
        derived.push(("limits.message_bytes", limits.message_bytes_max));
    }
    derived
}

/// Whether the list of apps in a file is empty.
pub(super) fn is_empty(apps: &Value) -> bool {
    matches!(&apps.kind, ValueKind::Array(apps) if apps.is_empty())
}

fn from_file(file: &ConfigFile, apps: Value, problems: &mut Problems) -> Vec<Draft> {
    let source = file.source();
    let ValueKind::Array(apps) = apps.kind else {
        problems.add(&source, "apps", "must be a list of tables: begin each app with [[apps]]");
        return Vec::new();
    };
    let mut drafts = Vec::with_capacity(apps.len());
    for (index, app) in apps.into_iter().enumerate() {
        let name = format!("apps[{index}]");
        let ValueKind::Table(mut table) = app.kind else {
            problems.add(&source, &name, "must be a table");
            continue;
        };
        let mut draft = Draft::new(name);
        let mut credentials = Map::new();
        for row in CREDENTIALS {
            credentials.extend(table.remove(row.key).map(|value| (row.key.to_owned(), value)));
        }
        let path = &draft.section.name;
        let mut reader = CredentialsReader { file, source: &source, path, problems: &mut *problems };
        draft.id = reader.text(&mut credentials, "id", check_id);
        draft.pairs = reader.pairs(credentials);
        draft.section.fill_from_table(table, &source, problems);
        drafts.push(draft);
    }
    drafts
}

/// Reads credentials from a table of a file.
struct CredentialsReader<'a> {
    file: &'a ConfigFile,
    source: &'a Source,
    /// The path of the table.
    path: &'a str,
    problems: &'a mut Problems,
}

impl CredentialsReader<'_> {
    fn pairs(&mut self, mut table: Map<String, Value>) -> Vec<Pair> {
        let Some(keys) = remove(&mut table, "keys") else {
            return self.pair(&mut table).into_iter().collect();
        };
        for key in ["key", "secret", "secret_file"] {
            if remove(&mut table, key).is_some() {
                self.report(key, "contradicts keys, which holds all keys of the app");
            }
        }
        let ValueKind::Array(keys) = keys.kind else {
            self.report("keys", "must be a list of tables");
            return Vec::new();
        };
        if keys.is_empty() {
            self.report("keys", "lists no key");
        }
        let mut pairs = Vec::with_capacity(keys.len());
        for (index, key) in keys.into_iter().enumerate() {
            let path = format!("{}.keys[{index}]", self.path);
            let mut reader = CredentialsReader {
                file: self.file,
                source: self.source,
                path: &path,
                problems: &mut *self.problems,
            };
            let ValueKind::Table(mut table) = key.kind else {
                reader.problems.add(reader.source, &path, "must be a table with key and secret");
                continue;
            };
            pairs.extend(reader.pair(&mut table));
            let mut others: Vec<_> = table.into_keys().collect();
            others.sort_unstable();
            for key in others {
                reader.report(&key, unknown_key(&key, ["key", "secret", "secret_file"].into_iter()));
            }
        }
        pairs
    }

    /// Reads `key` and `secret` or `secret_file`.
    fn pair(&mut self, table: &mut Map<String, Value>) -> Option<Pair> {
        let key = self.text(table, "key", check_key);
        let secret = match (remove(table, "secret"), remove(table, "secret_file")) {
            (Some(_), Some(_)) => Err("contradicts secret_file: one of the two".to_owned()),
            (None, None) => Err("is missing; secret_file is the other way to give it".to_owned()),
            (Some(secret), None) => text_of(&secret).map(|text| ("secret", Secret::new(&text))),
            (None, Some(path)) => text_of(&path)
                .and_then(|path| file::read_secret(&self.file.directory.join(path)))
                .map(|secret| ("secret_file", secret)),
        };
        let secret = secret.and_then(|(key, secret)| check_secret(&secret).map(|()| (key, secret)));
        match secret {
            Ok((name, secret)) => Some(Pair { key: key?, secret: self.located(name, secret) }),
            Err(what) => {
                self.report("secret", what);
                None
            }
        }
    }

    fn text(
        &mut self,
        table: &mut Map<String, Value>,
        key: &str,
        check: fn(&str) -> Result<(), String>,
    ) -> Option<Located<String>> {
        let text = match remove(table, key) {
            None => Err("is missing".to_owned()),
            Some(value) => text_of(&value).and_then(|text| check(&text).map(|()| text)),
        };
        match text {
            Ok(text) => Some(self.located(key, text)),
            Err(what) => {
                self.report(key, what);
                None
            }
        }
    }

    fn located<T>(&self, key: &str, value: T) -> Located<T> {
        Located { value, source: self.source.clone(), path: format!("{}.{key}", self.path) }
    }

    fn report(&mut self, key: &str, what: impl std::fmt::Display) {
        self.problems.add(self.source, &format!("{}.{key}", self.path), what);
    }
}

/// Removes and returns the value of `key`, unless it is null.
fn remove(table: &mut Map<String, Value>, key: &str) -> Option<Value> {
    table.remove(key).filter(|value| value.kind != ValueKind::Nil)
}

fn text_of(value: &Value) -> Result<String, String> {
    RawValue::Typed(&value.kind).text().map(ToOwned::to_owned)
}

/// Reports variables for settings of an app if it is ambiguous which app they apply to.
fn reject_unassigned(variables: &Variables, problems: &mut Problems) {
    for row in APP {
        if let Some((_, source)) = variables.get(&row.variable(APP_PREFIX)) {
            let what = "is for one app and the file has several; write it there, or set PUSHERD_APP_ID and the \
                        other credentials";
            problems.add(&source, "", what);
        }
    }
}

/// Reports duplicate ids and keys.
fn reject_duplicates(apps: &[Draft], problems: &mut Problems) {
    let ids = apps.iter().filter_map(|app| app.id.as_ref());
    let keys = apps.iter().flat_map(|app| &app.pairs).map(|pair| &pair.key);
    reject_duplicate("id", ids, problems);
    reject_duplicate("key", keys, problems);
}

fn reject_duplicate<'a>(noun: &str, all: impl Iterator<Item = &'a Located<String>>, problems: &mut Problems) {
    let mut seen: HashMap<&str, &Located<String>> = HashMap::new();
    for located in all {
        if let Some(first) = seen.insert(&located.value, located) {
            let first = first.location();
            problems.add(&located.source, &located.path, format_args!("is the same {noun} as {first}"));
        }
    }
}

/// An id is a segment of paths, so it contains no character that ends a segment or is decoded.
pub(super) fn check_id(text: &str) -> Result<(), String> {
    const BYTES_MAX: usize = 200;
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if text.len() > BYTES_MAX {
        return Err(format!("has {} bytes, more than the {BYTES_MAX} allowed", text.len()));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#%".contains(&byte)) {
        return Err("must be visible ASCII characters, and none of / ? # %".to_owned());
    }
    Ok(())
}

/// A key is a segment of paths, and precedes the colon of a signature.
pub(super) fn check_key(text: &str) -> Result<(), String> {
    if text.contains(':') {
        return Err("must not contain a colon, which ends the key in a signature".to_owned());
    }
    check_id(text)
}

pub(super) fn check_secret(secret: &Secret) -> Result<(), String> {
    const BYTES_MAX: usize = 1024;
    match secret.expose() {
        "" => Err("is empty".to_owned()),
        "***" => Err("is the mask of `pusherd config show`, not a secret".to_owned()),
        text if text.len() > BYTES_MAX => Err(format!("is longer than {BYTES_MAX} bytes")),
        _ => Ok(()),
    }
}
