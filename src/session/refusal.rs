//! Refusals of subscriptions, with the text for clients: what was sent, what is allowed, and the setting of a limit.
//! Source: protocol.md §4.4.

use crate::limits::Limit;
use crate::protocol::json;
use crate::protocol::message::{Refusal, RefusalKind};
use crate::protocol::{ChannelName, ChannelNameError, CloseCode, UserIdError};

/// A refusal, and the limit that was reached, if that is the reason.
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    pub(super) limit: Option<Limit>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, limit: None }
    }
}

/// The refusal for a limit: `what`, and the setting of the limit.
fn limit(limit: Limit, status: u16, what: impl std::fmt::Display) -> Refused {
    let reason = format!("{what} ({} of the app)", limit.setting());
    Refused { refusal: Refusal::limit(status, reason), limit: Some(limit) }
}

pub(super) fn name(error: ChannelNameError) -> Refused {
    match error {
        ChannelNameError::TooLong { .. } => limit(Limit::ChannelNameBytes, 413, error),
        ChannelNameError::Empty | ChannelNameError::Alphabet => Refused::from(Refusal {
            kind: RefusalKind::InvalidChannel,
            status: 400,
            code: None,
            reason: error.to_string(),
            string_to_sign: None,
        }),
    }
}

pub(super) fn not_authorised(channel: &ChannelName, reason: &str) -> Refusal {
    let reason = format!("Subscription to {channel} refused: {reason}");
    Refusal {
        kind: RefusalKind::Auth,
        status: 401,
        code: Some(CloseCode::Unauthorized),
        reason,
        string_to_sign: None,
    }
}

pub(super) fn not_the_users_channel(channel: &ChannelName) -> Refusal {
    not_authorised(channel, "not signed in as that user")
}

pub(super) fn user_id(channel: &ChannelName, error: UserIdError) -> Refused {
    match error {
        UserIdError::TooLong { .. } => {
            limit(Limit::UserIdChars, 4301, format_args!("Subscription to {channel} refused: {error}"))
        }
        UserIdError::Type | UserIdError::Alphabet => not_authorised(channel, &error.to_string()).into(),
    }
}

pub(super) fn other_user(channel: &ChannelName) -> Refusal {
    let reason = format!("Existing subscription to {channel} as another user");
    Refusal { kind: RefusalKind::Auth, status: 409, code: None, reason, string_to_sign: None }
}

pub(super) fn too_many_channels(channel: &ChannelName, channels_max: usize) -> Refused {
    let what = format!(
        "Subscription to {channel} refused: the connection has {channels_max} subscriptions, as many as it may have"
    );
    limit(Limit::ConnectionChannels, 429, what)
}

pub(super) fn channel_data_too_large(channel: &ChannelName, bytes: usize, bytes_max: usize) -> Refused {
    let what = format!(
        "Subscription to {channel} refused: channel_data has {bytes} bytes, more than the {bytes_max} allowed"
    );
    limit(Limit::ChannelDataBytes, 4301, what)
}

pub(super) fn channel_data_too_deep(channel: &ChannelName) -> Refusal {
    let depth_max = json::DEPTH_MAX;
    let what = format!(
        "Subscription to {channel} refused: channel_data is nested more than {depth_max} levels deep"
    );
    Refusal::limit(4301, what)
}

pub(super) fn user_info_too_large(channel: &ChannelName, bytes: usize, bytes_max: usize) -> Refused {
    let what = format!(
        "Subscription to {channel} refused: user_info has {bytes} bytes, more than the {bytes_max} allowed"
    );
    limit(Limit::UserInfoBytes, 4301, what)
}
