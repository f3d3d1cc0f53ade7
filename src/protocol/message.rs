//! The messages of clients and of the server, independent of their encoding.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{ChannelName, CloseCode, Member, SocketId, UserId};

/// A message of a client.
#[derive(Debug)]
pub enum ClientMessage<'a> {
    /// `pusher:ping`.
    Ping,
    /// `pusher:pong`.
    Pong,
    /// `pusher:subscribe`.
    Subscribe(Subscribe<'a>),
    /// `pusher:unsubscribe`.
    Unsubscribe {
        /// The channel, unchecked.
        channel: Cow<'a, str>,
    },
    /// `pusher:signin`.
    SignIn(SignIn<'a>),
    /// A client event.
    Event(ClientEvent<'a>),
    /// An event that clients cannot send.
    Unsupported {
        /// The name of the event.
        event: Cow<'a, str>,
    },
}

/// An unchecked request to subscribe.
#[derive(Debug)]
pub struct Subscribe<'a> {
    /// The name as sent.
    pub channel: Cow<'a, str>,
    /// `key:signature`; `None` when absent or not a string.
    pub auth: Option<Cow<'a, str>>,
    /// The application's data about the subscriber, as the signed text.
    pub channel_data: ChannelData<'a>,
}

/// The `channel_data` of a subscription.
#[derive(Debug)]
pub enum ChannelData<'a> {
    /// Missing, `null` or the empty string.
    Absent,
    /// The signed text.
    Text(Cow<'a, str>),
    /// Another JSON type. The subscription is refused, because a signature covers a string.
    NotText,
}

/// An unchecked request to sign in.
#[derive(Debug)]
pub struct SignIn<'a> {
    /// `key:signature`.
    pub auth: Option<Cow<'a, str>>,
    /// The application's data about the user, as the signed text.
    pub user_data: Option<Cow<'a, str>>,
}

/// An unchecked client event. Its name starts with `client-`.
#[derive(Debug)]
pub struct ClientEvent<'a> {
    /// The name.
    pub event: Cow<'a, str>,
    /// The channel as sent; `None` when absent or not a string.
    pub channel: Option<Cow<'a, str>>,
    /// The payload in the JSON type it came in; `None` when absent.
    pub data: Option<&'a RawValue>,
}

/// A message of the server.
#[derive(Clone, Debug)]
pub enum ServerMessage<'a> {
    /// `pusher:connection_established`, the first message of a connection.
    Established {
        /// The id of the connection.
        socket: SocketId,
        /// The client pings after this many seconds of silence.
        activity_timeout_secs: u64,
    },
    /// `pusher:pong`, the reply to a ping.
    Pong,
    /// `pusher:error`, about the connection (then a Close follows) or about the last message.
    Error {
        /// A number that clients act on, or `null`.
        code: Option<u16>,
        /// The text for people.
        message: &'a str,
    },
    /// `pusher_internal:subscription_succeeded`.
    Subscribed {
        /// The channel.
        channel: &'a ChannelName,
        /// On presence channels, the members in order of joining.
        members: Option<Vec<Member>>,
    },
    /// `pusher:subscription_error`.
    SubscriptionRefused {
        /// The name as the client sent it.
        channel: &'a str,
        /// The reason.
        refusal: &'a Refusal,
    },
    /// `pusher_internal:member_added`.
    MemberAdded {
        /// The channel.
        channel: &'a ChannelName,
        /// The user that joined.
        member: &'a Member,
    },
    /// `pusher_internal:member_removed`.
    MemberRemoved {
        /// The channel.
        channel: &'a ChannelName,
        /// The user that left.
        user: &'a UserId,
    },
    /// `pusher:cache_miss`: the channel has no cached event.
    CacheMiss {
        /// The channel.
        channel: &'a ChannelName,
    },
    /// `pusher_internal:subscription_count`.
    SubscriptionCount {
        /// The channel.
        channel: &'a ChannelName,
        /// Subscribed connections.
        count: usize,
    },
    /// An event of the application or of another client.
    Event {
        /// The channel.
        channel: &'a ChannelName,
        /// The name.
        event: &'a str,
        /// The payload as JSON text: a string literal for events of the application, any JSON for client events.
        data: &'a str,
        /// On presence channels, the verified user of the client that sent it.
        user: Option<&'a UserId>,
    },
    /// `pusher:signin_success`.
    SignedIn {
        /// The text that the client signed in with, unchanged.
        user_data: &'a str,
    },
    /// `pusher_internal:watchlist_events`: the state of users on the client's watchlist.
    Watchlist {
        /// The users that are online.
        online: &'a [UserId],
        /// The users that are offline.
        offline: &'a [UserId],
    },
}

/// The reason why a subscription is refused. The connection stays open.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The `type` in `pusher:subscription_error`.
    pub kind: RefusalKind,
    /// The HTTP-like `status` in that frame.
    pub status: u16,
    /// The code in the `pusher:error` frame.
    pub code: Option<CloseCode>,
    /// The text for people.
    pub reason: String,
    /// The text that had to be signed, if a signature does not match. For the operator, never for the client.
    pub string_to_sign: Option<String>,
}

impl Refusal {
    /// The refusal of a subscription that exceeds a limit.
    #[must_use]
    pub const fn limit(status: u16, reason: String) -> Self {
        Self { kind: RefusalKind::Limit, status, code: None, reason, string_to_sign: None }
    }
}

/// The kinds of refusals, as Soketi and pusher-js name them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RefusalKind {
    /// The client did not prove that it may subscribe.
    Auth,
    /// The text is not a channel name.
    InvalidChannel,
    /// A limit was reached.
    Limit,
}

impl RefusalKind {
    /// The `type` of the frame.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "AuthError",
            Self::InvalidChannel => "InvalidChannel",
            Self::Limit => "LimitReached",
        }
    }
}

/// Code of the error frame for a client event over the rate; the connection stays open.
pub const CLIENT_EVENT_RATE: u16 = 4301;

/// Code of the error frame for a truncated watchlist; the connection stays open.
pub const WATCHLIST_CUT: u16 = 4302;

/// A checked event for the subscribers of one channel.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// The channel.
    pub channel: &'a ChannelName,
    /// The name.
    pub name: &'a str,
    /// The payload as JSON text: a string literal for events of the application, any JSON for client events.
    pub data: &'a str,
    /// The connection that does not receive it.
    pub except: Option<SocketId>,
    /// The sender.
    pub source: Source<'a>,
}

/// The sender of an event.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The application, over HTTP. Cache channels keep the last such event.
    App,
    /// A client; on presence channels with its verified user.
    Client(Option<&'a UserId>),
}

impl<'a> Event<'a> {
    /// The message that subscribers receive.
    #[must_use]
    pub fn message(&self) -> ServerMessage<'a> {
        let user = match self.source {
            Source::App => None,
            Source::Client(user) => user,
        };
        ServerMessage::Event { channel: self.channel, event: self.name, data: self.data, user }
    }
}
