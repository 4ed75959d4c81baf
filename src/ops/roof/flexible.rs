//! A product of cooperative matrices with flexible dimensions (`VK_NV_cooperative_matrix2`), held by a whole workgroup
//! where the adapter supports that. On NVIDIA's Hopper it may be the only way to use the instructions of a warpgroup.
//!
//! This is a prototype. `wgpt profile --roofs --experimental` measures it next to the kernels of src/ops/matmul.
//! Operands are loaded from buffers, and the driver decides what to keep in workgroup memory. The WGSL text declares
//! matrices of an edge that WGSL supports, and [`crate::gpu::spirv::for_driver`] replaces their dimensions.

use crate::error::{Error, Fault, Result};
use crate::gpu::adapter::FlexibleMatrices;
use crate::gpu::kernel::{Dimensions, Generator};
use crate::gpu::wgsl_text::Text;
use crate::gpu::{Arithmetic, Caps, Dispatch, Elem, Immediates, KernelId, Pass, Purpose, Tensor};
use crate::ops::matrix_units::{self, DIRECTIVES, MatrixUnits};

/// Rows, columns and depth of a workgroup's matrices to try on GPUs. The sums take 64 to 128 registers per invocation.
const SHAPES: [[u32; 3]; 4] = [[128, 128, 32], [128, 256, 32], [128, 256, 64], [256, 128, 64]];
/// The same for matrices that a subgroup holds.
const SUBGROUP_SHAPES: [[u32; 3]; 2] = [[64, 64, 16], [32, 64, 32]];
/// The same for a software adapter, which compiles these in a second.
const SOFTWARE_SHAPES: [[u32; 3]; 2] = [[16, 32, 8], [24, 16, 16]];

crate::shared_struct! {
    struct RoofFlexibleImmediates {
        row_groups: u32,
        column_groups: u32,
        columns: u32,
        depth: u32,
    }
}

/// Everything that the kernel's text depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Spec {
    /// The adapter's matrices. The text declares one of them in place of the flexible one.
    units: MatrixUnits,
    dimensions: Dimensions,
    threads: u32,
}

/// Returns rows, columns and depth of the matrices that [`matrix_flexible`] can use on this adapter. The list is empty
/// where the adapter has no flexible matrices.
#[must_use]
pub fn flexible_shapes(caps: &Caps) -> Vec<[u32; 3]> {
    let (Some(flexible), Some(_)) = (caps.flexible, MatrixUnits::of(caps)) else { return Vec::new() };
    let shapes: &[[u32; 3]] = match flexible.workgroup {
        true => &SHAPES,
        false if caps.software => &SOFTWARE_SHAPES,
        false => &SUBGROUP_SHAPES,
    };
    let fits = |shape: &&[u32; 3]| {
        shape.iter().zip(flexible.granularity).all(|(size, unit)| size % unit == 0 && *size <= flexible.largest)
    };
    shapes.iter().filter(fits).copied().collect()
}

/// Tensors of [`matrix_flexible`].
#[derive(Debug)]
pub struct MatrixFlexible<'a> {
    /// (M, K) f16.
    pub a: &'a Tensor,
    /// (N, K) f16.
    pub b: &'a Tensor,
    /// (M, N) f32, overwritten.
    pub out: &'a Tensor,
    /// One of [`flexible_shapes`], whose sizes divide M, N and K.
    pub shape: [u32; 3],
}

