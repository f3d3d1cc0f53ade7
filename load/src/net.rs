//! The client engine: one epoll loop, any number of WebSocket connections and a
//! pool of keep-alive HTTP connections. One `recv` per readiness event into one
//! shared buffer; frames are parsed in place; only an incomplete tail is copied.

use crate::inflate::Inflater;
use crate::sys::{self, Epoll};
use crate::{http, inflate, tls, wire};
use memchr::memmem;
use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::RawFd;

const T_HTTP: u64 = 1 << 40;
/// Edge-triggered: a level-triggered epoll looks at each socket a second time. A
/// read shorter than the buffer has emptied the socket; RDHUP tells of an end that
/// came along with data.
const IN: i32 = libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET;
const ENDED: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;
const WS_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const WS_ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum St {
    Connecting,
    Upgrading,
    Open,
    Established,
    Subscribed,
    Closing,
    Closed,
}

pub struct Ws {
    pub fd: RawFd,
    /// Unique per connection: slots and descriptors are reused.
    serial: usize,
    pub st: St,
    /// Counted in `Net::ready`.
    ready: bool,
    out: bool,
    /// Not read from at all.
    pub deaf: bool,
    /// Seconds of silence after which the client pings (from the server).
    activity_s: u16,
    last_rx_s: u32,
    pub t0: u64,
    left: Vec<u8>,
    pend: Vec<u8>,
    frag: Vec<u8>,
    tls: Option<Box<tls::Session>>,
    /// permessage-deflate was agreed to.
    pub deflate: bool,
    /// The scenario's own number for this connection.
    pub user: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HSt {
    Dead,
    Idle,
    Busy,
}

struct Http {
    fd: RawFd,
    st: HSt,
    left: Vec<u8>,
    pend: Vec<u8>,
    tag: u64,
    t_sent: u64,
}

enum Got {
    Nothing,
    /// Less than there was room for: the socket is empty.
    Short,
    Full,
}

#[derive(Clone)]
pub struct NetCfg {
    pub host: Ipv4Addr,
    /// HTTP, and WebSockets if `ws_host` and `ws_port` are the same.
    pub port: u16,
    pub ws_host: Ipv4Addr,
    pub ws_port: u16,
    /// TLS for WebSockets.
    pub tls: bool,
    /// Offer permessage-deflate.
    pub deflate: bool,
    pub key: String,
    pub src_ips: usize,
    pub dst_ips: usize,
    pub open_window: usize,
    pub open_timeout_ns: u64,
    pub rcvbuf: Option<i32>,
    pub max_http: usize,
    /// Sleep this long after each batch of events instead of waiting at once.
    pub poll_ns: u64,
    pub ready_at: St,
    pub verbose: bool,
}

pub trait Handler {
    /// `pusher:connection_established` arrived.
    fn on_established(&mut self, net: &mut Net, i: usize, socket_id: &[u8]);
    fn on_subscribed(&mut self, _net: &mut Net, _i: usize, _p: &[u8]) {}
    /// A text frame with a marker at `p[at..]`.
    fn on_msg(&mut self, _net: &mut Net, _i: usize, _p: &[u8], _at: usize, _now: u64) {}
    /// Any other text frame.
    fn on_other(&mut self, _net: &mut Net, _i: usize, _p: &[u8]) {}
    /// The connection ended (not called for `close_local`).
    fn on_closed(&mut self, _net: &mut Net, _i: usize, _was: St) {}
    /// A request finished; status 0 means the connection broke first.
    fn on_http(&mut self, _net: &mut Net, _tag: u64, _status: u16, _t_sent: u64, _now: u64) {}
}

pub struct Net {
    pub cfg: NetCfg,
    ep: Epoll,
    pub conns: Vec<Ws>,
    free: Vec<usize>,
    https: Vec<Http>,
    http_idle: VecDeque<usize>,
    rbuf: Vec<u8>,
    tmp: Vec<u8>,
    rng: sys::Rng,
    start_ns: u64,
    upgrade: Vec<u8>,
    tls: Option<tls::Config>,
    plain: Vec<u8>,
    sealed: Vec<u8>,
    inflater: Inflater,
    opened: usize,
    // Opening.
    pub want_open: usize,
    pub opening: usize,
    pub ready: usize,
    pub failed: usize,
    pub lost: usize,
    last_sweep: u64,
    pub client_pings: bool,
    // Counters.
    pub bytes_in: u64,
    pub reads: u64,
    pub waits: u64,
    pub pings: u64,
    pub pings_sent: u64,
    pub pongs: u64,
    /// Messages that came compressed, and the bytes they became.
    pub deflated: u64,
    pub inflated_bytes: u64,
    pub protocol_errors: u64,
    pub http_reconnects: u64,
    /// Close reasons, pusher:error messages, HTTP errors: text and count.
    pub notes: BTreeMap<String, u64>,
}

/// First marker-free way to tell the event of a control frame.
fn has(p: &[u8], s: &str) -> bool {
    memmem::find(&p[..p.len().min(400)], s.as_bytes()).is_some()
}

/// Digits and dots after `"socket_id":"`, whatever the escaping.
fn socket_id(p: &[u8]) -> Option<&[u8]> {
    let a = memmem::find(p, b"socket_id")? + 9;
    let s = a + p[a..].iter().position(|c| c.is_ascii_alphanumeric())?;
    let l = p[s..].iter().position(|c| !(c.is_ascii_alphanumeric() || *c == b'.' || *c == b'-'))?;
    Some(&p[s..s + l])
}

fn number_after(p: &[u8], name: &str) -> Option<u64> {
    let a = memmem::find(p, name.as_bytes())? + name.len();
    let s = a + p[a..].iter().position(u8::is_ascii_digit)?;
    let l = p[s..].iter().position(|c| !c.is_ascii_digit())?;
    std::str::from_utf8(&p[s..s + l]).ok()?.parse().ok()
}

impl Net {
    pub fn new(cfg: NetCfg) -> Net {
        let upgrade = format!(
            "GET /app/{}?protocol=7&client=js&version=8.4.0&flash=false HTTP/1.1\r\nHost: {}:{}\r\n\
             Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {WS_KEY}\r\n\
             Sec-WebSocket-Version: 13\r\nOrigin: http://{}\r\n{}\r\n",
            cfg.key,
            cfg.ws_host,
            cfg.ws_port,
            cfg.ws_host,
            if cfg.deflate { inflate::OFFER } else { "" }
        );
        let tls = cfg.tls.then(tls::Config::new);
        Net {
            cfg,
            tls,
            plain: Vec::new(),
            sealed: Vec::new(),
            inflater: Inflater::new(),
            ep: Epoll::new(256),
            conns: Vec::new(),
            free: Vec::new(),
            https: Vec::new(),
            http_idle: VecDeque::new(),
            rbuf: vec![0; 256 << 10],
            tmp: Vec::new(),
            rng: sys::Rng::new(),
            start_ns: sys::now_ns(),
            upgrade: upgrade.into_bytes(),
            opened: 0,
            want_open: 0,
            opening: 0,
            ready: 0,
            failed: 0,
            lost: 0,
            last_sweep: 0,
            client_pings: true,
            bytes_in: 0,
            reads: 0,
            waits: 0,
            pings: 0,
            pings_sent: 0,
            pongs: 0,
            deflated: 0,
            inflated_bytes: 0,
            protocol_errors: 0,
            http_reconnects: 0,
            notes: BTreeMap::new(),
        }
    }

