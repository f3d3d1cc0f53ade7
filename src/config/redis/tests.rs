use super::checks::{PASSWORD_BYTES_MAX, PREFIX_BYTES_MAX, SOCKET_PATH_BYTES_MAX};
use super::url::NOT_A_URL;
use super::*;
use crate::cluster::Engine;
use crate::config::tests::settings;

/// The variables of a new Laravel `.env` that concern Redis.
const LARAVEL: &str =
    "APP_NAME=Laravel\nREDIS_CLIENT=phpredis\nREDIS_HOST=127.0.0.1\nREDIS_PASSWORD=null\nREDIS_PORT=6379\n";

/// The options of the cluster, from a configuration file and a `.env` file.
fn options(toml: &str, dotenv: &str) -> Result<Option<Options>, Vec<String>> {
    let settings = settings(toml, dotenv, &[("A", "")])?;
    Ok(settings.server.options.cluster.engine.map(|engine| match engine {
        Engine::Redis(options) => *options,
        Engine::Memory(_) => panic!("no setting selects it"),
    }))
}

/// The same with the cluster turned on, as text.
fn options_text(toml: &str, dotenv: &str) -> String {
    let toml = format!("server.cluster = 'redis'\n{toml}");
    let options = options(&toml, dotenv).unwrap_or_else(|problems| panic!("{toml}\n{dotenv}\n{problems:?}"));
    text(&options.unwrap())
}

/// `servers username:password/database`, and options that are not the default.
fn text(options: &Options) -> String {
    let server = |Server { host, port }: &Server| format!("{host} {port}");
    let list = |servers: &[Server]| servers.iter().map(server).collect::<Vec<_>>().join(", ");
    let secret =
        |password: &Option<Secret>| password.as_ref().map_or("-", |password| password.expose()).to_owned();
    let name = |name: &Option<String>| name.clone().unwrap_or("-".to_owned());
    let servers = match &options.servers {
        Servers::Single(one) => server(one),
        Servers::Cluster(nodes) => format!("cluster {}", list(nodes)),
        Servers::Sentinels { sentinels, master, username, password } => {
            format!("{master} of {} as {}:{}", list(sentinels), name(username), secret(password))
        }
    };
    let mut text = format!("{servers} {}:{}", name(&options.username), secret(&options.password));
    if options.database != 0 {
        text += &format!("/{}", options.database);
    }
    if let Some(TlsOptions { ca_file, accepts_any }) = &options.tls {
        text += if *accepts_any { " any tls" } else { " tls" };
        text += &ca_file
            .as_ref()
            .map_or(String::new(), |file| format!(" of {}", file.file_name().unwrap().to_string_lossy()));
    }
    if options.prefix != "pusherd" {
        text += &format!(" {}", options.prefix);
    }
    if options.timeout != Duration::from_secs(2) {
        text += &format!(" {:?}", options.timeout);
    }
    text
}

/// The only problem of settings with the cluster turned on.
fn problem(toml: &str, dotenv: &str) -> String {
    let toml = format!("server.cluster = 'redis'\n{toml}");
    let problems = options(&toml, dotenv).unwrap_err();
    assert_eq!(problems.len(), 1, "{toml}\n{dotenv}\n{problems:#?}");
    problems.into_iter().next().unwrap()
}

#[test]
fn settings_of_redis_do_not_turn_the_cluster_on() {
    for dotenv in [
        LARAVEL,
        "REDIS_URL=hunter2\nREDIS_HOST=a b\nREDIS_PORT=x\nREDIS_DB=-1\nREDIS_PREFIX={\n",
        "REDIS_PASSWORD=\"hunter2\nREDIS_USERNAME=\u{fffd}\nSOKETI_DB_REDIS_PORT=x\nREVERB_SCALING_CHANNEL={\n",
        "REVERB_SCALING_ENABLED=false\nSOKETI_ADAPTER_DRIVER=redis\nREDIS_PORT=x\n",
        "SOKETI_ADAPTER_DRIVER=local\nSOKETI_DB_REDIS_HOST=redis\n",
        "PUSHERD_CLUSTER=none\nREVERB_SCALING_ENABLED=true\n",
        "PUSHERD_REDIS_HOST=redis\n",
    ] {
        assert!(options("", dotenv).unwrap().is_none(), "{dotenv}");
    }
    let file = options("server.cluster = 'none'", "REVERB_SCALING_ENABLED=true\n");
    assert!(file.unwrap().is_none(), "the file goes over what others have for themselves");
}

