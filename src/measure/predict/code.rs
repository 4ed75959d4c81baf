//! Counts of kernels' machine code, from the JSON of `tools/isa`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::error::{Error, Fault, Result};
use crate::ops::matmul::parts;

/// Memory accesses of one invocation, by their width in bits.
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
    /// Returns the bytes of an invocation's accesses. An access of 16 bits counts as 32, because it takes as long.
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
    /// Checks that the counts of an untrusted file are in a plausible range.
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
            Fault::at(place, format!("{} on {}: implausible counts", self.kernel, self.gpu))
                .expected("counts of tools/isa --json"),
        ))
    }
}

/// Counts of a section of code: instructions and barriers of one subgroup, bytes of one invocation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Instructions without copies from register to register.
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
            // NAK emits copies for its register allocator; they are half of a loop, and other compilers have none
            instructions: listed.instructions - listed.moves,
            matrix: listed.matrix,
            fma: listed.fma,
            barriers: listed.barriers,
            global: listed.global.bytes(),
            workgroup: listed.workgroup.bytes(),
        }
    }

    /// Returns `self + times · other`.
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
    /// Memory accesses that replace registers.
    pub spills: f64,
    /// Counts of the whole kernel, each instruction once.
    pub all: Counts,
    /// Counts of one iteration of its main loop.
    pub main_loop: Counts,
}

/// Returns a kernel's name without the number of parts that its work is cut into, which does not affect its code.
pub(super) fn code_name(name: &str) -> String {
    parts::renamed(name, "parts")
}

/// Machine code by GPU and kernel name.
#[derive(Debug, Clone, Default)]
pub struct Codes(BTreeMap<String, BTreeMap<String, Code>>);

/// Counts of the present kernels by `tools/isa`. `tests/isa` compares them with a fresh compilation.
static COMMITTED: LazyLock<Codes> = LazyLock::new(|| {
    Codes::read("machine-code.json", include_str!("machine-code.json")).unwrap_or_else(|e| panic!("{e}"))
});

impl Codes {
    /// Returns the compiled-in counts of the kernels of a d12 step.
    #[must_use]
    pub fn committed() -> &'static Self {
        &COMMITTED
    }

    /// Parses the JSON of `tools/isa`.
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

    /// Returns a kernel's code on a GPU, and the name of the kernel that it comes from: the kernel itself, or the
    /// nearest one of the same family, whose name has the longest common beginning and end. `None` if the family has no
    /// kernel.
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
