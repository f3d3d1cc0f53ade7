//! The section `[server]`.

use super::checks::{host, path};
use super::{GIB, HOUR, KIB, MIB};
use crate::config::setting::{Kind, Setting, choice, list, number, number_or_zero, switch, text};
use crate::config::settings::Server;
use crate::config::variables::PLATFORM_PORT;

const fn server(key: &'static str, kind: Kind<Server>, doc: &'static str) -> Setting<Server> {
    Setting::new(key, kind, doc)
}

/// The section `[server]`; variables begin with `PUSHERD_`.
pub(in crate::config) const SERVER: &[Setting<Server>] = &[
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
        "The port to listen on, for WebSocket and HTTP; 0 is any free port.",
    )
    .fallbacks(&[PLATFORM_PORT])
    .flag("--port")
    .default("`6001`; `8080`, as Reverb, where its variables are in use"),
    server(
        "tls_cert",
        text("a file", path, |server| &mut server.tls_cert),
        "A PEM file with the certificate and its chain. With it, `port` speaks TLS. A relative path starts from the \
         folder of the configuration file, or from the working directory if it is set by a variable.",
    ),
    server(
        "tls_key",
        text("a file", path, |server| &mut server.tls_key),
        "The PEM file of the private key of `tls_cert`; empty: the key is in that file.",
    ),
    server(
        "tls_port",
        number_or_zero("none", 1, 65_535, |server| &mut server.tls_port),
        "A separate port for TLS. With it, `port` stays without TLS, for the application on this machine.",
    ),
    server(
        "activity_timeout_secs",
        number(5, 600, |server| &mut server.options.pusher.activity_timeout),
        "Clients send a ping after this time without a message. They receive the value when they connect.",
    ),
    server(
        "ping_interval_secs",
        number(1, HOUR, |server| &mut server.options.pusher.ping_interval),
        "The server pings a client after this time without a message from it. Keep it below the idle timeout of your \
         proxy, often 60.",
    ),
    server(
        "pong_timeout_secs",
        number(1, HOUR, |server| &mut server.options.pusher.pong_timeout),
        "A client that sends nothing within this time after such a ping is closed (4201).",
    ),
    server(
        "handshake_timeout_secs",
        number(1, 600, |server| &mut server.options.handshake_timeout),
        "A new connection that has neither become a WebSocket nor sent a signed request within this time is closed.",
    ),
    server(
        "read_timeout_secs",
        number(1, HOUR, |server| &mut server.options.http.read_timeout),
        "A request is dropped if no byte of its body arrives for this time, or if its body takes ten times as long.",
    ),
    server(
        "message_timeout_secs",
        number(1, HOUR, |server| &mut server.options.pusher.message_timeout),
        "A client's message must be complete within this time after its first byte; otherwise the connection is closed \
         (4100).",
    ),
    server(
        "write_timeout_secs",
        number(1, HOUR, |server| &mut server.options.pusher.write_timeout),
        "A client that reads nothing of what is queued for it for this time is closed (4100), even if it sends messages.",
    ),
    server(
        "queued_bytes",
        number_or_zero("derived", MIB, 1024 * GIB, |server| &mut server.options.pusher.queued_bytes_max),
        "Bytes that may be queued for all clients together; a message that is queued for many counts once. Above three \
         quarters, the clients with the most and oldest queued bytes are closed (4100). Derived: a quarter of the memory \
         that the machine, the container or `ulimit -v` allows, at least 64 MiB.",
    ),
    server(
        "connections",
        number_or_zero("no limit", 1, u32::MAX as u64, |server| &mut server.options.pusher.connections_max),
        "WebSockets on this node, of all apps together; further ones are closed (4100), and their clients connect to \
         another node.",
    ),
    server(
        "unauthenticated_connections",
        number(1, 1_000_000, |server| &mut server.options.unauthenticated_max),
        "Connections at once that are neither a WebSocket nor have sent a signed request. At the limit, a new one \
         replaces the oldest that has sent nothing for 50 ms, else the oldest that has not completed a request head or a \
         handshake for half a second; until there is one, it waits. A low limit of open files lowers this limit.",
    ),
    server(
        "requests_in_flight_bytes",
        number(MIB, 64 * GIB, |server| &mut server.options.http.requests_in_flight_bytes_max),
        "Bytes of HTTP request bodies at once, of all apps together, from their arrival to the response (503). Bodies \
         that arrive together with their head are not counted.",
    ),
    server(
        "cached_bytes",
        number(64 * KIB, 64 * GIB, |server| &mut server.options.cached_bytes_max),
        "Bytes of the events that cache channels keep, of all apps together. At the limit, the least recently published \
         events of the same app are evicted for a new one.",
    ),
    server(
        "connections_per_address",
        number_or_zero("no limit", 1, u32::MAX as u64, |server| &mut server.options.addresses.connections_max),
        "WebSockets from one address at once (4100), and unauthenticated connections (closed without a response). \
         Connections with signed requests are not counted. IPv6 is counted by /64.",
    ),
    server(
        "new_connections_per_address",
        number_or_zero("no limit", 1, 1_000_000, |server| &mut server.options.addresses.new_per_second),
        "New connections from one address per second, with a burst of ten times as many. Further ones are closed \
         without a response or, behind a proxy, with 4100.",
    ),
    server(
        "unlimited_addresses",
        list("addresses and networks", |server| &mut server.options.addresses.unlimited),
        "Addresses without these two limits, in addition to `trusted_proxies`: for example your application's, if it \
         opens a connection for each event.",
    ),
    server(
        "trusted_proxies",
        list("addresses and networks", |server| &mut server.options.addresses.trusted_proxies),
        "Proxies whose headers are trusted: for the address of the client and, by `X-Forwarded-Proto` or `Forwarded`, \
         for whether it uses TLS.",
    ),
    server(
        "client_address_header",
        choice(&["x-forwarded-for", "forwarded"], |server| &mut server.options.addresses.header),
        "The header in which trusted proxies name the client: the right-most address in it that is not a trusted \
         proxy's. The other header is ignored, because a proxy passes it on as the client wrote it.",
    ),
    server(
        "proxy_protocol",
        switch(|server| &mut server.options.proxy_protocol),
        "Whether every connection must begin with a PROXY protocol header (version 1 or 2) and come from one of \
         `trusted_proxies`; other connections are closed.",
    ),
    server(
        "drain_secs",
        number(0, HOUR, |server| &mut server.options.drain),
        "On shutdown, WebSockets are closed over this time, so that clients do not all reconnect at once. A node that is \
         alone closes them last and together, because no other node could accept them.",
    )
    .default("`10` in a cluster, else `0`")
    .flag("--drain-secs"),
    server(
        "shutdown_deadline_secs",
        number(1, 2 * HOUR, |server| &mut server.options.shutdown_deadline),
        "A shutdown that takes longer than this is forced. At least `drain_secs`.",
    )
    .default("`20`, or `drain_secs` and 10 more"),
    server(
        "accept_traffic_memory_percent",
        number(1, 100, |server| &mut server.options.http.accept_traffic_memory_percent),
        "`/accept-traffic` answers 500 while the machine uses more of its memory than this.",
    ),
    server(
        "cluster",
        choice(&["none", "redis"], |server| &mut server.cluster),
        "The broker that connects this node with others; `none`: a single node. See the page *Several nodes*.",
    )
    .fallbacks(&["REVERB_SCALING_ENABLED", "SOKETI_ADAPTER_DRIVER", "WEBSOCKETS_REPLICATION_MODE"])
    .synonyms(&[("local", "none")]),
    server(
        "local_when_broker_lost",
        switch(|server| &mut server.options.cluster.local_when_broker_lost),
        "While Redis is unavailable: whether an event is published to the subscribers of this node and answered with \
         200, or rejected with 503.",
    ),
];
