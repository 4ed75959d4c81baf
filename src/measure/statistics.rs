//! The driver's statistics of compiled kernels: a table, and detection of register spills.

use std::collections::HashSet;

use crate::gpu::context::KernelStatistics;
use crate::gpu::{Gpu, KernelId, Program};

use crate::measure::table::Table;

/// Parts of drivers' names of the statistics that the table shows, which determine how many invocations are resident:
/// registers, spills, workgroup memory, subgroups. `--json` has the others.
const SHOWN: [&str; 16] = [
    "predicted",
    "register",
    "gpr",
    "spill",
    "fill",
    "scratch",
    "slm",
    "stack",
    "local",
    "shared",
    "lds",
    "subgroup",
    "warp",
    "wave",
    "occupancy",
    "instruction",
];

/// Returns a table with a row per kernel, under the driver's names. Statistics whose names match nothing in [`SHOWN`]
/// are left out, unless that would leave none.
#[must_use]
pub fn table(kernels: &[(String, KernelStatistics)]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in kernels.iter().flat_map(|(_, figures)| figures) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let is_shown = |name: &&str| SHOWN.iter().any(|part| name.to_lowercase().contains(part));
    let shown: Vec<&str> = names.iter().copied().filter(is_shown).collect();
    // every driver gives the size of subgroups, which is not useful alone
    let columns = if shown.len() > 1 { shown } else { names };
    let mut table = Table::new(&[&["<kernel"], columns.as_slice()].concat());
    for (kernel, figures) in kernels {
        let find = |name: &&str| figures.iter().find(|(n, _)| n == name).map_or_else(|| "-".into(), |(_, v)| v.clone());
        table.row_of([vec![kernel.clone()], columns.iter().map(find).collect()].concat());
    }
    table.to_string()
}

/// Parts of drivers' names of memory that replaces registers.
const SPILLS: [&str; 5] = ["spill", "fill", "scratch", "stack", "local memory"];
/// Parts of drivers' names of spills into other registers, which are not counted.
const REGISTERS: [&str; 3] = ["sgpr", "to reg", "from reg"];
/// Bytes of workgroup memory that a driver may add for its own use.
const OWN_BYTES: u64 = 2048;

/// Returns the driver's statistics that indicate register spills; `None` if there are none. NVIDIA's driver has been
/// seen to put matrices into workgroup memory without reporting spills, so workgroup memory beyond the declared
/// `workgroup_bytes` counts as a spill too.
#[must_use]
pub fn spills(figures: &KernelStatistics, workgroup_bytes: u64) -> Option<String> {
    let spills = |(name, value): &&(String, String)| {
        let (name, value) = (name.to_lowercase(), value.parse::<u64>().unwrap_or(0));
        let named = SPILLS.iter().any(|part| name.contains(part)) && !REGISTERS.iter().any(|part| name.contains(part));
        named && value > 0 || name.contains("shared mem") && value > workgroup_bytes + OWN_BYTES
    };
    let found: Vec<String> = figures.iter().filter(spills).map(|(name, value)| format!("{name} {value}")).collect();
    (!found.is_empty()).then(|| found.join(", "))
}

/// Returns the kernels of a program that spill registers, each once, with the driver's statistics. Empty if the driver
/// has no statistics, or if the device was opened without them.
#[must_use]
pub fn spilling<'p>(gpu: &Gpu, program: &'p Program) -> Vec<(&'p KernelId, String)> {
    let built = gpu.statistics().unwrap_or_default();
    // a step repeats its kernels in every layer and micro-step
    let mut seen = HashSet::new();
    let kernels = program.commands.iter().filter_map(|command| {
        let (kernel, (_, workgroup_bytes)) = (command.kernel()?, command.workgroup()?);
        seen.insert(kernel).then(|| (kernel, command.name(), u64::from(workgroup_bytes)))
    });
    let spilled = |(kernel, name, workgroup_bytes): (&'p KernelId, &str, u64)| {
        let (_, figures) = built.iter().rev().find(|(known, _)| known == name)?;
        Some((kernel, spills(figures, workgroup_bytes)?))
    };
    kernels.filter_map(spilled).collect()
}

#[cfg(test)]
mod tests {
    use super::{spills, table};

    #[test]
    fn spills_are_found_under_the_names_of_all_drivers() {
        let of = |name: &str, value: &str| spills(&vec![(name.to_owned(), value.to_owned())], 10_000);
        for name in
            ["Stack Size", "Local Memory Size", "Spills to memory", "Spilled VGPRs", "Scratch size", "Spill Count"]
        {
            assert_eq!(of(name, "16"), Some(format!("{name} 16")));
            assert_eq!(of(name, "0"), None);
        }
        for name in ["Register Count", "Spills to reg", "Spilled SGPRs", "LDS Size", "Max warps/SM", "Binary Size"] {
            assert_eq!(of(name, "40"), None, "{name}");
        }
        assert_eq!(of("Shared Memory Size", "11024"), None);
        assert_eq!(of("Shared Memory Size", "48896"), Some("Shared Memory Size 48896".into()));
    }

    #[test]
    fn the_drivers_names_are_columns_and_what_is_missing_is_a_dash() {
        let figures = |list: &[(&str, &str)]| list.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        let kernels = [
            ("a.forward".to_owned(), figures(&[("Register Count", "40"), ("Binary Size", "1"), ("Stack Size", "0")])),
            ("b".to_owned(), figures(&[("Register Count", "168")])),
        ];
        assert_eq!(
            table(&kernels),
            "kernel     Register Count  Stack Size\na.forward              40           0\nb                     168           -\n"
        );
    }
}
