use super::*;
use crate::protocol::NameRules;

#[test]
fn by_default_a_receiver_gets_all_of_pushers_types_and_none_of_pusherds_own() {
    let names: Vec<_> = EventTypes::PUSHER.iter().map(EventType::name).collect();
    assert_eq!(
        names,
        [
            "channel_occupied",
            "channel_vacated",
            "member_added",
            "member_removed",
            "client_event",
            "cache_miss",
            "subscription_count"
        ]
    );
    for event_type in EventType::ALL {
        assert_eq!(EventType::parse(event_type.name()), Some(event_type));
    }
    assert_eq!(EventType::parse("channel_created"), None);
}

#[test]
fn a_filter_checks_the_start_and_the_end_of_the_name() {
    let channel = |name: &str| ChannelName::parse(name, &NameRules::default()).unwrap();
    let filter = |starts_with: &str, ends_with: &str| ChannelFilter {
        starts_with: starts_with.into(),
        ends_with: ends_with.into(),
    };
    let table = [
        (filter("", ""), "news", true),
        (filter("presence-", ""), "presence-room", true),
        (filter("presence-", ""), "private-room", false),
        (filter("", "-room"), "private-room", true),
        (filter("", "-room"), "private-roomy", false),
        (filter("presence-", "-a"), "presence-room-a", true),
        (filter("presence-", "-a"), "presence-room-b", false),
        (filter("presence-", "-a"), "x-a", false),
    ];
    for (filter, name, expected) in table {
        assert_eq!(filter.passes(&channel(name)), expected, "{filter:?} {name}");
    }
}

#[test]
fn a_url_is_split_into_its_parts() {
    let url = |text| WebhookUrl::parse(text).unwrap();
    let table = [
        ("http://127.0.0.1/hooks", false, "127.0.0.1", 80, "127.0.0.1", "/hooks"),
        ("https://app.test", true, "app.test", 443, "app.test", "/"),
        ("https://app.test:8443/a?b=c", true, "app.test", 8443, "app.test:8443", "/a?b=c"),
        ("https://app.test?token=x?y", true, "app.test", 443, "app.test", "/?token=x?y"),
        ("http://[::1]:9000/", false, "::1", 9000, "[::1]:9000", "/"),
        ("http://[fe80::1]/x", false, "fe80::1", 80, "[fe80::1]", "/x"),
    ];
    for (text, https, host, port, authority, target) in table {
        let url = url(text);
        let parts = (url.is_https(), url.host(), url.port(), url.authority(), url.target());
        assert_eq!(parts, (https, host, port, authority, target), "{text}");
    }
}

#[test]
fn a_url_does_not_print_its_query() {
    let url = WebhookUrl::parse("https://app.test:8443/a?token=hunter2").unwrap();
    assert_eq!(format!("{url} {url:?}"), "https://app.test:8443/a https://app.test:8443/a");
    assert_eq!(WebhookUrl::parse("https://app.test?token=hunter2").unwrap().to_string(), "https://app.test/");
}

#[test]
fn a_url_that_cannot_receive_webhooks_is_rejected() {
    use WebhookUrlError::{Credentials, Fragment, Malformed};
    let table = [
        ("", Malformed),
        ("/hooks", Malformed),
        ("app.test/hooks", Malformed),
        ("ftp://app.test/hooks", Malformed),
        ("http://", Malformed),
        ("http:///hooks", Malformed),
        ("http://app.test:0/", Malformed),
        ("http://app.test:99999/", Malformed),
        ("http://app.test:x/", Malformed),
        ("http://app test/", Malformed),
        ("http://ümlaut.test/", Malformed),
        ("http://user:pass@app.test/", Credentials),
        ("http://app.test/#x", Fragment),
    ];
    for (text, expected) in table {
        assert_eq!(WebhookUrl::parse(text), Err(expected), "{text:?}");
    }
}

#[test]
fn reserved_headers_are_rejected_and_values_do_not_print() {
    use WebhookHeaderError::{Name, Own, Reserved, Value};
    for name in ["Content-Type", "X-Pusher-Key", "x-pusher-anything", "X-Pusherd-Event-Ids", "User-Agent"] {
        assert_eq!(webhook_header(name, "x"), Err(Own), "{name}");
    }
    for name in ["HOST", "Connection", "content-length"] {
        assert_eq!(webhook_header(name, "x"), Err(Reserved), "{name}");
    }
    assert_eq!(webhook_header("a b", "x"), Err(Name));
    assert_eq!(webhook_header("", "x"), Err(Name));
    assert_eq!(webhook_header("X-A", "a\nb"), Err(Value));
    let (_, value) = webhook_header("Authorization", "Bearer hunter2").unwrap();
    assert!(!format!("{value:?}").contains("hunter2"));
}
