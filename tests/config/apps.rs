//! Apps and their credentials.

use super::*;

#[test]
fn secrets_are_read_from_files() {
    let file = "[[apps]]\nid = \"1\"\nkey = \"a\"\nsecret_file = \"secrets/a\"\n\
                [[apps]]\nid = \"2\"\nkeys = [{ key = \"b\", secret_file = \"secrets/b\" }]\n";
    let workspace = Workspace::new()
        .file("config/pusherd.toml", file)
        .file("config/secrets/a", "secret-a\n")
        .file("config/secrets/b", "secret-b")
        .file("secret-c", "secret-c\r\n")
        .env("PUSHER_APP_ID=3\nPUSHER_APP_KEY=c\nPUSHER_APP_SECRET_FILE=secret-c\n");
    let shown = workspace.show("");
    assert_eq!(shown.apps(), 3);
    shown.assert("secret", "\"***\"", "environment: PUSHER_APP_SECRET_FILE");
    let workspace = workspace.file("config/secrets/b", "\n").env("PUSHER_APP_SECRET=secret-c\n");
    fs::remove_file(workspace.directory.path().join("config/secrets/a")).unwrap();
    assert_eq!(
        workspace.problems(""),
        [
            "environment: PUSHER_APP_SECRET: contradicts PUSHER_APP_SECRET_FILE: one of the two",
            "config/pusherd.toml: apps[0].secret: config/secrets/a does not exist",
            "config/pusherd.toml: apps[1].keys[0].secret: is empty",
        ]
    );
}

#[test]
fn variables_replace_the_keys_of_an_app_in_the_file_or_add_an_app() {
    let workspace = Workspace::new().file("config/pusherd.toml", format!("{APP}watchlist = false\n"));
    let same = workspace.env(&credentials("PUSHERD_APP", "1"));
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
fn variables_of_an_app_apply_to_the_only_app() {
    for workspace in [Workspace::new(), Workspace::new().file("config/pusherd.toml", APP)] {
        let shown = workspace.env("PUSHERD_APP_LIMITS_CONNECTIONS=5\nREVERB_SERVER_PATH=rt\n").show("");
        shown.assert("connections", "5", "environment: PUSHERD_APP_LIMITS_CONNECTIONS");
        shown.assert("path_prefix", "\"/rt\"", "environment: REVERB_SERVER_PATH");
    }
}

#[test]
fn contradicting_apps_are_rejected() {
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
        let workspace = Workspace::new().file("config/pusherd.toml", format!("{APP}[[apps]]\n{app}\n"));
        assert_eq!(workspace.problem(""), format!("config/pusherd.toml: {expected}"), "{app}");
    }
    for (file, expected) in [
        ("apps = 5", "apps: must be a list of tables: begin each app with [[apps]]"),
        ("[apps]\nid = \"1\"", "apps: must be a list of tables: begin each app with [[apps]]"),
        ("apps = [5]", "apps[0]: must be a table"),
        ("server = 5", "server: must be a table"),
        ("port = 7001", "port: is not a setting; did you mean server.port?"),
    ] {
        let workspace = Workspace::new().file("config/pusherd.toml", file);
        assert_eq!(workspace.problem(""), format!("config/pusherd.toml: {expected}"), "{file}");
    }
}
