//! Pages that name tests as what shows their claims; here is seen to it that those exist.

use std::fs;
use std::path::Path;

/// The pages, and how many tests each names at least.
const PAGES: [(&str, usize); 4] =
    [("tests/CONFORMANCE.md", 100), ("SECURITY.md", 50), ("docs/migrating.md", 20), ("CONTRIBUTING.md", 4)];

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// What stands between backticks on a page.
fn quoted(page: &str) -> impl Iterator<Item = &str> {
    page.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_that_a_page_names_exists() {
    for (page, tests_min) in PAGES {
        let text = read(page);
        let mut tests = 0;
        for (file, name) in quoted(&text).filter_map(|quoted| quoted.split_once(".rs::")) {
            let file = format!("{file}.rs");
            assert!(read(&file).contains(&format!("fn {name}(")), "{page}: {file} has no test `{name}`");
            tests += 1;
        }
        assert!(tests >= tests_min, "{page} names {tests} tests");
    }
}

#[test]
fn every_file_that_a_page_names_exists() {
    for (page, _) in PAGES {
        let text = read(page);
        let in_folders =
            |quoted: &str| ["tests/", "src/", "docs/", "config/"].iter().any(|f| quoted.starts_with(f));
        let is_file = |quoted: &&str| in_folders(quoted) && !quoted.contains("::");
        for file in quoted(&text).filter(is_file) {
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file).exists(), "{page}: there is no {file}");
        }
    }
}

#[test]
fn every_limit_is_on_the_page_of_threats() {
    let page = read("SECURITY.md");
    for limit in pusherd::limits::Limit::ALL {
        let setting = limit.setting();
        assert!(quoted(&page).any(|quoted| quoted == setting), "SECURITY.md does not name {setting}");
    }
}