#[test]
fn one_setting_turns_the_cluster_on() {
    for (toml, dotenv) in [
        ("server.cluster = 'redis'", ""),
        ("server.cluster = 'redis'", "REVERB_SCALING_ENABLED=false\n"),
        ("", "PUSHERD_CLUSTER=redis\n"),
        ("", "REVERB_SCALING_ENABLED=true\n"),
        ("", "REVERB_SCALING_ENABLED=(true)\n"),
        ("", "REVERB_SCALING_ENABLED=1\n"),
        ("", "SOKETI_ADAPTER_DRIVER=redis\n"),
    ] {
        let options = options(toml, &format!("{LARAVEL}{dotenv}")).unwrap();
        assert_eq!(text(&options.unwrap()), "127.0.0.1 6379 -:-", "{toml} {dotenv}");
    }
    for driver in ["nats", "cluster"] {
        let problems = options("", &format!("SOKETI_ADAPTER_DRIVER={driver}\n")).unwrap_err();
        let expected = format!(".env: SOKETI_ADAPTER_DRIVER: must be none or redis, not \"{driver}\"");
        assert_eq!(problems, [expected]);
    }
}

#[test]
fn laravels_variables_of_redis_are_read() {
    let table = [
        ("REDIS_HOST=redis\nREDIS_PORT=6380\nREDIS_DB=3\n", "redis 6380 -:-/3"),
        ("REDIS_PASSWORD=null\nREDIS_USERNAME=null\n", "127.0.0.1 6379 -:-"),
        ("REDIS_PASSWORD=\nREDIS_USERNAME=\n", "127.0.0.1 6379 -:-"),
        ("REDIS_PASSWORD=\"p#: \"\nREDIS_USERNAME=me\n", "127.0.0.1 6379 me:p#: "),
        ("REDIS_HOST=tls://Redis.Test\n", "redis.test 6379 -:- tls"),
        ("REDIS_HOST=tcp://redis.test\n", "redis.test 6379 -:-"),
        ("REDIS_HOST=tls://[2001:DB8::1]\n", "2001:db8::1 6379 -:- tls"),
        ("REDIS_HOST=/run/redis.sock\nREDIS_PASSWORD=p\n", "/run/redis.sock 6379 -:p"),
        ("REDIS_HOST=unix:///run/redis.sock\n", "/run/redis.sock 6379 -:-"),
        ("REDIS_PORT=tcp://10.0.0.1:6379\n", "127.0.0.1 6379 -:-"),
        ("REDIS_PREFIX=laravel_database_\n", "127.0.0.1 6379 -:- laravel_database_pusherd"),
        ("REDIS_PREFIX=\n", "127.0.0.1 6379 -:-"),
        ("REVERB_SCALING_CHANNEL=reverb\n", "127.0.0.1 6379 -:-"),
        ("REVERB_SCALING_CHANNEL=blue\n", "127.0.0.1 6379 -:- pusherd:blue"),
        ("REDIS_PREFIX=app:\nREVERB_SCALING_CHANNEL=blue\n", "127.0.0.1 6379 -:- app:pusherd:blue"),
        // The parts of the URL override the other variables, which set the rest.
        (
            "REDIS_URL=redis://h\nREDIS_HOST=x\nREDIS_PORT=6380\nREDIS_DB=3\nREDIS_PASSWORD=p\n",
            "h 6380 -:p/3",
        ),
        (
            "REDIS_URL=rediss://u:q@h:1/2\nREDIS_HOST=x\nREDIS_PORT=6380\nREDIS_DB=3\nREDIS_PASSWORD=p\n",
            "h 1 u:q/2 tls",
        ),
        // A socket has no port, even if one is set.
        ("REDIS_HOST=/run/redis.sock\nREDIS_PORT=0\n", "/run/redis.sock 6379 -:-"),
        ("REDIS_HOST=/run/redis.sock\nREDIS_PORT=-1\nREDIS_SCHEME=tls\n", "/run/redis.sock 6379 -:-"),
        ("REDIS_HOST=unix:///run/redis.sock\nREDIS_PORT=none\n", "/run/redis.sock 6379 -:-"),
        ("REDIS_URL=unix:///run/redis.sock\nREDIS_PORT=0\n", "/run/redis.sock 6379 -:-"),
        ("REDIS_URL=redis://h:1\nREDIS_PORT=0\nREDIS_HOST='a b'\n", "h 1 -:-"),
        ("REDIS_SCHEME=tls\nREDIS_HOST=h\n", "h 6379 -:- tls"),
        ("REDIS_SCHEME=tcp\nREDIS_HOST=h\n", "h 6379 -:-"),
        ("REDIS_SCHEME=tls\nREDIS_URL=redis://h\n", "h 6379 -:-"),
        (
            "REDIS_CLIENT=predis\nREDIS_CLUSTER=redis\nREDIS_CACHE_DB=x\nREDIS_PERSISTENT=x\n",
            "127.0.0.1 6379 -:-",
        ),
        // Variables of other servers are not read here.
        (
            "SOKETI_DB_REDIS_HOST=x\nSOKETI_DB_REDIS_PORT=x\nSOKETI_ADAPTER_REDIS_PREFIX=x\n",
            "127.0.0.1 6379 -:-",
        ),
    ];
    for (dotenv, expected) in table {
        assert_eq!(options_text("", dotenv), expected, "{dotenv}");
    }
}

