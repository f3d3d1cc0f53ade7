//! A section `[[apps]]`.

use super::checks::{extra_chars, path_prefix};
use super::{DAY, GIB, KIB, MIB};
use crate::apps::App;
use crate::config::setting::{Kind, Setting, choice, list, number, number_or_zero, switch, tables, text};

const fn app(key: &'static str, kind: Kind<App>, doc: &'static str) -> Setting<App> {
    Setting::new(key, kind, doc)
}

/// A section `[[apps]]`; variables begin with `PUSHERD_APP_`. The credentials are in [`CREDENTIALS`].
pub(in crate::config) const APP: &[Setting<App>] = &[
    app(
        "enabled",
        switch(|app| &mut app.enabled),
        "Whether the app accepts connections (else 4003) and requests (else 403).",
    ),
    app(
        "allowed_origins",
        list("hosts and origins", |app| &mut app.allowed_origins),
        "Origins that browsers may connect from: hosts, hosts with a port, or full origins (`https://app.example.com`, \
         `capacitor://localhost`, `file://`, `null`), with `*` for any characters. A full origin without a port has that \
         of its scheme. Clients that send no origin are not checked.",
    ),
    app(
        "client_events",
        choice(&["off", "members"], |app| &mut app.client_events),
        "Whether clients may send events to each other: never, or on private and presence channels that they are \
         subscribed to.",
    ),
    app(
        "subscription_counts",
        switch(|app| &mut app.subscription_counts),
        "Whether subscribers receive the number of subscribers.",
    ),
    app(
        "watchlist",
        switch(|app| &mut app.watchlist),
        "Whether signed-in users receive which users of their watchlist are online.",
    ),
    app(
        "authorized_connections_timeout_secs",
        number_or_zero("off", 1, DAY, |app| &mut app.authorized_connections_timeout),
        "A connection that has neither signed in nor joined a private or presence channel within this time is closed (4009).",
    ),
    app(
        "compression",
        switch(|app| &mut app.compression),
        "Whether messages to clients that offer permessage-deflate are compressed. See the page *Compression*.",
    ),
    app(
        "compression_threshold_bytes",
        number(0, MIB, |app| &mut app.compression_threshold_bytes),
        "Messages shorter than this are never compressed.",
    ),
    app(
        "path_prefix",
        text("a path such as \"/rt\"", path_prefix, |app| &mut app.path_prefix),
        "A path in front of `/app/…` and `/apps/…`. The paths without it are served as well.",
    ),
    app(
        "tls_only",
        switch(|app| &mut app.tls_only),
        "Whether connections without TLS are closed (4000). TLS ends at pusherd or at a trusted proxy that reports it.",
    ),
    app(
        "require_protocol",
        switch(|app| &mut app.require_protocol),
        "Whether a connection that does not send its protocol version is closed (4008).",
    ),
    app(
        "cache_ttl_secs",
        number(1, 7 * DAY, |app| &mut app.limits.cache_ttl),
        "How long a cache channel keeps its last event.",
    ),
    app(
        "subscription_error_frames",
        choice(&["both", "channel", "connection"], |app| &mut app.subscription_error_frames),
        "What a client receives for a refused subscription: `pusher:subscription_error` on the channel, as with \
         Soketi, `pusher:error` on the connection, as with Pusher and Reverb, or both.",
    ),
    app(
        "terminate_close_code",
        choice(&["4009", "4200"], |app| &mut app.terminate_close_code),
        "The close code for connections of a user that the app terminates: after 4009 clients do not reconnect, after 4200 \
         they reconnect at once.",
    ),
    app(
        "terminate_presence_members",
        switch(|app| &mut app.terminate_presence_members),
        "Whether this includes presence members with that user id that never signed in, as with Reverb; otherwise only \
         signed-in users, as with Pusher.",
    )
    .default("`false`; `true`, as Reverb, where its variables are in use"),
    app(
        "webhooks",
        tables("tables with `url`, `headers`, `event_types` and `filter`", |app| &mut app.webhooks),
        "The receivers of webhooks. In a variable, the same as JSON. See the page *Webhooks*.",
    ),
    app(
        "webhook_batching",
        switch(|app| &mut app.webhook_batching),
        "Whether one request may carry several events. Some receivers read only the first.",
    ),
    app(
        "webhook_batching_ms",
        number(1, 10_000, |app| &mut app.webhook_batching_ms),
        "How long such a request waits for more events, in milliseconds; it carries at most 100.",
    ),
    app(
        "channel_name_extra_chars",
        text("ASCII punctuation other than : # \" \\", extra_chars, |app| &mut app.names.extra_chars),
        "Characters that channel names may contain in addition to `A-Z a-z 0-9 _ - = @ , . ;`.",
    ),
    app(
        "idempotency_window_secs",
        number(1, DAY, |app| &mut app.limits.idempotency_window),
        "How long a publish with an idempotency key is not repeated, but answered with the first response.",
    ),
    app(
        "limits.connections",
        number_or_zero("no limit", 1, u32::MAX as u64, |app| &mut app.limits.connections_max),
        "WebSockets at once; further ones are closed (4004).",
    ),
    app(
        "limits.channels",
        number_or_zero("no limit", 1, u32::MAX as u64, |app| &mut app.limits.channels_max),
        "Channels at once that have a subscriber or keep an event. In a further channel, the first subscription is \
         refused and no event is kept.",
    ),
    app(
        "limits.cached_bytes",
        number(4 * KIB, 64 * GIB, |app| &mut app.limits.cached_bytes_max),
        "Bytes of the events that cache channels keep. At the limit, the least recently published events are evicted.",
    ),
    app(
        "limits.requests_in_flight_bytes",
        number(KIB, 64 * GIB, |app| &mut app.limits.requests_in_flight_bytes_max),
        "Bytes of HTTP request bodies at once, from their arrival to the response (429); one body is always accepted. \
         Bodies that arrive together with their head are not counted.",
    ),
    app(
        "limits.requests_per_second",
        number_or_zero("no limit", 1, 1_000_000, |app| &mut app.limits.requests_per_second),
        "Signed HTTP requests per second (429).",
    ),
    app(
        "limits.events_per_second",
        number_or_zero("no limit", 1, 1_000_000, |app| &mut app.limits.events_per_second),
        "Events published over HTTP per second (429). Each event of a batch counts; an event counts once, however many \
         channels it is published to. No batch is too large for the rate.",
    ),
    app(
        "limits.channel_name_bytes",
        number(1, 4 * KIB, |app| &mut app.names.bytes_max),
        "Longest channel name, including its prefix.",
    ),
    app(
        "limits.event_name_chars",
        number(1, 4 * KIB, |app| &mut app.limits.event_name_chars_max),
        "Longest event name.",
    ),
    app(
        "limits.event_data_bytes",
        number(1, 16 * MIB, |app| &mut app.limits.event_data_bytes_max),
        "Longest `data` of an event published over HTTP (413).",
    ),
    app(
        "limits.client_event_data_bytes",
        number(1, 16 * MIB, |app| &mut app.limits.client_event_data_bytes_max),
        "Longest `data` of a client event.",
    ),
    app(
        "limits.request_body_bytes",
        number_or_zero("derived", KIB, GIB, |app| &mut app.limits.request_body_bytes_max),
        "Longest HTTP request body (413). Derived: every batch within the other limits is accepted.",
    ),
    app(
        "limits.channels_per_publish",
        number(1, 10_000, |app| &mut app.limits.channels_per_publish_max),
        "Channels that one event may be published to.",
    ),
    app(
        "limits.events_per_batch",
        number(1, 1000, |app| &mut app.limits.events_per_batch_max),
        "Events in one batch.",
    ),
    app(
        "limits.presence_members",
        number(1, 100_000, |app| &mut app.limits.presence_members_max),
        "Users in a presence channel. Every new subscriber receives the list of all.",
    ),
    app(
        "limits.presence_user_info_bytes",
        number(1, MIB, |app| &mut app.limits.presence_user_info_bytes_max),
        "Longest `user_info` of a member, as JSON.",
    ),
    app("limits.user_id_chars", number(1, KIB, |app| &mut app.limits.user_id_chars_max), "Longest user id."),
    app(
        "limits.channel_data_bytes",
        number_or_zero("derived", 1, MIB, |app| &mut app.limits.channel_data_bytes_max),
        "Longest `channel_data` of a subscription. Derived: enough for the longest `user_info` and user id.",
    ),
    app(
        "limits.client_events_per_second",
        number(1, 1_000_000, |app| &mut app.limits.client_events.per_second),
        "Client events of one connection per second; further ones are answered with an error (4301).",
    ),
    app(
        "limits.watchlist_users",
        number(1, 10_000, |app| &mut app.limits.watchlist_users_max),
        "Users in a watchlist; further ones are ignored.",
    ),
    app(
        "limits.channels_per_connection",
        number(1, 1_000_000, |app| &mut app.limits.channels_per_connection_max),
        "Channels that one connection may be subscribed to.",
    ),
    app(
        "limits.message_bytes",
        number_or_zero("derived", KIB, 32 * MIB, |app| &mut app.limits.message_bytes_max),
        "Longest message of a client (1009). Derived: 16 KiB more than `client_event_data_bytes`, three times \
         `channel_data_bytes`, at least 32 KiB.",
    ),
    app(
        "limits.messages_per_second",
        number(1, 1_000_000, |app| &mut app.limits.messages.per_second),
        "Messages of one connection per second; more close it (4100). Pings, pongs and fragments have a separate limit of the \
         same size.",
    ),
    app(
        "limits.messages_burst",
        number(1, 1_000_000, |app| &mut app.limits.messages.burst),
        "Messages of one connection in a burst. Clients subscribe to all their channels when they reconnect.",
    ),
    app(
        "limits.outbox_bytes",
        number(4 * KIB, GIB, |app| &mut app.limits.outbox_bytes_max),
        "Bytes that may be queued for a client that reads too slowly; more close it (4100).",
    ),
    app(
        "limits.answer_bytes_per_second",
        number(KIB, GIB, |app| &mut app.limits.answer_bytes.per_second),
        "Bytes per second that one connection may cause: responses to itself, such as the members of presence channels, \
         and messages to others. Above the rate, the server stops reading from the connection until the rate allows it, \
         and closes it (4100) after a minute.",
    ),
    app(
        "limits.answer_bytes_burst",
        number(KIB, GIB, |app| &mut app.limits.answer_bytes.burst),
        "The same in a burst. Clients subscribe to all their channels when they reconnect.",
    ),
    app(
        "limits.changes_per_second",
        number(1, 1_000_000, |app| &mut app.limits.changes.per_second),
        "Changes per second by one connection that others are notified of: joining and leaving presence channels, being \
         the first or the last subscriber of a channel, users on its watchlist. Above the rate it waits, as above.",
    ),
    app(
        "limits.changes_burst",
        number(1, 1_000_000, |app| &mut app.limits.changes.burst),
        "The same in a burst.",
    ),
    app(
        "limits.auth_window_secs",
        number(1, DAY, |app| &mut app.limits.auth_window_secs),
        "Largest difference between the timestamp of a signed request and the clock (401).",
    ),
    app(
        "limits.idempotency_keys",
        number(1, 10_000_000, |app| &mut app.limits.idempotency_keys_max),
        "Idempotency keys remembered at once; beyond that, the oldest are evicted.",
    ),
    app(
        "limits.idempotency_bytes",
        number(4 * KIB, GIB, |app| &mut app.limits.idempotency_bytes_max),
        "Bytes of the remembered keys and their responses; beyond that, the oldest are evicted.",
    ),
];

