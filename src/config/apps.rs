//! The apps: those of the file, the one of the environment, or the default one.

use std::collections::HashMap;

use config::{Map, Value, ValueKind};

use super::OF_REVERB;
use super::families::{Choice, Credentials};
use super::file::{self, ConfigFile};
use super::foreign;
use super::kind::{Given, quoted};
use super::problem::{Problems, Source};
use super::schema::{APP, CREDENTIALS};
use super::secret::Secret;
use super::section::{Line, Section, unknown};
use super::variables::{APP_PREFIX, Variables};
use crate::apps::{App, AppId, AppLimits, KeyPair};
use crate::limits::Rate;
use crate::protocol::signature::SigningKey;

/// The app that there is when none is configured: for a first try, and known to everyone.
pub(super) const DEFAULT_ID: &str = "app-id";
/// See [`DEFAULT_ID`].
pub(super) const DEFAULT_KEY: &str = "app-key";
/// See [`DEFAULT_ID`].
pub(super) const DEFAULT_SECRET: &str = "app-secret";

/// Longest HTTP body that is derived, whatever the limits it is derived from.
const DERIVED_BODY_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// A value and where it was written.
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) source: Source,
    pub(super) at: String,
}

/// A key and its secret, as they were written.
pub(super) struct Pair {
    pub(super) key: Placed<String>,
    pub(super) secret: Placed<Secret>,
}

/// An app in the making.
pub(super) struct Draft {
    /// Everything but the credentials.
    pub(super) section: Section<App>,
    /// `None` where it is missing, which has been reported.
    id: Option<Placed<String>>,
    pairs: Vec<Pair>,
}

/// The apps in the making, and which of them the variables speak of.
pub(super) struct Drafts {
    /// All, in the order of the file, the environment's last.
    pub(super) apps: Vec<Draft>,
    /// The app to show how to use, and where its key came from.
    pub(super) main: (usize, Source),
    /// Whether it is clear which app variables are for.
    pub(super) is_clear: bool,
}

impl Drafts {
    /// Takes the apps of the file, the one that the variables add or change, or else the default one.
    pub(super) fn gather(
        file: Option<(&ConfigFile, Value)>,
        variables: &Variables,
        choice: &mut Choice,
        problems: &mut Problems,
    ) -> Self {
        let file_source = file.as_ref().map_or(Source::Default, |(file, _)| file.source());
        let mut apps = file.map(|(file, value)| of_file(file, value, problems)).unwrap_or_default();
        let mut main = (0, file_source);
        let mut target = if apps.len() == 1 { Some(0) } else { None };
        if let Some(Credentials { id, pair }) = choice.taken.take() {
            let source = pair.key.source.clone();
            let place =
                apps.iter().position(|app| app.id.as_ref().is_some_and(|known| known.value == id.value));
            let place = place.unwrap_or_else(|| {
                apps.push(Draft::new(format!("apps[{}]", apps.len())));
                apps.len() - 1
            });
            apps[place].id = Some(id);
            apps[place].pairs = vec![pair];
            (main, target) = ((place, source), Some(place));
        } else if apps.is_empty() {
            apps.push(Draft::default_app());
            (main, target) = ((0, Source::Default), Some(0));
        }
        match target {
            Some(target) => {
                let section = &mut apps[target].section;
                section.fill_from_foreign(APP_PREFIX, &foreign::Reader { variables, choice }, problems);
                section.fill_from_variables(APP_PREFIX, variables, problems);
                if choice.is_of_reverb() {
                    let key = "terminate_presence_members";
                    section.put_default(key, OF_REVERB, |app| app.terminate_presence_members = true);
                }
            }
            None if choice.refused => {}
            None => refuse_homeless(variables, problems),
        }
        refuse_contradictions(&apps, problems);
        Self { apps, main, is_clear: target.is_some() }
    }
}

impl Draft {
    fn new(at: String) -> Self {
        let mut app = App::new("", "", "");
        app.keys.clear();
        // 0 stands for derived until all is known.
        app.limits.request_body_bytes_max = 0;
        app.limits.channel_data_bytes_max = 0;
        app.limits.message_bytes_max = 0;
        Self { section: Section::new(at, APP, app), id: None, pairs: Vec::new() }
    }

    fn default_app() -> Self {
        let mut draft = Self::new("the default app".to_owned());
        let placed =
            |text: &str| Placed { value: text.to_owned(), source: Source::Default, at: String::new() };
        let secret =
            Placed { value: Secret::new(DEFAULT_SECRET), source: Source::Default, at: String::new() };
        draft.id = Some(placed(DEFAULT_ID));
        draft.pairs = vec![Pair { key: placed(DEFAULT_KEY), secret }];
        draft
    }

    /// An app with the default of every setting, for the reference.
    pub(super) fn defaults() -> App {
        Self::new(String::new()).section.value
    }

