//! The properties of the fuzz targets, on the committed corpus and on inputs made at random: with a stable toolchain,
//! in the time of a test. `scripts/fuzz` looks for more. And what no fuzz target can show, because it takes threads.

#![allow(unreachable_pub, reason = "a test binary has no public interface")]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the answer")]

#[path = "properties/concurrency.rs"]
mod concurrency;
#[path = "../fuzz/src/lib.rs"]
mod properties;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use properties::{ALL, Property};
use proptest::prelude::*;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

fn names_in(folder: &Path, suffix: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter_map(|name| Some(name.strip_suffix(suffix)?.to_owned())).collect();
    names.sort();
    names
}

fn holds_on_its_corpus(name: &str, holds: Property) {
    let corpus = folder("corpus").join(name);
    let files = names_in(&corpus, "");
    assert!(!files.is_empty(), "{name} has no corpus");
    for file in files {
        let input = fs::read(corpus.join(&file)).unwrap();
        if catch_unwind(AssertUnwindSafe(|| holds(&input))).is_err() {
            panic!("fuzz/corpus/{name}/{file} breaks what {name} shows");
        }
    }
}

/// One test a property, so that they run side by side and a failure names itself.
macro_rules! on_their_corpus {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            holds_on_its_corpus(stringify!($name), properties::$name::holds);
        })*

        #[test]
        fn every_property_has_a_test_a_target_and_a_corpus() {
            let here = [$(stringify!($name)),*].map(str::to_owned);
            let all = ALL.map(|(name, _)| name.to_owned());
            assert_eq!(here, all);
            assert_eq!(names_in(&folder("fuzz_targets"), ".rs"), all);
            assert_eq!(names_in(&folder("corpus"), ""), all);
            let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
            for name in all {
                assert!(manifest.contains(&format!("name = \"{name}\"\n")), "fuzz/Cargo.toml: no {name}");
            }
        }
    };
}

on_their_corpus! {
    batch client_message config_file deflate dotenv environment extensions http_query http_signature json names
    state_machine trigger user_data websocket
}

#[test]
fn the_corpus_is_small() {
    for (name, _) in ALL {
        let corpus = folder("corpus").join(name);
        let files = names_in(&corpus, "");
        assert!(files.len() < 100, "{name}: {} files; scripts/fuzz --minimise makes them fewer", files.len());
        let bytes: u64 = files.iter().map(|file| fs::metadata(corpus.join(file)).unwrap().len()).sum();
        assert!(bytes < 64 * 1024, "{name}: {bytes} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::with_cases(64) })]

    /// Whatever many connections do, in any order, with deliveries at once or late.
    #[test]
    fn sessions_registry_and_users_do_what_a_naive_model_does(
        ops in proptest::collection::vec(any::<u8>(), 100..800),
    ) {
        properties::state_machine::holds(&ops);
    }

    #[test]
    fn frames_are_read_as_another_library_reads_them(stream in proptest::collection::vec(any::<u8>(), 2..200)) {
        properties::websocket::holds(&stream);
    }

    #[test]
    fn what_a_naive_client_signed_is_let_in_and_nothing_else(request: Vec<u8>) {
        properties::http_signature::holds(&request);
    }
}
