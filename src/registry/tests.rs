use std::sync::LazyLock;
use std::task::{Context, Waker};

use super::*;
use crate::protocol::NameRules;
use crate::protocol::message::Source;
use crate::protocol::wire::deflate::Compression;
use crate::protocol::wire::websocket::{Decoder, Incoming};

const NOW: Duration = Duration::from_secs(100);
const TTL: Duration = Duration::from_secs(1800);

fn name(text: &str) -> ChannelName {
    ChannelName::parse(text, &NameRules::default()).unwrap()
}

fn key(text: &str) -> ChannelKey {
    ChannelKey { app: "app".into(), channel: name(text) }
}

fn outbox(id: u32) -> Arc<Outbox> {
    Arc::new(Outbox::detached(SocketId::new(id, 0), usize::MAX))
}

fn member(id: &str) -> Member {
    Member { id: UserId::parse(id, 128).unwrap(), info: "null".into() }
}

/// Of an app without a limit.
static TAKEN: LazyLock<Arc<Count>> = LazyLock::new(Arc::default);

fn places() -> ChannelPlaces<'static> {
    ChannelPlaces { taken: &TAKEN, max: None }
}

fn cache() -> Cache<'static> {
    Cache { ttl: TTL, places: places(), bytes_max: usize::MAX }
}

fn plain() -> Join<'static> {
    Join { member: None, members_max: 1000, counts: false, places: places(), told: None }
}

fn presence(id: &str) -> Join<'static> {
    Join { member: Some(member(id)), members_max: 3, counts: false, places: places(), told: None }
}

fn drive(drive: Option<Drive>) {
    if let Some(mut drive) = drive {
        while let Some(mut pass) = drive.next_pass() {
            while pass.serve() {}
        }
    }
}

/// Tells the counts that are due so long after [`NOW`].
fn tell_counts(registry: &Registry, later: Duration) -> Vec<Drive> {
    registry.counts_due().into_iter().filter_map(|due| due.tell(NOW + later).1).collect()
}

fn publish(registry: &Registry, channel: &str, data: &str, except: Option<u32>) {
    let except = except.map(|id| SocketId::new(id, 0));
    let event = Event { channel: &name(channel), name: "e", data, except, source: Source::App };
    drive(registry.publish(&"app".into(), &event, cache(), NOW).drive);
}

/// What a connection got, one word a frame.
fn heard(outbox: &Outbox) -> Vec<String> {
    let mut words = Vec::new();
    for bytes in outbox.take_queued() {
        let mut rest = &bytes[..];
        while rest.len() > 1 {
            let (start, len) = match rest[1] {
                126 => (4, usize::from(u16::from_be_bytes([rest[2], rest[3]]))),
                127 => (10, u64::from_be_bytes(rest[2..10].try_into().unwrap()) as usize),
                len => (2, usize::from(len)),
            };
            let frame: serde_json::Value = serde_json::from_slice(&rest[start..start + len]).unwrap();
            rest = &rest[start + len..];
            let event = frame["event"].as_str().unwrap();
            let event = event.trim_start_matches("pusher_internal:").trim_start_matches("pusher:");
            let data = &frame["data"];
            let data = data.as_str().map_or_else(|| data.to_string(), str::to_owned);
            words.push(match event {
                "e" => data,
                "subscription_succeeded" => {
                    let data: serde_json::Value = serde_json::from_str(&data).unwrap();
                    match data["presence"]["ids"].as_array() {
                        None => "ok".to_owned(),
                        Some(ids) => {
                            format!(
                                "ok {}",
                                ids.iter().filter_map(|id| id.as_str()).collect::<Vec<_>>().join(",")
                            )
                        }
                    }
                }
                "member_added" => format!("+{}", user_of(&data)),
                "member_removed" => format!("-{}", user_of(&data)),
                other => format!("{other} {data}"),
            });
        }
    }
    words
}

fn user_of(data: &str) -> String {
    serde_json::from_str::<serde_json::Value>(data).unwrap()["user_id"].as_str().unwrap().to_owned()
}

fn join(registry: &Registry, channel: &str, outbox: &Arc<Outbox>, join: &Join) -> Joined {
    let mut joined = registry.join(&key(channel), outbox, join, NOW).unwrap();
    drive(joined.drive.take());
    joined
}

