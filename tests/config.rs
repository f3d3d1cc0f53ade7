//! The executable and its configuration: what is read, in which order, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pusherd::protocol::signature::SigningKey;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

#[path = "config/inputs.rs"]
mod inputs;

/// A working directory, and what runs in it.
struct Place {
    directory: TempDir,
    environment: BTreeMap<String, String>,
}

/// What an execution came to.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), environment: BTreeMap::new() }
    }

    fn file(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Variables, one a line.
    fn env(mut self, lines: &str) -> Self {
        for (name, value) in lines.lines().filter_map(|line| line.split_once('=')) {
            self.environment.insert(name.to_owned(), value.to_owned());
        }
        self
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pusherd"));
        command.args(line.split_whitespace()).current_dir(self.directory.path());
        command.env_clear().envs(&self.environment).stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Ran {
        let Output { status, stdout, stderr } = self.command(line).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
    }

    /// `config show`, which must succeed.
    fn show(&self, flags: &str) -> Shown {
        let ran = self.run(&format!("config show {flags}"));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        Shown(ran.out)
    }

    /// The problems that `config check` finds, in order; `serve` must find the same.
    fn problems(&self, flags: &str) -> Vec<String> {
        let check = self.run(&format!("config check {flags}"));
        let serve = self.run(&format!("serve {flags}"));
        assert_eq!((check.code, serve.code), (78, 78), "{check:?} {serve:?}");
        assert_eq!(check.err, serve.err);
        assert_eq!(check.out, "");
        check.err.lines().skip(1).map(|line| line.trim().to_owned()).collect()
    }

    fn problem(&self, flags: &str) -> String {
        let problems = self.problems(flags);
        assert_eq!(problems.len(), 1, "{problems:#?}");
        problems.into_iter().next().unwrap()
    }
}

/// The output of `config show`.
struct Shown(String);

impl Shown {
    /// The value of the last setting `key`, and where it was set; of the section `[redis]` it is `redis.key`.
    fn get(&self, key: &str) -> (String, String) {
        let (before, redis) = self.0.split_once("\n[redis]\n").unwrap();
        let (redis, after) = redis.split_once("\n[webhooks]\n").unwrap();
        let (parts, name) = match key.strip_prefix("redis.") {
            Some(name) => (["", redis], name),
            None => ([before, after], key),
        };
        let of_name = |line: &str| {
            let (setting, source) = line.rsplit_once(" # ")?;
            let (found, value) = setting.split_once(" = ")?;
            (found == name).then(|| (value.trim().to_owned(), source.to_owned()))
        };
        let mut lines = parts.iter().rev().flat_map(|part| part.lines().rev());
        lines.find_map(of_name).unwrap_or_else(|| panic!("no {key} in {}", self.0))
    }

    fn assert(&self, key: &str, value: &str, source: &str) {
        assert_eq!(self.get(key), (value.to_owned(), source.to_owned()), "{key}");
    }

    /// All lines, without where they were set.
    fn values(&self) -> Vec<&str> {
        let lines = self.0.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" # ").next().unwrap_or_default().trim()).collect()
    }

    fn apps(&self) -> usize {
        self.0.matches("[[apps]]").count()
    }
}

const APP: &str = "[[apps]]\nid = \"1\"\nkey = \"file-key\"\nsecret = \"file-secret\"\n";

/// The credentials of a family of variables, one a line.
fn credentials(family: &str, id: &str) -> String {
    format!("{family}_ID={id}\n{family}_KEY={id}-key\n{family}_SECRET={id}-secret\n")
}

#[test]
fn without_any_configuration_there_is_a_default_app_for_this_machine() {
    let place = Place::new();
    let shown = place.show("");
    shown.assert("host", "\"127.0.0.1\"", "default");
    shown.assert("port", "6001", "default");
    shown.assert("id", "\"app-id\"", "default");
    shown.assert("key", "\"app-key\"", "default");
    shown.assert("secret", "\"***\"", "default");
    let check = place.run("config check");
    assert_eq!((check.code, check.err.as_str()), (0, ""));
    assert_eq!(check.out, "valid: 1 app on 127.0.0.1:6001; read: no files\n");
}

#[test]
fn credentials_of_ones_own_open_the_server_to_all_addresses() {
    for place in [
        Place::new().file("config/pusherd.toml", APP),
        Place::new().file(".env", credentials("PUSHER_APP", "7")),
        Place::new().env(&credentials("REVERB_APP", "7")),
    ] {
        place.show("").assert("host", "\"0.0.0.0\"", "default");
    }
}

#[test]
fn default_credentials_on_a_public_address_are_warned_of() {
    let check = Place::new().env("PUSHERD_HOST=0.0.0.0").run("config check");
    assert_eq!(check.code, 0);
    assert!(
        check.err.starts_with("pusherd: warning: the default credentials are used on 0.0.0.0"),
        "{check:?}"
    );
}

#[test]
fn the_first_family_of_credentials_counts_of_which_anything_is_set() {
    let families = ["PUSHERD_APP", "PUSHER_APP", "REVERB_APP", "SOKETI_DEFAULT_APP"];
    for (first, family) in families.iter().enumerate() {
        let lines: String = families[first..].iter().map(|family| credentials(family, family)).collect();
        // As in the .env of a fresh Laravel: there, and blank.
        let blank: String =
            families[..first].iter().map(|family| format!("{family}_ID=\n{family}_KEY=null\n")).collect();
        for (place, source) in [
            (Place::new().env(&format!("{lines}{blank}")), "environment"),
            (Place::new().file(".env", format!("{lines}{blank}")), ".env"),
        ] {
            let shown = place.show("");
            assert_eq!(shown.apps(), 1);
            shown.assert("id", &format!("\"{family}\""), &format!("{source}: {family}_ID"));
            shown.assert("key", &format!("\"{family}-key\""), &format!("{source}: {family}_KEY"));
            shown.assert("secret", "\"***\"", &format!("{source}: {family}_SECRET"));
        }
    }
}

#[test]
fn a_family_that_is_set_in_part_is_refused_naming_what_is_missing_or_left_with_a_remark() {
    let place = Place::new().env("PUSHER_APP_KEY=k");
    let needs =
        "environment: PUSHER_APP_KEY: needs PUSHER_APP_ID and PUSHER_APP_SECRET beside it, which are not set";
    assert_eq!(place.problem(""), needs);
    let place = place.env(&credentials("REVERB_APP", "7")).env("REVERB_HOST=ws.test");
    let check = place.run("config check");
    let left = "pusherd: warning: environment: PUSHER_APP_KEY: is left, as it needs PUSHER_APP_ID and \
                PUSHER_APP_SECRET beside it, which are not set; the app of REVERB_APP_… is served\n";
    assert_eq!((check.code, check.err.as_str()), (0, left));
    place.show("").assert("id", "\"7\"", "environment: REVERB_APP_ID");
}

#[test]
fn the_bind_address_is_read_from_variables_in_order() {
    let hosts = ["PUSHERD_HOST", "REVERB_SERVER_HOST", "SOKETI_HOST"];
    let ports = ["PUSHERD_PORT", "REVERB_SERVER_PORT", "SOKETI_PORT", "LARAVEL_WEBSOCKETS_PORT"];
    for first in 0..ports.len() {
        let lines = |names: &[&str], value: &dyn Fn(usize) -> String| -> String {
            names.iter().enumerate().skip(first).map(|(at, name)| format!("{name}={}\n", value(at))).collect()
        };
        let lines = lines(&hosts, &|at| format!("10.0.0.{at}")) + &lines(&ports, &|at| format!("700{at}"));
        let shown = Place::new().file(".env", lines).show("");
        shown.assert("port", &format!("700{first}"), &format!(".env: {}", ports[first]));
        if let Some(host) = hosts.get(first) {
            shown.assert("host", &format!("\"10.0.0.{first}\""), &format!(".env: {host}"));
        }
    }
}

