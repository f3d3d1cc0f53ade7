//! The limits of an app, and their defaults.

use std::time::Duration;

use crate::limits::Rate;

/// The limits of an app. Defaults: protocol.md §12.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppLimits {
    /// Open connections; `None`: only the limit of the node.
    pub connections_max: Option<u32>,
    /// Channels on each node that are occupied or keep an event; `None`: no limit.
    pub channels_max: Option<u32>,
    /// Bytes of cached events.
    pub cached_bytes_max: usize,
    /// Bytes of the bodies of HTTP requests that arrive or are being answered; never less than one body.
    pub requests_in_flight_bytes_max: usize,
    /// Signed HTTP requests per second, with a burst of the same size; `None`: no limit.
    pub requests_per_second: Option<u32>,
    /// Events published over HTTP per second, each counted once for all of its channels, with a burst of the same size, but
    /// never less than one batch; `None`: no limit.
    pub events_per_second: Option<u32>,
    /// Longest event name, in characters.
    pub event_name_chars_max: usize,
    /// Longest `data` of an event published over HTTP, in bytes of the decoded string.
    pub event_data_bytes_max: usize,
    /// Longest `data` of a client event, in bytes.
    pub client_event_data_bytes_max: usize,
    /// Longest HTTP body, in bytes.
    pub request_body_bytes_max: usize,
    /// Channels of one published event.
    pub channels_per_publish_max: usize,
    /// Events in one batch.
    pub events_per_batch_max: usize,
    /// Distinct users in a presence channel.
    pub presence_members_max: usize,
    /// Longest `user_info`, in bytes of JSON.
    pub presence_user_info_bytes_max: usize,
    /// Longest user id, in characters.
    pub user_id_chars_max: usize,
    /// Longest `channel_data`, in bytes.
    pub channel_data_bytes_max: usize,
    /// Client events of one connection.
    pub client_events: Rate,
    /// Users on a watchlist; a longer one is truncated.
    pub watchlist_users_max: usize,
    /// Channels of one connection.
    pub channels_per_connection_max: usize,
    /// Longest message of a client, in bytes.
    pub message_bytes_max: usize,
    /// Messages of one connection, without pings and pongs of the WebSocket layer.
    pub messages: Rate,
    /// Bytes queued for a client that reads too slowly.
    pub outbox_bytes_max: usize,
    /// Bytes that one connection causes to be sent, to itself and to others.
    pub answer_bytes: Rate,
    /// Changes that one connection causes: joining and leaving a presence channel, the first or last subscription of a
    /// channel, users added to or removed from its watchlist.
    pub changes: Rate,
    /// The time until a cached event expires.
    pub cache_ttl: Duration,
    /// The largest difference between the clocks of a signed request and of the server, in seconds.
    pub auth_window_secs: u64,
    /// The time for which an answered idempotency key is stored.
    pub idempotency_window: Duration,
    /// Stored idempotency keys.
    pub idempotency_keys_max: usize,
    /// Bytes of stored idempotency keys and their answers.
    pub idempotency_bytes_max: usize,
}

impl Default for AppLimits {
    fn default() -> Self {
        let event_data_bytes_max = 102_400;
        let client_event_data_bytes_max = 10_240;
        // Pusher's 1 KiB is too little for applications that move from Reverb or laravel-websockets, which have no limit.
        let presence_user_info_bytes_max = 8192;
        let user_id_chars_max = 128;
        let channel_data_bytes_max =
            Self::derived_channel_data_bytes(presence_user_info_bytes_max, user_id_chars_max);
        Self {
            connections_max: None,
            // Several for each of the hundred thousand connections of a large node. A channel takes half a kilobyte, without
            // its name and subscribers.
            channels_max: Some(500_000),
            cached_bytes_max: 64 * 1024 * 1024,
            // Ten of the longest bodies.
            requests_in_flight_bytes_max: 64 * 1024 * 1024,
            requests_per_second: None,
            events_per_second: None,
            event_name_chars_max: 200,
            event_data_bytes_max,
            client_event_data_bytes_max,
            request_body_bytes_max: Self::derived_body_bytes(event_data_bytes_max),
            channels_per_publish_max: 100,
            events_per_batch_max: 10,
            presence_members_max: 1000,
            presence_user_info_bytes_max,
            user_id_chars_max,
            channel_data_bytes_max,
            client_events: Rate { per_second: 10, burst: 10 },
            watchlist_users_max: 100,
            channels_per_connection_max: 1000,
            message_bytes_max: Self::derived_message_bytes(
                client_event_data_bytes_max,
                channel_data_bytes_max,
            ),
            // A client that reconnects subscribes to all its channels at once.
            messages: Rate { per_second: 100, burst: 1500 },
            // More than the largest batch, which arrives faster than even a fast client reads. The memory is shared by all
            // connections that the same batch is queued for.
            outbox_bytes_max: 8 * 1024 * 1024,
            // A client that reconnects to 100 presence channels of 1000 members causes about 33 MB.
            answer_bytes: Rate { per_second: 1024 * 1024, burst: 32 * 1024 * 1024 },
            // A client may be the first subscriber of all its channels.
            changes: Rate { per_second: 20, burst: 1000 },
            cache_ttl: Duration::from_secs(1800),
            auth_window_secs: 600,
            idempotency_window: Duration::from_secs(120),
            // The publishes of a busy application in the window; an answer has a few bytes.
            idempotency_keys_max: 10_000,
            idempotency_bytes_max: 4 * 1024 * 1024,
        }
    }
}

impl AppLimits {
    /// The body limit that accepts every valid batch: ten events at the data limit, each byte escaped as six, and 64 KiB for
    /// names. Source: protocol.md §8.1.
    #[must_use]
    pub const fn derived_body_bytes(event_data_bytes_max: usize) -> usize {
        event_data_bytes_max.saturating_mul(60).saturating_add(64 * 1024)
    }

    /// The `channel_data` limit that accepts every valid member: the longest `user_info`, the longest id with each character
    /// escaped as two UTF-16 units, and 1 KiB for keys and other data of the application.
    #[must_use]
    pub const fn derived_channel_data_bytes(user_info_bytes_max: usize, user_id_chars_max: usize) -> usize {
        user_info_bytes_max.saturating_add(user_id_chars_max.saturating_mul(12)).saturating_add(1024)
    }

    /// The message limit that accepts every valid message: the data of a client event and 16 KiB, or three times
    /// `channel_data` (the longest that JSON becomes as a string) and 512 bytes for name and signature; at least 32 KiB.
    /// Source: protocol.md §1.3.
    #[must_use]
    pub const fn derived_message_bytes(
        client_event_data_bytes_max: usize,
        channel_data_bytes_max: usize,
    ) -> usize {
        let event = client_event_data_bytes_max.saturating_add(16 * 1024);
        let subscribe = channel_data_bytes_max.saturating_mul(3).saturating_add(512);
        let derived = if event < subscribe { subscribe } else { event };
        if derived < 32 * 1024 { 32 * 1024 } else { derived }
    }
}
