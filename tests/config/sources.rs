//! The sources of settings: their order, their formats, and the reports about them.

use super::*;

#[test]
fn without_configuration_the_default_app_is_served_on_loopback() {
    let workspace = Workspace::new();
    let shown = workspace.show("");
    shown.assert("host", "\"127.0.0.1\"", "default");
    shown.assert("port", "6001", "default");
    shown.assert("id", "\"app-id\"", "default");
    shown.assert("key", "\"app-key\"", "default");
    shown.assert("secret", "\"***\"", "default");
    let check = workspace.run("config check");
    assert_eq!((check.code, check.err.as_str()), (0, ""));
    assert_eq!(check.out, "valid: 1 app on 127.0.0.1:6001; read: no files\n");
}

#[test]
fn with_other_credentials_the_server_listens_on_all_addresses() {
    for workspace in [
        Workspace::new().file("config/pusherd.toml", APP),
        Workspace::new().file(".env", credentials("PUSHER_APP", "7")),
        Workspace::new().env(&credentials("REVERB_APP", "7")),
    ] {
        workspace.show("").assert("host", "\"0.0.0.0\"", "default");
    }
}

#[test]
fn default_credentials_on_a_public_address_cause_a_warning() {
    let check = Workspace::new().env("PUSHERD_HOST=0.0.0.0").run("config check");
    assert_eq!(check.code, 0);
    assert!(
        check.err.starts_with("pusherd: warning: the default credentials are used on 0.0.0.0"),
        "{check:?}"
    );
}

#[test]
fn the_first_family_of_credentials_with_a_value_is_used() {
    let families = ["PUSHERD_APP", "PUSHER_APP", "REVERB_APP", "SOKETI_DEFAULT_APP"];
    for (first, family) in families.iter().enumerate() {
        let lines: String = families[first..].iter().map(|family| credentials(family, family)).collect();
        // Blank values, as in a new Laravel .env.
        let blank: String =
            families[..first].iter().map(|family| format!("{family}_ID=\n{family}_KEY=null\n")).collect();
        for (workspace, source) in [
            (Workspace::new().env(&format!("{lines}{blank}")), "environment"),
            (Workspace::new().file(".env", format!("{lines}{blank}")), ".env"),
        ] {
            let shown = workspace.show("");
            assert_eq!(shown.apps(), 1);
            shown.assert("id", &format!("\"{family}\""), &format!("{source}: {family}_ID"));
            shown.assert("key", &format!("\"{family}-key\""), &format!("{source}: {family}_KEY"));
            shown.assert("secret", "\"***\"", &format!("{source}: {family}_SECRET"));
        }
    }
}

#[test]
fn an_incomplete_family_is_rejected_or_not_used_with_a_warning() {
    let workspace = Workspace::new().env("PUSHER_APP_KEY=k");
    let needs =
        "environment: PUSHER_APP_KEY: needs PUSHER_APP_ID and PUSHER_APP_SECRET beside it, which are not set";
    assert_eq!(workspace.problem(""), needs);
    let workspace = workspace.env(&credentials("REVERB_APP", "7")).env("REVERB_HOST=ws.test");
    let check = workspace.run("config check");
    let warning = "pusherd: warning: environment: PUSHER_APP_KEY: is not used, as it needs PUSHER_APP_ID and \
                PUSHER_APP_SECRET beside it, which are not set; the app of REVERB_APP_… is served\n";
    assert_eq!((check.code, check.err.as_str()), (0, warning));
    workspace.show("").assert("id", "\"7\"", "environment: REVERB_APP_ID");
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
        let shown = Workspace::new().file(".env", lines).show("");
        shown.assert("port", &format!("700{first}"), &format!(".env: {}", ports[first]));
        if let Some(host) = hosts.get(first) {
            shown.assert("host", &format!("\"10.0.0.{first}\""), &format!(".env: {host}"));
        }
    }
}

#[test]
fn the_address_of_clients_is_never_the_address_to_listen_on() {
    let lines =
        "PUSHER_HOST=ws.test\nPUSHER_PORT=443\nPUSHER_SCHEME=https\nREVERB_HOST=ws.test\nREVERB_PORT=443\n";
    let shown = Workspace::new().file(".env", lines).show("");
    shown.assert("host", "\"127.0.0.1\"", "default");
    shown.assert("port", "6001", "default");
}

