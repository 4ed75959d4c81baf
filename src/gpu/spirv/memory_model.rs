//! Marks memory accesses and barriers as the Vulkan memory model requires.
//!
//! A module with cooperative matrices declares that model, in which an access is private to its invocation unless it is
//! marked otherwise. naga 30 marks none (gfx-rs/wgpu issue 8805): formally a workgroup's memory is then never
//! synchronised, and drivers that rely on this may reorder accesses.

use std::collections::HashMap;

use spirv::{MemoryAccess, MemoryModel, MemorySemantics, Op, Scope, StorageClass};

use super::module::{Instruction, Module, Type};

/// Marks every access to shared memory as non-private, and makes every barrier make writes available and visible.
/// Modules with another memory model are left unchanged.
///
/// # Errors
/// A message if a barrier orders memory beyond the workgroup: that needs a capability that these modules do not
/// declare.
pub(super) fn mark(module: &mut Module) -> Result<(), String> {
    if !module.all(Op::MemoryModel).any(|o| o.get(1) == Some(&(MemoryModel::Vulkan as u32))) {
        return Ok(());
    }
    let (types, pointers, constants) = (module.types(), module.pointers(), module.constants());
    let scopes = module.all(Op::ControlBarrier).map(|o| o[1]).chain(module.all(Op::MemoryBarrier).map(|o| o[0]));
    let narrow = [Scope::Workgroup, Scope::Subgroup, Scope::Invocation].map(|scope| scope as u32);
    let is_wide = |id: u32| constants.get(&id).is_none_or(|(_, scope)| !narrow.contains(scope));
    if scopes.into_iter().any(is_wide) {
        return Err(
            "a kernel with matrices has a barrier for the memory of the whole device, expected workgroupBarrier".into(),
        );
    }
    let is_shared = |pointer: &u32| {
        let class = pointers.get(pointer).and_then(|ty| types.get(ty));
        matches!(
            class,
            Some(Type::Pointer(StorageClass::Uniform | StorageClass::Workgroup | StorageClass::StorageBuffer, _))
        )
    };
    let mut made: HashMap<u32, u32> = HashMap::new();
    let mut list = std::mem::take(&mut module.list);
    let mut new = Vec::new();
    for i in &mut list {
        // positions of the pointer and of the memory operands, which are optional
        let places = match i.op() {
            Op::Load => Some((2, 3)),
            Op::Store => Some((0, 2)),
            Op::CooperativeMatrixLoadKHR => Some((2, 5)),
            Op::CooperativeMatrixStoreKHR => Some((0, 4)),
            _ => None,
        };
        if let Some((pointer, memory)) = places
            && i.operands.get(pointer).is_some_and(is_shared)
        {
            let mask = MemoryAccess::NON_PRIVATE_POINTER.bits();
            match i.operands.get_mut(memory) {
                Some(operands) => *operands |= mask,
                None => i.operands.push(mask),
            }
        }
        let semantics = match i.op() {
            Op::ControlBarrier => 2,
            Op::MemoryBarrier => 1,
            _ => continue,
        };
        let Some(&(ty, value)) = i.operands.get(semantics).and_then(|id| constants.get(id)) else { continue };
        let mut wanted = (MemorySemantics::MAKE_AVAILABLE | MemorySemantics::MAKE_VISIBLE).bits();
        // the memory that a subgroup's invocations share, and its barrier must order, is workgroup memory
        if value & MemorySemantics::SUBGROUP_MEMORY.bits() != 0 {
            wanted |= MemorySemantics::WORKGROUP_MEMORY.bits();
        }
        if value & wanted == wanted {
            continue;
        }
        i.operands[semantics] = *made.entry(value).or_insert_with(|| {
            let id = module.id();
            new.push(Instruction::new(Op::Constant, [ty, id, value | wanted]));
            id
        });
    }
    module.list = list;
    module.declare_last(new);
    Ok(())
}
