//! The choice of the kernel for a product: a pure function of the adapter's capabilities, its tuning records, and the
//! shape.

use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Elem, KernelId, Vendor};
use crate::ops::matrix_units::{MatrixUnits, gathers};

use super::generate::{self, Algorithm, CoopMatmul, Epilogue, PRODUCTS, Product, Spec};
use super::parts::PART_DEPTH;
use super::{kernel, row};

/// Tile sizes for GPUs. The large tile moves half the bytes; the small one keeps more workgroups busy. Tuning also
/// tries the small one with twice the invocations. All fit WebGPU's limits of 16 KiB of workgroup memory and 256
/// invocations.
const LARGE: [u32; 5] = [128, 128, 8, 8, 8];
const SMALL: [u32; 5] = [64, 64, 16, 8, 4];
const SMALL_OF_MANY: [u32; 5] = [64, 64, 16, 4, 4];

/// Returns the tiled algorithm with these rows, columns and depth of a tile, and rows and columns of an invocation.
fn tiled(caps: &Caps, [tile_m, tile_n, tile_k, thread_m, thread_n]: [u32; 5]) -> Algorithm {
    Algorithm::Tiled { tile_m, tile_n, tile_k, thread_m, thread_n, peeled: caps.vendor == Vendor::Nvidia }
}

/// Assumed SMs or compute units of a GPU whose driver does not report them: discrete, integrated.
const UNITS: [u32; 2] = [128, 16];

/// Returns the key in a record of `wgpt tune` for a product of operands of `elem` with an (m, n) result and depth k.
#[must_use]
pub fn key(product: Product, elem: Elem, [m, n, k]: [usize; 3]) -> String {
    format!("matmul {product:?} {elem:?} {m} {n} {k}")
}

/// Chooses the algorithm for operands of `elem` with an (m, n) result and depth k: the one that tuning found if the
/// adapter can still run it, else the table's.
#[must_use]
pub fn choose(caps: &Caps, product: Product, elem: Elem, shape: [usize; 3]) -> Algorithm {
    let text = caps.tuned.get(&key(product, elem, shape));
    let tuned = text.and_then(|text| serde_json::from_str(text).ok());
    let tuned = tuned.and_then(|algorithm| candidate_of(caps, elem, &algorithm));
    tuned.unwrap_or_else(|| by_table(caps, product, elem, shape))
}

/// Returns the candidate with an algorithm's sizes, if this adapter can run it on operands of `elem`. The check is
/// needed because records come from disk and perhaps from earlier versions.
fn candidate_of(caps: &Caps, elem: Elem, algorithm: &Algorithm) -> Option<Algorithm> {
    candidates(caps, elem).into_iter().find(|candidate| candidate.has_sizes_of(algorithm))
}

