//! Ten thousand frames and requests of every bad kind, good ones among them, over many short connections: afterwards
//! the server is as it was.
//!
//! What is sent follows from a seed alone, so that a failure can be had again. This is a binary of its own because it
//! measures the memory of its process, and other tests would be measured with it.

#![allow(
    dead_code,
    unused_imports,
    reason = "the harness is that of tests/it, and other tests use the rest of it"
)]
#![allow(unreachable_pub, reason = "a test binary has no public interface")]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the answer")]

#[path = "it"]
mod it {
    pub mod harness;
}

use futures_util::future::join_all;
use serde_json::{Value, json};

use it::harness::{
    Client, DEMO, OTHER, RawSocket, Request, Server, channel_auth, eventually, frame, frame_head, text_frame,
    unmasked_frame, user_auth,
};

/// Frames and requests in a round.
const COUNT: u32 = 10_000;

/// Attackers at work at once.
const ATTACKERS: u32 = 8;

/// What the resident memory may grow by from the end of a round to the end of the same round run again. A round has
/// some 1800 connections: a kilobyte that each leaves behind is more than this, and one of each frame much more.
const GROWTH_MAX: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_hostile_frames_and_requests_leave_nothing_behind() {
    let server = Server::with_app(|app| app.compression = true).await;
    let mut resident = Vec::new();
    for _ in 0..2 {
        let mut witness = server.connect().await;
        witness.subscribe("witness").await;
        let attacks = (0..ATTACKERS).map(|attacker| {
            let mut random = Random::seeded(u64::from(attacker));
            let server = &server;
            async move {
                let mut left = COUNT / ATTACKERS;
                while left > 0 {
                    left = left.saturating_sub(attack(server, &mut random).await);
                }
            }
        });
        join_all(attacks).await;
        is_as_before(&server, witness).await;
        resident.push(resident_bytes());
    }
    if let [Some(first), Some(second)] = resident[..] {
        println!("resident after the first round: {first} bytes, after the second: {second} bytes");
        assert!(second < first + GROWTH_MAX, "from {first} to {second} bytes");
    }
    server.stop().await;
}

/// Shows that the server serves, and that nobody and nothing is left of the attack.
async fn is_as_before(server: &Server, mut witness: Client) {
    server.publish("witness", "after", "").await;
    witness.expect(json!({ "event": "after", "channel": "witness", "data": "" })).await;
    witness.fence().await;
    witness.close().await;
    assert_eq!(server.send(Request::get("/up")).await.ok(), json!({ "health": "OK" }));
    for app in [DEMO, OTHER] {
        eventually("all connections and channels are gone", || async {
            let get = async |what: &str| {
                server
                    .send(Request::get(&format!("/apps/{}/{what}", app.app_id)).signed_with(&app))
                    .await
                    .ok()
            };
            get("connections").await == json!({ "connections": 0 })
                && get("channels").await == json!({ "channels": {} })
        })
        .await;
    }
    let mut fresh = server.connect().await;
    fresh.subscribe("private-room").await;
    server.publish("private-room", "fresh", "").await;
    fresh.expect(json!({ "event": "fresh", "channel": "private-room", "data": "" })).await;
    let there = fresh.join("presence-room", json!({ "user_id": "fresh" })).await;
    assert_eq!(there["ids"], json!(["fresh"]));
    fresh.close().await;
    server.has_connections(0).await;
}

/// The memory that this process has, where the system tells.
fn resident_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<usize>().ok()? * 1024)
}

/// A small generator of numbers (SplitMix64).
struct Random(u64);

impl Random {
    const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    const fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    /// Whether a thing of this chance, in per cent, happens.
    const fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.number() as u8).collect()
    }

    /// `bytes` with a few changed, left out, added or cut off.
    fn spoilt(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len().max(1));
            match self.below(4) {
                0 => bytes.truncate(at),
                1 if at < bytes.len() => bytes[at] = self.number() as u8,
                2 if at < bytes.len() => drop(bytes.remove(at)),
                _ => bytes.insert(at.min(bytes.len()), self.number() as u8),
            }
        }
        bytes
    }
}

/// One connection with something bad on it, or with something good; how many frames or requests that were.
async fn attack(server: &Server, random: &mut Random) -> u32 {
    match random.below(10) {
        0 => {
            drop(server.tcp().await);
            1
        }
        1 => {
            upgrade_and_vanish(server, random).await;
            1
        }
        2..=5 => send_requests(server, random).await,
        _ => send_frames(server, random).await,
    }
}

