//! The generator sees what a faulty server does, and nothing with a good one.

use serde_json::Value;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn limitd(options: &[&str]) -> Server {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let child = Command::new(env!("CARGO_BIN_EXE_limitd"))
        .args(["--port", &port.to_string()])
        .args(options)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server { child, port };
    let end = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(Instant::now() < end, "limitd does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    server
}

fn run(options: &[&str], scenario: &str) -> Value {
    let server = limitd(options);
    let out = Command::new(env!("CARGO_BIN_EXE_pusherload"))
        .args(scenario.split_whitespace())
        .args(["--quiet", "--port", &server.port.to_string(), "--server-pid", &server.child.id().to_string()])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn fanout(options: &[&str]) -> Value {
    run(options, "fanout --conns 20 --rate 200 --duration 0.5 --warmup 0 --drain 0.3")
}

/// lost, duplicated, reordered, corrupted
fn faults(v: &Value) -> [u64; 4] {
    ["lost", "duplicated", "reordered", "corrupted"].map(|k| v[k].as_u64().unwrap())
}

#[test]
fn a_good_server_has_no_faults() {
    let v = fanout(&[]);
    assert_eq!(faults(&v), [0; 4], "{v}");
    assert_eq!(v["received"], 2000, "{v}");
    assert!(v["cpu_us_per_delivery"].as_f64().unwrap() > 0.0, "{v}");
}

#[test]
fn loss_duplicates_overtaking_and_corruption_are_seen() {
    let [lost, ..] = faults(&fanout(&["--drop", "5"]));
    assert!((20..400).contains(&lost), "{lost}");
    let [_, duplicated, ..] = faults(&fanout(&["--dup", "5"]));
    assert!((20..400).contains(&duplicated), "{duplicated}");
    let [_, _, reordered, _] = faults(&fanout(&["--swap", "5"]));
    assert!((20..400).contains(&reordered), "{reordered}");
    let [.., corrupted] = faults(&fanout(&["--corrupt", "50"]));
    assert!(corrupted > 0);
}

#[test]
fn connections_are_held_and_heard() {
    let v = run(&[], "idle --conns 50 --hold 0.1 --shards 2 --then-fanout --then-frames");
    assert_eq!(
        (&v["ready"], &v["fanout_received"], &v["frames_answered"]),
        (&50.into(), &50.into(), &50.into()),
        "{v}"
    );
    let v = run(&[], "receive --conns 20 --rate 1000 --duration 0.3 --warmup 0");
    assert_eq!((&v["unanswered"], &v["disconnects"]), (&0.into(), &0.into()), "{v}");
}

#[test]
fn both_sides_of_the_fairness_scenario_are_accounted_for() {
    let v = run(&[], "fairness --big 50 --small-rate 50 --duration 0.5 --warmup 0.1");
    assert_eq!((&v["lost"], &v["small_lost"]), (&0.into(), &0.into()), "{v}");
    assert_eq!(v["small_expected"], 150, "{v}");
    assert!(v["small_lat_p99_us"].as_f64().unwrap() > 0.0, "{v}");
}
