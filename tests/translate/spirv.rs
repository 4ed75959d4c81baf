//! One known fault of naga 30's SPIR-V, taken out before `spirv-val` reads it.

use std::collections::{HashMap, HashSet};

const TYPE_ARRAY: u32 = 28;
const TYPE_RUNTIME_ARRAY: u32 = 29;
const TYPE_STRUCT: u32 = 30;
const DECORATE: u32 = 71;
const MEMBER_DECORATE: u32 = 72;
const BLOCK: u32 = 2;
const ARRAY_STRIDE: u32 = 6;
const OFFSET: u32 = 35;

/// The module without the layout of types that no storage buffer holds.
///
/// naga decorates every array with ArrayStride and every member with Offset, also in workgroup and function memory,
/// where Vulkan has forbidden it since 2024 (VUID-StandaloneSpirv-None-10684; gfx-rs/wgpu #7696, open). Drivers ignore
/// it. `spirv-val` stops at its first finding, so leaving it in would hide all others, and the environments without
/// this rule (`spv1.5`) lack all of Vulkan's rules.
pub fn without_local_layouts(words: &[u32]) -> Vec<u32> {
    let parts: HashMap<u32, Vec<u32>> = instructions(words)
        .filter_map(|i| match (opcode(i), i) {
            (TYPE_ARRAY | TYPE_RUNTIME_ARRAY, [_, id, element, ..]) => Some((*id, vec![*element])),
            (TYPE_STRUCT, [_, id, members @ ..]) => Some((*id, members.to_vec())),
            _ => None,
        })
        .collect();
    let mut pending: Vec<u32> = instructions(words)
        .filter_map(|i| match (opcode(i), i) {
            (DECORATE, [_, id, BLOCK, ..]) => Some(*id),
            _ => None,
        })
        .collect();
    let mut shared = HashSet::new();
    while let Some(id) = pending.pop() {
        if shared.insert(id) {
            pending.extend(parts.get(&id).into_iter().flatten());
        }
    }
    let mut result = words[..5].to_vec();
    for i in instructions(words) {
        let local_layout = match (opcode(i), i) {
            (DECORATE, [_, id, ARRAY_STRIDE, ..]) | (MEMBER_DECORATE, [_, id, _, OFFSET, ..]) => !shared.contains(id),
            _ => false,
        };
        if !local_layout {
            result.extend(i);
        }
    }
    result
}

fn opcode(instruction: &[u32]) -> u32 {
    instruction[0] & 0xffff
}

/// The instructions behind the header of five words.
fn instructions(words: &[u32]) -> impl Iterator<Item = &[u32]> {
    let mut rest = &words[5..];
    std::iter::from_fn(move || {
        let length = (*rest.first()? >> 16) as usize;
        let (instruction, behind) = rest.split_at(length.clamp(1, rest.len()));
        rest = behind;
        Some(instruction)
    })
}

/// Arrays with a stride, for the tests.
#[cfg(test)]
pub fn strides(words: &[u32]) -> usize {
    instructions(words).filter(|i| opcode(i) == DECORATE && i.get(2) == Some(&ARRAY_STRIDE)).count()
}
