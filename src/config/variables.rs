//! Variables of the process and of a Laravel `.env`, interpreted as by Laravel's `env()`. Those of the process come first.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use super::problems::{Problems, Source, closest_name};
use super::schema::{APP, LOG, REDIS, SERVER, WEBHOOKS};
use super::setting::Setting;
use super::{credentials, dotenv, foreign_variables};

/// The prefixes of the variables of `[server]`, `[log]`, `[redis]`, `[webhooks]` and `[[apps]]`.
pub(super) const SERVER_PREFIX: &str = "PUSHERD_";
/// See [`SERVER_PREFIX`].
pub(super) const LOG_PREFIX: &str = "PUSHERD_LOG_";
/// See [`SERVER_PREFIX`].
pub(super) const REDIS_PREFIX: &str = "PUSHERD_REDIS_";
/// See [`SERVER_PREFIX`].
pub(super) const WEBHOOKS_PREFIX: &str = "PUSHERD_WEBHOOKS_";
/// See [`SERVER_PREFIX`].
pub(super) const APP_PREFIX: &str = "PUSHERD_APP_";

/// The prefixes of variables with the address that clients connect to: `…HOST`, `…PORT`, `…SCHEME`.
pub(super) const CLIENT_FAMILIES: [&str; 2] = ["PUSHER_", "REVERB_"];

/// The port that a platform such as Heroku or Railway assigns to the process.
pub(super) const PLATFORM_PORT: &str = "PORT";

/// Reverb's channel in Redis, which separates clusters that share a Redis.
pub(super) const SCALING_CHANNEL: &str = "REVERB_SCALING_CHANNEL";

/// The `scheme` of Redis in Laravel's configuration, which turns TLS on.
pub(super) const SCHEME: &str = "REDIS_SCHEME";

/// The prefix of Soketi's variables.
pub(super) const SOKETI: &str = "SOKETI_";

/// The path of the configuration file, like `--config`.
pub(super) const CONFIG: &str = "PUSHERD_CONFIG";
/// The path of the `.env` file, like `--env-file`. Read only from the process.
pub(super) const ENV_FILE: &str = "PUSHERD_ENV_FILE";

/// All variables. Not `Debug`, because some are secrets.
#[derive(Default)]
pub(super) struct Variables {
    by_name: BTreeMap<String, Variable>,
    /// Malformed entries of the `.env` file: source, name and reason.
    malformed: Vec<(Source, String, String)>,
}

struct Variable {
    /// The value as it was written; [`laravel_value`] interprets it.
    raw: String,
    dotenv: Option<Arc<str>>,
}

impl Variables {
    /// The variables of the process.
    pub(super) fn from_process(environment: &[(OsString, OsString)]) -> Self {
        let text = |text: &OsString| text.to_string_lossy().into_owned();
        let variable = |raw| Variable { raw, dotenv: None };
        let by_name = environment.iter().map(|(name, value)| (text(name), variable(text(value)))).collect();
        Self { by_name, malformed: Vec::new() }
    }

    /// Adds the variables of a `.env` file that the process does not have.
    pub(super) fn add_dotenv(&mut self, file: &Arc<str>, text: &str, problems: &mut Problems) {
        let found = dotenv::parse(text, |name| self.by_name.get(name).map(|variable| variable.raw.clone()));
        for entry in found.malformed {
            let source =
                Source::Variable { dotenv: Some(Arc::clone(file)), name: entry.name.as_str().into() };
            self.malformed.push((source, entry.name, format!("{} (line {})", entry.why, entry.line)));
        }
        let source = Source::File(Arc::clone(file));
        match found.skipped {
            Some(skipped) if found.entries.is_empty() => {
                problems.add(&source, "", format_args!("{skipped}: nothing was read"));
            }
            Some(skipped) => problems.warn(&source, "", format_args!("{skipped}: not read")),
            None => {}
        }
        let entries: BTreeMap<_, _> = found.entries.into_iter().collect();
        for (name, raw) in entries {
            self.by_name.entry(name).or_insert_with(|| Variable { raw, dotenv: Some(Arc::clone(file)) });
        }
    }

    /// The value and the source of a variable that is set. Laravel's null and a blank value are not set; `empty` is.
    pub(super) fn get(&self, name: &str) -> Option<(String, Source)> {
        let variable = self.by_name.get(name)?;
        if is_service_link(name, &variable.raw) {
            return None;
        }
        Some((laravel_value(&variable.raw)?, variable.source(name)))
    }

