//! `tests/CONFORMANCE.md` names tests; here is seen to it that they exist.

use std::fs;
use std::path::Path;

/// What stands between backticks on the page.
fn quoted(page: &str) -> impl Iterator<Item = &str> {
    page.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_that_the_conformance_table_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("tests/CONFORMANCE.md")).unwrap();
    let mut tests = 0;
    for (file, name) in quoted(&page).filter_map(|quoted| quoted.split_once(".rs::")) {
        let file = format!("{file}.rs");
        let source = fs::read_to_string(root.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(source.contains(&format!("fn {name}(")), "{file} has no test `{name}`");
        tests += 1;
    }
    assert!(tests > 100, "the table names {tests} tests");
}

#[test]
fn every_file_that_the_conformance_table_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("tests/CONFORMANCE.md")).unwrap();
    let is_file = |quoted: &&str| quoted.starts_with("tests/") && !quoted.contains("::");
    for file in quoted(&page).filter(is_file) {
        assert!(root.join(file).exists(), "there is no {file}");
    }
}
