//! `PUSHER_URL`: `http(s)://KEY:SECRET@HOST[:PORT]/apps/ID`, as the SDKs of Pusher read it.
//!
//! Problems do not repeat the URL, because it holds a secret.
//!
//! Source: `Pusher.url=` in pusher-http-ruby's `client.rb` and `Pusher.forURL` in pusher-http-node's `pusher.js` (the id
//! is the last segment of the path, and the default port is that of the scheme).

use hyper::Uri;
use percent_encoding::percent_decode_str;

use super::schema;
use crate::secret::Secret;

/// The parts of the URL.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct PusherUrl {
    pub(super) id: String,
    pub(super) key: String,
    pub(super) secret: Secret,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
}

const FORM: &str = "must be a URL such as https://KEY:SECRET@ws.example.com:443/apps/ID";

impl PusherUrl {
    /// Parses a URL.
    ///
    /// # Errors
    /// The form that it must have.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.trim().parse().map_err(|_| FORM)?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(_) | None => return Err(FORM.to_owned()),
        };
        let authority = uri.authority().ok_or(FORM)?;
        let (user, host_and_port) = authority.as_str().rsplit_once('@').ok_or(FORM)?;
        let (key, secret) = user.split_once(':').ok_or(FORM)?;
        let id = uri.path().trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let decoded =
            |text| percent_decode_str(text).decode_utf8().map(|text| text.into_owned()).map_err(|_| FORM);
        let (id, key, secret) = (decoded(id)?, decoded(key)?, decoded(secret)?);
        if id.is_empty() || key.is_empty() || secret.is_empty() {
            return Err(FORM.to_owned());
        }
        let host = schema::host(uri.host().unwrap_or_default()).map_err(|_| FORM)?;
        let port = match host_and_port.strip_prefix(authority.host()).and_then(|rest| rest.strip_prefix(':'))
        {
            None | Some("") => {
                if tls {
                    443
                } else {
                    80
                }
            }
            Some(port) => port.parse().map_err(|_| FORM)?,
        };
        Ok(Self { id, key, secret: Secret::new(&secret), host, port, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_holds_credentials_and_the_address_of_the_server() {
        let table = [
            ("http://k1:hunter2@api.pusherapp.com/apps/42", ("42", "k1", "api.pusherapp.com", 80, false)),
            ("https://k1:hunter2@ws.test/apps/42", ("42", "k1", "ws.test", 443, true)),
            (" http://k1:hunter2@localhost:6001/apps/42/ ", ("42", "k1", "localhost", 6001, false)),
            ("http://k1:hunter%32@[::1]:6001/rt/apps/app-id", ("app-id", "k1", "::1", 6001, false)),
        ];
        for (text, (id, key, host, port, tls)) in table {
            let (id, key, host) = (id.to_owned(), key.to_owned(), host.to_owned());
            let secret = Secret::new("hunter2");
            assert_eq!(PusherUrl::parse(text), Ok(PusherUrl { id, key, secret, host, port, tls }), "{text}");
        }
    }

    #[test]
    fn an_invalid_url_is_rejected_without_repeating_it() {
        for text in [
            "hunter2",
            "ftp://k:hunter2@h/apps/1",
            "https://ws.test/apps/1",
            "https://hunter2@ws.test/apps/1",
            "https://k:@ws.test/apps/1",
            "https://:hunter2@ws.test/apps/1",
            "https://k:hunter2@ws.test",
            "https://k:hunter2@ws.test/",
            "https://k:hunter2@/apps/1",
            "https://k:hunter2@h:99999/apps/1",
            "https://k:%ff@h/apps/1",
        ] {
            assert_eq!(PusherUrl::parse(text), Err(FORM.to_owned()), "{text}");
        }
    }
}
