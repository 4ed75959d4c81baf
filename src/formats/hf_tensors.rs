//! The tensors of Hugging Face's GPT-2: their names, layouts and element types.

use rayon::prelude::*;
use safetensors::Dtype;

use super::transpose::transpose;
use crate::model::config::Config;
use crate::model::params::{PARAMS, Weights};

/// Prefix of the model's tensor names in `GPT2LMHeadModel`; `GPT2Model` and OpenAI's files have none.
pub const PREFIX: &str = "transformer.";

/// Number of values that one task of the thread pool decodes.
const TASK: usize = 1 << 16;

/// Hugging Face's layout of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One axis.
    Vector,
    /// Rows and columns as in [`PARAMS`]; for `wte`, only the first V rows.
    Rows,
    /// `Conv1D`: (in, out), where [`PARAMS`] has (out, in).
    Transposed,
}

/// Hugging Face's name and layout for every entry of [`PARAMS`], in its order. `{}` stands for the layer.
const NAMES: [(&str, &str, Layout); 16] = [
    ("wte", "wte.weight", Layout::Rows),
    ("wpe", "wpe.weight", Layout::Rows),
    ("ln1w", "h.{}.ln_1.weight", Layout::Vector),
    ("ln1b", "h.{}.ln_1.bias", Layout::Vector),
    ("qkvw", "h.{}.attn.c_attn.weight", Layout::Transposed),
    ("qkvb", "h.{}.attn.c_attn.bias", Layout::Vector),
    ("attprojw", "h.{}.attn.c_proj.weight", Layout::Transposed),
    ("attprojb", "h.{}.attn.c_proj.bias", Layout::Vector),
    ("ln2w", "h.{}.ln_2.weight", Layout::Vector),
    ("ln2b", "h.{}.ln_2.bias", Layout::Vector),
    ("fcw", "h.{}.mlp.c_fc.weight", Layout::Transposed),
    ("fcb", "h.{}.mlp.c_fc.bias", Layout::Vector),
    ("fcprojw", "h.{}.mlp.c_proj.weight", Layout::Transposed),
    ("fcprojb", "h.{}.mlp.c_proj.bias", Layout::Vector),
    ("lnfw", "ln_f.weight", Layout::Vector),
    ("lnfb", "ln_f.bias", Layout::Vector),
];

/// One tensor of a file: one copy of one parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Name without [`PREFIX`].
    pub name: String,
    /// Shape in the file.
    pub shape: Vec<usize>,
    param: usize,
    layer: usize,
    layout: Layout,
}

/// Returns every tensor that a file has for a model of this shape. The iterator is lazy, because a broken configuration
/// may claim any number of layers.
pub fn slots(config: &Config) -> impl Iterator<Item = Slot> + use<> {
    let config = *config;
    (0..config.layers).flat_map(move |layer| {
        (0..PARAMS.len()).filter(move |i| layer == 0 || PARAMS[*i].per_layer).map(move |i| slot(&config, i, layer))
    })
}

fn slot(config: &Config, param: usize, layer: usize) -> Slot {
    let (ours, name, layout) = NAMES[param];
    let [rows, columns] = (PARAMS[param].shape)(config);
    let shape = match layout {
        Layout::Vector => vec![columns],
        Layout::Rows if ours == "wte" => vec![config.vocab, columns],
        Layout::Rows => vec![rows, columns],
        Layout::Transposed => vec![columns, rows],
    };
    Slot { name: name.replace("{}", &layer.to_string()), shape, param, layer, layout }
}

impl Slot {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Returns whether `shape` is this tensor's shape with rows and columns exchanged, as nanoGPT stores matrices.
    pub fn is_transposed(&self, shape: &[usize]) -> bool {
        self.layout == Layout::Transposed && shape.iter().rev().eq(&self.shape)
    }

    /// Returns the range of the values in [`Weights::tensors`]`[self.param]`; for `wte`, without the padding.
    fn range(&self, config: &Config) -> std::ops::Range<usize> {
        let start = self.layer * PARAMS[self.param].elements(config);
        start..start + self.elements()
    }

    /// Writes the tensor into `weights`. `decode` is called once and writes the values in the file's order.
    ///
    /// # Errors
    /// That of `decode`: the index in the file's order and the value of the first element that is not finite.
    pub fn read(
        &self,
        weights: &mut Weights,
        decode: impl FnOnce(&mut [f32]) -> Result<(), (usize, f32)>,
    ) -> Result<(), (usize, f32)> {
        let range = self.range(&weights.config);
        let out = &mut weights.tensors[self.param][range];
        let [rows, columns] = match self.shape[..] {
            [rows, columns] if self.layout == Layout::Transposed => [rows, columns],
            _ => return decode(out),
        };
        let mut theirs = vec![0.0; out.len()];
        decode(&mut theirs)?;
        transpose(&theirs, [rows, columns], out, |x| x);
        Ok(())
    }

