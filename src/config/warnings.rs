//! Warnings about settings that are valid but have no effect, or are not safe.

use std::fmt;
use std::net::IpAddr;

use super::apps::Draft;
use super::client_address::ClientAddress;
use super::credentials::{CredentialsChoice, Driver, Owner};
use super::problems::Source;
use super::redis::{self, Redis};
use super::section::Section;
use super::settings::{Server, Webhooks};
use crate::apps::{EventType, EventTypes, Webhook};
use crate::server::Tls;

/// A warning about settings that are valid but probably wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Warning {
    /// Whether it is logged at every level, because the server is not safe or cannot be reached.
    pub always_logged: bool,
    /// The location, the problem, and the remedy.
    pub text: String,
}

impl Warning {
    /// A warning that is logged at the level `warn`.
    pub(super) const fn new(text: String) -> Self {
        Self { always_logged: false, text }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Shorter secrets can be guessed.
const SECRET_BYTES_MIN: usize = 8;

/// Whether only this machine can connect to `host`.
pub(super) fn is_loopback(host: &str) -> bool {
    host.parse::<IpAddr>().map_or(host == "localhost", |address| address.is_loopback())
}

/// Checks the settings of the server, Redis, webhooks and the apps.
pub(super) fn check(
    server: &Section<Server>,
    redis: &Section<Redis>,
    webhooks: &Section<Webhooks>,
    apps: &[Draft],
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |text: String| warnings.push(Warning::new(text));
    let Server { host, options, tls, .. } = &server.value;
    let close_after = options.pusher.ping_interval + options.pusher.pong_timeout;
    if options.pusher.activity_timeout > close_after {
        warn(format!(
            "{}: has no effect: clients ping after {} s of silence, but are pinged or closed after {} s",
            server.location("activity_timeout_secs"),
            options.pusher.activity_timeout.as_secs(),
            close_after.as_secs(),
        ));
    }
    redis::check(server, redis, &mut warn);
    if apps.iter().all(|app| !app.section.value.enabled) {
        warn("no app is enabled: every connection is rejected".to_owned());
    }
    for app in apps {
        for location in app.short_secrets(SECRET_BYTES_MIN) {
            warn(format!("{location}: is shorter than {SECRET_BYTES_MIN} bytes and can be guessed"));
        }
        let section = &app.section;
        let at = |key: &str| section.location(key);
        let limits = &section.value.limits;
        let unused = [
            (section.value.client_events, "client_events is off", "limits.client_events_per_second"),
            (section.value.client_events, "client_events is off", "limits.client_event_data_bytes"),
            (section.value.watchlist, "watchlist is false", "limits.watchlist_users"),
        ];
        for (in_use, why, key) in unused {
            if !in_use && section.is_set(key) {
                warn(format!("{}: has no effect while {why}", at(key)));
            }
        }
        let never_sent = [
            (EventType::ClientEvent, section.value.client_events, "client_events is off"),
            (EventType::SubscriptionCount, section.value.subscription_counts, "subscription_counts is false"),
        ];
        for (event_type, in_use, why) in never_sent {
            let asks = |webhook: &Webhook| {
                webhook.event_types != EventTypes::PUSHER
                    && webhook.event_types.has_any(EventTypes::of(&[event_type]))
            };
            if !in_use && section.value.webhooks.iter().any(asks) {
                warn(format!("{}: {} is never sent while {why}", at("webhooks"), event_type.name()));
            }
        }
        let message = if limits.message_bytes_max == 0 { usize::MAX } else { limits.message_bytes_max };
        let body =
            if limits.request_body_bytes_max == 0 { usize::MAX } else { limits.request_body_bytes_max };
        let channel_data =
            if limits.channel_data_bytes_max == 0 { usize::MAX } else { limits.channel_data_bytes_max };
        // The value and its key; the lower bound that makes it unreachable, and its key.
        let unreachable = [
            (limits.event_data_bytes_max, "event_data_bytes", body, "request_body_bytes"),
            (limits.event_data_bytes_max, "event_data_bytes", limits.outbox_bytes_max, "outbox_bytes"),
            (limits.client_event_data_bytes_max, "client_event_data_bytes", message, "message_bytes"),
            (limits.channel_data_bytes_max, "channel_data_bytes", message, "message_bytes"),
            (
                limits.presence_user_info_bytes_max,
                "presence_user_info_bytes",
                channel_data,
                "channel_data_bytes",
            ),
            (
                limits.messages.per_second as usize,
                "messages_per_second",
                limits.messages.burst as usize,
                "messages_burst",
            ),
        ];
        for (value, key, bound, bound_key) in unreachable {
            // A lower bound from another server's variable is intended, if the value is our default.
            let is_foreign = section.source(&format!("limits.{bound_key}")).is_foreign_variable();
            if value > bound && (section.is_set(&format!("limits.{key}")) || !is_foreign) {
                let key = at(&format!("limits.{key}"));
                warn(format!("{key}: {value} is never reached, as limits.{bound_key} is {bound}"));
            }
        }
        if section.value.tls_only && tls.is_none() && options.addresses.trusted_proxies.is_empty() {
            let why = "server.trusted_proxies is empty, and there is no server.tls_cert";
            warn(format!("{}: rejects every connection, as {why}", at("tls_only")));
        }
    }
    let none_has_webhooks = apps.iter().all(|app| app.section.value.webhooks.is_empty());
    if none_has_webhooks && !webhooks.value.dead_letter_file.is_empty() {
        let location = webhooks.location("dead_letter_file");
        warn(format!("{location}: has no effect while no app has webhooks"));
    }
    if !server.is_set("host") {
        for location in apps.iter().filter_map(Draft::configured_default_secret) {
            warn(format!(
                "{location}: is the default secret, so the server listens on {host} only; choose another, or set \
                 PUSHERD_HOST"
            ));
        }
    }
    if let Some((is_rejected, warning)) = tls.as_ref().and_then(Tls::validity_warning) {
        let text = format!("{}: {warning}", server.location("tls_cert"));
        warnings.push(Warning { always_logged: is_rejected, text });
    }
    if apps.iter().any(Draft::has_default_secret) && !is_loopback(host) {
        let text = format!(
            "the default credentials are used on {host}, which other machines may reach: anyone who does can publish \
             to every channel and subscribe to all. Set PUSHERD_APP_ID, PUSHERD_APP_KEY and PUSHERD_APP_SECRET"
        );
        warnings.insert(0, Warning { always_logged: true, text });
    }
    warnings
}

/// Warnings about credentials that are not used, and about a driver that sends nothing.
pub(super) fn about_credentials(choice: &CredentialsChoice) -> Vec<Warning> {
    let driver = choice.driver.as_ref().and_then(Driver::warning);
    let texts = choice.warnings.iter().cloned().chain(driver);
    texts.map(Warning::new).collect()
}

/// The warning about an application whose `.env` has credentials, but not the address of pusherd.
pub(super) fn publishes_elsewhere(
    key_source: &Source,
    choice: &CredentialsChoice,
    client_address: Option<&ClientAddress>,
) -> Option<Warning> {
    let Source::Variable { dotenv: Some(file), .. } = key_source else { return None };
    match client_address {
        Some(address) => {
            let is_vendor = ["pusher.com", "pusherapp.com"].iter().any(|name| address.host.ends_with(name));
            is_vendor.then(|| {
                Warning::new(format!("{file}: the application publishes to {}, not to pusherd", address.host))
            })
        }
        None if choice.uses_reverb() => Some(Warning::new(format!(
            "{file}: REVERB_HOST is not set, so the application does not know where to publish; set REVERB_HOST, \
             REVERB_PORT and REVERB_SCHEME"
        ))),
        None if choice.owner() == Some(Owner::Pusher) => Some(Warning::new(format!(
            "{file}: PUSHER_HOST is not set, so the application publishes to pusher.com, not to pusherd; set PUSHER_HOST, \
             PUSHER_PORT and PUSHER_SCHEME"
        ))),
        None => None,
    }
}
