//! Layer normalisation (Ba, Kiros and Hinton), with the normalised input and its reciprocal standard deviation kept for
//! the backward.

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Dispatch, Elem, Immediates, KernelId, OpPass, Pass, Tensor};

use super::sums::Sums;
use super::{ELEMENTWISE_WORKGROUP, Operator, reduction_workgroup, storage_types, subgroup_lanes, workgroups};

/// The pass that [`forward`] records.
pub const FORWARD: OpPass = OpPass::new("layernorm", "forward");
/// The pass that [`affine`] records.
pub const AFFINE: OpPass = OpPass::new("layernorm", "affine");
/// The pass that [`backward`] records.
pub const BACKWARD: OpPass = OpPass::new("layernorm", "backward");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator =
    Operator { name: "layernorm", passes: &[FORWARD, AFFINE, BACKWARD], kernels, tried: super::none_tried };

crate::shared_struct! {
    struct LayernormImmediates {
        rows: u32,
        columns: u32,
        inverse: f32,
        block_rows: u32,
        blocks: u32,
    }
}

/// Largest number of row blocks for which the parameters' gradients are summed separately.
const BLOCKS: usize = 512;
/// Smallest number of rows in a block.
const BLOCK_ROWS: usize = 16;
/// Largest number of rows of C elements that [`backward`] needs as scratch.
pub const SCRATCH_ROWS: usize = 3 * BLOCKS;
/// Most `Vec` of a row that an invocation keeps, in teams that add up by a tree. Longer rows get larger teams, up to
/// the workgroup's size.
const MOST_KEPT: usize = 8;
/// Most elements of a row that an invocation keeps, in teams that add up by subgroups. Longer rows get larger teams, up
/// to [`MOST_TEAM`]. For each element the backward pass keeps three sums and the loaded values in registers.
const MOST_ELEMENTS: usize = 8;
/// Invocations of a workgroup whose teams add up by subgroups, unless one team is larger.
const GROUP: u32 = 256;
/// Most invocations in a team that adds up by subgroups.
const MOST_TEAM: u32 = 512;
/// Returns row lengths of the kernels in the translation tests. CPU drivers, which unroll the loops over a row, take long
/// for long rows.
fn sample_columns(caps: &Caps) -> [usize; 3] {
    [if caps.software { 256 } else { 768 }, 132, 129]
}

/// Returns the rows per block and the number of blocks for N rows. Both depend on the shape alone, so that sums never
/// change.
fn blocks(rows: usize) -> (usize, usize) {
    let block_rows = rows.div_ceil(BLOCKS).max(BLOCK_ROWS);
    (block_rows, rows.div_ceil(block_rows))
}

/// Returns the rows of C elements that the scratch of [`backward`] must have for N rows, in any number of windows.
#[must_use]
pub fn scratch_rows(rows: usize) -> usize {
    3 * rows.div_ceil(BLOCK_ROWS).min(BLOCKS)
}

/// A team: the invocations that share a row.
#[derive(Clone, Copy)]
struct Team {
    size: u32,
    /// Invocations of a subgroup if teams are whole subgroups and add up by them; `None` if they add up by a tree.
    lanes: Option<u32>,
    /// Invocations of a workgroup, a multiple of `size`.
    group: u32,
}

impl Team {
    /// Returns the team for rows of C elements.
    fn of(caps: &Caps, c: usize) -> Self {
        subgroup_lanes(caps).map_or_else(|| Self::tree(caps, c), |lanes| Self::of_subgroups(caps, lanes, c))
    }

    fn tree(caps: &Caps, c: usize) -> Self {
        let (group, units) = (reduction_workgroup(caps), c / Width::of(&[c]).elements());
        let wanted = units.div_ceil(MOST_KEPT) as u32;
        let size = if caps.software { group } else { wanted.next_power_of_two().clamp(32, group) };
        Self { size, lanes: None, group }
    }

    fn of_subgroups(caps: &Caps, lanes: u32, c: usize) -> Self {
        let most = caps.max_invocations.min(MOST_TEAM) / lanes * lanes;
        let size = (c.div_ceil(MOST_ELEMENTS) as u32).next_multiple_of(lanes).min(most);
        Self { size, lanes: Some(lanes), group: (GROUP / size).max(1) * size }
    }

    /// Returns the rows that a workgroup computes at once.
    fn rows(self) -> u32 {
        self.group / self.size
    }
}

fn shader(team: Team, of: OpPass, entry: &'static str, c: usize, elem: Elem) -> KernelId {
    let width = Width::stored(elem, &[c]);
    let units = c / width.elements();
    let kernel = KernelId::shader(of, entry, width, &[include_str!("../../shaders/layernorm.wgsl")])
        .stored(elem)
        .with_const("TEAM", team.size)
        .with_const("COLS", units.div_ceil(team.size as usize) as u32);
    match team.lanes {
        None => kernel.with_text(include_str!("../../shaders/shared/teams_tree.wgsl")),
        Some(lanes) => kernel
            .with_const("SUBGROUP", lanes)
            .with_text(include_str!("../../shaders/shared/teams_subgroups.wgsl"))
            .in_subgroups_of(lanes),
    }
}