fn leave(registry: &Registry, channel: &str, outbox: &Outbox) -> Option<Left> {
    let mut left = registry.leave(&key(channel), outbox.socket(), false, NOW)?;
    drive(left.drive.take());
    Some(left)
}

fn compressing(id: u32, bytes_min: u32) -> Arc<Outbox> {
    let outbox = Outbox::detached(SocketId::new(id, 0), usize::MAX);
    Arc::new(outbox.compressing(Compression::Deflate { bytes_min }))
}

/// What a connection that inflates got, and which of it was compressed.
fn inflated(outbox: &Outbox) -> Vec<(bool, String)> {
    let mut said = Vec::new();
    let mut decoder = Decoder::new(Compression::Deflate { bytes_min: 0 });
    for mut rest in outbox.take_queued() {
        while !rest.is_empty() {
            // The decoder reads frames of clients, which have a mask: one of zeros changes nothing.
            let len = match rest[1] {
                126 => 4 + usize::from(u16::from_be_bytes([rest[2], rest[3]])),
                len => 2 + usize::from(len),
            };
            let head = if rest[1] == 126 { 4 } else { 2 };
            let frame = rest.split_to(len);
            let mut masked = [&frame[..head], &[0; 4], &frame[head..]].concat();
            masked[1] |= 0x80;
            let each = |incoming: Incoming<'_>| {
                let Incoming::Text(text) = incoming else { panic!("{incoming:?}") };
                let value: serde_json::Value = serde_json::from_str(text).unwrap();
                said.push((frame[0] == 0xc1, value["data"].as_str().unwrap().to_owned()));
                true
            };
            decoder.feed(&mut masked, 100_000, each).unwrap();
        }
    }
    said
}

#[test]
fn a_batch_is_compressed_once_for_all_that_want_it_and_for_nobody_else() {
    let registry = Registry::default();
    let (plain_one, one, two) = (outbox(1), compressing(2, 200), compressing(3, 200));
    for subscriber in [&plain_one, &one, &two] {
        join(&registry, "x", subscriber, &plain());
        subscriber.take_queued();
    }
    let long = |word: &str| word.repeat(300);
    // Pushed while somebody drives, so that they go out as one batch.
    let events = [(long("a"), None), ("short".to_owned(), None), (long("b"), Some(2)), (long("c"), None)];
    let mut first = None;
    for (data, except) in &events {
        let (data, except) = (format!("\"{data}\""), except.map(|id| SocketId::new(id, 0)));
        let event = Event { channel: &name("x"), name: "e", data: &data, except, source: Source::App };
        let published = registry.publish(&"app".into(), &event, cache(), NOW);
        first = first.or(published.drive);
    }
    let late = compressing(4, 200);
    join(&registry, "x", &late, &plain());
    late.take_queued();
    drive(first);
    let expected = |excepted: u32| {
        let theirs = events.iter().filter(|(_, except)| *except != Some(excepted));
        theirs.map(|(data, _)| (data != "short", data.clone())).collect::<Vec<_>>()
    };
    assert_eq!(heard(&plain_one), events.clone().map(|(data, _)| data), "nothing is compressed for it");
    assert_eq!(inflated(&one), expected(2));
    assert_eq!(inflated(&two), expected(3));
    assert_eq!(inflated(&late), [], "it came after all of them");
}

#[test]
fn short_messages_are_shared_by_those_who_compress_and_those_who_do_not() {
    let registry = Registry::default();
    let (plain_one, one) = (outbox(1), compressing(2, 200));
    for subscriber in [&plain_one, &one] {
        join(&registry, "x", subscriber, &plain());
        subscriber.take_queued();
    }
    publish(&registry, "x", "\"short\"", None);
    let (plain, compressed) = (plain_one.take_queued(), one.take_queued());
    assert_eq!(plain, compressed);
    assert_eq!(plain[0].as_ptr(), compressed[0].as_ptr(), "the same bytes");
}

