//! `wgpt shader`.

use wgpt::error::{Error, Result};
use wgpt::ops;

use super::terminal::say;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kernel to print, as `wgpt shader` lists it; without it all names
    name: Option<String>,
}

/// Prints the names of all kernels, or the WGSL of one.
pub fn run(args: &Args) -> Result<()> {
    let kernels = [ops::all_kernels(), ops::tried_kernels()].concat();
    let Some(name) = &args.name else {
        let mut names: Vec<&str> = kernels.iter().map(|k| k.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.iter().for_each(|name| say!("{name}"));
        return Ok(());
    };
    let kernel = kernels
        .iter()
        .find(|k| k.name == *name)
        .ok_or_else(|| Error::Usage(format!("shader: no kernel is called `{name}`; `wgpt shader` lists them")))?;
    say!("// entry point {}, overrides {:?}\n{}", kernel.entry, kernel.constants, kernel.source);
    Ok(())
}
