//! Settings that depend on other settings, and the files that settings name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::apps::Draft;
use super::credentials::CredentialsChoice;
use super::problems::{Problems, Source};
use super::redis::{self, Redis};
use super::section::Section;
use super::settings::{Cluster, Server, Webhooks};
use super::variables::Variables;
use crate::cluster::Engine;
use crate::server;
use crate::tls_client::Authorities;
use crate::webhooks::dead_letters::{self, check_file, is_usable_folder};

/// The variable in which systemd passes the state directories of a service: absolute paths, separated by colons.
const STATE_DIRECTORY_VARIABLE: &str = "STATE_DIRECTORY";

/// The default port where pusherd replaces Reverb. Source: Reverb's `config/reverb.php`.
const REVERB_PORT: u16 = 8080;

/// The note beside a default that is Reverb's.
pub(super) const REVERB_DEFAULT: &str = "Reverb's, as its variables are in use";

/// The default of `drain_secs` in a cluster.
const CLUSTER_DRAIN: Duration = Duration::from_secs(10);

/// Derives settings from others and reports contradictions.
pub(super) struct Resolver<'a> {
    /// The working directory. Paths in variables and flags are relative to it.
    pub(super) directory: &'a Path,
    /// The directory of the configuration file. Paths in the file are relative to it.
    pub(super) config_directory: &'a Path,
    /// Whether to open the files that settings name.
    pub(super) opens_files: bool,
    pub(super) problems: &'a mut Problems,
}

impl Resolver<'_> {
    /// Sets the defaults of the server that depend on other settings.
    pub(super) fn apply_dependent_defaults(
        &mut self,
        server: &mut Section<Server>,
        apps: &[Draft],
        choice: &CredentialsChoice,
    ) {
        if choice.uses_reverb() {
            server.set_default("port", REVERB_DEFAULT, |server| server.port = REVERB_PORT);
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
            // After the drain, as much time as between the two defaults.
            options.shutdown_deadline =
                options.shutdown_deadline.max(options.drain + Duration::from_secs(10));
        } else if options.shutdown_deadline < options.drain {
            let drain = server.location("drain_secs");
            let what = format!("must be at least drain_secs, which is {drain_secs} ({drain})");
            self.report(server, deadline, &what);
        }
    }

    /// Loads the certificate, if there is one.
    pub(super) fn load_certificate(&mut self, server: &mut Section<Server>) {
        const CERT: &str = "tls_cert";
        const KEY: &str = "tls_key";
        const PORT: &str = "tls_port";
        let Server { tls_cert, tls_key, tls_port, port, .. } = &server.value;
        match (tls_cert.is_empty(), tls_key.is_empty()) {
            (true, true) if tls_port.is_some() => {
                self.report(server, PORT, "needs tls_cert and tls_key beside it, which are not set");
            }
            (true, true) => {}
            (true, false) => self.report(server, KEY, "needs tls_cert beside it, which is not set"),
            _ if !self.opens_files => {}
            (false, _) if *tls_port == Some(*port) => {
                let what = format!("must be another than port, which is {port} and has no TLS beside it");
                self.report(server, PORT, &what);
            }
            (false, is_combined) => {
                let cert = self.path(&server.source(CERT), tls_cert);
                let key = if is_combined { cert.clone() } else { self.path(&server.source(KEY), tls_key) };
                match server::Tls::load(cert, key) {
                    Ok(tls) => server.value.tls = Some(tls),
                    Err(server::TlsError::Certificate(why)) => self.report(server, CERT, &why),
                    Err(server::TlsError::Key(why)) if is_combined => {
                        let what = format!("needs tls_key beside it, which is not set: {why}");
                        self.report(server, CERT, &what);
                    }
                    Err(server::TlsError::Key(why)) => self.report(server, KEY, &why),
                }
            }
        }
    }

    /// Puts the file of dead letters into a state directory, if no setting names a file: into the first directory of
    /// systemd's that is writable, else into `state_directory`.
    pub(super) fn choose_dead_letter_file(
        &self,
        webhooks: &mut Section<Webhooks>,
        variables: &Variables,
        state_directory: &Path,
    ) {
        let key = "dead_letter_file";
        if webhooks.is_set(key) {
            return;
        }
        let systemd = variables.non_empty(STATE_DIRECTORY_VARIABLE);
        let systemd = systemd.iter().flat_map(|(directories, source)| {
            directories.split(':').map(move |directory| (Path::new(directory), source.clone()))
        });
        let mut directories = systemd.chain([(state_directory, Source::Default)]);
        let found = directories.find(|(directory, _)| directory.is_absolute() && is_usable_folder(directory));
        if let Some((directory, source)) = found
            && let Some(file) = directory.join(dead_letters::FILE_NAME).to_str()
        {
            webhooks.derive(key, source, |webhooks| webhooks.dead_letter_file = file.into());
        }
    }

    /// Passes the options of webhooks to the server.
    pub(super) fn apply_webhooks(&mut self, server: &mut Section<Server>, webhooks: &Section<Webhooks>) {
        const FILE: &str = "dead_letter_file";
        let Webhooks { dead_letter_file, options } = &webhooks.value;
        let file = self.path(&webhooks.source(FILE), dead_letter_file);
        let dead_letter_file = (!dead_letter_file.is_empty()).then_some(file);
        if self.opens_files
            && let Some(file) = &dead_letter_file
            && let Err(why) = check_file(file)
        {
            self.report(webhooks, FILE, &format!("{}: {why}", file.display()));
        }
        server.value.options.webhooks = crate::webhooks::Options { dead_letter_file, ..options.clone() };
    }

    /// Passes the options of the broker to the server.
    pub(super) fn apply_cluster(&mut self, server: &mut Section<Server>, redis: &mut Section<Redis>) {
        const CA_FILE: &str = "tls_ca_file";
        server.value.options.cluster.engine = match server.value.cluster {
            Cluster::None => None,
            Cluster::Redis => {
                redis::resolve(redis, self.problems);
                let ca_file = self.path(&redis.source(CA_FILE), &redis.value.tls_ca_file);
                if self.opens_files
                    && redis.value.tls
                    && !redis.value.tls_ca_file.is_empty()
                    && let Err(why) = Authorities::of_file(&ca_file)
                {
                    self.report(redis, CA_FILE, &why.to_string());
                }
                Some(Engine::Redis(Box::new(redis.value.options(ca_file))))
            }
        };
    }

    fn report<T>(&mut self, section: &Section<T>, key: &str, what: &str) {
        self.problems.add(&section.source(key), &section.path(key), what);
    }

    /// The absolute or working-directory path for a path that was written in `source`.
    fn path(&self, source: &Source, path: &str) -> PathBuf {
        match source {
            Source::File(_) => self.config_directory.join(path),
            Source::Default | Source::Variable { .. } | Source::Flag(_) => self.directory.join(path),
        }
    }
}
