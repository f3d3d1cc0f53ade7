//! Refused subscriptions, as clients receive them. Source: protocol.md §4.4.

use crate::apps::{App, SubscriptionErrorFrames};
use crate::limits::Limit;
use crate::outbox::Outbox;
use crate::protocol::message::{Refusal, ServerMessage};
use crate::protocol::name::excerpt;
use crate::protocol::{ChannelName, CloseCode};
use crate::registry::JoinError;

/// Sends a refused subscription to the client, on the channel, on the connection, or on both, as the app is configured. The
/// channel has the name that the client sent, because its library looks up the callbacks by that name. A name longer than
/// twice the limit is truncated ([`excerpt`]).
pub fn refuse(app: &App, outbox: &Outbox, channel: &str, refusal: &Refusal) {
    let (on_channel, on_connection) = match app.subscription_error_frames {
        SubscriptionErrorFrames::Both => (true, true),
        SubscriptionErrorFrames::Channel => (true, false),
        SubscriptionErrorFrames::Connection => (false, true),
    };
    let name = if channel.len() > 2 * app.names.bytes_max { excerpt(channel) } else { channel.into() };
    let channel = &*name;
    // pusher-js would look up a channel with an empty name.
    if on_channel && !channel.is_empty() {
        outbox.reply(&ServerMessage::SubscriptionRefused { channel, refusal });
    }
    if on_connection {
        let code = refusal.code.map(CloseCode::number);
        outbox.reply(&ServerMessage::Error { code, message: &refusal.reason });
    }
}

/// The limit that a join reached, and the refusal for the client.
pub(super) fn of_join(error: JoinError, app: &App, channel: &ChannelName) -> (Limit, Refusal) {
    match error {
        JoinError::TooManyMembers => {
            let members_max = app.limits.presence_members_max;
            let limit = Limit::PresenceMembers;
            let reason = format!(
                "Subscription to {channel} refused: it has {members_max} members, as many as it takes ({} of the app)",
                limit.setting()
            );
            (limit, Refusal::limit(4100, reason))
        }
        JoinError::TooManyChannels => {
            let channels_max = app.limits.channels_max.unwrap_or(u32::MAX);
            let limit = Limit::AppChannels;
            let reason = format!(
                "Subscription to {channel} refused: the app has {channels_max} channels, as many as it may have ({} of the \
                 app)",
                limit.setting()
            );
            (limit, Refusal::limit(429, reason))
        }
    }
}
