//! Variables of other servers: one by one, and in typical `.env` files.

use super::*;
use crate::config::Settings;
use crate::config::tests::settings;

fn load(dotenv: &str) -> Settings {
    settings("", dotenv, &[]).unwrap_or_else(|problems| panic!("{dotenv}\n{problems:#?}"))
}

fn problems(dotenv: &str) -> Vec<String> {
    settings("", dotenv, &[]).unwrap_err()
}

fn warnings(settings: &Settings) -> String {
    settings.warnings.iter().map(|warning| format!("{warning}\n")).collect()
}

/// The lines of `config show` that a `.env` set, without spaces between a value and its source.
fn shown(settings: &Settings) -> Vec<String> {
    let line = |line: &str| {
        let (setting, source) = line.rsplit_once(" # ")?;
        source.starts_with(".env").then(|| format!("{} # {source}", setting.trim()))
    };
    settings.show().to_string().lines().filter_map(line).collect()
}

#[test]
fn each_variable_that_is_read_sets_its_setting() {
    let webhooks = "'[{\"url\":\"http://127.0.0.1:8000\"}]'";
    let table = [
        ("SOKETI_DEFAULT_APP_ENABLED=false", "enabled = false"),
        ("SOKETI_DEFAULT_APP_ENABLED=0", "enabled = false"),
        ("DEFAULT_APP_ENABLED=false", "enabled = false"),
        ("REVERB_APP_ACCEPT_CLIENT_EVENTS_FROM=none", "client_events = \"off\""),
        ("REVERB_APP_ACCEPT_CLIENT_EVENTS_FROM=members", "client_events = \"members\""),
        ("REVERB_APP_ACCEPT_CLIENT_EVENTS_FROM=all", "client_events = \"members\""),
        ("REVERB_APP_ACCEPT_CLIENT_EVENTS_FROM=false", "client_events = \"off\""),
        ("SOKETI_DEFAULT_APP_ENABLE_CLIENT_MESSAGES=false", "client_events = \"off\""),
        ("SOKETI_DEFAULT_APP_ENABLE_CLIENT_MESSAGES=1", "client_events = \"members\""),
        ("LARAVEL_WEBSOCKETS_ENABLE_CLIENT_MESSAGES=false", "client_events = \"off\""),
        ("REVERB_APP_ALLOWED_ORIGINS=a.test,*.b.test", "allowed_origins = [\"a.test\", \"*.b.test\"]"),
        ("REVERB_ALLOWED_ORIGINS='[\"a.test\", \"b.test\"]'", "allowed_origins = [\"a.test\", \"b.test\"]"),
        ("SOKETI_DEFAULT_APP_USER_AUTHENTICATION=true", "authorized_connections_timeout_secs = 30"),
        ("SOKETI_DEFAULT_APP_USER_AUTHENTICATION=false", "authorized_connections_timeout_secs = 0"),
        ("REVERB_APP_MAX_CONNECTIONS=1", "connections = 1"),
        ("SOKETI_DEFAULT_APP_MAX_CONNS=7", "connections = 7"),
        ("SOKETI_DEFAULT_APP_MAX_CONNS=-1", "connections = 0"),
        ("REVERB_APP_MAX_MESSAGE_SIZE=10000", "message_bytes = 10000"),
        ("REVERB_APP_MAX_MESSAGE_SIZE=0", "message_bytes = 33554432"),
        ("REVERB_MAX_REQUEST_SIZE=10000", "request_body_bytes = 10000"),
        ("SOKETI_HTTP_MAX_REQUEST_SIZE=1.5", "request_body_bytes = 1572864"),
        ("SOKETI_DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SEC=100", "events_per_second = 100"),
        ("SOKETI_DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SEC=-1", "events_per_second = 0"),
        ("SOKETI_DEFAULT_APP_MAX_CLIENT_EVENTS_PER_SEC=2", "client_events_per_second = 2"),
        ("SOKETI_DEFAULT_APP_MAX_CLIENT_EVENTS_PER_SEC=-1", "client_events_per_second = 1000000"),
        ("SOKETI_EVENT_MAX_SIZE_IN_KB=1", "event_data_bytes = 1024"),
        ("SOKETI_EVENT_MAX_SIZE_IN_KB=0.5", "client_event_data_bytes = 512"),
        ("SOKETI_EVENT_MAX_NAME_LENGTH=20", "event_name_chars = 20"),
        ("SOKETI_EVENT_MAX_CHANNELS_AT_ONCE=2", "channels_per_publish = 2"),
        ("SOKETI_EVENT_MAX_BATCH_SIZE=3", "events_per_batch = 3"),
        ("SOKETI_CHANNEL_LIMITS_MAX_NAME_LENGTH=50", "channel_name_bytes = 50"),
        ("SOKETI_CHANNEL_MAX_NAME_LENGTH=50", "channel_name_bytes = 50"),
        ("SOKETI_CHANNEL_CACHE_TTL=3600", "cache_ttl_secs = 3600"),
        ("SOKETI_PRESENCE_MAX_MEMBERS=10", "presence_members = 10"),
        ("SOKETI_PRESENCE_MAX_MEMBER_SIZE=2", "presence_user_info_bytes = 2048"),
        ("REVERB_SERVER_HOST=10.0.0.1", "host = \"10.0.0.1\""),
        ("SOKETI_HOST=10.0.0.1", "host = \"10.0.0.1\""),
        ("REVERB_SERVER_PORT=7001", "port = 7001"),
        ("SOKETI_PORT=7001", "port = 7001"),
        ("LARAVEL_WEBSOCKETS_PORT=7001", "port = 7001"),
        ("REVERB_SERVER_PATH=rt", "path_prefix = \"/rt\""),
        ("SOKETI_PATH_PREFIX=/rt", "path_prefix = \"/rt\""),
        ("PUSHER_APP_PATH=/rt", "path_prefix = \"/rt\""),
        ("REVERB_APP_PING_INTERVAL=60", "ping_interval_secs = 60"),
        ("REVERB_APP_ACTIVITY_TIMEOUT=20", "activity_timeout_secs = 20"),
        ("SOKETI_HTTP_ACCEPT_TRAFFIC_MEMORY_THRESHOLD=85", "accept_traffic_memory_percent = 85"),
        ("SOKETI_DEBUG=1", "level = \"debug\""),
        ("SOKETI_WEBHOOKS_BATCHING=true", "webhook_batching = true"),
        ("SOKETI_WEBHOOKS_BATCHING_DURATION=100", "webhook_batching_ms = 100"),
        (
            &format!("SOKETI_DEFAULT_APP_WEBHOOKS={webhooks}"),
            "webhooks = [{ url = \"http://127.0.0.1:8000/\" }]",
        ),
    ];
    for (line, expected) in &table {
        let (name, _) = line.split_once('=').unwrap();
        let app = "PUSHERD_APP_ID=1\nPUSHERD_APP_KEY=k\nPUSHERD_APP_SECRET=long-enough\n";
        let settings = load(&format!("{app}{line}\n"));
        let expected = format!("{expected} # .env: {name}");
        assert!(shown(&settings).contains(&expected), "{line}: {:#?}", shown(&settings));
        let is_off = if expected.contains("enabled = false") {
            "no app is enabled: every connection is rejected\n"
        } else {
            ""
        };
        assert_eq!(warnings(&settings), is_off, "{line}");
    }
    // Settings that depend on several variables or on files are tested below and in tests/config.rs.
    let elsewhere = [RATE_LIMITING, "SOKETI_SSL_CERT", "SOKETI_SSL_KEY"];
    let elsewhere =
        elsewhere.iter().chain(&["LARAVEL_WEBSOCKETS_SSL_LOCAL_CERT", "LARAVEL_WEBSOCKETS_SSL_LOCAL_PK"]);
    let tested: BTreeSet<_> =
        table.iter().filter_map(|(line, _)| line.split('=').next()).chain(elsewhere.copied()).collect();
    for row in ROWS.iter().filter(|row| matches!(row.handling, Handling::Alias { .. })) {
        assert!(tested.contains(row.name), "{} has no test", row.name);
    }
}

