//! Subgroup barriers for CPU drivers, whose subgroup is one vector.
//!
//! Mesa's software Vulkan implements a subgroup barrier as a barrier of the whole workgroup: a kernel hangs or computes
//! wrong results where only some subgroups reach it. The invocations of a vector always run together, so it is enough
//! to order memory.

use spirv::{Op, Scope};

use super::module::{Instruction, Module};

/// Replaces every subgroup barrier by a memory barrier.
pub(super) fn order_memory_only(module: &mut Module) {
    let constants = module.constants();
    for i in &mut module.list {
        let [execution, memory, semantics] = i.operands[..] else { continue };
        let of_subgroup = constants.get(&execution).is_some_and(|(_, scope)| *scope == Scope::Subgroup as u32);
        if i.is(Op::ControlBarrier) && of_subgroup {
            *i = Instruction::new(Op::MemoryBarrier, [memory, semantics]);
        }
    }
}
