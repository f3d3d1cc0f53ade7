//! The page of logs has the line of every kind of refusal.

use std::fmt::Write as _;

use pusherd::limits::Limit;
use pusherd::rejections::{Mistake, Rejection};

use super::pages::read;

/// What is logged once a minute, at which level, and what changes it.
fn table() -> String {
    let mut table = String::from("| line | level | what changes it |\n|---|---|---|\n");
    let mut row = |kind: Rejection, level: &str, change: &str| {
        let _ = writeln!(table, "| `{}` | `{level}` | {change} |", kind.description());
    };
    for mistake in Mistake::ALL {
        row(mistake.into(), "info", mistake.remedy().unwrap_or("`reason` says what is wrong"));
    }
    for limit in Limit::ALL {
        let level = if limit.is_shared() { "warn" } else { "info" };
        row(limit.into(), level, &format!("`{}`", limit.setting()));
    }
    table
}

#[test]
fn the_page_of_logs_has_every_kind_of_refusal() {
    let page = "docs/operate/logs.md";
    assert!(read(page).contains(&table()), "put this into {page}:\n\n{}", table());
}

/// Lines of the log on the page of troubles that are no refusals.
const OTHERS: [&str; 3] = ["connection established", "subscribed", "event published"];

#[test]
fn the_lines_of_the_log_on_the_page_of_troubles_exist() {
    let page = read("docs/start/no-message-arrives.md");
    let kinds = Limit::ALL.map(Rejection::from).into_iter().chain(Mistake::ALL.map(Rejection::from));
    let lines: Vec<_> = kinds.map(Rejection::description).chain(OTHERS).collect();
    let mut is_of_the_log = false;
    let mut count = 0;
    for row in page.lines() {
        if !row.starts_with('|') {
            is_of_the_log = false;
            continue;
        }
        is_of_the_log |= row.starts_with("| the log has |");
        let first = row.trim_start_matches("| ").split(" | ").next().unwrap_or_default();
        // Fields of a line, `reason=…`, are not looked at.
        for code in
            first.split('`').skip(1).step_by(2).filter(|code| is_of_the_log && !code.starts_with("reason"))
        {
            let start = code.split('…').next().unwrap_or_default().trim_end();
            assert!(lines.iter().any(|line| line.starts_with(start)), "nothing logs `{code}`: {row}");
            count += 1;
        }
    }
    assert!(count > 30, "{count} lines");
}