#[test]
fn aliases_name_variables_of_pusherd_and_no_name_has_two_rows() {
    for row in ROWS {
        match row.handling {
            Handling::Alias { own, .. } => {
                assert!(is_known(own) && own.starts_with("PUSHERD_"), "{}", row.name)
            }
            Handling::PartOf(other) => assert!(names().contains(other), "{}", row.name),
            Handling::Restricted { .. } | Handling::NotRead(_) | Handling::Ignored(_) => {}
        }
        let first = ROWS.iter().find(|other| other.matches(row.name)).unwrap();
        let is_alike = first.name == row.name && first.is_read() == row.is_read();
        assert!(is_alike, "{} comes after {}", row.name, first.name);
    }
}

#[test]
fn values_that_set_nothing_are_ignored_and_invalid_ones_are_rejected() {
    for line in
        ["SOKETI_DEBUG=false", "REVERB_APP_ALLOWED_ORIGINS=' , '", "REVERB_APP_RATE_LIMITING_ENABLED=false"]
    {
        assert_eq!(shown(&load(&format!("{line}\n"))), [""; 0], "{line}");
    }
    // Blank values, as in a new Laravel `.env`.
    for line in
        ["REVERB_APP_MAX_CONNECTIONS=", "REVERB_APP_MAX_CONNECTIONS=null", "SOKETI_APP_MANAGER_DRIVER="]
    {
        assert_eq!(shown(&load(&format!("{line}\n"))), [""; 0], "{line}");
    }
    let blocked = "blocks everything at 0; if that is intended, set PUSHERD_APP_";
    for (line, expected) in [
        ("REVERB_APP_MAX_CONNECTIONS=0", blocked),
        ("REVERB_APP_MAX_CONNECTIONS=-1", blocked),
        ("REVERB_MAX_REQUEST_SIZE=0", blocked),
        ("SOKETI_DEFAULT_APP_MAX_BACKEND_EVENTS_PER_SEC=0", blocked),
        ("SOKETI_DEFAULT_APP_MAX_CLIENT_EVENTS_PER_SEC=0", blocked),
        ("REVERB_APP_MAX_CONNECTIONS=many", "must be a whole number, not \"many\""),
        ("SOKETI_EVENT_MAX_SIZE_IN_KB=-1", "must be a number above 0, not \"-1\""),
        ("SOKETI_EVENT_MAX_SIZE_IN_KB=1e99", "must be 1 to 16777216"),
        ("SOKETI_EVENT_MAX_SIZE_IN_KB=NaN", "must be a number above 0, not \"NaN\""),
        ("REVERB_APP_MAX_MESSAGE_SIZE=10", "must be 0 (derived) or 1024 to 33554432, not 10"),
        ("SOKETI_DEFAULT_APP_ENABLED=perhaps", "must be true or false, not \"perhaps\""),
        ("SOKETI_DEFAULT_APP_USER_AUTHENTICATION=2", "must be true or false, not \"2\""),
        ("REVERB_SERVER_HOST=https://x", "must be an address or a host name"),
    ] {
        let (name, _) = line.split_once('=').unwrap();
        for problem in problems(&format!("{line}\n")) {
            assert!(problem.starts_with(&format!(".env: {name}: {expected}")), "{problem}");
            assert!(problem.contains("; PUSHERD_") && problem.ends_with(" overrides it"), "{problem}");
        }
    }
    let own = "REVERB_APP_MAX_CONNECTIONS=many\nPUSHERD_APP_LIMITS_CONNECTIONS=5\n";
    assert_eq!(shown(&load(own)), ["connections = 5 # .env: PUSHERD_APP_LIMITS_CONNECTIONS"]);
}

