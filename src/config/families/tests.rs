//! Which credentials count, from `.env` files as they are found.

use crate::config::Settings;
use crate::config::tests::settings;

/// The credentials of a family, one a line.
fn whole(prefix: &str, id: &str) -> String {
    format!("{prefix}ID={id}\n{prefix}KEY={id}-key\n{prefix}SECRET={id}-secret\n")
}

fn of(dotenv: &str) -> Settings {
    settings("", dotenv, &[]).unwrap()
}

fn app(dotenv: &str) -> String {
    let settings = of(dotenv);
    assert_eq!(settings.apps.len(), 1, "{dotenv}");
    format!("{} {}", settings.apps[0].id, settings.apps[0].keys[0].key)
}

fn remarks(settings: &Settings) -> String {
    settings.advice.iter().map(|advice| format!("{advice}\n")).collect()
}

fn problems(dotenv: &str) -> Vec<String> {
    settings("", dotenv, &[]).unwrap_err()
}

#[test]
fn the_driver_chooses_among_families_that_are_whole() {
    let both = whole("PUSHER_APP_", "p") + &whole("REVERB_APP_", "r");
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
    let own = whole("PUSHERD_APP_", "o");
    assert_eq!(app(&format!("BROADCAST_CONNECTION=reverb\n{both}{own}")), "o o-key");
    let blank = "PUSHER_APP_ID=\nPUSHER_APP_KEY=\nPUSHER_APP_SECRET=\n";
    assert_eq!(app(&format!("BROADCAST_CONNECTION=pusher\n{blank}{}", whole("REVERB_APP_", "r"))), "r r-key");
}

#[test]
fn what_is_left_and_why_is_said() {
    let both = whole("PUSHER_APP_", "p") + &whole("REVERB_APP_", "r");
    let table = [
        (
            "BROADCAST_CONNECTION=reverb\n",
            ".env: PUSHER_APP_KEY: PUSHER_APP_… is left: the app of REVERB_APP_… is served, as \
             BROADCAST_CONNECTION is reverb\n",
        ),
        (
            "",
            ".env: REVERB_APP_KEY: REVERB_APP_… is left: the app of PUSHER_APP_… is served, as it goes first; \
             BROADCAST_CONNECTION=reverb or =pusher would choose\n",
        ),
    ];
    for (driver, expected) in table {
        let settings = of(&format!("{driver}{both}PUSHER_HOST=ws.test\nREVERB_HOST=ws.test\n"));
        assert_eq!(remarks(&settings), expected);
        assert!(settings.show().to_string().contains(&format!("\n# remark: {}", expected.trim())));
    }
    let own = of(&format!("BROADCAST_CONNECTION=reverb\n{}{both}", whole("PUSHERD_APP_", "o")));
    assert!(
        remarks(&own).contains("REVERB_APP_… is left: the app of PUSHERD_APP_… is served, as it goes above")
    );
    // The same app under two names is no contradiction.
    let same = whole("PUSHER_APP_", "p") + &whole("SOKETI_DEFAULT_APP_", "p") + "PUSHER_HOST=ws.test\n";
    assert_eq!(remarks(&of(&same)), "");
    let other_secret = same.replace("SOKETI_DEFAULT_APP_SECRET=p", "SOKETI_DEFAULT_APP_SECRET=x");
    assert!(remarks(&of(&other_secret)).contains("SOKETI_DEFAULT_APP_… is left"));
    assert!(!remarks(&of(&other_secret)).contains("p-secret"));
}

#[test]
fn a_family_that_lacks_something_yields_to_one_that_is_whole() {
    let reverb = whole("REVERB_APP_", "r") + "REVERB_HOST=ws.test\n";
    for (left, lacks) in [
        ("PUSHER_APP_KEY=xyz\n", "PUSHER_APP_KEY: is left, as it needs PUSHER_APP_ID and PUSHER_APP_SECRET"),
        (
            "PUSHER_APP_ID=5\nPUSHER_APP_KEY=\nPUSHER_APP_SECRET=\n",
            "needs PUSHER_APP_KEY and PUSHER_APP_SECRET",
        ),
        ("PUSHER_KEY=xyz\n", "PUSHER_KEY: is left, as it needs PUSHER_ID and PUSHER_SECRET beside it"),
        ("PUSHER_URL=https://api.pusherapp.com\n", "PUSHER_URL: is left, as it must be a URL such as"),
    ] {
        for driver in ["", "BROADCAST_CONNECTION=reverb\n", "BROADCAST_CONNECTION=pusher\n"] {
            let dotenv = format!("{driver}{left}{reverb}");
            assert_eq!(app(&dotenv), "r r-key", "{dotenv}");
            let remarks = remarks(&of(&dotenv));
            assert!(remarks.contains(lacks) && remarks.contains("REVERB_APP_… is served"), "{remarks}");
            assert!(!remarks.contains("pusher.com"), "{remarks}");
        }
    }
    // The apps of a file are whole as well.
    let file = "[[apps]]\nid = '1'\nkey = 'k'\nsecret = 'long enough'\n";
    let settings = settings(file, "PUSHER_APP_KEY=xyz\n", &[]).unwrap();
    assert_eq!(&*settings.apps[0].id.0, "1");
    assert!(remarks(&settings).contains("PUSHER_APP_KEY: is left"), "{}", remarks(&settings));
}

