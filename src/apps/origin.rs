//! The origins that browsers may connect from.
//!
//! Origins are compared part by part, as in RFC 6454: scheme, host and port, where a missing port is that of the scheme. So
//! the pattern of a host is compared with the host only, never with a longer text.

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// A pattern for the `Origin` header: a host (`app.example.com`), a host and port (`localhost:3000`), an origin
/// (`https://app.example.com:8443`, `capacitor://localhost`, `file://`), or `null`, which pages without an origin send. `*`
/// matches any characters within a part. Case is ignored.
///
/// Reverb matches hosts and Sockudo origins, so both forms exist: a pattern without a scheme matches all schemes, and
/// without a port all ports. A pattern with a scheme and no port matches the default port of the scheme.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OriginPattern {
    text: Box<str>,
    origins: Origins,
}

/// The origins that a pattern matches.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Origins {
    All,
    Opaque,
    Of { scheme: Option<Box<str>>, host: Box<str>, port: Ports },
}

/// The ports that a pattern matches.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Ports {
    All,
    OfScheme,
    Like(Box<str>),
}

/// Why a text is not a pattern for origins.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OriginPatternError {
    /// The text is empty.
    #[error("an origin is empty")]
    Empty,
    /// The text contains a path, a space or a control character, which no origin has.
    #[error("an origin is null, a host, or scheme://host[:port], without a path")]
    NotAnOrigin,
}

impl OriginPattern {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`OriginPatternError`].
    pub fn parse(text: &str) -> Result<Self, OriginPatternError> {
        let lower = text.to_lowercase();
        let origins = match lower.as_str() {
            "" => return Err(OriginPatternError::Empty),
            "*" => Origins::All,
            "null" => Origins::Opaque,
            text => Origins::of(text).ok_or(OriginPatternError::NotAnOrigin)?,
        };
        Ok(Self { text: lower.into(), origins })
    }

    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the pattern matches `origin`, as a browser sends it.
    #[must_use]
    pub fn matches(&self, origin: &str) -> bool {
        let Origins::Of { scheme, host, port } = &self.origins else {
            return self.origins == Origins::All || origin.eq_ignore_ascii_case("null");
        };
        let lower = origin.to_ascii_lowercase();
        let Some(origin) = Origin::parse(&lower) else { return false };
        scheme.as_ref().is_none_or(|scheme| glob(scheme, origin.scheme))
            && glob(host, &origin.host)
            && match port {
                Ports::All => true,
                Ports::OfScheme => origin.port == port_of(origin.scheme),
                Ports::Like(port) if &**port == "*" => true,
                Ports::Like(port) => origin.port.is_some_and(|found| glob(port, &found.to_string())),
            }
    }
}

impl Origins {
    /// Parses a pattern with a host, in lower case.
    fn of(text: &str) -> Option<Self> {
        let (scheme, authority) = split_scheme(text);
        let is_scheme = |scheme: &str| scheme.bytes().all(|byte| byte == b'*' || is_of_scheme(byte));
        if scheme.is_some_and(|scheme| scheme.is_empty() || !is_scheme(scheme)) {
            return None;
        }
        let (host, port) = split_port(authority)?;
        let host = to_ascii(host)?;
        // Only schemes other than those of HTTP and WebSocket have origins without a host.
        let has_host = scheme.is_none_or(|scheme| scheme.contains('*') || port_of(scheme).is_some());
        if host.is_empty() && (has_host || port.is_some()) {
            return None;
        }
        let port = match (port, scheme) {
            (Some(port), _) => {
                let is_number = port.parse().is_ok_and(|port: u16| port > 0);
                let is_glob =
                    port.contains('*') && port.bytes().all(|byte| byte == b'*' || byte.is_ascii_digit());
                (is_number || is_glob).then(|| Ports::Like(port.trim_start_matches('0').into()))?
            }
            (None, Some(_)) => Ports::OfScheme,
            (None, None) => Ports::All,
        };
        Some(Self::Of { scheme: scheme.map(Into::into), host: host.into(), port })
    }
}

/// An origin that is not opaque.
struct Origin<'t> {
    scheme: &'t str,
    host: Cow<'t, str>,
    /// The port, explicit or that of the scheme.
    port: Option<u16>,
}

impl<'t> Origin<'t> {
    /// Parses an origin in lower case. A text with a user, a path or more is not an origin.
    fn parse(text: &'t str) -> Option<Self> {
        let (scheme, authority) = split_scheme(text);
        let scheme = scheme.filter(|scheme| !scheme.is_empty() && scheme.bytes().all(is_of_scheme))?;
        let (host, port) = split_port(authority)?;
        let of_scheme = port_of(scheme);
        if !host.is_ascii() || (host.is_empty() && of_scheme.is_some()) {
            return None;
        }
        let port = match port {
            Some(port) => Some(port.parse().ok()?),
            None => of_scheme,
        };
        Some(Self { scheme, host, port })
    }
}

fn split_scheme(text: &str) -> (Option<&str>, &str) {
    text.split_once("://").map_or((None, text), |(scheme, authority)| (Some(scheme), authority))
}

/// Source: RFC 3986 §3.1.
fn is_of_scheme(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)
}

/// The default port of HTTP and WebSocket schemes.
fn port_of(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

/// Splits host and port. An IPv6 address is normalised and put in brackets.
fn split_port(authority: &str) -> Option<(Cow<'_, str>, Option<&str>)> {
    let in_brackets = |address: &str| Some(Cow::Owned(format!("[{}]", address.parse::<Ipv6Addr>().ok()?)));
    if let Some((address, rest)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
        return Some((in_brackets(address)?, port));
    }
    if let Some(host) = in_brackets(authority) {
        return Some((host, None));
    }
    let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
    let is_of_host =
        |char: char| !char.is_ascii() || (char.is_ascii_graphic() && !"/?#@[]:\\%".contains(char));
    (host.chars().all(is_of_host) && !host.contains(char::is_whitespace))
        .then_some((Cow::Borrowed(host), port))
}

/// A host name as browsers send it: `xn--…` for labels with other letters than ASCII.
fn to_ascii(host: Cow<'_, str>) -> Option<String> {
    if host.is_ascii() {
        return Some(host.into_owned());
    }
    // In a label that is encoded, a `*` would be encoded too.
    let is_whole = |label: &str| label.is_ascii() || !label.contains('*');
    host.split('.').all(is_whole).then(|| idna::domain_to_ascii(&host).ok())?
}

/// Whether `text` matches `pattern`, where `*` matches any characters. Linear in practice: one position to backtrack to is
/// enough.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((star_p, star_t)) = star {
            star = Some((star_p, star_t + 1));
            (p, t) = (star_p + 1, star_t + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests;
