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
use std::iter;
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
        let (name, address): (_, fn(&str) -> Option<IpAddr>) = match self.options.header {
            ForwardedHeader::XForwardedFor => ("x-forwarded-for", node),
            ForwardedHeader::Forwarded => ("forwarded", forwarded_for),
        };
        let mut client = peer.to_canonical();
        // From the last proxy backwards, as long as each is believed. What is no address was nobody's word.
        for line in headers.get_all(name).iter().rev() {
            for element in parts_from_the_end(&String::from_utf8_lossy(line.as_bytes()), ',') {
                if !self.trusts(client) {
                    return client;
                }
                let Some(before) = address(element) else { return client };
                client = before;
            }
        }
        client
    }

    /// Whether the client at the other end of a connection from `peer` that sent `headers` came by TLS, as a trusted proxy
    /// says: the right-most one, because what stands before it was written by others. Proxies write
    /// `X-Forwarded-Proto` or `Forwarded`; of both, the one that also names the client is believed.
    #[must_use]
    pub fn came_by_tls(&self, peer: IpAddr, headers: &HeaderMap) -> bool {
        if !self.trusts(peer) {
            return false;
        }
        let protocol = |header| {
            let (name, protocol): (_, fn(&str) -> Option<&str>) = match header {
                ForwardedHeader::XForwardedFor => ("x-forwarded-proto", |element| Some(element.trim())),
                ForwardedHeader::Forwarded => ("forwarded", |element| forwarded(element, "proto")),
            };
            let line = headers.get_all(name).iter().next_back()?.to_str().ok()?;
            let protocol = protocol(parts_from_the_end(line, ',').next()?)?;
            Some(["https", "wss"].iter().any(|tls| protocol.eq_ignore_ascii_case(tls)))
        };
        let other = match self.options.header {
            ForwardedHeader::XForwardedFor => ForwardedHeader::Forwarded,
            ForwardedHeader::Forwarded => ForwardedHeader::XForwardedFor,
        };
        protocol(self.options.header).or_else(|| protocol(other)).unwrap_or(false)
    }

    /// The value of one of its limits; `None`: it has none.
    #[must_use]
    pub fn value_of(&self, limit: Limit) -> Option<u64> {
        let Options { connections_max, new_per_second, .. } = self.options;
        let connections = connections_max.filter(|_| limit == Limit::AddressConnections);
        connections.or(new_per_second.filter(|_| limit == Limit::AddressRate)).map(u64::from)
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

/// The parts of `text` between the separators that stand in no quoted string, the last one first.
///
/// Read from the end, because that is what the nearest proxy wrote: whatever a stranger wrote before it, with quotes
/// that do not end, changes nothing of it.
fn parts_from_the_end(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    iter::from_fn(move || {
        let text = rest?;
        let mut quoted = false;
        let separates = |&(at, char): &(usize, char)| {
            if char == '"' && !(quoted && is_escaped(text, at)) {
                quoted = !quoted;
            }
            char == separator && !quoted
        };
        let Some((at, _)) = text.char_indices().rev().find(separates) else { return rest.take() };
        rest = Some(&text[..at]);
        Some(&text[at + separator.len_utf8()..])
    })
}

/// The address in an element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    node(forwarded(element, "for")?)
}

/// The value of a parameter in an element of `Forwarded`. `None` if it is not there, or if the element could be read in
/// two ways: with two of it, or with quotes that do not match.
fn forwarded<'e>(element: &'e str, parameter: &str) -> Option<&'e str> {
    let mut found = None;
    for pair in parts_from_the_end(element, ';').filter(|pair| !pair.trim().is_empty()) {
        let (name, value) = pair.split_once('=')?;
        let value = unquoted(value.trim())?;
        let is_name = !name.contains('"');
        let is_second = name.trim().eq_ignore_ascii_case(parameter) && found.replace(value).is_some();
        if !is_name || is_second {
            return None;
        }
    }
    found
}

/// What is in a quoted string, its escapes included; what is not quoted, if there is no quote in it.
fn unquoted(value: &str) -> Option<&str> {
    let Some(quoted) = value.strip_prefix('"') else { return (!value.contains('"')).then_some(value) };
    let (end, _) = quoted.match_indices('"').find(|(at, _)| !is_escaped(quoted, *at))?;
    (end + 1 == quoted.len()).then(|| &quoted[..end])
}