#[test]
fn long_messages_are_shared_by_those_who_compress() {
    let registry = Registry::default();
    let (one, two) = (compressing(1, 0), compressing(2, 0));
    for subscriber in [&one, &two] {
        join(&registry, "x", subscriber, &plain());
        subscriber.take_queued();
    }
    publish(&registry, "x", &format!("\"{}\"", "long ".repeat(100)), None);
    assert_eq!(one.take_queued()[0].as_ptr(), two.take_queued()[0].as_ptr(), "the same bytes");
}

#[test]
fn an_event_reaches_every_subscriber_but_the_excepted_one() {
    let (registry, a, b, c) = (Registry::default(), outbox(1), outbox(2), outbox(3));
    for subscriber in [&a, &b] {
        assert!(!join(&registry, "x", subscriber, &plain()).again);
    }
    join(&registry, "y", &c, &plain());
    publish(&registry, "x", "1", None);
    publish(&registry, "x", "2", Some(1));
    publish(&registry, "x", "3", Some(99));
    assert_eq!(heard(&a), ["ok", "1", "3"]);
    assert_eq!(heard(&b), ["ok", "1", "2", "3"]);
    assert_eq!(heard(&c), ["ok"]);
}

#[test]
fn the_same_channel_of_another_app_is_another_channel() {
    let (registry, a) = (Registry::default(), outbox(1));
    let other = ChannelKey { app: "other".into(), channel: name("x") };
    assert!(registry.join(&other, &a, &plain(), NOW).unwrap().occupied);
    publish(&registry, "x", "1", None);
    assert_eq!(heard(&a), ["ok"]);
    let occupied = |app| {
        let mut occupied = registry.occupied(app, "");
        std::iter::from_fn(move || occupied.next_some(NOW)).flatten().count()
    };
    assert_eq!((occupied("app"), occupied("other")), (0, 1));
}

#[test]
fn what_waits_while_a_channel_is_driven_goes_out_together_and_a_joiner_gets_only_what_follows() {
    let (registry, a, b) = (Registry::default(), outbox(1), outbox(2));
    let many: Vec<_> = (100..200).map(outbox).collect();
    for subscriber in many.iter().chain([&a]) {
        join(&registry, "x", subscriber, &plain());
    }
    let x = name("x");
    let event = |data| Event { channel: &x, name: "e", data, except: None, source: Source::App };
    let publish = |data| registry.publish(&"app".into(), &event(data), cache(), NOW).drive;
    let mut first = publish("1").expect("a large channel is left to its driver");
    let mut pass = first.next_pass().unwrap();
    assert!(pass.serve(), "more than one turn");
    assert!(publish("2").is_none(), "there is a driver");
    assert!(publish("3").is_none());
    assert!(join(&registry, "x", &b, &plain()).drive.is_none());
    assert!(publish("4").is_none());
    while pass.serve() {}
    let mut pass = first.next_pass().unwrap();
    while pass.serve() {}
    assert!(first.next_pass().is_none());
    assert_eq!(a.take_queued().len(), 3, "acknowledgement, first event, the other three in one");
    assert_eq!(heard(&b), ["ok", "4"]);
}

#[test]
fn who_leaves_during_a_pass_hears_nothing_more() {
    let registry = Registry::default();
    let all: Vec<_> = (0..100).map(outbox).collect();
    for subscriber in &all {
        join(&registry, "x", subscriber, &plain());
    }
    let event = Event { channel: &name("x"), name: "e", data: "1", except: None, source: Source::App };
    let mut drive = registry.publish(&"app".into(), &event, cache(), NOW).drive.unwrap();
    let mut pass = drive.next_pass().unwrap();
    assert!(pass.serve());
    assert!(leave(&registry, "x", &all[99]).is_some());
    assert!(leave(&registry, "x", &all[0]).is_some());
    while pass.serve() {}
    assert!(drive.next_pass().is_none());
    assert_eq!(heard(&all[0]), ["ok", "1"]);
    assert_eq!(heard(&all[98]), ["ok", "1"]);
    assert_eq!(heard(&all[99]), ["ok"]);
}

