//! The vocabulary: what clients say and what pusherd says to them, whatever the wire.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::{ChannelName, CloseCode, Member, SocketId, UserId};

/// What a client says.
#[derive(Debug)]
pub enum ClientMessage<'a> {
    /// Asks for a sign of life.
    Ping,
    /// Gives one.
    Pong,
    /// Wants the events of a channel.
    Subscribe(Subscribe<'a>),
    /// No longer wants them.
    Unsubscribe {
        /// Which channel, unchecked.
        channel: Cow<'a, str>,
    },
    /// Says which user it is.
    SignIn(SignIn<'a>),
    /// Sends an event to the other subscribers of a channel.
    Event(ClientEvent<'a>),
    /// Says something that clients do not say.
    Unsupported {
        /// The name of the event.
        event: Cow<'a, str>,
    },
}

/// A wish to subscribe, nothing checked.
#[derive(Debug)]
pub struct Subscribe<'a> {
    /// The name as sent.
    pub channel: Cow<'a, str>,
    /// `key:signature`; `None` when absent or not a string.
    pub auth: Option<Cow<'a, str>>,
    /// What the application says about the subscriber, as the signed text.
    pub channel_data: ChannelData<'a>,
}

/// The `channel_data` of a subscription.
#[derive(Debug)]
pub enum ChannelData<'a> {
    /// None, `null` or the empty string.
    Absent,
    /// The text that was signed.
    Text(Cow<'a, str>),
    /// Another JSON type: refused, because what is signed is a string.
    NotText,
}

/// A wish to sign in, nothing checked.
#[derive(Debug)]
pub struct SignIn<'a> {
    /// `key:signature`.
    pub auth: Option<Cow<'a, str>>,
    /// What the application says about the user, as the signed text.
    pub user_data: Option<Cow<'a, str>>,
}

/// An event from a client, nothing checked but that its name starts with `client-`.
#[derive(Debug)]
pub struct ClientEvent<'a> {
    /// The name.
    pub event: Cow<'a, str>,
    /// The channel as sent; `None` when absent or not a string.
    pub channel: Option<Cow<'a, str>>,
    /// The payload in the JSON type it came in; `None` when absent.
    pub data: Option<&'a RawValue>,
}

/// What pusherd says to a client.
#[derive(Clone, Debug)]
pub enum ServerMessage<'a> {
    /// The first message of every connection that is not refused.
    Established {
        /// Who the connection is from now on.
        socket: SocketId,
        /// After so many seconds of silence the client pings.
        activity_timeout_secs: u64,
    },
    /// The answer to a ping.
    Pong,
    /// Something is wrong: with the connection (then a close follows) or with the last message.
    Error {
        /// A number that clients act upon, or `null`.
        code: Option<u16>,
        /// What is wrong, for people.
        message: &'a str,
    },
    /// The client is subscribed; on a presence channel, with everyone who is there.
    Subscribed {
        /// Where.
        channel: &'a ChannelName,
        /// The members by order of joining, on presence channels.
        members: Option<Vec<Member>>,
    },
    /// The client is not subscribed.
    SubscriptionRefused {
        /// The name as the client sent it.
        channel: &'a str,
        /// Why.
        refusal: &'a Refusal,
    },
    /// A user has come.
    MemberAdded {
        /// Where.
        channel: &'a ChannelName,
        /// Who.
        member: &'a Member,
    },
    /// A user has gone.
    MemberRemoved {
        /// Where.
        channel: &'a ChannelName,
        /// Who.
        user: &'a UserId,
    },
    /// The channel has no cached event.
    CacheMiss {
        /// Where.
        channel: &'a ChannelName,
    },
    /// So many connections are subscribed.
    SubscriptionCount {
        /// Where.
        channel: &'a ChannelName,
        /// How many.
        count: usize,
    },
    /// An event, of the application or of another client.
    Event {
        /// Where.
        channel: &'a ChannelName,
        /// Its name.
        event: &'a str,
        /// Its payload as JSON text: a string literal for events of the application, any JSON for a client's.
        data: &'a str,
        /// On presence channels, the client's verified user.
        user: Option<&'a UserId>,
    },
    /// The client is signed in.
    SignedIn {
        /// The text it signed in with, unchanged.
        user_data: &'a str,
    },
    /// Users on the client's watchlist came or went.
    Watchlist {
        /// These are online.
        online: &'a [UserId],
        /// These are not.
        offline: &'a [UserId],
    },
}

/// Why a wish of a client is not granted; the connection stays open.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// What kind, as `pusher:subscription_error` names it.
    pub kind: RefusalKind,
    /// The HTTP-like number of that frame.
    pub status: u16,
    /// The code of the `pusher:error` frame.
    pub code: Option<CloseCode>,
    /// The reason, for people.
    pub reason: String,
    /// What should have been signed, where a signature does not match: for the operator, never for the client.
    pub string_to_sign: Option<String>,
}

impl Refusal {
    /// For there being as much as there may be.
    #[must_use]
    pub const fn limit(status: u16, reason: String) -> Self {
        Self { kind: RefusalKind::Limit, status, code: None, reason, string_to_sign: None }
    }
}

/// The names of refusals; the set is Soketi's and pusher-js's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RefusalKind {
    /// Not proved to be allowed.
    Auth,
    /// Not a channel name.
    InvalidChannel,
    /// More than the app allows.
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

/// Code of a client event over the rate: a frame, never a close.
pub const CLIENT_EVENT_RATE: u16 = 4301;

/// Code of a watchlist that was cut: a frame, never a close.
pub const WATCHLIST_CUT: u16 = 4302;

/// An event on its way to the subscribers of one channel, checked.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Where it goes.
    pub channel: &'a ChannelName,
    /// Its name.
    pub name: &'a str,
    /// Its payload as JSON text: a string literal for events of the application, any JSON for a client's.
    pub data: &'a str,
    /// The connection that does not get it.
    pub except: Option<SocketId>,
    /// Who says so.
    pub source: Source<'a>,
}

/// Where an event comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The application, over HTTP: the last such event is what a cache channel keeps.
    App,
    /// A client; on presence channels with its verified user.
    Client(Option<&'a UserId>),
}

impl<'a> Event<'a> {
    /// The message as subscribers get it.
    #[must_use]
    pub fn message(&self) -> ServerMessage<'a> {
        let user = match self.source {
            Source::App => None,
            Source::Client(user) => user,
        };
        ServerMessage::Event { channel: self.channel, event: self.name, data: self.data, user }
    }
}
