//! Kernels that measure an adapter's peak rates: bytes copied, multiply-adds in f32 and f16, and products of
//! cooperative matrices from registers and from workgroup memory. Every measured kernel is compared with these rates.

mod fed;
mod flexible;

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::Generator;
use crate::gpu::wgsl_text::without_directive;
use crate::gpu::{Arithmetic, Caps, Dispatch, Immediates, KernelId, OpPass, Pass, Purpose, Tensor};

use super::matrix_units::subgroup_sizes;
use super::{ELEMENTWISE_WORKGROUP, Operator, workgroups};
pub use fed::{FED_TILES, MatrixFed, fed_shape, matrix_fed, without_fed};
pub use flexible::{MatrixFlexible, flexible_shapes, matrix_flexible};

/// The pass that [`copy`] records.
pub const COPY: OpPass = OpPass::new("roof", "copy");
/// The pass that [`fused`] records.
pub const FUSED: OpPass = OpPass::new("roof", "fused");
/// The pass that [`matrix`] records.
pub const MATRIX: OpPass = OpPass::new("roof", "matrix");
/// The pass that [`matrix_fed`] records.
pub const MATRIX_FED: OpPass = OpPass::new("roof", "matrix_fed");
/// The pass that [`matrix_flexible`] records.
pub const MATRIX_FLEXIBLE: OpPass = OpPass::new("roof", "matrix_flexible");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator = Operator {
    name: "roof",
    passes: &[COPY, FUSED, MATRIX, MATRIX_FED, MATRIX_FLEXIBLE],
    kernels,
    tried: super::none_tried,
};

crate::shared_struct! {
    struct RoofImmediates {
        count: u32,
        rounds: u32,
        a: f32,
        b: f32,
    }
}

crate::shared_struct! {
    struct RoofMatrixImmediates {
        groups: u32,
        rounds: u32,
    }
}

/// Multiply-adds of one invocation of [`fused`] in one round: 16 chains of 8.
pub const FUSED_A_ROUND: u64 = 16 * 8;
/// Tiles that a workgroup of [`matrix`] computes.
pub const TILES: usize = 4;

/// The type in which [`fused`] computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FusedScalar {
    /// 32 bits: every adapter.
    F32,
    /// 16 bits: adapters with [`Caps::f16`].
    F16,
}

impl FusedScalar {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }
}

/// Everything that the text of a kernel of `shaders/roof.wgsl` or `shaders/roof/matrix.wgsl` depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Spec {
    /// The kernel of [`copy`] or [`fused`].
    Plain { entry: &'static str, scalar: FusedScalar, group: u32 },
    /// The kernel of [`matrix`] with matrices of this edge.
    Matrix { edge: u32, group: u32 },
}

impl Generator for Spec {
    fn family(&self) -> String {
        match self {
            Self::Plain { entry, .. } => format!("roof.{entry}"),
            Self::Matrix { .. } => "roof.matrix".into(),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Plain { entry: "fused", scalar, .. } => format!("roof.fused.{}", scalar.name()),
            Self::Plain { entry, .. } => format!("roof.{entry}"),
            Self::Matrix { edge, .. } => format!("roof.matrix.{edge}x{edge}"),
        }
    }

    fn text(&self) -> String {
        let (head, body) = match *self {
            Self::Plain { scalar, .. } => {
                let enable = if scalar == FusedScalar::F16 { "enable f16;\n" } else { "" };
                let head = format!("{enable}alias Scalar = {0};\nalias Vec4 = vec4<{0}>;\n", scalar.name());
                (head, include_str!("../../../shaders/roof.wgsl"))
            }
            Self::Matrix { edge, .. } => {
                let head = format!(
                    "enable f16;\nenable wgpu_cooperative_matrix;\nalias MatrixA = coop_mat{edge}x{edge}<f16, A>;\n\
                     alias MatrixB = coop_mat{edge}x{edge}<f16, B>;\nalias MatrixC = coop_mat{edge}x{edge}<f32, C>;\n\
                     const EDGE = {edge}u;\n"
                );
                (head, include_str!("../../../shaders/roof/matrix.wgsl"))
            }
        };
        let grid = include_str!("../../../shaders/shared/grid.wgsl");
        format!("{head}override WORKGROUP: u32 = 64u;\n{}{}", without_directive(grid), without_directive(body))
    }

    fn entry_point(&self) -> &'static str {
        match self {
            Self::Plain { entry, .. } => entry,
            Self::Matrix { .. } => "matrix",
        }
    }

    fn overrides(&self) -> Vec<(&'static str, u32)> {
        let (Self::Plain { group, .. } | Self::Matrix { group, .. }) = self;
        vec![("WORKGROUP", *group)]
    }

    fn subgroup_size(&self) -> Option<u32> {
        match self {
            Self::Plain { .. } => None,
            Self::Matrix { group, .. } => Some(*group),
        }
    }

    fn arithmetic(&self) -> Arithmetic {
        match self {
            Self::Plain { scalar: FusedScalar::F32, .. } => Arithmetic::F32,
            Self::Plain { scalar: FusedScalar::F16, .. } => Arithmetic::F16,
            Self::Matrix { .. } => Arithmetic::Matrix,
        }
    }
}

fn kernel(of: OpPass, scalar: FusedScalar) -> KernelId {
    let spec = Spec::Plain { entry: of.pass, scalar, group: ELEMENTWISE_WORKGROUP };
    KernelId::generated(of, of.pass, Purpose::Elements, spec)
}

fn matrix_kernel(caps: &Caps, edge: u32) -> KernelId {
    KernelId::generated(MATRIX, "matrix", Purpose::Elements, Spec::Matrix { edge, group: matrix_group(caps) })
}

