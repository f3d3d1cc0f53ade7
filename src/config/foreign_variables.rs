//! Variables of the servers that pusherd replaces. One row defines how a variable is handled; to add a variable, add a row.
//!
//! A row names the variable of pusherd with the same meaning and the conversion of the value, or the reason why the variable
//! is not read. Variables that are read rank above the file and below pusherd's own variables. Those that are not read are
//! listed in one warning at the start, as are unknown variables with the prefix of such a server. The table in the
//! documentation is generated from this one. (Variables that locate Redis are fallbacks in `schema`, because they are read
//! only in a cluster.)
//!
//! Source: Reverb's `config/reverb.php` of 1.0 to 1.9 and the code that reads it, Soketi 1.6's `cli.ts`, its documentation
//! and the code that reads its options, `config/websockets.php` of laravel-websockets 1 and 2.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::credentials::{CredentialsChoice, Owner};
use super::problems::{Problems, Source};
use super::setting::excerpt;
use super::variables::{APP_PREFIX, PLATFORM_PORT, Variables, is_known};

/// A variable of another server.
struct Row {
    /// Its name; or the prefix of several, followed by `*`.
    name: &'static str,
    handling: Handling,
}

/// How a variable of another server is handled.
enum Handling {
    /// It is an alias of `own`, a variable of pusherd, after a conversion of its value.
    Alias { own: &'static str, conversion: Conversion },
    /// It is read as a part of another variable.
    PartOf(&'static str),
    /// It is rejected unless it is one of `allowed`, because pusherd does not support other values.
    Restricted { allowed: &'static [&'static str], why: &'static str },
    /// It is not read. A warning gives the reason.
    NotRead(&'static str),
    /// It is not read, without a warning, because it has no meaning here.
    Ignored(&'static str),
}

/// The conversion of a value.
struct Conversion {
    /// In words, for the documentation.
    words: &'static str,
    /// Returns the value for pusherd's variable; `None` if it sets nothing. It may read further variables.
    apply: fn(&str, &Variables) -> Result<Option<String>, String>,
}

const fn alias(name: &'static str, own: &'static str, conversion: Conversion) -> Row {
    Row { name, handling: Handling::Alias { own, conversion } }
}

const fn same(name: &'static str, own: &'static str) -> Row {
    alias(name, own, SAME)
}

const fn part_of(name: &'static str, other: &'static str) -> Row {
    Row { name, handling: Handling::PartOf(other) }
}

const fn not_read(name: &'static str, why: &'static str) -> Row {
    Row { name, handling: Handling::NotRead(why) }
}

const fn ignored(name: &'static str, why: &'static str) -> Row {
    Row { name, handling: Handling::Ignored(why) }
}

const SAME: Conversion = Conversion { words: "the same", apply: |value, _| Ok(Some(value.to_owned())) };

/// A limit for which a negative value means no limit.
const NEGATIVE_IS_NONE: Conversion = Conversion {
    words: "-1 is no limit",
    apply: |value, _| match parse_integer(value)? {
        0 => Err(blocks_everything("PUSHERD_APP_ENABLED=false")),
        number => Ok(Some(number.max(0).to_string())),
    },
};

/// A limit for which 0 means no limit as well, as for Soketi's connections.
const NOT_POSITIVE_IS_NONE: Conversion = Conversion {
    words: "0 and -1 are no limit",
    apply: |value, _| Ok(Some(parse_integer(value)?.max(0).to_string())),
};

/// A limit that cannot be turned off in pusherd.
const NEGATIVE_IS_MOST: Conversion = Conversion {
    words: "-1 is the highest limit",
    apply: |value, _| match parse_integer(value)? {
        0 => Err(blocks_everything("PUSHERD_APP_CLIENT_EVENTS=off")),
        number if number < 0 => Ok(Some("1000000".to_owned())),
        number => Ok(Some(number.to_string())),
    },
};

/// A limit for which 0 does not mean no limit, as it does in pusherd.
const POSITIVE: Conversion = Conversion {
    words: "the same; 0 is rejected, because it would block everything",
    apply: |value, _| match parse_integer(value)? {
        number if number < 1 => Err(blocks_everything("PUSHERD_APP_ENABLED=false")),
        number => Ok(Some(number.to_string())),
    },
};

/// Source: ratchet/rfc6455, `MessageBuffer`: 0 is no limit.
const BYTES_OR_MOST: Conversion = Conversion {
    words: "bytes; 0 is the highest limit",
    apply: |value, _| match parse_integer(value)? {
        0 => Ok(Some((32 * 1024 * 1024).to_string())),
        number => Ok(Some(number.to_string())),
    },
};

const KILOBYTES: Conversion =
    Conversion { words: "KB, also with a fraction; × 1024", apply: |value, _| bytes(value, 1024.0) };

const MEGABYTES: Conversion = Conversion {
    words: "MB, also with a fraction; × 1024 × 1024",
    apply: |value, _| bytes(value, 1024.0 * 1024.0),
};

/// Source: Reverb's `ClientEvent`: values other than `all` and `members` mean off.
const CLIENT_EVENTS: Conversion = Conversion {
    words: "`members`; `all` is `members` as well, because only subscribers may send; other values are `off`",
    apply: |value, _| {
        let is_on = ["all", "members"].contains(&value.trim());
        Ok(Some(if is_on { "members" } else { "off" }.to_owned()))
    },
};

const ORIGINS: Conversion = Conversion {
    words: "hosts, separated by commas or as JSON",
    apply: |value, _| {
        let list = value.replace(['[', ']', '"', '\''], "");
        Ok(Some(list).filter(|list| list.split(',').any(|host| !host.trim().is_empty())))
    },
};

const DEBUG: Conversion = Conversion {
    words: "`true` is `debug`, without payloads; `serve --debug` logs them",
    apply: |value, _| Ok(is_on(value)?.then(|| "debug".to_owned())),
};

/// Source: Soketi's `ws-handler.ts`, `setUserAuthenticationTimeout`; in milliseconds, default 30 s.
const USER_AUTHENTICATION: Conversion = Conversion {
    words: "`true` is `SOKETI_USER_AUTHENTICATION_TIMEOUT`, in milliseconds, or 30 s",
    apply: |value, variables| {
        if !is_on(value)? {
            return Ok(Some("0".to_owned()));
        }
        let timeout = variables.non_empty(USER_AUTHENTICATION_TIMEOUT);
        let millis = timeout.map_or(Ok(30_000), |(value, _)| {
            parse_integer(&value).map_err(|what| format!("{USER_AUTHENTICATION_TIMEOUT} {what}"))
        })?;
        Ok(Some(u64::try_from(millis).unwrap_or(0).div_ceil(1000).max(1).to_string()))
    },
};

const USER_AUTHENTICATION_TIMEOUT: &str = "SOKETI_USER_AUTHENTICATION_TIMEOUT";
const RATE_LIMITING: &str = "REVERB_APP_RATE_LIMITING_ENABLED";
const RATE_LIMIT_ATTEMPTS: &str = "REVERB_APP_RATE_LIMIT_MAX_ATTEMPTS";
const RATE_LIMIT_DECAY: &str = "REVERB_APP_RATE_LIMIT_DECAY_SECONDS";

/// Source: Reverb's `Server::ensureWithinRateLimit`, which limits the messages of a connection in a window of seconds.
const RATE_BURST: Conversion = Conversion {
    words: "`true`: the value of `REVERB_APP_RATE_LIMIT_MAX_ATTEMPTS` (60)",
    apply: |value, variables| Ok(rate(value, variables)?.map(|(attempts, _)| attempts.to_string())),
};

/// See [`RATE_BURST`].
const RATE_PER_SECOND: Conversion = Conversion {
    words: "`true`: that value divided by `REVERB_APP_RATE_LIMIT_DECAY_SECONDS` (60), rounded up; above it, the \
            connection is closed (4100), whatever `REVERB_APP_RATE_LIMIT_TERMINATE` is",
    apply: |value, variables| {
        Ok(rate(value, variables)?.map(|(attempts, secs)| attempts.div_ceil(secs).to_string()))
    },
};

fn rate(value: &str, variables: &Variables) -> Result<Option<(u64, u64)>, String> {
    if !is_on(value)? {
        return Ok(None);
    }
    let positive = |name: &str| {
        let number = variables.non_empty(name).map_or(Ok(60), |(value, _)| parse_integer(&value));
        let number = number.ok().and_then(|number| u64::try_from(number).ok()).filter(|number| *number > 0);
        number.ok_or_else(|| format!("needs {name} to be a whole number above 0"))
    };
    Ok(Some((positive(RATE_LIMIT_ATTEMPTS)?, positive(RATE_LIMIT_DECAY)?)))
}

fn parse_integer(value: &str) -> Result<i64, String> {
    value.trim().parse().map_err(|_| format!("must be a whole number, not {}", excerpt(value)))
}

fn bytes(value: &str, unit: f64) -> Result<Option<String>, String> {
    let number = value.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    let number = number.ok_or_else(|| format!("must be a number above 0, not {}", excerpt(value)))?;
    // The cast saturates.
    Ok(Some(((number * unit) as u64).to_string()))
}

/// The boolean that Soketi (as JSON) and PHP read.
fn is_on(value: &str) -> Result<bool, String> {
    match value.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Ok(true),
        "false" | "0" | "off" | "no" => Ok(false),
        _ => Err(format!("must be true or false, not {}", excerpt(value))),
    }
}

fn blocks_everything(instead: &str) -> String {
    format!("blocks everything at 0; if that is intended, set {instead} instead")
}

const OTHER_APPS: &str = "pusherd reads apps from its own configuration, not from a database: list them as [[apps]] in \
                          config/pusherd.toml, and remove this variable";
const NO_METRICS: &str = "pusherd has no metrics yet";
const OWN_QUEUE: &str = "webhooks are queued in pusherd itself, or in the Redis of its cluster";
const OWN_LIMITS: &str = "rates are counted by each node";
const OWN_CACHE: &str = "cached events are kept in pusherd itself, and in the Redis of its cluster";
const OWN_CLUSTER: &str = "nodes find each other through Redis";
const NO_DATABASE: &str = "apps are read from pusherd's own configuration, not from a database";
const NO_CLIENT_CERTIFICATES: &str =
    "client certificates are not requested; Soketi does not require them either";
const NO_PASSPHRASE: &str = "a key with a passphrase is rejected; decrypt it";
const OF_THE_DASHBOARD: &str = "for the package's dashboard";
const OF_LARAVEL: &str = "for the application's own monitoring";
const OF_THE_VENDOR: &str = "for the hosts of Pusher's own service";
const OF_THE_SDK: &str = "for the SDK by which the application publishes";
const OF_BEAMS: &str = "for Beams, another product of Pusher";

/// All variables of other servers.
static ROWS: &[Row] = &[
    // Restrictions on connections and what they may do.
    Row {
        name: "SOKETI_APP_MANAGER_DRIVER",
        handling: Handling::Restricted { allowed: &["array"], why: OTHER_APPS },
    },
    // Not Reverb's own, but the usual name in applications that have their apps in a database.
    Row {
        name: "REVERB_APPS_PROVIDER",
        handling: Handling::Restricted { allowed: &["config"], why: OTHER_APPS },
    },
    Row {
        name: "REVERB_APP_PROVIDER",
        handling: Handling::Restricted { allowed: &["config"], why: OTHER_APPS },
    },
    Row {
        name: "SOKETI_MODE",
        handling: Handling::Restricted {
            allowed: &["full", "server"],
            why: "a worker accepts no connections, and pusherd needs none: it sends webhooks itself",
        },
    },
    same("SOKETI_DEFAULT_APP_ENABLED", "PUSHERD_APP_ENABLED"),
    alias("REVERB_APP_ACCEPT_CLIENT_EVENTS_FROM", "PUSHERD_APP_CLIENT_EVENTS", CLIENT_EVENTS),
    same("SOKETI_DEFAULT_APP_ENABLE_CLIENT_MESSAGES", "PUSHERD_APP_CLIENT_EVENTS"),
    // In no release of the package, but in articles about it.
    same("LARAVEL_WEBSOCKETS_ENABLE_CLIENT_MESSAGES", "PUSHERD_APP_CLIENT_EVENTS"),
    alias("REVERB_APP_ALLOWED_ORIGINS", "PUSHERD_APP_ALLOWED_ORIGINS", ORIGINS),
    alias("REVERB_ALLOWED_ORIGINS", "PUSHERD_APP_ALLOWED_ORIGINS", ORIGINS),
    alias(
        "SOKETI_DEFAULT_APP_USER_AUTHENTICATION",
        "PUSHERD_APP_AUTHORIZED_CONNECTIONS_TIMEOUT_SECS",
        USER_AUTHENTICATION,
    ),
    part_of(USER_AUTHENTICATION_TIMEOUT, "SOKETI_DEFAULT_APP_USER_AUTHENTICATION"),
    // Limits.
    alias("REVERB_APP_MAX_CONNECTIONS", "PUSHERD_APP_LIMITS_CONNECTIONS", POSITIVE),
    alias("SOKETI_DEFAULT_APP_MAX_CONNS", "PUSHERD_APP_LIMITS_CONNECTIONS", NOT_POSITIVE_IS_NONE),
    alias("REVERB_APP_MAX_MESSAGE_SIZE", "PUSHERD_APP_LIMITS_MESSAGE_BYTES", BYTES_OR_MOST),
    alias("REVERB_MAX_REQUEST_SIZE", "PUSHERD_APP_LIMITS_REQUEST_BODY_BYTES", POSITIVE),
    alias("SOKETI_HTTP_MAX_REQUEST_SIZE", "PUSHERD_APP_LIMITS_REQUEST_BODY_BYTES", MEGABYTES),
    alias(RATE_LIMITING, "PUSHERD_APP_LIMITS_MESSAGES_BURST", RATE_BURST),
    alias(RATE_LIMITING, "PUSHERD_APP_LIMITS_MESSAGES_PER_SECOND", RATE_PER_SECOND),
    part_of(RATE_LIMIT_ATTEMPTS, RATE_LIMITING),
    part_of(RATE_LIMIT_DECAY, RATE_LIMITING),
    not_read("REVERB_APP_RATE_LIMIT_TERMINATE", "a client above the rate is always closed (4100)"),
    alias(
        "SOKETI_DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SEC",
        "PUSHERD_APP_LIMITS_EVENTS_PER_SECOND",
        NEGATIVE_IS_NONE,
    ),
    alias(
        "SOKETI_DEFAULT_APP_MAX_CLIENT_EVENTS_PER_SEC",
        "PUSHERD_APP_LIMITS_CLIENT_EVENTS_PER_SECOND",
        NEGATIVE_IS_MOST,
    ),
    not_read(
        "SOKETI_DEFAULT_APP_MAX_READ_REQ_PER_SEC",
        "PUSHERD_APP_LIMITS_REQUESTS_PER_SECOND counts all signed requests, those that publish included",
    ),
    alias("SOKETI_EVENT_MAX_SIZE_IN_KB", "PUSHERD_APP_LIMITS_EVENT_DATA_BYTES", KILOBYTES),
    alias("SOKETI_EVENT_MAX_SIZE_IN_KB", "PUSHERD_APP_LIMITS_CLIENT_EVENT_DATA_BYTES", KILOBYTES),
    same("SOKETI_EVENT_MAX_NAME_LENGTH", "PUSHERD_APP_LIMITS_EVENT_NAME_CHARS"),
    same("SOKETI_EVENT_MAX_CHANNELS_AT_ONCE", "PUSHERD_APP_LIMITS_CHANNELS_PER_PUBLISH"),
    same("SOKETI_EVENT_MAX_BATCH_SIZE", "PUSHERD_APP_LIMITS_EVENTS_PER_BATCH"),
    same("SOKETI_CHANNEL_LIMITS_MAX_NAME_LENGTH", "PUSHERD_APP_LIMITS_CHANNEL_NAME_BYTES"),
    same("SOKETI_CHANNEL_MAX_NAME_LENGTH", "PUSHERD_APP_LIMITS_CHANNEL_NAME_BYTES"),
    same("SOKETI_CHANNEL_CACHE_TTL", "PUSHERD_APP_CACHE_TTL_SECS"),
    same("SOKETI_PRESENCE_MAX_MEMBERS", "PUSHERD_APP_LIMITS_PRESENCE_MEMBERS"),
    alias("SOKETI_PRESENCE_MAX_MEMBER_SIZE", "PUSHERD_APP_LIMITS_PRESENCE_USER_INFO_BYTES", KILOBYTES),
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
    alias("SOKETI_DEBUG", "PUSHERD_LOG_LEVEL", DEBUG),
    same("SOKETI_DEFAULT_APP_WEBHOOKS", "PUSHERD_APP_WEBHOOKS"),
    same("SOKETI_WEBHOOKS_BATCHING", "PUSHERD_APP_WEBHOOK_BATCHING"),
    same("SOKETI_WEBHOOKS_BATCHING_DURATION", "PUSHERD_APP_WEBHOOK_BATCHING_MS"),
    not_read(
        "SOKETI_SHUTDOWN_GRACE_PERIOD",
        "PUSHERD_DRAIN_SECS and PUSHERD_SHUTDOWN_DEADLINE_SECS define the shutdown",
    ),
    // Features that pusherd does not have, or configures differently.
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
    not_read("WEBSOCKETS_REDIS_REPLICATION_CONNECTION", "REDIS_… locate Redis"),
    ignored("PUSHER_APP_CLUSTER", OF_THE_VENDOR),
    ignored("PUSHER_CLUSTER", OF_THE_VENDOR),
    // Pusher's name is also in the variables of those who publish, and of its other products.
    ignored("PUSHER_ENCRYPTION_*", OF_THE_SDK),
    ignored("PUSHER_ENCRYPTED", OF_THE_SDK),
    ignored("PUSHER_USE_TLS", OF_THE_SDK),
    ignored("PUSHER_TIMEOUT", OF_THE_SDK),
    ignored("PUSHER_DEBUG", OF_THE_SDK),
    ignored("PUSHER_CURL_*", OF_THE_SDK),
    ignored("PUSHER_BEAMS_*", OF_BEAMS),
];

/// The prefixes of other servers. Unknown variables with these prefixes are reported.
///
/// `DEFAULT_APP_` is what Soketi's variables began with before 1.0, but any program may call its own so
/// (`DEFAULT_APP_NAME`): only the kinds of settings that Soketi had are reported.
const PREFIXES: [&str; 7] = [
    "REVERB_",
    "SOKETI_",
    "LARAVEL_WEBSOCKETS_",
    "PUSHER_",
    "DEFAULT_APP_MAX_",
    "DEFAULT_APP_ENABLE",
    "DEFAULT_APP_WEBHOOK",
];

/// Why [`PLATFORM_PORT`] is not read from a `.env`.
const PORT_IN_DOTENV: &str = "in a .env it belongs to another program; PUSHERD_PORT is pusherd's";

/// The most names that a warning lists.
const NAMES_MAX: usize = 40;

impl Row {
    /// Its names: Soketi before 1.0 had no prefix.
    fn names(&self) -> impl Iterator<Item = &'static str> {
        let without = self.name.strip_prefix("SOKETI_").filter(|name| name.starts_with("DEFAULT_APP_"));
        std::iter::once(self.name).chain(without)
    }

    fn matches(&self, name: &str) -> bool {
        match self.name.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => self.names().any(|own| own == name),
        }
    }

    fn is_read(&self) -> bool {
        matches!(self.handling, Handling::Alias { .. } | Handling::PartOf(_) | Handling::Restricted { .. })
    }
}

/// The names of all variables of other servers that are read.
pub(super) fn names() -> BTreeSet<String> {
    ROWS.iter().filter(|row| row.is_read()).flat_map(Row::names).map(str::to_owned).collect()
}

/// The names of the aliases of `own`, a variable of pusherd.
pub(super) fn aliases_of(own: &str) -> impl Iterator<Item = &'static str> {
    ROWS.iter()
        .filter(move |row| matches!(row.handling, Handling::Alias { own: other, .. } if other == own))
        .map(|row| row.name)
}

