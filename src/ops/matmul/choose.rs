//! Which kernel computes a product: a pure function of what the adapter can do, what was measured on it, and the shape.

use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Elem, KernelId};
use crate::ops::matrix_units::Units;

use super::generate::{self, Algorithm, Coop, Epilogue, PRODUCTS, Product, Spec};
use super::{kernel, parts_kernel, row};

/// Two tile shapes for GPUs: the large one moves half the bytes, the small one keeps more workgroups busy. Both fit
/// WebGPU's 16 KiB of workgroup memory and 256 invocations.
const LARGE: Algorithm = Algorithm::Tiled { tile_m: 128, tile_n: 128, tile_k: 8, thread_m: 8, thread_n: 8 };
const SMALL: Algorithm = Algorithm::Tiled { tile_m: 64, tile_n: 64, tile_k: 16, thread_m: 4, thread_n: 4 };

/// Workgroups that keep a large GPU busy.
const BUSY: u64 = 128;
/// Workgroups up to which a product with cooperative matrices is cut into parts of its depth.
const WHOLE: u32 = 256;
/// The least depth of a part, in tiles: less, and writing the parts takes longer than computing them.
const PART_TILES: u32 = 16;

/// How a record of `wgpt tune` names a product of operands of `elem` with an (m, n) result and depth k.
#[must_use]
pub fn key(product: Product, elem: Elem, [m, n, k]: [usize; 3]) -> String {
    format!("matmul {product:?} {elem:?} {m} {n} {k}")
}

/// Picks the algorithm for an (m, n) result of depth k of operands of `elem`: what was found by tuning if the adapter
/// can still run it, else the table's.
#[must_use]
pub fn choose(caps: &Caps, product: Product, elem: Elem, shape: [usize; 3]) -> Algorithm {
    let tuned = caps.tuned.get(&key(product, elem, shape)).and_then(|text| serde_json::from_str(text).ok());
    match tuned {
        Some(algorithm) if runs(caps, elem, &algorithm) => algorithm,
        _ => by_table(caps, product, elem, shape),
    }
}

/// Whether this adapter can run an algorithm on operands of `elem`. Records come from disk.
fn runs(caps: &Caps, elem: Elem, algorithm: &Algorithm) -> bool {
    candidates(caps, elem).contains(algorithm)
}

/// Rows, columns and subgroups along both of kernels with cooperative matrices, with the depths to try: those that are
/// expected to win first, for time may run out. A subgroup with 64x64 sums reads the fewest bytes of workgroup memory an
/// operation and has the fewest registers left for anything else; 96 rows or columns lie between.
///
/// Tiles of 96 divide by 12 in their indices. NVIDIA's compiler has stored to wrong places of workgroup memory where an
/// index came from a division by a number that is no power of two: `wgpt tune` must compare every element of a result, not
/// a sample of them.
const COOPS: [([u32; 4], &[u32]); 18] = [
    ([128, 128, 2, 4], &[16, 32]),
    ([128, 128, 2, 2], &[16, 32]),
    ([96, 128, 2, 2], &[16, 32]),
    ([96, 128, 2, 4], &[16, 32]),
    ([256, 128, 4, 2], &[16, 32]),
    ([128, 256, 2, 4], &[16, 32]),
    ([128, 96, 2, 2], &[16, 32]),
    ([128, 96, 4, 2], &[16, 32]),
    ([128, 128, 4, 2], &[16, 32]),
    ([64, 128, 2, 2], &[32, 16]),
    ([128, 64, 2, 2], &[32, 16]),
    ([256, 64, 4, 2], &[32, 16]),
    ([64, 64, 2, 2], &[32, 64, 16]),
    ([128, 128, 2, 4], &[64]),
    ([128, 128, 2, 2], &[64]),
    ([64, 128, 2, 2], &[64]),
    ([128, 64, 2, 2], &[64]),
    ([32, 32, 2, 2], &[32, 64, 16]),
];

