//! The cost of a message in user space: decoding, encoding, compression, signatures, joining and delivery.
//!
//! `cargo bench` runs all benchmarks, `cargo bench -- deliver` some. `cargo bench -- deflate` also prints the savings of
//! compression, for docs/compression.md. The cost of the kernel is measured by `scripts/load`, over sockets.

mod laravel;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use flate2::{Compress, Compression as Level, FlushCompress};
use pusherd::outbox::Outbox;
use pusherd::protocol::message::{Event, ServerMessage, Source};
use pusherd::protocol::request::Query;
use pusherd::protocol::signature::SigningKey;
use pusherd::protocol::wire::Form;
use pusherd::protocol::wire::pusher;
use pusherd::protocol::wire::websocket::{Decoder, Incoming};
use pusherd::protocol::{ChannelName, NameRules, SocketId};
use pusherd::registry::{CacheLimits, ChannelKey, ChannelPermits, Join, Registry};

const NOW: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(1800);

fn channel() -> ChannelName {
    ChannelName::parse("orders.7", &NameRules::default()).expect("a valid name")
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    let subscribe = r#"{"event":"pusher:subscribe","data":{"auth":"demo-key:dda12131b20cbe78d47e334d5674b214c4f954ad2d4f645bde47cbe705c19463","channel":"private-room"}}"#;
    let whisper = r#"{"event":"client-typing","channel":"private-room","data":{"name":"Zoë","on":true}}"#;
    group.bench_function("subscribe", |b| b.iter(|| pusher::decode(black_box(subscribe)).is_ok()));
    group.bench_function("client_event", |b| b.iter(|| pusher::decode(black_box(whisper)).is_ok()));
    group.finish();
}

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("encode");
    let channel = channel();
    for size in [100, 1000, 10_000] {
        let data = format!("\"{}\"", "x".repeat(size));
        let event = "App\\Events\\OrderShipped";
        let message = ServerMessage::Event { channel: &channel, event, data: &data, user: None };
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("event_{size}"), |b| b.iter(|| pusher::encode(black_box(&message))));
    }
    group.finish();
}

