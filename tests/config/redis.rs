//! The settings of Redis.

use super::*;

/// The variables for Redis in a new Laravel `.env`.
const LARAVEL_REDIS: &str =
    "REDIS_CLIENT=phpredis\nREDIS_HOST=127.0.0.1\nREDIS_PASSWORD=null\nREDIS_PORT=6379\n";

#[test]
fn reverbs_scaling_turns_the_cluster_on() {
    let shown = Workspace::new().file(".env", LARAVEL_REDIS).show("");
    shown.assert("cluster", "\"none\"", "default");
    shown.assert("host", "\"127.0.0.1\"", "default");
    let scaled = format!("{LARAVEL_REDIS}REVERB_SCALING_ENABLED=true\nREDIS_PREFIX=laravel_database_\n");
    let workspace = Workspace::new().file(".env", scaled);
    let shown = workspace.show("");
    shown.assert("cluster", "\"redis\"", ".env: REVERB_SCALING_ENABLED");
    shown.assert("redis.host", "\"127.0.0.1\"", ".env: REDIS_HOST");
    shown.assert("redis.port", "6379", ".env: REDIS_PORT");
    shown.assert("redis.password", "\"\"", "default");
    shown.assert("redis.prefix", "\"laravel_database_pusherd\"", ".env: REDIS_PREFIX");
    let check = workspace.run("config check");
    assert_eq!((check.code, check.err.as_str()), (0, ""));
}

#[test]
fn the_location_of_redis_is_shown_as_an_equivalent_configuration() {
    let workspace = Workspace::new().env(
        "PUSHERD_CLUSTER=redis\nREDIS_URL=rediss://redis.test:6380/2\nREDIS_USERNAME=me\nREDIS_PASSWORD=hunter2\n\
         REVERB_SCALING_CHANNEL=blue\n",
    );
    let first = workspace.show("");
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
    let masked = Workspace::new().file("config/pusherd.toml", &again);
    assert_eq!(
        masked.problem(""),
        "config/pusherd.toml: redis.password: is the mask of `pusherd config show`, not a password"
    );
    let again = Workspace::new().file("config/pusherd.toml", again.replace("***", "hunter2")).show("");
    assert_eq!(first.values(), again.values());
}

#[test]
fn contradictions_about_redis_name_both_sources_and_no_password() {
    let workspace = Workspace::new()
        .file(
            "config/pusherd.toml",
            "server.cluster = 'redis'\n[redis]\nurl = 'redis://u:hunter2@h:6379'\nnodes = ['a:1']\npassword = 'hunter3'\n",
        )
        .env("PUSHERD_REDIS_DATABASE=1\nREDIS_DB=x\nPUSHERD_REDIS_PROT=1");
    let problems = workspace.problems("");
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
