//! Adds the kernels of an adapter's record of `wgpt tune` to the races: a record takes whichever kernel was fastest,
//! which may be one with a data race.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use wgpt::cases::attention::{self as heads, bench as bench_heads};
use wgpt::cases::matmul::{Layer, bench, layers};
use wgpt::cases::{BenchShape, Case, STORED_F16, STORED_F32};
use wgpt::error::{Error, Result};
use wgpt::gpu::{Caps, Elem, Gpu};
use wgpt::ops::attention::{self, AttentionKernel};
use wgpt::ops::matmul::choose;

use crate::{Row, of_case};

/// Layers at whose shapes the kernels of products run, so that the time stays bounded: one of a block, and the head.
const LAYERS: [&str; 2] = ["qkv", "head"];

/// Makes a case for an adapter that uses a kernel; `None` if the bench has no such case.
type MakeCase = dyn Fn(&Caps) -> Option<Case>;

/// A kernel of the record at one of the bench's shapes.
struct Trial {
    /// The record's key for that shape.
    key: String,
    /// The kernel as JSON.
    kernel: String,
    /// Whether the adapter uses it there without a record.
    is_default: bool,
    case: Box<MakeCase>,
}

/// Adds, for each kernel of the adapter's record, a variant of the adapter that uses it at the bench's shapes, with its
/// cases and rows. Their rows come first. Returns a line for each kernel that cannot be raced.
pub fn add(
    gpu: &Gpu,
    shape: &BenchShape,
    cases: &mut Vec<Case>,
    variants: &mut Vec<Caps>,
    rows: &mut Vec<Row>,
) -> Result<Vec<String>> {
    let own = variants[0].clone();
    let plain = Caps { tuned: Arc::default(), ..own.clone() };
    let (mut of_record, mut left_out) = (Vec::new(), Vec::new());
    for trial in products(shape, &own, &plain)?.into_iter().chain(attentions(shape, &own, &plain)) {
        let tuned = BTreeMap::from([(trial.key.clone(), trial.kernel.clone())]);
        let caps = Caps { tuned: Arc::new(tuned), ..own.clone() };
        let Some(case) = (trial.case)(&caps) else { continue };
        let mut new = of_case(gpu, &case, (cases.len(), variants.len()), &caps)?;
        let without = of_case(gpu, &case, (0, 0), &plain)?;
        let differs = |row: &Row| without.iter().all(|other| other.kernel != row.kernel);
        let changed = new.iter().any(differs);
        if !changed && !trial.is_default {
            // a product that is cut into windows has another shape, and blocks may be for another adapter
            left_out.push(format!("{} is not used for {}: {}", trial.key, case.what, trial.kernel));
            continue;
        }
        new.iter_mut().for_each(|row| row.from_record = !changed || differs(row));
        of_record.extend(new);
        cases.push(case);
        variants.push(caps);
    }
    rows.splice(0..0, of_record);
    Ok(left_out)
}

/// Returns the record's products: each algorithm once per product and element type, at one layer's shape and the
/// head's.
fn products(shape: &BenchShape, own: &Caps, plain: &Caps) -> Result<Vec<Trial>> {
    let mut trials = Vec::new();
    for (product, elem, algorithm) in choose::algorithms(own) {
        let kernel = serde_json::to_string(&algorithm).map_err(|e| Error::gpu(e.to_string()))?;
        let stored = if elem == Elem::F16 { STORED_F16 } else { STORED_F32 };
        let wanted = |layer: &Layer| LAYERS.contains(&layer.name);
        for layer in layers(shape, own, stored).into_iter().filter(wanted) {
            let sizes = layer.shape_of(product);
            trials.push(Trial {
                key: choose::key(product, elem, sizes),
                kernel: kernel.clone(),
                is_default: choose::choose(plain, product, elem, sizes) == algorithm,
                case: Box::new(move |caps| bench(layer, product, caps)),
            });
        }
    }
    Ok(trials)
}

/// Returns the record's attention kernels for heads of the bench's size, whatever number of positions they were found
/// for.
fn attentions(shape: &BenchShape, own: &Caps, plain: &Caps) -> Vec<Trial> {
    let (head_size, positions) = (shape.config.head_size(), shape.context);
    let mut trials = Vec::new();
    for entry in AttentionKernel::ALL {
        // a key ends in the number of positions
        let any = attention::key(entry, head_size, 0);
        let start = any.trim_end_matches('0');
        let blocks = own.tuned.iter().filter(|(key, _)| key.starts_with(start)).map(|(_, block)| block.clone());
        for kernel in blocks.collect::<BTreeSet<String>>() {
            let block = serde_json::from_str(&kernel).ok();
            let sizes = [shape.batch, positions, shape.config.heads, head_size];
            trials.push(Trial {
                key: attention::key(entry, head_size, positions),
                kernel,
                is_default: block.is_some() && attention::choose(plain, entry, head_size, positions) == block,
                case: Box::new(move |caps| {
                    let make = if entry == AttentionKernel::Forward { heads::forward } else { heads::backward };
                    caps.f16.then(|| make(bench_heads(STORED_F16, sizes)))
                }),
            });
        }
    }
    trials
}
