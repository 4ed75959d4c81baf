//! Fills in functions of whole cooperative matrices, which WGSL can declare and not write.
//!
//! naga 30 lets no kernel convert a cooperative matrix or touch an element of one; SPIR-V has both. A kernel declares a
//! function that takes and returns matrices, and this pass writes what it does:
//!
//! - `fn to_half(m: MatrixC) -> MatrixH { return MatrixH(); }` takes a matrix of one element type and returns one of
//!   another: it converts every element.
//! - `fn gelus(m: MatrixC) -> MatrixC { _ = gelu(0.0); return m; }` calls a function of as many scalars as it takes
//!   matrices: it calls that one for every element. What is computed stays WGSL.
//! - `fn largest(m: MatrixC) -> f32 { return larger(LOW, 0.0); }` calls a function of two scalars: an invocation folds the
//!   elements that it holds, beginning with the first scalar.
//! - `fn stored(x: f32, zero: u32) -> f32 { return f32(f16(x)); }` rounds, also under compilers that drop a conversion there and
//!   back.
//!
//! Such kernels would be wrong if they ran as naga writes them, so they need [`crate::gpu::Caps::matrix_functions`], which
//! no device has that takes naga's own output.

use std::collections::HashMap;
use std::ops::Range;

use spirv::{LoopControl, Op, StorageClass};

use super::module::{Instruction, Module};

/// A function of matrices: each a value and its type.
struct Function {
    result: u32,
    parameters: Vec<(u32, u32)>,
    /// The function of scalars that it calls.
    callee: Option<Callee>,
    /// The scalar that a fold begins with.
    fold: Option<u32>,
}

/// A function of scalars, and the type that it returns.
#[derive(Clone, Copy)]
struct Callee {
    id: u32,
    returned: u32,
}

/// Writes every function of matrices.
///
/// # Errors
/// A message if a function takes matrices and is none of the kinds.
pub(super) fn write_functions(module: &mut Module) -> Result<(), String> {
    // element types
    let matrices: HashMap<u32, u32> = module.all(Op::TypeCooperativeMatrixKHR).map(|o| (o[0], o[1])).collect();
    let ids: Vec<u32> = module.all(Op::Function).map(|o| o[1]).collect();
    for id in ids {
        let Some(function) = find(module, &matrices, id)? else { continue };
        let body = match function.callee {
            None => converting(module, &function),
            Some(callee) => calling(module, &function, callee, matrices[&function.parameters[0].1])?,
        };
        let range = range(module, id);
        let first = range.start + 1 + function.parameters.len();
        module.list.splice(first..range.end - 1, body);
    }
    Ok(())
}

/// Puts an or with `zero` between the conversions of every `fn stored(x: f32, zero: u32) -> f32 { return f32(f16(x)); }`. Mesa's
/// compilers drop a conversion to f16 and back, which rounds; what they cannot know to be 0 keeps them from it.
pub(super) fn keep_halves(module: &mut Module) {
    let floats = [32, 16].map(|bits| known(module, Op::TypeFloat, &[bits]));
    let ([Some(full), Some(half)], Some(uint)) = (floats, known(module, Op::TypeInt, &[32, 0])) else { return };
    let ids: Vec<u32> = module.all(Op::Function).map(|o| o[1]).collect();
    for id in ids {
        let body = &module.list[range(module, id)];
        let taken = body.iter().filter(|i| i.is(Op::FunctionParameter));
        let [(first, _), (second, zero)] = taken.map(|i| (i.operands[0], i.operands[1])).collect::<Vec<_>>()[..] else {
            continue;
        };
        let pair = body.windows(2).position(|two| {
            let there = two[0].is(Op::FConvert) && two[0].operands[0] == half;
            there && two[1].is(Op::FConvert) && two[1].operands[0] == full && two[1].operands[2] == two[0].operands[1]
        });
        let Some(at) = pair.filter(|_| [first, second] == [full, uint]) else { continue };
        let vector = declared(module, Op::TypeVector, &[half, 2]);
        let at = range(module, id).start + at;
        let [two, word, kept, back, again] = [(); 5].map(|()| module.id());
        let rounded = module.list[at].operands[1];
        module.list[at + 1].operands[2] = again;
        let new = vec![
            Instruction::new(Op::CompositeConstruct, [vector, two, rounded, rounded]),
            Instruction::new(Op::Bitcast, [uint, word, two]),
            Instruction::new(Op::BitwiseOr, [uint, kept, word, zero]),
            Instruction::new(Op::Bitcast, [vector, back, kept]),
            Instruction::new(Op::CompositeExtract, [half, again, back, 0]),
        ];
        module.list.splice(at + 1..at + 1, new);
    }
}

