//! Peers that stall, drip, reset, hang up by halves and never read; too few files; a wall clock that jumps. Each ends
//! as it should, nobody else notices, and nothing is left of it. (Slow readers of a WebSocket: `slow_reader.rs`.)
//!
//! What waits for a timeout has a short one here.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{
    Client, DEMO, Http, NEWS, PATIENCE, RawSocket, Request, Server, Upgrade, eventually, frame, frame_head,
    in_time, text_frame, unix_now,
};
use crate::liveness::with_short_timers;

const SECOND: Duration = Duration::from_secs(1);
const TENTH: Duration = Duration::from_millis(100);

const SUBSCRIBE: &str = r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#;

/// A subscriber of `news`, who must not notice anything.
async fn witness(server: &Server) -> Client {
    let mut witness = server.connect().await;
    witness.subscribe(NEWS).await;
    witness
}

/// Shows that the witness has noticed nothing, and that nobody else is left.
async fn unharmed(server: &Server, mut witness: Client) {
    server.has_connections(1).await;
    server.has_subscriptions(NEWS, 1).await;
    server.publish(NEWS, "after", "").await;
    witness.expect(json!({ "event": "after", "channel": NEWS, "data": "" })).await;
    witness.fence().await;
}

/// Sends these bytes one by one, for as long as the server takes them: the pause between them is the pace of a slow peer.
async fn drip(stream: &mut TcpStream, bytes: &[u8], pause: Duration) {
    for byte in bytes {
        tokio::time::sleep(pause).await;
        if stream.write_all(&[*byte]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_client_that_stalls_amid_a_frame_is_closed_with_4201() {
    let server = with_short_timers().await;
    let long = frame_head(0x81, 300);
    let fragment = frame(0x01, b"{\"event\":");
    let stalls: [&[u8]; 6] =
        [&long[..1], &long[..2], &long[..3], &long[..6], &long, &[&fragment[..], &long[..1]].concat()];
    join_all(stalls.map(async |begun| {
        let mut raw = server.connect_raw().await;
        raw.send(SUBSCRIBE).await;
        assert!(raw.next().await.text().contains("subscription_succeeded"));
        raw.write(begun).await;
        expect_4201(&mut raw).await;
    }))
    .await;
    server.has_connections(0).await;
    server.has_subscriptions(NEWS, 0).await;
}

#[tokio::test]
async fn a_client_that_sends_a_frame_byte_by_byte_too_slowly_is_closed_with_4201() {
    let server = with_short_timers().await;
    let mut raw = server.connect_raw().await;
    let writing = SockRef::from(raw.stream()).try_clone().map(std::net::TcpStream::from).unwrap();
    writing.set_nonblocking(true).unwrap();
    let mut writing = TcpStream::from_std(writing).unwrap();
    let begun = async {
        // Half a minute's worth: a frame that is not whole is no sign of life.
        drip(&mut writing, &frame(0x81, &[b' '; 300]), TENTH).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = begun => {}
        () = expect_4201(&mut raw) => {}
    }
    server.has_connections(0).await;
}

async fn expect_4201(raw: &mut RawSocket) {
    assert_eq!(raw.next().await.first, 0x89, "a ping");
    let error: Value = serde_json::from_str(raw.next().await.text()).unwrap();
    assert_eq!(error["data"]["code"], 4201);
    assert_eq!(raw.next().await.close().0, Some(4201));
    // The end, which the bytes that were on their way may turn into a reset.
    assert!(raw.next_or_end().await.is_none());
}

#[tokio::test]
async fn a_head_that_drips_is_dropped_when_its_time_is_over() {
    let server = Server::with(|setup| setup.options.handshake_timeout = 3 * TENTH).await;
    let witness = witness(&server).await;
    let heads = [RawSocket::upgrade_request("/app/demo-key"), "GET /up HTTP/1.1\r\n".to_owned()];
    join_all(heads.map(async |head| {
        let mut stream = server.tcp().await;
        // A line that has no end, a byte at a time, for far longer than is waited.
        let drips = [head.as_bytes()[..18].to_vec(), b"X: ".to_vec(), vec![b'x'; 200]].concat();
        in_time("the server hangs up", drip(&mut stream, &drips, TENTH / 4)).await;
        Http::over(stream).ends().await;
    }))
    .await;
    unharmed(&server, witness).await;
}

#[tokio::test]
async fn a_body_that_drips_is_given_up_though_it_makes_progress() {
    let server = Server::with(|setup| setup.options.http.read_timeout = TENTH).await;
    let witness = witness(&server).await;
    let request = Request::post("/apps/1001/events", vec![b' '; 1000]).signed();
    let mut stream = server.tcp().await;
    stream.write_all(&request.head_with_length(1000)).await.unwrap();
    // A byte in each half of the timeout, for far longer than ten timeouts.
    in_time("the server hangs up", drip(&mut stream, &[b' '; 300], TENTH / 2)).await;
    unharmed(&server, witness).await;
}

#[tokio::test]
async fn a_reset_at_any_moment_leaves_nothing_behind() {
    let server = Server::start().await;
    let mut listener = server.connect().await;
    listener.join("presence-room", json!({ "user_id": "listener" })).await;
    let request = Request::post("/apps/1001/events", vec![b' '; 1000]).signed();
    let upgrade = RawSocket::upgrade_request("/app/demo-key");
    let begun: [&[u8]; 5] = [
        b"",
        &upgrade.as_bytes()[..50],
        upgrade.as_bytes(),
        &request.head_with_length(1000),
        &[request.head_with_length(1000), vec![b' '; 500]].concat(),
    ];
    for bytes in begun {
        let mut stream = server.tcp().await;
        stream.write_all(bytes).await.unwrap();
        stream.set_zero_linger().unwrap();
    }
    for amid in [&b""[..], &[0x81], &frame_head(0x81, 100), &frame(0x01, b"{"), &text_frame("{}")] {
        let mut member = server.connect().await;
        member.join("presence-room", json!({ "user_id": "7" })).await;
        listener.expect_event("pusher_internal:member_added", "presence-room").await;
        member.reset();
        listener.expect_event("pusher_internal:member_removed", "presence-room").await;
        let mut raw = server.connect_raw().await;
        raw.write(amid).await;
        raw.reset();
    }
    server.has_connections(1).await;
    listener.fence().await;
}

#[tokio::test]
async fn a_client_that_resets_while_it_is_written_to_is_gone_and_the_others_get_everything() {
    let server = Server::start().await;
    let mut witness = witness(&server).await;
    let mut gone = Vec::new();
    for _ in 0..5 {
        let mut raw = server.connect_raw().await;
        SockRef::from(raw.stream()).set_recv_buffer_size(4096).unwrap();
        raw.send(SUBSCRIBE).await;
        assert!(raw.next().await.text().contains("subscription_succeeded"));
        gone.push(raw);
    }
    // Each has something queued when it resets, and some is on its way.
    let data = "x".repeat(100_000);
    for at in 0..20 {
        server.publish(NEWS, &at.to_string(), &data).await;
        assert_eq!(witness.next().await["event"], at.to_string());
        if at % 4 == 3 {
            gone.pop().unwrap().reset();
        }
    }
    unharmed(&server, witness).await;
}

#[tokio::test]
async fn who_hangs_up_by_half_before_the_head_is_whole_is_dropped() {
    let server = Server::start().await;
    let witness = witness(&server).await;
    let upgrade = RawSocket::upgrade_request("/app/demo-key");
    for begun in [0, 1, 50, upgrade.len() - 1] {
        let mut stream = server.tcp().await;
        stream.write_all(&upgrade.as_bytes()[..begun]).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = Http::over(stream).answer_or_end().await;
        assert!(answer.is_none_or(|answer| answer.status == 400), "{begun} bytes");
    }
    unharmed(&server, witness).await;
}

#[tokio::test]
async fn who_hangs_up_by_half_behind_a_request_is_answered() {
    let server = Server::start().await;
    let mut witness = witness(&server).await;
    let event = json!({ "name": "e", "channel": NEWS, "data": "x" });
    for request in [Request::get("/up"), Request::post("/apps/1001/events", event.to_string()).signed()] {
        let mut stream = server.tcp().await;
        stream.write_all(&request.to_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut http = Http::over(stream);
        http.answer().await.ok();
        http.ends().await;
    }
    witness.expect(json!({ "event": "e", "channel": NEWS, "data": "x" })).await;
    unharmed(&server, witness).await;
}

#[tokio::test]
async fn who_hangs_up_by_half_amid_a_body_publishes_nothing() {
    let server = Server::start().await;
    let witness = witness(&server).await;
    let event = json!({ "name": "e", "channel": NEWS, "data": "x" }).to_string();
    let request = Request::post("/apps/1001/events", event.clone()).signed();
    let mut stream = server.tcp().await;
    stream.write_all(&request.head_with_length(event.len())).await.unwrap();
    stream.write_all(&event.as_bytes()[..event.len() - 1]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut http = Http::over(stream);
    if let Some(answer) = http.answer_or_end().await {
        answer.refused(400);
        http.ends().await;
    }
    unharmed(&server, witness).await;
}

#[tokio::test]
async fn who_hangs_up_by_half_after_the_upgrade_is_obeyed_and_gone() {
    let server = Server::start().await;
    let mut listener = server.connect().await;
    listener.subscribe("private-room").await;
    let witness = witness(&server).await;
    for amid in [&b""[..], &[0x81], &frame(0x01, b"{")] {
        let mut raw = server.connect_raw().await;
        raw.write(&[&text_frame(SUBSCRIBE), amid].concat()).await;
        raw.stream_mut().shutdown().await.unwrap();
        let answer = raw.next().await;
        assert!(answer.text().contains("subscription_succeeded"), "{answer:?}");
        raw.ends().await;
    }
    server.has_connections(2).await;
    drop(listener);
    unharmed(&server, witness).await;
}

#[tokio::test]
async fn who_asks_over_http_and_never_reads_the_answers_is_dropped() {
    let server = Server::with(|setup| setup.options.http.read_timeout = 2 * TENTH).await;
    let witness = witness(&server).await;
    let mut stream = server.tcp().await;
    SockRef::from(&stream).set_recv_buffer_size(4096).unwrap();
    let asking = Request::get("/up").to_bytes().repeat(500);
    in_time("the server hangs up", async { while stream.write_all(&asking).await.is_ok() {} }).await;
    unharmed(&server, witness).await;
}

/// Files that a server may have open that is to run out of them.
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
    /// Starts `pusherd serve` with the demo app and the limits of files that the shell sets by this line.
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

    /// The next line of the log that has `part` in it.
    fn line_with(&self, part: &str) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no line with {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Files that it has open, but for what it was given with a number above its limit.
    fn files(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let numbers = open.map(|file| file.unwrap().file_name().to_str().unwrap().parse::<usize>().unwrap());
        numbers.filter(|number| *number < FILES).count()
    }

    /// The time that it has worked, in ticks of a hundredth of a second.
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
async fn a_server_out_of_files_rests_serves_those_it_has_and_accepts_again() {
    let process = Process::with_files(&format!("ulimit -n {FILES}"));
    process.line_with("allows few connections");
    let mut inside = RawSocket::over(process.tcp().await);
    inside.upgrade("/app/demo-key").await;
    // An application that has as many requests as there are files: WebSockets would be sent away before.
    let mut crowd = Vec::new();
    while process.files() < FILES {
        let mut one = process.tcp().await;
        // A body of its own, because one of each is waited for at a time.
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

    // While nothing can be accepted it hardly works: a tenth of the time would be 20 ticks. (Nothing is waited for: what
    // is measured are these two seconds.)
    let before = process.ticks();
    tokio::time::sleep(2 * SECOND).await;
    let worked = process.ticks() - before;
    assert!(worked < 20, "worked for {worked} hundredths of 2 s");
    inside.fence().await;
    let more: Vec<_> = process.log.try_iter().collect();
    assert!(more.is_empty(), "one line in a minute: {more:?}");

    // Whoever waited is accepted when others go.
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
async fn a_server_out_of_files_closes_idle_connections_of_applications_the_oldest_first() {
    let process = Process::with_files(&format!("ulimit -n {FILES}"));
    let mut crowd = Vec::new();
    while process.files() < FILES {
        let mut one = Http::over(process.tcp().await);
        one.send(Request::get("/apps/1001/connections").signed()).await.ok();
        crowd.push(one);
    }
    // One that is not idle, and yet the oldest.
    let mut busy = crowd.remove(0);
    let event = json!({ "name": "e", "channel": NEWS, "data": "x" }).to_string();
    let publish = Request::post("/apps/1001/events", event.clone()).signed();
    busy.write(&publish.head_with_length(event.len())).await;
    // Nobody of them leaves, and still others are served.
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
async fn a_server_out_of_files_ends_those_who_say_nothing() {
    let process = Process::with_files(&format!("ulimit -n {FILES}"));
    let mut silent = Vec::new();
    for _ in 0..2 * FILES {
        silent.push(process.tcp().await);
    }
    // Nobody of them leaves, there are fewer than there are places for strangers, and still the next one is served.
    let mut fresh = RawSocket::over(process.tcp().await);
    fresh.upgrade("/app/demo-key").await;
    fresh.fence().await;
    let mut said = Vec::new();
    let _ = in_time("the first has made room", silent[0].read_to_end(&mut said)).await;
    assert!(said.is_empty());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn websockets_leave_files_for_http_and_the_next_one_is_told_4100() {
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
    let warning = process.line_with("as its open files allow");
    assert!(warning.contains("ulimit -n"), "it says what to raise: {warning}");

    // Applications that come at once, with a new connection for each event, and health checks.
    let event = json!({ "name": "e", "channel": NEWS, "data": "x" }).to_string();
    for _ in 0..3 {
        join_all((0..4).map(async |_| {
            let publish = Request::post("/apps/1001/events", event.clone()).signed();
            Http::over(process.tcp().await).send(publish).await.ok();
            assert_eq!(Http::over(process.tcp().await).send(Request::get("/up")).await.status, 200);
        }))
        .await;
        upgrade().await.refused(4100).await;
    }
    assert!(process.files() < FILES);
    crowd.pop().unwrap().close().await;
    eventually("its place is another's", async || {
        upgrade().await.client().next().await["event"] == "pusher:connection_established"
    })
    .await;
    for client in &mut crowd {
        client.fence().await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_server_that_may_open_few_files_says_so_when_it_starts() {
    let process = Process::with_files(&format!("ulimit -n {FILES}"));
    // Only the line of its address comes before.
    let warning = process.line_with("allows few connections");
    for part in ["\"limit\":64", "\"websockets\":", "ulimit -n"] {
        assert!(warning.contains(part), "{warning}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_limit_of_open_files_is_raised_as_far_as_it_goes() {
    let process = Process::with_files("ulimit -Sn 40; ulimit -Hn 300");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.child.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let files: Vec<_> = files.split_whitespace().skip(3).take(2).collect();
    assert_eq!(files, ["300", "300"]);
}

/// The clock that the server of the next test signs and checks by.
static CLOCK: AtomicI64 = AtomicI64::new(0);

#[tokio::test]
async fn a_wall_clock_that_jumps_changes_the_age_of_signatures_and_nothing_else() {
    let server = Server::with(|setup| {
        setup.options.http.unix_now = || CLOCK.load(Ordering::SeqCst);
        setup.options.pusher.ping_interval = SECOND;
        setup.options.pusher.pong_timeout = SECOND;
    })
    .await;
    let publish = async |signed_at: i64| {
        let event = json!({ "name": "e", "channel": "cache-x", "data": "x" });
        let request = Request::post("/apps/1001/events", event.to_string()).signed_at(&DEMO, signed_at);
        server.send(request).await
    };
    let cached_for = async |signed_at: i64| {
        let request = Request::get("/apps/1001/channels/cache-x?info=cache").signed_at(&DEMO, signed_at);
        server.send(request).await.ok()["cache"]["ttl"].as_u64().unwrap()
    };
    let now = unix_now();
    CLOCK.store(now, Ordering::SeqCst);
    let mut client = server.connect().await;
    client.subscribe("cache-x").await;
    client.expect(json!({ "event": "pusher:cache_miss", "channel": "cache-x", "data": "{}" })).await;
    for jumped in [now, now + 86_400, now - 86_400, 0, i64::MAX, now] {
        CLOCK.store(jumped, Ordering::SeqCst);
        if jumped != now {
            let refused = publish(now).await;
            assert!(refused.refused(401).contains("check both clocks"), "{}", refused.text());
        }
        publish(jumped).await.ok();
        client.expect(json!({ "event": "e", "channel": "cache-x", "data": "x" })).await;
        // What is kept is kept for as long as before, and whoever is silent is pinged when it is due.
        assert!(cached_for(jumped).await > 1700);
        client.fence().await;
    }
    let mut mute = server.connect_raw().await;
    CLOCK.store(now + 86_400, Ordering::SeqCst);
    expect_4201(&mut mute).await;
}