    pub fn note(&mut self, s: &str) {
        let s: String = s.chars().take(160).collect();
        if self.cfg.verbose && !self.notes.contains_key(&s) {
            eprintln!("note: {s}");
        }
        if self.notes.len() < 64 || self.notes.contains_key(&s) {
            *self.notes.entry(s).or_default() += 1;
        }
    }

    fn src_ip(&self, n: usize) -> Option<Ipv4Addr> {
        if self.cfg.src_ips <= 1 {
            return None;
        }
        let k = n % self.cfg.src_ips;
        Some(Ipv4Addr::new(127, 0, (k / 250) as u8, (2 + k % 250) as u8))
    }

    fn dst(&self, n: usize) -> SocketAddrV4 {
        let mut ip = u32::from(self.cfg.ws_host);
        if self.cfg.dst_ips > 1 {
            ip += (n / self.cfg.src_ips.max(1) % self.cfg.dst_ips) as u32;
        }
        SocketAddrV4::new(Ipv4Addr::from(ip), self.cfg.ws_port)
    }

    /// Starts one connection; false when the connect itself failed.
    pub fn open_ws<H: Handler>(&mut self, h: &mut H, user: u32) -> bool {
        let n = self.opened;
        self.opened += 1;
        let fd = match sys::connect(self.src_ip(n), self.dst(n), self.cfg.rcvbuf) {
            Ok(fd) => fd,
            Err(e) => {
                self.note(&format!("connect: {e}"));
                self.failed += 1;
                return false;
            }
        };
        let i = self.free.pop().unwrap_or(self.conns.len());
        let c = Ws {
            fd,
            serial: n,
            st: St::Connecting,
            ready: false,
            out: false,
            deaf: false,
            activity_s: 120,
            last_rx_s: 0,
            t0: sys::now_ns(),
            left: Vec::new(),
            pend: Vec::new(),
            frag: Vec::new(),
            tls: None,
            deflate: false,
            user,
        };
        // With TLS: the start of the handshake; the session keeps the request until its end.
        let mut c = c;
        if let Some(config) = &self.tls {
            let mut session = tls::Session::new(config, &mut c.pend);
            session.seal(&self.upgrade, &mut c.pend);
            c.tls = Some(Box::new(session));
        }
        if i == self.conns.len() {
            self.conns.push(c)
        } else {
            self.conns[i] = c
        }
        self.opening += 1;
        // The request usually goes out at once: a loopback handshake is already done.
        let first = if self.tls.is_some() { &self.conns[i].pend } else { &self.upgrade };
        let sent = sys::send(fd, first);
        let ev = if sent == first.len() as isize {
            self.conns[i].st = St::Upgrading;
            self.conns[i].pend = Vec::new();
            IN
        } else if sent < 0 && matches!(sys::errno(), libc::EAGAIN | libc::ENOTCONN | libc::EINPROGRESS) {
            libc::EPOLLOUT
        } else {
            self.drop_conn(h, i, "connect: refused or reset", false);
            return false;
        };
        if let Err(e) = self.ep.add(fd, ev, i as u64) {
            self.drop_conn(h, i, &format!("epoll: {e}"), false);
            return false;
        }
        true
    }

