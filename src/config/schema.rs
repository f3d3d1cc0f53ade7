//! Every setting there is: a row is the whole of it. To add one, give its room's type a field and add a row
//! here; files, variables, checks, `config show` and the reference follow.
//!
//! The bounds keep values in the range that was thought about; a default lives in the `Default` of its room.

use std::net::IpAddr;

use super::kind::{Kind, Setting, choice, list, number, number_or_zero, secret, switch, tables, text};
use super::redis::{self, Redis};
use super::variables::PLATFORM_PORT;
use super::{Log, Server, Webhooks};
use crate::apps::App;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

// One maker of rows for each section, so that the field of a row is known to be of its section.
const fn server(key: &'static str, kind: Kind<Server>, doc: &'static str) -> Setting<Server> {
    Setting::new(key, kind, doc)
}

const fn log(key: &'static str, kind: Kind<Log>, doc: &'static str) -> Setting<Log> {
    Setting::new(key, kind, doc)
}

const fn redis(key: &'static str, kind: Kind<Redis>, doc: &'static str) -> Setting<Redis> {
    Setting::new(key, kind, doc)
}

const fn webhooks(key: &'static str, kind: Kind<Webhooks>, doc: &'static str) -> Setting<Webhooks> {
    Setting::new(key, kind, doc)
}

const fn app(key: &'static str, kind: Kind<App>, doc: &'static str) -> Setting<App> {
    Setting::new(key, kind, doc)
}

