//! Kernels of an adapter's record of `wgpt tune`, which are raced too: a record takes any kernel that was fastest, and a
//! kernel that races may be.

use std::collections::BTreeMap;
use std::sync::Arc;

use wgpt::error::{Error, Result};
use wgpt::gpu::{Caps, Elem};
use wgpt::ops::matmul::{Algorithm, Product, choose};

use crate::case::Case;
use crate::operators::{self, Shape};
use crate::{Row, of_case};

/// Layers whose shapes a product's kernels run at, so that the time stays bounded: one of a block, and the head.
const LAYERS: [&str; 2] = ["qkv", "head"];

/// The algorithms that the record names and this adapter runs, each once for a product and element type.
fn algorithms(caps: &Caps) -> Vec<(Product, Elem, Algorithm)> {
    let mut list = Vec::new();
    for product in [Product::Forward, Product::BackwardInp, Product::BackwardWeight] {
        for elem in [Elem::F32, Elem::F16] {
            let start = format!("matmul {product:?} {elem:?} ");
            let texts = caps.tuned.iter().filter(|(key, _)| key.starts_with(&start)).map(|(_, text)| text);
            for algorithm in texts.filter_map(|text| serde_json::from_str(text).ok()) {
                let found = (product, elem, algorithm);
                if choose::candidates(caps, elem).contains(&algorithm) && !list.contains(&found) {
                    list.push(found);
                }
            }
        }
    }
    list
}

/// Adds a variant of the adapter for each algorithm of its record, which takes it at the bench's shapes, and the cases and
/// rows of that, which come first.
pub fn add(shape: &Shape, cases: &mut Vec<Case>, variants: &mut Vec<Caps>, rows: &mut Vec<Row>) -> Result<()> {
    let own = variants[0].clone();
    let plain = Caps { tuned: Arc::default(), ..own.clone() };
    let mut of_record = Vec::new();
    for (product, elem, algorithm) in algorithms(&own) {
        let text = serde_json::to_string(&algorithm).map_err(|e| Error::Gpu(e.to_string()))?;
        let layers = || operators::layers(shape).into_iter().filter(|layer| LAYERS.contains(&layer.name));
        let key = |layer: &operators::Layer| choose::key(product, elem, layer.shape_of(product));
        let tuned: BTreeMap<String, String> = layers().map(|layer| (key(&layer), text.clone())).collect();
        let caps = Caps { tuned: Arc::new(tuned), ..own.clone() };
        let is_default =
            |layer: &operators::Layer| choose::choose(&plain, product, elem, layer.shape_of(product)) == algorithm;
        for layer in layers() {
            let Some(case) = layer.case(product, elem, &caps) else { continue };
            let mut new = of_case(&case, (cases.len(), variants.len()), &caps)?;
            if !changes(&case, &new, &plain)? && !is_default(&layer) {
                // a product in windows of its operands is of another shape
                continue;
            }
            new.iter_mut().for_each(|row| row.from_record = true);
            of_record.extend(new);
            cases.push(case);
        }
        variants.push(caps);
    }
    rows.splice(0..0, of_record);
    attention(cases, &plain, rows)
}

/// True if rows of a case have kernels that the adapter does not take without its record.
fn changes(case: &Case, rows: &[Row], plain: &Caps) -> Result<bool> {
    let without = of_case(case, (0, 0), plain)?;
    Ok(rows.iter().any(|row| without.iter().all(|other| other.kernel != row.kernel)))
}

/// Marks the rows of attention kernels that the record chose: those that the adapter would not take without it.
fn attention(cases: &[Case], plain: &Caps, rows: &mut [Row]) -> Result<()> {
    for (at, case) in cases.iter().enumerate().filter(|(_, case)| case.operator.starts_with("attention")) {
        let without: Vec<String> = of_case(case, (at, 0), plain)?.into_iter().map(|row| row.kernel).collect();
        let chosen = rows.iter_mut().filter(|row| row.case == at && row.variant == 0);
        chosen.filter(|row| !without.contains(&row.kernel)).for_each(|row| row.from_record = true);
    }
    Ok(())
}
