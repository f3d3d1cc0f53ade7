//! Who comes from where: the address of a client, and how many connections an address may have.
//!
//! The address is that of the connection, or what a trusted proxy says: the right-most one in its header that is
//! not a trusted proxy's itself, since whatever stands to the left of it was written by a stranger. IPv6 addresses
//! are counted by their /64, the smallest network that somebody is given.
//!
//! An address has an entry while it has a connection, and afterwards while its rate is remembered: at most
//! [`REMEMBERED_MAX`] of those, so that an attacker with many addresses does not grow the table. When there are
//! more, those that have rested long enough are forgotten, and if that is not enough, all of them: an attacker with
//! so many addresses is not held by a limit per address anyway. Knows nothing of HTTP routes or WebSockets.
//!
//! Start at [`Addresses::client`].

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use ipnet::IpNet;
use parking_lot::Mutex;

use crate::limits::{Limit, Rate, TokenBucket};

/// Addresses without a connection that are remembered for their rate: 4 MB.
const REMEMBERED_MAX: usize = 65_536;

/// A rested address may open so many seconds' worth of connections at once: an office whose network comes back.
const BURST_SECS: u32 = 10;

/// Where clients' addresses are found, and how many connections each may have.
#[derive(Clone, Debug)]
pub struct Options {
    /// Proxies that are believed when they say who the client is and whether it came by TLS. Default: this machine.
    pub trusted_proxies: Vec<IpNet>,
    /// The header by which they say who it is.
    pub header: ForwardedHeader,
    /// Addresses that the limits below do not hold for, beside those of the trusted proxies.
    pub unlimited: Vec<IpNet>,
    /// Connections from one address at once, WebSockets and strangers each; `None`: no limit.
    pub connections_max: Option<u32>,
    /// New connections from one address a second, and ten times as many at once; `None`: no limit.
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

/// The header in which proxies name the client. Only one is read: a proxy that writes one of them passes the other
/// on as the client made it up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For: 192.0.2.1, 10.0.0.1`, which nearly all proxies write.
    #[default]
    XForwardedFor,
    /// `Forwarded: for=192.0.2.1;proto=https`. Source: RFC 7239.
    Forwarded,
}

/// What is counted as one address.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Address {
    /// An IPv4 address.
    V4([u8; 4]),
    /// The network part of an IPv6 address.
    V6([u8; 8]),
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// How many connections each address has.
#[derive(Debug)]
pub struct Addresses {
    options: Options,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Address, Entry>,
    /// Entries without a connection.
    resting: usize,
}

#[derive(Debug, Default)]
struct Entry {
    strangers: u32,
    websockets: u32,
    arrivals: TokenBucket,
}

impl Entry {
    const fn rests(&self) -> bool {
        self.strangers == 0 && self.websockets == 0
    }

    const fn count(&mut self, kind: Kind) -> &mut u32 {
        match kind {
            Kind::Stranger => &mut self.strangers,
            Kind::WebSocket => &mut self.websockets,
        }
    }
}

/// What a connection is, as far as counting goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Neither a WebSocket nor one whose requests are signed.
    Stranger,
    /// A WebSocket.
    WebSocket,
}

/// A place among the connections of an address; dropping it gives the place back.
#[derive(Debug)]
pub struct AddressPlace {
    addresses: Arc<Addresses>,
    address: Address,
    kind: Kind,
}

