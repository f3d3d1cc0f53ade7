//! The scenarios.

use crate::cli::{Cmd, Common, Traffic};
use crate::load::{self, Load, Mode, Phase, PhaseOut};
use crate::net::{Handler, Net, NetCfg, St};
use crate::procmeter::{self, Meter, Usage};
use crate::report::Report;
use crate::sign::Signer;
use crate::sys::{self, now_ns};
use crate::wire::{self, Mark};
use hdrhistogram::Histogram;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, Mutex};
use std::thread::sleep;
use std::time::Duration;

type Res<T> = Result<T, String>;

fn meter(c: &Common) -> Res<Option<Meter>> {
    c.server_pid.map(|p| Meter::new(p, c.tree)).transpose()
}

fn signer(c: &Common) -> Signer {
    Signer::new(&c.app_id, &c.key, &c.secret, &format!("{}:{}", c.host, c.port))
}

fn netcfg(c: &Common, conns: usize, max_http: usize, ready_at: St) -> NetCfg {
    NetCfg {
        host: c.host,
        port: c.port,
        ws_host: c.ws_host.unwrap_or(c.host),
        ws_port: c.ws_port.unwrap_or(c.port),
        tls: c.tls,
        deflate: c.deflate,
        key: c.key.clone(),
        src_ips: if c.src_ips > 0 { c.src_ips } else { conns.div_ceil(4000) },
        dst_ips: c.dst_ips,
        open_window: c.open_window,
        open_timeout_ns: (c.open_timeout * 1e9) as u64,
        rcvbuf: None,
        max_http,
        poll_ns: c.poll_us * 1000,
        ready_at,
        verbose: c.verbose,
    }
}

/// Channel names are new in every run, so that nothing of an earlier one is heard.
fn run_id() -> String {
    format!("{:x}{:x}", std::process::id(), (now_ns() / 1000) & 0xff_ffff)
}

fn report(name: &str, c: &Common, m: &Option<Meter>) -> Report {
    let t = c.name.clone().unwrap_or_else(|| format!("{}:{}", c.host, c.port));
    let mut r = Report::new(name, &t);
    if let Some(m) = m {
        r.text("server", &m.name(), "");
        r.num("server_threads", m.threads() as f64, "");
    }
    r
}

fn notes(r: &mut Report, m: &Option<Meter>, n: &BTreeMap<String, u64>) {
    if m.as_ref().is_some_and(|m| !m.alive()) {
        r.value("server_died", true.into());
        r.row("WARNING", "the server's process has ended".into());
    }
    let mut o = serde_json::Map::new();
    for (k, v) in n {
        o.insert(k.clone(), (*v).into());
        r.row("note", format!("{v} x {k}"));
    }
    r.value("notes", Value::Object(o));
}

fn mb(kb: u64) -> f64 {
    kb as f64 / 1024.0
}

/// CPU figures shared by all scenarios; `units` counts what the server did.
fn usage(r: &mut Report, u: &Usage, metered: bool, units: f64, per: &str) {
    if metered {
        r.num("server_cpu_s", u.server_s, "");
        r.num("server_cpu_user_s", u.server_user_s, "");
        r.num("server_cpu_sys_s", u.server_sys_s, "");
        r.num("server_cpu_pct", 100.0 * u.server_s / u.secs, "");
        r.row(
            "server CPU",
            format!(
                "{:.2} s = {:.0} % of a core ({:.0} % of it in user space)",
                u.server_s,
                100.0 * u.server_s / u.secs,
                100.0 * u.server_user_s / u.server_s.max(1e-9)
            ),
        );
        if units > 0.0 {
            r.num(&format!("cpu_us_per_{per}"), 1e6 * u.server_s / units, &format!("server CPU µs per {per}"));
            r.num(&format!("cpu_user_us_per_{per}"), 1e6 * u.server_user_s / units, "");
        }
    }
    r.num("gen_cpu_s", u.gen_s, "");
    r.num("gen_cpu_pct", 100.0 * u.gen_s / u.secs, "generator CPU, % of a core");
    if units > 0.0 {
        r.num(&format!("gen_us_per_{per}"), 1e6 * u.gen_s / units, "");
    }
    r.num("other_cpu_pct", u.other_pct, "other processes, % of a core");
    r.num("steal_pct", u.steal_pct, "");
    r.num("machine_idle_pct", u.idle_pct, "machine idle, % of a core");
    if u.gen_s / u.secs > 0.9 {
        r.value("gen_bound", true.into());
        r.row("WARNING", "the generator used a whole core: it may be the limit".into());
    }
    if u.other_pct > 10.0 || u.steal_pct > 3.0 {
        r.value("noisy", true.into());
        r.row("WARNING", format!("noisy machine: others {:.0} %, stolen {:.0} %", u.other_pct, u.steal_pct));
    }
}

fn accounting(r: &mut Report, l: &Load) {
    let (expected, lost) = l.account();
    r.num("published_ok", l.published_ok as f64, "");
    r.num("publish_failed", l.http_failed as f64, "");
    r.num("expected", expected as f64, "");
    r.num("received", l.received as f64, "");
    r.num("lost", lost as f64, "");
    r.num("duplicated", l.duplicated as f64, "");
    r.num("reordered", l.reordered as f64, "");
    r.num("order_violations", l.order_violations as f64, "");
    r.num("corrupted", l.corrupted as f64, "");
    r.num("alien", l.alien as f64, "");
    r.num("disconnects", l.disconnects as f64, "");
    r.row("publishes acknowledged / failed", format!("{} / {}", l.published_ok, l.http_failed));
    r.row("deliveries expected / received", format!("{expected} / {}", l.received));
    r.row(
        "lost / duplicated / out of order / corrupt",
        format!("{lost} / {} / {} ({} reordered) / {}", l.duplicated, l.order_violations, l.reordered, l.corrupted),
    );
    if l.disconnects > 0 || l.alien > 0 || l.abandoned > 0 {
        r.row("disconnects / alien / timed out", format!("{} / {} / {}", l.disconnects, l.alien, l.abandoned));
    }
}

#[allow(clippy::too_many_arguments)]
fn traffic_report(r: &mut Report, t: &Traffic, l: &Load, net: &Net, o: &PhaseOut, rss0: u64, rss1: u64, metered: bool) {
    r.num("size", t.size as f64, "");
    r.num("duration_s", o.usage.secs, "");
    r.num("publishes_per_s", o.published_per_s, "publishes/s");
    r.num("deliveries_per_s", o.deliveries_per_s, "deliveries/s");
    r.num("payload_mb_per_s", l.win_received_bytes as f64 / 1e6 / o.usage.secs, "received, MB/s");
    accounting(r, l);
    load::report_hist(r, &l.hist, "lat", "latency");
    load::report_hist(r, &l.http_hist, "http", "HTTP response");
    if t.rate > 0.0 {
        let lag = l.lag_hist.value_at_quantile(0.99) as f64 / 1000.0;
        r.num("sched_lag_p99_us", lag, "generator behind schedule p99, µs");
    }
    usage(r, &o.usage, metered, o.win_deliveries as f64, "delivery");
    r.num("reads_per_delivery", o.reads_per_delivery, "generator reads per delivery");
    r.num("wire_bytes_per_delivery", o.wire_bytes_per_delivery, "bytes on the wire per delivery");
    if net.deflated > 0 {
        r.num("deflated", net.deflated as f64, "messages that came compressed");
        r.num("inflated_bytes_per_message", net.inflated_bytes as f64 / net.deflated as f64, "inflated, bytes each");
    }
    r.num("drain_s", o.drain_s, "");
    if metered {
        r.num("rss_before_mb", mb(rss0), "");
        r.num("rss_connected_mb", mb(rss1), "");
        r.num("rss_peak_mb", mb(o.rss_peak_kb), "");
        r.num("rss_after_mb", mb(o.rss_end_kb), "");
        r.row(
            "server RSS before/connected/peak/after, MiB",
            format!("{:.1} / {:.1} / {:.1} / {:.1}", mb(rss0), mb(rss1), mb(o.rss_peak_kb), mb(o.rss_end_kb)),
        );
    }
    r.num("tcp_mem_peak_mb", mb(o.tcp_mem_peak_kb), "");
    r.num("pings", net.pings as f64, "");
    r.num("protocol_errors", net.protocol_errors as f64, "");
    r.num("http_reconnects", net.http_reconnects as f64, "");
}