/// The section `[server]`; variables begin with `PUSHERD_`.
pub(super) const SERVER: &[Setting<Server>] = &[
    server(
        "host",
        text("an address or a host name", host, |server| &mut server.host),
        "The address to listen on.",
    )
    .flag("--host")
    .default("`\"0.0.0.0\"`; `\"127.0.0.1\"` with the default credentials"),
    server(
        "port",
        number(0, 65_535, |server| &mut server.port),
        "The port to listen on, for WebSocket and HTTP alike; 0 is any free one.",
    )
    .fallbacks(&[PLATFORM_PORT])
    .flag("--port")
    .default("`6001`; `8080`, as Reverb, where its variables are in use"),
    server(
        "tls_cert",
        text("a file", path, |server| &mut server.tls_cert),
        "A PEM file with the certificate and its chain: with it, `port` speaks TLS. A relative path starts from the \
         folder of the configuration file, or from the working directory for a variable.",
    ),
    server(
        "tls_key",
        text("a file", path, |server| &mut server.tls_key),
        "The PEM file of the private key that belongs to `tls_cert`; empty: it is in that file.",
    ),
    server(
        "tls_port",
        number_or_zero("none", 1, 65_535, |server| &mut server.tls_port),
        "A port of its own for TLS: then `port` goes on without, for the application on this machine.",
    ),
    server(
        "activity_timeout_secs",
        number(5, 600, |server| &mut server.options.pusher.activity_timeout),
        "After so much silence clients send a ping. They are told when they connect.",
    ),
    server(
        "ping_interval_secs",
        number(1, HOUR, |server| &mut server.options.pusher.ping_interval),
        "After so much silence the server pings a client. Keep it under the idle limit of your proxy, often 60.",
    ),
    server(
        "pong_timeout_secs",
        number(1, HOUR, |server| &mut server.options.pusher.pong_timeout),
        "A pinged client that stays silent for so long is closed (4201).",
    ),
    server(
        "handshake_timeout_secs",
        number(1, 600, |server| &mut server.options.handshake_timeout),
        "A new connection that has neither become a WebSocket nor sent a signed request by then is ended.",
    ),
    server(
        "read_timeout_secs",
        number(1, HOUR, |server| &mut server.options.http.read_timeout),
        "A request whose body makes no progress for so long is dropped; after ten times as long, any body.",
    ),
    server(
        "message_timeout_secs",
        number(1, HOUR, |server| &mut server.options.pusher.message_timeout),
        "A client's message that is not whole so long after its first byte ends the connection (4100).",
    ),
    server(
        "write_timeout_secs",
        number(1, HOUR, |server| &mut server.options.pusher.write_timeout),
        "A client for which something waits, and that takes nothing of it for so long, is closed (4100), whatever it \
         sends.",
    ),
    server(
        "queued_bytes",
        number_or_zero("derived", MIB, 1024 * GIB, |server| &mut server.options.pusher.queued_bytes_max),
        "Bytes that may wait for all clients together; what waits for many of them counts once. When three quarters are \
         taken, the clients with most and longest waiting are closed (4100). Derived: a quarter of the memory that the \
         machine, the container or `ulimit -v` allows, at least 64 MiB.",
    ),
    server(
        "connections",
        number_or_zero("no limit", 1, u32::MAX as u64, |server| &mut server.options.pusher.connections_max),
        "Connections this node takes, of all apps together; the next is sent elsewhere (4100).",
    ),
    server(
        "unauthenticated_connections",
        number(1, 1_000_000, |server| &mut server.options.unauthenticated_max),
        "Connections at once that are neither a WebSocket nor one whose requests are signed. The next takes the place \
         of one that has sent nothing for 50 ms, else of one that has not sent all of a head or a handshake for half a \
         second, the oldest first, and waits until then. A low limit of open files lowers it.",
    ),
    server(
        "requests_in_flight_bytes",
        number(MIB, 64 * GIB, |server| &mut server.options.http.requests_in_flight_bytes_max),
        "Bytes that the bodies of HTTP requests may have, of all apps together, while they arrive or are answered (503). \
         Bodies that come with their head are not counted.",
    ),
    server(
        "cached_bytes",
        number(64 * KIB, 64 * GIB, |server| &mut server.options.cached_bytes_max),
        "Bytes of the events that cache channels keep, of all apps together. For a new one, the events of its app that \
         were published least recently are forgotten.",
    ),
    server(
        "connections_per_address",
        number_or_zero("no limit", 1, u32::MAX as u64, |server| &mut server.options.addresses.connections_max),
        "WebSockets from one address at once (4100), and unauthenticated connections (not taken). Not those whose \
         requests are signed. IPv6 is counted by its /64.",
    ),
    server(
        "new_connections_per_address",
        number_or_zero("no limit", 1, 1_000_000, |server| &mut server.options.addresses.new_per_second),
        "New connections from one address a second, and ten times as many at once; more are not taken, or closed \
         (4100) behind a proxy.",
    ),
    server(
        "unlimited_addresses",
        list("addresses and networks", |server| &mut server.options.addresses.unlimited),
        "Addresses without these two limits, beside those of `trusted_proxies`: your application's, where it opens a \
         connection for each event.",
    ),
    server(
        "trusted_proxies",
        list("addresses and networks", |server| &mut server.options.addresses.trusted_proxies),
        "Proxies that are believed when they say who the client is and, by `X-Forwarded-Proto` or `Forwarded`, whether \
         it came by TLS.",
    ),
    server(
        "client_address_header",
        choice(&["x-forwarded-for", "forwarded"], |server| &mut server.options.addresses.header),
        "The header in which trusted proxies say who the client is: the right-most address in it that is not a trusted \
         proxy's. The other one is not read, as a proxy passes it on as the client wrote it.",
    ),
    server(
        "proxy_protocol",
        switch(|server| &mut server.options.proxy_protocol),
        "Whether every connection begins with a header of the PROXY protocol (1 or 2), and comes from one of \
         `trusted_proxies`; others are not taken.",
    ),
    server(
        "drain_secs",
        number(0, HOUR, |server| &mut server.options.drain),
        "On shutdown, the closing of WebSockets is spread over so much time, so that clients do not all come back \
         at once. A node that is alone closes them last and together: nobody takes them until it is back.",
    )
    .default("`10` in a cluster, else `0`")
    .flag("--drain-secs"),
    server(
        "shutdown_deadline_secs",
        number(1, 2 * HOUR, |server| &mut server.options.shutdown_deadline),
        "What has not ended so long after a shutdown began is cut off. At least `drain_secs`.",
    )
    .default("`20`, or `drain_secs` and 10 more"),
    server(
        "accept_traffic_memory_percent",
        number(1, 100, |server| &mut server.options.http.accept_traffic_memory_percent),
        "`/accept-traffic` answers 500 while more of the machine's memory is in use.",
    ),
    server(
        "cluster",
        choice(&["none", "redis"], |server| &mut server.cluster),
        "What is between this node and others, so that they are as one; `none`: it is alone. See the page *Several nodes*.",
    )
    .fallbacks(&["REVERB_SCALING_ENABLED", "SOKETI_ADAPTER_DRIVER", "WEBSOCKETS_REPLICATION_MODE"])
    .synonyms(&[("local", "none")]),
    server(
        "local_when_broker_lost",
        switch(|server| &mut server.options.cluster.local_when_broker_lost),
        "Whether an event that comes while Redis cannot be reached is published to this node's own subscribers and \
         answered with 200, and not refused with 503.",
    ),
];