#[test]
fn soketis_variables_of_redis_are_read_if_soketi_turns_the_cluster_on() {
    let of_soketi = |dotenv: &str| {
        let dotenv = format!("SOKETI_ADAPTER_DRIVER=redis\nREDIS_HOST=other\nREDIS_PASSWORD=other\n{dotenv}");
        text(&options("", &dotenv).unwrap_or_else(|problems| panic!("{dotenv} {problems:?}")).unwrap())
    };
    let table = [
        ("", "127.0.0.1 6379 -:-"),
        (
            "SOKETI_DB_REDIS_HOST=redis\nSOKETI_DB_REDIS_PORT=6380\nSOKETI_DB_REDIS_DB=9\n\
             SOKETI_DB_REDIS_USERNAME=u\nSOKETI_DB_REDIS_PASSWORD=p\nSOKETI_DB_REDIS_KEY_PREFIX=k:\n",
            "redis 6380 u:p/9 k:pusherd",
        ),
        ("SOKETI_ADAPTER_REDIS_PREFIX=a:\nSOKETI_DB_REDIS_KEY_PREFIX=k:\n", "127.0.0.1 6379 -:- a:pusherd"),
        (
            "SOKETI_DB_REDIS_HOST=redis\nSOKETI_DB_REDIS_SENTINELS='[{\"host\":\"a\",\"port\":26379},{\"host\":\"::1\",\
             \"port\":\"2\"}]'\nSOKETI_DB_REDIS_SENTINEL_PASSWORD=s\nSOKETI_DB_REDIS_INSTANCE_NAME=main\n",
            "main of a 26379, ::1 2 as -:s -:-",
        ),
        ("SOKETI_DB_REDIS_CLUSTER_NODES='[{\"host\":\"a\",\"port\":1}]'\n", "cluster a 1 -:-"),
    ];
    for (dotenv, expected) in table {
        assert_eq!(of_soketi(dotenv), expected, "{dotenv}");
    }
    let both =
        "SOKETI_DB_REDIS_CLUSTER_NODES=a:1\nSOKETI_DB_REDIS_SENTINELS=b:2\nSOKETI_ADAPTER_DRIVER=redis\n";
    assert_eq!(
        options("", both).unwrap_err(),
        [
            ".env: SOKETI_DB_REDIS_SENTINELS: contradicts nodes (.env: SOKETI_DB_REDIS_CLUSTER_NODES): one of the two"
        ]
    );
}