fn mode_of(t: &Traffic) -> Mode {
    if t.rate > 0.0 { Mode::Rate { per_s: t.rate, poisson: t.poisson } } else { Mode::Closed(t.inflight) }
}

fn phase_of(t: &Traffic) -> Phase {
    Phase { mode: mode_of(t), warm_s: t.warmup, dur_s: t.duration, drain_s: t.drain }
}

fn http_conns(t: &Traffic) -> usize {
    match (t.http_conns, t.rate > 0.0) {
        (0, true) => 32,
        (0, false) => t.inflight,
        (n, _) => n,
    }
}

pub fn run(c: &Common, cmd: &Cmd) -> Res<Report> {
    if !c.host.is_loopback() {
        return Err("only loopback targets".into());
    }
    sys::raise_nofile();
    sys::tight_timers();
    if let Some(k) = c.cpu {
        sys::pin_cpu(k).map_err(|e| format!("pin: {e}"))?;
    }
    match cmd {
        Cmd::Fanout { conns, channels, kind, t } => fanout(c, *conns, *channels, kind, t),
        Cmd::Mixed { conns, active, rooms, load, t } => mixed(c, *conns, *active, *rooms, *load, t),
        Cmd::Slow { conns, slow, t } => slow_scenario(c, *conns, *slow, t),
        Cmd::Idle { conns, hold, shared, private, shards, then_fanout, then_frames } => {
            let then = Then { fanout: *then_fanout, frames: *then_frames };
            idle(c, *conns, *hold, *shared, *private, *shards, then)
        }
        Cmd::Receive { conns, rate, burst, size, duration, warmup } => {
            receive(c, *conns, *rate, *burst, *size, *duration, *warmup)
        }
        Cmd::Fairness { big, small, small_rate, t } => fairness(c, *big, *small, *small_rate, t),
        Cmd::Churn { workers, duration, warmup } => churn(c, *workers, *duration, *warmup),
        Cmd::Publish { workers, channels, size, plain, duration, warmup, mode } => {
            publish(c, *workers, *channels, *size, !*plain, *duration, *warmup, mode)
        }
        Cmd::ClientEvents { pairs, size, duration, warmup } => client_events(c, *pairs, *size, *duration, *warmup),
        Cmd::Presence { members, window, unsubscribe, timeout } => {
            presence(c, *members, *window, *unsubscribe, *timeout)
        }
        Cmd::Compare { .. } => unreachable!(),
    }
}

// ---- fanout ----

fn fanout(c: &Common, conns: usize, channels: usize, kind: &str, t: &Traffic) -> Res<Report> {
    let prefix = match kind {
        "public" => "load",
        "private" => "private-load",
        "presence" => "presence-load",
        _ => return Err("--kind public, private or presence".into()),
    };
    if channels == 0 || conns < channels {
        return Err("--channels must be between 1 and --conns".into());
    }
    let mut m = meter(c)?;
    let id = run_id();
    let names = (0..channels).map(|k| format!("{prefix}-{id}-{k}")).collect();
    let mut l = Load::new(signer(c), names, channels, t.size, !t.plain);
    l.closed_on_response(t.until_response);
    let mut net = Net::new(netcfg(c, conns, http_conns(t), St::Subscribed));
    let rss0 = m.as_ref().map_or(0, Meter::rss_kb);
    let open_s = net.open_all(&mut l, 0, conns, conns)?;
    net.require(conns)?;
    let rss1 = m.as_ref().map_or(0, Meter::rss_kb);
    let o = l.run(&mut net, phase_of(t), &mut m, None);
    let mut r = report("fanout", c, &m);
    r.num("conns", net.ready as f64, "connections");
    r.num("channels", channels as f64, "");
    r.text("kind", kind, "");
    r.num("rate_target", t.rate, "");
    r.num("inflight", if t.rate > 0.0 { 0.0 } else { t.inflight as f64 }, "");
    r.num("open_s", open_s, "");
    traffic_report(&mut r, t, &l, &net, &o, rss0, rss1, m.is_some());
    net.close_all(&mut l);
    notes(&mut r, &m, &net.notes);
    Ok(r)
}

// ---- mixed ----

fn mixed(c: &Common, conns: usize, active: f64, rooms: usize, share: f64, t: &Traffic) -> Res<Report> {
    let mut m = meter(c)?;
    let id = run_id();
    let mut names: Vec<String> = (0..rooms).map(|k| format!("room-{id}-{k}")).collect();
    names.extend((0..conns).map(|k| format!("user-{id}-{k}")));
    let mut l = Load::new(signer(c), names, rooms, t.size, !t.plain);
    // Connection u is active where the running count of active ones steps up at u.
    let count = move |u: u32| (f64::from(u) * active + 1e-9) as u32;
    l.assign = Box::new(move |u| if count(u + 1) > count(u) { count(u) % rooms as u32 } else { rooms as u32 + u });
    let mut net = Net::new(netcfg(c, conns, http_conns(t).max(32), St::Subscribed));
    let rss0 = m.as_ref().map_or(0, Meter::rss_kb);
    net.open_all(&mut l, 0, conns, conns)?;
    net.require(conns)?;
    let rss1 = m.as_ref().map_or(0, Meter::rss_kb);
    let mut t = t.clone();
    let mut saturation = f64::NAN;
    if t.rate <= 0.0 {
        let ph = Phase { mode: Mode::Closed(32), warm_s: 1.0, dur_s: 3.0, drain_s: t.drain };
        saturation = l.run(&mut net, ph, &mut m, None).published_per_s;
        t.rate = saturation * share;
        if t.rate <= 0.0 {
            return Err(format!("no saturation rate found: {:?}", net.notes));
        }
    }
    let o = l.run(&mut net, phase_of(&t), &mut m, None);
    let mut r = report("mixed", c, &m);
    let in_rooms: u32 = l.chans[..rooms].iter().map(|x| x.subs).sum();
    r.num("conns", net.ready as f64, "connections");
    r.num("active", f64::from(in_rooms), "of these in rooms");
    r.num("rooms", rooms as f64, "rooms");
    r.num("saturation_per_s", saturation, "publishes/s at saturation (3 s)");
    r.num("rate_target", t.rate, "publishes/s asked for");
    traffic_report(&mut r, &t, &l, &net, &o, rss0, rss1, m.is_some());
    net.close_all(&mut l);
    notes(&mut r, &m, &net.notes);
    Ok(r)
}

// ---- slow ----

