//! Adds partial sums to gradients in a fixed order.
//!
//! A matrix product writes parts of a weight's gradient. The backward passes of layernorm and bias write rows of sums.
//! These rows wait in a scratch until the next parts are added, so that one dispatch adds both and the short one does
//! not cost a launch of its own. If the scratch is needed again before that, or at the end, the rows are added alone.

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Immediates, KernelId, OpPass, Pass, Purpose, Tensor};

use super::{Operator, reduction_workgroup, subgroup_lanes, workgroups};

/// The pass that [`Sums`] records.
pub const ADD: OpPass = OpPass::new("sums", "add");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator = Operator { name: "sums", passes: &[ADD], kernels, tried: super::none_tried };

crate::shared_struct! {
    struct SumsImmediates {
        count: u32,
        parts: u32,
        blocks: u32,
        first_square: u32,
        rows: u32,
        stride: u32,
        columns: u32,
        adds: u32,
    }
}

/// Value of `first_square` where no sums of squares are wanted.
const NO_SQUARES: u32 = u32::MAX;
/// Number of `Vec` of a weight's gradient that an invocation adds up at once.
const KEPT: usize = 2;
/// Invocations that share a column of the rows, on a GPU.
const SHARE: u32 = 16;
/// Most gradients whose sums one set of rows can hold.
const MOST_OUTS: usize = 3;

/// Returns the text that declares the bindings of the rows and of their gradients, and the function `put` that adds to
/// these.
macro_rules! rows_text {
    ($rows:literal $(, $out:literal at $binding:literal)*) => {
        concat!(
            "@group(0) @binding(", $rows, ") var<storage, read> rows: array<Vec>;\n",
            $("@group(0) @binding(", $binding, ") var<storage, read_write> out", $out, ": array<Vec>;\n",)*
            "fn put(which: u32, c: u32, sum: Vec, adds: bool) {\n    var before = Vec();\n",
            $(
                "    if which == ", $out, "u {\n        if adds { before = out", $out, "[c]; }\n        out", $out,
                "[c] = before + sum;\n    }\n",
            )*
            "}\n"
        )
    };
}

/// The text for 1, 2 and 3 gradients, where the bindings of parts come first, and where there are no parts.
const BEHIND_PARTS: [&str; MOST_OUTS] = [
    rows_text!("3", "0" at "4"),
    rows_text!("3", "0" at "4", "1" at "5"),
    rows_text!("3", "0" at "4", "1" at "5", "2" at "6"),
];
const ALONE: [&str; MOST_OUTS] = [
    rows_text!("0", "0" at "1"),
    rows_text!("0", "0" at "1", "1" at "2"),
    rows_text!("0", "0" at "1", "1" at "2", "2" at "3"),
];
/// Suffixes of printed names: whether there are parts, and the number of gradients in rows.
const PARTS_VARIANT: &str = ".parts";
const BOTH_VARIANTS: [&str; MOST_OUTS] = [".parts.rows1", ".parts.rows2", ".parts.rows3"];
const ROWS_VARIANTS: [&str; MOST_OUTS] = [".rows1", ".rows2", ".rows3"];

/// Returns the kernel that adds parts, if `parts`, and rows of sums for `outs` gradients.
fn kernel(caps: &Caps, width: Width, parts: bool, outs: usize) -> KernelId {
    // entry points that are not used must still compile
    let at = outs.clamp(1, MOST_OUTS) - 1;
    let (entry, variant, text) = match (parts, outs) {
        (true, 0) => ("add_parts", PARTS_VARIANT, BEHIND_PARTS[at]),
        (true, _) => ("add_both", BOTH_VARIANTS[at], BEHIND_PARTS[at]),
        (false, _) => ("add_rows", ROWS_VARIANTS[at], ALONE[at]),
    };
    let share = if caps.software { 1 } else { SHARE };
    let rows = [include_str!("../../shaders/sums.wgsl"), text];
    let both = [rows[0], text, include_str!("../../shaders/sums_parts.wgsl")];
    let kernel = KernelId::shader(ADD, entry, width, if parts { &both } else { &rows })
        .printed("sums", "add")
        .variant(variant)
        .with_hidden_const("GRADIENTS", at as u32 + 1)
        .with_hidden_const("SHARE", share)
        .set("WORKGROUP", reduction_workgroup(caps));
    if !parts {
        return kernel;
    }
    let kernel = kernel.serving(Purpose::PartialSums).with_hidden_const("KEPT", KEPT as u32);
    match subgroup_lanes(caps) {
        None => kernel.with_text(include_str!("../../shaders/shared/group_tree.wgsl")),
        Some(lanes) => kernel
            .with_hidden_const("SUBGROUP", lanes)
            .with_text(include_str!("../../shaders/shared/group_subgroups.wgsl"))
            .in_subgroups_of(lanes),
    }
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    let kinds = [(true, 0..=MOST_OUTS), (false, 1..=MOST_OUTS)];
    let of =
        |width| kinds.clone().into_iter().flat_map(move |(parts, outs)| outs.map(move |outs| (width, parts, outs)));
    [Width::Vec4, Width::Scalar].into_iter().flat_map(of).map(|(w, parts, outs)| kernel(caps, w, parts, outs)).collect()
}

