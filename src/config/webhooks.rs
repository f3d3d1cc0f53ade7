//! Parses the webhooks of an app, in Soketi's format. Source: protocol.md §9.4.
//!
//! Problems do not repeat URLs and values of headers, because they may hold secrets.

use std::fmt::Write as _;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::apps::Draft;
use super::problems::{Problems, closest_name};
use super::setting::{TablesField, toml_string};
use crate::apps::{
    ChannelFilter, EventType, EventTypes, Webhook, WebhookHeaderError, WebhookUrl, webhook_header,
};
use crate::webhooks::target;

const KEYS: [&str; 4] = ["url", "headers", "event_types", "filter"];
/// Replaces values that may be secret.
const MASK: &str = "***";

const FILTER_KEYS: [&str; 2] = ["channel_name_starts_with", "channel_name_ends_with"];

impl TablesField for Vec<Webhook> {
    fn parse(&mut self, tables: Vec<Value>) -> Result<Vec<String>, String> {
        let mut webhooks = Vec::with_capacity(tables.len());
        let (mut problems, mut warnings) = (Vec::new(), Vec::new());
        for (at, table) in tables.into_iter().enumerate() {
            match webhook(table, &mut |warning| warnings.push(format!("[{at}]{warning}"))) {
                Ok(webhook) => webhooks.push(webhook),
                Err(found) => problems.extend(found.into_iter().map(|problem| format!("[{at}]{problem}"))),
            }
        }
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        *self = webhooks;
        Ok(warnings)
    }

    fn show(&self) -> String {
        let shown: Vec<_> = self.iter().map(show).collect();
        format!("[{}]", shown.join(", "))
    }
}

/// A webhook as TOML. Values of headers and the query of the URL are masked.
fn show(webhook: &Webhook) -> String {
    let query = if webhook.url.target().contains('?') { format!("?{MASK}") } else { String::new() };
    let mut text = format!("{{ url = {}", toml_string(&format!("{}{query}", webhook.url)));
    if !webhook.headers.is_empty() {
        let headers: Vec<_> = webhook
            .headers
            .keys()
            .map(|name| format!("{} = {}", toml_string(name.as_str()), toml_string(MASK)))
            .collect();
        let _ = write!(text, ", headers = {{ {} }}", headers.join(", "));
    }
    if webhook.event_types != EventTypes::PUSHER {
        let types: Vec<_> =
            webhook.event_types.iter().map(|event_type| toml_string(event_type.name())).collect();
        let _ = write!(text, ", event_types = [{}]", types.join(", "));
    }
    let filter = [(FILTER_KEYS[0], &webhook.filter.starts_with), (FILTER_KEYS[1], &webhook.filter.ends_with)];
    let filter: Vec<_> = filter
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(key, text)| format!("{key} = {}", toml_string(text)))
        .collect();
    if !filter.is_empty() {
        let _ = write!(text, ", filter = {{ {} }}", filter.join(", "));
    }
    text + " }"
}

/// Parses a webhook. Problems and warnings have the form `.key: what`.
fn webhook(table: Value, warn: &mut impl FnMut(String)) -> Result<Webhook, Vec<String>> {
    let Value::Object(mut table) = table else { return Err(vec![": must be a table with a url".to_owned()]) };
    let mut problems = Vec::new();
    for key in ["lambda_function", "lambda"] {
        if remove(&mut table, key).is_some() {
            problems.push(format!(".{key}: functions of AWS Lambda are not supported; give a url"));
        }
    }
    let mut report = |key: &str, what: String| problems.push(format!(".{key}: {what}"));
    let url = match remove(&mut table, "url") {
        None => Err("is missing".to_owned()),
        Some(Value::String(text)) if text.ends_with(&format!("?{MASK}")) => {
            Err("has the mask of `pusherd config show` for a query".to_owned())
        }
        Some(Value::String(text)) => WebhookUrl::parse(&text).map_err(|error| error.to_string()),
        Some(_) => Err("must be text".to_owned()),
    };
    let url = url.map_err(|what| report("url", what)).ok();
    let headers = remove(&mut table, "headers").map(|headers| self::headers(headers, &mut report, warn));
    let event_types = remove(&mut table, "event_types").map(event_types).transpose();
    let event_types = event_types.map_err(|what| report("event_types", what)).unwrap_or_default();
    let filter = remove(&mut table, "filter").map(|filter| self::filter(filter, &mut report));
    check_unknown(&table, &KEYS, "", &mut report);
    match url {
        Some(url) if problems.is_empty() => {
            let mut webhook = Webhook::new(url);
            webhook.headers = headers.unwrap_or_default();
            webhook.event_types = event_types.unwrap_or(EventTypes::PUSHER);
            webhook.filter = filter.unwrap_or_default();
            Ok(webhook)
        }
        Some(_) | None => Err(problems),
    }
}

