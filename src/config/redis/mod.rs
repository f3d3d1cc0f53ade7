//! Where Redis is: checked as written, then settled from all that says so.
//!
//! What others have in their variables for Redis (Laravel's `REDIS_…`, Soketi's `SOKETI_DB_REDIS_…`) is read only where
//! this node is one of several, and below pusherd's own settings, the file included.
//!
//! Source: Laravel's `config/database.php` and `Illuminate\Support\ConfigurationUrlParser`, Reverb's `config/reverb.php`
//! (`scaling`), Soketi's documentation.

mod checks;
#[cfg(test)]
mod tests;
mod url;

use std::path::PathBuf;
use std::time::Duration;

use super::problem::{Problems, Source};
use super::secret::Secret;
use super::section::Section;
use super::variables::{REDIS_PREFIX, SCALING_CHANNEL, SCHEME, SOKETI, Variables, is_of_redis};
use super::{Cluster, Server as Node};
use crate::cluster::redis::options::{Options, Password, Server, Servers, TlsOptions};
pub(super) use checks::{host, masked, master, password, prefix, username};
use url::Url;
pub(super) use url::{masked_url, url};

/// What Reverb's nodes talk by where nothing else is said.
const DEFAULT_CHANNEL: &str = "reverb";

/// The section `[redis]`: what [`Options`] are made of.
#[derive(Clone)]
pub(super) struct Redis {
    /// As it was written; empty: none. What it says is in the other fields when all is settled.
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
            // What Redis' own documentation calls it.
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
    /// What the cluster must know, when all is settled; `ca_file` is where `tls_ca_file` is.
    pub(super) fn options(&self, ca_file: PathBuf) -> Options {
        let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let password = |secret: &Secret| filled(secret.expose()).map(Password);
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

    /// Whether the setting `key` of [`PLACES`] names a place.
    fn names(&self, key: &str) -> bool {
        match key {
            "nodes" => !self.nodes.is_empty(),
            "sentinels" => !self.sentinels.is_empty(),
            "url" => !self.url.expose().is_empty(),
            _ => true,
        }
    }
}

/// The settings that say where Redis is.
const PLACES: [&str; 4] = ["nodes", "sentinels", "url", "host"];

/// Fills from variables: of others' those of the server that says that there are several nodes, and Laravel's where
/// pusherd's own setting does. Where pusherd's own say where Redis is, others' do not, down to the port.
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
    let of_soketi = server.source("cluster").is_variable_of(SOKETI);
    let wanted = |name: &str| name.starts_with(SOKETI) == of_soketi;
    variables.check_readable(|name| is_of_redis(name) && wanted(name), problems);
    let is_placed = PLACES.iter().any(|key| redis.is_set(key) && redis.value.names(key));
    let fill = |redis: &mut Section<Redis>, problems: &mut Problems, is_asked: fn(&str) -> bool| {
        redis.fill_from_fallbacks(|key, name| is_asked(key) && wanted(name), variables, problems);
    };
    if !is_placed {
        fill(redis, problems, |key| ["nodes", "sentinels", "url"].contains(&key));
        if redis.value.nodes.is_empty() && redis.value.sentinels.is_empty() {
            // A URL has Laravel's host and port beside it, and goes over them.
            let url = Url::parse(redis.value.url.expose()).ok();
            if url.is_none() {
                fill(redis, problems, |key| key == "host");
                settle_scheme(redis, variables.get_filled(SCHEME).filter(|_| !of_soketi), problems);
            }
            let (host, port) =
                url.map_or((redis.value.host.clone(), None), |url| (url.host.into(), url.port));
            // The path of a socket has no port; Laravel's documentation writes 0 beside one.
            if port.is_none() && !host.starts_with('/') {
                fill(redis, problems, |key| key == "port");
            }
        }
    }
    fill(redis, problems, |key| key != "port" && !PLACES.contains(&key));
    settle_prefix(redis, variables.get_filled(SCALING_CHANNEL).filter(|_| !of_soketi), problems);
}

/// Whether TLS is spoken, where Laravel's configuration says it by a scheme.
fn settle_scheme(redis: &mut Section<Redis>, scheme: Option<(String, Source)>, problems: &mut Problems) {
    let Some((scheme, source)) = scheme.filter(|_| !redis.is_set("tls")) else { return };
    match scheme.to_ascii_lowercase().as_str() {
        "tls" | "ssl" | "rediss" if !redis.value.host.starts_with('/') => {
            redis.derive("tls", source, |redis| redis.tls = true);
        }
        "tls" | "ssl" | "rediss" | "tcp" | "redis" | "unix" => {}
        _ => problems.remark(&source, "", "is neither tcp nor tls: not read"),
    }
}

/// Others' prefix and Reverb's channel become part of the prefix; pusherd's own is taken as it is.
fn settle_prefix(redis: &mut Section<Redis>, channel: Option<(String, Source)>, problems: &mut Problems) {
    let key = "prefix";
    let (source, is_set) = (redis.source(key), redis.is_set(key));
    if is_set && !source.is_of_others() {
        return;
    }
    let channel = channel.filter(|(channel, _)| channel != DEFAULT_CHANNEL);
    let own = Redis::default().prefix;
    let front = if is_set { &*redis.value.prefix } else { "" };
    let (back, said_by) = match channel {
        Some((channel, channel_source)) => {
            (format!(":{channel}"), if is_set { source } else { channel_source })
        }
        None if is_set => (String::new(), source),
        None => return,
    };
    match prefix(&format!("{front}{own}{back}")) {
        Ok(whole) => redis.derive(key, said_by, |redis| redis.prefix = whole.into()),
        Err(what) => problems.add(&said_by, &redis.path(key), what),
    }
}