    fn drop_conn<H: Handler>(&mut self, h: &mut H, i: usize, why: &str, local: bool) {
        let c = &mut self.conns[i];
        let was = c.st;
        if was == St::Closed {
            return;
        }
        sys::close(c.fd);
        c.fd = -1;
        c.st = St::Closed;
        c.left = Vec::new();
        c.pend = Vec::new();
        c.frag = Vec::new();
        c.tls = None;
        if c.ready {
            self.ready -= 1;
            if !local && was != St::Closing {
                self.lost += 1;
            }
        } else {
            self.opening -= 1;
            if !local {
                self.failed += 1;
            }
        }
        self.free.push(i);
        if !local {
            if was != St::Closing {
                self.note(why);
            }
            h.on_closed(self, i, was);
        }
    }

    /// Closes without telling the handler.
    pub fn close_local<H: Handler>(&mut self, h: &mut H, i: usize) {
        self.drop_conn(h, i, "", true);
    }

    fn mark_ready(&mut self, i: usize) {
        if !self.conns[i].ready {
            self.conns[i].ready = true;
            self.opening -= 1;
            self.ready += 1;
        }
    }

    /// Sends a masked frame.
    pub fn send_frame(&mut self, i: usize, op: u8, payload: &[u8]) {
        let c = &mut self.conns[i];
        if c.st == St::Closed {
            return;
        }
        let k = (self.rng.bits() as u32).to_ne_bytes();
        let t = &mut self.tmp;
        t.clear();
        wire::put_header(t, op, payload.len(), Some(k));
        let at = t.len();
        t.extend_from_slice(payload);
        wire::apply_mask(&mut t[at..], k);
        let Some(session) = &mut c.tls else {
            let t = std::mem::take(t);
            self.send_bytes(i, &t);
            self.tmp = t;
            return;
        };
        let mut sealed = std::mem::take(&mut self.sealed);
        sealed.clear();
        session.seal(t, &mut sealed);
        self.send_bytes(i, &sealed);
        self.sealed = sealed;
    }

    /// Sends what goes on the wire as it is.
    fn send_bytes(&mut self, i: usize, b: &[u8]) {
        let c = &mut self.conns[i];
        let mut done = 0;
        if c.pend.is_empty() {
            // An error here shows up as a read event too.
            done = sys::send(c.fd, b).max(0) as usize;
        }
        if done < b.len() {
            c.pend.extend_from_slice(&b[done..]);
            if !c.out {
                c.out = true;
                let ev = if c.deaf { 0 } else { IN };
                let _ = self.ep.modify(c.fd, ev | libc::EPOLLOUT, i as u64);
            }
        }
    }

