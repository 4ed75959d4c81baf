//! Writes GGUF, the file format of llama.cpp and of programs built on it: a model's weights, shape and tokenizer.
//!
//! Keys, names and element types are those that llama.cpp's own converter writes for GPT-2. Vectors and positions are
//! f32 in every file. The output layer is left out; llama.cpp uses the embedding instead. Matrices are (out, in), as
//! here.

use std::path::Path;

use super::element::{Element, too_large};
use super::gguf_file::{self, Tensor, Value};
use super::q8_0;
use super::vocabulary::Vocabulary;
use crate::error::Result;
use crate::model::config::Config;
use crate::model::params::{PARAMS, Weights};

pub use super::gguf_file::Storage;

/// GGUF's name for every entry of [`PARAMS`], in its order. `{}` stands for the layer.
const NAMES: [(&str, &str); 16] = [
    ("wte", "token_embd.weight"),
    ("wpe", "position_embd.weight"),
    ("ln1w", "blk.{}.attn_norm.weight"),
    ("ln1b", "blk.{}.attn_norm.bias"),
    ("qkvw", "blk.{}.attn_qkv.weight"),
    ("qkvb", "blk.{}.attn_qkv.bias"),
    ("attprojw", "blk.{}.attn_output.weight"),
    ("attprojb", "blk.{}.attn_output.bias"),
    ("ln2w", "blk.{}.ffn_norm.weight"),
    ("ln2b", "blk.{}.ffn_norm.bias"),
    ("fcw", "blk.{}.ffn_up.weight"),
    ("fcb", "blk.{}.ffn_up.bias"),
    ("fcprojw", "blk.{}.ffn_down.weight"),
    ("fcprojb", "blk.{}.ffn_down.bias"),
    ("lnfw", "output_norm.weight"),
    ("lnfb", "output_norm.bias"),
];
/// Version of ggml's quantized layouts.
const QUANTIZATION_VERSION: u32 = 2;

/// Writes a model into the file `path` atomically.
///
/// Matrices are stored as `storage`, vectors and positions as f32. A matrix whose row length is not a multiple of 32 is
/// stored as f16 instead of Q8_0, with a notice. If `vocabulary` has fewer tokens than the model has rows, unused
/// tokens fill the rest. Without a vocabulary, or with one that has more tokens than rows, the file has no tokenizer,
/// and programs that read it accept token ids only. No tensor is copied in memory.
///
/// # Errors
/// [`crate::error::Error::Output`] naming the file if writing fails; [`crate::error::Error::Data`] if a weight is too
/// large for its element type.
pub fn save(path: &Path, weights: &Weights, storage: Storage, vocabulary: Option<Vocabulary>) -> Result<()> {
    let tensors = tensors(weights, storage);
    for tensor in &tensors {
        match tensor.storage {
            Storage::Plain(element) => element.check_values(&tensor.name, tensor.values)?,
            Storage::Q8_0 => {
                let value = q8_0::too_large(tensor.values);
                value.map_or(Ok(()), |value| Err(too_large(&tensor.name, value, storage.name())))?;
            }
        }
    }
    let narrow = tensors.iter().filter(|t| storage == Storage::Q8_0 && t.storage == Storage::Plain(Element::F16));
    match narrow.count() {
        0 => {}
        count => {
            let matrices = if count == 1 { "1 matrix is".to_owned() } else { format!("{count} matrices are") };
            let block = q8_0::BLOCK;
            let place = path.display();
            log::warn!("{place}: {matrices} stored as f16: q8_0 requires row lengths that are multiples of {block}");
        }
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let elements = tensors.iter().map(|tensor| tensor.values.len()).sum();
    let mut keys = shape_keys(name, &weights.config, elements, storage);
    keys.extend(tokenizer_keys(&weights.config, vocabulary));
    gguf_file::write(path, &keys, &tensors)
}

/// Returns every tensor of the model, layer by layer.
fn tensors(weights: &Weights, storage: Storage) -> Vec<Tensor<'_>> {
    let config = &weights.config;
    let in_layer = |layer: usize| (0..PARAMS.len()).filter(move |i| layer == 0 || PARAMS[*i].per_layer);
    let all = (0..config.layers).flat_map(|layer| in_layer(layer).map(move |i| (i, layer)));
    all.map(|(i, layer)| tensor(weights, i, layer, storage)).collect()
}

