//! Channel names: what is a name, and what its prefix means.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use super::UserId;

/// The start of a user's own channel; the user id follows.
const USER_CHANNEL: &str = "#server-to-user-";

/// A channel name that has been checked: 1 to 200 bytes (by default) of `A-Z a-z 0-9 _ - = @ , . ;`, or the
/// reserved `#server-to-user-{user_id}`. Case-sensitive.
///
/// What a channel is follows from its prefix alone; the kinds are methods, not fields.
///
/// Source: protocol.md §3.1 and §3.2; the alphabet is `validate_channel` of pusher-http-php.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Ord, PartialOrd)]
pub struct ChannelName(Arc<str>);

/// What a subscriber must prove.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Nothing: anyone with the app key may subscribe.
    Public,
    /// A signature of the app over socket id and channel.
    Private,
    /// As private; the server only relays ciphertext and never adds to it.
    Encrypted,
    /// A signature that also covers who the subscriber is.
    Presence,
    /// Being signed in as the user the channel belongs to.
    User,
}

/// What an app accepts as a channel name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NameRules {
    /// Longest name, prefix included, in bytes. Default 200.
    pub bytes_max: usize,
    /// ASCII characters accepted beyond the protocol's alphabet, for apps that come from servers without a
    /// rule; never `:`, which separates the parts of a signature. Default none.
    pub extra_chars: Box<str>,
}

/// Why a text is not a channel name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChannelNameError {
    /// The name has no characters.
    #[error("channel name is empty")]
    Empty,
    /// The name is longer than the app allows.
    #[error("channel name has {bytes} bytes, more than the {bytes_max} allowed")]
    TooLong {
        /// Length of the text.
        bytes: usize,
        /// The app's limit.
        bytes_max: usize,
    },
    /// A character outside of the alphabet, or `#` in front of anything but `server-to-user-{user_id}`.
    #[error("channel name contains a character that is not allowed")]
    Alphabet,
}

impl Default for NameRules {
    fn default() -> Self {
        Self { bytes_max: 200, extra_chars: "".into() }
    }
}

impl NameRules {
    fn allows(&self, byte: u8) -> bool {
        is_name_byte(byte) || (byte != b':' && self.extra_chars.as_bytes().contains(&byte))
    }
}

/// Whether `byte` is in the alphabet of channel names and of user ids that can have a channel.
pub(super) const fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'=' | b'@' | b',' | b'.' | b';')
}

/// All that a name may begin with to be of a kind; of two that fit, the longer one comes first.
const PREFIXES: [&str; 8] = [
    "private-encrypted-cache-",
    "private-encrypted-",
    "private-cache-",
    "private-",
    "presence-cache-",
    "presence-",
    "cache-",
    "",
];

impl ChannelName {
    /// Checks `text` against `rules`. The length is checked first, so that a long name costs nothing.
    ///
    /// # Errors
    /// [`ChannelNameError`] names the rule that `text` breaks.
    pub fn parse(text: &str, rules: &NameRules) -> Result<Self, ChannelNameError> {
        if text.is_empty() {
            return Err(ChannelNameError::Empty);
        }
        if text.len() > rules.bytes_max {
            return Err(ChannelNameError::TooLong { bytes: text.len(), bytes_max: rules.bytes_max });
        }
        let plain = text.strip_prefix(USER_CHANNEL).unwrap_or(text);
        if plain.is_empty() || !plain.bytes().all(|byte| rules.allows(byte)) {
            return Err(ChannelNameError::Alphabet);
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a subscriber must prove: the need for a signature follows from the prefix alone, never from the
    /// cache part.
    #[must_use]
    pub fn access(&self) -> Access {
        match &*self.0 {
            name if name.starts_with('#') => Access::User,
            name if name.starts_with("private-encrypted-") => Access::Encrypted,
            name if name.starts_with("private-") => Access::Private,
            name if name.starts_with("presence-") => Access::Presence,
            _ => Access::Public,
        }
    }

    /// Whether the channel keeps its last event for later subscribers.
    #[must_use]
    pub fn is_cached(&self) -> bool {
        ["cache-", "private-cache-", "private-encrypted-cache-", "presence-cache-"]
            .iter()
            .any(|prefix| self.0.starts_with(prefix))
    }

    /// Whether the channel has members: users whose coming and going is told to the others.
    #[must_use]
    pub fn is_presence(&self) -> bool {
        self.access() == Access::Presence
    }

    /// The channels of the same name with other prefixes, which are other channels: what somebody may have meant.
    #[must_use]
    pub fn siblings(&self, rules: &NameRules) -> Vec<Self> {
        let prefix = PREFIXES.into_iter().find(|prefix| self.0.starts_with(prefix)).unwrap_or_default();
        let bare = &self.0[prefix.len()..];
        let others = PREFIXES.into_iter().filter(|other| *other != prefix);
        others.filter_map(|other| Self::parse(&format!("{other}{bare}"), rules).ok()).collect()
    }

    /// Whether clients may send events here, membership and rate allowing.
    #[must_use]
    pub fn takes_client_events(&self) -> bool {
        match self.access() {
            Access::Private | Access::Presence => true,
            Access::Public | Access::Encrypted | Access::User => false,
        }
    }

    /// Whether subscribers are told how many they are, where the app has that switched on.
    #[must_use]
    pub fn has_subscription_count(&self) -> bool {
        match self.access() {
            Access::Public | Access::Private | Access::Encrypted => true,
            Access::Presence | Access::User => false,
        }
    }

    /// The own channel of a user whose id can be part of a name ([`UserId::with_channel`]).
    #[must_use]
    pub fn of_user(id: &UserId) -> Self {
        Self(format!("{USER_CHANNEL}{id}").into())
    }

    /// The id of the user whose own channel this is.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.0.strip_prefix(USER_CHANNEL)
    }

    /// Whether this is the own channel of the user `id`.
    #[must_use]
    pub fn belongs_to(&self, id: &UserId) -> bool {
        self.user() == Some(id.as_str())
    }
}

impl Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> ChannelName {
        ChannelName::parse(text, &NameRules::default()).unwrap()
    }