    pub fn send_text(&mut self, i: usize, s: &str) {
        self.send_frame(i, wire::OP_TEXT, s.as_bytes());
    }

    pub fn subscribe(&mut self, i: usize, channel: &str, auth: Option<&str>, data: Option<&str>) {
        let mut s = format!("{{\"event\":\"pusher:subscribe\",\"data\":{{\"channel\":\"{channel}\"");
        if let Some(a) = auth {
            s.push_str(&format!(",\"auth\":\"{a}\""));
        }
        if let Some(d) = data {
            s.push_str(&format!(",\"channel_data\":\"{}\"", wire::esc(d)));
        }
        s.push_str("}}");
        self.send_text(i, &s);
    }

    /// Sends a close frame (1000) and expects the server to end the connection.
    pub fn start_close(&mut self, i: usize) {
        self.send_frame(i, wire::OP_CLOSE, &1000u16.to_be_bytes());
        self.conns[i].st = St::Closing;
    }

    /// Stops reading from connection `i` for good (until `hear`).
    pub fn deafen(&mut self, i: usize) {
        self.conns[i].deaf = true;
        let _ = self.ep.modify(self.conns[i].fd, libc::EPOLLRDHUP, i as u64);
    }

    pub fn hear(&mut self, i: usize) {
        self.conns[i].deaf = false;
        let _ = self.ep.modify(self.conns[i].fd, IN, i as u64);
    }

    // ---- HTTP ----

    /// An idle (possibly new) HTTP connection, or None while all are busy.
    pub fn http_take(&mut self) -> Option<usize> {
        if let Some(x) = self.http_idle.pop_front() {
            return Some(x);
        }
        if self.https.len() >= self.cfg.max_http {
            return None;
        }
        self.https.push(Http { fd: -1, st: HSt::Dead, left: Vec::new(), pend: Vec::new(), tag: 0, t_sent: 0 });
        Some(self.https.len() - 1)
    }

    pub fn http_busy(&self) -> usize {
        self.https.len() - self.http_idle.len()
    }

    /// Sends one whole request on connection `k` (from `http_take`).
    pub fn http_send(&mut self, k: usize, req: &[u8], tag: u64, now: u64) -> Result<(), String> {
        let x = &mut self.https[k];
        if x.st == HSt::Dead {
            let dst = SocketAddrV4::new(self.cfg.host, self.cfg.port);
            match sys::connect(None, dst, None) {
                Ok(fd) => {
                    x.fd = fd;
                    x.left.clear();
                    x.pend.clear();
                    self.ep.add(fd, IN, T_HTTP | k as u64).map_err(|e| e.to_string())?;
                }
                Err(e) => {
                    self.http_idle.push_back(k);
                    return Err(format!("http connect: {e}"));
                }
            }
        }
        x.st = HSt::Busy;
        x.tag = tag;
        x.t_sent = now;
        let n = sys::send(x.fd, req).max(0) as usize;
        if n < req.len() {
            x.pend.extend_from_slice(&req[n..]);
            let _ = self.ep.modify(x.fd, IN | libc::EPOLLOUT, T_HTTP | k as u64);
        }
        Ok(())
    }