/// Returns the largest number of sums of squares that adding the parts of a weight's gradient of `elements` elements
/// writes, if the lengths of waiting rows are multiples of `columns`.
#[must_use]
pub fn max_square_sums(caps: &Caps, elements: usize, columns: usize) -> usize {
    blocks(caps, elements, Width::of(&[elements, columns]))
}

/// Returns the number of workgroups that write `elements` elements of a weight's gradient.
fn blocks(caps: &Caps, elements: usize, width: Width) -> usize {
    elements.div_ceil(width.elements() * KEPT * reduction_workgroup(caps) as usize)
}

/// Memory for parts of products and for the squares of their sums.
#[derive(Debug, Clone, Copy)]
pub struct PartialsMemory<'a> {
    /// Elements of f32, overwritten: [`super::matmul::partial_sums_len`] returns how many a product needs.
    pub partials: &'a Tensor,
    /// Elements of f32, overwritten with the sums of squares of gradients as long as they fit. [`max_square_sums`]
    /// returns how many each gradient takes.
    pub squares: &'a Tensor,
}

/// Parts of a weight's gradient.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// (parts, elements of `dweight`), in [`PartialsMemory::partials`].
    pub partials: &'a Tensor,
    /// Number of parts.
    pub parts: u32,
    /// Accumulated, or overwritten where it [begins](Pass::take_zero).
    pub dweight: &'a Tensor,
    /// Whether these parts are the whole product, so that nothing else will be added.
    pub whole: bool,
}

/// Rows of sums that wait in the scratch to be added.
#[derive(Debug)]
struct Rows {
    rows: usize,
    /// Elements from row to row.
    stride: usize,
    /// (1, C) each, at most [`MOST_OUTS`].
    outs: Vec<Tensor>,
}

/// The gradients whose sums of squares are in [`PartialsMemory::squares`].
#[derive(Debug, Default)]
pub struct SquaredGradients {
    /// Number of sums, which begin at the first element of [`PartialsMemory::squares`].
    pub count: usize,
    /// The gradients, each whole.
    pub of: Vec<Tensor>,
}

/// Memory for partial sums, and the rows that wait there to be added. Call [`Sums::finish`] at the end, or waiting rows
/// are lost.
#[derive(Debug)]
#[must_use]
pub struct Sums<'a> {
    room: Option<PartialsMemory<'a>>,
    scratch: &'a Tensor,
    waiting: Option<Rows>,
    squared: SquaredGradients,
}

impl<'a> Sums<'a> {
    /// Creates sums that use `room` for parts of products, if given, and `scratch` for rows. Both are f32 and are
    /// overwritten.
    pub fn new(room: Option<PartialsMemory<'a>>, scratch: &'a Tensor) -> Self {
        Self { room, scratch, waiting: None, squared: SquaredGradients::default() }
    }

    /// Returns the memory for parts of products, if there is any.
    #[must_use]
    pub fn partials(&self) -> Option<&'a Tensor> {
        self.room.map(|room| room.partials)
    }

    /// Adds rows that wait in the scratch, and returns the scratch for reuse.
    ///
    /// # Errors
    /// [`Error::Gpu`] if a kernel cannot be built; [`Error::Shape`] if its element type is not f32.
    pub fn scratch(&mut self, pass: &mut Pass) -> Result<&'a Tensor> {
        self.scratch.check_elem("sums.add", "scratch", Elem::F32)?;
        self.add_waiting(pass)?;
        Ok(self.scratch)
    }

    /// Registers `rows` rows of sums in the scratch, to be added later to `outs`, each (1, C). Rows are `stride`
    /// elements apart. Each row has the columns of the first of `outs`, then those of the second, and so on. The caller
    /// must have taken the scratch by [`Sums::scratch`] before.
    ///
    /// # Errors
    /// [`Error::Shape`] if a gradient has the wrong shape, the rows do not fit the scratch, or other rows still wait.
    pub fn queue_rows(&mut self, rows: usize, stride: usize, outs: &[&Tensor]) -> Result<()> {
        let place = "sums.add";
        let columns = outs.first().map_or(0, |out| out.columns());
        outs.iter().try_for_each(|out| out.check_shape(place, "out", 1, columns))?;
        let fault = match (outs.len(), &self.waiting) {
            (1..=MOST_OUTS, None) if outs.len() * columns <= stride && rows * stride <= self.scratch.len() => {
                self.waiting = Some(Rows { rows, stride, outs: outs.iter().map(|&out| out.clone()).collect() });
                return Ok(());
            }
            (_, Some(_)) => Fault::at(place, "rows that were queued before still wait to be added").expected("none"),
            (count, None) => Fault::at(place, format!("{count} gradients of {columns} in {rows} rows of {stride}"))
                .expected(format!("1 to {MOST_OUTS} gradients that fit a row, and rows that fit the scratch")),
        };
        Err(Error::shape(fault))
    }

    /// Adds parts to a weight's gradient, and waiting rows to their gradients.
    ///
    /// # Errors
    /// [`Error::Shape`] without memory for parts; [`Error::Gpu`] if a kernel cannot be built.
    pub fn add(&mut self, pass: &mut Pass, parts: Parts) -> Result<()> {
        let Some(room) = self.room else {
            return Err(Error::shape(Fault::at("sums.add", "parts of a product, but no memory for parts")));
        };
        parts.partials.check_elem("sums.add", "partials", Elem::F32)?;
        parts.partials.check_shape("sums.add", "partials", parts.parts as usize, parts.dweight.len())?;
        let waiting = self.waiting.take();
        let rows = waiting.as_ref().map(|rows| (rows, self.scratch));
        let count = blocks(&pass.gpu.caps, parts.dweight.len(), width(Some(&parts), rows));
        let first = self.squared.count;
        let fits = parts.whole && first + count <= room.squares.len();
        dispatch(pass, Some((&parts, room.squares, fits.then_some(first))), rows)?;
        if fits {
            self.squared.count += count;
            self.squared.of.push(parts.dweight.clone());
        }
        Ok(())
    }

    fn add_waiting(&mut self, pass: &mut Pass) -> Result<()> {
        let Some(rows) = self.waiting.take() else { return Ok(()) };
        dispatch(pass, None, Some((&rows, self.scratch)))
    }

    /// Adds rows that still wait, and returns the gradients whose squares were summed.
    ///
    /// # Errors
    /// [`Error::Gpu`] if a kernel cannot be built.
    pub fn finish(mut self, pass: &mut Pass) -> Result<SquaredGradients> {
        self.add_waiting(pass)?;
        Ok(self.squared)
    }
}

