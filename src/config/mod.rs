//! Configuration: files, variables and flags become checked [`Settings`].
//!
//! Owns the table of all settings (`schema`), where values are looked for and in which order ([`load`]), and
//! the words for what is wrong with them ([`Problems`]). It alone reads the environment. It fills in the
//! `Options` that the rooms define and knows nothing of what they do with them.
//!
//! The way of a value: `file` (with `encoding`, `yaml` and `foreign_file` ahead of the parser), `variables` and the
//! flags hold it as it was written; `families` chooses the credentials that count among those of several servers, and
//! `foreign` says what is done with other servers' variables; `section` takes the sources from the lowest to the highest
//! and has each value checked by its row (`kind`), so that all problems are found at once; `apps` puts apps together,
//! `redis` what says where Redis is, and `clients` what says where clients connect to; `advice` looks at the whole. To
//! add a setting, add a row to `schema`; to read another server's variable, a row to `foreign`.

mod advice;
mod apps;
mod clients;
mod dotenv;
mod encoding;
mod families;
mod file;
mod foreign;
mod foreign_file;
mod kind;
mod problem;
mod pusher_url;
mod redis;
mod schema;
mod secret;
mod section;
mod show;
mod variables;
mod webhooks;
mod yaml;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use advice::Advice;
pub use clients::Clients;
pub use foreign::foreign_reference;
pub use problem::{Problems, Source};
pub use show::reference;

use crate::apps::App;
use crate::cluster::Engine;
use crate::cluster::redis::check_authorities;
use crate::server;
use crate::webhooks::dead_letters::{self, check_file, is_usable_folder};
use apps::{Draft, Drafts};
use families::Choice;
use file::ConfigFile;
use redis::Redis;
use schema::{LOG, REDIS, SERVER, WEBHOOKS};
use section::{Line, Section};
use variables::{
    CLIENT_FAMILIES, CONFIG, ENV_FILE, LOG_PREFIX, PLATFORM_PORT, SERVER_PREFIX, Variables, WEBHOOKS_PREFIX,
};

/// The file that is read from the working directory if it is there and none is named.
const LOCAL_FILE: &str = "config/pusherd.toml";

/// The file that is read if [`LOCAL_FILE`] is not there.
const SYSTEM_FILE: &str = "/etc/pusherd/pusherd.toml";

/// Where dead letters are kept if this is there and neither a setting nor systemd says where.
const STATE_DIRECTORY: &str = "/var/lib/pusherd";

/// The variable in which systemd says where a service keeps what it has: absolute paths, separated by colons.
const STATE_DIRECTORY_VARIABLE: &str = "STATE_DIRECTORY";

/// The `.env` file that is read from the working directory if it is there and none is named.
const DOTENV_FILE: &str = ".env";

/// The port to listen on where Reverb is replaced and none is set. Source: Reverb's `config/reverb.php`.
const REVERB_PORT: u16 = 8080;

/// What is said beside a default that is Reverb's.
const OF_REVERB: &str = "Reverb's, as its variables are in use";

