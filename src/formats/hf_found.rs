//! Compares the tensors found in a folder's files with those of a GPT-2.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::element::Element;
use super::foreign::FROM_NANOGPT;
use super::hf::{CONFIG, data};
use super::hf_config::Described;
use super::hf_files::Files;
use super::hf_tensors::{self, ELEMENT_TYPES, Slot, is_buffer, is_other_head, plain_name, slots};
use super::mapped::Mapped;
use crate::error::{Error, Fault, Result};
use crate::model::params::Weights;

/// The embedding.
const WTE: &str = "wte.weight";
/// The output layer. GPT-2's is `wte`, so separate weights are only compared with it.
const LM_HEAD: &str = "lm_head.weight";
/// The bias of the output layer, which GPT-2 does not have.
const LM_HEAD_BIAS: &str = "lm_head.bias";
/// Number of elements of two heads that are decoded at once for comparison.
const PIECE: usize = 1 << 20;
/// Most names of ignored heads in one notice.
const NAMED: usize = 4;

/// A tensor in a file.
struct Found<'a> {
    /// Path of the file.
    path: &'a Path,
    /// Name in the file's spelling.
    name: String,
    view: TensorView<'a>,
    map: &'a Mapped,
}

impl Found<'_> {
    /// Returns an error about the tensor. `fault` completes the sentence "tensor … ".
    fn error(&self, fault: impl Into<Fault>) -> Error {
        let fault = fault.into();
        data(self.path, Fault { what: format!("tensor `{}` {}", self.name, fault.what), ..fault })
    }

    fn check_element_type(&self) -> Result<()> {
        if ELEMENT_TYPES.contains(&self.view.dtype()) {
            return Ok(());
        }
        let fault = Fault::from("has another element type").expected("F64, F32, F16 or BF16");
        Err(self.error(fault.found(self.view.dtype())))
    }

    /// Decodes elements from `start` on. Ignores values that are not finite; [`Tensors::read`] reports them.
    fn decode(&self, start: usize, out: &mut [f32]) {
        let width = self.view.dtype().bitsize() / 8;
        let bytes = &self.view.data()[start * width..(start + out.len()) * width];
        let _ = hf_tensors::decode(self.view.dtype(), bytes, out);
        self.map.release(bytes);
    }

    fn elements(&self) -> usize {
        self.view.shape().iter().product()
    }
}

/// The tensors of all files by their names without prefixes, without masks and heads of another kind.
pub struct Tensors<'a> {
    files: &'a Files,
    found: HashMap<String, Found<'a>>,
    /// Names of ignored heads.
    heads: BTreeSet<String>,
    /// Whether an `lm_head.weight` takes the place of `wte`.
    only_head: bool,
}

impl<'a> Tensors<'a> {
    /// Reads the headers of all files.
    ///
    /// # Errors
    /// [`Error::Data`] if a file is broken or two tensors are the same parameter.
    pub fn new(files: &'a Files, maps: &'a [Mapped]) -> Result<Self> {
        let mut found: HashMap<String, Found> = HashMap::new();
        let mut heads = BTreeSet::new();
        for (path, map) in files.paths.iter().zip(maps) {
            let broken = |e| {
                data(path, Fault::from(format!("not a whole safetensors file ({e})")).advice("try copying it again"))
            };
            let header = SafeTensors::deserialize(map);
            map.check()?;
            for (name, view) in header.map_err(broken)?.tensors() {
                let key = plain_name(&name);
                if is_other_head(&key) {
                    heads.insert(name);
                    continue;
                }
                if is_buffer(&key) {
                    continue;
                }
                let tensor = Found { path, name, view, map };
                if let Some(duplicate) = found.get(&key) {
                    let fault = Fault::from(format!("duplicates `{}` in {}", duplicate.name, duplicate.path.display()));
                    return Err(tensor.error(fault.expected(format!("one `{key}`"))));
                }
                found.insert(key, tensor);
            }
        }
        let only_head = !found.contains_key(WTE) && found.contains_key(LM_HEAD);
        if only_head && let Some(head) = found.remove(LM_HEAD) {
            found.insert(WTE.to_owned(), head);
        }
        Ok(Self { files, found, heads, only_head })
    }

    /// Checks everything but the values: each tensor of the configuration exists in its shape, and no others exist.
    ///
    /// # Errors
    /// [`Error::Data`] naming the tensor.
    pub fn check(&self, described: &Described) -> Result<()> {
        let config = &described.config;
        let mut known = 0;
        for slot in slots(config) {
            self.check_slot(&slot)?;
            known += 1;
        }
        self.check_head(described.tied)?;
        let extra = |name: &&String| ![LM_HEAD, LM_HEAD_BIAS].contains(&name.as_str());
        if self.found.keys().filter(extra).count() != known {
            let names: BTreeSet<String> = slots(config).map(|slot| slot.name).collect();
            let unknown = self.found.iter().filter(|(key, _)| extra(key) && !names.contains(*key));
            // the first by name, so that the message does not change from run to run
            if let Some((_, found)) = unknown.min_by_key(|(_, found)| &found.name) {
                let expected = format!("a plain GPT-2 of {} layers", config.layers);
                return Err(found.error(Fault::from("is unknown").expected(expected)));
            }
        }
        self.warn_about_heads();
        Ok(())
    }