/// Returns the invocations of a workgroup of [`matrix`], which is one subgroup. Where subgroups have several sizes this
/// is the largest. A workgroup may then consist of two subgroups that compute the same, and the measured rate is half
/// the real one.
fn matrix_group(caps: &Caps) -> u32 {
    subgroup_sizes(caps).1.clamp(8, 128)
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    let mut list = vec![
        kernel(COPY, FusedScalar::F32),
        kernel(FUSED, FusedScalar::F32),
        kernel(FUSED, FusedScalar::F16),
        matrix_kernel(caps, 8),
        matrix_kernel(caps, 16),
    ];
    let edges = [8, 16].into_iter().filter(|edge| without_fed(caps, *edge).is_none());
    list.extend(edges.map(|edge| fed::kernel(caps, edge)));
    list.extend(flexible_shapes(caps).into_iter().map(|shape| flexible::kernel(caps, shape)));
    list
}

/// Tensors of [`copy`].
#[derive(Debug)]
pub struct Copy<'a> {
    /// Any shape with a multiple of 16 bytes, within one binding.
    pub inp: &'a Tensor,
    /// The same shape, overwritten.
    pub out: &'a Tensor,
    /// Number of 16-byte pieces that an invocation copies, a workgroup's width apart.
    pub each: u32,
}

/// `out = inp`. Overwrites `out`.
///
/// # Errors
/// [`Error::Shape`] if the sizes differ or 16 bytes do not divide them.
pub fn copy(pass: &mut Pass, io: Copy) -> Result<()> {
    io.out.check_shape("roof.copy", "out", io.inp.rows(), io.inp.columns())?;
    if !io.inp.bytes().is_multiple_of(16) {
        return Err(Error::shape(
            Fault::at("roof.copy", format!("`inp` has {} bytes", io.inp.bytes())).expected("a multiple of 16"),
        ));
    }
    let count = (io.inp.bytes() / 16) as usize;
    pass.dispatch(&Dispatch {
        kernel: &kernel(COPY, FusedScalar::F32),
        tensors: &[io.inp, io.out],
        immediates: Immediates::of(&RoofImmediates { count: count as u32, rounds: io.each, a: 0.0, b: 0.0 }),
        groups: workgroups(count, io.each * ELEMENTWISE_WORKGROUP),
        flops: 0,
        bytes: 2 * io.inp.bytes(),
    })
}

/// Tensors and numbers of [`fused`].
#[derive(Debug)]
pub struct Fused<'a> {
    /// Any shape, f32, overwritten. Each invocation computes one element.
    pub out: &'a Tensor,
    /// Type of the computation.
    pub scalar: FusedScalar,
    /// Iterations of the loop. Software Vulkan ends loops after 65,535.
    pub rounds: u32,
    /// Factor, below 1 so that numbers stay small.
    pub a: f32,
    /// Summand.
    pub b: f32,
}

/// `out[i] = sum of x`, over 16 numbers x to each of which `x = x a + b` is applied `8 rounds` times. Overwrites `out`.
///
/// # Errors
/// [`Error::Gpu`] if the adapter lacks the type.
pub fn fused(pass: &mut Pass, io: Fused) -> Result<()> {
    if io.scalar == FusedScalar::F16 && !pass.gpu.caps.f16 {
        return Err(Error::gpu(Fault::at("roof.fused", format!("{} has no f16", pass.gpu.caps.name))));
    }
    let n = io.out.len();
    pass.dispatch(&Dispatch {
        kernel: &kernel(FUSED, io.scalar),
        tensors: &[io.out],
        immediates: Immediates::of(&RoofImmediates { count: n as u32, rounds: io.rounds, a: io.a, b: io.b }),
        groups: workgroups(n, ELEMENTWISE_WORKGROUP),
        flops: 2 * FUSED_A_ROUND * u64::from(io.rounds) * n as u64,
        bytes: io.out.bytes(),
    })
}

/// Tensors and numbers of [`matrix`].
#[derive(Debug)]
pub struct Matrix<'a> {
    /// 4 E² values of f16, two in a word: a0, a1, b0, b1.
    pub operands: &'a Tensor,
    /// (4 groups E, E) f32, overwritten.
    pub out: &'a Tensor,
    /// E: one of [`Caps::matrix_edges`].
    pub edge: u32,
    /// Number of products for each tile.
    pub rounds: u32,
}

/// Computes `a0 b0`, `a0 b1`, `a1 b0` and `a1 b1`, each `rounds` times, in every workgroup. Overwrites `out`.
///
/// # Errors
/// [`Error::Gpu`] if the device lacks such matrices; [`Error::Shape`].
pub fn matrix(pass: &mut Pass, io: Matrix) -> Result<()> {
    let e = io.edge as usize;
    if !pass.gpu.caps.matrix_edges.contains(&io.edge) {
        return Err(Error::gpu(Fault::at(
            "roof.matrix",
            format!("{} has no cooperative matrices of {e}x{e}", pass.gpu.caps.name),
        )));
    }
    if io.operands.bytes() != 8 * (e * e) as u64 {
        return Err(Error::shape(
            Fault::at("roof.matrix", format!("`operands` has {} bytes", io.operands.bytes())).expected(8 * e * e),
        ));
    }
    let count = io.out.rows() / (TILES * e);
    io.out.check_shape("roof.matrix", "out", count * TILES * e, e)?;
    pass.dispatch(&Dispatch {
        kernel: &matrix_kernel(&pass.gpu.caps, io.edge),
        tensors: &[io.operands, io.out],
        immediates: Immediates::of(&RoofMatrixImmediates { groups: count as u32, rounds: io.rounds }),
        groups: count as u64,
        flops: 2 * (e * e * e * TILES * count) as u64 * u64::from(io.rounds),
        bytes: io.operands.bytes() + io.out.bytes(),
    })
}
