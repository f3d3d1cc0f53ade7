//! `pusherd config`

use std::process::ExitCode;

use super::{Config, ConfigCommand, EXIT_CONFIG, complain, print};
use crate::config::{Settings, foreign_reference, load, reference};

impl Config {
    /// Does what it says.
    #[must_use]
    pub fn run(&self) -> ExitCode {
        let settings = || load(&self.files.sources());
        let outcome = match self.command {
            ConfigCommand::Check => settings().map(|settings| check(&settings)),
            ConfigCommand::Show => settings().map(|settings| print(settings.show())),
            ConfigCommand::Reference => {
                print(format_args!(
                    "{}\n### Variables of other servers\n\n{}",
                    reference(),
                    foreign_reference()
                ));
                Ok(())
            }
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(problems) => {
                complain(problems);
                ExitCode::from(EXIT_CONFIG)
            }
        }
    }
}

fn check(settings: &Settings) {
    for advice in &settings.advice {
        complain(format_args!("warning: {advice}"));
    }
    let files = if settings.files.is_empty() { "no files".to_owned() } else { settings.files.join(", ") };
    let apps = match settings.apps.len() {
        1 => "1 app".to_owned(),
        apps => format!("{apps} apps"),
    };
    let server = &settings.server;
    let with_tls = if server.port_speaks_tls() { " with TLS" } else { "" };
    let beside = server.tls_port.map(|port| format!(" and {} with TLS", server.address_text(port)));
    let address = format!("{}{with_tls}{}", server.address_text(server.port), beside.unwrap_or_default());
    print(format_args!("valid: {apps} on {address}; read: {files}\n"));
}
