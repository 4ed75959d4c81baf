//! Counts the dispatches, bytes and operations of a step from its recorded commands, without a device, and compares
//! them with the minimum that each operator needs.

use serde::Serialize;

use crate::cases::{self, StepShape};
use crate::error::Result;
use crate::gpu::{Caps, Command, Elem, Gpu, KernelId, Purpose};
use crate::model::{Config, Recompute};
use crate::ops::matmul::Spec;
use crate::train::{Sizes, Trainer, TrainerOptions};
use crate::units;

use crate::measure::table::{Table, number};
use crate::measure::traffic::NonProductTraffic;

/// All dispatches of one kernel in a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KernelCount {
    /// Kernel, `clear` or `copy`.
    pub name: String,
    /// Dispatches per step.
    pub count: u64,
    /// Workgroups per step.
    pub workgroups: u64,
    /// Bytes per step; each dispatch counts its operands once.
    pub bytes: u64,
    /// Floating-point operations per step.
    pub flops: u64,
}

/// One operator's forward or backward in a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OperatorCount {
    /// Operator and pass: `layernorm.backward`.
    pub name: String,
    /// Bytes of its recorded kernels.
    pub bytes: u64,
    /// Operations of its recorded kernels.
    pub flops: u64,
    /// Bytes if each of its tensors were moved once per micro-step.
    pub least_bytes: u64,
    /// Operations of its formula.
    pub least_flops: u64,
}

/// The counts of a step.
#[derive(Debug, Clone, Serialize)]
pub struct Count {
    /// Kernels in the order of their first dispatch.
    pub kernels: Vec<KernelCount>,
    /// Operators in the order of their first dispatch.
    pub operators: Vec<OperatorCount>,
    /// Dispatches per step.
    pub dispatches: u64,
    /// Clears and copies per step.
    pub transfers: u64,
    /// Submissions per step.
    pub submissions: usize,
    /// Bytes of all buffers.
    pub memory_bytes: u64,
    /// Floating-point operations per token by llm.c's formula.
    pub formula_flops_per_token: f64,
    /// Tokens per step.
    pub tokens: usize,
    /// Bytes of partial products, written by the products and read by the kernels that add them.
    pub parts_bytes: u64,
    /// Traffic that is not operands or results of matrix products.
    #[serde(rename = "beside")]
    pub non_product: NonProductTraffic,
    /// The same traffic in llm.c; only for mixed precision, the only precision that it was counted for.
    pub llmc: Option<NonProductTraffic>,
}

impl Count {
    /// Counts a step of a model on an adapter with these capabilities, which need not exist.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`] if a tensor is larger than such an adapter binds.
    pub fn new(caps: Caps, config: Config, sizes: Sizes, elem: Elem, recompute: Recompute) -> Result<Self> {
        let gpu = Gpu::dry(caps);
        let trainer = Trainer::new(&gpu, TrainerOptions { elem, recompute, ..TrainerOptions::new(config, sizes) })?;
        let step = trainer.step_program();
        let mut count = Self {
            kernels: Vec::new(),
            operators: Vec::new(),
            dispatches: step.commands.iter().filter(|c| c.is_dispatch()).count() as u64,
            transfers: step.commands.iter().filter(|c| !c.is_dispatch()).count() as u64,
            submissions: sizes.accumulation,
            memory_bytes: gpu.allocated_bytes(),
            formula_flops_per_token: super::flops_per_token(&config, sizes.context),
            tokens: sizes.tokens(),
            parts_bytes: step.commands.iter().map(parts_bytes).sum(),
            non_product: NonProductTraffic::of(&config, &sizes, elem, &step, trainer.programs()[0]),
            llmc: (elem == Elem::F16).then(|| NonProductTraffic::of_llmc(&config, &sizes)),
        };
        let Sizes { batch, context, accumulation } = sizes;
        let least = cases::least(&StepShape { config, batch, context, accumulation, elem });
        for command in &step.commands {
            let groups = command.grid.iter().map(|&g| u64::from(g)).product::<u64>();
            let at = count.kernels.iter().position(|k| k.name == command.name()).unwrap_or_else(|| {
                let name = command.name().to_owned();
                count.kernels.push(KernelCount { name, count: 0, workgroups: 0, bytes: 0, flops: 0 });
                count.kernels.len() - 1
            });
            let kernel = &mut count.kernels[at];
            kernel.count += 1;
            kernel.workgroups += groups;
            kernel.bytes += command.bytes;
            kernel.flops += command.flops;
            let name = command.operator().map_or_else(|| command.name().to_owned(), |operator| operator.to_string());
            let at = count.operators.iter().position(|o| o.name == name).unwrap_or_else(|| {
                let of = least.iter().find(|(pass, ..)| Some(*pass) == command.operator());
                let (least_bytes, least_flops) = of.map_or((0, 0), |&(_, bytes, flops)| (bytes, flops));
                count.operators.push(OperatorCount { name, bytes: 0, flops: 0, least_bytes, least_flops });
                count.operators.len() - 1
            });
            count.operators[at].bytes += command.bytes;
            count.operators[at].flops += command.flops;
        }
        Ok(count)
    }

