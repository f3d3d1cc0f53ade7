//! Counts, with valgrind, the instructions and allocations of pusherd for one publish, one delivery or one connection.
//! Unlike time, they hardly depend on the machine or its load, so CI can reject an increase.
//!
//! Each scenario runs twice, with few and with many repetitions. The difference, divided by the repetitions, is the
//! cost of one, without start and stop. One worker thread and one request at a time make the runs alike.
//! `scripts/instructions` runs this with the binary that is shipped; `benches/instructions.tsv` is the baseline.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Parser;
use pusherload::sign::Signer;

/// An increase of more than this many percent over the baseline fails.
const RISE_PERCENT_MAX: f64 = 5.0;

/// The timeout of each step; valgrind makes the server fifty times slower.
const PATIENCE: Duration = Duration::from_secs(120);

/// Counts what a pusherd executes, and compares it with a baseline.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// The binary of pusherd
    pusherd: PathBuf,
    /// The file with what was counted before
    #[arg(long)]
    baseline: PathBuf,
    /// Make what is counted now the baseline
    #[arg(long)]
    save: bool,
    /// Which scenarios to count [default: all]
    scenarios: Vec<String>,
}

const KEY: &str = "bench-key";
const SECRET: &str = "bench-secret";
const CONFIG: &str = r#"
[server]
host = "127.0.0.1"
drain_secs = 0
[[apps]]
id = "bench"
key = "bench-key"
secret = "bench-secret"
[apps.limits]
client_events_per_second = 1000000
messages_per_second = 1000000
messages_burst = 1000000
"#;

