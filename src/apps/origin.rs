//! Which origins a browser may connect from.
//!
//! An origin is compared as RFC 6454 has it, part by part: scheme, host and port, a port that is left out being that of
//! the scheme. So a pattern is never held against a text of which only a part is the host.

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// A pattern over the `Origin` header: a host (`app.example.com`), a host and port (`localhost:3000`), a whole origin
/// (`https://app.example.com:8443`, `capacitor://localhost`, `file://`), or `null`, which pages without an origin of
/// their own send. `*` stands for any characters within a part. Case does not count.
///
/// Reverb matches hosts, Sockudo whole origins: a pattern without a scheme is for all schemes, and without a port for
/// all ports. One with a scheme and no port is for the port of that scheme.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OriginPattern {
    text: Box<str>,
    origins: Origins,
}

/// The origins that a pattern means.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Origins {
    All,
    Opaque,
    Of { scheme: Option<Box<str>>, host: Box<str>, port: Ports },
}

/// The ports that a pattern means.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Ports {
    All,
    OfScheme,
    Like(Box<str>),
}

/// Why a text is not a pattern.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OriginPatternError {
    /// Nothing to match.
    #[error("an origin is empty")]
    Empty,
    /// A path, a space or a control character, which no origin has.
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

    /// Whether `origin`, as a browser sends it, is meant.
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
    /// Of a pattern in small letters that names a host.
    fn of(text: &str) -> Option<Self> {
        let (scheme, authority) = split_scheme(text);
        let is_scheme = |scheme: &str| scheme.bytes().all(|byte| byte == b'*' || is_of_scheme(byte));
        if scheme.is_some_and(|scheme| scheme.is_empty() || !is_scheme(scheme)) {
            return None;
        }
        let (host, port) = split_port(authority)?;
        let host = to_ascii(host)?;
        // Only schemes that browsers do not speak have origins without a host.
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
    /// The port, written or of the scheme.
    port: Option<u16>,
}

