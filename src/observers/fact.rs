//! What can be watched.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use super::Kind;
use crate::protocol::{ChannelName, CloseCode, SocketId, UserId};
use crate::rejections::{Example, Field, Rejection};

/// A text of a fact.
pub type Text<'a> = Cow<'a, str>;

/// A fact that outlives what it is about.
pub type OwnedFact = Fact<'static>;

/// Something that happened on this node. `app` is the id of an app.
///
/// A text that is a payload is `None` for observers that do not ask for payloads.
#[derive(Debug)]
pub enum Fact<'a> {
    /// A connection is established.
    Connected {
        /// The app.
        app: Text<'a>,
        /// The connection.
        socket: SocketId,
        /// The address of the client.
        address: IpAddr,
        /// The origin of its page, shortened.
        origin: Option<Text<'a>>,
        /// Its library and the version of that, shortened.
        library: Option<Text<'a>>,
    },
    /// A connection is closed, and has left its channels.
    Disconnected {
        /// The app.
        app: Text<'a>,
        /// The connection.
        socket: SocketId,
        /// The code that it was closed with; `None`: it ended without one.
        code: Option<CloseCode>,
        /// The limit that it reached, or how it ended without a code.
        reason: Option<&'static str>,
        /// How long it was established, to a second.
        duration: Duration,
    },
    /// A connection is subscribed to a channel.
    Subscribed {
        /// The app.
        app: Text<'a>,
        /// The channel.
        channel: Cow<'a, ChannelName>,
        /// The connection.
        socket: SocketId,
        /// Whether it was subscribed already.
        again: bool,
    },
    /// A subscription has ended, also because its connection has closed.
    Unsubscribed {
        /// The app.
        app: Text<'a>,
        /// The channel.
        channel: Cow<'a, ChannelName>,
        /// The connection.
        socket: SocketId,
    },
    /// A connection is signed in.
    SignedIn {
        /// The app.
        app: Text<'a>,
        /// The connection.
        socket: SocketId,
        /// The user.
        user: Cow<'a, UserId>,
    },
    /// A connection that was signed in has closed.
    SignedOut {
        /// The app.
        app: Text<'a>,
        /// The connection.
        socket: SocketId,
        /// The user.
        user: Cow<'a, UserId>,
    },
    /// A client sent a message, which has not been looked at yet.
    MessageReceived {
        /// The app.
        app: Text<'a>,
        /// The connection.
        socket: SocketId,
        /// The length of the text.
        bytes: usize,
        /// The text. A payload, with the `auth` of subscriptions and sign-ins.
        text: Option<Text<'a>>,
    },
    /// An event is published.
    Published {
        /// The app.
        app: Text<'a>,
        /// The channel.
        channel: Cow<'a, ChannelName>,
        /// The name of the event.
        event: Text<'a>,
        /// The length of the data.
        bytes: usize,
        /// The data. A payload.
        data: Option<Text<'a>>,
        /// The sender.
        publisher: Publisher<'a>,
        /// The subscribers that the channel had on this node at that moment: those that it reached on a single node, but for
        /// a client that sent it or was excluded.
        subscribers: usize,
        /// If there were none: channels with subscribers whose names differ in the prefix only.
        occupied_instead: Vec<ChannelName>,
    },
    /// Something is rejected, or reached a limit.
    Rejected {
        /// The limit or the mistake.
        rejection: Rejection,
        /// What it is about, with the reason.
        example: Example<'a>,
    },
    /// A signature of a request or of a subscription does not match.
    SignatureMismatch {
        /// The app.
        app: Text<'a>,
        /// The connection, for a subscription.
        socket: Option<SocketId>,
        /// What had to be signed. A payload for a subscription, because it has the channel data.
        string_to_sign: Option<Text<'a>>,
    },
    /// The application closed all connections that are signed in as a user.
    UserTerminated {
        /// The app.
        app: Text<'a>,
        /// The user.
        user: Cow<'a, UserId>,
        /// How many there were on this node.
        connections: usize,
    },
    /// The application closed all connections that are in presence channels as a user.
    MembersTerminated {
        /// The app.
        app: Text<'a>,
        /// The user.
        user: Cow<'a, UserId>,
    },
    /// A request to the HTTP API, or to a health route, is answered.
    ApiRequest {
        /// The app, if the path is that of one.
        app: Option<Text<'a>>,
        /// The method.
        method: Text<'a>,
        /// The path without the query, shortened.
        path: Text<'a>,
        /// The address of the client.
        address: Option<IpAddr>,
        /// The status of the response.
        status: u16,
        /// From the head of the request to the response.
        duration: Duration,
    },
    /// A webhook request was answered with 2xx.
    WebhookSent {
        /// The app.
        app: Text<'a>,
        /// The receiver, without the query.
        url: Text<'a>,
        /// The number of events.
        events: usize,
        /// How long the attempt took.
        duration: Duration,
        /// The body. A payload.
        body: Option<Text<'a>>,
    },
    /// An attempt at a webhook request failed.
    WebhookFailed {
        /// The app.
        app: Text<'a>,
        /// The receiver, without the query.
        url: Text<'a>,
        /// The number of events.
        events: usize,
        /// How long the attempt took.
        duration: Duration,
        /// The error.
        error: Text<'a>,
        /// The body. A payload.
        body: Option<Text<'a>>,
    },
    /// A webhook request is not attempted any more. It is a dead letter, or is lost if there is no file for those.
    WebhookDeadLettered {
        /// The app.
        app: Text<'a>,
        /// The receiver, without the query.
        url: Text<'a>,
        /// The number of events.
        events: usize,
        /// The attempts before.
        attempts: u32,
        /// The error of the last attempt, or why there is none.
        error: Text<'a>,
    },
    /// The broker of the cluster became available or unavailable.
    ClusterAvailability {
        /// Whether it is available now.
        is_available: bool,
    },
}

