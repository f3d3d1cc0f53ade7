//! What the server process costs: CPU, memory; and what else ran on the machine.

use crate::sys;
use std::collections::HashMap;
use std::fs;
use std::net::SocketAddrV4;

#[derive(Clone)]
pub struct Meter {
    pub pid: i32,
    tree: bool,
    pids: Vec<i32>,
}

#[derive(Clone, Copy, Default, Debug)]
pub struct Sample {
    pub at_ns: u64,
    /// Server: all threads of all metered processes.
    pub cpu_ns: u64,
    pub user_ticks: u64,
    pub sys_ticks: u64,
    /// This generator.
    pub gen_user_ns: u64,
    pub gen_sys_ns: u64,
    /// Whole machine, in ticks of 10 ms.
    pub busy: u64,
    pub idle: u64,
    pub steal: u64,
}

fn stat_fields(pid: i32) -> Option<Vec<String>> {
    let s = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may contain anything but ends with the last ')'.
    let r = &s[s.rfind(')')? + 2..];
    Some(r.split_whitespace().map(str::to_owned).collect())
}

/// A process and all its descendants.
fn tree_of(pid: i32) -> Vec<i32> {
    let mut all: Vec<(i32, i32)> = Vec::new();
    if let Ok(d) = fs::read_dir("/proc") {
        for e in d.flatten() {
            if let Some(p) = e.file_name().to_str().and_then(|s| s.parse::<i32>().ok())
                && let Some(f) = stat_fields(p)
            {
                all.push((p, f[1].parse().unwrap_or(0)));
            }
        }
    }
    let mut out = vec![pid];
    let mut k = 0;
    while k < out.len() {
        let parent = out[k];
        out.extend(all.iter().filter(|(_, pp)| *pp == parent).map(|(p, _)| *p));
        k += 1;
    }
    out
}

fn kb_line(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|l| l.strip_prefix(name))
        .and_then(|l| l.split_whitespace().next())
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

impl Meter {
    pub fn new(pid: i32, tree: bool) -> Result<Meter, String> {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).map_err(|_| format!("no process {pid}"))?;
        let m = Meter { pid, tree, pids: if tree { tree_of(pid) } else { vec![pid] } };
        if sys::process_cpu_ns(pid).is_none() {
            return Err(format!("cannot read the CPU clock of {pid} ({})", comm.trim()));
        }
        Ok(m)
    }

    pub fn name(&self) -> String {
        let c = fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        c.trim().to_string()
    }

    pub fn alive(&self) -> bool {
        stat_fields(self.pid).is_some_and(|f| f[0] != "Z")
    }

    pub fn processes(&mut self) -> usize {
        if self.tree {
            self.pids = tree_of(self.pid);
        }
        self.pids.len()
    }

    pub fn threads(&self) -> usize {
        self.pids.iter().filter_map(|p| stat_fields(*p)?.get(17)?.parse::<usize>().ok()).sum()
    }

    pub fn rss_kb(&self) -> u64 {
        self.pids
            .iter()
            .filter_map(|p| {
                let s = fs::read_to_string(format!("/proc/{p}/statm")).ok()?;
                s.split_whitespace().nth(1)?.parse::<u64>().ok()
            })
            .sum::<u64>()
            * 4
    }

    pub fn pss_kb(&self) -> u64 {
        self.pids
            .iter()
            .filter_map(|p| fs::read_to_string(format!("/proc/{p}/smaps_rollup")).ok())
            .map(|s| kb_line(&s, "Pss:"))
            .sum()
    }
}

/// Kernel memory held by all TCP sockets of the machine, in KiB.
pub fn tcp_mem_kb() -> u64 {
    let s = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    s.lines()
        .find(|l| l.starts_with("TCP:"))
        .and_then(|l| l.split_whitespace().last())
        .and_then(|v| v.parse::<u64>().ok())
        .unwrap_or(0)
        * 4
}

/// One sample of everything; `m` may be absent.
pub fn sample(m: Option<&mut Meter>) -> Sample {
    let mut s = Sample::default();
    if let Some(m) = m {
        m.processes();
        for p in &m.pids {
            s.cpu_ns += sys::process_cpu_ns(*p).unwrap_or(0);
            if let Some(f) = stat_fields(*p) {
                s.user_ticks += f[11].parse::<u64>().unwrap_or(0);
                s.sys_ticks += f[12].parse::<u64>().unwrap_or(0);
            }
        }
    }
    (s.gen_user_ns, s.gen_sys_ns) = sys::self_cpu_ns();
    let t = fs::read_to_string("/proc/stat").unwrap_or_default();
    if let Some(l) = t.lines().next() {
        let v: Vec<u64> = l.split_whitespace().skip(1).filter_map(|x| x.parse().ok()).collect();
        if v.len() >= 8 {
            s.busy = v[0] + v[1] + v[2] + v[5] + v[6];
            s.idle = v[3] + v[4];
            s.steal = v[7];
        }
    }
    s.at_ns = sys::now_ns();
    s
}