impl Addresses {
    /// Nobody yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options, table: Mutex::default() }
    }

    /// Whether `address` is a proxy that is believed.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.options.trusted_proxies.iter().any(|proxy| proxy.contains(&address))
    }

    /// Who is at the other end of a connection from `peer` that sent `headers`.
    #[must_use]
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let mut named = match self.options.header {
            ForwardedHeader::XForwardedFor => x_forwarded_for(headers),
            ForwardedHeader::Forwarded => forwarded(headers),
        };
        // From the last proxy backwards, as long as each is believed. What is no address was nobody's word.
        while self.trusts(client)
            && let Some(Some(before)) = named.pop()
        {
            client = before;
        }
        client
    }

    /// Takes a place for a connection from `client`, and counts it as new if `is_new`. `None`: whoever comes from
    /// there is not counted.
    ///
    /// # Errors
    /// [`Limit::AddressConnections`] or [`Limit::AddressRate`].
    pub fn enter(
        self: &Arc<Self>,
        client: IpAddr,
        kind: Kind,
        is_new: bool,
        now: Duration,
    ) -> Result<Option<AddressPlace>, Limit> {
        let Options { connections_max, unlimited, .. } = &self.options;
        let rate = self.rate();
        let is_limited = connections_max.is_some() || rate.is_some();
        let client = client.to_canonical();
        if !is_limited || self.trusts(client) || unlimited.iter().any(|network| network.contains(&client)) {
            return Ok(None);
        }
        let address = Address::from(client);
        let mut table = self.table.lock();
        let table = &mut *table;
        if let Some(rate) = rate {
            table.forget(rate, now);
        }
        let entry = match table.entries.entry(address) {
            Place::Occupied(there) => there.into_mut(),
            Place::Vacant(vacant) => {
                table.resting += 1;
                vacant.insert(Entry::default())
            }
        };
        // The first connection of an address is never refused, so no entry is made for nothing.
        if connections_max.is_some_and(|max| *entry.count(kind) >= max) {
            return Err(Limit::AddressConnections);
        }
        if is_new && rate.is_some_and(|rate| !entry.arrivals.take(rate, now)) {
            return Err(Limit::AddressRate);
        }
        if entry.rests() {
            table.resting -= 1;
        }
        *entry.count(kind) += 1;
        Ok(Some(AddressPlace { addresses: Arc::clone(self), address, kind }))
    }

    fn rate(&self) -> Option<Rate> {
        let per_second = self.options.new_per_second?;
        Some(Rate { per_second, burst: per_second.saturating_mul(BURST_SECS) })
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let mut table = self.addresses.table.lock();
        let Some(entry) = table.entries.get_mut(&self.address) else { return };
        *entry.count(self.kind) -= 1;
        if !entry.rests() {
            return;
        }
        if self.addresses.options.new_per_second.is_some() {
            table.resting += 1;
        } else {
            table.entries.remove(&self.address);
        }
    }
}

impl Table {
    /// Forgets addresses without connections, when there are too many.
    fn forget(&mut self, rate: Rate, now: Duration) {
        if self.resting <= REMEMBERED_MAX {
            return;
        }
        self.entries.retain(|_, entry| !entry.rests() || !entry.arrivals.is_full(rate, now));
        self.resting = self.entries.values().filter(|entry| entry.rests()).count();
        // Little was gained, and looking again at each new address would cost more than the rest is worth.
        if self.resting > REMEMBERED_MAX / 2 {
            self.entries.retain(|_, entry| !entry.rests());
            self.resting = 0;
        }
        self.entries.shrink_to(REMEMBERED_MAX);
    }
}

/// The values of a header, in the order of the lines.
fn texts<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h str> {
    // A line that is no text has no address in it, but a place.
    headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default())
}

/// The addresses that `X-Forwarded-For` names; `None` for what is no address.
fn x_forwarded_for(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    texts(headers, "x-forwarded-for").flat_map(|line| line.split(',')).map(node).collect()
}

/// The addresses that `Forwarded` names; `None` for what is no address.
fn forwarded(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let of_element = |element: &str| {
        let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
        node(value.trim().trim_matches('"'))
    };
    texts(headers, "forwarded").flat_map(|line| line.split(',')).map(of_element).collect()
}

