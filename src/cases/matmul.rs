//! Cases of the products of a linear layer.

use crate::gpu::{Pass, Tensor};
use crate::ops::matmul::{
    self, BACKWARD_INP, BACKWARD_WEIGHT, BackwardInp, BackwardWeight, FORWARD, Forward, Product, choose, parts,
};
use crate::ops::sums::{PartialsMemory, Sums};
use crate::reference;

use super::*;

/// The operator's cases.
pub static CASES: Cases = Cases { operator: &matmul::OPERATOR, tests, benches, minimum_cost };

/// Factor by which GELU propagates the error of its argument: its largest slope is 1.13, and the formula adds a few
/// roundings.
const SLOPE: f64 = 1.2;
/// Rows and columns of a result that a sample compares with the reference.
const SAMPLED: usize = 48;

/// A linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    /// Name in a block, `qkv`, or empty.
    pub name: &'static str,
    /// Element type of operands.
    pub stored: Stored,
    /// M rows, N outputs, K inputs.
    pub shape: [usize; 3],
    /// The rows and columns of results that are compared with the reference.
    pub sample: Sample,
}

impl Layer {
    /// Returns a layer whose results are all compared with the reference.
    pub fn new(stored: Stored, shape: [usize; 3]) -> Self {
        Self { name: "", stored, shape, sample: Sample::All }
    }

    /// Returns rows, columns and depth of one of its products, as in the keys of `wgpt tune`'s records.
    pub fn shape_of(&self, product: Product) -> [usize; 3] {
        let [m, n, k] = self.shape;
        match product {
            Product::Forward => [m, n, k],
            Product::BackwardInp => [m, k, n],
            Product::BackwardWeight => [n, k, m],
        }
    }

    fn what(&self) -> String {
        let [m, n, k] = self.shape;
        let space = if self.name.is_empty() { "" } else { " " };
        format!("{}{space}{m}x{n}x{k}{}", self.name, self.stored.suffix())
    }

    fn input(&self, name: &'static str, shape: [usize; 2]) -> Slot {
        Slot::input(name, shape).of(self.stored.0)
    }

    /// Returns sampled rows and columns of an (m, n) result.
    fn sampled(&self, m: usize, n: usize) -> [Vec<usize>; 2] {
        [m, n].map(|size| self.sample.of(size, SAMPLED))
    }
}

/// The epilogue of a forward product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// No epilogue.
    Plain,
    /// No epilogue; operands are f16 and the result is f32.
    ToF32,
    /// A bias is added.
    Bias,
    /// A bias is added, and GELU of that is stored too.
    Gelu,
    /// A bias and the residual stream are added.
    Residual,
}

impl End {
    /// All epilogues.
    pub const ALL: [Self; 5] = [Self::Plain, Self::ToF32, Self::Bias, Self::Gelu, Self::Residual];

    fn variant(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::ToF32 => " to f32",
            Self::Bias => " with bias",
            Self::Gelu => " with bias and GELU",
            Self::Residual => " with bias and residual",
        }
    }

    fn has_bias(self) -> bool {
        !matches!(self, Self::Plain | Self::ToF32)
    }
}

/// Returns a case for `out = inp weightᵀ` with an epilogue.
pub fn forward(layer: Layer, end: End) -> Case {
    let ([m, n, k], kind) = (layer.shape, layer.stored);
    let out = if matches!(end, End::ToF32 | End::Residual) { STORED_F32 } else { kind };
    let mut slots = vec![layer.input("inp", [m, k]), layer.input("weight", [n, k])];
    slots.push(Slot::overwritten("out", [m, n]).of(out.0));
    if end.has_bias() {
        slots.push(Slot::input("bias", [1, n]));
    }
    match end {
        End::Gelu => slots.push(Slot::overwritten("gelu", [m, n]).of(kind.0)),
        End::Residual => slots.push(Slot::input("residual", [m, n])),
        _ => {}
    }
    let launch = move |pass: &mut Pass, t: &[Tensor]| {
        let io = Forward { inp: &t[0], weight: &t[1], bias: t.get(3), out: &t[2] };
        match end {
            End::Gelu => matmul::forward_gelu(pass, io, &t[4]),
            End::Residual => matmul::forward_residual(pass, io, &t[4]),
            _ => matmul::forward(pass, io),
        }
    };
    let contents = move || forward_contents(&layer, end, out);
    Case::new(FORWARD, layer.what(), slots, launch, contents).variant(end.variant())
}