#[test]
fn pusherds_own_settings_override_those_of_other_programs() {
    let others = "REDIS_URL=redis://u:other@other:7/7\nREDIS_HOST=other\nREDIS_PORT=7\nREDIS_DB=7\n\
                  REDIS_PASSWORD=known\nREDIS_PREFIX=other\nREVERB_SCALING_CHANNEL=other\n";
    let table = [
        // Host and port come from one program; the credentials are still Laravel's.
        ("redis.host = 'mine'", "mine 6379 -:known/7 otherpusherd:other"),
        ("redis.host = '127.0.0.1'", "127.0.0.1 6379 -:known/7 otherpusherd:other"),
        ("redis.host = 'mine'\nredis.port = 1", "mine 1 -:known/7 otherpusherd:other"),
        ("redis.url = 'redis://mine'", "mine 6379 -:known/7 otherpusherd:other"),
        ("redis.url = 'rediss://u:p@mine:1/2'", "mine 1 u:p/2 tls otherpusherd:other"),
        (
            "redis.nodes = ['a:1', '[::1]:2']\nredis.database = 0",
            "cluster a 1, ::1 2 -:known otherpusherd:other",
        ),
        ("redis.sentinels = ['a:1']\nredis.password = ''", "mymaster of a 1 as -:- -:-/7 otherpusherd:other"),
        ("redis.port = 1\nredis.tls = false", "other 1 u:other/7 otherpusherd:other"),
        ("redis.database = 0\nredis.password = ''\nredis.prefix = 'pusherd'", "other 7 u:-"),
        ("redis.prefix = 'mine'\nredis.timeout_ms = 500", "other 7 u:other/7 mine 500ms"),
    ];
    for (toml, expected) in table {
        assert_eq!(options_text(toml, others), expected, "{toml}");
    }
    assert_eq!(
        options_text("redis.host = 'mine'", "PUSHERD_REDIS_HOST=variable\nREDIS_HOST=x\n"),
        "variable 6379 -:-"
    );
}

#[test]
fn sentinels_have_their_own_credentials_and_tls_is_for_all() {
    let toml = "[redis]\nsentinels = ['a:26379', { host = 'b', port = 26379 }]\nsentinel_master = 'main'\n\
                sentinel_username = 's'\nsentinel_password = 't'\nusername = 'u'\npassword = 'p'\ndatabase = 2\n\
                tls = true\ntls_accept_any_certificate = true\n";
    assert_eq!(options_text(toml, ""), "main of a 26379, b 26379 as s:t u:p/2 any tls");
}

#[test]
fn contradicting_settings_are_rejected_and_both_are_named() {
    let file = "config/pusherd.toml: redis";
    let table = [
        (
            "nodes = ['a:1']\nsentinels = ['b:2']",
            "",
            format!("{file}.sentinels: contradicts nodes ({file}.nodes): one of the two"),
        ),
        (
            "url = 'redis://h'\nhost = 'x'",
            "",
            format!("{file}.host: contradicts the one in url ({file}.url)"),
        ),
        (
            "url = 'redis://h'",
            "PUSHERD_REDIS_HOST=x",
            format!(".env: PUSHERD_REDIS_HOST: contradicts the one in url ({file}.url)"),
        ),
        (
            "url = 'redis://h'\nnodes = ['a:1']",
            "",
            format!("{file}.url: contradicts nodes ({file}.nodes): one of the two"),
        ),
        (
            "host = 'h'\nsentinels = ['a:1']",
            "",
            format!("{file}.host: contradicts sentinels ({file}.sentinels): one of the two"),
        ),
        (
            "url = 'redis://h:1'\nport = 2",
            "",
            format!("{file}.port: contradicts the one in url ({file}.url)"),
        ),
        (
            "url = 'redis://:hunter2@h'\npassword = 'hunter3'",
            "",
            format!("{file}.password: contradicts the one in url ({file}.url)"),
        ),
        (
            "url = 'redis://h/1'",
            "PUSHERD_REDIS_DATABASE=2",
            format!(".env: PUSHERD_REDIS_DATABASE: contradicts the one in url ({file}.url)"),
        ),
        (
            "nodes = ['a:1']\ndatabase = 1",
            "",
            format!(
                "{file}.database: must be 0 with a Redis Cluster, which nodes name ({file}.nodes), not 1"
            ),
        ),
        (
            "nodes = ['a:1']",
            "REDIS_DB=1",
            format!(".env: REDIS_DB: must be 0 with a Redis Cluster, which nodes name ({file}.nodes), not 1"),
        ),
        (
            "host = '/run/redis.sock'\ntls = true",
            "",
            format!("{file}.tls: is not for a Unix socket ({file}.host)"),
        ),
        (
            "tls_ca_file = 'x'\ntls_accept_any_certificate = true",
            "",
            format!(
                "{file}.tls_accept_any_certificate: contradicts tls_ca_file ({file}.tls_ca_file): one of the two"
            ),
        ),
    ];
    for (toml, dotenv, expected) in table {
        assert_eq!(problem(&format!("[redis]\n{toml}"), dotenv), expected, "{toml} {dotenv}");
    }
    // Equal values are no contradiction, so the output of `config show` is a valid file.
    let toml = "[redis]\nurl = 'rediss://h:1/2'\nhost = 'h'\nport = 1\ntls = true\ndatabase = 2";
    assert_eq!(options_text(toml, ""), "h 1 -:-/2 tls");
    // Neither are defaults, which the example file has.
    let toml = "[redis]\nurl = 'rediss://u:p@h:1/2'\nhost = '127.0.0.1'\nport = 6379\nusername = ''\npassword = ''\n\
                database = 0\ntls = false\nnodes = []\nsentinels = []";
    assert_eq!(options_text(toml, ""), "h 1 u:p/2 tls");
}