/// One of the values that identify an app. They are not rows of the table, because they are valid only together and
/// secrets are not shown.
pub(in crate::config) struct Credential {
    /// Its key in `[[apps]]`.
    pub(in crate::config) key: &'static str,
    /// Its variable, without the prefix of the family.
    pub(in crate::config) variable: Option<&'static str>,
    /// The values that it allows, as Markdown.
    pub(in crate::config) allowed: &'static str,
    /// Its meaning, as Markdown.
    pub(in crate::config) doc: &'static str,
}

/// The credentials of an app.
pub(in crate::config) const CREDENTIALS: &[Credential] = &[
    Credential {
        key: "id",
        variable: Some("ID"),
        allowed: "1 to 200 visible ASCII characters other than `/ ? # %`",
        doc: "The app's id, as in `/apps/{id}/…`.",
    },
    Credential {
        key: "key",
        variable: Some("KEY"),
        allowed: "as `id`, without `:`",
        doc: "The app's key, public, as in `/app/{key}`.",
    },
    Credential {
        key: "secret",
        variable: Some("SECRET"),
        allowed: "1 to 1024 bytes",
        doc: "The secret that belongs to the key.",
    },
    Credential {
        key: "secret_file",
        variable: Some("SECRET_FILE"),
        allowed: "a file",
        doc: "A file that holds the secret, instead of `secret`. A relative path starts from the folder of the \
              configuration file, or from the working directory if it is set by a variable.",
    },
    Credential {
        key: "keys",
        variable: None,
        allowed: "`[{ key, secret }, …]`",
        doc: "Several active keys, the oldest first, instead of `key`; each with `secret` or `secret_file`.",
    },
];
