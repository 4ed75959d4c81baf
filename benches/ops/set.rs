//! A case in memory: its tensors and its recorded program. Checks its outputs against the reference.

use wgpt::cases::{Case, Contents, Role, Slot, from_bytes, to_bytes, unwritten};
use wgpt::error::{Error, Result};
use wgpt::gpu::{Gpu, Pass, Program, Tensor};

/// A case in memory.
pub struct Set {
    pub tensors: Vec<Tensor>,
    pub program: Program,
    /// Restores the initial contents of accumulated tensors.
    pub restore: Program,
}

/// Returns the bytes of one set.
pub fn bytes(case: &Case) -> u64 {
    let of = |slot: &Slot| slot.elements() as u64 * slot.elem.bytes();
    case.slots.iter().map(|slot| if slot.role == Role::Accumulated { 2 } else { 1 } * of(slot)).sum()
}

/// Returns whether a case is judged by this tensor.
pub fn is_output(slot: &Slot) -> bool {
    matches!(slot.role, Role::Overwritten | Role::Accumulated)
}

impl Set {
    /// Allocates and records a set. The device's capabilities determine the kernels.
    pub fn new(gpu: &Gpu, case: &Case, contents: &[Contents]) -> Result<Self> {
        let tensors = case.allocate(gpu)?;
        let mut restore = Pass::new(gpu);
        for ((slot, tensor), contents) in case.slots.iter().zip(&tensors).zip(contents) {
            let bytes = match contents.before.as_slice() {
                [] => to_bytes(slot.elem, &vec![unwritten(slot.elem); slot.elements()]),
                before => to_bytes(slot.elem, before),
            };
            gpu.write(tensor, &bytes)?;
            if slot.role == Role::Accumulated {
                let copy = gpu.tensor(slot.name, slot.shape[0], slot.shape[1], slot.elem)?;
                gpu.write(&copy, &bytes)?;
                restore.copy(&copy, tensor)?;
            }
        }
        let restore = restore.finish();
        let mut pass = Pass::new(gpu);
        case.record(&mut pass, &tensors)?;
        Ok(Self { tensors, program: pass.finish(), restore })
    }

    /// Runs the set once and compares its outputs with the reference.
    pub fn verify(&self, gpu: &Gpu, case: &Case, contents: &[Contents]) -> Result<()> {
        self.program.run(gpu)?;
        for ((slot, tensor), contents) in case.slots.iter().zip(&self.tensors).zip(contents) {
            if let Some(want) = contents.want.as_ref().filter(|_| is_output(slot)) {
                let got = from_bytes(slot.elem, &gpu.read(tensor)?);
                slot.judge(want, &got).map_err(|what| Error::gpu(format!("{case}: {what}")))?;
            }
        }
        Ok(())
    }
}
