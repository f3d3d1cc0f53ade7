use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::permits::IDLE_ENTRIES_MAX;
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
fn the_client_is_the_right_most_address_that_is_not_a_trusted_proxy() {
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
        assert_eq!(addresses.client_address(ip(peer), &headers(&lines)), ip(client), "{peer} {lines:?}");
    }
}

#[test]
fn only_the_configured_header_names_the_client() {
    let addresses = addresses(|options| options.header = ForwardedHeader::Forwarded);
    for (value, client) in [
        ("for=198.51.100.1", "198.51.100.1"),
        ("For=\"198.51.100.1:4711\";proto=https;by=203.0.113.43", "198.51.100.1"),
        ("for=203.0.113.9, proto=https; for=\"[2400::7]:80\"", "2400::7"),
        ("for=203.0.113.9, for=198.51.100.1, for=127.0.0.1", "198.51.100.1"),
        ("for=unknown", "127.0.0.1"),
        ("for=_hidden", "127.0.0.1"),
        ("by=203.0.113.43", "127.0.0.1"),
        // Separators within quotes do not count, and an escaped quote does not end a string.
        ("host=\"a;for=203.0.113.9\";for=198.51.100.1", "198.51.100.1"),
        ("host=\"a, for=203.0.113.9\";for=198.51.100.1", "198.51.100.1"),
        ("for=198.51.100.1;host=\"a\\\", for=203.0.113.9\"", "198.51.100.1"),
        ("for=198.51.100.1;host=\"a\\\\\";", "198.51.100.1"),
        // Text that a client wrote before the nearest proxy's element changes nothing.
        ("for=\"203.0.113.9, for=198.51.100.1", "198.51.100.1"),
        ("for=\"203.0.113.9, for=\"[2400::7]:80\"", "2400::7"),
        // An ambiguous element is ignored.
        ("for=203.0.113.9;for=198.51.100.1", "127.0.0.1"),
        ("host=\"a\";for=203.0.113.9;x=\"\";for=198.51.100.1", "127.0.0.1"),
        ("host=\"a;for=198.51.100.1", "127.0.0.1"),
        ("\"host=a;for=198.51.100.1", "127.0.0.1"),
        ("for=198.51.100.1;host=a\"", "127.0.0.1"),
        ("for=\"\"198.51.100.1\"\"", "127.0.0.1"),
        ("for=198.51.100.1;secret", "127.0.0.1"),
    ] {
        let headers = headers(&[("forwarded", value), ("x-forwarded-for", "192.0.2.99")]);
        assert_eq!(addresses.client_address(ip("127.0.0.1"), &headers), ip(client), "{value}");
    }
}

#[test]
fn only_the_right_most_proxy_says_whether_the_client_uses_tls() {
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
        // A client may have written one of them: the other is the proxy's.
        (&[("x-forwarded-proto", "https"), ("forwarded", "proto=http")], [true, false]),
        (&[("x-forwarded-proto", "http"), ("forwarded", "proto=https")], [false, true]),
        (&[("x-forwarded-proto", "https"), ("forwarded", "for=192.0.2.1")], [true, true]),
    ] {
        for (header, by_tls) in both.into_iter().zip(by_tls) {
            let addresses = addresses(|options| options.header = header);
            let headers = headers(lines);
            assert_eq!(addresses.client_uses_tls(ip("127.0.0.1"), &headers), by_tls, "{header:?} {lines:?}");
            assert!(!addresses.client_uses_tls(ip("192.0.2.1"), &headers), "not a trusted proxy");
        }
    }
}

#[test]
fn bytes_that_are_not_text_do_not_hide_the_address_after_them() {
    for (header, value) in [
        (ForwardedHeader::XForwardedFor, &b"\xff\xe9, 198.51.100.1"[..]),
        (ForwardedHeader::Forwarded, b"for=\xff, for=198.51.100.1"),
    ] {
        let addresses = addresses(|options| options.header = header);
        let mut headers = HeaderMap::new();
        let name = ["x-forwarded-for", "forwarded"][header as usize];
        headers.insert(name, HeaderValue::from_bytes(value).unwrap());
        assert_eq!(addresses.client_address(ip("127.0.0.1"), &headers), ip("198.51.100.1"), "{header:?}");
    }
}