/// The treatment of `dinp` in a variant of the backward kernel.
#[derive(Clone, Copy, Default)]
struct DinpMode {
    /// Whether `dinp` is overwritten instead of accumulated.
    overwrite: bool,
    /// Whether the result goes to `dinp_f32` instead of `dinp`.
    widen: bool,
}

fn forward_kernel(caps: &Caps, c: usize, elem: Elem) -> KernelId {
    let team = Team::of(caps, c);
    with_dinp_access(shader(team, FORWARD, "forward", c, elem), DinpMode::default()).set("WORKGROUP", team.group)
}

fn affine_kernel(caps: &Caps, c: usize, elem: Elem) -> KernelId {
    let kernel = shader(Team::tree(caps, c), AFFINE, "affine", c, elem);
    with_dinp_access(kernel, DinpMode::default()).set("WORKGROUP", ELEMENTWISE_WORKGROUP)
}

fn backward_kernel(caps: &Caps, c: usize, elem: Elem, mode: DinpMode) -> KernelId {
    let label = match (mode.overwrite, mode.widen) {
        (true, _) => "backward_first",
        (_, true) => "backward_last",
        _ => "backward",
    };
    let team = Team::of(caps, c);
    let kernel = shader(team, BACKWARD, "backward", c, elem).printed("layernorm", label);
    with_dinp_access(kernel, mode).set("WORKGROUP", team.group)
}

/// Adds the functions `load_dinp` and `store_dinp`, in which the variants differ.
fn with_dinp_access(kernel: KernelId, DinpMode { overwrite, widen }: DinpMode) -> KernelId {
    let before = match overwrite {
        true => "fn load_dinp(i: u32) -> Stored { return pack(Vec(), Vec()); }\n",
        false => "fn load_dinp(i: u32) -> Stored { return dinp[i]; }\n",
    };
    let put = match widen {
        true => {
            "fn store_dinp(i: u32, first: Vec, last: Vec) { dinp_f32[i * VECS_PER_STORED] = first; \
             dinp_f32[i * VECS_PER_STORED + VECS_PER_STORED - 1u] = last; }\n"
        }
        false => "fn store_dinp(i: u32, first: Vec, last: Vec) { dinp[i] = pack(first, last); }\n",
    };
    kernel.with_text(before).with_text(put)
}

/// Returns the kernels that an adapter may be given, for sample row lengths.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    let mut list = Vec::new();
    for c in sample_columns(caps) {
        for elem in storage_types(caps) {
            list.extend([forward_kernel, affine_kernel].map(|kernel| kernel(caps, c, elem)));
            let modes =
                [(false, false), (true, false), (false, true)].map(|(overwrite, widen)| DinpMode { overwrite, widen });
            let possible = modes.into_iter().filter(|mode| elem == Elem::F16 || !mode.widen);
            list.extend(possible.map(|mode| backward_kernel(caps, c, elem, mode)));
        }
    }
    list
}

/// Returns the immediates of a kernel whose elements are stored as `elem`.
fn params(rows: usize, c: usize, elem: Elem) -> LayernormImmediates {
    let (block_rows, blocks) = blocks(rows);
    LayernormImmediates {
        rows: rows as u32,
        columns: (c / Width::stored(elem, &[c]).elements()) as u32,
        inverse: 1.0 / c as f32,
        block_rows: block_rows as u32,
        blocks: blocks as u32,
    }
}

/// Tensors of [`forward`].
#[derive(Debug)]
pub struct Forward<'a> {
    /// (N, C).
    pub inp: &'a Tensor,
    /// (1, C).
    pub weight: &'a Tensor,
    /// (1, C).
    pub bias: &'a Tensor,
    /// (N, C), of the same element type as `out`, overwritten: the normalised input.
    pub xhat: &'a Tensor,
    /// (N, C), f32 or f16, overwritten.
    pub out: &'a Tensor,
    /// (N, 1), overwritten: 1 / sqrt(variance + 1e-5).
    pub rstd: &'a Tensor,
}