    /// Returns the tensor's values in the file's order.
    pub fn values<'a>(&self, weights: &'a Weights) -> std::borrow::Cow<'a, [f32]> {
        let values = &weights.tensors[self.param][self.range(&weights.config)];
        match self.shape[..] {
            [rows, columns] if self.layout == Layout::Transposed => {
                let mut theirs = vec![0.0; values.len()];
                transpose(values, [columns, rows], &mut theirs, |x| x);
                theirs.into()
            }
            _ => values.into(),
        }
    }
}

/// Parts of names that PyTorch's wrappers of a module add to its tensors: `torch.compile`, data parallelism, sharding,
/// recomputation.
const WRAPPERS: [&str; 4] = ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Returns a tensor's name as in `GPT2Model`, without wrappers and the names of enclosing models.
#[must_use]
pub fn plain_name(name: &str) -> String {
    let parts = name.split('.').filter(|part| !WRAPPERS.contains(part));
    let parts: Vec<&str> = parts.skip_while(|part| ["model", "transformer"].contains(part)).collect();
    parts.join(".")
}

/// Returns whether a tensor is a buffer instead of a parameter: a causal mask of older files.
pub fn is_buffer(name: &str) -> bool {
    let layer = name
        .strip_prefix("h.")
        .and_then(|rest| rest.strip_suffix(".attn.bias").or_else(|| rest.strip_suffix(".attn.masked_bias")));
    layer.is_some_and(|layer| layer.parse::<usize>().is_ok())
}

/// Returns whether a tensor belongs to a head other than GPT-2's output layer: of a classifier, of multiple choice, or
/// of values. Without these, the model computes the same.
pub fn is_other_head(name: &str) -> bool {
    let head = name.split('.').next().unwrap_or_default();
    let ends = head.ends_with("_head") || head.ends_with("_heads");
    ends && head != "lm_head" || ["score", "classifier", "summary", "qa_outputs"].contains(&head)
}

/// The supported element types.
pub const ELEMENT_TYPES: [Dtype; 4] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16];

/// Decodes little-endian values to f32; f64 is rounded to nearest. Writes all of `out`, also on an error.
///
/// # Errors
/// Index and value of the first value that is not finite.
///
/// # Panics
/// If the length of `bytes` does not match `out` and `dtype`, or `dtype` is not one of [`ELEMENT_TYPES`]. Callers check
/// both.
pub fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), (usize, f32)> {
    match dtype {
        Dtype::F64 => decode_as(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::F32 => decode_as(bytes, out, f32::from_le_bytes),
        Dtype::F16 => decode_as(bytes, out, |b| f16_to_f32(u16::from_le_bytes(b))),
        Dtype::BF16 => decode_as(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        other => panic!("decode: element type {other}, expected one of {ELEMENT_TYPES:?}"),
    }
}

fn decode_as<const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    value: impl Fn([u8; N]) -> f32 + Sync,
) -> Result<(), (usize, f32)> {
    assert_eq!(bytes.len(), N * out.len(), "decode: number of bytes");
    let first = out
        .par_chunks_mut(TASK)
        .zip(bytes.par_chunks(TASK * N))
        .enumerate()
        .filter_map(|(task, (out, bytes))| {
            let mut finite = true;
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = value(*bytes);
                finite &= out.is_finite();
            }
            // searched only if there is one: the loop above has no exit, so that it is vectorised
            let bad = if finite { None } else { out.iter().position(|x| !x.is_finite()) };
            bad.map(|i| (task * TASK + i, out[i]))
        })
        .min_by_key(|(i, _)| *i);
    first.map_or(Ok(()), Err)
}

