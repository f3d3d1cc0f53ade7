//! How a client is told that it is not subscribed. Source: protocol.md §4.4.

use crate::apps::{App, SubscriptionErrorFrames};
use crate::limits::Limit;
use crate::outbox::Outbox;
use crate::protocol::message::{Refusal, ServerMessage};
use crate::protocol::name::shown;
use crate::protocol::{ChannelName, CloseCode};
use crate::registry::JoinError;

/// Tells a client that it is not subscribed, on the channel and on the connection, as the app has it. The channel is
/// named as the client did, since only then its library finds the callbacks of the channel; a name of more than twice
/// the length that a channel may have is cut ([`shown`]).
pub fn refuse(app: &App, outbox: &Outbox, channel: &str, refusal: &Refusal) {
    let (on_channel, on_connection) = match app.subscription_error_frames {
        SubscriptionErrorFrames::Both => (true, true),
        SubscriptionErrorFrames::Channel => (true, false),
        SubscriptionErrorFrames::Connection => (false, true),
    };
    let name = if channel.len() > 2 * app.names.bytes_max { shown(channel) } else { channel.into() };
    let channel = &*name;
    // An empty name would make pusher-js look for a channel that is not there.
    if on_channel && !channel.is_empty() {
        outbox.say(&ServerMessage::SubscriptionRefused { channel, refusal });
    }
    if on_connection {
        let code = refusal.code.map(CloseCode::number);
        outbox.say(&ServerMessage::Error { code, message: &refusal.reason });
    }
}

/// The limit that a join has met, and how the client hears of it.
pub(super) fn of(error: JoinError, app: &App, channel: &ChannelName) -> (Limit, Refusal) {
    match error {
        JoinError::Full => {
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
                "Subscription to {channel} refused: the app has {channels_max} channels, as many as it may have ({} of \
                 the app)",
                limit.setting()
            );
            (limit, Refusal::limit(429, reason))
        }
    }
}
