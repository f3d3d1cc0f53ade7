//! Publishing into channels and accounting for every delivery. Used by `fanout`,
//! `mixed`, `slow` and the one-subscriber mode of `publish`.

use crate::net::{Handler, Net, St};
use crate::procmeter::{self, Meter, Sample, Usage};
use crate::report::Report;
use crate::sign::Signer;
use crate::sys::{self, now_ns};
use crate::wire::{self, Mark};
use hdrhistogram::Histogram;

pub const NO_CHAN: u32 = u32::MAX;

pub fn hist() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("bounds")
}

/// Adds p50..max of a nanosecond histogram, in microseconds.
pub fn report_hist(r: &mut Report, h: &Histogram<u64>, key: &str, label: &str) {
    let us = |v: u64| v as f64 / 1000.0;
    let q = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)];
    let mut line = Vec::new();
    for (n, p) in q {
        let v = if h.is_empty() { f64::NAN } else { us(h.value_at_quantile(p)) };
        r.num(&format!("{key}_{n}_us"), v, "");
        line.push(crate::report::human(v));
    }
    let max = if h.is_empty() { f64::NAN } else { us(h.max()) };
    r.num(&format!("{key}_max_us"), max, "");
    line.push(crate::report::human(max));
    r.row(&format!("{label} p50/p90/p99/p99.9/max, µs"), line.join(" / "));
}

struct Msg {
    sent: u64,
    resp: u64,
    /// Subscribers when it was published, and those that have not got it yet.
    subs: u32,
    remaining: u32,
    ok: Outcome,
    /// Still counted in `inflight`.
    open: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Pending,
    Ok,
    Failed,
}

/// What one connection has received on its channel.
#[derive(Default, Clone)]
struct Track {
    next: u32,
    /// Message id of the newest sequence number received.
    last_id: u32,
    /// Sequence numbers below `next` not received: half-open ranges.
    gaps: Vec<(u32, u32)>,
}

pub struct Chan {
    pub name: String,
    pub seq: u32,
    pub subs: u32,
}

pub struct Load {
    pub signer: Signer,
    pub chans: Vec<Chan>,
    /// Channels that are published to: the first `hot`.
    pub hot: usize,
    /// How connections are assigned: number of the connection -> channel.
    pub assign: Box<dyn Fn(u32) -> u32 + Send>,
    /// Events per request: above 1, `batch_events` (to channels without subscribers).
    batch: usize,
    /// Channel per connection slot.
    conn_chan: Vec<u32>,
    tracks: Vec<Track>,
    msgs: Vec<Msg>,
    /// JSON-escaped data, the marker's offset in it, and the data unescaped.
    data_esc: String,
    data_at: usize,
    data_raw: String,
    raw_at: usize,
    path: String,
    body: Vec<u8>,
    req: Vec<u8>,
    rng: sys::Rng,
    verified: Vec<bool>,
    next_verify: u64,
    closed_on_response: bool,
    /// Failed requests since the last good one.
    fail_streak: u64,
    oldest: usize,
    /// Deliveries to these slots do not count (the slow subscriber)...
    pub ignore: Vec<bool>,
    /// ...but the sequence numbers they got are kept.
    pub slow_seqs: Vec<u32>,
    // Counters over the whole run.
    pub inflight: usize,
    pub published_ok: u64,
    pub http_failed: u64,
    pub received: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub order_violations: u64,
    pub corrupted: u64,
    pub alien: u64,
    pub abandoned: u64,
    pub disconnects: u64,
    // The measured window.
    pub measuring: bool,
    w0: u64,
    w1: u64,
    pub win_deliveries: u64,
    pub win_published: u64,
    pub win_received_bytes: u64,
    pub hist: Histogram<u64>,
    pub http_hist: Histogram<u64>,
    pub lag_hist: Histogram<u64>,
    pub series: Option<Histogram<u64>>,
}

#[derive(Clone, Copy)]
pub enum Mode {
    /// At most this many messages published but not yet delivered to everyone.
    Closed(usize),
    /// Messages per second, on a fixed schedule (or Poisson arrivals).
    Rate { per_s: f64, poisson: bool },
}