/// Whether the character of a quoted string at `at` has a backslash before it that is not escaped itself.
fn is_escaped(text: &str, at: usize) -> bool {
    text[..at].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
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
    use axum::http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

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
            // Separators in quotes are none, and a quote that is escaped ends nothing.
            ("host=\"a;for=203.0.113.9\";for=198.51.100.1", "198.51.100.1"),
            ("host=\"a, for=203.0.113.9\";for=198.51.100.1", "198.51.100.1"),
            ("for=198.51.100.1;host=\"a\\\", for=203.0.113.9\"", "198.51.100.1"),
            ("for=198.51.100.1;host=\"a\\\\\";", "198.51.100.1"),
            // What a stranger wrote before it takes nothing from the nearest proxy's word.
            ("for=\"203.0.113.9, for=198.51.100.1", "198.51.100.1"),
            ("for=\"203.0.113.9, for=\"[2400::7]:80\"", "2400::7"),
            // What could be read in two ways is not believed.
            ("for=203.0.113.9;for=198.51.100.1", "127.0.0.1"),
            ("host=\"a\";for=203.0.113.9;x=\"\";for=198.51.100.1", "127.0.0.1"),
            ("host=\"a;for=198.51.100.1", "127.0.0.1"),
            ("\"host=a;for=198.51.100.1", "127.0.0.1"),
            ("for=198.51.100.1;host=a\"", "127.0.0.1"),
            ("for=\"\"198.51.100.1\"\"", "127.0.0.1"),
            ("for=198.51.100.1;secret", "127.0.0.1"),
        ] {
            let headers = headers(&[("forwarded", value), ("x-forwarded-for", "192.0.2.99")]);
            assert_eq!(addresses.client(ip("127.0.0.1"), &headers), ip(client), "{value}");
        }
    }

    #[test]
    fn tls_is_believed_of_the_right_most_proxy_only() {
        let both = [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded];
        for (lines, by_tls) in [
            (&[][..], [false, false]),
            (&[("x-forwarded-proto", "https")], [true, true]),
            (&[("x-forwarded-proto", "WSS")], [true, true]),
            (&[("x-forwarded-proto", "http")], [false, false]),
            (&[("x-forwarded-proto", "https, http")], [false, false]),
            (&[("x-forwarded-proto", "http,https")], [true, true]),
            (&[("x-forwarded-proto", "https"), ("x-forwarded-proto", "http")], [false, false]),
            (&[("forwarded", "for=192.0.2.1;proto=https")], [true, true]),
            (&[("forwarded", "for=192.0.2.1;Proto=\"https\"")], [true, true]),
            (&[("forwarded", "proto=https, for=192.0.2.1;proto=http")], [false, false]),
            (&[("forwarded", "proto=https;proto=http")], [false, false]),
            // One of them may be what a client made up: the other is the proxy's.
            (&[("x-forwarded-proto", "https"), ("forwarded", "proto=http")], [true, false]),
            (&[("x-forwarded-proto", "http"), ("forwarded", "proto=https")], [false, true]),
            (&[("x-forwarded-proto", "https"), ("forwarded", "for=192.0.2.1")], [true, true]),
        ] {
            for (header, by_tls) in both.into_iter().zip(by_tls) {
                let addresses = addresses(|options| options.header = header);
                let headers = headers(lines);
                assert_eq!(addresses.came_by_tls(ip("127.0.0.1"), &headers), by_tls, "{header:?} {lines:?}");
                assert!(!addresses.came_by_tls(ip("192.0.2.1"), &headers), "no proxy of ours");
            }
        }
    }

    #[test]
    fn what_is_no_text_hides_no_address_behind_it() {
        for (header, value) in [
            (ForwardedHeader::XForwardedFor, &b"\xff\xe9, 198.51.100.1"[..]),
            (ForwardedHeader::Forwarded, b"for=\xff, for=198.51.100.1"),
        ] {
            let addresses = addresses(|options| options.header = header);
            let mut headers = HeaderMap::new();
            let name = ["x-forwarded-for", "forwarded"][header as usize];
            headers.insert(name, HeaderValue::from_bytes(value).unwrap());
            assert_eq!(addresses.client(ip("127.0.0.1"), &headers), ip("198.51.100.1"), "{header:?}");
        }
    }

    proptest! {
        /// Whatever comes before it, in as many lines and quotes as a stranger likes; and whatever its own element
        /// quotes.
        #[test]
        fn the_word_of_the_nearest_proxy_is_believed_whatever_a_stranger_wrote(
            lines in proptest::collection::vec("[\\PC\t]{0,40}|[\",;=\\\\ for:.0-9]{0,40}", 1..4),
            host in "\\PC{0,40}|[\",;=\\\\ for:.0-9]{0,40}",
        ) {
            let client = ip("198.51.100.7");
            let host = host.replace('\\', "\\\\").replace('"', "\\\"");
            let mut lines = lines;
            let last = lines.pop().unwrap_or_default();
            for (header, name, word) in [
                (ForwardedHeader::XForwardedFor, "x-forwarded-for", client.to_string()),
                (ForwardedHeader::Forwarded, "forwarded", format!("host=\"{host}\";for={client}")),
                (ForwardedHeader::Forwarded, "forwarded", format!("for=\"{client}:80\"; host=\"{host}\"")),
            ] {
                let addresses = addresses(|options| options.header = header);
                let values = lines.iter().cloned().chain([format!("{last}, {word}")]);
                let values: Result<Vec<_>, _> = values.map(HeaderValue::try_from).collect();
                // What is no header never comes here.
                let Ok(values) = values else { continue };
                let headers = values.into_iter().map(|value| (HeaderName::from_static(name), value));
                prop_assert_eq!(addresses.client(ip("127.0.0.1"), &headers.collect()), client);
            }
        }

        #[test]
        fn no_header_is_too_strange_to_be_read(lines in proptest::collection::vec(any::<Vec<u8>>(), 0..4)) {
            for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
                let addresses = addresses(|options| options.header = header);
                let values = lines.iter().filter_map(|line| HeaderValue::from_bytes(line).ok());
                let names = ["x-forwarded-for", "forwarded"].map(HeaderName::from_static);
                let headers: HeaderMap =
                    values.flat_map(|value| names.clone().map(|name| (name, value.clone()))).collect();
                prop_assert_eq!(addresses.client(ip("192.0.2.1"), &headers), ip("192.0.2.1"));
                let _ = addresses.client(ip("127.0.0.1"), &headers);
            }
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
