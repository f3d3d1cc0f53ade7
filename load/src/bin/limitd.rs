//! The physical-limit reference: accepts WebSockets, keeps lists of descriptors per
//! channel, and for each POST encodes one frame and writes it to every socket of
//! the channel. Checks nothing, limits nothing, stores nothing. One epoll loop per
//! thread, SO_REUSEPORT listeners, plain send(2).

use clap::Parser;
use memchr::memmem;
use pusherload::sys::{self, Epoll, now_ns};
use pusherload::wire;
use sha1::{Digest, Sha1};
use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

#[derive(Parser, Clone)]
#[command(about = "Physical-limit reference server for pusherload (checks nothing; loopback only)")]
struct Args {
    #[arg(long, default_value = "127.0.0.1")]
    host: Ipv4Addr,
    #[arg(long, default_value_t = 6009)]
    port: u16,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Send all messages that came in during one turn of the loop in one write.
    #[arg(long)]
    coalesce: bool,
    /// Leave out this percentage of deliveries (to test that loss is seen).
    #[arg(long, default_value_t = 0.0)]
    drop: f64,
    /// Send this percentage of deliveries twice.
    #[arg(long, default_value_t = 0.0)]
    dup: f64,
    /// Hold back this percentage of deliveries until after the next message.
    #[arg(long, default_value_t = 0.0)]
    swap: f64,
    /// Change a byte of this percentage of deliveries.
    #[arg(long, default_value_t = 0.0)]
    corrupt: f64,
    /// Wait so long before delivering.
    #[arg(long, default_value_t = 0.0)]
    delay_ms: f64,
    /// Close a connection whose unsent data exceeds this many MiB (0: never).
    #[arg(long, default_value_t = 0.0)]
    max_pending_mb: f64,
    /// A descriptor table per thread: the file limit then holds per thread.
    #[arg(long)]
    private_fds: bool,
    /// Waste this many µs of CPU per delivery (to test the CPU figures).
    #[arg(long, default_value_t = 0.0)]
    burn_us: f64,
}

const LISTEN: u64 = u64::MAX;
const WAKE: u64 = u64::MAX - 1;

#[derive(PartialEq, Clone, Copy)]
enum Kind {
    New,
    Ws,
    Http,
    Dead,
}

struct Conn {
    fd: RawFd,
    kind: Kind,
    left: Vec<u8>,
    pend: Vec<u8>,
    chans: Vec<u32>,
    held: Vec<u8>,
}

type Item = (Arc<[u8]>, Arc<[u8]>);

#[derive(Default)]
struct Inbox {
    q: Mutex<Vec<Item>>,
}

struct Thread {
    a: Args,
    me: usize,
    ep: Epoll,
    conns: Vec<Conn>,
    free: Vec<usize>,
    names: HashMap<Vec<u8>, u32>,
    chans: Vec<Vec<u32>>,
    chan_names: Vec<Vec<u8>>,
    empty_chans: Vec<u32>,
    inboxes: Arc<Vec<Inbox>>,
    wakes: Arc<Vec<RawFd>>,
    later: VecDeque<(u64, Item)>,
    queued: Vec<(u32, Vec<u8>)>,
    /// To be closed for unsent data at the end of this turn.
    doomed: Vec<usize>,
    rng: sys::Rng,
    rbuf: Vec<u8>,
    faults: bool,
    ids: u64,
}

fn base64(b: &[u8]) -> String {
    let t = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut o = String::new();
    for c in b.chunks(3) {
        let n = u32::from(c[0]) << 16 | u32::from(*c.get(1).unwrap_or(&0)) << 8 | u32::from(*c.get(2).unwrap_or(&0));
        for k in 0..4 {
            if k <= c.len() {
                o.push(t[(n >> (18 - 6 * k) & 63) as usize] as char);
            } else {
                o.push('=');
            }
        }
    }
    o
}

fn header<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|c| *c == b'\n').find_map(|l| {
        let c = memchr::memchr(b':', l)?;
        l[..c].eq_ignore_ascii_case(name).then(|| l[c + 1..].trim_ascii())
    })
}

