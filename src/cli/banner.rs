//! The banner of `pusherd serve`: addresses, apps, and the configuration for the application.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::net::{IpAddr, SocketAddr};

use super::health::reachable;
use crate::apps::App;
use crate::config::{CredentialsSource, Settings};
use crate::server::Listening;

/// The number of apps that are listed.
const APPS_MAX: usize = 10;

/// The banner of a server that listens on these addresses.
#[must_use]
pub(super) fn banner(settings: &Settings, listening: &Listening) -> String {
    let style = Style { on: settings.colour && io::stdout().is_terminal() };
    let mut text = format!(
        "\n  {} {}\n\n",
        style.bold("pusherd"),
        style.dim(concat!(env!("CARGO_PKG_VERSION"), " · Pusher Channels protocol 7")),
    );
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "  {} {value}", style.dim(&format!("{name:<8}")));
    };
    let addresses = [(listening.plain, ""), (listening.tls, " with TLS")];
    for (index, (address, suffix)) in
        addresses.iter().filter_map(|(address, suffix)| Some(((*address)?, suffix))).enumerate()
    {
        let name = if index == 0 { "address" } else { "" };
        row(name, &format!("listening on {}{suffix}", style.bold(&address.to_string())));
    }
    for (index, app) in settings.apps.iter().take(APPS_MAX).enumerate() {
        row(if index == 0 { "apps" } else { "" }, &describe(app));
    }
    if let Some(more) = settings.apps.len().checked_sub(APPS_MAX).filter(|more| *more > 0) {
        row("", &format!("and {more} more"));
    }
    if !settings.files.is_empty() {
        row("settings", &settings.files.join(", "));
    }
    if settings.default_secret {
        row("note", "the default credentials are public: use them only on this machine, to try pusherd");
    }
    match (&settings.credentials, &settings.client_address) {
        (CredentialsSource::Dotenv(file), Some(address)) => {
            row("clients", &format!("connect to {} according to {file}", address.url()));
        }
        (CredentialsSource::Dotenv(file), None) => {
            let Endpoint { host, port, scheme } = Endpoint::for_application(settings, listening);
            let (prefix, why) = if settings.uses_reverb {
                ("REVERB", "so that the application knows where to publish")
            } else {
                ("PUSHER", "because the application publishes to pusher.com by default")
            };
            let _ = write!(
                text,
                "\n  {}\n\n{prefix}_HOST={host}\n{prefix}_PORT={port}\n{prefix}_SCHEME={scheme}\n",
                style.dim(&format!("Add to {file}, {why}:"))
            );
        }
        (CredentialsSource::Default | CredentialsSource::File | CredentialsSource::Environment, _) => {
            text.push_str(&application_config(settings, listening, style));
        }
    }
    text.push('\n');
    text
}

fn describe(app: &App) -> String {
    let keys: Vec<_> = app.keys.iter().map(|pair| &*pair.key).collect();
    let noun = if keys.len() == 1 { "key" } else { "keys" };
    let prefix =
        if app.path_prefix.is_empty() { String::new() } else { format!(", under {}", app.path_prefix) };
    let off = if app.enabled { "" } else { ", switched off" };
    format!("{}, {noun} {}{prefix}{off}", app.id, keys.join(" "))
}

/// The configuration for the application: lines of its `.env` and of its JavaScript.
fn application_config(settings: &Settings, listening: &Listening, style: Style) -> String {
    let Some(app) = settings.apps.get(settings.main_app) else { return String::new() };
    let App { id, keys, .. } = app;
    // The newest key, because older ones are being replaced.
    let key = keys.last().map(|pair| &*pair.key).unwrap_or_default();
    let secret = match settings.credentials {
        CredentialsSource::Default => "app-secret".to_owned(),
        CredentialsSource::File | CredentialsSource::Environment | CredentialsSource::Dotenv(_) => {
            format!("<the secret of app {id}>")
        }
    };
    let Endpoint { host, port, scheme } = Endpoint::for_application(settings, listening);
    let browsers = Endpoint::for_browsers(settings, listening);
    // With two ports, browsers use another one than the application, so their variables have values of their own.
    let [vite_host, vite_port, vite_scheme] = match listening.plain.is_some() && listening.tls.is_some() {
        false => ["${PUSHER_HOST}", "${PUSHER_PORT}", "${PUSHER_SCHEME}"].map(str::to_owned),
        true => [browsers.host, browsers.port.to_string(), browsers.scheme.to_owned()],
    };
    let path = if app.path_prefix.is_empty() {
        String::new()
    } else {
        format!("\n    wsPath: '{}',", app.path_prefix)
    };
    let dotenv = style.dim("Paste into the .env of the Laravel application:");
    let echo = style.dim("and into resources/js/echo.js:");
    format!(
        r#"
  {dotenv}

BROADCAST_CONNECTION=pusher
BROADCAST_DRIVER=pusher
PUSHER_APP_ID={id}
PUSHER_APP_KEY={key}
PUSHER_APP_SECRET={secret}
PUSHER_HOST={host}
PUSHER_PORT={port}
PUSHER_SCHEME={scheme}
PUSHER_APP_CLUSTER=mt1
VITE_PUSHER_APP_KEY="${{PUSHER_APP_KEY}}"
VITE_PUSHER_HOST="{vite_host}"
VITE_PUSHER_PORT="{vite_port}"
VITE_PUSHER_SCHEME="{vite_scheme}"
VITE_PUSHER_APP_CLUSTER="${{PUSHER_APP_CLUSTER}}"

  {echo}

import Echo from 'laravel-echo';
import Pusher from 'pusher-js';

window.Pusher = Pusher;
window.Echo = new Echo({{
    broadcaster: 'pusher',
    key: import.meta.env.VITE_PUSHER_APP_KEY,
    cluster: '',
    wsHost: import.meta.env.VITE_PUSHER_HOST,
    wsPort: import.meta.env.VITE_PUSHER_PORT,
    wssPort: import.meta.env.VITE_PUSHER_PORT,{path}
    forceTLS: (import.meta.env.VITE_PUSHER_SCHEME ?? 'https') === 'https',
    enabledTransports: ['ws', 'wss'],
}});
"#
    )
}

