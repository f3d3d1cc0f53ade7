//! Checks of the settings of Redis. Each returns the value in its normal form, or an error that follows the key.

use serde_json::Value;

use crate::cluster::redis::options::Server;
use crate::config::schema;
use crate::config::setting::{TablesField, parse_json_list, toml_string};

/// Replaces a secret in output.
pub(super) const MASK: &str = "***";

/// Longest password, the same as for the secret of an app.
pub(super) const PASSWORD_BYTES_MAX: usize = 1024;

/// Longest prefix. Every key and every channel in Redis begins with it.
pub(super) const PREFIX_BYTES_MAX: usize = 200;

/// Longest path of a Unix socket. Source: unix(7), `sun_path`, without its terminating zero.
pub(super) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The mask of a password.
pub(in crate::config) fn masked(_: &str) -> String {
    MASK.to_owned()
}

/// An address or a name, with `tls://` in front if it uses TLS; or the path of a Unix socket.
pub(in crate::config) fn host(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "unix" if rest.starts_with('/') => return socket_path(rest),
        "" if rest.starts_with('/') => return socket_path(rest),
        "" | "tcp" | "redis" => "",
        "tls" | "ssl" | "rediss" => "tls://",
        _ => {
            return Err(
                "must be a host name or an address; tls://, tcp:// or unix:// may be in front".to_owned()
            );
        }
    };
    let host = schema::host(rest).map_err(|_| {
        "must be a host name or an address without a port, or the path of a Unix socket".to_owned()
    })?;
    Ok(format!("{scheme}{host}"))
}

/// Empty, or a user name.
pub(in crate::config) fn username(text: &str) -> Result<String, String> {
    if text == MASK {
        return Err("is the mask of `pusherd config show`, not a name".to_owned());
    }
    let valid = |char: char| !char.is_whitespace() && !char.is_control();
    if text.len() > 255 || !text.chars().all(valid) {
        return Err("must be at most 255 bytes without spaces and control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// Empty, or a password.
pub(in crate::config) fn password(text: &str) -> Result<String, String> {
    match text {
        MASK => Err("is the mask of `pusherd config show`, not a password".to_owned()),
        text if text.len() > PASSWORD_BYTES_MAX => Err(format!("is longer than {PASSWORD_BYTES_MAX} bytes")),
        text => Ok(text.to_owned()),
    }
}

/// The name of a master. Source: Redis' `sentinel.conf`.
pub(in crate::config) fn master(text: &str) -> Result<String, String> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if (1..=255).contains(&text.len()) && text.bytes().all(valid) {
        return Ok(text.to_owned());
    }
    Err("must be 1 to 255 of A-Z a-z 0-9 . - _".to_owned())
}

/// The prefix of keys. Braces are hash tags: they would put all keys of a Redis Cluster on one node, or separate keys that
/// belong together.
pub(in crate::config) fn prefix(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > PREFIX_BYTES_MAX {
        return Err(format!("must be 1 to {PREFIX_BYTES_MAX} bytes, not {}", text.len()));
    }
    if text.chars().any(|char| char.is_control() || "{}".contains(char)) {
        return Err("must not contain { } and control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// The path of a Unix socket.
pub(super) fn socket_path(path: &str) -> Result<String, String> {
    if path.len() < 2 || path.len() > SOCKET_PATH_BYTES_MAX || path.chars().any(char::is_control) {
        return Err(format!("must be the path of a Unix socket, {SOCKET_PATH_BYTES_MAX} bytes at most"));
    }
    Ok(path.to_owned())
}

/// A port in a URL or after a host.
pub(super) fn port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()));
    port.ok_or_else(|| "has a port that is not 1 to 65535".to_owned())
}

/// Servers are written `host:port`, separated by commas in a variable; or as tables with `host` and `port`, as in Soketi.
impl TablesField for Vec<Server> {
    fn items_of_text(&self, text: &str) -> Result<Vec<Value>, String> {
        // `[::1]:6379` is not JSON.
        let after_bracket = text.trim_start().strip_prefix('[').map(str::trim_start);
        if after_bracket.is_some_and(|text| text.starts_with(['{', '"', ']'])) {
            return parse_json_list(text);
        }
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        Ok(items.map(Value::from).collect())
    }

    fn parse(&mut self, items: Vec<Value>) -> Result<Vec<String>, String> {
        let (mut servers, mut wrong) = (Vec::with_capacity(items.len()), Vec::new());
        for (at, item) in items.iter().enumerate() {
            match server(item) {
                Some(server) => servers.push(server),
                None => wrong.push(format!("[{at}]: must be host:port, such as 10.0.0.1:6379 or [::1]:6379")),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong.join("; "));
        }
        *self = servers;
        Ok(Vec::new())
    }

    fn show(&self) -> String {
        let shown = |Server { host, port }: &Server| {
            toml_string(&if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            })
        };
        format!("[{}]", self.iter().map(shown).collect::<Vec<_>>().join(", "))
    }
}

fn server(item: &Value) -> Option<Server> {
    let (host, port) = if let Some(text) = item.as_str() {
        let (host, port) = text.rsplit_once(':')?;
        // An IPv6 address without brackets is ambiguous.
        if host.contains(':') && !host.starts_with('[') {
            return None;
        }
        (host, self::port(port).ok()?)
    } else {
        let port = item.get("port")?;
        let port =
            port.as_u64().map_or_else(|| port.as_str().map(str::to_owned), |port| Some(port.to_string()))?;
        (item.get("host")?.as_str()?, self::port(&port).ok()?)
    };
    schema::host(host).ok().map(|host| Server { host, port })
}
