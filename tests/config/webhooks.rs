//! The settings of webhooks.

use super::*;

/// A value of Soketi's variable.
const WEBHOOKS: &str = r#"[{"url":"https://app.test/hooks?token=hunter2","headers":{"X-Env":"hunter2"},"event_types":["channel_occupied","member_added"],"filter":{"channel_name_starts_with":"presence-","channel_name_ends_with":""}},{"url":"http://127.0.0.1:8000"}]"#;

#[test]
fn webhooks_are_read_in_soketis_format_from_files_and_variables() {
    let shown = "[{ url = \"https://app.test/hooks?***\", headers = { \"x-env\" = \"***\" }, \
                 event_types = [\"channel_occupied\", \"member_added\"], \
                 filter = { channel_name_starts_with = \"presence-\" } }, { url = \"http://127.0.0.1:8000/\" }]";
    let json = format!(r#"{{"apps":[{{"id":"1","key":"k","secret":"long enough","webhooks":{WEBHOOKS}}}]}}"#);
    let toml = "[[apps.webhooks]]\nurl = 'https://app.test/hooks?token=hunter2'\nheaders = { X-Env = 'hunter2' }\n\
                event_types = ['channel_occupied', 'member_added']\n\
                filter = { channel_name_starts_with = 'presence-' }\n\
                [[apps.webhooks]]\nurl = 'http://127.0.0.1:8000'\n";
    let of_soketi = "SOKETI_WEBHOOKS_BATCHING=1\nSOKETI_WEBHOOKS_BATCHING_DURATION=100\n";
    for (workspace, flags, source) in [
        (Workspace::new().file("p.json", json), "--config p.json", "p.json"),
        (Workspace::new().file("p.toml", format!("{APP}{toml}")), "--config p.toml", "p.toml"),
        (
            Workspace::new().env(&format!("SOKETI_DEFAULT_APP_WEBHOOKS={WEBHOOKS}")),
            "",
            "environment: SOKETI_DEFAULT_APP_WEBHOOKS",
        ),
        (
            Workspace::new().file(".env", format!("PUSHERD_APP_WEBHOOKS='{WEBHOOKS}'\n")),
            "",
            ".env: PUSHERD_APP_WEBHOOKS",
        ),
    ] {
        let workspace = workspace.env(of_soketi);
        let found = workspace.show(flags);
        found.assert("webhooks", shown, source);
        found.assert("webhook_batching", "true", "environment: SOKETI_WEBHOOKS_BATCHING");
        found.assert("webhook_batching_ms", "100", "environment: SOKETI_WEBHOOKS_BATCHING_DURATION");
        assert!(!found.0.contains("hunter2"));
    }
}

#[test]
fn dead_letters_are_kept_in_the_state_directory_by_default() {
    let with_webhooks = format!("{APP}webhooks = [{{ url = 'http://app.test/' }}]\n");
    let state = tempfile::tempdir().unwrap();
    let file = |name: &str| format!("{:?}", state.path().join(name).join("dead-letters.jsonl"));
    fs::create_dir(state.path().join("one")).unwrap();
    fs::create_dir(state.path().join("two")).unwrap();
    let path = |name: &str| state.path().join(name).display().to_string();
    let systemd = "environment: STATE_DIRECTORY";
    let directories = format!("STATE_DIRECTORY={}:{}:{}", path("missing"), path("two"), path("one"));
    let workspace = |text: &str| Workspace::new().file("config/pusherd.toml", text).env(&directories);
    workspace(&with_webhooks).show("").assert("dead_letter_file", &file("two"), systemd);
    // The file is created with the first dead letter.
    assert_eq!(fs::read_dir(state.path().join("two")).unwrap().count(), 0);
    let off = format!("[webhooks]\ndead_letter_file = ''\n{with_webhooks}");
    workspace(&off).show("").assert("dead_letter_file", "\"\"", "config/pusherd.toml");
    let elsewhere = workspace(&with_webhooks).env("PUSHERD_WEBHOOKS_DEAD_LETTER_FILE=dead.jsonl");
    let variable = "environment: PUSHERD_WEBHOOKS_DEAD_LETTER_FILE";
    elsewhere.show("").assert("dead_letter_file", "\"dead.jsonl\"", variable);
    let off = workspace(&with_webhooks).env("PUSHERD_WEBHOOKS_DEAD_LETTER_FILE=(empty)");
    off.show("").assert("dead_letter_file", "\"\"", variable);
    // Without webhooks there are no dead letters.
    workspace(APP).show("").assert("dead_letter_file", "\"\"", "default");
}

#[test]
fn a_dead_letter_file_must_be_a_regular_file() {
    let workspace = Workspace::new();
    let at = |name: &str| workspace.directory.path().join(name);
    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    fs::create_dir(at("folder")).unwrap();
    let ask = |file: &str| {
        let text = format!(
            "[webhooks]\ndead_letter_file = '{file}'\n{APP}webhooks = [{{ url = 'http://app.test/' }}]\n"
        );
        fs::create_dir_all(at("config")).unwrap();
        fs::write(at("config/pusherd.toml"), text).unwrap();
        workspace.problem("")
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
fn invalid_webhooks_are_rejected_without_repeating_secrets() {
    let workspace = Workspace::new()
        .env("PUSHERD_APP_WEBHOOKS=[{\"url\":\"http://x/?hunter2\",\"headers\":{\"Host\":\"hunter2\"}}]");
    assert_eq!(
        workspace.problem(""),
        "environment: PUSHERD_APP_WEBHOOKS: [0].headers.Host: is a header that pusherd sets itself"
    );
    let workspace = Workspace::new().env("PUSHERD_APP_WEBHOOKS=[{\"url\":\"hunter2\"");
    assert_eq!(
        workspace.problem(""),
        "environment: PUSHERD_APP_WEBHOOKS: must be a list as JSON, and is not at line 1, column 17"
    );
    let workspace = Workspace::new().file("config/pusherd.toml", format!("{APP}webhooks = 'http://x'\n"));
    assert_eq!(workspace.problem(""), "config/pusherd.toml: apps[0].webhooks: must be a list");
    let workspace = Workspace::new()
        .file("config/pusherd.toml", format!("{APP}[[apps.webhooks]]\nurl = 'http://169.254.1.1'\n"));
    assert_eq!(
        workspace.problem(""),
        "config/pusherd.toml: apps[0].webhooks: [0].url: 169.254.1.1 is link-local: webhooks are not sent there unless \
         webhooks.allowed_addresses contains it"
    );
}