proptest! {
    /// Any lines and quotes may come before the element of the nearest proxy, and it may contain quotes itself.
    #[test]
    fn the_element_of_the_nearest_proxy_wins_whatever_a_client_wrote_before_it(
        lines in proptest::collection::vec("[\\PC\t]{0,40}|[\",;=\\\\ for:.0-9]{0,40}", 1..4),
        host in "\\PC{0,40}|[\",;=\\\\ for:.0-9]{0,40}",
    ) {
        let client = ip("198.51.100.7");
        let host = host.replace('\\', "\\\\").replace('"', "\\\"");
        let mut lines = lines;
        let last = lines.pop().unwrap_or_default();
        for (header, name, element) in [
            (ForwardedHeader::XForwardedFor, "x-forwarded-for", client.to_string()),
            (ForwardedHeader::Forwarded, "forwarded", format!("host=\"{host}\";for={client}")),
            (ForwardedHeader::Forwarded, "forwarded", format!("for=\"{client}:80\"; host=\"{host}\"")),
        ] {
            let addresses = addresses(|options| options.header = header);
            let values = lines.iter().cloned().chain([format!("{last}, {element}")]);
            let values: Result<Vec<_>, _> = values.map(HeaderValue::try_from).collect();
            // Invalid headers never come here.
            let Ok(values) = values else { continue };
            let headers = values.into_iter().map(|value| (HeaderName::from_static(name), value));
            prop_assert_eq!(addresses.client_address(ip("127.0.0.1"), &headers.collect()), client);
        }
    }

    #[test]
    fn no_header_makes_the_parser_panic(lines in proptest::collection::vec(any::<Vec<u8>>(), 0..4)) {
        for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
            let addresses = addresses(|options| options.header = header);
            let values = lines.iter().filter_map(|line| HeaderValue::from_bytes(line).ok());
            let names = ["x-forwarded-for", "forwarded"].map(HeaderName::from_static);
            let headers: HeaderMap =
                values.flat_map(|value| names.clone().map(|name| (name, value.clone()))).collect();
            prop_assert_eq!(addresses.client_address(ip("192.0.2.1"), &headers), ip("192.0.2.1"));
            let _ = addresses.client_address(ip("127.0.0.1"), &headers);
        }
    }
}

#[test]
fn connections_of_an_address_are_limited_and_permits_released() {
    let addresses = addresses(|options| options.connections_max = Some(2));
    let acquire = |address: &str| addresses.try_acquire(ip(address), ConnectionKind::WebSocket, true, NOW);
    let permits = [acquire("192.0.2.1").unwrap(), acquire("::ffff:192.0.2.1").unwrap()];
    assert_eq!(acquire("192.0.2.1").unwrap_err(), Limit::AddressConnections);
    assert!(
        addresses.try_acquire(ip("192.0.2.1"), ConnectionKind::Unauthenticated, true, NOW).is_ok(),
        "counted apart"
    );
    assert!(acquire("192.0.2.2").is_ok(), "another address");
    drop(permits);
    assert!(acquire("192.0.2.1").is_ok());
    assert_eq!(addresses.table.lock().entries.len(), 0, "no entry is left");
}

#[test]
fn ipv6_addresses_are_counted_by_network() {
    let addresses = addresses(|options| options.connections_max = Some(1));
    let permit = addresses.try_acquire(ip("2400:1:2:3::1"), ConnectionKind::WebSocket, true, NOW).unwrap();
    assert!(addresses.try_acquire(ip("2400:1:2:3:ffff::9"), ConnectionKind::WebSocket, true, NOW).is_err());
    assert!(addresses.try_acquire(ip("2400:1:2:4::1"), ConnectionKind::WebSocket, true, NOW).is_ok());
    drop(permit);
    assert!(addresses.try_acquire(ip("2400:1:2:3:ffff::9"), ConnectionKind::WebSocket, true, NOW).is_ok());
}

#[test]
fn new_connections_of_an_address_are_rate_limited() {
    let addresses = addresses(|options| options.new_per_second = Some(2));
    let acquire = |secs| {
        addresses.try_acquire(
            ip("192.0.2.1"),
            ConnectionKind::Unauthenticated,
            true,
            Duration::from_secs(secs),
        )
    };
    assert_eq!((0..30).filter(|_| acquire(0).is_ok()).count(), 20);
    assert_eq!(acquire(0).unwrap_err(), Limit::AddressRate);
    assert_eq!((0..30).filter(|_| acquire(1).is_ok()).count(), 2);
    assert!(
        addresses
            .try_acquire(ip("192.0.2.1"), ConnectionKind::WebSocket, false, Duration::from_secs(1))
            .is_ok()
    );
}

#[test]
fn proxies_and_addresses_without_limits_are_not_counted() {
    let addresses = addresses(|options| {
        options.connections_max = Some(1);
        options.unlimited.push("192.0.2.0/24".parse().unwrap());
    });
    for address in ["127.0.0.1", "192.0.2.7", "::ffff:192.0.2.7"] {
        assert!(
            addresses.try_acquire(ip(address), ConnectionKind::WebSocket, true, NOW).unwrap().is_none(),
            "{address}"
        );
    }
    assert!(addresses.try_acquire(ip("192.0.3.7"), ConnectionKind::WebSocket, true, NOW).unwrap().is_some());
}

#[test]
fn idle_addresses_are_evicted_from_the_table() {
    let addresses = addresses(|options| options.new_per_second = Some(1));
    let stays = addresses.try_acquire(ip("192.0.2.1"), ConnectionKind::WebSocket, true, NOW).unwrap();
    for number in 0..200_000u32 {
        let address = Ipv4Addr::from_bits(0x0a00_0000 + number);
        assert!(addresses.try_acquire(address.into(), ConnectionKind::Unauthenticated, true, NOW).is_ok());
    }
    let table = addresses.table.lock();
    assert!(table.entries.len() <= IDLE_ENTRIES_MAX + 2, "{}", table.entries.len());
    assert_eq!(table.idle, table.entries.len() - 1);
    assert!(
        table.entries.contains_key(&Address::from(ip("192.0.2.1"))),
        "an address with a connection is kept"
    );
    drop(table);
    drop(stays);
}
