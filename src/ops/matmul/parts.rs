//! The number of parts into which a product's depth is cut.
//!
//! The weights' gradients have few tiles and a large depth. Parts of the depth are summed separately into consecutive
//! partial sums, and [`crate::ops::sums`] adds these in order.

use crate::gpu::{Caps, Elem};

use super::choose::{choose, compute_units};
use super::{Algorithm, CoopMatmul, Product};

/// Smallest depth of a part. With less, writing the parts takes longer than computing them.
pub(super) const PART_DEPTH: usize = 512;
/// Subgroups of matrix kernels that an SM or compute unit holds at once. Their invocations have up to 128 registers
/// each.
const RESIDENT_SUBGROUPS: u32 = 16;
/// Operations that a GPU computes in the time in which it moves a byte of memory.
const OPERATIONS_PER_BYTE: f64 = 100.0;

/// Returns a kernel's name with its number of parts replaced by `word`. Kernels that differ only in this number have
/// one text.
#[must_use]
pub fn renamed(name: &str, word: &str) -> String {
    let is_number = |part: &str| part.strip_prefix("parts").is_some_and(|number| number.parse::<u32>().is_ok());
    name.split('.').map(|part| if is_number(part) { word } else { part }).collect::<Vec<_>>().join(".")
}

/// Returns the f32 elements of partial sums that [`super::backward_weight_in_parts`] needs for operands (M, N) and (M,
/// K) of `elem`.
#[must_use]
pub fn partial_sums_len(caps: &Caps, elem: Elem, m: usize, n: usize, k: usize) -> usize {
    let parts = parts(caps, elem, n, k, m);
    if parts > 1 { parts as usize * n * k } else { 0 }
}

/// Returns the number of parts of the depth `k` of an (m, n) result, which is 1 for kernels that do not work in parts.
#[must_use]
pub fn parts(caps: &Caps, elem: Elem, m: usize, n: usize, k: usize) -> u32 {
    parts_of(caps, &choose(caps, Product::BackwardWeight, elem, [m, n, k]), [m, n, k])
}

/// Returns the number of parts for a given algorithm.
///
/// A GPU computes workgroups in waves, and the last wave should not leave units idle. But the traffic of many parts
/// takes time too. The cost of a number of parts is the sum of both. Among the numbers that fill the last wave by 90 %
/// the cheapest is chosen, unless it costs more than one part or 10 % more than the cheapest number of all. Then the
/// latter is chosen.
#[must_use]
pub fn parts_of(caps: &Caps, algorithm: &Algorithm, [m, n, k]: [usize; 3]) -> u32 {
    let (tile_m, tile_n, subgroups) = match *algorithm {
        Algorithm::Coop(CoopMatmul { tile_m, tile_n, grid_m, grid_n, .. }) => (tile_m, tile_n, grid_m * grid_n),
        Algorithm::Tiled { tile_m, tile_n, thread_m, thread_n, .. } => {
            (tile_m, tile_n, (tile_m / thread_m) * (tile_n / thread_n) / 32)
        }
        _ => return 1,
    };
    let tiles = m.div_ceil(tile_m as usize) * n.div_ceil(tile_n as usize);
    let places = (compute_units(caps) * (RESIDENT_SUBGROUPS / subgroups.max(1)).max(1)) as usize;
    let last_wave = |parts: usize| (tiles * parts).saturating_sub(1) % places + 1;
    let is_full = |parts: &usize| last_wave(*parts) * 10 >= places * 9;
    let cost = |parts: usize| {
        let groups = (tiles * parts).max(1);
        let traffic = if parts > 1 { OPERATIONS_PER_BYTE * 4.0 * parts as f64 / k as f64 } else { 0.0 };
        groups.next_multiple_of(places) as f64 / groups as f64 + traffic
    };
    // fewer parts than wanted where the last one would be empty
    let real = |wanted: usize| k.div_ceil(part_depth(algorithm, k as u32, wanted as u32).max(1) as usize).max(1);
    let numbers = (1..=(k / PART_DEPTH).max(1)).map(real);
    let least = |a: &usize, b: &usize| cost(*a).total_cmp(&cost(*b));
    let best = numbers.clone().min_by(least).unwrap_or(1);
    let full = numbers.filter(is_full).min_by(least).filter(|full| cost(*full) <= cost(1).min(1.1 * cost(best)));
    full.unwrap_or(best) as u32
}

/// Returns whether a product in parts can also sum the columns of its first operand. For this an invocation must always
/// fetch the same columns.
#[must_use]
pub fn sums_columns(algorithm: &Algorithm) -> bool {
    let Algorithm::Coop(c) = algorithm else { return false };
    let threads = c.grid_m * c.grid_n * c.units.lanes;
    let in_one_round = c.tile_k / 4 * (c.tile_m / 8) <= threads;
    threads.is_multiple_of(c.tile_m / 4) && (in_one_round || !c.transposed)
}

/// Returns the depth of each of `parts` parts except perhaps the last. It is a multiple of the tile's depth, so that no
/// tile is cut.
pub(super) fn part_depth(algorithm: &Algorithm, k: u32, parts: u32) -> u32 {
    let tile_k = match *algorithm {
        Algorithm::Coop(CoopMatmul { tile_k, .. }) | Algorithm::Tiled { tile_k, .. } => tile_k,
        Algorithm::Rows { .. } => 1,
    };
    k.div_ceil(parts.max(1)).next_multiple_of(tile_k)
}
