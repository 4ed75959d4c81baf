//! Which kernel computes a product: a pure function of what the adapter can do and of the shape.

use crate::gpu::kernel::Width;
use crate::gpu::{Caps, Elem, Kernel};

use super::generate::{self, Algorithm, Coop, Epilogue, Product, Spec};
use super::{kernel, parts_kernel};

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

/// Picks the algorithm for an (m, n) result of operands of `elem`.
#[must_use]
pub fn choose(caps: &Caps, product: Product, elem: Elem, m: usize, n: usize) -> Algorithm {
    let busy = m >= 128 && n >= 128 && m.div_ceil(128) as u64 * n.div_ceil(128) as u64 >= BUSY;
    if elem == Elem::F16 {
        let large = coop(caps, true).filter(|_| busy);
        if let Some(coop) = large.or_else(|| coop(caps, false)) {
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
    } else if coop(caps, false).is_none() {
        Some("the adapter's workgroups are too small")
    } else {
        None
    }
}

/// The cooperative kernel's shape on this adapter, if it has room for it.
fn coop(caps: &Caps, large: bool) -> Option<Coop> {
    let native = caps.matrix_edges.iter().copied().filter(|edge| [8, 16].contains(edge)).max()?;
    let edge = caps.emulated_edge.unwrap_or(native).max(native);
    let (tile, grid_m, grid_n) = match large {
        true if caps.software && edge == 8 => return None,
        true => (128, 2, 4),
        // what a software adapter compiles in less than seconds
        false if caps.software && edge == 8 => (32, 2, 2),
        false => (64, 2, 2),
    };
    let (least, lanes) = caps.subgroup_sizes;
    let coop = Coop {
        tile_m: tile,
        tile_n: tile,
        tile_k: 32,
        grid_m,
        grid_n,
        edge,
        native,
        lanes,
        varying: least != lanes,
        unrolled: !caps.software,
        wide_tiles: caps.backend != "Metal",
    };
    let fits = [Product::Forward, Product::BackwardInp, Product::BackwardWeight]
        .iter()
        .all(|product| generate::coop_bytes(*product, &coop) <= caps.max_workgroup_bytes);
    (caps.subgroups && fits && grid_m * grid_n * lanes <= caps.max_invocations).then_some(coop)
}

/// Parts of the depth `k` of an (m, n) result, 1 for kernels that do not work in parts.
#[must_use]
pub fn parts(caps: &Caps, elem: Elem, m: usize, n: usize, k: usize) -> u32 {
    let Algorithm::Coop(coop) = choose(caps, Product::BackwardWeight, elem, m, n) else { return 1 };
    let tiles = m.div_ceil(coop.tile_m as usize) * n.div_ceil(coop.tile_n as usize);
    let wanted = (WHOLE as usize).div_ceil(tiles.max(1));
    let most = k / (PART_TILES * coop.tile_k) as usize;
    let parts = wanted.min(most).max(1) as u32;
    // the last part must not be empty
    let depth = part_depth(&Algorithm::Coop(coop), k as u32, parts);
    (k as u32).div_ceil(depth.max(1)).max(1)
}

/// Depth of each of `parts` parts but perhaps the last: a multiple of the tile's, so that no tile lies in two.
pub(super) fn part_depth(algorithm: &Algorithm, k: u32, parts: u32) -> u32 {
    let tile_k = if let Algorithm::Coop(coop) = algorithm { coop.tile_k } else { 1 };
    k.div_ceil(parts.max(1)).next_multiple_of(tile_k)
}

/// The kernels an adapter may be given.
#[must_use]
pub fn kernels(caps: &Caps) -> Vec<Kernel> {
    let mut list: Vec<Kernel> = [Width::Vec4, Width::Scalar].map(|width| parts_kernel(caps, width)).into();
    for product in [Product::Forward, Product::BackwardInp, Product::BackwardWeight] {
        for elem in [Elem::F32, Elem::F16] {
            for algorithm in algorithms(caps, product, elem) {
                for (epilogue, out, accumulate) in variants(product, elem, matches!(algorithm, Algorithm::Coop(_))) {
                    for (vec4, ragged) in [(true, false), (true, true), (false, true)] {
                        let operands = elem;
                        list.push(kernel(&Spec {
                            product,
                            algorithm,
                            operands,
                            out,
                            epilogue,
                            accumulate,
                            vec4,
                            ragged,
                        }));
                    }
                }
            }
        }
    }
    list
}

fn algorithms(caps: &Caps, product: Product, elem: Elem) -> Vec<Algorithm> {
    match elem {
        Elem::F16 if !caps.f16 => Vec::new(),
        Elem::F16 => {
            let coops: Vec<_> = [true, false].into_iter().filter_map(|large| coop(caps, large)).collect();
            if coops.is_empty() { vec![LARGE, SMALL] } else { coops.into_iter().map(Algorithm::Coop).collect() }
        }
        _ if caps.software => {
            let rows = generate::software_default(product, caps.lanes);
            vec![rows, rows.with_pairs()]
        }
        _ => vec![LARGE, SMALL],
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
        Product::BackwardWeight if coop => vec![(Epilogue::None, Elem::F32, true), (Epilogue::None, Elem::F32, false)],
        Product::BackwardWeight => vec![(Epilogue::None, Elem::F32, true)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(edges: &[u32], lanes: (u32, u32)) -> Caps {
        Caps {
            f16: true,
            subgroups: true,
            matrix_edges: edges.to_vec(),
            subgroup_sizes: lanes,
            max_workgroup_bytes: 48 << 10,
            max_invocations: 1024,
            ..Caps::webgpu_defaults()
        }
    }

    #[test]
    fn f16_runs_on_matrices_where_they_are_and_f32_never() {
        let nvidia = gpu(&[16], (32, 32));
        let chosen = |caps: &Caps, elem| choose(caps, Product::Forward, elem, 65_536, 768);
        assert!(matches!(chosen(&nvidia, Elem::F16), Algorithm::Coop(Coop { edge: 16, tile_m: 128, .. })));
        assert!(matches!(chosen(&nvidia, Elem::F32), Algorithm::Tiled { .. }));
        assert!(matches!(chosen(&gpu(&[], (32, 32)), Elem::F16), Algorithm::Tiled { .. }));
        assert!(without_matrices(&nvidia).is_none() && without_matrices(&gpu(&[], (32, 32))).is_some());
        let narrow = Caps { max_workgroup_bytes: 16 << 10, ..nvidia };
        assert!(matches!(chosen(&narrow, Elem::F16), Algorithm::Coop(Coop { tile_m: 64, .. })));
    }

    #[test]
    fn parts_cover_the_depth_once_and_keep_a_gpu_busy() {
        let caps = gpu(&[16], (32, 32));
        for (m, n, k) in [(768, 768, 65_536), (3072, 768, 65_536), (768, 768, 16_384), (64, 64, 100_003), (65, 7, 31)] {
            let parts = parts(&caps, Elem::F16, m, n, k);
            let algorithm = choose(&caps, Product::BackwardWeight, Elem::F16, m, n);
            let depth = part_depth(&algorithm, k as u32, parts) as usize;
            assert!(depth * parts as usize >= k && depth * (parts as usize - 1) < k, "{m} {n} {k}: {parts} of {depth}");
        }
        assert!(parts(&caps, Elem::F16, 768, 768, 65_536) * 36 >= 256);
        assert_eq!(parts(&caps, Elem::F16, 50_304, 768, 65_536), 1);
        assert_eq!(parts(&caps, Elem::F32, 768, 768, 65_536), 1);
    }
}