fn slow_scenario(c: &Common, conns: usize, slow: usize, t: &Traffic) -> Res<Report> {
    let mut t = t.clone();
    if t.rate <= 0.0 {
        t.rate = 500.0;
    }
    let mut m = meter(c)?;
    let mut l = Load::new(signer(c), vec![format!("load-{}-0", run_id())], 1, t.size, !t.plain);
    let mut net = Net::new(netcfg(c, conns, http_conns(&t), St::Subscribed));
    let rss0 = m.as_ref().map_or(0, Meter::rss_kb);
    net.open_all(&mut l, 0, conns, conns)?;
    net.require(conns)?;
    // The slow ones: a small receive buffer, then never a read.
    net.cfg.rcvbuf = Some(4096);
    net.open_all(&mut l, conns, slow, 0)?;
    net.require(conns + slow)?;
    net.cfg.rcvbuf = None;
    let slots: Vec<usize> = (0..net.conns.len()).filter(|i| net.conns[*i].user >= conns as u32).collect();
    let mut ports = Vec::new();
    for &i in &slots {
        net.deafen(i);
        l.ignore[i] = true;
        l.chans[0].subs -= 1;
        ports.push(sys::local_addr(net.conns[i].fd));
    }
    let rss1 = m.as_ref().map_or(0, Meter::rss_kb);
    let mut rss = Vec::new();
    let mut p99 = Vec::new();
    let mut sndq = Vec::new();
    // The kernel's table is read by a thread of its own, so that it holds nobody up.
    let watch = QueueWatch::default();
    let ws_port = net.cfg.ws_port;
    let mut gone: Vec<Option<f64>> = vec![None; slots.len()];
    l.series = Some(load::hist());
    let meter2 = m.clone();
    let mut next = 1.0;
    let mut tick = |net: &mut Net, l: &mut Load, at: f64| {
        if at < next || !l.measuring {
            return;
        }
        next = at.floor() + 1.0;
        if let Some(m) = &meter2 {
            rss.push(mb(m.rss_kb()));
        }
        let s = l.series.as_mut().unwrap();
        p99.push(s.value_at_quantile(0.99) as f64 / 1000.0);
        s.reset();
        let Some(sides) = watch.sides.lock().unwrap().clone() else { return };
        for (k, &i) in slots.iter().enumerate() {
            if gone[k].is_some() {
                continue;
            }
            // 1: ESTABLISHED. Anything else: the server has closed its end.
            let side = sides.get(&ports[k]);
            if k == 0 {
                sndq.push(side.map_or(0.0, |x| x.1 as f64 / 1024.0));
            }
            if net.conns[i].st == St::Closed || side.is_none_or(|x| x.0 != 1) {
                gone[k] = Some(at);
            }
        }
    };
    let o = std::thread::scope(|s| {
        s.spawn(|| watch.run(ws_port, &ports));
        let o = l.run(&mut net, phase_of(&t), &mut m, Some(&mut tick));
        watch.stop.store(true, SeqCst);
        o
    });
    // Read what the slow one still gets, and how it ends.
    let rss_end = m.as_ref().map_or(0, Meter::rss_kb);
    let before = net.notes.clone();
    for &i in &slots {
        if net.conns[i].st != St::Closed {
            net.hear(i);
        }
    }
    let mut seen = (0, now_ns());
    let stop = now_ns() + 30_000_000_000;
    while now_ns() < stop && now_ns() - seen.1 < 1_500_000_000 {
        net.poll(&mut l, 100_000_000);
        if l.slow_seqs.len() != seen.0 {
            seen = (l.slow_seqs.len(), now_ns());
        }
    }
    let ended: Vec<String> =
        net.notes.iter().filter(|(k, v)| before.get(*k) != Some(v)).map(|(k, _)| k.clone()).collect();
    let mut r = report("slow", c, &m);
    r.num(
        "conns",
        (net.ready - slots.iter().filter(|i| net.conns[**i].st != St::Closed).count()) as f64,
        "normal subscribers",
    );
    r.num("slow", slots.len() as f64, "that never read");
    r.num("rate_target", t.rate, "publishes/s asked for");
    let n_gone = gone.iter().flatten().count();
    r.num("slow_disconnected", n_gone as f64, "slow ones disconnected");
    let first = gone.iter().flatten().copied().fold(f64::NAN, f64::min);
    r.num("slow_first_disconnect_s", first, "first of them after, s");
    r.num("slow_messages_read_later", l.slow_seqs.len() as f64, "messages they could still read afterwards");
    if slots.len() == 1 {
        // Everything up to the newest message it got, less what it got.
        let upto = l.slow_seqs.iter().max().map_or(0, |m| *m as usize + 1);
        r.num("slow_missing", upto as f64 - l.slow_seqs.len() as f64, "messages left out before the last of these");
    }
    let queued = watch.max.load(SeqCst) as f64 / 1024.0;
    r.num("kernel_queue_max_kb", queued, "most that the kernel held for one of them, KiB");
    if m.is_some() && !slots.is_empty() {
        // An upper bound: the growth under load of the whole server is charged to them.
        let grown = (o.rss_peak_kb as f64 - rss1 as f64).max(0.0) / slots.len() as f64;
        r.num("held_kb_per_slow", queued + grown, "that and the server's growth for each, KiB");
    }
    r.text("slow_end", &ended.join("; "), "how they ended when read");
    let f = |v: &[f64]| v.iter().map(|x| format!("{x:.0}")).collect::<Vec<_>>().join(" ");
    r.row("p99 per second, µs", f(&p99));
    r.row("server RSS per second, MiB", f(&rss));
    r.row("server's send queue to the slow one, KiB", f(&sndq));
    r.value("p99_us_series", p99.iter().map(|x| x.round()).collect::<Vec<_>>().into());
    r.value("rss_mb_series", rss.iter().map(|x| (x * 10.0).round() / 10.0).collect::<Vec<_>>().into());
    r.value("sndq_kb_series", sndq.into());
    traffic_report(&mut r, &t, &l, &net, &o, rss0, rss1, m.is_some());
    if m.is_some() {
        r.num("rss_growth_mb", mb(o.rss_peak_kb) - mb(rss1), "server RSS growth under load, MiB");
        r.num("rss_end_mb", mb(rss_end), "");
    }
    net.close_all(&mut l);
    notes(&mut r, &m, &net.notes);
    Ok(r)
}

/// What the kernel holds for the connections that nobody reads.
#[derive(Default)]
struct QueueWatch {
    stop: AtomicBool,
    sides: Mutex<Option<HashMap<SocketAddrV4, (u8, u64)>>>,
    max: AtomicU64,
}

impl QueueWatch {
    fn run(&self, port: u16, clients: &[SocketAddrV4]) {
        while !self.stop.load(SeqCst) {
            let mut all = procmeter::server_sides(port);
            all.retain(|a, _| clients.contains(a));
            self.max.fetch_max(all.values().map(|x| x.1).max().unwrap_or(0), SeqCst);
            *self.sides.lock().unwrap() = Some(all);
            sleep(Duration::from_millis(250));
        }
    }
}

// ---- idle ----

/// What comes after the hold.
#[derive(Clone, Copy)]
struct Then {
    fanout: bool,
    frames: bool,
}

const HOLD: usize = 0;
const FANOUT: usize = 1;
const FRAMES: usize = 2;
const STOP: usize = 3;

struct Idle {
    signer: Signer,
    prefix: String,
    shared: bool,
    signed: bool,
    got: usize,
    req: Vec<u8>,
}

impl Idle {
    /// One message of 100 bytes to each channel of this thread's connections; waits until all have it.
    fn fanout(&mut self, net: &mut Net, first: bool) {
        let want = self.got + net.ready;
        let users = net.conns.iter().filter(|w| w.st == St::Subscribed).map(|w| w.user);
        let channels: Vec<u32> = match (self.shared, first) {
            (true, true) => vec![0],
            (true, false) => Vec::new(),
            (false, _) => users.collect(),
        };
        let data = wire::esc(&wire::payload(100, true).0);
        let at = data.find(&"0".repeat(wire::MARKER)).expect("a marker");
        let path = format!("/apps/{}/events", self.signer.app_id);
        let mut next = 0;
        let mut progress = (self.got, now_ns());
        while self.got < want && now_ns() - progress.1 < 5_000_000_000 {
            while next < channels.len()
                && let Some(k) = net.http_take()
            {
                let now = now_ns();
                let name = format!("{}-{}", self.prefix, channels[next]);
                let mut body = format!("{{\"name\":\"load\",\"channels\":[\"{name}\"],\"data\":\"").into_bytes();
                let start = body.len();
                body.extend_from_slice(data.as_bytes());
                wire::write_mark(&mut body[start + at..], Mark { ns: now, id: next as u32, seq: 0 });
                body.extend_from_slice(b"\"}");
                self.req.clear();
                self.signer.post(&mut self.req, &path, &body, now);
                if let Err(e) = net.http_send(k, &self.req, next as u64, now) {
                    net.note(&e);
                }
                next += 1;
            }
            net.poll(self, 10_000_000);
            if self.got != progress.0 {
                progress = (self.got, now_ns());
            }
        }
    }

