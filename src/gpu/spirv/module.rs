//! A SPIR-V module as a list of instructions, with the lookups that the passes share.

use std::collections::{HashMap, HashSet};

use spirv::{Decoration, Op, StorageClass};

/// Words before the first instruction: magic number, version, generator, bound of ids, reserved.
const HEADER: usize = 5;

/// One instruction: its code and its operands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Instruction {
    code: u32,
    pub(super) operands: Vec<u32>,
}

impl Instruction {
    pub(super) fn new(op: Op, operands: impl Into<Vec<u32>>) -> Self {
        Self { code: op as u32, operands: operands.into() }
    }

    pub(super) fn is(&self, op: Op) -> bool {
        self.code == op as u32
    }

    /// Returns the operation; `Nop` if the `spirv` crate does not know it.
    pub(super) fn op(&self) -> Op {
        Op::from_u32(self.code).unwrap_or(Op::Nop)
    }
}

/// A type of memory, in the detail that the passes need.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Type {
    /// Ids of the element type and of the length, which a runtime array lacks.
    Array(u32, Option<u32>),
    Struct(Vec<u32>),
    Pointer(StorageClass, u32),
}

/// A module, split into instructions.
pub(super) struct Module {
    header: [u32; HEADER],
    pub(super) list: Vec<Instruction>,
}

impl Module {
    /// Splits `words` into instructions.
    pub(super) fn new(words: &[u32]) -> Self {
        let mut header = [0; HEADER];
        for (to, from) in header.iter_mut().zip(words) {
            *to = *from;
        }
        let mut list = Vec::new();
        let mut rest = words.get(HEADER..).unwrap_or_default();
        while let Some(&first) = rest.first() {
            let length = ((first >> 16) as usize).clamp(1, rest.len());
            list.push(Instruction { code: first & 0xffff, operands: rest[1..length].to_vec() });
            rest = &rest[length..];
        }
        Self { header, list }
    }

    /// Returns the module's words.
    pub(super) fn words(&self) -> Vec<u32> {
        let mut words = self.header.to_vec();
        for i in &self.list {
            words.push(((i.operands.len() as u32 + 1) << 16) | i.code);
            words.extend(&i.operands);
        }
        words
    }

    /// Returns a new id.
    pub(super) fn id(&mut self) -> u32 {
        self.header[3] += 1;
        self.header[3] - 1
    }

    /// Iterates over the operands of all instructions of one kind.
    pub(super) fn all(&self, op: Op) -> impl Iterator<Item = &[u32]> {
        self.list.iter().filter(move |i| i.is(op)).map(|i| i.operands.as_slice())
    }

    /// Returns the array, struct and pointer types by id.
    pub(super) fn types(&self) -> HashMap<u32, Type> {
        let entry = |i: &Instruction| match (i.op(), i.operands.as_slice()) {
            (Op::TypeArray, [id, element, length]) => Some((*id, Type::Array(*element, Some(*length)))),
            (Op::TypeRuntimeArray, [id, element]) => Some((*id, Type::Array(*element, None))),
            (Op::TypeStruct, [id, members @ ..]) => Some((*id, Type::Struct(members.to_vec()))),
            (Op::TypePointer, [id, class, pointee]) => {
                Some((*id, Type::Pointer(StorageClass::from_u32(*class)?, *pointee)))
            }
            _ => None,
        };
        self.list.iter().filter_map(entry).collect()
    }

    /// Returns the type of every pointer that a variable, a parameter or an access chain makes, by the pointer's id.
    pub(super) fn pointers(&self) -> HashMap<u32, u32> {
        let makes = [Op::Variable, Op::FunctionParameter, Op::AccessChain, Op::InBoundsAccessChain, Op::CopyObject];
        let entry = |i: &Instruction| match i.operands.as_slice() {
            [ty, id, ..] if makes.contains(&i.op()) => Some((*id, *ty)),
            _ => None,
        };
        self.list.iter().filter_map(entry).collect()
    }

    /// Returns type and value of the constants of one word, by id.
    pub(super) fn constants(&self) -> HashMap<u32, (u32, u32)> {
        self.all(Op::Constant)
            .filter_map(|o| match o {
                [ty, id, value] => Some((*id, (*ty, *value))),
                _ => None,
            })
            .collect()
    }

    /// Returns all types that a buffer or the immediates hold, directly or within others. These need an explicit
    /// layout.
    pub(super) fn laid_out(&self) -> HashSet<u32> {
        let blocks = self.all(Op::Decorate).filter_map(|o| match o {
            [id, decoration, ..] if *decoration == Decoration::Block as u32 => Some(*id),
            _ => None,
        });
        with_parts(&self.types(), blocks.collect())
    }

    /// Inserts instructions before the first declaration of a type.
    pub(super) fn declare_first(&mut self, new: Vec<Instruction>) {
        let at = self.list.iter().position(is_type).unwrap_or(self.list.len());
        self.list.splice(at..at, new);
    }

    /// Inserts instructions after all declarations, before the first function.
    pub(super) fn declare_last(&mut self, new: Vec<Instruction>) {
        let at = self.list.iter().position(|i| i.is(Op::Function)).unwrap_or(self.list.len());
        self.list.splice(at..at, new);
    }

    /// Inserts instructions directly after the declaration of `id`.
    pub(super) fn declare_after(&mut self, id: u32, new: Vec<Instruction>) {
        let at = self.list.iter().position(|i| i.operands.first() == Some(&id) && is_type(i));
        let at = at.map_or(0, |at| at + 1);
        self.list.splice(at..at, new);
    }
}

/// Returns the types in `pending` and all types that they contain, directly or within others.
pub(super) fn with_parts(types: &HashMap<u32, Type>, mut pending: Vec<u32>) -> HashSet<u32> {
    let mut found = HashSet::new();
    while let Some(id) = pending.pop() {
        if found.insert(id) {
            match types.get(&id) {
                Some(Type::Array(element, _)) => pending.push(*element),
                Some(Type::Struct(members)) => pending.extend(members),
                _ => {}
            }
        }
    }
    found
}

/// Returns whether an instruction declares a type. Its first operand is then the type's id.
fn is_type(i: &Instruction) -> bool {
    (Op::TypeVoid as u32..=Op::TypePipe as u32).contains(&i.code)
}
