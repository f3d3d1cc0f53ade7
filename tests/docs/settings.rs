//! Settings and variables that pages name exist, and the limits of the specification are the defaults.

use std::collections::BTreeSet;

use pusherd::apps::AppLimits;

use super::pages::{Page, pages, read};

/// Variables that are no settings: where settings are looked for, what tests are told, and what Kubernetes sets beside
/// a service called pusherd.
const OTHERS: [&str; 5] =
    ["PUSHERD_CONFIG", "PUSHERD_ENV_FILE", "PUSHERD_BIN", "PUSHERD_SERVICE_HOST", "PUSHERD_SERVICE_PORT"];

/// Sections of the configuration, in front of a setting.
const SECTIONS: [&str; 5] = ["server", "log", "redis", "webhooks", "limits"];

/// What is in the place of a setting in the name of a file.
const EXTENSIONS: [&str; 6] = ["rs", "md", "mjs", "toml", "py", "lua"];

/// Every setting as pages write it, `redis.url` or `limits.channels`, and every variable.
fn known() -> BTreeSet<String> {
    let reference = pusherd::config::reference();
    let mut known: BTreeSet<_> = OTHERS.iter().map(|name| (*name).to_owned()).collect();
    let mut section = "";
    for line in reference.lines() {
        if let Some(title) = line.strip_prefix("### `[") {
            section = title.trim_matches(['[', ']', '`']);
        }
        let mut cells = line.split(" | ").map(|cell| cell.trim_matches(['|', ' ', '`']));
        let (Some(key), Some(variable)) = (cells.next(), cells.next()) else { continue };
        known.insert(if key.starts_with("limits.") { key.to_owned() } else { format!("{section}.{key}") });
        known.insert(variable.to_owned());
    }
    known
}

/// The settings that stand as code on a page, and the variables that stand anywhere on it.
fn named(page: &Page) -> BTreeSet<String> {
    let is_setting = |code: &String| {
        code.split_once('.').is_some_and(|(section, key)| {
            SECTIONS.contains(&section)
                && !EXTENSIONS.contains(&key)
                && !key.is_empty()
                && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        })
    };
    let mut named: BTreeSet<_> = page.codes().into_iter().filter(is_setting).collect();
    for (at, _) in page.text.match_indices("PUSHERD_") {
        let rest = &page.text[at..];
        let end = rest.find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_');
        let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
        // `PUSHERD_APP_…` stands for many.
        if !name.ends_with('_') && !after.starts_with(['…', '*']) {
            named.insert(name.to_owned());
        }
    }
    named
}

