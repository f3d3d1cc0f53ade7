//! Every setting. One row defines a setting completely: to add one, add a field to the `Options` of its module and a row
//! here. Files, variables, checks, `config show` and the reference follow from the row.
//!
//! The bounds keep values in the range that the code was designed for. A default is in the `Default` of the module.

mod app;
mod checks;
mod redis;
mod server;

pub(super) use app::{APP, CREDENTIALS};
pub(super) use checks::host;
use checks::path;
pub(super) use redis::REDIS;
pub(super) use server::SERVER;

use super::setting::{Kind, Setting, choice, list, number, text};
use super::settings::{Log, Webhooks};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

// One constructor for each section, so that the compiler knows the type of a row's field.
const fn log(key: &'static str, kind: Kind<Log>, doc: &'static str) -> Setting<Log> {
    Setting::new(key, kind, doc)
}

const fn webhooks(key: &'static str, kind: Kind<Webhooks>, doc: &'static str) -> Setting<Webhooks> {
    Setting::new(key, kind, doc)
}

/// The section `[log]`; variables begin with `PUSHERD_LOG_`.
pub(super) const LOG: &[Setting<Log>] = &[
    log(
        "format",
        choice(&["auto", "human", "json"], |log| &mut log.format),
        "`human` is text for people, `auto` the same with colours on a terminal, `json` one object a line. With `json`, \
         nothing else is printed at the start.",
    )
    .flag("--log-format"),
    log(
        "level",
        choice(&["error", "warn", "info", "debug", "trace"], |log| &mut log.level),
        "How much is logged. `info` is the life cycle of the server; `debug` adds what clients cause.",
    )
    .flag("--log-level"),
];

/// The section `[webhooks]`; variables begin with `PUSHERD_WEBHOOKS_`.
pub(super) const WEBHOOKS: &[Setting<Webhooks>] = &[
    webhooks(
        "queue_bytes",
        number(64 * KIB, GIB, |webhooks| &mut webhooks.options.queue_bytes),
        "Bytes of events that may wait for one receiver. Beyond that, the oldest events of the type that uses the most \
         are dropped.",
    ),
    webhooks(
        "dead_letter_file",
        text("a file", path, |webhooks| &mut webhooks.dead_letter_file),
        "The file, of JSON lines, that keeps webhooks that could not be delivered; empty: none. A relative path starts \
         from the folder of the configuration file, or from the working directory if it is set by a variable.",
    )
    .default(
        "`dead-letters.jsonl` in `$STATE_DIRECTORY` or in `/var/lib/pusherd`, if there is such a folder that can be \
         written; else none",
    ),
    webhooks(
        "dead_letter_bytes",
        number(64 * KIB, GIB, |webhooks| &mut webhooks.options.dead_letter_bytes),
        "The size limit of this file. When it is full, its content is kept and new dead letters are dropped.",
    ),
    webhooks(
        "allowed_addresses",
        list("addresses and networks", |webhooks| &mut webhooks.options.allowed_addresses),
        "Addresses that webhooks may be sent to although they are link-local, multicast or a cloud's metadata service.",
    ),
];