#[test]
fn limits_can_depend_on_several_variables() {
    let on = "REVERB_APP_RATE_LIMITING_ENABLED=true\n";
    for (lines, per_second, burst) in [
        ("", 1, 60),
        ("REVERB_APP_RATE_LIMIT_MAX_ATTEMPTS=100\nREVERB_APP_RATE_LIMIT_DECAY_SECONDS=1\n", 100, 100),
        ("REVERB_APP_RATE_LIMIT_MAX_ATTEMPTS=30\n", 1, 30),
        ("REVERB_APP_RATE_LIMIT_MAX_ATTEMPTS=301\nREVERB_APP_RATE_LIMIT_DECAY_SECONDS=100\n", 4, 301),
    ] {
        let settings = load(&format!("{on}{lines}REVERB_APP_RATE_LIMIT_TERMINATE=false\n"));
        let limits = &settings.apps[0].limits;
        assert_eq!((limits.messages.per_second, limits.messages.burst), (per_second, burst), "{lines}");
        assert_eq!(
            warnings(&settings),
            "not read, though set: REVERB_APP_RATE_LIMIT_TERMINATE (a client above the rate is always closed (4100))\n"
        );
    }
    let wrong = problems(&format!("{on}REVERB_APP_RATE_LIMIT_DECAY_SECONDS=0\n"));
    let needs = "needs REVERB_APP_RATE_LIMIT_DECAY_SECONDS to be a whole number above 0";
    assert!(wrong.iter().all(|problem| problem.contains(needs)), "{wrong:?}");
    for (millis, secs) in [("500", 1), ("30000", 30), ("1001", 2)] {
        let lines = format!(
            "SOKETI_DEFAULT_APP_USER_AUTHENTICATION=1\nSOKETI_USER_AUTHENTICATION_TIMEOUT={millis}\n"
        );
        let timeout = load(&lines).apps[0].authorized_connections_timeout;
        assert_eq!(timeout, Some(std::time::Duration::from_secs(secs)), "{millis}");
    }
}

