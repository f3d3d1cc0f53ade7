//! What is legal and makes no sense, or is not safe.

use std::fmt;
use std::net::IpAddr;

use super::apps::Draft;
use super::clients::Clients;
use super::families::{Choice, Driver, Owner};
use super::problem::Source;
use super::redis::{self, Redis};
use super::section::Section;
use super::{Server, Webhooks};
use crate::apps::{EventType, EventTypes, Webhook};
use crate::server::Tls;

/// A remark on settings that work, but hardly as meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Advice {
    /// Whether the server is open to strangers: said even where little is logged.
    pub loud: bool,
    /// What is remarkable and what to do.
    pub text: String,
}

impl Advice {
    /// What is not dangerous.
    pub(super) const fn quiet(text: String) -> Self {
        Self { loud: false, text }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Secrets shorter than this can be guessed.
const SECRET_BYTES_MIN: usize = 8;

/// Whether only this machine can connect to `host`.
pub(super) fn is_loopback(host: &str) -> bool {
    host.parse::<IpAddr>().map_or(host == "localhost", |address| address.is_loopback())
}

/// Looks at the settings of server, Redis and webhooks and at the apps.
pub(super) fn advise(
    server: &Section<Server>,
    redis: &Section<Redis>,
    webhooks: &Section<Webhooks>,
    apps: &[Draft],
) -> Vec<Advice> {
    let mut advice = Vec::new();
    let mut say = |text: String| advice.push(Advice::quiet(text));
    let Server { host, options, tls, .. } = &server.value;
    let patience = options.pusher.ping_interval + options.pusher.pong_timeout;
    if options.pusher.activity_timeout > patience {
        say(format!(
            "{}: clients are told to ping after {} s, and are pinged or closed after {} s: the first has no effect",
            server.source("activity_timeout_secs").at("server.activity_timeout_secs"),
            options.pusher.activity_timeout.as_secs(),
            patience.as_secs(),
        ));
    }
    redis::advise(server, redis, &mut say);
    if apps.iter().all(|app| !app.section.value.enabled) {
        say("no app is enabled: every connection is refused".to_owned());
    }
    for app in apps {
        for place in app.secrets_shorter_than(SECRET_BYTES_MIN) {
            say(format!("{place}: is shorter than {SECRET_BYTES_MIN} bytes and can be guessed"));
        }
        let section = &app.section;
        let at = |key: &str| section.source(key).at(&section.path(key));
        let limits = &section.value.limits;
        let idle = [
            (section.value.client_events, "client_events is off", "limits.client_events_per_second"),
            (section.value.client_events, "client_events is off", "limits.client_event_data_bytes"),
            (section.value.watchlist, "watchlist is false", "limits.watchlist_users"),
        ];
        for (in_use, why, key) in idle {
            if !in_use && section.is_set(key) {
                say(format!("{}: has no effect while {why}", at(key)));
            }
        }
        let silent = [
            (EventType::ClientEvent, section.value.client_events, "client_events is off"),
            (EventType::SubscriptionCount, section.value.subscription_counts, "subscription_counts is false"),
        ];
        for (event_type, in_use, why) in silent {
            let asks = |webhook: &Webhook| {
                webhook.event_types != EventTypes::PUSHER
                    && webhook.event_types.has_any(EventTypes::of(&[event_type]))
            };
            if !in_use && section.value.webhooks.iter().any(asks) {
                say(format!("{}: {} is never sent while {why}", at("webhooks"), event_type.name()));
            }
        }
        let message = if limits.message_bytes_max == 0 { usize::MAX } else { limits.message_bytes_max };
        let body =
            if limits.request_body_bytes_max == 0 { usize::MAX } else { limits.request_body_bytes_max };
        let channel_data =
            if limits.channel_data_bytes_max == 0 { usize::MAX } else { limits.channel_data_bytes_max };
        // the greater, its key; what it cannot reach, its key
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
            // Another server's bound with our default under it is what was asked for.
            let is_of_others = section.source(&format!("limits.{bound_key}")).is_of_others();
            if value > bound && (section.is_set(&format!("limits.{key}")) || !is_of_others) {
                let key = at(&format!("limits.{key}"));
                say(format!("{key}: {value} is never reached, as limits.{bound_key} is {bound}"));
            }
        }
        if section.value.tls_only && tls.is_none() && options.addresses.trusted_proxies.is_empty() {
            let why = "server.trusted_proxies is empty, and there is no server.tls_cert";
            say(format!("{}: refuses everyone, as {why}", at("tls_only")));
        }
    }
    let none_has_webhooks = apps.iter().all(|app| app.section.value.webhooks.is_empty());
    if none_has_webhooks && !webhooks.value.dead_letter_file.is_empty() {
        let place = webhooks.source("dead_letter_file").at(&webhooks.path("dead_letter_file"));
        say(format!("{place}: has no effect while no app has webhooks"));
    }
    if !server.is_set("host") {
        for place in apps.iter().filter_map(Draft::written_default_secret) {
            say(format!(
                "{place}: is the default secret, so the server listens on {host} only; choose another, or set \
                 PUSHERD_HOST"
            ));
        }
    }
    if let Some((is_refused, remark)) = tls.as_ref().and_then(Tls::validity_warning) {
        advice.push(Advice { loud: is_refused, text: format!("{}: {remark}", server.place("tls_cert")) });
    }
    if apps.iter().any(Draft::has_default_secret) && !is_loopback(host) {
        let text = format!(
            "the default credentials are used on {host}, where others may reach them: whoever does can publish to \
             every channel and listen to all. Set PUSHERD_APP_ID, PUSHERD_APP_KEY and PUSHERD_APP_SECRET"
        );
        advice.insert(0, Advice { loud: true, text });
    }
    advice
}

/// What to say of the credentials that were left, and of a driver that needs none.
pub(super) fn of_families(choice: &Choice) -> Vec<Advice> {
    let driver = choice.driver.as_ref().and_then(Driver::remark);
    let texts = choice.remarks.iter().cloned().chain(driver);
    texts.map(Advice::quiet).collect()
}

/// What to say of an application whose `.env` has credentials and not where to use them.
pub(super) fn publishes_elsewhere(
    key_source: &Source,
    choice: &Choice,
    clients: Option<&Clients>,
) -> Option<Advice> {
    let Source::Variable { dotenv: Some(file), .. } = key_source else { return None };
    match clients {
        Some(clients) => {
            let is_vendor = ["pusher.com", "pusherapp.com"].iter().any(|name| clients.host.ends_with(name));
            is_vendor.then(|| {
                Advice::quiet(format!("{file}: the application publishes to {}, and not here", clients.host))
            })
        }
        None if choice.is_of_reverb() => Some(Advice::quiet(format!(
            "{file}: REVERB_HOST is not set, so the application does not know where to publish; set REVERB_HOST, \
             REVERB_PORT and REVERB_SCHEME"
        ))),
        None if choice.owner() == Some(Owner::Pusher) => Some(Advice::quiet(format!(
            "{file}: PUSHER_HOST is not set, so the application publishes to pusher.com and not here; set PUSHER_HOST, \
             PUSHER_PORT and PUSHER_SCHEME"
        ))),
        None => None,
    }
}
