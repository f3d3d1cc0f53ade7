//! Signed HTTP requests: the query string with the signature, the text that the signature covers, and its verification.
//!
//! Source: protocol.md §8.3; each tolerance there exists because an SDK needs it.

use std::borrow::Cow;

use md5::{Digest, Md5};
use percent_encoding::percent_decode_str;

use super::signature::SigningKey;

/// Why the signature of an HTTP request is not valid. The texts describe the request and reveal nothing about the secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SignatureError {
    /// A parameter is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A parameter occurs twice, so that two parsers could see two values.
    #[error("{0} is given more than once")]
    Repeated(&'static str),
    /// An unsupported version of the signing scheme.
    #[error("auth_version is not 1.0")]
    Version,
    /// The key is not one of this app's active keys.
    #[error("auth_key is not an active key of this app")]
    UnknownKey,
    /// The timestamp is not an integer.
    #[error("auth_timestamp is not a number of seconds since 1970")]
    TimestampFormat,
    /// The request was signed too long ago, or too far in the future.
    #[error(
        "auth_timestamp {timestamp} is {} s {} the server's time {now}, and less than {window_secs} s are allowed \
         (limits.auth_window_secs of the app); check both clocks",
        timestamp.abs_diff(*now),
        if timestamp < now { "behind" } else { "ahead of" }
    )]
    Expired {
        /// The time of the request, Unix seconds.
        timestamp: i64,
        /// The time of the server, Unix seconds.
        now: i64,
        /// The difference must be less than this.
        window_secs: u64,
    },
    /// `body_md5` is not the MD5 of the body.
    #[error("body_md5 is not the MD5 of the body received")]
    Body,
    /// The signature is not that of the request.
    #[error("auth_signature does not match the request")]
    Mismatch,
}

/// Why a query string cannot be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum QueryError {
    /// The percent-decoded text is not UTF-8.
    #[error("the query string is not UTF-8")]
    NotUtf8,
}

/// The parameters of a query string, decoded, with keys in lower case, in the order in which they are signed: sorted by
/// key, values of one key in the order received. Text that needs no decoding, which is nearly all, is borrowed.
#[derive(Debug, Default)]
pub struct Query<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

/// The parameters of the signature.
#[derive(Clone, Copy, Debug)]
pub struct Auth<'a> {
    /// `auth_key`: one of the keys of the app.
    pub key: &'a str,
    timestamp: i64,
    body_md5: Option<&'a str>,
    signature: &'a str,
}

impl Auth<'_> {
    /// The signature as received.
    #[must_use]
    pub const fn signature(&self) -> &str {
        self.signature
    }
}

/// MD5 of an empty body, which the Python SDK sends on GET.
const EMPTY_MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// The parameters of the signature. They are not parameters of the request itself.
const SIGNATURE_PARAMETERS: [&str; 5] =
    ["auth_key", "auth_timestamp", "auth_version", "body_md5", "auth_signature"];

impl<'a> Query<'a> {
    /// Splits at `&` and the first `=`, then percent-decodes (`+` is a space).
    ///
    /// # Errors
    /// [`QueryError::NotUtf8`].
    pub fn parse(raw: &'a str) -> Result<Self, QueryError> {
        // One search over the whole query instead of one for each part: hardly a query needs decoding.
        let is_plain = memchr::memchr2(b'%', b'+', raw.as_bytes()).is_none();
        let decode = |text| if is_plain { Ok(Cow::Borrowed(text)) } else { decode(text) };
        let mut pairs = Vec::with_capacity(8);
        let mut rest = raw;
        while !rest.is_empty() {
            let (pair, after) = split_at_byte(rest, b'&');
            rest = after;
            if pair.is_empty() {
                continue;
            }
            let (key, value) = split_at_byte(pair, b'=');
            let mut key = decode(key)?;
            if key.bytes().any(|byte| byte.is_ascii_uppercase()) {
                key.to_mut().make_ascii_lowercase();
            }
            pairs.push((key, decode(value)?));
        }
        // A stable sort keeps the order of Ruby's `k[]`. Sorting by the list's name keeps `k[2]` before `k[10]`.
        pairs.sort_by(|(one, _), (other, _)| list_or_key(one).cmp(list_or_key(other)));
        Ok(Self { pairs })
    }

    /// Whether the query has parameters besides the signature.
    #[must_use]
    pub fn has_parameters(&self) -> bool {
        self.parameters().next().is_some()
    }

