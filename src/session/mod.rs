//! The rules for one client: a message and the time in, an [`Action`] out.
//!
//! A session owns the state of one established connection: its subscriptions, its user, and its rates. It performs no I/O:
//! the transport that owns the session carries out the action and reports the result ([`Session::subscribed`]). So the
//! rules are the same for every transport, and a test is a transcript.
//!
//! The list of subscriptions is needed here although the registry has one too: the session checks a client event and the
//! limit of channels without a lock, in a cluster a subscription is decided later than it is requested, and a connection
//! that closes leaves the channels of its list.
//!
//! One message leads to one action, so there is no list of actions. The session knows neither sockets nor the registry nor
//! the wire. Start at [`Session::receive`], then [`subscribe`], [`sign_in`] and [`client_event`].

mod client_event;
pub mod liveness;
mod refusal;
mod sign_in;
mod subscribe;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::apps::App;
use crate::limits::{Limit, Rate, TokenBucket};
use crate::protocol::message::{ClientMessage, Refusal};
use crate::protocol::name::excerpt;
use crate::protocol::{Access, ChannelName, CloseCode, Member, SocketId, UserId};
use crate::rejections::{Mistake, Rejection};
use refusal::Refused;

/// The rate of error frames for malformed messages.
const ERRORS: Rate = Rate { per_second: 10, burst: 100 };

/// The rate of error frames for rejected client events. Source: protocol.md §5.
const EVENT_ERRORS: Rate = Rate { per_second: 1, burst: 1 };

/// The lowest rate of frames that are no message. Source: protocol.md §2.4, pings every second.
const FRAMES: Rate = Rate { per_second: 100, burst: 1500 };

fn frames(messages: Rate) -> Rate {
    Rate { per_second: messages.per_second.max(FRAMES.per_second), burst: messages.burst.max(FRAMES.burst) }
}

/// A connection that has been throttled for this long is closed.
const THROTTLED_MAX: Duration = Duration::from_secs(60);

/// The state of one established connection. See the module's documentation.
#[derive(Debug)]
pub struct Session {
    socket: SocketId,
    app: Arc<App>,
    /// Sorted by name.
    subscriptions: Vec<Subscription>,
    signed_in: Option<Box<SignedIn>>,
    messages: TokenBucket,
    /// Frames that are no message: control frames, and all frames of a fragmented message but the last.
    frames: TokenBucket,
    events: TokenBucket,
    errors: TokenBucket,
    event_errors: TokenBucket,
    /// Bytes that the connection caused to be sent: to itself and to others.
    answer_bytes: TokenBucket,
    /// Changes that the connection caused and that others receive.
    changes: TokenBucket,
    /// The second in which the connection was first throttled, plus one. 0: it is not throttled.
    throttled_since_secs: u32,
}

/// Whether to read from a connection after it was charged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Throttle {
    /// Continue to read.
    Continue,
    /// Do not read for this long, because of the limit.
    Pause(Duration, Limit),
    /// Close the connection: it has exceeded the limit for too long.
    Close(Limit),
}

#[derive(Debug)]
struct Subscription {
    channel: ChannelName,
    /// On presence channels, the user that the connection is.
    user: Option<UserId>,
}

/// The user that a connection is signed in as.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SignedIn {
    /// The user with its info, for presence channels joined without `channel_data`.
    pub member: Member,
    /// The users whose state the client receives.
    pub watchlist: Vec<UserId>,
}

