//! What NVIDIA's compiler has been seen to get wrong, held against all SPIR-V with cooperative matrices as it is handed
//! to the driver without checks of its own. With checks every division goes through one function of naga's.

use std::collections::{BTreeSet, HashMap, HashSet};

use spirv::{Op, StorageClass};

/// A division by a number that is no power of two must not find an index into workgroup memory: the compiler has stored
/// to wrong places there. Arrays in workgroup memory take whole pieces of 16 bytes: the compiler has taken those behind
/// one that does not to be aligned.
pub fn faults(words: &[u32]) -> Vec<String> {
    let module = Module::new(words);
    if !module.has_matrices {
        return Vec::new();
    }
    let mut faults = Vec::new();
    for instruction in module.all.iter().filter(|i| matches!(i.op, Op::AccessChain | Op::InBoundsAccessChain)) {
        let [_, id, base, indices @ ..] = &instruction.operands[..] else { continue };
        if !module.is_workgroup(*base) {
            continue;
        }
        let mut walk = Walk { module: &module, seen: HashSet::new() };
        if let Some(division) = indices.iter().find_map(|index| walk.division_before(*index)) {
            faults.push(format!(
                "%{id}: an index into workgroup memory comes from the division %{division} by no power of two"
            ));
        }
    }
    for (id, bytes) in module.workgroup_arrays().filter(|(_, bytes)| bytes % 16 != 0) {
        faults.push(format!("%{id}: an array of {bytes} bytes in workgroup memory, expected a multiple of 16"));
    }
    faults
}

struct Instruction {
    op: Op,
    operands: Vec<u32>,
}

/// Whether an instruction of a function has a type and a result.
fn has_result(op: Op) -> bool {
    let without = [
        Op::Label,
        Op::Branch,
        Op::BranchConditional,
        Op::Switch,
        Op::LoopMerge,
        Op::SelectionMerge,
        Op::Return,
        Op::ReturnValue,
        Op::Unreachable,
        Op::Store,
        Op::AtomicStore,
        Op::CooperativeMatrixStoreKHR,
        Op::ControlBarrier,
        Op::MemoryBarrier,
        Op::FunctionEnd,
    ];
    !without.contains(&op)
}

struct Module {
    all: Vec<Instruction>,
    /// The instruction of an id.
    of: HashMap<u32, usize>,
    /// The function and the place among its parameters of a parameter.
    parameters: HashMap<u32, (u32, usize)>,
    /// The arguments of every call of a function.
    calls: HashMap<u32, Vec<Vec<u32>>>,
    /// The values that a function returns.
    returned: HashMap<u32, Vec<u32>>,
    /// The values that are stored through a pointer.
    stored: HashMap<u32, Vec<u32>>,
    has_matrices: bool,
}

impl Module {
    fn new(words: &[u32]) -> Self {
        let mut module = Self {
            all: Vec::new(),
            of: HashMap::new(),
            parameters: HashMap::new(),
            calls: HashMap::new(),
            returned: HashMap::new(),
            stored: HashMap::new(),
            has_matrices: false,
        };
        let (mut rest, mut function, mut count) = (&words[5..], 0, 0);
        while let [first, ..] = rest {
            let length = (first >> 16).max(1) as usize;
            let op = Op::from_u32(first & 0xffff).expect("an instruction");
            let operands = rest[1..length].to_vec();
            match (op, &operands[..]) {
                (Op::TypeCooperativeMatrixKHR, _) => module.has_matrices = true,
                (Op::Function, [_, id, ..]) => (function, count) = (*id, 0),
                (Op::FunctionParameter, [_, id]) => {
                    module.parameters.insert(*id, (function, count));
                    count += 1;
                }
                (Op::FunctionCall, [_, _, callee, arguments @ ..]) => {
                    module.calls.entry(*callee).or_default().push(arguments.to_vec());
                }
                (Op::ReturnValue, [value]) => module.returned.entry(function).or_default().push(*value),
                (Op::Store, [pointer, value, ..]) => module.stored.entry(*pointer).or_default().push(*value),
                _ => {}
            }
            let id = match op {
                Op::TypeInt | Op::TypeFloat | Op::TypeVector | Op::TypeArray | Op::TypePointer => operands.first(),
                Op::Constant | Op::Variable | Op::FunctionParameter => operands.get(1),
                _ if function > 0 && has_result(op) => operands.get(1),
                _ => None,
            };
            if let Some(id) = id {
                module.of.insert(*id, module.all.len());
            }
            module.all.push(Instruction { op, operands });
            rest = &rest[length..];
        }
        module
    }

