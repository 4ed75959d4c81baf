//! What all matrix kernels share of their text: lines, elements, the prologue, the fused ends.

use std::fmt::{self, Display};

use crate::gpu::Elem;
use crate::gpu::kernel::Width;
pub(super) use crate::gpu::text::Text;

use super::{Algorithm, Epilogue, Product, Spec, name, workgroup_size};

/// Row tiles that [`Algorithm::Tiled`] walks before the next column tile: both operands' tiles stay in a GPU's L2.
const BAND: u32 = 8;

/// The element type of a binding.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Element {
    F32,
    Vec4,
    /// Two f32 in a u64; read as vec4 by a function of the kernel.
    Pair,
    /// f16, computed with as f32.
    Half,
    /// Four of them.
    Half4,
    /// Eight of them, 16 bytes: a struct of two vec4.
    Half8,
}

impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Element::F32 => "f32",
            Element::Vec4 => "vec4<f32>",
            Element::Pair => "u64",
            Element::Half => "f16",
            Element::Half4 => "vec4<f16>",
            Element::Half8 => "Half8",
        })
    }
}

impl Element {
    /// `expr`, a count of f32, in the units that one read moves.
    pub(super) fn units(self, expr: impl Display) -> String {
        match self {
            Element::F32 | Element::Half => format!("{expr}"),
            Element::Vec4 | Element::Pair | Element::Half4 => format!("({expr}) / 4u"),
            Element::Half8 => format!("({expr}) / 8u"),
        }
    }

    /// The element of a tensor: what a kernel of this width reads and writes at once, at most 16 bytes.
    pub(super) fn of(elem: Elem, width: Width) -> Self {
        match (elem, width) {
            (Elem::F16, Width::Vec8) => Element::Half8,
            (Elem::F16, Width::Vec4) => Element::Half4,
            (Elem::F16, Width::Scalar) => Element::Half,
            (_, Width::Vec4 | Width::Vec8) => Element::Vec4,
            (_, Width::Scalar) => Element::F32,
        }
    }

    /// True if it holds f16.
    fn half(self) -> bool {
        matches!(self, Element::Half | Element::Half4 | Element::Half8)
    }

    /// What one read brings to compute with: `f32`, or `vec4<f32>`, of which [`Element::Half8`] brings two.
    pub(super) fn value(self) -> Self {
        if self.width() == 1 { Element::F32 } else { Element::Vec4 }
    }

    /// The element of another tensor of the same type that is read and written without functions.
    pub(super) fn plain(self) -> Self {
        if self == Element::Pair { Element::Vec4 } else { self }
    }

    /// How many f32 one read moves.
    pub(super) fn width(self) -> u32 {
        match self {
            Element::F32 | Element::Half => 1,
            Element::Vec4 | Element::Pair | Element::Half4 => 4,
            Element::Half8 => 8,
        }
    }

    /// The statement that sets element `index` of binding `name`.
    pub(super) fn write(self, name: &str, index: impl Display, value: impl Display) -> String {
        match self {
            Element::F32 | Element::Vec4 => format!("{name}[{index}] = {value};"),
            Element::Pair => format!("write_{name}({index}, {value});"),
            Element::Half | Element::Half4 => format!("{name}[{index}] = {self}({value});"),
            Element::Half8 => unreachable!("written by store_wide"),
        }
    }

    /// Element `index` of binding `name`.
    pub(super) fn read(self, name: &str, index: impl Display) -> String {
        match self {
            Element::F32 | Element::Vec4 => format!("{name}[{index}]"),
            Element::Pair => format!("read_{name}({index})"),
            Element::Half => format!("f32({name}[{index}])"),
            Element::Half4 => format!("vec4<f32>({name}[{index}])"),
            Element::Half8 => unreachable!("read by store_wide"),
        }
    }
}

/// The struct of eight f16, which is loaded and stored as a whole.
pub(super) const HALF8: &str = "struct Half8 { low: vec4<f16>, high: vec4<f16> }";

/// Component `i` of a vec4.
pub(super) fn component(i: u32) -> &'static str {
    ["x", "y", "z", "w"][i as usize % 4]
}

/// How a kernel sees its bindings.
pub(super) struct Bindings {
    pub(super) a: Element,
    pub(super) b: Element,
    pub(super) out: Element,
}