/// The section `[log]`; variables begin with `PUSHERD_LOG_`.
pub(super) const LOG: &[Setting<Log>] = &[
    log(
        "format",
        choice(&["auto", "human", "json"], |log| &mut log.format),
        "`human` is for eyes, `auto` the same with colours on a terminal, `json` one object a line. With `json` \
         nothing else is printed at the start.",
    )
    .flag("--log-format"),
    log(
        "level",
        choice(&["error", "warn", "info", "debug", "trace"], |log| &mut log.level),
        "How much is logged. `info` is the life cycle of the server, `debug` also what clients cause.",
    )
    .flag("--log-level"),
];

/// The section `[redis]`; variables begin with `PUSHERD_REDIS_`.
pub(super) const REDIS: &[Setting<Redis>] = &[
    redis(
        "url",
        secret("a URL", redis::url, redis::masked_url, |redis| &mut redis.url),
        "Where Redis is, in one: `redis://user:password@host:6379/0`, with TLS `rediss://`, or \
         `unix:///path?database=0`. What is special in a password is written `%xx`.",
    )
    .fallbacks(&["REDIS_URL"]),
    redis(
        "host",
        text("an address, a host name or a path", redis::host, |redis| &mut redis.host),
        "Where Redis is: with `tls://` in front, TLS is spoken; a path is that of a Unix socket.",
    )
    .fallbacks(&["REDIS_HOST", "SOKETI_DB_REDIS_HOST"]),
    redis("port", number(1, 65_535, |redis| &mut redis.port), "The port on that host.")
        .fallbacks(&["REDIS_PORT", "SOKETI_DB_REDIS_PORT"]),
    redis(
        "nodes",
        tables("`host:port`", |redis| &mut redis.nodes),
        "Some of the servers of a Redis Cluster, instead of `url` and `host`; they tell of the others.",
    )
    .fallbacks(&["SOKETI_DB_REDIS_CLUSTER_NODES"]),
    redis(
        "sentinels",
        tables("`host:port`", |redis| &mut redis.sentinels),
        "Some of the sentinels that watch Redis, instead of `url` and `host`; they tell of the others.",
    )
    .fallbacks(&["SOKETI_DB_REDIS_SENTINELS"]),
    redis(
        "sentinel_master",
        text("A-Z a-z 0-9 . - _", redis::master, |redis| &mut redis.sentinel_master),
        "What the sentinels call the servers that they watch.",
    )
    .fallbacks(&["SOKETI_DB_REDIS_INSTANCE_NAME"]),
    redis(
        "sentinel_username",
        text("a name", redis::username, |redis| &mut redis.sentinel_username),
        "The user to be for the sentinels themselves; empty: the default user.",
    ),
    redis(
        "sentinel_password",
        secret("a password", redis::password, redis::masked, |redis| &mut redis.sentinel_password),
        "The password that the sentinels themselves ask for; empty: none.",
    )
    .fallbacks(&["SOKETI_DB_REDIS_SENTINEL_PASSWORD"]),
    redis(
        "username",
        text("a name", redis::username, |redis| &mut redis.username),
        "The user to be; empty: the default user.",
    )
    .fallbacks(&["REDIS_USERNAME", "SOKETI_DB_REDIS_USERNAME"]),
    redis(
        "password",
        secret("a password", redis::password, redis::masked, |redis| &mut redis.password),
        "The password; empty: none.",
    )
    .fallbacks(&["REDIS_PASSWORD", "SOKETI_DB_REDIS_PASSWORD"]),
    redis(
        "database",
        number(0, 65_535, |redis| &mut redis.database),
        "The number of the database. A Redis Cluster has only 0.",
    )
    .fallbacks(&["REDIS_DB", "SOKETI_DB_REDIS_DB"]),
    redis(
        "prefix",
        text("1 to 200 bytes without { } and control characters", redis::prefix, |redis| &mut redis.prefix),
        "What all keys and channels in Redis begin with: clusters that share a Redis are told apart by it, whatever the \
         database. From a variable of others it becomes the front of `pusherd`; `REVERB_SCALING_CHANNEL`, if it is not \
         `reverb`, comes behind.",
    )
    .fallbacks(&["REDIS_PREFIX", "SOKETI_ADAPTER_REDIS_PREFIX", "SOKETI_DB_REDIS_KEY_PREFIX"]),
    redis(
        "timeout_ms",
        number(50, 60_000, |redis| &mut redis.timeout_ms),
        "An answer of Redis that takes longer than this, in milliseconds, is none.",
    ),
    redis(
        "tls",
        switch(|redis| &mut redis.tls),
        "Whether TLS is spoken to Redis, and to sentinels. `rediss://` and `tls://` turn it on as well.",
    ),
    redis(
        "tls_ca_file",
        text("a file", path, |redis| &mut redis.tls_ca_file),
        "A PEM file with the authorities that certificates of Redis are signed by; empty: those of the system. A \
         relative path starts from the folder of the configuration file, or from the working directory for a variable.",
    ),
    redis(
        "tls_accept_any_certificate",
        switch(|redis| &mut redis.tls_accept_any_certificate),
        "Whether a certificate of Redis is not looked at. Whoever is between can then read and change everything.",
    ),
];

