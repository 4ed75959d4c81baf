//! `wgpt verify`.

use std::path::PathBuf;

use wgpt::error::{Error, Result};
use wgpt::files::disk::System;
use wgpt::formats::checkpoint::Checkpoints;

use super::terminal::say;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of a run
    #[arg(value_name = "RUN")]
    run: PathBuf,
}

/// Compares every checkpoint of a run with its manifest.
pub fn run(args: &Args) -> Result<()> {
    let checkpoints = Checkpoints::new(&System, &args.run);
    let steps = checkpoints.steps()?;
    if steps.is_empty() {
        return Err(Error::data(format!(
            "verify: {} holds no checkpoints, expected at least one; try the folder that --out names",
            args.run.display()
        )));
    }
    let mut damaged = 0;
    for step in &steps {
        match checkpoints.verify(*step) {
            Ok(bytes) => say!("step {step}: sound, {:.1} MiB", bytes as f64 / f64::from(1 << 20)),
            Err(error) => {
                damaged += 1;
                say!("step {step}: damaged: {error}");
            }
        }
    }
    if damaged > 0 {
        return Err(Error::data(format!(
            "verify: {damaged} of {} checkpoints are damaged, expected none; a resume skips them",
            steps.len()
        )));
    }
    Ok(())
}