    /// The value and the source of a variable that is set and not empty.
    pub(super) fn non_empty(&self, name: &str) -> Option<(String, Source)> {
        self.get(name).filter(|(value, _)| !value.is_empty())
    }

    /// The names of the variables that are set, without service links.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str).filter(|name| self.non_empty(name).is_some())
    }

    /// Whether the platform has assigned a port. A variable in a `.env`, or one that is not a port, belongs to another
    /// program.
    pub(super) fn has_platform_port(&self) -> bool {
        let variable = self.by_name.get(PLATFORM_PORT);
        variable
            .filter(|_| !self.is_in_dotenv(PLATFORM_PORT))
            .is_some_and(|variable| variable.raw.parse::<u16>().is_ok_and(|port| port > 0))
    }

    /// Whether a variable comes from the `.env`, and not from the process.
    pub(super) fn is_in_dotenv(&self, name: &str) -> bool {
        self.by_name.get(name).is_some_and(|variable| variable.dotenv.is_some())
    }

    /// The text and the source of a variable that is not blank, without Laravel's interpretation.
    pub(super) fn raw_text(&self, name: &str) -> Option<(String, Source)> {
        let variable = self.by_name.get(name)?;
        let text = variable.raw.trim_matches(['"', '\'', '(', ')', ' ']);
        (!text.is_empty()).then(|| (text.to_owned(), variable.source(name)))
    }

    /// Reports unreadable variables, and unknown variables with pusherd's prefix. Variables of other programs that locate
    /// Redis are checked when they are used: see [`Variables::check_readable`].
    pub(super) fn check_names(&self, problems: &mut Problems) {
        self.check_readable(|name| is_relevant(name) && !locates_redis(name), problems);
        for (name, variable) in self.by_name.iter().filter(|(name, _)| is_relevant(name)) {
            let source = variable.source(name);
            if !is_known(name) && !is_service_link(name, &variable.raw) {
                let known: Vec<String> = known_names().collect();
                let hint = closest_name(name, known.iter().map(String::as_str).filter(|name| is_own(name)));
                let hint = hint.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
                problems.add(&source, "", format_args!("is not a variable of pusherd{hint}"));
            }
        }
    }

    /// Reports malformed variables and those that are not UTF-8, of those that `is_used` selects.
    pub(super) fn check_readable(&self, is_used: impl Fn(&str) -> bool, problems: &mut Problems) {
        for (source, _, why) in self.malformed.iter().filter(|(_, name, _)| is_used(name)) {
            problems.add(source, "", why);
        }
        let unreadable = |(name, variable): &(&String, &Variable)| {
            is_used(name) && is_known(name) && variable.raw.contains('\u{fffd}')
        };
        for (name, variable) in self.by_name.iter().filter(unreadable) {
            problems.add(&variable.source(name), "", "is not UTF-8 text");
        }
    }
}

impl Variable {
    fn source(&self, name: &str) -> Source {
        Source::Variable { dotenv: self.dotenv.clone(), name: name.into() }
    }
}

/// The value that Laravel's `env()` returns; `None` for null. A blank value is null too, because a new Laravel `.env` has
/// blank values for unused variables.
///
/// Source: `Illuminate\Support\Env::getOption`.
fn laravel_value(raw: &str) -> Option<String> {
    match raw.to_ascii_lowercase().as_str() {
        "" | "null" | "(null)" => return None,
        "true" | "(true)" => return Some("true".to_owned()),
        "false" | "(false)" => return Some("false".to_owned()),
        "empty" | "(empty)" => return Some(String::new()),
        _ => {}
    }
    let unquoted = |quote: char| raw.strip_prefix(quote)?.strip_suffix(quote);
    Some(unquoted('"').or_else(|| unquoted('\'')).unwrap_or(raw).to_owned())
}

/// Whether this is a variable of another program that locates Redis. Most `.env` files have some; they matter only if
/// pusherd uses Redis.
pub(super) fn locates_redis(name: &str) -> bool {
    [SCALING_CHANNEL, SCHEME].contains(&name) || REDIS.iter().any(|row| row.fallbacks.contains(&name))
}

/// Whether the name has pusherd's prefix.
fn is_own(name: &str) -> bool {
    name.starts_with(SERVER_PREFIX)
}