#[test]
fn where_clients_connect_to_is_never_where_the_server_listens() {
    let lines =
        "PUSHER_HOST=ws.test\nPUSHER_PORT=443\nPUSHER_SCHEME=https\nREVERB_HOST=ws.test\nREVERB_PORT=443\n";
    let shown = Place::new().file(".env", lines).show("");
    shown.assert("host", "\"127.0.0.1\"", "default");
    shown.assert("port", "6001", "default");
}

#[test]
fn presence_members_are_terminated_where_reverb_was_used_and_nothing_says_otherwise() {
    let key = "terminate_presence_members";
    let reverb = credentials("REVERB_APP", "7");
    let of_reverb = "default; Reverb's, as its variables are in use";
    let own = credentials("PUSHERD_APP", "7");
    let own_setting = "PUSHERD_APP_TERMINATE_PRESENCE_MEMBERS";
    let of_own = format!(".env: {own_setting}");
    let pusher = credentials("PUSHER_APP", "8");
    for (lines, value, source) in [
        (String::new(), "false", "default"),
        (own.clone(), "false", "default"),
        (pusher.clone(), "false", "default"),
        (reverb.clone(), "true", of_reverb),
        (format!("{own}BROADCAST_CONNECTION=reverb\n"), "true", of_reverb),
        (format!("{reverb}{pusher}BROADCAST_CONNECTION=pusher\n"), "false", "default"),
        (format!("{reverb}{own_setting}=false\n"), "false", &*of_own),
        (format!("{own_setting}=true\n"), "true", &*of_own),
    ] {
        Place::new().file(".env", lines).show("").assert(key, value, source);
    }
    let file = format!("{APP}{key} = false\n");
    let place = Place::new().file("config/pusherd.toml", file);
    place.env("BROADCAST_CONNECTION=reverb").show("").assert(key, "false", "config/pusherd.toml");
    // Of two apps, the one is meant whose credentials they are.
    let shown = Place::new().file("config/pusherd.toml", APP).file(".env", &reverb).show("");
    assert_eq!(shown.apps(), 2);
    let apps: Vec<_> = shown.0.lines().filter(|line| line.starts_with(key)).collect();
    assert!(apps[0].ends_with("# default") && apps[1].ends_with(of_reverb), "{apps:?}");
}

#[test]
fn each_source_goes_over_the_one_below() {
    let file = "[server]\nport = 7001\ndrain_secs = 1\nping_interval_secs = 11\npong_timeout_secs = 12\n";
    let dotenv = "PUSHERD_PORT=7002\nPUSHERD_DRAIN_SECS=2\nPUSHERD_PING_INTERVAL_SECS=22\n";
    let place = Place::new().file("config/pusherd.toml", file).file(".env", dotenv);
    let place = place.env("PUSHERD_PORT=7003\nPUSHERD_DRAIN_SECS=3\n");
    let shown = place.show("");
    shown.assert("port", "7003", "environment: PUSHERD_PORT");
    shown.assert("ping_interval_secs", "22", ".env: PUSHERD_PING_INTERVAL_SECS");
    shown.assert("pong_timeout_secs", "12", "config/pusherd.toml");
    shown.assert("activity_timeout_secs", "30", "default");
    // Flags are for `serve`, whose address the error tells.
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port();
    let ran = place.run(&format!("serve --host [127.0.0.1] --port {port}"));
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{ran:?}");
    assert!(ran.err.contains("server.port: command line: --port"), "{ran:?}");
}

#[test]
fn files_are_found_in_the_working_directory_or_where_they_are_named() {
    let place = Place::new()
        .file("config/pusherd.toml", "[server]\nport = 7001\n")
        .file(".env", "PUSHERD_DRAIN_SECS=1\n")
        .file("other/mine.yaml", "server:\n  port: 7002\n")
        .file("other/env", "PUSHERD_DRAIN_SECS=2\n");
    let shown = place.show("");
    shown.assert("port", "7001", "config/pusherd.toml");
    shown.assert("drain_secs", "1", ".env: PUSHERD_DRAIN_SECS");
    for (place, flags) in [
        (&place, "--config other/mine.yaml --env-file other/env"),
        (
            &Place::new()
                .file("other/mine.yaml", "server:\n  port: 7002\n")
                .file("other/env", "PUSHERD_DRAIN_SECS=2\n")
                .env("PUSHERD_CONFIG=other/mine.yaml\nPUSHERD_ENV_FILE=other/env"),
            "",
        ),
    ] {
        let shown = place.show(flags);
        shown.assert("port", "7002", "other/mine.yaml");
        shown.assert("drain_secs", "2", "other/env: PUSHERD_DRAIN_SECS");
    }
}

#[test]
fn a_laravel_env_file_is_read_as_laravel_reads_it() {
    let dotenv = "\u{feff}APP_NAME=\"My App\"\r\nBROKEN=a b\r\nexport PUSHER_APP_ID='42' # id\r\n\
                  NAME=chat\r\nPUSHER_APP_KEY=\"${NAME}-key\"\r\nPUSHER_APP_SECRET=\"pa\\\"ss#word\"\r\n\
                  PUSHERD_PORT=(null)\r\nPUSHERD_APP_WATCHLIST=(false)\r\nPUSHERD_APP_PATH_PREFIX='rt/'\r\n";
    let shown = Place::new().file(".env", dotenv).show("");
    shown.assert("id", "\"42\"", ".env: PUSHER_APP_ID");
    shown.assert("key", "\"chat-key\"", ".env: PUSHER_APP_KEY");
    shown.assert("watchlist", "false", ".env: PUSHERD_APP_WATCHLIST");
    shown.assert("path_prefix", "\"/rt\"", ".env: PUSHERD_APP_PATH_PREFIX");
    shown.assert("port", "6001", "default");
}

#[test]
fn all_problems_are_told_at_once_each_with_its_source() {
    let file = r#"
colour = "red"
[server]
prot = 7001
activity_timeout_secs = 4
drain_secs = 30
shutdown_deadline_secs = 20
trusted_proxies = ["10.0.0.0/8", "proxy"]
[log]
level = "loud"
[[apps]]
id = "1"
key = "a:b"
secret = "hunter2"
presence_members = 5
[apps.limits]
presence_members = 0
[[apps]]
id = "1"
keys = [{ key = "k" }, { key = "k2", secret = "hunter2", secert = "" }]
path_prefix = "/a b"
allowed_origins = ["https://a.test/path"]
[[apps]]
key = 7
secret = ""
"#;
    let dotenv = "PUSHERD_PONG_TIMEOUT_SECS=soon\nPUSHERD_APP_SECRET=\"hunter2\n";
    let place = Place::new().file("config/pusherd.toml", file).file(".env", dotenv);
    let place = place.env("PUSHERD_PORT=70000\nPUSHERD_APP_ENABELD=true\nPUSHERD_APP_ENABLED=true\n");
    let problems = place.problems("");
    assert_eq!(
        problems,
        [
            ".env: PUSHERD_APP_SECRET: a quote is not closed (line 2)",
            "environment: PUSHERD_APP_ENABELD: is not a variable of pusherd; did you mean PUSHERD_APP_ENABLED?",
            "config/pusherd.toml: colour: is not a setting",
            "config/pusherd.toml: log.level: must be error, warn, info, debug or trace, not \"loud\"",
            "config/pusherd.toml: server.activity_timeout_secs: must be 5 to 600, not 4",
            "config/pusherd.toml: server.trusted_proxies: \"proxy\": is not an address or a network such as 10.0.0.0/8",
            "config/pusherd.toml: server.prot: is not a setting; did you mean port?",
            "environment: PUSHERD_PORT: must be 0 to 65535, not 70000",
            ".env: PUSHERD_PONG_TIMEOUT_SECS: must be 1 to 3600, not \"soon\"",
            "config/pusherd.toml: apps[0].key: must not contain a colon, which ends the key in a signature",
            "config/pusherd.toml: apps[0].limits.presence_members: must be 1 to 100000, not 0",
            "config/pusherd.toml: apps[0].presence_members: is not a setting; did you mean limits.presence_members?",
            "config/pusherd.toml: apps[1].keys[0].secret: is missing; secret_file is the other way to give it",
            "config/pusherd.toml: apps[1].keys[1].secert: is not a setting; did you mean secret?",
            "config/pusherd.toml: apps[1].allowed_origins: \"https://a.test/path\": an origin is null, a host, or \
         scheme://host[:port], without a path",
            "config/pusherd.toml: apps[1].path_prefix: must be a path of A-Z a-z 0-9 - . _ ~ and single slashes, \
         such as \"/rt\"",
            "config/pusherd.toml: apps[2].id: is missing",
            "config/pusherd.toml: apps[2].key: must be text: write it in quotes",
            "config/pusherd.toml: apps[2].secret: is empty",
            "environment: PUSHERD_APP_ENABLED: is for one app and the file has several; write it there, or set \
         PUSHERD_APP_ID and the other credentials",
            "config/pusherd.toml: apps[1].id: is the same id as config/pusherd.toml: apps[0].id",
            "config/pusherd.toml: server.shutdown_deadline_secs: must be at least drain_secs, which is 30 \
         (config/pusherd.toml: server.drain_secs)",
        ]
    );
    assert!(!problems.join("").contains("hunter2"));
}

