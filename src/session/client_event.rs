//! Client events. Source: protocol.md §5.

use std::time::Duration;

use super::{Action, EVENT_ERRORS, Session};
use crate::limits::Limit;
use crate::protocol::json;
use crate::protocol::message::{CLIENT_EVENT_RATE, ClientEvent};
use crate::protocol::{ChannelName, UserId};

const WRONG_KIND: &str = "only supported on private and presence channels that are not encrypted";

impl Session {
    pub(super) fn client_event<'m>(&mut self, event: ClientEvent<'m>, now: Duration) -> Action<'m> {
        match self.check_client_event(&event) {
            Ok((channel, user)) if self.events.try_acquire(self.app.limits.client_events, now) => {
                Action::Publish {
                    channel,
                    name: event.event,
                    data: event.data.map_or("null", |data| data.get()),
                    user,
                }
            }
            Ok(_) => {
                let why = format!("over {} per second", self.app.limits.client_events.per_second);
                self.reject(Some(CLIENT_EVENT_RATE), RejectedEvent::by(Limit::ClientEvents, &why), now)
            }
            Err(rejected) => self.reject(None, rejected, now),
        }
    }

    /// Rejects a client event. The rejection is counted also if the rate of error frames is exceeded.
    fn reject<'m>(&mut self, code: Option<u16>, rejected: RejectedEvent, now: Duration) -> Action<'m> {
        let RejectedEvent { why, limit } = rejected;
        let sends_error = self.event_errors.try_acquire(EVENT_ERRORS, now);
        Action::Reject { limit, error: sends_error.then(|| (code, format!("Client event rejected: {why}"))) }
    }

    fn check_client_event(
        &self,
        event: &ClientEvent<'_>,
    ) -> Result<(ChannelName, Option<UserId>), RejectedEvent> {
        if !self.app.client_events {
            return Err(RejectedEvent::because("client events are switched off for this app"));
        }
        let Some(channel) = &event.channel else {
            return Err(RejectedEvent::because("the channel is missing"));
        };
        // The name of a subscription is valid. Any other name is checked to report what is wrong with it.
        let Some(subscription) = self.subscription(channel) else {
            let channel = ChannelName::parse(channel, &self.app.names)
                .map_err(|why| RejectedEvent::because(why.to_string()))?;
            return Err(match channel.takes_client_events() {
                true => RejectedEvent::because(format!("not subscribed to {channel}")),
                false => RejectedEvent::because(WRONG_KIND),
            });
        };
        if !subscription.channel.takes_client_events() {
            return Err(RejectedEvent::because(WRONG_KIND));
        }
        let chars_max = self.app.limits.event_name_chars_max;
        if event.event.len() == "client-".len() {
            return Err(RejectedEvent::because("the name is only a prefix"));
        }
        if event.event.chars().count() > chars_max {
            let why = format!("the name has more than {chars_max} characters");
            return Err(RejectedEvent::by(Limit::EventNameChars, &why));
        }
        let bytes = event.data.map_or(0, |data| {
            if json::is_string(data) { json::decoded_len(data.get()) } else { data.get().len() }
        });
        let bytes_max = self.app.limits.client_event_data_bytes_max;
        if bytes > bytes_max {
            let why = format!("the data has {bytes} bytes, more than the {bytes_max} allowed");
            return Err(RejectedEvent::by(Limit::ClientEventBytes, &why));
        }
        if event.data.is_some_and(json::is_value_too_deep) {
            let depth_max = json::DEPTH_MAX;
            return Err(RejectedEvent::because(format!(
                "the data is nested more than {depth_max} levels deep"
            )));
        }
        Ok((subscription.channel.clone(), subscription.user.clone()))
    }
}

/// The reason why a client event is rejected.
struct RejectedEvent {
    why: String,
    limit: Option<Limit>,
}

impl RejectedEvent {
    fn because(why: impl Into<String>) -> Self {
        Self { why: why.into(), limit: None }
    }

    fn by(limit: Limit, why: &str) -> Self {
        Self { why: format!("{why} ({} of the app)", limit.setting()), limit: Some(limit) }
    }
}