    fn get(&self, id: u32) -> Option<&Instruction> {
        self.of.get(&id).map(|at| &self.all[*at])
    }

    fn is_workgroup(&self, pointer: u32) -> bool {
        let ty = self.get(pointer).and_then(|i| self.get(i.operands[0]));
        ty.is_some_and(|ty| ty.op == Op::TypePointer && ty.operands[1] == StorageClass::Workgroup as u32)
    }

    /// Bytes of a type without layout.
    fn bytes(&self, ty: u32) -> u32 {
        let Some(Instruction { op, operands }) = self.get(ty) else { return 0 };
        match op {
            Op::TypeInt | Op::TypeFloat => operands[1] / 8,
            Op::TypeVector => operands[2] * self.bytes(operands[1]),
            Op::TypeArray => self.get(operands[2]).map_or(0, |length| length.operands[2]) * self.bytes(operands[1]),
            _ => 0,
        }
    }

    /// Every array in workgroup memory, and its bytes.
    fn workgroup_arrays(&self) -> impl Iterator<Item = (u32, u32)> {
        let variables = self.all.iter().filter(|i| i.op == Op::Variable && self.is_workgroup(i.operands[1]));
        variables.filter_map(|i| {
            let ty = self.get(i.operands[0])?.operands[2];
            (self.get(ty)?.op == Op::TypeArray).then(|| (i.operands[1], self.bytes(ty)))
        })
    }

    /// The values that a number may have, if all of them are known.
    fn values(&self, id: u32, depth: usize) -> Option<BTreeSet<u32>> {
        if let (Some((function, at)), 1..) = (self.parameters.get(&id), depth) {
            let mut all = BTreeSet::new();
            // none of a function that this entry does not call
            for arguments in self.calls.get(function).into_iter().flatten() {
                all.extend(self.values(arguments[*at], depth - 1)?);
            }
            return Some(all);
        }
        let Instruction { op, operands } = self.get(id)?;
        if *op == Op::Constant {
            return Some(BTreeSet::from([operands[2]]));
        }
        let of: fn(u32, u32) -> Option<u32> = match op {
            Op::IAdd => u32::checked_add,
            Op::ISub => u32::checked_sub,
            Op::IMul => u32::checked_mul,
            Op::UDiv => u32::checked_div,
            Op::UMod => u32::checked_rem,
            _ => return None,
        };
        let [a, b] = [operands[2], operands[3]].map(|operand| self.values(operand, depth.checked_sub(1)?));
        let (a, b) = (a?, b?);
        a.iter().flat_map(|a| b.iter().map(move |b| of(*a, *b))).collect()
    }
}

struct Walk<'m> {
    module: &'m Module,
    /// The values that were looked at: sources go round in loops.
    seen: HashSet<u32>,
}

impl Walk<'_> {
    /// The division by a number that is no power of two that a value comes from.
    fn division_before(&mut self, id: u32) -> Option<u32> {
        if !self.seen.insert(id) {
            return None;
        }
        match self.divides_badly(id) {
            true => Some(id),
            false => self.sources(id).into_iter().find_map(|source| self.division_before(source)),
        }
    }

    fn divides_badly(&self, id: u32) -> bool {
        let Some(Instruction { op, operands }) = self.module.get(id) else { return false };
        let divides = matches!(op, Op::UDiv | Op::UMod | Op::SDiv | Op::SRem | Op::SMod);
        let is_power = |divisors: BTreeSet<u32>| divisors.into_iter().all(u32::is_power_of_two);
        divides && !self.module.values(operands[3], 8).is_some_and(is_power)
    }

    fn sources(&self, id: u32) -> HashSet<u32> {
        let module = self.module;
        if let Some((function, at)) = module.parameters.get(&id) {
            return module.calls.get(function).into_iter().flatten().map(|arguments| arguments[*at]).collect();
        }
        let Some(Instruction { op, operands }) = module.get(id) else { return HashSet::new() };
        match op {
            Op::FunctionCall => module.returned.get(&operands[2]).into_iter().flatten().copied().collect(),
            Op::Load => module.stored.get(&operands[2]).into_iter().flatten().copied().collect(),
            Op::Constant | Op::Variable | Op::Function => HashSet::new(),
            // literals are no ids
            Op::ExtInst => operands[4..].iter().copied().collect(),
            // what only chooses between two indices is none
            Op::Select => HashSet::from([operands[3], operands[4]]),
            Op::CompositeExtract => HashSet::from([operands[2]]),
            Op::CompositeInsert | Op::VectorShuffle => HashSet::from([operands[2], operands[3]]),
            _ => operands[2.min(operands.len())..].iter().copied().collect(),
        }
    }
}
