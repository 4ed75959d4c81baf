//! Constructs that a platform refuses although naga writes them. The rules read naga's module, so they apply to future
//! kernels too.

use naga::proc::Layouter;
use naga::{AddressSpace, Expression, Handle, Module, ScalarKind, Statement, Type, TypeInner};

use super::dialects::Form;

/// Bytes of threadgroup memory on every Apple GPU; of groupshared memory in Direct3D 12.
const WORKGROUP_BYTES: u32 = 32 << 10;
/// Metal's 31 buffers less the two that wgpu uses for immediates and for the sizes of arrays.
const METAL_BUFFERS: usize = 29;

/// Rules of all platforms.
pub fn everywhere(form: &Form) -> Vec<String> {
    [matrices_stay_in_registers(form), matrix_scalars_fit(form)].concat()
}

/// Rules of Metal.
pub fn metal(form: &Form) -> Vec<String> {
    [workgroup_memory(form), buffers(form), matrix_edges(form), matrix_pointees(form), matrix_arithmetic(form)].concat()
}

/// Rules of Direct3D 12.
pub fn dx12(form: &Form) -> Vec<String> {
    workgroup_memory(form)
}

/// At most 32 KiB. wgpu does not check it, and a driver may crash on more.
pub fn workgroup_memory(form: &Form) -> Vec<String> {
    let mut layouter = Layouter::default();
    if let Err(e) = layouter.update(form.module.to_ctx()) {
        return vec![format!("layout: {e}")];
    }
    // each variable starts at a multiple of 16 bytes in MSL
    let bytes: u32 = form
        .globals()
        .filter(|(_, variable)| variable.space == AddressSpace::WorkGroup)
        .map(|(_, variable)| layouter[variable.ty].size.next_multiple_of(16))
        .sum();
    fault(bytes > WORKGROUP_BYTES, || {
        format!("{bytes} bytes of workgroup memory, Metal and DX12 allow {WORKGROUP_BYTES}")
    })
}

/// At most 29 storage buffers.
pub fn buffers(form: &Form) -> Vec<String> {
    let count = form.buffers().len();
    fault(count > METAL_BUFFERS, || format!("{count} buffers, Metal allows {METAL_BUFFERS}"))
}

/// Cooperative matrices are 8×8. naga writes 16×16 ones as a type that Metal has not.
pub fn matrix_edges(form: &Form) -> Vec<String> {
    form.edges()
        .into_iter()
        .filter(|edge| *edge != 8)
        .map(|edge| format!("a cooperative matrix with an edge of {edge}, Metal has 8"))
        .collect()
}

/// Cooperative matrices are loaded and stored through pointers to scalars: naga writes a pointer to vectors as an
/// address that Metal's `simdgroup_load` does not take.
pub fn matrix_pointees(form: &Form) -> Vec<String> {
    accesses(form)
        .into_iter()
        .filter(|(_, inner)| !matches!(inner, TypeInner::Scalar(_)))
        .map(|(what, inner)| format!("{what} through a pointer to {inner:?}, Metal takes scalars"))
        .collect()
}

/// No `+`, `-` or scaling of cooperative matrices: naga writes them as operators that Metal's header does not define.
pub fn matrix_arithmetic(form: &Form) -> Vec<String> {
    let mut faults = Vec::new();
    for (function, info) in form.functions() {
        let is_matrix = |e: &Handle<Expression>| {
            matches!(info[*e].ty.inner_with(&form.module.types), TypeInner::CooperativeMatrix { .. })
        };
        for (_, expression) in function.expressions.iter() {
            let operator = match expression {
                Expression::Binary { op, left, right } if is_matrix(left) || is_matrix(right) => format!("{op:?}"),
                Expression::Unary { op, expr } if is_matrix(expr) => format!("{op:?}"),
                Expression::Math { fun, arg, .. } if is_matrix(arg) => format!("{fun:?}"),
                _ => continue,
            };
            faults.push(format!("{operator} of a cooperative matrix, Metal has no arithmetic on them"));
        }
    }
    faults
}

