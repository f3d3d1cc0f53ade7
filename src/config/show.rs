//! Settings as text: those in effect (`pusherd config show`) and all that exist (`pusherd config reference`).

use std::fmt::{self, Write as _};

use super::apps::Draft;
use super::foreign_variables;
use super::redis::Redis;
use super::schema::{APP, CREDENTIALS, LOG, REDIS, SERVER, WEBHOOKS};
use super::section::EffectiveSetting;
use super::setting::Setting;
use super::settings::{Log, Server, Settings, Webhooks};
use super::variables::{APP_PREFIX, LOG_PREFIX, REDIS_PREFIX, SERVER_PREFIX, WEBHOOKS_PREFIX};

/// The column of the sources, if the value is not longer.
const COLUMN: usize = 44;

impl Settings {
    /// The settings in effect as a TOML file: warnings first, the source beside each value, secrets masked.
    #[must_use]
    pub fn show(&self) -> impl fmt::Display {
        let mut text =
            String::from("# The settings in effect, and where each was set. Secrets are masked.\n");
        for warning in &self.warnings {
            let _ = writeln!(text, "# warning: {warning}");
        }
        for (title, settings) in &self.shown {
            text.push_str(&section(title, settings));
        }
        text
    }
}

fn section(title: &str, settings: &[EffectiveSetting]) -> String {
    let mut text = format!("\n{title}\n");
    let mut group = "";
    for EffectiveSetting { key, value, source, note } in settings {
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
        let _ = writeln!(text, "| `{}` | {variable} | | {} | {} |", row.key, row.allowed, row.doc);
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
        let foreign: Vec<_> = foreign_variables::aliases_of(&own).collect();
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
            row.allowed(),
            row.doc,
        );
    }
}
