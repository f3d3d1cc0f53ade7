//! Signed HTTP requests: the query that carries the signature, what it covers, and whether it holds.
//!
//! Source: protocol.md §8.3; each tolerance there is the habit of a shipping SDK.

use std::borrow::Cow;

use md5::{Digest, Md5};
use percent_encoding::percent_decode_str;

use super::signature::SigningKey;

/// Why the signature of an HTTP request does not hold. The texts tell what is wrong with the request and
/// nothing about the secret.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SignatureError {
    /// A parameter is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A parameter stands twice, so that two readers could see two values.
    #[error("{0} is given more than once")]
    Repeated(&'static str),
    /// Another version of the signing scheme.
    #[error("auth_version is not 1.0")]
    Version,
    /// The key is not one of this app's active keys.
    #[error("auth_key is not an active key of this app")]
    UnknownKey,
    /// The timestamp is not an integer.
    #[error("auth_timestamp is not a number of seconds since 1970")]
    TimestampFormat,
    /// The request was signed too long ago, or in the future.
    #[error(
        "auth_timestamp {timestamp} is {} s {} the server's time {now}, and less than {window_secs} s are allowed \
         (limits.auth_window_secs of the app); check both clocks",
        timestamp.abs_diff(*now),
        if timestamp < now { "behind" } else { "ahead of" }
    )]
    Expired {
        /// What the request says.
        timestamp: i64,
        /// The server's clock, Unix seconds.
        now: i64,
        /// The width allowed.
        window_secs: u64,
    },
    /// `body_md5` is not that of the body.
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

/// The parameters of a query string, decoded, with keys in lower case, in the order in which they are signed: by
/// key, of one key as received. What needs no decoding, which is nearly all, is borrowed.
#[derive(Debug, Default)]
pub struct Query<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

/// The parameters that make a request a signed one.
#[derive(Clone, Copy, Debug)]
pub struct Auth<'a> {
    /// `auth_key`: which of the app's keys.
    pub key: &'a str,
    timestamp: i64,
    body_md5: Option<&'a str>,
    signature: &'a str,
}

impl Auth<'_> {
    /// The signature, as it was written.
    #[must_use]
    pub const fn signature(&self) -> &str {
        self.signature
    }
}

/// MD5 of nothing, which the Python SDK sends on GET.
const EMPTY_MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// The parameters that every signed request has, and no other meaning.
const OF_THE_SIGNATURE: [&str; 5] =
    ["auth_key", "auth_timestamp", "auth_version", "body_md5", "auth_signature"];

impl<'a> Query<'a> {
    /// Splits at `&` and the first `=`, then percent-decodes (`+` is a space).
    ///
    /// # Errors
    /// [`QueryError::NotUtf8`].
    pub fn parse(raw: &'a str) -> Result<Self, QueryError> {
        // One look at all of it instead of one at each part: hardly a query needs decoding.
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
        // Stable, so that Ruby's `k[]` keep their order, and by the list, so that `k[10]` does not come before `k[2]`.
        pairs.sort_by(|(one, _), (other, _)| list_or_key(one).cmp(list_or_key(other)));
        Ok(Self { pairs })
    }

    /// Whether there is more in it than the signature.
    #[must_use]
    pub fn has_parameters(&self) -> bool {
        self.parameters().next().is_some()
    }

