//! Invalid files: special files, other encodings, files of other programs, certificates in other formats.

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;

impl Workspace {
    fn fifo(self, name: &str) -> Self {
        mknodat(CWD, self.directory.path().join(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        self
    }

    /// Runs `config show`; warnings are ignored.
    fn shown(&self) -> Shown {
        Shown(self.run("config show").out)
    }
}

/// UTF-16LE with a byte order mark, as written by `>` in PowerShell.
fn utf_16(text: &str) -> Vec<u8> {
    "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
}

const NOT_A_FILE: &str = "is a FIFO (named pipe), and must be a regular file";

#[test]
fn a_fifo_is_rejected_without_waiting_for_it() {
    let workspace = Workspace::new().fifo("a.toml").fifo(".env");
    assert_eq!(
        workspace.problems("--config a.toml"),
        [format!(".env: {NOT_A_FILE}"), format!("a.toml: {NOT_A_FILE}")]
    );
    let secret = "[[apps]]\nid = '1'\nkey = 'k'\nsecret_file = 'pipe'\n";
    let workspace = Workspace::new().fifo("pipe").file("a.toml", secret);
    assert_eq!(workspace.problem("--config a.toml"), format!("a.toml: apps[0].secret: pipe {NOT_A_FILE}"));
    let tls = "[server]\ntls_cert = 'pipe'\ntls_key = 'pipe'\n";
    let workspace = Workspace::new().fifo("pipe").file("a.toml", tls);
    assert_eq!(workspace.problem("--config a.toml"), format!("a.toml: server.tls_cert: pipe {NOT_A_FILE}"));
    let ca = "[server]\ncluster = 'redis'\n[redis]\ntls = true\ntls_ca_file = 'pipe'\n";
    let workspace = Workspace::new().fifo("pipe").file("a.toml", ca);
    assert_eq!(workspace.problem("--config a.toml"), format!("a.toml: redis.tls_ca_file: pipe {NOT_A_FILE}"));
}

#[test]
fn devices_and_directories_are_rejected() {
    let workspace = Workspace::new().file(".env/x", "").file("a.toml/x", "");
    assert_eq!(
        workspace.problems("--config a.toml"),
        [".env", "a.toml"].map(|name| format!("{name}: is a directory, and must be a regular file"))
    );
    let endless = Workspace::new().problem("--env-file /dev/zero");
    assert_eq!(endless, "/dev/zero: is a device, and must be a regular file");
}

#[test]
fn the_null_device_is_an_env_file_without_variables() {
    let workspace = Workspace::new().file(".env", credentials("REVERB_APP", "1"));
    assert!(workspace.show("").get("id").1.starts_with(".env"));
    assert_eq!(workspace.show("--env-file /dev/null").get("id").1, "default");
}

#[test]
fn nested_yaml_aliases_are_limited_by_their_expanded_size() {
    let mut bomb = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for at in 1..12 {
        bomb += &format!("a{at}: &a{at} [{}]\n", vec![format!("*a{}", at - 1); 9].join(", "));
    }
    let workspace = Workspace::new().file("a.yaml", bomb);
    assert_eq!(
        workspace.problem("--config a.yaml"),
        "a.yaml: is larger than 1024 KiB with its aliases written out"
    );
}

#[test]
fn an_env_file_must_be_utf_8_with_or_without_a_byte_order_mark() {
    let dotenv = credentials("REVERB_APP", "1");
    let workspace = Workspace::new().file(".env", utf_16(&dotenv));
    let problem = workspace.problem("");
    assert!(
        problem.starts_with(
            ".env: is UTF-16 text (UTF-16LE) and must be UTF-8: nothing of its 3 lines was read"
        ),
        "{problem}"
    );
    assert!(!problem.contains("1-secret"));
    let with_mark = Workspace::new().file(".env", format!("\u{feff}{dotenv}"));
    with_mark.show("").assert("id", "\"1\"", ".env: REVERB_APP_ID");
}

#[test]
fn an_env_file_that_is_partly_latin_1_is_read_with_a_warning() {
    let latin_1 = [b"A=1\nAPP_NAME=caf\xe9\n", credentials("REVERB_APP", "1").as_bytes()].concat();
    let workspace = Workspace::new().file(".env", latin_1);
    let check = workspace.run("config check");
    assert_eq!(check.code, 0, "{check:?}");
    let warning = "warning: .env: is not UTF-8 text: line 2 is the first with another encoding";
    assert!(check.err.contains(warning) && check.err.contains("the rest was read"), "{check:?}");
    workspace.shown().assert("id", "\"1\"", ".env: REVERB_APP_ID");
}

#[test]
fn lines_of_an_env_file_that_are_not_assignments_are_reported() {
    // A variable that pusherd reads, written as in YAML.
    let workspace = Workspace::new().file(".env", "REVERB_APP_ID: hunter2\nA=1\n");
    assert_eq!(workspace.problem(""), ".env: REVERB_APP_ID: is not followed by = (line 1)");
    // No line is an assignment.
    let workspace = Workspace::new().file(".env", "# comment\n{\n \"hunter2\": 1\n}\n");
    let expected = ".env: 3 lines are not assignments (NAME=value), the first is line 2: nothing was read";
    assert_eq!(workspace.problem(""), expected);
    // A line that does not name a variable of pusherd.
    let workspace = Workspace::new().file(".env", "A=1\n- hunter2\n");
    let check = workspace.run("config check");
    assert_eq!(check.code, 0, "{check:?}");
    assert_eq!(check.err, "pusherd: warning: .env: line 2 is not an assignment (NAME=value): not read\n");
}

#[test]
fn a_configuration_must_be_utf_8_with_or_without_a_byte_order_mark() {
    for (name, text) in [("a.toml", APP), ("a.json", "{\"apps\": []}"), ("a.yaml", "apps: []\n")] {
        let problem = Workspace::new().file(name, utf_16(text)).problem(&format!("--config {name}"));
        assert!(problem.starts_with(&format!("{name}: is UTF-16 text (UTF-16LE)")), "{problem}");
        let with_mark = Workspace::new().file(name, format!("\u{feff}{text}"));
        assert_eq!(with_mark.run(&format!("config check --config {name}")).code, 0, "{name}");
    }
    let latin_1 = Workspace::new().file("a.toml", b"[server]\n# caf\xe9\n").problem("--config a.toml");
    assert!(latin_1.starts_with("a.toml: is not UTF-8 text: line 2 is the first"), "{latin_1}");
}

#[test]
fn a_configuration_of_another_server_is_recognised() {
    let soketi =
        r#"{"debug":true,"port":6001,"appManager.array.apps":[{"id":"1","key":"k","secret":"hunter2"}]}"#;
    let problem = Workspace::new().file("soketi.json", soketi).problem("--config soketi.json");
    assert!(
        problem.starts_with("soketi.json: is a configuration of Soketi, which pusherd does not read"),
        "{problem}"
    );
    assert!(
        problem.contains("appManager.array.apps is [[apps]]") && !problem.contains("hunter2"),
        "{problem}"
    );
    let echo =
        r#"{"authHost":"http://localhost","authEndpoint":"/broadcasting/auth","clients":[{"appId":"1"}]}"#;
    let problem = Workspace::new().file("a.json", echo).problem("--config a.json");
    assert!(
        problem.contains("laravel-echo-server") && problem.contains("BROADCAST_CONNECTION=pusher"),
        "{problem}"
    );
}

#[test]
fn a_number_in_quotes_is_rejected_with_a_hint_in_every_format() {
    for (name, text) in [
        ("a.toml", "[server]\nport = \"7000\"\n"),
        ("a.json", "{\"server\": {\"port\": \"7000\"}}"),
        ("a.yaml", "server:\n  port: '7000'\n"),
    ] {
        let problem = Workspace::new().file(name, text).problem(&format!("--config {name}"));
        let expected = "server.port: must be 0 to 65535, not \"7000\": write it without quotes";
        assert_eq!(problem, format!("{name}: {expected}"));
    }
}

#[test]
fn a_socket_of_redis_needs_no_port_and_a_shared_url_may_have_parameters() {
    let scaled = "REVERB_SCALING_ENABLED=true\n".to_owned() + &credentials("REVERB_APP", "1");
    for port in ["0", "-1", "6379"] {
        let dotenv = format!("{scaled}REDIS_HOST=/run/redis/redis.sock\nREDIS_PORT={port}\n");
        let workspace = Workspace::new().file(".env", dotenv);
        assert_eq!(workspace.run("config check").code, 0, "{port}");
        workspace.shown().assert("redis.host", "\"/run/redis/redis.sock\"", ".env: REDIS_HOST");
    }
    let workspace = Workspace::new().file(".env", format!("{scaled}REDIS_URL=redis://redis:6379?family=0\n"));
    let check = workspace.run("config check");
    assert_eq!(check.code, 0, "{check:?}");
    assert!(
        check.err.contains("warning: .env: REDIS_URL: has parameters that are not read: family\n"),
        "{check:?}"
    );
}

#[test]
fn headers_that_pusherd_sets_are_ignored_and_lambdas_are_rejected() {
    let webhooks = |webhook: &str| {
        format!("{}SOKETI_DEFAULT_APP_WEBHOOKS='[{webhook}]'\n", credentials("SOKETI_DEFAULT_APP", "1"))
    };
    let headers = r#"{"url":"https://app.test/hooks","headers":{"X-Pusher-Key":"hunter2"}}"#;
    let check = Workspace::new().file(".env", webhooks(headers)).run("config check");
    assert_eq!(check.code, 0, "{check:?}");
    let warning = "SOKETI_DEFAULT_APP_WEBHOOKS: [0].headers.X-Pusher-Key: is a header that every webhook has";
    assert!(check.err.contains(warning) && !check.err.contains("hunter2"), "{check:?}");
    let problem = Workspace::new()
        .file(".env", webhooks(r#"{"url":"https://a.test","lambda_function":"f"}"#))
        .problem("");
    assert!(problem.contains("functions of AWS Lambda are not supported"), "{problem}");
}

/// Certificates and keys that openssl creates and clients reject.
const RSA_1024: &str = include_str!("rsa-1024.pem");
const RSA_8192: &str = include_str!("rsa-8192.pem");
const P_521: &str = include_str!("p-521.pem");
const SECP256K1: &str = include_str!("secp256k1.pem");
const VERSION_1: &str = include_str!("version-1.pem");

#[test]
fn certificates_that_clients_reject_are_rejected_with_a_command_that_creates_another() {
    let recipe =
        "make one with `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365";
    for (pem, setting, words) in [
        (VERSION_1, "CERT", "begins with a certificate of X.509 version 1, and clients take version 3 only"),
        (RSA_1024, "KEY", "cannot be used: the certificate is for a key that is RSA of 1024 bits"),
        (RSA_8192, "KEY", "cannot be used: the certificate is for a key that is RSA of 8192 bits"),
        (P_521, "KEY", "cannot be used: the certificate is for a key that is ECDSA on P-521"),
        (SECP256K1, "KEY", "cannot be used: the certificate is for a key that is ECDSA on secp256k1"),
    ] {
        let workspace =
            Workspace::new().file("a.pem", pem).env("PUSHERD_TLS_CERT=a.pem\nPUSHERD_TLS_KEY=a.pem");
        let problem = workspace.problem("");
        let expected = format!("environment: PUSHERD_TLS_{setting}: a.pem {words}");
        assert!(problem.starts_with(&expected) && problem.contains(recipe), "{problem}");
    }
}

#[test]
fn certificates_in_other_formats_are_rejected_with_the_command_that_converts_them() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes());
    let p12 = include_bytes!("certs.p12").to_vec();
    for (cert, key, words) in [
        (
            made.cert.der().to_vec(),
            key.clone(),
            "CERT: cert is a certificate in DER, and must be in PEM: convert it with `openssl x509 -inform DER -in cert -out \
             cert.pem`",
        ),
        (
            p12.clone(),
            key.clone(),
            "CERT: cert is PKCS#12 (.p12, .pfx), and must be PEM: take the certificates out with `openssl pkcs12 -in cert \
             -nokeys -out cert.pem`",
        ),
        (
            include_bytes!("certs.p7b").to_vec(),
            key.clone(),
            "CERT: cert is PKCS#7 (.p7b), and must hold certificates in PEM: convert it with `openssl pkcs7 -inform DER -in \
             cert -print_certs -out cert.pem`",
        ),
        (
            cert.clone(),
            made.signing_key.serialize_der(),
            "KEY: key is a private key in DER, and must be in PEM: convert it with `openssl pkey -inform DER -in key -out \
             key.pem`",
        ),
        (
            cert.clone(),
            p12,
            "KEY: key is PKCS#12 (.p12, .pfx), and must be PEM: take the key out with `openssl pkcs12 -in key -nocerts \
             -nodes -out key.pem`",
        ),
        (cert.clone(), made.cert.der().to_vec(), "KEY: key is a certificate in DER, and no private key"),
    ] {
        let workspace = Workspace::new().file("cert", cert).file("key", key);
        let problem = workspace.env("PUSHERD_TLS_CERT=cert\nPUSHERD_TLS_KEY=key").problem("");
        assert_eq!(problem, format!("environment: PUSHERD_TLS_{words}"));
    }
}

#[test]
fn without_tls_key_the_key_is_read_from_the_file_of_the_certificate() {
    let (cert, key) = certificate();
    for both in [format!("{key}{cert}"), format!("{cert}{key}")] {
        let workspace = Workspace::new().file("both.pem", both).env("PUSHERD_TLS_CERT=both.pem");
        let check = workspace.run("config check");
        assert_eq!(check.out, "valid: 1 app on 127.0.0.1:6001 with TLS; read: no files\n", "{check:?}");
        let (mut running, banner, port) = Running::start(&workspace, "serve --port 0 --drain-secs 0");
        assert!(banner.contains(" with TLS\n"), "{banner}");
        assert_eq!(workspace.run(&format!("health --port {port}")).code, 0);
        running.signal(Signal::TERM);
        assert_eq!(running.0.wait().unwrap().code(), Some(0));
    }
    let alone = Workspace::new().file("cert.pem", cert).env("PUSHERD_TLS_CERT=cert.pem");
    assert_eq!(
        alone.problem(""),
        "environment: PUSHERD_TLS_CERT: needs tls_key beside it, which is not set: cert.pem holds no private key in PEM \
         (BEGIN PRIVATE KEY)"
    );
}

#[expect(clippy::disallowed_methods, reason = "certificates hold from date to date")]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A certificate that is valid between two days, counted from today, and its key.
fn certificate_of(days: std::ops::Range<i64>) -> String {
    let now = unix_now();
    let at = |days: i64| {
        let seconds = now.checked_add_signed(days * 24 * 3600).unwrap();
        rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(seconds)
    };
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (at(days.start), at(days.end));
    let key = rcgen::KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().pem() + &key.serialize_pem()
}

#[test]
fn dates_of_a_certificate_cause_warnings_at_the_check_and_at_the_start() {
    for (days, words) in [
        (-90..-3, "holds a certificate that expired 3 days ago, on "),
        (3..90, "holds a certificate that is not valid yet: clients reject it for another "),
        (-80..10, "holds a certificate that expires in "),
    ] {
        let workspace =
            Workspace::new().file("both.pem", certificate_of(days)).env("PUSHERD_TLS_CERT=both.pem");
        let check = workspace.run("config check");
        let expected = format!("warning: environment: PUSHERD_TLS_CERT: both.pem {words}");
        assert!(check.code == 0 && check.err.contains(&expected), "{check:?}");
        let (_running, log, _) =
            Running::start(&workspace, "serve --port 0 --drain-secs 0 --log-format json");
        assert!(log.contains(words), "{log}");
    }
    let workspace =
        Workspace::new().file("both.pem", certificate_of(-1..89)).env("PUSHERD_TLS_CERT=both.pem");
    assert_eq!(workspace.run("config check").err, "");
}

#[test]
fn a_host_name_of_this_machine_works_for_serve_and_health() {
    let workspace = Workspace::new().env("PUSHERD_HOST=LocalHost");
    let (mut running, _, port) = Running::start(&workspace, "serve --port 0 --drain-secs 0");
    assert_eq!(workspace.run(&format!("health --port {port}")).code, 0);
    running.signal(Signal::TERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}
