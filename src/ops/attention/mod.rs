//! Causal self-attention, fused forward and backward (Dao et al., FlashAttention).

mod coop;
mod generate;

use std::ops::Range;

use crate::error::{Error, Fault, Result};
use crate::gpu::kernel::Width;
use crate::gpu::{Arithmetic, Caps, Dispatch, Elem, Immediates, KernelId, OpPass, Pass, Purpose, Tensor, Vendor};

use super::{ELEMENTWISE_WORKGROUP, Operator, reduction_workgroup, storage_types, workgroups};

pub use coop::{AttentionKernel, BlockSizes};

/// The pass that [`forward`] records.
pub const FORWARD: OpPass = OpPass::new("attention", "forward");
/// The pass that [`backward`] records.
pub const BACKWARD: OpPass = OpPass::new("attention", "backward");
/// The pass that [`step`] records.
pub const STEP: OpPass = OpPass::new("attention", "step");
/// The operator's entry in [`super::OPERATORS`].
pub static OPERATOR: Operator =
    Operator { name: "attention", passes: &[FORWARD, BACKWARD, STEP], kernels, tried: tried_kernels };

crate::shared_struct! {
    struct AttentionImmediates {
        positions: u32,
        heads: u32,
        scale: f32,
        first: u32,
        end: u32,
        first_head: u32,
    }
}

crate::shared_struct! {
    struct AttentionStepImmediates {
        positions: u32,
        heads: u32,
        scale: f32,
    }
}

/// Head sizes of the kernels in the translation tests: the smallest, odd ones, GPT-2's and GPT-3's.
const SAMPLE_HEAD_SIZES: [usize; 9] = [8, 11, 13, 16, 32, 64, 80, 96, 128];

/// Most `Vec` of a head that an invocation of the tiled kernels keeps.
const OWN: usize = 4;
/// The same for the gradients of keys and values on Apple's GPUs, whose registers cannot hold four `Vec` for each of
/// the kernel's four row tensors.
const OWN_ON_APPLE: usize = 2;
/// Invocations of a workgroup of the tiled kernels.
const TILED_THREADS: usize = 128;

/// The shaders of kernels in which each lane has a row of its own.
const ROWS: [&str; 2] =
    [include_str!("../../../shaders/shared/attention.wgsl"), include_str!("../../../shaders/attention.wgsl")];
/// The shaders of kernels in which several lanes share a row.
const TILED: [&str; 2] =
    [include_str!("../../../shaders/shared/attention.wgsl"), include_str!("../../../shaders/attention_tiled.wgsl")];

/// Returns the kernel without matrix units and its rows per workgroup. On a software adapter these are one CPU vector
/// of rows, on a GPU as many as the workgroup's lanes suffice for.
fn kernel(caps: &Caps, entry: AttentionKernel, head_size: usize, elem: Elem) -> (KernelId, usize) {
    let width = Width::of(&[head_size]);
    let units = head_size / width.elements();
    let (file, body) = if caps.software { ("attention", &ROWS) } else { ("attention_tiled", &TILED) };
    let kernel = KernelId::shader(entry.pass(), entry.name(), width, body).printed(file, entry.name());
    let kernel = kernel.serving(Purpose::FusedProducts).stored(elem).with_const("HSV", units as u32);
    if caps.software {
        return (kernel.set("WORKGROUP", caps.lanes), caps.lanes as usize);
    }
    let few = caps.vendor == Vendor::Apple && entry == AttentionKernel::BackwardKv;
    let lanes = units.div_ceil(if few { OWN_ON_APPLE } else { OWN }).next_power_of_two();
    (kernel.with_const("LANES", lanes as u32), TILED_THREADS / lanes)
}

/// Returns the kernel that computes `delta`, the sum of `dout out` over each row.
fn delta_kernel(head_size: usize, elem: Elem) -> KernelId {
    let width = Width::of(&[head_size]);
    KernelId::shader(BACKWARD, "backward_delta", width, &ROWS)
        .serving(Purpose::FusedProducts)
        .stored(elem)
        .with_const("HSV", (head_size / width.elements()) as u32)
        .set("WORKGROUP", ELEMENTWISE_WORKGROUP)
}