/// Everything settled: what to serve, where and for whom.
#[derive(Debug)]
pub struct Settings {
    /// Where and how to serve.
    pub server: Server,
    /// How to log.
    pub log: Log,
    /// The apps. At least one.
    pub apps: Vec<App>,
    /// Which of the apps to show how to use.
    pub main_app: usize,
    /// Where the credentials of that app come from.
    pub credentials: Credentials,
    /// Whether the secret of an app is the default one, wherever it was set.
    pub default_secret: bool,
    /// Where clients connect to, if the application has been told.
    pub clients: Option<Clients>,
    /// Whether the application uses the variables of Reverb, and not those of Pusher.
    pub of_reverb: bool,
    /// What works, but hardly as meant.
    pub advice: Vec<Advice>,
    /// The files that were read.
    pub files: Vec<Arc<str>>,
    /// Whether the user wants colours where there is a terminal.
    pub colour: bool,
    /// What `show` prints: the title of each section and its lines.
    shown: Vec<(&'static str, Vec<Line>)>,
}

/// Where and how to serve.
#[derive(Clone, Debug)]
pub struct Server {
    /// The address to listen on, or a name that has one.
    pub host: Box<str>,
    /// The address to listen on where this machine does not have `host`.
    pub fallback_host: Option<&'static str>,
    /// The port to listen on; 0: any free one.
    pub port: u16,
    /// The certificate, where TLS is spoken.
    pub tls: Option<server::Tls>,
    /// The port that speaks TLS. Without one, `port` speaks it if there is a certificate.
    pub tls_port: Option<u16>,
    /// The file of the certificate as it was written; empty: none.
    tls_cert: Box<str>,
    /// The file of its key as it was written; empty: none.
    tls_key: Box<str>,
    /// What is between this node and others.
    cluster: Cluster,
    /// What the server must know.
    pub options: server::Options,
}

impl Default for Server {
    fn default() -> Self {
        // The port of Soketi and laravel-websockets.
        Self {
            host: "0.0.0.0".into(),
            fallback_host: None,
            port: 6001,
            tls: None,
            tls_port: None,
            tls_cert: "".into(),
            tls_key: "".into(),
            cluster: Cluster::None,
            options: server::Options::default(),
        }
    }
}

impl Server {
    /// A port of this server's address, as `host:port`.
    #[must_use]
    pub fn address_text(&self, port: u16) -> String {
        let host = &self.host;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Whether `port` speaks TLS, and not another one or none.
    #[must_use]
    pub fn port_speaks_tls(&self) -> bool {
        !self.tls_cert.is_empty() && self.tls_port.is_none()
    }
}

/// What is between this node and others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cluster {
    /// There are no others.
    None,
    /// Redis, wherever the section `[redis]` says it is.
    Redis,
}

/// How webhooks are sent.
#[derive(Clone, Debug, Default)]
struct Webhooks {
    /// The file of dead letters as it was written; empty: none.
    dead_letter_file: Box<str>,
    /// What the room must know.
    options: crate::webhooks::Options,
}

/// How to log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Log {
    /// For whom.
    pub format: LogFormat,
    /// How much.
    pub level: LogLevel,
}

/// For whom to log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// For people, with colours on a terminal.
    #[default]
    Auto,
    /// For people, without colours.
    Human,
    /// For machines: one JSON object a line.
    Json,
}

/// How much to log.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum LogLevel {
    /// What an operator must act on.
    Error,
    /// What works worse than it should.
    Warn,
    /// The life cycle of the server.
    #[default]
    Info,
    /// What clients cause.
    Debug,
    /// Everything.
    Trace,
}

kind::choice_field!(Cluster: Self::None, Self::Redis);
kind::choice_field!(LogFormat: Self::Auto, Self::Human, Self::Json);
kind::choice_field!(LogLevel: Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace);

/// Where the credentials of an app come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Credentials {
    /// Nowhere: they are the default ones.
    Default,
    /// The configuration file.
    File,
    /// The environment of the process.
    Environment,
    /// The `.env` file of this name: the application has them already.
    Dotenv(Arc<str>),
}

impl From<&Source> for Credentials {
    fn from(source: &Source) -> Self {
        match source {
            Source::Variable { dotenv: Some(file), .. } => Self::Dotenv(Arc::clone(file)),
            Source::Variable { dotenv: None, .. } | Source::Flag(_) => Self::Environment,
            Source::File(_) => Self::File,
            Source::Default => Self::Default,
        }
    }
}

/// Where settings are looked for. No `Debug`: variables hold secrets.
pub struct Sources {
    /// Values of flags, by flag (`--port`).
    pub flags: BTreeMap<&'static str, String>,
    /// The configuration file that the command line names.
    pub config: Option<PathBuf>,
    /// The `.env` file that the command line names.
    pub env_file: Option<PathBuf>,
    /// Whether the certificate is read, as it must be to serve. Who only wants to know where a server is needs
    /// neither the key nor files that are right: the server may go on with what it read before.
    pub reads_certificate: bool,
    /// The variables of the process.
    environment: Vec<(OsString, OsString)>,
    /// The working directory, from which relative paths start.
    directory: PathBuf,
    /// [`SYSTEM_FILE`].
    system_file: PathBuf,
    /// [`STATE_DIRECTORY`].
    state_directory: PathBuf,
}

impl Sources {
    /// The environment and the working directory of this process, and no flags.
    #[must_use]
    pub fn of_process() -> Self {
        Self::of(std::env::vars_os(), PathBuf::new())
    }