/// The section `[webhooks]`; variables begin with `PUSHERD_WEBHOOKS_`.
pub(super) const WEBHOOKS: &[Setting<Webhooks>] = &[
    webhooks(
        "queue_bytes",
        number(64 * KIB, GIB, |webhooks| &mut webhooks.options.queue_bytes),
        "What may wait for one receiver, in bytes. When it is more, the oldest events of the kind that takes most are given \
         up.",
    ),
    webhooks(
        "dead_letter_file",
        text("a file", path, |webhooks| &mut webhooks.dead_letter_file),
        "Where webhooks are kept that could not be delivered, as JSON lines in a regular file; empty: nowhere. A \
         relative path starts from the folder of the configuration file, or from the working directory for a variable.",
    )
    .default(
        "`dead-letters.jsonl` in `$STATE_DIRECTORY` or in `/var/lib/pusherd`, where there is such a folder that can be \
         written; else none",
    ),
    webhooks(
        "dead_letter_bytes",
        number(64 * KIB, GIB, |webhooks| &mut webhooks.options.dead_letter_bytes),
        "The size that this file does not grow beyond: what is in it stays, what comes then is lost.",
    ),
    webhooks(
        "allowed_addresses",
        list("addresses and networks", |webhooks| &mut webhooks.options.allowed_addresses),
        "Where webhooks may go although it is link-local, multicast or a cloud's metadata service.",
    ),
];

