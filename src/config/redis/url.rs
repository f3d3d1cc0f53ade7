//! URLs of Redis. Problems do not repeat them, because they may hold a password.

use hyper::Uri;
use percent_encoding::percent_decode_str;

use super::checks::{MASK, password, port, socket_path, username};
use crate::config::schema;
use crate::secret::Secret;

/// The parts of a URL of Redis.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Url {
    pub(super) host: String,
    pub(super) port: Option<u16>,
    pub(super) tls: bool,
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) database: Option<u32>,
    /// The names of unknown parameters.
    pub(super) unread: Vec<String>,
}

/// The problem with a text that is not a URL.
pub(super) const NOT_A_URL: &str = "must be a URL such as redis://user:password@host:6379/0, with special characters in a password written %xx";

impl Url {
    /// Parses a URL.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").ok_or(NOT_A_URL)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "redis" | "tcp" => false,
            "rediss" | "tls" => true,
            "unix" => return Self::parse_unix(rest),
            _ => return Err("must begin with redis://, rediss://, tcp://, tls:// or unix://".to_owned()),
        };
        let uri: Uri = text.parse().map_err(|_| NOT_A_URL)?;
        let authority = uri.authority().ok_or("has no host")?.as_str();
        // `Uri` drops the fragment.
        if text.contains('#') {
            return Err("must not contain #; in a password it is written %23".to_owned());
        }
        let (user, host_and_port) = authority.rsplit_once('@').unwrap_or(("", authority));
        let end_of_host = host_and_port
            .rfind(']')
            .map_or_else(|| host_and_port.find(':').unwrap_or(host_and_port.len()), |at| at + 1);
        let (host, port) = host_and_port.split_at(end_of_host);
        if host.is_empty() {
            return Err("has no host; special characters in a password are written %xx".to_owned());
        }
        let host = schema::host(host).map_err(|_| "has a host that is neither an address nor a name")?;
        let port = match port {
            "" => None,
            port => Some(self::port(port.strip_prefix(':').ok_or(NOT_A_URL)?)?),
        };
        let (username, password) = credentials(user)?;
        let path_database = match uri.path().trim_matches('/') {
            "" => None,
            path => Some(database(path)?),
        };
        let (database, unread) = parse_query(uri.query(), path_database)?;
        Ok(Self { host, port, tls, username, password, database, unread })
    }

    /// `unix://user:password@/path?database=0`, without the scheme.
    fn parse_unix(rest: &str) -> Result<Self, String> {
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (user, path) = rest.split_at(rest.find('/').ok_or("has no path of a socket after unix://")?);
        let user = match user {
            "" => "",
            user => user.strip_suffix('@').ok_or("must have no host: the path follows unix:// at once")?,
        };
        let host = socket_path(&decoded(path)?)?;
        let (username, password) = credentials(user)?;
        let (database, unread) = parse_query(query, None)?;
        Ok(Self { host, port: None, tls: false, username, password, database, unread })
    }
}

fn credentials(user: &str) -> Result<(Option<String>, Option<Secret>), String> {
    if user.split(':').any(|part| part == MASK) {
        return Err("has the mask of `pusherd config show` for user and password".to_owned());
    }
    let (name, secret) = user.split_once(':').unwrap_or((user, ""));
    let name = username(&decoded(name)?).map_err(|what| format!("has a user that {what}"))?;
    let secret = password(&decoded(secret)?).map_err(|what| format!("has a password that {what}"))?;
    let filled = |text: String| (!text.is_empty()).then_some(text);
    Ok((filled(name), filled(secret).map(|secret| Secret::new(&secret))))
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| "is not UTF-8 text after %xx is decoded".to_owned())
}

fn database(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| *number <= 65_535);
    let number = number.filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    number.ok_or_else(|| "has a database that is not a number of 0 to 65535, as in redis://host/0".to_owned())
}

/// The database, which the query may contain instead of the path, and the names of all other parameters. Laravel passes
/// those to its Redis client, so a URL that is shared with Laravel may have any.
fn parse_query(
    query: Option<&str>,
    path_database: Option<u32>,
) -> Result<(Option<u32>, Vec<String>), String> {
    let (mut found, mut unread) = (path_database, Vec::new());
    for parameter in query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty()) {
        let number = match parameter.split_once('=') {
            Some(("database" | "db", number)) => database(number)?,
            other => {
                // A text that is not a name may be the end of a password.
                let is_name =
                    |name: &&str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
                let name = other.map(|(name, _)| name).filter(is_name);
                unread.push(name.map_or("one that has no name".to_owned(), str::to_owned));
                continue;
            }
        };
        if found.replace(number).is_some_and(|before| before != number) {
            return Err("names two databases".to_owned());
        }
    }
    Ok((found, unread))
}

/// Empty, or a URL of Redis.
pub(in crate::config) fn url(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() { Ok(String::new()) } else { Url::parse(text).map(|_| text.to_owned()) }
}

/// A valid URL with user and password masked.
pub(in crate::config) fn masked_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{MASK}@{host}{path}"),
        None => url.to_owned(),
    }
}