    #[test]
    fn siblings_are_the_same_name_with_another_prefix() {
        let rules = NameRules::default();
        for (name, bare) in
            [("orders", "orders"), ("private-orders", "orders"), ("presence-cache-a-b", "a-b")]
        {
            let siblings = ChannelName::parse(name, &rules).unwrap().siblings(&rules);
            let mut names: Vec<_> = siblings.iter().map(ChannelName::as_str).collect();
            assert_eq!(names.len(), PREFIXES.len() - 1, "{names:?}");
            names.push(name);
            for prefix in PREFIXES {
                assert!(names.contains(&&*format!("{prefix}{bare}")), "{prefix}{bare}: {names:?}");
            }
        }
    }

    #[test]
    fn the_prefix_alone_decides_what_a_channel_is() {
        use Access::{Encrypted, Presence, Private, Public, User};
        // name, access, cached, client events
        let table = [
            ("#server-to-user-7", User, false, false),
            ("private-encrypted-cache-x", Encrypted, true, false),
            ("private-encrypted-x", Encrypted, false, false),
            ("private-cache-x", Private, true, true),
            ("private-x", Private, false, true),
            ("presence-cache-x", Presence, true, true),
            ("presence-x", Presence, false, true),
            ("cache-x", Public, true, false),
            ("x", Public, false, false),
            // The dash belongs to the prefix.
            ("privateroom", Public, false, false),
            ("cached", Public, false, false),
            ("presence", Public, false, false),
            // A prefix in the middle means nothing, and prefixes combine in one order only.
            ("room-private-x", Public, false, false),
            ("x-cache-y", Public, false, false),
            ("private-x-cache-y", Private, false, true),
            ("cache-private-x", Public, true, false),
            ("Private-x", Public, false, false),
            // A bare prefix is of its type.
            ("private-", Private, false, true),
            ("private-cache-", Private, true, true),
        ];
        for (text, access, cached, client_events) in table {
            let name = name(text);
            assert_eq!(name.access(), access, "{text}");
            assert_eq!(name.is_cached(), cached, "{text}");
            assert_eq!(name.is_presence(), access == Presence, "{text}");
            assert_eq!(name.takes_client_events(), client_events, "{text}");
        }
    }

    #[test]
    fn names_outside_the_grammar_are_refused() {
        for text in
            ["a b", "a/b", "a:b", "a%b", "é", "a#b", "#x", "#", "#server-to-user-", "#private-x", "a\n"]
        {
            assert_eq!(
                ChannelName::parse(text, &NameRules::default()),
                Err(ChannelNameError::Alphabet),
                "{text:?}"
            );
        }
        assert_eq!(ChannelName::parse("", &NameRules::default()), Err(ChannelNameError::Empty));
    }

    #[test]
    fn the_length_limit_is_inclusive_and_per_app() {
        let rules = NameRules { bytes_max: 164, ..NameRules::default() };
        assert!(ChannelName::parse(&"x".repeat(164), &rules).is_ok());
        assert_eq!(
            ChannelName::parse(&"x".repeat(165), &rules),
            Err(ChannelNameError::TooLong { bytes: 165, bytes_max: 164 })
        );
        assert!(ChannelName::parse(&"x".repeat(200), &NameRules::default()).is_ok());
        assert!(ChannelName::parse(&"x".repeat(201), &NameRules::default()).is_err());
    }

    #[test]
    fn extra_characters_are_the_apps_choice_but_never_the_colon() {
        let rules = NameRules { extra_chars: "/:".into(), ..NameRules::default() };
        assert!(ChannelName::parse("a/b", &rules).is_ok());
        assert!(ChannelName::parse("a:b", &rules).is_err());
    }

    #[test]
    fn a_users_channel_belongs_to_that_user_only() {
        let id = |text| UserId::parse(text, 128).unwrap();
        assert!(name("#server-to-user-7").belongs_to(&id("7")));
        assert!(!name("#server-to-user-77").belongs_to(&id("7")));
        assert!(!name("server-to-user-7").belongs_to(&id("7")));
        assert_eq!(ChannelName::of_user(&id("7")), name("#server-to-user-7"));
    }

    proptest! {
        #[test]
        fn every_text_of_the_alphabet_is_a_name_and_round_trips(text in "[-A-Za-z0-9_=@,.;]{1,200}") {
            let name = ChannelName::parse(&text, &NameRules::default()).unwrap();
            prop_assert_eq!(name.as_str(), text);
        }

        #[test]
        fn any_text_is_a_name_or_an_error_by_the_grammar(text in "\\PC{0,210}") {
            let grammar = |text: &str| {
                let plain = text.strip_prefix("#server-to-user-").unwrap_or(text);
                !plain.is_empty() && text.len() <= 200
                    && plain.chars().all(|c| c.is_ascii_alphanumeric() || "_-=@,.;".contains(c))
            };
            prop_assert_eq!(ChannelName::parse(&text, &NameRules::default()).is_ok(), grammar(&text));
        }
    }
}
