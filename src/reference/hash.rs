//! A hash of words and their positions.

/// Computes the last steps of MurmurHash3 with 32 bits (Austin Appleby, public domain).
fn scramble(word: u32) -> u32 {
    let mut hash = word;
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// Adds the hashes of words, which start at position `first`, to `sums`.
pub fn forward(words: &[u32], first: u32, sums: &mut [u32; 2]) {
    for (word, position) in words.iter().zip(0_u32..) {
        for (half, sum) in [0, 0x9e37_79b9_u32].into_iter().zip(sums.iter_mut()) {
            let place = first.wrapping_add(position).wrapping_add(half);
            *sum = sum.wrapping_add(scramble(word ^ scramble(place)));
        }
    }
}
