use super::*;
use crate::protocol::wire::deflate::Compression;
use crate::protocol::wire::websocket::{Decoder, Incoming};

fn compressing(id: u32, bytes_min: u32) -> Arc<Outbox> {
    let outbox = Outbox::detached(SocketId::new(id, 0), usize::MAX);
    Arc::new(outbox.with_compression(Compression::Deflate { bytes_min }))
}

/// The messages that a connection with compression received, and whether each was compressed.
fn inflated(outbox: &Outbox) -> Vec<(bool, String)> {
    let mut said = Vec::new();
    let mut decoder = Decoder::new(Compression::Deflate { bytes_min: 0 });
    for mut rest in outbox.take_queued() {
        while !rest.is_empty() {
            // The decoder expects the masked frames of a client: a mask of zeros leaves the payload unchanged.
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
fn a_batch_is_compressed_once_for_all_subscribers_with_compression() {
    let registry = Registry::default();
    let (plain_one, one, two) = (outbox(1), compressing(2, 200), compressing(3, 200));
    for subscriber in [&plain_one, &one, &two] {
        join(&registry, "x", subscriber, &plain());
        subscriber.take_queued();
    }
    let long = |word: &str| word.repeat(300);
    // Published while a driver exists, so they become one batch.
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
    assert_eq!(received(&plain_one), events.clone().map(|(data, _)| data), "it has no compression");
    assert_eq!(inflated(&one), expected(2));
    assert_eq!(inflated(&two), expected(3));
    assert_eq!(inflated(&late), [], "it subscribed after all of them");
}

#[test]
fn short_messages_are_shared_by_subscribers_with_and_without_compression() {
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
fn compressed_messages_are_shared_by_subscribers_with_compression() {
    let registry = Registry::default();
    let (one, two) = (compressing(1, 0), compressing(2, 0));
    for subscriber in [&one, &two] {
        join(&registry, "x", subscriber, &plain());
        subscriber.take_queued();
    }
    publish(&registry, "x", &format!("\"{}\"", "long ".repeat(100)), None);
    assert_eq!(one.take_queued()[0].as_ptr(), two.take_queued()[0].as_ptr(), "the same bytes");
}