/// A function's instructions, its end with them.
fn range(module: &Module, id: u32) -> Range<usize> {
    let start = module.list.iter().position(|i| i.is(Op::Function) && i.operands[1] == id).unwrap_or(0);
    let length = module.list[start..].iter().position(|i| i.is(Op::FunctionEnd)).unwrap_or(0);
    start..start + length + 1
}

/// Reads a function, `None` if it is none of matrices or has been written before.
fn find(module: &Module, matrices: &HashMap<u32, u32>, id: u32) -> Result<Option<Function>, String> {
    let body = &module.list[range(module, id)];
    let result = body[0].operands[0];
    let parameters: Vec<(u32, u32)> =
        body.iter().filter(|i| i.is(Op::FunctionParameter)).map(|i| (i.operands[1], i.operands[0])).collect();
    let of_matrices = parameters.iter().all(|(_, ty)| matrices.contains_key(ty));
    let written = body.iter().any(|i| i.is(Op::FConvert) || i.is(Op::CooperativeMatrixLengthKHR));
    let folds = parameters.len() == 1 && matrices.get(&parameters[0].1) == Some(&result);
    if parameters.is_empty() || !of_matrices || !(matrices.contains_key(&result) || folds) || written {
        return Ok(None);
    }
    let mut calls = body.iter().filter(|i| i.is(Op::FunctionCall));
    let call = calls.next();
    let callee = call.map(|call| Callee { id: call.operands[2], returned: call.operands[0] });
    if folds {
        let begins = call.filter(|call| call.operands.len() == 5).map(|call| call.operands[3]);
        let (Some(begins), None) = (begins, calls.next()) else {
            return Err("a function that folds a matrix does not call one function of two scalars".into());
        };
        return Ok(Some(Function { result, parameters, callee, fold: Some(begins) }));
    }
    let converts = parameters.len() == 1 && matrices[&parameters[0].1] != matrices[&result];
    let same = parameters.iter().all(|(_, ty)| *ty == result);
    if calls.next().is_some() || converts != callee.is_none() || !(converts || same) {
        return Err("a function of matrices neither converts one nor calls one function of their elements".into());
    }
    Ok(Some(Function { result, parameters, callee, fold: None }))
}

fn converting(module: &mut Module, function: &Function) -> Vec<Instruction> {
    let [label, converted] = [(); 2].map(|()| module.id());
    vec![
        Instruction::new(Op::Label, [label]),
        Instruction::new(Op::FConvert, [function.result, converted, function.parameters[0].0]),
        Instruction::new(Op::ReturnValue, [converted]),
    ]
}