/// The sender of an event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Publisher<'a> {
    /// The application, over HTTP.
    App,
    /// A client.
    Client {
        /// Its connection.
        socket: SocketId,
        /// Its user, on presence channels.
        user: Option<Cow<'a, UserId>>,
    },
}

impl<'a> Fact<'a> {
    /// What the fact is about.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Connected { .. } => Kind::Connected,
            Self::Disconnected { .. } => Kind::Disconnected,
            Self::Subscribed { .. } => Kind::Subscribed,
            Self::Unsubscribed { .. } => Kind::Unsubscribed,
            Self::SignedIn { .. } => Kind::SignedIn,
            Self::SignedOut { .. } => Kind::SignedOut,
            Self::MessageReceived { .. } => Kind::MessageReceived,
            Self::Published { .. } => Kind::Published,
            Self::Rejected { .. } => Kind::Rejected,
            Self::SignatureMismatch { .. } => Kind::SignatureMismatch,
            Self::UserTerminated { .. } => Kind::UserTerminated,
            Self::MembersTerminated { .. } => Kind::MembersTerminated,
            Self::ApiRequest { .. } => Kind::ApiRequest,
            Self::WebhookSent { .. } => Kind::WebhookSent,
            Self::WebhookFailed { .. } => Kind::WebhookFailed,
            Self::WebhookDeadLettered { .. } => Kind::WebhookDeadLettered,
            Self::ClusterAvailability { .. } => Kind::ClusterAvailability,
        }
    }

    /// The id of the app, if the fact is about one. Of a rejection, it may be the beginning of what a peer gave as the id.
    #[must_use]
    pub fn app(&self) -> Option<&str> {
        match self {
            Self::Connected { app, .. }
            | Self::Disconnected { app, .. }
            | Self::Subscribed { app, .. }
            | Self::Unsubscribed { app, .. }
            | Self::SignedIn { app, .. }
            | Self::SignedOut { app, .. }
            | Self::MessageReceived { app, .. }
            | Self::Published { app, .. }
            | Self::SignatureMismatch { app, .. }
            | Self::UserTerminated { app, .. }
            | Self::MembersTerminated { app, .. }
            | Self::WebhookSent { app, .. }
            | Self::WebhookFailed { app, .. }
            | Self::WebhookDeadLettered { app, .. } => Some(app),
            Self::ApiRequest { app, .. } => app.as_deref(),
            Self::Rejected { example, .. } => example.get(Field::App),
            Self::ClusterAvailability { .. } => None,
        }
    }

    /// The name of the channel, if the fact is about one. Of a rejection, it is unchecked, and only its beginning.
    #[must_use]
    pub fn channel(&self) -> Option<&str> {
        match self {
            Self::Subscribed { channel, .. }
            | Self::Unsubscribed { channel, .. }
            | Self::Published { channel, .. } => Some(channel.as_str()),
            Self::Rejected { example, .. } => example.get(Field::Channel),
            Self::Connected { .. }
            | Self::Disconnected { .. }
            | Self::SignedIn { .. }
            | Self::SignedOut { .. }
            | Self::MessageReceived { .. }
            | Self::SignatureMismatch { .. }
            | Self::UserTerminated { .. }
            | Self::MembersTerminated { .. }
            | Self::ApiRequest { .. }
            | Self::WebhookSent { .. }
            | Self::WebhookFailed { .. }
            | Self::WebhookDeadLettered { .. }
            | Self::ClusterAvailability { .. } => None,
        }
    }

    /// The connection that the fact is about. Of an event, it is the client that sent it.
    #[must_use]
    pub const fn socket(&self) -> Option<SocketId> {
        match self {
            Self::Connected { socket, .. }
            | Self::Disconnected { socket, .. }
            | Self::Subscribed { socket, .. }
            | Self::Unsubscribed { socket, .. }
            | Self::SignedIn { socket, .. }
            | Self::SignedOut { socket, .. }
            | Self::MessageReceived { socket, .. }
            | Self::Published { publisher: Publisher::Client { socket, .. }, .. } => Some(*socket),
            Self::Rejected { example, .. } => example.socket,
            Self::SignatureMismatch { socket, .. } => *socket,
            Self::Published { publisher: Publisher::App, .. }
            | Self::UserTerminated { .. }
            | Self::MembersTerminated { .. }
            | Self::ApiRequest { .. }
            | Self::WebhookSent { .. }
            | Self::WebhookFailed { .. }
            | Self::WebhookDeadLettered { .. }
            | Self::ClusterAvailability { .. } => None,
        }
    }

    /// Drops the payload.
    pub(super) fn withhold_payload(&mut self) {
        match self {
            Self::MessageReceived { text: payload, .. }
            | Self::Published { data: payload, .. }
            | Self::SignatureMismatch { socket: Some(_), string_to_sign: payload, .. }
            | Self::WebhookSent { body: payload, .. }
            | Self::WebhookFailed { body: payload, .. } => *payload = None,
            Self::Connected { .. }
            | Self::Disconnected { .. }
            | Self::Subscribed { .. }
            | Self::Unsubscribed { .. }
            | Self::SignedIn { .. }
            | Self::SignedOut { .. }
            | Self::Rejected { .. }
            | Self::SignatureMismatch { socket: None, .. }
            | Self::UserTerminated { .. }
            | Self::MembersTerminated { .. }
            | Self::ApiRequest { .. }
            | Self::WebhookDeadLettered { .. }
            | Self::ClusterAvailability { .. } => {}
        }
    }

    /// About how much memory a queued fact takes: its size, and the one text that may be long.
    pub(super) fn bytes(&self) -> usize {
        let long = if let Self::MessageReceived { text: Some(text), .. }
        | Self::Published { data: Some(text), .. }
        | Self::SignatureMismatch { string_to_sign: Some(text), .. }
        | Self::WebhookSent { body: Some(text), .. }
        | Self::WebhookFailed { body: Some(text), .. } = self
        {
            text.len()
        } else {
            0
        };
        size_of::<Self>() + long
    }

    /// A copy that outlives what the fact is about.
    pub(super) fn to_owned_fact(&self) -> OwnedFact {
        match self {
            Self::Connected { app, socket, address, origin, library } => Fact::Connected {
                app: owned(app),
                socket: *socket,
                address: *address,
                origin: origin.as_ref().map(owned),
                library: library.as_ref().map(owned),
            },
            Self::Disconnected { app, socket, code, reason, duration } => Fact::Disconnected {
                app: owned(app),
                socket: *socket,
                code: *code,
                reason: *reason,
                duration: *duration,
            },
            Self::Subscribed { app, channel, socket, again } => {
                Fact::Subscribed { app: owned(app), channel: owned(channel), socket: *socket, again: *again }
            }
            Self::Unsubscribed { app, channel, socket } => {
                Fact::Unsubscribed { app: owned(app), channel: owned(channel), socket: *socket }
            }
            Self::SignedIn { app, socket, user } => {
                Fact::SignedIn { app: owned(app), socket: *socket, user: owned(user) }
            }
            Self::SignedOut { app, socket, user } => {
                Fact::SignedOut { app: owned(app), socket: *socket, user: owned(user) }
            }
            Self::MessageReceived { app, socket, bytes, text } => Fact::MessageReceived {
                app: owned(app),
                socket: *socket,
                bytes: *bytes,
                text: text.as_ref().map(owned),
            },
            Self::Published {
                app,
                channel,
                event,
                bytes,
                data,
                publisher,
                subscribers,
                occupied_instead,
            } => Fact::Published {
                app: owned(app),
                channel: owned(channel),
                event: owned(event),
                bytes: *bytes,
                data: data.as_ref().map(owned),
                publisher: publisher.to_owned_publisher(),
                subscribers: *subscribers,
                occupied_instead: occupied_instead.clone(),
            },
            Self::Rejected { rejection, example } => {
                Fact::Rejected { rejection: *rejection, example: example.clone().into_owned() }
            }
            Self::SignatureMismatch { app, socket, string_to_sign } => Fact::SignatureMismatch {
                app: owned(app),
                socket: *socket,
                string_to_sign: string_to_sign.as_ref().map(owned),
            },
            Self::UserTerminated { app, user, connections } => {
                Fact::UserTerminated { app: owned(app), user: owned(user), connections: *connections }
            }
            Self::MembersTerminated { app, user } => {
                Fact::MembersTerminated { app: owned(app), user: owned(user) }
            }
            Self::ApiRequest { app, method, path, address, status, duration } => Fact::ApiRequest {
                app: app.as_ref().map(owned),
                method: owned(method),
                path: owned(path),
                address: *address,
                status: *status,
                duration: *duration,
            },
            Self::WebhookSent { app, url, events, duration, body } => Fact::WebhookSent {
                app: owned(app),
                url: owned(url),
                events: *events,
                duration: *duration,
                body: body.as_ref().map(owned),
            },
            Self::WebhookFailed { app, url, events, duration, error, body } => Fact::WebhookFailed {
                app: owned(app),
                url: owned(url),
                events: *events,
                duration: *duration,
                error: owned(error),
                body: body.as_ref().map(owned),
            },
            Self::WebhookDeadLettered { app, url, events, attempts, error } => Fact::WebhookDeadLettered {
                app: owned(app),
                url: owned(url),
                events: *events,
                attempts: *attempts,
                error: owned(error),
            },
            Self::ClusterAvailability { is_available } => {
                Fact::ClusterAvailability { is_available: *is_available }
            }
        }
    }
}

impl Publisher<'_> {
    fn to_owned_publisher(&self) -> Publisher<'static> {
        match self {
            Self::App => Publisher::App,
            Self::Client { socket, user } => {
                Publisher::Client { socket: *socket, user: user.as_ref().map(owned) }
            }
        }
    }
}

#[expect(clippy::ptr_arg, reason = "every field is one, and a generic `&T` is not dereferenced")]
fn owned<T: ToOwned + ?Sized>(value: &Cow<'_, T>) -> Cow<'static, T> {
    Cow::Owned(T::to_owned(value))
}
