//! The end of a connection: it leaves its channels in chunks, and its socket closes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Sleep;

use super::{Connection, Established};
use crate::apps::ConnectionPermit;
use crate::observers::{Fact, Kind};
use crate::outbox::Closing;
use crate::protocol::{ChannelName, CloseCode};
use crate::pusher::admission::{NodePermits, Permits};
use crate::rejections::Example;
use crate::session::Session;

/// How long a client has to reply to a Close before its connection is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of a connection that is closing, or was rejected.
#[derive(Debug, Default)]
pub(super) struct Teardown {
    /// What the connection has not left yet.
    remaining: Option<Remaining>,
    /// Whether the client has disconnected: the socket needs no Close.
    pub(super) is_disconnected: bool,
    /// When the connection is dropped, whatever the client does.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Held until the socket closes, so that a client gains nothing by keeping it open.
    _permits: Option<NodePermits>,
}

/// The channels and the user that a closing connection has not left yet.
#[derive(Debug)]
struct Remaining {
    session: Session,
    channels: Vec<ChannelName>,
    /// How the connection is closing; `None`: the client has disconnected.
    closing: Option<Closing>,
    /// See [`Established`].
    since_secs: u32,
    /// Held until the connection has left everything.
    _permit: ConnectionPermit,
}

impl Connection {
    /// Closes the connection. Further messages of the client are ignored.
    pub(super) fn close(&mut self, code: CloseCode, reason: &str) {
        self.outbox.close(code, reason);
        self.begin_teardown();
    }

    /// Ends the established state. [`Connection::leave_channels`] leaves the channels; the client gets no more of them,
    /// because it is closed or has disconnected.
    pub(super) fn begin_teardown(&mut self) {
        let Some(established) = self.established.take() else { return };
        let Established { mut session, permits: Permits { of_app, of_node }, address, since_secs } =
            *established;
        let hub = &self.endpoint.0.hub;
        hub.connections().remove(&self.outbox);
        let app = Arc::clone(session.app());
        let closing = self.outbox.closing();
        if closing.is_none() {
            self.outbox.disconnect();
        }
        if let Some(Closing::Limit(limit)) = closing {
            let example = Example::from(address).socket(self.outbox.socket());
            hub.reject(limit, Some(&app), example.value(self.endpoint.limit_value(limit)));
        }
        let channels = session.take_subscriptions();
        let teardown = self.teardown.get_or_insert_default();
        teardown._permits = Some(of_node);
        teardown.remaining = Some(Remaining { session, channels, closing, since_secs, _permit: of_app });
    }

    /// Leaves a chunk of the channels. Returns whether the connection has left everything.
    pub(super) fn leave_channels(&mut self) -> bool {
        let Some(teardown) = &mut self.teardown else { return true };
        let Some(remaining) = &mut teardown.remaining else { return true };
        let (hub, app, socket) = (&self.endpoint.0.hub, remaining.session.app(), self.outbox.socket());
        hub.leave_chunk(app, &mut remaining.channels, socket);
        if !remaining.channels.is_empty() {
            return false;
        }
        if let Some(user) = remaining.session.signed_in() {
            hub.sign_out(app, socket, &user.member.id, &user.watchlist);
        }
        hub.observers().observe(Kind::Disconnected, || {
            let (code, reason) = match remaining.closing {
                Some(Closing::Code(code)) => (Some(code), None),
                Some(Closing::Limit(limit)) => (Some(CloseCode::OverCapacity), Some(limit.description())),
                Some(Closing::Broken) => (None, Some("transport error")),
                None => (None, Some("client disconnected")),
            };
            let duration = hub.now().saturating_sub(Duration::from_secs(remaining.since_secs.into()));
            Fact::Disconnected { app: (&*app.id.0).into(), socket, code, reason, duration }
        });
        teardown.remaining = None;
        true
    }

    /// Ready when the connection has closed: everything is written, the transport failed, or the deadline is over.
    pub(super) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let flushed = self.outbox.poll_flush(cx);
        let closing = match flushed {
            Poll::Ready(closing) => closing,
            Poll::Pending => self.outbox.closing(),
        };
        let Some(closing) = closing else { return Poll::Pending };
        self.begin_teardown();
        match closing {
            Closing::Broken => return Poll::Ready(()),
            Closing::Code(CloseCode::Normal) if flushed.is_ready() => return Poll::Ready(()),
            Closing::Code(_) | Closing::Limit(_) => {}
        }
        let deadline = &mut self.teardown.get_or_insert_default().deadline;
        let deadline = deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(CLOSE_TIMEOUT)));
        ready!(deadline.as_mut().poll(cx));
        if flushed.is_pending() {
            self.outbox.reset();
        }
        Poll::Ready(())
    }
}
