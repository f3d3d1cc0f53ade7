//! Variables of the servers that pusherd replaces, and what is done with each: one row is the whole of it.
//!
//! A row says which of pusherd's own variables means the same and how the value is converted, or why the variable is not
//! read. What is read goes above the file and below pusherd's own variables; what is not is named once at the start, and
//! so is what has the front of such a server and is in no row. The table in `docs/reference/environment.md` is made of
//! this one. To add a variable, add a row. (Those that say where Redis is are fallbacks in `schema`: they matter only where there are several nodes.)
//!
//! Source: Reverb's `config/reverb.php` of 1.0 to 1.9 and what reads it there, Soketi 1.6's `cli.ts`, its documentation
//! and what reads its options, `config/websockets.php` of laravel-websockets 1 and 2.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::families::{Choice, Owner};
use super::kind::excerpt;
use super::problem::{Problems, Source};
use super::variables::{APP_PREFIX, Variables, is_known};

/// A variable of another server.
struct Row {
    /// Its name, or what several begin with, `*` behind.
    name: &'static str,
    fate: Fate,
}

/// What becomes of a variable of another server.
enum Fate {
    /// It means the same as `twin`, pusherd's own variable, when its value is converted.
    Twin { twin: &'static str, convert: Convert },
    /// It is read together with another.
    With(&'static str),
    /// It must be one of `allowed`; what it asks for otherwise cannot be had.
    Only { allowed: &'static [&'static str], why: &'static str },
    /// It is not read, which is said at the start with the reason.
    NotRead(&'static str),
    /// It is not read, and nobody misses it.
    Meaningless(&'static str),
}

/// How a value is converted.
struct Convert {
    /// In words, for the documentation.
    words: &'static str,
    /// The value for the twin; `None`: it says nothing. Other variables may belong to it.
    apply: fn(&str, &Variables) -> Result<Option<String>, String>,
}

const fn twin(name: &'static str, twin: &'static str, convert: Convert) -> Row {
    Row { name, fate: Fate::Twin { twin, convert } }
}

const fn same(name: &'static str, own: &'static str) -> Row {
    twin(name, own, SAME)
}

const fn with(name: &'static str, other: &'static str) -> Row {
    Row { name, fate: Fate::With(other) }
}

const fn not_read(name: &'static str, why: &'static str) -> Row {
    Row { name, fate: Fate::NotRead(why) }
}

const SAME: Convert = Convert { words: "the same", apply: |value, _| Ok(Some(value.to_owned())) };

/// A limit that is none where it is negative, and 0 of ours.
const NEGATIVE_IS_NONE: Convert = Convert {
    words: "-1 is no limit",
    apply: |value, _| match whole(value)? {
        0 => Err(nothing_passes("PUSHERD_APP_ENABLED=false")),
        number => Ok(Some(number.max(0).to_string())),
    },
};

/// Soketi counts 0 connections as no limit, too.
const NOT_POSITIVE_IS_NONE: Convert =
    Convert { words: "0 and -1 are no limit", apply: |value, _| Ok(Some(whole(value)?.max(0).to_string())) };

/// A limit that pusherd always has.
const NEGATIVE_IS_MOST: Convert = Convert {
    words: "-1 is the most that there can be",
    apply: |value, _| match whole(value)? {
        0 => Err(nothing_passes("PUSHERD_APP_CLIENT_EVENTS=off")),
        number if number < 0 => Ok(Some("1000000".to_owned())),
        number => Ok(Some(number.to_string())),
    },
};

/// A limit where 0 is not what 0 is here.
const POSITIVE: Convert = Convert {
    words: "the same; 0 is refused, as it lets nothing through",
    apply: |value, _| match whole(value)? {
        number if number < 1 => Err(nothing_passes("PUSHERD_APP_ENABLED=false")),
        number => Ok(Some(number.to_string())),
    },
};

/// Source: ratchet/rfc6455, `MessageBuffer`: 0 is no limit.
const BYTES_OR_MOST: Convert = Convert {
    words: "bytes; 0 is the most that there can be",
    apply: |value, _| match whole(value)? {
        0 => Ok(Some((32 * 1024 * 1024).to_string())),
        number => Ok(Some(number.to_string())),
    },
};

const KILOBYTES: Convert =
    Convert { words: "KB, also with a fraction; × 1024", apply: |value, _| bytes(value, 1024.0) };

const MEGABYTES: Convert = Convert {
    words: "MB, also with a fraction; × 1024 × 1024",
    apply: |value, _| bytes(value, 1024.0 * 1024.0),
};

/// Source: Reverb's `ClientEvent`: what is neither `all` nor `members` is off.
const CLIENT_EVENTS: Convert = Convert {
    words: "`members`; `all` is `members` as well, as only who is subscribed may send; all else is `off`",
    apply: |value, _| {
        let is_on = ["all", "members"].contains(&value.trim());
        Ok(Some(if is_on { "members" } else { "off" }.to_owned()))
    },
};

const ORIGINS: Convert = Convert {
    words: "hosts between commas, or as JSON",
    apply: |value, _| {
        let list = value.replace(['[', ']', '"', '\''], "");
        Ok(Some(list).filter(|list| list.split(',').any(|host| !host.trim().is_empty())))
    },
};

const DEBUG: Convert = Convert {
    words: "`true` is `debug`, without payloads, which `serve --debug` shows",
    apply: |value, _| Ok(is_on(value)?.then(|| "debug".to_owned())),
};

/// Source: Soketi's `ws-handler.ts`, `setUserAuthenticationTimeout`; milliseconds, 30 s without.
const USER_AUTHENTICATION: Convert = Convert {
    words: "`true` is `SOKETI_USER_AUTHENTICATION_TIMEOUT`, in milliseconds, or 30 s",
    apply: |value, variables| {
        if !is_on(value)? {
            return Ok(Some("0".to_owned()));
        }
        let timeout = variables.get_filled(USER_AUTHENTICATION_TIMEOUT);
        let millis = timeout.map_or(Ok(30_000), |(value, _)| {
            whole(&value).map_err(|what| format!("{USER_AUTHENTICATION_TIMEOUT} {what}"))
        })?;
        Ok(Some(u64::try_from(millis).unwrap_or(0).div_ceil(1000).max(1).to_string()))
    },
};

const USER_AUTHENTICATION_TIMEOUT: &str = "SOKETI_USER_AUTHENTICATION_TIMEOUT";
const RATE_LIMITING: &str = "REVERB_APP_RATE_LIMITING_ENABLED";
const RATE_LIMIT_ATTEMPTS: &str = "REVERB_APP_RATE_LIMIT_MAX_ATTEMPTS";
const RATE_LIMIT_DECAY: &str = "REVERB_APP_RATE_LIMIT_DECAY_SECONDS";

/// Source: Reverb's `Server::ensureWithinRateLimit`; so many messages of a connection in so many seconds.
const RATE_BURST: Convert = Convert {
    words: "`true`: as many as `REVERB_APP_RATE_LIMIT_MAX_ATTEMPTS` (60)",
    apply: |value, variables| Ok(rate(value, variables)?.map(|(attempts, _)| attempts.to_string())),
};

/// See [`RATE_BURST`].
const RATE_PER_SECOND: Convert = Convert {
    words: "`true`: those, divided by `REVERB_APP_RATE_LIMIT_DECAY_SECONDS` (60) and rounded up; more close the \
            connection (4100), whatever `REVERB_APP_RATE_LIMIT_TERMINATE` says",
    apply: |value, variables| {
        Ok(rate(value, variables)?.map(|(attempts, secs)| attempts.div_ceil(secs).to_string()))
    },
};

fn rate(value: &str, variables: &Variables) -> Result<Option<(u64, u64)>, String> {
    if !is_on(value)? {
        return Ok(None);
    }
    let positive = |name: &str| {
        let number = variables.get_filled(name).map_or(Ok(60), |(value, _)| whole(&value));
        let number = number.ok().and_then(|number| u64::try_from(number).ok()).filter(|number| *number > 0);
        number.ok_or_else(|| format!("needs {name} to be a whole number above 0"))
    };
    Ok(Some((positive(RATE_LIMIT_ATTEMPTS)?, positive(RATE_LIMIT_DECAY)?)))
}

fn whole(value: &str) -> Result<i64, String> {
    value.trim().parse().map_err(|_| format!("must be a whole number, not {}", excerpt(value)))
}

fn bytes(value: &str, unit: f64) -> Result<Option<String>, String> {
    let number = value.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    let number = number.ok_or_else(|| format!("must be a number above 0, not {}", excerpt(value)))?;
    // A float becomes the closest integer that there is.
    Ok(Some(((number * unit) as u64).to_string()))
}

/// What Soketi (as JSON) and PHP take for yes and no.
fn is_on(value: &str) -> Result<bool, String> {
    match value.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Ok(true),
        "false" | "0" | "off" | "no" => Ok(false),
        _ => Err(format!("must be true or false, not {}", excerpt(value))),
    }
}

fn nothing_passes(instead: &str) -> String {
    format!("lets nothing through at 0; if that is meant, set {instead} instead")
}

const OTHER_APPS: &str = "pusherd has its apps in its own configuration, so nobody of that database could connect: list \
                          them as [[apps]] in config/pusherd.toml, and take this variable away";
const NO_METRICS: &str = "pusherd has no metrics yet";
const OWN_QUEUE: &str = "webhooks wait in pusherd itself, or in the Redis of its cluster";
const OWN_LIMITS: &str = "rates are counted by each node";
const OWN_CACHE: &str = "cached events are kept in pusherd itself, and in the Redis of its cluster";
const OWN_CLUSTER: &str = "nodes find each other by Redis";
const NO_DATABASE: &str = "apps are in pusherd's own configuration, not in a database";
const NO_CLIENT_CERTIFICATES: &str = "clients are not asked for certificates, nor does Soketi insist on them";
const NO_PASSPHRASE: &str = "a key with a passphrase is refused; decrypt it";
const OF_THE_DASHBOARD: &str = "for the package's dashboard";
const OF_LARAVEL: &str = "for the application's own monitoring";
const OF_THE_VENDOR: &str = "for the hosts of hosted Pusher";

/// All variables of other servers.
static ROWS: &[Row] = &[
    // What restricts who may connect and what they may do.
    Row { name: "SOKETI_APP_MANAGER_DRIVER", fate: Fate::Only { allowed: &["array"], why: OTHER_APPS } },
    // Not Reverb's own, but what applications call it that have their apps in a database.
    Row { name: "REVERB_APPS_PROVIDER", fate: Fate::Only { allowed: &["config"], why: OTHER_APPS } },
    Row { name: "REVERB_APP_PROVIDER", fate: Fate::Only { allowed: &["config"], why: OTHER_APPS } },
    Row {
        name: "SOKETI_MODE",
        fate: Fate::Only {
            allowed: &["full", "server"],
            why: "a worker takes no connections, and pusherd needs none: it sends webhooks itself",
        },
    },
    same("SOKETI_DEFAULT_APP_ENABLED", "PUSHERD_APP_ENABLED"),
    twin("REVERB_APP_ACCEPT_CLIENT_EVENTS_FROM", "PUSHERD_APP_CLIENT_EVENTS", CLIENT_EVENTS),
    same("SOKETI_DEFAULT_APP_ENABLE_CLIENT_MESSAGES", "PUSHERD_APP_CLIENT_EVENTS"),
    // In no release of the package, but in what is written of it.
    same("LARAVEL_WEBSOCKETS_ENABLE_CLIENT_MESSAGES", "PUSHERD_APP_CLIENT_EVENTS"),
    twin("REVERB_APP_ALLOWED_ORIGINS", "PUSHERD_APP_ALLOWED_ORIGINS", ORIGINS),
    twin("REVERB_ALLOWED_ORIGINS", "PUSHERD_APP_ALLOWED_ORIGINS", ORIGINS),
    twin(
        "SOKETI_DEFAULT_APP_USER_AUTHENTICATION",
        "PUSHERD_APP_AUTHORIZED_CONNECTIONS_TIMEOUT_SECS",
        USER_AUTHENTICATION,
    ),
    with(USER_AUTHENTICATION_TIMEOUT, "SOKETI_DEFAULT_APP_USER_AUTHENTICATION"),
    // Limits.
    twin("REVERB_APP_MAX_CONNECTIONS", "PUSHERD_APP_LIMITS_CONNECTIONS", POSITIVE),
    twin("SOKETI_DEFAULT_APP_MAX_CONNS", "PUSHERD_APP_LIMITS_CONNECTIONS", NOT_POSITIVE_IS_NONE),
    twin("REVERB_APP_MAX_MESSAGE_SIZE", "PUSHERD_APP_LIMITS_MESSAGE_BYTES", BYTES_OR_MOST),
    twin("REVERB_MAX_REQUEST_SIZE", "PUSHERD_APP_LIMITS_REQUEST_BODY_BYTES", POSITIVE),
    twin("SOKETI_HTTP_MAX_REQUEST_SIZE", "PUSHERD_APP_LIMITS_REQUEST_BODY_BYTES", MEGABYTES),
    twin(RATE_LIMITING, "PUSHERD_APP_LIMITS_MESSAGES_BURST", RATE_BURST),
    twin(RATE_LIMITING, "PUSHERD_APP_LIMITS_MESSAGES_PER_SECOND", RATE_PER_SECOND),
    with(RATE_LIMIT_ATTEMPTS, RATE_LIMITING),
    with(RATE_LIMIT_DECAY, RATE_LIMITING),
    not_read("REVERB_APP_RATE_LIMIT_TERMINATE", "who sends too fast is always closed (4100)"),
    twin(
        "SOKETI_DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SEC",
        "PUSHERD_APP_LIMITS_EVENTS_PER_SECOND",
        NEGATIVE_IS_NONE,
    ),
    twin(
        "SOKETI_DEFAULT_APP_MAX_CLIENT_EVENTS_PER_SEC",
        "PUSHERD_APP_LIMITS_CLIENT_EVENTS_PER_SECOND",
        NEGATIVE_IS_MOST,
    ),
    not_read(
        "SOKETI_DEFAULT_APP_MAX_READ_REQ_PER_SEC",
        "PUSHERD_APP_LIMITS_REQUESTS_PER_SECOND counts all signed requests, those that publish included",
    ),
    twin("SOKETI_EVENT_MAX_SIZE_IN_KB", "PUSHERD_APP_LIMITS_EVENT_DATA_BYTES", KILOBYTES),
    twin("SOKETI_EVENT_MAX_SIZE_IN_KB", "PUSHERD_APP_LIMITS_CLIENT_EVENT_DATA_BYTES", KILOBYTES),
    same("SOKETI_EVENT_MAX_NAME_LENGTH", "PUSHERD_APP_LIMITS_EVENT_NAME_CHARS"),
    same("SOKETI_EVENT_MAX_CHANNELS_AT_ONCE", "PUSHERD_APP_LIMITS_CHANNELS_PER_PUBLISH"),
    same("SOKETI_EVENT_MAX_BATCH_SIZE", "PUSHERD_APP_LIMITS_EVENTS_PER_BATCH"),
    same("SOKETI_CHANNEL_LIMITS_MAX_NAME_LENGTH", "PUSHERD_APP_LIMITS_CHANNEL_NAME_BYTES"),
    same("SOKETI_CHANNEL_MAX_NAME_LENGTH", "PUSHERD_APP_LIMITS_CHANNEL_NAME_BYTES"),
    same("SOKETI_CHANNEL_CACHE_TTL", "PUSHERD_APP_CACHE_TTL_SECS"),
    same("SOKETI_PRESENCE_MAX_MEMBERS", "PUSHERD_APP_LIMITS_PRESENCE_MEMBERS"),
    twin("SOKETI_PRESENCE_MAX_MEMBER_SIZE", "PUSHERD_APP_LIMITS_PRESENCE_USER_INFO_BYTES", KILOBYTES),
    // Where and how to serve.
    same("REVERB_SERVER_HOST", "PUSHERD_HOST"),
    same("SOKETI_HOST", "PUSHERD_HOST"),
    same("REVERB_SERVER_PORT", "PUSHERD_PORT"),
    same("SOKETI_PORT", "PUSHERD_PORT"),
    same("LARAVEL_WEBSOCKETS_PORT", "PUSHERD_PORT"),
    same("REVERB_SERVER_PATH", "PUSHERD_APP_PATH_PREFIX"),
    same("SOKETI_PATH_PREFIX", "PUSHERD_APP_PATH_PREFIX"),
    same("PUSHER_APP_PATH", "PUSHERD_APP_PATH_PREFIX"),
    same("SOKETI_SSL_CERT", "PUSHERD_TLS_CERT"),
    same("LARAVEL_WEBSOCKETS_SSL_LOCAL_CERT", "PUSHERD_TLS_CERT"),
    same("SOKETI_SSL_KEY", "PUSHERD_TLS_KEY"),
    same("LARAVEL_WEBSOCKETS_SSL_LOCAL_PK", "PUSHERD_TLS_KEY"),
    not_read("SOKETI_SSL_PASS", NO_PASSPHRASE),
    not_read("LARAVEL_WEBSOCKETS_SSL_PASSPHRASE", NO_PASSPHRASE),
    not_read("SOKETI_SSL_CA", NO_CLIENT_CERTIFICATES),
    not_read("LARAVEL_WEBSOCKETS_SSL_CA", NO_CLIENT_CERTIFICATES),
    same("REVERB_APP_PING_INTERVAL", "PUSHERD_PING_INTERVAL_SECS"),
    same("REVERB_APP_ACTIVITY_TIMEOUT", "PUSHERD_ACTIVITY_TIMEOUT_SECS"),
    same("SOKETI_HTTP_ACCEPT_TRAFFIC_MEMORY_THRESHOLD", "PUSHERD_ACCEPT_TRAFFIC_MEMORY_PERCENT"),
    twin("SOKETI_DEBUG", "PUSHERD_LOG_LEVEL", DEBUG),
    same("SOKETI_DEFAULT_APP_WEBHOOKS", "PUSHERD_APP_WEBHOOKS"),
    same("SOKETI_WEBHOOKS_BATCHING", "PUSHERD_APP_WEBHOOK_BATCHING"),
    same("SOKETI_WEBHOOKS_BATCHING_DURATION", "PUSHERD_APP_WEBHOOK_BATCHING_MS"),
    not_read(
        "SOKETI_SHUTDOWN_GRACE_PERIOD",
        "PUSHERD_DRAIN_SECS and PUSHERD_SHUTDOWN_DEADLINE_SECS say how it ends",
    ),
    // What pusherd has not, or has in its own way.
    not_read("SOKETI_METRICS_*", NO_METRICS),
    not_read("SOKETI_QUEUE_*", OWN_QUEUE),
    not_read("SOKETI_RATE_LIMITER_*", OWN_LIMITS),
    not_read("SOKETI_CACHE_*", OWN_CACHE),
    not_read("SOKETI_ADAPTER_CLUSTER_*", OWN_CLUSTER),
    not_read("SOKETI_ADAPTER_NATS_*", OWN_CLUSTER),
    not_read("SOKETI_ADAPTER_REDIS_*", OWN_CLUSTER),
    not_read("SOKETI_CLUSTER_*", OWN_CLUSTER),
    not_read("SOKETI_APP_MANAGER_*", NO_DATABASE),
    not_read("SOKETI_DB_MYSQL_*", NO_DATABASE),
    not_read("SOKETI_DB_POSTGRES_*", NO_DATABASE),
    not_read("SOKETI_DB_POOLING_*", NO_DATABASE),
    not_read("REVERB_SERVER", "pusherd is the server"),
    not_read("REVERB_PULSE_INGEST_INTERVAL", OF_LARAVEL),
    not_read("REVERB_TELESCOPE_INGEST_INTERVAL", OF_LARAVEL),
    not_read("LARAVEL_WEBSOCKETS_DOMAIN", OF_THE_DASHBOARD),
    not_read("LARAVEL_WEBSOCKETS_PATH", OF_THE_DASHBOARD),
    not_read("PUSHER_APP_HOST", OF_THE_DASHBOARD),
    not_read("WEBSOCKETS_REDIS_REPLICATION_CONNECTION", "REDIS_… say where Redis is"),
    Row { name: "PUSHER_APP_CLUSTER", fate: Fate::Meaningless(OF_THE_VENDOR) },
    Row { name: "PUSHER_CLUSTER", fate: Fate::Meaningless(OF_THE_VENDOR) },
];

/// What variables of other servers begin with, so that those in no row are named as well.
const PREFIXES: [&str; 4] = ["REVERB_", "SOKETI_", "LARAVEL_WEBSOCKETS_", "PUSHER_APP_"];

/// Names of which a remark repeats at most so many.
const NAMES_MAX: usize = 40;

impl Row {
    /// The names it is read by: Soketi before 1.0 had no front.
    fn names(&self) -> impl Iterator<Item = &'static str> {
        let without = self.name.strip_prefix("SOKETI_").filter(|name| name.starts_with("DEFAULT_APP_"));
        std::iter::once(self.name).chain(without)
    }

    fn is_of(&self, name: &str) -> bool {
        match self.name.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => self.names().any(|own| own == name),
        }
    }

    fn is_read(&self) -> bool {
        matches!(self.fate, Fate::Twin { .. } | Fate::With(_) | Fate::Only { .. })
    }
}

/// The names of all variables of other servers that are read by a row of the table.
pub(super) fn names() -> BTreeSet<String> {
    ROWS.iter().filter(|row| row.is_read()).flat_map(Row::names).map(str::to_owned).collect()
}

/// The variables that are read for `own`, by their name.
pub(super) fn twins(own: &str) -> impl Iterator<Item = &'static str> {
    ROWS.iter()
        .filter(move |row| matches!(row.fate, Fate::Twin { twin, .. } if twin == own))
        .map(|row| row.name)
}