#[derive(Clone, Copy)]
pub struct Phase {
    pub mode: Mode,
    pub warm_s: f64,
    pub dur_s: f64,
    pub drain_s: f64,
}

#[derive(Default, Clone)]
pub struct PhaseOut {
    pub usage: Usage,
    pub deliveries_per_s: f64,
    pub published_per_s: f64,
    pub win_deliveries: u64,
    pub rss_peak_kb: u64,
    pub rss_end_kb: u64,
    pub tcp_mem_peak_kb: u64,
    pub drain_s: f64,
    pub reads_per_delivery: f64,
    /// As received, frame headers, TLS records and compression included.
    pub wire_bytes_per_delivery: f64,
}

/// Called about ten times a second with seconds since the window began.
pub type Tick<'a> = &'a mut dyn FnMut(&mut Net, &mut Load, f64);

impl Load {
    pub fn new(signer: Signer, names: Vec<String>, hot: usize, size: usize, json: bool) -> Load {
        let (raw, raw_at) = wire::payload(size, json);
        let data_esc = wire::esc(&raw);
        let data_at = data_esc.find(&"0".repeat(wire::MARKER)).expect("marker");
        let path = format!("/apps/{}/events", signer.app_id);
        Load {
            signer,
            chans: names.into_iter().map(|name| Chan { name, seq: 0, subs: 0 }).collect(),
            hot,
            assign: Box::new(move |user| user % hot as u32),
            batch: 1,
            conn_chan: Vec::new(),
            tracks: Vec::new(),
            msgs: Vec::new(),
            data_esc,
            data_at,
            data_raw: raw,
            raw_at,
            path,
            body: Vec::new(),
            req: Vec::new(),
            rng: sys::Rng::new(),
            verified: Vec::new(),
            next_verify: 1000,
            closed_on_response: false,
            fail_streak: 0,
            oldest: 0,
            ignore: Vec::new(),
            slow_seqs: Vec::new(),
            inflight: 0,
            published_ok: 0,
            http_failed: 0,
            received: 0,
            duplicated: 0,
            reordered: 0,
            order_violations: 0,
            corrupted: 0,
            alien: 0,
            abandoned: 0,
            disconnects: 0,
            measuring: false,
            w0: u64::MAX,
            w1: 0,
            win_deliveries: 0,
            win_published: 0,
            win_received_bytes: 0,
            hist: hist(),
            http_hist: hist(),
            lag_hist: hist(),
            series: None,
        }
    }

    pub fn closed_on_response(&mut self, v: bool) {
        self.closed_on_response = v;
    }

    pub fn batch(&mut self, n: usize) {
        self.batch = n;
        let path = if n > 1 { "batch_events" } else { "events" };
        self.path = format!("/apps/{}/{path}", self.signer.app_id);
    }

    fn slot(&mut self, i: usize) {
        if i >= self.conn_chan.len() {
            self.conn_chan.resize(i + 1, NO_CHAN);
            self.tracks.resize(i + 1, Track::default());
            self.verified.resize(i + 1, false);
            self.ignore.resize(i + 1, false);
        }
    }

    /// Publishes one message to channel `c`, stamped `stamp`; false if no HTTP
    /// connection is free.
    pub fn publish(&mut self, net: &mut Net, c: usize, stamp: u64) -> bool {
        let Some(k) = net.http_take() else { return false };
        let id = self.msgs.len() as u32;
        let ch = &mut self.chans[c];
        let seq = ch.seq;
        ch.seq += 1;
        let now = now_ns();
        let stamp = if stamp == 0 { now } else { stamp };
        let b = &mut self.body;
        b.clear();
        let (open, sep): (&[u8], &[u8]) = if self.batch > 1 {
            b.extend_from_slice(b"{\"batch\":[");
            (b"{\"name\":\"load\",\"channel\":\"", b"\",\"data\":\"")
        } else {
            (b"{\"name\":\"load\",\"channels\":[\"", b"\"],\"data\":\"")
        };
        for k in 0..self.batch {
            if k > 0 {
                b.push(b',');
            }
            b.extend_from_slice(open);
            b.extend_from_slice(ch.name.as_bytes());
            b.extend_from_slice(sep);
            let at = b.len() + self.data_at;
            b.extend_from_slice(self.data_esc.as_bytes());
            b.extend_from_slice(b"\"}");
            wire::write_mark(&mut b[at..], Mark { ns: stamp, id, seq });
        }
        if self.batch > 1 {
            b.extend_from_slice(b"]}");
        }
        self.req.clear();
        self.signer.post(&mut self.req, &self.path, &self.body, now);
        let subs = self.chans[c].subs;
        self.msgs.push(Msg { sent: stamp, resp: 0, subs, remaining: subs, ok: Outcome::Pending, open: true });
        self.inflight += 1;
        if let Err(e) = net.http_send(k, &self.req, u64::from(id), now) {
            net.note(&e);
            self.http_failed += 1;
            let m = &mut self.msgs[id as usize];
            m.ok = Outcome::Failed;
            m.open = false;
            self.inflight -= 1;
        }
        true
    }