fn forward_contents(layer: &Layer, end: End, out: Stored) -> Vec<Contents> {
    let ([m, n, k], kind) = (layer.shape, layer.stored);
    let mut inputs = Inputs::new();
    let (inp, weight) = (kind.values(&mut inputs, m * k), kind.values(&mut inputs, n * k));
    let (bias, residual) = (inputs.values(n), inputs.values(if end == End::Residual { m * n } else { 0 }));
    let [rows, columns] = layer.sampled(m, n);
    let at = positions(&rows, &columns, n);
    let (a, b) = (wide(&gather_rows(&inp, &rows, k)), wide(&gather_rows(&weight, &columns, k)));
    let added = wide(&gather(&bias, &columns));
    let product = |a: &[f64], b: &[f64], bias: &[f64]| {
        reference::matmul::forward(a, b, end.has_bias().then_some(bias), rows.len(), columns.len(), k)
    };
    let mut sum = product(&a, &b, &added);
    let mut size = product(&absolute(&a), &absolute(&b), &absolute(&added));
    let terms = k + usize::from(end.has_bias()) + usize::from(end == End::Residual);
    let gelu = (end == End::Gelu).then(|| {
        // GELU reads the stored value: with f16 its rounding, half a unit, is added to the argument's error
        let argument = if kind == STORED_F16 { 2f64.powi(-11) / f64::from(f32::EPSILON) } else { 0.0 };
        kind.near(reference::gelu::forward(&sum), SLOPE * (rounding(terms) + argument) + 16.0, &size)
    });
    if end == End::Residual {
        for (i, r) in gather(&residual, &at).into_iter().enumerate() {
            sum[i] += f64::from(r);
            size[i] += f64::from(r.abs());
        }
    }
    let want = out.near(sum, rounding(terms), &size).at(at.clone(), m * n);
    let mut contents = vec![kind.contents(&inp), kind.contents(&weight), Contents::unwritten(want)];
    if end.has_bias() {
        contents.push(Contents::floats(&bias));
    }
    contents.extend(gelu.map(|want| Contents::unwritten(want.at(at, m * n))));
    if end == End::Residual {
        contents.push(Contents::floats(&residual));
    }
    contents
}

/// Returns the number of windows of the weight's rows. All but the last store their part of the sum in `dinp`, rounded.
pub fn windows(caps: &Caps, layer: &Layer) -> usize {
    let [_, n, k] = layer.shape;
    (n * k * layer.stored.0.bytes() as usize).div_ceil(caps.max_binding_bytes as usize)
}