/// Header comment, parameters and bindings.
pub(super) fn prologue(spec: &Spec, idea: &str, bindings: &Bindings) -> Text {
    let Bindings { a, b, out } = bindings;
    let mut t = Text::default();
    if [a, b, out].iter().any(|e| e.half()) {
        t.line("enable f16;");
    }
    if matches!(spec.algorithm, Algorithm::Coop(_)) {
        t.line("enable wgpu_cooperative_matrix;");
    }
    let formula = match spec.product {
        Product::Forward => "a(M,K)·b(N,K)ᵀ",
        Product::BackwardInp => "a(M,K)·b(K,N)",
        Product::BackwardWeight => "a(K,M)ᵀ·b(K,N)",
    };
    let equals = if spec.accumulate { "+=" } else { "=" };
    let then = if spec.epilogue == Epilogue::None { String::new() } else { format!(", then {:?}", spec.epilogue) };
    t.line(format_args!("// {}: out(M,N) {equals} {formula}{then}", name(spec)));
    t.line(format_args!("// {idea}"));
    t.line("// Generated by src/ops/matmul/generate.");
    t.line("");
    if [a, b, out].contains(&&Element::Half8) {
        t.line(HALF8);
    }
    t.open("struct P");
    for field in [
        "m",
        "n",
        "k",
        "a_stride",
        "b_stride",
        "out_stride",
        "a_offset",
        "b_offset",
        "out_offset",
        "bias_offset",
        "part_depth",
    ] {
        t.line(format_args!("{field}: u32,"));
    }
    t.close();
    t.line("var<immediate> p: P;");
    t.line("");
    t.line(format_args!("@group(0) @binding(0) var<storage, read> a: array<{a}>;"));
    t.line(format_args!("@group(0) @binding(1) var<storage, read> b: array<{b}>;"));
    t.line(format_args!("@group(0) @binding(2) var<storage, read_write> out: array<{out}>;"));
    let (value, kept) = (out.value(), out.plain());
    let third = match spec.epilogue {
        Epilogue::None => None,
        Epilogue::GeluBackward => Some(format!("<storage, read> pre: array<{kept}>")),
        Epilogue::ColumnSums => Some(format!("<storage, read_write> column_sums: array<{value}>")),
        _ => Some(format!("<storage, read> bias: array<{value}>")),
    };
    let fourth = match spec.epilogue {
        Epilogue::BiasGelu => Some(format!("<storage, read_write> gelu_out: array<{kept}>")),
        Epilogue::BiasResidual => Some(format!("<storage, read> residual: array<{value}>")),
        _ => None,
    };
    for (binding, what) in [(3, third), (4, fourth)] {
        if let Some(what) = what {
            t.line(format_args!("@group(0) @binding({binding}) var{what};"));
        }
    }
    t.line("");
    if spec.epilogue.gelu() {
        t.line(format_args!("alias V = {value};"));
        include_str!("../../../../shaders/shared/gelu.wgsl").lines().for_each(|line| t.line(line));
        t.line("");
        if spec.epilogue == Epilogue::BiasGelu && out.half() {
            t.line(format_args!("alias U = {};", value.to_string().replace("f32", "u32")));
            include_str!("../../../../shaders/shared/half.wgsl").lines().for_each(|line| t.line(line));
            t.line("");
        }
    }
    if [a, b, out].contains(&&Element::Pair) {
        t.line("fn low(pair: u64) -> f32 { return bitcast<f32>(u32(pair)); }");
        t.line("fn high(pair: u64) -> f32 { return bitcast<f32>(u32(pair >> 32u)); }");
        t.line("");
    }
    for (name, element) in [("a", a), ("b", b), ("out", out)] {
        if *element == Element::Pair && (name != "out" || spec.accumulate) {
            t.open(format_args!("fn read_{name}(index: u32) -> vec4<f32>"));
            t.line(format_args!("let first = {name}[index * 2u];"));
            t.line(format_args!("let second = {name}[index * 2u + 1u];"));
            t.line("return vec4(low(first), high(first), low(second), high(second));");
            t.close();
            t.line("");
        }
    }
    if *out == Element::Pair {
        t.line(
            "fn pair(low: f32, high: f32) -> u64 { return u64(bitcast<u32>(low)) | (u64(bitcast<u32>(high)) << 32u); }",
        );
        t.line("");
        t.open("fn write_out(index: u32, four: vec4<f32>)");
        t.line("out[index * 2u] = pair(four.x, four.y);");
        t.line("out[index * 2u + 1u] = pair(four.z, four.w);");
        t.close();
        t.line("");
    }
    t
}

/// Attributes and parameters of the entry point.
pub(super) fn entry(t: &mut Text, spec: &Spec) {
    t.line(format_args!("@compute @workgroup_size({})", workgroup_size(spec)));
    t.line("fn main(");
    t.depth += 1;
    t.line("@builtin(workgroup_id) group: vec3<u32>,");
    t.line("@builtin(num_workgroups) groups: vec3<u32>,");
    t.line("@builtin(local_invocation_index) thread: u32,");
    if matches!(spec.algorithm, Algorithm::Coop(_)) {
        t.line("@builtin(subgroup_id) subgroup: u32,");
    }
    t.depth -= 1;
    t.open(")");
}

