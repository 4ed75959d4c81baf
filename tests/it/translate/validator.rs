//! Khronos' `spirv-val`: which one is taken, and many modules through one process.
//!
//! The one that `SPIRV_VAL` names; else that of Debian forky, which `tools/fetch` brings; else the one on PATH. One
//! older than 2025 knows no cooperative matrices and refuses what is right, so it is not run.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::frontends::{Outcome, both, distinct, first_line, in_folder};
use crate::common::fetched;

/// The first year whose validator knows all that kernels use.
const YEAR: u32 = 2025;

/// Modules that one process reads, where it takes folders: starting it takes as long as validating one.
const MODULES: usize = 40;

/// A validator that can be started.
struct Validator {
    /// The program and the arguments that start it.
    command: Vec<String>,
    version: String,
    /// It validates all modules of a folder, as those of 2026 do.
    takes_folders: bool,
}

impl Validator {
    /// `None` if it does not start.
    fn new(command: Vec<String>) -> Option<Self> {
        let mut new = Self { command, version: String::new(), takes_folders: false };
        new.version = first_line(&new.start().arg("--version").output().ok().filter(|o| o.status.success())?.stdout);
        let help = new.start().arg("--help").output().ok()?;
        new.takes_folders = String::from_utf8_lossy(&help.stdout).contains("specify a directory");
        Some(new)
    }

    fn start(&self) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        command
    }
}

/// The year in `SPIRV-Tools v2023.1 unknown hash`. A version without one is taken for a new one.
pub fn year(version: &str) -> u32 {
    let digits = version.split_once(" v").map_or("", |(_, rest)| rest.split('.').next().unwrap_or(""));
    digits.parse().unwrap_or(u32::MAX)
}

/// The validator to take, looked for once; `Err` is why none is run.
fn find() -> &'static Result<Validator, Outcome> {
    static FOUND: OnceLock<Result<Validator, Outcome>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let named = env::var("SPIRV_VAL").ok().filter(|v| !v.is_empty());
        let found = match named {
            Some(named) => Validator::new(vec![named.clone()])
                .ok_or_else(|| Outcome::unusable("SPIRV_VAL", &format!("cannot start {named}")))?,
            None => fetched().or_else(|why| Validator::new(vec!["spirv-val".into()]).ok_or(why))?,
        };
        if year(&found.version) < YEAR {
            let why =
                format!("spirv-val is {}, expected {YEAR} or newer, which know cooperative matrices", found.version);
            return Err(Outcome::not_run(&why));
        }
        Ok(found)
    })
}

/// Debian's newest, started through the C library that came with it.
fn fetched() -> Result<Validator, Outcome> {
    let [folder, loader, libraries] = fetched::fetched("translate", "about 15 MB", "spirv-val", "spirv-tools")
        .map_err(|why| Outcome::not_run(&why))?;
    let program = format!("{folder}/usr/bin/spirv-val");
    let command = [&loader, "--library-path", &libraries, &program].map(str::to_owned).to_vec();
    Validator::new(command).ok_or_else(|| Outcome::unusable("tools/fetch", &format!("cannot start {program}")))
}

/// A module, the environment that it is for, and its name.
type Module = ((Vec<u32>, String), String);

/// Runs `spirv-val` on (name, words, target environment).
pub fn spirv_val(modules: &[(&str, &[u32], &str)]) -> Outcome {
    let validator = match find() {
        Ok(validator) => validator,
        Err(outcome) => return outcome.clone(),
    };
    let mut modules = distinct(
        modules.iter().map(|(name, words, target)| ((words.to_vec(), (*target).to_owned()), (*name).to_owned())),
    );
    modules.sort_by(|a, b| a.0.1.cmp(&b.0.1));
    let chunks: Vec<&[Module]> = modules
        .chunk_by(|a, b| a.0.1 == b.0.1)
        .flat_map(|same| same.chunks(if validator.takes_folders { MODULES } else { 1 }))
        .collect();
    let faults = in_folder(|folder| {
        let faults: Result<Vec<_>, std::io::Error> = chunks
            .par_iter()
            .enumerate()
            .map(|(i, chunk)| validate(validator, &folder.join(i.to_string()), chunk))
            .collect();
        Ok(faults?.into_iter().flatten().collect())
    });
    let (count, version) = (modules.len(), &validator.version);
    Outcome::ran(format!("spirv-val ran on {count} distinct modules, {} faults ({version})", faults.len()), faults)
}

/// One process for modules of one environment.
fn validate(validator: &Validator, folder: &Path, modules: &[Module]) -> std::io::Result<Vec<String>> {
    fs::create_dir(folder)?;
    let file = |i: usize| folder.join(format!("{i}.spv"));
    for (i, ((words, _), _)) in modules.iter().enumerate() {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        fs::write(file(i), bytes)?;
    }
    let environment = &modules[0].0.1;
    let read = if modules.len() == 1 { file(0) } else { folder.to_owned() };
    let output = validator.start().args(["--target-env", environment]).arg(read).output()?;
    fs::remove_dir_all(folder)?;
    if output.status.success() {
        return Ok(Vec::new());
    }
    let fault = |name: &str, message: &str| format!("{name}: spirv-val ({environment}): {message}");
    if let [(_, name)] = modules {
        return Ok(vec![fault(name, &both(&output))]);
    }
    let text = both(&output);
    let messages = by_file(&text, &folder.display().to_string());
    let named = messages.iter().filter_map(|(i, message)| Some(fault(&modules.get(*i)?.1, message)));
    let named: Vec<String> = named.collect();
    // it ended otherwise than by a finding: one of them is to blame
    let blamed = || vec![fault(&modules.iter().map(|m| m.1.as_str()).collect::<Vec<_>>().join(", "), &text)];
    Ok(if named.is_empty() { blamed() } else { named })
}

/// Messages on each file of a folder, by its number: `error: FOLDER/12.spv:159: …` and the lines that follow.
pub fn by_file(text: &str, folder: &str) -> BTreeMap<usize, String> {
    let mut messages: BTreeMap<usize, String> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once(&format!("{folder}/")) {
            current = rest.split_once(".spv").and_then(|(number, _)| number.parse().ok());
        }
        if let Some(i) = current {
            let message = messages.entry(i).or_default();
            message.push_str(line.trim());
            message.push(' ');
        }
    }
    messages
}