#[test]
fn where_no_family_is_whole_the_error_speaks_of_the_driver_in_use() {
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
    let unused =
        of(&format!("BROADCAST_CONNECTION=reverb\nPUSHER_HOST=ws.test\n{}", whole("PUSHER_APP_", "p")));
    assert_eq!(
        remarks(&unused),
        ".env: BROADCAST_CONNECTION: is reverb, and REVERB_APP_ID, REVERB_APP_KEY and REVERB_APP_SECRET are not set; \
         the app of PUSHER_APP_… is served\n"
    );
    // What is pusherd's own was meant for it.
    let own = format!("PUSHERD_APP_SECRET=s\n{}", whole("REVERB_APP_", "r"));
    assert_eq!(
        problems(&own),
        [".env: PUSHERD_APP_SECRET: needs PUSHERD_APP_ID and PUSHERD_APP_KEY beside it, which are not set"]
    );
    let empty = settings("apps = []\n", "PUSHER_APP_KEY=xyz\n", &[]).unwrap_err();
    assert_eq!(empty, [needs], "a list without an app is none");
}

#[test]
fn older_names_are_read() {
    for (dotenv, expected) in [
        ("PUSHER_URL=http://k:hunter22@ws.test/apps/42\n", "42 k"),
        ("PUSHER_ID=42\nPUSHER_KEY=k\nPUSHER_SECRET=hunter22\n", "42 k"),
        ("PUSHER_APP_ID=42\nPUSHER_KEY=k\nPUSHER_SECRET=hunter22\n", "42 k"),
        ("DEFAULT_APP_ID=42\nDEFAULT_APP_KEY=k\nDEFAULT_APP_SECRET=hunter22\n", "42 k"),
    ] {
        assert_eq!(app(dotenv), expected, "{dotenv}");
        let settings = of(&format!("BROADCAST_CONNECTION=pusher\nPUSHER_HOST=ws.test\n{dotenv}"));
        assert_eq!(remarks(&settings), "", "{dotenv}");
        assert_eq!(&*settings.server.host, "0.0.0.0", "{dotenv}");
    }
    assert_eq!(
        problems("PUSHER_URL=http://k%3a:hunter22@ws.test/apps/42\n"),
        [".env: PUSHER_URL: must not contain a colon, which ends the key in a signature"]
    );
}

#[test]
fn a_driver_that_sends_nothing_is_remarked_upon() {
    for driver in ["log", "null", "(null)", "redis", "ably", "\"log\""] {
        let settings = of(&format!("BROADCAST_CONNECTION={driver}\n"));
        let driver = driver.trim_matches(['"', '(', ')']);
        let text = format!(
            ".env: BROADCAST_CONNECTION: is {driver}: with this driver Laravel sends nothing to pusherd; set \
             BROADCAST_CONNECTION to reverb or pusher\n"
        );
        assert_eq!(remarks(&settings), text);
    }
    for dotenv in ["", "BROADCAST_DRIVER=pusher\n", "BROADCAST_CONNECTION=\n", "BROADCAST_CONNECTION=mine\n"]
    {
        assert_eq!(remarks(&of(dotenv)), "", "{dotenv}");
    }
}

#[test]
fn the_default_port_is_that_of_the_server_that_is_replaced() {
    let reverb = whole("REVERB_APP_", "r");
    let table = [
        (reverb.clone(), "", 8080),
        (format!("BROADCAST_CONNECTION=reverb\n{}", whole("PUSHERD_APP_", "o")), "", 8080),
        (format!("BROADCAST_CONNECTION=pusher\n{reverb}{}", whole("PUSHER_APP_", "p")), "", 6001),
        (whole("PUSHER_APP_", "p"), "", 6001),
        (String::new(), "", 6001),
        (format!("{reverb}REVERB_SERVER_PORT=9000\n"), "", 9000),
        (format!("{reverb}REVERB_SERVER_PORT=9000\nREVERB_PORT=443\n"), "5000", 9000),
        (reverb.clone(), "5000", 5000),
        (String::new(), "5000", 5000),
        (reverb.clone(), "tcp://10.0.0.1:80", 8080),
        (String::new(), "0", 6001),
        // Another program's, as there may be one in the same folder.
        ("PORT=3000\n".to_owned(), "", 6001),
    ];
    for (dotenv, port, expected) in table {
        let settings = settings("", &dotenv, &[("PORT", port)]).unwrap();
        assert_eq!(settings.server.port, expected, "{dotenv} {port}");
    }
    let shown = of(&reverb).show().to_string();
    let line = shown.lines().find(|line| line.starts_with("port = 8080 ")).unwrap();
    assert!(line.ends_with(" # default; Reverb's, as its variables are in use"), "{line}");
    let file = settings("server.port = 7000\n", "", &[("PORT", "5000")]).unwrap();
    assert_eq!(file.server.port, 7000, "a platform's port is below the file");
}
