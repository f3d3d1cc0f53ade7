//! The choice of credentials, with typical `.env` files.

use crate::config::Settings;
use crate::config::tests::settings;

/// The credentials of a family, one a line.
fn credentials(prefix: &str, id: &str) -> String {
    format!("{prefix}ID={id}\n{prefix}KEY={id}-key\n{prefix}SECRET={id}-secret\n")
}

fn load(dotenv: &str) -> Settings {
    settings("", dotenv, &[]).unwrap()
}

fn app(dotenv: &str) -> String {
    let settings = load(dotenv);
    assert_eq!(settings.apps.len(), 1, "{dotenv}");
    format!("{} {}", settings.apps[0].id, settings.apps[0].keys[0].key)
}

fn warnings(settings: &Settings) -> String {
    settings.warnings.iter().map(|warning| format!("{warning}\n")).collect()
}

fn problems(dotenv: &str) -> Vec<String> {
    settings("", dotenv, &[]).unwrap_err()
}

#[test]
fn the_driver_chooses_between_complete_families() {
    let both = credentials("PUSHER_APP_", "p") + &credentials("REVERB_APP_", "r");
    for (driver, id) in [
        ("BROADCAST_CONNECTION=reverb", "r r-key"),
        ("BROADCAST_CONNECTION=pusher", "p p-key"),
        ("BROADCAST_DRIVER=reverb", "r r-key"),
        ("BROADCAST_CONNECTION=reverb\nBROADCAST_DRIVER=pusher", "r r-key"),
        ("BROADCAST_CONNECTION=\nBROADCAST_DRIVER=reverb", "r r-key"),
        ("BROADCAST_CONNECTION=soketi", "p p-key"),
        ("", "p p-key"),
    ] {
        assert_eq!(app(&format!("{driver}\n{both}")), id, "{driver}");
    }
    let own = credentials("PUSHERD_APP_", "o");
    assert_eq!(app(&format!("BROADCAST_CONNECTION=reverb\n{both}{own}")), "o o-key");
    let blank = "PUSHER_APP_ID=\nPUSHER_APP_KEY=\nPUSHER_APP_SECRET=\n";
    assert_eq!(
        app(&format!("BROADCAST_CONNECTION=pusher\n{blank}{}", credentials("REVERB_APP_", "r"))),
        "r r-key"
    );
}

#[test]
fn unused_families_are_reported_with_the_reason() {
    let both = credentials("PUSHER_APP_", "p") + &credentials("REVERB_APP_", "r");
    let table = [
        (
            "BROADCAST_CONNECTION=reverb\n",
            ".env: PUSHER_APP_KEY: PUSHER_APP_… is not used: the app of REVERB_APP_… is served, as \
             BROADCAST_CONNECTION is reverb\n",
        ),
        (
            "",
            ".env: REVERB_APP_KEY: REVERB_APP_… is not used: the app of PUSHER_APP_… is served, as it comes first; \
             BROADCAST_CONNECTION=reverb or =pusher chooses\n",
        ),
    ];
    for (driver, expected) in table {
        let settings = load(&format!("{driver}{both}PUSHER_HOST=ws.test\nREVERB_HOST=ws.test\n"));
        assert_eq!(warnings(&settings), expected);
        assert!(settings.show().to_string().contains(&format!("\n# warning: {}", expected.trim())));
    }
    let own = load(&format!("BROADCAST_CONNECTION=reverb\n{}{both}", credentials("PUSHERD_APP_", "o")));
    assert!(
        warnings(&own)
            .contains("REVERB_APP_… is not used: the app of PUSHERD_APP_… is served, as it overrides")
    );
    // The same app in two families causes no warning.
    let same =
        credentials("PUSHER_APP_", "p") + &credentials("SOKETI_DEFAULT_APP_", "p") + "PUSHER_HOST=ws.test\n";
    assert_eq!(warnings(&load(&same)), "");
    let other_secret = same.replace("SOKETI_DEFAULT_APP_SECRET=p", "SOKETI_DEFAULT_APP_SECRET=x");
    assert!(warnings(&load(&other_secret)).contains("SOKETI_DEFAULT_APP_… is not used"));
    assert!(!warnings(&load(&other_secret)).contains("p-secret"));
}