/// `xhat[n,c] = (inp[n,c] - mean[n]) rstd[n]`, `out[n,c] = xhat[n,c] weight[c] + bias[c]`. Overwrites `xhat`, `out`,
/// `rstd`.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    let (n, c) = (io.inp.rows(), io.inp.columns());
    let place = "layernorm.forward";
    check_affine(place, [n, c], [io.weight, io.bias, io.xhat, io.out])?;
    io.rstd.check_shape(place, "rstd", n, 1)?;
    let caps = &pass.gpu.caps;
    let kernel = forward_kernel(caps, c, io.out.elem());
    let rows_a_group = Team::of(caps, c).rows();
    for rows in pass.row_windows(n, io.inp.row_bytes()) {
        let [inp, xhat, out, rstd] = [io.inp, io.xhat, io.out, io.rstd].map(|t| t.slice(rows.clone()));
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &[&inp, io.weight, io.bias, &xhat, &out, &rstd],
            immediates: Immediates::of(&params(inp.rows(), c, out.elem())),
            groups: workgroups(inp.rows(), rows_a_group),
            flops: 8 * inp.len() as u64,
            bytes: inp.bytes() + xhat.bytes() + out.bytes() + rstd.bytes() + 2 * io.weight.bytes(),
        })?;
    }
    Ok(())
}

/// Checks the shapes of `weight`, `bias`, `xhat` and `out` for (N, C) rows.
fn check_affine(place: &str, [n, c]: [usize; 2], [weight, bias, xhat, out]: [&Tensor; 4]) -> Result<()> {
    weight.check_shape(place, "weight", 1, c)?;
    bias.check_shape(place, "bias", 1, c)?;
    xhat.check_shape(place, "xhat", n, c)?;
    out.check_shape(place, "out", n, c)?;
    xhat.check_elem(place, "xhat", out.elem())
}

/// Tensors of [`affine`].
#[derive(Debug)]
pub struct Affine<'a> {
    /// (N, C): the normalised input that [`forward`] wrote.
    pub xhat: &'a Tensor,
    /// (1, C).
    pub weight: &'a Tensor,
    /// (1, C).
    pub bias: &'a Tensor,
    /// (N, C), of the same element type as `xhat`, overwritten.
    pub out: &'a Tensor,
}

/// `out[n,c] = xhat[n,c] weight[c] + bias[c]`: computes [`forward`]'s `out` again, with the same bits. Overwrites
/// `out`.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn affine(pass: &mut Pass, io: Affine) -> Result<()> {
    let (n, c) = (io.xhat.rows(), io.xhat.columns());
    check_affine("layernorm.affine", [n, c], [io.weight, io.bias, io.xhat, io.out])?;
    let width = Width::stored(io.out.elem(), &[c]);
    let kernel = affine_kernel(&pass.gpu.caps, c, io.out.elem());
    for rows in pass.row_windows(n, io.xhat.row_bytes()) {
        let [xhat, out] = [io.xhat, io.out].map(|t| t.slice(rows.clone()));
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &[&xhat, io.weight, io.bias, &out],
            immediates: Immediates::of(&params(xhat.rows(), c, out.elem())),
            groups: workgroups(xhat.len() / width.elements(), ELEMENTWISE_WORKGROUP),
            flops: 2 * xhat.len() as u64,
            bytes: xhat.bytes() + out.bytes() + 2 * io.weight.bytes(),
        })?;
    }
    Ok(())
}

/// Tensors of [`backward`].
#[derive(Debug)]
pub struct Backward<'a> {
    /// (N, C), f32 or f16.
    pub dout: &'a Tensor,
    /// (N, C), of the same element type as `dout`: the normalised input that [`forward`] wrote.
    pub xhat: &'a Tensor,
    /// (1, C).
    pub weight: &'a Tensor,
    /// (N, 1): the reciprocal standard deviation that [`forward`] wrote.
    pub rstd: &'a Tensor,
    /// (N, C), of the same element type as `dout`, accumulated: the gradient of the residual stream.
    pub dinp: &'a Tensor,
    /// Whether `dinp` is overwritten, because the gradient begins here.
    pub overwrite_dinp: bool,
    /// (N, C) of f32, overwritten with the result if given, because the gradient ends here; `dinp` is then only read.
    /// `dinp` must be f16 and must not begin here.
    pub dinp_f32: Option<&'a Tensor>,
    /// (1, C), accumulated, or overwritten where it [begins](Pass::take_zero).
    pub dweight: &'a Tensor,
    /// (1, C), accumulated, or overwritten where it begins.
    pub dbias: &'a Tensor,
    /// (1, C), accumulated, or overwritten where it begins, if given: the sums over n of `dinp`, which are the gradient
    /// of the bias in the projection that was last added to the residual stream.
    pub dsum: Option<&'a Tensor>,
}

