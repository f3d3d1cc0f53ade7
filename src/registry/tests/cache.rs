use super::*;
use crate::registry::scan::CHANNELS_PER_CHUNK;

#[test]
fn a_cache_channel_sends_the_last_event_to_new_subscribers_and_outlives_its_subscribers() {
    let (registry, a, b) = (Registry::default(), outbox(1), outbox(2));
    assert!(join(&registry, "cache-x", &a, &plain()).cache_miss);
    publish(&registry, "cache-x", "1", None);
    publish(&registry, "cache-x", "2", Some(2));
    assert!(leave(&registry, "cache-x", &a).unwrap().vacated);
    assert!(!join(&registry, "cache-x", &b, &plain()).cache_miss);
    assert_eq!(received(&a), ["ok", "cache_miss {}", "1", "2"]);
    assert_eq!(received(&b), ["ok", "2"], "also to the connection that was excluded from the publish");
    let info = registry.info(&key("cache-x"), NOW + Duration::from_secs(800));
    let (event, ttl) = info.cache.unwrap();
    assert!(event.text().contains(r#""data":2"#), "{}", event.text());
    assert_eq!(ttl, Duration::from_secs(1000));
    leave(&registry, "cache-x", &b);
    registry.expire(NOW);
    assert_eq!(registry.len(), 1);
    assert!(join(&registry, "cache-x", &a, &plain()).occupied);
    leave(&registry, "cache-x", &a);
    registry.expire(NOW + TTL);
    assert!(registry.is_empty());
}

/// Publishes as an app with this limit of cached bytes. Returns the limit that was reached.
fn keep(registry: &Registry, app: &str, channel: &str, data: &str, bytes_max: usize) -> Option<Limit> {
    let channel = name(channel);
    let event = Event { channel: &channel, name: "e", data, except: None, source: Source::App };
    registry.publish(&app.into(), &event, CacheLimits { bytes_max, ..cache() }, NOW).limit
}

fn keeps(registry: &Registry, app: &str, channel: &str) -> bool {
    let key = ChannelKey { app: app.into(), channel: name(channel) };
    registry.info(&key, NOW).cache.is_some()
}

#[test]
fn above_the_limit_of_bytes_the_least_recently_published_events_are_evicted() {
    let registry = Registry::default();
    let data = format!("\"{}\"", "x".repeat(1000));
    let keep = |channel| keep(&registry, "app", channel, &data, 3500);
    assert_eq!(["cache-1", "cache-2", "cache-3"].map(keep), [None; 3]);
    assert_eq!(keep("cache-1"), None, "an event replaces the previous one");
    assert_eq!(keep("cache-4"), Some(Limit::CachedBytes));
    let kept = ["cache-1", "cache-2", "cache-3", "cache-4"].map(|channel| keeps(&registry, "app", channel));
    assert_eq!(kept, [true, false, true, true]);
    assert_eq!(
        (registry.len(), registry.cached_totals().0),
        (3, 3),
        "a channel without subscribers and event is removed"
    );
    assert!(registry.cached_totals().1 <= 3500);
}

#[test]
fn an_event_that_is_too_long_to_be_cached_is_delivered_and_replaces_the_previous_one() {
    let (registry, a) = (Registry::default(), outbox(1));
    assert_eq!(keep(&registry, "app", "cache-x", "1", 200), None);
    join(&registry, "cache-x", &a, &plain());
    let long = "1".repeat(300);
    let channel = name("cache-x");
    let event = Event { channel: &channel, name: "e", data: &long, except: None, source: Source::App };
    let published = registry.publish(&"app".into(), &event, CacheLimits { bytes_max: 200, ..cache() }, NOW);
    assert_eq!(published.limit, Some(Limit::CachedBytes));
    assert!(published.drive.is_some_and(|drive| drive.deliver_inline().is_ok()));
    assert!(!keeps(&registry, "app", "cache-x"));
    assert_eq!(registry.cached_totals(), (0, 0));
    leave(&registry, "cache-x", &a);
    assert!(registry.is_empty());
}

#[test]
fn no_app_evicts_events_of_another_app() {
    let registry = Registry::default();
    registry.limit_cached_bytes(3500);
    let data = format!("\"{}\"", "x".repeat(1000));
    let keep = |app, channel| keep(&registry, app, channel, &data, usize::MAX);
    assert_eq!([keep("a", "cache-1"), keep("a", "cache-2"), keep("b", "cache-1")], [None; 3]);
    assert_eq!(keep("a", "cache-3"), Some(Limit::NodeCachedBytes));
    assert_eq!(keep("c", "cache-1"), Some(Limit::NodeCachedBytes));
    let kept = [("a", "cache-1"), ("a", "cache-2"), ("a", "cache-3"), ("b", "cache-1"), ("c", "cache-1")];
    let kept = kept.map(|(app, channel)| keeps(&registry, app, channel));
    assert_eq!(kept, [false, true, true, true, false], "the oldest of the same app, or the new one");
}

#[test]
fn expired_events_are_dropped_in_turns() {
    let registry = Registry::default();
    for at in 0..1000 {
        keep(&registry, "app", &format!("cache-{at}"), "1", usize::MAX);
    }
    assert!(!registry.expire(NOW));
    assert_eq!(registry.len(), 1000);
    let mut turns = 1;
    while registry.expire(NOW + TTL) {
        turns += 1;
    }
    assert_eq!((registry.len(), registry.cached_totals(), turns), (0, (0, 0), 4));
}

#[test]
fn a_client_event_is_not_cached_and_creates_no_channel() {
    let (registry, a) = (Registry::default(), outbox(1));
    let channel = name("private-cache-x");
    let event =
        Event { channel: &channel, name: "client-e", data: "1", except: None, source: Source::Client(None) };
    drive(registry.publish(&"app".into(), &event, cache(), NOW).drive);
    assert!(registry.is_empty());
    assert!(join(&registry, "private-cache-x", &a, &plain()).cache_miss);
}

#[test]
fn a_scan_returns_the_cache_channels_with_subscribers() {
    let registry = Registry::default();
    let reader = outbox(1);
    for at in 0..1000 {
        let channel = format!("{}-{at}", if at % 2 == 0 { "cache" } else { "room" });
        join(&registry, &channel, &reader, &plain());
    }
    leave(&registry, "cache-0", &reader);
    let (mut caches, mut found, mut turns) = (registry.subscribed_caches(), Vec::new(), 0);
    while let Some(some) = caches.next_chunk() {
        assert!(some.len() <= CHANNELS_PER_CHUNK);
        found.extend(some);
        turns += 1;
    }
    found.sort_unstable_by(|a, b| a.channel.as_str().cmp(b.channel.as_str()));
    found.dedup();
    assert_eq!(found.len(), 499);
    assert!(found.iter().all(|key| key.channel.is_cached()));
    assert!(turns > 1, "in several chunks");
}
