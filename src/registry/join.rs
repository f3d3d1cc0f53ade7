//! Joining and leaving a channel: requests and results.

use super::{Backlog, ChannelPermits, Drive};
use crate::protocol::wire::Frame;
use crate::protocol::{Member, UserId};

/// A subscription that the session has accepted.
#[derive(Debug)]
pub struct Join<'a> {
    /// On presence channels, the member that the subscriber is.
    pub member: Option<Member>,
    /// Distinct users that may be in the channel.
    pub members_max: usize,
    /// Whether subscribers receive the subscription count.
    pub counts: bool,
    /// The permits of the app. A channel acquires one with its first subscriber; a user's own channel needs none.
    pub permits: ChannelPermits<'a>,
    /// Sent instead of `subscription_succeeded`, also to a connection that is subscribed already.
    pub acknowledgement: Option<&'a Frame>,
}

/// The result of a join.
#[derive(Debug, Default)]
pub struct Joined {
    /// The channel had no subscriber before.
    pub occupied: bool,
    /// The user was not in the channel before.
    pub member_added: bool,
    /// The channel is a cache channel and had no cached event.
    pub cache_miss: bool,
    /// The connection was subscribed already. It was acknowledged again; nothing else happened.
    pub already_subscribed: bool,
    /// The subscription count, if it was sent.
    pub count: Option<usize>,
    /// Messages to deliver.
    pub drive: Option<Drive>,
    /// Set if the channel has too many undelivered bytes.
    pub backlog: Option<Backlog>,
}

/// The reason why a join is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum JoinError {
    /// The presence channel has reached its limit of users.
    TooManyMembers,
    /// The app has reached its limit of channels.
    TooManyChannels,
}

/// The result of a leave.
#[derive(Debug)]
pub struct Left {
    /// The channel has no subscriber any more.
    pub vacated: bool,
    /// On presence channels, the user that the subscriber was.
    pub member: Option<UserId>,
    /// The user that is no longer in the channel.
    pub member_removed: Option<UserId>,
    /// The subscription count, if it was sent.
    pub count: Option<usize>,
    /// Messages to deliver.
    pub drive: Option<Drive>,
    /// Set if the channel has too many undelivered bytes.
    pub backlog: Option<Backlog>,
}
