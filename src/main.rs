//! The binary. All code is in the library, so that it is compiled once.

use std::process::ExitCode;

fn main() -> ExitCode {
    pusherd::cli::run()
}
