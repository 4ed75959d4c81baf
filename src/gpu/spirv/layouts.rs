//! Removes explicit layouts from the types of memory that must not have them.
//!
//! naga 30 decorates every array with `ArrayStride` and every member of a struct with `Offset`, and uses one type for
//! buffers and for workgroup and function memory. Vulkan allows explicit layouts only in buffers and immediates
//! (VUID-StandaloneSpirv-None-10684, gfx-rs/wgpu issue 7696), and some drivers crash on others. Types that are used
//! only in other memory lose their decorations. A type that is used in both is cloned for the other memory, and its
//! values are converted part by part where they are loaded and stored.

use std::collections::{BTreeMap, HashMap, HashSet};

use spirv::{Decoration, Op, StorageClass};

use super::module::{Instruction, Module, Type, with_parts};

/// Removes explicit layouts from all types except those of buffers and immediates.
///
/// # Errors
/// A message if a variable of a cloned type is initialised with a constant other than zero, or if a cloned type is an
/// array whose length is not a constant of one word.
pub(super) fn strip(module: &mut Module) -> Result<(), String> {
    let laid_out = module.laid_out();
    let clones = clone_types(module, &laid_out)?;
    if !clones.is_empty() {
        convert_values(module, &clones)?;
    }
    module.list.retain(|i| match (i.op(), i.operands.as_slice()) {
        (Op::Decorate, [id, decoration, ..]) => *decoration != Decoration::ArrayStride as u32 || laid_out.contains(id),
        (Op::MemberDecorate, [id, _, decoration, ..]) => {
            *decoration != Decoration::Offset as u32 || laid_out.contains(id)
        }
        _ => true,
    });
    Ok(())
}

/// Returns whether types in this memory must not have a layout.
fn is_local(class: StorageClass) -> bool {
    matches!(class, StorageClass::Function | StorageClass::Private | StorageClass::Workgroup)
}

/// Declares a clone of every aggregate that both buffers and local memory hold, and makes pointers to local memory
/// point to the clone. Returns the clones by their originals.
fn clone_types(module: &mut Module, laid_out: &HashSet<u32>) -> Result<HashMap<u32, u32>, String> {
    let (types, constants) = (module.types(), module.constants());
    let pointees = types.values().filter_map(|ty| match ty {
        Type::Pointer(class, to) if is_local(*class) => Some(*to),
        _ => None,
    });
    let local = with_parts(&types, pointees.collect());
    // aggregates in the order of their declaration, so that parts are cloned before the whole; an aggregate that only
    // local memory holds must contain the clones of its parts that both hold
    let mut clones = HashMap::new();
    let order: Vec<Instruction> =
        module.list.iter().filter(|i| matches!(i.op(), Op::TypeArray | Op::TypeStruct)).cloned().collect();
    for declaration in order {
        let id = declaration.operands[0];
        let parts = match types.get(&id) {
            Some(Type::Array(element, _)) => vec![*element],
            Some(Type::Struct(members)) => members.clone(),
            _ => continue,
        };
        let both = laid_out.contains(&id);
        if !local.contains(&id) || !(both || parts.iter().any(|part| clones.contains_key(part))) {
            continue;
        }
        if let Some(Type::Array(_, Some(length))) = types.get(&id)
            && !constants.contains_key(length)
        {
            return Err("buffers and local memory share an array whose length is not a constant".into());
        }
        let clone = module.id();
        let mut operands = declaration.operands.clone();
        operands[0] = clone;
        let parts = if declaration.is(Op::TypeArray) { 1..2 } else { 1..operands.len() };
        for part in &mut operands[parts] {
            *part = clones.get(part).copied().unwrap_or(*part);
        }
        module.declare_after(id, vec![Instruction::new(declaration.op(), operands)]);
        clones.insert(id, clone);
    }
    for i in module.list.iter_mut().filter(|i| i.is(Op::TypePointer)) {
        let class = StorageClass::from_u32(i.operands[1]);
        if let (true, Some(clone)) = (class.is_some_and(is_local), clones.get(&i.operands[2])) {
            i.operands[2] = *clone;
        }
    }
    Ok(clones)
}

