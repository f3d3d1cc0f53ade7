//! The conformance suite: what the protocol says, shown over real sockets against a server in this process.
//!
//! The tests are written from the wire specification, not from the code; `tests/CONFORMANCE.md` says which test
//! shows what. A test's name is the sentence of the rule that it shows.

#![allow(unreachable_pub, reason = "a test binary has no public interface")]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the answer")]

mod auth;
mod cache_channels;
mod changing_apps;
mod charges;
mod client_events;
mod cluster;
mod cluster_redis;
mod compression;
mod conformance;
mod counts;
mod exclusion;
mod faults;
mod fidelity;
mod handshake;
mod hardening;
mod harness;
mod http_api;
mod idempotency;
mod limits;
mod liveness;
mod messages;
mod observers;
mod open_files;
mod ordering;
mod presence;
mod pressure;
mod process;
mod redis;
mod rejections;
mod runtime_limits;
mod shutdown;
mod sign_in;
mod slow_reader;
mod tidy;
mod tls;
mod unauthenticated;
mod watchlist;
mod webhook_records;
mod webhooks;
mod webhooks_cli;
mod websocket;
mod websocket_matrix;
