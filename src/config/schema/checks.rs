//! Checks of settings that are texts. Each returns the text in its normal form, or an error that follows the key.

use std::net::IpAddr;

/// An address, with or without brackets, or a host name, without a port.
pub(in crate::config) fn host(text: &str) -> Result<String, String> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    let label = |label: &str| {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(valid)
    };
    // A name that ends in a number is a mistyped address.
    let ends_in_number = text.rsplit('.').next().is_some_and(|last| last.parse::<u64>().is_ok());
    if text.split('.').all(label) && !ends_in_number && text.len() <= 253 {
        return Ok(text.to_ascii_lowercase());
    }
    Err("must be an address or a host name, without scheme and port".to_owned())
}

/// Empty, or the path of a file. The file is read when all settings are known.
pub(super) fn path(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// Empty, or a path that begins with a slash and does not end with one.
pub(super) fn path_prefix(text: &str) -> Result<String, String> {
    let path = text.trim().trim_matches('/');
    if path.is_empty() {
        return Ok(String::new());
    }
    let segment = |segment: &str| {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(valid)
    };
    if !path.split('/').all(segment) {
        return Err("must be a path of A-Z a-z 0-9 - . _ ~ and single slashes, such as \"/rt\"".to_owned());
    }
    if ["app", "apps"].contains(&path.split('/').next().unwrap_or_default()) {
        return Err("must not begin with /app or /apps, which are paths of the protocol".to_owned());
    }
    Ok(format!("/{path}"))
}

/// Punctuation that is no separator in signatures and JSON.
pub(super) fn extra_chars(text: &str) -> Result<String, String> {
    let valid = |char: char| char.is_ascii_punctuation() && !":#\"\\".contains(char);
    if text.chars().all(valid) {
        return Ok(text.to_owned());
    }
    Err("must be ASCII punctuation, and none of : # \" \\".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_or_a_name_without_a_port() {
        let table = [
            ("0.0.0.0", Some("0.0.0.0")),
            ("::1", Some("::1")),
            ("[::1]", Some("::1")),
            ("[::]", Some("::")),
            (" localhost ", Some("localhost")),
            ("WS.Example.com", Some("ws.example.com")),
            ("my_host-2", Some("my_host-2")),
            ("ws2", Some("ws2")),
            ("", None),
            ("127.0.0.1:6001", None),
            ("[::1]:6001", None),
            ("http://localhost", None),
            ("300.1.1.1", None),
            ("127.1", None),
            ("a..b", None),
            ("a b", None),
            ("*", None),
            ("host:6001", None),
        ];
        for (text, expected) in table {
            assert_eq!(host(text).ok().as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_path_prefix_begins_with_a_slash_and_does_not_end_with_one() {
        let table = [
            ("", Some("")),
            ("/", Some("")),
            ("rt", Some("/rt")),
            ("/rt", Some("/rt")),
            ("/rt/", Some("/rt")),
            ("/a/b-c.d_e~f", Some("/a/b-c.d_e~f")),
            ("/a//b", None),
            ("/a/../b", None),
            ("/a b", None),
            ("/é", None),
            ("/a%20", None),
            ("/app", None),
            ("/apps/x", None),
            ("/application", Some("/application")),
            ("http://x", None),
        ];
        for (text, expected) in table {
            assert_eq!(path_prefix(text).ok().as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn extra_characters_are_punctuation_that_is_no_separator() {
        for text in ["", "/", "!$%&'()*+/<>?[]^`{|}~"] {
            assert_eq!(extra_chars(text).as_deref(), Ok(text));
        }
        for text in [":", "#", "\"", "\\", "a", " ", "é", "/:"] {
            assert!(extra_chars(text).is_err(), "{text:?}");
        }
    }
}