/// Whether pusherd reads a variable of this name, or the name has its prefix.
fn is_relevant(name: &str) -> bool {
    is_own(name) || is_known(name)
}

pub(super) fn is_known(name: &str) -> bool {
    known_names().any(|known| known == name)
}

/// The names of all variables that pusherd reads.
fn known_names() -> impl Iterator<Item = String> {
    let own = |name: &str| name.to_owned();
    let rows = names(SERVER, SERVER_PREFIX)
        .chain(names(LOG, LOG_PREFIX))
        .chain(names(REDIS, REDIS_PREFIX))
        .chain(names(WEBHOOKS, WEBHOOKS_PREFIX))
        .chain(names(APP, APP_PREFIX));
    let client = |family: &str| ["HOST", "PORT", "SCHEME"].map(|name| format!("{family}{name}"));
    rows.chain(credentials::names())
        .chain(foreign_variables::names())
        .chain(CLIENT_FAMILIES.into_iter().flat_map(client))
        .chain([CONFIG, ENV_FILE, SCALING_CHANNEL, SCHEME].map(own))
}

/// The names of the variables for the settings of a section.
fn names<T>(settings: &'static [Setting<T>], prefix: &'static str) -> impl Iterator<Item = String> {
    settings.iter().flat_map(move |row| {
        let fallbacks = row.fallbacks.iter().map(|&name| name.to_owned());
        std::iter::once(row.variable(prefix)).chain(fallbacks)
    })
}

/// Whether this is a service link: a variable that Kubernetes or Docker sets for a service with a name such as `pusherd` or
/// `soketi`. Examples: `PUSHERD_PORT=tcp://10.0.0.1:6001`, `PUSHERD_SERVICE_HOST`, `PUSHERD_PORT_6001_TCP_ADDR`.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let of_port = name.split_once("_PORT_").is_some_and(|(_, rest)| {
        rest.trim_start_matches(|char: char| char.is_ascii_digit()) != rest
            && ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| rest.contains(protocol))
    });
    (name.ends_with("_PORT") && is_url)
        || of_port
        || name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_value_is_interpreted_as_by_laravels_env() {
        let table = [
            ("x", Some("x")),
            ("", None),
            ("null", None),
            ("NULL", None),
            ("(null)", None),
            ("true", Some("true")),
            ("(True)", Some("true")),
            ("FALSE", Some("false")),
            ("(false)", Some("false")),
            ("empty", Some("")),
            ("(empty)", Some("")),
            ("\"toml_string\"", Some("toml_string")),
            ("'null'", Some("null")),
            ("\"", Some("\"")),
            ("'a\"", Some("'a\"")),
            (" ", Some(" ")),
        ];
        for (raw, expected) in table {
            assert_eq!(laravel_value(raw).as_deref(), expected, "{raw:?}");
        }
    }

    #[test]
    fn no_two_settings_share_a_variable() {
        let mut seen = HashSet::new();
        for name in known_names() {
            assert!(seen.insert(name.clone()), "{name} is read twice");
        }
        assert!(seen.contains("PUSHERD_PORT") && seen.contains("PUSHERD_APP_LIMITS_PRESENCE_MEMBERS"));
    }

    #[test]
    fn service_links_are_not_settings() {
        let variables = [
            ("PUSHERD_PORT", "tcp://10.0.0.1:6001"),
            ("PUSHERD_SERVICE_HOST", "10.0.0.1"),
            ("PUSHERD_SERVICE_PORT", "6001"),
            ("PUSHERD_SERVICE_PORT_HTTP", "6001"),
            ("PUSHERD_PORT_6001_TCP", "tcp://10.0.0.1:6001"),
            ("PUSHERD_PORT_6001_TCP_ADDR", "10.0.0.1"),
            ("PUSHERD_METRICS_PORT_9601_TCP_PROTO", "tcp"),
            ("SOKETI_PORT", "tcp://10.0.0.2:6001"),
        ];
        let variables = Variables::from_process(&variables.map(|(name, value)| (name.into(), value.into())));
        let mut problems = Problems::default();
        variables.check_names(&mut problems);
        assert_eq!(problems, Problems::default());
        assert!(variables.get("PUSHERD_PORT").is_none() && variables.get("SOKETI_PORT").is_none());
    }
}
