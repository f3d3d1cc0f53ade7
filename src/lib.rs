//! pusherd.
pub mod apps;
pub mod cli;
pub mod config;
pub mod http;
pub mod hub;
pub mod limits;
pub mod outbox;
pub mod protocol;
pub mod pusher;
pub mod registry;
pub mod server;
pub mod session;
