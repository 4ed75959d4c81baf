//! Rules for machine code that hold beside the numbers in budgets.txt.

use std::collections::BTreeSet;
use std::fmt::Display;

use serde_json::Value;

/// NVIDIA's GPUs whose main loops have limits.
const LIMITED: [&str; 3] = ["ampere", "ada", "hopper"];

/// Tenths of an instruction for each product of matrices in the main loop, register moves left out, by what is in a
/// kernel's name: the first that fits. Mesa's register allocator writes moves that no other compiler needs.
const A_PRODUCT: [(&str, &str, u64); 5] = [
    (".64x64x", "", 65),
    ("forward", "", 32),
    ("backward_inp", "", 40),
    ("backward_weight", ".column_sums", 68),
    ("backward_weight", "", 60),
];
/// Tenths of an instruction for each product of matrices in the main loops of attention, register moves left out: on
/// NVIDIA's GPUs and on RDNA3.
const A_PRODUCT_OF_ATTENTION: [(&str, u64, u64); 3] =
    [(".forward.", 95, 180), (".backward_q.", 62, 95), (".backward_kv.", 67, 130)];
/// Instructions outside the main loop for each of an invocation's 64 results.
const A_RESULT: [(&str, u64); 2] = [(".bias_gelu", 23), (".gelu_backward", 26)];
/// Results of an invocation of the large tiles.
const RESULTS: u64 = 64;

/// GPUs whose drivers show statistics alone.
const STATISTICS_ALONE: [&str; 2] = ["apple-m1", "adreno740"];

/// Counts of a kernel and of its main loop beside its accesses to memory.
const COUNTS: [&str; 5] = ["instructions", "moves", "matrix", "fma", "barriers"];

/// Instructions of a GPU's kernels together that their names have in common. Parts of a kernel that is split keep its
/// name, so that they count together. These numbers only go down, but where a step takes less time for it: attention
/// has a loop of its own for diagonal blocks, and the first product of the head's gradient overwrites (22,750 before);
/// one dispatch adds parts, their squares and rows of sums (23,000 before).
const TOGETHER: [(&str, &str, u64); 2] = [("ampere", "", 23_500), ("ampere", "bias_gelu", 1_550)];

/// A kernel on a GPU, as tools/isa's JSON has it.
#[derive(Debug, Clone)]
pub struct Row {
    pub gpu: String,
    pub kernel: String,
    pub registers: u64,
    pub spills: u64,
    pub warps: u64,
    pub instructions: u64,
    /// Figures from machine code, where the driver shows it.
    pub code: Option<Code>,
}

#[derive(Debug, Clone)]
pub struct Code {
    pub global: Widths,
    pub barriers: u64,
    pub main_loop: Loop,
}

/// The main loop.
#[derive(Debug, Clone, Copy)]
pub struct Loop {
    pub instructions: u64,
    pub moves: u64,
    pub matrix: u64,
    pub fma: u64,
    pub barriers: u64,
    pub global: Widths,
    pub workgroup: Widths,
}

/// Accesses to buffers by their bits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Widths {
    pub bits16: u64,
    pub bits32: u64,
    pub bits64: u64,
    pub bits128: u64,
}

/// Reads tools/isa's JSON, every key of it.
pub fn read(text: &str) -> Result<Vec<Row>, String> {
    let json: Value = serde_json::from_str(text).map_err(|e| format!("tools/isa's JSON: {e}"))?;
    json.as_array().ok_or("tools/isa's JSON is no list")?.iter().map(Row::read).collect()
}

fn number(value: &Value, key: &str) -> Result<u64, String> {
    value[key].as_u64().ok_or_else(|| format!("tools/isa's JSON: `{key}` is no number in {value}"))
}

impl Widths {
    fn read(value: &Value) -> Result<Self, String> {
        let [bits16, bits32, bits64, bits128] = ["16", "32", "64", "128"].map(|key| number(value, key));
        Ok(Self { bits16: bits16?, bits32: bits32?, bits64: bits64?, bits128: bits128? })
    }
}

impl Row {
    fn read(value: &Value) -> Result<Self, String> {
        let text = |key: &str| {
            value[key].as_str().map(str::to_owned).ok_or_else(|| format!("tools/isa's JSON: no `{key}` in {value}"))
        };
        let gpu = text("gpu")?;
        let code = if STATISTICS_ALONE.contains(&gpu.as_str()) {
            None
        } else {
            let main = &value["loop"];
            for (counts, key) in [value, main].into_iter().flat_map(|of| COUNTS.map(|key| (of, key))) {
                number(counts, key)?;
            }
            Widths::read(&value["workgroup"])?;
            let main_loop = Loop {
                instructions: number(main, "instructions")?,
                moves: number(main, "moves")?,
                matrix: number(main, "matrix")?,
                fma: number(main, "fma")?,
                barriers: number(main, "barriers")?,
                global: Widths::read(&main["global"])?,
                workgroup: Widths::read(&main["workgroup"])?,
            };
            Some(Code { global: Widths::read(&value["global"])?, barriers: number(value, "barriers")?, main_loop })
        };
        Ok(Self {
            gpu,
            kernel: text("kernel")?,
            registers: number(value, "registers")?,
            spills: number(value, "spills")?,
            warps: number(value, "warps")?,
            instructions: number(value, "instructions")?,
            code,
        })
    }

    /// One line: which kernel, what, and how much of it.
    pub fn fault(&self, what: &str, most: impl Display, found: impl Display) -> String {
        format!("{}: {}: {what}: expected at most {most}, found {found}", self.gpu, self.kernel)
    }