    /// This environment and this working directory, and no flags.
    #[must_use]
    pub fn of(environment: impl IntoIterator<Item = (OsString, OsString)>, directory: PathBuf) -> Self {
        Self {
            flags: BTreeMap::new(),
            config: None,
            env_file: None,
            reads_certificate: true,
            environment: environment.into_iter().collect(),
            directory,
            system_file: PathBuf::from(SYSTEM_FILE),
            state_directory: PathBuf::from(STATE_DIRECTORY),
        }
    }

    /// The file that was named, else the first of `usual` that is there.
    fn find<'p>(&'p self, named: Option<&'p Path>, usual: &[&'p Path]) -> Option<&'p Path> {
        // What cannot be looked at is there: reading it says why.
        let is_there = |path: &&&Path| self.directory.join(path).try_exists().unwrap_or(true);
        named.or_else(|| usual.iter().find(is_there).copied())
    }
}

/// Reads all sources and settles every setting. Lowest to highest: defaults, file, variables (`.env` below
/// the environment), flags.
///
/// # Errors
/// Everything that is wrong, in all sources at once.
pub fn load(sources: &Sources) -> Result<Settings, Problems> {
    let mut problems = Problems::default();
    let mut files = Vec::new();
    let directory = sources.directory.as_path();

    let mut variables = Variables::of_process(&sources.environment);
    let of_variable =
        |variables: &Variables, name| variables.get_filled(name).map(|(path, _)| PathBuf::from(path));
    let env_file = sources.env_file.clone().or_else(|| of_variable(&variables, ENV_FILE));
    if let Some(path) = sources.find(env_file.as_deref(), &[Path::new(DOTENV_FILE)]) {
        let name: Arc<str> = path.display().to_string().into();
        match file::dotenv_text(&directory.join(path)) {
            Ok((text, remark)) => {
                if let Some(remark) = remark {
                    problems.remark(&Source::File(Arc::clone(&name)), "", remark);
                }
                variables.add_dotenv(&name, &text, &mut problems);
            }
            Err(why) => problems.add(&Source::File(Arc::clone(&name)), "", why),
        }
        files.push(name);
    }
    variables.check_names(&mut problems);

    let config = sources.config.clone().or_else(|| of_variable(&variables, CONFIG));
    let path = sources.find(config.as_deref(), &[Path::new(LOCAL_FILE), &sources.system_file]);
    let mut file = path.and_then(|path| ConfigFile::read(&directory.join(path), path, &mut problems));
    files.extend(file.as_ref().map(|file| Arc::clone(&file.name)));

    let mut server = Section::new("server", SERVER, Server::default());
    let mut log = Section::new("log", LOG, Log::default());
    let mut redis = Section::new("redis", REDIS, Redis::default());
    let mut webhooks = Section::new("webhooks", WEBHOOKS, Webhooks::default());
    let mut apps = None;
    if let Some(file) = &mut file {
        let source = file.source();
        for (section, value) in std::mem::take(&mut file.table).into_iter().collect::<BTreeMap<_, _>>() {
            match section.as_str() {
                _ if value.kind == config::ValueKind::Nil => {}
                "server" => server.fill_from_value(value, &source, &mut problems),
                "log" => log.fill_from_value(value, &source, &mut problems),
                "redis" => redis.fill_from_value(value, &source, &mut problems),
                "webhooks" => webhooks.fill_from_value(value, &source, &mut problems),
                "apps" => apps = Some(value),
                _ => {
                    let nested = SERVER.iter().map(|row| server.path(row.key));
                    let sections = ["server", "log", "redis", "webhooks", "apps"].map(str::to_owned);
                    let known: Vec<String> = sections.into_iter().chain(nested).collect();
                    let what = section::unknown(&section, known.iter().map(String::as_str));
                    problems.add(&source, &section, what);
                }
            }
        }
    }
    let has_apps = apps.as_ref().is_some_and(|apps| !apps::is_empty(apps));
    let mut choice = Choice::make(&variables, directory, has_apps, &mut problems);
    foreign::refuse(&variables, &mut problems);
    let reader = foreign::Reader { variables: &variables, choice: &choice };
    server.fill_from_foreign(SERVER_PREFIX, &reader, &mut problems);
    log.fill_from_foreign(LOG_PREFIX, &reader, &mut problems);
    server.fill_from_variables(SERVER_PREFIX, &variables, &mut problems);
    let has_port = variables.has_platform_port();
    server.fill_from_fallbacks(|_, name| name != PLATFORM_PORT || has_port, &variables, &mut problems);
    log.fill_from_variables(LOG_PREFIX, &variables, &mut problems);
    redis::fill_from_variables(&mut redis, &server, &variables, &mut problems);
    webhooks.fill_from_variables(WEBHOOKS_PREFIX, &variables, &mut problems);
    server.fill_from_flags(&sources.flags, &mut problems);
    log.fill_from_flags(&sources.flags, &mut problems);
    let Drafts { apps, main, is_clear } =
        Drafts::gather(file.as_ref().zip(apps), &variables, &mut choice, &mut problems);
    settle(&mut server, &apps, &choice, &mut problems);
    let folder = file.as_ref().map_or(directory, |file| file.directory.as_path());
    settle_tls(&mut server, (directory, folder), sources.reads_certificate, &mut problems);
    webhooks::refuse_targets(&apps, &webhooks.value.options.allowed_addresses, &mut problems);
    if apps.iter().any(|app| !app.section.value.webhooks.is_empty()) {
        place_dead_letters(&mut webhooks, &variables, &sources.state_directory);
    }
    settle_webhooks(&mut server, &webhooks, (directory, folder), sources.reads_certificate, &mut problems);
    settle_cluster(&mut server, &mut redis, (directory, folder), sources.reads_certificate, &mut problems);
    let clients = Clients::find(&variables, &choice, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }

    let (main_app, key_source) = main;
    let mut advice = advice::of_families(&choice);
    advice.extend(advice::advise(&server, &redis, &webhooks, &apps));
    advice.extend(problems.remarks());
    advice.extend(foreign::remark(&variables, is_clear).map(Advice::quiet));
    advice.extend(clients.as_ref().and_then(|clients| clients.advise(&server.value)));
    advice.extend(advice::publishes_elsewhere(&key_source, &choice, clients.as_ref()));
    let of_reverb = choice.is_of_reverb();
    let default_secret = apps.iter().any(Draft::has_default_secret);
    let mut shown = vec![
        ("[server]", server.lines()),
        ("[log]", log.lines()),
        ("[redis]", redis.lines()),
        ("[webhooks]", webhooks.lines()),
    ];
    let mut ready = Vec::with_capacity(apps.len());
    for draft in apps {
        let (app, lines) = draft.finish();
        ready.push(app);
        shown.push(("[[apps]]", lines));
    }
    let is_set = |name| variables.get_filled(name).is_some();
    Ok(Settings {
        server: server.value,
        log: log.value,
        apps: ready,
        main_app,
        credentials: Credentials::from(&key_source),
        default_secret,
        clients,
        of_reverb,
        advice,
        files,
        colour: !is_set("NO_COLOR"),
        shown,
    })
}