#[test]
fn other_app_managers_and_worker_mode_are_rejected() {
    for (name, allowed, driver) in [
        ("SOKETI_APP_MANAGER_DRIVER", "array", "mysql"),
        ("SOKETI_APP_MANAGER_DRIVER", "array", "postgres"),
        ("SOKETI_APP_MANAGER_DRIVER", "array", "dynamodb"),
        ("REVERB_APPS_PROVIDER", "config", "database"),
        ("REVERB_APP_PROVIDER", "config", "eloquent"),
    ] {
        let expected = format!(
            ".env: {name}: must be {allowed}, not \"{driver}\": pusherd reads apps from its own \
             configuration, not from a database: list them as [[apps]] in config/pusherd.toml, and remove \
             this variable"
        );
        assert_eq!(problems(&format!("{name}={driver}\n")), [expected]);
    }
    assert!(
        problems("SOKETI_MODE=worker\n")[0].contains("SOKETI_MODE: must be full or server, not \"worker\"")
    );
    for line in [
        "SOKETI_APP_MANAGER_DRIVER=array",
        "REVERB_APPS_PROVIDER=config",
        "SOKETI_MODE=full",
        "SOKETI_MODE=server",
    ] {
        assert_eq!(warnings(&load(&format!("{line}\n"))), "", "{line}");
    }
}

