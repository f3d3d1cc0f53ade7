//! Properties that hold for every input: one module for each fuzz target, with a function `holds` that panics if the
//! property is violated.
//!
//! The properties compare pusherd with a simpler implementation: a naive model, another library, or another code path of
//! pusherd. `fuzz_targets` runs them under libFuzzer; `tests/properties.rs` of the server includes this file and runs them
//! on the committed corpus with every `cargo test`.

#![allow(clippy::unwrap_used, reason = "a panic is the answer")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a model names what it expects; all else is wrong")]

pub mod batch;
pub mod client_message;
pub mod config_file;
pub mod deflate;
pub mod dotenv;
pub mod environment;
pub mod extensions;
pub mod http_query;
pub mod http_signature;
pub mod json;
pub mod naive;
pub mod names;
pub mod state_machine;
pub mod trigger;
pub mod user_data;
pub mod websocket;

/// A property: takes any bytes, and panics if it does not hold for them.
pub type Property = fn(&[u8]);

/// All properties, by the names of their fuzz targets.
pub const ALL: [(&str, Property); 15] = [
    ("batch", batch::holds),
    ("client_message", client_message::holds),
    ("config_file", config_file::holds),
    ("deflate", deflate::holds),
    ("dotenv", dotenv::holds),
    ("environment", environment::holds),
    ("extensions", extensions::holds),
    ("http_query", http_query::holds),
    ("http_signature", http_signature::holds),
    ("json", json::holds),
    ("names", names::holds),
    ("state_machine", state_machine::holds),
    ("trigger", trigger::holds),
    ("user_data", user_data::holds),
    ("websocket", websocket::holds),
];
