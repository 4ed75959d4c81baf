//! Machine code of kernels, counted: the JSON of `tools/isa`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::error::{Error, Fault, Result};
use crate::ops::matmul::parts;

/// Accesses to memory by their bits, of one invocation.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct Widths {
    #[serde(rename = "16")]
    bits16: f64,
    #[serde(rename = "32")]
    bits32: f64,
    #[serde(rename = "64")]
    bits64: f64,
    #[serde(rename = "128")]
    bits128: f64,
}

impl Widths {
    /// Bytes that an invocation occupies the memory with: an access of 16 bits takes as long as one of 32.
    fn bytes(self) -> f64 {
        4.0 * (self.bits16 + self.bits32) + 8.0 * self.bits64 + 16.0 * self.bits128
    }
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct Listed {
    instructions: f64,
    moves: f64,
    matrix: f64,
    fma: f64,
    barriers: f64,
    global: Widths,
    workgroup: Widths,
}

#[derive(Debug, Deserialize)]
struct Row {
    gpu: String,
    kernel: String,
    registers: f64,
    spills: f64,
    instructions: f64,
    moves: Option<f64>,
    matrix: Option<f64>,
    fma: Option<f64>,
    barriers: Option<f64>,
    global: Option<Widths>,
    workgroup: Option<Widths>,
    #[serde(rename = "loop")]
    main_loop: Option<Listed>,
}

impl Row {
    /// Files come from anywhere: a count is no less than 0 and no more than a kernel can have.
    fn check(&self, place: &str) -> Result<()> {
        let widths = |w: Option<Widths>| w.map_or([0.0; 4], |w| [w.bits16, w.bits32, w.bits64, w.bits128]);
        let counts = [self.moves, self.matrix, self.fma, self.barriers].map(Option::unwrap_or_default);
        let main = self.main_loop.unwrap_or_default();
        let of_loop = [main.instructions, main.moves, main.matrix, main.fma, main.barriers];
        let memory = [self.global, self.workgroup, Some(main.global), Some(main.workgroup)].map(widths);
        let all =
            counts.iter().chain(&of_loop).chain(memory.iter().flatten()).chain([&self.spills, &self.instructions]);
        let sound = all.copied().all(|count| (0.0..=1e9).contains(&count)) && (1.0..=1e5).contains(&self.registers);
        if sound && self.instructions >= main.instructions && main.instructions >= main.moves {
            return Ok(());
        }
        Err(Error::data(
            Fault::at(place, format!("{} on {}: counts that no kernel has", self.kernel, self.gpu))
                .expected("those of tools/isa --json"),
        ))
    }
}

/// Counts of a stretch of code: instructions and barriers of one subgroup, bytes of one invocation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Instructions but copies from register to register.
    pub instructions: f64,
    /// Products of matrices.
    pub matrix: f64,
    /// Multiply-adds.
    pub fma: f64,
    /// Barriers of the workgroup.
    pub barriers: f64,
    /// Bytes of buffers.
    pub global: f64,
    /// Bytes of workgroup memory.
    pub workgroup: f64,
}

impl Counts {
    fn of(listed: &Listed) -> Self {
        Self {
            // NAK writes copies that its register allocator needs; they are half of a loop and no other compiler's
            instructions: listed.instructions - listed.moves,
            matrix: listed.matrix,
            fma: listed.fma,
            barriers: listed.barriers,
            global: listed.global.bytes(),
            workgroup: listed.workgroup.bytes(),
        }
    }

    /// Returns `self + times other`.
    #[must_use]
    pub fn plus(self, times: f64, other: Self) -> Self {
        Self {
            instructions: self.instructions + times * other.instructions,
            matrix: self.matrix + times * other.matrix,
            fma: self.fma + times * other.fma,
            barriers: self.barriers + times * other.barriers,
            global: self.global + times * other.global,
            workgroup: self.workgroup + times * other.workgroup,
        }
    }
}

/// A kernel's machine code.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Code {
    /// Registers of an invocation.
    pub registers: f64,
    /// Accesses to memory in the place of registers.
    pub spills: f64,
    /// All of the kernel, each instruction once.
    pub all: Counts,
    /// Its main loop, one turn.
    pub main_loop: Counts,
}

/// Returns a kernel's name without the number of parts that its work is cut into, on which its code does not depend.
pub(super) fn code_name(name: &str) -> String {
    parts::renamed(name, "parts")
}

/// Kernels by GPU and name.
#[derive(Debug, Clone, Default)]
pub struct Codes(BTreeMap<String, BTreeMap<String, Code>>);

/// The machine code of the present kernels, counted by `tools/isa`; tests/isa compares it with a fresh compilation.
static COMMITTED: LazyLock<Codes> = LazyLock::new(|| {
    Codes::read("machine-code.json", include_str!("machine-code.json")).unwrap_or_else(|e| panic!("{e}"))
});

impl Codes {
    /// Returns those of the kernels of a d12 step that this program was built with.
    #[must_use]
    pub fn committed() -> &'static Self {
        &COMMITTED
    }

    /// Reads the JSON of `tools/isa`.
    ///
    /// # Errors
    /// [`Error::Data`] naming `place`.
    pub fn read(place: &str, text: &str) -> Result<Self> {
        let rows: Vec<Row> = serde_json::from_str(text)
            .map_err(|e| Error::data(Fault::at(place, e.to_string()).expected("the JSON of tools/isa --json")))?;
        let mut codes = Self::default();
        for row in rows {
            row.check(place)?;
            let listed = Listed {
                instructions: row.instructions,
                moves: row.moves.unwrap_or_default(),
                matrix: row.matrix.unwrap_or_default(),
                fma: row.fma.unwrap_or_default(),
                barriers: row.barriers.unwrap_or_default(),
                global: row.global.unwrap_or_default(),
                workgroup: row.workgroup.unwrap_or_default(),
            };
            let code = Code {
                registers: row.registers,
                spills: row.spills,
                all: Counts::of(&listed),
                main_loop: row.main_loop.as_ref().map(Counts::of).unwrap_or_default(),
            };
            codes.0.entry(row.gpu).or_default().insert(code_name(&row.kernel), code);
        }
        Ok(codes)
    }

    /// Returns a kernel's code on a GPU, under its own name or that of the nearest kernel: the one of the same family whose
    /// name has most in common with its beginning and end. `None` if there is no such kernel.
    #[must_use]
    pub fn nearest(&self, gpu: &str, family: &str, kernel: &str) -> Option<(&str, Code)> {
        let kernels = self.0.get(gpu)?;
        let kernel = &*code_name(kernel);
        if let Some((name, code)) = kernels.get_key_value(kernel) {
            return Some((name, *code));
        }
        let is_related = |name: &str| {
            let rest = name.strip_prefix(family);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) && !name.contains('#')
        };
        let alike = |name: &str| {
            let begins = name.bytes().zip(kernel.bytes()).take_while(|(a, b)| a == b).count();
            begins + name.bytes().rev().zip(kernel.bytes().rev()).take_while(|(a, b)| a == b).count()
        };
        let related = kernels.iter().filter(|(name, _)| is_related(name));
        related.max_by_key(|(name, _)| alike(name)).map(|(name, code)| (name.as_str(), *code))
    }
}
