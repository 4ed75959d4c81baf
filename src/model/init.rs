//! The random initial weights of a model: llm.c's draws in llm.c's order, with the same bits on every system.
//!
//! llm.c uses PyTorch's mt19937 and PyTorch's method of making normals from it, so its weights for a seed are known.
//! llm.c's logarithm and sine come from the system's maths library, whose implementations differ in the last bit. Here
//! they are computed in f64 by `libm` (plain Rust, the same everywhere) and rounded to f32 once.

use std::f64::consts::PI;

use rayon::prelude::*;

use super::config::Config;
use super::params::{Init, PARAMS, Weights};
use crate::random::mt19937::Mt19937;

/// Values that are generated together: 8 radii and 8 angles give 16 normals.
const BLOCK: usize = 16;
/// Values that one task of the thread pool transforms, which takes some 100 microseconds.
const TASK: usize = BLOCK * 256;
/// Standard deviation of every matrix except the projections back into the residual stream.
const STD: f32 = 0.02;
/// Mean of every normal. Adding it has an effect: it turns -0 into +0, as in llm.c.
const MEAN: f32 = 0.0;

/// Returns the weights for `seed`, which are bit-identical on every system.
///
/// The order of draws is: at layer 0 first `wte` (V rows; the padding rows stay zero) and `wpe`, then for every layer
/// `qkvw`, `attprojw`, `fcw` and `fcprojw`. Draws are normals of mean 0 and standard deviation 0.02, for `attprojw` and
/// `fcprojw` 0.02 / sqrt(2 L). Layernorm weights are one, and all other tensors are zero.
///
/// Source: llm.c, `gpt_build_from_descriptor` and `llmc/rand.h`.
#[must_use]
pub fn init(config: Config, seed: u32) -> Weights {
    Normals::new(seed).weights(config)
}

/// A stream of normals, as PyTorch's CPU generator produces them.
struct Normals {
    rng: Mt19937,
    /// Second half of the last pair, if a small tensor used only the first. It is kept for the next small tensor, as in
    /// PyTorch.
    cached: Option<f64>,
}

impl Normals {
    fn new(seed: u32) -> Self {
        Self { rng: Mt19937::new(seed), cached: None }
    }

    /// Fills a whole model.
    fn weights(&mut self, config: Config) -> Weights {
        let mut weights = Weights::zeros(config);
        for layer in 0..config.layers {
            for (param, values) in PARAMS.iter().zip(&mut weights.tensors) {
                if layer > 0 && !param.per_layer {
                    continue;
                }
                let n = param.elements(&config);
                let copy = &mut values[layer * n..(layer + 1) * n];
                // only rows of real tokens are drawn; the padding stays zero
                let drawn = if param.name == "wte" { config.vocab * config.channels } else { n };
                match param.init {
                    Init::Zeros => {}
                    Init::Ones => copy.fill(1.0),
                    Init::Normal => self.fill(&mut copy[..drawn], STD),
                    Init::ResidualNormal => self.fill(&mut copy[..drawn], residual_std(config.layers)),
                }
            }
        }
        weights
    }

    /// Fills one tensor, as `torch.Tensor.normal_` does.
    fn fill(&mut self, values: &mut [f32], std: f32) {
        if values.len() < BLOCK {
            values.fill_with(|| self.single(std));
            return;
        }
        // Raw draws are first stored in place of the values, because only the generator has to run in order; the rest
        // runs in parallel. They are stored as bits, because a draw seen as an f32 may be a NaN, which not every
        // processor moves unchanged.
        let bits: &mut [u32] = bytemuck::cast_slice_mut(values);
        self.rng.fill_u32(bits);
        let whole = bits.len() / BLOCK * BLOCK;
        bits[..whole].par_chunks_mut(TASK).for_each(|task| {
            for block in task.as_chunks_mut().0 {
                transform(block, std);
            }
        });
        // if the last block is incomplete, the last 16 values are drawn again, including some that are finished already
        if whole < bits.len()
            && let Some(last) = bits.last_chunk_mut()
        {
            self.rng.fill_u32(last);
            transform(last, std);
        }
    }

    /// Makes one uniform of 53 bits in [0, 1) from two draws, the high half first.
    fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (u64::from(self.rng.next_u32()), u64::from(self.rng.next_u32()));
        let bits = (high << 32 | low) & ((1 << 53) - 1);
        bits as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Makes one normal for a tensor of fewer than 16 values. PyTorch makes those in f64, in pairs.
    fn single(&mut self, std: f32) -> f32 {
        let unit = self.cached.take().unwrap_or_else(|| {
            let angle = 2.0 * PI * self.uniform_f64();
            let radius = (-2.0 * libm::log1p(-self.uniform_f64())).sqrt();
            let (sin, cos) = libm::sincos(angle);
            self.cached = Some(radius * sin);
            radius * cos
        });
        (unit * f64::from(std) + f64::from(MEAN)) as f32
    }
}

/// Returns the standard deviation of the projections back into the residual stream, with llm.c's roundings.
fn residual_std(layers: usize) -> f32 {
    STD * (1.0 / (2.0 * layers as f32).sqrt())
}

/// Converts a draw to a uniform of 24 bits in [0, 1).
fn uniform(draw: u32) -> f32 {
    (draw & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0)
}