/// Returns a case for `dinp = dout weight`, with GELU's derivative at `pre` if `gelu`. The weight is bound in `windows`
/// windows.
pub fn backward_inp(layer: Layer, gelu: bool, windows: usize) -> Case {
    let ([m, n, k], kind) = (layer.shape, layer.stored);
    let mut slots = vec![layer.input("dout", [m, n]), layer.input("weight", [n, k])];
    slots.push(Slot::overwritten("dinp", [m, k]).of(kind.0));
    if gelu {
        slots.push(layer.input("pre", [m, k]));
    }
    let launch = |pass: &mut Pass, t: &[Tensor]| {
        let io = BackwardInp { dout: &t[0], weight: &t[1], dinp: &t[2] };
        match t.get(3) {
            Some(pre) => matmul::backward_inp_gelu(pass, io, pre),
            None => matmul::backward_inp(pass, io),
        }
    };
    let contents = move || {
        let mut inputs = Inputs::new();
        let (dout, weight) = (kind.values(&mut inputs, m * n), kind.values(&mut inputs, n * k));
        let pre = kind.values(&mut inputs, if gelu { m * k } else { 0 });
        let [rows, columns] = layer.sampled(m, k);
        let at = positions(&rows, &columns, k);
        let (a, b) = (wide(&gather_rows(&dout, &rows, n)), wide(&gather_columns(&weight, &columns, k)));
        let product = |a: &[f64], b: &[f64]| reference::matmul::backward_inp(a, b, rows.len(), n, columns.len());
        let (want, magnitude) = (product(&a, &b), product(&absolute(&a), &absolute(&b)));
        let kept = windows.saturating_sub(1) as f64;
        let kept = if kind == STORED_F16 { kept * 2f64.powi(-11) / f64::from(f32::EPSILON) } else { kept };
        let budget = rounding(n) + kept;
        let want = if gelu {
            let back = reference::gelu::backward(&want, &wide(&gather(&pre, &at)));
            kind.near(back, SLOPE * budget + 16.0, &magnitude)
        } else {
            kind.near(want, budget, &magnitude)
        };
        let want = want.at(at, m * k);
        let mut contents = vec![kind.contents(&dout), kind.contents(&weight), Contents::unwritten(want)];
        contents.extend(gelu.then(|| kind.contents(&pre)));
        contents
    };
    let case = Case::new(BACKWARD_INP, layer.what(), slots, launch, contents);
    if gelu { case.variant(" through GELU") } else { case }
}

/// The method of summing over the depth of a weight's gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// In one sum.
    Whole,
    /// In parts, if the adapter has kernels for that. The number is that of the elements for partial sums.
    Parts(usize),
    /// In parts, together with the bias's gradient. The numbers are those of parts and of all elements for partial
    /// sums.
    PartsAndBias(usize, usize),
}

/// Returns a case for `dweight += doutᵀ inp`.
pub fn backward_weight(layer: Layer, depth: Depth) -> Case {
    let [m, n, k] = layer.shape;
    let mut slots = vec![layer.input("dout", [m, n]), layer.input("inp", [m, k]), Slot::accumulated("dweight", [n, k])];
    let (variant, room) = match depth {
        Depth::Whole => ("", 0),
        Depth::Parts(room) => (" in parts", room.max(4)),
        Depth::PartsAndBias(_, room) => (" in parts with the bias", room),
    };
    if room > 0 {
        slots.extend([Slot::scratch("partials", [1, room]), Slot::scratch("squares", [n * k, 1])]);
    }
    match depth {
        Depth::Whole => {}
        Depth::Parts(_) => slots.push(Slot::scratch("scratch", [1, 1])),
        Depth::PartsAndBias(parts, _) => {
            slots.extend([Slot::scratch("scratch", [1, parts * n]), Slot::accumulated("dbias", [1, n])]);
        }
    }
    let launch = |pass: &mut Pass, t: &[Tensor]| {
        let io = BackwardWeight { dout: &t[0], inp: &t[1], dweight: &t[2] };
        let [partials, squares, scratch, more @ ..] = &t[3..] else {
            return matmul::backward_weight(pass, io);
        };
        let mut sums = Sums::new(Some(PartialsMemory { partials, squares }), scratch);
        match more.first() {
            Some(dbias) => {
                let done = matmul::backward_weight_and_bias(pass, io, dbias, &mut sums)?;
                assert!(done, "the bias's gradient was not summed");
            }
            None => matmul::backward_weight_in_parts(pass, io, &mut sums)?,
        }
        sums.finish(pass).map(|_| ())
    };
    let contents = move || backward_weight_contents(&layer, depth);
    Case::new(BACKWARD_WEIGHT, layer.what(), slots, launch, contents).variant(variant)
}

