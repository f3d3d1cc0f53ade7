//! The location of Redis and its credentials, combined from several settings and variables.
//!
//! Variables of other programs (Laravel's `REDIS_…`, Soketi's `SOKETI_DB_REDIS_…`) are read only in a cluster. They rank
//! below pusherd's own settings, including those in the file.
//!
//! Source: Laravel's `config/database.php` and `Illuminate\Support\ConfigurationUrlParser`, Reverb's `config/reverb.php`
//! (`scaling`), Soketi's documentation.

mod checks;
#[cfg(test)]
mod tests;
mod url;

use std::path::PathBuf;
use std::time::Duration;

use super::problems::{Problems, Source};
use super::section::Section;
use super::settings::{Cluster, Server as Node};
use super::variables::{REDIS_PREFIX, SCALING_CHANNEL, SCHEME, SOKETI, Variables, locates_redis};
use crate::cluster::redis::options::{Options, Server, Servers, TlsOptions};
use crate::secret::Secret;
pub(super) use checks::{host, masked, master, password, prefix, username};
use url::Url;
pub(super) use url::{masked_url, url};

/// The default of Reverb's channel.
const DEFAULT_CHANNEL: &str = "reverb";

/// The section `[redis]`.
#[derive(Clone)]
pub(super) struct Redis {
    /// The URL as it was written; empty: none. [`resolve`] copies its parts into the other fields.
    pub(super) url: Secret,
    pub(super) host: Box<str>,
    pub(super) port: u16,
    pub(super) nodes: Vec<Server>,
    pub(super) sentinels: Vec<Server>,
    pub(super) sentinel_master: Box<str>,
    pub(super) sentinel_username: Box<str>,
    pub(super) sentinel_password: Secret,
    pub(super) username: Box<str>,
    pub(super) password: Secret,
    pub(super) database: u32,
    pub(super) prefix: Box<str>,
    pub(super) timeout_ms: u32,
    pub(super) tls: bool,
    pub(super) tls_ca_file: Box<str>,
    pub(super) tls_accept_any_certificate: bool,
}

impl Default for Redis {
    fn default() -> Self {
        let Server { host, port } = Server::default();
        let Options { tls, database, prefix, timeout, .. } = Options::default();
        Self {
            url: Secret::default(),
            host: host.into(),
            port,
            nodes: Vec::new(),
            sentinels: Vec::new(),
            // The name in the documentation of Redis.
            sentinel_master: "mymaster".into(),
            sentinel_username: "".into(),
            sentinel_password: Secret::default(),
            username: "".into(),
            password: Secret::default(),
            database,
            prefix: prefix.into(),
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            tls: tls.is_some(),
            tls_ca_file: "".into(),
            tls_accept_any_certificate: false,
        }
    }
}

impl Redis {
    /// The options of the cluster, after [`resolve`]. `ca_file` is the path of `tls_ca_file`.
    pub(super) fn options(&self, ca_file: PathBuf) -> Options {
        let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let password = |secret: &Secret| (!secret.expose().is_empty()).then(|| secret.clone());
        let servers = if !self.nodes.is_empty() {
            Servers::Cluster(self.nodes.clone())
        } else if !self.sentinels.is_empty() {
            Servers::Sentinels {
                sentinels: self.sentinels.clone(),
                master: self.sentinel_master.clone().into(),
                username: filled(&self.sentinel_username),
                password: password(&self.sentinel_password),
            }
        } else {
            Servers::Single(Server { host: self.host.clone().into(), port: self.port })
        };
        let ca_file = (!self.tls_ca_file.is_empty()).then_some(ca_file);
        let tls = TlsOptions { ca_file, accepts_any: self.tls_accept_any_certificate };
        Options {
            servers,
            tls: self.tls.then_some(tls),
            username: filled(&self.username),
            password: password(&self.password),
            database: self.database,
            prefix: self.prefix.clone().into(),
            timeout: Duration::from_millis(self.timeout_ms.into()),
        }
    }

    /// Whether the setting `key` of [`LOCATION_KEYS`] has a value.
    fn has_location(&self, key: &str) -> bool {
        match key {
            "nodes" => !self.nodes.is_empty(),
            "sentinels" => !self.sentinels.is_empty(),
            "url" => !self.url.expose().is_empty(),
            _ => true,
        }
    }
}

/// The settings that locate Redis.
const LOCATION_KEYS: [&str; 4] = ["nodes", "sentinels", "url", "host"];