#[test]
fn variables_that_are_not_read_are_listed_once_with_the_reason() {
    let settings = load(
        "SOKETI_METRICS_ENABLED=true\nSOKETI_METRICS_SERVER_PORT=9601\nSOKETI_QUEUE_DRIVER=redis\nREVERB_FOO=1\n\
         SOKETI_DB_MYSQL_PASSWORD=hunter2\nPUSHER_APP_CLUSTER=mt1\nPUSHER_OTHER=1\nVITE_REVERB_HOST=x\nREVERB_BLANK=\n\
         SOKETI_DB_REDIS_HOST=redis\nSOKETI_SERVICE_HOST=10.0.0.1\nSOKETI_PORT=tcp://10.0.0.1:6001\n",
    );
    assert_eq!(
        warnings(&settings),
        "not read, though set: PUSHER_OTHER, REVERB_FOO (pusherd does not know it); SOKETI_DB_MYSQL_PASSWORD (apps are read from pusherd's \
         own configuration, not from a database); SOKETI_METRICS_ENABLED, SOKETI_METRICS_SERVER_PORT (pusherd has no \
         metrics yet); SOKETI_QUEUE_DRIVER (webhooks are queued in pusherd itself, or in the Redis of its cluster)\n"
    );
    let many: String = (0..1000).map(|at| format!("REVERB_X{at}=1\n")).collect();
    let warnings = warnings(&load(&many));
    assert!(warnings.len() < 1000 && warnings.ends_with("; and 960 more\n"), "{warnings}");
}

#[test]
fn variables_of_pusher_servers_are_listed_and_those_of_sdks_and_other_programs_are_not() {
    let settings = load(
        "PORT=3000\nPUSHER_MAX_CONNECTIONS=5\nPUSHER_APP_STATISTICS=false\nDEFAULT_APP_MAX_READ_REQ_PER_SEC=5\n\
         DEFAULT_APP_MAX_SOMETHING=5\nPUSHER_ENCRYPTION_MASTER_KEY_BASE64=x\nPUSHER_ENCRYPTED=true\nPUSHER_TIMEOUT=5\n\
         PUSHER_USE_TLS=true\nPUSHER_DEBUG=1\nPUSHER_CURL_OPTIONS=x\nPUSHER_BEAMS_INSTANCE_ID=x\nPUSHER_CLUSTER=mt1\n\
         DEFAULT_APP_NAME=x\nVITE_PUSHER_APP_KEY=x\nPUSHER_MAX_BLANK=\nPUSHER_HOST=127.0.0.1\nPUSHER_PORT=6001\n\
         PUSHER_SCHEME=http\n",
    );
    assert_eq!(
        warnings(&settings),
        "not read, though set: DEFAULT_APP_MAX_READ_REQ_PER_SEC (PUSHERD_APP_LIMITS_REQUESTS_PER_SECOND counts all \
         signed requests, those that publish included); DEFAULT_APP_MAX_SOMETHING, PUSHER_APP_STATISTICS, \
         PUSHER_MAX_CONNECTIONS (pusherd does not know it); PORT (in a .env it belongs to another program; PUSHERD_PORT \
         is pusherd's)\n"
    );
    // The platform's own, in the process, is read.
    let settings = crate::config::tests::settings("", "", &[("PORT", "3000")]).unwrap();
    assert_eq!((settings.server.port, warnings(&settings).as_str()), (3000, ""));
}

#[test]
fn variables_of_the_server_that_the_application_uses_are_preferred() {
    let both = "SOKETI_PORT=7001\nREVERB_SERVER_PORT=7002\nLARAVEL_WEBSOCKETS_PORT=7003\n";
    let credentials = |prefix: &str| format!("{prefix}ID=1\n{prefix}KEY=k\n{prefix}SECRET=long-enough\n");
    assert_eq!(load(both).server.port, 7002);
    assert_eq!(load(&format!("{both}{}", credentials("SOKETI_DEFAULT_APP_"))).server.port, 7001);
    assert_eq!(load(&format!("{both}{}", credentials("REVERB_APP_"))).server.port, 7002);
    // Settings of an app that is not used are not used either.
    let both_apps = credentials("PUSHER_APP_") + &credentials("REVERB_APP_").replace("ID=1", "ID=2");
    let both_apps = format!("{both_apps}REVERB_APP_MAX_CONNECTIONS=5\n");
    assert_eq!(
        load(&format!("{both_apps}BROADCAST_CONNECTION=pusher\n")).apps[0].limits.connections_max,
        None
    );
    assert_eq!(
        load(&format!("{both_apps}BROADCAST_CONNECTION=reverb\n")).apps[0].limits.connections_max,
        Some(5)
    );
}