/// Stores the sum `value` at `index` of what has the shape of `out`.
pub(super) fn store(t: &mut Text, spec: &Spec, out: Element, index: &str, bias_index: &str, value: &str) {
    let bias = if spec.epilogue.bias() { format!(" + bias[{bias_index}]") } else { String::new() };
    let before = if spec.accumulate { format!("{} + ", out.read("out", index)) } else { String::new() };
    let sum = format!("{before}{value}{bias}");
    match spec.epilogue {
        Epilogue::None | Epilogue::Bias | Epilogue::ColumnSums => t.line(out.write("out", index, sum)),
        Epilogue::BiasResidual => t.line(out.write("out", index, format_args!("residual[{index}] + ({sum})"))),
        Epilogue::BiasGelu => {
            // of what is kept, not of what is rounded away: so it can be computed again from it
            let kept = match out {
                out if out.half() => format!("as_stored({sum})"),
                _ => sum,
            };
            t.line(format_args!("let kept = {kept};"));
            t.line(out.write("out", index, "kept"));
            t.line(out.plain().write("gelu_out", index, "gelu(kept)"));
        }
        Epilogue::GeluBackward => {
            let slope = format!("gelu_slope({})", out.plain().read("pre", index));
            t.line(out.write("out", index, format_args!("({sum}) * {slope}")));
        }
    }
}

/// Stores eight neighbouring sums, `sum_low` and `sum_high`, from element `start` on of what has the shape of `out`; the
/// bias is that from `bias_start` on.
pub(super) fn store_wide(t: &mut Text, spec: &Spec, out: Element, start: &str, bias_start: &str) {
    let half = out == Element::Half8;
    t.line(format_args!("let at = {};", out.units(start)));
    t.line(format_args!("let bias_at = ({bias_start}) / 4u;"));
    if half && spec.accumulate {
        t.line("let before = out[at];");
    }
    if half && spec.epilogue == Epilogue::GeluBackward {
        t.line("let pre_all = pre[at];");
    }
    for (i, part) in ["low", "high"].iter().enumerate() {
        let of = |name: &str, all: &str| {
            if half { format!("vec4<f32>({all}.{part})") } else { format!("{name}[at + {i}u]") }
        };
        let bias = if spec.epilogue.bias() { format!(" + bias[bias_at + {i}u]") } else { String::new() };
        let before = if spec.accumulate { format!("{} + ", of("out", "before")) } else { String::new() };
        let sum = format!("{before}sum_{part}{bias}");
        let value = match spec.epilogue {
            Epilogue::None | Epilogue::Bias | Epilogue::ColumnSums => sum,
            Epilogue::BiasResidual => format!("residual[at + {i}u] + ({sum})"),
            // of what is kept, not of what is rounded away: so it can be computed again from it
            Epilogue::BiasGelu if half => format!("as_stored({sum})"),
            Epilogue::BiasGelu => sum,
            Epilogue::GeluBackward => format!("({sum}) * gelu_slope({})", of("pre", "pre_all")),
        };
        t.line(format_args!("let {part} = {value};"));
    }
    let mut results = vec![("out", "low", "high")];
    if spec.epilogue == Epilogue::BiasGelu {
        results.push(("gelu_out", "gelu(low)", "gelu(high)"));
    }
    for (name, low, high) in results {
        if half {
            t.line(format_args!("{name}[at] = Half8(vec4<f16>({low}), vec4<f16>({high}));"));
        } else {
            t.line(format_args!("{name}[at] = {low};"));
            t.line(format_args!("{name}[at + 1u] = {high};"));
        }
    }
}

/// Which tile a workgroup computes: `first_row`, `first_column`, and for a product in parts which `part`.
pub(super) fn place(t: &mut Text, tile_m: u32, tile_n: u32, parts: bool) {
    t.line("let group_number = group.y * groups.x + group.x;");
    t.line(format_args!("let row_tiles = (p.m + {}u) / {tile_m}u;", tile_m - 1));
    t.line(format_args!("let column_tiles = (p.n + {}u) / {tile_n}u;", tile_n - 1));
    if parts {
        t.line("let part = group_number / (row_tiles * column_tiles);");
        t.line("// a folded grid has groups past the end, whose part there is none of");
        t.line("if part * p.part_depth >= p.k { return; }");
        t.line("let tile = group_number - part * row_tiles * column_tiles;");
    } else {
        t.line("let tile = group_number;");
    }
    t.line(format_args!("// bands of {BAND} row tiles: neighbouring workgroups share operands in cache"));
    t.line(format_args!("let band = tile / ({BAND}u * column_tiles);"));
    t.line(format_args!("let band_rows = min({BAND}u, max(row_tiles, band * {BAND}u + 1u) - band * {BAND}u);"));
    t.line(format_args!("let in_band = tile - band * {BAND}u * column_tiles;"));
    t.line(format_args!("let first_row = (band * {BAND}u + in_band % band_rows) * {tile_m}u;"));
    t.line(format_args!("let first_column = (in_band / band_rows) * {tile_n}u;"));
}