/// The reaction to a message.
#[derive(Debug, Eq, PartialEq)]
pub enum Action<'m> {
    /// Do nothing.
    Nothing,
    /// Reply to a ping, ahead of what is queued.
    Pong,
    /// Subscribe the connection, and call [`Session::subscribed`] if the hub accepts it.
    Join {
        /// The channel.
        channel: ChannelName,
        /// On presence channels, the member.
        member: Option<Member>,
    },
    /// Refuse a subscription.
    Refuse {
        /// The name as the client sent it.
        channel: Cow<'m, str>,
        /// The reason.
        refusal: Refusal,
        /// The limit that was reached, if that is the reason.
        limit: Option<Limit>,
    },
    /// End a subscription.
    Leave {
        /// The channel.
        channel: ChannelName,
    },
    /// Publish a client event to the other subscribers.
    Publish {
        /// The channel.
        channel: ChannelName,
        /// The name of the event.
        name: Cow<'m, str>,
        /// The payload as JSON text.
        data: &'m str,
        /// On presence channels, the user that sends it.
        user: Option<UserId>,
    },
    /// Drop a client event.
    Reject {
        /// The limit that was reached, if that is the reason.
        limit: Option<Limit>,
        /// The code and text of the error frame; `None` if the rate of error frames is exceeded.
        error: Option<(Option<u16>, String)>,
    },
    /// Sign the connection in and acknowledge it.
    SignIn {
        /// The text to acknowledge.
        user_data: Cow<'m, str>,
        /// The user.
        signed_in: SignedIn,
        /// The users that the connection watched before.
        previous_watchlist: Vec<UserId>,
        /// The limit that truncated the watchlist, if it did.
        truncated_to: Option<usize>,
    },
    /// Send an error frame. The connection stays open.
    Error {
        /// A code that clients act on, if any.
        code: Option<u16>,
        /// The text.
        message: String,
        /// The reason, for the metrics.
        why: Rejection,
    },
    /// Close the connection.
    Close {
        /// The close code.
        code: CloseCode,
        /// The reason.
        reason: &'static str,
    },
}

/// An error frame without a code.
fn error<'m>(mistake: Mistake, message: impl Into<String>) -> Action<'m> {
    Action::Error { code: None, message: message.into(), why: mistake.into() }
}

impl Session {
    /// The session of a new connection to `app`.
    #[must_use]
    pub fn new(socket: SocketId, app: Arc<App>) -> Self {
        let app_limits = &app.limits;
        let (messages, events) = (app_limits.messages, app_limits.client_events);
        Self {
            socket,
            subscriptions: Vec::new(),
            signed_in: None,
            messages: TokenBucket::new(messages),
            frames: TokenBucket::new(frames(messages)),
            events: TokenBucket::new(events),
            errors: TokenBucket::new(ERRORS),
            event_errors: TokenBucket::new(EVENT_ERRORS),
            answer_bytes: TokenBucket::new(app_limits.answer_bytes),
            changes: TokenBucket::new(app_limits.changes),
            throttled_since_secs: 0,
            app,
        }
    }

    /// The app of the connection.
    #[must_use]
    pub const fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Continues with other settings of the same app, from the next message on. What the connection has subscribed to stays,
    /// also if it could not subscribe to it now.
    pub fn adopt_settings(&mut self, app: Arc<App>) {
        self.app = app;
    }

    /// The user that the connection is signed in as.
    #[must_use]
    pub fn signed_in(&self) -> Option<&SignedIn> {
        self.signed_in.as_deref()
    }

