//! The process: standard streams, signals, terminals. Each test runs the binary.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter, Write as _, pipe};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use pty_process::blocking::open as open_terminal;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::harness::{
    DEMO, Http, NEWS, PATIENCE, RawSocket, Receiver as HookReceiver, Reply, Request, eventually, in_time,
    webhook,
};

/// The capacity of a pipe.
const PIPE_BYTES: usize = 64 * 1024;

/// The capacity of the queue of the log.
const QUEUE_BYTES: usize = 1024 * 1024;

/// A server in its own process. Dropping it kills the process.
struct Daemon {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The configuration of a server before its start.
struct Setup {
    directory: TempDir,
    address: SocketAddr,
    command: Command,
}

impl Setup {
    /// `pusherd serve` with the demo app and `arguments`, on an unused address. The port is fixed, because these tests break
    /// the standard streams that would report a free one.
    fn new(arguments: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pusherd"));
        command.arg("serve");
        Self::of(command, arguments)
    }

    fn of(mut command: Command, arguments: &str) -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(6001);
        let [_, high, middle, low] = std::process::id().to_be_bytes();
        let ip = Ipv4Addr::new(127, 128 | high, middle, low);
        let address = SocketAddr::from((ip, NEXT.fetch_add(1, Ordering::Relaxed)));
        let directory = tempfile::tempdir().unwrap();
        command.args(["--host", &ip.to_string(), "--port", &address.port().to_string()]);
        command.args(arguments.split_whitespace()).env_clear().current_dir(directory.path());
        command.envs([
            ("PUSHERD_APP_ID", DEMO.app_id),
            ("PUSHERD_APP_KEY", DEMO.key),
            ("PUSHERD_APP_SECRET", DEMO.secret),
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { directory, address, command }
    }

    fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.command.stdout(stdout);
        self
    }

    fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.command.stderr(stderr);
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    async fn start(mut self) -> Daemon {
        let child = self.command.spawn().unwrap();
        // The command holds ends of the pipes.
        drop(self.command);
        Daemon { child, address: self.address, _directory: self.directory }.listening().await
    }

    /// Starts with a pipe as standard error, and reads its lines.
    async fn start_logging(self) -> (Daemon, Lines) {
        let (reader, writer) = pipe().unwrap();
        (self.stderr(writer).start().await, Lines::of(reader))
    }

    /// Starts in the foreground of a terminal.
    async fn start_on_terminal(self) -> (Daemon, Terminal) {
        let (terminal, inside) = open_terminal().unwrap();
        let child = pty_process::blocking::Command::from(self.command).spawn(inside).unwrap();
        let daemon = Daemon { child, address: self.address, _directory: self.directory };
        (daemon.listening().await, Terminal(BufReader::new(OwnedFd::from(terminal).into())))
    }
}

impl Daemon {
    async fn listening(mut self) -> Self {
        eventually("the server listens", || {
            assert_eq!(self.child.try_wait().unwrap(), None, "the process ended early");
            async { TcpStream::connect(self.address).await.is_ok() }
        })
        .await;
        self
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    async fn http(&self) -> Http {
        Http::over(in_time("a TCP connection", TcpStream::connect(self.address)).await.unwrap())
    }

    async fn websocket(&self) -> RawSocket {
        let mut raw = RawSocket::over(TcpStream::connect(self.address).await.unwrap());
        raw.upgrade("/app/demo-key").await;
        raw
    }

    /// Checks that the server accepts WebSockets and publishes.
    async fn serves(&self) {
        self.websocket().await.fence().await;
        let event = json!({ "name": "e", "channel": NEWS, "data": "" }).to_string();
        self.http().await.send(Request::post("/apps/1001/events", event).signed()).await.ok();
    }

    /// Causes this many bytes of log, with `--debug`.
    async fn cause_log(&self, bytes: usize) {
        let mut raw = self.websocket().await;
        let text = "x".repeat(16 * 1024);
        for _ in 0..bytes / text.len() + 1 {
            raw.send(&json!({ "event": "pusher:ping", "data": text }).to_string()).await;
            assert!(raw.next().await.text().contains("pusher:pong"));
        }
    }

    async fn ended(mut self) -> ExitStatus {
        eventually("the process ends", || {
            let status = self.child.try_wait().unwrap();
            async move { status.is_some() }
        })
        .await;
        self.child.wait().unwrap()
    }

    /// Sends SIGTERM, and checks that the server drains and exits with 0.
    async fn drains_on_sigterm(self) {
        let client = self.websocket().await;
        self.signal(Signal::TERM);
        self.drains(client).await;
    }

    /// Checks that a drain closes `client`, and that the process exits with 0.
    async fn drains(self, mut client: RawSocket) {
        is_closed(&mut client).await;
        assert_eq!(self.ended().await.code(), Some(0));
    }
}

async fn is_closed(client: &mut RawSocket) {
    let error: Value = serde_json::from_str(client.next().await.text()).unwrap();
    assert_eq!(error["data"]["code"], json!(4100));
    client.expect_close(4100).await;
}

/// The lines of a stream.
struct Lines(Receiver<String>);

impl Lines {
    fn of(from: impl std::io::Read + Send + 'static) -> Self {
        let (lines, read) = channel();
        thread::spawn(move || {
            let mut lines_read = BufReader::new(from).lines().map_while(Result::ok);
            lines_read.try_for_each(|line| lines.send(line))
        });
        Self(read)
    }