fn backward_weight_contents(layer: &Layer, depth: Depth) -> Vec<Contents> {
    let ([m, n, k], kind) = (layer.shape, layer.stored);
    let mut inputs = Inputs::new();
    let (dout, inp) = (kind.values(&mut inputs, m * n), kind.values(&mut inputs, m * k));
    let before = inputs.values(n * k);
    let [rows, columns] = layer.sampled(n, k);
    let at = positions(&rows, &columns, k);
    let (a, b) = (wide(&gather_columns(&dout, &rows, n)), wide(&gather_columns(&inp, &columns, k)));
    let accumulate = |a: &[f64], b: &[f64], mut sum: Vec<f64>| {
        reference::matmul::backward_weight(a, b, &mut sum, m, rows.len(), columns.len());
        sum
    };
    let start = wide(&gather(&before, &at));
    let magnitude = accumulate(&absolute(&a), &absolute(&b), absolute(&start));
    let want = STORED_F32.near(accumulate(&a, &b, start), rounding(m + 1), &magnitude).at(at, n * k);
    let dweight = Contents::floats(&before).wanting(want);
    let mut contents = vec![kind.contents(&dout), kind.contents(&inp), dweight];
    if depth != Depth::Whole {
        contents.extend([(); 3].map(|()| Contents::scratch()));
    }
    if let Depth::PartsAndBias(..) = depth {
        let bias = inputs.values(n);
        let (mut want, mut size) = (wide(&bias), absolute(&wide(&bias)));
        reference::bias::backward(&wide(&dout), &mut want);
        reference::bias::backward(&absolute(&wide(&dout)), &mut size);
        let want = STORED_F32.near(want, rounding(m + 1), &size);
        contents.push(Contents::floats(&bias).wanting(want));
    }
    contents
}

/// Returns cases for the products of a layer as they occur on an adapter, with all epilogues or, for each product, with
/// the one that reads and writes most.
pub fn products(layer: Layer, caps: &Caps, all_ends: bool) -> Vec<Case> {
    let windows = windows(caps, &layer);
    let mut cases = vec![forward(layer, End::Gelu), backward_inp(layer, true, windows)];
    cases.extend(weights(layer, caps, all_ends));
    if all_ends {
        let others =
            End::ALL.into_iter().filter(|end| *end != End::Gelu && (layer.stored == STORED_F16 || *end != End::ToF32));
        cases.extend(others.map(|end| forward(layer, end)));
        cases.push(backward_inp(layer, false, windows));
    }
    cases
}

/// Returns cases for the weight's gradient, in one sum and, where the adapter has kernels for that, in parts.
pub fn weights(layer: Layer, caps: &Caps, in_parts: bool) -> Vec<Case> {
    let [m, n, k] = layer.shape;
    let room = matmul::partial_sums_len(caps, layer.stored.0, m, n, k);
    let mut cases = vec![backward_weight(layer, Depth::Whole)];
    if in_parts {
        cases.push(begins(backward_weight(layer, Depth::Whole)));
    }
    if room > 0 && in_parts {
        let parts = room / (n * k);
        cases.push(backward_weight(layer, Depth::Parts(room)));
        let algorithm = choose::choose(caps, Product::BackwardWeight, layer.stored.0, [n, k, m]);
        if parts::sums_columns(&algorithm) {
            cases.push(backward_weight(layer, Depth::PartsAndBias(parts, room)));
        }
    }
    cases
}

fn tests(caps: &Caps, breadth: Breadth) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in storage_types(caps) {
        let shapes = match kind {
            STORED_F32 => breadth.of([2, 2], &[&F32_SHAPES[..], &EDGES].concat()),
            _ => breadth.of([0, 1], &[&F16_SHAPES[..], &DEEP].concat()),
        };
        let all_ends = breadth >= Breadth::Full;
        cases.extend(shapes.into_iter().flat_map(|shape| products(Layer::new(kind, shape), caps, all_ends)));
        if all_ends {
            cases.extend(in_windows(caps, kind));
            let folded: &[Shape] = if kind == STORED_F32 { &[[1030, 66, 7], [516, 260, 12]] } else { &[[4224, 64, 7]] };
            let of = |shape: &Shape| products(Layer::new(kind, *shape), caps, false);
            cases.extend(folded.iter().flat_map(of).map(Case::folded));
            cases.extend(of_large_tiles(caps, kind));
            // whole, and in windows of rows and of depth, of which later ones accumulate
            let weight = || begins(backward_weight(Layer::new(kind, [200, 36, 20]), Depth::Whole));
            cases.extend([weight(), weight().bound(64 * 36 * kind.0.bytes())]);
            if kind == STORED_F32 && !caps.software {
                cases.extend(DEEP.iter().flat_map(|shape| weights(Layer::new(kind, *shape), caps, true)));
            }
        }
    }
    if caps.f16 && caps.emulated_edge.is_some() {
        // CPU drivers take long for these: products in parts, and one kernel with large tiles
        cases.extend(weights(Layer::new(STORED_F16, [1088, 64, 64]), caps, true));
        cases.extend(weights(Layer::new(STORED_F16, [1088, 64, 64]), caps, true).into_iter().map(begins));
        cases.push(backward_weight(Layer::new(STORED_F16, [9, 1028, 2052]), Depth::Whole));
    }
    cases
}