/// Reads settings from variables of other servers.
pub(super) struct Reader<'a> {
    pub(super) variables: &'a Variables,
    pub(super) choice: &'a CredentialsChoice,
}

impl Reader<'_> {
    /// The value of an alias of `own`, a variable of pusherd: of the server whose variables the application uses, else of
    /// the first alias in the table. `None` if none of them sets a value.
    pub(super) fn alias_value(
        &self,
        own: &str,
        allows_empty: bool,
    ) -> Option<(Result<String, String>, Source)> {
        let first = match self.choice.owner() {
            Some(Owner::Reverb) => "REVERB_",
            Some(Owner::Soketi) => "SOKETI_",
            Some(Owner::Pusher | Owner::Pusherd) | None => "",
        };
        let (preferred, others): (Vec<_>, Vec<_>) = ROWS.iter().partition(|row| row.name.starts_with(first));
        preferred.into_iter().chain(others).find_map(|row| {
            let Handling::Alias { own: other, conversion } = &row.handling else { return None };
            let set = |name| self.variables.get(name).filter(|(value, _)| !value.is_empty() || allows_empty);
            let mut names = row.names().filter(|_| *other == own && !self.choice.is_unused(row.name));
            let (value, source) = names.find_map(set)?;
            let value = (conversion.apply)(&value, self.variables).transpose()?;
            Some((value, source))
        })
    }
}

