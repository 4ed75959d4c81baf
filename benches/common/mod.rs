//! What both benches take from the environment, and where their figures go.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use wgpt::error::{Error, Result};
use wgpt::gpu::{Caps, Gpu, Options};
use wgpt::measure;
use wgpt::measure::predict::card::Card;
use wgpt::measure::tune;

/// A variable that is set to something.
pub fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// Returns the error for a variable whose value is not as expected.
pub fn wrong(name: &str, text: &str, expected: &str) -> Error {
    Error::usage(format!("{name}: `{text}`, expected {expected}"))
}

/// A whole number from 1 to `most`.
fn number(name: &str, most: usize) -> Result<Option<usize>> {
    let Some(text) = text(name) else { return Ok(None) };
    match text.parse() {
        Ok(value) if (1..=most).contains(&value) => Ok(Some(value)),
        _ => Err(wrong(name, &text, &format!("a whole number from 1 to {most}"))),
    }
}

/// `WGPT_BATCH`.
pub enum Batch {
    /// Not set.
    Unset,
    /// `best`: the step bench looks for it, for kernels it is the same as not set.
    Best,
    /// A number.
    Fixed(usize),
}

/// B, as the environment says.
pub fn batch() -> Result<Batch> {
    if text("WGPT_BATCH").as_deref() == Some("best") {
        return Ok(Batch::Best);
    }
    Ok(number("WGPT_BATCH", 1 << 16)?.map_or(Batch::Unset, Batch::Fixed))
}

/// T, as the environment says: at most the model's positions.
pub fn context(positions: usize) -> Result<Option<usize>> {
    number("WGPT_CONTEXT", positions)
}

/// The card whose prediction figures are set beside: the one that `WGPT_AGAINST` names, else the adapter's own, if there is one.
pub fn card(caps: &Caps) -> Result<Option<&'static Card>> {
    match text("WGPT_AGAINST") {
        Some(name) => Card::find(&name).map(Some),
        None => Ok(Card::of_adapter(&caps.name)),
    }
}

/// The time for the whole bench.
pub fn seconds() -> Result<Option<Duration>> {
    const DAY: f64 = 86_400.0;
    let Some(text) = text("WGPT_BENCH_SECONDS") else { return Ok(None) };
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=DAY).contains(&seconds) => Ok(Some(Duration::from_secs_f64(seconds))),
        _ => Err(wrong("WGPT_BENCH_SECONDS", &text, "seconds, a day at most")),
    }
}

/// The adapter that `WGPT_DEVICE` names, with everything that it offers, and a line on its record of `wgpt tune`.
pub fn open() -> Result<(Gpu, Option<String>)> {
    // as naga writes kernels with matrix units, to compare: see src/gpu/spirv.rs
    let unrepaired = text("WGPT_NO_SPIRV_REPAIR").is_some();
    let device = text("WGPT_DEVICE");
    let mut gpu = Gpu::open(&Options { device, matrices: true, unrepaired, ..Options::default() })?;
    let tuned = measure::record_summary(&tune::load(&mut gpu.caps));
    Ok((gpu, tuned))
}

/// Writes a bench's figures to the file that `WGPT_BENCH_JSON` names, or as `BENCH.json` into the folder.
pub fn write(bench: &str, value: &Value) -> Result<()> {
    let Some(path) = text("WGPT_BENCH_JSON").map(PathBuf::from) else { return Ok(()) };
    let path = if path.is_dir() { path.join(bench).with_extension("json") } else { path };
    let text = format!("{value:#}\n");
    let written = if path.exists() && !path.is_file() {
        // a device or a pipe is written to, not replaced
        std::fs::write(&path, text)
    } else {
        // renamed into place: who is ended by others leaves whole figures
        let part = path.with_extension("part");
        std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &path))
    };
    written.map_err(|e| Error::output(format!("{}: {e}", path.display())))
}