    /// A ping padded to 100 bytes from every connection; waits for the answers.
    fn frames(&mut self, net: &mut Net) {
        let want = net.pongs + net.ready as u64;
        let text = padded("pusher:ping", 100);
        for i in 0..net.conns.len() {
            if net.conns[i].st == St::Subscribed {
                net.send_text(i, &text);
            }
            if i % 64 == 63 {
                net.poll(self, 0);
            }
        }
        let mut progress = (net.pongs, now_ns());
        while net.pongs < want && now_ns() - progress.1 < 5_000_000_000 {
            net.poll(self, 10_000_000);
            if net.pongs != progress.0 {
                progress = (net.pongs, now_ns());
            }
        }
    }
}

/// A message of the client's that asks for nothing but `event`, `size` bytes long.
fn padded(event: &str, size: usize) -> String {
    let head = format!("{{\"event\":\"{event}\",\"data\":{{\"pad\":\"");
    let room = size.saturating_sub(head.len() + 3);
    format!("{head}{}\"}}}}", "x".repeat(room))
}

impl Handler for Idle {
    fn on_established(&mut self, net: &mut Net, i: usize, sid: &[u8]) {
        let n = if self.shared { 0 } else { net.conns[i].user };
        let ch = format!("{}-{n}", self.prefix);
        let auth = self.signed.then(|| self.signer.channel_auth(sid, &ch, None));
        net.subscribe(i, &ch, auth.as_deref(), None);
    }

    fn on_msg(&mut self, _net: &mut Net, _i: usize, _p: &[u8], _at: usize, _now: u64) {
        self.got += 1;
    }
}

#[derive(Default)]
struct IdleSum {
    got: usize,
    pongs: u64,
    ready: usize,
    failed: usize,
    lost: usize,
    pings: u64,
    pings_sent: u64,
    notes: BTreeMap<String, u64>,
    error: Option<String>,
}

fn idle(c: &Common, conns: usize, hold: f64, shared: bool, private: bool, shards: usize, then: Then) -> Res<Report> {
    let mut m = meter(c)?;
    let limit = sys::raise_nofile() as usize - 64;
    let shards = if shards == 0 { conns.div_ceil(limit) } else { shards };
    let prefix = format!("{}idle-{}", if private { "private-" } else { "" }, run_id());
    let rss0 = m.as_ref().map_or(0, Meter::rss_kb);
    let pss0 = m.as_ref().map_or(0, Meter::pss_kb);
    let tcp0 = procmeter::tcp_mem_kb();
    // Shards open one after the other; `turn` counts those that are done.
    let turn = AtomicUsize::new(0);
    let phase = AtomicUsize::new(HOLD);
    let done = AtomicUsize::new(0);
    let sum = Mutex::new(IdleSum::default());
    let lost_at_stop = AtomicUsize::new(0);
    let a0 = procmeter::sample(m.as_mut());
    let mut r = std::thread::scope(|s| -> Res<Report> {
        for k in 0..shards {
            let (from, to) = (conns * k / shards, conns * (k + 1) / shards);
            let (turn, phase, done, sum, prefix, lost_at_stop) = (&turn, &phase, &done, &sum, &prefix, &lost_at_stop);
            s.spawn(move || {
                if shards > 1 {
                    sys::unshare_files().expect("unshare(CLONE_FILES)");
                }
                while turn.load(SeqCst) < k {
                    sleep(Duration::from_millis(1));
                }
                let mut net = Net::new(netcfg(c, conns, 32, St::Subscribed));
                let (got, req) = (0, Vec::new());
                let mut h = Idle { signer: signer(c), prefix: prefix.clone(), shared, signed: private, got, req };
                let res = net.open_all(&mut h, from, to - from, 0);
                {
                    let mut t = sum.lock().unwrap();
                    t.ready += net.ready;
                    t.failed += net.failed;
                    if let Err(e) = res {
                        t.error = Some(e);
                    }
                }
                turn.fetch_add(1, SeqCst);
                let mut at = HOLD;
                loop {
                    match phase.load(SeqCst) {
                        STOP => break,
                        p if p == at => net.poll(&mut h, 100_000_000),
                        p => {
                            at = p;
                            if p == FANOUT {
                                h.fanout(&mut net, k == 0);
                            } else {
                                h.frames(&mut net);
                            }
                            done.fetch_add(1, SeqCst);
                        }
                    }
                }
                lost_at_stop.fetch_add(net.lost, SeqCst);
                net.close_all(&mut h);
                let mut t = sum.lock().unwrap();
                t.lost += net.lost;
                t.got += h.got;
                t.pongs += net.pongs;
                t.pings += net.pings;
                t.pings_sent += net.pings_sent;
                for (k, v) in &net.notes {
                    *t.notes.entry(k.clone()).or_default() += v;
                }
            });
        }
        while turn.load(SeqCst) < shards {
            sleep(Duration::from_millis(1));
        }
        let a1 = procmeter::sample(m.as_mut());
        sleep(Duration::from_millis(1000));
        let ready = sum.lock().unwrap().ready;
        let b0 = procmeter::sample(m.as_mut());
        let (rss1, pss1) = m.as_ref().map_or((0, 0), |m| (m.rss_kb(), m.pss_kb()));
        let tcp1 = procmeter::tcp_mem_kb();
        sleep(Duration::from_secs_f64(hold));
        let b1 = procmeter::sample(m.as_mut());
        let (rss2, pss2) = m.as_ref().map_or((0, 0), |m| (m.rss_kb(), m.pss_kb()));
        let u_open = Usage::between(&a0, &a1, m.is_some());
        let u_idle = Usage::between(&b0, &b1, m.is_some());
        let mut r = report("idle", c, &m);
        r.num("conns", conns as f64, "connections asked for");
        r.num("ready", ready as f64, "connected and subscribed");
        r.num("failed", sum.lock().unwrap().failed as f64, "failed");
        r.num("connect_s", u_open.secs, "seconds to connect and subscribe all");
        r.num("connects_per_s", ready as f64 / u_open.secs, "connect+subscribe per second");
        if m.is_some() {
            r.num("connect_cpu_us", 1e6 * u_open.server_s / ready.max(1) as f64, "server CPU µs per connect+subscribe");
        }
        r.num("connect_gen_cpu_pct", 100.0 * u_open.gen_s / u_open.secs, "generator CPU while connecting, % of a core");
        if m.is_some() {
            let per = |a: u64, b: u64| (b as f64 - a as f64) * 1024.0 / ready.max(1) as f64;
            r.num("rss_before_mb", mb(rss0), "server RSS before, MiB");
            r.num("rss_connected_mb", mb(rss1), "server RSS connected, MiB");
            r.num("rss_held_mb", mb(rss2), "server RSS after holding, MiB");
            r.num("rss_bytes_per_conn", per(rss0, rss1.max(rss2)), "server RSS bytes per connection");
            r.num("pss_bytes_per_conn", per(pss0, pss1.max(pss2)), "server PSS bytes per connection");
        }
        r.num("tcp_mem_bytes_per_conn", (tcp1 as f64 - tcp0 as f64) * 1024.0 / ready.max(1) as f64, "");
        usage(&mut r, &u_idle, m.is_some(), 0.0, "");
        if m.is_some() {
            r.num("idle_cpu_pct", 100.0 * u_idle.server_s / u_idle.secs, "server CPU while idle, % of a core");
        }
        for (wanted, p, key, what) in [
            (then.fanout, FANOUT, "after_fanout", "after a message to each"),
            (then.frames, FRAMES, "after_frames", "after a frame from each"),
        ] {
            if !wanted {
                continue;
            }
            done.store(0, SeqCst);
            phase.store(p, SeqCst);
            while done.load(SeqCst) < shards {
                sleep(Duration::from_millis(10));
            }
            sleep(Duration::from_millis(1000));
            if let Some(m) = &m {
                let per = (m.rss_kb() as f64 - rss0 as f64) * 1024.0 / ready.max(1) as f64;
                r.num(&format!("rss_bytes_per_conn_{key}"), per, &format!("server RSS bytes per connection {what}"));
            }
        }
        phase.store(STOP, SeqCst);
        Ok(r)
    })?;
    let lost = lost_at_stop.load(SeqCst);
    let t = sum.into_inner().unwrap();
    if let Some(e) = t.error {
        eprintln!("warning: {e}");
    }
    r.num("lost", lost as f64, "dropped while held");
    if then.fanout {
        r.num("fanout_received", t.got as f64, "messages received after the hold");
    }
    if then.frames {
        r.num("frames_answered", t.pongs as f64, "frames answered after the hold");
    }
    r.num("pings", t.pings as f64, "pings from the server");
    r.num("pings_sent", t.pings_sent as f64, "");
    if let Some(m) = &m {
        sleep(Duration::from_millis(2000));
        r.num("rss_closed_mb", mb(m.rss_kb()), "server RSS 2 s after all closed, MiB");
    }
    notes(&mut r, &m, &t.notes);
    Ok(r)
}

