//! tests/it/isa/budgets.txt: what each kernel may cost at most.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::rules::Row;

const HEADER: &str = "\
# The budget of each kernel of a d12 step on each GPU, in the figures of tools/isa: instructions, registers, spills and
# 32-bit accesses to buffers at most, warps at least. 32-bit accesses are for scalars of a row and for the step's state; Apple's
# driver does not show them. Sums and what holds everywhere are in rules.rs.
# Budgets only ever go down: WGPT_BLESS=1 cargo test --release --test it isa writes better numbers and new kernels into
# this file. A number that has to be worse (more registers for half the instructions) has a commit that says why: delete
# the line, then bless.
";

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    pub instructions: u64,
    pub registers: u64,
    pub spills: u64,
    pub warps: u64,
    pub words: Option<u64>,
}

impl Budget {
    fn of(row: &Row) -> Self {
        Self {
            instructions: row.instructions,
            registers: row.registers,
            spills: row.spills,
            warps: row.warps,
            words: row.code.as_ref().map(|code| code.global.bits32),
        }
    }

    fn better(&self, other: &Self) -> Self {
        Self {
            instructions: self.instructions.min(other.instructions),
            registers: self.registers.min(other.registers),
            spills: self.spills.min(other.spills),
            warps: self.warps.max(other.warps),
            words: self.words.min(other.words),
        }
    }
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The version of Mesa that the numbers are of.
    pub mesa: String,
    pub lines: BTreeMap<(String, String), Budget>,
}

impl Table {
    /// Reads the file's text.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut table = Self { mesa: String::new(), lines: BTreeMap::new() };
        for (at, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let fault =
                || format!("tests/it/isa/budgets.txt:{}: expected GPU KERNEL and five numbers, got `{line}`", at + 1);
            match words[..] {
                [] => {}
                ["Mesa", version] => version.clone_into(&mut table.mesa),
                [first, ..] if first.starts_with('#') || first == "GPU" => {}
                [gpu, kernel, instructions, registers, spills, warps, words] => {
                    let number = |text: &str| text.parse::<u64>().map_err(|_| fault());
                    let budget = Budget {
                        instructions: number(instructions)?,
                        registers: number(registers)?,
                        spills: number(spills)?,
                        warps: number(warps)?,
                        words: if words == "-" { None } else { Some(number(words)?) },
                    };
                    if table.lines.insert((gpu.to_owned(), kernel.to_owned()), budget).is_some() {
                        return Err(format!(
                            "tests/it/isa/budgets.txt:{}: a second line for {kernel} on {gpu}",
                            at + 1
                        ));
                    }
                }
                _ => return Err(fault()),
            }
        }
        Ok(table)
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = format!("{HEADER}Mesa {}\n", self.mesa);
        let mut last = "";
        for ((gpu, kernel), b) in &self.lines {
            if gpu != last {
                let head = ["instructions", "registers", "spills", "warps", "32-bit"];
                let _ = write!(text, "\n{:<9} {:<72}", "GPU", "kernel");
                let _ = writeln!(text, " {:>12} {:>9} {:>6} {:>5} {:>6}", head[0], head[1], head[2], head[3], head[4]);
                last = gpu;
            }
            let words = b.words.map_or("-".to_owned(), |n| n.to_string());
            let _ = write!(text, "{gpu:<9} {kernel:<72} {:>12} {:>9}", b.instructions, b.registers);
            let _ = writeln!(text, " {:>6} {:>5} {words:>6}", b.spills, b.warps);
        }
        text
    }

    /// Tenths of a budget that kernels may cost.
    pub fn tenths(&self, mesa: &str) -> u64 {
        if mesa == self.mesa { 10 } else { 11 }
    }

    /// Returns kernels that cost more than their line allows, kernels without a line, and lines without a kernel.
    /// Another Mesa than the table's may take a tenth more: what a compiler changed is no fault of a kernel.
    pub fn check(&self, rows: &[Row], mesa: &str) -> Vec<String> {
        let more = |most: u64| most * self.tenths(mesa) / 10;
        let mut faults = Vec::new();
        let mut rest = self.lines.clone();
        for row in rows {
            let Some(most) = rest.remove(&(row.gpu.clone(), row.kernel.clone())) else {
                faults.push(format!(
                    "{}: {}: a kernel without a line in tests/it/isa/budgets.txt; WGPT_BLESS=1 adds one",
                    row.gpu, row.kernel
                ));
                continue;
            };
            let found = Budget::of(row);
            for (what, most, found) in [
                ("instructions", more(most.instructions), found.instructions),
                ("registers", more(most.registers), found.registers),
                ("spills", most.spills, found.spills),
                ("32-bit accesses to buffers", most.words.unwrap_or(0), found.words.unwrap_or(0)),
            ] {
                if found > most {
                    faults.push(row.fault(what, most, found));
                }
            }
            if more(found.warps) < most.warps {
                let (gpu, kernel) = (&row.gpu, &row.kernel);
                faults.push(format!("{gpu}: {kernel}: warps: expected at least {}, found {}", most.warps, found.warps));
            }
        }
        for (gpu, kernel) in rest.into_keys() {
            faults.push(format!(
                "{gpu}: {kernel}: not compiled, but tests/it/isa/budgets.txt has a line for it; WGPT_BLESS=1 takes it out"
            ));
        }
        faults
    }

    /// Takes the better of old and found numbers, lines for new kernels, and none for those that are gone.
    pub fn bless(&mut self, rows: &[Row], mesa: &str) {
        let found = rows.iter().map(|row| {
            let key = (row.gpu.clone(), row.kernel.clone());
            let found = Budget::of(row);
            let best = self.lines.get(&key).map_or(found.clone(), |old| old.better(&found));
            (key, best)
        });
        self.lines = found.collect();
        mesa.clone_into(&mut self.mesa);
    }
}