/// The characters of the JSON string that starts after `key` (which ends in a quote).
fn string_after<'a>(b: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let s = memmem::find(b, key)? + key.len();
    let mut e = s;
    loop {
        e += memchr::memchr2(b'"', b'\\', &b[e..])?;
        if b[e] == b'"' {
            return Some(&b[s..e]);
        }
        e += 2;
    }
}

fn text_frame(p: &[u8]) -> Vec<u8> {
    let mut o = Vec::with_capacity(p.len() + 10);
    wire::put_header(&mut o, wire::OP_TEXT, p.len(), None);
    o.extend_from_slice(p);
    o
}

impl Thread {
    fn run(mut self, listener: RawFd) {
        self.ep.add(listener, libc::EPOLLIN, LISTEN).expect("epoll");
        self.ep.add(self.wakes[self.me], libc::EPOLLIN, WAKE).expect("epoll");
        loop {
            let timeout = self.later.front().map(|x| x.0.saturating_sub(now_ns()));
            let n = self.ep.wait(timeout);
            for e in 0..n {
                let ev = self.ep.events[e];
                let (tok, fl) = (ev.u64, ev.events);
                match tok {
                    LISTEN => {
                        for _ in 0..64 {
                            let Some(fd) = sys::accept(listener) else { break };
                            self.add(fd);
                        }
                    }
                    WAKE => {
                        sys::eventfd_clear(self.wakes[self.me]);
                        self.drain_inbox();
                    }
                    _ => self.event(tok as usize, fl),
                }
            }
            while self.later.front().is_some_and(|x| x.0 <= now_ns()) {
                let (_, (ch, frame)) = self.later.pop_front().unwrap();
                self.deliver(&ch, &frame);
            }
            for i in std::mem::take(&mut self.doomed) {
                self.end(i);
            }
            if !self.queued.is_empty() {
                for (ch, frames) in std::mem::take(&mut self.queued) {
                    self.write_all(ch, &frames);
                }
            }
        }
    }

    fn add(&mut self, fd: RawFd) {
        let i = self.free.pop().unwrap_or(self.conns.len());
        let c = Conn { fd, kind: Kind::New, left: Vec::new(), pend: Vec::new(), chans: Vec::new(), held: Vec::new() };
        if i == self.conns.len() {
            self.conns.push(c)
        } else {
            self.conns[i] = c
        }
        self.ep.add(fd, libc::EPOLLIN, i as u64).expect("epoll add");
    }

    fn end(&mut self, i: usize) {
        let c = &mut self.conns[i];
        if c.kind == Kind::Dead {
            return;
        }
        sys::close(c.fd);
        c.kind = Kind::Dead;
        c.left = Vec::new();
        c.pend = Vec::new();
        for ch in std::mem::take(&mut c.chans) {
            self.leave(i, ch);
        }
        self.free.push(i);
    }

    fn leave(&mut self, i: usize, ch: u32) {
        let l = &mut self.chans[ch as usize];
        if let Some(k) = l.iter().rposition(|x| *x == i as u32) {
            l.swap_remove(k);
        }
        if l.is_empty() {
            let name = std::mem::take(&mut self.chan_names[ch as usize]);
            self.names.remove(&name);
            self.chans[ch as usize] = Vec::new();
            self.empty_chans.push(ch);
        }
    }