/// Returns the kernel that the adapter gets and its rows per workgroup: on matrix units where elements are f16 and the
/// adapter has matrix units.
fn chosen(caps: &Caps, entry: AttentionKernel, head_size: usize, elem: Elem, positions: usize) -> (KernelId, usize) {
    match coop::choose(caps, entry, head_size, positions).filter(|_| elem == Elem::F16) {
        Some(coop) => (coop.kernel(), coop.rows as usize),
        None => kernel(caps, entry, head_size, elem),
    }
}

/// Returns the kernel of [`step`]. Its lanes are spread over the `Vec` of the output, then over keys. On a software
/// adapter it is a kernel in which all lanes load the same.
fn step_kernel(caps: &Caps, head_size: usize) -> KernelId {
    let width = Width::of(&[head_size]);
    let (wg, hsv) = (reduction_workgroup(caps), (head_size / width.elements()) as u32);
    let channels = hsv.next_power_of_two().min(wg);
    let entry = if caps.software { "forward_alone" } else { "forward" };
    KernelId::shader(STEP, entry, width, &[include_str!("../../../shaders/attention_step.wgsl")])
        .printed("attention_step", entry)
        .serving(Purpose::FusedProducts)
        .with_const("HSV", hsv)
        .with_const("CHANNELS", channels)
        .with_const("PARTS", wg / channels)
        .with_const("OUTS", hsv.div_ceil(channels))
        .set("WORKGROUP", wg)
}

/// Returns why attention of f16 heads of `head_size` does not run on the adapter's matrix units, or `None` if it does.
#[must_use]
pub fn without_matrices(caps: &Caps, head_size: usize) -> Option<&'static str> {
    coop::without(caps, head_size)
}

/// Returns the key in a record of `wgpt tune` for a kernel with f16 heads of `head_size` and sequences of `positions`.
#[must_use]
pub fn key(entry: AttentionKernel, head_size: usize, positions: usize) -> String {
    coop::key(entry, head_size, positions)
}

/// Returns every block size that can be tried for f16 heads of `head_size` on this adapter's matrix units, the table's
/// first. The list is empty where attention does not use matrix units.
#[must_use]
pub fn candidates(caps: &Caps, entry: AttentionKernel, head_size: usize) -> Vec<BlockSizes> {
    coop::candidates(caps, entry, head_size).iter().map(coop::CoopAttention::choice).collect()
}

/// Returns the block sizes that are used for f16 heads of `head_size` and sequences of `positions`.
#[must_use]
pub fn choose(caps: &Caps, entry: AttentionKernel, head_size: usize, positions: usize) -> Option<BlockSizes> {
    coop::choose(caps, entry, head_size, positions).map(|coop| coop.choice())
}

/// Returns the kernels that `wgpt tune` tries on this adapter for heads of 64, for translation tests.
#[must_use]
pub fn tried_kernels(caps: &Caps) -> Vec<KernelId> {
    let coops = AttentionKernel::ALL.into_iter().flat_map(|entry| coop::candidates(caps, entry, 64));
    coops.map(|coop| coop.kernel()).collect()
}

/// Returns the kernels that an adapter may be given, for sample head sizes.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    let mut list: Vec<KernelId> = SAMPLE_HEAD_SIZES.iter().map(|&hs| step_kernel(caps, hs)).collect();
    for head_size in SAMPLE_HEAD_SIZES {
        list.extend(
            AttentionKernel::ALL.iter().filter_map(|&entry| Some(coop::by_table(caps, entry, head_size)?.kernel())),
        );
    }
    for (elem, hs) in storage_types(caps).into_iter().flat_map(|elem| SAMPLE_HEAD_SIZES.map(|hs| (elem, hs))) {
        list.push(delta_kernel(hs, elem));
        list.extend(AttentionKernel::ALL.map(|entry| kernel(caps, entry, hs, elem).0));
    }
    list
}

