//! Prints kernels: as a table for people, as JSON for programs.

use std::fmt::Write as _;

use super::kernel::Kernel;
use super::parse::{BITS, Counts, Widths};

const HEAD: [&str; 13] = [
    "kernel",
    "registers",
    "spills",
    "warps",
    "instructions",
    "matrix",
    "barriers",
    "global",
    "workgroup",
    "loop",
    "loop moves",
    "loop matrix",
    "loop global",
];

/// Formats counts by width, widest first: `12x128 4x32`; `-` for none.
fn widths(widths: Widths) -> String {
    let counts = BITS.iter().zip(widths.0).rev().filter(|(_, n)| *n > 0);
    let list: Vec<String> = counts.map(|(bits, n)| format!("{n}x{bits}")).collect();
    if list.is_empty() { "-".into() } else { list.join(" ") }
}

/// Returns a table with a line per kernel. The last four columns are the main loop's.
#[must_use]
pub fn text(kernels: &[Kernel]) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    for k in kernels {
        let mut row = HEAD.map(|_| "-".to_owned());
        row[0].clone_from(&k.name);
        let numbers = [k.registers, k.spills, k.warps, k.instructions];
        for (cell, number) in row[1..5].iter_mut().zip(numbers) {
            *cell = number.to_string();
        }
        if let Some(code) = &k.code {
            row[5] = code.all.matrix.to_string();
            row[6] = code.all.barriers.to_string();
            row[7] = widths(code.all.global);
            row[8] = widths(code.all.workgroup);
            if code.main_loop.instructions > 0 {
                row[9] = code.main_loop.instructions.to_string();
                row[10] = code.main_loop.moves.to_string();
                row[11] = code.main_loop.matrix.to_string();
                row[12] = widths(code.main_loop.global);
            }
        }
        rows.push(row);
    }
    let mut sizes = [0; HEAD.len()];
    for row in &rows {
        for (size, cell) in sizes.iter_mut().zip(row) {
            *size = (*size).max(cell.len());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(sizes).map(|(cell, size)| format!("{cell:size$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

fn object(widths: Widths) -> String {
    let list: Vec<String> = BITS.iter().zip(widths.0).map(|(bits, n)| format!("\"{bits}\":{n}")).collect();
    format!("{{{}}}", list.join(","))
}

/// Returns a JSON object per kernel. Values that need machine code are null if the driver shows none.
#[must_use]
pub fn json(gpu: &str, kernels: &[Kernel]) -> Vec<String> {
    let line = |k: &Kernel| {
        let mut text = format!("{{\"gpu\":{gpu:?},\"kernel\":{:?},\"registers\":{}", k.name, k.registers);
        let _ = write!(text, ",\"spills\":{},\"warps\":{},\"instructions\":{}", k.spills, k.warps, k.instructions);
        let Some(code) = &k.code else {
            let missing = ["moves", "matrix", "fma", "barriers", "global", "workgroup", "loop"];
            return text + &missing.map(|key| format!(",\"{key}\":null")).concat() + "}";
        };
        let (all, main) = (&code.all, &code.main_loop);
        let kinds = |c: &Counts| {
            format!("\"moves\":{},\"matrix\":{},\"fma\":{},\"barriers\":{}", c.moves, c.matrix, c.fma, c.barriers)
        };
        let _ = write!(text, ",{}", kinds(all));
        let _ = write!(text, ",\"global\":{},\"workgroup\":{}", object(all.global), object(all.workgroup));
        let _ = write!(text, ",\"loop\":{{\"instructions\":{},{}", main.instructions, kinds(main));
        let _ = write!(text, ",\"global\":{},\"workgroup\":{}}}}}", object(main.global), object(main.workgroup));
        text
    };
    kernels.iter().map(line).collect()
}
