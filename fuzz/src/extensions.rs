//! The negotiation of `Sec-WebSocket-Extensions` against a naive parser for offers without quotes. The input is the value of
//! the header.

use pusherd::protocol::wire::deflate::negotiate;

/// See the module.
pub fn holds(data: &[u8]) {
    let Ok(value) = std::str::from_utf8(data) else { return };
    let answer = negotiate([value]);
    assert_eq!(negotiate(["", value, value]), answer, "the first offer that is good counts");
    assert!(answer.is_none() || value.contains("permessage-deflate"));
    if !value.contains('"') {
        assert_eq!(
            answer.map(|answer| answer.contains("server_max_window_bits=15")),
            expected(value),
            "{value:?}"
        );
    }
    // A quoted value of another extension is not an offer.
    let quoted = format!("x; y=\"{}\"", value.replace(['\\', '"'], ""));
    assert_eq!(negotiate([&*quoted]), None);
}

/// Whether the response has the window; `None` if no offer is accepted. Source: RFC 7692 §5.1, §7.1.
fn expected(value: &str) -> Option<bool> {
    for offer in value.split(',').map(|offer| offer.trim_matches(is_space)) {
        if offer.is_empty() {
            continue;
        }
        let mut parts = offer.split(';').map(|part| part.trim_matches(is_space));
        let name = token(parts.next().unwrap())?;
        let mut seen: Vec<(&str, Option<&str>)> = Vec::new();
        for part in parts {
            seen.push(match part.split_once('=') {
                None => (token(part)?, None),
                Some((name, value)) => {
                    (token(name.trim_matches(is_space))?, Some(token(value.trim_matches(is_space))?))
                }
            });
        }
        let once = seen.iter().all(|(name, _)| seen.iter().filter(|(other, _)| other == name).count() == 1);
        let known = seen.iter().all(|parameter| match parameter {
            (
                "server_no_context_takeover" | "client_no_context_takeover" | "client_max_window_bits",
                None,
            ) => true,
            ("client_max_window_bits", Some(bits)) => (8..=15).any(|allowed| allowed.to_string() == *bits),
            ("server_max_window_bits", Some(bits)) => *bits == "15",
            _ => false,
        });
        if name == "permessage-deflate" && once && known {
            return Some(seen.iter().any(|(name, _)| *name == "server_max_window_bits"));
        }
    }
    None
}

fn is_space(char: char) -> bool {
    char.is_ascii_whitespace()
}

fn token(text: &str) -> Option<&str> {
    let allowed = |char: char| char.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(char);
    (!text.is_empty() && text.chars().all(allowed)).then_some(text)
}