#[test]
fn a_url_holds_the_location_and_the_credentials() {
    let table = [
        ("redis://h", "h 6379 -:-"),
        ("REDIS://H.Test", "h.test 6379 -:-"),
        ("redis://h/", "h 6379 -:-"),
        ("redis://h:1/15", "h 1 -:-/15"),
        ("tcp://h?database=3", "h 6379 -:-/3"),
        ("redis://h/3?db=3", "h 6379 -:-/3"),
        ("rediss://h", "h 6379 -:- tls"),
        ("TLS://h", "h 6379 -:- tls"),
        ("redis://:p@h", "h 6379 -:p"),
        ("redis://u:p@h", "h 6379 u:p"),
        ("redis://u:p%40%3a%2F%23%25@h", "h 6379 u:p@:/#%"),
        ("redis://u:p:q@h", "h 6379 u:p:q"),
        ("redis://u%3Av:%C3%A9@[::1]:1", "::1 1 u:v:é"),
        ("redis://[2001:db8::1]/1", "2001:db8::1 6379 -:-/1"),
        (" redis://10.0.0.1:6379 ", "10.0.0.1 6379 -:-"),
        ("unix:///run/redis.sock", "/run/redis.sock 6379 -:-"),
        ("unix://u:p@/run/a%20b.sock?database=4", "/run/a b.sock 6379 u:p/4"),
    ];
    for (url, expected) in table {
        assert_eq!(options_text(&format!("redis.url = '{url}'"), ""), expected, "{url}");
        assert_eq!(options_text("", &format!("REDIS_URL=\"{url}\"\n")), expected, "{url}");
    }
}

