//! Checks and times attention kernels on matrix units.

use crate::error::Result;
use crate::gpu::{Elem, Gpu, KernelId, Pass, Program, Tensor};
use crate::ops::attention::{self, AttentionKernel, AttentionSizes, Backward, Forward};
use crate::ops::cast;
use crate::reference;

use crate::measure::tune::check::{Target, Tolerance, Verdict, plain_error, root_mean_square};
use crate::measure::tune::operands::{RepeatedBlock, in_parallel};
use crate::measure::tune::race::Bench;

/// The shape of an attention: B, T, NH, HS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// B.
    pub batch: usize,
    /// T.
    pub positions: usize,
    /// NH.
    pub heads: usize,
    /// HS.
    pub head_size: usize,
}

impl AttentionShape {
    fn shape(&self) -> AttentionSizes {
        AttentionSizes { batch: self.batch, positions: self.positions, heads: self.heads }
    }

    /// Returns the factor of a row of `dout`: `(t + 1) / T / sqrt(T - t)` at position `t` for the gradients of keys and
    /// values, and 1 otherwise.
    ///
    /// A weight is about 1 divided by the number of keys that a query sees, and few queries see late keys. With rows of
    /// `dout` of equal size, the gradients of late keys would be T times smaller than those of the first keys, and
    /// smaller than the tolerance. With this factor a term has the size `1 / (T sqrt(T - t))`: the terms of a key at
    /// `s` sum up to `sqrt(log(T - s) + 1) / T`, so the gradients of all keys are significant.
    fn factor(&self, entry: AttentionKernel, row: usize) -> f64 {
        match entry {
            AttentionKernel::Forward | AttentionKernel::BackwardQ => 1.0,
            AttentionKernel::BackwardKv => {
                let (t, all) = ((row % self.positions) as f64, self.positions as f64);
                (t + 1.0) / all / (all - t).sqrt()
            }
        }
    }
}

/// Returns upper bounds for the elements of qkv, and of rows of `dout` with a factor of 1. Standard deviations are a
/// third of these.
///
/// Elements of qkv are four times as large as a product's, which makes weights as uneven as a model's. For gradients of
/// keys they are half of that, because the last key has a single weight in a head, which must not be small by chance.
/// There the factors of `dout` are small, and 256 keeps nearly all of its elements above the smallest normal f16.
fn scales(entry: AttentionKernel) -> [f64; 2] {
    match entry {
        AttentionKernel::Forward | AttentionKernel::BackwardQ => [4.0, 1.0],
        AttentionKernel::BackwardKv => [2.0, 256.0],
    }
}

/// The result that an element belongs to.
#[derive(Clone, Copy, PartialEq)]
enum ResultKind {
    Out,
    Lse,
    Delta,
    Dqkv,
}

/// All results of one head in f64.
struct Head {
    batch: usize,
    head: usize,
    out: Vec<f64>,
    lse: Vec<f64>,
    delta: Vec<f64>,
    dqkv: Vec<f64>,
}

/// The tensors of an attention in f16 or f32.
struct Tensors {
    qkv: Tensor,
    dout: Tensor,
    out: Tensor,
    lse: Tensor,
    delta: Tensor,
    dqkv: Tensor,
}

/// Operands of an attention on the device, its results from the plain kernel and, for two heads, in f64.
pub(super) struct AttentionBench {
    entry: AttentionKernel,
    sizes: AttentionShape,
    qkv: RepeatedBlock,
    dout: RepeatedBlock,
    half: Tensors,
    targets: Vec<(ResultKind, Target)>,
    result: Tensor,
    heads: Vec<Head>,
}

impl Tensors {
    fn new(
        gpu: &Gpu,
        entry: AttentionKernel,
        sizes: AttentionShape,
        elem: Elem,
        of: [&RepeatedBlock; 2],
    ) -> Result<Self> {
        let [qkv_of, dout_of] = of;
        let AttentionShape { batch, positions, heads, head_size } = sizes;
        let (n, c) = (batch * positions, heads * head_size);
        let tensors = Self {
            qkv: gpu.tensor("qkv", n, 3 * c, elem)?,
            dout: gpu.tensor("dout", n, c, elem)?,
            out: gpu.tensor("out", n, c, elem)?,
            lse: gpu.tensor("lse", batch * heads, positions, Elem::F32)?,
            delta: gpu.tensor("delta", batch * heads, positions, Elem::F32)?,
            dqkv: gpu.tensor("dqkv", n, 3 * c, elem)?,
        };
        qkv_of.write(gpu, &tensors.qkv)?;
        dout_of.write_scaled(gpu, &tensors.dout, |row| sizes.factor(entry, row))?;
        Ok(tensors)
    }