    fn http_event<H: Handler>(&mut self, h: &mut H, k: usize, fl: u32) {
        let x = &mut self.https[k];
        if x.st == HSt::Dead {
            return;
        }
        if fl & libc::EPOLLOUT as u32 != 0 && !x.pend.is_empty() {
            let n = sys::send(x.fd, &x.pend).max(0) as usize;
            x.pend.drain(..n);
            if x.pend.is_empty() {
                let _ = self.ep.modify(x.fd, IN, T_HTTP | k as u64);
            }
        }
        if fl & !(libc::EPOLLOUT as u32) == 0 {
            return;
        }
        let mut buf = std::mem::take(&mut self.rbuf);
        let l = x.left.len();
        buf[..l].copy_from_slice(&x.left);
        x.left.clear();
        let n = sys::recv(x.fd, &mut buf[l..]);
        let again = n < 0 && sys::errno() == libc::EAGAIN;
        let eof = n <= 0 && !again;
        let data = &buf[..l + n.max(0) as usize];
        let now = sys::now_ns();
        match http::response(data, eof) {
            Some(r) if x.st == HSt::Busy => {
                let (tag, t) = (x.tag, x.t_sent);
                x.st = HSt::Idle;
                if r.total < data.len() {
                    self.protocol_errors += 1;
                }
                if r.close || eof || fl & ENDED != 0 {
                    sys::close(x.fd);
                    x.st = HSt::Dead;
                    self.http_reconnects += 1;
                }
                if r.status != 200 {
                    let b = String::from_utf8_lossy(&data[r.body.clone()]).into_owned();
                    self.note(&format!("http {}: {}", r.status, b.trim()));
                }
                self.http_idle.push_back(k);
                self.rbuf = buf;
                h.on_http(self, tag, r.status, t, now);
                return;
            }
            _ if eof => {
                sys::close(x.fd);
                let was = x.st;
                x.st = HSt::Dead;
                self.rbuf = buf;
                self.http_reconnects += 1;
                if was == HSt::Busy {
                    let (tag, t) = (x.tag, x.t_sent);
                    self.http_idle.push_back(k);
                    self.note("http: connection ended before the response");
                    h.on_http(self, tag, 0, t, now);
                }
                return;
            }
            _ => x.left.extend_from_slice(data),
        }
        self.rbuf = buf;
    }

    // ---- events ----

    /// Waits at most `timeout_ns` for events and handles them.
    pub fn poll<H: Handler>(&mut self, h: &mut H, timeout_ns: u64) {
        if self.cfg.poll_ns > 0 {
            let t = timeout_ns.min(self.cfg.poll_ns);
            let ts = libc::timespec { tv_sec: 0, tv_nsec: t as libc::c_long };
            // SAFETY: valid timespec.
            unsafe { libc::nanosleep(&ts, std::ptr::null_mut()) };
        }
        let mut wait = if self.cfg.poll_ns > 0 { 0 } else { timeout_ns };
        let rounds = if self.cfg.poll_ns > 0 { 2 + self.conns.len() / self.ep.events.len() } else { 1 };
        for _ in 0..rounds {
            let n = self.ep.wait(Some(wait));
            wait = 0;
            self.waits += 1;
            for e in 0..n {
                let ev = self.ep.events[e];
                let (tok, fl) = (ev.u64, ev.events);
                if tok & T_HTTP != 0 {
                    self.http_event(h, (tok & !T_HTTP) as usize, fl);
                } else {
                    self.ws_event(h, tok as usize, fl);
                }
            }
            if n < self.ep.events.len() {
                break;
            }
        }
        let now = sys::now_ns();
        if now - self.last_sweep > 250_000_000 {
            self.last_sweep = now;
            self.sweep(h, now);
        }
    }

    /// Ends stuck handshakes; pings where the client is due to.
    fn sweep<H: Handler>(&mut self, h: &mut H, now: u64) {
        let s = ((now - self.start_ns) / 1_000_000_000) as u32;
        for i in 0..self.conns.len() {
            let c = &mut self.conns[i];
            if c.st == St::Closed {
                continue;
            }
            if !c.ready && now - c.t0 > self.cfg.open_timeout_ns {
                let why = format!("timeout while {:?}", c.st);
                self.drop_conn(h, i, &why, false);
            } else if c.ready && self.client_pings && !c.deaf && c.st < St::Closing {
                // pusher-js pings after activity_timeout seconds without a message.
                if s.saturating_sub(c.last_rx_s) >= u32::from(c.activity_s) {
                    c.last_rx_s = s;
                    self.pings_sent += 1;
                    self.send_text(i, "{\"event\":\"pusher:ping\",\"data\":{}}");
                }
            }
        }
    }