// ---- receive ----

struct Receive;

impl Handler for Receive {
    fn on_established(&mut self, _net: &mut Net, _i: usize, _sid: &[u8]) {}
}

fn receive(c: &Common, conns: usize, rate: f64, burst: usize, size: usize, duration: f64, warmup: f64) -> Res<Report> {
    if conns == 0 || rate <= 0.0 || burst == 0 {
        return Err("--conns, --rate and --burst must be above 0".into());
    }
    let mut m = meter(c)?;
    let mut net = Net::new(netcfg(c, conns, 1, St::Established));
    let mut h = Receive;
    net.open_all(&mut h, 0, conns, 0)?;
    net.require(conns)?;
    // The only frames are ours: pongs that nobody asked for.
    net.client_pings = false;
    let text = padded("pusher:pong", size);
    let start = now_ns();
    let w0 = start + (warmup * 1e9) as u64;
    let w1 = w0 + (duration * 1e9) as u64;
    let mut s0 = None;
    let mut due = start as f64;
    let (mut n, mut sent, mut all) = (0usize, 0u64, 0u64);
    let mut lag = load::hist();
    loop {
        let now = now_ns();
        if s0.is_none() && now >= w0 {
            s0 = Some(procmeter::sample(m.as_mut()));
        }
        if now >= w1 {
            break;
        }
        while now as f64 >= due {
            let i = n % net.conns.len();
            n += 1;
            if net.conns[i].st == St::Established {
                net.send_text(i, &text);
                all += 1;
                if s0.is_some() {
                    sent += 1;
                    let _ = lag.record((now - due as u64).max(1));
                }
            }
            if n.is_multiple_of(burst) {
                due += 1e9 * burst as f64 / rate;
            }
        }
        let wake = (due as u64).min(w1);
        net.poll(&mut h, wake.saturating_sub(now_ns()));
    }
    let s1 = procmeter::sample(m.as_mut());
    let u = Usage::between(&s0.unwrap_or(s1), &s1, m.is_some());
    // A client that answers now has read everything before.
    let want = net.pongs + net.ready as u64;
    for i in 0..net.conns.len() {
        if net.conns[i].st == St::Established {
            net.send_text(i, "{\"event\":\"pusher:ping\",\"data\":{}}");
        }
    }
    let end = now_ns() + 5_000_000_000;
    while net.pongs < want && now_ns() < end {
        net.poll(&mut h, 10_000_000);
    }
    let mut r = report("receive", c, &m);
    r.num("conns", net.ready as f64, "connections");
    r.num("size", size as f64, "payload bytes");
    r.num("rate_target", rate, "frames/s asked for");
    r.num("burst", burst as f64, "");
    r.num("duration_s", u.secs, "");
    r.num("frames_per_s", sent as f64 / u.secs, "frames/s");
    r.num("frames", all as f64, "frames, warm-up included");
    r.num("unanswered", want.saturating_sub(net.pongs) as f64, "connections that did not answer in the end");
    r.num("disconnects", net.lost as f64, "disconnects");
    r.num("sched_lag_p99_us", lag.value_at_quantile(0.99) as f64 / 1000.0, "generator behind schedule p99, µs");
    usage(&mut r, &u, m.is_some(), sent as f64, "frame");
    net.close_all(&mut h);
    notes(&mut r, &m, &net.notes);
    Ok(r)
}

// ---- fairness ----

/// What the thread of the small channel brings back.
struct Small {
    load: Load,
    out: PhaseOut,
    notes: BTreeMap<String, u64>,
}

fn fairness(c: &Common, big: usize, small: usize, small_rate: f64, t: &Traffic) -> Res<Report> {
    let limit = sys::raise_nofile() as usize;
    if big + 256 > limit {
        return Err(format!("--big {big} is above this process's file limit of {limit}"));
    }
    if t.rate > 0.0 {
        return Err("the big channel is a closed loop: --inflight, not --rate".into());
    }
    let mut m = meter(c)?;
    let id = run_id();
    // Both have connected; both have opened.
    let (first, ready) = (Barrier::new(2), Barrier::new(2));
    let name = |what: &str| vec![format!("{what}-{id}")];
    std::thread::scope(|s| -> Res<Report> {
        let beside = s.spawn(|| -> Res<Small> {
            // A descriptor table of its own, made before the big channel's sockets are there.
            let opened = (|| -> Res<(Net, Load)> {
                sys::unshare_files().map_err(|e| format!("unshare: {e}"))?;
                let mut l = Load::new(signer(c), name("small"), 1, t.size, !t.plain);
                let mut net = Net::new(netcfg(c, small, 32, St::Subscribed));
                net.open_all(&mut l, 0, small, 0)?;
                net.require(small)?;
                Ok((net, l))
            })();
            first.wait();
            ready.wait();
            let (mut net, mut load) = opened?;
            let mode = Mode::Rate { per_s: small_rate, poisson: t.poisson };
            let ph = Phase { mode, warm_s: t.warmup, dur_s: t.duration, drain_s: t.drain };
            let out = load.run(&mut net, ph, &mut None, None);
            net.close_all(&mut load);
            Ok(Small { load, out, notes: net.notes })
        });
        let mut l = Load::new(signer(c), name("big"), 1, t.size, !t.plain);
        let mut net = Net::new(netcfg(c, big, http_conns(t), St::Subscribed));
        first.wait();
        let rss0 = m.as_ref().map_or(0, Meter::rss_kb);
        let opened = net.open_all(&mut l, 0, big, big).and_then(|_| net.require(big));
        let rss1 = m.as_ref().map_or(0, Meter::rss_kb);
        ready.wait();
        let o = opened.map(|()| l.run(&mut net, phase_of(t), &mut m, None));
        let small_side = beside.join().map_err(|_| "the small channel's thread failed")?;
        let (o, b) = (o?, small_side?);
        let mut r = report("fairness", c, &m);
        r.num("conns", net.ready as f64, "subscribers of the saturated channel");
        r.num("small", small as f64, "subscribers of the small one");
        r.num("inflight", t.inflight as f64, "in flight in the saturated channel");
        traffic_report(&mut r, t, &l, &net, &o, rss0, rss1, m.is_some());
        r.row("", String::new());
        let (expected, lost) = b.load.account();
        r.num("small_rate_target", small_rate, "");
        r.num("small_publishes_per_s", b.out.published_per_s, "small channel: publishes/s");
        load::report_hist(&mut r, &b.load.hist, "small_lat", "small channel: latency");
        load::report_hist(&mut r, &b.load.http_hist, "small_http", "small channel: HTTP response");
        let lag = b.load.lag_hist.value_at_quantile(0.99) as f64 / 1000.0;
        r.num("small_sched_lag_p99_us", lag, "small channel: generator behind schedule p99, µs");
        r.num("small_expected", expected as f64, "");
        r.num("small_lost", lost as f64, "small channel: lost");
        r.num("small_duplicated", b.load.duplicated as f64, "");
        r.num("small_order_violations", b.load.order_violations as f64, "");
        net.close_all(&mut l);
        let mut all = net.notes.clone();
        for (k, v) in b.notes {
            *all.entry(k).or_default() += v;
        }
        notes(&mut r, &m, &all);
        Ok(r)
    })
}

