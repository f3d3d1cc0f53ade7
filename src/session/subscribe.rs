//! Subscribing and unsubscribing. Source: protocol.md §4.

use super::refusal::{self, Refused};
use super::{Action, Session};
use crate::protocol::json;
use crate::protocol::message::{ChannelData, Refusal, Subscribe};
use crate::protocol::{Access, ChannelName, Member, UserId};

impl Session {
    /// Checks a request to subscribe. Returns the channel and, on presence channels, the member. The signature is checked
    /// before any limit, so that clients without one cannot probe limits.
    pub(super) fn check_subscribe(
        &self,
        request: &Subscribe<'_>,
    ) -> Result<(ChannelName, Option<Member>), Refused> {
        let channel = ChannelName::parse(&request.channel, &self.app.names).map_err(refusal::name)?;
        let member = match channel.access() {
            Access::Public => None,
            Access::User => {
                let own = self.signed_in().is_some_and(|user| channel.belongs_to(&user.member.id));
                if !own {
                    return Err(refusal::not_the_users_channel(&channel).into());
                }
                // The sign-in has subscribed it already, and the channel counts for no limit.
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
            Some(existing) if existing.user.as_ref() != member.as_ref().map(|member| &member.id) => {
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

    /// The member that subscribes to a presence channel: from the signed `channel_data`, else the signed-in user.
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

    /// Unsubscribing from an unknown channel is ignored: a client may do so legitimately. Source: protocol.md §4.6.
    pub(super) fn unsubscribe<'m>(&mut self, channel: &str) -> Action<'m> {
        match self.position(channel) {
            Ok(position) => Action::Leave { channel: self.subscriptions.remove(position).channel },
            Err(_) => Action::Nothing,
        }
    }
}
