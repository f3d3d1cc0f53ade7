//! The module map is a test: a module uses only the modules that its row of the map in `src/lib.rs` names.

use std::fs;
use std::path::{Path, PathBuf};

/// A row of the map: a module, and the modules it may use.
#[derive(Debug)]
struct Row {
    module: String,
    may_use: Vec<String>,
}

/// The map, as the crate docs have it. `main` and `lib` hold no rules.
fn map() -> Vec<Row> {
    let library = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    map_of(&library)
}

/// The rows of the table under `# The map`: `//! | [`module`] | what it is for | a, b |`.
fn map_of(docs: &str) -> Vec<Row> {
    let docs = docs.lines().skip_while(|line| *line != "//! # The map").skip(1);
    let docs = docs.take_while(|line| !line.starts_with("//! # "));
    let rows = docs.filter_map(|line| line.strip_prefix("//! | [`")?.strip_suffix(" |"));
    let row = |row: &str| {
        let (module, rest) = row.split_once("`] | ").unwrap();
        let (_, may_use) = rest.rsplit_once(" | ").unwrap();
        let may_use = may_use.split(", ").filter(|name| *name != "nothing").map(str::to_owned).collect();
        Row { module: module.to_owned(), may_use }
    };
    rows.map(row).collect()
}

/// What the pure modules must not touch.
const IMPURE: [&str; 7] =
    ["tokio::", "std::net", "std::fs", "std::env", "Instant::now", "SystemTime", "getrandom::"];

fn files_of(module: &str) -> Vec<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![source.join(module)];
    if source.join(format!("{module}.rs")).exists() {
        files.push(source.join(format!("{module}.rs")));
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
    let text = without_tests(&fs::read_to_string(file).unwrap());
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// A file without the items under `#[cfg(test)]`, wherever they stand. It is formatted: a block ends with a brace that is
/// indented as its attribute is.
fn without_tests(text: &str) -> String {
    let mut parts = text.split("#[cfg(test)]\n");
    let mut code = parts.next().unwrap().to_owned();
    for part in parts {
        let indent = &code[code.rfind('\n').map_or(0, |at| at + 1)..];
        let item = part.lines().find(|line| !line.trim_start().starts_with("#[")).unwrap_or_default();
        let end = if item.ends_with('}') || item.ends_with(';') || item.ends_with(',') {
            format!("{item}\n")
        } else {
            format!("\n{indent}}}\n")
        };
        let rest = part.split_once(&end).map_or("", |(_, rest)| rest);
        code.push_str(rest);
    }
    code
}

#[test]
fn only_the_items_under_cfg_test_are_left_out_of_the_code() {
    let text = "mod a;\n#[cfg(test)]\nmod tests;\nuse crate::b;\n\nimpl C {\n    #[cfg(test)]\n    #[must_use]\n    fn d() {\n        \
                1;\n    }\n    fn e() {}\n}\n\n#[cfg(test)]\nmod more {\n    use crate::f;\n}\nfn g() {}\n";
    assert_eq!(without_tests(text), "mod a;\nuse crate::b;\n\nimpl C {\n        fn e() {}\n}\n\nfn g() {}\n");
}

/// The modules that a text names with `crate::`, groups (`crate::{a, b}`) included.
fn modules_named(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
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
                    ',' if depth == 0 => modules.push(word(std::mem::take(&mut item).trim())),
                    c if depth == 0 => item.push(c),
                    _ => {}
                }
            }
            modules.push(word(item.trim()));
        } else {
            modules.push(word(rest));
        }
    }
    modules.retain(|module| !module.is_empty());
    modules
}

#[test]
fn a_module_uses_only_the_modules_that_the_map_allows() {
    let mut wrong = Vec::new();
    for Row { module, may_use } in map() {
        let files = files_of(&module);
        assert!(!files.is_empty(), "there is no module {module}");
        for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
            for used in modules_named(&code_of(file)) {
                if used != module && !may_use.contains(&used) {
                    wrong.push(format!("{} uses {used}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_is_on_the_map_below_all_that_it_may_use() {
    let library = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let declared = library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let mut declared: Vec<_> = declared.collect();
    let map = map();
    let mut mapped: Vec<_> = map.iter().map(|row| row.module.as_str()).collect();
    for (at, Row { module, may_use }) in map.iter().enumerate() {
        for used in may_use {
            assert!(mapped[..at].contains(&used.as_str()), "{module} may use {used}, which is not above it");
        }
    }
    declared.sort_unstable();
    mapped.sort_unstable();
    assert_eq!(declared, mapped);
}

#[test]
fn the_map_is_read_from_the_table_of_the_crate_docs() {
    let docs = "//! | [`no`] | of another table | a |\n//! # The map\n//!\n//! | module | what | may use |\n\
                //! | --- | --- | --- |\n//! | [`a`] | x | nothing |\n//! | [`b`] | y, `z` | c, a |\n//! # Next\n\
                //! | [`no`] | of another table | a |";
    let rows: Vec<_> = map_of(docs).into_iter().map(|row| (row.module, row.may_use)).collect();
    assert_eq!(rows, [("a".to_owned(), vec![]), ("b".to_owned(), vec!["c".to_owned(), "a".to_owned()])]);
}

#[test]
fn the_pure_modules_have_no_clock_no_randomness_and_no_system() {
    for module in ["protocol", "limits", "session"] {
        for file in files_of(module) {
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
    for Row { module, .. } in map() {
        for file in files_of(&module) {
            // Others that need the date ask `http::unix_now`.
            let may = file.ends_with("http/mod.rs") || file.ends_with("webhooks/mod.rs");
            assert!(may || !code_of(&file).contains("SystemTime"), "{}", file.display());
        }
    }
}

/// Log lines are sentences with fields for people: no output of `Debug`, which changes with the code and is Rust's.
#[test]
fn nothing_is_logged_as_rust_shows_it_to_itself() {
    let files: Vec<_> = map().iter().flat_map(|row| files_of(&row.module)).collect();
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
fn rustls_is_named_in_the_modules_that_the_crate_docs_name_for_it_only() {
    for Row { module, .. } in map() {
        for file in files_of(&module) {
            let code = code_of(&file);
            let named = code.contains("rustls::") || code.contains("tokio_rustls");
            assert!(
                !named || ["server", "outbox", "tls_client"].contains(&module.as_str()),
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
fn groups_of_modules_are_seen() {
    let code = "use crate::{apps::{App, Apps}, hub, protocol::X};\nlet x = crate::session::y();";
    assert_eq!(modules_named(code), ["apps", "hub", "protocol", "session"]);
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
