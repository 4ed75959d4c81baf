//! Counts the instructions of machine code that Mesa's drivers print, by kind, and finds its main loop.
//!
//! - NAK, the compiler of NVK (NVIDIA): blocks `block 3 L10 [2] -> {` … `} -> [5]` with one instruction per line.
//! - ACO, the compiler of RADV (AMD): labels `BB3:` and instructions, each followed by `;` and its words.

use std::collections::{BTreeMap, BTreeSet};

/// Number of accesses to memory, by the bits that one access moves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Widths(pub [u64; 4]);

/// Bits of the columns of [`Widths`].
pub const BITS: [u32; 4] = [16, 32, 64, 128];

impl Widths {
    /// Adds `times` accesses to the widest column that they fill: three words count as 64 bits, a byte as 16.
    fn add(&mut self, bits: u32, times: u64) {
        let column = BITS.iter().rposition(|b| *b <= bits).unwrap_or(0);
        self.0[column] += times;
    }
}

/// The instructions of a kernel or of a loop, counted by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    pub instructions: u64,
    /// Copies from register to register.
    pub moves: u64,
    /// Products on matrix units.
    pub matrix: u64,
    /// Multiply-adds of each lane, in f32 or in two f16.
    pub fma: u64,
    /// Barriers of the workgroup.
    pub barriers: u64,
    /// Accesses to memory that replaces registers.
    pub scratch: u64,
    /// Accesses to buffers, without AMD's scalar loads, each of which serves a whole wave.
    pub global: Widths,
    pub workgroup: Widths,
}

/// Counts of a kernel's machine code.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Code {
    pub all: Counts,
    /// Counts of the main loop; all zero if the kernel has no loop.
    pub main_loop: Counts,
}

/// An instruction's name, such as `ld.global.a64.b128`, and its block or position.
struct Instruction<'a> {
    name: &'a str,
    block: usize,
}

/// Counts NAK's assembly.
#[must_use]
pub fn nak(text: &str) -> Code {
    let mut instructions = Vec::new();
    let mut edges: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut block = 0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("block") {
            let number = rest.split_whitespace().find_map(|word| word.parse().ok());
            block = number.unwrap_or(block);
        } else if let Some(rest) = line.strip_prefix("} -> [") {
            let to = rest.trim_end_matches(']').split(',').filter_map(|n| n.trim().parse::<usize>().ok());
            edges.entry(block).or_default().extend(to);
        } else if let Some((code, _)) = line.split_once("// delay=") {
            instructions.push(Instruction { name: nak_name(code), block });
        }
    }
    let loops = natural_loops(&edges);
    let bodies: Vec<Counts> =
        loops.iter().map(|body| count(instructions.iter().filter(|i| body.contains(&i.block)), nak_count)).collect();
    Code { all: count(instructions.iter(), nak_count), main_loop: main_of(bodies) }
}

/// Returns the instruction's name in a line such as `@!p1  r8 p1 = iadd3 r8 c[0x1][0x40] rZ`.
fn nak_name(code: &str) -> &str {
    let code = code.trim();
    let code = match code.strip_prefix('@') {
        Some(rest) => rest.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim_start()),
        None => code,
    };
    let code = code.split_once(" = ").map_or(code, |(_, rest)| rest.trim_start());
    code.split_whitespace().next().unwrap_or("")
}

/// Returns the blocks of each loop: those that reach the loop's head again without passing through it.
fn natural_loops(edges: &BTreeMap<usize, Vec<usize>>) -> Vec<BTreeSet<usize>> {
    let mut before: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (from, list) in edges {
        for to in list {
            before.entry(*to).or_default().push(*from);
        }
    }
    let mut loops: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (from, list) in edges {
        // blocks are ordered so that only a loop's edge leads back
        for head in list.iter().filter(|to| *to <= from) {
            let body = loops.entry(*head).or_insert_with(|| BTreeSet::from([*head]));
            let mut pending = vec![*from];
            while let Some(block) = pending.pop() {
                if body.insert(block) {
                    pending.extend(before.get(&block).into_iter().flatten());
                }
            }
        }
    }
    loops.into_values().collect()
}

fn nak_count(name: &str, counts: &mut Counts) {
    let bits = || name.split('.').filter_map(|part| number_behind(part, &["b", "u", "s"])).next_back().unwrap_or(32);
    match name.split('.').next().unwrap_or("") {
        "hmma" | "imma" | "qmma" | "dmma" => counts.matrix += 1,
        "ldsm" => {
            // each thread gets one word of each 8x8 matrix
            let matrices = name.split('.').find_map(|part| number_behind(part, &["x"])).unwrap_or(1);
            counts.workgroup.add(32 * matrices, 1);
        }
        "ld" | "st" if name[2..].starts_with(".global") => counts.global.add(bits(), 1),
        "ld" | "st" if name[2..].starts_with(".shared") => counts.workgroup.add(bits(), 1),
        "ld" | "st" if name[2..].starts_with(".local") => counts.scratch += 1,
        "bar" if name == "bar.sync" => counts.barriers += 1,
        "mov" => counts.moves += 1,
        "ffma" | "hfma2" => counts.fma += 1,
        _ => {}
    }
}

