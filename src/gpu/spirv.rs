//! Puts right what naga 30 leaves out of SPIR-V with cooperative matrices.
//!
//! Such a module declares the Vulkan memory model, in which nothing is shared between invocations unless each access
//! says so. naga 30 says it nowhere (gfx-rs/wgpu issue 8805): formally a workgroup's memory is then never synchronised,
//! and drivers that believe it may reorder. [`repair`] marks every access to memory that invocations share as
//! non-private, and lets every barrier make writes available and visible. It also takes `ArrayStride` and `Offset` from
//! types outside of storage buffers, where Vulkan forbids them (gfx-rs/wgpu issue 7696) and some drivers crash on them.

use std::collections::{HashMap, HashSet};

use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};

use crate::error::Result;

use super::kernel::Kernel;

const MEMORY_MODEL: u32 = 14;
const TYPE_ARRAY: u32 = 28;
const TYPE_RUNTIME_ARRAY: u32 = 29;
const TYPE_STRUCT: u32 = 30;
const TYPE_POINTER: u32 = 32;
const CONSTANT: u32 = 43;
const FUNCTION: u32 = 54;
const FUNCTION_PARAMETER: u32 = 55;
const VARIABLE: u32 = 59;
const LOAD: u32 = 61;
const STORE: u32 = 62;
const ACCESS_CHAIN: u32 = 65;
const IN_BOUNDS_ACCESS_CHAIN: u32 = 66;
const DECORATE: u32 = 71;
const MEMBER_DECORATE: u32 = 72;
const CONTROL_BARRIER: u32 = 224;
const MEMORY_BARRIER: u32 = 225;
const COOPERATIVE_LOAD: u32 = 4457;
const COOPERATIVE_STORE: u32 = 4458;

const VULKAN_MODEL: u32 = 3;
const DECORATION_BLOCK: u32 = 2;
const DECORATION_ARRAY_STRIDE: u32 = 6;
const DECORATION_OFFSET: u32 = 35;
/// Uniform, Workgroup, StorageBuffer.
const SHARED_CLASSES: [u32; 3] = [2, 4, 12];
const NON_PRIVATE: u32 = 0x20;
const MAKE_AVAILABLE_AND_VISIBLE: u32 = 0x2000 | 0x4000;

/// A kernel's module as naga writes it for Vulkan 1.2, bindings in group 0 by their numbers.
///
/// # Errors
/// [`crate::error::Error::Gpu`] with naga's message.
pub fn written(kernel: &Kernel, checked: bool) -> Result<Vec<u32>> {
    let (module, info) = kernel.specialize(&kernel.parsed()?)?;
    let policy = if checked { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    let options = spv::Options {
        lang_version: (1, 5),
        flags: spv::WriterFlags::empty(),
        fake_missing_bindings: true,
        bounds_check_policies: BoundsCheckPolicies {
            index: policy,
            buffer: policy,
            image_load: BoundsCheckPolicy::Unchecked,
            binding_array: BoundsCheckPolicy::Unchecked,
        },
        zero_initialize_workgroup_memory: if checked {
            spv::ZeroInitializeWorkgroupMemoryMode::Polyfill
        } else {
            spv::ZeroInitializeWorkgroupMemoryMode::None
        },
        force_loop_bounding: checked,
        emit_int_div_checks: checked,
        use_storage_input_output_16: false,
        ..spv::Options::default()
    };
    let pipeline =
        spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: kernel.entry.to_owned() };
    spv::write_vec(&module, &info, &options, Some(&pipeline)).map_err(|e| kernel.fault(&e.to_string()))
}

/// One instruction: its code and its operands.
struct Instruction {
    code: u32,
    operands: Vec<u32>,
}

fn parse(words: &[u32]) -> Vec<Instruction> {
    let mut list = Vec::new();
    let mut rest = words.get(5..).unwrap_or_default();
    while let Some(&first) = rest.first() {
        let length = ((first >> 16) as usize).clamp(1, rest.len());
        list.push(Instruction { code: first & 0xffff, operands: rest[1..length].to_vec() });
        rest = &rest[length..];
    }
    list
}

