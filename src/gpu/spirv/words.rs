//! Moves eight f16 in one access of 16 bytes.
//!
//! WGSL has no vector of eight f16, and naga 30 has no bitcast from `vec4<u32>` to f16, so kernels declare
//! `struct { vec4<f16>, vec4<f16> }`. Mesa's compiler for NVIDIA loads this struct as two halves of 8 bytes, and with
//! bounds checks even as eight single f16. This pass turns buffers of such structs into buffers of `vec4<u32>` and
//! converts the bits at every load and store. The values and their order in memory stay the same. The `layouts` pass
//! then removes the struct's own layout.

use std::collections::{HashMap, HashSet};

use spirv::{Decoration, Op, StorageClass};

use super::module::{Instruction, Module, Type};

/// Turns all storage arrays of structs of two `vec4<f16>` into arrays of `vec4<u32>`.
///
/// # Errors
/// A message if memory holds such a struct in any other way than packed in a runtime array, or if the module accesses
/// only one half of it, which would turn one access into two.
pub(super) fn widen(module: &mut Module) -> Result<(), String> {
    let Some((half4, pairs)) = pairs(module) else { return Ok(()) };
    let (types, pointers) = (module.types(), module.pointers());
    let arrays: HashSet<u32> =
        module.all(Op::TypeRuntimeArray).filter(|o| pairs.contains(&o[1])).map(|o| o[0]).collect();
    if arrays.is_empty() {
        return Ok(());
    }
    check(module, &types, &pointers, &pairs)?;
    let to_pair = |ty: &u32| match types.get(ty) {
        Some(Type::Pointer(class, to)) => *class == StorageClass::StorageBuffer && pairs.contains(to),
        _ => false,
    };
    let is_pair = |pointer: &u32| pointers.get(pointer).is_some_and(to_pair);
    let (uint4, uint2) = unsigned_vectors(module);
    let mut list = Vec::with_capacity(module.list.len());
    for mut i in std::mem::take(&mut module.list) {
        match (i.op(), i.operands.as_slice()) {
            (Op::TypeRuntimeArray, [id, ..]) if arrays.contains(id) => i.operands[1] = uint4,
            (Op::TypePointer, [id, ..]) if to_pair(id) => i.operands[2] = uint4,
            (Op::Load, [ty, result, pointer, memory @ ..]) if is_pair(pointer) => {
                let [all, low, high, first, second] = [(); 5].map(|()| module.id());
                list.push(Instruction::new(Op::Load, [&[uint4, all, *pointer], memory].concat()));
                list.push(Instruction::new(Op::VectorShuffle, [uint2, low, all, all, 0, 1]));
                list.push(Instruction::new(Op::VectorShuffle, [uint2, high, all, all, 2, 3]));
                list.push(Instruction::new(Op::Bitcast, [half4, first, low]));
                list.push(Instruction::new(Op::Bitcast, [half4, second, high]));
                i = Instruction::new(Op::CompositeConstruct, [*ty, *result, first, second]);
            }
            (Op::Store, [pointer, value, memory @ ..]) if is_pair(pointer) => {
                let [first, second, low, high, all] = [(); 5].map(|()| module.id());
                list.push(Instruction::new(Op::CompositeExtract, [half4, first, *value, 0]));
                list.push(Instruction::new(Op::CompositeExtract, [half4, second, *value, 1]));
                list.push(Instruction::new(Op::Bitcast, [uint2, low, first]));
                list.push(Instruction::new(Op::Bitcast, [uint2, high, second]));
                list.push(Instruction::new(Op::CompositeConstruct, [uint4, all, low, high]));
                i = Instruction::new(Op::Store, [&[*pointer, all], memory].concat());
            }
            _ => {}
        }
        list.push(i);
    }
    module.list = list;
    Ok(())
}

/// Returns the id of `vec4<f16>` and those of all structs of two of them, if the module declares `vec4<f16>`.
fn pairs(module: &Module) -> Option<(u32, HashSet<u32>)> {
    let half = module.all(Op::TypeFloat).find(|o| o[1] == 16)?[0];
    let half4 = module.all(Op::TypeVector).find(|o| o[1..] == [half, 4])?[0];
    let pairs = module.all(Op::TypeStruct).filter(|o| o[1..] == [half4, half4]).map(|o| o[0]).collect();
    Some((half4, pairs))
}

