//! Barriers of a subgroup for drivers of the CPU, whose subgroup is one vector.
//!
//! Mesa's software Vulkan makes a barrier of a subgroup one of the whole workgroup: a kernel hangs or goes wrong where some
//! subgroups have one that others pass by. Invocations of a vector are never apart, so ordering memory is all that is needed.

use spirv::{Op, Scope};

use super::module::{Instruction, Module};

/// Turns every barrier of a subgroup into one of its memory alone.
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
