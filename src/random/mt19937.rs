//! The Mersenne Twister MT19937, 32-bit: the generator of torch's and llm.c's initial weights and shuffles.
//!
//! Source: Matsumoto and Nishimura, "Mersenne Twister", 1998; the streams are those of llm.c's `rand.h`.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Words of state.
const N: usize = 624;
/// Distance between the two words from which a new one is made.
const M: usize = 397;

/// The generator. Two generators with equal state give equal streams.
#[derive(Clone, PartialEq, Eq)]
pub struct Mt19937 {
    state: [u32; N],
    /// Words of the current block already handed out: 0 to [`N`].
    next: usize,
}

/// A generator's state as plain numbers, for a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mt19937State {
    /// The 624 words of the current block, before tempering.
    pub words: Vec<u32>,
    /// Words of it already handed out, 0 to 624.
    pub next: u32,
}

impl std::fmt::Debug for Mt19937 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mt19937").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Mt19937 {
    /// Starts the stream of a seed. `torch.manual_seed(seed)` starts the same stream.
    #[must_use]
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; N];
        for i in 1..N {
            let previous = state[i - 1];
            // i is below 624, so the cast is exact
            state[i] = 1_812_433_253_u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: N }
    }

    /// Returns the next number, uniform over all of `u32`.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.refill();
        }
        let word = self.state[self.next];
        self.next += 1;
        temper(word)
    }

    /// Overwrites `out` with the next `out.len()` numbers, the same as that many calls of [`next_u32`](Self::next_u32).
    /// Works a block at a time because initial weights need 10⁸ numbers.
    pub fn fill_u32(&mut self, mut out: &mut [u32]) {
        while !out.is_empty() {
            if self.next == N {
                self.refill();
            }
            let n = out.len().min(N - self.next);
            let (now, later) = out.split_at_mut(n);
            for (value, word) in now.iter_mut().zip(&self.state[self.next..]) {
                *value = temper(*word);
            }
            self.next += n;
            out = later;
        }
    }

    /// Shuffles in place as llm.c does: for i = n−1 … 1 swaps `items[i]` with `items[next_u32() mod (i+1)]`.
    ///
    /// Draws n−1 numbers. The slight bias of the remainder is llm.c's and is kept so that orders agree.
    pub fn permute(&mut self, items: &mut [u32]) {
        for i in (1..items.len()).rev() {
            let j = u64::from(self.next_u32()) % (i as u64 + 1);
            items.swap(i, j as usize);
        }
    }

    /// Returns the state as plain numbers.
    #[must_use]
    pub fn state(&self) -> Mt19937State {
        Mt19937State { words: self.state.to_vec(), next: self.next as u32 }
    }

    /// Makes a generator that continues the stream from `state`.
    ///
    /// # Errors
    /// [`Error::Data`] if there are not 624 words, or `next` is above 624.
    pub fn from_state(state: &Mt19937State) -> Result<Self> {
        let words: [u32; N] = state.words.as_slice().try_into().map_err(|_| {
            Error::data(format!("mt19937: state has the wrong size, expected {N} words, got {}", state.words.len()))
        })?;
        let next = state.next as usize;
        if next > N {
            return Err(Error::data(format!(
                "mt19937: position is outside the state, expected at most {N}, got {next}"
            )));
        }
        Ok(Self { state: words, next })
    }

    /// Makes the next block of words. Three plain loops, so that no index needs a remainder.
    fn refill(&mut self) {
        let s = &mut self.state;
        for i in 0..N - M {
            s[i] = s[i + M] ^ twist(s[i], s[i + 1]);
        }
        for i in N - M..N - 1 {
            s[i] = s[i + M - N] ^ twist(s[i], s[i + 1]);
        }
        s[N - 1] = s[M - 1] ^ twist(s[N - 1], s[0]);
        self.next = 0;
    }
}

/// Returns the top bit of `a` followed by the other bits of `b`, times the twister's matrix.
fn twist(a: u32, b: u32) -> u32 {
    let y = (a & 0x8000_0000) | (b & 0x7fff_ffff);
    // the lowest bit decides whether the matrix adds its constant; a mask instead of a branch lets the loops vectorise
    (y >> 1) ^ ((b & 1).wrapping_neg() & 0x9908_b0df)
}

/// Tempers a word: spreads its bits over the number that is returned.
fn temper(word: u32) -> u32 {
    let mut y = word;
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c_5680;
    y ^= (y << 15) & 0xefc6_0000;
    y ^ (y >> 18)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(rng: &mut Mt19937, n: u32) -> Vec<u32> {
        let mut items: Vec<u32> = (0..n).collect();
        rng.permute(&mut items);
        items
    }

    #[test]
    fn first_draws_of_seed_42() {
        let mut rng = Mt19937::new(42);
        let got: Vec<u32> = (0..5).map(|_| rng.next_u32()).collect();
        assert_eq!(got, [1_608_637_542, 3_421_126_067, 4_083_286_876, 787_846_414, 3_143_890_026]);
    }

    #[test]
    fn ten_thousandth_draw_of_the_standard_seed() {
        // the value that the C++ standard states for std::mt19937
        let mut rng = Mt19937::new(5489);
        let mut values = vec![0; 10_000];
        rng.fill_u32(&mut values);
        assert_eq!(values[9_999], 4_123_659_995);
    }

    #[test]
    fn orders_are_those_of_llmc() {
        let mut rng = Mt19937::new(42);
        assert_eq!(order(&mut rng, 103)[..12], [70, 102, 50, 79, 24, 42, 4, 61, 98, 101, 77, 86]);
        assert_eq!(order(&mut rng, 190)[..10], [57, 162, 84, 186, 184, 74, 177, 151, 1, 134]);
        let mut rng = Mt19937::new(43);
        assert_eq!(order(&mut rng, 103)[..8], [72, 53, 85, 26, 99, 36, 16, 40]);
        assert_eq!(order(&mut rng, 190)[..6], [110, 23, 168, 94, 114, 72]);
        let mut rng = Mt19937::new(42);
        assert_eq!(order(&mut rng, 1), [0]);
        assert_eq!(order(&mut rng, 74)[..10], [29, 58, 10, 4, 11, 25, 63, 56, 72, 65]);
    }

    #[test]
    fn fill_gives_the_same_stream_as_single_draws() {
        let (mut one, mut many) = (Mt19937::new(7), Mt19937::new(7));
        for n in [1, 623, 2, 1249, 0, 625] {
            let mut block = vec![0; n];
            many.fill_u32(&mut block);
            assert!(block.iter().all(|&value| value == one.next_u32()));
        }
        assert_eq!(one, many);
    }

    #[test]
    fn a_saved_state_continues_the_same_stream() {
        let mut rng = Mt19937::new(3);
        for _ in 0..1000 {
            rng.next_u32();
        }
        let mut copy = Mt19937::from_state(&rng.state()).unwrap();
        assert_eq!(copy, rng);
        assert_eq!(copy.next_u32(), rng.next_u32());
    }

    #[test]
    fn a_broken_state_is_refused() {
        let mut state = Mt19937::new(3).state();
        state.next = 625;
        assert!(matches!(Mt19937::from_state(&state), Err(Error::Data(_))));
        state.next = 0;
        state.words.pop();
        assert!(matches!(Mt19937::from_state(&state), Err(Error::Data(_))));
    }
}