    fn forward(&self, pass: &mut Pass, shape: AttentionSizes) -> Result<()> {
        attention::forward(pass, Forward { shape, qkv: &self.qkv, out: &self.out, lse: &self.lse })
    }

    fn backward(&self, pass: &mut Pass, shape: AttentionSizes) -> Result<()> {
        let Self { qkv, dout, out, lse, delta, dqkv } = self;
        attention::backward(pass, Backward { shape, dout, qkv, out, lse, delta, dqkv })
    }
}

impl AttentionBench {
    /// Makes the operands and checks the plain f32 kernels against f64.
    ///
    /// # Errors
    /// As [`super::product::ProductBench::new`].
    pub(super) fn new(gpu: &Gpu, entry: AttentionKernel, sizes: AttentionShape) -> Result<Self> {
        let [qkv, dout] = scales(entry);
        let (qkv, dout) = (RepeatedBlock::new(20_240_522, qkv), RepeatedBlock::new(20_240_523, dout));
        let half = Tensors::new(gpu, entry, sizes, Elem::F16, [&qkv, &dout])?;
        let result = gpu.tensor("counts", 3, 1, Elem::U32)?;
        let mut bench = Self { entry, sizes, qkv, dout, half, targets: Vec::new(), result, heads: Vec::new() };
        let last = (sizes.batch - 1, sizes.heads - 1);
        let sampled = if last == (0, 0) { vec![last] } else { vec![(0, 0), last] };
        bench.heads = in_parallel(sampled.len(), |i| bench.exact(sampled[i].0, sampled[i].1));
        bench.plain(gpu)?;
        Ok(bench)
    }

    /// Runs the plain kernels, checks their results, and keeps the results that candidates are compared with.
    fn plain(&mut self, gpu: &Gpu) -> Result<()> {
        let shape = self.sizes.shape();
        let plain = Tensors::new(gpu, self.entry, self.sizes, Elem::F32, [&self.qkv, &self.dout])?;
        let mut pass = Pass::new(gpu);
        plain.forward(&mut pass, shape)?;
        if self.entry != AttentionKernel::Forward {
            plain.backward(&mut pass, shape)?;
            // candidates for the backward pass use the results of the plain forward pass
            cast::forward(&mut pass, &plain.out, &self.half.out)?;
            pass.copy(&plain.lse, &self.half.lse)?;
        }
        let program = pass.finish();
        program.run(gpu)?;
        let kernel = self.name(&program);
        let c = self.sizes.heads * self.sizes.head_size;
        let (half, t) = (&self.half, self.sizes.positions);
        let list = match self.entry {
            AttentionKernel::Forward => {
                vec![
                    (ResultKind::Out, "out", &half.out, &plain.out, 0..c),
                    (ResultKind::Lse, "lse", &half.lse, &plain.lse, 0..t),
                ]
            }
            AttentionKernel::BackwardQ => vec![
                (ResultKind::Delta, "delta", &half.delta, &plain.delta, 0..t),
                (ResultKind::Dqkv, "dq", &half.dqkv, &plain.dqkv, 0..c),
            ],
            AttentionKernel::BackwardKv => vec![
                (ResultKind::Dqkv, "dk", &half.dqkv, &plain.dqkv, c..2 * c),
                (ResultKind::Dqkv, "dv", &half.dqkv, &plain.dqkv, 2 * c..3 * c),
            ],
        };
        for (of, name, got, want, columns) in list {
            let part = columns.start / c;
            let values = || self.heads.iter().flat_map(|head| self.values(head, of, part));
            let largest = values().fold(0.0, |most: f64, x| most.max(x.abs()));
            // gradients of q and k are computed from differences, which cancel
            let floor = if of == ResultKind::Dqkv && part < 2 { cancelled(self.entry, self.sizes) } else { 0.0 };
            let tolerance = tolerance(of, largest, floor);
            let typical = root_mean_square(values());
            let target = Target { name, got: got.clone(), want: want.clone(), columns, tolerance, typical };
            target.check_plain_is_nonzero(gpu, &self.result, &kernel)?;
            if let Some(fault) = self.sampled(gpu, of, &target, true)? {
                return Err(plain_error(gpu, &kernel, &fault));
            }
            self.targets.push((of, target));
        }
        Ok(())
    }

