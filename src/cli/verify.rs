//! `wgpt verify`.

use std::path::{Path, PathBuf};

use wgpt::error::{Error, Fault, Result};
use wgpt::files::disk::System;
use wgpt::formats::checkpoint::Checkpoints;
use wgpt::run::folder;
use wgpt::train::settings::RunFile;
use wgpt::units;

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
        return Err(nothing_to_verify(&args.run));
    }
    let mut damaged = 0;
    for step in &steps {
        match checkpoints.verify(*step) {
            Ok(bytes) => say!("step {step}: sound, {}", units::size(bytes)),
            Err(error) => {
                damaged += 1;
                say!("step {step}: damaged: {error}");
            }
        }
    }
    if damaged > 0 {
        return Err(Error::data(format!(
            "verify: {damaged} of {}, expected no damaged ones; a resume skips them",
            units::counted(steps.len() as u64, "checkpoint")
        )));
    }
    Ok(())
}

/// Returns the error of a folder without checkpoints.
fn nothing_to_verify(run: &Path) -> Error {
    let fault = |what: &str| Fault::at(run.display(), what);
    Error::data(match RunFile::read(run) {
        _ if !run.exists() => fault("no such run").advice(folder::siblings(run).unwrap_or_default()),
        Err(_) => fault("holds no run").expected("the folder that --out names"),
        Ok(file) if file.record.finished => {
            fault("the run is finished and has no checkpoint").advice("its model/ is whole")
        }
        Ok(_) => fault("the run has saved no checkpoint yet").advice("a shorter --checkpoint-every saves one sooner"),
    })
}
