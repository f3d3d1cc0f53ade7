//! The task of a connection: owns the socket's reading side and the session, and waits in one place.
//!
//! One hand-written poll instead of a `select!` over several futures: an idle connection is this struct, its
//! outbox and nothing else, and what arrives is read into a buffer that all connections of a thread share.

use std::cell::RefCell;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Sleep;
use tracing::debug;

use super::Door;
use super::admission::{Admitted, NodePlaces, Refused};
use super::upgrade::About;
use crate::apps::{App, ConnectionPermit};
use crate::hub::{self, Backlog};
use crate::limits::Limit;
use crate::outbox::{Closing, Held, Outbox, Pulse, Transport, Unfinished};
use crate::protocol::message::{Event, ServerMessage, Source};
use crate::protocol::wire::deflate::Compression;
use crate::protocol::wire::websocket::{self, Decoder, Incoming, Violation};
use crate::protocol::wire::{Frame, pusher};
use crate::protocol::{Access, ChannelName, CloseCode, SocketId};
use crate::rejections::{Example, Mistake, Rejection};
use crate::session::{Action, Session, Throttle};

/// Bytes taken from a socket at once.
const READ_BYTES: usize = 64 * 1024;

/// A client for which more than this waits is not read from, if it has caused it, until it has taken it.
const UNREAD_ANSWERS_MAX: usize = 64 * 1024;

/// How long a client has to answer a Close before its connection is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

static PONG: LazyLock<Frame> = LazyLock::new(|| pusher::encode(&ServerMessage::Pong));

/// The connection of one client, from its first frame to its last. Dropping it leaves every channel.
#[derive(Debug)]
pub(super) struct Connection {
    door: Door,
    outbox: Arc<Outbox>,
    decoder: Decoder,
    /// What an established connection has, and a refused or closing one has not.
    established: Option<Box<Established>>,
    /// The client broke the framing: what it sends has no beginning and no end any more.
    deaf: bool,
    /// Why nothing is read now.
    pause: Option<Box<Pause>>,
    /// Set while the connection is closing.
    leaving: Option<Box<Leaving>>,
}

/// There is one for every client, so a field more is a decision.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Connection>() <= 88);

/// What has to come about before more of a client's is read, and obeyed.
#[derive(Debug, Default)]
struct Pause {
    /// A channel catches up.
    backlog: Option<Backlog>,
    /// It may cause something again.
    rest: Option<Pin<Box<Sleep>>>,
    /// It has taken of its answers what it has not read.
    answers: bool,
    /// What has been read and not obeyed, in the node's budget.
    _held: Option<Held>,
}

impl Pause {
    /// Whether not even what has been read is obeyed.
    const fn is_at_once(&self) -> bool {
        self.rest.is_some() || self.answers
    }