/// Reads variables. Of other programs it reads Soketi's if a variable of Soketi turns the cluster on, else Laravel's. If a
/// setting of pusherd locates Redis, other programs' host and port are ignored.
pub(super) fn fill_from_variables(
    redis: &mut Section<Redis>,
    server: &Section<Node>,
    variables: &Variables,
    problems: &mut Problems,
) {
    redis.fill_from_variables(REDIS_PREFIX, variables, problems);
    if server.value.cluster == Cluster::None {
        return;
    }
    let uses_soketi = server.source("cluster").has_variable_prefix(SOKETI);
    let is_read = |name: &str| name.starts_with(SOKETI) == uses_soketi;
    variables.check_readable(|name| locates_redis(name) && is_read(name), problems);
    let is_located = LOCATION_KEYS.iter().any(|key| redis.is_set(key) && redis.value.has_location(key));
    let fill = |redis: &mut Section<Redis>, problems: &mut Problems, is_wanted: fn(&str) -> bool| {
        redis.fill_from_fallbacks(|key, name| is_wanted(key) && is_read(name), variables, problems);
    };
    if !is_located {
        fill(redis, problems, |key| ["nodes", "sentinels", "url"].contains(&key));
        if redis.value.nodes.is_empty() && redis.value.sentinels.is_empty() {
            // Laravel's URL overrides the host and the port that are set beside it.
            let url = Url::parse(redis.value.url.expose()).ok();
            if url.is_none() {
                fill(redis, problems, |key| key == "host");
                apply_scheme(redis, variables.non_empty(SCHEME).filter(|_| !uses_soketi), problems);
            }
            let (host, port) =
                url.map_or((redis.value.host.clone(), None), |url| (url.host.into(), url.port));
            // A socket has no port; Laravel's documentation sets port 0 beside it.
            if port.is_none() && !host.starts_with('/') {
                fill(redis, problems, |key| key == "port");
            }
        }
    }
    fill(redis, problems, |key| key != "port" && !LOCATION_KEYS.contains(&key));
    apply_prefix(redis, variables.non_empty(SCALING_CHANNEL).filter(|_| !uses_soketi), problems);
}

/// Applies the scheme of Laravel's configuration, which turns TLS on.
fn apply_scheme(redis: &mut Section<Redis>, scheme: Option<(String, Source)>, problems: &mut Problems) {
    let Some((scheme, source)) = scheme.filter(|_| !redis.is_set("tls")) else { return };
    match scheme.to_ascii_lowercase().as_str() {
        "tls" | "ssl" | "rediss" if !redis.value.host.starts_with('/') => {
            redis.derive("tls", source, |redis| redis.tls = true);
        }
        "tls" | "ssl" | "rediss" | "tcp" | "redis" | "unix" => {}
        _ => problems.warn(&source, "", "is neither tcp nor tls: not read"),
    }
}

/// Builds the prefix from another program's prefix and Reverb's channel. pusherd's own setting is used unchanged.
fn apply_prefix(redis: &mut Section<Redis>, channel: Option<(String, Source)>, problems: &mut Problems) {
    let key = "prefix";
    let (source, is_set) = (redis.source(key), redis.is_set(key));
    if is_set && !source.is_foreign_variable() {
        return;
    }
    let channel = channel.filter(|(channel, _)| channel != DEFAULT_CHANNEL);
    let own = Redis::default().prefix;
    let front = if is_set { &*redis.value.prefix } else { "" };
    let (suffix, set_by) = match channel {
        Some((channel, channel_source)) => {
            (format!(":{channel}"), if is_set { source } else { channel_source })
        }
        None if is_set => (String::new(), source),
        None => return,
    };
    match prefix(&format!("{front}{own}{suffix}")) {
        Ok(prefix) => redis.derive(key, set_by, |redis| redis.prefix = prefix.into()),
        Err(what) => problems.add(&set_by, &redis.path(key), what),
    }
}

/// Combines the settings that locate Redis, and reports contradictions.
pub(super) fn resolve(redis: &mut Section<Redis>, problems: &mut Problems) {
    reject_several_locations(redis, problems);
    apply_url(redis, problems);
    apply_host_scheme(redis);
    let mut report = |key: &str, what: String| problems.add(&redis.source(key), &redis.path(key), what);
    let Redis { nodes, sentinels, host, database, tls, .. } = &redis.value;
    if !nodes.is_empty() && *database != 0 {
        let what = format!(
            "must be 0 with a Redis Cluster, which nodes name ({}), not {database}",
            redis.location("nodes")
        );
        report("database", what);
    }
    if *tls && nodes.is_empty() && sentinels.is_empty() && host.starts_with('/') {
        let location = redis.location(if redis.value.has_location("url") { "url" } else { "host" });
        report("tls", format!("is not for a Unix socket ({location})"));
    }
    if redis.value.tls_accept_any_certificate && !redis.value.tls_ca_file.is_empty() {
        let what = format!("contradicts tls_ca_file ({}): one of the two", redis.location("tls_ca_file"));
        report("tls_accept_any_certificate", what);
    }
}