#[test]
fn a_channel_with_too_much_waiting_asks_its_publishers_to_wait() {
    let registry = Registry::default();
    let all: Vec<_> = (0..100).map(outbox).collect();
    for subscriber in &all {
        join(&registry, "x", subscriber, &plain());
    }
    let data = format!("\"{}\"", "x".repeat(100_000));
    let event = Event { channel: &name("x"), name: "e", data: &data, except: None, source: Source::App };
    let publish = || registry.publish(&"app".into(), &event, cache(), NOW);
    let first = publish();
    let mut drive = first.drive.unwrap();
    assert!(first.backlog.is_none());
    assert!(publish().backlog.is_none());
    let mut backlog = publish().backlog.expect("300 kB wait");
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(backlog.poll_room(&mut cx).is_pending());
    let mut passes = 0;
    while let Some(mut pass) = drive.next_pass() {
        passes += 1;
        while pass.serve() {}
    }
    assert_eq!(passes, 3, "a batch ends once it is past 64 KiB");
    assert!(backlog.poll_room(&mut cx).is_ready());
}

#[test]
fn presence_tells_of_users_not_of_connections() {
    let (registry, a, b, b2) = (Registry::default(), outbox(1), outbox(2), outbox(3));
    assert!(join(&registry, "presence-x", &a, &presence("7")).member_added);
    assert!(join(&registry, "presence-x", &b, &presence("8")).member_added);
    assert!(!join(&registry, "presence-x", &b2, &presence("8")).member_added);
    assert_eq!(leave(&registry, "presence-x", &b).unwrap().member_removed, None);
    assert_eq!(leave(&registry, "presence-x", &b2).unwrap().member_removed, Some(member("8").id));
    assert_eq!(heard(&a), ["ok 7", "+8", "-8"]);
    assert_eq!(heard(&b), ["ok 7,8"]);
    assert_eq!(heard(&b2), ["ok 7,8"]);
    assert!(leave(&registry, "presence-x", &a).unwrap().vacated);
    assert!(registry.is_empty());
}

#[test]
fn a_full_presence_channel_refuses_new_users_only() {
    let registry = Registry::default();
    for id in ["1", "2", "3"] {
        join(&registry, "presence-x", &outbox(id.parse().unwrap()), &presence(id));
    }
    let refused = registry.join(&key("presence-x"), &outbox(9), &presence("4"), NOW);
    assert_eq!(refused.unwrap_err(), JoinError::Full);
    let second_tab = outbox(10);
    join(&registry, "presence-x", &second_tab, &presence("3"));
    assert_eq!(heard(&second_tab), ["ok 1,2,3"]);
}

#[test]
fn subscribing_twice_changes_nothing() {
    let (registry, a, b) = (Registry::default(), outbox(1), outbox(2));
    join(&registry, "presence-x", &a, &presence("7"));
    join(&registry, "presence-x", &b, &presence("8"));
    let again = join(&registry, "presence-x", &b, &presence("8"));
    assert!(again.again && !again.occupied && !again.member_added);
    assert_eq!(heard(&b), ["ok 7,8", "ok 7,8"]);
    assert_eq!(heard(&a), ["ok 7", "+8"]);
    assert_eq!(leave(&registry, "presence-x", &b).unwrap().member_removed, Some(member("8").id));
}