#[test]
fn a_complete_family_is_preferred_to_an_incomplete_one() {
    let reverb = credentials("REVERB_APP_", "r") + "REVERB_HOST=ws.test\n";
    for (incomplete, reason) in [
        (
            "PUSHER_APP_KEY=xyz\n",
            "PUSHER_APP_KEY: is not used, as it needs PUSHER_APP_ID and PUSHER_APP_SECRET",
        ),
        (
            "PUSHER_APP_ID=5\nPUSHER_APP_KEY=\nPUSHER_APP_SECRET=\n",
            "needs PUSHER_APP_KEY and PUSHER_APP_SECRET",
        ),
        ("PUSHER_KEY=xyz\n", "PUSHER_KEY: is not used, as it needs PUSHER_ID and PUSHER_SECRET beside it"),
        ("PUSHER_URL=https://api.pusherapp.com\n", "PUSHER_URL: is not used, as it must be a URL such as"),
    ] {
        for driver in ["", "BROADCAST_CONNECTION=reverb\n", "BROADCAST_CONNECTION=pusher\n"] {
            let dotenv = format!("{driver}{incomplete}{reverb}");
            assert_eq!(app(&dotenv), "r r-key", "{dotenv}");
            let warnings = warnings(&load(&dotenv));
            assert!(warnings.contains(reason) && warnings.contains("REVERB_APP_… is served"), "{warnings}");
            assert!(!warnings.contains("pusher.com"), "{warnings}");
        }
    }
    // The apps of a file count as complete.
    let file = "[[apps]]\nid = '1'\nkey = 'k'\nsecret = 'long enough'\n";
    let settings = settings(file, "PUSHER_APP_KEY=xyz\n", &[]).unwrap();
    assert_eq!(&*settings.apps[0].id.0, "1");
    assert!(warnings(&settings).contains("PUSHER_APP_KEY: is not used"), "{}", warnings(&settings));
}

#[test]
fn without_a_complete_family_the_error_names_the_driver() {
    let needs =
        ".env: PUSHER_APP_KEY: needs PUSHER_APP_ID and PUSHER_APP_SECRET beside it, which are not set";
    assert_eq!(problems("PUSHER_APP_KEY=xyz\n"), [needs]);
    assert_eq!(
        problems("BROADCAST_CONNECTION=reverb\nPUSHER_APP_KEY=xyz\n"),
        [format!(
            "{needs}; BROADCAST_CONNECTION is reverb, so set REVERB_APP_ID, REVERB_APP_KEY and REVERB_APP_SECRET"
        )]
    );
    assert_eq!(
        problems("BROADCAST_CONNECTION=reverb\nPUSHER_APP_KEY=xyz\nREVERB_APP_KEY=r\nREVERB_APP_ID=1\n"),
        [".env: REVERB_APP_ID: needs REVERB_APP_SECRET beside it, which is not set"]
    );
    let unused = load(&format!(
        "BROADCAST_CONNECTION=reverb\nPUSHER_HOST=ws.test\n{}",
        credentials("PUSHER_APP_", "p")
    ));
    assert_eq!(
        warnings(&unused),
        ".env: BROADCAST_CONNECTION: is reverb, and REVERB_APP_ID, REVERB_APP_KEY and REVERB_APP_SECRET are not set; \
         the app of PUSHER_APP_… is served\n"
    );
    // pusherd's own variables always count.
    let own = format!("PUSHERD_APP_SECRET=s\n{}", credentials("REVERB_APP_", "r"));
    assert_eq!(
        problems(&own),
        [".env: PUSHERD_APP_SECRET: needs PUSHERD_APP_ID and PUSHERD_APP_KEY beside it, which are not set"]
    );
    let empty = settings("apps = []\n", "PUSHER_APP_KEY=xyz\n", &[]).unwrap_err();
    assert_eq!(empty, [needs], "an empty list of apps counts as none");
}