/// `out = a bᵀ`. Overwrites `out`.
///
/// # Errors
/// [`Error::Gpu`] if the adapter has no such matrices; [`Error::Shape`].
pub fn matrix_flexible(pass: &mut Pass, io: MatrixFlexible) -> Result<()> {
    let (place, caps) = ("roof.matrix_flexible", &pass.gpu.caps);
    if !flexible_shapes(caps).contains(&io.shape) {
        let what = format!("{} has no flexible matrices of {:?}", caps.name, io.shape);
        return Err(Error::gpu(
            Fault::at(place, what).expected("VK_NV_cooperative_matrix2, and a device opened for it"),
        ));
    }
    let (m, n, k) = (io.a.rows(), io.b.rows(), io.a.columns());
    io.b.check_shape(place, "b", n, k)?;
    io.out.check_shape(place, "out", m, n)?;
    for (name, tensor, elem) in [("a", io.a, Elem::F16), ("b", io.b, Elem::F16), ("out", io.out, Elem::F32)] {
        tensor.check_elem(place, name, elem)?;
    }
    let [rows, columns, deep] = io.shape.map(|size| size as usize);
    if m % rows != 0 || n % columns != 0 || k % deep != 0 {
        let what = format!("matrices of {:?} for a product of {m}, {n} and {k}", io.shape);
        return Err(Error::shape(Fault::at(place, what).expected("sizes that divide those of the product")));
    }
    let (rows, columns) = (m / rows, n / columns);
    let params = RoofFlexibleImmediates {
        row_groups: rows as u32,
        column_groups: columns as u32,
        columns: n as u32,
        depth: k as u32,
    };
    pass.dispatch(&Dispatch {
        kernel: &kernel(caps, io.shape),
        tensors: &[io.a, io.b, io.out],
        immediates: Immediates::of(&params),
        groups: (rows * columns) as u64,
        flops: 2 * (m * n * k) as u64,
        bytes: io.a.bytes() + io.b.bytes() + io.out.bytes(),
    })
}

/// Returns the kernel for matrices of this shape, which the adapter must support.
pub(super) fn kernel(caps: &Caps, [m, n, k]: [u32; 3]) -> KernelId {
    let FlexibleMatrices { workgroup, invocations, .. } = caps.flexible.unwrap_or_default();
    let units = MatrixUnits::of(caps).unwrap_or_else(|| MatrixUnits::of_edge(caps, 16));
    let threads = if workgroup { invocations } else { super::matrix_group(caps) };
    let spec = Spec { units, dimensions: Dimensions { m, n, k, workgroup }, threads };
    KernelId::generated(super::MATRIX_FLEXIBLE, "main", Purpose::Elements, spec)
}

impl Generator for Spec {
    fn family(&self) -> String {
        "roof.matrix_flexible".into()
    }

    fn name(&self) -> String {
        let Dimensions { m, n, k, workgroup } = self.dimensions;
        format!("{}.{m}x{n}x{k}.{}{}", self.family(), if workgroup { "workgroup" } else { "subgroup" }, self.threads)
    }

    fn text(&self) -> String {
        let t = &mut Text::default();
        let Dimensions { m, n, k, .. } = self.dimensions;
        DIRECTIVES.iter().for_each(|line| t.line(line));
        t.line("// roof.matrix_flexible: out(M,N) = a(M,K) b(N,K)T, matrices as large as a workgroup's tile.");
        t.line("// Generated by src/ops/roof/flexible.rs; their dimensions are src/gpu/spirv/dimensions.rs's.");
        t.line("struct RoofFlexibleImmediates { row_groups: u32, column_groups: u32, columns: u32, depth: u32 }");
        t.line("var<immediate> params: RoofFlexibleImmediates;");
        t.line("@group(0) @binding(0) var<storage, read> a: array<vec4<f16>>;");
        t.line("@group(0) @binding(1) var<storage, read> b: array<vec4<f16>>;");
        t.line("@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;");
        self.units.aliases(t);
        t.line(format_args!("@compute @workgroup_size({})", self.threads));
        t.open("fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>)");
        t.line("let index = group.y * groups.x + group.x;");
        t.line("if index >= params.row_groups * params.column_groups { return; }");
        t.line("// neighbouring workgroups share rows of b in cache");
        t.line(format_args!("let first_row = (index % params.row_groups) * {m}u;"));
        t.line(format_args!("let first_column = (index / params.row_groups) * {n}u;"));
        t.line("let line = params.depth / 4u;");
        t.line("var c = MatrixC();");
        t.open(format_args!("for (var k = 0u; k < params.depth; k += {k}u)"));
        t.line("let own_a = coopLoadT<MatrixA>(&a[first_row * line + k / 4u], line);");
        t.line("let own_b = coopLoad<MatrixB>(&b[first_column * line + k / 4u], line);");
        t.line("c = coopMultiplyAdd(own_a, own_b, c);");
        t.close();
        let at = "(first_row * params.columns + first_column) / 4u";
        matrix_units::store(t, "c", "out", at, "params.columns / 4u");
        t.close();
        std::mem::take(&mut t.text)
    }

    fn subgroup_size(&self) -> Option<u32> {
        (!self.dimensions.workgroup).then_some(self.threads)
    }

    fn dimensions(&self) -> Option<Dimensions> {
        Some(self.dimensions)
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Matrix
    }
}