/// Returns the case with gradients that begin.
fn begins(case: Case) -> Case {
    let with_bias = case.slots.iter().any(|slot| slot.name == "dbias");
    case.beginning(if with_bias { &["dweight", "dbias"] } else { &["dweight"] })
}

fn in_windows(caps: &Caps, stored: Stored) -> Vec<Case> {
    let of = |&(shape, bytes): &(Shape, u64)| {
        let (layer, caps) = (Layer::new(stored, shape), Caps { max_binding_bytes: bytes, ..caps.clone() });
        let windows = windows(&caps, &layer);
        let cases = match stored {
            STORED_F32 => products(layer, &caps, true),
            // without epilogues, because CPU drivers take long for each
            _ => vec![
                forward(layer, End::Plain),
                backward_inp(layer, false, windows),
                backward_inp(layer, true, windows),
            ],
        };
        cases.into_iter().map(move |case| case.bound(bytes))
    };
    if stored == STORED_F32 { WINDOWS.iter().flat_map(of).collect() } else { F16_WINDOWS.iter().flat_map(of).collect() }
}

/// Returns cases with results so large that GPUs use their largest tiles. Software adapters with matrix units use small
/// ones.
fn of_large_tiles(caps: &Caps, stored: Stored) -> Vec<Case> {
    let matrices = stored == STORED_F16 && !caps.matrix_edges.is_empty();
    if caps.software && (stored == STORED_F32 || matrices) {
        return Vec::new();
    }
    let mut cases = Vec::new();
    for (m, n, depth) in [(1028, 2052, 12), (1030, 2050, 9)].into_iter().take(if stored == STORED_F32 { 2 } else { 1 })
    {
        // of each layer only the product with the large result
        for (pass, shape) in [(FORWARD, [m, n, depth]), (BACKWARD_INP, [m, depth, n]), (BACKWARD_WEIGHT, [depth, m, n])]
        {
            let all = products(Layer::new(stored, shape), caps, matrices);
            cases.extend(all.into_iter().filter(|case| case.pass == pass));
        }
    }
    cases
}

type Shape = [usize; 3];
/// Ragged tiles with 4 elements per access, single rows, ragged tiles with 1 element per access, whole tiles, a real
/// depth.
const F32_SHAPES: [Shape; 7] =
    [[68, 124, 132], [1, 12, 20], [13, 17, 19], [1, 1, 1], [1, 68, 132], [64, 64, 64], [33, 768, 768]];
/// One less and one more than tiles of 32, 64 and 128, and all remainders modulo 4.
const EDGES: [Shape; 4] = [[31, 33, 32], [63, 65, 6], [127, 129, 6], [131, 6, 127]];
/// Ragged tiles with 8, 4 and 1 elements per access, and whole tiles.
const F16_SHAPES: [Shape; 5] = [[68, 120, 136], [68, 124, 132], [13, 17, 19], [64, 128, 64], [127, 129, 6]];
/// Depths of many parts.
const DEEP: [Shape; 4] = [[1100, 60, 36], [1100, 64, 64], [1088, 64, 64], [1027, 7, 13]];
/// Weights and batches in windows of the given bytes, of which all but the first add to a sum. Some have rows of 256
/// bytes, whose windows could begin at any row, next to rows of 20 bytes, which are aligned only every 64 rows. One has
/// whole tiles.
const WINDOWS: [(Shape, u64); 6] = [
    ([5, 200, 13], 4096),
    ([5, 200, 12], 4096),
    ([150, 13, 12], 4096),
    ([150, 5, 64], 25_600),
    ([150, 64, 5], 25_600),
    ([64, 128, 128], 32_768),
];
/// The same in f16.
const F16_WINDOWS: [(Shape, u64); 4] =
    [([5, 200, 64], 16_384), ([5, 260, 60], 16_384), ([3, 300, 33], 16_384), ([64, 128, 128], 16_384)];