/// A section `[[apps]]`; variables begin with `PUSHERD_APP_`. The credentials are in [`CREDENTIALS`].
pub(super) const APP: &[Setting<App>] = &[
    app(
        "enabled",
        switch(|app| &mut app.enabled),
        "Switched off, the app refuses connections (4003) and requests (403).",
    ),
    app(
        "allowed_origins",
        list("hosts and origins", |app| &mut app.allowed_origins),
        "Where browsers may connect from: hosts, hosts with a port, or whole origins (`https://app.example.com`, \
         `capacitor://localhost`, `file://`, `null`), `*` for any characters. A whole origin without a port has that \
         of its scheme. Clients that are not browsers are not asked.",
    ),
    app(
        "client_events",
        choice(&["off", "members"], |app| &mut app.client_events),
        "Whether clients may send events to each other: not at all, or on private and presence channels they are \
         subscribed to.",
    ),
    app(
        "subscription_counts",
        switch(|app| &mut app.subscription_counts),
        "Whether subscribers are told how many they are.",
    ),
    app(
        "watchlist",
        switch(|app| &mut app.watchlist),
        "Whether signed-in users are told who of their watchlist is online.",
    ),
    app(
        "authorized_connections_timeout_secs",
        number_or_zero("off", 1, DAY, |app| &mut app.authorized_connections_timeout),
        "A connection that has neither signed in nor joined a private or presence channel by then is closed (4009).",
    ),
    app(
        "compression",
        switch(|app| &mut app.compression),
        "Whether clients that offer permessage-deflate get messages compressed. See the page *Compression*.",
    ),
    app(
        "compression_threshold_bytes",
        number(0, MIB, |app| &mut app.compression_threshold_bytes),
        "Messages shorter than this are sent as they are, to whomever.",
    ),
    app(
        "path_prefix",
        text("a path such as \"/rt\"", path_prefix, |app| &mut app.path_prefix),
        "A path in front of `/app/…` and `/apps/…` that is served beside the bare one.",
    ),
    app(
        "tls_only",
        switch(|app| &mut app.tls_only),
        "Whether connections that did not come by TLS are refused (4000): by our own, or by a trusted proxy that says \
         so.",
    ),
    app(
        "require_protocol",
        switch(|app| &mut app.require_protocol),
        "Whether a connection that does not name its protocol version is refused (4008).",
    ),
    app(
        "cache_ttl_secs",
        number(1, 7 * DAY, |app| &mut app.limits.cache_ttl),
        "How long a cache channel keeps its last event.",
    ),
    app(
        "subscription_error_frames",
        choice(&["both", "channel", "connection"], |app| &mut app.subscription_error_frames),
        "How a client learns of a refused subscription: by `pusher:subscription_error` on the channel, as with \
         Soketi, by `pusher:error` on the connection, as with Pusher and Reverb, or by both.",
    ),
    app(
        "terminate_close_code",
        choice(&["4009", "4200"], |app| &mut app.terminate_close_code),
        "How connections end when the app terminates a user's: 4009 is stay away, 4200 come back at once.",
    ),
    app(
        "terminate_presence_members",
        switch(|app| &mut app.terminate_presence_members),
        "Whether these are also members of presence channels with that user id that never signed in, as with Reverb, and \
         not only who is signed in, as with Pusher.",
    )
    .default("`false`; `true`, as Reverb, where its variables are in use"),
    app(
        "webhooks",
        tables("tables with `url`, `headers`, `event_types` and `filter`", |app| &mut app.webhooks),
        "Who is told by HTTP of what happens on channels. In a variable, the same as JSON. See the page *Webhooks*.",
    ),
    app(
        "webhook_batching",
        switch(|app| &mut app.webhook_batching),
        "Whether one request may tell of several events. Some receivers read the first only.",
    ),
    app(
        "webhook_batching_ms",
        number(1, 10_000, |app| &mut app.webhook_batching_ms),
        "How long such a request waits for more, in milliseconds; it has 100 events at most.",
    ),
    app(
        "channel_name_extra_chars",
        text("ASCII punctuation other than : # \" \\", extra_chars, |app| &mut app.names.extra_chars),
        "Characters that channel names may have beyond `A-Z a-z 0-9 _ - = @ , . ;`.",
    ),
    app(
        "idempotency_window_secs",
        number(1, DAY, |app| &mut app.limits.idempotency_window),
        "For how long a publish with an idempotency key is not done again, but answered as before.",
    ),
    app(
        "limits.connections",
        number_or_zero("no limit", 1, u32::MAX as u64, |app| &mut app.limits.connections_max),
        "Connections at once; the next is refused (4004).",
    ),
    app(
        "limits.channels",
        number_or_zero("no limit", 1, u32::MAX as u64, |app| &mut app.limits.channels_max),
        "Channels at once that have a subscriber or keep an event. The first subscriber of the next is refused, and an \
         event for later subscribers is not kept.",
    ),
    app(
        "limits.cached_bytes",
        number(4 * KIB, 64 * GIB, |app| &mut app.limits.cached_bytes_max),
        "Bytes of the events that cache channels keep. For a new one, those that were published least recently are \
         forgotten.",
    ),
    app(
        "limits.requests_in_flight_bytes",
        number(KIB, 64 * GIB, |app| &mut app.limits.requests_in_flight_bytes_max),
        "Bytes that the bodies of HTTP requests may have at once, while they arrive or are answered (429); one body \
         always may. Bodies that come with their head are not counted.",
    ),
    app(
        "limits.requests_per_second",
        number_or_zero("no limit", 1, 1_000_000, |app| &mut app.limits.requests_per_second),
        "Signed HTTP requests (429).",
    ),
    app(
        "limits.events_per_second",
        number_or_zero("no limit", 1, 1_000_000, |app| &mut app.limits.events_per_second),
        "Events published over HTTP (429): a batch counts each of its events, an event counts once however many \
         channels it goes to. A batch is never too large for the rate.",
    ),
    app(
        "limits.channel_name_bytes",
        number(1, 4 * KIB, |app| &mut app.names.bytes_max),
        "Longest channel name, prefix included.",
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
        "Longest HTTP body (413). Derived, no batch within the other limits is cut.",
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
        "Users in a presence channel. Each who joins is sent the list of all.",
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
        "Longest `channel_data` of a subscription. Derived: what holds the longest `user_info` and user id.",
    ),
    app(
        "limits.client_events_per_second",
        number(1, 1_000_000, |app| &mut app.limits.client_events.per_second),
        "Client events of one connection; more get an error (4301).",
    ),
    app(
        "limits.watchlist_users",
        number(1, 10_000, |app| &mut app.limits.watchlist_users_max),
        "Users that a watchlist is cut to.",
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
        "Messages of one connection; more close it (4100). Pings, pongs and fragments have as many of their own.",
    ),
    app(
        "limits.messages_burst",
        number(1, 1_000_000, |app| &mut app.limits.messages.burst),
        "Messages of one connection at once. Clients subscribe to all their channels when they come back.",
    ),
    app(
        "limits.outbox_bytes",
        number(4 * KIB, GIB, |app| &mut app.limits.outbox_bytes_max),
        "Bytes that may wait for a client that reads too slowly; more close it (4100).",
    ),
    app(
        "limits.answer_bytes_per_second",
        number(KIB, GIB, |app| &mut app.limits.answer_bytes.per_second),
        "Bytes that one connection may cause to be sent: answers to itself, such as the members of presence channels, \
         and what others are told because of it. Whoever has caused more is not read from until it has come back, and is \
         closed (4100) after a minute of it.",
    ),
    app(
        "limits.answer_bytes_burst",
        number(KIB, GIB, |app| &mut app.limits.answer_bytes.burst),
        "The same at once. Clients subscribe to all their channels when they come back.",
    ),
    app(
        "limits.changes_per_second",
        number(1, 1_000_000, |app| &mut app.limits.changes.per_second),
        "Changes by one connection that others are told of: joining and leaving presence channels, being the first or \
         the last subscriber of a channel, other users on its watchlist. Whoever makes more waits, as above.",
    ),
    app(
        "limits.changes_burst",
        number(1, 1_000_000, |app| &mut app.limits.changes.burst),
        "The same at once.",
    ),
    app(
        "limits.auth_window_secs",
        number(1, DAY, |app| &mut app.limits.auth_window_secs),
        "How far the clock of a signed request may be off (401).",
    ),
    app(
        "limits.idempotency_keys",
        number(1, 10_000_000, |app| &mut app.limits.idempotency_keys_max),
        "Idempotency keys remembered at once; of more, the oldest are forgotten.",
    ),
    app(
        "limits.idempotency_bytes",
        number(4 * KIB, GIB, |app| &mut app.limits.idempotency_bytes_max),
        "Bytes that the remembered keys and their answers may have; of more, the oldest are forgotten.",
    ),
];