/// A scenario.
struct Scenario {
    name: &'static str,
    /// The unit that is counted.
    unit: &'static str,
    /// The number of units in a repetition.
    units: u64,
    /// The repetitions of the two runs.
    repetitions: (u64, u64),
    /// Prepares the scenario; returns the work of one repetition.
    prepare: fn(&Server) -> Box<dyn FnMut()>,
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "publish_to_none",
        unit: "request",
        units: 1,
        repetitions: (500, 1500),
        prepare: |server| {
            let mut http = server.connect();
            let request = publish("/apps/bench/events", &event("empty"));
            Box::new(move || http.ask(&request))
        },
    },
    Scenario {
        name: "publish_batch_of_10",
        unit: "request",
        units: 1,
        repetitions: (300, 900),
        prepare: |server| {
            let mut http = server.connect();
            let events: Vec<_> = (0..10).map(|at| batch_event(&format!("empty-{at}"))).collect();
            let request = publish("/apps/bench/batch_events", &format!(r#"{{"batch":[{}]}}"#, events.join(",")));
            Box::new(move || http.ask(&request))
        },
    },
    Scenario {
        name: "publish_to_1",
        unit: "request",
        units: 1,
        repetitions: (500, 1500),
        prepare: |server| fan_out(server, 1),
    },
    Scenario {
        name: "deliver_to_400",
        unit: "delivery",
        units: 400,
        repetitions: (20, 420),
        prepare: |server| fan_out(server, 400),
    },
    Scenario {
        name: "client_event",
        unit: "event",
        units: 1,
        repetitions: (500, 1500),
        prepare: |server| {
            let (mut from, mut to) = (server.subscriber("private-pair"), server.subscriber("private-pair"));
            let message =
                format!(r#"{{"event":"client-x","channel":"private-pair","data":{{"text":"{}"}}}}"#, "x".repeat(80));
            let frame = masked(&message);
            Box::new(move || {
                from.stream.write_all(&frame).unwrap();
                to.next();
            })
        },
    },
    Scenario {
        name: "ping_pong",
        unit: "message",
        units: 1,
        repetitions: (500, 1500),
        prepare: |server| {
            let mut client = server.subscriber("quiet");
            let frame = masked(r#"{"event":"pusher:ping","data":{}}"#);
            Box::new(move || {
                client.stream.write_all(&frame).unwrap();
                client.next();
            })
        },
    },
    Scenario {
        name: "connect_subscribe_close",
        unit: "cycle",
        units: 1,
        repetitions: (100, 400),
        prepare: |server| {
            let address = server.address;
            Box::new(move || {
                let mut client = Socket::subscribed(address, "private-churn");
                client.stream.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]).unwrap();
                client.next();
                // The end of the stream: the server has closed the connection.
                assert_eq!(client.stream.read(&mut [0; 16]).unwrap(), 0);
            })
        },
    },
];

fn fan_out(server: &Server, subscribers: usize) -> Box<dyn FnMut()> {
    let mut clients: Vec<_> = (0..subscribers).map(|_| server.subscriber("busy")).collect();
    let mut http = server.connect();
    let request = publish("/apps/bench/events", &event("busy"));
    Box::new(move || {
        http.ask(&request);
        clients.iter_mut().for_each(|client| drop(client.next()));
    })
}

fn main() -> ExitCode {
    let Cli { pusherd, baseline: file, save, scenarios: wanted } = Cli::parse();
    let unknown = wanted.iter().find(|name| SCENARIOS.iter().all(|scenario| scenario.name != **name));
    if let Some(unknown) = unknown {
        eprintln!("there is no scenario {unknown}");
        return ExitCode::FAILURE;
    }
    let baseline = fs::read_to_string(&file).map(|text| read_baseline(&text)).unwrap_or_default();
    let mut table = String::from("scenario\tunit\tinstructions\tallocations\n");
    let mut risen = Vec::new();
    println!(
        "{:<24} {:>9} {:>13} {:>12} {:>24}",
        "scenario", "a", "instructions", "allocations", "against the baseline"
    );
    for scenario in SCENARIOS {
        let (name, unit) = (scenario.name, scenario.unit);
        let before = baseline.get(name);
        let is_wanted = wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
        let cost = if is_wanted { Some(scenario.measure(&pusherd)) } else { None };
        // Scenarios that did not run keep their baseline.
        if let Some(cost) = cost.as_ref().or(before) {
            writeln!(table, "{name}\t{unit}\t{:.0}\t{:.2}", cost.instructions, cost.allocations).unwrap();
        }
        let Some(cost) = cost else { continue };
        if before.is_none() {
            risen.push(name);
        }
        let change = before.map(|before| {
            let percent = (cost.instructions / before.instructions - 1.0) * 100.0;
            let allocations = cost.allocations - before.allocations;
            // Allocations are exact and equal in all repetitions, so half of one is no noise.
            if percent > RISE_PERCENT_MAX || allocations > 0.5 {
                risen.push(name);
            }
            format!("{percent:+.1} %, {allocations:+.1}")
        });
        let change = change.unwrap_or_else(|| "none".to_owned());
        println!("{name:<24} {unit:>9} {:>13.0} {:>12.2} {change:>24}", cost.instructions, cost.allocations);
    }
    if save {
        fs::write(&file, table).unwrap();
        println!("saved as the new baseline");
    } else if !risen.is_empty() {
        let names = risen.join(", ");
        println!("risen by more than {RISE_PERCENT_MAX} % or half an allocation, or without a baseline: {names}");
        println!("if it is worth it, save a new baseline (scripts/instructions --save) and say why in the commit");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The cost of a unit.
#[derive(Clone, Copy)]
struct Cost {
    instructions: f64,
    allocations: f64,
}

fn read_baseline(text: &str) -> HashMap<String, Cost> {
    let rows = text.lines().skip(1).map(|line| {
        let cells: Vec<&str> = line.split('\t').collect();
        let cost = Cost { instructions: cells[2].parse().unwrap(), allocations: cells[3].parse().unwrap() };
        (cells[0].to_owned(), cost)
    });
    rows.collect()
}

impl Scenario {
    fn measure(&self, pusherd: &Path) -> Cost {
        let (few, many) = self.repetitions;
        let (less, more) = (self.run(pusherd, few), self.run(pusherd, many));
        let units = ((many - few) * self.units) as f64;
        Cost {
            instructions: (more.instructions - less.instructions) / units,
            allocations: (more.allocations - less.allocations) / units,
        }
    }

    /// The total from the start of the server to its end.
    fn run(&self, pusherd: &Path, repetitions: u64) -> Cost {
        let mut server = Server::start(pusherd);
        let mut work = (self.prepare)(&server);
        for _ in 0..repetitions {
            work();
        }
        drop(work);
        server.stop()
    }
}

/// The binary under valgrind.
struct Server {
    child: Child,
    address: SocketAddr,
    directory: PathBuf,
    counts: PathBuf,
}

impl Server {
    fn start(pusherd: &Path) -> Self {
        let directory = std::env::temp_dir().join(format!("pusherd-instructions-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let pusherd = fs::canonicalize(pusherd).expect("the binary is there");
        let (config, counts) = (directory.join("pusherd.toml"), directory.join("callgrind.out"));
        fs::write(&config, CONFIG).unwrap();
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--quiet"]).arg(format!("--callgrind-out-file={}", counts.display()));
        command.arg(pusherd).args(["serve", "--port", "0", "--log-format", "json"]);
        command.arg("--config").arg(&config).arg("--env-file").arg("/dev/null");
        // One worker, so that the order of wake-ups does not differ between runs.
        command.env_clear().env("PATH", path()).env("TOKIO_WORKER_THREADS", "1").current_dir(&directory);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("valgrind is installed");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the server ended before it listened");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split('"').next().unwrap().parse().unwrap();
            }
        };
        // The rest of the output is not used, but must be read.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, address, directory, counts }
    }

    fn connect(&self) -> Http {
        Http { stream: connect(self.address), answer: vec![0; 4096] }
    }

    fn subscriber(&self, channel: &str) -> Socket {
        Socket::subscribed(self.address, channel)
    }

    fn stop(&mut self) -> Cost {
        // SAFETY: sends a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGINT) }, 0);
        assert!(self.child.wait().unwrap().success());
        read_counts(&fs::read_to_string(&self.counts).unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only if a scenario failed; otherwise the process has ended.
        let _ = self.child.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The paths where valgrind may be.
fn path() -> std::ffi::OsString {
    std::env::var_os("PATH").unwrap_or_default()
}

/// The total of instructions and of calls to allocation functions in a file of callgrind.
fn read_counts(text: &str) -> Cost {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let (mut callee, mut instructions, mut allocations) = ("", 0.0, 0.0);
    for line in text.lines() {
        if let Some(total) = line.strip_prefix("summary: ").or_else(|| line.strip_prefix("totals: ")) {
            instructions = total.trim().parse().unwrap();
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let calls: f64 = calls.split(' ').next().unwrap().parse().unwrap();
            if matches!(callee, "malloc" | "calloc" | "realloc" | "posix_memalign" | "aligned_alloc") {
                allocations += calls;
            }
        } else if let Some((kind, function)) = line.split_once('=')
            && matches!(kind, "fn" | "cfn")
        {
            // A name appears at its first use, later only its number.
            let (number, name) = function.split_once(' ').unwrap_or((function, ""));
            if !name.is_empty() {
                names.insert(number, name.split('\'').next().unwrap());
            }
            if kind == "cfn" {
                callee = names.get(number).copied().unwrap_or_default();
            }
        }
    }
    assert!(instructions > 0.0, "callgrind has counted nothing");
    Cost { instructions, allocations }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A kept-alive HTTP connection.
struct Http {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Http {
    /// Sends a request. The response must be 200 with the body `{}`.
    fn ask(&mut self, request: &[u8]) {
        self.stream.write_all(request).unwrap();
        let mut len = 0;
        while !self.answer[..len].ends_with(b"\r\n\r\n{}") {
            let read = self.stream.read(&mut self.answer[len..]).unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&self.answer[..len]));
            len += read;
        }
        assert!(self.answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&self.answer[..len]));
    }
}

/// A WebSocket.
struct Socket {
    stream: TcpStream,
}

impl Socket {
    fn subscribed(address: SocketAddr, channel: &str) -> Self {
        let mut socket = Self { stream: connect(address) };
        let request = format!(
            "GET /app/{KEY}?protocol=7&client=js&version=8.4.0 HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        socket.stream.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let established = socket.next();
        let (_, rest) = established.split_once("socket_id\\\":\\\"").unwrap();
        let (id, _) = rest.split_once('\\').unwrap();
        let auth = signer().channel_auth(id.as_bytes(), channel, None);
        let subscribe = format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}","auth":"{auth}"}}}}"#);
        socket.stream.write_all(&masked(&subscribe)).unwrap();
        assert!(socket.next().contains("subscription_succeeded"));
        socket
    }

    /// The payload of the next frame.
    fn next(&mut self) -> String {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).unwrap();
        let mut long = [0; 2];
        let len = match head[1] {
            126 => {
                self.stream.read_exact(&mut long).unwrap();
                u16::from_be_bytes(long).into()
            }
            len => usize::from(len),
        };
        let mut payload = vec![0; len];
        self.stream.read_exact(&mut payload).unwrap();
        String::from_utf8_lossy(&payload).into_owned()
    }
}

/// A text frame of a client. The mask is zeros, which costs the server the same.
fn masked(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// An event as Laravel publishes it, with 100 bytes of data.
fn event(channel: &str) -> String {
    let text = "x".repeat(80);
    format!(r#"{{"name":"App\\Events\\Ordered","data":"{{\"text\":\"{text}\"}}","channels":["{channel}"]}}"#)
}

fn batch_event(channel: &str) -> String {
    let text = "x".repeat(80);
    format!(r#"{{"name":"App\\Events\\Ordered","data":"{{\"text\":\"{text}\"}}","channel":"{channel}"}}"#)
}

fn signer() -> Signer {
    Signer::new("bench", KEY, SECRET, "127.0.0.1")
}

/// A signed request, with the headers of the PHP SDK.
fn publish(path: &str, body: &str) -> Vec<u8> {
    let mut request = Vec::new();
    signer().post(&mut request, path, body.as_bytes(), 0);
    let headers = "User-Agent: GuzzleHttp/7\r\nX-Pusher-Library: pusher-http-php 7.2.4\r\nContent-Type";
    String::from_utf8(request).unwrap().replacen("Content-Type", headers, 1).into_bytes()
}