#[test]
fn variables_of_older_versions_are_read() {
    for (dotenv, expected) in [
        ("PUSHER_URL=http://k:hunter22@ws.test/apps/42\n", "42 k"),
        ("PUSHER_ID=42\nPUSHER_KEY=k\nPUSHER_SECRET=hunter22\n", "42 k"),
        ("PUSHER_APP_ID=42\nPUSHER_KEY=k\nPUSHER_SECRET=hunter22\n", "42 k"),
        ("DEFAULT_APP_ID=42\nDEFAULT_APP_KEY=k\nDEFAULT_APP_SECRET=hunter22\n", "42 k"),
    ] {
        assert_eq!(app(dotenv), expected, "{dotenv}");
        let settings = load(&format!("BROADCAST_CONNECTION=pusher\nPUSHER_HOST=ws.test\n{dotenv}"));
        assert_eq!(warnings(&settings), "", "{dotenv}");
        assert_eq!(&*settings.server.host, "0.0.0.0", "{dotenv}");
    }
    assert_eq!(
        problems("PUSHER_URL=http://k%3a:hunter22@ws.test/apps/42\n"),
        [".env: PUSHER_URL: must not contain a colon, which ends the key in a signature"]
    );
}

#[test]
fn a_driver_that_publishes_nothing_causes_a_warning() {
    for driver in ["log", "null", "(null)", "redis", "ably", "\"log\""] {
        let settings = load(&format!("BROADCAST_CONNECTION={driver}\n"));
        let driver = driver.trim_matches(['"', '(', ')']);
        let text = format!(
            ".env: BROADCAST_CONNECTION: is {driver}: with this driver Laravel publishes nothing to pusherd; set \
             BROADCAST_CONNECTION to reverb or pusher\n"
        );
        assert_eq!(warnings(&settings), text);
    }
    for dotenv in ["", "BROADCAST_DRIVER=pusher\n", "BROADCAST_CONNECTION=\n", "BROADCAST_CONNECTION=mine\n"]
    {
        assert_eq!(warnings(&load(dotenv)), "", "{dotenv}");
    }
}

#[test]
fn the_default_port_is_that_of_the_replaced_server() {
    let reverb = credentials("REVERB_APP_", "r");
    let table = [
        (reverb.clone(), "", 8080),
        (format!("BROADCAST_CONNECTION=reverb\n{}", credentials("PUSHERD_APP_", "o")), "", 8080),
        (format!("BROADCAST_CONNECTION=pusher\n{reverb}{}", credentials("PUSHER_APP_", "p")), "", 6001),
        (credentials("PUSHER_APP_", "p"), "", 6001),
        (String::new(), "", 6001),
        (format!("{reverb}REVERB_SERVER_PORT=9000\n"), "", 9000),
        (format!("{reverb}REVERB_SERVER_PORT=9000\nREVERB_PORT=443\n"), "5000", 9000),
        (reverb.clone(), "5000", 5000),
        (String::new(), "5000", 5000),
        (reverb.clone(), "tcp://10.0.0.1:80", 8080),
        (String::new(), "0", 6001),
        // In a .env file, PORT belongs to another program.
        ("PORT=3000\n".to_owned(), "", 6001),
    ];
    for (dotenv, port, expected) in table {
        let settings = settings("", &dotenv, &[("PORT", port)]).unwrap();
        assert_eq!(settings.server.port, expected, "{dotenv} {port}");
    }
    let shown = load(&reverb).show().to_string();
    let line = shown.lines().find(|line| line.starts_with("port = 8080 ")).unwrap();
    assert!(line.ends_with(" # default; Reverb's, as its variables are in use"), "{line}");
    let file = settings("server.port = 7000\n", "", &[("PORT", "5000")]).unwrap();
    assert_eq!(file.server.port, 7000, "the file overrides the port of the platform");
}
