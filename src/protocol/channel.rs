//! Channel names: the grammar, and the meaning of prefixes.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use super::UserId;

/// The prefix of a user's own channel; the user id follows.
const USER_CHANNEL: &str = "#server-to-user-";

/// A channel name that has been checked: 1 to 200 bytes (by default) of `A-Z a-z 0-9 _ - = @ , . ;`, or the
/// reserved `#server-to-user-{user_id}`. Case-sensitive.
///
/// The prefix alone decides the kind of a channel; kinds are methods, not fields.
///
/// Source: protocol.md §3.1 and §3.2; the alphabet is `validate_channel` of pusher-http-php.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Ord, PartialOrd)]
pub struct ChannelName(Arc<str>);

/// The proof that a subscription requires.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Nothing: anyone with the app key may subscribe.
    Public,
    /// A signature of the app over socket id and channel.
    Private,
    /// The same signature as for a private channel; the server relays ciphertext unchanged.
    Encrypted,
    /// A signature that also covers the identity of the subscriber.
    Presence,
    /// A connection that is signed in as the owner of the channel.
    User,
}

/// The rules of an app for channel names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NameRules {
    /// Longest name, prefix included, in bytes. Default 200.
    pub bytes_max: usize,
    /// ASCII characters accepted in addition to the protocol's alphabet, for apps that move from a server without such
    /// a rule; never `:`, which separates the parts of a signature. Default none.
    pub extra_chars: Box<str>,
}

/// The rule that a text breaks as a channel name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChannelNameError {
    /// The name is empty.
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
    /// A character outside the alphabet, or a `#` that does not begin `#server-to-user-{user_id}`.
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

/// Whether `byte` is in the alphabet of channel names and of the ids of users that can have a channel.
pub(super) const fn is_name_byte(byte: u8) -> bool {
    matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'=' | b'@' | b',' | b'.' | b';')
}

/// The prefixes that decide the kind of a channel; a longer prefix comes before a shorter one that also matches.
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
    /// Checks `text` against `rules`. The length is checked first, so that a long name is cheap to reject.
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

    /// Parses a name from another node of the cluster. It accepts every name that the rules of any app could accept: the rules
    /// of an app may have changed since the name was checked.
    ///
    /// # Errors
    /// [`ChannelNameError`]: no rules accept `text`.
    pub fn of_node(text: &str) -> Result<Self, ChannelNameError> {
        let is_possible = |byte: u8| byte.is_ascii_graphic() && !b":#\"\\".contains(&byte);
        match text.strip_prefix(USER_CHANNEL).unwrap_or(text) {
            "" => Err(ChannelNameError::Empty),
            plain if plain.bytes().all(is_possible) => Ok(Self(text.into())),
            _ => Err(ChannelNameError::Alphabet),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The proof that a subscription requires. It follows from the prefix alone, never from the cache part.
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

    /// Whether the channel is a presence channel: subscribers receive member events.
    #[must_use]
    pub fn is_presence(&self) -> bool {
        self.access() == Access::Presence
    }

    /// The channels with the same name and another prefix. They are different channels, often confused with this one.
    #[must_use]
    pub fn siblings(&self, rules: &NameRules) -> Vec<Self> {
        let prefix = PREFIXES.into_iter().find(|prefix| self.0.starts_with(prefix)).unwrap_or_default();
        let bare = &self.0[prefix.len()..];
        let others = PREFIXES.into_iter().filter(|other| *other != prefix);
        others.filter_map(|other| Self::parse(&format!("{other}{bare}"), rules).ok()).collect()
    }

    /// Whether subscribers may send client events to the channel, within their rate.
    #[must_use]
    pub fn takes_client_events(&self) -> bool {
        match self.access() {
            Access::Private | Access::Presence => true,
            Access::Public | Access::Encrypted | Access::User => false,
        }
    }

    /// Whether subscribers receive the subscription count, if the app has counts enabled.
    #[must_use]
    pub fn has_subscription_count(&self) -> bool {
        match self.access() {
            Access::Public | Access::Private | Access::Encrypted => true,
            Access::Presence | Access::User => false,
        }
    }

    /// The own channel of a user. The id can be part of a channel name ([`UserId::with_channel`]).
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
mod tests;