#[test]
fn an_invalid_url_is_rejected_without_repeating_it() {
    let table = [
        ("hunter2", NOT_A_URL),
        ("redis:hunter2@h", NOT_A_URL),
        ("http://:hunter2@h", "must begin with redis://"),
        ("redis+hunter2://h", "must begin with redis://"),
        ("redis://", NOT_A_URL),
        ("redis://:hunter2@", NOT_A_URL),
        ("redis://:hunter2@/0", NOT_A_URL),
        ("redis://:hunter2@:6379", "has no host"),
        ("redis://:hunter2/x@h", "has no host; special characters in a password are written %xx"),
        ("redis://u:hunter2/x@h", "has a port that is not"),
        ("redis://:hunter2#x@h", "must not contain #"),
        ("redis://:hunter2 x@h", NOT_A_URL),
        ("redis://u:hunter2@h:0", "has a port that is not 1 to 65535"),
        ("redis://u:hunter2@h:65536", "has a port that is not 1 to 65535"),
        ("redis://u:hunter2@h:hunter2", "has a port that is not"),
        ("redis://u:hunter2@h:", "has a port that is not"),
        ("redis://u:hunter2@[::1]1", NOT_A_URL),
        ("redis://u:hunter2@[::1", NOT_A_URL),
        ("redis://u:hunter2@h:+1", "has a port that is not"),
        ("redis://u:hunter2@h/65536", "has a database that is not a number"),
        ("redis://u:hunter2@h/-1", "has a database that is not a number"),
        ("redis://u:hunter2@h/hunter2", "has a database that is not a number"),
        ("redis://u:hunter2@h/0/1", "has a database that is not a number"),
        ("redis://u:hunter2@h?database=x", "has a database that is not a number"),
        ("redis://u:hunter2@h/1?database=2", "names two databases"),
        ("redis://u:hunter2@a_b..c", "has a host that is neither"),
        ("redis://u:hunter2@h,h2:6379", "has a host that is neither"),
        ("redis://u:hunter2@1.2.3", "has a host that is neither"),
        ("redis://u:hunter2%ff@h", "is not UTF-8 text after"),
        ("redis://hunter2%20x:p@h", "has a user that must be"),
        ("redis://***@h", "has the mask of"),
        ("redis://u:***@h", "has the mask of"),
        ("unix://hunter2", "has no path of a socket"),
        ("unix://hunter2/run/redis.sock", "must have no host"),
        ("unix:///", "must be the path of a Unix socket"),
    ];
    for (url, expected) in table {
        let of_file = problem(&format!("redis.url = '{url}'"), "");
        let expected_of_file = format!("config/pusherd.toml: redis.url: {expected}");
        assert!(of_file.starts_with(&expected_of_file) && !of_file.contains("hunter2"), "{url}: {of_file}");
        let of_laravel = problem("", &format!("REDIS_URL='{url}'\n"));
        let expected = format!(".env: REDIS_URL: {expected}");
        assert!(of_laravel.starts_with(&expected) && !of_laravel.contains("hunter2"), "{url}: {of_laravel}");
    }
    let long = format!("redis://:{}@h", "x".repeat(PASSWORD_BYTES_MAX + 1));
    assert!(problem(&format!("redis.url = '{long}'"), "").ends_with("is longer than 1024 bytes"));
    let long = format!("unix:///{}", "x".repeat(SOCKET_PATH_BYTES_MAX));
    assert!(problem(&format!("redis.url = '{long}'"), "").ends_with("107 bytes at most"));
}

#[test]
fn unknown_parameters_are_rejected_in_our_url_and_cause_a_warning_in_a_shared_one() {
    let table = [
        ("redis://h?family=0", "h 6379 -:-", "family"),
        ("redis://h?read_timeout=60&timeout=hunter2&db=2", "h 6379 -:-/2", "read_timeout, timeout"),
        ("redis://h?password=hunter2", "h 6379 -:-", "password"),
        ("redis://h?hunter2", "h 6379 -:-", "one that has no name"),
        ("redis://h?Hunter2=1", "h 6379 -:-", "one that has no name"),
        ("unix:///s?persistent=1", "/s 6379 -:-", "persistent"),
    ];
    for (url, expected, unread) in table {
        let dotenv = format!("REVERB_SCALING_ENABLED=true\nREDIS_URL='{url}'\n");
        assert_eq!(options_text("", &dotenv), expected, "{url}");
        let warnings = settings("", &dotenv, &[]).unwrap().warnings;
        let expected = format!(".env: REDIS_URL: has parameters that are not read: {unread}");
        assert!(warnings.iter().any(|warning| warning.text == expected), "{url}: {warnings:?}");
        let problem = problem(&format!("redis.url = '{url}'"), "");
        assert_eq!(
            problem,
            "config/pusherd.toml: redis.url: has a parameter other than database: use the settings beside url"
        );
    }
    let strange = settings("", "REVERB_SCALING_ENABLED=true\nREDIS_SCHEME=hunter2\n", &[]).unwrap().warnings;
    assert!(
        strange.iter().any(|warning| warning.text == ".env: REDIS_SCHEME: is neither tcp nor tls: not read")
    );
}

#[test]
fn passwords_are_never_printed() {
    let toml =
        "server.cluster = 'redis'\n[redis]\nurl = 'redis://u:hunter2@h'\nsentinel_password = 'hunter2'";
    let settings = settings(toml, "", &[]).unwrap();
    let printed = format!("{settings:?} {}", settings.show());
    assert!(printed.contains("redis://***@h") && !printed.contains("hunter2"), "{printed}");
    let sentinels = "server.cluster = 'redis'\n[redis]\nsentinels = ['a:1']\npassword = 'hunter2'\n\
                     sentinel_password = 'hunter2'";
    let printed = format!("{:?}", options(sentinels, "").unwrap().unwrap());
    assert!(printed.contains("password: Some(***)") && !printed.contains("hunter2"), "{printed}");
}

