//! `wgpt shader`.

use wgpt::error::{Error, Result};
use wgpt::gpu::{Caps, KernelId, adapter};
use wgpt::ops;
use wgpt::ops::matmul::parts;

use super::predicted;
use super::terminal::{say, say_lines};

/// Most names that a message suggests.
const SUGGESTIONS: usize = 5;
/// Similarity, of 1, that a suggested name must exceed.
const NEAR: f64 = 0.75;
/// Most characters of a name that a message repeats.
const LONGEST: usize = 100;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kernel to print, or the beginning of several names
    ///
    /// Without it the names of all kernels are listed
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Adapter by index or part of its name [default: the first]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Kernels of a GPU that need not be here
    ///
    /// h100 h200 a100 rtx-4090 rtx-3090 rx-7900-xtx apple-m1
    #[arg(long, value_name = "CARD", conflicts_with = "device")]
    gpu: Option<String>,
    /// Kernels of all adapters
    #[arg(long, conflicts_with_all = ["device", "gpu"])]
    all: bool,
}

/// Prints the names of an adapter's kernels, or the WGSL of one.
pub fn run(args: &Args) -> Result<()> {
    let (kernels, caps) = kernels(args)?;
    let mut named: Vec<(String, &KernelId)> = kernels.iter().map(|kernel| (kernel.name(), kernel)).collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    // lists have the kernel of two parts for those of any number
    let wanted = &*parts::renamed(args.name.as_deref().unwrap_or_default(), "parts2");
    let exact = named.iter().filter(|(name, _)| name == wanted).count();
    named.retain(|(name, _)| if exact > 0 { name == wanted } else { name.starts_with(wanted) });
    let mut names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    match names.as_slice() {
        [] => Err(unknown(wanted, &kernels, args)),
        [_] if args.name.is_some() => {
            named.iter().for_each(|(_, kernel)| print(kernel, named.len(), caps.as_ref()));
            Ok(())
        }
        all => {
            all.iter().for_each(|name| say!("{name}"));
            Ok(())
        }
    }
}

/// Returns the kernels of all adapters, each once.
fn all() -> Vec<KernelId> {
    ops::each_once([ops::all_kernels(), ops::tried_kernels()].concat())
}

/// Returns the kernels that are asked for, and the adapter that they are for.
fn kernels(args: &Args) -> Result<(Vec<KernelId>, Option<Caps>)> {
    if args.all {
        return Ok((all(), None));
    }
    let hint = |error| match error {
        Error::Device(fault) => {
            let advice = format!("{}; or name a GPU that is not here: --gpu h100, or --all", fault.advice);
            Error::device(fault.advice(advice.trim_start_matches("; ")))
        }
        error => error,
    };
    let caps = match &args.gpu {
        Some(name) => predicted::card("--gpu", name)?.caps(),
        None => adapter::find(args.device.as_deref()).map_err(hint)?,
    };
    Ok((ops::kernels_of(&caps), Some(caps)))
}

fn print(kernel: &KernelId, variants: usize, caps: Option<&Caps>) {
    let text = kernel.kernel();
    let lanes = text.subgroup_size.map_or(String::new(), |lanes| format!(", subgroups of {lanes}"));
    let constants: String = text.constants.iter().map(|(name, value)| format!(", {name} = {value}")).collect();
    say!("// {}: entry point {}{constants}{lanes}", text.name, text.entry);
    if text.name.contains(".parts2") {
        say!("// kernels of any number of parts have this text");
    }
    if let Some(caps) = caps {
        let refused = text.reflect().and_then(|reflection| reflection.check(&text.name, caps)).err();
        say!("// for {}{}", caps.name, refused.map_or(String::new(), |why| format!(", which cannot run it: {why}")));
    } else if variants > 1 {
        say!("// one of {variants} kernels of this name, for different kinds of adapters; all follow");
    }
    say_lines!("{}", text.source);
}

/// Returns the error for a name that no kernel begins with.
fn unknown(wanted: &str, kernels: &[KernelId], args: &Args) -> Error {
    let elsewhere = !args.all && all().iter().any(|kernel| kernel.name().starts_with(wanted));
    // comparing a long name takes long, and a terminal may obey its characters
    let wanted: String = wanted.chars().take(LONGEST).collect();
    let shown = wanted.escape_debug();
    if elsewhere {
        return Error::usage(format!(
            "shader: {} has no kernel `{shown}`, which other adapters have; try --all, or --gpu CARD",
            args.gpu.as_deref().unwrap_or("this adapter")
        ));
    }
    let alike = |name: &str| strsim::jaro_winkler(&wanted.to_lowercase(), name);
    let mut names: Vec<String> = kernels.iter().flat_map(|kernel| [kernel.family(), kernel.name()]).collect();
    names.sort();
    names.dedup();
    names.retain(|name| alike(name) > NEAR);
    names.sort_by(|a, b| alike(b).total_cmp(&alike(a)));
    names.truncate(SUGGESTIONS);
    let nearest = if names.is_empty() { String::new() } else { format!(", the nearest are {}", names.join(", ")) };
    Error::usage(format!("shader: no kernel's name begins with `{shown}`{nearest}; `wgpt shader` lists all"))
}
