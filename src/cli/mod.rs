//! The command line.
//!
//! This module owns the grammar ([`Cli`]) and every command. Start at [`run`].

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
use log::{ALWAYS_LOGGED, start_logging};
use signals::handle_signals;

use crate::config::{Problems, Settings, Sources, load};

/// Exit code for an invalid configuration: `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;

/// Parses the command line and runs its command.
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
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve clients and applications until a signal stops it
    Serve(Serve),
    /// Check, show and explain the configuration
    Config(Config),
    /// Ask a running server whether it is ready: exit code 0 if so, 1 if not
    Health(Health),
    /// Replay webhooks that could not be delivered, or check the signature of one
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
    /// On shutdown, close WebSockets over this many seconds
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
    /// Check the configuration and report all problems
    Check,
    /// Print the settings in effect and the source of each, with secrets masked
    Show,
    /// Print a reference of all settings, as Markdown
    Reference,
}

/// `pusherd health`
#[derive(Args, Debug)]
pub struct Health {
    /// URL of the server [default: the address in the settings]
    #[arg(long, conflicts_with_all = ["host", "port"])]
    url: Option<String>,
    /// Address that the server listens on, if a flag of `serve` set it
    #[arg(long)]
    host: Option<String>,
    /// Port that the server listens on, if a flag of `serve` set it
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
    /// Send the webhooks in a file of dead letters, and keep those that fail: exit code 1 if any is kept
    Replay {
        /// The file
        file: PathBuf,
        /// Send with the current time, for receivers that reject webhooks older than five minutes
        #[arg(long)]
        fresh_time: bool,
    },
    /// Check the signature of a body with the secret that the configuration has for the key: exit code 1 if it is not
    /// valid
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
        let mut sources = Sources::from_process();
        sources.config.clone_from(&self.config);
        sources.env_file.clone_from(&self.env_file);
        sources
    }
}

impl Serve {
    /// Loads the settings, including the flags.
    ///
    /// # Errors
    /// All problems with them.
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
            settings.enable_debug();
        }
        Ok(settings)
    }
}

/// Writes to standard output. A closed pipe is no error, because readers such as `head` close it early; other errors are
/// printed.
fn print(text: impl std::fmt::Display) {
    let mut output = io::stdout();
    let written = output.write_all(text.to_string().as_bytes()).and_then(|()| output.flush());
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        print_error(format_args!("cannot write to standard output: {error}"));
    }
}

/// Writes a line to standard error, with the name of the program in front.
fn print_error(text: impl std::fmt::Display) {
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
    fn file_flags_are_accepted_before_and_after_the_command_of_config() {
        for line in ["pusherd config check --config a.toml", "pusherd config --config a.toml check"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Command::Config(Config { files, .. }) = cli.command else { panic!("{line}") };
            assert_eq!(files.config.as_deref(), Some(std::path::Path::new("a.toml")), "{line}");
        }
    }
}
