//! A kernel's requirements on the adapter, read from its text before a driver sees it.

use crate::error::{Error, Fault, Result};

use super::adapter::Caps;
use super::layout::{self, Member};

/// A kernel's sizes, bindings and features, read from its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reflection {
    /// Invocations of a workgroup in x, y, z.
    pub workgroup_size: [u32; 3],
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    /// Bytes of immediates.
    pub immediate_bytes: u32,
    /// Members of the immediates.
    pub immediates: Vec<Member<String>>,
    /// Number of each binding, and whether the kernel writes to it.
    pub bindings: Vec<(u32, bool)>,
    /// Features of the device that the kernel needs.
    pub needs: Needs,
}

impl Reflection {
    /// Reflects a validated module without `override` constants.
    ///
    /// # Errors
    /// A message that names the fault.
    pub(super) fn of(
        module: &naga::Module,
        info: &naga::valid::ModuleInfo,
        entry: &str,
    ) -> std::result::Result<Self, String> {
        let index = module
            .entry_points
            .iter()
            .position(|e| e.name == entry)
            .ok_or_else(|| format!("has no entry point `{entry}`"))?;
        let uses = info.get_entry_point(index);
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).map_err(|e| e.to_string())?;
        let mut reflection = Self {
            workgroup_size: module.entry_points[index].workgroup_size,
            workgroup_bytes: 0,
            immediate_bytes: 0,
            immediates: Vec::new(),
            bindings: Vec::new(),
            needs: Needs::of(module, index),
        };
        for (handle, variable) in module.global_variables.iter() {
            if uses[handle].is_empty() {
                continue;
            }
            let size = layouter[variable.ty].size;
            match variable.space {
                naga::AddressSpace::WorkGroup => reflection.workgroup_bytes += size,
                naga::AddressSpace::Immediate => {
                    reflection.immediate_bytes = size;
                    reflection.immediates = layout::members(module, variable.ty);
                }
                naga::AddressSpace::Storage { access } => {
                    let Some(binding) = variable.binding else { continue };
                    reflection.bindings.push((binding.binding, access.contains(naga::StorageAccess::STORE)));
                }
                _ => {}
            }
        }
        reflection.bindings.sort_unstable();
        if reflection.bindings.iter().enumerate().any(|(i, b)| b.0 as usize != i) {
            return Err(format!("bindings {:?} are not 0, 1, 2, ...", reflection.bindings));
        }
        Ok(reflection)
    }

    /// Checks the sizes and features against an adapter's. wgpu checks neither workgroup memory nor sizes that come
    /// from overrides, and a driver may crash on them.
    ///
    /// # Errors
    /// [`Error::Gpu`] naming the limit.
    pub fn check(&self, name: &str, caps: &Caps) -> Result<()> {
        let invocations: u32 = self.workgroup_size.iter().product();
        for (what, need, limit) in [
            ("invocations in a workgroup", invocations, caps.max_invocations),
            ("bytes of workgroup memory", self.workgroup_bytes, caps.max_workgroup_bytes),
            ("storage buffers", self.bindings.len() as u32, caps.max_storage_buffers),
            ("bytes of immediates", self.immediate_bytes, 64),
        ] {
            if need > limit {
                return Err(Error::gpu(Fault::at(
                    format!("kernel {name}"),
                    format!("{need} {what}, but {} allows {limit}", caps.name),
                )));
            }
        }
        self.needs.check(name, caps)
    }
}

/// Features of the device that a kernel needs. They are checked here because wgpu passes cooperative matrices of any
/// shape to drivers without them, which crash, and does not check our SPIR-V.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// Whether it uses f16.
    pub f16: bool,
    /// Whether it uses 64-bit integers.
    pub int64: bool,
    /// Whether it uses subgroup operations.
    pub subgroups: bool,
    /// Edges of its square cooperative matrices with f16 operands and f32 sums. Any other matrix is listed as 0, which
    /// no adapter supports.
    pub matrix_edges: Vec<u32>,
    /// Whether it has functions of whole cooperative matrices, or f16 matrices as results: see
    /// [`Caps::matrix_functions`].
    pub matrix_functions: bool,
}