    fn event(&mut self, i: usize, fl: u32) {
        let c = &mut self.conns[i];
        if c.kind == Kind::Dead {
            return;
        }
        if fl & libc::EPOLLOUT as u32 != 0 && !c.pend.is_empty() {
            let n = sys::send(c.fd, &c.pend);
            if n > 0 {
                c.pend.drain(..n as usize);
            }
            if c.pend.is_empty() {
                c.pend = Vec::new();
                let _ = self.ep.modify(c.fd, libc::EPOLLIN, i as u64);
            }
        }
        if fl & !(libc::EPOLLOUT as u32) == 0 {
            return;
        }
        let mut buf = std::mem::take(&mut self.rbuf);
        let l = c.left.len();
        if l + 65536 > buf.len() {
            buf.resize((l + 65536) * 2, 0);
        }
        buf[..l].copy_from_slice(&c.left);
        c.left.clear();
        let n = sys::recv(c.fd, &mut buf[l..]);
        if n < 0 && sys::errno() == libc::EAGAIN {
            c.left.extend_from_slice(&buf[..l]);
        } else if n <= 0 {
            self.end(i);
        } else {
            let len = l + n as usize;
            let used = self.input(i, &mut buf[..len]);
            if used < len && self.conns[i].kind != Kind::Dead {
                self.conns[i].left.extend_from_slice(&buf[used..len]);
            }
        }
        self.rbuf = buf;
    }

    fn input(&mut self, i: usize, data: &mut [u8]) -> usize {
        let mut pos = 0;
        loop {
            let b = &mut data[pos..];
            if b.is_empty() {
                return pos;
            }
            let used = if self.conns[i].kind == Kind::Ws { self.ws(i, b) } else { self.http(i, b) };
            match used {
                Some(n) if self.conns[i].kind != Kind::Dead => pos += n,
                Some(_) => return data.len(),
                None => return pos,
            }
        }
    }

    fn reply(&mut self, i: usize, b: &[u8]) {
        let c = &self.conns[i];
        let n = if c.pend.is_empty() { sys::send(c.fd, b).max(0) as usize } else { 0 };
        if n < b.len() {
            self.queue(i, &b[n..]);
        }
    }

    /// Keeps what the socket did not take.
    #[cold]
    fn queue(&mut self, i: usize, b: &[u8]) {
        let c = &mut self.conns[i];
        if c.kind == Kind::Dead {
            return;
        }
        if c.pend.is_empty() {
            let _ = self.ep.modify(c.fd, libc::EPOLLIN | libc::EPOLLOUT, i as u64);
        }
        c.pend.extend_from_slice(b);
        if self.a.max_pending_mb > 0.0 && c.pend.len() as f64 > self.a.max_pending_mb * 1048576.0 {
            self.doomed.push(i);
        }
    }

