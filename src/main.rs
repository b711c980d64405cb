//! `ctl`: see the library's documentation.

use std::process::ExitCode;

fn main() -> ExitCode {
    longhaul::cli::main()
}