    /// What there is in it beside the signature, in the order received.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        let others = self.pairs.iter().filter(|(key, _)| !OF_THE_SIGNATURE.contains(&&**key));
        others.map(|(key, value)| (&**key, &**value))
    }

    /// The value of a parameter; a list sent the way of PHP (`k[0]=a&k[1]=b`) is put together with commas.
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

    /// The parameters of the signature, each there once and of its form.
    ///
    /// # Errors
    /// [`SignatureError`] names the first that is missing, repeated or malformed.
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

    /// The text that is signed for the query: everything but the signature, PHP's lists folded, sorted by key,
    /// values as decoded.
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

    /// What is signed of a request to `path`, for the operator of an app whose signatures do not match.
    #[must_use]
    pub fn string_to_sign(&self, method: &str, path: &str) -> String {
        format!("{method}\n{path}\n{}", self.canonical())
    }

    /// Whether the request was signed with `key`, for any of the `paths` that the client may have signed: proxies
    /// and HTTP libraries encode, add and strip parts of a path after it was signed. All are tried, so that the
    /// time taken does not tell which one matched.
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
    /// Checks that the request was signed less than `window_secs` from `now` (Unix seconds), so that it cannot be
    /// replayed for ever.
    ///
    /// # Errors
    /// [`SignatureError::Expired`].
    pub fn check_time(&self, now: i64, window_secs: u64) -> Result<(), SignatureError> {
        if now.abs_diff(self.timestamp) < window_secs {
            return Ok(());
        }
        Err(SignatureError::Expired { timestamp: self.timestamp, now, window_secs })
    }

    /// Checks that `body` is what was signed.
    ///
    /// # Errors
    /// [`SignatureError::Missing`] for a body without `body_md5`, [`SignatureError::Body`] for another one.
    pub fn check_body(&self, body: &[u8]) -> Result<(), SignatureError> {
        match self.body_md5 {
            None if body.is_empty() => Ok(()),
            None => Err(SignatureError::Missing("body_md5")),
            Some(EMPTY_MD5) if body.is_empty() => Ok(()),
            Some(md5) => {
                let mut digits = [0; 32];
                hex::encode_to_slice(Md5::digest(body), &mut digits).expect("16 bytes have 32 digits");
                // What is compared here was signed and travels in the clear: no secret leaks through timing.
                if md5.as_bytes() == digits { Ok(()) } else { Err(SignatureError::Body) }
            }
        }
    }
}

/// What is before and behind the first `separator`, an ASCII character.
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

/// What a parameter is sorted by.
fn list_or_key(key: &str) -> &str {
    indexed(key).unwrap_or(key)
}

