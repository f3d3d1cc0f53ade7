//! Configuration: files, variables and flags become checked [`Settings`].
//!
//! This module owns the table of all settings (`schema`), the sources of values and their order ([`load()`]), and the
//! reports of invalid values ([`Problems`]). It alone reads the environment. It fills the `Options` that other modules
//! define and does not know how they are used.
//!
//! The path of a value:
//!
//! - `file` (with `encoding`, `yaml` and `foreign_file` in front of the parser), `variables` (with `dotenv`) and the flags
//!   hold values as they were written.
//! - `credentials` chooses between the credentials of several servers; `foreign_variables` defines how variables of other
//!   servers are handled.
//! - `section` applies the sources from the lowest to the highest. The row of a setting (`setting`) checks each value, so
//!   that all problems are found in one run.
//! - `apps` assembles the apps, `redis` the location of Redis, `client_address` the address that clients connect to.
//! - `resolve` derives what depends on several settings and opens the files that settings name; `warnings` checks the
//!   result for settings that are valid but probably wrong.
//!
//! To add a setting, add a row to `schema`; to read a variable of another server, add a row to `foreign_variables`.

mod apps;
mod client_address;
mod credentials;
mod dotenv;
mod encoding;
mod file;
mod foreign_file;
mod foreign_variables;
mod load;
mod problems;
mod pusher_url;
mod redis;
mod resolve;
mod schema;
mod section;
mod setting;
mod settings;
mod show;
mod sources;
#[cfg(test)]
mod tests;
mod variables;
mod warnings;
mod webhooks;
mod yaml;

pub use client_address::ClientAddress;
pub use foreign_variables::foreign_reference;
pub use load::load;
pub use problems::{Problems, Source};
pub use settings::{CredentialsSource, Log, LogFormat, LogLevel, Server, Settings};
pub use show::reference;
pub use sources::Sources;
pub use warnings::Warning;