/// Converts IEEE half precision to single precision, exactly.
fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let exponent = u32::from(half >> 10 & 0x1f);
    let mantissa = u32::from(half & 0x3ff);
    let magnitude = match exponent {
        // zero and subnormals: multiples of 2^-24
        0 => return f32::from_bits((mantissa as f32 * (1.0 / 16_777_216.0)).to_bits() | sign),
        31 => 0x7f80_0000 | mantissa << 13,
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new(24, 257, 2, 3, 36).unwrap()
    }

    #[test]
    fn table_follows_params() {
        for (param, (name, _, layout)) in PARAMS.iter().zip(NAMES) {
            assert_eq!(param.name, name);
            assert_eq!(layout == Layout::Vector, (param.shape)(&config())[0] == 1, "{name}");
            assert_eq!(param.per_layer, NAMES.iter().any(|n| n.0 == name && n.1.contains("{}")), "{name}");
        }
    }

    #[test]
    fn slots_cover_every_weight_but_the_padding() {
        let config = config();
        let all: Vec<Slot> = slots(&config).collect();
        assert_eq!(all.len(), 4 + 12 * 2);
        let elements: usize = all.iter().map(Slot::elements).sum();
        assert_eq!(elements, config.parameters() - (config.padded_vocab() - config.vocab) * config.channels);
        let find = |name: &str| all.iter().find(|s| s.name == name).unwrap().shape.clone();
        assert_eq!(find("wte.weight"), [257, 36]);
        assert_eq!(find("h.1.attn.c_attn.weight"), [36, 108]);
        assert_eq!(find("h.1.mlp.c_proj.weight"), [144, 36]);
        assert_eq!(find("ln_f.bias"), [36]);
    }

    #[test]
    fn conv1d_is_transposed() {
        let mut weights = Weights::zeros(config());
        let slot = slots(&config()).find(|s| s.name == "h.1.mlp.c_fc.weight").unwrap();
        let theirs: Vec<f32> = (0..36 * 144).map(|i| i as f32).collect();
        slot.read(&mut weights, |out| decode(Dtype::F32, bytemuck::cast_slice(&theirs), out)).unwrap();
        // theirs is (in, out): in = 2, out = 5 is element 2 * 144 + 5; ours is (out, in)
        assert_eq!(weights.get("fcw", 1)[5 * 36 + 2], (2 * 144 + 5) as f32);
        assert!(weights.get("fcw", 0).iter().all(|x| *x == 0.0));
        assert_eq!(slot.values(&weights), theirs);
    }

    #[test]
    fn half_precision_is_exact() {
        for half in 0..=u16::MAX {
            let (exponent, mantissa) = (i32::from(half >> 10 & 0x1f), f64::from(half & 0x3ff));
            let magnitude = match exponent {
                0 => mantissa * 2_f64.powi(-24),
                31 if mantissa == 0.0 => f64::INFINITY,
                31 => f64::NAN,
                _ => (1024.0 + mantissa) * 2_f64.powi(exponent - 25),
            };
            let want = if half >> 15 == 1 { -magnitude } else { magnitude };
            let got = f64::from(f16_to_f32(half));
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{half:#06x}: {got} {want}");
        }
    }

    #[test]
    fn finds_the_first_bad_value() {
        let mut values = vec![1.0_f32; 3 * TASK + 5];
        let mut out = values.clone();
        assert_eq!(decode(Dtype::F32, bytemuck::cast_slice(&values), &mut out), Ok(()));
        values[3 * TASK + 2] = f32::NAN;
        values[TASK + 7] = f32::NEG_INFINITY;
        let got = decode(Dtype::F32, bytemuck::cast_slice(&values), &mut out);
        assert_eq!(got, Err((TASK + 7, f32::NEG_INFINITY)));
    }

    #[test]
    fn brain_floats() {
        let mut out = [0.0; 2];
        decode(Dtype::BF16, &[0x80, 0x3f, 0x1e, 0xbd], &mut out).unwrap();
        assert_eq!(out, [1.0, -0.038_574_22]);
    }

    #[test]
    fn doubles_are_rounded_to_nearest() {
        let doubles = [1.0 + 2_f64.powi(-24), 1.0 + 1.000_001 * 2_f64.powi(-24), -0.1, 1e-320];
        let mut out = [7.0; 4];
        decode(Dtype::F64, bytemuck::cast_slice(&doubles), &mut out).unwrap();
        assert_eq!(out, [1.0, 1.0 + f32::EPSILON, -0.1, 0.0]);
        let too_large = decode(Dtype::F64, &1e39_f64.to_le_bytes(), &mut out[..1]);
        assert_eq!(too_large, Err((0, f32::INFINITY)));
    }

    #[test]
    fn names_of_wrapped_models() {
        for name in [
            "h.0.ln_1.bias",
            "transformer.h.0.ln_1.bias",
            "_orig_mod.transformer.h.0.ln_1.bias",
            "module._orig_mod.model.transformer.h.0.ln_1.bias",
            "model.module.h.0.ln_1.bias",
            "transformer.h.0._orig_mod.ln_1.bias",
        ] {
            assert_eq!(plain_name(name), "h.0.ln_1.bias", "{name}");
        }
        assert_eq!(plain_name("module.model.lm_head.weight"), "lm_head.weight");
        assert_eq!(plain_name("encoder.transformer.wte.weight"), "encoder.transformer.wte.weight");
    }

    #[test]
    fn heads_beside_the_output_layer() {
        for name in ["score.weight", "multiple_choice_head.summary.bias", "v_head.summary.weight", "classifier.bias"] {
            assert!(is_other_head(name), "{name}");
        }
        for name in ["lm_head.weight", "lm_head.bias", "wte.weight", "h.0.score.weight", "ln_e.weight", "head"] {
            assert!(!is_other_head(name), "{name}");
        }
    }

    #[test]
    fn buffers() {
        assert!(is_buffer("h.0.attn.bias") && is_buffer("h.11.attn.masked_bias"));
        assert!(!is_buffer("h.0.attn.c_attn.bias") && !is_buffer("h.x.attn.bias") && !is_buffer("attn.bias"));
    }
}