#[test]
fn a_cache_channel_replays_the_last_event_and_outlives_its_subscribers() {
    let (registry, a, b) = (Registry::default(), outbox(1), outbox(2));
    assert!(join(&registry, "cache-x", &a, &plain()).cache_miss);
    publish(&registry, "cache-x", "1", None);
    publish(&registry, "cache-x", "2", Some(2));
    assert!(leave(&registry, "cache-x", &a).unwrap().vacated);
    assert!(!join(&registry, "cache-x", &b, &plain()).cache_miss);
    assert_eq!(heard(&a), ["ok", "cache_miss {}", "1", "2"]);
    assert_eq!(heard(&b), ["ok", "2"], "also to the connection that was excepted");
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

/// Publishes as an app that may keep events of so many bytes; the limit that was reached.
fn keep(registry: &Registry, app: &str, channel: &str, data: &str, bytes_max: usize) -> Option<Limit> {
    let channel = name(channel);
    let event = Event { channel: &channel, name: "e", data, except: None, source: Source::App };
    registry.publish(&app.into(), &event, Cache { bytes_max, ..cache() }, NOW).limit
}

fn keeps(registry: &Registry, app: &str, channel: &str) -> bool {
    let key = ChannelKey { app: app.into(), channel: name(channel) };
    registry.info(&key, NOW).cache.is_some()
}

#[test]
fn of_too_many_bytes_that_are_kept_the_least_recently_published_are_forgotten() {
    let registry = Registry::default();
    let data = format!("\"{}\"", "x".repeat(1000));
    let keep = |channel| keep(&registry, "app", channel, &data, 3500);
    assert_eq!(["cache-1", "cache-2", "cache-3"].map(keep), [None; 3]);
    assert_eq!(keep("cache-1"), None, "an event takes the place of the one before");
    assert_eq!(keep("cache-4"), Some(Limit::CachedBytes));
    let kept = ["cache-1", "cache-2", "cache-3", "cache-4"].map(|channel| keeps(&registry, "app", channel));
    assert_eq!(kept, [true, false, true, true]);
    assert_eq!((registry.len(), registry.kept().0), (3, 3), "a channel that keeps nothing is none");
    assert!(registry.kept().1 <= 3500);
}

#[test]
fn an_event_that_is_too_long_to_be_kept_is_delivered_and_what_was_kept_before_is_not_kept_in_its_stead() {
    let (registry, a) = (Registry::default(), outbox(1));
    assert_eq!(keep(&registry, "app", "cache-x", "1", 200), None);
    join(&registry, "cache-x", &a, &plain());
    let long = "1".repeat(300);
    let channel = name("cache-x");
    let event = Event { channel: &channel, name: "e", data: &long, except: None, source: Source::App };
    let published = registry.publish(&"app".into(), &event, Cache { bytes_max: 200, ..cache() }, NOW);
    assert_eq!(published.limit, Some(Limit::CachedBytes));
    assert!(published.drive.is_some_and(|drive| drive.on_the_spot().is_ok()));
    assert!(!keeps(&registry, "app", "cache-x"));
    assert_eq!(registry.kept(), (0, 0));
    leave(&registry, "cache-x", &a);
    assert!(registry.is_empty());
}

#[test]
fn no_app_forgets_anything_for_the_sake_of_another_one() {
    let registry = Registry::default();
    registry.limit_kept(3500);
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
fn what_has_expired_is_forgotten_some_at_a_time() {
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
    assert_eq!((registry.len(), registry.kept(), turns), (0, (0, 0), 4));
}

#[test]
fn occupied_channels_are_listed_some_at_a_time_each_once() {
    let (registry, a) = (Registry::default(), outbox(1));
    for at in 0..2000 {
        join(&registry, &format!("room-{at}"), &a, &plain());
    }
    join(&registry, "other", &a, &plain());
    let (mut names, mut most) = (std::collections::BTreeSet::new(), 0);
    let mut occupied = registry.occupied("app", "room-");
    while let Some(some) = occupied.next_some(NOW) {
        most = most.max(some.len());
        for (name, _) in some {
            assert!(names.insert(name.as_str().to_owned()), "{name} twice");
        }
    }
    assert_eq!(names.len(), 2000);
    assert!(most <= 256, "{most} at once");
}

#[test]
fn a_client_event_is_not_cached_and_does_not_make_a_channel() {
    let (registry, a) = (Registry::default(), outbox(1));
    let channel = name("private-cache-x");
    let event =
        Event { channel: &channel, name: "client-e", data: "1", except: None, source: Source::Client(None) };
    drive(registry.publish(&"app".into(), &event, cache(), NOW).drive);
    assert!(registry.is_empty());
    assert!(join(&registry, "private-cache-x", &a, &plain()).cache_miss);
}

#[test]
fn counts_are_told_at_once_to_a_hundred_and_every_five_seconds_to_more() {
    let (registry, a) = (Registry::default(), outbox(0));
    let counted = Join { counts: true, ..plain() };
    join(&registry, "x", &a, &counted);
    assert_eq!(heard(&a), ["ok", r#"subscription_count {"subscription_count":1}"#]);
    for id in 1..100 {
        join(&registry, "x", &outbox(id), &counted);
    }
    assert_eq!(heard(&a).len(), 99);
    for id in 100..150 {
        join(&registry, "x", &outbox(id), &counted);
    }
    assert_eq!(heard(&a), [""; 0], "told less than five seconds ago");
    for due in tell_counts(&registry, Duration::from_secs(4)) {
        drive(Some(due));
    }
    assert_eq!(heard(&a), [""; 0]);
    for due in tell_counts(&registry, Duration::from_secs(5)) {
        drive(Some(due));
    }
    assert_eq!(heard(&a), [r#"subscription_count {"subscription_count":150}"#]);
    assert!(tell_counts(&registry, Duration::from_secs(60)).is_empty());
}

#[test]
fn a_channel_that_shrinks_to_a_hundred_is_told_at_once_again() {
    let (registry, a) = (Registry::default(), outbox(0));
    let counted = Join { counts: true, ..plain() };
    join(&registry, "x", &a, &counted);
    let others: Vec<_> = (1..102).map(outbox).collect();
    others.iter().for_each(|other| drop(join(&registry, "x", other, &counted)));
    heard(&a);
    for other in &others[..2] {
        drive(registry.leave(&key("x"), other.socket(), true, NOW).unwrap().drive);
    }
    assert_eq!(
        heard(&a),
        [100].map(|count| format!("subscription_count {{\"subscription_count\":{count}}}"))
    );
    assert!(tell_counts(&registry, Duration::from_secs(60)).is_empty(), "nothing is due");
}

#[test]
fn a_count_that_was_about_to_be_told_when_its_task_ended_is_told_by_whoever_looks() {
    let (registry, a) = (Registry::default(), outbox(0));
    let counted = Join { counts: true, ..plain() };
    join(&registry, "x", &a, &counted);
    let others: Vec<_> = (1..102).map(outbox).collect();
    others.iter().for_each(|other| drop(join(&registry, "x", other, &counted)));
    heard(&a);
    // With its task, before it was looked at.
    drop(registry.counts_due());
    // Or by a panic.
    let due = registry.counts_due();
    assert_eq!(due.len(), 1);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _due = due;
        panic!("before it was told");
    }));
    assert!(panicked.is_err());
    let drives = tell_counts(&registry, Duration::from_secs(60));
    drives.into_iter().for_each(|each| drive(Some(each)));
    assert_eq!(heard(&a), ["subscription_count {\"subscription_count\":102}"]);
    assert!(registry.counts_due().is_empty(), "once");
}

#[test]
fn cache_channels_with_subscribers_are_found_in_turns() {
    let registry = Registry::default();
    let reader = outbox(1);
    for at in 0..1000 {
        let channel = format!("{}-{at}", if at % 2 == 0 { "cache" } else { "room" });
        join(&registry, &channel, &reader, &plain());
    }
    leave(&registry, "cache-0", &reader);
    let (mut caches, mut found, mut turns) = (registry.subscribed_caches(), Vec::new(), 0);
    while let Some(some) = caches.next_some() {
        assert!(some.len() <= LISTED_AT_ONCE);
        found.extend(some);
        turns += 1;
    }
    found.sort_unstable_by(|a, b| a.channel.as_str().cmp(b.channel.as_str()));
    found.dedup();
    assert_eq!(found.len(), 499);
    assert!(found.iter().all(|key| key.channel.is_cached()));
    assert!(turns > 1, "others have their turn");
}

#[test]
fn a_channel_whose_driver_ends_early_is_driven_by_whoever_looks() {
    let (registry, reader) = (Registry::default(), outbox(1));
    join(&registry, "x", &reader, &plain());
    reader.take_queued();
    let say = |data| {
        let event = Event { channel: &name("x"), name: "e", data, except: None, source: Source::App };
        registry.publish(&"app".into(), &event, cache(), NOW)
    };
    drop(say("1").drive.expect("nobody drives"));
    assert!(reader.take_queued().is_empty());
    for each in registry.undriven() {
        drive(Some(each));
    }
    assert_eq!(heard(&reader), ["1"]);
    assert!(registry.undriven().is_empty());

    // Or by whoever publishes next.
    drop(say("2").drive);
    drive(say("3").drive);
    assert_eq!(heard(&reader), ["2", "3"]);
    assert!(registry.undriven().is_empty(), "nothing is left to do");

    // A panic ends a drive as well, and what had been taken is gone with it.
    let mut panicking = say("4").drive.unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _pass = panicking.next_pass();
        panic!("in the middle of a pass");
    }));
    assert!(panicked.is_err());
    drive(say("5").drive);
    assert_eq!(heard(&reader), ["5"]);
}

