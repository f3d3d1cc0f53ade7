use std::path::Path;
use std::time::Duration;

use super::sources::{DOTENV_FILE, LOCAL_FILE};
use super::{Settings, Sources, apps, load};
use crate::apps::App;
use crate::server;

/// Loads settings from a configuration file, a `.env` file and the environment.
pub(in crate::config) fn settings(
    toml: &str,
    dotenv: &str,
    environment: &[(&str, &str)],
) -> Result<Settings, Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("config")).unwrap();
    std::fs::write(directory.path().join(LOCAL_FILE), toml).unwrap();
    std::fs::write(directory.path().join(DOTENV_FILE), dotenv).unwrap();
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
    load(&Sources::new(environment, directory.path().to_owned()))
        .map_err(|problems| problems.iter().map(str::to_owned).collect())
}

fn warnings(toml: &str) -> Vec<String> {
    settings(toml, "", &[]).unwrap().warnings.into_iter().map(|warning| warning.text).collect()
}

const APP: &str = "[[apps]]\nid = '1'\nkey = 'k'\nsecret = 'long enough'\n";

#[test]
fn settings_are_derived_from_others() {
    let limits = "[apps.limits]\nclient_events_per_second = 3\nclient_event_data_bytes = 100000\n\
                  event_data_bytes = 1000\nevents_per_batch = 20\npresence_user_info_bytes = 20000\n\
                  user_id_chars = 100\n";
    let settings = settings(&format!("[server]\ndrain_secs = 60\n{APP}{limits}"), "", &[]).unwrap();
    assert_eq!(settings.server.options.shutdown_deadline, Duration::from_secs(70));
    let limits = &settings.apps[0].limits;
    assert_eq!((limits.client_events.per_second, limits.client_events.burst), (3, 3));
    assert_eq!(limits.message_bytes_max, 100_000 + 16 * 1024);
    assert_eq!(limits.channel_data_bytes_max, 20_000 + 100 * 12 + 1024);
    assert_eq!(limits.request_body_bytes_max, 2 * 60 * 1000 + 64 * 1024, "as for twenty events");
    assert_eq!(&*settings.server.host, "0.0.0.0");
}

#[test]
fn without_settings_the_defaults_of_the_modules_apply() {
    let settings = settings("", "", &[]).unwrap();
    let expected = App::new(apps::DEFAULT_ID, apps::DEFAULT_KEY, apps::DEFAULT_SECRET);
    assert_eq!(format!("{:?}", settings.apps), format!("{:?}", [expected]));
    let expected = server::Options::default();
    assert_eq!(format!("{:?}", settings.server.options), format!("{expected:?}"));
}

#[test]
fn with_the_default_credentials_the_server_listens_on_loopback() {
    let set = "PUSHER_APP_ID=app-id\nPUSHER_APP_KEY=app-key\nPUSHER_APP_SECRET=app-secret\nPUSHER_HOST=x\n";
    for (dotenv, environment, host, always_logged) in [
        ("", ("A", ""), "127.0.0.1", false),
        (set, ("A", ""), "127.0.0.1", false),
        ("", ("PUSHERD_HOST", "0.0.0.0"), "0.0.0.0", true),
        (set, ("PUSHERD_HOST", "ws.test"), "ws.test", true),
        (set, ("PUSHERD_HOST", "localhost"), "localhost", false),
        (set, ("PUSHERD_HOST", "::1"), "::1", false),
    ] {
        let settings = settings("", dotenv, &[environment]).unwrap();
        assert_eq!(&*settings.server.host, host, "{environment:?}");
        assert_eq!(
            settings.warnings.iter().any(|warning| warning.always_logged),
            always_logged,
            "{environment:?}"
        );
    }
}