/// Batch size, sequence length and number of heads.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSizes {
    /// B.
    pub batch: usize,
    /// T.
    pub positions: usize,
    /// NH.
    pub heads: usize,
}

/// Tensors of [`forward`]: `qkv` and `out` are both f32 or both f16.
#[derive(Debug)]
pub struct Forward<'a> {
    /// B, T, NH.
    pub shape: AttentionSizes,
    /// (B T, 3 C): queries, keys and values of all heads.
    pub qkv: &'a Tensor,
    /// (B T, C), overwritten.
    pub out: &'a Tensor,
    /// (B NH, T), overwritten: the log-sum-exp of each row's scores.
    pub lse: &'a Tensor,
}

/// Tensors of [`backward`]. `lse` and `delta` are f32; all others have the same element type, f32 or f16.
#[derive(Debug)]
pub struct Backward<'a> {
    /// B, T, NH.
    pub shape: AttentionSizes,
    /// (B T, C).
    pub dout: &'a Tensor,
    /// (B T, 3 C): the input of [`forward`].
    pub qkv: &'a Tensor,
    /// (B T, C): the output of [`forward`].
    pub out: &'a Tensor,
    /// (B NH, T): the log-sum-exp that [`forward`] wrote.
    pub lse: &'a Tensor,
    /// (B NH, T), overwritten: scratch for the row sums of `dout out`.
    pub delta: &'a Tensor,
    /// (B T, 3 C), overwritten.
    pub dqkv: &'a Tensor,
}

/// Returns the greatest common divisor.
fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One run of sequences, with the ranges and immediates of its dispatches.
struct Cut {
    params: AttentionImmediates,
    rows: Range<usize>,
    /// Rows (heads) of `lse` and `delta` that are bound.
    stats: Range<usize>,
    /// Number of heads in all sequences of the run.
    heads: usize,
    /// Floating-point operations of one product over a head's causal half.
    head_flops: u64,
}

/// A kernel and its costs, for [`Cut::launch`].
struct Launch<'a> {
    kernel: &'a KernelId,
    /// Rows per workgroup.
    rows: usize,
    /// Number of products over the causal half.
    products: u64,
    tensors: &'a [&'a Tensor],
    bytes: u64,
}

impl Cut {
    /// Returns the bytes of the run's part of `lse` or `delta`.
    fn stats_bytes(&self) -> u64 {
        4 * self.heads as u64 * u64::from(self.params.positions)
    }

    /// Dispatches all workgroups of a kernel, in several dispatches where one would exceed the adapter's limit of
    /// operations. A dispatch has whole heads, or blocks of rows where a single head exceeds the limit.
    fn launch(&self, pass: &mut Pass, launch: &Launch) -> Result<()> {
        let blocks = (self.params.positions as usize).div_ceil(launch.rows);
        let (all, head) = (self.heads * blocks, launch.products * self.head_flops);
        let most = pass.gpu.caps.most_flops;
        let heads = (most / head.max(1)).min(self.heads as u64) as usize;
        // the rows with the most keys have twice the mean number
        let step = if heads > 0 { heads * blocks } else { (blocks as u64 * (most / 2) / head) as usize };
        for first in (0..all).step_by(step.max(1)) {
            let end = (first + step.max(1)).min(all);
            let part = |whole: u64| (u128::from(whole) * (end - first) as u128 / all as u128) as u64;
            pass.dispatch(&Dispatch {
                kernel: launch.kernel,
                tensors: launch.tensors,
                immediates: Immediates::of(&AttentionImmediates {
                    first: first as u32,
                    end: end as u32,
                    ..self.params
                }),
                groups: (end - first) as u64,
                flops: part(head * self.heads as u64),
                bytes: part(launch.bytes),
            })?;
        }
        Ok(())
    }
}

