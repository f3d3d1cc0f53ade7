//! What one client may do: a message and the time in, an [`Action`] out.
//!
//! A session owns what is true of one established connection: which channels it is subscribed to and as whom,
//! who it is signed in as, and its rates. It performs nothing: the front door that owns the session carries the
//! action out and says how it went ([`Session::joined`]). So the rules are the same through every door, and
//! a test is a transcript.
//!
//! One message leads to one action, hence no list of actions to append to. Sockets, the registry and the wire are
//! not known here. Start at [`Session::receive`].

pub mod liveness;
mod refusal;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::apps::App;
use crate::limits::{Limit, Rate, TokenBucket};
use crate::protocol::json;
use crate::protocol::message::{
    CLIENT_EVENT_RATE, ChannelData, ClientEvent, ClientMessage, Refusal, SignIn, Subscribe,
};
use crate::protocol::name::shown;
use crate::protocol::{Access, ChannelName, CloseCode, Member, SocketId, UserId, UserIdError};
use crate::rejections::{Mistake, Rejection};
use refusal::Refused;

/// Error frames that answer malformed messages.
const ERRORS: Rate = Rate { per_second: 10, burst: 100 };

/// Error frames that answer refused client events. Source: protocol.md §5.
const EVENT_ERRORS: Rate = Rate { per_second: 1, burst: 1 };

/// Frames that are no message, in an app that takes fewer messages. Source: protocol.md §2.4, pings every second.
const FRAMES: Rate = Rate { per_second: 100, burst: 1500 };

fn frames(messages: Rate) -> Rate {
    Rate { per_second: messages.per_second.max(FRAMES.per_second), burst: messages.burst.max(FRAMES.burst) }
}

/// A connection that has used up what it may cause, and goes on for so long without a rest, is closed.
const UNRESTED_MAX: Duration = Duration::from_secs(60);

const WRONG_KIND: &str = "only supported on private and presence channels that are not encrypted";

/// The state of one established connection. See the module's documentation.
#[derive(Debug)]
pub struct Session {
    socket: SocketId,
    app: Arc<App>,
    /// Sorted by name.
    subscriptions: Vec<Subscription>,
    signed_in: Option<Box<SignedIn>>,
    messages: TokenBucket,
    /// Frames that are no message: of control, and all but the last of a message in fragments.
    frames: TokenBucket,
    events: TokenBucket,
    errors: TokenBucket,
    event_errors: TokenBucket,
    /// Bytes of answers, and of what others are told.
    answer_bytes: TokenBucket,
    /// Changes that others are told of.
    changes: TokenBucket,
    /// 0, or since when it has used up more than it may without a rest, in seconds, plus one.
    unrested_since_secs: u32,
}

/// Whether a connection that has caused something is read from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pace {
    /// It is.
    GoOn,
    /// Not for so long, because of a limit.
    Rest(Duration, Limit),
    /// No more: it has gone on for too long.
    Close(Limit),
}

#[derive(Debug)]
struct Subscription {
    channel: ChannelName,
    /// Who the connection is there, on presence channels.
    user: Option<UserId>,
}

/// Who a connection is signed in as.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SignedIn {
    /// The user, with what the application says of them, for presence channels joined without `channel_data`.
    pub member: Member,
    /// Users whose coming and going the client is told of.
    pub watchlist: Vec<UserId>,
}

/// What to do about a message.
#[derive(Debug, Eq, PartialEq)]
pub enum Action<'m> {
    /// Nothing.
    Nothing,
    /// Answer a ping, ahead of what is queued.
    Pong,
    /// Subscribe the connection, then tell the session.
    Join {
        /// To what.
        channel: ChannelName,
        /// As whom, on presence channels.
        member: Option<Member>,
    },
    /// Tell the client that it is not subscribed.
    Refuse {
        /// The name as sent.
        channel: Cow<'m, str>,
        /// Why.
        refusal: Refusal,
        /// The limit that was reached, if that is why.
        limit: Option<Limit>,
    },
    /// End a subscription.
    Leave {
        /// Of what.
        channel: ChannelName,
    },
    /// Publish a client event to the other subscribers.
    Publish {
        /// Where.
        channel: ChannelName,
        /// The name.
        name: Cow<'m, str>,
        /// The payload as JSON text.
        data: &'m str,
        /// On presence channels, who sends it.
        user: Option<UserId>,
    },
    /// Drop a client event.
    Reject {
        /// The limit that was reached, if that is why.
        limit: Option<Limit>,
        /// The code and what is wrong, to tell the client, unless it was told just now.
        told: Option<(Option<u16>, String)>,
    },
    /// Count the connection as the user's and tell the client so.
    SignIn {
        /// The text to give back.
        user_data: Cow<'m, str>,
        /// Who, from now on.
        signed_in: SignedIn,
        /// Whom the connection watched until now.
        watched: Vec<UserId>,
        /// The watchlist was cut to so many.
        cut_to: Option<usize>,
    },
    /// Tell the client what is wrong; the connection goes on.
    Error {
        /// A code that clients act upon, if any.
        code: Option<u16>,
        /// What is wrong.
        message: String,
        /// The same, as it is counted.
        why: Rejection,
    },
    /// End the connection.
    Close {
        /// With this code.
        code: CloseCode,
        /// Why.
        reason: &'static str,
    },
}