    fn done(&mut self, id: usize) {
        let m = &mut self.msgs[id];
        if m.open {
            m.open = false;
            self.inflight -= 1;
        }
    }

    #[cold]
    #[inline(never)]
    fn unusual(&mut self, i: usize, mk: Mark) -> bool {
        let t = &mut self.tracks[i];
        if mk.seq > t.next {
            t.gaps.push((t.next, mk.seq));
            t.next = mk.seq + 1;
            t.last_id = mk.id;
            return true;
        }
        let Some(g) = t.gaps.iter().position(|(a, b)| (*a..*b).contains(&mk.seq)) else {
            self.duplicated += 1;
            return false;
        };
        let (a, b) = t.gaps.swap_remove(g);
        if a < mk.seq {
            t.gaps.push((a, mk.seq));
        }
        if mk.seq + 1 < b {
            t.gaps.push((mk.seq + 1, b));
        }
        self.reordered += 1;
        // Wrong only if this message was acknowledged before the newer one was sent.
        let me = &self.msgs[mk.id as usize];
        let newer = &self.msgs[t.last_id as usize];
        if me.resp != 0 && me.resp < newer.sent {
            self.order_violations += 1;
        }
        true
    }

    /// Compares a whole frame with what was published.
    #[cold]
    #[inline(never)]
    fn verify(&mut self, net: &mut Net, i: usize, p: &[u8], mk: Mark) {
        self.verified[i] = true;
        let mut want = self.data_raw.clone().into_bytes();
        wire::write_mark(&mut want[self.raw_at..], mk);
        let ok = serde_json::from_slice::<serde_json::Value>(p).is_ok_and(|v| {
            v["event"] == "load"
                && v["channel"] == self.chans[self.conn_chan[i] as usize].name.as_str()
                && v["data"].as_str().is_some_and(|d| d.as_bytes() == want)
        });
        if !ok {
            self.corrupted += 1;
            net.note(&format!("corrupt: {}", String::from_utf8_lossy(p)));
        }
    }

    /// Over all acknowledged messages: (deliveries expected, lost).
    pub fn account(&self) -> (u64, u64) {
        let ok = || self.msgs.iter().filter(|m| m.ok == Outcome::Ok);
        (ok().map(|m| u64::from(m.subs)).sum(), ok().map(|m| u64::from(m.remaining)).sum())
    }

    /// Gives up on messages older than five seconds, so that a closed loop goes on
    /// after a loss.
    fn expire(&mut self, now: u64) {
        while self.oldest < self.msgs.len() {
            let m = &self.msgs[self.oldest];
            if m.open {
                if now.saturating_sub(m.sent) < 5_000_000_000 {
                    break;
                }
                self.abandoned += 1;
                self.done(self.oldest);
            }
            self.oldest += 1;
        }
    }

    fn pick(&mut self, n: u64, random: bool) -> usize {
        if random { (self.rng.bits() % self.hot as u64) as usize } else { (n % self.hot as u64) as usize }
    }