/// What a node of a cluster spreads the closing of its WebSockets over.
const CLUSTER_DRAIN: Duration = Duration::from_secs(10);

/// Settles the settings of the server that depend on others.
fn settle(server: &mut Section<Server>, apps: &[Draft], choice: &Choice, problems: &mut Problems) {
    if choice.is_of_reverb() {
        server.put_default("port", OF_REVERB, |server| server.port = REVERB_PORT);
    }
    if !server.is_set("host") && apps.iter().any(Draft::has_default_secret) {
        server.value.host = "127.0.0.1".into();
        server.value.fallback_host = Some("::1");
    }
    if server.value.cluster != Cluster::None && !server.is_set("drain_secs") {
        server.value.options.drain = CLUSTER_DRAIN;
    }
    let deadline = "shutdown_deadline_secs";
    let is_set = server.is_set(deadline);
    let options = &mut server.value.options;
    let drain_secs = options.drain.as_secs();
    if !is_set {
        // Time to cut off what is left, as much as the defaults have.
        options.shutdown_deadline = options.shutdown_deadline.max(options.drain + Duration::from_secs(10));
    } else if options.shutdown_deadline < options.drain {
        let drain = server.source("drain_secs").at("server.drain_secs");
        let what = format!("must be at least drain_secs, which is {drain_secs} ({drain})");
        problems.add(&server.source(deadline), &server.path(deadline), what);
    }
}