    /// The next line with `part` in it.
    fn with(&self, part: &str) -> String {
        loop {
            let line = self.0.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line with {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }
}

/// The master side of a terminal. Dropping it closes the terminal.
struct Terminal(BufReader<File>);

impl Terminal {
    /// The next line with `part` in it, and the terminal. It is moved, so that no other descriptor of it is open when it is
    /// dropped.
    async fn with(mut self, part: &'static str) -> (Self, String) {
        let reading = spawn_blocking(move || {
            let mut line = String::new();
            while !line.contains(part) {
                line.clear();
                assert!(self.0.read_line(&mut line).unwrap() > 0, "no line with {part:?}");
            }
            (self, line)
        });
        in_time(format_args!("a line with {part:?}"), reading).await.unwrap()
    }

    fn control_c(&self) {
        self.0.get_ref().write_all(b"\x03").unwrap();
    }
}

fn full_device() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// A pipe that is full until it is read.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(&[b'.'; PIPE_BYTES]).unwrap();
    (reader, writer)
}

fn closed_pipe() -> PipeWriter {
    pipe().unwrap().1
}

#[tokio::test]
async fn a_failing_log_does_not_affect_the_server() {
    for stderr in [Stdio::from(full_device()), Stdio::from(closed_pipe())] {
        let daemon = Setup::new("--log-level trace --debug").stderr(stderr).start().await;
        daemon.cause_log(2 * QUEUE_BYTES).await;
        daemon.serves().await;
        daemon.drains_on_sigterm().await;
    }
}

#[tokio::test]
async fn a_log_without_a_reader_does_not_affect_the_server() {
    let (reader, writer) = full_pipe();
    let daemon = Setup::new("--log-level trace --debug").stderr(writer).start().await;
    daemon.cause_log(2 * QUEUE_BYTES).await;
    daemon.serves().await;
    daemon.drains_on_sigterm().await;
    drop(reader);
}

#[tokio::test]
async fn a_log_that_is_read_again_has_the_number_of_lost_lines_and_the_last_line() {
    let (reader, writer) = full_pipe();
    let daemon = Setup::new("--log-format json --log-level debug --debug").stderr(writer).start().await;
    daemon.cause_log(2 * QUEUE_BYTES).await;
    let lines = Lines::of(reader);
    let lost: Value = serde_json::from_str(&lines.with("log lines lost")).unwrap();
    assert!(lost["fields"]["lines"].as_u64().unwrap() > 10, "{lost}");
    daemon.drains_on_sigterm().await;
    lines.with("\"stopped\"");
}

#[tokio::test]
async fn a_failing_banner_does_not_affect_the_server() {
    let (reader, stalled) = full_pipe();
    for stdout in [Stdio::from(full_device()), Stdio::from(closed_pipe()), Stdio::from(stalled)] {
        let daemon = Setup::new("").stdout(stdout).start().await;
        daemon.serves().await;
        daemon.drains_on_sigterm().await;
    }
    drop(reader);
}

#[tokio::test]
async fn a_log_file_at_its_size_limit_does_not_affect_the_server() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -f 1; exec \"$0\" serve \"$@\"", env!("CARGO_BIN_EXE_pusherd")]);
    let log = tempfile::tempfile().unwrap();
    let setup = Setup::of(shell, "--log-level trace --debug").stderr(log.try_clone().unwrap());
    let daemon = setup.start().await;
    daemon.cause_log(QUEUE_BYTES).await;
    daemon.serves().await;
    daemon.drains_on_sigterm().await;
    assert!((1..=1024).contains(&log.metadata().unwrap().len()), "the limit was reached");
}