/// What identifies an app. Not rows of the table: they come together or not at all, and secrets are not
/// shown.
pub(super) struct Credential {
    /// Where it stands in `[[apps]]`.
    pub(super) key: &'static str,
    /// Its variable, without the prefix of a family.
    pub(super) variable: Option<&'static str>,
    /// What it may be, as Markdown.
    pub(super) may_be: &'static str,
    /// What it is for, as Markdown.
    pub(super) doc: &'static str,
}

/// The credentials of an app.
pub(super) const CREDENTIALS: &[Credential] = &[
    Credential {
        key: "id",
        variable: Some("ID"),
        may_be: "1 to 200 visible ASCII characters other than `/ ? # %`",
        doc: "The app's id, as in `/apps/{id}/…`.",
    },
    Credential {
        key: "key",
        variable: Some("KEY"),
        may_be: "as `id`, without `:`",
        doc: "The app's key, public, as in `/app/{key}`.",
    },
    Credential {
        key: "secret",
        variable: Some("SECRET"),
        may_be: "1 to 1024 bytes",
        doc: "The secret that belongs to the key.",
    },
    Credential {
        key: "secret_file",
        variable: Some("SECRET_FILE"),
        may_be: "a file",
        doc: "A file that holds the secret, instead of `secret`. A relative path starts from the folder of the \
              configuration file, or from the working directory for a variable.",
    },
    Credential {
        key: "keys",
        variable: None,
        may_be: "`[{ key, secret }, …]`",
        doc: "Several active keys, the oldest first, instead of `key`; each with `secret` or `secret_file`.",
    },
];

