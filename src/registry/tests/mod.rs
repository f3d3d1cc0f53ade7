//! Scenarios for the registry, and their helpers. The helpers run every drive to its end.

mod cache;
mod counts;
mod delivery;
mod forms;
mod members;

use std::sync::LazyLock;

use super::*;
use crate::limits::Count;
use crate::protocol::NameRules;
use crate::protocol::message::Source;
use crate::protocol::wire::Form;
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
    outbox_in(Form::Frame, id)
}

fn member(id: &str) -> Member {
    Member { id: UserId::parse(id, 128).unwrap(), info: "null".into() }
}

/// The permits of an app without a limit.
static TAKEN: LazyLock<Arc<Count>> = LazyLock::new(Arc::default);

fn permits() -> ChannelPermits<'static> {
    ChannelPermits { held: &TAKEN, max: None }
}

fn cache() -> CacheLimits<'static> {
    CacheLimits { ttl: TTL, permits: permits(), bytes_max: usize::MAX }
}

fn plain() -> Join<'static> {
    Join { member: None, members_max: 1000, counts: false, permits: permits(), acknowledgement: None }
}

fn presence(id: &str) -> Join<'static> {
    Join {
        member: Some(member(id)),
        members_max: 3,
        counts: false,
        permits: permits(),
        acknowledgement: None,
    }
}

fn drive(drive: Option<Drive>) {
    if let Some(mut drive) = drive {
        while let Some(mut pass) = drive.next_pass() {
            while pass.deliver_next() {}
        }
    }
}

/// Sends the counts that are due, `later` than [`NOW`].
fn send_counts(registry: &Registry, later: Duration) -> Vec<Drive> {
    registry.counts_due().into_iter().filter_map(|due| due.send(NOW + later).1).collect()
}

fn publish(registry: &Registry, channel: &str, data: &str, except: Option<u32>) {
    let except = except.map(|id| SocketId::new(id, 0));
    let event = Event { channel: &name(channel), name: "e", data, except, source: Source::App };
    drive(registry.publish(&"app".into(), &event, cache(), NOW).drive);
}

/// An outbox of a connection with this form.
fn outbox_in(form: Form, id: u32) -> Arc<Outbox> {
    Arc::new(Outbox::detached(SocketId::new(id, 0), usize::MAX).with_form(form))
}

/// The messages that a connection received, decoded from its form: the text of each, and whether it was compressed.
fn messages(outbox: &Outbox) -> Vec<(bool, String)> {
    let bytes = outbox.take_queued().concat();
    match outbox.form() {
        form @ (Form::Frame | Form::DeflatedFrame { .. }) => texts_of_frames(form, &bytes),
        Form::Text => {
            let lines = std::str::from_utf8(&bytes).unwrap().split_inclusive('\n');
            let line = |line: &str| (false, line.strip_suffix('\n').expect("whole lines").to_owned());
            lines.map(line).collect()
        }
    }
}

fn texts_of_frames(form: Form, mut bytes: &[u8]) -> Vec<(bool, String)> {
    let (mut decoder, mut texts) = (Decoder::new(form), Vec::new());
    while let [first, second, ..] = *bytes {
        let (head, len) = match second {
            126 => (4, usize::from(u16::from_be_bytes(bytes[2..4].try_into().unwrap()))),
            127 => (10, u64::from_be_bytes(bytes[2..10].try_into().unwrap()) as usize),
            len => (2, usize::from(len)),
        };
        // The decoder expects the masked frames of a client: a mask of zeros leaves the payload unchanged.
        let mut masked = [&bytes[..head], &[0; 4], &bytes[head..head + len]].concat();
        masked[1] |= 0x80;
        bytes = &bytes[head + len..];
        let each = |incoming: Incoming<'_>| {
            let Incoming::Text(text) = incoming else { panic!("{incoming:?}") };
            texts.push((first == 0xc1, text.to_owned()));
            true
        };
        decoder.feed(&mut masked, 10_000_000, each).unwrap();
    }
    assert!(bytes.is_empty(), "whole frames");
    texts
}

/// The messages that a connection received, in words.
fn received(outbox: &Outbox) -> Vec<String> {
    let word = |(_, text): (bool, String)| {
        let message: serde_json::Value = serde_json::from_str(&text).unwrap();
        let event = message["event"].as_str().unwrap();
        let event = event.trim_start_matches("pusher_internal:").trim_start_matches("pusher:");
        let data = &message["data"];
        let data = data.as_str().map_or_else(|| data.to_string(), str::to_owned);
        match event {
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
        }
    };
    messages(outbox).into_iter().map(word).collect()
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

#[test]
fn the_same_name_in_another_app_is_another_channel() {
    let (registry, a) = (Registry::default(), outbox(1));
    let other = ChannelKey { app: "other".into(), channel: name("x") };
    assert!(registry.join(&other, &a, &plain(), NOW).unwrap().occupied);
    publish(&registry, "x", "1", None);
    assert_eq!(received(&a), ["ok"]);
    let occupied = |app| {
        let mut occupied = registry.occupied(app, "");
        std::iter::from_fn(move || occupied.next_chunk(NOW)).flatten().count()
    };
    assert_eq!((occupied("app"), occupied("other")), (0, 1));
}

#[test]
fn a_scan_returns_each_occupied_channel_once_in_chunks() {
    let (registry, a) = (Registry::default(), outbox(1));
    for at in 0..2000 {
        join(&registry, &format!("room-{at}"), &a, &plain());
    }
    join(&registry, "other", &a, &plain());
    let (mut names, mut most) = (std::collections::BTreeSet::new(), 0);
    let mut occupied = registry.occupied("app", "room-");
    while let Some(some) = occupied.next_chunk(NOW) {
        most = most.max(some.len());
        for (name, _) in some {
            assert!(names.insert(name.as_str().to_owned()), "{name} twice");
        }
    }
    assert_eq!(names.len(), 2000);
    assert!(most <= 256, "{most} at once");
}