/// `k` of `k[12]`.
fn indexed(key: &str) -> Option<&str> {
    let (name, index) = key.strip_suffix(']')?.rsplit_once('[')?;
    (!index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Checks a request the way the HTTP room does, with the clock at the request's own time.
    fn check(secret: &str, method: &str, path: &str, query: &str, body: &str) -> Result<(), SignatureError> {
        let query = Query::parse(query).unwrap();
        let auth = query.auth()?;
        auth.check_time(auth.timestamp, 600)?;
        query.verify(&auth, &SigningKey::new(secret), method, [path])?;
        auth.check_body(body.as_bytes())
    }

    const A: &str = "auth_key=demo-key&auth_timestamp=1700000000&auth_version=1.0";
    const B1: &str = r#"{"name":"order.shipped","data":"{\"id\":7}","channels":["orders"]}"#;
    const B8: &str = r#"{"batch":[{"channel":"a","name":"e1","data":"1"},{"channel":"presence-b","name":"e2","data":"{}","info":"user_count"}]}"#;
    const B12: &str = "{\"name\":\"e\",\"data\":\"hé \\u20ac 😀\",\"channel\":\"c\"}";
    const H1: &str = "body_md5=c33fd8def59d170cd8b3757ae2dab6ae&auth_signature=72680f7a7b34be38b2b1d7e963b22c2e770f6f9700ae0bbf24f7823b311522f6";

    #[test]
    fn http_vectors_h1_to_h13_hold() {
        let channels = "/apps/1001/channels";
        let md5 = "body_md5=c33fd8def59d170cd8b3757ae2dab6ae";
        let empty = "body_md5=99914b932bd37a50b983c5e7c90ae93b";
        // name, method, path as signed, further query, body, signature
        let table: &[(&str, &str, &str, &str, &str, &str)] = &[
            (
                "H1",
                "POST",
                "/apps/1001/events",
                md5,
                B1,
                "72680f7a7b34be38b2b1d7e963b22c2e770f6f9700ae0bbf24f7823b311522f6",
            ),
            (
                "H2",
                "GET",
                channels,
                "info=user_count&filter_by_prefix=presence-",
                "",
                "d02df96026971211d49f80cb7705a3e06906f82290faf3916b3d3006a3a1ffa0",
            ),
            (
                "H3a",
                "GET",
                channels,
                "info%5B0%5D=user_count&info%5B1%5D=subscription_count&filter_by_prefix=presence-",
                "",
                "9a070b9d3cf4f638285e93080811e0230cf828648b07bc537398fe76edbbf233",
            ),
            (
                "H3b",
                "GET",
                channels,
                "info=user_count%2Csubscription_count&filter_by_prefix=presence-",
                "",
                "9a070b9d3cf4f638285e93080811e0230cf828648b07bc537398fe76edbbf233",
            ),
            (
                "H4",
                "GET",
                channels,
                "body_md5=d41d8cd98f00b204e9800998ecf8427e&info=user_count&filter_by_prefix=presence-",
                "",
                "7d826f9eb1fdbffec4c2d26f73f003ef8eaa8795030b6c0f8521d307a9363847",
            ),
            (
                "H5",
                "GET",
                channels,
                "filter_by_prefix=a%20b%2Bc%26d%3D%C3%A9",
                "",
                "3f4c6308ed26d93107a77f5d2d1b41125e086f140908348b9312e2dbda97964a",
            ),
            (
                "H6",
                "POST",
                "/apps/1001/users/u-42/terminate_connections",
                empty,
                "{}",
                "80eb46ec4a57f48ad21aacd5e1be3a7e3da47f22ab4950d155fd3e91b487f27f",
            ),
            (
                "H7",
                "POST",
                "/apps/1001/events",
                "name=greet&channels%5B%5D=a&channels%5B%5D=b&data=hi+there",
                "",
                "6cb72ccbfe52da120bca5dd9d354904ea7047eeb4833fbd0cdf9f575e075eab7",
            ),
            (
                "H8",
                "POST",
                "/apps/1001/batch_events",
                "body_md5=2d53529d59c783d6d84d0346bb843bce",
                B8,
                "e918a085fae34ceed776f4cc65f01e7c77542d2738725ca9ef0d1e579d718776",
            ),
            (
                "H10",
                "POST",
                "/rt/apps/1001/events",
                md5,
                B1,
                "ee8634cdbeeaa49fb98f2767eef44f5e10ed1915912ecd24853fd646cf022633",
            ),
            (
                "H11",
                "POST",
                "/apps/1001/users/user id/terminate_connections",
                empty,
                "{}",
                "dfd3c758f01372ca8f1590b0601a82c8725bfd3639a4efc5909bfec49037ddc7",
            ),
            (
                "H12",
                "POST",
                "/apps/1001/events",
                "body_md5=7f12742193240d24fa86c01c2567869f",
                B12,
                "cbd096376a5cbd791e38b6f3cd3bb256d3d395e057833627bb556eb141ba7c75",
            ),
            (
                "H13",
                "POST",
                "/users/u-42/terminate_connections",
                empty,
                "{}",
                "dd899b843841d3bcf4e5dab71e399eece1cd969a762eb7482aa7e08f7a0bbd1d",
            ),
        ];
        for (name, method, path, more, body, signature) in table {
            // The order of parameters and the place of the signature are free.
            for query in [
                format!("{A}&{more}&auth_signature={signature}"),
                format!("auth_signature={signature}&{more}&{A}"),
            ] {
                assert_eq!(check("demo-secret", method, path, &query, body), Ok(()), "{name}");
            }
        }
        let h9 = "Auth_Key=demo-key&auth_timestamp=1700000000&auth_version=1.0&INFO=subscription_count&auth_signature=089a8f0b20dfa44e80a2e8b3ef81125fbf4ff308d631b6787943a84847304eb0";
        assert_eq!(check("demo-secret", "GET", "/apps/1001/channels/private-x", h9, ""), Ok(()));
    }

    #[test]
    fn published_http_vectors_hold() {
        let vendor = "7ad3773142a6692b25b8";
        let go = "4bf35003e819bb138249";
        // secret, method, path, query, body
        let table = [
            (
                vendor,
                "POST",
                "/apps/3/events",
                "auth_key=278d425bdf160c739803&auth_timestamp=1353088179&auth_version=1.0&body_md5=ec365a775a4cd0599faeb73354201b6f&auth_signature=da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c",
                r#"{"name":"foo","channels":["project-3"],"data":"{\"some\":\"data\"}"}"#,
            ),
            (
                go,
                "GET",
                "/apps/102015/channels",
                "auth_key=d41a439c438a100756f5&auth_timestamp=1427034994&auth_version=1.0&filter_by_prefix=presence-&info=user_count&auth_signature=4d8a02edcc8a758b0162cd6da690a9a45fb8ae326a276dca1e06a0bc42796c11",
                "",
            ),
            (
                go,
                "GET",
                "/apps/102015/channels",
                "auth_key=d41a439c438a100756f5&auth_timestamp=1427036787&auth_version=1.0&auth_signature=df89248f87f6e6d028925e0b04d60f316527a865992ace6936afa91281d8bef0",
                "",
            ),
            (
                "tofu",
                "GET",
                "/event",
                "auth_key=f00d&auth_timestamp=1234567890&auth_version=1.0&body_md5=165d5e6d7ca8f73b3853ce45addf42fc&auth_signature=a650196dc427ebe837226f8565ca9232198c6d1b9455eaa72374a9dc0b620e7b",
                "example body",
            ),
            (
                "tofu",
                "GET",
                "/event",
                "auth_key=f00d&auth_timestamp=1234567890&auth_version=1.0&foo=bar&baz=123454321&auth_signature=d8bdbd31911fb7400a14fbd36fd7de053494725b64400ae5856deafe304b34a9",
                "",
            ),
            (
                "secret",
                "GET",
                "/some/obscure/api",
                "auth_key=key&auth_timestamp=1000&auth_version=1.0&body_md5=d41d8cd98f00b204e9800998ecf8427e&foo=bar&auth_signature=5c49f04a95eedc9028b1e0e8de7c2c7ad63504a0e3b5c145d2accaef6c14dbac",
                "",
            ),
            (
                "secret",
                "POST",
                "/some/path",
                "auth_key=key&auth_timestamp=1234&auth_version=1.0&query=params&go=here&auth_signature=3b237953a5ba6619875cbb2a2d43e8da9ef5824e8a2c689f6284ac85bc1ea0db",
                "",
            ),
            (
                "secret",
                "POST",
                "/some/path",
                "auth_key=key&auth_timestamp=1234&auth_version=1.0&Query=params&go=here&auth_signature=3b237953a5ba6619875cbb2a2d43e8da9ef5824e8a2c689f6284ac85bc1ea0db",
                "",
            ),
        ];
        for (secret, method, path, query, body) in table {
            assert_eq!(check(secret, method, path, query, body), Ok(()), "{path}?{query}");
        }
    }

    #[test]
    fn what_was_not_signed_is_refused() {
        use SignatureError::{Body, Mismatch, Missing, Repeated, TimestampFormat, Version};
        let events = "/apps/1001/events";
        let good = format!("{A}&{H1}");
        let check = |method: &str, path: &str, query: &str, body: &str| {
            check("demo-secret", method, path, query, body)
        };
        assert_eq!(check("POST", events, &good, B1), Ok(()));
        assert_eq!(
            check("POST", events, &good.replace("72680f7a", "72680F7A"), B1),
            Ok(()),
            "upper case decodes equal"
        );

        for name in ["auth_key", "auth_timestamp", "auth_version", "auth_signature"] {
            let without =
                good.split('&').filter(|pair| !pair.starts_with(name)).collect::<Vec<_>>().join("&");
            assert_eq!(check("POST", events, &without, B1), Err(Missing(name)));
            assert_eq!(check("POST", events, &format!("{good}&{name}=1.0"), B1), Err(Repeated(name)));
        }
        assert_eq!(check("POST", events, &format!("{good}&body_md5=x"), B1), Err(Repeated("body_md5")));
        assert_eq!(check("POST", events, &good.replace("version=1.0", "version=2.0"), B1), Err(Version));
        assert_eq!(check("POST", events, &good.replace("1700000000", "17e8"), B1), Err(TimestampFormat));
        assert_eq!(check("POST", events, &good, &B1.replace('7', "8")), Err(Body));
        assert_eq!(check("POST", events, &good, ""), Err(Body));
        assert_eq!(check("POST", events, &good.replace("c33fd8", "c33fd9"), B1), Err(Mismatch));
        assert_eq!(check("POST", events, &format!("{good}&extra=1"), B1), Err(Mismatch));
        assert_eq!(check("GET", events, &good, B1), Err(Mismatch));
        assert_eq!(check("POST", "/apps/1002/events", &good, B1), Err(Mismatch));
        for signature in ["", "726", "z2680f7a7b34be38b2b1d7e963b22c2e770f6f9700ae0bbf24f7823b311522f6"] {
            let (start, _) = good.split_once("auth_signature=").unwrap();
            assert_eq!(
                check("POST", events, &format!("{start}auth_signature={signature}"), B1),
                Err(Mismatch)
            );
        }
    }

    #[test]
    fn a_body_needs_its_md5() {
        let key = SigningKey::new("demo-secret");
        let signature = key.sign(&["POST\n/apps/1001/events\n", A]);
        let query = format!("{A}&auth_signature={signature}");
        assert_eq!(check("demo-secret", "POST", "/apps/1001/events", &query, ""), Ok(()));
        assert_eq!(
            check("demo-secret", "POST", "/apps/1001/events", &query, B1),
            Err(SignatureError::Missing("body_md5"))
        );
    }

    #[test]
    fn a_request_is_good_for_less_than_600_seconds_either_way() {
        let raw = format!("{A}&auth_signature=x");
        let query = Query::parse(&raw).unwrap();
        let auth = query.auth().unwrap();
        for skew in [-599, 0, 599] {
            assert_eq!(auth.check_time(1_700_000_000 + skew, 600), Ok(()));
        }
        for skew in [-600, 600, 1_000_000] {
            assert!(auth.check_time(1_700_000_000 + skew, 600).is_err());
        }
        let raw = raw.replace("1700000000", &i64::MIN.to_string());
        let far = Query::parse(&raw).unwrap();
        assert!(far.auth().unwrap().check_time(1_700_000_000, 600).is_err());
    }

    #[test]
    fn a_query_that_is_not_utf8_is_an_error_of_its_own() {
        assert_eq!(Query::parse("a=%ff").unwrap_err(), QueryError::NotUtf8);
        assert!(Query::parse("a=%zz&%=&&=").is_ok());
    }

    #[test]
    fn lists_are_read_in_the_ways_of_php_and_ruby() {
        let query = Query::parse("c[]=a&c[]=b&i[0]=x&i[1]=y&v=1&p[q]=z").unwrap();
        assert_eq!(query.list("c"), ["a", "b"]);
        assert_eq!(query.value("i").as_deref(), Some("x,y"));
        assert_eq!(query.value("v").as_deref(), Some("1"));
        assert_eq!(query.value("w"), None);
        assert_eq!(query.canonical(), "c[]=a&c[]=b&i=x,y&p[q]=z&v=1");
    }

    proptest! {
        #[test]
        fn what_was_signed_verifies_and_nothing_else(
            secret in "\\PC{1,20}", path in "/[a-z/]{0,20}", value in "\\PC{0,20}", other in "\\PC{0,20}",
        ) {
            let encode = |text: &str| {
                percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
            };
            let signature = SigningKey::new(&secret).sign(&["GET\n", &path, "\n", A, "&value=", &value]);
            let query = |value: &str| format!("value={}&{A}&auth_signature={signature}", encode(value));
            prop_assert_eq!(check(&secret, "GET", &path, &query(&value), ""), Ok(()));
            if other != value {
                prop_assert_eq!(check(&secret, "GET", &path, &query(&other), ""), Err(SignatureError::Mismatch));
            }
        }

        #[test]
        fn no_query_makes_the_reader_panic(raw in "\\PC{0,80}") {
            if let Ok(query) = Query::parse(&raw) {
                let _ = query.auth();
                query.canonical();
            }
        }
    }
}