    fn ws_event<H: Handler>(&mut self, h: &mut H, i: usize, fl: u32) {
        let c = &mut self.conns[i];
        match c.st {
            St::Closed => return,
            St::Connecting => {
                let e = sys::so_error(c.fd);
                if e != 0 {
                    let why = format!("connect: {}", std::io::Error::from_raw_os_error(e));
                    self.drop_conn(h, i, &why, false);
                } else if fl & libc::EPOLLOUT as u32 != 0 {
                    let first = if c.tls.is_some() { &c.pend } else { &self.upgrade };
                    let n = sys::send(c.fd, first);
                    if n == first.len() as isize {
                        c.st = St::Upgrading;
                        c.pend = Vec::new();
                        let _ = self.ep.modify(c.fd, IN, i as u64);
                    } else {
                        self.drop_conn(h, i, "connect: request not sent", false);
                    }
                }
                return;
            }
            _ => {}
        }
        if fl & libc::EPOLLOUT as u32 != 0 && !c.pend.is_empty() {
            let n = sys::send(c.fd, &c.pend).max(0) as usize;
            c.pend.drain(..n);
            if c.pend.is_empty() {
                c.out = false;
                let ev = if c.deaf { libc::EPOLLRDHUP } else { IN };
                let _ = self.ep.modify(c.fd, ev, i as u64);
            }
        }
        if c.deaf {
            if fl & ENDED != 0 {
                let why = if fl & libc::EPOLLERR as u32 != 0 { "slow: reset" } else { "slow: ended" };
                self.drop_conn(h, i, why, false);
            }
            return;
        }
        if fl & !(libc::EPOLLOUT as u32) != 0 {
            loop {
                match self.read(h, i) {
                    Got::Full => {}
                    Got::Short if fl & ENDED != 0 => {}
                    _ => break,
                }
            }
        }
    }

    /// Reads once and handles what came.
    fn read<H: Handler>(&mut self, h: &mut H, i: usize) -> Got {
        let mut buf = std::mem::take(&mut self.rbuf);
        let c = &mut self.conns[i];
        let (fd, serial) = (c.fd, c.serial);
        let secret = c.tls.is_some();
        let l = if secret { 0 } else { c.left.len() };
        if l > 0 {
            if l + 65536 > buf.len() {
                buf.resize((l + 65536) * 2, 0);
            }
            buf[..l].copy_from_slice(&c.left);
            c.left.clear();
        }
        let n = sys::recv(fd, &mut buf[l..]);
        self.reads += 1;
        if n <= 0 {
            if n < 0 && sys::errno() == libc::EAGAIN {
                c.left.extend_from_slice(&buf[..l]);
                self.rbuf = buf;
                return Got::Nothing;
            }
            let why = if n == 0 {
                "ended by the server".to_string()
            } else {
                format!("read: {}", std::io::Error::last_os_error())
            };
            self.rbuf = buf;
            self.drop_conn(h, i, &why, false);
            return Got::Nothing;
        }
        let full = l + n as usize == buf.len();
        self.bytes_in += n as u64;
        let now = sys::now_ns();
        c.last_rx_s = ((now - self.start_ns) / 1_000_000_000) as u32;
        if secret {
            let r = self.read_secret(h, i, &buf[..n as usize], now);
            self.rbuf = buf;
            if let Err(e) = r {
                self.drop_conn(h, i, &e, false);
            }
            let alive = self.conns[i].serial == serial && self.conns[i].fd >= 0;
            return match (alive, full) {
                (false, _) => Got::Nothing,
                (true, true) => Got::Full,
                (true, false) => Got::Short,
            };
        }
        let data = &buf[..l + n as usize];
        let used = self.consume(h, i, data, now);
        let alive = self.conns[i].serial == serial && self.conns[i].fd >= 0;
        if alive && used < data.len() {
            self.conns[i].left.extend_from_slice(&data[used..]);
        }
        self.rbuf = buf;
        match (alive, full) {
            (false, _) => Got::Nothing,
            (true, true) => Got::Full,
            (true, false) => Got::Short,
        }
    }

    /// Handles what `cipher` says by TLS.
    fn read_secret<H: Handler>(&mut self, h: &mut H, i: usize, cipher: &[u8], now: u64) -> Result<(), String> {
        let mut plain = std::mem::take(&mut self.plain);
        let mut answer = std::mem::take(&mut self.sealed);
        plain.clear();
        answer.clear();
        let c = &mut self.conns[i];
        let serial = c.serial;
        plain.append(&mut c.left);
        let r = c.tls.as_mut().expect("a session").open(cipher, &mut plain, &mut answer);
        if !answer.is_empty() {
            self.send_bytes(i, &answer);
        }
        self.sealed = answer;
        let used = self.consume(h, i, &plain, now);
        if self.conns[i].serial == serial && self.conns[i].fd >= 0 && used < plain.len() {
            self.conns[i].left.extend_from_slice(&plain[used..]);
        }
        self.plain = plain;
        r
    }