    fn http(&mut self, i: usize, b: &[u8]) -> Option<usize> {
        let h = memmem::find(b, b"\r\n\r\n")?;
        let (head, at) = (&b[..h], h + 4);
        if let Some(key) = header(head, b"sec-websocket-key") {
            let mut s = Sha1::new();
            s.update(key);
            s.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
            self.ids += 1;
            let hello = format!(
                "{{\"event\":\"pusher:connection_established\",\"data\":\"{{\\\"socket_id\\\":\\\"{}.{}\\\",\\\"activity_timeout\\\":120}}\"}}",
                self.me + 1,
                self.ids
            );
            let mut o = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
                base64(&s.finalize())
            )
            .into_bytes();
            o.extend_from_slice(&text_frame(hello.as_bytes()));
            self.conns[i].kind = Kind::Ws;
            self.reply(i, &o);
            return Some(at);
        }
        let n = match header(head, b"content-length") {
            Some(v) => std::str::from_utf8(v).ok()?.parse().unwrap_or(0),
            None => 0usize,
        };
        if b.len() < at + n {
            return None;
        }
        self.conns[i].kind = Kind::Http;
        let body = &b[at..at + n];
        let mut items: Vec<Item> = Vec::new();
        if body.starts_with(b"{\"batch\"") {
            let mut rest = body;
            while let Some(p) = memmem::find(rest, b"{\"name\":\"") {
                rest = &rest[p..];
                items.extend(Self::encode(rest));
                rest = &rest[9..];
            }
        } else {
            items.extend(Self::encode(body));
        }
        // To the other threads first, then the answer, then our own connections: a
        // publish that follows the answer is ordered after this one everywhere.
        for item in &items {
            self.hand_over(item);
        }
        self.reply(i, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}");
        self.drain_inbox();
        for item in items {
            self.take(item);
        }
        Some(at + n)
    }

    /// Channel and whole frame of one event.
    fn encode(body: &[u8]) -> Option<Item> {
        let name = string_after(body, b"\"name\":\"")?;
        let ch = string_after(body, b"\"channels\":[\"").or_else(|| string_after(body, b"\"channel\":\""))?;
        let data = string_after(body, b"\"data\":\"")?;
        let mut p = Vec::with_capacity(body.len() + 16);
        p.extend_from_slice(b"{\"event\":\"");
        p.extend_from_slice(name);
        p.extend_from_slice(b"\",\"channel\":\"");
        p.extend_from_slice(ch);
        p.extend_from_slice(b"\",\"data\":\"");
        p.extend_from_slice(data);
        p.extend_from_slice(b"\"}");
        Some((ch.into(), text_frame(&p).into()))
    }

    fn hand_over(&self, item: &Item) {
        for k in 0..self.a.threads {
            if k != self.me {
                let mut q = self.inboxes[k].q.lock().unwrap();
                q.push(item.clone());
                if q.len() == 1 {
                    sys::eventfd_signal(self.wakes[k]);
                }
            }
        }
    }

    fn drain_inbox(&mut self) {
        if self.a.threads == 1 {
            return;
        }
        let q = std::mem::take(&mut *self.inboxes[self.me].q.lock().unwrap());
        for item in q {
            self.take(item);
        }
    }

    fn take(&mut self, item: Item) {
        if self.a.delay_ms > 0.0 {
            self.later.push_back((now_ns() + (self.a.delay_ms * 1e6) as u64, item));
        } else {
            self.deliver(&item.0, &item.1);
        }
    }

    fn deliver(&mut self, ch: &[u8], frame: &[u8]) {
        let Some(&k) = self.names.get(ch) else { return };
        if self.a.coalesce {
            match self.queued.iter_mut().find(|x| x.0 == k) {
                Some(x) => x.1.extend_from_slice(frame),
                None => self.queued.push((k, frame.to_vec())),
            }
        } else {
            self.write_all(k, frame);
        }
    }

    fn write_all(&mut self, ch: u32, bytes: &[u8]) {
        let subs = std::mem::take(&mut self.chans[ch as usize]);
        for &i in &subs {
            let i = i as usize;
            if self.faults {
                self.faulty(i, bytes);
                continue;
            }
            let c = &self.conns[i];
            let n = if c.pend.is_empty() { sys::send(c.fd, bytes).max(0) as usize } else { 0 };
            if n < bytes.len() {
                self.queue(i, &bytes[n..]);
            }
        }
        self.chans[ch as usize] = subs;
    }

    #[cold]
    fn faulty(&mut self, i: usize, bytes: &[u8]) {
        let mut p = |pct: f64| pct > 0.0 && self.rng.f64() * 100.0 < pct;
        let (drop, dup, swap, bad) = (p(self.a.drop), p(self.a.dup), p(self.a.swap), p(self.a.corrupt));
        if self.a.burn_us > 0.0 {
            let end = now_ns() + (self.a.burn_us * 1000.0) as u64;
            while now_ns() < end {
                std::hint::spin_loop();
            }
        }
        if drop {
            return;
        }
        if swap && self.conns[i].held.is_empty() {
            self.conns[i].held = bytes.to_vec();
            return;
        }
        if bad {
            let mut b = bytes.to_vec();
            let k = b.len() - 4;
            b[k] ^= 1;
            self.reply(i, &b);
        } else {
            self.reply(i, bytes);
        }
        if dup {
            self.reply(i, bytes);
        }
        let held = std::mem::take(&mut self.conns[i].held);
        if !held.is_empty() {
            self.reply(i, &held);
        }
    }

    fn ws(&mut self, i: usize, b: &mut [u8]) -> Option<usize> {
        let f = wire::frame(b)?;
        let total = f.at + f.len;
        let p = &mut b[f.at..total];
        if let Some(k) = f.mask {
            wire::apply_mask(p, k);
        }
        match f.op {
            wire::OP_CLOSE => {
                let mut o = Vec::new();
                wire::put_header(&mut o, wire::OP_CLOSE, p.len().min(2), None);
                o.extend_from_slice(&p[..p.len().min(2)]);
                self.reply(i, &o);
                self.end(i);
            }
            wire::OP_PING => {
                let mut o = Vec::new();
                wire::put_header(&mut o, wire::OP_PONG, p.len(), None);
                o.extend_from_slice(p);
                self.reply(i, &o);
            }
            wire::OP_TEXT => self.text(i, p),
            _ => {}
        }
        Some(total)
    }

    fn text(&mut self, i: usize, p: &[u8]) {
        let Some(ev) = string_after(p, b"\"event\":\"") else { return };
        if ev == b"pusher:ping" {
            self.reply(i, &text_frame(b"{\"event\":\"pusher:pong\",\"data\":{}}"));
            return;
        }
        if ev == b"pusher:pong" {
            return;
        }
        let Some(ch) = string_after(p, b"\"channel\":\"") else { return };
        if ev.starts_with(b"client-") {
            let frame = text_frame(p);
            if let Some(&k) = self.names.get(ch) {
                let subs = self.chans[k as usize].clone();
                for s in subs {
                    if s as usize != i {
                        self.reply(s as usize, &frame);
                    }
                }
            }
            return;
        }
        let known = self.names.get(ch).copied();
        if ev == b"pusher:subscribe" {
            let k = known.unwrap_or_else(|| {
                let k = self.empty_chans.pop().unwrap_or(self.chans.len() as u32);
                if k as usize == self.chans.len() {
                    self.chans.push(Vec::new());
                    self.chan_names.push(Vec::new());
                }
                self.chan_names[k as usize] = ch.to_vec();
                self.names.insert(ch.to_vec(), k);
                k
            });
            self.chans[k as usize].push(i as u32);
            self.conns[i].chans.push(k);
            let mut s = b"{\"event\":\"pusher_internal:subscription_succeeded\",\"channel\":\"".to_vec();
            s.extend_from_slice(ch);
            s.extend_from_slice(b"\",\"data\":\"{}\"}");
            self.reply(i, &text_frame(&s));
        } else if ev == b"pusher:unsubscribe"
            && let Some(k) = known
        {
            self.conns[i].chans.retain(|x| *x != k);
            self.leave(i, k);
        }
    }
}