// ---- churn ----

struct Churn {
    signer: Signer,
    channel: String,
    cycles: u64,
    broken: u64,
    hist: Histogram<u64>,
}

impl Handler for Churn {
    fn on_established(&mut self, net: &mut Net, i: usize, sid: &[u8]) {
        let a = self.signer.channel_auth(sid, &self.channel, None);
        net.subscribe(i, &self.channel, Some(&a), None);
    }
    fn on_subscribed(&mut self, net: &mut Net, i: usize, _p: &[u8]) {
        net.start_close(i);
    }
    fn on_closed(&mut self, net: &mut Net, i: usize, was: St) {
        if was == St::Closing {
            self.cycles += 1;
            let _ = self.hist.record(now_ns() - net.conns[i].t0);
        } else {
            self.broken += 1;
        }
    }
}

fn churn(c: &Common, workers: usize, duration: f64, warmup: f64) -> Res<Report> {
    let mut m = meter(c)?;
    let mut cfg = netcfg(c, workers, 1, St::Subscribed);
    if c.src_ips == 0 {
        cfg.src_ips = 64;
    }
    let mut net = Net::new(cfg);
    net.client_pings = false;
    let mut h = Churn {
        signer: signer(c),
        channel: format!("private-churn-{}", run_id()),
        cycles: 0,
        broken: 0,
        hist: load::hist(),
    };
    let rss0 = m.as_ref().map_or(0, Meter::rss_kb);
    let start = now_ns();
    let w0 = start + (warmup * 1e9) as u64;
    let w1 = w0 + (duration * 1e9) as u64;
    let mut s0 = None;
    let mut base = (0, 0, 0);
    let mut close_timeouts = 0u64;
    let mut next_check = start;
    let mut rss_peak = rss0;
    loop {
        let now = now_ns();
        if s0.is_none() && now >= w0 {
            s0 = Some(procmeter::sample(m.as_mut()));
            base = (h.cycles, h.broken, net.failed);
            h.hist.reset();
        }
        if now >= w1 {
            break;
        }
        if now >= next_check {
            next_check = now + 250_000_000;
            rss_peak = rss_peak.max(m.as_ref().map_or(0, Meter::rss_kb));
            for i in 0..net.conns.len() {
                if net.conns[i].st == St::Closing && now - net.conns[i].t0 > 10_000_000_000 {
                    close_timeouts += 1;
                    net.note("close frame not answered within 10 s");
                    net.close_local(&mut h, i);
                }
            }
        }
        let mut tries = 0;
        while net.opening + net.ready < workers && tries < workers {
            net.open_ws(&mut h, 0);
            tries += 1;
        }
        net.poll(&mut h, 50_000_000.min(w1 - now));
    }
    let s1 = procmeter::sample(m.as_mut());
    let u = Usage::between(&s0.unwrap_or(s1), &s1, m.is_some());
    let cycles = (h.cycles - base.0) as f64;
    let failed = (net.failed - base.2).max((h.broken - base.1) as usize);
    let mut r = report("churn", c, &m);
    r.num("workers", workers as f64, "concurrent");
    r.num("duration_s", u.secs, "");
    r.num("cycles", cycles, "cycles");
    r.num("cycles_per_s", cycles / u.secs, "cycles/s (connect, subscribe private, close)");
    r.num("failed", failed as f64, "failed");
    r.num("close_timeouts", close_timeouts as f64, "");
    load::report_hist(&mut r, &h.hist, "cycle", "whole cycle");
    usage(&mut r, &u, m.is_some(), cycles, "cycle");
    net.close_all(&mut h);
    if let Some(m) = &m {
        sleep(Duration::from_millis(2000));
        let end = m.rss_kb();
        r.num("rss_before_mb", mb(rss0), "server RSS before, MiB");
        r.num("rss_peak_mb", mb(rss_peak), "peak");
        r.num("rss_after_mb", mb(end), "2 s after");
        r.num("rss_growth_mb", mb(end) - mb(rss0), "growth");
        r.num("rss_growth_bytes_per_cycle", (end as f64 - rss0 as f64) * 1024.0 / h.cycles.max(1) as f64, "");
    }
    notes(&mut r, &m, &net.notes);
    Ok(r)
}

// ---- publish ----

#[allow(clippy::too_many_arguments)]
fn publish(
    c: &Common,
    workers: usize,
    channels: usize,
    size: usize,
    json: bool,
    duration: f64,
    warmup: f64,
    mode: &str,
) -> Res<Report> {
    let mut m = meter(c)?;
    let id = run_id();
    let mut r = report("publish", c, &m);
    r.num("workers", workers as f64, "keep-alive connections");
    r.num("size", size as f64, "data bytes");
    let rss0 = m.as_ref().map_or(0, Meter::rss_kb);
    let mut all_notes = BTreeMap::new();
    let mut worst = 0f64;
    let mut any = false;
    for (key, subs, batch, what) in [
        ("nosub", 0usize, 1usize, "no subscriber"),
        ("onesub", 1, 1, "one subscriber"),
        ("batch10", 0, 10, "batch_events of 10, no subscriber"),
    ] {
        if mode != "all" && !key.starts_with(mode) {
            continue;
        }
        any = true;
        let n = if subs > 0 { 1 } else { channels };
        let names = (0..n).map(|k| format!("pub-{id}-{key}-{k}")).collect();
        let mut l = Load::new(signer(c), names, n, size, json);
        l.closed_on_response(true);
        l.batch(batch);
        let mut net = Net::new(netcfg(c, subs, workers, St::Subscribed));
        net.open_all(&mut l, 0, subs, 3)?;
        net.require(subs)?;
        let ph = Phase { mode: Mode::Closed(workers), warm_s: warmup, dur_s: duration, drain_s: 3.0 };
        let o = l.run(&mut net, ph, &mut m, None);
        let u = &o.usage;
        // Completed requests, as the histogram of the window counts them.
        let done = l.http_hist.len() as f64;
        r.row("", String::new());
        r.num(&format!("{key}_requests_per_s"), done / u.secs, &format!("{what}: requests/s"));
        if batch > 1 {
            r.num(&format!("{key}_events_per_s"), done * batch as f64 / u.secs, "events/s");
        }
        load::report_hist(&mut r, &l.http_hist, &format!("{key}_http"), "response");
        r.num(&format!("{key}_failed"), l.http_failed as f64, "failed");
        if m.is_some() {
            r.num(&format!("{key}_cpu_us_per_request"), 1e6 * u.server_s / done.max(1.0), "server CPU µs per request");
            r.num(&format!("{key}_server_cpu_pct"), 100.0 * u.server_s / u.secs, "server CPU, % of a core");
        }
        r.num(&format!("{key}_gen_cpu_pct"), 100.0 * u.gen_s / u.secs, "generator CPU, % of a core");
        r.num(&format!("{key}_other_cpu_pct"), u.other_pct, "other processes, % of a core");
        r.num(&format!("{key}_http_reconnects"), net.http_reconnects as f64, "");
        if subs > 0 {
            let (expected, lost) = l.account();
            r.num(&format!("{key}_deliveries_per_s"), o.deliveries_per_s, "deliveries/s");
            r.num(&format!("{key}_expected"), expected as f64, "");
            r.num(&format!("{key}_lost"), lost as f64, "lost");
            r.num(&format!("{key}_duplicated"), l.duplicated as f64, "");
            r.num(&format!("{key}_order_violations"), l.order_violations as f64, "out of order");
            load::report_hist(&mut r, &l.hist, &format!("{key}_lat"), "delivery latency");
        }
        worst = worst.max(u.gen_s / u.secs);
        net.close_all(&mut l);
        for (k, v) in &net.notes {
            *all_notes.entry(k.clone()).or_default() += v;
        }
    }
    if !any {
        return Err("--mode all, nosub, onesub or batch".into());
    }
    if worst > 0.9 {
        r.value("gen_bound", true.into());
        r.row("WARNING", "the generator used a whole core: it may be the limit".into());
    }
    if let Some(m) = &m {
        r.num("rss_before_mb", mb(rss0), "");
        r.num("rss_after_mb", mb(m.rss_kb()), "server RSS after, MiB");
    }
    notes(&mut r, &m, &all_notes);
    Ok(r)
}