/// Every kernel that may be tried for products of operands of `elem` on this adapter, the most promising first. All of
/// them run there.
#[must_use]
pub fn candidates(caps: &Caps, elem: Elem) -> Vec<Algorithm> {
    let mut list = Vec::new();
    if elem == Elem::F16 {
        for ([tile_m, tile_n, grid_m, grid_n], depths) in COOPS {
            let tiles = depths.iter().map(|&tile_k| Tile { tile_m, tile_n, tile_k, grid_m, grid_n });
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
        list.extend([LARGE, SMALL]);
    }
    list
}

/// The algorithms that a record of `wgpt tune` names and this adapter runs, each once for a product and element type.
#[must_use]
pub fn algorithms(caps: &Caps) -> Vec<(Product, Elem, Algorithm)> {
    let mut list = Vec::new();
    for product in PRODUCTS {
        for elem in [Elem::F32, Elem::F16] {
            let start = format!("matmul {product:?} {elem:?} ");
            let texts = caps.tuned.iter().filter(|(key, _)| key.starts_with(&start)).map(|(_, text)| text);
            for algorithm in texts.filter_map(|text| serde_json::from_str(text).ok()) {
                let found = (product, elem, algorithm);
                if runs(caps, elem, &algorithm) && !list.contains(&found) {
                    list.push(found);
                }
            }
        }
    }
    list
}

/// The plain kernels with cooperative matrices that `wgpt tune` tries on this adapter, of whole tiles and 16 bytes an
/// access. Tests of translation read them beside [`kernels`]; they cannot afford all ends of all candidates.
#[must_use]
pub fn tried_kernels(caps: &Caps) -> Vec<KernelId> {
    let coops = candidates(caps, Elem::F16).into_iter().filter(|algorithm| matches!(algorithm, Algorithm::Coop(_)));
    coops
        .flat_map(|algorithm| PRODUCTS.map(|product| (algorithm, product)))
        .map(|(algorithm, product)| {
            let (epilogue, out, accumulate) = variants(product, Elem::F16, true)[0];
            let (operands, width, ragged) = (Elem::F16, Width::Vec8, false);
            kernel(&Spec { product, algorithm, operands, out, epilogue, accumulate, width, ragged })
        })
        .collect()
}

fn by_table(caps: &Caps, product: Product, elem: Elem, [m, n, k]: [usize; 3]) -> Algorithm {
    // a product that works in parts has as many tiles more
    let in_parts = product == Product::BackwardWeight && elem == Elem::F16;
    let parts = if in_parts { k / (PART_TILES * LARGE_COOP.tile_k) as usize } else { 1 };
    let tiles = m.div_ceil(128) as u64 * n.div_ceil(128) as u64;
    let busy = m >= 128 && n >= 128 && tiles * parts.max(1) as u64 >= BUSY;
    if elem == Elem::F16 {
        let large = coop(caps, LARGE_COOP).filter(|_| busy && !by_compiler(caps));
        if let Some(coop) = large.or_else(|| coop(caps, small_coop(caps))) {
            return Algorithm::Coop(coop);
        }
    } else if caps.software {
        let rows = generate::software_default(product, caps.lanes);
        return if caps.int64 { rows.with_pairs() } else { rows };
    }
    if busy { LARGE } else { SMALL }
}

/// Why products of f16 do not run on matrix units, or `None` if they do.
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

/// Tiles and subgroups of a kernel with cooperative matrices.
#[derive(Clone, Copy)]
struct Tile {
    tile_m: u32,
    tile_n: u32,
    tile_k: u32,
    grid_m: u32,
    grid_n: u32,
}

/// For results of many tiles, and for others; 32 KiB and 16 KiB of workgroup memory hold them.
const LARGE_COOP: Tile = Tile { tile_m: 128, tile_n: 128, tile_k: 32, grid_m: 2, grid_n: 4 };
const SMALL_COOP: Tile = Tile { tile_m: 64, tile_n: 64, tile_k: 32, grid_m: 2, grid_n: 2 };
/// What a software adapter compiles in a second or two.
const TINY_COOP: Tile = Tile { tile_m: 32, tile_n: 32, tile_k: 32, grid_m: 2, grid_n: 2 };

/// Whether the time that the driver takes to compile a kernel decides its size.
fn by_compiler(caps: &Caps) -> bool {
    caps.software && caps.emulated_edge.is_none()
}

fn small_coop(caps: &Caps) -> Tile {
    if by_compiler(caps) { TINY_COOP } else { SMALL_COOP }
}

/// The kernel of a shape on this adapter, if it has room for it.
fn coop(caps: &Caps, tile: Tile) -> Option<Coop> {
    let units = Units::of(caps)?;
    let Tile { tile_m, tile_n, tile_k, grid_m, grid_n } = tile;
    let coop = Coop { tile_m, tile_n, tile_k, grid_m, grid_n, units, unrolled: !caps.software };
    let whole = tile_m.is_multiple_of(grid_m * units.edge) && tile_n.is_multiple_of(grid_n * units.edge);
    let fits = PRODUCTS.iter().all(|product| generate::coop_bytes(*product, &coop) <= caps.max_workgroup_bytes);
    (caps.subgroups && whole && fits && grid_m * grid_n * units.lanes <= caps.max_invocations).then_some(coop)
}

/// Parts of the depth `k` of an (m, n) result, 1 for kernels that do not work in parts.
#[must_use]
pub fn parts(caps: &Caps, elem: Elem, m: usize, n: usize, k: usize) -> u32 {
    parts_of(&choose(caps, Product::BackwardWeight, elem, [m, n, k]), m, n, k)
}

/// [`parts`] for a given algorithm.
#[must_use]
pub fn parts_of(algorithm: &Algorithm, m: usize, n: usize, k: usize) -> u32 {
    let Algorithm::Coop(coop) = algorithm else { return 1 };
    let tiles = m.div_ceil(coop.tile_m as usize) * n.div_ceil(coop.tile_n as usize);
    let wanted = (WHOLE as usize).div_ceil(tiles.max(1));
    let most = k / (PART_TILES * coop.tile_k) as usize;
    let parts = wanted.min(most).max(1) as u32;
    // the last part must not be empty
    let depth = part_depth(algorithm, k as u32, parts);
    (k as u32).div_ceil(depth.max(1)).max(1)
}

/// Whether a product in parts can sum the columns of its first operand on the way: if an invocation fetches the same
/// columns throughout.
#[must_use]
pub fn sums_columns(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Coop(c) if (c.grid_m * c.grid_n * c.units.lanes).is_multiple_of(c.tile_m / 4))
}

