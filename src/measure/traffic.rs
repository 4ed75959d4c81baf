//! The traffic of a step without its matrix products, in wgpt and in llm.c: bytes that are neither operand nor result
//! of a product, and launches per layer.

use serde::Serialize;

use crate::gpu::{Elem, Program};
use crate::model::{Config, PARAMS, place};
use crate::train::Sizes;

/// The traffic of a step without its matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NonProductTraffic {
    /// Bytes per step of all dispatches, clears and copies, less the operands and result of each product once.
    pub bytes: u64,
    /// Launches for one layer per micro-step, forward and backward.
    pub layer_launches: u64,
}

/// Returns (outputs, inputs, number) of the linear layers and of the head.
fn linear(config: &Config) -> [(u64, u64, u64); 5] {
    let [l, c, vp] = [config.layers, config.channels, config.padded_vocab()].map(|x| x as u64);
    [(3 * c, c, l), (c, c, l), (4 * c, c, l), (c, 4 * c, l), (vp, c, 1)]
}

/// Returns the bytes of the operands and results of all products of a step, each once per micro-step. Operands are of
/// type `elem`, and so are results, except those that are added to the residual stream and gradients of weights, which
/// are f32.
fn products(config: &Config, sizes: &Sizes, elem: Elem) -> u64 {
    let (n, c, s, f) = ((sizes.batch * sizes.context) as u64, config.channels as u64, elem.bytes(), 4);
    let of = |(i, (o, k, times)): (usize, (u64, u64, u64))| {
        // attproj and fcproj
        let result = if i == 1 || i == 3 { f * n * c } else { s * n * o };
        let forward = s * (n * k + o * k) + result;
        let backward_inp = s * (n * o + o * k + n * k);
        let backward_weight = s * (n * o + n * k) + f * o * k;
        times * (forward + backward_inp + backward_weight)
    };
    sizes.accumulation as u64 * linear(config).into_iter().enumerate().map(of).sum::<u64>()
}

impl NonProductTraffic {
    /// Counts the traffic of a recorded step and of the micro-step in it.
    pub(super) fn of(config: &Config, sizes: &Sizes, elem: Elem, step: &Program, micro: &Program) -> Self {
        let all: u64 = step.commands.iter().map(|command| command.bytes).sum();
        let layer = place::block(config.layers / 2);
        let launches = micro.commands.iter().filter(|c| c.place == layer && c.is_dispatch()).count();
        Self { bytes: all.saturating_sub(products(config, sizes, elem)), layer_launches: launches as u64 }
    }

    /// Counts the traffic of llm.c, from its source `train_gpt2.cu` (commit f1e2ace): bf16, cuDNN's attention, all
    /// activations stored (`-r 0`), GELU in separate kernels (`-ge 0`, the default and the setting of its published
    /// runs). The traffic of cuDNN's and cuBLAS's workspaces is unknown and left out.
    #[must_use]
    pub fn of_llmc(config: &Config, sizes: &Sizes) -> Self {
        let [n, t, l, c] =
            [sizes.batch * sizes.context, sizes.context, config.layers, config.channels].map(|x| x as u64);
        let [v, vp, heads] = [config.vocab, config.padded_vocab(), config.heads].map(|x| x as u64);
        let parameters: u64 = PARAMS.iter().map(|p| (p.elements(config) * p.copies(config)) as u64).sum();
        let matrices: u64 = linear(config).iter().map(|&(o, i, times)| times * o * i).sum();
        let (s, f) = (2, 4);
        let row = s * n * c; // (N, C) once
        let norm = 4 * row + 2 * f * n; // three or four such tensors and two statistics
        // attention; residual and layernorm, twice; GELU
        let forward = l * (4 * row + f * heads * n + 2 * norm + 8 * row);
        // GELU; two layernorms; attention; the biases' gradients read 9 C
        let backward = l * (12 * row + 2 * norm + 8 * row + f * heads * n + 9 * row);
        // the embedding, the first layernorm, the classifier in place
        let ends = 2 * row + s * t * c + 2 * row + 2 * f * n + 2 * s * n * vp + 2 * f * n;
        // the residual stream's gradient cleared, the last layernorm, the embedding's gradients
        let ends_back = row + norm + 2 * row + 2 * s * (t + n.min(v)) * c;
        // the weights' gradients are accumulated
        let micro = forward + backward + ends + ends_back + s * matrices;
        // gradients cleared and their norm; AdamW with master weights
        let step = (s + s + s + 3 * 2 * f + s) * parameters;
        // forward: qkv, attention, attproj, residual and norm, fc, GELU, fcproj, residual and norm; backward: 4 biases
        // in two stages each, 8 products, GELU, two norms, attention
        Self { bytes: sizes.accumulation as u64 * micro + step, layer_launches: 8 + 20 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Count;
    use crate::measure::plan::{LARGEST_BINDING, assumed};
    use crate::model::Recompute;

    fn both(name: &str, batch: usize, accumulation: usize) -> (NonProductTraffic, NonProductTraffic) {
        let config = Config::from_descriptor(name).expect("a model");
        let sizes = Sizes { batch, context: 1024, accumulation };
        let caps = assumed(Elem::F16, LARGEST_BINDING);
        let ours = Count::new(caps, config, sizes, Elem::F16, Recompute::None).expect("counted").non_product;
        let llmc = NonProductTraffic::of_llmc(&config, &sizes);
        println!("{name}, batch {batch} x {accumulation}: {ours:?}, llm.c {llmc:?}");
        assert!(ours.layer_launches <= llmc.layer_launches, "{name}: {ours:?}, llm.c {llmc:?}");
        (ours, llmc)
    }

    /// In mixed precision a step has no more launches than llm.c's, and moves fewer bytes if a micro-step has many
    /// tokens. d48 moves a few more: its weights' gradients are cut into three parts, so that the last wave of
    /// workgroups is full.
    #[test]
    fn less_is_launched_and_moved_than_by_llmc() {
        for (name, batch, accumulation) in
            [("d12", 64, 1), ("d12", 64, 8), ("d24", 64, 1), ("d36", 64, 1), ("d48", 64, 1)]
        {
            let (ours, llmc) = both(name, batch, accumulation);
            let most = if name == "d48" { 1.03 } else { 1.0 };
            assert!((ours.bytes as f64) < most * llmc.bytes as f64, "{name}, batch {batch}: {ours:?}, llm.c {llmc:?}");
        }
        // with few tokens per micro-step it matters that gradients of weights are f32, where llm.c accumulates them in
        // bf16, and that their partial sums are counted, while cuBLAS's workspace is not
        for (name, batch) in [("d12", 16), ("d24", 16), ("d48", 16)] {
            let (ours, llmc) = both(name, batch, 4);
            assert!((ours.bytes as f64) < 1.15 * llmc.bytes as f64, "{name}, batch {batch}: {ours:?}, llm.c {llmc:?}");
        }
    }
}