/// The address of the server for its clients.
struct Endpoint {
    host: String,
    port: u16,
    scheme: &'static str,
}

impl Endpoint {
    /// For an application on this machine: without TLS, if there is a port without it.
    fn for_application(settings: &Settings, listening: &Listening) -> Self {
        listening.plain.map_or_else(
            || Self::for_browsers(settings, listening),
            |address| Self {
                host: client_host(settings, Some(address)),
                port: address.port(),
                scheme: "http",
            },
        )
    }

    /// For browsers: with TLS, if there is a port with it.
    fn for_browsers(settings: &Settings, listening: &Listening) -> Self {
        match (listening.tls, listening.plain) {
            (Some(address), _) => Self {
                host: "<a name that the certificate is for>".to_owned(),
                port: address.port(),
                scheme: "https",
            },
            (None, address) => Self {
                host: client_host(settings, address),
                port: address.map_or(settings.server.port, |address| address.port()),
                scheme: "http",
            },
        }
    }
}

/// The host for an application and a browser on this machine: the bound address, or its name.
fn client_host(settings: &Settings, address: Option<SocketAddr>) -> String {
    let host = &settings.server.host;
    let address = address.filter(|_| host.parse::<IpAddr>().is_ok()).map(|address| address.ip().to_string());
    let host = reachable(address.as_deref().unwrap_or(host));
    if host.contains(':') { format!("[{host}]") } else { host }
}

/// Bold and dim text, on a terminal.
#[derive(Clone, Copy)]
struct Style {
    on: bool,
}

impl Style {
    fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    /// The banner for an application with this `.env`.
    fn banner_for(dotenv: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(".env"), dotenv).unwrap();
        let settings = load(&Sources::new([], directory.path().to_owned())).unwrap();
        let plain = Some(([127, 0, 0, 1], settings.server.port).into());
        banner(&settings, &Listening { plain, tls: None })
    }

    #[test]
    fn an_application_without_the_address_gets_the_lines_for_its_driver() {
        let credentials = "X_APP_ID=1\nX_APP_KEY=k\nX_APP_SECRET=hunter2-hunter2\n";
        let reverb = banner_for(&credentials.replace('X', "REVERB"));
        let lines = "Add to .env, so that the application knows where to publish:\n\nREVERB_HOST=127.0.0.1\n\
                     REVERB_PORT=8080\nREVERB_SCHEME=http\n";
        assert!(reverb.contains(lines) && !reverb.contains("pusher.com"), "{reverb}");
        let pusher = banner_for(&credentials.replace('X', "PUSHER"));
        let lines = "Add to .env, because the application publishes to pusher.com by default:\n\nPUSHER_HOST=127.0.0.1\n\
                     PUSHER_PORT=6001\nPUSHER_SCHEME=http\n";
        assert!(pusher.contains(lines), "{pusher}");
        assert!(!format!("{reverb}{pusher}").contains("hunter2"));
    }

    #[test]
    fn the_address_of_clients_is_shown_as_a_url() {
        let credentials = "REVERB_APP_ID=1\nREVERB_APP_KEY=k\nREVERB_APP_SECRET=long-enough\n";
        for (lines, url) in [
            ("REVERB_HOST=localhost\nREVERB_PORT=8080\nREVERB_SCHEME=http\n", "http://localhost:8080"),
            ("REVERB_HOST=[::1]\nREVERB_PORT=8080\nREVERB_SCHEME=http\n", "http://[::1]:8080"),
            ("REVERB_HOST=ws.test\n", "https://ws.test"),
        ] {
            let banner = banner_for(&format!("{credentials}{lines}"));
            assert!(banner.contains(&format!("connect to {url} according to .env\n")), "{banner}");
        }
    }
}