fn tensor(weights: &Weights, param: usize, layer: usize, storage: Storage) -> Tensor<'_> {
    let config = &weights.config;
    let (ours, name) = NAMES[param];
    let [rows, columns] = (PARAMS[param].shape)(config);
    // the padding of the vocabulary is not stored
    let rows = if ours == "wte" { config.vocab } else { rows };
    let start = layer * PARAMS[param].elements(config);
    // exactly the tensors with two axes decay
    let is_matrix = PARAMS[param].decays;
    let storage = match storage {
        _ if !is_matrix || ours == "wpe" => Storage::Plain(Element::F32),
        Storage::Q8_0 if !columns.is_multiple_of(q8_0::BLOCK) => Storage::Plain(Element::F16),
        other => other,
    };
    Tensor {
        name: name.replace("{}", &layer.to_string()),
        shape: if is_matrix { vec![rows, columns] } else { vec![columns] },
        storage,
        values: &weights.tensors[param][start..start + rows * columns],
    }
}

fn shape_keys(name: String, config: &Config, elements: usize, storage: Storage) -> Vec<(&'static str, Value)> {
    let text = |text: &str| Value::Text(text.to_owned());
    let size = |size: usize| Value::U32(size as u32);
    let file_type = match storage {
        Storage::Plain(Element::F32) => 0,
        Storage::Plain(Element::F16) => 1,
        Storage::Q8_0 => 7,
        Storage::Plain(Element::Bf16) => 32,
    };
    vec![
        ("general.architecture", text("gpt2")),
        ("general.type", text("model")),
        ("general.name", Value::Text(name)),
        ("general.size_label", Value::Text(size_label(elements))),
        ("general.file_type", Value::U32(file_type)),
        ("general.quantization_version", Value::U32(QUANTIZATION_VERSION)),
        ("gpt2.block_count", size(config.layers)),
        ("gpt2.context_length", size(config.positions)),
        ("gpt2.embedding_length", size(config.channels)),
        ("gpt2.feed_forward_length", size(4 * config.channels)),
        ("gpt2.attention.head_count", size(config.heads)),
        ("gpt2.attention.layer_norm_epsilon", Value::F32(1e-5)),
    ]
}

fn tokenizer_keys(config: &Config, vocabulary: Option<Vocabulary>) -> Vec<(&'static str, Value)> {
    let text = |text: &str| Value::Text(text.to_owned());
    let Some(vocabulary) = vocabulary.and_then(|vocabulary| vocabulary.padded(config.vocab)) else {
        return vec![("gpt2.vocab_size", Value::U32(config.vocab as u32)), ("tokenizer.ggml.model", text("none"))];
    };
    let mut keys = vec![
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", Value::Text(vocabulary.splitting)),
        ("tokenizer.ggml.tokens", Value::Texts(vocabulary.tokens)),
        ("tokenizer.ggml.token_type", Value::I32s(vocabulary.kinds.iter().map(|kind| *kind as i32).collect())),
        ("tokenizer.ggml.merges", Value::Texts(vocabulary.merges)),
    ];
    if let Some(end) = vocabulary.end {
        keys.push(("tokenizer.ggml.bos_token_id", Value::U32(end)));
        keys.push(("tokenizer.ggml.eos_token_id", Value::U32(end)));
    }
    keys
}

/// Returns the number of weights with at least two digits, as `124M`.
fn size_label(elements: usize) -> String {
    let elements = elements as f64;
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")];
    let (unit, letter) = units.into_iter().find(|(unit, _)| elements > *unit).unwrap_or(units[3]);
    let scaled = elements / unit;
    let decimals = if scaled.round() >= 10.0 { 0 } else { 1 };
    format!("{scaled:.decimals$}{letter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_follows_params() {
        let config = Config::new(24, 257, 2, 3, 36).unwrap();
        let weights = Weights::zeros(config);
        for (i, (param, (name, theirs))) in PARAMS.iter().zip(NAMES).enumerate() {
            assert_eq!((param.name, param.per_layer), (name, theirs.contains("{}")));
            let tensor = tensor(&weights, i, 0, Storage::Q8_0);
            let wanted = match (param.shape)(&config) {
                [_, columns] if name == "wte" => vec![257, columns],
                [1, columns] => vec![columns],
                shape => shape.to_vec(),
            };
            assert_eq!((&tensor.shape, tensor.values.len()), (&wanted, wanted.iter().product()), "{name}");
        }
    }

    #[test]
    fn size_labels() {
        for (elements, label) in
            [(124_439_808, "124M"), (1_557_611_200, "1.6B"), (354_823_168, "355M"), (960, "1.0K"), (12_345, "12K")]
        {
            assert_eq!(size_label(elements), label);
        }
    }
}