#[test]
fn settings_without_effect_cause_a_warning() {
    let app = APP.to_owned();
    let table = [
        (app.replace("long enough", "short"), "apps[0].secret: is shorter than 8 bytes"),
        (app.clone() + "enabled = false", "no app is enabled"),
        (app.clone() + "client_events = 'off'\nlimits.client_events_per_second = 5", "has no effect"),
        (app.clone() + "watchlist = false\nlimits.watchlist_users = 5", "has no effect"),
        (app.clone() + "limits.request_body_bytes = 2048", "event_data_bytes: 102400 is never reached"),
        (app.clone() + "limits.message_bytes = 2048", "client_event_data_bytes: 10240 is never reached"),
        (app.clone() + "limits.channel_data_bytes = 4096", "presence_user_info_bytes: 8192 is never"),
        (app.clone() + "limits.messages_burst = 50", "messages_per_second: 100 is never reached"),
        (app.clone() + "limits.outbox_bytes = 4096", "event_data_bytes: 102400 is never reached"),
        (format!("[server]\ntrusted_proxies = []\n{app}tls_only = true"), "rejects every connection"),
        (format!("[webhooks]\ndead_letter_file = 'x'\n{app}"), "has no effect while no app has webhooks"),
        (
            app.clone() + "webhooks = [{ url = 'http://x', event_types = ['subscription_count'] }]",
            "subscription_count is never sent while subscription_counts is false",
        ),
        (
            app.clone()
                + "client_events = 'off'\nwebhooks = [{ url = 'http://x', event_types = ['client_event'] }]",
            "client_event is never sent while client_events is off",
        ),
        (
            format!("[server]\nactivity_timeout_secs = 90\n{app}"),
            "server.activity_timeout_secs: has no effect: clients",
        ),
    ];
    for (toml, expected) in table {
        let warnings = warnings(&toml);
        assert!(warnings.iter().any(|warning| warning.contains(expected)), "{toml}\n{warnings:?}");
    }
    assert_eq!(warnings(&app), [""; 0]);
}

#[test]
fn an_application_that_publishes_to_pusher_com_causes_a_warning() {
    let pusher = "PUSHER_APP_ID=1\nPUSHER_APP_KEY=k\nPUSHER_APP_SECRET=long enough\n".replace(' ', "-");
    let elsewhere = |dotenv: &str| {
        let settings = settings("", dotenv, &[]).unwrap();
        settings.warnings.iter().any(|warning| warning.text.contains("pusher.com"))
    };
    assert!(elsewhere(&format!("{pusher}PUSHER_HOST=\n")));
    assert!(!elsewhere(&format!("{pusher}PUSHER_HOST=127.0.0.1\n")));
    assert!(!elsewhere(&pusher.replace("PUSHER_", "REVERB_")));
}

#[test]
fn unreadable_variables_are_reported_only_if_they_are_used() {
    let unused = settings("", "BAD=a b\nUNUSED=\u{fffd}\n", &[("OTHER", "\u{fffd}")]);
    assert!(unused.is_ok());
    let used = settings("", "PUSHERD_APP_ID=a b\nPUSHERD_HOST=\u{fffd}\n", &[]).unwrap_err();
    assert!(used.iter().any(|problem| problem.contains("PUSHERD_APP_ID: a value with spaces")), "{used:?}");
    assert!(used.iter().any(|problem| problem.contains("PUSHERD_HOST: is not UTF-8")), "{used:?}");
}

#[test]
fn without_systemd_dead_letters_are_kept_in_the_state_directory_of_the_system_if_it_exists() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("config")).unwrap();
    std::fs::create_dir(at("state")).unwrap();
    std::fs::write(at(LOCAL_FILE), format!("{APP}webhooks = [{{ url = 'http://app.test/' }}]\n")).unwrap();
    for (state, expected) in [("state", Some(at("state/dead-letters.jsonl"))), ("missing", None)] {
        let mut sources = Sources::new([], directory.path().to_owned());
        assert_eq!(sources.state_directory, Path::new("/var/lib/pusherd"));
        sources.state_directory = at(state);
        let settings = load(&sources).unwrap();
        assert_eq!(settings.server.options.webhooks.dead_letter_file, expected, "{state}");
    }
    assert_eq!(
        std::fs::read_dir(at("state")).unwrap().count(),
        0,
        "it is created with the first dead letter"
    );
}
