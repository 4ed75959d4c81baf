//! Gives cooperative matrices dimensions that WGSL cannot declare: see [`Dimensions`].

use spirv::{CooperativeMatrixUse, Op, Scope};

use super::module::{Instruction, Module};
use crate::gpu::kernel::Dimensions;

/// Sets the dimensions of all matrices: `a` becomes (M, K), `b` (K, N) and sums (M, N). Also sets whether a subgroup or
/// a workgroup holds them.
///
/// # Errors
/// A message if the module has no matrices, or a matrix of an unknown use.
pub fn resize(words: &[u32], dimensions: Dimensions) -> Result<Vec<u32>, String> {
    let mut module = Module::new(words);
    let constants = module.constants();
    let first = module.list.iter().position(|i| i.is(Op::TypeCooperativeMatrixKHR));
    let first = first.ok_or("the kernel sets dimensions of matrices but has no matrices")?;
    let known = |id: u32| constants.get(&id).copied().ok_or(format!("%{id} of a matrix is not a constant"));
    let (word, _) = known(module.list[first].operands[2])?;
    let Dimensions { m, n, k, workgroup } = dimensions;
    let scope = if workgroup { Scope::Workgroup } else { Scope::Subgroup } as u32;
    let ids = [scope, m, n, k].map(|value| (module.id(), value));
    let [scope, m, n, k] = ids.map(|(id, _)| id);
    for at in first..module.list.len() {
        if module.list[at].is(Op::TypeCooperativeMatrixKHR) {
            let (_, matrix_use) = known(module.list[at].operands[5])?;
            let [rows, columns] = match CooperativeMatrixUse::from_u32(matrix_use) {
                Some(CooperativeMatrixUse::MatrixAKHR) => [m, k],
                Some(CooperativeMatrixUse::MatrixBKHR) => [k, n],
                Some(CooperativeMatrixUse::MatrixAccumulatorKHR) => [m, n],
                None => return Err(format!("a matrix of unknown use {matrix_use}")),
            };
            module.list[at].operands[2..5].copy_from_slice(&[scope, rows, columns]);
        }
    }
    let new = ids.map(|(id, value)| Instruction::new(Op::Constant, [word, id, value]));
    module.list.splice(first..first, new);
    Ok(module.words())
}