#[test]
fn a_flag_is_checked_as_its_setting() {
    let place = Place::new();
    let ran = place.run("serve --port http --log-level loud --host a:1");
    assert_eq!(ran.code, 78);
    for problem in [
        "command line: --port: must be 0 to 65535, not \"http\"",
        "command line: --log-level: must be error, warn, info, debug or trace, not \"loud\"",
        "command line: --host: must be an address or a host name, without scheme and port",
    ] {
        assert!(ran.err.contains(problem), "{}", ran.err);
    }
}

#[test]
fn an_unknown_variable_of_ours_is_refused_and_others_are_none_of_our_business() {
    let place = Place::new().env("PUSHERD_PROT=1\nPUSHER_PROT=1\nPUSHERD_SERVICE_HOST=10.0.0.1\n");
    assert_eq!(
        place.problem(""),
        "environment: PUSHERD_PROT: is not a variable of pusherd; did you mean PUSHERD_PORT?"
    );
}

#[test]
fn toml_json_and_yaml_say_the_same() {
    let toml = "[server]\nport = 7001\ntrusted_proxies = [\"10.0.0.0/8\"]\n[log]\nformat = \"json\"\n\
                [[apps]]\nid = \"1\"\nkeys = [{ key = \"a\", secret = \"secret-a\" }, { key = \"b\", secret = \"secret-b\" }]\n\
                client_events = \"off\"\nterminate_close_code = 4200\nlimits = { presence_members = 5 }\n\
                [[apps]]\nid = \"2\"\nkey = \"c\"\nsecret = \"secret-c\"\nenabled = false\n";
    let json = r#"{"server": {"port": 7001, "trusted_proxies": ["10.0.0.0/8"], "host": null},
        "log": {"format": "json"}, "apps": [
        {"id": "1", "keys": [{"key": "a", "secret": "secret-a"}, {"key": "b", "secret": "secret-b"}],
         "client_events": "off", "terminate_close_code": 4200, "limits": {"presence_members": 5}},
        {"id": "2", "key": "c", "secret": "secret-c", "enabled": false}]}"#;
    let yaml = r#"
server:
  port: 7001
  trusted_proxies: [10.0.0.0/8]
log: { format: json }
apps:
  - id: "1"
    keys:
      - { key: a, secret: secret-a }
      - { key: b, secret: secret-b }
    client_events: off
    terminate_close_code: 4200
    limits:
      presence_members: 5
  - id: "2"
    key: c
    secret: secret-c
    enabled: false
"#;
    let shown = |name: &str, text: &str| {
        let shown = Place::new().file(name, text).show(&format!("--config {name}"));
        shown.0.replace(name, "FILE")
    };
    let of_toml = shown("a.toml", toml);
    assert_eq!(of_toml, shown("a.json", json));
    assert_eq!(of_toml, shown("a.yaml", yaml));
    assert_eq!(of_toml, shown("a.yml", yaml));
    let shown = Shown(of_toml);
    assert_eq!(shown.apps(), 2);
    shown.assert("enabled", "false", "FILE");
    assert!(
        shown.0.contains(r#"keys = [{ key = "a", secret = "***" }, { key = "b", secret = "***" }] # FILE"#)
    );
    assert!(shown.0.contains("client_events = \"off\"") && shown.0.contains("presence_members = 5 "));
}

#[test]
fn what_is_shown_is_a_configuration_file_that_says_the_same() {
    let first = Place::new().file(".env", credentials("PUSHER_APP", "7")).env("PUSHERD_PORT=7001").show("");
    let again = Place::new().file("config/pusherd.toml", first.0.replace("***", "7-secret")).show("");
    assert_eq!(first.values(), again.values());
    let masked = Place::new().file("config/pusherd.toml", first.0);
    assert!(
        masked.problem("").ends_with("apps[0].secret: is the mask of `pusherd config show`, not a secret")
    );
}

#[test]
fn secrets_are_read_from_files() {
    let file = "[[apps]]\nid = \"1\"\nkey = \"a\"\nsecret_file = \"secrets/a\"\n\
                [[apps]]\nid = \"2\"\nkeys = [{ key = \"b\", secret_file = \"secrets/b\" }]\n";
    let place = Place::new()
        .file("config/pusherd.toml", file)
        .file("config/secrets/a", "secret-a\n")
        .file("config/secrets/b", "secret-b")
        .file("secret-c", "secret-c\r\n")
        .env("PUSHER_APP_ID=3\nPUSHER_APP_KEY=c\nPUSHER_APP_SECRET_FILE=secret-c\n");
    let shown = place.show("");
    assert_eq!(shown.apps(), 3);
    shown.assert("secret", "\"***\"", "environment: PUSHER_APP_SECRET_FILE");
    let place = place.file("config/secrets/b", "\n").env("PUSHER_APP_SECRET=secret-c\n");
    fs::remove_file(place.directory.path().join("config/secrets/a")).unwrap();
    assert_eq!(
        place.problems(""),
        [
            "environment: PUSHER_APP_SECRET: contradicts PUSHER_APP_SECRET_FILE: one of the two",
            "config/pusherd.toml: apps[0].secret: config/secrets/a does not exist",
            "config/pusherd.toml: apps[1].keys[0].secret: is empty",
        ]
    );
}

#[test]
fn the_environment_replaces_the_keys_of_an_app_of_the_file_or_adds_an_app() {
    let place = Place::new().file("config/pusherd.toml", format!("{APP}watchlist = false\n"));
    let same = place.env(&credentials("PUSHERD_APP", "1"));
    let shown = same.show("");
    assert_eq!(shown.apps(), 1);
    shown.assert("key", "\"1-key\"", "environment: PUSHERD_APP_KEY");
    shown.assert("watchlist", "false", "config/pusherd.toml");
    let other = same.env(&credentials("PUSHERD_APP", "2")).env("PUSHERD_APP_LIMITS_CONNECTIONS=5");
    let shown = other.show("");
    assert_eq!(shown.apps(), 2);
    shown.assert("id", "\"2\"", "environment: PUSHERD_APP_ID");
    shown.assert("connections", "5", "environment: PUSHERD_APP_LIMITS_CONNECTIONS");
    assert!(shown.0.contains("key = \"file-key\""));
    let contradiction = other.env("PUSHERD_APP_KEY=file-key");
    assert_eq!(
        contradiction.problem(""),
        "environment: PUSHERD_APP_KEY: is the same key as config/pusherd.toml: apps[0].key"
    );
}

