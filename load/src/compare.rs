//! Runs one scenario against several servers, interleaved, and compares.

use crate::cli::Common;
use crate::report::human;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

struct Target {
    name: String,
    args: Vec<String>,
    runs: Vec<Value>,
}

/// NAME=HOST:PORT:PID[,tree][,tls][,ws-port=..][,app-id=..][,key=..][,secret=..]
fn target(s: &str, c: &Common) -> Result<Target, String> {
    let bad =
        || format!("target {s:?}: want NAME=HOST:PORT:PID[,tree][,tls][,ws-port=..][,app-id=..][,key=..][,secret=..]");
    let (name, rest) = s.split_once('=').ok_or_else(bad)?;
    let mut parts = rest.split(',');
    let addr: Vec<&str> = parts.next().unwrap_or("").split(':').collect();
    let [host, port, pid] = addr[..] else { return Err(bad()) };
    let mut o: BTreeMap<&str, String> = BTreeMap::from([
        ("app-id", c.app_id.clone()),
        ("key", c.key.clone()),
        ("secret", c.secret.clone()),
        ("host", host.into()),
        ("port", port.into()),
        ("name", name.into()),
    ]);
    let (mut tree, mut tls) = (c.tree, c.tls);
    if !pid.is_empty() {
        o.insert("server-pid", pid.into());
    }
    for p in parts {
        match p.split_once('=') {
            None if p == "tree" => tree = true,
            None if p == "tls" => tls = true,
            Some((k @ ("ws-port" | "app-id" | "key" | "secret"), v)) => {
                o.insert(k, v.into());
            }
            _ => return Err(bad()),
        }
    }
    let mut args: Vec<String> = o.into_iter().map(|(k, v)| format!("--{k}={v}")).collect();
    if tree {
        args.push("--tree".into());
    }
    if tls {
        args.push("--tls".into());
    }
    if c.deflate {
        args.push("--deflate".into());
    }
    args.push(format!("--src-ips={}", c.src_ips));
    args.push(format!("--poll-us={}", c.poll_us));
    args.push(format!("--open-window={}", c.open_window));
    args.push(format!("--open-timeout={}", c.open_timeout));
    args.push(format!("--dst-ips={}", c.dst_ips));
    if let Some(k) = c.cpu {
        args.push(format!("--cpu={k}"));
    }
    Ok(Target { name: name.into(), args, runs: Vec::new() })
}

/// Main figures of each scenario.
fn main_keys(scenario: &str) -> &'static [&'static str] {
    match scenario {
        "fanout" | "mixed" | "slow" => &[
            "saturation_per_s",
            "publishes_per_s",
            "deliveries_per_s",
            "lat_p50_us",
            "lat_p99_us",
            "lat_p999_us",
            "lat_max_us",
            "http_p50_us",
            "lost",
            "duplicated",
            "order_violations",
            "disconnects",
            "publish_failed",
            "server_cpu_pct",
            "cpu_us_per_delivery",
            "cpu_user_us_per_delivery",
            "wire_bytes_per_delivery",
            "rss_connected_mb",
            "rss_peak_mb",
            "slow_disconnected",
            "slow_first_disconnect_s",
            "kernel_queue_max_kb",
            "rss_growth_mb",
        ],
        "idle" => &[
            "ready",
            "failed",
            "connects_per_s",
            "connect_cpu_us",
            "rss_before_mb",
            "rss_connected_mb",
            "rss_bytes_per_conn",
            "pss_bytes_per_conn",
            "rss_bytes_per_conn_after_fanout",
            "rss_bytes_per_conn_after_frames",
            "idle_cpu_pct",
            "server_cpu_pct",
            "lost",
            "rss_closed_mb",
        ],
        "churn" => &[
            "cycles_per_s",
            "failed",
            "cycle_p50_us",
            "cycle_p99_us",
            "cpu_us_per_cycle",
            "server_cpu_pct",
            "rss_before_mb",
            "rss_peak_mb",
            "rss_growth_mb",
        ],
        "publish" => &[
            "nosub_requests_per_s",
            "nosub_http_p99_us",
            "nosub_cpu_us_per_request",
            "onesub_requests_per_s",
            "onesub_deliveries_per_s",
            "onesub_lat_p99_us",
            "onesub_lost",
            "onesub_cpu_us_per_request",
            "batch10_requests_per_s",
            "batch10_events_per_s",
            "batch10_cpu_us_per_request",
        ],
        "client-events" => &[
            "round_trips_per_s",
            "rtt_p50_us",
            "rtt_p99_us",
            "rtt_max_us",
            "lost",
            "stray",
            "cpu_us_per_client_event",
            "server_cpu_pct",
        ],
        "receive" => &["frames_per_s", "cpu_us_per_frame", "cpu_user_us_per_frame", "unanswered", "server_cpu_pct"],
        "fairness" => &[
            "deliveries_per_s",
            "small_lat_p50_us",
            "small_lat_p99_us",
            "small_lat_max_us",
            "lost",
            "small_lost",
            "cpu_us_per_delivery",
            "server_cpu_pct",
        ],
        "presence" => &[
            "joined",
            "refused",
            "join_s",
            "joins_per_s",
            "member_added_per_s",
            "unknown_pairs",
            "dup_added",
            "join_p99_us",
            "leave_s",
            "missing_removed",
            "cpu_us_per_member_added",
            "rss_joined_mb",
        ],
        _ => &[],
    }
}