/// Returns the linear layers of a block, and the head on one chunk of rows.
pub fn layers(shape: &BenchShape, caps: &Caps, stored: Stored) -> [Layer; 5] {
    let (n, c) = (shape.rows(), shape.config.channels);
    let layer = |name, shape| Layer { name, stored, shape, sample: Sample::Subset };
    [
        layer("qkv", [n, 3 * c, c]),
        layer("attproj", [n, c, c]),
        layer("fc", [n, 4 * c, c]),
        layer("fcproj", [n, c, 4 * c]),
        layer("head", [shape.chunk(caps, stored.0), shape.config.padded_vocab(), c]),
    ]
}

/// Returns one product of a layer as benches measure it, or `None` where they do not.
pub fn bench(layer: Layer, product: Product, caps: &Caps) -> Option<Case> {
    // software Vulkan multiplies f16 slowly, so only one layer is measured there
    if layer.stored == STORED_F16 && (!caps.f16 || caps.software && layer.name != "qkv") {
        return None;
    }
    let [m, n, k] = layer.shape;
    let partials = || matmul::partial_sums_len(caps, layer.stored.0, m, n, k);
    Some(match product {
        Product::Forward => forward(layer, if layer.name == "head" { End::Plain } else { End::Bias }),
        Product::BackwardInp => backward_inp(layer, false, windows(caps, &layer)),
        Product::BackwardWeight => backward_weight(layer, Depth::Parts(partials())),
    })
}

fn benches(shape: &BenchShape, caps: &Caps) -> Vec<Case> {
    let [full, half] = [STORED_F32, STORED_F16].map(|kind| layers(shape, caps, kind));
    let layers = full.into_iter().zip(half).flat_map(|(full, half)| [full, half]);
    layers
        .flat_map(|layer| matmul::PRODUCTS.into_iter().filter_map(move |product| bench(layer, product, caps)))
        .collect()
}

/// Returns the minimum of each product, summed over all linear layers and the head.
fn minimum_cost(shape: &StepShape) -> Vec<MinimumCost> {
    let [micro, n, _, l, c, v, f, s] = shape.counts();
    // (outputs, inputs, count) of every product with a weight; the last is the head
    let layers = [(3 * c, c, l), (c, c, l), (4 * c, c, l), (c, 4 * c, l), (v, c, 1)];
    let sum = |f: &dyn Fn(u64, u64) -> u64| layers.iter().map(|&(o, i, times)| times * f(o, i)).sum::<u64>();
    let flops = micro * sum(&|o, i| 2 * n * o * i);
    // operands and results have the element type of activations, the residual stream and parameters' gradients are f32;
    // attproj and fcproj add their results to the residual stream; fc also stores its GELU
    let operands = sum(&|o, i| n * i + o * i);
    let stored = l * n * (3 * c + 4 * c + 4 * c) + n * v;
    let residual = l * 2 * n * (2 * c);
    let biases: u64 = l * (3 * c + c + 4 * c + c);
    let backward_inp = s * (sum(&|o, i| n * o + o * i + n * i) + l * n * 4 * c);
    let backward_weight = s * sum(&|o, i| n * o + n * i) + f * sum(&|o, i| 2 * o * i);
    vec![
        (FORWARD, micro * (s * (operands + stored) + f * (residual + biases)), flops),
        (BACKWARD_INP, micro * backward_inp, flops),
        (BACKWARD_WEIGHT, micro * backward_weight, flops),
    ]
}
