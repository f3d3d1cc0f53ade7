//! Shared parts of `pusherload` (load generator) and `limitd` (physical-limit
//! reference server). Linux only, loopback only.

pub mod cli;
pub mod compare;
pub mod http;
pub mod inflate;
pub mod load;
pub mod net;
pub mod procmeter;
pub mod report;
pub mod scen;
pub mod sign;
pub mod sys;
pub mod tls;
pub mod wire;