impl AttentionSizes {
    /// Cuts the batch into runs of sequences for which the largest tensor fits one binding.
    fn cuts(self, pass: &Pass, qkv: &Tensor, lse: &Tensor, head_size: usize) -> Vec<Cut> {
        let Self { batch, positions: t, heads } = self;
        let window = pass.gpu.caps.window_bytes();
        let whole_stats = lse.bytes() <= window;
        // rows and statistics of each run must start at multiples of 256 bytes, which are 128 elements of f16
        let aligned = |elements: usize| 128 / gcd(128, elements);
        let multiple = aligned(t * head_size * heads).max(if whole_stats { 1 } else { aligned(t * heads) });
        let whole = (window / (t as u64 * qkv.row_bytes()).max(1)) as usize;
        let step = if whole >= batch { batch } else { (whole / multiple * multiple).max(1) };
        (0..batch)
            .step_by(step)
            .map(|first| first..(first + step).min(batch))
            .map(|b| Cut {
                params: AttentionImmediates {
                    positions: t as u32,
                    heads: heads as u32,
                    scale: 1.0 / (head_size as f32).sqrt(),
                    first_head: if whole_stats { (b.start * heads) as u32 } else { 0 },
                    ..bytemuck::Zeroable::zeroed()
                },
                rows: b.start * t..b.end * t,
                stats: if whole_stats { 0..batch * heads } else { b.start * heads..b.end * heads },
                heads: b.len() * heads,
                head_flops: (t * (t + 1) * head_size) as u64,
            })
            .collect()
    }

    fn check(self, place: &str, qkv: &Tensor, out: &Tensor, lse: &Tensor) -> Result<usize> {
        let (n, c) = (self.batch * self.positions, out.columns());
        out.check_shape(place, "out", n, c)?;
        qkv.check_shape(place, "qkv", n, 3 * c)?;
        lse.check_shape(place, "lse", self.batch * self.heads, self.positions)?;
        out.check_elem(place, "out", qkv.elem())?;
        head_size(place, c, self.heads)
    }
}

fn head_size(place: &str, channels: usize, heads: usize) -> Result<usize> {
    let head_size = channels / heads.max(1);
    if heads == 0 || !channels.is_multiple_of(heads) || !(8..=128).contains(&head_size) {
        return Err(Error::shape(
            Fault::at(place, format!("{heads} heads of {channels} channels")).expected("heads of 8 to 128"),
        ));
    }
    Ok(head_size)
}

/// `out[t] = sum over s <= t of softmax(q[t] . k[s] / sqrt(HS)) v[s]`, for each head. Overwrites `out` and `lse`.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn forward(pass: &mut Pass, io: Forward) -> Result<()> {
    let head_size = io.shape.check("attention.forward", io.qkv, io.out, io.lse)?;
    let (kernel, rows) = chosen(&pass.gpu.caps, AttentionKernel::Forward, head_size, io.qkv.elem(), io.shape.positions);
    for cut in io.shape.cuts(pass, io.qkv, io.lse, head_size) {
        let (qkv, out, lse) =
            (io.qkv.slice(cut.rows.clone()), io.out.slice(cut.rows.clone()), io.lse.slice(cut.stats.clone()));
        let bytes = qkv.bytes() + out.bytes() + cut.stats_bytes();
        let tensors = &[&qkv, &out, &lse];
        cut.launch(pass, &Launch { kernel: &kernel, rows, products: 2, tensors, bytes })?;
    }
    Ok(())
}