/// Parses the headers, without those that every webhook has: Soketi accepts these in its configuration and overwrites them.
fn headers(
    value: Value,
    report: &mut impl FnMut(&str, String),
    warn: &mut impl FnMut(String),
) -> hyper::HeaderMap {
    let mut headers = hyper::HeaderMap::new();
    let Value::Object(given) = value else {
        report("headers", "must be a table of names and values".to_owned());
        return headers;
    };
    for (name, value) in given {
        let at = format!("headers.{}", name.escape_debug());
        let Value::String(value) = value else {
            report(&at, "must be text".to_owned());
            continue;
        };
        if value == MASK {
            report(&at, "is the mask of `pusherd config show`, not a value".to_owned());
            continue;
        }
        match webhook_header(&name, &value) {
            Ok((name, value)) => {
                headers.insert(name, value);
            }
            Err(error @ WebhookHeaderError::Own) => warn(format!(".{at}: {error}: not sent as written")),
            Err(
                error @ (WebhookHeaderError::Name | WebhookHeaderError::Value | WebhookHeaderError::Reserved),
            ) => report(&at, error.to_string()),
        }
    }
    headers
}

fn event_types(value: Value) -> Result<EventTypes, String> {
    let Value::Array(given) = value else { return Err("must be a list of types".to_owned()) };
    if given.is_empty() {
        return Err("lists no type, so nothing would be sent; leave it out for Pusher's seven".to_owned());
    }
    let (mut types, mut unknown) = (Vec::new(), Vec::new());
    for name in given {
        let Value::String(name) = name else { return Err("must be a list of texts".to_owned()) };
        match EventType::parse(&name) {
            Some(event_type) => types.push(event_type),
            None => unknown.push(super::setting::excerpt(&name)),
        }
    }
    if !unknown.is_empty() {
        let known: Vec<_> = EventType::ALL.into_iter().map(EventType::name).collect();
        return Err(format!("has unknown types: {}; there are {}", unknown.join(", "), known.join(", ")));
    }
    Ok(EventTypes::of(&types))
}

fn filter(value: Value, report: &mut impl FnMut(&str, String)) -> ChannelFilter {
    let Value::Object(mut given) = value else {
        report("filter", "must be a table".to_owned());
        return ChannelFilter::default();
    };
    let mut text = |key: &str| match remove(&mut given, key) {
        None => "".into(),
        Some(Value::String(text)) => text.into(),
        Some(_) => {
            report(&format!("filter.{key}"), "must be text".to_owned());
            "".into()
        }
    };
    let filter = ChannelFilter { starts_with: text(FILTER_KEYS[0]), ends_with: text(FILTER_KEYS[1]) };
    check_unknown(&given, &FILTER_KEYS, "filter.", report);
    filter
}

/// Removes and returns the value of `key`, unless it is null.
fn remove(table: &mut Map<String, Value>, key: &str) -> Option<Value> {
    table.remove(key).filter(|value| !value.is_null())
}

/// Reports the keys that are left in `table`.
fn check_unknown(
    table: &Map<String, Value>,
    known: &[&str],
    at: &str,
    report: &mut impl FnMut(&str, String),
) {
    for (key, _) in table.iter().filter(|(_, value)| !value.is_null()) {
        let hint = closest_name(key, known.iter().copied()).map(|known| format!("; did you mean {known}?"));
        report(
            &format!("{at}{}", key.escape_debug()),
            format!("is not a setting{}", hint.unwrap_or_default()),
        );
    }
}