/// Reads what other servers' variables say of settings.
pub(super) struct Reader<'a> {
    pub(super) variables: &'a Variables,
    pub(super) choice: &'a Choice,
}

impl Reader<'_> {
    /// The value that another server's variable has for pusherd's own variable `own`: that of the server whose variables
    /// the application uses, else the first in the table. `None`: none is set, or all say nothing.
    pub(super) fn twin(&self, own: &str, may_be_empty: bool) -> Option<(Result<String, String>, Source)> {
        let first = match self.choice.owner() {
            Some(Owner::Reverb) => "REVERB_",
            Some(Owner::Soketi) => "SOKETI_",
            Some(Owner::Pusher | Owner::Pusherd) | None => "",
        };
        let (preferred, others): (Vec<_>, Vec<_>) = ROWS.iter().partition(|row| row.name.starts_with(first));
        preferred.into_iter().chain(others).find_map(|row| {
            let Fate::Twin { twin, convert } = &row.fate else { return None };
            let set = |name| self.variables.get(name).filter(|(value, _)| !value.is_empty() || may_be_empty);
            let name = row.names().filter(|_| *twin == own && !self.choice.is_left(row.name));
            let (value, source) = { name }.find_map(set)?;
            let value = (convert.apply)(&value, self.variables).transpose()?;
            Some((value, source))
        })
    }
}