    /// Returns the recorded bytes and operations of a step, then their minimum.
    #[must_use]
    pub fn totals(&self) -> ([u64; 2], [u64; 2]) {
        let sum = |of: fn(&OperatorCount) -> u64| self.operators.iter().map(of).sum::<u64>();
        ([sum(|o| o.bytes), sum(|o| o.flops)], [sum(|o| o.least_bytes), sum(|o| o.least_flops)])
    }

    /// Returns the tables of kernels and operators, and the totals.
    #[must_use]
    pub fn report(&self) -> String {
        let mega = |x: u64| number(x as f64 / 1e6);
        let giga = |x: u64| number(x as f64 / 1e9);
        let ratio = |a: u64, b: u64| if b == 0 { "-".into() } else { format!("{:.3}", a as f64 / b as f64) };
        let mut kernels = Table::new(&["<kernel", "count", "workgroups", "MB", "GFLOP"]);
        for k in &self.kernels {
            kernels.row([k.name.clone(), k.count.to_string(), k.workgroups.to_string(), mega(k.bytes), giga(k.flops)]);
        }
        let mut operators = Table::new(&["<operator", "MB", "least MB", "ratio", "GFLOP", "least GFLOP", "ratio"]);
        let (recorded, least) = self.totals();
        let all = OperatorCount {
            name: "all".into(),
            bytes: recorded[0],
            flops: recorded[1],
            least_bytes: least[0],
            least_flops: least[1],
        };
        for o in self.operators.iter().chain([&all]) {
            operators.row([
                o.name.clone(),
                mega(o.bytes),
                mega(o.least_bytes),
                ratio(o.bytes, o.least_bytes),
                giga(o.flops),
                giga(o.least_flops),
                ratio(o.flops, o.least_flops),
            ]);
        }
        let llmc = |of: fn(&NonProductTraffic) -> String| {
            self.llmc.as_ref().map_or(String::new(), |b| format!(", llm.c {}", of(b)))
        };
        let beside = format!(
            "without products' operands and results {} GB{}; {} dispatches per layer{}",
            giga(self.non_product.bytes),
            llmc(|b| number(b.bytes as f64 / 1e9)),
            self.non_product.layer_launches,
            llmc(|b| b.layer_launches.to_string())
        );
        format!(
            "{kernels}\n{operators}\nstep: {} dispatches, {} clears and copies, {}, {}\nrecorded {} GB, of which \
             partial products {} GB, all else {} GB; {} TFLOP; the operators need {} GB, {} TFLOP; llm.c's formula {} TFLOP\n{beside}\n\
             buffers {:.1} MiB\n{NOTES}",
            self.dispatches,
            self.transfers,
            units::counted(self.submissions as u64, "submission"),
            units::counted(self.tokens as u64, "token"),
            giga(recorded[0]),
            giga(self.parts_bytes),
            giga(recorded[0] - self.parts_bytes),
            number(recorded[1] as f64 / 1e12),
            giga(least[0]),
            number(least[1] as f64 / 1e12),
            number(self.formula_flops_per_token * self.tokens as f64 / 1e12),
            self.memory_bytes as f64 / f64::from(1 << 20)
        )
    }
}