/// The module with its memory accesses and barriers marked as the Vulkan memory model wants them, and without layouts
/// where there must be none. Modules of another memory model come back as they are.
#[must_use]
pub fn repair(words: &[u32]) -> Vec<u32> {
    let mut list = parse(words);
    let vulkan = list.iter().any(|i| i.code == MEMORY_MODEL && i.operands.get(1) == Some(&VULKAN_MODEL));
    if !vulkan {
        return words.to_vec();
    }
    let mut bound = words[3];
    let constants = mark_accesses(&mut list, &mut bound);
    let shared = shared_types(&list);
    list.retain(|i| match (i.code, i.operands.as_slice()) {
        (DECORATE, [id, DECORATION_ARRAY_STRIDE, ..]) | (MEMBER_DECORATE, [id, _, DECORATION_OFFSET, ..]) => {
            shared.contains(id)
        }
        _ => true,
    });
    let mut result = words[..5].to_vec();
    result[3] = bound;
    let first_function = list.iter().position(|i| i.code == FUNCTION).unwrap_or(list.len());
    for (at, i) in list.iter().enumerate() {
        if at == first_function {
            for &(ty, id, value) in &constants {
                result.extend([(4 << 16) | CONSTANT, ty, id, value]);
            }
        }
        result.push(((i.operands.len() as u32 + 1) << 16) | i.code);
        result.extend(&i.operands);
    }
    result
}

/// Marks accesses and barriers. Returns the constants (type, id, value) that the barriers now need.
fn mark_accesses(list: &mut [Instruction], bound: &mut u32) -> Vec<(u32, u32, u32)> {
    // the storage class of pointer types, the type of pointers, and integer constants
    let (mut class, mut type_of, mut constant) = (HashMap::new(), HashMap::new(), HashMap::new());
    for i in list.iter() {
        match (i.code, i.operands.as_slice()) {
            (TYPE_POINTER, [id, storage, ..]) => {
                class.insert(*id, *storage);
            }
            (CONSTANT, [ty, id, value]) => {
                constant.insert(*id, (*ty, *value));
            }
            (VARIABLE | FUNCTION_PARAMETER | ACCESS_CHAIN | IN_BOUNDS_ACCESS_CHAIN, [ty, id, ..]) => {
                type_of.insert(*id, *ty);
            }
            _ => {}
        }
    }
    let is_shared = |pointer: u32| {
        type_of.get(&pointer).and_then(|ty| class.get(ty)).is_some_and(|storage| SHARED_CLASSES.contains(storage))
    };
    let mut made: HashMap<u32, u32> = HashMap::new();
    let mut new = Vec::new();
    for i in list.iter_mut() {
        // where the pointer stands, and where the memory operands do if there are any
        let places = match i.code {
            LOAD => Some((2, 3)),
            STORE => Some((0, 2)),
            COOPERATIVE_LOAD => Some((2, 5)),
            COOPERATIVE_STORE => Some((0, 4)),
            _ => None,
        };
        if let Some((pointer, memory)) = places
            && i.operands.get(pointer).is_some_and(|p| is_shared(*p))
        {
            match i.operands.get_mut(memory) {
                Some(mask) => *mask |= NON_PRIVATE,
                None => i.operands.push(NON_PRIVATE),
            }
        }
        let semantics = match i.code {
            CONTROL_BARRIER => 2,
            MEMORY_BARRIER => 1,
            _ => continue,
        };
        let Some(&(ty, value)) = i.operands.get(semantics).and_then(|id| constant.get(id)) else { continue };
        i.operands[semantics] = *made.entry(value).or_insert_with(|| {
            let id = *bound;
            *bound += 1;
            new.push((ty, id, value | MAKE_AVAILABLE_AND_VISIBLE));
            id
        });
    }
    new
}

