//! Settings for eyes: what is in effect (`pusherd config show`), and what there is (`pusherd config
//! reference`).

use std::fmt::{self, Write as _};

use super::apps::Draft;
use super::foreign;
use super::kind::Setting;
use super::redis::Redis;
use super::schema::{APP, CREDENTIALS, LOG, REDIS, SERVER, WEBHOOKS};
use super::section::Line;
use super::variables::{APP_PREFIX, LOG_PREFIX, REDIS_PREFIX, SERVER_PREFIX, WEBHOOKS_PREFIX};
use super::{Log, Server, Settings, Webhooks};

/// Values shorter than this have their source in one column.
const COLUMN: usize = 44;

impl Settings {
    /// The settings in effect as a configuration file: TOML, the remarks on them first, the source of each value beside
    /// it, secrets masked.
    #[must_use]
    pub fn show(&self) -> impl fmt::Display {
        let mut text =
            String::from("# The settings in effect, and where each was set. Secrets are masked.\n");
        for advice in &self.advice {
            let _ = writeln!(text, "# remark: {advice}");
        }
        for (title, lines) in &self.shown {
            text.push_str(&section(title, lines));
        }
        text
    }
}

fn section(title: &str, lines: &[Line]) -> String {
    let mut text = format!("\n{title}\n");
    let mut group = "";
    for Line { key, value, source, note } in lines {
        let (in_group, key) = key.rsplit_once('.').unwrap_or(("", key));
        if in_group != group {
            group = in_group;
            let _ = write!(text, "\n[{}.{group}]\n", title.trim_matches(['[', ']']));
        }
        let note = note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
        let setting = format!("{key} = {value}");
        let _ = writeln!(text, "{setting:<COLUMN$} # {source}{note}");
    }
    text
}

/// All settings as Markdown, for `docs/reference/configuration.md`.
#[must_use]
pub fn reference() -> String {
    let mut text = String::new();
    heading(&mut text, "[server]");
    rows(&mut text, SERVER, SERVER_PREFIX, &mut Server::default());
    heading(&mut text, "[log]");
    rows(&mut text, LOG, LOG_PREFIX, &mut Log::default());
    heading(&mut text, "[redis]");
    rows(&mut text, REDIS, REDIS_PREFIX, &mut Redis::default());
    heading(&mut text, "[webhooks]");
    rows(&mut text, WEBHOOKS, WEBHOOKS_PREFIX, &mut Webhooks::default());
    heading(&mut text, "[[apps]]");
    for row in CREDENTIALS {
        let variable = row.variable.map(|name| format!("`{APP_PREFIX}{name}`")).unwrap_or_default();
        let _ = writeln!(text, "| `{}` | {variable} | | {} | {} |", row.key, row.may_be, row.doc);
    }
    rows(&mut text, APP, APP_PREFIX, &mut Draft::defaults());
    text
}

fn heading(text: &mut String, title: &str) {
    if !text.is_empty() {
        text.push('\n');
    }
    let _ = writeln!(text, "### `{title}`\n");
    text.push_str("| Setting | Variable | Default | May be | Meaning |\n|---|---|---|---|---|\n");
}

fn rows<T>(text: &mut String, settings: &[Setting<T>], prefix: &str, defaults: &mut T) {
    for row in settings {
        let own = row.variable(prefix);
        let foreign: Vec<_> = foreign::twins(&own).collect();
        let default = row.default.map_or_else(|| format!("`{}`", row.show(defaults)), str::to_owned);
        let flag = row.flag.map(|flag| format!(" Flag: `{flag}`.")).unwrap_or_default();
        let also = |words: &str, names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
            if names.is_empty() { String::new() } else { format!(" {words}: {}.", names.join(", ")) }
        };
        let aliases = also("Also read", &foreign) + &also("Also read, below the file", row.fallbacks);
        let _ = writeln!(
            text,
            "| `{}` | `{own}` | {default} | {} | {}{flag}{aliases} |",
            row.key,
            row.may_be(),
            row.doc,
        );
    }
}
