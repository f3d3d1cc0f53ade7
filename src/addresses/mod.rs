//! The address of a client behind proxies, and the limits of connections for each address.
//!
//! The address is that of the connection, or the one that a trusted proxy gives: the right-most one in its header that
//! is not a trusted proxy itself, because a client may have written everything to the left of it.
//!
//! Knows nothing of HTTP routes or WebSockets. Start at [`Addresses::client_address`]; the limits are in `permits`.

mod forwarded;
mod permits;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::HeaderMap;
use ipnet::IpNet;
use parking_lot::Mutex;

use crate::limits::Limit;
pub use permits::{Address, AddressPermit, ConnectionKind};

/// Which proxies are trusted, and how many connections each address may have.
#[derive(Clone, Debug)]
pub struct Options {
    /// Proxies that are trusted to give the client's address and whether it uses TLS. Default: this machine.
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which they give the address.
    pub header: ForwardedHeader,
    /// Addresses without the limits below, beside those of the trusted proxies.
    pub unlimited: Vec<IpNet>,
    /// Connections of one address at once, WebSockets and unauthenticated ones each; `None`: no limit.
    pub connections_max: Option<u32>,
    /// New connections of one address a second, and ten times as many at once; `None`: no limit.
    pub new_per_second: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            trusted_proxies: vec![
                IpNet::new_assert(Ipv4Addr::new(127, 0, 0, 0).into(), 8),
                IpNet::new_assert(Ipv6Addr::LOCALHOST.into(), 128),
            ],
            header: ForwardedHeader::default(),
            unlimited: Vec::new(),
            connections_max: None,
            new_per_second: None,
        }
    }
}

/// The header in which proxies name the client. Only one is read: a proxy that writes one of them forwards the other as
/// the client wrote it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For: 192.0.2.1, 10.0.0.1`, which nearly all proxies write.
    #[default]
    XForwardedFor,
    /// `Forwarded: for=192.0.2.1;proto=https`. Source: RFC 7239.
    Forwarded,
}

/// The addresses of clients, and the connections of each.
#[derive(Debug)]
pub struct Addresses {
    options: Options,
    table: Mutex<permits::Table>,
}

impl Addresses {
    /// Addresses without connections.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options, table: Mutex::default() }
    }

    /// Whether `address` is a trusted proxy.
    #[must_use]
    pub fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.options.trusted_proxies.iter().any(|proxy| proxy.contains(&address))
    }

    /// The address of the client behind a connection from `peer` that sent `headers`.
    #[must_use]
    pub fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let (name, address): (_, fn(&str) -> Option<IpAddr>) = match self.options.header {
            ForwardedHeader::XForwardedFor => ("x-forwarded-for", forwarded::parse_node),
            ForwardedHeader::Forwarded => ("forwarded", forwarded::parse_for),
        };
        let mut client = peer.to_canonical();
        // From the last proxy backwards, as long as each is trusted. An element without an address ends the chain.
        for line in headers.get_all(name).iter().rev() {
            for element in forwarded::rsplit_unquoted(&String::from_utf8_lossy(line.as_bytes()), ',') {
                if !self.is_trusted_proxy(client) {
                    return client;
                }
                let Some(before) = address(element) else { return client };
                client = before;
            }
        }
        client
    }

    /// Whether the client behind a connection from `peer` that sent `headers` uses TLS, as a trusted proxy says. The
    /// right-most element counts, because a client may have written those before it. Proxies write `X-Forwarded-Proto`
    /// or `Forwarded`; if both are present, the one that also names the client counts.
    #[must_use]
    pub fn client_uses_tls(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        if !self.is_trusted_proxy(peer) {
            return false;
        }
        let protocol = |header| {
            let (name, protocol): (_, fn(&str) -> Option<&str>) = match header {
                ForwardedHeader::XForwardedFor => ("x-forwarded-proto", |element| Some(element.trim())),
                ForwardedHeader::Forwarded => ("forwarded", |element| forwarded::parameter(element, "proto")),
            };
            let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
            let protocol = protocol(forwarded::rsplit_unquoted(line, ',').next()?)?;
            Some(["https", "wss"].iter().any(|tls| protocol.eq_ignore_ascii_case(tls)))
        };
        let other = match self.options.header {
            ForwardedHeader::XForwardedFor => ForwardedHeader::Forwarded,
            ForwardedHeader::Forwarded => ForwardedHeader::XForwardedFor,
        };
        protocol(self.options.header).or_else(|| protocol(other)).unwrap_or(false)
    }

    /// The value of one of the limits of addresses; `None`: not one of them, or not set.
    #[must_use]
    pub fn limit_value(&self, limit: Limit) -> Option<u64> {
        let Options { connections_max, new_per_second, .. } = self.options;
        let connections = connections_max.filter(|_| limit == Limit::AddressConnections);
        connections.or(new_per_second.filter(|_| limit == Limit::AddressRate)).map(u64::from)
    }
}