/// Depth of each of `parts` parts but perhaps the last: a multiple of the tile's, so that no tile lies in two.
pub(super) fn part_depth(algorithm: &Algorithm, k: u32, parts: u32) -> u32 {
    let tile_k = if let Algorithm::Coop(coop) = algorithm { coop.tile_k } else { 1 };
    k.div_ceil(parts.max(1)).next_multiple_of(tile_k)
}

/// The kernels an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<KernelId> {
    let mut list: Vec<KernelId> = [Width::Vec4, Width::Scalar].map(|width| parts_kernel(caps, width)).into();
    list.extend(row::kernels(caps));
    for product in PRODUCTS {
        for elem in [Elem::F32, Elem::F16] {
            for algorithm in tabled(caps, product, elem) {
                let coop = matches!(algorithm, Algorithm::Coop(_));
                for (epilogue, out, accumulate) in variants(product, elem, coop) {
                    for &(width, ragged) in kinds(coop) {
                        let operands = elem;
                        list.push(kernel(&Spec {
                            product,
                            algorithm,
                            operands,
                            out,
                            epilogue,
                            accumulate,
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

/// The algorithms that [`by_table`] may choose.
fn tabled(caps: &Caps, product: Product, elem: Elem) -> Vec<Algorithm> {
    match elem {
        Elem::F16 if !caps.f16 => Vec::new(),
        Elem::F16 => {
            let tiles = if by_compiler(caps) { vec![TINY_COOP] } else { vec![LARGE_COOP, SMALL_COOP] };
            let coops: Vec<_> = tiles.into_iter().filter_map(|tile| coop(caps, tile)).collect();
            if coops.is_empty() { vec![LARGE, SMALL] } else { coops.into_iter().map(Algorithm::Coop).collect() }
        }
        _ if caps.software => {
            let rows = generate::software_default(product, caps.lanes);
            vec![rows, rows.with_pairs()]
        }
        _ => vec![LARGE, SMALL],
    }
}

/// The (width, ragged) that `dispatch` chooses from.
fn kinds(coop: bool) -> &'static [(Width, bool)] {
    if coop {
        &[(Width::Vec8, false), (Width::Vec8, true), (Width::Vec4, true), (Width::Scalar, true)]
    } else {
        &[(Width::Vec4, false), (Width::Scalar, true)]
    }
}

/// The (epilogue, result, accumulate) that a product occurs with.
fn variants(product: Product, elem: Elem, coop: bool) -> Vec<(Epilogue, Elem, bool)> {
    match product {
        Product::Forward => vec![
            (Epilogue::None, elem, false),
            (Epilogue::Bias, elem, false),
            (Epilogue::BiasGelu, elem, false),
            (Epilogue::BiasResidual, Elem::F32, false),
            (Epilogue::None, Elem::F32, false),
        ],
        Product::BackwardInp => vec![
            (Epilogue::None, elem, false),
            (Epilogue::None, elem, true),
            (Epilogue::GeluBackward, elem, false),
            (Epilogue::GeluBackward, elem, true),
        ],
        Product::BackwardWeight if coop => vec![
            (Epilogue::None, Elem::F32, true),
            (Epilogue::None, Elem::F32, false),
            (Epilogue::ColumnSums, Elem::F32, false),
        ],
        Product::BackwardWeight => vec![(Epilogue::None, Elem::F32, true)],
    }
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