/// Reports variables with values that pusherd does not support.
pub(super) fn check_restricted(variables: &Variables, problems: &mut Problems) {
    for row in ROWS {
        let Handling::Restricted { allowed, why } = row.handling else { continue };
        if let Some((value, source)) = variables.non_empty(row.name)
            && !allowed.contains(&value.trim())
        {
            let allowed = allowed.join(" or ");
            problems.add(&source, "", format_args!("must be {allowed}, not {}: {why}", excerpt(&value)));
        }
    }
}

/// The warning about variables of other servers that are set and not read. `one_app` says whether variables of an app are
/// read.
pub(super) fn unread_warning(variables: &Variables, one_app: bool) -> Option<String> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut more = 0;
    let why_not_read = |name: &str| match name {
        PLATFORM_PORT => variables.is_in_dotenv(name).then_some(PORT_IN_DOTENV),
        _ => why_not_read(name, one_app),
    };
    for (count, (name, why)) in
        variables.names().filter_map(|name| Some((name, why_not_read(name)?))).enumerate()
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

/// The reason why the variable `name` is not read; `None` if it is read or ignored.
fn why_not_read(name: &str, one_app: bool) -> Option<&'static str> {
    let handling = ROWS.iter().find(|row| row.matches(name)).map(|row| &row.handling);
    if is_known(name) {
        let is_app_setting =
            matches!(handling, Some(Handling::Alias { own, .. }) if own.starts_with(APP_PREFIX));
        return (is_app_setting && !one_app).then_some("for one app, and the file has several");
    }
    match handling {
        Some(Handling::NotRead(why)) => Some(why),
        Some(
            Handling::Alias { .. } | Handling::PartOf(_) | Handling::Restricted { .. } | Handling::Ignored(_),
        ) => None,
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
        let (read_for, value) = match &row.handling {
            Handling::Alias { own, conversion } => (format!("`{own}`"), conversion.words.to_owned()),
            Handling::PartOf(other) => (format!("with `{other}`"), "see there".to_owned()),
            Handling::Restricted { allowed, why } => {
                let allowed: Vec<_> = allowed.iter().map(|word| format!("`{word}`")).collect();
                ("nothing".to_owned(), format!("anything but {} is rejected: {why}", allowed.join(" and ")))
            }
            Handling::NotRead(why) | Handling::Ignored(why) => {
                // Variables with the same reason share a row.
                let has_same = |row: &&Row| matches!(&row.handling, Handling::NotRead(other) | Handling::Ignored(other) if other == why);
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
