//! Writes the bodies of functions of whole cooperative matrices, which WGSL can declare but not implement.
//!
//! In naga 30 a kernel can neither convert a cooperative matrix nor access one of its elements; SPIR-V can do both. A
//! kernel declares a function that takes and returns matrices, and this pass writes its body:
//!
//! - `fn to_half(m: MatrixC) -> MatrixH { return MatrixH(); }` takes a matrix of one element type and returns one of
//!   another. The body converts every element.
//! - `fn gelus(m: MatrixC) -> MatrixC { _ = gelu(0.0); return m; }` calls a function of as many scalars as it takes
//!   matrices. The body calls that function for every element. The computation itself stays WGSL.
//! - `fn largest(m: MatrixC) -> f32 { return larger(LOW, 0.0); }` calls a function of two scalars. In the body each
//!   invocation folds the elements that it holds, beginning with the first scalar.
//! - `fn stored(x: f32, zero: u32) -> f32 { return f32(f16(x)); }` rounds. The body also rounds under compilers that drop
//!   a conversion to f16 and back.
//!
//! These kernels compute wrong results if naga's output runs unchanged, so they need
//! [`crate::gpu::Caps::matrix_functions`], which no device has that gets naga's own output.

use std::collections::HashMap;
use std::ops::Range;

use spirv::{LoopControl, Op, StorageClass};

use super::module::{Instruction, Module};

/// A function of matrices.
struct Function {
    /// Type of the result.
    result: u32,
    /// Id and type of each parameter.
    parameters: Vec<(u32, u32)>,
    /// The function of scalars that it calls.
    callee: Option<Callee>,
    /// For a fold, the scalar that it begins with.
    fold: Option<u32>,
}

/// A function of scalars: its id and the type that it returns.
#[derive(Clone, Copy)]
struct Callee {
    id: u32,
    returned: u32,
}

/// Writes the body of every function of matrices.
///
/// # Errors
/// A message if a function takes matrices but is of none of the kinds listed above.
pub(super) fn write_functions(module: &mut Module) -> Result<(), String> {
    // element types by matrix types
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

/// Inserts a bitwise or with `zero` between the two conversions of every
/// `fn stored(x: f32, zero: u32) -> f32 { return f32(f16(x)); }`. Mesa's compilers otherwise drop a conversion to f16
/// and back, which must round; they cannot know that `zero` is 0.
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

/// Returns the range of a function's instructions, including its end.
fn range(module: &Module, id: u32) -> Range<usize> {
    let start = module.list.iter().position(|i| i.is(Op::Function) && i.operands[1] == id).unwrap_or(0);
    let length = module.list[start..].iter().position(|i| i.is(Op::FunctionEnd)).unwrap_or(0);
    start..start + length + 1
}

/// Reads a function. `None` if it takes no matrices or its body has been written already.
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
            return Err("a function that folds a matrix must call one function of two scalars".into());
        };
        return Ok(Some(Function { result, parameters, callee, fold: Some(begins) }));
    }
    let converts = parameters.len() == 1 && matrices[&parameters[0].1] != matrices[&result];
    let same = parameters.iter().all(|(_, ty)| *ty == result);
    if calls.next().is_some() || converts != callee.is_none() || !(converts || same) {
        return Err("a function of matrices must either convert one or call one function of their elements".into());
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

/// Writes a loop over the elements that an invocation holds, with a hint to unroll it: drivers know the number of
/// elements.
fn calling(module: &mut Module, function: &Function, callee: Callee, scalar: u32) -> Result<Vec<Instruction>, String> {
    let called = &module.list[range(module, callee.id)];
    let taken = called.iter().filter(|i| i.is(Op::FunctionParameter));
    if callee.returned != scalar
        || taken.clone().count() != function.parameters.len() + usize::from(function.fold.is_some())
        || taken.clone().any(|i| i.operands[0] != scalar)
    {
        return Err("a function of matrices must call a function that takes an element of each and returns one".into());
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

/// Returns the id of the module's type with these operands, if it is declared.
fn known(module: &Module, op: Op, described: &[u32]) -> Option<u32> {
    module.all(op).find(|o| o[1..] == *described).map(|o| o[0])
}

/// Returns the id of the type with these operands, and declares the type if it is new.
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