    /// Counts a message before it is decoded. Returns a close if the rate is exceeded. Control frames of the WebSocket layer
    /// are not messages.
    pub fn admit(&mut self, now: Duration) -> Option<Action<'static>> {
        let within = self.messages.try_acquire(self.app.limits.messages, now);
        (!within).then_some(Action::Close { code: CloseCode::OverCapacity, reason: "Too many messages" })
    }

    /// Counts a frame that is no message. Returns a close if the rate is exceeded: the rate of messages, but at least
    /// [`FRAMES`]. These frames have a rate of their own because some clients send a ping every second.
    pub fn admit_frame(&mut self, now: Duration) -> Option<Action<'static>> {
        let within = self.frames.try_acquire(frames(self.app.limits.messages), now);
        (!within).then_some(Action::Close { code: CloseCode::OverCapacity, reason: "Too many frames" })
    }

    /// Charges the connection for what it caused: bytes sent to it and to others, and changes that others receive. A client
    /// above the rate is not rejected but delayed: so a client that reconnects with all its channels is served at once,
    /// and one that continues is slowed down to its rate.
    pub fn charge(&mut self, bytes: u32, changes: u16, now: Duration) -> Throttle {
        let limits = &self.app.limits;
        let now_secs = now.as_secs() as u32 + 1;
        if self.answer_bytes.is_half_full(limits.answer_bytes, now)
            && self.changes.is_half_full(limits.changes, now)
        {
            self.throttled_since_secs = 0;
        }
        let for_bytes = self.answer_bytes.charge(bytes, limits.answer_bytes, now);
        let for_changes = self.changes.charge(changes.into(), limits.changes, now);
        let (wait, limit) = match (for_bytes, for_changes) {
            (None, None) => return Throttle::Continue,
            (for_bytes, for_changes) if for_bytes >= for_changes => (for_bytes, Limit::AnswerBytes),
            (_, for_changes) => (for_changes, Limit::Changes),
        };
        if self.throttled_since_secs == 0 {
            self.throttled_since_secs = now_secs;
        }
        let throttled_secs = now_secs.saturating_sub(self.throttled_since_secs);
        if Duration::from_secs(throttled_secs.into()) > THROTTLED_MAX {
            return Throttle::Close(limit);
        }
        Throttle::Pause(wait.unwrap_or_default(), limit)
    }

    /// The reaction to a text that is not a message. Error frames have a rate of their own.
    pub fn malformed(&mut self, problem: impl ToString, now: Duration) -> Action<'static> {
        if self.errors.try_acquire(ERRORS, now) {
            error(Mistake::Message, problem.to_string())
        } else {
            Action::Nothing
        }
    }

    /// Decides the reaction to a message.
    pub fn receive<'m>(&mut self, message: ClientMessage<'m>, now: Duration) -> Action<'m> {
        match message {
            ClientMessage::Ping => Action::Pong,
            ClientMessage::Pong => Action::Nothing,
            ClientMessage::Subscribe(request) => match self.check_subscribe(&request) {
                Ok((channel, member)) => Action::Join { channel, member },
                Err(Refused { refusal, limit }) => {
                    Action::Refuse { channel: request.channel, refusal, limit }
                }
            },
            ClientMessage::Unsubscribe { channel } => self.unsubscribe(&channel),
            ClientMessage::SignIn(request) => self.sign_in(request, now),
            ClientMessage::Event(event) => self.client_event(event, now),
            ClientMessage::Unsupported { event } => {
                self.malformed(format_args!("Unsupported event received on socket: {}", excerpt(&event)), now)
            }
        }
    }

    fn position(&self, channel: &str) -> Result<usize, usize> {
        self.subscriptions.binary_search_by(|subscription| subscription.channel.as_str().cmp(channel))
    }

    fn subscription(&self, channel: &str) -> Option<&Subscription> {
        self.position(channel).ok().map(|position| &self.subscriptions[position])
    }

    /// Adds a subscription that the hub has accepted, on presence channels as `user`; in a cluster it may still be refused. A
    /// user's own channel is not added: the
    /// connection is in it as long as it is signed in, whether it subscribes or unsubscribes.
    pub fn subscribed(&mut self, channel: ChannelName, user: Option<UserId>) {
        if channel.access() == Access::User {
            return;
        }
        if let Err(position) = self.position(channel.as_str()) {
            // Most connections have few subscriptions, so the capacity of a short list grows by one.
            if self.subscriptions.len() < 4 {
                self.subscriptions.reserve_exact(1);
            }
            self.subscriptions.insert(position, Subscription { channel, user });
        }
    }

    /// Removes all subscriptions from the session and returns their channels.
    pub fn take_subscriptions(&mut self) -> Vec<ChannelName> {
        std::mem::take(&mut self.subscriptions).into_iter().map(|subscription| subscription.channel).collect()
    }
}

#[cfg(test)]
mod tests;
