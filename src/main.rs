//! The `wgpt` program: parses, calls, reports.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