    /// A fault if the main loop has more than so many tenths of an instruction for each product of matrices, moves left
    /// out.
    fn above_limit(&self, main_loop: &Loop, most: u64) -> Option<String> {
        let net = main_loop.instructions - main_loop.moves;
        let found = format!("{:.2}", net as f64 / main_loop.matrix as f64);
        let is_above = net * 10 > most * main_loop.matrix;
        is_above.then(|| self.fault("instructions a product of matrices", most as f64 / 10.0, found))
    }

    /// True for kernels that move f16 in vectors of eight.
    fn is_wide(&self) -> bool {
        self.kernel.split(['.', '#']).any(|part| part == "wide") || self.is("attention_coop")
    }

    fn is(&self, operator: &str) -> bool {
        self.kernel.split('.').next() == Some(operator)
    }
}

/// Faults of single kernels.
pub fn check(rows: &[Row]) -> Vec<String> {
    let mut faults = Vec::new();
    for row in rows {
        let Some(code) = &row.code else { continue };
        if row.spills > 0 {
            faults.push(row.fault("spills", 0, row.spills));
        }
        // RDNA3 keeps a matrix of results as columns, an element to an invocation: rows of 16 are written together
        let writes_matrices = row.gpu == "navi31" && row.is("matmul_coop");
        if row.is_wide() && code.global.bits16 > 0 && !writes_matrices {
            faults.push(row.fault("16-bit accesses to buffers", 0, code.global.bits16));
        }
        if row.is("matmul_coop") || row.is("attention_coop") {
            let narrow = code.main_loop.global.bits16 + code.main_loop.global.bits64;
            // attention's loops also read a row's scalars, whose number budgets.txt limits
            let narrow = narrow + if row.is("matmul_coop") { code.main_loop.global.bits32 } else { 0 };
            if narrow > 0 {
                faults.push(row.fault("accesses to buffers of less than 16 bytes in the main loop", 0, narrow));
            }
            if code.main_loop.global.bits128 == 0 {
                faults.push(format!(
                    "{}: {}: accesses to buffers of 16 bytes in the main loop: expected some, found 0: is it the main loop?",
                    row.gpu, row.kernel
                ));
            }
        }
    }
    faults
}

/// Faults of products of matrices: instructions in the main loop and behind it, registers, barriers, words gathered one
/// by one, and in f32 the share of multiply-adds.
pub fn check_products(rows: &[Row]) -> Vec<String> {
    let mut faults = Vec::new();
    for row in rows {
        let Some(Code { barriers, main_loop, .. }) = &row.code else { continue };
        if row.is("matmul_coop") {
            let behind = barriers.saturating_sub(main_loop.barriers);
            if behind > 2 {
                faults.push(row.fault("barriers outside the main loop", 2, behind));
            }
            if main_loop.workgroup.bits16 > 0 {
                faults.push(row.fault(
                    "16-bit accesses to workgroup memory in the main loop",
                    0,
                    main_loop.workgroup.bits16,
                ));
            }
        }
        let limits =
            A_PRODUCT_OF_ATTENTION.iter().filter(|(name, ..)| row.is("attention_coop") && row.kernel.contains(name));
        for (_, nvidia, rdna3) in limits {
            let most = match row.gpu.as_str() {
                "navi31" => rdna3,
                gpu if LIMITED.contains(&gpu) => nvidia,
                _ => continue,
            };
            faults.extend(row.above_limit(main_loop, *most));
        }
        if !LIMITED.contains(&row.gpu.as_str()) {
            continue;
        }
        if row.is("matmul_coop") {
            let limit = A_PRODUCT.iter().find(|(a, b, _)| row.kernel.contains(a) && row.kernel.contains(b));
            faults.extend(row.above_limit(main_loop, limit.map_or(0, |limit| limit.2)));
            if row.registers > 128 {
                faults.push(row.fault("registers, for two workgroups an SM", 128, row.registers));
            }
            let ends = A_RESULT.iter().filter(|(end, _)| row.kernel.contains(end) && row.kernel.contains(".128x128x"));
            for (_, most) in ends {
                let found = row.instructions - main_loop.instructions;
                if found > most * RESULTS {
                    faults.push(row.fault("instructions outside the main loop", most * RESULTS, found));
                }
            }
        }
        let (fma, all) = (main_loop.fma, main_loop.instructions);
        if row.is("matmul_tiled") && fma * 10 < all * 7 {
            let (gpu, kernel) = (&row.gpu, &row.kernel);
            faults
                .push(format!("{gpu}: {kernel}: multiply-adds in the main loop: expected 70 %, found {fma} of {all}"));
        }
    }
    faults
}

/// A GPU's kernels among those with some names.
pub fn step<'a>(rows: &'a [Row], gpu: &'a str, names: &'a BTreeSet<String>) -> impl Iterator<Item = &'a Row> {
    rows.iter().filter(move |row| row.gpu == gpu && names.contains(row.kernel.split('#').next().unwrap_or("")))
}

/// Faults of kernels together, which may cost so many tenths of their budget.
pub fn check_step(gpu: &str, rows: &[Row], names: &BTreeSet<String>, tenths: u64) -> Vec<String> {
    let mut faults = Vec::new();
    for (_, part, most) in TOGETHER.iter().filter(|(of, ..)| *of == gpu) {
        let (mut count, mut sum) = (0, 0);
        for row in step(rows, gpu, names).filter(|row| row.kernel.contains(part)) {
            count += 1;
            sum += row.instructions;
        }
        let what = if part.is_empty() { "a d12 step in f16" } else { part };
        let most = most * tenths / 10;
        if sum > most || count == 0 {
            faults
                .push(format!("{gpu}: {what}: instructions of {count} kernels: expected at most {most}, found {sum}"));
        }
    }
    faults
}
