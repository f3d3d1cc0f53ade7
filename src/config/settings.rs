//! The checked settings.

use std::sync::Arc;

use super::client_address::ClientAddress;
use super::problems::Source;
use super::section::EffectiveSetting;
use super::setting;
use super::warnings::Warning;
use crate::apps::App;
use crate::server;

/// All settings, checked and complete.
#[derive(Debug)]
pub struct Settings {
    /// Where and how to serve.
    pub server: Server,
    /// How to log.
    pub log: Log,
    /// The apps. At least one.
    pub apps: Vec<App>,
    /// The index of the app that the banner explains.
    pub main_app: usize,
    /// The source of the credentials of that app.
    pub credentials: CredentialsSource,
    /// Whether an app has the default secret, whatever its source.
    pub default_secret: bool,
    /// The address that clients connect to, if the application's variables contain one.
    pub client_address: Option<ClientAddress>,
    /// Whether the application uses the variables of Reverb rather than those of Pusher.
    pub uses_reverb: bool,
    /// Warnings about settings that are valid but probably wrong.
    pub warnings: Vec<Warning>,
    /// The files that were read.
    pub files: Vec<Arc<str>>,
    /// Whether to use colours on a terminal.
    pub colour: bool,
    /// The content of `config show`: the title of each section and its settings.
    pub(super) shown: Vec<(&'static str, Vec<EffectiveSetting>)>,
}

impl Settings {
    /// Turns on the log of everything that happens on connections, including payloads.
    pub fn enable_debug(&mut self) {
        self.server.options.debug = true;
        self.log.level = self.log.level.max(LogLevel::Debug);
    }

    /// The source of a setting of the section `[server]`, such as `port`.
    #[must_use]
    pub fn server_source(&self, key: &str) -> Source {
        let server = self.shown.iter().find(|(title, _)| *title == "[server]");
        let setting = server.and_then(|(_, settings)| settings.iter().find(|setting| setting.key == key));
        setting.map_or(Source::Default, |setting| setting.source.clone())
    }
}

/// Where and how to serve.
#[derive(Clone, Debug)]
pub struct Server {
    /// The address to listen on, or a host name.
    pub host: Box<str>,
    /// The address to listen on if this machine does not have `host`.
    pub fallback_host: Option<&'static str>,
    /// The port to listen on; 0 is any free port.
    pub port: u16,
    /// The certificate, if TLS is configured and certificates are loaded.
    pub tls: Option<server::Tls>,
    /// The separate port for TLS. Without one, `port` uses TLS if there is a certificate.
    pub tls_port: Option<u16>,
    /// The path of the certificate as it was written; empty: none.
    pub(super) tls_cert: Box<str>,
    /// The path of its key as it was written; empty: none.
    pub(super) tls_key: Box<str>,
    /// The broker between this node and others.
    pub(super) cluster: Cluster,
    /// The options of the server.
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
    /// The address of the server with this port, as `host:port`.
    #[must_use]
    pub fn address_text(&self, port: u16) -> String {
        let host = &self.host;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Whether `port` uses TLS.
    #[must_use]
    pub fn port_uses_tls(&self) -> bool {
        !self.tls_cert.is_empty() && self.tls_port.is_none()
    }
}

/// The broker between this node and others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cluster {
    /// None: a single node.
    None,
    /// Redis, at the location that the section `[redis]` defines.
    Redis,
}

/// How webhooks are sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Webhooks {
    /// The path of the file of dead letters as it was written; empty: none.
    pub(super) dead_letter_file: Box<str>,
    /// The options of the webhooks module.
    pub(super) options: crate::webhooks::Options,
}

/// How to log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Log {
    /// The format of a line.
    pub format: LogFormat,
    /// The lowest level that is logged.
    pub level: LogLevel,
}

/// The format of a line of the log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// Text for people, with colours on a terminal.
    #[default]
    Auto,
    /// Text for people, without colours.
    Human,
    /// One JSON object a line.
    Json,
}

/// The lowest level that is logged.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum LogLevel {
    /// An operator must act.
    Error,
    /// The service is degraded.
    Warn,
    /// The life cycle of the server.
    #[default]
    Info,
    /// What clients cause.
    Debug,
    /// Everything.
    Trace,
}

setting::choice_field!(Cluster: Self::None, Self::Redis);
setting::choice_field!(LogFormat: Self::Auto, Self::Human, Self::Json);
setting::choice_field!(LogLevel: Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace);

/// The source of the credentials of an app.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CredentialsSource {
    /// They are the default credentials.
    Default,
    /// The configuration file.
    File,
    /// The environment of the process.
    Environment,
    /// The `.env` file of this name, which the application reads as well.
    Dotenv(Arc<str>),
}

impl From<&Source> for CredentialsSource {
    fn from(source: &Source) -> Self {
        match source {
            Source::Variable { dotenv: Some(file), .. } => Self::Dotenv(Arc::clone(file)),
            Source::Variable { dotenv: None, .. } | Source::Flag(_) => Self::Environment,
            Source::File(_) => Self::File,
            Source::Default => Self::Default,
        }
    }
}
