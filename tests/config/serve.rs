//! The commands `serve` and `health`.

use super::*;

#[test]
fn pusherd_without_arguments_prints_help() {
    let run = Workspace::new().run("");
    assert_eq!(run.code, 2);
    assert!(run.err.contains("pusherd <COMMAND>") && run.err.contains("health"), "{run:?}");
    assert_eq!(Workspace::new().run("--version").out, concat!("pusherd ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// Answers one request with `answer`. The thread returns the request.
fn answering(answer: &'static str) -> (u16, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(request).unwrap()
    });
    (port, thread)
}

#[test]
fn the_exit_code_of_health_says_whether_the_server_is_ready() {
    let table = [
        ("HTTP/1.1 200 OK\r\n\r\nOK", 0, ""),
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", 1, "pusherd: not ready: status 503\n"),
        (
            "HTTP/1.1 400 Bad Request\r\n\r\nThis port speaks TLS: use https:// or wss://",
            1,
            "pusherd: not ready: status 400: This port speaks TLS: use https:// or wss://\n",
        ),
        (
            "SSH-2.0-OpenSSH_9.9\r\n",
            1,
            "pusherd: the server does not speak HTTP: it answers \"SSH-2.0-OpenSSH_9.9\"\n",
        ),
        ("", 1, "pusherd: the server does not speak HTTP: it closes the connection without an answer\n"),
    ];
    for (answer, code, err) in table {
        let (port, server) = answering(answer);
        let run = Workspace::new().run(&format!("health --port {port}"));
        assert_eq!((run.code, run.err.as_str()), (code, err), "{answer:?}");
        assert!(server.join().unwrap().starts_with("GET /ready HTTP/1.1\r\nHost: localhost:"));
    }
}

#[test]
fn health_uses_the_address_in_the_settings_or_the_flags() {
    let (port, server) = answering("HTTP/1.1 200 OK\r\n\r\n");
    let workspace = Workspace::new().env(&format!("PUSHERD_PORT={port}\nPUSHERD_HOST=0.0.0.0\n"));
    assert_eq!(workspace.run("health").code, 0);
    server.join().unwrap();
    let (port, server) = answering("HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(workspace.run(&format!("health --url http://localhost:{port}/up")).code, 0);
    assert!(server.join().unwrap().starts_with("GET /up HTTP/1.1\r\n"));
    for (line, expected) in [
        ("health --port 0", "the server picks its port itself"),
        ("health --port x", "command line: --port: must be 0 to 65535"),
        ("health --url ftp://x", "is not a URL"),
        ("health --host 127.0.0.1 --port 1", "no answer: 127.0.0.1 port 1: "),
    ] {
        let run = workspace.run(line);
        assert_eq!((run.code, run.err.lines().count()), (1, 1), "{run:?}");
        assert!(run.err.contains(expected), "{run:?}");
    }
}

#[test]
fn serve_prints_the_configuration_for_the_application_and_drains_on_sigterm() {
    let workspace = Workspace::new();
    let (mut running, banner, port) = Running::start(&workspace, "serve --port 0 --drain-secs 0");
    assert!(banner.contains("listening on 127.0.0.1:") && banner.contains("app-id, key app-key"), "{banner}");
    let dotenv = format!(
        "\nBROADCAST_CONNECTION=pusher\nBROADCAST_DRIVER=pusher\nPUSHER_APP_ID=app-id\nPUSHER_APP_KEY=app-key\n\
         PUSHER_APP_SECRET=app-secret\nPUSHER_HOST=127.0.0.1\nPUSHER_PORT={port}\nPUSHER_SCHEME=http\n\
         PUSHER_APP_CLUSTER=mt1\nVITE_PUSHER_APP_KEY=\"${{PUSHER_APP_KEY}}\"\n"
    );
    assert!(banner.contains(&dotenv), "{banner}");
    for line in [
        "    broadcaster: 'pusher',",
        "    forceTLS: (import.meta.env.VITE_PUSHER_SCHEME ?? 'https') === 'https',",
        "    enabledTransports: ['ws', 'wss'],",
    ] {
        assert!(banner.contains(line), "{banner}");
    }
    // The printed lines are a valid `.env` for pusherd.
    let pasted = Workspace::new().file(".env", &banner).show("");
    pasted.assert("id", "\"app-id\"", ".env: PUSHER_APP_ID");

    let healthy = workspace.run(&format!("health --port {port}"));
    assert_eq!((healthy.code, healthy.err.as_str()), (0, ""));
    let over_tls = workspace.run(&format!("health --url https://127.0.0.1:{port}"));
    assert_eq!(over_tls.code, 1);
    assert!(over_tls.err.contains("TLS"), "{over_tls:?}");
    let second = workspace.run(&format!("serve --port {port}"));
    assert_eq!(second.code, 1);
    assert!(second.err.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{second:?}");
    running.signal(Signal::TERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    assert_eq!(workspace.run(&format!("health --port {port}")).code, 1);
}

#[test]
fn serve_never_prints_a_configured_secret() {
    let file =
        Workspace::new().file("config/pusherd.toml", APP).env("PUSHERD_HOST=127.0.0.1\nPUSHERD_PORT=0\n");
    let (_running, banner, _) = Running::start(&file, "serve");
    assert!(banner.contains("PUSHER_APP_SECRET=<the secret of app 1>"), "{banner}");
    assert!(!banner.contains("file-secret"), "{banner}");
    // An application with credentials needs no instructions.
    let dotenv =
        credentials("PUSHER_APP", "7") + "PUSHER_HOST=ws.test\nPUSHERD_HOST=127.0.0.1\nPUSHERD_PORT=0\n";
    let (_running, banner, _) = Running::start(&Workspace::new().file(".env", dotenv), "serve");
    assert!(banner.contains("connect to https://ws.test according to .env"), "{banner}");
    assert!(!banner.contains("7-secret") && !banner.contains("BROADCAST"), "{banner}");
}

/// Uses the secret in every kind of request, with valid and invalid signatures.
fn use_secret(port: u16, secret: &str) {
    let key = SigningKey::new(secret);
    let send = |request: String| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(!answer.contains(secret), "{answer}");
        answer
    };
    #[expect(clippy::disallowed_methods, reason = "a signed request carries the time of day")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let get = |path: &str, signature: Option<String>| {
        let query = format!("auth_key=k1&auth_timestamp={now}&auth_version=1.0");
        let signature = signature.unwrap_or_else(|| key.sign(&["GET\n", path, "\n", &query]));
        send(format!(
            "GET {path}?{query}&auth_signature={signature} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
        ))
    };
    assert!(get("/apps/1/channels", None).starts_with("HTTP/1.1 200 "));
    assert!(get("/apps/1/channels", Some("0".repeat(64))).starts_with("HTTP/1.1 401 "));
    assert!(get("/apps/1/channels", Some("x".to_owned())).starts_with("HTTP/1.1 401 "));
    assert!(get("/apps/2/channels", None).starts_with("HTTP/1.1 404 "));

    // Valid and invalid subscriptions and sign-ins. They need the socket id of the first message.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .write_all(
            b"GET /app/k1 HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .unwrap();
    let mut said = String::new();
    let mut read_until = |end: &str, stream: &mut TcpStream| {
        let mut bytes = [0; 4096];
        while !said.contains(end) {
            let read = stream.read(&mut bytes).unwrap();
            assert!(read > 0, "{said}");
            said.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        said.clone()
    };
    let established = read_until("activity_timeout", &mut stream);
    let (_, rest) = established.split_once("socket_id\\\":\\\"").unwrap();
    let (socket, _) = rest.split_once('\\').unwrap();
    let frame = |text: String| {
        let mut bytes = vec![0x81, 0x80 | 126];
        bytes.extend((text.len() as u16).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(text.as_bytes());
        bytes
    };
    let user_data = r#"{\"id\":\"7\"}"#;
    for (sign_as, signs) in [("good", true), ("bad", false)] {
        let auth = |parts: &[&str]| {
            if signs { format!("k1:{}", key.sign(parts)) } else { format!("k1:{}", "0".repeat(64)) }
        };
        let subscribe = auth(&[socket, ":", &format!("private-{sign_as}")]);
        let sign_in = auth(&[socket, "::user::", r#"{"id":"7"}"#]);
        for text in [
            format!(
                r#"{{"event":"pusher:subscribe","data":{{"channel":"private-{sign_as}","auth":"{subscribe}"}}}}"#
            ),
            format!(r#"{{"event":"pusher:signin","data":{{"auth":"{sign_in}","user_data":"{user_data}"}}}}"#),
        ] {
            stream.write_all(&frame(text)).unwrap();
        }
    }
    let said = read_until("Sign-in refused", &mut stream);
    for answer in ["subscription_succeeded", "subscription_error", "signin_success"] {
        assert!(said.contains(answer), "{answer}: {said}");
    }
    assert!(!said.contains(secret), "{said}");
}

#[test]
fn the_most_verbose_log_and_the_arguments_contain_no_secret() {
    const SECRET: &str = "hunter2-hunter2-hunter2";
    for (workspace, line) in [
        (Workspace::new(), "serve --debug --log-level trace --log-format json --drain-secs 0"),
        (Workspace::new(), "serve --log-level trace --log-format json --drain-secs 0"),
    ] {
        let workspace = workspace
            .file("config/pusherd.toml", format!("[[apps]]\nid = '1'\nkey = 'k1'\nsecret = '{SECRET}'\n"))
            .env("PUSHERD_HOST=127.0.0.1\nPUSHERD_PORT=0\nRUST_LOG=trace\n");
        let mut command = workspace.command(line);
        let log = workspace.directory.path().join("log");
        command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
        let mut running = Running(command.spawn().unwrap());
        let port = loop {
            let text = fs::read_to_string(&log).unwrap();
            if let Some((_, rest)) = text.split_once("listening on 127.0.0.1:") {
                break rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap();
            }
            assert!(running.0.try_wait().unwrap().is_none(), "{text}");
            std::thread::yield_now();
        };
        use_secret(port, SECRET);
        let arguments = fs::read(format!("/proc/{}/cmdline", running.0.id())).unwrap();
        assert!(!String::from_utf8_lossy(&arguments).contains(SECRET));
        running.signal(Signal::TERM);
        assert_eq!(running.0.wait().unwrap().code(), Some(0));
        let log = fs::read_to_string(&log).unwrap();
        assert!(log.contains("string_to_sign"), "the log shows what was signed: {log}");
        assert!(!log.contains(SECRET), "{log}");
    }
}

#[test]
fn json_logs_contain_the_address_at_every_level() {
    let workspace = Workspace::new();
    let (mut running, log, port) =
        Running::start(&workspace, "serve --port 0 --log-format json --log-level error");
    let line = log.lines().last().unwrap();
    assert!(line.starts_with('{') && line.contains(&format!("listening on 127.0.0.1:{port}\"")), "{log}");
    running.signal(Signal::INT);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}