fn main() {
    let a = Args::parse();
    assert!(a.host.is_loopback() || a.host.is_unspecified(), "loopback only");
    let limit = sys::raise_nofile();
    let inboxes = Arc::new((0..a.threads).map(|_| Inbox::default()).collect::<Vec<_>>());
    let wakes = Arc::new((0..a.threads).map(|_| sys::eventfd()).collect::<Vec<_>>());
    eprintln!("limitd: pid {}, {}:{}, {} threads, {limit} files", std::process::id(), a.host, a.port, a.threads);
    let hs: Vec<_> = (0..a.threads)
        .map(|me| {
            let (a, inboxes, wakes) = (a.clone(), inboxes.clone(), wakes.clone());
            std::thread::spawn(move || {
                if a.private_fds {
                    sys::unshare_files().expect("unshare(CLONE_FILES)");
                }
                let l = sys::listen(SocketAddrV4::new(a.host, a.port), 4096).expect("listen");
                let faults = a.drop + a.dup + a.swap + a.corrupt + a.burn_us > 0.0;
                Thread {
                    me,
                    ep: Epoll::new(256),
                    conns: Vec::new(),
                    free: Vec::new(),
                    names: HashMap::new(),
                    chans: Vec::new(),
                    chan_names: Vec::new(),
                    empty_chans: Vec::new(),
                    inboxes,
                    wakes,
                    later: VecDeque::new(),
                    queued: Vec::new(),
                    doomed: Vec::new(),
                    rng: sys::Rng::new(),
                    rbuf: vec![0; 256 << 10],
                    faults,
                    ids: 0,
                    a,
                }
                .run(l)
            })
        })
        .collect();
    for h in hs {
        let _ = h.join();
    }
}