/// Reads the certificate, where one is named. Paths of the file start from its `folder`, others from `directory`.
fn settle_tls(
    server: &mut Section<Server>,
    (directory, folder): (&Path, &Path),
    reads_certificate: bool,
    problems: &mut Problems,
) {
    const CERT: &str = "tls_cert";
    const KEY: &str = "tls_key";
    const PORT: &str = "tls_port";
    let mut refuse = |server: &Section<Server>, key, what: &str| {
        problems.add(&server.source(key), &server.path(key), what);
    };
    let Server { tls_cert, tls_key, tls_port, port, .. } = &server.value;
    match (tls_cert.is_empty(), tls_key.is_empty()) {
        (true, true) if tls_port.is_some() => {
            refuse(server, PORT, "needs tls_cert and tls_key beside it, which are not set");
        }
        (true, true) => {}
        (true, false) => refuse(server, KEY, "needs tls_cert beside it, which is not set"),
        _ if !reads_certificate => {}
        (false, _) if *tls_port == Some(*port) => {
            refuse(
                server,
                PORT,
                &format!("must be another than port, which is {port} and has no TLS beside it"),
            );
        }
        (false, is_combined) => {
            let path = |key, text: &str| placed(&server.source(key), text, (directory, folder));
            let cert = path(CERT, tls_cert);
            let key = if is_combined { cert.clone() } else { path(KEY, tls_key) };
            match server::Tls::load(cert, key) {
                Ok(tls) => server.value.tls = Some(tls),
                Err(server::TlsError::Certificate(why)) => refuse(server, CERT, &why),
                Err(server::TlsError::Key(why)) if is_combined => {
                    refuse(server, CERT, &format!("needs tls_key beside it, which is not set: {why}"));
                }
                Err(server::TlsError::Key(why)) => refuse(server, KEY, &why),
            }
        }
    }
}

/// Has dead letters kept in a state directory, where there is one and nobody said where else: the first of systemd's
/// that can be written, or `state_directory`.
fn place_dead_letters(webhooks: &mut Section<Webhooks>, variables: &Variables, state_directory: &Path) {
    let key = "dead_letter_file";
    if webhooks.is_set(key) {
        return;
    }
    let of_systemd = variables.get_filled(STATE_DIRECTORY_VARIABLE);
    let of_systemd = of_systemd.iter().flat_map(|(directories, source)| {
        directories.split(':').map(move |directory| (Path::new(directory), source.clone()))
    });
    let mut directories = of_systemd.chain([(state_directory, Source::Default)]);
    let found = directories.find(|(directory, _)| directory.is_absolute() && is_usable_folder(directory));
    if let Some((directory, source)) = found
        && let Some(file) = directory.join(dead_letters::FILE_NAME).to_str()
    {
        webhooks.derive(key, source, |webhooks| webhooks.dead_letter_file = file.into());
    }
}

/// Hands the server what it must know of webhooks.
fn settle_webhooks(
    server: &mut Section<Server>,
    webhooks: &Section<Webhooks>,
    folders: (&Path, &Path),
    is_to_serve: bool,
    problems: &mut Problems,
) {
    let Webhooks { dead_letter_file, options } = &webhooks.value;
    let source = webhooks.source("dead_letter_file");
    let file = placed(&source, dead_letter_file, folders);
    let dead_letter_file = (!dead_letter_file.is_empty()).then_some(file);
    if is_to_serve
        && let Some(file) = &dead_letter_file
        && let Err(why) = check_file(file)
    {
        problems.add(&source, &webhooks.path("dead_letter_file"), format!("{}: {why}", file.display()));
    }
    server.value.options.webhooks = crate::webhooks::Options { dead_letter_file, ..options.clone() };
}