/// Returns the number after one of the prefixes: 128 for `b128` with the prefix `b`.
fn number_behind(part: &str, prefixes: &[&str]) -> Option<u32> {
    prefixes.iter().find_map(|prefix| part.strip_prefix(prefix)?.parse().ok())
}

/// Counts ACO's assembly.
#[must_use]
pub fn aco(text: &str) -> Code {
    let mut instructions = Vec::new();
    let mut labels: BTreeMap<&str, usize> = BTreeMap::new();
    let mut loops: BTreeMap<usize, usize> = BTreeMap::new();
    for line in text.lines() {
        if let Some(label) = line.strip_suffix(':').filter(|l| l.starts_with("BB")) {
            labels.insert(label, instructions.len());
            continue;
        }
        let code = line.split(';').next().unwrap_or("");
        let mut words = code.split_whitespace();
        let Some(name) = words.next().filter(|_| line.starts_with(char::is_whitespace)) else { continue };
        if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
            continue;
        }
        instructions.push(Instruction { name, block: instructions.len() });
        if name.contains("branch") {
            // blocks are in order, so a label that was seen before is the head of a loop that ends here
            if let Some(head) = words.next().and_then(|label| labels.get(label)) {
                loops.insert(*head, instructions.len());
            }
        }
    }
    let bodies = loops.iter().map(|(head, end)| count(instructions[*head..*end].iter(), aco_count)).collect();
    Code { all: count(instructions.iter(), aco_count), main_loop: main_of(bodies) }
}

fn aco_count(name: &str, counts: &mut Counts) {
    let moves_data = name.contains("_load") || name.contains("_store");
    if name.contains("wmma") {
        counts.matrix += 1;
    } else if ["buffer_", "global_", "flat_"].iter().any(|unit| name.starts_with(unit)) && moves_data {
        counts.global.add(aco_bits(name), 1);
    } else if name.starts_with("scratch_") {
        counts.scratch += 1;
    } else if ["ds_load", "ds_read", "ds_store", "ds_write"].iter().any(|access| name.starts_with(access)) {
        let two = ["2addr", "read2", "write2"].iter().any(|pair| name.contains(pair));
        counts.workgroup.add(aco_bits(name), if two { 2 } else { 1 });
    } else if name == "s_barrier" || name == "s_barrier_wait" {
        counts.barriers += 1;
    } else if name.starts_with("v_mov_") || name.starts_with("v_swap_") {
        counts.moves += 1;
    } else if name.starts_with("v_dual_fma") {
        // two operations in one instruction, nearly always both multiply-adds
        counts.fma += 2;
    } else if name.starts_with("v_fma") || name.starts_with("v_pk_fma") {
        counts.fma += 1;
    }
}

/// Returns the bits of an access: 128 for `buffer_load_b128` and `buffer_load_dwordx4`, 16 for `ds_load_u16_d16_hi` and
/// `buffer_load_short`.
fn aco_bits(name: &str) -> u32 {
    for part in name.split('_').skip(1) {
        match part {
            "dword" => return 32,
            "short" | "sshort" | "ushort" | "byte" | "sbyte" | "ubyte" => return 16,
            _ => {}
        }
        if let Some(words) = part.strip_prefix("dwordx").and_then(|n| n.parse::<u32>().ok()) {
            return 32 * words;
        }
        // d16 names half of a register, not a width
        if let Some(bits) = number_behind(part, &["b", "u", "i"]) {
            return bits;
        }
    }
    32
}

fn count<'a>(instructions: impl Iterator<Item = &'a Instruction<'a>>, one: impl Fn(&str, &mut Counts)) -> Counts {
    let mut counts = Counts::default();
    for instruction in instructions {
        counts.instructions += 1;
        one(instruction.name, &mut counts);
    }
    counts
}

/// Returns the loop with the most matrix products per instruction; in a kernel without products, the longest loop.
fn main_of(loops: Vec<Counts>) -> Counts {
    let products = loops.iter().any(|l| l.matrix > 0);
    loops
        .into_iter()
        .max_by(|a, b| match products {
            // compares fractions without rounding; among equal ones takes the shorter loop, which is the inner one
            true => (a.matrix * b.instructions, b.instructions).cmp(&(b.matrix * a.instructions, a.instructions)),
            false => a.instructions.cmp(&b.instructions),
        })
        .unwrap_or_default()
}