/// An upgrade whose answer nobody reads, whole, spoilt or cut.
async fn upgrade_and_vanish(server: &Server, random: &mut Random) {
    let target = random.one_of(&["/app/demo-key", "/app/nope", "/app/demo-key?protocol=99", "/nothing", "/"]);
    let mut bytes = RawSocket::upgrade_request(target).into_bytes();
    if random.chance(30) {
        bytes = random.spoilt(bytes);
    }
    bytes.extend(message(random, "1.1"));
    let mut raw = RawSocket::over(server.tcp().await);
    let _ = raw.try_write(&bytes).await;
    if random.chance(50) {
        raw.reset();
    }
}

/// An established connection on which frames are sent until they are enough, or until the server has had enough.
async fn send_frames(server: &Server, random: &mut Random) -> u32 {
    let mut raw = RawSocket::over(server.tcp().await);
    let compresses = random.chance(50);
    let offer = if compresses { &[("Sec-WebSocket-Extensions", "permessage-deflate")][..] } else { &[] };
    let head = raw.upgrade_with("/app/demo-key", offer).await;
    assert_eq!(head.contains("permessage-deflate"), compresses, "{head}");
    let mut sent = 0;
    for _ in 0..=random.below(25) {
        let bytes = match random.below(100) {
            0..30 if compresses => compressed(random),
            0..75 => message(random, &raw.id),
            _ => broken_frame(random),
        };
        sent += 1;
        if raw.try_write(&bytes).await.is_err() {
            break;
        }
        if random.chance(50) {
            tokio::task::yield_now().await;
            raw.skip();
        }
    }
    match random.below(4) {
        0 => raw.reset(),
        1 => drop(raw.try_write(&frame(0x88, &1000u16.to_be_bytes())).await),
        2 => drop(raw.try_write(&frame_head(0x81, 1000)).await),
        _ => {}
    }
    sent
}

/// A text frame: a message that is good, or one that is spoilt.
fn message(random: &mut Random, socket_id: &str) -> Vec<u8> {
    let channel = random.one_of(&[
        "news",
        "private-room",
        "presence-room",
        "cache-news",
        "private-cache-room",
        "presence-cache-room",
        "private-encrypted-room",
        "#server-to-user-7",
        "#server-to-user-8",
        "no name",
        "",
    ]);
    let user = random.one_of(&["7", "8", "9", "x"]);
    let channel_data = json!({ "user_id": user, "user_info": { "name": user } }).to_string();
    let user_data = json!({ "id": user, "watchlist": ["7", "8", 9, null] }).to_string();
    let auth = if random.chance(80) {
        channel_auth(socket_id, channel, channel.starts_with("presence-").then_some(&*channel_data))
    } else {
        OTHER.auth(channel)
    };
    let message = match random.below(12) {
        0..=2 => {
            let mut data = json!({ "channel": channel, "auth": auth });
            if channel.starts_with("presence-") {
                data["channel_data"] = channel_data.into();
            }
            json!({ "event": "pusher:subscribe", "data": data })
        }
        3 => json!({ "event": "pusher:unsubscribe", "data": { "channel": channel } }),
        4 | 5 => json!({ "event": "client-x", "channel": channel, "data": any_json(random, 3) }),
        6 => {
            let data = json!({ "auth": user_auth(socket_id, &user_data), "user_data": user_data });
            json!({ "event": "pusher:signin", "data": data })
        }
        7 => json!({ "event": "pusher:ping", "data": any_json(random, 2) }),
        8 => {
            json!({ "event": any_json(random, 2), "data": any_json(random, 3), "channel": any_json(random, 1) })
        }
        9 => json!({ "event": "pusher:subscribe", "data": any_json(random, 3) }),
        10 => any_json(random, 4),
        _ => json!({ "event": "pusher:subscribe", "data": { "channel": "x".repeat(random.below(5000)) } }),
    };
    let text = message.to_string();
    if random.chance(70) {
        return text_frame(&text);
    }
    let text = match random.below(4) {
        0 => "[".repeat(random.below(20_000)).into_bytes(),
        1 => {
            let length = random.below(300);
            random.bytes(length)
        }
        _ => random.spoilt(text.into_bytes()),
    };
    frame(0x81, &text)
}

/// Any value, nested so deep at most.
fn any_json(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth == 0 { 6 } else { 8 }) {
        0 => Value::Null,
        1 => json!(random.chance(50)),
        2 => json!(random.number()),
        3 => json!(random.number() as f64 / 7.0),
        4 => json!(random.one_of(&["", "news", "7", "client-x", "pusher:ping", "é😀\u{0}", "</script>"])),
        5 => json!("x".repeat(random.below(2000))),
        6 => (0..random.below(4)).map(|_| any_json(random, depth - 1)).collect(),
        _ => json!({ "channel": any_json(random, depth - 1), "user_id": any_json(random, depth - 1) }),
    }
}

