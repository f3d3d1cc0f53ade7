//! Variables: those of the process over those of a Laravel `.env`, read as Laravel's `env()` reads them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use super::dotenv;
use super::kind::Setting;
use super::problem::{Problems, Source, closest};
use super::schema::{APP, LOG, REDIS, SERVER, WEBHOOKS};
use super::{families, foreign};

/// What the variables of `[server]`, `[log]`, `[redis]`, `[webhooks]` and `[[apps]]` begin with.
pub(super) const SERVER_PREFIX: &str = "PUSHERD_";
/// See [`SERVER_PREFIX`].
pub(super) const LOG_PREFIX: &str = "PUSHERD_LOG_";
/// See [`SERVER_PREFIX`].
pub(super) const REDIS_PREFIX: &str = "PUSHERD_REDIS_";
/// See [`SERVER_PREFIX`].
pub(super) const WEBHOOKS_PREFIX: &str = "PUSHERD_WEBHOOKS_";
/// See [`SERVER_PREFIX`].
pub(super) const APP_PREFIX: &str = "PUSHERD_APP_";

/// What says where clients connect to, never where to listen: `…HOST`, `…PORT`, `…SCHEME`.
pub(super) const CLIENT_FAMILIES: [&str; 2] = ["PUSHER_", "REVERB_"];

/// The port that a platform such as Heroku or Railway has assigned to the process.
pub(super) const PLATFORM_PORT: &str = "PORT";

/// Sets nodes of one Redis apart: Reverb's name for what they talk by.
pub(super) const SCALING_CHANNEL: &str = "REVERB_SCALING_CHANNEL";

/// Says whether Redis speaks TLS: what Laravel's configuration of Redis takes its `scheme` from.
pub(super) const SCHEME: &str = "REDIS_SCHEME";

/// What the variables of Soketi begin with.
pub(super) const SOKETI: &str = "SOKETI_";

/// Names the configuration file, as `--config`.
pub(super) const CONFIG: &str = "PUSHERD_CONFIG";
/// Names the `.env` file, as `--env-file`. Of the process only.
pub(super) const ENV_FILE: &str = "PUSHERD_ENV_FILE";

/// All variables. No `Debug`: some are secrets.
#[derive(Default)]
pub(super) struct Variables {
    by_name: BTreeMap<String, Variable>,
    /// Entries of the `.env` file that cannot be read: where, whose and why.
    malformed: Vec<(Source, String, String)>,
}

struct Variable {
    /// As it was written; [`laravel`] gives it its meaning.
    raw: String,
    dotenv: Option<Arc<str>>,
}

impl Variables {
    /// The variables of the process.
    pub(super) fn of_process(environment: &[(OsString, OsString)]) -> Self {
        let text = |text: &OsString| text.to_string_lossy().into_owned();
        let variable = |raw| Variable { raw, dotenv: None };
        let by_name = environment.iter().map(|(name, value)| (text(name), variable(text(value)))).collect();
        Self { by_name, malformed: Vec::new() }
    }

    /// Adds those of a `.env` file that the process does not have.
    pub(super) fn add_dotenv(&mut self, file: &Arc<str>, text: &str, problems: &mut Problems) {
        let found = dotenv::parse(text, |name| self.by_name.get(name).map(|variable| variable.raw.clone()));
        for at in found.malformed {
            let source = Source::Variable { dotenv: Some(Arc::clone(file)), name: at.name.as_str().into() };
            self.malformed.push((source, at.name, format!("{} (line {})", at.why, at.line)));
        }
        let source = Source::File(Arc::clone(file));
        match found.stray {
            Some(stray) if found.entries.is_empty() => {
                problems.add(&source, "", format_args!("{stray}: nothing was read"));
            }
            Some(stray) => problems.remark(&source, "", format_args!("{stray}: not read")),
            None => {}
        }
        let of_file: BTreeMap<_, _> = found.entries.into_iter().collect();
        for (name, raw) in of_file {
            self.by_name.entry(name).or_insert_with(|| Variable { raw, dotenv: Some(Arc::clone(file)) });
        }
    }

    /// The value of a variable that is set, and where. Null and blank is not set; empty is.
    pub(super) fn get(&self, name: &str) -> Option<(String, Source)> {
        let variable = self.by_name.get(name)?;
        if is_service_link(name, &variable.raw) {
            return None;
        }
        Some((laravel(&variable.raw)?, variable.source(name)))
    }

    /// The value of a variable that is set and not empty, and where.
    pub(super) fn get_filled(&self, name: &str) -> Option<(String, Source)> {
        self.get(name).filter(|(value, _)| !value.is_empty())
    }