#[test]
fn publishers_that_wait_go_on_when_a_driver_has_ended_early() {
    let (registry, reader) = (Registry::default(), outbox(1));
    join(&registry, "x", &reader, &plain());
    reader.take_queued();
    let data = format!("\"{}\"", "x".repeat(300_000));
    let event = Event { channel: &name("x"), name: "e", data: &data, except: None, source: Source::App };
    let published = registry.publish(&"app".into(), &event, cache(), NOW);
    let mut backlog = published.backlog.expect("more waits than should");
    drop(published.drive);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(backlog.poll_room(&mut cx).is_pending());
    for each in registry.undriven() {
        drive(Some(each));
    }
    assert!(backlog.poll_room(&mut cx).is_ready());
}

#[test]
fn who_joins_and_leaves_is_charged_for_what_everybody_is_told() {
    let registry = Registry::default();
    let members: Vec<_> = (1..=10).map(outbox).collect();
    let as_user = |id: u32| Join { member: Some(member(&id.to_string())), ..plain() };
    for (id, each) in (1..).zip(&members) {
        join(&registry, "presence-x", each, &as_user(id));
        let (_, changes) = each.take_provoked();
        assert_eq!(changes, if id == 1 { 2 } else { 1 }, "a member, and at first a channel");
    }
    let tenth = &members[9];
    members.iter().for_each(|each| drop(each.take_queued()));
    leave(&registry, "presence-x", tenth);
    let removed: usize = members[0].take_queued().iter().map(|frame| frame.len()).sum();
    assert_eq!(tenth.take_provoked(), ((9 * removed) as u32, 1));

    join(&registry, "presence-x", tenth, &as_user(10));
    let added: usize = members[0].take_queued().iter().map(|frame| frame.len()).sum();
    let roster: usize = tenth.take_queued().iter().map(|frame| frame.len()).sum();
    assert_eq!(tenth.take_provoked(), ((roster + 10 * added) as u32, 1));

    join(&registry, "presence-x", tenth, &as_user(10));
    assert_eq!(tenth.take_provoked(), (roster as u32, 0), "told again, nothing has changed");
    assert_eq!(members[0].take_provoked(), (0, 0), "others are charged nothing");

    join(&registry, "y", tenth, &plain());
    leave(&registry, "y", tenth);
    assert_eq!(tenth.take_provoked().1, 2, "the first and the last of a channel");
}

