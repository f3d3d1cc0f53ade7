//! Where the application tells clients to connect to, and whether that is where pusherd listens.
//!
//! `PUSHER_HOST`, `PUSHER_PORT` and `PUSHER_SCHEME`, or `REVERB_…`, or `PUSHER_URL`: never where to listen, as a proxy or
//! a load balancer may be there. Where it is this machine itself, it is compared.
//!
//! Source: Laravel's `config/broadcasting.php`: port 443 and `https` where nothing is said.

use std::net::{IpAddr, UdpSocket};

use super::advice::Advice;
use super::families::{Choice, Owner, PUSHER_URL};
use super::kind::excerpt;
use super::problem::{Problems, Source};
use super::pusher_url::PusherUrl;
use super::schema;
use super::variables::Variables;
use super::{CLIENT_FAMILIES, Server};

/// Where clients connect to, as the variables of the application say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Clients {
    /// The host.
    pub host: String,
    /// The port, where it is given.
    pub port: Option<u16>,
    /// Whether TLS is spoken, where it is given.
    pub tls: Option<bool>,
    /// Where the host was written.
    source: Source,
    /// What the variables begin with, or [`PUSHER_URL`].
    family: &'static str,
}

impl Clients {
    /// What the variables of the server say that the application uses, or else those of the other.
    pub(super) fn find(variables: &Variables, choice: &Choice, problems: &mut Problems) -> Option<Self> {
        let [pusher, reverb] = CLIENT_FAMILIES;
        let families = if choice.is_of_reverb() { [reverb, pusher] } else { [pusher, reverb] };
        let of_url = || {
            let (url, source) =
                variables.get_filled(PUSHER_URL).filter(|_| choice.owner() == Some(Owner::Pusher))?;
            let PusherUrl { host, port, tls, .. } = PusherUrl::parse(&url).ok()?;
            Some(Self { host, port: Some(port), tls: Some(tls), source, family: PUSHER_URL })
        };
        let with_host = families
            .into_iter()
            .find_map(|family| Some((family, variables.get_filled(&format!("{family}HOST"))?)));
        let Some((family, (host, source))) = with_host else { return of_url() };
        let mut checked = |name: &str, must: &str, check: &dyn Fn(&str) -> bool| {
            let (value, source) = variables.get_filled(&format!("{family}{name}"))?;
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

    /// What to say where clients are sent to this machine, and to where nobody listens there.
    pub(super) fn advise(&self, server: &Server) -> Option<Advice> {
        let plain = (server.port, server.port_speaks_tls());
        let listening: Vec<(u16, bool)> =
            std::iter::once(plain).chain(server.tls_port.map(|port| (port, true))).collect();
        let told = (self.port.unwrap_or(443), self.tls.unwrap_or(true));
        let is_here = is_here(&self.host, &server.host);
        // Elsewhere there may be a proxy, but hardly one that has the same port and only speaks otherwise.
        let is_likely_here = listening.iter().any(|(port, _)| *port == told.0);
        if server.port == 0 || listening.contains(&told) || !(is_here || is_likely_here) {
            return None;
        }
        // The way in that needs the fewest changes.
        let changes = |at: &(u16, bool)| u8::from(at.0 != told.0) + u8::from(at.1 != told.1);
        let (port, tls) = listening.into_iter().min_by_key(changes)?;
        let mut lines = Vec::new();
        let mut line = |name: &str, value: String, is_set: bool| {
            lines.push(match self.family {
                PUSHER_URL => format!("change its {} to {value}", name.to_ascii_lowercase()),
                family if is_set => format!("change {family}{name} to {value}"),
                family => format!("add {family}{name}={value}"),
            });
        };
        if tls != told.1 {
            line("SCHEME", scheme(tls).to_owned(), self.tls.is_some());
        }
        if port != told.0 {
            line("PORT", port.to_string(), self.port.is_some());
        }
        let or = match told {
            (told, _) if told != port && told >= 1024 => format!(", or set PUSHERD_PORT={told}"),
            _ => String::new(),
        };
        let text = format!(
            "{}: clients are told to connect to {}, and pusherd listens on {port} {} TLS: {}{or} (unless a proxy is \
             between)",
            self.source,
            Self { port: Some(told.0), ..self.clone() }.url(),
            if tls { "with" } else { "without" },
            lines.join(" and "),
        );
        Some(Advice { loud: is_here, text })
    }
}

const fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

/// Whether `host` is this machine, as far as can be told without asking anyone: a name is not looked up.
fn is_here(host: &str, listens_on: &str) -> bool {
    let Ok(address) = host.parse::<IpAddr>() else {
        return host == "localhost" || host.ends_with(".localhost") || host == listens_on;
    };
    // Only an address of this machine can be bound. Nothing is sent.
    address.is_loopback() || address.is_unspecified() || UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use crate::config::tests::settings;

    const REVERB: &str = "REVERB_APP_ID=1\nREVERB_APP_KEY=k\nREVERB_APP_SECRET=long-enough\n";
    const PUSHER: &str = "PUSHER_APP_ID=1\nPUSHER_APP_KEY=k\nPUSHER_APP_SECRET=long-enough\n";

    /// What is said loudly.
    fn loud(dotenv: &str) -> Vec<String> {
        let advice = settings("", dotenv, &[]).unwrap().advice.into_iter();
        advice.filter(|advice| advice.loud).map(|advice| advice.text).collect()
    }

    #[test]
    fn clients_that_are_sent_to_this_machine_but_not_to_pusherd_are_warned_of() {
        let unless = "(unless a proxy is between)";
        let table = [
            (
                format!("{PUSHER}PUSHER_HOST=127.0.0.1\nPUSHER_PORT=6001\n"),
                "PUSHER_HOST: clients are told to connect to https://127.0.0.1:6001, and pusherd listens on 6001 without \
                 TLS: add PUSHER_SCHEME=http",
            ),
            (
                format!(
                    "{REVERB}REVERB_HOST=localhost\nREVERB_PORT=8080\nREVERB_SCHEME=http\nREVERB_SERVER_PORT=6001\n"
                ),
                "REVERB_HOST: clients are told to connect to http://localhost:8080, and pusherd listens on 6001 without \
                 TLS: change REVERB_PORT to 6001, or set PUSHERD_PORT=8080",
            ),
            (
                format!("{REVERB}REVERB_HOST=ws.localhost\n"),
                "REVERB_HOST: clients are told to connect to https://ws.localhost:443, and pusherd listens on 8080 without \
                 TLS: add REVERB_SCHEME=http and add REVERB_PORT=8080",
            ),
            (
                "PUSHER_URL=http://k:long-enough@[::1]/apps/1\n".to_owned(),
                "PUSHER_URL: clients are told to connect to http://[::1]:80, and pusherd listens on 6001 without TLS: \
                 change its port to 6001",
            ),
            (
                format!("{PUSHER}PUSHER_HOST=0.0.0.0\nPUSHER_PORT=8080\nPUSHER_SCHEME=HTTP\n"),
                "PUSHER_HOST: clients are told to connect to http://0.0.0.0:8080, and pusherd listens on 6001 without TLS: \
                 change PUSHER_PORT to 6001, or set PUSHERD_PORT=8080",
            ),
        ];
        for (dotenv, expected) in table {
            assert_eq!(loud(&dotenv), [format!(".env: {expected} {unless}")], "{dotenv}");
        }
        for dotenv in [
            format!("{PUSHER}PUSHER_HOST=127.0.0.1\nPUSHER_PORT=6001\nPUSHER_SCHEME=http\n"),
            format!("{REVERB}REVERB_HOST=localhost\nREVERB_PORT=8080\nREVERB_SCHEME=http\n"),
            // Elsewhere, a proxy may be.
            format!("{PUSHER}PUSHER_HOST=ws.test\nPUSHER_PORT=443\nPUSHER_SCHEME=https\n"),
            format!("{PUSHER}PUSHER_HOST=192.0.2.7\nPUSHER_PORT=443\n"),
            // Any free port is not known yet.
            format!("{PUSHER}PUSHER_HOST=127.0.0.1\nPUSHER_PORT=443\nPUSHERD_PORT=0\n"),
            // The other family's does not count.
            format!("{REVERB}REVERB_HOST=ws.test\nPUSHER_HOST=127.0.0.1\nPUSHER_PORT=1\n"),
        ] {
            assert_eq!(loud(&dotenv), [""; 0], "{dotenv}");
        }
    }

    #[test]
    fn a_port_of_ours_that_is_told_with_another_scheme_is_remarked_upon_wherever_it_is() {
        // Herd and Valet give a name and a certificate to an application on this machine, which Reverb finds by itself.
        let dotenv = format!("{REVERB}REVERB_HOST=chat.test\nREVERB_PORT=8080\nREVERB_SCHEME=https\n");
        let advice = settings("", &dotenv, &[]).unwrap().advice;
        let text = ".env: REVERB_HOST: clients are told to connect to https://chat.test:8080, and pusherd listens on 8080 \
                    without TLS: change REVERB_SCHEME to http (unless a proxy is between)";
        assert!(advice.len() == 1 && !advice[0].loud && advice[0].text == text, "{advice:?}");
    }

    #[test]
    fn where_clients_connect_to_is_a_host_a_port_and_a_scheme() {
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
            let of_pusher = lines.replace("REVERB", "PUSHER");
            let problems = settings("", &format!("{PUSHER}{of_pusher}\n"), &[]).unwrap_err();
            assert_eq!(problems, [format!(".env: {}", expected.replace("REVERB", "PUSHER"))], "{of_pusher}");
            // What the application does not use may be anything.
            let unused = format!("{REVERB}REVERB_HOST=ws.test\n{of_pusher}\n");
            assert!(settings("", &unused, &[]).is_ok(), "{unused}");
        }
    }

    #[test]
    fn an_application_that_publishes_to_the_vendor_or_nowhere_is_remarked_upon() {
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
            let advice = settings("", &dotenv, &[]).unwrap().advice;
            assert!(advice.len() == 1 && advice[0].text.contains(expected), "{dotenv} {advice:?}");
        }
    }
}
