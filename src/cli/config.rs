//! `pusherd config`

use std::process::ExitCode;

use super::{Config, ConfigCommand, EXIT_CONFIG, print, print_error};
use crate::config::{Settings, foreign_reference, load, reference};

impl Config {
    /// Runs the command.
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
                print_error(problems);
                ExitCode::from(EXIT_CONFIG)
            }
        }
    }
}

fn check(settings: &Settings) {
    for warning in &settings.warnings {
        print_error(format_args!("warning: {warning}"));
    }
    let files = if settings.files.is_empty() { "no files".to_owned() } else { settings.files.join(", ") };
    let apps = match settings.apps.len() {
        1 => "1 app".to_owned(),
        apps => format!("{apps} apps"),
    };
    let server = &settings.server;
    let with_tls = if server.port_uses_tls() { " with TLS" } else { "" };
    let tls_address = server.tls_port.map(|port| format!(" and {} with TLS", server.address_text(port)));
    let address =
        format!("{}{with_tls}{}", server.address_text(server.port), tls_address.unwrap_or_default());
    print(format_args!("valid: {apps} on {address}; read: {files}\n"));
}
