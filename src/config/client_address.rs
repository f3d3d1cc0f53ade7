//! The address that the application gives to clients, compared with the addresses that pusherd listens on.
//!
//! `PUSHER_HOST`, `PUSHER_PORT` and `PUSHER_SCHEME`, or `REVERB_…`, or `PUSHER_URL` hold it. pusherd never listens on it,
//! because it may be the address of a proxy or a load balancer. If it is this machine, a mismatch is a warning.
//!
//! Source: Laravel's `config/broadcasting.php`: the defaults are port 443 and `https`.

use std::net::{IpAddr, UdpSocket};

use super::credentials::{CredentialsChoice, Owner, PUSHER_URL};
use super::problems::{Problems, Source};
use super::pusher_url::PusherUrl;
use super::schema;
use super::setting::excerpt;
use super::settings::Server;
use super::variables::{CLIENT_FAMILIES, Variables};
use super::warnings::Warning;

/// The address that clients connect to, from the variables of the application.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClientAddress {
    /// The host.
    pub host: String,
    /// The port, if it is set.
    pub port: Option<u16>,
    /// Whether clients use TLS, if it is set.
    pub tls: Option<bool>,
    /// The source of the host.
    source: Source,
    /// The prefix of the variables, or [`PUSHER_URL`].
    family: &'static str,
}

impl ClientAddress {
    /// The address in the variables of the server that the application uses, else in those of the other server.
    pub(super) fn find(
        variables: &Variables,
        choice: &CredentialsChoice,
        problems: &mut Problems,
    ) -> Option<Self> {
        let [pusher, reverb] = CLIENT_FAMILIES;
        let families = if choice.uses_reverb() { [reverb, pusher] } else { [pusher, reverb] };
        let from_url = || {
            let (url, source) =
                variables.non_empty(PUSHER_URL).filter(|_| choice.owner() == Some(Owner::Pusher))?;
            let PusherUrl { host, port, tls, .. } = PusherUrl::parse(&url).ok()?;
            Some(Self { host, port: Some(port), tls: Some(tls), source, family: PUSHER_URL })
        };
        let with_host = families
            .into_iter()
            .find_map(|family| Some((family, variables.non_empty(&format!("{family}HOST"))?)));
        let Some((family, (host, source))) = with_host else { return from_url() };
        let mut checked = |name: &str, must: &str, check: &dyn Fn(&str) -> bool| {
            let (value, source) = variables.non_empty(&format!("{family}{name}"))?;
            if check(value.trim()) {
                return Some(value.trim().to_ascii_lowercase());
            }
            problems.add(&source, "", format_args!("{must}, not {}", excerpt(&value)));
            None
        };
        let port =
            checked("PORT", "must be 1 to 65535", &|text| text.parse::<u16>().is_ok_and(|port| port > 0));
        let scheme = checked("SCHEME", "must be http or https", &|text| {
            ["http", "https"].iter().any(|scheme| scheme.eq_ignore_ascii_case(text))
        });
        match schema::host(&host) {
            Ok(host) => Some(Self {
                host,
                port: port.and_then(|port| port.parse().ok()),
                tls: scheme.map(|scheme| scheme == "https"),
                source,
                family,
            }),
            Err(what) => {
                problems.add(&source, "", format_args!("{what}, not {}", excerpt(&host)));
                None
            }
        }
    }

    /// The address as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}://{host}{port}", scheme(self.tls.unwrap_or(true)))
    }

    /// The warning if clients connect to this machine, but to a port or a scheme that pusherd does not serve.
    pub(super) fn warning(&self, server: &Server) -> Option<Warning> {
        let plain = (server.port, server.port_uses_tls());
        let listening: Vec<(u16, bool)> =
            std::iter::once(plain).chain(server.tls_port.map(|port| (port, true))).collect();
        let configured = (self.port.unwrap_or(443), self.tls.unwrap_or(true));
        let is_here = is_here(&self.host, &server.host);
        // Another host may be a proxy, but hardly one with the same port and another scheme.
        let is_likely_here = listening.iter().any(|(port, _)| *port == configured.0);
        if server.port == 0 || listening.contains(&configured) || !(is_here || is_likely_here) {
            return None;
        }
        // The listener that needs the fewest changes.
        let changes = |listener: &(u16, bool)| {
            u8::from(listener.0 != configured.0) + u8::from(listener.1 != configured.1)
        };
        let (port, tls) = listening.into_iter().min_by_key(changes)?;
        let mut lines = Vec::new();
        let mut line = |name: &str, value: String, is_set: bool| {
            lines.push(match self.family {
                PUSHER_URL => format!("change its {} to {value}", name.to_ascii_lowercase()),
                family if is_set => format!("change {family}{name} to {value}"),
                family => format!("add {family}{name}={value}"),
            });
        };
        if tls != configured.1 {
            line("SCHEME", scheme(tls).to_owned(), self.tls.is_some());
        }
        if port != configured.0 {
            line("PORT", port.to_string(), self.port.is_some());
        }
        let or = match configured {
            (configured, _) if configured != port && configured >= 1024 => {
                format!(", or set PUSHERD_PORT={configured}")
            }
            _ => String::new(),
        };
        let text = format!(
            "{}: clients connect to {}, but pusherd listens on {port} {} TLS: {}{or} (unless there is a proxy in \
             between)",
            self.source,
            Self { port: Some(configured.0), ..self.clone() }.url(),
            if tls { "with" } else { "without" },
            lines.join(" and "),
        );
        Some(Warning { always_logged: is_here, text })
    }
}

const fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

/// Whether `host` is known to be this machine. Names are not looked up.
fn is_here(host: &str, listens_on: &str) -> bool {
    let Ok(address) = host.parse::<IpAddr>() else {
        return host == "localhost" || host.ends_with(".localhost") || host == listens_on;
    };
    address.is_loopback() || address.is_unspecified() || is_own(address)
}

/// Whether `address` belongs to this machine. Only such an address can be bound; nothing is sent.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::settings;

    const REVERB: &str = "REVERB_APP_ID=1\nREVERB_APP_KEY=k\nREVERB_APP_SECRET=long-enough\n";
    const PUSHER: &str = "PUSHER_APP_ID=1\nPUSHER_APP_KEY=k\nPUSHER_APP_SECRET=long-enough\n";

    /// The warnings that are always logged.
    fn always_logged(dotenv: &str) -> Vec<String> {
        let warnings = settings("", dotenv, &[]).unwrap().warnings.into_iter();
        warnings.filter(|warning| warning.always_logged).map(|warning| warning.text).collect()
    }

    #[test]
    fn clients_that_connect_to_this_machine_but_not_to_pusherd_cause_a_warning() {
        let unless = "(unless there is a proxy in between)";
        let table = [
            (
                format!("{PUSHER}PUSHER_HOST=127.0.0.1\nPUSHER_PORT=6001\n"),
                "PUSHER_HOST: clients connect to https://127.0.0.1:6001, but pusherd listens on 6001 without \
                 TLS: add PUSHER_SCHEME=http",
            ),
            (
                format!(
                    "{REVERB}REVERB_HOST=localhost\nREVERB_PORT=8080\nREVERB_SCHEME=http\nREVERB_SERVER_PORT=6001\n"
                ),
                "REVERB_HOST: clients connect to http://localhost:8080, but pusherd listens on 6001 without \
                 TLS: change REVERB_PORT to 6001, or set PUSHERD_PORT=8080",
            ),
            (
                format!("{REVERB}REVERB_HOST=ws.localhost\n"),
                "REVERB_HOST: clients connect to https://ws.localhost:443, but pusherd listens on 8080 without \
                 TLS: add REVERB_SCHEME=http and add REVERB_PORT=8080",
            ),
            (
                "PUSHER_URL=http://k:long-enough@[::1]/apps/1\n".to_owned(),
                "PUSHER_URL: clients connect to http://[::1]:80, but pusherd listens on 6001 without TLS: \
                 change its port to 6001",
            ),
            (
                format!("{PUSHER}PUSHER_HOST=0.0.0.0\nPUSHER_PORT=8080\nPUSHER_SCHEME=HTTP\n"),
                "PUSHER_HOST: clients connect to http://0.0.0.0:8080, but pusherd listens on 6001 without TLS: \
                 change PUSHER_PORT to 6001, or set PUSHERD_PORT=8080",
            ),
        ];
        for (dotenv, expected) in table {
            assert_eq!(always_logged(&dotenv), [format!(".env: {expected} {unless}")], "{dotenv}");
        }
        for dotenv in [
            format!("{PUSHER}PUSHER_HOST=127.0.0.1\nPUSHER_PORT=6001\nPUSHER_SCHEME=http\n"),
            format!("{REVERB}REVERB_HOST=localhost\nREVERB_PORT=8080\nREVERB_SCHEME=http\n"),
            // Another host may be a proxy.
            format!("{PUSHER}PUSHER_HOST=ws.test\nPUSHER_PORT=443\nPUSHER_SCHEME=https\n"),
            format!("{PUSHER}PUSHER_HOST=192.0.2.7\nPUSHER_PORT=443\n"),
            // The port is not known yet.
            format!("{PUSHER}PUSHER_HOST=127.0.0.1\nPUSHER_PORT=443\nPUSHERD_PORT=0\n"),
            // The address of the other family is not used.
            format!("{REVERB}REVERB_HOST=ws.test\nPUSHER_HOST=127.0.0.1\nPUSHER_PORT=1\n"),
        ] {
            assert_eq!(always_logged(&dotenv), [""; 0], "{dotenv}");
        }
    }

    /// The address from which this machine reaches others; without a network, its loopback address.
    fn own_address() -> IpAddr {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        // Nothing is sent, and the address is one of documentation.
        let reached = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
        reached.map_or([127, 0, 0, 1].into(), |address| address.ip())
    }

    #[test]
    fn clients_that_connect_to_an_own_address_of_this_machine_cause_a_warning() {
        let own = own_address();
        let expected = format!(
            ".env: REVERB_HOST: clients connect to http://{own}:9000, but pusherd listens on 8080 without TLS: change \
             REVERB_PORT to 8080, or set PUSHERD_PORT=9000 (unless there is a proxy in between)"
        );
        let address = format!("REVERB_HOST={own}\nREVERB_PORT=9000\nREVERB_SCHEME=http\n");
        assert_eq!(always_logged(&format!("{REVERB}{address}")), [expected]);
        // Also where the machine has no other address than loopback.
        assert!(is_own(own) && is_own([127, 0, 0, 1].into()));
        for other in ["192.0.2.7", "2001:db8::7"] {
            assert!(!is_own(other.parse().unwrap()) && !is_here(other, "0.0.0.0"), "{other}");
        }
    }

    #[test]
    fn our_port_with_the_wrong_scheme_causes_a_warning_on_any_host() {
        // Herd and Valet give an application on this machine a name and a certificate, which Reverb finds by itself.
        let dotenv = format!("{REVERB}REVERB_HOST=chat.test\nREVERB_PORT=8080\nREVERB_SCHEME=https\n");
        let warnings = settings("", &dotenv, &[]).unwrap().warnings;
        let text = ".env: REVERB_HOST: clients connect to https://chat.test:8080, but pusherd listens on 8080 \
                    without TLS: change REVERB_SCHEME to http (unless there is a proxy in between)";
        let [warning] = &warnings[..] else { panic!("{warnings:?}") };
        assert!(!warning.always_logged && warning.text == text, "{warning:?}");
    }

    #[test]
    fn the_address_of_clients_is_a_host_a_port_and_a_scheme() {
        for (lines, expected) in [
            (
                "REVERB_HOST=https://ws.example.com",
                "REVERB_HOST: must be an address or a host name, without scheme and port, not \"https://ws.example.com\"",
            ),
            (
                "REVERB_HOST=ws.example.com/",
                "REVERB_HOST: must be an address or a host name, without scheme and port, not \"ws.example.com/\"",
            ),
            (
                "REVERB_HOST=localhost:8080",
                "REVERB_HOST: must be an address or a host name, without scheme and port, not \"localhost:8080\"",
            ),
            (
                "REVERB_HOST=*",
                "REVERB_HOST: must be an address or a host name, without scheme and port, not \"*\"",
            ),
            ("REVERB_HOST=ws.test\nREVERB_PORT=http", "REVERB_PORT: must be 1 to 65535, not \"http\""),
            ("REVERB_HOST=ws.test\nREVERB_PORT=0", "REVERB_PORT: must be 1 to 65535, not \"0\""),
            ("REVERB_HOST=ws.test\nREVERB_SCHEME=wss", "REVERB_SCHEME: must be http or https, not \"wss\""),
        ] {
            let problems = settings("", &format!("{REVERB}{lines}\n"), &[]).unwrap_err();
            assert_eq!(problems, [format!(".env: {expected}")], "{lines}");
            let pusher_lines = lines.replace("REVERB", "PUSHER");
            let problems = settings("", &format!("{PUSHER}{pusher_lines}\n"), &[]).unwrap_err();
            assert_eq!(
                problems,
                [format!(".env: {}", expected.replace("REVERB", "PUSHER"))],
                "{pusher_lines}"
            );
            // Variables that the application does not use are not checked.
            let unused = format!("{REVERB}REVERB_HOST=ws.test\n{pusher_lines}\n");
            assert!(settings("", &unused, &[]).is_ok(), "{unused}");
        }
    }

    #[test]
    fn an_application_that_does_not_publish_to_pusherd_causes_a_warning() {
        for (dotenv, expected) in [
            (
                format!("{PUSHER}PUSHER_HOST=api-eu.pusher.com\n"),
                ".env: the application publishes to api-eu.pusher.com",
            ),
            (
                "PUSHER_URL=http://k:long-enough@api.pusherapp.com/apps/1\n".to_owned(),
                "publishes to api.pusherapp.com",
            ),
            (PUSHER.to_owned(), "PUSHER_HOST is not set, so the application publishes to pusher.com"),
            (REVERB.to_owned(), "REVERB_HOST is not set, so the application does not know where to publish"),
        ] {
            let warnings = settings("", &dotenv, &[]).unwrap().warnings;
            assert!(warnings.len() == 1 && warnings[0].text.contains(expected), "{dotenv} {warnings:?}");
        }
    }
}