/// Whether the setting `key` of [`LOCATION_KEYS`] is set to a value other than the default, which the example file has.
fn is_configured(redis: &Section<Redis>, key: &str) -> bool {
    let is_default = key == "host" && redis.value.host == Redis::default().host;
    redis.is_set(key) && redis.value.has_location(key) && !is_default
}

/// Reports other locations beside a list of servers. [`apply_url`] compares URL and host.
fn reject_several_locations(redis: &Section<Redis>, problems: &mut Problems) {
    let mut keys = LOCATION_KEYS.iter().filter(|key| is_configured(redis, key));
    let Some(first @ (&"nodes" | &"sentinels")) = keys.next() else { return };
    for other in keys {
        let what = format!("contradicts {first} ({}): one of the two", redis.location(first));
        problems.add(&redis.source(other), &redis.path(other), what);
    }
}

/// Copies the parts of the URL into their settings.
fn apply_url(redis: &mut Section<Redis>, problems: &mut Problems) {
    let Ok(url) = Url::parse(redis.value.url.expose()) else { return };
    let Url { host, port, tls, username, password, database, unread } = url;
    let source = redis.source("url");
    if !unread.is_empty() && source.is_foreign_variable() {
        problems.warn(&source, "", format_args!("has parameters that are not read: {}", unread.join(", ")));
    } else if !unread.is_empty() {
        let what = "has a parameter other than database: use the settings beside url";
        problems.add(&source, &redis.path("url"), what);
    }
    apply_url_part(redis, "host", |redis| &mut redis.host, Some(host.into()), problems);
    apply_url_part(redis, "port", |redis| &mut redis.port, port, problems);
    apply_url_part(redis, "tls", |redis| &mut redis.tls, tls.then_some(true), problems);
    apply_url_part(redis, "username", |redis| &mut redis.username, username.map(Into::into), problems);
    apply_url_part(redis, "password", |redis| &mut redis.password, password, problems);
    apply_url_part(redis, "database", |redis| &mut redis.database, database, problems);
}

/// Copies one part of the URL into its setting `key`. A setting of pusherd overrides the URL of another program, and must
/// not contradict pusherd's own URL.
fn apply_url_part<V: PartialEq>(
    redis: &mut Section<Redis>,
    key: &'static str,
    field: fn(&mut Redis) -> &mut V,
    part: Option<V>,
    problems: &mut Problems,
) {
    let Some(part) = part else { return };
    let url = redis.source("url");
    let is_own = redis.is_set(key) && !redis.source(key).is_foreign_variable();
    let is_default = *field(&mut redis.value) == *field(&mut Redis::default());
    if is_own && url.is_foreign_variable() {
        return;
    }
    if is_own && !is_default && *field(&mut redis.value) != part {
        let what = format!("contradicts the one in url ({})", redis.location("url"));
        problems.add(&redis.source(key), &redis.path(key), what);
        return;
    }
    redis.derive(key, url, |redis| *field(redis) = part);
}

/// Removes the scheme from the host and applies it.
fn apply_host_scheme(redis: &mut Section<Redis>) {
    let source = redis.source("host");
    if let Some(host) = redis.value.host.strip_prefix("tls://").map(Box::from) {
        redis.derive("host", source.clone(), |redis| redis.host = host);
        redis.derive("tls", source, |redis| redis.tls = true);
    }
}

/// Warns about settings that have no effect or are not safe.
pub(super) fn check(server: &Section<Node>, redis: &Section<Redis>, warn: &mut impl FnMut(String)) {
    let settings = &redis.value;
    if server.value.cluster == Cluster::None {
        for key in LOCATION_KEYS.iter().filter(|key| is_configured(redis, key)) {
            warn(format!("{}: has no effect while server.cluster is none", redis.location(key)));
        }
        if server.value.options.cluster.local_when_broker_lost {
            let location = server.location("local_when_broker_lost");
            warn(format!("{location}: has no effect while server.cluster is none"));
        }
        return;
    }
    if !settings.username.is_empty() && settings.password.expose().is_empty() {
        warn(format!("{}: has no effect without a password", redis.location("username")));
    }
    let tls_settings = [
        ("tls_ca_file", !settings.tls_ca_file.is_empty()),
        ("tls_accept_any_certificate", settings.tls_accept_any_certificate),
    ];
    for (key, _) in tls_settings.iter().filter(|(_, is_set)| *is_set && !settings.tls) {
        warn(format!("{}: has no effect while connections to Redis do not use TLS", redis.location(key)));
    }
    if settings.tls && settings.tls_accept_any_certificate {
        let location = redis.location("tls_accept_any_certificate");
        warn(format!("{location}: a machine between this node and Redis can read and change everything"));
    }
}