#[test]
fn settings_of_an_app_in_variables_are_for_the_only_app() {
    for place in [Place::new(), Place::new().file("config/pusherd.toml", APP)] {
        let shown = place.env("PUSHERD_APP_LIMITS_CONNECTIONS=5\nREVERB_SERVER_PATH=rt\n").show("");
        shown.assert("connections", "5", "environment: PUSHERD_APP_LIMITS_CONNECTIONS");
        shown.assert("path_prefix", "\"/rt\"", "environment: REVERB_SERVER_PATH");
    }
}

#[test]
fn apps_that_contradict_each_other_or_themselves_are_refused() {
    let table = [
        (
            "id = '2'\nkey = 'file-key'\nsecret = 's'",
            "apps[1].key: is the same key as config/pusherd.toml: apps[0].key",
        ),
        (
            "id = '2'\nkeys = [{ key = 'x', secret = 's' }, { key = 'x', secret = 't' }]",
            "apps[1].keys[1].key: is the same key as config/pusherd.toml: apps[1].keys[0].key",
        ),
        (
            "id = '2'\nkey = 'x'\nkeys = [{ key = 'y', secret = 's' }]",
            "apps[1].key: contradicts keys, which holds all keys of the app",
        ),
        (
            "id = '2'\nkey = 'x'\nsecret = 's'\nsecret_file = 'f'",
            "apps[1].secret: contradicts secret_file: one of the two",
        ),
        ("id = '2'\nkeys = []", "apps[1].keys: lists no key"),
        (
            "id = 'a/b'\nkey = 'x'\nsecret = 's'",
            "apps[1].id: must be visible ASCII characters, and none of / ? # %",
        ),
        (
            "id = '2'\nkey = 'ä'\nsecret = 's'",
            "apps[1].key: must be visible ASCII characters, and none of / ? # %",
        ),
        ("id = ''\nkey = 'x'\nsecret = 's'", "apps[1].id: is empty"),
        ("id = '2'\nkey = 'x'\nsecret = 's'\nlimits = 5", "apps[1].limits: must be a table"),
    ];
    for (app, expected) in table {
        let place = Place::new().file("config/pusherd.toml", format!("{APP}[[apps]]\n{app}\n"));
        assert_eq!(place.problem(""), format!("config/pusherd.toml: {expected}"), "{app}");
    }
    for (file, expected) in [
        ("apps = 5", "apps: must be a list of tables: begin each app with [[apps]]"),
        ("[apps]\nid = \"1\"", "apps: must be a list of tables: begin each app with [[apps]]"),
        ("apps = [5]", "apps[0]: must be a table"),
        ("server = 5", "server: must be a table"),
        ("port = 7001", "port: is not a setting; did you mean server.port?"),
    ] {
        let place = Place::new().file("config/pusherd.toml", file);
        assert_eq!(place.problem(""), format!("config/pusherd.toml: {expected}"), "{file}");
    }
}

#[test]
fn files_that_cannot_be_read_are_refused_with_the_reason() {
    let large = vec![b'#'; 2 * 1024 * 1024];
    for (name, text, expected) in [
        ("a.toml", b"\x00\x01\x02".as_slice(), "a.toml: is not valid TOML"),
        ("a.toml", b"port = \xff", "a.toml: is not UTF-8 text: line 1 is the first with"),
        ("a.toml", &large, "a.toml: is larger than 1024 KiB"),
        ("a.toml", b"secret = \"hunter2\n", "a.toml: is not valid TOML: "),
        ("a.json", b"[]", "a.json: is not valid JSON"),
        ("a.yaml", b"a: [", "a.yaml: is not valid YAML"),
        ("a.ini", b"", "a.ini: must have a name that ends in .toml, .json, .yaml or .yml"),
    ] {
        let problem = Place::new().file(name, text).problem(&format!("--config {name}"));
        assert!(problem.starts_with(expected) && !problem.contains("hunter2"), "{problem}");
    }
    let place = Place::new().file("a.toml/x", "").file(".env", &large).file("b.env/x", "");
    assert_eq!(
        place.problems("--config a.toml"),
        [".env: is larger than 1024 KiB", "a.toml: is a directory, and must be a regular file"]
    );
    assert_eq!(place.problem("--env-file b.env"), "b.env: is a directory, and must be a regular file");
    assert_eq!(
        place.problems("--config none.toml --env-file none"),
        ["none: does not exist", "none.toml: does not exist"]
    );
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_be_read_is_refused_though_nobody_named_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new().file(".env", "PUSHERD_PORT=1").file("config/pusherd.toml", APP);
    for name in [".env", "config/pusherd.toml"] {
        let path = place.directory.path().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        if fs::read(&path).is_ok() {
            return; // The administrator reads everything.
        }
    }
    let why = "may not be read by the user that runs pusherd";
    assert_eq!(place.problems(""), [format!(".env: {why}"), format!("config/pusherd.toml: {why}")]);
}

#[test]
fn every_file_that_comes_with_pusherd_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        assert_ne!(path.file_name().unwrap(), "pusherd.toml", "a clone would start with it");
        let check = Place::new().run(&format!("config check --config {}", path.display()));
        assert_eq!((check.code, check.err.as_str()), (0, ""), "{check:?}");
    }
}

#[test]
fn the_example_shows_every_setting_with_its_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/pusherd.example.toml");
    let path = path.to_str().unwrap();
    let example = Place::new().show(&format!("--config {path}"));
    let defaults = Place::new().show("");
    for (shown, default) in example.0.lines().zip(defaults.0.lines()) {
        let (Some((setting, source)), Some((default, _))) =
            (shown.rsplit_once(" # "), default.rsplit_once(" # "))
        else {
            assert_eq!(shown, default);
            continue;
        };
        // To set what follows from the machine, if only to nothing, is to say otherwise.
        if setting.starts_with("dead_letter_file = ") {
            assert!(
                source == "default" && file("config/pusherd.example.toml").contains("# dead_letter_file = ")
            );
            continue;
        }
        assert!(source.starts_with(path), "{setting} is not in the example");
        let its_own = ["host = ", "id = ", "key = "].iter().any(|key| setting.starts_with(key));
        assert!(its_own || setting.trim() == default.trim(), "{setting} is not {default}");
    }
}

/// A file of the repository.
fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn the_container_that_the_documentation_starts_has_nothing_to_remark() {
    for (name, text) in ["docs/start/docker.md", "Dockerfile"].map(|name| (name, file(name))) {
        let line = text.lines().find(|line| line.contains("docker run ")).unwrap();
        let line = line.replace("\"$(openssl rand -hex 20)\"", "1f0c3e9a7b5d2c4e6f8091a2b3c4d5e6f7081920");
        let variables: Vec<_> = line
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .chain([("PUSHERD_HOST", "0.0.0.0")])
            .collect();
        assert_eq!(variables.len(), 4, "{name}: {line}");
        let place = variables
            .into_iter()
            .fold(Place::new(), |place, (name, value)| place.env(&format!("{name}={value}")));
        let check = place.run("config check");
        assert_eq!((check.code, check.err.as_str()), (0, ""), "{name}: {check:?}");
    }
}