/// Returns the widest width in which all tensors of a dispatch can be read.
fn width(parts: Option<&Parts>, rows: Option<(&Rows, &Tensor)>) -> Width {
    let mut lengths: Vec<usize> = parts.iter().map(|parts| parts.dweight.len()).collect();
    lengths.extend(rows.iter().flat_map(|(rows, _)| [rows.stride, rows.outs[0].len()]));
    Width::of(&lengths)
}

/// Records a dispatch that adds `parts` (the parts, the tensor for sums of squares, and the position of their first sum
/// if they are wanted) and `rows` (the rows, and the scratch that holds them).
fn dispatch(
    pass: &mut Pass,
    parts: Option<(&Parts, &Tensor, Option<usize>)>,
    rows: Option<(&Rows, &Tensor)>,
) -> Result<()> {
    let caps = &pass.gpu.caps;
    let width = width(parts.map(|(parts, ..)| parts), rows);
    let mut p = SumsImmediates { first_square: NO_SQUARES, ..bytemuck::Zeroable::zeroed() };
    let (mut tensors, mut gradients) = (Vec::new(), Vec::new());
    let (mut row_groups, mut added, mut squared) = (0, 0, 0);
    if let Some((parts, squares, first)) = parts {
        let elements = parts.dweight.len();
        p.count = (elements / width.elements()) as u32;
        p.parts = parts.parts;
        p.blocks = blocks(caps, elements, width) as u32;
        p.first_square = first.map_or(NO_SQUARES, |first| first as u32);
        added += parts.parts as usize * elements;
        squared += first.map_or(0, |_| elements);
        tensors.extend([
            parts.partials.reshape(parts.parts as usize, elements),
            parts.dweight.clone(),
            squares.clone(),
        ]);
        gradients.push(parts.dweight);
    }
    if let Some((rows, scratch)) = rows {
        let c = rows.outs[0].len();
        let share = if caps.software { 1 } else { SHARE };
        p.rows = rows.rows as u32;
        p.stride = (rows.stride / width.elements()) as u32;
        p.columns = (c / width.elements()) as u32;
        row_groups = rows.outs.len() as u64 * workgroups(p.columns as usize, reduction_workgroup(caps) / share);
        added += rows.rows * rows.outs.len() * c;
        tensors.push(scratch.reshape(rows.rows, rows.stride));
        tensors.extend(rows.outs.iter().cloned());
        gradients.extend(&rows.outs);
    }
    let kernel = kernel(caps, width, parts.is_some(), rows.map_or(0, |(rows, _)| rows.outs.len()));
    let begins: Vec<bool> = gradients.iter().map(|gradient| pass.take_zero(gradient)).collect();
    let first_bit = u32::from(parts.is_none());
    p.adds = begins.iter().zip(first_bit..).map(|(&begins, bit)| u32::from(!begins) << bit).sum();
    let moved = |(gradient, &begins): (&&Tensor, &bool)| if begins { gradient.bytes() } else { 2 * gradient.bytes() };
    let gradient_bytes: u64 = gradients.iter().zip(&begins).map(moved).sum();
    pass.dispatch(&Dispatch {
        kernel: &kernel,
        tensors: &tensors.iter().collect::<Vec<_>>(),
        immediates: Immediates::of(&p),
        groups: u64::from(p.blocks) + row_groups,
        flops: (added + 2 * squared) as u64,
        bytes: Elem::F32.bytes() * added as u64 + gradient_bytes,
    })
}
