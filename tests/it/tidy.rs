//! The module map is a test: a room uses only the rooms that the table names.

use std::fs;
use std::path::{Path, PathBuf};

/// Each room, and the rooms it may use. Two rooms of the library's own root, `main` and `lib`, hold no rules.
const MAP: [(&str, &[&str]); 20] = [
    ("protocol", &[]),
    ("limits", &[]),
    ("rejections", &["protocol", "limits"]),
    ("machine", &[]),
    ("bounded_file", &[]),
    ("pem", &[]),
    ("addresses", &["limits"]),
    ("apps", &["protocol", "limits", "rejections"]),
    ("session", &["protocol", "limits", "rejections", "apps"]),
    ("outbox", &["protocol", "limits"]),
    ("metrics", &["rejections"]),
    ("webhooks", &["protocol", "metrics", "apps"]),
    ("cluster", &["bounded_file", "pem", "protocol", "metrics", "limits"]),
    ("registry", &["protocol", "limits", "outbox"]),
    (
        "hub",
        &["protocol", "limits", "rejections", "apps", "outbox", "metrics", "webhooks", "cluster", "registry"],
    ),
    ("http", &["hub", "addresses", "apps", "protocol", "limits", "rejections", "metrics", "machine"]),
    (
        "pusher",
        &[
            "hub",
            "addresses",
            "apps",
            "protocol",
            "limits",
            "rejections",
            "metrics",
            "session",
            "outbox",
            "machine",
        ],
    ),
    (
        "config",
        &[
            "bounded_file",
            "addresses",
            "apps",
            "limits",
            "protocol",
            "pusher",
            "http",
            "server",
            "webhooks",
            "cluster",
        ],
    ),
    (
        "server",
        &[
            "addresses",
            "apps",
            "bounded_file",
            "cluster",
            "http",
            "hub",
            "limits",
            "machine",
            "metrics",
            "outbox",
            "pem",
            "protocol",
            "pusher",
            "rejections",
            "webhooks",
        ],
    ),
    ("cli", &["config", "server", "apps", "cluster", "http", "pusher", "protocol", "limits", "webhooks"]),
];

/// What the pure rooms must not touch.
const IMPURE: [&str; 7] =
    ["tokio::", "std::net", "std::fs", "std::env", "Instant::now", "SystemTime", "getrandom::"];

fn files_of(room: &str) -> Vec<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![source.join(room)];
    if source.join(format!("{room}.rs")).exists() {
        files.push(source.join(format!("{room}.rs")));
    }
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The code of a file without comments and without its unit tests.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The rooms that a text names with `crate::`, groups (`crate::{a, b}`) included.
fn rooms_named(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let word =
            |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut item) = (0, String::new());
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => rooms.push(word(std::mem::take(&mut item).trim())),
                    c if depth == 0 => item.push(c),
                    _ => {}
                }
            }
            rooms.push(word(item.trim()));
        } else {
            rooms.push(word(rest));
        }
    }
    rooms.retain(|room| !room.is_empty());
    rooms
}

