//! The names of all limits, and the counters that enforce them. Time is an argument.
//!
//! [`Limit`] names each limit, [`TokenBucket`] enforces rates, [`Count`] and [`ByteCount`] enforce numbers. A new limit
//! begins with a variant of [`Limit`].

mod permits;
mod token_bucket;

pub use permits::{ByteCount, Count};
pub use token_bucket::{Rate, TokenBucket};

/// A limit of a running node. Rejections are counted and logged by it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Limit {
    /// Connections of an app (4004).
    AppConnections,
    /// Connections of the node (4100).
    NodeConnections,
    /// Connections that the limit of open files allows (4100).
    OpenFiles,
    /// Connections of one address at once (4100, or not accepted).
    AddressConnections,
    /// New connections of one address a second (4100, or not accepted).
    AddressRate,
    /// Unauthenticated connections at once: the oldest silent one is evicted.
    Unauthenticated,
    /// The time in which a connection must become a WebSocket or sign a request.
    Handshake,
    /// With the PROXY protocol: a connection begins with its header, and comes from a trusted proxy.
    ProxyProtocol,
    /// Messages and frames of a connection a second (4100).
    Messages,
    /// The length of a client's message (1009).
    MessageBytes,
    /// The time in which a client must complete a message (4100).
    MessageTime,
    /// Client events of a connection a second (4301).
    ClientEvents,
    /// Subscriptions of a connection.
    ConnectionChannels,
    /// Channels of an app.
    AppChannels,
    /// Bytes of the cached events of an app: the least recently published are evicted.
    CachedBytes,
    /// Bytes of the cached events of all apps.
    NodeCachedBytes,
    /// Members of a presence channel.
    PresenceMembers,
    /// HTTP requests of an app a second (429).
    Requests,
    /// Events that an app publishes over HTTP a second (429).
    Events,
    /// The length of a channel's name.
    ChannelNameBytes,
    /// The length of `channel_data`.
    ChannelDataBytes,
    /// The length of `user_info`.
    UserInfoBytes,
    /// The length of a user id.
    UserIdChars,
    /// The length of a client event's name.
    EventNameChars,
    /// The length of a client event's data.
    ClientEventBytes,
    /// The length of a request's body (413).
    RequestBytes,
    /// Bytes of the request bodies in flight of an app (429).
    RequestsInFlightBytes,
    /// Bytes of the request bodies in flight of all apps (503).
    NodeRequestsInFlightBytes,
    /// Bytes in the queue to a client (4100).
    OutboxBytes,
    /// Bytes in the queues to all clients: the largest and most stalled are evicted (4100).
    QueuedBytes,
    /// The time in which a client must read some of its queue (4100).
    WriteTime,
    /// Bytes that a client causes to be sent: it is throttled, and closed if it goes on (4100).
    AnswerBytes,
    /// Changes of a connection that others are notified of: it is throttled, and closed if it goes on (4100).
    Changes,
    /// Idempotency keys of an app: the oldest is evicted.
    IdempotencyKeys,
}

impl Limit {
    /// All limits, in the order of their indexes.
    pub const ALL: [Self; 34] = [
        Self::AppConnections,
        Self::NodeConnections,
        Self::OpenFiles,
        Self::AddressConnections,
        Self::AddressRate,
        Self::Unauthenticated,
        Self::Handshake,
        Self::ProxyProtocol,
        Self::Messages,
        Self::MessageBytes,
        Self::MessageTime,
        Self::ClientEvents,
        Self::ConnectionChannels,
        Self::AppChannels,
        Self::CachedBytes,
        Self::NodeCachedBytes,
        Self::PresenceMembers,
        Self::Requests,
        Self::Events,
        Self::ChannelNameBytes,
        Self::ChannelDataBytes,
        Self::UserInfoBytes,
        Self::UserIdChars,
        Self::EventNameChars,
        Self::ClientEventBytes,
        Self::RequestBytes,
        Self::RequestsInFlightBytes,
        Self::NodeRequestsInFlightBytes,
        Self::OutboxBytes,
        Self::QueuedBytes,
        Self::WriteTime,
        Self::AnswerBytes,
        Self::Changes,
        Self::IdempotencyKeys,
    ];

