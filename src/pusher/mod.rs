//! Front door for Pusher's clients: the WebSocket upgrade and the task of a connection.

use std::time::Duration;

use ipnet::IpNet;

/// How this door serves, whatever the app.
#[derive(Clone, Debug)]
pub struct Options {
    /// After so much silence clients ping; told to them at the start. 5 to 600 s, default 30 s.
    pub activity_timeout: Duration,
    /// After so much silence a client is pinged. Default 50 s, under the 60 s at which proxies hang up.
    pub ping_interval: Duration,
    /// A pinged client that stays silent so long is closed (4201). Default 30 s.
    pub pong_timeout: Duration,
    /// Connections this node takes; `None`: as many as the system lets it. Above it: 4100.
    pub connections_max: Option<u32>,
    /// Proxies whose `X-Forwarded-Proto` is believed. Default: this machine.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            activity_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(50),
            pong_timeout: Duration::from_secs(30),
            connections_max: None,
            trusted_proxies: vec![
                IpNet::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0).into(), 8),
                IpNet::new_assert(std::net::Ipv6Addr::LOCALHOST.into(), 128),
            ],
        }
    }
}