    /// Handles all whole frames in `data`; returns the bytes used.
    fn consume<H: Handler>(&mut self, h: &mut H, i: usize, data: &[u8], now: u64) -> usize {
        let serial = self.conns[i].serial;
        let mut pos = 0;
        if self.conns[i].st == St::Upgrading {
            let Some(e) = memmem::find(data, b"\r\n\r\n") else { return 0 };
            let head = &data[..e];
            if !head.starts_with(b"HTTP/1.1 101") || memmem::find(head, WS_ACCEPT).is_none() {
                let l = String::from_utf8_lossy(data);
                let why = format!("upgrade refused: {}", l.lines().next().unwrap_or(""));
                self.drop_conn(h, i, &why, false);
                return data.len();
            }
            self.conns[i].deflate =
                self.cfg.deflate && head.to_ascii_lowercase().windows(18).any(|w| w == b"permessage-deflate");
            self.conns[i].st = St::Open;
            pos = e + 4;
        }
        while let Some(f) = wire::frame(&data[pos..]) {
            let p = &data[pos + f.at..pos + f.at + f.len];
            pos += f.at + f.len;
            if f.rsv1 && f.fin && f.op == wire::OP_TEXT && self.conns[i].deflate {
                self.compressed(h, i, p, now);
            } else if f.rsv1 {
                self.protocol_errors += 1;
                self.note("protocol: a compressed frame that was not agreed to, or a fragment of one");
            } else if f.fin && f.op == wire::OP_TEXT && self.conns[i].st >= St::Established {
                match wire::find_mark(p) {
                    Some(at) => h.on_msg(self, i, p, at, now),
                    None => self.control(h, i, p),
                }
            } else {
                self.rare(h, i, f.op, f.fin, f.mask.is_some(), p, now);
            }
            if self.conns[i].serial != serial || self.conns[i].fd < 0 {
                return data.len();
            }
        }
        pos
    }

    /// A whole compressed message.
    fn compressed<H: Handler>(&mut self, h: &mut H, i: usize, p: &[u8], now: u64) {
        let Some(plain) = self.inflater.inflate(p) else {
            self.protocol_errors += 1;
            self.note("protocol: a message that cannot be inflated");
            return;
        };
        self.deflated += 1;
        self.inflated_bytes += plain.len() as u64;
        match wire::find_mark(&plain) {
            Some(at) if self.conns[i].st >= St::Established => h.on_msg(self, i, &plain, at, now),
            _ => self.control(h, i, &plain),
        }
        self.inflater.keep(p, plain);
    }

    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    fn rare<H: Handler>(&mut self, h: &mut H, i: usize, op: u8, fin: bool, masked: bool, p: &[u8], now: u64) {
        if masked {
            self.protocol_errors += 1;
            self.note("protocol: masked frame from the server");
        }
        match op {
            wire::OP_PING => self.send_frame(i, wire::OP_PONG, p),
            wire::OP_PONG => {}
            wire::OP_CLOSE => {
                if self.conns[i].st != St::Closing {
                    let code = if p.len() >= 2 { u16::from_be_bytes([p[0], p[1]]) } else { 1005 };
                    let why = String::from_utf8_lossy(p.get(2..).unwrap_or(b"")).into_owned();
                    self.send_frame(i, wire::OP_CLOSE, p.get(..2).unwrap_or(b""));
                    self.drop_conn(h, i, &format!("close frame {code} {why}"), false);
                } else {
                    // The answer to ours: done, the server closes the socket or we do.
                    self.drop_conn(h, i, "", false);
                }
            }
            wire::OP_TEXT if fin => self.control(h, i, p),
            wire::OP_TEXT | wire::OP_CONT => {
                self.conns[i].frag.extend_from_slice(p);
                if fin {
                    let whole = std::mem::take(&mut self.conns[i].frag);
                    match wire::find_mark(&whole) {
                        Some(at) if self.conns[i].st >= St::Established => h.on_msg(self, i, &whole, at, now),
                        _ => self.control(h, i, &whole),
                    }
                }
            }
            _ => {
                self.protocol_errors += 1;
                self.note(&format!("protocol: unexpected opcode {op}"));
            }
        }
    }