/// Hands the server what it must know of the nodes beside it.
fn settle_cluster(
    server: &mut Section<Server>,
    redis: &mut Section<Redis>,
    folders: (&Path, &Path),
    reads_certificate: bool,
    problems: &mut Problems,
) {
    server.value.options.cluster.engine = match server.value.cluster {
        Cluster::None => None,
        Cluster::Redis => {
            redis::settle(redis, problems);
            let ca_file = placed(&redis.source("tls_ca_file"), &redis.value.tls_ca_file, folders);
            if reads_certificate
                && redis.value.tls
                && !redis.value.tls_ca_file.is_empty()
                && let Err(why) = check_authorities(&ca_file)
            {
                problems.add(&redis.source("tls_ca_file"), &redis.path("tls_ca_file"), why.to_string());
            }
            Some(Engine::Redis(Box::new(redis.value.options(ca_file))))
        }
    };
}

/// Where a path that was written in `source` is: in the file's `folder`, or in `directory`.
fn placed(source: &Source, path: &str, (directory, folder): (&Path, &Path)) -> PathBuf {
    match source {
        Source::File(_) => folder.join(path),
        Source::Default | Source::Variable { .. } | Source::Flag(_) => directory.join(path),
    }
}

impl Settings {
    /// Logs everything that happens on connections, payloads included.
    pub fn debug(&mut self) {
        self.server.options.debug = true;
        self.log.level = self.log.level.max(LogLevel::Debug);
    }

    /// Where a setting of the server, `port`, was set.
    #[must_use]
    pub fn source_of(&self, key: &str) -> Source {
        let of_server = self.shown.iter().find(|(title, _)| *title == "[server]");
        let line = of_server.and_then(|(_, lines)| lines.iter().find(|line| line.key == key));
        line.map_or(Source::Default, |line| line.source.clone())
    }
}

#[cfg(test)]
pub(in crate::config) mod tests {
    use super::*;

