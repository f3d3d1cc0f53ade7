//! `pusherd webhooks`, and the log of the binary about webhooks.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::harness::{DEMO, Receiver, Reply, Upgrade, eventually, in_time, receiver};

/// A folder with a configuration, the working directory of the binary.
struct Workspace(TempDir);

impl Workspace {
    /// With these settings of the demo app, and of the section `[webhooks]`.
    fn new(app: &str, webhooks: &str) -> Self {
        let workspace = Self(tempfile::tempdir().unwrap());
        let text = format!(
            "[server]\nhost = '127.0.0.1'\nport = 0\ndrain_secs = 0\n[webhooks]\n{webhooks}\n\
             [[apps]]\nid = '1001'\nkeys = [{{ key = 'demo-key', secret = 'demo-secret' }}, \
             {{ key = 'newer-key', secret = 'newer-secret' }}]\n{app}\n"
        );
        fs::create_dir(workspace.0.path().join("config")).unwrap();
        fs::write(workspace.0.path().join("config/pusherd.toml"), text).unwrap();
        workspace
    }

    fn with_webhook(url: &str) -> Self {
        Self::new(&format!("webhooks = [{{ url = '{url}', headers = {{ X-Env = 'prod' }} }}]"), "")
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pusherd"));
        command.args(args).current_dir(self.0.path()).env_clear().stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command. Returns its exit code and its output.
    async fn run(&self, args: &[&str]) -> (i32, String) {
        let mut command = self.command(args);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        output_of(&output)
    }
}

fn output_of(Output { status, stdout, stderr }: &Output) -> (i32, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code().unwrap(), text(stdout) + &text(stderr))
}

/// A running binary. Its log goes to a file.
struct Running {
    child: Child,
    log: std::path::PathBuf,
    address: String,
}