/// Converts values where they are loaded and stored: values keep the original types, local memory holds the clones.
fn convert_values(module: &mut Module, clones: &HashMap<u32, u32>) -> Result<(), String> {
    let types = module.types();
    let originals: HashMap<u32, u32> = clones.iter().map(|(original, clone)| (*clone, *original)).collect();
    let (pointers, constants) = (module.pointers(), module.constants());
    // the cloned type that a pointer points to
    let clone_at = |pointer: &u32| match pointers.get(pointer).and_then(|ty| types.get(ty)) {
        Some(Type::Pointer(class, to)) if is_local(*class) && originals.contains_key(to) => Some(*to),
        _ => None,
    };
    let nulls: HashSet<u32> = module.all(Op::ConstantNull).map(|o| o[1]).collect();
    let mut converter = Converter { types: &types, constants: &constants, out: Vec::new() };
    let mut zeros: BTreeMap<u32, u32> = BTreeMap::new();
    for mut i in std::mem::take(&mut module.list) {
        match (i.op(), i.operands.as_slice()) {
            (Op::Load, [ty, result, pointer, memory @ ..]) => {
                if let Some(clone) = clone_at(pointer) {
                    let loaded = module.id();
                    let load = Instruction::new(Op::Load, [&[clone, loaded, *pointer], memory].concat());
                    converter.out.push(load);
                    let (ty, result) = (*ty, *result);
                    converter.convert(module, loaded, clone, ty, Some(result));
                    continue;
                }
            }
            (Op::Store, [pointer, value, memory @ ..]) => {
                if let Some(clone) = clone_at(pointer) {
                    let converted = converter.convert(module, *value, originals[&clone], clone, None);
                    i = Instruction::new(Op::Store, [&[*pointer, converted], memory].concat());
                }
            }
            (Op::Variable, [_, id, _, initial]) => {
                if let Some(clone) = clone_at(id) {
                    if !nulls.contains(initial) {
                        return Err(
                            "a local variable whose type buffers also hold is initialised with a constant; assign it \
                             after its declaration"
                                .into(),
                        );
                    }
                    i.operands[3] = *zeros.entry(clone).or_insert_with(|| module.id());
                }
            }
            _ => {}
        }
        converter.out.push(i);
    }
    module.list = converter.out;
    for (ty, id) in zeros {
        module.declare_after(ty, vec![Instruction::new(Op::ConstantNull, [ty, id])]);
    }
    Ok(())
}

struct Converter<'m> {
    types: &'m HashMap<u32, Type>,
    constants: &'m HashMap<u32, (u32, u32)>,
    out: Vec<Instruction>,
}

impl Converter<'_> {
    /// Appends instructions that convert `value` from the type `from` to the type `to`, which has the same parts.
    /// Returns the id of the converted value, which is `result` if that is given.
    fn convert(&mut self, module: &mut Module, value: u32, from: u32, to: u32, result: Option<u32>) -> u32 {
        if from == to && result.is_none() {
            return value;
        }
        let parts: Vec<(u32, u32)> = match (self.types.get(&from), self.types.get(&to)) {
            (Some(Type::Array(a, Some(length))), Some(Type::Array(b, _))) => {
                vec![(*a, *b); self.constants.get(length).map_or(0, |(_, n)| *n as usize)]
            }
            (Some(Type::Struct(a)), Some(Type::Struct(b))) => a.iter().copied().zip(b.iter().copied()).collect(),
            _ => Vec::new(),
        };
        let mut operands = vec![to, result.unwrap_or_else(|| module.id())];
        for (index, (from, to)) in (0..).zip(parts) {
            let part = module.id();
            self.out.push(Instruction::new(Op::CompositeExtract, [from, part, value, index]));
            operands.push(self.convert(module, part, from, to, None));
        }
        let id = operands[1];
        self.out.push(Instruction::new(Op::CompositeConstruct, operands));
        id
    }
}