    /// Warm-up, measured window, drain.
    pub fn run(&mut self, net: &mut Net, ph: Phase, meter: &mut Option<Meter>, mut tick: Option<Tick>) -> PhaseOut {
        let start = now_ns();
        let w0 = start + (ph.warm_s * 1e9) as u64;
        let w1 = w0 + (ph.dur_s * 1e9) as u64;
        (self.w0, self.w1) = (w0, w1);
        self.measuring = false;
        self.win_deliveries = 0;
        self.win_published = 0;
        self.win_received_bytes = 0;
        self.hist.reset();
        self.http_hist.reset();
        self.lag_hist.reset();
        let mut out = PhaseOut::default();
        let mut s0 = Sample::default();
        let mut reads0 = 0;
        let mut bytes0 = 0;
        let mut stopped_at = 0;
        let mut progress = (self.received, now_ns());
        let mut next_tick = start;
        let mut n = 0u64;
        let mut due = start as f64;
        let mut held_until = 0;
        loop {
            let now = now_ns();
            if !self.measuring && stopped_at == 0 && now >= w0 {
                s0 = procmeter::sample(meter.as_mut());
                self.measuring = true;
                reads0 = net.reads;
                bytes0 = net.bytes_in;
            }
            if self.measuring && now >= w1 {
                let s1 = procmeter::sample(meter.as_mut());
                self.measuring = false;
                stopped_at = now;
                progress = (self.received, now);
                out.usage = Usage::between(&s0, &s1, meter.is_some());
                out.win_deliveries = self.win_deliveries;
                out.deliveries_per_s = self.win_deliveries as f64 / out.usage.secs;
                out.published_per_s = self.win_published as f64 / out.usage.secs;
                out.wire_bytes_per_delivery = (net.bytes_in - bytes0) as f64 / self.win_deliveries.max(1) as f64;
                out.reads_per_delivery = (net.reads - reads0) as f64 / self.win_deliveries.max(1) as f64;
            }
            if now >= next_tick {
                next_tick = now + 100_000_000;
                if let Some(m) = meter {
                    out.rss_end_kb = m.rss_kb();
                    out.rss_peak_kb = out.rss_peak_kb.max(out.rss_end_kb);
                }
                out.tcp_mem_peak_kb = out.tcp_mem_peak_kb.max(procmeter::tcp_mem_kb());
                self.expire(now);
                if let Some(t) = tick.as_mut() {
                    t(net, self, (now as f64 - w0 as f64) / 1e9);
                }
            }
            let mut wake = next_tick;
            if stopped_at == 0 {
                wake = wake.min(if self.measuring { w1 } else { w0 });
                match ph.mode {
                    // A server that answers nothing is not hammered.
                    Mode::Closed(_) if self.fail_streak > 100 && now < held_until => wake = wake.min(held_until),
                    Mode::Closed(limit) => {
                        held_until = now + 10_000_000;
                        while self.inflight < limit {
                            let c = self.pick(n, false);
                            if !self.publish(net, c, 0) {
                                break;
                            }
                            n += 1;
                            self.win_published += u64::from(self.measuring);
                        }
                    }
                    Mode::Rate { per_s, poisson } => {
                        while now as f64 >= due {
                            let c = self.pick(n, poisson);
                            if !self.publish(net, c, due as u64) {
                                break;
                            }
                            n += 1;
                            if self.measuring {
                                self.win_published += 1;
                                let _ = self.lag_hist.record(now.saturating_sub(due as u64));
                            }
                            let gap = if poisson { -(1.0 - self.rng.f64()).ln() } else { 1.0 };
                            due += gap * 1e9 / per_s;
                        }
                        wake = wake.min(due as u64);
                    }
                }
            } else {
                if self.received != progress.0 {
                    progress = (self.received, now);
                }
                let quiet = now - progress.1 > (ph.drain_s * 1e9) as u64;
                // A duplicate may come after the last expected delivery: look for 150 ms more.
                let clean = self.all_delivered() && now - progress.1 > 150_000_000;
                if clean || quiet || now - stopped_at > 60_000_000_000 {
                    out.drain_s = (progress.1 - stopped_at) as f64 / 1e9;
                    break;
                }
            }
            let now = now_ns();
            net.poll(self, wake.saturating_sub(now));
        }
        out
    }

    fn all_delivered(&mut self) -> bool {
        // Everything before `oldest` is done or abandoned.
        while self.oldest < self.msgs.len() && !self.msgs[self.oldest].open {
            self.oldest += 1;
        }
        let at = self.oldest.min(self.msgs.len());
        let tail_done = self.msgs[at..].iter().all(|m| m.ok != Outcome::Pending && m.remaining == 0);
        tail_done
            && (!self.closed_on_response || self.msgs.iter().all(|m| m.ok != Outcome::Pending && m.remaining == 0))
    }
}

