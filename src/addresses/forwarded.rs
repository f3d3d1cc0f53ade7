//! The headers in which proxies name a client.

use std::iter;
use std::net::{IpAddr, SocketAddr};

/// The parts of `text` between the separators outside quoted strings, the last one first.
///
/// It reads from the end, where the nearest proxy wrote. Text that a client wrote before that, with unbalanced quotes,
/// does not change the last part.
pub(super) fn rsplit_unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    iter::from_fn(move || {
        let text = rest?;
        let mut quoted = false;
        let separates = |&(at, char): &(usize, char)| {
            if char == '"' && !(quoted && is_escaped(text, at)) {
                quoted = !quoted;
            }
            char == separator && !quoted
        };
        let Some((at, _)) = text.char_indices().rev().find(separates) else { return rest.take() };
        rest = Some(&text[..at]);
        Some(&text[at + separator.len_utf8()..])
    })
}

/// The address in an element of `Forwarded`.
pub(super) fn parse_for(element: &str) -> Option<IpAddr> {
    parse_node(parameter(element, "for")?)
}

/// The value of a parameter in an element of `Forwarded`. `None` if it is missing, or if the element is ambiguous: with
/// two of it, or with unbalanced quotes.
pub(super) fn parameter<'e>(element: &'e str, parameter: &str) -> Option<&'e str> {
    let mut found = None;
    for pair in rsplit_unquoted(element, ';').filter(|pair| !pair.trim().is_empty()) {
        let (name, value) = pair.split_once('=')?;
        let value = unquote(value.trim())?;
        let is_name = !name.contains('"');
        let is_second = name.trim().eq_ignore_ascii_case(parameter) && found.replace(value).is_some();
        if !is_name || is_second {
            return None;
        }
    }
    found
}

/// The content of a quoted string, with its escapes; an unquoted value, if it contains no quote.
fn unquote(value: &str) -> Option<&str> {
    let Some(quoted) = value.strip_prefix('"') else { return (!value.contains('"')).then_some(value) };
    let (end, _) = quoted.match_indices('"').find(|(at, _)| !is_escaped(quoted, *at))?;
    (end + 1 == quoted.len()).then(|| &quoted[..end])
}

/// Whether the character at `at` is escaped by a backslash that is not escaped itself.
fn is_escaped(text: &str, at: usize) -> bool {
    text[..at].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

/// An address as proxies write it: bare, in brackets, or with a port.
pub(super) fn parse_node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}