fn median(v: &mut [f64]) -> f64 {
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => v[n / 2],
        n => (v[n / 2 - 1] + v[n / 2]) / 2.0,
    }
}

pub fn run(
    c: &Common,
    targets: &[String],
    runs: usize,
    settle: f64,
    all: bool,
    scenario: &[String],
) -> Result<(), String> {
    let mut ts: Vec<Target> = targets.iter().map(|s| target(s, c)).collect::<Result<_, _>>()?;
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    for n in 0..runs {
        for t in &mut ts {
            eprintln!("-- run {} of {runs}: {}", n + 1, t.name);
            let mut cmd = Command::new(&exe);
            cmd.args(scenario).args(&t.args).stdin(Stdio::null()).stderr(Stdio::inherit());
            if c.quiet {
                cmd.arg("--quiet");
            }
            let o = cmd.output().map_err(|e| e.to_string())?;
            let text = String::from_utf8_lossy(&o.stdout);
            match text.lines().last().and_then(|l| serde_json::from_str::<Value>(l).ok()) {
                Some(v) => t.runs.push(v),
                None => eprintln!("   no result from {}", t.name),
            }
            std::thread::sleep(std::time::Duration::from_secs_f64(settle));
        }
    }
    let name = scenario[0].as_str();
    let mut keys: Vec<String> = Vec::new();
    if all {
        for t in &ts {
            for v in t.runs.iter().filter_map(Value::as_object) {
                for (k, x) in v {
                    if x.is_number() && !keys.contains(k) {
                        keys.push(k.clone());
                    }
                }
            }
        }
    } else {
        keys = main_keys(name).iter().map(|s| s.to_string()).collect();
        keys.extend(["gen_cpu_pct", "other_cpu_pct", "steal_pct"].map(String::from));
    }
    let get = |t: &Target, k: &str| -> Vec<f64> { t.runs.iter().filter_map(|v| v.get(k)?.as_f64()).collect() };
    let mut lines: Vec<Vec<String>> = vec![vec![format!("{name}, median of {runs}")]];
    for (i, t) in ts.iter().enumerate() {
        lines[0].push(t.name.clone());
        lines[0].push("min..max".into());
        if i > 0 {
            lines[0].push("ratio".into());
        }
    }
    let mut out: Vec<serde_json::Map<String, Value>> = vec![serde_json::Map::new(); ts.len()];
    for k in &keys {
        let first = median(&mut get(&ts[0], k));
        let mut row = vec![k.clone()];
        let mut any = false;
        for (i, t) in ts.iter().enumerate() {
            let mut v = get(t, k);
            let md = median(&mut v);
            any |= md.is_finite();
            row.push(human(md));
            let range = match (v.first(), v.last()) {
                (Some(a), Some(b)) if a != b => format!("{}..{}", human(*a), human(*b)),
                _ => String::new(),
            };
            row.push(range);
            if i > 0 {
                let q = md / first;
                row.push(if q.is_finite() { format!("x{q:.2}") } else { String::new() });
            }
            if md.is_finite() {
                out[i].insert(k.clone(), Value::from(md));
            }
        }
        if any {
            lines.push(row);
        }
    }
    let cols = lines[0].len();
    let w: Vec<usize> = (0..cols).map(|j| lines.iter().map(|l| l[j].chars().count()).max().unwrap_or(0)).collect();
    for l in &lines {
        let s: Vec<String> = l
            .iter()
            .enumerate()
            .map(|(j, x)| {
                let pad = " ".repeat(w[j] - x.chars().count());
                if j == 0 { format!("{x}{pad}") } else { format!("{pad}{x}") }
            })
            .collect();
        eprintln!("{}", s.join("  ").trim_end());
    }
    for t in &ts {
        for f in ["gen_bound", "noisy", "server_died"] {
            let n = t.runs.iter().filter(|v| v.get(f).is_some()).count();
            if n > 0 {
                eprintln!("{}: {n} of {} runs marked {f}", t.name, t.runs.len());
            }
        }
    }
    let o = ts.iter().zip(out).map(|(t, m)| (t.name.clone(), Value::Object(m))).collect::<serde_json::Map<_, _>>();
    println!(
        "{}",
        serde_json::json!({"compare": scenario, "runs": runs, "medians": o,
            "all": ts.iter().map(|t| serde_json::json!({"name": t.name, "runs": t.runs})).collect::<Vec<_>>()})
    );
    Ok(())
}
