//! The command line: what there is to say to pusherd, and what it answers.
//!
//! Owns the grammar ([`Cli`]) and every command. Start at [`run`].

mod banner;
mod config;
mod health;
mod log;
mod serve;
mod signals;
mod webhooks;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use banner::banner;
use log::{LISTENING, start_logging};
use signals::obey_signals;

use crate::config::{Problems, Settings, Sources, load};

/// Exit code for a configuration that is refused: `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;

/// Does what the command line says, and answers with the exit code.
#[must_use]
pub fn run() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(command) => command.run(),
        Command::Config(command) => command.run(),
        Command::Health(command) => command.run(),
        Command::Webhooks(command) => command.run(),
    }
}

/// A WebSocket server that speaks the Pusher Channels protocol.
#[derive(Debug, Parser)]
#[command(name = "pusherd", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve clients and applications until told to stop
    Serve(Serve),
    /// Check, show and explain the configuration
    Config(Config),
    /// Ask a running server whether it is ready: exit code 0 if so, 1 if not
    Health(Health),
    /// Send webhooks again that could not be delivered, or check the signature of one
    Webhooks(Webhooks),
}

/// Which files to read.
#[derive(Args, Debug, Default)]
pub struct Files {
    /// Configuration file (TOML, JSON or YAML) [default: config/pusherd.toml or /etc/pusherd/pusherd.toml, if there]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Laravel's .env file [default: .env, if there]
    #[arg(long, global = true, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
}

/// `pusherd serve`
#[derive(Args, Debug)]
pub struct Serve {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    address: Address,
    /// Log every connection, subscription and message, payloads included
    #[arg(long)]
    debug: bool,
    /// How to log: auto, human or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// How much to log: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// On shutdown, spread the closing of WebSockets over so many seconds
    #[arg(long, value_name = "SECONDS")]
    drain_secs: Option<String>,
}

/// Where the server listens.
#[derive(Args, Debug)]
struct Address {
    /// Address to listen on [default: 0.0.0.0, or 127.0.0.1 with the default credentials]
    #[arg(long)]
    host: Option<String>,
    /// Port to listen on; 0 for any free one [default: 6001]
    #[arg(long)]
    port: Option<String>,
}

/// `pusherd config`
#[derive(Args, Debug)]
pub struct Config {
    #[command(subcommand)]
    command: ConfigCommand,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say what is wrong with the configuration, or that nothing is
    Check,
    /// Print the settings in effect and where each was set, secrets masked
    Show,
    /// Print all settings there are, as Markdown
    Reference,
}

/// `pusherd health`
#[derive(Args, Debug)]
pub struct Health {
    /// Where the server is [default: where the settings say that it listens]
    #[arg(long, conflicts_with_all = ["host", "port"])]
    url: Option<String>,
    /// Address that the server listens on, if it was told so by flag
    #[arg(long)]
    host: Option<String>,
    /// Port that the server listens on, if it was told so by flag
    #[arg(long)]
    port: Option<String>,
    #[command(flatten)]
    files: Files,
}

/// `pusherd webhooks`
#[derive(Args, Debug)]
pub struct Webhooks {
    #[command(subcommand)]
    command: WebhooksCommand,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Subcommand)]
enum WebhooksCommand {
    /// Send what a file of dead letters holds, and leave in it what cannot be sent: exit code 1 if anything is left
    Replay {
        /// The file
        file: PathBuf,
        /// Send with the time of now, for receivers that refuse what is older than five minutes
        #[arg(long)]
        fresh_time: bool,
    },
    /// Check a body against its signature, with the secret that the configuration has for the key: exit code 1 if it
    /// does not hold
    Verify {
        /// The key, as in X-Pusher-Key
        #[arg(long)]
        key: String,
        /// The signature, as in X-Pusher-Signature
        #[arg(long)]
        signature: String,
        /// The body [default: -, standard input]
        file: Option<PathBuf>,
    },
}

impl Files {
    fn sources(&self) -> Sources {
        let mut sources = Sources::of_process();
        sources.config.clone_from(&self.config);
        sources.env_file.clone_from(&self.env_file);
        sources
    }
}

impl Serve {
    /// The settings, with the flags on top.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    fn settings(&self) -> Result<Settings, Problems> {
        let mut sources = self.files.sources();
        let flags = [
            ("--host", &self.address.host),
            ("--port", &self.address.port),
            ("--drain-secs", &self.drain_secs),
            ("--log-format", &self.log_format),
            ("--log-level", &self.log_level),
        ];
        sources.flags.extend(flags.into_iter().filter_map(|(flag, value)| Some((flag, value.clone()?))));
        let mut settings = load(&sources)?;
        if self.debug {
            settings.debug();
        }
        Ok(settings)
    }
}

/// Writes to standard output. A reader that has gone, as `head` does, has read enough; what else is wrong is said.
fn print(text: impl std::fmt::Display) {
    let mut output = io::stdout();
    let written = output.write_all(text.to_string().as_bytes()).and_then(|()| output.flush());
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        complain(format_args!("standard output takes no more: {error}"));
    }
}

/// Writes a line to standard error, named as from this program.
fn complain(text: impl std::fmt::Display) {
    let _ = io::stderr().write_all(format!("pusherd: {}\n", text.to_string().trim_end()).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn files_may_be_named_before_or_after_the_command_of_config() {
        for line in ["pusherd config check --config a.toml", "pusherd config --config a.toml check"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Config(Config { files, .. }) = cli.command else { panic!("{line}") };
            assert_eq!(files.config.as_deref(), Some(std::path::Path::new("a.toml")), "{line}");
        }
    }
}
