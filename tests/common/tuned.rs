//! Records of `wgpt tune` that are written by hand.

use std::collections::BTreeMap;
use std::path::Path;

use wgpt::gpu::{Caps, Elem};
use wgpt::measure::tune::{self, Record};
use wgpt::ops::matmul::{Algorithm, Product, choose};

/// Puts a hand-written record for the adapter of these figures into a cache folder.
pub fn write(cache: &Path, adapter: &str, driver: &str, kernels: BTreeMap<String, String>) {
    let caps =
        Caps { name: adapter.into(), driver: driver.into(), backend: "Vulkan".into(), ..Caps::webgpu_defaults() };
    let path = tune::path(&caps).expect("a cache folder");
    let path = cache.join("tune").join(path.file_name().expect("a file"));
    let (adapter, driver) = (adapter.into(), driver.into());
    let record = Record { version: env!("CARGO_PKG_VERSION").into(), adapter, driver, kernels };
    std::fs::create_dir_all(cache.join("tune")).expect("folder");
    std::fs::write(path, serde_json::to_string(&record).expect("JSON")).expect("record");
}

/// A kernel that this software adapter can run and does not take by itself: its name lacks `.pairs`.
pub fn other_rows(adapter: &str) -> Option<Algorithm> {
    let bits: u32 = adapter.split(", ").find_map(|part| part.strip_suffix(" bits)")?.parse().ok())?;
    let caps = Caps { software: true, lanes: bits / 32, ..Caps::webgpu_defaults() };
    choose::candidates(&caps, Elem::F32).into_iter().find(|a| matches!(a, Algorithm::Rows { pairs: false, .. }))
}

/// Returns a record of one product of f32.
pub fn record_of(algorithm: &Algorithm, shape: [usize; 3]) -> BTreeMap<String, String> {
    let text = serde_json::to_string(algorithm).expect("JSON");
    BTreeMap::from([(choose::key(Product::Forward, Elem::F32, shape), text)])
}