    /// Whether everybody knows a secret of it.
    pub(super) fn has_default_secret(&self) -> bool {
        self.pairs.iter().any(|pair| pair.secret.value.expose() == DEFAULT_SECRET)
    }

    /// The place of a default secret that somebody wrote.
    pub(super) fn written_default_secret(&self) -> Option<String> {
        let mut secrets = self.pairs.iter().map(|pair| &pair.secret);
        let secret = secrets.find(|secret| secret.value.expose() == DEFAULT_SECRET)?;
        (secret.source != Source::Default).then(|| secret.source.at(&secret.at))
    }

    /// The places of secrets that are shorter than `bytes`.
    pub(super) fn secrets_shorter_than(&self, bytes: usize) -> impl Iterator<Item = String> {
        let short = move |pair: &&Pair| pair.secret.value.expose().len() < bytes;
        self.pairs.iter().filter(short).map(|pair| pair.secret.source.at(&pair.secret.at))
    }

    /// Makes the app, and the lines that show it.
    pub(super) fn finish(mut self) -> (App, Vec<Line>) {
        let mut lines = self.credential_lines();
        let mut settings = self.section.lines();
        let mut app = self.section.value;
        for (key, derived) in derive(&mut app.limits) {
            if let Some(line) = settings.iter_mut().find(|line| line.key == key) {
                line.note = Some(format!("derived: {derived}"));
            }
        }
        lines.append(&mut settings);
        app.id = AppId(self.id.map(|id| id.value).unwrap_or_default().into());
        let ready = |pair: Pair| KeyPair {
            key: pair.key.value.into(),
            secret: SigningKey::new(pair.secret.value.expose()),
        };
        app.keys = self.pairs.into_iter().map(ready).collect();
        (app, lines)
    }

    fn credential_lines(&self) -> Vec<Line> {
        let line = |key: &str, value: String, source: &Source| Line {
            key: key.to_owned(),
            value,
            source: source.clone(),
            note: None,
        };
        let id = self.id.iter().map(|id| line("id", quoted(&id.value), &id.source));
        let mut lines: Vec<_> = id.collect();
        match self.pairs.as_slice() {
            [] => {}
            [Pair { key, secret }] => {
                lines.push(line("key", quoted(&key.value), &key.source));
                lines.push(line("secret", quoted(&secret.value.to_string()), &secret.source));
            }
            [first, ..] => {
                let shown = |Pair { key, secret }: &Pair| {
                    format!(
                        "{{ key = {}, secret = {} }}",
                        quoted(&key.value),
                        quoted(&secret.value.to_string())
                    )
                };
                let pairs: Vec<_> = self.pairs.iter().map(shown).collect();
                lines.push(line("keys", format!("[{}]", pairs.join(", ")), &first.key.source));
            }
        }
        lines
    }
}