#[test]
fn a_closed_standard_output_is_no_error_and_a_full_disk_is_reported() {
    let run = |arguments: &str, stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pusherd"));
        command.args(arguments.split(' ')).env_clear().stdout(stdout).stderr(Stdio::piped());
        let ran = command.current_dir(env!("CARGO_TARGET_TMPDIR")).output().unwrap();
        (ran.status.code(), String::from_utf8(ran.stderr).unwrap())
    };
    for arguments in ["config show", "config reference", "config check", "--help", "--version"] {
        let (code, errors) = run(arguments, closed_pipe().into());
        assert_eq!(code, Some(0), "{arguments}");
        assert!(!errors.contains("panic") && !errors.contains("cannot write"), "{errors}");
        let (_, errors) = run(arguments, full_device().into());
        assert!(!errors.contains("panic"), "{errors}");
        assert!(
            arguments.starts_with('-') || errors.contains("cannot write to standard output: "),
            "{errors}"
        );
    }
}

#[tokio::test]
async fn ignored_signals_are_logged_and_do_not_affect_the_server() {
    let (daemon, lines) = Setup::new("").start_logging().await;
    for (signal, line) in [
        (Signal::HUP, "SIGHUP received: no certificate to reload"),
        (Signal::USR1, "SIGUSR1 ignored"),
        (Signal::USR2, "SIGUSR2 ignored"),
    ] {
        daemon.signal(signal);
        lines.with(line);
        daemon.serves().await;
    }
    daemon.signal(Signal::PIPE);
    daemon.signal(Signal::XFSZ);
    daemon.serves().await;
    daemon.drains_on_sigterm().await;
    lines.with("stopped");
}

#[tokio::test]
async fn sigquit_and_sigint_drain_as_sigterm_does() {
    for signal in [Signal::QUIT, Signal::INT] {
        let daemon = Setup::new("").start().await;
        let client = daemon.websocket().await;
        daemon.signal(signal);
        daemon.drains(client).await;
    }
}

