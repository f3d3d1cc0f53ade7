//! Functions of the scripts.

use std::process::Command;

use super::pages::root;

/// What `list_failed` of `scripts/lib.sh` prints for a log.
fn failed(log: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("part.log");
    std::fs::write(&file, log).unwrap();
    let script = "set -euo pipefail; source scripts/lib.sh; list_failed \"$1\"";
    let output =
        Command::new("bash").args(["-c", script, "bash"]).arg(&file).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap().replace(file.to_str().unwrap(), "part.log");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_failed_tests_of_nextest_are_listed_once() {
    let log = "\u{1b}[32;1m    Starting\u{1b}[0m 4 tests across 2 binaries\n\
               \u{1b}[32;1m        PASS\u{1b}[0m [   0.005s] (1/4) pusherd FAIL::passes\n\
               \u{1b}[31;1m        FAIL\u{1b}[0m [   0.012s] (2/4) pusherd::it limits::a_batch\n\
               \u{1b}[31;1m     SIGABRT\u{1b}[0m [   0.100s] (3/4) pusherd::it process::aborts\n\
               thread panicked: FAIL: is not at the start\n\
               \u{1b}[31;1m     TIMEOUT\u{1b}[0m [  60.000s] (4/4) pusherd::it process::hangs\n\
               ------------\n     Summary [   0.200s] 4 tests run: 1 passed, 3 failed, 0 skipped\n\
               \u{1b}[31;1m        FAIL\u{1b}[0m [   0.012s] (2/4) pusherd::it limits::a_batch\n";
    assert_eq!(
        failed(log),
        [
            "  FAIL [   0.012s] (2/4) pusherd::it limits::a_batch",
            "  SIGABRT [   0.100s] (3/4) pusherd::it process::aborts",
            "  TIMEOUT [  60.000s] (4/4) pusherd::it process::hangs",
        ]
    );
}

#[test]
fn the_failed_tests_of_cargo_test_are_listed() {
    let log = "running 2 tests\ntest apps::passes ... ok\ntest limits::a_batch ... FAILED\n\nfailures:\n\n\
               ---- limits::a_batch stdout ----\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored\n";
    assert_eq!(failed(log), ["  test limits::a_batch ... FAILED"]);
}

#[test]
fn the_failed_tests_of_node_are_listed_once_and_without_the_heading() {
    let log = "✔ connects (12.5ms)\n▶ users\n  ✖ a user is signed in (20.1ms)\n▶ users (25ms)\nℹ tests 2\n\
               ✖ failing tests:\n\ntest at users.test.mjs:7:1\n✖ a user is signed in (20.1ms)\n";
    assert_eq!(failed(log), ["  ✖ a user is signed in (20.1ms)"]);
}

#[test]
fn the_failed_tests_of_unittest_are_listed() {
    let log = "F.E\n======\nERROR: test_users (test_sdk.Sdk.test_users)\n------\n\
               FAIL: test_publish (test_sdk.Sdk.test_publish)\nTraceback\nFAILED (failures=1, errors=1)\n";
    assert_eq!(
        failed(log),
        ["  ERROR: test_users (test_sdk.Sdk.test_users)", "  FAIL: test_publish (test_sdk.Sdk.test_publish)"]
    );
}

#[test]
fn a_part_that_failed_without_a_failed_test_names_its_log() {
    assert_eq!(failed("error: could not compile `pusherd`\n"), ["  no test: see part.log"]);
    assert_eq!(failed(""), ["  no test: see part.log"]);
}
