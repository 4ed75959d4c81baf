//! Products of cooperative matrices whose operands are loaded from workgroup memory for every product. Their rate is an
//! upper bound for the product kernels of src/ops/matmul/generate/coop between two barriers.
//!
//! Workgroup memory holds two tiles of operands. The tile that a round reads depends on the round and on an immediate,
//! so that no compiler can move the loads out of the loop.

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::Generator;
use crate::gpu::wgsl_text::Text;
use crate::gpu::{Arithmetic, Caps, Dispatch, Elem, Immediates, KernelId, Pass, Purpose, Tensor};
use crate::ops::matrix_units::{self, DIRECTIVES, MatrixUnits, Tile, grid};

/// Rows and columns of the result that a subgroup computes.
const SUBGROUP: (u32, u32) = (64, 32);
/// The same where the driver's compile time limits the size of a kernel, as in the product kernels.
const SUBGROUP_SOFTWARE: (u32, u32) = (16, 16);
/// Subgroups along the rows, and along the columns.
const GRID: (u32, u32) = (2, 2);
/// Depth of a tile, which is also the depth of a round.
const DEPTH: u32 = 32;
/// Tiles in workgroup memory.
pub const FED_TILES: usize = 2;

crate::shared_struct! {
    struct RoofFedImmediates {
        groups: u32,
        rounds: u32,
        stride: u32,
    }
}

/// Everything that the kernel's text depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Fed {
    /// The adapter's matrices.
    units: MatrixUnits,
    /// Invocations of a subgroup.
    lanes: u32,
    /// Rows of the result that a subgroup computes.
    rows: u32,
    /// Columns of the result that a subgroup computes.
    columns: u32,
}

impl Fed {
    fn of(caps: &Caps, edge: u32) -> Self {
        let (rows, columns) = if caps.software { SUBGROUP_SOFTWARE } else { SUBGROUP };
        Self { units: MatrixUnits::of_edge(caps, edge), lanes: super::matrix_group(caps), rows, columns }
    }

    /// Returns the rows and columns of a workgroup's result, and the depth of a tile.
    fn shape(&self) -> [u32; 3] {
        [self.rows * GRID.0, self.columns * GRID.1, DEPTH]
    }

    /// Returns the lines of a tile: those of `a`, then those of `b`.
    fn lines(&self) -> u32 {
        let [rows, columns, _] = self.shape();
        rows + columns
    }

    /// Returns the tile of operands in workgroup memory.
    fn tiles(&self) -> Tile {
        Tile::halves("tiles", FED_TILES as u32 * self.lines(), DEPTH)
    }

    fn threads(&self) -> u32 {
        GRID.0 * GRID.1 * self.lanes
    }
}

/// Returns the rows and columns of a workgroup's result, and the depth of a tile.
#[must_use]
pub fn fed_shape(caps: &Caps) -> [usize; 3] {
    Fed::of(caps, 0).shape().map(|x| x as usize)
}

/// Tensors and numbers of [`matrix_fed`].
#[derive(Debug)]
pub struct MatrixFed<'a> {
    /// (TILES (M + N), K) f16: of each tile the lines of `a`, then those of `b`.
    pub operands: &'a Tensor,
    /// (M groups, N) f32, overwritten.
    pub out: &'a Tensor,
    /// Edge of the matrices: one of [`Caps::matrix_edges`].
    pub edge: u32,
    /// Number of rounds, each of which multiplies one tile.
    pub rounds: u32,
    /// Tiles from one round to the next: round r multiplies tile `r stride` modulo TILES.
    pub stride: u32,
}

/// Returns why this adapter cannot run [`matrix_fed`] with matrices of `edge`, or `None` if it can.
#[must_use]
pub fn without_fed(caps: &Caps, edge: u32) -> Option<String> {
    let fed = Fed::of(caps, edge);
    let (threads, bytes) = (fed.threads(), fed.tiles().bytes());
    if !caps.matrix_edges.contains(&edge) {
        Some(format!("{} has no cooperative matrices of {edge}x{edge}", caps.name))
    } else if !caps.f16 || !caps.subgroups {
        Some(format!("{} has no {}", caps.name, if caps.f16 { "subgroups" } else { "f16" }))
    } else if threads > caps.max_invocations || bytes > caps.max_workgroup_bytes {
        Some(format!(
            "it needs workgroups of {threads} invocations and {bytes} bytes, {} has {} and {}",
            caps.name, caps.max_invocations, caps.max_workgroup_bytes
        ))
    } else {
        None
    }
}

/// `out[m,n] = sum over r < rounds of sum_k a[m,k] b[n,k]`, where a and b come from the tile of round r, in every
/// workgroup. Overwrites `out`.
///
/// M, N and K are those of [`fed_shape`].
///
/// # Errors
/// [`Error::Gpu`] if the adapter cannot run it; [`Error::Shape`].
pub fn matrix_fed(pass: &mut Pass, io: MatrixFed) -> Result<()> {
    let caps = &pass.gpu.caps;
    if let Some(why) = without_fed(caps, io.edge) {
        return Err(Error::gpu(Fault::at("roof.matrix_fed", why)));
    }
    if io.operands.elem() != Elem::F16 {
        return Err(Error::shape(
            Fault::at("roof.matrix_fed", format!("`operands` is {:?}", io.operands.elem())).expected("F16"),
        ));
    }
    let [m, n, k] = fed_shape(caps);
    io.operands.check_shape("roof.matrix_fed", "operands", FED_TILES * (m + n), k)?;
    let groups = io.out.rows() / m;
    io.out.check_shape("roof.matrix_fed", "out", groups * m, n)?;
    let products = (groups * m * n * k) as u64 * u64::from(io.rounds);
    pass.dispatch(&Dispatch {
        kernel: &kernel(caps, io.edge),
        tensors: &[io.operands, io.out],
        immediates: Immediates::of(&RoofFedImmediates { groups: groups as u32, rounds: io.rounds, stride: io.stride }),
        groups: groups as u64,
        flops: 2 * products,
        bytes: io.operands.bytes() + io.out.bytes(),
    })
}