#[test]
fn a_room_uses_only_the_rooms_that_the_map_allows() {
    let mut wrong = Vec::new();
    for (room, allowed) in MAP {
        let files = files_of(room);
        assert!(!files.is_empty(), "there is no room {room}");
        for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
            for used in rooms_named(&code_of(file)) {
                if used != room && !allowed.contains(&used.as_str()) {
                    wrong.push(format!("{} uses {used}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_room_is_on_the_map() {
    let library = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let rooms = library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let mut rooms: Vec<_> = rooms.collect();
    let mut mapped: Vec<_> = MAP.iter().map(|(room, _)| *room).collect();
    rooms.sort_unstable();
    mapped.sort_unstable();
    assert_eq!(rooms, mapped);
}

#[test]
fn the_pure_rooms_have_no_clock_no_randomness_and_no_system() {
    for room in ["protocol", "limits", "session"] {
        for file in files_of(room) {
            let code = code_of(&file);
            for impure in IMPURE {
                assert!(!code.contains(impure), "{} names {impure}", file.display());
            }
        }
    }
}

/// The wall clock jumps, so that only what is about the time of day may look at it: everything else counts from when
/// the server started.
#[test]
fn the_wall_clock_is_read_for_signatures_and_webhooks_only() {
    for (room, _) in MAP {
        for file in files_of(room) {
            // Others that need the date ask `http::unix_now`.
            let may = file.ends_with("http/mod.rs") || file.ends_with("webhooks/mod.rs");
            assert!(may || !code_of(&file).contains("SystemTime"), "{}", file.display());
        }
    }
}

/// Log lines are sentences with fields for people: no output of `Debug`, which changes with the code and is Rust's.
#[test]
fn nothing_is_logged_as_rust_shows_it_to_itself() {
    let files: Vec<_> = MAP.iter().flat_map(|(room, _)| files_of(room)).collect();
    for file in files.iter().chain(&[Path::new(env!("CARGO_MANIFEST_DIR")).join("src/main.rs")]) {
        for call in log_calls(&code_of(file)) {
            assert!(!logs_debug(call), "{}: {call}", file.display());
        }
    }
    for wrong in [
        "(?error, \"x\")",
        "(app, window = ?window, \"x\")",
        "(\n    ?closing,\n)",
        "(\"a {x:?}\")",
        "(\"{:#?}\", x)",
    ] {
        assert!(logs_debug(log_calls(&format!("debug!{wrong};"))[0]), "{wrong}");
    }
    for right in ["(%error, \"is it there?\")", "(app = app.id()?, \"x\")", "(\"{x} and {}\", y?)"] {
        assert!(!logs_debug(log_calls(&format!("tracing::warn!{right};"))[0]), "{right}");
    }
}

/// What stands in the brackets of the macros that log.
fn log_calls(code: &str) -> Vec<&str> {
    let macros = ["trace!(", "debug!(", "info!(", "warn!(", "error!(", "event!(", "span!("];
    let calls =
        macros.iter().flat_map(|name| code.match_indices(name).map(|(at, name)| &code[at + name.len()..]));
    let close = |call: &str| {
        let mut depth = 1;
        call.find(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0
        })
    };
    calls.map(|call| &call[..close(call).unwrap_or(call.len())]).collect()
}

/// Whether a field is given with `?`, or a text formatted with it.
fn logs_debug(call: &str) -> bool {
    let fields = call.split([',', '=']).map(str::trim_start).map(|field| field.trim_start_matches('('));
    fields.into_iter().any(|field| field.starts_with('?')) || call.contains(":?}") || call.contains(":#?}")
}

#[test]
fn tls_is_named_where_connections_begin_where_they_are_written_and_where_others_are_asked() {
    for (room, _) in MAP {
        for file in files_of(room) {
            let code = code_of(&file);
            let named = code.contains("rustls::") || code.contains("tokio_rustls");
            assert!(
                !named || ["server", "outbox", "webhooks", "cli", "cluster"].contains(&room),
                "{}",
                file.display()
            );
        }
    }
}

#[test]
fn nothing_waits_in_the_registry() {
    for file in files_of("registry") {
        assert!(!code_of(&file).contains(".await"), "{}", file.display());
    }
}

#[test]
fn groups_of_rooms_are_seen() {
    let code = "use crate::{apps::{App, Apps}, hub, protocol::X};\nlet x = crate::session::y();";
    assert_eq!(rooms_named(code), ["apps", "hub", "protocol", "session"]);
}

#[test]
fn the_image_has_a_stand_in_for_every_benchmark() {
    let read = |name| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let (manifest, dockerfile) = (read("Cargo.toml"), read("Dockerfile"));
    let benches: Vec<_> =
        manifest.split("[[bench]]").skip(1).map(|rest| rest.split('"').nth(1).unwrap()).collect();
    assert!(!benches.is_empty());
    let stand_ins = dockerfile.lines().find_map(|line| line.split_once("for bench in ")).unwrap().1;
    for bench in benches {
        assert!(stand_ins.split([' ', ';']).any(|name| name == bench), "Dockerfile: no {bench}");
    }
}
