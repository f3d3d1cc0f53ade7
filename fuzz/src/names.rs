//! Names of channels, events and users, and socket ids: validity and kind, against a table. The first byte of the input
//! selects the rules of the app, the rest is the text.

use pusherd::protocol::{Access, ChannelName, ChannelNameError, EventName, NameRules, SocketId, UserId};

use super::naive;

/// Prefixes with their access and whether the channel is a cache channel; the longest match counts. Source: protocol.md
/// §3.2.
const KINDS: [(&str, Access, bool); 9] = [
    ("#server-to-user-", Access::User, false),
    ("private-encrypted-cache-", Access::Encrypted, true),
    ("private-encrypted-", Access::Encrypted, false),
    ("private-cache-", Access::Private, true),
    ("private-", Access::Private, false),
    ("presence-cache-", Access::Presence, true),
    ("presence-", Access::Presence, false),
    ("cache-", Access::Public, true),
    ("", Access::Public, false),
];

/// See the module.
pub fn holds(data: &[u8]) {
    let [rules, rest @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let extra_chars = if rules & 1 == 0 { "" } else { "/:!" };
    let bytes_max = if rules & 2 == 0 { 200 } else { 20 };
    channel(text, &NameRules { bytes_max, extra_chars: extra_chars.into() });

    let is_event = naive::is_event_name(text, bytes_max);
    assert_eq!(EventName::parse(text, bytes_max).is_ok(), is_event, "{text:?}");

    let digits = |part: &str| !part.is_empty() && part.chars().all(|char| char.is_ascii_digit());
    let parts: Vec<_> = text.split('.').collect();
    let is_id = matches!(parts[..], [high, low] if digits(high) && digits(low));
    assert_eq!(SocketId::is_well_formed(text), is_id, "{text:?}");
    match SocketId::parse(text) {
        Some(id) => assert!(is_id && id.to_string() == text, "{text:?}"),
        None => assert!(
            !is_id
                || parts
                    .iter()
                    .any(|part| part.parse::<u32>().map(|n| n.to_string()).ok().as_deref() != Some(part))
        ),
    }

    let user = UserId::parse(text, bytes_max);
    assert_eq!(user.is_ok(), !text.is_empty() && text.chars().count() <= bytes_max, "{text:?}");
    if let Ok(user) = user.and_then(UserId::with_channel) {
        let own = format!("#server-to-user-{user}");
        assert!(naive::is_channel_name(&own, usize::MAX), "{own:?}");
        let rules = NameRules { bytes_max: 1000, ..NameRules::default() };
        assert!(ChannelName::parse(&own, &rules).unwrap().belongs_to(&user));
        assert!(!ChannelName::parse(&format!("{own}0"), &rules).unwrap().belongs_to(&user));
    }
}

fn channel(text: &str, rules: &NameRules) {
    let name = match ChannelName::parse(text, rules) {
        Ok(name) => name,
        Err(ChannelNameError::Empty) => return assert!(text.is_empty()),
        Err(ChannelNameError::TooLong { bytes, bytes_max }) => {
            return assert!(bytes == text.len() && bytes > bytes_max && bytes_max == rules.bytes_max);
        }
        Err(ChannelNameError::Alphabet) => {
            let plain = text.replace(|char| char != ':' && rules.extra_chars.contains(char), "x");
            return assert!(!naive::is_channel_name(&plain, rules.bytes_max), "{text:?}");
        }
    };
    let plain = text.replace(|char| char != ':' && rules.extra_chars.contains(char), "x");
    assert!(naive::is_channel_name(&plain, rules.bytes_max), "{text:?}");
    let (_, access, cached) = KINDS.iter().find(|(prefix, ..)| text.starts_with(prefix)).unwrap();
    assert_eq!(name.as_str(), text);
    assert_eq!((name.access(), name.is_cached()), (*access, *cached), "{text:?}");
    assert_eq!(name.is_presence(), *access == Access::Presence);
    assert_eq!(name.takes_client_events(), matches!(access, Access::Private | Access::Presence));
    assert_eq!(name.has_subscription_count(), !matches!(access, Access::Presence | Access::User));
}