/// No cooperative matrix in workgroup or storage memory: naga's validator takes it, SPIR-V does not allow it.
pub fn matrices_stay_in_registers(form: &Form) -> Vec<String> {
    form.globals()
        .filter(|(_, v)| !matches!(v.space, AddressSpace::Private | AddressSpace::Function))
        .filter(|(_, v)| holds_matrix(&form.module, v.ty))
        .map(|(_, v)| format!("cooperative matrix in {:?} memory: `{}`", v.space, v.name.as_deref().unwrap_or("?")))
        .collect()
}

/// The element type of a cooperative matrix is that of the pointer it is loaded from, whatever the type in the
/// brackets says, and naga compares neither it nor the operands of a product: an `array<u32>` makes a matrix of u32.
pub fn matrix_scalars_fit(form: &Form) -> Vec<String> {
    let mut faults: Vec<String> = accesses(form)
        .into_iter()
        .filter(|(_, inner)| inner.scalar().is_none_or(|s| s.kind != ScalarKind::Float))
        .map(|(what, inner)| format!("{what} of {inner:?}, expected f16 or f32"))
        .collect();
    for (function, info) in form.functions() {
        let width = |e: Handle<Expression>| info[e].ty.inner_with(&form.module.types).scalar_width();
        for (_, expression) in function.expressions.iter() {
            if let Expression::CooperativeMultiplyAdd { a, b, c } = expression
                && (width(*a) != width(*b) || width(*c) < width(*a))
            {
                let bytes = [width(*a), width(*b), width(*c)].map(|w| w.unwrap_or(0));
                faults.push(format!("coopMultiplyAdd of elements of {bytes:?} bytes"));
            }
        }
    }
    faults
}

/// Every cooperative load and store, and what its pointer points to.
fn accesses(form: &Form) -> Vec<(&'static str, TypeInner)> {
    let mut found = Vec::new();
    for (function, info) in form.functions() {
        let pointee = |pointer: Handle<Expression>| match *info[pointer].ty.inner_with(&form.module.types) {
            TypeInner::Pointer { base, .. } => form.module.types[base].inner.clone(),
            TypeInner::ValuePointer { size: None, scalar, .. } => TypeInner::Scalar(scalar),
            TypeInner::ValuePointer { size: Some(size), scalar, .. } => TypeInner::Vector { size, scalar },
            ref other => other.clone(),
        };
        for (_, expression) in function.expressions.iter() {
            if let Expression::CooperativeLoad { data, .. } = expression {
                found.push(("coopLoad", pointee(data.pointer)));
            }
        }
        walk(&function.body, &mut |statement| {
            if let Statement::CooperativeStore { data, .. } = statement {
                found.push(("coopStore", pointee(data.pointer)));
            }
        });
    }
    found
}

fn walk(block: &naga::Block, visit: &mut impl FnMut(&Statement)) {
    for statement in block {
        visit(statement);
        match statement {
            Statement::Block(inner) => walk(inner, visit),
            Statement::If { accept, reject, .. } => {
                walk(accept, visit);
                walk(reject, visit);
            }
            Statement::Switch { cases, .. } => cases.iter().for_each(|case| walk(&case.body, visit)),
            Statement::Loop { body, continuing, .. } => {
                walk(body, visit);
                walk(continuing, visit);
            }
            _ => {}
        }
    }
}

fn holds_matrix(module: &Module, ty: Handle<Type>) -> bool {
    match &module.types[ty].inner {
        TypeInner::CooperativeMatrix { .. } => true,
        TypeInner::Array { base, .. } => holds_matrix(module, *base),
        TypeInner::Struct { members, .. } => members.iter().any(|m| holds_matrix(module, m.ty)),
        _ => false,
    }
}

fn fault(broken: bool, what: impl FnOnce() -> String) -> Vec<String> {
    if broken { vec![what()] } else { Vec::new() }
}
