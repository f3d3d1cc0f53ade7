//! Why a subscription is refused, as clients are told. Source: protocol.md §4.4.

use crate::protocol::message::{Refusal, RefusalKind};
use crate::protocol::{ChannelName, ChannelNameError, CloseCode, UserIdError};

pub(super) fn name(error: ChannelNameError) -> Refusal {
    match error {
        ChannelNameError::TooLong { .. } => Refusal::limit(413, error.to_string()),
        ChannelNameError::Empty | ChannelNameError::Alphabet => Refusal {
            kind: RefusalKind::InvalidChannel,
            status: 400,
            code: None,
            reason: error.to_string(),
            string_to_sign: None,
        },
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

pub(super) fn user_id(channel: &ChannelName, error: UserIdError) -> Refusal {
    match error {
        UserIdError::TooLong { .. } => Refusal::limit(4301, error.to_string()),
        UserIdError::Type | UserIdError::Alphabet => not_authorised(channel, &error.to_string()),
    }
}

pub(super) fn other_user(channel: &ChannelName) -> Refusal {
    let reason = format!("Existing subscription to {channel} as another user");
    Refusal { kind: RefusalKind::Auth, status: 409, code: None, reason, string_to_sign: None }
}

pub(super) fn too_many_channels(channels_max: usize) -> Refusal {
    Refusal::limit(429, format!("the connection has {channels_max} subscriptions, as many as it may have"))
}

pub(super) fn channel_data_too_large(bytes_max: usize) -> Refusal {
    Refusal::limit(4301, format!("channel_data is longer than {bytes_max} bytes"))
}

pub(super) fn user_info_too_large(bytes_max: usize) -> Refusal {
    Refusal::limit(4301, format!("user_info is longer than {bytes_max} bytes"))
}