    /// The parameters besides the signature, sorted by key.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        let others = self.pairs.iter().filter(|(key, _)| !SIGNATURE_PARAMETERS.contains(&&**key));
        others.map(|(key, value)| (&**key, &**value))
    }

    /// The value of a parameter. A list in PHP's form (`k[0]=a&k[1]=b`) is joined with commas.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<Cow<'_, str>> {
        if let Some((_, value)) = self.pairs.iter().find(|(key, _)| key == name) {
            return Some(Cow::Borrowed(value));
        }
        let items = self.list(name);
        if items.is_empty() { None } else { Some(Cow::Owned(items.join(","))) }
    }

    /// The values of a list parameter: `k[]=a&k[]=b` or `k[0]=a&k[1]=b`.
    #[must_use]
    pub fn list(&self, name: &str) -> Vec<&str> {
        let of_list = |key: &str| key.strip_suffix("[]") == Some(name) || indexed(key) == Some(name);
        self.pairs.iter().filter(|(key, _)| of_list(key)).map(|(_, value)| &**value).collect()
    }

    fn once(&self, name: &'static str) -> Result<Option<&str>, SignatureError> {
        let mut values = self.pairs.iter().filter(|(key, _)| key == name);
        let value = values.next().map(|(_, value)| &**value);
        if values.next().is_some() { Err(SignatureError::Repeated(name)) } else { Ok(value) }
    }

    /// The parameters of the signature. Each must occur exactly once and be well-formed.
    ///
    /// # Errors
    /// [`SignatureError`] names the first parameter that is missing, repeated or malformed.
    pub fn auth(&self) -> Result<Auth<'_>, SignatureError> {
        let required = |name| self.once(name)?.ok_or(SignatureError::Missing(name));
        if required("auth_version")? != "1.0" {
            return Err(SignatureError::Version);
        }
        Ok(Auth {
            key: required("auth_key")?,
            timestamp: required("auth_timestamp")?.parse().map_err(|_| SignatureError::TimestampFormat)?,
            body_md5: self.once("body_md5")?,
            signature: required("auth_signature")?,
        })
    }

    /// The part of the signed text for the query: all parameters but the signature, PHP's lists joined, sorted by key,
    /// values decoded.
    fn canonical(&self) -> String {
        let mut canonical = String::with_capacity(256);
        let mut list_before = None;
        for (key, value) in self.pairs.iter().filter(|(key, _)| key != "auth_signature") {
            let list = indexed(key);
            if list.is_some() && list == list_before {
                canonical.push(',');
            } else {
                if !canonical.is_empty() {
                    canonical.push('&');
                }
                canonical.push_str(list.unwrap_or(key));
                canonical.push('=');
            }
            canonical.push_str(value);
            list_before = list;
        }
        canonical
    }

    /// The text to sign for a request to `path`, to show the operator of an app whose signatures do not match.
    #[must_use]
    pub fn string_to_sign(&self, method: &str, path: &str) -> String {
        format!("{method}\n{path}\n{}", self.canonical())
    }

    /// Verifies that the request was signed with `key` for one of `paths`: proxies and HTTP libraries encode, add and
    /// strip parts of a path after it was signed. All paths are tried, so that the time taken does not reveal which one
    /// matched.
    ///
    /// # Errors
    /// [`SignatureError::Mismatch`].
    pub fn verify<'p>(
        &self,
        auth: &Auth<'_>,
        key: &SigningKey,
        method: &str,
        paths: impl IntoIterator<Item = &'p str>,
    ) -> Result<(), SignatureError> {
        let query = self.canonical();
        let mut matched = false;
        for path in paths {
            matched |= key.verifies(auth.signature, &[method, "\n", path, "\n", &query]);
        }
        if matched { Ok(()) } else { Err(SignatureError::Mismatch) }
    }
}

impl Auth<'_> {
    /// Checks that the request was signed less than `window_secs` before or after `now` (Unix seconds). This limits the
    /// time in which a request can be replayed.
    ///
    /// # Errors
    /// [`SignatureError::Expired`].
    pub fn check_time(&self, now: i64, window_secs: u64) -> Result<(), SignatureError> {
        if now.abs_diff(self.timestamp) < window_secs {
            return Ok(());
        }
        Err(SignatureError::Expired { timestamp: self.timestamp, now, window_secs })
    }

    /// Checks that `body` is the signed body.
    ///
    /// # Errors
    /// [`SignatureError::Missing`] for a body without `body_md5`, [`SignatureError::Body`] for a wrong one.
    pub fn check_body(&self, body: &[u8]) -> Result<(), SignatureError> {
        match self.body_md5 {
            None if body.is_empty() => Ok(()),
            None => Err(SignatureError::Missing("body_md5")),
            Some(EMPTY_MD5) if body.is_empty() => Ok(()),
            Some(md5) => {
                let mut digits = [0; 32];
                hex::encode_to_slice(Md5::digest(body), &mut digits).expect("16 bytes have 32 digits");
                // Both sides are public, so the comparison need not take constant time.
                if md5.as_bytes() == digits { Ok(()) } else { Err(SignatureError::Body) }
            }
        }
    }
}

/// Splits at the first `separator`, an ASCII character.
fn split_at_byte(text: &str, separator: u8) -> (&str, &str) {
    match memchr::memchr(separator, text.as_bytes()) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, ""),
    }
}

fn decode(text: &str) -> Result<Cow<'_, str>, QueryError> {
    let spaced = text.replace('+', " ");
    match percent_decode_str(&spaced).decode_utf8() {
        Ok(text) => Ok(Cow::Owned(text.into_owned())),
        Err(_) => Err(QueryError::NotUtf8),
    }
}

/// The sort key of a parameter.
fn list_or_key(key: &str) -> &str {
    indexed(key).unwrap_or(key)
}

/// `k` of `k[12]`.
fn indexed(key: &str) -> Option<&str> {
    let (name, index) = key.strip_suffix(']')?.rsplit_once('[')?;
    (!index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

#[cfg(test)]
mod tests;