/// Refuses modules that [`widen`] cannot change.
fn check(
    module: &Module,
    types: &HashMap<u32, Type>,
    pointers: &HashMap<u32, u32>,
    pairs: &HashSet<u32>,
) -> Result<(), String> {
    let elsewhere = |id: &u32| match types.get(id) {
        Some(Type::Array(element, Some(_))) => pairs.contains(element),
        Some(Type::Struct(members)) => members.iter().any(|member| pairs.contains(member)),
        _ => false,
    };
    if module.laid_out().iter().any(elsewhere) {
        return Err("memory holds eight f16 outside of a runtime array, expected `array<S>`".into());
    }
    check_layouts(module, types, pairs)?;
    let constants = module.constants();
    for chain in module.list.iter().filter(|i| matches!(i.op(), Op::AccessChain | Op::InBoundsAccessChain)) {
        let [_, _, base, indices @ ..] = chain.operands.as_slice() else { continue };
        let Some(Type::Pointer(StorageClass::StorageBuffer, to)) = pointers.get(base).and_then(|ty| types.get(ty))
        else {
            continue;
        };
        let mut at = *to;
        for index in indices {
            if pairs.contains(&at) {
                return Err("accesses a half of eight f16 in memory, expected whole loads and stores".into());
            }
            at = match types.get(&at) {
                Some(Type::Array(element, _)) => *element,
                Some(Type::Struct(members)) => {
                    constants.get(index).and_then(|(_, value)| members.get(*value as usize)).copied().unwrap_or(0)
                }
                _ => break,
            };
        }
    }
    Ok(())
}

/// Refuses pairs that are not packed, and arrays of pairs that do not begin at a multiple of 16 bytes.
fn check_layouts(module: &Module, types: &HashMap<u32, Type>, pairs: &HashSet<u32>) -> Result<(), String> {
    let is_array = |id: &u32| matches!(types.get(id), Some(Type::Array(element, None)) if pairs.contains(element));
    let loose_array = |o: &[u32]| match o {
        [id, decoration, stride] if *decoration == Decoration::ArrayStride as u32 => is_array(id) && *stride != 16,
        _ => false,
    };
    let loose_member = |o: &[u32]| match o {
        [id, member, decoration, offset] if *decoration == Decoration::Offset as u32 => {
            pairs.contains(id) && *offset != 8 * member
        }
        _ => false,
    };
    let askew = |o: &[u32]| match (o, o.first().and_then(|id| types.get(id))) {
        ([_, member, decoration, offset], Some(Type::Struct(members))) if *decoration == Decoration::Offset as u32 => {
            members.get(*member as usize).is_some_and(is_array) && offset % 16 != 0
        }
        _ => false,
    };
    let loose = module.all(Op::Decorate).any(loose_array) || module.all(Op::MemberDecorate).any(loose_member);
    let askew = module.all(Op::MemberDecorate).any(askew);
    match (loose, askew) {
        (true, _) => Err("eight f16 take more than 16 bytes in memory, expected no @size or @align".into()),
        (_, true) => Err("an array of eight f16 does not begin at a multiple of 16 bytes".into()),
        _ => Ok(()),
    }
}

/// Declares `vec4<u32>` and `vec2<u32>` before every other type, and returns their ids. Existing declarations are
/// moved.
fn unsigned_vectors(module: &mut Module) -> (u32, u32) {
    let mut first = Vec::new();
    let mut take = |module: &mut Module, op, described: &[u32]| {
        let at = module.list.iter().position(|i| i.is(op) && i.operands[1..] == *described);
        let instruction = match at {
            Some(at) => module.list.remove(at),
            None => Instruction::new(op, [&[module.id()], described].concat()),
        };
        let id = instruction.operands[0];
        first.push(instruction);
        id
    };
    let uint = take(module, Op::TypeInt, &[32, 0]);
    let result = (take(module, Op::TypeVector, &[uint, 4]), take(module, Op::TypeVector, &[uint, 2]));
    module.declare_first(first);
    result
}