/// Reports URLs whose host is an address that webhooks are not sent to.
pub(super) fn check_targets(apps: &[Draft], allowed: &[IpNet], problems: &mut Problems) {
    for app in apps {
        for (at, webhook) in app.section.value.webhooks.iter().enumerate() {
            let blocked = webhook.url.address().and_then(|address| target::denied_kind(address, allowed));
            if let Some(why) = blocked {
                let what = format!(
                    "[{at}].url: {} is {why}: webhooks are not sent there unless webhooks.allowed_addresses contains it",
                    webhook.url.host()
                );
                problems.add(&app.section.source("webhooks"), &app.section.path("webhooks"), what);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(tables: Value) -> Result<Vec<Webhook>, String> {
        let mut webhooks = Vec::new();
        let Value::Array(tables) = tables else { panic!("a list") };
        TablesField::parse(&mut webhooks, tables).map(|_| webhooks)
    }

    #[test]
    fn headers_that_every_webhook_has_are_ignored_with_a_warning() {
        let mut webhooks: Vec<Webhook> = Vec::new();
        let headers = json!({ "X-Pusher-Key": "hunter2", "content-type": "hunter2", "X-Env": "prod" });
        let tables = vec![json!({ "url": "http://x" }), json!({ "url": "http://y", "headers": headers })];
        let warnings = webhooks.parse(tables).unwrap();
        assert_eq!(
            warnings,
            ["X-Pusher-Key", "content-type"].map(|name| format!(
                "[1].headers.{name}: is a header that every webhook has: not sent as written"
            ))
        );
        assert_eq!(webhooks[1].headers.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["x-env"]);
    }

    #[test]
    fn webhooks_are_read_in_soketis_format() {
        let webhooks = parsed(json!([
            {
                "url": "https://app.example/hooks",
                "headers": { "X-Env": "prod" },
                "event_types": ["channel_occupied", "member_added"],
                "filter": { "channel_name_starts_with": "presence-", "channel_name_ends_with": "" },
            },
            { "url": "http://127.0.0.1:8000/hooks", "headers": null, "filter": {} },
        ]))
        .unwrap();
        assert_eq!(webhooks[0].url.target(), "/hooks");
        assert_eq!(webhooks[0].headers["x-env"], "prod");
        let types = [EventType::ChannelOccupied, EventType::MemberAdded];
        assert_eq!(webhooks[0].event_types, EventTypes::of(&types));
        assert_eq!(&*webhooks[0].filter.starts_with, "presence-");
        assert_eq!(webhooks[1].event_types, EventTypes::PUSHER);
        assert_eq!(webhooks[1].filter, ChannelFilter::default());
    }

    #[test]
    fn all_problems_are_reported_without_secrets() {
        let table = [
            (json!(["x"]), "[0]: must be a table with a url"),
            (json!([{}]), "[0].url: is missing"),
            (json!([{ "url": 5 }]), "[0].url: must be text"),
            (
                json!([{ "url": "ftp://hunter2" }]),
                "[0].url: must be a URL such as https://app.example.com/hooks",
            ),
            (
                json!([{ "url": "http://u:hunter2@x/" }]),
                "[0].url: must not hold a user and password; use a header, such as Authorization",
            ),
            (
                json!([{ "url": "http://x", "headers": { "A": "hunter2\n" } }]),
                "[0].headers.A: must be visible ASCII characters, spaces and tabs",
            ),
            (json!([{ "url": "http://x", "headers": { "A": 7 } }]), "[0].headers.A: must be text"),
            (
                json!([{ "url": "http://x?***", "headers": { "A": "***" } }]),
                "[0].url: has the mask of `pusherd config show` for a query; \
                 [0].headers.A: is the mask of `pusherd config show`, not a value",
            ),
            (
                json!([{ "url": "http://x", "headers": [] }]),
                "[0].headers: must be a table of names and values",
            ),
            (
                json!([{ "url": "http://x" }, { "url": "http://x", "event_types": ["channel_vacated", "gone"] }]),
                "[1].event_types: has unknown types: \"gone\"; there are channel_occupied, channel_vacated, \
                 member_added, member_removed, client_event, cache_miss, subscription_count, user_online, \
                 user_offline",
            ),
            (
                json!([{ "url": "http://x", "event_types": [] }]),
                "[0].event_types: lists no type, so nothing would be sent; leave it out for Pusher's seven",
            ),
            (
                json!([{ "lambda_function": "f" }]),
                "[0].lambda_function: functions of AWS Lambda are not supported; give a url; [0].url: is missing",
            ),
            (
                json!([{ "url": "http://x", "event_type": [] }]),
                "[0].event_type: is not a setting; did you mean event_types?",
            ),
            (
                json!([{ "url": "http://x", "filter": { "prefix": "a", "channel_name_ends_with": 1 } }]),
                "[0].filter.channel_name_ends_with: must be text; [0].filter.prefix: is not a setting",
            ),
        ];
        for (given, expected) in table {
            assert_eq!(parsed(given.clone()).unwrap_err(), expected, "{given}");
        }
    }

    #[test]
    fn values_that_may_be_secret_are_masked() {
        let webhooks = parsed(json!([
            { "url": "http://x/hooks?token=hunter2", "headers": { "Authorization": "Bearer hunter2" } },
            { "url": "http://y", "event_types": ["user_offline"], "filter": { "channel_name_ends_with": "-a" } },
        ]))
        .unwrap();
        assert_eq!(
            webhooks.show(),
            "[{ url = \"http://x/hooks?***\", headers = { \"authorization\" = \"***\" } }, \
             { url = \"http://y/\", event_types = [\"user_offline\"], \
             filter = { channel_name_ends_with = \"-a\" } }]"
        );
        assert!(!format!("{webhooks:?}").contains("hunter2"));
    }
}