#[test]
fn presence_members_are_terminated_by_default_with_reverbs_variables() {
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
        Workspace::new().file(".env", lines).show("").assert(key, value, source);
    }
    let file = format!("{APP}{key} = false\n");
    let workspace = Workspace::new().file("config/pusherd.toml", file);
    workspace.env("BROADCAST_CONNECTION=reverb").show("").assert(key, "false", "config/pusherd.toml");
    // Of two apps, variables apply to the one with their credentials.
    let shown = Workspace::new().file("config/pusherd.toml", APP).file(".env", &reverb).show("");
    assert_eq!(shown.apps(), 2);
    let apps: Vec<_> = shown.0.lines().filter(|line| line.starts_with(key)).collect();
    assert!(apps[0].ends_with("# default") && apps[1].ends_with(of_reverb), "{apps:?}");
}

#[test]
fn each_source_overrides_the_lower_ones() {
    let file = "[server]\nport = 7001\ndrain_secs = 1\nping_interval_secs = 11\npong_timeout_secs = 12\n";
    let dotenv = "PUSHERD_PORT=7002\nPUSHERD_DRAIN_SECS=2\nPUSHERD_PING_INTERVAL_SECS=22\n";
    let workspace = Workspace::new().file("config/pusherd.toml", file).file(".env", dotenv);
    let workspace = workspace.env("PUSHERD_PORT=7003\nPUSHERD_DRAIN_SECS=3\n");
    let shown = workspace.show("");
    shown.assert("port", "7003", "environment: PUSHERD_PORT");
    shown.assert("ping_interval_secs", "22", ".env: PUSHERD_PING_INTERVAL_SECS");
    shown.assert("pong_timeout_secs", "12", "config/pusherd.toml");
    shown.assert("activity_timeout_secs", "30", "default");
    // Only `serve` has flags; its error shows the address.
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port();
    let run = workspace.run(&format!("serve --host [127.0.0.1] --port {port}"));
    assert_eq!(run.code, 1);
    assert!(run.err.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{run:?}");
    assert!(run.err.contains("server.port: command line: --port"), "{run:?}");
}

#[test]
fn files_are_read_from_the_working_directory_or_from_the_named_path() {
    let workspace = Workspace::new()
        .file("config/pusherd.toml", "[server]\nport = 7001\n")
        .file(".env", "PUSHERD_DRAIN_SECS=1\n")
        .file("other/mine.yaml", "server:\n  port: 7002\n")
        .file("other/env", "PUSHERD_DRAIN_SECS=2\n");
    let shown = workspace.show("");
    shown.assert("port", "7001", "config/pusherd.toml");
    shown.assert("drain_secs", "1", ".env: PUSHERD_DRAIN_SECS");
    for (workspace, flags) in [
        (&workspace, "--config other/mine.yaml --env-file other/env"),
        (
            &Workspace::new()
                .file("other/mine.yaml", "server:\n  port: 7002\n")
                .file("other/env", "PUSHERD_DRAIN_SECS=2\n")
                .env("PUSHERD_CONFIG=other/mine.yaml\nPUSHERD_ENV_FILE=other/env"),
            "",
        ),
    ] {
        let shown = workspace.show(flags);
        shown.assert("port", "7002", "other/mine.yaml");
        shown.assert("drain_secs", "2", "other/env: PUSHERD_DRAIN_SECS");
    }
}

#[test]
fn a_laravel_env_file_is_parsed_as_by_laravel() {
    let dotenv = "\u{feff}APP_NAME=\"My App\"\r\nBROKEN=a b\r\nexport PUSHER_APP_ID='42' # id\r\n\
                  NAME=chat\r\nPUSHER_APP_KEY=\"${NAME}-key\"\r\nPUSHER_APP_SECRET=\"pa\\\"ss#word\"\r\n\
                  PUSHERD_PORT=(null)\r\nPUSHERD_APP_WATCHLIST=(false)\r\nPUSHERD_APP_PATH_PREFIX='rt/'\r\n";
    let shown = Workspace::new().file(".env", dotenv).show("");
    shown.assert("id", "\"42\"", ".env: PUSHER_APP_ID");
    shown.assert("key", "\"chat-key\"", ".env: PUSHER_APP_KEY");
    shown.assert("watchlist", "false", ".env: PUSHERD_APP_WATCHLIST");
    shown.assert("path_prefix", "\"/rt\"", ".env: PUSHERD_APP_PATH_PREFIX");
    shown.assert("port", "6001", "default");
}

#[test]
fn all_problems_are_reported_at_once_with_their_sources() {
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
    let workspace = Workspace::new().file("config/pusherd.toml", file).file(".env", dotenv);
    let workspace = workspace.env("PUSHERD_PORT=70000\nPUSHERD_APP_ENABELD=true\nPUSHERD_APP_ENABLED=true\n");
    let problems = workspace.problems("");
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
fn flags_are_checked_like_their_settings() {
    let workspace = Workspace::new();
    let run = workspace.run("serve --port http --log-level loud --host a:1");
    assert_eq!(run.code, 78);
    for problem in [
        "command line: --port: must be 0 to 65535, not \"http\"",
        "command line: --log-level: must be error, warn, info, debug or trace, not \"loud\"",
        "command line: --host: must be an address or a host name, without scheme and port",
    ] {
        assert!(run.err.contains(problem), "{}", run.err);
    }
}

#[test]
fn unknown_variables_are_rejected_only_with_our_prefix() {
    let workspace = Workspace::new().env("PUSHERD_PROT=1\nPUSHER_PROT=1\nPUSHERD_SERVICE_HOST=10.0.0.1\n");
    assert_eq!(
        workspace.problem(""),
        "environment: PUSHERD_PROT: is not a variable of pusherd; did you mean PUSHERD_PORT?"
    );
}

#[test]
fn toml_json_and_yaml_are_equivalent() {
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
        let shown = Workspace::new().file(name, text).show(&format!("--config {name}"));
        shown.0.replace(name, "FILE")
    };
    let toml_shown = shown("a.toml", toml);
    assert_eq!(toml_shown, shown("a.json", json));
    assert_eq!(toml_shown, shown("a.yaml", yaml));
    assert_eq!(toml_shown, shown("a.yml", yaml));
    let shown = Shown(toml_shown);
    assert_eq!(shown.apps(), 2);
    shown.assert("enabled", "false", "FILE");
    assert!(
        shown.0.contains(r#"keys = [{ key = "a", secret = "***" }, { key = "b", secret = "***" }] # FILE"#)
    );
    assert!(shown.0.contains("client_events = \"off\"") && shown.0.contains("presence_members = 5 "));
}

#[test]
fn config_show_prints_an_equivalent_configuration_file() {
    let first =
        Workspace::new().file(".env", credentials("PUSHER_APP", "7")).env("PUSHERD_PORT=7001").show("");
    let again = Workspace::new().file("config/pusherd.toml", first.0.replace("***", "7-secret")).show("");
    assert_eq!(first.values(), again.values());
    let masked = Workspace::new().file("config/pusherd.toml", first.0);
    assert!(
        masked.problem("").ends_with("apps[0].secret: is the mask of `pusherd config show`, not a secret")
    );
}

#[test]
fn unreadable_files_are_rejected_with_the_reason() {
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
        let problem = Workspace::new().file(name, text).problem(&format!("--config {name}"));
        assert!(problem.starts_with(expected) && !problem.contains("hunter2"), "{problem}");
    }
    let workspace = Workspace::new().file("a.toml/x", "").file(".env", &large).file("b.env/x", "");
    assert_eq!(
        workspace.problems("--config a.toml"),
        [".env: is larger than 1024 KiB", "a.toml: is a directory, and must be a regular file"]
    );
    assert_eq!(workspace.problem("--env-file b.env"), "b.env: is a directory, and must be a regular file");
    assert_eq!(
        workspace.problems("--config none.toml --env-file none"),
        ["none: does not exist", "none.toml: does not exist"]
    );
}

#[cfg(unix)]
#[test]
fn a_default_file_without_read_permission_is_rejected() {
    use std::os::unix::fs::PermissionsExt as _;
    let workspace = Workspace::new().file(".env", "PUSHERD_PORT=1").file("config/pusherd.toml", APP);
    for name in [".env", "config/pusherd.toml"] {
        let path = workspace.directory.path().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        if fs::read(&path).is_ok() {
            return; // Root can read everything.
        }
    }
    let why = "may not be read by the user that runs pusherd";
    assert_eq!(workspace.problems(""), [format!(".env: {why}"), format!("config/pusherd.toml: {why}")]);
}