/// Reports variables that ask for what cannot be had.
pub(super) fn refuse(variables: &Variables, problems: &mut Problems) {
    for row in ROWS {
        let Fate::Only { allowed, why } = row.fate else { continue };
        if let Some((value, source)) = variables.get_filled(row.name)
            && !allowed.contains(&value.trim())
        {
            let allowed = allowed.join(" or ");
            problems.add(&source, "", format_args!("must be {allowed}, not {}: {why}", excerpt(&value)));
        }
    }
}

/// What to say of variables of other servers that are set and not read. Without `one_app`, those of an app are not.
pub(super) fn remark(variables: &Variables, one_app: bool) -> Option<String> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut more = 0;
    for (count, (name, why)) in
        variables.names().filter_map(|name| Some((name, why_not_read(name, one_app)?))).enumerate()
    {
        match groups.iter_mut().find(|(other, _)| *other == why) {
            _ if count >= NAMES_MAX => more += 1,
            Some((_, names)) => names.push(name),
            None => groups.push((why, vec![name])),
        }
    }
    let groups: Vec<_> = groups.iter().map(|(why, names)| format!("{} ({why})", names.join(", "))).collect();
    let more = if more == 0 { String::new() } else { format!("; and {more} more") };
    (!groups.is_empty()).then(|| format!("not read, though set: {}{more}", groups.join("; ")))
}

