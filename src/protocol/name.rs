//! Names of events and users.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde_json::value::RawValue;

use super::channel::is_name_byte;
use super::json;

/// Longest part of an invalid text that an error message repeats.
pub const EXCERPT_BYTES_MAX: usize = 200;

/// The part of a text from outside that an error message repeats: at most [`EXCERPT_BYTES_MAX`] bytes. A truncated text
/// ends with `…`, which no name contains, so it cannot be mistaken for another name.
#[must_use]
pub fn excerpt(text: &str) -> Cow<'_, str> {
    if text.len() <= EXCERPT_BYTES_MAX {
        return text.into();
    }
    let end = text.floor_char_boundary(EXCERPT_BYTES_MAX - '…'.len_utf8());
    format!("{}…", &text[..end]).into()
}

/// The name of a published event: 1 to 200 characters (by default), not one of the server's reserved names.
///
/// Any other text is valid: Laravel's class names with backslashes, dots, spaces, any script.
///
/// Source: protocol.md §8.4.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EventName<'a>(Cow<'a, str>);

/// The rule that a text breaks as the name of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EventNameError {
    /// The name is empty.
    #[error("event name is empty")]
    Empty,
    /// The name is longer than the app allows.
    #[error("event name has more than {chars_max} characters")]
    TooLong {
        /// The app's limit.
        chars_max: usize,
    },
    /// The name starts with `pusher:` or `pusher_internal:`, which are reserved for the server.
    #[error("event names that start with pusher: or pusher_internal: are reserved")]
    Reserved,
}

impl<'a> EventName<'a> {
    /// Checks the name of an event that an app publishes.
    ///
    /// # Errors
    /// [`EventNameError`] names the rule that `text` breaks.
    pub fn parse(text: impl Into<Cow<'a, str>>, chars_max: usize) -> Result<Self, EventNameError> {
        let text = text.into();
        if text.is_empty() {
            return Err(EventNameError::Empty);
        }
        // A character has at least one byte, so most names need no count.
        if text.len() > chars_max && text.chars().count() > chars_max {
            return Err(EventNameError::TooLong { chars_max });
        }
        if text.starts_with("pusher:") || text.starts_with("pusher_internal:") {
            return Err(EventNameError::Reserved);
        }
        Ok(Self(text))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id of a user of the application: 1 to 128 characters by default. The number `7` and the string `"7"` are the same
/// id.
///
/// Source: protocol.md §4.7.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct UserId(Arc<str>);

/// The rule that a value breaks as a user id.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UserIdError {
    /// Neither a non-empty string nor an integer.
    #[error("user id is not a non-empty string or an integer")]
    Type,
    /// Longer than the app allows.
    #[error("user id has more than {chars_max} characters")]
    TooLong {
        /// The app's limit.
        chars_max: usize,
    },
    /// A character that the name of the user's own channel cannot contain.
    #[error("user id contains a character that is not allowed")]
    Alphabet,
}

impl UserId {
    /// Checks the text of an id.
    ///
    /// # Errors
    /// [`UserIdError`] names the rule that `text` breaks.
    pub fn parse(text: &str, chars_max: usize) -> Result<Self, UserIdError> {
        if text.is_empty() {
            return Err(UserIdError::Type);
        }
        if text.len() > chars_max && text.chars().count() > chars_max {
            return Err(UserIdError::TooLong { chars_max });
        }
        Ok(Self(text.into()))
    }

    /// Reads an id from JSON: a string, or an integer of any length, whose digits are kept.
    ///
    /// # Errors
    /// [`UserIdError`] names the rule that `value` breaks.
    pub fn from_json(value: &RawValue, chars_max: usize) -> Result<Self, UserIdError> {
        if let Some(text) = json::string(value) {
            return Self::parse(&text, chars_max);
        }
        let digits = value.get();
        let is_integer = digits.strip_prefix('-').unwrap_or(digits).bytes().all(|byte| byte.is_ascii_digit());
        if is_integer { Self::parse(digits, chars_max) } else { Err(UserIdError::Type) }
    }

    /// Checks that the id can be part of a channel name, which the id of a signed-in user must be.
    ///
    /// # Errors
    /// [`UserIdError::Alphabet`] when it cannot.
    pub fn with_channel(self) -> Result<Self, UserIdError> {
        if self.0.bytes().all(is_name_byte) { Ok(self) } else { Err(UserIdError::Alphabet) }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user in a presence channel.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// The user.
    pub id: UserId,
    /// The application's data about the user, as the JSON text that it signed; `null` if there is none.
    pub info: Arc<str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_has_at_most_200_bytes_and_ends_at_a_character() {
        assert_eq!(excerpt("orders"), "orders");
        assert_eq!(excerpt(&"x".repeat(200)), "x".repeat(200));
        assert_eq!(excerpt(&"x".repeat(30_000)), format!("{}…", "x".repeat(197)));
        assert_eq!(excerpt(&"é".repeat(200)), format!("{}…", "é".repeat(98)));
    }

    #[test]
    fn laravels_class_names_are_event_names() {
        for name in ["App\\Events\\OrderShipped", "client-typing", ".order shipped", "Ereignis-ü", "pusher"]
        {
            assert_eq!(EventName::parse(name, 200).unwrap().as_str(), name);
        }
    }

    #[test]
    fn reserved_event_names_cannot_be_published() {
        for name in ["pusher:ping", "pusher:", "pusher_internal:member_removed"] {
            assert_eq!(EventName::parse(name, 200), Err(EventNameError::Reserved));
        }
    }

    #[test]
    fn the_length_of_an_event_name_is_in_characters() {
        assert!(EventName::parse("é".repeat(200), 200).is_ok());
        assert!(EventName::parse("é".repeat(201), 200).is_err());
        assert!(EventName::parse("", 200).is_err());
    }

    fn from_json(text: &str) -> Result<UserId, UserIdError> {
        UserId::from_json(&RawValue::from_string(text.to_owned()).unwrap(), 128)
    }

    #[test]
    fn a_number_and_its_digits_are_the_same_user() {
        assert_eq!(from_json("7"), from_json("\"7\""));
        assert_eq!(from_json("9007199254740993").unwrap().as_str(), "9007199254740993");
        assert_eq!(
            from_json("123456789012345678901234567890").unwrap().as_str(),
            "123456789012345678901234567890"
        );
    }

    #[test]
    fn an_invalid_user_id_is_rejected() {
        for text in ["null", "true", "1.5", "1e3", "{}", "[]", "\"\""] {
            assert_eq!(from_json(text), Err(UserIdError::Type), "{text}");
        }
        assert_eq!(
            from_json(&format!("\"{}\"", "x".repeat(129))),
            Err(UserIdError::TooLong { chars_max: 128 })
        );
        assert!(from_json("\"a:b\"").unwrap().with_channel().is_err());
        assert!(from_json("\"a@b.c\"").unwrap().with_channel().is_ok());
    }
}