impl<'t> Origin<'t> {
    /// Of an origin in small letters, as browsers write it: what has a user, a path or more is none.
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

/// The port of a scheme that a browser speaks.
fn port_of(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

/// Host and port. An address of IPv6 is brought into the one form that it has, in brackets.
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

/// A name as browsers send it, `xn--…` where it has other letters than ASCII.
fn to_ascii(host: Cow<'_, str>) -> Option<String> {
    if host.is_ascii() {
        return Some(host.into_owned());
    }
    // A `*` within a label that is encoded would be encoded with it.
    let is_whole = |label: &str| label.is_ascii() || !label.contains('*');
    host.split('.').all(is_whole).then(|| idna::domain_to_ascii(&host).ok())?
}

/// `*` is any run of characters. Linear in practice: one place to return to, as no pattern needs more.
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assert_all(table: &[(&str, &str, bool)]) {
        for (pattern, origin, expected) in table {
            let found = OriginPattern::parse(pattern).unwrap().matches(origin);
            assert_eq!(found, *expected, "{pattern} {origin}");
        }
    }

    #[test]
    fn patterns_match_the_origins_they_name_and_no_others() {
        // pattern, origin, matches
        assert_all(&[
            ("*", "null", true),
            ("*", "https://any.example", true),
            ("*", "no origin", true),
            ("example.com", "https://example.com", true),
            ("example.com", "http://EXAMPLE.com:8080", true),
            ("example.com", "https://example.com.evil.test", false),
            ("example.com", "https://a.example.com", false),
            ("*.example.com", "https://a.example.com", true),
            ("*.example.com", "https://a.b.example.com", true),
            ("*.example.com", "https://example.com", false),
            ("*.example.com", "https://evilexample.com", false),
            ("localhost:3000", "http://localhost:3000", true),
            ("localhost:3000", "http://localhost:3001", false),
            ("localhost:*", "http://localhost:3001", true),
            ("localhost:*", "http://localhost", true),
            ("localhost:30*", "http://localhost:3001", true),
            ("localhost:30*", "http://localhost:4001", false),
            ("https://*.example.com", "https://a.example.com", true),
            ("https://*.example.com", "http://a.example.com", false),
            ("http*://example.com", "http://example.com", true),
            ("a*b*c", "http://aXbYbZc", true),
            ("example.com", "", false),
            ("example.com", "example.com", false),
        ]);
    }

    #[test]
    fn a_port_that_is_left_out_is_that_of_the_scheme() {
        assert_all(&[
            ("https://laravel.com:443", "https://laravel.com", true),
            ("laravel.com:443", "https://laravel.com", true),
            ("laravel.com:443", "https://laravel.com:443", true),
            ("laravel.com:443", "http://laravel.com", false),
            ("laravel.com:80", "http://laravel.com", true),
            ("laravel.com:0443", "https://laravel.com", true),
            ("https://laravel.com", "https://laravel.com:443", true),
            ("https://laravel.com", "https://laravel.com:8443", false),
            ("https://example.com:8443", "https://example.com", false),
            ("https://example.com:8443", "https://example.com:8443", true),
            ("https://*:*", "https://example.com:8443", true),
            ("laravel.com:80", "capacitor://laravel.com", false),
        ]);
    }

    #[test]
    fn apps_files_and_pages_without_an_origin_have_patterns_too() {
        assert_all(&[
            ("file://", "file://", true),
            ("file://", "FILE://", true),
            ("file://", "https://file", false),
            ("null", "null", true),
            ("null", "https://null", false),
            ("localhost", "null", false),
            ("capacitor://localhost", "capacitor://localhost", true),
            ("capacitor://localhost", "ionic://localhost", false),
            ("ionic://localhost", "ionic://localhost", true),
            ("tauri://localhost", "tauri://localhost", true),
            ("localhost", "capacitor://localhost", true),
            ("chrome-extension://*", "chrome-extension://abcdefgh", true),
            ("capacitor://localhost:*", "capacitor://localhost", true),
        ]);
    }

    #[test]
    fn addresses_and_names_have_one_form() {
        assert_all(&[
            ("[::1]", "http://[::1]:3000", true),
            ("::1", "http://[::1]:3000", true),
            ("[0:0:0:0:0:0:0:1]", "http://[::1]", true),
            ("http://[::1]:3000", "http://[0::1]:3000", true),
            ("[::1]:3000", "http://[::1]:3001", false),
            ("[2001:DB8::1]", "https://[2001:db8::1]", true),
            ("127.0.0.1", "http://127.0.0.1:5173", true),
            ("müller.example", "https://xn--mller-kva.example", true),
            ("MÜLLER.example", "https://xn--mller-kva.example", true),
            ("*.müller.example", "https://shop.xn--mller-kva.example", true),
            ("xn--mller-kva.example", "https://XN--mller-kva.example", true),
            ("Example.COM", "https://example.com", true),
        ]);
    }

    #[test]
    fn what_only_looks_like_the_host_is_none_of_it() {
        for origin in [
            "https://evil.com?.foo.test",
            "https://evil.com#.foo.test",
            "https://evil.com/.foo.test",
            "https://evil.com\\.foo.test",
            "https://evil.com:1@a.foo.test",
            "https://a@b.foo.test",
            "https://evil.com .foo.test",
            "https://evil.com:.foo.test",
            "https://a.foo.test:",
            "https://a.foo.test:65536",
            "https://a.foo.test:x",
            "https://[a.foo.test]",
            "https://",
            "://a.foo.test",
            "a.foo.test",
        ] {
            for pattern in ["*.foo.test", "https://*.foo.test", "*foo.test", "*://*.foo.test"] {
                assert!(!OriginPattern::parse(pattern).unwrap().matches(origin), "{pattern} {origin}");
            }
        }
    }

    #[test]
    fn what_is_no_origin_is_no_pattern() {
        let table = [
            "https://a.test/path",
            "https://a.test/",
            "a b",
            "https://",
            "http://",
            "a/b",
            "a?b",
            "a#b",
            "u@a.test",
            "a.test:x",
            "a.test:",
            "a.test:65536",
            "a.test:0",
            "[::1",
            "[x]",
            "[::1]x",
            "ü*.test",
            "sch eme://a",
            "file://:1",
            "*://",
            "://a",
            "a\u{7f}",
        ];
        for text in table {
            assert_eq!(OriginPattern::parse(text), Err(OriginPatternError::NotAnOrigin), "{text}");
        }
        assert_eq!(OriginPattern::parse(""), Err(OriginPatternError::Empty));
    }

    proptest! {
        #[test]
        fn any_text_is_matched_without_a_panic(pattern in "\\PC{0,20}", origin in "\\PC{0,20}") {
            if let Ok(pattern) = OriginPattern::parse(&pattern) {
                prop_assert!(pattern.matches(&origin) || pattern.as_str() != "*");
            }
        }

        #[test]
        fn an_origin_matches_itself_and_no_other_port(host in "[a-z]{1,8}(\\.[a-z]{1,8}){0,3}", port in 1..65_535_u16) {
            let origin = format!("https://{host}:{port}");
            let pattern = OriginPattern::parse(&origin).unwrap();
            prop_assert!(pattern.matches(&origin));
            let other = format!("https://{host}:{}", port + 1);
            prop_assert!(!pattern.matches(&other));
        }
    }
}