#[test]
fn every_setting_that_a_page_names_exists() {
    let known = known();
    let mut wrong = Vec::new();
    for page in pages() {
        let missing = named(&page).into_iter().filter(|name| !known.contains(name));
        wrong.extend(missing.map(|name| format!("{}: there is no setting {name}", page.name)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn settings_are_found_on_a_page() {
    let page = Page::new(
        "page.md",
        "`redis.url` redis.no `limits.channels` `server.rs` `hub.join`\n\n| `PUSHERD_PORT` |\n\n```ini\nPUSHERD_APP_X=1\n```\n\
         `PUSHERD_APP_…`",
    );
    let named: Vec<_> = named(&page).into_iter().collect();
    assert_eq!(named, ["PUSHERD_APP_X", "PUSHERD_PORT", "limits.channels", "redis.url"]);
    let known = known();
    for (name, is_known) in [
        ("redis.url", true),
        ("limits.channels", true),
        ("PUSHERD_PORT", true),
        ("server.connections", true),
        ("PUSHERD_APP_X", false),
        ("redis.prot", false),
    ] {
        assert_eq!(known.contains(name), is_known, "{name}");
    }
}

/// A number as pages write it: `102,400`.
fn written(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}

#[test]
fn the_limits_of_the_specification_are_the_defaults() {
    let page = read("docs/protocol.md");
    let section = page.split("### 12.1 ").nth(1).unwrap().split("\n## ").next().unwrap();
    let defaults = AppLimits::default();
    let mib = |bytes: usize| format!("{} MiB", bytes / (1024 * 1024));
    for (limit, values) in [
        ("channel name", vec![written(pusherd::protocol::NameRules::default().bytes_max)]),
        ("event name", vec![written(defaults.event_name_chars_max)]),
        (
            "`data` over HTTP / of a client event",
            vec![written(defaults.event_data_bytes_max), written(defaults.client_event_data_bytes_max)],
        ),
        ("HTTP body", vec![written(defaults.request_body_bytes_max)]),
        ("message of a client", vec![format!("{} KiB", defaults.message_bytes_max / 1024)]),
        ("messages", vec![defaults.messages.per_second.to_string(), defaults.messages.burst.to_string()]),
        ("what waits for a client", vec![mib(defaults.outbox_bytes_max)]),
        (
            "channels per publish / events per batch",
            vec![written(defaults.channels_per_publish_max), written(defaults.events_per_batch_max)],
        ),
        (
            "presence members / `user_info` / `user_id` / `channel_data`",
            vec![
                defaults.presence_members_max.to_string(),
                written(defaults.presence_user_info_bytes_max),
                written(defaults.user_id_chars_max),
                written(defaults.channel_data_bytes_max),
            ],
        ),
        ("channels of an app on a node", vec![written(defaults.channels_max.unwrap() as usize)]),
        ("client events", vec![format!("{}/s", defaults.client_events.per_second)]),
        ("watchlist", vec![written(defaults.watchlist_users_max)]),
        ("subscriptions per connection", vec![defaults.channels_per_connection_max.to_string()]),
        ("cached event", vec![format!("{} s", defaults.cache_ttl.as_secs()), mib(defaults.cached_bytes_max)]),
        ("age of a signed request", vec![format!("{} s", defaults.auth_window_secs)]),
        ("requests of an app in flight", vec![mib(defaults.requests_in_flight_bytes_max)]),
    ] {
        let row = section
            .lines()
            .find(|line| line.starts_with(&format!("| {limit} |")))
            .unwrap_or_else(|| panic!("{limit}"));
        let default = row.split(" | ").nth(1).unwrap();
        for value in values {
            assert!(
                default.contains(&value),
                "§12.1 of docs/protocol.md, {limit}: {value} is not in {default}"
            );
        }
    }
}

/// The defaults of settings that are numbers, by the name that pages give to a setting.
fn defaults() -> Vec<(String, usize)> {
    let reference = pusherd::config::reference();
    let cells = |line: &str| -> Vec<String> {
        line.split(" | ").map(|cell| cell.trim_matches(['|', ' ', '`']).to_owned()).collect()
    };
    let rows = reference.lines().map(cells).filter(|cells| cells.len() > 3);
    rows.filter_map(|cells| Some((cells[0].clone(), cells[2].parse().ok()?))).collect()
}

#[test]
fn the_page_of_limits_has_the_defaults() {
    let page = read("docs/reference/limits.md");
    let defaults = defaults();
    let mut rows = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = row.trim_matches(['|', ' ']).split(" | ").collect();
        let &[.., settings] = cells.as_slice() else { continue };
        for setting in settings.split('`').skip(1).step_by(2) {
            let (_, default) = defaults
                .iter()
                .find(|(name, _)| name == setting)
                .unwrap_or_else(|| panic!("{setting} has no number as its default"));
            // 0 is derived, or none.
            let forms = [
                default.to_string(),
                written(*default),
                format!("{} MiB", default / (1024 * 1024)),
                format!("{} minutes", default / 60),
            ];
            let is_there = *default == 0 || forms.iter().any(|form| cells[1].contains(form));
            assert!(is_there, "{setting} is {default}: {row}");
            rows += 1;
        }
    }
    assert!(rows > 30, "{rows} settings");
}