    /// To be polled after the outbox was flushed, which wakes the task when something is taken.
    fn poll_over(&mut self, outbox: &Outbox, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(backlog) = &mut self.backlog {
            ready!(backlog.poll_ready(cx));
            self.backlog = None;
        }
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(cx));
            self.rest = None;
        }
        if self.answers && outbox.queued_bytes() > UNREAD_ANSWERS_MAX {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

#[derive(Debug)]
struct Established {
    session: Session,
    places: Admitted,
    /// Where the client is, for what is logged of its mistakes.
    address: IpAddr,
}

/// What a connection that is closing, or refused, still has.
#[derive(Debug, Default)]
struct Leaving {
    /// What it has yet to leave.
    rest: Option<Rest>,
    /// The client is gone: nothing else is left to do.
    is_gone: bool,
    /// When it is dropped, whatever the client does.
    deadline: Option<Pin<Box<Sleep>>>,
    /// As long as there is a socket, so that no client has more of them by not closing its end.
    _places: Option<NodePlaces>,
}

/// What a connection is in that is not established any more.
#[derive(Debug)]
struct Rest {
    session: Session,
    channels: Vec<ChannelName>,
    /// Why it ends; `None`: the client is gone.
    closing: Option<Closing>,
    /// Among those of its app, until it has left everything.
    _place: ConnectionPermit,
}

impl Connection {
    /// Establishes the connection, or tells the client why not. `early` is what it sent ahead of the answer, in which
    /// `compression` was agreed upon.
    pub(super) fn new(
        door: &Door,
        transport: Transport,
        early: &Bytes,
        admitted: Result<Admitted, Refused>,
        compression: Compression,
        about: &About,
    ) -> Self {
        let hub = &door.0.hub;
        let socket = loop {
            // Two halves of one random number, which is as good as two random numbers.
            let random = getrandom::u64().expect("the system has randomness");
            let socket = SocketId::new((random >> 32) as u32, random as u32);
            if !hub.connections().has(socket) {
                break socket;
            }
        };
        let now = hub.now();
        let app = admitted.as_ref().ok().map(|places| Arc::clone(places.app_place.app()));
        let authorize_by = app.as_ref().and_then(|app| app.authorized_connections_timeout).map(|by| now + by);
        let bytes_max = app.as_ref().map_or(0, |app| app.limits.outbox_bytes_max);
        let outbox = Outbox::new(socket, transport, bytes_max, Pulse::new(now, authorize_by));
        let mut connection = Self {
            door: door.clone(),
            outbox: Arc::new(outbox.within(&door.0.budget).compressing(compression)),
            decoder: Decoder::new(compression),
            established: None,
            deaf: false,
            pause: None,
            leaving: None,
        };
        match admitted {
            Ok(places) => {
                let app = Arc::clone(places.app_place.app());
                let session = Session::new(socket, Arc::clone(&app));
                connection.established =
                    Some(Box::new(Established { session, places, address: about.address }));
                connection.establish(&app, about);
                connection.take(&mut early.to_vec());
            }
            Err(Refused { code, message, .. }) => connection.outbox.close(code, &message),
        }
        connection
    }

    fn establish(&self, app: &App, about: &About) {
        let hub = &self.door.0.hub;
        let activity_timeout_secs = self.door.0.options.activity_timeout.as_secs();
        self.outbox.say(&ServerMessage::Established { socket: self.outbox.socket(), activity_timeout_secs });
        let is_new = hub.connections().add(&self.outbox);
        if !is_new {
            self.outbox.close(CloseCode::OverCapacity, "Socket id is taken");
        } else if hub.is_draining() {
            // The drain may have looked at the connections just before this one was among them.
            self.outbox.close(hub.drain_close_code(), "Server is shutting down");
        } else {
            let About { address, origin, library } = about;
            let (origin, library) = (origin.as_deref(), library.as_deref());
            debug!(app = %app.id, socket = %self.outbox.socket(), %address, origin, library, "connection established");
        }
    }

    /// Decodes and obeys what the client sent.
    fn take(&mut self, bytes: &mut [u8]) {
        if !bytes.is_empty() {
            self.decode(bytes);
        }
    }

    /// Decodes and obeys `bytes`, behind what was left when it had to pause.
    fn decode(&mut self, bytes: &mut [u8]) {
        if self.deaf {
            return;
        }
        let now = self.door.0.hub.now();
        let limit = |established: &Established| established.session.app().limits.message_bytes_max;
        // A client that is refused or closed can say nothing that counts.
        let message_bytes_max = self.established.as_deref().map_or(READ_BYTES, limit);
        let mut decoder = std::mem::take(&mut self.decoder);
        if self.established.is_none() {
            decoder.skip_compressed();
        }
        // Of several pings in a row only the last is answered, as RFC 6455 §5.5.3 allows: a flood of them costs one
        // answer a read.
        let mut pong = None;
        // Whether a message has ended, and whether any frame has.
        let (mut message_ended, mut frame_ended) = (false, false);
        let fed = decoder.feed(bytes, message_bytes_max, |incoming| {
            frame_ended = true;
            message_ended |= matches!(incoming, Incoming::Text(_) | Incoming::Binary);
            self.outbox.pulse.beat(now);
            self.obey(incoming, &mut pong, now)
        });
        let pauses = self.pause.as_ref().is_some_and(|pause| pause.is_at_once());
        // Of frames in between, only the last one of a message in fragments ends anything. What waits to be obeyed is
        // no message that does not end.
        let unfinished = (decoder.is_unfinished() && !pauses).then(|| {
            let is_new = message_ended || (frame_ended && !decoder.is_fragmented());
            if is_new { Unfinished::New } else { Unfinished::Same }
        });
        self.outbox.pulse.unfinished(unfinished, now);
        if pauses {
            self.keep(decoder.buffered_bytes());
        }
        self.decoder = decoder;
        if let Some(pong) = pong {
            self.answer_first(&pong);
            self.goes_on(now);
        }
        if let Err(violation) = fed {
            self.deaf = true;
            if let (Violation::TooBig { .. }, Some(established)) = (violation, &self.established) {
                let example = Example::from(established.address).socket(self.outbox.socket());
                self.door.0.hub.reject(Limit::MessageBytes, Some(established.session.app()), example);
            }
            self.outbox.close(violation.code(), &violation.to_string());
        }
    }

    /// Counts what has been read and is obeyed later.
    fn keep(&mut self, bytes: usize) {
        let held = self.outbox.hold(bytes);
        if held.is_none() {
            self.outbox.evict();
        } else if let Some(pause) = &mut self.pause {
            pause._held = held;
        }
    }

    /// Answers ahead of what is queued.
    fn answer_first(&self, frame: &Bytes) {
        self.outbox.provoked(frame.len(), 0);
        self.outbox.send_first(frame);
    }

    /// Charges what the client has caused; whether more of what it has sent is obeyed now.
    fn goes_on(&mut self, now: Duration) -> bool {
        let (bytes, changes) = self.outbox.take_provoked();
        if bytes == 0 && changes == 0 {
            return true;
        }
        let Some(established) = &mut self.established else { return true };
        let session = &mut established.session;
        match session.charge(bytes, changes, now) {
            Throttle::Continue => {}
            Throttle::Pause(wait, limit) => {
                let example = Example::from(established.address).socket(self.outbox.socket());
                self.door.0.hub.reject(limit, Some(session.app()), example);
                self.pause.get_or_insert_default().rest = Some(Box::pin(tokio::time::sleep(wait)));
            }
            Throttle::Close(limit) => {
                self.outbox.close_at(limit, "Too much was asked for");
                self.depart();
                return true;
            }
        }
        if self.outbox.queued_bytes() > UNREAD_ANSWERS_MAX {
            self.pause.get_or_insert_default().answers = true;
        }
        !self.pause.as_ref().is_some_and(|pause| pause.is_at_once())
    }

    /// Acts upon one message; whether to go on with the next.
    fn obey(&mut self, incoming: Incoming<'_>, pong: &mut Option<Bytes>, now: Duration) -> bool {
        if !matches!(incoming, Incoming::Ping(_))
            && let Some(pong) = pong.take()
        {
            self.answer_first(&pong);
        }
        match incoming {
            Incoming::Text(text) => {
                let Some(established) = &mut self.established else { return true };
                let session = &mut established.session;
                let shown = || self.door.0.hub.logs_payloads().then_some(text);
                debug!(socket = %self.outbox.socket(), bytes = text.len(), text = shown(), "message received");
                let action = match session.admit(now) {
                    Some(close) => {
                        let example = Example::from(established.address).socket(self.outbox.socket());
                        self.door.0.hub.reject(Limit::Messages, Some(session.app()), example);
                        close
                    }
                    None => match pusher::decode(text) {
                        Ok(message) => session.receive(message, now),
                        Err(error) => session.malformed(error, now),
                    },
                };
                self.perform(action);
                return self.goes_on(now);
            }
            Incoming::Fragment => self.admit_frame(now),
            Incoming::Binary => {
                self.close(CloseCode::Unsupported, "binary frames are not part of the protocol")
            }
            Incoming::Ping(payload) => {
                *pong = Some(websocket::pong(payload));
                self.admit_frame(now);
            }
            Incoming::Pong => self.admit_frame(now),
            Incoming::Close(code) => {
                if self.outbox.closing().is_some() {
                    // The answer to our own Close: nothing is left to wait for.
                    self.outbox.end();
                } else {
                    self.outbox.answer_close(code);
                }
                self.deaf = true;
                return false;
            }
        }
        true
    }

    /// Counts a frame that is no message.
    fn admit_frame(&mut self, now: Duration) {
        let Some(established) = &mut self.established else { return };
        if let Some(close) = established.session.admit_frame(now) {
            let example = Example::from(established.address).socket(self.outbox.socket());
            self.door.0.hub.reject(Limit::Messages, Some(established.session.app()), example);
            self.perform(close);
        }
    }

    /// Closes the connection: what the client still says is not obeyed.
    fn close(&mut self, code: CloseCode, reason: &str) {
        self.outbox.close(code, reason);
        self.depart();
    }

    fn perform(&mut self, action: Action<'_>) {
        let (hub, outbox) = (&self.door.0.hub, &self.outbox);
        let mut wait_for = |full: Option<Backlog>| {
            if let Some(full) = full {
                self.pause.get_or_insert_default().backlog = Some(full);
            }
        };
        let Some(Established { session, address, .. }) = self.established.as_deref_mut() else { return };
        let app = Arc::clone(session.app());
        let example = || Example::from(*address).socket(outbox.socket());
        match action {
            Action::Nothing => {}
            // Not charged: the rate of messages bounds it, and it is what idle clients ask for.
            Action::Pong => outbox.send_first(PONG.bytes()),
            Action::Join { channel, member } => {
                let user = member.as_ref().map(|member| member.id.clone());
                // Who is refused has been told so.
                if let Ok(full) = hub.join(&app, outbox, &channel, member) {
                    wait_for(full);
                    if channel.access() != Access::Public {
                        outbox.pulse.authorize();
                    }
                    session.subscribed(channel, user);
                }
            }
            Action::Refuse { channel, refusal, limit } => {
                let why = limit.map_or(Mistake::Subscription.into(), Rejection::from);
                hub.reject(why, Some(&app), example().channel(&*channel).reason(&*refusal.reason));
                if hub.logs_payloads()
                    && let Some(string_to_sign) = &refusal.string_to_sign
                {
                    debug!(socket = %outbox.socket(), string_to_sign, "what a subscription should have been signed of");
                }
                hub::refuse(&app, outbox, &channel, &refusal);
            }
            Action::Leave { channel } => wait_for(hub.leave(&app, &channel, outbox.socket())),
            Action::Publish { channel, name, data, user } => {
                let source = Source::Client(user.as_ref());
                let event =
                    Event { channel: &channel, name: &name, data, except: Some(outbox.socket()), source };
                match hub.publish_from_client(&app, &event) {
                    Ok(full) => wait_for(full),
                    Err(lost) => {
                        let message = format!("Client event not sent: {lost}");
                        outbox.say(&ServerMessage::Error { code: None, message: &message });
                    }
                }
            }
            Action::SignIn { user_data, signed_in, previous_watchlist, truncated_to } => {
                outbox.pulse.authorize();
                let sign_in = hub::SignIn {
                    user: &signed_in.member.id,
                    user_data: &user_data,
                    previous_watchlist: &previous_watchlist,
                    watchlist: &signed_in.watchlist,
                    truncated_to,
                };
                hub.sign_in(&app, outbox, &sign_in);
            }
            Action::Reject { limit, error } => {
                let why = limit.map_or(Mistake::ClientEvent.into(), Rejection::from);
                let example = match &error {
                    Some((_, message)) => example().reason(&**message),
                    None => example(),
                };
                hub.reject(why, Some(&app), example);
                if let Some((code, message)) = error {
                    outbox.say(&ServerMessage::Error { code, message: &message });
                }
            }
            Action::Error { code, message, why } => {
                hub.reject(why, Some(&app), example().reason(&*message));
                outbox.say(&ServerMessage::Error { code, message: &message });
            }
            Action::Close { code, reason } => self.close(code, reason),
        }
    }

    /// From now on the connection is not established any more, and about to leave everything that it was in, which
    /// [`Connection::leave_some`] does. It gets nothing of that any more: it is closed, or its client is gone.
    fn depart(&mut self) {
        let Some(established) = self.established.take() else { return };
        let Established { mut session, places: Admitted { app_place, on_node }, address } = *established;
        let hub = &self.door.0.hub;
        hub.connections().remove(&self.outbox);
        let app = Arc::clone(session.app());
        let closing = self.outbox.closing();
        if closing.is_none() {
            self.outbox.end();
        }
        if let Some(Closing::Limit(limit)) = closing {
            let example = Example::from(address).socket(self.outbox.socket());
            hub.reject(limit, Some(&app), example.value(self.door.value_of(limit)));
        }
        let channels = session.take_subscriptions();
        let leaving = self.leaving.get_or_insert_default();
        leaving._places = Some(on_node);
        leaving.rest = Some(Rest { session, channels, closing, _place: app_place });
    }

    /// Leaves some of what the connection was in; whether that was all.
    fn leave_some(&mut self) -> bool {
        let Some(leaving) = &mut self.leaving else { return true };
        let Some(rest) = &mut leaving.rest else { return true };
        let (hub, app, socket) = (&self.door.0.hub, rest.session.app(), self.outbox.socket());
        hub.leave_chunk(app, &mut rest.channels, socket);
        if !rest.channels.is_empty() {
            return false;
        }
        if let Some(user) = rest.session.signed_in() {
            hub.sign_out(app, socket, &user.member.id, &user.watchlist);
        }
        let (code, reason) = match rest.closing {
            Some(Closing::Code(code)) => (Some(code.number()), None),
            Some(Closing::Limit(limit)) => (Some(CloseCode::OverCapacity.number()), Some(limit.what())),
            Some(Closing::Broken) => (None, Some("the connection broke")),
            None => (None, Some("the client is gone")),
        };
        debug!(app = %app.id, %socket, code, reason, "connection closed");
        leaving.rest = None;
        true
    }

    /// Whether the connection is over: written to its end, broken, or out of time.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let flushed = self.outbox.poll_flush(cx);
        let closing = match flushed {
            Poll::Ready(closing) => closing,
            Poll::Pending => self.outbox.closing(),
        };
        let Some(closing) = closing else { return Poll::Pending };
        self.depart();
        match closing {
            Closing::Broken => return Poll::Ready(()),
            Closing::Code(CloseCode::Normal) if flushed.is_ready() => return Poll::Ready(()),
            Closing::Code(_) | Closing::Limit(_) => {}
        }
        let deadline = &mut self.leaving.get_or_insert_default().deadline;
        let deadline = deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(CLOSE_TIMEOUT)));
        ready!(deadline.as_mut().poll(cx));
        if flushed.is_pending() {
            self.outbox.abandon();
        }
        Poll::Ready(())
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let end = self.poll_end(cx);
            if !self.leave_some() {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if end.is_ready() || self.leaving.as_ref().is_some_and(|leaving| leaving.is_gone) {
                return Poll::Ready(());
            }
            let this = &mut *self;
            if let Some(pause) = &mut this.pause {
                // A connection that is closing causes nothing any more.
                if this.established.is_some() {
                    ready!(pause.poll_over(&this.outbox, cx));
                }
                this.pause = None;
                this.decode(&mut []);
                continue;
            }
            let read = BUFFER.with_borrow_mut(|buffer| {
                let read = ready!(self.outbox.poll_read(cx, buffer));
                if let Ok(read) = read {
                    self.take(&mut buffer[..read]);
                }
                Poll::Ready(read)
            });
            if !matches!(ready!(read), Ok(1..)) {
                self.depart();
                self.leaving.get_or_insert_default().is_gone = true;
                continue;
            }
            if self.outbox.compression() != Compression::Off {
                // Inflating is work: others have their turn after each read.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.depart();
        while !self.leave_some() {}
    }
}