// ---- client events ----

struct Pairs {
    signer: Signer,
    prefix: String,
    /// Connection slot of each side of each pair.
    slots: Vec<[usize; 2]>,
    seq: Vec<u32>,
    sent: Vec<u64>,
    tail: String,
    running: bool,
    measuring: bool,
    trips: u64,
    lost: u64,
    stray: u64,
    hist: Histogram<u64>,
}

impl Pairs {
    fn event(&self, pair: usize, side: usize, mark: Mark) -> String {
        let mut s = format!(
            "{{\"event\":\"client-{}\",\"channel\":\"{}-{pair}\",\"data\":{{\"m\":\"",
            ["ping", "pong"][side],
            self.prefix
        )
        .into_bytes();
        let at = s.len();
        s.extend_from_slice(&[0; wire::MARKER]);
        wire::write_mark(&mut s[at..], mark);
        s.extend_from_slice(self.tail.as_bytes());
        String::from_utf8(s).unwrap()
    }

    fn serve(&mut self, net: &mut Net, pair: usize) {
        self.seq[pair] += 1;
        let now = now_ns();
        self.sent[pair] = now;
        let e = self.event(pair, 0, Mark { ns: now, id: pair as u32, seq: self.seq[pair] });
        net.send_text(self.slots[pair][0], &e);
    }
}

impl Handler for Pairs {
    fn on_established(&mut self, net: &mut Net, i: usize, sid: &[u8]) {
        let u = net.conns[i].user as usize;
        self.slots[u / 2][u % 2] = i;
        let ch = format!("{}-{}", self.prefix, u / 2);
        let a = self.signer.channel_auth(sid, &ch, None);
        net.subscribe(i, &ch, Some(&a), None);
    }

    fn on_msg(&mut self, net: &mut Net, i: usize, p: &[u8], at: usize, now: u64) {
        let Some(mk) = wire::read_mark(&p[at..]) else { return };
        let u = net.conns[i].user as usize;
        let pair = u / 2;
        if mk.id as usize != pair || mk.seq != self.seq[pair] {
            self.stray += 1;
            return;
        }
        if u % 2 == 1 {
            let e = self.event(pair, 1, mk);
            net.send_text(i, &e);
            return;
        }
        if self.measuring {
            self.trips += 1;
            let _ = self.hist.record((now - mk.ns).max(1));
        }
        if self.running {
            self.serve(net, pair);
        }
    }
}

fn client_events(c: &Common, pairs: usize, size: usize, duration: f64, warmup: f64) -> Res<Report> {
    let mut m = meter(c)?;
    let mut net = Net::new(netcfg(c, pairs * 2, 1, St::Subscribed));
    let mut h = Pairs {
        signer: signer(c),
        prefix: format!("private-ce-{}", run_id()),
        slots: vec![[0, 0]; pairs],
        seq: vec![0; pairs],
        sent: vec![0; pairs],
        tail: String::new(),
        running: true,
        measuring: false,
        trips: 0,
        lost: 0,
        stray: 0,
        hist: load::hist(),
    };
    let base = wire::MARKER + 8;
    h.tail = if size > base + 7 { format!("\",\"p\":\"{}\"}}}}", "x".repeat(size - base - 7)) } else { "\"}}".into() };
    net.open_all(&mut h, 0, pairs * 2, 0)?;
    net.require(pairs * 2)?;
    for p in 0..pairs {
        h.serve(&mut net, p);
    }
    let start = now_ns();
    let w0 = start + (warmup * 1e9) as u64;
    let w1 = w0 + (duration * 1e9) as u64;
    let mut s0 = None;
    let mut next = start;
    loop {
        let now = now_ns();
        if s0.is_none() && now >= w0 {
            s0 = Some(procmeter::sample(m.as_mut()));
            h.measuring = true;
        }
        if now >= w1 {
            break;
        }
        if now >= next {
            next = now + 100_000_000;
            for p in 0..pairs {
                if now.saturating_sub(h.sent[p]) > 2_000_000_000 {
                    h.lost += 1;
                    h.serve(&mut net, p);
                }
            }
        }
        net.poll(&mut h, 50_000_000.min(w1 - now));
    }
    let s1 = procmeter::sample(m.as_mut());
    h.running = false;
    h.measuring = false;
    let u = Usage::between(&s0.unwrap_or(s1), &s1, m.is_some());
    let mut r = report("client-events", c, &m);
    r.num("pairs", pairs as f64, "pairs");
    r.num("size", size as f64, "data bytes");
    r.num("duration_s", u.secs, "");
    r.num("round_trips_per_s", h.trips as f64 / u.secs, "round trips/s (two client events each)");
    load::report_hist(&mut r, &h.hist, "rtt", "round trip");
    r.num("lost", h.lost as f64, "no answer within 2 s");
    r.num("stray", h.stray as f64, "stray (echoed, late or doubled)");
    r.num("disconnects", net.lost as f64, "disconnects");
    usage(&mut r, &u, m.is_some(), 2.0 * h.trips as f64, "client_event");
    net.close_all(&mut h);
    notes(&mut r, &m, &net.notes);
    Ok(r)
}

// ---- presence ----

struct Presence {
    signer: Signer,
    channel: String,
    m: usize,
    sids: Vec<Vec<u8>>,
    slot: Vec<usize>,
    /// seen[a * m + b]: member a knows that b is there.
    seen: Vec<bool>,
    known: usize,
    /// removed[a * m + b]: a was told that b left.
    removed: Vec<bool>,
    joined: usize,
    added: u64,
    removals: u64,
    dup_added: u64,
    dup_removed: u64,
    bad: u64,
    join_t: Vec<u64>,
    join_hist: Histogram<u64>,
    refused: usize,
}

impl Presence {
    fn join(&mut self, net: &mut Net, u: usize) {
        let i = self.slot[u];
        let d = format!("{{\"user_id\":\"@@{u:08x}\",\"user_info\":{{\"name\":\"Member {u}\"}}}}");
        let a = self.signer.channel_auth(&self.sids[u], &self.channel, Some(&d));
        self.join_t[u] = now_ns();
        net.subscribe(i, &self.channel, Some(&a), Some(&d));
    }

    fn learn(&mut self, a: usize, b: usize) -> bool {
        let s = &mut self.seen[a * self.m + b];
        let new = !*s;
        *s = true;
        self.known += usize::from(new);
        new
    }
}

impl Handler for Presence {
    fn on_established(&mut self, net: &mut Net, i: usize, sid: &[u8]) {
        let u = net.conns[i].user as usize;
        self.sids[u] = sid.to_vec();
        self.slot[u] = i;
    }