/// Rows, columns and subgroups along both, and the (depth, buffers) to try.
type Shapes = ([u32; 4], &'static [(u32, u32)]);

/// Sizes of kernels with cooperative matrices that tuning tries. Those that are expected to win come first, because
/// time may run out. A subgroup with 64x64 sums reads the fewest bytes of workgroup memory per operation and has the
/// fewest registers left for anything else; 96 rows or columns are a compromise. Two buffers save a barrier per tile
/// and take twice the workgroup memory.
const COOPS: [Shapes; 18] = [
    ([128, 128, 2, 4], &[(32, 1), (16, 2), (16, 1), (32, 2)]),
    ([256, 128, 4, 2], &[(32, 1), (16, 2), (16, 1)]),
    ([128, 128, 2, 2], &[(32, 1), (16, 2), (16, 1), (32, 2)]),
    ([128, 256, 2, 4], &[(32, 1), (16, 2), (16, 1)]),
    ([96, 128, 2, 2], &[(16, 1), (32, 1)]),
    ([96, 128, 2, 4], &[(16, 1), (32, 1)]),
    ([128, 96, 2, 2], &[(16, 1), (32, 1)]),
    ([128, 96, 4, 2], &[(16, 1), (32, 1)]),
    ([128, 128, 4, 2], &[(16, 1), (32, 1)]),
    ([64, 128, 2, 2], &[(32, 1), (16, 1), (16, 2)]),
    ([128, 64, 2, 2], &[(32, 1), (16, 1), (16, 2)]),
    ([256, 64, 4, 2], &[(32, 1), (16, 1)]),
    ([64, 64, 2, 2], &[(32, 1), (32, 2), (64, 1), (16, 1)]),
    ([128, 128, 2, 4], &[(64, 1)]),
    ([128, 128, 2, 2], &[(64, 1)]),
    ([64, 128, 2, 2], &[(64, 1)]),
    ([128, 64, 2, 2], &[(64, 1)]),
    ([32, 32, 2, 2], &[(32, 1), (64, 1), (16, 1), (16, 2)]),
];

/// Returns every algorithm that tuning may try for products of operands of `elem` on this adapter, the most promising
/// first. The adapter can run all of them.
#[must_use]
pub fn candidates(caps: &Caps, elem: Elem) -> Vec<Algorithm> {
    let mut list = Vec::new();
    if elem == Elem::F16 {
        for ([tile_m, tile_n, grid_m, grid_n], depths) in COOPS {
            let tiles =
                depths.iter().map(|&(tile_k, buffers)| CoopSizes { tile_m, tile_n, tile_k, grid_m, grid_n, buffers });
            list.extend(tiles.filter_map(|tile| coop(caps, tile)).map(Algorithm::Coop));
        }
    }
    let rows = caps.software && elem == Elem::F32;
    for (rows, columns, unroll) in [(16, 12, 4), (32, 8, 4), (32, 8, 8), (48, 8, 8), (64, 8, 8)].iter().filter(|_| rows)
    {
        for pairs in [false, true].into_iter().filter(|pairs| caps.int64 || !pairs) {
            let (rows, columns, unroll) = (*rows, *columns, *unroll);
            list.push(Algorithm::Rows { width: caps.lanes.clamp(4, 16), rows, columns, unroll, pairs });
        }
    }
    if !caps.software || elem == Elem::F16 {
        list.extend([LARGE, SMALL, SMALL_OF_MANY].map(|sizes| tiled(caps, sizes)));
    }
    list
}

/// Returns the algorithms in the adapter's tuning record that it can run, each once per product and element type.
#[must_use]
pub fn algorithms(caps: &Caps) -> Vec<(Product, Elem, Algorithm)> {
    let mut list = Vec::new();
    for product in PRODUCTS {
        for elem in [Elem::F32, Elem::F16] {
            let start = format!("matmul {product:?} {elem:?} ");
            let texts = caps.tuned.iter().filter(|(key, _)| key.starts_with(&start)).map(|(_, text)| text);
            for algorithm in texts.filter_map(|text| serde_json::from_str(text).ok()) {
                let found = candidate_of(caps, elem, &algorithm).map(|algorithm| (product, elem, algorithm));
                list.extend(found.filter(|found| !list.contains(found)));
            }
        }
    }
    list
}

/// Returns the kernels with cooperative matrices that `wgpt tune` tries on this adapter, each without an epilogue, for
/// whole tiles and with 16 bytes per access. Translation tests read them in addition to [`kernels`], because reading
/// all epilogues of all candidates would take too long.
#[must_use]
pub fn tried_kernels(caps: &Caps) -> Vec<KernelId> {
    let coops = candidates(caps, Elem::F16).into_iter().filter(|algorithm| matches!(algorithm, Algorithm::Coop(_)));
    coops
        .flat_map(|algorithm| PRODUCTS.map(|product| (algorithm, product)))
        .map(|(algorithm, product)| {
            let (epilogue, out, accumulate, parts) = variants(product, Elem::F16, &algorithm)[0];
            let (operands, width, ragged) = (Elem::F16, Width::Vec8, false);
            kernel(&Spec { product, algorithm, operands, out, epilogue, accumulate, parts, width, ragged })
        })
        .collect()
}

fn by_table(caps: &Caps, product: Product, elem: Elem, [m, n, k]: [usize; 3]) -> Algorithm {
    // a product in parts has that many times as many tiles
    let parts = if product == Product::BackwardWeight { k / PART_DEPTH } else { 1 };
    let tiles = m.div_ceil(128) as u64 * n.div_ceil(128) as u64;
    let busy = m >= 128 && n >= 128 && tiles * parts.max(1) as u64 >= u64::from(compute_units(caps));
    if elem == Elem::F16 && !is_faster_without_matrices(caps) {
        let large = coop(caps, LARGE_COOP).filter(|_| busy && !by_compiler(caps));
        if let Some(coop) = large.or_else(|| coop(caps, small_coop(caps))) {
            return Algorithm::Coop(coop);
        }
    } else if elem == Elem::F32 && caps.software {
        let rows = generate::software_default(product, caps.lanes);
        return if caps.int64 { rows.with_pairs() } else { rows };
    }
    tiled(caps, if busy { LARGE } else { SMALL })
}

/// Returns the SMs or compute units, or a guess where the driver does not report them.
pub(super) fn compute_units(caps: &Caps) -> u32 {
    caps.compute_units.unwrap_or(UNITS[usize::from(caps.integrated)])
}

/// Returns whether the GPU is Intel's Alchemist, on which llama.cpp was slower with matrix units than without. Tuning
/// tries them nevertheless.
#[must_use]
pub fn is_faster_without_matrices(caps: &Caps) -> bool {
    let name = caps.name.to_lowercase();
    let names = ["(dg2)", "(ats-m)", "arc(tm) a", "arc(tm) pro a", "arc a", "arc pro a", "gpu flex"];
    caps.vendor == Vendor::Intel && names.iter().any(|part| name.contains(part))
}

/// Returns why products of f16 cannot run on matrix units, or `None` if they can.
#[must_use]
pub fn without_matrices(caps: &Caps) -> Option<&'static str> {
    if caps.matrix_edges.is_empty() {
        Some("the adapter offers no square f16 matrices with f32 sums")
    } else if !caps.subgroups {
        Some("the adapter has no subgroups")
    } else if coop(caps, small_coop(caps)).is_none() {
        Some("the adapter's workgroups are too small")
    } else {
        None
    }
}