/// Messages of a Laravel application in both directions, as on the wire.
fn deflate(c: &mut Criterion) {
    let mut group = c.benchmark_group("deflate");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let form = Form::DeflatedFrame { bytes_min: 0 };
    let mut is_asked_for = false;
    for (name, frame) in laravel::frames() {
        let text = frame.text();
        group.throughput(Throughput::Bytes(text.len() as u64));
        let mut out = Vec::new();
        form.append(&mut out, &frame);
        let sent = masked(&out);
        group.bench_function(format!("{name}/out"), |b| {
            is_asked_for = true;
            b.iter(|| {
                out.clear();
                form.append(&mut out, black_box(&frame));
            });
        });
        let mut decoder = Decoder::new(form);
        group.bench_function(format!("{name}/in"), |b| {
            b.iter_batched_ref(
                || sent.clone(),
                |sent| {
                    decoder
                        .feed(sent, usize::MAX, |incoming| !matches!(black_box(incoming), Incoming::Binary))
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
    if is_asked_for {
        levels();
    }
}

/// Prints the size of the messages at each level and the best time: the table of docs/compression.md.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn levels() {
    const LEVELS: [u32; 6] = [1, 2, 3, 4, 6, 9];
    const RUNS: u32 = 20;
    for (name, frame) in laravel::frames() {
        let text = frame.text();
        let mut payload = Vec::with_capacity(text.len() + 64);
        // A compressor and its best time for each level. They alternate, so that disturbances affect all levels.
        let mut compressors = LEVELS.map(|level| (Compress::new(Level::new(level), false), Duration::MAX, 0));
        for _ in 0..500 {
            for (compress, best, bytes) in &mut compressors {
                let start = Instant::now();
                for _ in 0..RUNS {
                    compress.reset();
                    payload.clear();
                    compress
                        .compress_vec(black_box(text.as_bytes()), &mut payload, FlushCompress::Sync)
                        .expect("there is room");
                }
                *best = start.elapsed().min(*best);
                *bytes = payload.len() - 4;
            }
        }
        println!("{name}, {} bytes", text.len());
        for (level, (_, best, bytes)) in LEVELS.into_iter().zip(compressors) {
            let saved = 100.0 * (1.0 - bytes as f64 / text.len() as f64);
            println!("  level {level}: {bytes} bytes, {saved:.0} % saved, {:.1?}", best / RUNS);
        }
    }
}

/// A frame of the server as a client would send it, with a mask of zeros, which leaves the payload unchanged.
fn masked(frame: &[u8]) -> Vec<u8> {
    let head = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let mut masked = [&frame[..head], &[0; 4], &frame[head..]].concat();
    masked[1] |= 0x80;
    masked
}

fn signature(c: &mut Criterion) {
    let mut group = c.benchmark_group("signature");
    let key = SigningKey::new("demo-secret");
    let socket = SocketId::new(123_456, 7890);
    let signed = "dda12131b20cbe78d47e334d5674b214c4f954ad2d4f645bde47cbe705c19463";
    group.bench_function("subscription", |b| {
        b.iter(|| key.verifies_subscription(black_box(signed), socket, "private-room", None));
    });
    let raw = "auth_key=demo-key&auth_timestamp=1700000000&auth_version=1.0&body_md5=c33fd8def59d170cd8b3757ae2dab6ae&auth_signature=72680f7a7b34be38b2b1d7e963b22c2e770f6f9700ae0bbf24f7823b311522f6";
    let body = br#"{"name":"order.shipped","data":"{\"id\":7}","channels":["orders"]}"#;
    group.bench_function("request", |b| {
        b.iter(|| {
            let query = Query::parse(black_box(raw)).expect("UTF-8");
            let auth = query.auth().expect("all parameters");
            query.verify(&auth, &key, "POST", ["/apps/1001/events"]).expect("the signature holds");
            auth.check_body(body).expect("the MD5 holds");
        });
    });
    group.finish();
}

/// A registry with `count` subscribers of one channel, and their outboxes.
fn subscribed(count: u32) -> (Registry, Vec<Arc<Outbox>>) {
    let registry = Registry::default();
    let outboxes: Vec<_> =
        (0..count).map(|id| Arc::new(Outbox::detached(SocketId::new(id, 0), usize::MAX))).collect();
    outboxes.iter().for_each(|outbox| join(&registry, outbox));
    (registry, outboxes)
}

fn key() -> ChannelKey {
    ChannelKey { app: "app".into(), channel: channel() }
}

fn join(registry: &Registry, outbox: &Arc<Outbox>) {
    let taken = Arc::default();
    let permits = ChannelPermits { held: &taken, max: None };
    let join = Join { member: None, members_max: 1000, counts: false, permits, acknowledgement: None };
    let joined = registry.join(&key(), outbox, &join, NOW).expect("not a presence channel");
    assert!(joined.drive.is_none());
    outbox.take_queued();
}

fn deliver(c: &mut Criterion) {
    let mut group = c.benchmark_group("deliver");
    let (app, channel) = ("app".into(), channel());
    let taken = Arc::default();
    let cache =
        CacheLimits { ttl: TTL, permits: ChannelPermits { held: &taken, max: None }, bytes_max: usize::MAX };
    let event = Event { channel: &channel, name: "e", data: "\"x\"", except: None, source: Source::App };
    for count in [10, 1000, 10_000] {
        let (registry, outboxes) = subscribed(count);
        group.throughput(Throughput::Elements(count.into()));
        group.bench_function(count.to_string(), |b| {
            b.iter_batched(
                || outboxes.iter().for_each(|outbox| drop(outbox.take_queued())),
                |()| {
                    let published = registry.publish(&app, black_box(&event), cache, NOW);
                    let Some(mut drive) = published.drive else { return };
                    while let Some(mut pass) = drive.next_pass() {
                        while pass.deliver_next() {}
                    }
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn join_leave(c: &mut Criterion) {
    let mut group = c.benchmark_group("join_leave");
    for count in [10, 1000, 10_000] {
        let (registry, _outboxes) = subscribed(count);
        let one = Arc::new(Outbox::detached(SocketId::new(u32::MAX, 0), usize::MAX));
        group.bench_function(count.to_string(), |b| {
            b.iter(|| {
                join(&registry, &one);
                registry.leave(&key(), one.socket(), false, NOW)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decode, encode, deflate, signature, deliver, join_leave);
criterion_main!(benches);
