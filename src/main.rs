//! The binary: everything is in the library, and compiled once.

use std::process::ExitCode;

fn main() -> ExitCode {
    pusherd::cli::run()
}
