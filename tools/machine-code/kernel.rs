//! A kernel as a driver compiled it: figures from its statistics and its machine code, read from layer.c's files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::parse::{self, Code};

/// One row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    pub name: String,
    /// Vector registers per invocation: of 32 bits, on Apple of 16 bits.
    pub registers: u64,
    /// Accesses to memory that replaces registers, or the words of that memory if the driver counts no accesses.
    pub spills: u64,
    /// Warps (waves, subgroups) that fit at the same time on an NVIDIA SM, an AMD SIMD, or an Apple or Adreno core.
    pub warps: u64,
    pub instructions: u64,
    /// `None` if the driver shows only statistics.
    pub code: Option<Code>,
}

impl Kernel {
    /// Reads a driver's statistics, lines of a name, a tab and a number, and its machine code.
    ///
    /// # Errors
    /// If a statistic or the machine code is missing.
    pub fn new(name: &str, statistics: &str, assembly: Option<&str>) -> Result<Self, String> {
        let all: BTreeMap<&str, &str> = statistics.lines().filter_map(|line| line.split_once('\t')).collect();
        let get = |key: &str| {
            let text = all.get(key).ok_or_else(|| format!("{name}: the driver reports no `{key}`"))?;
            text.parse::<u64>().map_err(|_| format!("{name}: `{key}` is {text}, expected a whole number"))
        };
        // drivers that show machine code; each has its own names
        let shown = |code: Option<Code>, [stored, loaded, bytes, registers, warps]: [&str; 5]| {
            let code = code.ok_or_else(|| format!("{name}: the driver shows no machine code"))?;
            let reported = get(stored)? + get(loaded)?;
            let spills = spills(reported.max(code.all.scratch), get(bytes)?);
            let (registers, warps, instructions) = (get(registers)?, get(warps)?, code.all.instructions);
            Ok(Self { name: name.to_owned(), registers, spills, warps, instructions, code: Some(code) })
        };
        if all.contains_key("Max warps/SM") {
            let names = ["Spills to memory", "Fills from memory", "SLM size", "Number of GPRs", "Max warps/SM"];
            return shown(assembly.map(parse::nak), names);
        }
        if all.contains_key("Subgroups per SIMD") {
            let names = ["Spilled VGPRs", "Spilled SGPRs", "Scratch size", "VGPRs", "Subgroups per SIMD"];
            return shown(assembly.map(parse::aco), names);
        }
        let name = name.to_owned();
        if all.contains_key("GPRs") {
            let spills = spills(get("Spills")? + get("Fills")?, get("Scratch")?);
            // reported in threads
            let warps = get("Threads")? / get("subgroup size")?.max(1);
            return Ok(Self {
                registers: get("GPRs")?,
                spills,
                warps,
                instructions: get("Instructions")?,
                code: None,
                name,
            });
        }
        let spills = get("STP Count")? + get("LDP Count")?;
        let (registers, warps) = (get("Registers used")?, get("Max Waves Per Core")?);
        Ok(Self { registers, spills, warps, instructions: get("Instruction Count")?, code: None, name })
    }
}

/// Returns the accesses, or the words of the memory if there are none: an array with a computed index is in such
/// memory, although no counted instruction reads it.
fn spills(accesses: u64, bytes: u64) -> u64 {
    if accesses > 0 { accesses } else { bytes.div_ceil(4) }
}

/// Returns a kernel's name without the number of parts that its work is cut into. Its code does not depend on that
/// number.
pub fn code_name(name: &str) -> String {
    let part = |part: &str| {
        let number = part.strip_prefix("parts").unwrap_or_default();
        if number.parse::<u32>().is_ok() { "parts".to_owned() } else { part.to_owned() }
    };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// Reads the kernels of a GPU. Each folder in `folder` is one run of a program. A kernel that several runs compile is
/// taken from the first of them. If one run compiles two different kernels under one name, the second is called
/// `name#2`.
///
/// # Errors
/// If a file cannot be read; those of [`Kernel::new`].
pub fn read(folder: &Path) -> Result<Vec<Kernel>, String> {
    let mut kernels: Vec<Kernel> = Vec::new();
    for run in sorted(folder)?.iter().filter(|path| path.is_dir()) {
        let known: Vec<String> = kernels.iter().map(|k| k.name.clone()).collect();
        let mut own: Vec<Kernel> = Vec::new();
        for file in sorted(run)?.iter().filter(|path| path.extension().is_some_and(|e| e == "name")) {
            let name = code_name(text(file)?.trim());
            if known.contains(&name) {
                continue;
            }
            let assembly = ["NAK_assembly.txt", "Assembly.txt"].map(|kind| file.with_extension(kind));
            let assembly = assembly.iter().find(|path| path.exists()).map(|path| text(path)).transpose()?;
            let mut kernel = Kernel::new(&name, &text(&file.with_extension("stats"))?, assembly.as_deref())?;
            let mut count = 1;
            loop {
                match own.iter().find(|other| other.name == kernel.name) {
                    Some(other) if *other == kernel => break,
                    Some(_) => {
                        count += 1;
                        kernel.name = format!("{name}#{count}");
                    }
                    None => {
                        own.push(kernel);
                        break;
                    }
                }
            }
        }
        kernels.extend(own);
    }
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(kernels)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let fault = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(fault)? {
        paths.push(entry.map_err(fault)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn text(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}
