//! The pages of the repository: what they link to, cite, show and configure is there and right.
#![allow(unreachable_pub, reason = "a test binary has no public interface")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a page has more on it than is asked for")]
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

#[path = "docs/blocks.rs"]
mod blocks;
#[path = "docs/changelog.rs"]
mod changelog;
#[path = "docs/citations.rs"]
mod citations;
#[path = "docs/clients.rs"]
mod clients;
#[path = "docs/links.rs"]
mod links;
#[path = "docs/log_lines.rs"]
mod log_lines;
#[path = "docs/pages.rs"]
mod pages;
#[path = "docs/refusals.rs"]
mod refusals;
#[path = "docs/scripts.rs"]
mod scripts;
#[path = "docs/settings.rs"]
mod settings;
#[path = "docs/shell.rs"]
mod shell;
#[path = "docs/workflows.rs"]
mod workflows;