/// The difference of two samples, in seconds and per cents of one core.
#[derive(Clone, Copy, Default, Debug)]
pub struct Usage {
    pub secs: f64,
    pub server_s: f64,
    pub server_user_s: f64,
    pub server_sys_s: f64,
    pub gen_s: f64,
    pub gen_user_s: f64,
    /// Busy time of the machine that is neither server nor generator, in cores (%).
    pub other_pct: f64,
    pub steal_pct: f64,
    pub idle_pct: f64,
}

impl Usage {
    pub fn between(a: &Sample, b: &Sample, metered: bool) -> Usage {
        let secs = (b.at_ns - a.at_ns) as f64 / 1e9;
        let d = |x: u64, y: u64| y.saturating_sub(x) as f64;
        let server_s = d(a.cpu_ns, b.cpu_ns) / 1e9;
        let u = d(a.user_ticks, b.user_ticks);
        let k = d(a.sys_ticks, b.sys_ticks);
        // The kernel's split is in ticks; scale it to the exact total.
        let share = if u + k > 0.0 { u / (u + k) } else { 0.0 };
        let gen_user_s = d(a.gen_user_ns, b.gen_user_ns) / 1e9;
        let gen_s = gen_user_s + d(a.gen_sys_ns, b.gen_sys_ns) / 1e9;
        let busy = d(a.busy, b.busy) / 100.0;
        let other = if metered { (busy - server_s - gen_s).max(0.0) } else { f64::NAN };
        Usage {
            secs,
            server_s,
            server_user_s: server_s * share,
            server_sys_s: server_s * (1.0 - share),
            gen_s,
            gen_user_s,
            other_pct: 100.0 * other / secs,
            steal_pct: d(a.steal, b.steal) / secs,
            idle_pct: d(a.idle, b.idle) / secs,
        }
    }
}

/// State and send-queue length (bytes not acknowledged yet, sent or not) of the server's ends of its
/// connections, by the client's address, from /proc/net/tcp and tcp6.
pub fn server_sides(server_port: u16) -> HashMap<SocketAddrV4, (u8, u64)> {
    let mut out = HashMap::new();
    let server = format!(":{server_port:04X}");
    for f in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let Ok(s) = fs::read_to_string(f) else { continue };
        for l in s.lines().skip(1) {
            let mut w = l.split_whitespace().skip(1);
            let (Some(la), Some(ra), Some(st), Some(q)) = (w.next(), w.next(), w.next(), w.next()) else { continue };
            if !la.ends_with(&server) {
                continue;
            }
            let st = u8::from_str_radix(st, 16).unwrap_or(0);
            let tx = u64::from_str_radix(q.split(':').next().unwrap_or("0"), 16).unwrap_or(0);
            if let Some(client) = address(ra) {
                out.insert(client, (st, tx));
            }
        }
    }
    out
}

/// The kernel prints addresses as host-order words: 127.0.0.1:80 is 0100007F:0050, and with ::ffff: in front in
/// tcp6.
fn address(s: &str) -> Option<SocketAddrV4> {
    let (ip, port) = s.split_once(':')?;
    let ip = u32::from_str_radix(ip.get(ip.len().checked_sub(8)?..)?, 16).ok()?;
    Some(SocketAddrV4::new(ip.swap_bytes().into(), u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_kernel() {
        let want = Some(SocketAddrV4::new([127, 0, 0, 1].into(), 80));
        assert_eq!(address("0100007F:0050"), want);
        assert_eq!(address("0000000000000000FFFF00000100007F:0050"), want);
        assert_eq!(address("7F:0050"), None);
    }

    #[test]
    fn the_send_queue_of_a_connection_that_nobody_reads() {
        use std::io::Write;
        let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let c = std::net::TcpStream::connect(l.local_addr().unwrap()).unwrap();
        let (mut s, _) = l.accept().unwrap();
        s.set_nonblocking(true).unwrap();
        while s.write(&[0; 65536]).is_ok() {}
        let std::net::SocketAddr::V4(me) = c.local_addr().unwrap() else { panic!() };
        let (state, queued) = server_sides(l.local_addr().unwrap().port())[&me];
        assert_eq!(state, 1);
        assert!(queued > 65536, "{queued}");
    }
}