impl Handler for Load {
    fn on_established(&mut self, net: &mut Net, i: usize, sid: &[u8]) {
        self.slot(i);
        let user = net.conns[i].user;
        let c = (self.assign)(user);
        self.conn_chan[i] = c;
        self.tracks[i] = Track::default();
        self.verified[i] = false;
        self.ignore[i] = false;
        let name = self.chans[c as usize].name.clone();
        let signed = name.starts_with("private-") || name.starts_with("presence-");
        let data = name.starts_with("presence-").then(|| format!("{{\"user_id\":\"u{user}\",\"user_info\":{{}}}}"));
        let auth = signed.then(|| self.signer.channel_auth(sid, &name, data.as_deref()));
        net.subscribe(i, &name, auth.as_deref(), data.as_deref());
    }

    fn on_subscribed(&mut self, net: &mut Net, i: usize, _p: &[u8]) {
        if net.conns[i].st == St::Subscribed {
            let c = &mut self.chans[self.conn_chan[i] as usize];
            c.subs += 1;
            self.tracks[i].next = c.seq;
        }
    }

    #[inline]
    fn on_msg(&mut self, net: &mut Net, i: usize, p: &[u8], at: usize, now: u64) {
        let Some(mk) = wire::read_mark(&p[at..]) else {
            self.alien += 1;
            return;
        };
        if mk.id as usize >= self.msgs.len() || i >= self.tracks.len() || self.conn_chan[i] == NO_CHAN {
            self.alien += 1;
            return;
        }
        if self.ignore[i] {
            self.slow_seqs.push(mk.seq);
            return;
        }
        let t = &mut self.tracks[i];
        let first = if mk.seq == t.next {
            t.next += 1;
            t.last_id = mk.id;
            true
        } else {
            self.unusual(i, mk)
        };
        if self.measuring && first {
            self.win_deliveries += 1;
            self.win_received_bytes += p.len() as u64;
        }
        if mk.ns >= self.w0 && mk.ns < self.w1 {
            let l = now.saturating_sub(mk.ns).max(1);
            let _ = self.hist.record(l);
        }
        if let Some(s) = &mut self.series {
            let _ = s.record(now.saturating_sub(mk.ns).max(1));
        }
        if !first {
            return;
        }
        self.received += 1;
        let m = &mut self.msgs[mk.id as usize];
        m.remaining = m.remaining.saturating_sub(1);
        if m.remaining == 0 && m.ok != Outcome::Pending && !self.closed_on_response {
            self.done(mk.id as usize);
        }
        if !self.verified[i] || self.received >= self.next_verify {
            if self.received >= self.next_verify {
                self.next_verify = self.received + 1009;
            }
            self.verify(net, i, p, mk);
        }
    }

    fn on_closed(&mut self, _net: &mut Net, i: usize, was: St) {
        if i < self.conn_chan.len() && self.conn_chan[i] != NO_CHAN && was == St::Subscribed {
            if !self.ignore[i] {
                self.disconnects += 1;
            }
            // Messages published from now on are not expected here; those published
            // before and not received count as lost.
            let c = self.conn_chan[i] as usize;
            self.chans[c].subs -= u32::from(!self.ignore[i]);
            self.conn_chan[i] = NO_CHAN;
        }
    }

    fn on_http(&mut self, _net: &mut Net, tag: u64, status: u16, t_sent: u64, now: u64) {
        let id = tag as usize;
        let m = &mut self.msgs[id];
        m.resp = now;
        if status == 200 {
            m.ok = Outcome::Ok;
            self.published_ok += 1;
            self.fail_streak = 0;
            if self.measuring {
                let _ = self.http_hist.record((now - t_sent).max(1));
            }
        } else {
            m.ok = Outcome::Failed;
            self.http_failed += 1;
            self.fail_streak += 1;
        }
        if m.ok == Outcome::Failed || m.remaining == 0 || self.closed_on_response {
            self.done(id);
        }
    }
}