    /// The setting of the limit.
    #[must_use]
    pub const fn setting(self) -> &'static str {
        match self {
            Self::AppConnections => "limits.connections",
            Self::NodeConnections => "server.connections",
            Self::OpenFiles => "ulimit -n",
            Self::AddressConnections => "server.connections_per_address",
            Self::AddressRate => "server.new_connections_per_address",
            Self::Unauthenticated => "server.unauthenticated_connections",
            Self::Handshake => "server.handshake_timeout_secs",
            Self::ProxyProtocol => "server.proxy_protocol",
            Self::Messages => "limits.messages_per_second",
            Self::MessageBytes => "limits.message_bytes",
            Self::MessageTime => "server.message_timeout_secs",
            Self::ClientEvents => "limits.client_events_per_second",
            Self::ConnectionChannels => "limits.channels_per_connection",
            Self::AppChannels => "limits.channels",
            Self::CachedBytes => "limits.cached_bytes",
            Self::NodeCachedBytes => "server.cached_bytes",
            Self::PresenceMembers => "limits.presence_members",
            Self::Requests => "limits.requests_per_second",
            Self::Events => "limits.events_per_second",
            Self::ChannelNameBytes => "limits.channel_name_bytes",
            Self::ChannelDataBytes => "limits.channel_data_bytes",
            Self::UserInfoBytes => "limits.presence_user_info_bytes",
            Self::UserIdChars => "limits.user_id_chars",
            Self::EventNameChars => "limits.event_name_chars",
            Self::ClientEventBytes => "limits.client_event_data_bytes",
            Self::RequestBytes => "limits.request_body_bytes",
            Self::RequestsInFlightBytes => "limits.requests_in_flight_bytes",
            Self::NodeRequestsInFlightBytes => "server.requests_in_flight_bytes",
            Self::OutboxBytes => "limits.outbox_bytes",
            Self::QueuedBytes => "server.queued_bytes",
            Self::WriteTime => "server.write_timeout_secs",
            Self::AnswerBytes => "limits.answer_bytes_per_second",
            Self::Changes => "limits.changes_per_second",
            Self::IdempotencyKeys => "limits.idempotency_keys",
        }
    }

    /// What happened, as a sentence of the log.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::AppConnections => "connection limit of an app reached",
            Self::NodeConnections => "connection limit of this node reached",
            Self::OpenFiles => "connection limit by open files reached",
            Self::AddressConnections => "connection limit of an address reached",
            Self::AddressRate => "an address opens too many connections a second",
            Self::Unauthenticated => {
                "limit of unauthenticated connections reached: one that sent nothing, or too little, was closed"
            }
            Self::Handshake => "a connection sent no WebSocket upgrade and no signed request in time",
            Self::ProxyProtocol => "a connection does not begin with a PROXY header of a trusted proxy",
            Self::Messages => "a client sends too many messages: it was disconnected",
            Self::MessageBytes => "a client sent a message that is too long: it was disconnected",
            Self::MessageTime => "a client did not complete its message in time: it was disconnected",
            Self::ClientEvents => "a client sends too many client events",
            Self::ConnectionChannels => "subscription limit of a connection reached",
            Self::CachedBytes => "limit of an app's cached events reached: its oldest were evicted",
            Self::NodeCachedBytes => {
                "limit of the cached events of all apps reached: an app's oldest were evicted"
            }
            Self::AppChannels => "channel limit of an app reached",
            Self::PresenceMembers => "member limit of a presence channel reached",
            Self::Requests => "an app sends too many requests: answered with 429",
            Self::Events => "an app publishes too many events: answered with 429",
            Self::ChannelNameBytes => "a subscription was refused: the name of the channel is too long",
            Self::ChannelDataBytes => "a subscription was refused: its channel_data is too long",
            Self::UserInfoBytes => "a subscription or sign-in was refused: its user_info is too long",
            Self::UserIdChars => "a subscription or sign-in was refused: the user id is too long",
            Self::EventNameChars => "a client event was rejected: its name is too long",
            Self::ClientEventBytes => "a client event was rejected: its data is too long",
            Self::RequestsInFlightBytes => {
                "limit of an app's request bodies in flight reached: answered with 429"
            }
            Self::NodeRequestsInFlightBytes => {
                "limit of the request bodies in flight of all apps reached: answered with 503"
            }
            Self::RequestBytes => "a request was rejected: its body is too long",
            Self::OutboxBytes => "a client reads too slowly: it was disconnected",
            Self::QueuedBytes => {
                "limit of the queued bytes of all clients reached: a slow one was disconnected"
            }
            Self::WriteTime => "a client does not read: it was disconnected",
            Self::AnswerBytes => {
                "a client causes too many bytes to be sent: it was throttled or disconnected"
            }
            Self::Changes => "a client changes its subscriptions too often: it was throttled or disconnected",
            Self::IdempotencyKeys => "limit of an app's idempotency keys reached: its oldest was evicted",
        }
    }

    /// The unit of its value.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::AppConnections
            | Self::NodeConnections
            | Self::OpenFiles
            | Self::AddressConnections
            | Self::Unauthenticated => "connections",
            Self::AddressRate => "connections a second",
            Self::Handshake | Self::MessageTime | Self::WriteTime => "s",
            Self::AnswerBytes => "bytes a second",
            Self::Changes => "changes a second",
            Self::ProxyProtocol => "",
            Self::Messages => "messages a second",
            Self::ClientEvents => "client events a second",
            Self::ConnectionChannels => "subscriptions",
            Self::AppChannels => "channels",
            Self::PresenceMembers => "members",
            Self::Requests => "requests a second",
            Self::Events => "events a second",
            Self::CachedBytes
            | Self::NodeCachedBytes
            | Self::RequestsInFlightBytes
            | Self::NodeRequestsInFlightBytes
            | Self::MessageBytes
            | Self::ChannelNameBytes
            | Self::ChannelDataBytes
            | Self::UserInfoBytes
            | Self::ClientEventBytes
            | Self::RequestBytes
            | Self::OutboxBytes
            | Self::QueuedBytes => "bytes",
            Self::UserIdChars | Self::EventNameChars => "characters",
            Self::IdempotencyKeys => "keys",
        }
    }

    /// Whether the limit also rejects peers that did nothing wrong, because of others. The operator is warned then.
    #[must_use]
    pub const fn is_shared(self) -> bool {
        match self {
            Self::AppConnections
            | Self::NodeConnections
            | Self::OpenFiles
            | Self::Unauthenticated
            | Self::AppChannels
            | Self::CachedBytes
            | Self::NodeCachedBytes
            | Self::PresenceMembers
            | Self::RequestsInFlightBytes
            | Self::NodeRequestsInFlightBytes
            | Self::Requests
            | Self::Events
            | Self::QueuedBytes
            | Self::IdempotencyKeys => true,
            Self::AddressConnections
            | Self::AddressRate
            | Self::Handshake
            | Self::ProxyProtocol
            | Self::Messages
            | Self::MessageBytes
            | Self::MessageTime
            | Self::ClientEvents
            | Self::ConnectionChannels
            | Self::ChannelNameBytes
            | Self::ChannelDataBytes
            | Self::UserInfoBytes
            | Self::UserIdChars
            | Self::EventNameChars
            | Self::ClientEventBytes
            | Self::RequestBytes
            | Self::OutboxBytes
            | Self::WriteTime
            | Self::AnswerBytes
            | Self::Changes => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_its_index_and_its_setting() {
        let mut settings = std::collections::BTreeSet::new();
        for (index, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(limit as usize, index);
            assert!(settings.insert(limit.setting()), "{limit:?}");
        }
    }
}