/// Why the variable `name`, which is set, is not read, if that is worth a word.
fn why_not_read(name: &str, one_app: bool) -> Option<&'static str> {
    let fate = ROWS.iter().find(|row| row.is_of(name)).map(|row| &row.fate);
    if is_known(name) {
        let is_of_app = matches!(fate, Some(Fate::Twin { twin, .. }) if twin.starts_with(APP_PREFIX));
        return (is_of_app && !one_app).then_some("for one app, and the file has several");
    }
    match fate {
        Some(Fate::NotRead(why)) => Some(why),
        Some(Fate::Twin { .. } | Fate::With(_) | Fate::Only { .. } | Fate::Meaningless(_)) => None,
        None => PREFIXES.iter().any(|prefix| name.starts_with(prefix)).then_some("pusherd does not know it"),
    }
}

/// The table as Markdown, for `docs/reference/environment.md`.
#[must_use]
pub fn foreign_reference() -> String {
    let mut text = String::from("| Variable | Read for | Value |\n|---|---|---|\n");
    let mut rows = ROWS.iter().peekable();
    while let Some(row) = rows.next() {
        let mut names = format!("`{}`", row.name);
        let (read_for, value) = match &row.fate {
            Fate::Twin { twin, convert } => (format!("`{twin}`"), convert.words.to_owned()),
            Fate::With(other) => (format!("with `{other}`"), "see there".to_owned()),
            Fate::Only { allowed, why } => {
                let allowed: Vec<_> = allowed.iter().map(|word| format!("`{word}`")).collect();
                ("nothing".to_owned(), format!("anything but {} is refused: {why}", allowed.join(" and ")))
            }
            Fate::NotRead(why) | Fate::Meaningless(why) => {
                // Those with one reason are in one row.
                let has_same = |row: &&Row| matches!(&row.fate, Fate::NotRead(other) | Fate::Meaningless(other) if other == why);
                while let Some(other) = rows.next_if(has_same) {
                    let _ = write!(names, ", `{}`", other.name);
                }
                ("not read".to_owned(), (*why).to_owned())
            }
        };
        let _ = writeln!(text, "| {names} | {read_for} | {value} |");
    }
    text
}
