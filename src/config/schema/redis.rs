//! The section `[redis]`.

use super::checks::path;
use crate::config::redis::{self, Redis};
use crate::config::setting::{Kind, Setting, number, secret, switch, tables, text};

const fn redis(key: &'static str, kind: Kind<Redis>, doc: &'static str) -> Setting<Redis> {
    Setting::new(key, kind, doc)
}

/// The section `[redis]`; variables begin with `PUSHERD_REDIS_`.
pub(in crate::config) const REDIS: &[Setting<Redis>] = &[
    redis(
        "url",
        secret("a URL", redis::url, redis::masked_url, |redis| &mut redis.url),
        "The URL of Redis: `redis://user:password@host:6379/0`, with TLS `rediss://`, or `unix:///path?database=0`. \
         Special characters in a password are written `%xx`.",
    )
    .fallbacks(&["REDIS_URL"]),
    redis(
        "host",
        text("an address, a host name or a path", redis::host, |redis| &mut redis.host),
        "The host of Redis. `tls://` in front of it turns TLS on; a path is a Unix socket.",
    )
    .fallbacks(&["REDIS_HOST", "SOKETI_DB_REDIS_HOST"]),
    redis("port", number(1, 65_535, |redis| &mut redis.port), "The port of Redis.")
        .fallbacks(&["REDIS_PORT", "SOKETI_DB_REDIS_PORT"]),
    redis(
        "nodes",
        tables("`host:port`", |redis| &mut redis.nodes),
        "Some of the nodes of a Redis Cluster, instead of `url` and `host`; pusherd discovers the others.",
    )
    .fallbacks(&["SOKETI_DB_REDIS_CLUSTER_NODES"]),
    redis(
        "sentinels",
        tables("`host:port`", |redis| &mut redis.sentinels),
        "Some of the sentinels that monitor Redis, instead of `url` and `host`; pusherd discovers the others.",
    )
    .fallbacks(&["SOKETI_DB_REDIS_SENTINELS"]),
    redis(
        "sentinel_master",
        text("A-Z a-z 0-9 . - _", redis::master, |redis| &mut redis.sentinel_master),
        "The name of the master that the sentinels monitor.",
    )
    .fallbacks(&["SOKETI_DB_REDIS_INSTANCE_NAME"]),
    redis(
        "sentinel_username",
        text("a name", redis::username, |redis| &mut redis.sentinel_username),
        "The user name for the sentinels; empty: the default user.",
    ),
    redis(
        "sentinel_password",
        secret("a password", redis::password, redis::masked, |redis| &mut redis.sentinel_password),
        "The password of the sentinels; empty: none.",
    )
    .fallbacks(&["SOKETI_DB_REDIS_SENTINEL_PASSWORD"]),
    redis(
        "username",
        text("a name", redis::username, |redis| &mut redis.username),
        "The user name; empty: the default user.",
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
        "The prefix of all keys and channels in Redis. Clusters that share a Redis need different ones, even in different \
         databases. A variable of another program is put in front of `pusherd`; `REVERB_SCALING_CHANNEL`, unless it is \
         `reverb`, is put behind it.",
    )
    .fallbacks(&["REDIS_PREFIX", "SOKETI_ADAPTER_REDIS_PREFIX", "SOKETI_DB_REDIS_KEY_PREFIX"]),
    redis(
        "timeout_ms",
        number(50, 60_000, |redis| &mut redis.timeout_ms),
        "Timeout of a command, in milliseconds.",
    ),
    redis(
        "tls",
        switch(|redis| &mut redis.tls),
        "Whether connections to Redis and to sentinels use TLS. `rediss://` and `tls://` turn it on as well.",
    ),
    redis(
        "tls_ca_file",
        text("a file", path, |redis| &mut redis.tls_ca_file),
        "A PEM file with the certificate authorities for Redis; empty: those of the system. A relative path starts from \
         the folder of the configuration file, or from the working directory if it is set by a variable.",
    ),
    redis(
        "tls_accept_any_certificate",
        switch(|redis| &mut redis.tls_accept_any_certificate),
        "Whether any certificate of Redis is accepted. A machine in between can then read and change everything.",
    ),
];
