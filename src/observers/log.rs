//! The log at `debug`: an observer that writes a line for each fact, where it happens, so that lines have the order of the facts.
//!
//! It never blocks: the log of the process is a bounded queue in front of standard error, and lines that do not fit are
//! counted there.

use std::sync::Arc;

use tracing::debug;

use super::{Fact, Filter, Kind, Kinds, Observer, Observers, Publisher, Registration};
use crate::protocol::{ChannelName, CloseCode};
use crate::rejections;

/// The kinds that have a line.
const LOGGED: Kinds = Kinds::of(&[
    Kind::Connected,
    Kind::Disconnected,
    Kind::Subscribed,
    Kind::Unsubscribed,
    Kind::SignedIn,
    Kind::MessageReceived,
    Kind::Published,
    Kind::Rejected,
    Kind::SignatureMismatch,
    Kind::UserTerminated,
    Kind::MembersTerminated,
]);

/// Logs facts at `debug`, with their payloads if `payloads`, until the registration is dropped. `None`: nothing is logged at
/// `debug`, so there is nothing to observe.
#[must_use]
pub fn start(observers: &Observers, payloads: bool) -> Option<Registration> {
    let register = || observers.register(Filter::of(LOGGED).payloads(payloads), Arc::new(DebugLog));
    tracing::enabled!(tracing::Level::DEBUG).then(register)
}

#[derive(Debug)]
struct DebugLog;

impl Observer for DebugLog {
    fn observe(&self, fact: &Fact<'_>) {
        match fact {
            Fact::Connected { app, socket, address, origin, library } => {
                let (origin, library) = (origin.as_deref(), library.as_deref());
                debug!(%app, %socket, %address, origin, library, "connection established");
            }
            Fact::Disconnected { app, socket, code, reason, .. } => {
                debug!(%app, %socket, code = code.map(CloseCode::number), reason, "connection closed");
            }
            Fact::Subscribed { app, channel, socket, again } => {
                debug!(%app, %channel, %socket, again, "subscribed");
            }
            Fact::Unsubscribed { app, channel, socket } => {
                debug!(%app, %channel, %socket, "unsubscribed");
            }
            Fact::SignedIn { app, socket, user } => debug!(%app, %socket, %user, "signed in"),
            Fact::MessageReceived { socket, bytes, text, .. } => {
                debug!(%socket, bytes, text = text.as_deref(), "message received");
            }
            Fact::Published {
                app,
                channel,
                event,
                bytes,
                data,
                publisher,
                subscribers,
                occupied_instead,
            } => {
                let source = match publisher {
                    Publisher::App => "app",
                    Publisher::Client { .. } => "client",
                };
                let occupied: Vec<_> = occupied_instead.iter().map(ChannelName::as_str).collect();
                let occupied = (!occupied.is_empty()).then(|| occupied.join(" "));
                debug!(
                    %app,
                    %channel,
                    event = &**event,
                    bytes,
                    data = data.as_deref(),
                    source,
                    subscribers,
                    occupied_instead = occupied,
                    "event published"
                );
            }
            Fact::Rejected { rejection, example } => rejections::log_one(*rejection, example),
            Fact::SignatureMismatch { app, socket, string_to_sign } => {
                match (socket, string_to_sign.as_deref()) {
                    (Some(socket), Some(string_to_sign)) => {
                        debug!(%socket, string_to_sign, "string to sign of the refused subscription");
                    }
                    (None, Some(string_to_sign)) => {
                        debug!(%app, string_to_sign, "expected string to sign of a request");
                    }
                    (_, None) => {}
                }
            }
            Fact::UserTerminated { app, user, connections } => {
                debug!(%app, %user, connections, "user terminated");
            }
            Fact::MembersTerminated { app, user } => {
                debug!(%app, %user, "presence members terminated");
            }
            Fact::SignedOut { .. }
            | Fact::ApiRequest { .. }
            | Fact::WebhookSent { .. }
            | Fact::WebhookFailed { .. }
            | Fact::WebhookDeadLettered { .. }
            | Fact::ClusterAvailability { .. } => {}
        }
    }
}