/// Turns 16 draws into the bits of 16 normals (Box and Muller): the first half gives radii, the second their angles.
fn transform(block: &mut [u32; BLOCK], std: f32) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (first, second) in radii.iter_mut().zip(angles) {
        let u1 = 1.0 - uniform(*first);
        let log = libm::log(f64::from(u1 + 1e-12)) as f32;
        let radius = (-2.0 * log).sqrt();
        let angle = (2.0 * PI * f64::from(uniform(*second))) as f32;
        let (sin, cos) = libm::sincos(f64::from(angle));
        *first = (radius * cos as f32 * std + MEAN).to_bits();
        *second = (radius * sin as f32 * std + MEAN).to_bits();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the distance in units in the last place.
    fn ulps(a: f32, b: f32) -> u32 {
        let order = |x: f32| if x.to_bits() >> 31 == 0 { x.to_bits() as i32 } else { i32::MIN - x.to_bits() as i32 };
        order(a).abs_diff(order(b))
    }

    fn near(what: &str, got: &[f32], want: &[f32]) {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!(ulps(*got, *want) <= 1, "{what}[{i}]: got {got:e}, want {want:e}");
        }
    }

    /// Returns a 64-bit FNV-1a hash of the bits, which any changed bit of any weight changes.
    fn digest(values: &[f32]) -> u64 {
        values
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |h, x| (h ^ u64::from(x.to_bits())).wrapping_mul(0x0000_0100_0000_01b3))
    }

    #[test]
    fn d12_is_llm_c() {
        let config = Config::from_descriptor("d12").unwrap();
        let mut normals = Normals::new(42);
        let w = normals.weights(config);
        assert_eq!(normals.rng.next_u32(), 361_737_367);

        let wte = &w.get("wte", 0)[..config.vocab * config.channels];
        near("wte", wte, &[0.038_538_3, 0.029_745_683, 0.018_014_344, -0.042_110_43]);
        near("wte, last", &wte[wte.len() - 1..], &[0.001_703_785_3]);
        near("wpe", w.get("wpe", 0), &[-0.009_162_355, -0.018_614_769, -0.029_470_228, -0.003_216_585_8]);
        near("qkvw 0", w.get("qkvw", 0), &[-0.004_556_677_3]);
        near("attprojw 0", w.get("attprojw", 0), &[0.001_132_743_5]);
        near("fcw 0", w.get("fcw", 0), &[-0.011_178_779]);
        near("fcprojw 0", w.get("fcprojw", 0), &[0.004_377_521_6]);
        near("qkvw 1", w.get("qkvw", 1), &[0.024_865_491]);
        near("qkvw 11", w.get("qkvw", 11), &[0.032_125_372]);
        near("fcprojw, last", &w.get("fcprojw", 11)[4 * 768 * 768 - 1..], &[-0.002_802_944]);

        let sum: f64 = wte.iter().map(|x| f64::from(*x)).sum();
        let squares: f64 = wte.iter().map(|x| f64::from(*x).powi(2)).sum();
        assert!((sum - 95.6227).abs() < 1e-3, "sum of wte {sum}");
        assert!(((squares / wte.len() as f64).sqrt() - 0.019_998_0).abs() < 1e-7);

        assert!(w.get("wte", 0)[wte.len()..].iter().all(|x| x.to_bits() == 0), "the padding is not zero");
        assert!(w.get("ln2w", 5).iter().chain(w.get("lnfw", 0)).all(|x| *x == 1.0));
        assert!(w.get("fcb", 5).iter().chain(w.get("ln1b", 0)).all(|x| x.to_bits() == 0));
    }

    /// 41,220 draws, including tensors whose length is not a multiple of 16. A change here changes every loss curve.
    #[test]
    fn same_bits_everywhere() {
        let w = init(Config::new(24, 257, 2, 3, 36).unwrap(), 1337);
        let got = digest(&w.tensors.concat());
        assert_eq!(got, 0x0dba_6db8_0f20_c51c, "got {got:#x}");
    }

    /// Values of PyTorch 2.15: `torch.empty(n).normal_(0, 0.02, generator=torch.Generator().manual_seed(42))`.
    #[test]
    fn small_tensors_are_pytorch() {
        let mut normals = Normals::new(42);
        let (mut first, mut second) = ([0.0; 9], [0.0; 3]);
        normals.fill(&mut first, STD);
        normals.fill(&mut second, STD);
        near(
            "first",
            &first,
            &[
                0.006_733_807_3,
                0.002_576_188_2,
                0.004_689_247_4,
                0.004_606_660_5,
                -0.022_457_128,
                -0.003_726_566,
                0.044_164_028,
                -0.012_759_941,
                0.009_233_144,
            ],
        );
        // the first value is the half of a pair that the previous tensor did not use
        near("second", &second, &[0.005_347_017, 0.010_698_094, 0.016_187_144]);
    }

    /// The same for 20 values, of which PyTorch draws the last 16 twice. Its vectorised sine is less exact than ours.
    #[test]
    fn a_tail_is_drawn_anew() {
        let mut values = [0.0; 20];
        Normals::new(42).fill(&mut values, STD);
        let want = [
            0.038_538_303,
            0.029_745_681,
            0.018_014_343,
            -0.042_110_417,
            -0.015_162_623,
            0.021_566_352,
            0.016_016_01,
            0.033_612_41,
            0.007_117_198,
            -0.013_732_46,
            -0.009_867_127,
            0.004_829_755_5,
            -0.004_632_486_5,
            0.000_835_189_8,
            -0.005_031_506,
            0.017_197_17,
            -0.006_194_535,
            -0.007_914_21,
            0.016_068_187,
            -0.012_431_908_f32,
        ];
        for (i, (got, want)) in values.iter().zip(want).enumerate() {
            assert!((got - want).abs() < 1e-7, "[{i}]: got {got}, want {want}");
        }
    }
}