impl Needs {
    fn of(module: &naga::Module, entry: usize) -> Self {
        use naga::{BuiltIn, Expression, ScalarKind, TypeInner};
        let mut needs = Self::default();
        let mut edge = |columns, rows, known: bool| {
            needs.matrix_edges.push(if known && columns == rows { columns as u32 } else { 0 });
        };
        let mut matrix_functions = false;
        let entry = &module.entry_points[entry].function;
        let functions = || module.functions.iter().map(|(_, function)| function).chain([entry]);
        for expression in functions().flat_map(|function| function.expressions.iter()) {
            if let Expression::CooperativeLoad { columns, rows, .. } = expression.1 {
                edge(*columns, *rows, true);
            }
        }
        for (_, ty) in module.types.iter() {
            let scalar = match ty.inner {
                TypeInner::Scalar(scalar)
                | TypeInner::Vector { scalar, .. }
                | TypeInner::Matrix { scalar, .. }
                | TypeInner::Atomic(scalar) => scalar,
                TypeInner::CooperativeMatrix { columns, rows, scalar, role } => {
                    // `Caps::matrix_edges` promises f16 operands and f32 sums
                    let sums = role == naga::CooperativeRole::C;
                    let right = scalar.kind == ScalarKind::Float && (scalar.width == 2 || scalar.width == 4 && sums);
                    edge(columns, rows, right);
                    matrix_functions |= sums && scalar.width == 2;
                    scalar
                }
                _ => continue,
            };
            needs.f16 |= scalar.kind == ScalarKind::Float && scalar.width == 2;
            needs.int64 |= matches!(scalar.kind, ScalarKind::Sint | ScalarKind::Uint) && scalar.width == 8;
        }
        let is_matrix =
            |ty: naga::Handle<naga::Type>| matches!(module.types[ty].inner, TypeInner::CooperativeMatrix { .. });
        needs.matrix_functions =
            matrix_functions || functions().any(|f| f.arguments.iter().any(|argument| is_matrix(argument.ty)));
        needs.matrix_edges.sort_unstable();
        needs.matrix_edges.dedup();
        let of_subgroups = |binding: &Option<naga::Binding>| {
            use BuiltIn::{NumSubgroups, SubgroupId, SubgroupInvocationId, SubgroupSize};
            let known = [NumSubgroups, SubgroupId, SubgroupInvocationId, SubgroupSize];
            matches!(binding, Some(naga::Binding::BuiltIn(builtin)) if known.contains(builtin))
        };
        let members = module.types.iter().flat_map(|(_, ty)| match &ty.inner {
            TypeInner::Struct { members, .. } => members.as_slice(),
            _ => &[],
        });
        needs.subgroups = entry.arguments.iter().any(|argument| of_subgroups(&argument.binding))
            || members.into_iter().any(|member| of_subgroups(&member.binding))
            || functions().any(|function| uses_subgroups(&function.body));
        needs
    }

    /// Checks that an adapter has the features.
    ///
    /// # Errors
    /// [`Error::Gpu`] naming the first feature that the adapter lacks.
    pub fn check(&self, name: &str, caps: &Caps) -> Result<()> {
        for (what, need, have) in [
            ("f16", self.f16, caps.f16),
            ("64-bit integers", self.int64, caps.int64),
            ("subgroup operations", self.subgroups, caps.subgroups),
            ("functions of cooperative matrices", self.matrix_functions, caps.matrix_functions),
        ] {
            if need && !have {
                return Err(Error::gpu(Fault::at(
                    format!("kernel {name}"),
                    format!("needs {what}, which {} lacks", caps.name),
                )));
            }
        }
        match self.matrix_edges.iter().find(|edge| !caps.matrix_edges.contains(edge)) {
            Some(0) => Err(Error::gpu(Fault::at(
                format!("kernel {name}"),
                "needs cooperative matrices that are not square or not of f16 operands and f32 sums: unsupported",
            ))),
            Some(edge) => Err(Error::gpu(Fault::at(
                format!("kernel {name}"),
                format!(
                    "needs cooperative matrices of {edge}x{edge}, but {} has {}",
                    caps.name,
                    if caps.matrix_edges.is_empty() { "none".into() } else { format!("edges {:?}", caps.matrix_edges) }
                ),
            ))),
            None => Ok(()),
        }
    }
}