#[test]
fn the_unit_of_the_documentation_is_the_one_of_the_examples() {
    let unit = file("examples/systemd/pusherd.service");
    let page = "docs/operate/systemd.md";
    assert!(file(page).contains(unit.trim()), "put examples/systemd/pusherd.service into {page}");
    let setting = |name: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(&format!("{name}="))).unwrap();
        line.to_owned()
    };
    let (program, arguments) =
        setting("ExecStart").split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert!(program.ends_with("/pusherd"));
    assert_eq!(Place::new().run(&format!("{arguments} --help")).code, 0);
    assert!(
        unit.contains("\n[Install]\n")
            && setting("User") == "pusherd"
            && setting("StateDirectory") == "pusherd"
    );
    let deadline = pusherd::server::Options::default().shutdown_deadline.as_secs();
    assert!(setting("TimeoutStopSec").parse::<u64>().unwrap() > deadline);
}

#[test]
fn the_page_of_settings_has_those_of_this_version() {
    let page = "docs/reference/configuration.md";
    assert!(
        file(page).contains(pusherd::config::reference().trim()),
        "put the output of `pusherd config reference` into {page}"
    );
}

#[test]
fn the_page_of_variables_has_every_one_of_other_servers() {
    let page = "docs/reference/environment.md";
    assert!(
        file(page).contains(pusherd::config::foreign_reference().trim()),
        "put the last table of `pusherd config reference` into {page}"
    );
}

#[test]
fn the_page_of_commands_has_the_help_of_each() {
    let page = "docs/reference/commands.md";
    let text = file(page);
    for command in [
        "",
        "serve",
        "config check",
        "config show",
        "config reference",
        "health",
        "webhooks verify",
        "webhooks replay",
    ] {
        let help = Place::new().run(format!("{command} --help").trim()).out;
        assert!(text.contains(help.trim()), "put the output of `pusherd {command} --help` into {page}");
    }
}

#[test]
fn the_reference_has_every_setting_that_is_shown() {
    let reference = Place::new().run("config reference").out;
    let mut group = "";
    for line in Place::new().show("").0.lines() {
        match line.split_once(" = ") {
            Some((key, _)) => assert!(reference.contains(&format!("| `{group}{key}` |")), "{group}{key}"),
            None if line.starts_with('[') => group = if line == "[apps.limits]" { "limits." } else { "" },
            None => {}
        }
    }
}

/// A certificate for `localhost` and its key, as PEM.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[test]
fn a_certificate_is_read_from_where_its_setting_was_written() {
    let (cert, key) = certificate();
    let file = |lines: &str| format!("[server]\n{lines}\n");
    let shown = "valid: 1 app on 127.0.0.1:6001 with TLS; read: ";
    for place in [
        Place::new()
            .file("tls/cert.pem", &cert)
            .file("tls/key.pem", &key)
            .file("tls/pusherd.toml", file("tls_cert = 'cert.pem'\ntls_key = 'key.pem'"))
            .env("PUSHERD_CONFIG=tls/pusherd.toml"),
        Place::new()
            .file("cert.pem", &cert)
            .file("key.pem", &key)
            .file("config/pusherd.toml", "")
            .env("PUSHERD_TLS_CERT=cert.pem\nPUSHERD_TLS_KEY=key.pem"),
        Place::new()
            .file("a/cert.pem", &cert)
            .file("a/key.pem", &key)
            .file(".env", "SOKETI_SSL_CERT=a/cert.pem\nSOKETI_SSL_KEY=a/key.pem\n"),
        Place::new().file("cert.pem", &cert).file("key.pem", &key).file(
            ".env",
            "LARAVEL_WEBSOCKETS_SSL_LOCAL_CERT=cert.pem\nLARAVEL_WEBSOCKETS_SSL_LOCAL_PK=key.pem\n",
        ),
        // One file may hold both.
        Place::new()
            .file("both.pem", format!("{key}{cert}"))
            .env("PUSHERD_TLS_CERT=both.pem\nPUSHERD_TLS_KEY=both.pem"),
    ] {
        let check = place.run("config check");
        assert!(check.code == 0 && check.out.starts_with(shown), "{check:?}");
    }
    let place = Place::new().file("cert.pem", &cert).file("key.pem", &key);
    let place = place.env("PUSHERD_TLS_CERT=cert.pem\nPUSHERD_TLS_KEY=key.pem\nPUSHERD_TLS_PORT=6443");
    let check = place.run("config check");
    assert_eq!(check.out, "valid: 1 app on 127.0.0.1:6001 and 127.0.0.1:6443 with TLS; read: no files\n");
    // As Laravel's .env leaves them.
    let blank = "LARAVEL_WEBSOCKETS_SSL_LOCAL_CERT=null\nLARAVEL_WEBSOCKETS_SSL_LOCAL_PK=\n";
    Place::new().file(".env", blank).show("").assert("tls_cert", "\"\"", "default");
}

#[test]
fn a_certificate_that_cannot_be_used_is_refused_naming_the_setting_and_the_file() {
    let ((cert, key), (_, other_key)) = (certificate(), certificate());
    let encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    let of_cert = "environment: PUSHERD_TLS_CERT";
    let of_key = "environment: PUSHERD_TLS_KEY";
    let broken = "-----BEGIN CERTIFICATE-----\nhunter2!\n-----END CERTIFICATE-----\n";
    let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let table = [
        ("", key.as_str(), format!("{of_cert}: cert.pem holds no certificate in PEM (BEGIN CERTIFICATE)")),
        (&key, &key, format!("{of_cert}: cert.pem holds no certificate in PEM (BEGIN CERTIFICATE)")),
        (broken, &key, format!("{of_cert}: cert.pem is not a valid PEM file")),
        (no_der, &key, format!("{of_cert}: cert.pem begins with something else than a certificate of X.509")),
        (&cert, "hunter2", format!("{of_key}: key.pem holds no private key in PEM (BEGIN PRIVATE KEY)")),
        (&cert, &encrypted, format!("{of_key}: key.pem is encrypted with a passphrase")),
        (
            &cert,
            no_key,
            format!("{of_key}: key.pem holds no key of a supported kind: RSA of 2048 to 4096 bits, ECDSA on"),
        ),
        (
            &cert,
            &other_key,
            format!("{of_key}: key.pem does not belong to the first certificate of cert.pem"),
        ),
    ];
    for (cert, key, expected) in table {
        let place = Place::new().file("cert.pem", cert).file("key.pem", key);
        let problem = place.env("PUSHERD_TLS_CERT=cert.pem\nPUSHERD_TLS_KEY=key.pem").problem("");
        assert!(problem.starts_with(&expected) && !problem.contains("hunter2"), "{problem}");
    }
    let place = Place::new().file("cert.pem", &cert).file("key.pem", &key);
    let table = [
        ("tls_cert = 'cert.pem'", "tls_cert: config/cert.pem does not exist"),
        ("tls_key = 'key.pem'", "tls_key: needs tls_cert beside it, which is not set"),
        ("tls_port = 6443", "tls_port: needs tls_cert and tls_key beside it, which are not set"),
        (
            "tls_cert = '../cert.pem'\ntls_key = '../key.pem'\nport = 7001\ntls_port = 7001",
            "tls_port: must be another than port, which is 7001 and has no TLS beside it",
        ),
        ("tls_port = 65536", "tls_port: must be 0 (none) or 1 to 65535, not 65536"),
        ("tls_cert = 'none.pem'\ntls_key = '../key.pem'", "tls_cert: config/none.pem does not exist"),
        (
            "tls_cert = '../cert.pem'\ntls_key = '..'",
            "tls_key: config/.. is a directory, and must be a regular file",
        ),
    ];
    let mut place = place;
    for (lines, expected) in table {
        place = place.file("config/pusherd.toml", format!("[server]\n{lines}\n"));
        assert_eq!(place.problem(""), format!("config/pusherd.toml: server.{expected}"));
    }
}