    /// Text frames without a marker.
    #[inline(never)]
    fn control<H: Handler>(&mut self, h: &mut H, i: usize, p: &[u8]) {
        let st = self.conns[i].st;
        if st == St::Open && has(p, "pusher:connection_established") {
            let Some(id) = socket_id(p) else {
                self.drop_conn(h, i, "protocol: no socket_id", false);
                return;
            };
            if let Some(a) = number_after(p, "activity_timeout") {
                self.conns[i].activity_s = a.clamp(1, 65000) as u16;
            }
            self.conns[i].st = St::Established;
            h.on_established(self, i, id);
            if self.cfg.ready_at == St::Established && self.conns[i].st == St::Established {
                self.mark_ready(i);
            }
        } else if has(p, "pusher:ping") {
            self.pings += 1;
            self.send_text(i, "{\"event\":\"pusher:pong\",\"data\":{}}");
        } else if has(p, "pusher_internal:subscription_succeeded") {
            self.subscribed(h, i, p);
        } else if has(p, "pusher:pong") {
            self.pongs += 1;
        } else if has(p, "pusher:error") || has(p, "pusher:subscription_error") {
            self.note(&format!("server: {}", String::from_utf8_lossy(p)));
            h.on_other(self, i, p);
        } else {
            h.on_other(self, i, p);
        }
    }

    /// Marks connection `i` subscribed and tells the handler.
    pub fn subscribed<H: Handler>(&mut self, h: &mut H, i: usize, p: &[u8]) {
        if self.conns[i].st == St::Established {
            self.conns[i].st = St::Subscribed;
        }
        self.mark_ready(i);
        h.on_subscribed(self, i, p);
    }

    // ---- opening and closing many ----

    /// Opens `n` connections (numbered from `first`), at most `open_window` at a
    /// time, and waits until they are ready. `retries`: failures made good.
    pub fn open_all<H: Handler>(
        &mut self,
        h: &mut H,
        first: usize,
        n: usize,
        mut retries: usize,
    ) -> Result<f64, String> {
        let t = sys::now_ns();
        let (want_ready, base_failed) = (self.ready + n, self.failed);
        let mut started = 0;
        let mut made_good = 0;
        let mut progress = (self.ready, t);
        loop {
            let now = sys::now_ns();
            let failed = self.failed - base_failed - made_good;
            if failed > 0 && retries > 0 {
                let k = failed.min(retries);
                retries -= k;
                made_good += k;
                // Numbers of failed connections are not reused: the scenarios that
                // retry do not depend on them.
                started -= k;
            }
            while started < n && self.opening < self.cfg.open_window {
                self.open_ws(h, (first + started) as u32);
                started += 1;
            }
            let failed = self.failed - base_failed - made_good;
            if self.ready + failed >= want_ready && self.opening == 0 && started >= n {
                break;
            }
            if self.ready != progress.0 {
                progress = (self.ready, now);
            } else if now - progress.1 > 3 * self.cfg.open_timeout_ns {
                return Err(format!("opening stalled: {} of {want_ready} ready; {:?}", self.ready, self.notes));
            }
            if failed > 1000.max(n / 2) {
                return Err(format!("too many failures while opening: {:?}", self.notes));
            }
            self.poll(h, 100_000_000);
        }
        Ok((sys::now_ns() - t) as f64 / 1e9)
    }

    /// An error unless nearly all of `n` connections are ready.
    pub fn require(&self, n: usize) -> Result<(), String> {
        if self.ready * 100 < n * 99 {
            return Err(format!("only {} of {n} connections ready: {:?}", self.ready, self.notes));
        }
        Ok(())
    }

    /// Closes everything, with close frames, and waits briefly for the answers.
    pub fn close_all<H: Handler>(&mut self, h: &mut H) {
        self.client_pings = false;
        for i in 0..self.conns.len() {
            if self.conns[i].st < St::Closing {
                if self.conns[i].deaf || !self.conns[i].ready {
                    self.close_local(h, i);
                } else {
                    self.start_close(i);
                }
            }
        }
        let end = sys::now_ns() + 3_000_000_000;
        while self.ready > 0 && sys::now_ns() < end {
            self.poll(h, 50_000_000);
        }
        for i in 0..self.conns.len() {
            if self.conns[i].st != St::Closed {
                self.close_local(h, i);
            }
        }
        for x in &mut self.https {
            if x.st != HSt::Dead {
                sys::close(x.fd);
                x.st = HSt::Dead;
            }
        }
        self.https.clear();
        self.http_idle.clear();
    }
}
