//! The attributes of a channel that the parameter `info` requests.

use serde::Serialize;
use serde_json::value::RawValue;

use super::ApiError;
use crate::hub::{ChannelInfo, ChannelQuery};
use crate::protocol::{ChannelName, json};

/// The requested attributes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Info {
    pub(super) user_count: bool,
    pub(super) subscription_count: bool,
    pub(super) cache: bool,
}

impl Info {
    /// Parses a comma-separated list. Also returns the first unknown attribute: a publish ignores it, so that an event is
    /// not lost because of a typo; a query does not.
    pub(super) fn parse(list: &str) -> (Self, Option<&str>) {
        let (mut info, mut unknown) = (Self::default(), None);
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "user_count" => info.user_count = true,
                "subscription_count" => info.subscription_count = true,
                "cache" => info.cache = true,
                other => unknown = unknown.or(Some(other)),
            }
        }
        (info, unknown)
    }

    /// Parses the comma-separated list of a query. Every attribute must be one of `allowed`. The acceptance tests of
    /// pusher-http-dotnet assert the first words of the error.
    pub(super) fn parse_strictly(list: &str, allowed: Self) -> Result<Self, ApiError> {
        let (info, unknown) = Self::parse(list);
        let unknown = unknown.or((info.cache && !allowed.cache).then_some("cache"));
        match unknown {
            Some(name) => {
                let name = &name[..name.floor_char_boundary(80)];
                Err(ApiError::bad(format_args!(
                    "info should be a comma separated list of attributes, and {name} is none here"
                )))
            }
            None => Ok(info),
        }
    }

    /// The query for the requested attributes.
    pub(super) const fn query(self) -> ChannelQuery {
        ChannelQuery { users: self.user_count, subscriptions: self.subscription_count, cache: self.cache }
    }

    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// The requested attributes of `channel`, without those that its kind does not have.
    pub(super) fn of(self, channel: &ChannelName, found: &ChannelInfo) -> Attributes {
        let cache = || {
            found.cache.as_ref().and_then(|(event, ttl)| {
                let [data] = json::pick(event.text(), ["data"]).ok()?;
                Some(CachedEvent { data: data?.to_owned(), ttl: ttl.as_secs() })
            })
        };
        Attributes {
            user_count: (self.user_count && channel.is_presence()).then_some(found.users),
            subscription_count: self.subscription_count.then_some(found.subscriptions),
            cache: (self.cache && channel.is_cached()).then(cache),
        }
    }
}

/// The attributes of one channel, as JSON keys.
#[derive(Debug, Default, Serialize)]
pub(super) struct Attributes {
    #[serde(skip_serializing_if = "Option::is_none")]
    user_count: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription_count: Option<usize>,
    /// `null` if it was requested and the channel has no cached event.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<Option<CachedEvent>>,
}

#[derive(Debug, Serialize)]
struct CachedEvent {
    /// The JSON literal as published, byte for byte.
    data: Box<RawValue>,
    /// Seconds until it expires.
    ttl: u64,
}