/// Explanation of terms in the tables.
const NOTES: &str = "\
partial products: parts of weights' gradients; products write them as f32, and sums.add reads and adds them
least: of each operator on its own; an operator whose work another kernel does in passing (bias, gradnorm) moves less
";

/// Returns the bytes of partial products that a command writes or reads.
fn parts_bytes(command: &Command) -> u64 {
    let in_parts = |kernel: &KernelId| kernel.generator::<Spec>().is_some_and(|spec| spec.parts > 1);
    match command.kernel() {
        Some(kernel) if kernel.purpose == Purpose::PartialSums => command.bindings[0].bytes,
        Some(kernel) if in_parts(kernel) => command.bindings[2].bytes,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradnorm;

    /// No operator records less than it needs, and all but the attention backward, which computes its scores in both of
    /// its kernels, come within a tenth of their formula's operations.
    #[test]
    fn records_and_formulas_agree() {
        let sizes = Sizes { batch: 2, context: 1024, accumulation: 3 };
        let config = Config::from_descriptor("d12").expect("a model");
        let mut caps = Caps::webgpu_defaults();
        (caps.max_binding_bytes, caps.max_buffer_bytes, caps.f16) = (1 << 31, 1 << 40, true);
        for elem in [Elem::F32, Elem::F16] {
            let count = Count::new(caps.clone(), config, sizes, elem, Recompute::None).expect("counted");
            all_recorded(&count, config, sizes, elem);
            agree(&count);
        }
        // with matrix units the weights' gradients are summed in parts, which moves more bytes
        caps = Caps { matrix_edges: vec![16], subgroups: true, subgroup_sizes: (32, 32), ..caps };
        let count = Count::new(caps, config, sizes, Elem::F16, Recompute::None).expect("counted");
        let on_matrices = |k: &KernelCount| k.name.starts_with("matmul_coop.");
        assert!(count.kernels.iter().any(on_matrices));
        // at least two parts of a layer's smallest weight, C^2, in each micro-step written and read
        let least = 3 * 12 * 2 * 2 * 4 * 768 * 768;
        assert!(count.parts_bytes >= least && count.parts_bytes.is_multiple_of(least / 2), "{}", count.parts_bytes);
    }

    /// Fails and names a pass that a step needs but does not record.
    fn all_recorded(count: &Count, config: Config, sizes: Sizes, elem: Elem) {
        let Sizes { batch, context, accumulation } = sizes;
        for (pass, ..) in cases::least(&StepShape { config, batch, context, accumulation, elem }) {
            let recorded = count.operators.iter().any(|o| o.name == pass.to_string());
            assert!(recorded, "{pass} has a least in src/cases/{}.rs, and no step records it", pass.operator);
        }
    }

    fn agree(count: &Count) {
        for o in count.operators.iter().filter(|o| o.least_bytes > 0) {
            // the norm does not read weights of blocks, 12 layers of 12 C^2: the kernels that add their parts sum their
            // squares
            let summed = if o.name == gradnorm::FORWARD.to_string() { 4 * 12 * 12 * 768 * 768 } else { 0 };
            assert!(o.bytes as f64 >= 0.995 * (o.least_bytes - summed) as f64, "{o:?}");
            if summed > 0 {
                assert!(o.bytes as f64 <= 1.005 * (o.least_bytes - summed) as f64, "{o:?}");
                continue;
            }
            assert!(o.flops as f64 >= 0.99 * o.least_flops as f64, "{o:?}");
            let most = if o.name == "attention.backward" { 1.41 } else { 1.1 };
            assert!(o.flops as f64 <= most * o.least_flops as f64, "{o:?}");
        }
    }
}