#[test]
fn a_url_is_shown_without_user_and_password() {
    let table = [
        ("redis://h:1/2", "redis://h:1/2"),
        ("redis://u:p@h:1/2?db=2", "redis://***@h:1/2?db=2"),
        ("redis://u:p%40@h", "redis://***@h"),
        ("redis://u:p@q@h", "redis://***@h"),
        ("unix://u:p@/run/a@b", "unix://***@/run/a@b"),
        ("unix:///run/a@b", "unix:///run/a@b"),
    ];
    for (url, expected) in table {
        assert_eq!(masked_url(url), expected);
    }
}

#[test]
fn values_out_of_range_are_rejected_by_name() {
    let table = [
        ("host = 'h:6379'", "host: must be a host name or an address without a port"),
        ("host = 'tls://'", "host: must be a host name or an address without a port"),
        ("host = ' '", "host: must be a host name or an address without a port"),
        ("host = 'http://h'", "host: must be a host name or an address; tls://"),
        ("host = 'unix://h'", "host: must be a host name or an address; tls://"),
        ("host = '/'", "host: must be the path of a Unix socket"),
        ("host = \"/a\\u0000\"", "host: must be the path of a Unix socket"),
        ("port = 0", "port: must be 1 to 65535, not 0"),
        ("port = 65536", "port: must be 1 to 65535, not 65536"),
        ("database = -1", "database: must be 0 to 65535, not -1"),
        ("database = 65536", "database: must be 0 to 65535, not 65536"),
        ("timeout_ms = 49", "timeout_ms: must be 50 to 60000, not 49"),
        ("nodes = ['a']", "nodes: [0]: must be host:port"),
        ("nodes = ['a:1', 'a:0', '::1:6379', 'redis://a:1', ':1', 7]", "nodes: [1]: must be host:port"),
        ("nodes = [{ host = 'a' }]", "nodes: [0]: must be host:port"),
        ("nodes = 'a:1'", "nodes: must be a list"),
        ("sentinels = ['a:65536']", "sentinels: [0]: must be host:port"),
        ("sentinel_master = ''", "sentinel_master: must be 1 to 255 of A-Z"),
        ("sentinel_master = 'a b'", "sentinel_master: must be 1 to 255 of A-Z"),
        ("username = 'a b'", "username: must be at most 255 bytes without spaces"),
        ("username = '***'", "username: is the mask of"),
        ("password = '***'", "password: is the mask of `pusherd config show`, not a password"),
        ("password = 7", "password: must be text: write it in quotes"),
        ("sentinel_password = '***'", "sentinel_password: is the mask of"),
        ("prefix = ''", "prefix: must be 1 to 200 bytes, not 0"),
        ("prefix = 'a{b'", "prefix: must not contain { } and control characters"),
        ("prefix = 'a}b'", "prefix: must not contain { } and control characters"),
        ("prefix = \"a\\nb\"", "prefix: must not contain { } and control characters"),
        ("tls = 'yes'", "tls: must be true or false, not \"yes\""),
        ("hosts = 'a'", "hosts: is not a setting; did you mean host?"),
    ];
    for (toml, expected) in table {
        let found = problem(&format!("[redis]\n{toml}"), "");
        assert!(found.starts_with(&format!("config/pusherd.toml: redis.{expected}")), "{toml}: {found}");
    }
    let fits = format!("prefix = '{}'", "x".repeat(PREFIX_BYTES_MAX));
    assert!(options_text(&format!("[redis]\n{fits}"), "").ends_with("xxx"));
    for (dotenv, expected) in [
        (format!("REDIS_PREFIX={}", "x".repeat(194)), ".env: REDIS_PREFIX: must be 1 to 200 bytes, not 201"),
        ("REDIS_PREFIX=${x}".to_owned(), ".env: REDIS_PREFIX: must not contain { } and control characters"),
        ("REVERB_SCALING_CHANNEL={x}".to_owned(), ".env: REVERB_SCALING_CHANNEL: must not contain { }"),
        ("REDIS_PORT=x".to_owned(), ".env: REDIS_PORT: must be 1 to 65535, not \"x\""),
        ("REDIS_DB=one".to_owned(), ".env: REDIS_DB: must be 0 to 65535, not \"one\""),
        ("REDIS_PASSWORD=\"open".to_owned(), ".env: REDIS_PASSWORD: a quote is not closed (line 1)"),
        ("REDIS_PASSWORD=\u{fffd}".to_owned(), ".env: REDIS_PASSWORD: is not UTF-8 text"),
        ("PUSHERD_REDIS_NODES=[{]".to_owned(), ".env: PUSHERD_REDIS_NODES: must be a list as JSON"),
    ] {
        let found = problem("", &dotenv);
        assert!(found.starts_with(expected), "{dotenv}: {found}");
    }
}