#[test]
fn variables_of_one_app_are_listed_if_the_file_has_several() {
    let file = "[[apps]]\nid = '1'\nkey = 'k1'\nsecret = 'long enough'\n[[apps]]\nid = '2'\nkey = 'k2'\nsecret = 'long enough'\n";
    let lines = "SOKETI_DEFAULT_APP_ENABLED=false\nREVERB_APP_MAX_CONNECTIONS=5\nREVERB_SERVER_PORT=7001\n";
    let settings = settings(file, lines, &[]).unwrap();
    assert_eq!(settings.server.port, 7001);
    assert_eq!(
        warnings(&settings),
        "not read, though set: REVERB_APP_MAX_CONNECTIONS, SOKETI_DEFAULT_APP_ENABLED (for one app, and the file has \
         several)\n"
    );
}

/// Laravel 11 to 12, `.env.example`, shortened.
const LARAVEL: &str = "APP_NAME=Laravel\nAPP_ENV=local\nAPP_URL=http://localhost\nDB_CONNECTION=sqlite\n\
    BROADCAST_CONNECTION=log\nFILESYSTEM_DISK=local\nQUEUE_CONNECTION=database\nREDIS_CLIENT=phpredis\n\
    REDIS_HOST=127.0.0.1\nREDIS_PASSWORD=null\nREDIS_PORT=6379\nVITE_APP_NAME=\"${APP_NAME}\"\n";

/// What Reverb's `reverb:install` appends.
const REVERB_INSTALL: &str = "\nREVERB_APP_ID=123456\nREVERB_APP_KEY=k3k3k3k3k3k3k3k3k3k3\n\
    REVERB_APP_SECRET=s3s3s3s3s3s3s3s3s3s3\nREVERB_HOST=\"localhost\"\nREVERB_PORT=8080\nREVERB_SCHEME=http\n\n\
    VITE_REVERB_APP_KEY=\"${REVERB_APP_KEY}\"\nVITE_REVERB_HOST=\"${REVERB_HOST}\"\n\
    VITE_REVERB_PORT=\"${REVERB_PORT}\"\nVITE_REVERB_SCHEME=\"${REVERB_SCHEME}\"\n";

#[test]
fn the_env_of_a_reverb_installation_works_unchanged() {
    let dotenv = LARAVEL.replace("=log", "=reverb") + REVERB_INSTALL;
    let settings = load(&dotenv);
    assert_eq!((settings.server.port, &*settings.apps[0].id.0), (8080, "123456"));
    assert_eq!(settings.client_address.as_ref().unwrap().url(), "http://localhost:8080");
    assert_eq!(warnings(&settings), "");
    // The driver is not set yet.
    let warnings = warnings(&load(&format!("{LARAVEL}{REVERB_INSTALL}")));
    assert!(warnings.starts_with(".env: BROADCAST_CONNECTION: is log: with this driver"), "{warnings}");
}