/// Settles what follows from other settings; answers what was derived, by the key of its setting.
fn derive(limits: &mut AppLimits) -> Vec<(&'static str, usize)> {
    let mut derived = Vec::new();
    // One rate, as the protocol states it: what is allowed in a second is allowed at once.
    let per_second = limits.client_events.per_second;
    limits.client_events = Rate { per_second, burst: per_second };
    if limits.request_body_bytes_max == 0 {
        // The derivation counts on ten events a batch.
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

/// Whether the list of a file has no app.
pub(super) fn is_empty(apps: &Value) -> bool {
    matches!(&apps.kind, ValueKind::Array(apps) if apps.is_empty())
}

fn of_file(file: &ConfigFile, apps: Value, problems: &mut Problems) -> Vec<Draft> {
    let source = file.source();
    let ValueKind::Array(apps) = apps.kind else {
        problems.add(&source, "apps", "must be a list of tables: begin each app with [[apps]]");
        return Vec::new();
    };
    let mut drafts = Vec::with_capacity(apps.len());
    for (index, app) in apps.into_iter().enumerate() {
        let at = format!("apps[{index}]");
        let ValueKind::Table(mut table) = app.kind else {
            problems.add(&source, &at, "must be a table");
            continue;
        };
        let mut draft = Draft::new(at);
        let mut credentials = Map::new();
        for row in CREDENTIALS {
            credentials.extend(table.remove(row.key).map(|value| (row.key.to_owned(), value)));
        }
        let mut reader = Reader { file, source: &source, at: &draft.section.at, problems: &mut *problems };
        draft.id = reader.text(&mut credentials, "id", check_id);
        draft.pairs = reader.pairs(credentials);
        draft.section.fill_from_table(table, &source, problems);
        drafts.push(draft);
    }
    drafts
}

/// Reads credentials from a table of a file.
struct Reader<'a> {
    file: &'a ConfigFile,
    source: &'a Source,
    at: &'a str,
    problems: &'a mut Problems,
}

impl Reader<'_> {
    fn pairs(&mut self, mut table: Map<String, Value>) -> Vec<Pair> {
        let Some(keys) = take(&mut table, "keys") else { return self.pair(&mut table).into_iter().collect() };
        for key in ["key", "secret", "secret_file"] {
            if take(&mut table, key).is_some() {
                self.refuse(key, "contradicts keys, which holds all keys of the app");
            }
        }
        let ValueKind::Array(keys) = keys.kind else {
            self.refuse("keys", "must be a list of tables");
            return Vec::new();
        };
        if keys.is_empty() {
            self.refuse("keys", "lists no key");
        }
        let mut pairs = Vec::with_capacity(keys.len());
        for (index, key) in keys.into_iter().enumerate() {
            let at = format!("{}.keys[{index}]", self.at);
            let mut reader =
                Reader { file: self.file, source: self.source, at: &at, problems: &mut *self.problems };
            let ValueKind::Table(mut table) = key.kind else {
                reader.problems.add(reader.source, &at, "must be a table with key and secret");
                continue;
            };
            pairs.extend(reader.pair(&mut table));
            let mut others: Vec<_> = table.into_keys().collect();
            others.sort_unstable();
            for key in others {
                reader.refuse(&key, unknown(&key, ["key", "secret", "secret_file"].into_iter()));
            }
        }
        pairs
    }

    /// The `key` of `table` and its `secret` or `secret_file`.
    fn pair(&mut self, table: &mut Map<String, Value>) -> Option<Pair> {
        let key = self.text(table, "key", check_key);
        let secret = match (take(table, "secret"), take(table, "secret_file")) {
            (Some(_), Some(_)) => Err("contradicts secret_file: one of the two".to_owned()),
            (None, None) => Err("is missing; secret_file is the other way to give it".to_owned()),
            (Some(secret), None) => text_of(&secret).map(|text| ("secret", Secret::new(&text))),
            (None, Some(path)) => text_of(&path)
                .and_then(|path| file::secret(&self.file.directory.join(path)))
                .map(|secret| ("secret_file", secret)),
        };
        let secret = secret.and_then(|(key, secret)| check_secret(&secret).map(|()| (key, secret)));
        match secret {
            Ok((name, secret)) => Some(Pair { key: key?, secret: self.placed(name, secret) }),
            Err(what) => {
                self.refuse("secret", what);
                None
            }
        }
    }

    fn text(
        &mut self,
        table: &mut Map<String, Value>,
        key: &str,
        check: fn(&str) -> Result<(), String>,
    ) -> Option<Placed<String>> {
        let text = match take(table, key) {
            None => Err("is missing".to_owned()),
            Some(value) => text_of(&value).and_then(|text| check(&text).map(|()| text)),
        };
        match text {
            Ok(text) => Some(self.placed(key, text)),
            Err(what) => {
                self.refuse(key, what);
                None
            }
        }
    }

    fn placed<T>(&self, key: &str, value: T) -> Placed<T> {
        Placed { value, source: self.source.clone(), at: format!("{}.{key}", self.at) }
    }

    fn refuse(&mut self, key: &str, what: impl std::fmt::Display) {
        self.problems.add(self.source, &format!("{}.{key}", self.at), what);
    }
}

/// The value of `key`, where it is there and not null.
fn take(table: &mut Map<String, Value>, key: &str) -> Option<Value> {
    table.remove(key).filter(|value| value.kind != ValueKind::Nil)
}

fn text_of(value: &Value) -> Result<String, String> {
    Given::Value(&value.kind).text().map(ToOwned::to_owned)
}

/// Reports settings of an app in variables when it is open which app they are for.
fn refuse_homeless(variables: &Variables, problems: &mut Problems) {
    for row in APP {
        if let Some((_, source)) = variables.get(&row.variable(APP_PREFIX)) {
            let what = "is for one app and the file has several; write it there, or set PUSHERD_APP_ID and the \
                        other credentials";
            problems.add(&source, "", what);
        }
    }
}

/// Reports ids and keys that are there twice.
fn refuse_contradictions(apps: &[Draft], problems: &mut Problems) {
    let ids = apps.iter().filter_map(|app| app.id.as_ref());
    let keys = apps.iter().flat_map(|app| &app.pairs).map(|pair| &pair.key);
    refuse_twins("id", ids, problems);
    refuse_twins("key", keys, problems);
}

fn refuse_twins<'a>(noun: &str, all: impl Iterator<Item = &'a Placed<String>>, problems: &mut Problems) {
    let mut seen: HashMap<&str, &Placed<String>> = HashMap::new();
    for placed in all {
        if let Some(first) = seen.insert(&placed.value, placed) {
            let first = first.source.at(&first.at);
            problems.add(&placed.source, &placed.at, format_args!("is the same {noun} as {first}"));
        }
    }
}

/// An id stands in paths, so it has nothing that ends a segment or is decoded.
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

/// A key stands in paths and in front of the colon of a signature.
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