#[tokio::test]
async fn two_signals_within_200_ms_count_as_one() {
    let (daemon, lines) = Setup::new("--drain-secs 600").start_logging().await;
    let (mut one, mut two) = (daemon.websocket().await, daemon.websocket().await);
    // A terminal sends a signal to a process group, and a process manager in the group passes it on. While the process is
    // stopped, both are pending, so that it receives them together.
    for signal in [Signal::STOP, Signal::INT, Signal::TERM, Signal::CONT] {
        daemon.signal(signal);
    }
    lines.with("shutting down");
    let mut left = tokio::select! {
        () = is_closed(&mut one) => two,
        () = is_closed(&mut two) => one,
    };
    left.fence().await;
    // A later signal counts. The end of the window is not observable, so the signal is repeated.
    let ended = async {
        loop {
            daemon.signal(Signal::INT);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = is_closed(&mut left) => {}
        () = ended => {}
    }
    lines.with("stopping at once");
    assert_eq!(daemon.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_server_drains_when_its_terminal_is_closed() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    for with_tls in [false, true] {
        let setup = Setup::new("--log-level debug");
        let setup = if with_tls {
            std::fs::write(setup.directory.path().join("cert.pem"), made.cert.pem()).unwrap();
            std::fs::write(setup.directory.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
            let port = setup.address.port() - 1000;
            let setup = setup.env("PUSHERD_TLS_CERT", "cert.pem").env("PUSHERD_TLS_KEY", "key.pem");
            setup.env("PUSHERD_TLS_PORT", &port.to_string())
        } else {
            setup
        };
        let (daemon, terminal) = setup.start_on_terminal().await;
        // While the terminal is open, SIGHUP is a reload.
        daemon.signal(Signal::HUP);
        let line = if with_tls { "reloading the certificate" } else { "no certificate to reload" };
        let (terminal, _) = terminal.with(line).await;
        daemon.serves().await;
        let client = daemon.websocket().await;
        let address = daemon.address;
        drop(terminal);
        daemon.drains(client).await;
        assert!(TcpStream::connect(address).await.is_err(), "the port is free");
    }
}

#[tokio::test]
async fn a_server_without_streams_on_a_terminal_ignores_its_end() {
    // Like nohup.
    let (terminal, inside) = open_terminal().unwrap();
    let (reader, writer) = pipe().unwrap();
    let setup = Setup::new("");
    let command = pty_process::blocking::Command::from(setup.command);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn(inside).unwrap();
    let daemon = Daemon { child, address: setup.address, _directory: setup.directory }.listening().await;
    let lines = Lines::of(reader);
    drop(terminal);
    lines.with("SIGHUP received: no certificate to reload");
    daemon.serves().await;
    daemon.drains_on_sigterm().await;
    lines.with("stopped");
}

#[tokio::test]
async fn a_node_with_nothing_to_wait_for_stops_at_once_on_control_c() {
    let (daemon, terminal) = Setup::new("").start_on_terminal().await;
    // Two tabs of a browser, and a connection that it opens in advance.
    let clients = [daemon.websocket().await, daemon.websocket().await];
    let ahead = TcpStream::connect(daemon.address).await.unwrap();
    let begin = Instant::now();
    terminal.control_c();
    for mut client in clients {
        is_closed(&mut client).await;
    }
    let (_terminal, _) = terminal.with("stopped").await;
    assert_eq!(daemon.ended().await.code(), Some(0));
    // It takes a second at most; other tests may slow the machine down.
    assert!(begin.elapsed().as_secs() < 5, "{:?}", begin.elapsed());
    drop(ahead);
}

#[tokio::test]
async fn control_c_logs_what_the_drain_waits_for_and_a_second_one_stops_it() {
    let mut dead = HookReceiver::with_replies(|_, _| Reply::Hang).await;
    let host = webhook(&dead.url("/")).url.authority().to_owned();
    let setup = Setup::new("--config pusherd.toml").env("NO_COLOR", "1");
    let config = format!(
        "[[apps]]\nid = \"1001\"\nkey = \"demo-key\"\nsecret = \"demo-secret\"\nwebhooks = [{{ url = \"{}\", event_types = [\"channel_occupied\"] }}]\n",
        dead.url("/")
    );
    std::fs::write(setup.directory.path().join("pusherd.toml"), config).unwrap();
    let (daemon, terminal) = setup.start_on_terminal().await;
    let mut client = daemon.websocket().await;
    client.send(r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#).await;
    assert!(client.next().await.text().contains("subscription_succeeded"));
    dead.hook().await;
    terminal.control_c();
    let (terminal, line) = terminal.with("waiting to stop").await;
    assert!(line.contains("a second signal, such as Ctrl-C, stops at once"), "{line}");
    assert!(line.contains("connections=1") && line.contains(&format!("1 for {host}")), "{line}");
    client.fence().await;
    let begin = Instant::now();
    terminal.control_c();
    daemon.drains(client).await;
    assert!(begin.elapsed() < PATIENCE / 2, "{:?}", begin.elapsed());
}