/// Returns the kernel with matrices of `edge`.
pub(super) fn kernel(caps: &Caps, edge: u32) -> KernelId {
    KernelId::generated(super::MATRIX_FED, "matrix_fed", Purpose::Elements, Fed::of(caps, edge))
}

impl Generator for Fed {
    fn family(&self) -> String {
        "roof.matrix_fed".into()
    }

    fn name(&self) -> String {
        let [m, n, _] = self.shape();
        format!("{}.{m}x{n}.e{}", self.family(), self.units.native)
    }

    fn text(&self) -> String {
        source(self)
    }

    fn subgroup_size(&self) -> Option<u32> {
        Some(self.lanes)
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Matrix
    }
}

fn source(fed: &Fed) -> String {
    let units = &fed.units;
    let t = &mut Text::default();
    DIRECTIVES.iter().for_each(|line| t.line(line));
    t.line("// roof.matrix_fed: out(M,N) = the sum of ROUNDS products a(M,K) b(N,K)T, loaded from workgroup memory for each");
    t.line("// Generated by src/ops/roof/fed.rs.");
    t.line("struct RoofFedImmediates { groups: u32, rounds: u32, stride: u32 }");
    t.line("var<immediate> params: RoofFedImmediates;");
    t.line("@group(0) @binding(0) var<storage, read> operands: array<vec4<f16>>;");
    t.line("@group(0) @binding(1) var<storage, read_write> out: array<f32>;");
    units.aliases(t);
    units.declare(t, &fed.tiles());
    t.line("");
    t.line(format_args!("@compute @workgroup_size({})", fed.threads()));
    t.line("fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,");
    t.open("        @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32)");
    t.line("let index = group.y * groups.x + group.x;");
    t.line("if index >= params.groups { return; }");
    fill(t, fed);
    t.line("// the tiles are complete before anyone reads them; nothing is written to them from here on");
    t.line("workgroupBarrier();");
    products(t, fed);
    t.close();
    std::mem::take(&mut t.text)
}

/// Writes the copying of operands to workgroup memory, line by line.
fn fill(t: &mut Text, fed: &Fed) {
    let units = &fed.units;
    let (stride, across) = (fed.tiles().stride(), DEPTH / 4);
    let pieces = FED_TILES as u32 * fed.lines() * across;
    t.open(format_args!("for (var piece = thread; piece < {pieces}u; piece += {}u)", fed.threads()));
    t.line(format_args!("let at = piece / {across}u * {stride}u + piece % {across}u * 4u;"));
    if units.wide_tiles {
        units.write_four(t, "tiles", "at", "operands[piece]");
    } else {
        t.line("let four = operands[piece];");
        units.write_four(t, "tiles", "at", "four");
    }
    t.close();
}

/// Writes the rounds, and the storing of the subgroup's part of the result.
fn products(t: &mut Text, fed: &Fed) {
    let Fed { units, rows, columns, .. } = *fed;
    let (edge, unit) = (units.native, if units.wide_tiles { 4 } else { 1 });
    let [m, n, _] = fed.shape();
    let matrices = || grid(rows / edge, columns / edge);
    t.line("// a device that cannot require a subgroup size may make more subgroups, which repeat the work of others");
    t.line(format_args!("let own = subgroup % {}u;", GRID.0 * GRID.1));
    t.line(format_args!("let first_row = own / {}u * {rows}u;", GRID.1));
    t.line(format_args!("let first_column = own % {}u * {columns}u;", GRID.1));
    for (i, j) in matrices() {
        t.line(format_args!("var c{i}_{j} = MatrixC();"));
    }
    t.open("for (var round = 0u; round < params.rounds; round++)");
    t.line(format_args!("let tile = round * params.stride % {FED_TILES}u * {}u;", fed.lines()));
    let stride = fed.tiles().stride() / unit;
    for k in (0..DEPTH).step_by(edge as usize) {
        for i in 0..rows / edge {
            let at = format!("(tile + first_row + {}u) * {stride}u + {}u", i * edge, k / unit);
            t.line(format_args!("let a{k}_{i} = coopLoadT<MatrixA>(&tiles[{at}], {stride}u);"));
        }
        for j in 0..columns / edge {
            let at = format!("(tile + {m}u + first_column + {}u) * {stride}u + {}u", j * edge, k / unit);
            t.line(format_args!("let b{k}_{j} = coopLoad<MatrixB>(&tiles[{at}], {stride}u);"));
        }
        for (i, j) in matrices() {
            t.line(format_args!("c{i}_{j} = coopMultiplyAdd(a{k}_{i}, b{k}_{j}, c{i}_{j});"));
        }
    }
    t.close();
    t.line(format_args!("let start = (index * {m}u + first_row) * {n}u + first_column;"));
    for (i, j) in matrices() {
        let at = format!("start + {}u", i * edge * n + j * edge);
        matrix_units::store(t, &format!("c{i}_{j}"), "out", &at, &format!("{n}u"));
    }
}
