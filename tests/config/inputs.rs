//! Files that are something else than they should be: refused in words, whoever reads them and whatever they are.

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::*;

impl Place {
    fn fifo(self, name: &str) -> Self {
        mknodat(CWD, self.directory.path().join(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        self
    }

    /// `config show`, whatever is remarked beside it.
    fn shown(&self) -> Shown {
        Shown(self.run("config show").out)
    }
}

/// Each character as two bytes, little endian, a byte order mark first: what PowerShell's `>` writes.
fn utf_16(text: &str) -> Vec<u8> {
    "\u{feff}".encode_utf16().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
}

const NOT_A_FILE: &str = "is a FIFO (named pipe), and must be a regular file";

#[test]
fn a_fifo_in_the_place_of_a_file_is_refused_and_nothing_waits_for_it() {
    let place = Place::new().fifo("a.toml").fifo(".env");
    assert_eq!(
        place.problems("--config a.toml"),
        [format!(".env: {NOT_A_FILE}"), format!("a.toml: {NOT_A_FILE}")]
    );
    let secret = "[[apps]]\nid = '1'\nkey = 'k'\nsecret_file = 'pipe'\n";
    let place = Place::new().fifo("pipe").file("a.toml", secret);
    assert_eq!(place.problem("--config a.toml"), format!("a.toml: apps[0].secret: pipe {NOT_A_FILE}"));
    let tls = "[server]\ntls_cert = 'pipe'\ntls_key = 'pipe'\n";
    let place = Place::new().fifo("pipe").file("a.toml", tls);
    assert_eq!(place.problem("--config a.toml"), format!("a.toml: server.tls_cert: pipe {NOT_A_FILE}"));
    let ca = "[server]\ncluster = 'redis'\n[redis]\ntls = true\ntls_ca_file = 'pipe'\n";
    let place = Place::new().fifo("pipe").file("a.toml", ca);
    assert_eq!(place.problem("--config a.toml"), format!("a.toml: redis.tls_ca_file: pipe {NOT_A_FILE}"));
}

#[test]
fn devices_and_directories_are_no_files() {
    let place = Place::new().file(".env/x", "").file("a.toml/x", "");
    assert_eq!(
        place.problems("--config a.toml"),
        [".env", "a.toml"].map(|name| format!("{name}: is a directory, and must be a regular file"))
    );
    let endless = Place::new().problem("--env-file /dev/zero");
    assert_eq!(endless, "/dev/zero: is a device, and must be a regular file");
}

#[test]
fn the_null_device_is_an_env_file_without_variables() {
    let place = Place::new().file(".env", credentials("REVERB_APP", "1"));
    assert!(place.show("").get("id").1.starts_with(".env"));
    assert_eq!(place.show("--env-file /dev/null").get("id").1, "default");
}

#[test]
fn aliases_of_yaml_that_multiply_each_other_are_refused() {
    let mut bomb = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for at in 1..12 {
        bomb += &format!("a{at}: &a{at} [{}]\n", vec![format!("*a{}", at - 1); 9].join(", "));
    }
    let place = Place::new().file("a.yaml", bomb);
    assert_eq!(
        place.problem("--config a.yaml"),
        "a.yaml: is larger than 1024 KiB with its aliases written out"
    );
}

#[test]
fn an_env_file_in_another_encoding_is_refused_and_one_with_a_byte_order_mark_is_read() {
    let dotenv = credentials("REVERB_APP", "1");
    let place = Place::new().file(".env", utf_16(&dotenv));
    let problem = place.problem("");
    assert!(
        problem.starts_with(
            ".env: is UTF-16 text (UTF-16LE) and must be UTF-8: nothing of its 3 lines was read"
        ),
        "{problem}"
    );
    assert!(!problem.contains("1-secret"));
    let with_mark = Place::new().file(".env", format!("\u{feff}{dotenv}"));
    with_mark.show("").assert("id", "\"1\"", ".env: REVERB_APP_ID");
}

#[test]
fn an_env_file_that_is_partly_latin_1_is_read_with_a_remark() {
    let latin_1 = [b"A=1\nAPP_NAME=caf\xe9\n", credentials("REVERB_APP", "1").as_bytes()].concat();
    let place = Place::new().file(".env", latin_1);
    let check = place.run("config check");
    assert_eq!(check.code, 0, "{check:?}");
    let remark = "warning: .env: is not UTF-8 text: line 2 is the first with another encoding";
    assert!(check.err.contains(remark) && check.err.contains("the rest was read"), "{check:?}");
    place.shown().assert("id", "\"1\"", ".env: REVERB_APP_ID");
}

#[test]
fn lines_of_an_env_file_that_are_no_assignments_are_told() {
    // A variable that matters, written as in YAML: nothing is guessed.
    let place = Place::new().file(".env", "REVERB_APP_ID: hunter2\nA=1\n");
    assert_eq!(place.problem(""), ".env: REVERB_APP_ID: is not followed by = (line 1)");
    // Nothing at all is an assignment.
    let place = Place::new().file(".env", "# comment\n{\n \"hunter2\": 1\n}\n");
    let expected =
        ".env: 3 lines are no assignments (NAME=value), the first of them line 2: nothing was read";
    assert_eq!(place.problem(""), expected);
    // One of another program.
    let place = Place::new().file(".env", "A=1\n- hunter2\n");
    let check = place.run("config check");
    assert_eq!(check.code, 0, "{check:?}");
    assert_eq!(check.err, "pusherd: warning: .env: line 2 is no assignment (NAME=value): not read\n");
}

#[test]
fn a_configuration_in_another_encoding_is_refused_and_one_with_a_byte_order_mark_is_read() {
    for (name, text) in [("a.toml", APP), ("a.json", "{\"apps\": []}"), ("a.yaml", "apps: []\n")] {
        let problem = Place::new().file(name, utf_16(text)).problem(&format!("--config {name}"));
        assert!(problem.starts_with(&format!("{name}: is UTF-16 text (UTF-16LE)")), "{problem}");
        let with_mark = Place::new().file(name, format!("\u{feff}{text}"));
        assert_eq!(with_mark.run(&format!("config check --config {name}")).code, 0, "{name}");
    }
    let latin_1 = Place::new().file("a.toml", b"[server]\n# caf\xe9\n").problem("--config a.toml");
    assert!(latin_1.starts_with("a.toml: is not UTF-8 text: line 2 is the first"), "{latin_1}");
}

#[test]
fn a_configuration_of_another_server_is_recognised() {
    let soketi =
        r#"{"debug":true,"port":6001,"appManager.array.apps":[{"id":"1","key":"k","secret":"hunter2"}]}"#;
    let problem = Place::new().file("soketi.json", soketi).problem("--config soketi.json");
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
    let problem = Place::new().file("a.json", echo).problem("--config a.json");
    assert!(
        problem.contains("laravel-echo-server") && problem.contains("BROADCAST_CONNECTION=pusher"),
        "{problem}"
    );
}

#[test]
fn a_number_in_quotes_is_refused_with_the_remedy_in_every_format() {
    for (name, text) in [
        ("a.toml", "[server]\nport = \"7000\"\n"),
        ("a.json", "{\"server\": {\"port\": \"7000\"}}"),
        ("a.yaml", "server:\n  port: '7000'\n"),
    ] {
        let problem = Place::new().file(name, text).problem(&format!("--config {name}"));
        let expected = "server.port: must be 0 to 65535, not \"7000\": write it without quotes";
        assert_eq!(problem, format!("{name}: {expected}"));
    }
}

#[test]
fn the_socket_of_redis_needs_no_port_and_a_shared_url_may_have_parameters() {
    let scaled = "REVERB_SCALING_ENABLED=true\n".to_owned() + &credentials("REVERB_APP", "1");
    for port in ["0", "-1", "6379"] {
        let dotenv = format!("{scaled}REDIS_HOST=/run/redis/redis.sock\nREDIS_PORT={port}\n");
        let place = Place::new().file(".env", dotenv);
        assert_eq!(place.run("config check").code, 0, "{port}");
        place.shown().assert("redis.host", "\"/run/redis/redis.sock\"", ".env: REDIS_HOST");
    }
    let place = Place::new().file(".env", format!("{scaled}REDIS_URL=redis://redis:6379?family=0\n"));
    let check = place.run("config check");
    assert_eq!(check.code, 0, "{check:?}");
    assert!(
        check.err.contains("warning: .env: REDIS_URL: has parameters that are not read: family\n"),
        "{check:?}"
    );
}

#[test]
fn a_webhook_with_a_header_that_pusherd_sets_is_taken_without_it_and_a_lambda_is_not() {
    let webhooks = |webhook: &str| {
        format!("{}SOKETI_DEFAULT_APP_WEBHOOKS='[{webhook}]'\n", credentials("SOKETI_DEFAULT_APP", "1"))
    };
    let headers = r#"{"url":"https://app.test/hooks","headers":{"X-Pusher-Key":"hunter2"}}"#;
    let check = Place::new().file(".env", webhooks(headers)).run("config check");
    assert_eq!(check.code, 0, "{check:?}");
    let remark = "SOKETI_DEFAULT_APP_WEBHOOKS: [0].headers.X-Pusher-Key: is a header that every webhook has";
    assert!(check.err.contains(remark) && !check.err.contains("hunter2"), "{check:?}");
    let problem =
        Place::new().file(".env", webhooks(r#"{"url":"https://a.test","lambda_function":"f"}"#)).problem("");
    assert!(problem.contains("functions of AWS Lambda are not supported"), "{problem}");
}

/// Certificates and keys that openssl makes and clients do not take.
const RSA_1024: &str = include_str!("rsa-1024.pem");
const RSA_8192: &str = include_str!("rsa-8192.pem");
const P_521: &str = include_str!("p-521.pem");
const SECP256K1: &str = include_str!("secp256k1.pem");
const VERSION_1: &str = include_str!("version-1.pem");

#[test]
fn a_certificate_or_key_that_clients_do_not_take_is_refused_by_its_kind_with_a_way_to_make_another() {
    let recipe =
        "make one with `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365";
    for (pem, setting, words) in [
        (VERSION_1, "CERT", "begins with a certificate of X.509 version 1, and clients take version 3 only"),
        (RSA_1024, "KEY", "cannot be used: the certificate is for a key that is RSA of 1024 bits"),
        (RSA_8192, "KEY", "cannot be used: the certificate is for a key that is RSA of 8192 bits"),
        (P_521, "KEY", "cannot be used: the certificate is for a key that is ECDSA on P-521"),
        (SECP256K1, "KEY", "cannot be used: the certificate is for a key that is ECDSA on secp256k1"),
    ] {
        let place = Place::new().file("a.pem", pem).env("PUSHERD_TLS_CERT=a.pem\nPUSHERD_TLS_KEY=a.pem");
        let problem = place.problem("");
        let expected = format!("environment: PUSHERD_TLS_{setting}: a.pem {words}");
        assert!(problem.starts_with(&expected) && problem.contains(recipe), "{problem}");
    }
}

#[test]
fn a_certificate_or_key_in_another_form_than_pem_is_named_with_the_command_that_converts_it() {
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
        let place = Place::new().file("cert", cert).file("key", key);
        let problem = place.env("PUSHERD_TLS_CERT=cert\nPUSHERD_TLS_KEY=key").problem("");
        assert_eq!(problem, format!("environment: PUSHERD_TLS_{words}"));
    }
}

#[test]
fn the_key_is_read_from_the_file_of_the_certificate_where_none_is_named() {
    let (cert, key) = certificate();
    for both in [format!("{key}{cert}"), format!("{cert}{key}")] {
        let place = Place::new().file("both.pem", both).env("PUSHERD_TLS_CERT=both.pem");
        let check = place.run("config check");
        assert_eq!(check.out, "valid: 1 app on 127.0.0.1:6001 with TLS; read: no files\n", "{check:?}");
        let (mut running, banner, port) = Running::start(&place, "serve --port 0 --drain-secs 0");
        assert!(banner.contains(" with TLS\n"), "{banner}");
        assert_eq!(place.run(&format!("health --port {port}")).code, 0);
        running.signal(Signal::TERM);
        assert_eq!(running.0.wait().unwrap().code(), Some(0));
    }
    let alone = Place::new().file("cert.pem", cert).env("PUSHERD_TLS_CERT=cert.pem");
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

/// A certificate that holds from the first to the second of so many days from now, and its key.
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
fn dates_of_a_certificate_are_warned_of_by_the_check_and_at_the_start() {
    for (days, words) in [
        (-90..-3, "holds a certificate that expired 3 days ago, on "),
        (3..90, "holds a certificate that is not valid yet: clients reject it for another "),
        (-80..10, "holds a certificate that expires in "),
    ] {
        let place = Place::new().file("both.pem", certificate_of(days)).env("PUSHERD_TLS_CERT=both.pem");
        let check = place.run("config check");
        let expected = format!("warning: environment: PUSHERD_TLS_CERT: both.pem {words}");
        assert!(check.code == 0 && check.err.contains(&expected), "{check:?}");
        let (_running, log, _) = Running::start(&place, "serve --port 0 --drain-secs 0 --log-format json");
        assert!(log.contains(words), "{log}");
    }
    let place = Place::new().file("both.pem", certificate_of(-1..89)).env("PUSHERD_TLS_CERT=both.pem");
    assert_eq!(place.run("config check").err, "");
}

#[test]
fn a_name_for_this_machine_is_listened_on_and_asked() {
    let place = Place::new().env("PUSHERD_HOST=LocalHost");
    let (mut running, _, port) = Running::start(&place, "serve --port 0 --drain-secs 0");
    assert_eq!(place.run(&format!("health --port {port}")).code, 0);
    running.signal(Signal::TERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}