impl Running {
    async fn start(workspace: &Workspace, environment: &[(&str, &Path)]) -> Self {
        let log = workspace.path("log");
        let file = fs::File::create(&log).unwrap();
        let mut command = workspace.command(&["serve", "--log-format", "json"]);
        command.envs(environment.iter().copied()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().unwrap();
        let mut running = Self { child, log, address: String::new() };
        let address = |log: &str| {
            let (_, rest) = log.split_once("listening on ")?;
            Some(rest.split('"').next()?.to_owned())
        };
        eventually("the binary listens", || async { address(&running.log()).is_some() }).await;
        running.address = address(&running.log()).unwrap();
        running
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    async fn subscribe(&self, channel: &str) {
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let mut client = Upgrade::of(stream, "/app/demo-key?protocol=7", &[]).await.established().await;
        client.subscribe(channel).await;
    }

    /// Stops it with SIGTERM. Returns its exit code.
    async fn stop(mut self) -> i32 {
        signal(&self.child, Signal::TERM);
        let waited = tokio::task::spawn_blocking(move || {
            let code = self.child.wait().unwrap().code();
            (self, code)
        });
        in_time("the binary ends", waited).await.unwrap().1.unwrap()
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
    }
}

fn dead_letter_line(app: &str, url: &str, channel: &str) -> String {
    let body = format!(
        r#"{{"time_ms":1700000000123,"events":[{{"name":"channel_occupied","channel":"{channel}"}}]}}"#
    );
    let dead_letter = json!({
        "app_id": app, "url": url, "time_ms": 1_700_000_000_123_u64, "attempts": 3, "error": "x",
        "event_ids": ["0000000000c0ffee-2a"], "body": body,
    });
    format!("{dead_letter}\n")
}

#[tokio::test]
async fn a_replay_sends_dead_letters_in_order_and_empties_the_file() {
    let mut receiver = Receiver::start().await;
    let (workspace, url) = (Workspace::with_webhook(&receiver.url("/hooks?token=x")), receiver.url("/hooks"));
    let lines = [dead_letter_line("1001", &url, "a"), dead_letter_line("1001", &url, "b")].concat();
    fs::write(workspace.path("dead.jsonl"), lines).unwrap();
    let (code, text) = workspace.run(&["webhooks", "replay", "dead.jsonl"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.ends_with("2 delivered, none left\n"), "{text}");
    for channel in ["a", "b"] {
        let hook = receiver.hook().await;
        assert_eq!(hook.request_line, "POST /hooks?token=x HTTP/1.1", "as configured");
        assert_eq!(hook.header("x-env"), ["prod"]);
        assert_eq!(hook.header("x-pusher-key"), ["demo-key"]);
        let body = String::from_utf8(hook.body.clone()).unwrap();
        assert_eq!(hook.header("x-pusher-signature"), [DEMO.sign(&body)]);
        assert_eq!(hook.header("x-pusherd-event-ids"), ["0000000000c0ffee-2a"], "for deduplication");
        assert_eq!(hook.json()["time_ms"], json!(1_700_000_000_123_u64), "the original time");
        assert_eq!(hook.events()[0]["channel"], channel);
    }
    assert_eq!(fs::read_to_string(workspace.path("dead.jsonl")).unwrap(), "");
}

#[tokio::test]
async fn a_fresh_time_replaces_the_time_and_signs_again() {
    let mut receiver = Receiver::start().await;
    let workspace = Workspace::with_webhook(&receiver.url("/hooks"));
    let mut dead_letter: Value =
        serde_json::from_str(&dead_letter_line("1001", &receiver.url("/hooks"), "a")).unwrap();
    // Without ids of its events.
    dead_letter.as_object_mut().unwrap().remove("event_ids");
    fs::write(workspace.path("dead.jsonl"), dead_letter.to_string()).unwrap();
    let before = receiver::unix_ms();
    let (code, text) = workspace.run(&["webhooks", "replay", "dead.jsonl", "--fresh-time"]).await;
    assert_eq!(code, 0, "{text}");
    let hook = receiver.hook().await;
    assert!(hook.json()["time_ms"].as_u64().unwrap() >= before);
    assert!(hook.header("x-pusherd-event-ids").is_empty());
    let body = String::from_utf8(hook.body.clone()).unwrap();
    assert_eq!(hook.header("x-pusher-signature"), [DEMO.sign(&body)]);
}

#[tokio::test]
async fn undelivered_dead_letters_stay_in_the_file() {
    let mut receiver = Receiver::with_replies(|_, hook| {
        Reply::Status(if hook.events()[0]["channel"] == "bad" { 422 } else { 200 })
    })
    .await;
    let (workspace, url) = (Workspace::with_webhook(&receiver.url("/hooks")), receiver.url("/hooks"));
    let (good, bad) = (dead_letter_line("1001", &url, "good"), dead_letter_line("1001", &url, "bad"));
    let (no_app, no_webhook) =
        (dead_letter_line("9", &url, "a"), dead_letter_line("1001", "http://elsewhere.test/", "a"));
    let lines = [good.as_str(), &bad, "{\"app_id\":\"10\n", "\n", &no_app, &no_webhook, &good].concat();
    fs::write(workspace.path("dead.jsonl"), lines).unwrap();
    let (code, text) = workspace.run(&["webhooks", "replay", "dead.jsonl"]).await;
    assert_eq!(code, 1, "{text}");
    for expected in [
        "1: delivered",
        "2: not delivered to http://127.0.0.1",
        "the response status is 422, not 2xx",
        "3: skipped: not a dead letter, or a truncated one",
        "4: not delivered to http://127.0.0.1",
        "unknown app 9",
        "app 1001 has no webhook for http://elsewhere.test/",
        "6: delivered",
        "2 delivered, 4 left in dead.jsonl",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let left = fs::read_to_string(workspace.path("dead.jsonl")).unwrap();
    assert_eq!(left, [&bad, "{\"app_id\":\"10\n", &no_app, &no_webhook].concat());
    for _ in 0..3 {
        receiver.hook().await;
    }
    assert!(receiver.is_idle());
}

#[tokio::test]
async fn a_replay_skips_later_dead_letters_of_a_receiver_that_fails() {
    for reply in [Reply::HangUp, Reply::Status(500), Reply::Status(503), Reply::Status(429)] {
        let mut receiver = Receiver::with_replies(move |_, _| reply.clone()).await;
        let (workspace, url) = (Workspace::with_webhook(&receiver.url("/")), receiver.url("/"));
        let lines = [dead_letter_line("1001", &url, "a"), dead_letter_line("1001", &url, "b")].concat();
        fs::write(workspace.path("dead.jsonl"), &lines).unwrap();
        let (code, text) = workspace.run(&["webhooks", "replay", "dead.jsonl"]).await;
        assert_eq!(code, 1);
        assert!(text.contains("2: not delivered") && text.contains("an earlier request to"), "{text}");
        assert_eq!(fs::read_to_string(workspace.path("dead.jsonl")).unwrap(), lines);
        receiver.hook().await;
        assert!(receiver.is_idle());
    }
}

#[tokio::test]
async fn an_interrupted_replay_keeps_unsent_lines_and_excludes_other_replays() {
    let mut receiver =
        Receiver::with_replies(|at, _| if at == 0 { Reply::Status(200) } else { Reply::Hang }).await;
    let (workspace, url) = (Workspace::with_webhook(&receiver.url("/")), receiver.url("/"));
    let lines: Vec<_> = ["a", "b", "c"].map(|channel| dead_letter_line("1001", &url, channel)).into();
    fs::write(workspace.path("dead.jsonl"), lines.concat()).unwrap();
    let mut first = workspace.command(&["webhooks", "replay", "dead.jsonl"]).spawn().unwrap();
    for _ in 0..2 {
        receiver.hook().await;
    }
    let (code, text) = workspace.run(&["webhooks", "replay", "dead.jsonl"]).await;
    assert_eq!(code, 1);
    assert!(text.contains("dead.jsonl cannot be replayed: another replay is running in"), "{text}");
    assert!(receiver.is_idle());
    signal(&first, Signal::INT);
    let waited = tokio::task::spawn_blocking(move || first.wait().unwrap());
    assert!(!in_time("it ends", waited).await.unwrap().success());
    let left = fs::read_to_string(workspace.path("dead.jsonl")).unwrap();
    assert_eq!(left.trim_start(), lines[1..].concat());
    // The next replay continues.
    let mut open = Receiver::start().await;
    let moved = left.replace(&receiver.address.to_string(), &open.address.to_string());
    let workspace = Workspace::with_webhook(&open.url("/"));
    fs::write(workspace.path("dead.jsonl"), moved).unwrap();
    assert_eq!(workspace.run(&["webhooks", "replay", "dead.jsonl"]).await.0, 0);
    for channel in ["b", "c"] {
        assert_eq!(open.hook().await.events()[0]["channel"], channel);
    }
    assert!(open.is_idle());
    assert_eq!(fs::read_to_string(workspace.path("dead.jsonl")).unwrap(), "");
}

#[tokio::test]
async fn a_missing_file_is_an_error() {
    let workspace = Workspace::with_webhook("http://127.0.0.1:9/");
    let (code, text) = workspace.run(&["webhooks", "replay", "nowhere.jsonl"]).await;
    assert_eq!(code, 1);
    assert!(text.contains("nowhere.jsonl cannot be replayed: No such file"), "{text}");
}

#[tokio::test]
async fn verify_uses_the_secret_of_the_key() {
    let workspace = Workspace::with_webhook("http://127.0.0.1:9/");
    let body = r#"{"time_ms":1700000000123,"events":[{"name":"channel_occupied","channel":"orders"}]}"#;
    let signature = "a416264d213b25872a9d0f48ace11bcee6bb3e1d79ecf66066ca8812cff24d39";
    fs::write(workspace.path("body"), body).unwrap();
    fs::write(workspace.path("with-newline"), format!("{body}\n")).unwrap();
    fs::write(workspace.path("other"), body.replace("orders", "others")).unwrap();
    let upper = signature.to_uppercase();
    for (key, signature, file, code, expected) in [
        ("demo-key", signature, "body", 0, "valid: 83 bytes, signed for app 1001 with key demo-key\n"),
        ("demo-key", &upper, "body", 0, "valid: "),
        ("demo-key", signature, "other", 1, "not valid for these "),
        ("demo-key", signature, "with-newline", 1, "valid for the body without the line end"),
        ("newer-key", signature, "body", 1, "made with the secret of key demo-key"),
        ("demo-key", "abc", "body", 1, "not valid for these "),
        ("unknown", signature, "body", 1, "no app has the key unknown"),
        ("demo-key", signature, "nowhere", 1, "nowhere cannot be read"),
    ] {
        let args = ["webhooks", "verify", "--key", key, "--signature", signature, file];
        let (found, text) = workspace.run(&args).await;
        assert!(found == code && text.contains(expected), "{args:?}: {found} {text}");
        assert!(!text.contains("secret\"") && !text.contains("demo-secret"), "{text}");
    }
    // From standard input, with and without `-`.
    for dash in [&["-"][..], &[]] {
        let args = [&["webhooks", "verify", "--key", "demo-key", "--signature", signature], dash].concat();
        let mut command = workspace.command(&args);
        command.stdin(fs::File::open(workspace.path("body")).unwrap());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert_eq!(output_of(&output).0, 0, "{output:?}");
    }
}

#[tokio::test]
async fn invalid_settings_are_reported_before_anything_runs() {
    let workspace = Workspace::with_webhook("http://169.254.169.254/");
    for args in [&["webhooks", "replay", "x"][..], &["config", "check"], &["serve"]] {
        let (code, text) = workspace.run(args).await;
        assert_eq!(code, 78, "{text}");
        let expected = "config/pusherd.toml: apps[0].webhooks: [0].url: 169.254.169.254 is a cloud's metadata service: \
                        webhooks are not sent there unless webhooks.allowed_addresses contains it";
        assert!(text.contains(expected), "{text}");
    }
    let allowed = Workspace::new(
        "webhooks = [{ url = 'http://169.254.1.1/' }]",
        "allowed_addresses = ['169.254.0.0/16']",
    );
    assert_eq!(allowed.run(&["config", "check"]).await.0, 0);
}

#[tokio::test]
async fn a_failing_receiver_and_its_recovery_are_logged_once_each() {
    let is_open = Arc::new(AtomicBool::new(false));
    let mut receiver = {
        let is_open = Arc::clone(&is_open);
        Receiver::with_replies(move |_, _| {
            Reply::Status(if is_open.load(Ordering::SeqCst) { 200 } else { 500 })
        })
        .await
    };
    let workspace = Workspace::new(
        &format!(
            "webhooks = [{{ url = '{}', headers = {{ Authorization = 'Bearer hunter2' }} }}]\nwebhook_batching = true",
            receiver.url("/hooks?token=hunter2")
        ),
        "",
    );
    let running = Running::start(&workspace, &[]).await;
    running.subscribe("a").await;
    for _ in 0..3 {
        receiver.hook().await;
    }
    is_open.store(true, Ordering::SeqCst);
    eventually("the recovery is logged", || async { running.log().contains("delivered again") }).await;
    let log = running.log();
    assert_eq!(
        log.matches("webhook request failed, retrying: the response status is 500, not 2xx").count(),
        1,
        "{log}"
    );
    assert_eq!(log.matches("webhooks are delivered again").count(), 1, "{log}");
    assert!(log.contains(&receiver.url("/hooks")) && !log.contains("hunter2"), "{log}");
    assert_eq!(running.stop().await, 0);
}

#[tokio::test]
async fn lost_dead_letters_are_logged_once() {
    let mut receiver = Receiver::with_replies(|_, _| Reply::Status(500)).await;
    let workspace = Workspace::new(
        &format!("webhooks = [{{ url = '{}' }}]", receiver.url("/")),
        "dead_letter_file = '../dead.jsonl'",
    );
    let running = Running::start(&workspace, &[]).await;
    fs::create_dir(workspace.path("dead.jsonl")).unwrap();
    for at in 0..5 {
        running.subscribe(&format!("channel-{at}")).await;
        // An event that was tried does not cancel out.
        receiver.hook().await;
    }
    let log = running.log.clone();
    // A second signal stops at once, and all queued events become dead letters.
    signal(&running.child, Signal::TERM);
    eventually("it drains", || async { fs::read_to_string(&log).unwrap().contains("waiting to stop") }).await;
    assert_eq!(running.stop().await, 0);
    let log = fs::read_to_string(&log).unwrap();
    assert_eq!(log.matches("cannot be written: Is a directory").count(), 1, "{log}");
    // One line at the end with the total.
    assert_eq!(log.matches(r#""lost":10,"unwritten":0"#).count(), 1, "{log}");
}

#[tokio::test]
async fn receivers_are_trusted_by_the_system_certificates() {
    let (mut receiver, certificate) = Receiver::with_tls().await;
    let port = receiver.address.port();
    let workspace = Workspace::with_webhook(&format!("https://localhost:{port}/hooks"));
    let roots = workspace.path("roots.pem");
    fs::write(&roots, certificate).unwrap();
    let running = Running::start(&workspace, &[("SSL_CERT_FILE", &roots)]).await;
    running.subscribe("a").await;
    let hook = receiver.hook().await;
    let expected: Value = json!({ "name": "channel_occupied", "channel": "a" });
    assert_eq!(hook.events(), [expected]);
    assert_eq!(hook.header("host"), [format!("localhost:{port}")]);
    assert_eq!(running.stop().await, 0);
}

#[tokio::test]
async fn a_file_of_certificates_that_does_not_exist_is_logged_at_the_start() {
    let workspace = Workspace::with_webhook("https://localhost/hooks");
    let missing = workspace.path("missing.pem");
    let running = Running::start(&workspace, &[("SSL_CERT_FILE", &missing)]).await;
    let log = running.log();
    assert!(log.contains(&format!("SSL_CERT_FILE: {} does not exist", missing.display())), "{log}");
    assert!(log.contains("no trusted certificates found on this system: https webhooks will fail"), "{log}");
    assert_eq!(running.stop().await, 0);
}