    fn check_slot(&self, slot: &Slot) -> Result<()> {
        let found = self.get(&slot.name)?;
        let (got, want) = (found.view.shape(), &slot.shape);
        if got != want {
            let advice = match (got, want.as_slice()) {
                ([rows, columns], [_, wanted]) if slot.name == WTE && columns == wanted => {
                    format!("try \"vocab_size\": {rows} in {CONFIG}")
                }
                _ if slot.is_transposed(got) => FROM_NANOGPT.to_owned(),
                _ => String::new(),
            };
            let fault = Fault::from("has another shape").expected(format!("{} by {CONFIG}", shape(want)));
            return Err(found.error(fault.found(shape(got)).advice(advice)));
        }
        found.check_element_type()
    }

    /// Checks that separate weights of the output layer are a copy of `wte`, as in GPT-2: the same numbers, or one of
    /// them rounded to the element type of the other.
    fn check_head(&self, tied: bool) -> Result<()> {
        let wte = self.get(WTE)?;
        let head = self.found.get(LM_HEAD);
        if !tied && head.is_none() {
            let kind = if self.only_head { "embedding" } else { "output layer" };
            let fault = Fault::at("tie_word_embeddings", format!("false, and no {kind} is stored")).expected("true");
            return Err(data(&self.files.dir.join(CONFIG), fault.advice("try another copy")));
        }
        if let Some(head) = head {
            head.check_element_type()?;
            if head.view.shape() != wte.view.shape() {
                let (got, want) = (shape(head.view.shape()), shape(wte.view.shape()));
                return Err(head.error(Fault::from("has another shape").expected(want).found(got)));
            }
            let differing = differing(head, wte);
            head.map.check()?;
            wte.map.check()?;
            if differing > 0 {
                let what = format!("differs from `{}` in {differing} of {} numbers", wte.name, wte.elements());
                return Err(head.error(Fault::from(what).expected("tied embeddings")));
            }
        }
        let Some(bias) = self.found.get(LM_HEAD_BIAS) else { return Ok(()) };
        bias.check_element_type()?;
        let mut values = vec![0.0; bias.elements()];
        bias.decode(0, &mut values);
        bias.map.check()?;
        match values.iter().filter(|x| **x != 0.0).count() {
            0 => Ok(()),
            n => Err(bias.error(Fault::from(format!("has {n} numbers that are not 0")).expected("no bias, as GPT-2"))),
        }
    }

    fn warn_about_heads(&self) {
        if self.heads.is_empty() {
            return;
        }
        let mut names: Vec<&str> = self.heads.iter().map(String::as_str).take(NAMED).collect();
        let more = format!("{} more", self.heads.len().saturating_sub(NAMED));
        if self.heads.len() > NAMED {
            names.push(&more);
        }
        let place = self.files.dir.display();
        log::warn!("{place}: ignored heads that text generation does not use: {}", names.join(", "));
    }

    fn get(&self, name: &str) -> Result<&Found<'a>> {
        self.found.get(name).ok_or_else(|| {
            let (place, by) = self.files.place(name);
            // nanoGPT's models may have no biases at all
            let advice = if name.ends_with(".bias") { FROM_NANOGPT } else { "" };
            let fault = Fault::from(format!("tensor `{name}` is missing")).expected(format!("by {by}"));
            data(place, fault.advice(advice))
        })
    }

    /// Reads a tensor into `weights`.
    ///
    /// # Errors
    /// [`Error::Data`] if a value is not finite, or the file changed meanwhile.
    pub fn read(&self, slot: &Slot, weights: &mut Weights) -> Result<()> {
        let found = self.get(&slot.name)?;
        let (dtype, bytes) = (found.view.dtype(), found.view.data());
        let read = slot.read(weights, |out| found.map.decode(dtype, bytes, out));
        found.map.check()?;
        read.map_err(|(index, value)| {
            found.error(
                Fault::from(format!("holds {value} at index {index}"))
                    .expected("finite numbers")
                    .advice("try another copy"),
            )
        })
    }
}

/// Counts the positions at which two tensors of the same shape differ by more than rounding to an element type.
fn differing(a: &Found, b: &Found) -> usize {
    let [round_a, round_b] = [a, b].map(|found| match found.view.dtype() {
        Dtype::F16 => Element::F16,
        Dtype::BF16 => Element::Bf16,
        _ => Element::F32,
    });
    let same = |x: f32, y: f32| {
        let rounded = || x.is_finite() && y.is_finite() && (round_a.round(y) == x || round_b.round(x) == y);
        // reading a tensor refuses numbers that are not finite
        x == y || x.is_nan() && y.is_nan() || rounded()
    };
    let elements = a.elements();
    let (mut xs, mut ys) = (vec![0.0; PIECE.min(elements)], vec![0.0; PIECE.min(elements)]);
    let pieces = (0..elements).step_by(PIECE).map(|start| {
        let count = PIECE.min(elements - start);
        a.decode(start, &mut xs[..count]);
        b.decode(start, &mut ys[..count]);
        xs[..count].par_iter().zip(&ys[..count]).filter(|(x, y)| !same(**x, **y)).count()
    });
    pieces.sum()
}

/// Returns a shape as text: `(2, 3)`.
fn shape(shape: &[usize]) -> String {
    let axes: Vec<String> = shape.iter().map(usize::to_string).collect();
    format!("({})", axes.join(", "))
}