/// An error frame without a number.
fn error<'m>(mistake: Mistake, message: impl Into<String>) -> Action<'m> {
    Action::Error { code: None, message: message.into(), why: mistake.into() }
}

impl Session {
    /// The session of a connection to `app` that has just been established.
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
            unrested_since_secs: 0,
            app,
        }
    }

    /// Whose app the connection uses.
    #[must_use]
    pub const fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Who the connection is signed in as.
    #[must_use]
    pub fn signed_in(&self) -> Option<&SignedIn> {
        self.signed_in.as_deref()
    }

    /// Counts a message before it is read; more than the app allows ends the connection. Control frames of the
    /// WebSocket layer are not messages.
    pub fn admit(&mut self, now: Duration) -> Option<Action<'static>> {
        let within = self.messages.take(self.app.limits.messages, now);
        (!within).then_some(Action::Close { code: CloseCode::OverCapacity, reason: "Too many messages" })
    }

    /// Counts a frame that is no message, of which there may be as many as of messages, and never less than
    /// [`FRAMES`]; more end the connection. Counted apart, because some clients send a ping every second.
    pub fn admit_frame(&mut self, now: Duration) -> Option<Action<'static>> {
        let within = self.frames.take(frames(self.app.limits.messages), now);
        (!within).then_some(Action::Close { code: CloseCode::OverCapacity, reason: "Too many frames" })
    }

    /// Charges what the connection has caused: bytes that it and others were sent, and changes that others are told of.
    /// It is not refused what it wants, but waits for it: so a client that comes back with all its channels is served,
    /// and one that goes on is no more than its rate.
    pub fn provoked(&mut self, bytes: u32, changes: u16, now: Duration) -> Pace {
        let limits = &self.app.limits;
        let now_secs = now.as_secs() as u32 + 1;
        if self.answer_bytes.is_rested(limits.answer_bytes, now)
            && self.changes.is_rested(limits.changes, now)
        {
            self.unrested_since_secs = 0;
        }
        let for_bytes = self.answer_bytes.spend(bytes, limits.answer_bytes, now);
        let for_changes = self.changes.spend(changes.into(), limits.changes, now);
        let (wait, limit) = match (for_bytes, for_changes) {
            (None, None) => return Pace::GoOn,
            (for_bytes, for_changes) if for_bytes >= for_changes => (for_bytes, Limit::AnswerBytes),
            (_, for_changes) => (for_changes, Limit::Changes),
        };
        if self.unrested_since_secs == 0 {
            self.unrested_since_secs = now_secs;
        }
        let unrested_secs = now_secs.saturating_sub(self.unrested_since_secs);
        if Duration::from_secs(unrested_secs.into()) > UNRESTED_MAX {
            return Pace::Close(limit);
        }
        Pace::Rest(wait.unwrap_or_default(), limit)
    }

    /// Answers a text that is not a message. Error frames have a rate of their own.
    pub fn malformed(&mut self, problem: impl ToString, now: Duration) -> Action<'static> {
        if self.errors.take(ERRORS, now) {
            error(Mistake::Message, problem.to_string())
        } else {
            Action::Nothing
        }
    }

    /// Decides about one message.
    pub fn receive<'m>(&mut self, message: ClientMessage<'m>, now: Duration) -> Action<'m> {
        match message {
            ClientMessage::Ping => Action::Pong,
            ClientMessage::Pong => Action::Nothing,
            ClientMessage::Subscribe(request) => match self.may_join(&request) {
                Ok((channel, member)) => Action::Join { channel, member },
                Err(Refused { refusal, limit }) => {
                    Action::Refuse { channel: request.channel, refusal, limit }
                }
            },
            ClientMessage::Unsubscribe { channel } => self.unsubscribe(&channel),
            ClientMessage::SignIn(request) => self.sign_in(request, now),
            ClientMessage::Event(event) => self.client_event(event, now),
            ClientMessage::Unsupported { event } => {
                self.malformed(format_args!("Unsupported event received on socket: {}", shown(&event)), now)
            }
        }
    }

    fn place(&self, channel: &str) -> Result<usize, usize> {
        self.subscriptions.binary_search_by(|subscription| subscription.channel.as_str().cmp(channel))
    }

    fn subscription(&self, channel: &str) -> Option<&Subscription> {
        self.place(channel).ok().map(|place| &self.subscriptions[place])
    }

    /// Notes that the join of `channel`, as `user` on presence channels, was carried out. A connection is in its user's
    /// own channel as long as it is signed in, whether it subscribes or unsubscribes.
    pub fn joined(&mut self, channel: ChannelName, user: Option<UserId>) {
        if channel.access() == Access::User {
            return;
        }
        if let Err(place) = self.place(channel.as_str()) {
            // Most connections have few: room is made for one at a time until there are more.
            if self.subscriptions.len() < 4 {
                self.subscriptions.reserve_exact(1);
            }
            self.subscriptions.insert(place, Subscription { channel, user });
        }
    }

    /// The channels that the connection is subscribed to; the session has none of them afterwards.
    pub fn leave_all(&mut self) -> Vec<ChannelName> {
        std::mem::take(&mut self.subscriptions).into_iter().map(|subscription| subscription.channel).collect()
    }

    /// Whether the client may subscribe, and as whom. What it must prove is checked before any limit, so that
    /// strangers cannot probe. Source: protocol.md §4.
    fn may_join(&self, request: &Subscribe<'_>) -> Result<(ChannelName, Option<Member>), Refused> {
        let channel = ChannelName::parse(&request.channel, &self.app.names).map_err(refusal::name)?;
        let member = match channel.access() {
            Access::Public => None,
            Access::User => {
                let own = self.signed_in().is_some_and(|user| channel.belongs_to(&user.member.id));
                if !own {
                    return Err(refusal::not_the_users_channel(&channel).into());
                }
                // It is in already, by its sign-in, and this is no channel of its own.
                return Ok((channel, None));
            }
            Access::Private | Access::Encrypted => {
                self.verify(&channel, request)?;
                if let ChannelData::Text(data) = &request.channel_data {
                    self.check_channel_data(&channel, data)?;
                }
                None
            }
            Access::Presence => {
                self.verify(&channel, request)?;
                Some(self.member(&channel, &request.channel_data)?)
            }
        };
        match self.subscription(channel.as_str()) {
            Some(there) if there.user.as_ref() != member.as_ref().map(|member| &member.id) => {
                Err(refusal::other_user(&channel).into())
            }
            None if self.subscriptions.len() >= self.app.limits.channels_per_connection_max => {
                Err(refusal::too_many_channels(&channel, self.app.limits.channels_per_connection_max))
            }
            Some(_) | None => Ok((channel, member)),
        }
    }

    fn verify(&self, channel: &ChannelName, request: &Subscribe<'_>) -> Result<(), Refusal> {
        let refused = |reason| Err(refusal::not_authorised(channel, reason));
        let channel_data = match &request.channel_data {
            ChannelData::Absent => None,
            ChannelData::Text(data) => Some(&**data),
            ChannelData::NotText => return refused("channel_data is not a string"),
        };
        let Some((key, signature)) = request.auth.as_deref().and_then(|auth| auth.split_once(':')) else {
            return refused("auth is missing or not key:signature");
        };
        let Some(secret) = self.app.secret(key) else {
            return refused("auth was signed with a key that is not of this app");
        };
        if secret.verifies_subscription(signature, self.socket, channel.as_str(), channel_data) {
            return Ok(());
        }
        let data = channel_data.map(|data| format!(":{data}")).unwrap_or_default();
        let string_to_sign = Some(format!("{}:{channel}{data}", self.socket));
        Err(Refusal { string_to_sign, ..refusal::not_authorised(channel, "invalid signature") })
    }

    fn check_channel_data(&self, channel: &ChannelName, data: &str) -> Result<(), Refused> {
        let bytes_max = self.app.limits.channel_data_bytes_max;
        if data.len() > bytes_max {
            return Err(refusal::channel_data_too_large(channel, data.len(), bytes_max));
        }
        if json::is_too_deep(data.as_bytes()) {
            return Err(refusal::channel_data_too_deep(channel).into());
        }
        Ok(())
    }

    /// Who the subscriber of a presence channel is: what the signed `channel_data` says, else the signed-in user.
    fn member(&self, channel: &ChannelName, channel_data: &ChannelData<'_>) -> Result<Member, Refused> {
        let data = match channel_data {
            ChannelData::Text(data) => data,
            ChannelData::Absent | ChannelData::NotText => {
                let user = self.signed_in().map(|signed_in| signed_in.member.clone());
                let nobody = "channel_data is missing and nobody is signed in";
                return user.ok_or_else(|| refusal::not_authorised(channel, nobody).into());
            }
        };
        self.check_channel_data(channel, data)?;
        let limits = &self.app.limits;
        let unusable = |reason| Refused::from(refusal::not_authorised(channel, reason));
        let Ok([id, info]) = json::pick(data, ["user_id", "user_info"]) else {
            return Err(unusable("channel_data is not a JSON object"));
        };
        let Some(id) = id else { return Err(unusable("channel_data has no user_id")) };
        let id =
            UserId::from_json(id, limits.user_id_chars_max).map_err(|why| refusal::user_id(channel, why))?;
        let info = info.map_or("null", |info| info.get());
        let info_bytes_max = limits.presence_user_info_bytes_max;
        if info.len() > info_bytes_max {
            return Err(refusal::user_info_too_large(channel, info.len(), info_bytes_max));
        }
        Ok(Member { id, info: info.into() })
    }

    /// Unknown channels are ignored: clients legitimately race. Source: protocol.md §4.6.
    fn unsubscribe<'m>(&mut self, channel: &str) -> Action<'m> {
        match self.place(channel) {
            Ok(place) => Action::Leave { channel: self.subscriptions.remove(place).channel },
            Err(_) => Action::Nothing,
        }
    }

    /// Source: protocol.md §6.1.
    fn sign_in<'m>(&mut self, request: SignIn<'m>, now: Duration) -> Action<'m> {
        let refused_by = |limit: Option<Limit>, reason: String| {
            let setting = limit.map(|limit| format!(" ({} of the app)", limit.setting()));
            let message = format!("Sign-in refused: {reason}{}", setting.unwrap_or_default());
            let why = limit.map_or(Mistake::SignIn.into(), Rejection::from);
            Action::Error { code: Some(CloseCode::Unauthorized.number()), message, why }
        };
        let refused = |reason: &str| refused_by(None, reason.to_owned());
        let Some(user_data) = request.user_data else {
            return self.malformed("Missing parameter: data.user_data", now);
        };
        let Some(auth) = request.auth else { return self.malformed("Missing parameter: data.auth", now) };
        let verified = auth.split_once(':').is_some_and(|(key, signature)| {
            let secret = self.app.secret(key);
            secret.is_some_and(|secret| secret.verifies_sign_in(signature, self.socket, &user_data))
        });
        if !verified {
            return refused("invalid signature");
        }
        if json::is_too_deep(user_data.as_bytes()) {
            return refused(&format!("user_data is nested more than {} levels deep", json::DEPTH_MAX));
        }
        let limits = &self.app.limits;
        let Ok([id, info, watchlist]) = json::pick(&user_data, ["id", "user_info", "watchlist"]) else {
            return refused("user_data is not a JSON object");
        };
        let Some(id) = id else { return refused("user_data has no id") };
        let id = match UserId::from_json(id, limits.user_id_chars_max).and_then(UserId::with_channel) {
            Ok(id) => id,
            Err(why @ UserIdError::TooLong { .. }) => {
                return refused_by(Some(Limit::UserIdChars), why.to_string());
            }
            Err(why @ (UserIdError::Type | UserIdError::Alphabet)) => return refused(&why.to_string()),
        };
        let info = info.map_or("null", |info| info.get());
        let (bytes, bytes_max) = (info.len(), limits.presence_user_info_bytes_max);
        if bytes > bytes_max {
            let why = format!("user_info has {bytes} bytes, more than the {bytes_max} allowed");
            return refused_by(Some(Limit::UserInfoBytes), why);
        }
        if self.signed_in().is_some_and(|before| before.member.id != id) {
            return refused("the connection is signed in as another user");
        }
        let (watchlist, cut_to) = match watchlist.filter(|_| self.app.watchlist) {
            Some(list) => watchlist_of(list.get(), limits.watchlist_users_max, limits.user_id_chars_max),
            None => (Vec::new(), None),
        };
        let signed_in = SignedIn { member: Member { id, info: info.into() }, watchlist };
        let before = self.signed_in.replace(Box::new(signed_in.clone()));
        let watched = before.map(|before| before.watchlist).unwrap_or_default();
        Action::SignIn { user_data, signed_in, watched, cut_to }
    }

    /// Source: protocol.md §5.
    fn client_event<'m>(&mut self, event: ClientEvent<'m>, now: Duration) -> Action<'m> {
        match self.may_publish(&event) {
            Ok((channel, user)) if self.events.take(self.app.limits.client_events, now) => Action::Publish {
                channel,
                name: event.event,
                data: event.data.map_or("null", |data| data.get()),
                user,
            },
            Ok(_) => {
                let why = format!("over {} per second", self.app.limits.client_events.per_second);
                self.reject(Some(CLIENT_EVENT_RATE), Rejected::by(Limit::ClientEvents, &why), now)
            }
            Err(rejected) => self.reject(None, rejected, now),
        }
    }

    /// Every limit that was reached is counted, also when the client is not told.
    fn reject<'m>(&mut self, code: Option<u16>, rejected: Rejected, now: Duration) -> Action<'m> {
        let Rejected { why, limit } = rejected;
        let may_tell = self.event_errors.take(EVENT_ERRORS, now);
        Action::Reject { limit, told: may_tell.then(|| (code, format!("Client event rejected: {why}"))) }
    }

    fn may_publish(&self, event: &ClientEvent<'_>) -> Result<(ChannelName, Option<UserId>), Rejected> {
        if !self.app.client_events {
            return Err(Rejected::because("client events are switched off for this app"));
        }
        let Some(channel) = &event.channel else { return Err(Rejected::because("the channel is missing")) };
        // The name of a subscription has been checked; another one is, to say what is wrong with it.
        let Some(subscription) = self.subscription(channel) else {
            let channel = ChannelName::parse(channel, &self.app.names)
                .map_err(|why| Rejected::because(why.to_string()))?;
            return Err(match channel.takes_client_events() {
                true => Rejected::because(format!("not subscribed to {channel}")),
                false => Rejected::because(WRONG_KIND),
            });
        };
        if !subscription.channel.takes_client_events() {
            return Err(Rejected::because(WRONG_KIND));
        }
        let chars_max = self.app.limits.event_name_chars_max;
        if event.event.len() == "client-".len() {
            return Err(Rejected::because("the name is only a prefix"));
        }
        if event.event.chars().count() > chars_max {
            let why = format!("the name has more than {chars_max} characters");
            return Err(Rejected::by(Limit::EventNameChars, &why));
        }
        let bytes = event.data.map_or(0, |data| {
            if json::is_string(data) { json::decoded_len(data.get()) } else { data.get().len() }
        });
        let bytes_max = self.app.limits.client_event_data_bytes_max;
        if bytes > bytes_max {
            let why = format!("the data has {bytes} bytes, more than the {bytes_max} allowed");
            return Err(Rejected::by(Limit::ClientEventBytes, &why));
        }
        if event.data.is_some_and(json::is_value_too_deep) {
            let depth_max = json::DEPTH_MAX;
            return Err(Rejected::because(format!("the data is nested more than {depth_max} levels deep")));
        }
        Ok((subscription.channel.clone(), subscription.user.clone()))
    }
}

/// Why a client event is not published.
struct Rejected {
    why: String,
    limit: Option<Limit>,
}

impl Rejected {
    fn because(why: impl Into<String>) -> Self {
        Self { why: why.into(), limit: None }
    }

    fn by(limit: Limit, why: &str) -> Self {
        Self { why: format!("{why} ({} of the app)", limit.setting()), limit: Some(limit) }
    }
}

/// The ids of a watchlist, each once, cut to `users_max`; and that limit, where it cut. What is no id is dropped.
fn watchlist_of(list: &str, users_max: usize, chars_max: usize) -> (Vec<UserId>, Option<usize>) {
    let (mut users, mut seen) = (Vec::new(), HashSet::new());
    for item in json::items(list, usize::MAX - 1).unwrap_or_default() {
        let Ok(user) = UserId::from_json(item, chars_max) else { continue };
        if !seen.insert(user.clone()) {
            continue;
        }
        if users.len() == users_max {
            return (users, Some(users_max));
        }
        users.push(user);
    }
    (users, None)
}

#[cfg(test)]
mod tests;