/// An address, with or without brackets, or a host name; no port.
pub(super) fn host(text: &str) -> Result<String, String> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    let label = |label: &str| {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(valid)
    };
    // A name that ends in a number would be a misspelt address.
    let ends_in_number = text.rsplit('.').next().is_some_and(|last| last.parse::<u64>().is_ok());
    if text.split('.').all(label) && !ends_in_number && text.len() <= 253 {
        return Ok(text.to_ascii_lowercase());
    }
    Err("must be an address or a host name, without scheme and port".to_owned())
}

/// Empty, or the path of a file, which is looked at when all settings are known.
fn path(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// Empty, or a path that starts with a slash and ends without.
fn path_prefix(text: &str) -> Result<String, String> {
    let path = text.trim().trim_matches('/');
    if path.is_empty() {
        return Ok(String::new());
    }
    let segment = |segment: &str| {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(valid)
    };
    if !path.split('/').all(segment) {
        return Err("must be a path of A-Z a-z 0-9 - . _ ~ and single slashes, such as \"/rt\"".to_owned());
    }
    if ["app", "apps"].contains(&path.split('/').next().unwrap_or_default()) {
        return Err("must not begin with /app or /apps, which are paths of the protocol".to_owned());
    }
    Ok(format!("/{path}"))
}

/// Punctuation that separates nothing in signatures and JSON.
fn extra_chars(text: &str) -> Result<String, String> {
    let valid = |char: char| char.is_ascii_punctuation() && !":#\"\\".contains(char);
    if text.chars().all(valid) {
        return Ok(text.to_owned());
    }
    Err("must be ASCII punctuation, and none of : # \" \\".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_or_a_name_without_a_port() {
        let table = [
            ("0.0.0.0", Some("0.0.0.0")),
            ("::1", Some("::1")),
            ("[::1]", Some("::1")),
            ("[::]", Some("::")),
            (" localhost ", Some("localhost")),
            ("WS.Example.com", Some("ws.example.com")),
            ("my_host-2", Some("my_host-2")),
            ("ws2", Some("ws2")),
            ("", None),
            ("127.0.0.1:6001", None),
            ("[::1]:6001", None),
            ("http://localhost", None),
            ("300.1.1.1", None),
            ("127.1", None),
            ("a..b", None),
            ("a b", None),
            ("*", None),
            ("host:6001", None),
        ];
        for (text, expected) in table {
            assert_eq!(host(text).ok().as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_path_prefix_has_a_slash_in_front_and_none_behind() {
        let table = [
            ("", Some("")),
            ("/", Some("")),
            ("rt", Some("/rt")),
            ("/rt", Some("/rt")),
            ("/rt/", Some("/rt")),
            ("/a/b-c.d_e~f", Some("/a/b-c.d_e~f")),
            ("/a//b", None),
            ("/a/../b", None),
            ("/a b", None),
            ("/é", None),
            ("/a%20", None),
            ("/app", None),
            ("/apps/x", None),
            ("/application", Some("/application")),
            ("http://x", None),
        ];
        for (text, expected) in table {
            assert_eq!(path_prefix(text).ok().as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn extra_characters_are_punctuation_that_separates_nothing() {
        for text in ["", "/", "!$%&'()*+/<>?[]^`{|}~"] {
            assert_eq!(extra_chars(text).as_deref(), Ok(text));
        }
        for text in [":", "#", "\"", "\\", "a", " ", "é", "/:"] {
            assert!(extra_chars(text).is_err(), "{text:?}");
        }
    }
}
