//! A table of the driver's figures on the kernels that it has built.

use crate::gpu::context::KernelStatistics;

use crate::measure::table::Table;

/// Parts of drivers' names for the figures that decide how many invocations are resident: registers, spills, workgroup
/// memory, subgroups. `--json` has the rest.
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

/// Returns a row for each kernel under the driver's own names. Leaves out figures whose names contain nothing of
/// [`SHOWN`], unless that would leave none.
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
    // the size of subgroups is always given, and is not what anybody asks for alone
    let columns = if shown.len() > 1 { shown } else { names };
    let mut table = Table::new(&[&["<kernel"], columns.as_slice()].concat());
    for (kernel, figures) in kernels {
        let find = |name: &&str| figures.iter().find(|(n, _)| n == name).map_or_else(|| "-".into(), |(_, v)| v.clone());
        table.row_of([vec![kernel.clone()], columns.iter().map(find).collect()].concat());
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::table;

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