/// With `g = weight dout`: `dinp += rstd (g - mean(g) - xhat mean(g xhat))`, `dweight += sum over n of dout xhat`,
/// `dbias += sum over n of dout`, `dsum += sum over n of dinp`. With `overwrite_dinp` it is `dinp =`. The parameters'
/// gradients are summed in two deterministic stages. `sums` records the second stage later. Its scratch must have at
/// least [`scratch_rows`] * C elements.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn backward(pass: &mut Pass, io: Backward, sums: &mut Sums) -> Result<()> {
    let (n, c) = (io.xhat.rows(), io.xhat.columns());
    let place = "layernorm.backward";
    io.dout.check_shape(place, "dout", n, c)?;
    io.dinp.check_shape(place, "dinp", n, c)?;
    let rows =
        [("weight", Some(io.weight)), ("dweight", Some(io.dweight)), ("dbias", Some(io.dbias)), ("dsum", io.dsum)];
    for (name, tensor) in rows {
        tensor.map_or(Ok(()), |tensor| tensor.check_shape(place, name, 1, c))?;
    }
    io.rstd.check_shape(place, "rstd", n, 1)?;
    let elem = io.dout.elem();
    io.xhat.check_elem(place, "xhat", elem)?;
    io.dinp.check_elem(place, "dinp", elem)?;
    if let Some(dinp_f32) = io.dinp_f32 {
        dinp_f32.check_shape(place, "dinp_f32", n, c)?;
        dinp_f32.check_elem(place, "dinp_f32", Elem::F32)?;
        io.dinp.check_elem(place, "dinp", Elem::F16)?;
        if io.overwrite_dinp {
            return Err(Error::shape(
                Fault::at(place, "`overwrite_dinp` and `dinp_f32` are both set").expected("at most one of them"),
            ));
        }
    }
    let kernel = backward_kernel(
        &pass.gpu.caps,
        c,
        elem,
        DinpMode { overwrite: io.overwrite_dinp, widen: io.dinp_f32.is_some() },
    );
    let gradients: Vec<&Tensor> = [io.dweight, io.dbias].into_iter().chain(io.dsum).collect();
    for rows in pass.row_windows(n, io.dinp_f32.unwrap_or(io.dinp).row_bytes()) {
        let [dout, xhat, rstd, dinp] = [io.dout, io.xhat, io.rstd, io.dinp].map(|t| t.slice(rows.clone()));
        let p = params(xhat.rows(), c, elem);
        let scratch = sums.scratch(pass)?.reshape(3 * p.blocks as usize, c);
        let dinp_f32 = io.dinp_f32.map(|t| t.slice(rows.clone()));
        let mut tensors = vec![&dout, &xhat, io.weight, &rstd, &dinp, &scratch];
        tensors.extend(&dinp_f32);
        let stored = dinp_f32.as_ref().unwrap_or(&dinp).bytes();
        pass.dispatch(&Dispatch {
            kernel: &kernel,
            tensors: &tensors,
            immediates: Immediates::of(&p),
            groups: u64::from(p.blocks),
            flops: 16 * xhat.len() as u64,
            bytes: dout.bytes()
                + xhat.bytes()
                + stored
                + if io.overwrite_dinp { 0 } else { dinp.bytes() }
                + rstd.bytes()
                + io.weight.bytes()
                + scratch.bytes(),
        })?;
        sums.queue_rows(p.blocks as usize, 3 * c, &gradients)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Vendor;

    /// Returns team size, subgroup size, workgroup size and rows per workgroup for each of four row lengths.
    fn teams(caps: &Caps) -> Vec<(u32, Option<u32>, u32, u32)> {
        let of = |c| Team::of(caps, c);
        [129, 768, 1600, 12_288].map(of).map(|team| (team.size, team.lanes, team.group, team.rows())).into()
    }

    #[test]
    fn teams_are_whole_subgroups_where_these_have_one_size() {
        let gpu = Caps { subgroups: true, subgroup_sizes: (32, 32), max_invocations: 1024, ..Caps::webgpu_defaults() };
        let lanes = Some(32);
        let by_subgroups = [(32, lanes, 256, 8), (96, lanes, 192, 2), (224, lanes, 224, 1), (512, lanes, 512, 1)];
        assert_eq!(teams(&gpu), by_subgroups);
        let amd = Caps { subgroup_sizes: (32, 64), ..gpu.clone() };
        let apple = Caps { subgroup_sizes: (4, 64), backend: "Metal".into(), vendor: Vendor::Apple, ..gpu.clone() };
        assert_eq!(teams(&Caps { subgroup_control: true, ..amd.clone() }), by_subgroups);
        assert_eq!(teams(&apple), by_subgroups);
        let least = Caps { max_invocations: 256, ..gpu.clone() };
        assert_eq!(teams(&least)[2..], [(224, lanes, 224, 1), (256, lanes, 256, 1)]);
        let by_tree = [(32, None, 128, 4), (32, None, 128, 4), (64, None, 128, 2), (128, None, 128, 1)];
        let intel = Caps { subgroup_sizes: (8, 32), subgroup_control: true, ..gpu.clone() };
        for other in [amd, intel, Caps { subgroups: false, ..gpu }] {
            assert_eq!(teams(&other), by_tree);
        }
    }
}