/// Brings together what says where Redis is, and reports what contradicts.
pub(super) fn settle(redis: &mut Section<Redis>, problems: &mut Problems) {
    refuse_several_places(redis, problems);
    settle_url(redis, problems);
    settle_host(redis);
    let mut refuse = |key: &str, what: String| problems.add(&redis.source(key), &redis.path(key), what);
    let Redis { nodes, sentinels, host, database, tls, .. } = &redis.value;
    if !nodes.is_empty() && *database != 0 {
        let what = format!(
            "must be 0 with a Redis Cluster, which nodes name ({}), not {database}",
            redis.place("nodes")
        );
        refuse("database", what);
    }
    if *tls && nodes.is_empty() && sentinels.is_empty() && host.starts_with('/') {
        let place = redis.place(if redis.value.names("url") { "url" } else { "host" });
        refuse("tls", format!("is not for a Unix socket ({place})"));
    }
    if redis.value.tls_accept_any_certificate && !redis.value.tls_ca_file.is_empty() {
        let what = format!("contradicts tls_ca_file ({}): one of the two", redis.place("tls_ca_file"));
        refuse("tls_accept_any_certificate", what);
    }
}

/// Whether the setting `key` of [`PLACES`] is set to something; what is the default anyway, as in the example, is nothing.
fn says(redis: &Section<Redis>, key: &str) -> bool {
    let is_default = key == "host" && redis.value.host == Redis::default().host;
    redis.is_set(key) && redis.value.names(key) && !is_default
}

/// Reports what is set beside a list of servers. URL and host are the matter of [`settle_url`].
fn refuse_several_places(redis: &Section<Redis>, problems: &mut Problems) {
    let mut places = PLACES.iter().filter(|key| says(redis, key));
    let Some(first @ (&"nodes" | &"sentinels")) = places.next() else { return };
    for other in places {
        let what = format!("contradicts {first} ({}): one of the two", redis.place(first));
        problems.add(&redis.source(other), &redis.path(other), what);
    }
}

/// Puts what the URL says into the settings that say the same.
fn settle_url(redis: &mut Section<Redis>, problems: &mut Problems) {
    let Ok(url) = Url::parse(redis.value.url.expose()) else { return };
    let Url { host, port, tls, username, password, database, unread } = url;
    let source = redis.source("url");
    if !unread.is_empty() && source.is_of_others() {
        problems.remark(&source, "", format_args!("has parameters that are not read: {}", unread.join(", ")));
    } else if !unread.is_empty() {
        let what = "has a parameter other than database: use the settings beside url";
        problems.add(&source, &redis.path("url"), what);
    }
    settle_part(redis, "host", |redis| &mut redis.host, Some(host.into()), problems);
    settle_part(redis, "port", |redis| &mut redis.port, port, problems);
    settle_part(redis, "tls", |redis| &mut redis.tls, tls.then_some(true), problems);
    settle_part(redis, "username", |redis| &mut redis.username, username.map(Into::into), problems);
    settle_part(redis, "password", |redis| &mut redis.password, password, problems);
    settle_part(redis, "database", |redis| &mut redis.database, database, problems);
}

/// Puts one part of the URL into its setting `key`. What was set for itself goes over the URL of another server, and
/// under that of its own.
fn settle_part<V: PartialEq>(
    redis: &mut Section<Redis>,
    key: &'static str,
    field: fn(&mut Redis) -> &mut V,
    part: Option<V>,
    problems: &mut Problems,
) {
    let Some(part) = part else { return };
    let url = redis.source("url");
    let is_own = redis.is_set(key) && !redis.source(key).is_of_others();
    let is_default = *field(&mut redis.value) == *field(&mut Redis::default());
    if is_own && url.is_of_others() {
        return;
    }
    if is_own && !is_default && *field(&mut redis.value) != part {
        let what = format!("contradicts the one in url ({})", redis.place("url"));
        problems.add(&redis.source(key), &redis.path(key), what);
        return;
    }
    redis.derive(key, url, |redis| *field(redis) = part);
}

/// Takes the scheme off the host.
fn settle_host(redis: &mut Section<Redis>) {
    let source = redis.source("host");
    if let Some(host) = redis.value.host.strip_prefix("tls://").map(Box::from) {
        redis.derive("host", source.clone(), |redis| redis.host = host);
        redis.derive("tls", source, |redis| redis.tls = true);
    }
}

/// Remarks on what works and is hardly meant.
pub(super) fn advise(server: &Section<Node>, redis: &Section<Redis>, say: &mut impl FnMut(String)) {
    let settings = &redis.value;
    if server.value.cluster == Cluster::None {
        for key in PLACES.iter().filter(|key| says(redis, key)) {
            say(format!("{}: has no effect while server.cluster is none", redis.place(key)));
        }
        if server.value.options.cluster.local_when_broker_lost {
            let place = server.place("local_when_broker_lost");
            say(format!("{place}: has no effect while server.cluster is none"));
        }
        return;
    }
    if !settings.username.is_empty() && settings.password.expose().is_empty() {
        say(format!("{}: has no effect without a password", redis.place("username")));
    }
    let of_tls = [
        ("tls_ca_file", !settings.tls_ca_file.is_empty()),
        ("tls_accept_any_certificate", settings.tls_accept_any_certificate),
    ];
    for (key, _) in of_tls.iter().filter(|(_, says)| *says && !settings.tls) {
        say(format!("{}: has no effect while no TLS is spoken to Redis", redis.place(key)));
    }
    if settings.tls && settings.tls_accept_any_certificate {
        let place = redis.place("tls_accept_any_certificate");
        say(format!("{place}: whoever is between this node and Redis can read and change everything"));
    }
}