/// Sizes of tiles and of the grid of subgroups in a kernel with cooperative matrices.
#[derive(Clone, Copy)]
struct CoopSizes {
    tile_m: u32,
    tile_n: u32,
    tile_k: u32,
    grid_m: u32,
    grid_n: u32,
    buffers: u32,
}

/// Sizes for results of many tiles, which need 32 KiB of workgroup memory, and for other results, which need 16 KiB.
const LARGE_COOP: CoopSizes = CoopSizes { tile_m: 128, tile_n: 128, tile_k: 32, grid_m: 2, grid_n: 4, buffers: 1 };
const SMALL_COOP: CoopSizes = CoopSizes { tile_m: 64, tile_n: 64, tile_k: 32, grid_m: 2, grid_n: 2, buffers: 1 };
/// Sizes for software adapters, which compile them in a second or two.
const TINY_COOP: CoopSizes = CoopSizes { tile_m: 32, tile_n: 32, tile_k: 32, grid_m: 2, grid_n: 2, buffers: 1 };

/// Returns whether the driver's compile time limits the size of a kernel.
fn by_compiler(caps: &Caps) -> bool {
    caps.software && caps.emulated_edge.is_none()
}

fn small_coop(caps: &Caps) -> CoopSizes {
    if by_compiler(caps) { TINY_COOP } else { SMALL_COOP }
}

/// Returns the kernel with these sizes, if the adapter has matrix units and enough workgroup memory.
fn coop(caps: &Caps, tile: CoopSizes) -> Option<CoopMatmul> {
    let units = MatrixUnits::of(caps)?;
    let CoopSizes { tile_m, tile_n, tile_k, grid_m, grid_n, buffers } = tile;
    let (transposed, unrolled, peeled) = (gathers(caps), !caps.software, caps.vendor == Vendor::Nvidia);
    let coop = CoopMatmul { tile_m, tile_n, tile_k, grid_m, grid_n, units, buffers, transposed, unrolled, peeled };
    let whole = tile_m.is_multiple_of(grid_m * units.edge) && tile_n.is_multiple_of(grid_n * units.edge);
    let fits = PRODUCTS.iter().all(|product| generate::coop_bytes(*product, &coop) <= caps.max_workgroup_bytes);
    (caps.subgroups && whole && fits && grid_m * grid_n * units.lanes <= caps.max_invocations).then_some(coop)
}