    /// The names of those that are set, but for the links of services.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str).filter(|name| self.get_filled(name).is_some())
    }

    /// Whether the platform has assigned a port. In a `.env` the variable is some other program's, and so is what is no
    /// port.
    pub(super) fn has_platform_port(&self) -> bool {
        let variable = self.by_name.get(PLATFORM_PORT).filter(|variable| variable.dotenv.is_none());
        variable.is_some_and(|variable| variable.raw.parse::<u16>().is_ok_and(|port| port > 0))
    }

    /// The text of a variable that is not blank, and where, whatever Laravel makes of it.
    pub(super) fn written(&self, name: &str) -> Option<(String, Source)> {
        let variable = self.by_name.get(name)?;
        let text = variable.raw.trim_matches(['"', '\'', '(', ')', ' ']);
        (!text.is_empty()).then(|| (text.to_owned(), variable.source(name)))
    }

    /// Reports variables that cannot be read, and those that look like pusherd's and are not. Not those of others that
    /// say where Redis is: see [`Variables::check_readable`].
    pub(super) fn check_names(&self, problems: &mut Problems) {
        self.check_readable(|name| is_ours(name) && !is_of_redis(name), problems);
        for (name, variable) in self.by_name.iter().filter(|(name, _)| is_ours(name)) {
            let source = variable.source(name);
            if !is_known(name) && !is_service_link(name, &variable.raw) {
                let known: Vec<String> = known().collect();
                let hint = closest(name, known.iter().map(String::as_str).filter(|name| is_own(name)));
                let hint = hint.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
                problems.add(&source, "", format_args!("is not a variable of pusherd{hint}"));
            }
        }
    }

    /// Reports those variables that are `used` and cannot be read.
    pub(super) fn check_readable(&self, used: impl Fn(&str) -> bool, problems: &mut Problems) {
        for (source, _, why) in self.malformed.iter().filter(|(_, name, _)| used(name)) {
            problems.add(source, "", why);
        }
        let unreadable = |(name, variable): &(&String, &Variable)| {
            used(name) && is_known(name) && variable.raw.contains('\u{fffd}')
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

/// What Laravel's `env()` makes of a value; `None`: null. A value left blank is null too, since Laravel's own
/// `.env` leaves blank what is not used.
///
/// Source: `Illuminate\Support\Env::getOption`.
fn laravel(raw: &str) -> Option<String> {
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

/// Whether another server's variable of this name says where Redis is. Laravel's `.env` nearly always has some, which
/// matter only where pusherd is to use it.
pub(super) fn is_of_redis(name: &str) -> bool {
    [SCALING_CHANNEL, SCHEME].contains(&name) || REDIS.iter().any(|row| row.fallbacks.contains(&name))
}

/// Whether pusherd alone reads a variable of this name.
fn is_own(name: &str) -> bool {
    name.starts_with(SERVER_PREFIX)
}

/// Whether pusherd reads a variable of this name, or would if it existed.
fn is_ours(name: &str) -> bool {
    is_own(name) || is_known(name)
}

pub(super) fn is_known(name: &str) -> bool {
    known().any(|known| known == name)
}

/// The names of all variables that are read.
pub(super) fn known() -> impl Iterator<Item = String> {
    let own = |name: &str| name.to_owned();
    let rows = names(SERVER, SERVER_PREFIX)
        .chain(names(LOG, LOG_PREFIX))
        .chain(names(REDIS, REDIS_PREFIX))
        .chain(names(WEBHOOKS, WEBHOOKS_PREFIX))
        .chain(names(APP, APP_PREFIX));
    let client = |family: &str| ["HOST", "PORT", "SCHEME"].map(|name| format!("{family}{name}"));
    rows.chain(families::names())
        .chain(foreign::names())
        .chain(CLIENT_FAMILIES.into_iter().flat_map(client))
        .chain([CONFIG, ENV_FILE, SCALING_CHANNEL, SCHEME].map(own))
}

/// The names of the variables that are read for the settings of a section.
fn names<T>(settings: &'static [Setting<T>], prefix: &'static str) -> impl Iterator<Item = String> {
    settings.iter().flat_map(move |row| {
        let others = row.fallbacks.iter().map(|&name| name.to_owned());
        std::iter::once(row.variable(prefix)).chain(others)
    })
}

/// Whether Kubernetes or Docker set the variable, to tell of a service that is called `pusherd`, `soketi` or
/// alike: `PUSHERD_PORT=tcp://10.0.0.1:6001`, `PUSHERD_SERVICE_HOST`, `PUSHERD_PORT_6001_TCP_ADDR`.
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
    fn a_value_means_what_laravels_env_makes_of_it() {
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
            ("\"quoted\"", Some("quoted")),
            ("'null'", Some("null")),
            ("\"", Some("\"")),
            ("'a\"", Some("'a\"")),
            (" ", Some(" ")),
        ];
        for (raw, expected) in table {
            assert_eq!(laravel(raw).as_deref(), expected, "{raw:?}");
        }
    }

    #[test]
    fn no_two_settings_share_a_variable() {
        let mut seen = HashSet::new();
        for name in known() {
            assert!(seen.insert(name.clone()), "{name} is read twice");
        }
        assert!(seen.contains("PUSHERD_PORT") && seen.contains("PUSHERD_APP_LIMITS_PRESENCE_MEMBERS"));
    }

    #[test]
    fn variables_that_tell_of_a_service_are_not_settings() {
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
        let variables = Variables::of_process(&variables.map(|(name, value)| (name.into(), value.into())));
        let mut problems = Problems::default();
        variables.check_names(&mut problems);
        assert_eq!(problems, Problems::default());
        assert!(variables.get("PUSHERD_PORT").is_none() && variables.get("SOKETI_PORT").is_none());
    }
}