/// A compressed message: a good one, one that inflates to too much, one that is spoilt, or none at all.
fn compressed(random: &mut Random) -> Vec<u8> {
    let message = match random.below(4) {
        0 => br#"{"event":"pusher:ping","data":{}}"#.to_vec(),
        1 => any_json(random, 4).to_string().into_bytes(),
        2 => vec![b' '; random.below(200_000)],
        _ => {
            let length = random.below(300);
            random.bytes(length)
        }
    };
    let mut payload = if random.chance(80) { deflated(&message) } else { message };
    if random.chance(40) {
        payload = random.spoilt(payload);
    }
    if random.chance(70) {
        return frame(0xc1, &payload);
    }
    // In fragments, of which only the first has the bit, or by mistake another one.
    let (one, two) = payload.split_at(random.below(payload.len() + 1));
    let second = if random.chance(80) { 0x80 } else { 0xc0 };
    [frame(0x41, one), frame(0x89, b"amid"), frame(second, two)].concat()
}

/// As permessage-deflate has it: flushed, without the four bytes that a flush ends with.
fn deflated(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 100);
    let mut compress = flate2::Compress::new(flate2::Compression::fast(), false);
    compress.compress_vec(message, &mut out, flate2::FlushCompress::Sync).unwrap();
    out.truncate(out.len().saturating_sub(4));
    out
}

/// What no client library sends.
fn broken_frame(random: &mut Random) -> Vec<u8> {
    let length = random.below(200);
    let payload = random.bytes(length);
    match random.below(9) {
        0 => payload,
        1 => frame(random.number() as u8, &payload),
        2 => unmasked_frame(0x81, br#"{"event":"pusher:ping"}"#),
        3 => frame_head(0x81, random.number() >> random.below(64)),
        4 => frame(0x01, &payload),
        5 => frame(0x80, &payload),
        6 => frame(0x89, &payload),
        7 => frame(0x88, &payload),
        _ => frame(0x82, &payload),
    }
}

/// Requests over one connection, until the server hangs up or is hung up on; how many.
async fn send_requests(server: &Server, random: &mut Random) -> u32 {
    let mut http = server.http().await;
    let mut sent = 0;
    for _ in 0..=random.below(10) {
        sent += 1;
        let request = request(random);
        match random.below(10) {
            0..=6 => {
                if http.try_write(&request.to_bytes()).await.is_err() || http.answer_or_end().await.is_none()
                {
                    return sent;
                }
            }
            7 => {
                let bytes = random.spoilt(request.to_bytes());
                let _ = http.try_write(&bytes).await;
                return sent;
            }
            8 => {
                let bytes = request.to_bytes();
                let _ = http.try_write(&bytes[..random.below(bytes.len())]).await;
                return sent;
            }
            _ => {
                let framing = random.one_of(&[
                    "Transfer-Encoding: chunked\r\n",
                    "Content-Length: 99999999999\r\n",
                    "Content-Length: x\r\n",
                    "Expect: 100-continue\r\nContent-Length: 5000\r\n",
                ]);
                let _ = http.try_write(&request.head(framing)).await;
                let length = random.below(100);
                let _ = http.try_write(&random.bytes(length)).await;
                return sent;
            }
        }
    }
    sent
}

/// A request that is good, or one that is refused.
fn request(random: &mut Random) -> Request {
    let channel = random.one_of(&[
        "news",
        "private-room",
        "presence-room",
        "cache-news",
        "#server-to-user-7",
        "no name",
    ]);
    let event = json!({ "name": "e", "channel": channel, "data": any_json(random, 3) });
    let body = match random.below(6) {
        0..=2 => event.to_string(),
        3 => json!({ "batch": [event, event] }).to_string(),
        4 => any_json(random, 4).to_string(),
        _ => "{".repeat(random.below(20_000)),
    };
    let request = match random.below(9) {
        0..=2 => Request::post("/apps/1001/events", body),
        3 => Request::post("/apps/1001/batch_events", body),
        4 => Request::get("/apps/1001/channels?info=subscription_count"),
        5 => Request::get("/apps/1001/channels/presence-room/users"),
        6 => Request::post("/apps/1001/users/7/terminate_connections", "{}"),
        7 => Request::get(random.one_of(&[
            "/",
            "/up",
            "/ready",
            "/app/demo-key",
            "/nothing",
            "/apps/1001/connections",
        ])),
        _ => Request::new(random.one_of(&["PUT", "OPTIONS", "DELETE", "BREW"]), "/apps/1001/events"),
    };
    match random.below(10) {
        0 => request,
        1 => request.signed_with(&OTHER),
        2 => request.signed_at(&DEMO, random.number().cast_signed()),
        3 => request.signed().body("changed"),
        4 => request.signed().with("auth_key", DEMO.key),
        _ => request.signed(),
    }
}