#[test]
fn old_pusher_variables_do_not_interfere_with_reverbs() {
    let blank = "PUSHER_APP_ID=\nPUSHER_APP_KEY=\nPUSHER_APP_SECRET=\nPUSHER_HOST=\nPUSHER_PORT=443\n\
                 PUSHER_SCHEME=https\nPUSHER_APP_CLUSTER=mt1\n\nVITE_PUSHER_APP_KEY=\"${PUSHER_APP_KEY}\"\n";
    let old = blank
        .replace("ID=\n", "ID=7\n")
        .replace("KEY=\n", "KEY=old\n")
        .replace("SECRET=\n", "SECRET=old-secret\n");
    for (pusher, expected) in
        [(blank, ""), (&*old, "PUSHER_APP_… is not used: the app of REVERB_APP_… is served")]
    {
        let settings = load(&format!("BROADCAST_CONNECTION=reverb\n{pusher}{REVERB_INSTALL}"));
        assert_eq!((settings.server.port, &*settings.apps[0].id.0), (8080, "123456"));
        assert_eq!(settings.client_address.as_ref().unwrap().url(), "http://localhost:8080");
        let warnings = warnings(&settings);
        assert!(
            warnings.contains(expected) && warnings.lines().count() == usize::from(!expected.is_empty()),
            "{warnings}"
        );
    }
}

#[test]
fn the_environment_of_soketi_containers_is_read() {
    let environment = [
        ("SOKETI_DEBUG", "1"),
        ("SOKETI_HOST", "0.0.0.0"),
        ("SOKETI_METRICS_SERVER_PORT", "9601"),
        ("SOKETI_DEFAULT_APP_ID", "app-1"),
        ("SOKETI_DEFAULT_APP_KEY", "key-1"),
        ("SOKETI_DEFAULT_APP_SECRET", "secret-1"),
        ("SOKETI_DEFAULT_APP_MAX_CONNS", "-1"),
        ("SOKETI_DEFAULT_APP_ENABLE_CLIENT_MESSAGES", "true"),
        ("SOKETI_PRESENCE_MAX_MEMBERS", "200"),
        ("SOKETI_USER_AUTHENTICATION_TIMEOUT", "60000"),
    ];
    let settings = settings("", "", &environment).unwrap();
    assert_eq!(
        (settings.server.port, &*settings.server.host, &*settings.apps[0].id.0),
        (6001, "0.0.0.0", "app-1")
    );
    assert_eq!(settings.apps[0].limits.presence_members_max, 200);
    assert_eq!(
        warnings(&settings),
        "not read, though set: SOKETI_METRICS_SERVER_PORT (pusherd has no metrics yet)\n"
    );
}

#[test]
fn laravel_websockets_is_replaced_on_its_port() {
    let dotenv = "BROADCAST_DRIVER=pusher\nPUSHER_APP_ID=local-id\nPUSHER_APP_KEY=local-key\nPUSHER_APP_SECRET=local-secret\n\
                  PUSHER_APP_CLUSTER=mt1\nPUSHER_HOST=127.0.0.1\nPUSHER_PORT=6001\nPUSHER_SCHEME=http\n\
                  LARAVEL_WEBSOCKETS_PORT=6001\nLARAVEL_WEBSOCKETS_SSL_LOCAL_CERT=null\nPUSHER_APP_PATH=\n";
    let settings = load(dotenv);
    assert_eq!((settings.server.port, warnings(&settings).as_str()), (6001, ""));
    let replicated = load(&format!("{dotenv}WEBSOCKETS_REPLICATION_MODE=redis\n"));
    assert!(replicated.server.options.cluster.engine.is_some());
    let alone = load(&format!("{dotenv}WEBSOCKETS_REPLICATION_MODE=local\n"));
    assert!(alone.server.options.cluster.engine.is_none());
}

#[test]
fn behind_a_proxy_the_address_of_clients_may_differ_from_ours() {
    let dotenv = LARAVEL.replace("=log", "=reverb")
        + "REVERB_APP_ID=1\nREVERB_APP_KEY=k\nREVERB_APP_SECRET=long-enough\nREVERB_HOST=ws.example.com\nREVERB_PORT=443\n\
           REVERB_SCHEME=https\nREVERB_SERVER_HOST=127.0.0.1\nREVERB_SERVER_PORT=8081\n";
    let settings = load(&dotenv);
    assert_eq!((settings.server.port, &*settings.server.host), (8081, "127.0.0.1"));
    assert_eq!(warnings(&settings), "");
}