    /// Computes all results of a head in f64.
    fn exact(&self, batch: usize, head: usize) -> Head {
        let AttentionShape { positions: t, heads, head_size: hs, .. } = self.sizes;
        let c = heads * hs;
        let (mut qkv, mut dout) = (Vec::with_capacity(3 * t * hs), Vec::with_capacity(t * hs));
        for row in batch * t..(batch + 1) * t {
            for part in 0..3 {
                let start = row * 3 * c + part * c + head * hs;
                qkv.extend((start..start + hs).map(|i| self.qkv.at(i)));
            }
            let columns = head * hs..(head + 1) * hs;
            dout.extend(columns.map(|column| self.dout.scaled([row, column], c, self.sizes.factor(self.entry, row))));
        }
        let reference::attention::Forward { out, lse } = reference::attention::forward(&qkv, 1, t, hs, 1);
        let dqkv = reference::attention::backward(&dout, &qkv, 1, t, hs, 1);
        let delta = out.chunks(hs).zip(dout.chunks(hs)).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum());
        Head { batch, head, delta: delta.collect(), out, lse, dqkv }
    }

    /// Returns a result of a head, position by position. Of gradients `part` selects q (0), k (1) or v (2).
    fn values<'a>(&self, head: &'a Head, of: ResultKind, part: usize) -> impl Iterator<Item = f64> + Clone + use<'a> {
        let hs = self.sizes.head_size;
        let (all, line, start, length) = match of {
            ResultKind::Out => (&head.out, hs, 0, hs),
            ResultKind::Lse => (&head.lse, 1, 0, 1),
            ResultKind::Delta => (&head.delta, 1, 0, 1),
            ResultKind::Dqkv => (&head.dqkv, 3 * hs, part * hs, hs),
        };
        all.chunks(line).flat_map(move |row| row[start..start + length].iter().copied())
    }

    /// Returns one element of a result in f64. Computes the element's head if it was not sampled.
    fn element(&self, of: ResultKind, row: usize, column: usize) -> f64 {
        let AttentionShape { positions: t, heads, head_size: hs, .. } = self.sizes;
        let c = heads * hs;
        let (batch, head, position, part, e) = match of {
            ResultKind::Out | ResultKind::Dqkv => (row / t, column % c / hs, row % t, column / c, column % hs),
            ResultKind::Lse | ResultKind::Delta => (row / heads, row % heads, column, 0, 0),
        };
        let value = |of_head: &Head| match of {
            ResultKind::Out => of_head.out[position * hs + e],
            ResultKind::Lse => of_head.lse[position],
            ResultKind::Delta => of_head.delta[position],
            ResultKind::Dqkv => of_head.dqkv[position * 3 * hs + part * hs + e],
        };
        match self.heads.iter().find(|known| (known.batch, known.head) == (batch, head)) {
            Some(known) => value(known),
            None => value(&self.exact(batch, head)),
        }
    }

    /// Compares the sampled heads of the plain kernel or of a candidate with f64; returns the first fault.
    fn sampled(&self, gpu: &Gpu, of: ResultKind, target: &Target, plain: bool) -> Result<Option<String>> {
        let AttentionShape { positions: t, heads, head_size: hs, .. } = self.sizes;
        let tensor = if plain { &target.want } else { &target.got };
        for known in &self.heads {
            let (rows, first, length) = match of {
                ResultKind::Out | ResultKind::Dqkv => {
                    (known.batch * t..(known.batch + 1) * t, target.columns.start + known.head * hs, hs)
                }
                ResultKind::Lse | ResultKind::Delta => {
                    let row = known.batch * heads + known.head;
                    (row..row + 1, 0, t)
                }
            };
            let got = gpu.read_f32(&tensor.slice(rows.clone()))?;
            let want: Vec<f64> = self.values(known, of, target.columns.start / (heads * hs)).collect();
            for ((row, got), want) in rows.zip(got.chunks(tensor.columns())).zip(want.chunks(length)) {
                if let Some(fault) = target.row(plain, row, first, &got[first..first + length], want) {
                    return Ok(Some(fault));
                }
            }
        }
        Ok(None)
    }
}