/// Returns the kernels that an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    let mut list = row::kernels(caps);
    for product in PRODUCTS {
        for elem in [Elem::F32, Elem::F16] {
            for algorithm in tabled(caps, product, elem) {
                for (epilogue, out, accumulate, parts) in variants(product, elem, &algorithm) {
                    for &(width, ragged) in kinds(&algorithm) {
                        let operands = elem;
                        list.push(kernel(&Spec {
                            product,
                            algorithm,
                            operands,
                            out,
                            epilogue,
                            accumulate,
                            parts,
                            width,
                            ragged,
                        }));
                    }
                }
            }
        }
    }
    list
}

/// Returns the algorithms that [`by_table`] may choose.
fn tabled(caps: &Caps, product: Product, elem: Elem) -> Vec<Algorithm> {
    let plain = || [LARGE, SMALL].map(|sizes| tiled(caps, sizes)).into();
    match elem {
        Elem::F16 if !caps.f16 => Vec::new(),
        Elem::F16 => {
            let tiles: &[CoopSizes] = if is_faster_without_matrices(caps) {
                &[]
            } else if by_compiler(caps) {
                &[TINY_COOP]
            } else {
                &[LARGE_COOP, SMALL_COOP]
            };
            let coops: Vec<_> = tiles.iter().copied().filter_map(|tile| coop(caps, tile)).collect();
            if coops.is_empty() { plain() } else { coops.into_iter().map(Algorithm::Coop).collect() }
        }
        _ if caps.software => {
            let rows = generate::software_default(product, caps.lanes);
            vec![rows, rows.with_pairs()]
        }
        _ => plain(),
    }
}

/// Returns the (width, ragged) from which `dispatch` chooses.
fn kinds(algorithm: &Algorithm) -> &'static [(Width, bool)] {
    match algorithm {
        Algorithm::Coop(_) => &[(Width::Vec8, false), (Width::Vec8, true), (Width::Vec4, true), (Width::Scalar, true)],
        Algorithm::Tiled { .. } => &[(Width::Vec4, false), (Width::Vec4, true), (Width::Scalar, true)],
        Algorithm::Rows { .. } => &[(Width::Vec4, false), (Width::Scalar, true)],
    }
}

/// Returns the (epilogue, result type, accumulate, parts) with which a product occurs. Every number of parts above 1
/// has the same text.
fn variants(product: Product, elem: Elem, algorithm: &Algorithm) -> Vec<(Epilogue, Elem, bool, u32)> {
    match product {
        Product::Forward => vec![
            (Epilogue::None, elem, false, 1),
            (Epilogue::Bias, elem, false, 1),
            (Epilogue::BiasGelu, elem, false, 1),
            (Epilogue::BiasResidual, Elem::F32, false, 1),
            (Epilogue::None, Elem::F32, false, 1),
        ],
        Product::BackwardInp => vec![
            (Epilogue::None, elem, false, 1),
            (Epilogue::None, elem, true, 1),
            (Epilogue::GeluBackward, elem, false, 1),
            (Epilogue::GeluBackward, elem, true, 1),
        ],
        Product::BackwardWeight => {
            let mut list = vec![(Epilogue::None, Elem::F32, true, 1), (Epilogue::None, Elem::F32, false, 1)];
            if !matches!(algorithm, Algorithm::Rows { .. }) {
                list.push((Epilogue::None, Elem::F32, false, 2));
            }
            if matches!(algorithm, Algorithm::Coop(_)) {
                list.push((Epilogue::ColumnSums, Elem::F32, false, 2));
            }
            list
        }
    }
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