/// Types that a storage buffer holds.
fn shared_types(list: &[Instruction]) -> HashSet<u32> {
    let (mut parts, mut pending): (HashMap<u32, Vec<u32>>, Vec<u32>) = Default::default();
    for i in list {
        match (i.code, i.operands.as_slice()) {
            (TYPE_ARRAY | TYPE_RUNTIME_ARRAY, [id, element, ..]) => {
                parts.insert(*id, vec![*element]);
            }
            (TYPE_STRUCT, [id, members @ ..]) => {
                parts.insert(*id, members.to_vec());
            }
            (DECORATE, [id, DECORATION_BLOCK, ..]) => pending.push(*id),
            _ => {}
        }
    }
    let mut shared = HashSet::new();
    while let Some(id) = pending.pop() {
        if shared.insert(id) {
            pending.extend(parts.get(&id).into_iter().flatten());
        }
    }
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: &str = "
enable f16;
enable wgpu_cooperative_matrix;
var<workgroup> tile: array<f16, 64>;
@group(0) @binding(0) var<storage, read> inp: array<f16>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@compute @workgroup_size(32)
fn main(@builtin(local_invocation_index) lane: u32) {
    tile[lane] = inp[lane];
    tile[lane + 32u] = inp[lane + 32u];
    workgroupBarrier();
    var c = coop_mat8x8<f32, C>();
    let a = coopLoadT<coop_mat8x8<f16, A>>(&tile[0], 8u);
    let b = coopLoadT<coop_mat8x8<f16, B>>(&inp[0], 8u);
    c = coopMultiplyAdd(a, b, c);
    let result = c;
    coopStoreT(result, &out[0], 8u);
}";

    fn count(words: &[u32], is: impl Fn(&Instruction) -> bool) -> usize {
        parse(words).iter().filter(|i| is(i)).count()
    }

    #[test]
    fn every_shared_access_and_barrier_is_marked_and_nothing_else_changes() {
        let kernel = Kernel::generated("probe".into(), "main", KERNEL.into());
        let before = written(&kernel, false).expect("writes");
        let after = repair(&before);
        let marked = |i: &Instruction| {
            [LOAD, STORE, COOPERATIVE_LOAD, COOPERATIVE_STORE].contains(&i.code)
                && i.operands.last().is_some_and(|mask| mask & NON_PRIVATE != 0)
                && i.operands.len()
                    > [2, 3, 5, 4][[STORE, LOAD, COOPERATIVE_LOAD, COOPERATIVE_STORE]
                        .iter()
                        .position(|c| *c == i.code)
                        .unwrap_or(0)]
        };
        assert_eq!(count(&before, marked), 0);
        // two loads and two stores of the tile's filling, two cooperative loads, one cooperative store
        assert_eq!(count(&after, marked), 7);
        let barriers: Vec<u32> =
            parse(&after).iter().filter(|i| i.code == CONTROL_BARRIER).map(|i| i.operands[2]).collect();
        let values: HashMap<u32, u32> =
            parse(&after).iter().filter(|i| i.code == CONSTANT).map(|i| (i.operands[1], i.operands[2])).collect();
        assert_eq!(barriers.len(), 1);
        assert!(barriers.iter().all(|id| values[id] & MAKE_AVAILABLE_AND_VISIBLE == MAKE_AVAILABLE_AND_VISIBLE));
        let strides = |i: &Instruction| i.code == DECORATE && i.operands.get(1) == Some(&DECORATION_ARRAY_STRIDE);
        assert_eq!((count(&before, strides), count(&after, strides)), (3, 2));
        assert_eq!(parse(&before).len() + 1 - 1, parse(&after).len(), "one constant more, one decoration less");
        assert_eq!(repair(&after).len(), parse(&after).iter().map(|i| i.operands.len() + 1).sum::<usize>() + 5 + 4);
    }

    #[test]
    fn modules_of_the_other_memory_model_stay_as_they_are() {
        let text = "@group(0) @binding(0) var<storage, read_write> out: array<f32>;
            @compute @workgroup_size(1) fn main() { out[0] = 1.0; }";
        let words = written(&Kernel::generated("plain".into(), "main", text.into()), false).expect("writes");
        assert_eq!(repair(&words), words);
    }
}
