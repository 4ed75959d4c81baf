//! The `wgpt` program: parses, calls, reports.

#![warn(clippy::expect_used, clippy::unwrap_used)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
