//! pusherd.
pub mod apps;
pub mod http;
pub mod limits;
pub mod protocol;
pub mod pusher;
pub mod server;