/// A loop over the elements that an invocation holds, with a hint to write it out: drivers know how many there are.
fn calling(module: &mut Module, function: &Function, callee: Callee, scalar: u32) -> Result<Vec<Instruction>, String> {
    let called = &module.list[range(module, callee.id)];
    let taken = called.iter().filter(|i| i.is(Op::FunctionParameter));
    if callee.returned != scalar
        || taken.clone().count() != function.parameters.len() + usize::from(function.fold.is_some())
        || taken.clone().any(|i| i.operands[0] != scalar)
    {
        return Err("a function of matrices calls one that does not take and return an element of each".into());
    }
    let matrix = function.parameters[0].1;
    let uint = declared(module, Op::TypeInt, &[32, 0]);
    let boolean = declared(module, Op::TypeBool, &[]);
    let class = StorageClass::Function as u32;
    let [to_matrix, to_scalar, to_uint] =
        [matrix, scalar, uint].map(|ty| declared(module, Op::TypePointer, &[class, ty]));
    let [zero, one] = [0, 1].map(|value| constant(module, uint, value));
    let [begin, head, test, turn, next, end] = [(); 6].map(|()| module.id());
    let [index, at, length, inside, value, advanced, whole, folded, so_far] = [(); 9].map(|()| module.id());
    let variables: Vec<u32> = function.parameters.iter().map(|_| module.id()).collect();

    let mut body = vec![Instruction::new(Op::Label, [begin])];
    let variable = |ty, id| Instruction::new(Op::Variable, [ty, id, class]);
    body.extend(variables.iter().map(|id| variable(to_matrix, *id)));
    body.push(variable(to_uint, index));
    if let Some(begins) = function.fold {
        body.push(variable(to_scalar, folded));
        body.push(Instruction::new(Op::Store, [folded, begins]));
    }
    for (id, (parameter, _)) in variables.iter().zip(&function.parameters) {
        body.push(Instruction::new(Op::Store, [*id, *parameter]));
    }
    body.push(Instruction::new(Op::Store, [index, zero]));
    body.push(Instruction::new(Op::Branch, [head]));
    body.push(Instruction::new(Op::Label, [head]));
    body.push(Instruction::new(Op::LoopMerge, [end, next, LoopControl::UNROLL.bits()]));
    body.push(Instruction::new(Op::Branch, [test]));
    body.push(Instruction::new(Op::Label, [test]));
    body.push(Instruction::new(Op::Load, [uint, at, index]));
    body.push(Instruction::new(Op::CooperativeMatrixLengthKHR, [uint, length, matrix]));
    body.push(Instruction::new(Op::ULessThan, [boolean, inside, at, length]));
    body.push(Instruction::new(Op::BranchConditional, [inside, turn, end]));
    body.push(Instruction::new(Op::Label, [turn]));
    let (mut call, mut first) = (vec![scalar, value, callee.id], 0);
    if function.fold.is_some() {
        body.push(Instruction::new(Op::Load, [scalar, so_far, folded]));
        call.push(so_far);
        first = folded;
    }
    for variable in &variables {
        let [element, loaded] = [(); 2].map(|()| module.id());
        body.push(Instruction::new(Op::AccessChain, [to_scalar, element, *variable, at]));
        body.push(Instruction::new(Op::Load, [scalar, loaded, element]));
        call.push(loaded);
        first = if first == 0 { element } else { first };
    }
    body.push(Instruction::new(Op::FunctionCall, call));
    body.push(Instruction::new(Op::Store, [first, value]));
    body.push(Instruction::new(Op::Branch, [next]));
    body.push(Instruction::new(Op::Label, [next]));
    body.push(Instruction::new(Op::IAdd, [uint, advanced, at, one]));
    body.push(Instruction::new(Op::Store, [index, advanced]));
    body.push(Instruction::new(Op::Branch, [head]));
    body.push(Instruction::new(Op::Label, [end]));
    let result = if function.fold.is_some() { folded } else { variables[0] };
    body.push(Instruction::new(Op::Load, [function.result, whole, result]));
    body.push(Instruction::new(Op::ReturnValue, [whole]));
    Ok(body)
}

/// The module's type that is so described.
fn known(module: &Module, op: Op, described: &[u32]) -> Option<u32> {
    module.all(op).find(|o| o[1..] == *described).map(|o| o[0])
}

/// The same, or a new one.
fn declared(module: &mut Module, op: Op, described: &[u32]) -> u32 {
    if let Some(id) = known(module, op, described) {
        return id;
    }
    let id = module.id();
    module.declare_last(vec![Instruction::new(op, [&[id], described].concat())]);
    id
}

fn constant(module: &mut Module, ty: u32, value: u32) -> u32 {
    if let Some(o) = module.all(Op::Constant).find(|o| o[0] == ty && o[2..] == [value]) {
        return o[1];
    }
    let id = module.id();
    module.declare_last(vec![Instruction::new(Op::Constant, [ty, id, value])]);
    id
}