    fn on_msg(&mut self, net: &mut Net, i: usize, p: &[u8], at: usize, _now: u64) {
        let a = net.conns[i].user as usize;
        let find = |s: &[u8]| memchr::memmem::find(&p[..p.len().min(200)], s).is_some();
        // The event's name may come after the data in some servers' frames.
        let added = find(b"member_added") || (p.len() < 400 && memchr::memmem::find(p, b"member_added").is_some());
        let removed = !added
            && (find(b"member_removed") || (p.len() < 400 && memchr::memmem::find(p, b"member_removed").is_some()));
        if !added && !removed {
            if memchr::memmem::find(p, b"subscription_succeeded").is_none() {
                self.bad += 1;
                return;
            }
            let mut k = at;
            loop {
                match wire::read_id(&p[k..]) {
                    Some(b) if (b as usize) < self.m => {
                        self.learn(a, b as usize);
                    }
                    _ => self.bad += 1,
                }
                match wire::find_mark(&p[k + 2..]) {
                    Some(d) => k += 2 + d,
                    None => break,
                }
            }
            self.joined += 1;
            let _ = self.join_hist.record(now_ns() - self.join_t[a]);
            net.subscribed(self, i, b"");
            return;
        }
        let Some(b) = wire::read_id(&p[at..]).map(|b| b as usize).filter(|b| *b < self.m) else {
            self.bad += 1;
            return;
        };
        if added {
            self.added += 1;
            if !self.learn(a, b) {
                self.dup_added += 1;
            }
        } else {
            self.removals += 1;
            let x = &mut self.removed[a * self.m + b];
            if *x {
                self.dup_removed += 1;
            }
            *x = true;
        }
    }

    fn on_other(&mut self, _net: &mut Net, _i: usize, _p: &[u8]) {
        self.refused += 1;
    }
}

fn presence(c: &Common, members: usize, window: usize, unsubscribe: bool, timeout: f64) -> Res<Report> {
    let mut m = meter(c)?;
    let mut net = Net::new(netcfg(c, members, 1, St::Established));
    let mut h = Presence {
        signer: signer(c),
        channel: format!("presence-{}", run_id()),
        m: members,
        sids: vec![Vec::new(); members],
        slot: vec![usize::MAX; members],
        seen: vec![false; members * members],
        known: 0,
        removed: vec![false; members * members],
        joined: 0,
        added: 0,
        removals: 0,
        dup_added: 0,
        dup_removed: 0,
        bad: 0,
        join_t: vec![0; members],
        join_hist: load::hist(),
        refused: 0,
    };
    net.open_all(&mut h, 0, members, 0)?;
    if net.ready < members {
        return Err(format!("only {} of {members} connected: {:?}", net.ready, net.notes));
    }
    let rss0 = m.as_ref().map_or(0, Meter::rss_kb);
    let limit = (timeout * 1e9) as u64;
    let s0 = procmeter::sample(m.as_mut());
    let t0 = now_ns();
    let mut asked = 0;
    let mut seen = (0, t0);
    while h.known < members * members && now_ns() - t0 < limit {
        let state = h.known + h.joined + h.refused;
        if state != seen.0 {
            seen = (state, now_ns());
        } else if now_ns() - seen.1 > 3_000_000_000 {
            break;
        }
        while asked < members && asked - (h.joined + h.refused).min(asked) < window {
            h.join(&mut net, asked);
            asked += 1;
        }
        if h.refused > 0 && h.joined + h.refused >= members {
            break;
        }
        net.poll(&mut h, 100_000_000);
    }
    // Until the last thing learnt: the same as now, unless some were never told.
    let join_s = if h.known < members * members { (seen.1 - t0) as f64 } else { (now_ns() - t0) as f64 } / 1e9;
    let s1 = procmeter::sample(m.as_mut());
    let u1 = Usage::between(&s0, &s1, m.is_some());
    // Time for anything said twice.
    let end = now_ns() + 200_000_000;
    while now_ns() < end {
        net.poll(&mut h, 50_000_000);
    }
    let rss1 = m.as_ref().map_or(0, Meter::rss_kb);
    let added = h.added;
    // The second half leaves.
    let stay = members.div_ceil(2);
    let s2 = procmeter::sample(m.as_mut());
    let t2 = now_ns();
    let want = (stay * (members - stay)) as u64;
    for u in stay..members {
        if unsubscribe {
            let s = format!("{{\"event\":\"pusher:unsubscribe\",\"data\":{{\"channel\":\"{}\"}}}}", h.channel);
            net.send_text(h.slot[u], &s);
        } else {
            net.start_close(h.slot[u]);
        }
    }
    let told = |h: &Presence| -> u64 {
        (0..stay).map(|a| h.removed[a * members + stay..(a + 1) * members].iter().filter(|x| **x).count() as u64).sum()
    };
    let mut seen = (0, t2);
    while now_ns() - t2 < limit {
        net.poll(&mut h, 20_000_000);
        if h.removals != seen.0 {
            seen = (h.removals, now_ns());
        } else if now_ns() - seen.1 > 3_000_000_000 {
            break;
        }
        if h.removals - h.dup_removed.min(h.removals) >= want && told(&h) >= want {
            break;
        }
    }
    let leave_s = if told(&h) < want { (seen.1 - t2) as f64 } else { (now_ns() - t2) as f64 } / 1e9;
    let s3 = procmeter::sample(m.as_mut());
    let u2 = Usage::between(&s2, &s3, m.is_some());
    let end = now_ns() + 200_000_000;
    while now_ns() < end {
        net.poll(&mut h, 50_000_000);
    }
    let mut r = report("presence", c, &m);
    r.num("members", members as f64, "members");
    r.num("joined", h.joined as f64, "joined");
    r.num("refused", h.refused as f64, "refused");
    r.num("join_s", join_s, "seconds until every member knew of every other");
    r.num("joins_per_s", h.joined as f64 / join_s, "joins/s");
    r.num("member_added", added as f64, "member_added received");
    r.num("member_added_per_s", added as f64 / join_s, "member_added/s");
    r.num("unknown_pairs", (members * members - h.known) as f64, "members not told of (pairs)");
    r.num("dup_added", h.dup_added as f64, "member_added of a member already known");
    load::report_hist(&mut r, &h.join_hist, "join", "subscribe to list of members");
    r.num("leave_s", leave_s, "seconds until the staying half knew of all who left");
    r.num("member_removed", h.removals as f64, "member_removed received");
    r.num("missing_removed", (want.saturating_sub(told(&h))) as f64, "member_removed missing");
    r.num("dup_removed", h.dup_removed as f64, "member_removed twice");
    r.num("bad", h.bad as f64, "");
    if m.is_some() {
        r.num("join_cpu_s", u1.server_s, "server CPU joining, s");
        r.num("leave_cpu_s", u2.server_s, "server CPU leaving, s");
        r.num("cpu_us_per_member_added", 1e6 * u1.server_s / added.max(1) as f64, "server CPU µs per member_added");
        r.num("rss_before_mb", mb(rss0), "server RSS before joining, MiB");
        r.num("rss_joined_mb", mb(rss1), "server RSS joined, MiB");
    }
    r.num("gen_cpu_pct", 100.0 * u1.gen_s / u1.secs, "generator CPU joining, % of a core");
    r.num("other_cpu_pct", u1.other_pct, "other processes, % of a core");
    net.close_all(&mut h);
    notes(&mut r, &m, &net.notes);
    Ok(r)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_messages_have_the_size_asked_for_and_are_json() {
        for size in [45, 60, 100, 1000] {
            let s = padded("pusher:pong", size);
            assert_eq!(s.len(), size);
            let v: Value = serde_json::from_str(&s).unwrap();
            assert_eq!(v["event"], "pusher:pong");
        }
    }
}