#[test]
fn pusherd_alone_prints_help() {
    let ran = Place::new().run("");
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("pusherd <COMMAND>") && ran.err.contains("health"), "{ran:?}");
    assert_eq!(Place::new().run("--version").out, concat!("pusherd ", env!("CARGO_PKG_VERSION"), "\n"));
}

/// Answers one request with `answer`; the request is what the thread ends with.
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
fn health_tells_by_its_exit_code_whether_the_server_is_ready() {
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
            "pusherd: what answers is no HTTP server: it says \"SSH-2.0-OpenSSH_9.9\"\n",
        ),
        ("", 1, "pusherd: what answers is no HTTP server: it hangs up without a word\n"),
    ];
    for (answer, code, err) in table {
        let (port, server) = answering(answer);
        let ran = Place::new().run(&format!("health --port {port}"));
        assert_eq!((ran.code, ran.err.as_str()), (code, err), "{answer:?}");
        assert!(server.join().unwrap().starts_with("GET /ready HTTP/1.1\r\nHost: localhost:"));
    }
}

#[test]
fn health_asks_where_the_settings_or_the_flags_say() {
    let (port, server) = answering("HTTP/1.1 200 OK\r\n\r\n");
    let place = Place::new().env(&format!("PUSHERD_PORT={port}\nPUSHERD_HOST=0.0.0.0\n"));
    assert_eq!(place.run("health").code, 0);
    server.join().unwrap();
    let (port, server) = answering("HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(place.run(&format!("health --url http://localhost:{port}/up")).code, 0);
    assert!(server.join().unwrap().starts_with("GET /up HTTP/1.1\r\n"));
    for (line, expected) in [
        ("health --port 0", "the server picks its port itself"),
        ("health --port x", "command line: --port: must be 0 to 65535"),
        ("health --url ftp://x", "is not a URL"),
        ("health --host 127.0.0.1 --port 1", "no answer: 127.0.0.1 port 1: "),
    ] {
        let ran = place.run(line);
        assert_eq!((ran.code, ran.err.lines().count()), (1, 1), "{ran:?}");
        assert!(ran.err.contains(expected), "{ran:?}");
    }
}

/// A server that runs, and is killed if a test forgets it.
struct Running(Child);

impl Running {
    /// Starts `serve` and reads what it prints up to where it listens; answers all of that and the port.
    fn start(place: &Place, line: &str) -> (Self, String, u16) {
        let mut command = place.command(line);
        let json = line.contains("json");
        if json {
            command.stdout(Stdio::null()).stderr(Stdio::piped());
        } else {
            command.stdout(Stdio::piped()).stderr(Stdio::null());
        }
        let mut running = Self(command.spawn().unwrap());
        let output: Box<dyn Read> = if json {
            Box::new(running.0.stderr.take().unwrap())
        } else {
            Box::new(running.0.stdout.take().unwrap())
        };
        let mut lines = BufReader::new(output).lines().map(Result::unwrap);
        let mut text = String::new();
        let port = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it does not listen: {text}"));
            text.push_str(&line);
            text.push('\n');
            if let Some((_, address)) = line.split_once("listening on ") {
                let (_, port) = address.split_once(':').unwrap();
                let port: String = port.chars().take_while(char::is_ascii_digit).collect();
                break port.parse().unwrap();
            }
        };
        // The rest of the banner follows at once: what to paste, or where clients connect to.
        while !json && !["\n});\n", "\n  clients  "].iter().any(|end| text.contains(end)) {
            text.push_str(&lines.next().unwrap_or_else(|| panic!("the banner breaks off: {text}")));
            text.push('\n');
        }
        (running, text, port)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn serve_prints_what_to_paste_and_ends_in_peace_on_sigterm() {
    let place = Place::new();
    let (mut running, banner, port) = Running::start(&place, "serve --port 0 --drain-secs 0");
    assert!(banner.contains("listening on 127.0.0.1:") && banner.contains("app-id, key app-key"), "{banner}");
    let dotenv = format!(
        "\nBROADCAST_CONNECTION=pusher\nBROADCAST_DRIVER=pusher\nPUSHER_APP_ID=app-id\nPUSHER_APP_KEY=app-key\n\
         PUSHER_APP_SECRET=app-secret\nPUSHER_HOST=127.0.0.1\nPUSHER_PORT={port}\nPUSHER_SCHEME=http\n\
         PUSHER_APP_CLUSTER=mt1\nVITE_PUSHER_APP_KEY=\"${{PUSHER_APP_KEY}}\"\n"
    );
    assert!(banner.contains(&dotenv), "{banner}");
    for line in
        ["    broadcaster: 'pusher',", "    forceTLS: false,", "    enabledTransports: ['ws', 'wss'],"]
    {
        assert!(banner.contains(line), "{banner}");
    }
    // What is printed to be pasted is a `.env` that pusherd itself understands.
    let pasted = Place::new().file(".env", &banner).show("");
    pasted.assert("id", "\"app-id\"", ".env: PUSHER_APP_ID");

    let healthy = place.run(&format!("health --port {port}"));
    assert_eq!((healthy.code, healthy.err.as_str()), (0, ""));
    let over_tls = place.run(&format!("health --url https://127.0.0.1:{port}"));
    assert_eq!(over_tls.code, 1);
    assert!(over_tls.err.contains("TLS"), "{over_tls:?}");
    let second = place.run(&format!("serve --port {port}"));
    assert_eq!(second.code, 1);
    assert!(second.err.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{second:?}");
    running.signal(Signal::TERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    assert_eq!(place.run(&format!("health --port {port}")).code, 1);
}

/// Whether a server shows this certificate for `localhost`.
fn shows(port: u16, cert: &str) -> bool {
    use rustls::pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut session =
        rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    session.complete_io(&mut stream).is_ok()
}

#[test]
fn with_a_certificate_everything_speaks_tls_and_sighup_renews_it() {
    let (cert, key) = certificate();
    let place = Place::new().file("cert.pem", &cert).file("key.pem", &key);
    let place = place.env("PUSHERD_TLS_CERT=cert.pem\nPUSHERD_TLS_KEY=key.pem");
    let (mut running, banner, port) = Running::start(&place, "serve --port 0 --drain-secs 0");
    for line in [
        &format!("listening on 127.0.0.1:{port} with TLS\n"),
        "\nPUSHER_HOST=<a name that the certificate is for>\n",
        &format!("\nPUSHER_PORT={port}\nPUSHER_SCHEME=https\n"),
        "\nVITE_PUSHER_SCHEME=\"${PUSHER_SCHEME}\"\n",
        "    forceTLS: true,",
    ] {
        assert!(banner.contains(line), "{line} {banner}");
    }
    for health in [format!("health --port {port}"), format!("health --url https://127.0.0.1:{port}/ready")] {
        let healthy = place.run(&health);
        assert_eq!((healthy.code, healthy.err.as_str()), (0, ""), "{health}");
    }
    let plain = place.run(&format!("health --url http://127.0.0.1:{port}"));
    assert_eq!(plain.code, 1);
    assert!(
        plain.err.starts_with("pusherd: not ready: status 400: ") && plain.err.contains("TLS"),
        "{plain:?}"
    );
    assert!(shows(port, &cert));

    let (renewed, key) = certificate();
    let place = place.file("cert.pem", &renewed).file("key.pem", &key);
    running.signal(Signal::HUP);
    assert!((0..10_000).any(|_| shows(port, &renewed)), "the certificate is not renewed");
    assert!(!shows(port, &cert));
    assert_eq!(place.run(&format!("health --port {port}")).code, 0);
    running.signal(Signal::TERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

#[test]
fn with_a_port_of_its_own_tls_is_beside_plain_http() {
    let (cert, key) = certificate();
    let place = Place::new().file("cert.pem", &cert).file("key.pem", &key);
    // An address that is this test's alone, as the port cannot be any free one.
    let place = place.env("PUSHERD_TLS_CERT=cert.pem\nPUSHERD_TLS_KEY=key.pem\nPUSHERD_TLS_PORT=6443");
    let line = "serve --host 127.7.6.5 --port 6001 --drain-secs 0";
    let (mut running, banner, port) = Running::start(&place, line);
    assert_eq!(port, 6001);
    for line in [
        "listening on 127.7.6.5:6001\n",
        "listening on 127.7.6.5:6443 with TLS\n",
        "\nPUSHER_HOST=127.7.6.5\nPUSHER_PORT=6001\nPUSHER_SCHEME=http\n",
        "\nVITE_PUSHER_HOST=\"<a name that the certificate is for>\"\nVITE_PUSHER_PORT=\"6443\"\n\
         VITE_PUSHER_SCHEME=\"https\"\n",
        "    forceTLS: true,",
    ] {
        assert!(banner.contains(line), "{line} {banner}");
    }
    for health in [
        "health --host 127.7.6.5",
        "health --url https://127.7.6.5:6443",
        "health --url http://127.7.6.5:6001",
    ] {
        let healthy = place.run(health);
        assert_eq!((healthy.code, healthy.err.as_str()), (0, ""), "{health}");
    }
    let second = place.run("serve --host 127.7.6.5 --port 0");
    assert_eq!(second.code, 1);
    let problem = "cannot listen on 127.7.6.5:6443";
    assert!(second.err.contains(problem), "{second:?}");
    assert!(second.err.contains("server.tls_port: environment: PUSHERD_TLS_PORT"), "{second:?}");
    running.signal(Signal::TERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

#[test]
fn serve_never_prints_a_secret_of_ones_own() {
    let file = Place::new().file("config/pusherd.toml", APP).env("PUSHERD_HOST=127.0.0.1\nPUSHERD_PORT=0\n");
    let (_running, banner, _) = Running::start(&file, "serve");
    assert!(banner.contains("PUSHER_APP_SECRET=<the secret of app 1>"), "{banner}");
    assert!(!banner.contains("file-secret"), "{banner}");
    // An application that has its credentials needs no lesson.
    let dotenv =
        credentials("PUSHER_APP", "7") + "PUSHER_HOST=ws.test\nPUSHERD_HOST=127.0.0.1\nPUSHERD_PORT=0\n";
    let (_running, banner, _) = Running::start(&Place::new().file(".env", dotenv), "serve");
    assert!(banner.contains("connect to https://ws.test as .env says"), "{banner}");
    assert!(!banner.contains("7-secret") && !banner.contains("BROADCAST"), "{banner}");
}

/// Talks to a server in every way that a secret takes part in, rightly and wrongly.
fn speak_to(port: u16, secret: &str) {
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

    // Subscriptions and sign-ins, good and bad. The socket id is in the answer, so this is read in steps.
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
fn no_secret_is_in_any_line_of_the_most_verbose_log_nor_in_the_arguments() {
    const SECRET: &str = "hunter2-hunter2-hunter2";
    for (place, line) in [
        (Place::new(), "serve --debug --log-level trace --log-format json --drain-secs 0"),
        (Place::new(), "serve --log-level trace --log-format json --drain-secs 0"),
    ] {
        let place = place
            .file("config/pusherd.toml", format!("[[apps]]\nid = '1'\nkey = 'k1'\nsecret = '{SECRET}'\n"))
            .env("PUSHERD_HOST=127.0.0.1\nPUSHERD_PORT=0\nRUST_LOG=trace\n");
        let mut command = place.command(line);
        let log = place.directory.path().join("log");
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
        speak_to(port, SECRET);
        let arguments = fs::read(format!("/proc/{}/cmdline", running.0.id())).unwrap();
        assert!(!String::from_utf8_lossy(&arguments).contains(SECRET));
        running.signal(Signal::TERM);
        assert_eq!(running.0.wait().unwrap().code(), Some(0));
        let log = fs::read_to_string(&log).unwrap();
        assert!(log.contains("string_to_sign"), "what was signed is told to the operator: {log}");
        assert!(!log.contains(SECRET), "{log}");
    }
}

#[test]
fn with_json_logs_the_address_is_told_in_json_however_little_is_logged() {
    let place = Place::new();
    let (mut running, log, port) =
        Running::start(&place, "serve --port 0 --log-format json --log-level error");
    let line = log.lines().last().unwrap();
    assert!(line.starts_with('{') && line.contains(&format!("listening on 127.0.0.1:{port}\"")), "{log}");
    running.signal(Signal::INT);
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

/// What Soketi reads from its variable.
const WEBHOOKS: &str = r#"[{"url":"https://app.test/hooks?token=hunter2","headers":{"X-Env":"hunter2"},"event_types":["channel_occupied","member_added"],"filter":{"channel_name_starts_with":"presence-","channel_name_ends_with":""}},{"url":"http://127.0.0.1:8000"}]"#;

#[test]
fn webhooks_are_read_in_soketis_shape_from_files_and_variables() {
    let shown = "[{ url = \"https://app.test/hooks?***\", headers = { \"x-env\" = \"***\" }, \
                 event_types = [\"channel_occupied\", \"member_added\"], \
                 filter = { channel_name_starts_with = \"presence-\" } }, { url = \"http://127.0.0.1:8000/\" }]";
    let json = format!(r#"{{"apps":[{{"id":"1","key":"k","secret":"long enough","webhooks":{WEBHOOKS}}}]}}"#);
    let toml = "[[apps.webhooks]]\nurl = 'https://app.test/hooks?token=hunter2'\nheaders = { X-Env = 'hunter2' }\n\
                event_types = ['channel_occupied', 'member_added']\n\
                filter = { channel_name_starts_with = 'presence-' }\n\
                [[apps.webhooks]]\nurl = 'http://127.0.0.1:8000'\n";
    let of_soketi = "SOKETI_WEBHOOKS_BATCHING=1\nSOKETI_WEBHOOKS_BATCHING_DURATION=100\n";
    for (place, flags, source) in [
        (Place::new().file("p.json", json), "--config p.json", "p.json"),
        (Place::new().file("p.toml", format!("{APP}{toml}")), "--config p.toml", "p.toml"),
        (
            Place::new().env(&format!("SOKETI_DEFAULT_APP_WEBHOOKS={WEBHOOKS}")),
            "",
            "environment: SOKETI_DEFAULT_APP_WEBHOOKS",
        ),
        (
            Place::new().file(".env", format!("PUSHERD_APP_WEBHOOKS='{WEBHOOKS}'\n")),
            "",
            ".env: PUSHERD_APP_WEBHOOKS",
        ),
    ] {
        let place = place.env(of_soketi);
        let found = place.show(flags);
        found.assert("webhooks", shown, source);
        found.assert("webhook_batching", "true", "environment: SOKETI_WEBHOOKS_BATCHING");
        found.assert("webhook_batching_ms", "100", "environment: SOKETI_WEBHOOKS_BATCHING_DURATION");
        assert!(!found.0.contains("hunter2"));
    }
}

#[test]
fn dead_letters_are_kept_in_the_state_directory_unless_told_otherwise() {
    let with_webhooks = format!("{APP}webhooks = [{{ url = 'http://app.test/' }}]\n");
    let state = tempfile::tempdir().unwrap();
    let file = |name: &str| format!("{:?}", state.path().join(name).join("dead-letters.jsonl"));
    fs::create_dir(state.path().join("one")).unwrap();
    fs::create_dir(state.path().join("two")).unwrap();
    let path = |name: &str| state.path().join(name).display().to_string();
    let of_systemd = "environment: STATE_DIRECTORY";
    let directories = format!("STATE_DIRECTORY={}:{}:{}", path("missing"), path("two"), path("one"));
    let place = |text: &str| Place::new().file("config/pusherd.toml", text).env(&directories);
    place(&with_webhooks).show("").assert("dead_letter_file", &file("two"), of_systemd);
    // Nothing is made before a letter is written.
    assert_eq!(fs::read_dir(state.path().join("two")).unwrap().count(), 0);
    let off = format!("[webhooks]\ndead_letter_file = ''\n{with_webhooks}");
    place(&off).show("").assert("dead_letter_file", "\"\"", "config/pusherd.toml");
    let elsewhere = place(&with_webhooks).env("PUSHERD_WEBHOOKS_DEAD_LETTER_FILE=dead.jsonl");
    let of_variable = "environment: PUSHERD_WEBHOOKS_DEAD_LETTER_FILE";
    elsewhere.show("").assert("dead_letter_file", "\"dead.jsonl\"", of_variable);
    let off = place(&with_webhooks).env("PUSHERD_WEBHOOKS_DEAD_LETTER_FILE=(empty)");
    off.show("").assert("dead_letter_file", "\"\"", of_variable);
    // Without webhooks there are no letters.
    place(APP).show("").assert("dead_letter_file", "\"\"", "default");
}

#[test]
fn a_file_of_dead_letters_that_is_none_is_refused() {
    let place = Place::new();
    let at = |name: &str| place.directory.path().join(name);
    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    fs::create_dir(at("folder")).unwrap();
    let ask = |file: &str| {
        let text = format!(
            "[webhooks]\ndead_letter_file = '{file}'\n{APP}webhooks = [{{ url = 'http://app.test/' }}]\n"
        );
        fs::create_dir_all(at("config")).unwrap();
        fs::write(at("config/pusherd.toml"), text).unwrap();
        place.problem("")
    };
    let regular = "dead letters go to a regular file";
    for (file, why) in [
        ("../pipe", format!("it is a FIFO; {regular}")),
        ("../folder", format!("it is a directory; {regular}")),
        ("/dev/null", format!("it is a device; {regular}")),
        (
            "../nowhere/x",
            "the folder config/../nowhere cannot be used: No such file or directory (os error 2)".to_owned(),
        ),
    ] {
        let shown = if file.starts_with('/') { file.to_owned() } else { format!("config/{file}") };
        let expected = format!("config/pusherd.toml: webhooks.dead_letter_file: {shown}: {why}");
        assert_eq!(ask(file), expected);
    }
}

#[test]
fn webhooks_that_cannot_be_are_refused_without_repeating_secrets() {
    let place = Place::new()
        .env("PUSHERD_APP_WEBHOOKS=[{\"url\":\"http://x/?hunter2\",\"headers\":{\"Host\":\"hunter2\"}}]");
    assert_eq!(
        place.problem(""),
        "environment: PUSHERD_APP_WEBHOOKS: [0].headers.Host: is a header that pusherd sets itself"
    );
    let place = Place::new().env("PUSHERD_APP_WEBHOOKS=[{\"url\":\"hunter2\"");
    assert_eq!(
        place.problem(""),
        "environment: PUSHERD_APP_WEBHOOKS: must be a list as JSON, and is not at line 1, column 17"
    );
    let place = Place::new().file("config/pusherd.toml", format!("{APP}webhooks = 'http://x'\n"));
    assert_eq!(place.problem(""), "config/pusherd.toml: apps[0].webhooks: must be a list");
    let place = Place::new()
        .file("config/pusherd.toml", format!("{APP}[[apps.webhooks]]\nurl = 'http://169.254.1.1'\n"));
    assert_eq!(
        place.problem(""),
        "config/pusherd.toml: apps[0].webhooks: [0].url: 169.254.1.1 is link-local: webhooks do not go there, unless \
         webhooks.allowed_addresses has it"
    );
}

/// What a fresh Laravel application has in its `.env` for Redis.
const LARAVEL_REDIS: &str =
    "REDIS_CLIENT=phpredis\nREDIS_HOST=127.0.0.1\nREDIS_PASSWORD=null\nREDIS_PORT=6379\n";

#[test]
fn a_fresh_laravel_application_is_alone_until_its_reverb_is_scaled() {
    let shown = Place::new().file(".env", LARAVEL_REDIS).show("");
    shown.assert("cluster", "\"none\"", "default");
    shown.assert("host", "\"127.0.0.1\"", "default");
    let scaled = format!("{LARAVEL_REDIS}REVERB_SCALING_ENABLED=true\nREDIS_PREFIX=laravel_database_\n");
    let place = Place::new().file(".env", scaled);
    let shown = place.show("");
    shown.assert("cluster", "\"redis\"", ".env: REVERB_SCALING_ENABLED");
    shown.assert("redis.host", "\"127.0.0.1\"", ".env: REDIS_HOST");
    shown.assert("redis.port", "6379", ".env: REDIS_PORT");
    shown.assert("redis.password", "\"\"", "default");
    shown.assert("redis.prefix", "\"laravel_database_pusherd\"", ".env: REDIS_PREFIX");
    let check = place.run("config check");
    assert_eq!((check.code, check.err.as_str()), (0, ""));
}

#[test]
fn where_redis_is_is_shown_as_a_configuration_that_says_the_same() {
    let place = Place::new().env(
        "PUSHERD_CLUSTER=redis\nREDIS_URL=rediss://redis.test:6380/2\nREDIS_USERNAME=me\nREDIS_PASSWORD=hunter2\n\
         REVERB_SCALING_CHANNEL=blue\n",
    );
    let first = place.show("");
    assert!(!first.0.contains("hunter2"));
    for (key, value, source) in [
        ("url", "\"rediss://redis.test:6380/2\"", "REDIS_URL"),
        ("port", "6380", "REDIS_URL"),
        ("tls", "true", "REDIS_URL"),
        ("database", "2", "REDIS_URL"),
        ("username", "\"me\"", "REDIS_USERNAME"),
        ("password", "\"***\"", "REDIS_PASSWORD"),
        ("prefix", "\"pusherd:blue\"", "REVERB_SCALING_CHANNEL"),
    ] {
        first.assert(&format!("redis.{key}"), value, &format!("environment: {source}"));
    }
    let again = first.0.replace("secret = \"***\"", "secret = \"app-secret\"");
    let masked = Place::new().file("config/pusherd.toml", &again);
    assert_eq!(
        masked.problem(""),
        "config/pusherd.toml: redis.password: is the mask of `pusherd config show`, not a password"
    );
    let again = Place::new().file("config/pusherd.toml", again.replace("***", "hunter2")).show("");
    assert_eq!(first.values(), again.values());
}

#[test]
fn what_contradicts_about_redis_is_told_with_both_places_and_without_passwords() {
    let place = Place::new()
        .file(
            "config/pusherd.toml",
            "server.cluster = 'redis'\n[redis]\nurl = 'redis://u:hunter2@h:6379'\nnodes = ['a:1']\npassword = 'hunter3'\n",
        )
        .env("PUSHERD_REDIS_DATABASE=1\nREDIS_DB=x\nPUSHERD_REDIS_PROT=1");
    let problems = place.problems("");
    assert_eq!(
        problems,
        [
            "environment: PUSHERD_REDIS_PROT: is not a variable of pusherd; did you mean PUSHERD_REDIS_PORT?",
            "config/pusherd.toml: redis.url: contradicts nodes (config/pusherd.toml: redis.nodes): one of the two",
            "config/pusherd.toml: redis.password: contradicts the one in url (config/pusherd.toml: redis.url)",
            "environment: PUSHERD_REDIS_DATABASE: must be 0 with a Redis Cluster, which nodes name \
             (config/pusherd.toml: redis.nodes), not 1",
        ]
    );
}