/// Returns the error that is allowed in gradients of q and k where their terms cancel. With a single position they
/// cancel completely.
///
/// These gradients are multiples of `dout v - delta`, a difference of two sums of `head_size` products, neither of
/// which exceeds six standard deviations. As in a matrix product, the error of each sum is a unit in the last place of
/// two thirds of that per 16 products, and sixteen units more. The difference is multiplied by an element of k or q, by
/// 1 / sqrt(head size), and by a weight. For gradients of keys, this weight times the factor of `dout` is about 1 /
/// positions.
fn cancelled(entry: AttentionKernel, sizes: AttentionShape) -> f64 {
    let ([qkv, dout], size) = (scales(entry), sizes.head_size as f64);
    let largest = 6.0 * size.sqrt() * (dout / 3.0) * (qkv / 3.0);
    let difference = 2.0 * f64::from(f32::EPSILON) * (size / 16.0 + 16.0) * 2.0 / 3.0 * largest;
    let weight = if entry == AttentionKernel::BackwardKv { 1.0 / sizes.positions as f64 } else { 1.0 };
    difference * qkv / size.sqrt() * weight
}

/// Returns the tolerance of results against f64, if the largest result is `largest`. `floor` is always allowed.
///
/// Weights, and their gradients in the backward pass, are stored as f16 in between, with a relative error of 2^-11, or
/// 2^-10 if a driver truncates; so is the output from which `delta` is computed. A result is a sum of such terms. Their
/// errors are independent: the error of the sum is about 2^-11 of the root of the sum of their squares, which is the
/// typical size of a result in that row, and six times that in the worst of 10^9. The largest result is three such
/// sizes. Twice that is allowed: 2^-9 of the largest. The error of the log-sum-exp is the relative error of a sum of
/// weights, at most 2^-10. The plain kernels compute in f32, whose exp may be off by 3 + 2 |score| units; 2^-15 of the
/// largest is 256 units.
fn tolerance(of: ResultKind, largest: f64, floor: f64) -> Tolerance {
    let plain = 2f64.powi(-15) * largest + floor;
    match of {
        ResultKind::Lse => Tolerance { sums: 2f64.powi(-10) + plain, plain, stored: 0.0 },
        ResultKind::Delta => Tolerance { sums: 2f64.powi(-9) * largest, plain, stored: 0.0 },
        ResultKind::Out | ResultKind::Dqkv => {
            Tolerance { sums: 2f64.powi(-9) * largest + floor, plain, stored: 2f64.powi(-10) }
        }
    }
}

impl Bench for AttentionBench {
    fn record(&self, gpu: &Gpu) -> Result<Program> {
        let mut pass = Pass::new(gpu);
        match self.entry {
            AttentionKernel::Forward => self.half.forward(&mut pass, self.sizes.shape())?,
            AttentionKernel::BackwardQ | AttentionKernel::BackwardKv => {
                self.half.backward(&mut pass, self.sizes.shape())?;
            }
        }
        Ok(pass.finish())
    }

    fn is_timed(&self, kernel: &KernelId) -> bool {
        kernel.entry == self.entry.name()
    }

    fn output(&self) -> &Tensor {
        if self.entry == AttentionKernel::Forward { &self.half.out } else { &self.half.dqkv }
    }

    fn check(&self, gpu: &Gpu, program: &Program) -> Result<Verdict> {
        let mut clear = Pass::new(gpu);
        for (_, target) in &self.targets {
            clear.clear(&target.got);
        }
        Program::join([&clear.finish(), program]).run(gpu)?;
        for (of, target) in &self.targets {
            let exact = |row, column| self.element(*of, row, column);
            let verdict = target.all(gpu, &self.result, &exact)?;
            if verdict != Verdict::Right {
                return Ok(verdict);
            }
            if let Some(fault) = self.sampled(gpu, *of, target, false)? {
                return Ok(Verdict::Wrong(fault));
            }
        }
        Ok(Verdict::Right)
    }
}