    /// Settings from a configuration file, a `.env` file and the environment.
    pub(in crate::config) fn settings(
        toml: &str,
        dotenv: &str,
        environment: &[(&str, &str)],
    ) -> Result<Settings, Vec<String>> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("config")).unwrap();
        std::fs::write(directory.path().join(LOCAL_FILE), toml).unwrap();
        std::fs::write(directory.path().join(DOTENV_FILE), dotenv).unwrap();
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
        load(&Sources::of(environment, directory.path().to_owned()))
            .map_err(|problems| problems.iter().map(str::to_owned).collect())
    }

    fn advice(toml: &str) -> Vec<String> {
        settings(toml, "", &[]).unwrap().advice.into_iter().map(|advice| advice.text).collect()
    }

    const APP: &str = "[[apps]]\nid = '1'\nkey = 'k'\nsecret = 'long enough'\n";

    #[test]
    fn what_follows_from_other_settings_follows() {
        let limits = "[apps.limits]\nclient_events_per_second = 3\nclient_event_data_bytes = 100000\n\
                      event_data_bytes = 1000\nevents_per_batch = 20\npresence_user_info_bytes = 20000\n\
                      user_id_chars = 100\n";
        let settings = settings(&format!("[server]\ndrain_secs = 60\n{APP}{limits}"), "", &[]).unwrap();
        assert_eq!(settings.server.options.shutdown_deadline, Duration::from_secs(70));
        let limits = &settings.apps[0].limits;
        assert_eq!((limits.client_events.per_second, limits.client_events.burst), (3, 3));
        assert_eq!(limits.message_bytes_max, 100_000 + 16 * 1024);
        assert_eq!(limits.channel_data_bytes_max, 20_000 + 100 * 12 + 1024);
        assert_eq!(limits.request_body_bytes_max, 2 * 60 * 1000 + 64 * 1024, "as for twenty events");
        assert_eq!(&*settings.server.host, "0.0.0.0");
    }

    #[test]
    fn without_settings_the_rooms_own_defaults_hold() {
        let settings = settings("", "", &[]).unwrap();
        let expected = App::new(apps::DEFAULT_ID, apps::DEFAULT_KEY, apps::DEFAULT_SECRET);
        assert_eq!(format!("{:?}", settings.apps), format!("{:?}", [expected]));
        let expected = server::Options::default();
        assert_eq!(format!("{:?}", settings.server.options), format!("{expected:?}"));
    }

    #[test]
    fn default_credentials_are_for_this_machine_wherever_they_were_written() {
        let set =
            "PUSHER_APP_ID=app-id\nPUSHER_APP_KEY=app-key\nPUSHER_APP_SECRET=app-secret\nPUSHER_HOST=x\n";
        for (dotenv, environment, host, loud) in [
            ("", ("A", ""), "127.0.0.1", false),
            (set, ("A", ""), "127.0.0.1", false),
            ("", ("PUSHERD_HOST", "0.0.0.0"), "0.0.0.0", true),
            (set, ("PUSHERD_HOST", "ws.test"), "ws.test", true),
            (set, ("PUSHERD_HOST", "localhost"), "localhost", false),
            (set, ("PUSHERD_HOST", "::1"), "::1", false),
        ] {
            let settings = settings("", dotenv, &[environment]).unwrap();
            assert_eq!(&*settings.server.host, host, "{environment:?}");
            assert_eq!(settings.advice.iter().any(|advice| advice.loud), loud, "{environment:?}");
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_remarked_upon() {
        let app = APP.to_owned();
        let table = [
            (app.replace("long enough", "short"), "apps[0].secret: is shorter than 8 bytes"),
            (app.clone() + "enabled = false", "no app is enabled"),
            (app.clone() + "client_events = 'off'\nlimits.client_events_per_second = 5", "has no effect"),
            (app.clone() + "watchlist = false\nlimits.watchlist_users = 5", "has no effect"),
            (app.clone() + "limits.request_body_bytes = 2048", "event_data_bytes: 102400 is never reached"),
            (app.clone() + "limits.message_bytes = 2048", "client_event_data_bytes: 10240 is never reached"),
            (app.clone() + "limits.channel_data_bytes = 4096", "presence_user_info_bytes: 8192 is never"),
            (app.clone() + "limits.messages_burst = 50", "messages_per_second: 100 is never reached"),
            (app.clone() + "limits.outbox_bytes = 4096", "event_data_bytes: 102400 is never reached"),
            (format!("[server]\ntrusted_proxies = []\n{app}tls_only = true"), "refuses everyone"),
            (format!("[webhooks]\ndead_letter_file = 'x'\n{app}"), "has no effect while no app has webhooks"),
            (
                app.clone() + "webhooks = [{ url = 'http://x', event_types = ['subscription_count'] }]",
                "subscription_count is never sent while subscription_counts is false",
            ),
            (
                app.clone()
                    + "client_events = 'off'\nwebhooks = [{ url = 'http://x', event_types = ['client_event'] }]",
                "client_event is never sent while client_events is off",
            ),
            (format!("[server]\nactivity_timeout_secs = 90\n{app}"), "server.activity_timeout_secs: clients"),
        ];
        for (toml, expected) in table {
            let advice = advice(&toml);
            assert!(advice.iter().any(|advice| advice.contains(expected)), "{toml}\n{advice:?}");
        }
        assert_eq!(advice(&app), [""; 0]);
    }

    #[test]
    fn an_application_that_publishes_elsewhere_is_remarked_upon() {
        let pusher = "PUSHER_APP_ID=1\nPUSHER_APP_KEY=k\nPUSHER_APP_SECRET=long enough\n".replace(' ', "-");
        let elsewhere = |dotenv: &str| {
            let settings = settings("", dotenv, &[]).unwrap();
            settings.advice.iter().any(|advice| advice.text.contains("pusher.com"))
        };
        assert!(elsewhere(&format!("{pusher}PUSHER_HOST=\n")));
        assert!(!elsewhere(&format!("{pusher}PUSHER_HOST=127.0.0.1\n")));
        assert!(!elsewhere(&pusher.replace("PUSHER_", "REVERB_")));
    }

    #[test]
    fn names_are_read_as_text_only_where_they_are_used() {
        let unused = settings("", "BAD=a b\nUNUSED=\u{fffd}\n", &[("OTHER", "\u{fffd}")]);
        assert!(unused.is_ok());
        let used = settings("", "PUSHERD_APP_ID=a b\nPUSHERD_HOST=\u{fffd}\n", &[]).unwrap_err();
        assert!(
            used.iter().any(|problem| problem.contains("PUSHERD_APP_ID: a value with spaces")),
            "{used:?}"
        );
        assert!(used.iter().any(|problem| problem.contains("PUSHERD_HOST: is not UTF-8")), "{used:?}");
    }
}