/// Returns whether a block contains a subgroup operation or a subgroup barrier.
fn uses_subgroups(block: &naga::Block) -> bool {
    use naga::Statement;
    block.iter().any(|statement| match statement {
        Statement::SubgroupBallot { .. }
        | Statement::SubgroupGather { .. }
        | Statement::SubgroupCollectiveOperation { .. } => true,
        Statement::ControlBarrier(barrier) => barrier.contains(naga::Barrier::SUB_GROUP),
        Statement::Block(inner) => uses_subgroups(inner),
        Statement::If { accept, reject, .. } => uses_subgroups(accept) || uses_subgroups(reject),
        Statement::Switch { cases, .. } => cases.iter().any(|case| uses_subgroups(&case.body)),
        Statement::Loop { body, continuing, .. } => uses_subgroups(body) || uses_subgroups(continuing),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Gpu, KernelId};

    /// wgpu passes such a kernel to drivers without cooperative matrices, and two of them crash.
    #[test]
    fn kernels_with_matrices_never_reach_a_driver_without_them() {
        let text = "enable f16;
            enable wgpu_cooperative_matrix;
            @group(0) @binding(0) var<storage, read> inp: array<f16>;
            @group(0) @binding(1) var<storage, read_write> out: array<f32>;
            @compute @workgroup_size(32) fn main(@builtin(subgroup_id) subgroup: u32) {
                let a = coopLoadT<coop_mat16x16<f16, A>>(&inp[subgroup], 16u);
                let b = coopLoadT<coop_mat16x16<f16, B>>(&inp[0], 16u);
                let c = coopMultiplyAdd(a, b, coop_mat16x16<f32, C>());
                coopStoreT(c, &out[0], 16u);
            }";
        let kernel = KernelId::probe("probe", "main", text.into());
        let able = || Caps { f16: true, subgroups: true, matrix_edges: vec![16], ..Caps::webgpu_defaults() };
        assert!(Gpu::dry(able()).pipeline(&kernel).is_ok());
        for (caps, what) in [
            (Caps { matrix_edges: vec![], ..able() }, "needs cooperative matrices of 16x16"),
            (Caps { matrix_edges: vec![8], ..able() }, "has edges [8]"),
            (Caps { f16: false, ..able() }, "needs f16"),
            (Caps { subgroups: false, ..able() }, "needs subgroup operations"),
        ] {
            let error = Gpu::dry(caps).pipeline(&kernel).expect_err("refused").to_string();
            assert!(error.contains(what), "{error}");
        }
        let sums = KernelId::probe("probe", "main", text.replace("f32, C", "f16, C").replace("<f32>", "<f16>"));
        let error = Gpu::dry(able()).pipeline(&sums).expect_err("refused").to_string();
        assert!(error.contains("needs functions of cooperative matrices"), "{error}");
    }

    #[test]
    fn subgroup_operations_are_found_wherever_they_are() {
        let kernel = |arguments: &str, body: &str| {
            let text = format!(
                "struct In {{ @builtin(subgroup_size) size: u32, @builtin(local_invocation_index) lane: u32 }}
                @group(0) @binding(0) var<storage, read_write> out: array<u32>;
                fn inner(x: u32) -> u32 {{ if x > 1u {{ loop {{ {body} break; }} }} return x; }}
                @compute @workgroup_size(32) fn main({arguments}) {{ out[0] = inner(out[1]); }}"
            );
            KernelId::probe("probe", "main", text)
        };
        let plain = Caps::webgpu_defaults();
        for (arguments, body) in [
            ("in: In", ""),
            ("", "return subgroupAdd(x);"),
            ("", "subgroupBarrier();"),
            ("", "return subgroupShuffle(x, 1u);"),
        ] {
            let error = Gpu::dry(plain.clone()).pipeline(&kernel(arguments, body)).expect_err("refused").to_string();
            assert!(error.contains("needs subgroup operations"), "{arguments} {body}: {error}");
        }
        let without = kernel("", "").kernel().source.replace("@builtin(subgroup_size) size", "size");
        let without = without.replace("size: u32, @builtin(local_invocation_index) lane: u32", "size: u32");
        assert!(Gpu::dry(plain).pipeline(&KernelId::probe("probe", "main", without)).is_ok());
    }
}
