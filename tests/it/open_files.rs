//! The limit of open files: how a process shares its files, and what it does when it is out of them.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{DEMO, Http, NEWS, PATIENCE, RawSocket, Request, Upgrade, eventually, in_time};

const SECOND: Duration = Duration::from_secs(1);

/// The limit of open files of a server that is to run out of them.
const FILES: usize = 64;

/// A real server in a process of its own. It is killed with the test.
struct Process {
    child: Child,
    address: SocketAddr,
    log: mpsc::Receiver<String>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Starts `pusherd serve` with the demo app, under the limits that this shell command sets.
    fn with_files(ulimit: &str) -> Self {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{ulimit}; exec \"$0\" serve --log-format json"));
        command.arg(env!("CARGO_BIN_EXE_pusherd")).env_clear().current_dir(env!("CARGO_TARGET_TMPDIR"));
        command.env("PUSHERD_APP_ID", DEMO.app_id).env("PUSHERD_APP_KEY", DEMO.key);
        command
            .env("PUSHERD_APP_SECRET", DEMO.secret)
            .env("PUSHERD_HOST", "127.0.0.1")
            .env("PUSHERD_PORT", "0");
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (lines, log) = mpsc::channel();
        let errors = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            errors.lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
        });
        let mut process = Self { child, address: ([127, 0, 0, 1], 0).into(), log };
        let listening = process.line_with("listening on ");
        let (_, address) = listening.split_once("listening on ").unwrap();
        process.address = address.split('"').next().unwrap().parse().unwrap();
        process
    }

    /// The next line of the log that contains `part`.
    fn line_with(&self, part: &str) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line with {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    /// The number of its open files, without inherited ones with a number above its limit.
    fn files(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let numbers = open.map(|file| file.unwrap().file_name().to_str().unwrap().parse::<usize>().unwrap());
        numbers.filter(|number| *number < FILES).count()
    }

    /// Its CPU time, in ticks of a hundredth of a second.
    fn ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    async fn tcp(&self) -> TcpStream {
        in_time("a TCP connection", TcpStream::connect(self.address)).await.unwrap()
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_server_out_of_files_serves_its_connections_and_accepts_again_later() {
    let process = Process::with_files(&format!("ulimit -n {FILES}"));
    process.line_with("allows few connections");
    let mut inside = RawSocket::over(process.tcp().await);
    inside.upgrade("/app/demo-key").await;
    // An application with as many requests as there are files: WebSockets would be rejected before.
    let mut crowd = Vec::new();
    while process.files() < FILES {
        let mut one = process.tcp().await;
        // A body of its own, because requests with the same signature are read one at a time.
        let request = Request::post("/apps/1001/events", vec![b' '; 1 + crowd.len()]);
        let request = request.header("Expect", "100-continue").signed();
        one.write_all(&request.head_with_length(1 + crowd.len())).await.unwrap();
        let mut answer = [0; 12];
        in_time("its body is waited for", one.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 100");
        crowd.push(one);
    }
    let mut last = Http::over(process.tcp().await);
    let warning = process.line_with("cannot accept connections");
    assert!(warning.contains("ulimit"), "it says what to do: {warning}");
    assert!(process.files() >= FILES);

    // While nothing can be accepted the server hardly uses CPU time: a tenth of it would be 20 ticks. (The test measures
    // these two seconds, and waits for nothing.)
    let before = process.ticks();
    tokio::time::sleep(2 * SECOND).await;
    let worked = process.ticks() - before;
    assert!(worked < 20, "worked for {worked} hundredths of 2 s");
    inside.fence().await;
    let more: Vec<_> = process.log.try_iter().collect();
    assert!(more.is_empty(), "one line a minute: {more:?}");

    // The waiting client is accepted when others disconnect.
    drop(crowd);
    assert_eq!(last.send(Request::get("/up")).await.status, 200);
    let mut fresh = RawSocket::over(process.tcp().await);
    fresh.upgrade("/app/demo-key").await;
    fresh.fence().await;
    inside.fence().await;
    drop((last, fresh));
    eventually("its files are closed", || async { process.files() < FILES / 2 }).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_server_out_of_files_closes_the_longest_idle_http_connections_first() {
    let process = Process::with_files(&format!("ulimit -n {FILES}"));
    let mut crowd = Vec::new();
    while process.files() < FILES {
        let mut one = Http::over(process.tcp().await);
        one.send(Request::get("/apps/1001/connections").signed()).await.ok();
        crowd.push(one);
    }
    // A busy connection, although it is the oldest.
    let mut busy = crowd.remove(0);
    let event = json!({ "name": "e", "channel": NEWS, "data": "x" }).to_string();
    let publish = Request::post("/apps/1001/events", event.clone()).signed();
    busy.write(&publish.head_with_length(event.len())).await;
    // None of them disconnects, and still another client is served.
    let mut fresh = RawSocket::over(process.tcp().await);
    fresh.upgrade("/app/demo-key").await;
    fresh.fence().await;
    crowd[0].ends().await;
    let youngest = crowd.last_mut().unwrap();
    youngest.send(Request::get("/apps/1001/connections").signed()).await.ok();
    busy.write(event.as_bytes()).await;
    busy.answer().await.ok();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_server_out_of_files_evicts_silent_connections() {
    let process = Process::with_files(&format!("ulimit -n {FILES}"));
    let mut silent = Vec::new();
    for _ in 0..2 * FILES {
        silent.push(process.tcp().await);
    }
    // None of them disconnects, they do not use up the permits, and still the next client is served.
    let mut fresh = RawSocket::over(process.tcp().await);
    fresh.upgrade("/app/demo-key").await;
    fresh.fence().await;
    let mut received = Vec::new();
    let _ = in_time("the first was evicted", silent[0].read_to_end(&mut received)).await;
    assert!(received.is_empty());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn websockets_leave_files_for_http_and_the_next_one_is_closed_with_4100() {
    let process = Process::with_files(&format!("ulimit -n {FILES}"));
    let upgrade = async || Upgrade::of(process.tcp().await, "/app/demo-key", &[]).await;
    let mut crowd = Vec::new();
    let refused = loop {
        let mut client = upgrade().await.client();
        let first = client.next().await;
        if first["event"] != "pusher:connection_established" {
            break first;
        }
        crowd.push(client);
        assert!(crowd.len() < FILES, "WebSockets have taken every file");
    };
    assert_eq!(refused["data"], json!({ "code": 4100, "message": "Server is over capacity" }));
    assert!(crowd.len() >= FILES / 4, "{} WebSockets are few", crowd.len());
    let warning = process.line_with("connection limit by open files reached");
    assert!(warning.contains("ulimit -n"), "it says what to raise: {warning}");

    // Applications that publish concurrently, with a new connection for each event, and health checks.
    let event = json!({ "name": "e", "channel": NEWS, "data": "x" }).to_string();
    for _ in 0..3 {
        join_all((0..4).map(async |_| {
            let publish = Request::post("/apps/1001/events", event.clone()).signed();
            Http::over(process.tcp().await).send(publish).await.ok();
            assert_eq!(Http::over(process.tcp().await).send(Request::get("/up")).await.status, 200);
        }))
        .await;
        upgrade().await.rejected(4100).await;
    }
    assert!(process.files() < FILES);
    crowd.pop().unwrap().close().await;
    eventually("its permit is released", async || {
        upgrade().await.client().next().await["event"] == "pusher:connection_established"
    })
    .await;
    for client in &mut crowd {
        client.fence().await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_low_limit_of_open_files_is_logged_at_the_start() {
    let process = Process::with_files(&format!("ulimit -n {FILES}"));
    // Only the line with its address comes before.
    let warning = process.line_with("allows few connections");
    for part in ["\"limit\":64", "\"websockets\":", "ulimit -n"] {
        assert!(warning.contains(part), "{warning}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_soft_limit_of_open_files_is_raised_to_the_hard_limit() {
    let process = Process::with_files("ulimit -Sn 40; ulimit -Hn 300");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.child.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let files: Vec<_> = files.split_whitespace().skip(3).take(2).collect();
    assert_eq!(files, ["300", "300"]);
}