/// An address as proxies write it: bare, in brackets, or with a port.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn addresses(change: impl FnOnce(&mut Options)) -> Arc<Addresses> {
        let mut options = Options::default();
        change(&mut options);
        Arc::new(Addresses::new(options))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_client_is_the_right_most_address_that_no_trusted_proxy_has() {
        let addresses = addresses(|options| {
            options.trusted_proxies.push("10.0.0.0/8".parse().unwrap());
            options.trusted_proxies.push("2001:db8::/32".parse().unwrap());
        });
        for (peer, lines, client) in [
            ("192.0.2.1", &[][..], "192.0.2.1"),
            ("192.0.2.1", &["198.51.100.1"], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("::ffff:10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.9, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
            ("10.0.0.1", &["203.0.113.9", "198.51.100.1", "10.0.0.2"], "198.51.100.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["198.51.100.1, nobody"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, "], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1:4711"], "198.51.100.1"),
            ("2001:db8::1", &["[2400::7]:4711"], "2400::7"),
            ("2001:db8::1", &["[2400::7]"], "2400::7"),
            ("2001:db8::1", &["2400::7"], "2400::7"),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            assert_eq!(addresses.client(ip(peer), &headers(&lines)), ip(client), "{peer} {lines:?}");
        }
    }

    #[test]
    fn forwarded_is_read_where_it_is_named_and_the_other_header_is_not() {
        let addresses = addresses(|options| options.header = ForwardedHeader::Forwarded);
        for (value, client) in [
            ("for=198.51.100.1", "198.51.100.1"),
            ("For=\"198.51.100.1:4711\";proto=https;by=203.0.113.43", "198.51.100.1"),
            ("for=203.0.113.9, proto=https; for=\"[2400::7]:80\"", "2400::7"),
            ("for=203.0.113.9, for=198.51.100.1, for=127.0.0.1", "198.51.100.1"),
            ("for=unknown", "127.0.0.1"),
            ("for=_hidden", "127.0.0.1"),
            ("by=203.0.113.43", "127.0.0.1"),
        ] {
            let headers = headers(&[("forwarded", value), ("x-forwarded-for", "192.0.2.99")]);
            assert_eq!(addresses.client(ip("127.0.0.1"), &headers), ip(client), "{value}");
        }
    }

    #[test]
    fn an_address_has_so_many_connections_and_gets_places_back() {
        let addresses = addresses(|options| options.connections_max = Some(2));
        let enter = |address: &str| addresses.enter(ip(address), Kind::WebSocket, true, NOW);
        let places = [enter("192.0.2.1").unwrap(), enter("::ffff:192.0.2.1").unwrap()];
        assert_eq!(enter("192.0.2.1").unwrap_err(), Limit::AddressConnections);
        assert!(addresses.enter(ip("192.0.2.1"), Kind::Stranger, true, NOW).is_ok(), "counted apart");
        assert!(enter("192.0.2.2").is_ok(), "another address");
        drop(places);
        assert!(enter("192.0.2.1").is_ok());
        assert_eq!(addresses.table.lock().entries.len(), 0, "nobody is left");
    }

    #[test]
    fn ipv6_is_counted_by_the_network() {
        let addresses = addresses(|options| options.connections_max = Some(1));
        let place = addresses.enter(ip("2400:1:2:3::1"), Kind::WebSocket, true, NOW).unwrap();
        assert!(addresses.enter(ip("2400:1:2:3:ffff::9"), Kind::WebSocket, true, NOW).is_err());
        assert!(addresses.enter(ip("2400:1:2:4::1"), Kind::WebSocket, true, NOW).is_ok());
        drop(place);
        assert!(addresses.enter(ip("2400:1:2:3:ffff::9"), Kind::WebSocket, true, NOW).is_ok());
    }

    #[test]
    fn new_connections_come_at_a_rate_which_is_remembered() {
        let addresses = addresses(|options| options.new_per_second = Some(2));
        let enter = |secs| addresses.enter(ip("192.0.2.1"), Kind::Stranger, true, Duration::from_secs(secs));
        assert_eq!((0..30).filter(|_| enter(0).is_ok()).count(), 20);
        assert_eq!(enter(0).unwrap_err(), Limit::AddressRate);
        assert_eq!((0..30).filter(|_| enter(1).is_ok()).count(), 2);
        assert!(addresses.enter(ip("192.0.2.1"), Kind::WebSocket, false, Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn proxies_and_addresses_without_limits_are_not_counted() {
        let addresses = addresses(|options| {
            options.connections_max = Some(1);
            options.unlimited.push("192.0.2.0/24".parse().unwrap());
        });
        for address in ["127.0.0.1", "192.0.2.7", "::ffff:192.0.2.7"] {
            assert!(addresses.enter(ip(address), Kind::WebSocket, true, NOW).unwrap().is_none(), "{address}");
        }
        assert!(addresses.enter(ip("192.0.3.7"), Kind::WebSocket, true, NOW).unwrap().is_some());
    }

    #[test]
    fn the_table_does_not_grow_with_the_addresses_of_an_attacker() {
        let addresses = addresses(|options| options.new_per_second = Some(1));
        let stays = addresses.enter(ip("192.0.2.1"), Kind::WebSocket, true, NOW).unwrap();
        for number in 0..200_000u32 {
            let address = Ipv4Addr::from_bits(0x0a00_0000 + number);
            assert!(addresses.enter(address.into(), Kind::Stranger, true, NOW).is_ok());
        }
        let table = addresses.table.lock();
        assert!(table.entries.len() <= REMEMBERED_MAX + 2, "{}", table.entries.len());
        assert_eq!(table.resting, table.entries.len() - 1);
        assert!(table.entries.contains_key(&Address::from(ip("192.0.2.1"))), "who is there is not forgotten");
        drop(table);
        drop(stays);
    }
}
