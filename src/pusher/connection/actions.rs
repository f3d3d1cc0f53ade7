//! Performs what the session decides, through the hub.

use std::sync::LazyLock;

use super::{Connection, Established};
use crate::hub::{self, Backlog};
use crate::observers::{Fact, Kind};
use crate::protocol::Access;
use crate::protocol::message::{Event, ServerMessage, Source};
use crate::protocol::wire::{Frame, pusher};
use crate::rejections::{Example, Mistake, Rejection};
use crate::session::Action;

static PONG: LazyLock<Frame> = LazyLock::new(|| pusher::encode(&ServerMessage::Pong));

impl Connection {
    /// Performs an action of the session.
    pub(super) fn perform(&mut self, action: Action<'_>) {
        let (hub, outbox) = (&self.endpoint.0.hub, &self.outbox);
        let mut wait_for = |backlog: Option<Backlog>| {
            if let Some(backlog) = backlog {
                self.backpressure.get_or_insert_default().backlog = Some(backlog);
            }
        };
        let Some(Established { session, address, .. }) = self.established.as_deref_mut() else { return };
        let example = || Example::from(*address).socket(outbox.socket());
        match action {
            Action::Nothing => {}
            // Not charged: the rate of messages bounds it, and idle clients depend on it.
            Action::Pong => outbox.send_first(&PONG),
            Action::Join { channel, member } => {
                let user = member.as_ref().map(|member| member.id.clone());
                // The hub has told the client of an error.
                if let Ok(backlog) = hub.join(session.app(), outbox, &channel, member) {
                    wait_for(backlog);
                    if channel.access() != Access::Public {
                        outbox.liveness.authorize();
                    }
                    session.subscribed(channel, user);
                }
            }
            Action::Refuse { channel, refusal, limit } => {
                let why = limit.map_or(Mistake::Subscription.into(), Rejection::from);
                hub.reject(why, Some(session.app()), example().channel(&*channel).reason(&*refusal.reason));
                if let Some(string_to_sign) = &refusal.string_to_sign {
                    let app = &session.app().id;
                    hub.observers().observe(Kind::SignatureMismatch, || Fact::SignatureMismatch {
                        app: (&*app.0).into(),
                        socket: Some(outbox.socket()),
                        string_to_sign: Some(string_to_sign.into()),
                    });
                }
                hub::refuse(session.app(), outbox, &channel, &refusal);
            }
            Action::Leave { channel } => wait_for(hub.leave(session.app(), &channel, outbox.socket())),
            Action::Publish { channel, name, data, user } => {
                let source = Source::Client(user.as_ref());
                let event =
                    Event { channel: &channel, name: &name, data, except: Some(outbox.socket()), source };
                match hub.publish_from_client(session.app(), &event) {
                    Ok(backlog) => wait_for(backlog),
                    Err(error) => {
                        let message = format!("Client event not sent: {error}");
                        outbox.reply(&ServerMessage::Error { code: None, message: &message });
                    }
                }
            }
            Action::SignIn { user_data, signed_in, previous_watchlist, truncated_to } => {
                outbox.liveness.authorize();
                let sign_in = hub::SignIn {
                    user: &signed_in.member.id,
                    user_data: &user_data,
                    previous_watchlist: &previous_watchlist,
                    watchlist: &signed_in.watchlist,
                    truncated_to,
                };
                hub.sign_in(session.app(), outbox, &sign_in);
            }
            Action::Reject { limit, error } => {
                let why = limit.map_or(Mistake::ClientEvent.into(), Rejection::from);
                let example = match &error {
                    Some((_, message)) => example().reason(&**message),
                    None => example(),
                };
                hub.reject(why, Some(session.app()), example);
                if let Some((code, message)) = error {
                    outbox.reply(&ServerMessage::Error { code, message: &message });
                }
            }
            Action::Error { code, message, why } => {
                hub.reject(why, Some(session.app()), example().reason(&*message));
                outbox.reply(&ServerMessage::Error { code, message: &message });
            }
            Action::Close { code, reason } => self.close(code, reason),
        }
    }
}
