//! Which origins a browser may connect from.

/// A pattern over the `Origin` header: a host (`app.example.com`), a host with wildcards (`*.example.com`), or a
/// whole origin (`https://app.example.com:8443`). `*` stands for any characters but `/`. Case does not count.
///
/// Reverb matches hosts, Sockudo whole origins; a pattern with `://` is matched against the whole origin, one
/// without against the host, and against host and port where it names a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OriginPattern(Box<str>);

/// Why a text is not a pattern.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OriginPatternError {
    /// Nothing to match.
    #[error("an origin is empty")]
    Empty,
    /// A path, a space or a control character, which no origin has.
    #[error("an origin is a host or scheme://host[:port], without a path")]
    NotAnOrigin,
}

impl OriginPattern {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`OriginPatternError`].
    pub fn parse(text: &str) -> Result<Self, OriginPatternError> {
        if text.is_empty() {
            return Err(OriginPatternError::Empty);
        }
        let host = text.split_once("://").map_or(text, |(_, host)| host);
        if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@".contains(&byte)) {
            return Err(OriginPatternError::NotAnOrigin);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// The pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `origin`, as a browser sends it, is meant.
    #[must_use]
    pub fn matches(&self, origin: &str) -> bool {
        let origin = origin.to_ascii_lowercase();
        if &*self.0 == "*" {
            return true;
        }
        if self.0.contains("://") {
            return glob(self.0.as_bytes(), origin.as_bytes());
        }
        let authority = origin.split_once("://").map_or(&*origin, |(_, authority)| authority);
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
            _ => authority,
        };
        glob(self.0.as_bytes(), host.as_bytes()) || glob(self.0.as_bytes(), authority.as_bytes())
    }
}

/// `*` is any run of bytes but `/`. Linear in practice: one place to return to, as no pattern needs more.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((star_p, star_t)) = star
            && text[star_t] != b'/'
        {
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
    use super::*;

    #[test]
    fn patterns_match_the_origins_they_name_and_no_others() {
        // pattern, origin, matches
        let table = [
            ("*", "null", true),
            ("*", "https://any.example", true),
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
            ("https://*.example.com", "https://a.example.com", true),
            ("https://*.example.com", "http://a.example.com", false),
            ("https://*.example.com", "https://evil.test/.example.com", false),
            ("https://example.com:8443", "https://example.com", false),
            ("[::1]", "http://[::1]:3000", true),
            ("a*b*c", "aXbYbZc", true),
            ("example.com", "", false),
        ];
        for (pattern, origin, expected) in table {
            assert_eq!(
                OriginPattern::parse(pattern).unwrap().matches(origin),
                expected,
                "{pattern} {origin}"
            );
        }
    }

    #[test]
    fn what_is_no_origin_is_no_pattern() {
        for text in ["https://a.test/path", "a b", "https://", "a/b", "ä.test"] {
            assert_eq!(OriginPattern::parse(text), Err(OriginPatternError::NotAnOrigin), "{text}");
        }
        assert_eq!(OriginPattern::parse(""), Err(OriginPatternError::Empty));
    }
}