#[test]
fn servers_in_a_variable_are_separated_by_commas_or_are_json() {
    for (nodes, expected) in [
        ("a:1", "cluster a 1 -:-"),
        ("a:1, [::1]:2,", "cluster a 1, ::1 2 -:-"),
        ("[::1]:2,a:1", "cluster ::1 2, a 1 -:-"),
        ("[\"a:1\", \"b:2\"]", "cluster a 1, b 2 -:-"),
        ("[ {\"host\":\"a\",\"port\":1} ]", "cluster a 1 -:-"),
        ("[]", "127.0.0.1 6379 -:-"),
        ("", "127.0.0.1 6379 -:-"),
    ] {
        assert_eq!(options_text("", &format!("PUSHERD_REDIS_NODES='{nodes}'\n")), expected, "{nodes}");
    }
}

#[test]
fn certificate_authorities_are_checked_if_they_are_used() {
    let pem = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    let toml = |tls: bool| format!("[redis]\ntls = {tls}\ntls_ca_file = '{}'", path.display());
    assert!(problem(&toml(true), "").ends_with("ca.pem does not exist"));
    assert_eq!(options_text(&toml(false), ""), "127.0.0.1 6379 -:-");
    std::fs::write(&path, &pem[..pem.len() / 2]).unwrap();
    let expected = format!(
        "tls_ca_file: {} is not a valid PEM file: certificate 1 in it is cut off or changed",
        path.display()
    );
    assert!(problem(&toml(true), "").ends_with(&expected), "{}", problem(&toml(true), ""));
    std::fs::write(&path, pem).unwrap();
    assert_eq!(options_text(&toml(true), ""), "127.0.0.1 6379 -:- tls of ca.pem");
}

#[test]
fn settings_of_redis_without_effect_cause_a_warning() {
    let app = "[[apps]]\nid = '1'\nkey = 'k'\nsecret = 'long enough'\n";
    let warnings = |toml: &str, dotenv: &str| -> Vec<String> {
        let settings = settings(&format!("{toml}\n{app}"), dotenv, &[]).unwrap();
        settings.warnings.into_iter().map(|warning| warning.text).collect()
    };
    let redis = "server.cluster = 'redis'\n";
    let file = "config/pusherd.toml: ";
    for (toml, expected) in [
        ("redis.host = 'h'".to_owned(), "redis.host: has no effect while server.cluster is none"),
        ("redis.nodes = ['a:1']".to_owned(), "redis.nodes: has no effect while server.cluster is none"),
        (
            "server.local_when_broker_lost = true".to_owned(),
            "server.local_when_broker_lost: has no effect while server.cluster is none",
        ),
        (format!("{redis}redis.username = 'u'"), "redis.username: has no effect without a password"),
        (
            format!("{redis}redis.tls_ca_file = 'x'"),
            "redis.tls_ca_file: has no effect while connections to Redis do not use TLS",
        ),
        (
            format!("{redis}redis.tls_accept_any_certificate = true\nredis.tls = true"),
            "redis.tls_accept_any_certificate: a machine between this node and Redis can read and change everything",
        ),
    ] {
        assert_eq!(warnings(&toml, ""), [format!("{file}{expected}")], "{toml}");
    }
    for (toml, dotenv) in [
        ("", LARAVEL),
        ("redis.host = '127.0.0.1'", ""),
        ("server.cluster = 'redis'\nredis.tls = true\nserver.local_when_broker_lost = true", LARAVEL),
    ] {
        assert_eq!(warnings(toml, dotenv), [""; 0], "{toml} {dotenv}");
    }
}