/// Computes the gradient of [`forward`], recomputing the weights from `lse`. Overwrites `dqkv` and `delta`.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn backward(pass: &mut Pass, io: Backward) -> Result<()> {
    let place = "attention.backward";
    let head_size = io.shape.check(place, io.qkv, io.out, io.lse)?;
    io.dout.check_shape(place, "dout", io.out.rows(), io.out.columns())?;
    io.dqkv.check_shape(place, "dqkv", io.qkv.rows(), io.qkv.columns())?;
    io.delta.check_shape(place, "delta", io.lse.rows(), io.lse.columns())?;
    io.dout.check_elem(place, "dout", io.qkv.elem())?;
    io.dqkv.check_elem(place, "dqkv", io.qkv.elem())?;
    let delta_kernel = delta_kernel(head_size, io.qkv.elem());
    let [q, kv] = [AttentionKernel::BackwardQ, AttentionKernel::BackwardKv]
        .map(|entry| chosen(&pass.gpu.caps, entry, head_size, io.qkv.elem(), io.shape.positions));
    for cut in io.shape.cuts(pass, io.qkv, io.lse, head_size) {
        let [dout, qkv, out, dqkv] = [io.dout, io.qkv, io.out, io.dqkv].map(|t| t.slice(cut.rows.clone()));
        let [lse, delta] = [io.lse, io.delta].map(|t| t.slice(cut.stats.clone()));
        // on matrix units the kernel of dq computes delta itself
        let by_q = q.0.arithmetic() == Arithmetic::Matrix;
        if !by_q {
            let all = cut.rows.len() * io.shape.heads;
            pass.dispatch(&Dispatch {
                kernel: &delta_kernel,
                tensors: &[&dout, &out, &delta],
                immediates: Immediates::of(&AttentionImmediates { end: all as u32, ..cut.params }),
                groups: workgroups(all, ELEMENTWISE_WORKGROUP),
                flops: 2 * out.len() as u64,
                bytes: 2 * out.bytes() + cut.stats_bytes(),
            })?;
        }
        // dq takes three products: scores, dweights and dq; dk and dv take four: scores, dweights, dk and dv
        let tensors = [&qkv, &dout, &lse, &delta, &dqkv, &out];
        let reads = qkv.bytes() + dout.bytes() + 2 * cut.stats_bytes();
        let (of_q, more) = if by_q { (&tensors[..], out.bytes()) } else { (&tensors[..5], 0) };
        for ((kernel, rows), products, tensors, bytes) in
            [(&q, 3, of_q, more + out.bytes()), (&kv, 4, &tensors[..5], 2 * out.bytes())]
        {
            cut.launch(pass, &Launch { kernel, rows: *rows, products, tensors, bytes: reads + bytes })?;
        }
    }
    Ok(())
}

/// Tensors of [`step`].
#[derive(Debug)]
pub struct Step<'a> {
    /// NH.
    pub heads: usize,
    /// (1, 3 C): query, key and value of all heads at the new position.
    pub qkv: &'a Tensor,
    /// (1, 1) u32: the new position t, below T. It is on the GPU so that one recording serves every position.
    pub at: &'a Tensor,
    /// (T, 3 C), laid out like [`forward`]'s `qkv`: keys and values of rows 0 to t - 1 are read, those of row t are
    /// written.
    pub cache: &'a Tensor,
    /// (1, C), overwritten.
    pub out: &'a Tensor,
}

/// Computes one row of [`forward`]: `out = sum over s <= t of softmax(q . k[s] / sqrt(HS)) v[s]`, for each head.
/// Overwrites `out` and the keys and values of row t in `cache`.
///
/// # Errors
/// [`Error::Shape`] if a tensor has the wrong shape or element type.
pub fn step(pass: &mut Pass, io: Step) -> Result<()> {
    let (place, c, t) = ("attention.step", io.out.columns(), io.cache.rows());
    io.out.check_shape(place, "out", 1, c)?;
    io.qkv.check_shape(place, "qkv", 1, 3 * c)?;
    io.at.check_shape(place, "at", 1, 1)?;
    io.cache.check_shape(place, "cache", t.max(1), 3 * c)?;
    let head_size = head_size(place, c, io.heads)?;
    let params =
        AttentionStepImmediates { positions: t as u32, heads: io.heads as u32, scale: 1.0 / (head_size as f32).sqrt() };
    pass.dispatch(&Dispatch {
        kernel: &step_kernel(&pass.gpu.caps, head_size),
        tensors: &[io.qkv, io.at, io.cache, io.out],
        immediates: Immediates::of(&params),
        groups: io.heads as u64,
        // costs of a full cache, because only the GPU knows how much of it is in use
        flops: (4 * t * c) as u64,
        bytes: io.cache.bytes() / 3 * 2,
    })
}