#[test]
fn the_connections_of_a_member_are_found_in_turns() {
    let registry = Registry::default();
    let join = |key: &ChannelKey, id: u32, user: &str| {
        let outbox = outbox(id);
        registry.join(key, &outbox, &presence(user), NOW).unwrap();
        outbox.socket()
    };
    let mut expected = Vec::new();
    for at in 0..1000 {
        let key = key(&format!("presence-{at}"));
        join(&key, 2 * at, "other");
        expected.extend((at % 10 == 0).then(|| join(&key, 2 * at + 1, "7")));
    }
    join(&ChannelKey { app: "other".into(), channel: name("presence-1") }, 3000, "7");
    registry.join(&key("private-7"), &outbox(3001), &plain(), NOW).unwrap();
    let many = key("presence-many");
    expected.extend((4000..4100).map(|id| join(&many, id, "7")));
    registry.leave(&many, expected.pop().unwrap(), false, NOW);

    let mut members = registry.connections_of_member("app", &member("7").id);
    let (mut found, mut turns) = (Vec::new(), 0);
    while let Some(some) = members.next_some() {
        found.extend(some.iter().map(|outbox| outbox.socket()));
        turns += 1;
    }
    found.sort_unstable_by_key(|socket| socket.number());
    expected.sort_unstable_by_key(|socket| socket.number());
    assert_eq!(found, expected);
    assert!(turns > 1, "others have their turn");
    assert!(registry.connections_of_member("app", &member("nobody").id).next_some().unwrap().is_empty());
}
